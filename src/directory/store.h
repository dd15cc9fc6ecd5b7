/* SPDX-License-Identifier: Apache-2.0 */
/* store.h - what the directory knows: workers, versions, shards, leases, sources. Pure.
 *
 * No I/O, no clock, no protobuf: the time is passed in, so that every expiry can be tested; it
 * never goes back. Deterministic: the same calls with the same times and salts make the same store,
 * byte for byte, which is how several directories keep one (directory_log.h). A call that fails
 * changes nothing.
 *
 * Threads    one at a time.
 * Ownership  arguments are borrowed and copied; records given out are the store's and valid until
 *            its next change.
 * Errors     ERR_INVALID a bad request, ERR_NOT_FOUND an unknown id, ERR_REFUSED the state does not
 *            allow it, ERR_EXISTS a key is taken, ERR_NO_MEMORY one of the caps below. The lines
 *            are ModelExpress' texts where it has one.
 * Caps       names have at most 255 bytes; a version 1,024 slots, 8,192 shards and 8,192 leases;
 *            the store 4,096 versions, of one model 1,024; 16,384 workers, 16,384 sources, 131,072
 *            words, and 512 MiB in all, of which one model's sources take at most half. Of versions
 *            that are too many the oldest that is over makes room, else the oldest that its
 *            publishers have abandoned.
 */
#ifndef WEIR_DIRECTORY_STORE_H
#define WEIR_DIRECTORY_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/status.h"

typedef struct weir_store weir_store;
typedef struct weir_store_options {
    uint64_t stale_after_ms;  /* 0: 90 s; a source without an update turns STALE */
    uint64_t delete_after_ms; /* 0: 3,600 s; a STALE source is deleted */
    uint64_t
        forget_after_ms; /* 0: 3,600 s; a version that nobody can serve or reads is dropped, as
                            is what a worker has published whose registration is over so long */
    uint64_t abandon_after_ms; /* 0: 600 s; a STAGING version is dropped whose publishers are all
                                  gone so long, or that nobody has published so long though no
                                  trainer of its model lives; after a fifth of it when there is no
                                  room for another */
} weir_store_options;

weir_status weir_store_open(const weir_store_options *options, weir_store **out);
void weir_store_close(weir_store *store); /* accepts NULL */

/* Ends what has expired: sources turn STALE and go, workers and leases go, and with them versions
 * that are left without either. Expired workers and leases count for nothing even before. */
void weir_store_sweep(weir_store *store, uint64_t now_ms);

/* ---- workers ---------------------------------------------------------------------------------*/

typedef enum weir_store_role {
    WEIR_STORE_TRAINER = 1,
    WEIR_STORE_GENERATOR = 2,
} weir_store_role;

/* Registers or renews; a live worker keeps its role and model. ttl_s beyond a day is cut to one.
 * The first registration gives a worker its generation, greater than all before: of two workers
 * that claim one rank the greater one is the one that was started last. */
weir_status weir_store_register_worker(weir_store *store, const char *worker_id, int role,
                                       const char *model, uint32_t ttl_s, uint64_t now_ms,
                                       uint64_t *out_expires_ms);

/* ---- versions and shards ---------------------------------------------------------------------*/

typedef enum weir_store_payload {
    WEIR_STORE_FULL_TENSOR = 1,
    WEIR_STORE_XOR_DELTA = 2,
} weir_store_payload;

typedef enum weir_store_state {
    WEIR_STORE_STAGING = 1,
    WEIR_STORE_READY = 2,
    WEIR_STORE_RELEASING = 3,
    WEIR_STORE_ABORTED = 4, /* it will never be READY, or is so no more: no new lease, shards may be
                               taken back as in RELEASING */
} weir_store_state;

