/* SPDX-License-Identifier: Apache-2.0 */
/* publish_handlers.c - DirectoryService: a trainer rank's shard is in, a replica worker holds a
 * version or does not.
 *
 * Each is several changes of the store. What could refuse one of them is looked at before the
 * first: either all of it happens or nothing. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/fleet_handlers.h"
#include "directory/source_entry.h"

#define MOST_STOPS 64u
#define MOST_NAME 255u
#define MOST_TEXT 1023u
#define MOST_SLOTS 1024u
#define ROOM_BYTES ((size_t)1 << 20) /* for records beside an entry's bytes */
#define MOST_BYTES ((size_t)512 << 20)

typedef Weir__Directory__PublishVersionShardRequest publish_request;
typedef Weir__Directory__AcknowledgeVersionRequest acknowledge_request;
typedef Weir__Directory__Stop stop_message;

/* ---- what can be said of a request alone -----------------------------------------------------*/

static weir_rpc_code check_name(weir_directory_call *call, const char *field, const char *text)
{
    size_t n = strlen(text);
    if (n != 0 && n <= MOST_NAME)
        return WEIR_RPC_OK;
    if (n == 0)
        snprintf(call->text, WEIR_RPC_MESSAGE_TEXT, "%s is required", field);
    else
        snprintf(call->text, WEIR_RPC_MESSAGE_TEXT, "%s has %zu bytes, at most %u are allowed",
                 field, n, MOST_NAME);
    return WEIR_RPC_INVALID_ARGUMENT;
}

static weir_rpc_code check_stops(weir_directory_call *call, stop_message *const *stops, size_t n)
{
    if (n > MOST_STOPS)
        return weir_directory_core_invalid(call, "at most 64 stops are allowed");
    for (size_t i = 0; i < n; i++) {
        weir_rpc_code code = check_name(call, "stops.name", stops[i]->name);
        if (code != WEIR_RPC_OK)
            return code;
        if (strlen(stops[i]->peer) > MOST_NAME)
            return weir_directory_core_invalid(call, "stops.peer is too long");
    }
    return WEIR_RPC_OK;
}

/* The entry, and whose it is. */
static weir_rpc_code check_source(weir_directory_call *call,
                                  const ModelExpress__P2p__PublishMetadataRequest *source,
                                  const char *model)
{
    if (source == NULL)
        return weir_directory_core_invalid(call, "source is required");
    weir_rpc_code code = check_name(call, "source.worker_id", source->worker_id);
    if (code != WEIR_RPC_OK || source->identity == NULL)
        return code;
    if (source->worker == NULL)
        return weir_directory_core_invalid(call, "source.worker is required with an identity");
    if ((unsigned)source->worker->status > WEIR_STORE_SOURCE_STALE)
        return weir_directory_core_invalid(call, "source.worker.status is none");
    code = check_name(call, "source.identity.model_name", source->identity->model_name);
    if (code == WEIR_RPC_OK && model != NULL && strcmp(model, source->identity->model_name) != 0)
        return weir_directory_core_invalid(call, "source.identity is of another model_name");
    return code;
}

static bool is_expected(const publish_request *request, const char *slot)
{
    for (size_t i = 0; i < request->n_expected_source_slots; i++) {
        if (strcmp(request->expected_source_slots[i], slot) == 0)
            return true;
    }
    return false;
}

