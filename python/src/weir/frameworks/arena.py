# SPDX-License-Identifier: Apache-2.0
"""Host memory that holds a version while it is sent, for tensors that their owner takes back.

Frameworks hand out weights one by one, gathered for the moment, often in a buffer that the next one
is gathered into. Weir reads what is registered until a version has been published (through a
window: until it has been sent), so each tensor is copied as it comes: one buffer per name, taken
with the first version and written again by the next ones. That is one copy of the model in host
memory, and of the gathered tensors never more than one at a time.

Nothing here knows a framework, and nothing here talks to anybody.
"""

from __future__ import annotations

import sys
from typing import Any, Dict, Set

from weir.errors import CallError, Status
from weir.shards import is_sharded


def _is_torch(array: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _copy_torch(kept: Any, tensor: Any) -> Any:
    torch: Any = sys.modules["torch"]
    given = tensor.detach()
    fits = _is_torch(kept) and kept.shape == given.shape and kept.dtype == given.dtype
    if not fits:
        kept = torch.empty(given.shape, dtype=given.dtype, pin_memory=bool(given.is_cuda))
    kept.copy_(given)
    return kept


def _copy_bytes(name: str, kept: Any, array: Any) -> Any:
    from weir.tensors import Tensor, tensor

    given = tensor(array, name=name)
    if given.device != "cpu":
        raise CallError(
            f"{name}: lies on {given.device}: hand it in as a torch tensor, or in host memory",
            Status.ERR_UNSUPPORTED,
        )
    fits = isinstance(kept, Tensor) and kept.shape == given.shape and kept.dtype == given.dtype
    if not fits:
        memory = bytearray(given.n_bytes)
        kept = tensor(memory, name=name, dtype=given.dtype, shape=given.shape)
    kept.raw[:] = given.raw
    return kept


class Arena:
    """The tensors of one version, by name.

    ``borrow=True`` copies nothing: the caller then promises that memory and values stay until the
    version has been sent, as those of a module's own parameters do between two optimizer steps.
    """

    def __init__(self, borrow: bool = False) -> None:
        self.borrow = borrow
        self._kept: Dict[str, Any] = {}
        self._taken: Set[str] = set()

    def begin(self) -> None:
        """The tensors that are taken from here on are another version's."""
        self._taken = set()

    def take(self, name: str, array: Any) -> None:
        """Copies one tensor, of any strides where it is torch's; its owner may overwrite it."""
        if name in self._taken:
            raise CallError(f"{name}: handed out twice in one version")
        if is_sharded(array):
            raise CallError(
                f"{name}: is a shard ({type(array).__name__}): this hook takes whole tensors; "
                "weir.Trainer publishes shards where they are, without gathering them",
                Status.ERR_UNSUPPORTED,
            )
        kept = self._kept.get(name)
        if self.borrow:
            kept = array.detach() if _is_torch(array) else array
        elif _is_torch(array):
            kept = _copy_torch(kept, array)
        else:
            kept = _copy_bytes(name, kept, array)
        self._kept[name] = kept
        self._taken.add(name)

    def tensors(self) -> Dict[str, Any]:
        """What was taken since begin(); what was not is let go of."""
        if not self._taken:
            raise CallError("no tensor was handed out: an empty version would be sent")
        for name in self._kept.keys() - self._taken:
            del self._kept[name]
        return dict(self._kept)

    def clear(self) -> None:
        """Gives the memory back."""
        self._kept = {}
        self._taken = set()


def as_torch(tensor: Any) -> Any:
    """The torch tensor over a `weir.Tensor`'s own host memory, of its dtype and shape."""
    import torch

    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}
    name = tensor.dtype.name
    if tensor.device != "cpu":
        raise CallError(f"{tensor.name}: lies on {tensor.device}", Status.ERR_UNSUPPORTED)
    if name not in names:
        raise CallError(f"{tensor.name}: torch has no dtype for {name}", Status.ERR_UNSUPPORTED)
    dtype = getattr(torch, names[name])
    if tensor.n_bytes == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    return torch.frombuffer(tensor.raw, dtype=torch.uint8).view(dtype).view(tensor.shape)


__all__ = ["Arena", "as_torch"]
