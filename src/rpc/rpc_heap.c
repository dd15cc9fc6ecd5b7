/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_heap.c - power-of-two free lists over slabs.
 *
 * HTTP/2 sessions allocate and free a few dozen small pieces per call, the directory a record per
 * shard and lease. Going through malloc for them would be fast enough; it would make "a second
 * refit allocates nothing" unprovable.
 */
#include "rpc/rpc_heap.h"

#include <stdalign.h>
#include <stdint.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

#if defined(__SANITIZE_ADDRESS__)
#define HEAP_POISONS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HEAP_POISONS 1
#endif
#endif
#ifdef HEAP_POISONS
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, n_bytes) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, n_bytes) ((void)0)
#endif

#define SMALLEST_BYTES ((size_t)32)
#define SMALL_CLASSES 8u               /* 32 bytes to 4 KiB: cut from slabs */
#define SLAB_BYTES ((size_t)512 << 10) /* pages that are never cut cost nothing */
#define KEEP_BYTES ((size_t)64 << 20)

typedef struct block_header {
    alignas(16) struct block_header *next; /* while in a free list */
    uint32_t size_class;
} block_header;

typedef struct slab {
    struct slab *next;
    alignas(16) unsigned char data[SLAB_BYTES];
} slab;

static size_t class_bytes(unsigned size_class)
{
    return SMALLEST_BYTES << size_class;
}

static unsigned class_of(size_t n_bytes)
{
    unsigned size_class = 0;
    while (size_class < WEIR_RPC_HEAP_CLASSES && class_bytes(size_class) < n_bytes)
        size_class++;
    return size_class;
}

size_t weir_rpc_heap_block_bytes(size_t n_bytes)
{
    return class_bytes(class_of(n_bytes));
}

void weir_rpc_heap_init(weir_rpc_heap *heap)
{
    *heap = (weir_rpc_heap){ 0 };
}

void weir_rpc_heap_close(weir_rpc_heap *heap)
{
    for (unsigned i = SMALL_CLASSES; i < WEIR_RPC_HEAP_CLASSES; i++) {
        for (block_header *block = heap->free_blocks[i], *next; block != NULL; block = next) {
            next = block->next;
            weir_free(block);
        }
    }
    for (slab *piece = heap->slabs, *next; piece != NULL; piece = next) {
        next = piece->next;
        ASAN_UNPOISON_MEMORY_REGION(piece->data, SLAB_BYTES);
        weir_free(piece);
    }
    weir_rpc_heap_init(heap);
}

static block_header *cut_from_slab(weir_rpc_heap *heap, size_t n_bytes)
{
    if (heap->slab_left_bytes < n_bytes) {
        slab *piece = weir_alloc(sizeof(*piece));
        if (piece == NULL)
            return NULL;
        piece->next = heap->slabs;
        heap->slabs = piece;
        heap->slab_left_bytes = SLAB_BYTES;
    }
    slab *piece = heap->slabs;
    block_header *block = (void *)(piece->data + (SLAB_BYTES - heap->slab_left_bytes));
    heap->slab_left_bytes -= n_bytes;
    return block;
}

void *weir_rpc_heap_alloc(weir_rpc_heap *heap, size_t n_bytes)
{
    unsigned size_class = class_of(n_bytes);
    if (size_class == WEIR_RPC_HEAP_CLASSES) {
        weir_fail(WEIR_ERR_NO_MEMORY, "%zu bytes are more than one message may take", n_bytes);
        return NULL;
    }
    block_header *block = heap->free_blocks[size_class];
    if (block != NULL) {
        heap->free_blocks[size_class] = block->next;
        ASAN_UNPOISON_MEMORY_REGION(block + 1, class_bytes(size_class));
        if (size_class >= SMALL_CLASSES)
            heap->kept_bytes -= class_bytes(size_class);
        return block + 1;
    }
    size_t whole = sizeof(*block) + class_bytes(size_class);
    block = size_class < SMALL_CLASSES ? cut_from_slab(heap, whole) : weir_alloc(whole);
    if (block == NULL)
        return NULL;
    block->size_class = size_class;
    return block + 1;
}

void weir_rpc_heap_free(weir_rpc_heap *heap, void *memory)
{
    if (memory == NULL)
        return;
    block_header *block = (block_header *)memory - 1;
    size_t n_bytes = class_bytes(block->size_class);
    if (block->size_class >= SMALL_CLASSES) {
        if (heap->kept_bytes + n_bytes > KEEP_BYTES) {
            weir_free(block);
            return;
        }
        heap->kept_bytes += n_bytes;
    }
    block->next = heap->free_blocks[block->size_class];
    heap->free_blocks[block->size_class] = block;
    ASAN_POISON_MEMORY_REGION(memory, n_bytes);
}

void *weir_rpc_heap_realloc(weir_rpc_heap *heap, void *memory, size_t n_bytes)
{
    if (memory == NULL)
        return weir_rpc_heap_alloc(heap, n_bytes);
    size_t old_bytes = class_bytes(((block_header *)memory - 1)->size_class);
    if (n_bytes <= old_bytes)
        return memory;
    void *larger = weir_rpc_heap_alloc(heap, n_bytes);
    if (larger == NULL)
        return NULL;
    memcpy(larger, memory, old_bytes);
    weir_rpc_heap_free(heap, memory);
    return larger;
}
