/* SPDX-License-Identifier: Apache-2.0 */
/* group_cast.c - who stands in which broadcast group of a trainer rank, and the broadcasts
 * themselves.
 *
 * Members are compared by name from round to round: a group whose members are the same, none of
 * them fresh, is used again, and nothing is allocated for it. When to broadcast what is said by
 * window_cast.c.
 */
#include "refit/group_cast.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit/matched.h"

#define MAX_NAMED 4u

/* The broadcast group of one audience. */
typedef struct seat {
    char (*members)[WEIR_NAME_BYTES]; /* sorted; positions begin at 1 */
    size_t n_members, room;
    unsigned char key[WEIR_GROUP_KEY_BYTES];
    bool is_used; /* some group is for it: another one may stand in its place */
    bool is_joined;
    weir_matched *matched; /* NULL: not joined yet, or nobody is in it */
} seat;

struct weir_cast {
    weir_trainer *trainer;
    const weir_groups *groups;
    const weir_audiences *audiences;
    weir_link link;
    seat *seats;              /* one per audience */
    const weir_reader **come; /* scratch of a gathering: the members of one audience */
    size_t come_room;
    uint64_t *tickets;     /* of each group */
    weir_matched **behind; /* that a gathering has left, for weir_cast_sweep() */
    size_t n_behind;
    uint32_t looked_at; /* the audience of which the group was joined, or not, last */
    weir_membership told[WEIR_MAX_AUDIENCES];
};

weir_status weir_cast_open(weir_trainer *trainer, const weir_link *link, const weir_groups *groups,
                           const weir_audiences *audiences, weir_cast **out)
{
    weir_cast *cast = weir_alloc_zeroed(1, sizeof(*cast));
    if (cast == NULL)
        return WEIR_ERR_NO_MEMORY;
    cast->trainer = trainer;
    cast->link = *link;
    cast->groups = groups;
    cast->audiences = audiences;
    cast->seats = weir_alloc_zeroed(audiences->n, sizeof(*cast->seats));
    cast->tickets = weir_alloc_zeroed(groups->n_groups, sizeof(*cast->tickets));
    cast->behind = weir_alloc_zeroed(audiences->n, sizeof(*cast->behind));
    if (cast->seats == NULL || cast->tickets == NULL || cast->behind == NULL) {
        weir_cast_close(cast);
        return WEIR_ERR_NO_MEMORY;
    }
    for (uint32_t g = 0; g < groups->n_groups; g++)
        cast->seats[groups->audiences[g]].is_used = true;
    *out = cast;
    return WEIR_OK;
}

/* Gives what it stood in. */
static weir_matched *empty_seat(seat *at)
{
    weir_matched *matched = at->matched;
    at->matched = NULL;
    at->is_joined = false;
    at->n_members = 0;
    return matched;
}

static void leave_all(weir_cast *cast, bool abort)
{
    for (uint32_t a = 0; cast->seats != NULL && a < cast->audiences->n; a++)
        weir_matched_leave(cast->seats[a].matched, abort);
    weir_cast_sweep(cast);
    for (uint32_t a = 0; cast->seats != NULL && a < cast->audiences->n; a++)
        weir_matched_close(empty_seat(&cast->seats[a]), abort);
}

void weir_cast_abort(weir_cast *cast)
{
    leave_all(cast, true);
}

/* Nothing is queued in them, and those who are gone answer nobody. */
void weir_cast_sweep(weir_cast *cast)
{
    for (size_t i = 0; i < cast->n_behind; i++)
        weir_matched_leave(cast->behind[i], true);
    for (size_t i = 0; i < cast->n_behind; i++)
        weir_matched_close(cast->behind[i], true);
    cast->n_behind = 0;
}

void weir_cast_close(weir_cast *cast)
{
    if (cast == NULL)
        return;
    leave_all(cast, false);
    for (uint32_t a = 0; cast->seats != NULL && a < cast->audiences->n; a++)
        weir_free(cast->seats[a].members);
    weir_free(cast->seats);
    weir_free(cast->come);
    weir_free(cast->tickets);
    weir_free((void *)cast->behind);
    weir_free(cast);
}

