/* SPDX-License-Identifier: Apache-2.0 */
/* inference_update.c - one version on all workers of a server, or on none; and the way back.
 *
 * Takes   an order: a version, or the newest, or to go back; a bound.
 * Gives   HOLDING: every worker holds it. Or what was held before. Or, of direct installs that
 *         failed when bytes had landed, UNUSABLE: the engine then stays paused.
 */
#include <inttypes.h>
#include <stdio.h>

#include "broadcast/inference_core.h"

/* Until all workers have an end: what they wait for is bounded by these, too. */
static unsigned longest_ms(const weir_inference *server)
{
    unsigned usual_ms = server->options.timeout_ms;
    return server->order.timeout_ms > usual_ms ? server->order.timeout_ms : usual_ms;
}

/* ---- which version ---------------------------------------------------------------------------*/

static void say_the_same(weir_inference *server)
{
    pthread_mutex_lock(&server->lock);
    server->info.error[0] = '\0';
    weir_inference_say_updated(server, &server->answer);
    pthread_mutex_unlock(&server->lock);
}

static void set_version(weir_inference *server, uint64_t version)
{
    pthread_mutex_lock(&server->lock);
    server->order.update.has_version = true;
    server->order.update.version = version;
    pthread_mutex_unlock(&server->lock);
}

static weir_status look(weir_inference *server, unsigned timeout_ms, weir_trainer_sight *out)
{
    weir_directory_client *client;
    const weir_inference_worker *first = &server->workers[0];
    const weir_trainer_wish wish = { .model = server->options.model,
                                     .run = server->joined.run,
                                     .holds = first->has_version && server->is_of_this_run,
                                     .held = first->version,
                                     .held_uid = first->version_uid,
                                     .wants = server->order.update.has_version,
                                     .wanted = server->order.update.version };
    weir_status status = weir_inference_look_begin(server, &server->joined, timeout_ms, &client);
    if (status != WEIR_OK)
        return status;
    status = weir_trainer_ask(client, &wish, 0, 0, out);
    weir_inference_look_end(server, client);
    return status;
}

/* True: it is held, and nothing is to be installed. A trainer that was started again may have made
 * other bytes under the same number. */
static bool is_held(weir_inference *server)
{
    const weir_inference_info *info = &server->info;
    weir_update_wish *wish = &server->order.update;
    weir_trainer_sight sight = { .is_told = false };
    bool holds = info->state == WEIR_INFERENCE_HOLDING && server->is_of_this_run;
    unsigned left_ms = weir_deadline_left_ms(server->order.deadline);
    if (wish->has_version && !(holds && wish->version == info->version))
        return false;
    bool is_seen = holds && look(server, left_ms != 0 ? left_ms : 1, &sight) == WEIR_OK;
    if (wish->has_version)
        return !sight.is_made_anew;
    if (is_seen && sight.has_newest) {
        set_version(server, sight.newest);
        return sight.newest == info->version && !sight.is_made_anew;
    }
    pthread_mutex_lock(&server->lock);
    wish->version = WEIR_LATEST;
    pthread_mutex_unlock(&server->lock);
    return false;
}

/* ---- a round ---------------------------------------------------------------------------------*/

/* Once the first verdict is OK; direct, live parameters change with the first bytes. */
static bool may_have_changed(const weir_inference *server)
{
    bool any = server->options.install == WEIR_INSTALL_STAGED;
    for (uint32_t i = 0; i < server->n_workers; i++)
        any |= atomic_load(&server->workers[i].has_landed);
    return any;
}

/* With the lock. Whose live parameters may have changed goes on to its end. */
static void cancel_all(weir_inference *server)
{
    if (!weir_vote_stop(server->vote, WEIR_ERR_CANCELLED) && may_have_changed(server))
        return;
    for (uint32_t i = 0; i < server->n_workers; i++)
        weir_inference_worker_cancel(&server->workers[i]);
}

static void run_round(weir_inference *server, weir_inference_task task)
{
    unsigned left_ms = weir_deadline_left_ms(server->order.deadline);
    weir_inference_engine_begin(&server->engine, server->info.state != WEIR_INFERENCE_UNUSABLE);
    weir_vote_begin(server->vote, left_ms + WEIR_INFERENCE_GRACE_MS, longest_ms(server));
    weir_inference_dispatch(server, task, cancel_all, cancel_all);
}

/* The first whose failure was its own; NULL: all is well. */
static const weir_inference_worker *find_culprit(const weir_inference *server)
{
    uint32_t culprit = weir_vote_culprit(server->vote);
    if (culprit != WEIR_NO_CULPRIT && server->workers[culprit].result != WEIR_OK)
        return &server->workers[culprit];
    for (uint32_t i = 0; i < server->n_workers; i++) {
        if (server->workers[i].result != WEIR_OK)
            return &server->workers[i];
    }
    return NULL;
}

/* Each worker has looked for the newest by itself, just when there was one more. True: they may try
 * again with that. */
