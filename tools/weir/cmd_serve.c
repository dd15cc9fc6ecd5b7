/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_serve.c - `weir serve`: a directory, until it is told to stop. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "flow.h"

const char weir_usage_serve[] =
    "usage: weir serve [--listen HOST:PORT] [--store STORE] [--name NAME] [--http HOST:PORT]\n"
    "                  [--no-http] [--tls-cert FILE ...] [--json]\n"
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
    "  --name NAME           of the fleet within that Redis; default: "
    "default\n" WEIR_CLI_SECURITY_USAGE
    "  --json                print {\"address\": \"HOST:PORT\", \"http\": \"HOST:PORT\"} when it\n"
    "                        listens\n";

#define DEFAULT_HTTP "127.0.0.1:8501"

enum { OPTION_LISTEN = 256, OPTION_HTTP, OPTION_NO_HTTP, OPTION_STORE, OPTION_NAME, OPTION_JSON };

static const struct option options[] = { { "listen", required_argument, NULL, OPTION_LISTEN },
                                         { "http", required_argument, NULL, OPTION_HTTP },
                                         { "no-http", no_argument, NULL, OPTION_NO_HTTP },
                                         { "store", required_argument, NULL, OPTION_STORE },
                                         { "name", required_argument, NULL, OPTION_NAME },
                                         WEIR_CLI_SECURITY_OPTIONS,
                                         { "json", no_argument, NULL, OPTION_JSON },
                                         WEIR_CLI_OPTIONS_END };

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

static void take_option(int option, serve_job *job)
{
    switch (option) {
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
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION)
            return WEIR_EXIT_USAGE;
        take_option(option, &job);
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
    if (open_directory(&job, &directory) != WEIR_OK)
        return weir_cli_fail();
    print_addresses(&job, directory);
    fflush(stdout);
    while (!weir_cli_stopped())
        usleep(50000);
    weir_directory_close(directory);
    return WEIR_EXIT_OK;
}
