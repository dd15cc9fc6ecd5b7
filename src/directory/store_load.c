/* SPDX-License-Identifier: Apache-2.0 */
/* store_load.c - a store from a Snapshot message, record by record through the same calls that made
 * the first one. What no store can have written is refused: names that are missing or twice there,
 * states that contradict what is in them. */
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "directory/store_record.h"
#include "rpc/rpc_message.h"
#include "snapshot.pb-c.h"

#define ARENA_BYTES_PER_BYTE 64u /* an empty record is two bytes there and a struct here */

static weir_status refuse(const char *what, const char *name)
{
    return weir_fail(WEIR_ERR_FORMAT, "a directory's snapshot: %s '%.64s'", what, name);
}

/* A refused name or a cap in the middle of a snapshot is a fault of the snapshot. */
static weir_status restate(weir_status status)
{
    if (status == WEIR_OK || status == WEIR_ERR_INTERNAL)
        return status;
    weir_error_prefix("a directory's snapshot");
    return WEIR_ERR_FORMAT;
}

/* ---- words -----------------------------------------------------------------------------------*/

static weir_status load_word(weir_store *store, store_history *history,
                             const Weir__Store__Word *message, weir_arena *arena)
{
    weir_store_word word = { .worker_id = message->worker_id,
                             .run = history->run->name,
                             .role = message->role,
                             .host = message->host,
                             .read_from = message->read_from,
                             .text = message->text,
                             .trace_id = message->trace_id,
                             .rank = message->rank,
                             .version_uid = message->version_uid,
                             .status = message->status,
                             .n_bytes = message->n_bytes,
                             .at_ms = message->at_ms,
                             .n_spans = message->n_spans };
    if (message->n_spans > WEIR_STORE_MAX_SPANS || strlen(message->text) > WEIR_STORE_MAX_TEXT)
        return refuse("too much is said by", message->worker_id);
    weir_store_span *spans =
        weir_arena_alloc(arena, (message->n_spans + 1) * sizeof(weir_store_span));
    if (spans == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < message->n_spans; i++)
        spans[i] = (weir_store_span){ .name = message->spans[i]->name,
                                      .begun_us = message->spans[i]->begun_us,
                                      .duration_us = message->spans[i]->duration_us,
                                      .peer = message->spans[i]->peer,
                                      .n_bytes = message->spans[i]->n_bytes };
    word.spans = spans;
    weir_status status = weir_store_check_word(&word);
    if (status != WEIR_OK)
        return restate(status);
    if (weir_store_find_word(store, history, &word) != NULL ||
        store->n_words == WEIR_STORE_MAX_WORDS)
        return refuse("one word too many of", message->worker_id);
    return weir_store_add_word(store, history, &word) != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static weir_status load_history(weir_store *store, store_run *run,
                                const Weir__Store__History *message, weir_arena *arena)
{
    store_history *history = NULL;
    if (run->n_histories != 0)
        history = WEIR_STORE_OF(store_history, link, run->histories.prev);
    if (message->n_words == 0 || run->n_histories == WEIR_STORE_MAX_HISTORIES ||
        (history != NULL && history->number <= message->number))
        return refuse("a history that cannot be of run", run->name);
    history = weir_store_add_history(store, run, message->number);
    weir_status status = history != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; status == WEIR_OK && i < message->n_words; i++)
        status = load_word(store, history, message->words[i], arena);
    return status;
}

static weir_status load_run(weir_store *store, store_model *model, const Weir__Store__Run *message,
                            weir_arena *arena)
{
    weir_status status = restate(weir_store_check_optional("run", message->name));
    if (status != WEIR_OK)
        return status;
    if (weir_store_find_run(store, model, message->name) != NULL)
        return refuse("twice the run", message->name);
    store_run *run = weir_store_have_run(store, model, message->name);
    if (run == NULL)
        return WEIR_ERR_NO_MEMORY;
    run->worded_at_ms = message->worded_at_ms;
    for (size_t i = 0; status == WEIR_OK && i < message->n_histories; i++)
        status = load_history(store, run, message->histories[i], arena);
    return status;
}

