/* SPDX-License-Identifier: Apache-2.0 */
/* held.h - holdings of a trainer that says box by box who holds what. */
#ifndef WEIR_PLAN_HELD_H
#define WEIR_PLAN_HELD_H

#include "plan/holding.h"

/* All zero before it is opened. */
typedef struct weir_held_list {
    weir_held *sorted; /* by tensor, source, then row */
    size_t n;
    uint64_t *given; /* elements that each rank has been asked for */
    uint32_t n_ranks;
    uint64_t *lines; /* scratch */
    weir_holding *holdings;
    size_t lines_room, holdings_room;
} weir_held_list;

/* ERR_INVALID for a box that lies outside its source. */
weir_status weir_held_open(weir_held_list *list, const weir_held *held, size_t n_held,
                           const weir_fleet_tensor *tensors, size_t n_tensors);
void weir_held_close(weir_held_list *list);

/* What a source (of one expert) is taken from, in row-major order, each element once: of several
 * holders the one that has been asked for least. ERR_LAYOUT when a part is nowhere. The answer
 * lives until the next call. */
weir_status weir_held_holdings(weir_held_list *list, uint32_t tensor_index,
                               const weir_fleet_tensor *tensor, uint32_t source, uint32_t expert,
                               const weir_holding **out, size_t *out_n);

#endif
