/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_plan.c - `weir plan`: who would send what to whom, from a config.json and two meshes alone,
 * and how long that would take. Nothing is opened but the config.
 */
#include <stdlib.h>
#ifdef __GLIBC__ /* stdlib.h says */
#include <malloc.h>
#endif

#include "plan_report.h"

const char weir_usage_plan[] =
    "usage: weir plan --config CONFIG_JSON --trainer MESH --replica MESH [OPTION...]\n"
    "       weir plan --family NAME --preset NAME --trainer MESH --replica MESH [OPTION...]\n"
    "\n"
    "Plans one refit from sharded trainer ranks to parallel engines and prints what it comes to:\n"
    "copies, slots, borders, memory, and how evenly they fall on ranks and workers. Borders are\n"
    "what trainer ranks hand each other where a block of scales lies on several: its largest\n"
    "magnitude, or unconverted rows where a conversion needs more than that.\n"
    "\n"
    "  --config FILE      config.json of the engine, or the directory that holds it\n"
    "  --family NAME      with --preset NAME: a model that Weir knows, see `weir families`\n"
    "  --trainer MESH     fsdp=8,ep=4,tp=2,pp=2,hsdp=2: what is left out is 1\n"
    "  --replica MESH     tp=4,ep=8,dp=2,pp=2,replicas=2: ep divides dp*tp\n"
    "  --owners JSON      [0,0,1,1]: the trainer's expert rank of each expert\n"
    "  --experts JSON     [[0,1],[2,3]]: expert ids of each expert rank of an engine\n"
    "  --conversion NAME  auto (default: what the config asks for) or a name of `weir formats`\n"
    "  --layout NAME      the engine's layout (default: the family's first)\n"
    "  --naming NAME      how the trainer keeps experts: hf (default), hf_fused, stacked\n"
    "  --gpus-per-host N  also sum up hosts: N ranks, or N workers, of following numbers each\n"
    "  --window BYTES     as of `weir publish`: ranks keep 2 buffers of half of it, no slots\n"
    "  --simulate RATES   also predict the refit's time, the link that bounds it, and how near it\n"
    "                     comes to that: link_gb_per_s=50,latency_us=5; besides, host_gb_per_s of\n"
    "                     all GPUs of a host, convert_gb_per_s of a rank (read and written),\n"
    "                     window (copies asked for at once), groups (converted while others move)\n"
    "  --worker N         list that worker's copies instead\n"
    "  --rank N           list what that rank publishes, lends and borrows instead\n"
    "  --json             one object, with the figures of every rank and worker\n"
    "\n"
    "Memory of a rank is two slots or the window, two buffers of what it lends, and what it\n"
    "borrows; of a worker its parameters, and in staged mode as much again as it gets.\n";

typedef struct plan_options {
    weir_plan_request request;
    const char *simulate, *worker, *rank;
    uint64_t gpus_per_host;
    bool json;
} plan_options;

enum {
    OPT_CONFIG = 256,
    OPT_FAMILY,
    OPT_PRESET,
    OPT_TRAINER,
    OPT_REPLICA,
    OPT_OWNERS,
    OPT_EXPERTS,
    OPT_CONVERSION,
    OPT_LAYOUT,
    OPT_NAMING,
    OPT_GPUS_PER_HOST,
    OPT_WINDOW,
    OPT_SIMULATE,
    OPT_WORKER,
    OPT_RANK,
    OPT_JSON
};

static const struct option long_options[] = {
    { "config", required_argument, NULL, OPT_CONFIG },
    { "family", required_argument, NULL, OPT_FAMILY },
    { "preset", required_argument, NULL, OPT_PRESET },
    { "trainer", required_argument, NULL, OPT_TRAINER },
    { "replica", required_argument, NULL, OPT_REPLICA },
    { "owners", required_argument, NULL, OPT_OWNERS },
    { "experts", required_argument, NULL, OPT_EXPERTS },
    { "conversion", required_argument, NULL, OPT_CONVERSION },
    { "layout", required_argument, NULL, OPT_LAYOUT },
    { "naming", required_argument, NULL, OPT_NAMING },
    { "gpus-per-host", required_argument, NULL, OPT_GPUS_PER_HOST },
    { "window", required_argument, NULL, OPT_WINDOW },
    { "simulate", required_argument, NULL, OPT_SIMULATE },
    { "worker", required_argument, NULL, OPT_WORKER },
    { "rank", required_argument, NULL, OPT_RANK },
    { "json", no_argument, NULL, OPT_JSON },
    WEIR_CLI_OPTIONS_END
};

/* ---- options ---------------------------------------------------------------------------------*/

