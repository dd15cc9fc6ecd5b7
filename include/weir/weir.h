/* SPDX-License-Identifier: Apache-2.0 */
/* weir.h - the front door: a trainer publishes versions, replicas install them.
 *
 * Threads    a handle belongs to one thread at a time; different handles are independent. A
 *            handle's own threads (progress, keep-alive) end when it is closed.
 * Ownership  options and their strings are copied on open. Registered memory is kept until close:
 *            it must stay where it is. Reports are plain values.
 * Errors     weir_status, grouped by what to throw away; weir_last_error() has the one line.
 * Waits      every call ends within its handle's timeout_ms (per stop), whoever is missing.
 */
#ifndef WEIR_WEIR_H
#define WEIR_WEIR_H

#include "weir/checkpoint.h"
#include "weir/convert.h"
#include "weir/family.h"
#include "weir/mesh.h"
#include "weir/plan.h"
#include "weir/status.h"
#include "weir/tensor.h"
#include "weir/transport.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WEIR_VERSION "0.1.0"
WEIR_API const char *weir_version(void);

/* ---- logs and settings -----------------------------------------------------------------------*/

typedef enum weir_log_level {
    WEIR_LOG_ERROR = 1,
    WEIR_LOG_WARN = 2,
    WEIR_LOG_INFO = 3,
    WEIR_LOG_DEBUG = 4
} weir_log_level;
/* One line, no newline. Called from any thread of Weir's. */
typedef void (*weir_log_fn)(void *context, weir_log_level level, const char *line);
/* Sends log lines up to `level` to fn; NULL: nowhere, the default. The library never prints. */
WEIR_API void weir_log_set(weir_log_fn fn, void *context, weir_log_level level);

/* What a line is about: "worker", "rank", "model", "run", "version", "trace_id", "stop", "peer", and
 * of the one line about a whole refit "status", "bytes", "seconds", "waited_seconds", "gb_per_s".
 * Those that are not known are left out. */
typedef struct weir_log_field {
    const char *name;
    const char *text;
    bool is_number;            /* decimal digits: JSON takes it as it is */
} weir_log_field;
/* Valid during the call. */
typedef void (*weir_log_record_fn)(void *context, weir_log_level level, const char *line,
                                   const weir_log_field *fields, size_t n_fields);
/* The same with fields; of this and weir_log_set() the last call counts. */
WEIR_API void weir_log_set_structured(weir_log_record_fn fn, void *context, weir_log_level level);

/* One row of the table of environment variables that Weir reads: all there are. */
typedef struct weir_env_info {
    const char *name;          /* "WEIR_CPU_DISABLE" */
    const char *type;          /* "list", "integer", "string" */
    const char *default_value;
    const char *help;
    const char *value;         /* what is set; NULL when it is not */
} weir_env_info;
WEIR_API size_t weir_env_table(weir_env_info *infos, size_t n_infos);

/* ---- one refit, as its stops -----------------------------------------------------------------*/

#define WEIR_STOP_LIST(X)                                                                         \
    X(SOURCE, 0, "source")                                                                        \
    X(STAGE, 1, "stage")                                                                          \
    X(SLOT, 2, "slot")                                                                            \
    X(PUBLISH, 3, "publish")                                                                      \
    X(DISCOVER, 4, "discover")                                                                    \
    X(TRANSFER, 5, "transfer")                                                                    \
    X(INSTALL, 6, "install")                                                                      \
    X(POSTPROCESS, 7, "postprocess")                                                              \
    X(ACK, 8, "ack")
typedef enum weir_stop {
#define WEIR_STOP_ENUM(name, number, text) WEIR_STOP_##name = (number),
    WEIR_STOP_LIST(WEIR_STOP_ENUM)
#undef WEIR_STOP_ENUM
    WEIR_N_STOPS
} weir_stop;
WEIR_API const char *weir_stop_name(weir_stop stop);

/* What Weir itself did on the way. A second refit of one layout leaves all of them at zero. */
typedef struct weir_counters {
    uint64_t allocations;   /* heap and slot memory taken by Weir's own code */
    uint64_t registrations; /* regions allocated or exposed through the transport */
    uint64_t plans;         /* mappings and plans built */
    uint64_t connections;   /* transport peers connected */
} weir_counters;

