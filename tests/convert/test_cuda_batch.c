/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_batch.c - batches on a GPU against the C reference, byte for byte; skipped without one.
 */
#include "base/alloc.h"
#include "convert/cuda_case.h"
#include "convert/view_case.h"

static const char *const conversions[] = { "fp8_128x128", "cutlass_fp8_e4m3_per_channel",
                                           "bf16_cast", "fp32_cast", "neg_exp" };
static const weir_dtype dtypes[] = { WEIR_BF16, WEIR_F16, WEIR_F32 };

/* ---- cases -----------------------------------------------------------------------------------*/

static void add_random(cuda_rig *rig, uint64_t *seed, weir_shape shape, size_t n_sources,
                       size_t n_experts, size_t offset)
{
    weir_tensor sources[64];
    bool mixed = random_below(seed, 8) == 0;
    weir_dtype dtype = dtypes[random_below(seed, 3)];
    regime kind = (regime)random_below(seed, N_REGIMES);
    size_t n = n_sources * (n_experts != 0 ? n_experts : 1);
    assert_true(n <= 64);
    uint64_t rows[8];
    for (size_t i = 0; i < n_sources; i++)
        rows[i] = shape.rank < 2 ? 0 : 1 + random_below(seed, shape.dim[shape.rank - 2]);
    const char *conversion = conversions[random_below(seed, 5)];
    for (size_t i = 0; i < n; i++) {
        weir_shape own = shape;
        if (n_sources > 1 && own.rank >= 2)
            own.dim[own.rank - 2] = rows[i % n_sources];
        sources[i] =
            rig_tensor(rig, "w", mixed ? dtypes[random_below(seed, 3)] : dtype, own, kind, seed);
    }
    weir_convert_args args = args_for(conversion, sources, n_sources);
    args.n_experts = n_experts;
    args.axis = n_experts != 0 ? 1 : shape.rank >= 2 ? shape.rank - 2 : 0;
    args.round_masters = random_below(seed, 2) == 1;
    args.propagate = random_below(seed, 4) == 0;
    cuda_case *c = rig_add(rig, args, offset);
    if (c->want_status == WEIR_ERR_NONFINITE) { /* fp32 beyond bf16, refused: another test's */
        converted_free(&c->want);
        c->host.propagate = c->device.propagate = true;
        c->want_status = convert_into(&c->want, c->host, 0);
    }
}

static weir_shape random_shape(uint64_t *seed, size_t rank, bool whole)
{
    const size_t rows[] = { 1, 2, 127, 128, 129, 300, 64, 17 };
    const size_t cols[] = { 8, 128, 136, 256, 1024, 1000, 2048, 2304 };
    weir_shape shape = { (uint32_t)rank, { 1, 1, 1, 1 } };
    for (size_t d = 0; d + 2 < rank; d++)
        shape.dim[d] = 1 + random_below(seed, 5);
    if (rank >= 2)
        shape.dim[rank - 2] =
            random_below(seed, 2) ? rows[random_below(seed, 8)] : 1 + random_below(seed, 260);
    shape.dim[rank - 1] = whole ? cols[random_below(seed, 8)] : 1 + random_below(seed, 700);
    return shape;
}

static void random_shapes_in_one_batch_equal_the_reference(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 20251;
    for (int round = 0; round < 12; round++) {
        for (int i = 0; i < 60; i++) {
            size_t form = random_below(&seed, 4), n_sources = 1 + random_below(&seed, 3);
            bool whole = random_below(&seed, 3) != 0;
            size_t offset = random_below(&seed, 6) == 0 ? 4 : 0;
            add_random(rig, &seed, random_shape(&seed, form == 3 ? 3 : 2, whole),
                       form == 0 ? 1 : n_sources, form == 2 ? 1 + random_below(&seed, 6) : 0,
                       offset);
        }
        rig_check(rig);
        rig_clear(rig);
    }
    rig_close(rig);
}

/* The GPU has the views, the reference their contiguous copies. */
static cuda_case *add_views(cuda_rig *rig, const views *v, weir_convert_args args, size_t offset)
{
    cuda_case *c = rig_add(rig, args, offset);
    for (size_t i = 0; i < v->n; i++) {
        unsigned char *block = rig_device(rig, v->block_bytes[i] + 1);
        must(weir_cuda_copy(0, block, v->blocks[i], v->block_bytes[i], rig->stream));
        c->device_sources[i].data = block + ((unsigned char *)v->wide[i].data - v->blocks[i]);
    }
    c->device.source_pitches = v->pitches;
    return c;
}

