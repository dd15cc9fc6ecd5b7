/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_guest.c - who connects to a rank of a group: ranks that join, the one before in the chain,
 * and strangers. One that does not show the key's nonce is dropped, told nothing, and keeps nobody
 * waiting.
 */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/log.h"
#include "transport/ucx_group.h"

#define STRANGER_MS 5000u

static void refuse(ucx_group *group, ucx_link *stranger, weir_status status, const char *why)
{
    weir_ucx_word word = { .kind = WEIR_UCX_BROKEN, .status = status };
    weir_ucx_set_reason(&word, why);
    weir_ucx_say(&group->meet, stranger, &word);
    weir_log(WEIR_LOG_INFO, "ucx: %s: a connection was refused: %s", group->who, why);
    weir_ucx_link_close(stranger);
}

static bool all_are_in(const ucx_group *group)
{
    for (uint32_t i = 1; i < group->n_ranks; i++) {
        if (group->meet.members[i].link.fd < 0)
            return false;
    }
    return true;
}

static weir_status send_start(ucx_group *group, uint32_t rank)
{
    ucx_meet *meet = &group->meet;
    weir_ucx_start start = { .process = (uint32_t)getpid(),
                             .after = meet->members[(rank + 1) % group->n_ranks].where };
    snprintf(start.host, sizeof(start.host), "%s", weir_ucx_host());
    weir_status status = weir_ucx_start_encode(&start, &meet->out);
    if (status == WEIR_OK && !weir_ucx_link_send(&meet->members[rank].link, &meet->out))
        status = weir_ucx_fail_gone(group, rank, "went away while joining");
    return status;
}

static weir_status start(ucx_group *group)
{
    weir_status status = WEIR_OK;
    group->meet.members[0].where = group->meet.own;
    group->meet.to_after.to = group->meet.members[1].where;
    weir_ucx_group_enter(group, UCX_LINKING);
    for (uint32_t i = 1; i < group->n_ranks && status == WEIR_OK; i++)
        status = send_start(group, i);
    return status;
}

/* The connection, and what has come over it by now, is another's. */
static weir_status hand_over(ucx_group *group, ucx_link *stranger, ucx_link *to, ucx_source source,
                             uint32_t index, uint32_t events)
{
    if (!weir_ucx_watch_as(&group->meet, stranger->fd, source, index, events))
        return weir_ucx_fail_watch(group);
    to->fd = stranger->fd;
    memcpy(to->in, stranger->in, stranger->n_in);
    to->n_in = stranger->n_in;
    stranger->fd = -1;
    stranger->n_in = 0;
    return WEIR_OK;
}

static weir_status take_in(ucx_group *group, ucx_link *stranger, const weir_ucx_hello *hello)
{
    ucx_member *member = &group->meet.members[hello->rank];
    member->where = hello->where;
    weir_status status =
        hand_over(group, stranger, &member->link, UCX_SOURCE_MEMBER, hello->rank, EPOLLIN);
    if (status == WEIR_OK)
        status = weir_ucx_watch_process(group, hello->rank, hello->host, hello->process);
    if (status == WEIR_OK && all_are_in(group))
        status = start(group);
    return status == WEIR_OK ? weir_ucx_hear_member(group, hello->rank) : status;
}

/* Only who shows the nonce is told what is wrong. */
static weir_status judge_join(ucx_group *group, ucx_link *stranger, const weir_ucx_hello *hello)
{
    char why[128];
    if (group->rank != 0) {
        refuse(group, stranger, WEIR_ERR_INVALID, "this is not rank 0");
    } else if (hello->n_ranks != group->n_ranks || hello->rank == 0 ||
               hello->rank >= group->n_ranks) {
        snprintf(why, sizeof(why), "rank 0 has %u ranks, and this one is rank %u of %u",
                 group->n_ranks, hello->rank, hello->n_ranks);
        refuse(group, stranger, WEIR_ERR_INVALID, why);
    } else if (group->meet.members[hello->rank].link.fd >= 0) {
        snprintf(why, sizeof(why), "rank %u is in already", hello->rank);
        refuse(group, stranger, WEIR_ERR_EXISTS, why);
    } else {
        return take_in(group, stranger, hello);
    }
    return WEIR_OK;
}

