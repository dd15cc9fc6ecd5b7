/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_trace.c - `weir trace`: where a refit's time went, as a Chrome trace. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "trace_events.h"
#include "weir/fleet.h"

const char weir_usage_trace[] =
    "usage: weir trace VERSION --directory HOST:PORT [-o FILE] [OPTION...]\n"
    "\n"
    "Writes what the directory knows of one refit, one of the last 64 versions of a run: every "
    "stop\n"
    "of every trainer rank and replica worker, what they waited for, the sources that were read\n"
    "slowest, and why it was refused where it was. For chrome://tracing and ui.perfetto.dev.\n"
    "\n"
    "  --directory HOST:PORT   the directory (see `weir serve`), or HOST:PORT,HOST:PORT\n"
    "  -o, --output FILE       default: stdout\n"
    "  --model NAME            when the directory knows this version of several\n"
    "  --run NAME              the same of training runs\n"
    "  --timeout SECONDS       default: 60\n" WEIR_CLI_SECURITY_USAGE;

enum { OPTION_DIRECTORY = 256, OPTION_MODEL, OPTION_RUN, OPTION_TIMEOUT };

static const struct option options[] = { { "directory", required_argument, NULL, OPTION_DIRECTORY },
                                         { "model", required_argument, NULL, OPTION_MODEL },
                                         { "run", required_argument, NULL, OPTION_RUN },
                                         { "timeout", required_argument, NULL, OPTION_TIMEOUT },
                                         { "output", required_argument, NULL, 'o' },
                                         WEIR_CLI_SECURITY_OPTIONS,
                                         WEIR_CLI_OPTIONS_END };

typedef struct trace_job {
    weir_fleet_wish wish;
    const char *run, *output; /* NULL: any, stdout */
    uint64_t version;
} trace_job;

static bool take_option(int option, trace_job *job)
{
    uint64_t seconds;
    switch (option) {
    case OPTION_DIRECTORY:
        job->wish.directory = optarg;
        return true;
    case OPTION_MODEL:
        job->wish.model = optarg;
        return true;
    case OPTION_RUN:
        job->run = optarg;
        return true;
    case OPTION_TIMEOUT:
        if (!weir_cli_number("trace", "--timeout", optarg, 1, 86400, &seconds))
            return false;
        job->wish.timeout_ms = (unsigned)seconds * 1000;
        return true;
    default:
        job->output = optarg;
        return true;
    }
}

/* ---- finding it ------------------------------------------------------------------------------*/

/* NULL after having printed the error. */
static json_t *get_fleet(const weir_fleet_wish *wish)
{
    char *text = NULL;
    json_error_t error;
    if (weir_fleet_get(wish, &text) != WEIR_OK) {
        weir_cli_fail();
        return NULL;
    }
    json_t *fleet = json_loads(text, 0, &error);
    weir_string_free(text);
    if (fleet == NULL)
        weir_cli_error("directory %s: its answer is no JSON: %s", wish->directory, error.text);
    return fleet;
}

static bool is_wanted(const trace_job *job, const json_t *refit)
{
    return (uint64_t)weir_trace_number(refit, "version") == job->version &&
           (job->run == NULL || strcmp(job->run, weir_trace_text(refit, "run")) == 0);
}

/* "3, 2, 1" of what the directory remembers. */
static void list_known(const trace_job *job, char *text, size_t n_text)
{
    weir_fleet_wish wish = job->wish;
    const json_t *refit;
    size_t i, used = 0;
    text[0] = '\0';
    wish.version = 0;
    json_t *fleet = get_fleet(&wish);
    json_array_foreach(json_object_get(fleet, "refits"), i, refit)
    {
        if (used + 256 < n_text)
            used += (size_t)snprintf(
                text + used, n_text - used, "%s%lld of %.64s (run %.64s)", used > 0 ? ", " : "",
                (long long)weir_trace_number(refit, "version"), weir_trace_text(refit, "model"),
                weir_trace_text(refit, "run"));
    }
    json_decref(fleet);
}

