/* SPDX-License-Identifier: Apache-2.0 */
/* share_loan.h - what a rank hands others and gets of them, so that one of them makes a border,
 * or each its rows of it.
 *
 * Lender and borrower go through the same borders in the same order, so both come to the same
 * places without a word. Magnitudes go both ways, from each rank of a border to each other one:
 * they are by far the most where many ranks share each block, so until all are known one short
 * trade stands for both directions.
 */
#ifndef WEIR_PLAN_SHARE_LOAN_H
#define WEIR_PLAN_SHARE_LOAN_H

#include "plan/fleet.h"

/* A border's magnitudes, to and from one rank. */
typedef struct weir_loan_trade {
    uint32_t border, other;
    uint64_t borrowed_offset, lent_offset;
} weir_loan_trade;

/* Rows of a border; `loan` is the other's rank until loans are listed. */
typedef struct weir_loan_rows {
    weir_share_piece piece;
    size_t n_trades; /* that come before it */
} weir_loan_rows;

/* One direction. */
typedef struct weir_loan_list {
    weir_loan_rows *rows;
    uint64_t *bytes;  /* by rank */
    size_t *n_pieces; /* by rank: rows and trades */
    size_t n_rows, rows_room, n_loans;
} weir_loan_list;

typedef struct weir_loans {
    weir_loan_list borrowed, lent; /* what is borrowed has pieces of this rank's own among it */
    weir_loan_trade *trades;
    size_t n_trades, trades_room;
    uint32_t n_ranks;
} weir_loans;

/* All zero before. */
weir_status weir_loans_open(weir_loans *loans, uint32_t n_ranks);
void weir_loans_close(weir_loans *loans);
/* How many pieces a direction comes to. */
size_t weir_loans_pieces(const weir_loans *loans, const weir_loan_list *list);

/* Adds a piece of a border of `tensor`, to one direction; of rank `other`, WEIR_ANY: nobody, it is
 * here. */
weir_status weir_loans_add_rows(const weir_loans *loans, weir_loan_list *list,
                                const weir_fleet_tensor *tensor, const weir_fleet_copy *copy,
                                const weir_fleet_piece *piece, uint32_t other);

/* Adds the magnitudes of a border, which has index `index`, to and from rank `other`. */
weir_status weir_loans_trade(weir_loans *loans, const weir_share_border *border, uint32_t index,
                             uint32_t other);

/* Writes a direction's n_loans loans, by rank, and its pieces: what is lent loan by loan, what is
 * borrowed in the order it was added. */
weir_status weir_loans_write(const weir_loans *loans, const weir_loan_list *list,
                             const weir_share_border *borders, weir_share_loan *out_loans,
                             weir_share_piece *out_pieces);

#endif
