/* SPDX-License-Identifier: Apache-2.0 */
/* engine_part.c - what a worker of a parallel engine has of a model.
 *
 * The planner cuts tensors into matrices of slots, rows and columns, whoever trains them: a trainer
 * of one rank stands for all. Here those become shapes of parameters again.
 */
#include "refit/engine_part.h"

#include <inttypes.h>

#include "base/alloc.h"
#include "base/error.h"

/* ---- the mesh --------------------------------------------------------------------------------*/

weir_status weir_engine_mesh_read(const char *mesh, const char *experts, weir_replica_mesh *out,
                                  char text[WEIR_MESH_TEXT])
{
    weir_status status = weir_replica_mesh_parse(mesh != NULL ? mesh : "", out);
    if (status == WEIR_OK && experts != NULL)
        status = weir_replica_mesh_set_experts(out, experts);
    if (status != WEIR_OK)
        return status;
    out->replicas = 1;
    text[0] = '\0';
    if (weir_replica_mesh_workers(out) == 1 && out->expert_ids == NULL && out->vocabulary_pad <= 1)
        out->vocabulary_pad = 1;
    else
        weir_replica_mesh_text(out, text);
    return WEIR_OK;
}

/* ---- parameters ------------------------------------------------------------------------------*/

typedef struct cutter {
    const weir_map_entry *entries;
    size_t n_entries;
    const weir_parameter *whole; /* the mapping's parameters */
    size_t n_whole;
    size_t *local; /* parallel to them: index in `part`, SIZE_MAX when it is not there */
    weir_fleet_tensor *tensors;
    weir_fleet *fleet;
    weir_arena *arena;
    weir_engine_part *part;
} cutter;

/* The shape of an entry's fused source as the worker has it. */
static weir_status cut_shape(const weir_map_entry *entry, bool is_expert,
                             const weir_fleet_slice *slice, weir_shape *out)
{
    uint32_t leading = is_expert ? 1 : 0;
    uint64_t n_cols = 1;
    *out = entry->shape;
    if (out->rank <= leading)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: a tensor of %u axes is not cut", entry->name,
                         out->rank);
    if (is_expert)
        out->dim[0] = slice->n_slots;
    out->dim[leading] = slice->n_rows;
    if (out->rank == leading + 2)
        out->dim[leading + 1] = slice->n_cols;
    for (uint32_t d = leading + 1; d < out->rank; d++)
        n_cols *= out->dim[d];
    if (n_cols == slice->n_cols)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: columns of a tensor of %u axes are not cut",
                     entry->name, out->rank);
}

/* Padding is at the end of the rows, of parameters that are no experts'. */
static weir_status count_filled(const weir_parameter *parameter, const weir_conversion *conversion,
                                size_t output, const weir_fleet_slice *slice, uint64_t *out_bytes)
{
    weir_shape filled = parameter->shape;
    uint64_t cell_rows = conversion->outputs[output].cell_rows;
    if (slice->n_filled_rows != slice->n_rows && !parameter->is_expert && filled.rank > 0 &&
        cell_rows != WEIR_WHOLE)
        filled.dim[0] = (slice->n_filled_rows + cell_rows - 1) / cell_rows;
    return weir_tensor_bytes(parameter->dtype, &filled, out_bytes);
}

static weir_status cut_entry(cutter *c, uint32_t worker, size_t i)
{
    const weir_map_entry *entry = &c->entries[i];
    weir_fleet_slice slice;
    weir_shape source;
    weir_status status = weir_fleet_slice_of(c->fleet, worker, (uint32_t)i, &slice);
    if (status != WEIR_OK || slice.n_slots == 0)
        return status;
    status = cut_shape(entry, c->whole[entry->first_parameter].is_expert, &slice, &source);
    for (size_t o = 0; o < entry->conversion->n_outputs && status == WEIR_OK; o++) {
        size_t at = c->part->n_parameters++;
        weir_parameter *parameter = &c->part->parameters[at];
        *parameter = c->whole[entry->first_parameter + o];
        c->local[entry->first_parameter + o] = at;
        status = weir_conversion_output_shape(entry->conversion, o, &source, &parameter->shape);
        if (status == WEIR_OK)
            status =
                count_filled(parameter, entry->conversion, o, &slice, &c->part->filled_bytes[at]);
    }
    return status;
}

/* ---- derived parameters ----------------------------------------------------------------------*/

