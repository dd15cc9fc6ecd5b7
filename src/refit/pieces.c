/* SPDX-License-Identifier: Apache-2.0 */
/* pieces.c - where a rank's entries are cut, and what of them makes a step.
 *
 * Every entry is seen as matrices of rows: a stack of experts has many, a linear weight has one,
 * and what cannot be cut is one matrix of one row. A piece is a run of whole matrices, or a run of
 * rows of one matrix. Pieces are taken from the front of what is left, each as large as the room in
 * the current step allows, so steps are as full as the cuts permit.
 *
 * The list is walked twice: once to count, once to fill what was allocated.
 */
#include "refit/pieces.h"

#include <inttypes.h>
#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "family/mapping.h"

#define PACK_ALIGNMENT 256u
#define CUT_ROWS 128u /* of a destination: whole blocks of scales, and whole tiles of kernels */

/* One source of a piece that is not a whole tensor. */
struct weir_piece_view {
    weir_tensor *view; /* among its piece's sources */
    const weir_tensor *source;
    uint64_t offset_bytes;
};

/* ---- an entry as matrices of rows ------------------------------------------------------------*/

/* One output's rows, as many bytes as one row of the weight gives. */
typedef struct output_rows {
    uint64_t n_rows, row_bytes; /* of one matrix */
    size_t cell_rows;
} output_rows;

typedef struct grid {
    const weir_owned_entry *owned;
    const weir_map_entry *entry;
    const weir_shard *shards;
    uint64_t n_matrices, n_rows, n_cols;
    uint64_t row_unit; /* rows are cut at its multiples; n_rows: nowhere */
    output_rows outputs[WEIR_MAX_OUTPUTS];
} grid;

