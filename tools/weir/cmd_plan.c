/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_plan.c - `weir plan`: who would send what to whom, from a config.json and two meshes alone.
 * Nothing is opened but the config.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "weir/mesh.h"

const char weir_usage_plan[] =
    "usage: weir plan --config CONFIG_JSON --trainer MESH --replica MESH [OPTION...]\n"
    "       weir plan --family NAME --preset NAME --trainer MESH --replica MESH [OPTION...]\n"
    "\n"
    "Plans one refit from sharded trainer ranks to parallel engines and prints what it comes to:\n"
    "copies, bytes, borders, and how evenly they fall on ranks and workers. Bytes of borders are\n"
    "unconverted rows that trainer ranks hand each other where a block of scales lies on several.\n"
    "\n"
    "  --config FILE      config.json of the engine, or the directory that holds it\n"
    "  --family NAME      with --preset NAME: a model that Weir knows, see `weir families`\n"
    "  --trainer MESH     fsdp=8,ep=4,tp=2,pp=2,hsdp=2: what is left out is 1\n"
    "  --replica MESH     tp=4,ep=8,dp=2,pp=2,replicas=2: ep divides dp*tp\n"
    "  --conversion NAME  auto (default: what the config asks for) or a name of `weir formats`\n"
    "  --layout NAME      the engine's layout (default: the family's first)\n"
    "  --naming NAME      how the trainer keeps experts: hf (default), hf_fused, stacked\n"
    "  --json             one object, with the bytes of every rank and worker\n";

typedef struct plan_options {
    const char *config, *family, *preset, *trainer, *replica, *conversion, *layout;
    weir_naming naming;
    bool json;
} plan_options;

/* What there is to print. */
typedef struct plan_job {
    weir_config *config;
    weir_tensor *sources;
    size_t n_sources;
    weir_mapping *mapping;
    weir_fleet_tensor *tensors;
    size_t n_tensors;
    weir_fleet *fleet;
    weir_fleet_summary sum;
    uint64_t *sent, *bordered, *received;
    double seconds;
} plan_job;

enum {
    OPT_CONFIG = 256,
    OPT_FAMILY,
    OPT_PRESET,
    OPT_TRAINER,
    OPT_REPLICA,
    OPT_CONVERSION,
    OPT_LAYOUT,
    OPT_NAMING,
    OPT_JSON
};

static const struct option long_options[] = { { "config", required_argument, NULL, OPT_CONFIG },
                                              { "family", required_argument, NULL, OPT_FAMILY },
                                              { "preset", required_argument, NULL, OPT_PRESET },
                                              { "trainer", required_argument, NULL, OPT_TRAINER },
                                              { "replica", required_argument, NULL, OPT_REPLICA },
                                              { "conversion", required_argument, NULL,
                                                OPT_CONVERSION },
                                              { "layout", required_argument, NULL, OPT_LAYOUT },
                                              { "naming", required_argument, NULL, OPT_NAMING },
                                              { "json", no_argument, NULL, OPT_JSON },
                                              WEIR_CLI_OPTIONS_END };

static bool read_option(const char *verb, int option, plan_options *options)
{
    switch (option) {
    case OPT_CONFIG:
        options->config = optarg;
        return true;
    case OPT_FAMILY:
        options->family = optarg;
        return true;
    case OPT_PRESET:
        options->preset = optarg;
        return true;
    case OPT_TRAINER:
        options->trainer = optarg;
        return true;
    case OPT_REPLICA:
        options->replica = optarg;
        return true;
    case OPT_CONVERSION:
        options->conversion = optarg;
        return true;
    case OPT_LAYOUT:
        options->layout = optarg;
        return true;
    case OPT_NAMING:
        return weir_cli_naming(verb, optarg, &options->naming);
    case OPT_JSON:
        options->json = true;
        return true;
    default:
        return false; /* the usage error is printed */
    }
}

