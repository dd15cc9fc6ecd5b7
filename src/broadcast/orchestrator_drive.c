/* SPDX-License-Identifier: Apache-2.0 */
/* orchestrator_drive.c - makes the calls that a round asks for, all servers at once, and keeps what
 * is known of each for whoever looks. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "broadcast/markers.h"
#include "broadcast/orchestrator_core.h"

#define REST_MS 200u /* before a server that failed is tried again */
#define BUSY_MS 50u  /* before one that is busy is looked at again */
#define LOOK_MS 50u
#define ANSWER_MS 1500u
#define LEAST_GRACE_NS ((uint64_t)2000000000) /* for stragglers that may be dropped */

/* ---- what is known ---------------------------------------------------------------------------*/

static weir_server_state state_of(const weir_round_server *server)
{
    if (server->is_absent || server->is_dropped)
        return WEIR_SERVER_DROPPED;
    if (server->asked == WEIR_ASK_INSTALL)
        return WEIR_SERVER_UPDATING;
    if (server->must_look || server->is_unanswered || server->holds.held == WEIR_HELD_UNKNOWN)
        return WEIR_SERVER_UNKNOWN;
    if (server->holds.held == WEIR_HELD_NONE)
        return WEIR_SERVER_BROKEN;
    return server->is_paused ? WEIR_SERVER_PAUSED : WEIR_SERVER_SERVING;
}

void weir_orchestrator_learn(weir_orchestrator *orchestrator, size_t i)
{
    const weir_round_server *server = &orchestrator->servers[i];
    weir_driven_server *known = &orchestrator->known[i];
    bool is_old = server->must_look || server->is_unanswered;
    pthread_mutex_lock(&orchestrator->lock);
    known->info.state = state_of(server);
    known->info.has_version = !is_old && server->holds.held == WEIR_HELD_VERSION;
    known->info.version = known->info.has_version ? server->holds.version : 0;
    snprintf(known->info.error, sizeof(known->info.error), "%s",
             known->cause[0] != '\0' ? known->cause : known->trouble);
    pthread_mutex_unlock(&orchestrator->lock);
}

void weir_orchestrator_say(weir_orchestrator *orchestrator, size_t i, weir_server_order order)
{
    static const char *const steps[WEIR_N_ORDERS] = { "",       "look",   "init",  "pause",
                                                      "update", "resume", "revert" };
    weir_server_info info;
    weir_orchestrator_learn(orchestrator, i);
    if (orchestrator->options.said == NULL)
        return;
    weir_orchestrator_server(orchestrator, i, &info);
    orchestrator->options.said(orchestrator->options.context, steps[order], &info);
}

static void keep_times(weir_orchestrator *orchestrator, size_t i, weir_server_order order)
{
    weir_driven_server *known = &orchestrator->known[i];
    uint64_t now_ns = weir_now_ns();
    double seconds = (double)(now_ns - known->asked_ns) / 1e9;
    pthread_mutex_lock(&orchestrator->lock);
    if (order == WEIR_ASK_PAUSE)
        known->info.pause_s = seconds;
    else if (order == WEIR_ASK_INSTALL)
        known->info.update_s = seconds;
    else if (order == WEIR_ASK_RESUME)
        known->info.resume_s = seconds;
    pthread_mutex_unlock(&orchestrator->lock);
    if (order == WEIR_ASK_PAUSE && known->paused_ns == 0)
        known->paused_ns = known->asked_ns;
    if (order == WEIR_ASK_RESUME && known->paused_ns != 0)
        known->paused_s = (double)(now_ns - known->paused_ns) / 1e9;
}

/* ---- calls -----------------------------------------------------------------------------------*/

/* The way to a version has one bound, each short call its own, and so has the way back. */
static unsigned bound_of(const weir_orchestrator *orchestrator, weir_server_order order)
{
    const weir_round *round = &orchestrator->round;
    unsigned left_ms = weir_deadline_left_ms(orchestrator->deadline);
    if (order == WEIR_ASK_JOIN)
        return round->joins_only ? orchestrator->timeout_ms : orchestrator->short_ms;
    if (order != WEIR_ASK_INSTALL && order != WEIR_ASK_REVERT)
        return orchestrator->short_ms;
    if (round->phase == WEIR_ROUND_BACK)
        return orchestrator->timeout_ms;
    return left_ms > 0 ? left_ms : 1;
}

/* A server that is told a bound gives up by itself, and is given time to say why. */
static unsigned grace_of(weir_server_order order)
{
    return order == WEIR_ASK_JOIN || order == WEIR_ASK_INSTALL || order == WEIR_ASK_REVERT
               ? ANSWER_MS
               : 0;
}