static bool have_found_different_ones(weir_inference *server)
{
    uint64_t highest = 0;
    bool differ = false;
    for (uint32_t i = 0; i < server->n_workers; i++) {
        const weir_inference_worker *worker = &server->workers[i];
        if (worker->result != WEIR_ERR_REFUSED || worker->report.version == WEIR_LATEST)
            return false;
        differ |= i > 0 && worker->report.version != server->workers[0].report.version;
        highest = worker->report.version > highest ? worker->report.version : highest;
    }
    if (differ)
        set_version(server, highest);
    return differ;
}

/* The end of a round before this one may reach a call that had just come to its own: the next one
 * hears of it. */
static bool was_meant_for_another(const weir_inference_worker *culprit)
{
    return culprit->result == WEIR_ERR_CANCELLED;
}

/* ---- what it came to -------------------------------------------------------------------------*/

/* With the lock. */
static weir_inference_state state_of(const weir_inference *server)
{
    const weir_inference_worker *first = &server->workers[0];
    for (uint32_t i = 0; i < server->n_workers; i++) {
        const weir_inference_worker *worker = &server->workers[i];
        if (worker->is_unusable || worker->has_version != first->has_version ||
            worker->version != first->version)
            return WEIR_INFERENCE_UNUSABLE;
    }
    return first->has_version ? WEIR_INFERENCE_HOLDING : WEIR_INFERENCE_EMPTY;
}

/* With the lock. */
static void settle_state(weir_inference *server)
{
    weir_inference_info *info = &server->info;
    info->state = state_of(server);
    info->version = info->state == WEIR_INFERENCE_HOLDING ? server->workers[0].version : 0;
}

static void settle(weir_inference *server, bool is_done, double seconds)
{
    weir_inference_info *info = &server->info;
    pthread_mutex_lock(&server->lock);
    settle_state(server);
    info->n_updates += is_done;
    info->n_failed += !is_done;
    if (is_done) {
        info->n_bytes = 0;
        for (uint32_t i = 0; i < server->n_workers; i++)
            info->n_bytes += server->workers[i].report.n_bytes;
        info->seconds = seconds;
        info->error[0] = '\0';
        server->was_of_this_run = server->is_of_this_run;
        server->is_of_this_run = true;
        weir_inference_say_updated(server, &server->answer);
    }
    pthread_mutex_unlock(&server->lock);
}

/* What there is instead of a version that nobody has found. */
static void name_what_there_is(weir_inference *server, char *text, size_t n_text)
{
    weir_trainer_sight sight;
    text[0] = '\0';
    if (look(server, WEIR_INFERENCE_GRACE_MS / 2, &sight) != WEIR_OK)
        snprintf(text, n_text, "; %s", weir_last_error());
    else if (sight.is_told && !sight.has_trainer)
        snprintf(text, n_text, "; its trainer is gone");
    else if (sight.is_told && sight.has_newest)
        snprintf(text, n_text, "; the newest is %" PRIu64, sight.newest);
    else if (sight.is_told)
        snprintf(text, n_text, "; there is none");
}

/* The one that was furthest behind when the time was up. */
static weir_status out_of_time(weir_inference *server)
{
    char instead[600] = "", version[32] = "the newest version";
    const weir_inference_worker *last = &server->workers[0];
    for (uint32_t i = 1; i < server->n_workers; i++) {
        if (atomic_load(&server->workers[i].stop) < atomic_load(&last->stop))
            last = &server->workers[i];
    }
    weir_stop stop = (weir_stop)atomic_load(&last->stop);
    if (server->order.update.has_version)
        snprintf(version, sizeof(version), "version %" PRIu64, server->order.update.version);
    if (stop == WEIR_STOP_DISCOVER)
        name_what_there_is(server, instead, sizeof(instead));
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "%s, worker %u (rank %u): %s of model '%s' did not come within %.1f s, it was "
                     "at stop %s%s",
                     server->joined.server, last->index, server->joined.first_rank + last->index,
                     version, server->options.model, server->order.timeout_ms / 1e3,
                     weir_stop_name(stop), instead);
}

static weir_status cause_of(weir_inference *server, const weir_inference_worker *culprit)
{
    if (atomic_load(&server->is_stopping))
        return weir_fail(WEIR_ERR_CANCELLED, "the server is closing");
    if (culprit->result == WEIR_ERR_CANCELLED && weir_deadline_passed(server->order.deadline))
        return out_of_time(server);
    return weir_fail(culprit->result, "%s, worker %u (rank %u): %s", server->joined.server,
                     culprit->index, server->joined.first_rank + culprit->index,
                     culprit->error.text);
}

/* The version will not come any more. */
static bool has_passed(weir_inference *server)
{
    const weir_update_wish *wish = &server->order.update;
    weir_trainer_sight sight = { .has_newest = false };
    weir_error_line cause;
    weir_error_save(&cause);
    bool is_seen =
        wish->has_version && look(server, WEIR_INFERENCE_GRACE_MS / 2, &sight) == WEIR_OK;
    weir_error_restore(&cause);
    return is_seen && (sight.is_aborted || (sight.has_newest && sight.newest > wish->version));
}

