/* SPDX-License-Identifier: Apache-2.0 */
/* publish.c - stop 4 of 9: tells the directory that this rank's shard of a version can be read.
 *
 * Takes   a SEALED slot.
 * Gives   the slot PUBLISHED; the version READY once every expected rank has come this far.
 * Before  slot.c        After  discover.c, on the replicas
 * Breaks  the directory: the slot is dropped and its manifest refused, so that a version record
 * that may be left STAGING can never be read.
 *
 * A directory of Weir's takes all of it in one message, the version is known by its number, and the
 * manifest is handed out for any version from when that is sent. One of ModelExpress is told step
 * by step: all ranks create the same version record, the idempotency key makes them meet. The
 * manifest can be had before the record says so, never the other way round.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "directory/sha256.h"
#include "refit/publish_attempt.h"
#include "refit/publish_registry.h"
#include "refit/serve.h"
#include "refit/window.h"

#define MAX_ATTEMPTS 100u
#define MAX_ABORT_REFS 16u
#define OTHER_RANKS "has begun it with another number of ranks"
#define OTHER_RANKS_MS 5000u
#define HASHED_DIGESTS 256u /* at once */

static weir_status other_ranks(const weir_trainer *trainer, uint64_t version)
{
    return weir_fail(WEIR_ERR_EXISTS,
                     "version %" PRIu64 " of %s, run %s: this is trainer rank %u of %u, but "
                     "another rank " OTHER_RANKS,
                     version, trainer->worker.model, trainer->worker.run, trainer->rank,
                     trainer->n_ranks);
}

static void set_uid(weir_trainer *trainer, weir_slot *slot, const char *uid)
{
    pthread_mutex_lock(&trainer->lock);
    memmove(slot->uid, uid, strlen(uid) + 1);
    trainer->pending = NULL;
    pthread_mutex_unlock(&trainer->lock);
}

/* ---- what is published -----------------------------------------------------------------------*/

/* The digest of the digests, block by block. */
static weir_status hash_digests(const weir_digest *digests, size_t n, char hash[WEIR_SHA256_HEX])
{
    struct {
        char before[WEIR_SHA256_HEX + 7];
        weir_digest digests[HASHED_DIGESTS];
    } block;
    for (size_t done = 0; done < n;) {
        size_t n_block = n - done < HASHED_DIGESTS ? n - done : HASHED_DIGESTS;
        memset(block.before, 0, sizeof(block.before));
        memcpy(block.before, hash, WEIR_SHA256_HEX);
        memcpy(block.digests, digests + done, n_block * sizeof(*digests));
        weir_status status =
            weir_sha256_hex(&block, sizeof(block.before) + n_block * sizeof(*digests), hash);
        if (status != WEIR_OK)
            return status;
        done += n_block;
    }
    return WEIR_OK;
}

/* Names the bytes that this rank offers, and where in the model they belong: of a rank that was
 * started anew the directory knows by it whether both are of one version. Bytes that are made when
 * they are read have no digests yet: no other worker's are known to be the same. */
static weir_status name_content(const weir_trainer *trainer, const weir_slot *slot,
                                char content[WEIR_NAME_BYTES])
{
    const weir_source *source = &trainer->source;
    char hash[WEIR_SHA256_HEX];
    if (trainer->pushes || trainer->window != NULL) {
        snprintf(content, WEIR_NAME_BYTES, "of %.200s", trainer->worker.id);
        return WEIR_OK;
    }
    weir_status status = weir_sha256_hex(source->layout.data, source->layout.n_bytes, hash);
    if (status == WEIR_OK)
        status = hash_digests(slot->digests, source->n_shards, hash);
    if (status == WEIR_OK)
        snprintf(content, WEIR_NAME_BYTES, "%s:%s", source->signature, hash);
    return status;
}

/* ---- step by step ----------------------------------------------------------------------------*/

static weir_status create_attempt(weir_trainer *trainer, uint64_t version, unsigned attempt,
                                  weir_version_record *record)
{
    char key[2 * WEIR_NAME_BYTES + 64];
    const weir_worker *worker = &trainer->worker;
    snprintf(key, sizeof(key), "weir/%s/%s/%" PRIu64 "/%u", worker->model, worker->run, version,
             attempt);
    weir_status status = weir_directory_create_version(worker->client, worker->model, version, key,
                                                       (const char *const *)trainer->slot_names,
                                                       trainer->n_ranks, record);
    if (status == WEIR_ERR_EXISTS)
        return other_ranks(trainer, version);
    return status;
}

/* A version that was READY and released is over: a trainer that was started again publishes the
 * number anew, as the next attempt. All its ranks find the same one, because a version is released
 * only after all ranks were in, or by a rank that was started anew with other bytes, whose word of
 * it the others find. */
