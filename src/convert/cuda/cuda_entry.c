/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_entry.c - checks one destination of a batch and chooses its kernel. */
#include "convert/cuda/cuda_entry.h"

#include "base/error.h"
#include "base/options.h"
#include "convert/kernels.h"

#define MAX_EXTENT ((uint64_t)1 << 31)

static const char *name_of(const weir_cuda_entry *entry)
{
    const char *name = entry->args.sources[0].name;
    return name != NULL ? name : "(unnamed)";
}

static weir_status choose_kind(weir_cuda_entry *entry)
{
    weir_convert_fn reference = entry->args.conversion->reference;
    if (reference == weir_fp8_128x128_c)
        entry->kind = WEIR_CUDA_FP8_BLOCK;
    else if (reference == weir_fp8_channel_c)
        entry->kind = entry->fused.n_cols <= WEIR_CUDA_TILE_ELEMENTS ? WEIR_CUDA_FP8_CHANNEL
                                                                     : WEIR_CUDA_FP8_LONG_ROW;
    else if (reference == weir_bf16_cast_c)
        entry->kind = WEIR_CUDA_TO_BF16;
    else if (reference == weir_fp32_cast_c)
        entry->kind = WEIR_CUDA_TO_F32;
    else if (reference == weir_neg_exp_c)
        entry->kind = WEIR_CUDA_NEG_EXP;
    else
        return weir_fail(WEIR_ERR_UNSUPPORTED, "conversion '%s' has no CUDA kernel",
                         entry->args.conversion->name);
    return WEIR_OK;
}

static weir_status check_source(const weir_cuda_entry *entry, const weir_tensor *source)
{
    const weir_conversion *conversion = entry->args.conversion;
    const char *name = source->name != NULL ? source->name : "(unnamed)";
    uint64_t n_elements;
    if (source->dtype <= WEIR_DTYPE_NONE || source->dtype >= WEIR_DTYPE_END ||
        (conversion->sources & WEIR_DTYPE_BIT(source->dtype)) == 0)
        return weir_fail(WEIR_ERR_INVALID, "%s has dtype %s, conversion '%s' takes BF16, F16, F32",
                         name, weir_dtype_name(source->dtype), conversion->name);
    weir_status status = weir_shape_elements(&source->shape, &n_elements);
    if (status != WEIR_OK)
        return status;
    if (source->data == NULL && n_elements != 0)
        return weir_fail(WEIR_ERR_INVALID, "%s has no data", name);
    unsigned element_bytes = weir_dtype_bits(source->dtype) / 8;
    if ((uintptr_t)source->data % element_bytes != 0)
        return weir_fail(WEIR_ERR_INVALID, "%s is not aligned to %u bytes, as a GPU needs it", name,
                         element_bytes);
    return weir_fused_check_pitch(&entry->fused, source);
}

static weir_status check_outputs(weir_cuda_entry *entry)
{
    const weir_conversion *conversion = entry->args.conversion;
    entry->empty = true;
    for (size_t i = 0; i < conversion->n_outputs; i++) {
        weir_shape shape;
        uint64_t n_bytes = 0;
        weir_status status =
            weir_conversion_output_shape(conversion, i, &entry->fused.shape, &shape);
        if (status == WEIR_OK)
            status = weir_tensor_bytes(conversion->outputs[i].dtype, &shape, &n_bytes);
        if (status != WEIR_OK)
            return status;
        unsigned element_bytes = weir_dtype_bits(conversion->outputs[i].dtype) / 8;
        if (entry->args.outputs[i] == NULL && n_bytes != 0)
            return weir_fail(WEIR_ERR_INVALID, "%s: %s requires %s buffer", name_of(entry),
                             conversion->name, i == 0 ? "an out" : "a scale_out");
        if ((uintptr_t)entry->args.outputs[i] % element_bytes != 0)
            return weir_fail(WEIR_ERR_INVALID, "%s: the buffer for %s is not aligned to %u bytes",
                             name_of(entry), conversion->outputs[i].suffix, element_bytes);
        entry->empty &= n_bytes == 0;
    }
    return WEIR_OK;
}

static bool rows_touch(const weir_fused *fused, const weir_tensor *source)
{
    return weir_fused_row_step(fused, source) ==
           fused->n_cols * (weir_dtype_bits(source->dtype) / 8);
}

