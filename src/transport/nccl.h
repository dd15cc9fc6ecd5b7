/* SPDX-License-Identifier: Apache-2.0 */
/* nccl.h - what the files of transport nccl share. */
#ifndef WEIR_TRANSPORT_NCCL_H
#define WEIR_TRANSPORT_NCCL_H

#include <pthread.h>

#include "base/clock.h"
#include "base/error.h"
#include "device/cuda_loader.h"
#include "transport/nccl_library.h"

typedef struct nccl_transport {
    weir_transport base;
    const weir_nccl_library *nccl;
    const weir_cuda_runtime *cuda;
    unsigned device;
} nccl_transport;

/* A group goes down this list as group_test() finds it done. */
typedef enum nccl_phase {
    NCCL_JOINING,    /* ranks are missing */
    NCCL_CONNECTING, /* all are known; the first broadcast sets up the links */
    NCCL_PROBING,    /* it is in the stream */
    NCCL_JOINED,
    NCCL_FAILED
} nccl_phase;

typedef struct nccl_group {
    weir_group base;
    const weir_nccl_library *nccl;
    const weir_cuda_runtime *cuda;
    unsigned device;
    uint32_t rank, n_ranks;
    unsigned timeout_ms;
    weir_deadline deadline; /* for joining */
    char *who;

    weir_nccl_comm *comm;
    nccl_phase phase;
    void *stream, *event, *word; /* of the first broadcast */
    weir_status failure;         /* NCCL_FAILED: what every later call says again */
    weir_error_line why;

    pthread_t leaver;       /* while `leaving` */
    bool leaving;           /* nothing but leaving may be done any more */
    bool finish;            /* wait for what is queued instead of cancelling it */
    unsigned leave_ms;      /* bound of leaving */
    weir_deadline leave_by; /* while `leaving` */
    pthread_mutex_t lock;   /* protects what follows */
    pthread_cond_t changed; /* by the monotonic clock */
    bool left;              /* everything is let go but the group itself */
    bool abandoned;         /* whoever leaves frees the group */
} nccl_group;

weir_status weir_nccl_group_open(weir_transport *transport, const weir_group_options *options,
                                 weir_group **out);
weir_status weir_nccl_group_test(weir_group *group);
weir_status weir_nccl_group_broadcast(weir_group *group, uint32_t root,
                                      const weir_group_part *parts, size_t n_parts, void *stream);

/* Begins to let everything go; weir_nccl_group_close() is still to come. */
void weir_nccl_group_leave(weir_group *group, bool abort);
/* Lets everything go within a bound and frees the group; what NCCL does not let go of by then is
 * left to a thread, and logged. */
void weir_nccl_group_close(weir_group *group, bool abort);
void weir_nccl_group_free(nccl_group *group);

#endif
