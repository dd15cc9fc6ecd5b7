/* SPDX-License-Identifier: Apache-2.0 */
/* share_loan.h - what a rank hands others and gets of them, so that one of them makes a border,
 * or each its rows of it.
 *
 * Lender and borrower go through the same borders in the same order, so both come to the same
 * places without a word.
 */
#ifndef WEIR_PLAN_SHARE_LOAN_H
#define WEIR_PLAN_SHARE_LOAN_H

#include "plan/fleet.h"

/* A list of pieces and whom each is from or for. Loans carry the other's rank until they are
 * listed. */
typedef struct weir_loan_list {
    weir_share_piece *pieces;
    uint64_t *bytes; /* by rank */
    uint32_t n_ranks;
    size_t n_pieces, room, n_loans;
} weir_loan_list;

/* All zero before. */
weir_status weir_loan_list_open(weir_loan_list *list, uint32_t n_ranks);
void weir_loan_list_close(weir_loan_list *list);

/* Adds a piece of a border of `tensor`; of rank `other`, WEIR_ANY: nobody, it is here. */
weir_status weir_loan_list_add(weir_loan_list *list, const weir_fleet_tensor *tensor,
                               const weir_fleet_copy *copy, const weir_fleet_piece *piece,
                               uint32_t other);

/* Adds the magnitudes of a border, which has index `border`, of rank `other` or for it. */
weir_status weir_loan_list_add_magnitudes(weir_loan_list *list, const weir_share_border *border,
                                          uint32_t index, uint32_t other);

/* Writes n_loans loans by rank, and lets pieces name them by their index. */
weir_status weir_loan_list_write(weir_loan_list *list, weir_share_loan *loans);
/* Writes the pieces loan by loan, each loan's in their order, and where they begin. After
 * weir_loan_list_write(). */
void weir_loan_list_group(const weir_loan_list *list, weir_share_loan *loans,
                          weir_share_piece *pieces);

#endif
