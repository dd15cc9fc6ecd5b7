/* SPDX-License-Identifier: Apache-2.0 */
/* slice.c - how engines cut what trainers made. The rules are those of vLLM; what it refuses to
 * load is refused here, with its reason.
 */
#include "plan/slice.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"

static weir_status cut_part(const weir_fleet_tensor *t, uint32_t p, uint32_t n_ranks, uint32_t rank,
                            weir_segment *out)
{
    const weir_fleet_part *part = &t->parts[p];
    uint64_t units = part->units > 0 ? part->units : part->n_rows;
    if (part->n_rows % units != 0)
        return weir_fail(WEIR_ERR_LAYOUT, "%s: %" PRIu64 " rows are no %" PRIu64 " whole heads",
                         t->name, part->n_rows, units);
    uint64_t unit_rows = part->n_rows / units, lo, n;
    if (units % n_ranks == 0) {
        n = units / n_ranks;
        lo = rank * n;
    } else if (p > 0 && part->units > 0 && n_ranks % units == 0) {
        n = 1;
        lo = rank / (n_ranks / units);
    } else {
        return weir_fail(WEIR_ERR_LAYOUT, "%s: %" PRIu64 " %s do not divide over %u workers",
                         t->name, units, part->units > 0 ? "heads" : "rows", n_ranks);
    }
    out->source = part->source;
    out->source_row = part->first_row + lo * unit_rows;
    out->n_rows = n * unit_rows;
    return WEIR_OK;
}

static weir_status cut_vocabulary(const weir_fleet_tensor *t, uint32_t n_ranks, uint32_t rank,
                                  uint32_t pad, weir_slice *out)
{
    uint64_t n = t->parts[0].n_rows;
    uint64_t padded = (n + pad - 1) / pad * pad, per_rank = padded / n_ranks;
    if (padded % n_ranks != 0)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s: %" PRIu64 " rows, padded to %" PRIu64
                         ", do not divide over %u workers",
                         t->name, n, padded, n_ranks);
    uint64_t lo = rank * per_rank < n ? rank * per_rank : n;
    weir_segment *segment = &out->segments[0];
    *segment = (weir_segment){ t->parts[0].source, t->parts[0].first_row + lo, 0, 0, per_rank };
    if (segment->n_rows > n - lo)
        segment->n_rows = n - lo;
    out->n_segments = segment->n_rows > 0 ? 1 : 0;
    out->n_rows = per_rank;
    out->n_filled_rows = segment->n_rows;
    return WEIR_OK;
}

static weir_status fail_block(const weir_fleet_tensor *t, uint64_t n, const char *what,
                              uint64_t block, const char *reason)
{
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "%s: %" PRIu64 " %s per worker are no multiple of %s's block of %" PRIu64
                     ", which engines refuse to run (vLLM: %s)",
                     t->name, n, what, t->conversion->name, block, reason);
}

/* Engines take whole blocks alone of what tensor parallelism cuts: of each part's rows, or of the
 * columns. What is not cut is the model's own. */
static weir_status check_blocks(const weir_fleet_tensor *t, uint32_t n_ranks,
                                const weir_slice *slice)
{
    uint64_t rows = t->conversion->border_rows, cols = t->conversion->border_cols;
    bool is_block = rows > 1 && cols > 1; /* WEIR_WHOLE is 0 */
    const char *width = "intermediate_size_per_partition is not divisible by the block";
    if (!is_block || n_ranks == 1)
        return WEIR_OK;
    if (t->cut == WEIR_CUT_ROW && slice->n_cols % cols != 0)
        return fail_block(
            t, slice->n_cols, "columns", cols,
            t->n_experts > 0 ? width : "input_size_per_partition is not divisible by block_k");
    for (uint32_t s = 0; t->cut == WEIR_CUT_COLUMN && s < slice->n_segments; s++) {
        if (slice->segments[s].n_rows % rows != 0)
            return fail_block(
                t, slice->segments[s].n_rows, slice->n_segments > 1 ? "rows of a part" : "rows",
                rows,
                t->n_experts > 0 ? width : "output_partition_size is not divisible by block_n");
    }
    return WEIR_OK;
}

weir_status weir_slice_of(const weir_fleet_tensor *tensor, uint32_t n_ranks, uint32_t rank,
                          uint32_t vocabulary_pad, weir_slice *out)
{
    memset(out, 0, sizeof(*out));
    out->n_cols = tensor->n_cols;
    if (tensor->cut == WEIR_CUT_ONE_RANK && n_ranks > 1)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: one of %u workers holds it and the others zeros, which no plan gives "
                         "them",
                         tensor->name, n_ranks);
    if (tensor->cut == WEIR_CUT_VOCABULARY)
        return cut_vocabulary(tensor, n_ranks, rank, vocabulary_pad, out);
    if (tensor->cut == WEIR_CUT_ROW) {
        if (tensor->n_cols % n_ranks != 0)
            return weir_fail(WEIR_ERR_LAYOUT,
                             "%s: %" PRIu64 " columns do not divide over %u workers", tensor->name,
                             tensor->n_cols, n_ranks);
        out->n_cols = tensor->n_cols / n_ranks;
    }
    for (uint32_t p = 0; p < tensor->n_parts; p++) {
        weir_segment *segment = &out->segments[p];
        bool by_rows = tensor->cut == WEIR_CUT_COLUMN;
        weir_status status =
            cut_part(tensor, p, by_rows ? n_ranks : 1, by_rows ? rank : 0, segment);
        if (status != WEIR_OK)
            return status;
        segment->source_col = tensor->cut == WEIR_CUT_ROW ? rank * out->n_cols : 0;
        segment->row = out->n_rows;
        out->n_rows += segment->n_rows;
    }
    out->n_segments = tensor->n_parts;
    out->n_filled_rows = out->n_rows;
    return check_blocks(tensor, n_ranks, out);
}

void weir_slice_layers(uint32_t n_layers, uint32_t n_stages, uint32_t stage, uint32_t *lo,
                       uint32_t *hi)
{
    uint32_t each = n_layers / n_stages, over = n_layers % n_stages;
    *lo = 0;
    *hi = 0;
    for (uint32_t s = 0; s <= stage; s++) {
        *lo = *hi;
        *hi += each + (s + 1 + over >= n_stages && s + 1 < n_stages ? 1 : 0);
    }
}

void weir_slice_experts(uint32_t n_experts, uint32_t n_ranks, uint32_t rank, uint32_t *lo,
                        uint32_t *hi)
{
    uint32_t each = n_experts / n_ranks, over = n_experts % n_ranks;
    *lo = rank * each + (rank < over ? rank : over);
    *hi = *lo + each + (rank < over ? 1 : 0);
}
