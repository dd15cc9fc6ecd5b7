/* SPDX-License-Identifier: Apache-2.0 */
/* magnitudes_cuda.c - measures and converts borders by magnitude where a rank's rows lie on a GPU:
 * one launch each, however many borders there are.
 *
 * Magnitudes cross to pinned host memory, where they are lent from and joined, and back. The
 * kernels take the joined ones beside their own rows, so no row is copied, and outputs and digests
 * are made where they belong.
 */
#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "convert/magnitude_batch.h"
#include "numeric/scalar.h"
#include "refit/magnitudes_state.h"

/* A border's job in the batch at hand. */
typedef struct job_of_batch {
    size_t job;
    weir_tensor rows;
    uint64_t pitch_bytes;
    weir_digest digests[WEIR_MAX_OUTPUTS];
} job_of_batch;

struct weir_magnitudes_gpu {
    weir_work *work;
    weir_task *task; /* for what the batch does not run */
    weir_cuda_batch *batch;
    unsigned timeout_ms;
    size_t n_values;
    float *values;           /* on the GPU: this rank's magnitudes, then the joined ones */
    bool sent;               /* they are the joined ones */
    unsigned char *unwanted; /* on the GPU: scales that another job makes; all write here */
    uint64_t unwanted_bytes;
    weir_cuda_measure *measures; /* n_measures of them */
    size_t n_measures;
    job_of_batch *jobs; /* and args and magnitudes: one for each job of a border */
    weir_convert_args *args;
    const float **magnitudes;
};

/* ---- open and close --------------------------------------------------------------------------*/

/* A job's scales lie side by side in the border's, as those of one row or one column do. */
static weir_status check_border(const weir_magnitudes *m, const weir_share_border *border)
{
    if (border->n_block_rows == 1 || border->n_block_cols == 1)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INTERNAL, "%s: a border of %u x %u blocks",
                     m->tensors[border->copy.tensor].name, border->n_block_rows,
                     border->n_block_cols);
}

static weir_status count_unwanted(weir_magnitudes *m, const weir_share_job *job)
{
    const weir_conversion *conversion = weir_magnitudes_conversion(m, job);
    weir_magnitudes_gpu *gpu = m->gpu;
    weir_shape source = { 2, { job->copy.n_rows, job->copy.n_cols } }, shape;
    uint64_t n_bytes;
    for (size_t o = 1; o < conversion->n_outputs; o++) {
        weir_status status = weir_conversion_output_shape(conversion, o, &source, &shape);
        if (status == WEIR_OK)
            status = weir_tensor_bytes(conversion->outputs[o].dtype, &shape, &n_bytes);
        if (status != WEIR_OK)
            return status;
        gpu->unwanted_bytes = n_bytes > gpu->unwanted_bytes ? n_bytes : gpu->unwanted_bytes;
    }
    return WEIR_OK;
}

static weir_status lay_out(weir_magnitudes *m, weir_arena *arena)
{
    const weir_share *share = m->share;
    weir_magnitudes_gpu *gpu = m->gpu;
    weir_status status = WEIR_OK;
    size_t n_jobs = 0;
    for (size_t b = 0; b < share->n_borders && status == WEIR_OK; b++) {
        const weir_share_border *border = &share->borders[b];
        status = check_border(m, border);
        for (size_t k = border->first_piece; k < border->first_piece + border->n_pieces; k++)
            gpu->n_measures += share->pieces[k].loan == WEIR_ANY;
    }
    for (size_t j = 0; j < share->n_jobs && status == WEIR_OK; j++) {
        if (share->jobs[j].border == WEIR_ANY)
            continue;
        status = count_unwanted(m, &share->jobs[j]);
        n_jobs++;
    }
    if (status != WEIR_OK)
        return status;
    gpu->measures = weir_arena_zeroed(arena, gpu->n_measures, sizeof(*gpu->measures));
    gpu->jobs = weir_arena_zeroed(arena, n_jobs, sizeof(*gpu->jobs));
    gpu->args = weir_arena_zeroed(arena, n_jobs, sizeof(*gpu->args));
    gpu->magnitudes = weir_arena_zeroed(arena, n_jobs, sizeof(*gpu->magnitudes));
    return gpu->measures != NULL && gpu->jobs != NULL && gpu->args != NULL &&
                   gpu->magnitudes != NULL
               ? WEIR_OK
               : WEIR_ERR_NO_MEMORY;
}

static uint64_t values_bytes(const weir_magnitudes_gpu *gpu)
{
    return gpu->n_values * sizeof(float);
}

