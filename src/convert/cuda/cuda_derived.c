/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_derived.c - checks a derived parameter as weir_derived_compute() does, and starts its
 * kernel. */
#include "base/error.h"
#include "convert/cuda/cuda_tables.h"
#include "convert/cuda/derived_job.h"
#include "weir/cuda.h"
#include "weir/family.h"

#define BLOCK 128u
#define MAX_TILES ((uint64_t)0x7FFFFFFF)

static weir_status check_scale(uint64_t n_rows, uint64_t n_cols, const float *scale,
                               const weir_shape *scale_shape, bool *out_per_row)
{
    const weir_shape per_row = { 1, { n_rows } };
    const weir_shape per_block = { 2,
                                   { (n_rows + BLOCK - 1) / BLOCK, (n_cols + BLOCK - 1) / BLOCK } };
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

static weir_status choose_from(const weir_cuda_derived_job *job, weir_dtype dtype,
                               const float *scale, const weir_shape *scale_shape, uint32_t *out)
{
    bool per_row = false;
    if (dtype == WEIR_F8_E4M3) {
        weir_status status = check_scale(job->n_heads * job->rows_per_head, job->n_cols, scale,
                                         scale_shape, &per_row);
        *out = per_row ? WEIR_CUDA_DERIVED_FROM_ROWS : WEIR_CUDA_DERIVED_FROM_BLOCKS;
        return status;
    }
    if (dtype != WEIR_BF16 && dtype != WEIR_F32)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "derived parameter: its origin is %s, expected BF16, F32 or F8_E4M3",
                         weir_dtype_name(dtype));
    *out = dtype == WEIR_BF16 ? WEIR_CUDA_DERIVED_FROM_BF16 : WEIR_CUDA_DERIVED_FROM_F32;
    return WEIR_OK;
}

static weir_status check_size(const weir_derived *d)
{
    uint64_t per_head, n_rows, n_elements;
    if (__builtin_add_overflow(d->nope_dim, d->v_dim, &per_head) ||
        __builtin_mul_overflow(d->n_heads, per_head, &n_rows) ||
        __builtin_mul_overflow(n_rows, d->lora_rank, &n_elements) ||
        n_elements > SIZE_MAX / sizeof(float))
        return weir_fail(WEIR_ERR_INVALID, "derived parameter: its origin exceeds 64 bits");
    return WEIR_OK;
}

static weir_status describe(const weir_derived *d, weir_cuda_derived_job *job)
{
    bool uv = d->kind == WEIR_DERIVED_MLA_W_UV;
    if (!uv && d->kind != WEIR_DERIVED_MLA_W_UK_T)
        return weir_fail(WEIR_ERR_INVALID, "derived parameter: unknown kind %d", (int)d->kind);
    job->n_heads = d->n_heads;
    job->rows_per_head = d->nope_dim + d->v_dim;
    job->first_row = uv ? d->nope_dim : 0;
    job->n_rows = uv ? d->v_dim : d->nope_dim;
    job->n_cols = d->lora_rank;
    job->transposes = uv;
    if (job->n_heads == 0 || job->n_rows == 0 || job->n_cols == 0)
        return WEIR_OK; /* no tile */
    uint64_t down = (job->n_rows - 1) / WEIR_CUDA_DERIVED_TILE + 1, n_tiles;
    uint64_t across = (job->n_cols - 1) / WEIR_CUDA_DERIVED_TILE + 1;
    if (__builtin_mul_overflow(down, across, &n_tiles) ||
        __builtin_mul_overflow(n_tiles, job->n_heads, &n_tiles) || n_tiles > MAX_TILES)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "derived parameter: more tiles than one launch takes");
    job->tiles_down = (uint32_t)down;
    job->tiles_across = (uint32_t)across;
    job->n_tiles = (uint32_t)n_tiles;
    return WEIR_OK;
}

static weir_status check_address(const weir_cuda_runtime *cuda, unsigned device, const char *what,
                                 uint64_t address, unsigned element_bytes)
{
    const void *data = (const void *)(uintptr_t)address;
    if (data == NULL || address % element_bytes != 0)
        return weir_fail(WEIR_ERR_INVALID,
                         "derived parameter: its %s at %p is not aligned to %u bytes", what, data,
                         element_bytes);
    return weir_cuda_check_reach(cuda, (int)device, data, what);
}

static weir_status check_addresses(const weir_cuda_runtime *cuda, unsigned device,
                                   const weir_cuda_derived_job *job, weir_dtype dtype)
{
    weir_status status =
        check_address(cuda, device, "origin", job->from, weir_dtype_bits(dtype) / 8);
    if (status == WEIR_OK && dtype == WEIR_F8_E4M3)
        status = check_address(cuda, device, "scale", job->scale, sizeof(float));
    if (status == WEIR_OK)
        status = check_address(cuda, device, "output", job->out, sizeof(uint16_t));
    return status;
}

static weir_status start(unsigned device, const weir_cuda_derived_job *job, weir_dtype dtype,
                         void *stream)
{
    const weir_cuda_runtime *cuda;
    const weir_cuda_converter *converter;
    int previous;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK)
        status = weir_cuda_converter_get(&converter);
    if (status == WEIR_OK)
        status = weir_cuda_check(cuda->enter((int)device, &previous), "cannot use GPU %u", device);
    if (status != WEIR_OK)
        return status;
    status = check_addresses(cuda, device, job, dtype);
    if (status == WEIR_OK)
        status =
            weir_cuda_check(converter->derive(job, stream), "cannot queue a derived parameter");
    cuda->leave(previous);
    return status;
}

weir_status weir_cuda_derived_start(unsigned device, const weir_derived *derived,
                                    weir_dtype from_dtype, const void *from, const float *scale,
                                    const weir_shape *scale_shape, void *out, void *stream)
{
    weir_cuda_derived_job job = { .from = (uintptr_t)from,
                                  .scale = (uintptr_t)scale,
                                  .out = (uintptr_t)out };
    weir_status status = check_size(derived);
    if (status == WEIR_OK)
        status = describe(derived, &job);
    if (status == WEIR_OK)
        status = choose_from(&job, from_dtype, scale, scale_shape, &job.dtype);
    if (status != WEIR_OK || job.n_tiles == 0)
        return status;
    return start(device, &job, from_dtype, stream);
}
