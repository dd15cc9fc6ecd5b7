/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_patience.c - a bucket that fills with time and with useful work.
 *
 * The numbers: 360 calls opened and reset at once, then 70 per second (a client that gives up all its
 * calls at once, and does so twice, is no attacker); 1,000 pings at once, then 200 per second. */
#include "rpc/rpc_patience.h"

#include <nghttp2/nghttp2.h>

#include "base/clock.h"

#define FULL 4000u
#define PER_S 800u
#define NS_PER_S 1000000000ull
#define TINY_BYTES 64u /* of data: a fragment that costs more than it brings */

void weir_rpc_patience_init(weir_rpc_patience *patience, uint64_t now_ns)
{
    *patience = (weir_rpc_patience){ .left = FULL, .filled_ns = now_ns };
}

void weir_rpc_patience_earn(weir_rpc_patience *patience, unsigned amount)
{
    patience->left = amount < FULL - patience->left ? patience->left + amount : FULL;
}

/* Looks at the clock only where it matters. */
static void fill(weir_rpc_patience *patience)
{
    uint64_t now_ns = weir_now_ns();
    uint64_t elapsed_ns = now_ns - patience->filled_ns;
    uint64_t amount = elapsed_ns >= 60 * NS_PER_S ? FULL : elapsed_ns * PER_S / NS_PER_S;
    if (amount == 0)
        return;
    weir_rpc_patience_earn(patience, amount < FULL ? (unsigned)amount : FULL);
    patience->filled_ns = now_ns;
}

bool weir_rpc_patience_spend(weir_rpc_patience *patience, unsigned cost)
{
    if (cost > patience->left)
        fill(patience);
    if (cost > patience->left)
        return false;
    patience->left -= cost;
    return true;
}

unsigned weir_rpc_frame_cost(uint8_t type, uint8_t flags, size_t n_bytes)
{
    switch (type) {
    case NGHTTP2_DATA:
        if (flags & NGHTTP2_FLAG_END_STREAM)
            return 0;
        return n_bytes == 0 ? 8 : n_bytes < TINY_BYTES ? 2 : 0;
    case NGHTTP2_HEADERS:
    case NGHTTP2_CONTINUATION:
        return 1 + (unsigned)(n_bytes / 128); /* header compression makes much of little */
    case NGHTTP2_RST_STREAM:
        return 10;
    case NGHTTP2_SETTINGS:
        return 8;
    case NGHTTP2_WINDOW_UPDATE:
        return 1;
    default:
        return 4;
    }
}
