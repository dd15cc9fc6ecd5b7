/* SPDX-License-Identifier: Apache-2.0 */
/* outlet.c - makes the steps of a push where they are wanted: straight in the first member's mapped
 * memory, or in windows of the trainer's own that are broadcast.
 *
 * Three slots take turns. In mapped memory a piece whose bytes are its source's is moved by the
 * copy engine, beside the kernels, while its digest is taken from the source; everything else is
 * converted and stored by one kernel.
 */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit/serve.h"

#define DEFAULT_WINDOW_BYTES ((uint64_t)192 << 20)
#define MAPPED_STEP_BYTES ((uint64_t)512 << 20)
#define WINDOW_ALIGNMENT 256u
#define ABORT_MS 5000u

typedef struct slot {
    weir_task *digest, *copy, *sent;
    weir_convert_args *args;
    weir_work_range *ranges;
    weir_work_copy *copies;
    weir_group_part *parts;
    size_t room; /* pieces */
} slot;

struct weir_outlet {
    weir_push *push;
    weir_link link;
    weir_places places;     /* mapped: of the first member */
    uint64_t window_bytes;  /* of each window, as asked for */
    unsigned char *windows; /* broadcast: WEIR_STEPS_AHEAD of them */
    uint64_t windows_each;  /* as allocated */
    weir_group *group;
    uint64_t group_numbers[WEIR_MAX_MEMBERS]; /* of its members, in order */
    size_t n_group;
    unsigned char group_key[WEIR_GROUP_KEY_BYTES];
    slot slots[WEIR_STEPS_AHEAD];
    weir_task **converts; /* one per step: the same step again sends its GPU no tables */
    size_t n_converts;
    uint64_t cut; /* the steps' that they are for */
};

/* ---- open and close --------------------------------------------------------------------------*/

static weir_status open_slot(weir_outlet *outlet, slot *at)
{
    weir_work *work = outlet->push->work;
    weir_status status = weir_task_open(work, &at->digest);
    if (status == WEIR_OK)
        status = weir_task_open(work, &at->copy);
    if (status == WEIR_OK)
        status = weir_task_open(work, &at->sent);
    return status;
}

weir_status weir_outlet_open(weir_push *push, const weir_push_options *options, weir_outlet **out)
{
    weir_outlet *outlet = weir_alloc_zeroed(1, sizeof(*outlet));
    if (outlet == NULL)
        return WEIR_ERR_NO_MEMORY;
    outlet->push = push;
    uint64_t total = options->window_bytes ? options->window_bytes : DEFAULT_WINDOW_BYTES;
    outlet->window_bytes = total / WEIR_STEPS_AHEAD / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT;
    weir_status status = weir_worker_link(push->worker, options->transport, &outlet->link);
    if (status == WEIR_OK && !(outlet->link.ops->caps & (WEIR_CAP_MAP | WEIR_CAP_MATCHED)))
        status = weir_fail(WEIR_ERR_UNSUPPORTED,
                           "transport %s can neither map a replica's memory nor broadcast: a "
                           "version cannot be pushed through it",
                           outlet->link.ops->name);

    if (status == WEIR_OK && weir_outlet_broadcasts(outlet) && outlet->window_bytes == 0)
        status = weir_fail(WEIR_ERR_INVALID,
                           "window_bytes of %" PRIu64 " is too little to broadcast through", total);
    for (size_t i = 0; i < WEIR_STEPS_AHEAD && status == WEIR_OK; i++)
        status = open_slot(outlet, &outlet->slots[i]);
    if (status != WEIR_OK) {
        weir_outlet_close(outlet);
        return status;
    }
    *out = outlet;
    return WEIR_OK;
}

static void drop_windows(weir_outlet *outlet)
{
    weir_work_free(outlet->push->work, outlet->windows, outlet->windows_each * WEIR_STEPS_AHEAD);
    outlet->windows = NULL;
    outlet->windows_each = 0;
}

static void leave_group(weir_outlet *outlet, bool abort)
{
    if (outlet->group != NULL)
        outlet->link.ops->group_close(outlet->group, abort);
    outlet->group = NULL;
    outlet->n_group = 0;
}

static void close_converts(weir_outlet *outlet)
{
    for (size_t i = 0; i < outlet->n_converts; i++)
        weir_task_close(outlet->converts[i]);
    weir_free(outlet->converts);
    outlet->converts = NULL;
    outlet->n_converts = 0;
}

