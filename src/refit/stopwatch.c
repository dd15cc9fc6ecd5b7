/* SPDX-License-Identifier: Apache-2.0 */
/* stopwatch.c - measures by the monotonic clock; where it is on the wall's is looked up once a
 * refit, so that spans follow each other whatever somebody does to that one. */
#include "refit/stopwatch.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "refit/worker.h"

/* One side comes by five stops at most. */
_Static_assert(WEIR_N_STOPS - WEIR_STOP_DISCOVER + WEIR_MAX_WAITS + WEIR_MAX_READS <=
                   WEIR_MAX_SPANS,
               "every span has room");

static uint64_t microseconds(double seconds)
{
    return seconds > 0 ? (uint64_t)(seconds * 1e6) : 0;
}

static uint64_t unix_us(const weir_worker *worker, double at_s)
{
    return microseconds(at_s + worker->times.unix_offset_s);
}

void weir_stopwatch_start(weir_stopwatch *watch, weir_worker *worker, uint64_t version,
                          weir_report *report)
{
    *report = (weir_report){ .version = version };
    *watch = (weir_stopwatch){ .worker = worker,
                               .report = report,
                               .stop = WEIR_N_STOPS,
                               .started_s = weir_now_s(),
                               .before = worker->counters };
    watch->before.allocations = weir_alloc_count();
    memset(&worker->times, 0, sizeof(worker->times));
    worker->times.unix_offset_s = (double)weir_unix_us() * 1e-6 - weir_now_s();
    worker->watch = watch;
    worker->trace_id[0] = '\0';
    weir_directory_client_trace(worker->client, "", worker->id);
    worker->about = (weir_log_scope){ .worker = worker->id,
                                      .model = worker->model,
                                      .run = worker->run,
                                      .trace_id = worker->trace_id,
                                      .has_rank = true,
                                      .rank = worker->rank,
                                      .has_version = version != WEIR_LATEST,
                                      .version = version };
    watch->outer = weir_log_enter(&worker->about);
    weir_keeper_begin(worker->keeper);
}

static void end_stop(weir_stopwatch *watch)
{
    double now_s = weir_now_s();
    if (watch->stop < WEIR_N_STOPS) {
        double *seconds = &watch->report->seconds[watch->stop];
        *seconds += now_s - watch->stop_started_s;
        watch->worker->times.stops[watch->stop].duration_us = microseconds(*seconds);
    }
    watch->stop_started_s = now_s;
}

void weir_stopwatch_enter(weir_stopwatch *watch, weir_stop stop)
{
    weir_worker *worker = watch->worker;
    weir_stop_span *span = &worker->times.stops[stop];
    end_stop(watch);
    watch->stop = stop;
    worker->about.stop = weir_stop_name(stop);
    if (span->name == NULL)
        *span = (weir_stop_span){ .name = weir_stop_name(stop),
                                  .begun_unix_us = unix_us(worker, watch->stop_started_s) };
    weir_worker_progress(worker, stop, watch->report->version, 0, 0);
}

/* ---- what happens within a stop --------------------------------------------------------------*/

void weir_worker_is_about(weir_worker *worker, uint64_t version, const char *trace_id)
{
    worker->about.version = version;
    worker->about.has_version = true;
    snprintf(worker->trace_id, sizeof(worker->trace_id), "%s", trace_id);
    weir_directory_client_trace(worker->client, trace_id, worker->id);
    const weir_keeper_step step = { .stop = weir_stop_name(WEIR_STOP_DISCOVER),
                                    .version = version };
    if (worker->watch != NULL && worker->watch->stop == WEIR_STOP_DISCOVER)
        weir_worker_note(worker, &step);
}

void weir_worker_waited(weir_worker *worker, const char *name, double begun_s)
{
    weir_times *times = &worker->times;
    size_t i = 0;
    while (i < times->n_waits && strcmp(times->waits[i].name, name) != 0)
        i++;
    if (i == WEIR_MAX_WAITS)
        return;
    if (i == times->n_waits) {
        times->waits[i] =
            (weir_stop_span){ .name = name, .begun_unix_us = unix_us(worker, begun_s) };
        times->n_waits++;
    }
    times->waits[i].duration_us += microseconds(weir_now_s() - begun_s);
}

void weir_worker_waited_outside(weir_worker *worker, double begun_s)
{
    weir_stopwatch *watch = worker->watch;
    double waited_s = weir_now_s() - begun_s;
    weir_worker_waited(worker, "wait ready", begun_s);
    if (watch == NULL)
        return;
    watch->report->waited_seconds += waited_s;
    watch->stop_started_s += waited_s;
    watch->started_s += waited_s;
    if (watch->stop < WEIR_N_STOPS)
        worker->times.stops[watch->stop].begun_unix_us += microseconds(waited_s);
}

