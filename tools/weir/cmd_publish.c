/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_publish.c - `weir publish`: one trainer rank whose weights are checkpoint files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "publish_job.h"

const char weir_usage_publish[] =
    "usage: weir publish SRC... --version N --directory HOST:PORT [OPTION...]\n"
    "       weir publish --follow --version N --directory HOST:PORT [OPTION...] <lines\n"
    "\n"
    "Is one trainer rank: converts its part of SRC (a safetensors file or a checkpoint directory)\n"
    "to what the engine reads, and publishes it as version N. Several SRC are versions N, N+1, "
    "...\n"
    "The bytes lie in this process' memory: it stays until --replicas have acknowledged the last\n"
    "version, or until SIGINT or SIGTERM.\n"
    "\n"
    "  --version N                 number of the first version\n"
    "  --rank R, --ranks N         this trainer rank, and how many there are (default: 0 of 1)\n"
    "  --mesh MESH                 how the ranks shard the model: fsdp=8,ep=4,tp=2,pp=2,hsdp=2, "
    "see\n"
    "                              `weir plan`; this rank takes its shards out of SRC, which is\n"
    "                              the whole model, and knows nothing of the rest\n"
    "  --expert-owners JSON        [0,0,1,1]: the expert rank of each expert\n"
    "  --replicas N                wait until N replicas have each version before the next\n"
    "  --follow                    read further SRC from stdin, one line each, until it ends; a\n"
    "                              version that fails is said, and the next SRC is the next one\n"
    "  --slots N                   versions kept in memory (default: 2)\n"
    "  --device host|cuda:N        keep the weights in that GPU's memory (default: host)\n"
    "  --delivery push|pull        push: convert and send when --replicas are ready, straight\n"
    "                              into their memory, with --mesh by broadcasts (nccl, ucx); "
    "pull:\n"
    "                              publish in slots that they read (default: push from a GPU\n"
    "                              without --mesh and by nccl, else pull)\n"
    "  --scan-first                push: look for what is not finite before the first byte\n"
    "  --window BYTES              push by broadcast: memory that bytes pass through (default: "
    "192M);\n"
    "                              pull with --mesh: keep no version whole, but send it group by\n"
    "                              group through so much memory (in --slots buffers) when\n"
    "                              --replicas read it\n"
    "  --traceparent TEXT          the W3C trace that its versions belong to (default: each is "
    "one)\n" WEIR_FLOW_USAGE;

enum {
    OPTION_VERSION = WEIR_FLOW_OWN_OPTION,
    OPTION_RANK,
    OPTION_RANKS,
    OPTION_REPLICAS,
    OPTION_FOLLOW,
    OPTION_SLOTS,
    OPTION_DEVICE,
    OPTION_DELIVERY,
    OPTION_SCAN_FIRST,
    OPTION_WINDOW,
    OPTION_TRACEPARENT,
    OPTION_MESH,
    OPTION_OWNERS
};

static const struct option options[] = {
    WEIR_FLOW_LONG_OPTIONS,
    { "version", required_argument, NULL, OPTION_VERSION },
    { "rank", required_argument, NULL, OPTION_RANK },
    { "ranks", required_argument, NULL, OPTION_RANKS },
    { "replicas", required_argument, NULL, OPTION_REPLICAS },
    { "follow", no_argument, NULL, OPTION_FOLLOW },
    { "slots", required_argument, NULL, OPTION_SLOTS },
    { "device", required_argument, NULL, OPTION_DEVICE },
    { "delivery", required_argument, NULL, OPTION_DELIVERY },
    { "scan-first", no_argument, NULL, OPTION_SCAN_FIRST },
    { "window", required_argument, NULL, OPTION_WINDOW },
    { "traceparent", required_argument, NULL, OPTION_TRACEPARENT },
    { "mesh", required_argument, NULL, OPTION_MESH },
    { "expert-owners", required_argument, NULL, OPTION_OWNERS },
    WEIR_CLI_OPTIONS_END
};

