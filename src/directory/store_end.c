/* SPDX-License-Identifier: Apache-2.0 */
/* store_end.c - how versions end: taken back by their trainers, released, aborted with a reason,
 * and forgotten once nobody can serve or reads them. */
#include <string.h>

#include "base/error.h"
#include "directory/store_record.h"
#include "rpc/rpc_message.h"

/* ---- shards that count, and those that were taken back ---------------------------------------*/

bool weir_store_shard_counts(const weir_store_shard *shard, uint64_t now_ms)
{
    const store_shard *record = WEIR_STORE_OF(store_shard, view, shard);
    return !record->is_withdrawn && weir_store_is_live(record, now_ms);
}

/* Of a READY version they are kept: they say that only replicas have it. Of one that is over they
 * go when nobody reads the trainers. */
static void drop_withdrawn(weir_store *store, store_version *version, uint64_t now_ms)
{
    if (weir_store_has_direct_reader(version, now_ms))
        return;
    for (store_link *link = version->shards.next, *next; link != &version->shards; link = next) {
        store_shard *shard = WEIR_STORE_OF(store_shard, of_version, link);
        next = link->next;
        if (shard->is_withdrawn)
            weir_store_drop_shard(store, shard);
    }
}

void weir_store_end_version(weir_store *store, store_version *version, weir_store_state state,
                            uint64_t now_ms)
{
    version->view.state = state;
    store->events.n_released += state == WEIR_STORE_RELEASING;
    store->events.n_aborted += state == WEIR_STORE_ABORTED;
    version->touched_ms = now_ms;
    weir_store_tell_version(store,
                            state == WEIR_STORE_ABORTED ? WEIR_STORE_VERSION_ABORTED
                                                        : WEIR_STORE_VERSION_RELEASING,
                            version, NULL);
    drop_withdrawn(store, version, now_ms);
    weir_store_note_change(store, version->model);
}

static bool is_slot_taken_back(const store_link *slot)
{
    for (const store_link *link = slot->next; link != slot; link = link->next) {
        if (!WEIR_STORE_OF(store_shard, of_slot, link)->is_withdrawn)
            return false;
    }
    return !weir_store_list_is_empty(slot);
}

static bool is_taken_back(const store_version *version)
{
    for (size_t i = 0; version->view.state == WEIR_STORE_READY && i < version->view.n_slots; i++) {
        if (is_slot_taken_back(&version->slots[i]))
            return true;
    }
    return false;
}

bool weir_store_is_taken_back(const weir_store *store, const char *version_uid)
{
    const store_version *version = weir_store_version_record(store, version_uid);
    return version != NULL && is_taken_back(version);
}

void weir_store_release_earlier(weir_store *store, const store_version *version, uint64_t now_ms)
{
    const store_link *head = &version->run->versions;
    for (const store_link *link = version->of_run.next; link != head; link = link->next) {
        store_version *earlier = WEIR_STORE_OF(store_version, of_run, link);
        if (!earlier->view.has_number)
            return;
        if (is_taken_back(earlier))
            weir_store_end_version(store, earlier, WEIR_STORE_RELEASING, now_ms);
    }
}

/* A run's versions stand in order, the latest first. */
static bool has_later(const store_version *version)
{
    const store_link *head = &version->run->versions;
    for (const store_link *link = head->next; link != &version->of_run; link = link->next) {
        if (WEIR_STORE_OF(store_version, of_run, link)->view.state == WEIR_STORE_READY)
            return true;
    }
    return false;
}

/* ---- by request ------------------------------------------------------------------------------*/

static store_shard *find_own(const weir_store *store, const store_version *version,
                             const char *slot, const char *worker_id)
{
    size_t i = weir_store_find_slot(version, slot);
    return i != version->view.n_slots ? weir_store_find_shard(store, version, i, worker_id) : NULL;
}

bool weir_store_can_retire(const weir_store *store, const char *version_uid, const char *slot,
                           const char *worker_id, uint64_t now_ms)
{
    const store_version *version = weir_store_version_record(store, version_uid);
    const store_shard *shard = version != NULL ? find_own(store, version, slot, worker_id) : NULL;
    if (shard == NULL)
        return false;
    return !shard->is_withdrawn || (version->view.state != WEIR_STORE_READY &&
                                    !weir_store_has_direct_reader(version, now_ms));
}

static void withdraw(weir_store *store, store_shard *shard, uint64_t now_ms)
{
    store_version *version = shard->version;
    if (shard->is_withdrawn)
        return;
    shard->is_withdrawn = true;
    version->coverage.until_ms = 0;
    version->touched_ms = now_ms;
    weir_store_note_change(store, version->model);
}

