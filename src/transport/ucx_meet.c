/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_meet.c - how the ranks of a group find each other, and what they tell each other.
 *
 * Every rank connects to rank 0, shows the key's nonce and says where its worker is; once all are
 * in, rank 0 tells each the workers of its neighbours. A connection that ends is a rank that is
 * gone: rank 0 tells the others. One that does not show the nonce keeps nobody waiting.
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
#include "transport/transport_host.h"
#include "transport/ucx_group.h"

#define EVENTS 32
#define STRANGER_MS 5000u
#define CONNECT_MS 2000u
#define LEAVE_MS 500u
#define ANSWER_MS \
    500u /* that rank 0 has longer than the others, so that it can say who is missing */
#define NAMED_RANKS 8

/* What is ready, in the upper half of an event's data; which one of them, in the lower. */
typedef enum event_source {
    SOURCE_WAKE,
    SOURCE_UCX,
    SOURCE_LISTENER,
    SOURCE_STRANGER,
    SOURCE_MEMBER,
    SOURCE_PROCESS
} event_source;

static bool watch(const ucx_meet *meet, int fd, event_source source, uint32_t index,
                  uint32_t events)
{
    struct epoll_event event = { .events = events, .data.u64 = (uint64_t)source << 32 | index };
    return epoll_ctl(meet->poll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
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
    uint32_t n_strangers = group->rank == 0 ? WEIR_UCX_STRANGERS : 0;
    meet->members = weir_alloc_zeroed(n_members, sizeof(*meet->members));
    meet->strangers = weir_alloc_zeroed(n_strangers, sizeof(*meet->strangers));
    if (meet->members == NULL || meet->strangers == NULL)
        return WEIR_ERR_NO_MEMORY;
    meet->n_members = n_members;
    meet->n_strangers = n_strangers;
    bool opened = true;
    for (uint32_t i = 0; i < meet->n_members; i++)
        opened = open_member(&meet->members[i]) && opened;
    for (uint32_t i = 0; i < n_strangers; i++)
        opened = open_link(&meet->strangers[i]) && opened;
    return opened ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

weir_status weir_ucx_meet_open(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    weir_status status = open_links(group);
    if (status != WEIR_OK)
        return status;
    meet->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    meet->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (meet->wake_fd < 0 || meet->poll_fd < 0 ||
        !watch(meet, meet->wake_fd, SOURCE_WAKE, 0, EPOLLIN))
        return fail_watch(group);
    if (meet->listener >= 0 && !watch(meet, meet->listener, SOURCE_LISTENER, 0, EPOLLIN))
        return fail_watch(group);
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
        weir_free(meet->members[i].worker);
        close_fd(&meet->members[i].process_fd);
    }
    for (uint32_t i = 0; i < meet->n_strangers; i++) {
        weir_ucx_link_close(&meet->strangers[i]);
        weir_free(meet->strangers[i].in);
    }
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

static weir_status say_hello(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    weir_ucx_hello hello = { .rank = group->rank,
                             .n_ranks = group->n_ranks,
                             .process = (uint32_t)getpid(),
                             .worker = meet->members[0].worker,
                             .worker_bytes = meet->members[0].worker_bytes };
    memcpy(hello.nonce, meet->key.nonce, sizeof(hello.nonce));
    snprintf(hello.ucx_version, sizeof(hello.ucx_version), "%s", ucp_get_version_string());
    snprintf(hello.host, sizeof(hello.host), "%s", weir_ucx_host());
    weir_status status = weir_ucx_hello_encode(&hello, &meet->out);
    if (status == WEIR_OK)
        meet->greeted = weir_ucx_link_send(&meet->members[0].link, &meet->out);
    return status;
}

/* ---- rank 0: who comes -----------------------------------------------------------------------*/

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
    const ucx_member *before = &meet->members[(rank + group->n_ranks - 1) % group->n_ranks];
    const ucx_member *after = &meet->members[(rank + 1) % group->n_ranks];
    weir_ucx_start start = { .process = (uint32_t)getpid(),
                             .before = before->worker,
                             .after = after->worker,
                             .before_bytes = before->worker_bytes,
                             .after_bytes = after->worker_bytes };
    snprintf(start.host, sizeof(start.host), "%s", weir_ucx_host());
    if (rank == 0)
        return weir_ucx_chain_link(&group->chain, &start);
    weir_status status = weir_ucx_start_encode(&start, &meet->out);
    if (status == WEIR_OK && !weir_ucx_link_send(&meet->members[rank].link, &meet->out))
        status = fail_gone(group, rank, "went away while joining");
    return status;
}

static weir_status start(ucx_group *group)
{
    weir_status status = WEIR_OK;
    for (uint32_t i = 0; i < group->n_ranks && status == WEIR_OK; i++)
        status = send_start(group, i);
    close_fd(&group->meet.listener); /* nobody else is expected */
    for (uint32_t i = 0; i < group->meet.n_strangers; i++)
        weir_ucx_link_close(&group->meet.strangers[i]);
    if (status == WEIR_OK)
        weir_ucx_group_enter(group, UCX_LINKING);
    return status;
}

static uint8_t *copy_of(const uint8_t *bytes, size_t n_bytes)
{
    uint8_t *copy = weir_alloc(n_bytes);
    if (copy != NULL)
        memcpy(copy, bytes, n_bytes);
    return copy;
}

/* The connection becomes the rank's. */
static weir_status take_in(ucx_group *group, uint32_t index, const weir_ucx_hello *hello)
{
    ucx_meet *meet = &group->meet;
    ucx_link *stranger = &meet->strangers[index];
    ucx_member *member = &meet->members[hello->rank];
    member->worker = copy_of(hello->worker, hello->worker_bytes);
    if (member->worker == NULL)
        return WEIR_ERR_NO_MEMORY;
    member->worker_bytes = hello->worker_bytes;
    struct epoll_event event = { .events = EPOLLIN,
                                 .data.u64 = (uint64_t)SOURCE_MEMBER << 32 | hello->rank };
    if (epoll_ctl(meet->poll_fd, EPOLL_CTL_MOD, stranger->fd, &event) != 0)
        return fail_watch(group);
    member->link.fd = stranger->fd;
    stranger->fd = -1;
    stranger->n_in = 0;
    weir_status status = watch_process(group, hello->rank, hello->host, hello->process);
    return status == WEIR_OK && all_are_in(group) ? start(group) : status;
}

/* Only who shows the nonce is told what is wrong. */
static weir_status judge(ucx_group *group, uint32_t index, size_t n_bytes)
{
    ucx_link *stranger = &group->meet.strangers[index];
    weir_ucx_hello hello;
    char why[256];
    if (weir_ucx_hello_decode(stranger->in, n_bytes, group->who, &hello) != WEIR_OK ||
        memcmp(hello.nonce, group->meet.key.nonce, sizeof(hello.nonce)) != 0) {
        weir_log(WEIR_LOG_INFO, "ucx: %s: a stranger was dropped", group->who);
        weir_ucx_link_close(stranger);
        return WEIR_OK;
    }
    if (hello.n_ranks != group->n_ranks || hello.rank == 0 || hello.rank >= group->n_ranks) {
        snprintf(why, sizeof(why), "rank 0 has %u ranks, and this one is rank %u of %u",
                 group->n_ranks, hello.rank, hello.n_ranks);
        refuse(group, stranger, WEIR_ERR_INVALID, why);
    } else if (!weir_ucx_version_agrees(hello.ucx_version)) {
        snprintf(why, sizeof(why), "rank 0 runs UCX %s, rank %u %s: they are not compatible",
                 ucp_get_version_string(), hello.rank, hello.ucx_version);
        refuse(group, stranger, WEIR_ERR_UNSUPPORTED, why);
    } else if (group->meet.members[hello.rank].link.fd >= 0) {
        snprintf(why, sizeof(why), "rank %u is in already", hello.rank);
        refuse(group, stranger, WEIR_ERR_EXISTS, why);
    } else {
        return take_in(group, index, &hello);
    }
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
    if (heard == UCX_HEARD_MESSAGE && kind == 'h' && stranger->n_in == n_bytes)
        return judge(group, index, n_bytes);
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
    int fd = meet->listener >= 0 ? weir_ucx_accept(meet->listener) : -1;
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

/* ---- the others: the way to rank 0 -----------------------------------------------------------*/

uint64_t weir_ucx_place(void)
{
    char place[WEIR_KEY_TEXT] = "";
    weir_digest digest = { 0, 0 };
    weir_transport_host("net", place);
    weir_digest_add(&digest, place, 1, strlen(place));
    return digest.product ^ digest.sum;
}

/* The n-th address to try; ranks of one place meet by its loopback. */
static bool nth_address(const weir_ucx_group_key *key, unsigned n, weir_ip_address *out)
{
    static const weir_ip_address loopback = { 4, { 127, 0, 0, 1 } };
    unsigned n_own = key->place == weir_ucx_place() ? 1 : 0;
    if (n >= n_own + key->n_addresses)
        return false;
    *out = n < n_own ? loopback : key->addresses[n - n_own];
    return true;
}

/* In turn, and from the first again: what is refused may be there a moment later. */
static weir_status connect_next(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    ucx_link *link = &meet->members[0].link;
    weir_ip_address address;
    if (!nth_address(&meet->key, meet->next_address, &address)) {
        if (meet->next_address == 0)
            return weir_fail(WEIR_ERR_UNSUPPORTED,
                             "%s: rank 0 is on another host, and has no address that one reaches",
                             group->who);
        meet->next_address = 0;
        return meet->was_greeted ? fail_gone(group, 0, "went away while joining") : WEIR_OK;
    }
    meet->next_address++;
    link->fd = weir_ucx_connect_begin(&address, meet->key.port);
    if (link->fd < 0)
        return WEIR_OK;
    link->until = weir_deadline_in(CONNECT_MS);
    meet->connecting = true;
    if (!watch(meet, link->fd, SOURCE_MEMBER, 0, EPOLLOUT))
        return fail_watch(group);
    return WEIR_OK;
}

static void drop_connection(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    weir_ucx_link_close(&meet->members[0].link);
    if (meet->greeted) { /* once more all of them: nobody there any more is rank 0 gone */
        meet->was_greeted = true;
        meet->next_address = 0;
    }
    meet->connecting = false;
    meet->greeted = false;
}

static weir_status connection_stands(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    ucx_link *link = &meet->members[0].link;
    meet->connecting = false;
    struct epoll_event event = { .events = EPOLLIN, .data.u64 = (uint64_t)SOURCE_MEMBER << 32 };
    if (!weir_ucx_connect_stands(link->fd)) {
        drop_connection(group);
        return WEIR_OK;
    }
    if (epoll_ctl(meet->poll_fd, EPOLL_CTL_MOD, link->fd, &event) != 0)
        return fail_watch(group);
    weir_status status = say_hello(group);
    if (status == WEIR_OK && !meet->greeted)
        drop_connection(group);
    return status;
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

static weir_status all_linked(ucx_group *group)
{
    for (uint32_t i = 1; i < group->n_ranks; i++) {
        if (!group->meet.members[i].linked)
            return WEIR_OK;
    }
    weir_ucx_word word = { .kind = WEIR_UCX_JOINED };
    say_to_all(&group->meet, &word);
    weir_ucx_group_enter(group, UCX_JOINED);
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
    if (status == WEIR_OK)
        status = weir_ucx_chain_link(&group->chain, &start);
    if (status == WEIR_OK)
        weir_ucx_group_enter(group, UCX_LINKING);
    return status;
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
        drop_connection(group); /* it was not rank 0, or has not opened its group yet */
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
    if (link->fd >= 0 && group->meet.connecting)
        return connection_stands(group);
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
                     weir_ucx_group_phase(group) == UCX_JOINING ? "come" : "been reached",
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

static weir_status look_at_time(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    ucx_link *link = &meet->members[0].link;
    for (uint32_t i = 0; i < meet->n_strangers; i++) {
        if (meet->strangers[i].fd >= 0 && weir_deadline_passed(meet->strangers[i].until))
            weir_ucx_link_close(&meet->strangers[i]);
    }
    if (meet->connecting && weir_deadline_passed(link->until))
        drop_connection(group);
    weir_status status = check_deadline(group);
    if (status == WEIR_OK && group->rank != 0 && link->fd < 0)
        status = connect_next(group);
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
    default: /* UCX's: progress is made anyway */
        return WEIR_OK;
    }
}

weir_status weir_ucx_meet_begin(ucx_group *group)
{
    ucx_meet *meet = &group->meet;
    if (!watch(meet, group->chain.ucx_fd, SOURCE_UCX, 0, EPOLLIN))
        return fail_watch(group);
    ucp_address_t *worker;
    size_t n_bytes;
    ucs_status_t status = ucp_worker_get_address(group->chain.worker, &worker, &n_bytes);
    if (status != UCS_OK)
        return weir_ucx_fail(status, group->who, "a worker has no address");
    ucx_member *own = &meet->members[0];
    weir_status result = WEIR_OK;
    if (n_bytes > WEIR_KEY_BLOB)
        result = weir_fail(WEIR_ERR_UNSUPPORTED, "%s: UCX's address of %zu bytes is too long",
                           group->who, n_bytes);
    else if ((own->worker = copy_of((const uint8_t *)worker, n_bytes)) == NULL)
        result = WEIR_ERR_NO_MEMORY;
    own->worker_bytes = n_bytes;
    ucp_worker_release_address(group->chain.worker, worker);
    if (result == WEIR_OK && group->rank == 0 && all_are_in(group)) /* alone */
        weir_ucx_group_enter(group, UCX_JOINED);
    return result;
}

weir_status weir_ucx_meet_turn(ucx_group *group, int sleep_ms)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(group->meet.poll_fd, events, EVENTS, sleep_ms);
    weir_status status = WEIR_OK;
    for (int i = 0; i < n && status == WEIR_OK; i++)
        status = handle(group, events[i].data.u64);
    if (status == WEIR_OK && weir_ucx_group_phase(group) < UCX_JOINED)
        status = look_at_time(group);
    return status;
}

/* ---- from the group --------------------------------------------------------------------------*/

weir_status weir_ucx_meet_linked(ucx_group *group)
{
    weir_ucx_word word = { .kind = WEIR_UCX_LINKED };
    if (group->rank == 0)
        return WEIR_OK;
    if (!say(&group->meet, &group->meet.members[0].link, &word))
        return fail_gone(group, 0, "went away while joining");
    return WEIR_OK;
}

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