/* Half of them lie on 16 bytes, so that they are read as contiguous ones are. */
static void add_random_views(cuda_rig *rig, views *v, uint64_t *seed)
{
    size_t n_sources = 1 + random_below(seed, 3), n_experts = random_below(seed, 4), heights[3];
    bool whole = random_below(seed, 2) == 0, mixed = random_below(seed, 8) == 0;
    size_t n_cols = random_shape(seed, 2, whole).dim[1];
    weir_dtype dtype = dtypes[random_below(seed, 3)];
    for (size_t i = 0; i < n_sources; i++)
        heights[i] = random_shape(seed, 2, true).dim[0];
    for (size_t i = 0; i < n_sources * (n_experts != 0 ? n_experts : 1); i++) {
        weir_dtype own = mixed ? dtypes[random_below(seed, 3)] : dtype;
        size_t element_bytes = weir_dtype_bits(own) / 8, row_bytes = n_cols * element_bytes;
        view_placing at = { 16 * random_below(seed, 9), row_bytes + 16 * random_below(seed, 99) };
        if (!whole)
            at = (view_placing){ element_bytes * random_below(seed, 30),
                                 random_pitch(row_bytes, element_bytes, seed) };
        views_add(v, "w", own, heights[i % n_sources], n_cols, at, NORMAL, seed);
    }
    weir_convert_args args = args_for(conversions[random_below(seed, 5)], v->dense, n_sources);
    args.n_experts = n_experts;
    args.axis = n_experts != 0;
    args.round_masters = random_below(seed, 2) == 1;
    args.propagate = random_below(seed, 2) == 1;
    add_views(rig, v, args, random_below(seed, 6) == 0 ? 4 : 0);
}

static void views_of_wider_matrices_equal_contiguous_copies(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    static views all[60];
    cuda_rig *rig = rig_open();
    uint64_t seed = 13;
    for (int round = 0; round < 6; round++) {
        for (int i = 0; i < 60; i++)
            add_random_views(rig, &all[i], &seed);
        rig_check(rig);
        rig_clear(rig);
        for (int i = 0; i < 60; i++)
            views_free(&all[i]);
    }
    rig_close(rig);
}

/* A row that no tile holds, read twice; and one that several tiles share. */
static void views_with_long_rows_equal_contiguous_copies(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    static views all[2 * 3 * 4];
    cuda_rig *rig = rig_open();
    uint64_t seed = 14;
    const size_t cols[] = { 16392, 32769 };
    for (size_t i = 0; i < 24; i++) {
        weir_dtype dtype = dtypes[i / 2 % 3];
        size_t element_bytes = weir_dtype_bits(dtype) / 8, n_cols = cols[i % 2];
        views_add(&all[i], "w", dtype, 9, n_cols,
                  (view_placing){ 32, (n_cols + 8) * element_bytes }, NORMAL, &seed);
        add_views(rig, &all[i], args_for(conversions[i / 6], all[i].dense, 1), 0);
    }
    rig_check(rig);
    rig_close(rig);
    for (size_t i = 0; i < 24; i++)
        views_free(&all[i]);
}

static void casts_of_any_rank_and_joined_vectors_equal_the_reference(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 3;
    for (int i = 0; i < 120; i++) {
        size_t rank = 1 + random_below(&seed, 4), n = rank == 1 ? 1 + random_below(&seed, 3) : 1;
        weir_tensor sources[3];
        weir_dtype dtype = dtypes[random_below(&seed, 3)];
        for (size_t k = 0; k < n; k++) {
            weir_shape shape = random_shape(&seed, rank, random_below(&seed, 2) == 0);
            sources[k] =
                rig_tensor(rig, "v", dtype, shape, (regime)random_below(&seed, N_REGIMES), &seed);
        }
        weir_convert_args args = args_for(conversions[2 + random_below(&seed, 2)], sources, n);
        args.propagate = true;
        rig_add(rig, args, 0);
    }
    rig_check(rig);
    rig_close(rig);
}

