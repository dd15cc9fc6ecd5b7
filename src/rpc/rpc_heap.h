/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_heap.h - a small heap that keeps what is freed, so that a steady flow of calls takes nothing
 * from the process's heap.
 *
 * Blocks come in powers of two. Small ones are cut from slabs, large ones are taken one by one;
 * both go to free lists, the large ones up to a bound. One thread at a time.
 */
#ifndef WEIR_RPC_RPC_HEAP_H
#define WEIR_RPC_RPC_HEAP_H

#include <stddef.h>

#define WEIR_RPC_HEAP_CLASSES 23 /* 32 bytes to 128 MiB */

typedef struct weir_rpc_heap {
    void *free_blocks[WEIR_RPC_HEAP_CLASSES];
    void *slabs;
    size_t slab_left_bytes;
    size_t kept_bytes; /* of large blocks in free lists */
} weir_rpc_heap;

void weir_rpc_heap_init(weir_rpc_heap *heap);
/* Large blocks still in use must have been freed; small ones go with their slabs. */
void weir_rpc_heap_close(weir_rpc_heap *heap);

/* 16-byte aligned. NULL with the error recorded when memory is out or n_bytes over 128 MiB. */
void *weir_rpc_heap_alloc(weir_rpc_heap *heap, size_t n_bytes);
/* The old block stays valid on failure. */
void *weir_rpc_heap_realloc(weir_rpc_heap *heap, void *block, size_t n_bytes);
void weir_rpc_heap_free(weir_rpc_heap *heap, void *block); /* accepts NULL */

/* What a block of n_bytes takes, for budgets. */
size_t weir_rpc_heap_block_bytes(size_t n_bytes);

#endif
