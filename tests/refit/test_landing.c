/* SPDX-License-Identifier: Apache-2.0 */
/* test_landing.c - boxes of parameters land, are verified and change places with what was there:
 * plans of a replica that has no sources, made by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "refit/replica.h"
#include "weir/cuda.h"

#define MAX_COPIES 16
#define N_SOURCES 2
#define MIB ((uint64_t)1 << 20)

/* A box of a parameter that a source holds; contiguous there, from source_offset on. */
typedef struct box {
    uint32_t source, parameter;
    uint64_t source_offset;
    weir_box box;
} box;

typedef struct bench {
    weir_replica replica;
    weir_pool *pool;
    unsigned char *bytes[N_SOURCES]; /* that sources hold */
    weir_remote remotes[N_SOURCES];
    weir_remote_region regions[N_SOURCES], *region_of[N_SOURCES];
    weir_participant participants[N_SOURCES];
    weir_shard shards[N_SOURCES][MAX_COPIES];
    weir_plan_copy planned[MAX_COPIES];
    weir_tensor live[4];
    weir_parameter wanted[4];
    uint64_t staging_offset[4];
    unsigned char *memory[4]; /* of the parameters, host memory whatever the replica's is */
} bench;

static uint32_t on_host = WEIR_MEMORY_HOST, on_gpu = WEIR_MEMORY_CUDA;

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

static uint64_t bytes_of(weir_dtype dtype, weir_shape shape)
{
    uint64_t n_bytes;
    must(weir_tensor_bytes(dtype, &shape, &n_bytes));
    return n_bytes;
}

static void fill(unsigned char *bytes, uint64_t n_bytes, uint32_t seed)
{
    for (uint64_t i = 0; i < n_bytes; i++) {
        seed = seed * 1664525u + 1013904223u;
        bytes[i] = (unsigned char)(seed >> 24);
    }
}

/* ---- the bench -------------------------------------------------------------------------------*/

/* Four parameters: a matrix of 44 rows of which 4 are padding, experts, a vector, and a matrix of
 * rows that take several tasks. */
static const weir_shape shapes[4] = {
    { 2, { 44, 96 } }, { 3, { 4, 6, 10 } }, { 1, { 30 } }, { 2, { 6, 6000001 } }
};
static const weir_dtype dtypes[4] = { WEIR_U8, WEIR_F32, WEIR_BF16, WEIR_U8 };

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

static void open_parameter(bench *b, size_t i)
{
    uint64_t n_bytes = bytes_of(dtypes[i], shapes[i]);
    void *data;
    must(weir_work_allocate(b->replica.work, n_bytes, &data));
    b->memory[i] = malloc(n_bytes);
    assert_non_null(b->memory[i]);
    b->live[i] = (weir_tensor){ "p", dtypes[i], shapes[i], data };
    b->wanted[i] = (weir_parameter){ .name = "p", .dtype = dtypes[i], .shape = shapes[i] };
}

static bench *open_bench(void **state, weir_install_mode mode)
{
    uint32_t memory = *(uint32_t *)*state;
    if (memory == WEIR_MEMORY_CUDA && !have_gpu())
        skip();
    bench *b = calloc(1, sizeof(*b));
    assert_non_null(b);
    weir_replica *replica = &b->replica;
    must(weir_pool_open(3, &b->pool));
    must(weir_work_open(memory, 0, b->pool, &replica->work));
    must(weir_task_open(replica->work, &replica->derive));
    replica->worker.pool = b->pool;
    replica->worker.timeout_ms = 10000;
    replica->mode = mode;
    replica->live = b->live;
    replica->wanted = b->wanted;
    replica->staging_offset = b->staging_offset;
    replica->n_parameters = 4;
    for (size_t i = 0; i < 4; i++)
        open_parameter(b, i);
    replica->schedule.participants = b->participants;
    replica->schedule.n_participants = N_SOURCES;
    for (size_t s = 0; s < N_SOURCES; s++) {
        b->bytes[s] = malloc(64 * MIB);
        assert_non_null(b->bytes[s]);
        b->region_of[s] = &b->regions[s];
        b->remotes[s] = (weir_remote){ .shards = b->shards[s], .regions = &b->region_of[s] };
        snprintf(b->remotes[s].who, sizeof(b->remotes[s].who), "trainer rank %zu", s);
        b->participants[s].remote = &b->remotes[s];
    }
    return b;
}

