/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_demo.c - `weir demo`: the main job on this machine, and what it came to.
 *
 * A directory, trainer ranks and replicas as processes, two of each or as two meshes say; every
 * version is published, installed and verified. How the processes are driven stands in demo_run.c.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "demo.h"
#include "median.h"
#include "memory_limit.h"

const char weir_usage_demo[] =
    "usage: weir demo [OPTION...]\n"
    "\n"
    "Starts a directory, 2 trainer ranks and 2 replicas as processes, publishes and installs N\n"
    "versions of a checkpoint, verifies every parameter of every replica against an independent\n"
    "conversion, and prints what each version took.\n"
    "\n"
    "  --trainer MESH          sharded ranks instead: fsdp=2,ep=2, see `weir plan`\n"
    "  --replica MESH          parallel engines instead: tp=2,replicas=2\n"
    "  --experts JSON          [[0,1],[2,3]]: expert ids of each expert rank of an engine\n"
    "  --owners JSON           [0,0,1,1]: the trainer's expert rank of each expert\n"
    "  --model DIR             a checkpoint in Hugging Face form (default: a synthesised one);\n"
    "                          later versions are made from it by small perturbations\n"
    "  --versions N            default: 5; both slots are touched for the first time by 1 and 2\n"
    "  --family NAME           default: glm_moe_dsa, or by the checkpoint's config.json\n"
    "  --preset NAME           size of the synthesised checkpoint (default: demo)\n"
    "  --naming NAME           how it names experts: hf (default), hf_fused, stacked\n"
    "  --layout NAME           engine layout of the family\n"
    "  --conversion NAME|auto  default: fp8_128x128; auto: by config.json\n"
    "  --mode MODE             what travels: kernel (default), bytes as kernels read them, or\n"
    "                          checkpoint, bf16 that each worker fuses, cuts and converts\n"
    "  --install staged|direct how replicas install (default: staged)\n"
    "  --window BYTES          versions pass group by group through so much memory of each "
    "trainer\n"
    "                          rank, which keeps none whole (default then: --trainer fsdp=2)\n"
    "  --transport NAME        see `weir info` (default: the first available)\n"
    "  --device host|cuda:N    where weights and parameters lie (default: host)\n"
    "  --work-dir DIR          where checkpoints are made (default: a temporary directory)\n"
    "  --seed N                of the synthesised weights\n"
    "  --keep                  leave the checkpoints behind, step-1 and so "
    "on\n" WEIR_CLI_SECURITY_USAGE "  --json                  print one object\n";

enum {
    OPTION_MODEL = 256,
    OPTION_VERSIONS,
    OPTION_FAMILY,
    OPTION_PRESET,
    OPTION_LAYOUT,
    OPTION_CONVERSION,
    OPTION_INSTALL,
    OPTION_TRANSPORT,
    OPTION_WORK_DIR,
    OPTION_SEED,
    OPTION_KEEP,
    OPTION_JSON,
    OPTION_TRAINER,
    OPTION_REPLICA,
    OPTION_EXPERTS,
    OPTION_OWNERS,
    OPTION_NAMING,
    OPTION_DEVICE,
    OPTION_WINDOW,
    OPTION_MODE
};

static const struct option options[] = { WEIR_CLI_SECURITY_OPTIONS,
                                         { "model", required_argument, NULL, OPTION_MODEL },
                                         { "versions", required_argument, NULL, OPTION_VERSIONS },
                                         { "family", required_argument, NULL, OPTION_FAMILY },
                                         { "preset", required_argument, NULL, OPTION_PRESET },
                                         { "layout", required_argument, NULL, OPTION_LAYOUT },
                                         { "conversion", required_argument, NULL,
                                           OPTION_CONVERSION },
                                         { "install", required_argument, NULL, OPTION_INSTALL },
                                         { "transport", required_argument, NULL, OPTION_TRANSPORT },
                                         { "work-dir", required_argument, NULL, OPTION_WORK_DIR },
                                         { "seed", required_argument, NULL, OPTION_SEED },
                                         { "keep", no_argument, NULL, OPTION_KEEP },
                                         { "json", no_argument, NULL, OPTION_JSON },
                                         { "trainer", required_argument, NULL, OPTION_TRAINER },
                                         { "replica", required_argument, NULL, OPTION_REPLICA },
                                         { "experts", required_argument, NULL, OPTION_EXPERTS },
                                         { "owners", required_argument, NULL, OPTION_OWNERS },
                                         { "naming", required_argument, NULL, OPTION_NAMING },
                                         { "device", required_argument, NULL, OPTION_DEVICE },
                                         { "window", required_argument, NULL, OPTION_WINDOW },
                                         { "mode", required_argument, NULL, OPTION_MODE },
                                         WEIR_CLI_OPTIONS_END };

