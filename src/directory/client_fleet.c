/* SPDX-License-Identifier: Apache-2.0 */
/* client_fleet.c - DirectoryService: a step of a refit in one message, and answers that wait. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory.pb-c.h"
#include "directory/client_core.h"
#include "directory/client_entry.h"

#define ANSWER_MS 2000u   /* for an answer to arrive once the server's wait is over */
#define PROGRESS_MS 1000u /* what is not heard by then is old */

typedef Weir__Directory__Stop stop_message;

/* ---- calls -----------------------------------------------------------------------------------*/

bool weir_directory_is_plain(const weir_directory_client *client)
{
    return client->is_plain;
}

uint64_t weir_directory_client_messages(const weir_directory_client *client)
{
    return client->n_messages;
}

void weir_directory_client_heed(weir_directory_client *client, const atomic_bool *cancelled)
{
    client->cancelled = cancelled;
}

void weir_directory_client_interrupt(weir_directory_client *client)
{
    if (!atomic_load(&client->is_waiting))
        return;
    atomic_store(&client->interrupted, true);
    weir_rpc_client_cancel(client->rpc);
}

void weir_directory_client_uninterrupt(weir_directory_client *client)
{
    atomic_store(&client->interrupted, false);
    weir_rpc_client_uncancel(client->rpc);
}

static weir_status no_such_service(const weir_directory_client *client)
{
    return weir_fail(WEIR_ERR_UNSUPPORTED, "directory %s has no weir.directory.DirectoryService",
                     client->address);
}

static weir_status call_fleet(weir_directory_client *client, const char *method,
                              const ProtobufCMessage *request, const ProtobufCMessage **out)
{
    if (client->is_plain)
        return no_such_service(client);
    weir_status status = weir_client_call(client, &weir__directory__directory_service__descriptor,
                                          method, request, out);
    client->is_plain = status == WEIR_ERR_UNSUPPORTED;
    return status;
}

/* A call that the server answers within wait_ms. IN_PROGRESS: it was interrupted. */
static weir_status call_and_wait(weir_directory_client *client, unsigned wait_ms,
                                 const char *method, const ProtobufCMessage *request,
                                 const ProtobufCMessage **out)
{
    if (client->is_plain)
        return no_such_service(client);
    weir_status status = WEIR_IN_PROGRESS;
    unsigned answer_ms = client->timeout_ms < ANSWER_MS ? client->timeout_ms : ANSWER_MS;
    /* Said before it is looked whether to wait at all: who cancels says so, then looks whether
     * somebody waits. */
    atomic_store(&client->is_waiting, true);
    if (client->cancelled == NULL || !atomic_load(client->cancelled))
        status = weir_client_call_for(client, wait_ms + answer_ms,
                                      &weir__directory__directory_service__descriptor, method,
                                      request, out);
    atomic_store(&client->is_waiting, false);
    if (status == WEIR_ERR_CANCELLED && atomic_exchange(&client->interrupted, false))
        status = WEIR_IN_PROGRESS;
    client->is_plain = status == WEIR_ERR_UNSUPPORTED;
    return status;
}

static unsigned slice_of(unsigned timeout_ms)
{
    return timeout_ms < WEIR_DIRECTORY_SLICE_MS ? timeout_ms : WEIR_DIRECTORY_SLICE_MS;
}

/* Texts for people may be longer than there is room for. */
static void cut(const char *text, char *out, size_t n_out)
{
    size_t n = strlen(text);
    if (n >= n_out)
        n = n_out - 1;
    while (n > 0 && n < strlen(text) && ((unsigned char)text[n] & 0xc0) == 0x80)
        n--; /* not in the midst of a character */
    memcpy(out, text, n);
    out[n] = '\0';
    weir_error_one_line(out);
}

static size_t fill_spans(const weir_stop_span *spans, size_t n, stop_message *messages,
                         stop_message **pointers)
{
    size_t n_filled = n < WEIR_MAX_SPANS ? n : WEIR_MAX_SPANS;
    for (size_t i = 0; i < n_filled; i++) {
        weir__directory__stop__init(&messages[i]);
        messages[i].name = (char *)spans[i].name;
        messages[i].begun_unix_us = spans[i].begun_unix_us;
        messages[i].duration_us = spans[i].duration_us;
        messages[i].peer = (char *)spans[i].peer;
        messages[i].n_bytes = spans[i].n_bytes;
        pointers[i] = &messages[i];
    }
    return n_filled;
}

