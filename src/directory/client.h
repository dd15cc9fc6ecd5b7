/* SPDX-License-Identifier: Apache-2.0 */
/* client.h - talking to a directory (Weir's or ModelExpress'), in plain structs.
 *
 * One call here is one gRPC call (modelexpress-wire facts: P2pService, RefitService). Records hold
 * fixed arrays, so a refit takes no memory for them. Strings that do not fit are ERR_FORMAT.
 *
 * Threads    a client belongs to one thread at a time.
 * Ownership  records are the caller's values; strings in arguments are borrowed.
 * Errors     as rpc.h; a reply with success=false is ERR_REFUSED with the server's message.
 */
#ifndef WEIR_DIRECTORY_CLIENT_H
#define WEIR_DIRECTORY_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rpc/rpc.h"
#include "weir/status.h"

#define WEIR_NAME_BYTES 256 /* model, run, worker and slot names, endpoints */
#define WEIR_ID_BYTES 64    /* uids, lease and source ids */
#define WEIR_DIGEST_TEXT 80 /* "sha256:" and 64 hex digits */
#define WEIR_MAX_RANKS 1024 /* expected slots of one version */
#define WEIR_DIRECTORY_MESSAGE_BYTES \
    ((size_t)16 << 20) /* of a request: a registry may have 4 MiB */

typedef struct weir_directory_client weir_directory_client;
/* timeout_ms bounds each call. Several directories of one fleet, "HOST:PORT,HOST:PORT": the one
 * that answers is asked until it does no more, then the next (rpc.h). */
weir_status weir_directory_client_open(const char *addresses, unsigned timeout_ms,
                                       weir_directory_client **out);
/* Before the first call: how the directory and the workers are called from here on. Copied. */
weir_status weir_directory_client_secure(weir_directory_client *client,
                                         const weir_rpc_security *security);
void weir_directory_client_close(weir_directory_client *client); /* accepts NULL */
/* Bounds each call from here on. The bound of before. */
unsigned weir_directory_client_bound(weir_directory_client *client, unsigned timeout_ms);
/* Of the directory that answered last. */
const char *weir_directory_client_address(const weir_directory_client *client);
/* Calls from here on belong to this trace, as the part of this worker; "" or what is no trace id:
 * to none. */
void weir_directory_client_trace(weir_directory_client *client, const char *trace_id,
                                 const char *worker_id);
/* From any thread: makes the call to the directory that is in flight, or else the next one, end
 * with ERR_CANCELLED. */
void weir_directory_client_cancel(weir_directory_client *client);

/* ---- RefitService: workers, versions, shards, leases -----------------------------------------*/

typedef enum weir_worker_role { WEIR_ROLE_TRAINER = 1, WEIR_ROLE_GENERATOR = 2 } weir_worker_role;

/* Registers or renews. */
weir_status weir_directory_register_worker(weir_directory_client *client, const char *worker_id,
                                           weir_worker_role role, const char *model,
                                           unsigned ttl_s);

typedef enum weir_version_state {
    WEIR_VERSION_STAGING = 1,
    WEIR_VERSION_READY = 2,
    WEIR_VERSION_RELEASING = 3,
    WEIR_VERSION_ABORTED = 4 /* told by DirectoryService alone */
} weir_version_state;

typedef struct weir_version_record {
    char uid[WEIR_ID_BYTES];
    char model[WEIR_NAME_BYTES];
    bool has_number;
    uint64_t number;
    weir_version_state state;
    uint32_t n_slots; /* expected_source_slots; their names: weir_directory_version_slot() */
} weir_version_record;

/* Same key and same request give the same version. FULL_TENSOR only. */
weir_status weir_directory_create_version(weir_directory_client *client, const char *model,
                                          uint64_t number, const char *idempotency_key,
                                          const char *const *slots, size_t n_slots,
                                          weir_version_record *out);
weir_status weir_directory_get_version(weir_directory_client *client, const char *uid,
                                       weir_version_record *out);
/* Expected slot `index` of the version that the last create, get or create_shard call returned.
 * Borrowed until the next call on this client; NULL beyond the end. */
const char *weir_directory_version_slot(const weir_directory_client *client, size_t index);
weir_status weir_directory_delete_version(weir_directory_client *client, const char *uid);

