/* SPDX-License-Identifier: Apache-2.0 */
/* metrics_text.c - lines of the text format, in a buffer that doubles. */
#include "directory/metrics_text.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define FIRST_BYTES ((size_t)16 << 10)

void weir_metrics_begin(weir_metrics_text *metrics, weir_arena *arena)
{
    *metrics = (weir_metrics_text){ .arena = arena };
}

static bool make_room(weir_metrics_text *metrics, size_t n_more)
{
    size_t wanted = metrics->n_bytes + n_more;
    if (metrics->has_failed || wanted <= metrics->capacity_bytes)
        return !metrics->has_failed;
    size_t capacity = metrics->capacity_bytes != 0 ? metrics->capacity_bytes * 2 : FIRST_BYTES;
    while (capacity < wanted)
        capacity *= 2;
    char *bytes = weir_arena_alloc(metrics->arena, capacity);
    if (bytes == NULL) {
        metrics->has_failed = true;
        return false;
    }
    if (metrics->n_bytes != 0)
        memcpy(bytes, metrics->bytes, metrics->n_bytes);
    metrics->bytes = bytes;
    metrics->capacity_bytes = capacity;
    return true;
}

static void put(weir_metrics_text *metrics, const char *text, size_t n)
{
    if (!make_room(metrics, n))
        return;
    memcpy(metrics->bytes + metrics->n_bytes, text, n);
    metrics->n_bytes += n;
}

static void put_text(weir_metrics_text *metrics, const char *text)
{
    put(metrics, text, strlen(text));
}

/* Backslash, newline and, of a label's value, the quote. */
static void put_escaped(weir_metrics_text *metrics, const char *text, bool is_label)
{
    for (; *text != '\0'; text++) {
        if (*text == '\\')
            put(metrics, "\\\\", 2);
        else if (*text == '\n')
            put(metrics, "\\n", 2);
        else if (*text == '"' && is_label)
            put(metrics, "\\\"", 2);
        else
            put(metrics, text, 1);
    }
}

void weir_metrics_family(weir_metrics_text *metrics, const char *name, const char *type,
                         const char *help)
{
    metrics->family = name;
    put_text(metrics, "# HELP ");
    put_text(metrics, name);
    put_text(metrics, " ");
    put_escaped(metrics, help, false);
    put_text(metrics, "\n# TYPE ");
    put_text(metrics, name);
    put_text(metrics, " ");
    put_text(metrics, type);
    put_text(metrics, "\n");
}

static void put_labels(weir_metrics_text *metrics, const char *const *labels)
{
    if (labels == NULL || labels[0] == NULL)
        return;
    for (size_t i = 0; labels[i] != NULL; i += 2) {
        put_text(metrics, i == 0 ? "{" : ",");
        put_text(metrics, labels[i]);
        put_text(metrics, "=\"");
        put_escaped(metrics, labels[i + 1], true);
        put_text(metrics, "\"");
    }
    put_text(metrics, "}");
}

static void put_line(weir_metrics_text *metrics, const char *suffix, const char *const *labels,
                     const char *value)
{
    put_text(metrics, metrics->family);
    put_text(metrics, suffix);
    put_labels(metrics, labels);
    put_text(metrics, " ");
    put_text(metrics, value);
    put_text(metrics, "\n");
}

void weir_metrics_sample(weir_metrics_text *metrics, const char *suffix, const char *const *labels,
                         double value)
{
    char text[40];
    if (isnan(value))
        snprintf(text, sizeof(text), "NaN");
    else if (isinf(value))
        snprintf(text, sizeof(text), value > 0 ? "+Inf" : "-Inf");
    else
        snprintf(text, sizeof(text), "%.15g", value);
    put_line(metrics, suffix, labels, text);
}

void weir_metrics_count(weir_metrics_text *metrics, const char *suffix, const char *const *labels,
                        uint64_t value)
{
    char text[24];
    snprintf(text, sizeof(text), "%" PRIu64, value);
    put_line(metrics, suffix, labels, text);
}
