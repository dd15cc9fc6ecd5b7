/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_chunk.cuh - eight fp32 as e4m3 under one scale, byte for byte as weir_fp8_code(). */
#ifndef WEIR_CONVERT_FP8_CHUNK_CUH
#define WEIR_CONVERT_FP8_CHUNK_CUH

#include "convert/cuda/digest_sum.cuh"
#include "convert/cuda/fp8_quotient.h"
#include "convert/fp8_recipe.h"

#define INF_MAGNITUDE WEIR_F32_INF_BITS

__device__ __forceinline__ uint32_t clamped_code(float quotient)
{
    return weir_e4m3_from_float(fminf(fmaxf(quotient, -WEIR_E4M3_MAX), WEIR_E4M3_MAX));
}

/* Two codes; the hardware's saturation is the recipe's clamp, as 448 is the largest code. */
__device__ __forceinline__ uint32_t two_codes(float low, float high)
{
#if __CUDA_ARCH__ >= 890
    uint16_t out;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(high), "f"(low));
    return out;
#else
    return clamped_code(low) | clamped_code(high) << 8;
#endif
}

struct fp8_scale {
    float scale, reciprocal;
    bool finite;
};

__device__ __forceinline__ fp8_scale scale_of(uint32_t peak)
{
    float scale = weir_fp8_scale(__uint_as_float(peak));
    return { scale, __frcp_rn(scale), peak < INF_MAGNITUDE };
}

/* Under a finite scale. */
template <class From>
__device__ __forceinline__ uint2 finite_codes(const typename From::held &chunk, const fp8_scale &by)
{
    float v[8];
    From::values(chunk, v);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = weir_fp8_quotient(v[i], by.scale, by.reciprocal);
    return make_uint2(two_codes(v[0], v[1]) | two_codes(v[2], v[3]) << 16,
                      two_codes(v[4], v[5]) | two_codes(v[6], v[7]) << 16);
}

/* Under any scale, by the recipe itself. */
template <class From>
__device__ __noinline__ uint2 recipe_codes(const typename From::held &chunk, float scale)
{
    float v[8];
    uint32_t words[2] = { 0, 0 };
    From::exact_values(chunk, v);
#pragma unroll
    for (int i = 0; i < 8; i++)
        words[i / 4] |= static_cast<uint32_t>(weir_fp8_code(v[i], scale)) << 8 * (i % 4);
    return make_uint2(words[0], words[1]);
}

/* The first n codes of a chunk to any address; returns them with zeros behind. */
[[maybe_unused]] static __device__ __noinline__ uint2 store_some(uint8_t *out, uint2 codes,
                                                                 uint32_t n)
{
    uint64_t word = static_cast<uint64_t>(codes.y) << 32 | codes.x;
    if (n < 8)
        word &= (1ull << 8 * n) - 1;
    for (uint32_t i = 0; i < n; i++)
        out[i] = static_cast<uint8_t>(word >> 8 * i);
    return make_uint2(static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32));
}

#endif
