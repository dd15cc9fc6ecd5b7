/* SPDX-License-Identifier: Apache-2.0 */
/* fleet.c - makes the plan of a fleet: one list of rules per pattern and slice.
 *
 * A model has some twenty patterns, whatever its number of layers, and a pattern at most as many
 * slices as a replica's stage has workers. Nothing here counts replicas.
 */
#include "plan/fleet.h"

#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/options.h"

/* What making a plan needs besides the plan. */
typedef struct maker {
    weir_fleet *fleet;
    weir_trainer_mesh trainer;
    weir_replica_mesh replica; /* with its expert map */
    bool explicit_holders;
    weir_held_list held;
    weir_holding *holdings;    /* of a mesh */
    weir_expert_place *places; /* of the experts of the pattern at hand */
    uint32_t places_room;
} maker;

/* ---- what is given ---------------------------------------------------------------------------*/

static void set_at_least_one(uint32_t *n)
{
    *n = *n > 0 ? *n : 1;
}

static bool too_many(const uint32_t *factors, size_t n)
{
    uint64_t product = 1;
    for (size_t i = 0; i < n && product <= WEIR_MESH_MAX_RANKS; i++)
        product *= factors[i];
    return product > WEIR_MESH_MAX_RANKS;
}

weir_status weir_trainer_mesh_read(const weir_trainer_mesh *given, weir_trainer_mesh *out)
{
    weir_trainer_mesh mesh = *given;
    uint32_t *all[] = { &mesh.pp, &mesh.hsdp, &mesh.fsdp, &mesh.ep, &mesh.tp };
    uint32_t factors[5];
    for (size_t i = 0; i < 5; i++) {
        set_at_least_one(all[i]);
        factors[i] = *all[i];
    }
    if (too_many(factors, 5))
        return weir_fail(WEIR_ERR_INVALID, "trainer mesh: more than %u ranks", WEIR_MESH_MAX_RANKS);
    if (mesh.sender >= mesh.hsdp)
        return weir_fail(WEIR_ERR_INVALID, "trainer mesh: group %u of %u is to send", mesh.sender,
                         mesh.hsdp);
    *out = mesh;
    return WEIR_OK;
}

static weir_status read_trainer(maker *m, const weir_trainer_mesh *mesh)
{
    static const weir_trainer_mesh none;
    m->explicit_holders = mesh == NULL;
    weir_status status = weir_trainer_mesh_read(mesh != NULL ? mesh : &none, &m->trainer);
    if (status != WEIR_OK)
        return status;
    m->holdings = weir_alloc_zeroed(weir_holdings_most(&m->trainer), sizeof(m->holdings[0]));
    m->fleet->trainer = m->trainer;
    m->fleet->n_ranks = weir_trainer_mesh_ranks(&m->trainer);
    return m->holdings != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static weir_status read_replica(maker *m, const weir_replica_mesh *mesh)
{
    m->replica = *mesh;
    uint32_t *all[] = { &m->replica.tp, &m->replica.dp, &m->replica.pp, &m->replica.replicas,
                        &m->replica.ep };
    uint32_t factors[4];
    for (size_t i = 0; i < 5; i++) {
        set_at_least_one(all[i]);
        if (i < 4)
            factors[i] = *all[i];
    }
    if (m->replica.vocabulary_pad == 0)
        m->replica.vocabulary_pad = 64;
    if (too_many(factors, 4))
        return weir_fail(WEIR_ERR_INVALID, "replica mesh: more than %u workers",
                         WEIR_MESH_MAX_RANKS);
    if (m->replica.dp * m->replica.tp % m->replica.ep != 0)
        return weir_fail(WEIR_ERR_INVALID, "replica mesh: ep=%u does not divide dp*tp = %u",
                         m->replica.ep, m->replica.dp * m->replica.tp);
    if ((m->replica.expert_ids == NULL) != (m->replica.expert_first == NULL))
        return weir_fail(WEIR_ERR_INVALID, "replica mesh: half of an expert map");
    m->fleet->replica = m->replica;
    return WEIR_OK;
}

static bool fits_shape(const weir_fleet_tensor *t)
{
    uint32_t leading = t->n_experts > 0 ? 1 : 0;
    uint64_t n_cols = 1;
    if (t->shape.rank == 0)
        return true;
    for (uint32_t d = leading + 1; d < t->shape.rank && d < WEIR_MAX_RANK; d++) {
        if (__builtin_mul_overflow(n_cols, t->shape.dim[d], &n_cols))
            return false;
    }
    return t->shape.rank > leading && t->shape.rank <= WEIR_MAX_RANK && n_cols == t->n_cols;
}

static weir_status check_tensor(const weir_fleet_tensor *t)
{
    bool good = t->name != NULL && t->conversion != NULL && t->n_sources > 0 &&
                t->n_sources <= WEIR_MAX_PARTS && t->n_parts > 0 && t->n_parts <= WEIR_MAX_PARTS &&
                t->n_cols > 0 && t->n_cols < UINT32_MAX && t->n_experts <= UINT16_MAX &&
                fits_shape(t);
    uint64_t n_rows = 0, ends[WEIR_MAX_PARTS] = { 0 };
    for (uint32_t p = 0; good && p < t->n_parts; p++) {
        const weir_fleet_part *part = &t->parts[p];
        good = part->source < t->n_sources && part->n_rows > 0 && part->n_rows < UINT32_MAX &&
               part->first_row >= ends[part->source] &&
               part->first_row <= t->source_rows[part->source] &&
               part->n_rows <= t->source_rows[part->source] - part->first_row;
        if (good)
            ends[part->source] = part->first_row + part->n_rows;
        n_rows += part->n_rows;
    }
    if (good && n_rows < UINT32_MAX && (t->cut != WEIR_CUT_VOCABULARY || t->n_parts == 1))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID, "%s: its parts do not fit its sources",
                     t->name != NULL ? t->name : "a tensor without a name");
}