/* Whether every row can be read, and every chunk be written, in whole vectors. */
static bool moves_whole(const weir_cuda_entry *entry)
{
    const weir_fused *fused = &entry->fused;
    size_t n = weir_fused_n_tensors(fused);
    size_t out_bytes = entry->kind == WEIR_CUDA_TO_BF16 || entry->kind == WEIR_CUDA_TO_F32 ? 16 : 8;
    bool whole = fused->n_cols % WEIR_CUDA_CHUNK == 0 && (fused->shape.rank > 1 || n == 1) &&
                 (uintptr_t)entry->args.outputs[0] % out_bytes == 0;
    for (size_t i = 0; i < n && whole; i++)
        whole = (uintptr_t)fused->sources[i].data % 16 == 0 &&
                (fused->n_rows == 1 || weir_fused_row_step(fused, &fused->sources[i]) % 16 == 0) &&
                fused->sources[i].dtype == fused->sources[0].dtype;
    return whole;
}

static uint32_t choose_from(const weir_cuda_entry *entry)
{
    if (entry->kind == WEIR_CUDA_NEG_EXP || !moves_whole(entry))
        return WEIR_CUDA_FROM_ANY;
    switch (entry->fused.sources[0].dtype) {
    case WEIR_BF16:
        return WEIR_CUDA_FROM_BF16;
    case WEIR_F16:
        return WEIR_CUDA_FROM_F16;
    default:
        return entry->rounds && entry->kind != WEIR_CUDA_TO_BF16 ? WEIR_CUDA_FROM_MASTER
                                                                 : WEIR_CUDA_FROM_F32;
    }
}

/* A cast does not care for rows, except for the digest when they end within a word: one source
 * whose rows touch is one long row then, however narrow its matrices. */
static void flatten_cast(weir_cuda_entry *entry)
{
    weir_fused *fused = &entry->fused;
    bool cast = entry->kind == WEIR_CUDA_TO_BF16 || entry->kind == WEIR_CUDA_TO_F32;
    uint64_t element_bytes = entry->kind == WEIR_CUDA_TO_BF16 ? 2 : 4;
    uint64_t n = fused->n_matrices * fused->n_rows * fused->n_cols;
    if (!cast || fused->separate || fused->n_sources != 1 || n >= MAX_EXTENT ||
        fused->n_cols * element_bytes % 8 != 0 || !rows_touch(fused, fused->sources))
        return;
    fused->n_matrices = fused->n_rows = 1;
    fused->n_cols = n;
}

weir_status weir_cuda_entry_init(weir_cuda_entry *entry, const weir_convert_args *given)
{
    *entry = (weir_cuda_entry){ .empty = true };
    weir_convert_args *args = &entry->args;
    weir_status status = weir_options_read(given, "weir_convert_args", args, sizeof(*args));
    if (status == WEIR_OK && args->conversion == NULL)
        status = weir_fail(WEIR_ERR_INVALID, "weir_convert_args names no conversion");
    if (status == WEIR_OK)
        status = weir_fused_init(&entry->fused, args);
    if (status == WEIR_OK)
        status = choose_kind(entry);
    for (size_t i = 0; status == WEIR_OK && i < weir_fused_n_tensors(&entry->fused); i++)
        status = check_source(entry, &args->sources[i]);
    if (status == WEIR_OK)
        status = check_outputs(entry);
    if (status != WEIR_OK)
        return status;
    const weir_fused *fused = &entry->fused;
    if (fused->n_rows >= MAX_EXTENT || fused->n_cols >= MAX_EXTENT ||
        fused->n_matrices >= MAX_EXTENT)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: an extent of 2^31 is too large for the GPU",
                         name_of(entry));
    if (entry->kind == WEIR_CUDA_FP8_LONG_ROW && fused->n_cols >= MAX_EXTENT / 4)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: a row of %llu elements under one scale is too long for the GPU",
                         name_of(entry), (unsigned long long)fused->n_cols);
    entry->rounds = args->round_masters && args->conversion->outputs[0].dtype != WEIR_F32;
    flatten_cast(entry);
    entry->from = choose_from(entry);
    return WEIR_OK;
}
