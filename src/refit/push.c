/* SPDX-License-Identifier: Apache-2.0 */
/* push.c - what a trainer rank that pushes keeps from version to version: who has joined, the
 * steps, where they go; and the look through the weights before anything is sent. Rounds are in
 * serve.c.
 */
#include "base/alloc.h"
#include "base/error.h"
#include "refit/serve.h"

/* ---- open and close --------------------------------------------------------------------------*/

weir_status weir_push_open(weir_worker *worker, const weir_source *source,
                           const weir_push_options *options, weir_push **out)
{
    weir_push *push = weir_alloc_zeroed(1, sizeof(*push));
    if (push == NULL)
        return WEIR_ERR_NO_MEMORY;
    push->worker = worker;
    push->source = source;
    weir_arena_init(&push->scratch, 0);
    weir_arena_init(&push->steps_arena, 0);
    weir_status status =
        weir_frame_listener_open(options->listen, &worker->security.security, &push->listener);
    if (status == WEIR_OK)
        status = weir_work_open(options->memory, options->device, worker->pool, &push->work);
    if (status == WEIR_OK)
        status = weir_outlet_open(push, options, &push->outlet);
    if (status != WEIR_OK) {
        weir_push_close(push);
        return status;
    }
    *out = push;
    return WEIR_OK;
}

void weir_push_close(weir_push *push)
{
    if (push == NULL)
        return;
    weir_members_close(push);
    weir_task_close(push->scan);
    weir_outlet_close(push->outlet);
    weir_work_close(push->work);
    weir_frame_listener_close(push->listener);
    weir_arena_close(&push->steps_arena);
    weir_arena_close(&push->scratch);
    weir_free(push);
}

const char *weir_push_address(const weir_push *push)
{
    return weir_frame_listener_address(push->listener);
}

/* ---- steps -----------------------------------------------------------------------------------*/

/* The same steps as long as the binding and the members' windows are the same. */
weir_status weir_push_cut(weir_push *push, uint64_t limit, bool keep_masters)
{
    if (push->step_limit == limit && push->bound_at == push->source->generation) {
        weir_steps_aim(&push->steps);
        return WEIR_OK;
    }
    push->step_limit = 0;
    push->worker->counters.plans++;
    weir_arena_reset(&push->steps_arena);
    weir_status status =
        weir_steps_cut(push->source, keep_masters, limit, &push->steps_arena, &push->steps);
    if (status != WEIR_OK)
        return status;
    push->digests = weir_arena_zeroed(&push->steps_arena, push->steps.n_pieces * WEIR_MAX_OUTPUTS,
                                      sizeof(*push->digests));
    if (push->digests == NULL)
        return WEIR_ERR_NO_MEMORY;
    push->step_limit = limit;
    push->bound_at = push->source->generation;
    push->n_cuts++;
    return WEIR_OK;
}

/* ---- a look before ---------------------------------------------------------------------------*/

static size_t n_sources_of(const weir_piece *piece)
{
    return piece->args.n_sources * (piece->args.n_experts ? piece->args.n_experts : 1);
}

/* The sources of one piece, as flat ranges. */
static void list_sources(const weir_piece *piece, weir_work_range *ranges, weir_digest *unused,
                         size_t *n)
{
    for (size_t i = 0; i < n_sources_of(piece); i++) {
        const weir_tensor *source = &piece->args.sources[i];
        weir_work_range *range = &ranges[(*n)++];
        *range = (weir_work_range){ .name = source->name,
                                    .data = source->data,
                                    .n_rows = 1,
                                    .dtype = source->dtype,
                                    .check = true,
                                    .digest = unused };
        weir_tensor_bytes(source->dtype, &source->shape, &range->row_bytes); /* bound: it fits */
    }
}

weir_status weir_push_scan(weir_push *push, bool keep_masters)
{
    size_t n = 0;
    uint64_t limit =
        push->step_limit ? push->step_limit : weir_outlet_step_limit(push->outlet, NULL, 0);
    weir_status status = weir_outlet_rest(push->outlet);
    if (status == WEIR_OK)
        status = weir_push_cut(push, limit, keep_masters);
    if (status == WEIR_OK && push->scan == NULL)
        status = weir_task_open(push->work, &push->scan);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < push->steps.n_pieces; i++)
        n += n_sources_of(&push->steps.pieces[i]);
    weir_arena_reset(&push->scratch);
    weir_work_range *ranges = weir_arena_alloc(&push->scratch, (n + 1) * sizeof(*ranges));
    if (ranges == NULL)
        return WEIR_ERR_NO_MEMORY;
    n = 0;
    for (size_t i = 0; i < push->steps.n_pieces; i++)
        list_sources(&push->steps.pieces[i], ranges, &push->unused, &n);
    status = weir_task_digest(push->scan, WEIR_LANE_COMPUTE, ranges, n);
    if (status == WEIR_OK)
        status = weir_task_wait(push->scan, push->worker->timeout_ms);
    return status;
}
