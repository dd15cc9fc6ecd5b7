/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_tensor.c - the entries of a mapping as a fleet's planner sees them: numbers, no data. */
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "weir/mesh.h"

static uint64_t columns_of(const weir_shape *shape, uint32_t first)
{
    uint64_t n = 1;
    for (uint32_t d = first; d < shape->rank; d++)
        n *= shape->dim[d];
    return n;
}

/* Parts that the family counts out, side by side over the sources. */
static weir_status lay_parts(const weir_map_entry *entry, weir_fleet_tensor *t)
{
    uint32_t source = 0;
    uint64_t row = 0;
    for (uint32_t p = 0; p < t->n_parts; p++, row += entry->part_rows[p - 1]) {
        if (row == t->source_rows[source]) {
            source++;
            row = 0;
        }
        if (source == t->n_sources || entry->part_rows[p] > t->source_rows[source] - row)
            return weir_fail(WEIR_ERR_LAYOUT, "%s: its part %u does not lie within one source",
                             t->name, p);
        t->parts[p] = (weir_fleet_part){ source, entry->units[p], row, entry->part_rows[p] };
    }
    if (source + 1 != t->n_sources || row != t->source_rows[source])
        return weir_fail(WEIR_ERR_LAYOUT, "%s: its parts do not fill its sources", t->name);
    return WEIR_OK;
}

/* A source that holds several parts has them in equal shares, as [gate; up] is stacked. */
static weir_status divide_sources(const weir_map_entry *entry, weir_fleet_tensor *t)
{
    uint32_t n_parts = t->n_parts = (uint32_t)entry->n_parts;
    if (entry->part_rows[0] != 0)
        return lay_parts(entry, t);
    uint32_t per_source = n_parts / t->n_sources;
    if (per_source == 0 || n_parts % t->n_sources != 0)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %u sources for %u parts", t->name, t->n_sources,
                         n_parts);
    for (uint32_t p = 0; p < n_parts; p++) {
        uint32_t source = p / per_source;
        uint64_t n_rows = t->source_rows[source] / per_source;
        if (n_rows * per_source != t->source_rows[source])
            return weir_fail(WEIR_ERR_LAYOUT, "%s: a source does not divide into %u equal parts",
                             t->name, per_source);
        t->parts[p] = (weir_fleet_part){ source, entry->units[p], p % per_source * n_rows, n_rows };
    }
    return WEIR_OK;
}

static weir_status describe(const weir_map_entry *entry, bool is_expert, weir_fleet_tensor *t)
{
    uint32_t leading = is_expert && entry->n_experts == 0 ? 1 : 0; /* of the sources */
    *t = (weir_fleet_tensor){ .name = entry->name,
                              .conversion = entry->conversion,
                              .cut = entry->cut,
                              .layer = entry->layer,
                              .stacked = leading == 1,
                              .shape = entry->shape,
                              .tied = entry->tied,
                              .n_sources = (uint32_t)entry->n_sources };
    if (entry->layer < 0)
        t->layer = strstr(entry->name, "embed") != NULL ? WEIR_LAYER_BEFORE : WEIR_LAYER_BEHIND;
    if (entry->n_sources == 0 || entry->n_sources > WEIR_MAX_PARTS ||
        (!is_expert && entry->n_sources > 1 && entry->axis != 0))
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %zu sources joined along axis %u", entry->name,
                         entry->n_sources, entry->axis);
    if (is_expert)
        t->n_experts = (uint32_t)entry->shape.dim[0];
    for (uint32_t s = 0; s < t->n_sources; s++) {
        const weir_tensor *source = &entry->sources[s];
        unsigned bits = weir_dtype_bits(source->dtype);
        t->source_rows[s] = source->shape.rank > leading ? source->shape.dim[leading] : 1;
        t->n_cols = columns_of(&source->shape, leading + 1);
        t->source_bits = bits > t->source_bits ? bits : t->source_bits;
    }
    return divide_sources(entry, t);
}

weir_status weir_fleet_tensors_of(const weir_mapping *mapping, weir_fleet_tensor **out,
                                  size_t *out_n)
{
    size_t n_entries, n_parameters;
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n_entries);
    const weir_parameter *parameters = weir_mapping_parameters(mapping, &n_parameters);
    weir_fleet_tensor *tensors = weir_alloc_zeroed(n_entries, sizeof(*tensors));
    if (tensors == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_entries; i++) {
        weir_status status =
            describe(&entries[i], parameters[entries[i].first_parameter].is_expert, &tensors[i]);
        if (status != WEIR_OK) {
            weir_free(tensors);
            return status;
        }
    }
    *out = tensors;
    *out_n = n_entries;
    return WEIR_OK;
}

void weir_fleet_tensors_free(weir_fleet_tensor *tensors)
{
    weir_free(tensors);
}
