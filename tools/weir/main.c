/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - finds the verb and runs it. What a verb does stands in its own file.
 *
 * Adding a verb is a row in the table below and a file cmd_<verb>.c.
 */
#include <stdio.h>
#include <string.h>

#include "cli.h"

/* Verbs that need WEIR_GRPC: in a build without it they are NULL here. */
#define OPTIONAL_VERB(verb)                                           \
    int weir_cmd_##verb(int argc, char **argv) __attribute__((weak)); \
    extern const char weir_usage_##verb[] __attribute__((weak));

OPTIONAL_VERB(serve)
OPTIONAL_VERB(publish)
OPTIONAL_VERB(receive)
OPTIONAL_VERB(replica)
OPTIONAL_VERB(broadcast)
OPTIONAL_VERB(orchestrate)
OPTIONAL_VERB(verify)
OPTIONAL_VERB(discover)
OPTIONAL_VERB(trace)
OPTIONAL_VERB(top)
OPTIONAL_VERB(demo)
OPTIONAL_VERB(error)
OPTIONAL_VERB(bench_refit)

static const weir_verb verbs[] = {
    { "convert", "convert safetensors files, tensor by tensor or as whole layers",
      weir_usage_convert, weir_cmd_convert },
    { "formats", "list the conversions", weir_usage_formats, weir_cmd_formats },
    { "families", "list the model families", weir_usage_families, weir_cmd_families },
    { "resolve", "say which conversion a config.json selects", weir_usage_resolve,
      weir_cmd_resolve },
    { "inspect", "list what a safetensors file or checkpoint holds", weir_usage_inspect,
      weir_cmd_inspect },
    { "info", "show what this build and this machine offer", weir_usage_info, weir_cmd_info },
    { "synth", "write a synthetic checkpoint", weir_usage_synth, weir_cmd_synth },
    { "plan", "say who would send what between two meshes", weir_usage_plan, weir_cmd_plan },
    { "config check", "find what is wrong with a run configuration", weir_usage_config_check,
      weir_cmd_config_check },
    { "config show", "print what each part of a run gets", weir_usage_config_show,
      weir_cmd_config_show },
    { "config schema", "print the run configuration's JSON Schema", weir_usage_config_schema,
      weir_cmd_config_schema },
    { "serve", "run a directory", weir_usage_serve, weir_cmd_serve },
    { "publish", "publish a checkpoint as one trainer rank", weir_usage_publish, weir_cmd_publish },
    { "receive", "hold parameters as one replica and install what arrives", weir_usage_receive,
      weir_cmd_receive },
    { "replica", "serve one inference server's workers, driven over HTTP", weir_usage_replica,
      weir_cmd_replica },
    { "broadcast", "be one trainer rank of a run configuration", weir_usage_broadcast,
      weir_cmd_broadcast },
    { "orchestrate", "drive a run's inference servers through each version", weir_usage_orchestrate,
      weir_cmd_orchestrate },
    { "verify", "compare a live replica with a checkpoint, byte for byte", weir_usage_verify,
      weir_cmd_verify },
    { "discover", "list the sources that a reader could use, and why not the others",
      weir_usage_discover, weir_cmd_discover },
    { "trace", "write where a refit's time went, as a Chrome trace", weir_usage_trace,
      weir_cmd_trace },
    { "top", "watch a fleet: who holds which version, refits in flight, the last ones",
      weir_usage_top, weir_cmd_top },
    { "demo", "run the main job: 2 trainer ranks, 2 replicas, 5 versions", weir_usage_demo,
      weir_cmd_demo },
    { "error", "show how far a conversion moves the weights", weir_usage_error, weir_cmd_error },
    { "bench convert", "measure conversions beside the memory's bandwidth",
      weir_usage_bench_convert, weir_cmd_bench_convert },
    { "bench copy", "measure how fast bytes move, way by way", weir_usage_bench_copy,
      weir_cmd_bench_copy },
    { "bench refit", "measure whole refits between GPUs or hosts", weir_usage_bench_refit,
      weir_cmd_bench_refit },
};
#define N_VERBS (sizeof(verbs) / sizeof(verbs[0]))

static int print_help(void)
{
    puts("weir - moves freshly trained weights into running inference engines, in kernel format\n"
         "\n"
         "usage: weir [-v] VERB [ARGUMENT...]\n"
         "       weir VERB --help\n"
         "\n"
         "verbs:");
    for (size_t i = 0; i < N_VERBS; i++)
        printf("  %-14s %s%s\n", verbs[i].name, verbs[i].summary,
               verbs[i].run == NULL ? " (not in this build)" : "");
    puts("\n"
         "  -v             say more on stderr; twice, more still (before the verb or after it)\n"
         "  --log-format F text or json: how stderr speaks (before the verb or after it)\n"
         "  --log-level L  error, warn (the default), info, debug\n"
         "  --version      print the version\n"
         "\n"
         "Exit code: 0 done, 1 failed, 2 wrong command line.");
    return WEIR_EXIT_OK;
}

