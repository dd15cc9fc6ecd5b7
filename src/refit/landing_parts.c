/* SPDX-License-Identifier: Apache-2.0 */
/* landing_parts.c - which of a plan's copies are read at one go, and in which order: by window
 * group of their source, and by group of the loader that converts a checkpoint.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit/landing.h"
#include "refit/replica.h"

/* Shards of a group follow each other, and so do groups. */
static int compare_copies(const void *a, const void *b)
{
    const weir_plan_copy *x = a, *y = b;
    if (x->source != y->source)
        return x->source < y->source ? -1 : 1;
    return (x->shard > y->shard) - (x->shard < y->shard);
}

/* The same, in the order in which a loader converts; it is handed over with the copy. */
typedef struct loaded_copy {
    weir_plan_copy copy;
    uint32_t load;
} loaded_copy;

static int compare_loaded(const void *a, const void *b)
{
    const loaded_copy *x = a, *y = b;
    if (x->copy.source == y->copy.source && x->load != y->load)
        return x->load < y->load ? -1 : 1;
    return compare_copies(&x->copy, &y->copy);
}

/* Copies of tensors that this worker has no part of are left out. */
static weir_status order_loaded(weir_replica *replica)
{
    weir_schedule *schedule = &replica->schedule;
    loaded_copy *chosen = weir_alloc_zeroed(schedule->n_copies, sizeof(*chosen));
    weir_plan_copy *ordered = weir_alloc_zeroed(schedule->n_copies, sizeof(*ordered));
    size_t n = 0;
    schedule->landing.ordered = ordered;
    if (chosen == NULL || ordered == NULL) {
        weir_free(chosen);
        return WEIR_ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < schedule->n_copies; i++) {
        uint32_t load = replica->loader->tensors[schedule->planned[i].parameter].group;
        if (load != WEIR_ANY)
            chosen[n++] = (loaded_copy){ schedule->planned[i], load };
    }
    qsort(chosen, n, sizeof(*chosen), compare_loaded);
    schedule->n_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        ordered[i] = chosen[i].copy;
        schedule->n_bytes += ordered[i].n_bytes;
    }
    weir_free(chosen);
    schedule->planned = ordered;
    schedule->n_copies = n;
    return WEIR_OK;
}

static weir_status order_copies(weir_replica *replica)
{
    weir_schedule *schedule = &replica->schedule;
    bool any = false;
    if (schedule->loads)
        return order_loaded(replica);
    for (size_t p = 0; p < schedule->n_participants; p++)
        any |= schedule->participants[p].remote->n_groups > 0;
    if (!any)
        return WEIR_OK;
    weir_plan_copy *ordered = weir_alloc(schedule->n_copies * sizeof(*ordered));
    if (ordered == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(ordered, schedule->planned, schedule->n_copies * sizeof(*ordered));
    qsort(ordered, schedule->n_copies, sizeof(*ordered), compare_copies);
    schedule->landing.ordered = ordered;
    schedule->planned = ordered;
    return WEIR_OK;
}

static uint32_t load_of(const weir_replica *replica, const weir_plan_copy *planned)
{
    return replica->schedule.loads ? replica->loader->tensors[planned->parameter].group : 0;
}

/* Adds the parts of one participant, whose copies begin with `first`; returns the next one's. */
static size_t list_parts(weir_replica *replica, size_t p, size_t first)
{
    weir_schedule *schedule = &replica->schedule;
    weir_landing *landing = &schedule->landing;
    const weir_remote *remote = schedule->participants[p].remote;
    uint32_t group = 0;
    size_t i = first, first_part = landing->n_parts;
    for (; i < schedule->n_copies && schedule->planned[i].source == p; i++) {
        const weir_plan_copy *planned = &schedule->planned[i];
        while (group < remote->n_groups &&
               remote->numbers[planned->shard] >= remote->group_ends[group])
            group++;
        weir_landing_part *part = &landing->parts[landing->n_parts];
        uint32_t load = load_of(replica, planned);
        bool begins =
            landing->n_parts == first_part || part[-1].group != group || part[-1].load != load;
        if (begins && remote->n_groups > 0 && planned->n_bytes == 0)
            continue; /* padding that nobody reads */
        if (begins)
            landing->parts[landing->n_parts++] =
                (weir_landing_part){ .group = group, .load = load, .first_copy = i };
        part = &landing->parts[landing->n_parts - 1];
        part->n_copies = i + 1 - part->first_copy;
    }
    schedule->participants[p].first_part = first_part;
    schedule->participants[p].n_parts = landing->n_parts - first_part;
    return i;
}

/* What passes through a window comes in its order: that must be the loader's. */
static weir_status check_loads(const weir_schedule *schedule)
{
    uint32_t group = 0;
    for (size_t i = 0; i < schedule->n_copies; i++) {
        const weir_plan_copy *planned = &schedule->planned[i];
        const weir_remote *remote = schedule->participants[planned->source].remote;
        if (i == 0 || planned[-1].source != planned->source)
            group = 0;
        if (remote->n_groups == 0)
            continue;
        uint32_t number = remote->numbers[planned->shard];
        if (group > 0 && number < remote->group_ends[group - 1])
            return weir_fail(WEIR_ERR_UNSUPPORTED, "%s sends %s behind tensors of later layers",
                             remote->who, remote->shards[planned->shard].name);
        while (group < remote->n_groups && number >= remote->group_ends[group])
            group++;
    }
    return WEIR_OK;
}

weir_status weir_landing_part_up(weir_replica *replica)
{
    weir_schedule *schedule = &replica->schedule;
    weir_landing *landing = &schedule->landing;
    weir_status status = order_copies(replica);
    if (status != WEIR_OK)
        return status;
    landing->parts = weir_alloc_zeroed(schedule->n_copies, sizeof(*landing->parts));
    if (landing->parts == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t p = 0, i = 0; p < schedule->n_participants; p++)
        i = list_parts(replica, p, i);
    return schedule->loads ? check_loads(schedule) : WEIR_OK;
}