/* Whole matrices with all their rows, or some rows of one. */
typedef struct range {
    uint64_t matrix, n_matrices, row, n_rows;
} range;

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t common_multiple(uint64_t a, uint64_t b)
{
    uint64_t x = a, y = b;
    while (y != 0) {
        uint64_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

/* Whether the entry's sources are joined the way that ranges of rows can be found in them. */
static bool has_matrices(const weir_map_entry *entry)
{
    if (entry->n_experts != 0)
        return entry->shape.rank == 3 && entry->axis == 1;
    if (entry->shape.rank != 2 && entry->shape.rank != 3)
        return false;
    return entry->n_sources == 1 || entry->axis == entry->shape.rank - 2;
}

/* False where an output's rows do not begin on bytes of their own. */
static bool see_output(const grid *g, const weir_conversion_output *output, output_rows *out)
{
    uint64_t n_cols = 1;
    if (output->cell_cols != WEIR_WHOLE)
        n_cols = g->n_cols / output->cell_cols + (g->n_cols % output->cell_cols != 0);
    uint64_t row_bits = n_cols * weir_dtype_bits(output->dtype);
    *out = (output_rows){ .n_rows =
                              g->n_rows / output->cell_rows + (g->n_rows % output->cell_rows != 0),
                          .row_bytes = row_bits / 8,
                          .cell_rows = output->cell_rows };
    return row_bits % 8 == 0;
}

/* A row of an output that has one element per row of the weight is a single element: the digest
 * sees a matrix's elements as one row, which can be cut at its words only. */
static uint64_t row_unit_of(const grid *g)
{
    const weir_conversion *conversion = g->entry->conversion;
    if (conversion->border_rows == WEIR_WHOLE)
        return g->n_rows;
    uint64_t unit = common_multiple(CUT_ROWS, conversion->border_rows);
    for (size_t o = 0; o < conversion->n_outputs; o++) {
        const output_rows *rows = &g->outputs[o];
        if (conversion->outputs[o].cell_cols != WEIR_WHOLE)
            continue;
        if (g->n_matrices > 1 && rows->n_rows * rows->row_bytes % 8 != 0)
            return g->n_rows;
        unit = common_multiple(unit, rows->cell_rows * (8 / least(8, rows->row_bytes)));
    }
    return unit;
}

static void see_whole(grid *g)
{
    g->n_matrices = g->n_rows = g->n_cols = g->row_unit = 1;
    for (size_t o = 0; o < g->entry->conversion->n_outputs; o++)
        g->outputs[o] = (output_rows){ 1, g->shards[o].n_bytes, 1 };
}

static void grid_init(grid *g, const weir_source *source, const weir_owned_entry *owned)
{
    const weir_map_entry *entry = owned->entry;
    const weir_shape *shape = &entry->shape;
    *g = (grid){ .owned = owned, .entry = entry, .shards = &source->shards[owned->first_shard] };
    if (!has_matrices(entry)) {
        see_whole(g);
        return;
    }
    g->n_matrices = shape->rank == 3 ? shape->dim[0] : 1;
    g->n_rows = shape->dim[shape->rank - 2];
    g->n_cols = shape->dim[shape->rank - 1];
    for (size_t o = 0; o < entry->conversion->n_outputs; o++) {
        if (!see_output(g, &entry->conversion->outputs[o], &g->outputs[o])) {
            see_whole(g);
            return;
        }
    }
    g->row_unit = row_unit_of(g);
}

/* ---- ranges ----------------------------------------------------------------------------------*/

static bool is_whole(const grid *g, const range *r)
{
    return r->n_matrices == g->n_matrices && r->n_rows == g->n_rows;
}

/* Where an output of the range lies within its shard. */
static void place_part(const grid *g, const range *r, size_t output, weir_part *part)
{
    const output_rows *rows = &g->outputs[output];
    uint64_t first = r->row / rows->cell_rows, end = r->row + r->n_rows;
    end = end / rows->cell_rows + (end % rows->cell_rows != 0);
    uint64_t n_rows = r->n_matrices > 1 ? r->n_matrices * rows->n_rows : end - first;
    part->shard = (uint32_t)(g->owned->first_shard + output);
    part->offset = (r->matrix * rows->n_rows + first) * rows->row_bytes;
    part->n_bytes = n_rows * rows->row_bytes;
}

static uint64_t align_up(uint64_t n_bytes)
{
    return (n_bytes + PACK_ALIGNMENT - 1) / PACK_ALIGNMENT * PACK_ALIGNMENT;
}

static uint64_t packed_bytes(const grid *g, const range *r)
{
    uint64_t sum = 0;
    for (size_t o = 0; o < g->entry->conversion->n_outputs; o++) {
        weir_part part;
        place_part(g, r, o, &part);
        sum += align_up(part.n_bytes);
    }
    return sum;
}

/* The range from (matrix, row) on, of n matrices or n units of rows. */
static range range_of(const grid *g, uint64_t matrix, uint64_t row, bool by_rows, uint64_t n)
{
    if (!by_rows)
        return (range){ matrix, n, 0, g->n_rows };
    return (range){ matrix, 1, row, least(n * g->row_unit, g->n_rows - row) };
}

/* The most matrices or units of rows from (matrix, row) on that pack into `room`, `n_left` being
 * there; 0: not even one does. */
static uint64_t most_that_fit(const grid *g, uint64_t matrix, uint64_t row, bool by_rows,
                              uint64_t n_left, uint64_t room)
{
    uint64_t low = 0, high = n_left;
    while (low < high) {
        uint64_t middle = low + (high - low + 1) / 2;
        range r = range_of(g, matrix, row, by_rows, middle);
        if (packed_bytes(g, &r) <= room)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* ---- one piece -------------------------------------------------------------------------------*/

/* The list that is made, or, without arrays, counted. */
typedef struct cutter {
    const weir_source *source;
    bool keep_masters;
    uint64_t step_bytes;
    weir_arena *arena;
    weir_steps *out;
    weir_tensor *tensors; /* one per view */
    bool fill;
} cutter;

static bool is_cast_to(const weir_conversion *conversion, weir_dtype *out_dtype)
{
    *out_dtype = conversion->outputs[0].dtype;
    return (strcmp(conversion->name, "bf16_cast") == 0 && *out_dtype == WEIR_BF16) ||
           (strcmp(conversion->name, "fp32_cast") == 0 && *out_dtype == WEIR_F32);
}

/* Sources that are stacks of several matrices each take turns in the output. */
static bool is_plain(const weir_convert_args *args, uint64_t n_matrices)
{
    weir_dtype dtype;
    if (!is_cast_to(args->conversion, &dtype))
        return false;
    if (args->n_experts == 0 && args->n_sources > 1 && n_matrices > 1)
        return false;
    size_t n = args->n_sources * (args->n_experts != 0 ? args->n_experts : 1);
    for (size_t i = 0; i < n; i++) {
        if (args->sources[i].dtype != dtype)
            return false;
    }
    return true;
}

/* "NAME[128:256]", "NAME[2:3, 128:256]": what an error's index within the view is relative to. */
static const char *view_name(cutter *c, const weir_tensor *source, const range *r)
{
    const char *name = source->name != NULL ? source->name : "(unnamed)";
    uint64_t matrix_end = r->matrix + r->n_matrices, row_end = r->row + r->n_rows;
    bool all_rows = r->n_rows == source->shape.dim[source->shape.rank - 2];
    if (source->shape.rank == 2 && all_rows)
        return weir_arena_strdup(c->arena, name);
    if (source->shape.rank == 2)
        return weir_arena_format(c->arena, "%s[%" PRIu64 ":%" PRIu64 "]", name, r->row, row_end);
    if (all_rows)
        return weir_arena_format(c->arena, "%s[%" PRIu64 ":%" PRIu64 "]", name, r->matrix,
                                 matrix_end);
    return weir_arena_format(c->arena, "%s[%" PRIu64 ":%" PRIu64 ", %" PRIu64 ":%" PRIu64 "]", name,
                             r->matrix, matrix_end, r->row, row_end);
}

/* The part of one source that `r` (rows counted within the source) names. */
static weir_status add_view(cutter *c, const grid *g, const weir_tensor *source, const range *r)
{
    size_t at = c->out->n_views++;
    if (!c->fill)
        return WEIR_OK;
    uint32_t rank = source->shape.rank;
    uint64_t rows_before = r->row;
    if (rank == 3)
        rows_before += r->matrix * source->shape.dim[1];
    weir_tensor *view = &c->tensors[at];
    *view = (weir_tensor){ .name = view_name(c, source, r),
                           .dtype = source->dtype,
                           .shape = source->shape };
    view->shape.dim[rank - 2] = r->n_rows;
    if (rank == 3)
        view->shape.dim[0] = r->n_matrices;
    c->out->views[at] = (struct weir_piece_view){
        .view = view,
        .source = source,
        .offset_bytes = rows_before * g->n_cols * (weir_dtype_bits(source->dtype) / 8),
    };
    return view->name != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

/* The range as rows of the joined sources: each source's share is a view of its own. */
static weir_status cut_sources(cutter *c, const grid *g, const range *r, weir_convert_args *args)
{
    const weir_map_entry *entry = g->entry;
    const weir_tensor *sources = entry->sources;
    if (entry->n_experts != 0)
        sources += r->matrix * entry->n_sources;
    size_t first_view = c->out->n_views;
    uint64_t begin = 0;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < entry->n_sources && status == WEIR_OK; i++) {
        uint64_t end = begin + sources[i].shape.dim[sources[i].shape.rank - 2];
        uint64_t from = r->row > begin ? r->row : begin, to = least(r->row + r->n_rows, end);
        range share = { r->matrix, r->n_matrices, from - begin, to - from };
        if (from < to)
            status = add_view(c, g, &sources[i], &share);
        begin = end;
    }
    args->sources = c->fill ? c->tensors + first_view : NULL;
    args->n_sources = c->out->n_views - first_view;
    args->n_experts = entry->n_experts != 0 ? 1 : 0;
    return status;
}

static weir_status take_sources(cutter *c, const grid *g, const range *r, weir_convert_args *args)
{
    const weir_map_entry *entry = g->entry;
    if (is_whole(g, r))
        return WEIR_OK;
    if (entry->n_experts == 0 || r->n_rows != g->n_rows)
        return cut_sources(c, g, r, args);
    args->sources += r->matrix * entry->n_sources;
    args->n_experts = (size_t)r->n_matrices;
    return WEIR_OK;
}

static weir_status place_parts(const cutter *c, const grid *g, const range *r, weir_step *step,
                               weir_piece *piece)
{
    for (size_t o = 0; o < piece->n_parts; o++) {
        weir_part *part = &piece->parts[o];
        weir_work_range rows;
        place_part(g, r, o, part);
        weir_status status =
            weir_part_rows(&c->source->shards[part->shard], part->offset, part->n_bytes, &rows);
        if (status != WEIR_OK)
            return weir_fail(WEIR_ERR_INTERNAL, "%s was cut within a row", g->entry->name);
        piece->args.first_words[o] = rows.first_word;
        piece->part_offsets[o] = step->packed_bytes;
        step->packed_bytes += align_up(part->n_bytes);
        step->n_bytes += part->n_bytes;
    }
    return WEIR_OK;
}

static weir_status add_piece(cutter *c, const grid *g, const range *r, weir_step *step)
{
    weir_piece piece = { .args = weir_map_entry_args(g->entry),
                         .entry = g->entry,
                         .n_parts = g->entry->conversion->n_outputs };
    piece.args.round_masters = !c->keep_masters;
    weir_status status = take_sources(c, g, r, &piece.args);
    if (status == WEIR_OK)
        status = place_parts(c, g, r, step, &piece);
    if (status != WEIR_OK)
        return status;
    if (c->fill) {
        piece.plain = is_plain(&piece.args, r->n_matrices);
        c->out->pieces[c->out->n_pieces] = piece;
    }
    c->out->n_pieces++;
    step->n_pieces++;
    return WEIR_OK;
}

/* ---- steps -----------------------------------------------------------------------------------*/

static void end_step(cutter *c, weir_step *step)
{
    if (step->n_pieces != 0) {
        if (c->fill)
            c->out->steps[c->out->n_steps] = *step;
        c->out->n_steps++;
        if (step->packed_bytes > c->out->largest_packed_bytes)
            c->out->largest_packed_bytes = step->packed_bytes;
    }
    *step = (weir_step){ .first_piece = c->out->n_pieces };
}

/* The next range from (matrix, row) on: as much as `room` takes, or nothing (n_rows 0). Experts are
 * cut only where one alone is more than a step. */
static range next_range(const cutter *c, const grid *g, uint64_t matrix, uint64_t row,
                        uint64_t room)
{
    uint64_t n = 0;
    if (row == 0)
        n = most_that_fit(g, matrix, 0, false, g->n_matrices - matrix, room);
    if (n != 0)
        return range_of(g, matrix, 0, false, n);
    range one = range_of(g, matrix, 0, false, 1);
    if (g->n_matrices > 1 && packed_bytes(g, &one) <= c->step_bytes)
        return (range){ 0 };
    uint64_t n_units = (g->n_rows - row) / g->row_unit + ((g->n_rows - row) % g->row_unit != 0);
    n = most_that_fit(g, matrix, row, true, n_units, room);
    return n != 0 ? range_of(g, matrix, row, true, n) : (range){ 0 };
}

static weir_status cut_entry(cutter *c, const grid *g, weir_step *step)
{
    uint64_t matrix = 0, row = 0;
    while (matrix < g->n_matrices) {
        uint64_t room = c->step_bytes > step->packed_bytes ? c->step_bytes - step->packed_bytes : 0;
        range r = next_range(c, g, matrix, row, room);
        if (r.n_rows == 0 && step->n_pieces != 0) {
            end_step(c, step);
            continue;
        }
        if (r.n_rows == 0) /* the least there is */
            r = range_of(g, matrix, row, true, 1);
        weir_status status = add_piece(c, g, &r, step);
        if (status != WEIR_OK)
            return status;
        row = r.row + r.n_rows;
        if (row == g->n_rows) {
            matrix = r.matrix + r.n_matrices;
            row = 0;
        }
    }
    return WEIR_OK;
}

static weir_status cut_layers(cutter *c, bool outside, weir_step *step)
{
    for (size_t i = 0; i < c->source->n_owned; i++) {
        const weir_owned_entry *owned = &c->source->owned[i];
        if ((owned->entry->layer < 0) != outside)
            continue;
        grid g;
        grid_init(&g, c->source, owned);
        weir_status status = cut_entry(c, &g, step);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

/* What is outside the layers first, as receivers of broadcasts know it. */
static weir_status cut_all(cutter *c)
{
    weir_step step = { 0 };
    weir_status status = cut_layers(c, true, &step);
    if (status == WEIR_OK)
        status = cut_layers(c, false, &step);
    if (status != WEIR_OK)
        return status;
    end_step(c, &step);
    return WEIR_OK;
}

weir_status weir_steps_cut(const weir_source *source, bool keep_masters, uint64_t step_bytes,
                           weir_arena *arena, weir_steps *out)
{
    weir_steps counted = { 0 }, steps = { 0 };
    cutter c = { .source = source,
                 .keep_masters = keep_masters,
                 .step_bytes = step_bytes,
                 .arena = arena,
                 .out = &counted };
    weir_status status = cut_all(&c);
    if (status != WEIR_OK)
        return status;
    c.fill = true;
    c.out = &steps;
    c.tensors = weir_arena_zeroed(arena, counted.n_views, sizeof(*c.tensors));
    steps.views = weir_arena_zeroed(arena, counted.n_views, sizeof(*steps.views));
    steps.pieces = weir_arena_zeroed(arena, counted.n_pieces, sizeof(*steps.pieces));
    steps.steps = weir_arena_zeroed(arena, counted.n_steps, sizeof(*steps.steps));
    if (c.tensors == NULL || steps.views == NULL || steps.pieces == NULL || steps.steps == NULL)
        return WEIR_ERR_NO_MEMORY;
    status = cut_all(&c);
    if (status != WEIR_OK)
        return status;
    weir_steps_aim(&steps);
    *out = steps;
    return WEIR_OK;
}

void weir_steps_aim(const weir_steps *steps)
{
    for (size_t i = 0; i < steps->n_views; i++) {
        const struct weir_piece_view *view = &steps->views[i];
        unsigned char *data = view->source->data;
        view->view->data = data != NULL ? data + view->offset_bytes : NULL;
    }
}

/* ---- a part's rows ---------------------------------------------------------------------------*/

static weir_status refuse_part(const weir_shard *shard, uint64_t offset, uint64_t n_bytes,
                               const char *why)
{
    return weir_fail(WEIR_ERR_CORRUPT,
                     "%s: a part of %" PRIu64 " bytes at %" PRIu64 " of %" PRIu64 " %s",
                     shard->name, n_bytes, offset, shard->n_bytes, why);
}

weir_status weir_part_rows(const weir_shard *shard, uint64_t offset, uint64_t n_bytes,
                           weir_work_range *out)
{
    if (offset > shard->n_bytes || n_bytes > shard->n_bytes - offset)
        return refuse_part(shard, offset, n_bytes, "lies outside");
    weir_shape shape = weir_box_shape(&shard->box);
    uint64_t n_rows, row_bytes;
    weir_digest_rows_of(shard->dtype, &shape, &n_rows, &row_bytes);
    out->dtype = shard->dtype;
    out->row_bytes = row_bytes;
    out->n_rows = out->first_word = 0;
    if (n_bytes == 0 || row_bytes == 0)
        return WEIR_OK;
    uint64_t words = weir_digest_words_per_row(row_bytes);
    uint64_t row = offset / row_bytes, within = offset % row_bytes;
    if (within == 0 && n_bytes % row_bytes == 0) {
        out->n_rows = n_bytes / row_bytes;
        out->first_word = row * words;
        return WEIR_OK;
    }
    if (n_bytes > row_bytes - within)
        return refuse_part(shard, offset, n_bytes, "ends within a row");
    if (within % 8 != 0 || (n_bytes % 8 != 0 && within + n_bytes != row_bytes))
        return refuse_part(shard, offset, n_bytes, "is no range of whole words");
    out->n_rows = 1;
    out->row_bytes = n_bytes;
    out->first_word = row * words + within / 8;
    return WEIR_OK;
}
