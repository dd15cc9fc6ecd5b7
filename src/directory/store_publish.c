/* SPDX-License-Identifier: Apache-2.0 */
/* store_publish.c - a trainer rank publishes a version: into the attempt that its trainer has open,
 * or into the next one.
 *
 * A version's bytes are of all its slots together, so an attempt takes ranks of one state of the
 * model alone. What the store knows of states is which worker was started when and what each calls
 * its bytes: a rank that was started anew and offers others ends the attempt, and the next one
 * takes nobody who was there before that attempt was begun. It does not look at the bytes.
 *
 * A store that has lost its records knows nothing of that; ranks that publish again what they had
 * published bring back what they know (store_recall.c), and of others nothing is taken for granted.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/store_record.h"

typedef struct publication {
    weir_store *store;
    const weir_store_version *request;
    const weir_store_shard *shard;
    store_worker *worker;
    uint64_t content; /* its mark; 0: not said */
    uint64_t mark;    /* the worker's */
    bool is_again;    /* it was published in a directory that has lost its records */
    uint64_t now_ms;
} publication;

/* ---- the request -----------------------------------------------------------------------------*/

static weir_status check_version(const weir_store_version *request)
{
    weir_status status = weir_store_check_name("model_name", request->model);
    if (status == WEIR_OK)
        status = weir_store_check_name("run", request->run);
    if (status == WEIR_OK && !request->has_number)
        status = weir_fail(WEIR_ERR_INVALID, "version_number is required with a run");
    if (status == WEIR_OK &&
        (request->payload != WEIR_STORE_FULL_TENSOR || request->base_uid != NULL))
        status = weir_fail(WEIR_ERR_INVALID, "payload_format must be FULL_TENSOR");
    if (status == WEIR_OK)
        status = weir_store_check_version(request);
    return status == WEIR_OK ? weir_store_check_slots(request) : status;
}

static bool is_expected(const weir_store_version *request, const char *slot)
{
    for (size_t i = 0; i < request->n_slots; i++) {
        if (strcmp(request->slots[i], slot) == 0)
            return true;
    }
    return false;
}

static weir_status check_request(publication *p)
{
    weir_status status = check_version(p->request);
    if (status == WEIR_OK)
        status = weir_store_check_shard(p->shard);
    if (status == WEIR_OK && !is_expected(p->request, p->shard->slot))
        status =
            weir_fail(WEIR_ERR_INVALID, "source_slot_id is not required by the weight version");
    if (status == WEIR_OK)
        status = weir_store_mark_content(p->shard->content, &p->content);
    if (status == WEIR_OK)
        status = weir_store_mark_content(p->shard->worker_id, &p->mark);
    if (status != WEIR_OK)
        return status;
    p->worker = weir_store_find_worker(p->store, p->shard->worker_id, p->now_ms);
    if (p->worker == NULL)
        return weir_fail(WEIR_ERR_REFUSED, "worker registration is missing or expired");
    if (strcmp(p->worker->model->name, p->request->model) != 0)
        return weir_fail(WEIR_ERR_REFUSED, "worker and weight version model_name differ");
    return WEIR_OK;
}

/* ---- attempts --------------------------------------------------------------------------------*/

static bool is_open(const store_version *version)
{
    return version->view.state == WEIR_STORE_STAGING || version->view.state == WEIR_STORE_READY;
}

/* The attempt at the number that comes after `after`, NULL: the first one; NULL: there is none. */
static store_version *next_attempt(const publication *p, const store_version *after)
{
    const store_model *model = p->worker->model;
    const store_run *run = weir_store_find_run(p->store, model, p->request->run);
    store_version *next = NULL;
    if (run == NULL)
        return NULL;
    for (store_link *link = run->versions.next; link != &run->versions; link = link->next) {
        store_version *version = WEIR_STORE_OF(store_version, of_run, link);
        if (!version->view.has_number || version->view.number < p->request->number ||
            version == after)
            break;
        if (version->view.number == p->request->number)
            next = version;
    }
    return next;
}

static store_past past_of(const publication *p, const store_version *version)
{
    size_t slot = weir_store_find_slot(version, p->shard->slot);
    return slot < version->view.n_slots ? version->pasts[slot] : (store_past){ 0 };
}

static bool has_other_content(const publication *p, const store_version *version)
{
    uint64_t content = past_of(p, version).content;
    return content != 0 && p->content != 0 && content != p->content;
}

/* Nobody knows whether it goes with what the attempt had before the directory lost its records. */
static bool is_unknown_to(const publication *p, const store_version *version)
{
    store_past past = past_of(p, version), own = { 0, p->content, p->mark };
    return version->is_restored && !p->is_again && !weir_store_is_of_past(&past, &own);
}

