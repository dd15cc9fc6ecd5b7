# SPDX-License-Identifier: Apache-2.0
"""What the layers of vLLM's model hold, and whether Weir may write there.

vLLM rearranges weights once they are loaded, each layer for the kernel that will read it. Shapes
do not tell: [w3; w1] as FlashInfer wants it has the shape of [w1; w3]. So a parameter is taken only
when its layer's method and kernel are known to keep what a conversion of Weir's writes, and its
dtype, shape and strides are those of that layout (`weir.engines.layouts`). All else is refused,
with what was seen.

The tables name classes of vLLM, because those are what decides: test_vllm_interface.py compares
them with the installed package. Nothing is imported from it here.
"""

from __future__ import annotations

from typing import Any, FrozenSet

from weir.engines import Refused
from weir.engines.layouts import BLOCK, CHANNEL, PLAIN, Layout, block_layout, type_name

# Methods that keep weights as they were loaded.
PLAIN_METHODS = frozenset({"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"})

# Kernels of linear layers that read e4m3 (N, K) and fp32 scales (N / 128, K / 128) as loaded.
BLOCK_KERNELS = frozenset(
    {
        "BlockWiseTorchFP8ScaledMMLinearKernel",
        "CutlassFp8BlockScaledMMKernel",
        "TritonFp8BlockScaledMMKernel",
    }
)
# The same on Hopper: what is multiplied are fp32 scales, whether vLLM made powers of two of those
# that it loaded or not. On Blackwell they are packed integers, which their dtype shows.
DEEP_GEMM_KERNELS = frozenset(
    {
        "DeepGemmFp8BlockScaledMMKernel",
        "FlashInferFp8DeepGEMMDynamicBlockScaledKernel",
    }
)
# Kernels that read e4m3 (K, N) with K contiguous, which is (N, K) transposed, and a scale per row.
CHANNEL_KERNELS = frozenset(
    {
        "ChannelWiseTorchFP8ScaledMMLinearKernel",
        "CutlassFP8ScaledMMLinearKernel",
        "RowWiseTorchFP8ScaledMMLinearKernel",
    }
)
# Backends of experts that read (E, 2m, d), w1 before w3, and (E, d, m), as loaded.
EXPERT_BACKENDS = frozenset(
    {
        "TRITON",
        "BATCHED_TRITON",
        "VLLM_CUTLASS",
        "BATCHED_VLLM_CUTLASS",
    }
)
DEEP_GEMM_BACKENDS = frozenset({"DEEPGEMM", "BATCHED_DEEPGEMM"})

# Why a backend is refused, where there is more to say than that it is not known.
REASONS = {
    "FLASHINFER_CUTLASS": "it keeps w3 before w1 (choose the Triton or CUTLASS experts)",
    "FLASHINFER_TRTLLM": "it shuffles rows, w3 before w1 (choose the Triton or CUTLASS experts)",
    "MARLIN": "it repacks weights into tiles of its own",
    "AITER": "it shuffles weights",
}


def _list(names: FrozenSet[str]) -> str:
    return ", ".join(sorted(names))


def _name(backend: object) -> str:
    return str(getattr(backend, "name", backend)).upper()


def _block_linear(method: object) -> Layout:
    kernel = getattr(method, "fp8_linear", None)
    if kernel is None:
        return _block_linear_before_kernels(method)
    name = type_name(kernel)
    if name in BLOCK_KERNELS | DEEP_GEMM_KERNELS:
        return Layout(BLOCK)
    raise Refused(f"kernel {name}: known are {_list(BLOCK_KERNELS | DEEP_GEMM_KERNELS)}")


def _block_linear_before_kernels(method: object) -> Layout:
    """vLLM before it had a class per kernel: one operator that chooses."""
    operator = getattr(method, "w8a8_block_fp8_linear", None)
    if operator is None or getattr(method, "use_marlin", False):
        raise Refused(f"{type_name(method)} does not say which kernel reads it")
    return Layout(BLOCK)


def _channel_linear(method: object) -> Layout:
    kernel = getattr(method, "fp8_linear", None)
    name = type_name(kernel)
    if name in CHANNEL_KERNELS or name == "Fp8LinearOp":
        return Layout(CHANNEL, transposed=True)
    raise Refused(f"kernel {name}: known are {_list(CHANNEL_KERNELS)}")


def _compressed_linear(module: Any) -> Layout:
    scheme: Any = getattr(module, "scheme", None)
    if type_name(scheme) != "CompressedTensorsW8A8Fp8":
        raise Refused(f"scheme {type_name(scheme)}: known is CompressedTensorsW8A8Fp8")
    strategy = _name(getattr(scheme.strategy, "value", scheme.strategy))
    if strategy == "BLOCK":
        return _block_linear(scheme)
    if strategy == "CHANNEL":
        return _channel_linear(scheme)
    raise Refused(f"compressed-tensors strategy {strategy.lower()}: known are channel and block")


def _check_expert_backend(method: object, attribute: str) -> None:
    backend = getattr(method, attribute, None)
    if backend is None:
        raise Refused(f"{type_name(method)} does not say which backend reads it ({attribute})")
    name = _name(backend)
    if name in EXPERT_BACKENDS | DEEP_GEMM_BACKENDS:
        return
    known = f"known are {_list(EXPERT_BACKENDS | DEEP_GEMM_BACKENDS)}"
    raise Refused(f"backend {name}: {REASONS.get(name, known)}")


def _fp8_experts(method: object) -> Layout:
    _check_expert_backend(method, "fp8_backend")
    if getattr(method, "block_quant", False):
        return Layout(BLOCK)
    strategy = getattr(getattr(method, "weight_quant", None), "strategy", None)
    if _name(getattr(strategy, "value", strategy)) == "CHANNEL":
        return Layout(CHANNEL)
    raise Refused("one scale per expert or tensor: no conversion of Weir's writes that")


def layout_of(module: Any) -> Layout:
    """How this module keeps its weights.

    Raises Refused, saying what was seen and what is known (not which module: the caller knows).
    """
    method = getattr(module, "quant_method", None)
    name = type_name(method)
    if method is None or name in PLAIN_METHODS:
        return Layout(PLAIN)
    if name == "UnquantizedFusedMoEMethod":
        _check_expert_backend(method, "unquantized_backend")
        return Layout(PLAIN)
    if name == "CompressedTensorsLinearMethod":
        layout = _compressed_linear(module)
    elif name == "Fp8LinearMethod" and getattr(method, "block_quant", False):
        layout = _block_linear(method)
    elif name == "Fp8LinearMethod":
        raise Refused("one scale per tensor: no conversion of Weir's writes that")
    elif name in ("Fp8MoEMethod", "CompressedTensorsW8A8Fp8MoEMethod"):
        layout = _fp8_experts(method)
    else:
        raise Refused(f"method {name} is not known")
    if layout.kind == BLOCK:
        return block_layout(module, method, getattr(module, "scheme", None))
    return layout