typedef struct weir_store_version {
    const char *uid; /* eight hexadecimal digits; in requests, that it had in a directory that has
                        lost its records: it has it again unless another one has. NULL, "": none */
    const char *model;
    bool has_number;
    uint64_t number;
    const char *idempotency_key;
    int payload;
    const char *base_uid; /* NULL: none */
    const char *const *slots;
    size_t n_slots;
    const char *run;  /* "" of versions whose ModelExpress call has a key of another kind than
                         "weir/MODEL/RUN/NUMBER/ATTEMPT"; with it, `attempt` */
    uint32_t attempt; /* 0 in a request: the first that is neither RELEASING nor ABORTED, or made */
    const char *trace_id;                /* "" when none said one */
    const char *layout_signature;        /* "" */
    weir_store_state state;              /* this and the next: not read in requests */
    uint64_t created_at_ms, ready_at_ms; /* 0: never was */
    const char *reason;                  /* of ABORTED; else "" */
    size_t n_covered;                    /* slots that have a shard */
    /* In requests with a uid: what weir_store_recall() gave before; NULL: not known. */
    const uint64_t *slot_workers, *slot_contents;
} weir_store_version;

/* The same key and request again give the same version. `salt` makes its uid: random, or uids
 * repeat. A request with a run needs no key: (model, run, number, attempt) is one. */
weir_status weir_store_create_version(weir_store *store, const weir_store_version *request,
                                      uint64_t salt, uint64_t now_ms,
                                      const weir_store_version **out);
weir_status weir_store_get_version(weir_store *store, const char *uid,
                                   const weir_store_version **out);
/* STAGING or READY -> ABORTED, for good; again with ABORTED: nothing. The worker must have a shard
 * in it, be expected to (a live trainer of its model), or hold a lease. Leases stay as in
 * RELEASING: who reads may have to be waited for. */
weir_status weir_store_abort_version(weir_store *store, const char *uid, const char *worker_id,
                                     const char *reason, uint64_t now_ms,
                                     const weir_store_version **out);
/* READY -> RELEASING. */
weir_status weir_store_delete_version(weir_store *store, const char *uid, uint64_t now_ms,
                                      const weir_store_version **out);

typedef struct weir_store_shard {
    const struct weir_store_shard *next; /* in the order of publication */
    const char *version_uid, *slot, *worker_id;
    uint64_t n_tensors, n_bytes;
    const char *manifest_digest, *manifest_endpoint, *transport;
    const char *content; /* names the bytes; "" when the publisher does not say */
} weir_store_shard;

/* Puts a shard in; the version is READY with the shard that covers the last expected slot. */
weir_status weir_store_create_shard(weir_store *store, const weir_store_shard *shard,
                                    uint64_t now_ms, const weir_store_version **out);
/* Both at once, or neither: the version is made or joined, the shard is in. A worker whose slot an
 * open attempt has from a worker of a smaller generation was started anew: when it offers another
 * content, or other slots, that attempt is ABORTED, because a version never mixes two states of a
 * model, and the next one is made. An attempt with other slots whose publishers are all gone is
 * over likewise. A worker that was there before the ended attempt was begun is of the older state:
 * ERR_REFUSED. (Contents of which one is "" are not compared: ModelExpress lets several workers
 * offer a slot.) The version's run must be given.
 *
 * With a uid the shard is published again, after the directory has lost its records: the attempt is
 * restored under that uid and number, and open ones of smaller numbers are ABORTED. ERR_REFUSED
 * when there is one of that number or a greater one, unless all who are in it are the workers, or
 * offer the contents, that this request knows: then it joins that. Into a restored attempt a shard
 * without a uid goes only if its worker, or its content, is the one that is known there of its
 * slot; any other ends it, because nobody can tell whether it is of the same state. */
weir_status weir_store_publish_shard(weir_store *store, const weir_store_version *request,
                                     const weir_store_shard *shard, uint64_t salt, uint64_t now_ms,
                                     const weir_store_version **out);
/* A hash for each slot of the version, 0: not known: of the worker that published it last, here or
 * else in the newest version before that was READY; and of what it published here. */
