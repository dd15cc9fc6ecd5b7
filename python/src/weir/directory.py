# SPDX-License-Identifier: Apache-2.0
"""An embedded ``weir serve``: who has which version, for trainers and replicas to ask."""

from __future__ import annotations

import ctypes
from typing import Optional

from weir import abi, arguments
from weir.calls import Handle
from weir.errors import check
from weir.library import library
from weir.security import Security


class Directory(Handle):
    """A directory server in a thread of this process, until ``close()``.

    listen      "HOST:PORT"; None: 127.0.0.1 and any free port
    store       None or "memory"; "redis://[USER:PASSWORD@]HOST:PORT[/DB]": records outlive it
    name        of the fleet within that Redis
    http        "HOST:PORT" of /metrics, /healthz, /readyz and the page; None: none
    stale_after, delete_after, sweep_every
                seconds, whole ones: when a source without an update turns STALE, and is deleted
    max_connections, max_connections_per_host
                of gRPC; 0: what the process's descriptors allow

    Raises :class:`weir.CallError` when it cannot listen there, or reach its store.
    """

    _exit_order = 2

    def __init__(
        self,
        listen: Optional[str] = None,
        *,
        store: Optional[str] = None,
        name: Optional[str] = None,
        http: Optional[str] = None,
        security: Optional[Security] = None,
        stale_after: int = 90,
        delete_after: int = 3600,
        sweep_every: int = 30,
        max_connections: int = 0,
        max_connections_per_host: int = 0,
    ) -> None:
        super().__init__("directory")
        options = abi.weir_directory_options(size=ctypes.sizeof(abi.weir_directory_options))
        options.listen = arguments.text("listen", listen)
        options.store = arguments.text("store", store)
        options.name = arguments.text("name", name)
        options.http = arguments.text("http", http)
        options.stale_after_s = arguments.whole("stale_after", stale_after)
        options.delete_after_s = arguments.whole("delete_after", delete_after)
        options.sweep_every_s = arguments.whole("sweep_every", sweep_every)
        options.max_connections = arguments.whole("max_connections", max_connections)
        options.max_connections_per_host = arguments.whole(
            "max_connections_per_host", max_connections_per_host
        )
        options.security = arguments.security(security)
        self._options = options
        self._open(self._open_directory)
        self._title = f"directory {self._address}"

    def _open_directory(self) -> int:
        out = ctypes.c_void_p()
        check(library().weir_directory_open(ctypes.byref(self._options), ctypes.byref(out)))
        self._address: str = library().weir_directory_address(out).decode()
        self._http_address: str = library().weir_directory_http_address(out).decode()
        assert out.value is not None
        return out.value

    @property
    def address(self) -> str:
        """ "HOST:PORT" that it listens on."""
        return self._address

    @property
    def http_address(self) -> str:
        """ "HOST:PORT" of its page; "" when it has none."""
        return self._http_address

    def cancel(self) -> None:
        """Nothing: no call on a directory waits."""

    def _close_pointer(self, pointer: int) -> None:
        library().weir_directory_close(pointer)

