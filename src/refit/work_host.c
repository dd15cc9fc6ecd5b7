/* SPDX-License-Identifier: Apache-2.0 */
/* work_host.c - work on host memory: the thread pool does it before the call returns.
 *
 * What a GPU would tell when asked (a weight that is not finite) is kept until somebody asks, so
 * that callers see one behaviour; what a GPU would refuse at once is refused at once.
 */
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/pool.h"
#include "convert/nonfinite.h"
#include "device/host.h"
#include "refit/work_ops.h"

#define SHARE_BYTES ((uint64_t)1 << 20)

/* One range of a digest, cut into shares of whole rows, or of words of a single long row. */
typedef struct digest_range {
    const weir_work_range *asked;
    size_t first_share;
    uint64_t rows_per_share; /* 0: rows are longer than a share */
    atomic_uint_fast64_t product, sum;
} digest_range;

typedef struct host_task {
    weir_task base;
    weir_status status; /* not asked for yet */
    weir_error_line line;
    digest_range *ranges;
    size_t n_ranges, room;
} host_task;

/* ---- memory and lanes ------------------------------------------------------------------------*/

static void close_work(weir_work *work)
{
    weir_free(work);
}

static weir_status allocate(weir_work *work, uint64_t n_bytes, void **out)
{
    (void)work;
    return weir_host_allocate(n_bytes, out);
}

static void release(weir_work *work, void *data, uint64_t n_bytes)
{
    (void)work;
    weir_host_free(data, n_bytes);
}

static void *stream(const weir_work *work, weir_lane lane)
{
    (void)work;
    (void)lane;
    return NULL;
}

static weir_status after(weir_work *work, weir_lane lane, weir_lane other)
{
    (void)work;
    (void)lane;
    (void)other;
    return WEIR_OK;
}

static weir_status follow(weir_work *work, void *stream)
{
    (void)work, (void)stream;
    return WEIR_OK;
}

/* ---- tasks -----------------------------------------------------------------------------------*/

static weir_status open_task(weir_work *work, weir_task **out)
{
    host_task *task = weir_alloc_zeroed(1, sizeof(*task));
    if (task == NULL)
        return WEIR_ERR_NO_MEMORY;
    task->base.work = work;
    *out = &task->base;
    return WEIR_OK;
}

static void close_task(weir_task *base)
{
    host_task *task = (host_task *)base;
    weir_free(task->ranges);
    weir_free(task);
}

static weir_status keep(weir_task *base, weir_status status)
{
    host_task *task = (host_task *)base;
    task->status = WEIR_OK;
    if (status != WEIR_ERR_NONFINITE)
        return status;
    task->status = status;
    weir_error_save(&task->line);
    return WEIR_OK;
}

static weir_status test(weir_task *base)
{
    host_task *task = (host_task *)base;
    if (task->status != WEIR_OK)
        weir_error_restore(&task->line);
    return task->status;
}

static weir_status convert(weir_task *task, weir_lane lane, weir_convert_args *args, size_t n_args)
{
    weir_status status = WEIR_OK;
    (void)lane;
    for (size_t i = 0; i < n_args && status == WEIR_OK; i++)
        status = weir_convert(&args[i]);
    return keep(task, status);
}

static weir_status copy(weir_task *task, weir_lane lane, const weir_work_copy *copies,
                        size_t n_copies)
{
    (void)lane;
    for (size_t i = 0; i < n_copies; i++)
        weir_host_copy(task->work->pool, copies[i].to, copies[i].from, copies[i].n_bytes);
    return keep(task, WEIR_OK);
}

static weir_status copy_rows(weir_task *task, weir_lane lane, const weir_work_rows *rows,
                             size_t n_rows)
{
    (void)lane;
    for (size_t i = 0; i < n_rows; i++) {
        unsigned char *to = rows[i].to;
        const unsigned char *from = rows[i].from;
        for (uint64_t r = 0; r < rows[i].n_rows; r++)
            weir_host_copy(task->work->pool, to + r * rows[i].to_pitch,
                           from + r * rows[i].from_pitch, rows[i].row_bytes);
    }
    return keep(task, WEIR_OK);
}