weir_status weir_store_recall(const weir_store *store, const char *uid, uint64_t *out_workers,
                              uint64_t *out_contents);
/* The worker's shard counts no more; nobody is given it. STAGING turns ABORTED by that; READY turns
 * RELEASING, unless a live replica can be read from and no later version of the run is READY: then
 * it stays so until one is, or no replica is left: all such have left in order, were started anew,
 * or are silent for abandon_after_ms. *out_is_read: somebody reads the trainers still, and the
 * shard is there until it is asked for again without readers; of a version that stays READY it is
 * there as long as that. OK when there is no such version or shard. */
weir_status weir_store_retire_shard(weir_store *store, const char *version_uid, const char *slot,
                                    const char *worker_id, uint64_t now_ms, bool *out_is_read);
/* That would change something: the shard counts still, or can go. */
bool weir_store_can_retire(const weir_store *store, const char *version_uid, const char *slot,
                           const char *worker_id, uint64_t now_ms);
/* READY, but its trainers have taken back a slot: only replicas have it. */
bool weir_store_is_taken_back(const weir_store *store, const char *version_uid);
/* A slot of which no live worker has a shard. */
typedef struct weir_store_gap {
    const char *slot;
    bool was_published;    /* but who did is gone, or has taken it back */
    const char *worker_id; /* that did so last; "": nobody, or it is forgotten */
} weir_store_gap;
/* Calls `visit` (NULL: nobody) for them in the order of the slots, until it returns false; returns
 * how many there are. */
size_t weir_store_each_gap(const weir_store *store, const char *version_uid, uint64_t now_ms,
                           bool (*visit)(void *context, const weir_store_gap *gap), void *context);
/* READY, but it has gaps, and no live replica can be read from. */
bool weir_store_is_unreadable(const weir_store *store, const char *version_uid, uint64_t now_ms);
/* NULL in *out_first: there is none yet. */
weir_status weir_store_list_shards(weir_store *store, const char *version_uid,
                                   const weir_store_shard **out_first);
/* Its worker is alive, the one that published it, and has not taken it back: others are not told of
 * it. */
bool weir_store_shard_counts(const weir_store_shard *shard, uint64_t now_ms);
/* *out_deleted false: there was no such shard. */
weir_status weir_store_delete_shard(weir_store *store, const char *version_uid, const char *slot,
                                    const char *worker_id, uint64_t now_ms, bool *out_deleted);

/* ---- leases ----------------------------------------------------------------------------------*/

typedef struct weir_store_lease {
    char lease_id[9]; /* the first eight hex digits of SHA-256(version NUL worker) */
    uint64_t begun_ms, expires_ms;
} weir_store_lease;

/* Registers or renews. ttl_s beyond a day is cut to one. A new one needs a shard of every slot that
 * counts: peers are read by weir_store_acquire() alone. */
weir_status weir_store_register_lease(weir_store *store, const char *version_uid,
                                      const char *worker_id, uint32_t ttl_s, uint64_t now_ms,
                                      weir_store_lease *out);
weir_status weir_store_delete_lease(weir_store *store, const char *version_uid,
                                    const char *lease_id, const char *worker_id, uint64_t now_ms,
                                    bool *out_deleted);
/* False when the worker does not read the version at this time. */
bool weir_store_get_lease(const weir_store *store, const char *version_uid, const char *worker_id,
                          uint64_t now_ms, weir_store_lease *out);
/* Calls `visit` for who reads the version at this time, until it returns false. */
void weir_store_each_lease(const weir_store *store, const char *version_uid, uint64_t now_ms,
                           bool (*visit)(void *context, const char *worker_id, uint64_t expires_ms),
                           void *context);

/* Likewise, for those of them who read its trainers. */
void weir_store_each_direct_reader(
    const weir_store *store, const char *version_uid, uint64_t now_ms,
    bool (*visit)(void *context, const char *worker_id, uint64_t expires_ms), void *context);

