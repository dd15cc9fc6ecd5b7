/* SPDX-License-Identifier: Apache-2.0 */
/* arena.c - a list of blocks, each at least twice as large as the one before. */
#include "base/arena.h"

#include <stdalign.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

#define FIRST_BLOCK_BYTES 4096u

struct weir_arena_block {
    weir_arena_block *next;
    size_t size_bytes, used_bytes;
    alignas(16) unsigned char data[];
};

void weir_arena_init(weir_arena *arena, size_t cap_bytes)
{
    *arena = (weir_arena){ NULL, NULL, 0, cap_bytes };
}

static weir_arena_block *add_block(weir_arena *arena, size_t n_bytes)
{
    weir_arena_block *tail = arena->current;
    size_t size = tail != NULL ? tail->size_bytes * 2 : FIRST_BLOCK_BYTES;
    if (size < n_bytes)
        size = n_bytes;
    weir_arena_block *block = weir_alloc(sizeof(*block) + size);
    if (block == NULL)
        return NULL;
    block->size_bytes = size;
    block->used_bytes = 0;
    block->next = NULL;
    if (tail != NULL) {
        block->next = tail->next;
        tail->next = block;
    } else {
        arena->first = block;
    }
    arena->current = block;
    return block;
}

void *weir_arena_alloc(weir_arena *arena, size_t n_bytes)
{
    if (n_bytes > SIZE_MAX / 4 ||
        (arena->cap_bytes != 0 && n_bytes > arena->cap_bytes - arena->used_bytes)) {
        weir_fail(WEIR_ERR_NO_MEMORY, "more than the %zu bytes that are allowed here",
                  arena->cap_bytes);
        return NULL;
    }
    size_t rounded = (n_bytes + 15) & ~(size_t)15;
    weir_arena_block *block = arena->current;
    while (block != NULL && block->size_bytes - block->used_bytes < rounded && block->next != NULL)
        block = arena->current = block->next; /* blocks kept by a reset */
    if (block == NULL || block->size_bytes - block->used_bytes < rounded) {
        block = add_block(arena, rounded);
        if (block == NULL)
            return NULL;
    }
    void *piece = block->data + block->used_bytes;
    block->used_bytes += rounded;
    arena->used_bytes += n_bytes;
    return piece;
}

void *weir_arena_zeroed(weir_arena *arena, size_t n_items, size_t item_bytes)
{
    if (item_bytes != 0 && n_items > SIZE_MAX / item_bytes) {
        weir_fail(WEIR_ERR_NO_MEMORY, "%zu items of %zu bytes do not fit in memory", n_items,
                  item_bytes);
        return NULL;
    }
    void *piece = weir_arena_alloc(arena, n_items * item_bytes);
    return piece ? memset(piece, 0, n_items * item_bytes) : NULL;
}

char *weir_arena_strdup(weir_arena *arena, const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = weir_arena_alloc(arena, n);
    return copy ? memcpy(copy, text, n) : NULL;
}

char *weir_arena_format(weir_arena *arena, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = n < 0 ? NULL : weir_arena_alloc(arena, (size_t)n + 1);
    if (text != NULL)
        vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    return text;
}

void weir_arena_reset(weir_arena *arena)
{
    for (weir_arena_block *block = arena->first; block != NULL; block = block->next)
        block->used_bytes = 0;
    arena->current = arena->first;
    arena->used_bytes = 0;
}

void weir_arena_close(weir_arena *arena)
{
    for (weir_arena_block *block = arena->first, *next; block != NULL; block = next) {
        next = block->next;
        weir_free(block);
    }
    weir_arena_init(arena, arena->cap_bytes);
}