static void close_bench(bench *b)
{
    weir_landing_close(&b->replica.schedule.landing);
    weir_staging_close(&b->replica);
    weir_task_close(b->replica.derive);
    for (size_t i = 0; i < 4; i++) {
        weir_work_free(b->replica.work, b->live[i].data, bytes_of(dtypes[i], shapes[i]));
        free(b->memory[i]);
    }
    for (size_t s = 0; s < N_SOURCES; s++)
        free(b->bytes[s]);
    weir_work_close(b->replica.work);
    weir_pool_close(b->pool);
    free(b);
}

static void move(bench *b, void *to, const void *from, uint64_t n_bytes)
{
    weir_work_copy copy = { to, from, n_bytes };
    must(weir_task_copy(b->replica.derive, WEIR_LANE_MOVE, &copy, 1));
    must(weir_task_wait(b->replica.derive, 10000));
}

/* What all parameters hold, to compare with. */
static void put_live(bench *b, uint32_t seed)
{
    for (size_t i = 0; i < 4; i++) {
        uint64_t n_bytes = bytes_of(dtypes[i], shapes[i]);
        fill(b->memory[i], n_bytes, seed + (uint32_t)i);
        move(b, b->live[i].data, b->memory[i], n_bytes);
    }
}

static void expect_live(bench *b, unsigned char *const *wanted)
{
    for (size_t i = 0; i < 4; i++) {
        uint64_t n_bytes = bytes_of(dtypes[i], shapes[i]);
        unsigned char *found = malloc(n_bytes);
        assert_non_null(found);
        move(b, found, b->live[i].data, n_bytes);
        assert_memory_equal(found, wanted[i], n_bytes);
        free(found);
    }
}

/* ---- plans -----------------------------------------------------------------------------------*/

/* Bytes of one step along an axis. */
static uint64_t stride(uint32_t parameter, uint32_t axis)
{
    uint64_t n = weir_dtype_bits(dtypes[parameter]) / 8;
    for (uint32_t d = axis + 1; d < shapes[parameter].rank; d++)
        n *= shapes[parameter].dim[d];
    return n;
}

/* The innermost axis that a box does not take whole: its runs are the steps of the one before. */
static weir_plan_copy plan_box(const box *at)
{
    uint32_t rank = at->box.rank, axis = rank - 1;
    weir_shape shape = weir_box_shape(&at->box);
    weir_plan_copy copy = { .source = at->source,
                            .source_offset = at->source_offset,
                            .parameter = at->parameter,
                            .n_bytes = bytes_of(dtypes[at->parameter], shape) };
    while (axis > 0 && shape.dim[axis] == shapes[at->parameter].dim[axis])
        axis--;
    for (uint32_t d = 0; d < rank; d++)
        copy.parameter_offset += at->box.lo[d] * stride(at->parameter, d);
    copy.run_bytes = shape.dim[axis] * stride(at->parameter, axis);
    copy.pitch_bytes = axis > 0 ? stride(at->parameter, axis - 1) : 0;
    return copy;
}

/* Digests and packed places; boxes come sorted by source and offset, and with them the plan. */
static void plan(bench *b, const box *boxes, size_t n)
{
    weir_schedule *schedule = &b->replica.schedule;
    uint32_t n_shards[N_SOURCES] = { 0 };
    weir_landing_close(&schedule->landing);
    for (size_t i = 0; i < n; i++) {
        weir_plan_copy *copy = &b->planned[i];
        *copy = plan_box(&boxes[i]);
        copy->shard = n_shards[copy->source]++;
        weir_shard *shard = &b->shards[copy->source][copy->shard];
        *shard = (weir_shard){ .name = "some.weight",
                               .dtype = dtypes[copy->parameter],
                               .box = boxes[i].box };
        weir_tensor sent = { "sent", shard->dtype, weir_box_shape(&shard->box),
                             b->bytes[copy->source] + copy->source_offset };
        must(weir_digest_tensor(NULL, &sent, &shard->digest));
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < n; k++) {
            if (b->planned[k].parameter == b->planned[i].parameter &&
                b->planned[k].parameter_offset < b->planned[i].parameter_offset)
                b->planned[i].packed_offset += b->planned[k].n_bytes;
        }
    }
    schedule->planned = b->planned;
    schedule->n_copies = n;
    must(weir_landing_open(&b->replica));
}

