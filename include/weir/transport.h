/* SPDX-License-Identifier: Apache-2.0 */
/* transport.h - moving bytes between processes: one table of operations per transport.
 *
 * A transport lets one process expose regions of memory and another read them, one-sided. What
 * must reach the reader (the address, a key per region) are opaque bytes that travel in manifests.
 *
 * Threads    every call on a transport, and on its peers, regions and transfers, comes from one
 *            thread at a time. A transport that its readers need progressed does so by itself
 *            (a thread of its own): the owner of a region may sleep.
 * Ownership  a region borrows memory that was registered, or owns memory that it allocated. Peers,
 *            remote regions and transfers must be closed before their transport.
 * Errors     every wait has a bound. ERR_PEER_LOST for a dead peer (within 2 s where the transport
 *            can notice: WEIR_CAP_LIVENESS), ERR_TIMED_OUT, ERR_CORRUPT for a key or address that
 *            does not decode, ERR_UNSUPPORTED for a peer of another version or kind.
 */
#ifndef WEIR_TRANSPORT_H
#define WEIR_TRANSPORT_H

#include "weir/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WEIR_CAP_READ 1u      /* one-sided reads: the owner's processor takes no part */
#define WEIR_CAP_MATCHED 2u   /* broadcasts: root and members post the same list */
#define WEIR_CAP_LIVENESS 4u  /* a dead peer is noticed while a transfer waits for it */
#define WEIR_CAP_DURABLE 8u   /* what is sealed outlives its owner */
#define WEIR_CAP_MAP 16u      /* regions that were allocated, and exposed GPU memory, can be mapped by
                                 processes of the same host: read and written like memory */

#define WEIR_MEMORY_HOST 1u
#define WEIR_MEMORY_CUDA 2u

typedef struct weir_transport weir_transport; /* each transport's own struct begins with its ops */
typedef struct weir_peer weir_peer;
typedef struct weir_region weir_region;
typedef struct weir_remote_region weir_remote_region;
typedef struct weir_transfer weir_transfer;
typedef struct weir_group weir_group;

typedef struct weir_transport_options {
    size_t size;           /* sizeof(weir_transport_options) */
    const char *directory; /* file: the shared directory; others ignore it */
    const char *tls;       /* ucx: the list of UCX transports, NULL: all ("tcp" forces TCP) */
    const char *name;      /* who we are, for file names and errors: "trainer-0" */
    weir_pool *pool;       /* copies of mapped memory run on it; kept until close. NULL: the thread
                              that calls test copies alone */
    unsigned device;       /* the GPU that allocates, copies and broadcasts; others ignore it */
} weir_transport_options;
#define WEIR_TRANSPORT_OPTIONS_INIT WEIR_SIZED(weir_transport_options)

/* What a region holds when it is sealed, for transports that write it down. */
typedef struct weir_seal {
    size_t size; /* sizeof(weir_seal) */
    const char *model;
    const char *label;        /* unique per version and attempt: "v00000007.1-rank-0" */
    const weir_shard *shards; /* those whose region index equals `region` */
    size_t n_shards;
    uint32_t region;
} weir_seal;
#define WEIR_SEAL_INIT WEIR_SIZED(weir_seal)

/* One read: n_bytes from `offset` of the remote region into `local`. */
typedef struct weir_copy {
    weir_remote_region *remote;
    uint64_t offset;
    void *local;
    uint64_t n_bytes;
} weir_copy;

/* One rank of a broadcast group. */
#define WEIR_GROUP_KEY_BYTES 128
typedef struct weir_group_options {
    size_t size;         /* sizeof(weir_group_options) */
    const void *key;     /* WEIR_GROUP_KEY_BYTES that rank 0 made with group_key */
    uint32_t rank, n_ranks;
    unsigned timeout_ms; /* 0: 60,000; until every rank has joined */
    const char *who;     /* the group, for errors: "round of version 7" (copied) */
} weir_group_options;
#define WEIR_GROUP_OPTIONS_INIT WEIR_SIZED(weir_group_options)

/* Memory that is broadcast: sent by the root, written by the others. On a GPU, or in the host, as
 * `memory` of the transport says. It must stay as it is until the broadcast has ended, and mapped
 * where it is until the group is closed: a transport may keep it registered. */
typedef struct weir_group_part {
    void *data;
    uint64_t n_bytes;
} weir_group_part;

/* Append only; never reorder. A slot that a transport does not have points to a stand-in that
 * returns ERR_UNSUPPORTED. */
