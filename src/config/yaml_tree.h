/* SPDX-License-Identifier: Apache-2.0 */
/* yaml_tree.h - one YAML document as a tree whose nodes know where they stand.
 *
 * Of YAML it takes what a configuration needs: blocks, lists and scalars. Anchors, aliases, tags, a
 * second document and keys that are no scalars are refused, and size, depth and count are bounded:
 * what is read here comes from outside.
 */
#ifndef WEIR_CONFIG_YAML_TREE_H
#define WEIR_CONFIG_YAML_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "weir/status.h"

#define WEIR_YAML_MAX_DEPTH 16u
#define WEIR_YAML_MAX_NODES 10000u

typedef enum weir_yaml_kind {
    WEIR_YAML_NOTHING, /* "key:", ~, null */
    WEIR_YAML_SCALAR,
    WEIR_YAML_LIST,
    WEIR_YAML_BLOCK,
} weir_yaml_kind;

typedef struct weir_yaml_node weir_yaml_node;
struct weir_yaml_node {
    weir_yaml_kind kind;
    bool plain;            /* a scalar without quotes, which may be a number or a boolean */
    const char *text;      /* of a scalar, with no zero byte in it */
    uint32_t line, column; /* from 1 */
    const char *key;       /* in a block; NULL in a list */
    uint32_t key_line, key_column;
    const weir_yaml_node *first, *next; /* children of a list or block, in the file's order */
};

/* Where and why a text is no such document. */
typedef struct weir_yaml_fault {
    uint32_t line, column;
    const char *text, *hint; /* in the arena */
} weir_yaml_fault;

/* *out_root is NULL for an empty document, and where *fault says what is wrong (its text is NULL
 * where nothing is). ERR_NO_MEMORY, ERR_UNSUPPORTED. All of it lives in the arena. */
weir_status weir_yaml_parse(const char *text, size_t n_bytes, weir_arena *arena,
                            const weir_yaml_node **out_root, weir_yaml_fault *fault);

#endif
