/* SPDX-License-Identifier: Apache-2.0 */
/* work.c - the front of work.h: which kind computes, what a task may do next, how long to wait. */
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "device/cuda_loader.h"
#include "refit/work_ops.h"

#define N_EAGER_TESTS 64u /* before a wait begins to sleep */
#define SLEEP_NS 30000

/* ---- works -----------------------------------------------------------------------------------*/

weir_status weir_work_open(uint32_t memory, unsigned device, weir_pool *pool, weir_work **out)
{
    if (memory == WEIR_MEMORY_HOST)
        return weir_work_host_open(pool, out);
    if (memory == WEIR_MEMORY_CUDA)
        return weir_work_cuda_open(device, pool, out);
    return weir_fail(WEIR_ERR_INVALID, "%u is no kind of memory to work on", memory);
}

void weir_work_close(weir_work *work)
{
    if (work != NULL)
        work->ops->close(work);
}

uint32_t weir_work_memory(const weir_work *work)
{
    return work->memory;
}

unsigned weir_work_device(const weir_work *work)
{
    return work->device;
}

weir_status weir_work_locate(const void *data, uint32_t *out_memory, unsigned *out_device)
{
    const weir_cuda_runtime *cuda;
    weir_cuda_pointer_kind kind = WEIR_CUDA_POINTER_HOST;
    int device = 0;
    weir_error_line line; /* no GPU is no failure of the caller's */
    weir_error_save(&line);
    weir_status status = data != NULL ? weir_cuda_runtime_get(&cuda) : WEIR_ERR_UNSUPPORTED;
    weir_error_restore(&line);
    if (status == WEIR_OK) {
        status = weir_cuda_check(cuda->pointer_kind(data, &kind, &device),
                                 "cannot tell where %p lies", data);
        if (status != WEIR_OK)
            return status;
    }
    bool on_gpu = kind == WEIR_CUDA_POINTER_DEVICE || kind == WEIR_CUDA_POINTER_MANAGED;
    *out_memory = on_gpu ? WEIR_MEMORY_CUDA : WEIR_MEMORY_HOST;
    *out_device = on_gpu && device > 0 ? (unsigned)device : 0;
    return WEIR_OK;
}

weir_status weir_work_allocate(weir_work *work, uint64_t n_bytes, void **out)
{
    return work->ops->allocate(work, n_bytes, out);
}

void weir_work_free(weir_work *work, void *data, uint64_t n_bytes)
{
    if (data != NULL)
        work->ops->free(work, data, n_bytes);
}

weir_status weir_work_allocate_host(weir_work *work, uint64_t n_bytes, void **out)
{
    return work->ops->allocate_host(work, n_bytes, out);
}

void weir_work_free_host(weir_work *work, void *data, uint64_t n_bytes)
{
    if (data != NULL)
        work->ops->free_host(work, data, n_bytes);
}

void *weir_work_stream(const weir_work *work, weir_lane lane)
{
    return work->ops->stream(work, lane);
}

weir_status weir_work_after(weir_work *work, weir_lane lane, weir_lane other)
{
    return lane != other ? work->ops->after(work, lane, other) : WEIR_OK;
}

weir_status weir_work_follow(weir_work *work, void *stream)
{
    return work->ops->follow(work, stream);
}

/* ---- tasks -----------------------------------------------------------------------------------*/

weir_status weir_task_open(weir_work *work, weir_task **out)
{
    return work->ops->task_open(work, out);
}

void weir_task_close(weir_task *task)
{
    if (task != NULL)
        task->work->ops->task_close(task);
}

/* A failure that nobody has asked for yet is the answer to what would follow it. */
static weir_status make_ready(weir_task *task)
{
    weir_status status = weir_task_test(task);
    if (status == WEIR_IN_PROGRESS)
        return weir_fail(WEIR_ERR_BUSY, "a task was given more work before it had ended");
    return status;
}

static weir_status note_start(weir_task *task, weir_status status)
{
    task->started = status == WEIR_OK;
    return status;
}

weir_status weir_task_convert(weir_task *task, weir_lane lane, weir_convert_args *args,
                              size_t n_args)
{
    weir_status status = make_ready(task);
    if (status != WEIR_OK || n_args == 0)
        return status;
    for (size_t i = 0; i < n_args; i++) {
        args[i].pool = task->work->pool;
        args[i].reference = false;
    }
    return note_start(task, task->work->ops->convert(task, lane, args, n_args));
}

weir_status weir_task_digest(weir_task *task, weir_lane lane, const weir_work_range *ranges,
                             size_t n_ranges)
{
    weir_status status = make_ready(task);
    if (status != WEIR_OK || n_ranges == 0)
        return status;
    return note_start(task, task->work->ops->digest(task, lane, ranges, n_ranges));
}

weir_status weir_task_copy(weir_task *task, weir_lane lane, const weir_work_copy *copies,
                           size_t n_copies)
{
    weir_status status = make_ready(task);
    if (status != WEIR_OK || n_copies == 0)
        return status;
    return note_start(task, task->work->ops->copy(task, lane, copies, n_copies));
}

weir_status weir_task_copy_rows(weir_task *task, weir_lane lane, const weir_work_rows *rows,
                                size_t n_rows)
{
    weir_status status = make_ready(task);
    if (status != WEIR_OK || n_rows == 0)
        return status;
    return note_start(task, task->work->ops->copy_rows(task, lane, rows, n_rows));
}

weir_status weir_task_scatter(weir_task *task, weir_lane lane, const weir_work_rows *rows,
                              size_t n_rows)
{
    weir_status status = make_ready(task);
    if (status != WEIR_OK || n_rows == 0)
        return status;
    return note_start(task, task->work->ops->scatter(task, lane, rows, n_rows));
}

weir_status weir_task_room(weir_task *task, size_t n_ranges, size_t n_rows)
{
    weir_status status = make_ready(task);
    return status == WEIR_OK ? task->work->ops->room(task, n_ranges, n_rows) : status;
}

weir_status weir_task_derive(weir_task *task, weir_lane lane,
                             const weir_work_derivation *derivations, size_t n_derivations)
{
    weir_status status = make_ready(task);
    if (status != WEIR_OK || n_derivations == 0)
        return status;
    return note_start(task, task->work->ops->derive(task, lane, derivations, n_derivations));
}

weir_status weir_task_mark(weir_task *task, weir_lane lane)
{
    weir_status status = make_ready(task);
    if (status != WEIR_OK)
        return status;
    return note_start(task, task->work->ops->mark(task, lane));
}

weir_status weir_task_test(weir_task *task)
{
    if (!task->started)
        return WEIR_OK;
    weir_status status = task->work->ops->test(task);
    task->started = status == WEIR_IN_PROGRESS;
    return status;
}

weir_status weir_task_wait(weir_task *task, unsigned timeout_ms)
{
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    for (unsigned n_tests = 0;; n_tests++) {
        weir_status status = weir_task_test(task);
        if (status != WEIR_IN_PROGRESS)
            return status;
        if (weir_deadline_passed(deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT,
                             "timed out after %.1f s: work on GPU %u has not ended",
                             timeout_ms / 1e3, task->work->device);
        if (n_tests >= N_EAGER_TESTS)
            nanosleep(&(struct timespec){ .tv_nsec = SLEEP_NS }, NULL);
    }
}
