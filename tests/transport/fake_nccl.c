/* SPDX-License-Identifier: Apache-2.0 */
/* fake_nccl.c - a shared object that stands for libnccl.so.2 and for libweir_cuda.so: nothing
 * moves, but every answer of NCCL's, at any time, can be had without a GPU. */
#include "transport/fake_nccl.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device/cuda/cuda_backend.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT fake_nccl fake_nccl_state;
static fake_nccl *const fake = &fake_nccl_state;
static _Thread_local int current;

EXPORT int fake_nccl_current(void)
{
    return current;
}

/* --- libnccl.so.2 ------------------------------------------------------------------------------*/

EXPORT int ncclGetVersion(int *version);
EXPORT int ncclGetUniqueId(weir_nccl_id *out);
EXPORT int ncclCommInitRankConfig(weir_nccl_comm **out, int n_ranks, weir_nccl_id id, int rank,
                                  weir_nccl_config *config);
EXPORT int ncclCommGetAsyncError(weir_nccl_comm *comm, int *out_result);
EXPORT int ncclBroadcast(const void *from, void *into, size_t n_items, int type, int root,
                         weir_nccl_comm *comm, void *stream);
EXPORT int ncclGroupStart(void);
EXPORT int ncclGroupEnd(void);
EXPORT int ncclCommFinalize(weir_nccl_comm *comm);
EXPORT int ncclCommAbort(weir_nccl_comm *comm);
EXPORT const char *ncclGetErrorString(int result);
EXPORT const char *ncclGetLastError(weir_nccl_comm *comm);

static int begin(int polls)
{
    fake->polls_left = polls;
    return polls != 0 ? WEIR_NCCL_IN_PROGRESS : fake->outcome;
}

/* NCCL allows nothing with a communicator that is busy, and nothing at all with one that is gone.
 */
static void check_use(const weir_nccl_comm *comm, bool may_be_busy)
{
    if (comm != (const weir_nccl_comm *)fake || fake->n_aborted > 0 ||
        (fake->polls_left != 0 && !may_be_busy))
        fake->n_misused++;
}

int ncclGetVersion(int *version)
{
    *version = fake->version;
    return WEIR_NCCL_SUCCESS;
}

int ncclGetUniqueId(weir_nccl_id *out)
{
    memset(out->internal, 'k', sizeof(out->internal));
    return fake->key_result;
}

int ncclCommInitRankConfig(weir_nccl_comm **out, int n_ranks, weir_nccl_id id, int rank,
                           weir_nccl_config *config)
{
    fake->n_inits++;
    memset(&fake->config, 0, sizeof(fake->config));
    memcpy(&fake->config, config, config->size);
    fake->id = id;
    fake->rank = rank;
    fake->n_ranks = n_ranks;
    fake->device = current;
    if (fake->init_result != WEIR_NCCL_SUCCESS)
        return fake->init_result;
    *out = (weir_nccl_comm *)fake;
    return begin(fake->init_polls);
}

int ncclCommGetAsyncError(weir_nccl_comm *comm, int *out_result)
{
    check_use(comm, true);
    *out_result = fake->polls_left != 0 ? WEIR_NCCL_IN_PROGRESS : fake->outcome;
    if (fake->polls_left > 0)
        fake->polls_left--;
    return WEIR_NCCL_SUCCESS;
}

int ncclBroadcast(const void *from, void *into, size_t n_items, int type, int root,
                  weir_nccl_comm *comm, void *stream)
{
    check_use(comm, false);
    if (from != into || type != WEIR_NCCL_UINT8)
        fake->n_misused++;
    fake->n_broadcasts++;
    fake->root = root;
    fake->n_bytes = n_items;
    fake->data = into;
    fake->stream = stream;
    fake->device = current;
    if (fake->broadcast_result != WEIR_NCCL_SUCCESS)
        return fake->broadcast_result;
    return fake->in_group ? WEIR_NCCL_SUCCESS : begin(fake->broadcast_polls);
}

int ncclGroupStart(void)
{
    if (fake->in_group)
        fake->n_misused++;
    fake->in_group = true;
    return WEIR_NCCL_SUCCESS;
}

int ncclGroupEnd(void)
{
    if (!fake->in_group)
        fake->n_misused++;
    fake->in_group = false;
    fake->n_groups++;
    return begin(fake->broadcast_polls);
}

int ncclCommFinalize(weir_nccl_comm *comm)
{
    check_use(comm, false);
    int result = begin(fake->finalize_polls);
    fake->n_finalized++;
    return result;
}

int ncclCommAbort(weir_nccl_comm *comm)
{
    check_use(comm, true);
    while (fake->abort_holds)
        usleep(1000);
    fake->n_aborted++;
    return WEIR_NCCL_SUCCESS;
}

const char *ncclGetErrorString(int result)
{
    return result == WEIR_NCCL_REMOTE_ERROR ? "remote error" : "some error";
}

const char *ncclGetLastError(weir_nccl_comm *comm)
{
    (void)comm;
    return fake->last_error;
}

/* --- libweir_cuda.so ---------------------------------------------------------------------------*/

static const char *error_text(int error)
{
    return error == 2 ? "out of memory" : "an error";
}

static int count_devices(int *out_n)
{
    *out_n = FAKE_DEVICES;
    return 0;
}

static int enter(int device, int *out_previous)
{
    *out_previous = current;
    current = device;
    return 0;
}

static int leave(int previous)
{
    current = previous;
    return 0;
}

static int open_any(void **out)
{
    *out = malloc(1);
    fake->n_open++;
    return 0;
}

static int close_any(void *any)
{
    free(any);
    fake->n_open--;
    return 0;
}

static int allocate(size_t n_bytes, void **out)
{
    (void)n_bytes;
    return open_any(out);
}

static int event_open(int timed, void **out)
{
    (void)timed;
    return open_any(out);
}

static int event_record(void *event, void *stream)
{
    (void)event, (void)stream;
    return 0;
}

static int event_test(void *event)
{
    (void)event;
    return fake->event_result;
}

static const weir_cuda_runtime runtime = {
    .size = sizeof(weir_cuda_runtime),
    .error_text = error_text,
    .count_devices = count_devices,
    .enter = enter,
    .leave = leave,
    .allocate = allocate,
    .free = close_any,
    .stream_open = open_any,
    .stream_close = close_any,
    .event_open = event_open,
    .event_close = close_any,
    .event_record = event_record,
    .event_test = event_test,
};

EXPORT extern const weir_cuda_backend weir_cuda_backend_table;
const weir_cuda_backend weir_cuda_backend_table = {
    .size = sizeof(weir_cuda_backend),
    .version = WEIR_CUDA_BACKEND_VERSION,
    .runtime = &runtime,
};
