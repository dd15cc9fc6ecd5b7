/* SPDX-License-Identifier: Apache-2.0 */
/* ucx.h - the objects of transport ucx; UCX's types appear in its files alone.
 *
 * Two workers, so that the data path needs no lock: the server's belongs to a thread that sleeps
 * until a reader needs it (ucx_worker.c), the reader's is driven by the caller of test
 * (ucx_transfer.c). Regions are in ucx_region.c, peers and remote regions in ucx_peer.c. Broadcast
 * groups (ucx_group.h) have a thread and connections of their own, and so have reads where there is
 * nothing but TCP (ucx_stream.h).
 */
#ifndef WEIR_TRANSPORT_UCX_H
#define WEIR_TRANSPORT_UCX_H

#include <pthread.h>
#include <ucp/api/ucp.h>

#include "transport/transport_key.h"
#include "transport/ucx_group_message.h"
#include "weir/transport.h"

#define WEIR_UCX_KEYS 64u /* keys of groups that are not open yet; one more drops the oldest */
#define WEIR_UCX_GIVE_UP 3
#define WEIR_UCX_IN_FLIGHT 32u /* reads that one transfer has asked for at most */

typedef struct ucx_region ucx_region;
typedef struct ucx_peer ucx_peer;

typedef struct ucx_server {
    ucp_worker_h worker; /* NULL until there is something to serve */
    pthread_t thread;
    int ucx_fd;         /* readable when the worker has work */
    int stop_fd;        /* readable when the thread must end */
    uint64_t *greeting; /* a random word that every reader reads first */
    ucp_mem_h greeting_memory;
    struct ucx_stream_server *streams; /* for readers over TCP; NULL: there are none */
    weir_key_buffer address;
} ucx_server;

/* Where rank 0 of a group will be met: the key is out, the group is not open yet. */
typedef struct ucx_listener {
    int fd;
    weir_ucx_group_key key;
} ucx_listener;

typedef struct ucx_transport {
    weir_transport base;
    ucp_context_h context;
    bool beside;         /* the context is another transport's, which stays open longer */
    char *tls;           /* NULL: UCX's own choice */
    bool streams;        /* the list has TCP, which UCX is never given: by ucx_stream.h */
    int streams_fd;      /* readable when a transfer over TCP has something to take; -1: none yet */
    ucp_context_h quiet; /* of groups; NULL: there is none, or not yet */
    bool quiet_tried;
    int give_up_fds[WEIR_UCX_GIVE_UP]; /* readable when connecting has no use any more; -1: none */
    weir_pool *pool;
    ucx_listener listeners[WEIR_UCX_KEYS]; /* the oldest first */
    unsigned n_listeners;
    ucx_server server;
    ucp_worker_h reader;
    int reader_fd;
    bool reader_stuck;    /* a cancelled read did not end: the reader is never progressed again */
    ucx_region *released; /* empty, but mapped until close: see weir_ucx_release() */
} ucx_transport;

struct ucx_region {
    weir_region base;
    ucp_mem_h memory;
    void *data;
    uint64_t n_bytes;
    bool allocated; /* by UCX; else the caller's */
    bool sealed;
    weir_key_buffer key;
    ucx_region *next_released;
};

typedef struct ucx_remote {
    weir_remote_region base;
    ucp_rkey_h rkey;  /* NULL of a peer that sends */
    uint64_t address; /* in the owner's process */
    uint64_t n_bytes;
    uint8_t *mapped; /* the region in this process, or NULL */
} ucx_remote;

typedef struct ucx_transfer ucx_transfer;
typedef struct ucx_piece {
    ucx_transfer *transfer;
    struct ucx_piece *next_free;
    uint64_t n_bytes;
} ucx_piece;

struct ucx_transfer {
    weir_transfer base;
    const weir_copy *copies;
    size_t n_copies;
    size_t next_copy; /* the next byte to ask for: this copy, this far into it */
    uint64_t next_offset;
    uint64_t done_bytes;
    unsigned n_in_flight;
    uint64_t bytes_in_flight;
    weir_status status; /* IN_PROGRESS while it runs */
    bool open;          /* between post and finish */
    ucx_piece *free_piece;
    ucx_piece pieces[WEIR_UCX_IN_FLIGHT];
};

