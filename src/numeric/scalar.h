/* SPDX-License-Identifier: Apache-2.0 */
/* scalar.h - exact conversions of single numbers between fp32 and the narrow float formats.
 *
 * One header for C and CUDA, so that a machine without a GPU tests the rounding that a GPU uses.
 * All of it is integer arithmetic, except for one addition (e4m3 and e5m2 subnormals) that needs
 * the default rounding mode. Nothing here saturates: callers clamp. The recipes that combine these
 * (scales, blocks) live in convert/.
 */
#ifndef WEIR_NUMERIC_SCALAR_H
#define WEIR_NUMERIC_SCALAR_H

#include <stdint.h>

#if defined(__CUDACC__)
#define WEIR_HOST_DEVICE static inline __host__ __device__
#else
#define WEIR_HOST_DEVICE static inline
#endif

#define WEIR_F32_INF_BITS 0x7F800000u
#define WEIR_F32_NAN_BITS 0x7FC00000u

WEIR_HOST_DEVICE uint32_t weir_float_bits(float value)
{
    union {
        float value;
        uint32_t bits;
    } pun;
    pun.value = value;
    return pun.bits;
}

WEIR_HOST_DEVICE float weir_float_from_bits(uint32_t bits)
{
    union {
        uint32_t bits;
        float value;
    } pun;
    pun.bits = bits;
    return pun.value;
}

/* ---- bf16: 1-8-7, the upper half of an fp32 --------------------------------------------------*/

/* Nearest even. Beyond the largest finite bf16 it gives Inf; NaN becomes 0x7FFF, as on CUDA. */
WEIR_HOST_DEVICE uint16_t weir_bf16_from_float(float value)
{
    uint32_t bits = weir_float_bits(value);
    if ((bits & 0x7FFFFFFFu) > WEIR_F32_INF_BITS)
        return 0x7FFF;
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

WEIR_HOST_DEVICE float weir_float_from_bf16(uint16_t bf16)
{
    return weir_float_from_bits((uint32_t)bf16 << 16);
}

/* ---- fp16: 1-5-10 ----------------------------------------------------------------------------*/

WEIR_HOST_DEVICE float weir_float_from_fp16(uint16_t fp16)
{
    uint32_t sign = (uint32_t)(fp16 & 0x8000u) << 16;
    uint32_t exponent = (fp16 >> 10) & 0x1Fu, mantissa = fp16 & 0x3FFu;
    if (exponent == 0x1Fu) /* NaN is made quiet, as F16C does */
        return weir_float_from_bits(sign | WEIR_F32_INF_BITS | (mantissa ? 0x400000u : 0u) |
                                    mantissa << 13);
    if (exponent != 0)
        return weir_float_from_bits(sign | ((exponent + 112u) << 23) | mantissa << 13);
    /* Subnormal: mantissa * 2^-24, exact in fp32. */
    float magnitude = (float)mantissa * weir_float_from_bits(0x33800000u);
    return weir_float_from_bits(sign | weir_float_bits(magnitude));
}

/* ---- e4m3fn: 1-4-3, bias 7, largest 448, NaN 0x7F and 0xFF, no Inf ---------------------------*/

#define WEIR_E4M3_MAX 448.0f

/* Nearest even, no saturation: |value| > 464, Inf and NaN give NaN with the value's sign. */
WEIR_HOST_DEVICE uint8_t weir_e4m3_from_float(float value)
{
    uint32_t bits = weir_float_bits(value), magnitude = bits & 0x7FFFFFFFu;
    uint8_t sign = (uint8_t)((bits >> 24) & 0x80u);
    if (magnitude > 0x43E80000u) /* 464, which ties to 448 */
        return (uint8_t)(sign | 0x7Fu);
    if (magnitude >= 0x3C800000u) /* 2^-6, the least normal number */
        return (uint8_t)(sign |
                         ((magnitude + 0x7FFFFu + ((magnitude >> 20) & 1u) - 0x3C000000u) >> 20));
    /* Adding 2^14, whose last place is 2^-9, rounds to a multiple of the least subnormal. */
    float shifted = weir_float_from_bits(magnitude) + 16384.0f;
    return (uint8_t)(sign | (weir_float_bits(shifted) - 0x46800000u));
}

WEIR_HOST_DEVICE float weir_float_from_e4m3(uint8_t e4m3)
{
    uint32_t sign = (uint32_t)(e4m3 & 0x80u) << 24, magnitude = e4m3 & 0x7Fu;
    if (magnitude == 0x7Fu)
        return weir_float_from_bits(sign | WEIR_F32_NAN_BITS);
    if (magnitude >= 8u)
        return weir_float_from_bits(sign | ((magnitude << 20) + 0x3C000000u));
    return weir_float_from_bits(sign | weir_float_bits((float)magnitude * 0.001953125f));
}

/* ---- e5m2: 1-5-2, the upper half of an fp16 --------------------------------------------------*/

/* Nearest even: |value| >= 61440 gives Inf, NaN gives 0x7F with the value's sign. */
WEIR_HOST_DEVICE uint8_t weir_e5m2_from_float(float value)
{
    uint32_t bits = weir_float_bits(value), magnitude = bits & 0x7FFFFFFFu;
    uint8_t sign = (uint8_t)((bits >> 24) & 0x80u);
    if (magnitude > WEIR_F32_INF_BITS)
        return (uint8_t)(sign | 0x7Fu);
    if (magnitude >= 0x47700000u) /* 61440, the tie between 57344 and what would be 65536 */
        return (uint8_t)(sign | 0x7Cu);
    if (magnitude >= 0x38800000u) /* 2^-14, the least normal number */
        return (uint8_t)(sign |
                         ((magnitude + 0xFFFFFu + ((magnitude >> 21) & 1u) - 0x38000000u) >> 21));
    /* Adding 2^7, whose last place is 2^-16. */
    float shifted = weir_float_from_bits(magnitude) + 128.0f;
    return (uint8_t)(sign | (weir_float_bits(shifted) - 0x43000000u));
}

WEIR_HOST_DEVICE float weir_float_from_e5m2(uint8_t e5m2)
{
    return weir_float_from_fp16((uint16_t)(e5m2 << 8));
}

/* ---- e8m0: a power of two, 2^(code - 127); 0xFF is NaN; no sign, no zero ----------------------*/

/* PyTorch's cast: half rounds up (to even, the implied bit being the last one; so 2^-127 itself,
 * which has none, stays), the sign is ignored, 0 gives 2^-127; Inf, NaN and what rounds beyond
 * 2^127 give NaN. */
WEIR_HOST_DEVICE uint8_t weir_e8m0_from_float(float value)
{
    uint32_t magnitude = weir_float_bits(value) & 0x7FFFFFFFu;
    if (magnitude >= WEIR_F32_INF_BITS)
        return 0xFF;
    return (uint8_t)((magnitude + 0x3FFFFFu + (magnitude >= 0x800000u)) >> 23);
}

WEIR_HOST_DEVICE float weir_float_from_e8m0(uint8_t e8m0)
{
    if (e8m0 == 0xFF)
        return weir_float_from_bits(WEIR_F32_NAN_BITS);
    return weir_float_from_bits(e8m0 == 0 ? 0x400000u : (uint32_t)e8m0 << 23);
}

#endif
