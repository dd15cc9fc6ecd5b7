/* SPDX-License-Identifier: Apache-2.0 */
/* store_acquire.c - which version a replica worker gets, and from whom it reads it.
 *
 * What READY says of a version was true once; whether it can be read is a question of which workers
 * live. The answer is kept with the version until it can change, because a thousand replicas that
 * wait for the same version ask after every shard. */
#include <string.h>

#include "base/error.h"
#include "directory/store_record.h"

/* ---- what the trainers hold ------------------------------------------------------------------*/

/* Of several live workers the one that was started last. */
static const store_shard *best_of_slot(const store_link *slot, uint64_t now_ms)
{
    const store_shard *best = NULL;
    for (const store_link *link = slot->next; link != slot; link = link->next) {
        const store_shard *shard = WEIR_STORE_OF(store_shard, of_slot, link);
        if (weir_store_is_live(shard, now_ms) && !shard->is_withdrawn &&
            (best == NULL || shard->generation > best->generation))
            best = shard;
    }
    return best;
}

const store_coverage *weir_store_cover(store_version *version, uint64_t now_ms)
{
    store_coverage *coverage = &version->coverage;
    if (now_ms < coverage->until_ms)
        return coverage;
    coverage->until_ms = UINT64_MAX;
    coverage->n_missing = 0;
    for (size_t i = 0; i < version->view.n_slots; i++) {
        const store_shard *best = best_of_slot(&version->slots[i], now_ms);
        coverage->shards[i] = best != NULL ? &best->view : NULL;
        if (best == NULL)
            coverage->missing[coverage->n_missing++] = version->view.slots[i];
        else if (best->worker->expires_ms < coverage->until_ms)
            coverage->until_ms = best->worker->expires_ms;
    }
    return coverage;
}

static bool is_avoided(const weir_store_wish *wish, const char *worker_id)
{
    for (size_t i = 0; i < wish->n_avoid; i++) {
        if (strcmp(wish->avoid[i], worker_id) == 0)
            return true;
    }
    return false;
}

/* Another live worker's shard instead of an avoided one's, where there is another. */
static const weir_store_shard *shun(const store_version *version, size_t i,
                                    const weir_store_wish *wish, uint64_t now_ms)
{
    const store_shard *best = NULL;
    const store_link *slot = &version->slots[i];
    for (const store_link *link = slot->next; link != slot; link = link->next) {
        const store_shard *shard = WEIR_STORE_OF(store_shard, of_slot, link);
        if (weir_store_is_live(shard, now_ms) && !shard->is_withdrawn &&
            !is_avoided(wish, shard->view.worker_id) &&
            (best == NULL || shard->generation > best->generation))
            best = shard;
    }
    return best != NULL ? &best->view : version->coverage.shards[i];
}

static const weir_store_shard *const *choose_shards(weir_store *store, const store_version *version,
                                                    const weir_store_wish *wish, uint64_t now_ms)
{
    if (wish->n_avoid == 0)
        return version->coverage.shards;
    for (size_t i = 0; i < version->view.n_slots; i++) {
        const weir_store_shard *shard = version->coverage.shards[i];
        store->chosen[i] =
            is_avoided(wish, shard->worker_id) ? shun(version, i, wish, now_ms) : shard;
    }
    return store->chosen;
}

/* ---- what replicas hold ----------------------------------------------------------------------*/

/* The worker behind an entry that others can read this version from; NULL: they cannot. */
static store_worker *holder_of(const store_source *source, const store_version *version,
                               uint64_t now_ms)
{
    store_worker *worker = source->worker;
    if (!source->can_be_read || source->is_superseded || worker == NULL ||
        worker->expires_ms <= now_ms || worker->is_superseded || worker->model != version->model ||
        worker->generation != source->view.generation ||
        source->view.status != WEIR_STORE_SOURCE_READY || source->record_of != version->model)
        return NULL;
    return worker;
}

static store_node *first_holder(const weir_store *store, const store_version *version)
{
    return weir_store_index_first(&store->sources_by_version,
                                  weir_store_hash_text(store->seed, version->uid));
}

bool weir_store_has_holder(const weir_store *store, const store_version *version, uint64_t now_ms)
{
    store_node *node = first_holder(store, version);
    for (; node != NULL; node = weir_store_index_next(node)) {
        const store_source *source = WEIR_STORE_OF(store_source, by_version, node);
        if (holder_of(source, version, now_ms) != NULL &&
            strcmp(source->view.version_uid, version->uid) == 0)
            return true;
    }
    return false;
}

typedef struct peer_choice {
    const store_source *source; /* NULL: nobody */
    store_worker *worker;
    size_t n_readers; /* besides the one that asks */
    bool is_near;
} peer_choice;

/* Fewer readers, then the same host, then the one that was started first: the same on every
 * directory. Of one worker's entries any will do: they are told apart by name. */