typedef struct weir_report {
    uint64_t version;
    uint64_t n_tensors;             /* published by this rank, or installed by this replica */
    uint64_t n_bytes;
    double waited_seconds;          /* until the version was READY, counted in no stop */
    double seconds[WEIR_N_STOPS];   /* 0 for the stops of the other side */
    double total_seconds;           /* of the stops */
    weir_counters counters;
    char read_from[256];            /* the replica worker that the bytes came from; "": the trainers */
} weir_report;

/* Called at the entry of every stop (done_bytes 0) and while one takes long. Must be quick and must
 * not call Weir. */
typedef void (*weir_progress_fn)(void *context, weir_stop stop, uint64_t version,
                                 uint64_t done_bytes, uint64_t total_bytes);

/* ---- who may talk to whom --------------------------------------------------------------------*/

/* For every connection of a handle: calls, answers, and the words beside a push (bytes of weights
 * travel as their transport does it). What is NULL is taken from the environment (WEIR_TLS_CERTIFICATE,
 * WEIR_TLS_KEY, WEIR_TLS_CA, WEIR_TOKEN_FILE; WEIR_INSECURE=1), so that a whole fleet can be told in
 * one place. */
typedef struct weir_security {
    const char *certificate, *key; /* PEM files: it listens with TLS alone, and shows them where it
                                      calls (mutual TLS) */
    const char *ca;                /* PEM file, "system": it calls with TLS alone, and believes only
                                      whom this signed; where it listens, callers must show such a
                                      certificate */
    const char *token;             /* bearer token: sent with every call, asked of every caller */
    bool insecure;                 /* listens beyond loopback without TLS or without a token; else
                                      that is refused */
    const char *token_file;        /* instead of `token`: read at open, and again when it is replaced, as
                                      WEIR_TOKEN_FILE is; the token before stays good for two minutes */
} weir_security;

/* ---- directory -------------------------------------------------------------------------------*/

/* Who has which version: a gRPC server, wire-compatible with ModelExpress, in a thread of its own. */
typedef struct weir_directory weir_directory;
typedef struct weir_directory_options {
    size_t size;
    const char *listen;          /* "HOST:PORT"; NULL: "127.0.0.1:0", any free port */
    unsigned stale_after_s;      /* 0: 90; a source without an update turns STALE */
    unsigned delete_after_s;     /* 0: 3600; a STALE source is deleted */
    unsigned sweep_every_s;      /* 0: 30 */
    weir_security security;
    const char *store;           /* NULL or "memory"; "redis://[USER:PASSWORD@]HOST:PORT[/DB]": records
                                    outlive the directory, and several directories have one store */
    const char *name;            /* of the fleet within that Redis; NULL: "default" */
    const char *http;            /* "HOST:PORT" of /metrics, /healthz, /readyz and the page; NULL:
                                    none. The same certificate and token */
    unsigned max_connections;    /* of gRPC; 0: 12,288, or half of the descriptors that the process may
                                    have. More than these leave room for are bounded by them */
    unsigned max_connections_per_host; /* from one address that is not loopback; 0: half of all */
    const char *trainer_model; /* of a trainer that broadcasts and has this directory for itself: who
                                  asks for it hears so before there is a version. NULL: of none */
    const char *trainer_run;   /* with it; NULL: "default" */
    uint32_t n_inference_workers; /* with it: its versions go to ranks 1 to this; 0: not said */
} weir_directory_options;
#define WEIR_DIRECTORY_OPTIONS_INIT WEIR_SIZED(weir_directory_options)
WEIR_API weir_status weir_directory_open(const weir_directory_options *options,
                                         weir_directory **out);
WEIR_API void weir_directory_close(weir_directory *directory); /* accepts NULL */
/* "HOST:PORT" that it listens on. */
WEIR_API const char *weir_directory_address(const weir_directory *directory);
/* "HOST:PORT" of its page; "" when it has none. */
WEIR_API const char *weir_directory_http_address(const weir_directory *directory);

