/* SPDX-License-Identifier: Apache-2.0 */
/* trace.c - makes trace ids, and reads those of others. */
#include "refit/trace.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/error.h"
#include "base/traceparent.h"

void weir_trace_make(char out[WEIR_TRACE_BYTES])
{
    unsigned char random[16];
    out[0] = '\0';
    if (getrandom(random, sizeof(random), GRND_NONBLOCK) != (ssize_t)sizeof(random))
        return;
    random[0] |= 1; /* all zeroes is no id */
    for (size_t i = 0; i < sizeof(random); i++)
        snprintf(out + 2 * i, 3, "%02x", random[i]);
}

weir_status weir_trace_read(const char *traceparent, char out[WEIR_TRACE_BYTES])
{
    weir_traceparent read;
    if (!weir_traceparent_read(traceparent, strlen(traceparent), &read))
        return weir_fail(
            WEIR_ERR_INVALID,
            "traceparent '%.80s' is none of W3C's: 00-<32 hexadecimal digits>-<16>-<2>, "
            "in lower case, ids not zero",
            traceparent);
    memcpy(out, read.trace_id, WEIR_TRACE_BYTES);
    return WEIR_OK;
}