typedef struct weir_shard_record {
    char version_uid[WEIR_ID_BYTES];
    char slot[WEIR_NAME_BYTES]; /* "rank-0" */
    char worker_id[WEIR_NAME_BYTES];
    uint64_t n_tensors, n_bytes;
    char manifest_digest[WEIR_DIGEST_TEXT];
    char manifest_endpoint[WEIR_NAME_BYTES]; /* "HOST:PORT" of its RefitWorkerService */
    char transport[WEIR_ID_BYTES];           /* "ucx" */
} weir_shard_record;

weir_status weir_directory_create_shard(weir_directory_client *client,
                                        const weir_shard_record *shard,
                                        weir_version_record *out_version);
/* Writes at most n_max records, in the server's order; *out_n is how many there are. */
weir_status weir_directory_list_shards(weir_directory_client *client, const char *version_uid,
                                       weir_shard_record *shards, size_t n_max, size_t *out_n);
weir_status weir_directory_delete_shard(weir_directory_client *client, const char *version_uid,
                                        const char *slot, const char *worker_id);

weir_status weir_directory_register_lease(weir_directory_client *client, const char *version_uid,
                                          const char *worker_id, unsigned ttl_s,
                                          char out_lease_id[WEIR_ID_BYTES]);
weir_status weir_directory_delete_lease(weir_directory_client *client, const char *version_uid,
                                        const char *lease_id, const char *worker_id);

/* ---- RefitWorkerService and WorkerService: a trainer's manifests and groups ------------------*/

/* Asks the worker at `endpoint` ("HOST:PORT"). `who` names it in errors. Copies the manifest into
 * *buffer (weir_realloc'd when *buffer_bytes is too small). Does not check the digest. */
weir_status weir_directory_get_manifest(weir_directory_client *client, const char *endpoint,
                                        const char *who, const char *version_uid, const char *slot,
                                        unsigned char **buffer, size_t *buffer_bytes,
                                        size_t *out_n_bytes, char out_digest[WEIR_DIGEST_TEXT]);

/* Closes the connection to the worker at `endpoint`, if there is one: it is needed no more. Else
 * connections are kept, to as many workers as a version may have, twice. */
void weir_directory_forget_worker(weir_directory_client *client, const char *endpoint);

/* What a reader of a version that passes through a window says (proto/worker.proto). */
typedef struct weir_group_ask {
    const char *reader;  /* its worker id */
    uint32_t worker;     /* its number within its engine */
    uint32_t group;      /* one behind the last: it has read all that it needs */
    uint32_t round;      /* that it is in; 0: it joins */
    const char *gave_up; /* NULL or "": it goes on */
    bool fresh; /* it does not stand, all joined, in its broadcast groups of whom it asks */
} weir_group_ask;

/* As weir_directory_get_manifest(), the answer being a packed weir.manifest.Group. timeout_ms 0:
 * the client's. */
weir_status weir_directory_ask_group(weir_directory_client *client, const char *endpoint,
                                     const char *who, const char *version_uid, const char *slot,
                                     const weir_group_ask *ask, unsigned timeout_ms,
                                     unsigned char **buffer, size_t *buffer_bytes,
                                     size_t *out_n_bytes);

/* ---- P2pService: who is there and what each holds --------------------------------------------*/

typedef enum weir_source_status {
    WEIR_SOURCE_UNKNOWN = 0,
    WEIR_SOURCE_INITIALIZING = 1,
    WEIR_SOURCE_READY = 2,
    WEIR_SOURCE_STALE = 3
} weir_source_status;

/* The registry of what a worker publishes (weir/descriptor.h) as it travels: the inside of a JSON
 * string, behind room for the words that change from version to version, which are written there in
 * place. Whoever makes it keeps it for as long as a record points to it; one thread at a time. */
typedef struct weir_sidecar_registry {
    char *buffer;
    size_t n_bytes, capacity_bytes; /* of all */
    bool in_manifest; /* too long to travel: who wants it asks for the worker's manifest */
} weir_sidecar_registry;
/* The text of weir_tensor_registry_encode(), of version 0; NULL: it is in the manifest. A text as
 * long as the last allocates nothing. */
