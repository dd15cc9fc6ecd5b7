/* SPDX-License-Identifier: Apache-2.0 */
/* traceparent.c - fixed places in a text, and a hash for span ids. */
#include "base/traceparent.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

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
static bool is_traceparent(const char *text, size_t n)
{
    if (n < WEIR_TRACEPARENT_BYTES - 1)
        return false;
    bool may_go_on = memcmp(text, "00", 2) != 0;
    return is_hex(text, 2, true) && memcmp(text, "ff", 2) != 0 && text[2] == '-' &&
           is_hex(text + 3, 32, false) && text[35] == '-' && is_hex(text + 36, 16, false) &&
           text[52] == '-' && is_hex(text + 53, 2, true) &&
           (n == WEIR_TRACEPARENT_BYTES - 1 || (may_go_on && text[55] == '-'));
}

bool weir_traceparent_read(const char *text, size_t n, weir_traceparent *out)
{
    if (!is_traceparent(text, n))
        return false;
    *out = (weir_traceparent){ .trace_id = "" };
    memcpy(out->trace_id, text + 3, WEIR_TRACE_ID_BYTES - 1);
    memcpy(out->span_id, text + 36, WEIR_SPAN_ID_BYTES - 1);
    return true;
}

void weir_traceparent_write(const weir_traceparent *from, char out[WEIR_TRACEPARENT_BYTES])
{
    snprintf(out, WEIR_TRACEPARENT_BYTES, "00-%s-%s-01", from->trace_id, from->span_id);
}

bool weir_trace_id_is_valid(const char *trace_id)
{
    return strlen(trace_id) == WEIR_TRACE_ID_BYTES - 1 &&
           is_hex(trace_id, WEIR_TRACE_ID_BYTES - 1, false);
}

/* FNV-1a, then mixed, since worker ids differ in their last letters. */
static uint64_t hash_of(const char *trace_id, const char *worker_id)
{
    const char *const texts[] = { trace_id, worker_id };
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < 2; i++) {
        for (const char *c = texts[i]; *c != '\0'; c++)
            hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
    }
    hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ hash >> 27) * 0x94d049bb133111ebu;
    hash ^= hash >> 31;
    return hash != 0 ? hash : 1; /* all zeroes is no id */
}

void weir_traceparent_of(const char *trace_id, const char *worker_id, weir_traceparent *out)
{
    *out = (weir_traceparent){ .trace_id = "" };
    if (!weir_trace_id_is_valid(trace_id))
        return;
    memcpy(out->trace_id, trace_id, WEIR_TRACE_ID_BYTES);
    snprintf(out->span_id, sizeof(out->span_id), "%016" PRIx64, hash_of(trace_id, worker_id));
}
