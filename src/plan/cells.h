/* SPDX-License-Identifier: Apache-2.0 */
/* cells.h - one worker's matrix cut into copies that keep to the grid of its scale blocks. */
#ifndef WEIR_PLAN_CELLS_H
#define WEIR_PLAN_CELLS_H

#include "weir/mesh.h"

/* A box of the worker's matrix and who holds what it is made from. */
typedef struct weir_cell_box {
    uint32_t rank, n_owners, box; /* as in weir_holding */
    uint32_t source;
    uint64_t row_lo, row_hi, col_lo, col_hi;
    uint64_t source_row, source_col; /* of the first row and column */
} weir_cell_box;

/* A copy of which the tensor is open. n_owners: ranks from copy.rank on hold it. Of a border it is
 * how many ranks hold most of it, and copy.rank is open too. */
typedef struct weir_rule {
    weir_fleet_copy copy;
    uint32_t n_owners;
    uint32_t box;  /* as in weir_holding; of a border 0 */
    uint32_t turn; /* of a border: whose turn it is among its owners */
} weir_rule;

/* A piece of which the owner is open, and whose rank is the first of n_owners. */
typedef struct weir_rule_piece {
    weir_fleet_piece piece;
    uint32_t n_owners, box;
    bool may_own; /* its rank holds most of the border; true once for each such rank */
} weir_rule_piece;

typedef struct weir_grid {
    uint64_t n_rows, n_cols; /* that are filled */
    uint64_t block_rows, block_cols;
    uint32_t slot, expert;
} weir_grid;

/* Rules of any number of matrices, one behind the other. All zero at first. */
typedef struct weir_cells {
    weir_rule *rules;
    weir_rule_piece *pieces;
    weir_cell_box *boxes; /* of the matrix at hand */
    uint64_t *row_lines, *col_lines;
    size_t n_rules, n_pieces, n_boxes, n_row_lines, n_col_lines;
    size_t rules_room, pieces_room, boxes_room, row_room, col_room;
    uint32_t n_borders;
} weir_cells;

void weir_cells_close(weir_cells *cells);
/* Adds a box to the matrix at hand: row_lo never falls from one to the next. */
weir_status weir_cells_put(weir_cells *cells, const weir_cell_box *box);
/* The boxes tile the matrix: makes its rules, and forgets the boxes. */
weir_status weir_cells_make(weir_cells *cells, const weir_grid *grid);

#endif
