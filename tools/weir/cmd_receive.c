/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_receive.c - `weir receive`: one replica worker. It holds the parameters that an engine would,
 * and installs what arrives.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flow.h"
#include "weir/cuda.h"

const char weir_usage_receive[] =
    "usage: weir receive --directory HOST:PORT --config PATH [OPTION...]\n"
    "\n"
    "Is one replica worker: allocates every parameter of the engine that config.json describes\n"
    "(its part of them, with --replica-mesh),\n"
    "waits for a version, checks it, moves it, verifies it and installs it in place. A version "
    "that\n"
    "fails leaves the old one (--install staged) or an unusable replica (--install direct).\n"
    "\n"
    "  --version N|latest          what to install (default: latest)\n"
    "  --follow                    go on with every later version, until SIGINT or SIGTERM\n"
    "  --count N                   with --follow: end after N versions\n"
    "  --hold                      stay, readable for `weir verify`, until SIGINT or SIGTERM\n"
    "  --install staged|direct     verify beside the live parameters, or land in them\n"
    "  --dump DIR                  write DIR/v<N>.safetensors after each install\n"
    "  --name NAME                 unique among the run's replicas\n"
    "  --device host|cuda:N        where the parameters lie (default: host)\n"
    "  --window BYTES              staged, of a version that is pushed: memory that bytes pass\n"
    "                              through before they are written\n"
    "  --no-serve                  no other replica reads from this one\n"
    "  --trainers-only             read from trainers, never from another replica\n"
    "  --peer-wait SECONDS         while others read the trainers, wait for a replica that holds\n"
    "                              the version, at most so long from when it is READY\n" WEIR_FLOW_USAGE;

enum {
    OPTION_VERSION = WEIR_FLOW_OWN_OPTION,
    OPTION_FOLLOW,
    OPTION_COUNT,
    OPTION_HOLD,
    OPTION_INSTALL,
    OPTION_DUMP,
    OPTION_DEVICE,
    OPTION_WINDOW,
    OPTION_NO_SERVE,
    OPTION_TRAINERS_ONLY,
    OPTION_PEER_WAIT
};

static const struct option options[] = { WEIR_FLOW_LONG_OPTIONS,
                                         { "version", required_argument, NULL, OPTION_VERSION },
                                         { "follow", no_argument, NULL, OPTION_FOLLOW },
                                         { "count", required_argument, NULL, OPTION_COUNT },
                                         { "hold", no_argument, NULL, OPTION_HOLD },
                                         { "install", required_argument, NULL, OPTION_INSTALL },
                                         { "dump", required_argument, NULL, OPTION_DUMP },
                                         { "device", required_argument, NULL, OPTION_DEVICE },
                                         { "window", required_argument, NULL, OPTION_WINDOW },
                                         { "no-serve", no_argument, NULL, OPTION_NO_SERVE },
                                         { "trainers-only", no_argument, NULL,
                                           OPTION_TRAINERS_ONLY },
                                         { "peer-wait", required_argument, NULL, OPTION_PEER_WAIT },
                                         WEIR_CLI_OPTIONS_END };

typedef struct receive_job {
    weir_flow_options flow;
    uint64_t version, count, window_bytes, peer_wait_s;
    bool follow, hold, serves_nobody, reads_trainers_alone;
    const char *device_text; /* NULL: host memory */
    weir_cli_device device;
    weir_install_mode install;
    const char *dump;
    weir_replica *replica;
    char said[1024];     /* the last failure: one that repeats itself is said once */
    unsigned n_failures; /* in a row */
} receive_job;

static weir_replica *_Atomic open_replica; /* for the signal handler */

static void cancel(void)
{
    weir_replica *waiting = open_replica;
    if (waiting != NULL)
        weir_replica_cancel(waiting);
}

static int take_install(receive_job *job)
{
    if (strcmp(optarg, "staged") != 0 && strcmp(optarg, "direct") != 0)
        return weir_cli_usage_error("receive", "--install takes staged or direct, got '%s'",
                                    optarg);
    job->install = optarg[0] == 's' ? WEIR_INSTALL_STAGED : WEIR_INSTALL_DIRECT;
    return WEIR_EXIT_OK;
}

static int take_version(receive_job *job)
{
    if (strcmp(optarg, "latest") == 0) {
        job->version = WEIR_LATEST;
        return WEIR_EXIT_OK;
    }
    return weir_cli_number("receive", "--version", optarg, 0, INT64_MAX, &job->version)
               ? WEIR_EXIT_OK
               : WEIR_EXIT_USAGE;
}

