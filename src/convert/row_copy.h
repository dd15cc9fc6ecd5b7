/* SPDX-License-Identifier: Apache-2.0 */
/* row_copy.h - a run of source elements, copied to scratch in the dtype that a kernel wants. */
#ifndef WEIR_CONVERT_ROW_COPY_H
#define WEIR_CONVERT_ROW_COPY_H

#include <stdbool.h>
#include <stddef.h>

#include "weir/tensor.h"

/* `in` may be misaligned. Exact, but that `rounds` makes fp32 pass through bf16. Either the dtypes
 * are equal after that, or `dtype` is F32 and `in_dtype` one of BF16, F16, F32. */
void weir_row_copy(void *out, weir_dtype dtype, const void *in, weir_dtype in_dtype, size_t n,
                   bool rounds);

#endif
