/* SPDX-License-Identifier: Apache-2.0 */
/* e4m3_steps.h - the recipe of fp8_recipe.h for bf16 sources, tabulated.
 *
 * A bf16 has 7 mantissa bits, so the largest magnitude of a block has one of 128 mantissas, and so
 * has its scale (or it is the floor: the 129th). Away from subnormal codes, code(x / scale) then
 * depends on x's mantissa alone but for an exponent step of 8 per power of two. 129 small tables
 * therefore hold every division and rounding there is; the kernels look up instead of dividing.
 * The tables are filled by fp8_recipe.h itself, so they cannot differ from it.
 */
#ifndef WEIR_CONVERT_E4M3_STEPS_H
#define WEIR_CONVERT_E4M3_STEPS_H

#include <stdint.h>

/* `magnitude` is a bf16's low 15 bits, e the biased exponent of the scale:
 *   magnitude >= normal + 128 (e - 127): code = (magnitude >> 4) + delta[magnitude & 127] - 8 e
 *   below:                               code = how many of subnormal[] + 128 (e - 127) it reaches
 * in arithmetic modulo 256. */
typedef struct weir_e4m3_steps {
    uint8_t delta[128];
    /* The same as delta in 16 runs of 8 mantissas, in each of which it steps up at most once:
     * delta[m] = base[m >> 3] + ((m & 7) >= step[m >> 3]). */
    uint8_t base[16];
    uint8_t step[16];
    uint16_t subnormal[8];
    uint16_t normal;
    uint8_t unused[14];
} __attribute__((aligned(64))) weir_e4m3_steps;

/* The table of a scale that weir_fp8_scale() made from a finite bf16 amax (its low 15 bits). */
const weir_e4m3_steps *weir_e4m3_steps_of(uint16_t amax, float scale);

#endif
