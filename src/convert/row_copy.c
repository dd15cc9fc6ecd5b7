/* SPDX-License-Identifier: Apache-2.0 */
/* row_copy.c - the few rows that a kernel cannot read where they lie, and rounded masters. */
#include "convert/row_copy.h"

#include <string.h>

#include "convert/kernels.h"
#include "numeric/scalar.h"

#define RUN 256u /* elements that are brought to an aligned place at a time */

/* To fp32, by way of bf16 if `rounds`. `in` is aligned. */
static void widen(float *out, const void *in, weir_dtype in_dtype, size_t n, bool rounds)
{
    for (size_t i = 0; i < n; i++) {
        if (in_dtype == WEIR_BF16)
            out[i] = weir_float_from_bf16(((const uint16_t *)in)[i]);
        else if (in_dtype == WEIR_F16)
            out[i] = weir_float_from_fp16(((const uint16_t *)in)[i]);
        else if (rounds)
            out[i] = weir_float_from_bf16(weir_bf16_from_float(((const float *)in)[i]));
        else
            out[i] = ((const float *)in)[i];
    }
}

void weir_row_copy(void *out, weir_dtype dtype, const void *in, weir_dtype in_dtype, size_t n,
                   bool rounds)
{
    size_t out_bytes = weir_dtype_bits(dtype) / 8, in_bytes = weir_dtype_bits(in_dtype) / 8;
    rounds = rounds && in_dtype == WEIR_F32;
    if (dtype == in_dtype && !rounds) {
        memcpy(out, in, n * in_bytes);
        return;
    }
    bool aligned = (uintptr_t)in % in_bytes == 0;
    float run[RUN];
    for (size_t i = 0, m; i < n; i += m) {
        m = aligned || n - i < RUN ? n - i : RUN;
        const void *from = (const unsigned char *)in + i * in_bytes;
        if (!aligned) {
            m = m < RUN ? m : RUN;
            from = memcpy(run, from, m * in_bytes);
        }
        void *to = (unsigned char *)out + i * out_bytes;
        if (dtype == WEIR_F32)
            widen(to, from, in_dtype, m, rounds);
        else
            weir_kernels()->round_to_bf16(to, from, m);
    }
}
