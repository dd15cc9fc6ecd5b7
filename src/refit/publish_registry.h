/* SPDX-License-Identifier: Apache-2.0 */
/* publish_registry.h - what a worker publishes, tensor by tensor, as everybody can read it: the
 * registry document in its entry (docs/wire.md), with the compile target and metadata of each.
 *
 * One descriptor per shard. A box that is whole is REPLICATE, one that is cut on one axis SHARD, on
 * several BOX, which readers that know the first three alone refuse. Of a name that comes again the
 * K-th is called "NAME#K". A shard that belongs to some workers of an engine alone says so in its
 * metadata: "weir_place":[stage,data rank,tensor rank], null for every. Boxes, names that come
 * again and parts of places are never "hf_raw", which any reader may take for the whole tensor, but
 * WEIR_TARGET_PART. Expert ids are there where the engine is one worker. Padding that nobody fills
 * is what a range leaves out; a shard that is nothing else is left out.
 */
#ifndef WEIR_REFIT_PUBLISH_REGISTRY_H
#define WEIR_REFIT_PUBLISH_REGISTRY_H

#include "refit/trainer.h"
#include "weir/descriptor.h"

#define WEIR_TARGET_PART "weir_part"

typedef struct weir_published {
    const weir_shard *shards;
    size_t n_shards;
    const bool *of_experts; /* by shard: its axis 0 counts experts; NULL: none is known to */
    bool in_parts;          /* shards are parts of the workers of an engine */
    weir_world_layout world;
} weir_published;

/* Encodes all of them, of version 0. ERR_INVALID where one cannot be said. Gives *out: free with
 * weir_string_free(). */
weir_status weir_published_encode(const weir_published *published, char **out);

/* Has the record carry the registry of what this rank publishes. Written anew when the layout is
 * another than last time; what cannot be written, or is too long, is left to the manifest. Between
 * weir_keeper_pause() and weir_keeper_resume(). */
void weir_publish_registry(weir_trainer *trainer, weir_source_record *record);

#endif