typedef struct publish_job {
    weir_publish_job common;
    uint64_t version, n_replicas;
    bool has_version, follow;
    bool version_failed; /* what the last version ended with; the trainer is as good as before */
} publish_job;

static int take_mesh_option(int option, publish_job *job)
{
    if (option != OPTION_OWNERS)
        return weir_publish_job_take_mesh("publish", optarg, &job->common);
    job->common.owners = optarg;
    return WEIR_EXIT_OK;
}

static int take_memory_option(int option, publish_job *job)
{
    bool good = true;
    if (option == OPTION_DEVICE)
        good = weir_cli_read_device("publish", optarg, &job->common.device);
    else if (option == OPTION_DELIVERY)
        return weir_publish_job_take_delivery("publish", optarg, &job->common);
    else if (option == OPTION_WINDOW)
        good = weir_cli_byte_count("publish", "--window", optarg, &job->common.window_bytes);
    else
        job->common.scan_first = true;
    return good ? WEIR_EXIT_OK : WEIR_EXIT_USAGE;
}

static int take_option(int option, publish_job *job)
{
    const struct {
        const char *name;
        uint64_t least, most, *out;
    } numbers[] = { { "--version", 0, INT64_MAX, &job->version },
                    { "--rank", 0, UINT32_MAX, &job->common.rank },
                    { "--ranks", 1, UINT32_MAX, &job->common.n_ranks },
                    { "--replicas", 1, 1000000, &job->n_replicas },
                    { NULL, 0, 0, NULL },
                    { "--slots", 1, 8, &job->common.n_slots } };
    if (option == OPTION_FOLLOW) {
        job->follow = true;
        return WEIR_EXIT_OK;
    }
    if (option < WEIR_FLOW_OWN_OPTION)
        return weir_flow_take_option("publish", option, &job->common.flow);
    if (option == OPTION_TRACEPARENT) {
        job->common.traceparent = optarg;
        return WEIR_EXIT_OK;
    }
    if (option >= OPTION_MESH)
        return take_mesh_option(option, job);
    if (option >= OPTION_DEVICE)
        return take_memory_option(option, job);
    job->has_version |= option == OPTION_VERSION;
    int i = option - WEIR_FLOW_OWN_OPTION;
    return weir_cli_number("publish", numbers[i].name, optarg, numbers[i].least, numbers[i].most,
                           numbers[i].out)
               ? WEIR_EXIT_OK
               : WEIR_EXIT_USAGE;
}

static bool is_sharded(const publish_job *job)
{
    return job->common.mesh != NULL || job->common.flow.replica_mesh != NULL;
}

/* As weir_trainer_options.delivery decides. */
static bool pushes(const publish_job *job)
{
    const char *transport = job->common.flow.transport;
    if (is_sharded(job))
        return job->common.delivery == WEIR_DELIVERY_PUSH ||
               (transport != NULL && strcmp(transport, "nccl") == 0);
    if (job->common.delivery != WEIR_DELIVERY_DEFAULT || !job->common.device.cuda)
        return job->common.delivery == WEIR_DELIVERY_PUSH;
    return transport == NULL || strcmp(transport, "cuda_ipc") == 0 ||
           strcmp(transport, "nccl") == 0;
}

/* As weir_trainer_options.window_bytes decides. */
static bool sends(const publish_job *job)
{
    return job->common.window_bytes > 0 && is_sharded(job);
}

static int report_failure(publish_job *job)
{
    int code = weir_publish_job_failed();
    job->version_failed = code != WEIR_EXIT_OK;
    if (code != WEIR_EXIT_OK && job->common.flow.as_json)
        weir_flow_print_line(json_pack("{s:s, s:s, s:I}", "event", "failed", "error",
                                       weir_last_error(), "version", (json_int_t)job->version));
    return code;
}

