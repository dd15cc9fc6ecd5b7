/* SPDX-License-Identifier: Apache-2.0 */
/* store_index.c - chained hash tables that double when there are as many records as buckets. */
#include "directory/store_index.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

#define FIRST_BUCKETS 64u

weir_status weir_store_index_open(store_index *index)
{
    store_node **buckets = weir_alloc_zeroed(FIRST_BUCKETS, sizeof(*buckets));
    if (buckets == NULL)
        return WEIR_ERR_NO_MEMORY;
    *index = (store_index){ buckets, FIRST_BUCKETS, 0 };
    return WEIR_OK;
}

void weir_store_index_close(store_index *index)
{
    weir_free(index->buckets);
    *index = (store_index){ 0 };
}

static void chain(store_node **bucket, store_node *node)
{
    node->next = *bucket;
    node->place = bucket;
    if (node->next != NULL)
        node->next->place = &node->next;
    *bucket = node;
}

static void grow(store_index *index)
{
    size_t n_buckets = 2 * index->n_buckets;
    weir_error_line line;
    weir_error_save(&line);
    store_node **buckets = weir_alloc_zeroed(n_buckets, sizeof(*buckets));
    if (buckets == NULL) {
        weir_error_restore(&line); /* nothing has failed */
        return;
    }
    for (size_t i = 0; i < index->n_buckets; i++) {
        for (store_node *node = index->buckets[i], *next; node != NULL; node = next) {
            next = node->next;
            chain(&buckets[node->hash & (n_buckets - 1)], node);
        }
    }
    weir_free(index->buckets);
    index->buckets = buckets;
    index->n_buckets = n_buckets;
}

void weir_store_index_add(store_index *index, store_node *node, uint64_t hash)
{
    if (index->n_nodes >= index->n_buckets)
        grow(index);
    node->hash = hash;
    chain(&index->buckets[hash & (index->n_buckets - 1)], node);
    index->n_nodes++;
}

void weir_store_index_remove(store_index *index, store_node *node)
{
    *node->place = node->next;
    if (node->next != NULL)
        node->next->place = node->place;
    index->n_nodes--;
}

static store_node *of_hash(store_node *node, uint64_t hash)
{
    while (node != NULL && node->hash != hash)
        node = node->next;
    return node;
}

store_node *weir_store_index_first(const store_index *index, uint64_t hash)
{
    return of_hash(index->buckets[hash & (index->n_buckets - 1)], hash);
}

store_node *weir_store_index_next(const store_node *node)
{
    return of_hash(node->next, node->hash);
}

/* ---- hashing ---------------------------------------------------------------------------------*/

/* A multiplication spreads a word upwards, folding the product brings it down again. */
static uint64_t mix(uint64_t hash, uint64_t word)
{
    unsigned __int128 product =
        (unsigned __int128)(hash ^ 0x9E3779B97F4A7C15ull) * (word ^ 0xD6E8FEB86659FD93ull);
    return (uint64_t)product ^ (uint64_t)(product >> 64) ^ (hash << 1);
}

uint64_t weir_store_hash_bytes(uint64_t hash, const void *bytes, size_t n)
{
    const unsigned char *at = bytes;
    hash = mix(hash, n);
    for (; n >= 8; at += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        hash = mix(hash, word);
    }
    uint64_t last = 0;
    memcpy(&last, at, n);
    return mix(hash, last);
}

uint64_t weir_store_hash_text(uint64_t hash, const char *text)
{
    return weir_store_hash_bytes(hash, text, strlen(text));
}

uint64_t weir_store_hash_number(uint64_t hash, uint64_t number)
{
    return mix(hash, number);
}
