/* SPDX-License-Identifier: Apache-2.0 */
/* One call of weir_convert(): what it checks, and that neither threads nor instruction sets nor the
 * way the source is cut change a byte. */
#include "convert/convert_case.h"

#include "base/alloc.h"
#include "convert/fp8_recipe.h"

static const char *const conversions[] = { "bf16_cast", "fp32_cast", "fp8_128x128",
                                           "cutlass_fp8_e4m3_per_channel" };

/* ---- sameness --------------------------------------------------------------------------------*/

static void assert_digests_of_outputs(const weir_convert_args *args, const converted *result)
{
    weir_shape fused, shape;
    assert_int_equal(weir_convert_fused_shape(args, &fused), WEIR_OK);
    for (size_t i = 0; i < result->n_outputs; i++) {
        uint64_t n_rows, row_bytes;
        weir_digest want = { 0, 0 };
        assert_int_equal(weir_conversion_output_shape(args->conversion, i, &fused, &shape),
                         WEIR_OK);
        weir_digest_rows_of(args->conversion->outputs[i].dtype, &shape, &n_rows, &row_bytes);
        weir_digest_add(&want, result->out[i].data, n_rows, row_bytes);
        assert_true(weir_digest_equal(&want, &result->digests[i]));
    }
}

/* The reference on one thread is what all others must equal. */
static void check_all_ways(weir_convert_args args, size_t offset)
{
    converted want;
    args.reference = true;
    args.pool = NULL;
    must_convert(&want, args, 0);
    assert_digests_of_outputs(&args, &want);
    const unsigned n_threads[] = { 1, 2, 3, 7 };
    for (int k = 0; k < 8; k++) {
        weir_pool *pool = NULL;
        converted got;
        assert_int_equal(weir_pool_open(n_threads[k / 2], &pool), WEIR_OK);
        args.pool = pool;
        args.reference = k % 2;
        must_convert(&got, args, offset);
        assert_same_outputs(&want, &got);
        converted_free(&got);
        weir_pool_close(pool);
    }
    converted_free(&want);
}

static void threads_and_kernels_do_not_change_a_byte(void **state)
{
    (void)state;
    uint64_t seed = 21;
    const size_t shapes[][2] = { { 1, 1 },      { 1, 5000 },  { 700, 1 },  { 129, 1153 },
                                 { 128, 9000 }, { 640, 512 }, { 77, 640 }, { 1300, 96 } };
    const weir_dtype dtypes[] = { WEIR_BF16, WEIR_F16, WEIR_F32 };
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        size_t rows = shapes[s][0], cols = shapes[s][1];
        weir_dtype dtype = dtypes[s % 3];
        void *data = malloc(rows * cols * 4);
        fill(data, dtype, rows * cols, dtype == WEIR_F32 ? NORMAL : (regime)(s % N_REGIMES), &seed);
        weir_tensor source = tensor_2d("w", dtype, rows, cols, data);
        for (int k = 0; k < 4; k++)
            check_all_ways(args_for(conversions[k], &source, 1), s % 2 ? 0 : 8);
        free(data);
    }
}

static void stacks_of_matrices_are_converted_matrix_by_matrix(void **state)
{
    (void)state;
    uint64_t seed = 22;
    const size_t n_experts = 6, rows = 200, cols = 300;
    uint16_t *data = malloc(n_experts * rows * cols * 2);
    fill(data, WEIR_BF16, n_experts * rows * cols, NORMAL, &seed);
    weir_tensor stack = { "w", WEIR_BF16, { 3, { n_experts, rows, cols } }, data };
    for (int k = 0; k < 4; k++) {
        check_all_ways(args_for(conversions[k], &stack, 1), 0);
        converted whole, one;
        must_convert(&whole, args_for(conversions[k], &stack, 1), 0);
        weir_tensor last = tensor_2d("w", WEIR_BF16, rows, cols, data + 5 * rows * cols);
        must_convert(&one, args_for(conversions[k], &last, 1), 0);
        for (size_t i = 0; i < one.n_outputs; i++)
            assert_memory_equal(whole.out[i].data + 5 * one.out[i].n_bytes, one.out[i].data,
                                one.out[i].n_bytes);
        converted_free(&whole);
        converted_free(&one);
    }
    free(data);
}

