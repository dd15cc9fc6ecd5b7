/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_scatter.c - the runs of rows to copy cover every byte once, and a GPU puts the bytes
 * where memcpy would. The plan needs no GPU; the rest is skipped without one. */
#include "convert/cuda/cuda_scatter.h"
#include "convert/cuda_case.h"

#define CASES 400
#define PIECES 40
#define AREA ((size_t)1 << 20)

static unsigned char image[4096] __attribute__((aligned(16)));

static const weir_cuda_scatter_job *jobs_of(const unsigned char *built)
{
    return (const weir_cuda_scatter_job *)(const void *)built;
}

/* How often each byte of the rows is copied, run by run as the kernel does. */
static void check_runs(const weir_rows *rows, uint32_t n_runs)
{
    const weir_cuda_scatter_job *job = jobs_of(image);
    unsigned char *seen = calloc(rows->n_rows, rows->row_bytes);
    assert_non_null(seen);
    for (uint32_t i = 0; i < n_runs; i++) {
        weir_cuda_scatter_run run = weir_cuda_scatter_run_of(job, i);
        assert_true(run.n_rows > 0 && run.n_bytes > 0);
        assert_true((uint64_t)run.n_rows * run.n_bytes <= WEIR_CUDA_SCATTER_BYTES);
        assert_true(run.at % job->unit_bytes == 0 && run.n_bytes % job->unit_bytes == 0);
        for (uint64_t r = run.row; r < run.row + run.n_rows; r++)
            for (uint64_t c = run.at; c < run.at + run.n_bytes; c++)
                seen[r * rows->row_bytes + c]++;
    }
    for (uint64_t i = 0; i < rows->n_rows * rows->row_bytes; i++)
        assert_int_equal(seen[i], 1);
    free(seen);
}

static void runs_cover_every_byte_once(void **state)
{
    (void)state;
    uint64_t seed = 77;
    for (int k = 0; k < CASES; k++) {
        bool is_long = random_below(&seed, 4) == 0;
        weir_rows rows = { .to = image,
                           .from = image,
                           .row_bytes = 1 + random_below(&seed, is_long ? 100000 : 300),
                           .n_rows = 1 + random_below(&seed, is_long ? 5 : 1000) };
        if (random_below(&seed, 2))
            rows.row_bytes = (rows.row_bytes + 15) / 16 * 16;
        rows.to_pitch = rows.from_pitch = rows.row_bytes;
        uint32_t n_runs;
        must(weir_cuda_scatter_plan(&rows, 1, image, &n_runs));
        assert_int_equal(jobs_of(image)->unit_bytes, rows.row_bytes % 16 == 0  ? 16
                                                     : rows.row_bytes % 4 == 0 ? 4
                                                                               : 1);
        check_runs(&rows, n_runs);
    }
}

static void runs_are_numbered_through_and_what_is_empty_has_none(void **state)
{
    (void)state;
    const weir_rows rows[] = {
        { image, image, 16384 + 1, 2, 20000, 20000 }, /* two of each */
        { NULL, NULL, 0, 5, 0, 0 },
        { image, image, 16, 1025, 32, 16 }, /* 1024 at once */
        { NULL, NULL, 16, 0, 16, 16 },
        { image, image + 2, 16, 1, 3, 5 }, /* of one row the pitches do not count */
    };
    uint32_t n_runs;
    must(weir_cuda_scatter_plan(rows, 5, image, &n_runs));
    const uint32_t *first_runs =
        (const uint32_t *)(const void *)(image + 5 * sizeof(weir_cuda_scatter_job));
    const uint32_t wanted[] = { 0, 4, 4, 6, 6 };
    assert_memory_equal(first_runs, wanted, sizeof(wanted));
    assert_int_equal(n_runs, 7);
    assert_int_equal(jobs_of(image)[2].unit_bytes, 16);
    assert_int_equal(jobs_of(image)[4].unit_bytes, 1);
}

static void more_than_a_launch_takes_is_refused(void **state)
{
    (void)state;
    uint32_t n_runs;
    const weir_rows rows[] = { { image, image, 16384, UINT64_MAX / 16384, 16384, 16384 },
                               { image, image, UINT64_MAX, 1, 0, 0 } };
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(weir_cuda_scatter_plan(&rows[i], 1, image, &n_runs), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "more than one launch takes"));
}

