/* SPDX-License-Identifier: Apache-2.0 */
/* cast_stand_in.h - a transport between the threads of one process that broadcasts host memory, and
 * tells a test in which order things happened.
 *
 * A receiver copies when it asks how far it is, and the root has ended when all have. A test may
 * hold broadcasts back.
 */
#ifndef WEIR_TESTS_CAST_STAND_IN_H
#define WEIR_TESTS_CAST_STAND_IN_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "transport/transport_lacks.h"
#include "weir/transport.h"

#define STAND_IN_HALLS 64
#define STAND_IN_POSTS 1024

/* All ranks of one key. */
typedef struct hall {
    uint64_t key;
    uint32_t n_ranks, n_joined, n_left;
    bool broken;
    weir_group_part posts[STAND_IN_POSTS];
    uint32_t n_taken[STAND_IN_POSTS];
    size_t n_posts;
} hall;

typedef struct stand_in {
    weir_transport base;
    pthread_mutex_t lock;
    hall *halls[STAND_IN_HALLS];
    size_t n_halls;
    uint64_t n_keys;
    bool held;                    /* nobody receives */
    bool fails;                   /* the next broadcast */
    bool holds_leave;             /* closing a group takes until this is false */
    size_t n_leaving;             /* roots that were closed, so far */
    size_t n_begun;               /* roots that had begun to leave before, so far */
    size_t begun_at_first;        /* of those, when the first was closed */
    unsigned char *const *buffer; /* of a root; NULL: nobody looks */
    size_t n_bereft;              /* roots that left when that was gone */
    size_t n_broadcast;           /* by roots, so far */
    size_t n_ended;               /* of those */
    size_t n_aborted;             /* groups, by their roots */
} stand_in;

typedef struct stand_in_group {
    weir_group base;
    hall *in;
    uint32_t rank;
    weir_group_part parts[STAND_IN_POSTS];
    size_t n_parts, n_done;
} stand_in_group;

static inline stand_in *stand_in_of(weir_transport *transport)
{
    return (stand_in *)transport;
}

static inline weir_status stand_in_key(weir_transport *base, void *out_key)
{
    stand_in *all = stand_in_of(base);
    memset(out_key, 0, WEIR_GROUP_KEY_BYTES);
    pthread_mutex_lock(&all->lock);
    uint64_t key = ++all->n_keys;
    pthread_mutex_unlock(&all->lock);
    memcpy(out_key, &key, sizeof(key));
    return WEIR_OK;
}

static inline weir_status stand_in_open(weir_transport *base, const weir_group_options *options,
                                        weir_group **out)
{
    stand_in *all = stand_in_of(base);
    stand_in_group *group = calloc(1, sizeof(*group));
    uint64_t key;
    memcpy(&key, options->key, sizeof(key));
    pthread_mutex_lock(&all->lock);
    hall *in = NULL;
    for (size_t i = 0; i < all->n_halls; i++)
        in = all->halls[i]->key == key ? all->halls[i] : in;
    if (in == NULL) {
        in = all->halls[all->n_halls++] = calloc(1, sizeof(*in));
        *in = (hall){ .key = key, .n_ranks = options->n_ranks };
    }
    in->n_joined++;
    group->base.transport = base;
    group->in = in;
    group->rank = options->rank;
    pthread_mutex_unlock(&all->lock);
    *out = &group->base;
    return WEIR_OK;
}

static inline weir_status stand_in_test(weir_group *base)
{
    stand_in *all = stand_in_of(base->transport);
    const stand_in_group *group = (stand_in_group *)base;
    pthread_mutex_lock(&all->lock);
    bool complete = group->in->n_joined >= group->in->n_ranks, broken = group->in->broken;
    pthread_mutex_unlock(&all->lock);
    if (broken)
        return weir_fail(WEIR_ERR_PEER_LOST, "the stand-in's group is broken");
    return complete ? WEIR_OK : WEIR_IN_PROGRESS;
}

