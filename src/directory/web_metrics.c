/* SPDX-License-Identifier: Apache-2.0 */
/* web_metrics.c - the directory's counts as metric families, in base units: bytes, seconds. Gauges
 * are of the fleet as the store has it; counters are of this process since it began. */
#include "directory/web_metrics.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "directory/fleet_tally.h"
#include "rpc/grpc_wire.h"
#include "weir/weir.h"

#define LABELS WEIR_METRICS_LABELS

/* ---- the fleet -------------------------------------------------------------------------------*/

static void put_versions(weir_metrics_text *out, const weir_fleet_tally *tally)
{
    static const char *const states[] = { NULL, "staging", "ready", "releasing", "aborted" };
    weir_metrics_family(out, "weir_versions", "gauge", "Versions known, by state.");
    for (size_t i = 0; i < tally->n_runs; i++) {
        const weir_run_tally *run = &tally->runs[i];
        for (size_t state = 1; state < 5; state++)
            weir_metrics_count(out, "",
                               LABELS("model", run->model, "run", run->run, "state", states[state]),
                               run->versions[state]);
    }
    weir_metrics_family(out, "weir_version_number", "gauge", "The newest version that is READY.");
    for (size_t i = 0; i < tally->n_runs; i++) {
        const weir_run_tally *run = &tally->runs[i];
        if (run->has_ready)
            weir_metrics_count(out, "", LABELS("model", run->model, "run", run->run),
                               run->newest_ready);
    }
    weir_metrics_family(out, "weir_replica_version_number_min", "gauge",
                        "The oldest version that a live replica worker holds.");
    for (size_t i = 0; i < tally->n_runs; i++) {
        const weir_run_tally *run = &tally->runs[i];
        if (run->has_held)
            weir_metrics_count(out, "", LABELS("model", run->model, "run", run->run),
                               run->lowest_held);
    }
    weir_metrics_family(out, "weir_staging_missing_shards", "gauge",
                        "Shards that versions in STAGING still wait for.");
    for (size_t i = 0; i < tally->n_runs; i++) {
        const weir_run_tally *run = &tally->runs[i];
        uint64_t n_missing = run->slots > run->shards ? run->slots - run->shards : 0;
        weir_metrics_count(out, "", LABELS("model", run->model, "run", run->run), n_missing);
    }
}

static void put_unreadable(weir_metrics_text *out, const weir_fleet_tally *tally)
{
    weir_metrics_family(out, "weir_unreadable_versions", "gauge",
                        "Versions that are READY, but nobody can read them, nor a later one.");
    for (size_t i = 0; i < tally->n_runs; i++) {
        const weir_run_tally *run = &tally->runs[i];
        weir_metrics_count(out, "", LABELS("model", run->model, "run", run->run), run->unreadable);
    }
}

static void put_models(weir_metrics_text *out, const weir_fleet_tally *tally)
{
    static const char *const roles[] = { "unknown", "trainer", "replica" };
    static const char *const statuses[] = { "unknown", "initializing", "ready", "stale" };
    weir_metrics_family(out, "weir_leases", "gauge", "Versions being read, by how many workers.");
    for (size_t i = 0; i < tally->n_models; i++)
        weir_metrics_count(out, "", LABELS("model", tally->models[i].model),
                           tally->models[i].leases);
    weir_metrics_family(out, "weir_workers", "gauge",
                        "Registered workers whose time to live has not run out.");
    for (size_t i = 0; i < tally->n_models; i++) {
        for (size_t role = 1; role < 3; role++)
            weir_metrics_count(out, "",
                               LABELS("model", tally->models[i].model, "role", roles[role]),
                               tally->models[i].workers[role]);
    }
    weir_metrics_family(out, "weir_sources", "gauge",
                        "Entries of workers that publish or hold weights.");
    for (size_t i = 0; i < tally->n_models; i++) {
        for (size_t status = 0; status < 4; status++)
            weir_metrics_count(out, "",
                               LABELS("model", tally->models[i].model, "status", statuses[status]),
                               tally->models[i].sources[status]);
        weir_metrics_count(out, "", LABELS("model", tally->models[i].model, "status", "gone"),
                           tally->models[i].gone);
    }
}

/* ---- refits ----------------------------------------------------------------------------------*/

static void put_counter(weir_metrics_text *out, const char *name, const char *help, uint64_t value)
{
    weir_metrics_family(out, name, "counter", help);
    weir_metrics_count(out, "", NULL, value);
}

static void put_gauge(weir_metrics_text *out, const char *name, const char *help, uint64_t value)
{
    weir_metrics_family(out, name, "gauge", help);
    weir_metrics_count(out, "", NULL, value);
}

static void put_refusals(weir_metrics_text *out, const weir_directory_counts *counts)
{
    weir_metrics_family(out, "weir_refusals_total", "counter",
                        "Refits that replica workers did not install, by why.");
    for (int i = 1; i < WEIR_DIRECTORY_STATUSES; i++) {
        const char *name = weir_status_name((weir_status)-i);
        bool is_known = strncmp(name, "ERR_", 4) == 0;
        if (is_known)
            weir_metrics_count(out, "", LABELS("reason", name), counts->words[i]);
    }
}

