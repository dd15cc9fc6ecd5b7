/* SPDX-License-Identifier: Apache-2.0 */
/* test_work.c - work gives the same bytes, digests and errors on host memory and on a GPU. Every
 * case that a GPU could differ in runs on both; without a GPU its half skips aloud. */
#include "refit/work.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "weir/cuda.h"

#define WAIT_MS 20000u
#define MIB ((size_t)1 << 20)
#define MAX_BLOCKS 64

static uint32_t on_host = WEIR_MEMORY_HOST, on_gpu = WEIR_MEMORY_CUDA;

/* A work with one task, and what was allocated through it. */
typedef struct bench {
    weir_pool *pool;
    weir_work *work;
    weir_task *task;
    struct {
        void *data;
        size_t n_bytes;
    } blocks[MAX_BLOCKS];
    size_t n_blocks;
} bench;

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

static void expect_error(weir_status status, weir_status wanted, const char *line)
{
    if (status != wanted || strstr(weir_last_error(), line) == NULL)
        fail_msg("got %s '%s', wanted %s '%s'", weir_status_name(status), weir_last_error(),
                 weir_status_name(wanted), line);
}

static bool have_gpu(void)
{
    unsigned n = 0;
    if (weir_cuda_devices(&n) == WEIR_OK)
        return true;
    if (getenv("WEIR_TEST_REQUIRE_GPU") != NULL)
        fail_msg("a GPU is required: %s", weir_last_error());
    print_message("SKIPPED: %s\n", weir_last_error());
    return false;
}

/* Skips the case where it is a GPU's and there is none. */
static bench open_bench_of(void **state, unsigned n_threads)
{
    uint32_t memory = *(uint32_t *)*state;
    bench b = { 0 };
    if (memory == WEIR_MEMORY_CUDA && !have_gpu())
        skip();
    must(weir_pool_open(n_threads, &b.pool));
    must(weir_work_open(memory, 0, b.pool, &b.work));
    must(weir_task_open(b.work, &b.task));
    assert_int_equal(weir_work_memory(b.work), memory);
    assert_int_equal(weir_work_device(b.work), 0);
    return b;
}

static bench open_bench(void **state)
{
    return open_bench_of(state, 3);
}

static void close_bench(bench *b)
{
    weir_task_close(b->task);
    for (size_t i = 0; i < b->n_blocks; i++)
        weir_work_free(b->work, b->blocks[i].data, b->blocks[i].n_bytes);
    weir_work_close(b->work);
    weir_pool_close(b->pool);
}

static void *make(bench *b, size_t n_bytes)
{
    void *data = NULL;
    assert_true(b->n_blocks < MAX_BLOCKS);
    must(weir_work_allocate(b->work, n_bytes, &data));
    b->blocks[b->n_blocks].data = data;
    b->blocks[b->n_blocks++].n_bytes = n_bytes;
    return data;
}

static void copy(bench *b, void *to, const void *from, size_t n_bytes)
{
    weir_work_copy one = { to, from, n_bytes };
    must(weir_task_copy(b->task, WEIR_LANE_MOVE, &one, 1));
    must(weir_task_wait(b->task, WAIT_MS));
}

static void *put(bench *b, const void *bytes, size_t n_bytes)
{
    void *data = make(b, n_bytes);
    copy(b, data, bytes, n_bytes);
    return data;
}

static void expect_bytes(bench *b, const void *data, const void *wanted, size_t n_bytes)
{
    void *got = malloc(n_bytes);
    assert_non_null(got);
    copy(b, got, data, n_bytes);
    assert_memory_equal(got, wanted, n_bytes);
    free(got);
}

/* ---- values ----------------------------------------------------------------------------------*/

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Any bytes. */
static unsigned char *random_bytes(size_t n_bytes, uint32_t seed)
{
    unsigned char *bytes = malloc(n_bytes + 1);
    assert_non_null(bytes);
    for (size_t i = 0; i < n_bytes; i++)
        bytes[i] = (unsigned char)next_random(&seed);
    return bytes;
}

