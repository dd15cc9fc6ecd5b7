/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench_refit.c - `weir bench refit`: whole refits from a trainer's memory into replicas', on
 * GPUs or hosts, as processes, with the limit of the same run.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_refit.h"
#include "flow.h"

const char weir_usage_bench_refit[] =
    "usage: weir bench refit --gpus TRAINER:REPLICA[,REPLICA...] [OPTION...]\n"
    "\n"
    "Starts a trainer that holds all weights of a model in a GPU's memory and a replica for each\n"
    "further GPU, refits version after version, other weights each time, and prints what it took\n"
    "from publishing until all had acknowledged, beside the limit of the same run.\n"
    "\n"
    "  --gpus LIST             as in 0:1 or 0:1,2,3; a GPU may be listed again, and cpu for host\n"
    "                          memory, as in cpu:cpu\n"
    "  --family NAME           default: glm_moe_dsa\n"
    "  --preset NAME           size of the model, as in glm-dsa-31b (default: demo)\n"
    "  --layout NAME           engine layout of the family\n"
    "  --conversion NAME       default: fp8_128x128\n"
    "  --naming NAME           of the trainer's tensors: hf (default), hf_fused or stacked\n"
    "  --mode MODE             what travels: kernel (default), checkpoint, or both, one after the\n"
    "                          other, and what they came to side by side\n"
    "  --install direct|staged default: direct\n"
    "  --delivery push|pull    default: push from GPUs, pull from host memory\n"
    "  --transport NAME        see `weir info`; cuda_ipc or nccl for GPUs\n"
    "  --versions N            default: 7; the first one counts in no median\n"
    "  --rounds N              the same without a line each: fails if memory grows after the 10th\n"
    "  --check N|all|none      entries of the last version to compare with an independent\n"
    "                          conversion (default: all up to 4 GiB of weights, else 64)\n"
    "  --scan-first            look for what is not finite before the first byte is sent\n"
    "  --window BYTES          memory that bytes pass through where they cannot land directly\n"
    "  --seed N                of the weights\n"
    "  --threads N             default: one per core\n"
    "  --timeout SECONDS       bound of every wait (default: 60)\n" WEIR_CLI_SECURITY_USAGE
    "  --json                  print one object\n";

enum {
    OPTION_GPUS = 256,
    OPTION_FAMILY,
    OPTION_PRESET,
    OPTION_LAYOUT,
    OPTION_CONVERSION,
    OPTION_NAMING,
    OPTION_INSTALL,
    OPTION_DELIVERY,
    OPTION_TRANSPORT,
    OPTION_VERSIONS,
    OPTION_ROUNDS,
    OPTION_CHECK,
    OPTION_SCAN_FIRST,
    OPTION_WINDOW,
    OPTION_SEED,
    OPTION_THREADS,
    OPTION_TIMEOUT,
    OPTION_JSON,
    OPTION_MODE,
    OPTION_ROLE, /* these are the workers': not in the usage */
    OPTION_NAME,
    OPTION_DIRECTORY,
    OPTION_CONFIG
};

static const struct option options[] = { { "gpus", required_argument, NULL, OPTION_GPUS },
                                         { "family", required_argument, NULL, OPTION_FAMILY },
                                         { "preset", required_argument, NULL, OPTION_PRESET },
                                         { "layout", required_argument, NULL, OPTION_LAYOUT },
                                         { "conversion", required_argument, NULL,
                                           OPTION_CONVERSION },
                                         { "naming", required_argument, NULL, OPTION_NAMING },
                                         { "install", required_argument, NULL, OPTION_INSTALL },
                                         { "delivery", required_argument, NULL, OPTION_DELIVERY },
                                         { "transport", required_argument, NULL, OPTION_TRANSPORT },
                                         { "versions", required_argument, NULL, OPTION_VERSIONS },
                                         { "rounds", required_argument, NULL, OPTION_ROUNDS },
                                         { "check", required_argument, NULL, OPTION_CHECK },
                                         { "scan-first", no_argument, NULL, OPTION_SCAN_FIRST },
                                         { "window", required_argument, NULL, OPTION_WINDOW },
                                         { "seed", required_argument, NULL, OPTION_SEED },
                                         { "threads", required_argument, NULL, OPTION_THREADS },
                                         { "timeout", required_argument, NULL, OPTION_TIMEOUT },
                                         { "json", no_argument, NULL, OPTION_JSON },
                                         { "mode", required_argument, NULL, OPTION_MODE },
                                         { "role", required_argument, NULL, OPTION_ROLE },
                                         { "name", required_argument, NULL, OPTION_NAME },
                                         { "directory", required_argument, NULL, OPTION_DIRECTORY },
                                         { "config", required_argument, NULL, OPTION_CONFIG },
                                         WEIR_CLI_SECURITY_OPTIONS,
                                         WEIR_CLI_OPTIONS_END };

