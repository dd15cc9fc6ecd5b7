/* SPDX-License-Identifier: Apache-2.0 */
/* source_value.h - one element of a source row as fp32: how the reference kernels read. */
#ifndef WEIR_CONVERT_SOURCE_VALUE_H
#define WEIR_CONVERT_SOURCE_VALUE_H

#include <stdbool.h>
#include <stddef.h>

#include "numeric/scalar.h"
#include "weir/tensor.h"

/* The source dtypes of the built-in conversions. */
#define WEIR_SOURCE_FLOATS \
    (WEIR_DTYPE_BIT(WEIR_BF16) | WEIR_DTYPE_BIT(WEIR_F16) | WEIR_DTYPE_BIT(WEIR_F32))

static inline float weir_source_value(weir_dtype dtype, const void *row, size_t column)
{
    switch (dtype) {
    case WEIR_BF16:
        return weir_float_from_bf16(((const uint16_t *)row)[column]);
    case WEIR_F16:
        return weir_float_from_fp16(((const uint16_t *)row)[column]);
    default:
        return ((const float *)row)[column];
    }
}

static inline bool weir_value_is_finite(float value)
{
    return (weir_float_bits(value) & 0x7FFFFFFFu) < WEIR_F32_INF_BITS;
}

#endif
