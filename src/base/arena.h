/* SPDX-License-Identifier: Apache-2.0 */
/* arena.h - many small pieces, freed at once, with a cap on what they may add up to.
 *
 * For tables that live together (a mapping, a decoded message). After weir_arena_reset() the
 * blocks are kept, so filling it again with as much allocates nothing. One thread at a time.
 */
#ifndef WEIR_BASE_ARENA_H
#define WEIR_BASE_ARENA_H

#include <stddef.h>

typedef struct weir_arena_block weir_arena_block;
typedef struct weir_arena {
    weir_arena_block *first, *current;
    size_t used_bytes; /* handed out since the last reset */
    size_t cap_bytes;  /* 0: no cap */
} weir_arena;

void weir_arena_init(weir_arena *arena, size_t cap_bytes);
/* 16-byte aligned, not zeroed. NULL with the error recorded when the cap or memory is reached. */
void *weir_arena_alloc(weir_arena *arena, size_t n_bytes);
void *weir_arena_zeroed(weir_arena *arena, size_t n_items, size_t item_bytes);
char *weir_arena_strdup(weir_arena *arena, const char *text);
char *weir_arena_format(weir_arena *arena, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void weir_arena_reset(weir_arena *arena);
void weir_arena_close(weir_arena *arena);

#endif