static weir_status room(weir_task *task, size_t n_ranges, size_t n_rows)
{
    (void)task, (void)n_ranges, (void)n_rows;
    return WEIR_OK;
}

static weir_status derive(weir_task *task, weir_lane lane, const weir_work_derivation *derivations,
                          size_t n_derivations)
{
    weir_status status = WEIR_OK;
    (void)lane;
    for (size_t i = 0; i < n_derivations && status == WEIR_OK; i++) {
        const weir_work_derivation *d = &derivations[i];
        status = weir_derived_compute(d->derived, d->from_dtype, d->from, d->scale, d->scale_shape,
                                      d->out);
    }
    return keep(task, status);
}

static weir_status mark(weir_task *task, weir_lane lane)
{
    (void)lane;
    return keep(task, WEIR_OK);
}

/* ---- what is not finite ----------------------------------------------------------------------*/

static bool any_refused_16(const unsigned char *data, size_t n, uint32_t least)
{
    unsigned any = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, data + 2 * i, 2);
        any |= (bits & 0x7FFFu) >= least;
    }
    return any != 0;
}

static bool any_refused_32(const unsigned char *data, size_t n, uint32_t least)
{
    unsigned any = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, data + 4 * i, 4);
        any |= (bits & 0x7FFFFFFFu) >= least;
    }
    return any != 0;
}

/* Names the first refused element of the bytes [first, first + n_bytes) of a range, where one was
 * seen to be. */
static weir_status name_refused(const weir_work_range *range, uint64_t first, uint64_t n_bytes)
{
    unsigned element_bytes = weir_dtype_bits(range->dtype) / 8;
    uint32_t least = weir_nonfinite_least(range->dtype, false), bits = 0;
    uint32_t magnitude = element_bytes == 2 ? 0x7FFFu : 0x7FFFFFFFu;
    uint64_t element = first / element_bytes, end = (first + n_bytes) / element_bytes;
    for (; element < end; element++) {
        memcpy(&bits, (const unsigned char *)range->data + element * element_bytes, element_bytes);
        if ((bits & magnitude) >= least)
            break;
    }
    const char *name = range->name != NULL ? range->name : "(unnamed)";
    if (element == end) /* somebody writes to it */
        return weir_fail(WEIR_ERR_NONFINITE, "%s held what is not finite when it was digested",
                         name);
    uint64_t n_elements = range->n_rows * range->row_bytes / element_bytes;
    weir_tensor seen = { .name = name, .dtype = range->dtype, .shape = { 1, { n_elements } } };
    return weir_nonfinite_fail(&seen, element, bits);
}

static weir_status check_dtype(const weir_work_range *range)
{
    if (!range->check || range->dtype == WEIR_BF16 || range->dtype == WEIR_F16 ||
        range->dtype == WEIR_F32)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID, "%s has dtype %s, only BF16, F16 and F32 can be checked",
                     range->name != NULL ? range->name : "(unnamed)",
                     weir_dtype_name(range->dtype));
}

static weir_status check_finite(const weir_work_range *range, uint64_t first, uint64_t n_bytes)
{
    const unsigned char *data = (const unsigned char *)range->data + first;
    uint32_t least = weir_nonfinite_least(range->dtype, false);
    bool refused = range->dtype == WEIR_F32 ? any_refused_32(data, n_bytes / 4, least)
                                            : any_refused_16(data, n_bytes / 2, least);
    return refused ? name_refused(range, first, n_bytes) : WEIR_OK;
}

/* ---- digests ---------------------------------------------------------------------------------*/

