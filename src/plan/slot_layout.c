/* SPDX-License-Identifier: Apache-2.0 */
/* slot_layout.c - which slot a source gets, and where a rank writes it. Whether both sides fit is
 * slot_check.c's question.
 */
#include "weir/slot_layout.h"

#include <string.h>

#include "base/error.h"

/* Rows and columns that one element of the scale stands for; 0 rows: no scale. */
static size_t scale_block_rows(const weir_conversion *conversion)
{
    return conversion->n_outputs > 1 ? conversion->outputs[1].cell_rows : 0;
}

static weir_status is_sharded(const weir_conversion *conversion, const weir_tensor *source,
                              uint32_t n_ranks, bool *out)
{
    uint64_t n_bytes, rows = source->shape.rank > 0 ? source->shape.dim[0] : 1;
    size_t block = scale_block_rows(conversion);
    weir_status status = weir_tensor_bytes(source->dtype, &source->shape, &n_bytes);
    if (status != WEIR_OK) {
        weir_error_prefix("%s", source->name);
        return status;
    }
    *out = source->shape.rank > 0 && rows % n_ranks == 0 &&
           (block == 0 || rows / n_ranks % block == 0) && n_bytes >= WEIR_SLOT_SMALL_BYTES;
    return WEIR_OK;
}

static uint64_t scale_rows(const weir_conversion *conversion, uint64_t rows)
{
    uint64_t block = scale_block_rows(conversion);
    return block > 0 ? rows / block + (rows % block != 0) : 0;
}

static weir_status slot_of(const weir_conversion *conversion, const weir_tensor *source,
                           uint32_t n_ranks, weir_slot *slot)
{
    bool sharded;
    weir_status status = is_sharded(conversion, source, n_ranks, &sharded);
    if (status != WEIR_OK)
        return status;
    *slot = (weir_slot){ .kind = sharded ? WEIR_SLOT_SHARDED : WEIR_SLOT_GATHERED,
                         .shape = source->shape,
                         .rows = source->shape.rank > 0 ? source->shape.dim[0] : 1,
                         .n_chunks = sharded ? n_ranks : 1 };
    if (sharded)
        slot->shape.dim[0] /= n_ranks;
    slot->scale_rows = scale_rows(conversion, slot->rows);
    return slot->scale_rows > 0
               ? weir_conversion_output_shape(conversion, 1, &slot->shape, &slot->scale_shape)
               : WEIR_OK;
}

weir_status weir_slots_of(const weir_conversion *conversion, const weir_tensor *sources,
                          size_t n_sources, uint32_t n_ranks, weir_slot *slots)
{
    uint64_t rows = 0, rows_of_scale = 0;
    bool whole = conversion->n_outputs > 1 && conversion->outputs[1].cell_rows == WEIR_WHOLE;
    if (n_ranks == 0 || whole)
        return weir_fail(WEIR_ERR_INVALID, "%s: no slots on %u ranks", conversion->name, n_ranks);
    for (size_t s = 0; s < n_sources; s++) {
        weir_status status = slot_of(conversion, &sources[s], n_ranks, &slots[s]);
        if (status != WEIR_OK)
            return status;
        slots[s].offset_rows = rows;
        slots[s].scale_offset_rows = rows_of_scale;
        if (__builtin_add_overflow(rows, slots[s].rows, &rows))
            return weir_fail(WEIR_ERR_INVALID, "%s: more than 2^64 rows in all", sources[s].name);
        rows_of_scale += slots[s].scale_rows;
    }
    return WEIR_OK;
}

static weir_status join_sources(const weir_tensor *sources, size_t n_sources, uint32_t cat_axis,
                                weir_shape *out)
{
    *out = sources[0].shape;
    for (size_t s = 1; s < n_sources; s++) {
        const weir_shape *shape = &sources[s].shape;
        bool same = shape->rank == out->rank;
        for (uint32_t a = 0; same && a < shape->rank; a++)
            same = a == cat_axis || shape->dim[a] == out->dim[a];
        if (!same ||
            __builtin_add_overflow(out->dim[cat_axis], shape->dim[cat_axis], &out->dim[cat_axis]))
            return weir_fail(WEIR_ERR_INVALID, "%s: its shape does not join %s along axis %u",
                             sources[s].name, sources[0].name, cat_axis);
    }
    return WEIR_OK;
}

