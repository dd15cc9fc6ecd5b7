/* SPDX-License-Identifier: Apache-2.0 */
/* replica.h - a replica worker as its stops see it: its live parameters, the sources it knows, and
 * the version it holds.
 *
 * Data goes discover -> transfer -> install -> postprocess -> ack; only refit.c calls the stops.
 * What a refit needs is kept from one to the next: connections, remote regions, the plan.
 */
#ifndef WEIR_REFIT_REPLICA_H
#define WEIR_REFIT_REPLICA_H

#include <pthread.h>

#include "base/arena.h"
#include "base/error.h"
#include "directory/service.h"
#include "refit/attend.h"
#include "refit/catch.h"
#include "refit/landing.h"
#include "refit/loader.h"
#include "refit/remote.h"
#include "refit/settings.h"
#include "refit/worker.h"

#define WEIR_MAX_AVOIDED 8u

/* What stop 5 gives: a leased version, its sources connected, and the copies to make. */
typedef struct weir_discovery {
    uint64_t version;
    char uid[WEIR_ID_BYTES];
    unsigned attempt; /* of that number; 0: not said */
    char lease_id[WEIR_ID_BYTES];
    size_t n_shards;       /* of it, in replica->shards; 0: its trainers are gone */
    weir_peer_record peer; /* a replica to read from instead; worker_id "": none */
    char avoid[WEIR_MAX_AVOIDED][WEIR_NAME_BYTES]; /* workers that could not be read */
    size_t n_avoid;
    bool shuns_trainers; /* they are among them */
} weir_discovery;

/* How far the groups of a participant have been read. */
typedef struct weir_group_reading {
    bool joined;    /* it counts on this reader until it hears otherwise */
    bool done;      /* and has heard that all were read */
    bool held_back; /* it waits for others: for room in the loader, for its turn */
    uint32_t round; /* of the trainer's; 0: none has begun */
    size_t part;    /* of the participant's: asked for, or being read */
    bool is_told;   /* of what is broadcast: in which of its groups this worker stands */
    bool is_joined; /* all others stand in them, too */
    uint32_t group; /* which one is asked for next: those before it are made */
    uint32_t turn;  /* which one is caught next */
    uint64_t done_bytes;
    unsigned wait_us; /* from one question to the next */
    weir_deadline ask_at;
} weir_group_reading;

/* A source that takes part in a refit. Its parts and reads are of the schedule's landing. */
typedef struct weir_participant {
    char slot[WEIR_NAME_BYTES];
    weir_remote *remote;
    uint64_t layout_generation; /* of the layout that the plan was made from */
    weir_transfer *transfer;
    size_t first_part, n_parts;
    size_t first_read, n_reads;
    weir_group_reading reading;        /* of a version that passes through a window */
    double read_begun_s, read_ended_s; /* of its bytes, by weir_now_s(); 0: not yet */
    uint64_t read_bytes;
    uint64_t all_bytes;          /* that there are to read of it */
    weir_attendance *attendance; /* of a source that pushes */
} weir_participant;

/* The plan of the last refit and what was made from it: kept while the sources' signature stays the
 * same, whoever they are. */
typedef struct weir_schedule {
    char signature[33];             /* of the sources' plan, that this one was made from */
    weir_participant *participants; /* one per expected slot */
    size_t n_participants;
    weir_plan *plan;
    const weir_plan_copy *planned; /* n_copies, sorted by source, then by group */
    size_t n_copies;
    uint64_t n_bytes;
    weir_landing landing; /* of sources that are read */
    bool pushed;          /* the sources push: `planned` says where bytes go, nobody reads */
    bool of_peer;         /* the one participant is a replica */
    bool loads;           /* what is read are a checkpoint's tensors, which the loader converts */
    weir_remote *differs; /* the source whose bytes were not what it had published, at the last
                             verification that failed */
} weir_schedule;

/* Steps of a pushed version that may be on their way through a staged replica at once. */
#define WEIR_REPLICA_WINDOWS 2u

/* What was held before the last install, while its bytes are still beside the parameters. */
typedef struct weir_way_back {
    bool is_there;
    bool of_peer; /* the schedule by which they changed places */
    weir_replica_state state;
    uint64_t version;
    char version_uid[WEIR_ID_BYTES];
    unsigned attempt;
    weir_source_record told;
} weir_way_back;