/* ---- trainer rank ----------------------------------------------------------------------------*/

typedef struct weir_trainer weir_trainer;

/* How a version's bytes reach the replicas. */
typedef enum weir_delivery {
    WEIR_DELIVERY_DEFAULT = 0, /* PUSH for tensors on a GPU, PULL for those in host memory */
    WEIR_DELIVERY_PULL = 1,    /* published in slots that replicas read whenever they like */
    WEIR_DELIVERY_PUSH = 2,    /* weir_trainer_wait() converts and sends, straight into the replicas'
                                  memory where that can be mapped, else by broadcasts: no slot, but
                                  the tensors must not change until it returns. Of a rank of a mesh,
                                  or for engines of several workers: by broadcasts alone (nccl, ucx),
                                  to all workers of whom a part is, group by group of a window */
} weir_delivery;

/* What travels. */
typedef enum weir_wire {
    WEIR_WIRE_KERNEL = 0,     /* the bytes that the engine's kernels read: the trainer converts */
    WEIR_WIRE_CHECKPOINT = 1, /* bf16 under Hugging Face's names: each replica worker fuses, cuts and
                                 converts, layer by layer. Both sides say the same, or it is refused.
                                 Both need a config. Of a trainer layout, conversion and replica_mesh
                                 are ignored, and each worker of an engine counts as a replica */
} weir_wire;

/* As a trainer's mesh: who holds what is what the ranks register. */
#define WEIR_MESH_EXPLICIT "explicit"

/* Zero means the default in every field, for ever. */
typedef struct weir_trainer_options {
    size_t size;
    const char *directory;     /* "HOST:PORT", or those of several directories over one store,
                                  "HOST:PORT,HOST:PORT": whichever answers is asked; NULL: an
                                  embedded directory in this process */
    const char *model;         /* required: the name replicas ask for */
    const char *run;           /* NULL: "default"; tells apart training runs of one model */
    uint32_t rank, n_ranks;    /* n_ranks 0: 1 */
    const char *family;        /* NULL: from the config's model_type */
    const char *layout;        /* NULL: the family's default */
    const char *conversion;    /* NULL or "auto": from the config's quantization_config */
    const char *config;        /* the engine's config.json: a path or, when its first character that is
                                  no white space is '{', the text itself; NULL: none, nothing is
                                  checked against it */
    const char *transport;     /* NULL: the first available */
    const char *transport_directory; /* for "file" */
    const char *listen;        /* host for the manifest service; NULL: 127.0.0.1, any port */
    unsigned n_slots;          /* 0: 2, so that one fills while one is read */
    unsigned n_threads;        /* 0: one per core */
    unsigned timeout_ms;       /* 0: 60,000; bounds every wait of this handle */
    unsigned lease_ms;         /* 0: 90,000; this worker's registration, renewed every third */
    bool keep_masters;         /* do not round F32 masters to bf16 before quantising */
    const char *const *ignore; /* globs of source names to leave out */
    size_t n_ignore;
    weir_progress_fn progress;
    void *progress_context;
    weir_delivery delivery;
    uint64_t window_bytes;     /* PUSH by broadcast: device memory that converted bytes pass through;
                                  0: 192 MiB. Into mapped memory they are stored directly.
                                  PUSH with `mesh` or `replica_mesh`: through n_slots buffers of
                                  window_bytes / n_slots; 0: 192 MiB, on a GPU 512 MiB.
                                  PULL with `mesh` or `replica_mesh` ("" for one rank, for engines of
                                  one worker): not 0, no version is kept whole. Groups of shards pass
                                  through n_slots buffers of window_bytes / n_slots while
                                  weir_trainer_wait() waits; 0: whole versions in n_slots slots */
    bool scan_first;           /* PUSH, or through a window: publish reads every weight once and
                                  refuses what is not finite; otherwise that is found while sending,
                                  when a direct replica has changed already */
    void *stream;              /* tensors on a GPU: the cudaStream_t whose queued work writes them;
                                  they are read behind it. NULL: the default stream */
    const char *mesh;          /* how the ranks shard the model, "fsdp=8,ep=4": mesh.h. Needs
                                  weir_trainer_register_shards(); n_ranks is then the mesh's. Sharded
                                  versions are delivered by PULL unless PUSH is asked for, or a
                                  transport that can only broadcast. WEIR_MESH_EXPLICIT: no mesh says
                                  it, n_ranks ranks tell each other what each has registered */
    const char *expert_owners; /* JSON: the expert rank of each expert; NULL: contiguous */
    const char *replica_mesh;  /* the engines that versions are made for, "tp=4,ep=8"; NULL: of one
                                  worker. With it, or with `mesh`, config is required */
    const char *replica_experts; /* JSON: the experts of each of their expert ranks; NULL: contiguous */
    weir_security security;
    const char *traceparent;   /* W3C: "00-TRACE-SPAN-FLAGS"; the trace that its versions belong to.
                                  NULL: each version is a trace of its own */
    weir_wire wire;
} weir_trainer_options;
#define WEIR_TRAINER_OPTIONS_INIT WEIR_SIZED(weir_trainer_options)

