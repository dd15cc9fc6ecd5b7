/* SPDX-License-Identifier: Apache-2.0 */
/* cast_script.h - trainer ranks that broadcast, as their readers see them: what they answer, and a
 * transport within the process whose broadcasts have all been sent before anybody joins.
 */
#ifndef WEIR_TESTS_CAST_SCRIPT_H
#define WEIR_TESTS_CAST_SCRIPT_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "directory/service.h"
#include "refit/credits.h"
#include "refit/manifest.h"
#include "transport/transport_lacks.h"
#include "weir/cuda.h"

#define SCRIPT_MAX 16
#define SCRIPT_SILENT_MS 1500u
#define SCRIPT_LOOKS_MS 10u /* how late a bound that has passed is noticed */

/* ---- the transport ---------------------------------------------------------------------------*/

/* A broadcast group, and the one reader in it. */
typedef struct script_cast {
    weir_group base;
    unsigned char key[WEIR_GROUP_KEY_BYTES];
    const unsigned char *sent[SCRIPT_MAX];
    uint64_t sent_bytes[SCRIPT_MAX];
    uint32_t n_sent;
    void *wanted[SCRIPT_MAX];
    uint32_t n_wanted, n_done; /* of all versions, each of which sends as much */
    uint32_t n_ends;           /* broadcasts beyond these never end */
    weir_status then_breaks;   /* or fail so */
    bool holds_join;           /* somebody never comes */
    bool says_so;              /* and the group fails when its bound has passed */
    weir_deadline join_by;
    char who[WEIR_ERROR_TEXT];
    weir_status is_broken; /* every test says so */
    bool is_open, is_leaving;
    unsigned n_opened, n_aborted, n_closed;
} script_cast;

typedef struct script_place { /* what was queued, in its order */
    uint32_t cast, number;
} script_place;

static struct script_net {
    weir_transport base;
    script_cast casts[SCRIPT_MAX];
    uint32_t n_casts;
    script_place queued[4 * SCRIPT_MAX];
    size_t n_queued;
} script_net;

static inline weir_status script_group_open(weir_transport *transport,
                                            const weir_group_options *options, weir_group **out)
{
    for (uint32_t c = 0; c < script_net.n_casts; c++) {
        script_cast *cast = &script_net.casts[c];
        if (memcmp(cast->key, options->key, WEIR_GROUP_KEY_BYTES) != 0)
            continue;
        assert_false(cast->is_open);
        assert_in_range(options->rank, 1, options->n_ranks - 1);
        cast->base.transport = transport;
        cast->is_open = true;
        cast->n_opened++;
        cast->n_wanted = cast->n_done = 0;
        cast->join_by = weir_deadline_in(options->timeout_ms + SCRIPT_LOOKS_MS);
        snprintf(cast->who, sizeof(cast->who), "%s", options->who);
        *out = &cast->base;
        return WEIR_OK;
    }
    fail_msg("%s has a key that no rank has made", options->who);
    return WEIR_ERR_INTERNAL;
}

static inline weir_status script_group_test(weir_group *group)
{
    script_cast *cast = (script_cast *)group;
    assert_true(cast->is_open);
    if (cast->is_broken != WEIR_OK)
        return weir_fail(cast->is_broken, "the group is broken");
    if (cast->holds_join && cast->says_so && weir_deadline_passed(cast->join_by))
        return weir_fail(WEIR_ERR_TIMED_OUT, "%s: it was not joined within 0.2 s", cast->who);
    return cast->holds_join ? WEIR_IN_PROGRESS : WEIR_OK;
}

