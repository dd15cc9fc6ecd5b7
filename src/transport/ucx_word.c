/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_word.c - what the ranks of a group and its rank 0 tell each other, in words and by going.
 *
 * A connection to rank 0 that ends is a rank that is gone, and so is a process that ends: rank 0
 * says to the others who it was and why. Rank 0 counts what has ended where, so that it can leave
 * without taking anything from anybody.
 */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/log.h"
#include "transport/ucx_group.h"

#define LEAVE_MS 500u
#define WORDS 64u        /* of one rank, before the others are heard */
#define LAST_WORDS 4096u /* of one whose process has ended; its children may go on for ever */

/* ---- saying ----------------------------------------------------------------------------------*/

bool weir_ucx_say(ucx_meet *meet, const ucx_link *link, const weir_ucx_word *word)
{
    return weir_ucx_word_encode(word, &meet->out) == WEIR_OK &&
           weir_ucx_link_send(link, &meet->out);
}

/* To all that are connected. One who cannot be told has gone, which its connection says. */
static void say_to_all(ucx_meet *meet, const weir_ucx_word *word)
{
    for (uint32_t i = 0; i < meet->n_members; i++) {
        if (meet->members[i].link.fd >= 0)
            weir_ucx_say(meet, &meet->members[i].link, word);
    }
}

/* A reason travels as printable ASCII. */
void weir_ucx_set_reason(weir_ucx_word *word, const char *reason)
{
    snprintf(word->reason, sizeof(word->reason), "%s", reason);
    for (char *at = word->reason; *at != '\0'; at++) {
        if (*at < 0x20 || *at > 0x7e)
            *at = '?';
    }
}

weir_status weir_ucx_say_hello(ucx_group *group, weir_ucx_purpose purpose, const ucx_link *link,
                               bool *out_said)
{
    ucx_meet *meet = &group->meet;
    weir_ucx_hello hello = { .purpose = purpose,
                             .rank = group->rank,
                             .n_ranks = group->n_ranks,
                             .process = (uint32_t)getpid(),
                             .where = meet->own };
    snprintf(hello.host, sizeof(hello.host), "%s", weir_ucx_host());
    weir_status status = weir_ucx_hello_encode(&hello, &meet->out);
    *out_said = status == WEIR_OK && weir_ucx_link_send(link, &meet->out);
    return status;
}

/* ---- who is gone -----------------------------------------------------------------------------*/

weir_status weir_ucx_fail_gone(const ucx_group *group, uint32_t rank, const char *how)
{
    const ucx_member *member = &group->meet.members[rank];
    if (member->process == 0)
        return weir_fail(WEIR_ERR_PEER_LOST, "%s: rank %u %s", group->who, rank, how);
    return weir_fail(WEIR_ERR_PEER_LOST, "%s: rank %u (process %u) %s", group->who, rank,
                     member->process, how);
}

/* On this host a process that ends is seen even if it has left children with all of its sockets. */
weir_status weir_ucx_watch_process(ucx_group *group, uint32_t rank, const char *host,
                                   uint32_t process)
{
    ucx_member *member = &group->meet.members[rank];
    bool gone = false;
    member->process = process;
    member->process_fd = weir_ucx_process_open(host, process, &gone);
    if (gone)
        return weir_ucx_fail_gone(group, rank, "went away while joining");
    if (member->process_fd >= 0 &&
        !weir_ucx_watch(&group->meet, member->process_fd, UCX_SOURCE_PROCESS, rank, EPOLLIN))
        return weir_ucx_fail_watch(group);
    return WEIR_OK;
}

void weir_ucx_all_joined(ucx_group *group)
{
    weir_ucx_meet_close_door(&group->meet);
    weir_ucx_group_enter(group, UCX_JOINED);
}

weir_status weir_ucx_all_linked(ucx_group *group)
{
    bool all = group->meet.linked;
    for (uint32_t i = 1; i < group->n_ranks; i++)
        all = all && group->meet.members[i].linked;
    if (!all)
        return WEIR_OK;
    weir_ucx_word word = { .kind = WEIR_UCX_JOINED };
    say_to_all(&group->meet, &word);
    weir_ucx_all_joined(group);
    return WEIR_OK;
}

