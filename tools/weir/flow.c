/* SPDX-License-Identifier: Apache-2.0 */
/* flow.c - options, sources and reports that publish, receive and verify share. */
#include "flow.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "process_memory.h"

static int take_ignore(const char *verb, weir_flow_options *flow)
{
    if (flow->n_ignore == WEIR_FLOW_MAX_IGNORE)
        return weir_cli_usage_error(verb, "--ignore may be given %d times", WEIR_FLOW_MAX_IGNORE);
    flow->ignore[flow->n_ignore++] = optarg;
    return WEIR_EXIT_OK;
}

static int take_number(const char *verb, const char *option, uint64_t most, unsigned scale,
                       unsigned *out)
{
    uint64_t number;
    if (!weir_cli_number(verb, option, optarg, 1, most, &number))
        return WEIR_EXIT_USAGE;
    *out = (unsigned)number * scale;
    return WEIR_EXIT_OK;
}

/* STOP, STOP:VERSION, STOP+ or STOP+:VERSION. */
static int take_drill(const char *verb, const char *option, int signal_number,
                      weir_flow_options *flow)
{
    size_t n = strcspn(optarg, "+:");
    const char *rest = optarg + n;
    for (int stop = 0; stop < WEIR_N_STOPS; stop++) {
        const char *name = weir_stop_name((weir_stop)stop);
        if (strlen(name) != n || strncmp(name, optarg, n) != 0)
            continue;
        flow->drill_signal = signal_number;
        flow->drill_stop = (weir_stop)stop;
        flow->drill_midst = *rest == '+';
        flow->drill_version = WEIR_LATEST;
        rest += flow->drill_midst;
        if (*rest != '\0' && *rest != ':')
            break;
        return *rest == '\0' || weir_cli_number(verb, option, rest + 1, 0, UINT64_MAX - 1,
                                                &flow->drill_version)
                   ? WEIR_EXIT_OK
                   : WEIR_EXIT_USAGE;
    }
    return weir_cli_usage_error(verb, "%s takes a stop's name, got '%s'", option, optarg);
}

static int take_mesh_option(const char *verb, int option, weir_flow_options *flow)
{
    weir_replica_mesh mesh;
    uint64_t worker = flow->worker;
    if (option == 276)
        flow->replica_experts = optarg;
    else if (option == 277 && !weir_cli_number(verb, "--worker", optarg, 0, 65535, &worker))
        return WEIR_EXIT_USAGE;
    flow->worker = (uint32_t)worker;
    if (option != 275)
        return WEIR_EXIT_OK;
    flow->replica_mesh = optarg;
    return weir_replica_mesh_parse(optarg, &mesh) == WEIR_OK
               ? WEIR_EXIT_OK
               : weir_cli_usage_error(verb, "--replica-mesh: %s", weir_last_error());
}

int weir_flow_read_wire(const char *verb, const char *option, const char *text, weir_wire *out)
{
    bool checkpoint = strcmp(text, "checkpoint") == 0;
    if (!checkpoint && strcmp(text, "kernel") != 0)
        return weir_cli_usage_error(verb, "%s takes kernel or checkpoint, got '%s'", option, text);
    *out = checkpoint ? WEIR_WIRE_CHECKPOINT : WEIR_WIRE_KERNEL;
    return WEIR_EXIT_OK;
}

int weir_flow_take_option(const char *verb, int option, weir_flow_options *flow)
{
    const char **const texts[] = { &flow->directory,  &flow->model,
                                   &flow->run,        &flow->name,
                                   &flow->family,     &flow->layout,
                                   &flow->conversion, &flow->config,
                                   &flow->transport,  &flow->transport_directory,
                                   &flow->listen };
    if (option >= 256 && option < 256 + (int)(sizeof(texts) / sizeof(texts[0]))) {
        *texts[option - 256] = optarg;
        return WEIR_EXIT_OK;
    }
    if (option >= 275 && option <= 277)
        return take_mesh_option(verb, option, flow);
    switch (option) {
    case 267:
        return take_ignore(verb, flow);
    case 268:
        return take_number(verb, "--threads", 4096, 1, &flow->n_threads);
    case 269:
        return take_number(verb, "--timeout", 86400, 1000, &flow->timeout_ms);
    case 270:
        return take_number(verb, "--lease", 86400, 1000, &flow->lease_ms);
    case 271:
        flow->keep_masters = true;
        return WEIR_EXIT_OK;
    case 272:
        flow->as_json = true;
        return WEIR_EXIT_OK;
    case 273:
        return take_drill(verb, "--die-at", SIGKILL, flow);
    case 274:
        return take_drill(verb, "--stall-at", SIGSTOP, flow);
    case 278:
        return weir_flow_read_wire(verb, "--wire", optarg, &flow->wire);
    default:
        return WEIR_EXIT_USAGE;
    }
}

/* ---- sources ---------------------------------------------------------------------------------*/