static int take_option(int option, weir_demo_options *demo)
{
    const char **const texts[] = { &demo->model_dir,
                                   NULL,
                                   &demo->family,
                                   &demo->preset,
                                   &demo->layout,
                                   &demo->conversion,
                                   &demo->install,
                                   &demo->transport,
                                   &demo->work_dir,
                                   NULL,
                                   NULL,
                                   NULL,
                                   &demo->trainer_mesh,
                                   &demo->replica_mesh,
                                   &demo->experts,
                                   &demo->owners,
                                   &demo->naming,
                                   &demo->device,
                                   &demo->window,
                                   &demo->mode };
    uint64_t window_bytes;
    if (option == OPTION_VERSIONS)
        return weir_cli_number("demo", "--versions", optarg, 1, WEIR_DEMO_MAX_VERSIONS,
                               &demo->n_versions)
                   ? WEIR_EXIT_OK
                   : WEIR_EXIT_USAGE;
    if (option == OPTION_SEED)
        return weir_cli_number("demo", "--seed", optarg, 0, UINT64_MAX, &demo->seed)
                   ? WEIR_EXIT_OK
                   : WEIR_EXIT_USAGE;
    if (option == OPTION_WINDOW && !weir_cli_byte_count("demo", "--window", optarg, &window_bytes))
        return WEIR_EXIT_USAGE;
    if (option == OPTION_KEEP)
        demo->keep = true;
    else if (option == OPTION_JSON)
        demo->as_json = true;
    else
        *texts[option - OPTION_MODEL] = optarg;
    return WEIR_EXIT_OK;
}

/* ---- results ---------------------------------------------------------------------------------*/

/* The median over the versions of a figure that `pick` takes from one. */
static double median_of(const weir_demo *demo, double (*pick)(const weir_demo_version *))
{
    double values[WEIR_DEMO_MAX_VERSIONS];
    for (uint64_t i = 0; i < demo->n_done; i++)
        values[i] = pick(&demo->versions[i]);
    return weir_median(values, demo->n_done);
}

static double pick_refit(const weir_demo_version *version)
{
    return version->refit_seconds;
}

static double pick_rate(const weir_demo_version *version)
{
    return version->transfer_gb_per_s;
}

static bool all_equal(const weir_demo *demo)
{
    bool verified = true;
    for (uint64_t i = 0; i < demo->n_done; i++)
        verified &= demo->versions[i].verified;
    return verified;
}

static bool all_verified(const weir_demo *demo)
{
    return demo->n_done == demo->options->n_versions && all_equal(demo);
}

static json_t *seconds_json(const weir_demo_version *version)
{
    json_t *seconds = json_object();
    for (int stop = 0; stop < WEIR_N_STOPS; stop++)
        json_object_set_new(seconds, weir_stop_name((weir_stop)stop),
                            json_real(version->seconds[stop]));
    return seconds;
}

/* Of all versions; what a process takes it keeps. */
static uint64_t most_memory(const weir_demo *demo, bool trainers)
{
    uint64_t most_bytes = 0;
    for (uint64_t i = 0; i < demo->n_done; i++) {
        const weir_demo_version *version = &demo->versions[i];
        uint64_t n_bytes = trainers ? version->trainer_memory_bytes : version->worker_memory_bytes;
        most_bytes = n_bytes > most_bytes ? n_bytes : most_bytes;
    }
    return most_bytes;
}

