/* SPDX-License-Identifier: Apache-2.0 */
/* digest_sum.cuh - weir_digest (weir/tensor.h) in registers, added up over a block. */
#ifndef WEIR_CONVERT_DIGEST_SUM_CUH
#define WEIR_CONVERT_DIGEST_SUM_CUH

#include "base/digest.h"
#include "convert/cuda/tile_place.cuh"

struct digest_sum {
    uint64_t product, sum;

    __device__ __forceinline__ void clear()
    {
        product = sum = 0;
    }
    __device__ __forceinline__ void add(uint32_t low, uint32_t high, uint64_t key)
    {
        product += static_cast<uint64_t>(low + static_cast<uint32_t>(key)) *
                   (high + static_cast<uint32_t>(key >> 32));
        sum += static_cast<uint64_t>(high) << 32 | low;
    }
};

__device__ __forceinline__ uint64_t digest_key(uint64_t word)
{
    return WEIR_DIGEST_KEY + word * WEIR_DIGEST_STEP;
}

/* A warp's sum modulo 2^64, valid in every lane: 27 bits a time fit the 32-bit reduction. */
__device__ __forceinline__ uint64_t warp_sum(uint64_t value)
{
    const uint32_t mask = (1u << 27) - 1;
    uint64_t low = __reduce_add_sync(FULL_WARP, static_cast<uint32_t>(value) & mask);
    uint64_t middle = __reduce_add_sync(FULL_WARP, static_cast<uint32_t>(value >> 27) & mask);
    uint64_t high = __reduce_add_sync(FULL_WARP, static_cast<uint32_t>(value >> 54));
    return low + (middle << 27) + (high << 54);
}

/* Adds the sums of WEIR_CUDA_THREADS threads, which all take part, to two words of device memory:
 * one addition for a block, since many blocks add to the same words. They meet at a barrier of
 * their own twice, because the parts are used again. */
__device__ __forceinline__ void block_add(const digest_sum &mine, uint64_t *product, uint64_t *sum)
{
    __shared__ digest_sum parts[WEIR_CUDA_THREADS / 32];
    digest_sum warp = { warp_sum(mine.product), warp_sum(mine.sum) };
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = warp;
    asm volatile("bar.sync 1, %0;" ::"n"(WEIR_CUDA_THREADS) : "memory");
    if (threadIdx.x < 2) {
        uint64_t total = 0;
        for (uint32_t i = 0; i < WEIR_CUDA_THREADS / 32; i++)
            total += threadIdx.x == 0 ? parts[i].product : parts[i].sum;
        atomicAdd(reinterpret_cast<unsigned long long *>(threadIdx.x == 0 ? product : sum),
                  static_cast<unsigned long long>(total));
    }
    asm volatile("bar.sync 1, %0;" ::"n"(WEIR_CUDA_THREADS) : "memory");
}

#endif
