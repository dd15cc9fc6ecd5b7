/* SPDX-License-Identifier: Apache-2.0 */
/* share_loan.c - lists of what is lent or borrowed: the pieces in order, bytes added up rank by
 * rank.
 */
#include "plan/share_loan.h"

#include "base/alloc.h"
#include "base/error.h"

#define ROWS_ALIGNMENT 16

static weir_status open_list(weir_loan_list *list, uint32_t n_ranks)
{
    list->bytes = weir_alloc_zeroed(n_ranks, sizeof(list->bytes[0]));
    list->n_pieces = weir_alloc_zeroed(n_ranks, sizeof(list->n_pieces[0]));
    return list->bytes != NULL && list->n_pieces != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static void close_list(weir_loan_list *list)
{
    weir_free(list->rows);
    weir_free(list->bytes);
    weir_free(list->n_pieces);
}

weir_status weir_loans_open(weir_loans *loans, uint32_t n_ranks)
{
    loans->n_ranks = n_ranks;
    weir_status status = open_list(&loans->borrowed, n_ranks);
    return status == WEIR_OK ? open_list(&loans->lent, n_ranks) : status;
}

void weir_loans_close(weir_loans *loans)
{
    close_list(&loans->borrowed);
    close_list(&loans->lent);
    weir_free(loans->trades);
}

size_t weir_loans_pieces(const weir_loans *loans, const weir_loan_list *list)
{
    return list->n_rows + loans->n_trades;
}

/* ---- adding ----------------------------------------------------------------------------------*/

/* Room for one more in the array whose pointer is at `block`. */
static bool make_room(void *block, size_t *room, size_t n, size_t item_bytes)
{
    void **array = block;
    if (n < *room)
        return true;
    size_t wanted = *room * 2 + 64;
    void *grown = weir_realloc(*array, wanted * item_bytes);
    if (grown == NULL)
        return false;
    *array = grown;
    *room = wanted;
    return true;
}

static uint64_t take_bytes(weir_loan_list *list, uint32_t other, uint64_t alignment,
                           uint64_t n_bytes)
{
    uint64_t *bytes = &list->bytes[other];
    uint64_t offset = (*bytes + alignment - 1) / alignment * alignment;
    list->n_loans += *bytes == 0 ? 1 : 0;
    list->n_pieces[other]++;
    *bytes = offset + n_bytes;
    return offset;
}

weir_status weir_loans_add_rows(const weir_loans *loans, weir_loan_list *list,
                                const weir_fleet_tensor *tensor, const weir_fleet_copy *copy,
                                const weir_fleet_piece *piece, uint32_t other)
{
    if (!make_room(&list->rows, &list->rows_room, list->n_rows, sizeof(list->rows[0])))
        return WEIR_ERR_NO_MEMORY;
    weir_loan_rows *made = &list->rows[list->n_rows++];
    made->n_trades = loans->n_trades;
    made->piece = (weir_share_piece){ .tensor = copy->tensor,
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
        made->piece.offset =
            take_bytes(list, other, ROWS_ALIGNMENT,
                       ((uint64_t)piece->n_rows * piece->n_cols * tensor->source_bits + 7) / 8);
    return WEIR_OK;
}

weir_status weir_loans_trade(weir_loans *loans, const weir_share_border *border, uint32_t index,
                             uint32_t other)
{
    uint64_t n_bytes = (uint64_t)border->n_block_rows * border->n_block_cols * sizeof(float);
    if (!make_room(&loans->trades, &loans->trades_room, loans->n_trades, sizeof(loans->trades[0])))
        return WEIR_ERR_NO_MEMORY;
    weir_loan_trade *made = &loans->trades[loans->n_trades++];
    made->border = index;
    made->other = other;
    made->borrowed_offset = take_bytes(&loans->borrowed, other, sizeof(float), n_bytes);
    made->lent_offset = take_bytes(&loans->lent, other, sizeof(float), n_bytes);
    return WEIR_OK;
}

/* ---- writing ---------------------------------------------------------------------------------*/

/* Where each rank's pieces go: all ranks' to one place after another, or each loan's to its own. */
typedef struct writer {
    const weir_share_border *borders;
    bool is_lent;
    const uint32_t *index; /* of each rank's loan */
    weir_share_loan *loans;
    weir_share_piece *pieces;
    size_t n;
} writer;

static weir_share_piece *next_piece(writer *w, uint32_t loan)
{
    if (!w->is_lent)
        return &w->pieces[w->n++];
    weir_share_loan *to = &w->loans[loan];
    return &w->pieces[to->first_piece + to->n_pieces++];
}

static void write_trade(writer *w, const weir_loan_trade *trade)
{
    const weir_share_border *border = &w->borders[trade->border];
    uint32_t loan = w->index[trade->other];
    *next_piece(w, loan) =
        (weir_share_piece){ .tensor = border->copy.tensor,
                            .source = WEIR_FLEET_MIXED,
                            .expert = border->copy.expert,
                            .n_rows = border->n_block_rows,
                            .n_cols = border->n_block_cols,
                            .row = border->copy.row,
                            .col = border->copy.col,
                            .loan = loan,
                            .offset = w->is_lent ? trade->lent_offset : trade->borrowed_offset,
                            .border = trade->border };
}

static void write_rows(writer *w, const weir_share_piece *rows)
{
    uint32_t loan = rows->loan != WEIR_ANY ? w->index[rows->loan] : WEIR_ANY;
    weir_share_piece *to = next_piece(w, loan);
    *to = *rows;
    to->loan = loan;
}

static void write_loans(const weir_loans *loans, const weir_loan_list *list, bool is_lent,
                        uint32_t *index, weir_share_loan *out)
{
    uint32_t n = 0;
    size_t first = 0;
    for (uint32_t rank = 0; rank < loans->n_ranks; rank++) {
        if (list->bytes[rank] == 0)
            continue;
        out[n] = (weir_share_loan){ .rank = rank, .n_bytes = list->bytes[rank] };
        out[n].first_piece = is_lent ? first : 0;
        first += list->n_pieces[rank];
        index[rank] = n++;
    }
}

weir_status weir_loans_write(const weir_loans *loans, const weir_loan_list *list,
                             const weir_share_border *borders, weir_share_loan *out_loans,
                             weir_share_piece *out_pieces)
{
    uint32_t *index = weir_alloc_zeroed(loans->n_ranks, sizeof(*index));
    if (index == NULL)
        return WEIR_ERR_NO_MEMORY;
    writer w = { borders, list == &loans->lent, index, out_loans, out_pieces, 0 };
    size_t t = 0;
    write_loans(loans, list, w.is_lent, index, out_loans);
    for (size_t i = 0; i < list->n_rows; i++) {
        for (; t < list->rows[i].n_trades; t++)
            write_trade(&w, &loans->trades[t]);
        write_rows(&w, &list->rows[i].piece);
    }
    for (; t < loans->n_trades; t++)
        write_trade(&w, &loans->trades[t]);
    weir_free(index);
    return WEIR_OK;
}