weir_status weir_sidecar_registry_set(weir_sidecar_registry *text, const char *registry);
void weir_sidecar_registry_free(weir_sidecar_registry *text);

/* One worker's entry. Its identity (and so its source id) is made of model, run and role alone and
 * stays the same from version to version. What changes rides in descriptors of size 0 whose names
 * begin with "__mx_" and which nobody transfers (sidecar.h). Neither a uid nor a layout signature
 * nor a role may hold a space. */
typedef struct weir_source_record {
    char source_id[WEIR_ID_BYTES]; /* out only */
    char worker_id[WEIR_NAME_BYTES];
    char model[WEIR_NAME_BYTES];
    char run[WEIR_NAME_BYTES];
    char role[WEIR_ID_BYTES]; /* "trainer", "inference_replica" */
    uint32_t rank, n_ranks;
    weir_source_status status;
    uint64_t version;                /* training_step */
    char version_uid[WEIR_ID_BYTES]; /* of the RefitService version; "" if none */
    char endpoint[WEIR_NAME_BYTES];  /* worker_grpc_endpoint: where its manifest is */
    char layout_signature[WEIR_ID_BYTES];
    char note[512];                   /* a replica's timings: one JSON object, or "" */
    char world_layout[WEIR_ID_BYTES]; /* "fsdp:8,tp:2,pp:1,ep:4"; "": n_ranks of fsdp. This and the
                                         next: not read from a directory */
    weir_sidecar_registry *registry;  /* NULL: none. Borrowed */
    int64_t updated_at_ms;            /* out only: by the server's clock */
} weir_source_record;

weir_status weir_directory_publish_source(weir_directory_client *client,
                                          const weir_source_record *record,
                                          char out_source_id[WEIR_ID_BYTES]);
weir_status weir_directory_update_status(weir_directory_client *client, const char *source_id,
                                         const char *worker_id, uint32_t rank,
                                         weir_source_status status);

typedef struct weir_source_ref {
    char source_id[WEIR_ID_BYTES];
    char worker_id[WEIR_NAME_BYTES];
    uint32_t rank;
    bool has_version; /* the server says it; else the entry has to be asked for */
    uint64_t version;
    int64_t updated_at_ms;
} weir_source_ref;

/* Sources of one model (and status, 0: any) whose version is at least min_version, or not said;
 * newest first. */
weir_status weir_directory_list_sources(weir_directory_client *client, const char *model,
                                        weir_source_status status, uint64_t min_version,
                                        weir_source_ref *refs, size_t n_max, size_t *out_n);
/* The same of the workers of one role in one run alone: their entries share an identity. */
typedef struct weir_source_wish {
    const char *model, *run, *role;
    weir_source_status status; /* 0: any */
    uint64_t min_version;
} weir_source_wish;
weir_status weir_directory_list_role(weir_directory_client *client, const weir_source_wish *wish,
                                     weir_source_ref *refs, size_t n_max, size_t *out_n);
/* ERR_NOT_FOUND when the entry is gone. Entries that Weir did not write have version_uid "". */
weir_status weir_directory_get_source(weir_directory_client *client, const char *source_id,
                                      const char *worker_id, weir_source_record *out);

/* ---- DirectoryService: a whole step of a refit in one message
 * ----------------------------------*/

/* What these calls do a server of ModelExpress cannot: ERR_UNSUPPORTED, and from then on without
 * asking it, until a connection is lost. */
bool weir_directory_is_plain(const weir_directory_client *client);

/* A wait asks for this long at the most, so that a server that has died is noticed. IN_PROGRESS:
 * not yet, ask again. While *cancelled is true no call waits; weir_directory_client_interrupt()
 * makes one that is waiting look (from any thread or signal handler), and disturbs no other. */
#define WEIR_DIRECTORY_SLICE_MS 20000u
void weir_directory_client_heed(weir_directory_client *client, const atomic_bool *cancelled);
void weir_directory_client_interrupt(weir_directory_client *client);
/* Forgets interruptions that no call has heard. Between calls. */
void weir_directory_client_uninterrupt(weir_directory_client *client);