/* A version that was never READY must not become so once its bytes are somebody else's. */
weir_status weir_store_retire_shard(weir_store *store, const char *version_uid, const char *slot,
                                    const char *worker_id, uint64_t now_ms, bool *out_is_read)
{
    store_version *version = weir_store_version_record(store, version_uid);
    store_shard *shard = version != NULL ? find_own(store, version, slot, worker_id) : NULL;
    *out_is_read = false;
    if (shard == NULL)
        return WEIR_OK;
    if (version->view.state == WEIR_STORE_STAGING) {
        const weir_store_version *after;
        weir_status status = weir_store_abort_version(
            store, version_uid, worker_id, "its trainer took a shard back before all were in",
            now_ms, &after);
        if (status != WEIR_OK)
            return status;
    }
    withdraw(store, shard, now_ms);
    *out_is_read = weir_store_has_direct_reader(version, now_ms);
    bool stays = version->view.state == WEIR_STORE_READY && !has_later(version) &&
                 weir_store_has_holder(store, version, now_ms);
    if (version->view.state == WEIR_STORE_READY && !stays)
        weir_store_end_version(store, version, WEIR_STORE_RELEASING, now_ms);
    else if (version->view.state != WEIR_STORE_READY)
        drop_withdrawn(store, version, now_ms);
    return WEIR_OK;
}

