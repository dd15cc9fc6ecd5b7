/* SPDX-License-Identifier: Apache-2.0 */
/* convert.c - weir_convert(): checks a call whole, then runs the tile loop and the digests. */
#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/options.h"
#include "convert/fused.h"
#include "convert/nonfinite.h"
#include "convert/tile_loop.h"

/* ---- checks ----------------------------------------------------------------------------------*/

/* The args as this version knows them. */
static weir_status take_args(const weir_convert_args *given, weir_convert_args *args)
{
    weir_status status = weir_options_read(given, "weir_convert_args", args, sizeof(*args));
    if (status == WEIR_OK && args->conversion == NULL)
        status = weir_fail(WEIR_ERR_INVALID, "weir_convert_args names no conversion");
    return status;
}

static const char *dtype_list(weir_dtype_set set, char *buffer, size_t buffer_bytes)
{
    buffer[0] = '\0';
    for (int d = 1; d < WEIR_DTYPE_END; d++) {
        if ((set & WEIR_DTYPE_BIT(d)) == 0)
            continue;
        if (buffer[0] != '\0')
            strncat(buffer, ", ", buffer_bytes - strlen(buffer) - 1);
        strncat(buffer, weir_dtype_name((weir_dtype)d), buffer_bytes - strlen(buffer) - 1);
    }
    return buffer;
}

