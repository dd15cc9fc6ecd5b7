/* SPDX-License-Identifier: Apache-2.0 */
/* bench_refit_replica.c - one replica's process of `weir bench refit`. */
#include <stdio.h>
#include <string.h>

#include "bench_refit.h"
#include "flow.h"
#include "weir/cuda.h"

static weir_replica *_Atomic open_replica; /* for the signal handler */

static void cancel(void)
{
    weir_replica *waiting = open_replica;
    if (waiting != NULL)
        weir_replica_cancel(waiting);
}

static weir_status open_one(const weir_bench_refit *bench, const char *device, weir_replica **out)
{
    weir_replica_options options = WEIR_REPLICA_OPTIONS_INIT;
    options.directory = bench->directory;
    options.model = "bench";
    options.name = bench->name;
    options.family = bench->family;
    options.layout = bench->layout;
    options.conversion = bench->conversion;
    options.config = bench->config;
    options.install = bench->install != NULL && strcmp(bench->install, "staged") == 0
                          ? WEIR_INSTALL_STAGED
                          : WEIR_INSTALL_DIRECT;
    options.n_threads = (unsigned)bench->n_threads;
    options.timeout_ms = (unsigned)bench->timeout_s * 1000;
    options.window_bytes = bench->window_bytes;
    options.device = device;
    options.wire = weir_bench_wire(bench);
    weir_status status = weir_replica_open(&options, out);
    if (status != WEIR_OK)
        return status;
    open_replica = *out;
    return weir_replica_allocate(*out);
}

static uint64_t parameter_bytes(const weir_replica *replica)
{
    size_t n;
    uint64_t total = 0, n_bytes;
    const weir_tensor *live = weir_replica_parameters(replica, &n);
    for (size_t i = 0; i < n; i++) {
        if (weir_tensor_bytes(live[i].dtype, &live[i].shape, &n_bytes) == WEIR_OK)
            total += n_bytes;
    }
    return total;
}

/* How much of the GPU is left; 0 in host memory. The context is there after the first question. */
static bool memory_left(weir_bench_place place, uint64_t *out)
{
    *out = 0;
    return !place.cuda || weir_cuda_memory_left(place.device, out) == WEIR_OK ||
           (weir_cli_fail(), false);
}

static int begin(const weir_bench_refit *bench, weir_replica **out)
{
    weir_bench_place place = bench->places[0];
    char device[24];
    uint64_t before, after;
    snprintf(device, sizeof(device), "cuda:%u", place.device);
    if (!memory_left(place, &before) || !memory_left(place, &before))
        return WEIR_EXIT_FAILED;
    if (open_one(bench, place.cuda ? device : NULL, out) != WEIR_OK)
        return weir_cli_fail();
    if (!memory_left(place, &after))
        return WEIR_EXIT_FAILED;
    uint64_t n_bytes = parameter_bytes(*out), taken = before > after ? before - after : 0;
    weir_bench_refit_say(json_pack("{s:s, s:I, s:I}", "event", "ready", "bytes",
                                   (json_int_t)n_bytes, "extra_bytes",
                                   (json_int_t)(taken > n_bytes ? taken - n_bytes : 0)));
    return WEIR_EXIT_OK;
}

/* One version. The wait for the first may take longer than a single one is allowed to. */
static int install(weir_replica *replica)
{
    weir_report report;
    weir_status status;
    do {
        status = weir_replica_install(replica, WEIR_LATEST, &report);
    } while (status == WEIR_ERR_TIMED_OUT && report.total_seconds < report.waited_seconds &&
             !weir_cli_stopped());
    if (status != WEIR_OK)
        return weir_cli_fail();
    weir_bench_refit_say(weir_flow_report_json("installed", &report));
    return WEIR_EXIT_OK;
}

static int check(const weir_bench_refit *bench, const weir_replica *replica)
{
    weir_bench_checked checked;
    if (!weir_bench_refit_check(bench, replica, weir_replica_version(replica), &checked))
        return WEIR_EXIT_FAILED;
    weir_bench_refit_say(
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:s}", "event", "checked", "entries",
                  (json_int_t)checked.n_entries, "all_entries", (json_int_t)checked.n_all_entries,
                  "bytes", (json_int_t)checked.n_bytes, "different",
                  (json_int_t)checked.n_different, "first_difference", checked.first_difference));
    return WEIR_EXIT_OK;
}

int weir_bench_refit_replica(const weir_bench_refit *bench)
{
    weir_replica *replica = NULL;
    char line[64];
    weir_cli_on_stop(cancel);
    int code = begin(bench, &replica);
    for (uint64_t i = 0; i < bench->n_versions && code == WEIR_EXIT_OK; i++)
        code = install(replica);
    while (code == WEIR_EXIT_OK && fgets(line, sizeof(line), stdin) != NULL)
        code = strcmp(line, "check\n") == 0
                   ? check(bench, replica)
                   : weir_cli_error("%s: '%s' is no word for it", bench->name, line);
    weir_cli_on_stop(NULL);
    open_replica = NULL;
    weir_replica_close(replica);
    return code;
}
