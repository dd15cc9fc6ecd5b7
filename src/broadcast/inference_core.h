/* SPDX-License-Identifier: Apache-2.0 */
/* inference_core.h - what the files of an inference server share.
 *
 *     HTTP thread: inference_http.c        one order at a time; its answer, by ticket
 *          │ order              ▲ answer
 *          ▼                    │
 *     conductor: inference_orders.c        joins, pauses, resumes; inference_update.c: a round
 *          │ task               ▲ result
 *          ▼                    │
 *     workers: inference_worker.c          one thread and one replica each
 *          └── vote.c: all or none         inference_engine.c: the engine's hooks, once for all
 *
 * One lock guards everything here that more than one thread looks at; nobody waits for anything but
 * a condition while he has it.
 */
#ifndef WEIR_BROADCAST_INFERENCE_CORE_H
#define WEIR_BROADCAST_INFERENCE_CORE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/error.h"
#include "broadcast/inference_body.h"
#include "broadcast/inference_memory.h"
#include "broadcast/trainer_look.h"
#include "broadcast/vote.h"
#include "rpc/rpc_security.h"
#include "weir/inference.h"

#define WEIR_INFERENCE_MOST_WORKERS 256u
#define WEIR_INFERENCE_ANSWER_BYTES ((size_t)24 << 10)
#define WEIR_INFERENCE_GRACE_MS \
    1000u /* beyond its bound, until an answer that is not there is given */

/* ---- workers ---------------------------------------------------------------------------------*/

typedef enum weir_inference_task {
    WEIR_TASK_NONE = 0,
    WEIR_TASK_JOIN,
    WEIR_TASK_INSTALL,
    WEIR_TASK_REVERT,
    WEIR_TASK_LEAVE,
    WEIR_TASK_STOP, /* leaves, and ends the thread */
} weir_inference_task;

/* What a worker's parameters held before its last install. */
typedef struct weir_inference_before {
    bool is_there; /* else there is no way back */
    bool has_version;
    uint64_t version;
    char version_uid[WEIR_ID_BYTES];
} weir_inference_before;

typedef struct weir_inference_worker {
    struct weir_inference *server;
    uint32_t index, engine, tp_rank;
    const char *device; /* NULL: host memory */
    pthread_t thread;
    bool has_thread;
    weir_inference_memory memory;
    weir_replica *replica;    /* its thread's; set and taken away with the lock */
    weir_inference_task task; /* NONE: it rests, and the fields below are of the last one */
    uint64_t next_cancel_ns;  /* not before */
    weir_status result;
    weir_error_line error;
    weir_report report;
    bool is_unusable; /* its parameters hold a mixture */
    bool has_version; /* else what the engine came with */
    uint64_t version; /* that its parameters hold */
    char version_uid[WEIR_ID_BYTES];
    weir_inference_before before;
    weir_ballot ballot;     /* its next one, in the round that it is in; its thread's */
    atomic_int stop;        /* weir_stop: where it is in it, for errors */
    atomic_bool has_landed; /* bytes of it, wherever they land */
} weir_inference_worker;

/* ---- orders ----------------------------------------------------------------------------------*/

typedef enum weir_inference_kind {
    WEIR_ORDER_NONE = 0,
    WEIR_ORDER_JOIN,
    WEIR_ORDER_PAUSE,
    WEIR_ORDER_UPDATE,
    WEIR_ORDER_RESUME,
    WEIR_ORDER_REVERT,
} weir_inference_kind;

/* What an orchestrator has asked for, until the conductor has done it. */
typedef struct weir_inference_order {
    weir_inference_kind kind; /* NONE: nothing is asked */
    weir_join_wish join;
    weir_update_wish update;
    unsigned timeout_ms;
    weir_deadline deadline;
    uint64_t ticket; /* 0: nobody waits for the answer any more */
} weir_inference_order;

typedef struct weir_inference_answer {
    unsigned status; /* of HTTP; 0: none yet */
    char body[WEIR_INFERENCE_ANSWER_BYTES];
} weir_inference_answer;

/* ---- the engine ------------------------------------------------------------------------------*/

/* The hooks of one engine that several workers' installs come to. */
typedef struct weir_inference_engine {
    pthread_mutex_t lock; /* held while a hook runs: one at a time */
    weir_engine_hooks hooks;
    bool is_paused;   /* it really is */
    bool is_asked_to; /* by /pause: an install does not resume it */
    /* Of one round. */
    bool has_failed, has_taken, may_run;
    weir_status failed, taken;   /* what `pause`, what `postprocess` said */
    uint32_t n_workers, n_whole; /* workers that hold a whole version again */
} weir_inference_engine;

/* ---- the server ------------------------------------------------------------------------------*/

struct weir_inference {
    weir_inference_options options; /* strings are the arena's */
    weir_arena arena;
    weir_security_kept kept; /* HTTP's, and the look's */
    weir_inference_worker *workers;
    uint32_t n_workers;
    weir_vote *vote;
    weir_inference_engine engine;
    struct weir_inference_http *http;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* an order, a task, a result */
    pthread_mutex_t progress_lock;
    pthread_t conductor;
    bool has_conductor;
    atomic_bool is_stopping;
    weir_inference_order order;
    weir_inference_answer answer; /* of the last order */
    uint64_t answered_ticket;     /* whose that is; 0: it was given, or nobody waits for it */
    weir_inference_info info;
    weir_join_wish joined;          /* where info.joined */
    bool is_of_this_run;            /* the version that is held; else of one that was left */
    bool was_of_this_run;           /* the same of the one before */
    weir_directory_client *looking; /* what the conductor waits in; NULL: nothing */
};

