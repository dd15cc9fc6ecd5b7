/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_broadcast.c - `weir broadcast`: one trainer rank of a run configuration, which says who asks
 * for its versions, in what format, and where. Who has not come stands in broadcast_missing.c. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broadcast_delivery.h"
#include "broadcast_missing.h"
#include "broadcast_wait.h"
#include "weir/fleet.h"
#include "weir/orchestrate.h"

#define AGAIN_US 50000u
#define WITHDRAW_MS 2000u

const char weir_usage_broadcast[] =
    "usage: weir broadcast CONFIG SRC... [--version N] [OPTION...]\n"
    "       weir broadcast CONFIG --follow [--version N] [OPTION...] <lines\n"
    "\n"
    "Is one trainer rank of a run configuration: its first rank runs the directory where servers\n"
    "find the trainer (trainer.weight_broadcast.host and .port). Each SRC is a version, which\n"
    "servers ask for under orchestrator.model.name: in kernel format where the configuration says\n"
    "quantize_in_weight_transfer, else in checkpoint format. Waits until all inference workers "
    "hold\n"
    "one before the next, at most weight_broadcast.timeout, and says who does not. With a\n"
    "marker_dir it touches STABLE and waits for NCCL_READY first.\n"
    "\n"
    "  --version N                 number of the first version (default: 1)\n"
    "  --rank R, --ranks N         this trainer rank, and how many there are (default: 0 of 1)\n"
    "  --mesh MESH                 how the ranks shard the model: fsdp=8,ep=4,tp=2,pp=2,hsdp=2\n"
    "  --expert-owners JSON        [0,0,1,1]: the expert rank of each expert\n"
    "  --follow                    read further SRC from stdin, one line each, until it ends; a\n"
    "                              version that fails is said, and the next SRC is the next one\n"
    "  --device host|cuda:N        keep the weights in that GPU's memory (default: host)\n"
    "  --trainer-host HOST         where rank 0 is found, for orchestrator.weight_broadcast.host\n"
    "  --delivery push|pull        push: convert and send part by part, to all at once; pull: "
    "servers\n"
    "                              read it (default: push by NCCL and UCX, and by CUDA IPC what "
    "all\n"
    "                              workers take alike; pull by other transports, and from the "
    "host\n"
    "                              memory of several ranks without --mesh)\n"
    "  --window BYTES              keep no version whole, but convert it while it travels, "
    "through\n"
    "                              so much memory of this rank (default: as the configuration "
    "says)\n"
    "\n"
    "--directory, --model, --run, --wire, --layout, --conversion and --replica-mesh are not "
    "taken:\n"
    "the configuration says them. --config names the engine's config.json where\n"
    "inference.model is no directory of this machine.\n"
    "\n" WEIR_FLOW_USAGE;

enum {
    OPTION_VERSION = WEIR_FLOW_OWN_OPTION,
    OPTION_RANK,
    OPTION_RANKS,
    OPTION_MESH,
    OPTION_OWNERS,
    OPTION_FOLLOW,
    OPTION_DEVICE,
    OPTION_DELIVERY,
    OPTION_WINDOW,
    OPTION_TRAINER_HOST
};

static const struct option options[] = {
    WEIR_FLOW_LONG_OPTIONS,
    { "version", required_argument, NULL, OPTION_VERSION },
    { "rank", required_argument, NULL, OPTION_RANK },
    { "ranks", required_argument, NULL, OPTION_RANKS },
    { "mesh", required_argument, NULL, OPTION_MESH },
    { "expert-owners", required_argument, NULL, OPTION_OWNERS },
    { "follow", no_argument, NULL, OPTION_FOLLOW },
    { "device", required_argument, NULL, OPTION_DEVICE },
    { "delivery", required_argument, NULL, OPTION_DELIVERY },
    { "window", required_argument, NULL, OPTION_WINDOW },
    { "trainer-host", required_argument, NULL, OPTION_TRAINER_HOST },
    WEIR_CLI_OPTIONS_END
};

typedef struct broadcast_job {
    weir_publish_job common;
    uint64_t version;
    bool follow, version_failed;
    const char *trainer_host; /* NULL: as the configuration says */
    weir_run_config *config;
    const weir_run_settings *settings;
    weir_directory *directory; /* of rank 0 */
    weir_broadcast_delivery delivery;
    char address[512], engine_config[4096];
} broadcast_job;

/* ---- options ---------------------------------------------------------------------------------*/

