/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_orchestrate.c - `weir orchestrate`: sees all servers of a run through each version of its
 * trainer. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "flow.h"
#include "weir/orchestrate.h"

const char weir_usage_orchestrate[] =
    "usage: weir orchestrate CONFIG [--steps N] [--keep-going] [--json] [OPTION...]\n"
    "\n"
    "Drives the inference servers of a run configuration: tells them where the trainer is, and "
    "for\n"
    "each version that it broadcasts pauses all, has all install it, looks at what each holds, "
    "and\n"
    "resumes those that hold one whole version. What a server that is slow or dead means says\n"
    "orchestrator.server_policy. Ends on SIGINT or SIGTERM, a version that is under way being "
    "seen\n"
    "through first; a second one ends it at once.\n"
    "\n"
    "  --steps N                   end after N versions (default: never)\n"
    "  --keep-going                after a version that failed, or did not come in time, wait for\n"
    "                              the next one, and try again to join; else it is the end\n"
    "  --trainer-host HOST         where servers find the trainer, for\n"
    "                              orchestrator.weight_broadcast.host\n"
    "  --json                      one JSON object per line, step and "
    "version\n" WEIR_CLI_SECURITY_USAGE;

#define TICK_US 50000u
#define INIT_AGAIN_TICKS 20 /* a second */

enum { OPTION_STEPS = WEIR_FLOW_OWN_OPTION, OPTION_KEEP_GOING, OPTION_JSON, OPTION_HOST };

static const struct option options[] = { { "steps", required_argument, NULL, OPTION_STEPS },
                                         { "keep-going", no_argument, NULL, OPTION_KEEP_GOING },
                                         { "json", no_argument, NULL, OPTION_JSON },
                                         { "trainer-host", required_argument, NULL, OPTION_HOST },
                                         WEIR_CLI_SECURITY_OPTIONS,
                                         WEIR_CLI_OPTIONS_END };

typedef struct orchestrate_job {
    uint64_t n_steps; /* 0: no end */
    bool keeps_going, as_json;
    const char *trainer_host; /* NULL: as the configuration says */
    weir_run_config *config;
    weir_orchestrator *orchestrator;
} orchestrate_job;

static weir_orchestrator *_Atomic open_orchestrator; /* for the signal handler */

static void cancel(void)
{
    weir_orchestrator *waiting = open_orchestrator;
    if (waiting != NULL)
        weir_orchestrator_cancel(waiting);
}

/* ---- events ----------------------------------------------------------------------------------*/

static json_t *version_json(const weir_server_info *server)
{
    return server->has_version ? json_integer((json_int_t)server->version) : json_null();
}

static const char *name_of(weir_server_state state)
{
    static const char *const names[] = { "unknown",  "serving", "paused",
                                         "updating", "broken",  "dropped" };
    return names[state];
}

static void said(void *context, const char *step, const weir_server_info *server)
{
    const orchestrate_job *job = context;
    if (!job->as_json)
        return;
    weir_flow_print_line(json_pack("{s:s, s:s, s:s, s:s, s:o, s:s}", "event", "server", "step",
                                   step, "server", server->url, "state", name_of(server->state),
                                   "version", version_json(server), "error", server->error));
}

static json_t *servers_json(const weir_orchestrator *orchestrator)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < weir_orchestrator_servers(orchestrator); i++) {
        weir_server_info server;
        weir_orchestrator_server(orchestrator, i, &server);
        json_array_append_new(rows, json_pack("{s:s, s:s, s:o, s:s, s:f, s:f, s:f}", "server",
                                              server.url, "state", name_of(server.state), "version",
                                              version_json(&server), "error", server.error,
                                              "pause_s", server.pause_s, "update_s",
                                              server.update_s, "resume_s", server.resume_s));
    }
    return rows;
}

static void print_joined(const orchestrate_job *job)
{
    if (job->as_json)
        weir_flow_print_line(
            json_pack("{s:s, s:o}", "event", "joined", "servers", servers_json(job->orchestrator)));
    else
        printf("%zu servers have joined\n", weir_orchestrator_servers(job->orchestrator));
    fflush(stdout);
}

