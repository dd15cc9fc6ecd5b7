/* SPDX-License-Identifier: Apache-2.0 */
/* judge_case.h - sources as a server would give them, and what the judge says of them. */
#ifndef WEIR_TESTS_JUDGE_CASE_H
#define WEIR_TESTS_JUDGE_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "directory/judge.h"
#include "directory/sidecar.h"

#define NOW_MS 1000000
#define MAX_CASES 16

/* One source, in ModelExpress v2's words. */
typedef struct judge_source {
    const char *worker_id, *role, *rank, *step, *registry;
    int64_t updated_at_ms;
    int status; /* 0: READY */
    weir_facts_route by;
} judge_source;

typedef struct judge_case {
    weir_arena arena;
    weir_discover_wish given;
    weir_judged judged[MAX_CASES];
    size_t n, n_taken;
} judge_case;

static inline void case_open(judge_case *c)
{
    memset(c, 0, sizeof(*c));
    weir_arena_init(&c->arena, 0);
    c->given = (weir_discover_wish)WEIR_DISCOVER_WISH_INIT;
    c->given.model = "m";
}

/* Judges one source given as messages. */
static inline void case_judge(judge_case *c, const weir_listed_source *listed,
                              const ModelExpress__P2p__SourceIdentity *identity,
                              const ModelExpress__P2p__WorkerMetadata *worker)
{
    weir_judge_wish wish;
    weir_source_facts facts;
    assert_int_equal(weir_judge_wish_open(&c->given, &wish), WEIR_OK);
    wish.now_ms = NOW_MS;
    assert_int_equal(weir_source_facts_open(identity, worker, &facts), WEIR_OK);
    assert_int_equal(weir_judge_source(&wish, listed, &facts, &c->arena, &c->judged[c->n++]),
                     WEIR_OK);
    weir_source_facts_close(&facts);
    weir_judge_wish_close(&wish);
}

static inline void put_extra(ModelExpress__P2p__SourceIdentity *identity,
                             ModelExpress__P2p__SourceIdentity__ExtraParametersEntry *entry,
                             const char *key, const char *value)
{
    if (value == NULL)
        return;
    model_express__p2p__source_identity__extra_parameters_entry__init(entry);
    entry->key = (char *)key;
    entry->value = (char *)value;
    identity->extra_parameters[identity->n_extra_parameters++] = entry;
}

/* The sidecar's JSON; texts that are no numbers are put in quotes. */
static inline char *sidecar_of(const judge_source *source)
{
    json_t *said = json_pack("{s:s, s:s*}", "mx_v2", "1", "shape_registry", source->registry);
    const char *const keys[] = { "role", "worker_rank", "training_step" };
    const char *const values[] = { source->role, source->rank, source->step };
    for (size_t i = 0; i < 3; i++) {
        if (values[i] == NULL)
            continue;
        json_t *number = json_loads(values[i], JSON_DECODE_ANY, NULL);
        json_object_set_new(said, keys[i], number != NULL ? number : json_string(values[i]));
    }
    char *text = json_dumps(said, JSON_COMPACT);
    json_decref(said);
    return text;
}

static inline void case_add(judge_case *c, judge_source source)
{
    ModelExpress__P2p__SourceIdentity identity = MODEL_EXPRESS__P2P__SOURCE_IDENTITY__INIT;
    ModelExpress__P2p__SourceIdentity__ExtraParametersEntry entries[8], *extras[8];
    ModelExpress__P2p__TensorDescriptor tensor = MODEL_EXPRESS__P2P__TENSOR_DESCRIPTOR__INIT;
    ModelExpress__P2p__TensorDescriptor sidecar = MODEL_EXPRESS__P2P__TENSOR_DESCRIPTOR__INIT;
    ModelExpress__P2p__TensorDescriptor *tensors[] = { &tensor, &sidecar };
    ModelExpress__P2p__WorkerMetadata worker;
    char agent[256], *json = sidecar_of(&source);
    model_express__p2p__worker_metadata__init(&worker);
    identity.model_name = (char *)"m";
    identity.extra_parameters = extras;
    worker.status = source.status != 0 ? (ModelExpress__P2p__SourceStatus)source.status
                                       : MODEL_EXPRESS__P2P__SOURCE_STATUS__SOURCE_STATUS_READY;
    tensor.name = (char *)"t";
    tensor.addr = 4096;
    tensor.size = 64;
    worker.tensors = tensors;
    worker.n_tensors = 1;
    if (source.by == WEIR_ROUTE_IDENTITY) {
        put_extra(&identity, &entries[0], "mx_v2", "1");
        put_extra(&identity, &entries[1], "role", source.role);
        put_extra(&identity, &entries[2], "worker_rank", source.rank);
        put_extra(&identity, &entries[3], "training_step", source.step);
        put_extra(&identity, &entries[4], "shape_registry", source.registry);
    } else if (source.by == WEIR_ROUTE_AGENT_NAME) {
        snprintf(agent, sizeof(agent), "mx_v2|%s|rank=%s|version=%s|orig=a|b", source.role,
                 source.rank, source.step);
        worker.agent_name = agent;
    } else {
        sidecar.name = (char *)WEIR_SIDECAR_JSON;
        sidecar.dtype = json;
        worker.n_tensors = 2;
    }
    const weir_listed_source listed = { "0123456789abcdef",   source.worker_id,   "m",
                                        source.updated_at_ms, (int)worker.status, NULL };
    case_judge(c, &listed, &identity, &worker);
    free(json);
}

static inline void case_settle(judge_case *c)
{
    assert_int_equal(weir_judge_settle(c->judged, c->n, &c->arena, &c->n_taken), WEIR_OK);
}

static inline void expect_refused(const judge_case *c, size_t i, const char *reason)
{
    assert_false(c->judged[i].candidate.taken);
    assert_string_equal(c->judged[i].candidate.reason, reason);
}

static inline void expect_taken(const judge_case *c, size_t i)
{
    assert_string_equal(c->judged[i].candidate.reason, "");
    assert_true(c->judged[i].candidate.taken);
}

#endif
