/* SPDX-License-Identifier: Apache-2.0 */
/* work_cuda.c - work on a GPU: a stream for each lane, a batch for each task that computes, an
 * event for each that copies, derives or marks.
 *
 * Nothing waits for a stream without a bound: a lane that a dead peer holds up (a broadcast) must
 * not hold up whoever wants to close it. What then still runs is left behind, not freed.
 */
#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "device/cuda_loader.h"
#include "device/cuda_wait.h"
#include "refit/work_ops.h"
#include "weir/cuda.h"

typedef struct cuda_work {
    weir_work base;
    const weir_cuda_runtime *cuda;
    void *streams[WEIR_N_LANES];
    void *events[WEIR_N_LANES]; /* how far a lane was when another was told to wait for it */
    bool stuck[WEIR_N_LANES];   /* something in the lane has not ended within its bound */
} cuda_work;

typedef struct cuda_task {
    weir_task base;
    weir_cuda_batch *batch; /* opened when it is first needed, as is the event */
    void *event;
    bool by_event;           /* what tells the end of what runs */
    weir_cuda_range *ranges; /* n_room of them */
    size_t n_room;
} cuda_task;

static cuda_work *work_of(const weir_task *task)
{
    return (cuda_work *)task->work;
}

static weir_status enter(const cuda_work *work, int *out_previous)
{
    return weir_cuda_check(work->cuda->enter((int)work->base.device, out_previous),
                           "cannot use GPU %u", work->base.device);
}

/* ---- lanes -----------------------------------------------------------------------------------*/

static void *stream(const weir_work *base, weir_lane lane)
{
    const cuda_work *work = (const cuda_work *)base;
    return work->streams[lane];
}

static weir_status after(weir_work *base, weir_lane lane, weir_lane other)
{
    cuda_work *work = (cuda_work *)base;
    int previous;
    weir_status status = enter(work, &previous);
    if (status != WEIR_OK)
        return status;
    int error = work->cuda->event_record(work->events[other], work->streams[other]);
    if (error == 0)
        error = work->cuda->stream_after(work->streams[lane], work->events[other]);
    work->cuda->leave(previous);
    return weir_cuda_check(error, "cannot let a stream of GPU %u wait", base->device);
}

static weir_status follow(weir_work *base, void *other)
{
    cuda_work *work = (cuda_work *)base;
    void *event = work->events[WEIR_LANE_COMPUTE];
    int previous;
    weir_status status = enter(work, &previous);
    if (status != WEIR_OK)
        return status;
    int error = work->cuda->event_record(event, other);
    for (int lane = 0; lane < WEIR_N_LANES && error == 0; lane++)
        error = work->cuda->stream_after(work->streams[lane], event);
    work->cuda->leave(previous);
    return weir_cuda_check(error, "cannot let the streams of GPU %u wait for the caller's",
                           base->device);
}

/* Waits until all that is in the lane has ended, well or not. False when it goes on. */
static bool drain(cuda_work *work, weir_lane lane)
{
    int previous, error = work->cuda->enter((int)work->base.device, &previous);
    if (error != 0)
        return true; /* the device is gone, and all that ran there */
    error = weir_cuda_wait_stream(work->cuda, work->streams[lane],
                                  work->stuck[lane] ? 0 : WEIR_CUDA_DRAIN_MS);
    work->cuda->leave(previous);
    if (error != WEIR_CUDA_NOT_READY) {
        work->stuck[lane] = false;
        return true;
    }
    if (!work->stuck[lane])
        weir_log(WEIR_LOG_ERROR,
                 "a stream of GPU %u does not end: the memory that it may use is left behind",
                 work->base.device);
    work->stuck[lane] = true;
    return false;
}

/* CUDA lets all that runs on a device end before it takes memory back: what hangs in one lane would
 * hang whoever frees what another used. */
static bool drain_all(cuda_work *work)
{
    bool ended = true;
    for (int lane = 0; lane < WEIR_N_LANES; lane++)
        ended = drain(work, (weir_lane)lane) && ended;
    return ended;
}

/* ---- memory ----------------------------------------------------------------------------------*/