static void print_step(const orchestrate_job *job, const weir_orchestration_report *report)
{
    if (!job->as_json)
        printf("version %llu: %u of %u servers, %s, paused for %s\n",
               (unsigned long long)report->version, report->n_updated, report->n_servers,
               weir_cli_duration_text(report->seconds).text,
               weir_cli_duration_text(report->paused_s).text);
    else
        weir_flow_print_line(json_pack("{s:s, s:I, s:i, s:i, s:f, s:f, s:o}", "event", "served",
                                       "version", (json_int_t)report->version, "updated",
                                       (int)report->n_updated, "dropped", (int)report->n_dropped,
                                       "seconds", report->seconds, "paused_s", report->paused_s,
                                       "servers", servers_json(job->orchestrator)));
    fflush(stdout);
}

static int print_failure(const orchestrate_job *job)
{
    if (job->as_json)
        weir_flow_print_line(json_pack("{s:s, s:s, s:o}", "event", "failed", "error",
                                       weir_last_error(), "servers",
                                       servers_json(job->orchestrator)));
    return weir_cli_fail();
}

/* ---- the verb --------------------------------------------------------------------------------*/

static int take_step(const orchestrate_job *job)
{
    weir_orchestration_report report;
    weir_status status = weir_orchestrator_step(job->orchestrator, &report);
    if (status == WEIR_ERR_CANCELLED && weir_cli_stopped())
        return WEIR_EXIT_OK;
    if (status != WEIR_OK)
        return print_failure(job);
    print_step(job, &report);
    return WEIR_EXIT_OK;
}

/* Who keeps going waits for servers and trainers that are not there yet, too. */
static int join(const orchestrate_job *job)
{
    while (weir_orchestrator_init(job->orchestrator) != WEIR_OK) {
        int code = print_failure(job);
        if (!job->keeps_going)
            return code;
        for (int n = 0; n < INIT_AGAIN_TICKS && !weir_cli_stopped(); n++)
            usleep(TICK_US);
        if (weir_cli_stopped())
            return WEIR_EXIT_OK;
    }
    print_joined(job);
    return WEIR_EXIT_OK;
}

static int conduct(orchestrate_job *job)
{
    int code = join(job);
    if (code != WEIR_EXIT_OK)
        return code;
    for (uint64_t n = 0; (job->n_steps == 0 || n < job->n_steps) && !weir_cli_stopped();) {
        code = take_step(job);
        n += code == WEIR_EXIT_OK;
        if (code != WEIR_EXIT_OK && !job->keeps_going)
            return code;
    }
    return code;
}

static int run(orchestrate_job *job, const char *path)
{
    if (weir_run_config_open_at(path, job->trainer_host, &job->config) != WEIR_OK)
        return weir_cli_fail();
    weir_orchestrator_options orchestrator = WEIR_ORCHESTRATOR_OPTIONS_INIT;
    orchestrator.config = job->config;
    orchestrator.said = said;
    orchestrator.context = job;
    int code = WEIR_EXIT_OK;
    if (weir_orchestrator_open(&orchestrator, &job->orchestrator) != WEIR_OK)
        code = weir_cli_fail();
    open_orchestrator = job->orchestrator;
    if (code == WEIR_EXIT_OK)
        code = conduct(job);
    weir_cli_on_stop(NULL);
    open_orchestrator = NULL;
    weir_orchestrator_close(job->orchestrator);
    weir_run_config_close(job->config);
    return code;
}

int weir_cmd_orchestrate(int argc, char **argv)
{
    orchestrate_job job = { .n_steps = 0 };
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION ||
            (option == OPTION_STEPS &&
             !weir_cli_number("orchestrate", "--steps", optarg, 1, UINT32_MAX, &job.n_steps)))
            return WEIR_EXIT_USAGE;
        job.keeps_going |= option == OPTION_KEEP_GOING;
        job.as_json |= option == OPTION_JSON;
        if (option == OPTION_HOST)
            job.trainer_host = optarg;
    }
    if (argc - optind != 1)
        return weir_cli_usage_error("orchestrate", "one CONFIG is wanted");
    weir_cli_catch_signals();
    weir_cli_on_stop(cancel);
    return run(&job, argv[optind]);
}
