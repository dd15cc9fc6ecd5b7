/* SPDX-License-Identifier: Apache-2.0 */
/* store_source.c - sources: what workers say that they hold, until they fall silent or a newer
 * worker takes their rank. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "directory/store_record.h"

/* ---- finding ---------------------------------------------------------------------------------*/

static uint64_t hash_id(const weir_store *store, const char *source_id)
{
    return weir_store_hash_text(store->seed, source_id);
}

store_source *weir_store_find_source(const weir_store *store, const char *source_id,
                                     const char *worker_id)
{
    store_node *node =
        weir_store_index_first(&store->sources_by_worker, weir_store_worker_hash(store, worker_id));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_source *source = WEIR_STORE_OF(store_source, by_worker, node);
        if (strcmp(source->view.worker_id, worker_id) == 0 &&
            strcmp(source->view.source_id, source_id) == 0)
            return source;
    }
    return NULL;
}

const weir_store_source *weir_store_get_source(const weir_store *store, const char *source_id,
                                               const char *worker_id)
{
    const store_source *source = weir_store_find_source(store, source_id, worker_id);
    return source != NULL ? &source->view : NULL;
}

/* ---- ranks -----------------------------------------------------------------------------------*/

/* Ranks of different replicas have the same numbers: of one started anew the id is the same up to
 * the eight random digits behind its last '-'. One that was named ("engine-0") is itself. */
static size_t stem_bytes(const weir_store_source *source)
{
    if (strcmp(source->role, "inference_replica") != 0)
        return 0;
    const char *last = strrchr(source->worker_id, '-');
    bool is_random =
        last != NULL && strlen(last + 1) == 8 && strspn(last + 1, "0123456789abcdef") == 8;
    return is_random ? (size_t)(last - source->worker_id) : strlen(source->worker_id);
}

static uint64_t rank_hash(const weir_store *store, const weir_store_source *source)
{
    uint64_t hash = weir_store_hash_text(store->seed, source->model);
    hash = weir_store_hash_text(hash, source->run);
    hash = weir_store_hash_text(hash, source->role);
    hash = weir_store_hash_number(hash, source->rank);
    return weir_store_hash_bytes(hash, source->worker_id, stem_bytes(source));
}

/* Several entries of one worker do not compete. */
static bool is_same_rank(const weir_store_source *a, const weir_store_source *b)
{
    size_t n_stem = stem_bytes(a);
    return a->rank == b->rank && strcmp(a->worker_id, b->worker_id) != 0 &&
           strcmp(a->role, b->role) == 0 && strcmp(a->run, b->run) == 0 &&
           strcmp(a->model, b->model) == 0 && n_stem == stem_bytes(b) &&
           memcmp(a->worker_id, b->worker_id, n_stem) == 0;
}

static void supersede(const weir_store *store, store_source *source, uint64_t now_ms)
{
    if (source->is_superseded)
        return;
    source->is_superseded = true;
    if (source->view.status != WEIR_STORE_SOURCE_STALE)
        source->stale_since_ms = now_ms;
    source->view.status = WEIR_STORE_SOURCE_STALE;
    store_worker *worker = source->worker;
    if (worker == NULL || worker->generation != source->view.generation)
        return;
    if (!worker->is_superseded)
        weir_store_tell_worker(store, WEIR_STORE_WORKER_SUPERSEDED, worker);
    worker->is_superseded = true;
    for (store_link *link = worker->shards.next; link != &worker->shards; link = link->next)
        WEIR_STORE_OF(store_shard, of_worker, link)->version->coverage.until_ms = 0;
}

/* Of those that claim one rank the one of the greatest generation stays. */
static void settle_rank(weir_store *store, store_source *source, uint64_t now_ms)
{
    if (source->view.role[0] == '\0')
        return;
    uint64_t hash = rank_hash(store, &source->view);
    store_node *node = weir_store_index_first(&store->sources_by_rank, hash);
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_source *other = WEIR_STORE_OF(store_source, by_rank, node);
        if (!is_same_rank(&source->view, &other->view))
            continue;
        if (other->view.generation < source->view.generation)
            supersede(store, other, now_ms);
        else if (other->view.generation > source->view.generation)
            supersede(store, source, now_ms);
    }
}

