/* SPDX-License-Identifier: Apache-2.0 */
/* broadcast_wait.c - waiting, by how a version is delivered and by what a missing server means.
 *
 * A trainer counts replicas, whoever they are; a broadcast is over when those of its group hold it.
 * Those that a run goes on without are not waited for: once some hold a version, or are ready for
 * one that is sent, the others have as long again as these took.
 *
 * What is sent is made once: a round that fails begins afresh, for as long as the policy allows it.
 * A version that has reached enough replicas through a window is gone for all others.
 */
#include "broadcast_wait.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "broadcast_missing.h"
#include "cli.h"
#include "flow.h"

#define SLICE_MS 500
#define LEAST_GRACE_S 2.0
#define TRIES 3u /* that have room in a time-out, where a round may be followed by another */
#define LOOK_US 20000u
#define AGAIN_US 100000u
#define MOST_LINE 480 /* characters of what a round came to, where there were several */

/* What has been tried of a version so far. */
typedef struct effort {
    const weir_broadcast_wait *wait;
    double begun;
    unsigned n_failed;         /* rounds */
    char first[MOST_LINE + 1]; /* what the first of them failed with: later ones lack who it cost */
    char *why;                 /* the last line; "": weir_last_error() */
    size_t n_why;
} effort;

static uint32_t world_of(const weir_broadcast_wait *wait)
{
    return wait->settings->trainer.broadcast.inference_world_size;
}

static double left_s_of(const effort *e)
{
    return e->wait->timeout_ms / 1e3 - (weir_cli_now() - e->begun);
}

static bool is_late(const effort *e)
{
    return left_s_of(e) < 0;
}

static unsigned left_of(const effort *e)
{
    double left_s = left_s_of(e);
    return left_s > 0.001 ? (unsigned)(left_s * 1e3) : 1;
}

static bool drops(const weir_broadcast_wait *wait)
{
    return wait->settings->orchestrator.server_policy == WEIR_RUN_DROP;
}

/* Of the group; all, where the directory cannot say. */
static uint32_t count_missing(const weir_broadcast_wait *wait)
{
    char unused[256];
    return weir_broadcast_missing(wait->settings, wait->directory, wait->version, unused,
                                  sizeof(unused));
}

static bool knows_its_group(const weir_broadcast_wait *wait)
{
    return wait->settings->inference.present;
}

/* A call says how long it has waited itself, which is a part of the whole time. */
static void copy_without_share(const char *line, char out[MOST_LINE + 1])
{
    const char *share = strstr(line, "timed out after ");
    const char *what = share != NULL ? strstr(share, ": ") : NULL;
    if (what == NULL)
        snprintf(out, MOST_LINE + 1, "%s", line);
    else
        snprintf(out, MOST_LINE + 1, "%.*s%s", (int)(share - line), line, what + 2);
}

static weir_status out_of_time(effort *e, const char *line)
{
    char what[MOST_LINE + 1];
    copy_without_share(line, what);
    snprintf(e->why, e->n_why, "timed out after %.1f s: %s", e->wait->timeout_ms / 1e3, what);
    return WEIR_ERR_TIMED_OUT;
}

/* Replicas of no group hold it in place of some of the group. */
static weir_status out_of_time_for_strays(effort *e, uint32_t n_missing)
{
    char what[192];
    snprintf(what, sizeof(what),
             "version %llu has reached replicas that are of no group, and not %u of the %u "
             "inference workers",
             (unsigned long long)e->wait->version, n_missing, world_of(e->wait));
    return out_of_time(e, what);
}

static uint32_t say_who_is_left(const weir_broadcast_wait *wait)
{
    char missing[768];
    uint32_t n = weir_broadcast_missing(wait->settings, wait->directory, wait->version, missing,
                                        sizeof(missing));
    if (n == 0)
        return 0;
    weir_flow_progress_end();
    weir_cli_note("version %llu: %s; the run goes on without", (unsigned long long)wait->version,
                  missing);
    return n;
}

/* ---- read by the workers ---------------------------------------------------------------------*/

static weir_status await_all_readers(effort *e, unsigned *out_n)
{
    const weir_broadcast_wait *wait = e->wait;
    *out_n = world_of(wait);
    for (;;) {
        weir_status status =
            weir_trainer_wait(wait->trainer, wait->version, world_of(wait), left_of(e));
        uint32_t n_missing = status == WEIR_OK && knows_its_group(wait) ? count_missing(wait) : 0;
        if (status != WEIR_OK || n_missing == 0)
            return status;
        if (is_late(e))
            return out_of_time_for_strays(e, n_missing);
        if (weir_cli_stopped())
            return WEIR_ERR_CANCELLED;
        usleep(AGAIN_US);
    }
}

/* Those that hold it are enough once they have waited for the others as long as it took them. */
static bool has_had_grace(const effort *e, double changed, uint32_t n_missing)
{
    double took_s = changed - e->begun, now = weir_cli_now();
    return n_missing < world_of(e->wait) &&
           now - changed > (took_s > LEAST_GRACE_S ? took_s : LEAST_GRACE_S);
}

