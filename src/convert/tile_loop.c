/* SPDX-License-Identifier: Apache-2.0 */
/* tile_loop.c - the loop that every conversion runs in.
 *
 * A tile lies within one matrix, its edges on the conversion's border, so tiles share nothing and
 * any thread may take any of them. Tiles are large enough to hide the cost of a call and small
 * enough to balance; consecutive ones go to one thread, which prefetches across their seam. Rows
 * are handed over by pointer, straight from the sources; only rows that differ in dtype from the
 * others of their tile, are misaligned, or are to be rounded first, pass through scratch.
 */
#include "convert/tile_loop.h"

#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/pool.h"
#include "convert/kernels.h"
#include "convert/row_copy.h"

#define TILE_BYTES (1u << 20)        /* of source, when there is plenty */
#define COPIED_TILE_BYTES (1u << 18) /* when rows pass through scratch: to stay in cache */
#define LEAST_TILE_BYTES (1u << 15)
#define ALONE_BYTES (1u << 17) /* outputs so small that waking threads costs more */
#define MAX_ROW_BYTES (1u << 14)
#define MAX_TILE_ROWS 1024u
#define LEAST_CUT_COLS 256u
#define TILES_PER_TASK 4u

/* A tile's place in its matrix. */
typedef struct place {
    uint64_t matrix, row, column;
    size_t n_rows, n_cols;
} place;

static size_t at_most(uint64_t n, size_t limit)
{
    return n < limit ? (size_t)n : limit;
}

static uint64_t divide_up(uint64_t n, uint64_t by)
{
    return n / by + (n % by != 0);
}

/* ---- planning --------------------------------------------------------------------------------*/

/* The dtype in which a source's rows reach the kernel, before those of a mixed tile become F32. */
static weir_dtype dtype_of(const weir_tile_loop *loop, const weir_tensor *source)
{
    return loop->rounds && source->dtype == WEIR_F32 ? WEIR_BF16 : source->dtype;
}

static bool is_aligned(const weir_tensor *source)
{
    return (uintptr_t)source->data % (weir_dtype_bits(source->dtype) / 8) == 0;
}

/* Whether any tile may need scratch rows; false for nearly all checkpoints. */
static bool needs_copies(const weir_tile_loop *loop)
{
    const weir_fused *fused = loop->fused;
    size_t n = weir_fused_n_tensors(fused);
    bool copies = fused->shape.rank == 1 && n > 1;
    for (size_t i = 0; i < n; i++) {
        const weir_tensor *source = &fused->sources[i];
        copies |= !is_aligned(source) || source->dtype != fused->sources[0].dtype ||
                  dtype_of(loop, source) != source->dtype;
    }
    return copies;
}

/* Columns between two possible cuts: on the border, and on whole digest words of any output. */
static uint64_t column_step(const weir_conversion *conversion)
{
    uint64_t step = conversion->border_cols;
    while (step < LEAST_CUT_COLS || step % 16 != 0)
        step += conversion->border_cols;
    return step;
}

static void count_tiles(weir_tile_loop *loop)
{
    const weir_fused *fused = loop->fused;
    loop->tiles_down = divide_up(fused->n_rows, loop->tile_rows);
    loop->tiles_across = fused->n_cols != 0 ? divide_up(fused->n_cols, loop->tile_cols) : 1;
    loop->n_tiles = fused->n_matrices * loop->tiles_down * loop->tiles_across;
}

/* The largest tile of about `tile_bytes` that the border allows. */
static void cut(weir_tile_loop *loop, uint64_t tile_bytes)
{
    const weir_conversion *conversion = loop->conversion;
    const weir_fused *fused = loop->fused;
    uint64_t element_bytes = weir_dtype_bits(fused->sources[0].dtype) / 8;
    uint64_t rows = conversion->border_rows != WEIR_WHOLE ? conversion->border_rows : fused->n_rows;
    uint64_t cols = fused->n_cols;
    if (conversion->border_cols != WEIR_WHOLE) {
        uint64_t most = tile_bytes / (at_most(rows, MAX_TILE_ROWS) * element_bytes);
        uint64_t step = column_step(conversion);
        most = at_most(most, MAX_ROW_BYTES / element_bytes);
        cols = at_most(cols, most > step ? most / step * step : step);
    }
    if (conversion->border_rows != WEIR_WHOLE) {
        uint64_t most = tile_bytes / (at_most(cols != 0 ? cols : 1, tile_bytes) * element_bytes);
        most = at_most(most, MAX_TILE_ROWS);
        rows = at_most(fused->n_rows, most > rows ? most / rows * rows : rows);
    }
    loop->tile_rows = rows != 0 ? rows : 1;
    loop->tile_cols = cols != 0 ? cols : 1;
    count_tiles(loop);
}

static void plan_tiles(weir_tile_loop *loop)
{
    uint64_t n_threads = weir_pool_threads(loop->pool);
    uint64_t tile_bytes = loop->copies ? COPIED_TILE_BYTES : TILE_BYTES;
    cut(loop, tile_bytes);
    while (loop->n_tiles < 4 * n_threads && tile_bytes > LEAST_TILE_BYTES && n_threads > 1)
        cut(loop, tile_bytes /= 2);
    uint64_t run = loop->n_tiles / (4 * n_threads);
    loop->tiles_per_task = run < 1 ? 1 : at_most(run, TILES_PER_TASK);
}