static weir_status cut_derived(cutter *c, const weir_derived *derived)
{
    size_t from = c->local[derived->from];
    if (from == SIZE_MAX)
        return WEIR_OK;
    weir_derived *out = &c->part->derived[c->part->n_derived++];
    weir_parameter *made = &c->part->parameters[c->part->n_parameters];
    uint64_t per_head = derived->nope_dim + derived->v_dim;
    uint64_t n_rows = c->part->parameters[from].shape.dim[0];
    if (per_head == 0 || n_rows % per_head != 0)
        return weir_fail(WEIR_ERR_LAYOUT, "%s: %" PRIu64 " rows are no whole heads of %" PRIu64,
                         c->part->parameters[from].name, n_rows, per_head);
    *out = *derived;
    out->from = from;
    out->from_scale = derived->from_scale != SIZE_MAX ? c->local[derived->from_scale] : SIZE_MAX;
    out->n_heads = n_rows / per_head;
    out->parameter = c->part->n_parameters++;
    *made = c->whole[derived->parameter];
    made->shape.dim[0] = out->n_heads;
    return WEIR_OK;
}

/* ---- the part --------------------------------------------------------------------------------*/

static weir_status open_cutter(cutter *c, const weir_mapping *mapping,
                               const weir_replica_mesh *mesh, size_t n_derived)
{
    static const weir_trainer_mesh one_rank = { .pp = 1 };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    c->local = weir_arena_alloc(c->arena, (c->n_whole + 1) * sizeof(*c->local));
    c->part->parameters = weir_arena_zeroed(c->arena, c->n_whole + 1, sizeof(weir_parameter));
    c->part->derived = weir_arena_zeroed(c->arena, n_derived + 1, sizeof(weir_derived));
    c->part->filled_bytes = weir_arena_zeroed(c->arena, c->n_whole + 1, sizeof(uint64_t));
    if (c->local == NULL || c->part->parameters == NULL || c->part->derived == NULL ||
        c->part->filled_bytes == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < c->n_whole; i++)
        c->local[i] = SIZE_MAX;
    weir_status status = weir_fleet_tensors_of(mapping, &c->tensors, &args.n_tensors);
    if (status != WEIR_OK)
        return status;
    args.tensors = c->tensors;
    args.trainer = &one_rank;
    args.replica = mesh;
    return weir_fleet_open(&args, &c->fleet);
}

weir_status weir_engine_part_check(const weir_parameter *parameters, size_t n_parameters,
                                   const uint64_t *filled_bytes, const weir_plan *plan)
{
    size_t n_copies;
    const weir_plan_copy *copies = weir_plan_copies(plan, &n_copies);
    uint64_t *planned = weir_alloc_zeroed(n_parameters, sizeof(*planned));
    weir_status status = WEIR_OK;
    if (planned == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_copies; i++)
        planned[copies[i].parameter] += copies[i].n_bytes;
    for (size_t i = 0; i < n_parameters && status == WEIR_OK; i++) {
        if (parameters[i].entry != SIZE_MAX && planned[i] != filled_bytes[i])
            status = weir_fail(WEIR_ERR_LAYOUT,
                               "%s: its sources fill %" PRIu64 " bytes and call the rest padding, "
                               "this worker needs %" PRIu64,
                               parameters[i].name, planned[i], filled_bytes[i]);
    }
    weir_free(planned);
    return status;
}

weir_status weir_engine_part_of(const weir_mapping *mapping, const weir_replica_mesh *mesh,
                                uint32_t worker, weir_arena *arena, weir_engine_part *out)
{
    size_t n_derived;
    const weir_derived *derived = weir_mapping_derived(mapping, &n_derived);
    weir_engine_part part = { 0 };
    cutter c = { .arena = arena, .part = &part };
    c.entries = weir_mapping_entries(mapping, &c.n_entries);
    c.whole = weir_mapping_parameters(mapping, &c.n_whole);
    weir_status status = open_cutter(&c, mapping, mesh, n_derived);
    for (size_t i = 0; i < c.n_entries && status == WEIR_OK; i++)
        status = cut_entry(&c, worker, i);
    for (size_t i = 0; i < n_derived && status == WEIR_OK; i++)
        status = cut_derived(&c, &derived[i]);
    weir_fleet_close(c.fleet);
    weir_fleet_tensors_free(c.tensors);
    if (status == WEIR_OK)
        *out = part;
    return status;
}