static void rows_of_every_length_equal_the_reference(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 4;
    const size_t cols[] = { 1,    8,     512,   520,   1024,  2048,  2056,  4096, 7168,
                            8192, 16384, 16392, 18432, 28672, 32769, 70000, 65536 };
    for (size_t i = 0; i < sizeof(cols) / sizeof(cols[0]); i++) {
        for (size_t d = 0; d < 3; d++) {
            weir_shape shape = { 2, { 9, cols[i] } };
            weir_tensor source = rig_tensor(rig, "w", dtypes[d], shape, NORMAL, &seed);
            for (size_t k = 0; k < 4; k++) {
                weir_convert_args args = args_for(conversions[k], &source, 1);
                args.round_masters = i % 2 == 0;
                rig_add(rig, args, 0);
            }
        }
    }
    rig_check(rig);
    rig_close(rig);
}

/* ---- every bf16 ------------------------------------------------------------------------------*/

/* Rows of 16384 patterns each, those beyond the row's first left out. */
static void every_bf16_under_every_scale_has_its_code(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    const uint32_t exponents[] = { 0x01, 0x56, 0x7F, 0xFE };
    const size_t n_rows = 4 * 128 * 4, n_cols = 16384;
    uint16_t *data = rig_host(rig, n_rows * n_cols * 2);
    for (size_t r = 0; r < n_rows; r++) {
        uint32_t top = exponents[r / 512] << 7 | (r / 4 % 128);
        uint32_t quarter = (uint32_t)(r % 4);
        for (uint32_t c = 0; c < n_cols; c++) {
            uint32_t bits = quarter * 16384 + c;
            data[r * n_cols + c] = (uint16_t)((bits & 0x7FFF) > top ? top : bits);
        }
        data[r * n_cols] = (uint16_t)top;
    }
    weir_tensor source = tensor_2d("all", WEIR_BF16, n_rows, n_cols, data);
    for (size_t k = 0; k < 3; k++)
        rig_add(rig, args_for(conversions[k], &source, 1), 0);
    /* The same as fp32, both ways. */
    float *masters = rig_host(rig, n_rows * n_cols * 4);
    for (size_t i = 0; i < n_rows * n_cols; i++)
        masters[i] = weir_float_from_bf16(data[i]);
    weir_tensor master = tensor_2d("all32", WEIR_F32, n_rows, n_cols, masters);
    for (int rounded = 0; rounded <= 1; rounded++) {
        weir_convert_args args = args_for(conversions[1], &master, 1);
        args.round_masters = rounded != 0;
        rig_add(rig, args, 0);
    }
    rig_check(rig);
    rig_close(rig);
}

static void every_fp16_and_many_fp32_have_their_codes(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 6;
    uint16_t *halves = rig_host(rig, 65536 * 2);
    for (uint32_t i = 0; i < 65536; i++)
        halves[i] = (uint16_t)i;
    weir_tensor half = tensor_2d("halves", WEIR_F16, 256, 256, halves);
    for (size_t k = 0; k < 4; k++) {
        weir_convert_args args = args_for(conversions[k], &half, 1);
        args.propagate = true;
        rig_add(rig, args, 0);
    }
    for (int kind = 0; kind < N_REGIMES; kind++) {
        weir_shape shape = { 2, { 2048, 4096 } };
        weir_tensor source = rig_tensor(rig, "f", WEIR_F32, shape, (regime)kind, &seed);
        for (size_t k = 0; k < 2; k++) {
            weir_convert_args args = args_for(conversions[k], &source, 1);
            rig_add(rig, args, 0);
        }
    }
    rig_check(rig);
    rig_close(rig);
}

/* ---- not finite ------------------------------------------------------------------------------*/

static const struct {
    weir_dtype dtype;
    uint32_t bits;
} refused[] = { { WEIR_BF16, 0x7FC1 },    { WEIR_BF16, 0xFF80 },     { WEIR_F16, 0x7C00 },
                { WEIR_F16, 0xFE00 },     { WEIR_F32, 0xFFC00001u }, { WEIR_F32, 0x7F800000u },
                { WEIR_F32, 0x7F7FFFFFu } };