/* ---- a replica's wish ------------------------------------------------------------------------*/

typedef struct weir_store_wish {
    const char *model, *run, *worker_id; /* a registered generator */
    uint32_t worker_rank;
    uint64_t lowest, highest;
    const char *but_not_uid, *host, *part; /* "" when not said */
    const char *held_uid;     /* neither this one nor an earlier attempt at its number; "": none */
    const char *const *avoid; /* worker ids */
    size_t n_avoid;
    uint32_t ttl_s;
    uint32_t peer_wait_ms; /* from when a version was READY, while its trainers have as many readers
                              as slots, only a peer that nobody reads will do */
    const char *trace_id;
} weir_store_wish;

/* What came of it. Pointers as of records. */
typedef struct weir_store_grant {
    const weir_store_version *version; /* leased; NULL: there is none */
    weir_store_lease lease;
    const weir_store_shard *const *shards; /* one per slot of the version, in its order: of the live
                                              worker of the greatest generation. In memory that is
                                              valid until the next call on the store */
    size_t n_shards;
    const struct weir_store_source *peer; /* to read from instead; NULL: the shards */
    const char *peer_endpoint, *peer_host;
    uint32_t n_peer_readers;
    /* Without a version: */
    bool has_trainer;
    uint64_t newest;                   /* version number known of that model and run */
    const weir_store_version *awaited; /* the newest that would do, were it READY; NULL: none */
    const char *const *missing;        /* its slots without a shard of a live worker, n_missing */
    size_t n_missing;
    uint64_t again_ms; /* awaited can be had then, even if nothing changes; 0: it cannot */
} weir_store_grant;

/* The newest version of the model and run within [lowest, highest] that is READY and of which every
 * slot has a shard of a worker that is alive (or which a peer holds): leases it. One that is not
 * READY yet does not keep an older one from being given. A peer is a live replica worker of the
 * same part that holds that very version and whose word of it is READY; of those the one with the
 * fewest readers, and of equals the one on the same host; it is given when it has fewer readers
 * than the version's trainers have per slot, or as many and is on the reader's host, or a trainer
 * is one to avoid and nobody has its shard beside: so readers spread over a tree by themselves.
 * With `take` false nothing changes: only says whether there is one. OK, or IN_PROGRESS when there
 * is none, or an error. */
weir_status weir_store_acquire(weir_store *store, const weir_store_wish *wish, bool take,
                               uint64_t now_ms, weir_store_grant *out);

/* Replica workers that hold this very version or a later number of its run: alive, or gone in order
 * after they said so, and not started anew since. */
size_t weir_store_count_holders(const weir_store *store, const char *version_uid, uint64_t now_ms);

/* A generator of the version's model, and of its run as far as it has said one, that is not among
 * them and has not refused the version: alive, or one whose registration ended since the version
 * was made. Of those that are gone the last 64 of all models are remembered, and none from before a
 * store was loaded. */
typedef struct weir_store_straggler {
    const char *worker_id;
    uint32_t rank;
    bool reads, has_number; /* it has a lease; it holds `number` */
    uint64_t number;
    uint64_t ended_at_ms; /* its registration did; 0: it is alive */
} weir_store_straggler;

/* Who reads it first, then who is gone, the latest first; until `visit` returns false. */
void weir_store_each_straggler(const weir_store *store, const char *version_uid, uint64_t now_ms,
                               bool (*visit)(void *context, const weir_store_straggler *straggler),
                               void *context);

/* ---- sources ---------------------------------------------------------------------------------*/

typedef enum weir_store_source_status {
    WEIR_STORE_SOURCE_UNKNOWN = 0,
    WEIR_STORE_SOURCE_INITIALIZING = 1,
    WEIR_STORE_SOURCE_READY = 2,
    WEIR_STORE_SOURCE_STALE = 3,
} weir_store_source_status;