static weir_status create_version(weir_trainer *trainer, weir_slot *slot, weir_attempt *attempt)
{
    weir_version_record record;
    for (attempt->number = 1; attempt->number <= MAX_ATTEMPTS; attempt->number++) {
        weir_status status = create_attempt(trainer, slot->version, attempt->number, &record);
        if (status == WEIR_OK)
            status = record.state == WEIR_VERSION_RELEASING
                         ? WEIR_IN_PROGRESS
                         : weir_publish_look(trainer, &record, attempt);
        if (status == WEIR_OK)
            set_uid(trainer, slot, record.uid);
        if (status != WEIR_IN_PROGRESS)
            return status;
    }
    return weir_fail(WEIR_ERR_EXISTS,
                     "version %" PRIu64 " of %s, run %s: all %u attempts at it are over",
                     slot->version, trainer->worker.model, trainer->worker.run, MAX_ATTEMPTS);
}

static const char *transport_of(const weir_trainer *trainer, const weir_slot *slot)
{
    if (trainer->pushes)
        return weir_outlet_transport(trainer->push->outlet);
    return trainer->casts ? weir_cast_transport(trainer->window->cast)
                          : slot->region->transport->ops->name;
}

static weir_shard_record describe_shard(const weir_trainer *trainer, const weir_slot *slot)
{
    weir_shard_record shard = { .n_tensors = trainer->source.n_shards,
                                .n_bytes = trainer->source.n_bytes };
    snprintf(shard.version_uid, sizeof(shard.version_uid), "%s", slot->uid);
    snprintf(shard.slot, sizeof(shard.slot), "%s", trainer->slot_name);
    snprintf(shard.worker_id, sizeof(shard.worker_id), "%s", trainer->worker.id);
    snprintf(shard.manifest_digest, sizeof(shard.manifest_digest), "%s", slot->manifest_digest);
    snprintf(shard.manifest_endpoint, sizeof(shard.manifest_endpoint), "%s",
             weir_manifest_service_address(trainer->service));
    snprintf(shard.transport, sizeof(shard.transport), "%s", transport_of(trainer, slot));
    return shard;
}

static weir_source_record describe_entry(const weir_trainer *trainer, const weir_slot *slot)
{
    weir_source_record record = weir_worker_entry(&trainer->worker, slot->version, slot->uid,
                                                  weir_manifest_service_address(trainer->service));
    record.rank = trainer->rank;
    record.n_ranks = trainer->n_ranks;
    snprintf(record.layout_signature, sizeof(record.layout_signature), "%s",
             trainer->source.signature);
    return record;
}

/* Last, because replicas look here first: who finds the entry finds the shard too. */
static weir_status announce(weir_trainer *trainer, const weir_slot *slot)
{
    weir_source_record record = describe_entry(trainer, slot);
    weir_attempt_write(&trainer->attempt, record.note, sizeof(record.note));
    weir_keeper_pause(trainer->worker.keeper);
    weir_publish_registry(trainer, &record);
    weir_status status =
        weir_directory_publish_source(trainer->worker.client, &record, trainer->source_id);
    if (status == WEIR_OK)
        weir_keeper_announce(trainer->worker.keeper, &record, false);
    weir_keeper_resume(trainer->worker.keeper);
    return status;
}

/* What ended an attempt before stays said, also where this call has ended it and then failed. */
static weir_status begin_attempt(weir_trainer *trainer, weir_slot *slot)
{
    char content[WEIR_NAME_BYTES], hash[WEIR_SHA256_HEX];
    weir_attempt attempt = trainer->attempt;
    weir_status status = name_content(trainer, slot, content);
    if (status == WEIR_OK)
        status = weir_sha256_hex(content, strlen(content), hash);
    if (status != WEIR_OK)
        return status;
    snprintf(attempt.content, sizeof(attempt.content), "%.32s", hash);
    status = create_version(trainer, slot, &attempt);
    trainer->attempt = attempt;
    return status;
}

static weir_status publish_in_steps(weir_trainer *trainer, weir_slot *slot)
{
    weir_version_record record;
    weir_status status = begin_attempt(trainer, slot);
    if (status == WEIR_OK && trainer->window != NULL)
        weir_window_offer(trainer, slot);
    weir_shard_record shard = describe_shard(trainer, slot);
    if (status == WEIR_OK)
        status = weir_directory_create_shard(trainer->worker.client, &shard, &record);
    if (status == WEIR_OK)
        slot->is_ready = record.state == WEIR_VERSION_READY;
    return status == WEIR_OK ? announce(trainer, slot) : status;
}

