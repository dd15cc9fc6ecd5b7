/* SPDX-License-Identifier: Apache-2.0 */
/* e4m3_steps.c - fills the 129 tables once, at the first look-up: some 20,000 divisions. */
#include "convert/e4m3_steps.h"

#include <pthread.h>

#include "convert/fp8_recipe.h"

#define N_MANTISSAS 128
#define FLOOR_TABLE N_MANTISSAS /* the table of the scale 1e-12 */
#define EXPONENT_ONE 127u       /* the biased exponent of [1, 2) */

static weir_e4m3_steps tables[N_MANTISSAS + 1];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint8_t code_of(uint32_t magnitude, float scale)
{
    return weir_fp8_code(weir_float_from_bf16((uint16_t)magnitude), scale);
}

/* The least magnitude for which a monotone predicate on x / scale holds. */
static uint16_t least_with_code(uint8_t code, float scale)
{
    uint32_t low = 0, high = EXPONENT_ONE << 7;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (code_of(middle, scale) >= code)
            high = middle;
        else
            low = middle + 1;
    }
    return (uint16_t)low;
}

static uint16_t least_normal(float scale)
{
    uint16_t magnitude = least_with_code(8, scale); /* 8 also when 2^-6 is only rounded up to */
    while (weir_float_from_bf16(magnitude) / scale < 0.015625f)
        magnitude++;
    return magnitude;
}

/* `scale` in [1, 2). */
static void fill(weir_e4m3_steps *table, float scale)
{
    for (unsigned m = 0; m < N_MANTISSAS; m++) {
        uint8_t code = code_of(EXPONENT_ONE << 7 | m, scale);
        table->delta[m] = (uint8_t)(code - (m >> 4));
    }
    for (unsigned run = 0; run < 16; run++) {
        const uint8_t *delta = table->delta + 8 * run;
        table->base[run] = delta[0];
        table->step[run] = 8;
        for (uint8_t m = 8; m-- > 1;)
            table->step[run] = delta[m] != delta[0] ? m : table->step[run];
    }
    for (unsigned k = 0; k < 8; k++)
        table->subnormal[k] = least_with_code((uint8_t)(k + 1), scale);
    table->normal = least_normal(scale);
}

/* A scale's mantissa does not change when amax is multiplied by a power of two. */
static float in_one_to_two(float scale)
{
    return weir_float_from_bits((weir_float_bits(scale) & 0x7FFFFFu) | EXPONENT_ONE << 23);
}

static void fill_all(void)
{
    for (uint16_t m = 0; m < N_MANTISSAS; m++) {
        float amax = weir_float_from_bf16((uint16_t)(EXPONENT_ONE << 7 | m));
        fill(&tables[m], in_one_to_two(weir_fp8_scale(amax)));
    }
    fill(&tables[FLOOR_TABLE], in_one_to_two(WEIR_FP8_SCALE_FLOOR));
}

const weir_e4m3_steps *weir_e4m3_steps_of(uint16_t amax, float scale)
{
    pthread_once(&once, fill_all);
    return &tables[scale == WEIR_FP8_SCALE_FLOOR ? FLOOR_TABLE : (amax & 127)];
}
