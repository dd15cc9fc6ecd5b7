/* SPDX-License-Identifier: Apache-2.0 */
/* source_chunk.cuh - eight source elements in a thread's registers, by dtype.
 *
 * Each struct says how a chunk is loaded (raw), held, searched for its largest magnitude and turned
 * into fp32; how many blocks of it share a multiprocessor; whether rows are loaded element by
 * element to their exact end; and whether the next tile is prefetched, which pays where tiles are
 * small. Magnitudes are fp32 bits without sign, hence NaN above Inf above all finite numbers.
 */
#ifndef WEIR_CONVERT_SOURCE_CHUNK_CUH
#define WEIR_CONVERT_SOURCE_CHUNK_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "convert/cuda/cuda_job.h"
#include "numeric/scalar.h"
#include "weir/tensor.h"

/* Read once, so it should not push the job table out of the first-level cache. Zeros unless
 * `there`; predicated, not branched around, so that a thread's loads follow each other at once. */
__device__ __forceinline__ uint4 load_16(const void *at, bool there)
{
    uint4 v;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0;"
                 " mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
                 " @p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
                 : "l"(at), "r"(static_cast<uint32_t>(there)));
    return v;
}

/* The larger of each half by magnitude; a NaN wins. */
__device__ __forceinline__ uint32_t peak_bf16(uint32_t peak, uint32_t pair)
{
    uint32_t out;
    asm("{ .reg .b32 m; abs.bf16x2 m, %2; max.NaN.bf16x2 %0, %1, m; }"
        : "=r"(out)
        : "r"(peak), "r"(pair));
    return out;
}

__device__ __forceinline__ uint32_t peak_f16(uint32_t peak, uint32_t pair)
{
    uint32_t out;
    asm("{ .reg .b32 m; abs.f16x2 m, %2; max.NaN.f16x2 %0, %1, m; }"
        : "=r"(out)
        : "r"(peak), "r"(pair));
    return out;
}

__device__ __forceinline__ uint32_t word_of(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

struct from_bf16 {
    static constexpr int blocks_per_sm = 3, source_bytes = 2;
    static constexpr bool exact_rows = false, prefetches = true;
    typedef uint4 raw;
    typedef uint4 held;
    static __device__ __forceinline__ raw load(const void *at, bool there)
    {
        return load_16(at, there);
    }
    static __device__ __forceinline__ held hold(const raw &v)
    {
        return v;
    }
    static __device__ __forceinline__ uint32_t peak(uint32_t so_far, const held &v)
    {
        return peak_bf16(peak_bf16(so_far, v.x), peak_bf16(peak_bf16(v.y & 0x7FFF7FFFu, v.z), v.w));
    }
    static __device__ __forceinline__ uint32_t magnitude(uint32_t pair)
    {
        return max(pair << 16, pair & 0xFFFF0000u);
    }
    static __device__ __forceinline__ void values(const held &v, float out[8])
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = __uint_as_float(word_of(v, i) << 16);
            out[2 * i + 1] = __uint_as_float(word_of(v, i) & 0xFFFF0000u);
        }
    }
    static __device__ __forceinline__ void exact_values(const held &v, float out[8])
    {
        values(v, out);
    }
};