static void plan_outputs(weir_tile_loop *loop)
{
    const weir_conversion *conversion = loop->conversion;
    for (size_t i = 0; i < conversion->n_outputs; i++) {
        const weir_conversion_output *output = &conversion->outputs[i];
        uint64_t cols =
            output->cell_cols == WEIR_WHOLE ? 1 : divide_up(loop->fused->n_cols, output->cell_cols);
        loop->n_out_rows[i] = divide_up(loop->fused->n_rows, output->cell_rows);
        loop->out_row_bytes[i] = cols * weir_dtype_bits(output->dtype) / 8;
    }
}

void weir_tile_loop_init(weir_tile_loop *loop, const weir_convert_args *args,
                         const weir_fused *fused, uint64_t out_bytes)
{
    const weir_conversion *conversion = args->conversion;
    bool fast = conversion->kernel != NULL && !args->reference;
    *loop = (weir_tile_loop){
        .args = args,
        .conversion = conversion,
        .fused = fused,
        .pool = out_bytes > ALONE_BYTES ? args->pool : NULL,
        .kernel = fast ? conversion->kernel : conversion->reference,
        .kernel_digests = fast && conversion->kernel_digests,
        .rounds = args->round_masters && conversion->outputs[0].dtype != WEIR_F32,
        .digests = args->digests != NULL && conversion->outputs[0].cell_cols != WEIR_WHOLE,
    };
    atomic_init(&loop->product, 0);
    atomic_init(&loop->sum, 0);
    loop->copies = needs_copies(loop);
    plan_tiles(loop);
    plan_outputs(loop);
    loop->pointer_bytes = (loop->tile_rows * sizeof(void *) + 63) & ~(size_t)63;
    /* An odd number of lines: rows a power of two apart would fall on the same cache sets. */
    loop->row_bytes = ((loop->tile_cols * sizeof(float) + 63) & ~(size_t)63) | 64;
}

/* ---- one tile --------------------------------------------------------------------------------*/

static place place_of(const weir_tile_loop *loop, uint64_t index)
{
    uint64_t per_matrix = loop->tiles_down * loop->tiles_across, in_matrix = index % per_matrix;
    place at = { .matrix = index / per_matrix,
                 .row = in_matrix / loop->tiles_across * loop->tile_rows,
                 .column = in_matrix % loop->tiles_across * loop->tile_cols };
    at.n_rows = at_most(loop->fused->n_rows - at.row, loop->tile_rows);
    at.n_cols = at_most(loop->fused->n_cols - at.column, loop->tile_cols);
    return at;
}

/* Points at rows in place. False when one of them has to be copied instead. */
static bool point_at_rows(const weir_tile_loop *loop, const place *at, const void **rows,
                          weir_dtype *out_dtype)
{
    if (at->n_cols == 0) { /* no element to point at */
        memset(rows, 0, at->n_rows * sizeof(*rows));
        *out_dtype = loop->fused->sources[0].dtype;
        return true;
    }
    for (uint64_t r = 0; r < at->n_rows;) {
        weir_fused_run run = weir_fused_at(loop->fused, at->matrix, at->row + r, at->column);
        if (r == 0)
            *out_dtype = run.source->dtype;
        if (run.source->dtype != *out_dtype || dtype_of(loop, run.source) != *out_dtype ||
            !is_aligned(run.source) || run.n_elements < at->n_cols)
            return false;
        for (uint64_t i = 0; i <= run.n_more_rows && r < at->n_rows; i++, r++)
            rows[r] = run.data + i * run.row_step;
    }
    return true;
}

/* The dtype that holds every element of the tile exactly. */
static weir_dtype common_dtype(const weir_tile_loop *loop, const place *at)
{
    weir_dtype common = WEIR_DTYPE_NONE;
    for (uint64_t r = 0; r < at->n_rows; r++) {
        for (uint64_t c = 0; c < at->n_cols;) {
            weir_fused_run run =
                weir_fused_at(loop->fused, at->matrix, at->row + r, at->column + c);
            weir_dtype dtype = dtype_of(loop, run.source);
            if (common != WEIR_DTYPE_NONE && common != dtype)
                return WEIR_F32;
            common = dtype;
            c += run.n_elements;
        }
    }
    return common;
}

/* Gathers the tile's rows in scratch, all in one dtype. */
static void copy_rows(const weir_tile_loop *loop, const place *at, unsigned char *copies,
                      const void **rows, weir_dtype dtype)
{
    for (uint64_t r = 0; r < at->n_rows; r++) {
        unsigned char *copy = copies + r * loop->row_bytes;
        rows[r] = copy;
        for (uint64_t c = 0; c < at->n_cols;) {
            weir_fused_run run =
                weir_fused_at(loop->fused, at->matrix, at->row + r, at->column + c);
            uint64_t n = at_most(run.n_elements, at->n_cols - c);
            weir_row_copy(copy + c * (weir_dtype_bits(dtype) / 8), dtype, run.data,
                          run.source->dtype, n, loop->rounds);
            c += n;
        }
    }
}