/* ---- at once ---------------------------------------------------------------------------------*/

/* The entry is sent whole when it has changed but for its version, or the directory has forgotten
 * it. */
static weir_status send_publication(weir_trainer *trainer, weir_slot *slot,
                                    weir_source_record *record, weir_publish_answer *answer)
{
    weir_shard_record shard = describe_shard(trainer, slot);
    weir_stop_span spans[WEIR_MAX_SPANS];
    char content[WEIR_NAME_BYTES];
    weir_status status = name_content(trainer, slot, content);
    if (status != WEIR_OK)
        return status;
    weir_publish_request request = {
        .shard = &shard,
        .source = record,
        .source_is_known = strcmp(trainer->announced, trainer->source.signature) == 0,
        .slots = (const char *const *)trainer->slot_names,
        .n_slots = trainer->n_ranks,
        .trace_id = trainer->worker.trace_id,
        .content = content,
        .spans = spans,
        .n_spans = weir_worker_spans(&trainer->worker, spans),
    };
    weir_directory_client *client = trainer->worker.client;
    status = weir_directory_publish_version_shard(client, &request, answer);
    if (status == WEIR_ERR_NOT_FOUND && request.source_is_known) {
        request.source_is_known = false;
        weir_keeper_forgotten(trainer->worker.keeper);
        status = weir_directory_publish_version_shard(client, &request, answer);
    }
    snprintf(trainer->announced, sizeof(trainer->announced), "%s",
             status == WEIR_OK ? trainer->source.signature : "");
    if (status == WEIR_OK)
        weir_keeper_published(trainer->worker.keeper, &request, answer);
    return status;
}

/* Readers may come before the answer that says which version it is. */
static weir_status publish_at_once(weir_trainer *trainer, weir_slot *slot)
{
    weir_publish_answer answer;
    weir_source_record record = describe_entry(trainer, slot);
    pthread_mutex_lock(&trainer->lock);
    trainer->pending = slot;
    pthread_mutex_unlock(&trainer->lock);
    weir_keeper_pause(trainer->worker.keeper);
    weir_publish_registry(trainer, &record);
    weir_status status = send_publication(trainer, slot, &record, &answer);
    set_uid(trainer, slot, status == WEIR_OK ? answer.version.uid : "");
    if (status == WEIR_OK) {
        memcpy(trainer->source_id, answer.source_id, sizeof(trainer->source_id));
        weir_worker_is_about(&trainer->worker, slot->version, answer.trace_id);
        memcpy(record.version_uid, answer.version.uid, sizeof(record.version_uid));
        slot->is_ready = answer.version.state == WEIR_VERSION_READY;
        weir_keeper_announce(trainer->worker.keeper, &record, false);
    }
    weir_keeper_resume(trainer->worker.keeper);
    bool is_shard = strstr(weir_last_error(), "already published different metadata") != NULL;
    if (status == WEIR_ERR_EXISTS && !is_shard)
        return other_ranks(trainer, slot->version);
    if (status == WEIR_OK && trainer->window != NULL)
        weir_window_offer(trainer, slot);
    return status;
}

/* All ranks of a trainer that is started anew with another number of ranks come at about the same
 * time, and the first of them whose number was there before ends what the old ones had begun. */
static bool may_end_soon(weir_status status, weir_deadline until)
{
    return status == WEIR_ERR_EXISTS && !weir_deadline_passed(until) &&
           strstr(weir_last_error(), OTHER_RANKS) != NULL;
}

static weir_status publish(weir_trainer *trainer, weir_slot *slot)
{
    weir_worker *worker = &trainer->worker;
    weir_retry retry = { .deadline = weir_deadline_in(worker->timeout_ms) };
    unsigned others_ms = worker->timeout_ms < OTHER_RANKS_MS ? worker->timeout_ms : OTHER_RANKS_MS;
    weir_deadline others = weir_deadline_in(others_ms);
    weir_patience patience = { 0 };
    for (;;) {
        weir_status status = publish_at_once(trainer, slot);
        if (status == WEIR_ERR_UNSUPPORTED && weir_directory_is_plain(worker->client))
            status = publish_in_steps(trainer, slot);
        if (may_end_soon(status, others))
            status = weir_worker_pause(worker, &patience);
        else if (status != WEIR_OK)
            status = weir_worker_retry(worker, &retry, status);
        else
            return WEIR_OK;
        if (status != WEIR_OK)
            return status;
    }
}