static inline weir_status script_group_broadcast(weir_group *group, uint32_t root,
                                                 const weir_group_part *parts, size_t n_parts,
                                                 void *stream)
{
    script_cast *cast = (script_cast *)group;
    assert_int_equal(root, 0);
    assert_int_equal(n_parts, 1);
    assert_int_equal(script_group_test(group), WEIR_OK);
    uint32_t number = cast->n_wanted % cast->n_sent;
    assert_int_equal(parts->n_bytes, cast->sent_bytes[number]);
    script_net.queued[script_net.n_queued++] =
        (script_place){ (uint32_t)(cast - script_net.casts), number };
    cast->wanted[cast->n_wanted++ % SCRIPT_MAX] = parts->data;
    if (group->transport->ops->memory == WEIR_MEMORY_HOST)
        return WEIR_OK;
    cast->n_done++; /* its stream tells */
    return weir_cuda_copy(0, parts->data, cast->sent[number], parts->n_bytes, stream);
}

static inline weir_status script_group_progress(weir_group *group, uint64_t *out_n_done)
{
    script_cast *cast = (script_cast *)group;
    weir_status status = script_group_test(group);
    for (; cast->n_done < cast->n_wanted && cast->n_done < cast->n_ends; cast->n_done++) {
        uint32_t number = cast->n_done % cast->n_sent;
        memcpy(cast->wanted[cast->n_done % SCRIPT_MAX], cast->sent[number],
               cast->sent_bytes[number]);
    }
    if (cast->then_breaks != WEIR_OK && cast->n_wanted > cast->n_ends)
        cast->is_broken = cast->then_breaks;
    *out_n_done = cast->n_done;
    return status;
}

static inline void script_group_leave(weir_group *group, bool abort)
{
    script_cast *cast = (script_cast *)group;
    assert_true(cast->is_open);
    assert_true(abort || cast->n_done == cast->n_wanted);
    cast->is_leaving = true;
}

static inline void script_group_close(weir_group *group, bool abort)
{
    script_cast *cast = (script_cast *)group;
    if (cast == NULL)
        return;
    assert_true(abort || cast->n_done == cast->n_wanted);
    for (uint32_t c = 0; abort && c < script_net.n_casts; c++) {
        const script_cast *other = &script_net.casts[c]; /* whose broadcast may hold this one up */
        assert_true(!other->is_open || other->n_done == other->n_wanted || other->is_leaving);
    }
    cast->is_open = cast->is_leaving = false;
    cast->n_aborted += abort;
    cast->n_closed += !abort;
}

static weir_transport_ops script_ops = { .size = sizeof(weir_transport_ops),
                                         .name = "script",
                                         .caps = WEIR_CAP_MATCHED,
                                         .memory = WEIR_MEMORY_HOST,
                                         WEIR_TRANSPORT_LACKS_READ,
                                         WEIR_TRANSPORT_LACKS_MAP,
                                         .group_key = weir_transport_lacks_group_key,
                                         .group_open = script_group_open,
                                         .group_test = script_group_test,
                                         .group_broadcast = script_group_broadcast,
                                         .group_close = script_group_close,
                                         .group_progress = script_group_progress,
                                         .group_leave = script_group_leave };

static inline void script_net_open(uint32_t memory)
{
    memset(&script_net, 0, sizeof(script_net));
    script_ops.memory = memory;
    script_net.base.ops = &script_ops;
}

/* A new group, that has another key than all before. */
static inline uint32_t script_cast_new(void)
{
    uint32_t number = script_net.n_casts++;
    script_cast *cast = &script_net.casts[number];
    *cast = (script_cast){ .n_ends = UINT32_MAX };
    memset(cast->key, (int)number + 1, sizeof(cast->key));
    return number;
}

static inline void script_send(uint32_t cast, const void *data, uint64_t n_bytes)
{
    script_cast *to = &script_net.casts[cast];
    to->sent[to->n_sent] = data;
    to->sent_bytes[to->n_sent++] = n_bytes;
}

/* ---- a rank's answers ------------------------------------------------------------------------*/