const char *weir_cast_transport(const weir_cast *cast)
{
    return cast->link.ops->name;
}

/* ---- members ---------------------------------------------------------------------------------*/

static int compare_readers(const void *a, const void *b)
{
    const weir_reader *const *x = a, *const *y = b;
    return strcmp((*x)->id, (*y)->id);
}

static bool is_sent(const weir_cast *cast, uint32_t audience, uint32_t worker)
{
    return weir_audiences_row(cast->audiences, audience)[worker] != 0;
}

/* Members of the round that are in the audience, into cast->come. */
static size_t list_come(weir_cast *cast, uint32_t audience, const weir_credits *credits)
{
    size_t n = 0;
    for (size_t i = 0; i < credits->n_readers; i++) {
        const weir_reader *reader = &credits->readers[i];
        if (reader->member && !reader->left && is_sent(cast, audience, reader->worker))
            cast->come[n++] = reader;
    }
    qsort(cast->come, n, sizeof(*cast->come), compare_readers);
    return n;
}

/* Whether the group stands as it is. */
static bool is_kept(const weir_cast *cast, const seat *at, size_t n)
{
    if (n != at->n_members || (n > 0 && !at->is_joined))
        return false;
    for (size_t i = 0; i < n; i++) {
        if (cast->come[i]->fresh || strcmp(at->members[i], cast->come[i]->id) != 0)
            return false;
    }
    return true;
}

static weir_status take_seat(weir_cast *cast, seat *at, size_t n)
{
    if (n > at->room) {
        char(*grown)[WEIR_NAME_BYTES] = weir_realloc(at->members, n * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        at->members = grown;
        at->room = n;
    }
    if (n == 0)
        return WEIR_OK;
    weir_status status = cast->link.ops->group_key(cast->link.transport, at->key);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < n; i++)
        memcpy(at->members[i], cast->come[i]->id, WEIR_NAME_BYTES);
    at->n_members = n;
    return WEIR_OK;
}

static weir_status make_room(weir_cast *cast, size_t n)
{
    if (n <= cast->come_room)
        return WEIR_OK;
    const weir_reader **grown = weir_realloc((void *)cast->come, n * sizeof(*grown));
    if (grown == NULL)
        return WEIR_ERR_NO_MEMORY;
    cast->come = grown;
    cast->come_room = n;
    return WEIR_OK;
}