/* ---- fuse first, then quantise ---------------------------------------------------------------*/

/* Sources of odd heights against the tensor that they are together; N1, C6, C8, C9. */
static void fused_sources_equal_their_concatenation(void **state)
{
    (void)state;
    uint64_t seed = 23;
    const size_t heights[][4] = { { 64, 64, 0, 0 },    { 192, 192, 0, 0 }, { 2048, 576, 0, 0 },
                                  { 576, 2048, 0, 0 }, { 1, 127, 300, 5 }, { 0, 3, 0, 260 } };
    for (size_t h = 0; h < sizeof(heights) / sizeof(heights[0]); h++) {
        const size_t cols = h < 4 ? 256 : 217;
        size_t rows = 0;
        weir_tensor parts[4];
        uint16_t *data = malloc(3000 * cols * 2);
        fill(data, WEIR_BF16, 3000 * cols, NORMAL, &seed);
        for (int i = 0; i < 4; i++) {
            parts[i] = tensor_2d("part", WEIR_BF16, heights[h][i], cols, data + rows * cols);
            rows += heights[h][i];
        }
        weir_tensor whole = tensor_2d("whole", WEIR_BF16, rows, cols, data);
        for (int k = 0; k < 4; k++) {
            converted a, b;
            must_convert(&a, args_for(conversions[k], &whole, 1), 0);
            must_convert(&b, args_for(conversions[k], parts, 4), 0);
            assert_same_outputs(&a, &b);
            converted_free(&a);
            converted_free(&b);
            check_all_ways(args_for(conversions[k], parts, 4), 0);
        }
        free(data);
    }
}

/* C7: the scale of a block that spans two sources comes from both. */
static void a_block_across_two_sources_has_one_scale(void **state)
{
    (void)state;
    float *ones = malloc(64 * 128 * 4), *hundreds = malloc(64 * 128 * 4);
    for (size_t i = 0; i < 64 * 128; i++) {
        ones[i] = 1.0f;
        hundreds[i] = 100.0f;
    }
    weir_tensor parts[2] = { tensor_2d("a", WEIR_F32, 64, 128, ones),
                             tensor_2d("b", WEIR_F32, 64, 128, hundreds) };
    converted result;
    must_convert(&result, args_for("fp8_128x128", parts, 2), 0);
    assert_int_equal(result.out[1].n_bytes, 4);
    float scale;
    memcpy(&scale, result.out[1].data, 4);
    assert_true(scale == weir_fp8_scale(100.0f));
    assert_int_equal(result.out[0].data[0], 0x49);
    assert_int_equal(result.out[0].data[64 * 128 - 1], 0x49);
    assert_int_equal(result.out[0].data[64 * 128], 0x7E);
    converted_free(&result);
    free(ones);
    free(hundreds);
}

