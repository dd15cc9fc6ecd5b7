/* SPDX-License-Identifier: Apache-2.0 */
/* gather.c - copies a worker's rows and columns out of whole sources, expert by expert. */
#include "refit/gather.h"

#include <string.h>

#include "base/error.h"
#include "plan/slice.h"

#define VLLM_PAD 64u

/* The part of one entry. */
typedef struct slots {
    weir_slice slice; /* of each slot's matrix */
    uint32_t n_slots;
    const uint32_t *ids; /* of the slots' experts, or counted from `first` */
    uint32_t first;
} slots;

/* Experts of the worker's expert rank, in slot order. */
static void find_experts(const weir_gather *gather, uint32_t n_experts, uint32_t expert_rank,
                         slots *out)
{
    const weir_replica_mesh *mesh = gather->mesh;
    uint32_t end;
    if (mesh->expert_ids != NULL) {
        out->ids = mesh->expert_ids + mesh->expert_first[expert_rank];
        out->n_slots = mesh->expert_first[expert_rank + 1] - mesh->expert_first[expert_rank];
        return;
    }
    weir_slice_experts(n_experts, mesh->ep, expert_rank, &out->first, &end);
    out->n_slots = end - out->first;
}

static weir_status find_slots(const weir_gather *gather, const weir_fleet_tensor *tensor,
                              slots *out)
{
    const weir_replica_mesh *mesh = gather->mesh;
    *out = (slots){ .n_slots = 1 };
    if (tensor->n_experts == 0) {
        uint32_t pad = mesh->vocabulary_pad > 0 ? mesh->vocabulary_pad : VLLM_PAD;
        bool is_cut = tensor->cut != WEIR_CUT_NONE;
        return weir_slice_of(tensor, is_cut ? mesh->tp : 1, is_cut ? gather->place.t : 0, pad,
                             &out->slice);
    }
    uint32_t worker = gather->place.d * mesh->tp + gather->place.t;
    uint32_t n_width = mesh->dp * mesh->tp / mesh->ep;
    find_experts(gather, tensor->n_experts, worker / n_width, out);
    return weir_slice_of(tensor, n_width, worker % n_width, 1, &out->slice);
}

/* The source that holds a segment of a slot, and its matrix therein. */
static const weir_tensor *find_matrix(const weir_map_entry *entry, const weir_fleet_tensor *tensor,
                                      const slots *at, uint32_t slot, uint32_t source,
                                      const unsigned char **out)
{
    uint64_t expert = 0;
    if (tensor->n_experts > 0)
        expert = at->ids != NULL ? at->ids[slot] : at->first + slot;
    const weir_tensor *whole = entry->n_experts > 0
                                   ? &entry->sources[expert * entry->n_sources + source]
                                   : &entry->sources[source];
    uint64_t matrix = entry->n_experts > 0 ? 0 : expert;
    *out = (const unsigned char *)whole->data + matrix * tensor->source_rows[source] *
                                                    tensor->n_cols *
                                                    (weir_dtype_bits(whole->dtype) / 8);
    return whole;
}

static void copy_segment(const weir_fleet_tensor *tensor, const weir_segment *segment,
                         const unsigned char *matrix, uint64_t element_bytes, uint64_t n_cols,
                         unsigned char *to)
{
    uint64_t pitch = tensor->n_cols * element_bytes, row_bytes = n_cols * element_bytes;
    matrix += segment->source_row * pitch + segment->source_col * element_bytes;
    for (uint64_t r = 0; r < segment->n_rows; r++)
        memcpy(to + r * row_bytes, matrix + r * pitch, row_bytes);
}

/* One tensor per slot and segment, one behind the other; *out_mixed: of several dtypes. */
static weir_status copy_all(weir_gather *gather, const weir_map_entry *entry,
                            const weir_fleet_tensor *tensor, const slots *at, weir_tensor *pieces,
                            bool *out_mixed)
{
    const weir_slice *slice = &at->slice;
    uint64_t used = 0;
    size_t n = 0;
    *out_mixed = false;
    for (uint32_t slot = 0; slot < at->n_slots; slot++) {
        for (uint32_t s = 0; s < slice->n_segments; s++, n++) {
            const weir_segment *segment = &slice->segments[s];
            const unsigned char *matrix;
            const weir_tensor *whole =
                find_matrix(entry, tensor, at, slot, segment->source, &matrix);
            uint64_t element_bytes = weir_dtype_bits(whole->dtype) / 8;
            if (element_bytes == 0)
                return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: sources of %s are not cut", entry->name,
                                 weir_dtype_name(whole->dtype));
            pieces[n] = (weir_tensor){ whole->name,
                                       whole->dtype,
                                       { 2, { segment->n_rows, slice->n_cols } },
                                       gather->bytes.data + used };
            if (entry->shape.rank == 1)
                pieces[n].shape.rank = 1;
            *out_mixed |= whole->dtype != pieces[0].dtype;
            copy_segment(tensor, segment, matrix, element_bytes, slice->n_cols,
                         gather->bytes.data + used);
            used += segment->n_rows * slice->n_cols * element_bytes;
        }
    }
    return WEIR_OK;
}

static weir_shape local_shape(const weir_map_entry *entry, const weir_fleet_tensor *tensor,
                              const slots *at)
{
    weir_shape shape = entry->shape;
    uint32_t leading = tensor->n_experts > 0 ? 1 : 0;
    if (leading == 1)
        shape.dim[0] = at->n_slots;
    shape.dim[leading] = at->slice.n_filled_rows;
    if (shape.rank == leading + 2)
        shape.dim[leading + 1] = at->slice.n_cols;
    return shape;
}

weir_status weir_gather_entry(weir_gather *gather, const weir_map_entry *entry,
                              const weir_fleet_tensor *tensor, weir_map_entry *out)
{
    slots at;
    bool mixed;
    weir_status status = find_slots(gather, tensor, &at);
    if (status != WEIR_OK)
        return status;
    size_t n_pieces = (size_t)at.n_slots * at.slice.n_segments;
    weir_arena_reset(&gather->arena);
    weir_tensor *pieces = weir_arena_zeroed(&gather->arena, n_pieces + 1, sizeof(*pieces));
    uint64_t n_bytes =
        at.n_slots * at.slice.n_filled_rows * at.slice.n_cols * ((tensor->source_bits + 7) / 8);
    if (pieces == NULL)
        return WEIR_ERR_NO_MEMORY;
    status = weir_buffer_reserve(&gather->bytes, n_bytes > 0 ? n_bytes : 1);
    if (status == WEIR_OK)
        status = copy_all(gather, entry, tensor, &at, pieces, &mixed);
    if (status != WEIR_OK)
        return status;
    *out = *entry;
    out->shape = local_shape(entry, tensor, &at);
    out->sources = pieces;
    out->n_sources = at.slice.n_segments;
    out->n_experts = tensor->n_experts > 0 ? at.n_slots : 0;
    out->axis = tensor->n_experts > 0 ? 1 : 0;
    if (mixed || n_pieces == 0)
        return WEIR_OK;
    pieces[0].name = entry->name; /* dense, all of them are one */
    pieces[0].shape = out->shape;
    out->n_sources = 1;
    out->n_experts = 0;
    out->axis = 0;
    return WEIR_OK;
}
