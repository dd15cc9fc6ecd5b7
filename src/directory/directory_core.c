/* SPDX-License-Identifier: Apache-2.0 */
/* directory_core.c - from a call to its answer: at once, when its record comes back from the log,
 * or when what it waits for is there.
 *
 * Waits are looked at from the tick, never from within a change: the answer to that change may
 * still point into the store, and many changes are worth one look. */
#include "directory/directory_core.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "directory.pb-c.h"
#include "directory/directory_news.h"
#include "health.pb-c.h"
#include "p2p.pb-c.h"
#include "refit.pb-c.h"
#include "rpc/rpc_message.h"
#include "weir/weir.h"

#define NS_PER_MS 1000000ull
#define ARENA_BYTES ((size_t)512 << 20) /* the same everywhere: what unpacks here does so there */
#define SWEEP_MS 30000u
#define WAITING_SWEEP_MS 1000u /* an expiry by time alone must wake who waits */
#define MOST_WAIT_MS 600000u
#define MOST_MARGIN_MS 200u /* an answer needs time to come before its deadline */

/* ---- refusals --------------------------------------------------------------------------------*/

weir_rpc_code weir_directory_core_refuse(weir_status status, char *text)
{
    snprintf(text, WEIR_RPC_MESSAGE_TEXT, "%s", weir_last_error());
    weir_rpc_text_repair(text); /* names in it may have been cut */
    switch (status) {
    case WEIR_ERR_INVALID:
        return WEIR_RPC_INVALID_ARGUMENT;
    case WEIR_ERR_NOT_FOUND:
        return WEIR_RPC_NOT_FOUND;
    case WEIR_ERR_EXISTS:
        return WEIR_RPC_ALREADY_EXISTS;
    case WEIR_ERR_REFUSED:
        return WEIR_RPC_FAILED_PRECONDITION;
    case WEIR_ERR_NO_MEMORY:
        return WEIR_RPC_RESOURCE_EXHAUSTED;
    case WEIR_ERR_PEER_LOST:
    case WEIR_ERR_TIMED_OUT:
        return WEIR_RPC_UNAVAILABLE;
    default:
        return WEIR_RPC_INTERNAL;
    }
}

weir_rpc_code weir_directory_core_invalid(weir_directory_call *call, const char *text)
{
    snprintf(call->text, WEIR_RPC_MESSAGE_TEXT, "%s", text);
    return WEIR_RPC_INVALID_ARGUMENT;
}

/* ---- the table -------------------------------------------------------------------------------*/