struct weir_replica {
    weir_worker worker;
    weir_install_mode mode;
    weir_engine_hooks hooks;
    weir_status (*agree)(void *context, uint64_t version, weir_status mine);
    weir_settings settings;
    char *listen;
    weir_replica_mesh mesh;         /* of the engine; every field 1 of one that has one worker */
    uint32_t mesh_worker;           /* which of its workers this is */
    weir_mesh_place place;          /* of this worker */
    char mesh_text[WEIR_MESH_TEXT]; /* "" of an engine of one worker */
    bool reads_trainers_alone, serves_nobody;
    unsigned peer_wait_ms;
    char part[WEIR_ID_BYTES]; /* workers of equal parts can read each other; "": none can */

    /* The engine's memory. */
    uint32_t asked_memory; /* for weir_replica_allocate() */
    unsigned asked_device;
    weir_work *work; /* of the kind that the parameters lie in; NULL until they are registered */
    weir_arena arena;
    weir_tensor *described; /* the checkpoint that config.json describes; NULL for registered */
    weir_mapping *mapping;  /* parameters, like this */
    void *owned;            /* their memory when no transport gave it */
    uint64_t owned_bytes;
    weir_tensor *live;            /* n_parameters */
    const uint64_t *filled_bytes; /* parallel, of an allocated part of an engine; NULL: not known */
    weir_parameter *wanted;       /* parallel: names, dtypes, shapes, tags */
    size_t n_parameters;
    const weir_derived *derived;
    size_t n_derived;
    uint64_t *staging_offset; /* parallel to live */
    unsigned char *staging;   /* host memory; NULL until the first staged install; afterwards it
                                 holds the bytes that the last install replaced */
    uint64_t staging_bytes;
    void *bounce; /* WEIR_BOUNCE_BYTES beside parameters on a GPU; NULL until they are needed */
    weir_region *windows;  /* of pushed versions, staged: WEIR_REPLICA_WINDOWS of them; NULL until
                              the first one */
    uint64_t window_bytes; /* each */
    weir_undo undo;
    weir_buffer places; /* packed, as the last Ready carried them */
    weir_wire wire;
    weir_loader *loader;     /* NULL: trainers send what is live here */
    bool loads_by_sender;    /* its groups are each one trainer rank's */
    unsigned char **targets; /* parallel to live, of a loader: where it writes each */
    weir_task *derive;       /* postprocessing, digests of what it made */

    /* What is known of the sources. */
    weir_remote **remotes; /* all that were ever met and not closed */
    size_t n_remotes;
    uint64_t n_prepared;
    weir_schedule schedule;
    weir_schedule other;   /* of the trainers while a replica is read, and the other way round */
    weir_source_ref *refs; /* room for one listing of each */
    weir_shard_record *shards;
    char missed_uid[WEIR_ID_BYTES]; /* of a version that this replica came too late for; "": none */
    uint64_t missed;
    char aborted_uid[WEIR_ID_BYTES]; /* the last version of which it was told that; "": none */
    uint64_t aborted;
    weir_buffer answer; /* to what was asked for last of a window */
    weir_catch caught;

    /* What is held, and told to others. */
    char source_id[WEIR_ID_BYTES]; /* of its entry in the directory; "" before the first */
    weir_source_record told;       /* the last entry of a version that it holds */
    weir_replica_state state;
    uint64_t version;
    char version_uid[WEIR_ID_BYTES];
    unsigned attempt; /* of that version; 0: not said */
    weir_way_back back;
    pthread_mutex_t lock;              /* what follows, against the manifest service */
    char held_uid[WEIR_ID_BYTES];      /* "" while the live parameters are in motion */
    char published_uid[WEIR_ID_BYTES]; /* that the manifest was made for */
    weir_buffer manifest;
    char manifest_digest[80];
    weir_manifest_service *service;
    weir_link serving;     /* ops NULL: nobody can read this replica */
    weir_region **regions; /* of the live parameters: one, or one each */
    size_t n_regions;
    weir_shard *held;          /* the layout that others see */
    weir_digest *held_digests; /* parallel */
    bool is_digested;          /* they are of the version that was installed last */
    weir_buffer held_layout;
    char signature[33];
    weir_arena scratch; /* of one refit */
};

/* One install's search for a source that can be read: a source that is gone may come back, another
 * may get the version, and a rank that is gone is no source once its lease is over. */
typedef struct weir_search {
    uint64_t version; /* may be WEIR_LATEST */
    weir_retry retry; /* of all of it; its deadline is the install's */
    bool has_lost;
    weir_error_line lost; /* why the last source could not be read */
} weir_search;
/* Whether to go on: a source is gone, and there is time left. Sleeps a little, and keeps the
 * calling thread's last error. ERR_CANCELLED meanwhile; else `failed`: do not. */