/* bf16 numbers around one. */
static uint16_t *random_bf16(size_t n, uint32_t seed)
{
    uint16_t *values = malloc(n * 2 + 1);
    assert_non_null(values);
    for (size_t i = 0; i < n; i++) {
        uint32_t r = next_random(&seed);
        values[i] = (uint16_t)((0x3E00u + r % 0x300u) | (r & 0x400000u ? 0x8000u : 0));
    }
    return values;
}

/* ---- conversions -----------------------------------------------------------------------------*/

#define N_CONVERTED 3
#define MAX_OUT (256 * 1024)

/* Three weights under three conversions; what weir_convert() makes of them on the host. */
typedef struct converted {
    uint16_t *values[N_CONVERTED];
    weir_tensor host[N_CONVERTED], there[N_CONVERTED];
    weir_convert_args args[N_CONVERTED]; /* to give to the task */
    unsigned char *wanted[N_CONVERTED][2];
    size_t n_bytes[N_CONVERTED][2];
    weir_digest digests[N_CONVERTED][WEIR_MAX_OUTPUTS], got[N_CONVERTED][WEIR_MAX_OUTPUTS];
} converted;

static void add_converted(bench *b, converted *c, size_t i, const char *conversion,
                          weir_shape shape)
{
    uint64_t n;
    must(weir_shape_elements(&shape, &n));
    c->values[i] = random_bf16(n, (uint32_t)i);
    c->host[i] = (weir_tensor){ "w", WEIR_BF16, shape, c->values[i] };
    c->there[i] = (weir_tensor){ "w", WEIR_BF16, shape, put(b, c->values[i], n * 2) };
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    must(weir_conversion_get(conversion, &args.conversion));
    args.sources = &c->host[i];
    args.n_sources = 1;
    args.digests = c->digests[i];
    args.first_words[0] = i * 1000;
    c->args[i] = args;
    for (size_t o = 0; o < args.conversion->n_outputs; o++) {
        weir_shape out;
        uint64_t n_bytes;
        must(weir_conversion_output_shape(args.conversion, o, &shape, &out));
        must(weir_tensor_bytes(args.conversion->outputs[o].dtype, &out, &n_bytes));
        c->n_bytes[i][o] = n_bytes;
        c->wanted[i][o] = args.outputs[o] = malloc(n_bytes);
        c->args[i].outputs[o] = make(b, n_bytes);
    }
    must(weir_convert(&args));
    c->args[i].sources = &c->there[i];
    c->args[i].digests = c->got[i];
}

static converted make_converted(bench *b)
{
    converted c = { 0 };
    add_converted(b, &c, 0, "fp8_128x128", (weir_shape){ 2, { 300, 512 } });
    add_converted(b, &c, 1, "cutlass_fp8_e4m3_per_channel", (weir_shape){ 3, { 3, 40, 256 } });
    add_converted(b, &c, 2, "fp32_cast", (weir_shape){ 1, { 1003 } });
    return c;
}

static void check_converted(bench *b, converted *c)
{
    for (size_t i = 0; i < N_CONVERTED; i++) {
        c->args[i].sources = &c->there[i]; /* the arrays may have moved since */
        for (size_t o = 0; o < c->args[i].conversion->n_outputs; o++) {
            expect_bytes(b, c->args[i].outputs[o], c->wanted[i][o], c->n_bytes[i][o]);
            assert_true(weir_digest_equal(&c->got[i][o], &c->digests[i][o]));
        }
    }
}

static void aim_converted(converted *c)
{
    for (size_t i = 0; i < N_CONVERTED; i++) {
        c->args[i].sources = &c->there[i];
        c->args[i].digests = c->got[i];
        memset(c->got[i], 0, sizeof(c->got[i]));
    }
}

static void free_converted(converted *c)
{
    for (size_t i = 0; i < N_CONVERTED; i++) {
        free(c->values[i]);
        free(c->wanted[i][0]);
        free(c->wanted[i][1]);
    }
}

