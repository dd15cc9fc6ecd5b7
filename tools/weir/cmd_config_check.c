/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_config_check.c - `weir config check`: every problem of a run configuration, with its place
 * and the way out. */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "weir/run_config.h"

const char weir_usage_config_check[] =
    "usage: weir config check FILE [--trainer-host HOST] [--json]\n"
    "\n"
    "Reads the run configuration that a trainer, an orchestrator and inference servers share "
    "(YAML),\n"
    "gives each part what it takes from the others, and checks the whole. Prints every problem as\n"
    "FILE:LINE:COLUMN: field: what is wrong (the way out).\n"
    "\n"
    "  --trainer-host HOST\n"
    "                 as weir broadcast and weir orchestrate will be told\n"
    "  --json         one object: file, problems (line, column, path, text, hint)\n"
    "\n"
    "Exit code: 0 there is none, 1 there are some.\n";

enum { OPTION_JSON = 'j', OPTION_TRAINER_HOST = 'H' };

static void print_problem(const weir_run_problem *problem)
{
    printf("%s:%u:%u: %s%s%s (%s)\n", problem->file, problem->line, problem->column, problem->path,
           problem->path[0] != '\0' ? ": " : "", problem->text, problem->hint);
}

static void print_outcome(const char *file, const weir_run_settings *settings)
{
    const weir_run_broadcast *broadcast = &settings->trainer.broadcast;
    printf("%s: no problem\n", file);
    if (broadcast->type == WEIR_RUN_FILESYSTEM)
        puts("weights go through files, in checkpoint format");
    else if (!broadcast->quantize_in_weight_transfer)
        printf("weights go to %u workers, in checkpoint format\n", broadcast->inference_world_size);
    else
        printf("weights go to %u workers, in kernel format%s%s\n", broadcast->inference_world_size,
               settings->conversion != NULL ? " by " : "",
               settings->conversion != NULL ? settings->conversion : "");
}

/* Right as it is, and not what the flag is for. */
static void note_bf16(const weir_run_settings *settings)
{
    if (settings->trainer.broadcast.quantize_in_weight_transfer && settings->conversion != NULL &&
        strcmp(settings->conversion, "bf16_cast") == 0 &&
        strcmp(settings->inference.conversion, "auto") == 0)
        weir_cli_note("quantize_in_weight_transfer is on, and config.json of the inference model "
                      "has no quantization_config: as many bytes travel as in checkpoint format "
                      "(inference.conversion names another one)");
}

static json_t *problems_json(const char *file, const weir_run_config *config)
{
    json_t *rows = json_array();
    const weir_run_problem *problem;
    for (size_t i = 0; (problem = weir_run_config_problem(config, i)) != NULL; i++)
        json_array_append_new(rows,
                              json_pack("{s:i, s:i, s:s, s:s, s:s}", "line", (int)problem->line,
                                        "column", (int)problem->column, "path", problem->path,
                                        "text", problem->text, "hint", problem->hint));
    return json_pack("{s:s, s:o}", "file", file, "problems", rows);
}

static int report(const char *file, const weir_run_config *config, bool as_json)
{
    size_t n_problems = weir_run_config_problems(config);
    const weir_run_settings *settings;
    if (as_json && weir_cli_print_json(problems_json(file, config)) != WEIR_EXIT_OK)
        return WEIR_EXIT_FAILED;
    for (size_t i = 0; i < n_problems && !as_json; i++)
        print_problem(weir_run_config_problem(config, i));
    if (n_problems > 0)
        return weir_cli_error("%s: %zu problem%s", file, n_problems, n_problems > 1 ? "s" : "");
    if (weir_run_config_settings(config, &settings) != WEIR_OK)
        return weir_cli_fail();
    if (!as_json)
        print_outcome(file, settings);
    note_bf16(settings);
    return WEIR_EXIT_OK;
}

int weir_cmd_config_check(int argc, char **argv)
{
    static const struct option options[] = { { "json", no_argument, NULL, OPTION_JSON },
                                             { "trainer-host", required_argument, NULL,
                                               OPTION_TRAINER_HOST },
                                             WEIR_CLI_OPTIONS_END };
    bool as_json = false;
    const char *trainer_host = NULL;
    weir_run_config *config;
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION)
            return WEIR_EXIT_USAGE;
        if (option == OPTION_TRAINER_HOST)
            trainer_host = optarg;
        else
            as_json = true;
    }
    if (argc - optind != 1)
        return weir_cli_usage_error(argv[0], "takes one file, got %d arguments", argc - optind);
    if (weir_run_config_open_at(argv[optind], trainer_host, &config) != WEIR_OK)
        return weir_cli_fail();
    int code = report(argv[optind], config, as_json);
    weir_run_config_close(config);
    return code;
}