static inline weir_status stand_in_broadcast(weir_group *base, uint32_t root,
                                             const weir_group_part *parts, size_t n_parts,
                                             void *stream)
{
    stand_in *all = stand_in_of(base->transport);
    stand_in_group *group = (stand_in_group *)base;
    (void)stream;
    if (root != 0 || n_parts != 1)
        return weir_fail(WEIR_ERR_INTERNAL, "the stand-in broadcasts one part of rank 0");
    pthread_mutex_lock(&all->lock);
    bool fails = all->fails && group->rank == 0;
    if (group->rank == 0 && !fails) {
        group->in->posts[group->in->n_posts++] = parts[0];
        all->n_broadcast++;
    }
    group->parts[group->n_parts++] = parts[0];
    pthread_mutex_unlock(&all->lock);
    return fails ? weir_fail(WEIR_ERR_PEER_LOST, "the stand-in fails, as it was told") : WEIR_OK;
}

static inline weir_status stand_in_progress(weir_group *base, uint64_t *out_n_done)
{
    stand_in *all = stand_in_of(base->transport);
    stand_in_group *group = (stand_in_group *)base;
    hall *in = group->in;
    weir_status status = WEIR_OK;
    pthread_mutex_lock(&all->lock);
    for (; group->n_done < group->n_parts && status == WEIR_OK; group->n_done++) {
        size_t i = group->n_done;
        if (group->rank == 0 && in->n_taken[i] < in->n_ranks - 1)
            break;
        all->n_ended += group->rank == 0;
        if (group->rank == 0)
            continue;
        if (all->held || i >= in->n_posts)
            break;
        if (in->posts[i].n_bytes != group->parts[i].n_bytes)
            status = weir_fail(WEIR_ERR_CORRUPT, "broadcast %zu has other bytes", i);
        else
            memcpy(group->parts[i].data, in->posts[i].data, in->posts[i].n_bytes);
        in->n_taken[i]++;
    }
    bool broken = in->broken;
    *out_n_done = group->n_done;
    pthread_mutex_unlock(&all->lock);
    return broken ? weir_fail(WEIR_ERR_PEER_LOST, "the stand-in's group is broken") : status;
}

static inline void stand_in_leave(weir_group *base, bool abort)
{
    stand_in *all = stand_in_of(base->transport);
    stand_in_group *group = (stand_in_group *)base;
    (void)abort;
    pthread_mutex_lock(&all->lock);
    all->n_begun += group->rank == 0;
    pthread_mutex_unlock(&all->lock);
}

static inline void stand_in_close(weir_group *base, bool abort)
{
    if (base == NULL)
        return;
    stand_in *all = stand_in_of(base->transport);
    stand_in_group *group = (stand_in_group *)base;
    pthread_mutex_lock(&all->lock);
    if (group->rank == 0 && all->n_leaving++ == 0)
        all->begun_at_first = all->n_begun;
    all->n_bereft += group->rank == 0 && all->buffer != NULL && *all->buffer == NULL;
    while (all->holds_leave && group->rank == 0) {
        pthread_mutex_unlock(&all->lock);
        weir_sleep_ms(1);
        pthread_mutex_lock(&all->lock);
    }
    group->in->broken |= abort;
    group->in->n_left++;
    all->n_aborted += abort && group->rank == 0;
    pthread_mutex_unlock(&all->lock);
    free(group);
}

static const weir_transport_ops stand_in_ops = { .size = sizeof(weir_transport_ops),
                                                 .name = "ucx",
                                                 .caps = WEIR_CAP_MATCHED,
                                                 .memory = WEIR_MEMORY_HOST,
                                                 .group_key = stand_in_key,
                                                 .group_open = stand_in_open,
                                                 .group_test = stand_in_test,
                                                 .group_broadcast = stand_in_broadcast,
                                                 .group_close = stand_in_close,
                                                 .group_progress = stand_in_progress,
                                                 .group_leave = stand_in_leave };

static inline stand_in *stand_in_make(void)
{
    stand_in *all = calloc(1, sizeof(*all));
    all->base.ops = &stand_in_ops;
    pthread_mutex_init(&all->lock, NULL);
    return all;
}

/* All groups were left. */
static inline void stand_in_drop(stand_in *all)
{
    for (size_t i = 0; i < all->n_halls; i++)
        free(all->halls[i]);
    pthread_mutex_destroy(&all->lock);
    free(all);
}

/* A number that other threads change. */
static inline size_t stand_in_count(stand_in *all, const size_t *number)
{
    pthread_mutex_lock(&all->lock);
    size_t n = *number;
    pthread_mutex_unlock(&all->lock);
    return n;
}

#endif