/* The forms in which trainers hold experts: stacked per projection, or a matrix each. */
static void both_expert_forms_give_the_same_bytes(void **state)
{
    (void)state;
    uint64_t seed = 24;
    const size_t n_experts = 3, rows = 160, cols = 200, n = rows * cols;
    uint16_t *w1 = malloc(n_experts * n * 2), *w3 = malloc(n_experts * n * 2);
    fill(w1, WEIR_BF16, n_experts * n, NORMAL, &seed);
    fill(w3, WEIR_BF16, n_experts * n, NORMAL, &seed);
    weir_tensor stacked[2] = { { "w1", WEIR_BF16, { 3, { n_experts, rows, cols } }, w1 },
                               { "w3", WEIR_BF16, { 3, { n_experts, rows, cols } }, w3 } };
    weir_tensor apart[6];
    for (size_t e = 0; e < n_experts; e++) {
        apart[2 * e] = tensor_2d("w1", WEIR_BF16, rows, cols, w1 + e * n);
        apart[2 * e + 1] = tensor_2d("w3", WEIR_BF16, rows, cols, w3 + e * n);
    }
    for (int k = 0; k < 4; k++) {
        weir_convert_args a = args_for(conversions[k], stacked, 2);
        weir_convert_args b = args_for(conversions[k], apart, 2);
        a.axis = b.axis = 1;
        b.n_experts = n_experts;
        weir_shape shape, want = { 3, { n_experts, 2 * rows, cols } };
        assert_int_equal(weir_convert_fused_shape(&b, &shape), WEIR_OK);
        assert_true(weir_shape_equal(&shape, &want));
        check_all_ways(a, 0);
        check_all_ways(b, 0);
        converted x, y;
        must_convert(&x, a, 0);
        must_convert(&y, b, 0);
        assert_same_outputs(&x, &y);
        converted_free(&x);
        converted_free(&y);
    }
    free(w1);
    free(w3);
}

static void *widened(const void *data, weir_dtype dtype, size_t n)
{
    float *out = malloc(n * 4);
    for (size_t i = 0; i < n; i++)
        out[i] = dtype == WEIR_F32    ? ((const float *)data)[i]
                 : dtype == WEIR_BF16 ? weir_float_from_bf16(((const uint16_t *)data)[i])
                                      : weir_float_from_fp16(((const uint16_t *)data)[i]);
    return out;
}

/* Mixed dtypes in one destination equal the same values all in fp32. */
static void sources_of_several_dtypes_meet_in_fp32(void **state)
{
    (void)state;
    uint64_t seed = 25;
    const size_t cols = 301, heights[4] = { 70, 1, 200, 33 };
    const weir_dtype dtypes[4] = { WEIR_BF16, WEIR_F32, WEIR_F16, WEIR_BF16 };
    weir_tensor mixed[4], fp32[4];
    for (int i = 0; i < 4; i++) {
        void *data = malloc(heights[i] * cols * 4);
        fill(data, dtypes[i], heights[i] * cols, NORMAL, &seed);
        mixed[i] = tensor_2d("mixed", dtypes[i], heights[i], cols, data);
        fp32[i] = tensor_2d("fp32", WEIR_F32, heights[i], cols,
                            widened(data, dtypes[i], heights[i] * cols));
    }
    for (int k = 0; k < 4; k++) {
        converted a, b;
        must_convert(&a, args_for(conversions[k], mixed, 4), 0);
        must_convert(&b, args_for(conversions[k], fp32, 4), 0);
        assert_same_outputs(&a, &b);
        converted_free(&a);
        converted_free(&b);
        for (int round = 0; round <= 1; round++) {
            weir_convert_args args = args_for(conversions[k], mixed, 4);
            args.round_masters = round;
            check_all_ways(args, 0);
        }
    }
    for (int i = 0; i < 4; i++) {
        free(mixed[i].data);
        free(fp32[i].data);
    }
}

/* A mapped file puts tensors anywhere. */
static void misaligned_sources_are_taken(void **state)
{
    (void)state;
    uint64_t seed = 26;
    const size_t rows = 130, cols = 259, n = rows * cols;
    const weir_dtype dtypes[] = { WEIR_BF16, WEIR_F16, WEIR_F32 };
    for (int d = 0; d < 3; d++) {
        size_t element_bytes = weir_dtype_bits(dtypes[d]) / 8;
        unsigned char *aligned = malloc(n * 4), *moved = malloc(n * 4 + 1);
        fill(aligned, dtypes[d], n, NORMAL, &seed);
        memcpy(moved + 1, aligned, n * element_bytes);
        weir_tensor a = tensor_2d("w", dtypes[d], rows, cols, aligned);
        weir_tensor b = tensor_2d("w", dtypes[d], rows, cols, moved + 1);
        for (int k = 0; k < 8; k++) {
            converted x, y;
            weir_convert_args args = args_for(conversions[k / 2], &a, 1);
            args.round_masters = k % 2;
            must_convert(&x, args, 0);
            args.sources = &b;
            must_convert(&y, args, 0);
            assert_same_outputs(&x, &y);
            converted_free(&x);
            converted_free(&y);
        }
        free(aligned);
        free(moved);
    }
}

