/* SPDX-License-Identifier: Apache-2.0 */
/* store_index.h - how the store finds its records: hash tables and lists whose links lie within the
 * records themselves.
 *
 * An index knows hashes alone: who looks for a record goes through those of its hash and compares.
 * Nothing may depend on the order within an index, which differs from process to process; what has
 * an order is in a list.
 */
#ifndef WEIR_DIRECTORY_STORE_INDEX_H
#define WEIR_DIRECTORY_STORE_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/status.h"

/* The record that a node or link is a member of. */
#define WEIR_STORE_OF(type, member, pointer) ((type *)((char *)(pointer)-offsetof(type, member)))

/* ---- lists: a ring through its head ----------------------------------------------------------*/

typedef struct store_link {
    struct store_link *prev, *next;
} store_link;

static inline void weir_store_list_init(store_link *head)
{
    head->prev = head->next = head;
}

static inline bool weir_store_list_is_empty(const store_link *head)
{
    return head->next == head;
}

/* Puts `link` before `place`: a head as the place makes it the last. */
static inline void weir_store_list_add_before(store_link *place, store_link *link)
{
    link->prev = place->prev;
    link->next = place;
    link->prev->next = place->prev = link;
}

static inline void weir_store_list_add_first(store_link *head, store_link *link)
{
    weir_store_list_add_before(head->next, link);
}

static inline void weir_store_list_remove(store_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
}

/* ---- indexes ---------------------------------------------------------------------------------*/

typedef struct store_node {
    struct store_node *next, **place; /* place: what points here */
    uint64_t hash;
} store_node;

typedef struct store_index {
    store_node **buckets;
    size_t n_buckets, n_nodes;
} store_index;

weir_status weir_store_index_open(store_index *index);
void weir_store_index_close(store_index *index); /* records stay as they are */

/* Never fails: without memory to grow, chains become longer. */
void weir_store_index_add(store_index *index, store_node *node, uint64_t hash);
void weir_store_index_remove(store_index *index, store_node *node);
/* The nodes of a hash, one after the other; NULL: no more. */
store_node *weir_store_index_first(const store_index *index, uint64_t hash);
store_node *weir_store_index_next(const store_node *node);

/* Goes on with `hash`, which begins as the store's seed: names that collide in one process must not
 * do so in every other. */
uint64_t weir_store_hash_text(uint64_t hash, const char *text);
uint64_t weir_store_hash_bytes(uint64_t hash, const void *bytes, size_t n);
uint64_t weir_store_hash_number(uint64_t hash, uint64_t number);

#endif
