# SPDX-License-Identifier: Apache-2.0
"""Finds ``libweir.so`` and loads it, once, when it is first needed.

``WEIR_LIBRARY`` names it; else it is the one that lies in the package, ``weir/lib/libweir.so``. The
system's library path is not searched: a library of another version would be found in silence.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Optional

from weir.prototypes import PROTOTYPES

__version__ = "0.1.0"

_lock = threading.Lock()
_library: Optional[ctypes.CDLL] = None


def library() -> ctypes.CDLL:
    """The C library with the prototypes of :mod:`weir.prototypes`. Its calls release the GIL.

    Raises ImportError when there is none, or when it is of another version than this package.
    """
    global _library
    if _library is None:
        with _lock:
            if _library is None:
                _library = _load(library_path())
    return _library


def library_path() -> str:
    """Where the C library is: what ``WEIR_LIBRARY`` says, else the one within the package."""
    named = os.environ.get("WEIR_LIBRARY")
    if named:
        if not os.path.isfile(named):
            raise ImportError(f"WEIR_LIBRARY names {named}, where there is no file")
        return named
    own = _own_path()
    if not os.path.isfile(own):
        raise ImportError(f"there is no libweir.so: WEIR_LIBRARY is not set, nor is there {own}")
    return own


def version() -> str:
    """The C library's version, which is the package's."""
    text: bytes = library().weir_version()
    return text.decode()


def _own_path() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib", "libweir.so")


def _load(path: str) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"{path} cannot be loaded: {error}") from error
    _check_version(loaded, path)
    for name, result, arguments in PROTOTYPES:
        function = getattr(loaded, name, None)
        if function is not None:  # else whoever calls it is told its name
            function.restype = result
            function.argtypes = arguments
    return loaded


def _check_version(loaded: ctypes.CDLL, path: str) -> None:
    try:
        function = loaded.weir_version
    except AttributeError:
        raise ImportError(f"{path} is no libweir: it has no weir_version()") from None
    function.restype = ctypes.c_char_p
    found = function().decode()
    if found != __version__:
        raise ImportError(
            f"{path} is Weir {found}, the package {os.path.dirname(__file__)} is Weir {__version__}"
        )
