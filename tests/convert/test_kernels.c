/* SPDX-License-Identifier: Apache-2.0 */
/* Every kernel of every rung against the reference, byte for byte: random tiles, ragged edges,
 * hostile values; rows in heap blocks of their own, outputs poisoned between canaries. */
#include "convert/convert_case.h"

#include "base/cpu.h"
#include "convert/kernels.h"

typedef struct rung {
    const char *name;
    weir_cpu_level level;
    weir_convert_fn kernel, reference;
    weir_dtype out_dtype;
    size_t scale_cell_rows, scale_cell_cols; /* 0 rows: no scales; 0 cols: whole rows */
} rung;

#if defined(__x86_64__)
static const rung rungs[] = {
    { "fp8_128x128 avx2", WEIR_CPU_AVX2, weir_fp8_128x128_avx2, weir_fp8_128x128_c, WEIR_F8_E4M3,
      128, 128 },
    { "fp8_128x128 avx512", WEIR_CPU_AVX512, weir_fp8_128x128_avx512, weir_fp8_128x128_c,
      WEIR_F8_E4M3, 128, 128 },
    { "per_channel avx2", WEIR_CPU_AVX2, weir_fp8_channel_avx2, weir_fp8_channel_c, WEIR_F8_E4M3, 1,
      0 },
    { "per_channel avx512", WEIR_CPU_AVX512, weir_fp8_channel_avx512, weir_fp8_channel_c,
      WEIR_F8_E4M3, 1, 0 },
    { "bf16_cast avx2", WEIR_CPU_AVX2, weir_bf16_cast_avx2, weir_bf16_cast_c, WEIR_BF16, 0, 0 },
    { "bf16_cast avx512", WEIR_CPU_AVX512, weir_bf16_cast_avx512, weir_bf16_cast_c, WEIR_BF16, 0,
      0 },
    { "fp32_cast avx2", WEIR_CPU_AVX2, weir_fp32_cast_avx2, weir_fp32_cast_c, WEIR_F32, 0, 0 },
    { "fp32_cast avx512", WEIR_CPU_AVX512, weir_fp32_cast_avx512, weir_fp32_cast_c, WEIR_F32, 0,
      0 },
};
#else
static const rung rungs[] = { { .name = "none", .level = WEIR_CPU_AVX2 } };
#endif
#define N_RUNGS (sizeof(rungs) / sizeof(rungs[0]))

static bool is_here(const rung *r)
{
    if (weir_cpu_has(r->level))
        return true;
    print_message("%s is not tested: %s\n", r->name, weir_cpu_why_not(r->level));
    return false;
}

/* A tile with rows of its own. */
typedef struct source {
    weir_dtype dtype;
    size_t n_rows, n_cols;
    void **rows;
} source;

static source source_make(weir_dtype dtype, size_t n_rows, size_t n_cols, regime kind,
                          uint64_t *state)
{
    source s = { dtype, n_rows, n_cols, calloc(n_rows + 1, sizeof(void *)) };
    size_t element_bytes = weir_dtype_bits(dtype) / 8;
    for (size_t r = 0; r < n_rows; r++) {
        s.rows[r] = malloc(n_cols * element_bytes);
        fill(s.rows[r], dtype, n_cols, kind, state);
    }
    return s;
}

static void source_free(source *s)
{
    for (size_t r = 0; r < s->n_rows; r++)
        free(s->rows[r]);
    free(s->rows);
}

/* What one kernel wrote. */
typedef struct written {
    weir_status status;
    guarded out, scales;
    weir_digest digest;
} written;

static size_t up(size_t n, size_t by)
{
    return (n + by - 1) / by;
}

typedef struct placing {
    size_t offset, gap_bytes; /* of output 0: off its line, and between rows */
    uint64_t first_word;
    bool propagate;
} placing;