static bool is_better(const peer_choice *a, const peer_choice *b)
{
    if (b->source == NULL || a->n_readers != b->n_readers)
        return b->source == NULL || a->n_readers < b->n_readers;
    if (a->is_near != b->is_near)
        return a->is_near;
    if (a->worker != b->worker)
        return a->worker->generation < b->worker->generation;
    return strcmp(a->source->view.source_id, b->source->view.source_id) < 0;
}

/* Hashes are compared before, because most holders are looked at for nothing. */
static bool is_wanted(const store_source *source, const store_version *version,
                      const weir_store_wish *wish)
{
    return strcmp(source->view.version_uid, version->uid) == 0 &&
           strcmp(source->view.part, wish->part) == 0 &&
           strcmp(source->view.worker_id, wish->worker_id) != 0 &&
           !is_avoided(wish, source->view.worker_id);
}

/* `own`: the lease that the worker has already, whose reader it is itself. */
static peer_choice choose_peer(const weir_store *store, const store_version *version,
                               const weir_store_wish *wish, const store_lease *own, uint64_t now_ms)
{
    peer_choice best = { 0 };
    if (weir_store_text(wish->part)[0] == '\0')
        return best;
    uint64_t part_hash = weir_store_hash_text(store->seed, wish->part);
    const char *host = weir_store_text(wish->host);
    uint64_t host_hash = weir_store_hash_text(store->seed, host);
    for (store_node *node = first_holder(store, version); node != NULL;
         node = weir_store_index_next(node)) {
        peer_choice choice = { .source = WEIR_STORE_OF(store_source, by_version, node) };
        choice.worker = holder_of(choice.source, version, now_ms);
        if (choice.worker == NULL || choice.source->part_hash != part_hash)
            continue;
        choice.n_readers = choice.worker->n_readers;
        if (own != NULL && own->peer == choice.worker)
            choice.n_readers--;
        choice.is_near = host[0] != '\0' && choice.source->host_hash == host_hash;
        if (is_better(&choice, &best) && is_wanted(choice.source, version, wish))
            best = choice;
    }
    return best;
}

/* ---- the grant -------------------------------------------------------------------------------*/

static weir_status check_wish(const weir_store *store, const weir_store_wish *wish, uint64_t now_ms)
{
    weir_status status = weir_store_check_name("worker_id", wish->worker_id);
    if (status == WEIR_OK)
        status = weir_store_check_name("model_name", wish->model);
    if (status != WEIR_OK)
        return status;
    if (wish->ttl_s == 0)
        return weir_fail(WEIR_ERR_INVALID, "ttl_seconds must be greater than zero");
    const store_worker *worker = weir_store_find_worker(store, wish->worker_id, now_ms);
    if (worker == NULL)
        return weir_fail(WEIR_ERR_REFUSED, "worker registration is missing or expired");
    if (strcmp(worker->model->name, wish->model) != 0)
        return weir_fail(WEIR_ERR_REFUSED, "worker and weight version model_name differ");
    if (worker->role != WEIR_STORE_GENERATOR)
        return weir_fail(WEIR_ERR_REFUSED, "only a GENERATOR worker can lease a weight version");
    return WEIR_OK;
}

static bool can_be_read(const weir_store *store, store_version *version,
                        const weir_store_wish *wish, uint64_t now_ms)
{
    if (version->view.state != WEIR_STORE_READY)
        return false;
    return weir_store_cover(version, now_ms)->n_missing == 0 ||
           choose_peer(store, version, wish, NULL, now_ms).source != NULL;
}

/* Who waits now has a source for itself the sooner: each reader that is done is one more. Until
 * when; 0: it need not wait. */
static uint64_t wait_for_peer(const weir_store *store, const store_version *version,
                              const weir_store_wish *wish, uint64_t now_ms)
{
    uint64_t until_ms = version->view.ready_at_ms + wish->peer_wait_ms;
    if (now_ms >= until_ms || version->n_direct < version->view.n_slots ||
        weir_store_text(wish->part)[0] == '\0' ||
        weir_store_find_lease(store, version, wish->worker_id) != NULL)
        return 0;
    peer_choice peer = choose_peer(store, version, wish, NULL, now_ms);
    return peer.source != NULL && peer.n_readers == 0 ? 0 : until_ms;
}

/* The asker holds this version, or a later attempt at its number. One that the store does not know
 * is no attempt at any. */
static bool is_held(const store_version *version, const weir_store_wish *wish,
                    const store_version *held)
{
    if (held == NULL)
        return strcmp(version->uid, weir_store_text(wish->held_uid)) == 0;
    return version->run == held->run && version->view.number == held->view.number &&
           version->view.attempt <= held->view.attempt;
}

/* The newest that will do; of those that will not, the newest is remembered in *out_awaited. But
 * not an attempt before the one that the asker knows of: it is over, and no news. */