static void conversions_give_the_bytes_and_digests_of_weir_convert(void **state)
{
    bench b = open_bench(state);
    converted c = make_converted(&b);
    for (int turn = 0; turn < 2; turn++) {
        aim_converted(&c);
        must(weir_task_convert(b.task, WEIR_LANE_COMPUTE, c.args, N_CONVERTED));
        must(weir_task_wait(b.task, WAIT_MS));
        check_converted(&b, &c);
    }
    free_converted(&c);
    close_bench(&b);
}

static void a_refused_weight_is_told_once_when_asked(void **state)
{
    bench b = open_bench(state);
    converted c = make_converted(&b);
    aim_converted(&c);
    const uint16_t nan = 0x7FC0;
    copy(&b, (uint16_t *)c.there[1].data + 256 * 40 + 7, &nan, 2);
    must(weir_task_convert(b.task, WEIR_LANE_COMPUTE, c.args, N_CONVERTED));
    weir_fail(WEIR_ERR_BUSY, "something else");
    expect_error(weir_task_wait(b.task, WAIT_MS), WEIR_ERR_NONFINITE, "w[1, 0, 7] is NaN");
    must(weir_task_test(b.task));
    copy(&b, (uint16_t *)c.there[1].data + 256 * 40 + 7, c.values[1] + 256 * 40 + 7, 2);
    must(weir_task_convert(b.task, WEIR_LANE_COMPUTE, c.args, N_CONVERTED));
    must(weir_task_wait(b.task, WAIT_MS));
    check_converted(&b, &c);
    free_converted(&c);
    close_bench(&b);
}

static void a_failure_that_nobody_saw_stops_what_would_follow(void **state)
{
    bench b = open_bench(state);
    converted c = make_converted(&b);
    weir_task *other = NULL;
    aim_converted(&c);
    const uint16_t infinite = 0xFF80;
    copy(&b, c.there[0].data, &infinite, 2);
    must(weir_task_open(b.work, &other));
    must(weir_task_convert(b.task, WEIR_LANE_COMPUTE, c.args, 1));
    must(weir_task_mark(other, WEIR_LANE_COMPUTE));
    must(weir_task_wait(other, WAIT_MS));
    expect_error(weir_task_mark(b.task, WEIR_LANE_COMPUTE), WEIR_ERR_NONFINITE, "w[0, 0] is -Inf");
    must(weir_task_mark(b.task, WEIR_LANE_COMPUTE));
    must(weir_task_wait(b.task, WAIT_MS));
    weir_task_close(other);
    free_converted(&c);
    close_bench(&b);
}

static void a_bad_call_is_refused_at_once_and_leaves_the_task_good(void **state)
{
    bench b = open_bench(state);
    converted c = make_converted(&b);
    aim_converted(&c);
    void *out = c.args[2].outputs[0];
    c.args[2].outputs[0] = NULL;
    expect_error(weir_task_convert(b.task, WEIR_LANE_COMPUTE, c.args, N_CONVERTED),
                 WEIR_ERR_INVALID, "fp32_cast");
    must(weir_task_test(b.task));
    weir_digest digest;
    weir_work_range range = { "codes", c.there[0].data, 1, 64, 0, WEIR_F8_E4M3, true, &digest };
    expect_error(weir_task_digest(b.task, WEIR_LANE_COMPUTE, &range, 1), WEIR_ERR_INVALID,
                 "codes has dtype F8_E4M3");
    c.args[2].outputs[0] = out;
    must(weir_task_convert(b.task, WEIR_LANE_COMPUTE, c.args, N_CONVERTED));
    must(weir_task_wait(b.task, WAIT_MS));
    check_converted(&b, &c);
    free_converted(&c);
    close_bench(&b);
}

/* ---- digests ---------------------------------------------------------------------------------*/

