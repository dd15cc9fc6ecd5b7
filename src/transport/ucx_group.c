/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_group.c - broadcast groups of transport ucx: keys, the group's thread, and the caller's side.
 *
 * The caller's calls leave word under the lock and wake the thread; all of UCX and of the
 * connections is the thread's. A group that fails tells the others, lets everything go at once, and
 * its thread ends: what is left is the reason. It does not say which NIC the bytes go by: UCX
 * chooses.
 */
#include "transport/ucx_group.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "transport/transport_table.h"

#define TIMEOUT_MS 60000u
#define TICK_MS 10       /* while something has its time */
#define FINISH_MS 10000u /* for the others to have all, when rank 0 goes in peace */
#define BROKEN_MS 300u   /* for rank 0 to say why a neighbour has gone */
#define TURNS 64         /* of the chain, before the other connections are looked at */

/* ---- keys ------------------------------------------------------------------------------------*/

static void drop_listener(ucx_transport *ucx, unsigned index, bool close_it)
{
    if (close_it)
        close(ucx->listeners[index].fd);
    ucx->n_listeners--;
    memmove(&ucx->listeners[index], &ucx->listeners[index + 1],
            (ucx->n_listeners - index) * sizeof(ucx->listeners[0]));
}

void weir_ucx_keys_close(ucx_transport *ucx)
{
    while (ucx->n_listeners > 0)
        drop_listener(ucx, ucx->n_listeners - 1, true);
}

weir_status weir_ucx_group_make_key(weir_transport *transport, void *out_key)
{
    ucx_transport *ucx = (ucx_transport *)transport;
    ucx_listener listener = { .fd = -1 };
    weir_key_buffer bytes = { 0 };
    if (getrandom(listener.key.nonce, sizeof(listener.key.nonce), 0) != sizeof(listener.key.nonce))
        return weir_fail_errno("transport ucx: no random bytes");
    weir_status status = weir_ucx_listen(&listener.fd, &listener.key.port);
    if (status != WEIR_OK)
        return status;
    listener.key.place = weir_ucx_place();
    weir_ucx_own_addresses(&listener.key);
    status = weir_ucx_group_key_encode(&listener.key, &bytes);
    if (status != WEIR_OK) {
        close(listener.fd);
        weir_key_buffer_close(&bytes);
        return status;
    }
    memcpy(out_key, bytes.data, WEIR_GROUP_KEY_BYTES);
    weir_key_buffer_close(&bytes);
    if (ucx->n_listeners == WEIR_UCX_KEYS)
        drop_listener(ucx, 0, true);
    ucx->listeners[ucx->n_listeners++] = listener;
    return WEIR_OK;
}

/* The group's from now on. -1: there is none. */
static int take_listener(ucx_transport *ucx, const weir_ucx_group_key *key)
{
    for (unsigned i = 0; i < ucx->n_listeners; i++) {
        if (memcmp(ucx->listeners[i].key.nonce, key->nonce, sizeof(key->nonce)) != 0)
            continue;
        int fd = ucx->listeners[i].fd;
        drop_listener(ucx, i, false);
        return fd;
    }
    return -1;
}

/* ---- what thread and caller share ------------------------------------------------------------*/

ucx_phase weir_ucx_group_phase(ucx_group *group)
{
    pthread_mutex_lock(&group->lock);
    ucx_phase phase = group->phase;
    pthread_mutex_unlock(&group->lock);
    return phase;
}

void weir_ucx_group_enter(ucx_group *group, ucx_phase phase)
{
    pthread_mutex_lock(&group->lock);
    group->phase = phase;
    pthread_mutex_unlock(&group->lock);
}

/* With the lock held. */
static weir_status failed_already(const ucx_group *group)
{
    weir_error_restore(&group->why);
    return group->failure;
}

static void keep_failure(ucx_group *group, weir_status status)
{
    pthread_mutex_lock(&group->lock);
    group->phase = UCX_FAILED;
    group->failure = status;
    group->in_peace = group->over && group->n_done == group->n_queued;
    weir_error_save(&group->why);
    pthread_mutex_unlock(&group->lock);
}

/* ---- the thread ------------------------------------------------------------------------------*/

static void wake(ucx_group *group)
{
    eventfd_write(group->meet.wake_fd, 1);
}

static ucx_cast *cast_of(ucx_group *group, uint64_t number)
{
    return &group->casts[number % WEIR_UCX_AHEAD];
}

