/* SPDX-License-Identifier: Apache-2.0 */
/* publish_attempt.c - a rank that was started anew looks what is there before it publishes.
 *
 * Shards of other bytes than the ones that other ranks published beside must not get into their
 * version. Nothing is asked that a rank which runs on has no need to know: one listing of shards.
 */
#include "refit/publish_attempt.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"

typedef struct look {
    weir_trainer *trainer;
    const char *uid, *content;
    weir_shard_record *shards; /* of the attempt */
    size_t n_shards, max_shards;
    const weir_shard_record *other; /* of this rank's slot, by another worker; NULL: none */
    bool is_same;                   /* and it is of the same bytes */
    bool is_other;                  /* of other bytes */
    bool is_over;                   /* as another rank says */
} look;

static bool is_foreign(const look *l, const weir_shard_record *shard)
{
    return strcmp(shard->slot, l->trainer->slot_name) == 0 &&
           strcmp(shard->worker_id, l->trainer->worker.id) != 0;
}

/* More than there is room for: what could not be looked at counts as another's. */
static weir_status list_shards(look *l)
{
    weir_trainer *trainer = l->trainer;
    l->max_shards = 4 * (size_t)trainer->n_ranks + 16;
    l->shards = weir_arena_alloc(&trainer->scratch, l->max_shards * sizeof(*l->shards));
    if (l->shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_directory_list_shards(trainer->worker.client, l->uid, l->shards,
                                                    l->max_shards, &l->n_shards);
    if (status != WEIR_OK)
        return status;
    if (l->n_shards > l->max_shards)
        l->n_shards = l->max_shards;
    for (size_t i = 0; i < l->n_shards; i++) {
        if (is_foreign(l, &l->shards[i]))
            l->other = &l->shards[i];
    }
    return WEIR_OK;
}

/* Only of ranks that were started more than once there is anything to hear. */
static bool is_worth_asking(const look *l, const weir_rank_entries *entries, size_t i)
{
    const weir_source_ref *ref = &entries->refs[i];
    if (strcmp(ref->worker_id, l->trainer->worker.id) == 0)
        return false;
    if (ref->rank == l->trainer->rank)
        return true;
    for (size_t j = 0; j < entries->n; j++) {
        if (j != i && entries->refs[j].rank == ref->rank)
            return true;
    }
    return false;
}

static weir_status list_entries(look *l, weir_rank_entries *entries)
{
    weir_trainer *trainer = l->trainer;
    bool *asked;
    weir_source_ref *refs =
        weir_arena_alloc(&trainer->scratch, l->max_shards * (sizeof(*refs) + sizeof(*asked)));
    if (refs == NULL)
        return WEIR_ERR_NO_MEMORY;
    asked = (bool *)(refs + l->max_shards);
    weir_status status =
        weir_rank_entries_list(&trainer->worker, WEIR_SOURCE_UNKNOWN, refs, l->max_shards, entries);
    if (status != WEIR_OK)
        return status;
    size_t n = 0;
    for (size_t i = 0; i < entries->n; i++)
        asked[i] = is_worth_asking(l, entries, i);
    for (size_t i = 0; i < entries->n; i++) {
        if (asked[i])
            refs[n++] = refs[i];
    }
    entries->n = n;
    return WEIR_OK;
}

static void hear(look *l, const weir_source_record *record)
{
    weir_attempt said;
    bool is_of_it = strcmp(record->version_uid, l->uid) == 0;
    bool was_aborted = strncmp(record->note, WEIR_ABORTED_NOTE, strlen(WEIR_ABORTED_NOTE)) == 0;
    bool says = weir_attempt_read(record->note, &said);
    l->is_over |= (is_of_it && was_aborted) || (says && strcmp(said.ended_uid, l->uid) == 0);
    for (size_t i = 0; i < l->n_shards && says && is_of_it; i++) {
        const weir_shard_record *shard = &l->shards[i];
        if (!is_foreign(l, shard) || strcmp(shard->worker_id, record->worker_id) != 0)
            continue;
        bool is_same = strcmp(said.content, l->content) == 0;
        l->is_same |= is_same;
        l->is_other |= !is_same;
        if (!is_same)
            l->other = shard;
    }
}

static weir_status hear_ranks(look *l)
{
    weir_rank_entries entries;
    weir_source_record record;
    weir_status status = list_entries(l, &entries);
    while (status == WEIR_OK) {
        status = weir_rank_entries_next(&entries, &record);
        if (status == WEIR_OK)
            hear(l, &record);
    }
    return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
}

/* Nobody begins to read it from here on, whoever asks. One that is not READY cannot be released:
 * the word in this rank's entry is all that there is of it. */
static void end_attempt(const look *l, const weir_version_record *version, weir_attempt *attempt)
{
    const weir_trainer *trainer = l->trainer;
    weir_error_line line;
    memcpy(attempt->ended_uid, version->uid, sizeof(attempt->ended_uid));
    snprintf(attempt->reason, sizeof(attempt->reason),
             "%s was started anew as %.72s, with %s those of %.72s", trainer->slot_name,
             trainer->worker.id,
             l->is_other ? "other weights than" : "weights that are not known to be",
             l->other->worker_id);
    weir_log(WEIR_LOG_WARN, "an attempt at version %llu ends: %s",
             (unsigned long long)version->number, attempt->reason);
    weir_error_save(&line);
    if (version->state == WEIR_VERSION_READY &&
        weir_directory_delete_version(trainer->worker.client, version->uid) != WEIR_OK)
        weir_log(WEIR_LOG_WARN, "it cannot be taken back: %s", weir_last_error());
    weir_error_restore(&line);
}

weir_status weir_publish_look(weir_trainer *trainer, const weir_version_record *version,
                              weir_attempt *attempt)
{
    look l = { .trainer = trainer, .uid = version->uid, .content = attempt->content };
    weir_status status = list_shards(&l);
    if (status != WEIR_OK)
        return status;
    if (l.other == NULL && (trainer->has_published || l.n_shards == 0))
        return WEIR_OK;
    status = hear_ranks(&l);
    if (status != WEIR_OK)
        return status;
    if (l.is_over)
        return WEIR_IN_PROGRESS;
    if (l.other == NULL || (l.is_same && !l.is_other))
        return WEIR_OK;
    end_attempt(&l, version, attempt);
    return WEIR_IN_PROGRESS;
}
