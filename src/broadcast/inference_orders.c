/* SPDX-License-Identifier: Apache-2.0 */
/* inference_orders.c - does what an orchestrator has asked for, one order after the other, in a
 * thread that may wait. What a round of installs is stands in inference_update.c. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "broadcast/inference_core.h"

#define CHECK_MS 50u /* how often a bound that has passed is enforced anew */
#define AGAIN_MS 100u
#define OTHERS_MS 500u
#define MOST_HOST_CHARACTERS 64 /* of a line that says what goes on */
#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull

/* ---- orders ----------------------------------------------------------------------------------*/

void weir_inference_doing(const weir_inference_order *order, char *text, size_t n_text)
{
    static const char *const names[] = { "nothing",
                                         "a trainer is being joined",
                                         "the engine is being paused",
                                         "a version is being installed",
                                         "the engine is being resumed",
                                         "what was held before is being brought back" };
    if (order->kind == WEIR_ORDER_UPDATE && order->update.has_version)
        snprintf(text, n_text, "version %" PRIu64 " is being installed", order->update.version);
    else if (order->kind == WEIR_ORDER_JOIN)
        snprintf(text, n_text, "the trainer at %.*s:%u is being joined", MOST_HOST_CHARACTERS,
                 order->join.host, order->join.port);
    else
        snprintf(text, n_text, "%s", names[order->kind]);
}

bool weir_inference_is_over(const weir_inference *server)
{
    return atomic_load(&server->is_stopping) || weir_deadline_passed(server->order.deadline);
}

void weir_inference_fail(weir_inference *server, unsigned http_status)
{
    const char *line = weir_last_error();
    pthread_mutex_lock(&server->lock);
    snprintf(server->info.error, sizeof(server->info.error), "%s", line);
    weir_inference_say_error(server, http_status, line, &server->answer);
    pthread_mutex_unlock(&server->lock);
}

static void tell(weir_inference *server, const char *event)
{
    weir_inference_info info;
    if (server->options.said == NULL)
        return;
    weir_inference_get_info(server, &info);
    server->options.said(server->options.said_context, event, &info);
}

/* ---- workers ---------------------------------------------------------------------------------*/

static void wait_a_while(weir_inference *server)
{
    uint64_t at_ns = weir_now_ns() + CHECK_MS * NS_PER_MS;
    const struct timespec until = { .tv_sec = (time_t)(at_ns / NS_PER_S),
                                    .tv_nsec = (long)(at_ns % NS_PER_S) };
    pthread_cond_timedwait(&server->changed, &server->lock, &until);
}

/* Who has failed may wait, with what it has said in a ballot, for what the others say. */
static bool has_all(const weir_inference *server, bool *out_failed)
{
    bool all = true;
    *out_failed = weir_vote_culprit(server->vote) != WEIR_NO_CULPRIT;
    for (uint32_t i = 0; i < server->n_workers; i++) {
        bool rests = server->workers[i].task == WEIR_TASK_NONE;
        all &= rests;
        *out_failed |= rests && server->workers[i].result != WEIR_OK;
    }
    return all;
}

void weir_inference_dispatch(weir_inference *server, weir_inference_task task,
                             void (*late)(weir_inference *server),
                             void (*failed)(weir_inference *server))
{
    bool has_failed = false;
    pthread_mutex_lock(&server->lock);
    for (uint32_t i = 0; i < server->n_workers; i++)
        server->workers[i].task = task;
    pthread_cond_broadcast(&server->changed);
    while (!has_all(server, &has_failed)) {
        if (late != NULL && weir_inference_is_over(server))
            late(server);
        if (failed != NULL && has_failed)
            failed(server);
        wait_a_while(server);
    }
    pthread_mutex_unlock(&server->lock);
}

/* ---- joining ---------------------------------------------------------------------------------*/

void weir_inference_address_of(const weir_join_wish *wish, char out[WEIR_INFERENCE_ADDRESS_BYTES])
{
    bool is_v6 = strchr(wish->host, ':') != NULL && wish->host[0] != '[';
    snprintf(out, WEIR_INFERENCE_ADDRESS_BYTES, is_v6 ? "[%s]:%u" : "%s:%u", wish->host,
             wish->port);
}

static void set_looking(weir_inference *server, weir_directory_client *client)
{
    pthread_mutex_lock(&server->lock);
    server->looking = client;
    pthread_mutex_unlock(&server->lock);
}

weir_status weir_inference_look_begin(weir_inference *server, const weir_join_wish *wish,
                                      unsigned timeout_ms, weir_directory_client **out)
{
    char address[WEIR_INFERENCE_ADDRESS_BYTES];
    weir_directory_client *client = NULL;
    weir_inference_address_of(wish, address);
    weir_status status = weir_directory_client_open(address, timeout_ms, &client);
    if (status == WEIR_OK)
        status = weir_directory_client_secure(client, &server->kept.security);
    if (status != WEIR_OK) {
        weir_directory_client_close(client);
        return status;
    }
    weir_directory_client_heed(client, &server->is_stopping);
    set_looking(server, client);
    *out = client;
    return WEIR_OK;
}

