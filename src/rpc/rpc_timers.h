/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_timers.h - what is due first, of many thousands that are hardly ever due.
 *
 * A timer is part of what it times; the set holds pointers in a binary heap, so that setting one
 * costs a few comparisons and waiting for all of them costs nothing. One thread.
 */
#ifndef WEIR_RPC_RPC_TIMERS_H
#define WEIR_RPC_RPC_TIMERS_H

#include <stdbool.h>
#include <stdint.h>

#include "rpc/rpc_heap.h"

#define WEIR_RPC_NEVER UINT64_MAX

typedef struct weir_rpc_timer {
    uint64_t due_ns;
    unsigned place; /* 1 + where in the heap; 0: not set */
} weir_rpc_timer;

typedef struct weir_rpc_timers {
    weir_rpc_timer **first;
    unsigned n, capacity;
} weir_rpc_timers;

/* Makes room for n timers at once. False when memory is out. */
bool weir_rpc_timers_reserve(weir_rpc_timers *timers, weir_rpc_heap *heap, unsigned n);
void weir_rpc_timers_close(weir_rpc_timers *timers, weir_rpc_heap *heap);

/* There must be room. WEIR_RPC_NEVER takes it out. */
void weir_rpc_timers_set(weir_rpc_timers *timers, weir_rpc_timer *timer, uint64_t due_ns);
/* NULL: none is due. It stays set until it is set to something else. */
weir_rpc_timer *weir_rpc_timers_due(const weir_rpc_timers *timers, uint64_t now_ns);
uint64_t weir_rpc_timers_next_ns(const weir_rpc_timers *timers);

#endif
