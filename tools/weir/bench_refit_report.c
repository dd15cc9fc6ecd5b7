/* SPDX-License-Identifier: Apache-2.0 */
/* bench_refit_report.c - what a run of `weir bench refit` came to, for people and for programs.
 *
 * Medians leave the first version out: it plans, connects and allocates.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_refit.h"
#include "median.h"

#define GROWTH_FROM 10  /* version; before it everything may settle */
#define GROWTH_WINDOW 5 /* the least of so many: a heartbeat's memory comes and goes */
#define SMALLEST_CHUNK (4 * sizeof(void *)) /* of malloc, its own words included */

/* ---- figures ---------------------------------------------------------------------------------*/

typedef double (*figure_fn)(const weir_bench_version *version, int stop);

static double total_figure(const weir_bench_version *version, int stop)
{
    (void)stop;
    return version->total_s;
}

static double publish_figure(const weir_bench_version *version, int stop)
{
    (void)stop;
    return version->publish_s;
}

static double wait_figure(const weir_bench_version *version, int stop)
{
    (void)stop;
    return version->wait_s;
}

static double stop_figure(const weir_bench_version *version, int stop)
{
    return version->seconds[stop];
}

static double median_of(const weir_bench_run *run, figure_fn figure, int stop)
{
    uint64_t first = run->n_done > 1 ? 1 : 0, n = run->n_done - first;
    double *values = malloc((n + 1) * sizeof(*values));
    if (values == NULL)
        return 0;
    for (uint64_t i = 0; i < n; i++)
        values[i] = figure(&run->versions[first + i], stop);
    double median = weir_median(values, n);
    free(values);
    return median;
}

static double rate_of(const weir_bench_run *run, double seconds)
{
    return seconds > 0 ? (double)run->n_bytes / seconds * 1e-9 : 0;
}

/* GPU memory that a worker has taken beside its weights or parameters; of a GPU that several share,
 * all they have taken. */
static uint64_t extra_gpu_bytes(const weir_bench_run *run, size_t worker)
{
    uint64_t before = run->gpu_left_before[worker], least = before;
    for (uint64_t i = 0; i < run->n_done; i++) {
        uint64_t left = run->versions[i].gpu_left[worker];
        least = left < least ? left : least;
    }
    return run->extra_setup[worker] + before - least;
}

static uint64_t heap_growth(const weir_bench_run *run, size_t worker)
{
    uint64_t before = run->memory_before[worker].heap_bytes;
    uint64_t after = run->versions[run->n_done - 1].memory[worker].heap_bytes;
    return after > before ? after - before : 0;
}

static bool is_shared(const weir_bench_run *run, size_t worker)
{
    const weir_bench_place *places = run->bench->places;
    for (size_t i = 0; i < run->bench->n_workers; i++) {
        if (i != worker && places[i].cuda && places[i].device == places[worker].device)
            return true;
    }
    return false;
}

/* ---- growth ----------------------------------------------------------------------------------*/

typedef struct growth {
    uint64_t heap_bytes, gpu_bytes, resident_bytes; /* from one version to another */
} growth;

/* What the worker held at least in the versions from `first` on. */
static growth held_from(const weir_bench_run *run, size_t worker, uint64_t first)
{
    growth least = { UINT64_MAX, UINT64_MAX, UINT64_MAX };
    for (uint64_t i = first; i < first + GROWTH_WINDOW; i++) {
        const weir_bench_version *version = &run->versions[i];
        const weir_process_memory *memory = &version->memory[worker];
        uint64_t taken = run->gpu_left_before[worker] - version->gpu_left[worker];
        if (memory->heap_bytes < least.heap_bytes)
            least.heap_bytes = memory->heap_bytes;
        if (memory->resident_bytes < least.resident_bytes)
            least.resident_bytes = memory->resident_bytes;
        if ((int64_t)taken < (int64_t)least.gpu_bytes || least.gpu_bytes == UINT64_MAX)
            least.gpu_bytes = taken;
    }
    return least;
}

static bool is_long(const weir_bench_run *run)
{
    return run->n_done >= GROWTH_FROM - 1 + 2 * GROWTH_WINDOW;
}

static uint64_t more(uint64_t before, uint64_t after)
{
    return (int64_t)(after - before) > 0 ? after - before : 0;
}

/* Nothing that stays takes less of the heap than its smallest chunk. Less is a chunk that was
 * handed out whole, because what would have been left of it could not be one. */
