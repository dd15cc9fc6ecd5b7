/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_timers.c - a binary heap whose members know their places, so that any can leave. */
#include "rpc/rpc_timers.h"

#define FIRST_TIMERS 128u

bool weir_rpc_timers_reserve(weir_rpc_timers *timers, weir_rpc_heap *heap, unsigned n)
{
    if (n <= timers->capacity)
        return true;
    unsigned capacity = timers->capacity != 0 ? timers->capacity * 2 : FIRST_TIMERS;
    if (capacity < n)
        capacity = n;
    void *first = weir_rpc_heap_realloc(heap, timers->first, capacity * sizeof(timers->first[0]));
    if (first == NULL)
        return false;
    timers->first = first;
    timers->capacity = capacity;
    return true;
}

void weir_rpc_timers_close(weir_rpc_timers *timers, weir_rpc_heap *heap)
{
    weir_rpc_heap_free(heap, timers->first);
    *timers = (weir_rpc_timers){ 0 };
}

static void put(weir_rpc_timers *timers, unsigned i, weir_rpc_timer *timer)
{
    timers->first[i] = timer;
    timer->place = i + 1;
}

static void rise(weir_rpc_timers *timers, unsigned i, weir_rpc_timer *timer)
{
    while (i != 0) {
        unsigned parent = (i - 1) / 2;
        if (timers->first[parent]->due_ns <= timer->due_ns)
            break;
        put(timers, i, timers->first[parent]);
        i = parent;
    }
    put(timers, i, timer);
}

static void sink(weir_rpc_timers *timers, unsigned i, weir_rpc_timer *timer)
{
    for (;;) {
        unsigned child = 2 * i + 1;
        if (child >= timers->n)
            break;
        if (child + 1 < timers->n &&
            timers->first[child + 1]->due_ns < timers->first[child]->due_ns)
            child++;
        if (timers->first[child]->due_ns >= timer->due_ns)
            break;
        put(timers, i, timers->first[child]);
        i = child;
    }
    put(timers, i, timer);
}

static void settle(weir_rpc_timers *timers, unsigned i, weir_rpc_timer *timer)
{
    if (i != 0 && timers->first[(i - 1) / 2]->due_ns > timer->due_ns)
        rise(timers, i, timer);
    else
        sink(timers, i, timer);
}

static void take_out(weir_rpc_timers *timers, weir_rpc_timer *timer)
{
    unsigned i = timer->place - 1;
    weir_rpc_timer *last = timers->first[--timers->n];
    timer->place = 0;
    if (last != timer)
        settle(timers, i, last);
}

void weir_rpc_timers_set(weir_rpc_timers *timers, weir_rpc_timer *timer, uint64_t due_ns)
{
    timer->due_ns = due_ns;
    if (due_ns == WEIR_RPC_NEVER) {
        if (timer->place != 0)
            take_out(timers, timer);
    } else if (timer->place != 0) {
        settle(timers, timer->place - 1, timer);
    } else {
        rise(timers, timers->n++, timer);
    }
}

weir_rpc_timer *weir_rpc_timers_due(const weir_rpc_timers *timers, uint64_t now_ns)
{
    return weir_rpc_timers_next_ns(timers) <= now_ns ? timers->first[0] : NULL;
}

uint64_t weir_rpc_timers_next_ns(const weir_rpc_timers *timers)
{
    return timers->n != 0 ? timers->first[0]->due_ns : WEIR_RPC_NEVER;
}
