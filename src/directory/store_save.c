/* SPDX-License-Identifier: Apache-2.0 */
/* store_save.c - the store as a Snapshot message: all that its answers depend on, and nothing of
 * where it lies in memory, so that equal stores give equal bytes. Lists are written from their end,
 * the oldest first. */
#include <string.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/error.h"
#include "directory/store_record.h"
#include "snapshot.pb-c.h"

typedef Weir__Store__Snapshot snapshot_message;

/* n pointers to n messages, all of it zero. */
static void *make_list(weir_arena *arena, size_t n, size_t message_bytes)
{
    char *messages = weir_arena_zeroed(arena, n + 1, message_bytes);
    void **list = weir_arena_alloc(arena, (n + 1) * sizeof(*list));
    if (messages == NULL || list == NULL)
        return NULL;
    for (size_t i = 0; i < n; i++)
        list[i] = messages + i * message_bytes;
    return list;
}

static size_t count_links(const store_link *head)
{
    size_t n = 0;
    for (const store_link *link = head->next; link != head; link = link->next)
        n++;
    return n;
}

/* ---- words -----------------------------------------------------------------------------------*/

static bool fill_word(const weir_store_word *word, weir_arena *arena, Weir__Store__Word *out)
{
    weir__store__word__init(out);
    out->worker_id = (char *)word->worker_id;
    out->role = (char *)word->role;
    out->host = (char *)word->host;
    out->read_from = (char *)word->read_from;
    out->text = (char *)word->text;
    out->trace_id = (char *)word->trace_id;
    out->rank = word->rank;
    out->version_uid = (char *)word->version_uid;
    out->status = word->status;
    out->n_bytes = word->n_bytes;
    out->at_ms = word->at_ms;
    out->spans = make_list(arena, word->n_spans, sizeof(**out->spans));
    if (out->spans == NULL)
        return false;
    for (; out->n_spans < word->n_spans; out->n_spans++) {
        Weir__Store__Span *span = out->spans[out->n_spans];
        weir__store__span__init(span);
        span->name = (char *)word->spans[out->n_spans].name;
        span->begun_us = word->spans[out->n_spans].begun_us;
        span->duration_us = word->spans[out->n_spans].duration_us;
        span->peer = (char *)word->spans[out->n_spans].peer;
        span->n_bytes = word->spans[out->n_spans].n_bytes;
    }
    return true;
}

static bool fill_history(const store_history *history, weir_arena *arena, Weir__Store__History *out)
{
    weir__store__history__init(out);
    out->number = history->number;
    out->words = make_list(arena, history->n_words, sizeof(**out->words));
    if (out->words == NULL)
        return false;
    for (const store_link *link = history->words.next; link != &history->words; link = link->next) {
        if (!fill_word(&WEIR_STORE_OF(store_word, link, link)->view, arena,
                       out->words[out->n_words++]))
            return false;
    }
    return true;
}

static bool fill_run(const store_run *run, weir_arena *arena, Weir__Store__Run *out)
{
    weir__store__run__init(out);
    out->name = (char *)run->name;
    out->worded_at_ms = run->worded_at_ms;
    out->histories = make_list(arena, run->n_histories, sizeof(**out->histories));
    if (out->histories == NULL)
        return false;
    for (const store_link *link = run->histories.next; link != &run->histories; link = link->next) {
        if (!fill_history(WEIR_STORE_OF(store_history, link, link), arena,
                          out->histories[out->n_histories++]))
            return false;
    }
    return true;
}

static bool fill_models(const weir_store *store, weir_arena *arena, snapshot_message *out)
{
    const store_link *head = &store->all_models;
    out->models = make_list(arena, count_links(head), sizeof(**out->models));
    if (out->models == NULL)
        return false;
    for (const store_link *link = head->prev; link != head; link = link->prev) {
        const store_model *model = WEIR_STORE_OF(store_model, link, link);
        Weir__Store__Model *message = out->models[out->n_models++];
        weir__store__model__init(message);
        message->name = (char *)model->name;
        message->revision = model->revision;
        message->runs = make_list(arena, count_links(&model->runs), sizeof(**message->runs));
        if (message->runs == NULL)
            return false;
        for (const store_link *run = model->runs.prev; run != &model->runs; run = run->prev) {
            if (!fill_run(WEIR_STORE_OF(store_run, link, run), arena,
                          message->runs[message->n_runs++]))
                return false;
        }
    }
    return true;
}