static uint64_t more_heap(uint64_t before, uint64_t after)
{
    uint64_t grown = more(before, after);
    return grown < SMALLEST_CHUNK ? 0 : grown;
}

static growth growth_between(const weir_bench_run *run, size_t worker, uint64_t from, uint64_t to)
{
    growth before = held_from(run, worker, from), after = held_from(run, worker, to);
    return (growth){ more_heap(before.heap_bytes, after.heap_bytes),
                     more(before.gpu_bytes, after.gpu_bytes),
                     more(before.resident_bytes, after.resident_bytes) };
}

/* What grows with the versions does so in both halves of them. What comes once, at whatever time a
 * thread frees what another has taken and its cache keeps the chunk, comes in one half. */
static growth growth_of(const weir_bench_run *run, size_t worker)
{
    if (!is_long(run))
        return (growth){ 0, 0, 0 };
    uint64_t first = GROWTH_FROM - 1, last = run->n_done - GROWTH_WINDOW;
    growth early = growth_between(run, worker, first, (first + last) / 2);
    growth late = growth_between(run, worker, (first + last) / 2, last);
    growth grown = growth_between(run, worker, first, last);
    return (growth){ early.heap_bytes > 0 && late.heap_bytes > 0 ? grown.heap_bytes : 0,
                     early.gpu_bytes > 0 && late.gpu_bytes > 0 ? grown.gpu_bytes : 0,
                     early.resident_bytes > 0 && late.resident_bytes > 0 ? grown.resident_bytes
                                                                         : 0 };
}

uint64_t weir_bench_growth(const weir_bench_run *run)
{
    uint64_t total = 0;
    for (size_t i = 0; i < run->bench->n_workers; i++) {
        growth grown = growth_of(run, i);
        total += grown.heap_bytes + grown.gpu_bytes;
    }
    return total;
}

/* ---- one mode beside the other ---------------------------------------------------------------*/

/* Replicas map what they read of the trainer, which is not theirs. */
static uint64_t most_own_bytes(const weir_bench_run *run, size_t worker)
{
    uint64_t most = 0;
    for (uint64_t i = 0; i < run->n_done; i++) {
        const weir_process_memory *memory = &run->versions[i].memory[worker];
        uint64_t own = worker == 0 ? memory->own_bytes : memory->alone_bytes;
        most = own > most ? own : most;
    }
    return most;
}

weir_bench_figures weir_bench_figures_of(const weir_bench_run *run)
{
    double seconds = median_of(run, total_figure, 0);
    weir_bench_figures out = { .n_bytes = run->n_bytes,
                               .seconds = seconds,
                               .gb_per_s = rate_of(run, seconds),
                               .trainer_bytes = most_own_bytes(run, 0),
                               .trainer_gpu_bytes = extra_gpu_bytes(run, 0) };
    for (size_t i = 1; i < run->bench->n_workers; i++) {
        uint64_t own = most_own_bytes(run, i), gpu = extra_gpu_bytes(run, i);
        out.replica_bytes = own > out.replica_bytes ? own : out.replica_bytes;
        out.replica_gpu_bytes = gpu > out.replica_gpu_bytes ? gpu : out.replica_gpu_bytes;
    }
    return out;
}

/* ---- for people ------------------------------------------------------------------------------*/

/* The stops that the replicas report; those of the trainer lie in publish. */
static const weir_stop columns[] = { WEIR_STOP_DISCOVER, WEIR_STOP_TRANSFER, WEIR_STOP_INSTALL,
                                     WEIR_STOP_POSTPROCESS, WEIR_STOP_ACK };
#define N_COLUMNS (sizeof(columns) / sizeof(columns[0]))

static weir_cli_text place_text(weir_bench_place place)
{
    weir_cli_text out;
    if (place.cuda)
        snprintf(out.text, sizeof(out.text), "GPU %u", place.device);
    else
        snprintf(out.text, sizeof(out.text), "host memory");
    return out;
}