/* ---- hearing ---------------------------------------------------------------------------------*/

/* Rank 0 goes, or sends the others away, when all is done everywhere. */
static weir_status rank_left(ucx_group *group, uint32_t rank, const char *reason)
{
    if (group->rank != 0) {
        group->over = true;
        return weir_fail(WEIR_ERR_PEER_LOST, "%s: %s", group->who,
                         reason[0] != '\0' ? reason : "rank 0 has left");
    }
    group->meet.members[rank].left = true;
    weir_ucx_link_close(&group->meet.members[rank].link);
    group->left = true;
    group->left_rank = rank;
    return WEIR_OK;
}

/* Who answers where rank 0 is said to listen may be anybody, and may say anything. */
static bool is_in_turn(ucx_group *group, const ucx_member *member, const weir_ucx_word *word)
{
    ucx_phase phase = weir_ucx_group_phase(group);
    switch (word->kind) {
    case WEIR_UCX_LINKED:
        return group->rank == 0 && phase == UCX_LINKING && !member->linked;
    case WEIR_UCX_JOINED:
        return group->rank != 0 && phase == UCX_LINKING && group->meet.linked;
    case WEIR_UCX_DONE:
        return group->rank == 0 && phase == UCX_JOINED && word->n_done > member->n_done;
    case WEIR_UCX_LEFT:
        return phase == UCX_JOINED;
    default:
        return true;
    }
}

static weir_status out_of_turn(const ucx_group *group, uint32_t rank)
{
    return weir_fail(WEIR_ERR_CORRUPT, "%s: rank %u says what none may say then", group->who, rank);
}

static weir_status hear_word(ucx_group *group, uint32_t rank, const weir_ucx_word *word)
{
    ucx_member *member = &group->meet.members[rank];
    if (!is_in_turn(group, member, word))
        return out_of_turn(group, rank);
    switch (word->kind) {
    case WEIR_UCX_LINKED:
        member->linked = true;
        return weir_ucx_all_linked(group);
    case WEIR_UCX_JOINED:
        weir_ucx_all_joined(group);
        return WEIR_OK;
    case WEIR_UCX_DONE:
        member->n_done = word->n_done;
        return WEIR_OK;
    case WEIR_UCX_LEFT:
        return rank_left(group, rank, word->reason);
    default:
        return weir_fail(word->status, "%s: %s", group->who, word->reason);
    }
}

/* The rank after is one of this group's, or nobody's to be sent to. */
static weir_status hear_start(ucx_group *group, const uint8_t *in, size_t n_bytes)
{
    ucx_meet *meet = &group->meet;
    weir_ucx_start start;
    weir_status status = weir_ucx_start_decode(in, n_bytes, group->who, &start);
    if (status == WEIR_OK &&
        memcmp(start.after.nonce, meet->key.nonce, sizeof(start.after.nonce)) != 0)
        status = out_of_turn(group, 0);
    if (status == WEIR_OK)
        status = weir_ucx_watch_process(group, 0, start.host, start.process);
    if (status != WEIR_OK)
        return status;
    meet->to_after.to = start.after;
    weir_ucx_group_enter(group, UCX_LINKING);
    return WEIR_OK;
}

static weir_status hear_message(ucx_group *group, uint32_t rank, char kind, size_t n_bytes)
{
    const uint8_t *in = group->meet.members[rank].link.in;
    weir_ucx_word word;
    if (kind == 's' && group->rank != 0 && weir_ucx_group_phase(group) == UCX_JOINING)
        return hear_start(group, in, n_bytes);
    if (kind != 'w')
        return out_of_turn(group, rank);
    weir_status status = weir_ucx_word_decode(in, n_bytes, group->who, &word);
    return status == WEIR_OK ? hear_word(group, rank, &word) : status;
}

static weir_status gone(ucx_group *group, uint32_t rank)
{
    bool joined = weir_ucx_group_phase(group) == UCX_JOINED;
    if (group->meet.members[rank].left)
        return WEIR_OK;
    return weir_ucx_fail_gone(group, rank, joined ? "went away" : "went away while joining");
}

/* It was not rank 0 that was reached, or rank 0 has not opened its group yet. */
static bool is_of_a_stranger(ucx_group *group)
{
    return group->rank != 0 && weir_ucx_group_phase(group) == UCX_JOINING;
}