/* ---- stages ----------------------------------------------------------------------------------*/

uint32_t weir_fleet_layers(const weir_fleet_tensor *tensors, size_t n_tensors)
{
    uint32_t n = 0;
    for (size_t i = 0; i < n_tensors; i++) {
        int32_t layer = tensors[i].layer;
        if (layer >= 0 && layer != WEIR_LAYER_BEHIND && (uint32_t)layer >= n)
            n = (uint32_t)layer + 1;
    }
    return n;
}

static uint32_t replica_stage(const maker *m, uint32_t layer, uint32_t n_layers)
{
    for (uint32_t s = 0; s + 1 < m->replica.pp; s++) {
        uint32_t lo, hi;
        weir_slice_layers(n_layers, m->replica.pp, s, &lo, &hi);
        if (layer < hi)
            return s;
    }
    return m->replica.pp - 1;
}

uint32_t weir_trainer_stage(const weir_trainer_mesh *mesh, int32_t layer, uint32_t n_layers)
{
    if (layer < 0)
        return 0;
    for (uint32_t s = 0; s + 1 < mesh->pp && layer != WEIR_LAYER_BEHIND; s++) {
        if ((uint64_t)layer < (s + (uint64_t)1) * n_layers / mesh->pp)
            return s;
    }
    return mesh->pp - 1;
}

static weir_status find_stages(maker *m, const weir_fleet_args *args)
{
    weir_fleet *fleet = m->fleet;
    uint32_t n_layers = weir_fleet_layers(args->tensors, args->n_tensors);
    uint32_t ranks_per_stage = fleet->n_ranks / m->trainer.pp;
    if (n_layers > UINT16_MAX)
        return weir_fail(WEIR_ERR_INVALID, "a tensor is of layer %u", n_layers - 1);
    for (size_t i = 0; i < fleet->n_entries; i++) {
        weir_fleet_entry *entry = &fleet->entries[i];
        int32_t layer = entry->tensor.layer;
        if (!m->explicit_holders)
            entry->first_rank = weir_trainer_stage(&m->trainer, layer, n_layers) * ranks_per_stage;
        entry->stage = m->replica.pp - 1;
        if (layer != WEIR_LAYER_BEHIND)
            entry->stage = layer < 0 ? 0 : replica_stage(m, (uint32_t)layer, n_layers);
    }
    return WEIR_OK;
}

/* ---- rules -----------------------------------------------------------------------------------*/

static weir_status find_holdings(maker *m, uint32_t entry, uint32_t source, uint32_t expert,
                                 const weir_holding **out, size_t *out_n)
{
    const weir_fleet_tensor *tensor = &m->fleet->entries[entry].tensor;
    if (m->explicit_holders)
        return weir_held_holdings(&m->held, entry, tensor, source, expert, out, out_n);
    const weir_expert_place *place = tensor->n_experts > 0 ? &m->places[expert] : NULL;
    *out = m->holdings;
    *out_n = weir_holdings_of(&m->trainer, tensor, source, place, m->holdings);
    return WEIR_OK;
}

