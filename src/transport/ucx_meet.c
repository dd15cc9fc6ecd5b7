/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_meet.c - how the ranks of a group find each other, and what its thread waits for.
 *
 * Every rank connects to rank 0, shows the key's nonce and says where it listens; once all are in,
 * rank 0 tells each where the next one is, and each connects to that. Who comes is ucx_guest.c's
 * matter, what is said is ucx_word.c's. All three belong to the group's thread, and nothing in them
 * waits but meet_turn() and meet_leave().
 */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "transport/ucx_group.h"

#define EVENTS 32
#define ANSWER_MS 500u /* that others give rank 0 to say who is missing */
#define NAMED_RANKS 8

bool weir_ucx_watch(const ucx_meet *meet, int fd, ucx_source source, uint32_t index,
                    uint32_t events)
{
    struct epoll_event event = { .events = events, .data.u64 = (uint64_t)source << 32 | index };
    return epoll_ctl(meet->poll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

bool weir_ucx_watch_as(const ucx_meet *meet, int fd, ucx_source source, uint32_t index,
                       uint32_t events)
{
    struct epoll_event event = { .events = events, .data.u64 = (uint64_t)source << 32 | index };
    return epoll_ctl(meet->poll_fd, EPOLL_CTL_MOD, fd, &event) == 0;
}

weir_status weir_ucx_fail_watch(const ucx_group *group)
{
    return weir_fail_errno("%s: cannot wait for the ranks", group->who);
}

/* ---- opening and closing ---------------------------------------------------------------------*/

static bool open_link(ucx_link *link, size_t room)
{
    link->fd = -1;
    link->room = room;
    link->in = weir_alloc(room);
    return link->in != NULL;
}

static bool open_member(ucx_member *member)
{
    member->process_fd = -1;
    return open_link(&member->link, WEIR_UCX_MESSAGE_BYTES);
}

static weir_status open_links(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    uint32_t n_members = group->rank == 0 ? group->n_ranks : 1;
    meet->members = weir_alloc_zeroed(n_members, sizeof(*meet->members));
    meet->strangers = weir_alloc_zeroed(WEIR_UCX_STRANGERS, sizeof(*meet->strangers));
    if (meet->members == NULL || meet->strangers == NULL)
        return WEIR_ERR_NO_MEMORY;
    meet->n_members = n_members;
    meet->n_strangers = WEIR_UCX_STRANGERS;
    bool opened = true;
    for (uint32_t i = 0; i < n_members; i++)
        opened = open_member(&meet->members[i]) && opened;
    for (uint32_t i = 0; i < WEIR_UCX_STRANGERS; i++)
        opened = open_link(&meet->strangers[i], WEIR_UCX_MESSAGE_BYTES) && opened;
    opened = open_link(&meet->before, WEIR_UCX_FEED_BYTES) && opened;
    opened = open_link(&meet->after, WEIR_UCX_FEED_BYTES) && opened;
    meet->to_root = (ucx_dial){ .to = meet->key, .link = &meet->members[0].link };
    meet->to_after.link = &meet->after;
    group->chain.root = group->rank != 0 ? &meet->members[0].link : NULL;
    return opened ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

/* Rank 0 has listened since it made the key. */
static weir_status open_listener(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    weir_status status = WEIR_OK;
    meet->own = meet->key;
    if (group->rank == 0)
        return WEIR_OK;
    status = weir_ucx_listen(&meet->listener, &meet->own.port);
    meet->own.place = weir_ucx_place();
    weir_ucx_own_addresses(&meet->own);
    return status;
}

weir_status weir_ucx_meet_open(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    weir_status status = open_listener(group);
    if (status == WEIR_OK)
        status = open_links(group);
    if (status != WEIR_OK)
        return status;
    meet->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    meet->abort_fd = group->chain.abort_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    meet->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (meet->wake_fd < 0 || meet->abort_fd < 0 || meet->poll_fd < 0 ||
        !weir_ucx_watch(meet, meet->wake_fd, UCX_SOURCE_WAKE, 0, EPOLLIN) ||
        !weir_ucx_watch(meet, meet->listener, UCX_SOURCE_LISTENER, 0, EPOLLIN))
        return weir_ucx_fail_watch(group);
    if (group->n_ranks == 1)
        weir_ucx_all_joined(group);
    return WEIR_OK;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Nobody else is expected. */
void weir_ucx_meet_close_door(ucx_meet *meet)
{
    close_fd(&meet->listener);
    for (uint32_t i = 0; i < meet->n_strangers; i++)
        weir_ucx_link_close(&meet->strangers[i]);
}

void weir_ucx_meet_close(ucx_meet *meet)
{
    weir_ucx_meet_close_door(meet);
    for (uint32_t i = 0; i < meet->n_members; i++) {
        weir_ucx_link_close(&meet->members[i].link);
        weir_free(meet->members[i].link.in);
        close_fd(&meet->members[i].process_fd);
    }
    for (uint32_t i = 0; i < meet->n_strangers; i++)
        weir_free(meet->strangers[i].in);
    weir_ucx_link_close(&meet->before);
    weir_ucx_link_close(&meet->after);
    weir_free(meet->before.in);
    weir_free(meet->after.in);
    weir_free(meet->members);
    weir_free(meet->strangers);
    close_fd(&meet->wake_fd);
    close_fd(&meet->abort_fd);
    close_fd(&meet->poll_fd);
    weir_key_buffer_close(&meet->out);
}

/* ---- whom one goes to ------------------------------------------------------------------------*/

/* Rank 0 was there, and in a whole round of its addresses nobody was any more. */
static weir_status all_were_tried(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    if (meet->was_greeted && !meet->lately_greeted)
        return weir_ucx_fail_gone(group, 0, "went away while joining");
    meet->lately_greeted = false;
    return WEIR_OK;
}

/* From the first address again once all were tried: what is refused may be there a moment later. */
static weir_status dial(ucx_group *group, ucx_dial *dialled, ucx_source source, uint32_t rank)
{
    weir_ucx_dial_check_time(dialled);
    if (dialled->link->fd >= 0)
        return WEIR_OK;
    switch (weir_ucx_dial_next(dialled)) {
    case UCX_DIAL_BEGUN:
        return weir_ucx_watch(&group->meet, dialled->link->fd, source, 0, EPOLLOUT)
                   ? WEIR_OK
                   : weir_ucx_fail_watch(group);
    case UCX_DIAL_NOWHERE:
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: rank %u is on another host, and has no address that one reaches",
                         group->who, rank);
    case UCX_DIAL_ALL_TRIED:
        return source == UCX_SOURCE_MEMBER ? all_were_tried(group) : WEIR_OK;
    default:
        return WEIR_OK;
    }
}

void weir_ucx_drop_root(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    weir_ucx_dial_drop(&meet->to_root);
    if (meet->greeted)
        meet->was_greeted = meet->lately_greeted = true;
    meet->greeted = false;
}

weir_status weir_ucx_root_stands(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    const ucx_link *link = &meet->members[0].link;
    if (!weir_ucx_dial_stands(&meet->to_root))
        return WEIR_OK;
    if (!weir_ucx_watch_as(meet, link->fd, UCX_SOURCE_MEMBER, 0, EPOLLIN))
        return weir_ucx_fail_watch(group);
    weir_status status = weir_ucx_say_hello(group, WEIR_UCX_JOIN, link, &meet->greeted);
    if (status == WEIR_OK && !meet->greeted)
        weir_ucx_drop_root(group);
    return status;
}

/* Both neighbours are there: rank 0 is told. */
weir_status weir_ucx_check_linked(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    weir_ucx_word word = { .kind = WEIR_UCX_LINKED };
    if (meet->linked || group->chain.before == NULL || group->chain.after == NULL)
        return WEIR_OK;
    meet->linked = true;
    if (group->rank == 0)
        return weir_ucx_all_linked(group);
    if (!weir_ucx_say(meet, &meet->members[0].link, &word))
        return weir_ucx_fail_gone(group, 0, "went away while joining");
    return WEIR_OK;
}

static weir_status after_stands(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    bool said = false;
    if (!weir_ucx_dial_stands(&meet->to_after))
        return WEIR_OK;
    if (!weir_ucx_watch_as(meet, meet->after.fd, UCX_SOURCE_AFTER, 0,
                           EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET))
        return weir_ucx_fail_watch(group);
    weir_status status = weir_ucx_say_hello(group, WEIR_UCX_FEED, &meet->after, &said);
    if (status == WEIR_OK && said)
        weir_ucx_dial_await_answer(&meet->to_after);
    else
        weir_ucx_dial_drop(&meet->to_after);
    return status;
}

static bool is_the_one_after(const ucx_group *group, char kind, size_t n_bytes)
{
    const ucx_meet *meet = &group->meet;
    weir_ucx_hello hello;
    return kind == 'h' &&
           weir_ucx_hello_decode(meet->after.in, n_bytes, group->who, &hello) == WEIR_OK &&
           hello.purpose == WEIR_UCX_FEED && hello.rank == weir_ucx_rank_after(&group->chain) &&
           memcmp(hello.where.nonce, meet->key.nonce, sizeof(hello.where.nonce)) == 0;
}

/* The rank after says hello in its turn; anybody else is not who listens at the next address. */
static weir_status hear_after(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    char kind = 0;
    size_t n_bytes = 0;
    ucx_heard heard = weir_ucx_link_hear(&meet->after, &kind, &n_bytes);
    if (heard == UCX_HEARD_NOTHING)
        return WEIR_OK;
    if (heard != UCX_HEARD_MESSAGE || !is_the_one_after(group, kind, n_bytes)) {
        weir_ucx_dial_drop(&meet->to_after);
        return WEIR_OK;
    }
    weir_ucx_link_heard(&meet->after, n_bytes);
    meet->to_after.unanswered = false;
    group->chain.after = &meet->after;
    return weir_ucx_check_linked(group);
}

/* ---- time ------------------------------------------------------------------------------------*/

static bool is_missing(ucx_group *group, uint32_t rank)
{
    const ucx_meet *meet = &group->meet;
    if (weir_ucx_group_phase(group) == UCX_JOINING)
        return rank != 0 && meet->members[rank].link.fd < 0;
    return rank == 0 ? !meet->linked : !meet->members[rank].linked;
}

static weir_status fail_missing(ucx_group *group)
{
    char names[160] = "";
    uint32_t n_missing = 0;
    size_t at = 0;
    for (uint32_t i = 0; i < group->n_ranks; i++) {
        if (!is_missing(group, i))
            continue;
        if (n_missing++ < NAMED_RANKS)
            at += (size_t)snprintf(names + at, sizeof(names) - at, "%s%u", at > 0 ? ", " : "", i);
    }
    if (n_missing > NAMED_RANKS)
        snprintf(names + at, sizeof(names) - at, " and %u more", n_missing - NAMED_RANKS);
    return weir_fail(WEIR_ERR_TIMED_OUT, "%s: %u of %u ranks have not %s within %.1f s: %s",
                     group->who, n_missing, group->n_ranks,
                     weir_ucx_group_phase(group) == UCX_JOINING ? "come" : "linked up",
                     group->timeout_ms * 1e-3, names);
}

static weir_status check_deadline(ucx_group *group)
{
    if (!weir_deadline_passed(group->deadline))
        return WEIR_OK;
    if (group->rank == 0)
        return fail_missing(group);
    if (!group->meet.greeted)
        return weir_fail(WEIR_ERR_TIMED_OUT, "%s: rank %u has not reached rank 0 within %.1f s",
                         group->who, group->rank, group->timeout_ms * 1e-3);
    if (!weir_deadline_passed(group->deadline + (weir_deadline)ANSWER_MS * 1000000u))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "%s: rank 0 has not said within %.1f s that all %u ranks are in (this is rank "
                     "%u)",
                     group->who, group->timeout_ms * 1e-3, group->n_ranks, group->rank);
}

static weir_status look_at_time(ucx_group *group, ucx_phase phase)
{
    ucx_meet *meet = &group->meet;
    uint32_t after = weir_ucx_rank_after(&group->chain);
    for (uint32_t i = 0; i < meet->n_strangers; i++) {
        if (meet->strangers[i].fd >= 0 && weir_deadline_passed(meet->strangers[i].until))
            weir_ucx_link_close(&meet->strangers[i]);
    }
    weir_status status = check_deadline(group);
    if (status == WEIR_OK && phase == UCX_LINKING)
        status = dial(group, &meet->to_after, UCX_SOURCE_AFTER, after);
    if (status == WEIR_OK && group->rank != 0)
        status = dial(group, &meet->to_root, UCX_SOURCE_MEMBER, 0);
    return status;
}

static weir_status handle(ucx_group *group, uint64_t data)
{
    eventfd_t woken;
    uint32_t index = (uint32_t)data;
    switch ((ucx_source)(data >> 32)) {
    case UCX_SOURCE_LISTENER:
        return weir_ucx_accept_stranger(group);
    case UCX_SOURCE_STRANGER:
        return weir_ucx_hear_stranger(group, index);
    case UCX_SOURCE_MEMBER:
        return weir_ucx_hear_member(group, index);
    case UCX_SOURCE_PROCESS:
        return weir_ucx_process_ended(group, index);
    case UCX_SOURCE_WAKE:
        (void)eventfd_read(group->meet.wake_fd, &woken);
        return WEIR_OK;
    case UCX_SOURCE_AFTER:
        return group->meet.to_after.connecting   ? after_stands(group)
               : group->meet.to_after.unanswered ? hear_after(group)
                                                 : WEIR_OK;
    default: /* what they have is asked for anyway */
        return WEIR_OK;
    }
}

weir_status weir_ucx_meet_turn(ucx_group *group, int sleep_ms)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(group->meet.poll_fd, events, EVENTS, sleep_ms);
    weir_status status = WEIR_OK;
    for (int i = 0; i < n && status == WEIR_OK; i++)
        status = handle(group, events[i].data.u64);
    ucx_phase phase = weir_ucx_group_phase(group);
    if (status == WEIR_OK && phase < UCX_JOINED)
        status = look_at_time(group, phase);
    return status;
}