/* The row that argv[0] (and argv[1], for a verb of two words) names; *out_words: how many did. */
static const weir_verb *find_verb(int argc, char **argv, int *out_words)
{
    for (size_t i = 0; i < N_VERBS; i++) {
        const char *name = verbs[i].name;
        size_t first = strcspn(name, " ");
        if (strncmp(argv[0], name, first) != 0 || argv[0][first] != '\0')
            continue;
        *out_words = name[first] == '\0' ? 1 : 2;
        if (*out_words == 1 || (argc > 1 && strcmp(argv[1], name + first + 1) == 0))
            return &verbs[i];
    }
    return NULL;
}

/* "bench" alone, or "bench frobnicate": says which second words there are. */
static int refuse_verb(const char *word)
{
    char seconds[128] = "";
    size_t n = strlen(word);
    for (size_t i = 0; i < N_VERBS; i++) {
        size_t used = strlen(seconds);
        if (strncmp(verbs[i].name, word, n) == 0 && verbs[i].name[n] == ' ')
            snprintf(seconds + used, sizeof(seconds) - used, "%s%s", used > 0 ? ", " : "",
                     verbs[i].name + n + 1);
    }
    if (seconds[0] != '\0')
        weir_cli_error("'%s' takes one of: %s; see 'weir --help'", word, seconds);
    else
        weir_cli_error("unknown verb '%s'; see 'weir --help'", word);
    return WEIR_EXIT_USAGE;
}

static bool asks_for_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}

static int run_verb(int argc, char **argv)
{
    int n_words = 0;
    const weir_verb *verb = find_verb(argc, argv, &n_words);
    if (verb == NULL)
        return refuse_verb(argv[0]);
    if (verb->run == NULL)
        return weir_cli_error("'%s' is not in this build", verb->name);
    argc -= n_words - 1;
    argv += n_words - 1;
    if (verb->usage != NULL && asks_for_help(argc, argv)) {
        fputs(verb->usage, stdout);
        return WEIR_EXIT_OK;
    }
    argv[0] = (char *)(uintptr_t)verb->name;
    optind = 1;
    return verb->run(argc, argv);
}

/* "--log-level info" and "--log-level=info": how many arguments that was, 0: it is another one, -1
 * after having printed the usage error. */
static int take_log_option(int argc, char **argv)
{
    static const struct {
        const char *name;
        bool (*take)(const char *verb, const char *text);
    } rows[] = { { "--log-format", weir_cli_log_format }, { "--log-level", weir_cli_log_level } };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        size_t n = strlen(rows[i].name);
        if (strncmp(argv[1], rows[i].name, n) != 0)
            continue;
        if (argv[1][n] == '=')
            return rows[i].take(NULL, argv[1] + n + 1) ? 1 : -1;
        if (argv[1][n] == '\0' && argc > 2)
            return rows[i].take(NULL, argv[2]) ? 2 : -1;
    }
    return 0;
}

/* What stands before the verb. */
static int run(int argc, char **argv)
{
    weir_cli_log_begin();
    for (; argc > 1 && argv[1][0] == '-'; argc--, argv++) {
        const char *option = argv[1];
        if (strcmp(option, "--help") == 0 || strcmp(option, "-h") == 0)
            return print_help();
        if (strcmp(option, "--version") == 0) {
            printf("weir %s\n", weir_version());
            return WEIR_EXIT_OK;
        }
        int n_taken = take_log_option(argc, argv);
        if (n_taken < 0)
            return WEIR_EXIT_USAGE;
        if (n_taken > 0) {
            argc -= n_taken - 1;
            argv += n_taken - 1;
            continue;
        }
        if (strcmp(option, "-v") != 0 && strcmp(option, "--verbose") != 0) {
            weir_cli_error("unknown option '%s'; see 'weir --help'", option);
            return WEIR_EXIT_USAGE;
        }
        weir_cli_log_more();
    }
    if (argc < 2) {
        weir_cli_error("which verb? See 'weir --help'");
        return WEIR_EXIT_USAGE;
    }
    return run_verb(argc - 1, argv + 1);
}

int main(int argc, char **argv)
{
    return weir_cli_close_stdout(run(argc, argv));
}
