/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_replica.c - `weir replica`: the workers of one inference server, without its engine: holds
 * the parameters, and does what an orchestrator asks over HTTP. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flow.h"
#include "weir/cuda.h"
#include "weir/inference.h"

const char weir_usage_replica[] =
    "usage: weir replica --http HOST:PORT --model NAME --config PATH [--tp N] [--dp N] [--ep N] "
    "[OPTION...]\n"
    "\n"
    "Is one inference server: dp engines of tp workers, each with its own parameters. Over HTTP "
    "an\n"
    "orchestrator tells it where the trainer is (POST /init_broadcaster), and to pause, to install "
    "a\n"
    "version on all workers or on none (/update_weights), and to resume; GET /weight_info says "
    "what\n"
    "it holds. Ends on SIGINT or SIGTERM.\n"
    "\n"
    "  --http HOST:PORT            default: 127.0.0.1:8000; port 0: any free one\n"
    "  --tp N, --dp N              workers of one engine, engines (default: 1)\n"
    "  --ep N                      expert parallelism; above 1 all tp * dp workers are one "
    "engine,\n"
    "                              and --replica-experts says which experts are where\n"
    "  --device host|cuda:N        where the parameters lie (default: host); cuda:N,cuda:M,...: "
    "of\n"
    "                              each worker\n"
    "  --install staged|direct     verify beside the live parameters, or land in them: then the\n"
    "                              engine has to be paused first\n"
    "  --dump DIR                  write DIR/v<N>.worker<W>.safetensors after each update\n"
    "  --name NAME                 of the workers' entries: NAME-dp0, ... (default: server-N, N "
    "its\n"
    "                              server_rank), as `weir verify --replica` takes it\n"
    "\n"
    "--replica-mesh, --worker, --directory, --run and --wire are not taken: they are said over\n"
    "HTTP.\n"
    "\n" WEIR_FLOW_USAGE;

enum {
    OPTION_HTTP = WEIR_FLOW_OWN_OPTION,
    OPTION_TP,
    OPTION_DP,
    OPTION_EP,
    OPTION_DEVICE,
    OPTION_INSTALL,
    OPTION_DUMP
};

static const struct option options[] = { WEIR_FLOW_LONG_OPTIONS,
                                         { "http", required_argument, NULL, OPTION_HTTP },
                                         { "tp", required_argument, NULL, OPTION_TP },
                                         { "ep", required_argument, NULL, OPTION_EP },
                                         { "dp", required_argument, NULL, OPTION_DP },
                                         { "device", required_argument, NULL, OPTION_DEVICE },
                                         { "install", required_argument, NULL, OPTION_INSTALL },
                                         { "dump", required_argument, NULL, OPTION_DUMP },
                                         WEIR_CLI_OPTIONS_END };

#define MOST_WORKERS 256

typedef struct replica_job {
    weir_flow_options flow;
    const char *http, *dump;
    uint64_t tp, dp, ep;
    weir_install_mode install;
    const char *devices[MOST_WORKERS];
    weir_cli_device places[MOST_WORKERS];
    size_t n_devices;
    weir_inference *server;
} replica_job;

/* ---- options ---------------------------------------------------------------------------------*/

/* "cuda:0,cuda:1": argv's text is cut at the commas. */
static int take_devices(replica_job *job)
{
    char *rest = NULL;
    job->n_devices = 0;
    for (char *word = strtok_r(optarg, ",", &rest); word != NULL;
         word = strtok_r(NULL, ",", &rest)) {
        if (job->n_devices == MOST_WORKERS)
            return weir_cli_usage_error("replica", "--device takes %d at most", MOST_WORKERS);
        if (!weir_cli_read_device("replica", word, &job->places[job->n_devices]))
            return WEIR_EXIT_USAGE;
        job->devices[job->n_devices++] = word;
    }
    return job->n_devices > 0 ? WEIR_EXIT_OK
                              : weir_cli_usage_error("replica", "--device takes host or cuda:N");
}

static int take_install(replica_job *job)
{
    if (strcmp(optarg, "staged") != 0 && strcmp(optarg, "direct") != 0)
        return weir_cli_usage_error("replica", "--install takes staged or direct, got '%s'",
                                    optarg);
    job->install = optarg[0] == 's' ? WEIR_INSTALL_STAGED : WEIR_INSTALL_DIRECT;
    return WEIR_EXIT_OK;
}

