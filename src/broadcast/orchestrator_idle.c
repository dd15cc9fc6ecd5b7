/* SPDX-License-Identifier: Apache-2.0 */
/* orchestrator_idle.c - what servers do while nobody asks anything of them: looked at about once a
 * second, all at once, while a thread of its own waits for the next version. What has changed is
 * said; one that runs on something else than the fleet is paused. The next version takes it in. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "broadcast/orchestrator_core.h"

#define EVERY_MS 1000u
#define BOUND_MS 1000u
#define TICK_MS 100u

/* ---- the wait --------------------------------------------------------------------------------*/

typedef struct version_wait {
    weir_orchestrator *orchestrator;
    pthread_t thread;
    atomic_bool is_over;
    weir_status status;
    weir_error_line error;
    uint64_t version;
} version_wait;

static void *await_version(void *context)
{
    version_wait *wait = context;
    wait->status = weir_orchestrator_await_version(wait->orchestrator, &wait->version);
    weir_error_save(&wait->error);
    atomic_store(&wait->is_over, true);
    weir_server_calls_wake(wait->orchestrator->calls);
    return NULL;
}

/* Signals belong to the program's own threads. */
static bool start(version_wait *wait)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&wait->thread, NULL, await_version, wait);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code == 0;
}

/* ---- looks -----------------------------------------------------------------------------------*/

static void begin_call(weir_orchestrator *orchestrator, size_t i)
{
    weir_driven_server *known = &orchestrator->known[i];
    weir_server_order order = weir_round_idle_next(&orchestrator->round, i);
    const char *body = order == WEIR_ASK_PAUSE ? "{}" : NULL;
    unsigned bound_ms = order == WEIR_ASK_PAUSE ? orchestrator->short_ms : BOUND_MS;
    if (order == WEIR_ASK_NOTHING || known->looking != WEIR_ASK_NOTHING)
        return;
    if (weir_server_calls_begin(orchestrator->calls, i, weir_order_path(order), body, bound_ms) ==
        WEIR_OK)
        known->looking = order;
}

static void name_trouble(const weir_orchestrator *orchestrator, size_t i, weir_call_end end,
                         const char *cause, bool has_left, char *out, size_t n_out)
{
    const weir_round *round = &orchestrator->round;
    char held[64], old[64];
    weir_held_text(&round->servers[i].holds, held, sizeof(held));
    weir_held_text(&round->old, old, sizeof(old));
    const char *left = has_left ? "it was started anew, or has left the run; " : "";
    if (end != WEIR_CALL_OK)
        snprintf(out, n_out, "%.200s", cause);
    else if (weir_round_is_stray(round, i))
        snprintf(out, n_out, "%sit holds %s, the run is on %s", left, held, old);
    else if (has_left)
        snprintf(out, n_out, "%sit holds %s", left, held);
    else
        out[0] = '\0';
}

/* Numbers in an error, milliseconds above all, are no news. */
static bool is_news(const weir_server_info *before, const weir_server_info *now)
{
    return before->state != now->state || before->has_version != now->has_version ||
           before->version != now->version || (before->error[0] == '\0') != (now->error[0] == '\0');
}

static void hear(weir_orchestrator *orchestrator, const weir_server_reply *reply)
{
    size_t i = reply->server;
    weir_driven_server *known = &orchestrator->known[i];
    weir_server_order order = known->looking;
    weir_server_answer answer;
    weir_server_info before, now;
    char cause[WEIR_ERROR_TEXT], trouble[sizeof(known->trouble)];
    known->looking = WEIR_ASK_NOTHING;
    weir_orchestrator_server(orchestrator, i, &before);
    weir_order_answer(order, reply, orchestrator->settings->run, &answer, cause, sizeof(cause));
    weir_round_idle_hear(&orchestrator->round, i, order, &answer);
    bool has_left = order == WEIR_ASK_HELD ? answer.has_left : !orchestrator->servers[i].has_joined;
    name_trouble(orchestrator, i, answer.end, cause, has_left, trouble, sizeof(trouble));
    if (strcmp(trouble, known->trouble) != 0 && (trouble[0] == '\0' || known->trouble[0] == '\0'))
        weir_log(trouble[0] != '\0' ? WEIR_LOG_WARN : WEIR_LOG_INFO, "%s: %s", known->info.url,
                 trouble[0] != '\0' ? trouble : "all is well again");
    memcpy(known->trouble, trouble, sizeof(known->trouble));
    weir_orchestrator_learn(orchestrator, i);
    weir_orchestrator_server(orchestrator, i, &now);
    if (order == WEIR_ASK_PAUSE || is_news(&before, &now))
        weir_orchestrator_say(orchestrator, i, order);
    if (answer.end == WEIR_CALL_OK &&
        weir_round_idle_next(&orchestrator->round, i) == WEIR_ASK_PAUSE)
        begin_call(orchestrator, i); /* at once */
}

static void look_until_over(weir_orchestrator *orchestrator, const version_wait *wait)
{
    weir_deadline next = weir_deadline_in(EVERY_MS);
    weir_server_reply reply;
    while (!atomic_load(&wait->is_over)) {
        if (weir_deadline_passed(next)) {
            next = weir_deadline_in(EVERY_MS);
            for (size_t i = 0; i < orchestrator->n_servers; i++)
                begin_call(orchestrator, i);
        }
        if (weir_server_calls_wait(orchestrator->calls, TICK_MS, &reply))
            hear(orchestrator, &reply);
    }
    for (size_t i = 0; i < orchestrator->n_servers; i++) {
        if (orchestrator->known[i].looking != WEIR_ASK_NOTHING)
            weir_server_calls_abandon(orchestrator->calls, i);
        orchestrator->known[i].looking = WEIR_ASK_NOTHING;
    }
}

weir_status weir_orchestrator_await_and_look(weir_orchestrator *orchestrator, uint64_t *out)
{
    version_wait wait = { .orchestrator = orchestrator };
    if (!start(&wait))
        return weir_orchestrator_await_version(orchestrator, out);
    look_until_over(orchestrator, &wait);
    pthread_join(wait.thread, NULL);
    weir_error_restore(&wait.error);
    *out = wait.version;
    return wait.status;
}
