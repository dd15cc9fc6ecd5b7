/* SPDX-License-Identifier: Apache-2.0 */
/* store_record.h - the store's own records, for its source files alone.
 *
 * Every record is one block of the store's heap: the struct, then its strings. It is in the indexes
 * that find it and in the lists that order it; lists have their newest entry first, because that is
 * the one that is asked for. Shards alone keep their order.
 *
 *     model ─┬─ workers ── shards ──┐
 *            ├─ runs ─── versions ──┴─ slots, leases
 *            │      └─── histories ─── words
 *            └─ sources
 *
 * A worker's record outlives its expiry as long as shards or readers point to it; whether it counts
 * is a question of time (weir_store_is_live()).
 */
#ifndef WEIR_DIRECTORY_STORE_RECORD_H
#define WEIR_DIRECTORY_STORE_RECORD_H

#include "directory/store.h"
#include "directory/store_index.h"
#include "rpc/rpc_heap.h"

#define WEIR_STORE_MAX_NAME 255u
#define WEIR_STORE_MAX_TEXT 1023u
#define WEIR_STORE_MAX_TTL_S 86400u
#define WEIR_STORE_MAX_BYTES ((size_t)512 << 20)
#define WEIR_STORE_MAX_WORKERS 16384u
#define WEIR_STORE_MAX_VERSIONS 4096u
#define WEIR_STORE_MAX_VERSIONS_OF_MODEL (WEIR_STORE_MAX_VERSIONS / 4)
#define WEIR_STORE_MAX_SLOTS 1024u
#define WEIR_STORE_MAX_SHARDS 8192u /* of one version */
#define WEIR_STORE_MAX_LEASES 8192u /* of one version */
#define WEIR_STORE_MAX_SOURCES 16384u
#define WEIR_STORE_MAX_HISTORIES 64u /* of one run */
#define WEIR_STORE_MAX_WORDS 131072u
#define WEIR_STORE_MAX_SPANS 64u /* of one word */
#define WEIR_STORE_MAX_GONE 64u
#define WEIR_STORE_UID_BYTES 9u
#define WEIR_STORE_TRACE_BYTES 33u
#define WEIR_STORE_FORMAT 1u /* of snapshots */

typedef struct store_model {
    store_node node;
    store_link link;
    const char *name;
    uint64_t revision; /* 0: nothing has happened to it yet */
    size_t n_users;    /* records that point here: without any it goes */
    size_t n_source_bytes;
    store_link workers, versions, sources, runs;
} store_model;

typedef struct store_run {
    store_node node;
    store_link link;
    store_model *model;
    const char *name;
    store_link versions;  /* the greatest number first, then attempt; those without one last */
    store_link histories; /* the greatest number first */
    size_t n_versions, n_histories;
    uint64_t worded_at_ms; /* the last word */
} store_run;

typedef struct store_worker {
    store_node node;
    store_link link, of_model;
    store_model *model;
    store_link shards;
    const char *worker_id;
    int role;
    bool is_superseded;  /* its rank was started anew */
    bool has_old_shards; /* of what it was under the same id before */
    bool is_told_gone;   /* to who listens; not saved */
    uint64_t expires_ms, generation;
    size_t n_readers; /* leases that read from it */
} store_worker;

struct store_version;

typedef struct store_shard {
    weir_store_shard view; /* lists are given out as views: .next follows of_version */
    store_node node;
    store_link of_version, of_worker, of_slot;
    struct store_version *version;
    store_worker *worker;
    size_t slot;
    uint64_t generation; /* of the worker when it published */
    bool is_withdrawn;   /* its worker has taken it back: it counts no more */
} store_shard;

typedef struct store_lease {
    store_node node;
    store_link link;
    weir_store_lease view;
    const char *worker_id;
    struct store_version *version;
    store_worker *peer; /* NULL: the trainers are read */
} store_lease;

/* What acquiring needs to know of every slot, kept until `until_ms` or until it is forgotten. */
typedef struct store_coverage {
    uint64_t until_ms;               /* 0: not known */
    const weir_store_shard **shards; /* per slot; NULL: missing */
    const char **missing;
    size_t n_missing;
} store_coverage;