static bool read_options(int argc, char **argv, plan_options *options)
{
    int option;
    while ((option = weir_cli_option(argc, argv, "", long_options)) != -1) {
        if (!read_option(argv[0], option, options))
            return false;
    }
    bool preset = options->family != NULL && options->preset != NULL;
    const char *missing = options->config == NULL && !preset ? "--config CONFIG_JSON"
                          : options->trainer == NULL         ? "--trainer MESH"
                          : options->replica == NULL         ? "--replica MESH"
                                                             : NULL;
    if (missing != NULL)
        weir_cli_usage_error(argv[0], "%s is missing", missing);
    else if (options->config != NULL && (options->family != NULL || options->preset != NULL))
        weir_cli_usage_error(argv[0], "takes --config or a preset, not both");
    else if (optind < argc)
        weir_cli_usage_error(argv[0], "takes no argument, got '%s'", argv[optind]);
    else
        return true;
    return false;
}

/* ---- planning --------------------------------------------------------------------------------*/

static weir_status open_config(plan_job *job, const plan_options *options)
{
    char *text;
    if (options->config != NULL)
        return weir_config_open(options->config, &job->config);
    weir_status status = weir_family_preset(options->family, options->preset, &text);
    if (status != WEIR_OK)
        return status;
    status = weir_config_parse(text, options->preset, &job->config);
    weir_string_free(text);
    return status;
}

static weir_status open_mapping(plan_job *job, const plan_options *options)
{
    weir_mapping_options mapping = WEIR_MAPPING_OPTIONS_INIT;
    const char *family;
    weir_status status = open_config(job, options);
    if (status == WEIR_OK)
        status = weir_family_of_config(job->config, &family);
    if (status == WEIR_OK)
        status = weir_family_sources(family, job->config, options->naming, &job->sources,
                                     &job->n_sources);
    if (status != WEIR_OK)
        return status;
    mapping.family = family;
    mapping.layout = options->layout;
    mapping.conversion = options->conversion;
    mapping.config = job->config;
    return weir_mapping_open(&mapping, job->sources, job->n_sources, &job->mapping);
}

static weir_status open_fleet(plan_job *job, const weir_trainer_mesh *trainer,
                              const weir_replica_mesh *replica)
{
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    double begun = weir_cli_now();
    weir_status status = weir_fleet_tensors_of(job->mapping, &job->tensors, &job->n_tensors);
    args.tensors = job->tensors;
    args.n_tensors = job->n_tensors;
    args.trainer = trainer;
    args.replica = replica;
    if (status == WEIR_OK)
        status = weir_fleet_open(&args, &job->fleet);
    job->seconds = weir_cli_now() - begun;
    return status;
}

/* Returns an exit code. */
static int run(plan_job *job, const plan_options *options, const char *verb)
{
    weir_trainer_mesh trainer;
    weir_replica_mesh replica;
    if (weir_trainer_mesh_parse(options->trainer, &trainer) != WEIR_OK ||
        weir_replica_mesh_parse(options->replica, &replica) != WEIR_OK)
        return weir_cli_usage_error(verb, "%s", weir_last_error());
    if (open_mapping(job, options) != WEIR_OK || open_fleet(job, &trainer, &replica) != WEIR_OK)
        return weir_cli_fail();
    job->sent = calloc(weir_fleet_ranks(job->fleet), sizeof(uint64_t));
    job->bordered = calloc(weir_fleet_ranks(job->fleet), sizeof(uint64_t));
    job->received = calloc(weir_fleet_workers(job->fleet), sizeof(uint64_t));
    if (job->sent == NULL || job->bordered == NULL || job->received == NULL)
        return weir_cli_error("out of memory");
    if (weir_fleet_summarise(job->fleet, &job->sum, job->sent, job->bordered, job->received) !=
        WEIR_OK)
        return weir_cli_fail();
    return WEIR_EXIT_OK;
}

static void job_close(plan_job *job)
{
    free(job->sent);
    free(job->bordered);
    free(job->received);
    weir_fleet_close(job->fleet);
    weir_fleet_tensors_free(job->tensors);
    weir_mapping_close(job->mapping);
    weir_family_sources_free(job->sources);
    weir_config_close(job->config);
}

