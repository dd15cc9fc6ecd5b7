/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_magnitude.c - the runs of rows to measure cover every element once, and what a batch
 * cannot measure or join is refused. The plan needs no GPU; the rest is skipped without one.
 * tests/refit/test_magnitudes.c compares the kernels' results. */
#include "convert/cuda/cuda_magnitude.h"
#include "convert/cuda_case.h"

#define CASES 400

static unsigned char image[4096] __attribute__((aligned(16)));

static const weir_cuda_magnitude_job *jobs_of(const unsigned char *built)
{
    return (const weir_cuda_magnitude_job *)(const void *)built;
}

static weir_cuda_measure measure_of(weir_dtype dtype, const void *data, float *magnitudes)
{
    return (weir_cuda_measure){ .name = "weights",
                                .view = { .dtype = dtype,
                                          .data = data,
                                          .pitch_bytes = 256,
                                          .n_rows = 4,
                                          .n_cols = 64,
                                          .block_rows = 4,
                                          .block_cols = 64 },
                                .n_block_cols = 1,
                                .magnitudes = magnitudes };
}

/* Raises the magnitudes as the kernel does: run by run, over elements that are known by number. */
static uint32_t walk(const weir_cuda_magnitude_job *job, uint32_t n_runs, uint32_t *blocks,
                     unsigned char *seen)
{
    uint32_t n_wrong = 0;
    for (uint32_t i = 0; i < n_runs; i++) {
        weir_cuda_run run = weir_cuda_run_of(job, i);
        n_wrong += run.n_rows * run.n_cols > WEIR_CUDA_RUN_ELEMENTS;
        for (uint32_t r = run.row; r < run.row + run.n_rows; r++) {
            for (uint32_t c = run.col; c < run.col + run.n_cols; c++) {
                seen[r * job->n_cols + c]++;
                blocks[r * job->n_cols + c] = run.block;
            }
        }
    }
    return n_wrong;
}

static void runs_cover_every_element_once_within_its_block(void **state)
{
    (void)state;
    uint64_t seed = 51;
    for (int k = 0; k < CASES; k++) {
        float magnitude = 0;
        weir_cuda_measure measure = measure_of(WEIR_BF16, image, &magnitude);
        weir_magnitude_view *view = &measure.view;
        view->n_rows = 1 + (uint32_t)random_below(&seed, 300);
        view->n_cols = 1 + (uint32_t)random_below(&seed, random_below(&seed, 4) ? 300 : 9000);
        view->block_rows = 1 + (uint32_t)random_below(&seed, 130);
        view->block_cols = 1 + (uint32_t)random_below(&seed, random_below(&seed, 4) ? 130 : 9000);
        view->row = (uint32_t)random_below(&seed, 1000);
        view->col = (uint32_t)random_below(&seed, 1000);
        measure.n_block_cols = (view->col + view->n_cols - 1) / view->block_cols + 1;
        uint32_t n_runs;
        must(weir_cuda_measures_plan(&measure, 1, image, &n_runs));
        size_t n = (size_t)view->n_rows * view->n_cols;
        unsigned char *seen = calloc(n, 1);
        uint32_t *blocks = calloc(n, sizeof(*blocks));
        assert_true(seen != NULL && blocks != NULL);
        assert_int_equal(walk(jobs_of(image), n_runs, blocks, seen), 0);
        for (size_t i = 0; i < n; i++) {
            uint32_t row = view->row + (uint32_t)(i / view->n_cols);
            uint32_t col = view->col + (uint32_t)(i % view->n_cols);
            assert_int_equal(seen[i], 1);
            assert_int_equal(blocks[i], row / view->block_rows * measure.n_block_cols +
                                            col / view->block_cols);
        }
        free(seen);
        free(blocks);
    }
}