bool weir_flow_source_open(const weir_flow_options *flow, const char *const *paths, size_t n_paths,
                           weir_flow_source *out)
{
    *out = (weir_flow_source){ 0 };
    if (weir_checkpoint_open_many(paths, n_paths, &out->checkpoint) != WEIR_OK) {
        weir_cli_fail();
        return false;
    }
    if (flow->config != NULL) {
        snprintf(out->config, sizeof(out->config), "%s", flow->config);
        return true;
    }
    snprintf(out->config, sizeof(out->config), "%s/config.json",
             weir_checkpoint_directory(out->checkpoint));
    if (access(out->config, R_OK) != 0) {
        weir_cli_note("no config.json beside %s: nobody can say whether a parameter is missing",
                      paths[0]);
        out->config[0] = '\0';
    }
    return true;
}

void weir_flow_source_close(weir_flow_source *source)
{
    weir_checkpoint_close(source->checkpoint);
    source->checkpoint = NULL;
}

/* ---- progress and reports --------------------------------------------------------------------*/

static weir_progress_bar bar;
static weir_stop drawn = WEIR_N_STOPS; /* the stop that the bar is about */

void weir_flow_progress_end(void)
{
    if (drawn != WEIR_N_STOPS)
        weir_progress_bar_end(&bar);
    drawn = WEIR_N_STOPS;
}

/* Once: a process that was halted goes on. */
static void drill(const weir_flow_options *flow, weir_stop stop, uint64_t version,
                  uint64_t done_bytes, uint64_t total_bytes)
{
    static bool done;
    bool there = flow->drill_midst ? total_bytes > 0 && done_bytes > 0 : done_bytes == 0;
    if (done || flow->drill_signal == 0 || flow->drill_stop != stop || !there ||
        (flow->drill_version != WEIR_LATEST && flow->drill_version != version))
        return;
    done = true;
    raise(flow->drill_signal);
}

void weir_flow_progress(void *context, weir_stop stop, uint64_t version, uint64_t done_bytes,
                        uint64_t total_bytes)
{
    const weir_flow_options *flow = context;
    drill(flow, stop, version, done_bytes, total_bytes);
    if (done_bytes == 0)
        weir_flow_progress_end();
    if (total_bytes == 0)
        return;
    if (drawn != stop)
        weir_progress_bar_begin(&bar, weir_stop_name(stop), total_bytes, false);
    drawn = stop;
    weir_progress_bar_update(&bar, done_bytes);
}

static double rate_of(const weir_report *report)
{
    double seconds =
        report->seconds[WEIR_STOP_TRANSFER] + report->seconds[WEIR_STOP_STAGE]; /* one is 0 */
    return seconds > 0 ? (double)report->n_bytes / seconds : 0;
}

/* A trainer's slots are mapped by their readers; who reads has mapped what is not its own. */
static uint64_t memory_of(const char *what)
{
    bool reads = strcmp(what, "installed") == 0;
    weir_process_memory memory = weir_process_memory_now(reads);
    return reads ? memory.alone_bytes : memory.own_bytes;
}

json_t *weir_flow_report_json(const char *what, const weir_report *report)
{
    json_t *seconds = json_object();
    for (int stop = 0; stop < WEIR_N_STOPS; stop++) {
        if (report->seconds[stop] > 0)
            json_object_set_new(seconds, weir_stop_name((weir_stop)stop),
                                json_real(report->seconds[stop]));
    }
    return json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:{s:I, s:I, s:I, s:I}}", "event", what,
        "read_from", report->read_from, "version", (json_int_t)report->version, "tensors",
        (json_int_t)report->n_tensors, "bytes", (json_int_t)report->n_bytes, "memory_bytes",
        (json_int_t)memory_of(what), "waited_seconds", report->waited_seconds, "total_seconds",
        report->total_seconds, "gb_per_s", rate_of(report) * 1e-9, "seconds", seconds, "counters",
        "allocations", (json_int_t)report->counters.allocations, "registrations",
        (json_int_t)report->counters.registrations, "plans", (json_int_t)report->counters.plans,
        "connections", (json_int_t)report->counters.connections);
}

void weir_flow_print_line(json_t *taken)
{
    char *text = taken != NULL ? json_dumps(taken, JSON_COMPACT) : NULL;
    puts(text != NULL ? text : "{}");
    fflush(stdout);
    free(text);
    json_decref(taken);
}

void weir_flow_print_report(const weir_flow_options *flow, const char *what,
                            const weir_report *report)
{
    weir_flow_progress_end();
    if (flow->as_json) {
        weir_flow_print_line(weir_flow_report_json(what, report));
        return;
    }
    printf("%s version %llu: %llu tensors, %s in %s (%s)\n", what,
           (unsigned long long)report->version, (unsigned long long)report->n_tensors,
           weir_cli_bytes_text(report->n_bytes).text,
           weir_cli_duration_text(report->total_seconds).text,
           weir_cli_rate_text(rate_of(report)).text);
    fflush(stdout);
}
