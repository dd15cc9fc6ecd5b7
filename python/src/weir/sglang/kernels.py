# SPDX-License-Identifier: Apache-2.0
"""What the layers of SGLang's model hold, and whether Weir may write there.

In the words of `weir.engines.layouts`: a parameter is taken only when its layer's method,
and the kernel that this has chosen, are known to keep what a conversion of Weir's writes. Shapes do
not tell: [w3; w1], blocks of rows and rounded scales look like what was loaded.

The tables name classes and functions of SGLang: test_sglang.py compares them with the installed
package. Nothing is imported from it here.
"""

from __future__ import annotations

import functools
from typing import Any, Optional, Tuple

from weir.engines import Refused
from weir.engines.layouts import CHANNEL, PLAIN, Layout, block_layout, type_name, view_of

# Methods that keep weights as they were loaded.
PLAIN_METHODS = frozenset({"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"})
PLAIN_EXPERTS = "UnquantizedFusedMoEMethod"
FP8_LINEAR = "Fp8LinearMethod"
FP8_EXPERTS = "Fp8MoEMethod"
CHANNEL_LINEAR = "W8A8Fp8LinearMethod"
CHANNEL_EXPERTS = "W8A8FP8MoEMethod"

# Functions that read e4m3 (N, K) and fp32 scales (N / 128, K / 128) as loaded. DeepGEMM's do where
# scales were not made powers of two, which a mark of the parameter tells.
BLOCK_FUNCTIONS = frozenset({
    "deepgemm_w8a8_block_fp8_linear_with_fallback",
    "flashinfer_deepgemm_w8a8_block_fp8_linear_with_fallback",
    "triton_w8a8_block_fp8_linear",
})
# Runners of experts that read (E, 2m, d), w1 before w3, and (E, d, m), as loaded.
EXPERT_RUNNERS = frozenset({"triton", "deep_gemm"})

# Attributes of a method that, where they are true, say that it keeps weights in a way of its own.
MARKS = (
    ("use_marlin", "repacked into Marlin's tiles"),
    ("use_mxfp8", "MXFP8, scales of 32 columns"),
    ("block_fp8_as_mxfp8", "kept as MXFP8 too"),
    ("is_fp4_expert", "FP4"),
    ("use_triton_kernels", "experts kept transposed for triton_kernels"),
    ("use_flashinfer_trtllm_moe", "rows shuffled for TRT-LLM"),
    ("use_flashinfer_cutlass", "w3 kept before w1 for FlashInfer"),
    ("load_up_proj_weight_first", "w3 kept before w1"),
    ("w13_swiglu_interleaved", "rows of w1 and w3 interleaved"),
    ("use_per_token_if_dynamic", "shuffled for AITER"),
)


def _refuse_marks(method: object, module: object) -> None:
    for attribute, meaning in MARKS:
        if getattr(method, attribute, False) is True:
            raise Refused(f"{type_name(method)}.{attribute}: {meaning}")
    if getattr(module, "use_intel_amx_backend", False):
        raise Refused("repacked for AMX")


def _function_name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", function))


def _fp8_linear(method: Any) -> Layout:
    if not getattr(method, "block_quant", False):
        return Layout(CHANNEL, transposed=True)
    name = _function_name(getattr(method, "w8a8_block_fp8_linear", None))
    if name not in BLOCK_FUNCTIONS:
        raise Refused(f"kernel {name}: known are {', '.join(sorted(BLOCK_FUNCTIONS))}")
    return block_layout(method, getattr(method, "quant_config", None))


def _compressed_linear(module: Any) -> Layout:
    scheme: Any = getattr(module, "scheme", None)
    if type_name(scheme) != "CompressedTensorsW8A8Fp8":
        raise Refused(f"scheme {type_name(scheme)}: known is CompressedTensorsW8A8Fp8")
    _refuse_marks(scheme, module)
    strategy = str(getattr(scheme.strategy, "value", scheme.strategy)).lower()
    if strategy == "channel":
        return Layout(CHANNEL, transposed=True)
    if strategy == "block":
        return block_layout(scheme, module)
    raise Refused(f"compressed-tensors strategy {strategy}: known are channel and block")


def _runner(method: Any) -> str:
    backend = getattr(getattr(method, "runner", None), "runner_backend", None)
    name = str(getattr(backend, "value", backend))
    if name not in EXPERT_RUNNERS:
        known = ", ".join(sorted(EXPERT_RUNNERS))
        raise Refused(f"experts run by {name}: known are {known} (--moe-runner-backend)")
    return name


def _experts(name: str, method: Any) -> Layout:
    _runner(method)
    if name == PLAIN_EXPERTS:
        return Layout(PLAIN)
    if name == CHANNEL_EXPERTS:
        return Layout(CHANNEL)
    if not getattr(method, "block_quant", False):
        raise Refused("one scale per expert: no conversion of Weir's writes that")
    return block_layout(method, getattr(method, "quant_config", None))


def layout_of(module: Any) -> Layout:
    """How this module keeps its weights.

    Raises Refused, saying what was seen and what is known (not which module: the caller knows).
    """
    method = getattr(module, "quant_method", None)
    name = type_name(method)
    _refuse_marks(method, module)
    if method is None or name in PLAIN_METHODS:
        return Layout(PLAIN)
    if name == FP8_LINEAR:
        return _fp8_linear(method)
    if name == CHANNEL_LINEAR:
        return Layout(CHANNEL, transposed=True)
    if name == "CompressedTensorsLinearMethod":
        return _compressed_linear(module)
    if name in (PLAIN_EXPERTS, FP8_EXPERTS, CHANNEL_EXPERTS):
        return _experts(name, method)
    raise Refused(f"method {name} is not known")


def _row_scales(tensor: Any, n_rows: int) -> Any:
    """(N, 1) and (1, N) are N scales, one per row; one alone is of the whole tensor."""
    if tensor.numel() != n_rows or not tensor.is_contiguous():
        dtype = str(tensor.dtype).replace("torch.", "")
        raise Refused(
            f"{dtype} scales of shape {list(tensor.shape)}: expected one per row, {n_rows}"
        )
    return tensor.view(n_rows)


def view_in(module: Any, attribute: str, parameter: Any, data: Any,
            layout: Layout) -> Tuple[str, Any]:
    """As weir.engines.layouts.view_of() of `data`, which is `parameter`'s memory or rows of it."""
    if getattr(parameter, "format_ue8m0", False):
        raise Refused("scales made powers of two for DeepGEMM (UE8M0); fp8_128x128 writes fp32 "
                      "scales (choose --fp8-gemm-backend triton)")
    name, view = view_of(attribute, data, layout)
    if layout == Layout(CHANNEL, transposed=True) and name == "weight_scale":
        view = _row_scales(data, int(module.weight.shape[1]))
    return name, view
