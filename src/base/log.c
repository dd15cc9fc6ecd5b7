/* SPDX-License-Identifier: Apache-2.0 */
/* log.c - one sink per process, set by the program, never by the library. */
#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/error.h"

static pthread_mutex_t sink_lock = PTHREAD_MUTEX_INITIALIZER;
static weir_log_fn sink;
static void *sink_context;
static atomic_int sink_level;

void weir_log_set(weir_log_fn fn, void *context, weir_log_level level)
{
    pthread_mutex_lock(&sink_lock);
    sink = fn;
    sink_context = context;
    atomic_store(&sink_level, fn != NULL ? (int)level : 0);
    pthread_mutex_unlock(&sink_lock);
}

void weir_log(weir_log_level level, const char *format, ...)
{
    if ((int)level > atomic_load_explicit(&sink_level, memory_order_relaxed))
        return;
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    weir_error_one_line(line);
    pthread_mutex_lock(&sink_lock);
    if (sink != NULL)
        sink(sink_context, level, line);
    pthread_mutex_unlock(&sink_lock);
}