weir_rpc_code weir_publish_shard_check(weir_directory_call *call)
{
    const publish_request *request = (const void *)call->request;
    const ModelExpress__Refit__WeightVersionShard *shard = request->shard;
    if (shard == NULL)
        return weir_directory_core_invalid(call, "shard is required");
    weir_rpc_code code = check_name(call, "model_name", request->model_name);
    if (code == WEIR_RPC_OK)
        code = check_name(call, "run", request->run);
    if (code == WEIR_RPC_OK)
        code = check_name(call, "shard.worker_id", shard->worker_id);
    if (code == WEIR_RPC_OK)
        code = check_source(call, request->source, request->model_name);
    if (code == WEIR_RPC_OK)
        code = check_stops(call, request->stops, request->n_stops);
    if (code != WEIR_RPC_OK)
        return code;
    if (strcmp(request->source->worker_id, shard->worker_id) != 0)
        return weir_directory_core_invalid(call, "shard and source are of different workers");
    if (request->n_expected_source_slots <=
            MOST_SLOTS && /* the store says what is wrong with more */
        !is_expected(request, shard->source_slot_id))
        return weir_directory_core_invalid(call,
                                           "source_slot_id is not required by the weight version");
    size_t n_slots = request->n_expected_source_slots;
    if ((request->n_slot_workers != 0 && request->n_slot_workers != n_slots) ||
        (request->n_slot_contents != 0 && request->n_slot_contents != n_slots))
        return weir_directory_core_invalid(call, "slot_workers or slot_contents are not as many as "
                                                 "expected_source_slots");
    const char *const optional[] = { request->trace_id,      request->layout_signature,
                                     shard->manifest_digest, shard->manifest_endpoint,
                                     shard->transport,       request->content };
    for (size_t i = 0; i < sizeof(optional) / sizeof(optional[0]); i++) {
        if (strlen(optional[i]) > MOST_NAME)
            return weir_directory_core_invalid(
                call, "trace_id, layout_signature, content or a text of the shard is too long");
    }
    return WEIR_RPC_OK;
}

weir_rpc_code weir_acknowledge_check(weir_directory_call *call)
{
    const acknowledge_request *request = (const void *)call->request;
    weir_rpc_code code = check_source(call, request->source, NULL);
    if (code == WEIR_RPC_OK)
        code = check_name(call, "version_id", request->version_id);
    if (code == WEIR_RPC_OK)
        code = check_name(call, "run", request->run);
    if (code == WEIR_RPC_OK)
        code = check_stops(call, request->stops, request->n_stops);
    if (code != WEIR_RPC_OK)
        return code;
    const char *const optional[] = { request->host, request->part, request->read_from,
                                     request->trace_id, request->lease_id };
    for (size_t i = 0; i < sizeof(optional) / sizeof(optional[0]); i++) {
        if (strlen(optional[i]) > MOST_NAME)
            return weir_directory_core_invalid(
                call, "host, part, read_from, trace_id or lease_id is too long");
    }
    if (strlen(request->text) > MOST_TEXT)
        return weir_directory_core_invalid(call, "text has more than 1023 bytes");
    int32_t status = (int32_t)request->status;
    if (status > 0 || status <= -WEIR_DIRECTORY_STATUSES)
        return weir_directory_core_invalid(call, "status is no weir_status");
    return WEIR_RPC_OK;
}

/* ---- what both do ----------------------------------------------------------------------------*/

static weir_status spans_of(stop_message *const *stops, size_t n, weir_arena *arena,
                            weir_store_word *word)
{
    weir_store_span *spans = weir_arena_zeroed(arena, n + 1, sizeof(*spans));
    if (spans == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++)
        spans[i] = (weir_store_span){ stops[i]->name, stops[i]->begun_unix_us,
                                      stops[i]->duration_us, stops[i]->peer, stops[i]->n_bytes };
    word->spans = spans;
    word->n_spans = n;
    return WEIR_OK;
}

static void count_stops(weir_directory_counts *counts, const weir_store_word *word)
{
    for (size_t i = 0; i < word->n_spans; i++) {
        size_t k = 0;
        if (word->spans[i].peer[0] != '\0')
            continue; /* a part of a stop */
        while (k < counts->n_stops && strcmp(counts->stops[k].name, word->spans[i].name) != 0)
            k++;
        if (k == WEIR_DIRECTORY_STOPS ||
            strlen(word->spans[i].name) >= sizeof(counts->stops[k].name))
            continue; /* names that no Weir gives */
        if (k == counts->n_stops)
            memcpy(counts->stops[counts->n_stops++].name, word->spans[i].name,
                   strlen(word->spans[i].name) + 1);
        counts->stops[k].n++;
        counts->stops[k].sum_us += word->spans[i].duration_us;
    }
}

