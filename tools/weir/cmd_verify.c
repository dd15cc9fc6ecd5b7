/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_verify.c - `weir verify`: compares a live replica with a checkpoint, byte for byte. */
#include <stdio.h>

#include "flow.h"

const char weir_usage_verify[] =
    "usage: weir verify SRC... --replica NAME --directory HOST:PORT [OPTION...]\n"
    "\n"
    "Reads every live parameter of a running replica (see `weir receive --hold`), converts SRC\n"
    "independently with the C reference kernels and compares them. Exit code 0: all equal.\n"
    "\n"
    "  --replica NAME              the replica's --name\n" WEIR_FLOW_USAGE;

enum { OPTION_REPLICA = WEIR_FLOW_OWN_OPTION };

static const struct option options[] = { WEIR_FLOW_LONG_OPTIONS,
                                         { "replica", required_argument, NULL, OPTION_REPLICA },
                                         WEIR_CLI_OPTIONS_END };

static int print_result(const weir_flow_options *flow, const char *replica,
                        const weir_verify_report *report)
{
    bool equal = report->n_different == 0;
    if (flow->as_json)
        weir_flow_print_line(json_pack(
            "{s:s, s:b, s:I, s:I, s:I, s:I, s:s}", "replica", replica, "verified", equal, "version",
            (json_int_t)report->version, "parameters", (json_int_t)report->n_parameters, "bytes",
            (json_int_t)report->n_bytes, "different", (json_int_t)report->n_different,
            "first_difference", report->first_difference));
    else if (equal)
        printf("%s holds version %llu: %llu parameters, %s, all equal\n", replica,
               (unsigned long long)report->version, (unsigned long long)report->n_parameters,
               weir_cli_bytes_text(report->n_bytes).text);
    if (equal)
        return WEIR_EXIT_OK;
    return weir_cli_error("%s, version %llu: %llu of %llu parameters differ: %s", replica,
                          (unsigned long long)report->version,
                          (unsigned long long)report->n_different,
                          (unsigned long long)report->n_parameters, report->first_difference);
}

static int verify(weir_flow_options *flow, const char *replica, char **paths, size_t n_paths)
{
    weir_verify_options verify = WEIR_VERIFY_OPTIONS_INIT;
    weir_verify_report report;
    weir_flow_source source;
    if (!weir_flow_source_open(flow, (const char *const *)paths, n_paths, &source))
        return WEIR_EXIT_FAILED;
    verify.directory = flow->directory;
    verify.model = flow->model;
    verify.run = flow->run;
    verify.replica = replica;
    verify.family = flow->family;
    verify.layout = flow->layout;
    verify.conversion = flow->conversion;
    verify.config = source.config[0] != '\0' ? source.config : NULL;
    verify.sources = weir_checkpoint_tensors(source.checkpoint, &verify.n_sources);
    verify.keep_masters = flow->keep_masters;
    verify.ignore = flow->ignore;
    verify.n_ignore = flow->n_ignore;
    verify.transport_directory = flow->transport_directory;
    verify.n_threads = flow->n_threads;
    verify.timeout_ms = flow->timeout_ms;
    verify.mesh = flow->replica_mesh;
    verify.experts = flow->replica_experts;
    verify.worker = flow->worker;
    verify.progress = weir_flow_progress;
    verify.progress_context = flow;
    weir_status status = weir_verify(&verify, &report);
    weir_flow_progress_end();
    int code = status == WEIR_OK ? print_result(flow, replica, &report) : weir_cli_fail();
    weir_flow_source_close(&source);
    return code;
}

int weir_cmd_verify(int argc, char **argv)
{
    weir_flow_options flow = { .model = "model" };
    const char *replica = NULL;
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        int code = WEIR_EXIT_OK;
        if (option == WEIR_CLI_BAD_OPTION)
            return WEIR_EXIT_USAGE;
        if (option == OPTION_REPLICA)
            replica = optarg;
        else
            code = weir_flow_take_option("verify", option, &flow);
        if (code != WEIR_EXIT_OK)
            return code;
    }
    if (optind == argc)
        return weir_cli_usage_error("verify", "no SRC");
    if (replica == NULL || flow.directory == NULL)
        return weir_cli_usage_error("verify", "%s is required",
                                    replica == NULL ? "--replica" : "--directory");
    return verify(&flow, replica, argv + optind, (size_t)(argc - optind));
}
