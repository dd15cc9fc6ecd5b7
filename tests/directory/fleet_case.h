/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_case.h - a directory without a socket over a made-up log, and short forms of what a fleet
 * says to it. */
#ifndef WEIR_TEST_FLEET_CASE_H
#define WEIR_TEST_FLEET_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "directory.pb-c.h"
#include "directory/client_entry.h"
#include "directory/directory_core.h"
#include "directory/made_up_log.h"
#include "p2p.pb-c.h"
#include "refit.pb-c.h"
#include "rpc/rpc_dispatch.h"
#include "rpc/rpc_message.h"

#define MODEL "m"
#define RUN "run"
#define LATER_ANSWERS 2048

typedef struct later_answer {
    uint64_t ticket;
    weir_rpc_code code;
    ProtobufCMessage *response; /* NULL: refused */
    char text[WEIR_RPC_MESSAGE_TEXT];
} later_answer;

typedef struct fixture {
    weir_directory_core core;
    made_up_log *log;
    weir_arena arena;
    uint64_t ticket;
    later_answer later[LATER_ANSWERS];
    size_t n_later;
    weir_rpc_answer answer; /* of the last call */
} fixture;

/* ---- a directory without a socket ------------------------------------------------------------*/

static inline bool answer_later(void *context, uint64_t ticket, weir_rpc_code code,
                                const ProtobufCMessage *response, const char *text)
{
    fixture *f = context;
    later_answer *later = &f->later[f->n_later++];
    assert_true(f->n_later < LATER_ANSWERS);
    later->ticket = ticket;
    later->code = code;
    snprintf(later->text, sizeof(later->text), "%s", text);
    if (code != WEIR_RPC_OK)
        return true;
    size_t n = protobuf_c_message_get_packed_size(response);
    unsigned char *bytes = malloc(n + 1);
    protobuf_c_message_pack(response, bytes);
    later->response = protobuf_c_message_unpack(response->descriptor, NULL, n, bytes);
    assert_non_null(later->response);
    free(bytes);
    return true;
}

static inline int set_up(void **state)
{
    fixture *f = calloc(1, sizeof(*f));
    const weir_directory_core_options options = { .salt = 7, .hooks = { answer_later, NULL, f } };
    assert_int_equal(weir_directory_core_open(&options, &f->core), WEIR_OK);
    const weir_log_reader reader = weir_directory_core_reader(&f->core);
    assert_int_equal(made_up_log_open(&reader, &f->log), WEIR_OK);
    f->core.log = &f->log->log;
    weir_arena_init(&f->arena, 0);
    *state = f;
    return 0;
}

static inline int tear_down(void **state)
{
    fixture *f = *state;
    for (size_t i = 0; i < f->n_later; i++) {
        if (f->later[i].response != NULL)
            protobuf_c_message_free_unpacked(f->later[i].response, NULL);
    }
    weir_directory_core_close(&f->core);
    weir_arena_close(&f->arena);
    free(f);
    return 0;
}

/* As the rpc server does it: the request is packed and unpacked. */
static inline weir_rpc_code call_within(fixture *f, const ProtobufCMessage *request,
                                        unsigned deadline_ms)
{
    size_t n = protobuf_c_message_get_packed_size(request);
    unsigned char *bytes = malloc(n + 1);
    protobuf_c_message_pack(request, bytes);
    const weir_rpc_call_info info = {
        .ticket = ++f->ticket,
        .bytes = bytes,
        .n_bytes = n,
        .deadline = deadline_ms != 0 ? weir_deadline_in(deadline_ms) : 0,
    };
    for (size_t i = 0; i < WEIR_DIRECTORY_SERVICES; i++) {
        const weir_rpc_service *service = &f->core.services[i];
        for (size_t k = 0; k < service->n_methods; k++) {
            const ProtobufCMethodDescriptor *method =
                protobuf_c_service_descriptor_get_method_by_name(service->descriptor,
                                                                 service->methods[k].name);
            const weir_rpc_route route = { service, method, service->methods[k].handler };
            if (method->input != request->descriptor)
                continue;
            weir_rpc_dispatch(&route, &info, &f->arena, &f->answer);
            if (f->answer.code == WEIR_RPC_OK)
                assert_ptr_equal(f->answer.message->descriptor, method->output);
        }
    }
    free(bytes);
    return f->answer.code;
}

static inline weir_rpc_code call(fixture *f, const ProtobufCMessage *request)
{
    return call_within(f, request, 0);
}

static inline const void *answered(fixture *f, const ProtobufCMessage *request)
{
    weir_rpc_code code = call(f, request);
    if (code != WEIR_RPC_OK)
        print_error("%s: %d %s\n", request->descriptor->name, code, f->answer.text);
    assert_int_equal(code, WEIR_RPC_OK);
    return f->answer.message;
}

static inline void refused(fixture *f, const ProtobufCMessage *request, weir_rpc_code code,
                           const char *text)
{
    assert_int_equal(call(f, request), code);
    assert_string_equal(f->answer.text, text);
}

/* The answer to a ticket that came later; NULL: none yet. */
static inline const later_answer *find_later(const fixture *f, uint64_t ticket)
{
    for (size_t i = 0; i < f->n_later; i++) {
        if (f->later[i].ticket == ticket)
            return &f->later[i];
    }
    return NULL;
}

static inline const void *later(const fixture *f, uint64_t ticket)
{
    const later_answer *answer = find_later(f, ticket);
    assert_non_null(answer);
    assert_int_equal(answer->code, WEIR_RPC_OK);
    return answer->response;
}

