/* SPDX-License-Identifier: Apache-2.0 */
/* trace_events.h - one refit as a Chrome trace: what chrome://tracing and Perfetto read.
 *
 * A process per side: the directory, the trainer with a thread per rank, each replica worker. Times
 * are microseconds since the first of them.
 */
#ifndef WEIR_TOOLS_TRACE_EVENTS_H
#define WEIR_TOOLS_TRACE_EVENTS_H

#include <jansson.h>

/* Of the fleet's document (docs/wire.md) and one of its refits. NULL: out of memory. */
json_t *weir_trace_make(const json_t *fleet, const json_t *refit);

/* A member of what an object holds; 0 and "" when it has none. */
json_int_t weir_trace_number(const json_t *object, const char *key);
const char *weir_trace_text(const json_t *object, const char *key);

#endif