static void point_at_outputs(const weir_tile_loop *loop, const place *at, weir_tile *tile)
{
    for (size_t i = 0; i < loop->conversion->n_outputs; i++) {
        const weir_conversion_output *output = &loop->conversion->outputs[i];
        uint64_t row = at->matrix * loop->n_out_rows[i] + at->row / output->cell_rows;
        uint64_t column = output->cell_cols == WEIR_WHOLE ? 0 : at->column / output->cell_cols;
        uint64_t offset =
            row * loop->out_row_bytes[i] + column * weir_dtype_bits(output->dtype) / 8;
        tile->out[i].data = (unsigned char *)loop->args->outputs[i] + offset;
        tile->out[i].pitch_bytes = loop->out_row_bytes[i];
        if (i == 0) {
            tile->digest_words_per_row = weir_digest_words_per_row(loop->out_row_bytes[0]);
            tile->digest_word = loop->args->first_words[0] + row * tile->digest_words_per_row +
                                column * weir_dtype_bits(output->dtype) / 64;
        }
    }
}

static void digest_output(const weir_tile_loop *loop, const weir_tile *tile, weir_digest *digest)
{
    const weir_conversion_output *output = &loop->conversion->outputs[0];
    weir_digest_rectangle(digest, tile->out[0].data, tile->out[0].pitch_bytes,
                          divide_up(tile->n_rows, output->cell_rows),
                          divide_up(tile->n_cols, output->cell_cols) *
                              weir_dtype_bits(output->dtype) / 8,
                          tile->digest_word, tile->digest_words_per_row);
}

/* A thread's scratch. */
typedef struct scratch {
    const void **rows, **next_rows;
    unsigned char *copies;
} scratch;

/* Kernels record no line. What is not finite is named later; anything else only a kernel from
 * outside can return. */
static weir_status run_kernel(const weir_tile_loop *loop, const weir_tile *tile)
{
    weir_status status = loop->kernel(tile);
    if (status == WEIR_OK || status == WEIR_ERR_NONFINITE)
        return status;
    return weir_fail(status, "conversion '%s': its kernel failed: %s", loop->conversion->name,
                     weir_status_text(status));
}

static weir_status convert_tile(weir_tile_loop *loop, uint64_t index, bool last, scratch *mine,
                                weir_digest *digest)
{
    place at = place_of(loop, index);
    weir_tile tile = { .rows = mine->rows,
                       .n_rows = at.n_rows,
                       .n_cols = at.n_cols,
                       .digest = loop->digests && loop->kernel_digests ? digest : NULL,
                       .propagate = loop->args->propagate };
    if (!point_at_rows(loop, &at, mine->rows, &tile.dtype)) {
        tile.dtype = common_dtype(loop, &at);
        copy_rows(loop, &at, mine->copies, mine->rows, tile.dtype);
    } else if (!last) {
        place next = place_of(loop, index + 1);
        weir_dtype next_dtype;
        if (point_at_rows(loop, &next, mine->next_rows, &next_dtype)) {
            tile.next_rows = mine->next_rows;
            tile.n_next_rows = next.n_rows;
        }
    }
    point_at_outputs(loop, &at, &tile);
    weir_status status = run_kernel(loop, &tile);
    if (status == WEIR_OK && loop->digests && !loop->kernel_digests)
        digest_output(loop, &tile, digest);
    return status;
}

static size_t scratch_bytes(const weir_tile_loop *loop)
{
    size_t copies = loop->copies ? loop->tile_rows * loop->row_bytes : 0;
    return 2 * loop->pointer_bytes + copies;
}

static weir_status convert_task(void *context, size_t task, unsigned thread)
{
    weir_tile_loop *loop = context;
    unsigned char *block = weir_pool_scratch(loop->pool, thread, scratch_bytes(loop));
    if (block == NULL)
        return WEIR_ERR_NO_MEMORY;
    scratch mine = { (const void **)(void *)block,
                     (const void **)(void *)(block + loop->pointer_bytes),
                     block + 2 * loop->pointer_bytes };
    uint64_t first = task * loop->tiles_per_task;
    uint64_t end = first + at_most(loop->n_tiles - first, loop->tiles_per_task);
    weir_digest digest = { 0, 0 };
    weir_status status = WEIR_OK;
    for (uint64_t i = first; i < end && status == WEIR_OK; i++)
        status = convert_tile(loop, i, i + 1 == end, &mine, &digest);
    atomic_fetch_add_explicit(&loop->product, digest.product, memory_order_relaxed);
    atomic_fetch_add_explicit(&loop->sum, digest.sum, memory_order_relaxed);
    return status;
}

weir_status weir_tile_loop_run(weir_tile_loop *loop)
{
    weir_status status = weir_pool_reserve(loop->pool, scratch_bytes(loop));
    if (status != WEIR_OK)
        return status;
    return weir_pool_run(loop->pool, divide_up(loop->n_tiles, loop->tiles_per_task), convert_task,
                         loop);
}