/* ---- trainers --------------------------------------------------------------------------------*/

static weir_status take_publish_answer(weir_directory_client *client,
                                       const Weir__Directory__PublishVersionShardResponse *response,
                                       weir_publish_answer *out)
{
    weir_publish_answer answer = { .attempt = response->attempt };
    if (response->n_slot_workers == response->n_slot_contents)
        answer.marks = (weir_slot_marks){ response->slot_workers, response->slot_contents,
                                          response->n_slot_workers };
    if (response->version == NULL)
        return weir_fail(WEIR_ERR_FORMAT, "directory %s: PublishVersionShard gave no version",
                         client->address);
    weir_status status = weir_client_take_version(client, response->version, &answer.version);
    if (status == WEIR_OK)
        status = weir_client_copy(client, "mx_source_id", response->mx_source_id, answer.source_id,
                                  sizeof(answer.source_id));
    if (status == WEIR_OK)
        status = weir_client_copy(client, "trace_id", response->trace_id, answer.trace_id,
                                  sizeof(answer.trace_id));
    if (status == WEIR_OK)
        *out = answer;
    return status;
}

weir_status weir_directory_publish_version_shard(weir_directory_client *client,
                                                 const weir_publish_request *wish,
                                                 weir_publish_answer *out)
{
    Weir__Directory__PublishVersionShardRequest request =
        WEIR__DIRECTORY__PUBLISH_VERSION_SHARD_REQUEST__INIT;
    ModelExpress__Refit__WeightVersionShard shard;
    stop_message messages[WEIR_MAX_SPANS], *stops[WEIR_MAX_SPANS];
    weir_client_entry entry;
    weir_status status = weir_client_entry_fill(wish->source, &entry);
    if (status != WEIR_OK)
        return status;
    if (wish->source_is_known) {
        entry.request.identity = NULL;
        entry.request.worker = NULL;
    }
    weir_client_fill_shard(wish->shard, &shard);
    request.model_name = (char *)wish->source->model;
    request.run = (char *)wish->source->run;
    request.version_number = wish->source->version;
    request.expected_source_slots = (char **)wish->slots;
    request.n_expected_source_slots = wish->n_slots;
    request.shard = &shard;
    request.source = &entry.request;
    request.layout_signature = (char *)wish->source->layout_signature;
    request.trace_id = (char *)wish->trace_id;
    request.content = (char *)wish->content;
    request.stops = stops;
    request.n_stops = fill_spans(wish->spans, wish->n_spans, messages, stops);
    request.attempt = wish->attempt;
    request.slot_workers = (uint64_t *)wish->marks.workers;
    request.slot_contents = (uint64_t *)wish->marks.contents;
    request.n_slot_workers = request.n_slot_contents = wish->marks.n;
    const ProtobufCMessage *answer;
    status = call_fleet(client, "PublishVersionShard", &request.base, &answer);
    return status != WEIR_OK ? status : take_publish_answer(client, (const void *)answer, out);
}

static void take_stragglers(const Weir__Directory__AwaitReplicasResponse *response,
                            weir_await_answer *out)
{
    out->n_stragglers = response->n_stragglers;
    for (size_t i = 0; i < response->n_stragglers && i < WEIR_MAX_STRAGGLERS; i++) {
        const Weir__Directory__Straggler *item = response->stragglers[i];
        weir_await_straggler *straggler = &out->stragglers[i];
        cut(item->worker_id, straggler->worker_id, sizeof(straggler->worker_id));
        cut(item->stop, straggler->stop, sizeof(straggler->stop));
        cut(item->slowest_from, straggler->from, sizeof(straggler->from));
        straggler->reads = item->reads;
        straggler->has_version = item->has_number;
        straggler->version = item->version_number;
        straggler->silent_ms = item->silent_ms;
        straggler->ended_ms = item->ended_ms;
    }
}