static weir_status allocate(weir_magnitudes *m)
{
    weir_magnitudes_gpu *gpu = m->gpu;
    void *own = NULL, *values = NULL, *unwanted = NULL;
    weir_status status = weir_work_allocate_host(gpu->work, 2 * values_bytes(gpu), &own);
    if (status == WEIR_OK) {
        m->own = own;
        m->joined = m->own + gpu->n_values;
        status = weir_work_allocate(gpu->work, values_bytes(gpu), &values);
        gpu->values = values;
    }
    if (status == WEIR_OK)
        status = weir_work_allocate(gpu->work, gpu->unwanted_bytes, &unwanted);
    gpu->unwanted = unwanted;
    if (status == WEIR_OK)
        status = weir_task_open(gpu->work, &gpu->task);
    return status == WEIR_OK ? weir_cuda_batch_open(weir_work_device(gpu->work), &gpu->batch)
                             : status;
}

weir_status weir_magnitudes_cuda_open(weir_magnitudes *m, const weir_magnitudes_options *options)
{
    m->gpu = weir_alloc_zeroed(1, sizeof(*m->gpu));
    if (m->gpu == NULL)
        return WEIR_ERR_NO_MEMORY;
    m->gpu->work = options->work;
    m->gpu->timeout_ms = options->timeout_ms;
    m->gpu->n_values = m->first_value[m->share->n_borders];
    m->gpu->unwanted_bytes = sizeof(float);
    weir_status status = lay_out(m, options->arena);
    return status == WEIR_OK ? allocate(m) : status;
}

void weir_magnitudes_cuda_close(weir_magnitudes *m)
{
    weir_magnitudes_gpu *gpu = m->gpu;
    if (gpu == NULL)
        return;
    weir_cuda_batch_close(gpu->batch);
    weir_task_close(gpu->task);
    weir_work_free(gpu->work, gpu->unwanted, gpu->unwanted_bytes);
    weir_work_free(gpu->work, gpu->values, values_bytes(gpu));
    weir_work_free_host(gpu->work, m->own, 2 * values_bytes(gpu));
    weir_free(gpu);
    m->gpu = NULL;
}

/* ---- measure ---------------------------------------------------------------------------------*/

static void list_measures(weir_magnitudes *m)
{
    size_t n = 0;
    for (size_t b = 0; b < m->share->n_borders; b++) {
        const weir_share_border *border = &m->share->borders[b];
        for (size_t k = border->first_piece; k < border->first_piece + border->n_pieces; k++) {
            if (m->share->pieces[k].loan != WEIR_ANY)
                continue;
            m->gpu->measures[n++] =
                (weir_cuda_measure){ .name = m->tensors[border->copy.tensor].name,
                                     .view = weir_magnitudes_view_of(m, border, k),
                                     .n_block_cols = border->n_block_cols,
                                     .magnitudes = m->gpu->values + m->first_value[b] };
        }
    }
}

weir_status weir_magnitudes_cuda_measure(weir_magnitudes *m)
{
    weir_magnitudes_gpu *gpu = m->gpu;
    unsigned device = weir_work_device(gpu->work);
    void *stream = weir_work_stream(gpu->work, WEIR_LANE_COMPUTE);
    weir_work_copy back = { m->own, gpu->values, values_bytes(gpu) };
    list_measures(m);
    gpu->sent = false;
    weir_status status = weir_cuda_fill(device, gpu->values, 0, values_bytes(gpu), stream);
    if (status == WEIR_OK)
        status = weir_cuda_batch_measure(gpu->batch, gpu->measures, gpu->n_measures, stream);
    if (status == WEIR_OK)
        status = weir_task_copy(gpu->task, WEIR_LANE_COMPUTE, &back, 1);
    if (status == WEIR_OK)
        status = weir_task_wait(gpu->task, gpu->timeout_ms);
    return status == WEIR_OK ? weir_cuda_batch_wait(gpu->batch) : status;
}

/* ---- convert ---------------------------------------------------------------------------------*/

static bool is_finite(float magnitude)
{
    return weir_float_bits(magnitude) < WEIR_F32_INF_BITS;
}

/* As an element that is as large is converted: masters as bf16. Of rows that are fp16 none is
 * rounded. What is not finite here is named by the kernels; what is not elsewhere, now. */
static weir_status round_border(weir_magnitudes *m, size_t b, bool rounds)
{
    for (size_t i = m->first_value[b]; i < m->first_value[b + 1]; i++) {
        float own = m->own[i];
        if (rounds) {
            own = weir_float_from_bf16(weir_bf16_from_float(own));
            m->joined[i] = weir_float_from_bf16(weir_bf16_from_float(m->joined[i]));
        }
        if (!is_finite(m->joined[i]) && is_finite(own))
            return weir_fail(WEIR_ERR_NONFINITE,
                             "%s: another trainer rank's part of a block is not finite",
                             m->tensors[m->share->borders[b].copy.tensor].name);
    }
    return WEIR_OK;
}

