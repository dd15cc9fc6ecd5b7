/* SPDX-License-Identifier: Apache-2.0 */
/* pool.h - the thread pool behind weir_pool: parallel loops over numbered tasks. */
#ifndef WEIR_BASE_POOL_H
#define WEIR_BASE_POOL_H

#include <stddef.h>

#include "weir/convert.h"

/* Does task `task` of a loop; `thread` (0 … threads-1) tells scratch apart. */
typedef weir_status (*weir_task_fn)(void *context, size_t task, unsigned thread);

/* Runs tasks 0 … n_tasks-1 on all threads, the caller's included, and returns when all have ended.
 * After a failure no further task starts; the status and error line of the lowest failed task are
 * the result. Threads run with the default floating-point environment (round to nearest even, no
 * flush to zero), whatever the caller's is. pool NULL: this thread alone. Calls from several
 * threads on one pool take turns. A task must not call weir_pool_run on its own pool. */
weir_status weir_pool_run(weir_pool *pool, size_t n_tasks, weir_task_fn fn, void *context);

/* Scratch of at least n_bytes (64-byte aligned) that belongs to thread `thread` of the pool until
 * the next call: grows, never shrinks, so a second use allocates nothing. `pool` may be NULL: then
 * it is the calling thread's own. NULL when out of memory. Only from within a task. */
void *weir_pool_scratch(weir_pool *pool, unsigned thread, size_t n_bytes);

/* As much scratch for every thread, before a loop: which threads come to do a task of it is chance,
 * and one that comes for the first time in a later loop allocates nothing then. Not from within a
 * task. ERR_NO_MEMORY. */
weir_status weir_pool_reserve(weir_pool *pool, size_t n_bytes);

#endif
