/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_patience.h - how much useless work one peer may cause, and what HTTP/2's frames cost of it.
 *
 * Frames that carry a call are paid for by the call; what remains (resets, pings, settings, empty
 * data, endless headers) draws on a store that fills slowly. Whoever empties it is dropped.
 */
#ifndef WEIR_RPC_RPC_PATIENCE_H
#define WEIR_RPC_RPC_PATIENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What is given back for useful work. */
#define WEIR_RPC_PATIENCE_PER_CALL 8u
#define WEIR_RPC_PATIENCE_PER_DATA 6u /* a frame of an answer: its reader may open windows, ping \
                                       */
/* What is taken for a stream that the peer's fault made us reset. */
#define WEIR_RPC_PATIENCE_PER_FAULT 8u

typedef struct weir_rpc_patience {
    unsigned left;
    uint64_t filled_ns; /* when it was last filled */
} weir_rpc_patience;

void weir_rpc_patience_init(weir_rpc_patience *patience, uint64_t now_ns);
/* False: it is used up. */
bool weir_rpc_patience_spend(weir_rpc_patience *patience, unsigned cost);
void weir_rpc_patience_earn(weir_rpc_patience *patience, unsigned amount);

/* Of a frame from a client, by its header. */
unsigned weir_rpc_frame_cost(uint8_t type, uint8_t flags, size_t n_bytes);

#endif
