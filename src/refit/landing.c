/* SPDX-License-Identifier: Apache-2.0 */
/* landing.c - the pieces that a plan's copies are read, verified and exchanged in.
 *
 * A plan may have very many copies, each of them short: neighbours are joined where they lie side
 * by side at both ends, and one parallel loop runs over the pieces of all. Digests stay per copy,
 * as their source published them. What moves bytes is in transfer.c and exchange.c.
 */
#include "refit/landing.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/pool.h"
#include "refit/replica.h"
#include "refit/row_list.h"

#define TASK_BYTES ((uint64_t)1 << 20) /* whole words of a digest */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static const weir_shard *shard_of(const weir_schedule *schedule, const weir_plan_copy *planned)
{
    return &schedule->participants[planned->source].remote->shards[planned->shard];
}

/* ---- reads -----------------------------------------------------------------------------------*/

/* Runs of a copy as they are read: staged it is one. */
static uint64_t run_bytes_of(const weir_replica *replica, const weir_plan_copy *planned)
{
    bool in_place = replica->mode == WEIR_INSTALL_DIRECT || replica->schedule.loads;
    return in_place ? planned->run_bytes : planned->n_bytes;
}

static unsigned char *destination(const weir_replica *replica, const weir_plan_copy *planned)
{
    if (replica->schedule.loads)
        return weir_loader_at(replica->loader, planned->parameter) + planned->parameter_offset;
    if (replica->mode == WEIR_INSTALL_DIRECT)
        return (unsigned char *)replica->live[planned->parameter].data + planned->parameter_offset;
    return replica->staging + replica->staging_offset[planned->parameter] + planned->packed_offset;
}

static bool continues(const weir_copy *before, const weir_copy *after)
{
    return before->remote == after->remote && before->offset + before->n_bytes == after->offset &&
           (unsigned char *)before->local + before->n_bytes == (unsigned char *)after->local;
}

/* Adds a copy's runs to the reads [first, n); returns how many there are then. */
static size_t list_runs(const weir_replica *replica, const weir_plan_copy *planned,
                        weir_copy *reads, size_t first, size_t n)
{
    const weir_remote *remote = replica->schedule.participants[planned->source].remote;
    uint64_t run_bytes = run_bytes_of(replica, planned);
    unsigned char *to = destination(replica, planned);
    for (uint64_t at = 0; at < planned->n_bytes; at += run_bytes, to += planned->pitch_bytes) {
        weir_copy read = { remote->regions[planned->region], planned->source_offset + at, to,
                           run_bytes };
        if (n > first && continues(&reads[n - 1], &read))
            reads[n - 1].n_bytes += run_bytes;
        else
            reads[n++] = read;
    }
    return n;
}

/* Lists the reads of a part behind the first n; returns how many there are then. */
static size_t aim_part(const weir_replica *replica, weir_landing_part *part, size_t n)
{
    const weir_schedule *schedule = &replica->schedule;
    part->first_read = n;
    for (size_t i = part->first_copy; i < part->first_copy + part->n_copies; i++)
        n = list_runs(replica, &schedule->planned[i], schedule->landing.reads, part->first_read, n);
    part->n_reads = n - part->first_read;
    return n;
}

void weir_landing_aim(weir_replica *replica)
{
    weir_schedule *schedule = &replica->schedule;
    size_t n = 0;
    for (size_t p = 0; p < schedule->n_participants; p++) {
        weir_participant *participant = &schedule->participants[p];
        participant->first_read = n;
        for (size_t k = 0; k < participant->n_parts; k++)
            n = aim_part(replica, &schedule->landing.parts[participant->first_part + k], n);
        participant->n_reads = n - participant->first_read;
    }
}

/* Live parameters were allocated one by one; staging and a loader's buffer were not. */
static uint32_t piece_of(const weir_replica *replica, const weir_plan_copy *planned)
{
    bool is_live = replica->mode == WEIR_INSTALL_DIRECT && !replica->schedule.loads;
    return is_live ? planned->parameter : 0;
}