/* The part of a holding that lies in a segment, in the worker's rows and columns. */
static bool cut_box(const weir_holding *h, const weir_segment *s, uint64_t n_cols,
                    weir_cell_box *out)
{
    uint64_t row_end = s->source_row + s->n_rows, col_end = s->source_col + n_cols;
    uint64_t row = h->row_lo > s->source_row ? h->row_lo : s->source_row;
    uint64_t col = h->col_lo > s->source_col ? h->col_lo : s->source_col;
    row_end = h->row_hi < row_end ? h->row_hi : row_end;
    col_end = h->col_hi < col_end ? h->col_hi : col_end;
    if (row >= row_end || col >= col_end)
        return false;
    *out = (weir_cell_box){ .rank = h->rank,
                            .n_owners = h->n_owners,
                            .box = h->box,
                            .source = s->source,
                            .row_lo = s->row + row - s->source_row,
                            .row_hi = s->row + row_end - s->source_row,
                            .col_lo = col - s->source_col,
                            .col_hi = col_end - s->source_col,
                            .source_row = row,
                            .source_col = col };
    return true;
}

static weir_status make_matrix(maker *m, uint32_t entry, const weir_slice *slice, uint32_t slot,
                               uint32_t expert)
{
    weir_fleet *fleet = m->fleet;
    const weir_conversion *conversion = fleet->entries[entry].tensor.conversion;
    weir_status status = WEIR_OK;
    for (uint32_t s = 0; s < slice->n_segments && status == WEIR_OK; s++) {
        const weir_holding *holdings;
        size_t n;
        status = find_holdings(m, entry, slice->segments[s].source, expert, &holdings, &n);
        for (size_t i = 0; i < n && status == WEIR_OK; i++) {
            weir_cell_box box;
            if (cut_box(&holdings[i], &slice->segments[s], slice->n_cols, &box))
                status = weir_cells_put(&fleet->cells, &box);
        }
    }
    if (status != WEIR_OK || slice->n_filled_rows == 0)
        return status;
    weir_grid grid = { .n_rows = slice->n_filled_rows,
                       .n_cols = slice->n_cols,
                       .block_rows = conversion->border_rows,
                       .block_cols = conversion->border_cols,
                       .slot = slot,
                       .expert = expert };
    if (grid.block_rows == WEIR_WHOLE)
        grid.block_rows = grid.n_rows;
    if (grid.block_cols == WEIR_WHOLE)
        grid.block_cols = grid.n_cols;
    status = weir_cells_make(&fleet->cells, &grid);
    if (status == WEIR_OK && fleet->cells.n_rules > UINT32_MAX / 2)
        status = weir_fail(WEIR_ERR_UNSUPPORTED, "a plan of more than 2^31 rules");
    return status;
}

/* ---- slices ----------------------------------------------------------------------------------*/

/* Expert ids of worker m of a replica's stage, in slot order: ids[i], or first + i. */
static void experts_of(const maker *m, uint32_t n_experts, uint32_t worker, const uint32_t **ids,
                       uint32_t *first, uint32_t *n)
{
    uint32_t rank = worker / (m->replica.dp * m->replica.tp / m->replica.ep), end;
    *ids = m->replica.expert_ids;
    if (*ids == NULL) {
        weir_slice_experts(n_experts, m->replica.ep, rank, first, &end);
        *n = end - *first;
    } else {
        *first = m->replica.expert_first[rank];
        *n = m->replica.expert_first[rank + 1] - *first;
        *ids += *first;
    }
}

static weir_status make_experts(maker *m, uint32_t entry, uint32_t worker, weir_fleet_slice *shape)
{
    const weir_fleet_tensor *tensor = &m->fleet->entries[entry].tensor;
    uint32_t width_ranks = m->replica.dp * m->replica.tp / m->replica.ep;
    const uint32_t *ids;
    uint32_t first, n;
    weir_slice slice;
    weir_status status = weir_slice_of(tensor, width_ranks, worker % width_ranks, 1, &slice);
    experts_of(m, tensor->n_experts, worker, &ids, &first, &n);
    for (uint32_t i = 0; i < n && status == WEIR_OK; i++)
        status = make_matrix(m, entry, &slice, i, ids != NULL ? ids[i] : first + i);
    *shape = (weir_fleet_slice){ n, slice.n_rows, slice.n_filled_rows, slice.n_cols, 0 };
    return status;
}