static weir_status await_most_readers(effort *e, unsigned *out_n)
{
    const weir_broadcast_wait *wait = e->wait;
    uint32_t n_workers = world_of(wait), n_before = n_workers;
    double changed = e->begun;
    for (;;) {
        unsigned left_ms = left_of(e);
        weir_status status = weir_trainer_wait(wait->trainer, wait->version, n_workers,
                                               left_ms < SLICE_MS ? left_ms : SLICE_MS);
        *out_n = n_workers;
        if (status != WEIR_OK && status != WEIR_ERR_TIMED_OUT)
            return status;
        if (status == WEIR_ERR_TIMED_OUT && is_late(e))
            return out_of_time(e, weir_last_error());
        uint32_t n = status != WEIR_OK || knows_its_group(wait) ? count_missing(wait) : 0;
        if (n == 0)
            return WEIR_OK;
        if (n != n_before)
            changed = weir_cli_now();
        n_before = n;
        if (has_had_grace(e, changed, n)) {
            *out_n = n_workers - say_who_is_left(wait);
            return WEIR_OK;
        }
        if (status == WEIR_OK && is_late(e))
            return out_of_time_for_strays(e, n);
        if (weir_cli_stopped())
            return WEIR_ERR_CANCELLED;
        if (status == WEIR_OK)
            usleep(AGAIN_US);
    }
}

/* ---- sent to them ----------------------------------------------------------------------------*/

/* What another try would not mend. */
static bool is_final(weir_status status)
{
    return status == WEIR_OK || status == WEIR_ERR_CANCELLED || status == WEIR_ERR_NONFINITE ||
           status == WEIR_ERR_INVALID || status == WEIR_ERR_NOT_FOUND ||
           status == WEIR_ERR_UNSUPPORTED || status == WEIR_ERR_NO_MEMORY ||
           status == WEIR_ERR_DEVICE || status == WEIR_ERR_INTERNAL || status == WEIR_ERR_ABORTED ||
           weir_cli_stopped();
}

static unsigned n_replicas_of(const weir_broadcast_wait *wait)
{
    return world_of(wait) / wait->workers_per_replica;
}

/* A round that comes to nothing leaves time for another one, unless none may follow. */
static unsigned bound_of_round(const effort *e)
{
    unsigned left_ms = left_of(e), share_ms = e->wait->timeout_ms / TRIES;
    bool is_last = e->wait->settings->orchestrator.server_policy == WEIR_RUN_ABORT;
    return is_last || left_ms < share_ms ? left_ms : share_ms;
}

/* Of little time, a little. */
static double least_grace_of(const weir_broadcast_wait *wait)
{
    double share_s = wait->timeout_ms / 4e3;
    return share_s < LEAST_GRACE_S ? share_s : LEAST_GRACE_S;
}

/* Whether there is time for another: what remains after a pause would see somebody come. */
static bool has_time(const effort *e)
{
    return left_s_of(e) > AGAIN_US / 1e6 + least_grace_of(e->wait) / TRIES;
}

static void note_failed_round(effort *e)
{
    if (e->n_failed++ == 0)
        snprintf(e->first, sizeof(e->first), "%s", weir_last_error());
}

/* The line of the last round stands, unless others failed before it. */
static weir_status give_up(effort *e, weir_status status)
{
    if (e->n_failed > 0)
        snprintf(e->why, e->n_why, "given up after %.1f s: %s; the last of %u rounds: %.*s",
                 weir_cli_now() - e->begun, e->first, e->n_failed + 1, MOST_LINE,
                 weir_last_error());
    return status;
}

/* Too few have come: whom it lacks says the call itself. OK: the last has, in that moment. */
static weir_status give_up_gathering(effort *e)
{
    const weir_broadcast_wait *wait = e->wait;
    char lacks[MOST_LINE + 1];
    weir_status status = weir_trainer_wait(wait->trainer, wait->version, n_replicas_of(wait), 1);
    if (status == WEIR_OK)
        return WEIR_OK;
    if (e->n_failed == 0)
        return out_of_time(e, weir_last_error());
    copy_without_share(weir_last_error(), lacks);
    snprintf(e->why, e->n_why, "given up after %.1f s: %s; then %s", weir_cli_now() - e->begun,
             e->first, lacks);
    return status;
}

/* It was sent to n replicas; those of the group say so to the directory a moment later. Replicas of
 * no group may have taken the place of some, who are sent it when they are ready, where it can be
 * had still. */
