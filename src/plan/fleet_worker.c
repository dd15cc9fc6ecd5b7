/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_worker.c - reads a fleet's plan: one worker's part, written out from the rules, and what
 * all parts come to.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "plan/fleet.h"

uint32_t weir_fleet_ranks(const weir_fleet *fleet)
{
    return fleet->n_ranks;
}

uint32_t weir_fleet_workers(const weir_fleet *fleet)
{
    return weir_replica_mesh_workers(&fleet->replica);
}

/* Whether workers of different data or tensor parallel ranks hold different slices. Experts that no
 * worker cuts are the same on all workers of an expert rank. */
typedef struct slice_axes {
    bool by_d, by_t;
} slice_axes;

static slice_axes axes_of(const weir_fleet *fleet, const weir_pattern *pattern)
{
    const weir_replica_mesh *r = &fleet->replica;
    if (pattern->like.n_experts == 0)
        return (slice_axes){ false, pattern->n_slices > 1 };
    if (pattern->like.cut != WEIR_CUT_NONE || r->dp * r->tp / r->ep % r->tp != 0)
        return (slice_axes){ true, true };
    return (slice_axes){ r->ep > 1, false };
}

/* Which of its pattern's slices a worker has: of equal ones the first. */
static size_t slice_index(const weir_fleet *fleet, const weir_pattern *pattern,
                          const weir_mesh_place *place)
{
    slice_axes axes = axes_of(fleet, pattern);
    return (axes.by_d ? (size_t)place->d * fleet->replica.tp : 0) + (axes.by_t ? place->t : 0);
}

static bool has_stage(const weir_fleet *fleet, const weir_fleet_entry *entry, uint32_t stage)
{
    return entry->stage == stage || (entry->tensor.tied && stage + 1 == fleet->replica.pp);
}

const weir_pattern_slice *weir_fleet_find_slice(const weir_fleet *fleet,
                                                const weir_fleet_entry *entry,
                                                const weir_mesh_place *place)
{
    const weir_pattern *pattern = &fleet->patterns[entry->pattern];
    if (!has_stage(fleet, entry, place->stage))
        return NULL;
    return &fleet->slices[pattern->first_slice + slice_index(fleet, pattern, place)];
}

bool weir_fleet_part_at(const weir_fleet *fleet, const weir_fleet_entry *entry, uint32_t stage,
                        size_t slice, weir_fleet_part_place *out)
{
    const weir_replica_mesh *r = &fleet->replica;
    slice_axes axes = axes_of(fleet, &fleet->patterns[entry->pattern]);
    uint32_t d = (uint32_t)(slice / r->tp), t = (uint32_t)(slice % r->tp);
    if (!has_stage(fleet, entry, stage) || (d > 0 && !axes.by_d) || (t > 0 && !axes.by_t))
        return false;
    out->place = (weir_mesh_place){ stage, axes.by_d ? d : WEIR_ANY, axes.by_t ? t : WEIR_ANY };
    out->n_workers = (uint64_t)r->replicas * (axes.by_d ? 1 : r->dp) * (axes.by_t ? 1 : r->tp);
    return true;
}

bool weir_fleet_output_is_plain(const weir_conversion_output *output)
{
    return output->cell_rows == 1 && output->cell_cols == 1;
}

static uint64_t output_bytes(const weir_conversion_output *output, uint64_t n_rows, uint64_t n_cols)
{
    uint64_t cell_rows = output->cell_rows == WEIR_WHOLE ? n_rows : output->cell_rows;
    uint64_t cell_cols = output->cell_cols == WEIR_WHOLE ? n_cols : output->cell_cols;
    uint64_t rows = (n_rows + cell_rows - 1) / cell_rows;
    uint64_t cols = (n_cols + cell_cols - 1) / cell_cols;
    return (rows * cols * weir_dtype_bits(output->dtype) + 7) / 8;
}

uint64_t weir_fleet_box_bytes(const weir_conversion *conversion, uint64_t n_rows, uint64_t n_cols)
{
    uint64_t n_bytes = 0;
    for (size_t o = 0; o < conversion->n_outputs && n_rows > 0; o++)
        n_bytes += output_bytes(&conversion->outputs[o], n_rows, n_cols);
    return n_bytes;
}

/* Bytes of a box of weights, without scales, are these bits times its elements. */
static uint64_t plain_bits(const weir_conversion *conversion)
{
    uint64_t n_bits = 0;
    for (size_t o = 0; o < conversion->n_outputs; o++) {
        if (weir_fleet_output_is_plain(&conversion->outputs[o]))
            n_bits += weir_dtype_bits(conversion->outputs[o].dtype);
    }
    return n_bits;
}

static uint64_t plain_bytes(uint64_t n_bits, const weir_fleet_piece *piece)
{
    return ((uint64_t)piece->n_rows * piece->n_cols * n_bits + 7) / 8;
}