/* Pushing, or sending through a window, this is when the bytes move. */
static int await_replicas(publish_job *job)
{
    const char *event = pushes(job) ? "pushed" : "sent";
    double begun = weir_cli_now();
    if (weir_trainer_wait(job->common.trainer, job->version, (unsigned)job->n_replicas, 0) !=
        WEIR_OK)
        return report_failure(job);
    double seconds = weir_cli_now() - begun;
    weir_flow_progress_end();
    if (!pushes(job) && !sends(job))
        return WEIR_EXIT_OK;
    if (job->common.flow.as_json)
        weir_flow_print_line(json_pack("{s:s, s:I, s:I, s:f}", "event", event, "version",
                                       (json_int_t)job->version, "replicas",
                                       (json_int_t)job->n_replicas, "seconds", seconds));
    else
        printf("%s version %llu to %llu replicas in %s\n", event, (unsigned long long)job->version,
               (unsigned long long)job->n_replicas, weir_cli_duration_text(seconds).text);
    fflush(stdout);
    return WEIR_EXIT_OK;
}

/* Publishes one source as the next version. */
static int publish_one(publish_job *job, const char *path)
{
    weir_report report;
    job->version_failed = false;
    int code = weir_publish_job_take_source(&job->common, path);
    if (code != WEIR_EXIT_OK || weir_cli_stopped())
        return code;
    if (weir_trainer_publish(job->common.trainer, job->version, &report) != WEIR_OK) {
        code = report_failure(job);
    } else {
        weir_flow_print_report(&job->common.flow, "published", &report);
        if (job->n_replicas > 0)
            code = await_replicas(job);
    }
    job->version++;
    return code;
}

/* Who follows outlives a version that was not published, or did not reach all replicas: with a rank
 * that was started again, or with finite weights, the next one may. */
static bool goes_on(const publish_job *job, int code)
{
    return code == WEIR_EXIT_OK || (job->follow && job->version_failed);
}

static int follow_stdin(publish_job *job)
{
    char line[WEIR_SOURCE_LINE];
    int code = WEIR_EXIT_OK;
    while (weir_publish_job_next_line(line, &code)) {
        code = publish_one(job, line);
        if (!goes_on(job, code))
            return code;
    }
    return code;
}

static int publish_all(publish_job *job, char **paths, size_t n_paths)
{
    for (size_t i = 0; i < n_paths && !weir_cli_stopped(); i++) {
        int code = publish_one(job, paths[i]);
        if (!goes_on(job, code))
            return code;
    }
    int code = job->follow ? follow_stdin(job) : WEIR_EXIT_OK;
    while (code == WEIR_EXIT_OK && job->n_replicas == 0 && !job->follow && !weir_cli_stopped())
        usleep(20000);
    return code;
}

int weir_cmd_publish(int argc, char **argv)
{
    publish_job job = { .common = { .flow = { .model = "model" } } };
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        int code = option == WEIR_CLI_BAD_OPTION ? WEIR_EXIT_USAGE : take_option(option, &job);
        if (code != WEIR_EXIT_OK)
            return code;
    }
    if (optind == argc && !job.follow)
        return weir_cli_usage_error("publish", "no SRC");
    if (!job.has_version)
        return weir_cli_usage_error("publish", "--version is required");
    if (job.common.flow.directory == NULL)
        return weir_cli_usage_error("publish", "--directory is required");
    if (pushes(&job) && job.n_replicas == 0)
        return weir_cli_usage_error("publish", "pushing needs --replicas: nothing is sent before "
                                               "so many are ready");
    if (sends(&job) && job.n_replicas == 0)
        return weir_cli_usage_error("publish", "--window with --mesh needs --replicas: bytes are "
                                               "made when so many read them");
    weir_publish_job_begin();
    int code = publish_all(&job, argv + optind, (size_t)(argc - optind));
    weir_publish_job_close(&job.common);
    return code;
}
