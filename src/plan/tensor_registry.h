/* SPDX-License-Identifier: Apache-2.0 */
/* tensor_registry.h - registries that own what they are made of, and what registries of several
 * workers must agree on before anything else. */
#ifndef WEIR_PLAN_TENSOR_REGISTRY_H
#define WEIR_PLAN_TENSOR_REGISTRY_H

#include "base/arena.h"
#include "weir/descriptor.h"

/* What the caller of a decoder has, and closes with weir_tensor_registry_close(). */
typedef struct weir_owned_registry {
    weir_tensor_registry registry; /* the first member: the caller's pointer is the owner's */
    weir_arena arena;              /* descriptors, ids and strings */
} weir_owned_registry;

/* NULL when out of memory. */
weir_owned_registry *weir_owned_registry_open(void);

/* `blame` when a name is there twice. */
weir_status weir_tensor_registry_check_names(const weir_tensor_registry *registry,
                                             weir_status blame);
/* ERR_LAYOUT when two publishers are of two versions. Both have a registry. */
weir_status weir_publishers_check_version(const weir_publisher *a, const weir_publisher *b);

#endif
