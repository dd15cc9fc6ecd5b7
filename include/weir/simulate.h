/* SPDX-License-Identifier: Apache-2.0 */
/* simulate.h - how long bytes take over links that flows share: pure data in, pure data out.
 *
 * A fluid model. A link carries so many bytes a second, a full-duplex wire is two of them. A flow
 * crosses up to WEIR_FLOW_LINKS links at one rate. Those under way share max-min fair: all rates
 * rise together until a link is full, its flows stay there, the others rise on. When a flow begins
 * or ends, rates are worked out anew. There are no packets, no congestion but that of the links,
 * and a start is all that a flow knows of latency.
 *
 * Threads    a pure function: equal arguments, equal figures, on every machine to rounding.
 * Ownership  borrows everything until it returns.
 * Errors     ERR_INVALID for a link without a rate or a flow over no or unknown links, by number.
 */
#ifndef WEIR_SIMULATE_H
#define WEIR_SIMULATE_H

#include "weir/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WEIR_FLOW_LINKS 4

typedef struct weir_flow {
    double n_bytes, start_seconds;   /* neither negative */
    uint32_t links[WEIR_FLOW_LINKS]; /* different ones; those not used are WEIR_ANY, at the end */
} weir_flow;

typedef struct weir_simulate_args {
    size_t size; /* sizeof(weir_simulate_args) */
    const double *link_rates; /* bytes per second, at least 1 */
    size_t n_links;
    const weir_flow *flows;
    size_t n_flows;
    double step; /* rates are worked out at most once in this share of the bound: what flows that
                    end meanwhile leave free is unused until then. 0: 1/512 */
    double *ends; /* when each flow is through, in seconds; NULL: not wanted */
} weir_simulate_args;
#define WEIR_SIMULATE_ARGS_INIT WEIR_SIZED(weir_simulate_args)

typedef struct weir_simulation {
    double seconds;       /* until the last flow is through; at least bound_seconds */
    double bound_seconds; /* the speed of light: most bytes / rate of all links, from time 0 */
    uint32_t bound_link;  /* whose that is, the first of equals; WEIR_ANY when no byte flows */
} weir_simulation;

/* Takes time as flows * steps. */
WEIR_API weir_status weir_simulate(const weir_simulate_args *args, weir_simulation *out);

#ifdef __cplusplus
}
#endif
#endif