/* ---- inference_orders.c ----------------------------------------------------------------------*/

void *weir_inference_conduct(void *server);
/* What goes on: "version 7 is being installed". With the lock. */
void weir_inference_doing(const weir_inference_order *order, char *text, size_t n_text);
/* The answer is an error, this thread's last; it is what weir_inference_info says too. */
void weir_inference_fail(weir_inference *server, unsigned http_status);
/* The order's bound has passed, or the server closes: waits for nothing more. */
bool weir_inference_is_over(const weir_inference *server);
/* Where the trainer is said to be. Gives *out, for weir_inference_look_end(). */
weir_status weir_inference_look_begin(weir_inference *server, const weir_join_wish *wish,
                                      unsigned timeout_ms, weir_directory_client **out);
void weir_inference_look_end(weir_inference *server, weir_directory_client *client);
/* The mesh of an engine of this server, "tp=2", and a worker's number in it. */
#define WEIR_INFERENCE_MESH_BYTES 48
void weir_inference_mesh(const weir_inference *server, char out[WEIR_INFERENCE_MESH_BYTES]);
uint32_t weir_inference_mesh_worker(const weir_inference_worker *worker);
/* "HOST:PORT" of the trainer's directory. */
#define WEIR_INFERENCE_ADDRESS_BYTES (WEIR_BODY_HOST + 16)
void weir_inference_address_of(const weir_join_wish *wish, char out[WEIR_INFERENCE_ADDRESS_BYTES]);
/* A task for every worker, and its end, however long that takes; `late` is called again and again
 * when the order's bound has passed, `failed` when a worker has failed. Both may be NULL. */
void weir_inference_dispatch(weir_inference *server, weir_inference_task task,
                             void (*late)(weir_inference *server),
                             void (*failed)(weir_inference *server));

/* ---- inference_update.c ----------------------------------------------------------------------*/

void weir_inference_update(weir_inference *server);
void weir_inference_revert(weir_inference *server);
/* A version is on its way in or out: what is held is about to change. */
bool weir_inference_is_changing(const weir_inference_order *order);

/* ---- inference_worker.c ----------------------------------------------------------------------*/

void *weir_inference_work(void *worker);
/* Ends its wait, if it may still end without a change; with the lock. */
void weir_inference_worker_cancel(weir_inference_worker *worker);

/* ---- inference_engine.c ----------------------------------------------------------------------*/

void weir_inference_engine_open(weir_inference_engine *engine, const weir_engine_hooks *hooks,
                                uint32_t n_workers);
void weir_inference_engine_close(weir_inference_engine *engine);
/* Before workers install; may_run: what they hold is whole. */
void weir_inference_engine_begin(weir_inference_engine *engine, bool may_run);
/* Of /pause and /resume; again, they do nothing. */
weir_status weir_inference_engine_ask_pause(weir_inference_engine *engine);
void weir_inference_engine_ask_resume(weir_inference_engine *engine);
/* Of the workers' installs. */
weir_status weir_inference_engine_pause(weir_inference_engine *engine);
weir_status weir_inference_engine_take(weir_inference_engine *engine, uint64_t version);
void weir_inference_engine_is_whole(weir_inference_engine *engine); /* one of them is again */
/* After them: runs again unless it was asked to pause or `may_run` is false. */
void weir_inference_engine_end(weir_inference_engine *engine, bool may_run);
bool weir_inference_engine_is_asked(weir_inference_engine *engine); /* to pause, by /pause */
bool weir_inference_engine_is_paused(weir_inference_engine *engine);

/* ---- inference_http.c ------------------------------------------------------------------------*/

weir_status weir_inference_http_open(weir_inference *server, struct weir_inference_http **out);
void weir_inference_http_close(struct weir_inference_http *http); /* accepts NULL */
const char *weir_inference_http_address(const struct weir_inference_http *http);
/* From any thread: the order has an answer. */
void weir_inference_http_wake(struct weir_inference_http *http);

/* ---- inference_answer.c ----------------------------------------------------------------------*/

void weir_inference_say_joined(const weir_inference *server, weir_inference_answer *out);
void weir_inference_say_paused(const weir_inference *server, weir_inference_answer *out);
void weir_inference_say_updated(const weir_inference *server, weir_inference_answer *out);
void weir_inference_say_resumed(const weir_inference *server, weir_inference_answer *out);
void weir_inference_say_reverted(const weir_inference *server, weir_inference_answer *out);
void weir_inference_say_weights(const weir_inference *server, weir_inference_answer *out);
void weir_inference_say_health(const weir_inference *server, weir_inference_answer *out);
void weir_inference_say_is_paused(const weir_inference *server, weir_inference_answer *out);
/* With what is held where there is a server. */
void weir_inference_say_error(const weir_inference *server, unsigned http_status, const char *line,
                              weir_inference_answer *out);

#endif