static weir_status send_order(weir_orchestrator *orchestrator, size_t i, weir_server_order order)
{
    const weir_run_settings *settings = orchestrator->settings;
    const weir_run_broadcast *broadcast = &settings->orchestrator.broadcast;
    unsigned bound_ms = bound_of(orchestrator, order);
    const weir_order_words words = { .host = broadcast->host,
                                     .run = settings->run,
                                     .marker_dir = broadcast->marker_dir,
                                     .port = broadcast->port,
                                     .kernel_mode = broadcast->quantize_in_weight_transfer,
                                     .server = i,
                                     .n_servers = orchestrator->n_servers,
                                     .version = orchestrator->round.wanted.version,
                                     .timeout_s = bound_ms / 1e3 };
    char *body = weir_order_body(order, &words);
    if (body == NULL && order != WEIR_ASK_HELD)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_server_calls_begin(orchestrator->calls, i, weir_order_path(order),
                                                 body, bound_ms + grace_of(order));
    weir_free(body);
    return status;
}

/* In the words of docs/broadcast.md. */
static void name_order(const weir_orchestrator *orchestrator, weir_server_order order, char *text,
                       size_t n_text)
{
    const char *path = weir_order_path(order);
    int n_path = (int)strcspn(path, "?");
    if (order == WEIR_ASK_HELD)
        snprintf(text, n_text, "GET %.*s", n_path, path);
    else if (order == WEIR_ASK_INSTALL)
        snprintf(text, n_text, "POST %.*s of version %" PRIu64, n_path, path,
                 orchestrator->round.wanted.version);
    else
        snprintf(text, n_text, "POST %.*s", n_path, path);
}

/* The first cause of a try stands: what is looked at afterwards says less, as does a version that
 * is gone after a try that failed. */
static bool is_better(const weir_orchestrator *orchestrator, size_t i, weir_server_order order,
                      bool is_gone)
{
    const weir_round_server *server = &orchestrator->servers[i];
    return orchestrator->known[i].cause[0] == '\0' ||
           (order != WEIR_ASK_REVERT && !server->wants_last_look &&
            !(is_gone && server->n_tries > 0));
}

static void note_failure(weir_orchestrator *orchestrator, size_t i, weir_server_order order,
                         const char *cause, bool is_gone)
{
    weir_driven_server *known = &orchestrator->known[i];
    char name[128];
    name_order(orchestrator, order, name, sizeof(name));
    if (is_better(orchestrator, i, order, is_gone))
        snprintf(known->cause, sizeof(known->cause), "%s: %.360s", name, cause);
    known->rests_until = weir_deadline_in(REST_MS);
    weir_log(WEIR_LOG_WARN, "%s: %s: %s", known->info.url, name, cause);
}

static void hear(weir_orchestrator *orchestrator, size_t i, weir_server_order order,
                 const weir_server_answer *answer, const char *cause)
{
    weir_round_server *server = &orchestrator->servers[i];
    weir_driven_server *known = &orchestrator->known[i];
    bool was_absent = server->is_absent;
    if (answer->end != WEIR_CALL_OK)
        note_failure(orchestrator, i, order, cause, answer->is_gone);
    keep_times(orchestrator, i, order);
    weir_round_hear(&orchestrator->round, i, answer);
    if (answer->end == WEIR_CALL_OK && server->failed_by == WEIR_CALL_WRONG &&
        known->cause[0] == '\0') {
        char held[64], text[128];
        weir_held_text(&server->holds, held, sizeof(held));
        snprintf(text, sizeof(text), "it has said OK, and holds %s", held);
        note_failure(orchestrator, i, server->failed_at, text, false);
    }
    if (answer->end == WEIR_CALL_OK && !server->has_failed && server->failed_by == WEIR_CALL_OK)
        known->cause[0] = '\0';
    if (answer->end == WEIR_CALL_OK && answer->is_busy)
        known->rests_until = weir_deadline_in(BUSY_MS);
    if (answer->end == WEIR_CALL_OK && answer->is_busy && known->cause[0] == '\0')
        snprintf(known->cause, sizeof(known->cause),
                 "GET /weight_info: it is in the midst of an order from before");
    if (server->is_absent && !was_absent)
        weir_log(WEIR_LOG_WARN, "%s has no POST /init_broadcaster: it is left out",
                 known->info.url);
    weir_orchestrator_say(orchestrator, i, order);
}

/* Before it is tried again, or looked at again. */
static bool rests(const weir_orchestrator *orchestrator, size_t i)
{
    const weir_round_server *server = &orchestrator->servers[i];
    weir_deadline until = orchestrator->known[i].rests_until;
    return until != 0 && !weir_deadline_passed(until) && !server->has_failed &&
           (server->n_tries > 0 || server->is_busy);
}