void weir_bench_print_head(const weir_bench_run *run)
{
    const weir_bench_refit *bench = run->bench;
    printf("%s %s: %.4g billion weights, %s in %s; %s to each of %zu replicas (", bench->family,
           bench->preset, (double)run->n_weights * 1e-9,
           weir_cli_bytes_text(run->weight_bytes).text, place_text(bench->places[0]).text,
           weir_cli_bytes_text(run->parameter_bytes).text, bench->n_workers - 1);
    for (size_t i = 1; i < bench->n_workers; i++)
        printf("%s%s", i > 1 ? ", " : "", place_text(bench->places[i]).text);
    printf(")\nmode %s, conversion %s, install %s, delivery %s, transport %s\n\n", bench->mode,
           bench->conversion, bench->install,
           bench->delivery != NULL ? bench->delivery : "by default",
           bench->transport != NULL ? bench->transport : "by default");
    printf("%-8s %10s %10s", "version", "publish", "wait");
    for (size_t i = 0; i < N_COLUMNS; i++)
        printf(" %9s",
               columns[i] == WEIR_STOP_POSTPROCESS ? "postproc." : weir_stop_name(columns[i]));
    printf(" %10s %8s\n", "refit", "GB/s");
    fflush(stdout);
}

void weir_bench_print_version(const weir_bench_run *run, uint64_t version)
{
    const weir_bench_version *result = &run->versions[version - 1];
    printf("%-8llu %8.1fms %8.1fms", (unsigned long long)version, result->publish_s * 1e3,
           result->wait_s * 1e3);
    for (size_t i = 0; i < N_COLUMNS; i++)
        printf(" %7.1fms", result->seconds[columns[i]] * 1e3);
    printf(" %8.1fms %8.2f\n", result->total_s * 1e3, rate_of(run, result->total_s));
    fflush(stdout);
}

static void print_memory(const weir_bench_run *run)
{
    for (size_t i = 0; i < run->bench->n_workers; i++) {
        growth grown = growth_of(run, i);
        printf("%s: ", run->workers[i].name);
        if (run->bench->places[i].cuda)
            printf("%s of extra GPU memory%s, %s of it beside the parameters before the first "
                   "version, ",
                   weir_cli_bytes_text(extra_gpu_bytes(run, i)).text,
                   is_shared(run, i) ? " (all processes on that GPU)" : "",
                   weir_cli_bytes_text(run->extra_setup[i]).text);
        printf("%s more heap than before the first version",
               weir_cli_bytes_text(heap_growth(run, i)).text);
        if (is_long(run))
            printf("; from version %d to %llu grown by %llu B of heap, %llu B of GPU memory "
                   "(resident: %llu B)",
                   GROWTH_FROM, (unsigned long long)run->n_done,
                   (unsigned long long)grown.heap_bytes, (unsigned long long)grown.gpu_bytes,
                   (unsigned long long)grown.resident_bytes);
        putchar('\n');
    }
}

static void print_limit(const weir_bench_run *run, double seconds)
{
    if (run->limit_gb_per_s <= 0) {
        printf("limit: not measured: %s\n", run->why_no_limit);
        return;
    }
    double limit_s = (double)run->n_bytes / run->limit_gb_per_s * 1e-9;
    printf(
        "limit: %s of as many bytes, same run: %.2f GB/s, %.4g s; the refit reaches %.2f of it\n",
        run->limit_name, run->limit_gb_per_s, limit_s, limit_s / seconds);
}

void weir_bench_print_summary(const weir_bench_run *run)
{
    const weir_bench_version *last = &run->versions[run->n_done - 1];
    const weir_counters *did = &last->replicas_did, *trainer = &last->trainer_did;
    double seconds = median_of(run, total_figure, 0);
    printf("\nmedian of versions %d to %llu: %.4f s from publish until all have acknowledged "
           "(publish %.4f s, wait %.4f s), %.2f GB/s to each replica\n",
           run->n_done > 1 ? 2 : 1, (unsigned long long)run->n_done, seconds,
           median_of(run, publish_figure, 0), median_of(run, wait_figure, 0),
           rate_of(run, seconds));
    print_limit(run, seconds);
    print_memory(run);
    printf("last version: allocations %llu + %llu, registrations %llu + %llu, plans %llu + %llu, "
           "connections %llu + %llu (trainer + replicas)\n",
           (unsigned long long)trainer->allocations, (unsigned long long)did->allocations,
           (unsigned long long)trainer->registrations, (unsigned long long)did->registrations,
           (unsigned long long)trainer->plans, (unsigned long long)did->plans,
           (unsigned long long)trainer->connections, (unsigned long long)did->connections);
    if (!run->was_checked)
        printf("verified: no\n");
    else
        printf("verified: %s, %llu of %llu entries of version %llu against the C reference, %s\n",
               run->checked.n_different == 0 ? "yes" : "NO",
               (unsigned long long)run->checked.n_entries,
               (unsigned long long)run->checked.n_all_entries, (unsigned long long)run->n_done,
               weir_cli_bytes_text(run->checked.n_bytes).text);
}

