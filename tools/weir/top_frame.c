/* SPDX-License-Identifier: Apache-2.0 */
/* top_frame.c - lines of one frame, each cut to the terminal's width. Names are others' text:
 * control characters never reach the terminal. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "top.h"

#define LINE_BYTES 1024
#define MOST_WORKERS 16 /* then they are counted */
#define MOST_REFITS 4
#define MOST_LANES 8
#define MOST_REFUSALS 6
#define MOST_GAPS 4
#define SILENT_MS 2000 /* who reads for longer says so each second */

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

static uint64_t number_of(const json_t *object, const char *key)
{
    json_int_t number = json_integer_value(json_object_get(object, key));
    return number > 0 ? (uint64_t)number : 0;
}

/* ---- lines -----------------------------------------------------------------------------------*/

typedef enum line_style { PLAIN, BOLD, DIM, RED } line_style;

static void put_line(weir_top_frame *frame, line_style style, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void put_line(weir_top_frame *frame, line_style style, const char *format, ...)
{
    static const char *const colours[] = { "", "\x1b[1m", "\x1b[2m", "\x1b[31m" };
    char line[LINE_BYTES];
    va_list arguments;
    if (frame->n_rows != 0 && frame->n_drawn + 1 >= frame->n_rows)
        return;
    frame->n_drawn++;
    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    size_t n = strlen(line);
    while (n > 0 && line[n - 1] == ' ')
        line[--n] = '\0';
    if (!frame->is_plain_text)
        fputs(colours[style], stdout);
    weir_cli_put_plain(line, frame->is_plain_text ? LINE_BYTES : (int)frame->n_columns);
    fputs(frame->is_plain_text ? "\n" : "\x1b[0m\x1b[K\r\n", stdout);
}

/* "engine-0" of "engine-0-1a2b3c4d": without the digits of this life of it. */
static const char *name_of(const char *worker_id, char out[64])
{
    size_t n = strlen(worker_id);
    if (n > 9 && worker_id[n - 9] == '-' && strspn(worker_id + n - 8, "0123456789abcdef") == 8)
        n -= 9;
    snprintf(out, 64, "%.*s", n < 63 ? (int)n : 63, worker_id);
    return out;
}

static bool is_trainer(const json_t *record)
{
    return strcmp(text_of(record, "role"), "trainer") == 0;
}

static bool is_of_run(const json_t *record, const json_t *run)
{
    return strcmp(text_of(record, "model"), text_of(run, "model")) == 0 &&
           strcmp(text_of(record, "run"), text_of(run, "run")) == 0;
}

static weir_cli_text age_text(const weir_top_frame *frame, uint64_t at_ms)
{
    weir_cli_text text = { "-" };
    uint64_t now_ms = number_of(frame->fleet, "now_ms");
    if (at_ms != 0 && now_ms >= at_ms)
        text = weir_cli_duration_text((double)(now_ms - at_ms) / 1e3);
    return text;
}

/* ---- workers ---------------------------------------------------------------------------------*/

static void draw_worker(weir_top_frame *frame, const json_t *worker)
{
    char name[64], who[96], version[24] = "-";
    uint64_t number = number_of(worker, "version");
    if (number != 0)
        snprintf(version, sizeof(version), "%" PRIu64, number);
    if (is_trainer(worker))
        snprintf(who, sizeof(who), "rank %" PRIu64, number_of(worker, "rank"));
    else
        snprintf(who, sizeof(who), "%s", name_of(text_of(worker, "worker_id"), name));
    bool is_ready = strcmp(text_of(worker, "status"), "READY") == 0;
    put_line(frame, is_ready ? PLAIN : RED, "  %-24.24s %8s  %-13s %8s  %s", who, version,
             text_of(worker, "status"), age_text(frame, number_of(worker, "updated_ms")).text,
             text_of(worker, text_of(worker, "host")[0] != '\0' ? "host" : "endpoint"));
}

static void draw_workers(weir_top_frame *frame, const json_t *run, bool trainers)
{
    size_t i, n = 0;
    const json_t *group, *worker;
    const json_t *groups = json_object_get(frame->fleet, "groups");
    json_array_foreach(groups, i, group)
    {
        if (is_of_run(group, run) && is_trainer(group) == trainers)
            n += number_of(group, "n");
    }
    if (n == 0)
        return;
    put_line(frame, DIM, "  %-24s %8s  %-13s %8s", trainers ? "TRAINER" : "REPLICA", "VERSION",
             "STATE", "HEARD");
    if (n > MOST_WORKERS) {
        json_array_foreach(groups, i, group)
        {
            if (is_of_run(group, run) && is_trainer(group) == trainers)
                put_line(frame, PLAIN, "  %-24" PRIu64 " %8" PRIu64 "  %s", number_of(group, "n"),
                         number_of(group, "version"), text_of(group, "status"));
        }
        return;
    }
    json_array_foreach(json_object_get(frame->fleet, "sources"), i, worker)
    {
        if (is_of_run(worker, run) && is_trainer(worker) == trainers)
            draw_worker(frame, worker);
    }
}

/* ---- in flight -------------------------------------------------------------------------------*/

static weir_top_rate *rate_of(weir_top_frame *frame, const json_t *flight)
{
    const char *worker = text_of(flight, "worker_id");
    for (size_t i = 0; i < frame->n_rates; i++) {
        if (strcmp(frame->rates[i].worker, worker) == 0)
            return &frame->rates[i];
    }
    size_t place = frame->n_rates < WEIR_TOP_FLIGHTS ? frame->n_rates++ : WEIR_TOP_FLIGHTS - 1;
    weir_top_rate *rate = &frame->rates[place];
    *rate = (weir_top_rate){ .version = number_of(flight, "version"),
                             .done_bytes = number_of(flight, "done_bytes"),
                             .at_ms = number_of(flight, "at_ms") };
    snprintf(rate->worker, sizeof(rate->worker), "%s", worker);
    return rate;
}

static void measure_rates(weir_top_frame *frame)
{
    size_t i;
    const json_t *flight;
    json_array_foreach(json_object_get(frame->fleet, "in_flight"), i, flight)
    {
        weir_top_rate *rate = rate_of(frame, flight);
        uint64_t done_bytes = number_of(flight, "done_bytes"), at_ms = number_of(flight, "at_ms");
        if (rate->version != number_of(flight, "version") || done_bytes < rate->done_bytes)
            rate->bytes_per_second = 0;
        else if (at_ms > rate->at_ms)
            rate->bytes_per_second =
                (double)(done_bytes - rate->done_bytes) / (double)(at_ms - rate->at_ms) * 1e3;
        rate->version = number_of(flight, "version");
        rate->done_bytes = done_bytes;
        rate->at_ms = at_ms;
    }
}

static void draw_flight(weir_top_frame *frame, const json_t *flight)
{
    char name[64], source[64], bar[21];
    uint64_t done_bytes = number_of(flight, "done_bytes");
    uint64_t total_bytes = number_of(flight, "total_bytes");
    double rate = rate_of(frame, flight)->bytes_per_second;
    double share = total_bytes != 0 ? (double)done_bytes / (double)total_bytes : 0;
    for (int i = 0; i < 20; i++)
        bar[i] = i < (int)(share * 20) ? '#' : '.';
    bar[20] = '\0';
    double left_s =
        rate > 0 && total_bytes > done_bytes ? (double)(total_bytes - done_bytes) / rate : -1;
    put_line(frame, PLAIN, "  %-24.24s %8" PRIu64 "  [%s] %3.0f %%  %s of %s  %s  %s left  %s%s",
             name_of(text_of(flight, "worker_id"), name), number_of(flight, "version"), bar,
             share * 100, weir_cli_bytes_text(done_bytes).text,
             weir_cli_bytes_text(total_bytes).text, rate > 0 ? weir_cli_rate_text(rate).text : "-",
             left_s >= 0 ? weir_cli_duration_text(left_s).text : "-",
             text_of(flight, "slowest_from")[0] != '\0' ? "slowest: " : "",
             name_of(text_of(flight, "slowest_from"), source));
}

static void draw_flights(weir_top_frame *frame, const json_t *run)
{
    size_t i, n = 0;
    const json_t *flight;
    json_array_foreach(json_object_get(frame->fleet, "in_flight"), i, flight)
    {
        if (strcmp(text_of(flight, "model"), text_of(run, "model")) != 0)
            continue;
        if (n++ == 0)
            put_line(frame, DIM, "  %-24s %8s", "IN FLIGHT", "VERSION");
        if (n <= MOST_WORKERS)
            draw_flight(frame, flight);
    }
    if (n > MOST_WORKERS)
        put_line(frame, DIM, "  and %zu more", n - MOST_WORKERS);
}

/* ---- readers who say nothing -----------------------------------------------------------------*/

/* Of a reader that says how far it is, another line does. */
static bool is_in_flight(const weir_top_frame *frame, const json_t *version, const json_t *lease)
{
    size_t i;
    const json_t *flight;
    json_array_foreach(json_object_get(frame->fleet, "in_flight"), i, flight)
    {
        if (strcmp(text_of(flight, "worker_id"), text_of(lease, "worker_id")) == 0 &&
            strcmp(text_of(flight, "model"), text_of(version, "model")) == 0 &&
            number_of(flight, "version") == number_of(version, "version"))
            return true;
    }
    return false;
}

static void draw_reader(weir_top_frame *frame, const json_t *version, const json_t *lease)
{
    char name[64];
    uint64_t said_ms = number_of(lease, "said_ms"), begun_ms = number_of(lease, "begun_ms");
    name_of(text_of(lease, "worker_id"), name);
    if (said_ms != 0)
        put_line(frame, RED, "  %-24.24s %8" PRIu64 "  in %s when it spoke last, %s ago", name,
                 number_of(version, "version"), text_of(lease, "stop"),
                 age_text(frame, said_ms).text);
    else
        put_line(frame, RED, "  %-24.24s %8" PRIu64 "  reads for %s, has said nothing", name,
                 number_of(version, "version"), age_text(frame, begun_ms).text);
}

static bool is_silent(const weir_top_frame *frame, const json_t *version, const json_t *lease)
{
    uint64_t begun_ms = number_of(lease, "begun_ms"), now_ms = number_of(frame->fleet, "now_ms");
    return begun_ms + SILENT_MS < now_ms && !is_in_flight(frame, version, lease);
}

static void draw_silent(weir_top_frame *frame, const json_t *run)
{
    size_t i, k, n = 0;
    const json_t *version, *lease;
    json_array_foreach(json_object_get(frame->fleet, "versions"), i, version)
    {
        if (!is_of_run(version, run))
            continue;
        json_array_foreach(json_object_get(version, "leases"), k, lease)
        {
            if (!is_silent(frame, version, lease))
                continue;
            if (n++ == 0)
                put_line(frame, DIM, "  %-24s %8s", "SILENT READER", "VERSION");
            if (n <= MOST_WORKERS)
                draw_reader(frame, version, lease);
        }
    }
    if (n > MOST_WORKERS)
        put_line(frame, DIM, "  and %zu more", n - MOST_WORKERS);
}

/* ---- the last refits -------------------------------------------------------------------------*/

static bool is_stop(const char *name)
{
    for (int stop = 0; stop < WEIR_N_STOPS; stop++) {
        if (strcmp(weir_stop_name((weir_stop)stop), name) == 0)
            return true;
    }
    return false;
}

static void draw_lane(weir_top_frame *frame, const json_t *word)
{
    char line[LINE_BYTES] = "", name[64], who[80];
    size_t i, n = 0;
    const json_t *stop;
    uint64_t total_us = 0;
    json_array_foreach(json_object_get(word, "stops"), i, stop)
    {
        uint64_t us = number_of(stop, "duration_us");
        if (!is_stop(text_of(stop, "name")) || n > sizeof(line) - 80)
            continue;
        total_us += us;
        n += (size_t)snprintf(line + n, sizeof(line) - n, " %.16s %.1f", text_of(stop, "name"),
                              (double)us / 1e3);
    }
    if (is_trainer(word))
        snprintf(who, sizeof(who), "rank %" PRIu64, number_of(word, "rank"));
    else
        snprintf(who, sizeof(who), "%s", name_of(text_of(word, "worker_id"), name));
    bool is_ok = strcmp(text_of(word, "status"), "OK") == 0;
    put_line(frame, is_ok ? PLAIN : RED, "    %-22.22s %8.1f ms  %s%s", who, (double)total_us / 1e3,
             is_ok ? "" : "refused ", line);
}

static void draw_refits(weir_top_frame *frame, const json_t *run)
{
    size_t i, k, n = 0;
    const json_t *refit, *word;
    json_array_foreach(json_object_get(frame->fleet, "refits"), i, refit)
    {
        if (!is_of_run(refit, run) || n++ >= MOST_REFITS)
            continue;
        uint64_t n_refused = number_of(refit, "n_refused");
        if (n == 1)
            put_line(frame, DIM, "  LAST REFITS (ms at each stop)");
        put_line(frame, PLAIN, "  version %" PRIu64 ": %" PRIu64 " of %" PRIu64 " installed",
                 number_of(refit, "version"), number_of(refit, "n_replicas") - n_refused,
                 number_of(refit, "n_replicas"));
        json_array_foreach(json_object_get(refit, "words"), k, word)
        {
            if (k < MOST_LANES)
                draw_lane(frame, word);
        }
    }
}

static void draw_refusals(weir_top_frame *frame, const json_t *run)
{
    size_t i, k, n = 0;
    const json_t *refit, *word;
    char name[64];
    json_array_foreach(json_object_get(frame->fleet, "refits"), i, refit)
    {
        if (!is_of_run(refit, run))
            continue;
        json_array_foreach(json_object_get(refit, "words"), k, word)
        {
            if (strcmp(text_of(word, "status"), "OK") == 0 || n++ >= MOST_REFUSALS)
                continue;
            if (n == 1)
                put_line(frame, DIM, "  REFUSALS");
            put_line(frame, RED, "  version %" PRIu64 " by %s: %s: %s", number_of(refit, "version"),
                     name_of(text_of(word, "worker_id"), name), text_of(word, "status"),
                     text_of(word, "text"));
        }
    }
}

/* ---- versions --------------------------------------------------------------------------------*/

static void draw_versions(weir_top_frame *frame, const json_t *run)
{
    char line[LINE_BYTES] = "";
    size_t i, n = 0;
    const json_t *version;
    json_array_foreach(json_object_get(frame->fleet, "versions"), i, version)
    {
        if (!is_of_run(version, run) || n > sizeof(line) - 96)
            continue;
        n += (size_t)snprintf(line + n, sizeof(line) - n, "  %" PRIu64 " %s",
                              number_of(version, "version"), text_of(version, "state"));
        if (strcmp(text_of(version, "state"), "STAGING") == 0)
            n += (size_t)snprintf(line + n, sizeof(line) - n, " (%" PRIu64 " of %" PRIu64 ")",
                                  number_of(version, "covered"), number_of(version, "slots"));
        if (number_of(version, "n_leases") != 0)
            n += (size_t)snprintf(line + n, sizeof(line) - n, " read by %" PRIu64,
                                  number_of(version, "n_leases"));
    }
    if (n != 0)
        put_line(frame, PLAIN, "  versions:%s", line);
}

/* "rank-0 (trainer-0)" */
static void list_gaps(const json_t *version, char *line, size_t n_line)
{
    size_t i, n = 0;
    const json_t *gap;
    const json_t *gaps = json_object_get(version, "gone");
    char name[64];
    line[0] = '\0';
    json_array_foreach(gaps, i, gap)
    {
        if (i < MOST_GAPS)
            n += (size_t)snprintf(line + n, n_line - n, "%s%.64s (%s)", i != 0 ? ", " : "",
                                  text_of(gap, "slot"), name_of(text_of(gap, "worker_id"), name));
    }
    if (i > MOST_GAPS)
        snprintf(line + n, n_line - n, " and %zu more", i - MOST_GAPS);
}

static void draw_unreadable(weir_top_frame *frame, const json_t *run)
{
    char line[LINE_BYTES];
    size_t i;
    const json_t *version;
    json_array_foreach(json_object_get(frame->fleet, "versions"), i, version)
    {
        if (!is_of_run(version, run) || !json_is_true(json_object_get(version, "unreadable")))
            continue;
        list_gaps(version, line, sizeof(line));
        put_line(frame, RED,
                 "  version %" PRIu64 ": nobody can read it: %" PRIu64 " of %" PRIu64
                 " shards are there, no replica holds it; gone: %s",
                 number_of(version, "version"), number_of(version, "covered"),
                 number_of(version, "slots"), line);
    }
}

/* ---- the frame -------------------------------------------------------------------------------*/

static void draw_run(weir_top_frame *frame, const json_t *run)
{
    put_line(frame, PLAIN, "%s", "");
    put_line(frame, BOLD, "%s%s%s", text_of(run, "model"),
             text_of(run, "run")[0] != '\0' ? ", run " : "", text_of(run, "run"));
    draw_versions(frame, run);
    draw_unreadable(frame, run);
    draw_flights(frame, run);
    draw_silent(frame, run);
    draw_workers(frame, run, true);
    draw_workers(frame, run, false);
    draw_refits(frame, run);
    draw_refusals(frame, run);
}

/* The first record of each run, of those that have not been seen in earlier lists. */
static void draw_runs(weir_top_frame *frame)
{
    static const char *const lists[] = { "versions", "groups", "refits" };
    json_t *seen = json_array();
    size_t i, k;
    const json_t *record, *before;
    for (size_t list = 0; list < sizeof(lists) / sizeof(lists[0]); list++) {
        json_array_foreach(json_object_get(frame->fleet, lists[list]), i, record)
        {
            bool is_new = true;
            json_array_foreach(seen, k, before)
            {
                is_new &= !is_of_run(record, before);
            }
            if (!is_new)
                continue;
            json_array_append(seen, (json_t *)record);
            draw_run(frame, record);
        }
    }
    if (json_array_size(seen) == 0)
        put_line(frame, DIM, "nothing has been published here yet");
    json_decref(seen);
}

static void draw_head(weir_top_frame *frame)
{
    const json_t *directory = json_object_get(frame->fleet, "directory");
    const char *trouble = text_of(directory, "trouble");
    put_line(
        frame, BOLD,
        "directory %s  up %s  %" PRIu64 " workers  %" PRIu64 " versions  %" PRIu64 " leases  %s",
        frame->directory, weir_cli_duration_text((double)number_of(directory, "uptime_s")).text,
        number_of(directory, "workers"), number_of(directory, "versions"),
        number_of(directory, "leases"),
        weir_cli_bytes_text(number_of(directory, "store_bytes")).text);
    if (trouble[0] != '\0')
        put_line(frame, RED, "its log: %s", trouble);
}

void weir_top_take(weir_top_frame *frame, json_t *taken)
{
    json_decref(frame->fleet);
    frame->fleet = taken;
    measure_rates(frame);
}

void weir_top_draw(weir_top_frame *frame)
{
    frame->n_drawn = 0;
    if (frame->trouble != NULL)
        put_line(frame, RED, "%s", frame->trouble);
    if (frame->fleet == NULL)
        return;
    draw_head(frame);
    draw_runs(frame);
}