static void begin_calls(weir_orchestrator *orchestrator)
{
    for (size_t i = 0; i < orchestrator->n_servers; i++) {
        weir_driven_server *known = &orchestrator->known[i];
        weir_server_order order = weir_round_next(&orchestrator->round, i);
        if (order == WEIR_ASK_NOTHING || rests(orchestrator, i))
            continue;
        weir_round_ask(&orchestrator->round, i);
        known->asked_ns = weir_now_ns();
        weir_orchestrator_learn(orchestrator, i);
        if (send_order(orchestrator, i, order) != WEIR_OK) {
            const weir_server_answer answer = { .end = WEIR_CALL_UNSENT };
            hear(orchestrator, i, order, &answer, weir_last_error());
        }
    }
}

/* Once every server has been told: trainers of the marker files begin to send then. */
static void touch_ready(weir_orchestrator *orchestrator)
{
    const char *marker_dir = orchestrator->settings->orchestrator.broadcast.marker_dir;
    if (marker_dir == NULL || orchestrator->has_touched ||
        orchestrator->round.phase < WEIR_ROUND_INSTALL || orchestrator->round.joins_only ||
        orchestrator->round.phase == WEIR_ROUND_BACK)
        return;
    orchestrator->has_touched = true;
    if (weir_marker_touch(marker_dir, orchestrator->version, WEIR_MARKER_READY, false) != WEIR_OK)
        weir_log(WEIR_LOG_WARN, "version %" PRIu64 ": its directory was deleted: %s",
                 orchestrator->version, weir_last_error());
}

/* ---- stragglers ------------------------------------------------------------------------------*/

/* How many servers are through with the round's phase, and whether a call to another one is out. */
static size_t count_through(const weir_orchestrator *orchestrator, bool *out_waits)
{
    size_t n_through = 0;
    *out_waits = false;
    for (size_t i = 0; i < orchestrator->n_servers; i++) {
        const weir_round_server *server = &orchestrator->servers[i];
        if (server->asked != WEIR_ASK_NOTHING || (server->is_busy && !server->has_failed))
            *out_waits = true;
        else if (weir_round_takes_part(&orchestrator->round, i) &&
                 weir_round_next(&orchestrator->round, i) == WEIR_ASK_NOTHING)
            n_through++;
    }
    return n_through;
}

static void give_up_stragglers(weir_orchestrator *orchestrator, double waited_s)
{
    char cause[160];
    const weir_server_answer answer = { .end = WEIR_CALL_LATE };
    snprintf(cause, sizeof(cause), "no answer, and the others have been through for %.1f s",
             waited_s);
    for (size_t i = 0; i < orchestrator->n_servers; i++) {
        weir_server_order order = orchestrator->servers[i].asked;
        if (order == WEIR_ASK_NOTHING)
            weir_round_leave_busy(&orchestrator->round, i);
        if (order == WEIR_ASK_NOTHING)
            continue;
        weir_server_calls_abandon(orchestrator->calls, i);
        hear(orchestrator, i, order, &answer, cause);
    }
}

/* Those that a run goes on without hold the others up no longer than these took themselves. */
static void hurry(weir_orchestrator *orchestrator)
{
    const weir_round *round = &orchestrator->round;
    bool waits;
    size_t n_through = count_through(orchestrator, &waits);
    uint64_t now_ns = weir_now_ns();
    if (round->phase != orchestrator->phase || n_through != orchestrator->n_through)
        orchestrator->through_ns = now_ns;
    if (round->phase != orchestrator->phase)
        orchestrator->phase_ns = now_ns;
    orchestrator->phase = round->phase;
    orchestrator->n_through = n_through;
    if (round->policy != WEIR_RUN_DROP || round->joins_only || n_through == 0 || !waits)
        return;
    uint64_t took_ns = orchestrator->through_ns - orchestrator->phase_ns;
    uint64_t waited_ns = now_ns - orchestrator->through_ns;
    if (waited_ns > (took_ns > LEAST_GRACE_NS ? took_ns : LEAST_GRACE_NS))
        give_up_stragglers(orchestrator, (double)waited_ns / 1e9);
}

void weir_orchestrator_drive(weir_orchestrator *orchestrator)
{
    weir_round *round = &orchestrator->round;
    char cause[WEIR_ERROR_TEXT];
    orchestrator->phase = WEIR_ROUND_OVER;
    while (!weir_round_is_over(round)) {
        weir_server_reply reply;
        begin_calls(orchestrator);
        if (weir_server_calls_wait(orchestrator->calls, LOOK_MS, &reply)) {
            weir_server_answer answer;
            weir_server_order order = orchestrator->servers[reply.server].asked;
            weir_order_answer(order, &reply, orchestrator->settings->run, &answer, cause,
                              sizeof(cause));
            hear(orchestrator, reply.server, order, &answer, cause);
        }
        hurry(orchestrator);
        touch_ready(orchestrator);
        if (weir_deadline_passed(orchestrator->deadline) ||
            atomic_load(&orchestrator->is_cancelled))
            weir_round_end_waiting(round);
    }
    for (size_t i = 0; i < orchestrator->n_servers; i++)
        weir_orchestrator_learn(orchestrator, i);
}