/* ---- printing --------------------------------------------------------------------------------*/

static json_t *numbers_json(const uint64_t *numbers, uint32_t n)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer((json_int_t)numbers[i]));
    return list;
}

static int print_json(const plan_job *job)
{
    const weir_fleet_summary *sum = &job->sum;
    uint32_t n_ranks = weir_fleet_ranks(job->fleet), n_workers = weir_fleet_workers(job->fleet);
    return weir_cli_print_json(
        json_pack("{s:s, s:I, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:o, s:o, s:o}",
                  "conversion", weir_mapping_conversion(job->mapping)->name, "tensors",
                  (json_int_t)job->n_tensors, "ranks", (int)n_ranks, "workers", (int)n_workers,
                  "copies", (json_int_t)sum->n_copies, "bytes", (json_int_t)sum->bytes,
                  "largest_copy_bytes", (json_int_t)sum->largest_copy_bytes, "border_pieces",
                  (json_int_t)sum->n_border_pieces, "border_bytes", (json_int_t)sum->border_bytes,
                  "plan_rules", (json_int_t)sum->n_rules, "plan_bytes", (json_int_t)sum->plan_bytes,
                  "plan_seconds", job->seconds, "rank_bytes_sent", numbers_json(job->sent, n_ranks),
                  "rank_bytes_to_ranks", numbers_json(job->bordered, n_ranks), "worker_bytes",
                  numbers_json(job->received, n_workers)));
}

static void print_spread(const char *label, const uint64_t *numbers, uint32_t n)
{
    uint64_t least = UINT64_MAX, most = 0;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        least = numbers[i] < least ? numbers[i] : least;
        most = numbers[i] > most ? numbers[i] : most;
        sum += (double)numbers[i];
    }
    printf("%-11s %s to %s", label, weir_cli_bytes_text(least).text,
           weir_cli_bytes_text(most).text);
    if (sum > 0)
        printf(", most is %.2f of the mean", (double)most * n / sum);
    putchar('\n');
}

static void print_text(const plan_job *job)
{
    const weir_fleet_summary *sum = &job->sum;
    double mean = sum->n_copies > 0 ? (double)sum->bytes / (double)sum->n_copies : 0;
    printf("conversion  %s, %zu tensors\n", weir_mapping_conversion(job->mapping)->name,
           job->n_tensors);
    printf("from, to    %u trainer ranks, %u workers\n", weir_fleet_ranks(job->fleet),
           weir_fleet_workers(job->fleet));
    printf("copies      %llu of %s, ", (unsigned long long)sum->n_copies,
           weir_cli_bytes_text(sum->bytes).text);
    printf("%s in the mean, %s the largest\n", weir_cli_bytes_text((uint64_t)mean).text,
           weir_cli_bytes_text(sum->largest_copy_bytes).text);
    printf("borders     %llu pieces, %s between trainer ranks\n",
           (unsigned long long)sum->n_border_pieces, weir_cli_bytes_text(sum->border_bytes).text);
    print_spread("rank sends", job->sent, weir_fleet_ranks(job->fleet));
    print_spread("worker gets", job->received, weir_fleet_workers(job->fleet));
    printf("plan        %llu rules, %s, made in %.1f ms\n", (unsigned long long)sum->n_rules,
           weir_cli_bytes_text(sum->plan_bytes).text, job->seconds * 1e3);
}

int weir_cmd_plan(int argc, char **argv)
{
    plan_options options = { .conversion = "auto" };
    plan_job job = { 0 };
    if (!read_options(argc, argv, &options))
        return WEIR_EXIT_USAGE;
    int code = run(&job, &options, argv[0]);
    if (code == WEIR_EXIT_OK && options.json)
        code = print_json(&job);
    else if (code == WEIR_EXIT_OK)
        print_text(&job);
    job_close(&job);
    return code;
}
