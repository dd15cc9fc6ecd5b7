/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_choice.cuh - the kernel of a From and a To. */
#ifndef WEIR_CONVERT_KERNEL_CHOICE_CUH
#define WEIR_CONVERT_KERNEL_CHOICE_CUH

#include "convert/cuda/kernels_cuda.h"
#include "convert/cuda/tile_walk.cuh"

template <class From, class To> static weir_cuda_kernel kernel_of()
{
    return { convert_tiles<From, To>, walk<From, To>::blocks_per_sm, walk<From, To>::shared_bytes };
}

template <class To> static weir_cuda_kernel choose_kernel(weir_cuda_from from)
{
    switch (from) {
    case WEIR_CUDA_FROM_BF16:
        return kernel_of<from_bf16, To>();
    case WEIR_CUDA_FROM_F16:
        return kernel_of<from_f16, To>();
    case WEIR_CUDA_FROM_F32:
        return kernel_of<from_f32, To>();
    case WEIR_CUDA_FROM_MASTER:
        return kernel_of<from_master, To>();
    default:
        return kernel_of<from_any, To>();
    }
}

#endif
