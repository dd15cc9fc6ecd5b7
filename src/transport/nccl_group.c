/* SPDX-License-Identifier: Apache-2.0 */
/* nccl_group.c - joining a broadcast group, and broadcasting in it.
 *
 * The communicator does not block: NCCL works in threads of its own, and ncclCommGetAsyncError()
 * tells how far it is. No second call may be made before it has said so, and a broadcast lies in
 * its stream only from then on.
 *
 * NCCL sets up links at the first broadcast, which then waits for all ranks to post it. Joining
 * ends with one byte of rank 0, so that this wait, too, is part of joining and has its bound.
 */
#include "transport/nccl.h"

#include <sched.h>
#include <string.h>

#include "base/alloc.h"
#include "transport/transport_table.h"

#define TIMEOUT_MS 60000u
#define LEAVE_MS 10000u
#define SPINS 4096 /* a broadcast is queued within tens of microseconds as a rule */
#define VERSION_2_17 21700
/* Blocks of a broadcast, each with 20 MiB of GPU memory for as long as the group lives. Between two
 * H200s 16 reach 334 GB/s with 64 MiB at a time, the 24 of NCCL's own choice 336, 8 of them 262. */
#define MAX_CTAS 16
#define GROUP_PARTS ((size_t)32)

static weir_nccl_config make_config(const weir_nccl_library *nccl)
{
    bool longer = nccl->version >= VERSION_2_17;
    return (weir_nccl_config){
        .size = longer ? sizeof(weir_nccl_config) : WEIR_NCCL_CONFIG_BYTES_2_14,
        .magic = WEIR_NCCL_MAGIC,
        .version = longer ? VERSION_2_17 : WEIR_NCCL_MIN_VERSION,
        .blocking = 0,
        .cga_cluster_size = WEIR_NCCL_UNDEFINED,
        .min_ctas = WEIR_NCCL_UNDEFINED,
        .max_ctas = MAX_CTAS,
    };
}

/* --- failing -----------------------------------------------------------------------------------*/

/* NCCL lets nothing be done with a communicator that has failed: every later call says why. */
static weir_status keep_failure(nccl_group *group, weir_status status)
{
    group->phase = NCCL_FAILED;
    group->failure = status;
    weir_error_save(&group->why);
    return status;
}

static weir_status fail_result(nccl_group *group, int result, const char *what)
{
    return keep_failure(group, weir_nccl_fail(group->nccl, result, group->who, what));
}

static weir_status failed_already(const nccl_group *group)
{
    weir_error_restore(&group->why);
    return group->failure;
}

/* NCCL does not say who is missing; who leads the round knows who has answered it. */
static weir_status fail_overdue(nccl_group *group)
{
    return keep_failure(group,
                        weir_fail(WEIR_ERR_TIMED_OUT,
                                  "%s: not all of %u ranks have %s NCCL within %.1f s "
                                  "(this is rank %u)",
                                  group->who, group->n_ranks,
                                  group->phase == NCCL_JOINING ? "joined" : "connected through",
                                  group->timeout_ms * 1e-3, group->rank));
}

/* --- joining -----------------------------------------------------------------------------------*/

static weir_status check_options(const weir_group_options *options)
{
    if (options->key == NULL)
        return weir_fail(WEIR_ERR_INVALID, "transport nccl: a group needs the key of its rank 0");
    if (options->n_ranks == 0 || options->n_ranks > INT_MAX || options->rank >= options->n_ranks)
        return weir_fail(WEIR_ERR_INVALID, "transport nccl: rank %u of %u ranks", options->rank,
                         options->n_ranks);
    return WEIR_OK;
}

static weir_status make_group(const nccl_transport *transport, const weir_group_options *options,
                              nccl_group **out)
{
    nccl_group *group = weir_alloc_zeroed(1, sizeof(*group));
    if (group == NULL)
        return WEIR_ERR_NO_MEMORY;
    group->who = weir_strdup(options->who != NULL ? options->who : "broadcast group");
    if (group->who == NULL) {
        weir_free(group);
        return WEIR_ERR_NO_MEMORY;
    }
    group->base.transport = (weir_transport *)transport;
    group->nccl = transport->nccl;
    group->cuda = transport->cuda;
    group->device = transport->device;
    group->rank = options->rank;
    group->n_ranks = options->n_ranks;
    group->timeout_ms = options->timeout_ms != 0 ? options->timeout_ms : TIMEOUT_MS;
    group->deadline = weir_deadline_in(group->timeout_ms);
    group->leave_ms = LEAVE_MS;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&group->lock, NULL);
    pthread_cond_init(&group->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *out = group;
    return WEIR_OK;
}