/* What was published into a slot, also when its shards are gone. */
typedef struct store_past {
    uint64_t generation; /* the greatest of its publishers; 0: there was none */
    uint64_t content;    /* a mark of it; 0: nobody has said */
    uint64_t worker;     /* likewise of who published last. In a version that is_restored, both are
                            what its ranks knew, until somebody has published there */
} store_past;

typedef struct store_version {
    weir_store_version view;
    store_node by_uid, by_key;
    store_link link, of_model, of_run;
    store_model *model;
    store_run *run;
    char uid[WEIR_STORE_UID_BYTES];
    char trace_id[WEIR_STORE_TRACE_BYTES];
    char layout_signature[WEIR_STORE_MAX_NAME + 1];
    char *reason;               /* a block of its own, NULL: "" */
    uint64_t touched_ms;        /* the last change */
    store_link *slots;          /* heads: the shards of each */
    store_past *pasts;          /* parallel */
    uint64_t begun_generation;  /* of the newest worker that there was */
    uint64_t closed_generation; /* workers up to this one are not of the start that publishes it */
    bool is_restored; /* from what its ranks knew, after the directory had lost its records */
    bool is_split;    /* ended by a rank of which nobody knew whether it was of the same start */
    uint16_t *slot_table;
    size_t n_slot_table; /* a power of two; entries are slot + 1, 0: none */
    store_coverage coverage;
    store_link shards, leases;
    size_t n_shards, n_leases, n_direct; /* n_direct: leases that read from the trainers */
} store_version;

typedef struct store_source {
    weir_store_source view;
    store_node by_id, by_worker, by_rank;
    store_link link, of_model;
    store_model *record_of;
    uint64_t stale_since_ms;
    size_t block_bytes;
    /* Side by side, because who looks for a peer goes through all that hold a version: */
    store_node by_version;
    store_worker *worker; /* its record, expired or not; NULL: there is none */
    uint64_t part_hash, host_hash;
    bool can_be_read; /* a replica's, with a part and an endpoint */
    bool is_superseded;
} store_source;

typedef struct store_history {
    store_link link;
    store_run *run;
    uint64_t number;
    store_link words;
    size_t n_words;
} store_history;

typedef struct store_word {
    weir_store_word view;
    store_node node;
    store_link link;
    store_history *history;
    size_t block_bytes;
} store_word;

/* A generator whose record was dropped. */
typedef struct store_gone_worker {
    char worker_id[WEIR_STORE_MAX_NAME + 1], model[WEIR_STORE_MAX_NAME + 1];
    uint64_t ended_at_ms;
} store_gone_worker;

struct weir_store {
    weir_store_options options;
    weir_rpc_heap heap;
    size_t used_bytes;
    uint64_t seed; /* of hashes */
    uint64_t n_uids, n_generations;
    uint64_t revision, gone_revision;
    uint64_t lease_due_ms; /* no lease ends before */
    store_index models, runs, workers, versions_by_uid, versions_by_key, shards, leases;
    store_index sources_by_id, sources_by_worker, sources_by_rank, sources_by_version, words;
    store_link all_models, all_workers, all_versions, all_sources;
    size_t n_workers, n_versions, n_shards, n_leases, n_sources, n_words;
    weir_store_events events;
    store_gone_worker gone[WEIR_STORE_MAX_GONE]; /* for people: in no snapshot */
    size_t n_gone;                               /* ever: the place of the next is n % most */
    void (*hear)(void *context, const weir_store_notice *notice); /* NULL: nobody */
    void *hear_context;
    const weir_store_shard
        *chosen[WEIR_STORE_MAX_SLOTS]; /* of the last grant that avoids workers */
};

/* ---- who listens -----------------------------------------------------------------------------*/

void weir_store_tell_version(const weir_store *store, weir_store_news what,
                             const store_version *version, const char *worker_id);
void weir_store_tell_worker(const weir_store *store, weir_store_news what,
                            const store_worker *worker);

/* ---- memory and names ------------------------------------------------------------------------*/

/* ERR_NO_MEMORY when the store is full. */
void *weir_store_alloc(weir_store *store, size_t n_bytes);
void weir_store_free(weir_store *store, void *block, size_t n_bytes);

/* ERR_INVALID "FIELD is required" for NULL and "", or when it is longer than a name may be. */
weir_status weir_store_check_name(const char *field, const char *name);
/* The same, but it may be NULL or "". */
weir_status weir_store_check_optional(const char *field, const char *name);
/* Copies to *at, moves *at behind it. */
const char *weir_store_put_text(char **at, const char *text);
/* "" for NULL. */
const char *weir_store_text(const char *text);

