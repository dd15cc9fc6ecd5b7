/* SPDX-License-Identifier: Apache-2.0 */
/* fused.c - the arithmetic of "fuse first, then quantise" without a fused copy. */
#include "convert/fused.h"

#include <inttypes.h>

#include "base/error.h"

static const char *name_of(const weir_tensor *tensor)
{
    return tensor->name != NULL ? tensor->name : "(unnamed)";
}

static weir_status fail_join(const weir_tensor *a, const weir_tensor *b, uint32_t axis)
{
    char shape_a[WEIR_SHAPE_TEXT], shape_b[WEIR_SHAPE_TEXT];
    return weir_fail(WEIR_ERR_INVALID, "%s %s and %s %s cannot be joined along axis %u", name_of(a),
                     weir_shape_text(&a->shape, shape_a, sizeof(shape_a)), name_of(b),
                     weir_shape_text(&b->shape, shape_b, sizeof(shape_b)), axis);
}

/* Adds up sources that must agree in all but `axis`. */
static weir_status join(const weir_tensor *sources, size_t n_sources, uint32_t axis,
                        weir_shape *out)
{
    *out = sources[0].shape;
    for (size_t i = 1; i < n_sources; i++) {
        const weir_shape *shape = &sources[i].shape;
        bool same = shape->rank == out->rank;
        for (uint32_t d = 0; same && d < out->rank; d++)
            same = d == axis || shape->dim[d] == out->dim[d];
        if (!same || __builtin_add_overflow(out->dim[axis], shape->dim[axis], &out->dim[axis]))
            return fail_join(&sources[0], &sources[i], axis);
    }
    return WEIR_OK;
}

/* E * n_sources matrices, expert by expert; every expert has the shapes of the first. */
static weir_status join_experts(weir_fused *fused, const weir_convert_args *args)
{
    size_t n_tensors;
    if (args->axis != 1)
        return weir_fail(WEIR_ERR_INVALID, "experts are joined along axis 1, not %u", args->axis);
    if (__builtin_mul_overflow(args->n_experts, args->n_sources, &n_tensors))
        return weir_fail(WEIR_ERR_INVALID, "%zu experts of %zu sources are too many",
                         args->n_experts, args->n_sources);
    for (size_t i = 0; i < n_tensors; i++) {
        const weir_tensor *source = &args->sources[i];
        const weir_tensor *first = &args->sources[i % args->n_sources];
        char want[WEIR_SHAPE_TEXT], got[WEIR_SHAPE_TEXT];
        if (source->shape.rank != 2)
            return weir_fail(WEIR_ERR_INVALID, "%s: an expert's source must be a matrix, got %s",
                             name_of(source), weir_shape_text(&source->shape, got, sizeof(got)));
        if (!weir_shape_equal(&source->shape, &first->shape))
            return weir_fail(WEIR_ERR_INVALID, "%s has shape %s, expected %s as %s has",
                             name_of(source), weir_shape_text(&source->shape, got, sizeof(got)),
                             weir_shape_text(&first->shape, want, sizeof(want)), name_of(first));
    }
    weir_shape matrix;
    weir_status status = join(args->sources, args->n_sources, 0, &matrix);
    if (status != WEIR_OK)
        return status;
    fused->shape = (weir_shape){ 3, { args->n_experts, matrix.dim[0], matrix.dim[1] } };
    fused->separate = true;
    return WEIR_OK;
}

static weir_status join_tensors(weir_fused *fused, const weir_convert_args *args)
{
    const weir_tensor *first = &args->sources[0];
    uint32_t rank = first->shape.rank, axis = args->axis;
    char text[WEIR_SHAPE_TEXT];
    if (rank == 0 || rank > WEIR_MAX_RANK)
        return weir_conversion_check_rank(args->conversion, &first->shape);
    if (args->n_sources > 1 && axis != (rank >= 2 ? rank - 2 : 0))
        return weir_fail(WEIR_ERR_INVALID,
                         "%s %s: sources of rank %u are joined along axis %u (their rows), not %u",
                         name_of(first), weir_shape_text(&first->shape, text, sizeof(text)), rank,
                         rank >= 2 ? rank - 2 : 0, axis);
    return join(args->sources, args->n_sources, axis < rank ? axis : 0, &fused->shape);
}