static digest_range *range_of_share(const host_task *task, size_t share)
{
    size_t low = 0, high = task->n_ranges - 1;
    while (low < high) {
        size_t middle = low + (high - low + 1) / 2;
        if (task->ranges[middle].first_share <= share)
            low = middle;
        else
            high = middle - 1;
    }
    return &task->ranges[low];
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static weir_status digest_share(void *context, size_t number, unsigned thread)
{
    digest_range *range = range_of_share(context, number);
    const weir_work_range *asked = range->asked;
    const unsigned char *data = asked->data;
    uint64_t words = weir_digest_words_per_row(asked->row_bytes);
    uint64_t share = number - range->first_share, row, within = 0, n_rows = 1, n_bytes;
    weir_digest part = { 0, 0 };
    (void)thread;
    if (range->rows_per_share != 0) {
        row = share * range->rows_per_share;
        n_rows = least(range->rows_per_share, asked->n_rows - row);
        n_bytes = asked->row_bytes;
    } else {
        uint64_t per_row = (asked->row_bytes + SHARE_BYTES - 1) / SHARE_BYTES;
        row = share / per_row;
        within = share % per_row * SHARE_BYTES;
        n_bytes = least(SHARE_BYTES, asked->row_bytes - within);
    }
    uint64_t first = row * asked->row_bytes + within;
    weir_digest_rectangle(&part, data + first, asked->row_bytes, n_rows, n_bytes,
                          asked->first_word + row * words + within / 8, words);
    atomic_fetch_add_explicit(&range->product, part.product, memory_order_relaxed);
    atomic_fetch_add_explicit(&range->sum, part.sum, memory_order_relaxed);
    return asked->check ? check_finite(asked, first, n_rows * n_bytes) : WEIR_OK;
}

/* Fills task->ranges; returns the shares of all of them. */
static size_t plan_shares(host_task *task, const weir_work_range *ranges)
{
    size_t n_shares = 0;
    for (size_t i = 0; i < task->n_ranges; i++) {
        uint64_t n_rows = ranges[i].n_rows, row_bytes = ranges[i].row_bytes, rows = 0, n = 0;
        if (row_bytes > SHARE_BYTES) {
            n = n_rows * ((row_bytes + SHARE_BYTES - 1) / SHARE_BYTES);
        } else if (row_bytes > 0) {
            rows = SHARE_BYTES / row_bytes;
            n = n_rows / rows + (n_rows % rows != 0);
        }
        task->ranges[i] =
            (digest_range){ .asked = &ranges[i], .first_share = n_shares, .rows_per_share = rows };
        n_shares += n;
    }
    return n_shares;
}

static weir_status take_ranges(host_task *task, const weir_work_range *ranges, size_t n_ranges)
{
    for (size_t i = 0; i < n_ranges; i++) {
        weir_status status = check_dtype(&ranges[i]);
        if (status != WEIR_OK)
            return status;
    }
    if (n_ranges > task->room) {
        weir_free(task->ranges);
        task->room = 0;
        task->ranges = weir_alloc_zeroed(n_ranges, sizeof(*task->ranges));
        if (task->ranges == NULL)
            return WEIR_ERR_NO_MEMORY;
        task->room = n_ranges;
    }
    task->n_ranges = n_ranges;
    return WEIR_OK;
}

static weir_status digest(weir_task *base, weir_lane lane, const weir_work_range *ranges,
                          size_t n_ranges)
{
    host_task *task = (host_task *)base;
    (void)lane;
    weir_status status = take_ranges(task, ranges, n_ranges);
    if (status != WEIR_OK)
        return status;
    size_t n_shares = plan_shares(task, ranges);
    status = weir_pool_run(n_shares > 1 ? base->work->pool : NULL, n_shares, digest_share, task);
    for (size_t i = 0; i < n_ranges && status == WEIR_OK; i++)
        *ranges[i].digest = (weir_digest){ atomic_load(&task->ranges[i].product),
                                           atomic_load(&task->ranges[i].sum) };
    return keep(base, status);
}

/* ---- the table -------------------------------------------------------------------------------*/

static const weir_work_ops host_ops = {
    .close = close_work,
    .allocate = allocate,
    .free = release,
    .allocate_host = allocate,
    .free_host = release,
    .stream = stream,
    .after = after,
    .follow = follow,
    .task_open = open_task,
    .task_close = close_task,
    .convert = convert,
    .digest = digest,
    .copy = copy,
    .copy_rows = copy_rows,
    .scatter = copy_rows,
    .room = room,
    .derive = derive,
    .mark = mark,
    .test = test,
};

weir_status weir_work_host_open(weir_pool *pool, weir_work **out)
{
    weir_work *work = weir_alloc_zeroed(1, sizeof(*work));
    if (work == NULL)
        return WEIR_ERR_NO_MEMORY;
    *work = (weir_work){ .ops = &host_ops, .memory = WEIR_MEMORY_HOST, .pool = pool };
    *out = work;
    return WEIR_OK;
}
