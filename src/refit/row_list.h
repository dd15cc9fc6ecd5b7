/* SPDX-License-Identifier: Apache-2.0 */
/* row_list.h - copies of rows, joined as they come: on a GPU every copy costs microseconds, however
 * short it is, and a stack of experts that several ranks hold comes in thousands of pieces.
 *
 * Pieces that lie side by side at both ends become a longer one; pieces of one length that follow
 * each other at equal distances at both ends, the rows of one copy. Order is not kept: nothing may
 * be written twice, or read after it was written. Pure: no allocation, no I/O.
 */
#ifndef WEIR_REFIT_ROW_LIST_H
#define WEIR_REFIT_ROW_LIST_H

#include "refit/work.h"

/* Shards of weights and of their scales take turns: so many are looked back at. */
#define WEIR_ROW_LIST_OPEN 8u

typedef struct weir_row_list {
    weir_work_rows *rows; /* borrowed: room for one per call of add */
    size_t n;
    uint32_t pieces[WEIR_ROW_LIST_OPEN]; /* of the last ones, by their number modulo so many */
} weir_row_list;

/* Adds `rows`. `piece` tells pieces of memory apart that were allocated one by one: a copy does not
 * reach from one into another, where there may be nothing. */
void weir_row_list_add(weir_row_list *list, const weir_work_rows *rows, uint32_t piece);

#endif
