/* SPDX-License-Identifier: Apache-2.0 */
/* fake_nccl.h - what tests tell fake_nccl.so to do, and what it saw. */
#ifndef WEIR_TESTS_FAKE_NCCL_H
#define WEIR_TESTS_FAKE_NCCL_H

#include <stdatomic.h>
#include <stddef.h>

#include "transport/nccl_library.h"

#define FAKE_NEVER (-1) /* polls that it takes: without end */
#define FAKE_DEVICES 2

typedef struct fake_nccl {
    /* Set by the test. */
    int version;
    int key_result, init_result, broadcast_result;   /* what the call itself returns */
    int init_polls, broadcast_polls, finalize_polls; /* in progress for as many questions */
    atomic_int outcome;                              /* what is told after them */
    atomic_int event_result;                         /* of the stream: 0, or not ready */
    atomic_int abort_holds;                          /* ncclCommAbort() blocks while it is set */
    const char *last_error;

    /* Seen. */
    atomic_int polls_left;
    int n_groups;
    bool in_group; /* between ncclGroupStart() and ncclGroupEnd() */
    atomic_int n_inits, n_broadcasts, n_finalized, n_aborted;
    atomic_int n_misused; /* calls on a communicator that was busy, or gone */
    atomic_int n_open;    /* streams, events and pieces of memory not closed */
    weir_nccl_config config;
    weir_nccl_id id;
    int rank, n_ranks, root, device;
    size_t n_bytes;
    void *data, *stream;
} fake_nccl;

/* The device that the calling thread has entered. */
#define FAKE_CURRENT_SYMBOL "fake_nccl_current"
int fake_nccl_current(void);

#endif
