/* SPDX-License-Identifier: Apache-2.0 */
/* convert_case.h - what the tests of convert/ share: golden files, hostile values, guarded buffers.
 */
#ifndef WEIR_TESTS_CONVERT_CASE_H
#define WEIR_TESTS_CONVERT_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "numeric/scalar.h"
#include "weir/checkpoint.h"
#include "weir/convert.h"

/* ---- golden files ----------------------------------------------------------------------------*/

/* Opens a golden file of our own, or of the full set; NULL, said aloud, when that set is absent. */
static inline weir_checkpoint *golden_open(const char *file, bool full)
{
    char path[1024];
    const char *directory = getenv(full ? "WEIR_TEST_SHARED_GOLDEN" : "WEIR_TEST_GOLDEN");
    weir_checkpoint *checkpoint = NULL;
    snprintf(path, sizeof(path), "%s/%s", directory != NULL ? directory : "", file);
    weir_status status = weir_checkpoint_open(path, &checkpoint);
    if (status == WEIR_OK)
        return checkpoint;
    if (!full)
        fail_msg("%s", weir_last_error());
    print_message("the full golden files are not here, the small copies stand in: %s\n", path);
    return NULL;
}

static inline const weir_tensor *golden_find(const weir_checkpoint *checkpoint, const char *name)
{
    const weir_tensor *tensor = weir_checkpoint_find(checkpoint, name);
    if (tensor == NULL)
        fail_msg("the golden file lacks %s", name);
    return tensor;
}

/* ---- buffers with canaries -------------------------------------------------------------------*/

#define CANARY_BYTES 128u
#define CANARY 0xA5
#define POISON 0x5A

typedef struct guarded {
    unsigned char *block, *data;
    size_t n_bytes;
} guarded;

/* n_bytes of poison, `offset` bytes past a 64-byte line. */
static inline guarded guarded_make(size_t n_bytes, size_t offset)
{
    guarded g = { .n_bytes = n_bytes };
    size_t total = (offset + n_bytes + 2 * CANARY_BYTES + 63) & ~(size_t)63;
    g.block = aligned_alloc(64, total);
    assert_non_null(g.block);
    memset(g.block, CANARY, total);
    g.data = g.block + CANARY_BYTES + offset;
    memset(g.data, POISON, n_bytes);
    return g;
}

static inline void guarded_check(const guarded *g)
{
    for (const unsigned char *p = g->block; p < g->data; p++)
        assert_int_equal(*p, CANARY);
    for (size_t i = 0; i < CANARY_BYTES; i++)
        assert_int_equal(g->data[g->n_bytes + i], CANARY);
}

static inline void guarded_free(guarded *g)
{
    guarded_check(g);
    free(g->block);
}

/* ---- values ----------------------------------------------------------------------------------*/

static inline uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static inline size_t random_below(uint64_t *state, size_t n)
{
    return (size_t)(next_random(state) % n);
}

typedef enum regime {
    NORMAL, /* as weights are */
    WIDE,   /* any finite bit pattern: subnormals, huge values, -0 */
    TIES,   /* multiples of 2^-10 up to 448: with a scale of 2^n, many fall between two codes */
    SPARSE, /* mostly +0 and -0 */
    TINY,   /* around the floor of the scale */
    N_REGIMES
} regime;

static inline float random_value(regime kind, uint64_t *state)
{
    uint64_t bits = next_random(state);
    float uniform = (float)(bits >> 40) * 0x1p-24f, sign = bits & 1 ? -1.0f : 1.0f;
    switch (kind) {
    case NORMAL:
        return sign * uniform * uniform * 0.05f;
    case TIES:
        return bits % 37 == 0 ? sign * 448.0f
                              : sign * (float)(bits >> 60) *
                                    weir_float_from_bits((uint32_t)(115 + (bits >> 8) % 20) << 23);
    case SPARSE:
        return bits % 50 == 0 ? sign * uniform : sign * 0.0f;
    case TINY:
        return sign * uniform * 1e-10f;
    default:
        return 0;
    }
}

/* Any finite pattern of a dtype's width. */
static inline uint32_t random_bits(weir_dtype dtype, uint64_t *state)
{
    for (;;) {
        uint32_t bits = (uint32_t)next_random(state);
        if (dtype == WEIR_F32 && (bits & 0x7F800000u) != 0x7F800000u)
            return bits;
        if (dtype == WEIR_BF16 && (bits & 0x7F80u) != 0x7F80u)
            return bits & 0xFFFFu;
        if (dtype == WEIR_F16 && (bits & 0x7C00u) != 0x7C00u)
            return bits & 0xFFFFu;
    }
}