void weir_nccl_group_free(nccl_group *group)
{
    pthread_cond_destroy(&group->changed);
    pthread_mutex_destroy(&group->lock);
    weir_free(group->who);
    weir_free(group);
}

/* With the group's GPU entered. */
static weir_status begin_joining(nccl_group *group, const void *key)
{
    const weir_cuda_runtime *cuda = group->cuda;
    weir_nccl_config config = make_config(group->nccl);
    weir_nccl_id id;
    if (!weir_alloc_note(1))
        return WEIR_ERR_NO_MEMORY;
    int error = cuda->stream_open(&group->stream);
    if (error == 0)
        error = cuda->event_open(0, &group->event);
    if (error == 0)
        error = cuda->allocate(1, &group->word);
    if (error != 0)
        return weir_cuda_check(error, "%s: cannot prepare GPU %u", group->who, group->device);
    memcpy(&id, key, sizeof(id));
    int result =
        group->nccl->init_rank(&group->comm, (int)group->n_ranks, id, (int)group->rank, &config);
    if (result != WEIR_NCCL_SUCCESS && result != WEIR_NCCL_IN_PROGRESS)
        return weir_nccl_fail(group->nccl, result, group->who, "cannot join");
    return WEIR_OK;
}

weir_status weir_nccl_group_open(weir_transport *base, const weir_group_options *given,
                                 weir_group **out)
{
    nccl_transport *transport = (nccl_transport *)base;
    weir_group_options options;
    nccl_group *group = NULL;
    int previous;
    weir_status status =
        weir_transport_struct_read(given, sizeof(options), "weir_group_options", &options);
    if (status == WEIR_OK)
        status = check_options(&options);
    if (status == WEIR_OK)
        status = make_group(transport, &options, &group);
    if (status != WEIR_OK)
        return status;
    status = weir_cuda_check(group->cuda->enter((int)group->device, &previous),
                             "%s: cannot use GPU %u", group->who, group->device);
    if (status != WEIR_OK) {
        weir_nccl_group_free(group);
        return status;
    }
    status = begin_joining(group, options.key);
    group->cuda->leave(previous);
    if (status != WEIR_OK) {
        weir_nccl_group_close(&group->base, true);
        return status;
    }
    *out = &group->base;
    return WEIR_OK;
}

static weir_status start_probe(nccl_group *group)
{
    int previous;
    int error = group->cuda->enter((int)group->device, &previous);
    if (error != 0)
        return keep_failure(
            group, weir_cuda_check(error, "%s: cannot use GPU %u", group->who, group->device));
    int result = group->nccl->broadcast(group->word, group->word, 1, WEIR_NCCL_UINT8, 0,
                                        group->comm, group->stream);
    group->cuda->leave(previous);
    if (result != WEIR_NCCL_SUCCESS && result != WEIR_NCCL_IN_PROGRESS)
        return fail_result(group, result, "cannot connect");
    group->phase = NCCL_CONNECTING;
    return WEIR_IN_PROGRESS;
}

static weir_status test_probe(nccl_group *group)
{
    int error = 0, previous;
    if (group->phase == NCCL_CONNECTING) { /* queued at last: see when the stream is past it */
        error = group->cuda->enter((int)group->device, &previous);
        if (error == 0) {
            error = group->cuda->event_record(group->event, group->stream);
            group->cuda->leave(previous);
        }
        group->phase = NCCL_PROBING;
    }
    if (error == 0)
        error = group->cuda->event_test(group->event);
    if (error == WEIR_CUDA_NOT_READY)
        return weir_deadline_passed(group->deadline) ? fail_overdue(group) : WEIR_IN_PROGRESS;
    if (error != 0)
        return keep_failure(group, weir_cuda_check(error, "%s: the first broadcast", group->who));
    group->phase = NCCL_JOINED;
    return WEIR_OK;
}

