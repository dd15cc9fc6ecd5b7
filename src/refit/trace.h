/* SPDX-License-Identifier: Apache-2.0 */
/* trace.h - the id that everything said about one refit carries: of W3C Trace Context, so that a
 * trainer's own traces and Weir's can be put together. */
#ifndef WEIR_REFIT_TRACE_H
#define WEIR_REFIT_TRACE_H

#include "base/traceparent.h"
#include "weir/status.h"

#define WEIR_TRACE_BYTES WEIR_TRACE_ID_BYTES

/* A new one: 32 hexadecimal digits; "" when the system has no random numbers yet. */
void weir_trace_make(char out[WEIR_TRACE_BYTES]);
/* That of "00-TRACE-SPAN-FLAGS"; ERR_INVALID says what is wrong with it. */
weir_status weir_trace_read(const char *traceparent, char out[WEIR_TRACE_BYTES]);

#endif