struct from_f16 {
    static constexpr int blocks_per_sm = 3, source_bytes = 2;
    static constexpr bool exact_rows = false, prefetches = true;
    typedef uint4 raw;
    typedef uint4 held;
    static __device__ __forceinline__ raw load(const void *at, bool there)
    {
        return load_16(at, there);
    }
    static __device__ __forceinline__ held hold(const raw &v)
    {
        return v;
    }
    static __device__ __forceinline__ uint32_t peak(uint32_t so_far, const held &v)
    {
        return peak_f16(peak_f16(so_far, v.x), peak_f16(peak_f16(v.y & 0x7FFF7FFFu, v.z), v.w));
    }
    static __device__ __forceinline__ uint32_t magnitude(uint32_t pair)
    {
        uint32_t larger = max(pair & 0xFFFFu, pair >> 16);
        return weir_float_bits(weir_float_from_fp16(static_cast<uint16_t>(larger)));
    }
    /* NaNs come out in one pattern; see exact_values(). */
    static __device__ __forceinline__ void values(const held &v, float out[8])
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(word_of(v, i))));
            out[2 * i + 1] =
                __half2float(__ushort_as_half(static_cast<uint16_t>(word_of(v, i) >> 16)));
        }
    }
    static __device__ __forceinline__ void exact_values(const held &v, float out[8])
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = weir_float_from_fp16(static_cast<uint16_t>(word_of(v, i)));
            out[2 * i + 1] = weir_float_from_fp16(static_cast<uint16_t>(word_of(v, i) >> 16));
        }
    }
};

struct eight_floats {
    float v[8];
};

struct from_f32 {
    static constexpr int blocks_per_sm = 2, source_bytes = 4;
    static constexpr bool exact_rows = false, prefetches = false;
    typedef eight_floats raw;
    typedef eight_floats held;
    static __device__ __forceinline__ raw of_words(const uint4 &low, const uint4 &high)
    {
        raw out;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out.v[i] = __uint_as_float(word_of(low, i));
            out.v[4 + i] = __uint_as_float(word_of(high, i));
        }
        return out;
    }
    static __device__ __forceinline__ raw load(const void *at, bool there)
    {
        return of_words(load_16(at, there), load_16(static_cast<const char *>(at) + 16, there));
    }
    static __device__ __forceinline__ held hold(const raw &v)
    {
        return v;
    }
    static __device__ __forceinline__ uint32_t peak(uint32_t so_far, const held &v)
    {
#pragma unroll
        for (int i = 0; i < 8; i++)
            so_far = max(so_far, __float_as_uint(v.v[i]) & 0x7FFFFFFFu);
        return so_far;
    }
    static __device__ __forceinline__ uint32_t magnitude(uint32_t peak)
    {
        return peak;
    }
    static __device__ __forceinline__ void values(const held &v, float out[8])
    {
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[i] = v.v[i];
    }
    static __device__ __forceinline__ void exact_values(const held &v, float out[8])
    {
        values(v, out);
    }
};

/* Loaded as fp32, held as the bf16 that the trainer would have published. */
struct from_master : from_bf16 {
    static constexpr int blocks_per_sm = 2, source_bytes = 4;
    static constexpr bool prefetches = false;
    typedef eight_floats raw;
    static __device__ __forceinline__ raw load(const void *at, bool there)
    {
        return from_f32::load(at, there);
    }
    static __device__ __forceinline__ uint32_t pair(float low, float high)
    {
        uint32_t out; /* nearest even; every NaN becomes 0x7FFF, as in weir_bf16_from_float() */
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
        return out;
    }
    static __device__ __forceinline__ held hold(const raw &r)
    {
        return make_uint4(pair(r.v[0], r.v[1]), pair(r.v[2], r.v[3]), pair(r.v[4], r.v[5]),
                          pair(r.v[6], r.v[7]));
    }
};

/* One element of any source dtype at its natural alignment, through the scalar header. */
__device__ __forceinline__ float any_value(const void *row, uint32_t column,
                                           const weir_cuda_segment &segment)
{
    if (segment.dtype == WEIR_BF16)
        return weir_float_from_bf16(static_cast<const uint16_t *>(row)[column]);
    if (segment.dtype == WEIR_F16)
        return weir_float_from_fp16(static_cast<const uint16_t *>(row)[column]);
    float value = static_cast<const float *>(row)[column];
    return segment.rounds ? weir_float_from_bf16(weir_bf16_from_float(value)) : value;
}

struct from_any : from_f32 {
    static constexpr bool exact_rows = true;
};

#endif
