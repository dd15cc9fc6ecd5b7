/* SPDX-License-Identifier: Apache-2.0 */
/* metrics_text.h - Prometheus' text exposition format 0.0.4, into an arena.
 *
 * A family is announced once, its samples follow. Labels are given as name, value, name, value;
 * what they hold is escaped. Running out of memory is remembered: look at it once, at the end. */
#ifndef WEIR_DIRECTORY_METRICS_TEXT_H
#define WEIR_DIRECTORY_METRICS_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"

#define WEIR_METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"

typedef struct weir_metrics_text {
    weir_arena *arena;
    char *bytes;
    size_t n_bytes, capacity_bytes;
    const char *family; /* that was announced last */
    bool has_failed;
} weir_metrics_text;

void weir_metrics_begin(weir_metrics_text *metrics, weir_arena *arena);
/* type: "gauge", "counter", "summary". Strings are literals. */
void weir_metrics_family(weir_metrics_text *metrics, const char *name, const char *type,
                         const char *help);
/* Of the family that was announced last, with `suffix` behind its name ("" or "_sum"). `labels`
 * ends with NULL, or is NULL. */
void weir_metrics_sample(weir_metrics_text *metrics, const char *suffix, const char *const *labels,
                         double value);
/* Whole numbers are written whole. */
void weir_metrics_count(weir_metrics_text *metrics, const char *suffix, const char *const *labels,
                        uint64_t value);

#define WEIR_METRICS_LABELS(...) ((const char *const[]){ __VA_ARGS__, NULL })

#endif
