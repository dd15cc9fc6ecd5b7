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

weir_worker_place weir_fleet_place(const weir_fleet *fleet, uint32_t worker)
{
    const weir_replica_mesh *r = &fleet->replica;
    weir_worker_place place = { .t = worker % r->tp };
    worker /= r->tp;
    place.stage = worker % r->pp;
    worker /= r->pp;
    place.d = worker % r->dp;
    place.replica = worker / r->dp;
    return place;
}

/* Which of its pattern's slices a worker has. */
static size_t slice_index(const weir_fleet *fleet, const weir_pattern *pattern,
                          const weir_worker_place *place)
{
    if (pattern->like.n_experts > 0)
        return (size_t)place->d * fleet->replica.tp + place->t;
    return pattern->n_slices > 1 ? place->t : 0;
}

const weir_pattern_slice *weir_fleet_find_slice(const weir_fleet *fleet,
                                                const weir_fleet_entry *entry,
                                                const weir_worker_place *place)
{
    const weir_pattern *pattern = &fleet->patterns[entry->pattern];
    if (entry->stage != place->stage)
        return NULL;
    return &fleet->slices[pattern->first_slice + slice_index(fleet, pattern, place)];
}

uint64_t weir_fleet_box_bytes(const weir_conversion *conversion, uint64_t n_rows, uint64_t n_cols)
{
    uint64_t n_bytes = 0;
    if (n_rows == 0)
        return 0;
    for (size_t o = 0; o < conversion->n_outputs; o++) {
        const weir_conversion_output *output = &conversion->outputs[o];
        uint64_t cell_rows = output->cell_rows == WEIR_WHOLE ? n_rows : output->cell_rows;
        uint64_t cell_cols = output->cell_cols == WEIR_WHOLE ? n_cols : output->cell_cols;
        uint64_t rows = (n_rows + cell_rows - 1) / cell_rows;
        uint64_t cols = (n_cols + cell_cols - 1) / cell_cols;
        n_bytes += (rows * cols * weir_dtype_bits(output->dtype) + 7) / 8;
    }
    return n_bytes;
}

/* ---- one worker ------------------------------------------------------------------------------*/

weir_status weir_fleet_slice_of(const weir_fleet *fleet, uint32_t worker, uint32_t tensor,
                                weir_fleet_slice *out)
{
    if (worker >= weir_fleet_workers(fleet) || tensor >= fleet->n_entries)
        return weir_fail(WEIR_ERR_INVALID, "tensor %u of worker %u: there are %zu and %u", tensor,
                         worker, fleet->n_entries, weir_fleet_workers(fleet));
    weir_worker_place place = weir_fleet_place(fleet, worker);
    const weir_pattern_slice *slice = weir_fleet_find_slice(fleet, &fleet->entries[tensor], &place);
    memset(out, 0, sizeof(*out));
    if (slice != NULL)
        *out = slice->shape;
    return WEIR_OK;
}

static uint32_t piece_rank(const weir_fleet_entry *entry, const weir_rule_piece *from)
{
    return entry->first_rank + from->piece.rank + entry->turn % from->n_owners;
}

/* Who makes a border: of those that hold most of it each in turn, from layer to layer. All workers
 * ask the same. */
static uint32_t border_owner(const weir_fleet *fleet, const weir_fleet_entry *entry,
                             const weir_rule *rule)
{
    size_t turn = entry->turn + (size_t)(rule - fleet->cells.rules);
    uint32_t left = (uint32_t)(turn % rule->n_owners);
    const weir_rule_piece *at = &fleet->cells.pieces[rule->copy.first_piece];
    while (!at->may_own || left-- > 0)
        at++;
    return piece_rank(entry, at);
}

/* Whom a worker asks, place by place in turn where several hold the same. */
static uint32_t rank_of(const weir_fleet *fleet, const weir_fleet_entry *entry,
                        const weir_worker_place *place, const weir_rule *rule)
{
    if (rule->copy.source == WEIR_FLEET_MIXED)
        return border_owner(fleet, entry, rule);
    uint32_t turn = entry->turn + place->replica + place->d + place->t;
    return entry->first_rank + rule->copy.rank + turn % rule->n_owners;
}

size_t weir_fleet_copies(const weir_fleet *fleet, uint32_t worker, weir_fleet_copy *copies,
                         size_t n_copies)
{
    size_t n = 0;
    if (worker >= weir_fleet_workers(fleet))
        return 0;
    weir_worker_place place = weir_fleet_place(fleet, worker);
    for (uint32_t i = 0; i < fleet->n_entries; i++) {
        const weir_fleet_entry *entry = &fleet->entries[i];
        const weir_pattern_slice *slice = weir_fleet_find_slice(fleet, entry, &place);
        size_t n_rules = slice != NULL ? slice->n_rules : 0;
        for (size_t k = 0; k < n_rules && n + k < n_copies; k++) {
            const weir_rule *rule = &fleet->cells.rules[slice->first_rule + k];
            weir_fleet_copy *copy = &copies[n + k];
            *copy = rule->copy;
            copy->tensor = i;
            copy->rank = rank_of(fleet, entry, &place, rule);
        }
        n += n_rules;
    }
    return n;
}

static weir_fleet_piece piece_of(const weir_fleet_entry *entry, const weir_rule_piece *from,
                                 uint32_t owner)
{
    weir_fleet_piece piece = from->piece;
    piece.rank = piece_rank(entry, from);
    piece.owner = owner;
    return piece;
}