static weir_status hear_end(ucx_group *group, uint32_t rank, ucx_heard heard)
{
    if (is_of_a_stranger(group)) {
        weir_ucx_drop_root(group);
        return WEIR_OK;
    }
    if (heard == UCX_HEARD_END)
        return gone(group, rank);
    return weir_fail(WEIR_ERR_CORRUPT, "%s: what rank %u says does not decode", group->who, rank);
}

/* Gives whether there may be more to hear. */
static bool hear_next(ucx_group *group, uint32_t rank, weir_status *out_status)
{
    ucx_link *link = &group->meet.members[rank].link;
    char kind = 0;
    size_t n_bytes = 0;
    ucx_heard heard = weir_ucx_link_hear(link, &kind, &n_bytes);
    if (heard == UCX_HEARD_NOTHING)
        return false;
    if (heard != UCX_HEARD_MESSAGE) {
        *out_status = hear_end(group, rank, heard);
        return false;
    }
    *out_status = hear_message(group, rank, kind, n_bytes);
    if (link->fd >= 0)
        weir_ucx_link_heard(link, n_bytes);
    return *out_status == WEIR_OK && link->fd >= 0;
}

/* Of one who never stops n_words, and what has come along with them: the rest is in the kernel's
 * hands, which tells of it once more. */
static weir_status hear(ucx_group *group, uint32_t rank, unsigned n_words)
{
    const ucx_link *link = &group->meet.members[rank].link;
    weir_status status = WEIR_OK;
    bool more = link->fd >= 0;
    for (unsigned n = 0; more && (n < n_words || weir_ucx_link_has_message(link)); n++)
        more = hear_next(group, rank, &status);
    return status;
}

weir_status weir_ucx_hear_member(ucx_group *group, uint32_t rank)
{
    if (group->meet.members[rank].link.fd >= 0 && group->meet.to_root.connecting)
        return weir_ucx_root_stands(group);
    return hear(group, rank, WORDS);
}

/* Whatever it said before comes first. */
weir_status weir_ucx_process_ended(ucx_group *group, uint32_t rank)
{
    ucx_member *member = &group->meet.members[rank];
    close(member->process_fd);
    member->process_fd = -1;
    weir_status status = hear(group, rank, LAST_WORDS);
    return status == WEIR_OK ? gone(group, rank) : status;
}

/* ---- from the group --------------------------------------------------------------------------*/

void weir_ucx_meet_done(ucx_group *group, uint64_t n_done)
{
    weir_ucx_word word = { .kind = WEIR_UCX_DONE, .n_done = n_done };
    if (group->rank != 0)
        weir_ucx_say(&group->meet, &group->meet.members[0].link, &word);
}

bool weir_ucx_meet_all_done(const ucx_group *group, uint64_t n_done)
{
    for (uint32_t i = 1; i < group->meet.n_members; i++) {
        if (!group->meet.members[i].left && group->meet.members[i].n_done < n_done)
            return false;
    }
    return true;
}

/* Reads until all have closed their ends: what was sent to one that closes with something unread
 * might be lost on the way. */
static void await_ends(ucx_meet *meet)
{
    weir_deadline deadline = weir_deadline_in(LEAVE_MS);
    bool any = true;
    while (any && !weir_deadline_passed(deadline)) {
        any = false;
        for (uint32_t i = 0; i < meet->n_members; i++) {
            ucx_link *link = &meet->members[i].link;
            any = weir_ucx_link_drain(link) || any;
        }
        if (any)
            weir_sleep_ms(1);
    }
}

void weir_ucx_meet_leave(ucx_group *group, weir_ucx_word_kind kind, weir_status status,
                         const char *reason)
{
    weir_ucx_word word = { .kind = kind, .status = status };
    weir_ucx_set_reason(&word, reason);
    say_to_all(&group->meet, &word);
    weir_ucx_meet_close_door(&group->meet);
    if (group->rank == 0)
        await_ends(&group->meet);
    else
        weir_ucx_link_drain(&group->meet.members[0].link);
    for (uint32_t i = 0; i < group->meet.n_members; i++)
        weir_ucx_link_close(&group->meet.members[i].link);
}
