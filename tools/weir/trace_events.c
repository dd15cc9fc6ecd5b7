/* SPDX-License-Identifier: Apache-2.0 */
/* trace_events.c - makes events of what workers said of their stops, and puts their clocks right.
 *
 * A word is said when its last span has just ended, and the directory notes when it came. A host
 * whose spans would end after that, or seconds before, has another idea of the time: all of its
 * spans are moved by what its quickest word is off. Smaller differences are left as they are, for
 * nobody can tell them from the way that a message takes.
 */
#include "trace_events.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define AHEAD_US 100000   /* beyond this a clock is wrong */
#define BEHIND_US 2000000 /* a word may have waited for a directory that was away */
#define DIRECTORY_PROCESS 1
#define TRAINER_PROCESS 2
#define FIRST_REPLICA_PROCESS 3
#define READ_THREADS 16 /* of one worker: itself, and what it reads at the same time */

typedef struct trace {
    const json_t *words;
    json_t *events;
    json_int_t zero_us; /* of the events' times */
    json_int_t version;
} trace;

json_int_t weir_trace_number(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

const char *weir_trace_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

/* ---- clocks ----------------------------------------------------------------------------------*/

typedef struct interval {
    json_int_t begun_us, ended_us;
} interval;

static interval interval_of_span(const json_t *span)
{
    json_int_t begun_us = weir_trace_number(span, "begun_us");
    return (interval){ begun_us, begun_us + weir_trace_number(span, "duration_us") };
}

/* From its first span's begin to its last one's end. Both 0 when it has none. */
static interval interval_of_word(const json_t *word)
{
    interval all = { 0, 0 };
    const json_t *span;
    size_t i;
    json_array_foreach(json_object_get(word, "stops"), i, span)
    {
        interval one = interval_of_span(span);
        all.begun_us = i == 0 || one.begun_us < all.begun_us ? one.begun_us : all.begun_us;
        all.ended_us = one.ended_us > all.ended_us ? one.ended_us : all.ended_us;
    }
    return all;
}

static const char *clock_of(const json_t *word)
{
    const char *host = weir_trace_text(word, "host");
    return host[0] != '\0' ? host : weir_trace_text(word, "worker_id");
}

/* How long after its last span this word came. */
static json_int_t delay_of(const json_t *word)
{
    return weir_trace_number(word, "at_ms") * 1000 - interval_of_word(word).ended_us;
}

/* What is to be added to the times that this word's host says. */
static json_int_t correction_of(const trace *t, const json_t *word)
{
    json_int_t quickest = delay_of(word);
    const json_t *other;
    size_t i;
    json_array_foreach(t->words, i, other)
    {
        json_int_t delay = delay_of(other);
        if (json_array_size(json_object_get(other, "stops")) > 0 && delay < quickest &&
            strcmp(clock_of(other), clock_of(word)) == 0)
            quickest = delay;
    }
    return quickest < -AHEAD_US || quickest > BEHIND_US ? quickest : 0;
}

static void find_zero(trace *t, const json_t *version)
{
    json_int_t created_ms = weir_trace_number(version, "created_ms");
    const json_t *word;
    size_t i;
    t->zero_us = created_ms * 1000;
    json_array_foreach(t->words, i, word)
    {
        json_int_t begun_us = interval_of_word(word).begun_us + correction_of(t, word);
        bool has_spans = json_array_size(json_object_get(word, "stops")) > 0;
        if (has_spans && (t->zero_us == 0 || begun_us < t->zero_us))
            t->zero_us = begun_us;
    }
}

/* ---- events ----------------------------------------------------------------------------------*/

typedef struct place {
    size_t process, thread;
} place;

static void add_name(trace *t, const char *what, place at, const char *name)
{
    json_array_append_new(t->events, json_pack("{s:s, s:s, s:I, s:I, s:{s:s}}", "ph", "M", "name",
                                               what, "pid", (json_int_t)at.process, "tid",
                                               (json_int_t)at.thread, "args", "name", name));
}

static void add_span(trace *t, place at, const char *name, interval when, json_t *taken_args)
{
    json_array_append_new(t->events,
                          json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:o}", "ph", "X", "name",
                                    name, "cat", "refit", "pid", (json_int_t)at.process, "tid",
                                    (json_int_t)at.thread, "ts", when.begun_us - t->zero_us, "dur",
                                    when.ended_us - when.begun_us, "args", taken_args));
}

static void add_instant(trace *t, place at, const char *name, json_int_t at_us, json_t *taken_args)
{
    json_array_append_new(t->events, json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:o}", "ph",
                                               "i", "s", "g", "name", name, "cat", "refit", "pid",
                                               (json_int_t)at.process, "tid", (json_int_t)at.thread,
                                               "ts", at_us - t->zero_us, "args", taken_args));
}

static json_t *bytes_args(json_int_t n_bytes, interval when)
{
    json_int_t us = when.ended_us - when.begun_us;
    return json_pack("{s:I, s:f}", "bytes", n_bytes, "gb_per_s",
                     us > 0 ? (double)n_bytes / (double)us * 1e-3 : 0.0);
}