weir_fleet_piece weir_fleet_piece_of(const weir_fleet *fleet, const weir_fleet_copy *copy,
                                     uint32_t index)
{
    return piece_of(&fleet->entries[copy->tensor],
                    &fleet->cells.pieces[(size_t)copy->first_piece + index], copy->rank);
}

uint64_t weir_fleet_copy_bytes(const weir_fleet *fleet, const weir_fleet_copy *copy)
{
    return weir_fleet_box_bytes(fleet->entries[copy->tensor].tensor.conversion, copy->n_rows,
                                copy->n_cols);
}

/* ---- the whole fleet -------------------------------------------------------------------------*/

/* Adds up rules once, with the number of workers that follow them. */
typedef struct summer {
    const weir_fleet *fleet;
    weir_fleet_summary sum;
    uint64_t *sent, *bordered, *received;
    uint64_t *by_turn; /* workers of the slice at hand by their turn; tp of the trainer numbers */
} summer;

/* Workers that hold slice `index` of an entry differ in replica, and in dp and tp where those do
 * not cut it. Returns how many there are, and counts them by whose turn each has. */
static uint64_t count_turns(summer *s, const weir_fleet_entry *entry, size_t index,
                            uint32_t n_owners)
{
    const weir_replica_mesh *r = &s->fleet->replica;
    const weir_pattern *pattern = &s->fleet->patterns[entry->pattern];
    uint64_t n = 0;
    memset(s->by_turn, 0, n_owners * sizeof(s->by_turn[0]));
    for (uint32_t k = 0; k < r->replicas * r->dp * r->tp; k++) {
        weir_worker_place place = { .replica = k / (r->dp * r->tp),
                                    .d = k / r->tp % r->dp,
                                    .stage = entry->stage,
                                    .t = k % r->tp };
        if (slice_index(s->fleet, pattern, &place) != index)
            continue;
        s->by_turn[(entry->turn + place.replica + place.d + place.t) % n_owners]++;
        n++;
    }
    return n;
}

static void sum_pieces(summer *s, const weir_fleet_entry *entry, const weir_rule *rule,
                       uint32_t owner)
{
    for (uint32_t k = 0; k < rule->copy.n_pieces; k++) {
        const weir_rule_piece *from = &s->fleet->cells.pieces[(size_t)rule->copy.first_piece + k];
        weir_fleet_piece piece = piece_of(entry, from, owner);
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

/* Adds what a rule makes its holders send; *by_turn_of: for how many owners by_turn stands. */
static void sum_sent(summer *s, const weir_fleet_entry *entry, size_t index, const weir_rule *rule,
                     uint64_t n_bytes, uint32_t *by_turn_of)
{
    if (rule->n_owners != *by_turn_of)
        count_turns(s, entry, index, rule->n_owners);
    *by_turn_of = rule->n_owners;
    for (uint32_t j = 0; j < rule->n_owners; j++)
        s->sent[entry->first_rank + rule->copy.rank + j] += s->by_turn[j] * n_bytes;
}

static void sum_slice(summer *s, const weir_fleet_entry *entry, size_t index)
{
    const weir_pattern *pattern = &s->fleet->patterns[entry->pattern];
    const weir_pattern_slice *slice = &s->fleet->slices[pattern->first_slice + index];
    uint32_t by_turn_of = 1;
    uint64_t n_workers = count_turns(s, entry, index, by_turn_of);
    s->sum.n_copies += n_workers * slice->n_rules;
    s->sum.bytes += n_workers * slice->shape.n_bytes;
    for (size_t k = 0; k < slice->n_rules; k++) {
        const weir_rule *rule = &s->fleet->cells.rules[slice->first_rule + k];
        uint64_t n_bytes =
            weir_fleet_box_bytes(pattern->like.conversion, rule->copy.n_rows, rule->copy.n_cols);
        if (n_bytes > s->sum.largest_copy_bytes)
            s->sum.largest_copy_bytes = n_bytes;
        if (rule->copy.source == WEIR_FLEET_MIXED) {
            uint32_t owner = border_owner(s->fleet, entry, rule);
            sum_pieces(s, entry, rule, owner);
            if (s->sent != NULL)
                s->sent[owner] += n_workers * n_bytes;
        } else if (s->sent != NULL) {
            sum_sent(s, entry, index, rule, n_bytes, &by_turn_of);
        }
    }
}

static void sum_received(summer *s)
{
    for (uint32_t w = 0; w < weir_fleet_workers(s->fleet); w++) {
        weir_worker_place place = weir_fleet_place(s->fleet, w);
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
    s.by_turn = weir_alloc_zeroed(fleet->trainer.tp, sizeof(s.by_turn[0]));
    if (s.by_turn == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (sent != NULL)
        memset(sent, 0, fleet->n_ranks * sizeof(*sent));
    if (bordered != NULL)
        memset(bordered, 0, fleet->n_ranks * sizeof(*bordered));
    for (size_t i = 0; i < fleet->n_entries; i++) {
        const weir_fleet_entry *entry = &fleet->entries[i];
        for (size_t k = 0; k < fleet->patterns[entry->pattern].n_slices; k++)
            sum_slice(&s, entry, k);
    }
    if (received != NULL)
        sum_received(&s);
    weir_free(s.by_turn);
    s.sum.n_rules = fleet->cells.n_rules;
    s.sum.plan_bytes = plan_bytes(fleet);
    *out = s.sum;
    return WEIR_OK;
}
