/* SPDX-License-Identifier: Apache-2.0 */
/* cells.c - where boxes meet within a block of scales, one rank must own the block.
 *
 * Every line at which boxes end is widened to the blocks that it runs through. That divides the
 * matrix into cells: one lies in one box, and is a plain copy, or is a border, one block high or
 * wide, made of pieces of several. The owner is the holder of most of it, so that the fewest bytes
 * move between trainer ranks. Where several hold as much and the border is many blocks high (a
 * scale per row, under a trainer that cuts columns), each owns an equal share of its rows: no rank
 * gathers a matrix.
 */
#include "plan/cells.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

/* The first of `block` must be the array's pointer. */
static bool make_room(void *block, size_t *room, size_t n, size_t item_bytes)
{
    void **array = block;
    if (n < *room)
        return true;
    size_t wanted = *room < 64 ? 64 : *room * 2;
    void *grown = weir_realloc(*array, wanted * item_bytes);
    if (grown == NULL)
        return false;
    *array = grown;
    *room = wanted;
    return true;
}

void weir_cells_close(weir_cells *cells)
{
    weir_free(cells->rules);
    weir_free(cells->pieces);
    weir_free(cells->boxes);
    weir_free(cells->row_lines);
    weir_free(cells->col_lines);
    memset(cells, 0, sizeof(*cells));
}

weir_status weir_cells_put(weir_cells *cells, const weir_cell_box *box)
{
    if (!make_room(&cells->boxes, &cells->boxes_room, cells->n_boxes, sizeof(*box)))
        return WEIR_ERR_NO_MEMORY;
    cells->boxes[cells->n_boxes++] = *box;
    return WEIR_OK;
}

/* ---- lines -----------------------------------------------------------------------------------*/

typedef struct line_list {
    uint64_t **lines;
    size_t *n, *room;
    uint64_t block, end;
} line_list;

static bool add_line(const line_list *list, uint64_t at)
{
    uint64_t low = at / list->block * list->block;
    uint64_t high = at == low ? at : low + list->block;
    if (!make_room(list->lines, list->room, *list->n + 1, sizeof(uint64_t)))
        return false;
    (*list->lines)[(*list->n)++] = low;
    (*list->lines)[(*list->n)++] = high < list->end && at < list->end ? high : list->end;
    return true;
}

/* A line at the end is where the last, ragged block ends. */
static bool add_end(const line_list *list, uint64_t at)
{
    if (at < list->end)
        return add_line(list, at);
    if (!make_room(list->lines, list->room, *list->n, sizeof(uint64_t)))
        return false;
    (*list->lines)[(*list->n)++] = list->end;
    return true;
}

static int compare_lines(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void sort_lines(const line_list *list)
{
    uint64_t *lines = *list->lines;
    size_t n = 0;
    qsort(lines, *list->n, sizeof(*lines), compare_lines);
    for (size_t i = 0; i < *list->n; i++) {
        if (n == 0 || lines[n - 1] != lines[i])
            lines[n++] = lines[i];
    }
    *list->n = n;
}

static weir_status find_lines(weir_cells *cells, const weir_grid *grid)
{
    line_list rows = { &cells->row_lines, &cells->n_row_lines, &cells->row_room, grid->block_rows,
                       grid->n_rows };
    line_list cols = { &cells->col_lines, &cells->n_col_lines, &cells->col_room, grid->block_cols,
                       grid->n_cols };
    cells->n_row_lines = cells->n_col_lines = 0;
    for (size_t i = 0; i < cells->n_boxes; i++) {
        const weir_cell_box *box = &cells->boxes[i];
        if (!add_end(&rows, box->row_lo) || !add_end(&rows, box->row_hi) ||
            !add_end(&cols, box->col_lo) || !add_end(&cols, box->col_hi))
            return WEIR_ERR_NO_MEMORY;
    }
    sort_lines(&rows);
    sort_lines(&cols);
    return WEIR_OK;
}

/* ---- one cell --------------------------------------------------------------------------------*/

typedef struct cell {
    uint64_t row_lo, row_hi, col_lo, col_hi;
} cell;

static bool intersect(const weir_cell_box *box, const cell *c, cell *out)
{
    out->row_lo = box->row_lo > c->row_lo ? box->row_lo : c->row_lo;
    out->row_hi = box->row_hi < c->row_hi ? box->row_hi : c->row_hi;
    out->col_lo = box->col_lo > c->col_lo ? box->col_lo : c->col_lo;
    out->col_hi = box->col_hi < c->col_hi ? box->col_hi : c->col_hi;
    return out->row_lo < out->row_hi && out->col_lo < out->col_hi;
}

static weir_rule_piece piece_of(const weir_cell_box *box, const cell *at)
{
    return (weir_rule_piece){
        .piece = { .rank = box->rank,
                   .row = (uint32_t)at->row_lo,
                   .n_rows = (uint32_t)(at->row_hi - at->row_lo),
                   .col = (uint32_t)at->col_lo,
                   .n_cols = (uint32_t)(at->col_hi - at->col_lo),
                   .source = box->source,
                   .source_row = (uint32_t)(box->source_row + at->row_lo - box->row_lo),
                   .source_col = (uint32_t)(box->source_col + at->col_lo - box->col_lo) },
        .n_owners = box->n_owners,
        .box = box->box,
    };
}

static uint64_t elements_of(const weir_rule_piece *pieces, size_t n, uint32_t rank)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        if (pieces[i].piece.rank == rank)
            sum += (uint64_t)pieces[i].piece.n_rows * pieces[i].piece.n_cols;
    }
    return sum;
}