size_t weir_landing_rows(const weir_replica *replica, const weir_landing_part *part,
                         const unsigned char *window, weir_work_rows *out)
{
    weir_row_list list = { .rows = out };
    for (size_t i = part->first_copy; i < part->first_copy + part->n_copies; i++) {
        const weir_plan_copy *planned = &replica->schedule.planned[i];
        uint64_t run_bytes = run_bytes_of(replica, planned);
        if (planned->n_bytes == 0)
            continue;
        const weir_work_rows rows = { .to = destination(replica, planned),
                                      .from = window + planned->source_offset,
                                      .row_bytes = run_bytes,
                                      .n_rows = planned->n_bytes / run_bytes,
                                      .to_pitch = planned->pitch_bytes,
                                      .from_pitch = run_bytes };
        weir_row_list_add(&list, &rows, piece_of(replica, planned));
    }
    return list.n;
}

static weir_status open_reads(weir_replica *replica)
{
    const weir_schedule *schedule = &replica->schedule;
    weir_landing *landing = &replica->schedule.landing;
    uint64_t n = 0;
    for (size_t i = 0; i < schedule->n_copies; i++) {
        const weir_plan_copy *planned = &schedule->planned[i];
        n += planned->n_bytes != 0 ? planned->n_bytes / run_bytes_of(replica, planned) : 0;
    }
    landing->n_reads_room = n;
    landing->reads = weir_alloc_zeroed(n, sizeof(*landing->reads));
    return landing->reads != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

/* ---- what landed -----------------------------------------------------------------------------*/

/* A digest goes by the rows of the box; runs are whole rows of it. */
static weir_status open_copy(const weir_replica *replica, const weir_plan_copy *planned,
                             weir_landed *out)
{
    const weir_shard *shard = shard_of(&replica->schedule, planned);
    weir_shape shape = weir_box_shape(&shard->box);
    uint64_t run_bytes = run_bytes_of(replica, planned);
    weir_digest_rows_of(shard->dtype, &shape, &out->n_rows, &out->row_bytes);
    out->rows_per_run = out->n_rows;
    if (run_bytes != planned->n_bytes) {
        if (out->row_bytes == 0 || run_bytes % out->row_bytes != 0)
            return weir_fail(WEIR_ERR_INTERNAL, "%s: runs of %" PRIu64 " bytes of rows of %" PRIu64,
                             shard->name, run_bytes, out->row_bytes);
        out->rows_per_run = run_bytes / out->row_bytes;
        out->pitch_bytes = planned->pitch_bytes;
    }
    return WEIR_OK;
}

static size_t tasks_of(weir_landed *landed)
{
    if (landed->row_bytes == 0 || landed->n_rows == 0)
        return 0;
    if (landed->row_bytes > TASK_BYTES)
        return landed->n_rows * ((landed->row_bytes + TASK_BYTES - 1) / TASK_BYTES);
    landed->rows_per_task = TASK_BYTES / landed->row_bytes;
    return landed->n_rows / landed->rows_per_task + (landed->n_rows % landed->rows_per_task != 0);
}

static weir_status open_landed(weir_replica *replica)
{
    const weir_schedule *schedule = &replica->schedule;
    weir_landing *landing = &replica->schedule.landing;
    weir_status status = WEIR_OK;
    landing->landed = weir_alloc_zeroed(schedule->n_copies, sizeof(*landing->landed));
    if (landing->landed == NULL)
        return WEIR_ERR_NO_MEMORY;
    landing->n_landed_tasks = 0;
    for (size_t i = 0; i < schedule->n_copies && status == WEIR_OK; i++) {
        weir_landed *landed = &landing->landed[i];
        status = open_copy(replica, &schedule->planned[i], landed);
        landed->first_task = landing->n_landed_tasks;
        landing->n_landed_tasks += tasks_of(landed);
    }
    return status;
}

/* ---- digests of host memory ------------------------------------------------------------------*/

/* The copy that a task is of: the last one whose first task is not behind it. */
static size_t copy_of_task(const weir_schedule *schedule, size_t task)
{
    const weir_landed *landed = schedule->landing.landed;
    size_t low = 0, high = schedule->n_copies - 1;
    while (low < high) {
        size_t middle = low + (high - low + 1) / 2;
        if (landed[middle].first_task <= task)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Rows [row, row + n_rows), run by run; where every row is a run, at one go. */
static void digest_rows(const weir_landed *landed, const unsigned char *data, uint64_t row,
                        uint64_t n_rows, weir_digest *digest)
{
    uint64_t words = weir_digest_words_per_row(landed->row_bytes);
    if (landed->rows_per_run == 1) {
        weir_digest_rectangle(digest, data + row * landed->pitch_bytes, landed->pitch_bytes, n_rows,
                              landed->row_bytes, row * words, words);
        return;
    }
    for (uint64_t end = row + n_rows, n; row < end; row += n) {
        uint64_t within = row % landed->rows_per_run;
        n = least(landed->rows_per_run - within, end - row);
        weir_digest_rectangle(digest,
                              data + row / landed->rows_per_run * landed->pitch_bytes +
                                  within * landed->row_bytes,
                              landed->row_bytes, n, landed->row_bytes, row * words, words);
    }
}

/* A part of one long row. */
static void digest_part(const weir_landed *landed, const unsigned char *data, uint64_t task,
                        weir_digest *digest)
{
    uint64_t per_row = (landed->row_bytes + TASK_BYTES - 1) / TASK_BYTES;
    uint64_t row = task / per_row, within = task % per_row * TASK_BYTES;
    uint64_t words = weir_digest_words_per_row(landed->row_bytes);
    data += row / landed->rows_per_run * landed->pitch_bytes +
            row % landed->rows_per_run * landed->row_bytes;
    weir_digest_rectangle(digest, data + within, 0, 1,
                          least(TASK_BYTES, landed->row_bytes - within), row * words + within / 8,
                          words);
}

/* Tasks of some copies. */
typedef struct digest_run {
    const weir_replica *replica;
    size_t first_task;
} digest_run;

static weir_status digest_task(void *context, size_t number, unsigned thread)
{
    const digest_run *run = context;
    const weir_replica *replica = run->replica;
    const weir_schedule *schedule = &replica->schedule;
    number += run->first_task;
    size_t i = copy_of_task(schedule, number);
    weir_landed *landed = &schedule->landing.landed[i];
    const unsigned char *data = destination(replica, &schedule->planned[i]);
    uint64_t task = number - landed->first_task;
    weir_digest part = { 0, 0 };
    (void)thread;
    if (landed->rows_per_task != 0)
        digest_rows(landed, data, task * landed->rows_per_task,
                    least(landed->rows_per_task, landed->n_rows - task * landed->rows_per_task),
                    &part);
    else
        digest_part(landed, data, task, &part);
    atomic_fetch_add_explicit(&landed->product, part.product, memory_order_relaxed);
    atomic_fetch_add_explicit(&landed->sum, part.sum, memory_order_relaxed);
    return WEIR_OK;
}

/* ---- digests of GPU memory -------------------------------------------------------------------*/

static weir_status digest_on_gpu(weir_replica *replica, weir_work_range *range, weir_digest *out)
{
    weir_digest found = { 0, 0 };
    range->digest = &found;
    weir_status status = weir_task_digest(replica->derive, WEIR_LANE_COMPUTE, range, 1);
    if (status == WEIR_OK)
        status = weir_task_wait(replica->derive, replica->worker.timeout_ms);
    weir_digest_merge(out, &found);
    return status;
}

/* Lays runs one behind the other in the bounce buffer. */
static weir_status pack_runs(weir_replica *replica, const unsigned char *data, uint64_t run_bytes,
                             uint64_t pitch_bytes, uint64_t n_runs)
{
    weir_work_rows rows = { replica->bounce, data, run_bytes, n_runs, run_bytes, pitch_bytes };
    weir_status status = weir_task_copy_rows(replica->derive, WEIR_LANE_COMPUTE, &rows, 1);
    if (status == WEIR_OK)
        status = weir_task_wait(replica->derive, replica->worker.timeout_ms);
    return status;
}

/* GPUs digest dense rows: runs are packed first, unless each is long enough by itself. */
static weir_status digest_runs_on_gpu(weir_replica *replica, const weir_landed *landed,
                                      const unsigned char *data, weir_work_range *range,
                                      weir_digest *out)
{
    uint64_t run_bytes = landed->rows_per_run * landed->row_bytes;
    uint64_t n_runs = landed->n_rows / landed->rows_per_run;
    bool packs = run_bytes <= WEIR_BOUNCE_BYTES;
    uint64_t step = packs ? WEIR_BOUNCE_BYTES / run_bytes : 1;
    weir_status status = packs ? weir_bounce_open(replica) : WEIR_OK;
    for (uint64_t run = 0; run < n_runs && status == WEIR_OK; run += step) {
        const unsigned char *first = data + run * landed->pitch_bytes;
        uint64_t n = least(step, n_runs - run), row = run * landed->rows_per_run;
        if (packs)
            status = pack_runs(replica, first, run_bytes, landed->pitch_bytes, n);
        range->data = packs ? replica->bounce : first;
        range->n_rows = n * landed->rows_per_run;
        range->first_word = row * weir_digest_words_per_row(landed->row_bytes);
        if (status == WEIR_OK)
            status = digest_on_gpu(replica, range, out);
    }
    return status;
}

static weir_status digest_copy_on_gpu(weir_replica *replica, size_t i)
{
    const weir_schedule *schedule = &replica->schedule;
    weir_landed *landed = &schedule->landing.landed[i];
    const unsigned char *data = destination(replica, &schedule->planned[i]);
    const weir_shard *shard = shard_of(schedule, &schedule->planned[i]);
    weir_digest found = { 0, 0 };
    weir_work_range range = { .name = shard->name,
                              .data = data,
                              .n_rows = landed->n_rows,
                              .row_bytes = landed->row_bytes,
                              .dtype = shard->dtype };
    weir_status status = landed->rows_per_run == landed->n_rows
                             ? digest_on_gpu(replica, &range, &found)
                             : digest_runs_on_gpu(replica, landed, data, &range, &found);
    atomic_store(&landed->product, found.product);
    atomic_store(&landed->sum, found.sum);
    return status;
}

/* ---- verifying -------------------------------------------------------------------------------*/

static weir_status digest_on_host(weir_replica *replica, size_t first, size_t n)
{
    const weir_schedule *schedule = &replica->schedule;
    const weir_landing *landing = &schedule->landing;
    size_t end = first + n < schedule->n_copies ? landing->landed[first + n].first_task
                                                : landing->n_landed_tasks;
    digest_run run = { replica, landing->landed[first].first_task };
    return weir_pool_run(replica->worker.pool, end - run.first_task, digest_task, &run);
}

/* What landed in staging lies in host memory; what landed directly, where the parameters lie. */
static weir_status digest_copies(weir_replica *replica, size_t first, size_t n)
{
    weir_schedule *schedule = &replica->schedule;
    weir_status status = WEIR_OK;
    for (size_t i = first; i < first + n; i++) {
        atomic_store(&schedule->landing.landed[i].product, 0);
        atomic_store(&schedule->landing.landed[i].sum, 0);
    }
    bool staged = replica->mode == WEIR_INSTALL_STAGED && !schedule->loads;
    if (staged || weir_work_memory(replica->work) == WEIR_MEMORY_HOST)
        return digest_on_host(replica, first, n);
    for (size_t i = first; i < first + n && status == WEIR_OK; i++)
        status = digest_copy_on_gpu(replica, i);
    return status;
}

static weir_status compare(weir_schedule *schedule, size_t i, const weir_digest *found)
{
    weir_remote *remote = schedule->participants[schedule->planned[i].source].remote;
    const weir_shard *shard = shard_of(schedule, &schedule->planned[i]);
    if (weir_digest_equal(found, &shard->digest))
        return WEIR_OK;
    schedule->differs = remote;
    return weir_fail(WEIR_ERR_CORRUPT,
                     "digest of %s differs: %s published %016" PRIx64 "%016" PRIx64 ", %016" PRIx64
                     "%016" PRIx64 " arrived",
                     shard->name, remote->who, shard->digest.product, shard->digest.sum,
                     found->product, found->sum);
}

static weir_status verify_copies(weir_replica *replica, size_t first, size_t n)
{
    weir_schedule *schedule = &replica->schedule;
    weir_status status = n > 0 ? digest_copies(replica, first, n) : WEIR_OK;
    for (size_t i = first; i < first + n && status == WEIR_OK; i++) {
        weir_landed *landed = &schedule->landing.landed[i];
        weir_digest found = { atomic_load(&landed->product), atomic_load(&landed->sum) };
        status = compare(schedule, i, &found);
    }
    return status;
}

weir_status weir_landing_compare_part(weir_replica *replica, const weir_landing_part *part,
                                      const weir_digest *found)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < part->n_copies && status == WEIR_OK; i++)
        status = compare(&replica->schedule, part->first_copy + i, &found[i]);
    return status;
}

weir_status weir_landing_verify_part(weir_replica *replica, const weir_landing_part *part)
{
    return verify_copies(replica, part->first_copy, part->n_copies);
}

/* Participants whose groups were verified already are passed over; the copies between them are
 * verified together. */
weir_status weir_landing_verify(weir_replica *replica)
{
    const weir_schedule *schedule = &replica->schedule;
    weir_status status = WEIR_OK;
    if (schedule->loads) /* each part was, before it was converted */
        return WEIR_OK;
    for (size_t i = 0, end; i < schedule->n_copies && status == WEIR_OK; i = end) {
        bool grouped = schedule->participants[schedule->planned[i].source].remote->n_groups > 0;
        for (end = i; end < schedule->n_copies; end++) {
            const weir_participant *of = &schedule->participants[schedule->planned[end].source];
            if ((of->remote->n_groups > 0) != grouped)
                break;
        }
        if (!grouped)
            status = verify_copies(replica, i, end - i);
    }
    return status;
}

/* ---- swaps -----------------------------------------------------------------------------------*/

static int compare_swaps(const void *a, const void *b)
{
    const weir_swap *x = a, *y = b;
    if (x->parameter != y->parameter)
        return x->parameter < y->parameter ? -1 : 1;
    return (x->staged_at > y->staged_at) - (x->staged_at < y->staged_at);
}

static bool joins(const weir_swap *before, const weir_swap *after)
{
    return before->parameter == after->parameter && before->run_bytes == before->n_bytes &&
           after->run_bytes == after->n_bytes &&
           before->staged_at + before->n_bytes == after->staged_at &&
           before->live_at + before->n_bytes == after->live_at;
}

/* What a loader writes stands in staging where it stands in its parameter. */
static weir_swap swap_of(const weir_replica *replica, size_t i)
{
    const weir_schedule *schedule = &replica->schedule;
    if (schedule->loads) {
        const weir_loader_output *output = &replica->loader->outputs[i];
        return (weir_swap){ .parameter = output->parameter,
                            .staged_at = output->offset,
                            .live_at = output->offset,
                            .n_bytes = output->n_bytes,
                            .run_bytes = output->n_bytes };
    }
    const weir_plan_copy *planned = &schedule->planned[i];
    return (weir_swap){ .parameter = planned->parameter,
                        .staged_at = planned->packed_offset,
                        .live_at = planned->parameter_offset,
                        .n_bytes = planned->n_bytes,
                        .run_bytes = planned->run_bytes,
                        .pitch_bytes = planned->pitch_bytes };
}

static weir_status open_swaps(weir_replica *replica)
{
    const weir_schedule *schedule = &replica->schedule;
    weir_landing *landing = &replica->schedule.landing;
    size_t n = schedule->loads ? replica->loader->n_outputs : schedule->n_copies, n_joined = 0;
    weir_swap *swaps = weir_alloc_zeroed(n, sizeof(*swaps));
    if (swaps == NULL)
        return WEIR_ERR_NO_MEMORY;
    landing->swaps = swaps;
    for (size_t i = 0; i < n; i++)
        swaps[i] = swap_of(replica, i);
    qsort(swaps, n, sizeof(*swaps), compare_swaps);
    for (size_t i = 0; i < n; i++) {
        if (n_joined > 0 && joins(&swaps[n_joined - 1], &swaps[i])) {
            swaps[n_joined - 1].n_bytes += swaps[i].n_bytes;
            swaps[n_joined - 1].run_bytes = swaps[n_joined - 1].n_bytes;
        } else if (swaps[i].n_bytes != 0) {
            swaps[n_joined++] = swaps[i];
        }
    }
    landing->n_swaps = n_joined;
    return WEIR_OK;
}

/* ---- open and close --------------------------------------------------------------------------*/

weir_status weir_landing_open(weir_replica *replica)
{
    weir_status status = weir_landing_part_up(replica);
    if (status == WEIR_OK)
        status = open_reads(replica);
    if (status == WEIR_OK)
        status = open_landed(replica);
    if (status == WEIR_OK && replica->mode == WEIR_INSTALL_STAGED)
        status = open_swaps(replica);
    if (status != WEIR_OK)
        weir_landing_close(&replica->schedule.landing);
    return status;
}

void weir_landing_close(weir_landing *landing)
{
    weir_free(landing->ordered);
    weir_free(landing->parts);
    weir_free(landing->reads);
    weir_free(landing->landed);
    weir_free(landing->swaps);
    weir_free(landing->exchange);
    *landing = (weir_landing){ 0 };
}