typedef struct script_rank {
    weir_manifest_service *service;
    pthread_mutex_t lock;
    weir_group_record header; /* of every answer: format, run, version, version_uid, n_groups */
    const uint64_t *group_bytes;
    const uint32_t *group_ends;
    const weir_digest *digests;
    weir_membership places[SCRIPT_MAX];
    size_t n_places;
    uint32_t n_made;    /* groups that are there; UINT32_MAX: the end as well */
    uint32_t off_at;    /* the group at which the round is off; UINT32_MAX: none */
    uint32_t state;     /* instead of READY, when not 0 */
    bool has_not_begun; /* round 0 */
    uint32_t round;
    unsigned n_fresh, n_stale;    /* who joined saying that it is fresh, and that it is not */
    unsigned n_ends_asked;        /* that all groups have been taken */
    unsigned n_outside, n_inside; /* questions of a round: it is fresh yet, and is not any more */
    bool is_left, is_silent_to_leavers;
    char gave_up[WEIR_ERROR_TEXT];
    weir_buffer answer;
} script_rank;

static inline void script_answer(script_rank *rank, const weir_manifest_request *request,
                                 weir_group_record *out)
{
    uint32_t group = request->group;
    *out = rank->header;
    out->round = rank->has_not_begun ? 0 : rank->round;
    out->why = "";
    if (out->group == 0) /* the test has not set another one */
        out->group = group;
    if (request->gave_up[0] != '\0') {
        rank->is_left = true;
        snprintf(rank->gave_up, sizeof(rank->gave_up), "%s", request->gave_up);
        return;
    }
    if (rank->has_not_begun)
        return;
    if (request->round == 0) { /* joined: it hears who it is */
        rank->n_fresh += request->fresh;
        rank->n_stale += !request->fresh;
        out->memberships = rank->places;
        out->n_memberships = rank->n_places;
        out->state = rank->state == WEIR_GROUP_GONE ? WEIR_GROUP_GONE : WEIR_GROUP_WAIT;
        return;
    }
    rank->n_outside += request->fresh;
    rank->n_inside += !request->fresh;
    rank->n_ends_asked += group == out->n_groups;
    if (group >= rank->off_at) {
        out->state = WEIR_GROUP_OFF;
        out->why = "layers.3.weight is not finite";
    } else if (group < rank->n_made) {
        out->state = rank->state != 0 ? rank->state : WEIR_GROUP_READY;
        uint32_t first = group > 0 ? rank->group_ends[group - 1] : 0;
        if (group < out->n_groups && out->n_digests == 0) {
            out->digests = rank->digests + first;
            out->n_digests = rank->group_ends[group] - first;
        }
        if (group < out->n_groups && out->n_bytes == 0)
            out->n_bytes = rank->group_bytes[group];
    }
}

static inline bool script_find(void *context, const weir_manifest_request *request,
                               weir_manifest_found *out)
{
    script_rank *rank = context;
    weir_group_record record;
    if (rank->is_silent_to_leavers && request->gave_up[0] != '\0')
        weir_sleep_ms(SCRIPT_SILENT_MS);
    pthread_mutex_lock(&rank->lock); /* until it is sent */
    script_answer(rank, request, &record);
    if (weir_group_record_encode(&record, &rank->answer) != WEIR_OK) {
        pthread_mutex_unlock(&rank->lock);
        return false;
    }
    *out = (weir_manifest_found){ rank->answer.data, rank->answer.n_bytes, "" };
    return true;
}

static inline void script_done(void *context)
{
    script_rank *rank = context;
    pthread_mutex_unlock(&rank->lock);
}

static inline void script_open(script_rank *rank)
{
    const weir_manifest_source source = { script_find, script_done, rank };
    pthread_mutex_init(&rank->lock, NULL);
    rank->n_made = rank->off_at = UINT32_MAX;
    rank->round = 1;
    assert_int_equal(weir_manifest_service_open("127.0.0.1", &source, NULL, &rank->service),
                     WEIR_OK);
}

static inline void script_close(script_rank *rank)
{
    weir_manifest_service_close(rank->service);
    weir_buffer_free(&rank->answer);
    pthread_mutex_destroy(&rank->lock);
}

#endif
