/* SPDX-License-Identifier: Apache-2.0 */
/* source_index.h - the sources of a mapping: found by name, ticked off, grouped by layer. */
#ifndef WEIR_FAMILY_SOURCE_INDEX_H
#define WEIR_FAMILY_SOURCE_INDEX_H

#include "base/arena.h"
#include "family/model.h"

typedef enum weir_source_state {
    WEIR_SOURCE_FREE = 0,
    WEIR_SOURCE_TAKEN,   /* a row consumed it, or complained about it */
    WEIR_SOURCE_LEFT_OUT /* ignored by the caller, or dropped by the family */
} weir_source_state;

/* One layer, and how many of its sources are single experts. */
typedef struct weir_source_layer {
    int layer;
    size_t n_expert_sources;
    uint64_t n_experts; /* highest expert that a name mentions, plus one */
} weir_source_layer;

typedef struct weir_source_index {
    const weir_tensor *sources;
    size_t n_sources;
    const char **names; /* of the sources, as the family's tables have them */
    size_t *sorted;     /* indices by name */
    unsigned char *states;
    weir_source_layer *layers; /* ascending; all of the config's, or those that names mention */
    size_t n_layers;
} weir_source_index;

/* Lives in `arena`. ERR_LAYOUT for a name that is there twice, ERR_INVALID for a view without a
 * name or with an impossible rank. */
weir_status weir_source_index_init(weir_source_index *index, weir_arena *arena,
                                   const weir_model *model, const weir_mapping_options *options,
                                   const weir_tensor *sources, size_t n_sources);
/* The index of a source that is not left out; SIZE_MAX when there is none. */
size_t weir_source_index_find(const weir_source_index *index, const char *name);

#endif
