/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_block_cuda.cu - fp8_128x128 on a GPU. */
#include "convert/cuda/kernel_choice.cuh"
#include "convert/cuda/to_fp8.cuh"

extern "C" weir_cuda_kernel weir_fp8_128x128_cuda(weir_cuda_from from)
{
    return choose_kernel<to_fp8<true>>(from);
}
