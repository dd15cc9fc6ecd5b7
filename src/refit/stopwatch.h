/* SPDX-License-Identifier: Apache-2.0 */
/* stopwatch.h - what one refit's time went into: its stops, for the report; and by the wall's
 * clock, for the directory, these and what they waited for and read.
 *
 * A worker is in one refit at a time. Its times are kept until the next one begins, and are told to
 * the directory before the last stop ends: that one is as long as it was then.
 */
#ifndef WEIR_REFIT_STOPWATCH_H
#define WEIR_REFIT_STOPWATCH_H

#include "base/log.h"
#include "directory/client.h"
#include "weir/weir.h"

struct weir_worker;

#define WEIR_MAX_WAITS 3u
#define WEIR_MAX_READS 8u /* the slowest ones */

/* Of the refit under way, or the last one. */
typedef struct weir_times {
    weir_stop_span stops[WEIR_N_STOPS]; /* name NULL: it did not come by that one */
    weir_stop_span waits[WEIR_MAX_WAITS];
    size_t n_waits;
    weir_stop_span reads[WEIR_MAX_READS];
    size_t n_reads;
    double unix_offset_s; /* from the monotonic clock to the wall's */
} weir_times;

/* Times the stops of one refit into a report and counts what Weir did meanwhile. The thread's log
 * lines are about that refit until it ends. */
typedef struct weir_stopwatch {
    struct weir_worker *worker;
    weir_report *report;
    weir_stop stop;
    double started_s, stop_started_s;
    weir_counters before;
    const weir_log_scope *outer;
} weir_stopwatch;
void weir_stopwatch_start(weir_stopwatch *watch, struct weir_worker *worker, uint64_t version,
                          weir_report *report);
void weir_stopwatch_enter(weir_stopwatch *watch, weir_stop stop); /* ends the stop before */
/* Logs one line about all of it; `status` with the calling thread's last error is what it came
 * to. */
void weir_stopwatch_end(weir_stopwatch *watch, weir_status status);

/* ---- for the stops ---------------------------------------------------------------------------*/

/* Which version it is, and the trace that it belongs to. */
void weir_worker_is_about(struct weir_worker *worker, uint64_t version, const char *trace_id);
/* From begun_s of weir_now_s() until now it waited for others: "wait slot". Waits of one name are
 * one. */
void weir_worker_waited(struct weir_worker *worker, const char *name, double begun_s);
/* The same of the time until a version was READY, which is counted in no stop: the one under way
 * began only now. */
void weir_worker_waited_outside(struct weir_worker *worker, double begun_s);
/* One source was read. */
void weir_worker_has_read(struct weir_worker *worker, const char *from, uint64_t n_bytes,
                          double begun_s, double ended_s);

/* All of it so far, the stop that is under way among them; returns how many. */
size_t weir_worker_spans(const struct weir_worker *worker, weir_stop_span spans[WEIR_MAX_SPANS]);

#endif