/* One step of what is queued; true when there may be more to do at once. */
static bool step(ucx_group *group, uint64_t n_queued)
{
    ucx_chain *chain = &group->chain;
    bool any = false;
    if (group->n_received < n_queued) {
        ucx_cast *cast = cast_of(group, group->n_received);
        any = weir_ucx_cast_receive(chain, cast);
        if (weir_ucx_cast_received(cast)) {
            group->n_received++;
            any = true;
        }
    }
    if (chain->n_offered < n_queued) {
        ucx_cast *cast = cast_of(group, chain->n_offered);
        any = weir_ucx_cast_offer(chain, cast) || any;
        if (weir_ucx_cast_offered(chain, cast)) {
            chain->n_offered++;
            any = true;
        }
    }
    if (group->n_sent < chain->n_offered &&
        weir_ucx_cast_taken(chain, cast_of(group, group->n_sent))) {
        group->n_sent++;
        any = true;
    }
    weir_ucx_chain_flush(chain);
    return any;
}

static bool advance(ucx_group *group, uint64_t n_queued)
{
    bool any = true;
    for (int i = 0; i < TURNS && any; i++)
        any = step(group, n_queued);
    return any;
}

static void count_done(ucx_group *group)
{
    uint64_t n_done = group->n_received < group->n_sent ? group->n_received : group->n_sent;
    if (n_done == group->n_done)
        return;
    weir_ucx_meet_done(group, n_done);
    pthread_mutex_lock(&group->lock);
    group->n_done = n_done;
    pthread_mutex_unlock(&group->lock);
}

/* A neighbour that is gone harms only what still needs it, and rank 0 knows better why. */
static weir_status check_chain(ucx_group *group, bool needed)
{
    const ucx_chain *chain = &group->chain;
    if (chain->failure != WEIR_OK)
        return chain->failure;
    if (!chain->broken || !needed)
        return WEIR_OK;
    if (group->broken_until == 0)
        group->broken_until = weir_deadline_in(BROKEN_MS);
    if (!weir_deadline_passed(group->broken_until))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_PEER_LOST, "%s: rank %u went away: %s", group->who,
                     chain->broken_rank, chain->broken_why);
}

/* A rank that went in peace has passed on all it had; who stays has no use for the group once the
 * same is true of all. */
static weir_status check_left(ucx_group *group, uint64_t n_queued)
{
    if (!group->left || group->n_done < n_queued || !weir_ucx_meet_all_done(group, n_queued))
        return WEIR_OK;
    group->over = true;
    return weir_fail(WEIR_ERR_PEER_LOST, "%s: rank %u has left", group->who, group->left_rank);
}

static weir_status turn(ucx_group *group, ucx_phase phase, uint64_t n_queued, bool ticking)
{
    bool busy = phase == UCX_JOINED && advance(group, n_queued);
    busy = busy || group->chain.transfer != NULL;
    count_done(group);
    weir_status status = check_chain(group, group->n_done < n_queued);
    if (status == WEIR_OK)
        status = check_left(group, n_queued);
    if (status != WEIR_OK)
        return status;
    ticking = ticking || phase != UCX_JOINED || group->broken_until != 0;
    return weir_ucx_meet_turn(group, busy ? 0 : ticking ? TICK_MS : -1);
}

/* Whether who was told to finish has done so. */
static bool may_go(const ucx_group *group, uint64_t n_queued)
{
    return group->n_done == n_queued && weir_ucx_meet_all_done(group, n_queued);
}

/* Until the group has failed, or its caller wants it closed. True: in peace. */
static bool run(ucx_group *group)
{
    weir_status status = WEIR_OK;
    weir_deadline finish_until = 0;
    while (status == WEIR_OK) {
        pthread_mutex_lock(&group->lock);
        ucx_phase phase = group->phase;
        uint64_t n_queued = group->n_queued;
        ucx_stop stop = group->stop;
        pthread_mutex_unlock(&group->lock);
        if (stop == UCX_FINISH && finish_until == 0)
            finish_until = weir_deadline_in(FINISH_MS);
        if (stop == UCX_FINISH && phase == UCX_JOINED && may_go(group, n_queued))
            return true;
        if (stop == UCX_ABORT || (stop == UCX_FINISH && phase != UCX_JOINED) ||
            (finish_until != 0 && weir_deadline_passed(finish_until))) {
            status = weir_fail(WEIR_ERR_PEER_LOST, "%s: rank %u has left", group->who, group->rank);
            break;
        }
        status = turn(group, phase, n_queued, stop != UCX_STAY);
    }
    weir_error_line why;
    weir_error_save(&why);
    weir_ucx_chain_stop(&group->chain);
    weir_error_restore(&why);
    keep_failure(group, status);
    return false;
}