/* What the parameters hold once the boxes are in. */
static void write_boxes(bench *b, const box *boxes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        weir_plan_copy copy = plan_box(&boxes[i]);
        for (uint64_t at = 0; at < copy.n_bytes; at += copy.run_bytes)
            memcpy(b->memory[copy.parameter] + copy.parameter_offset +
                       at / copy.run_bytes * copy.pitch_bytes,
                   b->bytes[copy.source] + copy.source_offset + at, copy.run_bytes);
    }
}

/* Stands for the transport. */
static void read_all(bench *b)
{
    const weir_schedule *schedule = &b->replica.schedule;
    must(weir_staging_open(&b->replica));
    weir_landing_aim(&b->replica);
    for (size_t p = 0; p < N_SOURCES; p++) {
        const weir_participant *participant = &schedule->participants[p];
        for (size_t i = 0; i < participant->n_reads; i++) {
            const weir_copy *read = &schedule->landing.reads[participant->first_read + i];
            assert_ptr_equal(read->remote, &b->regions[p]);
            if (b->replica.mode == WEIR_INSTALL_DIRECT)
                move(b, read->local, b->bytes[p] + read->offset, read->n_bytes);
            else
                memcpy(read->local, b->bytes[p] + read->offset, read->n_bytes);
        }
    }
}

/* Columns, rows of several experts, whole experts and long rows, from two sources. */
#define BOX2(r0, c0, r1, c1) \
    {                        \
        2, { r0, c0 },       \
        {                    \
            r1, c1           \
        }                    \
    }
#define BOX3(e0, r0, c0, e1, r1, c1) \
    {                                \
        3, { e0, r0, c0 },           \
        {                            \
            e1, r1, c1               \
        }                            \
    }
static const box mixed[] = {
    { 0, 0, 0, BOX2(0, 0, 40, 40) },         { 0, 1, 2000, BOX3(0, 0, 0, 3, 2, 10) },
    { 0, 2, 4000, { 1, { 0 }, { 11 } } },    { 0, 3, MIB, BOX2(0, 0, 6, 2500000) },
    { 1, 0, 0, BOX2(0, 40, 20, 96) },        { 1, 0, 1120, BOX2(20, 40, 40, 96) },
    { 1, 1, 2300, BOX3(0, 2, 0, 3, 6, 10) }, { 1, 1, 4000, BOX3(3, 0, 0, 4, 6, 10) },
    { 1, 2, 5000, { 1, { 11 }, { 30 } } },   { 1, 3, MIB, BOX2(0, 2500000, 6, 6000001) },
};
#define N_MIXED (sizeof(mixed) / sizeof(*mixed))
/* The same parameters by another trainer: whole rows. */
static const box whole[] = {
    { 0, 0, 0, BOX2(0, 0, 20, 96) },       { 0, 0, 1920, BOX2(20, 0, 40, 96) },
    { 0, 2, 4000, { 1, { 0 }, { 30 } } },  { 1, 1, 0, BOX3(0, 0, 0, 4, 6, 10) },
    { 1, 3, MIB, BOX2(0, 0, 6, 6000001) },
};
#define N_WHOLE (sizeof(whole) / sizeof(*whole))

static void fill_sources(bench *b, uint32_t seed)
{
    for (uint32_t s = 0; s < N_SOURCES; s++)
        fill(b->bytes[s], 64 * MIB, seed + s);
}

/* ---- exchanging ------------------------------------------------------------------------------*/

static void an_exchange_fills_the_boxes_and_a_second_one_takes_it_back(void **state)
{
    bench *b = open_bench(state, WEIR_INSTALL_STAGED);
    unsigned char *before[4];
    put_live(b, 1);
    for (size_t i = 0; i < 4; i++) {
        before[i] = malloc(bytes_of(dtypes[i], shapes[i]));
        assert_non_null(before[i]);
        memcpy(before[i], b->memory[i], bytes_of(dtypes[i], shapes[i]));
    }
    fill_sources(b, 100);
    plan(b, mixed, N_MIXED);
    read_all(b);
    must(weir_landing_verify(&b->replica));
    expect_live(b, before);
    must(weir_exchange(&b->replica));
    write_boxes(b, mixed, N_MIXED);
    assert_memory_equal(b->memory[0] + 40 * 96, before[0] + 40 * 96, 4 * 96); /* padding */
    expect_live(b, b->memory);
    must(weir_exchange(&b->replica));
    expect_live(b, before);
    for (size_t i = 0; i < 4; i++)
        free(before[i]);
    close_bench(b);
}

