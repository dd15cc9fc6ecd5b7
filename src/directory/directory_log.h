/* SPDX-License-Identifier: Apache-2.0 */
/* directory_log.h - in which order changes come to the store: the one thing that directories of one
 * fleet must agree on.
 *
 * Every change is a record: the name of the method that asks for it and its request as it came. A
 * log gives records an order and a time; each directory that reads the log does the same to its own
 * store, and answers those callers who asked it. Rules are nowhere but in the store.
 *
 *     handler: append(record, ticket) ──► order ──► apply(record, time, ticket) on every directory
 *
 * The memory log has one reader and applies at once. The Redis log (redis_log.c) is a stream: Redis
 * gives the order and the time, snapshots make it short, and what Redis acknowledged is not lost.
 *
 * Threads    all of it in the rpc server's thread; `apply` is called there, from append, from the
 *            tick or from a watched file descriptor.
 * Waits      nothing blocks. A record whose fate is not known within timeout_ms is reported so.
 */
#ifndef WEIR_DIRECTORY_DIRECTORY_LOG_H
#define WEIR_DIRECTORY_DIRECTORY_LOG_H

#include "directory/store.h"
#include "rpc/rpc.h"

typedef struct weir_log_record {
    const char *method; /* "RefitService.CreateWeightVersion", or "" for a sweep */
    const unsigned char *bytes;
    size_t n_bytes;
    uint64_t salt;        /* random, for ids */
    const char *trace_id; /* of the call that asked for it; NULL or "": it said none */
} weir_log_record;

/* What a log needs of its directory. */
typedef struct weir_log_reader {
    /* Do it. ticket: of the caller when this directory appended it, else 0. */
    void (*apply)(void *context, const weir_log_record *record, uint64_t now_ms, uint64_t ticket);
    /* What was appended for `ticket` did not come into the log, or nobody knows: `text` says why.
     * Asking again is safe: requests are idempotent. */
    void (*lost)(void *context, uint64_t ticket, const char *text);
    /* The store as bytes, to begin with (NULL: an empty one) at this time; and as it is now. It is
     * loaded again where what followed is not in the log any more. */
    weir_status (*load)(void *context, const unsigned char *bytes, size_t n);
    weir_status (*save)(void *context, unsigned char **out, size_t *out_n);
    void *context;
} weir_log_reader;

typedef struct weir_directory_log weir_directory_log;
typedef struct weir_log_ops {
    weir_status (*append)(weir_directory_log *log, const weir_log_record *record, uint64_t ticket);
    /* Calls `then(context, ticket, now_ms)` once all that was in the log when this was called has
     * been applied: from within when there is nothing to wait for. ERR_PEER_LOST when the log
     * cannot be reached; the reader's `lost` is called instead of `then` when it is so after
     * timeout_ms. */
    weir_status (*catch_up)(weir_directory_log *log, uint64_t ticket,
                            void (*then)(void *context, uint64_t ticket, uint64_t now_ms),
                            void *context);
    uint64_t (*now_ms)(const weir_directory_log *log); /* by the log's clock */
    /* Looks after connections and time-outs; returns when to call again, in milliseconds. */
    unsigned (*tick)(weir_directory_log *log);
    /* NULL: it works; else why it does not, "redis 10.0.0.1:6379: connection refused". */
    const char *(*trouble)(const weir_directory_log *log);
    void (*close)(weir_directory_log *log); /* after the server that it is attached to */
} weir_log_ops;

/* The first member of every log. */
struct weir_directory_log {
    const weir_log_ops *ops;
};

weir_status weir_memory_log_open(const weir_log_reader *reader, weir_directory_log **out);

typedef struct weir_redis_log_options {
    const char *url;         /* "redis://[USER:PASSWORD@]HOST:PORT[/DB]" */
    const char *name;        /* of the fleet's log, NULL: "default"; keys begin with "weir:NAME:" */
    unsigned timeout_ms;     /* 0: 5,000; of one append */
    unsigned snapshot_every; /* 0: 4,096 records */
} weir_redis_log_options;

/* Loads what is there (waits at most timeout_ms for Redis), then follows it. `server` may be NULL
 * until weir_redis_log_attach(), which is called before its first event. Refuses a Redis that keeps
 * nothing on disk (appendonly no) unless WEIR_REDIS_VOLATILE=1. */
weir_status weir_redis_log_open(const weir_redis_log_options *options,
                                const weir_log_reader *reader, weir_directory_log **out);
/* From now on its socket is looked after by this server's thread. */
weir_status weir_redis_log_attach(weir_directory_log *log, weir_rpc_server *server);

#endif
