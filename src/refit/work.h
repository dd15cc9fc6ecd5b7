/* SPDX-License-Identifier: Apache-2.0 */
/* work.h - what computes on a worker's tensors: the thread pool where they lie in host memory, the
 * GPU where they lie on one.
 *
 * Work is queued in lanes: what is in one lane runs in order, lanes run beside each other unless
 * one is told to wait. A task is a place for one piece of work at a time that keeps what it needs
 * (tables, results) from one use to the next: the second use allocates nothing.
 *
 * Host memory has no queues: the call itself does the work, and asking says how it went.
 *
 * Threads    a work, its tasks and lanes belong to one thread at a time.
 * Ownership  what is queued borrows its arguments, and the memory, until the task has ended.
 */
#ifndef WEIR_REFIT_WORK_H
#define WEIR_REFIT_WORK_H

#include "convert/scatter_batch.h"
#include "weir/convert.h"
#include "weir/family.h"
#include "weir/transport.h"

typedef struct weir_work weir_work;
typedef struct weir_task weir_task;

typedef enum weir_lane {
    WEIR_LANE_COMPUTE = 0, /* conversions, digests */
    WEIR_LANE_MOVE = 1,    /* copies to other GPUs and hosts, broadcasts */
    WEIR_LANE_KEEP = 2,    /* the undo log */
    WEIR_N_LANES
} weir_lane;

/* memory: WEIR_MEMORY_HOST (device is ignored) or WEIR_MEMORY_CUDA. `pool` is kept. Gives *out. */
weir_status weir_work_open(uint32_t memory, unsigned device, weir_pool *pool, weir_work **out);
void weir_work_close(weir_work *work); /* accepts NULL; waits for the lanes */
uint32_t weir_work_memory(const weir_work *work);
unsigned weir_work_device(const weir_work *work);

/* Where `data` lies: its kind, and which GPU. Memory that no GPU knows is host memory. */
weir_status weir_work_locate(const void *data, uint32_t *out_memory, unsigned *out_device);

/* The same for tensors that must lie together: those without data are not looked at. ERR_INVALID
 * names two that do not. */
weir_status weir_work_locate_all(const weir_tensor *tensors, size_t n_tensors, uint32_t *out_memory,
                                 unsigned *out_device);
/* "host" or NULL, "cuda:N". ERR_INVALID for anything else. */
weir_status weir_device_parse(const char *text, uint32_t *out_memory, unsigned *out_device);

/* Zeroed memory of this kind. Free with the same n_bytes. */
weir_status weir_work_allocate(weir_work *work, uint64_t n_bytes, void **out);
void weir_work_free(weir_work *work, void *data, uint64_t n_bytes); /* accepts NULL */
/* Host memory that copies reach at full speed: what an undo log is kept in. */
weir_status weir_work_allocate_host(weir_work *work, uint64_t n_bytes, void **out);
void weir_work_free_host(weir_work *work, void *data, uint64_t n_bytes); /* accepts NULL */

/* The lane's cudaStream_t; NULL for host memory. */
void *weir_work_stream(const weir_work *work, weir_lane lane);
/* What is queued in `lane` from now on waits for all that is in `other` now. */
weir_status weir_work_after(weir_work *work, weir_lane lane, weir_lane other);

/* The same for all lanes and what the caller has queued in a stream of its own (a cudaStream_t;
 * NULL: the default stream). Nothing to do for host memory. */
weir_status weir_work_follow(weir_work *work, void *stream);

weir_status weir_task_open(weir_work *work, weir_task **out);
void weir_task_close(weir_task *task); /* accepts NULL; waits for what it runs */

/* One weir_convert() per element of args; pool and reference are set by the work. */
weir_status weir_task_convert(weir_task *task, weir_lane lane, weir_convert_args *args,
                              size_t n_args);

/* Rows to digest, as weir_cuda_range in weir/cuda.h. */
typedef struct weir_work_range {
    const char *name;
    const void *data;
    uint64_t n_rows, row_bytes, first_word;
    weir_dtype dtype;
    bool check; /* refuse what is not finite */
    weir_digest *digest;
} weir_work_range;
weir_status weir_task_digest(weir_task *task, weir_lane lane, const weir_work_range *ranges,
                             size_t n_ranges);

typedef struct weir_work_copy {
    void *to;
    const void *from;
    uint64_t n_bytes;
} weir_work_copy;
/* In order; between any two places that the work's device reaches. */
weir_status weir_task_copy(weir_task *task, weir_lane lane, const weir_work_copy *copies,
                           size_t n_copies);

typedef weir_rows weir_work_rows;
/* In order, as weir_task_copy(). */
weir_status weir_task_copy_rows(weir_task *task, weir_lane lane, const weir_work_rows *rows,
                                size_t n_rows);
/* The same in no order: no byte is written twice, or read after it was written. However many there
 * are, a GPU is told once. */
weir_status weir_task_scatter(weir_task *task, weir_lane lane, const weir_work_rows *rows,
                              size_t n_rows);

/* Room for digests of so many ranges and for scattering so many rows, while nothing is queued that
 * may never end: a GPU that has to make room waits for all that runs on it. ERR_BUSY while the task
 * runs. */
weir_status weir_task_room(weir_task *task, size_t n_ranges, size_t n_rows);

/* One derived parameter; as for weir_derived_compute(). */
typedef struct weir_work_derivation {
    const weir_derived *derived;
    weir_dtype from_dtype;
    const void *from;
    const float *scale;
    const weir_shape *scale_shape;
    void *out;
} weir_work_derivation;
weir_status weir_task_derive(weir_task *task, weir_lane lane,
                             const weir_work_derivation *derivations, size_t n_derivations);

/* Ends the task where everything now in `lane` ends: for work that others queued in its stream. */
weir_status weir_task_mark(weir_task *task, weir_lane lane);

/* IN_PROGRESS while it runs, then how it ended: OK (digests filled), ERR_NONFINITE with the
 * element. OK when nothing was started. */
weir_status weir_task_test(weir_task *task);
/* The same once it has ended; ERR_TIMED_OUT after timeout_ms (the work runs on). */
weir_status weir_task_wait(weir_task *task, unsigned timeout_ms);

#endif