static json_t *result_json(const weir_demo *demo)
{
    json_t *refits = json_array(), *stops = json_array();
    for (uint64_t i = 0; i < demo->n_done; i++) {
        json_array_append_new(refits, json_real(demo->versions[i].refit_seconds));
        json_array_append_new(stops, seconds_json(&demo->versions[i]));
    }
    return json_pack(
        "{s:b, s:s, s:I, s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:f, s:f, s:f}",
        "verified", all_verified(demo), "mode", demo->options->mode, "versions",
        (json_int_t)demo->n_done, "trainer_ranks", demo->n_trainers, "replicas", demo->n_replicas,
        "workers", demo->n_workers, "bytes_per_version", (json_int_t)demo->versions[0].n_bytes,
        "bytes_of_all_workers", (json_int_t)demo->versions[0].total_bytes, "parameters_compared",
        (json_int_t)demo->versions[0].n_parameters, "trainer_memory_bytes",
        (json_int_t)most_memory(demo, true), "worker_memory_bytes",
        (json_int_t)most_memory(demo, false), "refit_seconds", refits, "stop_seconds", stops,
        "gb_per_s", median_of(demo, pick_rate), "limit_gb_per_s", demo->limit_gb_per_s,
        "fraction_of_limit",
        demo->limit_gb_per_s > 0 ? median_of(demo, pick_rate) / demo->limit_gb_per_s : 0.0);
}

static void print_head(void)
{
    printf("\n%-8s %10s", "version", "bytes");
    for (int stop = WEIR_STOP_STAGE; stop < WEIR_N_STOPS; stop++)
        printf(" %9s",
               stop == WEIR_STOP_POSTPROCESS ? "postproc." : weir_stop_name((weir_stop)stop));
    printf(" %9s %8s  %s\n", "refit", "GB/s", "verified");
}

static void print_version(const weir_demo_version *version)
{
    printf("%-8llu %10s", (unsigned long long)version->version,
           weir_cli_bytes_text(version->n_bytes).text);
    for (int stop = WEIR_STOP_STAGE; stop < WEIR_N_STOPS; stop++)
        printf(" %7.1fms", version->seconds[stop] * 1e3);
    printf(" %7.1fms %8.2f  %s\n", version->refit_seconds * 1e3, version->transfer_gb_per_s,
           version->verified ? "yes" : "NO");
    fflush(stdout);
}

static void print_summary(const weir_demo *demo)
{
    const weir_demo_version *last = &demo->versions[demo->n_done - 1];
    double rate = median_of(demo, pick_rate);
    printf("\n%llu of %llu versions, each %s in all to %d replicas (%d workers) from %d trainer "
           "ranks; %llu parameters compared byte for byte per version, %s\n",
           (unsigned long long)demo->n_done, (unsigned long long)demo->options->n_versions,
           weir_cli_bytes_text(last->total_bytes).text, demo->n_replicas, demo->n_workers,
           demo->n_trainers, (unsigned long long)last->n_parameters,
           all_equal(demo) ? "all equal" : "NOT all equal");
    printf("median refit %s; transfer %.2f GB/s over all workers",
           weir_cli_duration_text(median_of(demo, pick_refit)).text, rate);
    if (demo->limit_gb_per_s > 0)
        printf(", %.0f %% of what all cores can copy (%.2f GB/s, same run)",
               100 * rate / demo->limit_gb_per_s, demo->limit_gb_per_s);
    printf("\nmode %s: %s to the largest worker; memory of the largest trainer rank %s",
           demo->options->mode, weir_cli_bytes_text(last->n_bytes).text,
           weir_cli_bytes_text(most_memory(demo, true)).text);
    printf(", of the largest worker %s", weir_cli_bytes_text(most_memory(demo, false)).text);
    printf("\nlast refit: %llu allocations, %llu registrations, %llu plans, %llu connections "
           "on the replicas\n",
           (unsigned long long)last->counters.allocations,
           (unsigned long long)last->counters.registrations,
           (unsigned long long)last->counters.plans,
           (unsigned long long)last->counters.connections);
}

/* ---- the run ---------------------------------------------------------------------------------*/

static bool run(weir_demo *demo)
{
    const weir_demo_options *wanted = demo->options;
    if (!wanted->as_json)
        printf("weir %s: a directory, %d trainer ranks (%s), %d replicas (%s); %s, conversion %s\n",
               weir_version(), demo->n_trainers,
               wanted->trainer_mesh != NULL ? wanted->trainer_mesh : "each has the whole model",
               demo->n_replicas,
               wanted->replica_mesh != NULL ? wanted->replica_mesh : "of one worker",
               wanted->model_dir != NULL ? wanted->model_dir : wanted->family,
               wanted->conversion != NULL ? wanted->conversion : "auto");
    fflush(stdout);
    if (!weir_demo_begin(demo))
        return false;
    if (!wanted->as_json)
        print_head();
    for (uint64_t version = 1; version <= wanted->n_versions; version++) {
        if (weir_cli_stopped() || !weir_demo_step(demo, version))
            return false;
        if (!wanted->as_json)
            print_version(&demo->versions[version - 1]);
    }
    if (wanted->device == NULL || strncmp(wanted->device, "cuda", 4) != 0)
        demo->limit_gb_per_s = weir_memory_copy_gb_per_s();
    return true;
}

