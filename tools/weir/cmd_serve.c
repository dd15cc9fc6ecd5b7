/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_serve.c - `weir serve`: a directory, until it is told to stop. */
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "flow.h"

const char weir_usage_serve[] =
    "usage: weir serve [--listen HOST:PORT] [--store STORE] [--name NAME] [--http HOST:PORT]\n"
    "                  [--no-http] [--max-connections N] [--max-connections-per-host N]\n"
    "                  [--tls-cert FILE ...] [--json]\n"
    "\n"
    "Runs a directory: who has which version, who reads it. Speaks gRPC, compatible with\n"
    "ModelExpress. Ends on SIGINT or SIGTERM.\n"
    "\n"
    "  --listen HOST:PORT    default: 127.0.0.1:8500; port 0: any free one\n"
    "  --http HOST:PORT      where a page about the fleet is, /metrics, /healthz and /readyz;\n"
    "                        default: 127.0.0.1:8501, left out when it is taken\n"
    "  --no-http             not at all\n"
    "  --store STORE         where its records are: memory (the default), or\n"
    "                        redis://[USER:PASSWORD@]HOST:PORT[/DB], where they outlive it and\n"
    "                        several directories have the same; @FILE: as the first line of FILE\n"
    "                        says, which keeps a password off the command line\n"
    "  --name NAME           of the fleet within that Redis; default: default\n"
    "  --max-connections N   default: 12288; fewer where the limit of descriptors (ulimit -n), of\n"
    "                        which all are taken, leaves no room for as many\n"
    "  --max-connections-per-host N   from one address that is not loopback; default: half of "
    "all;\n"
    "                        for a fleet behind a load balancer or NAT as many as "
    "all\n" WEIR_CLI_SECURITY_USAGE
    "  --json                print {\"address\": \"HOST:PORT\", \"http\": \"HOST:PORT\"} when it\n"
    "                        listens\n";

#define DEFAULT_HTTP "127.0.0.1:8501"

#define DEFAULT_CONNECTIONS 12288
#define MOST_CONNECTIONS 1000000

enum {
    OPTION_LISTEN = 256,
    OPTION_HTTP,
    OPTION_NO_HTTP,
    OPTION_STORE,
    OPTION_NAME,
    OPTION_CONNECTIONS,
    OPTION_CONNECTIONS_PER_HOST,
    OPTION_JSON
};

static const struct option options[] = {
    { "listen", required_argument, NULL, OPTION_LISTEN },
    { "http", required_argument, NULL, OPTION_HTTP },
    { "no-http", no_argument, NULL, OPTION_NO_HTTP },
    { "store", required_argument, NULL, OPTION_STORE },
    { "name", required_argument, NULL, OPTION_NAME },
    { "max-connections", required_argument, NULL, OPTION_CONNECTIONS },
    { "max-connections-per-host", required_argument, NULL, OPTION_CONNECTIONS_PER_HOST },
    WEIR_CLI_SECURITY_OPTIONS,
    { "json", no_argument, NULL, OPTION_JSON },
    WEIR_CLI_OPTIONS_END
};

#define STORE_BYTES 2048

/* False when the file cannot be read; its text is the caller's. */
static bool read_store(const char *path, char text[STORE_BYTES])
{
    FILE *file = fopen(path, "re");
    bool is_read = file != NULL && fgets(text, STORE_BYTES, file) != NULL;
    if (file != NULL)
        fclose(file);
    if (is_read)
        text[strcspn(text, "\r\n")] = '\0';
    return is_read;
}

typedef struct serve_job {
    weir_directory_options options;
    bool no_http, as_json;
} serve_job;

static bool take_number(const char *option, unsigned *out)
{
    uint64_t number;
    if (!weir_cli_number("serve", option, optarg, 1, MOST_CONNECTIONS, &number))
        return false;
    *out = (unsigned)number;
    return true;
}

static bool take_option(int option, serve_job *job)
{
    switch (option) {
    case OPTION_CONNECTIONS:
        return take_number("--max-connections", &job->options.max_connections);
    case OPTION_CONNECTIONS_PER_HOST:
        return take_number("--max-connections-per-host", &job->options.max_connections_per_host);
    case OPTION_LISTEN:
        job->options.listen = optarg;
        break;
    case OPTION_HTTP:
        job->options.http = optarg;
        break;
    case OPTION_NO_HTTP:
        job->no_http = true;
        break;
    case OPTION_STORE:
        job->options.store = optarg;
        break;
    case OPTION_NAME:
        job->options.name = optarg;
        break;
    default:
        job->as_json = true;
    }
    return true;
}

/* Each connection takes one, and what shells give by default is from when there were few. Only
 * here: in other programs select() may still be used, which knows no more than 1,024. */
static void take_all_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max)
        return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE,
              &limit); /* else with what there is: the directory says how far it goes */
}

/* Several directories may run on one machine: the page's usual place is the first one's. */
static weir_status open_directory(const serve_job *job, weir_directory **out)
{
    weir_directory_options wanted = job->options;
    if (wanted.http != NULL || job->no_http)
        return weir_directory_open(&wanted, out);
    wanted.http = DEFAULT_HTTP;
    weir_status status = weir_directory_open(&wanted, out);
    if (status != WEIR_ERR_IO && status != WEIR_ERR_UNSUPPORTED)
        return status;
    wanted.http = NULL;
    return weir_directory_open(&wanted, out);
}

static void print_addresses(const serve_job *job, const weir_directory *directory)
{
    const char *address = weir_directory_address(directory);
    const char *http = weir_directory_http_address(directory);
    if (job->as_json) {
        weir_flow_print_line(json_pack("{s:s, s:s}", "address", address, "http", http));
        return;
    }
    printf("directory at %s\n", address);
    if (http[0] != '\0')
        printf("its page at %s\n", http);
    else if (!job->no_http)
        weir_cli_note("no page is served: %s is taken or this build has no HTTP; see --http",
                      DEFAULT_HTTP);
}

int weir_cmd_serve(int argc, char **argv)
{
    serve_job job = { .options = WEIR_DIRECTORY_OPTIONS_INIT };
    weir_directory *directory;
    char store[STORE_BYTES];
    job.options.listen = "127.0.0.1:8500";
    job.options.max_connections = DEFAULT_CONNECTIONS;
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION || !take_option(option, &job))
            return WEIR_EXIT_USAGE;
    }
    if (optind < argc)
        return weir_cli_usage_error("serve", "'%s' is not wanted", argv[optind]);
    if (job.no_http && job.options.http != NULL)
        return weir_cli_usage_error("serve", "--http and --no-http exclude each other");
    if (job.options.store != NULL && job.options.store[0] == '@') {
        if (!read_store(job.options.store + 1, store))
            return weir_cli_usage_error("serve", "--store: cannot read '%s'",
                                        job.options.store + 1);
        job.options.store = store;
    }
    weir_cli_catch_signals();
    take_all_descriptors();
    if (open_directory(&job, &directory) != WEIR_OK)
        return weir_cli_fail();
    print_addresses(&job, directory);
    fflush(stdout);
    while (!weir_cli_stopped())
        usleep(50000);
    weir_directory_close(directory);
    return WEIR_EXIT_OK;
}