/* ---- workers and versions --------------------------------------------------------------------*/

static bool fill_workers(const weir_store *store, weir_arena *arena, snapshot_message *out)
{
    const store_link *head = &store->all_workers;
    out->workers = make_list(arena, store->n_workers, sizeof(**out->workers));
    if (out->workers == NULL)
        return false;
    for (const store_link *link = head->prev; link != head; link = link->prev) {
        const store_worker *worker = WEIR_STORE_OF(store_worker, link, link);
        Weir__Store__Worker *message = out->workers[out->n_workers++];
        weir__store__worker__init(message);
        message->worker_id = (char *)worker->worker_id;
        message->model = (char *)worker->model->name;
        message->role = (uint32_t)worker->role;
        message->expires_ms = worker->expires_ms;
        message->generation = worker->generation;
        message->is_superseded = worker->is_superseded;
        message->has_old_shards = worker->has_old_shards;
    }
    return true;
}

static bool fill_shards(const store_version *version, weir_arena *arena, Weir__Store__Version *out)
{
    const store_link *head = &version->shards;
    out->shards = make_list(arena, version->n_shards, sizeof(**out->shards));
    if (out->shards == NULL)
        return false;
    for (const store_link *link = head->next; link != head; link = link->next) {
        const store_shard *shard = WEIR_STORE_OF(store_shard, of_version, link);
        Weir__Store__Shard *message = out->shards[out->n_shards++];
        weir__store__shard__init(message);
        message->slot = (uint32_t)shard->slot;
        message->worker_id = (char *)shard->view.worker_id;
        message->n_tensors = shard->view.n_tensors;
        message->n_bytes = shard->view.n_bytes;
        message->manifest_digest = (char *)shard->view.manifest_digest;
        message->manifest_endpoint = (char *)shard->view.manifest_endpoint;
        message->transport = (char *)shard->view.transport;
        message->generation = shard->generation;
        message->content = (char *)shard->view.content;
        message->is_withdrawn = shard->is_withdrawn;
    }
    return true;
}

static bool fill_leases(const store_version *version, weir_arena *arena, Weir__Store__Version *out)
{
    const store_link *head = &version->leases;
    out->leases = make_list(arena, version->n_leases, sizeof(**out->leases));
    if (out->leases == NULL)
        return false;
    for (const store_link *link = head->prev; link != head; link = link->prev) {
        const store_lease *lease = WEIR_STORE_OF(store_lease, link, link);
        Weir__Store__Lease *message = out->leases[out->n_leases++];
        weir__store__lease__init(message);
        message->worker_id = (char *)lease->worker_id;
        message->expires_ms = lease->view.expires_ms;
        message->begun_ms = lease->view.begun_ms;
        message->peer = (char *)(lease->peer != NULL ? lease->peer->worker_id : "");
    }
    return true;
}

static bool fill_pasts(const store_version *version, weir_arena *arena, Weir__Store__Version *out)
{
    out->pasts = make_list(arena, version->view.n_slots, sizeof(**out->pasts));
    if (out->pasts == NULL)
        return false;
    for (; out->n_pasts < version->view.n_slots; out->n_pasts++) {
        weir__store__past__init(out->pasts[out->n_pasts]);
        out->pasts[out->n_pasts]->generation = version->pasts[out->n_pasts].generation;
        out->pasts[out->n_pasts]->content = version->pasts[out->n_pasts].content;
        out->pasts[out->n_pasts]->worker = version->pasts[out->n_pasts].worker;
    }
    return true;
}