WEIR_API weir_status weir_trainer_open(const weir_trainer_options *options, weir_trainer **out);
/* Accepts NULL. Takes what it has published back, so that nobody begins to read it, and waits, at most
 * ten seconds or the handle's timeout_ms, for those who do: then its memory goes. weir_trainer_cancel()
 * meanwhile ends that wait. */
WEIR_API void weir_trainer_close(weir_trainer *trainer);
/* Where its directory is: what replicas need to be told when it is the embedded one. */
WEIR_API const char *weir_trainer_directory(const weir_trainer *trainer);

/* Keeps the views and their names until the next registration: all weights of the model,
 * contiguous, all in host memory or all on one GPU. Called again with the same names, dtypes and shapes in the same order
 * it only takes the new pointers; another layout is planned afresh, once nobody reads the old one. */
WEIR_API weir_status weir_trainer_register(weir_trainer *trainer, const weir_tensor *tensors,
                                           size_t n_tensors);

/* A part of a tensor: `local` is contiguous memory of the box's shape. */
typedef struct weir_tensor_shard {
    weir_tensor local;
    weir_shape global_shape;
    weir_box box;
} weir_tensor_shard;

/* The same for a rank of a mesh: everything that the mesh says this rank holds, in boxes as the
 * trainer has them (of one tensor one or several; rows that another rank holds too may be among
 * them). What the whole model has comes from the config. ERR_LAYOUT names the first rows that are
 * missing, or whose tensor the model does not have. Collective: where blocks of scales lie on
 * several ranks, publishing waits for the ranks that hold the other rows, at most timeout_ms.
 * WEIR_MESH_EXPLICIT: any boxes, none (n_shards 0) too. Waits, at most timeout_ms, until all ranks
 * have registered, and plans from what they hold: every element somewhere, boxes of two ranks the
 * same (one of them sends it) or disjoint, shapes and dtypes agreed on; or ERR_LAYOUT on every rank,
 * naming the tensor, the ranks and the ranges. With the same layout again it takes the pointers and
 * asks nobody; another layout is registered by all ranks or by none: one that does it alone waits
 * in vain. A rank that is started anew registers what it held before, and the others need not. */
WEIR_API weir_status weir_trainer_register_shards(weir_trainer *trainer,
                                                  const weir_tensor_shard *shards, size_t n_shards);

/* Stops 1-4: converts what this rank owns, seals and publishes it as `version`, which must be
 * greater than the last. Blocks until this rank's shard is in (not until the version is READY).
 * When no slot is free, waits for the oldest version's leases to end. On failure the version is not
 * published and the rank is good for the next call. report may be NULL. */
WEIR_API weir_status weir_trainer_publish(weir_trainer *trainer, uint64_t version,
                                          weir_report *report);

