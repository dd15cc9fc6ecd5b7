/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_serve.c - `weir serve`: a directory, until it is told to stop. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "flow.h"

const char weir_usage_serve[] =
    "usage: weir serve [--listen HOST:PORT] [--store STORE] [--name NAME] [--tls-cert FILE ...] "
    "[--json]\n"
    "\n"
    "Runs a directory: who has which version, who reads it. Speaks gRPC, compatible with\n"
    "ModelExpress. Ends on SIGINT or SIGTERM.\n"
    "\n"
    "  --listen HOST:PORT    default: 127.0.0.1:8500; port 0: any free one\n"
    "  --store STORE         where its records are: memory (the default), or\n"
    "                        redis://[USER:PASSWORD@]HOST:PORT[/DB], where they outlive it and\n"
    "                        several directories have the same; @FILE: as the first line of FILE\n"
    "                        says, which keeps a password off the command line\n"
    "  --name NAME           of the fleet within that Redis; default: "
    "default\n" WEIR_CLI_SECURITY_USAGE
    "  --json                print {\"address\": \"HOST:PORT\"} when it listens\n";

enum { OPTION_LISTEN = 256, OPTION_STORE, OPTION_NAME, OPTION_JSON };

static const struct option options[] = { { "listen", required_argument, NULL, OPTION_LISTEN },
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

int weir_cmd_serve(int argc, char **argv)
{
    weir_directory_options directory_options = WEIR_DIRECTORY_OPTIONS_INIT;
    weir_directory *directory;
    char store[STORE_BYTES];
    bool as_json = false;
    directory_options.listen = "127.0.0.1:8500";
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION)
            return WEIR_EXIT_USAGE;
        if (option == OPTION_LISTEN)
            directory_options.listen = optarg;
        else if (option == OPTION_STORE)
            directory_options.store = optarg;
        else if (option == OPTION_NAME)
            directory_options.name = optarg;
        else
            as_json = true;
    }
    if (optind < argc)
        return weir_cli_usage_error("serve", "'%s' is not wanted", argv[optind]);
    if (directory_options.store != NULL && directory_options.store[0] == '@') {
        if (!read_store(directory_options.store + 1, store))
            return weir_cli_usage_error("serve", "--store: cannot read '%s'",
                                        directory_options.store + 1);
        directory_options.store = store;
    }
    weir_cli_catch_signals();
    if (weir_directory_open(&directory_options, &directory) != WEIR_OK)
        return weir_cli_fail();
    if (as_json)
        weir_flow_print_line(json_pack("{s:s}", "address", weir_directory_address(directory)));
    else
        printf("directory at %s\n", weir_directory_address(directory));
    fflush(stdout);
    while (!weir_cli_stopped())
        usleep(50000);
    weir_directory_close(directory);
    return WEIR_EXIT_OK;
}
