/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_meet.c - how the ranks of a group find each other, and what they tell each other.
 *
 * Every rank connects to rank 0, shows the key's nonce and says where it listens; once all are in,
 * rank 0 tells each where the next one is, and each connects to that. A connection to rank 0 that
 * ends is a rank that is gone: rank 0 tells the others. One that does not show the nonce keeps
 * nobody waiting.
 *
 * Everything here is called by the group's thread, and none of it waits but meet_turn() and
 * meet_leave().
 */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "transport/ucx_group.h"

#define EVENTS 32
#define STRANGER_MS 5000u
#define LEAVE_MS 500u
#define ANSWER_MS \
    500u /* that rank 0 has longer than the others, so that it can say who is missing */
#define NAMED_RANKS 8

/* What is ready, in the upper half of an event's data; which one of them, in the lower. */
typedef enum event_source {
    SOURCE_WAKE,
    SOURCE_LISTENER,
    SOURCE_STRANGER,
    SOURCE_MEMBER,
    SOURCE_PROCESS,
    SOURCE_BEFORE,
    SOURCE_AFTER
} event_source;

static bool watch(const ucx_meet *meet, int fd, event_source source, uint32_t index,
                  uint32_t events)
{
    struct epoll_event event = { .events = events, .data.u64 = (uint64_t)source << 32 | index };
    return epoll_ctl(meet->poll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* For one that was watched as something else. */
static bool watch_as(const ucx_meet *meet, int fd, event_source source, uint32_t index,
                     uint32_t events)
{
    struct epoll_event event = { .events = events, .data.u64 = (uint64_t)source << 32 | index };
    return epoll_ctl(meet->poll_fd, EPOLL_CTL_MOD, fd, &event) == 0;
}

static weir_status fail_watch(const ucx_group *group)
{
    return weir_fail_errno("%s: cannot wait for the ranks", group->who);
}

/* ---- opening and closing ---------------------------------------------------------------------*/

static bool open_link(ucx_link *link)
{
    link->fd = -1;
    link->in = weir_alloc(WEIR_UCX_MESSAGE_BYTES);
    return link->in != NULL;
}

static bool open_member(ucx_member *member)
{
    member->process_fd = -1;
    return open_link(&member->link);
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
        opened = open_link(&meet->strangers[i]) && opened;
    meet->to_root = (ucx_dial){ .to = meet->key, .link = &meet->members[0].link };
    meet->to_after.link = &meet->after;
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
    meet->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (meet->wake_fd < 0 || meet->poll_fd < 0 ||
        !watch(meet, meet->wake_fd, SOURCE_WAKE, 0, EPOLLIN) ||
        !watch(meet, meet->listener, SOURCE_LISTENER, 0, EPOLLIN))
        return fail_watch(group);
    if (group->n_ranks == 1)
        weir_ucx_group_enter(group, UCX_JOINED);
    return WEIR_OK;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void weir_ucx_meet_close(ucx_meet *meet)
{
    for (uint32_t i = 0; i < meet->n_members; i++) {
        weir_ucx_link_close(&meet->members[i].link);
        weir_free(meet->members[i].link.in);
        close_fd(&meet->members[i].process_fd);
    }
    for (uint32_t i = 0; i < meet->n_strangers; i++) {
        weir_ucx_link_close(&meet->strangers[i]);
        weir_free(meet->strangers[i].in);
    }
    weir_ucx_link_close(&meet->before);
    weir_ucx_link_close(&meet->after);
    weir_free(meet->members);
    weir_free(meet->strangers);
    close_fd(&meet->listener);
    close_fd(&meet->wake_fd);
    close_fd(&meet->poll_fd);
    weir_key_buffer_close(&meet->out);
}

/* ---- saying ----------------------------------------------------------------------------------*/

static bool say(ucx_meet *meet, const ucx_link *link, const weir_ucx_word *word)
{
    return weir_ucx_word_encode(word, &meet->out) == WEIR_OK &&
           weir_ucx_link_send(link, &meet->out);
}

/* To all that are connected. One who cannot be told has gone, which its connection says. */
static void say_to_all(ucx_meet *meet, const weir_ucx_word *word)
{
    for (uint32_t i = 0; i < meet->n_members; i++) {
        if (meet->members[i].link.fd >= 0)
            say(meet, &meet->members[i].link, word);
    }
}

/* A reason travels as printable ASCII. */
static void set_reason(weir_ucx_word *word, const char *reason)
{
    snprintf(word->reason, sizeof(word->reason), "%s", reason);
    for (char *at = word->reason; *at != '\0'; at++) {
        if (*at < 0x20 || *at > 0x7e)
            *at = '?';
    }
}

static weir_status say_hello(ucx_group *group, weir_ucx_purpose purpose, const ucx_link *link,
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

static weir_status check_linked(ucx_group *group);
static weir_status hear_member(ucx_group *group, uint32_t rank);

/* ---- who comes -------------------------------------------------------------------------------*/

static weir_status fail_gone(const ucx_group *group, uint32_t rank, const char *how)
{
    const ucx_member *member = &group->meet.members[rank];
    if (member->process == 0)
        return weir_fail(WEIR_ERR_PEER_LOST, "%s: rank %u %s", group->who, rank, how);
    return weir_fail(WEIR_ERR_PEER_LOST, "%s: rank %u (process %u) %s", group->who, rank,
                     member->process, how);
}

/* On this host a process that ends is seen even if it has left children with all of its sockets. */
static weir_status watch_process(ucx_group *group, uint32_t rank, const char *host,
                                 uint32_t process)
{
    ucx_member *member = &group->meet.members[rank];
    bool gone = false;
    member->process = process;
    member->process_fd = weir_ucx_process_open(host, process, &gone);
    if (gone)
        return fail_gone(group, rank, "went away while joining");
    if (member->process_fd >= 0 &&
        !watch(&group->meet, member->process_fd, SOURCE_PROCESS, rank, EPOLLIN))
        return fail_watch(group);
    return WEIR_OK;
}

static void refuse(ucx_group *group, ucx_link *stranger, weir_status status, const char *why)
{
    weir_ucx_word word = { .kind = WEIR_UCX_BROKEN, .status = status };
    set_reason(&word, why);
    say(&group->meet, stranger, &word);
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
        status = fail_gone(group, rank, "went away while joining");
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
static weir_status hand_over(ucx_group *group, ucx_link *stranger, ucx_link *to,
                             event_source source, uint32_t index, uint32_t events)
{
    if (!watch_as(&group->meet, stranger->fd, source, index, events))
        return fail_watch(group);
    to->fd = stranger->fd;
    if (to->in != NULL)
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
        hand_over(group, stranger, &member->link, SOURCE_MEMBER, hello->rank, EPOLLIN);
    if (status == WEIR_OK)
        status = watch_process(group, hello->rank, hello->host, hello->process);
    if (status == WEIR_OK && all_are_in(group))
        status = start(group);
    return status == WEIR_OK ? hear_member(group, hello->rank) : status;
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

static weir_status judge_feed(ucx_group *group, ucx_link *stranger, const weir_ucx_hello *hello)
{
    ucx_meet *meet = &group->meet;
    uint32_t before = (group->rank + group->n_ranks - 1) % group->n_ranks;
    if (meet->before.fd >= 0 || hello->rank != before || stranger->n_in > 0) {
        weir_ucx_link_close(stranger);
        return WEIR_OK;
    }
    weir_status status =
        hand_over(group, stranger, &meet->before, SOURCE_BEFORE, 0, EPOLLIN | EPOLLRDHUP | EPOLLET);
    group->chain.before_fd = meet->before.fd;
    return status == WEIR_OK ? check_linked(group) : status;
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

static weir_status hear_stranger(ucx_group *group, uint32_t index)
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

static weir_status accept_stranger(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    int fd = weir_ucx_accept(meet->listener);
    if (fd < 0)
        return WEIR_OK;
    uint32_t index = place_for_stranger(meet);
    ucx_link *stranger = &meet->strangers[index];
    weir_ucx_link_close(stranger);
    stranger->fd = fd;
    stranger->until = weir_deadline_in(STRANGER_MS);
    if (!watch(meet, fd, SOURCE_STRANGER, index, EPOLLIN))
        weir_ucx_link_close(stranger);
    return WEIR_OK;
}

/* ---- whom one goes to ------------------------------------------------------------------------*/

/* From the first address again once all were tried: what is refused may be there a moment later. */
static weir_status dial(ucx_group *group, ucx_dial *dialled, event_source source, uint32_t rank)
{
    if (dialled->connecting && weir_deadline_passed(dialled->link->until))
        weir_ucx_dial_drop(dialled);
    if (dialled->link->fd >= 0)
        return WEIR_OK;
    switch (weir_ucx_dial_next(dialled)) {
    case UCX_DIAL_BEGUN:
        return watch(&group->meet, dialled->link->fd, source, 0, EPOLLOUT) ? WEIR_OK
                                                                           : fail_watch(group);
    case UCX_DIAL_NOWHERE:
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: rank %u is on another host, and has no address that one reaches",
                         group->who, rank);
    case UCX_DIAL_ALL_TRIED: /* rank 0 was there, and nobody is any more */
        if (rank == 0 && source == SOURCE_MEMBER && group->meet.was_greeted)
            return fail_gone(group, 0, "went away while joining");
        return WEIR_OK;
    default:
        return WEIR_OK;
    }
}

static void drop_root(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    weir_ucx_dial_drop(&meet->to_root);
    if (meet->greeted) { /* once more all of its addresses */
        meet->was_greeted = true;
        meet->to_root.next_address = 0;
    }
    meet->greeted = false;
}

static weir_status root_stands(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    const ucx_link *link = &meet->members[0].link;
    if (!weir_ucx_dial_stands(&meet->to_root))
        return WEIR_OK;
    if (!watch_as(meet, link->fd, SOURCE_MEMBER, 0, EPOLLIN))
        return fail_watch(group);
    weir_status status = say_hello(group, WEIR_UCX_JOIN, link, &meet->greeted);
    if (status == WEIR_OK && !meet->greeted)
        drop_root(group);
    return status;
}

static weir_status all_linked(ucx_group *group)
{
    bool all = group->meet.linked;
    for (uint32_t i = 1; i < group->n_ranks; i++)
        all = all && group->meet.members[i].linked;
    if (!all)
        return WEIR_OK;
    weir_ucx_word word = { .kind = WEIR_UCX_JOINED };
    say_to_all(&group->meet, &word);
    weir_ucx_group_enter(group, UCX_JOINED);
    return WEIR_OK;
}

/* Both neighbours are there: rank 0 is told. */
static weir_status check_linked(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    weir_ucx_word word = { .kind = WEIR_UCX_LINKED };
    if (meet->linked || group->chain.before_fd < 0 || group->chain.after_fd < 0)
        return WEIR_OK;
    meet->linked = true;
    if (group->rank == 0)
        return all_linked(group);
    if (!say(meet, &meet->members[0].link, &word))
        return fail_gone(group, 0, "went away while joining");
    return WEIR_OK;
}

static weir_status after_stands(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    bool said = false;
    if (!meet->to_after.connecting || !weir_ucx_dial_stands(&meet->to_after))
        return WEIR_OK;
    if (!watch_as(meet, meet->after.fd, SOURCE_AFTER, 0, EPOLLOUT | EPOLLRDHUP | EPOLLET))
        return fail_watch(group);
    weir_status status = say_hello(group, WEIR_UCX_FEED, &meet->after, &said);
    if (status != WEIR_OK || !said) {
        weir_ucx_dial_drop(&meet->to_after);
        return status;
    }
    group->chain.after_fd = meet->after.fd;
    return check_linked(group);
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

static weir_status hear_word(ucx_group *group, uint32_t rank, const weir_ucx_word *word)
{
    ucx_member *member = &group->meet.members[group->rank == 0 ? rank : 0];
    switch (word->kind) {
    case WEIR_UCX_LINKED:
        member->linked = true;
        return group->rank == 0 ? all_linked(group) : WEIR_OK;
    case WEIR_UCX_JOINED:
        if (group->rank != 0)
            weir_ucx_group_enter(group, UCX_JOINED);
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

static weir_status hear_message(ucx_group *group, uint32_t rank, char kind, size_t n_bytes)
{
    const uint8_t *in = group->meet.members[rank].link.in;
    weir_ucx_start start;
    weir_ucx_word word;
    weir_status status = WEIR_ERR_CORRUPT;
    if (kind == 'w') {
        status = weir_ucx_word_decode(in, n_bytes, group->who, &word);
        return status == WEIR_OK ? hear_word(group, rank, &word) : status;
    }
    if (kind != 's' || group->rank == 0 || weir_ucx_group_phase(group) != UCX_JOINING)
        return weir_fail(status, "%s: rank %u says what none may say then", group->who, rank);
    status = weir_ucx_start_decode(in, n_bytes, group->who, &start);
    if (status == WEIR_OK)
        status = watch_process(group, 0, start.host, start.process);
    if (status != WEIR_OK)
        return status;
    group->meet.to_after.to = start.after;
    weir_ucx_group_enter(group, UCX_LINKING);
    return WEIR_OK;
}

static weir_status process_ended(ucx_group *group, uint32_t rank)
{
    ucx_member *member = &group->meet.members[rank];
    close_fd(&member->process_fd);
    if (member->left)
        return WEIR_OK;
    bool joined = weir_ucx_group_phase(group) == UCX_JOINED;
    return fail_gone(group, rank, joined ? "went away" : "went away while joining");
}

static weir_status connection_ended(ucx_group *group, uint32_t rank)
{
    ucx_member *member = &group->meet.members[rank];
    if (group->rank != 0 && weir_ucx_group_phase(group) == UCX_JOINING) {
        drop_root(group); /* it was not rank 0, or has not opened its group yet */
        return WEIR_OK;
    }
    if (member->left) {
        weir_ucx_link_close(&member->link);
        return WEIR_OK;
    }
    return process_ended(group, rank);
}

static weir_status hear_member(ucx_group *group, uint32_t rank)
{
    ucx_link *link = &group->meet.members[rank].link;
    if (link->fd >= 0 && group->meet.to_root.connecting)
        return root_stands(group);
    while (link->fd >= 0) {
        char kind = 0;
        size_t n_bytes = 0;
        ucx_heard heard = weir_ucx_link_hear(link, &kind, &n_bytes);
        if (heard == UCX_HEARD_NOTHING)
            return WEIR_OK;
        if (heard == UCX_HEARD_END)
            return connection_ended(group, rank);
        if (heard == UCX_HEARD_NONSENSE)
            return weir_fail(WEIR_ERR_CORRUPT, "%s: what rank %u says does not decode", group->who,
                             rank);
        weir_status status = hear_message(group, rank, kind, n_bytes);
        if (status != WEIR_OK)
            return status;
        if (link->fd >= 0)
            weir_ucx_link_heard(link, n_bytes);
    }
    return WEIR_OK;
}

/* ---- time ------------------------------------------------------------------------------------*/

static bool is_missing(ucx_group *group, uint32_t rank)
{
    const ucx_member *member = &group->meet.members[rank];
    return weir_ucx_group_phase(group) == UCX_JOINING ? member->link.fd < 0 : !member->linked;
}

static weir_status fail_missing(ucx_group *group)
{
    char names[160] = "";
    uint32_t n_missing = 0;
    size_t at = 0;
    for (uint32_t i = 1; i < group->n_ranks; i++) {
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
    uint32_t after = (group->rank + 1) % group->n_ranks;
    for (uint32_t i = 0; i < meet->n_strangers; i++) {
        if (meet->strangers[i].fd >= 0 && weir_deadline_passed(meet->strangers[i].until))
            weir_ucx_link_close(&meet->strangers[i]);
    }
    weir_status status = check_deadline(group);
    if (status == WEIR_OK && phase == UCX_LINKING)
        status = dial(group, &meet->to_after, SOURCE_AFTER, after);
    if (status == WEIR_OK && group->rank != 0)
        status = dial(group, &meet->to_root, SOURCE_MEMBER, 0);
    return status;
}

static weir_status handle(ucx_group *group, uint64_t data)
{
    eventfd_t woken;
    uint32_t index = (uint32_t)data;
    switch ((event_source)(data >> 32)) {
    case SOURCE_LISTENER:
        return accept_stranger(group);
    case SOURCE_STRANGER:
        return hear_stranger(group, index);
    case SOURCE_MEMBER:
        return hear_member(group, index);
    case SOURCE_PROCESS:
        return process_ended(group, index);
    case SOURCE_WAKE:
        (void)eventfd_read(group->meet.wake_fd, &woken);
        return WEIR_OK;
    case SOURCE_AFTER:
        return after_stands(group);
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

/* ---- from the group --------------------------------------------------------------------------*/

void weir_ucx_meet_done(ucx_group *group, uint64_t n_done)
{
    weir_ucx_word word = { .kind = WEIR_UCX_DONE, .n_done = n_done };
    if (group->rank != 0)
        say(&group->meet, &group->meet.members[0].link, &word);
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
    set_reason(&word, reason);
    say_to_all(&group->meet, &word);
    if (group->rank == 0)
        await_ends(&group->meet);
    for (uint32_t i = 0; i < group->meet.n_members; i++)
        weir_ucx_link_close(&group->meet.members[i].link);
}