static weir_rpc_code get_health(weir_directory_call *call)
{
    const weir_directory_core *core = call->core;
    ModelExpress__Health__HealthResponse *response =
        weir_arena_alloc(call->arena, sizeof(*response));
    if (response == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    model_express__health__health_response__init(response);
    const char *trouble = core->log->ops->trouble(core->log);
    response->version = (char *)WEIR_VERSION;
    response->status = (char *)(trouble == NULL ? "ok" : "degraded");
    response->uptime = (weir_now_ns() - core->begun_ns) / NS_PER_MS / 1000;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

static const weir_directory_method health_methods[] = {
    { .name = "HealthService.GetHealth",
      .input = &model_express__health__health_request__descriptor,
      .kind = WEIR_DIRECTORY_LOCAL,
      .rule = get_health },
};
static const size_t n_health_methods = 1;

typedef struct method_table {
    const ProtobufCServiceDescriptor *service;
    const weir_directory_method *methods;
    const size_t *n_methods;
} method_table;

static const method_table tables[WEIR_DIRECTORY_SERVICES] = {
    { &model_express__refit__refit_service__descriptor, weir_refit_methods, &weir_n_refit_methods },
    { &model_express__p2p__p2p_service__descriptor, weir_source_methods, &weir_n_source_methods },
    { &weir__directory__directory_service__descriptor, weir_fleet_methods, &weir_n_fleet_methods },
    { &model_express__health__health_service__descriptor, health_methods, &n_health_methods },
};

/* By the request's type, or by name. NULL: there is none. */
static const weir_directory_method *find_method(const ProtobufCMessageDescriptor *input,
                                                const char *name)
{
    for (size_t i = 0; i < WEIR_DIRECTORY_SERVICES; i++) {
        for (size_t k = 0; k < *tables[i].n_methods; k++) {
            const weir_directory_method *method = &tables[i].methods[k];
            if (name != NULL ? strcmp(method->name, name) == 0 : method->input == input)
                return method;
        }
    }
    return NULL;
}

/* ---- answers ---------------------------------------------------------------------------------*/

static weir_directory_method_counts *counts_of(weir_directory_core *core,
                                               const weir_directory_method *method)
{
    size_t i = 0;
    while (core->counts.methods[i].name != method->name)
        i++;
    return &core->counts.methods[i];
}

static size_t index_of(weir_rpc_code code)
{
    return code < WEIR_DIRECTORY_CODES ? code : WEIR_RPC_UNKNOWN;
}

/* P2pService refuses by its replies. */
static bool is_refusal(const ProtobufCMessage *response)
{
    if (response->descriptor == &model_express__p2p__publish_metadata_response__descriptor)
        return !((const ModelExpress__P2p__PublishMetadataResponse *)(const void *)response)
                    ->success;
    if (response->descriptor == &model_express__p2p__update_status_response__descriptor)
        return !((const ModelExpress__P2p__UpdateStatusResponse *)(const void *)response)->success;
    return false;
}

static void count(weir_directory_core *core, const weir_directory_method *method,
                  weir_rpc_code code, const ProtobufCMessage *response)
{
    weir_directory_method_counts *counts = counts_of(core, method);
    counts->by_code[index_of(code)]++;
    counts->n_refused_replies += code == WEIR_RPC_OK && response != NULL && is_refusal(response);
}

void weir_directory_core_refused(void *context, const ProtobufCMethodDescriptor *asked,
                                 weir_rpc_code code)
{
    weir_directory_core *core = context;
    const weir_directory_method *method = asked != NULL ? find_method(asked->input, NULL) : NULL;
    uint64_t *refused =
        method != NULL ? counts_of(core, method)->refused : core->counts.refused_elsewhere;
    refused[index_of(code)]++;
}

/* What a record did: here, when it was asked for here; that time is up, everywhere. */
static void count_events(weir_directory_core *core, const weir_store_events *before, bool is_ours)
{
    weir_store_events after = weir_store_count_events(core->store), *sum = &core->counts.events;
    sum->n_expired += after.n_expired - before->n_expired;
    if (!is_ours)
        return;
    sum->n_made += after.n_made - before->n_made;
    sum->n_ready += after.n_ready - before->n_ready;
    sum->n_released += after.n_released - before->n_released;
    sum->n_aborted += after.n_aborted - before->n_aborted;
    sum->n_shards += after.n_shards - before->n_shards;
    sum->n_shard_bytes += after.n_shard_bytes - before->n_shard_bytes;
    sum->n_leases += after.n_leases - before->n_leases;
    sum->n_renewed += after.n_renewed - before->n_renewed;
    sum->n_given_back += after.n_given_back - before->n_given_back;
}

static void answer(weir_directory_core *core, const weir_directory_method *method, uint64_t ticket,
                   weir_rpc_code code, const ProtobufCMessage *response, const char *text)
{
    weir_directory_current *current = &core->current;
    if (current->ticket != ticket) {
        count(core, method, code, response);
        core->hooks.answer(core->hooks.context, ticket, code, response, text);
        return;
    }
    current->is_answered = true;
    current->code = code;
    current->response = response;
    if (text != current->text)
        snprintf(current->text, WEIR_RPC_MESSAGE_TEXT, "%s", text);
}

static void answer_failure(weir_directory_core *core, const weir_directory_method *method,
                           uint64_t ticket, weir_status status)
{
    char text[WEIR_RPC_MESSAGE_TEXT];
    weir_rpc_code code = weir_directory_core_refuse(status, text);
    answer(core, method, ticket, code, NULL, text);
}

static void end_wait(weir_directory_core *core, weir_wait *wait, weir_rpc_code code,
                     const ProtobufCMessage *response, const char *text)
{
    const weir_directory_method *method = wait->method;
    uint64_t ticket = wait->ticket;
    weir_waits_drop(&core->waits, wait);
    answer(core, method, ticket, code, response, text);
}

/* ---- when the tick is due --------------------------------------------------------------------*/

static uint64_t next_due(const weir_directory_core *core)
{
    uint64_t due = weir_waits_next_due(&core->waits);
    if (core->has_changed && core->waits.n_waits != 0 && core->look_ns < due)
        due = core->look_ns;
    if (core->sweep_ns < due)
        due = core->sweep_ns;
    return core->log_ns < due ? core->log_ns : due;
}

static void arm(weir_directory_core *core)
{
    uint64_t due = next_due(core);
    if (due >= core->armed_ns)
        return;
    core->armed_ns = due;
    if (core->hooks.arm != NULL)
        core->hooks.arm(core->hooks.context, due);
}

/* ---- requests --------------------------------------------------------------------------------*/

/* The request of a ticket: unpacked already when a handler is in the middle of it. */
static weir_status open_call(weir_directory_core *core, const weir_directory_method *method,
                             uint64_t ticket, const unsigned char *bytes, size_t n_bytes,
                             weir_directory_call *call)
{
    const weir_directory_current *current = &core->current;
    call->core = core;
    call->is_asked = ticket != 0;
    if (ticket != 0 && current->ticket == ticket && current->request->descriptor == method->input) {
        call->request = current->request;
        call->arena = current->arena;
        return WEIR_OK;
    }
    ProtobufCMessage *request = NULL;
    weir_arena_reset(&core->arena);
    weir_status status =
        weir_rpc_message_unpack(method->input, bytes, n_bytes, &core->arena, &request);
    call->request = request;
    call->arena = &core->arena;
    return status;
}

static weir_status append(weir_directory_core *core, const char *method, const unsigned char *bytes,
                          size_t n_bytes, uint64_t ticket)
{
    core->salt += 0x9e3779b97f4a7c15u; /* odd: every salt once */
    uint64_t salt = core->salt;
    salt = (salt ^ salt >> 30) * 0xbf58476d1ce4e5b9u;
    salt = (salt ^ salt >> 27) * 0x94d049bb133111ebu;
    const weir_log_record record = { .method = method,
                                     .bytes = bytes,
                                     .n_bytes = n_bytes,
                                     .salt = salt ^ salt >> 31,
                                     .trace_id = ticket == core->current.ticket
                                                     ? core->current.trace_id
                                                     : NULL };
    return core->log->ops->append(core->log, &record, ticket);
}

/* Looks whether what a call waits for is there; with is_last it is answered anyhow. */
static void look_at(weir_directory_core *core, weir_wait *wait, uint64_t now_ms, bool is_last)
{
    const weir_directory_method *method = wait->method;
    char text[WEIR_RPC_MESSAGE_TEXT] = "";
    weir_directory_call call = { .now_ms = now_ms, .is_last = is_last, .text = text };
    weir_status status = open_call(core, method, wait->ticket, wait->bytes, wait->n_bytes, &call);
    if (status != WEIR_OK) {
        weir_rpc_code failure = weir_directory_core_refuse(status, text);
        end_wait(core, wait, failure, NULL, text);
        return;
    }
    weir_rpc_code code =
        method->kind == WEIR_DIRECTORY_WAIT ? method->look(&call) : method->rule(&call);
    if (code == WEIR_RPC_LATER) {
        if (call.again_ms > now_ms)
            weir_waits_hasten(&core->waits, wait,
                              weir_now_ns() + (call.again_ms - now_ms) * NS_PER_MS);
        return;
    }
    if (code != WEIR_DIRECTORY_TAKE) {
        end_wait(core, wait, code, call.response, text);
        return;
    }
    uint64_t ticket = wait->ticket;
    wait->is_taking = true;
    status = append(core, method->name, wait->bytes, wait->n_bytes, ticket);
    if (status == WEIR_OK)
        return;
    wait = weir_waits_find(&core->waits, ticket);
    if (wait != NULL)
        end_wait(core, wait, weir_directory_core_refuse(status, text), NULL, text);
}

static void caught_up(void *context, uint64_t ticket, uint64_t now_ms)
{
    weir_directory_core *core = context;
    weir_wait *wait = weir_waits_find(&core->waits, ticket);
    if (wait == NULL) /* gone */
        return;
    wait->is_caught_up = true;
    look_at(core, wait, now_ms, wait->due_ns <= weir_now_ns());
    arm(core);
}

/* ---- the log's reader ------------------------------------------------------------------------*/

static void warn_of_unknown(weir_directory_core *core, const char *name)
{
    if (!core->is_warned_of_unknown)
        weir_log(WEIR_LOG_WARN,
                 "the log has a record '%.80s' that this Weir does not know, maybe of a newer one: "
                 "it is passed over, and others like it",
                 name);
    core->is_warned_of_unknown = true;
}

static void apply_call(weir_directory_core *core, const weir_directory_method *method,
                       const weir_log_record *record, uint64_t now_ms, uint64_t ticket)
{
    weir_wait *wait = ticket != 0 ? weir_waits_find(&core->waits, ticket) : NULL;
    char own_text[WEIR_RPC_MESSAGE_TEXT] = "";
    weir_directory_call call = { .salt = record->salt,
                                 .trace_id = record->trace_id != NULL ? record->trace_id : "",
                                 .now_ms = now_ms,
                                 .text = own_text };
    weir_status status = open_call(core, method, ticket, record->bytes, record->n_bytes, &call);
    if (status != WEIR_OK) {
        weir_log(WEIR_LOG_WARN, "a record %s of the log is passed over: %s", method->name,
                 weir_last_error());
        if (ticket != 0 && wait == NULL)
            answer_failure(core, method, ticket, status);
        return;
    }
    call.is_last = wait != NULL && wait->due_ns <= weir_now_ns();
    const weir_store_events before = weir_store_count_events(core->store);
    weir_rpc_code code = method->rule(&call);
    count_events(core, &before, ticket != 0 && code == WEIR_RPC_OK);
    if (ticket == 0)
        return;
    if (code == WEIR_RPC_LATER) {
        if (wait != NULL)
            wait->is_taking = false;
        return;
    }
    if (wait != NULL)
        end_wait(core, wait, code, call.response, own_text);
    else
        answer(core, method, ticket, code, call.response, own_text);
}

static void apply(void *context, const weir_log_record *record, uint64_t now_ms, uint64_t ticket)
{
    weir_directory_core *core = context;
    core->counts.n_records++;
    if (record->method[0] == '\0') {
        const weir_store_events before = weir_store_count_events(core->store);
        weir_store_sweep(core->store, now_ms);
        count_events(core, &before, false);
    } else {
        const weir_directory_method *method = find_method(NULL, record->method);
        if (method != NULL && method->rule != NULL &&
            (method->kind == WEIR_DIRECTORY_CHANGE || method->kind == WEIR_DIRECTORY_WAIT))
            apply_call(core, method, record, now_ms, ticket);
        else
            warn_of_unknown(core, record->method);
    }
    core->has_changed = true;
    arm(core);
}

static void lost(void *context, uint64_t ticket, const char *text)
{
    weir_directory_core *core = context;
    weir_wait *wait = weir_waits_find(&core->waits, ticket);
    if (wait != NULL)
        end_wait(core, wait, WEIR_RPC_UNAVAILABLE, NULL, text);
    else
        core->hooks.answer(core->hooks.context, ticket, WEIR_RPC_UNAVAILABLE, NULL, text);
}

/* What the log said before this directory was there is no news. */
static void hear(void *context, const weir_store_notice *notice)
{
    const weir_directory_core *core = context;
    if (core->log != NULL)
        weir_directory_news_log(notice);
}

static weir_status load(void *context, const unsigned char *bytes, size_t n)
{
    weir_directory_core *core = context;
    weir_store *store = NULL;
    weir_status status = bytes == NULL ? weir_store_open(&core->store_options, &store)
                                       : weir_store_load(&core->store_options, bytes, n, &store);
    if (status != WEIR_OK)
        return status;
    weir_store_close(core->store);
    core->store = store;
    weir_store_listen(store, hear, core);
    core->has_changed = true;
    return WEIR_OK;
}

static weir_status save(void *context, unsigned char **out, size_t *out_n)
{
    const weir_directory_core *core = context;
    return weir_store_save(core->store, out, out_n);
}

weir_log_reader weir_directory_core_reader(weir_directory_core *core)
{
    return (weir_log_reader){ apply, lost, load, save, core };
}

uint64_t weir_directory_core_now_ms(const weir_directory_core *core)
{
    return core->log->ops->now_ms(core->log);
}

/* ---- calls -----------------------------------------------------------------------------------*/

/* A wait ends by its own bound, and a little before its caller stops listening. */
static uint64_t due_of(const weir_directory_method *method, const weir_directory_call *call,
                       weir_deadline deadline, const char **out_model)
{
    weir_directory_bound bound = method->bound(call);
    unsigned wait_ms = bound.timeout_ms < MOST_WAIT_MS ? bound.timeout_ms : MOST_WAIT_MS;
    if (deadline != 0) {
        unsigned left_ms = weir_deadline_left_ms(deadline);
        unsigned margin_ms = left_ms / 10 < MOST_MARGIN_MS ? left_ms / 10 : MOST_MARGIN_MS;
        if (left_ms - margin_ms < wait_ms)
            wait_ms = left_ms - margin_ms;
    }
    *out_model = bound.model;
    return weir_now_ns() + wait_ms * NS_PER_MS;
}

static weir_status begin_read(weir_directory_core *core, const weir_directory_method *method,
                              const weir_rpc_call_info *info, const weir_directory_call *call)
{
    weir_wait wanted = { .ticket = info->ticket,
                         .method = method,
                         .due_ns = UINT64_MAX,
                         .bytes = info->bytes,
                         .n_bytes = info->n_bytes };
    const char *model = NULL;
    if (method->kind == WEIR_DIRECTORY_WAIT)
        wanted.due_ns = due_of(method, call, info->deadline, &model);
    weir_wait *wait = NULL;
    weir_status status = weir_waits_park(&core->waits, &wanted, model, &wait);
    if (status != WEIR_OK)
        return status;
    uint64_t sweep_ns = weir_now_ns() + WAITING_SWEEP_MS * NS_PER_MS;
    if (method->kind == WEIR_DIRECTORY_WAIT && sweep_ns < core->sweep_ns)
        core->sweep_ns = sweep_ns;
    status = core->log->ops->catch_up(core->log, info->ticket, caught_up, core);
    if (status != WEIR_OK && (wait = weir_waits_find(&core->waits, info->ticket)) != NULL)
        weir_waits_drop(&core->waits, wait);
    return status;
}

static weir_rpc_code handle_call(weir_directory_core *core, const weir_directory_method *method,
                                 const weir_rpc_call_info *info, weir_directory_call *call)
{
    weir_rpc_code code = method->check != NULL ? method->check(call) : WEIR_RPC_OK;
    if (code != WEIR_RPC_OK)
        return code;
    if (method->kind == WEIR_DIRECTORY_LOCAL)
        return method->rule(call);
    weir_status status;
    if (method->kind == WEIR_DIRECTORY_CHANGE)
        status = append(core, method->name, info->bytes, info->n_bytes, info->ticket);
    else
        status = begin_read(core, method, info, call);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    return core->current.is_answered ? core->current.code : WEIR_RPC_LATER;
}

/* Who follows a trace finds its calls in the directory's log. */
static void log_call(const weir_directory_method *method, const weir_rpc_call_info *info)
{
    const weir_log_field fields[] = { { "method", method->name, false },
                                      { "peer", info->peer, false },
                                      { "parent_span_id", info->trace->span_id, false } };
    weir_log_with(WEIR_LOG_DEBUG, fields, 3, "%s by %s, span %s of trace %s", method->name,
                  info->peer, info->trace->span_id, info->trace->trace_id);
}

static weir_rpc_code handle(void *context, const weir_rpc_call_info *info,
                            const ProtobufCMessage *request, weir_arena *arena,
                            const ProtobufCMessage **out_response, char *text)
{
    weir_directory_core *core = context;
    const weir_directory_method *method = find_method(request->descriptor, NULL);
    weir_directory_call call = { .core = core,
                                 .request = request,
                                 .arena = arena,
                                 .now_ms = weir_directory_core_now_ms(core),
                                 .is_asked = true,
                                 .text = text };
    core->current = (weir_directory_current){
        .ticket = info->ticket, .request = request, .arena = arena, .text = text
    };
    const weir_log_scope about = { .trace_id = info->trace != NULL ? info->trace->trace_id : NULL };
    const weir_log_scope *outer = weir_log_enter(&about);
    core->current.trace_id = about.trace_id;
    if (info->trace != NULL)
        log_call(method, info);
    weir_rpc_code code = handle_call(core, method, info, &call);
    *out_response = core->current.is_answered ? core->current.response : call.response;
    memset(&core->current, 0, sizeof(core->current));
    weir_log_enter(outer);
    if (code != WEIR_RPC_LATER)
        count(core, method, code, *out_response);
    arm(core);
    return code;
}

void weir_directory_core_gone(void *context, uint64_t ticket)
{
    weir_directory_core *core = context;
    weir_wait *wait = weir_waits_find(&core->waits, ticket);
    if (wait != NULL)
        weir_waits_drop(&core->waits, wait);
}

/* ---- the tick --------------------------------------------------------------------------------*/

static uint64_t revision_of(void *context, const char *model)
{
    const weir_directory_core *core = context;
    return weir_store_revision(core->store, model[0] != '\0' ? model : NULL);
}

static void look_again(void *context, weir_wait *wait)
{
    weir_directory_core *core = context;
    if (wait->is_caught_up && !wait->is_taking)
        look_at(core, wait, weir_directory_core_now_ms(core), false);
}

/* Never more than half of the time: what is asked at once comes first. */
static void look_at_waits(weir_directory_core *core)
{
    uint64_t begun_ns = weir_now_ns();
    if (!core->has_changed || begun_ns < core->look_ns)
        return;
    core->has_changed = false; /* looks may change something again */
    weir_waits_look(&core->waits, revision_of, look_again, core);
    uint64_t ended_ns = weir_now_ns();
    core->look_ns = ended_ns + (ended_ns - begun_ns);
}

/* A record that is on its way, or a log that cannot be read, is the log's to bound. */
static void end_due_waits(weir_directory_core *core)
{
    weir_wait *wait;
    while ((wait = weir_waits_take_due(&core->waits, weir_now_ns())) != NULL) {
        const weir_directory_method *method = wait->method;
        counts_of(core, method)->n_ended_by_time++;
        if (wait->is_caught_up && !wait->is_taking)
            look_at(core, wait, weir_directory_core_now_ms(core), true);
    }
}

static void sweep(weir_directory_core *core)
{
    uint64_t now_ns = weir_now_ns();
    if (now_ns < core->sweep_ns)
        return;
    unsigned sweep_ms = core->sweep_ms;
    if (core->waits.n_waits != 0 && sweep_ms > WAITING_SWEEP_MS)
        sweep_ms = WAITING_SWEEP_MS;
    core->sweep_ns = now_ns + sweep_ms * NS_PER_MS;
    if (append(core, "", (const unsigned char *)"", 0, 0) != WEIR_OK)
        weir_log(WEIR_LOG_WARN, "what has expired is not ended: %s", weir_last_error());
}

unsigned weir_directory_core_tick(void *context)
{
    weir_directory_core *core = context;
    sweep(core);
    if (weir_now_ns() >= core->log_ns)
        core->log_ns = weir_now_ns() + core->log->ops->tick(core->log) * NS_PER_MS;
    end_due_waits(core);
    look_at_waits(core);
    uint64_t now_ns = weir_now_ns();
    core->armed_ns = next_due(core);
    if (core->hooks.arm != NULL)
        core->hooks.arm(core->hooks.context, core->armed_ns);
    if (core->armed_ns <= now_ns)
        return 1;
    uint64_t left_ms = (core->armed_ns - now_ns + NS_PER_MS - 1) / NS_PER_MS;
    return left_ms < MOST_WAIT_MS ? (unsigned)left_ms : MOST_WAIT_MS;
}

/* ---- opening ---------------------------------------------------------------------------------*/

/* Rows of the rpc server's table have names without their service. */
void weir_directory_core_make_services(weir_directory_core *core)
{
    size_t n = 0;
    for (size_t i = 0; i < WEIR_DIRECTORY_SERVICES; i++) {
        core->services[i] =
            (weir_rpc_service){ tables[i].service, &core->methods[n], *tables[i].n_methods, core };
        for (size_t k = 0; k < *tables[i].n_methods; k++, n++) {
            const char *name = tables[i].methods[k].name;
            core->methods[n] = (weir_rpc_method){ strchr(name, '.') + 1, handle };
            core->counts.methods[n].name = name;
        }
    }
    core->counts.n_methods = n;
}

static weir_status open_group(const weir_directory_core_options *options,
                              weir_directory_group *group)
{
    if (options->group_model == NULL)
        return WEIR_OK;
    group->model = weir_strdup(options->group_model);
    group->run = weir_strdup(options->group_run != NULL ? options->group_run : "default");
    group->n_workers = options->n_group_workers;
    return group->model != NULL && group->run != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

weir_status weir_directory_core_open(const weir_directory_core_options *options,
                                     weir_directory_core *core)
{
    memset(core, 0, sizeof(*core));
    core->store_options = options->store;
    core->hooks = options->hooks;
    core->sweep_ms = options->sweep_every_ms != 0 ? options->sweep_every_ms : SWEEP_MS;
    core->salt = options->salt;
    core->begun_ns = weir_now_ns();
    core->sweep_ns = core->begun_ns + core->sweep_ms * NS_PER_MS;
    core->armed_ns = core->begun_ns; /* the first tick is the server's */
    weir_arena_init(&core->arena, ARENA_BYTES);
    weir_waits_init(&core->waits);
    weir_progress_init(&core->progress);
    weir_directory_core_make_services(core);
    return open_group(options, &core->group);
}

void weir_directory_core_close(weir_directory_core *core)
{
    if (core->log != NULL)
        core->log->ops->close(core->log);
    weir_waits_close(&core->waits);
    weir_progress_close(&core->progress);
    weir_store_close(core->store);
    weir_arena_close(&core->arena);
    weir_free(core->group.model);
    weir_free(core->group.run);
    core->group = (weir_directory_group){ NULL, NULL, 0 };
    core->store = NULL;
    core->log = NULL;
}
