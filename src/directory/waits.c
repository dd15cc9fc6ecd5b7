/* SPDX-License-Identifier: Apache-2.0 */
/* waits.c - a hash by ticket, a queue per model, a heap by time. */
#include "directory/waits.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

#define N_BUCKETS 4096u /* tickets are numbered one by one, so they spread evenly */
#define NOT_IN_HEAP SIZE_MAX

struct weir_wait_group {
    weir_wait_group *next;
    uint64_t revision; /* when they were looked at last; 0: never */
    weir_wait *first, *last;
    char model[];
};

void weir_waits_init(weir_waits *waits)
{
    memset(waits, 0, sizeof(*waits));
    weir_rpc_heap_init(&waits->memory);
}

/* ---- the heap --------------------------------------------------------------------------------*/

static void put_at(weir_waits *waits, size_t at, weir_wait *wait)
{
    waits->heap[at] = wait;
    wait->heap_at = at;
}

static void sift_up(weir_waits *waits, size_t at)
{
    weir_wait *wait = waits->heap[at];
    for (; at != 0 && waits->heap[(at - 1) / 2]->due_ns > wait->due_ns; at = (at - 1) / 2)
        put_at(waits, at, waits->heap[(at - 1) / 2]);
    put_at(waits, at, wait);
}

static void sift_down(weir_waits *waits, size_t at)
{
    weir_wait *wait = waits->heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < waits->n_heap &&
            waits->heap[child + 1]->due_ns < waits->heap[child]->due_ns)
            child++;
        if (child >= waits->n_heap || waits->heap[child]->due_ns >= wait->due_ns)
            break;
        put_at(waits, at, waits->heap[child]);
        at = child;
    }
    put_at(waits, at, wait);
}

static bool make_room(weir_waits *waits)
{
    if (waits->n_heap < waits->n_heap_room)
        return true;
    size_t n_room = waits->n_heap_room != 0 ? 2 * waits->n_heap_room : 64;
    weir_wait **heap = weir_rpc_heap_realloc(&waits->memory, waits->heap, n_room * sizeof(*heap));
    if (heap == NULL)
        return false;
    waits->heap = heap;
    waits->n_heap_room = n_room;
    return true;
}

static void heap_add(weir_waits *waits, weir_wait *wait)
{
    put_at(waits, waits->n_heap++, wait);
    sift_up(waits, wait->heap_at);
}

static void heap_remove(weir_waits *waits, weir_wait *wait)
{
    size_t at = wait->heap_at;
    if (at == NOT_IN_HEAP)
        return;
    wait->heap_at = NOT_IN_HEAP;
    weir_wait *last = waits->heap[--waits->n_heap];
    if (last == wait)
        return;
    put_at(waits, at, last);
    sift_up(waits, at);
    sift_down(waits, last->heap_at);
}

uint64_t weir_waits_next_due(const weir_waits *waits)
{
    return waits->n_heap != 0 ? waits->heap[0]->due_ns : UINT64_MAX;
}

weir_wait *weir_waits_take_due(weir_waits *waits, uint64_t now_ns)
{
    if (weir_waits_next_due(waits) > now_ns)
        return NULL;
    weir_wait *wait = waits->heap[0];
    heap_remove(waits, wait);
    return wait;
}

/* ---- queues ----------------------------------------------------------------------------------*/

static weir_wait_group *find_group(weir_waits *waits, const char *model)
{
    for (weir_wait_group *group = waits->groups; group != NULL; group = group->next) {
        if (strcmp(group->model, model) == 0)
            return group;
    }
    size_t n_model = strlen(model) + 1;
    weir_wait_group *group = weir_rpc_heap_alloc(&waits->memory, sizeof(*group) + n_model);
    if (group == NULL)
        return NULL;
    memset(group, 0, sizeof(*group));
    memcpy(group->model, model, n_model);
    group->next = waits->groups;
    waits->groups = group;
    return group;
}

static void queue_add(weir_wait_group *group, weir_wait *wait)
{
    wait->group = group;
    wait->previous = group->last;
    *(group->last != NULL ? &group->last->next : &group->first) = wait;
    group->last = wait;
}

static void queue_remove(weir_wait *wait)
{
    weir_wait_group *group = wait->group;
    if (group == NULL)
        return;
    *(wait->previous != NULL ? &wait->previous->next : &group->first) = wait->next;
    *(wait->next != NULL ? &wait->next->previous : &group->last) = wait->previous;
}

static void drop_empty_groups(weir_waits *waits)
{
    for (weir_wait_group **at = &waits->groups; *at != NULL;) {
        weir_wait_group *group = *at;
        if (group->first != NULL) {
            at = &group->next;
            continue;
        }
        *at = group->next;
        weir_rpc_heap_free(&waits->memory, group);
    }
}