void weir_outlet_close(weir_outlet *outlet)
{
    if (outlet == NULL)
        return;
    for (size_t i = 0; i < WEIR_STEPS_AHEAD; i++) {
        slot *at = &outlet->slots[i];
        weir_task_close(at->digest);
        weir_task_close(at->copy);
        weir_task_close(at->sent);
        weir_free(at->args);
        weir_free(at->ranges);
        weir_free(at->copies);
        weir_free(at->parts);
    }
    close_converts(outlet);
    leave_group(outlet, false);
    weir_places_drop(&outlet->places);
    drop_windows(outlet);
    weir_free(outlet);
}

const char *weir_outlet_transport(const weir_outlet *outlet)
{
    return outlet->link.ops->name;
}

bool weir_outlet_broadcasts(const weir_outlet *outlet)
{
    return !(outlet->link.ops->caps & WEIR_CAP_MAP); /* which takes no window */
}

/* ---- before the steps ------------------------------------------------------------------------*/

uint64_t weir_outlet_step_limit(const weir_outlet *outlet, weir_member *const *members, size_t n)
{
    uint64_t limit = weir_outlet_broadcasts(outlet) ? outlet->window_bytes : MAPPED_STEP_BYTES;
    for (size_t i = 0; i < n; i++) {
        if (members[i]->ready.staged && members[i]->ready.window_bytes < limit)
            limit = members[i]->ready.window_bytes;
    }
    return limit;
}

static weir_status grow_slot(slot *at, size_t n)
{
    if (n <= at->room)
        return WEIR_OK;
    weir_free(at->args);
    weir_free(at->ranges);
    weir_free(at->copies);
    weir_free(at->parts);
    at->room = 0;
    at->args = weir_alloc_zeroed(n, sizeof(*at->args));
    at->ranges = weir_alloc_zeroed(n, sizeof(*at->ranges));
    at->copies = weir_alloc_zeroed(n, sizeof(*at->copies));
    at->parts = weir_alloc_zeroed(n * WEIR_MAX_OUTPUTS, sizeof(*at->parts));
    if (at->args == NULL || at->ranges == NULL || at->copies == NULL || at->parts == NULL)
        return WEIR_ERR_NO_MEMORY;
    at->room = n;
    return WEIR_OK;
}

static weir_status open_converts(weir_outlet *outlet)
{
    const weir_push *push = outlet->push;
    if (outlet->converts != NULL && outlet->cut == push->n_cuts)
        return WEIR_OK;
    close_converts(outlet);
    outlet->converts = weir_alloc_zeroed(push->steps.n_steps, sizeof(*outlet->converts));
    weir_status status = outlet->converts != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < push->steps.n_steps && status == WEIR_OK; i++) {
        status = weir_task_open(push->work, &outlet->converts[i]);
        outlet->n_converts += status == WEIR_OK;
    }
    outlet->cut = status == WEIR_OK ? push->n_cuts : 0;
    return status;
}

static weir_status grow_slots(weir_outlet *outlet)
{
    const weir_steps *steps = &outlet->push->steps;
    size_t most = 0;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < steps->n_steps; i++)
        most = steps->steps[i].n_pieces > most ? steps->steps[i].n_pieces : most;
    for (size_t i = 0; i < WEIR_STEPS_AHEAD && status == WEIR_OK; i++)
        status = grow_slot(&outlet->slots[i], most);
    return status;
}

static weir_status grow_windows(weir_outlet *outlet)
{
    uint64_t each = outlet->push->steps.largest_packed_bytes;
    if (each < outlet->window_bytes)
        each = outlet->window_bytes;
    each = (each + WINDOW_ALIGNMENT - 1) / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT;
    if (each <= outlet->windows_each)
        return WEIR_OK;
    void *memory = NULL;
    drop_windows(outlet);
    outlet->push->worker->counters.allocations++;
    weir_status status = weir_work_allocate(outlet->push->work, each * WEIR_STEPS_AHEAD, &memory);
    if (status != WEIR_OK)
        return status;
    outlet->windows = memory;
    outlet->windows_each = each;
    return WEIR_OK;
}

static bool group_stands(const weir_outlet *outlet, weir_member *const *members, size_t n)
{
    bool same = outlet->group != NULL && outlet->n_group == n;
    for (size_t i = 0; i < n && same; i++)
        same = outlet->group_numbers[i] == members[i]->number;
    return same;
}