weir_status weir_nccl_group_test(weir_group *base)
{
    nccl_group *group = (nccl_group *)base;
    if (group->phase == NCCL_FAILED)
        return failed_already(group);
    int state = WEIR_NCCL_SUCCESS;
    int result = group->nccl->async_error(group->comm, &state);
    if (result != WEIR_NCCL_SUCCESS)
        state = result;
    if (state == WEIR_NCCL_IN_PROGRESS)
        return weir_deadline_passed(group->deadline) ? fail_overdue(group) : WEIR_IN_PROGRESS;
    if (state != WEIR_NCCL_SUCCESS)
        return fail_result(group, state,
                           group->phase == NCCL_JOINED ? "the group broke" : "joining failed");
    switch (group->phase) {
    case NCCL_JOINING:
        return start_probe(group);
    case NCCL_CONNECTING:
    case NCCL_PROBING:
        return test_probe(group);
    default:
        return WEIR_OK;
    }
}

/* --- broadcasting ------------------------------------------------------------------------------*/

/* Until the broadcast lies in its stream: what the caller queues next must come after it. */
static weir_status await_queued(nccl_group *group, int state)
{
    weir_deadline deadline = weir_deadline_in(group->timeout_ms);
    for (unsigned spins = 0; state == WEIR_NCCL_IN_PROGRESS; spins++) {
        int result = group->nccl->async_error(group->comm, &state);
        if (result != WEIR_NCCL_SUCCESS)
            state = result;
        if (state != WEIR_NCCL_IN_PROGRESS)
            break;
        if (weir_deadline_passed(deadline))
            return keep_failure(group, weir_fail(WEIR_ERR_TIMED_OUT,
                                                 "%s: a broadcast was not queued within %.1f s "
                                                 "(this is rank %u of %u)",
                                                 group->who, group->timeout_ms * 1e-3, group->rank,
                                                 group->n_ranks));
        if (spins < SPINS)
            sched_yield();
        else
            weir_sleep_ms(1);
    }
    return state == WEIR_NCCL_SUCCESS ? WEIR_OK : fail_result(group, state, "a broadcast failed");
}

/* As one group of calls NCCL runs them in one kernel. What it answers to each call is collected by
 * the end of the group. At most GROUP_PARTS of them: with a hundred, NCCL 2.28 keeps 2 KB of the
 * heap each time. */
static int queue_parts(nccl_group *group, uint32_t root, const weir_group_part *parts,
                       size_t n_parts, void *stream)
{
    int first = group->nccl->group_start();
    for (size_t i = 0; i < n_parts && first == WEIR_NCCL_SUCCESS; i++) {
        int result = WEIR_NCCL_SUCCESS;
        if (parts[i].n_bytes > 0)
            result = group->nccl->broadcast(parts[i].data, parts[i].data, parts[i].n_bytes,
                                            WEIR_NCCL_UINT8, (int)root, group->comm, stream);
        if (result != WEIR_NCCL_IN_PROGRESS)
            first = result;
    }
    int end = group->nccl->group_end();
    return first != WEIR_NCCL_SUCCESS ? first : end;
}

weir_status weir_nccl_group_broadcast(weir_group *base, uint32_t root, const weir_group_part *parts,
                                      size_t n_parts, void *stream)
{
    nccl_group *group = (nccl_group *)base;
    int previous;
    if (group->phase == NCCL_FAILED)
        return failed_already(group);
    if (group->phase != NCCL_JOINED)
        return weir_fail(WEIR_ERR_INVALID, "%s: a broadcast before all ranks have joined",
                         group->who);
    weir_status status =
        weir_transport_parts_check(group->who, root, group->n_ranks, parts, n_parts);
    if (status == WEIR_OK)
        status = weir_cuda_check(group->cuda->enter((int)group->device, &previous),
                                 "%s: cannot use GPU %u", group->who, group->device);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < n_parts && status == WEIR_OK; i += GROUP_PARTS) {
        size_t n = n_parts - i < GROUP_PARTS ? n_parts - i : GROUP_PARTS;
        status = await_queued(group, queue_parts(group, root, parts + i, n, stream));
    }
    group->cuda->leave(previous);
    return status;
}