static unsigned http_status_of(weir_inference *server, weir_status status)
{
    switch (status) {
    case WEIR_ERR_TIMED_OUT:
        return 504;
    case WEIR_ERR_CANCELLED:
        return 503;
    case WEIR_ERR_PEER_LOST:
        return 502;
    case WEIR_ERR_ABORTED: /* its trainer has given it up */
        return 410;
    case WEIR_ERR_NOT_FOUND:
        return has_passed(server) ? 410 : 500;
    default:
        return 500;
    }
}

static void fail(weir_inference *server, const weir_inference_worker *culprit)
{
    weir_status status = cause_of(server, culprit);
    weir_inference_fail(server, http_status_of(server, status));
}

/* ---- the order -------------------------------------------------------------------------------*/

static bool is_refused(weir_inference *server)
{
    if (!server->info.joined)
        weir_fail(WEIR_ERR_REFUSED, "no trainer is joined: POST /init_broadcaster first");
    else if (server->options.install == WEIR_INSTALL_DIRECT &&
             !weir_inference_engine_is_asked(&server->engine))
        weir_fail(WEIR_ERR_REFUSED, "versions land in the live parameters: POST /pause first");
    else
        return false;
    weir_inference_fail(server, 409);
    return true;
}

void weir_inference_update(weir_inference *server)
{
    uint64_t begun_ns = weir_now_ns();
    if (is_refused(server))
        return;
    if (is_held(server)) {
        say_the_same(server);
        return;
    }
    run_round(server, WEIR_TASK_INSTALL);
    const weir_inference_worker *culprit = find_culprit(server);
    if (culprit != NULL && !weir_inference_is_over(server) &&
        (was_meant_for_another(culprit) || have_found_different_ones(server))) {
        run_round(server, WEIR_TASK_INSTALL);
        culprit = find_culprit(server);
    }
    settle(server, culprit == NULL, (double)(weir_now_ns() - begun_ns) / 1e9);
    weir_inference_engine_end(&server->engine, server->info.state != WEIR_INFERENCE_UNUSABLE);
    if (culprit != NULL)
        fail(server, culprit);
}

/* ---- the way back ----------------------------------------------------------------------------*/

bool weir_inference_is_changing(const weir_inference_order *order)
{
    return order->kind == WEIR_ORDER_UPDATE || order->kind == WEIR_ORDER_REVERT;
}

static bool has_way_back(const weir_inference *server)
{
    bool all = server->info.joined;
    for (uint32_t i = 0; i < server->n_workers; i++)
        all &= server->workers[i].before.is_there;
    return all;
}

static bool can_revert(weir_inference *server)
{
    if (server->options.install == WEIR_INSTALL_DIRECT)
        weir_fail(WEIR_ERR_REFUSED, "versions land in the live parameters: there is nothing to go "
                                    "back to");
    else if (!has_way_back(server))
        weir_fail(WEIR_ERR_REFUSED,
                  "there is nothing to go back to: no update has succeeded since the trainer was "
                  "joined or a version was taken back, or another version has begun to come");
    else
        return true;
    weir_inference_fail(server, 409);
    return false;
}

static void settle_reverted(weir_inference *server, bool is_done)
{
    pthread_mutex_lock(&server->lock);
    settle_state(server);
    bool may_run = server->info.state != WEIR_INFERENCE_UNUSABLE;
    pthread_mutex_unlock(&server->lock);
    weir_inference_engine_end(&server->engine, may_run);
    bool is_paused = weir_inference_engine_is_paused(&server->engine);
    pthread_mutex_lock(&server->lock);
    server->info.paused = is_paused;
    if (is_done) {
        server->is_of_this_run = server->was_of_this_run;
        weir_inference_say_reverted(server, &server->answer);
    }
    pthread_mutex_unlock(&server->lock);
}

static void fail_to_revert(weir_inference *server, const weir_inference_worker *culprit)
{
    weir_status status = culprit->result;
    bool is_late = status == WEIR_ERR_CANCELLED && weir_deadline_passed(server->order.deadline);
    weir_fail(status, "%s, worker %u (rank %u): %s", server->joined.server, culprit->index,
              server->joined.first_rank + culprit->index, culprit->error.text);
    weir_inference_fail(server, status == WEIR_ERR_NOT_FOUND        ? 409
                                : is_late                           ? 504
                                : atomic_load(&server->is_stopping) ? 503
                                                                    : 500);
}

void weir_inference_revert(weir_inference *server)
{
    if (!can_revert(server))
        return;
    run_round(server, WEIR_TASK_REVERT);
    const weir_inference_worker *culprit = find_culprit(server);
    settle_reverted(server, culprit == NULL);
    if (culprit != NULL)
        fail_to_revert(server, culprit);
}