static store_version *choose_version(const weir_store *store, const store_run *run,
                                     const weir_store_wish *wish, uint64_t now_ms,
                                     store_version **out_awaited)
{
    const store_version *known = NULL;
    const store_version *held = weir_store_version_record(store, weir_store_text(wish->held_uid));
    for (store_link *link = run->versions.next; link != &run->versions; link = link->next) {
        store_version *version = WEIR_STORE_OF(store_version, of_run, link);
        if (!version->view.has_number || version->view.number < wish->lowest)
            break;
        if (version->view.number > wish->highest || is_held(version, wish, held))
            continue;
        if (strcmp(version->uid, weir_store_text(wish->but_not_uid)) == 0) {
            known = version;
            continue;
        }
        if (can_be_read(store, version, wish, now_ms))
            return version;
        bool is_earlier = known != NULL && known->view.number == version->view.number;
        if (*out_awaited == NULL && !is_earlier)
            *out_awaited = version;
    }
    return NULL;
}

static void say_what_is_missing(store_version *awaited, uint64_t now_ms, weir_store_grant *out)
{
    out->awaited = &awaited->view;
    if (awaited->view.state != WEIR_STORE_STAGING && awaited->view.state != WEIR_STORE_READY)
        return; /* nobody will publish what is missing of it */
    const store_coverage *coverage = weir_store_cover(awaited, now_ms);
    out->missing = coverage->missing;
    out->n_missing = coverage->n_missing;
}

/* Every slot has a shard of a live worker, and one that the reader has not found out to be gone. */
static bool is_covered_for(store_version *version, const weir_store_wish *wish, uint64_t now_ms)
{
    if (weir_store_cover(version, now_ms)->n_missing != 0)
        return false;
    for (size_t i = 0; wish->n_avoid != 0 && i < version->view.n_slots; i++) {
        if (is_avoided(wish, shun(version, i, wish, now_ms)->worker_id))
            return false;
    }
    return true;
}

/* A peer is read when the trainers are busier, or gone; or as busy, but not on the reader's host.
 */
static weir_status grant(weir_store *store, store_version *version, const weir_store_wish *wish,
                         uint64_t now_ms, weir_store_grant *out)
{
    const store_lease *own = weir_store_find_lease(store, version, wish->worker_id);
    bool is_covered = is_covered_for(version, wish, now_ms);
    peer_choice peer = choose_peer(store, version, wish, own, now_ms);
    size_t n_direct = version->n_direct - (own != NULL && own->peer == NULL);
    if (is_covered && peer.n_readers + !peer.is_near > n_direct)
        peer = (peer_choice){ 0 };
    store_lease *lease = NULL;
    weir_status status = weir_store_put_lease(store, version, wish->worker_id, peer.worker,
                                              weir_store_ttl_end(wish->ttl_s, now_ms), &lease);
    if (status != WEIR_OK)
        return status;
    if (own == NULL)
        lease->view.begun_ms = now_ms;
    store->events.n_leases += own == NULL;
    store->events.n_renewed += own != NULL;
    version->touched_ms = now_ms;
    out->lease = lease->view;
    if (peer.source != NULL) {
        out->peer = &peer.source->view;
        out->peer_endpoint = peer.source->view.endpoint;
        out->peer_host = peer.source->view.host;
        out->n_peer_readers = (uint32_t)peer.worker->n_readers;
    }
    return WEIR_OK;
}

weir_status weir_store_acquire(weir_store *store, const weir_store_wish *wish, bool take,
                               uint64_t now_ms, weir_store_grant *out)
{
    weir_status status = check_wish(store, wish, now_ms);
    if (status != WEIR_OK)
        return status;
    weir_store_grant answer = { 0 };
    const store_model *model = weir_store_find_model(store, wish->model);
    const store_run *run = weir_store_find_run(store, model, weir_store_text(wish->run));
    store_version *version = NULL, *awaited = NULL;
    if (run != NULL && run->n_versions != 0) {
        const store_version *newest = WEIR_STORE_OF(store_version, of_run, run->versions.next);
        answer.has_trainer = true;
        answer.newest = newest->view.has_number ? newest->view.number : 0;
        version = choose_version(store, run, wish, now_ms, &awaited);
    }
    if (version != NULL)
        answer.again_ms = wait_for_peer(store, version, wish, now_ms);
    if (answer.again_ms != 0) {
        awaited = version;
        version = NULL;
    }
    if (version == NULL) {
        if (awaited != NULL)
            say_what_is_missing(awaited, now_ms, &answer);
        *out = answer;
        return WEIR_IN_PROGRESS;
    }
    const store_lease *own = weir_store_find_lease(store, version, wish->worker_id);
    if (own == NULL)
        status = weir_store_check_room(version, now_ms);
    if (status == WEIR_OK && take) {
        weir_store_sweep_leases(store, now_ms);
        status = grant(store, version, wish, now_ms, &answer);
    }
    if (status != WEIR_OK)
        return status;
    answer.version = &version->view;
    if (weir_store_cover(version, now_ms)->n_missing == 0) {
        answer.shards = choose_shards(store, version, wish, now_ms);
        answer.n_shards = version->view.n_slots;
    }
    *out = answer;
    return WEIR_OK;
}