/* What a worker said of itself; identity and metadata are kept as they came. */
typedef struct weir_store_source {
    const char *source_id, *worker_id; /* together they identify it */
    const char *model, *accelerator;
    uint32_t rank;
    weir_store_source_status status;
    int64_t updated_at_ms; /* the last word of the worker; not read in requests */
    bool has_step;
    uint64_t step;
    const char *layout_signature; /* NULL: none said */
    const void *identity, *metadata;
    size_t n_identity, n_metadata;
    /* What Weir's own workers say beside; "" and 0 of others. */
    const char *run, *role;  /* "trainer", "inference_replica" */
    const char *version_uid; /* what it published or holds */
    const char *endpoint;    /* of its manifests */
    const char *host, *part; /* of replicas that can be read from: as in weir_store_wish */
    uint64_t generation; /* of its worker when it published, or when that registered first, if it
                            was later; not read in requests */
    bool has_left;       /* STALE by its own word; not read in requests */
} weir_store_source;

/* Replaces what the same worker said before. Entries of the same model, run, role and rank by
 * workers of smaller generations turn STALE: their ranks were started anew. (Of role
 * "inference_replica", ranks of different replicas have the same numbers: only those whose ids are
 * equal up to eight random digits behind the last '-' count.) */
weir_status weir_store_publish_source(weir_store *store, const weir_store_source *source,
                                      uint64_t now_ms);
/* ERR_NO_MEMORY when it would be refused for want of room. */
weir_status weir_store_check_source_room(const weir_store *store, const weir_store_source *source);
/* ERR_NOT_FOUND when there is no such source. */
weir_status weir_store_update_source(weir_store *store, const char *source_id,
                                     const char *worker_id, weir_store_source_status status,
                                     uint64_t now_ms);
/* READY by its own word, but the registration of the worker that said so is over. An entry of a
 * worker that never was registered is not. */
bool weir_store_is_source_gone(const weir_store_source *source, uint64_t now_ms);
/* NULL when there is none. */
const weir_store_source *weir_store_get_source(const weir_store *store, const char *source_id,
                                               const char *worker_id);

/* Each has_… asks for what follows it. Sources that do not say a step match no min_step. */
typedef struct weir_store_filter {
    const char *source_id, *model; /* NULL: any */
    bool has_status, has_rank, has_min_step, has_min_updated, has_limit;
    int status;
    uint32_t rank;
    uint64_t min_step;
    int64_t min_updated_at_ms;
    uint32_t limit;
} weir_store_filter;

size_t weir_store_count_sources(const weir_store *store);
/* Writes pointers to those that match, newest first, at most `limit`, into an array with room for
 * all sources, and returns how many. */
size_t weir_store_list_sources(const weir_store *store, const weir_store_filter *filter,
                               const weir_store_source **out);

/* ---- what became of versions -----------------------------------------------------------------*/

typedef struct weir_store_span {
    const char *name; /* of a stop, or of a wait or a read in it */
    uint64_t begun_us, duration_us;
    const char *peer; /* of a read: whom from; NULL is "" */
    uint64_t n_bytes; /* of it */
} weir_store_span;

/* A worker's word about one version: a trainer rank's when it published, a replica worker's when it
 * installed or refused it. The last 64 versions of a model and run are kept. */
typedef struct weir_store_word {
    const struct weir_store_word *next; /* of the same version, in the order they came */
    const char *worker_id, *run, *role, *host, *read_from, *text, *trace_id;
    uint32_t rank;
    uint64_t number;
    const char *version_uid;
    int status; /* weir_status */
    uint64_t n_bytes, at_ms;
    const weir_store_span *spans;
    size_t n_spans;
} weir_store_word;

/* Replaces the same worker's word about the same version uid. */
weir_status weir_store_put_word(weir_store *store, const char *model, const weir_store_word *word,
                                uint64_t now_ms);