static void release(weir_work *base, void *data, uint64_t n_bytes)
{
    (void)n_bytes;
    if (data != NULL && drain_all((cuda_work *)base))
        weir_cuda_free(base->device, data);
}

static weir_status allocate(weir_work *base, uint64_t n_bytes, void **out)
{
    cuda_work *work = (cuda_work *)base;
    void *data = NULL;
    weir_status status = weir_cuda_allocate(base->device, n_bytes, &data);
    if (status != WEIR_OK)
        return status;
    status = weir_cuda_fill(base->device, data, 0, n_bytes, work->streams[WEIR_LANE_COMPUTE]);
    if (status == WEIR_OK && !drain(work, WEIR_LANE_COMPUTE))
        status = weir_fail(WEIR_ERR_TIMED_OUT, "timed out: GPU %u does not clear its memory",
                           base->device);
    if (status != WEIR_OK) {
        release(base, data, n_bytes);
        return status;
    }
    *out = data;
    return WEIR_OK;
}

/* Within the work's device: elsewhere CUDA would open a context on the thread's own. */
static weir_status allocate_host(weir_work *base, uint64_t n_bytes, void **out)
{
    const cuda_work *work = (const cuda_work *)base;
    int previous;
    weir_status status = enter(work, &previous);
    if (status != WEIR_OK)
        return status;
    status = weir_cuda_allocate_pinned(n_bytes, out);
    work->cuda->leave(previous);
    return status;
}

static void free_host(weir_work *base, void *data, uint64_t n_bytes)
{
    (void)n_bytes;
    if (data != NULL && drain_all((cuda_work *)base))
        weir_cuda_free_pinned(data);
}

/* ---- tasks -----------------------------------------------------------------------------------*/

static weir_status open_task(weir_work *work, weir_task **out)
{
    cuda_task *task = weir_alloc_zeroed(1, sizeof(*task));
    if (task == NULL)
        return WEIR_ERR_NO_MEMORY;
    task->base.work = work;
    *out = &task->base;
    return WEIR_OK;
}

static void close_task(weir_task *base)
{
    cuda_task *task = (cuda_task *)base;
    if (!drain_all(work_of(base)))
        return;
    weir_cuda_batch_close(task->batch);
    if (task->event != NULL)
        work_of(base)->cuda->event_close(task->event);
    weir_free(task->ranges);
    weir_free(task);
}

/* What follows is a batch's. */
static weir_status use_batch(cuda_task *task)
{
    task->by_event = false;
    return task->batch != NULL ? WEIR_OK
                               : weir_cuda_batch_open(task->base.work->device, &task->batch);
}

static weir_status use_event(cuda_task *task)
{
    const cuda_work *work = work_of(&task->base);
    int previous;
    task->by_event = true;
    weir_status status = task->event == NULL ? enter(work, &previous) : WEIR_OK;
    if (status != WEIR_OK || task->event != NULL)
        return status;
    status = weir_cuda_check(work->cuda->event_open(0, &task->event), "cannot make an event");
    work->cuda->leave(previous);
    return status;
}

static weir_status test_event(cuda_task *task)
{
    const cuda_work *work = work_of(&task->base);
    int previous;
    weir_status status = enter(work, &previous);
    if (status != WEIR_OK)
        return status;
    int error = work->cuda->event_test(task->event);
    work->cuda->leave(previous);
    if (error == WEIR_CUDA_NOT_READY)
        return WEIR_IN_PROGRESS;
    return weir_cuda_check(error, "work on GPU %u failed", work->base.device);
}

static weir_status test(weir_task *base)
{
    cuda_task *task = (cuda_task *)base;
    return task->by_event ? test_event(task) : weir_cuda_batch_test(task->batch);
}

static weir_status mark(weir_task *base, weir_lane lane)
{
    cuda_task *task = (cuda_task *)base;
    const cuda_work *work = work_of(base);
    int previous;
    weir_status status = use_event(task);
    if (status == WEIR_OK)
        status = enter(work, &previous);
    if (status != WEIR_OK)
        return status;
    status = weir_cuda_check(work->cuda->event_record(task->event, work->streams[lane]),
                             "cannot record an event on GPU %u", base->work->device);
    work->cuda->leave(previous);
    return status;
}