static int take_option(int option, receive_job *job)
{
    switch (option) {
    case OPTION_VERSION:
        return take_version(job);
    case OPTION_FOLLOW:
        job->follow = true;
        return WEIR_EXIT_OK;
    case OPTION_COUNT:
        return weir_cli_number("receive", "--count", optarg, 1, UINT32_MAX, &job->count)
                   ? WEIR_EXIT_OK
                   : WEIR_EXIT_USAGE;
    case OPTION_HOLD:
        job->hold = true;
        return WEIR_EXIT_OK;
    case OPTION_INSTALL:
        return take_install(job);
    case OPTION_DUMP:
        job->dump = optarg;
        return WEIR_EXIT_OK;
    case OPTION_DEVICE:
        job->device_text = optarg;
        return weir_cli_read_device("receive", optarg, &job->device) ? WEIR_EXIT_OK
                                                                     : WEIR_EXIT_USAGE;
    case OPTION_WINDOW:
        return weir_cli_byte_count("receive", "--window", optarg, &job->window_bytes)
                   ? WEIR_EXIT_OK
                   : WEIR_EXIT_USAGE;
    case OPTION_NO_SERVE:
        job->serves_nobody = true;
        return WEIR_EXIT_OK;
    case OPTION_PEER_WAIT:
        return weir_cli_number("receive", "--peer-wait", optarg, 0, 86400, &job->peer_wait_s)
                   ? WEIR_EXIT_OK
                   : WEIR_EXIT_USAGE;
    case OPTION_TRAINERS_ONLY:
        job->reads_trainers_alone = true;
        return WEIR_EXIT_OK;
    default:
        return weir_flow_take_option("receive", option, &job->flow);
    }
}

static int start_replica(receive_job *job)
{
    const weir_flow_options *flow = &job->flow;
    weir_replica_options replica = WEIR_REPLICA_OPTIONS_INIT;
    replica.directory = flow->directory;
    replica.model = flow->model;
    replica.run = flow->run;
    replica.name = flow->name;
    replica.family = flow->family;
    replica.layout = flow->layout;
    replica.conversion = flow->conversion;
    replica.config = flow->config;
    replica.transport = flow->transport;
    replica.transport_directory = flow->transport_directory;
    replica.listen = flow->listen;
    replica.install = job->install;
    replica.n_threads = flow->n_threads;
    replica.timeout_ms = flow->timeout_ms;
    replica.lease_ms = flow->lease_ms;
    replica.progress = weir_flow_progress;
    replica.progress_context = &job->flow;
    replica.device = job->device_text;
    replica.window_bytes = job->window_bytes;
    replica.mesh = flow->replica_mesh;
    replica.experts = flow->replica_experts;
    replica.worker = flow->worker;
    replica.wire = flow->wire;
    replica.serves_nobody = job->serves_nobody;
    replica.peer_wait_ms = (unsigned)job->peer_wait_s * 1000;
    replica.reads_trainers_alone = job->reads_trainers_alone;
    if (weir_replica_open(&replica, &job->replica) != WEIR_OK)
        return weir_cli_fail();
    open_replica = job->replica;
    return weir_replica_allocate(job->replica) == WEIR_OK ? WEIR_EXIT_OK : weir_cli_fail();
}

/* A parameter's bytes in host memory; *out_copy is to be freed. NULL when they cannot be had. */
static const void *bytes_of_parameter(const receive_job *job, const weir_tensor *live,
                                      uint64_t n_bytes, void **out_copy)
{
    unsigned device = job->device.number;
    *out_copy = NULL;
    if (!job->device.cuda)
        return live->data;
    *out_copy = malloc(n_bytes + 1);
    if (*out_copy == NULL)
        return weir_cli_error("out of memory"), NULL;
    if (weir_cuda_copy(device, *out_copy, live->data, n_bytes, NULL) == WEIR_OK &&
        weir_cuda_stream_wait(device, NULL) == WEIR_OK)
        return *out_copy;
    return weir_cli_fail(), NULL;
}

static int dump_one(const receive_job *job, weir_checkpoint_writer *writer, size_t index,
                    const weir_tensor *live)
{
    uint64_t n_bytes;
    void *copy;
    int code = WEIR_EXIT_FAILED;
    if (weir_tensor_bytes(live->dtype, &live->shape, &n_bytes) != WEIR_OK)
        return weir_cli_fail();
    const void *data = bytes_of_parameter(job, live, n_bytes, &copy);
    if (data != NULL)
        code = weir_checkpoint_write(writer, index, 0, data, n_bytes) == WEIR_OK ? WEIR_EXIT_OK
                                                                                 : weir_cli_fail();
    free(copy);
    return code;
}

