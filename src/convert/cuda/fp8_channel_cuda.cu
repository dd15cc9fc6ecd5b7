/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_channel_cuda.cu - cutlass_fp8_e4m3_per_channel on a GPU: short rows several to a tile, long
 * ones one to a block. */
#include "convert/cuda/kernel_choice.cuh"
#include "convert/cuda/to_fp8.cuh"

extern "C" weir_cuda_kernel weir_fp8_channel_cuda(weir_cuda_from from)
{
    return choose_kernel<to_fp8<false>>(from);
}

extern "C" weir_cuda_kernel weir_fp8_long_row_cuda(weir_cuda_from from)
{
    switch (from) {
    case WEIR_CUDA_FROM_BF16:
        return { convert_long_rows<from_bf16>, 0, 0 };
    case WEIR_CUDA_FROM_F16:
        return { convert_long_rows<from_f16>, 0, 0 };
    case WEIR_CUDA_FROM_F32:
        return { convert_long_rows<from_f32>, 0, 0 };
    case WEIR_CUDA_FROM_MASTER:
        return { convert_long_rows<from_master>, 0, 0 };
    default:
        return { convert_long_rows<from_any>, 0, 0 };
    }
}