/* Rows of all kinds, one range behind the other, each on 8 bytes. */
static const struct {
    uint64_t n_rows, row_bytes, first_word;
} forms[] = {
    { 1, 8, 0 },       { 7, 24, 5 },          { 0, 16, 9 },          { 5, 0, 9 },
    { 3, 10, 2 },      { 4097, 2048, 77 },    { 1, 3 * MIB, 1 },     { 2, 3 * MIB + 8, 3 },
    { 3, 1 * MIB, 4 }, { 5, MIB / 2 + 2, 6 }, { 1, 5 * MIB + 6, 0 }, { 1000, 6, 1u << 30 },
};
#define N_FORMS (sizeof(forms) / sizeof(forms[0]))

static void digests_are_those_of_the_rows_at_their_places(void **state)
{
    bench b = open_bench(state);
    weir_work_range ranges[N_FORMS];
    weir_digest got[N_FORMS], wanted[N_FORMS];
    size_t n_bytes = 0, at = 0;
    for (size_t i = 0; i < N_FORMS; i++)
        n_bytes += (forms[i].n_rows * forms[i].row_bytes + 7) / 8 * 8;
    unsigned char *bytes = random_bytes(n_bytes, 3), *there = put(&b, bytes, n_bytes);
    for (size_t i = 0; i < N_FORMS; i++) {
        wanted[i] = (weir_digest){ 0, 0 };
        got[i] = (weir_digest){ 1, 1 };
        weir_digest_rectangle(&wanted[i], bytes + at, forms[i].row_bytes, forms[i].n_rows,
                              forms[i].row_bytes, forms[i].first_word,
                              weir_digest_words_per_row(forms[i].row_bytes));
        ranges[i] = (weir_work_range){ .name = "range",
                                       .data = there + at,
                                       .n_rows = forms[i].n_rows,
                                       .row_bytes = forms[i].row_bytes,
                                       .first_word = forms[i].first_word,
                                       .digest = &got[i] };
        at += (forms[i].n_rows * forms[i].row_bytes + 7) / 8 * 8;
    }
    must(weir_task_digest(b.task, WEIR_LANE_COMPUTE, ranges, N_FORMS));
    must(weir_task_wait(b.task, WAIT_MS));
    for (size_t i = 0; i < N_FORMS; i++) {
        if (!weir_digest_equal(&got[i], &wanted[i]))
            fail_msg("range %zu has another digest", i);
    }
    free(bytes);
    close_bench(&b);
}

static void what_is_not_finite_is_named_with_its_place(void **state)
{
    static const struct {
        weir_dtype dtype;
        uint64_t n_rows, row_bytes, element;
        uint32_t bits;
        const char *line; /* NULL: it is finite */
    } cases[] = {
        { WEIR_BF16, 3, 40, 0, 0x7F80, "w[0] is +Inf" },
        { WEIR_BF16, 3, 40, 59, 0xFF81, "w[59] is NaN" },
        { WEIR_BF16, 3, 40, 59, 0xFF7F, NULL },
        { WEIR_F16, 1, 3 * MIB, 1500001, 0xFC00, "w[1500001] is -Inf" },
        { WEIR_F16, 1, 3 * MIB, 1500001, 0x7BFF, NULL },
        { WEIR_F32, 700, 4096, 700 * 1024 - 1, 0x7F800001, "w[716799] is NaN" },
        { WEIR_F32, 700, 4096, 700 * 1024 - 1, 0x7F7FFFFF, NULL },
    };
    bench b = open_bench(state);
    unsigned char *zero = calloc(1, 3 * MIB), *there = make(&b, 3 * MIB);
    unsigned char *clean = make(&b, 256);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t element_bytes = weir_dtype_bits(cases[i].dtype) / 8;
        weir_digest digests[2], wanted = { 0, 0 };
        weir_work_range ranges[] = {
            { "zero", clean, 4, 64, 0, WEIR_BF16, true, &digests[0] },
            { "w", there, cases[i].n_rows, cases[i].row_bytes, 0, cases[i].dtype, true,
              &digests[1] },
        };
        copy(&b, there, zero, 3 * MIB);
        weir_digest_add(&wanted, zero, cases[i].n_rows, cases[i].row_bytes);
        copy(&b, there + cases[i].element * element_bytes, &cases[i].bits, element_bytes);
        must(weir_task_digest(b.task, WEIR_LANE_COMPUTE, ranges, 2));
        weir_status status = weir_task_wait(b.task, WAIT_MS);
        if (cases[i].line == NULL) {
            must(status);
            assert_false(weir_digest_equal(&digests[1], &wanted));
        } else {
            expect_error(status, WEIR_ERR_NONFINITE, cases[i].line);
        }
        ranges[1].check = false;
        must(weir_task_digest(b.task, WEIR_LANE_COMPUTE, ranges + 1, 1));
        must(weir_task_wait(b.task, WAIT_MS));
    }
    free(zero);
    close_bench(&b);
}

