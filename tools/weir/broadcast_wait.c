/* SPDX-License-Identifier: Apache-2.0 */
/* broadcast_wait.c - waiting, by how a version is delivered and by what a missing server means.
 *
 * A trainer counts replicas, whoever they are; a broadcast is over when those of its group hold it.
 * Those that a run goes on without are not waited for: once some hold a version, or are ready for
 * one that is pushed, the others have as long again as these took.
 */
#include "broadcast_wait.h"

#include <unistd.h>

#include "broadcast_missing.h"
#include "cli.h"
#include "flow.h"

#define SLICE_MS 500
#define LEAST_GRACE_S 2.0
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

/* ---- pushed to them --------------------------------------------------------------------------*/

/* What another try would not mend. */
static bool is_final(weir_status status)
{
    return status == WEIR_OK || status == WEIR_ERR_CANCELLED || status == WEIR_ERR_NONFINITE ||
           status == WEIR_ERR_INVALID || status == WEIR_ERR_NOT_FOUND ||
           status == WEIR_ERR_NO_MEMORY || status == WEIR_ERR_DEVICE ||
           status == WEIR_ERR_INTERNAL || weir_cli_stopped();
}

/* It was sent to n replicas; those of the group say so to the directory a moment later. Replicas of
 * no group may have taken the place of some, who are sent it when they are ready. */
static weir_status await_group(const weir_broadcast_wait *wait, double begun, unsigned n)
{
    for (;;) {
        unsigned n_ready = 0;
        uint32_t n_missing = knows_its_group(wait) ? count_missing(wait) : 0;
        if (n_missing == 0)
            return WEIR_OK;
        if (is_late(wait, begun))
            return out_of_time(wait, n_missing);
        weir_status status = weir_trainer_ready(wait->trainer, wait->version, &n_ready);
        if (status == WEIR_OK && n_ready > n)
            status = weir_trainer_wait(wait->trainer, wait->version, n_ready, left_of(wait, begun));
        if (status == WEIR_OK && n_ready > n)
            n = n_ready;
        if (status != WEIR_OK && is_final(status))
            return status;
        if (weir_cli_stopped())
            return WEIR_ERR_CANCELLED;
        usleep(AGAIN_US);
    }
}

/* A server that failed has taken the others' part with it, and all may try again. */
static weir_status push_to_all(const weir_broadcast_wait *wait, unsigned *out_n)
{
    double begun = weir_cli_now();
    *out_n = world_of(wait);
    for (;;) {
        weir_status status =
            weir_trainer_wait(wait->trainer, wait->version, world_of(wait), left_of(wait, begun));
        if (status == WEIR_OK)
            return await_group(wait, begun, world_of(wait));
        if (is_final(status) || is_late(wait, begun + AGAIN_US / 1e6))
            return status;
        usleep(AGAIN_US);
    }
}

/* Until enough are ready: all, or those who were so in time. */
static weir_status gather_most(const weir_broadcast_wait *wait, double begun, unsigned *out_n)
{
    double came = 0;
    for (;;) {
        unsigned n_ready = 0;
        weir_status status = weir_trainer_ready(wait->trainer, wait->version, &n_ready);
        if (status != WEIR_OK || weir_cli_stopped() || is_late(wait, begun))
            return status == WEIR_OK ? WEIR_ERR_TIMED_OUT : status;
        double now = weir_cli_now();
        if (n_ready > *out_n && came == 0)
            came = now;
        double grace_s = came - begun > LEAST_GRACE_S ? came - begun : LEAST_GRACE_S;
        if (n_ready >= world_of(wait) || (came > 0 && now - came > grace_s)) {
            *out_n = n_ready;
            return WEIR_OK;
        }
        usleep(LOOK_US);
    }
}

/* Of those that it was sent to, the group's say so to the directory a moment later. */
static weir_status name_dropped(const weir_broadcast_wait *wait, unsigned *out_n)
{
    uint32_t n_workers = world_of(wait), n_sent = *out_n < n_workers ? *out_n : n_workers;
    double begun = weir_cli_now();
    *out_n = n_sent;
    if (!knows_its_group(wait))
        return WEIR_OK;
    while (count_missing(wait) > n_workers - n_sent && weir_cli_now() - begun < LEAST_GRACE_S &&
           !weir_cli_stopped())
        usleep(AGAIN_US);
    *out_n = n_workers - say_who_is_left(wait);
    return WEIR_OK;
}

static weir_status push_to_most(const weir_broadcast_wait *wait, unsigned *out_n)
{
    double begun = weir_cli_now();
    weir_status status;
    do {
        *out_n = 0;
        status = gather_most(wait, begun, out_n);
        if (status == WEIR_ERR_TIMED_OUT) /* whom it lacks says the call itself */
            return weir_trainer_wait(wait->trainer, wait->version, world_of(wait), 1);
        if (status == WEIR_OK)
            status = weir_trainer_wait(wait->trainer, wait->version, *out_n, wait->timeout_ms);
    } while (!is_final(status) && !is_late(wait, begun));
    return status == WEIR_OK ? name_dropped(wait, out_n) : status;
}

weir_status weir_broadcast_await(const weir_broadcast_wait *wait, unsigned *out_n)
{
    bool drops = wait->settings->orchestrator.server_policy == WEIR_RUN_DROP;
    if (wait->pushes)
        return drops ? push_to_most(wait, out_n) : push_to_all(wait, out_n);
    return drops ? await_most_readers(wait, out_n) : await_all_readers(wait, out_n);
}