/* The entry that the request holds; without an identity, the one that is there. */
static weir_status make_entry(weir_directory_call *call,
                              const ModelExpress__P2p__PublishMetadataRequest *request,
                              const weir_source_whose *whose, const weir_source_of *of,
                              weir_store_source *out)
{
    if (request->identity != NULL)
        return weir_source_entry_read(request, of, call->arena, out);
    const weir_store_source *stored = NULL;
    weir_status status = weir_source_entry_find(call->core->store, whose, call->arena, &stored);
    return status != WEIR_OK ? status : weir_source_entry_again(stored, of, call->arena, out);
}

static weir_status check_room(weir_directory_call *call, const weir_store_source *source)
{
    weir_status status = weir_store_check_source_room(call->core->store, source);
    if (status != WEIR_OK)
        return status;
    weir_store_totals totals = weir_store_count(call->core->store);
    if (totals.n_bytes + ROOM_BYTES + source->n_identity + source->n_metadata > MOST_BYTES)
        return weir_fail(WEIR_ERR_NO_MEMORY, "the directory is full: %zu bytes", totals.n_bytes);
    return WEIR_OK;
}

/* ---- PublishVersionShard ---------------------------------------------------------------------*/

/* What the request says of its worker, before anything is changed. */
static weir_status check_worker(weir_directory_call *call, const publish_request *request)
{
    weir_store_worker worker;
    if (!weir_store_get_worker(call->core->store, request->shard->worker_id, call->now_ms, &worker))
        return weir_fail(WEIR_ERR_REFUSED, "worker registration is missing or expired");
    if (strcmp(worker.model, request->model_name) != 0)
        return weir_fail(WEIR_ERR_REFUSED, "worker and weight version model_name differ");
    if (request->generation != 0 && request->generation < worker.generation)
        return weir_fail(WEIR_ERR_REFUSED, "worker '%.128s' was registered anew since",
                         worker.worker_id);
    if (worker.is_superseded)
        return weir_fail(WEIR_ERR_REFUSED,
                         "worker %.64s is not the one that was started last as its rank",
                         worker.worker_id);
    return WEIR_OK;
}

static weir_status put_shard(weir_directory_call *call, const publish_request *request,
                             const weir_store_version **out)
{
    const weir_store_version wanted = {
        .uid = request->shard->version_id,
        .model = request->model_name,
        .has_number = true,
        .number = request->version_number,
        .idempotency_key = "",
        .payload = WEIR_STORE_FULL_TENSOR,
        .slots = (const char *const *)request->expected_source_slots,
        .n_slots = request->n_expected_source_slots,
        .run = request->run,
        .trace_id = request->trace_id[0] != '\0' ? request->trace_id : call->trace_id,
        .layout_signature = request->layout_signature,
        .attempt = request->attempt,
        .slot_workers = request->n_slot_workers != 0 ? request->slot_workers : NULL,
        .slot_contents = request->n_slot_contents != 0 ? request->slot_contents : NULL,
    };
    weir_store_shard shard;
    weir_shard_of_message(request->shard, &shard);
    shard.content = request->content;
    return weir_store_publish_shard(call->core->store, &wanted, &shard, call->salt, call->now_ms,
                                    out);
}