/* The same words for the others, without the group's name: each puts its own in front. */
static const char *reason_of(const ucx_group *group)
{
    size_t n = strlen(group->who);
    const char *why = group->why.text;
    return strncmp(why, group->who, n) == 0 && strncmp(why + n, ": ", 2) == 0 ? why + n + 2 : why;
}

static void *group_main(void *argument)
{
    ucx_group *group = argument;
    if (run(group))
        weir_ucx_meet_leave(group, WEIR_UCX_LEFT, WEIR_OK, "");
    else
        weir_ucx_meet_leave(group, group->over ? WEIR_UCX_LEFT : WEIR_UCX_BROKEN,
                            group->over ? WEIR_OK : group->failure, reason_of(group));
    weir_ucx_chain_close(&group->chain);
    return NULL;
}

/* The application's signal handlers must not run on our thread. */
static int start_thread(ucx_group *group)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&group->thread, NULL, group_main, group);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

/* ---- the caller's side -----------------------------------------------------------------------*/

static weir_status check_options(const weir_group_options *options)
{
    if (options->key == NULL)
        return weir_fail(WEIR_ERR_INVALID, "transport ucx: a group needs the key of its rank 0");
    if (options->n_ranks == 0 || options->rank >= options->n_ranks)
        return weir_fail(WEIR_ERR_INVALID, "transport ucx: rank %u of %u ranks", options->rank,
                         options->n_ranks);
    if (options->n_ranks > WEIR_UCX_RANKS)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "transport ucx: a group of %u ranks, at most %u",
                         options->n_ranks, WEIR_UCX_RANKS);
    return WEIR_OK;
}

static void free_group(ucx_group *group)
{
    weir_ucx_chain_close(&group->chain);
    weir_ucx_meet_close(&group->meet);
    for (size_t i = 0; i < WEIR_UCX_AHEAD; i++)
        weir_free(group->casts[i].many);
    pthread_mutex_destroy(&group->lock);
    weir_free(group->who);
    weir_free(group);
}

static weir_status make_group(weir_transport *transport, const weir_group_options *options,
                              const weir_ucx_group_key *key, ucx_group **out)
{
    ucx_group *group = weir_alloc_zeroed(1, sizeof(*group));
    char *who = weir_strdup(options->who != NULL ? options->who : "broadcast group");
    if (group == NULL || who == NULL) {
        weir_free(group);
        weir_free(who);
        return WEIR_ERR_NO_MEMORY;
    }
    group->base.transport = transport;
    group->who = who;
    group->rank = options->rank;
    group->n_ranks = options->n_ranks;
    group->timeout_ms = options->timeout_ms != 0 ? options->timeout_ms : TIMEOUT_MS;
    group->deadline = weir_deadline_in(group->timeout_ms);
    group->chain.who = who;
    group->chain.rank = group->rank;
    group->chain.n_ranks = group->n_ranks;
    group->chain.of = (ucx_transport *)transport;
    group->meet.key = *key;
    group->meet.listener = group->meet.poll_fd = -1;
    group->meet.wake_fd = group->meet.abort_fd = group->chain.abort_fd = -1;
    group->meet.before.fd = group->meet.after.fd = -1;
    pthread_mutex_init(&group->lock, NULL);
    *out = group;
    return WEIR_OK;
}

static weir_status begin(ucx_group *group)
{
    ucx_transport *ucx = (ucx_transport *)group->base.transport;
    if (group->rank == 0) {
        group->meet.listener = take_listener(ucx, &group->meet.key);
        if (group->meet.listener < 0)
            return weir_fail(WEIR_ERR_INVALID,
                             "%s: rank 0 opens a group with a key that is none of its own, or was "
                             "opened before",
                             group->who);
    }
    weir_status status = weir_ucx_meet_open(group);
    if (status == WEIR_OK && start_thread(group) != 0)
        status = weir_fail(WEIR_ERR_NO_MEMORY, "%s: cannot start its thread", group->who);
    return status;
}

