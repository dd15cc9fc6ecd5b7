/* SPDX-License-Identifier: Apache-2.0 */
/* redis_queue.h - first in, first out, of items of one size; keeps its memory. */
#ifndef WEIR_DIRECTORY_REDIS_QUEUE_H
#define WEIR_DIRECTORY_REDIS_QUEUE_H

#include <stddef.h>

typedef struct weir_redis_queue {
    unsigned char *items;
    size_t item_bytes, first, n_items, room; /* room: a power of two, or 0 */
} weir_redis_queue;

/* A place for one more, last, zeroed; NULL when out of memory. Items move. */
void *weir_redis_queue_push(weir_redis_queue *queue);
/* The i-th from the front; i < n_items. */
void *weir_redis_queue_at(const weir_redis_queue *queue, size_t i);
void weir_redis_queue_pop(weir_redis_queue *queue);
void weir_redis_queue_close(weir_redis_queue *queue);

#endif