/* ---- non-finite ------------------------------------------------------------------------------*/

static void the_first_nonfinite_element_is_named_whatever_the_threads(void **state)
{
    (void)state;
    const size_t rows = 700, cols = 1100;
    uint16_t *data = calloc(2 * rows * cols, 2);
    weir_tensor parts[2] = {
        tensor_2d("model.layers.3.mlp.gate_proj.weight", WEIR_BF16, rows, cols, data),
        tensor_2d("model.layers.3.mlp.up_proj.weight", WEIR_BF16, rows, cols, data + rows * cols)
    };
    data[rows * cols + 12 * cols + 345] = 0xFF80;
    data[2 * rows * cols - 1] = 0x7FC0;
    for (unsigned n_threads = 1; n_threads <= 7; n_threads += 2) {
        weir_pool *pool = NULL;
        assert_int_equal(weir_pool_open(n_threads, &pool), WEIR_OK);
        for (int k = 0; k < 8; k++) {
            weir_convert_args args = args_for(conversions[k / 2], parts, 2);
            args.pool = pool;
            args.reference = k % 2;
            converted result;
            assert_int_equal(convert_into(&result, args, 0), WEIR_ERR_NONFINITE);
            assert_string_equal(weir_last_error(),
                                "model.layers.3.mlp.up_proj.weight[12, 345] is -Inf");
            converted_free(&result);
        }
        weir_pool_close(pool);
    }
    free(data);
}

static void indexes_count_in_the_source_not_the_destination(void **state)
{
    (void)state;
    uint16_t data[2 * 3 * 4] = { 0 };
    data[1 * 12 + 2 * 4 + 3] = 0x7E00;
    weir_tensor stack = { "experts.w2", WEIR_F16, { 3, { 2, 3, 4 } }, data };
    converted result;
    assert_int_equal(convert_into(&result, args_for("fp8_128x128", &stack, 1), 0),
                     WEIR_ERR_NONFINITE);
    assert_string_equal(weir_last_error(), "experts.w2[1, 2, 3] is NaN");
    converted_free(&result);
}

/* ---- calls that are refused ------------------------------------------------------------------*/

static void assert_error(const weir_convert_args *args, const char *error)
{
    assert_int_equal(weir_convert(args), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), error);
}

/* B12 */
static void buffers_must_be_those_of_the_conversion(void **state)
{
    (void)state;
    uint16_t weight[4] = { 0 };
    float out[4], scale[4];
    weir_tensor source = tensor_2d("w", WEIR_BF16, 2, 2, weight);
    for (int k = 0; k < 4; k++) {
        weir_convert_args args = args_for(conversions[k], &source, 1);
        char error[128];
        args.outputs[1] = scale;
        snprintf(error, sizeof(error),
                 k < 2 ? "%s conversion takes no scale buffer" : "%s requires an out buffer",
                 conversions[k]);
        args.outputs[0] = k < 2 ? out : NULL;
        assert_error(&args, error);
        args.outputs[1] = NULL;
        args.outputs[0] = k < 2 ? NULL : out;
        snprintf(error, sizeof(error), "%s requires %s buffer", conversions[k],
                 k < 2 ? "an out" : "a scale_out");
        assert_error(&args, error);
    }
    weir_convert_args args = args_for("fp8_128x128", &source, 1);
    args.outputs[0] = out;
    args.outputs[1] = (char *)scale + 2;
    assert_error(&args, "fp8_128x128: the buffer for weight_scale_inv is not aligned to 4 bytes");
}