static bool fill_version(const store_version *version, weir_arena *arena, Weir__Store__Version *out)
{
    const weir_store_version *view = &version->view;
    weir__store__version__init(out);
    out->uid = (char *)view->uid;
    out->model = (char *)view->model;
    out->has_number = view->has_number;
    out->number = view->number;
    out->idempotency_key = (char *)view->idempotency_key;
    out->payload = (uint32_t)view->payload;
    out->base_uid = (char *)weir_store_text(view->base_uid);
    out->slots = (char **)view->slots;
    out->n_slots = view->n_slots;
    out->run = (char *)view->run;
    out->attempt = view->attempt;
    out->trace_id = (char *)view->trace_id;
    out->layout_signature = (char *)view->layout_signature;
    out->state = (uint32_t)view->state;
    out->created_at_ms = view->created_at_ms;
    out->ready_at_ms = view->ready_at_ms;
    out->reason = (char *)view->reason;
    out->touched_ms = version->touched_ms;
    out->begun_generation = version->begun_generation;
    out->closed_generation = version->closed_generation;
    out->is_restored = version->is_restored;
    out->is_split = version->is_split;
    return fill_shards(version, arena, out) && fill_leases(version, arena, out) &&
           fill_pasts(version, arena, out);
}

static bool fill_versions(const weir_store *store, weir_arena *arena, snapshot_message *out)
{
    const store_link *head = &store->all_versions;
    out->versions = make_list(arena, store->n_versions, sizeof(**out->versions));
    if (out->versions == NULL)
        return false;
    for (const store_link *link = head->prev; link != head; link = link->prev) {
        if (!fill_version(WEIR_STORE_OF(store_version, link, link), arena,
                          out->versions[out->n_versions++]))
            return false;
    }
    return true;
}

/* ---- sources ---------------------------------------------------------------------------------*/

static void fill_source(const store_source *source, Weir__Store__Source *out)
{
    const weir_store_source *view = &source->view;
    weir__store__source__init(out);
    out->source_id = (char *)view->source_id;
    out->worker_id = (char *)view->worker_id;
    out->model = (char *)view->model;
    out->accelerator = (char *)view->accelerator;
    out->rank = view->rank;
    out->status = (uint32_t)view->status;
    out->updated_at_ms = (uint64_t)view->updated_at_ms;
    out->has_step = view->has_step;
    out->step = view->step;
    out->has_layout_signature = view->layout_signature != NULL;
    out->layout_signature = (char *)weir_store_text(view->layout_signature);
    out->identity = (ProtobufCBinaryData){ view->n_identity, (uint8_t *)view->identity };
    out->metadata = (ProtobufCBinaryData){ view->n_metadata, (uint8_t *)view->metadata };
    out->run = (char *)view->run;
    out->role = (char *)view->role;
    out->version_uid = (char *)view->version_uid;
    out->endpoint = (char *)view->endpoint;
    out->host = (char *)view->host;
    out->part = (char *)view->part;
    out->generation = view->generation;
    out->stale_since_ms = source->stale_since_ms;
    out->is_superseded = source->is_superseded;
    out->has_left = view->has_left;
}

static bool fill_sources(const weir_store *store, weir_arena *arena, snapshot_message *out)
{
    const store_link *head = &store->all_sources;
    out->sources = make_list(arena, store->n_sources, sizeof(**out->sources));
    if (out->sources == NULL)
        return false;
    for (const store_link *link = head->prev; link != head; link = link->prev)
        fill_source(WEIR_STORE_OF(store_source, link, link), out->sources[out->n_sources++]);
    return true;
}

weir_status weir_store_save(const weir_store *store, unsigned char **out, size_t *out_n)
{
    weir_arena arena;
    snapshot_message message;
    weir__store__snapshot__init(&message);
    message.format = WEIR_STORE_FORMAT;
    message.n_uids = store->n_uids;
    message.n_generations = store->n_generations;
    message.revision = store->revision;
    message.gone_revision = store->gone_revision;
    weir_arena_init(&arena, 0);
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (fill_models(store, &arena, &message) && fill_workers(store, &arena, &message) &&
        fill_versions(store, &arena, &message) && fill_sources(store, &arena, &message)) {
        size_t n = weir__store__snapshot__get_packed_size(&message);
        unsigned char *bytes = weir_alloc(n);
        if (bytes != NULL) {
            *out_n = weir__store__snapshot__pack(&message, bytes);
            *out = bytes;
            status = WEIR_OK;
        }
    }
    weir_arena_close(&arena);
    return status;
}