static written run_kernel(const rung *r, weir_convert_fn kernel, const source *s, const placing *p)
{
    size_t row_bytes = s->n_cols * (weir_dtype_bits(r->out_dtype) / 8);
    size_t pitch_bytes = row_bytes + p->gap_bytes;
    size_t scales_across = r->scale_cell_cols != 0 ? up(s->n_cols, r->scale_cell_cols) : 1;
    size_t scales_down = r->scale_cell_rows != 0 ? up(s->n_rows, r->scale_cell_rows) : 0;
    written w = { .out = guarded_make(s->n_rows * pitch_bytes, p->offset),
                  .scales = guarded_make(scales_down * scales_across * 4, 0) };
    weir_tile tile = { .dtype = s->dtype,
                       .rows = (const void *const *)s->rows,
                       .n_rows = s->n_rows,
                       .n_cols = s->n_cols,
                       .out = { { w.out.data, pitch_bytes }, { w.scales.data, scales_across * 4 } },
                       .next_rows = (const void *const *)s->rows,
                       .n_next_rows = s->n_rows < 128 ? s->n_rows : 128,
                       .digest = kernel != r->reference ? &w.digest : NULL,
                       .digest_word = p->first_word,
                       .digest_words_per_row = up(row_bytes, 8) + 3,
                       .propagate = p->propagate };
    w.status = kernel(&tile);
    if (kernel == r->reference && w.status == WEIR_OK)
        weir_digest_rectangle(&w.digest, w.out.data, pitch_bytes, s->n_rows, row_bytes,
                              p->first_word, tile.digest_words_per_row);
    return w;
}

static void written_free(written *w)
{
    guarded_free(&w->out);
    guarded_free(&w->scales);
}

static void compare(const rung *r, const source *s, const placing *p)
{
    written want = run_kernel(r, r->reference, s, p), got = run_kernel(r, r->kernel, s, p);
    bool same = want.status == got.status;
    if (same && want.status == WEIR_OK)
        same = memcmp(want.out.data, got.out.data, want.out.n_bytes) == 0 &&
               memcmp(want.scales.data, got.scales.data, want.scales.n_bytes) == 0 &&
               weir_digest_equal(&want.digest, &got.digest);
    if (!same)
        fail_msg("%s differs on %zu x %zu %s, offset %zu, gap %zu", r->name, s->n_rows, s->n_cols,
                 weir_dtype_name(s->dtype), p->offset, p->gap_bytes);
    written_free(&want);
    written_free(&got);
}

static const weir_dtype dtypes[] = { WEIR_BF16, WEIR_F16, WEIR_F32 };

static placing random_placing(const rung *r, uint64_t *state)
{
    size_t element_bytes = weir_dtype_bits(r->out_dtype) / 8;
    placing p = { .first_word = next_random(state) >> 20 };
    if (next_random(state) % 2) {
        p.offset = random_below(state, 64) / element_bytes * element_bytes;
        p.gap_bytes = random_below(state, 64) / element_bytes * element_bytes;
    }
    return p;
}

/* Gaps between rows are part of what is compared: they must keep their poison. */
static void rungs_equal_the_reference_on_random_tiles(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (size_t i = 0; i < N_RUNGS; i++) {
        if (!is_here(&rungs[i]))
            continue;
        for (int round = 0; round < 150; round++) {
            size_t n_rows = 1 + random_below(&seed, round % 4 == 0 ? 300 : 140);
            size_t n_cols = 1 + random_below(&seed, round % 5 == 0 ? 1500 : 300);
            regime kind = (regime)(round % N_REGIMES);
            source s = source_make(dtypes[round % 3], n_rows, n_cols, kind, &seed);
            placing p = random_placing(&rungs[i], &seed);
            compare(&rungs[i], &s, &p);
            source_free(&s);
        }
    }
}

static void rungs_equal_the_reference_on_aligned_tiles(void **state)
{
    (void)state;
    uint64_t seed = 2;
    const size_t shapes[][2] = { { 1, 1 },      { 1, 64 },     { 128, 128 }, { 129, 128 },
                                 { 128, 1024 }, { 256, 1152 }, { 127, 129 }, { 3, 4096 } };
    for (size_t i = 0; i < N_RUNGS; i++) {
        for (size_t k = 0; is_here(&rungs[i]) && k < sizeof(shapes) / sizeof(shapes[0]); k++) {
            for (int d = 0; d < 3; d++) {
                source s = source_make(dtypes[d], shapes[k][0], shapes[k][1],
                                       (regime)(k % N_REGIMES), &seed);
                placing p = { 0 };
                compare(&rungs[i], &s, &p);
                source_free(&s);
            }
        }
    }
}