/* ---- for programs ----------------------------------------------------------------------------*/

static json_t *counters_json(const weir_counters *counters)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "allocations", (json_int_t)counters->allocations,
                     "registrations", (json_int_t)counters->registrations, "plans",
                     (json_int_t)counters->plans, "connections", (json_int_t)counters->connections);
}

static json_t *version_json(const weir_bench_version *version)
{
    json_t *stops = json_object();
    for (size_t i = 0; i < N_COLUMNS; i++)
        json_object_set_new(stops, weir_stop_name(columns[i]),
                            json_real(version->seconds[columns[i]]));
    return json_pack("{s:f, s:f, s:f, s:o, s:o, s:o}", "refit_seconds", version->total_s,
                     "publish_seconds", version->publish_s, "wait_seconds", version->wait_s,
                     "stop_seconds", stops, "trainer_counters",
                     counters_json(&version->trainer_did), "replica_counters",
                     counters_json(&version->replicas_did));
}

static json_t *worker_json(const weir_bench_run *run, size_t worker)
{
    growth grown = growth_of(run, worker);
    weir_bench_place place = run->bench->places[worker];
    return json_pack("{s:s, s:s, s:b, s:I, s:I, s:I, s:{s:I, s:I, s:I}}", "name",
                     run->workers[worker].name, "place", place_text(place).text, "shares_its_gpu",
                     is_shared(run, worker), "extra_gpu_bytes",
                     (json_int_t)extra_gpu_bytes(run, worker), "extra_gpu_bytes_before",
                     (json_int_t)run->extra_setup[worker], "extra_heap_bytes",
                     (json_int_t)heap_growth(run, worker), "growth", "heap_bytes",
                     (json_int_t)grown.heap_bytes, "gpu_bytes", (json_int_t)grown.gpu_bytes,
                     "resident_bytes", (json_int_t)grown.resident_bytes);
}

static json_t *median_json(const weir_bench_run *run)
{
    double seconds = median_of(run, total_figure, 0);
    json_t *stops = json_object();
    for (size_t i = 0; i < N_COLUMNS; i++)
        json_object_set_new(stops, weir_stop_name(columns[i]),
                            json_real(median_of(run, stop_figure, (int)columns[i])));
    return json_pack("{s:f, s:f, s:f, s:o, s:f}", "refit_seconds", seconds, "publish_seconds",
                     median_of(run, publish_figure, 0), "wait_seconds",
                     median_of(run, wait_figure, 0), "stop_seconds", stops, "gb_per_s",
                     rate_of(run, seconds));
}

static json_t *limit_json(const weir_bench_run *run)
{
    double seconds = median_of(run, total_figure, 0);
    if (run->limit_gb_per_s <= 0)
        return json_pack("{s:s}", "why_not", run->why_no_limit);
    return json_pack("{s:s, s:f, s:f, s:f}", "what", run->limit_name, "gb_per_s",
                     run->limit_gb_per_s, "seconds",
                     (double)run->n_bytes / run->limit_gb_per_s * 1e-9, "fraction",
                     rate_of(run, seconds) / run->limit_gb_per_s);
}

json_t *weir_bench_result_json(const weir_bench_run *run)
{
    const weir_bench_refit *bench = run->bench;
    json_t *versions = json_array(), *workers = json_array();
    for (uint64_t i = 0; i < run->n_done && !bench->soak; i++)
        json_array_append_new(versions, version_json(&run->versions[i]));
    for (size_t i = 0; i < bench->n_workers; i++)
        json_array_append_new(workers, worker_json(run, i));
    bool verified = run->was_checked && run->checked.n_different == 0;
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s?, s:s?, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:b, s:I, "
        "s:I, "
        "s:I}",
        "mode", bench->mode, "family", bench->family, "preset", bench->preset, "conversion",
        bench->conversion, "install", bench->install, "delivery", bench->delivery, "transport",
        bench->transport, "weights", (json_int_t)run->n_weights, "weight_bytes",
        (json_int_t)run->weight_bytes, "bytes_per_replica", (json_int_t)run->n_bytes, "versions",
        (json_int_t)run->n_done, "refits", versions, "median", median_json(run), "limit",
        limit_json(run), "workers", workers, "verified", verified, "entries_compared",
        (json_int_t)run->checked.n_entries, "bytes_compared", (json_int_t)run->checked.n_bytes,
        "growth_bytes", (json_int_t)weir_bench_growth(run));
}
