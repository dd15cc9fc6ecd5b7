/* SPDX-License-Identifier: Apache-2.0 */
/* trace.c - makes trace ids, and reads those of others. */
#include "refit/trace.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/error.h"

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

/* n lower-case hexadecimal digits, not all of them zero unless they may be. */
static bool is_hex(const char *text, size_t n, bool may_be_zero)
{
    bool is_zero = true;
    for (size_t i = 0; i < n; i++) {
        if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f')))
            return false;
        is_zero &= text[i] == '0';
    }
    return may_be_zero || !is_zero;
}

/* Versions after 00 may say more behind it. */
static bool is_traceparent(const char *text)
{
    return is_hex(text, 2, true) && strncmp(text, "ff", 2) != 0 && text[2] == '-' &&
           is_hex(text + 3, 32, false) && text[35] == '-' && is_hex(text + 36, 16, false) &&
           text[52] == '-' && is_hex(text + 53, 2, true) &&
           (text[55] == '\0' || (text[55] == '-' && strncmp(text, "00", 2) != 0));
}

weir_status weir_trace_read(const char *traceparent, char out[WEIR_TRACE_BYTES])
{
    if (strlen(traceparent) < 55 || !is_traceparent(traceparent))
        return weir_fail(
            WEIR_ERR_INVALID,
            "traceparent '%.80s' is none of W3C's: 00-<32 hexadecimal digits>-<16>-<2>, "
            "in lower case, ids not zero",
            traceparent);
    memcpy(out, traceparent + 3, WEIR_TRACE_BYTES - 1);
    out[WEIR_TRACE_BYTES - 1] = '\0';
    return WEIR_OK;
}