static weir_status begin_group(weir_outlet *outlet, weir_member *const *members, size_t n,
                               const void **out_group_key)
{
    const weir_link *link = &outlet->link;
    if (group_stands(outlet, members, n))
        return WEIR_OK;
    leave_group(outlet, false);
    weir_status status = link->ops->group_key(link->transport, outlet->group_key);
    if (status != WEIR_OK)
        return status;
    weir_group_options options = WEIR_GROUP_OPTIONS_INIT;
    options.key = outlet->group_key;
    options.rank = 0;
    options.n_ranks = (uint32_t)n + 1;
    options.timeout_ms = outlet->push->worker->timeout_ms;
    options.who = "trainer and replicas";
    outlet->push->worker->counters.connections++;
    status = link->ops->group_open(link->transport, &options, &outlet->group);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < n; i++)
        outlet->group_numbers[i] = members[i]->number;
    outlet->n_group = n;
    *out_group_key = outlet->group_key;
    return WEIR_OK;
}

static weir_status begin_mapped(weir_outlet *outlet, const weir_member *first)
{
    const weir_push *push = outlet->push;
    if (first->ready.places_bytes == 0)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "replica %s has told no places that transport %s could write to",
                         first->worker_id, weir_outlet_transport(outlet));
    weir_places_told told = { .bytes = first->ready.places,
                              .n_bytes = first->ready.places_bytes,
                              .staged = first->ready.staged,
                              .n_windows = first->ready.n_windows,
                              .window_bytes = first->ready.window_bytes,
                              .who = first->worker_id };
    return weir_places_take(&outlet->places, push->worker, &told, push->source->shards,
                            push->source->n_shards);
}

weir_status weir_outlet_begin(weir_outlet *outlet, weir_member *const *members, size_t n,
                              const void **out_group_key)
{
    *out_group_key = NULL;
    weir_status status = grow_slots(outlet);
    if (status == WEIR_OK)
        status = open_converts(outlet);
    if (status == WEIR_OK && weir_outlet_broadcasts(outlet))
        status = grow_windows(outlet);
    if (status != WEIR_OK)
        return status;
    return weir_outlet_broadcasts(outlet) ? begin_group(outlet, members, n, out_group_key)
                                          : begin_mapped(outlet, members[0]);
}

weir_status weir_outlet_ready(weir_outlet *outlet)
{
    return weir_outlet_broadcasts(outlet) ? outlet->link.ops->group_test(outlet->group) : WEIR_OK;
}

/* ---- steps -----------------------------------------------------------------------------------*/

static unsigned char *window_of(const weir_outlet *outlet, uint32_t step)
{
    return outlet->windows + step % WEIR_STEPS_AHEAD * outlet->windows_each;
}

static void *destination(const weir_outlet *outlet, uint32_t step, const weir_piece *piece,
                         size_t part)
{
    if (weir_outlet_broadcasts(outlet))
        return window_of(outlet, step) + piece->part_offsets[part];
    return weir_places_at(&outlet->places, step, piece->parts[part].shard,
                          piece->parts[part].offset, piece->part_offsets[part]);
}

/* What one step asks of the lanes. */
typedef struct load {
    size_t n_args, n_ranges, n_copies;
} load;

static weir_status add_copy(const weir_outlet *outlet, uint32_t step, const weir_piece *piece,
                            weir_digest *digests, slot *at, load *asked)
{
    const weir_tensor *source = &piece->args.sources[0];
    const weir_part *part = &piece->parts[0];
    weir_work_range *range = &at->ranges[asked->n_ranges++];
    *range = (weir_work_range){ 0 };
    weir_status status = weir_part_rows(&outlet->push->source->shards[part->shard], part->offset,
                                        part->n_bytes, range);
    range->name = source->name;
    range->data = source->data;
    range->check = true;
    range->digest = digests;
    at->copies[asked->n_copies++] = (weir_work_copy){ .to = destination(outlet, step, piece, 0),
                                                      .from = source->data,
                                                      .n_bytes = part->n_bytes };
    return status;
}

static void add_conversion(const weir_outlet *outlet, uint32_t step, const weir_piece *piece,
                           weir_digest *digests, slot *at, load *asked)
{
    weir_convert_args *args = &at->args[asked->n_args++];
    *args = piece->args;
    args->digests = digests;
    for (size_t o = 0; o < piece->n_parts; o++)
        args->outputs[o] = destination(outlet, step, piece, o);
}

