/* SPDX-License-Identifier: Apache-2.0 */
/* store_holder.c - which replica workers hold a version, and which of the others are waited for. */
#include <string.h>

#include "directory/store_record.h"

#define REPLICA "inference_replica"

/* ---- who holds it ----------------------------------------------------------------------------*/

static bool is_alive(const store_worker *worker, uint64_t now_ms)
{
    return worker->expires_ms > now_ms && !worker->is_superseded;
}

/* Those that were never of a run go by the model alone. */
static bool is_of_run(const store_source *source, const store_version *version)
{
    return version->view.run[0] == '\0' || strcmp(source->view.run, version->view.run) == 0;
}

/* Entries outlive who has left: from before a training that went back to lower numbers they may say
 * greater ones. Only a version that came after this one is later for certain. */
static bool is_after(const weir_store *store, const char *uid, const store_version *version)
{
    const store_version *other = weir_store_version_record(store, uid);
    return other != NULL && other->run == version->run && other->view.has_number &&
           other->view.number > version->view.number &&
           other->view.created_at_ms >= version->view.created_at_ms;
}

static bool holds(const weir_store *store, const store_source *source, const store_version *version,
                  uint64_t now_ms)
{
    const weir_store_source *view = &source->view;
    if (source->is_superseded || source->record_of != version->model || !view->has_step ||
        strcmp(view->role, REPLICA) != 0 || !is_of_run(source, version))
        return false;
    bool is_this = strcmp(view->version_uid, version->uid) == 0;
    if (view->has_left)
        return is_this || is_after(store, view->version_uid, version);
    bool is_later = version->view.has_number && view->step > version->view.number;
    if (view->status != WEIR_STORE_SOURCE_READY || (!is_this && !is_later))
        return false;
    const store_worker *worker = source->worker;
    return worker != NULL && is_alive(worker, now_ms) && worker->model == version->model &&
           worker->generation == view->generation;
}

/* Of a worker's entries the first that says that it holds the version; NULL: none does. */
static const store_source *entry_that_holds(const weir_store *store, const char *worker_id,
                                            const store_version *version, uint64_t now_ms)
{
    store_node *node =
        weir_store_index_first(&store->sources_by_worker, weir_store_worker_hash(store, worker_id));
    for (; node != NULL; node = weir_store_index_next(node)) {
        const store_source *source = WEIR_STORE_OF(store_source, by_worker, node);
        if (strcmp(source->view.worker_id, worker_id) == 0 && holds(store, source, version, now_ms))
            return source;
    }
    return NULL;
}

size_t weir_store_count_holders(const weir_store *store, const char *version_uid, uint64_t now_ms)
{
    const store_version *version = weir_store_version_record(store, version_uid);
    size_t n = 0;
    if (version == NULL)
        return 0;
    const store_link *head = &version->model->sources;
    for (const store_link *link = head->next; link != head; link = link->next) {
        const store_source *source = WEIR_STORE_OF(store_source, of_model, link);
        n += holds(store, source, version, now_ms) &&
             entry_that_holds(store, source->view.worker_id, version, now_ms) == source;
    }
    return n;
}

/* ---- who may be read from again --------------------------------------------------------------*/

bool weir_store_may_have_holder(const weir_store *store, const store_version *version,
                                uint64_t now_ms)
{
    uint64_t patience_ms = store->options.abandon_after_ms;
    uint64_t hash = weir_store_hash_text(store->seed, version->uid);
    store_node *node = weir_store_index_first(&store->sources_by_version, hash);
    for (; node != NULL; node = weir_store_index_next(node)) {
        const store_source *source = WEIR_STORE_OF(store_source, by_version, node);
        const weir_store_source *view = &source->view;
        bool is_silent = now_ms > (uint64_t)view->updated_at_ms &&
                         now_ms - (uint64_t)view->updated_at_ms > patience_ms;
        if (source->can_be_read && !source->is_superseded && !view->has_left && !is_silent &&
            source->record_of == version->model && strcmp(view->version_uid, version->uid) == 0)
            return true;
    }
    return false;
}

/* ---- who is waited for -----------------------------------------------------------------------*/

static bool has_refused(const weir_store *store, const store_version *version,
                        const char *worker_id)
{
    const weir_store_word *first =
        weir_store_words(store, version->model->name, version->view.run, version->view.number);
    if (first == NULL)
        return false;
    const weir_store_word wanted = { .version_uid = version->uid, .worker_id = worker_id };
    const store_word *word =
        weir_store_find_word(store, WEIR_STORE_OF(store_word, view, first)->history, &wanted);
    return word != NULL && word->view.status != WEIR_OK;
}

/* What its entries say of it. False: that it is of another run, or has gone in order, or that
 * another has come for it. */
