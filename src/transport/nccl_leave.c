/* SPDX-License-Identifier: Apache-2.0 */
/* nccl_leave.c - leaving a broadcast group within a bound.
 *
 * Ranks leave when they like, and ncclCommDestroy() is a collective call: it waits until all ranks
 * of the host have made it. So what is queued is brought to its end (ncclCommFinalize()), and the
 * communicator is then aborted, which is no collective call.
 *
 * ncclCommAbort() may block even so: for kernels that other ranks no longer answer, for threads of
 * NCCL's that are still joining. It runs in a thread of its own. Where that is not done in time the
 * group is left to it: it frees what it can whenever NCCL returns.
 */
#include <signal.h>
#include <stdio.h>

#include "base/log.h"
#include "transport/nccl.h"

/* What does not end in half the time is aborted. */
static void finish(const nccl_group *group)
{
    weir_deadline deadline = weir_deadline_in(group->leave_ms / 2);
    int state = group->nccl->finalize(group->comm);
    while (state == WEIR_NCCL_IN_PROGRESS && !weir_deadline_passed(deadline)) {
        weir_sleep_ms(1);
        int result = group->nccl->async_error(group->comm, &state);
        if (result != WEIR_NCCL_SUCCESS)
            state = result;
    }
}

static void let_go(nccl_group *group)
{
    const weir_cuda_runtime *cuda = group->cuda;
    int previous;
    cuda->enter((int)group->device, &previous); /* the thread ends: nothing to put back */
    if (group->comm != NULL) {
        if (group->finish)
            finish(group);
        group->nccl->abort(group->comm);
    }
    if (group->event != NULL)
        cuda->event_close(group->event);
    if (group->stream != NULL)
        cuda->stream_close(group->stream);
    if (group->word != NULL)
        cuda->free(group->word);
}

static void *leaver_main(void *argument)
{
    nccl_group *group = argument;
    let_go(group);
    pthread_mutex_lock(&group->lock);
    group->left = true;
    bool abandoned = group->abandoned;
    pthread_cond_signal(&group->changed);
    pthread_mutex_unlock(&group->lock);
    if (abandoned)
        weir_nccl_group_free(group);
    return NULL;
}

/* The application's signal handlers must not run on our thread. */
static int start_thread(nccl_group *group, pthread_t *out)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(out, NULL, leaver_main, group);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

/* False when the bound has passed: the group is the thread's from then on. */
static bool await_left(nccl_group *group)
{
    struct timespec until = { (time_t)(group->leave_by / 1000000000u),
                              (long)(group->leave_by % 1000000000u) };
    int code = 0;
    pthread_mutex_lock(&group->lock);
    while (!group->left && code == 0)
        code = pthread_cond_timedwait(&group->changed, &group->lock, &until);
    bool left = group->left;
    group->abandoned = !left;
    pthread_mutex_unlock(&group->lock);
    return left;
}

/* Of a group that not all have joined nothing can be brought to its end. */
static bool begin_leaving(nccl_group *group, bool abort)
{
    if (group->leaving)
        return true;
    group->finish = !abort && group->phase == NCCL_JOINED;
    group->leave_by = weir_deadline_in(group->leave_ms);
    group->leaving = start_thread(group, &group->leaver) == 0;
    if (!group->leaving)
        weir_log(WEIR_LOG_ERROR, "nccl: %s: no thread to leave with: its communicator is kept",
                 group->who);
    return group->leaving;
}

void weir_nccl_group_leave(weir_group *base, bool abort)
{
    begin_leaving((nccl_group *)base, abort);
}

void weir_nccl_group_close(weir_group *base, bool abort)
{
    nccl_group *group = (nccl_group *)base;
    if (group == NULL || !begin_leaving(group, abort))
        return;
    unsigned leave_ms = group->leave_ms;
    char who[128];
    snprintf(who, sizeof(who), "%s", group->who); /* the thread may free the group */
    pthread_t leaver = group->leaver;
    if (await_left(group)) {
        pthread_join(leaver, NULL);
        weir_nccl_group_free(group);
        return;
    }
    pthread_detach(leaver);
    weir_log(WEIR_LOG_ERROR, "nccl: %s: NCCL has not let go within %.1f s: left to a thread", who,
             leave_ms * 1e-3);
}
