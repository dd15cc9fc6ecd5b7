/* SPDX-License-Identifier: Apache-2.0 */
/* synth_values.c - counter-based random numbers: every element is a function of its position, so
 * threads and chunks change nothing.
 *
 * A sum of four 16-bit uniforms is close enough to normal, costs one hash per element, and has no
 * tail; the tail that real weights have comes from one element in 4096 being eight times larger.
 */
#include "synth_values.h"

#include <math.h>
#include <string.h>

#define GOLDEN_STEP 0x9E3779B97F4A7C15ull
#define OUTLIER_MASK 0xFFFu
#define OUTLIER_FACTOR 8.0f
#define STEP_SIZE 1e-3f        /* of the spread, per optimiser step */
#define STEPS_OF_DECAY 1000.0f /* after so many steps updates have halved the way they still go */

/* The finaliser of splitmix64. */
static inline uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

/* Mean 0, deviation 1. */
static inline float normal(uint64_t random)
{
    uint32_t sum = (uint32_t)(random & 0xFFFF) + (uint32_t)((random >> 16) & 0xFFFF) +
                   (uint32_t)((random >> 32) & 0xFFFF) + (uint32_t)(random >> 48);
    return ((float)sum - 131070.0f) * (1.0f / 37837.23f);
}

static inline uint16_t bf16_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

static inline float element(const weir_synth_spread *s, uint64_t index)
{
    uint64_t random = mix(s->key + index * GOLDEN_STEP);
    float value = normal(random);
    if ((random & OUTLIER_MASK) == 0)
        value *= OUTLIER_FACTOR;
    if (s->step > 0)
        value += s->drift * normal(mix(random ^ GOLDEN_STEP)) +
                 s->jitter * normal(mix(random + s->step * GOLDEN_STEP));
    return s->mean + s->spread * value;
}

void weir_synth_fill(const weir_synth_spread *spread, uint64_t first, size_t n, weir_dtype dtype,
                     void *out)
{
    const weir_synth_spread s = *spread; /* a copy cannot alias `out` */
    if (dtype == WEIR_F32) {
        float *values = out;
        for (size_t i = 0; i < n; i++)
            values[i] = element(&s, first + i);
    } else {
        uint16_t *values = out;
        for (size_t i = 0; i < n; i++)
            values[i] = bf16_of(element(&s, first + i));
    }
}

static float moved(const weir_synth_spread *s, uint64_t index, float value)
{
    uint64_t random = mix(s->key + index * GOLDEN_STEP);
    return value + s->spread * (s->drift * normal(mix(random ^ GOLDEN_STEP)) +
                                s->jitter * normal(mix(random + s->step * GOLDEN_STEP)));
}

static inline float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

void weir_synth_perturb(const weir_synth_spread *spread, const weir_tensor *tensor, uint64_t first,
                        size_t n, void *out)
{
    size_t element_bytes = weir_dtype_bits(tensor->dtype) / 8;
    const unsigned char *from = (const unsigned char *)tensor->data + first * element_bytes;
    memcpy(out, from, n * element_bytes);
    if (spread->step == 0)
        return;
    if (tensor->dtype == WEIR_F32) {
        float *values = out;
        for (size_t i = 0; i < n; i++)
            values[i] = moved(spread, first + i, values[i]);
    } else if (tensor->dtype == WEIR_BF16) {
        uint16_t *values = out;
        for (size_t i = 0; i < n; i++)
            values[i] = bf16_of(moved(spread, first + i, float_of_bits((uint32_t)values[i] << 16)));
    }
}

/* Root of the mean square of F32 and BF16 data; 0 for others, which then do not move. */
static float rms_of(const weir_tensor *tensor)
{
    uint64_t n = 0;
    double sum = 0;
    if (weir_shape_elements(&tensor->shape, &n) != WEIR_OK || n == 0)
        return 0;
    for (uint64_t i = 0; i < n; i++) {
        float value = 0;
        if (tensor->dtype == WEIR_F32)
            value = ((const float *)tensor->data)[i];
        else if (tensor->dtype == WEIR_BF16)
            value = float_of_bits((uint32_t)((const uint16_t *)tensor->data)[i] << 16);
        sum += (double)value * value;
    }
    return (float)sqrt(sum / (double)n);
}

static uint64_t key_of(const char *name, uint64_t seed)
{
    uint64_t key = mix(seed + GOLDEN_STEP);
    for (; *name != '\0'; name++)
        key = mix(key ^ (unsigned char)*name);
    return key;
}

static weir_synth_spread steps_of(const weir_tensor *tensor, uint64_t seed, uint64_t step)
{
    float steps = (float)step;
    weir_synth_spread s = { .key = key_of(tensor->name, seed), .step = step };
    s.drift = STEP_SIZE * steps / (1.0f + steps / STEPS_OF_DECAY);
    s.jitter = STEP_SIZE;
    return s;
}

weir_synth_spread weir_synth_spread_from(const weir_tensor *tensor, uint64_t seed, uint64_t step)
{
    weir_synth_spread s = steps_of(tensor, seed, step);
    if (step > 0)
        s.spread = rms_of(tensor);
    return s;
}

weir_synth_spread weir_synth_spread_of(const weir_tensor *tensor, uint64_t seed, uint64_t step)
{
    const weir_shape *shape = &tensor->shape;
    weir_synth_spread s = steps_of(tensor, seed, step);
    s.spread = 0.02f; /* biases and embeddings */
    if (strstr(tensor->name, "orm.weight") != NULL) {
        s.mean = 1.0f;
        s.spread = 0.1f;
    } else if (shape->rank > 1 && strstr(tensor->name, "embed") == NULL) {
        s.spread = 1.0f / sqrtf((float)shape->dim[shape->rank - 1]);
    }
    return s;
}