static void wrong_shapes_and_dtypes_are_named(void **state)
{
    (void)state;
    uint16_t data[64] = { 0 };
    weir_tensor vector = { "b", WEIR_BF16, { 1, { 5 } }, data };
    weir_convert_args args = args_for("fp8_128x128", &vector, 1);
    assert_error(&args, "FP8 quantization expects a 2D tensor, got shape=(5,)");
    args = args_for("cutlass_fp8_e4m3_per_channel", &vector, 1);
    assert_error(&args, "fp8_per_channel_quantize expects 2D or 3D, got shape=(5,)");
    weir_tensor cube = { "c", WEIR_BF16, { 4, { 1, 2, 4, 6 } }, data };
    args = args_for("fp8_128x128", &cube, 1);
    assert_error(&args, "FP8 quantization expects a 2D tensor, got shape=(1, 2, 4, 6)");
    weir_tensor packed = tensor_2d("p", WEIR_I32, 4, 6, data);
    args = args_for("fp8_128x128", &packed, 1);
    assert_error(&args, "p has dtype I32, conversion 'fp8_128x128' takes F16, BF16, F32");
    weir_tensor strange = tensor_2d("s", (weir_dtype)77, 4, 6, data);
    args = args_for("fp8_128x128", &strange, 1);
    assert_error(&args, "s has dtype ?, conversion 'fp8_128x128' takes F16, BF16, F32");
    weir_tensor empty = tensor_2d("e", WEIR_BF16, 4, 6, NULL);
    args = args_for("fp8_128x128", &empty, 1);
    assert_error(&args, "e has no data");
    weir_tensor huge = tensor_2d("h", WEIR_BF16, (size_t)1 << 40, (size_t)1 << 40, data);
    args = args_for("bf16_cast", &huge, 1);
    assert_int_equal(weir_convert(&args), WEIR_ERR_INVALID);
}

static void sources_that_do_not_fit_together_are_named(void **state)
{
    (void)state;
    uint16_t data[64] = { 0 };
    weir_tensor pair[2] = { tensor_2d("q", WEIR_BF16, 2, 6, data),
                            tensor_2d("k", WEIR_BF16, 2, 5, data) };
    weir_convert_args args = args_for("bf16_cast", pair, 2);
    assert_error(&args, "q [2, 6] and k [2, 5] cannot be joined along axis 0");
    pair[1].shape.dim[1] = 6;
    args.axis = 1;
    assert_error(&args, "q [2, 6]: sources of rank 2 are joined along axis 0 (their rows), not 1");
    args.n_experts = 1;
    args.axis = 0;
    assert_error(&args, "experts are joined along axis 1, not 0");
    weir_tensor experts[2] = { tensor_2d("e0", WEIR_BF16, 2, 6, data),
                               tensor_2d("e1", WEIR_BF16, 3, 6, data) };
    args = args_for("bf16_cast", experts, 1);
    args.n_experts = 2;
    args.axis = 1;
    assert_error(&args, "e1 has shape [3, 6], expected [2, 6] as e0 has");
    experts[1] = (weir_tensor){ "e1", WEIR_BF16, { 3, { 1, 2, 6 } }, data };
    assert_error(&args, "e1: an expert's source must be a matrix, got [1, 2, 6]");
    args.n_sources = 0;
    assert_error(&args, "conversion 'bf16_cast' was given no source");
    args.n_sources = SIZE_MAX;
    assert_int_equal(weir_convert(&args), WEIR_ERR_INVALID);
}