weir_status weir_search_again(weir_replica *replica, weir_search *search, weir_status failed);

/* discover.c, stop 5. On failure no lease is left. */
weir_status weir_stop_discover(weir_replica *replica, weir_search *search, weir_discovery *out);
/* Gives the lease back; failures are logged, the lease then expires. */
void weir_discovery_release(weir_replica *replica, const weir_discovery *discovery);

/* A source could not be read, as `failed` and the calling thread's last error say: finds another
 * one of the same version, under the same lease, and plans. When there is none: `failed`, and the
 * error as it was. */
weir_status weir_discover_elsewhere(weir_replica *replica, weir_discovery *discovery,
                                    weir_status failed);

/* Bytes that differ say nothing of a source that is gone, or has taken the version back: its memory
 * may be another's. ERR_PEER_LOST names it then; else `failed`, and the error as it was. */
weir_status weir_discover_gone(weir_replica *replica, const weir_discovery *discovery,
                               weir_status failed);

/* Ends what the participants keep. */
void weir_schedule_dismiss(weir_schedule *schedule);
/* All of it. */
void weir_schedule_close(weir_schedule *schedule);
/* Makes the schedule that of a replica that is read, or of the trainers. */
void weir_schedule_choose(weir_replica *replica, bool of_peer);

/* transfer.c, stop 6: every copy's bytes are at its destination (not yet verified). *out_landed:
 * whether a byte may have landed, whatever the status. */
weir_status weir_stop_transfer(weir_replica *replica, const weir_discovery *discovery,
                               bool *out_landed);

/* Says how far the reads have come, and whom they wait for. */
void weir_transfer_note(const weir_replica *replica, uint64_t version, uint64_t done_bytes);

/* group_ask.c, stop 6 of a version that passes through a window: what is said. */
bool weir_group_any(const weir_schedule *schedule);
/* Tells all participants that this replica reads the version. ERR_NOT_FOUND: it comes too late. */
weir_status weir_group_join(weir_replica *replica, const weir_discovery *discovery);
/* Tells those who still count on this replica that it has given up: the calling thread's last error
 * says why. */
void weir_group_leave(weir_replica *replica, const weir_discovery *discovery);
/* The version is held: nobody has to be told. */
void weir_group_keep(weir_replica *replica);

/* group_transfer.c: every copy's bytes are at its destination, and verified. Transfers that are
 * under way after a failure are the caller's to end. */
weir_status weir_group_transfer(weir_replica *replica, const weir_discovery *discovery,
                                bool *out_landed);

/* attend.c, stop 6 of a version that is pushed: the same, and verified; staged: written over the
 * undo log. *out_paused: whether the engine was paused; *out_landed: whether bytes may have landed,
 * whatever the status. */
weir_status weir_stop_attend(weir_replica *replica, const weir_discovery *discovery,
                             bool *out_paused, bool *out_landed);
/* Tells the trainer ranks that pushed how the install went; the calling thread's last error says
 * why not. */
void weir_attend_tell(weir_replica *replica, const weir_report *report, weir_status status);

/* refit.c, for revert.c as well */
/* What this worker and the others of its replica came to together. */
weir_status weir_refit_agree(weir_replica *replica, uint64_t version, weir_status mine);
/* The live parameters hold a mixture, and say so until a whole version is in. `doing`: what failed,
 * "install of version 7". */
void weir_refit_mark_unusable(weir_replica *replica, const char *doing);

/* revert.c: the way back of a staged install. */
/* A version is in: what was held before it lies beside the parameters. Before that is forgotten. */
void weir_way_back_keep(weir_replica *replica);
/* It will be written over, or the plan by which it lies there goes. */
void weir_way_back_forget(weir_replica *replica);

/* install.c */
/* The live parameters are about to change: pauses the engine, stops handing out the manifest. */
weir_status weir_live_begin(weir_replica *replica);
/* They hold one whole version again: the engine resumes. */
void weir_live_end(weir_replica *replica);
/* Stop 7: verifies what landed, then (staged) swaps it in. ERR_PARTIAL when a GPU failed half way:
 * the live parameters hold a mixture. */
weir_status weir_stop_install(weir_replica *replica);
/* Undoes a staged install: the old bytes are back at their addresses. Host memory cannot fail. */
weir_status weir_install_undo(weir_replica *replica);