/* ---- models and runs -------------------------------------------------------------------------*/

store_model *weir_store_find_model(const weir_store *store, const char *name);
store_run *weir_store_find_run(const weir_store *store, const store_model *model, const char *name);
/* Gives it, made if need be. Whoever does not use it after all lets it go. NULL: no memory. */
store_model *weir_store_have_model(weir_store *store, const char *name);
store_run *weir_store_have_run(weir_store *store, store_model *model, const char *name);
/* Forgets it when nothing points to it. */
void weir_store_let_model(weir_store *store, store_model *model);
void weir_store_let_run(weir_store *store, store_run *run);
/* The model has changed. */
void weir_store_note_change(weir_store *store, store_model *model);

/* ---- workers ---------------------------------------------------------------------------------*/

/* Its record, expired or not; NULL: there is none. */
store_worker *weir_store_worker_record(const weir_store *store, const char *worker_id);
/* NULL when it is not registered or has expired. */
store_worker *weir_store_find_worker(const weir_store *store, const char *worker_id,
                                     uint64_t now_ms);
/* The registered worker that may touch this version; NULL with *out_status set and recorded. */
store_worker *weir_store_worker_for(const weir_store *store, const store_version *version,
                                    const char *worker_id, uint64_t now_ms,
                                    weir_status *out_status);
/* By its record, or by what its entries say as long as they are there; 0: none. */
uint64_t weir_store_known_generation(const weir_store *store, const char *worker_id,
                                     const char *model, bool *out_is_superseded);
/* Fills in a new record; NULL: no memory. */
store_worker *weir_store_add_worker(weir_store *store, store_model *model, const char *worker_id,
                                    int role);

/* ---- versions, shards and leases -------------------------------------------------------------*/

/* NULL, and nothing recorded. */
store_version *weir_store_version_record(const weir_store *store, const char *uid);
/* NULL with ERR_NOT_FOUND recorded. */
store_version *weir_store_find_version(const weir_store *store, const char *uid);
store_version *weir_store_version_of_key(const weir_store *store, const char *key);
/* A copy of the request under this uid, STAGING. Its names have been checked. */
weir_status weir_store_add_version(weir_store *store, const weir_store_version *request,
                                   const char *uid, uint64_t now_ms, store_version **out);
size_t weir_store_version_bytes(const weir_store_version *version); /* of its block */
/* As weir_store_create_version(), which run, number and attempt there is not yet, and a run's slots
 * have been checked. What has to go for it is the caller's to drop: *out_over, NULL: nothing. */
weir_status weir_store_begin_attempt(weir_store *store, const weir_store_version *request,
                                     uint64_t salt, uint64_t now_ms, store_version **out,
                                     store_version **out_over);
bool weir_store_is_same_request(const weir_store_version *a, const weir_store_version *b);
/* Takes over what no rank has said before. True: that changed it. */
bool weir_store_adopt(store_version *version, const weir_store_version *request);
/* Names and texts of a request alone. */
weir_status weir_store_check_version(const weir_store_version *request);
/* Every slot named and none twice. */
weir_status weir_store_check_slots(const weir_store_version *request);
/* RELEASING, or ABORTED. */
void weir_store_end_version(weir_store *store, store_version *version, weir_store_state state,
                            uint64_t now_ms);
weir_status weir_store_set_reason(weir_store *store, store_version *version, const char *reason);

/* n_slots: it is not one of them. */
size_t weir_store_find_slot(const store_version *version, const char *slot);
weir_status weir_store_add_shard(weir_store *store, store_version *version, store_worker *worker,
                                 size_t slot, const weir_store_shard *shard, uint64_t generation);
/* What a request says, or renews: the version is READY when that covers the last slot. */
weir_status weir_store_put_shard(weir_store *store, store_version *version, store_worker *worker,
                                 size_t slot, const weir_store_shard *shard, uint64_t now_ms);