/* ---- adding and dropping ---------------------------------------------------------------------*/

static size_t text_bytes(const char *text)
{
    return text != NULL ? strlen(text) + 1 : 0;
}

size_t weir_store_source_bytes(const weir_store_source *source)
{
    return sizeof(store_source) + source->n_identity + source->n_metadata +
           text_bytes(source->source_id) + text_bytes(source->worker_id) +
           text_bytes(source->accelerator) + text_bytes(source->layout_signature) +
           text_bytes(source->run) + text_bytes(source->role) + text_bytes(source->version_uid) +
           text_bytes(source->endpoint) + text_bytes(source->host) + text_bytes(source->part);
}

static const void *put_bytes(char **at, const void *data, size_t n_bytes)
{
    void *copy = *at;
    if (n_bytes != 0)
        memcpy(copy, data, n_bytes);
    *at += n_bytes;
    return copy;
}

static store_source *copy_source(weir_store *store, const weir_store_source *source)
{
    size_t n_bytes = weir_store_source_bytes(source);
    store_source *copy = weir_store_alloc(store, n_bytes);
    if (copy == NULL)
        return NULL;
    char *at = (char *)(copy + 1);
    weir_store_source *view = &copy->view;
    copy->block_bytes = n_bytes;
    *view = *source;
    view->identity = put_bytes(&at, source->identity, source->n_identity);
    view->metadata = put_bytes(&at, source->metadata, source->n_metadata);
    view->source_id = weir_store_put_text(&at, source->source_id);
    view->worker_id = weir_store_put_text(&at, source->worker_id);
    view->accelerator = weir_store_put_text(&at, source->accelerator);
    if (source->layout_signature != NULL)
        view->layout_signature = weir_store_put_text(&at, source->layout_signature);
    view->run = weir_store_put_text(&at, source->run);
    view->role = weir_store_put_text(&at, source->role);
    view->version_uid = weir_store_put_text(&at, source->version_uid);
    view->endpoint = weir_store_put_text(&at, source->endpoint);
    view->host = weir_store_put_text(&at, source->host);
    view->part = weir_store_put_text(&at, source->part);
    return copy;
}

store_source *weir_store_add_source(weir_store *store, store_model *model,
                                    const weir_store_source *source)
{
    store_source *added = copy_source(store, source);
    if (added == NULL)
        return NULL;
    added->record_of = model;
    added->worker = weir_store_worker_record(store, source->worker_id);
    added->view.model = model->name;
    model->n_users++;
    model->n_source_bytes += weir_rpc_heap_block_bytes(added->block_bytes);
    store->n_sources++;
    weir_store_list_add_first(&store->all_sources, &added->link);
    weir_store_list_add_first(&model->sources, &added->of_model);
    const weir_store_source *view = &added->view;
    added->part_hash = weir_store_hash_text(store->seed, view->part);
    added->host_hash = weir_store_hash_text(store->seed, view->host);
    added->can_be_read = strcmp(view->role, "inference_replica") == 0 && view->part[0] != '\0' &&
                         view->endpoint[0] != '\0';
    weir_store_index_add(&store->sources_by_id, &added->by_id, hash_id(store, view->source_id));
    weir_store_index_add(&store->sources_by_worker, &added->by_worker,
                         weir_store_worker_hash(store, view->worker_id));
    if (view->role[0] != '\0')
        weir_store_index_add(&store->sources_by_rank, &added->by_rank, rank_hash(store, view));
    if (view->version_uid[0] != '\0')
        weir_store_index_add(&store->sources_by_version, &added->by_version,
                             hash_id(store, view->version_uid));
    return added;
}

