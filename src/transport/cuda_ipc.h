/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ipc.h - the objects of transport cuda_ipc: GPUs of one host.
 *
 * An owner has a socket and a small thread that tells whoever may know how its regions are mapped,
 * and hands out file descriptors (cuda_ipc_server.c); the socket's end is the owner's end. A reader
 * maps a region (cuda_ipc_peer.c) and copies with the copy engines of its GPU
 * (cuda_ipc_transfer.c). What GPU memory is and how it is mapped is device/cuda_share.h's.
 */
#ifndef WEIR_TRANSPORT_CUDA_IPC_H
#define WEIR_TRANSPORT_CUDA_IPC_H

#include <poll.h>
#include <pthread.h>

#include "device/cuda_share.h"
#include "transport/transport_key.h"
#include "weir/transport.h"

#define WEIR_CUDA_IPC_BATCHES 4u /* of copies in flight */

typedef struct cuda_ipc_region cuda_ipc_region;
typedef struct cuda_ipc_peer cuda_ipc_peer;

typedef struct cuda_ipc_server {
    bool running;
    pthread_t thread;
    int listen_fd;
    int stop_fd;        /* readable when the thread must end */
    struct pollfd *fds; /* stop, listen, then one per reader; the thread's */
    size_t n_fds, capacity;
    weir_key_buffer address;
} cuda_ipc_server;

typedef struct cuda_ipc_transport {
    weir_transport base;
    const weir_cuda_runtime *cuda;
    unsigned device;
    char gpu[WEIR_CUDA_BUS_ID_BYTES];
    uint64_t owner[2]; /* a random number that tells owners apart */
    uint64_t last_region;
    pthread_mutex_t lock; /* of the regions, which the server's thread reads */
    cuda_ipc_region *regions;
    cuda_ipc_server server;
} cuda_ipc_transport;

struct cuda_ipc_region {
    weir_region base;
    cuda_ipc_region *next;
    uint64_t number;
    void *data;
    uint64_t n_bytes;
    bool allocated; /* else the caller's */
    bool sealed;
    weir_cuda_share share;
    weir_key_buffer key;
};

typedef struct cuda_ipc_remote {
    weir_remote_region base;
    weir_cuda_mapping *mapping; /* NULL: of this very process */
    char *data;                 /* for this transport's GPU */
    uint64_t n_bytes;
} cuda_ipc_remote;

/* Copies that were queued together, with an event behind them. */
typedef struct cuda_ipc_batch {
    void *event;
    uint64_t n_bytes;
} cuda_ipc_batch;

typedef struct cuda_ipc_transfer {
    weir_transfer base;
    const weir_copy *copies;
    size_t n_copies;
    size_t next_copy; /* the next byte to queue: this copy, this far into it */
    uint64_t next_offset;
    bool next_blocks; /* it goes to memory that CUDA does not know: the call copies itself */
    uint64_t done_bytes;
    unsigned first_batch, n_batches; /* in flight: a ring */
    uint64_t batch_bytes;            /* the next one's: they grow */
    weir_status status;              /* IN_PROGRESS while it runs */
    bool open;                       /* between post and finish */
    cuda_ipc_batch batches[WEIR_CUDA_IPC_BATCHES];
} cuda_ipc_transfer;

struct cuda_ipc_peer {
    weir_peer base;
    int fd;      /* to the owner's thread; its end is the owner's */
    int process; /* readable when the owner's process has ended; -1: the kernel cannot say */
    bool here;   /* the owner is this very process */
    uint64_t owner[2];
    unsigned timeout_ms; /* for an answer */
    uint64_t last_request;
    weir_status lost; /* OK while it is alive */
    char lost_why[256];
    void *stream;
    cuda_ipc_transfer transfer; /* the one that a peer runs at a time */
    char who[];
};

/* cuda_ipc_server.c */
weir_status weir_cuda_ipc_server_open(cuda_ipc_transport *ipc); /* nothing when it is open */
void weir_cuda_ipc_server_close(cuda_ipc_transport *ipc);
/* Where this process is: its host's name, and this boot of it with its network namespace. */
void weir_cuda_ipc_where(char host[WEIR_KEY_TEXT], char place[WEIR_KEY_TEXT]);

/* cuda_ipc_region.c */
weir_status weir_cuda_ipc_allocate(weir_transport *transport, uint64_t n_bytes, weir_region **out);
weir_status weir_cuda_ipc_expose(weir_transport *transport, void *data, uint64_t n_bytes,
                                 weir_region **out);
void weir_cuda_ipc_release(weir_region *region);
void *weir_cuda_ipc_region_data(weir_region *region);
weir_status weir_cuda_ipc_seal(weir_region *region, const weir_seal *seal);
weir_status weir_cuda_ipc_region_key(weir_region *region, const void **out_key,
                                     size_t *out_n_bytes);

/* cuda_ipc_peer.c */
weir_status weir_cuda_ipc_connect(weir_transport *transport, const void *address, size_t n_bytes,
                                  const char *who, unsigned timeout_ms, weir_peer **out);
void weir_cuda_ipc_disconnect(weir_peer *peer);
weir_status weir_cuda_ipc_import(weir_peer *peer, const void *key, size_t n_bytes,
                                 weir_remote_region **out);
void weir_cuda_ipc_forget(weir_remote_region *remote);
weir_status weir_cuda_ipc_map(weir_remote_region *remote, void **out, uint64_t *out_n_bytes);
/* Notes that a peer is gone; the first reason stays. */
void weir_cuda_ipc_peer_lost(cuda_ipc_peer *peer, weir_status status, const char *why);
/* OK, or records why the peer is gone: looks whether the owner has closed its end. */
weir_status weir_cuda_ipc_peer_check(cuda_ipc_peer *peer);

/* cuda_ipc_transfer.c */
weir_status weir_cuda_ipc_transfer_open(cuda_ipc_peer *peer); /* its stream and events */
void weir_cuda_ipc_transfer_close(cuda_ipc_peer *peer);
weir_status weir_cuda_ipc_post(weir_peer *peer, const weir_copy *copies, size_t n_copies,
                               weir_transfer **out);
weir_status weir_cuda_ipc_test(weir_transfer *transfer, uint64_t *out_done);
void weir_cuda_ipc_finish(weir_transfer *transfer);

#endif