/* ---- one worker ------------------------------------------------------------------------------*/

weir_status weir_fleet_slice_of(const weir_fleet *fleet, uint32_t worker, uint32_t tensor,
                                weir_fleet_slice *out)
{
    if (worker >= weir_fleet_workers(fleet) || tensor >= fleet->n_entries)
        return weir_fail(WEIR_ERR_INVALID, "tensor %u of worker %u: there are %zu and %u", tensor,
                         worker, fleet->n_entries, weir_fleet_workers(fleet));
    weir_mesh_place place = weir_replica_mesh_place(&fleet->replica, worker);
    const weir_pattern_slice *slice = weir_fleet_find_slice(fleet, &fleet->entries[tensor], &place);
    memset(out, 0, sizeof(*out));
    if (slice != NULL)
        *out = slice->shape;
    return WEIR_OK;
}

static uint32_t first_of(const weir_fleet_entry *entry, const weir_rule_piece *from)
{
    return entry->first_rank + from->piece.rank;
}

/* Who makes a border: of those that hold most of it each in turn, from layer to layer. */
static uint32_t border_owner(const weir_fleet *fleet, const weir_fleet_entry *entry,
                             const weir_rule *rule)
{
    uint32_t left = (entry->turn + rule->turn) % rule->n_owners;
    const weir_rule_piece *at = &fleet->cells.pieces[rule->copy.first_piece];
    while (!at->may_own || left-- > 0)
        at++;
    return first_of(entry, at) + entry->turn % at->n_owners;
}

uint32_t weir_fleet_rank_of(const weir_fleet *fleet, const weir_fleet_entry *entry, size_t slice,
                            const weir_rule *rule)
{
    if (rule->copy.source == WEIR_FLEET_MIXED)
        return border_owner(fleet, entry, rule);
    return entry->first_rank + rule->copy.rank + (uint32_t)((entry->turn + slice) % rule->n_owners);
}

size_t weir_fleet_copies(const weir_fleet *fleet, uint32_t worker, weir_fleet_copy *copies,
                         size_t n_copies)
{
    size_t n = 0;
    if (worker >= weir_fleet_workers(fleet))
        return 0;
    weir_mesh_place place = weir_replica_mesh_place(&fleet->replica, worker);
    for (uint32_t i = 0; i < fleet->n_entries; i++) {
        const weir_fleet_entry *entry = &fleet->entries[i];
        const weir_pattern_slice *slice = weir_fleet_find_slice(fleet, entry, &place);
        if (slice == NULL)
            continue;
        size_t index =
            (size_t)(slice - fleet->slices) - fleet->patterns[entry->pattern].first_slice;
        for (size_t k = 0; k < slice->n_rules && n + k < n_copies; k++) {
            const weir_rule *rule = &fleet->cells.rules[slice->first_rule + k];
            weir_fleet_copy *copy = &copies[n + k];
            *copy = rule->copy;
            copy->tensor = i;
            copy->rank = weir_fleet_rank_of(fleet, entry, index, rule);
        }
        n += slice->n_rules;
    }
    return n;
}

/* Whether the owner of a border holds a piece of it too. Rows that every rank of fsdp and ep holds
 * whole are those of its own tp. */
static bool owner_holds(const weir_fleet *fleet, const weir_fleet_entry *entry,
                        const weir_rule_piece *from, uint32_t owner)
{
    uint32_t first = first_of(entry, from), tp = fleet->trainer.tp;
    if (fleet->trainer.dense_whole != 0 && entry->tensor.n_experts == 0) {
        first %= tp;
        owner %= tp;
    }
    return first <= owner && owner - first < from->n_owners;
}

uint32_t weir_fleet_border_rank(const weir_fleet *fleet, const weir_fleet_entry *entry,
                                const weir_rule_piece *from, uint32_t owner)
{
    if (owner_holds(fleet, entry, from, owner))
        return owner;
    return first_of(entry, from) + entry->turn % from->n_owners;
}

weir_fleet_piece weir_fleet_border_piece(const weir_fleet *fleet, const weir_fleet_entry *entry,
                                         const weir_rule_piece *from, uint32_t owner)
{
    weir_fleet_piece piece = from->piece;
    piece.owner = owner;
    piece.rank = weir_fleet_border_rank(fleet, entry, from, owner);
    return piece;
}

bool weir_fleet_border_is_shared(const weir_fleet *fleet, const weir_fleet_entry *entry,
                                 const weir_fleet_copy *border, uint32_t owner)
{
    const weir_rule_piece *pieces = &fleet->cells.pieces[border->first_piece];
    if (border->source != WEIR_FLEET_MIXED || !entry->tensor.conversion->by_magnitude)
        return false;
    for (uint32_t k = 0; k < border->n_pieces; k++) {
        if (!owner_holds(fleet, entry, &pieces[k], owner))
            return true;
    }
    return false;
}