static weir_status make_slice(maker *m, uint32_t entry, uint32_t worker, uint32_t n_slices)
{
    weir_fleet *fleet = m->fleet;
    const weir_fleet_tensor *tensor = &fleet->entries[entry].tensor;
    weir_pattern_slice *made = &fleet->slices[fleet->n_slices];
    weir_status status;
    made->first_rule = fleet->cells.n_rules;
    if (tensor->n_experts > 0) {
        status = make_experts(m, entry, worker, &made->shape);
    } else {
        weir_slice slice;
        status = weir_slice_of(tensor, n_slices, worker, m->replica.vocabulary_pad, &slice);
        if (status == WEIR_OK)
            status = make_matrix(m, entry, &slice, 0, 0);
        made->shape = (weir_fleet_slice){ 1, slice.n_rows, slice.n_filled_rows, slice.n_cols, 0 };
    }
    if (status != WEIR_OK)
        return status;
    made->n_rules = fleet->cells.n_rules - made->first_rule;
    made->shape.n_bytes =
        made->shape.n_slots *
        weir_fleet_box_bytes(tensor->conversion, made->shape.n_filled_rows, made->shape.n_cols);
    fleet->n_slices++;
    return WEIR_OK;
}

static weir_status reserve_slices(weir_fleet *fleet, size_t n)
{
    size_t room = fleet->slices_room;
    while (room < fleet->n_slices + n)
        room = room * 2 + 64;
    if (room == fleet->slices_room)
        return WEIR_OK;
    weir_pattern_slice *grown = weir_realloc(fleet->slices, room * sizeof(*grown));
    if (grown == NULL)
        return WEIR_ERR_NO_MEMORY;
    fleet->slices = grown;
    fleet->slices_room = room;
    return WEIR_OK;
}

/* ---- experts ---------------------------------------------------------------------------------*/

static weir_status check_expert_map(const maker *m, const weir_fleet_tensor *tensor, uint32_t *seen)
{
    const weir_replica_mesh *r = &m->replica;
    for (uint32_t e = 0; e < r->ep; e++) {
        if (r->expert_first[e] > r->expert_first[e + 1])
            return weir_fail(WEIR_ERR_INVALID, "replica mesh: expert map of rank %u ends early", e);
        for (uint32_t i = r->expert_first[e]; i < r->expert_first[e + 1]; i++) {
            if (r->expert_ids[i] >= tensor->n_experts)
                return weir_fail(WEIR_ERR_LAYOUT, "%s: expert rank %u holds expert %u of %u",
                                 tensor->name, e, r->expert_ids[i], tensor->n_experts);
            seen[r->expert_ids[i]]++;
        }
    }
    for (uint32_t x = 0; x < tensor->n_experts; x++) {
        if (seen[x] == 0)
            return weir_fail(WEIR_ERR_LAYOUT, "%s: no expert rank of a replica holds expert %u",
                             tensor->name, x);
    }
    return WEIR_OK;
}