void weir_inference_look_end(weir_inference *server, weir_directory_client *client)
{
    set_looking(server, NULL);
    weir_directory_client_close(client);
}

/* Who it could have been instead, for the error. */
static weir_status no_trainer(weir_inference *server, weir_directory_client *client)
{
    weir_trainer_sight sight = { .has_trainer = false };
    const char *model = server->options.model;
    double seconds = server->order.timeout_ms / 1e3;
    weir_directory_client_bound(client, OTHERS_MS);
    if (weir_trainer_look(client, "", "", 0, 0, &sight) != WEIR_OK || sight.others[0] == '\0')
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "directory %s has known no trainer of model '%s' within %.1f s",
                         weir_directory_client_address(client), model, seconds);
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "directory %s has known no trainer of model '%s' within %.1f s: it has one of "
                     "'%s'",
                     weir_directory_client_address(client), model, seconds, sight.others);
}

/* A trainer that says for whom it broadcasts does so for this server's group, or not for it. */
static weir_status check_group(const weir_inference *server, const weir_trainer_sight *sight,
                               const char *address)
{
    const weir_join_wish *wish = &server->order.join;
    if (sight->says_run && strcmp(sight->run, wish->run) != 0)
        return weir_fail(WEIR_ERR_INVALID,
                         "'session_id' is '%s', but the trainer at %s is of run '%s'", wish->run,
                         address, sight->run);
    if (sight->n_workers == 0 || sight->n_workers == wish->n_workers_of_all)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID,
                     "%s, ranks %u to %u, is of a group of %u inference workers, but the trainer "
                     "at %s broadcasts to %u",
                     wish->server, wish->first_rank, wish->first_rank + server->n_workers - 1,
                     wish->n_workers_of_all, address, sight->n_workers);
}

/* One look, which ends by the order's bound: the first one is answered at once, by whoever is
 * there; later ones wait for news. */
static weir_status look_for_trainer(weir_inference *server, weir_directory_client *client,
                                    weir_trainer_sight *sight)
{
    unsigned left_ms = weir_deadline_left_ms(server->order.deadline);
    unsigned wait_ms = sight->revision != 0 ? left_ms / 2 : 0;
    weir_directory_client_bound(client, left_ms > wait_ms ? left_ms - wait_ms : 1);
    return weir_trainer_look(client, server->options.model, server->order.join.run, sight->revision,
                             wait_ms, sight);
}

/* Until it is there; one that is about to come up does not answer at first. */
static weir_status await_trainer(weir_inference *server, weir_directory_client *client)
{
    weir_trainer_sight sight = { .revision = 0 };
    bool has_answered = false;
    weir_status status;
    do {
        status = look_for_trainer(server, client, &sight);
        if (status == WEIR_OK && (!sight.is_told || sight.has_trainer))
            return check_group(server, &sight, weir_directory_client_address(client));
        if (status != WEIR_OK && status != WEIR_ERR_PEER_LOST && status != WEIR_ERR_TIMED_OUT)
            return status;
        has_answered = status == WEIR_OK || (has_answered && status == WEIR_ERR_TIMED_OUT);
        unsigned left_ms = weir_deadline_left_ms(server->order.deadline);
        if (status != WEIR_OK || sight.revision == 0)
            weir_sleep_ms(left_ms < AGAIN_MS ? left_ms : AGAIN_MS);
    } while (!weir_inference_is_over(server));
    if (atomic_load(&server->is_stopping))
        return weir_fail(WEIR_ERR_CANCELLED, "the server is closing");
    if (has_answered)
        return no_trainer(server, client);
    if (status == WEIR_ERR_TIMED_OUT)
        return weir_fail(status, "the trainer's directory at %s has not answered within %.1f s",
                         weir_directory_client_address(client), server->order.timeout_ms / 1e3);
    return status;
}

static weir_status find_trainer(weir_inference *server)
{
    weir_directory_client *client;
    weir_status status =
        weir_inference_look_begin(server, &server->order.join, server->order.timeout_ms, &client);
    if (status != WEIR_OK)
        return status;
    status = await_trainer(server, client);
    weir_inference_look_end(server, client);
    return status;
}

static void leave(weir_inference *server)
{
    weir_inference_dispatch(server, WEIR_TASK_LEAVE, NULL, NULL);
    pthread_mutex_lock(&server->lock);
    bool was_joined = server->info.joined;
    server->info.joined = server->is_of_this_run = false;
    pthread_mutex_unlock(&server->lock);
    if (was_joined)
        tell(server, "left");
}

static weir_status join_workers(weir_inference *server)
{
    weir_inference_dispatch(server, WEIR_TASK_JOIN, NULL, NULL);
    for (uint32_t i = 0; i < server->n_workers; i++) {
        const weir_inference_worker *worker = &server->workers[i];
        if (worker->result == WEIR_OK)
            continue;
        weir_error_line cause = worker->error;
        weir_status status = worker->result;
        leave(server);
        return weir_fail(status, "%s, worker %u (rank %u): %s", server->order.join.server, i,
                         server->order.join.first_rank + i, cause.text);
    }
    return WEIR_OK;
}