static weir_status convert(weir_task *base, weir_lane lane, weir_convert_args *args, size_t n_args)
{
    cuda_task *task = (cuda_task *)base;
    weir_status status = use_batch(task);
    if (status != WEIR_OK)
        return status;
    return weir_cuda_batch_start(task->batch, args, n_args, work_of(base)->streams[lane]);
}

static weir_status digest(weir_task *base, weir_lane lane, const weir_work_range *ranges,
                          size_t n_ranges)
{
    cuda_task *task = (cuda_task *)base;
    weir_status status = use_batch(task);
    if (status != WEIR_OK)
        return status;
    if (n_ranges > task->n_room) {
        weir_free(task->ranges);
        task->n_room = 0;
        task->ranges = weir_alloc_zeroed(n_ranges, sizeof(*task->ranges));
        if (task->ranges == NULL)
            return WEIR_ERR_NO_MEMORY;
        task->n_room = n_ranges;
    }
    for (size_t i = 0; i < n_ranges; i++)
        task->ranges[i] = (weir_cuda_range){ .name = ranges[i].name,
                                             .data = ranges[i].data,
                                             .n_rows = ranges[i].n_rows,
                                             .row_bytes = ranges[i].row_bytes,
                                             .first_word = ranges[i].first_word,
                                             .dtype = ranges[i].dtype,
                                             .check = ranges[i].check,
                                             .digest = ranges[i].digest };
    return weir_cuda_batch_digest(task->batch, task->ranges, n_ranges,
                                  work_of(base)->streams[lane]);
}

static weir_status queue_copies(const cuda_work *work, weir_lane lane, const weir_work_copy *copies,
                                size_t n_copies)
{
    int previous;
    weir_status status = enter(work, &previous);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < n_copies && status == WEIR_OK; i++) {
        if (copies[i].n_bytes != 0)
            status = weir_cuda_check(work->cuda->copy(copies[i].to, copies[i].from,
                                                      copies[i].n_bytes, work->streams[lane]),
                                     "cannot copy %llu bytes on GPU %u",
                                     (unsigned long long)copies[i].n_bytes, work->base.device);
    }
    work->cuda->leave(previous);
    return status;
}

static weir_status copy(weir_task *base, weir_lane lane, const weir_work_copy *copies,
                        size_t n_copies)
{
    cuda_work *work = work_of(base);
    weir_status status = queue_copies(work, lane, copies, n_copies);
    if (status == WEIR_OK)
        status = mark(base, lane);
    if (status != WEIR_OK)
        drain(work, lane); /* some may be on their way */
    return status;
}

/* In one piece, unless there is one row alone or a pitch is beyond what CUDA takes. */
static int queue_row_copies(const cuda_work *work, weir_lane lane, const weir_work_rows *rows)
{
    void *stream = work->streams[lane];
    char *to = rows->to;
    const char *from = rows->from;
    int error = 0;
    if (rows->row_bytes == 0)
        return 0;
    if (rows->n_rows > 1 && rows->to_pitch <= INT32_MAX && rows->from_pitch <= INT32_MAX)
        return work->cuda->copy_rows(to, rows->to_pitch, from, rows->from_pitch, rows->row_bytes,
                                     rows->n_rows, stream);
    for (uint64_t r = 0; r < rows->n_rows && error == 0; r++)
        error = work->cuda->copy(to + r * rows->to_pitch, from + r * rows->from_pitch,
                                 rows->row_bytes, stream);
    return error;
}

static weir_status copy_rows(weir_task *base, weir_lane lane, const weir_work_rows *rows,
                             size_t n_rows)
{
    cuda_work *work = work_of(base);
    int previous;
    weir_status status = enter(work, &previous);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < n_rows && status == WEIR_OK; i++)
        status = weir_cuda_check(queue_row_copies(work, lane, &rows[i]),
                                 "cannot copy %llu rows of %llu bytes on GPU %u",
                                 (unsigned long long)rows[i].n_rows,
                                 (unsigned long long)rows[i].row_bytes, base->work->device);
    work->cuda->leave(previous);
    if (status == WEIR_OK)
        status = mark(base, lane);
    if (status != WEIR_OK)
        drain(work, lane);
    return status;
}