/* load.c: a checkpoint on its way through the loader. */
/* Opens it once the parameters are registered; nothing to do where kernel bytes are read. */
weir_status weir_load_open(weir_replica *replica);
/* What trainers are to send, and to whom: this replica's own parameters and place, or a
 * checkpoint's tensors, which are for anyone. */
const weir_parameter *weir_load_wanted(const weir_replica *replica, size_t *out_n);
const weir_mesh_place *weir_load_place(const weir_replica *replica);
/* The mesh of the engines that sources must have published for. */
const char *weir_load_mesh(const weir_replica *replica);
/* ERR_LAYOUT when one side means a checkpoint and the other kernel bytes. */
weir_status weir_load_check_wire(const weir_replica *replica, const weir_remote *remote);
/* Once it is planned: of a version that several ranks push, groups are each one rank's, whose bytes
 * all come before those of the next; else they are whole layers. */
weir_status weir_load_arrange(weir_replica *replica);
/* Before the first byte of a refit: takes the buffers, and counts the parts of each group. */
weir_status weir_load_begin(weir_replica *replica);
/* Converts the groups that have landed. *out_any: there were some. */
weir_status weir_load_convert(weir_replica *replica, bool *out_any);

/* exchange.c: staging, and how it changes places with the live parameters. */
/* Memory for staged installs, taken once, and what a plan that is not known yet asks for. */
weir_status weir_staging_open(weir_replica *replica);
/* Every byte that the plan fills changes places with the staged one; the other bytes of the
 * parameters are not touched. Doing it twice is doing nothing. Host memory cannot fail. */
weir_status weir_exchange(weir_replica *replica);
/* The bounce buffer, taken once. */
weir_status weir_bounce_open(weir_replica *replica);
/* Windows and undo log for pushed versions, taken once; forgets what the log holds. */
weir_status weir_windows_open(weir_replica *replica);
unsigned char *weir_window_of(const weir_replica *replica, uint32_t step);
/* All of these. */
void weir_staging_close(weir_replica *replica);

/* postprocess.c, stop 8: derived parameters, then the engine's hook. */
weir_status weir_stop_postprocess(weir_replica *replica, uint64_t version);
weir_status weir_derived_refresh(weir_replica *replica);
/* The hook alone: what the engine says to what the parameters hold. */
weir_status weir_engine_take(weir_replica *replica, uint64_t version);

/* ack.c, stop 9: tells the directory what is held and how long each stop took. The install stands
 * whatever happens here: what could not be said now, the keeper repeats. */
void weir_stop_ack(weir_replica *replica, const weir_discovery *discovery,
                   const weir_report *report);
/* A version that was held is not any more, which is told as what holds now. */
void weir_stop_take_back(weir_replica *replica, uint64_t version, const char *uid);
/* Instead of it: says why the leased version is not held, which the calling thread's last error
 * does, and gives the lease back. */
void weir_stop_refuse(weir_replica *replica, const weir_discovery *discovery, weir_status status);

/* holding.c: lets others read this replica. */
/* As weir_replica_allocate(), in memory that outlives this replica: `tensors` are the parameters
 * that config.json describes, in their order. ERR_LAYOUT where they are others. Keeps the memory.
 */
weir_status weir_replica_adopt(weir_replica *replica, const weir_tensor *tensors, size_t n_tensors);
/* In the thread that installs, before it does: each wait from here on is bounded by timeout_ms, and
 * a cancel that no call has heard is forgotten. */
void weir_replica_rebound(weir_replica *replica, unsigned timeout_ms);
/* Packs into replica->places where a source's shards go: to `targets`, parallel to them, or through
 * the windows. */
weir_status weir_replica_places(weir_replica *replica, const weir_shard *shards, size_t n_shards,
                                unsigned char *const *targets, weir_arena *scratch);
weir_status weir_holding_open(weir_replica *replica);
/* Digests what others will see of the version that has just been verified, before the engine
 * touches it. Failures are logged: then nobody can read it. */
void weir_holding_digest(weir_replica *replica);
/* The same of what lies in the parameters, wherever it came from. */
void weir_holding_digest_anew(weir_replica *replica);
/* Hands out a manifest of the version that is held. Failures are logged: then nobody can read. */
void weir_holding_publish(weir_replica *replica, const char *uid);
/* The manifest of the version before is valid again. */
void weir_holding_restore(weir_replica *replica);
void weir_holding_withdraw(weir_replica *replica);
/* Others may read this version here. */
bool weir_holding_serves(const weir_replica *replica, const char *uid);
void weir_holding_close(weir_replica *replica);

#endif