static int take_option(int option, broadcast_job *job)
{
    weir_publish_job *common = &job->common;
    bool good = true;
    switch (option) {
    case OPTION_VERSION:
        good = weir_cli_number("broadcast", "--version", optarg, 0, INT64_MAX, &job->version);
        break;
    case OPTION_RANK:
        good = weir_cli_number("broadcast", "--rank", optarg, 0, UINT32_MAX, &common->rank);
        break;
    case OPTION_RANKS:
        good = weir_cli_number("broadcast", "--ranks", optarg, 1, UINT32_MAX, &common->n_ranks);
        break;
    case OPTION_MESH:
        return weir_publish_job_take_mesh("broadcast", optarg, common);
    case OPTION_OWNERS:
        common->owners = optarg;
        break;
    case OPTION_FOLLOW:
        job->follow = true;
        break;
    case OPTION_DELIVERY:
        return weir_publish_job_take_delivery("broadcast", optarg, common);
    case OPTION_WINDOW:
        good = weir_cli_byte_count("broadcast", "--window", optarg, &common->window_bytes);
        break;
    case OPTION_TRAINER_HOST:
        job->trainer_host = optarg;
        break;
    case OPTION_DEVICE:
        good = weir_cli_read_device("broadcast", optarg, &common->device);
        break;
    default:
        return weir_flow_take_option("broadcast", option, &common->flow);
    }
    return good ? WEIR_EXIT_OK : WEIR_EXIT_USAGE;
}

static int refuse_said(const weir_flow_options *flow)
{
    const struct {
        const char *name, *value;
    } said[] = { { "--directory", flow->directory },
                 { "--model", flow->model },
                 { "--run", flow->run },
                 { "--layout", flow->layout },
                 { "--conversion", flow->conversion },
                 { "--replica-mesh", flow->replica_mesh },
                 { "--wire", flow->wire != WEIR_WIRE_KERNEL ? "" : NULL } };
    for (size_t i = 0; i < sizeof(said) / sizeof(said[0]); i++)
        if (said[i].value != NULL)
            return weir_cli_usage_error("broadcast", "%s is said by CONFIG", said[i].name);
    return WEIR_EXIT_OK;
}

/* ---- what the configuration says -------------------------------------------------------------*/

/* The engine's config.json: of its own directory, else the one beside SRC is the engine's too. */
static void find_engine_config(broadcast_job *job)
{
    const weir_run_model *model = &job->settings->inference.model;
    const char *folder = model->path != NULL ? model->path : model->name;
    struct stat found;
    if (job->common.flow.config != NULL || !job->settings->inference.present || folder == NULL)
        return;
    snprintf(job->engine_config, sizeof(job->engine_config), "%s/config.json", folder);
    if (stat(job->engine_config, &found) == 0)
        job->common.flow.config = job->engine_config;
}

static void take_settings(broadcast_job *job)
{
    const weir_run_settings *settings = job->settings;
    const weir_run_broadcast *broadcast = &settings->trainer.broadcast;
    weir_flow_options *flow = &job->common.flow;
    snprintf(job->address, sizeof(job->address), "%.255s:%u", settings->orchestrator.broadcast.host,
             broadcast->port);
    flow->directory = job->address;
    flow->model = settings->orchestrator.model.name;
    flow->run = settings->run;
    flow->layout = settings->inference.layout;
    flow->conversion = settings->inference.conversion;
    flow->wire = broadcast->quantize_in_weight_transfer ? WEIR_WIRE_KERNEL : WEIR_WIRE_CHECKPOINT;
    if (flow->timeout_ms == 0)
        flow->timeout_ms = broadcast->timeout_s * 1000;
    find_engine_config(job);
}

/* The first rank's, for servers and the other ranks. What an earlier run has said by markers goes
 * before anybody can take it for this one's. */
static int open_directory(broadcast_job *job)
{
    const weir_run_broadcast *broadcast = &job->settings->trainer.broadcast;
    if (broadcast->marker_dir != NULL &&
        weir_markers_clear(broadcast->marker_dir, job->version) != WEIR_OK)
        return weir_cli_fail();
    char listen[512];
    weir_directory_options directory = WEIR_DIRECTORY_OPTIONS_INIT;
    snprintf(listen, sizeof(listen), "%.255s:%u", broadcast->host, broadcast->port);
    directory.listen = listen;
    directory.trainer_model = job->settings->orchestrator.model.name;
    directory.trainer_run = job->settings->run;
    directory.n_inference_workers = broadcast->inference_world_size;
    if (weir_directory_open(&directory, &job->directory) != WEIR_OK)
        return weir_cli_fail();
    if (job->common.flow.as_json)
        weir_flow_print_line(json_pack("{s:s, s:s}", "event", "listening", "directory", listen));
    else
        printf("trainer's directory at %s\n", listen);
    fflush(stdout);
    return WEIR_EXIT_OK;
}

