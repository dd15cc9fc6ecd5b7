/* SPDX-License-Identifier: Apache-2.0 */
/* cast_cuda.cu - bf16_cast and fp32_cast on a GPU. */
#include "convert/cuda/cast_tile.cuh"
#include "convert/cuda/kernels_cuda.h"

extern "C" weir_cuda_kernel weir_bf16_cast_cuda(weir_cuda_from from)
{
    switch (from) {
    case WEIR_CUDA_FROM_BF16:
        return cast_tile<from_bf16, to_bf16>;
    case WEIR_CUDA_FROM_F16:
        return cast_tile<from_f16, to_bf16>;
    case WEIR_CUDA_FROM_F32: /* rounding once or twice to bf16 is the same */
    case WEIR_CUDA_FROM_MASTER:
        return cast_tile<from_f32, to_bf16>;
    default:
        return cast_tile<from_any, to_bf16>;
    }
}

extern "C" weir_cuda_kernel weir_fp32_cast_cuda(weir_cuda_from from)
{
    switch (from) {
    case WEIR_CUDA_FROM_BF16:
        return cast_tile<from_bf16, to_f32>;
    case WEIR_CUDA_FROM_F16:
        return cast_tile<from_f16, to_f32>;
    case WEIR_CUDA_FROM_F32:
    case WEIR_CUDA_FROM_MASTER: /* never rounded: the planner does not ask for it */
        return cast_tile<from_f32, to_f32>;
    default:
        return cast_tile<from_any, to_f32>;
    }
}