/* It has been published, and all who did are gone, and were started before. */
static bool is_left(const publication *p, const store_version *version)
{
    for (size_t i = 0; i < version->view.n_slots; i++) {
        if (version->pasts[i].generation >= p->worker->generation)
            return false;
    }
    for (const store_link *link = version->shards.next; link != &version->shards;
         link = link->next) {
        const store_shard *shard = WEIR_STORE_OF(store_shard, of_version, link);
        if (weir_store_is_live(shard, p->now_ms) && !shard->is_withdrawn)
            return false;
    }
    return version->n_shards != 0 || version->view.state == WEIR_STORE_READY;
}

/* Its bytes there are gone: it is as free to offer others as one that was started anew. */
static bool has_taken_back(const publication *p, const store_version *version)
{
    size_t slot = weir_store_find_slot(version, p->shard->slot);
    const store_shard *shard =
        slot < version->view.n_slots
            ? weir_store_find_shard(p->store, version, slot, p->shard->worker_id)
            : NULL;
    return shard != NULL && shard->is_withdrawn;
}

static bool is_of_other_state(const publication *p, const store_version *version)
{
    store_past past = past_of(p, version);
    uint64_t own = p->worker->generation;
    return !version->is_restored && past.generation < own && version->begun_generation < own &&
           (has_other_content(p, version) ||
            !weir_store_is_same_request(&version->view, p->request));
}

/* Up to which worker nobody is of the same start as this one: who was there when an attempt before
 * `version`, NULL: any, was begun to which its rank, before it was started anew, gave something
 * else.
 */
static uint64_t closed_before(const publication *p, const store_version *version)
{
    uint64_t closed = 0;
    for (const store_version *before = next_attempt(p, NULL); before != version;
         before = next_attempt(p, before)) {
        if (is_of_other_state(p, before) && before->begun_generation > closed)
            closed = before->begun_generation;
        if (before->closed_generation > closed)
            closed = before->closed_generation;
    }
    return closed;
}

/* What a rank is the first to offer in an attempt may be of another state than what is in it. */
static bool is_mixed_by(const publication *p, const store_version *version)
{
    uint64_t closed = past_of(p, version).content == 0 ? closed_before(p, version) : 0;
    for (size_t i = 0; closed > version->closed_generation && i < version->view.n_slots; i++) {
        uint64_t generation = version->pasts[i].generation;
        if (generation != 0 && generation <= closed)
            return true;
    }
    return false;
}

/* It was of an attempt that was ended for that: what it has goes with that one. */
static bool is_of_split(const publication *p)
{
    for (store_version *version = next_attempt(p, NULL); version != NULL;
         version = next_attempt(p, version)) {
        if (version->is_split && past_of(p, version).worker == p->mark &&
            !has_taken_back(p, version))
            return true;
    }
    return false;
}

static weir_status refuse_older(const publication *p)
{
    return weir_fail(WEIR_ERR_REFUSED,
                     "worker %.64s is not the one that was started last as its rank",
                     p->shard->worker_id);
}

static weir_status refuse_outsider(const publication *p)
{
    return weir_fail(WEIR_ERR_REFUSED,
                     "version %" PRIu64 " was begun anew by ranks that were started after worker "
                     "%.64s: start this rank anew too, or publish another number",
                     p->request->number, p->shard->worker_id);
}

/* Whether an open attempt takes this shard; *out_over: it is over by it. */
static weir_status judge(const publication *p, const store_version *version, bool *out_over)
{
    uint64_t generation = past_of(p, version).generation, own = p->worker->generation;
    bool is_anew = (generation != 0 && generation < own) || has_taken_back(p, version);
    *out_over = is_unknown_to(p, version);
    if (*out_over)
        return WEIR_OK;
    if (!weir_store_is_same_request(&version->view, p->request)) {
        *out_over = is_anew || is_left(p, version);
        return *out_over ? WEIR_OK
                         : weir_fail(WEIR_ERR_EXISTS, "idempotency_key was already used for a "
                                                      "different WeightVersion");
    }
    if (has_other_content(p, version)) {
        *out_over = is_anew;
        if (generation > own)
            return refuse_older(p);
        return is_anew ? WEIR_OK
                       : weir_fail(WEIR_ERR_EXISTS, "worker and source_slot_id already published "
                                                    "different metadata");
    }
    if (own <= version->closed_generation || is_of_split(p))
        return refuse_outsider(p);
    *out_over = is_mixed_by(p, version);
    return WEIR_OK;
}