/* ---- copies, lanes ---------------------------------------------------------------------------*/

static void copies_follow_each_other(void **state)
{
    bench b = open_bench(state);
    unsigned char *bytes = random_bytes(4 * MIB, 1);
    unsigned char *from = put(&b, bytes, 4 * MIB), *to = make(&b, 4 * MIB);
    const weir_work_copy copies[] = {
        { to, from, 4 * MIB },
        { to + 10, to + MIB, 0 },
        { from, to + 2 * MIB, MIB + 1 },
        { to, from, MIB + 1 },
    };
    must(weir_task_copy(b.task, WEIR_LANE_KEEP, copies, 4));
    must(weir_task_wait(b.task, WAIT_MS));
    memcpy(bytes, bytes + 2 * MIB, MIB + 1);
    expect_bytes(&b, to, bytes, 4 * MIB);
    free(bytes);
    close_bench(&b);
}

typedef weir_status (*row_copier)(weir_task *task, weir_lane lane, const weir_work_rows *rows,
                                  size_t n_rows);

/* 300 rows of 1,000 bytes leave their gaps alone; one row needs no pitch, no row no memory. */
static void check_rows(void **state, row_copier start)
{
    bench b = open_bench(state);
    unsigned char *bytes = random_bytes(MIB, 1), *wanted = random_bytes(MIB, 2);
    unsigned char *from = put(&b, bytes, MIB), *to = put(&b, wanted, MIB);
    const weir_work_rows rows[] = {
        { to + 5, from, 1000, 300, 1003, 1000 },
        { to + 400000, from + 7, 1000, 300, 1000, 3001 },
        { to + 800000, from, 1000, 1, 0, 0 },
        { NULL, NULL, 1000, 0, 1000, 1000 },
    };
    must(start(b.task, WEIR_LANE_KEEP, rows, 4));
    must(weir_task_wait(b.task, WAIT_MS));
    for (size_t r = 0; r < 300; r++) {
        memcpy(wanted + 5 + r * 1003, bytes + r * 1000, 1000);
        memcpy(wanted + 400000 + r * 1000, bytes + 7 + r * 3001, 1000);
    }
    memcpy(wanted + 800000, bytes, 1000);
    expect_bytes(&b, to, wanted, MIB);
    free(bytes);
    free(wanted);
    close_bench(&b);
}

static void rows_are_copied_a_pitch_apart(void **state)
{
    check_rows(state, weir_task_copy_rows);
}

static void rows_are_scattered(void **state)
{
    check_rows(state, weir_task_scatter);
}

static void a_lane_that_was_told_to_wait_sees_what_was_made(void **state)
{
    bench b = open_bench(state);
    converted c = make_converted(&b);
    weir_task *mover = NULL;
    unsigned char *kept = make(&b, c.n_bytes[0][0]);
    aim_converted(&c);
    must(weir_task_open(b.work, &mover));
    must(weir_task_convert(b.task, WEIR_LANE_COMPUTE, c.args, N_CONVERTED));
    must(weir_work_after(b.work, WEIR_LANE_MOVE, WEIR_LANE_COMPUTE));
    must(weir_work_after(b.work, WEIR_LANE_MOVE, WEIR_LANE_MOVE));
    weir_work_copy move = { kept, c.args[0].outputs[0], c.n_bytes[0][0] };
    must(weir_task_copy(mover, WEIR_LANE_MOVE, &move, 1));
    must(weir_task_wait(mover, WAIT_MS));
    assert_int_not_equal(weir_task_test(b.task), WEIR_IN_PROGRESS);
    expect_bytes(&b, kept, c.wanted[0][0], c.n_bytes[0][0]);
    for (int lane = 0; lane < WEIR_N_LANES; lane++)
        assert_int_equal(weir_work_stream(b.work, (weir_lane)lane) != NULL,
                         weir_work_memory(b.work) == WEIR_MEMORY_CUDA);
    weir_task_close(mover);
    free_converted(&c);
    close_bench(&b);
}