/* ---- the command line ------------------------------------------------------------------------*/

/* TRAINER:REPLICA,REPLICA...; of a replica's own command line its place alone. */
static bool take_places(weir_bench_refit *bench, const char *text)
{
    const char *at = text;
    bench->n_workers = 0;
    for (;;) {
        char *end = (char *)(uintptr_t)at + 3;
        weir_bench_place place = { .cuda = strncmp(at, "cpu", 3) != 0 };
        if (place.cuda) {
            unsigned long device = strtoul(at, &end, 10);
            if (*at < '0' || *at > '9' || device > 1023)
                break;
            place.device = (unsigned)device;
        }
        if (bench->n_workers == WEIR_BENCH_MAX_WORKERS)
            break;
        bench->places[bench->n_workers++] = place;
        if (*end == '\0')
            return true;
        if (*end != (bench->n_workers == 1 ? ':' : ','))
            break;
        at = end + 1;
    }
    weir_cli_usage_error("bench refit",
                         "--gpus takes TRAINER:REPLICA,REPLICA..., as in 0:1, at most %d replicas, "
                         "got '%s'",
                         WEIR_BENCH_MAX_REPLICAS, text);
    return false;
}

static bool take_choice(const char *option, const char *const choices[3], const char **out)
{
    for (int i = 0; i < 3 && choices[i] != NULL; i++) {
        if (strcmp(optarg, choices[i]) == 0) {
            *out = optarg;
            return true;
        }
    }
    weir_cli_usage_error("bench refit", "%s takes %s%s%s%s%s, got '%s'", option, choices[0],
                         choices[2] != NULL ? ", " : " or ", choices[1],
                         choices[2] != NULL ? " or " : "", choices[2] != NULL ? choices[2] : "",
                         optarg);
    return false;
}

static bool take_check(weir_bench_refit *bench)
{
    bench->checks_given = true;
    if (strcmp(optarg, "all") == 0 || strcmp(optarg, "none") == 0) {
        bench->n_checked = optarg[0] == 'a' ? WEIR_BENCH_CHECK_ALL : 0;
        return true;
    }
    return weir_cli_number("bench refit", "--check", optarg, 1, UINT32_MAX, &bench->n_checked);
}

static bool take_number(int option, weir_bench_refit *bench)
{
    switch (option) {
    case OPTION_VERSIONS:
        return weir_cli_number("bench refit", "--versions", optarg, 1, WEIR_BENCH_MAX_VERSIONS,
                               &bench->n_versions);
    case OPTION_ROUNDS:
        bench->soak = true;
        return weir_cli_number("bench refit", "--rounds", optarg, 1, WEIR_BENCH_MAX_VERSIONS,
                               &bench->n_versions);
    case OPTION_SEED:
        return weir_cli_number("bench refit", "--seed", optarg, 0, INT64_MAX, &bench->seed);
    case OPTION_THREADS:
        return weir_cli_number("bench refit", "--threads", optarg, 1, 4096, &bench->n_threads);
    case OPTION_TIMEOUT:
        return weir_cli_number("bench refit", "--timeout", optarg, 1, 86400, &bench->timeout_s);
    default:
        return weir_cli_byte_count("bench refit", "--window", optarg, &bench->window_bytes);
    }
}