static weir_status load_model(weir_store *store, const Weir__Store__Model *message,
                              weir_arena *arena)
{
    weir_status status = restate(weir_store_check_name("model_name", message->name));
    if (status != WEIR_OK)
        return status;
    if (weir_store_find_model(store, message->name) != NULL || message->revision == 0 ||
        message->revision > store->revision)
        return refuse("a model that cannot be", message->name);
    store_model *model = weir_store_have_model(store, message->name);
    if (model == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; status == WEIR_OK && i < message->n_runs; i++)
        status = load_run(store, model, message->runs[i], arena);
    return status;
}

/* ---- workers ---------------------------------------------------------------------------------*/

static weir_status load_worker(weir_store *store, const Weir__Store__Worker *message)
{
    weir_status status = restate(weir_store_check_name("worker_id", message->worker_id));
    if (status != WEIR_OK)
        return status;
    store_model *model = weir_store_find_model(store, message->model);
    if (model == NULL || weir_store_worker_record(store, message->worker_id) != NULL ||
        store->n_workers == WEIR_STORE_MAX_WORKERS || message->generation == 0 ||
        message->generation > store->n_generations ||
        (message->role != WEIR_STORE_TRAINER && message->role != WEIR_STORE_GENERATOR))
        return refuse("a worker that cannot be", message->worker_id);
    store_worker *worker =
        weir_store_add_worker(store, model, message->worker_id, (int)message->role);
    if (worker == NULL)
        return WEIR_ERR_NO_MEMORY;
    worker->expires_ms = message->expires_ms;
    worker->generation = message->generation;
    worker->is_superseded = message->is_superseded;
    worker->has_old_shards = message->has_old_shards;
    return WEIR_OK;
}

/* ---- versions --------------------------------------------------------------------------------*/

static weir_status load_shard(weir_store *store, store_version *version,
                              const Weir__Store__Shard *message)
{
    store_worker *worker = weir_store_worker_record(store, message->worker_id);
    if (worker == NULL || message->slot >= version->view.n_slots ||
        message->generation > store->n_generations ||
        weir_store_find_shard(store, version, message->slot, message->worker_id) != NULL)
        return refuse("a shard that cannot be, of", message->worker_id);
    const weir_store_shard shard = { .version_uid = version->uid,
                                     .slot = version->view.slots[message->slot],
                                     .worker_id = message->worker_id,
                                     .n_tensors = message->n_tensors,
                                     .n_bytes = message->n_bytes,
                                     .manifest_digest = message->manifest_digest,
                                     .manifest_endpoint = message->manifest_endpoint,
                                     .transport = message->transport,
                                     .content = message->content };
    weir_status status = weir_store_check_shard(&shard);
    if (status != WEIR_OK)
        return restate(status);
    status =
        weir_store_add_shard(store, version, worker, message->slot, &shard, message->generation);
    if (status == WEIR_OK)
        weir_store_find_shard(store, version, message->slot, message->worker_id)->is_withdrawn =
            message->is_withdrawn;
    return status;
}

static weir_status load_lease(weir_store *store, store_version *version,
                              const Weir__Store__Lease *message)
{
    weir_status status = restate(weir_store_check_name("worker_id", message->worker_id));
    if (status != WEIR_OK)
        return status;
    store_worker *peer = NULL;
    if (message->peer[0] != '\0')
        peer = weir_store_worker_record(store, message->peer);
    if ((message->peer[0] != '\0' && peer == NULL) || version->n_leases == WEIR_STORE_MAX_LEASES ||
        weir_store_find_lease(store, version, message->worker_id) != NULL)
        return refuse("a lease that cannot be, of", message->worker_id);
    store_lease *lease = NULL;
    status =
        weir_store_put_lease(store, version, message->worker_id, peer, message->expires_ms, &lease);
    if (status == WEIR_OK)
        lease->view.begun_ms = message->begun_ms;
    return status;
}