static uint32_t infinity_of(weir_dtype dtype)
{
    return dtype == WEIR_BF16 ? 0x7F80u : dtype == WEIR_F16 ? 0x7C00u : WEIR_F32_INF_BITS;
}

/* One NaN or Inf of either sign anywhere: refused, or the reference's bytes under propagate. */
static void nonfinite_elements_are_refused_or_propagate(void **state)
{
    (void)state;
    uint64_t seed = 3;
    for (size_t i = 0; i < N_RUNGS; i++) {
        for (int round = 0; is_here(&rungs[i]) && round < 60; round++) {
            weir_dtype dtype = dtypes[round % 3];
            size_t n_rows = 1 + random_below(&seed, 200), n_cols = 1 + random_below(&seed, 400);
            source s = source_make(dtype, n_rows, n_cols, NORMAL, &seed);
            uint32_t sign = round & 4 ? 1u << (weir_dtype_bits(dtype) - 1) : 0;
            put_bits(s.rows[random_below(&seed, n_rows)], dtype, random_below(&seed, n_cols),
                     sign | (infinity_of(dtype) + (round & 8 ? 1 + random_below(&seed, 100) : 0)));
            placing p = random_placing(&rungs[i], &seed);
            written refused = run_kernel(&rungs[i], rungs[i].kernel, &s, &p);
            assert_int_equal(refused.status, WEIR_ERR_NONFINITE);
            written_free(&refused);
            p.propagate = true;
            compare(&rungs[i], &s, &p);
            source_free(&s);
        }
    }
}

/* Every quotient's neighbourhood of a rounding step: all fp32 patterns around each code's borders
 * for random scales. */
static void divisions_round_as_the_reference_at_every_step(void **state)
{
    (void)state;
    uint64_t seed = 4;
    for (size_t i = 0; i < 4 && i < N_RUNGS; i++) {
        for (int round = 0; is_here(&rungs[i]) && round < 40; round++) {
            source s = source_make(WEIR_F32, 1, 126 * 9 + 1, NORMAL, &seed);
            float *row = s.rows[0];
            float amax = 0.5f + (float)(next_random(&seed) >> 40) * 0x1p-24f;
            float scale = amax * weir_float_from_bits(0x3B124925u);
            row[0] = amax;
            for (uint32_t code = 0; code < 126; code++) {
                float middle = (weir_float_from_e4m3((uint8_t)code) +
                                weir_float_from_e4m3((uint8_t)(code + 1))) /
                               2;
                for (uint32_t k = 0; k < 9; k++)
                    row[1 + code * 9 + k] =
                        weir_float_from_bits(weir_float_bits(middle * scale) + k - 4);
            }
            placing p = { 0 };
            compare(&rungs[i], &s, &p);
            source_free(&s);
        }
    }
}

static void rounding_to_bf16_equals_the_scalar(void **state)
{
    (void)state;
    uint64_t seed = 5;
    float in[1003];
    uint16_t got[1003];
    weir_round_fn rounds[] = {
        weir_kernels()->round_to_bf16,
#if defined(__x86_64__)
        weir_cpu_has(WEIR_CPU_AVX2) ? weir_round_to_bf16_avx2 : NULL,
        weir_cpu_has(WEIR_CPU_AVX512) ? weir_round_to_bf16_avx512 : NULL
#endif
    };
    for (size_t k = 0; k < sizeof(rounds) / sizeof(rounds[0]); k++) {
        for (int round = 0; rounds[k] != NULL && round < 200; round++) {
            size_t n = random_below(&seed, 1004);
            for (size_t i = 0; i < n; i++)
                in[i] = weir_float_from_bits((uint32_t)next_random(&seed));
            rounds[k](got, in, n);
            for (size_t i = 0; i < n; i++)
                assert_int_equal(got[i], weir_bf16_from_float(in[i]));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rungs_equal_the_reference_on_random_tiles),
        cmocka_unit_test(rungs_equal_the_reference_on_aligned_tiles),
        cmocka_unit_test(nonfinite_elements_are_refused_or_propagate),
        cmocka_unit_test(divisions_round_as_the_reference_at_every_step),
        cmocka_unit_test(rounding_to_bf16_equals_the_scalar),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
