/* SPDX-License-Identifier: Apache-2.0 */
/* trainer.h - a trainer rank as its stops see it: what is bound, what is staged, what is published.
 *
 * Data goes source -> stage -> slot -> publish. Each stop takes the struct that the stop before
 * filled; only refit.c calls them.
 */
#ifndef WEIR_REFIT_TRAINER_H
#define WEIR_REFIT_TRAINER_H

#include <pthread.h>

#include "base/arena.h"
#include "directory/service.h"
#include "directory/sha256.h"
#include "refit/attempts.h"
#include "refit/manifest.h"
#include "refit/settings.h"
#include "refit/trace.h"
#include "refit/work.h"
#include "refit/worker.h"

/* One entry of the mapping that this rank owns. */
typedef struct weir_owned_entry {
    const weir_map_entry *entry; /* bound to the registered tensors */
    size_t first_shard;          /* its outputs are shards first_shard … */
} weir_owned_entry;

/* One conversion of this rank: where its outputs go. */
typedef struct weir_stage_job {
    weir_convert_args args; /* sources bound; outputs, digests and choices are stage.c's to set */
    uint32_t shards[WEIR_MAX_OUTPUTS];
    uint64_t offsets[WEIR_MAX_OUTPUTS]; /* bytes within the shard */
    bool borrows;                       /* its rows are whole only once other ranks' have come */
    bool by_magnitude;                  /* sharded.c converts it, not stage.c */
    uint32_t number;                    /* of the share's jobs */
    uint32_t
        key; /* of the group that it is broadcast with: group_cast.h. 0 of a rank without a mesh */
} weir_stage_job;

/* What stop 1 gives: this rank's part of the model. Planned once per layout. */
typedef struct weir_source {
    weir_arena arena;
    weir_mapping *mapping;
    struct weir_sharded *sharded; /* NULL of a rank that has whole tensors */
    weir_owned_entry *owned;      /* whole entries; none of a rank of a mesh */
    size_t n_owned;
    weir_stage_job *jobs;
    size_t n_jobs;
    weir_digest *job_digests; /* n_jobs * WEIR_MAX_OUTPUTS */
    weir_shard *shards;       /* the slot's layout: offsets within region 0, or the window's */
    size_t n_shards;
    uint64_t slot_bytes; /* with the alignment between shards */
    uint64_t n_bytes;    /* of the shards alone */
    char signature[33];
    weir_buffer layout;  /* packed, as manifests carry it */
    uint64_t generation; /* grows with every layout that is bound */
} weir_source;

typedef enum weir_slot_state {
    WEIR_SLOT_FREE = 0,
    WEIR_SLOT_FILLING,
    WEIR_SLOT_SEALED,
    WEIR_SLOT_PUBLISHED,
    WEIR_SLOT_RETIRED /* unpublished, a reader may still hold a lease */
} weir_slot_state;

/* One version's bytes. FREE -> FILLING -> SEALED -> PUBLISHED -> RETIRED -> FREE. */
typedef struct weir_slot {
    weir_slot_state state;
    weir_region *region; /* NULL of what is pushed, or broadcast */
    unsigned char *data;
    uint64_t pinned_bytes; /* not 0: pinned for a GPU */
    uint64_t plain_bytes;  /* not 0: memory of the trainer's work, which is broadcast */
    weir_shard *shards;    /* the source's shards with this version's digests */
    weir_digest *digests;
    uint64_t version;
    char uid[WEIR_ID_BYTES]; /* of the directory's version record */
    weir_buffer manifest;
    char manifest_digest[WEIR_SHA256_HEX];
    bool is_ready; /* the version was READY when this rank's shard came in */
} weir_slot;

#define WEIR_MAX_SLOTS 8

struct weir_trainer {
    weir_worker worker;
    weir_directory *embedded; /* NULL when the directory is another process */
    char *directory;          /* its address, or several */
    uint32_t rank, n_ranks;
    char source_id[WEIR_ID_BYTES]; /* of its entry in the directory; "" before the first */
    char slot_name[32];            /* "rank-0": this rank's name among the expected slots */
    char **slot_names;             /* of all ranks */
    weir_settings settings;
    weir_wire wire;
    bool is_sharded;                    /* mesh or replica_mesh was given: */
    bool is_explicit;                   /* and no mesh says who holds what: */
    struct weir_registries *registries; /* ranks tell each other; NULL of a mesh */
    weir_trainer_mesh mesh;
    weir_replica_mesh replica_mesh;
    char mesh_text[WEIR_MESH_TEXT]; /* of one replica; "" of a trainer that is not */
    char plan[WEIR_PLAN_TEXT];      /* that its share follows from: of all ranks the same */
    weir_delivery asked_delivery;
    uint32_t memory; /* where the tensors lie; 0: none were registered yet */
    bool pushes;     /* slots are empty: weir_trainer_wait() sends */
    bool casts;      /* the groups of its window are broadcast */
    bool scan_first;
    void *stream; /* of the caller */
    uint64_t window_bytes;
    char *listen;
    weir_work *work; /* PULL of tensors on a GPU: converts into slots. Of a window that is
                        broadcast: has its buffers */
    weir_task *stage;
    struct weir_push *push;     /* NULL until tensors that are pushed were registered */
    struct weir_window *window; /* NULL unless versions pass through one */
    char **ignore;
    size_t n_ignore;
    bool keep_masters;
    struct weir_rank_plan *rank_plan; /* of a rank of a mesh, once it has registered */
    weir_source source;
    struct weir_border *border; /* rows that ranks of a mesh lend each other; NULL: none */
    weir_source_ref *rank_refs; /* what ranks.c lists; NULL before it has */
    weir_arena scratch;         /* of one publish */
    weir_slot slots[WEIR_MAX_SLOTS];
    unsigned n_slots;
    bool has_published;
    uint64_t last_version;
    char announced[33];   /* the signature that the directory has of this rank's entry; "": none */
    weir_attempt attempt; /* that was published last, where the directory knows of none */
    char given_trace[WEIR_TRACE_BYTES]; /* that all versions belong to; "": each to its own */
    pthread_mutex_t lock;     /* slots' uid and manifest, and this, against the manifest service: */
    const weir_slot *pending; /* being published: its uid is not known yet */
    weir_manifest_service *service;
};

