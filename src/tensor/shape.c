/* SPDX-License-Identifier: Apache-2.0 */
/* shape.c - arithmetic on shapes and boxes, safe against any values from outside. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "weir/tensor.h"

bool weir_shape_equal(const weir_shape *a, const weir_shape *b)
{
    return a->rank == b->rank && memcmp(a->dim, b->dim, a->rank * sizeof(a->dim[0])) == 0;
}

weir_status weir_shape_elements(const weir_shape *shape, uint64_t *out_elements)
{
    if (shape->rank > WEIR_MAX_RANK)
        return weir_fail(WEIR_ERR_INVALID, "rank %u, at most %d are possible", shape->rank,
                         WEIR_MAX_RANK);
    uint64_t n = 1;
    bool overflow = false;
    for (uint32_t d = 0; d < shape->rank; d++) {
        if (shape->dim[d] == 0) {
            *out_elements = 0;
            return WEIR_OK;
        }
        overflow |= __builtin_mul_overflow(n, shape->dim[d], &n);
    }
    if (overflow) {
        char text[WEIR_SHAPE_TEXT];
        return weir_fail(WEIR_ERR_INVALID, "shape %s has more than 2^64 elements",
                         weir_shape_text(shape, text, sizeof(text)));
    }
    *out_elements = n;
    return WEIR_OK;
}

weir_status weir_tensor_bytes(weir_dtype dtype, const weir_shape *shape, uint64_t *out_bytes)
{
    uint64_t n, bits;
    weir_status status = weir_shape_elements(shape, &n);
    if (status != WEIR_OK)
        return status;
    char text[WEIR_SHAPE_TEXT];
    if (weir_dtype_bits(dtype) == 0)
        return weir_fail(WEIR_ERR_INVALID, "dtype number %d is unknown", (int)dtype);
    if (__builtin_mul_overflow(n, (uint64_t)weir_dtype_bits(dtype), &bits))
        return weir_fail(WEIR_ERR_INVALID, "shape %s of %s has more than 2^64 bits",
                         weir_shape_text(shape, text, sizeof(text)), weir_dtype_name(dtype));
    if (bits % 8 != 0)
        return weir_fail(WEIR_ERR_INVALID, "shape %s of %s is no whole number of bytes",
                         weir_shape_text(shape, text, sizeof(text)), weir_dtype_name(dtype));
    *out_bytes = bits / 8;
    return WEIR_OK;
}

const char *weir_shape_text(const weir_shape *shape, char *buffer, size_t buffer_bytes)
{
    size_t used = 0;
    uint32_t rank = shape->rank <= WEIR_MAX_RANK ? shape->rank : WEIR_MAX_RANK;
    if (buffer_bytes == 0)
        return "";
    buffer[0] = '\0';
    for (uint32_t d = 0; d <= rank && used < buffer_bytes; d++) {
        const char *before = d == 0 ? "[" : d < rank ? ", " : "";
        int n = d < rank ? snprintf(buffer + used, buffer_bytes - used, "%s%llu", before,
                                    (unsigned long long)shape->dim[d])
                         : snprintf(buffer + used, buffer_bytes - used, "%s", rank ? "]" : "[]");
        used += n > 0 ? (size_t)n : 0;
    }
    return buffer;
}

weir_box weir_box_whole(const weir_shape *shape)
{
    weir_box box = { .rank = shape->rank };
    for (uint32_t d = 0; d < shape->rank; d++)
        box.hi[d] = shape->dim[d];
    return box;
}

bool weir_box_intersect(const weir_box *a, const weir_box *b, weir_box *out)
{
    if (a->rank != b->rank)
        return false;
    weir_box both = { .rank = a->rank };
    for (uint32_t d = 0; d < a->rank; d++) {
        both.lo[d] = a->lo[d] > b->lo[d] ? a->lo[d] : b->lo[d];
        both.hi[d] = a->hi[d] < b->hi[d] ? a->hi[d] : b->hi[d];
        if (both.lo[d] >= both.hi[d])
            return false;
    }
    *out = both;
    return true;
}

weir_shape weir_box_shape(const weir_box *box)
{
    weir_shape shape = { .rank = box->rank };
    for (uint32_t d = 0; d < box->rank; d++)
        shape.dim[d] = box->hi[d] - box->lo[d];
    return shape;
}
