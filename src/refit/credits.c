/* SPDX-License-Identifier: Apache-2.0 */
/* credits.c - the table of a window's readers. */
#include "refit/credits.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

/* Who waits for a round asks many times a second. */
#define SEEN_NS ((uint64_t)2000000000)
#define ANEW "it was started anew"

weir_status weir_credits_open(weir_credits *credits, uint32_t n_groups, uint32_t n_workers,
                              uint32_t n_buffers, const unsigned char *reads)
{
    credits->n_groups = n_groups;
    credits->n_workers = n_workers;
    credits->n_buffers = n_buffers;
    credits->reads = reads;
    credits->counts = weir_alloc_zeroed(n_workers, sizeof(*credits->counts));
    return credits->counts != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

void weir_credits_close(weir_credits *credits)
{
    weir_free(credits->counts);
    weir_free(credits->readers);
    credits->counts = NULL;
    credits->readers = NULL;
    credits->n_readers = credits->readers_room = 0;
}

/* ---- rounds ----------------------------------------------------------------------------------*/

void weir_credits_reset(weir_credits *credits)
{
    credits->n_readers = 0;
    credits->sending = credits->sent = credits->withdrawn = false;
    credits->oldest = credits->made = 0;
    credits->why[0] = credits->undone[0] = '\0';
}

static bool is_there(const weir_credits *credits, const weir_reader *reader, uint64_t now_ns)
{
    bool holds = reader->next == credits->n_groups;
    return !reader->left && (holds || now_ns - reader->seen_ns < SEEN_NS);
}

/* Per worker, into credits->counts. */
static void count_there(const weir_credits *credits, uint64_t now_ns)
{
    memset(credits->counts, 0, credits->n_workers * sizeof(*credits->counts));
    for (size_t i = 0; i < credits->n_readers; i++)
        credits->counts[credits->readers[i].worker] +=
            is_there(credits, &credits->readers[i], now_ns);
}

static bool reads_group(const weir_credits *credits, uint32_t group, uint32_t worker)
{
    return credits->reads[(size_t)group * credits->n_workers + worker] != 0;
}

/* Who holds the version already is sent nothing. */
static void begin_reader(const weir_credits *credits, weir_reader *reader)
{
    reader->began = reader->joined = false;
    reader->member = credits->casts && !reader->left && reader->next < credits->n_groups &&
                     reads_group(credits, credits->n_groups, reader->worker);
}

void weir_credits_begin(weir_credits *credits, unsigned n_replicas, uint64_t now_ns)
{
    size_t kept = 0;
    for (size_t i = 0; i < credits->n_readers; i++) {
        weir_reader *reader = &credits->readers[i];
        if (!reader->left && !is_there(credits, reader, now_ns))
            continue;
        if (kept != i)
            credits->readers[kept] = *reader;
        begin_reader(credits, &credits->readers[kept++]);
    }
    credits->n_readers = kept;
    credits->round++;
    credits->n_replicas = n_replicas;
    credits->sending = true;
    credits->sent = false;
    credits->oldest = credits->made = 0;
    credits->why[0] = credits->undone[0] = '\0';
}

void weir_credits_fill(weir_credits *credits, uint32_t group)
{
    if (group >= credits->n_buffers)
        credits->oldest = group - credits->n_buffers + 1;
}

void weir_credits_made(weir_credits *credits)
{
    credits->made++;
}

/* Those who are told that it failed come again, or do not: until then they are not there. */
void weir_credits_end(weir_credits *credits, const char *why)
{
    for (size_t i = 0; i < credits->n_readers && why != NULL; i++)
        credits->readers[i].seen_ns = 0;
    credits->sending = false;
    credits->sent = why == NULL;
    snprintf(credits->why, sizeof(credits->why), "%s", why != NULL ? why : "");
}

void weir_credits_withdraw(weir_credits *credits, const char *why)
{
    if (!credits->sent)
        weir_credits_end(credits, why);
    credits->withdrawn = true;
}

/* ---- what readers say ------------------------------------------------------------------------*/

static weir_reader *find_reader(const weir_credits *credits, const char *id)
{
    for (size_t i = 0; i < credits->n_readers; i++) {
        if (strcmp(credits->readers[i].id, id) == 0)
            return &credits->readers[i];
    }
    return NULL;
}

static void say_why(weir_reader *reader, const char *why)
{
    snprintf(reader->why, sizeof(reader->why), "%s", why);
    weir_error_one_line(reader->why);
}

static void drop_out(weir_reader *reader, const char *why)
{
    reader->left = true;
    say_why(reader, why);
}

/* A reader that had all of it has failed with it, or was started anew. Of groups that are read,
 * another one may take its place in a round that is under way. */
static void note_undone(weir_credits *credits, weir_reader *reader, const char *why)
{
    bool counts = credits->sent || (credits->casts && credits->sending);
    if (!counts || reader->left || reader->next != credits->n_groups)
        return;
    memcpy(credits->undone, reader->id, sizeof(reader->id));
    say_why(reader, why);
}

/* Worker ids are a name and eight digits, new with each start. 0: this is none. */
static size_t name_bytes(const char *id)
{
    const char *digits = strrchr(id, '-');
    bool is_worker =
        digits != NULL && strlen(digits) == 9 && strspn(digits + 1, "0123456789abcdef") == 8;
    return is_worker ? (size_t)(digits - id) : 0;
}

/* Who comes under the name of another reader of the same worker stands in its place. */
static void supersede(weir_credits *credits, const weir_group_ask *ask)
{
    size_t n_name = name_bytes(ask->reader);
    for (size_t i = 0; i < credits->n_readers && n_name > 0; i++) {
        weir_reader *reader = &credits->readers[i];
        if (reader->left || reader->worker != ask->worker || name_bytes(reader->id) != n_name ||
            strncmp(reader->id, ask->reader, n_name) != 0)
            continue;
        note_undone(credits, reader, ANEW);
        drop_out(reader, ANEW);
    }
}

static weir_status add_reader(weir_credits *credits, const weir_group_ask *ask, weir_reader **out)
{
    if (credits->n_readers == WEIR_MAX_READERS)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "more than %d readers", WEIR_MAX_READERS);
    if (credits->n_readers == credits->readers_room) {
        size_t room = credits->readers_room * 2 + 16;
        weir_reader *grown = weir_realloc(credits->readers, room * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        credits->readers = grown;
        credits->readers_room = room;
    }
    *out = &credits->readers[credits->n_readers++];
    **out = (weir_reader){ .first = ask->group };
    snprintf((*out)->id, sizeof((*out)->id), "%s", ask->reader);
    return WEIR_OK;
}

static weir_status check_ask(const weir_credits *credits, const weir_group_ask *ask)
{
    size_t n = strlen(ask->reader);
    if (n == 0 || n >= WEIR_NAME_BYTES)
        return weir_fail(WEIR_ERR_INVALID, "a reader with a name of %zu bytes", n);
    if (ask->worker >= credits->n_workers)
        return weir_fail(WEIR_ERR_INVALID, "reader %s says that it is worker %u of an engine of %u",
                         ask->reader, ask->worker, credits->n_workers);
    if (ask->group > credits->n_groups)
        return weir_fail(WEIR_ERR_INVALID, "reader %s asks for group %u of %u", ask->reader,
                         ask->group, credits->n_groups);
    return WEIR_OK;
}

static void leave(weir_credits *credits, const weir_group_ask *ask)
{
    weir_reader *reader = find_reader(credits, ask->reader);
    if (reader == NULL)
        return;
    note_undone(credits, reader, ask->gave_up);
    drop_out(reader, ask->gave_up);
}

static bool in_round(const weir_credits *credits, const weir_reader *reader)
{
    return credits->casts && credits->sending && reader->member;
}

/* Of a round under way whose groups are broadcast. */
static weir_group_state state_of_cast(const weir_credits *credits, const weir_group_ask *ask)
{
    const weir_reader *reader = find_reader(credits, ask->reader);
    if (reader == NULL || !reader->member) /* for a round after this one */
        return ask->round != 0 ? WEIR_GROUP_OFF : WEIR_GROUP_WAIT;
    if (reader->left) /* it may come for the next one */
        return ask->round != 0 ? WEIR_GROUP_OFF : WEIR_GROUP_WAIT;
    if (ask->round == 0) /* first it has to hear where it stands */
        return WEIR_GROUP_WAIT;
    return ask->group < credits->made || ask->group == credits->n_groups ? WEIR_GROUP_READY
                                                                         : WEIR_GROUP_WAIT;
}

static weir_group_state state_of(const weir_credits *credits, const weir_group_ask *ask)
{
    if (ask->round != 0 && ask->round != credits->round)
        return WEIR_GROUP_OFF;
    if (credits->withdrawn)
        return ask->round != 0 ? WEIR_GROUP_OFF : WEIR_GROUP_GONE;
    if (!credits->sending && !credits->sent)
        return ask->round != 0 ? WEIR_GROUP_OFF : WEIR_GROUP_WAIT;
    if (credits->casts && credits->sending)
        return state_of_cast(credits, ask);
    if (credits->sent && ask->round == 0) /* another round may follow, until all hold it */
        return WEIR_GROUP_WAIT;
    if (ask->group < credits->oldest)
        return WEIR_GROUP_GONE;
    return ask->group < credits->made || ask->group == credits->n_groups ? WEIR_GROUP_READY
                                                                         : WEIR_GROUP_WAIT;
}

/* It was in the round that has failed, and does not know: a round of another rank may wait for it.
 */
static bool has_missed_round(const weir_credits *credits, const weir_reader *reader)
{
    bool is_between = credits->casts && !credits->sending && !credits->sent && !credits->withdrawn;
    return is_between && reader->member && !reader->began && !reader->left;
}

weir_status weir_credits_ask(weir_credits *credits, const weir_group_ask *ask, uint64_t now_ns,
                             weir_group_state *out)
{
    weir_status status = check_ask(credits, ask);
    if (status != WEIR_OK)
        return status;
    *out = WEIR_GROUP_OFF;
    if (ask->gave_up != NULL && ask->gave_up[0] != '\0') {
        leave(credits, ask);
        return WEIR_OK;
    }
    weir_reader *reader = find_reader(credits, ask->reader);
    if (reader == NULL)
        supersede(credits, ask);
    else if (in_round(credits, reader) && reader->began && ask->round == 0)
        drop_out(reader, "it has begun anew in the midst of the round");
    else if (ask->round == 0)
        note_undone(credits, reader, "it had all of it, and comes for it again");
    if (reader != NULL && ask->round == 0 && has_missed_round(credits, reader)) {
        reader->member = false;
        return WEIR_OK;
    }
    *out = state_of(credits, ask);
    if (*out == WEIR_GROUP_GONE || *out == WEIR_GROUP_OFF ||
        (reader != NULL && in_round(credits, reader) && reader->left))
        return WEIR_OK;
    if (reader == NULL)
        status = add_reader(credits, ask, &reader);
    if (status != WEIR_OK)
        return status;
    reader->worker = ask->worker;
    reader->next = ask->group;
    reader->member &= !reader->left; /* of the round that it has left */
    reader->left = false;
    reader->seen_ns = now_ns;
    reader->fresh = ask->fresh;
    reader->began |= ask->round != 0;
    reader->joined |= ask->round != 0 && !ask->fresh;
    return WEIR_OK;
}

/* ---- what the trainer waits for --------------------------------------------------------------*/

bool weir_credits_passed(const weir_credits *credits, uint32_t group, weir_credit_gap *out_gap)
{
    uint32_t beyond = group < credits->n_groups ? group + 1 : credits->n_groups;
    memset(credits->counts, 0, credits->n_workers * sizeof(*credits->counts));
    for (size_t i = 0; i < credits->n_readers; i++) {
        const weir_reader *reader = &credits->readers[i];
        bool waits = credits->casts && !reader->member && reader->next < credits->n_groups;
        if (reader->left || waits || !reads_group(credits, group, reader->worker))
            continue;
        credits->counts[reader->worker]++;
        if (reader->next >= beyond)
            continue;
        *out_gap = (weir_credit_gap){ .reader = reader, .worker = reader->worker };
        return false;
    }
    for (uint32_t w = 0; w < credits->n_workers; w++) {
        if (!reads_group(credits, group, w) || credits->counts[w] >= credits->n_replicas)
            continue;
        *out_gap = (weir_credit_gap){ .worker = w, .n_there = credits->counts[w] };
        return false;
    }
    return true;
}

bool weir_credits_gathered(const weir_credits *credits, unsigned n_replicas, uint64_t now_ns,
                           weir_credit_gap *out_gap)
{
    count_there(credits, now_ns);
    for (uint32_t w = 0; w < credits->n_workers; w++) {
        if (!reads_group(credits, credits->n_groups, w) || credits->counts[w] >= n_replicas)
            continue;
        *out_gap = (weir_credit_gap){ .worker = w, .n_there = credits->counts[w] };
        return false;
    }
    return true;
}

const weir_reader *weir_credits_member(const weir_credits *credits, const char *id)
{
    const weir_reader *reader = find_reader(credits, id);
    return reader != NULL && reader->member && !reader->left ? reader : NULL;
}

bool weir_credits_left_out(const weir_credits *credits, const char *id)
{
    weir_credit_gap gap;
    const weir_reader *reader = find_reader(credits, id);
    return credits->casts && credits->sending && (reader == NULL || !reader->member) &&
           weir_credits_lost(credits) == NULL &&
           !weir_credits_passed(credits, credits->n_groups, &gap);
}

const weir_reader *weir_credits_outside(const weir_credits *credits)
{
    for (size_t i = 0; i < credits->n_readers; i++) {
        const weir_reader *reader = &credits->readers[i];
        if (reader->member && !reader->left && !reader->joined)
            return reader;
    }
    return NULL;
}

/* Whether a group that the worker reads is gone. */
static bool is_late(const weir_credits *credits, uint32_t worker)
{
    for (uint32_t g = 0; g < credits->oldest; g++) {
        if (reads_group(credits, g, worker))
            return true;
    }
    return false;
}

/* The counts are of who is there. */
static bool is_irreplaceable(const weir_credits *credits, const weir_reader *reader)
{
    if (credits->casts)
        return reader->member;
    return credits->counts[reader->worker] < credits->n_replicas &&
           is_late(credits, reader->worker);
}

const weir_reader *weir_credits_lost(const weir_credits *credits)
{
    bool any = false;
    if (credits->casts && credits->undone[0] != '\0')
        return find_reader(credits, credits->undone);
    memset(credits->counts, 0, credits->n_workers * sizeof(*credits->counts));
    for (size_t i = 0; i < credits->n_readers; i++) {
        any |= credits->readers[i].left;
        credits->counts[credits->readers[i].worker] += !credits->readers[i].left;
    }
    for (size_t i = 0; i < credits->n_readers && any; i++) {
        const weir_reader *reader = &credits->readers[i];
        if (reader->left && is_irreplaceable(credits, reader))
            return reader;
    }
    return NULL;
}

uint32_t weir_credits_ready(const weir_credits *credits, uint64_t now_ns)
{
    uint32_t least = UINT32_MAX;
    count_there(credits, now_ns);
    for (uint32_t w = 0; w < credits->n_workers; w++) {
        if (reads_group(credits, credits->n_groups, w) && credits->counts[w] < least)
            least = credits->counts[w];
    }
    return least != UINT32_MAX ? least : 0;
}

static uint64_t steps_of(const weir_reader *reader)
{
    uint64_t n = reader->next > reader->first ? reader->next - reader->first : 0;
    return n + reader->began + reader->joined;
}

uint64_t weir_credits_progress(const weir_credits *credits)
{
    uint64_t sum = credits->made;
    for (size_t i = 0; i < credits->n_readers; i++) {
        const weir_reader *reader = &credits->readers[i];
        if (!reader->left && (reader->member || !credits->casts))
            sum += steps_of(reader);
    }
    return sum;
}