static void args_of_another_size_are_understood_or_refused(void **state)
{
    (void)state;
    uint16_t in = 0x3F80, out = 0;
    weir_tensor source = { "w", WEIR_BF16, { 1, { 1 } }, &in };
    struct {
        weir_convert_args args;
        uint64_t later;
    } longer = { args_for("bf16_cast", &source, 1), 0 };
    longer.args.outputs[0] = &out;
    longer.args.size = sizeof(longer);
    assert_int_equal(weir_convert(&longer.args), WEIR_OK);
    assert_int_equal(out, 0x3F80);
    longer.later = 1;
    assert_int_equal(weir_convert(&longer.args), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "sets a field that this version"));
    longer.args.size = offsetof(weir_convert_args, pool);
    assert_int_equal(weir_convert(&longer.args), WEIR_OK);
    longer.args.size = 0;
    assert_error(&longer.args, "weir_convert_args: size is 0, set it with its _INIT macro");
    longer.args = (weir_convert_args)WEIR_CONVERT_ARGS_INIT;
    assert_error(&longer.args, "weir_convert_args names no conversion");
    assert_int_equal(weir_convert(NULL), WEIR_ERR_INVALID);
}

/* ---- edges -----------------------------------------------------------------------------------*/

static void empty_tensors_convert_to_nothing(void **state)
{
    (void)state;
    const weir_shape shapes[] = { { 2, { 0, 7 } },
                                  { 2, { 0, 0 } },
                                  { 3, { 0, 4, 4 } },
                                  { 3, { 2, 0, 4 } },
                                  { 2, { 0, (uint64_t)1 << 62 } } };
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        weir_tensor source = { "w", WEIR_BF16, shapes[s], NULL };
        for (int k = 0; k < 4; k++) {
            weir_convert_args args = args_for(conversions[k], &source, 1);
            weir_digest digests[2] = { { 1, 1 }, { 1, 1 } };
            args.digests = digests;
            assert_int_equal(weir_convert(&args), WEIR_OK);
            assert_int_equal(digests[0].product | digests[0].sum, 0);
        }
    }
}

static void a_second_conversion_allocates_nothing(void **state)
{
    (void)state;
    uint64_t seed = 27;
    const size_t rows = 512, cols = 1024;
    float *data = malloc(rows * cols * 4);
    fill(data, WEIR_F32, rows * cols, NORMAL, &seed);
    uint16_t *half = malloc(rows * cols * 2);
    fill(half, WEIR_BF16, rows * cols, NORMAL, &seed);
    weir_tensor sources[64]; /* of two dtypes, so that rows pass through scratch */
    for (size_t i = 0; i < 64; i++)
        sources[i] = i % 2 ? tensor_2d("a", WEIR_F32, 8, cols, data + i * 8 * cols)
                           : tensor_2d("b", WEIR_BF16, 8, cols, half + i * 8 * cols);
    weir_pool *pool = NULL;
    assert_int_equal(weir_pool_open(3, &pool), WEIR_OK);
    uint64_t before = 0;
    for (int round = 0; round < 6; round++) {
        if (round == 5)
            before = weir_alloc_count();
        for (int k = 0; k < 4; k++) {
            converted result;
            weir_convert_args args = args_for(conversions[k], sources, 64);
            args.pool = pool;
            must_convert(&result, args, 0);
            converted_free(&result);
        }
    }
    /* Which threads have drawn a task is chance, so a thread's first scratch may come late. */
    assert_true(weir_alloc_count() - before <= 3 * 4);
    before = weir_alloc_count();
    for (int k = 0; k < 4; k++) {
        converted result;
        weir_convert_args args = args_for(conversions[k], sources, 64);
        must_convert(&result, args, 0);
        converted_free(&result);
        if (k == 2)
            before = weir_alloc_count(); /* the largest scratch of this thread is there */
    }
    assert_int_equal(weir_alloc_count(), before);
    weir_pool_close(pool);
    free(data);
    free(half);
}