/* Near enough for a source value: truncated, flushed to zero below the normal range. */
static inline uint16_t fp16_near(float value)
{
    uint32_t bits = weir_float_bits(value), exponent = (bits >> 23) & 0xFF;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (exponent < 113 || exponent > 142)
        return sign;
    return (uint16_t)(sign | (((bits >> 13) - (112u << 10)) & 0x7FFFu));
}

static inline void put_bits(void *data, weir_dtype dtype, size_t index, uint32_t bits)
{
    if (dtype == WEIR_F32)
        ((uint32_t *)data)[index] = bits;
    else
        ((uint16_t *)data)[index] = (uint16_t)bits;
}

static inline void fill(void *data, weir_dtype dtype, size_t n, regime kind, uint64_t *state)
{
    for (size_t i = 0; i < n; i++) {
        float value = random_value(kind, state);
        uint32_t bits = weir_float_bits(value);
        if (kind == WIDE)
            bits = random_bits(dtype, state);
        else if (dtype == WEIR_BF16)
            bits = weir_bf16_from_float(value);
        else if (dtype == WEIR_F16)
            bits = fp16_near(value);
        put_bits(data, dtype, i, bits);
    }
}

/* ---- calls -----------------------------------------------------------------------------------*/

static inline const weir_conversion *conversion_named(const char *name)
{
    const weir_conversion *conversion = NULL;
    if (weir_conversion_get(name, &conversion) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return conversion;
}

static inline weir_tensor tensor_2d(const char *name, weir_dtype dtype, size_t rows, size_t cols,
                                    void *data)
{
    return (weir_tensor){ name, dtype, { 2, { rows, cols } }, data };
}

static inline weir_convert_args args_for(const char *conversion, const weir_tensor *sources,
                                         size_t n_sources)
{
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    args.conversion = conversion_named(conversion);
    args.sources = sources;
    args.n_sources = n_sources;
    return args;
}

/* Bytes of one output of these args. */
static inline size_t output_bytes(const weir_convert_args *args, size_t output)
{
    weir_shape fused, shape;
    uint64_t n_bytes = 0;
    if (weir_convert_fused_shape(args, &fused) != WEIR_OK ||
        weir_conversion_output_shape(args->conversion, output, &fused, &shape) != WEIR_OK ||
        weir_tensor_bytes(args->conversion->outputs[output].dtype, &shape, &n_bytes) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return (size_t)n_bytes;
}

/* The outputs and digests of one call, guarded. */
typedef struct converted {
    size_t n_outputs;
    guarded out[WEIR_MAX_OUTPUTS];
    weir_digest digests[WEIR_MAX_OUTPUTS];
} converted;

/* Makes room and converts; the status is returned. `offset` moves output 0 off its cache line. */
static inline weir_status convert_into(converted *result, weir_convert_args args, size_t offset)
{
    *result = (converted){ .n_outputs = args.conversion->n_outputs };
    for (size_t i = 0; i < result->n_outputs; i++) {
        result->out[i] = guarded_make(output_bytes(&args, i), i == 0 ? offset : 0);
        args.outputs[i] = result->out[i].data;
    }
    args.digests = result->digests;
    return weir_convert(&args);
}

static inline void must_convert(converted *result, weir_convert_args args, size_t offset)
{
    if (convert_into(result, args, offset) != WEIR_OK)
        fail_msg("%s", weir_last_error());
}

static inline void converted_free(converted *result)
{
    for (size_t i = 0; i < result->n_outputs; i++)
        guarded_free(&result->out[i]);
}

static inline void assert_same_outputs(const converted *a, const converted *b)
{
    assert_int_equal(a->n_outputs, b->n_outputs);
    for (size_t i = 0; i < a->n_outputs; i++) {
        assert_int_equal(a->out[i].n_bytes, b->out[i].n_bytes);
        assert_memory_equal(a->out[i].data, b->out[i].data, a->out[i].n_bytes);
        assert_memory_equal(&a->digests[i], &b->digests[i], sizeof(weir_digest));
    }
}

#endif