static bool take_text(int option, weir_bench_refit *bench)
{
    switch (option) {
    case OPTION_FAMILY:
        bench->family = optarg;
        return true;
    case OPTION_PRESET:
        bench->preset = optarg;
        return true;
    case OPTION_LAYOUT:
        bench->layout = optarg;
        return true;
    case OPTION_CONVERSION:
        bench->conversion = optarg;
        return true;
    case OPTION_TRANSPORT:
        bench->transport = optarg;
        return true;
    case OPTION_ROLE:
        return take_choice("--role", (const char *const[3]){ "trainer", "replica", NULL },
                           &bench->role);
    case OPTION_NAME:
        bench->name = optarg;
        return true;
    case OPTION_DIRECTORY:
        bench->directory = optarg;
        return true;
    case OPTION_CONFIG:
        bench->config = optarg;
        return true;
    default:
        return false; /* weir_cli_option() has said why */
    }
}

static bool take_option(int option, weir_bench_refit *bench)
{
    static const char *const namings[3] = { "hf", "hf_fused", "stacked" };
    switch (option) {
    case OPTION_GPUS:
        return take_places(bench, optarg);
    case OPTION_NAMING:
        if (!take_choice("--naming", namings, &bench->naming_text))
            return false;
        for (int i = 0; i < 3; i++)
            bench->naming = strcmp(optarg, namings[i]) == 0 ? (weir_naming)i : bench->naming;
        return true;
    case OPTION_INSTALL:
        return take_choice("--install", (const char *const[3]){ "direct", "staged", NULL },
                           &bench->install);
    case OPTION_DELIVERY:
        return take_choice("--delivery", (const char *const[3]){ "push", "pull", NULL },
                           &bench->delivery);
    case OPTION_MODE:
        return take_choice("--mode", (const char *const[3]){ "kernel", "checkpoint", "both" },
                           &bench->mode);
    case OPTION_CHECK:
        return take_check(bench);
    case OPTION_SCAN_FIRST:
        return bench->scan_first = true;
    case OPTION_JSON:
        return bench->as_json = true;
    case OPTION_VERSIONS:
    case OPTION_ROUNDS:
    case OPTION_SEED:
    case OPTION_THREADS:
    case OPTION_TIMEOUT:
    case OPTION_WINDOW:
        return take_number(option, bench);
    default:
        return take_text(option, bench);
    }
}

/* ---- the run ---------------------------------------------------------------------------------*/

weir_wire weir_bench_wire(const weir_bench_refit *bench)
{
    return strcmp(bench->mode, "checkpoint") == 0 ? WEIR_WIRE_CHECKPOINT : WEIR_WIRE_KERNEL;
}

void weir_bench_refit_say(json_t *taken)
{
    weir_process_memory memory = weir_process_memory_now(true);
    json_object_set_new(taken, "heap_bytes", json_integer((json_int_t)memory.heap_bytes));
    json_object_set_new(taken, "resident_bytes", json_integer((json_int_t)memory.resident_bytes));
    json_object_set_new(taken, "own_bytes", json_integer((json_int_t)memory.own_bytes));
    json_object_set_new(taken, "alone_bytes", json_integer((json_int_t)memory.alone_bytes));
    weir_flow_print_line(taken);
}

static bool refit_all(weir_bench_run *run)
{
    const weir_bench_refit *bench = run->bench;
    if (!weir_bench_run_begin(run))
        return false;
    if (!bench->as_json)
        weir_bench_print_head(run);
    for (uint64_t version = 1; version <= bench->n_versions; version++) {
        if (weir_cli_stopped() || !weir_bench_run_step(run, version))
            return false;
        if (!bench->as_json && (!bench->soak || version % 100 == 0))
            weir_bench_print_version(run, version);
    }
    return weir_bench_run_check(run);
}