typedef struct weir_transport_ops {
    size_t size;      /* sizeof(weir_transport_ops) when the transport was built */
    const char *name; /* "ucx": in logs, flags, manifests and tests */
    uint32_t caps;    /* WEIR_CAP_… */
    uint32_t memory;  /* WEIR_MEMORY_… that it moves without staging */

    /* Gives *out. ERR_UNSUPPORTED when the library or device is not there. */
    weir_status (*open)(const weir_transport_options *options, weir_transport **out);
    void (*close)(weir_transport *transport); /* accepts NULL */

    /* --- the side that has bytes --- */
    /* Allocates zeroed memory that this transport moves best, page-aligned at least. */
    weir_status (*allocate)(weir_transport *transport, uint64_t n_bytes, weir_region **out);
    /* Exposes the caller's memory; the region borrows it until `release`. */
    weir_status (*expose)(weir_transport *transport, void *data, uint64_t n_bytes,
                          weir_region **out);
    void (*release)(weir_region *region); /* accepts NULL */
    void *(*region_data)(weir_region *region);
    /* The bytes of the region are final and may be read; called before its key is asked for. A
     * second seal of a region replaces the first. */
    weir_status (*seal)(weir_region *region, const weir_seal *seal);
    /* Opaque key of a sealed region. Borrowed until the next seal or release. */
    weir_status (*region_key)(weir_region *region, const void **out_key, size_t *out_n_bytes);
    /* Opaque address of this transport. Borrowed until close. */
    weir_status (*address)(weir_transport *transport, const void **out, size_t *out_n_bytes);

    /* --- the side that reads --- */
    /* Connects within timeout_ms. `who` names the peer in errors (copied). */
    weir_status (*connect)(weir_transport *transport, const void *address, size_t n_bytes,
                           const char *who, unsigned timeout_ms, weir_peer **out);
    void (*disconnect)(weir_peer *peer); /* accepts NULL; never blocks for long */
    weir_status (*import)(weir_peer *peer, const void *key, size_t n_bytes,
                          weir_remote_region **out);
    void (*forget)(weir_remote_region *remote); /* accepts NULL */
    /* Starts reading; returns at once. `copies` must stay valid until the transfer is closed. A
     * peer runs one transfer at a time. `local` may be any host memory. */
    weir_status (*post)(weir_peer *peer, const weir_copy *copies, size_t n_copies,
                        weir_transfer **out);
    /* Drives progress. IN_PROGRESS, OK, or why it failed. Blocks for a few milliseconds at most.
     * *out_done (may be NULL): bytes that have arrived. */
    weir_status (*test)(weir_transfer *transfer, uint64_t *out_done);
    /* Ends a transfer, finished or not; afterwards nothing writes to its destinations. */
    void (*finish)(weir_transfer *transfer); /* accepts NULL */

    /* --- WEIR_CAP_MAP --- */
    /* Where this process, or the GPU of this transport, reads and writes the remote region: valid
     * until `forget`, or until the owner dies; *out_n_bytes of it are there. What is written becomes
     * visible to the owner by the order of whatever the two tell each other. */
    weir_status (*map)(weir_remote_region *remote, void **out, uint64_t *out_n_bytes);

    /* --- WEIR_CAP_MATCHED --- */
    /* Makes the key of a new group: WEIR_GROUP_KEY_BYTES bytes that its ranks are told. */
    weir_status (*group_key)(weir_transport *transport, void *out_key);
    /* Begins to join; returns at once. Gives *out whether or not the others ever come. */
    weir_status (*group_open)(weir_transport *transport, const weir_group_options *options,
                              weir_group **out);
    /* IN_PROGRESS while ranks are missing, OK once all are in and nothing has failed, else why:
     * ERR_TIMED_OUT past the bound, ERR_PEER_LOST. Never blocks. Where rank 0 knows which ranks are
     * missing, its line ends with them: "...: 2, 5 and 3 more". */
    weir_status (*group_test)(weir_group *group);
    /* Queues broadcasts of rank `root` in `stream` (a cudaStream_t) as one piece of work; every rank
     * calls it with the same root, the same number of parts and the same n_bytes, in the same
     * order, after group_test said OK. The parts are read before it returns. Their bytes are there
     * when the stream has come past it. */
    weir_status (*group_broadcast)(weir_group *group, uint32_t root, const weir_group_part *parts,
                                   size_t n_parts, void *stream);
    /* Leaves. abort: queued broadcasts are cancelled on this rank, whatever the others do; false
     * only when all queued ones are known to be done. Accepts NULL; bounded. */
    void (*group_close)(weir_group *group, bool abort);
    /* Of transports that broadcast host memory, which has no streams (`stream` is ignored there):
     * *out_n_done is how many calls of group_broadcast have ended on this rank, in their order: the
     * root's bytes may be overwritten, the others' are there. Never blocks. Why the group broke
     * otherwise. */
    weir_status (*group_progress)(weir_group *group, uint64_t *out_n_done);
    /* Begins to leave, as group_close does, and returns at once. Who leaves several groups does so
     * with all of them before it closes the first: they take the time of one then, and on a GPU what
     * is queued in one may hold up the end of another. Only group_close may follow. */
    void (*group_leave)(weir_group *group, bool abort);
} weir_transport_ops;

struct weir_transport {
    const weir_transport_ops *ops;
};
struct weir_peer {
    weir_transport *transport;
    const char *who; /* as given to connect, for errors */
};
struct weir_region {
    weir_transport *transport;
};
struct weir_remote_region {
    weir_peer *peer;
};
struct weir_transfer {
    weir_peer *peer;
    uint64_t n_bytes; /* of all its copies */
};
struct weir_group {
    weir_transport *transport;
};

/* The transports of this build in order of preference; one that cannot run here says why. */
typedef struct weir_transport_info {
    const char *name;
    const weir_transport_ops *ops; /* NULL when not built */
    bool available;
    const char *why_not; /* "" when available */
} weir_transport_info;
WEIR_API size_t weir_transports(weir_transport_info *infos, size_t n_infos);

/* ERR_NOT_FOUND "unknown transport 'NAME'; this build has: ucx, cuda_ipc, file". ERR_UNSUPPORTED
 * with the reason for one that cannot run here. name NULL: the first that is available and moves
 * host memory. */
WEIR_API weir_status weir_transport_get(const char *name, const weir_transport_ops **out);

/* Calls test until the transfer ends, sleeping as little as the transport allows; ERR_TIMED_OUT
 * after timeout_ms without any progress. Does not close the transfer. */
WEIR_API weir_status weir_transfer_wait(weir_transfer *transfer, unsigned timeout_ms);

#ifdef __cplusplus
}
#endif
#endif
