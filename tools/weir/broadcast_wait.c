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
#include <unistd.h>

#include "broadcast_missing.h"
#include "cli.h"
#include "flow.h"

#define SLICE_MS 500
#define LEAST_GRACE_S 2.0
#define TRIES 3u /* that have room in a time-out, where a round may be followed by another */
#define LOOK_US 20000u
#define AGAIN_US 100000u

static uint32_t world_of(const weir_broadcast_wait *wait)
{
    return wait->settings->trainer.broadcast.inference_world_size;
}

static bool is_late(const weir_broadcast_wait *wait, double begun)
{
    return weir_cli_now() - begun > wait->timeout_ms / 1e3;
}

static unsigned left_of(const weir_broadcast_wait *wait, double begun)
{
    double left_s = wait->timeout_ms / 1e3 - (weir_cli_now() - begun);
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

/* Replicas of no group hold it in place of some of the group: the time is up, and the line says
 * for how many more it would have taken. */
static weir_status out_of_time(const weir_broadcast_wait *wait, uint32_t n_missing)
{
    uint32_t n = world_of(wait) + (n_missing > 0 ? n_missing : 1);
    while (weir_trainer_wait(wait->trainer, wait->version, n, 1) == WEIR_OK)
        n++;
    return WEIR_ERR_TIMED_OUT;
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

static weir_status await_all_readers(const weir_broadcast_wait *wait, unsigned *out_n)
{
    double begun = weir_cli_now();
    *out_n = world_of(wait);
    for (;;) {
        weir_status status =
            weir_trainer_wait(wait->trainer, wait->version, world_of(wait), left_of(wait, begun));
        uint32_t n_missing = status == WEIR_OK && knows_its_group(wait) ? count_missing(wait) : 0;
        if (status != WEIR_OK || n_missing == 0)
            return status;
        if (is_late(wait, begun))
            return out_of_time(wait, n_missing);
        if (weir_cli_stopped())
            return WEIR_ERR_CANCELLED;
        usleep(AGAIN_US);
    }
}

static weir_status await_most_readers(const weir_broadcast_wait *wait, unsigned *out_n)
{
    uint32_t n_workers = world_of(wait), n_before = n_workers;
    double begun = weir_cli_now(), changed = begun;
    for (;;) {
        weir_status status = weir_trainer_wait(wait->trainer, wait->version, n_workers, SLICE_MS);
        *out_n = n_workers;
        if (status != WEIR_OK && (status != WEIR_ERR_TIMED_OUT || is_late(wait, begun)))
            return status;
        uint32_t n = status != WEIR_OK || knows_its_group(wait) ? count_missing(wait) : 0;
        if (n == 0)
            return WEIR_OK;
        double now = weir_cli_now();
        if (n != n_before)
            changed = now;
        n_before = n;
        double grace_s = changed - begun > LEAST_GRACE_S ? changed - begun : LEAST_GRACE_S;
        if (n < n_workers && now - changed > grace_s) {
            *out_n = n_workers - say_who_is_left(wait);
            return WEIR_OK;
        }
        if (is_late(wait, begun))
            return out_of_time(wait, n);
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
           status == WEIR_ERR_DEVICE || status == WEIR_ERR_INTERNAL || weir_cli_stopped();
}

static unsigned n_replicas_of(const weir_broadcast_wait *wait)
{
    return world_of(wait) / wait->workers_per_replica;
}

/* A round that comes to nothing leaves time for another one, unless none may follow. */
static unsigned bound_of_round(const weir_broadcast_wait *wait, double begun)
{
    unsigned left_ms = left_of(wait, begun), share_ms = wait->timeout_ms / TRIES;
    bool is_last = wait->settings->orchestrator.server_policy == WEIR_RUN_ABORT;
    return is_last || left_ms < share_ms ? left_ms : share_ms;
}

/* Of little time, a little. */
static double least_grace_of(const weir_broadcast_wait *wait)
{
    double share_s = wait->timeout_ms / 4e3;
    return share_s < LEAST_GRACE_S ? share_s : LEAST_GRACE_S;
}

/* It was sent to n replicas; those of the group say so to the directory a moment later. Replicas of
 * no group may have taken the place of some, who are sent it when they are ready, where it can be
 * had still. */
static weir_status await_group(const weir_broadcast_wait *wait, double begun, unsigned n, char *why,
                               size_t n_why)
{
    double sent = weir_cli_now();
    for (;;) {
        unsigned n_ready = 0;
        uint32_t n_missing = knows_its_group(wait) ? count_missing(wait) : 0;
        if (n_missing == 0)
            return WEIR_OK;
        if (is_late(wait, begun))
            return out_of_time(wait, n_missing);
        weir_status status = weir_trainer_ready(wait->trainer, wait->version, &n_ready);
        if (status == WEIR_ERR_NOT_FOUND && weir_cli_now() - sent > least_grace_of(wait)) {
            snprintf(why, n_why, "it was sent to %u replicas, and not all of them are of the group",
                     n);
            return WEIR_ERR_TIMED_OUT;
        }
        if (status == WEIR_OK && n_ready > n)
            status = weir_trainer_wait(wait->trainer, wait->version, n_ready, left_of(wait, begun));
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
static weir_status send_to_all(const weir_broadcast_wait *wait, unsigned *out_n, char *why,
                               size_t n_why)
{
    unsigned n_replicas = n_replicas_of(wait);
    double begun = weir_cli_now();
    *out_n = world_of(wait);
    for (;;) {
        weir_status status = weir_trainer_wait(wait->trainer, wait->version, n_replicas,
                                               bound_of_round(wait, begun));
        if (status == WEIR_OK)
            return await_group(wait, begun, n_replicas, why, n_why);
        if (is_final(status) || is_late(wait, begun + AGAIN_US / 1e6))
            return status;
        usleep(AGAIN_US);
    }
}

/* Until enough are ready: all, or those who were so in time. */
static weir_status gather_most(const weir_broadcast_wait *wait, double begun, unsigned *out_n)
{
    double asked = weir_cli_now(), came = 0, latest = begun + 0.75 * wait->timeout_ms / 1e3;
    for (;;) {
        unsigned n_ready = 0;
        weir_status status = weir_trainer_ready(wait->trainer, wait->version, &n_ready);
        if (status != WEIR_OK || weir_cli_stopped() || is_late(wait, begun))
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

static weir_status send_to_most(const weir_broadcast_wait *wait, unsigned *out_n)
{
    double begun = weir_cli_now();
    weir_status status;
    do {
        *out_n = 0;
        status = gather_most(wait, begun, out_n);
        if (status == WEIR_ERR_TIMED_OUT) /* whom it lacks says the call itself */
            return weir_trainer_wait(wait->trainer, wait->version, n_replicas_of(wait), 1);
        if (status == WEIR_OK)
            status = weir_trainer_wait(wait->trainer, wait->version, *out_n,
                                       bound_of_round(wait, begun));
    } while (!is_final(status) && !is_late(wait, begun));
    return status == WEIR_OK ? name_dropped(wait, out_n) : status;
}

weir_status weir_broadcast_await(const weir_broadcast_wait *wait, unsigned *out_n, char *why,
                                 size_t n_why)
{
    weir_status status;
    why[0] = '\0';
    if (wait->sends)
        status = drops(wait) ? send_to_most(wait, out_n) : send_to_all(wait, out_n, why, n_why);
    else
        status = drops(wait) ? await_most_readers(wait, out_n) : await_all_readers(wait, out_n);
    if (status != WEIR_OK && why[0] == '\0')
        snprintf(why, n_why, "%s", weir_last_error());
    return status;
}