static bool read_option(const char *verb, int option, plan_options *options)
{
    const char **texts[] = { [OPT_CONFIG - OPT_CONFIG] = &options->request.config,
                             [OPT_FAMILY - OPT_CONFIG] = &options->request.family,
                             [OPT_PRESET - OPT_CONFIG] = &options->request.preset,
                             [OPT_TRAINER - OPT_CONFIG] = &options->request.trainer,
                             [OPT_REPLICA - OPT_CONFIG] = &options->request.replica,
                             [OPT_OWNERS - OPT_CONFIG] = &options->request.owners,
                             [OPT_EXPERTS - OPT_CONFIG] = &options->request.experts,
                             [OPT_CONVERSION - OPT_CONFIG] = &options->request.conversion,
                             [OPT_LAYOUT - OPT_CONFIG] = &options->request.layout,
                             [OPT_SIMULATE - OPT_CONFIG] = &options->simulate,
                             [OPT_WORKER - OPT_CONFIG] = &options->worker,
                             [OPT_RANK - OPT_CONFIG] = &options->rank };
    if (option == OPT_NAMING)
        return weir_cli_naming(verb, optarg, &options->request.naming);
    if (option == OPT_GPUS_PER_HOST)
        return weir_cli_number(verb, "--gpus-per-host", optarg, 1, WEIR_MESH_MAX_RANKS,
                               &options->gpus_per_host);
    if (option == OPT_WINDOW)
        return weir_cli_byte_count(verb, "--window", optarg, &options->request.window_bytes);
    if (option == OPT_JSON)
        options->json = true;
    else if (option >= OPT_CONFIG && option <= OPT_RANK)
        *texts[option - OPT_CONFIG] = optarg;
    else
        return false; /* the usage error is printed */
    return true;
}

static bool check_options(const char *verb, const plan_options *options)
{
    const weir_plan_request *request = &options->request;
    bool preset = request->family != NULL && request->preset != NULL;
    const char *missing = request->config == NULL && !preset ? "--config CONFIG_JSON"
                          : request->trainer == NULL         ? "--trainer MESH"
                          : request->replica == NULL         ? "--replica MESH"
                                                             : NULL;
    if (missing != NULL)
        weir_cli_usage_error(verb, "%s is missing", missing);
    else if (request->config != NULL && (request->family != NULL || request->preset != NULL))
        weir_cli_usage_error(verb, "takes --config or a preset, not both");
    else if ((options->worker != NULL) + (options->rank != NULL) + (options->simulate != NULL) > 1)
        weir_cli_usage_error(verb, "takes one of --worker, --rank and --simulate");
    else
        return true;
    return false;
}

static bool read_options(int argc, char **argv, plan_options *options)
{
    int option;
    while ((option = weir_cli_option(argc, argv, "", long_options)) != -1) {
        if (!read_option(argv[0], option, options))
            return false;
    }
    if (optind < argc) {
        weir_cli_usage_error(argv[0], "takes no argument, got '%s'", argv[optind]);
        return false;
    }
    return check_options(argv[0], options);
}

static bool read_rates(const char *verb, const plan_options *options, weir_plan_report *report)
{
    report->gpus_per_host = (uint32_t)options->gpus_per_host;
    report->simulated = options->simulate != NULL;
    if (report->simulated && !weir_forecast_read(verb, options->simulate, &report->rates))
        return false;
    if (report->rates.host_gb_per_s == 0 || report->gpus_per_host > 0)
        return true;
    weir_cli_usage_error(verb, "--simulate: host_gb_per_s needs --gpus-per-host N");
    return false;
}

/* ---- running ---------------------------------------------------------------------------------*/

static int list_one(const char *verb, const plan_options *options, const weir_plan_model *model)
{
    uint64_t index;
    if (options->worker != NULL)
        return weir_cli_number(verb, "--worker", options->worker, 0, model->n_workers - 1, &index)
                   ? weir_plan_list_worker(model, (uint32_t)index, options->json)
                   : WEIR_EXIT_USAGE;
    return weir_cli_number(verb, "--rank", options->rank, 0, model->n_ranks - 1, &index)
               ? weir_plan_list_rank(model, (uint32_t)index, options->json)
               : WEIR_EXIT_USAGE;
}

static int report_all(const plan_options *options, weir_plan_report *report)
{
    if (weir_fleet_summarise(report->model.fleet, &report->sum, NULL, NULL, NULL) != WEIR_OK)
        return weir_cli_fail();
    int code = weir_plan_traffic_open(&report->model, &report->traffic);
    if (code == WEIR_EXIT_OK && report->simulated)
        code = weir_forecast_make(&report->model, &report->traffic, &report->rates,
                                  report->gpus_per_host, &report->forecast);
    if (code == WEIR_EXIT_OK)
        code = options->json ? weir_plan_print_json(report) : weir_plan_print_text(report);
    weir_plan_traffic_close(&report->traffic);
    return code;
}

/* Shares of hundreds of ranks are made and freed one after the other: what one gave back is kept
 * for the next one. To fetch it from the kernel anew takes longer than planning. */
static void keep_freed_memory(void)
{
#ifdef __GLIBC__
    (void)mallopt(M_MMAP_MAX, 0);
    (void)mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

int weir_cmd_plan(int argc, char **argv)
{
    plan_options options = { .request = { .conversion = "auto" } };
    weir_plan_report report = { .simulated = false };
    if (!read_options(argc, argv, &options) || !read_rates(argv[0], &options, &report))
        return WEIR_EXIT_USAGE;
    keep_freed_memory();
    int code = weir_plan_model_open(argv[0], &options.request, &report.model);
    if (code == WEIR_EXIT_OK && (options.worker != NULL || options.rank != NULL))
        code = list_one(argv[0], &options, &report.model);
    else if (code == WEIR_EXIT_OK)
        code = report_all(&options, &report);
    weir_plan_model_close(&report.model);
    return code;
}
