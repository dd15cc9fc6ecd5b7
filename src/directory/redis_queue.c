/* SPDX-License-Identifier: Apache-2.0 */
/* redis_queue.c - a ring that doubles when it is full. */
#include "directory/redis_queue.h"

#include <string.h>

#include "base/alloc.h"

#define FIRST_ROOM 64

static void *place(const weir_redis_queue *queue, size_t i)
{
    return queue->items + ((queue->first + i) & (queue->room - 1)) * queue->item_bytes;
}

static int grow(weir_redis_queue *queue)
{
    size_t room = queue->room != 0 ? queue->room * 2 : FIRST_ROOM;
    unsigned char *items = weir_alloc_zeroed(room, queue->item_bytes);
    if (items == NULL)
        return -1;
    for (size_t i = 0; i < queue->n_items; i++)
        memcpy(items + i * queue->item_bytes, place(queue, i), queue->item_bytes);
    weir_free(queue->items);
    queue->items = items;
    queue->room = room;
    queue->first = 0;
    return 0;
}

void *weir_redis_queue_push(weir_redis_queue *queue)
{
    if (queue->n_items == queue->room && grow(queue) != 0)
        return NULL;
    void *item = place(queue, queue->n_items++);
    memset(item, 0, queue->item_bytes);
    return item;
}

void *weir_redis_queue_at(const weir_redis_queue *queue, size_t i)
{
    return place(queue, i);
}

void weir_redis_queue_pop(weir_redis_queue *queue)
{
    queue->first = (queue->first + 1) & (queue->room - 1);
    queue->n_items--;
}

void weir_redis_queue_close(weir_redis_queue *queue)
{
    weir_free(queue->items);
    *queue = (weir_redis_queue){ .item_bytes = queue->item_bytes };
}