static bool describe(const weir_store *store, const store_version *version,
                     weir_store_straggler *straggler)
{
    bool is_of_other = false, is_of_this = false;
    store_node *node = weir_store_index_first(&store->sources_by_worker,
                                              weir_store_worker_hash(store, straggler->worker_id));
    for (; node != NULL; node = weir_store_index_next(node)) {
        const store_source *source = WEIR_STORE_OF(store_source, by_worker, node);
        const weir_store_source *view = &source->view;
        if (strcmp(view->worker_id, straggler->worker_id) != 0 ||
            source->record_of != version->model || strcmp(view->role, REPLICA) != 0)
            continue;
        if (!is_of_run(source, version)) {
            is_of_other = true;
            continue;
        }
        if (straggler->ended_at_ms != 0 && (view->has_left || source->is_superseded))
            return false;
        is_of_this = true;
        straggler->rank = view->rank;
        if (view->status == WEIR_STORE_SOURCE_READY && view->has_step &&
            (!straggler->has_number || view->step > straggler->number)) {
            straggler->has_number = true;
            straggler->number = view->step;
        }
    }
    return is_of_this || !is_of_other;
}

/* Of a worker that is there, or of one that is gone. */
static bool is_awaited(const weir_store *store, const store_version *version, const char *worker_id,
                       uint64_t ended_at_ms, weir_store_straggler *out)
{
    *out = (weir_store_straggler){ .worker_id = worker_id, .ended_at_ms = ended_at_ms };
    return (ended_at_ms == 0 || ended_at_ms >= version->view.created_at_ms) &&
           describe(store, version, out) && !has_refused(store, version, worker_id);
}

static bool is_record_awaited(const weir_store *store, const store_version *version,
                              const store_worker *worker, uint64_t now_ms,
                              weir_store_straggler *out)
{
    bool is_over = worker->expires_ms <= now_ms;
    if (worker->role != WEIR_STORE_GENERATOR || worker->is_superseded ||
        entry_that_holds(store, worker->worker_id, version, now_ms) != NULL ||
        !is_awaited(store, version, worker->worker_id, is_over ? worker->expires_ms : 0, out))
        return false;
    const store_lease *lease = weir_store_find_lease(store, version, worker->worker_id);
    out->reads = !is_over && lease != NULL && lease->view.expires_ms > now_ms;
    return true;
}

typedef enum straggler_kind { READS, IS_GONE, IS_IDLE, N_KINDS } straggler_kind;

static straggler_kind kind_of(const weir_store_straggler *straggler)
{
    return straggler->ended_at_ms != 0 ? IS_GONE : straggler->reads ? READS : IS_IDLE;
}

/* Those of whom there is a record. False: `visit` wants no more. */
static bool visit_records(const weir_store *store, const store_version *version,
                          straggler_kind kind, uint64_t now_ms,
                          bool (*visit)(void *context, const weir_store_straggler *straggler),
                          void *context)
{
    const store_link *head = &version->model->workers;
    for (const store_link *link = head->next; link != head; link = link->next) {
        const store_worker *worker = WEIR_STORE_OF(store_worker, of_model, link);
        weir_store_straggler straggler;
        if (is_record_awaited(store, version, worker, now_ms, &straggler) &&
            kind_of(&straggler) == kind && !visit(context, &straggler))
            return false;
    }
    return true;
}

static bool visit_gone(const weir_store *store, const store_version *version, uint64_t now_ms,
                       bool (*visit)(void *context, const weir_store_straggler *straggler),
                       void *context)
{
    size_t n = store->n_gone < WEIR_STORE_MAX_GONE ? store->n_gone : WEIR_STORE_MAX_GONE;
    for (size_t i = 1; i <= n; i++) {
        const store_gone_worker *gone = &store->gone[(store->n_gone - i) % WEIR_STORE_MAX_GONE];
        weir_store_straggler straggler;
        if (strcmp(gone->model, version->model->name) == 0 &&
            weir_store_worker_record(store, gone->worker_id) == NULL &&
            entry_that_holds(store, gone->worker_id, version, now_ms) == NULL &&
            is_awaited(store, version, gone->worker_id, gone->ended_at_ms, &straggler) &&
            !visit(context, &straggler))
            return false;
    }
    return true;
}

void weir_store_each_straggler(const weir_store *store, const char *version_uid, uint64_t now_ms,
                               bool (*visit)(void *context, const weir_store_straggler *straggler),
                               void *context)
{
    const store_version *version = weir_store_version_record(store, version_uid);
    bool goes_on = version != NULL;
    for (straggler_kind kind = READS; goes_on && kind < N_KINDS; kind++) {
        goes_on = visit_records(store, version, kind, now_ms, visit, context);
        if (goes_on && kind == IS_GONE)
            goes_on = visit_gone(store, version, now_ms, visit, context);
    }
}