static void a_task_without_work_has_ended(void **state)
{
    bench b = open_bench(state);
    must(weir_task_test(b.task));
    must(weir_task_wait(b.task, 0));
    must(weir_task_convert(b.task, WEIR_LANE_COMPUTE, NULL, 0));
    must(weir_task_digest(b.task, WEIR_LANE_COMPUTE, NULL, 0));
    must(weir_task_copy(b.task, WEIR_LANE_COMPUTE, NULL, 0));
    must(weir_task_test(b.task));
    weir_task_close(NULL);
    weir_work_close(NULL);
    weir_work_free(b.work, NULL, 10);
    weir_work_free_host(b.work, NULL, 10);
    close_bench(&b);
}

/* ---- derived parameters ----------------------------------------------------------------------*/

static void check_derived(bench *b, weir_dtype dtype, const weir_shape *scale_shape)
{
    const weir_derived kinds[] = {
        { .kind = WEIR_DERIVED_MLA_W_UV,
          .n_heads = 3,
          .nope_dim = 48,
          .v_dim = 40,
          .lora_rank = 136 },
        { .kind = WEIR_DERIVED_MLA_W_UK_T,
          .n_heads = 3,
          .nope_dim = 48,
          .v_dim = 40,
          .lora_rank = 136 },
    };
    size_t n = 3 * 88 * 136;
    uint16_t *values = random_bf16(n, 9), *wanted = malloc(n * 2);
    float scales[264];
    for (size_t i = 0; i < 264; i++)
        scales[i] = 0.25f * (float)(i + 1);
    if (dtype == WEIR_F8_E4M3) {
        for (size_t i = 0; i < n; i++)
            ((unsigned char *)values)[i] = (unsigned char)(values[i] % 0x7F);
    }
    void *from = put(b, values, n * 2), *out = make(b, n * 2);
    const float *scale = scale_shape != NULL ? put(b, scales, sizeof(scales)) : NULL;
    for (size_t k = 0; k < 2; k++) {
        size_t n_out = 3 * 136 * (k == 0 ? 40 : 48);
        must(weir_derived_compute(&kinds[k], dtype, values, scale_shape != NULL ? scales : NULL,
                                  scale_shape, wanted));
        weir_work_derivation derivation = { &kinds[k], dtype, from, scale, scale_shape, out };
        must(weir_task_derive(b->task, WEIR_LANE_COMPUTE, &derivation, 1));
        must(weir_task_wait(b->task, WAIT_MS));
        expect_bytes(b, out, wanted, n_out * 2);
    }
    free(values);
    free(wanted);
}

static void derived_parameters_are_those_of_weir_derived_compute(void **state)
{
    bench b = open_bench(state);
    check_derived(&b, WEIR_BF16, NULL);
    check_derived(&b, WEIR_F8_E4M3, &(weir_shape){ 2, { 3, 2 } });
    check_derived(&b, WEIR_F8_E4M3, &(weir_shape){ 1, { 264 } });
    close_bench(&b);
}

/* ---- memory ----------------------------------------------------------------------------------*/