static void drop_source(weir_store *store, store_source *source)
{
    store_model *model = source->record_of;
    weir_store_note_change(store, model);
    weir_store_index_remove(&store->sources_by_id, &source->by_id);
    weir_store_index_remove(&store->sources_by_worker, &source->by_worker);
    if (source->view.role[0] != '\0')
        weir_store_index_remove(&store->sources_by_rank, &source->by_rank);
    if (source->view.version_uid[0] != '\0')
        weir_store_index_remove(&store->sources_by_version, &source->by_version);
    weir_store_list_remove(&source->link);
    weir_store_list_remove(&source->of_model);
    model->n_source_bytes -= weir_rpc_heap_block_bytes(source->block_bytes);
    weir_store_free(store, source, source->block_bytes);
    store->n_sources--;
    model->n_users--;
    weir_store_let_model(store, model);
}

/* ---- publishing ------------------------------------------------------------------------------*/

weir_status weir_store_check_source(const weir_store_source *source)
{
    const char *const optional[][2] = {
        { "source_id", source->source_id }, { "run", source->run },
        { "role", source->role },           { "version_uid", source->version_uid },
        { "endpoint", source->endpoint },   { "host", source->host },
        { "part", source->part },
    };
    weir_status status = weir_store_check_name("identity.model_name", source->model);
    if (status == WEIR_OK)
        status = weir_store_check_name("worker_id", source->worker_id);
    for (size_t i = 0; status == WEIR_OK && i < sizeof(optional) / sizeof(optional[0]); i++)
        status = weir_store_check_optional(optional[i][0], optional[i][1]);
    return status;
}

static bool is_same_text(const char *a, const char *b)
{
    return (a == NULL) == (b == NULL) && (a == NULL || strcmp(a, b) == 0);
}

static bool is_same_source(const weir_store_source *a, const weir_store_source *b)
{
    return a->rank == b->rank && a->status == b->status && a->has_step == b->has_step &&
           (!a->has_step || a->step == b->step) && a->generation == b->generation &&
           a->n_identity == b->n_identity && a->n_metadata == b->n_metadata &&
           strcmp(a->model, b->model) == 0 && strcmp(a->accelerator, b->accelerator) == 0 &&
           is_same_text(a->layout_signature, b->layout_signature) && strcmp(a->run, b->run) == 0 &&
           strcmp(a->role, b->role) == 0 && strcmp(a->version_uid, b->version_uid) == 0 &&
           strcmp(a->endpoint, b->endpoint) == 0 && strcmp(a->host, b->host) == 0 &&
           strcmp(a->part, b->part) == 0 &&
           (a->n_identity == 0 || memcmp(a->identity, b->identity, a->n_identity) == 0) &&
           (a->n_metadata == 0 || memcmp(a->metadata, b->metadata, a->n_metadata) == 0);
}

/* It spoke just now: what is newest stands first. One that is superseded may say what it likes. */
static void set_status(weir_store *store, store_source *source, weir_store_source_status status,
                       uint64_t now_ms)
{
    source->view.updated_at_ms = (int64_t)now_ms;
    source->view.has_left = false;
    if (!source->is_superseded) {
        source->view.status = status;
        source->stale_since_ms = now_ms;
    }
    weir_store_list_remove(&source->link);
    weir_store_list_remove(&source->of_model);
    weir_store_list_add_first(&store->all_sources, &source->link);
    weir_store_list_add_first(&source->record_of->sources, &source->of_model);
}

/* Whether the block of what a worker said before is as large as what it says now: going first, it
 * makes room, and a word that is as long as the last takes no memory. */
static bool makes_room(const store_source *known, const weir_store_source *source)
{
    return known != NULL && weir_rpc_heap_block_bytes(known->block_bytes) ==
                                weir_rpc_heap_block_bytes(weir_store_source_bytes(source));
}