/* source.c: binds tensors to the family's rows; a layout that is bound already only takes new
 * pointers. On failure the old binding is gone. */
weir_status weir_source_bind(weir_trainer *trainer, const weir_tensor *tensors, size_t n_tensors);
/* The same of a rank of a mesh. */
weir_status weir_source_bind_shards(weir_trainer *trainer, const weir_tensor_shard *shards,
                                    size_t n_shards);
/* Bytes of shard `i` are laid out behind those before it. */
weir_status weir_source_lay_out(weir_source *source, weir_shard *shard);
/* From one shard's first byte to where the next can begin. */
uint64_t weir_source_align(uint64_t n_bytes);
void weir_source_release(weir_source *source);
/* Stop 1: this rank's tensors, checked to be there. */
weir_status weir_stop_source(weir_trainer *trainer);

/* slot.c */
/* A FREE slot, turned FILLING: waits until the oldest published one has no readers left. */
weir_status weir_slot_acquire(weir_trainer *trainer, weir_slot **out);
/* Stop 3: FILLING -> SEALED, nothing changes its bytes until it is FREE again. */
weir_status weir_stop_slot(weir_trainer *trainer, weir_slot *slot, uint64_t version);
/* Takes every published slot back, each once it has no readers left. */
weir_status weir_slots_retire(weir_trainer *trainer);
/* Nobody tells the directory of it again; it goes by the uid that it has there. */
void weir_slot_stop_offering(weir_trainer *trainer, weir_slot *slot);
/* Takes one back; ERR_TIMED_OUT says who reads it still. */
weir_status weir_slot_retire(weir_trainer *trainer, weir_slot *slot, unsigned bound_ms);
/* Takes back a version that has passed through a window. */
weir_status weir_slot_retire_sent(weir_trainer *trainer, uint64_t version);
/* Tells the directory that the published versions go, and waits until nobody reads them, but for
 * the last tenth of what weir_worker_hurry() leaves. */
void weir_slots_withdraw(weir_trainer *trainer);
/* Gives a slot back whatever its state: its manifest can no longer be had. */
void weir_slot_drop(weir_trainer *trainer, weir_slot *slot);
void weir_slots_release(weir_trainer *trainer);

/* serve.c, or its absence: where this rank's tensors lie decides how they are delivered. Opens what
 * that takes; what the last registration opened and this one does not need is closed. */
weir_status weir_delivery_settle(weir_trainer *trainer, const weir_tensor *tensors,
                                 size_t n_tensors);
void weir_delivery_close(weir_trainer *trainer);
/* What moves the bytes of slots, opened at the first call. */
weir_status weir_delivery_link(weir_trainer *trainer, weir_link *out);
/* ERR_LAYOUT when tied sources that the mapping could not read differ. */
weir_status weir_delivery_check_tied(weir_trainer *trainer);
/* What reads the tensors from now on waits for what the caller has queued. */
weir_status weir_delivery_follow(weir_trainer *trainer);
/* Stop 6 of a version that is pushed: sends it to n_replicas. */
weir_status weir_delivery_serve(weir_trainer *trainer, uint64_t version, unsigned n_replicas,
                                unsigned timeout_ms);

/* stage.c, stop 2: converts every owned entry into the slot; of a version that is pushed, looks for
 * what is not finite when that was asked for. */
weir_status weir_stop_stage(weir_trainer *trainer, weir_slot *slot);
/* Converts jobs that lie in the slot's region into it, and adds to the digests of their shards. */
weir_status weir_stage_jobs(weir_trainer *trainer, const weir_slot *slot, size_t first_job,
                            size_t n_jobs, weir_digest *digests);

/* publish.c, stop 4: SEALED -> PUBLISHED. */
weir_status weir_stop_publish(weir_trainer *trainer, weir_slot *slot);
/* A version that will never be READY: who waits for it hears why. Failures are logged. */
void weir_publish_abort(weir_trainer *trainer, uint64_t version, const char *uid,
                        const char *reason);
/* The same of one that may be READY, and it is said: OK also when the version is over already. */
weir_status weir_publish_take_back(weir_trainer *trainer, const weir_slot *slot, const char *reason,
                                   weir_deadline deadline);
/* The same of one that this rank has not published but another one has; the calling thread's last
 * error says why. */
void weir_publish_give_up(weir_trainer *trainer, uint64_t version);

#endif
