/* SPDX-License-Identifier: Apache-2.0 */
/* store_worker.c - workers: who is registered, until when, and which of two is the one that was
 * started last. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/store_record.h"

uint64_t weir_store_worker_hash(const weir_store *store, const char *worker_id)
{
    return weir_store_hash_text(store->seed, worker_id);
}

store_worker *weir_store_worker_record(const weir_store *store, const char *worker_id)
{
    store_node *node =
        weir_store_index_first(&store->workers, weir_store_worker_hash(store, worker_id));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_worker *worker = WEIR_STORE_OF(store_worker, node, node);
        if (strcmp(worker->worker_id, worker_id) == 0)
            return worker;
    }
    return NULL;
}

store_worker *weir_store_find_worker(const weir_store *store, const char *worker_id,
                                     uint64_t now_ms)
{
    store_worker *worker = weir_store_worker_record(store, worker_id);
    return worker != NULL && worker->expires_ms > now_ms ? worker : NULL;
}

store_worker *weir_store_worker_for(const weir_store *store, const store_version *version,
                                    const char *worker_id, uint64_t now_ms, weir_status *out_status)
{
    store_worker *worker = weir_store_find_worker(store, worker_id, now_ms);
    if (worker == NULL)
        *out_status = weir_fail(WEIR_ERR_REFUSED, "worker registration is missing or expired");
    else if (worker->model != version->model)
        *out_status = weir_fail(WEIR_ERR_REFUSED, "worker and weight version model_name differ");
    else
        return worker;
    return NULL;
}

/* ---- registering -----------------------------------------------------------------------------*/

static size_t worker_bytes(const char *worker_id)
{
    return sizeof(store_worker) + strlen(worker_id) + 1;
}

static void put_in_lists(weir_store *store, store_worker *worker, store_model *model)
{
    worker->model = model;
    model->n_users++;
    weir_store_list_add_first(&store->all_workers, &worker->link);
    weir_store_list_add_first(&model->workers, &worker->of_model);
}

static void take_from_lists(store_worker *worker)
{
    weir_store_list_remove(&worker->link);
    weir_store_list_remove(&worker->of_model);
    worker->model->n_users--;
}

/* What the worker said of itself points to its record as long as there is one. */
static void point_sources(weir_store *store, const char *worker_id, store_worker *to)
{
    store_node *node =
        weir_store_index_first(&store->sources_by_worker, weir_store_worker_hash(store, worker_id));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_source *source = WEIR_STORE_OF(store_source, by_worker, node);
        if (strcmp(source->view.worker_id, worker_id) == 0)
            source->worker = to;
    }
}

store_worker *weir_store_add_worker(weir_store *store, store_model *model, const char *worker_id,
                                    int role)
{
    store_worker *worker = weir_store_alloc(store, worker_bytes(worker_id));
    if (worker == NULL)
        return NULL;
    char *at = (char *)(worker + 1);
    worker->worker_id = weir_store_put_text(&at, worker_id);
    worker->role = role;
    weir_store_list_init(&worker->shards);
    put_in_lists(store, worker, model);
    weir_store_index_add(&store->workers, &worker->node, weir_store_worker_hash(store, worker_id));
    point_sources(store, worker_id, worker);
    store->n_workers++;
    return worker;
}

/* A process that was halted for so long that its registration is forgotten is no newer for that:
 * while its entries are there they say which generation it is of. */
uint64_t weir_store_known_generation(const weir_store *store, const char *worker_id,
                                     const char *model, bool *out_is_superseded)
{
    const store_worker *worker = weir_store_worker_record(store, worker_id);
    if (worker != NULL && strcmp(worker->model->name, model) == 0) {
        *out_is_superseded = worker->is_superseded;
        return worker->generation;
    }
    uint64_t generation = 0;
    store_node *node =
        weir_store_index_first(&store->sources_by_worker, weir_store_worker_hash(store, worker_id));
    for (; node != NULL; node = weir_store_index_next(node)) {
        const store_source *source = WEIR_STORE_OF(store_source, by_worker, node);
        if (source->view.generation < generation || strcmp(source->view.model, model) != 0 ||
            strcmp(source->view.worker_id, worker_id) != 0)
            continue;
        bool is_same = source->view.generation == generation;
        *out_is_superseded = source->is_superseded || (is_same && *out_is_superseded);
        generation = source->view.generation;
    }
    *out_is_superseded = generation != 0 && *out_is_superseded;
    return generation;
}

/* Of a directory that has lost its records a worker may ask for other things first, and register
 * when it is refused one: what it said of itself before is of the generation that it is given now.
 */
static void adopt_sources(weir_store *store, const store_worker *worker)
{
    store_node *node = weir_store_index_first(&store->sources_by_worker,
                                              weir_store_worker_hash(store, worker->worker_id));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_source *source = WEIR_STORE_OF(store_source, by_worker, node);
        if (source->view.generation == 0 && !source->is_superseded &&
            source->record_of == worker->model &&
            strcmp(source->view.worker_id, worker->worker_id) == 0)
            source->view.generation = worker->generation;
    }
}

