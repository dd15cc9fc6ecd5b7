/* SPDX-License-Identifier: Apache-2.0 */
/* derived.c - the parameters that an engine computes from kv_b_proj for absorbed latent attention.
 *
 * K is read through a dequantising window, so nothing is allocated: W_UK_T is rows of K as they
 * stand, W_UV is transposed per head in tiles that stay in the L1 cache. One thread.
 */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "numeric/scalar.h"
#include "weir/family.h"

#define BLOCK 128 /* rows and columns that share a scale */
#define TILE 64

/* K in whatever form the engine holds it. */
typedef struct window {
    weir_dtype dtype;
    const void *codes;
    const float *scale; /* of F8_E4M3 */
    bool per_row;       /* one scale per row, else one per block */
    uint64_t n_cols;
    float table_scale;   /* that `table` was made for; NaN at first, which equals nothing */
    uint16_t table[256]; /* what each code comes to */
} window;

static void read_codes(window *w, const uint8_t *codes, size_t n, float scale, uint16_t *out)
{
    /* A block has 16,384 elements and 256 codes; a row's scale is not worth a table. */
    if (w->per_row) {
        for (size_t i = 0; i < n; i++)
            out[i] = weir_bf16_from_float(weir_float_from_e4m3(codes[i]) * scale);
        return;
    }
    if (w->table_scale != scale) {
        for (int code = 0; code < 256; code++)
            w->table[code] = weir_bf16_from_float(weir_float_from_e4m3((uint8_t)code) * scale);
        w->table_scale = scale;
    }
    for (size_t i = 0; i < n; i++)
        out[i] = w->table[codes[i]];
}

static void read_e4m3(window *w, uint64_t row, uint64_t col, size_t n, uint16_t *out)
{
    const uint8_t *codes = (const uint8_t *)w->codes + row * w->n_cols + col;
    if (w->per_row) {
        read_codes(w, codes, n, w->scale[row], out);
        return;
    }
    const float *scales = w->scale + row / BLOCK * ((w->n_cols + BLOCK - 1) / BLOCK);
    for (size_t done = 0, step; done < n; done += step) {
        step = BLOCK - (col + done) % BLOCK;
        step = step < n - done ? step : n - done;
        read_codes(w, codes + done, step, scales[(col + done) / BLOCK], out + done);
    }
}

/* n elements of row `row` from column `col`, as bf16. */
static void read_row(window *w, uint64_t row, uint64_t col, size_t n, uint16_t *out)
{
    uint64_t at = row * w->n_cols + col;
    if (w->dtype == WEIR_F8_E4M3) {
        read_e4m3(w, row, col, n, out);
    } else if (w->dtype == WEIR_BF16) {
        memcpy(out, (const uint16_t *)w->codes + at, n * sizeof(*out));
    } else {
        const float *values = (const float *)w->codes + at;
        for (size_t i = 0; i < n; i++)
            out[i] = weir_bf16_from_float(values[i]);
    }
}

/* Block column by block column, so that neighbouring rows share a scale. */
static void lay_out_uk_t(const weir_derived *d, window *w, uint16_t *out)
{
    for (uint64_t l = 0; l < d->lora_rank; l += BLOCK) {
        size_t n_cols = d->lora_rank - l < BLOCK ? d->lora_rank - l : BLOCK;
        for (uint64_t n = 0; n < d->n_heads; n++) {
            uint64_t first_row = n * (d->nope_dim + d->v_dim);
            for (uint64_t p = 0; p < d->nope_dim; p++)
                read_row(w, first_row + p, l, n_cols,
                         out + (n * d->nope_dim + p) * d->lora_rank + l);
        }
    }
}

static void transpose_tile(window *w, uint64_t first_row, uint64_t col, size_t n_rows,
                           size_t n_cols, uint16_t *out, uint64_t v_dim)
{
    uint16_t tile[TILE][TILE];
    for (size_t v = 0; v < n_rows; v++)
        read_row(w, first_row + v, col, n_cols, tile[v]);
    for (size_t l = 0; l < n_cols; l++) {
        for (size_t v = 0; v < n_rows; v++)
            out[l * v_dim + v] = tile[v][l];
    }
}