/* Blocks until `n_replicas` replicas have acknowledged `version`, at most timeout_ms (0: the
 * handle's). ERR_TIMED_OUT says who has.
 * PUSH: waits until n_replicas replicas are ready for it, or hold it from an earlier call, then
 * sends it at once to all that are ready. When
 * one of them fails the others are told, nobody holds a part of it, and the error names it.
 * Through a window: makes the version's bytes group by group, at the pace of the slowest reader, for
 * n_replicas engines of all their workers, and for others that come before the first group is gone.
 * The tensors must not change until it returns. A group waits until every reader of the one whose
 * buffer it takes has verified that; ERR_TIMED_OUT (timeout_ms in which no reader has gone on; one
 * that comes, or comes again, renews nothing) names the worker, the group and the version,
 * ERR_PEER_LOST one that gave up and why. All readers are then told, and the same call again begins
 * afresh. Once all workers have acknowledged it the version is gone: who comes later takes the next.
 * PUSH of a rank of a mesh is such a window too, with these differences: nothing is made before
 * n_replicas engines of all their workers have come, it is broadcast to those who are there then and
 * to nobody else, a group waits for nothing but the end of the broadcast that its buffer held, and
 * whoever of them gives up ends the wait for all. ERR_TIMED_OUT tells besides who has not joined
 * the others, and which group's broadcast has not ended.
 */
WEIR_API weir_status weir_trainer_wait(weir_trainer *trainer, uint64_t version,
                                       unsigned n_replicas, unsigned timeout_ms);

/* PUSH, or through a window: how many replicas (engines, of all their workers) are ready for
 * `version`, or hold it from an earlier call: so many weir_trainer_wait() would send to at once. Does
 * not wait. ERR_NOT_FOUND when it cannot be pushed. */
WEIR_API weir_status weir_trainer_ready(weir_trainer *trainer, uint64_t version, unsigned *out_n);

/* Gives up a version that this rank has published. Nobody is given it from then on, and whoever waits
 * for it, or asks for it, hears so at once: ERR_ABORTED, "… was aborted: trainer rank 0 has withdrawn
 * it: WHY". The first rank that withdraws a version ends it for all; each does it of its own.
 * Readers that are in the midst of a slot may end: waits for them, at most timeout_ms (0: the
 * handle's), and the slot is free. What is pushed, or passes through a window, is off for its readers.
 * `why` may be NULL; it is told as one line of at most 200 bytes. OK as well of a version that is
 * withdrawn, or gone, already. ERR_NOT_FOUND: it is greater than the last that this rank has
 * published. ERR_TIMED_OUT names who reads it still, ERR_PEER_LOST the directory that does not
 * answer: this rank offers the version no more, and the same call goes on. */
WEIR_API weir_status weir_trainer_withdraw(weir_trainer *trainer, uint64_t version,
                                           const char *why, unsigned timeout_ms);

/* Makes a call on the trainer that is waiting, or the next one that would, end with ERR_CANCELLED.
 * From any thread or signal handler. */
WEIR_API void weir_trainer_cancel(weir_trainer *trainer);
/* Forgets a cancel that came too late for the call that it was for, so that the next one does not
 * end by it. Between calls. */
WEIR_API void weir_trainer_uncancel(weir_trainer *trainer);

/* ---- replica worker --------------------------------------------------------------------------*/

typedef struct weir_replica weir_replica;
#define WEIR_LATEST UINT64_MAX

typedef enum weir_install_mode {
    WEIR_INSTALL_STAGED = 0, /* land beside, verify, then swap in with an undo log */
    WEIR_INSTALL_DIRECT = 1, /* land in the live parameters; a failure leaves UNUSABLE */
} weir_install_mode;

typedef enum weir_replica_state {
    WEIR_REPLICA_EMPTY = 0,    /* nothing installed yet */
    WEIR_REPLICA_HOLDING = 1,  /* holds exactly one version */
    WEIR_REPLICA_UNUSABLE = 2, /* a direct install failed: must not serve until one succeeds */
} weir_replica_state;

/* What the engine does around an install. Each may be NULL. A status other than OK from `pause` or
 * `postprocess` fails the install (postprocess: after the old version is back). */