static weir_status add_worker(weir_store *store, const char *worker_id, int role,
                              const char *model_name, store_worker **out)
{
    if (store->n_workers == WEIR_STORE_MAX_WORKERS)
        return weir_fail(WEIR_ERR_NO_MEMORY, "the directory is full: %u workers",
                         WEIR_STORE_MAX_WORKERS);
    store_model *model = weir_store_have_model(store, model_name);
    if (model == NULL)
        return WEIR_ERR_NO_MEMORY;
    bool is_superseded = false;
    uint64_t generation = weir_store_known_generation(store, worker_id, model_name, &is_superseded);
    store_worker *worker = weir_store_add_worker(store, model, worker_id, role);
    if (worker == NULL) {
        weir_store_let_model(store, model);
        return WEIR_ERR_NO_MEMORY;
    }
    worker->generation = generation != 0 ? generation : ++store->n_generations;
    worker->is_superseded = is_superseded;
    adopt_sources(store, worker);
    *out = worker;
    return WEIR_OK;
}

/* An id that has expired may come back as anything; what it had published is another's then. */
static weir_status turn_worker(weir_store *store, store_worker *worker, int role,
                               const char *model_name)
{
    store_model *model = weir_store_have_model(store, model_name), *before = worker->model;
    if (model == NULL)
        return WEIR_ERR_NO_MEMORY;
    take_from_lists(worker);
    put_in_lists(store, worker, model);
    worker->role = role;
    worker->is_superseded = false;
    worker->has_old_shards = !weir_store_list_is_empty(&worker->shards);
    worker->generation = ++store->n_generations;
    if (before != model) {
        weir_store_note_change(store, before);
        weir_store_let_model(store, before);
    }
    return WEIR_OK;
}

/* What its shards cover must be looked at anew. */
static void forget_coverage(store_worker *worker)
{
    for (store_link *link = worker->shards.next; link != &worker->shards; link = link->next)
        WEIR_STORE_OF(store_shard, of_worker, link)->version->coverage.until_ms = 0;
}

static weir_status check_registration(const char *worker_id, int role, const char *model,
                                      uint32_t ttl_s)
{
    weir_status status = weir_store_check_name("worker_id", worker_id);
    if (status == WEIR_OK)
        status = weir_store_check_name("model_name", model);
    if (status != WEIR_OK)
        return status;
    if (role != WEIR_STORE_TRAINER && role != WEIR_STORE_GENERATOR)
        return weir_fail(WEIR_ERR_INVALID, "role must be TRAINER or GENERATOR, not %d", role);
    if (ttl_s == 0)
        return weir_fail(WEIR_ERR_INVALID, "ttl_seconds must be greater than zero");
    return WEIR_OK;
}

uint64_t weir_store_ttl_end(uint32_t ttl_s, uint64_t now_ms)
{
    if (ttl_s > WEIR_STORE_MAX_TTL_S)
        ttl_s = WEIR_STORE_MAX_TTL_S;
    return now_ms + (uint64_t)ttl_s * 1000;
}

weir_status weir_store_register_worker(weir_store *store, const char *worker_id, int role,
                                       const char *model, uint32_t ttl_s, uint64_t now_ms,
                                       uint64_t *out_expires_ms)
{
    weir_status status = check_registration(worker_id, role, model, ttl_s);
    if (status != WEIR_OK)
        return status;
    store_worker *worker = weir_store_worker_record(store, worker_id);
    bool was_alive = worker != NULL && worker->expires_ms > now_ms;
    bool is_same =
        worker != NULL && worker->role == role && strcmp(worker->model->name, model) == 0;
    if (was_alive && !is_same)
        return weir_fail(WEIR_ERR_EXISTS,
                         "worker_id is registered with another role or model_name");
    if (worker == NULL)
        status = add_worker(store, worker_id, role, model, &worker);
    else if (!is_same)
        status = turn_worker(store, worker, role, model);
    if (status != WEIR_OK)
        return status;
    uint64_t expires_ms = weir_store_ttl_end(ttl_s, now_ms);
    if (!was_alive || expires_ms < worker->expires_ms)
        forget_coverage(worker);
    if (!was_alive)
        weir_store_note_change(store, worker->model);
    worker->expires_ms = expires_ms;
    worker->is_told_gone = false;
    if (!was_alive)
        weir_store_tell_worker(store, WEIR_STORE_WORKER_REGISTERED, worker);
    *out_expires_ms = expires_ms;
    return WEIR_OK;
}

/* ---- listing ---------------------------------------------------------------------------------*/

static weir_store_worker view_of(const store_worker *worker)
{
    return (weir_store_worker){ .worker_id = worker->worker_id,
                                .model = worker->model->name,
                                .role = worker->role,
                                .expires_ms = worker->expires_ms,
                                .generation = worker->generation,
                                .is_superseded = worker->is_superseded };
}