/* Words about version `number` of a model and run, every attempt; NULL: none. */
const weir_store_word *weir_store_words(const weir_store *store, const char *model, const char *run,
                                        uint64_t number);

/* ---- all of it -------------------------------------------------------------------------------*/

/* Grows with every change of the model (NULL: of any), from 1; renewals that change nothing but a
 * time are no change. */
uint64_t weir_store_revision(const weir_store *store, const char *model);

typedef struct weir_store_worker {
    const char *worker_id, *model;
    int role;
    uint64_t expires_ms, generation;
    bool is_superseded; /* its rank was started anew as another worker */
} weir_store_worker;

/* False when no such worker is alive at this time. */
bool weir_store_get_worker(const weir_store *store, const char *worker_id, uint64_t now_ms,
                           weir_store_worker *out);

/* Each calls `visit` for every record of the model (NULL: of all), newest first, until it returns
 * false. Nothing may be changed meanwhile. */
void weir_store_each_worker(const weir_store *store, const char *model,
                            bool (*visit)(void *context, const weir_store_worker *worker),
                            void *context);
void weir_store_each_version(const weir_store *store, const char *model,
                             bool (*visit)(void *context, const weir_store_version *version,
                                           size_t n_leases),
                             void *context);
void weir_store_each_source(const weir_store *store, const char *model,
                            bool (*visit)(void *context, const weir_store_source *source),
                            void *context);
/* Words by version, the newest number first. */
void weir_store_each_word(const weir_store *store, const char *model,
                          bool (*visit)(void *context, const char *model,
                                        const weir_store_word *word),
                          void *context);

typedef struct weir_store_totals {
    size_t n_workers, n_versions, n_shards, n_leases, n_sources, n_words;
    size_t n_bytes; /* of memory */
} weir_store_totals;
weir_store_totals weir_store_count(const weir_store *store);

/* What has come about since the store was opened or loaded, by whichever service: figures that only
 * grow. A request that is repeated changes nothing, and is not counted. */
typedef struct weir_store_events {
    uint64_t n_made, n_ready, n_released, n_aborted; /* versions */
    uint64_t n_shards, n_shard_bytes;                /* put in */
    uint64_t n_leases, n_renewed;                    /* leases: new; a living one once more */
    uint64_t n_given_back, n_expired; /* by their readers; by time, when that is noticed */
} weir_store_events;
weir_store_events weir_store_count_events(const weir_store *store);

/* Each of them as it comes about, for who tells people; renewals are none. */
typedef enum weir_store_news {
    WEIR_STORE_VERSION_MADE,
    WEIR_STORE_VERSION_READY,
    WEIR_STORE_VERSION_RELEASING,
    WEIR_STORE_VERSION_ABORTED,
    WEIR_STORE_WORKER_REGISTERED,
    WEIR_STORE_WORKER_GONE, /* its registration has ended: told when that is noticed */
    WEIR_STORE_WORKER_SUPERSEDED,
    WEIR_STORE_LEASE_EXPIRED, /* likewise: its reader has not given it back */
} weir_store_news;

typedef struct weir_store_notice {
    weir_store_news what;
    const weir_store_version *version; /* NULL of workers */
    const char *worker_id, *model;     /* NULL, of versions: worker_id */
    int role;                          /* of workers */
} weir_store_notice;

/* From now on; not saved. `hear` must leave the store as it is. */
void weir_store_listen(weir_store *store,
                       void (*hear)(void *context, const weir_store_notice *notice), void *context);

/* The whole store as bytes and back, for a directory that joins others or starts again. Gives *out
 * (weir_free()). A store made of it behaves as the one that it was made of. ERR_FORMAT: bytes that
 * no store wrote, ERR_UNSUPPORTED: of a newer Weir. */
weir_status weir_store_save(const weir_store *store, unsigned char **out, size_t *out_n);
weir_status weir_store_load(const weir_store_options *options, const unsigned char *bytes, size_t n,
                            weir_store **out);

#endif
