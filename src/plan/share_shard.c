/* SPDX-License-Identifier: Apache-2.0 */
/* share_shard.c - joins boxes: rows below rows of the same columns, whole slots after whole slots.
 *
 * A shard's digest is the sum of its copies' digests, so each copy must begin at a word of the
 * shard. Rows of a matrix always do. Where rows are the last axis (biases, scales per row) they
 * share words, and a copy that would begin within one begins another shard.
 */
#include "plan/share_shard.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

#define WORD_BYTES 8
#define MAX_OPEN 16 /* shards that are looked at for one that a copy continues */

/* ---- geometry --------------------------------------------------------------------------------*/

static uint64_t cells_of(uint64_t n, uint64_t cell)
{
    return cell == WEIR_WHOLE ? 1 : n / cell + (n % cell != 0);
}

static uint64_t words_of(uint64_t n_bytes)
{
    return (n_bytes + WORD_BYTES - 1) / WORD_BYTES;
}

/* What the worker's source would look like. */
static weir_shape source_shape(const weir_fleet_tensor *tensor, const weir_fleet_slice *slice)
{
    uint32_t leading = tensor->n_experts > 0 ? 1 : 0;
    weir_shape shape = tensor->shape;
    if (shape.rank == 0)
        shape.rank = leading + 2;
    shape.dim[0] = slice->n_slots;
    shape.dim[leading] = slice->n_rows;
    if (shape.rank == leading + 2)
        shape.dim[leading + 1] = slice->n_cols;
    return shape;
}

weir_status weir_part_output_start(weir_part_output *output, const weir_fleet_tensor *tensor,
                                   const weir_fleet_slice *slice, size_t o)
{
    const weir_conversion_output *row = &tensor->conversion->outputs[o];
    weir_shape source = source_shape(tensor, slice);
    if (row->cell_rows == WEIR_WHOLE)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: %s has one %s for all rows, which is not planned", tensor->name,
                         tensor->conversion->name, row->suffix);
    weir_status status =
        weir_conversion_output_shape(tensor->conversion, o, &source, &output->shape);
    if (status != WEIR_OK) {
        weir_error_prefix("%s", tensor->name);
        return status;
    }
    output->leading = tensor->n_experts > 0 ? 1 : 0;
    output->is_vector = output->shape.rank <= output->leading + 1;
    output->cell_rows = row->cell_rows;
    output->cell_cols = row->cell_cols;
    output->n_rows = cells_of(slice->n_filled_rows, row->cell_rows);
    output->n_cols = cells_of(slice->n_cols, row->cell_cols);
    output->n_padding_rows = cells_of(slice->n_rows, row->cell_rows) - output->n_rows;
    output->bits = weir_dtype_bits(row->dtype);
    output->n_shards = output->first_open = 0;
    bool plain = row->cell_rows == 1 && row->cell_cols == 1;
    if (source.rank > output->leading + 2 && !plain)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %s of a tensor of %u axes is not planned",
                         tensor->name, tensor->conversion->name, source.rank);
    if (output->shape.rank <= output->leading || output->bits * output->n_cols % 8 != 0)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: output %s of %s has no rows of whole bytes to cut", tensor->name,
                         row->suffix, tensor->conversion->name);
    return WEIR_OK;
}

void weir_part_output_close(weir_part_output *output)
{
    weir_free(output->shards);
}

static weir_shard_extent extent_of(const weir_part_output *output, const weir_fleet_copy *copy)
{
    bool all_cols = output->cell_cols == WEIR_WHOLE;
    return (weir_shard_extent){
        .slot_lo = copy->slot,
        .slot_hi = (uint64_t)copy->slot + 1,
        .row_lo = copy->row / output->cell_rows,
        .row_hi = cells_of((uint64_t)copy->row + copy->n_rows, output->cell_rows),
        .col_lo = all_cols ? 0 : copy->col / output->cell_cols,
        .col_hi = cells_of((uint64_t)copy->col + copy->n_cols, output->cell_cols),
    };
}

static uint64_t row_bytes_of(const weir_part_output *output, const weir_shard_extent *shard)
{
    return (shard->col_hi - shard->col_lo) * output->bits / 8;
}

/* Digest words of n rows of a slot. What lies between rows and the last axis makes rows too. */
static uint64_t words_of_rows(const weir_part_output *output, const weir_shard_extent *shard,
                              uint64_t n_rows)
{
    uint64_t row_bytes = row_bytes_of(output, shard);
    if (output->is_vector)
        return words_of(n_rows * row_bytes);
    if (output->shape.rank == output->leading + 2)
        return n_rows * words_of(row_bytes);
    uint64_t last_bytes = output->shape.dim[output->shape.rank - 1] * output->bits / 8;
    return n_rows * (row_bytes / last_bytes) * words_of(last_bytes);
}