weir_status weir_slot_of_experts(const weir_conversion *conversion, const weir_tensor *sources,
                                 size_t n_sources, uint32_t cat_axis, weir_slot *out)
{
    weir_slot slot = { .kind = WEIR_SLOT_EXPERT };
    if (n_sources == 0 || sources[0].shape.rank != 3 || cat_axis >= 3)
        return weir_fail(WEIR_ERR_INVALID,
                         "experts are stacked in tensors of 3 axes, joined along one");
    weir_status status = join_sources(sources, n_sources, cat_axis, &slot.shape);
    if (status == WEIR_OK && scale_block_rows(conversion) > 0)
        status = weir_conversion_output_shape(conversion, 1, &slot.shape, &slot.scale_shape);
    if (status != WEIR_OK)
        return status;
    slot.rows = slot.shape.dim[1];
    slot.scale_rows = scale_rows(conversion, slot.rows);
    slot.n_chunks = (uint32_t)slot.shape.dim[0];
    *out = slot;
    return WEIR_OK;
}

weir_status weir_slot_first_expert(const weir_slot_experts *e, uint32_t *out)
{
    uint64_t product;
    if (__builtin_mul_overflow((uint64_t)e->n_local * e->fsdp, (uint64_t)e->ep, &product) ||
        product != e->n_experts)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "EP partition mismatch for '%s' at %s: local=%u * fsdp=%u * ep=%u != "
                         "total=%u",
                         e->destination, e->prefix, e->n_local, e->fsdp, e->ep, e->n_experts);
    if (e->ep_rank >= e->ep || e->fsdp_rank >= e->fsdp)
        return weir_fail(WEIR_ERR_INVALID, "'%s': expert rank %u of %u, fsdp rank %u of %u",
                         e->destination, e->ep_rank, e->ep, e->fsdp_rank, e->fsdp);
    *out = e->ep_rank * e->n_local * e->fsdp + e->fsdp_rank * e->n_local;
    return WEIR_OK;
}

/* ---- writes ----------------------------------------------------------------------------------*/

/* Where writes go, counted on beyond the room. */
typedef struct write_list {
    weir_slot_write *writes;
    size_t n_room, n;
} write_list;

static void add_write(write_list *list, uint32_t chunk, uint32_t peer, uint32_t remote_chunk)
{
    if (list->n < list->n_room)
        list->writes[list->n] = (weir_slot_write){ chunk, peer, remote_chunk };
    list->n++;
}

static const weir_slot_expert_ids *ids_of(const weir_slot_peer *peer, const char *prefix)
{
    for (size_t i = 0; i < peer->n_experts; i++) {
        if (strcmp(peer->experts[i].prefix, prefix) == 0)
            return &peer->experts[i];
    }
    return NULL;
}

/* A peer with redundant experts has an id in several places: each gets its bytes. */
static void write_experts(const weir_slot_buffer *buffer, const weir_slot_peer *peers,
                          size_t n_peers, write_list *list)
{
    for (uint32_t j = 0; j < buffer->n_chunks; j++) {
        for (uint32_t p = 0; p < n_peers; p++) {
            const weir_slot_expert_ids *ids = ids_of(&peers[p], buffer->prefix);
            for (uint32_t i = 0; ids != NULL && i < ids->n_ids; i++) {
                if (ids->ids[i] == buffer->first_expert + j)
                    add_write(list, j, p, i);
            }
        }
    }
}

size_t weir_slot_writes(const weir_slot_buffer *buffer, uint32_t rank, uint32_t n_ranks,
                        const weir_slot_peer *peers, size_t n_peers, weir_slot_write *writes,
                        size_t n_writes)
{
    write_list list = { writes, n_writes, 0 };
    if (buffer->kind == WEIR_SLOT_EXPERT) {
        write_experts(buffer, peers, n_peers, &list);
        return list.n;
    }
    for (uint32_t p = 0; p < n_peers; p++) {
        if (buffer->kind == WEIR_SLOT_SHARDED)
            add_write(&list, 0, p, rank);
        else if (p % n_ranks == rank)
            add_write(&list, 0, p, 0);
    }
    return list.n;
}
