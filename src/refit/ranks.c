/* SPDX-License-Identifier: Apache-2.0 */
/* ranks.c - looking ranks up, asking them again a little later each time, and saying who is
 * missing. */
#include "refit/ranks.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

#define LOOK_UP_EVERY_MS 200u
#define MAX_REFS 4096u
#define MAX_NAMED 8u /* ranks, in one line */

weir_status weir_ranks_announce(weir_trainer *trainer)
{
    if (trainer->source_id[0] != '\0')
        return WEIR_OK;
    weir_source_record record =
        weir_worker_entry(&trainer->worker, 0, "", weir_manifest_service_address(trainer->service));
    record.status = WEIR_SOURCE_INITIALIZING;
    record.rank = trainer->rank;
    record.n_ranks = trainer->n_ranks;
    weir_keeper_pause(trainer->worker.keeper);
    weir_status status =
        weir_directory_publish_source(trainer->worker.client, &record, trainer->source_id);
    if (status == WEIR_OK)
        weir_keeper_announce(trainer->worker.keeper, &record, false);
    weir_keeper_resume(trainer->worker.keeper);
    return status;
}

/* ---- the directory ---------------------------------------------------------------------------*/

/* Notes the newest entry of each rank. All ranks of a run have one source id: theirs is this
 * rank's own. */
static void note_entries(const weir_rank_search *search, const weir_source_ref *refs, size_t n_refs)
{
    for (size_t r = 0; r < n_refs; r++) {
        if (strcmp(refs[r].source_id, search->trainer->source_id) != 0)
            continue;
        for (size_t i = 0; i < search->n_ranks; i++) {
            weir_known_rank *known = &search->ranks[i];
            if (known->rank != refs[r].rank)
                continue;
            if (known->entry == NULL || refs[r].updated_at_ms > known->entry->updated_at_ms)
                known->entry = &refs[r];
        }
    }
}

/* Takes the worker that the entry names, when it is another than before. */
static weir_status follow_entry(const weir_rank_search *search, weir_known_rank *known)
{
    weir_source_record record;
    if (strcmp(known->worker_id, known->entry->worker_id) == 0)
        return WEIR_OK;
    weir_status status = weir_directory_get_source(
        search->trainer->worker.client, known->entry->source_id, known->entry->worker_id, &record);
    if (status == WEIR_ERR_NOT_FOUND)
        return WEIR_OK; /* gone since it was listed */
    if (status != WEIR_OK)
        return status;
    memcpy(known->worker_id, record.worker_id, sizeof(known->worker_id));
    memcpy(known->endpoint, record.endpoint, sizeof(known->endpoint));
    snprintf(known->who, sizeof(known->who), "trainer rank %u (worker %s)", known->rank,
             record.worker_id);
    return WEIR_OK;
}

/* Those who have published are READY, those who have not are INITIALIZING. */
static weir_status look_up(const weir_rank_search *search)
{
    static const weir_source_status statuses[] = { WEIR_SOURCE_INITIALIZING, WEIR_SOURCE_READY };
    weir_trainer *trainer = search->trainer;
    weir_worker *worker = &trainer->worker;
    weir_source_ref *refs = trainer->rank_refs;
    if (refs == NULL) /* kept, so that who waits in a later version allocates nothing */
        refs = trainer->rank_refs = weir_alloc(2 * MAX_REFS * sizeof(*refs));
    weir_status status = refs != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < search->n_ranks; i++)
        search->ranks[i].entry = NULL;
    for (size_t s = 0; s < 2 && status == WEIR_OK; s++) {
        size_t n = 0;
        status = weir_directory_list_sources(worker->client, worker->model, statuses[s], 0,
                                             refs + s * MAX_REFS, MAX_REFS, &n);
        if (status == WEIR_OK)
            note_entries(search, refs + s * MAX_REFS, n < MAX_REFS ? n : MAX_REFS);
    }
    for (size_t i = 0; i < search->n_ranks && status == WEIR_OK; i++) {
        if (!search->ranks[i].done && search->ranks[i].entry != NULL)
            status = follow_entry(search, &search->ranks[i]);
    }
    return status;
}

/* ---- asking ----------------------------------------------------------------------------------*/

static weir_status ask(const weir_rank_search *search, size_t i)
{
    weir_known_rank *known = &search->ranks[i];
    snprintf(known->slot, sizeof(known->slot), "rank-%u", known->rank);
    snprintf(known->found, sizeof(known->found), "it has not announced itself");
    known->waits = false;
    if (known->worker_id[0] == '\0')
        return WEIR_IN_PROGRESS;
    weir_status status = search->ask(search->context, i);
    if (status != WEIR_ERR_PEER_LOST && status != WEIR_ERR_TIMED_OUT)
        return status;
    snprintf(known->found, sizeof(known->found), "worker %.200s does not answer at %.200s",
             known->worker_id, known->endpoint);
    return WEIR_IN_PROGRESS;
}

static weir_status ask_all(const weir_rank_search *search)
{
    for (size_t i = 0; i < search->n_ranks; i++) {
        weir_status status = search->ranks[i].done ? WEIR_OK : ask(search, i);
        if (status < WEIR_OK)
            return status;
    }
    for (size_t i = 0; i < search->n_ranks; i++) {
        if (!search->ranks[i].done)
            return WEIR_IN_PROGRESS;
    }
    return WEIR_OK;
}

/* "; rank 3, rank 5 are missing too". */
static void name_others(const weir_rank_search *search, size_t first, char *text, size_t text_bytes)
{
    size_t used = 0, n = 0;
    text[0] = '\0';
    for (size_t i = 0; i < search->n_ranks; i++) {
        if (i == first || search->ranks[i].done || search->ranks[i].waits)
            continue;
        if (n++ < MAX_NAMED)
            used += (size_t)snprintf(text + used, text_bytes - used, "%srank %u",
                                     used ? ", " : "; ", search->ranks[i].rank);
    }
    if (n > MAX_NAMED)
        used += (size_t)snprintf(text + used, text_bytes - used, " and %zu more", n - MAX_NAMED);
    if (n > 0)
        snprintf(text + used, text_bytes - used, " %s missing too", n > 1 ? "are" : "is");
}

static weir_status time_out(const weir_rank_search *search)
{
    char others[MAX_NAMED * 24 + 64];
    size_t first = 0;
    while (search->ranks[first].done)
        first++;
    for (size_t i = first; search->ranks[first].waits && i < search->n_ranks; i++) {
        if (!search->ranks[i].done && !search->ranks[i].waits)
            first = i;
    }
    name_others(search, first, others, sizeof(others));
    const weir_known_rank *known = &search->ranks[first];
    return weir_fail(WEIR_ERR_TIMED_OUT, "waited %.1f s for %s from rank %u: %s%s",
                     search->trainer->worker.timeout_ms / 1e3, search->wanted, known->rank,
                     known->found, others);
}

weir_status weir_ranks_search(const weir_rank_search *search)
{
    weir_worker *worker = &search->trainer->worker;
    weir_deadline deadline = weir_deadline_in(worker->timeout_ms);
    weir_deadline look_up_at = weir_deadline_in(0);
    for (weir_patience patience = { 0 };;) {
        weir_status status = ask_all(search);
        if (status != WEIR_IN_PROGRESS)
            return status;
        if (weir_deadline_passed(deadline))
            return time_out(search);
        if (weir_deadline_passed(look_up_at)) {
            status = look_up(search);
            look_up_at = weir_deadline_in(LOOK_UP_EVERY_MS);
        } else {
            status = weir_worker_pause(worker, &patience);
        }
        if (status < WEIR_OK)
            return status;
    }
}