static bool has_halves(const weir_magnitudes *m, const weir_share_border *border)
{
    for (size_t k = border->first_piece; k < border->first_piece + border->n_pieces; k++) {
        if (m->share->pieces[k].loan == WEIR_ANY)
            return m->pieces[k].view.dtype == WEIR_F16;
    }
    return false;
}

/* Queues the way of the joined magnitudes to the GPU, once for each version. */
static weir_status send_joined(weir_magnitudes *m, bool round_masters)
{
    weir_magnitudes_gpu *gpu = m->gpu;
    weir_status status = WEIR_OK;
    if (gpu->sent)
        return WEIR_OK;
    for (size_t b = 0; b < m->share->n_borders && status == WEIR_OK; b++)
        status = round_border(m, b, round_masters && !has_halves(m, &m->share->borders[b]));
    if (status == WEIR_OK)
        status = weir_cuda_copy(weir_work_device(gpu->work), gpu->values, m->joined,
                                values_bytes(gpu), weir_work_stream(gpu->work, WEIR_LANE_COMPUTE));
    gpu->sent = status == WEIR_OK;
    return status;
}

/* The magnitude of a job's first block. */
static const float *magnitude_of(const weir_magnitudes *m, const weir_share_job *job)
{
    const weir_share_border *border = &m->share->borders[job->border];
    uint32_t block_row = (job->copy.row - border->copy.row) / border->block_rows;
    uint32_t block_col = (job->copy.col - border->copy.col) / border->block_cols;
    return m->gpu->values + m->first_value[job->border] + (size_t)block_row * border->n_block_cols +
           block_col;
}

/* Job `j` as the batch's n-th. */
static weir_status add_job(weir_magnitudes *m, const weir_magnitude_target *target, size_t j,
                           size_t n)
{
    const weir_share_job *job = &m->share->jobs[j];
    job_of_batch *own = &m->gpu->jobs[n];
    weir_convert_args *args = &m->gpu->args[n];
    own->job = j;
    own->rows = m->jobs[j].view;
    own->rows.shape = (weir_shape){ 2, { job->copy.n_rows, job->copy.n_cols } };
    own->pitch_bytes = m->jobs[j].pitch_bytes;
    *args = (weir_convert_args)WEIR_CONVERT_ARGS_INIT;
    args->conversion = weir_magnitudes_conversion(m, job);
    args->sources = &own->rows;
    args->source_pitches = &own->pitch_bytes;
    args->n_sources = 1;
    args->round_masters = target->round_masters;
    args->digests = own->digests;
    for (size_t o = 0; o < args->conversion->n_outputs; o++) {
        uint32_t shard = weir_magnitudes_shard(m, target, j, o);
        if (shard == WEIR_ANY && o == 0)
            return weir_fail(WEIR_ERR_INTERNAL, "%s: nobody wants rows of a border",
                             own->rows.name);
        args->outputs[o] = m->gpu->unwanted;
        if (shard == WEIR_ANY)
            continue;
        args->outputs[o] = target->data + target->shards[shard].offset + job->offsets[o];
        args->first_words[o] = job->first_words[o];
    }
    m->gpu->magnitudes[n] = magnitude_of(m, job);
    return WEIR_OK;
}

static weir_status run_jobs(weir_magnitudes *m, size_t n_jobs)
{
    weir_magnitudes_gpu *gpu = m->gpu;
    weir_status status =
        weir_cuda_batch_start_joined(gpu->batch, gpu->args, gpu->magnitudes, n_jobs,
                                     weir_work_stream(gpu->work, WEIR_LANE_COMPUTE));
    if (status == WEIR_OK)
        status = weir_task_mark(gpu->task, WEIR_LANE_COMPUTE);
    if (status == WEIR_OK)
        status = weir_task_wait(gpu->task, gpu->timeout_ms);
    return status == WEIR_OK ? weir_cuda_batch_wait(gpu->batch) : status;
}

weir_status weir_magnitudes_cuda_convert(weir_magnitudes *m, const weir_magnitude_target *target)
{
    size_t n_jobs = 0;
    weir_status status = send_joined(m, target->round_masters);
    for (size_t j = target->first_job; j < target->end_job && status == WEIR_OK; j++) {
        if (m->share->jobs[j].border != WEIR_ANY)
            status = add_job(m, target, j, n_jobs++);
    }
    if (status == WEIR_OK && n_jobs > 0)
        status = run_jobs(m, n_jobs);
    for (size_t i = 0; i < n_jobs && status == WEIR_OK; i++) {
        const job_of_batch *own = &m->gpu->jobs[i];
        for (size_t o = 0; o < m->gpu->args[i].conversion->n_outputs; o++) {
            uint32_t shard = weir_magnitudes_shard(m, target, own->job, o);
            if (shard != WEIR_ANY)
                weir_digest_merge(&target->digests[shard], &own->digests[o]);
        }
    }
    return status;
}