static weir_status take_await_answer(const weir_directory_client *client,
                                     const Weir__Directory__AwaitReplicasResponse *response,
                                     weir_refusal *refusals, size_t n_max, weir_await_answer *out)
{
    size_t n = 0;
    for (size_t i = 0; i < response->n_words; i++) {
        const Weir__Directory__ReplicaWord *word = response->words[i];
        weir_status status = WEIR_OK;
        if (word->status == WEIR_OK)
            continue;
        if (n < n_max) {
            refusals[n].status = (weir_status)(int32_t)word->status;
            status = weir_client_copy(client, "words.worker_id", word->worker_id,
                                      refusals[n].worker_id, sizeof(refusals[n].worker_id));
            cut(word->text, refusals[n].text, sizeof(refusals[n].text));
        }
        if (status != WEIR_OK)
            return status;
        n++;
    }
    *out = (weir_await_answer){ .n_holding = response->n_holding,
                                .n_refusals = n,
                                .state = (weir_version_state)response->state };
    if (response->n_slot_workers == response->n_slot_contents)
        out->marks = (weir_slot_marks){ response->slot_workers, response->slot_contents,
                                        response->n_slot_workers };
    cut(response->reason, out->reason, sizeof(out->reason));
    take_stragglers(response, out);
    return WEIR_OK;
}

weir_status weir_directory_await_replicas(weir_directory_client *client, const char *model,
                                          const char *version_uid, uint32_t n_replicas,
                                          unsigned timeout_ms, weir_refusal *refusals, size_t n_max,
                                          weir_await_answer *out)
{
    Weir__Directory__AwaitReplicasRequest request = WEIR__DIRECTORY__AWAIT_REPLICAS_REQUEST__INIT;
    request.model_name = (char *)model;
    request.version_id = (char *)version_uid;
    request.n_replicas = n_replicas;
    request.timeout_ms = slice_of(timeout_ms);
    const ProtobufCMessage *answer;
    weir_status status =
        call_and_wait(client, request.timeout_ms, "AwaitReplicas", &request.base, &answer);
    if (status == WEIR_OK)
        status = take_await_answer(client, (const void *)answer, refusals, n_max, out);
    if (status != WEIR_OK)
        return status;
    return out->n_holding >= n_replicas || out->state == WEIR_VERSION_ABORTED ? WEIR_OK
                                                                              : WEIR_IN_PROGRESS;
}

/* "a, b, c", as far as there is room. */
static void join_names(char *const *names, size_t n, char *text, size_t text_bytes)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < n && used + WEIR_NAME_BYTES + 3 < text_bytes; i++)
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%.255s", used ? ", " : "",
                                 names[i]);
    weir_error_one_line(text);
}

weir_status weir_directory_retire_versions(weir_directory_client *client,
                                           const char *const *version_uids, size_t n,
                                           const char *slot, const char *worker_id,
                                           unsigned timeout_ms, char *out_readers,
                                           size_t readers_bytes)
{
    Weir__Directory__RetireVersionsRequest request = WEIR__DIRECTORY__RETIRE_VERSIONS_REQUEST__INIT;
    request.version_ids = (char **)version_uids;
    request.n_version_ids = n;
    request.source_slot_id = (char *)slot;
    request.worker_id = (char *)worker_id;
    request.timeout_ms = slice_of(timeout_ms);
    const ProtobufCMessage *answer;
    weir_status status =
        call_and_wait(client, request.timeout_ms, "RetireVersions", &request.base, &answer);
    out_readers[0] = '\0';
    if (status != WEIR_OK)
        return status;
    const Weir__Directory__RetireVersionsResponse *response = (const void *)answer;
    join_names(response->leased_by, response->n_leased_by, out_readers, readers_bytes);
    return response->n_leased_by == 0 ? WEIR_OK : WEIR_IN_PROGRESS;
}

weir_status weir_directory_abort_version(weir_directory_client *client, const char *version_uid,
                                         const char *worker_id, const char *reason)
{
    Weir__Directory__AbortVersionRequest request = WEIR__DIRECTORY__ABORT_VERSION_REQUEST__INIT;
    request.version_id = (char *)version_uid;
    request.worker_id = (char *)worker_id;
    request.reason = (char *)reason;
    const ProtobufCMessage *answer;
    return call_fleet(client, "AbortVersion", &request.base, &answer);
}

/* ---- replicas --------------------------------------------------------------------------------*/

static weir_status take_peer(const weir_directory_client *client, const Weir__Directory__Peer *peer,
                             weir_peer_record *out)
{
    const struct {
        const char *field, *text;
        char *out;
        size_t n_out;
    } texts[] = {
        { "peer.worker_id", peer->worker_id, out->worker_id, sizeof(out->worker_id) },
        { "peer.mx_source_id", peer->mx_source_id, out->source_id, sizeof(out->source_id) },
        { "peer.manifest_endpoint", peer->manifest_endpoint, out->endpoint, sizeof(out->endpoint) },
        { "peer.host", peer->host, out->host, sizeof(out->host) },
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        weir_status status =
            weir_client_copy(client, texts[i].field, texts[i].text, texts[i].out, texts[i].n_out);
        if (status != WEIR_OK)
            return status;
    }
    out->n_readers = peer->n_readers;
    return WEIR_OK;
}