bool weir_store_get_worker(const weir_store *store, const char *worker_id, uint64_t now_ms,
                           weir_store_worker *out)
{
    const store_worker *worker = weir_store_find_worker(store, worker_id, now_ms);
    if (worker == NULL)
        return false;
    *out = view_of(worker);
    return true;
}

void weir_store_each_worker(const weir_store *store, const char *model,
                            bool (*visit)(void *context, const weir_store_worker *worker),
                            void *context)
{
    const store_model *of = model != NULL ? weir_store_find_model(store, model) : NULL;
    if (model != NULL && of == NULL)
        return;
    const store_link *head = of != NULL ? &of->workers : &store->all_workers;
    for (const store_link *link = head->next; link != head; link = link->next) {
        const store_worker *worker = of != NULL ? WEIR_STORE_OF(store_worker, of_model, link)
                                                : WEIR_STORE_OF(store_worker, link, link);
        weir_store_worker view = view_of(worker);
        if (!visit(context, &view))
            return;
    }
}

/* ---- sweeping and dropping -------------------------------------------------------------------*/

/* Who waits for replicas is told of those that went meanwhile. */
static void remember_gone(weir_store *store, const store_worker *worker)
{
    store_gone_worker *gone = NULL;
    for (size_t i = 0; i < store->n_gone && i < WEIR_STORE_MAX_GONE && gone == NULL; i++) {
        if (strcmp(store->gone[i].worker_id, worker->worker_id) == 0)
            gone = &store->gone[i];
    }
    if (gone == NULL)
        gone = &store->gone[store->n_gone++ % WEIR_STORE_MAX_GONE];
    snprintf(gone->worker_id, sizeof(gone->worker_id), "%s", worker->worker_id);
    snprintf(gone->model, sizeof(gone->model), "%s", worker->model->name);
    gone->ended_at_ms = worker->expires_ms;
}

static void drop_worker(weir_store *store, store_worker *worker)
{
    store_model *model = worker->model;
    if (worker->role == WEIR_STORE_GENERATOR && !worker->is_superseded)
        remember_gone(store, worker);
    weir_store_note_change(store, model);
    take_from_lists(worker);
    point_sources(store, worker->worker_id, NULL);
    weir_store_index_remove(&store->workers, &worker->node);
    weir_store_free(store, worker, worker_bytes(worker->worker_id));
    store->n_workers--;
    weir_store_let_model(store, model);
}

/* Who was cut off from the directory registers again under the same id, which no other process has:
 * what it published is still there, and who publishes is not asked for it twice. And what was taken
 * back of a version that replicas hold says that it was. */
static bool is_of_use(const weir_store *store, const store_shard *shard, uint64_t now_ms)
{
    const store_worker *worker = shard->worker;
    weir_store_state state = shard->version->view.state;
    if (shard->is_withdrawn)
        return state == WEIR_STORE_READY;
    return (state == WEIR_STORE_STAGING || state == WEIR_STORE_READY) && !worker->is_superseded &&
           shard->generation == worker->generation &&
           now_ms - worker->expires_ms <= store->options.forget_after_ms;
}

/* Shards that nobody can read any more go, unless somebody is still reading their version. */
static void drop_dead_shards(weir_store *store, store_worker *worker, uint64_t now_ms)
{
    worker->has_old_shards = false;
    for (store_link *link = worker->shards.next, *next; link != &worker->shards; link = next) {
        store_shard *shard = WEIR_STORE_OF(store_shard, of_worker, link);
        next = link->next;
        if (weir_store_is_live(shard, now_ms))
            continue;
        if (shard->version->n_leases == 0 && !is_of_use(store, shard, now_ms))
            weir_store_drop_shard(store, shard);
        else if (shard->generation != worker->generation)
            worker->has_old_shards = true;
    }
}

void weir_store_sweep_workers(weir_store *store, uint64_t now_ms)
{
    store_link *head = &store->all_workers;
    for (store_link *link = head->next, *next; link != head; link = next) {
        store_worker *worker = WEIR_STORE_OF(store_worker, link, link);
        next = link->next;
        bool is_over = worker->expires_ms <= now_ms;
        if (!is_over && !worker->is_superseded && !worker->has_old_shards)
            continue;
        if (is_over && !worker->is_told_gone)
            weir_store_tell_worker(store, WEIR_STORE_WORKER_GONE, worker);
        worker->is_told_gone = is_over;
        drop_dead_shards(store, worker, now_ms);
        if (is_over && worker->n_readers == 0 && weir_store_list_is_empty(&worker->shards))
            drop_worker(store, worker);
    }
}

void weir_store_drop_workers(weir_store *store)
{
    while (!weir_store_list_is_empty(&store->all_workers))
        drop_worker(store, WEIR_STORE_OF(store_worker, link, store->all_workers.next));
}