static void set_joined(weir_inference *server)
{
    const weir_join_wish *wish = &server->order.join;
    pthread_mutex_lock(&server->lock);
    server->joined = *wish;
    server->info.joined = true;
    server->info.rank = wish->first_rank;
    server->info.kernel_mode = wish->kernel_mode;
    weir_inference_say_joined(server, &server->answer);
    pthread_mutex_unlock(&server->lock);
}

static unsigned http_status_of_join(weir_status status)
{
    switch (status) {
    case WEIR_ERR_PEER_LOST:
    case WEIR_ERR_TIMED_OUT:
        return 504;
    case WEIR_ERR_EXISTS:
        return 409;
    case WEIR_ERR_INVALID:
        return 400;
    case WEIR_ERR_CANCELLED:
        return 503;
    default:
        return 500;
    }
}

/* It could not join another run: that of before, as if nothing had been asked. */
static void rejoin(weir_inference *server)
{
    weir_error_line cause;
    weir_error_save(&cause);
    pthread_mutex_lock(&server->lock);
    server->order.join = server->joined;
    pthread_mutex_unlock(&server->lock);
    if (join_workers(server) == WEIR_OK) {
        pthread_mutex_lock(&server->lock);
        server->info.joined = true;
        pthread_mutex_unlock(&server->lock);
    }
    weir_error_restore(&cause);
}

/* Another content leaves the run that it was in, once it knows where to go; the parameters stay. */
static void join(weir_inference *server)
{
    bool was_joined = server->info.joined;
    if (was_joined && weir_join_wish_equal(&server->joined, &server->order.join)) {
        set_joined(server);
        return;
    }
    weir_status status = find_trainer(server);
    bool has_left = status == WEIR_OK && was_joined;
    if (has_left)
        leave(server);
    if (status == WEIR_OK)
        status = join_workers(server);
    if (status == WEIR_OK) {
        set_joined(server);
        return;
    }
    if (has_left)
        rejoin(server);
    weir_inference_fail(server, http_status_of_join(status));
}

/* ---- pausing and resuming --------------------------------------------------------------------*/

static void settle(weir_inference *server,
                   void (*say)(const weir_inference *server, weir_inference_answer *out))
{
    bool is_paused = weir_inference_engine_is_paused(&server->engine);
    pthread_mutex_lock(&server->lock);
    server->info.paused = is_paused;
    if (say != NULL)
        say(server, &server->answer);
    pthread_mutex_unlock(&server->lock);
}

static void pause_engine(weir_inference *server)
{
    if (weir_inference_engine_ask_pause(&server->engine) != WEIR_OK)
        weir_inference_fail(server, 500);
    else
        settle(server, weir_inference_say_paused);
}

static void resume_engine(weir_inference *server)
{
    if (server->info.state == WEIR_INFERENCE_UNUSABLE) {
        weir_fail(WEIR_ERR_REFUSED, "no whole version is held: update first (%s)",
                  server->info.error[0] != '\0' ? server->info.error : "UNUSABLE");
        weir_inference_fail(server, 409);
        return;
    }
    weir_inference_engine_ask_resume(&server->engine);
    settle(server, weir_inference_say_resumed);
}

/* ---- the conductor ---------------------------------------------------------------------------*/

static void obey(weir_inference *server)
{
    static const char *const events[] = {
        "", "joined", "paused", "updated", "resumed", "reverted"
    };
    weir_inference_kind kind = server->order.kind;
    server->answer.status = 0;
    if (kind == WEIR_ORDER_JOIN)
        join(server);
    else if (kind == WEIR_ORDER_PAUSE)
        pause_engine(server);
    else if (kind == WEIR_ORDER_UPDATE)
        weir_inference_update(server);
    else if (kind == WEIR_ORDER_REVERT)
        weir_inference_revert(server);
    else
        resume_engine(server);
    settle(server, NULL);
    bool is_done = server->answer.status == 200;
    weir_log(is_done ? WEIR_LOG_INFO : WEIR_LOG_WARN, "%s: %s", weir_inference_address(server),
             is_done ? events[kind] : server->info.error);
    tell(server, is_done ? events[kind] : "failed");
}

void *weir_inference_conduct(void *context)
{
    weir_inference *server = context;
    pthread_mutex_lock(&server->lock);
    for (;;) {
        while (server->order.kind == WEIR_ORDER_NONE && !atomic_load(&server->is_stopping))
            pthread_cond_wait(&server->changed, &server->lock);
        if (server->order.kind == WEIR_ORDER_NONE)
            break;
        pthread_mutex_unlock(&server->lock);
        obey(server);
        pthread_mutex_lock(&server->lock);
        server->answered_ticket = server->order.ticket;
        server->order.kind = WEIR_ORDER_NONE;
        weir_inference_http_wake(server->http);
    }
    pthread_mutex_unlock(&server->lock);
    weir_inference_dispatch(server, WEIR_TASK_STOP, NULL, NULL);
    return NULL;
}
