/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_quotient.h - the true quotient by a scale that many values share, without a division.
 *
 * weir_fp8_code() divides; a GPU's division takes ten instructions and a branch. With r = 1 / scale
 * rounded once, q0 = x * r is off by a unit or two in the last place, and one step of correction by
 * the exact remainder gives the rounded quotient (Markstein). Where r is such that it might still
 * be off by one unit, the quotient lies so close between two fp32 that neither is a tie of e4m3:
 * tests/convert/test_fp8_quotient.c shows it for every scale mantissa at every tie.
 *
 * Subnormal x lose remainder bits, but their codes are zeros as the scale is at least 1e-12. The
 * remainder is taken negative, so that -0 stays -0: (-0 * s) - (-0) = +0, and +0 * -r - 0 = -0.
 * Only for finite x with |x| <= 449 * scale and finite scale.
 */
#ifndef WEIR_CONVERT_FP8_QUOTIENT_H
#define WEIR_CONVERT_FP8_QUOTIENT_H

#include <math.h>

#include "numeric/scalar.h"

WEIR_HOST_DEVICE float weir_fp8_quotient(float value, float scale, float reciprocal)
{
    float near = value * reciprocal;
    float negative_rest = fmaf(near, scale, -value);
    return fmaf(negative_rest, -reciprocal, near);
}

#endif
