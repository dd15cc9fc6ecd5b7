/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_route.h - the addresses that one service is at: which of them is asked, and, in a call that
 * finds some of them gone, which are left and what was wrong with each. No sockets.
 *
 * A call asks every address once at the most, beginning with the one that answered last; while
 * others are left, each has but a part of the call's time. */
#ifndef WEIR_RPC_RPC_ROUTE_H
#define WEIR_RPC_RPC_ROUTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "rpc/rpc_address.h"

#define WEIR_RPC_MOST_PLACES 8u

typedef struct weir_rpc_place {
    weir_rpc_address address;
    char authority[WEIR_RPC_ADDRESS_TEXT]; /* "HOST:PORT" */
    weir_rpc_pick pick;
} weir_rpc_place;

typedef struct weir_rpc_route {
    weir_rpc_place *places;
    size_t n_places, current;
    uint64_t n_moves; /* from one address to the next */
} weir_rpc_route;

/* "HOST:PORT" or several of them, with commas between. ERR_INVALID naming the text. */
weir_status weir_rpc_route_open(const char *addresses, weir_rpc_route *route);
void weir_rpc_route_close(weir_rpc_route *route); /* accepts a zeroed one */
weir_rpc_place *weir_rpc_route_place(const weir_rpc_route *route);

/* One call. */
typedef struct weir_rpc_round {
    size_t n_left;    /* places that were not asked yet, without the current one */
    unsigned n_hosts; /* addresses of the current place's host that were asked */
    size_t n_said;
    char said[WEIR_ERROR_TEXT - 256]; /* "A: cause; B: cause", of those that failed */
} weir_rpc_round;

void weir_rpc_round_begin(const weir_rpc_route *route, weir_rpc_round *round);
/* For how long the current place is asked. */
weir_deadline weir_rpc_round_deadline(const weir_rpc_round *round, weir_deadline deadline);
/* The current place has failed, as weir_last_error() says. was_reached: it could be connected to,
 * and so another address of its host may do. The current place is another one then. False: all were
 * asked, or the time is up; what all of them said is the recorded line. */
bool weir_rpc_round_next(weir_rpc_route *route, weir_rpc_round *round, weir_status failed,
                         bool was_reached, weir_deadline deadline);

#endif
