/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_recipe.h - how one value becomes e4m3: the arithmetic that both FP8 conversions share.
 *
 * It is what PyTorch computes on a CUDA device: dividing a tensor by the number 448 multiplies by
 * the nearest fp32 to 1/448, dividing by the scale tensor is a true division. Shared with CUDA
 * (compile with precise division).
 */
#ifndef WEIR_CONVERT_FP8_RECIPE_H
#define WEIR_CONVERT_FP8_RECIPE_H

#include "numeric/scalar.h"

#define WEIR_FP8_ONE_448TH_BITS 0x3B124925u
#define WEIR_FP8_SCALE_FLOOR 1e-12f

/* The multiplier that gives the weights back: amax / 448, at least 1e-12. A NaN stays one. */
WEIR_HOST_DEVICE float weir_fp8_scale(float amax)
{
    if (amax != amax)
        return weir_float_from_bits(WEIR_F32_NAN_BITS);
    float scale = amax * weir_float_from_bits(WEIR_FP8_ONE_448TH_BITS);
    return scale < WEIR_FP8_SCALE_FLOOR ? WEIR_FP8_SCALE_FLOOR : scale;
}

/* Clamped, because the format itself does not saturate. NaN is 0x7F whatever its sign: that of
 * Inf / Inf differs between processors. */
WEIR_HOST_DEVICE uint8_t weir_fp8_code(float value, float scale)
{
    float quotient = value / scale;
    if (quotient != quotient)
        return 0x7F;
    if (quotient > WEIR_E4M3_MAX)
        quotient = WEIR_E4M3_MAX;
    if (quotient < -WEIR_E4M3_MAX)
        quotient = -WEIR_E4M3_MAX;
    return weir_e4m3_from_float(quotient);
}

#endif