static void put_events(weir_metrics_text *out, const weir_store_events *events)
{
    weir_metrics_family(out, "weir_versions_total", "counter",
                        "Versions that came to be in a state.");
    weir_metrics_count(out, "", LABELS("state", "staging"), events->n_made);
    weir_metrics_count(out, "", LABELS("state", "ready"), events->n_ready);
    weir_metrics_count(out, "", LABELS("state", "releasing"), events->n_released);
    weir_metrics_count(out, "", LABELS("state", "aborted"), events->n_aborted);
    put_counter(out, "weir_published_shards_total", "Shards of versions that ranks published.",
                events->n_shards);
    put_counter(out, "weir_published_bytes_total", "Bytes in these shards.", events->n_shard_bytes);
    put_counter(out, "weir_granted_leases_total", "Versions that readers leased.",
                events->n_leases);
    put_counter(out, "weir_renewed_leases_total", "Leases that their readers renewed.",
                events->n_renewed);
    weir_metrics_family(out, "weir_ended_leases_total", "counter",
                        "Leases that ended: given back by their readers, or by time.");
    weir_metrics_count(out, "", LABELS("reason", "given_back"), events->n_given_back);
    weir_metrics_count(out, "", LABELS("reason", "expired"), events->n_expired);
}

static void put_refits(weir_metrics_text *out, const weir_directory_counts *counts)
{
    put_events(out, &counts->events);
    put_counter(out, "weir_installs_total", "Refits that replica workers installed.",
                counts->words[0]);
    put_counter(out, "weir_installed_bytes_total", "Bytes in these refits.",
                counts->n_installed_bytes);
    put_counter(out, "weir_granted_replica_sources_total",
                "Versions acquired with another replica to read from.", counts->n_granted_peers);
    put_counter(out, "weir_retries_total",
                "Versions acquired after a version or a source that could not be read.",
                counts->n_retried);
    put_refusals(out, counts);
    weir_metrics_family(out, "weir_stop_seconds", "summary",
                        "Time that workers spent at each stop of their refits.");
    for (size_t i = 0; i < counts->n_stops; i++) {
        const weir_directory_stop_counts *stop = &counts->stops[i];
        weir_metrics_sample(out, "_sum", LABELS("stop", stop->name), (double)stop->sum_us / 1e6);
        weir_metrics_count(out, "_count", LABELS("stop", stop->name), stop->n);
    }
}

/* ---- calls -----------------------------------------------------------------------------------*/

static void put_method(weir_metrics_text *out, const weir_directory_method_counts *method)
{
    static const char *const codes[WEIR_DIRECTORY_CODES] = {
        "OK",       "Cancelled",      "Unknown",          "InvalidArgument",   "DeadlineExceeded",
        "NotFound", "AlreadyExists",  "PermissionDenied", "ResourceExhausted", "FailedPrecondition",
        "Aborted",  "OutOfRange",     "Unimplemented",    "Internal",          "Unavailable",
        "DataLoss", "Unauthenticated"
    };
    char service[64];
    const char *dot = strchr(method->name, '.');
    if (dot == NULL)
        return;
    snprintf(service, sizeof(service), "%.*s", (int)(dot - method->name), method->name);
    for (size_t code = 0; code < WEIR_DIRECTORY_CODES; code++) {
        if (code == 0 || method->by_code[code] != 0)
            weir_metrics_count(
                out, "",
                LABELS("grpc_service", service, "grpc_method", dot + 1, "grpc_code", codes[code]),
                method->by_code[code]);
    }
}

static void put_refused(weir_metrics_text *out, const char *method, const uint64_t *by_code)
{
    for (int code = 1; code < WEIR_DIRECTORY_CODES; code++) {
        if (by_code[code] != 0)
            weir_metrics_count(out, "",
                               LABELS("method", method, "reason", weir_grpc_code_name(code)),
                               by_code[code]);
    }
}

/* Methods are those of the tables, reasons those of gRPC: nobody outside can make a series. */
static void put_refused_calls(weir_metrics_text *out, const weir_directory_counts *counts)
{
    weir_metrics_family(
        out, "weir_refused_calls_total", "counter",
        "Calls refused, by method and gRPC's code, or REPLY for a reply that says so.");
    for (size_t i = 0; i < counts->n_methods; i++) {
        const weir_directory_method_counts *method = &counts->methods[i];
        put_refused(out, method->name, method->refused);
        if (method->n_refused_replies != 0)
            weir_metrics_count(out, "", LABELS("method", method->name, "reason", "REPLY"),
                               method->n_refused_replies);
    }
    put_refused(out, WEIR_TALLY_OTHER, counts->refused_elsewhere);
}