weir_status weir_outlet_start(weir_outlet *outlet, uint32_t step)
{
    weir_push *push = outlet->push;
    const weir_step *asked_step = &push->steps.steps[step];
    slot *at = &outlet->slots[step % WEIR_STEPS_AHEAD];
    bool copies = !weir_outlet_broadcasts(outlet);
    load asked = { 0 };
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < asked_step->n_pieces && status == WEIR_OK; i++) {
        size_t number = asked_step->first_piece + i;
        const weir_piece *piece = &push->steps.pieces[number];
        weir_digest *digests = &push->digests[number * WEIR_MAX_OUTPUTS];
        if (copies && piece->plain && piece->args.n_sources == 1 && piece->args.n_experts == 0)
            status = add_copy(outlet, step, piece, digests, at, &asked);
        else
            add_conversion(outlet, step, piece, digests, at, &asked);
    }
    if (status == WEIR_OK && asked.n_copies > 0)
        status = weir_task_copy(at->copy, WEIR_LANE_MOVE, at->copies, asked.n_copies);
    if (status == WEIR_OK && asked.n_args > 0)
        status =
            weir_task_convert(outlet->converts[step], WEIR_LANE_COMPUTE, at->args, asked.n_args);
    if (status == WEIR_OK && asked.n_ranges > 0)
        status = weir_task_digest(at->digest, WEIR_LANE_COMPUTE, at->ranges, asked.n_ranges);
    return status;
}

weir_status weir_outlet_made(weir_outlet *outlet, uint32_t step)
{
    const slot *at = &outlet->slots[step % WEIR_STEPS_AHEAD];
    weir_task *const tasks[] = { outlet->converts[step], at->digest, at->copy };
    for (size_t i = 0; i < sizeof(tasks) / sizeof(tasks[0]); i++) {
        weir_status status = weir_task_test(tasks[i]);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

weir_status weir_outlet_send(weir_outlet *outlet, uint32_t step)
{
    if (!weir_outlet_broadcasts(outlet))
        return WEIR_OK;
    const weir_push *push = outlet->push;
    const weir_step *made = &push->steps.steps[step];
    const slot *at = &outlet->slots[step % WEIR_STEPS_AHEAD];
    size_t n = 0;
    for (size_t i = made->first_piece; i < made->first_piece + made->n_pieces; i++) {
        const weir_piece *piece = &push->steps.pieces[i];
        for (size_t o = 0; o < piece->n_parts; o++)
            at->parts[n++] =
                (weir_group_part){ destination(outlet, step, piece, o), piece->parts[o].n_bytes };
    }
    weir_status status = outlet->link.ops->group_broadcast(
        outlet->group, 0, at->parts, n, weir_work_stream(push->work, WEIR_LANE_MOVE));
    return status == WEIR_OK ? weir_task_mark(at->sent, WEIR_LANE_MOVE) : status;
}

weir_status weir_outlet_sent(weir_outlet *outlet, uint32_t step)
{
    if (!weir_outlet_broadcasts(outlet))
        return WEIR_OK;
    weir_status status = outlet->link.ops->group_test(outlet->group);
    if (status < WEIR_OK)
        return status;
    return weir_task_test(outlet->slots[step % WEIR_STEPS_AHEAD].sent);
}

/* Whether a task still runs after wait_ms: one that does is enough, the others are not waited for.
 * How they ended matters to nobody. */
static bool still_runs(weir_outlet *outlet, unsigned wait_ms)
{
    bool runs = false;
    for (size_t i = 0; i < outlet->n_converts; i++) {
        weir_task_wait(outlet->converts[i], runs ? 0 : wait_ms);
        runs |= weir_task_test(outlet->converts[i]) == WEIR_IN_PROGRESS;
    }
    for (size_t i = 0; i < WEIR_STEPS_AHEAD; i++) {
        const slot *at = &outlet->slots[i];
        weir_task *const tasks[] = { at->digest, at->copy, at->sent };
        for (size_t k = 0; k < sizeof(tasks) / sizeof(tasks[0]); k++) {
            weir_task_wait(tasks[k], runs ? 0 : wait_ms);
            runs |= weir_task_test(tasks[k]) == WEIR_IN_PROGRESS;
        }
    }
    return runs;
}

weir_status weir_outlet_rest(weir_outlet *outlet)
{
    weir_error_line line;
    weir_error_save(&line);
    bool runs = still_runs(outlet, 0);
    weir_error_restore(&line);
    if (runs)
        return weir_fail(
            WEIR_ERR_BUSY,
            "work of the last push, which failed, still runs on GPU %u: nothing can be "
            "pushed until it ends",
            weir_work_device(outlet->push->work));
    return WEIR_OK;
}

void weir_outlet_abort(weir_outlet *outlet)
{
    leave_group(outlet, true);
    still_runs(outlet, ABORT_MS);
}