/* Pieces of all alignments, each in a place of its own at either end. */
static size_t make_pieces(uint64_t *seed, unsigned char *to, const unsigned char *from,
                          weir_rows *out)
{
    size_t n = 0, to_at = 0, from_at = 0;
    while (n < PIECES) {
        weir_rows rows = { .row_bytes = random_below(seed, random_below(seed, 5) ? 200 : 40000),
                           .n_rows = random_below(seed, 12) };
        size_t step = (size_t)1 << random_below(seed, 5);
        rows.row_bytes = rows.row_bytes / step * step;
        rows.to_pitch = rows.row_bytes + random_below(seed, 5) * step;
        rows.from_pitch = rows.row_bytes + random_below(seed, 5) * step;
        to_at = (to_at + 15) / 16 * 16 + random_below(seed, 3) * step;
        from_at = (from_at + 15) / 16 * 16 + random_below(seed, 3) * step;
        rows.to = to + to_at;
        rows.from = from + from_at;
        to_at += rows.n_rows * rows.to_pitch;
        from_at += rows.n_rows * rows.from_pitch;
        if (to_at > AREA || from_at > AREA)
            return n;
        out[n++] = rows;
    }
    return n;
}

static void a_gpu_puts_bytes_where_they_belong(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    unsigned char *from = rig_device(rig, AREA), *to = rig_device(rig, AREA);
    unsigned char *bytes = rig_host(rig, AREA), *wanted = rig_host(rig, AREA),
                  *found = rig_host(rig, AREA);
    uint64_t seed = 5;
    for (size_t i = 0; i < AREA; i++)
        bytes[i] = (unsigned char)random_below(&seed, 256);
    must(weir_cuda_copy(0, from, bytes, AREA, rig->stream));
    for (int k = 0; k < 60; k++) {
        weir_rows pieces[PIECES];
        size_t n = make_pieces(&seed, to, from, pieces);
        memset(wanted, 0xa5, AREA);
        must(weir_cuda_fill(0, to, 0xa5, AREA, rig->stream));
        must(weir_cuda_batch_scatter(rig->batch, pieces, n, rig->stream));
        must(weir_cuda_batch_wait(rig->batch));
        for (size_t i = 0; i < n; i++)
            for (uint64_t r = 0; r < pieces[i].n_rows; r++)
                memcpy(wanted + ((unsigned char *)pieces[i].to - to) + r * pieces[i].to_pitch,
                       bytes + ((const unsigned char *)pieces[i].from - from) +
                           r * pieces[i].from_pitch,
                       pieces[i].row_bytes);
        must(weir_cuda_copy(0, found, to, AREA, rig->stream));
        must(weir_cuda_stream_wait(0, rig->stream));
        assert_memory_equal(found, wanted, AREA);
    }
    rig_close(rig);
}

static void memory_that_the_gpu_cannot_reach_is_refused(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    unsigned char *there = rig_device(rig, 64), *here = malloc(64);
    const weir_rows rows[] = { { there, there + 32, 16, 1, 0, 0 },
                               { there + 16, here, 16, 1, 0, 0 } };
    assert_int_equal(weir_cuda_batch_scatter(rig->batch, rows, 2, rig->stream), WEIR_ERR_INVALID);
    must(weir_cuda_batch_scatter(rig->batch, rows, 1, rig->stream));
    assert_int_equal(weir_cuda_batch_scatter(rig->batch, rows, 1, rig->stream), WEIR_ERR_BUSY);
    must(weir_cuda_batch_wait(rig->batch));
    must(weir_cuda_batch_scatter(rig->batch, rows, 0, rig->stream));
    free(here);
    rig_close(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_cover_every_byte_once),
        cmocka_unit_test(runs_are_numbered_through_and_what_is_empty_has_none),
        cmocka_unit_test(more_than_a_launch_takes_is_refused),
        cmocka_unit_test(a_gpu_puts_bytes_where_they_belong),
        cmocka_unit_test(memory_that_the_gpu_cannot_reach_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