static int dump_parameters(const receive_job *job, uint64_t version)
{
    char path[4096], number[24];
    size_t n;
    const weir_tensor *live = weir_replica_parameters(job->replica, &n);
    weir_checkpoint_writer *writer;
    snprintf(path, sizeof(path), "%s/v%llu.safetensors", job->dump, (unsigned long long)version);
    snprintf(number, sizeof(number), "%llu", (unsigned long long)version);
    const char *metadata[][2] = { { "weir.version", number } };
    mkdir(job->dump, 0777);
    if (weir_checkpoint_create(path, live, n, metadata, 1, &writer) != WEIR_OK)
        return weir_cli_fail();
    for (size_t i = 0; i < n; i++) {
        if (dump_one(job, writer, i, &live[i]) != WEIR_EXIT_OK) {
            weir_checkpoint_abandon(writer);
            return WEIR_EXIT_FAILED;
        }
    }
    return weir_checkpoint_commit(writer) == WEIR_OK ? WEIR_EXIT_OK : weir_cli_fail();
}

static const char *state_text(const weir_replica *replica)
{
    static const char *const texts[] = { "empty", "holding", "unusable" };
    return texts[weir_replica_get_state(replica)];
}

/* False when it was the last thing said. */
static bool is_news(receive_job *job, const char *line)
{
    bool news = strncmp(job->said, line, sizeof(job->said) - 1) != 0;
    snprintf(job->said, sizeof(job->said), "%s", line);
    return news;
}

/* Says what failed and what the replica is left with. */
static int report_failure(receive_job *job)
{
    if (!is_news(job, weir_last_error()))
        return WEIR_EXIT_FAILED;
    int code = weir_cli_fail();
    if (job->flow.as_json)
        weir_flow_print_line(json_pack("{s:s, s:s, s:s, s:I}", "event", "failed", "error",
                                       weir_last_error(), "state", state_text(job->replica),
                                       "version", (json_int_t)weir_replica_version(job->replica)));
    return code;
}

static int install_one(receive_job *job, bool *out_idle)
{
    weir_report report;
    weir_status status = weir_replica_install(job->replica, job->version, &report);
    weir_flow_progress_end();
    /* What ended while a version was awaited, and not while one was read, took no time else. */
    bool waited = status == WEIR_ERR_TIMED_OUT || status == WEIR_ERR_ABORTED;
    *out_idle = waited && report.n_tensors == 0 && report.total_seconds < report.waited_seconds;
    if (status == WEIR_ERR_CANCELLED)
        return WEIR_EXIT_OK;
    if (job->follow && *out_idle) {
        if (is_news(job, weir_last_error()))
            weir_cli_note("%s", weir_last_error());
        return WEIR_EXIT_OK;
    }
    if (status != WEIR_OK)
        return report_failure(job);
    job->said[0] = '\0';
    weir_flow_print_report(&job->flow, "installed", &report);
    job->count -= job->count > 0;
    return job->dump != NULL ? dump_parameters(job, report.version) : WEIR_EXIT_OK;
}

/* A replica that follows outlives a bad version, since the next may be good; it asks again ever
 * more slowly, up to a second. */
static void rest(receive_job *job, int code)
{
    job->n_failures = code == WEIR_EXIT_FAILED ? job->n_failures + 1 : 0;
    for (unsigned i = 0; i < job->n_failures && i < 10 && !weir_cli_stopped(); i++)
        usleep(100000);
}

static int receive_all(receive_job *job)
{
    bool counted = job->count > 0, idle;
    int code = WEIR_EXIT_OK;
    if (weir_cli_stopped())
        return code;
    do {
        code = install_one(job, &idle);
        if (job->follow && job->version != WEIR_LATEST && !idle)
            job->version = WEIR_LATEST; /* the first was asked for by number */
        if (job->follow)
            rest(job, code);
    } while (job->follow && !weir_cli_stopped() && !(counted && job->count == 0));
    while (job->hold && code == WEIR_EXIT_OK && !weir_cli_stopped())
        usleep(20000);
    return code;
}

int weir_cmd_receive(int argc, char **argv)
{
    receive_job job = { .flow = { .model = "model" }, .version = WEIR_LATEST };
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        int code = option == WEIR_CLI_BAD_OPTION ? WEIR_EXIT_USAGE : take_option(option, &job);
        if (code != WEIR_EXIT_OK)
            return code;
    }
    if (optind < argc)
        return weir_cli_usage_error("receive", "'%s' is not wanted", argv[optind]);
    if (job.flow.directory == NULL || job.flow.config == NULL)
        return weir_cli_usage_error("receive", "%s is required",
                                    job.flow.directory == NULL ? "--directory" : "--config");
    weir_cli_catch_signals();
    weir_cli_on_stop(cancel);
    int code = start_replica(&job);
    if (code == WEIR_EXIT_OK)
        code = receive_all(&job);
    weir_cli_on_stop(NULL);
    open_replica = NULL;
    weir_replica_close(job.replica);
    return code;
}
