/* SPDX-License-Identifier: Apache-2.0 */
/* log.c - one sink per process, set by the program, never by the library. */
#include "base/log.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/error.h"

#define SCOPE_FIELDS 7u

static pthread_mutex_t sink_lock = PTHREAD_MUTEX_INITIALIZER;
static weir_log_fn sink; /* one of the two, or neither */
static weir_log_record_fn record_sink;
static void *sink_context;
static atomic_int sink_level;
static _Thread_local const weir_log_scope *scope_now;

static void set_sink(weir_log_fn fn, weir_log_record_fn record_fn, void *context,
                     weir_log_level level)
{
    bool listens = fn != NULL || record_fn != NULL;
    pthread_mutex_lock(&sink_lock);
    sink = fn;
    record_sink = record_fn;
    sink_context = context;
    atomic_store(&sink_level, listens ? (int)level : 0);
    pthread_mutex_unlock(&sink_lock);
}

void weir_log_set(weir_log_fn fn, void *context, weir_log_level level)
{
    set_sink(fn, NULL, context, level);
}

void weir_log_set_structured(weir_log_record_fn fn, void *context, weir_log_level level)
{
    set_sink(NULL, fn, context, level);
}

/* ---- fields ----------------------------------------------------------------------------------*/

weir_log_number weir_log_count(uint64_t number)
{
    weir_log_number out;
    snprintf(out.text, sizeof(out.text), "%" PRIu64, number);
    return out;
}

weir_log_number weir_log_real(double number)
{
    weir_log_number out;
    bool fits = isfinite(number) && fabs(number) < 1e15;
    snprintf(out.text, sizeof(out.text), "%.6f", fits ? number : 0.0);
    return out;
}

const weir_log_scope *weir_log_enter(const weir_log_scope *scope)
{
    const weir_log_scope *before = scope_now;
    scope_now = scope;
    return before;
}

static size_t put(weir_log_field *fields, size_t n, const char *name, const char *text)
{
    if (text == NULL || text[0] == '\0')
        return n;
    fields[n] = (weir_log_field){ name, text, false };
    return n + 1;
}

static size_t put_number(weir_log_field *fields, size_t n, const char *name, bool is_said,
                         const weir_log_number *number)
{
    if (is_said)
        fields[n++] = (weir_log_field){ name, number->text, true };
    return n;
}

static void hand_over(weir_log_level level, const char *line, const weir_log_field *own,
                      size_t n_own)
{
    static const weir_log_scope nothing;
    const weir_log_scope *scope = scope_now != NULL ? scope_now : &nothing;
    const weir_log_number rank = weir_log_count(scope->rank);
    const weir_log_number version = weir_log_count(scope->version);
    weir_log_field fields[SCOPE_FIELDS + WEIR_LOG_OWN_FIELDS];
    size_t n = put(fields, 0, "worker", scope->worker);
    n = put_number(fields, n, "rank", scope->has_rank, &rank);
    n = put(fields, n, "model", scope->model);
    n = put(fields, n, "run", scope->run);
    n = put_number(fields, n, "version", scope->has_version, &version);
    n = put(fields, n, "trace_id", scope->trace_id);
    n = put(fields, n, "stop", scope->stop);
    for (size_t i = 0; i < n_own && i < WEIR_LOG_OWN_FIELDS; i++)
        fields[n++] = own[i];
    record_sink(sink_context, level, line, fields, n);
}

/* ---- lines -----------------------------------------------------------------------------------*/

static void log_line(weir_log_level level, const weir_log_field *fields, size_t n_fields,
                     const char *format, va_list args)
{
    char line[1024];
    vsnprintf(line, sizeof(line), format, args);
    weir_error_one_line(line);
    pthread_mutex_lock(&sink_lock);
    if (sink != NULL)
        sink(sink_context, level, line);
    else if (record_sink != NULL)
        hand_over(level, line, fields, n_fields);
    pthread_mutex_unlock(&sink_lock);
}

static bool is_heard(weir_log_level level)
{
    return (int)level <= atomic_load_explicit(&sink_level, memory_order_relaxed);
}

void weir_log(weir_log_level level, const char *format, ...)
{
    va_list args;
    if (!is_heard(level))
        return;
    va_start(args, format);
    log_line(level, NULL, 0, format, args);
    va_end(args);
}

void weir_log_with(weir_log_level level, const weir_log_field *fields, size_t n_fields,
                   const char *format, ...)
{
    va_list args;
    if (!is_heard(level))
        return;
    va_start(args, format);
    log_line(level, fields, n_fields, format, args);
    va_end(args);
}
