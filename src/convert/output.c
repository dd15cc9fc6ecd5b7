/* SPDX-License-Identifier: Apache-2.0 */
/* output.c - names and shapes of what a conversion writes. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "convert/fused.h"

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && memcmp(text + n - n_end, end, n_end) == 0;
}

static weir_status check_output(const weir_conversion *conversion, size_t output)
{
    if (output < conversion->n_outputs)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID, "conversion '%s' has %zu outputs, there is no number %zu",
                     conversion->name, conversion->n_outputs, output);
}

weir_status weir_conversion_output_name(const weir_conversion *conversion, size_t output,
                                        const char *name, bool strict, char *buffer,
                                        size_t buffer_bytes)
{
    weir_status status = check_output(conversion, output);
    if (status != WEIR_OK)
        return status;
    size_t stem = strlen(name);
    const char *separator = "", *suffix = "";
    if (output > 0) {
        suffix = conversion->outputs[output].suffix;
        if (ends_with(name, ".weight") || ends_with(name, "_weight"))
            stem -= strlen("weight");
        else if (!strict)
            separator = ".";
        else
            return weir_fail(WEIR_ERR_INVALID, "cannot derive scale name from '%s'", name);
    }
    size_t n_bytes = stem + strlen(separator) + strlen(suffix) + 1;
    if (n_bytes > buffer_bytes)
        return weir_fail(WEIR_ERR_INVALID, "name of output %zu of '%s' takes %zu bytes, got %zu",
                         output, name, n_bytes, buffer_bytes);
    memmove(buffer, name, stem);
    snprintf(buffer + stem, buffer_bytes - stem, "%s%s", separator, suffix);
    return WEIR_OK;
}

/* "(4, 6)", "(5,)": as the texts of these errors have been since they were Python's. */
static const char *tuple_text(const weir_shape *shape, char *buffer, size_t buffer_bytes)
{
    size_t used = 0;
    for (uint32_t d = 0; d < shape->rank && d < WEIR_MAX_RANK && used < buffer_bytes; d++) {
        int n = snprintf(buffer + used, buffer_bytes - used, "%s%llu", d > 0 ? ", " : "(",
                         (unsigned long long)shape->dim[d]);
        used += n > 0 ? (size_t)n : 0;
    }
    if (used < buffer_bytes)
        snprintf(buffer + used, buffer_bytes - used, "%s",
                 shape->rank == 0   ? "()"
                 : shape->rank == 1 ? ",)"
                                    : ")");
    return buffer;
}

/* The row's own text, its one %s replaced without handing it to printf. */
static weir_status fail_rank(const weir_conversion *conversion, const weir_shape *source)
{
    char text[WEIR_SHAPE_TEXT];
    tuple_text(source, text, sizeof(text));
    const char *error = conversion->rank_error, *hole = error ? strstr(error, "%s") : NULL;
    if (hole != NULL)
        return weir_fail(WEIR_ERR_INVALID, "%.*s%s%s", (int)(hole - error), error, text, hole + 2);
    if (error != NULL)
        return weir_fail(WEIR_ERR_INVALID, "%s", error);
    return weir_fail(WEIR_ERR_INVALID, "conversion '%s' does not take shape=%s", conversion->name,
                     text);
}

weir_status weir_conversion_check_rank(const weir_conversion *conversion, const weir_shape *source)
{
    uint32_t least = conversion->min_rank != 0 ? conversion->min_rank : 1;
    uint32_t most = conversion->max_rank != 0 ? conversion->max_rank : WEIR_MAX_RANK;
    if (most > WEIR_MAX_RANK)
        most = WEIR_MAX_RANK;
    return source->rank < least || source->rank > most ? fail_rank(conversion, source) : WEIR_OK;
}

static uint64_t cells(uint64_t n, size_t cell)
{
    return n / cell + (n % cell != 0);
}

weir_status weir_conversion_output_shape(const weir_conversion *conversion, size_t output,
                                         const weir_shape *source, weir_shape *out)
{
    weir_status status = check_output(conversion, output);
    if (status == WEIR_OK)
        status = weir_conversion_check_rank(conversion, source);
    if (status != WEIR_OK)
        return status;
    const weir_conversion_output *row = &conversion->outputs[output];
    weir_shape shape = *source;
    if (shape.rank >= 2)
        shape.dim[shape.rank - 2] = cells(shape.dim[shape.rank - 2], row->cell_rows);
    if (row->cell_cols == WEIR_WHOLE)
        shape.dim[--shape.rank] = 0;
    else
        shape.dim[shape.rank - 1] = cells(shape.dim[shape.rank - 1], row->cell_cols);
    *out = shape;
    return WEIR_OK;
}