static void put_calls(weir_metrics_text *out, const weir_directory_core *core)
{
    weir_rpc_counts rpc = { 0 };
    if (core->server != NULL)
        rpc = weir_rpc_server_counts(core->server);
    weir_metrics_family(out, "weir_grpc_server_handled_total", "counter",
                        "Calls answered, by method and code.");
    for (size_t i = 0; i < core->counts.n_methods; i++)
        put_method(out, &core->counts.methods[i]);
    put_refused_calls(out, &core->counts);
    put_gauge(out, "weir_waits", "Calls that wait for something to happen.", core->waits.n_waits);
    put_gauge(out, "weir_connections", "Open gRPC connections.", rpc.open_connections);
    put_counter(out, "weir_connections_total", "gRPC connections accepted.", rpc.connections);
    put_counter(out, "weir_refused_connections_total", "gRPC connections refused.",
                rpc.refused_connections);
    put_counter(out, "weir_dropped_connections_total",
                "gRPC connections closed for what their peers did.", rpc.dropped);
    put_counter(out, "weir_unauthenticated_total", "gRPC calls without the token.",
                rpc.unauthenticated);
    put_counter(out, "weir_received_bytes_total", "Bytes received by gRPC.", rpc.in_bytes);
    put_counter(out, "weir_sent_bytes_total", "Bytes sent by gRPC.", rpc.out_bytes);
}

static void put_http(weir_metrics_text *out, const weir_http_counts *http)
{
    put_counter(out, "weir_http_requests_total", "Requests by HTTP, this one too.", http->requests);
    put_counter(out, "weir_http_refused_total", "Of these, refused: method, token, certificate.",
                http->refused);
    put_counter(out, "weir_http_cut_off_total", "HTTP connections closed for being slow.",
                http->cut_off);
    put_gauge(out, "weir_http_connections", "Open HTTP connections.", http->open_connections);
}

static void put_store(weir_metrics_text *out, const weir_directory_core *core)
{
    const weir_store_totals totals = weir_store_count(core->store);
    put_gauge(out, "weir_store_bytes", "Memory that the records take.", totals.n_bytes);
    put_gauge(out, "weir_store_shards", "Shards known.", totals.n_shards);
    put_gauge(out, "weir_store_words", "Reports of workers that are kept.", totals.n_words);
    put_counter(out, "weir_log_records_total", "Changes applied.", core->counts.n_records);
    put_gauge(out, "weir_log_up", "1: the log of changes works.",
              core->log->ops->trouble(core->log) == NULL);
    weir_metrics_family(out, "weir_build_info", "gauge", "1, of this version.");
    weir_metrics_count(out, "", LABELS("version", WEIR_VERSION), 1);
}

/* ---- the process -----------------------------------------------------------------------------*/

static uint64_t resident_bytes(void)
{
    unsigned long n_pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file == NULL)
        return 0;
    if (fscanf(file, "%*u %lu", &n_pages) != 1)
        n_pages = 0;
    fclose(file);
    return (uint64_t)n_pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t n_open_fds(void)
{
    uint64_t n = 0;
    DIR *folder = opendir("/proc/self/fd");
    if (folder == NULL)
        return 0;
    for (const struct dirent *entry; (entry = readdir(folder)) != NULL;)
        n += entry->d_name[0] != '.';
    closedir(folder);
    return n - (n != 0); /* without the folder's own */
}

static void put_process(weir_metrics_text *out)
{
    struct rusage usage = { 0 };
    struct rlimit limit = { 0 };
    getrusage(RUSAGE_SELF, &usage);
    getrlimit(RLIMIT_NOFILE, &limit);
    double cpu_s = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    put_gauge(out, "process_resident_memory_bytes", "Memory in use.", resident_bytes());
    put_gauge(out, "process_open_fds", "Open file descriptors.", n_open_fds());
    put_gauge(out, "process_max_fds", "As many as there may be.", limit.rlim_cur);
    weir_metrics_family(out, "process_cpu_seconds_total", "counter", "Processor time used.");
    weir_metrics_sample(out, "", NULL, cpu_s);
}

static void put_start(weir_metrics_text *out, const weir_directory_core *core)
{
    double up_s = (double)(weir_now_ns() - core->begun_ns) / 1e9;
    weir_metrics_family(out, "process_start_time_seconds", "gauge",
                        "When the directory was opened, since 1970.");
    weir_metrics_sample(out, "", NULL, (double)weir_unix_ms() / 1e3 - up_s);
}

weir_status weir_web_metrics(const weir_directory_core *core, const weir_http_counts *http,
                             uint64_t now_ms, weir_arena *arena, weir_metrics_text *out)
{
    weir_fleet_tally *tally;
    weir_status status = weir_fleet_tally_make(core->store, now_ms, arena, &tally);
    if (status != WEIR_OK)
        return status;
    weir_metrics_begin(out, arena);
    put_versions(out, tally);
    put_unreadable(out, tally);
    put_models(out, tally);
    put_refits(out, &core->counts);
    put_calls(out, core);
    put_http(out, http);
    put_store(out, core);
    put_process(out);
    put_start(out, core);
    return out->has_failed ? WEIR_ERR_NO_MEMORY : WEIR_OK;
}
