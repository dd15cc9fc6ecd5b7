/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_channel_cuda.cu - cutlass_fp8_e4m3_per_channel on a GPU: short rows several to a tile, long
 * ones one to a block. */
#include "convert/cuda/fp8_long_row.cuh"
#include "convert/cuda/kernels_cuda.h"

extern "C" weir_cuda_kernel weir_fp8_channel_cuda(weir_cuda_from from)
{
    switch (from) {
    case WEIR_CUDA_FROM_BF16:
        return fp8_tile<from_bf16, channel_layout>;
    case WEIR_CUDA_FROM_F16:
        return fp8_tile<from_f16, channel_layout>;
    case WEIR_CUDA_FROM_F32:
        return fp8_tile<from_f32, channel_layout>;
    case WEIR_CUDA_FROM_MASTER:
        return fp8_tile<from_master, channel_layout>;
    default:
        return fp8_tile<from_any, channel_layout>;
    }
}

extern "C" weir_cuda_kernel weir_fp8_long_row_cuda(weir_cuda_from from)
{
    switch (from) {
    case WEIR_CUDA_FROM_BF16:
        return fp8_long_row<from_bf16>;
    case WEIR_CUDA_FROM_F16:
        return fp8_long_row<from_f16>;
    case WEIR_CUDA_FROM_F32:
        return fp8_long_row<from_f32>;
    case WEIR_CUDA_FROM_MASTER:
        return fp8_long_row<from_master>;
    default:
        return fp8_long_row<from_any>;
    }
}