void weir_worker_has_read(weir_worker *worker, const char *from, uint64_t n_bytes, double begun_s,
                          double ended_s)
{
    weir_times *times = &worker->times;
    weir_stop_span read = { .name = "read",
                            .begun_unix_us = unix_us(worker, begun_s),
                            .duration_us = microseconds(ended_s - begun_s),
                            .n_bytes = n_bytes };
    size_t quickest = 0;
    snprintf(read.peer, sizeof(read.peer), "%.*s", (int)sizeof(read.peer) - 1, from);
    if (times->n_reads < WEIR_MAX_READS) {
        times->reads[times->n_reads++] = read;
        return;
    }
    for (size_t i = 1; i < WEIR_MAX_READS; i++) {
        if (times->reads[i].duration_us < times->reads[quickest].duration_us)
            quickest = i;
    }
    if (times->reads[quickest].duration_us < read.duration_us)
        times->reads[quickest] = read;
}

static size_t append(weir_stop_span spans[WEIR_MAX_SPANS], size_t n, const weir_stop_span *more,
                     size_t n_more)
{
    for (size_t i = 0; i < n_more && n < WEIR_MAX_SPANS; i++)
        spans[n++] = more[i];
    return n;
}

size_t weir_worker_spans(const weir_worker *worker, weir_stop_span spans[WEIR_MAX_SPANS])
{
    const weir_times *times = &worker->times;
    const weir_stopwatch *watch = worker->watch;
    size_t n = 0;
    for (int stop = 0; stop < WEIR_N_STOPS && n < WEIR_MAX_SPANS; stop++) {
        weir_stop_span span = times->stops[stop];
        if (span.name == NULL)
            continue;
        if (watch != NULL && watch->stop == (weir_stop)stop)
            span.duration_us =
                microseconds(watch->report->seconds[stop] + weir_now_s() - watch->stop_started_s);
        spans[n++] = span;
    }
    n = append(spans, n, times->waits, times->n_waits);
    return append(spans, n, times->reads, times->n_reads);
}

/* ---- the end ---------------------------------------------------------------------------------*/

static double rate_of(const weir_report *report)
{
    double seconds = report->seconds[WEIR_STOP_TRANSFER] + report->seconds[WEIR_STOP_STAGE];
    return seconds > 0 ? (double)report->n_bytes / seconds * 1e-9 : 0;
}

static const char *trace_or_none(const weir_worker *worker)
{
    return worker->trace_id[0] != '\0' ? worker->trace_id : "-";
}

static void say_done(const weir_worker *worker, const weir_report *report,
                     const weir_log_field *fields, size_t n_fields)
{
    bool is_trainer = worker->role == WEIR_ROLE_TRAINER;
    weir_log_with(WEIR_LOG_INFO, fields, n_fields,
                  "%s %u (%s) has %s version %" PRIu64 " of %s: %" PRIu64
                  " bytes in %.3f s (%.2f GB/s) after %.3f s of waiting, trace %s",
                  is_trainer ? "trainer rank" : "replica worker", worker->rank, worker->id,
                  is_trainer ? "published" : "installed", report->version, worker->model,
                  report->n_bytes, report->total_seconds, rate_of(report), report->waited_seconds,
                  trace_or_none(worker));
}

static void say_failed(const weir_worker *worker, const weir_report *report,
                       const weir_log_field *fields, size_t n_fields)
{
    bool is_trainer = worker->role == WEIR_ROLE_TRAINER;
    weir_log_with(
        WEIR_LOG_INFO, fields, n_fields,
        "%s %u (%s) has not %s %s, after %.3f s and %.3f s of waiting, trace %s: %s",
        is_trainer ? "trainer rank" : "replica worker", worker->rank, worker->id,
        is_trainer ? "published" : "installed",
        worker->about.has_version ? weir_log_count(worker->about.version).text : "any version",
        report->total_seconds, report->waited_seconds, trace_or_none(worker), weir_last_error());
}

static void say(const weir_worker *worker, const weir_report *report, weir_status status)
{
    const weir_log_number bytes = weir_log_count(report->n_bytes);
    const weir_log_number seconds = weir_log_real(report->total_seconds);
    const weir_log_number waited = weir_log_real(report->waited_seconds);
    const weir_log_number rate = weir_log_real(rate_of(report));
    const weir_log_field fields[] = {
        { "status", weir_status_name(status), false },
        { "bytes", bytes.text, true },
        { "seconds", seconds.text, true },
        { "waited_seconds", waited.text, true },
        { "gb_per_s", rate.text, true },
    };
    size_t n = sizeof(fields) / sizeof(fields[0]);
    if (status == WEIR_OK)
        say_done(worker, report, fields, n);
    else if (status != WEIR_ERR_CANCELLED)
        say_failed(worker, report, fields, n);
}

void weir_stopwatch_end(weir_stopwatch *watch, weir_status status)
{
    weir_worker *worker = watch->worker;
    const weir_counters *now = &worker->counters;
    weir_counters *spent = &watch->report->counters;
    end_stop(watch);
    weir_keeper_end(worker->keeper);
    watch->stop = WEIR_N_STOPS;
    watch->report->total_seconds = weir_now_s() - watch->started_s;
    spent->allocations = weir_alloc_count() - watch->before.allocations;
    spent->registrations = now->registrations - watch->before.registrations;
    spent->plans = now->plans - watch->before.plans;
    spent->connections = now->connections - watch->before.connections;
    say(worker, watch->report, status);
    worker->watch = NULL;
    weir_directory_client_trace(worker->client, "", worker->id);
    weir_log_enter(watch->outer);
}