weir_status weir_stop_publish(weir_trainer *trainer, weir_slot *slot)
{
    weir_status status = publish(trainer, slot);
    if (status != WEIR_OK) {
        weir_window_withdraw(trainer, weir_last_error());
        return status;
    }
    slot->state = WEIR_SLOT_PUBLISHED;
    weir_push_version pushed = { slot->version, slot->uid, trainer->keep_masters };
    if (trainer->pushes)
        weir_members_announce(trainer->push, &pushed);
    return WEIR_OK;
}

/* ---- a version that will never be READY ------------------------------------------------------*/

/* For a directory that has no such state. */
static weir_status note_abort(weir_trainer *trainer, uint64_t version, const char *uid,
                              const char *reason)
{
    weir_source_record record = weir_worker_entry(&trainer->worker, version, uid,
                                                  weir_manifest_service_address(trainer->service));
    record.rank = trainer->rank;
    record.n_ranks = trainer->n_ranks;
    snprintf(record.note, sizeof(record.note), WEIR_ABORTED_NOTE "%s", reason);
    weir_keeper_pause(trainer->worker.keeper);
    weir_status status =
        weir_directory_publish_source(trainer->worker.client, &record, trainer->source_id);
    if (status == WEIR_OK)
        weir_keeper_announce(trainer->worker.keeper, &record, false);
    weir_keeper_resume(trainer->worker.keeper);
    trainer->announced[0] = '\0';
    return status;
}

static weir_status abort_version(weir_trainer *trainer, uint64_t version, const char *uid,
                                 const char *reason)
{
    weir_directory_client *client = trainer->worker.client;
    weir_status status = weir_directory_abort_version(client, uid, trainer->worker.id, reason);
    return status == WEIR_ERR_UNSUPPORTED && weir_directory_is_plain(client)
               ? note_abort(trainer, version, uid, reason)
               : status;
}

void weir_publish_abort(weir_trainer *trainer, uint64_t version, const char *uid,
                        const char *reason)
{
    weir_error_line cause;
    char text[WEIR_NAME_BYTES];
    weir_error_save(&cause);
    bool says_who = strncmp(reason, "trainer rank ", 13) == 0;
    if (says_who)
        snprintf(text, sizeof(text), "%s", reason);
    else
        snprintf(text, sizeof(text), "trainer rank %u: %s", trainer->rank, reason);
    weir_status status = abort_version(trainer, version, uid, text);
    if (status != WEIR_OK)
        weir_log(WEIR_LOG_WARN, "version %" PRIu64 " cannot be aborted: %s", version,
                 weir_last_error());
    weir_error_restore(&cause);
}

/* Nothing is left to abort of a version that is not there, or RELEASING. */
weir_status weir_publish_take_back(weir_trainer *trainer, const weir_slot *slot, const char *reason,
                                   weir_deadline deadline)
{
    weir_retry retry = { .deadline = deadline };
    weir_version_record record;
    for (;;) {
        weir_status status = abort_version(trainer, slot->version, slot->uid, reason);
        if (status == WEIR_OK || status == WEIR_ERR_NOT_FOUND)
            return WEIR_OK;
        if (status == WEIR_ERR_REFUSED &&
            weir_directory_get_version(trainer->worker.client, slot->uid, &record) == WEIR_OK &&
            record.state == WEIR_VERSION_RELEASING)
            return WEIR_OK;
        status = weir_worker_retry(&trainer->worker, &retry, status);
        if (status != WEIR_OK)
            return status;
    }
}

/* Another rank that has published it knows its uid. */
static bool find_uid(weir_trainer *trainer, uint64_t version, char uid[WEIR_ID_BYTES])
{
    weir_source_ref refs[MAX_ABORT_REFS];
    size_t n = 0;
    weir_directory_client *client = trainer->worker.client;
    const weir_source_wish wish = { trainer->worker.model, trainer->worker.run, "trainer",
                                    WEIR_SOURCE_READY, version };
    if (weir_directory_list_role(client, &wish, refs, MAX_ABORT_REFS, &n) != WEIR_OK)
        return false;
    for (size_t i = 0; i < n; i++) {
        weir_source_record record;
        if ((refs[i].has_version && refs[i].version != version) ||
            weir_directory_get_source(client, refs[i].source_id, refs[i].worker_id, &record) !=
                WEIR_OK ||
            record.version != version || record.version_uid[0] == '\0')
            continue;
        memcpy(uid, record.version_uid, sizeof(record.version_uid));
        return true;
    }
    return false;
}

void weir_publish_give_up(weir_trainer *trainer, uint64_t version)
{
    char uid[WEIR_ID_BYTES];
    weir_error_line cause;
    weir_error_save(&cause);
    if (find_uid(trainer, version, uid))
        weir_publish_abort(trainer, version, uid, cause.text);
    weir_error_restore(&cause);
}
