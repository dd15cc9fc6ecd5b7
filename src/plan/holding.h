/* SPDX-License-Identifier: Apache-2.0 */
/* holding.h - which box of a source which trainer ranks hold. */
#ifndef WEIR_PLAN_HOLDING_H
#define WEIR_PLAN_HOLDING_H

#include "weir/mesh.h"

/* Boxes are disjoint, in row-major order, none of them empty. rank … rank + n_owners - 1 hold it,
 * counted from the first rank of the tensor's stage. */
typedef struct weir_holding {
    uint32_t rank, n_owners;
    uint32_t box; /* tells boxes of one rank apart, which are no piece of memory together; of a mesh
                     the how manieth of the source's parts that are cut one by one */
    uint64_t row_lo, row_hi, col_lo, col_hi;
} weir_holding;

/* Where experts are: of which expert rank, and as the how manieth of how many there. */
typedef struct weir_expert_place {
    uint32_t owner, place, n_local;
} weir_expert_place;

/* The chunk of n things that torch.chunk gives to index i of k: ceil(n / k), and what is left. */
void weir_torch_chunk(uint64_t n, uint64_t k, uint64_t i, uint64_t *lo, uint64_t *hi);

/* ERR_LAYOUT when an owner map does not fit. `places` has n_experts entries. */
weir_status weir_expert_places(const weir_trainer_mesh *mesh, const weir_fleet_tensor *tensor,
                               weir_expert_place *places);

/* The most boxes of one source (of one expert). */
size_t weir_holdings_most(const weir_trainer_mesh *mesh);
/* Who holds one source (of one expert: `place` says where that is; NULL without experts). Returns
 * how many boxes. The mesh has no 0. */
size_t weir_holdings_of(const weir_trainer_mesh *mesh, const weir_fleet_tensor *tensor,
                        uint32_t source, const weir_expert_place *place, weir_holding *holdings);

/* The boxes that rank `rank` of the stage has in memory, in the order of its rows there: its chunk
 * of each part, or all that tensor parallelism leaves of it where it holds those whole. Returns how
 * many. */
size_t weir_holdings_of_rank(const weir_trainer_mesh *mesh, const weir_fleet_tensor *tensor,
                             uint32_t source, const weir_expert_place *place, uint32_t rank,
                             weir_holding holdings[WEIR_MAX_PARTS]);

#endif