static json_t *args_of_span(const json_t *word, const json_t *span, interval when)
{
    const char *name = weir_trace_text(span, "name");
    const char *peer = weir_trace_text(span, "peer");
    bool moves = strcmp(name, "stage") == 0 || strcmp(name, "transfer") == 0;
    json_t *args = peer[0] != '\0' ? bytes_args(weir_trace_number(span, "bytes"), when)
                   : moves         ? bytes_args(weir_trace_number(word, "bytes"), when)
                                   : json_object();
    if (peer[0] != '\0')
        json_object_set_new(args, "source", json_string(peer));
    return args;
}

/* Sources are read at the same time: each in a thread of its own, beside its worker's. */
static void add_spans_of(trace *t, const json_t *word, place at, json_int_t correction_us)
{
    size_t i, n_reads = 0;
    const json_t *span;
    json_array_foreach(json_object_get(word, "stops"), i, span)
    {
        const char *peer = weir_trace_text(span, "peer");
        interval when = interval_of_span(span);
        place where = at;
        char name[320];
        if (peer[0] != '\0') {
            where.thread += 1 + n_reads++ % (READ_THREADS - 1);
            snprintf(name, sizeof(name), "%s: reads", weir_trace_text(word, "worker_id"));
            add_name(t, "thread_name", where, name);
        }
        when.begun_us += correction_us;
        when.ended_us += correction_us;
        snprintf(name, sizeof(name), "%s%s%s", weir_trace_text(span, "name"),
                 peer[0] != '\0' ? " " : "", peer);
        add_span(t, where, name, when, args_of_span(word, span, when));
    }
}

static json_t *args_of_word(const json_t *word, json_int_t correction_us)
{
    static const char *const keys[] = { "worker_id", "rank",        "status",   "bytes",
                                        "host",      "version_uid", "trace_id", "span_id" };
    json_t *args = json_object();
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        json_object_set(args, keys[i], json_object_get(word, keys[i]));
    if (weir_trace_text(word, "text")[0] != '\0')
        json_object_set(args, "text", json_object_get(word, "text"));
    if (weir_trace_text(word, "read_from")[0] != '\0')
        json_object_set(args, "source", json_object_get(word, "read_from"));
    if (correction_us != 0)
        json_object_set_new(args, "clock_moved_us", json_integer(correction_us));
    return args;
}

static void add_word(trace *t, const json_t *word, place at)
{
    bool is_trainer = strcmp(weir_trace_text(word, "role"), "trainer") == 0;
    bool is_good = strcmp(weir_trace_text(word, "status"), "OK") == 0;
    json_int_t correction_us = correction_of(t, word);
    interval all = interval_of_word(word);
    char name[320];
    snprintf(name, sizeof(name), "%s %lld (%s)", is_trainer ? "rank" : "worker",
             (long long)weir_trace_number(word, "rank"), weir_trace_text(word, "worker_id"));
    add_name(t, "thread_name", at, name);
    snprintf(name, sizeof(name), "version %lld %s", (long long)t->version,
             !is_good     ? "refused"
             : is_trainer ? "published"
                          : "installed");
    if (json_array_size(json_object_get(word, "stops")) == 0) {
        add_instant(t, at, name, weir_trace_number(word, "at_ms") * 1000, args_of_word(word, 0));
        return;
    }
    all.begun_us += correction_us;
    all.ended_us += correction_us;
    add_span(t, at, name, all, args_of_word(word, correction_us));
    add_spans_of(t, word, at, correction_us);
}

static void add_words(trace *t)
{
    size_t i, n_trainers = 0, n_replicas = 0;
    const json_t *word;
    json_array_foreach(t->words, i, word)
    {
        bool is_trainer = strcmp(weir_trace_text(word, "role"), "trainer") == 0;
        place at = { TRAINER_PROCESS, 1 + READ_THREADS * n_trainers };
        char name[320];
        if (!is_trainer)
            at = (place){ FIRST_REPLICA_PROCESS + n_replicas, 1 };
        n_trainers += is_trainer;
        n_replicas += !is_trainer;
        snprintf(name, sizeof(name), "replica %s", weir_trace_text(word, "worker_id"));
        if (!is_trainer || n_trainers == 1)
            add_name(t, "process_name", at, is_trainer ? "trainer" : name);
        add_word(t, word, at);
    }
}

/* ---- the directory ---------------------------------------------------------------------------*/

static json_t *args_of_version(const json_t *version)
{
    static const char *const keys[] = { "uid",        "attempt",  "state",   "reason",
                                        "slots",      "covered",  "missing", "gone",
                                        "unreadable", "trace_id", "n_leases" };
    json_t *args = json_object();
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        json_t *value = json_object_get(version, keys[i]);
        if (value != NULL)
            json_object_set(args, keys[i], value);
    }
    return args;
}