static void memory_is_zeroed_counted_and_found_again(void **state)
{
    bench b = open_bench(state);
    unsigned char *zero = calloc(1, MIB + 3);
    uint64_t before = weir_alloc_count();
    void *data = make(&b, MIB + 3), *host = NULL;
    assert_true(weir_alloc_count() > before);
    expect_bytes(&b, data, zero, MIB + 3);
    uint32_t memory = 0;
    unsigned device = 77;
    must(weir_work_locate((char *)data + MIB, &memory, &device));
    assert_int_equal(memory, weir_work_memory(b.work));
    assert_int_equal(device, 0);
    before = weir_alloc_count();
    must(weir_work_allocate_host(b.work, MIB, &host));
    assert_true(weir_alloc_count() > before);
    memset(host, 0x5A, MIB);
    copy(&b, data, host, MIB);
    expect_bytes(&b, data, host, MIB);
    must(weir_work_locate(host, &memory, &device));
    assert_int_equal(memory, WEIR_MEMORY_HOST);
    weir_work_free_host(b.work, host, MIB);
    free(zero);
    close_bench(&b);
}

static void locating_host_memory_leaves_no_error_behind(void **state)
{
    (void)state;
    uint32_t memory = 0;
    unsigned device = 77;
    weir_fail(WEIR_ERR_BUSY, "what was there");
    must(weir_work_locate(&memory, &memory, &device));
    assert_int_equal(memory, WEIR_MEMORY_HOST);
    assert_int_equal(device, 0);
    must(weir_work_locate(NULL, &memory, &device));
    assert_int_equal(memory, WEIR_MEMORY_HOST);
    assert_string_equal(weir_last_error(), "what was there");
}

/* One thread: of several, some may get their first task, and their scratch, only later. */
static void a_second_use_allocates_nothing(void **state)
{
    bench b = open_bench_of(state, 1);
    converted c = make_converted(&b);
    weir_digest digest;
    weir_work_range range = { "w", c.there[0].data, 300, 1024, 0, WEIR_BF16, true, &digest };
    void *room = make(&b, 300 * 1024);
    weir_work_copy one = { room, c.there[0].data, 300 * 1024 };
    uint64_t before = 0;
    for (int turn = 0; turn < 3; turn++) {
        if (turn == 1)
            before = weir_alloc_count();
        aim_converted(&c);
        must(weir_task_convert(b.task, WEIR_LANE_COMPUTE, c.args, N_CONVERTED));
        must(weir_task_wait(b.task, WAIT_MS));
        must(weir_task_digest(b.task, WEIR_LANE_COMPUTE, &range, 1));
        must(weir_task_wait(b.task, WAIT_MS));
        must(weir_work_after(b.work, WEIR_LANE_MOVE, WEIR_LANE_COMPUTE));
        must(weir_task_copy(b.task, WEIR_LANE_MOVE, &one, 1));
        must(weir_task_wait(b.task, WAIT_MS));
        must(weir_task_mark(b.task, WEIR_LANE_KEEP));
        must(weir_task_wait(b.task, WAIT_MS));
    }
    assert_int_equal(weir_alloc_count(), before);
    free_converted(&c);
    close_bench(&b);
}

static void running_out_of_memory_is_reported_and_leaves_nothing(void **state)
{
    (void)state;
    unsigned char bytes[64] = { 0 };
    weir_digest digest;
    weir_work_range range = { "w", bytes, 8, 8, 0, WEIR_U8, false, &digest };
    weir_status status = WEIR_ERR_NO_MEMORY;
    uint64_t n = 0;
    while (status == WEIR_ERR_NO_MEMORY) {
        weir_work *work = NULL;
        weir_task *task = NULL;
        void *memory = NULL;
        weir_alloc_fail_at(++n);
        status = weir_work_open(WEIR_MEMORY_HOST, 0, NULL, &work);
        if (status == WEIR_OK)
            status = weir_task_open(work, &task);
        if (status == WEIR_OK)
            status = weir_task_digest(task, WEIR_LANE_COMPUTE, &range, 1);
        if (status == WEIR_OK)
            status = weir_work_allocate(work, 100, &memory);
        weir_alloc_fail_at(0);
        weir_work_free(work, memory, 100);
        weir_task_close(task);
        weir_work_close(work);
    }
    must(status);
    assert_int_equal(n, 5);
}

