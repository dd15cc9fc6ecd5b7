/* SPDX-License-Identifier: Apache-2.0 */
/* share_border.c - what one rank does about borders: blocks of scales that lie on several ranks.
 *
 * The owner of a border borrows the rows that it lacks and converts all of it; or, where scales
 * follow from magnitudes, all that have rows of it trade those, each converts its own rows, and the
 * owner publishes the scales.
 */
#include "base/error.h"
#include "plan/share_maker.h"

/* ---- borders that one rank converts ----------------------------------------------------------*/

weir_status weir_share_borrow_border(weir_share_maker *m, const weir_share_part *part,
                                     const weir_rule *rule, weir_fleet_copy *copy)
{
    const weir_fleet_tensor *tensor = &part->entry->tensor;
    weir_status status = WEIR_OK;
    if (weir_loans_pieces(&m->loans, &m->loans.borrowed) + copy->n_pieces > UINT32_MAX)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: more than 2^32 pieces of borders",
                         tensor->name);
    copy->first_piece = (uint32_t)weir_loans_pieces(&m->loans, &m->loans.borrowed);
    for (uint32_t k = 0; k < rule->copy.n_pieces && status == WEIR_OK; k++) {
        const weir_rule_piece *from = &m->fleet->cells.pieces[(size_t)rule->copy.first_piece + k];
        weir_fleet_piece piece = weir_fleet_border_piece(m->fleet, part->entry, from, m->rank);
        uint32_t other = piece.rank != m->rank ? piece.rank : WEIR_ANY;
        status = weir_loans_add_rows(&m->loans, &m->loans.borrowed, tensor, copy, &piece, other);
    }
    return status;
}

weir_status weir_share_lend_border(weir_share_maker *m, const weir_share_part *part,
                                   const weir_rule *rule, uint32_t owner)
{
    weir_fleet_copy copy = rule->copy;
    weir_status status = WEIR_OK;
    copy.tensor = part->tensor;
    for (uint32_t k = 0; k < rule->copy.n_pieces && status == WEIR_OK; k++) {
        const weir_rule_piece *from = &m->fleet->cells.pieces[(size_t)rule->copy.first_piece + k];
        weir_fleet_piece piece = weir_fleet_border_piece(m->fleet, part->entry, from, owner);
        if (piece.rank == m->rank)
            status = weir_loans_add_rows(&m->loans, &m->loans.lent, &part->entry->tensor, &copy,
                                         &piece, owner);
    }
    return status;
}

/* ---- borders that all their ranks convert ----------------------------------------------------*/

/* Converts a piece of border `index`, and its scales if they are this job's to make. */
static weir_status convert_piece(weir_share_maker *m, const weir_share_part *part,
                                 const weir_fleet_piece *piece, uint32_t index, bool scales,
                                 size_t first_job)
{
    const weir_conversion *conversion = part->entry->tensor.conversion;
    weir_share_job job = { .copy = m->borders[index].copy, .border = index };
    job.copy.rank = m->rank;
    job.copy.row = piece->row;
    job.copy.n_rows = piece->n_rows;
    job.copy.col = piece->col;
    job.copy.n_cols = piece->n_cols;
    job.copy.source = piece->source;
    job.copy.source_row = piece->source_row;
    job.copy.source_col = piece->source_col;
    for (size_t o = 0; o < conversion->n_outputs; o++) {
        if (!scales && !weir_fleet_output_is_plain(&conversion->outputs[o]))
            job.shards[o] = WEIR_ANY;
    }
    return weir_share_add_job(m, part, &job, first_job);
}

/* This rank's own pieces: jobs, and what its magnitudes are found in. */
static weir_status take_pieces(weir_share_maker *m, const weir_share_part *part,
                               const weir_rule *rule, uint32_t index, size_t first_job)
{
    const weir_rule_piece *pieces = &m->fleet->cells.pieces[rule->copy.first_piece];
    weir_fleet_copy copy = m->borders[index].copy;
    weir_status status = WEIR_OK;
    bool scales = copy.rank == m->rank;
    for (uint32_t k = 0; k < rule->copy.n_pieces && status == WEIR_OK; k++) {
        weir_fleet_piece piece =
            weir_fleet_border_piece(m->fleet, part->entry, &pieces[k], copy.rank);
        if (piece.rank != m->rank)
            continue;
        status = weir_loans_add_rows(&m->loans, &m->loans.borrowed, &part->entry->tensor, &copy,
                                     &piece, WEIR_ANY);
        if (status == WEIR_OK)
            status = convert_piece(m, part, &piece, index, scales, first_job);
        scales = false;
    }
    return status;
}

/* Magnitudes to and from every other rank that has pieces. */
static weir_status trade_magnitudes(weir_share_maker *m, const weir_share_part *part,
                                    const weir_rule *rule, uint32_t index)
{
    const weir_rule_piece *pieces = &m->fleet->cells.pieces[rule->copy.first_piece];
    const weir_share_border *border = &m->borders[index];
    weir_status status = WEIR_OK;
    m->met[m->rank] = index + 1;
    for (uint32_t k = 0; k < rule->copy.n_pieces && status == WEIR_OK; k++) {
        uint32_t other =
            weir_fleet_border_rank(m->fleet, part->entry, &pieces[k], border->copy.rank);
        if (m->met[other] == index + 1)
            continue;
        m->met[other] = index + 1;
        status = weir_loans_trade(&m->loans, border, index, other);
    }
    return status;
}

bool weir_share_has_piece(const weir_share_maker *m, const weir_share_part *part,
                          const weir_rule *rule, uint32_t owner)
{
    const weir_rule_piece *pieces = &m->fleet->cells.pieces[rule->copy.first_piece];
    for (uint32_t k = 0; k < rule->copy.n_pieces; k++) {
        if (weir_fleet_border_rank(m->fleet, part->entry, &pieces[k], owner) == m->rank)
            return true;
    }
    return false;
}

weir_status weir_share_make_border(weir_share_maker *m, const weir_share_part *part,
                                   const weir_rule *rule, uint32_t owner, size_t first_job)
{
    weir_border_grid grid = weir_fleet_border_grid(part->entry->tensor.conversion, &rule->copy);
    uint32_t index = (uint32_t)m->n_borders;
    if (m->n_borders >= WEIR_ANY - 1)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: more than 2^32 borders",
                         part->entry->tensor.name);
    if (!weir_share_make_room(&m->borders, &m->borders_room, m->n_borders, sizeof(m->borders[0])))
        return WEIR_ERR_NO_MEMORY;
    weir_share_border *border = &m->borders[m->n_borders++];
    *border =
        (weir_share_border){ .copy = rule->copy,
                             .block_rows = grid.block_rows,
                             .block_cols = grid.block_cols,
                             .n_block_rows = grid.n_block_rows,
                             .n_block_cols = grid.n_block_cols,
                             .first_piece = weir_loans_pieces(&m->loans, &m->loans.borrowed) };
    border->copy.tensor = part->tensor;
    border->copy.rank = owner;
    border->copy.first_piece = border->copy.n_pieces = 0;
    weir_status status = take_pieces(m, part, rule, index, first_job);
    if (status == WEIR_OK)
        status = trade_magnitudes(m, part, rule, index);
    border->n_pieces = weir_loans_pieces(&m->loans, &m->loans.borrowed) - border->first_piece;
    return status;
}