weir_border_grid weir_fleet_border_grid(const weir_conversion *conversion,
                                        const weir_fleet_copy *border)
{
    size_t rows = conversion->border_rows, cols = conversion->border_cols;
    weir_border_grid grid = { .block_rows = border->n_rows, .block_cols = border->n_cols };
    if (rows != WEIR_WHOLE && rows < grid.block_rows)
        grid.block_rows = (uint32_t)rows;
    if (cols != WEIR_WHOLE && cols < grid.block_cols)
        grid.block_cols = (uint32_t)cols;
    grid.n_block_rows = (border->n_rows - 1) / grid.block_rows + 1;
    grid.n_block_cols = (border->n_cols - 1) / grid.block_cols + 1;
    return grid;
}

weir_fleet_piece weir_fleet_piece_of(const weir_fleet *fleet, const weir_fleet_copy *copy,
                                     uint32_t index)
{
    return weir_fleet_border_piece(fleet, &fleet->entries[copy->tensor],
                                   &fleet->cells.pieces[(size_t)copy->first_piece + index],
                                   copy->rank);
}

uint64_t weir_fleet_copy_bytes(const weir_fleet *fleet, const weir_fleet_copy *copy)
{
    return weir_fleet_box_bytes(fleet->entries[copy->tensor].tensor.conversion, copy->n_rows,
                                copy->n_cols);
}

bool weir_fleet_copy_is_shared(const weir_fleet *fleet, const weir_fleet_copy *copy)
{
    return weir_fleet_border_is_shared(fleet, &fleet->entries[copy->tensor], copy, copy->rank);
}

uint64_t weir_fleet_piece_bytes(const weir_fleet *fleet, const weir_fleet_copy *copy,
                                uint32_t index)
{
    const weir_fleet_piece *piece = &fleet->cells.pieces[(size_t)copy->first_piece + index].piece;
    if (!weir_fleet_copy_is_shared(fleet, copy))
        return 0;
    return plain_bytes(plain_bits(fleet->entries[copy->tensor].tensor.conversion), piece);
}

/* ---- the whole fleet -------------------------------------------------------------------------*/

/* Adds up rules once, with the number of workers that follow them. */
typedef struct summer {
    const weir_fleet *fleet;
    weir_fleet_summary sum;
    uint64_t *sent, *bordered, *received;
    uint64_t *met; /* by rank: the last shared border that it had a piece of, counted from 1 */
    uint64_t n_shared;
} summer;

static void sum_pieces(summer *s, const weir_fleet_entry *entry, const weir_rule *rule,
                       uint32_t owner)
{
    for (uint32_t k = 0; k < rule->copy.n_pieces; k++) {
        const weir_rule_piece *from = &s->fleet->cells.pieces[(size_t)rule->copy.first_piece + k];
        weir_fleet_piece piece = weir_fleet_border_piece(s->fleet, entry, from, owner);
        if (piece.rank == owner)
            continue;
        uint64_t n_bytes =
            ((uint64_t)piece.n_rows * piece.n_cols * entry->tensor.source_bits + 7) / 8;
        s->sum.n_border_pieces++;
        s->sum.border_bytes += n_bytes;
        if (s->bordered != NULL)
            s->bordered[piece.rank] += n_bytes;
    }
}

/* Each of n_ranks ranks of a shared border hands each of the others its magnitudes. */
static void sum_magnitudes(summer *s, const weir_fleet_entry *entry, const weir_rule *rule,
                           uint32_t owner, uint64_t n_ranks)
{
    const weir_rule_piece *pieces = &s->fleet->cells.pieces[rule->copy.first_piece];
    weir_border_grid grid = weir_fleet_border_grid(entry->tensor.conversion, &rule->copy);
    uint64_t n_bytes = (uint64_t)grid.n_block_rows * grid.n_block_cols * sizeof(float);
    s->sum.n_border_pieces += n_ranks * (n_ranks - 1);
    s->sum.border_bytes += n_ranks * (n_ranks - 1) * n_bytes;
    for (uint32_t k = 0; k < rule->copy.n_pieces && s->bordered != NULL; k++) {
        uint32_t rank = weir_fleet_border_rank(s->fleet, entry, &pieces[k], owner);
        if (s->met[rank] == s->n_shared)
            s->bordered[rank] += (n_ranks - 1) * n_bytes;
        s->met[rank] = 0;
    }
}