/* From when it was begun until it was READY, or until now. */
static void add_version(trace *t, const json_t *version, json_int_t now_ms)
{
    const place at = { DIRECTORY_PROCESS, 1 };
    json_int_t ready_ms = weir_trace_number(version, "ready_ms");
    interval when = { weir_trace_number(version, "created_ms") * 1000, now_ms * 1000 };
    const char *state = weir_trace_text(version, "state");
    bool is_over = ready_ms != 0 || strcmp(state, "ABORTED") == 0;
    char name[64];
    if (ready_ms != 0)
        when.ended_us = ready_ms * 1000;
    snprintf(name, sizeof(name), "STAGING, now %s", state);
    if (is_over && ready_ms == 0)
        add_instant(t, at, "ABORTED", when.begun_us, args_of_version(version));
    else
        add_span(t, at, name, when, args_of_version(version));
}

static void add_in_flight(trace *t, const json_t *fleet, const json_t *refit)
{
    const place at = { DIRECTORY_PROCESS, 1 };
    const json_t *entry;
    size_t i;
    json_array_foreach(json_object_get(fleet, "in_flight"), i, entry)
    {
        char name[320];
        if (weir_trace_number(entry, "version") != t->version ||
            strcmp(weir_trace_text(entry, "model"), weir_trace_text(refit, "model")) != 0)
            continue;
        snprintf(name, sizeof(name), "%s under way: %s", weir_trace_text(entry, "worker_id"),
                 weir_trace_text(entry, "stop"));
        add_instant(t, at, name, weir_trace_number(entry, "at_ms") * 1000,
                    json_pack("{s:O, s:O}", "done_bytes", json_object_get(entry, "done_bytes"),
                              "total_bytes", json_object_get(entry, "total_bytes")));
    }
}

static bool has_said(const json_t *fleet, const json_t *version, const json_t *lease)
{
    const json_t *entry;
    size_t i;
    json_array_foreach(json_object_get(fleet, "in_flight"), i, entry)
    {
        if (weir_trace_number(entry, "version") == weir_trace_number(version, "version") &&
            strcmp(weir_trace_text(entry, "model"), weir_trace_text(version, "model")) == 0 &&
            strcmp(weir_trace_text(entry, "worker_id"), weir_trace_text(lease, "worker_id")) == 0)
            return true;
    }
    return false;
}

/* A row each, from its lease until now. */
static void add_silent(trace *t, const json_t *fleet, const json_t *version, size_t *n_rows)
{
    const json_t *lease;
    size_t i;
    json_array_foreach(json_object_get(version, "leases"), i, lease)
    {
        json_int_t said_ms = weir_trace_number(lease, "said_ms");
        interval when = { weir_trace_number(lease, "begun_ms") * 1000,
                          weir_trace_number(fleet, "now_ms") * 1000 };
        place at = { DIRECTORY_PROCESS, 2 + *n_rows };
        char name[320];
        if (when.begun_us == 0 || has_said(fleet, version, lease))
            continue;
        ++*n_rows;
        snprintf(name, sizeof(name), "reader %s", weir_trace_text(lease, "worker_id"));
        add_name(t, "thread_name", at, name);
        snprintf(name, sizeof(name),
                 said_ms != 0 ? "reads it, silent since %s" : "reads it, silent",
                 weir_trace_text(lease, "stop"));
        add_span(t, at, name, when,
                 json_pack("{s:s, s:I}", "reader", weir_trace_text(lease, "worker_id"), "said_ms",
                           said_ms));
    }
}

static bool is_of(const json_t *version, const json_t *refit)
{
    return weir_trace_number(version, "version") == weir_trace_number(refit, "version") &&
           strcmp(weir_trace_text(version, "model"), weir_trace_text(refit, "model")) == 0 &&
           strcmp(weir_trace_text(version, "run"), weir_trace_text(refit, "run")) == 0;
}

json_t *weir_trace_make(const json_t *fleet, const json_t *refit)
{
    trace t = { .words = json_object_get(refit, "words"),
                .events = json_array(),
                .version = weir_trace_number(refit, "version") };
    const json_t *versions = json_object_get(fleet, "versions");
    const json_t *version, *first = NULL;
    size_t i, n_rows = 0;
    json_array_foreach(versions, i, version) first =
        first == NULL && is_of(version, refit) ? version : first;
    find_zero(&t, first);
    add_name(&t, "process_name", (place){ DIRECTORY_PROCESS, 1 }, "directory");
    json_array_foreach(versions, i, version)
    {
        if (!is_of(version, refit))
            continue;
        add_version(&t, version, weir_trace_number(fleet, "now_ms"));
        add_silent(&t, fleet, version, &n_rows);
    }
    add_in_flight(&t, fleet, refit);
    add_words(&t);
    const json_t *word = json_array_get(t.words, 0);
    return json_pack("{s:s, s:o, s:{s:s, s:s, s:I, s:s, s:I}}", "displayTimeUnit", "ms",
                     "traceEvents", t.events, "otherData", "model", weir_trace_text(refit, "model"),
                     "run", weir_trace_text(refit, "run"), "version", t.version, "trace_id",
                     weir_trace_text(first != NULL ? first : word, "trace_id"), "begun_unix_us",
                     t.zero_us);
}
