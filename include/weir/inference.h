/* SPDX-License-Identifier: Apache-2.0 */
/* inference.h - an inference server's workers, driven over HTTP: how an orchestrator that knows
 * engines, and nothing of Weir, has them take part in weight broadcasts.
 *
 * One process, the workers of one server: tp * dp replica workers, each with its own parameters. They
 * install a version all or none. HTTP/1.1, JSON bodies; docs/broadcast.md lists calls and answers:
 *
 *   POST /init_broadcaster   where the trainer is, which server this is, how many there are
 *   POST /pause, /resume     the engine's; /resume is refused unless one whole version is held
 *   POST /update_weights     installs a version on all workers, or on none
 *   POST /revert             brings back, on all workers or none, what was held before the last update
 *   GET  /weight_info        what each worker holds; /health, /is_paused
 *
 * Threads    the server has its own: one for HTTP, one that conducts, one per worker. Its functions
 *            may be called from any thread. Hooks are called from these threads, one at a time.
 * Ownership  options are copied. Parameters belong to the server (allocated) or to the caller
 *            (`live`): their memory must then outlive it.
 * Errors     those of weir.h; over HTTP 400 (the request), 401 and 403 (who asks), 404, 405, 409 (the
 *            state does not allow it), 413, 500 (the install failed: `error` says why, the old
 *            version stands or the server is UNUSABLE), 503 (it closes), 504 (a bound has passed),
 *            each with {"error": "..."}.
 */
#ifndef WEIR_INFERENCE_H
#define WEIR_INFERENCE_H

#include "weir/weir.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weir_inference weir_inference;

typedef enum weir_inference_state {
    WEIR_INFERENCE_EMPTY = 0,    /* what the engine came with */
    WEIR_INFERENCE_HOLDING = 1,  /* every worker holds the same version */
    WEIR_INFERENCE_UNUSABLE = 2, /* a worker holds none: stays paused until an update succeeds */
} weir_inference_state;

typedef struct weir_inference_info {
    weir_inference_state state;
    bool joined, paused, updating;
    uint64_t version;          /* HOLDING: of all workers */
    uint32_t n_workers, rank;  /* of its first worker among all workers and the trainer (rank 0) */
    bool kernel_mode;          /* as /init_broadcaster said: quantize_in_weight_transfer */
    uint64_t n_updates, n_failed;
    uint64_t n_bytes;          /* that all workers took of the last version */
    double seconds;            /* of that update */
    char error[512];           /* of what failed last, since an update has succeeded; "" */
} weir_inference_info;

/* An engine's own parameters of one worker, as weir_replica_register() takes them. */
typedef struct weir_inference_live {
    const weir_tensor *tensors;
    const weir_parameter *tags; /* parallel */
    size_t n_tensors;
} weir_inference_live;

typedef struct weir_inference_options {
    size_t size;
    const char *http;          /* "HOST:PORT" of the HTTP side; NULL: "127.0.0.1:8000" */
    const char *model;         /* required: the name that the trainer publishes */
    const char *name;          /* NULL: "server-N", N its server_rank; of all workers' entries. By that
                                  one `weir broadcast` knows whom it waits for */
    const char *family, *layout, *conversion, *config; /* as for a replica: the engine's own */
    uint32_t tp, dp;           /* 0: 1; workers of this server, dp engines of tp workers */
    const char *experts;       /* as for a replica */
    const char *const *devices; /* of each worker, "cuda:0"; NULL: all in host memory */
    const weir_inference_live *live; /* of each worker; NULL: allocated, as config describes them,
                                        the derived ones included */
    weir_install_mode install;
    const char *transport;     /* NULL: whatever the trainer offers */
    const char *transport_directory; /* for "file" */
    const char *listen;        /* host at which the trainer reaches the workers; NULL: 127.0.0.1 */
    unsigned n_threads;        /* of each worker; 0: the cores divided among them */
    unsigned timeout_ms;       /* 0: 60,000; bounds every wait, unless a request says less or more */
    weir_engine_hooks hooks;   /* of the server's engine: around an install, for all workers once */
    weir_security security;    /* of HTTP and of the way to the trainer */
    weir_progress_fn progress; /* of all workers, one at a time */
    void *progress_context;
    /* Said when something has been done, or has failed: "joined", "left", "paused", "updated",
     * "resumed", "reverted", "failed". Before the answer goes out, and while nothing else is done. NULL: nobody
     * listens. */
    void (*said)(void *context, const char *event, const weir_inference_info *info);
    void *said_context;
    uint32_t ep;               /* expert parallelism, 0: 1; divides tp * dp. Above 1 all workers are one
                                  engine, its mesh "tp=T,dp=D,ep=E" */
} weir_inference_options;
#define WEIR_INFERENCE_OPTIONS_INIT WEIR_SIZED(weir_inference_options)

/* Allocates the parameters of all workers, or takes those of the engine, and listens. Gives *out. */
WEIR_API weir_status weir_inference_open(const weir_inference_options *options,
                                         weir_inference **out);
/* Accepts NULL. Ends an update that is going on, within a bound, before its first live byte or not at
 * all. */
WEIR_API void weir_inference_close(weir_inference *server);
WEIR_API const char *weir_inference_address(const weir_inference *server); /* with the real port */

WEIR_API void weir_inference_get_info(const weir_inference *server, weir_inference_info *out);
/* The live parameters of one worker, at addresses that never change. */
WEIR_API const weir_tensor *weir_inference_parameters(const weir_inference *server, uint32_t worker,
                                                      size_t *out_n);

#ifdef __cplusplus
}
#endif
#endif