static int take_option(int option, replica_job *job)
{
    switch (option) {
    case OPTION_HTTP:
        job->http = optarg;
        return WEIR_EXIT_OK;
    case OPTION_TP:
        return weir_cli_number("replica", "--tp", optarg, 1, MOST_WORKERS, &job->tp)
                   ? WEIR_EXIT_OK
                   : WEIR_EXIT_USAGE;
    case OPTION_EP:
        return weir_cli_number("replica", "--ep", optarg, 1, MOST_WORKERS, &job->ep)
                   ? WEIR_EXIT_OK
                   : WEIR_EXIT_USAGE;
    case OPTION_DP:
        return weir_cli_number("replica", "--dp", optarg, 1, MOST_WORKERS, &job->dp)
                   ? WEIR_EXIT_OK
                   : WEIR_EXIT_USAGE;
    case OPTION_DEVICE:
        return take_devices(job);
    case OPTION_INSTALL:
        return take_install(job);
    case OPTION_DUMP:
        job->dump = optarg;
        return WEIR_EXIT_OK;
    default:
        return weir_flow_take_option("replica", option, &job->flow);
    }
}

/* One device is that of all workers. */
static int spread_devices(replica_job *job)
{
    uint64_t n_workers = job->tp * job->dp;
    const weir_flow_options *flow = &job->flow;
    if (flow->wire != WEIR_WIRE_KERNEL)
        return weir_cli_usage_error("replica",
                                    "--wire is said over HTTP: quantize_in_weight_transfer");
    if (flow->directory != NULL || flow->run != NULL || flow->replica_mesh != NULL)
        return weir_cli_usage_error("replica",
                                    "%s is said over HTTP, by POST /init_broadcaster, or by --tp",
                                    flow->directory != NULL ? "--directory"
                                    : flow->run != NULL     ? "--run"
                                                            : "--replica-mesh");
    if (flow->config == NULL)
        return weir_cli_usage_error("replica", "--config is required");
    if (n_workers > MOST_WORKERS)
        return weir_cli_usage_error("replica", "--tp and --dp make %llu workers, %d are the most",
                                    (unsigned long long)n_workers, MOST_WORKERS);
    if (job->n_devices > 1 && job->n_devices != n_workers)
        return weir_cli_usage_error("replica", "--device names %zu devices of %llu workers",
                                    job->n_devices, (unsigned long long)n_workers);
    for (size_t i = 1; i < n_workers && job->n_devices == 1; i++) {
        job->devices[i] = job->devices[0];
        job->places[i] = job->places[0];
    }
    return WEIR_EXIT_OK;
}

/* ---- dumps -----------------------------------------------------------------------------------*/

/* A parameter's bytes in host memory; *out_copy is to be freed. NULL when they cannot be had. */
static const void *bytes_of_parameter(const weir_cli_device *place, const weir_tensor *live,
                                      uint64_t n_bytes, void **out_copy)
{
    *out_copy = NULL;
    if (!place->cuda)
        return live->data;
    *out_copy = malloc(n_bytes + 1);
    if (*out_copy != NULL &&
        weir_cuda_copy(place->number, *out_copy, live->data, n_bytes, NULL) == WEIR_OK &&
        weir_cuda_stream_wait(place->number, NULL) == WEIR_OK)
        return *out_copy;
    return NULL;
}

static weir_status dump_one(const weir_cli_device *place, weir_checkpoint_writer *writer,
                            size_t index, const weir_tensor *live)
{
    uint64_t n_bytes;
    void *copy;
    weir_status status = weir_tensor_bytes(live->dtype, &live->shape, &n_bytes);
    if (status != WEIR_OK)
        return status;
    const void *data = bytes_of_parameter(place, live, n_bytes, &copy);
    status =
        data != NULL ? weir_checkpoint_write(writer, index, 0, data, n_bytes) : WEIR_ERR_NO_MEMORY;
    free(copy);
    return status;
}