/* Its ranks send the weights of a shared border themselves. Returns their bytes. */
static uint64_t sum_shared(summer *s, const weir_fleet_entry *entry, const weir_rule *rule,
                           uint32_t owner, uint64_t n_workers)
{
    const weir_rule_piece *pieces = &s->fleet->cells.pieces[rule->copy.first_piece];
    uint64_t n_bits = plain_bits(entry->tensor.conversion), sum = 0, n_ranks = 0;
    s->n_shared++;
    for (uint32_t k = 0; k < rule->copy.n_pieces; k++) {
        uint32_t rank = weir_fleet_border_rank(s->fleet, entry, &pieces[k], owner);
        uint64_t n_bytes = plain_bytes(n_bits, &pieces[k].piece);
        if (s->sent != NULL)
            s->sent[rank] += n_workers * n_bytes;
        sum += n_bytes;
        n_ranks += s->met[rank] != s->n_shared ? 1 : 0;
        s->met[rank] = s->n_shared;
    }
    sum_magnitudes(s, entry, rule, owner, n_ranks);
    return sum;
}

static void sum_slice(summer *s, const weir_fleet_entry *entry, size_t index, uint64_t n_workers)
{
    const weir_pattern *pattern = &s->fleet->patterns[entry->pattern];
    const weir_pattern_slice *slice = &s->fleet->slices[pattern->first_slice + index];
    s->sum.n_copies += n_workers * slice->n_rules;
    s->sum.bytes += n_workers * slice->shape.n_bytes;
    for (size_t k = 0; k < slice->n_rules; k++) {
        const weir_rule *rule = &s->fleet->cells.rules[slice->first_rule + k];
        uint64_t n_bytes =
            weir_fleet_box_bytes(pattern->like.conversion, rule->copy.n_rows, rule->copy.n_cols);
        uint32_t owner = weir_fleet_rank_of(s->fleet, entry, index, rule);
        if (n_bytes > s->sum.largest_copy_bytes)
            s->sum.largest_copy_bytes = n_bytes;
        if (weir_fleet_border_is_shared(s->fleet, entry, &rule->copy, owner)) {
            n_bytes -= sum_shared(s, entry, rule, owner, n_workers);
        } else if (rule->copy.source == WEIR_FLEET_MIXED) {
            sum_pieces(s, entry, rule, owner);
        }
        if (s->sent != NULL)
            s->sent[owner] += n_workers * n_bytes;
    }
}

static void sum_entry(summer *s, const weir_fleet_entry *entry)
{
    size_t n_slices = s->fleet->patterns[entry->pattern].n_slices;
    for (uint32_t stage = 0; stage < s->fleet->replica.pp; stage++) {
        for (size_t k = 0; k < n_slices; k++) {
            weir_fleet_part_place part;
            if (weir_fleet_part_at(s->fleet, entry, stage, k, &part))
                sum_slice(s, entry, k, part.n_workers);
        }
    }
}

static void sum_received(summer *s)
{
    for (uint32_t w = 0; w < weir_fleet_workers(s->fleet); w++) {
        weir_mesh_place place = weir_replica_mesh_place(&s->fleet->replica, w);
        s->received[w] = 0;
        for (size_t i = 0; i < s->fleet->n_entries; i++) {
            const weir_pattern_slice *slice =
                weir_fleet_find_slice(s->fleet, &s->fleet->entries[i], &place);
            s->received[w] += slice != NULL ? slice->shape.n_bytes : 0;
        }
    }
}

static uint64_t plan_bytes(const weir_fleet *fleet)
{
    const weir_cells *cells = &fleet->cells;
    return sizeof(*fleet) + fleet->n_entries * (sizeof(weir_fleet_entry) + sizeof(weir_pattern)) +
           fleet->slices_room * sizeof(weir_pattern_slice) + cells->rules_room * sizeof(weir_rule) +
           cells->pieces_room * sizeof(weir_rule_piece) +
           cells->boxes_room * sizeof(weir_cell_box) +
           (cells->row_room + cells->col_room) * sizeof(uint64_t);
}

weir_status weir_fleet_summarise(const weir_fleet *fleet, weir_fleet_summary *out, uint64_t *sent,
                                 uint64_t *bordered, uint64_t *received)
{
    summer s = { .fleet = fleet, .sent = sent, .bordered = bordered, .received = received };
    s.met = weir_alloc_zeroed(fleet->n_ranks, sizeof(*s.met));
    if (s.met == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (sent != NULL)
        memset(sent, 0, fleet->n_ranks * sizeof(*sent));
    if (bordered != NULL)
        memset(bordered, 0, fleet->n_ranks * sizeof(*bordered));
    for (size_t i = 0; i < fleet->n_entries; i++)
        sum_entry(&s, &fleet->entries[i]);
    if (received != NULL)
        sum_received(&s);
    s.sum.n_rules = fleet->cells.n_rules;
    s.sum.plan_bytes = plan_bytes(fleet);
    weir_free(s.met);
    *out = s.sum;
    return WEIR_OK;
}