static weir_status check_sources(const weir_convert_args *args, const weir_fused *fused)
{
    for (size_t i = 0; i < weir_fused_n_tensors(fused); i++) {
        const weir_tensor *source = &args->sources[i];
        const char *name = source->name != NULL ? source->name : "(unnamed)";
        unsigned bits = weir_dtype_bits(source->dtype);
        if (bits == 0 || bits % 8 != 0 ||
            (args->conversion->sources & WEIR_DTYPE_BIT(source->dtype)) == 0) {
            char list[128];
            return weir_fail(WEIR_ERR_INVALID, "%s has dtype %s, conversion '%s' takes %s", name,
                             weir_dtype_name(source->dtype), args->conversion->name,
                             dtype_list(args->conversion->sources, list, sizeof(list)));
        }
        uint64_t n_elements;
        weir_status status = weir_shape_elements(&source->shape, &n_elements);
        if (status != WEIR_OK)
            return status;
        if (source->data == NULL && n_elements != 0)
            return weir_fail(WEIR_ERR_INVALID, "%s has no data", name);
        status = weir_fused_check_pitch(fused, source);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

/* Sources of several dtypes meet in fp32, which only these three fit. */
static weir_status check_mixture(const weir_convert_args *args, const weir_fused *fused)
{
    const weir_dtype_set floats =
        WEIR_DTYPE_BIT(WEIR_BF16) | WEIR_DTYPE_BIT(WEIR_F16) | WEIR_DTYPE_BIT(WEIR_F32);
    weir_dtype_set used = 0;
    for (size_t i = 0; i < weir_fused_n_tensors(fused); i++)
        used |= WEIR_DTYPE_BIT(args->sources[i].dtype);
    if ((used & (used - 1)) == 0 ||
        ((used & ~floats) == 0 && (args->conversion->sources & WEIR_DTYPE_BIT(WEIR_F32)) != 0))
        return WEIR_OK;
    char list[128];
    return weir_fail(WEIR_ERR_INVALID, "sources of %s cannot be joined by conversion '%s'",
                     dtype_list(used, list, sizeof(list)), args->conversion->name);
}

/* Kernels write rows that begin on a byte of their own. */
static bool has_whole_rows(const weir_shape *shape, weir_dtype dtype)
{
    uint64_t last = shape->rank > 0 ? shape->dim[shape->rank - 1] : 1;
    return last * weir_dtype_bits(dtype) % 8 == 0;
}

static weir_status check_buffers(const weir_convert_args *args, const weir_shape *source,
                                 uint64_t *out_total_bytes)
{
    const weir_conversion *conversion = args->conversion;
    *out_total_bytes = 0;
    for (size_t i = 0; i < WEIR_MAX_OUTPUTS; i++) {
        if (i >= conversion->n_outputs) {
            if (args->outputs[i] == NULL)
                continue;
            return weir_fail(WEIR_ERR_INVALID, "%s conversion takes no scale buffer",
                             conversion->name);
        }
        weir_shape shape;
        uint64_t n_bytes;
        weir_status status = weir_conversion_output_shape(conversion, i, source, &shape);
        if (status == WEIR_OK)
            status = weir_tensor_bytes(conversion->outputs[i].dtype, &shape, &n_bytes);
        if (status != WEIR_OK)
            return status;
        if (!has_whole_rows(&shape, conversion->outputs[i].dtype))
            return weir_fail(WEIR_ERR_INVALID, "%s: a row of %s would end within a byte",
                             conversion->name, conversion->outputs[i].suffix);
        if (args->outputs[i] == NULL && n_bytes != 0)
            return weir_fail(WEIR_ERR_INVALID, "%s requires %s buffer", conversion->name,
                             i == 0 ? "an out" : "a scale_out");
        unsigned element_bytes = weir_dtype_bits(conversion->outputs[i].dtype) / 8;
        if (element_bytes > 1 && (uintptr_t)args->outputs[i] % element_bytes != 0)
            return weir_fail(WEIR_ERR_INVALID, "%s: the buffer for %s is not aligned to %u bytes",
                             conversion->name, conversion->outputs[i].suffix, element_bytes);
        if (__builtin_add_overflow(*out_total_bytes, n_bytes, out_total_bytes))
            return weir_fail(WEIR_ERR_INVALID, "%s: outputs of more than 2^64 bytes",
                             conversion->name);
    }
    return WEIR_OK;
}

/* ---- interface -------------------------------------------------------------------------------*/

weir_status weir_convert_fused_shape(const weir_convert_args *given, weir_shape *out)
{
    weir_convert_args args;
    weir_fused fused;
    weir_status status = take_args(given, &args);
    if (status == WEIR_OK)
        status = weir_fused_init(&fused, &args);
    if (status == WEIR_OK)
        *out = fused.shape;
    return status;
}

/* Output 0 was summed tile by tile, unless its rows do not lie in tiles; the others are small. */
static weir_status make_digests(const weir_convert_args *args, const weir_tile_loop *loop)
{
    const weir_conversion *conversion = args->conversion;
    weir_status status = WEIR_OK;
    for (size_t i = 0; status == WEIR_OK && i < conversion->n_outputs; i++) {
        if (i == 0 && loop->digests) {
            args->digests[0] =
                (weir_digest){ atomic_load(&loop->product), atomic_load(&loop->sum) };
            continue;
        }
        weir_tensor output = { .dtype = conversion->outputs[i].dtype, .data = args->outputs[i] };
        status = weir_conversion_output_shape(conversion, i, &loop->fused->shape, &output.shape);
        if (status == WEIR_OK)
            status = weir_digest_part(args->pool, &output, args->first_words[i], &args->digests[i]);
    }
    return status;
}

weir_status weir_convert(const weir_convert_args *given)
{
    weir_convert_args args;
    weir_fused fused;
    uint64_t total_bytes = 0;
    weir_status status = take_args(given, &args);
    if (status == WEIR_OK)
        status = weir_fused_init(&fused, &args);
    if (status == WEIR_OK)
        status = check_sources(&args, &fused);
    if (status == WEIR_OK)
        status = check_mixture(&args, &fused);
    if (status == WEIR_OK)
        status = check_buffers(&args, &fused.shape, &total_bytes);
    if (status != WEIR_OK)
        return status;
    if (total_bytes == 0) {
        for (size_t i = 0; args.digests != NULL && i < args.conversion->n_outputs; i++)
            args.digests[i] = (weir_digest){ 0, 0 };
        return WEIR_OK;
    }
    weir_tile_loop loop;
    weir_tile_loop_init(&loop, &args, &fused, total_bytes);
    status = weir_tile_loop_run(&loop);
    if (status == WEIR_ERR_NONFINITE)
        return weir_nonfinite_report(args.conversion, &fused,
                                     loop.rounds || args.conversion->outputs[0].dtype == WEIR_BF16);
    if (status == WEIR_OK && args.digests != NULL)
        status = make_digests(&args, &loop);
    return status;
}