/* The other ranks may have been started before it. */
static int await_directory(const broadcast_job *job)
{
    weir_fleet_wish wish = WEIR_FLEET_WISH_INIT;
    double until = weir_cli_now() + job->common.flow.timeout_ms / 1e3;
    wish.directory = job->address;
    wish.model = job->common.flow.model;
    while (!weir_cli_stopped()) {
        char *document;
        double left_s = until - weir_cli_now();
        wish.timeout_ms = left_s > 0 ? (unsigned)(left_s * 1e3) + 1 : 1;
        weir_status status = weir_fleet_get(&wish, &document);
        if (status == WEIR_OK)
            weir_string_free(document);
        if (status == WEIR_OK || status == WEIR_ERR_UNSUPPORTED)
            return WEIR_EXIT_OK;
        if (left_s <= 0 || (status != WEIR_ERR_PEER_LOST && status != WEIR_ERR_TIMED_OUT))
            return weir_cli_error("trainer rank 0 is not at %s: %s", job->address,
                                  weir_last_error());
        usleep(AGAIN_US);
    }
    return WEIR_EXIT_OK;
}

static int begin(broadcast_job *job, const char *path)
{
    if (weir_run_config_open_at(path, job->trainer_host, &job->config) != WEIR_OK ||
        weir_run_config_settings(job->config, &job->settings) != WEIR_OK)
        return weir_cli_fail();
    if (job->settings->trainer.broadcast.type != WEIR_RUN_NCCL)
        return weir_cli_error("%s: trainer.weight_broadcast.type is filesystem: there is no "
                              "broadcast, type nccl is one",
                              path);
    take_settings(job);
    int code = weir_broadcast_deliver(job->settings, path, &job->common, &job->delivery);
    if (code != WEIR_EXIT_OK)
        return code;
    return job->common.rank == 0 ? open_directory(job) : await_directory(job);
}

/* ---- versions --------------------------------------------------------------------------------*/

/* It is not published at all: the error's line says by whose fault. */
static int say_unpublished(const broadcast_job *job)
{
    weir_flow_progress_end();
    if (job->common.flow.as_json && !weir_cli_stopped())
        weir_flow_print_line(json_pack("{s:s, s:I, s:s, s:s}", "event", "failed", "version",
                                       (json_int_t)job->version, "error", weir_last_error(),
                                       "missing", ""));
    return weir_publish_job_failed();
}

/* What is sent is gone when it is not waited for any more: who asks for it is to hear so. Versions
 * that lie whole in slots can be had until the next ones. */
static void give_up(const broadcast_job *job, const char *why)
{
    unsigned bound_ms =
        job->common.flow.timeout_ms < WITHDRAW_MS ? job->common.flow.timeout_ms : WITHDRAW_MS;
    if (job->delivery.sends &&
        weir_trainer_withdraw(job->common.trainer, job->version, why, bound_ms) != WEIR_OK)
        weir_cli_note("version %llu is not taken back: %s", (unsigned long long)job->version,
                      weir_last_error());
}

/* The line is the trainer's, and behind it whoever does not hold the version, by rank. */
static int say_missing(const broadcast_job *job, const char *line)
{
    char missing[768];
    weir_flow_progress_end();
    if (weir_cli_stopped())
        return WEIR_EXIT_OK;
    weir_broadcast_missing(job->settings, job->address, job->version, missing, sizeof(missing));
    give_up(job, missing[0] != '\0' ? missing : line);
    if (job->common.flow.as_json)
        weir_flow_print_line(json_pack("{s:s, s:I, s:s, s:s}", "event", "failed", "version",
                                       (json_int_t)job->version, "error", line, "missing",
                                       missing));
    return missing[0] != '\0' ? weir_cli_error("version %llu: %s (%s)",
                                               (unsigned long long)job->version, missing, line)
                              : weir_cli_error("%s", line);
}

/* A step's directory that was deleted is nobody's any more: its version is skipped, not the run. */
static int wait_for_markers(const broadcast_job *job)
{
    const weir_run_broadcast *broadcast = &job->settings->trainer.broadcast;
    weir_status status = weir_markers_set_stable(broadcast->marker_dir, job->version);
    if (status == WEIR_OK)
        status = weir_markers_await_ready(broadcast->marker_dir, job->version,
                                          job->common.flow.timeout_ms);
    if (status == WEIR_ERR_NOT_FOUND) {
        weir_cli_note("version %llu: %s", (unsigned long long)job->version, weir_last_error());
        return WEIR_EXIT_OK;
    }
    if (status == WEIR_OK)
        return WEIR_EXIT_OK;
    char why[1024]; /* what is asked next has errors of its own */
    snprintf(why, sizeof(why), "%s", weir_last_error());
    return say_missing(job, why);
}