typedef struct weir_engine_hooks {
    weir_status (*pause)(void *context);       /* before the first live byte changes */
    weir_status (*postprocess)(void *context, uint64_t version); /* after all parameters changed */
    void (*resume)(void *context);             /* only while one whole version is held, or what
                                                  the engine came with is untouched or back */
    void *context;
} weir_engine_hooks;

typedef struct weir_replica_options {
    size_t size;
    const char *directory;     /* required: "HOST:PORT", or several as a trainer's */
    const char *model;         /* required */
    const char *run;           /* NULL: "default" */
    const char *name;          /* NULL: made of host name and process id. Its worker id is NAME and
                                  eight random digits: one that is started again supersedes the one
                                  before; while that one is there, ERR_EXISTS. Of the workers of one
                                  run with one `worker` number each has another */
    const char *family, *layout, *conversion, *config; /* as for the trainer; config required for
                                                          weir_replica_allocate(), _bind() */
    const char *transport;     /* NULL: whatever the source offers */
    const char *transport_directory;
    const char *listen;        /* as for the trainer */
    weir_install_mode install;
    unsigned n_threads, timeout_ms, lease_ms; /* as for the trainer */
    weir_engine_hooks hooks;
    weir_progress_fn progress;
    void *progress_context;
    const char *device;        /* where weir_replica_allocate() allocates: NULL or "host", "cuda:1" */
    uint64_t window_bytes;     /* staged, of a version that is pushed: memory beside the parameters
                                  that bytes pass through before they are written; 0: 128 MiB.
                                  What ranks of a mesh broadcast passes through two buffers of its
                                  largest group instead */
    const char *mesh;          /* of the engine that this is a worker of, "tp=4,ep=8": mesh.h, and the
                                  replica_mesh of the trainer. NULL: it is the only one */
    uint32_t worker;           /* its number within one replica */
    const char *experts;       /* JSON: the experts of each expert rank; NULL: contiguous */
    /* How the workers of one replica install all or none: given what this worker came to, says OK
     * when every worker came to OK. Called by each install, with hooks.context: once when the bytes
     * are here and verified (direct: may land), or whatever has failed until then; and if that was
     * OK for all, once more when they are in place and postprocessed, or failed to be. Direct, and
     * where that was not OK, a third time: ERR_PARTIAL from a worker in whose live parameters bytes
     * may have landed, OK from one in which none has. So it may be a collective of the workers (an
     * all-reduce); it must end within a bound, which the third time is best above timeout_ms, since
     * others may still wait for bytes; and it should compare `version` too where WEIR_LATEST is
     * installed. Other than OK: nothing changes (the first), the old version comes back (the
     * second), or direct, UNUSABLE (the third; when OK, the old version stays). NULL: each worker is
     * alone. */
    weir_status (*agree)(void *context, uint64_t version, weir_status mine);
    weir_security security;
    bool reads_trainers_alone; /* never from another replica that holds the same part */
    bool serves_nobody;        /* never as a source of other replicas */
    unsigned peer_wait_ms;     /* while as many readers as it has ranks read a trainer, wait for one that
                                  holds the version, at most this long from when it is READY: so bytes
                                  leave a slow link few times, and a tree of readers grows. 0: read the
                                  trainers at once. Not for replicas with `agree`, whose workers would
                                  wait for each other */
    weir_wire wire;
} weir_replica_options;
#define WEIR_REPLICA_OPTIONS_INIT WEIR_SIZED(weir_replica_options)

WEIR_API weir_status weir_replica_open(const weir_replica_options *options, weir_replica **out);
WEIR_API void weir_replica_close(weir_replica *replica); /* accepts NULL */

/* Tells Weir of live parameters: `tensors` as the engine has them (name, dtype, shape, address),
 * parallel to `tags` (compile target and metadata of each, name and shape ignored), both copied.
 * Memory is kept until close. Of tensors that are one (same address, dtype and shape: a head tied to
 * the embeddings) one is taken, the embeddings. Once, before the first install. */
WEIR_API weir_status weir_replica_register(weir_replica *replica, const weir_tensor *tensors,
                                           const weir_parameter *tags, size_t n_tensors);
