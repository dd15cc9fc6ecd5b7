/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_tickets.c - a table with a free list; 44 bits of serial number outlast the process. */
#include "rpc/rpc_tickets.h"

#include <stdbool.h>

#define PLACE_BITS 20
#define FIRST_PLACES 64u

_Static_assert(WEIR_RPC_MAX_TICKETS == 1u << PLACE_BITS, "a ticket has bits for each place");

static unsigned place_of(uint64_t ticket)
{
    return (unsigned)(ticket & (WEIR_RPC_MAX_TICKETS - 1));
}

void weir_rpc_tickets_close(weir_rpc_tickets *tickets, weir_rpc_heap *heap)
{
    weir_rpc_heap_free(heap, tickets->places);
    *tickets = (weir_rpc_tickets){ 0 };
}

static bool grow(weir_rpc_tickets *tickets, weir_rpc_heap *heap)
{
    if (tickets->n < tickets->capacity)
        return true;
    if (tickets->capacity == WEIR_RPC_MAX_TICKETS)
        return false;
    unsigned capacity = tickets->capacity != 0 ? tickets->capacity * 2 : FIRST_PLACES;
    void *places =
        weir_rpc_heap_realloc(heap, tickets->places, capacity * sizeof(tickets->places[0]));
    if (places == NULL)
        return false;
    tickets->places = places;
    tickets->capacity = capacity;
    return true;
}

uint64_t weir_rpc_tickets_take(weir_rpc_tickets *tickets, weir_rpc_heap *heap, void *owner)
{
    unsigned place;
    if (tickets->first_free != 0) {
        place = tickets->first_free - 1;
        tickets->first_free = tickets->places[place].next_free;
    } else if (grow(tickets, heap)) {
        place = tickets->n++;
    } else {
        return 0;
    }
    uint64_t ticket = ++tickets->serial << PLACE_BITS | place;
    tickets->places[place] = (weir_rpc_ticket_place){ .ticket = ticket, .owner = owner };
    return ticket;
}

void *weir_rpc_tickets_find(const weir_rpc_tickets *tickets, uint64_t ticket)
{
    unsigned place = place_of(ticket);
    if (ticket == 0 || place >= tickets->n || tickets->places[place].ticket != ticket)
        return NULL;
    return tickets->places[place].owner;
}

void weir_rpc_tickets_release(weir_rpc_tickets *tickets, uint64_t ticket)
{
    unsigned place = place_of(ticket);
    tickets->places[place] = (weir_rpc_ticket_place){ .next_free = tickets->first_free };
    tickets->first_free = place + 1;
}