static void lay_out_uv(const weir_derived *d, window *w, uint16_t *out)
{
    for (uint64_t n = 0; n < d->n_heads; n++) {
        uint64_t first_row = n * (d->nope_dim + d->v_dim) + d->nope_dim;
        for (uint64_t l = 0; l < d->lora_rank; l += TILE) {
            size_t n_cols = d->lora_rank - l < TILE ? d->lora_rank - l : TILE;
            for (uint64_t v = 0; v < d->v_dim; v += TILE) {
                size_t n_rows = d->v_dim - v < TILE ? d->v_dim - v : TILE;
                transpose_tile(w, first_row + v, l, n_rows, n_cols,
                               out + (n * d->lora_rank + l) * d->v_dim + v, d->v_dim);
            }
        }
    }
}

static weir_status check_scale(const weir_derived *d, const float *scale,
                               const weir_shape *scale_shape, uint64_t n_rows, bool *out_per_row)
{
    uint64_t row_blocks = (n_rows + BLOCK - 1) / BLOCK;
    uint64_t col_blocks = (d->lora_rank + BLOCK - 1) / BLOCK;
    const weir_shape per_row = { 1, { n_rows } }, per_block = { 2, { row_blocks, col_blocks } };
    char got[WEIR_SHAPE_TEXT], rows[WEIR_SHAPE_TEXT], blocks[WEIR_SHAPE_TEXT];
    if (scale == NULL || scale_shape == NULL)
        return weir_fail(WEIR_ERR_INVALID, "derived parameter: F8_E4M3 without a scale");
    *out_per_row = weir_shape_equal(scale_shape, &per_row);
    if (*out_per_row || weir_shape_equal(scale_shape, &per_block))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID, "derived parameter: scale has shape %s, expected %s or %s",
                     weir_shape_text(scale_shape, got, sizeof(got)),
                     weir_shape_text(&per_row, rows, sizeof(rows)),
                     weir_shape_text(&per_block, blocks, sizeof(blocks)));
}

weir_status weir_derived_compute(const weir_derived *derived, weir_dtype from_dtype,
                                 const void *from, const float *scale,
                                 const weir_shape *scale_shape, void *out)
{
    uint64_t per_head, n_rows, n_elements;
    if (__builtin_add_overflow(derived->nope_dim, derived->v_dim, &per_head) ||
        __builtin_mul_overflow(derived->n_heads, per_head, &n_rows) ||
        __builtin_mul_overflow(n_rows, derived->lora_rank, &n_elements) ||
        n_elements > SIZE_MAX / sizeof(float))
        return weir_fail(WEIR_ERR_INVALID, "derived parameter: its origin exceeds 64 bits");
    window w = { .dtype = from_dtype,
                 .codes = from,
                 .scale = scale,
                 .n_cols = derived->lora_rank,
                 .table_scale = NAN };
    if (from_dtype == WEIR_F8_E4M3) {
        weir_status status = check_scale(derived, scale, scale_shape, n_rows, &w.per_row);
        if (status != WEIR_OK)
            return status;
    } else if (from_dtype != WEIR_BF16 && from_dtype != WEIR_F32) {
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "derived parameter: its origin is %s, expected BF16, F32 or F8_E4M3",
                         weir_dtype_name(from_dtype));
    }
    if (derived->kind == WEIR_DERIVED_MLA_W_UV)
        lay_out_uv(derived, &w, out);
    else if (derived->kind == WEIR_DERIVED_MLA_W_UK_T)
        lay_out_uk_t(derived, &w, out);
    else
        return weir_fail(WEIR_ERR_INVALID, "derived parameter: unknown kind %d",
                         (int)derived->kind);
    return WEIR_OK;
}