static weir_status put_trainer(weir_directory_call *call, const publish_request *request,
                               const weir_store_version *version, weir_store_source *source)
{
    /* What the store gives out ends with its next change. */
    const weir_source_of of = { version->number, weir_arena_strdup(call->arena, version->uid) };
    const weir_source_whose whose = { request->shard->worker_id, request->model_name, request->run,
                                      "trainer" };
    weir_store_word word = { .worker_id = request->shard->worker_id,
                             .run = request->run,
                             .role = "trainer",
                             .host = "",
                             .read_from = "",
                             .text = "",
                             .trace_id = weir_arena_strdup(call->arena, version->trace_id),
                             .number = request->version_number,
                             .version_uid = of.uid,
                             .n_bytes = request->shard->total_bytes };
    weir_status status = of.uid != NULL && word.trace_id != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK)
        status = make_entry(call, request->source, &whose, &of, source);
    if (status == WEIR_OK)
        status = spans_of(request->stops, request->n_stops, call->arena, &word);
    if (status == WEIR_OK)
        status = weir_store_publish_source(call->core->store, source, call->now_ms);
    word.rank = source->rank;
    if (status == WEIR_OK)
        status = weir_store_put_word(call->core->store, request->model_name, &word, call->now_ms);
    if (status == WEIR_OK && call->is_asked)
        count_stops(&call->core->counts, &word);
    return status;
}

weir_status weir_recall_slots(weir_directory_call *call, const weir_store_version *version,
                              uint64_t **out_workers, uint64_t **out_contents)
{
    uint64_t *workers = weir_arena_zeroed(call->arena, version->n_slots, sizeof(*workers));
    uint64_t *contents = weir_arena_zeroed(call->arena, version->n_slots, sizeof(*contents));
    if (workers == NULL || contents == NULL)
        return WEIR_ERR_NO_MEMORY;
    *out_workers = workers;
    *out_contents = contents;
    return weir_store_recall(call->core->store, version->uid, workers, contents);
}

