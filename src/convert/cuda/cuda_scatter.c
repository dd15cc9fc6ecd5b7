/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_scatter.c - cuts rows to copy into runs, numbers those, and starts the kernel. */
#include "convert/cuda/cuda_scatter.h"

#include <string.h>

#include "base/error.h"

#define MAX_RUNS ((uint64_t)0x7FFFFFFF) /* of one launch */

/* The most that addresses, pitches and lengths are all multiples of. */
static uint32_t unit_of(const weir_cuda_scatter_job *job)
{
    uint64_t all = job->to | job->from | job->row_bytes;
    if (job->n_rows > 1)
        all |= job->to_pitch | job->from_pitch;
    return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 1;
}

static uint64_t divide_up(uint64_t n, uint64_t by)
{
    return n / by + (n % by != 0);
}

/* Returns how many runs there are; 0 of rows without bytes. */
static uint64_t describe(const weir_rows *rows, weir_cuda_scatter_job *job)
{
    uint64_t n_runs;
    if (rows->n_rows == 0 || rows->row_bytes == 0)
        return 0;
    job->to = (uintptr_t)rows->to;
    job->from = (uintptr_t)rows->from;
    job->to_pitch = rows->to_pitch;
    job->from_pitch = rows->from_pitch;
    job->row_bytes = rows->row_bytes;
    job->n_rows = rows->n_rows;
    job->unit_bytes = unit_of(job);
    bool is_long = rows->row_bytes > WEIR_CUDA_SCATTER_BYTES;
    job->run_bytes = is_long ? WEIR_CUDA_SCATTER_BYTES : (uint32_t)rows->row_bytes;
    job->run_rows = WEIR_CUDA_SCATTER_BYTES / job->run_bytes;
    uint64_t across = divide_up(rows->row_bytes, job->run_bytes);
    if (across > MAX_RUNS ||
        __builtin_mul_overflow(divide_up(rows->n_rows, job->run_rows), across, &n_runs))
        return UINT64_MAX;
    job->runs_across = (uint32_t)across;
    return n_runs;
}

static size_t first_runs_at(size_t n)
{
    return n * sizeof(weir_cuda_scatter_job);
}

size_t weir_cuda_scatter_image_bytes(size_t n)
{
    return first_runs_at(n) + n * sizeof(uint32_t);
}

weir_status weir_cuda_scatter_plan(const weir_rows *rows, size_t n, unsigned char *image,
                                   uint32_t *out_n_runs)
{
    weir_cuda_scatter_job *jobs = (weir_cuda_scatter_job *)(void *)image;
    uint32_t *first_runs = (uint32_t *)(void *)(image + first_runs_at(n));
    uint64_t n_runs = 0;
    memset(image, 0, weir_cuda_scatter_image_bytes(n)); /* padding too: images are compared */
    for (size_t i = 0; i < n; i++) {
        first_runs[i] = (uint32_t)n_runs;
        uint64_t more = describe(&rows[i], &jobs[i]);
        if (more > MAX_RUNS - n_runs)
            return weir_fail(WEIR_ERR_UNSUPPORTED, "%zu rows to copy: more than one launch takes",
                             (size_t)rows[i].n_rows);
        n_runs += more;
    }
    *out_n_runs = (uint32_t)n_runs;
    return WEIR_OK;
}

static weir_status send(weir_cuda_tables *tables, int device, const weir_rows *rows, size_t n,
                        void *stream)
{
    size_t image_bytes = weir_cuda_scatter_image_bytes(n);
    weir_status status = WEIR_OK;
    if (weir_cuda_tables_are_sent(tables, image_bytes))
        return WEIR_OK;
    for (size_t i = 0; status == WEIR_OK && i < n; i++) {
        if (rows[i].n_rows == 0 || rows[i].row_bytes == 0)
            continue;
        status = weir_cuda_check_reach(tables->cuda, device, rows[i].to, "rows to copy");
        if (status == WEIR_OK)
            status = weir_cuda_check_reach(tables->cuda, device, rows[i].from, "rows to copy");
    }
    return status == WEIR_OK ? weir_cuda_tables_send(tables, image_bytes, stream) : status;
}

weir_status weir_cuda_scatter_start(weir_cuda_tables *tables, const weir_cuda_converter *converter,
                                    int device, const weir_rows *rows, size_t n, void *stream)
{
    uint32_t n_runs = 0;
    if (rows == NULL || n > UINT32_MAX / 64)
        return weir_fail(WEIR_ERR_INVALID, "%zu pieces to copy at %p", n, (const void *)rows);
    weir_status status = weir_cuda_tables_room(tables, weir_cuda_scatter_image_bytes(n), 0);
    if (status == WEIR_OK)
        status = weir_cuda_scatter_plan(rows, n, tables->built, &n_runs);
    if (status == WEIR_OK)
        status = send(tables, device, rows, n, stream);
    if (status != WEIR_OK || n_runs == 0)
        return status;
    const unsigned char *image = tables->image;
    weir_cuda_scatter_launch launch = {
        .jobs = (const weir_cuda_scatter_job *)(const void *)image,
        .first_runs = (const uint32_t *)(const void *)(image + first_runs_at(n)),
        .n_jobs = (uint32_t)n,
        .n_runs = n_runs,
    };
    int error = converter->scatter(&launch, stream);
    if (error != 0)
        weir_cuda_tables_settle(tables, stream);
    return weir_cuda_check(error, "cannot queue copies of %zu pieces", n);
}