/* Allocates every parameter that family, layout, conversion and config describe, the derived ones
 * included, and registers them: an engine's memory without the engine. */
WEIR_API weir_status weir_replica_allocate(weir_replica *replica);
/* Registers an engine's live parameters by name: which there must be, and their tags, follow from
 * family, layout, conversion, config and mesh, as weir_replica_allocate() would allocate them, those
 * that Weir derives included. `tensors` in any order, memory kept until close. Of tensors that the
 * model has no parameter of (nor one at the same address, as of a tied head), used[i] (parallel to
 * them) says false, and they are left alone; `used` NULL: they are refused. ERR_LAYOUT names the
 * first parameter that is missing (and says how many are), or whose dtype or shape is another, with
 * both sides; ERR_INVALID a name that is given twice. Once, before the first install; after a failure
 * it can be tried again. */
WEIR_API weir_status weir_replica_bind(weir_replica *replica, const weir_tensor *tensors,
                                       size_t n_tensors, bool *used);
/* The live parameters, at the addresses that never change. */
WEIR_API const weir_tensor *weir_replica_parameters(const weir_replica *replica, size_t *out_n);

/* Stops 5-9: waits until `version` (WEIR_LATEST: any newer than the one held) is READY, checks
 * tags, names, dtypes, shapes and coverage, moves the bytes, verifies them, installs them in place.
 * On failure the replica holds its old version (staged), or is UNUSABLE (direct, once a byte has
 * landed). report may be NULL. */
WEIR_API weir_status weir_replica_install(weir_replica *replica, uint64_t version,
                                          weir_report *report);
/* Brings back, at the same addresses, what was held before the last install: the version before, or
 * what the engine came with (EMPTY). Its bytes are there until the next version begins to come, so
 * this needs no trainer. Hooks and `agree` as in an install, with the version that comes back (0: what
 * the engine came with); when one of them refuses, what was held stands. Allocates nothing. `report`
 * (may be NULL): its version is what is held then. ERR_NOT_FOUND: nothing to go back to;
 * ERR_UNSUPPORTED: of direct installs. */
WEIR_API weir_status weir_replica_revert(weir_replica *replica, weir_report *report);
/* As weir_trainer_cancel(): ends an install before the first live byte changes, or not at all. */
WEIR_API void weir_replica_cancel(weir_replica *replica);
WEIR_API void weir_replica_uncancel(weir_replica *replica); /* as weir_trainer_uncancel() */
WEIR_API weir_replica_state weir_replica_get_state(const weir_replica *replica);
WEIR_API uint64_t weir_replica_version(const weir_replica *replica); /* 0 when EMPTY or UNUSABLE */

/* ---- verifying a live replica ----------------------------------------------------------------*/

typedef struct weir_verify_options {
    size_t size;
    const char *directory, *model, *run;
    const char *replica;       /* its name */
    const char *family, *layout, *conversion, *config; /* as for the replica */
    const weir_tensor *sources;/* the checkpoint that it should hold */
    size_t n_sources;
    bool keep_masters;
    const char *const *ignore;
    size_t n_ignore;
    const char *transport_directory;
    unsigned n_threads, timeout_ms;
    weir_progress_fn progress; /* reported as stop TRANSFER */
    void *progress_context;
    const char *mesh;          /* as for the replica: `sources` are the whole model's all the same */
    uint32_t worker;
    const char *experts;
    weir_security security;
} weir_verify_options;
#define WEIR_VERIFY_OPTIONS_INIT WEIR_SIZED(weir_verify_options)

typedef struct weir_verify_report {
    uint64_t version;          /* that the replica says it holds */
    uint64_t n_parameters, n_bytes;
    uint64_t n_different;      /* parameters that differ, are missing or are too many */
    char first_difference[512];/* "" when there is none */
} weir_verify_report;

/* Reads every live parameter of a running replica, converts `sources` independently with the C
 * reference kernels on fused copies, compares byte for byte. OK when it could compare (look at
 * n_different). */
WEIR_API weir_status weir_verify(const weir_verify_options *options, weir_verify_report *report);

#ifdef __cplusplus
}
#endif
#endif
