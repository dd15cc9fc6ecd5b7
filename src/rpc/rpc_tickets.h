/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_tickets.h - numbers for calls, each given once, found at once.
 *
 * A ticket is a place in a table and a serial number, so that one that is over names nobody, even
 * when its place has been taken again. One thread.
 */
#ifndef WEIR_RPC_RPC_TICKETS_H
#define WEIR_RPC_RPC_TICKETS_H

#include <stdint.h>

#include "rpc/rpc_heap.h"

#define WEIR_RPC_MAX_TICKETS (1u << 20) /* at once */

typedef struct weir_rpc_ticket_place {
    uint64_t ticket; /* 0: free */
    union {
        void *owner;
        unsigned next_free; /* 1 + place */
    };
} weir_rpc_ticket_place;

typedef struct weir_rpc_tickets {
    weir_rpc_ticket_place *places;
    unsigned n, capacity;
    unsigned first_free; /* 1 + place; 0: none below n */
    uint64_t serial;
} weir_rpc_tickets;

void weir_rpc_tickets_close(weir_rpc_tickets *tickets, weir_rpc_heap *heap);
/* 0 when memory is out or as many are out as may be. */
uint64_t weir_rpc_tickets_take(weir_rpc_tickets *tickets, weir_rpc_heap *heap, void *owner);
/* NULL: it is over, or never was. */
void *weir_rpc_tickets_find(const weir_rpc_tickets *tickets, uint64_t ticket);
void weir_rpc_tickets_release(weir_rpc_tickets *tickets, uint64_t ticket); /* a live one */

#endif