static bool seen_before(const weir_rule_piece *pieces, size_t i)
{
    for (size_t k = 0; k < i; k++) {
        if (pieces[k].piece.rank == pieces[i].piece.rank)
            return true;
    }
    return false;
}

/* Marks the pieces whose ranks hold most, and returns how many ranks do. */
static uint32_t mark_owners(weir_rule_piece *pieces, size_t n)
{
    uint64_t most = 0;
    uint32_t n_equal = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t sum = elements_of(pieces, n, pieces[i].piece.rank);
        most = sum > most ? sum : most;
    }
    for (size_t i = 0; i < n; i++) {
        pieces[i].may_own =
            elements_of(pieces, n, pieces[i].piece.rank) == most && !seen_before(pieces, i);
        n_equal += pieces[i].may_own ? 1 : 0;
    }
    return n_equal;
}

static weir_status add_rule(weir_cells *cells, const weir_grid *grid, const cell *c,
                            size_t first_piece)
{
    size_t n = cells->n_pieces - first_piece;
    weir_rule_piece *pieces = cells->pieces + first_piece;
    if (!make_room(&cells->rules, &cells->rules_room, cells->n_rules, sizeof(weir_rule)))
        return WEIR_ERR_NO_MEMORY;
    weir_rule *rule = &cells->rules[cells->n_rules++];
    *rule = (weir_rule){ .copy = { .slot = grid->slot,
                                   .expert = grid->expert,
                                   .row = (uint32_t)c->row_lo,
                                   .n_rows = (uint32_t)(c->row_hi - c->row_lo),
                                   .col = (uint32_t)c->col_lo,
                                   .n_cols = (uint32_t)(c->col_hi - c->col_lo) } };
    if (n > 1) {
        rule->copy.source = WEIR_FLEET_MIXED;
        rule->copy.first_piece = (uint32_t)first_piece;
        rule->copy.n_pieces = (uint32_t)n;
        rule->n_owners = mark_owners(pieces, n);
        rule->turn = cells->n_borders++;
        return WEIR_OK;
    }
    rule->copy.rank = pieces->piece.rank;
    rule->copy.source = pieces->piece.source;
    rule->copy.source_row = pieces->piece.source_row;
    rule->copy.source_col = pieces->piece.source_col;
    rule->n_owners = pieces->n_owners;
    rule->box = pieces->box;
    cells->n_pieces = first_piece;
    return WEIR_OK;
}

/* Finds the cell's pieces. boxes[first] is the first that reaches into its rows. */
static weir_status find_pieces(weir_cells *cells, const cell *c, size_t first)
{
    uint64_t n_missing = (c->row_hi - c->row_lo) * (c->col_hi - c->col_lo);
    for (size_t i = first; i < cells->n_boxes && cells->boxes[i].row_lo < c->row_hi; i++) {
        cell at;
        if (!intersect(&cells->boxes[i], c, &at))
            continue;
        if (!make_room(&cells->pieces, &cells->pieces_room, cells->n_pieces,
                       sizeof(weir_rule_piece)))
            return WEIR_ERR_NO_MEMORY;
        cells->pieces[cells->n_pieces++] = piece_of(&cells->boxes[i], &at);
        n_missing -= (at.row_hi - at.row_lo) * (at.col_hi - at.col_lo);
    }
    if (n_missing != 0)
        return weir_fail(WEIR_ERR_INTERNAL, "boxes do not tile a matrix");
    return WEIR_OK;
}

/* Into how many runs of whole blocks a cell divides, one for each that may own it. Several blocks
 * high, it has no line across: all its pieces are as high, and so are those of each run. */
static uint64_t count_runs(const weir_cells *cells, const weir_grid *grid, const cell *c,
                           size_t first_piece)
{
    size_t n = cells->n_pieces - first_piece;
    uint64_t n_blocks = (c->row_hi - c->row_lo + grid->block_rows - 1) / grid->block_rows;
    if (n < 2 || n_blocks < 2)
        return 1;
    uint64_t n_owners = mark_owners(cells->pieces + first_piece, n);
    return n_owners < n_blocks ? n_owners : n_blocks;
}

