/* SPDX-License-Identifier: Apache-2.0 */
/* options.c - structs grow at their end; their first field tells how far a caller knows them. */
#include "base/options.h"

#include <string.h>

#include "base/error.h"

/* No options struct is that large: a bigger size is a field that was never set. */
#define MOST_BYTES ((size_t)1 << 16)

weir_status weir_options_read(const void *given, const char *what, void *own, size_t own_bytes)
{
    size_t given_bytes = 0;
    if (given == NULL)
        return weir_fail(WEIR_ERR_INVALID, "%s is NULL", what);
    memcpy(&given_bytes, given, sizeof(given_bytes));
    if (given_bytes < sizeof(size_t) || given_bytes > MOST_BYTES)
        return weir_fail(WEIR_ERR_INVALID, "%s: size is %zu, set it with its _INIT macro", what,
                         given_bytes);
    for (size_t i = own_bytes; i < given_bytes; i++) {
        if (((const unsigned char *)given)[i] != 0)
            return weir_fail(WEIR_ERR_INVALID,
                             "%s of %zu bytes sets a field that this version, of %zu bytes, does "
                             "not know",
                             what, given_bytes, own_bytes);
    }
    memset(own, 0, own_bytes);
    memcpy(own, given, given_bytes < own_bytes ? given_bytes : own_bytes);
    memcpy(own, &own_bytes, sizeof(own_bytes));
    return WEIR_OK;
}