weir_status weir_store_check_shard(const weir_store_shard *shard);
/* Tells contents apart, on every directory alike; 0 of "". */
weir_status weir_store_mark_content(const char *content, uint64_t *out);
/* What a request knows of a slot, of the worker and the content. */
store_past weir_store_past_in(const weir_store_version *request, size_t slot);
/* Takes over what nobody has told of it before. */
void weir_store_restore_pasts(store_version *version, const weir_store_version *request);
/* The same content; where one of them has none, the same worker. */
bool weir_store_is_of_past(const store_past *past, const store_past *offered);
store_shard *weir_store_find_shard(const weir_store *store, const store_version *version,
                                   size_t slot, const char *worker_id);
void weir_store_drop_shard(weir_store *store, store_shard *shard);
/* Of a worker that is alive, not superseded, and the one that published it. */
bool weir_store_is_live(const store_shard *shard, uint64_t now_ms);

bool weir_store_has_live_lease(const store_version *version, uint64_t now_ms);
store_lease *weir_store_find_lease(const weir_store *store, const store_version *version,
                                   const char *worker_id);
/* ERR_NO_MEMORY when no new lease fits. */
weir_status weir_store_check_room(const store_version *version, uint64_t now_ms);
/* Of the version and the worker, made if need be, with `peer`. */
weir_status weir_store_put_lease(weir_store *store, store_version *version, const char *worker_id,
                                 store_worker *peer, uint64_t expires_ms, store_lease **out);
void weir_store_drop_leases(weir_store *store, store_version *version);
uint64_t weir_store_ttl_end(uint32_t ttl_s, uint64_t now_ms);

/* What is known of the slots at this time; valid until the store changes. */
const store_coverage *weir_store_cover(store_version *version, uint64_t now_ms);
/* A live replica worker that holds the version can be read from. */
bool weir_store_has_holder(const weir_store *store, const store_version *version, uint64_t now_ms);
/* Or one that fell silent a short while ago, and may come back. */
bool weir_store_may_have_holder(const weir_store *store, const store_version *version,
                                uint64_t now_ms);
bool weir_store_has_direct_reader(const store_version *version, uint64_t now_ms);

/* ---- sources and words -----------------------------------------------------------------------*/

uint64_t weir_store_worker_hash(const weir_store *store, const char *worker_id);
/* A copy; its names have been checked and no such source is there. NULL: no memory. */
store_source *weir_store_add_source(weir_store *store, store_model *model,
                                    const weir_store_source *source);
/* Likewise; the history's list ends with it. */
store_word *weir_store_add_word(weir_store *store, store_history *history,
                                const weir_store_word *word);
store_word *weir_store_find_word(const weir_store *store, const store_history *history,
                                 const weir_store_word *word);
store_history *weir_store_add_history(weir_store *store, store_run *run, uint64_t number);
weir_status weir_store_check_source(const weir_store_source *source);
/* NULL: none. */
store_source *weir_store_find_source(const weir_store *store, const char *source_id,
                                     const char *worker_id);
size_t weir_store_source_bytes(const weir_store_source *source); /* of its block */
weir_status weir_store_check_word(const weir_store_word *word);

/* ---- sweeping and dropping -------------------------------------------------------------------*/

void weir_store_sweep_leases(weir_store *store, uint64_t now_ms);
void weir_store_sweep_workers(weir_store *store, uint64_t now_ms);
void weir_store_sweep_versions(weir_store *store, uint64_t now_ms);
void weir_store_sweep_sources(weir_store *store, uint64_t now_ms);
void weir_store_sweep_words(weir_store *store, uint64_t now_ms);
void weir_store_drop_workers(weir_store *store); /* all of them, after all versions */
void weir_store_drop_versions(weir_store *store);
void weir_store_drop_version(weir_store *store, store_version *version);
bool weir_store_has_live_shard(const store_version *version, uint64_t now_ms);
/* Nothing has changed for so long, and no publisher was registered. */
bool weir_store_is_quiet_for(const store_version *version, uint64_t ms, uint64_t now_ms);
/* Before a version of this model is added: gives the one that has to go for it, NULL: none. Of what
 * was released or aborted, and of which nobody has or reads anything, the one that was made first;
 * else of those abandoned. ERR_NO_MEMORY: none may go. */
weir_status weir_store_make_room(const weir_store *store, const char *model, uint64_t now_ms,
                                 store_version **out_over);
/* This version is READY: earlier ones of its run that only replicas have are RELEASING. */
void weir_store_release_earlier(weir_store *store, const store_version *version, uint64_t now_ms);
void weir_store_drop_sources(weir_store *store);
void weir_store_drop_words(weir_store *store);

#endif