static weir_rpc_code answer_published(weir_directory_call *call, const weir_store_version *version,
                                      const weir_store_source *source)
{
    WEIR_MAKE_MESSAGE(Weir__Directory__PublishVersionShardResponse,
                      weir__directory__publish_version_shard_response__init, response);
    WEIR_MAKE_MESSAGE(ModelExpress__Refit__WeightVersion,
                      model_express__refit__weight_version__init, message);
    weir_message_of_version(version, message);
    response->version = message;
    response->attempt = version->attempt;
    response->mx_source_id = (char *)source->source_id;
    response->trace_id = (char *)version->trace_id;
    /* The shard is in: what cannot be remembered of it is not. */
    if (weir_recall_slots(call, version, &response->slot_workers, &response->slot_contents) ==
        WEIR_OK)
        response->n_slot_workers = response->n_slot_contents = version->n_slots;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

weir_rpc_code weir_publish_shard(weir_directory_call *call)
{
    const publish_request *request = (const void *)call->request;
    weir_rpc_code code = weir_publish_shard_check(call);
    if (code != WEIR_RPC_OK)
        return code;
    const weir_source_of none = { request->version_number, "" };
    const weir_source_whose whose = { request->shard->worker_id, request->model_name, request->run,
                                      "trainer" };
    weir_store_source source;
    const weir_store_version *version = NULL;
    weir_status status = check_worker(call, request);
    if (status == WEIR_OK)
        status = make_entry(call, request->source, &whose, &none, &source);
    if (status == WEIR_OK)
        status = check_room(call, &source);
    if (status == WEIR_OK)
        status = put_shard(call, request, &version);
    char uid[16] = "";
    if (status == WEIR_OK) {
        snprintf(uid, sizeof(uid), "%s", version->uid);
        status = put_trainer(call, request, version, &source);
    }
    if (status == WEIR_OK)
        status = weir_store_get_version(call->core->store, uid, &version);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    return answer_published(call, version, &source);
}

/* ---- AcknowledgeVersion ----------------------------------------------------------------------*/

/* Of the entry as it is once this word is in. */
static weir_status make_replica_entry(weir_directory_call *call, const acknowledge_request *request,
                                      const char *model, weir_store_source *out)
{
    bool holds = request->status == WEIR_OK;
    const weir_source_of of = { request->version_number, request->version_id };
    const weir_source_whose whose = { request->source->worker_id, model, request->run,
                                      "inference_replica" };
    weir_status status = make_entry(call, request->source, &whose, holds ? &of : NULL, out);
    if (status != WEIR_OK)
        return status;
    if (holds) {
        out->host = request->host;
        out->part = request->part;
        return WEIR_OK;
    }
    const weir_store_source *before =
        weir_store_get_source(call->core->store, out->source_id, out->worker_id);
    if (before == NULL || strcmp(before->version_uid, out->version_uid) != 0)
        return WEIR_OK;
    out->host = weir_arena_strdup(call->arena, before->host);
    out->part = weir_arena_strdup(call->arena, before->part);
    return out->host != NULL && out->part != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static void end_lease(weir_directory_call *call, const acknowledge_request *request)
{
    bool is_deleted;
    if (request->lease_id[0] != '\0') /* one that is over already is as good */
        weir_store_delete_lease(call->core->store, request->version_id, request->lease_id,
                                request->source->worker_id, call->now_ms, &is_deleted);
}

static void count_word(weir_directory_core *core, const weir_store_word *word)
{
    core->counts.words[-word->status]++;
    if (word->status == WEIR_OK)
        core->counts.n_installed_bytes += word->n_bytes;
    count_stops(&core->counts, word);
}

static weir_status acknowledge(weir_directory_call *call, const acknowledge_request *request,
                               weir_store_source *source)
{
    const weir_store_version *version = NULL;
    weir_store *store = call->core->store;
    weir_status status = weir_store_get_version(store, request->version_id, &version);
    const ModelExpress__P2p__SourceIdentity *identity = request->source->identity;
    if (status != WEIR_OK && identity == NULL) /* a version may be forgotten before its replica */
        return status;
    const char *model =
        weir_arena_strdup(call->arena, identity != NULL ? identity->model_name : version->model);
    if (model == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK && strcmp(version->model, model) != 0)
        return weir_fail(WEIR_ERR_REFUSED, "worker and weight version model_name differ");
    weir_store_word word = { .worker_id = request->source->worker_id,
                             .run = request->run,
                             .role = "inference_replica",
                             .host = request->host,
                             .read_from = request->read_from,
                             .text = request->text,
                             .trace_id = request->trace_id,
                             .number = request->version_number,
                             .version_uid = request->version_id,
                             .status = (int32_t)request->status,
                             .n_bytes = request->n_bytes };
    status = make_replica_entry(call, request, model, source);
    if (status == WEIR_OK)
        status = spans_of(request->stops, request->n_stops, call->arena, &word);
    if (status == WEIR_OK)
        status = check_room(call, source);
    if (status == WEIR_OK)
        status = weir_store_publish_source(store, source, call->now_ms);
    word.rank = source->rank;
    if (status == WEIR_OK)
        status = weir_store_put_word(store, model, &word, call->now_ms);
    if (status != WEIR_OK)
        return status;
    end_lease(call, request);
    weir_progress_forget(&call->core->progress, word.worker_id);
    if (call->is_asked)
        count_word(call->core, &word);
    return WEIR_OK;
}

weir_rpc_code weir_acknowledge(weir_directory_call *call)
{
    const acknowledge_request *request = (const void *)call->request;
    weir_rpc_code code = weir_acknowledge_check(call);
    if (code != WEIR_RPC_OK)
        return code;
    WEIR_MAKE_MESSAGE(Weir__Directory__AcknowledgeVersionResponse,
                      weir__directory__acknowledge_version_response__init, response);
    weir_store_source source;
    weir_status status = acknowledge(call, request, &source);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    response->mx_source_id = (char *)source.source_id;
    call->response = &response->base;
    return WEIR_RPC_OK;
}