void weir_part_output_locate(const weir_part_output *output, const weir_shard_extent *shard,
                             const weir_fleet_copy *copy, uint64_t *out_offset,
                             uint64_t *out_first_word)
{
    weir_shard_extent at = extent_of(output, copy);
    uint64_t slots = at.slot_lo - shard->slot_lo, rows = at.row_lo - shard->row_lo;
    *out_offset = (slots * output->n_rows + rows) * row_bytes_of(output, shard);
    *out_first_word =
        slots * words_of_rows(output, shard, output->n_rows) + words_of_rows(output, shard, rows);
}

uint64_t weir_part_output_bytes(const weir_part_output *output, const weir_shard_extent *shard)
{
    return (shard->slot_hi - shard->slot_lo) * (shard->row_hi - shard->row_lo) *
           row_bytes_of(output, shard);
}

weir_box weir_part_output_box(const weir_part_output *output, const weir_shard_extent *shard)
{
    weir_box box = weir_box_whole(&output->shape);
    box.lo[0] = shard->slot_lo;
    box.hi[0] = shard->slot_hi;
    box.lo[output->leading] = shard->row_lo;
    box.hi[output->leading] = shard->row_hi;
    if (box.rank == output->leading + 2) {
        box.lo[output->leading + 1] = shard->col_lo;
        box.hi[output->leading + 1] = shard->col_hi;
    }
    return box;
}

/* ---- joining ---------------------------------------------------------------------------------*/

/* Whether `at` stands right below the shard and begins with a word of it. */
static bool continues(const weir_part_output *output, const weir_shard_extent *shard,
                      const weir_shard_extent *at)
{
    uint64_t n_bytes = (at->row_lo - shard->row_lo) * row_bytes_of(output, shard);
    return shard->slot_lo == at->slot_lo && shard->slot_hi == at->slot_hi &&
           shard->row_hi == at->row_lo && shard->col_lo == at->col_lo &&
           shard->col_hi == at->col_hi && (!output->is_vector || n_bytes % WORD_BYTES == 0);
}

static bool is_whole(const weir_part_output *output, const weir_shard_extent *shard)
{
    return shard->row_lo == 0 && shard->row_hi == output->n_rows && shard->col_lo == 0 &&
           shard->col_hi == output->n_cols;
}

static weir_status add_shard(weir_part_output *output, const weir_shard_extent *at)
{
    if (output->n_shards == output->room) {
        size_t room = output->room * 2 + 32;
        weir_shard_extent *grown = weir_realloc(output->shards, room * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        output->shards = grown;
        output->room = room;
    }
    output->shards[output->n_shards++] = *at;
    return WEIR_OK;
}

/* The last shard is the only one of its slot once that is whole. */
static bool join_slots(weir_part_output *output)
{
    if (output->n_shards < output->first_open + 2)
        return false;
    weir_shard_extent *last = &output->shards[output->n_shards - 1], *before = last - 1;
    if (!is_whole(output, last) || !is_whole(output, before) || before->slot_hi != last->slot_lo)
        return false;
    before->slot_hi = last->slot_hi;
    output->n_shards--;
    return true;
}

void weir_part_output_fence(weir_part_output *output)
{
    output->first_open = output->n_shards;
}

weir_status weir_part_output_put_none(weir_part_output *output)
{
    return add_shard(output, &(weir_shard_extent){ .slot_hi = 1, .col_hi = output->n_cols });
}

weir_status weir_part_output_put(weir_part_output *output, const weir_fleet_copy *copy,
                                 size_t *out_shard, size_t *out_gone)
{
    weir_shard_extent at = extent_of(output, copy);
    size_t i = output->n_shards, least = i > MAX_OPEN ? i - MAX_OPEN : 0;
    least = least > output->first_open ? least : output->first_open;
    bool partial = copy->col > 0 || at.col_hi < output->n_cols;
    if (partial && output->shape.rank > output->leading + 2)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "columns of a tensor of %u axes are cut",
                         output->shape.rank);
    *out_gone = SIZE_MAX;
    while (i > least && !continues(output, &output->shards[i - 1], &at))
        i--;
    if (i > least) {
        output->shards[--i].row_hi = at.row_hi;
    } else {
        weir_status status = add_shard(output, &at);
        if (status != WEIR_OK)
            return status;
        i = output->n_shards - 1;
    }
    if (i + 1 == output->n_shards && join_slots(output))
        *out_gone = i--;
    *out_shard = i;
    return WEIR_OK;
}