weir_status weir_store_delete_version(weir_store *store, const char *uid, uint64_t now_ms,
                                      const weir_store_version **out)
{
    store_version *version = weir_store_find_version(store, uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    if (version->view.state != WEIR_STORE_READY)
        return weir_fail(WEIR_ERR_REFUSED, "only a READY weight version can be deleted");
    weir_store_end_version(store, version, WEIR_STORE_RELEASING, now_ms);
    *out = &version->view;
    return WEIR_OK;
}

/* Cut to what fits, between two characters. */
weir_status weir_store_set_reason(weir_store *store, store_version *version, const char *reason)
{
    size_t n = strnlen(reason, WEIR_STORE_MAX_TEXT + 1);
    if (n > WEIR_STORE_MAX_TEXT)
        n = WEIR_STORE_MAX_TEXT;
    if (n == 0)
        return WEIR_OK;
    while (reason[n] != '\0' && ((unsigned char)reason[n] & 0xc0) == 0x80)
        n--;
    version->reason = weir_store_alloc(store, n + 1);
    if (version->reason == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(version->reason, reason, n);
    weir_rpc_text_repair(version->reason);
    version->view.reason = version->reason;
    return WEIR_OK;
}

static bool has_shard_of(const store_version *version, const store_worker *worker)
{
    for (const store_link *link = worker->shards.next; link != &worker->shards; link = link->next) {
        if (WEIR_STORE_OF(store_shard, of_worker, link)->version == version)
            return true;
    }
    return false;
}

static bool may_abort(const weir_store *store, const store_version *version, const char *worker_id,
                      uint64_t now_ms)
{
    const store_worker *worker = weir_store_worker_record(store, worker_id);
    if (worker == NULL)
        return false;
    if (worker->expires_ms > now_ms && worker->role == WEIR_STORE_TRAINER &&
        worker->model == version->model)
        return true;
    const store_lease *lease = weir_store_find_lease(store, version, worker_id);
    return (lease != NULL && lease->view.expires_ms > now_ms) || has_shard_of(version, worker);
}

weir_status weir_store_abort_version(weir_store *store, const char *uid, const char *worker_id,
                                     const char *reason, uint64_t now_ms,
                                     const weir_store_version **out)
{
    store_version *version = weir_store_find_version(store, uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    if (version->view.state == WEIR_STORE_ABORTED) {
        *out = &version->view;
        return WEIR_OK;
    }
    weir_status status = weir_store_check_name("worker_id", worker_id);
    if (status != WEIR_OK)
        return status;
    if (version->view.state == WEIR_STORE_RELEASING)
        return weir_fail(WEIR_ERR_REFUSED, "a RELEASING weight version cannot be aborted");
    if (!may_abort(store, version, worker_id, now_ms))
        return weir_fail(WEIR_ERR_REFUSED,
                         "only a worker that publishes or reads a weight version can abort it");
    status = weir_store_set_reason(store, version, weir_store_text(reason));
    if (status != WEIR_OK)
        return status;
    weir_store_end_version(store, version, WEIR_STORE_ABORTED, now_ms);
    *out = &version->view;
    return WEIR_OK;
}

/* ---- sweeping --------------------------------------------------------------------------------*/

void weir_store_drop_version(weir_store *store, store_version *version)
{
    store_run *run = version->run;
    weir_store_drop_leases(store, version);
    while (!weir_store_list_is_empty(&version->shards))
        weir_store_drop_shard(store, WEIR_STORE_OF(store_shard, of_version, version->shards.next));
    weir_store_note_change(store, run->model);
    weir_store_index_remove(&store->versions_by_uid, &version->by_uid);
    weir_store_index_remove(&store->versions_by_key, &version->by_key);
    weir_store_list_remove(&version->link);
    weir_store_list_remove(&version->of_model);
    weir_store_list_remove(&version->of_run);
    if (version->reason != NULL)
        weir_store_free(store, version->reason, strlen(version->reason) + 1);
    weir_store_free(store, version, weir_store_version_bytes(&version->view));
    store->n_versions--;
    run->n_versions--;
    run->model->n_users--;
    weir_store_let_run(store, run);
}

bool weir_store_has_live_shard(const store_version *version, uint64_t now_ms)
{
    for (const store_link *link = version->shards.next; link != &version->shards;
         link = link->next) {
        if (weir_store_shard_counts(&WEIR_STORE_OF(store_shard, of_version, link)->view, now_ms))
            return true;
    }
    return false;
}

/* The last change, or until when its last publisher was there. */
static uint64_t quiet_since(const store_version *version)
{
    uint64_t since_ms = version->touched_ms;
    for (const store_link *link = version->shards.next; link != &version->shards;
         link = link->next) {
        const store_worker *worker = WEIR_STORE_OF(store_shard, of_version, link)->worker;
        since_ms = worker->expires_ms > since_ms ? worker->expires_ms : since_ms;
    }
    return since_ms;
}

bool weir_store_is_quiet_for(const store_version *version, uint64_t ms, uint64_t now_ms)
{
    uint64_t since_ms = quiet_since(version);
    return now_ms > since_ms && now_ms - since_ms > ms;
}

static bool has_live_trainer(const store_model *model, uint64_t now_ms)
{
    for (const store_link *link = model->workers.next; link != &model->workers; link = link->next) {
        const store_worker *worker = WEIR_STORE_OF(store_worker, of_model, link);
        if (worker->role == WEIR_STORE_TRAINER && worker->expires_ms > now_ms)
            return true;
    }
    return false;
}

/* Who asks for many models' versions asks for them in a row. */
typedef struct known_trainer {
    const store_model *model;
    bool is_there;
} known_trainer;

static bool is_expected(const store_version *version, known_trainer *known, uint64_t now_ms)
{
    if (version->n_shards != 0)
        return false;
    if (known->model != version->model)
        *known = (known_trainer){ version->model, has_live_trainer(version->model, now_ms) };
    return known->is_there;
}

static bool is_to_go(const weir_store *store, const store_version *version, known_trainer *known,
                     uint64_t now_ms)
{
    const weir_store_options *options = &store->options;
    bool is_staging = version->view.state == WEIR_STORE_STAGING;
    uint64_t keep_ms = options->forget_after_ms;
    if (is_staging && options->abandon_after_ms < keep_ms &&
        weir_store_is_quiet_for(version, options->abandon_after_ms, now_ms) &&
        !is_expected(version, known, now_ms))
        keep_ms = options->abandon_after_ms;
    uint64_t since_ms = is_staging ? quiet_since(version) : version->touched_ms;
    bool is_old = now_ms > since_ms && now_ms - since_ms > keep_ms;
    if (!is_old || version->n_leases != 0 || weir_store_has_live_shard(version, now_ms))
        return false;
    return version->view.state != WEIR_STORE_READY ||
           !weir_store_has_holder(store, version, now_ms);
}

void weir_store_sweep_versions(weir_store *store, uint64_t now_ms)
{
    known_trainer known = { NULL, false };
    store_link *head = &store->all_versions;
    for (store_link *link = head->next, *next; link != head; link = next) {
        store_version *version = WEIR_STORE_OF(store_version, link, link);
        next = link->next;
        if (is_to_go(store, version, &known, now_ms))
            weir_store_drop_version(store, version);
        else if (is_taken_back(version) && !weir_store_may_have_holder(store, version, now_ms))
            weir_store_end_version(store, version, WEIR_STORE_RELEASING, now_ms);
    }
}

void weir_store_drop_versions(weir_store *store)
{
    while (!weir_store_list_is_empty(&store->all_versions))
        weir_store_drop_version(store,
                                WEIR_STORE_OF(store_version, link, store->all_versions.next));
}
