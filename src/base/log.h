/* SPDX-License-Identifier: Apache-2.0 */
/* log.h - log lines for whoever set weir_log_set(); nothing is formatted when nobody listens.
 *
 * What a line is about travels beside it, as fields: those of the scope that its thread is in, and
 * its own.
 */
#ifndef WEIR_BASE_LOG_H
#define WEIR_BASE_LOG_H

#include "weir/weir.h"

void weir_log(weir_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* With fields of its own, at most WEIR_LOG_OWN_FIELDS. */
#define WEIR_LOG_OWN_FIELDS 16u
void weir_log_with(weir_log_level level, const weir_log_field *fields, size_t n_fields,
                   const char *format, ...) __attribute__((format(printf, 4, 5)));

/* A number as a field's text. */
typedef struct weir_log_number {
    char text[32];
} weir_log_number;
weir_log_number weir_log_count(uint64_t number);
weir_log_number weir_log_real(double number); /* 0 for what JSON cannot say */

/* What the lines of a thread are about. NULL and "": not said. */
typedef struct weir_log_scope {
    const char *worker, *model, *run, *trace_id, *stop;
    bool has_rank, has_version;
    uint32_t rank;
    uint64_t version;
} weir_log_scope;
/* From now on, in this thread; borrowed until it is left. NULL: about nothing. Returns the one
 * before, to go back to. */
const weir_log_scope *weir_log_enter(const weir_log_scope *scope);

#endif