static void a_refused_weight_is_named_as_on_the_cpu(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 7;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        for (size_t k = 0; k < 4; k++) {
            for (size_t n_cols = 300; n_cols <= 304; n_cols += 4) {
                weir_tensor sources[3];
                for (size_t s = 0; s < 3; s++) {
                    weir_shape shape = { 2, { 100, n_cols } };
                    sources[s] = rig_tensor(rig, s == 2 ? "model.up_proj.weight" : "gate",
                                            refused[i].dtype, shape, NORMAL, &seed);
                }
                put_bits(sources[2].data, refused[i].dtype, 7 * n_cols + 33, refused[i].bits);
                put_bits(sources[2].data, refused[i].dtype, 7 * n_cols + 40, refused[i].bits);
                weir_convert_args good = args_for(conversions[k], sources, 2);
                weir_convert_args bad = args_for(conversions[k], sources, 3);
                good.round_masters = bad.round_masters = true;
                rig_add(rig, good, 0);
                cuda_case *c = rig_add(rig, bad, 0);
                weir_status want = c->want_status;
                char line[512];
                snprintf(line, sizeof(line), "%s", want == WEIR_OK ? "" : weir_last_error());
                assert_int_equal(rig_run(rig), want);
                if (want != WEIR_OK)
                    assert_string_equal(weir_last_error(), line);
                rig_clear(rig);
            }
        }
    }
    rig_close(rig);
}

static void a_refused_weight_of_a_view_is_counted_within_it(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 15;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        for (size_t k = 0; k < 8; k++) {
            size_t element_bytes = weir_dtype_bits(refused[i].dtype) / 8;
            views v = { 0 };
            views_add(&v, "gate", refused[i].dtype, 100, 304, (view_placing){ 0, 0 }, NORMAL,
                      &seed);
            views_add(&v, "up", refused[i].dtype, 100, 304,
                      (view_placing){ 48, (k % 2 ? 320 : 333) * element_bytes }, NORMAL, &seed);
            views_put(&v, 1, 93, 33, refused[i].bits);
            views_put(&v, 1, 99, 303, refused[i].bits);
            weir_convert_args args = args_for(conversions[k / 2], v.dense, 2);
            args.round_masters = true;
            weir_status want = add_views(rig, &v, args, 0)->want_status;
            char line[512];
            snprintf(line, sizeof(line), "%s", want == WEIR_OK ? "" : weir_last_error());
            assert_int_equal(rig_run(rig), want);
            if (want != WEIR_OK)
                assert_string_equal(weir_last_error(), line);
            rig_clear(rig);
            views_free(&v);
        }
    }
    rig_close(rig);
}

static void propagated_weights_have_the_bytes_of_the_reference(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 8;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        for (size_t n_cols = 300; n_cols <= 304; n_cols += 4) {
            weir_shape shape = { 3, { 2, 150, n_cols } };
            weir_tensor source = rig_tensor(rig, "w", refused[i].dtype, shape, NORMAL, &seed);
            for (int n = 0; n < 5; n++)
                put_bits(source.data, refused[i].dtype, random_below(&seed, 300 * n_cols),
                         refused[i].bits);
            for (size_t k = 0; k < 4; k++) {
                weir_convert_args args = args_for(conversions[k], &source, 1);
                args.propagate = true;
                args.round_masters = k % 2 == 0;
                rig_add(rig, args, 0);
            }
        }
    }
    rig_check(rig);
    rig_close(rig);
}

/* ---- golden files ----------------------------------------------------------------------------*/

static void check_golden_file(cuda_rig *rig, const char *conversion, bool full)
{
    char file[256];
    snprintf(file, sizeof(file), "%s.input.safetensors", conversion);
    weir_checkpoint *input = golden_open(file, full);
    if (input == NULL)
        return;
    size_t n;
    const weir_tensor *sources = weir_checkpoint_tensors(input, &n);
    assert_true(n >= 30 && n <= MAX_CASES);
    for (size_t i = 0; i < n; i++) {
        weir_convert_args args = args_for(conversion, &sources[i], 1);
        args.propagate = true;
        rig_add(rig, args, 0); /* the reference equals the golden bytes: test_fp8_block.c */
    }
    rig_check(rig);
    rig_clear(rig);
    weir_checkpoint_close(input);
}

static void golden_sources_give_golden_bytes(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    for (int full = 0; full <= 1; full++)
        for (size_t k = 0; k < 2; k++)
            check_golden_file(rig, conversions[k], full);
    rig_close(rig);
}

/* ---- the handle ------------------------------------------------------------------------------*/