static weir_status replace_source(weir_store *store, store_source *known,
                                  const weir_store_source *source, bool is_superseded,
                                  uint64_t now_ms)
{
    weir_status status = weir_store_check_source_room(store, source);
    if (status != WEIR_OK)
        return status;
    store_model *model = weir_store_have_model(store, source->model);
    if (model == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (makes_room(known, source)) {
        model->n_users++; /* it may be its last */
        drop_source(store, known);
        model->n_users--;
        known = NULL;
    }
    store_source *added = weir_store_add_source(store, model, source);
    if (added == NULL) {
        weir_store_let_model(store, model);
        return WEIR_ERR_NO_MEMORY;
    }
    added->view.updated_at_ms = (int64_t)now_ms;
    added->stale_since_ms = now_ms;
    if (known != NULL)
        drop_source(store, known);
    settle_rank(store, added, now_ms);
    if (is_superseded && added->view.role[0] != '\0')
        supersede(store, added, now_ms);
    weir_store_note_change(store, model);
    return WEIR_OK;
}

weir_status weir_store_publish_source(weir_store *store, const weir_store_source *source,
                                      uint64_t now_ms)
{
    weir_status status = weir_store_check_source(source);
    if (status != WEIR_OK)
        return status;
    weir_store_source wanted = *source;
    wanted.source_id = weir_store_text(source->source_id);
    wanted.accelerator = weir_store_text(source->accelerator);
    wanted.run = weir_store_text(source->run);
    wanted.role = weir_store_text(source->role);
    wanted.version_uid = weir_store_text(source->version_uid);
    wanted.endpoint = weir_store_text(source->endpoint);
    wanted.host = weir_store_text(source->host);
    wanted.part = weir_store_text(source->part);
    wanted.has_left = false;
    bool is_superseded = false;
    wanted.generation =
        weir_store_known_generation(store, wanted.worker_id, wanted.model, &is_superseded);
    store_source *known = weir_store_find_source(store, wanted.source_id, wanted.worker_id);
    if (known == NULL || known->is_superseded || !is_same_source(&known->view, &wanted))
        return replace_source(store, known, &wanted, is_superseded, now_ms);
    set_status(store, known, wanted.status, now_ms);
    return WEIR_OK;
}

weir_status weir_store_update_source(weir_store *store, const char *source_id,
                                     const char *worker_id, weir_store_source_status status,
                                     uint64_t now_ms)
{
    store_source *source = weir_store_find_source(store, source_id, worker_id);
    if (source == NULL)
        return weir_fail(WEIR_ERR_NOT_FOUND, "no source '%.64s' of worker '%.64s'", source_id,
                         worker_id);
    weir_store_source_status before = source->view.status;
    bool had_left = source->view.has_left;
    set_status(store, source, status, now_ms);
    source->view.has_left = status == WEIR_STORE_SOURCE_STALE;
    if (source->view.status != before || source->view.has_left != had_left)
        weir_store_note_change(store, source->record_of);
    return WEIR_OK;
}

/* ---- listing ---------------------------------------------------------------------------------*/

static bool matches(const weir_store_source *source, const weir_store_filter *filter)
{
    if (filter->source_id != NULL && strcmp(source->source_id, filter->source_id) != 0)
        return false;
    if (filter->model != NULL && strcmp(source->model, filter->model) != 0)
        return false;
    if (filter->has_status && (int)source->status != filter->status)
        return false;
    if (filter->has_rank && source->rank != filter->rank)
        return false;
    if (filter->has_min_step && (!source->has_step || source->step < filter->min_step))
        return false;
    return !filter->has_min_updated || source->updated_at_ms >= filter->min_updated_at_ms;
}

static int compare_three_way(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

/* Newest first; what came in the same millisecond by step, then by name, so that the order is
 * always the same. */
static int compare_sources(const void *left, const void *right)
{
    const weir_store_source *a = *(const weir_store_source *const *)left;
    const weir_store_source *b = *(const weir_store_source *const *)right;
    int order = compare_three_way((uint64_t)b->updated_at_ms, (uint64_t)a->updated_at_ms);
    if (order == 0)
        order = compare_three_way(b->has_step ? b->step : 0, a->has_step ? a->step : 0);
    if (order == 0)
        order = strcmp(a->worker_id, b->worker_id);
    return order != 0 ? order : strcmp(a->source_id, b->source_id);
}

size_t weir_store_count_sources(const weir_store *store)
{
    return store->n_sources;
}

static size_t list_by_id(const weir_store *store, const weir_store_filter *filter,
                         const weir_store_source **out)
{
    size_t n = 0;
    store_node *node =
        weir_store_index_first(&store->sources_by_id, hash_id(store, filter->source_id));
    for (; node != NULL; node = weir_store_index_next(node)) {
        const store_source *source = WEIR_STORE_OF(store_source, by_id, node);
        if (matches(&source->view, filter))
            out[n++] = &source->view;
    }
    qsort(out, n, sizeof(*out), compare_sources);
    return n;
}

/* The lists are in the order of the last words; only what came in one millisecond is sorted, and
 * no more is looked at than is wanted. */
static size_t list_newest(const weir_store *store, const weir_store_filter *filter,
                          const weir_store_source **out)
{
    const store_model *of =
        filter->model != NULL ? weir_store_find_model(store, filter->model) : NULL;
    if (filter->model != NULL && of == NULL)
        return 0;
    size_t limit = filter->has_limit ? filter->limit : SIZE_MAX, n = 0, n_sorted = 0;
    const store_link *head = of != NULL ? &of->sources : &store->all_sources;
    for (const store_link *link = head->next; link != head; link = link->next) {
        const weir_store_source *source = of != NULL
                                              ? &WEIR_STORE_OF(store_source, of_model, link)->view
                                              : &WEIR_STORE_OF(store_source, link, link)->view;
        if (filter->has_min_updated && source->updated_at_ms < filter->min_updated_at_ms)
            break;
        if (n != n_sorted && out[n - 1]->updated_at_ms != source->updated_at_ms) {
            qsort(out + n_sorted, n - n_sorted, sizeof(*out), compare_sources);
            n_sorted = n;
        }
        if (n_sorted >= limit)
            break;
        if (matches(source, filter))
            out[n++] = source;
    }
    qsort(out + n_sorted, n - n_sorted, sizeof(*out), compare_sources);
    return n;
}

size_t weir_store_list_sources(const weir_store *store, const weir_store_filter *filter,
                               const weir_store_source **out)
{
    size_t n = filter->source_id != NULL ? list_by_id(store, filter, out)
                                         : list_newest(store, filter, out);
    return filter->has_limit && n > filter->limit ? filter->limit : n;
}

void weir_store_each_source(const weir_store *store, const char *model,
                            bool (*visit)(void *context, const weir_store_source *source),
                            void *context)
{
    const store_model *of = model != NULL ? weir_store_find_model(store, model) : NULL;
    if (model != NULL && of == NULL)
        return;
    const store_link *head = of != NULL ? &of->sources : &store->all_sources;
    for (const store_link *link = head->next; link != head; link = link->next) {
        const store_source *source = of != NULL ? WEIR_STORE_OF(store_source, of_model, link)
                                                : WEIR_STORE_OF(store_source, link, link);
        if (!visit(context, &source->view))
            return;
    }
}

/* ---- sweeping --------------------------------------------------------------------------------*/

void weir_store_sweep_sources(weir_store *store, uint64_t now_ms)
{
    const weir_store_options *options = &store->options;
    store_link *head = &store->all_sources;
    for (store_link *link = head->next, *next; link != head; link = next) {
        store_source *source = WEIR_STORE_OF(store_source, link, link);
        next = link->next;
        uint64_t since_ms = now_ms > source->stale_since_ms ? now_ms - source->stale_since_ms : 0;
        bool is_stale = source->view.status == WEIR_STORE_SOURCE_STALE;
        if (is_stale && since_ms > options->delete_after_ms) {
            drop_source(store, source);
        } else if (!is_stale && since_ms > options->stale_after_ms) {
            source->view.status = WEIR_STORE_SOURCE_STALE;
            source->stale_since_ms = now_ms; /* updated_at stays the worker's last word */
            weir_store_note_change(store, source->record_of);
        }
    }
}

void weir_store_drop_sources(weir_store *store)
{
    while (!weir_store_list_is_empty(&store->all_sources))
        drop_source(store, WEIR_STORE_OF(store_source, link, store->all_sources.next));
}
