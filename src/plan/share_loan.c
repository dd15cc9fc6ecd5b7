/* SPDX-License-Identifier: Apache-2.0 */
/* share_loan.c - lists of what is lent or borrowed: the pieces in order, bytes added up rank by
 * rank.
 */
#include "plan/share_loan.h"

#include "base/alloc.h"
#include "base/error.h"

#define ROWS_ALIGNMENT 16

weir_status weir_loan_list_open(weir_loan_list *list, uint32_t n_ranks)
{
    list->n_ranks = n_ranks;
    list->bytes = weir_alloc_zeroed(n_ranks, sizeof(list->bytes[0]));
    return list->bytes != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

void weir_loan_list_close(weir_loan_list *list)
{
    weir_free(list->bytes);
    weir_free(list->pieces);
}

static weir_share_piece *new_piece(weir_loan_list *list)
{
    if (list->n_pieces == list->room) {
        size_t room = list->room * 2 + 64;
        weir_share_piece *grown = weir_realloc(list->pieces, room * sizeof(*grown));
        if (grown == NULL)
            return NULL;
        list->pieces = grown;
        list->room = room;
    }
    return &list->pieces[list->n_pieces++];
}

static uint64_t take_bytes(weir_loan_list *list, uint32_t other, uint64_t alignment,
                           uint64_t n_bytes)
{
    uint64_t *bytes = &list->bytes[other];
    uint64_t offset = (*bytes + alignment - 1) / alignment * alignment;
    list->n_loans += *bytes == 0 ? 1 : 0;
    *bytes = offset + n_bytes;
    return offset;
}

weir_status weir_loan_list_add(weir_loan_list *list, const weir_fleet_tensor *tensor,
                               const weir_fleet_copy *copy, const weir_fleet_piece *piece,
                               uint32_t other)
{
    weir_share_piece *made = new_piece(list);
    if (made == NULL)
        return WEIR_ERR_NO_MEMORY;
    *made = (weir_share_piece){ .tensor = copy->tensor,
                                .source = piece->source,
                                .expert = copy->expert,
                                .source_row = piece->source_row,
                                .source_col = piece->source_col,
                                .n_rows = piece->n_rows,
                                .n_cols = piece->n_cols,
                                .row = piece->row,
                                .col = piece->col,
                                .loan = other,
                                .border = WEIR_ANY };
    if (other != WEIR_ANY)
        made->offset =
            take_bytes(list, other, ROWS_ALIGNMENT,
                       ((uint64_t)piece->n_rows * piece->n_cols * tensor->source_bits + 7) / 8);
    return WEIR_OK;
}

weir_status weir_loan_list_add_magnitudes(weir_loan_list *list, const weir_share_border *border,
                                          uint32_t index, uint32_t other)
{
    weir_share_piece *made = new_piece(list);
    if (made == NULL)
        return WEIR_ERR_NO_MEMORY;
    uint64_t n_bytes = (uint64_t)border->n_block_rows * border->n_block_cols * sizeof(float);
    *made = (weir_share_piece){ .tensor = border->copy.tensor,
                                .source = WEIR_FLEET_MIXED,
                                .expert = border->copy.expert,
                                .n_rows = border->n_block_rows,
                                .n_cols = border->n_block_cols,
                                .row = border->copy.row,
                                .col = border->copy.col,
                                .loan = other,
                                .offset = take_bytes(list, other, sizeof(float), n_bytes),
                                .border = index };
    return WEIR_OK;
}

weir_status weir_loan_list_write(weir_loan_list *list, weir_share_loan *loans)
{
    uint32_t *index = weir_alloc_zeroed(list->n_ranks, sizeof(*index)), n = 0;
    if (index == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (uint32_t rank = 0; rank < list->n_ranks; rank++) {
        if (list->bytes[rank] == 0)
            continue;
        loans[n] = (weir_share_loan){ .rank = rank, .n_bytes = list->bytes[rank] };
        index[rank] = n++;
    }
    for (size_t i = 0; i < list->n_pieces; i++) {
        uint32_t *loan = &list->pieces[i].loan;
        *loan = *loan != WEIR_ANY ? index[*loan] : WEIR_ANY;
    }
    weir_free(index);
    return WEIR_OK;
}

void weir_loan_list_group(const weir_loan_list *list, weir_share_loan *loans,
                          weir_share_piece *pieces)
{
    size_t n = 0;
    for (size_t i = 0; i < list->n_pieces; i++)
        loans[list->pieces[i].loan].n_pieces++;
    for (size_t k = 0; k < list->n_loans; k++) {
        loans[k].first_piece = n;
        n += loans[k].n_pieces;
        loans[k].n_pieces = 0;
    }
    for (size_t i = 0; i < list->n_pieces; i++) {
        weir_share_loan *loan = &loans[list->pieces[i].loan];
        pieces[loan->first_piece + loan->n_pieces++] = list->pieces[i];
    }
}
