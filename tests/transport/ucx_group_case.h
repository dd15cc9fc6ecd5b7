/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_group_case.h - the ranks of broadcast groups of transport ucx in one process, and in a
 * thread. */
#ifndef WEIR_TESTS_UCX_GROUP_CASE_H
#define WEIR_TESTS_UCX_GROUP_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/owner_process.h"
#include "transport/transport_table.h"
#include "transport/ucx_group.h"

#define MAX_RANKS 4u
#define MAX_GROUPS 3u
#define WAIT_MS 20000u        /* a busy machine has time */
#define DATA_BYTES (40 * MIB) /* of each rank */
#define MARGIN 64
#define MIB ((uint64_t)1 << 20)

static const weir_transport_ops *const ops = &weir_transport_ucx;
static const char any_way[] = "", over_tcp[] = "tcp";
static const char emulated[] = "posix,sysv"; /* as in a container: the owner must answer */

typedef struct ranks {
    weir_transport *transports[MAX_RANKS];
    weir_group *groups[MAX_GROUPS][MAX_RANKS];
    char keys[MAX_GROUPS][WEIR_GROUP_KEY_BYTES];
    uint8_t *data[MAX_RANKS];
} ranks;

static inline uint8_t *data_of(ranks *all, uint32_t rank)
{
    if (all->data[rank] == NULL)
        all->data[rank] = malloc(DATA_BYTES);
    return all->data[rank];
}

static inline void assert_went_well(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

static inline void assert_fails(weir_status status, weir_status expected, const char *text)
{
    if (status != expected || strstr(weir_last_error(), text) == NULL)
        fail_msg("%s: %s; expected %s: %s", weir_status_name(status), weir_last_error(),
                 weir_status_name(expected), text);
}

static inline int ranks_open(void **state)
{
    const char *tls = *state;
    ranks *all = calloc(1, sizeof(*all));
    for (uint32_t i = 0; i < MAX_RANKS; i++) {
        weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
        options.tls = tls[0] != '\0' ? tls : NULL;
        if (ops->open(&options, &all->transports[i]) != WEIR_OK)
            return -1;
    }
    *state = all;
    return 0;
}

static inline int ranks_close(void **state)
{
    ranks *all = *state;
    for (uint32_t g = 0; g < MAX_GROUPS; g++) {
        for (uint32_t i = 0; i < MAX_RANKS; i++)
            ops->group_close(all->groups[g][i], true);
    }
    for (uint32_t i = 0; i < MAX_RANKS; i++) {
        ops->close(all->transports[i]);
        free(all->data[i]);
    }
    free(all);
    return 0;
}

static inline weir_group_options rank_options(const void *key, uint32_t rank, uint32_t n_ranks,
                                              unsigned timeout_ms)
{
    weir_group_options options = WEIR_GROUP_OPTIONS_INIT;
    options.key = key;
    options.rank = rank;
    options.n_ranks = n_ranks;
    options.timeout_ms = timeout_ms;
    options.who = "round of version 7";
    return options;
}

static inline void open_rank(ranks *all, uint32_t g, uint32_t rank, uint32_t n_ranks,
                             unsigned timeout_ms)
{
    weir_group_options options = rank_options(all->keys[g], rank, n_ranks, timeout_ms);
    assert_went_well(ops->group_open(all->transports[rank], &options, &all->groups[g][rank]));
}

static inline void open_groups(ranks *all, uint32_t g, uint32_t n_ranks, unsigned timeout_ms)
{
    assert_went_well(ops->group_key(all->transports[0], all->keys[g]));
    for (uint32_t i = n_ranks; i-- > 0;) /* rank 0 last: the others wait for it */
        open_rank(all, g, i, n_ranks, timeout_ms);
}

static inline weir_status await_rank(weir_group *group)
{
    weir_deadline deadline = weir_deadline_in(WAIT_MS);
    weir_status status;
    while ((status = ops->group_test(group)) == WEIR_IN_PROGRESS && !weir_deadline_passed(deadline))
        weir_sleep_ms(1);
    return status;
}

static inline void await_joined(ranks *all, uint32_t g, uint32_t n_ranks)
{
    for (uint32_t i = 0; i < n_ranks; i++)
        assert_went_well(await_rank(all->groups[g][i]));
}

static inline void close_rank(ranks *all, uint32_t g, uint32_t rank, bool abort)
{
    ops->group_close(all->groups[g][rank], abort);
    all->groups[g][rank] = NULL;
}

static inline void close_groups(ranks *all, uint32_t g, uint32_t n_ranks, bool abort)
{
    for (uint32_t i = n_ranks; i-- > 0;)
        close_rank(all, g, i, abort);
}

/* Until n_done broadcasts have ended there, or the group has failed. */
static inline weir_status await_done(weir_group *group, uint64_t n_done)
{
    weir_deadline deadline = weir_deadline_in(WAIT_MS);
    uint64_t n = 0;
    weir_status status;
    while ((status = ops->group_progress(group, &n)) == WEIR_OK && n < n_done) {
        if (weir_deadline_passed(deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT, "%llu of %llu broadcasts have ended",
                             (unsigned long long)n, (unsigned long long)n_done);
        weir_sleep_ms(1);
    }
    return status;
}

/* Until a group that has joined has failed. */
static inline weir_status await_failure(weir_group *group)
{
    weir_deadline deadline = weir_deadline_in(WAIT_MS);
    weir_status status;
    while ((status = ops->group_test(group)) == WEIR_OK && !weir_deadline_passed(deadline))
        weir_sleep_ms(1);
    return status;
}

/* Until a rank has said hello to rank 0. */
__attribute__((no_sanitize("thread"))) static inline void await_greeting(weir_group *group)
{
    const volatile bool *greeted = &((ucx_group *)group)->meet.greeted;
    weir_deadline deadline = weir_deadline_in(WAIT_MS);
    while (!*greeted && !weir_deadline_passed(deadline))
        weir_sleep_ms(1);
}

/* How the rank after gets the bytes, once there was a broadcast. */
__attribute__((no_sanitize("thread"))) static inline ucx_way way_after(const weir_group *group)
{
    return ((const ucx_group *)group)->chain.to_the_after;
}

__attribute__((no_sanitize("thread"))) static inline ucx_kept kept_of(const weir_group *group)
{
    return ((const ucx_group *)group)->chain.kept;
}

#define CASE(function, tls)                                                          \
    {                                                                                \
#function, function, ranks_open, ranks_close, (void *)(uintptr_t) & (tls)[0] \
    }

#endif
