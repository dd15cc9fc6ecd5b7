/* SPDX-License-Identifier: Apache-2.0 */
/* traceparent.h - W3C Trace Context's header: to which trace a call belongs, and to which span of
 * it. Pure; what is read is hostile. */
#ifndef WEIR_BASE_TRACEPARENT_H
#define WEIR_BASE_TRACEPARENT_H

#include <stdbool.h>
#include <stddef.h>

#define WEIR_TRACE_ID_BYTES 33    /* 32 hexadecimal digits */
#define WEIR_SPAN_ID_BYTES 17     /* 16 of them */
#define WEIR_TRACEPARENT_BYTES 56 /* "00-TRACE-SPAN-01" */

typedef struct weir_traceparent {
    char trace_id[WEIR_TRACE_ID_BYTES]; /* "": none */
    char span_id[WEIR_SPAN_ID_BYTES];
} weir_traceparent;

/* "00-TRACE-SPAN-FLAGS", or what a later version has, of n bytes. False: it is none, and to be
 * ignored; *out is untouched. */
bool weir_traceparent_read(const char *text, size_t n, weir_traceparent *out);
/* Sampled: whoever keeps an id wants to find it. */
void weir_traceparent_write(const weir_traceparent *from, char out[WEIR_TRACEPARENT_BYTES]);

/* 32 lower-case hexadecimal digits that are not all zero. */
bool weir_trace_id_is_valid(const char *trace_id);
/* The span that a worker's part in a refit is: the same wherever it is asked for, so that nobody
 * needs to send it. All "" when trace_id is none. */
void weir_traceparent_of(const char *trace_id, const char *worker_id, weir_traceparent *out);

#endif