static weir_status take_lease(weir_directory_client *client,
                              const Weir__Directory__AcquireVersionResponse *response,
                              weir_shard_record *shards, size_t n_max, weir_acquire_answer *out)
{
    if (response->version == NULL || response->lease == NULL)
        return weir_fail(WEIR_ERR_FORMAT, "directory %s: AcquireVersion gave no version or lease",
                         client->address);
    weir_status status = weir_client_take_version(client, response->version, &out->version);
    if (status == WEIR_OK)
        status = weir_client_copy(client, "lease.lease_id", response->lease->lease_id,
                                  out->lease_id, sizeof(out->lease_id));
    if (status == WEIR_OK)
        status = weir_client_copy(client, "trace_id", response->trace_id, out->trace_id,
                                  sizeof(out->trace_id));
    if (status == WEIR_OK && response->peer != NULL)
        status = take_peer(client, response->peer, &out->peer);
    for (size_t i = 0; i < response->n_shards && i < n_max && status == WEIR_OK; i++)
        status = weir_client_take_shard(client, response->shards[i], &shards[i]);
    out->attempt = response->attempt;
    out->n_shards = response->n_shards;
    return status;
}

/* A whole name, as long as there is room. */
static void add_name(char *text, size_t n_text, size_t *n_used, const char *name,
                     const char *worker_id)
{
    char part[2 * WEIR_NAME_BYTES + 32];
    bool has_worker = worker_id[0] != '\0';
    snprintf(part, sizeof(part), "%s%.255s%s%.255s%s", *n_used != 0 ? ", " : "", name,
             has_worker ? " (worker " : "", worker_id, has_worker ? ")" : "");
    size_t n = strlen(part);
    if (n >= n_text - *n_used)
        return;
    memcpy(text + *n_used, part, n + 1);
    *n_used += n;
}

/* "rank-2, rank-3"; "rank-0 (worker W)". Both lists are in the order of the slots. */
static void take_missing(const Weir__Directory__AcquireVersionResponse *response,
                         weir_acquire_answer *out)
{
    size_t n_used = 0, n_used_gone = 0;
    for (size_t i = 0; i < response->n_missing_slots; i++) {
        const char *slot = response->missing_slots[i];
        const Weir__Directory__GoneSlot *gone =
            out->n_gone < response->n_gone_slots ? response->gone_slots[out->n_gone] : NULL;
        if (gone != NULL && strcmp(gone->source_slot_id, slot) == 0) {
            add_name(out->gone, sizeof(out->gone), &n_used_gone, slot, gone->worker_id);
            out->n_gone++;
        } else {
            add_name(out->missing, sizeof(out->missing), &n_used, slot, "");
            out->n_missing++;
        }
    }
    weir_error_one_line(out->missing);
    weir_error_one_line(out->gone);
}

static weir_status take_lack(const weir_directory_client *client,
                             const Weir__Directory__AcquireVersionResponse *response,
                             weir_acquire_answer *out)
{
    out->has_trainer = response->has_trainer;
    out->newest = response->newest;
    out->awaited_state = (weir_version_state)response->awaited_state;
    take_missing(response, out);
    cut(response->reason, out->reason, sizeof(out->reason));
    weir_status status = weir_client_copy(client, "awaited_id", response->awaited_id,
                                          out->awaited_uid, sizeof(out->awaited_uid));
    return status == WEIR_OK ? WEIR_IN_PROGRESS : status;
}

