# SPDX-License-Identifier: Apache-2.0
"""Thread pools and CUDA batches of ``weir.convert()``, kept from one call for the next.

Each belongs to one call at a time. A call that finds none free opens one, but never more pools than
two of a size: others then convert in their own thread, which is what their caller has.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional

from weir.errors import check
from weir.library import library

_MOST_POOLS = 2
_MOST_IDLE_BATCHES = 2


class _Shelf:
    """Handles by key: idle ones, and how many are out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: Dict[int, List[int]] = {}
        self._n: Dict[int, int] = {}

    def take(self, key: int, make: Callable[[int], int], at_most: Optional[int]) -> Optional[int]:
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if idle:
                return idle.pop()
            if at_most is not None and self._n.get(key, 0) >= at_most:
                return None
            self._n[key] = self._n.get(key, 0) + 1
        try:
            return make(key)
        except BaseException:
            self.forget(key)
            raise

    def give(self, key: int, handle: int, at_most: int) -> bool:
        """False when enough are idle: the caller then closes it."""
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if len(idle) < at_most:
                idle.append(handle)
                return True
            self._n[key] -= 1
            return False

    def forget(self, key: int) -> None:
        with self._lock:
            self._n[key] -= 1


def _open_pool(n_threads: int) -> int:
    handle = ctypes.c_void_p()
    check(library().weir_pool_open(n_threads, ctypes.byref(handle)))
    return handle.value or 0


def _open_batch(device: int) -> int:
    handle = ctypes.c_void_p()
    check(library().weir_cuda_batch_open(device, ctypes.byref(handle)))
    return handle.value or 0


@contextlib.contextmanager
def pool(n_threads: int) -> Iterator[Optional[int]]:
    """A pool of so many threads (0: one per core), or None: this thread alone."""
    shelf = _pools
    handle = None if n_threads == 1 else shelf.take(n_threads, _open_pool, _MOST_POOLS)
    try:
        yield handle
    finally:
        if handle is not None:
            shelf.give(n_threads, handle, _MOST_POOLS)


class Batch:
    """A CUDA batch for one call. ``abandon`` keeps it, and what it works on, for ever."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._shelf = _batches
        taken = self._shelf.take(device, _open_batch, None)
        self.handle: Optional[int] = taken

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.handle is None:
            return
        if not self._shelf.give(self._device, self.handle, _MOST_IDLE_BATCHES):
            library().weir_cuda_batch_close(self.handle)
        self.handle = None

    def abandon(self, *works_on: Any) -> None:
        """After a wait that timed out the GPU may still read and write what it was given."""
        _abandoned.append((self.handle, works_on))
        self._shelf.forget(self._device)
        self.handle = None


_pools = _Shelf()
_batches = _Shelf()
_abandoned: List[Any] = []


def _forget_all() -> None:
    # The child of a fork has none of the threads, and no use for its parent's CUDA.
    global _pools, _batches
    _pools, _batches = _Shelf(), _Shelf()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