static weir_status dump_worker(const replica_job *job, uint32_t worker, uint64_t version)
{
    char path[4096], number[24];
    size_t n;
    const weir_tensor *live = weir_inference_parameters(job->server, worker, &n);
    weir_checkpoint_writer *writer;
    snprintf(path, sizeof(path), "%s/v%llu.worker%u.safetensors", job->dump,
             (unsigned long long)version, worker);
    snprintf(number, sizeof(number), "%llu", (unsigned long long)version);
    const char *metadata[][2] = { { "weir.version", number } };
    weir_status status = weir_checkpoint_create(path, live, n, metadata, 1, &writer);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < n && status == WEIR_OK; i++)
        status = dump_one(&job->places[worker], writer, i, &live[i]);
    if (status == WEIR_OK)
        return weir_checkpoint_commit(writer);
    weir_checkpoint_abandon(writer);
    return status;
}

static void dump(const replica_job *job, const weir_inference_info *info)
{
    mkdir(job->dump, 0777);
    for (uint32_t i = 0; i < info->n_workers; i++) {
        if (dump_worker(job, i, info->version) != WEIR_OK)
            weir_cli_fail();
    }
}

/* ---- events ----------------------------------------------------------------------------------*/

static void print_event(const replica_job *job, const char *event, const weir_inference_info *info)
{
    static const char *const states[] = { "empty", "holding", "unusable" };
    if (!job->flow.as_json) {
        if (info->state == WEIR_INFERENCE_HOLDING)
            printf("%s: version %llu\n", event, (unsigned long long)info->version);
        else
            printf("%s: %s\n", event, states[info->state]);
        fflush(stdout);
        return;
    }
    weir_flow_print_line(json_pack(
        "{s:s, s:s, s:I, s:b, s:b, s:i, s:s, s:I, s:f, s:s}", "event", event, "state",
        states[info->state], "version", (json_int_t)info->version, "paused", info->paused, "joined",
        info->joined, "rank", (int)info->rank, "mode", info->kernel_mode ? "kernel" : "checkpoint",
        "bytes", (json_int_t)info->n_bytes, "seconds", info->seconds, "error", info->error));
}

static void said(void *context, const char *event, const weir_inference_info *info)
{
    const replica_job *job = context;
    weir_flow_progress_end();
    if (strcmp(event, "updated") == 0 && job->dump != NULL)
        dump(job, info);
    print_event(job, event, info);
}

/* ---- the verb --------------------------------------------------------------------------------*/

static int start_server(replica_job *job)
{
    const weir_flow_options *flow = &job->flow;
    weir_inference_options inference = WEIR_INFERENCE_OPTIONS_INIT;
    inference.http = job->http;
    inference.model = flow->model;
    inference.name = flow->name;
    inference.family = flow->family;
    inference.layout = flow->layout;
    inference.conversion = flow->conversion;
    inference.config = flow->config;
    inference.tp = (uint32_t)job->tp;
    inference.ep = (uint32_t)job->ep;
    inference.dp = (uint32_t)job->dp;
    inference.experts = flow->replica_experts;
    inference.devices = job->n_devices > 0 ? job->devices : NULL;
    inference.install = job->install;
    inference.transport = flow->transport;
    inference.transport_directory = flow->transport_directory;
    inference.listen = flow->listen;
    inference.n_threads = flow->n_threads;
    inference.timeout_ms = flow->timeout_ms;
    inference.progress = weir_flow_progress;
    inference.progress_context = &job->flow;
    inference.said = said;
    inference.said_context = job;
    return weir_inference_open(&inference, &job->server) == WEIR_OK ? WEIR_EXIT_OK
                                                                    : weir_cli_fail();
}

int weir_cmd_replica(int argc, char **argv)
{
    static replica_job job = { .flow = { .model = "model" }, .tp = 1, .dp = 1, .ep = 1 };
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        int code = option == WEIR_CLI_BAD_OPTION ? WEIR_EXIT_USAGE : take_option(option, &job);
        if (code != WEIR_EXIT_OK)
            return code;
    }
    if (optind < argc)
        return weir_cli_usage_error("replica", "'%s' is not wanted", argv[optind]);
    int code = spread_devices(&job);
    if (code != WEIR_EXIT_OK)
        return code;
    weir_cli_catch_signals();
    code = start_server(&job);
    if (code != WEIR_EXIT_OK)
        return code;
    const char *address = weir_inference_address(job.server);
    if (job.flow.as_json)
        weir_flow_print_line(json_pack("{s:s, s:s}", "event", "listening", "http", address));
    else
        printf("inference server at %s\n", address);
    fflush(stdout);
    while (!weir_cli_stopped())
        usleep(20000);
    weir_inference_close(job.server);
    return WEIR_EXIT_OK;
}
