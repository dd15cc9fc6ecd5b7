/* SPDX-License-Identifier: Apache-2.0 */
/* remote.h - one source as its readers know it: connected once, its regions imported once.
 *
 * Kept from refit to refit under (worker id, slot). A new version brings a new manifest; when its
 * address, keys and layout are the ones known, nothing is connected, imported or decoded again.
 */
#ifndef WEIR_REFIT_REMOTE_H
#define WEIR_REFIT_REMOTE_H

#include "base/arena.h"
#include "refit/manifest.h"
#include "refit/matched.h"
#include "rpc/frame_link.h"

typedef struct weir_imported {
    weir_buffer key;
    weir_remote_region *remote;
    uint64_t used_at; /* the fetch that used it last */
} weir_imported;

typedef struct weir_remote {
    char worker_id[WEIR_NAME_BYTES];
    char slot[WEIR_NAME_BYTES];
    char who[2 * WEIR_NAME_BYTES]; /* "trainer rank 1 (worker trainer-1-9f3c12ab)" */
    weir_worker *worker;
    weir_link link;
    weir_peer *peer;       /* NULL until connected, and after a failure */
    weir_buffer address;   /* that peer, or push, was connected by */
    weir_frame_link *push; /* joined: its bytes are pushed, and peer and regions are not used */
    weir_imported *imported;
    size_t n_imported;
    uint64_t n_fetches;
    uint64_t used_at;                 /* the owner's: by when it was wanted last */
    weir_buffer layout;               /* that shards were decoded from */
    char engine_mesh[WEIR_MESH_TEXT]; /* that they are for; "": of one worker */
    weir_arena layout_arena;
    weir_shard *shards;      /* that this worker reads */
    const uint32_t *numbers; /* parallel: of each among all that it publishes, ascending */
    size_t n_shards, n_published;
    const char *first_metadata; /* of one of all that it publishes; "" of none */
    const uint32_t *group_ends; /* of what it publishes, which passes through a window; n_groups 0:
                                   all of it is there, and the digests are known */
    size_t n_groups;
    const uint64_t *group_bytes; /* parallel, of groups that are broadcast; NULL: they are read */
    const uint32_t *group_keys, *group_audiences;
    weir_matched *casts[WEIR_MAX_AUDIENCES]; /* catch.c: its broadcast groups that this worker
                                                stands in, by audience */
    bool is_casting;                         /* not all that they were for has ended */
    uint64_t layout_generation;              /* grows whenever the layout changed */
    char endpoint[WEIR_NAME_BYTES];          /* that the manifest came from */
    weir_buffer bytes;                       /* the manifest as it came */
    weir_arena arena;                        /* and decoded; both until the next fetch */
    weir_manifest manifest;
    weir_remote_region **regions; /* the manifest's, imported */
} weir_remote;

weir_status weir_remote_open(weir_worker *worker, const char *worker_id, const char *slot,
                             const char *who, weir_remote **out);
void weir_remote_close(weir_remote *remote); /* accepts NULL */

/* What a manifest must say, and where it is had. */
typedef struct weir_manifest_wish {
    const char *endpoint, *uid, *digest; /* digest NULL: as the endpoint gives it */
    uint64_t version;
    const char *transport;        /* NULL: any */
    const weir_mesh_place *place; /* of the worker that reads, always the same; NULL: its shards are
                                     wanted whosever they are */
    bool is_whole;                /* it must neither push nor pass through a window */
} weir_manifest_wish;

/* Fetches and checks the manifest, connects and imports what is not known yet: nothing of a version
 * that is broadcast, but that its transport can is seen to. */
weir_status weir_remote_fetch(weir_remote *remote, const weir_manifest_wish *wish);
/* Whether it still hands out the manifest that was fetched last, of this version. Not OK: the
 * calling thread's last error says why not. */
weir_status weir_remote_ask_again(weir_remote *remote, const char *uid);
/* Whether two sources hold the same parts at the same places, and give them alike: what is planned
 * for one of them holds for the other. */
bool weir_remote_layouts_equal(const weir_remote *a, const weir_remote *b);
/* Takes what the other side has said meanwhile: *out_news when a new version is there. A link that
 * has died is closed. */
void weir_remote_hear(weir_remote *remote, bool *out_news);
/* The first of its shards whose number is not below `number`; n_shards: there is none. */
size_t weir_remote_first_shard(const weir_remote *remote, uint32_t number);
/* The group that one of its shards is in; n_groups 0: 0. */
uint32_t weir_remote_group_of(const weir_remote *remote, size_t shard);
/* Begins to leave its broadcast groups, without waiting; they are to be left then: of several
 * remotes, before the first is left. */
void weir_remote_begin_leaving(weir_remote *remote, bool abort);
/* Leaves its broadcast groups. abort: what is under way is cancelled, and the others are told; else
 * all of it has ended here, and they go on with theirs. */
void weir_remote_leave_casts(weir_remote *remote, bool abort);
/* Forgets the connection, and leaves the broadcast groups: the next fetch makes new ones. */
void weir_remote_disconnect(weir_remote *remote);

#endif