static weir_status make_cell(weir_cells *cells, const weir_grid *grid, const cell *c, size_t first,
                             bool *divided)
{
    size_t first_piece = cells->n_pieces;
    weir_status status = find_pieces(cells, c, first);
    if (status != WEIR_OK)
        return status;
    uint64_t n_runs = count_runs(cells, grid, c, first_piece);
    if (n_runs == 1)
        return add_rule(cells, grid, c, first_piece);
    uint64_t n_blocks = (c->row_hi - c->row_lo + grid->block_rows - 1) / grid->block_rows;
    cells->n_pieces = first_piece;
    *divided = true;
    for (uint64_t i = 0; i < n_runs && status == WEIR_OK; i++) {
        cell run = *c;
        run.row_lo = c->row_lo + n_blocks * i / n_runs * grid->block_rows;
        if (i + 1 < n_runs)
            run.row_hi = c->row_lo + n_blocks * (i + 1) / n_runs * grid->block_rows;
        first_piece = cells->n_pieces;
        status = find_pieces(cells, &run, first);
        if (status == WEIR_OK)
            status = add_rule(cells, grid, &run, first_piece);
    }
    return status;
}

/* ---- rows of cells ---------------------------------------------------------------------------*/

static bool same_holder(const weir_rule *a, const weir_rule *b)
{
    return a->copy.source != WEIR_FLEET_MIXED && a->copy.source == b->copy.source &&
           a->copy.rank == b->copy.rank && a->n_owners == b->n_owners && a->box == b->box;
}

static void join_left(weir_cells *cells, size_t row_first)
{
    if (cells->n_rules < row_first + 2)
        return;
    weir_rule *a = &cells->rules[cells->n_rules - 2], *b = a + 1;
    if (same_holder(a, b) && a->copy.source_row == b->copy.source_row &&
        a->copy.source_col + a->copy.n_cols == b->copy.source_col) {
        a->copy.n_cols += b->copy.n_cols;
        cells->n_rules--;
    }
}

/* Joins a row of cells, rules[second] on, to the one above it where all of it continues that. */
static bool join_up(weir_cells *cells, size_t first, size_t second)
{
    size_t n = second - first;
    if (n == 0 || cells->n_rules - second != n)
        return false;
    for (size_t i = 0; i < n; i++) {
        const weir_rule *a = &cells->rules[first + i], *b = &cells->rules[second + i];
        if (!same_holder(a, b) || a->copy.col != b->copy.col || a->copy.n_cols != b->copy.n_cols ||
            a->copy.source_col != b->copy.source_col ||
            a->copy.source_row + a->copy.n_rows != b->copy.source_row)
            return false;
    }
    for (size_t i = 0; i < n; i++)
        cells->rules[first + i].copy.n_rows += cells->rules[second + i].copy.n_rows;
    cells->n_rules = second;
    return true;
}

static int compare_rules(const void *a, const void *b)
{
    const weir_fleet_copy *x = &((const weir_rule *)a)->copy, *y = &((const weir_rule *)b)->copy;
    if (x->row != y->row)
        return x->row < y->row ? -1 : 1;
    return (x->col > y->col) - (x->col < y->col);
}

/* One row of cells, [row_lo, row_hi). */
static weir_status make_row(weir_cells *cells, const weir_grid *grid, uint64_t row_lo,
                            uint64_t row_hi, size_t first_box)
{
    size_t row_first = cells->n_rules;
    cell c = { .row_lo = row_lo, .row_hi = row_hi };
    bool divided = false;
    weir_status status = WEIR_OK;
    for (size_t k = 0; k + 1 < cells->n_col_lines && status == WEIR_OK; k++) {
        c.col_lo = cells->col_lines[k];
        c.col_hi = cells->col_lines[k + 1];
        status = make_cell(cells, grid, &c, first_box, &divided);
        if (status == WEIR_OK)
            join_left(cells, row_first);
    }
    if (status == WEIR_OK && divided)
        qsort(cells->rules + row_first, cells->n_rules - row_first, sizeof(weir_rule),
              compare_rules);
    return status;
}

weir_status weir_cells_make(weir_cells *cells, const weir_grid *grid)
{
    weir_status status = find_lines(cells, grid);
    size_t above = cells->n_rules, first_box = 0;
    for (size_t r = 0; r + 1 < cells->n_row_lines && status == WEIR_OK; r++) {
        size_t row_first = cells->n_rules;
        while (cells->boxes[first_box].row_hi <= cells->row_lines[r])
            first_box++;
        status = make_row(cells, grid, cells->row_lines[r], cells->row_lines[r + 1], first_box);
        if (status == WEIR_OK && !join_up(cells, above, row_first))
            above = row_first;
    }
    cells->n_boxes = 0;
    return status;
}