weir_status weir_directory_acquire_version(weir_directory_client *client,
                                           const weir_acquire_request *wish,
                                           weir_shard_record *shards, size_t n_max,
                                           weir_acquire_answer *out)
{
    Weir__Directory__AcquireVersionRequest request = WEIR__DIRECTORY__ACQUIRE_VERSION_REQUEST__INIT;
    request.model_name = (char *)wish->model;
    request.run = (char *)wish->run;
    request.worker_id = (char *)wish->worker_id;
    request.worker_rank = wish->worker_rank;
    request.lowest = wish->lowest;
    request.highest = wish->highest;
    request.but_not_id = (char *)wish->but_not_uid;
    request.held_id = (char *)wish->held_uid;
    request.host = (char *)wish->host;
    request.part = (char *)wish->part;
    request.avoid = (char **)wish->avoid;
    request.n_avoid = wish->n_avoid;
    request.ttl_seconds = wish->ttl_s;
    request.peer_wait_ms = wish->peer_wait_ms;
    request.timeout_ms = slice_of(wish->timeout_ms);
    request.trace_id = (char *)wish->trace_id;
    const ProtobufCMessage *answer;
    *out = (weir_acquire_answer){ .n_shards = 0 };
    weir_status status =
        call_and_wait(client, request.timeout_ms, "AcquireVersion", &request.base, &answer);
    if (status != WEIR_OK)
        return status;
    const Weir__Directory__AcquireVersionResponse *response = (const void *)answer;
    return response->found ? take_lease(client, response, shards, n_max, out)
                           : take_lack(client, response, out);
}

weir_status weir_directory_acknowledge_version(weir_directory_client *client,
                                               const weir_acknowledgement *word,
                                               char out_source_id[WEIR_ID_BYTES])
{
    Weir__Directory__AcknowledgeVersionRequest request =
        WEIR__DIRECTORY__ACKNOWLEDGE_VERSION_REQUEST__INIT;
    stop_message messages[WEIR_MAX_SPANS], *stops[WEIR_MAX_SPANS];
    weir_client_entry entry;
    weir_status status = weir_client_entry_fill(&word->source, &entry);
    if (status != WEIR_OK)
        return status;
    request.source = &entry.request;
    request.version_id = (char *)word->version_uid;
    request.version_number = word->version;
    request.lease_id = (char *)word->lease_id;
    request.status = (uint32_t)word->status;
    request.text = (char *)word->text;
    request.n_bytes = word->n_bytes;
    request.stops = stops;
    request.n_stops = fill_spans(word->spans, word->n_spans, messages, stops);
    request.host = (char *)word->host;
    request.part = (char *)word->part;
    request.read_from = (char *)word->read_from;
    request.trace_id = (char *)word->trace_id;
    request.run = (char *)word->source.run;
    const ProtobufCMessage *answer;
    status = call_fleet(client, "AcknowledgeVersion", &request.base, &answer);
    if (status != WEIR_OK)
        return status;
    const Weir__Directory__AcknowledgeVersionResponse *response = (const void *)answer;
    return weir_client_copy(client, "mx_source_id", response->mx_source_id, out_source_id,
                            WEIR_ID_BYTES);
}

weir_status weir_directory_report_progress(weir_directory_client *client,
                                           const weir_progress_report *report)
{
    Weir__Directory__ReportProgressRequest request = WEIR__DIRECTORY__REPORT_PROGRESS_REQUEST__INIT;
    request.worker_id = (char *)report->worker_id;
    request.model_name = (char *)report->model;
    request.version_number = report->version;
    request.stop = (char *)report->stop;
    request.done_bytes = report->done_bytes;
    request.total_bytes = report->total_bytes;
    request.slowest_from = (char *)report->slowest_from;
    const ProtobufCMessage *answer;
    if (client->is_plain)
        return no_such_service(client);
    unsigned timeout_ms = client->timeout_ms < PROGRESS_MS ? client->timeout_ms : PROGRESS_MS;
    weir_status status =
        weir_client_call_for(client, timeout_ms, &weir__directory__directory_service__descriptor,
                             "ReportProgress", &request.base, &answer);
    client->is_plain = status == WEIR_ERR_UNSUPPORTED;
    return status;
}

/* ---- for people ------------------------------------------------------------------------------*/

weir_status weir_directory_get_fleet(weir_directory_client *client, const weir_fleet_request *wish,
                                     const char **out_json)
{
    Weir__Directory__GetFleetRequest request = WEIR__DIRECTORY__GET_FLEET_REQUEST__INIT;
    request.model_name = (char *)wish->model;
    request.version_number = wish->version;
    request.after_revision = wish->after_revision;
    request.timeout_ms = slice_of(wish->timeout_ms);
    const ProtobufCMessage *answer;
    weir_status status =
        call_and_wait(client, request.timeout_ms, "GetFleet", &request.base, &answer);
    if (status == WEIR_OK)
        *out_json = ((const Weir__Directory__GetFleetResponse *)(const void *)answer)->json;
    return status;
}