static weir_status check_version(const weir_store *store, const Weir__Store__Version *message,
                                 const weir_store_version *view)
{
    const store_model *model = weir_store_find_model(store, message->model);
    bool is_delta = view->base_uid != NULL;
    if (model == NULL || weir_store_find_run(store, model, message->run) == NULL ||
        strlen(message->uid) != WEIR_STORE_UID_BYTES - 1 ||
        weir_store_version_record(store, message->uid) != NULL ||
        weir_store_version_of_key(store, message->idempotency_key) != NULL ||
        store->n_versions == WEIR_STORE_MAX_VERSIONS || message->state < WEIR_STORE_STAGING ||
        message->state > WEIR_STORE_ABORTED || strlen(message->reason) > WEIR_STORE_MAX_TEXT ||
        message->payload != (is_delta ? WEIR_STORE_XOR_DELTA : WEIR_STORE_FULL_TENSOR))
        return refuse("a version that cannot be", message->uid);
    weir_status status = weir_store_check_version(view);
    if (status == WEIR_OK)
        status = weir_store_check_optional("base_version_id", view->base_uid);
    return restate(status == WEIR_OK ? weir_store_check_slots(view) : status);
}

/* Beside what its shards tell. */
static weir_status load_pasts(const weir_store *store, store_version *version,
                              const Weir__Store__Version *message)
{
    version->begun_generation = message->begun_generation;
    version->closed_generation = message->closed_generation;
    version->is_restored = message->is_restored;
    version->is_split = message->is_split;
    bool is_past = message->begun_generation <= store->n_generations &&
                   message->closed_generation <= message->begun_generation &&
                   (message->n_pasts == 0 || message->n_pasts == version->view.n_slots);
    for (size_t i = 0; i < message->n_pasts && is_past; i++) {
        is_past = message->pasts[i]->generation <= store->n_generations &&
                  message->pasts[i]->generation >= version->pasts[i].generation;
        version->pasts[i] = (store_past){ message->pasts[i]->generation, message->pasts[i]->content,
                                          message->pasts[i]->worker };
    }
    return is_past ? WEIR_OK : refuse("a past that cannot be, of version", message->uid);
}

static weir_status fill_version(weir_store *store, store_version *version,
                                const Weir__Store__Version *message)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; status == WEIR_OK && i < message->n_shards; i++)
        status = load_shard(store, version, message->shards[i]);
    for (size_t i = 0; status == WEIR_OK && i < message->n_leases; i++)
        status = load_lease(store, version, message->leases[i]);
    if (status == WEIR_OK)
        status = load_pasts(store, version, message);
    bool is_covered = version->view.n_covered == version->view.n_slots;
    if (status == WEIR_OK && is_covered && message->state == WEIR_STORE_STAGING)
        return refuse("STAGING, but all is there, is version", message->uid);
    return status;
}

static weir_status load_version(weir_store *store, const Weir__Store__Version *message)
{
    const weir_store_version view = {
        .model = message->model,
        .has_number = message->has_number,
        .number = message->number,
        .idempotency_key = message->idempotency_key,
        .payload = (int)message->payload,
        .base_uid = message->base_uid[0] != '\0' ? message->base_uid : NULL,
        .slots = (const char *const *)message->slots,
        .n_slots = message->n_slots,
        .run = message->run,
        .attempt = message->attempt,
        .trace_id = message->trace_id,
        .layout_signature = message->layout_signature,
    };
    weir_status status = check_version(store, message, &view);
    if (status != WEIR_OK)
        return status;
    store_version *version = NULL;
    status = weir_store_add_version(store, &view, message->uid, message->created_at_ms, &version);
    if (status == WEIR_OK)
        status = weir_store_set_reason(store, version, message->reason);
    if (status != WEIR_OK)
        return status;
    version->view.state = (weir_store_state)message->state;
    version->view.ready_at_ms = message->ready_at_ms;
    version->touched_ms = message->touched_ms;
    return fill_version(store, version, message);
}

/* ---- sources ---------------------------------------------------------------------------------*/