static void a_second_start_allocates_nothing_and_follows_new_addresses(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 9;
    for (int i = 0; i < 4; i++)
        add_random(rig, &seed, (weir_shape){ 2, { 200, 512 } }, 2, 0, 0);
    rig_check(rig);
    uint64_t before = weir_alloc_count();
    for (int i = 0; i < 3; i++)
        must(rig_run(rig));
    for (size_t i = 0; i < rig->n_cases;
         i++) { /* other outputs: the old ones must not be written */
        cuda_case *c = &rig->cases[i];
        must(weir_cuda_fill(0, c->out[0].data, 0x11, c->out[0].n_bytes, rig->stream));
    }
    assert_int_equal(weir_alloc_count(), before);
    for (size_t i = 0; i < rig->n_cases; i++) {
        cuda_case *c = &rig->cases[i];
        c->out[0] = rig_output(rig, c->want.out[0].n_bytes, 0);
        c->device.outputs[0] = c->out[0].data;
    }
    before = weir_alloc_count();
    rig_check(rig);
    assert_int_equal(weir_alloc_count(), before);
    rig_close(rig);
}

static void bad_calls_are_refused_and_leave_the_batch_good(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 10;
    add_random(rig, &seed, (weir_shape){ 2, { 200, 512 } }, 1, 0, 0);
    rig->args[0] = rig->cases[0].device;
    must(weir_cuda_batch_start(rig->batch, rig->args, 1, rig->stream));
    assert_int_equal(weir_cuda_batch_start(rig->batch, rig->args, 1, rig->stream), WEIR_ERR_BUSY);
    must(weir_cuda_batch_wait(rig->batch));
    assert_int_equal(weir_cuda_batch_test(rig->batch), WEIR_OK);

    rig->args[0].sources = rig->cases[0].host_sources; /* plain host memory */
    assert_int_equal(weir_cuda_batch_start(rig->batch, rig->args, 1, rig->stream),
                     WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "cannot reach"));
    rig->args[0] = rig->cases[0].device;
    rig->args[0].outputs[0] = NULL;
    assert_int_equal(weir_cuda_batch_start(rig->batch, rig->args, 1, rig->stream),
                     WEIR_ERR_INVALID);
    rig->args[0].size = 0;
    assert_int_equal(weir_cuda_batch_start(rig->batch, rig->args, 1, rig->stream),
                     WEIR_ERR_INVALID);
    must(weir_cuda_batch_start(rig->batch, rig->args, 0, rig->stream));
    weir_cuda_batch *none = NULL;
    assert_int_equal(weir_cuda_batch_open(4096, &none), WEIR_ERR_DEVICE);
    assert_null(none);
    rig_check(rig);
    rig_close(rig);
}

/* Kernels overlap in any stream. */
static void the_default_stream_will_do(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 12;
    weir_cuda_stream_close(0, rig->stream);
    rig->stream = NULL;
    for (int i = 0; i < 8; i++)
        add_random(rig, &seed, (weir_shape){ 2, { 2000, 512 } }, 1, 0, 0);
    for (int i = 0; i < 20; i++)
        rig_check(rig);
    rig_close(rig);
}

static void empty_tensors_have_empty_digests(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 11;
    const weir_shape shapes[] = { { 2, { 0, 16 } }, { 2, { 16, 0 } }, { 3, { 0, 4, 8 } } };
    for (size_t i = 0; i < 3; i++) {
        for (size_t k = 0; k < 4; k++) {
            weir_tensor source = rig_tensor(rig, "none", WEIR_BF16, shapes[i], NORMAL, &seed);
            rig_add(rig, args_for(conversions[k], &source, 1), 0);
        }
    }
    add_random(rig, &seed, (weir_shape){ 2, { 20, 512 } }, 1, 0, 0);
    rig_check(rig);
    rig_close(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_shapes_in_one_batch_equal_the_reference),
        cmocka_unit_test(views_of_wider_matrices_equal_contiguous_copies),
        cmocka_unit_test(views_with_long_rows_equal_contiguous_copies),
        cmocka_unit_test(casts_of_any_rank_and_joined_vectors_equal_the_reference),
        cmocka_unit_test(rows_of_every_length_equal_the_reference),
        cmocka_unit_test(every_bf16_under_every_scale_has_its_code),
        cmocka_unit_test(every_fp16_and_many_fp32_have_their_codes),
        cmocka_unit_test(a_refused_weight_is_named_as_on_the_cpu),
        cmocka_unit_test(a_refused_weight_of_a_view_is_counted_within_it),
        cmocka_unit_test(propagated_weights_have_the_bytes_of_the_reference),
        cmocka_unit_test(golden_sources_give_golden_bytes),
        cmocka_unit_test(a_second_start_allocates_nothing_and_follows_new_addresses),
        cmocka_unit_test(bad_calls_are_refused_and_leave_the_batch_good),
        cmocka_unit_test(the_default_stream_will_do),
        cmocka_unit_test(empty_tensors_have_empty_digests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