static void running_out_of_memory_is_reported(void **state)
{
    (void)state;
    uint16_t in[4] = { 0 }, out[4];
    weir_tensor source = tensor_2d("w", WEIR_BF16, 2, 2, in);
    weir_pool *pool = NULL;
    /* 300,000 rows in one tile need more scratch than any test before. */
    const size_t rows = 300000;
    uint16_t *tall = calloc(rows, 2), *wide = calloc(rows, 2);
    weir_tensor high = tensor_2d("w", WEIR_BF16, rows, 1, tall);
    weir_convert_args args = args_for("bf16_cast", &high, 1);
    args.outputs[0] = wide;
    assert_int_equal(weir_pool_open(2, &pool), WEIR_OK);
    args.pool = pool;
    weir_alloc_fail_at(1);
    assert_int_equal(weir_convert(&args), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    assert_int_equal(weir_convert(&args), WEIR_OK);
    args = args_for("bf16_cast", &source, 1);
    args.outputs[0] = out;
    args.pool = pool;
    assert_int_equal(weir_convert(&args), WEIR_OK);
    weir_pool_close(pool);
    free(tall);
    free(wide);
}

/* ---- rows from outside -----------------------------------------------------------------------*/

/* Two source elements per byte, one sum per 4 x 32 cell: cells other than the built-in ones. */
static weir_status pairs_c(const weir_tile *tile)
{
    for (size_t r = 0; r < tile->n_rows; r++) {
        uint8_t *out = (uint8_t *)tile->out[0].data + r * tile->out[0].pitch_bytes;
        const uint16_t *row = tile->rows[r];
        for (size_t c = 0; c < tile->n_cols; c += 2)
            out[c / 2] = (uint8_t)(row[c] ^ (c + 1 < tile->n_cols ? row[c + 1] >> 8 : 0));
    }
    for (size_t r = 0; r < tile->n_rows; r += 4) {
        char *sums = (char *)tile->out[1].data + r / 4 * tile->out[1].pitch_bytes;
        for (size_t c = 0; c < tile->n_cols; c += 32) {
            uint32_t sum = 0;
            for (size_t i = r; i < r + 4 && i < tile->n_rows; i++) {
                for (size_t k = c; k < c + 32 && k < tile->n_cols; k++)
                    sum += ((const uint16_t *)tile->rows[i])[k];
            }
            memcpy(sums + c / 32 * 4, &sum, 4);
        }
    }
    return WEIR_OK;
}

static const weir_conversion pairs = { .size = sizeof(weir_conversion),
                                       .name = "test_pairs",
                                       .compile_target = "test",
                                       .compile_metadata = "{}",
                                       .sources = WEIR_DTYPE_BIT(WEIR_U16),
                                       .border_rows = 4,
                                       .border_cols = 32,
                                       .n_outputs = 2,
                                       .outputs = { { "packed", WEIR_U8, 1, 2 },
                                                    { "sums", WEIR_U32, 4, 32 } },
                                       .reference = pairs_c };

static weir_status unsupported_c(const weir_tile *tile)
{
    (void)tile;
    return WEIR_ERR_UNSUPPORTED;
}

static void a_registered_kernel_that_fails_is_named(void **state)
{
    (void)state;
    weir_conversion row = pairs;
    row.name = "test_fails";
    row.reference = unsupported_c;
    assert_int_equal(weir_conversion_register(&row), WEIR_OK);
    uint16_t data[4] = { 0 };
    uint8_t packed[2];
    uint32_t sums[1];
    weir_tensor source = tensor_2d("w", WEIR_U16, 1, 4, data);
    weir_convert_args args = args_for("test_fails", &source, 1);
    args.outputs[0] = packed;
    args.outputs[1] = sums;
    assert_int_equal(weir_convert(&args), WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "conversion 'test_fails': its kernel failed: not "
                                           "supported by this build, device or peer");
}

static void registered_rows_are_tiled_on_their_own_border(void **state)
{
    (void)state;
    uint64_t seed = 28;
    assert_int_equal(weir_conversion_register(&pairs), WEIR_OK);
    const size_t shapes[][2] = { { 1, 1 }, { 9, 9001 }, { 1030, 777 }, { 4000, 64 } };
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        size_t rows = shapes[s][0], cols = shapes[s][1];
        uint16_t *data = malloc(rows * cols * 2);
        const void **pointers = malloc(rows * sizeof(void *));
        for (size_t i = 0; i < rows * cols; i++)
            data[i] = (uint16_t)next_random(&seed);
        for (size_t r = 0; r < rows; r++)
            pointers[r] = data + r * cols;
        weir_tensor source = tensor_2d("w", WEIR_U16, rows, cols, data);
        check_all_ways(args_for("test_pairs", &source, 1), 0);
        /* ... and the bytes of the whole matrix as one tile. */
        converted got;
        must_convert(&got, args_for("test_pairs", &source, 1), 0);
        guarded out = guarded_make(got.out[0].n_bytes, 0),
                sums = guarded_make(got.out[1].n_bytes, 0);
        weir_tile tile = { .dtype = WEIR_U16,
                           .rows = pointers,
                           .n_rows = rows,
                           .n_cols = cols,
                           .out = { { out.data, (cols + 1) / 2 },
                                    { sums.data, (cols + 31) / 32 * 4 } } };
        assert_int_equal(pairs_c(&tile), WEIR_OK);
        assert_memory_equal(out.data, got.out[0].data, out.n_bytes);
        assert_memory_equal(sums.data, got.out[1].data, sums.n_bytes);
        guarded_free(&out);
        guarded_free(&sums);
        converted_free(&got);
        free(data);
        free(pointers);
    }
}

