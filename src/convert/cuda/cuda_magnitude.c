/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_magnitude.c - checks rows to measure, numbers their runs, and starts the kernel. */
#include "convert/cuda/cuda_magnitude.h"

#include <string.h>

#include "base/error.h"

#define MAX_RUNS ((uint64_t)0x7FFFFFFF) /* of one launch */

static const char *name_of(const weir_cuda_measure *measure)
{
    return measure->name != NULL ? measure->name : "(unnamed)";
}

static weir_status check(const weir_cuda_measure *measure)
{
    const weir_magnitude_view *view = &measure->view;
    if (view->dtype != WEIR_BF16 && view->dtype != WEIR_F16 && view->dtype != WEIR_F32)
        return weir_fail(WEIR_ERR_INVALID, "%s has dtype %s, only BF16, F16 and F32 are measured",
                         name_of(measure), weir_dtype_name(view->dtype));
    unsigned element_bytes = weir_dtype_bits(view->dtype) / 8;
    if (view->data == NULL || measure->magnitudes == NULL || view->block_rows == 0 ||
        view->block_cols == 0)
        return weir_fail(WEIR_ERR_INVALID, "%s has no data, or no blocks", name_of(measure));
    if ((uintptr_t)view->data % element_bytes != 0 || view->pitch_bytes % element_bytes != 0)
        return weir_fail(WEIR_ERR_INVALID, "%s is not aligned to %u bytes, as a GPU needs it",
                         name_of(measure), element_bytes);
    return WEIR_OK;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t divide_up(uint32_t n, uint32_t by)
{
    return (n - 1) / by + 1;
}

/* Returns how many runs there are; 0 of a view without elements. */
static uint64_t describe(const weir_cuda_measure *measure, weir_cuda_magnitude_job *job)
{
    const weir_magnitude_view *view = &measure->view;
    if (view->n_rows == 0 || view->n_cols == 0)
        return 0;
    job->data = (uintptr_t)view->data;
    job->pitch_bytes = view->pitch_bytes;
    job->magnitudes = (uintptr_t)measure->magnitudes;
    job->dtype = (uint32_t)view->dtype;
    job->n_rows = view->n_rows;
    job->n_cols = view->n_cols;
    job->row = view->row;
    job->col = view->col;
    job->block_rows = view->block_rows;
    job->block_cols = view->block_cols;
    job->n_block_cols = measure->n_block_cols;
    uint32_t rows = least(view->block_rows, view->n_rows);
    uint32_t cols = least(view->block_cols, view->n_cols);
    job->run_cols = least(cols, WEIR_CUDA_RUN_ELEMENTS);
    job->run_rows = least(rows, WEIR_CUDA_RUN_ELEMENTS / job->run_cols);
    job->runs_down = divide_up(rows, job->run_rows);
    job->runs_across = divide_up(cols, job->run_cols);
    uint64_t last_row = (uint64_t)view->row + view->n_rows - 1;
    uint64_t last_col = (uint64_t)view->col + view->n_cols - 1;
    uint64_t down = last_row / view->block_rows - view->row / view->block_rows + 1;
    job->blocks_across = (uint32_t)(last_col / view->block_cols - view->col / view->block_cols + 1);
    uint64_t n_runs;
    if (__builtin_mul_overflow(down * job->blocks_across,
                               (uint64_t)job->runs_down * job->runs_across, &n_runs))
        return UINT64_MAX;
    return n_runs;
}

static size_t first_runs_at(size_t n_measures)
{
    return n_measures * sizeof(weir_cuda_magnitude_job);
}

size_t weir_cuda_measures_image_bytes(size_t n_measures)
{
    return first_runs_at(n_measures) + n_measures * sizeof(uint32_t);
}

weir_status weir_cuda_measures_plan(const weir_cuda_measure *measures, size_t n,
                                    unsigned char *image, uint32_t *out_n_runs)
{
    weir_cuda_magnitude_job *jobs = (weir_cuda_magnitude_job *)(void *)image;
    uint32_t *first_runs = (uint32_t *)(void *)(image + first_runs_at(n));
    uint64_t n_runs = 0;
    memset(image, 0, weir_cuda_measures_image_bytes(n)); /* padding too: images are compared */
    for (size_t i = 0; i < n; i++) {
        weir_status status = check(&measures[i]);
        if (status != WEIR_OK)
            return status;
        first_runs[i] = (uint32_t)n_runs;
        uint64_t more = describe(&measures[i], &jobs[i]);
        if (more > MAX_RUNS - n_runs)
            return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: more blocks than one launch measures",
                             name_of(&measures[i]));
        n_runs += more;
    }
    *out_n_runs = (uint32_t)n_runs;
    return WEIR_OK;
}

static weir_status send(weir_cuda_tables *tables, int device, const weir_cuda_measure *measures,
                        size_t n, void *stream)
{
    size_t image_bytes = weir_cuda_measures_image_bytes(n);
    weir_status status = WEIR_OK;
    if (weir_cuda_tables_are_sent(tables, image_bytes))
        return WEIR_OK;
    for (size_t i = 0; status == WEIR_OK && i < n; i++) {
        status =
            weir_cuda_check_reach(tables->cuda, device, measures[i].view.data, measures[i].name);
        if (status == WEIR_OK)
            status = weir_cuda_check_reach(tables->cuda, device, measures[i].magnitudes,
                                           measures[i].name);
    }
    return status == WEIR_OK ? weir_cuda_tables_send(tables, image_bytes, stream) : status;
}

weir_status weir_cuda_measures_start(weir_cuda_tables *tables, const weir_cuda_converter *converter,
                                     int device, const weir_cuda_measure *measures, size_t n,
                                     void *stream)
{
    uint32_t n_runs = 0;
    if (measures == NULL || n > UINT32_MAX / 64)
        return weir_fail(WEIR_ERR_INVALID, "%zu views to measure at %p", n, (const void *)measures);
    weir_status status = weir_cuda_tables_room(tables, weir_cuda_measures_image_bytes(n), 0);
    if (status == WEIR_OK)
        status = weir_cuda_measures_plan(measures, n, tables->built, &n_runs);
    if (status == WEIR_OK)
        status = send(tables, device, measures, n, stream);
    if (status != WEIR_OK || n_runs == 0)
        return status;
    const unsigned char *image = tables->image;
    weir_cuda_magnitude_launch launch = {
        .jobs = (const weir_cuda_magnitude_job *)(const void *)image,
        .first_runs = (const uint32_t *)(const void *)(image + first_runs_at(n)),
        .n_jobs = (uint32_t)n,
        .n_runs = n_runs,
    };
    int error = converter->measure(&launch, stream);
    if (error != 0)
        weir_cuda_tables_settle(tables, stream);
    return weir_cuda_check(error, "cannot queue the magnitudes of %zu views", n);
}
