/* SPDX-License-Identifier: Apache-2.0 */
/* mesh_boxes.c - what a trainer rank holds of every source of a mapping.
 *
 * The planner's own arithmetic (holding.c), asked from the side of one rank: what is registered by
 * it and what is planned for it cannot differ.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "plan/fleet.h"

typedef struct box_maker {
    weir_trainer_mesh mesh;
    uint32_t stage, place; /* of the rank: as if it were of the group that sends */
    uint32_t n_layers;
    weir_holding holdings[WEIR_MAX_PARTS]; /* of the source at hand */
    weir_expert_place *places;
    uint32_t places_room;
    weir_mesh_box *boxes;
    size_t n_boxes, boxes_room;
} box_maker;

static weir_status add_box(box_maker *m, const weir_tensor *source, const weir_box *box)
{
    if (m->n_boxes == m->boxes_room) {
        size_t room = m->boxes_room * 2 + 64;
        weir_mesh_box *grown = weir_realloc(m->boxes, room * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        m->boxes = grown;
        m->boxes_room = room;
    }
    m->boxes[m->n_boxes++] = (weir_mesh_box){ source, *box };
    return WEIR_OK;
}

/* Rows and columns as axes of the source; what stands behind the columns is whole. */
static weir_status box_of(const weir_fleet_tensor *tensor, const weir_tensor *source,
                          const weir_holding *h, weir_box *out)
{
    uint32_t row_axis = tensor->stacked ? 1 : 0;
    *out = weir_box_whole(&source->shape);
    if (row_axis < out->rank) {
        out->lo[row_axis] = h->row_lo;
        out->hi[row_axis] = h->row_hi;
    }
    if (h->col_lo == 0 && h->col_hi == tensor->n_cols)
        return WEIR_OK;
    if (out->rank != row_axis + 2)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: the columns of a tensor of %u axes are cut",
                         source->name, out->rank);
    out->lo[row_axis + 1] = h->col_lo;
    out->hi[row_axis + 1] = h->col_hi;
    return WEIR_OK;
}

/* The parts that the rank has of source number s of the tensor's. */
static size_t find_parts(box_maker *m, const weir_fleet_tensor *tensor, uint32_t s,
                         const weir_expert_place *place)
{
    return weir_holdings_of_rank(&m->mesh, tensor, s, place, m->place, m->holdings);
}

/* One box for each of the n parts that were found. */
static weir_status add_parts(box_maker *m, const weir_fleet_tensor *tensor,
                             const weir_tensor *source, size_t n)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        weir_box box;
        status = box_of(tensor, source, &m->holdings[i], &box);
        if (status == WEIR_OK)
            status = add_box(m, source, &box);
    }
    return status;
}

static weir_status add_matrices(box_maker *m, const weir_map_entry *entry,
                                const weir_fleet_tensor *tensor)
{
    weir_status status = WEIR_OK;
    for (uint32_t s = 0; s < tensor->n_sources && status == WEIR_OK; s++)
        status = add_parts(m, tensor, &entry->sources[s], find_parts(m, tensor, s, NULL));
    return status;
}

/* One tensor per expert. */
static weir_status add_experts(box_maker *m, const weir_map_entry *entry,
                               const weir_fleet_tensor *tensor)
{
    weir_status status = WEIR_OK;
    for (uint32_t x = 0; x < tensor->n_experts; x++) {
        const weir_tensor *sources = &entry->sources[(size_t)x * tensor->n_sources];
        for (uint32_t s = 0; s < tensor->n_sources && status == WEIR_OK; s++)
            status = add_parts(m, tensor, &sources[s], find_parts(m, tensor, s, &m->places[x]));
    }
    return status;
}

/* All experts of a source in one tensor: a box of each part per run of consecutive ids. All that
 * are here are cut alike. */
static weir_status add_stacked(box_maker *m, const weir_fleet_tensor *tensor,
                               const weir_tensor *source, uint32_t s)
{
    weir_status status = WEIR_OK;
    size_t n_before = 0, n;
    for (uint32_t x = 0; x < tensor->n_experts && status == WEIR_OK; x++, n_before = n) {
        n = find_parts(m, tensor, s, &m->places[x]);
        if (n_before == 0)
            status = add_parts(m, tensor, source, n);
        for (size_t i = 0; i < n && status == WEIR_OK; i++) {
            weir_box *box = &m->boxes[m->n_boxes - n + i].box;
            box->lo[0] = n_before == 0 ? x : box->lo[0];
            box->hi[0] = x + 1;
        }
    }
    return status;
}

static weir_status add_entry(box_maker *m, const weir_map_entry *entry,
                             const weir_fleet_tensor *tensor)
{
    if (weir_trainer_stage(&m->mesh, tensor->layer, m->n_layers) != m->stage)
        return WEIR_OK;
    if (tensor->n_experts == 0)
        return add_matrices(m, entry, tensor);
    if (tensor->n_experts > m->places_room) {
        weir_expert_place *grown = weir_realloc(m->places, tensor->n_experts * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        m->places = grown;
        m->places_room = tensor->n_experts;
    }
    weir_status status = weir_expert_places(&m->mesh, tensor, m->places);
    if (status != WEIR_OK)
        return status;
    if (!tensor->stacked)
        return add_experts(m, entry, tensor);
    for (uint32_t s = 0; s < tensor->n_sources && status == WEIR_OK; s++)
        status = add_stacked(m, tensor, &entry->sources[s], s);
    return status;
}

static weir_status add_mapping(box_maker *m, const weir_mapping *mapping)
{
    weir_fleet_tensor *tensors;
    size_t n;
    weir_status status = weir_fleet_tensors_of(mapping, &tensors, &n);
    if (status != WEIR_OK)
        return status;
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n);
    m->n_layers = weir_fleet_layers(tensors, n);
    for (size_t i = 0; i < n && status == WEIR_OK; i++)
        status = add_entry(m, &entries[i], &tensors[i]);
    weir_fleet_tensors_free(tensors);
    return status;
}

weir_status weir_trainer_mesh_boxes(const weir_trainer_mesh *mesh, const weir_mapping *mapping,
                                    uint32_t rank, weir_mesh_box **out, size_t *out_n)
{
    box_maker m = { 0 };
    weir_status status = weir_trainer_mesh_read(mesh, &m.mesh);
    if (status != WEIR_OK)
        return status;
    uint32_t n_ranks = weir_trainer_mesh_ranks(&m.mesh);
    if (rank >= n_ranks)
        return weir_fail(WEIR_ERR_INVALID, "trainer mesh: rank %u of %u", rank, n_ranks);
    uint32_t per_group = m.mesh.fsdp * m.mesh.ep * m.mesh.tp;
    m.stage = rank / (per_group * m.mesh.hsdp);
    m.place = m.mesh.sender * per_group + rank % per_group;
    status = add_mapping(&m, mapping);
    weir_free(m.places);
    if (status != WEIR_OK) {
        weir_free(m.boxes);
        return status;
    }
    *out = m.boxes;
    *out_n = m.n_boxes;
    return WEIR_OK;
}

void weir_mesh_boxes_free(weir_mesh_box *boxes)
{
    weir_free(boxes);
}