/* Two F4 share a byte: rows of an odd number of them cannot be written apart. */
static void rows_that_end_within_a_byte_are_refused(void **state)
{
    (void)state;
    weir_conversion nibbles = pairs;
    nibbles.name = "test_nibbles";
    nibbles.n_outputs = 1;
    nibbles.outputs[0] = (weir_conversion_output){ "weight", WEIR_F4, 1, 1 };
    uint16_t in[12] = { 0 }, out[12];
    weir_tensor source = tensor_2d("w", WEIR_U16, 4, 3, in);
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    args.conversion = &nibbles;
    args.sources = &source;
    args.n_sources = 1;
    args.outputs[0] = out;
    assert_error(&args, "test_nibbles: a row of weight would end within a byte");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_and_kernels_do_not_change_a_byte),
        cmocka_unit_test(stacks_of_matrices_are_converted_matrix_by_matrix),
        cmocka_unit_test(fused_sources_equal_their_concatenation),
        cmocka_unit_test(a_block_across_two_sources_has_one_scale),
        cmocka_unit_test(both_expert_forms_give_the_same_bytes),
        cmocka_unit_test(sources_of_several_dtypes_meet_in_fp32),
        cmocka_unit_test(misaligned_sources_are_taken),
        cmocka_unit_test(the_first_nonfinite_element_is_named_whatever_the_threads),
        cmocka_unit_test(indexes_count_in_the_source_not_the_destination),
        cmocka_unit_test(buffers_must_be_those_of_the_conversion),
        cmocka_unit_test(wrong_shapes_and_dtypes_are_named),
        cmocka_unit_test(sources_that_do_not_fit_together_are_named),
        cmocka_unit_test(args_of_another_size_are_understood_or_refused),
        cmocka_unit_test(empty_tensors_convert_to_nothing),
        cmocka_unit_test(a_second_conversion_allocates_nothing),
        cmocka_unit_test(running_out_of_memory_is_reported),
        cmocka_unit_test(a_registered_kernel_that_fails_is_named),
        cmocka_unit_test(registered_rows_are_tiled_on_their_own_border),
        cmocka_unit_test(rows_that_end_within_a_byte_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
