/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_serve.c - `weir serve`: a directory, until it is told to stop. */
#include <stdio.h>
#include <unistd.h>

#include "flow.h"

const char weir_usage_serve[] =
    "usage: weir serve [--listen HOST:PORT] [--json]\n"
    "\n"
    "Runs a directory: who has which version, who reads it. Speaks gRPC, compatible with\n"
    "ModelExpress. Keeps its records in memory. Ends on SIGINT or SIGTERM.\n"
    "\n"
    "  --listen HOST:PORT    default: 127.0.0.1:8500; port 0: any free one\n"
    "  --json                print {\"address\": \"HOST:PORT\"} when it listens\n";

enum { OPTION_LISTEN = 256, OPTION_JSON };

static const struct option options[] = { { "listen", required_argument, NULL, OPTION_LISTEN },
                                         { "json", no_argument, NULL, OPTION_JSON },
                                         WEIR_CLI_OPTIONS_END };

int weir_cmd_serve(int argc, char **argv)
{
    weir_directory_options directory_options = WEIR_DIRECTORY_OPTIONS_INIT;
    weir_directory *directory;
    bool as_json = false;
    directory_options.listen = "127.0.0.1:8500";
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION)
            return WEIR_EXIT_USAGE;
        if (option == OPTION_LISTEN)
            directory_options.listen = optarg;
        else
            as_json = true;
    }
    if (optind < argc)
        return weir_cli_usage_error("serve", "'%s' is not wanted", argv[optind]);
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