weir_status weir_cast_gather(weir_cast *cast, const weir_credits *credits)
{
    weir_status status = make_room(cast, credits->n_readers);
    for (uint32_t a = 0; a < cast->audiences->n && status == WEIR_OK; a++) {
        seat *at = &cast->seats[a];
        size_t n = at->is_used ? list_come(cast, a, credits) : 0;
        if (is_kept(cast, at, n))
            continue;
        weir_matched *behind = empty_seat(at);
        if (behind != NULL)
            cast->behind[cast->n_behind++] = behind;
        status = take_seat(cast, at, n);
    }
    return status;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

static const char *find_member(const seat *at, const char *reader)
{
    if (at->n_members == 0)
        return NULL;
    return bsearch(reader, at->members, at->n_members, sizeof(*at->members), compare_names);
}

const weir_membership *weir_cast_memberships(weir_cast *cast, const char *reader, size_t *out_n)
{
    size_t n = 0;
    for (uint32_t a = 0; a < cast->audiences->n; a++) {
        const seat *at = &cast->seats[a];
        const char *found = find_member(at, reader);
        if (found == NULL)
            continue;
        size_t place = (size_t)(found - at->members[0]) / WEIR_NAME_BYTES;
        cast->told[n++] =
            (weir_membership){ a, at->key, (uint32_t)place + 1, (uint32_t)at->n_members + 1 };
    }
    *out_n = n;
    return cast->told;
}

/* ---- joining and sending ---------------------------------------------------------------------*/

/* "broadcast group 1 of trainer rank 0 with 1: a, 2: b and 3 more": transports know numbers alone.
 */
static void name_seat(const weir_cast *cast, uint32_t audience, char *text, size_t text_bytes)
{
    const seat *at = &cast->seats[audience];
    size_t n_named = at->n_members < MAX_NAMED ? at->n_members : MAX_NAMED;
    size_t used = (size_t)snprintf(text, text_bytes, "broadcast group %u of trainer rank %u with",
                                   audience, cast->trainer->rank);
    for (size_t i = 0; i < n_named && used < text_bytes; i++)
        used += (size_t)snprintf(text + used, text_bytes - used, "%s %zu: %s", i > 0 ? "," : "",
                                 i + 1, at->members[i]);
    if (at->n_members > n_named && used < text_bytes)
        snprintf(text + used, text_bytes - used, " and %zu more", at->n_members - n_named);
}

static weir_status open_seat(weir_cast *cast, uint32_t audience, unsigned bound_ms)
{
    weir_trainer *trainer = cast->trainer;
    seat *at = &cast->seats[audience];
    char who[MAX_NAMED * (WEIR_NAME_BYTES + 16) + 96];
    name_seat(cast, audience, who, sizeof(who));
    weir_matched_options options = { .link = cast->link,
                                     .work = trainer->work,
                                     .key = at->key,
                                     .n_ranks = (uint32_t)at->n_members + 1,
                                     .timeout_ms = bound_ms > 0 ? bound_ms : 1,
                                     .who = who };
    trainer->worker.counters.connections++;
    return weir_matched_open(&options, &at->matched);
}

/* All are begun before the first is waited for: a reader may take them in any order. */
weir_status weir_cast_joined(weir_cast *cast, unsigned bound_ms)
{
    weir_status status = WEIR_OK;
    bool all = true;
    for (uint32_t a = 0; a < cast->audiences->n && status == WEIR_OK; a++) {
        if (cast->seats[a].n_members > 0 && cast->seats[a].matched == NULL)
            status = open_seat(cast, a, bound_ms);
    }
    for (uint32_t a = 0; a < cast->audiences->n && status == WEIR_OK; a++) {
        seat *at = &cast->seats[a];
        if (at->matched == NULL || at->is_joined)
            continue;
        status = weir_matched_joined(at->matched);
        at->is_joined = status == WEIR_OK;
        cast->looked_at = a;
        all &= at->is_joined;
        if (status == WEIR_IN_PROGRESS)
            status = WEIR_OK;
    }
    return status == WEIR_OK && !all ? WEIR_IN_PROGRESS : status;
}

const char *weir_cast_missing(const weir_cast *cast, const char *words)
{
    const seat *at = &cast->seats[cast->looked_at];
    const char *list = strrchr(words, ':');
    char *behind = NULL;
    unsigned long rank = list != NULL ? strtoul(list + 1, &behind, 10) : 0;
    bool is_list =
        rank > 0 && (*behind == '\0' || *behind == ',' || strncmp(behind, " and ", 5) == 0);
    return is_list && rank <= at->n_members ? at->members[rank - 1] : NULL;
}

static weir_matched *group_of(const weir_cast *cast, uint32_t group)
{
    return cast->seats[cast->groups->audiences[group]].matched;
}

bool weir_cast_is_wanted(const weir_cast *cast, uint32_t group)
{
    return group_of(cast, group) != NULL;
}

weir_status weir_cast_send(weir_cast *cast, uint32_t group, void *data)
{
    weir_matched *matched = group_of(cast, group);
    if (matched == NULL)
        return WEIR_OK;
    return weir_matched_queue(matched, data, cast->groups->n_bytes[group], &cast->tickets[group]);
}

weir_status weir_cast_sent(weir_cast *cast, uint32_t group)
{
    weir_matched *matched = group_of(cast, group);
    return matched != NULL ? weir_matched_ended(matched, cast->tickets[group]) : WEIR_OK;
}