/* out_json NULL: printed. */
static bool report(const weir_bench_run *run, json_t **out_json)
{
    if (run->bench->as_json && out_json != NULL)
        return (*out_json = weir_bench_result_json(run)) != NULL;
    if (run->bench->as_json)
        return weir_cli_print_json(weir_bench_result_json(run)) == WEIR_EXIT_OK;
    if (run->n_done > 0)
        weir_bench_print_summary(run);
    return true;
}

/* One mode. */
static int bench_refit(const weir_bench_refit *bench, weir_bench_figures *out_figures,
                       json_t **out_json)
{
    weir_bench_run *run = calloc(1, sizeof(*run));
    weir_bench_version *versions = calloc(bench->n_versions, sizeof(*versions));
    bool good = false;
    if (run == NULL || versions == NULL) {
        free(run), free(versions);
        return weir_cli_error("out of memory");
    }
    run->bench = bench;
    run->versions = versions;
    signal(SIGPIPE, SIG_IGN); /* a child that is gone is an error with its name */
    good = refit_all(run);
    weir_bench_run_end(run);
    if (good)
        weir_bench_run_limit(run);
    if (good || run->n_done > 0)
        good &= report(run, out_json);
    if (run->n_done > 0 && out_figures != NULL)
        *out_figures = weir_bench_figures_of(run);
    if (good && bench->soak && weir_bench_growth(run) > 0)
        good = (weir_cli_error("memory grew by %llu bytes from version 10 to the last",
                               (unsigned long long)weir_bench_growth(run)),
                false);
    free(versions);
    free(run);
    return good ? WEIR_EXIT_OK : WEIR_EXIT_FAILED;
}

static int bench_both(const weir_bench_refit *bench)
{
    static const char *const modes[2] = { "checkpoint", "kernel" };
    weir_bench_figures figures[2] = { { 0 }, { 0 } };
    json_t *said[2] = { NULL, NULL };
    int code = WEIR_EXIT_OK;
    for (int i = 0; i < 2 && code == WEIR_EXIT_OK; i++) {
        weir_bench_refit one = *bench;
        one.mode = modes[i];
        if (i > 0 && !bench->as_json)
            putchar('\n');
        code = bench_refit(&one, &figures[i], &said[i]);
    }
    if (code == WEIR_EXIT_OK && !bench->as_json)
        weir_bench_print_modes(&figures[0], &figures[1]);
    if (code == WEIR_EXIT_OK && bench->as_json)
        return weir_cli_print_json(json_pack("{s:o, s:o, s:o}", "checkpoint", said[0], "kernel",
                                             said[1], "side_by_side",
                                             weir_bench_modes_json(&figures[0], &figures[1])));
    json_decref(said[0]);
    json_decref(said[1]);
    return code;
}

int weir_cmd_bench_refit(int argc, char **argv)
{
    weir_bench_refit bench = { .family = "glm_moe_dsa",
                               .preset = "demo",
                               .conversion = "fp8_128x128",
                               .install = "direct",
                               .mode = "kernel",
                               .n_versions = 7,
                               .n_checked = WEIR_BENCH_CHECK_ALL,
                               .timeout_s = 60,
                               .seed = 1 };
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (!take_option(option, &bench))
            return WEIR_EXIT_USAGE;
    }
    if (optind < argc)
        return weir_cli_usage_error(argv[0], "takes no argument, got '%s'", argv[optind]);
    bool is_replica = bench.role != NULL && bench.role[0] == 'r';
    if (bench.n_workers < (is_replica ? 1 : 2))
        return weir_cli_usage_error(argv[0], "--gpus TRAINER:REPLICA is required, as in 0:1");
    weir_cli_catch_signals();
    if (bench.role == NULL)
        return strcmp(bench.mode, "both") == 0 ? bench_both(&bench)
                                               : bench_refit(&bench, NULL, NULL);
    if (bench.directory == NULL || bench.config == NULL)
        return weir_cli_usage_error(argv[0], "--directory and --config go with --role");
    return is_replica ? weir_bench_refit_replica(&bench) : weir_bench_refit_trainer(&bench);
}
