/* SPDX-License-Identifier: Apache-2.0 */
/* cast_cuda.cu - bf16_cast and fp32_cast on a GPU. The planner asks for no master of either: to
 * bf16 rounding once or twice is the same, and fp32 is never rounded. */
#include "convert/cuda/kernel_choice.cuh"
#include "convert/cuda/to_float.cuh"

extern "C" weir_cuda_kernel weir_bf16_cast_cuda(weir_cuda_from from)
{
    return choose_kernel<to_float<as_bf16>>(from);
}

extern "C" weir_cuda_kernel weir_fp32_cast_cuda(weir_cuda_from from)
{
    return choose_kernel<to_float<as_f32>>(from);
}