/* The first attempt that takes it; NULL: the next one will. */
static weir_status choose_attempt(const publication *p, store_version **out,
                                  store_version **out_last)
{
    *out = *out_last = NULL;
    for (store_version *version = next_attempt(p, NULL); version != NULL && *out == NULL;
         version = next_attempt(p, version)) {
        bool is_over = false;
        *out_last = version;
        if (!is_open(version))
            continue;
        weir_status status = judge(p, version, &is_over);
        if (status != WEIR_OK)
            return status;
        if (!is_over)
            *out = version;
    }
    return WEIR_OK;
}

/* ---- what was published before the records were lost -----------------------------------------*/

static weir_status refuse_again(const publication *p, const store_version *version)
{
    bool is_aborted = version->view.state == WEIR_STORE_ABORTED;
    return weir_fail(WEIR_ERR_REFUSED,
                     "the directory was restarted, and version %" PRIu64 " went on as attempt "
                     "%" PRIu32 " without what worker %.64s had published%s%.255s",
                     p->request->number, version->view.attempt, p->shard->worker_id,
                     is_aborted ? ", which was aborted: " : "",
                     is_aborted ? version->view.reason : "");
}

/* All who are in it are of the start that this rank knows. */
static bool goes_with(const publication *p, const store_version *version)
{
    for (size_t i = 0; i < version->view.n_slots; i++) {
        store_past said = weir_store_past_in(p->request, i);
        if (version->pasts[i].generation != 0 && !weir_store_is_of_past(&said, &version->pasts[i]))
            return false;
    }
    return true;
}

/* The attempt that it was in, or one that others of its start have begun meanwhile; NULL: it is to
 * be restored. */
static weir_status choose_again(const publication *p, store_version **out, store_version **out_last)
{
    bool is_over = false;
    store_version *last = NULL, *version = next_attempt(p, NULL);
    for (; version != NULL && strcmp(version->uid, p->request->uid) != 0;
         version = next_attempt(p, version))
        last = version;
    bool is_known = version != NULL;
    version = is_known ? version : last;
    *out = NULL;
    *out_last = last;
    if (!is_known && (last == NULL || last->view.attempt < p->request->attempt))
        return WEIR_OK;
    if (!is_open(version) || !weir_store_is_same_request(&version->view, p->request) ||
        (!is_known && (version->view.attempt != p->request->attempt || !goes_with(p, version))))
        return refuse_again(p, version);
    weir_status status = judge(p, version, &is_over);
    *out = version;
    return status == WEIR_OK && is_over ? refuse_again(p, version) : status;
}

/* ---- the end of an attempt -------------------------------------------------------------------*/

static const char *publisher_of(const publication *p, const store_version *version)
{
    size_t slot = weir_store_find_slot(version, p->shard->slot);
    if (slot == version->view.n_slots || weir_store_list_is_empty(&version->slots[slot]))
        return "a worker that is gone";
    return WEIR_STORE_OF(store_shard, of_slot, version->slots[slot].prev)->view.worker_id;
}

static void say_why(const publication *p, const store_version *version,
                    char text[WEIR_STORE_MAX_TEXT + 1])
{
    const char *slot = p->shard->slot, *worker = p->shard->worker_id;
    size_t n_slots = version->view.n_slots;
    if (p->is_again)
        snprintf(text, WEIR_STORE_MAX_TEXT + 1,
                 "the directory was restarted, and ranks go on with attempt %" PRIu32,
                 p->request->attempt);
    else if (is_unknown_to(p, version) && past_of(p, version).worker == p->mark)
        snprintf(text, WEIR_STORE_MAX_TEXT + 1,
                 "the directory was restarted, and %s, %s, offers other weights than before", slot,
                 worker);
    else if (is_unknown_to(p, version))
        snprintf(text, WEIR_STORE_MAX_TEXT + 1,
                 "the directory was restarted, and %s was started anew as %s: whether its weights "
                 "are those of the others is not known",
                 slot, worker);
    else if (has_taken_back(p, version))
        snprintf(text, WEIR_STORE_MAX_TEXT + 1, "%s took it back, and offers other weights", slot);
    else if (weir_store_is_same_request(&version->view, p->request))
        snprintf(text, WEIR_STORE_MAX_TEXT + 1,
                 "%s was started anew as %s, with other weights than those of %s", slot, worker,
                 publisher_of(p, version));
    else if (past_of(p, version).generation != 0)
        snprintf(text, WEIR_STORE_MAX_TEXT + 1,
                 "%s was started anew as %s, one of %zu ranks; %s was one of %zu", slot, worker,
                 p->request->n_slots, publisher_of(p, version), n_slots);
    else
        snprintf(text, WEIR_STORE_MAX_TEXT + 1,
                 "the workers of its %zu ranks are gone, and %s, %s, is one of %zu", n_slots, slot,
                 worker, p->request->n_slots);
}