/* It is answered, so that it knows whom it has reached. Where that took too long it lets go of the
 * connection, and comes again. */
static weir_status judge_feed(ucx_group *group, ucx_link *stranger, const weir_ucx_hello *hello)
{
    ucx_meet *meet = &group->meet;
    bool said = false;
    if (hello->rank != weir_ucx_rank_before(&group->chain) || hello->n_ranks != group->n_ranks ||
        stranger->n_in > 0 || weir_ucx_link_has_ended(stranger) ||
        !weir_ucx_link_has_ended(&meet->before)) {
        weir_ucx_link_close(stranger);
        return WEIR_OK;
    }
    weir_ucx_link_close(&meet->before);
    weir_status status = hand_over(group, stranger, &meet->before, UCX_SOURCE_BEFORE, 0,
                                   EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    if (status == WEIR_OK)
        status = weir_ucx_say_hello(group, WEIR_UCX_FEED, &meet->before, &said);
    if (!said)
        weir_ucx_link_close(&meet->before);
    group->chain.before = said ? &meet->before : NULL;
    return status == WEIR_OK ? weir_ucx_check_linked(group) : status;
}

static weir_status judge(ucx_group *group, ucx_link *stranger, size_t n_bytes)
{
    weir_ucx_hello hello;
    weir_status status = weir_ucx_hello_decode(stranger->in, n_bytes, group->who, &hello);
    weir_ucx_link_heard(stranger, n_bytes);
    if (status == WEIR_OK &&
        memcmp(hello.where.nonce, group->meet.key.nonce, sizeof(hello.where.nonce)) == 0)
        return hello.purpose == WEIR_UCX_JOIN ? judge_join(group, stranger, &hello)
                                              : judge_feed(group, stranger, &hello);
    weir_log(WEIR_LOG_INFO, "ucx: %s: a stranger was dropped", group->who);
    weir_ucx_link_close(stranger);
    return WEIR_OK;
}

weir_status weir_ucx_hear_stranger(ucx_group *group, uint32_t index)
{
    ucx_link *stranger = &group->meet.strangers[index];
    char kind = 0;
    size_t n_bytes = 0;
    if (stranger->fd < 0)
        return WEIR_OK;
    ucx_heard heard = weir_ucx_link_hear(stranger, &kind, &n_bytes);
    if (heard == UCX_HEARD_NOTHING)
        return WEIR_OK;
    if (heard == UCX_HEARD_MESSAGE && kind == 'h')
        return judge(group, stranger, n_bytes);
    weir_ucx_link_close(stranger);
    return WEIR_OK;
}

/* The place of the one that has said nothing for longest, when none is free. */
static uint32_t place_for_stranger(const ucx_meet *meet)
{
    uint32_t oldest = 0;
    for (uint32_t i = 0; i < meet->n_strangers; i++) {
        if (meet->strangers[i].fd < 0)
            return i;
        if (meet->strangers[i].until < meet->strangers[oldest].until)
            oldest = i;
    }
    return oldest;
}

weir_status weir_ucx_accept_stranger(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    int fd = meet->listener >= 0 ? weir_ucx_accept(meet->listener) : -1;
    if (fd < 0)
        return WEIR_OK;
    uint32_t index = place_for_stranger(meet);
    ucx_link *stranger = &meet->strangers[index];
    weir_ucx_link_close(stranger);
    stranger->fd = fd;
    stranger->until = weir_deadline_in(STRANGER_MS);
    if (!weir_ucx_watch(meet, fd, UCX_SOURCE_STRANGER, index, EPOLLIN))
        weir_ucx_link_close(stranger);
    return WEIR_OK;
}