weir_status weir_ucx_group_open(weir_transport *transport, const weir_group_options *given,
                                weir_group **out)
{
    weir_group_options options;
    weir_ucx_group_key key;
    ucx_group *group = NULL;
    weir_status status =
        weir_transport_struct_read(given, sizeof(options), "weir_group_options", &options);
    if (status == WEIR_OK)
        status = check_options(&options);
    if (status == WEIR_OK)
        status =
            weir_ucx_group_key_decode(options.key, WEIR_GROUP_KEY_BYTES,
                                      options.who != NULL ? options.who : "broadcast group", &key);
    if (status == WEIR_OK)
        status = weir_ucx_open_quiet((ucx_transport *)transport);
    if (status == WEIR_OK)
        status = make_group(transport, &options, &key, &group);
    if (status != WEIR_OK)
        return status;
    status = begin(group);
    if (status != WEIR_OK) {
        free_group(group);
        return status;
    }
    *out = &group->base;
    return WEIR_OK;
}

weir_status weir_ucx_group_test(weir_group *base)
{
    ucx_group *group = (ucx_group *)base;
    pthread_mutex_lock(&group->lock);
    weir_status status = group->phase == UCX_FAILED   ? failed_already(group)
                         : group->phase == UCX_JOINED ? WEIR_OK
                                                      : WEIR_IN_PROGRESS;
    pthread_mutex_unlock(&group->lock);
    return status;
}

/* Lists grow once, and are kept. */
static weir_status set_parts(ucx_cast *cast, const weir_group_part *parts, size_t n_parts)
{
    cast->parts = cast->few;
    if (n_parts > WEIR_UCX_FEW_PARTS) {
        if (n_parts > cast->many_parts) {
            weir_group_part *many = weir_realloc(cast->many, n_parts * sizeof(*many));
            if (many == NULL)
                return WEIR_ERR_NO_MEMORY;
            cast->many = many;
            cast->many_parts = n_parts;
        }
        cast->parts = cast->many;
    }
    if (n_parts > 0)
        memcpy(cast->parts, parts, n_parts * sizeof(*parts));
    cast->n_parts = n_parts;
    return WEIR_OK;
}

/* With the lock held. */
static weir_status queue(ucx_group *group, uint32_t root, const weir_group_part *parts,
                         size_t n_parts)
{
    if (group->phase == UCX_FAILED)
        return failed_already(group);
    if (group->phase != UCX_JOINED)
        return weir_fail(WEIR_ERR_INVALID, "%s: a broadcast before all ranks have joined",
                         group->who);
    if (group->n_queued - group->n_done == WEIR_UCX_AHEAD)
        return weir_fail(WEIR_ERR_BUSY, "%s: %u broadcasts are queued already", group->who,
                         WEIR_UCX_AHEAD);
    ucx_cast *cast = &group->casts[group->n_queued % WEIR_UCX_AHEAD];
    weir_status status = set_parts(cast, parts, n_parts);
    if (status != WEIR_OK)
        return status;
    cast->head.root = root;
    cast->head.number = group->n_queued++;
    weir_ucx_cast_begin(cast);
    return WEIR_OK;
}

weir_status weir_ucx_group_broadcast(weir_group *base, uint32_t root, const weir_group_part *parts,
                                     size_t n_parts, void *stream)
{
    ucx_group *group = (ucx_group *)base;
    (void)stream;
    weir_status status =
        weir_transport_parts_check(group->who, root, group->n_ranks, parts, n_parts);
    if (status != WEIR_OK)
        return status;
    pthread_mutex_lock(&group->lock);
    status = queue(group, root, parts, n_parts);
    pthread_mutex_unlock(&group->lock);
    if (status == WEIR_OK)
        wake(group);
    return status;
}

weir_status weir_ucx_group_progress(weir_group *base, uint64_t *out_n_done)
{
    ucx_group *group = (ucx_group *)base;
    weir_status status = WEIR_OK;
    pthread_mutex_lock(&group->lock);
    if (group->phase == UCX_FAILED && !group->in_peace)
        status = failed_already(group);
    else
        *out_n_done = group->n_done;
    pthread_mutex_unlock(&group->lock);
    return status;
}

void weir_ucx_group_leave(weir_group *base, bool abort)
{
    ucx_group *group = (ucx_group *)base;
    pthread_mutex_lock(&group->lock);
    if (group->stop != UCX_ABORT)
        group->stop = abort ? UCX_ABORT : UCX_FINISH;
    pthread_mutex_unlock(&group->lock);
    if (abort)
        eventfd_write(group->meet.abort_fd, 1);
    wake(group);
}

void weir_ucx_group_close(weir_group *base, bool abort)
{
    if (base == NULL)
        return;
    ucx_group *group = (ucx_group *)base;
    weir_ucx_group_leave(base, abort);
    pthread_join(group->thread, NULL);
    free_group(group);
}