static weir_status load_source(weir_store *store, const Weir__Store__Source *message)
{
    const weir_store_source view = {
        .source_id = message->source_id,
        .worker_id = message->worker_id,
        .model = message->model,
        .accelerator = message->accelerator,
        .rank = message->rank,
        .status = (weir_store_source_status)message->status,
        .updated_at_ms = (int64_t)message->updated_at_ms,
        .has_step = message->has_step,
        .step = message->step,
        .layout_signature = message->has_layout_signature ? message->layout_signature : NULL,
        .identity = message->identity.data,
        .n_identity = message->identity.len,
        .metadata = message->metadata.data,
        .n_metadata = message->metadata.len,
        .run = message->run,
        .role = message->role,
        .version_uid = message->version_uid,
        .endpoint = message->endpoint,
        .host = message->host,
        .part = message->part,
        .generation = message->generation,
        .has_left = message->has_left,
    };
    weir_status status = restate(weir_store_check_source(&view));
    if (status != WEIR_OK)
        return status;
    store_model *model = weir_store_find_model(store, message->model);
    if (model == NULL || store->n_sources == WEIR_STORE_MAX_SOURCES ||
        message->status > WEIR_STORE_SOURCE_STALE || message->generation > store->n_generations ||
        weir_store_get_source(store, message->source_id, message->worker_id) != NULL)
        return refuse("a source that cannot be, of", message->worker_id);
    store_source *source = weir_store_add_source(store, model, &view);
    if (source == NULL)
        return WEIR_ERR_NO_MEMORY;
    source->stale_since_ms = message->stale_since_ms;
    source->is_superseded = message->is_superseded;
    return WEIR_OK;
}

/* ---- all of it -------------------------------------------------------------------------------*/

/* Making records counts as changes, which the old store has counted already. */
static weir_status set_revisions(weir_store *store, const Weir__Store__Snapshot *message)
{
    for (size_t i = 0; i < message->n_models; i++) {
        store_model *model = weir_store_find_model(store, message->models[i]->name);
        if (model == NULL)
            return refuse("nothing is known of model", message->models[i]->name);
        if (model->n_users == 0)
            return refuse("nothing belongs to model", message->models[i]->name);
        for (const store_link *link = model->runs.next; link != &model->runs; link = link->next) {
            const store_run *run = WEIR_STORE_OF(store_run, link, link);
            if (run->n_versions == 0 && run->n_histories == 0)
                return refuse("nothing belongs to run", run->name);
        }
        model->revision = message->models[i]->revision;
    }
    store->revision = message->revision;
    store->gone_revision = message->gone_revision;
    return WEIR_OK;
}

static weir_status load(weir_store *store, const Weir__Store__Snapshot *message, weir_arena *arena)
{
    if (message->format > WEIR_STORE_FORMAT)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "a directory's snapshot has format %u, this Weir knows %u",
                         message->format, WEIR_STORE_FORMAT);
    if (message->format == 0 || message->revision == 0 || message->gone_revision == 0 ||
        message->gone_revision > message->revision)
        return refuse("no format, or revisions that cannot be", "");
    store->n_uids = message->n_uids;
    store->n_generations = message->n_generations;
    store->revision = message->revision;
    weir_status status = WEIR_OK;
    for (size_t i = 0; status == WEIR_OK && i < message->n_models; i++)
        status = load_model(store, message->models[i], arena);
    for (size_t i = 0; status == WEIR_OK && i < message->n_workers; i++)
        status = load_worker(store, message->workers[i]);
    for (size_t i = 0; status == WEIR_OK && i < message->n_versions; i++)
        status = load_version(store, message->versions[i]);
    for (size_t i = 0; status == WEIR_OK && i < message->n_sources; i++)
        status = load_source(store, message->sources[i]);
    return status == WEIR_OK ? set_revisions(store, message) : status;
}

weir_status weir_store_load(const weir_store_options *options, const unsigned char *bytes, size_t n,
                            weir_store **out)
{
    weir_store *store = NULL;
    weir_status status = weir_store_open(options, &store);
    if (status != WEIR_OK)
        return status;
    size_t cap_bytes = 0;
    if (__builtin_mul_overflow(n, (size_t)ARENA_BYTES_PER_BYTE, &cap_bytes))
        cap_bytes = SIZE_MAX - ((size_t)1 << 20);
    weir_arena arena;
    ProtobufCMessage *message = NULL;
    weir_arena_init(&arena, cap_bytes + ((size_t)1 << 20));
    status =
        weir_rpc_message_unpack(&weir__store__snapshot__descriptor, bytes, n, &arena, &message);
    if (status == WEIR_OK)
        status = load(store, (const Weir__Store__Snapshot *)message, &arena);
    weir_arena_close(&arena);
    if (status != WEIR_OK) {
        weir_store_close(store);
        return status;
    }
    *out = store;
    return WEIR_OK;
}
