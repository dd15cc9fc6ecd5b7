/* SPDX-License-Identifier: Apache-2.0 */
/* source_facts.h - what a source says of itself, wherever clients of ModelExpress v2 put it.
 *
 * Three routes, of which the first that is marked as one counts: the identity's extra parameters,
 * the sidecar descriptor, an agent name "mx_v2|ROLE|rank=R|version=V|orig=NAME". All of it is text
 * from another program: nothing is believed but that it is text. What the JSON in it may come to is
 * bounded before it is read.
 *
 * Ownership  facts borrow from the messages; close them before those go.
 */
#ifndef WEIR_DIRECTORY_SOURCE_FACTS_H
#define WEIR_DIRECTORY_SOURCE_FACTS_H

#include <jansson.h>

#include "base/arena.h"
#include "p2p.pb-c.h"
#include "weir/discover.h"

typedef enum weir_facts_route {
    WEIR_ROUTE_NONE = 0,
    WEIR_ROUTE_IDENTITY,
    WEIR_ROUTE_SIDECAR,
    WEIR_ROUTE_AGENT_NAME,
} weir_facts_route;

/* What a reader must know of a tensor's bytes. */
typedef struct weir_tensor_tag {
    const char *name, *compile_target;
    const json_t *metadata; /* an object, or NULL: {} */
} weir_tensor_tag;

typedef struct weir_source_facts {
    weir_facts_route route;
    /* As they were said; NULL when they were not. */
    const char *mx_v2, *role, *rank, *step, *run, *layout_signature;
    weir_endpoint_kind endpoint_kind;
    const char *endpoint;    /* "" when not said */
    size_t n_addressed;      /* descriptors of tensors: "__mx_" ones and empty ones are none */
    bool in_manifest;        /* its registry is: fill the tags from there */
    const char *version_uid; /* of a source of Weir's; else "" */
    bool has_registry;
    const char *registry_fault; /* why it does not decode; NULL */
    const weir_tensor_tag *tags;
    size_t n_tags;
    weir_arena arena;
    json_t *sidecar, *registry;
} weir_source_facts;

/* identity and worker may be NULL. ERR_NO_MEMORY; close follows in any case. */
weir_status weir_source_facts_open(const ModelExpress__P2p__SourceIdentity *identity,
                                   const ModelExpress__P2p__WorkerMetadata *worker,
                                   weir_source_facts *out);
void weir_source_facts_close(weir_source_facts *facts);

/* Takes the tags out of a registry document; a text that is none is a fault, not an error. */
weir_status weir_source_facts_read_registry(weir_source_facts *facts, const char *text,
                                            size_t n_bytes);

#endif
