/* SPDX-License-Identifier: Apache-2.0 */
/* source_entry.h - what a worker says of itself, from a message to the store's record.
 *
 * Identity and metadata are kept as the bytes they came in: fields that this build does not know
 * survive. Where Weir's own descriptors are among them, the version that they name can be replaced:
 * a worker then need not send again what has not changed.
 *
 * Ownership  strings and bytes are the message's or the arena's.
 * Errors     ERR_INVALID, ERR_NO_MEMORY; ERR_NOT_FOUND: there is no entry to go on from.
 */
#ifndef WEIR_DIRECTORY_SOURCE_ENTRY_H
#define WEIR_DIRECTORY_SOURCE_ENTRY_H

#include "base/arena.h"
#include "directory/sidecar.h"
#include "directory/store.h"
#include "p2p.pb-c.h"

/* The version that an entry is made to name. */
typedef struct weir_source_of {
    uint64_t number;
    const char *uid;
} weir_source_of;

/* The message's entry; with `of`, of this version. */
weir_status weir_source_entry_read(const ModelExpress__P2p__PublishMetadataRequest *request,
                                   const weir_source_of *of, weir_arena *arena,
                                   weir_store_source *out);

/* Which entry a worker of Weir has: a stored one, or ERR_NOT_FOUND. */
typedef struct weir_source_whose {
    const char *worker_id, *model, *run, *role;
} weir_source_whose;
weir_status weir_source_entry_find(const weir_store *store, const weir_source_whose *whose,
                                   weir_arena *arena, const weir_store_source **out);
/* A stored entry, now READY; with `of`, of this version. */
weir_status weir_source_entry_again(const weir_store_source *stored, const weir_source_of *of,
                                    weir_arena *arena, weir_store_source *out);

#endif