/* Requests made so far, of workers too. */
uint64_t weir_directory_client_messages(const weir_directory_client *client);

typedef struct weir_stop_span {
    const char *name; /* "transfer" */
    uint64_t begun_unix_us, duration_us;
    char peer[WEIR_ID_BYTES]; /* of a read within a stop: whom from, cut; "": of no read */
    uint64_t n_bytes;         /* of it */
} weir_stop_span;
#define WEIR_MAX_SPANS 16

/* Who published each slot of a version last, and what, as hashes, 0: not known: what a directory
 * that loses its records has to be told again. */
typedef struct weir_slot_marks {
    const uint64_t *workers, *contents; /* n each; of an answer, until the client's next call */
    size_t n;                           /* 0: nothing is known */
} weir_slot_marks;

/* Of a trainer rank: the version is made or joined, its shard is in and its entry says so. */
typedef struct weir_publish_request {
    const weir_shard_record *shard;   /* version_uid: that it had in a directory that has lost its
                                         records; "" of a new one */
    const weir_source_record *source; /* nor here */
    bool source_is_known; /* it is as it was, but for the version: not sent. ERR_NOT_FOUND: the
                             directory has forgotten it */
    const char *const *slots;
    size_t n_slots;
    const char *trace_id; /* "" or 32 hexadecimal digits */
    const char *content;  /* names the bytes: of equal names equal ones. "": not said */
    const weir_stop_span *spans;
    size_t n_spans;
    uint32_t attempt;      /* this and the next: with a version_uid alone */
    weir_slot_marks marks; /* n is n_slots, or 0 */
} weir_publish_request;
typedef struct weir_publish_answer {
    weir_version_record version;
    uint32_t attempt; /* of this version number */
    char source_id[WEIR_ID_BYTES];
    char trace_id[WEIR_ID_BYTES]; /* of the first rank */
    weir_slot_marks marks;
} weir_publish_answer;
weir_status weir_directory_publish_version_shard(weir_directory_client *client,
                                                 const weir_publish_request *request,
                                                 weir_publish_answer *out);

/* Why a replica worker does not hold a version. */
typedef struct weir_refusal {
    char worker_id[WEIR_NAME_BYTES];
    weir_status status;
    char text[WEIR_NAME_BYTES]; /* what of it there is room for */
} weir_refusal;
/* Neither holds nor has refused it. */
typedef struct weir_await_straggler {
    char worker_id[WEIR_NAME_BYTES];
    bool reads, has_version; /* it has a lease; it holds `version` */
    uint64_t version;
    char stop[WEIR_NAME_BYTES], from[WEIR_NAME_BYTES]; /* as it said last; "" */
    uint32_t silent_ms;
    uint32_t ended_ms; /* since its registration ended; 0: it is alive */
} weir_await_straggler;
#define WEIR_MAX_STRAGGLERS 4 /* of those that an answer names */
typedef struct weir_await_answer {
    uint32_t n_holding;
    size_t n_refusals;   /* all of them; the caller has room for some */
    size_t n_stragglers; /* all that were named; when the time is up alone */
    weir_await_straggler stragglers[WEIR_MAX_STRAGGLERS];
    weir_version_state state;
    char reason[WEIR_NAME_BYTES]; /* of ABORTED */
    weir_slot_marks marks;
} weir_await_answer;
/* Waits until n_replicas workers hold the version or a later one, or it is ABORTED: OK.
 * ERR_NOT_FOUND: the directory does not know the version. */
weir_status weir_directory_await_replicas(weir_directory_client *client, const char *model,
                                          const char *version_uid, uint32_t n_replicas,
                                          unsigned timeout_ms, weir_refusal *refusals, size_t n_max,
                                          weir_await_answer *out);

/* Waits until nobody reads the versions, then takes this rank's shards of them back: OK.
 * out_readers names workers that read, "replica-1, replica-2". */
weir_status weir_directory_retire_versions(weir_directory_client *client,
                                           const char *const *version_uids, size_t n,
                                           const char *slot, const char *worker_id,
                                           unsigned timeout_ms, char *out_readers,
                                           size_t readers_bytes);
weir_status weir_directory_abort_version(weir_directory_client *client, const char *version_uid,
                                         const char *worker_id, const char *reason);

