/* SPDX-License-Identifier: Apache-2.0 */
/* Views of wider matrices: whatever the pitch, the bytes, digests and errors of contiguous copies,
 * from every kernel; and the pitches that are refused. */
#include "base/cpu.h"
#include "convert/kernels.h"
#include "convert/view_case.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
#define N_CASES 15
#else
#define N_CASES 150
#endif

static const weir_dtype dtypes[] = { WEIR_BF16, WEIR_F16, WEIR_F32 };

/* ---- every kernel ----------------------------------------------------------------------------*/

static weir_convert_fn avx2_kernel(const weir_conversion *conversion)
{
#if defined(__x86_64__)
    if (!weir_cpu_has(WEIR_CPU_AVX2))
        return NULL;
    if (conversion->reference == weir_bf16_cast_c)
        return weir_bf16_cast_avx2;
    if (conversion->reference == weir_fp32_cast_c)
        return weir_fp32_cast_avx2;
    if (conversion->reference == weir_fp8_128x128_c)
        return weir_fp8_128x128_avx2;
    if (conversion->reference == weir_fp8_channel_c)
        return weir_fp8_channel_avx2;
#endif
    (void)conversion;
    return NULL;
}

/* One way to convert the views: `rung` 0 the reference, 1 AVX2, 2 the best of this CPU. */
static void check_rung(weir_convert_args args, int rung, size_t offset, const converted *want)
{
    weir_conversion lower = *args.conversion;
    converted got;
    args.reference = rung == 0;
    if (rung == 1) {
        lower.kernel = avx2_kernel(&lower);
        if (lower.kernel == NULL)
            return;
        args.conversion = &lower;
    }
    must_convert(&got, args, offset);
    assert_same_outputs(want, &got);
    converted_free(&got);
}

/* `args` names the dense copies; the same of the views must come out of every kernel. */
static void check_views(const views *v, weir_convert_args args, weir_pool *pool, uint64_t *seed)
{
    converted want;
    args.reference = true;
    must_convert(&want, args, 0);
    args.sources = v->wide;
    args.source_pitches = v->pitches;
    for (int k = 0; k < 6; k++) {
        args.pool = k % 2 ? pool : NULL;
        check_rung(args, k / 2, random_below(seed, 2) ? 0 : 8, &want);
    }
    converted_free(&want);
}

/* ---- sameness --------------------------------------------------------------------------------*/

static const weir_conversion *conversions[64];
static size_t n_conversions;

/* All that take matrices of floats, whoever registered them. */
static int find_conversions(void **state)
{
    const char *names[64];
    (void)state;
    size_t n = weir_conversion_names(names, 64);
    for (size_t i = 0; i < n && i < 64; i++) {
        const weir_conversion *c = conversion_named(names[i]);
        if ((c->sources & WEIR_DTYPE_BIT(WEIR_F32)) != 0 && c->min_rank <= 2)
            conversions[n_conversions++] = c;
    }
    return n_conversions >= 4 ? 0 : -1;
}

static bool takes(const weir_conversion *conversion, const weir_tensor *sources, size_t n)
{
    weir_dtype_set used = 0;
    for (size_t i = 0; i < n; i++)
        used |= WEIR_DTYPE_BIT(sources[i].dtype);
    return (used & ~conversion->sources) == 0;
}

/* A view with a random place in its matrix, `moved` bytes off the alignment of its elements. */
static void add_random(views *v, weir_dtype dtype, size_t n_rows, size_t n_cols, size_t moved,
                       regime kind, uint64_t *seed)
{
    size_t element_bytes = weir_dtype_bits(dtype) / 8;
    view_placing at = { random_below(seed, 40) * element_bytes + moved,
                        random_pitch(n_cols * element_bytes, element_bytes, seed) };
    views_add(v, "w", dtype, n_rows, n_cols, at, kind, seed);
}

