# SPDX-License-Identifier: Apache-2.0
"""Where the others find this process: its own address on the way to the directory.

No packet is sent for it. Whether anybody may listen there is for the C library to say.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Optional


def towards(directory: str) -> Optional[str]:
    """This machine's address on its way to the first of ``directory`` ("HOST:PORT", or several by
    commas). None when that is a loopback one, or when there is no way: C says so better."""
    host, _, port = directory.partition(",")[0].strip().rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)
    except (OSError, ValueError, UnicodeError):
        return None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(address)
            except OSError:
                continue
            own = str(probe.getsockname()[0])
            return None if ipaddress.ip_address(own.partition("%")[0]).is_loopback else own
    return None