/* How many processes the meshes come to. */
static int count_processes(weir_demo_options *wanted, weir_demo *demo)
{
    weir_trainer_mesh trainer;
    weir_replica_mesh replica;
    demo->n_trainers = demo->n_replicas = demo->n_workers = 2;
    if ((wanted->replica_mesh != NULL || wanted->window != NULL) && wanted->trainer_mesh == NULL)
        wanted->trainer_mesh = "fsdp=2";
    if (wanted->trainer_mesh != NULL) {
        if (weir_trainer_mesh_parse(wanted->trainer_mesh, &trainer) != WEIR_OK)
            return weir_cli_usage_error("demo", "--trainer: %s", weir_last_error());
        demo->n_trainers = (int)weir_trainer_mesh_ranks(&trainer);
    }
    if (wanted->replica_mesh != NULL) {
        if (weir_replica_mesh_parse(wanted->replica_mesh, &replica) != WEIR_OK)
            return weir_cli_usage_error("demo", "--replica: %s", weir_last_error());
        demo->n_replicas = (int)replica.replicas;
        demo->n_workers = (int)weir_replica_mesh_workers(&replica);
        snprintf(demo->engine_mesh, sizeof(demo->engine_mesh), "tp=%u,ep=%u,dp=%u,pp=%u,pad=%u",
                 replica.tp, replica.ep, replica.dp, replica.pp,
                 replica.vocabulary_pad > 0 ? replica.vocabulary_pad : 64);
    }
    if (demo->n_trainers > WEIR_DEMO_MAX_PROCESSES || demo->n_workers > WEIR_DEMO_MAX_PROCESSES)
        return weir_cli_usage_error("demo", "%d trainer ranks and %d workers: at most %d each",
                                    demo->n_trainers, demo->n_workers, WEIR_DEMO_MAX_PROCESSES);
    return WEIR_EXIT_OK;
}

int weir_cmd_demo(int argc, char **argv)
{
    weir_demo_options wanted = { .n_versions = 5, .seed = 1, .mode = "kernel" };
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        int code = option == WEIR_CLI_BAD_OPTION ? WEIR_EXIT_USAGE : take_option(option, &wanted);
        if (code != WEIR_EXIT_OK)
            return code;
    }
    if (optind < argc)
        return weir_cli_usage_error("demo", "'%s' is not wanted", argv[optind]);
    if (wanted.install != NULL && strcmp(wanted.install, "staged") != 0 &&
        strcmp(wanted.install, "direct") != 0)
        return weir_cli_usage_error("demo", "--install takes staged or direct, got '%s'",
                                    wanted.install);
    if (strcmp(wanted.mode, "kernel") != 0 && strcmp(wanted.mode, "checkpoint") != 0)
        return weir_cli_usage_error("demo", "--mode takes kernel or checkpoint, got '%s'",
                                    wanted.mode);
    if (wanted.model_dir == NULL && wanted.family == NULL)
        wanted.family = "glm_moe_dsa";
    if (wanted.preset == NULL)
        wanted.preset = "demo";
    if (wanted.conversion == NULL)
        wanted.conversion = "fp8_128x128";
    weir_demo *demo = calloc(1, sizeof(*demo));
    weir_demo_version *versions = calloc(wanted.n_versions, sizeof(*versions));
    if (demo == NULL || versions == NULL) {
        free(demo), free(versions);
        return weir_cli_error("out of memory");
    }
    demo->options = &wanted;
    demo->versions = versions;
    int code = count_processes(&wanted, demo);
    if (code != WEIR_EXIT_OK) {
        free(demo), free(versions);
        return code;
    }
    weir_cli_catch_signals();
    signal(SIGPIPE, SIG_IGN); /* a child that is gone is an error with its name */
    bool good = run(demo);
    weir_demo_end(demo);
    if (wanted.as_json && weir_cli_print_json(result_json(demo)) != WEIR_EXIT_OK)
        good = false;
    if (!wanted.as_json && demo->n_done > 0)
        print_summary(demo);
    free(versions);
    free(demo);
    return good ? WEIR_EXIT_OK : WEIR_EXIT_FAILED;
}