static inline void let_time_pass(fixture *f, uint64_t ms)
{
    const weir_log_record sweep = { .method = "", .bytes = (const unsigned char *)"", .salt = 1 };
    f->log->now_ms += ms;
    f->log->log.ops->append(&f->log->log, &sweep, 0);
    weir_directory_core_tick(&f->core);
}

/* ---- requests --------------------------------------------------------------------------------*/

static inline void register_worker(fixture *f, const char *worker_id, int role)
{
    ModelExpress__Refit__WorkerRegistration worker =
        MODEL_EXPRESS__REFIT__WORKER_REGISTRATION__INIT;
    ModelExpress__Refit__RegisterWorkerRequest request =
        MODEL_EXPRESS__REFIT__REGISTER_WORKER_REQUEST__INIT;
    worker.worker_id = (char *)worker_id;
    worker.model_name = (char *)MODEL;
    worker.role = (ModelExpress__Refit__WorkerRole)role;
    request.worker = &worker;
    request.ttl_seconds = 90;
    answered(f, &request.base);
}

static char *const slots_ab[] = { (char *)"a", (char *)"b" };

typedef struct publish_case {
    Weir__Directory__PublishVersionShardRequest request;
    ModelExpress__Refit__WeightVersionShard shard;
    weir_source_record record;
    weir_client_entry entry;
    Weir__Directory__Stop stop, *stops[1];
} publish_case;

static inline void fill_record(weir_source_record *record, const char *worker_id, const char *role,
                               uint64_t number)
{
    memset(record, 0, sizeof(*record));
    strcpy(record->worker_id, worker_id);
    strcpy(record->model, MODEL);
    strcpy(record->run, RUN);
    strcpy(record->role, role);
    strcpy(record->endpoint, "10.0.0.1:7");
    strcpy(record->layout_signature, "layout");
    record->n_ranks = 2;
    record->rank = (uint32_t)(worker_id[strlen(worker_id) - 1] - '0') % 2; /* "trainer-1" */
    record->status = WEIR_SOURCE_READY;
    record->version = number;
}

static inline const ProtobufCMessage *publish_request(publish_case *c, const char *worker_id,
                                                      const char *slot, uint64_t number)
{
    fill_record(&c->record, worker_id, "trainer", number);
    assert_int_equal(weir_client_entry_fill(&c->record, &c->entry), WEIR_OK);
    model_express__refit__weight_version_shard__init(&c->shard);
    weir__directory__publish_version_shard_request__init(&c->request);
    weir__directory__stop__init(&c->stop);
    c->shard.source_slot_id = (char *)slot;
    c->shard.worker_id = (char *)worker_id;
    c->shard.total_bytes = 100;
    c->shard.tensor_count = 1;
    c->shard.manifest_digest = (char *)"sha256:0";
    c->shard.manifest_endpoint = (char *)"10.0.0.1:7";
    c->shard.transport = (char *)"ucx";
    c->stop.name = (char *)"stage";
    c->stop.duration_us = 1000;
    c->stops[0] = &c->stop;
    c->request.model_name = (char *)MODEL;
    c->request.run = (char *)RUN;
    c->request.version_number = number;
    c->request.expected_source_slots = (char **)slots_ab;
    c->request.n_expected_source_slots = 2;
    c->request.shard = &c->shard;
    c->request.source = &c->entry.request;
    c->request.trace_id = (char *)"0123456789abcdef0123456789abcdef";
    c->request.stops = c->stops;
    c->request.n_stops = 1;
    return &c->request.base;
}

/* Gives the version's uid. */
static inline void publish(fixture *f, const char *worker_id, const char *slot, uint64_t number,
                           char uid[16])
{
    publish_case c;
    const Weir__Directory__PublishVersionShardResponse *response =
        answered(f, publish_request(&c, worker_id, slot, number));
    snprintf(uid, 16, "%s", response->version->uid);
}

static inline void publish_all(fixture *f, uint64_t number, char uid[16])
{
    publish(f, "trainer-0", "a", number, uid);
    publish(f, "trainer-1", "b", number, uid);
}

static inline void register_all(fixture *f)
{
    register_worker(f, "trainer-0", 1);
    register_worker(f, "trainer-1", 1);
    register_worker(f, "replica-0", 2);
    register_worker(f, "replica-1", 2);
}

static inline Weir__Directory__AcquireVersionRequest wish(const char *worker_id, uint64_t lowest,
                                                          unsigned timeout_ms)
{
    Weir__Directory__AcquireVersionRequest request = WEIR__DIRECTORY__ACQUIRE_VERSION_REQUEST__INIT;
    request.model_name = (char *)MODEL;
    request.run = (char *)RUN;
    request.worker_id = (char *)worker_id;
    request.lowest = lowest;
    request.highest = UINT64_MAX;
    request.ttl_seconds = 60;
    request.timeout_ms = timeout_ms;
    return request;
}

typedef struct word_case {
    Weir__Directory__AcknowledgeVersionRequest request;
    weir_source_record record;
    weir_client_entry entry;
} word_case;

static inline const ProtobufCMessage *word_request(word_case *c, const char *worker_id,
                                                   const char *uid, uint64_t number)
{
    fill_record(&c->record, worker_id, "inference_replica", number);
    assert_int_equal(weir_client_entry_fill(&c->record, &c->entry), WEIR_OK);
    weir__directory__acknowledge_version_request__init(&c->request);
    c->request.source = &c->entry.request;
    c->request.version_id = (char *)uid;
    c->request.version_number = number;
    c->request.run = (char *)RUN;
    c->request.n_bytes = 200;
    return &c->request.base;
}

#endif