/* What an exchange replaced lies in staging by the plan of that exchange: the version that it would
 * bring back is the one before, whatever plan that came by. */
static void an_exchange_of_another_plan_is_taken_back_too(void **state)
{
    bench *b = open_bench(state, WEIR_INSTALL_STAGED);
    put_live(b, 1);
    fill_sources(b, 100);
    plan(b, mixed, N_MIXED);
    read_all(b);
    must(weir_exchange(&b->replica));
    write_boxes(b, mixed, N_MIXED);
    expect_live(b, b->memory);
    fill_sources(b, 200);
    plan(b, whole, N_WHOLE);
    read_all(b);
    must(weir_landing_verify(&b->replica));
    must(weir_exchange(&b->replica));
    must(weir_exchange(&b->replica));
    expect_live(b, b->memory);
    must(weir_exchange(&b->replica));
    write_boxes(b, whole, N_WHOLE);
    expect_live(b, b->memory);
    close_bench(b);
}

static void a_second_refit_by_one_plan_allocates_nothing(void **state)
{
    static const weir_install_mode modes[] = { WEIR_INSTALL_STAGED, WEIR_INSTALL_DIRECT };
    for (size_t m = 0; m < 2; m++) {
        bench *b = open_bench(state, modes[m]);
        put_live(b, 1);
        fill_sources(b, 100);
        plan(b, mixed, N_MIXED);
        for (int refit = 0; refit < 2; refit++) {
            uint64_t before = weir_alloc_count();
            read_all(b);
            must(weir_landing_verify(&b->replica));
            if (modes[m] == WEIR_INSTALL_STAGED)
                must(weir_exchange(&b->replica));
            if (refit == 1)
                assert_int_equal(weir_alloc_count(), before);
        }
        close_bench(b);
    }
}

/* ---- reading ---------------------------------------------------------------------------------*/

static void direct_reads_land_run_by_run_and_are_verified_there(void **state)
{
    bench *b = open_bench(state, WEIR_INSTALL_DIRECT);
    put_live(b, 1);
    fill_sources(b, 100);
    plan(b, mixed, N_MIXED);
    read_all(b);
    write_boxes(b, mixed, N_MIXED);
    expect_live(b, b->memory);
    must(weir_landing_verify(&b->replica));
    close_bench(b);
}

static void reads_are_sorted_and_neighbours_on_both_sides_are_one(void **state)
{
    bench *b = open_bench(state, WEIR_INSTALL_STAGED);
    plan(b, whole, N_WHOLE);
    must(weir_staging_open(&b->replica));
    weir_landing_aim(&b->replica);
    assert_int_equal(b->participants[0].n_reads, 2); /* two boxes are one run of rows */
    assert_int_equal(b->replica.schedule.landing.reads[0].n_bytes, 40 * 96);
    assert_int_equal(b->participants[1].first_read, 2);
    assert_int_equal(b->participants[1].n_reads, 2);
    assert_int_equal(b->replica.schedule.landing.n_swaps, 4);
    plan(b, mixed, N_MIXED);
    must(weir_staging_open(&b->replica));
    weir_landing_aim(&b->replica);
    assert_int_equal(b->participants[0].n_reads, 4);
    assert_int_equal(b->participants[1].n_reads, 5); /* rows below rows, packed */
    b->replica.mode = WEIR_INSTALL_DIRECT;
    plan(b, mixed, N_MIXED);
    weir_landing_aim(&b->replica);
    assert_int_equal(b->participants[0].n_reads, 40 + 3 + 1 + 6);
    assert_int_equal(b->participants[1].n_reads, 40 + 3 + 1 + 1 + 6);
    for (size_t p = 0; p < N_SOURCES; p++) {
        const weir_copy *reads = b->replica.schedule.landing.reads + b->participants[p].first_read;
        for (size_t i = 1; i < b->participants[p].n_reads; i++)
            assert_true(reads[i - 1].offset + reads[i - 1].n_bytes <= reads[i].offset);
    }
    close_bench(b);
}

