/* SPDX-License-Identifier: Apache-2.0 */
/* worker.h - what a trainer rank and a replica worker have in common: a name, a directory that
 * knows them, threads, a bound on every wait, and transports opened when first needed.
 */
#ifndef WEIR_REFIT_WORKER_H
#define WEIR_REFIT_WORKER_H

#include <stdatomic.h>

#include "base/clock.h"
#include "refit/keeper.h"
#include "refit/stopwatch.h"
#include "rpc/rpc_security.h"
#include "weir/weir.h"

#define WEIR_DEFAULT_TIMEOUT_MS 60000u
#define WEIR_DEFAULT_LEASE_MS 90000u
#define WEIR_MAX_LINKS 4

/* A transport in use. */
typedef struct weir_link {
    const weir_transport_ops *ops;
    weir_transport *transport;
} weir_link;

typedef struct weir_worker {
    char id[WEIR_NAME_BYTES]; /* "NAME-0a1b2c3d": a restart is another worker */
    char model[WEIR_NAME_BYTES];
    char run[WEIR_NAME_BYTES];
    weir_worker_role role;
    unsigned timeout_ms, lease_s;
    char *transport_directory; /* NULL when not given */
    unsigned device;           /* the GPU that transports work with, set before the first of them */
    weir_pool *pool;
    weir_directory_client *client;
    weir_keeper *keeper;
    bool is_registered;
    weir_deadline leave_by;         /* 0: it does not leave */
    weir_sidecar_registry registry; /* that its entry carries */
    uint64_t registry_of;           /* the layout that it was written of; 0: none */
    weir_link links[WEIR_MAX_LINKS];
    size_t n_links;
    weir_progress_fn progress;
    void *progress_context;
    atomic_bool cancelled;       /* set from outside, taken by the wait that it ends */
    weir_counters counters;      /* regions, plans, connections so far */
    weir_security_kept security; /* what was given, the environment where it was not */
    char host[WEIR_ID_BYTES];
    uint32_t rank;                /* of a trainer; of a replica, the worker's number within it */
    weir_times times;             /* of the refit under way, or the last one */
    weir_stopwatch *watch;        /* NULL between refits */
    char trace_id[WEIR_ID_BYTES]; /* of that refit; "" while it is not known */
    weir_log_scope about;
} weir_worker;

typedef struct weir_worker_options {
    const char *directory, *model, *run;
    const char *name; /* "trainer-0": the id's readable part */
    uint32_t rank;
    weir_worker_role role;
    bool looks_on; /* the directory hears of no worker: nobody waits for it */
    unsigned timeout_ms, lease_ms, n_threads;
    const char *transport_directory;
    weir_progress_fn progress;
    void *progress_context;
    const weir_security *security;
} weir_worker_options;

/* Whether that is the id of a worker of this name, or the name is the id itself. */
bool weir_worker_is_named(const char *id, const char *name);

/* Registers with the directory. `worker` is the caller's, zeroed. */
weir_status weir_worker_open(weir_worker *worker, const weir_worker_options *options);
/* What a close may take, or the handle's time-out. */
#define WEIR_CLOSE_WAIT_MS 10000u
/* It leaves: all that it asks of a directory from here on is over by one deadline,
 * worker->leave_by.
 */
void weir_worker_hurry(weir_worker *worker);
/* How long one more call may take of that. */
unsigned weir_worker_hurry_ms(const weir_worker *worker);
/* Stops the heartbeat, marks the worker's entry STALE, so that nobody counts on it, and lets its
 * registration end. source_id "" when it has no entry. Hurries. */
void weir_worker_leave(weir_worker *worker, const char *source_id, uint32_t rank);
/* Accepts a half-opened one. Peers and regions must be gone. */
void weir_worker_close(weir_worker *worker);

/* The transport of that name (NULL: the first available), opened at the first call. */
weir_status weir_worker_link(weir_worker *worker, const char *name, weir_link *out);

/* Sleeps between two looks at something that others must do, a little longer each time. The wait's
 * bound is the caller's. ERR_CANCELLED when the handle's cancel function was called. */
typedef struct weir_patience {
    unsigned wait_ms; /* 0 at first */
} weir_patience;
weir_status weir_worker_pause(weir_worker *worker, weir_patience *patience);
/* ERR_CANCELLED, once, when the handle's cancel function was called. */
weir_status weir_worker_check_cancelled(weir_worker *worker);

/* Ends the wait that is under way, or the next one. From any thread or signal handler. */
void weir_worker_cancel(weir_worker *worker);
/* Forgets a cancel that no wait has heard. Between calls. */
void weir_worker_uncancel(weir_worker *worker);

/* Calls to a directory that goes away and comes back, knowing nothing of us: all of them can be
 * made again. */
typedef struct weir_retry {
    weir_deadline deadline;
    unsigned wait_ms; /* 0 at first */
    bool registered;  /* anew, since the last answer */
} weir_retry;
/* A call to the directory has failed. OK: make it again; otherwise what to return. Sleeps a little
 * when the directory is not there, registers the worker anew when it refused. */
weir_status weir_worker_retry(weir_worker *worker, weir_retry *retry, weir_status failed);
/* Sleeps a little, longer each time, but not beyond the deadline. ERR_CANCELLED. */
weir_status weir_worker_rest(weir_worker *worker, weir_retry *retry);

/* A directory that has no state for it: the note of a trainer rank's entry begins so, and the
 * reason follows. */
#define WEIR_ABORTED_NOTE "aborted: "

/* An entry of this worker that is READY to be read: everything but rank, note and signature. */
weir_source_record weir_worker_entry(const weir_worker *worker, uint64_t version,
                                     const char *version_uid, const char *endpoint);

/* Tells the handle's progress function, and the directory of a refit that takes long. */
void weir_worker_progress(const weir_worker *worker, weir_stop stop, uint64_t version,
                          uint64_t done_bytes, uint64_t total_bytes);
/* The directory alone. */
void weir_worker_note(const weir_worker *worker, const weir_keeper_step *step);
/* Before it: the one that has most to give yet, or to take. */
void weir_worker_waits_for(const weir_worker *worker, const char *whom);

#endif