static void check_random(weir_pool *pool, uint64_t *seed)
{
    static const size_t widths[] = { 1, 8, 100, 128, 136, 255, 512, 1153, 9000 };
    views v = { 0 };
    size_t n_sources = 1 + random_below(seed, 3), n_experts = random_below(seed, 4), heights[3];
    size_t n_cols = widths[random_below(seed, 9)], most = n_cols > 2000 ? 40 : 300;
    bool mixed = random_below(seed, 4) == 0;
    weir_dtype dtype = dtypes[random_below(seed, 3)];
    regime kind = (regime)random_below(seed, N_REGIMES);
    for (size_t i = 0; i < n_sources; i++)
        heights[i] = random_below(seed, 8) == 0 ? 0 : 1 + random_below(seed, most);
    for (size_t i = 0; i < n_sources * (n_experts != 0 ? n_experts : 1); i++)
        add_random(&v, mixed ? dtypes[random_below(seed, 3)] : dtype, heights[i % n_sources],
                   n_cols, random_below(seed, 6) == 0, kind, seed);
    for (size_t k = 0; k < n_conversions; k++) {
        if (!takes(conversions[k], v.dense, v.n))
            continue;
        weir_convert_args args = args_for(conversions[k]->name, v.dense, n_sources);
        args.n_experts = n_experts;
        args.axis = n_experts != 0;
        args.round_masters = random_below(seed, 2);
        args.propagate = true; /* a random fp32 may be too large for bf16 */
        check_views(&v, args, pool, seed);
    }
    views_free(&v);
}

static void views_convert_as_contiguous_copies_do(void **state)
{
    (void)state;
    uint64_t seed = 41;
    weir_pool *pool = NULL;
    assert_int_equal(weir_pool_open(3, &pool), WEIR_OK);
    for (int i = 0; i < N_CASES; i++)
        check_random(pool, &seed);
    weir_pool_close(pool);
}

/* What tensor parallelism along columns asks for: the ranges of one matrix, a rank's each. */
static void column_ranges_of_a_matrix_are_the_columns_of_its_conversion(void **state)
{
    (void)state;
    uint64_t seed = 42;
    const size_t rows = 300, cols = 4 * 384;
    float *data = malloc(rows * cols * sizeof(float));
    fill(data, WEIR_F32, rows * cols, NORMAL, &seed);
    weir_tensor whole = tensor_2d("w", WEIR_F32, rows, cols, data);
    const uint64_t pitch = cols * sizeof(float);
    converted all, part;
    must_convert(&all, args_for("fp8_128x128", &whole, 1), 0);
    for (size_t rank = 0; rank < 4; rank++) {
        weir_tensor view = tensor_2d("w", WEIR_F32, rows, 384, data + rank * 384);
        weir_convert_args args = args_for("fp8_128x128", &view, 1);
        args.source_pitches = &pitch;
        must_convert(&part, args, 0);
        for (size_t r = 0; r < rows; r++)
            assert_memory_equal(part.out[0].data + r * 384, all.out[0].data + r * cols + rank * 384,
                                384);
        for (size_t r = 0; r < 3; r++)
            assert_memory_equal(part.out[1].data + r * 12, all.out[1].data + r * 48 + rank * 12,
                                12);
        converted_free(&part);
    }
    converted_free(&all);
    free(data);
}

/* ---- what is not finite ----------------------------------------------------------------------*/