static void a_plan_without_bytes_needs_nothing(void **state)
{
    bench *b = open_bench(state, WEIR_INSTALL_STAGED);
    static const box empty[] = { { 0, 0, 0, BOX2(0, 0, 0, 96) } };
    put_live(b, 1);
    plan(b, empty, 0);
    read_all(b);
    must(weir_landing_verify(&b->replica));
    must(weir_exchange(&b->replica));
    plan(b, empty, 1);
    read_all(b);
    must(weir_landing_verify(&b->replica));
    must(weir_exchange(&b->replica));
    assert_int_equal(b->participants[0].n_reads, 0);
    expect_live(b, b->memory);
    close_bench(b);
}

/* ---- verifying -------------------------------------------------------------------------------*/

/* Every box is looked at, its last byte as its first; padding is nobody's. */
static void a_damaged_byte_is_found_wherever_it_landed(void **state)
{
    static const weir_install_mode modes[] = { WEIR_INSTALL_STAGED, WEIR_INSTALL_DIRECT };
    for (size_t m = 0; m < 2; m++) {
        bench *b = open_bench(state, modes[m]);
        put_live(b, 1);
        fill_sources(b, 100);
        plan(b, mixed, N_MIXED);
        for (size_t i = 0; i < N_MIXED; i++) {
            unsigned char *sent = b->bytes[mixed[i].source] + mixed[i].source_offset;
            uint64_t last = b->planned[i].n_bytes - 1;
            sent[0] ^= 1;
            read_all(b);
            assert_int_equal(weir_landing_verify(&b->replica), WEIR_ERR_CORRUPT);
            assert_non_null(strstr(weir_last_error(), "digest of some.weight differs"));
            sent[0] ^= 1;
            sent[last] ^= 0x80;
            read_all(b);
            assert_int_equal(weir_landing_verify(&b->replica), WEIR_ERR_CORRUPT);
            sent[last] ^= 0x80;
        }
        read_all(b);
        ((unsigned char *)b->live[0].data)[43 * 96] ^= 1;
        must(weir_landing_verify(&b->replica));
        close_bench(b);
    }
}

static void running_out_of_memory_is_reported_and_leaves_nothing(void **state)
{
    bench *b = open_bench(state, WEIR_INSTALL_STAGED);
    plan(b, mixed, N_MIXED);
    for (uint64_t n = 1; n <= 3; n++) {
        weir_landing_close(&b->replica.schedule.landing);
        weir_alloc_fail_at(n);
        assert_int_equal(weir_landing_open(&b->replica), WEIR_ERR_NO_MEMORY);
        assert_null(b->replica.schedule.landing.reads);
    }
    weir_alloc_fail_at(0);
    must(weir_landing_open(&b->replica));
    weir_alloc_fail_at(1);
    assert_int_equal(weir_staging_open(&b->replica), WEIR_ERR_NO_MEMORY);
    assert_non_null(strstr(weir_last_error(), "staging of"));
    weir_alloc_fail_at(0);
    must(weir_staging_open(&b->replica));
    close_bench(b);
}

#define ON(f, memory, where)                                             \
    {                                                                    \
        .name = #f " " where, .test_func = f, .initial_state = &(memory) \
    }
#define ON_BOTH(f) ON(f, on_host, "on the host"), ON(f, on_gpu, "on a GPU")

/* A pattern as argument: the cases to run. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        ON_BOTH(an_exchange_fills_the_boxes_and_a_second_one_takes_it_back),
        ON_BOTH(an_exchange_of_another_plan_is_taken_back_too),
        ON_BOTH(a_second_refit_by_one_plan_allocates_nothing),
        ON_BOTH(direct_reads_land_run_by_run_and_are_verified_there),
        ON(reads_are_sorted_and_neighbours_on_both_sides_are_one, on_host, "on the host"),
        ON_BOTH(a_plan_without_bytes_needs_nothing),
        ON(a_damaged_byte_is_found_wherever_it_landed, on_host, "on the host"),
        ON(running_out_of_memory_is_reported_and_leaves_nothing, on_host, "on the host"),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
