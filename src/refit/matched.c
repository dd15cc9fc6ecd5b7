/* SPDX-License-Identifier: Apache-2.0 */
/* matched.c - joining a broadcast group, queueing broadcasts, and hearing of their ends. */
#include "refit/matched.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

struct weir_matched {
    weir_link link;
    weir_work *work;
    weir_group *group;
    unsigned char key[WEIR_GROUP_KEY_BYTES];
    uint64_t n_queued;
    weir_task *marks[WEIR_MATCHED_AHEAD]; /* of a GPU: one per broadcast under way, in turn */
};

static bool by_stream(const weir_matched *matched)
{
    return weir_work_memory(matched->work) == WEIR_MEMORY_CUDA;
}

weir_status weir_matched_open(const weir_matched_options *options, weir_matched **out)
{
    weir_matched *matched = weir_alloc_zeroed(1, sizeof(*matched));
    if (matched == NULL)
        return WEIR_ERR_NO_MEMORY;
    matched->link = options->link;
    matched->work = options->work;
    memcpy(matched->key, options->key, sizeof(matched->key));
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < WEIR_MATCHED_AHEAD && by_stream(matched) && status == WEIR_OK; i++)
        status = weir_task_open(matched->work, &matched->marks[i]);
    weir_group_options group = WEIR_GROUP_OPTIONS_INIT;
    group.key = matched->key;
    group.rank = options->rank;
    group.n_ranks = options->n_ranks;
    group.timeout_ms = options->timeout_ms;
    group.who = options->who;
    if (status == WEIR_OK)
        status = options->link.ops->group_open(options->link.transport, &group, &matched->group);
    if (status != WEIR_OK) {
        weir_matched_close(matched, true);
        return status;
    }
    *out = matched;
    return WEIR_OK;
}

void weir_matched_leave(weir_matched *matched, bool abort)
{
    if (matched != NULL && matched->group != NULL)
        matched->link.ops->group_leave(matched->group, abort);
}

void weir_matched_close(weir_matched *matched, bool abort)
{
    if (matched == NULL)
        return;
    if (matched->group != NULL)
        matched->link.ops->group_close(matched->group, abort);
    for (size_t i = 0; i < WEIR_MATCHED_AHEAD; i++)
        weir_task_close(matched->marks[i]);
    weir_free(matched);
}

const void *weir_matched_key(const weir_matched *matched)
{
    return matched->key;
}

weir_status weir_matched_joined(weir_matched *matched)
{
    return matched->link.ops->group_test(matched->group);
}

weir_status weir_matched_queue(weir_matched *matched, void *data, uint64_t n_bytes,
                               uint64_t *out_ticket)
{
    const weir_group_part part = { data, n_bytes };
    weir_task *mark = matched->marks[matched->n_queued % WEIR_MATCHED_AHEAD];
    weir_status status = matched->link.ops->group_broadcast(
        matched->group, 0, &part, 1, weir_work_stream(matched->work, WEIR_LANE_MOVE));
    if (status == WEIR_OK && mark != NULL)
        status = weir_task_mark(mark, WEIR_LANE_MOVE);
    if (status == WEIR_OK)
        *out_ticket = matched->n_queued++;
    return status;
}

weir_status weir_matched_ended(weir_matched *matched, uint64_t ticket)
{
    uint64_t n_done = 0;
    weir_status status = WEIR_OK;
    if (by_stream(matched)) {
        status = matched->link.ops->group_test(matched->group);
        return status == WEIR_OK ? weir_task_test(matched->marks[ticket % WEIR_MATCHED_AHEAD])
                                 : status;
    }
    status = matched->link.ops->group_progress(matched->group, &n_done);
    if (status != WEIR_OK)
        return status;
    return ticket < n_done ? WEIR_OK : WEIR_IN_PROGRESS;
}