/* Of a replica worker: the newest READY version whose number is within [lowest, highest]. */
typedef struct weir_acquire_request {
    const char *model, *run, *worker_id;
    uint32_t worker_rank;
    uint64_t lowest, highest;
    const char *but_not_uid, *host, *part; /* "" when not said; without a part no peer is given */
    const char *held_uid; /* neither it nor an earlier attempt at its number; "": none is held */
    const char *const *avoid; /* workers that could not be read from */
    size_t n_avoid;
    unsigned ttl_s, timeout_ms;
    unsigned peer_wait_ms; /* for a peer, while the trainers are read, from when it is READY */
    const char *trace_id;
} weir_acquire_request;
/* A replica worker that holds the same part of that version. */
typedef struct weir_peer_record {
    char worker_id[WEIR_NAME_BYTES]; /* "": none */
    char source_id[WEIR_ID_BYTES];
    char endpoint[WEIR_NAME_BYTES];
    char host[WEIR_NAME_BYTES];
    uint32_t n_readers;
} weir_peer_record;
typedef struct weir_acquire_answer {
    weir_version_record version; /* its slots: weir_directory_version_slot() */
    uint32_t attempt;
    char lease_id[WEIR_ID_BYTES];
    char trace_id[WEIR_ID_BYTES];
    size_t n_shards; /* in the order of the slots, one each */
    weir_peer_record peer;
    /* Of IN_PROGRESS: what there is instead. */
    bool has_trainer;
    uint64_t newest;                 /* version number of any */
    char awaited_uid[WEIR_ID_BYTES]; /* the newest that would do; "": none */
    weir_version_state awaited_state;
    size_t n_missing;             /* slots of it that nobody has published */
    char missing[512];            /* "rank-2, rank-3", as many as there is room for */
    size_t n_gone;                /* slots of it whose workers are gone */
    char gone[512];               /* "rank-0 (worker trainer-0-5f1c9a07)", likewise */
    char reason[WEIR_NAME_BYTES]; /* of ABORTED */
} weir_acquire_answer;
/* Waits for such a version and leases it: OK, at most n_max shards are written. */
weir_status weir_directory_acquire_version(weir_directory_client *client,
                                           const weir_acquire_request *request,
                                           weir_shard_record *shards, size_t n_max,
                                           weir_acquire_answer *out);

/* What a replica worker holds now, or why it does not; its lease ends. */
typedef struct weir_acknowledgement {
    weir_source_record source;
    char version_uid[WEIR_ID_BYTES];
    uint64_t version;
    char lease_id[WEIR_ID_BYTES];
    weir_status status; /* of this version */
    char text[WEIR_NAME_BYTES];
    uint64_t n_bytes;
    weir_stop_span spans[WEIR_MAX_SPANS];
    size_t n_spans;
    char host[WEIR_ID_BYTES];
    char part[WEIR_ID_BYTES];        /* that others can read here; "": nothing */
    char read_from[WEIR_NAME_BYTES]; /* worker id; "": the trainers */
    char trace_id[WEIR_ID_BYTES];
} weir_acknowledgement;
weir_status weir_directory_acknowledge_version(weir_directory_client *client,
                                               const weir_acknowledgement *acknowledgement,
                                               char out_source_id[WEIR_ID_BYTES]);

/* For people who watch; waits for a second at most. A stop "": the refit is over. */
typedef struct weir_progress_report {
    const char *worker_id, *model;
    uint64_t version;
    const char *stop;
    uint64_t done_bytes, total_bytes;
    const char *slowest_from; /* the source that it waits for; "": none */
} weir_progress_report;
weir_status weir_directory_report_progress(weir_directory_client *client,
                                           const weir_progress_report *report);

typedef struct weir_fleet_request {
    const char *model; /* "": all */
    uint64_t version;  /* with refits of it alone; 0: the last ones */
    uint64_t after_revision;
    unsigned timeout_ms; /* for something newer; then it is given as it is */
} weir_fleet_request;
/* All that it knows, for people. *out_json is the client's, until its next call. */
weir_status weir_directory_get_fleet(weir_directory_client *client, const weir_fleet_request *wish,
                                     const char **out_json);

#endif
