/* SPDX-License-Identifier: Apache-2.0 */
/* manifest.h - what one source holds of one version, as structs and as bytes.
 *
 * The bytes come from another process: decoding checks every number before it is used (boxes within
 * shapes less their padding, shards within regions, sizes that agree). The layout is a packed
 * message of its own: equal bytes mean an equal layout, so a second refit compares them and decodes
 * only keys and digests.
 *
 * Ownership  decoded manifests borrow from the arena; buffers are the caller's.
 * Errors     ERR_CORRUPT for bytes that do not decode, ERR_UNSUPPORTED for a newer format.
 */
#ifndef WEIR_REFIT_MANIFEST_H
#define WEIR_REFIT_MANIFEST_H

#include "base/arena.h"
#include "weir/mesh.h"
#include "weir/transport.h"

/* Bytes that grow and are kept: filling it again with as much allocates nothing. */
typedef struct weir_buffer {
    unsigned char *data;
    size_t n_bytes, capacity_bytes;
} weir_buffer;
weir_status weir_buffer_reserve(weir_buffer *buffer, size_t n_bytes);
void weir_buffer_free(weir_buffer *buffer);

/* Bytes of a plan's text, and a 0. */
#define WEIR_PLAN_TEXT 384

typedef struct weir_manifest_region {
    const void *key;
    size_t key_bytes;
    uint64_t n_bytes;
} weir_manifest_region;

typedef struct weir_manifest {
    const char *model, *run, *worker_id, *transport, *layout_signature;
    const char *push_address; /* NULL or "": its regions can be read; else they are none, and bytes
                                 are pushed to those who join there */
    const char *engine_mesh;  /* weir_replica_mesh_text() of the engines that it is for; NULL or "":
                                 of one worker */
    const char *plan;         /* weir_trainer.plan of a rank of a mesh; NULL or "": of none */
    uint64_t version;
    uint32_t rank, n_ranks;
    const void *address;
    size_t address_bytes;
    const weir_manifest_region *regions;
    size_t n_regions;
    const void *layout;
    size_t layout_bytes;
    const weir_digest *digests; /* one per shard of the layout; zero in groups */
    size_t n_digests;
    const uint32_t *group_ends; /* the version passes through a window, in groups of shards that
                                   follow each other: one past the last of each */
    size_t n_groups;            /* 0: all of it is there */
    /* Of groups that are broadcast, parallel to group_ends; NULL: they are read, and regions have
     * keys. Keys: layers, and tensors outside them, of all ranks of a version the same; ascending.
     */
    const uint64_t *group_bytes;
    const uint32_t *group_keys, *group_audiences;
} weir_manifest;

#define WEIR_GROUP_FORMAT 1u
#define WEIR_MAX_AUDIENCES 64u /* broadcast groups of one rank */

/* A reader's place in one of a rank's broadcast groups. */
typedef struct weir_membership {
    uint32_t audience; /* below WEIR_MAX_AUDIENCES */
    const void *key;   /* WEIR_GROUP_KEY_BYTES */
    uint32_t position; /* 1 … n_members - 1: rank 0 is the trainer's */
    uint32_t n_members;
} weir_membership;

/* What a reader that asked for a group of it is told. */
typedef struct weir_group_record {
    uint32_t state; /* weir_group_state, or what this build does not know */
    uint32_t round;
    const weir_digest *digests; /* of the group's shards, when it is there */
    size_t n_digests;
    const char *why;
    /* Of a group that is broadcast; format 0: it is read, and none of this is said. */
    uint32_t format;
    const char *run;
    uint64_t version;
    const char *version_uid;
    uint32_t group, n_groups;
    uint64_t n_bytes;
    const weir_membership *memberships; /* of the one that asked, until the round has begun */
    size_t n_memberships;
    bool left_out; /* a round is under way without the one that asked */
} weir_group_record;

/* Of a shard's name at most, without its 0. */
#define WEIR_LAYOUT_NAME_BYTES 4096

/* Packs all of the shards but their digests: equal bytes, equal layouts. `arena` is scratch.
 * ERR_INVALID for a name that is too long. */
weir_status weir_layout_encode(const weir_shard *shards, size_t n_shards, weir_arena *arena,
                               weir_buffer *out);
/* The shards of a layout, digests zero, allocated in `arena`. regions bound their offsets. */
weir_status weir_layout_decode(const void *bytes, size_t n_bytes,
                               const weir_manifest_region *regions, size_t n_regions,
                               weir_arena *arena, weir_shard **out, size_t *out_n_shards);

/* The shards of a layout that workers of one place read. */
typedef struct weir_layout_part {
    weir_shard *shards;
    uint32_t *numbers; /* of each among all that are published, ascending */
    size_t n_shards, n_published;
    const char *first_metadata; /* compile metadata of one of all that are published; "" of none */
} weir_layout_part;

/* As weir_layout_decode(), leaving out shards that are for workers of other places than `place`,
 * which are not looked at (NULL: none is left out). */
weir_status weir_layout_decode_part(const void *bytes, size_t n_bytes,
                                    const weir_manifest_region *regions, size_t n_regions,
                                    const weir_mesh_place *place, weir_arena *arena,
                                    weir_layout_part *out);

weir_status weir_manifest_encode(const weir_manifest *manifest, weir_arena *arena,
                                 weir_buffer *out);
weir_status weir_manifest_decode(const void *bytes, size_t n_bytes, weir_arena *arena,
                                 weir_manifest *out);

weir_status weir_group_record_encode(const weir_group_record *record, weir_buffer *out);
/* ERR_UNSUPPORTED for a newer header; ERR_CORRUPT for memberships that make no sense. */
weir_status weir_group_record_decode(const void *bytes, size_t n_bytes, weir_arena *arena,
                                     weir_group_record *out);

#endif