static int await_workers(const broadcast_job *job, double begun)
{
    const weir_broadcast_wait wait = { .settings = job->settings,
                                       .directory = job->address,
                                       .trainer = job->common.trainer,
                                       .version = job->version,
                                       .begun = begun,
                                       .timeout_ms = job->common.flow.timeout_ms,
                                       .sends = job->delivery.sends,
                                       .workers_per_replica = job->delivery.workers_per_replica };
    unsigned n_workers = 0;
    char why[1024];
    if (weir_broadcast_await(&wait, &n_workers, why, sizeof(why)) != WEIR_OK)
        return say_missing(job, why);
    weir_flow_progress_end();
    double seconds = weir_cli_now() - begun;
    if (job->common.flow.as_json)
        weir_flow_print_line(json_pack("{s:s, s:I, s:i, s:f}", "event", "held", "version",
                                       (json_int_t)job->version, "workers", (int)n_workers,
                                       "seconds", seconds));
    else
        printf("version %llu has reached the inference workers (%u) after %s\n",
               (unsigned long long)job->version, n_workers, weir_cli_duration_text(seconds).text);
    fflush(stdout);
    return WEIR_EXIT_OK;
}

/* One time for both: what the orchestrator took to say NCCL_READY its servers had to come. */
static int see_through(const broadcast_job *job)
{
    double begun = weir_cli_now();
    int code = WEIR_EXIT_OK;
    if (job->common.rank == 0 && job->settings->trainer.broadcast.marker_dir != NULL)
        code = wait_for_markers(job);
    return code == WEIR_EXIT_OK && !weir_cli_stopped() ? await_workers(job, begun) : code;
}

static int broadcast_one(broadcast_job *job, const char *path)
{
    weir_report report;
    job->version_failed = false;
    int code = weir_publish_job_take_source(&job->common, path);
    if (code != WEIR_EXIT_OK || weir_cli_stopped())
        return code;
    if (weir_trainer_publish(job->common.trainer, job->version, &report) != WEIR_OK) {
        code = say_unpublished(job);
    } else {
        weir_flow_print_report(&job->common.flow, "published", &report);
        code = see_through(job);
    }
    job->version_failed = code != WEIR_EXIT_OK;
    job->version++;
    return code;
}

/* Who follows outlives a version that failed. */
static bool goes_on(const broadcast_job *job, int code)
{
    return code == WEIR_EXIT_OK || (job->version_failed && job->follow);
}

static int follow_stdin(broadcast_job *job)
{
    char line[WEIR_SOURCE_LINE];
    int code = WEIR_EXIT_OK;
    while (weir_publish_job_next_line(line, &code)) {
        code = broadcast_one(job, line);
        if (!goes_on(job, code))
            return code;
    }
    return code;
}

static int broadcast_all(broadcast_job *job, char **paths, size_t n_paths)
{
    int code = WEIR_EXIT_OK;
    for (size_t i = 0; i < n_paths && !weir_cli_stopped(); i++) {
        code = broadcast_one(job, paths[i]);
        if (!goes_on(job, code))
            return code;
    }
    return job->follow ? follow_stdin(job) : code;
}

int weir_cmd_broadcast(int argc, char **argv)
{
    static broadcast_job job = { .version = 1 };
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        int code = option == WEIR_CLI_BAD_OPTION ? WEIR_EXIT_USAGE : take_option(option, &job);
        if (code != WEIR_EXIT_OK)
            return code;
    }
    if (optind == argc)
        return weir_cli_usage_error("broadcast", "no CONFIG");
    if (optind + 1 == argc && !job.follow)
        return weir_cli_usage_error("broadcast", "no SRC");
    int code = refuse_said(&job.common.flow);
    if (code != WEIR_EXIT_OK)
        return code;
    weir_publish_job_begin();
    code = begin(&job, argv[optind]);
    if (code == WEIR_EXIT_OK)
        code = broadcast_all(&job, argv + optind + 1, (size_t)(argc - optind - 1));
    weir_publish_job_close(&job.common);
    weir_directory_close(job.directory);
    weir_run_config_close(job.config);
    return code;
}