/* ---- what only one kind has ------------------------------------------------------------------*/

static void what_cannot_be_worked_on_is_refused_with_the_reason(void **state)
{
    (void)state;
    weir_work *work = NULL;
    unsigned n = 0;
    expect_error(weir_work_open(77, 0, NULL, &work), WEIR_ERR_INVALID, "77 is no kind of memory");
    if (weir_cuda_devices(&n) == WEIR_OK) {
        assert_int_equal(weir_work_open(WEIR_MEMORY_CUDA, n + 7, NULL, &work), WEIR_ERR_DEVICE);
    } else {
        char reason[256];
        snprintf(reason, sizeof(reason), "%s", weir_last_error());
        weir_fail(WEIR_ERR_BUSY, "something else");
        expect_error(weir_work_open(WEIR_MEMORY_CUDA, 0, NULL, &work), WEIR_ERR_UNSUPPORTED,
                     reason);
        assert_int_equal(strncmp(reason, "CUDA is off: ", 13), 0);
    }
    assert_null(work);
}

/* Copies that take a GPU some ten milliseconds. */
static void a_wait_ends_in_time_and_work_that_runs_is_not_disturbed(void **state)
{
    enum { N_COPIES = 100 };
    bench b = open_bench(state);
    weir_work_copy copies[N_COPIES];
    unsigned char *room = make(&b, 512 * MIB);
    for (size_t i = 0; i < N_COPIES; i++)
        copies[i] = (weir_work_copy){ room, room + 256 * MIB, 256 * MIB };
    must(weir_task_copy(b.task, WEIR_LANE_MOVE, copies, N_COPIES));
    assert_int_equal(weir_task_test(b.task), WEIR_IN_PROGRESS);
    expect_error(weir_task_wait(b.task, 1), WEIR_ERR_TIMED_OUT, "work on GPU 0 has not ended");
    expect_error(weir_task_mark(b.task, WEIR_LANE_MOVE), WEIR_ERR_BUSY, "before it had ended");
    must(weir_task_wait(b.task, WAIT_MS));
    must(weir_task_test(b.task));
    must(weir_task_copy(b.task, WEIR_LANE_MOVE, copies, N_COPIES));
    close_bench(&b); /* waits for what runs */
}

#define ON(f, memory, where)                                             \
    {                                                                    \
        .name = #f " " where, .test_func = f, .initial_state = &(memory) \
    }
#define ON_BOTH(f) ON(f, on_host, "on the host"), ON(f, on_gpu, "on a GPU")

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_BOTH(conversions_give_the_bytes_and_digests_of_weir_convert),
        ON_BOTH(a_refused_weight_is_told_once_when_asked),
        ON_BOTH(a_failure_that_nobody_saw_stops_what_would_follow),
        ON_BOTH(a_bad_call_is_refused_at_once_and_leaves_the_task_good),
        ON_BOTH(digests_are_those_of_the_rows_at_their_places),
        ON_BOTH(what_is_not_finite_is_named_with_its_place),
        ON_BOTH(copies_follow_each_other),
        ON_BOTH(rows_are_copied_a_pitch_apart),
        ON_BOTH(rows_are_scattered),
        ON_BOTH(a_lane_that_was_told_to_wait_sees_what_was_made),
        ON_BOTH(a_task_without_work_has_ended),
        ON_BOTH(derived_parameters_are_those_of_weir_derived_compute),
        ON_BOTH(memory_is_zeroed_counted_and_found_again),
        ON_BOTH(a_second_use_allocates_nothing),
        ON(a_wait_ends_in_time_and_work_that_runs_is_not_disturbed, on_gpu, "on a GPU"),
        cmocka_unit_test(locating_host_memory_leaves_no_error_behind),
        cmocka_unit_test(running_out_of_memory_is_reported_and_leaves_nothing),
        cmocka_unit_test(what_cannot_be_worked_on_is_refused_with_the_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
