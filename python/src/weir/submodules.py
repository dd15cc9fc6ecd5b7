# SPDX-License-Identifier: Apache-2.0
"""Modules of a package that are imported when they are first named, as ``weir.sglang.client`` is.

What they need (torch, an engine) is then asked for, and by nobody who does not name them.
"""

from __future__ import annotations

import importlib
from typing import Any, Callable


def importer(package: str, *names: str) -> Callable[[str], Any]:
    """A package's ``__getattr__``, which knows these modules of it."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{name}")

    return find