static weir_status await_group(effort *e, unsigned n)
{
    const weir_broadcast_wait *wait = e->wait;
    double sent = weir_cli_now();
    for (;;) {
        unsigned n_ready = 0;
        uint32_t n_missing = knows_its_group(wait) ? count_missing(wait) : 0;
        if (n_missing == 0)
            return WEIR_OK;
        if (is_late(e))
            return out_of_time_for_strays(e, n_missing);
        weir_status status = weir_trainer_ready(wait->trainer, wait->version, &n_ready);
        if (status == WEIR_ERR_NOT_FOUND && weir_cli_now() - sent > least_grace_of(wait)) {
            snprintf(e->why, e->n_why,
                     "it was sent to %u replicas, and not all of them are of the group", n);
            return WEIR_ERR_TIMED_OUT;
        }
        if (status == WEIR_OK && n_ready > n)
            status = weir_trainer_wait(wait->trainer, wait->version, n_ready, left_of(e));
        if (status == WEIR_OK && n_ready > n)
            n = n_ready;
        if (status != WEIR_OK && status != WEIR_ERR_NOT_FOUND && is_final(status))
            return status;
        if (weir_cli_stopped())
            return WEIR_ERR_CANCELLED;
        usleep(AGAIN_US);
    }
}

/* A server that failed has taken the others' part with it, and all may try again. */
static weir_status send_to_all(effort *e, unsigned *out_n)
{
    const weir_broadcast_wait *wait = e->wait;
    unsigned n_replicas = n_replicas_of(wait);
    *out_n = world_of(wait);
    for (;;) {
        weir_status status =
            weir_trainer_wait(wait->trainer, wait->version, n_replicas, bound_of_round(e));
        if (status == WEIR_OK)
            return await_group(e, n_replicas);
        if (is_final(status) || !has_time(e))
            return give_up(e, status);
        note_failed_round(e);
        usleep(AGAIN_US);
    }
}

/* Until enough are ready: all, or those who were so in time. */
static weir_status gather_most(const effort *e, unsigned *out_n)
{
    const weir_broadcast_wait *wait = e->wait;
    double asked = weir_cli_now(), came = 0, latest = e->begun + 0.75 * wait->timeout_ms / 1e3;
    for (;;) {
        unsigned n_ready = 0;
        weir_status status = weir_trainer_ready(wait->trainer, wait->version, &n_ready);
        if (status != WEIR_OK || weir_cli_stopped() || is_late(e))
            return status == WEIR_OK ? WEIR_ERR_TIMED_OUT : status;
        double now = weir_cli_now();
        if (n_ready > *out_n && came == 0)
            came = now;
        double least_s = least_grace_of(wait);
        double grace_s = came - asked > least_s ? came - asked : least_s;
        bool is_over = came > 0 && (now - came > grace_s || now > latest);
        if (n_ready >= n_replicas_of(wait) || (is_over && n_ready > 0)) {
            *out_n = n_ready;
            return WEIR_OK;
        }
        usleep(LOOK_US);
    }
}

/* Of those that it was sent to, the group's say so to the directory a moment later. */
static weir_status name_dropped(const weir_broadcast_wait *wait, unsigned *out_n)
{
    uint32_t n_workers = world_of(wait), n_sent = *out_n * wait->workers_per_replica;
    double begun = weir_cli_now();
    n_sent = n_sent < n_workers ? n_sent : n_workers;
    *out_n = n_sent;
    if (!knows_its_group(wait))
        return WEIR_OK;
    while (count_missing(wait) > n_workers - n_sent && weir_cli_now() - begun < LEAST_GRACE_S &&
           !weir_cli_stopped())
        usleep(AGAIN_US);
    *out_n = n_workers - say_who_is_left(wait);
    return WEIR_OK;
}

static weir_status send_to_most(effort *e, unsigned *out_n)
{
    const weir_broadcast_wait *wait = e->wait;
    for (;;) {
        *out_n = 0;
        weir_status status = gather_most(e, out_n);
        if (status == WEIR_ERR_TIMED_OUT) {
            *out_n = n_replicas_of(wait);
            status = give_up_gathering(e);
            return status == WEIR_OK ? name_dropped(wait, out_n) : status;
        }
        if (status == WEIR_OK)
            status = weir_trainer_wait(wait->trainer, wait->version, *out_n, bound_of_round(e));
        if (status == WEIR_OK)
            return name_dropped(wait, out_n);
        if (is_final(status) || !has_time(e))
            return give_up(e, status);
        note_failed_round(e);
        usleep(AGAIN_US);
    }
}

weir_status weir_broadcast_await(const weir_broadcast_wait *wait, unsigned *out_n, char *why,
                                 size_t n_why)
{
    effort e = { .wait = wait, .begun = wait->begun, .why = why, .n_why = n_why };
    weir_status status;
    why[0] = '\0';
    if (wait->sends)
        status = drops(wait) ? send_to_most(&e, out_n) : send_to_all(&e, out_n);
    else
        status = drops(wait) ? await_most_readers(&e, out_n) : await_all_readers(&e, out_n);
    if (status != WEIR_OK && why[0] == '\0')
        snprintf(why, n_why, "%s", weir_last_error());
    return status;
}