static void see_as_matrices(weir_fused *fused)
{
    const weir_shape *shape = &fused->shape;
    fused->n_cols = shape->dim[shape->rank - 1];
    fused->n_rows = shape->rank >= 2 ? shape->dim[shape->rank - 2] : 1;
    fused->n_matrices = 1;
    for (uint32_t d = 0; d + 2 < shape->rank; d++)
        fused->n_matrices *= shape->dim[d];
}

weir_status weir_fused_init(weir_fused *fused, const weir_convert_args *args)
{
    *fused = (weir_fused){ .sources = args->sources,
                           .pitches = args->source_pitches,
                           .n_sources = args->n_sources };
    if (args->sources == NULL || args->n_sources == 0)
        return weir_fail(WEIR_ERR_INVALID, "conversion '%s' was given no source",
                         args->conversion->name);
    weir_status status =
        args->n_experts != 0 ? join_experts(fused, args) : join_tensors(fused, args);
    if (status == WEIR_OK)
        status = weir_conversion_check_rank(args->conversion, &fused->shape);
    uint64_t n_bytes;
    if (status == WEIR_OK) /* as fp32: no later product of these can overflow */
        status = weir_tensor_bytes(WEIR_F32, &fused->shape, &n_bytes);
    if (status == WEIR_OK)
        see_as_matrices(fused);
    return status;
}

static uint64_t pitch_of(const weir_fused *fused, const weir_tensor *source)
{
    return fused->pitches != NULL ? fused->pitches[source - fused->sources] : 0;
}

static uint64_t element_bytes_of(const weir_tensor *source)
{
    return weir_dtype_bits(source->dtype) / 8;
}

weir_status weir_fused_check_pitch(const weir_fused *fused, const weir_tensor *source)
{
    uint64_t pitch = pitch_of(fused, source), element_bytes = element_bytes_of(source);
    uint64_t row_bytes, last;
    char text[WEIR_SHAPE_TEXT];
    if (pitch == 0)
        return WEIR_OK;
    weir_shape_text(&source->shape, text, sizeof(text));
    if (source->shape.rank != 2)
        return weir_fail(WEIR_ERR_INVALID,
                         "%s %s has a pitch of %" PRIu64 " bytes, only a matrix can have one",
                         name_of(source), text, pitch);
    if (__builtin_mul_overflow(source->shape.dim[1], element_bytes, &row_bytes) ||
        pitch < row_bytes || pitch % element_bytes != 0)
        return weir_fail(WEIR_ERR_INVALID,
                         "%s %s has a pitch of %" PRIu64 " bytes, expected a multiple of %" PRIu64
                         " of at least %" PRIu64,
                         name_of(source), text, pitch, element_bytes, row_bytes);
    if (__builtin_mul_overflow(source->shape.dim[0], pitch, &last))
        return weir_fail(WEIR_ERR_INVALID,
                         "%s %s has a pitch of %" PRIu64 " bytes: more than 2^64 bytes in all",
                         name_of(source), text, pitch);
    return WEIR_OK;
}

uint64_t weir_fused_row_step(const weir_fused *fused, const weir_tensor *source)
{
    uint64_t pitch = pitch_of(fused, source);
    return pitch != 0 ? pitch
                      : source->shape.dim[source->shape.rank - 1] * element_bytes_of(source);
}

size_t weir_fused_n_tensors(const weir_fused *fused)
{
    return fused->separate ? (size_t)fused->n_matrices * fused->n_sources : fused->n_sources;
}

weir_fused_run weir_fused_at(const weir_fused *fused, uint64_t matrix, uint64_t row,
                             uint64_t column)
{
    bool vector = fused->shape.rank == 1;
    const weir_tensor *source = fused->sources + (fused->separate ? matrix * fused->n_sources : 0);
    uint64_t within = vector ? column : row, extent;
    for (;; source++) {
        extent = source->shape.dim[vector ? 0 : source->shape.rank - 2];
        if (within < extent)
            break;
        within -= extent;
    }
    uint64_t row_step = weir_fused_row_step(fused, source);
    uint64_t rows_before = vector ? 0 : (fused->separate ? 0 : matrix * extent) + within;
    return (weir_fused_run){
        .source = source,
        .data = (const unsigned char *)source->data + rows_before * row_step +
                (vector ? within : column) * element_bytes_of(source),
        .n_elements = vector ? extent - within : fused->n_cols - column,
        .n_more_rows = vector ? 0 : extent - within - 1,
        .row_step = row_step,
    };
}
