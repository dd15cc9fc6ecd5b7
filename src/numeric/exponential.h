/* SPDX-License-Identifier: Apache-2.0 */
/* exponential.h - -exp(x) of one fp32, with the same bits on every processor.
 *
 * Libraries differ in the last place, so the steps are written out: in fp64, with fused
 * multiply-adds where one could be contracted and none elsewhere, rounded once to fp32 at the end.
 * The error before that rounding is below 2^-51: but for about one x in 2^27, the result is the
 * fp32 nearest to the true one.
 */
#ifndef WEIR_NUMERIC_EXPONENTIAL_H
#define WEIR_NUMERIC_EXPONENTIAL_H

#include <math.h>

#include "numeric/scalar.h"

/* 2^k for k of -1022 … 1023. */
WEIR_HOST_DEVICE double weir_power_of_two(int k)
{
    union {
        uint64_t bits;
        double value;
    } pun;
    pun.bits = (uint64_t)(k + 1023) << 52;
    return pun.value;
}

/* Beyond fp32 it is -Inf, below its subnormals -0; a NaN becomes 0x7FC00000. */
WEIR_HOST_DEVICE float weir_neg_exp(float x)
{
    /* 1/2!, 1/3! … 1/13!, the last first: |r| <= ln(2)/2 needs no more. */
    const double terms[12] = { 1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                               1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                               1.0 / 120,        1.0 / 24,        1.0 / 6,        1.0 / 2 };
    if ((weir_float_bits(x) & 0x7FFFFFFFu) > WEIR_F32_INF_BITS)
        return weir_float_from_bits(WEIR_F32_NAN_BITS);
    if (x > 89.0f)
        return weir_float_from_bits(0x80000000u | WEIR_F32_INF_BITS);
    if (x < -104.0f)
        return weir_float_from_bits(0x80000000u);
    /* x = k * ln(2) + r, with ln(2) in two fp64. */
    const double k = rint((double)x * 0x1.71547652b82fep0);
    double r = fma(-k, 0x1.62e42fefa39efp-1, (double)x);
    r = fma(-k, 0x1.abc9e3b39803fp-56, r);
    double sum = terms[0];
    for (int i = 1; i < 12; i++)
        sum = fma(sum, r, terms[i]);
    sum = fma(sum, r, 1.0);
    sum = fma(sum, r, 1.0);
    return (float)-(sum * weir_power_of_two((int)k));
}

#endif