static weir_status room(weir_task *base, size_t n_ranges, size_t n_rows)
{
    cuda_task *task = (cuda_task *)base;
    weir_status status = use_batch(task);
    return status == WEIR_OK ? weir_cuda_batch_room(task->batch, n_ranges, n_rows) : status;
}

/* One piece is a copy of CUDA's. */
static weir_status scatter(weir_task *base, weir_lane lane, const weir_work_rows *rows,
                           size_t n_rows)
{
    cuda_task *task = (cuda_task *)base;
    if (n_rows == 1)
        return copy_rows(base, lane, rows, 1);
    weir_status status = use_batch(task);
    if (status != WEIR_OK)
        return status;
    return weir_cuda_batch_scatter(task->batch, rows, n_rows, work_of(base)->streams[lane]);
}

static weir_status derive(weir_task *base, weir_lane lane, const weir_work_derivation *derivations,
                          size_t n_derivations)
{
    cuda_work *work = work_of(base);
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n_derivations && status == WEIR_OK; i++) {
        const weir_work_derivation *d = &derivations[i];
        status = weir_cuda_derived_start(work->base.device, d->derived, d->from_dtype, d->from,
                                         d->scale, d->scale_shape, d->out, work->streams[lane]);
    }
    if (status == WEIR_OK)
        status = mark(base, lane);
    if (status != WEIR_OK)
        drain(work, lane);
    return status;
}

/* ---- open and close --------------------------------------------------------------------------*/

static void close_work(weir_work *base)
{
    cuda_work *work = (cuda_work *)base;
    for (int lane = 0; lane < WEIR_N_LANES; lane++) {
        if (work->streams[lane] != NULL)
            drain(work, (weir_lane)lane); /* one that does not end is closed as it is */
        if (work->events[lane] != NULL)
            work->cuda->event_close(work->events[lane]);
        weir_cuda_stream_close(base->device, work->streams[lane]);
    }
    weir_free(work);
}

static const weir_work_ops cuda_ops = {
    .close = close_work,
    .allocate = allocate,
    .free = release,
    .allocate_host = allocate_host,
    .free_host = free_host,
    .stream = stream,
    .after = after,
    .follow = follow,
    .task_open = open_task,
    .task_close = close_task,
    .convert = convert,
    .digest = digest,
    .copy = copy,
    .copy_rows = copy_rows,
    .scatter = scatter,
    .room = room,
    .derive = derive,
    .mark = mark,
    .test = test,
};

static weir_status open_lane(cuda_work *work, int lane)
{
    int previous;
    weir_status status = weir_cuda_stream_open(work->base.device, &work->streams[lane]);
    if (status == WEIR_OK)
        status = enter(work, &previous);
    if (status != WEIR_OK)
        return status;
    status = weir_cuda_check(work->cuda->event_open(0, &work->events[lane]),
                             "cannot make an event on GPU %u", work->base.device);
    work->cuda->leave(previous);
    return status;
}

weir_status weir_work_cuda_open(unsigned device, weir_pool *pool, weir_work **out)
{
    const weir_cuda_runtime *cuda;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status != WEIR_OK)
        return status;
    cuda_work *work = weir_alloc_zeroed(1, sizeof(*work));
    if (work == NULL)
        return WEIR_ERR_NO_MEMORY;
    work->base =
        (weir_work){ .ops = &cuda_ops, .memory = WEIR_MEMORY_CUDA, .device = device, .pool = pool };
    work->cuda = cuda;
    for (int lane = 0; lane < WEIR_N_LANES && status == WEIR_OK; lane++)
        status = open_lane(work, lane);
    if (status != WEIR_OK) {
        close_work(&work->base);
        return status;
    }
    *out = &work->base;
    return WEIR_OK;
}