/* Nothing here can fail: without memory for it the reason is not kept. */
static void abort_attempt(const publication *p, store_version *version)
{
    char reason[WEIR_STORE_MAX_TEXT + 1];
    say_why(p, version, reason);
    version->is_split = is_unknown_to(p, version);
    weir_store_set_reason(p->store, version, reason);
    weir_store_end_version(p->store, version, WEIR_STORE_ABORTED, p->now_ms);
}

/* All that are open before the one that was published into. */
static void abort_earlier(const publication *p, const store_version *published)
{
    for (store_version *version = next_attempt(p, NULL); version != published;
         version = next_attempt(p, version)) {
        if (is_open(version))
            abort_attempt(p, version);
    }
}

/* ---- publishing ------------------------------------------------------------------------------*/

static weir_status put(const publication *p, store_version *version)
{
    return weir_store_put_shard(p->store, version, p->worker,
                                weir_store_find_slot(version, p->shard->slot), p->shard, p->now_ms);
}

static weir_status publish_anew(const publication *p, const store_version *last, uint64_t salt,
                                store_version **out)
{
    weir_store *store = p->store;
    store_model *model = p->worker->model;
    store_version *version = NULL, *over = NULL;
    uint64_t closed = p->is_again ? 0 : closed_before(p, NULL);
    if (!p->is_again && (p->worker->generation <= closed || is_of_split(p)))
        return refuse_outsider(p);
    uint64_t n_uids = store->n_uids, revision = store->revision, of_model = model->revision;
    const weir_store_events events = store->events;
    weir_store_version wanted = *p->request;
    if (!p->is_again)
        wanted.attempt = last != NULL ? last->view.attempt + 1 : 1;
    weir_status status = weir_store_begin_attempt(store, &wanted, salt, p->now_ms, &version, &over);
    if (status != WEIR_OK)
        return status;
    version->closed_generation = closed;
    status = put(p, version);
    if (status != WEIR_OK) {
        weir_store_drop_version(store, version);
        store->n_uids = n_uids;
        store->revision = revision;
        model->revision = of_model;
        store->events = events;
        return status;
    }
    if (p->is_again)
        weir_store_restore_pasts(version, p->request);
    abort_earlier(p, version);
    if (over != NULL)
        weir_store_drop_version(store, over);
    *out = version;
    return WEIR_OK;
}

/* One that the directory has not lost needs no telling. */
static bool is_known_by_uid(const publication *p, const store_version *version)
{
    return strcmp(version->uid, p->request->uid) == 0;
}

static weir_status publish_into(const publication *p, store_version *version)
{
    uint64_t closed = past_of(p, version).content == 0 ? closed_before(p, version) : 0;
    weir_status status = put(p, version);
    if (status != WEIR_OK)
        return status;
    if (closed > version->closed_generation)
        version->closed_generation = closed;
    if (p->is_again && (version->is_restored || !is_known_by_uid(p, version)))
        weir_store_restore_pasts(version, p->request);
    if (weir_store_adopt(version, p->request))
        weir_store_note_change(p->store, version->model);
    abort_earlier(p, version);
    return WEIR_OK;
}

weir_status weir_store_publish_shard(weir_store *store, const weir_store_version *request,
                                     const weir_store_shard *shard, uint64_t salt, uint64_t now_ms,
                                     const weir_store_version **out)
{
    weir_store_version wanted = *request;
    weir_store_shard offered = *shard;
    publication p = { .store = store, .request = &wanted, .shard = &offered, .now_ms = now_ms };
    wanted.uid = weir_store_text(request->uid);
    p.is_again = wanted.uid[0] != '\0';
    wanted.attempt = request->attempt != 0 ? request->attempt : 1;
    wanted.idempotency_key = offered.version_uid = "-"; /* of neither anything is read */
    offered.manifest_digest = weir_store_text(shard->manifest_digest);
    offered.manifest_endpoint = weir_store_text(shard->manifest_endpoint);
    offered.transport = weir_store_text(shard->transport);
    offered.content = weir_store_text(shard->content);
    weir_status status = check_request(&p);
    if (status != WEIR_OK)
        return status;
    store_version *version = NULL, *last = NULL;
    status = p.is_again ? choose_again(&p, &version, &last) : choose_attempt(&p, &version, &last);
    if (status != WEIR_OK)
        return status;
    status = version != NULL ? publish_into(&p, version) : publish_anew(&p, last, salt, &version);
    if (status == WEIR_OK)
        *out = &version->view;
    return status;
}
