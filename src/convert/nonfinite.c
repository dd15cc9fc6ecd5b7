/* SPDX-License-Identifier: Apache-2.0 */
/* nonfinite.c - a plain search over the sources, run only after a kernel has refused a tile. */
#include "convert/nonfinite.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "numeric/scalar.h"

uint32_t weir_nonfinite_least(weir_dtype dtype, bool rounds)
{
    switch (dtype) {
    case WEIR_BF16:
        return 0x7F80;
    case WEIR_F16:
        return 0x7C00;
    default:
        return rounds ? 0x7F7F8000u : WEIR_F32_INF_BITS;
    }
}

/* Sources may lie at any address. */
static uint32_t bits_at(const unsigned char *data, unsigned element_bytes, uint64_t index)
{
    uint32_t bits = 0;
    memcpy(&bits, data + index * element_bytes, element_bytes);
    return bits;
}

static const char *verdict(weir_dtype dtype, uint32_t bits)
{
    unsigned sign_bit = weir_dtype_bits(dtype) - 1;
    uint32_t magnitude = bits & ~(1u << sign_bit), infinite = weir_nonfinite_least(dtype, false);
    if (magnitude > infinite)
        return "is NaN";
    if (magnitude < infinite)
        return "rounds to Inf in bf16";
    return bits >> sign_bit ? "is -Inf" : "is +Inf";
}

static const char *index_text(const weir_shape *shape, uint64_t element, char *buffer,
                              size_t buffer_bytes)
{
    uint64_t index[WEIR_MAX_RANK] = { 0 };
    for (uint32_t d = shape->rank; d-- > 0; element /= shape->dim[d])
        index[d] = element % shape->dim[d];
    size_t used = 0;
    buffer[0] = '\0';
    for (uint32_t d = 0; d < shape->rank && used < buffer_bytes; d++) {
        int n = snprintf(buffer + used, buffer_bytes - used, "%s%llu", d > 0 ? ", " : "",
                         (unsigned long long)index[d]);
        used += n > 0 ? (size_t)n : 0;
    }
    return buffer;
}

/* A source as rows that lie row_step bytes apart. */
typedef struct searched {
    const weir_tensor *source;
    unsigned element_bytes;
    uint64_t n_rows, n_cols, row_step;
} searched;

static uint32_t bits_of(const searched *s, uint64_t element)
{
    const unsigned char *data = s->source->data;
    return bits_at(data + element / s->n_cols * s->row_step, s->element_bytes, element % s->n_cols);
}

/* The first refused element, counted within the view, or the number of elements. */
static uint64_t first_refused(const searched *s, bool rounds)
{
    uint32_t magnitude = s->element_bytes == 2 ? 0x7FFFu : 0x7FFFFFFFu;
    uint32_t least = weir_nonfinite_least(s->source->dtype, rounds);
    const unsigned char *row = s->source->data;
    for (uint64_t r = 0; r < s->n_rows; r++, row += s->row_step) {
        for (uint64_t c = 0; c < s->n_cols; c++) {
            if ((bits_at(row, s->element_bytes, c) & magnitude) >= least)
                return r * s->n_cols + c;
        }
    }
    return s->n_rows * s->n_cols;
}

static bool is_searchable(weir_dtype dtype)
{
    return dtype == WEIR_BF16 || dtype == WEIR_F16 || dtype == WEIR_F32;
}

weir_status weir_nonfinite_fail(const weir_tensor *source, uint64_t element, uint32_t bits)
{
    char index[WEIR_SHAPE_TEXT];
    return weir_fail(WEIR_ERR_NONFINITE, "%s[%s] %s",
                     source->name != NULL ? source->name : "(unnamed)",
                     index_text(&source->shape, element, index, sizeof(index)),
                     verdict(source->dtype, bits));
}

weir_status weir_nonfinite_report(const weir_conversion *conversion, const weir_fused *fused,
                                  bool rounds)
{
    for (size_t i = 0; i < weir_fused_n_tensors(fused); i++) {
        const weir_tensor *source = &fused->sources[i];
        uint64_t n_elements = 0;
        if (!is_searchable(source->dtype) ||
            weir_shape_elements(&source->shape, &n_elements) != WEIR_OK || n_elements == 0)
            continue;
        searched s = { .source = source,
                       .element_bytes = weir_dtype_bits(source->dtype) / 8,
                       .n_cols = source->shape.dim[source->shape.rank - 1],
                       .row_step = weir_fused_row_step(fused, source) };
        s.n_rows = n_elements / s.n_cols;
        uint64_t element = first_refused(&s, rounds);
        if (element < n_elements)
            return weir_nonfinite_fail(source, element, bits_of(&s, element));
    }
    return weir_fail(WEIR_ERR_NONFINITE, "conversion '%s' refused a weight of %s that is finite",
                     conversion->name,
                     fused->sources[0].name != NULL ? fused->sources[0].name : "(unnamed)");
}
