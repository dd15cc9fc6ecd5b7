/* SPDX-License-Identifier: Apache-2.0 */
/* work_ops.h - the table of operations behind work.h: one for host memory, one for GPUs.
 *
 * Every cell is filled. A cell that starts something is called only when nothing runs in the task,
 * and leaves nothing running when it fails.
 */
#ifndef WEIR_REFIT_WORK_OPS_H
#define WEIR_REFIT_WORK_OPS_H

#include "refit/work.h"

typedef struct weir_work_ops {
    void (*close)(weir_work *work);
    weir_status (*allocate)(weir_work *work, uint64_t n_bytes, void **out);
    void (*free)(weir_work *work, void *data, uint64_t n_bytes); /* data is not NULL */
    weir_status (*allocate_host)(weir_work *work, uint64_t n_bytes, void **out);
    void (*free_host)(weir_work *work, void *data, uint64_t n_bytes);
    void *(*stream)(const weir_work *work, weir_lane lane);
    weir_status (*after)(weir_work *work, weir_lane lane, weir_lane other);
    weir_status (*follow)(weir_work *work, void *stream);

    weir_status (*task_open)(weir_work *work, weir_task **out);
    void (*task_close)(weir_task *task);
    weir_status (*convert)(weir_task *task, weir_lane lane, weir_convert_args *args, size_t n_args);
    weir_status (*digest)(weir_task *task, weir_lane lane, const weir_work_range *ranges,
                          size_t n_ranges);
    weir_status (*copy)(weir_task *task, weir_lane lane, const weir_work_copy *copies,
                        size_t n_copies);
    weir_status (*copy_rows)(weir_task *task, weir_lane lane, const weir_work_rows *rows,
                             size_t n_rows);
    weir_status (*scatter)(weir_task *task, weir_lane lane, const weir_work_rows *rows,
                           size_t n_rows);
    weir_status (*room)(weir_task *task, size_t n_ranges, size_t n_rows);
    weir_status (*derive)(weir_task *task, weir_lane lane, const weir_work_derivation *derivations,
                          size_t n_derivations);
    weir_status (*mark)(weir_task *task, weir_lane lane);
    weir_status (*test)(weir_task *task); /* something was started */
} weir_work_ops;

/* What every kind's own struct begins with. */
struct weir_work {
    const weir_work_ops *ops;
    uint32_t memory;
    unsigned device;
    weir_pool *pool;
};

struct weir_task {
    weir_work *work;
    bool started; /* and its end was not seen */
};

weir_status weir_work_host_open(weir_pool *pool, weir_work **out);
weir_status weir_work_cuda_open(unsigned device, weir_pool *pool, weir_work **out);

#endif