static void runs_are_numbered_through_and_empty_views_have_none(void **state)
{
    (void)state;
    float magnitude = 0;
    weir_cuda_measure measures[3] = { measure_of(WEIR_F32, image, &magnitude),
                                      measure_of(WEIR_F32, image, &magnitude),
                                      measure_of(WEIR_F16, image, &magnitude) };
    measures[0].view.n_rows = measures[2].view.n_rows = 100;
    measures[0].view.block_rows = measures[2].view.block_rows = 50;
    measures[1].view.n_rows = 0;
    uint32_t n_runs;
    must(weir_cuda_measures_plan(measures, 3, image, &n_runs));
    const uint32_t *first_runs =
        (const uint32_t *)(const void *)(image + 3 * sizeof(weir_cuda_magnitude_job));
    assert_int_equal(first_runs[0], 0); /* 2 blocks of 50 x 64, 32 x 64 a run */
    assert_int_equal(first_runs[1], 4);
    assert_int_equal(first_runs[2], 4);
    assert_int_equal(n_runs, 8);
}

static void expect_refused(const weir_cuda_measure *measure, weir_status status, const char *line)
{
    uint32_t n_runs;
    assert_int_equal(weir_cuda_measures_plan(measure, 1, image, &n_runs), status);
    if (strstr(weir_last_error(), line) == NULL)
        fail_msg("'%s' does not say '%s'", weir_last_error(), line);
}

static void what_cannot_be_measured_is_refused_by_name(void **state)
{
    (void)state;
    float magnitude = 0;
    weir_cuda_measure measure = measure_of(WEIR_F8_E4M3, image, &magnitude);
    expect_refused(&measure, WEIR_ERR_INVALID, "weights has dtype F8_E4M3");
    measure = measure_of(WEIR_F32, image + 2, &magnitude);
    expect_refused(&measure, WEIR_ERR_INVALID, "weights is not aligned to 4 bytes");
    measure = measure_of(WEIR_F32, image, &magnitude);
    measure.view.pitch_bytes = 258;
    expect_refused(&measure, WEIR_ERR_INVALID, "weights is not aligned to 4 bytes");
    measure = measure_of(WEIR_F32, image, NULL);
    expect_refused(&measure, WEIR_ERR_INVALID, "weights has no data, or no blocks");
    measure = measure_of(WEIR_F32, image, &magnitude);
    measure.view.n_rows = measure.view.n_cols = UINT32_MAX;
    measure.view.block_rows = measure.view.block_cols = 1;
    expect_refused(&measure, WEIR_ERR_UNSUPPORTED, "more blocks than one launch measures");
}

static void a_batch_takes_no_memory_that_its_gpu_cannot_reach(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    float magnitude = 0;
    weir_cuda_measure measure = measure_of(WEIR_BF16, rig_device(rig, 4096), &magnitude);
    assert_int_equal(weir_cuda_batch_measure(rig->batch, &measure, 1, rig->stream),
                     WEIR_ERR_INVALID);
    measure.magnitudes = rig_device(rig, sizeof(magnitude));
    must(weir_cuda_batch_measure(rig->batch, &measure, 1, rig->stream));
    assert_int_equal(weir_cuda_batch_measure(rig->batch, &measure, 1, rig->stream), WEIR_ERR_BUSY);
    must(weir_cuda_batch_wait(rig->batch));
    rig_close(rig);
}

static void what_has_no_scale_is_not_joined(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    const float *magnitudes = rig_device(rig, sizeof(*magnitudes));
    weir_tensor source = tensor_2d("weights", WEIR_BF16, 4, 64, rig_device(rig, 512));
    weir_convert_args args = args_for("fp32_cast", &source, 1);
    args.outputs[0] = rig_device(rig, 1024);
    assert_int_equal(weir_cuda_batch_start_joined(rig->batch, &args, &magnitudes, 1, rig->stream),
                     WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "weights: 'fp32_cast'"));
    magnitudes = NULL;
    must(weir_cuda_batch_start_joined(rig->batch, &args, &magnitudes, 1, rig->stream));
    must(weir_cuda_batch_wait(rig->batch));
    rig_close(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_cover_every_element_once_within_its_block),
        cmocka_unit_test(runs_are_numbered_through_and_empty_views_have_none),
        cmocka_unit_test(what_cannot_be_measured_is_refused_by_name),
        cmocka_unit_test(a_batch_takes_no_memory_that_its_gpu_cannot_reach),
        cmocka_unit_test(what_has_no_scale_is_not_joined),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