static void a_refused_weight_is_counted_within_the_view(void **state)
{
    (void)state;
    static const uint32_t infinite[] = { 0x7F80, 0x7C00, 0x7F800000u };
    uint64_t seed = 43;
    for (size_t d = 0; d < 3; d++) {
        size_t element_bytes = weir_dtype_bits(dtypes[d]) / 8;
        views v = { 0 };
        views_add(&v, "gate", dtypes[d], 150, 300, (view_placing){ 0, 0 }, SPARSE, &seed);
        views_add(&v, "up", dtypes[d], 150, 300,
                  (view_placing){ 14 * element_bytes, 333 * element_bytes }, SPARSE, &seed);
        views_put(&v, 1, 149, 299, infinite[d]);
        views_put(&v, 1, 140, 7, infinite[d]);
        for (size_t k = 0; k < 2 * n_conversions; k++) {
            if (!takes(conversions[k / 2], v.wide, 2))
                continue;
            converted result;
            weir_convert_args args = args_for(conversions[k / 2]->name, v.wide, 2);
            args.source_pitches = v.pitches;
            args.reference = k % 2;
            assert_int_equal(convert_into(&result, args, 0), WEIR_ERR_NONFINITE);
            assert_string_equal(weir_last_error(), "up[140, 7] is +Inf");
            converted_free(&result);
        }
        views_free(&v);
    }
}

/* ---- pitches that are refused ----------------------------------------------------------------*/

static void assert_pitch_error(weir_tensor source, uint64_t pitch, const char *error)
{
    weir_convert_args args = args_for("bf16_cast", &source, 1);
    uint16_t out[64];
    args.source_pitches = &pitch;
    args.outputs[0] = out;
    assert_int_equal(weir_convert(&args), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), error);
}

static void pitches_that_rows_cannot_have_are_refused(void **state)
{
    (void)state;
    float data[64] = { 0 };
    weir_tensor matrix = tensor_2d("q_proj.weight", WEIR_F32, 4, 8, data);
    assert_pitch_error(matrix, 28,
                       "q_proj.weight [4, 8] has a pitch of 28 bytes, expected a "
                       "multiple of 4 of at least 32");
    assert_pitch_error(matrix, 34,
                       "q_proj.weight [4, 8] has a pitch of 34 bytes, expected a "
                       "multiple of 4 of at least 32");
    assert_pitch_error(matrix, (uint64_t)1 << 62,
                       "q_proj.weight [4, 8] has a pitch of 4611686018427387904 bytes: more than "
                       "2^64 bytes in all");
    weir_tensor vector = { "norm.weight", WEIR_F32, { 1, { 8 } }, data };
    assert_pitch_error(vector, 64,
                       "norm.weight [8] has a pitch of 64 bytes, only a matrix can have one");
    weir_tensor stack = { NULL, WEIR_F32, { 3, { 2, 2, 8 } }, data };
    assert_pitch_error(stack, 64,
                       "(unnamed) [2, 2, 8] has a pitch of 64 bytes, only a matrix can have one");
}

/* Vectors and stacks may stand among pitches as long as theirs is 0. */
static void a_pitch_of_zero_is_none(void **state)
{
    (void)state;
    uint64_t seed = 44, pitches[2] = { 0, 0 };
    float data[2 * 3 * 40];
    fill(data, WEIR_F32, 240, NORMAL, &seed);
    const weir_shape shapes[] = { { 1, { 120 } }, { 2, { 3, 40 } }, { 3, { 3, 4, 10 } } };
    for (size_t i = 0; i < 3; i++) {
        weir_tensor sources[2] = { { "a", WEIR_F32, shapes[i], data },
                                   { "b", WEIR_F32, shapes[i], data + 120 } };
        weir_convert_args args = args_for("bf16_cast", sources, 2);
        converted a, b;
        args.axis = i == 2;
        must_convert(&a, args, 0);
        args.source_pitches = pitches;
        must_convert(&b, args, 0);
        assert_same_outputs(&a, &b);
        converted_free(&a);
        converted_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(views_convert_as_contiguous_copies_do),
        cmocka_unit_test(column_ranges_of_a_matrix_are_the_columns_of_its_conversion),
        cmocka_unit_test(a_refused_weight_is_counted_within_the_view),
        cmocka_unit_test(pitches_that_rows_cannot_have_are_refused),
        cmocka_unit_test(a_pitch_of_zero_is_none),
    };
    return cmocka_run_group_tests(tests, find_conversions, NULL);
}
