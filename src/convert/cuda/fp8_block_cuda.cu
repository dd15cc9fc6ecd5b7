/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_block_cuda.cu - fp8_128x128 on a GPU. */
#include "convert/cuda/fp8_tile.cuh"
#include "convert/cuda/kernels_cuda.h"

extern "C" weir_cuda_kernel weir_fp8_128x128_cuda(weir_cuda_from from)
{
    switch (from) {
    case WEIR_CUDA_FROM_BF16:
        return fp8_tile<from_bf16, block_layout>;
    case WEIR_CUDA_FROM_F16:
        return fp8_tile<from_f16, block_layout>;
    case WEIR_CUDA_FROM_F32:
        return fp8_tile<from_f32, block_layout>;
    case WEIR_CUDA_FROM_MASTER:
        return fp8_tile<from_master, block_layout>;
    default:
        return fp8_tile<from_any, block_layout>;
    }
}