/* NULL after having printed the error. */
static const json_t *find_refit(const trace_job *job, const json_t *fleet)
{
    const json_t *refit, *found = NULL;
    char known[1024];
    size_t i;
    json_array_foreach(json_object_get(fleet, "refits"), i, refit)
    {
        if (!is_wanted(job, refit))
            continue;
        if (found != NULL) {
            weir_cli_usage_error("trace",
                                 "version %llu is known of model '%s', run '%s', and of model "
                                 "'%s', run '%s': give --model and --run",
                                 (unsigned long long)job->version, weir_trace_text(found, "model"),
                                 weir_trace_text(found, "run"), weir_trace_text(refit, "model"),
                                 weir_trace_text(refit, "run"));
            return NULL;
        }
        found = refit;
    }
    if (found != NULL)
        return found;
    list_known(job, known, sizeof(known));
    weir_cli_error("directory %s knows nothing of version %llu; the last that it knows: %s",
                   job->wish.directory, (unsigned long long)job->version,
                   known[0] != '\0' ? known : "none");
    return NULL;
}

/* ---- writing it ------------------------------------------------------------------------------*/

static int write_trace(const trace_job *job, const json_t *trace)
{
    if (job->output == NULL || strcmp(job->output, "-") == 0) {
        json_dumpf(trace, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
        putchar('\n');
        return WEIR_EXIT_OK;
    }
    if (json_dump_file(trace, job->output, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) == 0)
        return WEIR_EXIT_OK;
    return weir_cli_error("cannot write %s: %s", job->output, strerror(errno != 0 ? errno : EIO));
}

static double seconds_of(const json_t *word, const char **out_longest)
{
    const json_t *span;
    size_t i;
    json_int_t total_us = 0, longest_us = -1;
    *out_longest = "";
    json_array_foreach(json_object_get(word, "stops"), i, span)
    {
        const char *name = weir_trace_text(span, "name");
        json_int_t us = weir_trace_number(span, "duration_us");
        bool is_stop = strncmp(name, "wait ", 5) != 0 && weir_trace_text(span, "peer")[0] == '\0';
        total_us += is_stop ? us : 0;
        if (is_stop && us > longest_us) {
            longest_us = us;
            *out_longest = name;
        }
    }
    return (double)total_us * 1e-6;
}

/* A line per worker, for who does not want to open it. */
static void print_words(const trace_job *job, const json_t *refit)
{
    const json_t *word;
    size_t i;
    if (job->output == NULL || strcmp(job->output, "-") == 0)
        return;
    word = json_array_get(json_object_get(refit, "words"), 0);
    if (weir_trace_text(word, "trace_id")[0] != '\0') {
        fputs("trace ", stdout);
        weir_cli_put_plain(weir_trace_text(word, "trace_id"), 64);
        putchar('\n');
    }
    printf("%-20s %-32s %10s  %-12s %s\n", "role", "worker", "seconds", "longest", "status");
    json_array_foreach(json_object_get(refit, "words"), i, word)
    {
        const char *longest;
        double seconds = seconds_of(word, &longest);
        printf("%-20.20s %-32.32s %10.6f  %-12.12s ", weir_trace_text(word, "role"),
               weir_trace_text(word, "worker_id"), seconds, longest);
        weir_cli_put_plain(weir_trace_text(word, "status"), 64);
        if (weir_trace_text(word, "text")[0] != '\0')
            fputs(": ", stdout);
        weir_cli_put_plain(weir_trace_text(word, "text"), 1024);
        putchar('\n');
    }
}

static int trace_version(const trace_job *job)
{
    json_t *fleet = get_fleet(&job->wish);
    if (fleet == NULL)
        return WEIR_EXIT_FAILED;
    const json_t *refit = find_refit(job, fleet);
    json_t *trace = refit != NULL ? weir_trace_make(fleet, refit) : NULL;
    int code = WEIR_EXIT_FAILED;
    if (trace != NULL)
        code = write_trace(job, trace);
    else if (refit != NULL)
        weir_cli_error("out of memory");
    if (code == WEIR_EXIT_OK)
        print_words(job, refit);
    json_decref(trace);
    json_decref(fleet);
    return code;
}

int weir_cmd_trace(int argc, char **argv)
{
    trace_job job = { .wish = WEIR_FLEET_WISH_INIT };
    for (int option; (option = weir_cli_option(argc, argv, "o:", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION || !take_option(option, &job))
            return WEIR_EXIT_USAGE;
    }
    if (optind + 1 != argc)
        return weir_cli_usage_error("trace",
                                    optind == argc ? "which version?" : "one version at a time");
    if (!weir_cli_number("trace", "VERSION", argv[optind], 0, INT64_MAX, &job.version))
        return WEIR_EXIT_USAGE;
    if (job.wish.directory == NULL)
        return weir_cli_usage_error("trace", "--directory is required");
    job.wish.version = job.version;
    return trace_version(&job);
}
