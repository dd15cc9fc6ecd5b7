# SPDX-License-Identifier: Apache-2.0
"""What a trainer tells the workers of an engine: whom to follow, and which version to take.

Plain dataclasses of JSON values, because they come as dictionaries over HTTP or an engine's own
calls. Adapters of an engine's interfaces inherit them, others take them as they are.
Nothing is connected here, and nothing of an engine is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Union

SECURITY_FIELDS = ("certificate", "key", "ca", "token", "token_file", "insecure")


def _fail(what: str) -> None:
    raise ValueError(what)


@dataclass
class Settings:
    """Whom to follow. All times are seconds, all sizes bytes.

    Raises ValueError, naming the field, what was expected and what came.
    """

    directory: str
    """ "HOST:PORT", or several of one store with commas between."""
    model: Optional[str] = None
    """The name that the trainer publishes under; None: the engine's served model name."""
    run: Optional[str] = None
    name: Optional[str] = None
    """Of this worker; None: host name and process id."""
    family: Optional[str] = None
    layout: Optional[str] = None
    conversion: Optional[str] = None
    """None: follows from the layouts that the parameters have."""
    transport: Optional[str] = None
    transport_directory: Optional[str] = None
    listen: Optional[str] = None
    install: str = "staged"
    """"staged": verified beside, then swapped in; "direct": straight into the parameters."""
    wire: str = "kernel"
    timeout: float = 60.0
    """Bounds every wait of one stop of an install."""
    agree_timeout: Optional[float] = None
    """How long workers wait for each other; None: three times `timeout`."""
    lease: float = 90.0
    n_threads: int = 0
    window_bytes: int = 0
    ignore: List[str] = field(default_factory=list)
    """Globs of parameters (the engine's names) that keep the weights they came with."""
    security: Optional[Dict[str, Any]] = field(default=None, repr=False)
    """Fields of weir.Security, paths of files on the worker's machine."""

    def __post_init__(self) -> None:
        if not isinstance(self.directory, str) or ":" not in self.directory:
            _fail(f'directory: expected "HOST:PORT", got {self.directory!r}')
        if self.install not in ("staged", "direct"):
            _fail(f'install: expected "staged" or "direct", got {self.install!r}')
        if self.wire not in ("kernel", "checkpoint"):
            _fail(f'wire: expected "kernel" or "checkpoint", got {self.wire!r}')
        for name in ("timeout", "lease", "agree_timeout"):
            value = getattr(self, name)
            if value is None and name == "agree_timeout":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                _fail(f"{name}: expected seconds above 0, got {value!r}")
        if isinstance(self.ignore, str) or not all(isinstance(g, str) for g in self.ignore):
            _fail(f"ignore: expected a list of globs, got {self.ignore!r}")
        unknown = sorted(set(self.security or {}) - set(SECURITY_FIELDS))
        if unknown:
            _fail(f"security: expected some of {SECURITY_FIELDS}, got {unknown}")

    @property
    def agreement_seconds(self) -> float:
        """How long one worker waits for what the others came to."""
        return self.agree_timeout if self.agree_timeout is not None else 3.0 * self.timeout


@dataclass
class Update:
    """Which version to install: a number, or "latest" for any newer than the one that is held."""

    version: Union[int, str] = "latest"

    def __post_init__(self) -> None:
        if isinstance(self.version, str) and self.version.isdigit():
            self.version = int(self.version)
        number = isinstance(self.version, int) and not isinstance(self.version, bool)
        if self.version != "latest" and not (number and int(self.version) > 0):
            _fail(f'version: expected a number above 0 or "latest", got {self.version!r}')