struct ucx_peer {
    weir_peer base;
    ucp_ep_h endpoint;         /* NULL once closed, and of a peer that sends */
    struct ucx_stream *stream; /* NULL where UCX reads */
    int process_fd;            /* readable when the peer's process has ended; -1: on another host */
    weir_status lost;          /* OK while it is alive */
    char lost_why[128];
    uint64_t greeting;     /* what the peer's greeting held */
    ucx_transfer transfer; /* the one that a peer runs at a time */
    char who[];
};

/* ucx.c */
/* A context that groups read in; none where the list has nothing but TCP. */
weir_status weir_ucx_open_quiet(ucx_transport *ucx);
/* The same list of UCX transports without "tcp" (NULL: all); empty when nothing is left of it. The
 * caller's to free. */
weir_status weir_ucx_without_tcp(const char *tls, char **out);
/* Workers, regions and peers of its own for another thread, in that context. */
weir_status weir_ucx_open_beside(ucx_transport *of, weir_transport **out);

/* ucx_worker.c */
weir_status weir_ucx_fail(ucs_status_t status, const char *who, const char *what);
weir_status weir_ucx_worker_open(ucx_transport *ucx, ucp_worker_h *out, int *out_fd);
void weir_ucx_worker_close(ucp_worker_h worker);
weir_status weir_ucx_server_open(ucx_transport *ucx); /* does nothing when it is open */
void weir_ucx_server_close(ucx_transport *ucx);
weir_status weir_ucx_reader_open(ucx_transport *ucx);
/* Progresses the reader; when there was nothing to do, sleeps until there is or `ms` have passed.
 * process_fd (-1: none) ends the sleep too. */
void weir_ucx_reader_turn(ucx_transport *ucx, int process_fd, unsigned ms);
const char *weir_ucx_host(void); /* this boot of this host and this process namespace */
/* Readable once that process has ended. -1: it is on another `host`, or (*out_gone) is no more. */
int weir_ucx_process_open(const char *host, uint32_t process, bool *out_gone);

/* ucx_region.c */
weir_status weir_ucx_allocate(weir_transport *transport, uint64_t n_bytes, weir_region **out);
weir_status weir_ucx_expose(weir_transport *transport, void *data, uint64_t n_bytes,
                            weir_region **out);
void weir_ucx_release(weir_region *region);
void *weir_ucx_region_data(weir_region *region);
weir_status weir_ucx_seal(weir_region *region, const weir_seal *seal);
weir_status weir_ucx_region_key(weir_region *region, const void **out_key, size_t *out_n_bytes);
void weir_ucx_released_close(ucx_transport *ucx);

/* ucx_peer.c */
weir_status weir_ucx_connect(weir_transport *transport, const void *address, size_t n_bytes,
                             const char *who, unsigned timeout_ms, weir_peer **out);
void weir_ucx_disconnect(weir_peer *peer);
weir_status weir_ucx_import(weir_peer *peer, const void *key, size_t n_bytes,
                            weir_remote_region **out);
void weir_ucx_forget(weir_remote_region *remote);
weir_status weir_ucx_map(weir_remote_region *base, void **out, uint64_t *out_n_bytes);
/* Notes that a peer is gone; the first reason stays. */
void weir_ucx_peer_lost(ucx_peer *peer, weir_status status, const char *why);
/* Looks whether the peer's process is still there, where that can be seen. */
void weir_ucx_peer_check(ucx_peer *peer);
/* Closes the endpoint at once: what it still had to do ends with an error. Takes a second at most.
 */
void weir_ucx_peer_close_endpoint(ucx_peer *peer);

/* ucx_transfer.c */
weir_status weir_ucx_post(weir_peer *peer, const weir_copy *copies, size_t n_copies,
                          weir_transfer **out);
weir_status weir_ucx_test(weir_transfer *transfer, uint64_t *out_done);
void weir_ucx_finish(weir_transfer *transfer);

#endif