static weir_status place_experts(maker *m, const weir_fleet_tensor *tensor)
{
    weir_status status = WEIR_OK;
    if (tensor->n_experts == 0)
        return WEIR_OK;
    if (tensor->n_experts > m->places_room) {
        weir_expert_place *grown = weir_realloc(m->places, tensor->n_experts * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        m->places = grown;
        m->places_room = tensor->n_experts;
    }
    if (m->replica.expert_ids != NULL) {
        uint32_t *seen = weir_alloc_zeroed(tensor->n_experts, sizeof(*seen));
        status = seen != NULL ? check_expert_map(m, tensor, seen) : WEIR_ERR_NO_MEMORY;
        weir_free(seen);
    }
    if (status == WEIR_OK && !m->explicit_holders)
        status = weir_expert_places(&m->trainer, tensor, m->places);
    return status;
}

/* ---- patterns --------------------------------------------------------------------------------*/

/* Field by field, so that padding never tells two apart. */
static bool is_alike(const weir_fleet_tensor *a, const weir_fleet_tensor *b)
{
    bool alike = a->conversion == b->conversion && a->cut == b->cut &&
                 a->n_experts == b->n_experts && a->stacked == b->stacked &&
                 a->source_bits == b->source_bits && a->n_cols == b->n_cols &&
                 a->n_sources == b->n_sources && a->n_parts == b->n_parts &&
                 weir_shape_equal(&a->shape, &b->shape);
    for (uint32_t s = 0; alike && s < a->n_sources; s++)
        alike = a->source_rows[s] == b->source_rows[s];
    for (uint32_t p = 0; alike && p < a->n_parts; p++)
        alike = a->parts[p].source == b->parts[p].source &&
                a->parts[p].units == b->parts[p].units &&
                a->parts[p].first_row == b->parts[p].first_row &&
                a->parts[p].n_rows == b->parts[p].n_rows;
    return alike;
}

static weir_status make_pattern(maker *m, uint32_t entry)
{
    weir_fleet *fleet = m->fleet;
    const weir_fleet_tensor *tensor = &fleet->entries[entry].tensor;
    uint32_t n_slices = tensor->cut == WEIR_CUT_NONE ? 1 : m->replica.tp;
    if (tensor->n_experts > 0)
        n_slices = m->replica.dp * m->replica.tp;
    weir_status status = reserve_slices(fleet, n_slices);
    if (status == WEIR_OK)
        status = place_experts(m, tensor);
    size_t first_slice = fleet->n_slices;
    for (uint32_t s = 0; s < n_slices && status == WEIR_OK; s++)
        status = make_slice(m, entry, s, n_slices);
    if (status == WEIR_OK)
        fleet->patterns[fleet->n_patterns++] = (weir_pattern){ *tensor, first_slice, n_slices, 0 };
    return status;
}

static weir_status make_patterns(maker *m)
{
    weir_fleet *fleet = m->fleet;
    for (uint32_t i = 0; i < fleet->n_entries; i++) {
        weir_fleet_entry *entry = &fleet->entries[i];
        size_t p = m->explicit_holders ? fleet->n_patterns : 0;
        while (p < fleet->n_patterns && !is_alike(&fleet->patterns[p].like, &entry->tensor))
            p++;
        if (p == fleet->n_patterns) {
            weir_status status = make_pattern(m, i);
            if (status != WEIR_OK)
                return status;
        }
        entry->pattern = (uint32_t)p;
        entry->turn = fleet->patterns[p].n_tensors++;
    }
    return WEIR_OK;
}

/* ---- opening ---------------------------------------------------------------------------------*/

static weir_status take_tensors(weir_fleet *fleet, const weir_fleet_tensor *tensors, size_t n)
{
    if (n >= UINT32_MAX / 2)
        return weir_fail(WEIR_ERR_INVALID, "%zu tensors are too many for a plan", n);
    fleet->entries = weir_alloc_zeroed(n, sizeof(fleet->entries[0]));
    fleet->patterns = weir_alloc_zeroed(n, sizeof(fleet->patterns[0]));
    if (fleet->entries == NULL || fleet->patterns == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        weir_status status = check_tensor(&tensors[i]);
        if (status != WEIR_OK)
            return status;
        fleet->entries[fleet->n_entries++].tensor = tensors[i];
    }
    return WEIR_OK;
}

static weir_status read_args(maker *m, const weir_fleet_args *args)
{
    if (args->replica == NULL)
        return weir_fail(WEIR_ERR_INVALID, "a plan needs a replica mesh");
    weir_status status = read_trainer(m, args->trainer);
    if (status == WEIR_OK)
        status = read_replica(m, args->replica);
    if (status == WEIR_OK)
        status = take_tensors(m->fleet, args->tensors, args->n_tensors);
    if (status == WEIR_OK && m->explicit_holders) {
        status = weir_held_open(&m->held, args->held, args->n_held, args->tensors, args->n_tensors);
        m->fleet->n_ranks = m->held.n_ranks;
    }
    if (status == WEIR_OK)
        m->fleet->given = weir_fleet_digest_given(args);
    return status;
}

/* all false: as much as its signature needs. */
static weir_status open_fleet(const weir_fleet_args *given, bool all, weir_fleet **out)
{
    weir_fleet_args args;
    weir_status status = weir_options_read(given, "weir_fleet_args", &args, sizeof(args));
    if (status != WEIR_OK)
        return status;
    weir_fleet *fleet = weir_alloc_zeroed(1, sizeof(*fleet));
    if (fleet == NULL)
        return WEIR_ERR_NO_MEMORY;
    maker m = { .fleet = fleet };
    status = read_args(&m, &args);
    if (status == WEIR_OK && all)
        status = find_stages(&m, &args);
    if (status == WEIR_OK && all)
        status = make_patterns(&m);
    weir_free(m.holdings);
    weir_free(m.places);
    weir_held_close(&m.held);
    if (status != WEIR_OK) {
        weir_fleet_close(fleet);
        return status;
    }
    *out = fleet;
    return WEIR_OK;
}

weir_status weir_fleet_open(const weir_fleet_args *args, weir_fleet **out)
{
    return open_fleet(args, true, out);
}

weir_status weir_fleet_sign(const weir_fleet_args *args, char out[33])
{
    weir_fleet *fleet;
    weir_status status = open_fleet(args, false, &fleet);
    if (status != WEIR_OK)
        return status;
    weir_fleet_signature(fleet, out);
    weir_fleet_close(fleet);
    return WEIR_OK;
}

void weir_fleet_close(weir_fleet *fleet)
{
    if (fleet == NULL)
        return;
    weir_cells_close(&fleet->cells);
    weir_free(fleet->slices);
    weir_free(fleet->patterns);
    weir_free(fleet->entries);
    weir_free(fleet);
}
