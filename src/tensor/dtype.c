/* SPDX-License-Identifier: Apache-2.0 */
/* dtype.c - names and widths of the element types, from the one list in weir/tensor.h. */
#include <string.h>

#include "weir/tensor.h"

typedef struct dtype_row {
    const char *name;
    unsigned bits;
} dtype_row;

static const dtype_row rows[WEIR_DTYPE_END] = {
#define ROW(name, number, bits) [number] = { #name, bits },
    WEIR_DTYPE_LIST(ROW)
#undef ROW
};

static const dtype_row *row_of(weir_dtype dtype)
{
    return (int)dtype > 0 && dtype < WEIR_DTYPE_END ? &rows[dtype] : NULL;
}

const char *weir_dtype_name(weir_dtype dtype)
{
    const dtype_row *row = row_of(dtype);
    return row != NULL ? row->name : "?";
}

unsigned weir_dtype_bits(weir_dtype dtype)
{
    const dtype_row *row = row_of(dtype);
    return row != NULL ? row->bits : 0;
}

weir_dtype weir_dtype_from_name(const char *name)
{
    for (int i = 1; i < WEIR_DTYPE_END; i++) {
        if (strcmp(rows[i].name, name) == 0)
            return (weir_dtype)i;
    }
    return WEIR_DTYPE_NONE;
}