void weir_waits_look(weir_waits *waits, uint64_t (*revision)(void *context, const char *model),
                     void (*look)(void *context, weir_wait *wait), void *context)
{
    waits->n_walks++;
    for (weir_wait_group *group = waits->groups; group != NULL; group = group->next) {
        uint64_t now = revision(context, group->model);
        if (now == group->revision)
            continue;
        group->revision = now; /* before: what a look changes is worth another one */
        for (weir_wait *wait = group->first; wait != NULL; wait = wait->next) {
            if (!wait->is_dropped)
                look(context, wait);
        }
    }
    if (--waits->n_walks != 0)
        return;
    while (waits->dropped != NULL) {
        weir_wait *wait = waits->dropped;
        waits->dropped = wait->next_of_bucket;
        queue_remove(wait);
        weir_rpc_heap_free(&waits->memory, wait);
    }
    drop_empty_groups(waits);
}

/* ---- by ticket -------------------------------------------------------------------------------*/

static weir_wait **bucket_of(const weir_waits *waits, uint64_t ticket)
{
    return &waits->buckets[ticket % N_BUCKETS];
}

weir_wait *weir_waits_find(const weir_waits *waits, uint64_t ticket)
{
    if (waits->buckets == NULL)
        return NULL;
    weir_wait *wait = *bucket_of(waits, ticket);
    while (wait != NULL && wait->ticket != ticket)
        wait = wait->next_of_bucket;
    return wait;
}

static weir_status check_room(weir_waits *waits, size_t n_bytes)
{
    if (waits->n_waits >= WEIR_WAITS_MOST || n_bytes > WEIR_WAITS_MOST_BYTES - waits->n_bytes)
        return weir_fail(WEIR_ERR_NO_MEMORY, "%zu calls are waiting, with %zu bytes: no more may",
                         waits->n_waits, waits->n_bytes);
    if (waits->buckets == NULL)
        waits->buckets = weir_alloc_zeroed(N_BUCKETS, sizeof(*waits->buckets));
    return waits->buckets != NULL && make_room(waits) ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

weir_status weir_waits_park(weir_waits *waits, const weir_wait *request, const char *model,
                            weir_wait **out)
{
    weir_status status = check_room(waits, request->n_bytes);
    if (status != WEIR_OK)
        return status;
    weir_wait *wait = weir_rpc_heap_alloc(&waits->memory, sizeof(*wait) + request->n_bytes);
    weir_wait_group *group = wait != NULL && model != NULL ? find_group(waits, model) : NULL;
    if (wait == NULL || (model != NULL && group == NULL)) {
        weir_rpc_heap_free(&waits->memory, wait);
        return WEIR_ERR_NO_MEMORY;
    }
    *wait = (weir_wait){ .ticket = request->ticket,
                         .method = request->method,
                         .due_ns = request->due_ns,
                         .is_caught_up = request->is_caught_up,
                         .n_bytes = request->n_bytes,
                         .bytes = (unsigned char *)(wait + 1),
                         .heap_at = NOT_IN_HEAP };
    if (request->n_bytes != 0)
        memcpy(wait + 1, request->bytes, request->n_bytes);
    if (group != NULL)
        queue_add(group, wait);
    if (wait->due_ns != UINT64_MAX)
        heap_add(waits, wait);
    weir_wait **bucket = bucket_of(waits, wait->ticket);
    wait->next_of_bucket = *bucket;
    *bucket = wait;
    waits->n_waits++;
    waits->n_bytes += wait->n_bytes;
    *out = wait;
    return WEIR_OK;
}

void weir_waits_hasten(weir_waits *waits, weir_wait *wait, uint64_t due_ns)
{
    if (due_ns >= wait->due_ns)
        return;
    bool is_in_heap = wait->heap_at != NOT_IN_HEAP;
    if (!is_in_heap && !make_room(waits)) /* it is looked at when its model changes all the same */
        return;
    wait->due_ns = due_ns;
    if (is_in_heap)
        sift_up(waits, wait->heap_at);
    else
        heap_add(waits, wait);
}

void weir_waits_drop(weir_waits *waits, weir_wait *wait)
{
    weir_wait **at = bucket_of(waits, wait->ticket);
    while (*at != wait)
        at = &(*at)->next_of_bucket;
    *at = wait->next_of_bucket;
    heap_remove(waits, wait);
    waits->n_waits--;
    waits->n_bytes -= wait->n_bytes;
    if (waits->n_walks != 0) { /* the walk may stand on it */
        wait->is_dropped = true;
        wait->next_of_bucket = waits->dropped;
        waits->dropped = wait;
        return;
    }
    queue_remove(wait);
    bool is_last = wait->group != NULL && wait->group->first == NULL;
    weir_rpc_heap_free(&waits->memory, wait);
    if (is_last)
        drop_empty_groups(waits);
}

void weir_waits_close(weir_waits *waits)
{
    for (size_t i = 0; waits->buckets != NULL && i < N_BUCKETS; i++) {
        while (waits->buckets[i] != NULL)
            weir_waits_drop(waits, waits->buckets[i]);
    }
    weir_free(waits->buckets);
    weir_rpc_heap_free(&waits->memory, waits->heap);
    weir_rpc_heap_close(&waits->memory);
    memset(waits, 0, sizeof(*waits));
}
