/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_discover.c - `weir discover`: which sources a directory knows, which of them a reader could
 * use, and what is wrong with the others.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "weir/discover.h"

const char weir_usage_discover[] =
    "usage: weir discover --directory HOST:PORT --model NAME [OPTION...]\n"
    "\n"
    "Asks a directory (Weir's or ModelExpress') who publishes the model, judges every source, and\n"
    "lists those that a reader with these wishes could use: trainers before replicas, newest word\n"
    "first. Exit code: 0 there is one, 1 there is none (a line on stderr says so), 2 wrong "
    "command\n"
    "line.\n"
    "\n"
    "  --directory HOST:PORT  the directory (see `weir serve`), or HOST:PORT,HOST:PORT\n"
    "  --model NAME           exactly as it was published\n"
    "  --run NAME             of this training run alone (default: any)\n"
    "  --target NAME          a compile target that can be read; may be repeated. Every tensor of "
    "a\n"
    "                         source must have one of them\n"
    "  --metadata JSON        {\"block_size\":[128,128]}: what the compile metadata of every "
    "tensor\n"
    "                         must have\n"
    "  --min-version N, --max-version N   bounds of the version, both included\n"
    "  --rank R               this worker rank alone\n"
    "  --role ROLE            trainer or replica (default: both)\n"
    "  --no-replicas          the same as --role trainer\n"
    "  --fresh SECONDS        heard of within so long (default: what is not STALE)\n"
    "  --layout SIGNATURE     of this layout signature alone\n"
    "  --endpoint KIND        read by: weir, nixl, transfer_engine (default: any)\n"
    "  --timeout SECONDS      bound of the whole search (default: 60)\n" WEIR_CLI_SECURITY_USAGE
    "  --explain              list every source, and field by field why it was taken or refused\n"
    "  --json                 one object: sources (with --explain all, with findings), taken, "
    "known\n";

#define MAX_TARGETS 64
#define MAX_CELL 48

enum {
    OPTION_DIRECTORY = 256,
    OPTION_MODEL,
    OPTION_RUN,
    OPTION_TARGET,
    OPTION_METADATA,
    OPTION_MIN_VERSION,
    OPTION_MAX_VERSION,
    OPTION_RANK,
    OPTION_ROLE,
    OPTION_NO_REPLICAS,
    OPTION_FRESH,
    OPTION_LAYOUT,
    OPTION_ENDPOINT,
    OPTION_TIMEOUT,
    OPTION_EXPLAIN,
    OPTION_JSON
};

static const struct option options[] = {
    { "directory", required_argument, NULL, OPTION_DIRECTORY },
    { "model", required_argument, NULL, OPTION_MODEL },
    { "run", required_argument, NULL, OPTION_RUN },
    { "target", required_argument, NULL, OPTION_TARGET },
    { "metadata", required_argument, NULL, OPTION_METADATA },
    { "min-version", required_argument, NULL, OPTION_MIN_VERSION },
    { "max-version", required_argument, NULL, OPTION_MAX_VERSION },
    { "rank", required_argument, NULL, OPTION_RANK },
    { "role", required_argument, NULL, OPTION_ROLE },
    { "no-replicas", no_argument, NULL, OPTION_NO_REPLICAS },
    { "fresh", required_argument, NULL, OPTION_FRESH },
    { "layout", required_argument, NULL, OPTION_LAYOUT },
    { "endpoint", required_argument, NULL, OPTION_ENDPOINT },
    { "timeout", required_argument, NULL, OPTION_TIMEOUT },
    WEIR_CLI_SECURITY_OPTIONS,
    { "explain", no_argument, NULL, OPTION_EXPLAIN },
    { "json", no_argument, NULL, OPTION_JSON },
    WEIR_CLI_OPTIONS_END
};

typedef struct discover_job {
    weir_discover_wish wish;
    const char *targets[MAX_TARGETS];
    bool explain, as_json;
} discover_job;

/* ---- the command line ------------------------------------------------------------------------*/

static bool read_role(const char *text, weir_role_rule *out)
{
    bool trainers = strcmp(text, "trainer") == 0;
    if (!trainers && strcmp(text, "replica") != 0) {
        weir_cli_usage_error("discover", "--role '%s': expected trainer or replica", text);
        return false;
    }
    *out = trainers ? WEIR_ROLES_TRAINERS : WEIR_ROLES_REPLICAS;
    return true;
}

static bool read_endpoint(const char *text, weir_endpoint_kind *out)
{
    for (int kind = WEIR_ENDPOINT_ANY; kind <= WEIR_ENDPOINT_TRANSFER_ENGINE; kind++) {
        *out = (weir_endpoint_kind)kind;
        if (strcmp(text, weir_endpoint_kind_name(*out)) == 0)
            return true;
    }
    weir_cli_usage_error("discover", "--endpoint '%s': expected weir, nixl or transfer_engine",
                         text);
    return false;
}

static bool read_seconds(const char *option, unsigned *out_ms)
{
    uint64_t seconds;
    bool good = weir_cli_number("discover", option, optarg, 1, UINT32_MAX / 1000, &seconds);
    if (good)
        *out_ms = (unsigned)seconds * 1000;
    return good;
}

static bool add_target(discover_job *job)
{
    if (job->wish.n_targets == MAX_TARGETS) {
        weir_cli_usage_error("discover", "--target: at most %d", MAX_TARGETS);
        return false;
    }
    job->targets[job->wish.n_targets++] = optarg;
    return true;
}

static bool take_option(int option, discover_job *job)
{
    uint64_t rank = 0;
    weir_discover_wish *wish = &job->wish;
    switch (option) {
    case OPTION_DIRECTORY:
        wish->directory = optarg;
        return true;
    case OPTION_MODEL:
        wish->model = optarg;
        return true;
    case OPTION_RUN:
        wish->run = optarg;
        return true;
    case OPTION_TARGET:
        return add_target(job);
    case OPTION_METADATA:
        wish->required_metadata = optarg;
        return true;
    case OPTION_MIN_VERSION:
        wish->has_min_version = true;
        return weir_cli_number("discover", "--min-version", optarg, 0, UINT64_MAX - 1,
                               &wish->min_version);
    case OPTION_MAX_VERSION:
        wish->has_max_version = true;
        return weir_cli_number("discover", "--max-version", optarg, 0, UINT64_MAX - 1,
                               &wish->max_version);
    case OPTION_RANK:
        wish->has_rank = weir_cli_number("discover", "--rank", optarg, 0, UINT32_MAX, &rank);
        wish->rank = (uint32_t)rank;
        return wish->has_rank;
    case OPTION_ROLE:
        return read_role(optarg, &wish->roles);
    case OPTION_NO_REPLICAS:
        wish->roles = WEIR_ROLES_TRAINERS;
        return true;
    case OPTION_FRESH:
        return read_seconds("--fresh", &wish->fresh_ms);
    case OPTION_LAYOUT:
        wish->layout = optarg;
        return true;
    case OPTION_ENDPOINT:
        return read_endpoint(optarg, &wish->endpoint);
    case OPTION_TIMEOUT:
        return read_seconds("--timeout", &wish->timeout_ms);
    case OPTION_EXPLAIN:
        job->explain = true;
        return true;
    case OPTION_JSON:
        job->as_json = true;
        return true;
    default:
        return false;
    }
}

/* ---- for people ------------------------------------------------------------------------------*/

static void put_cell(const char *text, int width)
{
    int n = weir_cli_put_plain(text[0] != '\0' ? text : "-", MAX_CELL);
    printf("%*s", width > n ? width - n + 2 : 2, "");
}

static int wider(int width, const char *text)
{
    size_t n = strlen(text);
    int cell = n > MAX_CELL ? MAX_CELL : (int)n;
    return cell > width ? cell : width;
}

static weir_cli_text number_text(bool has, uint64_t number)
{
    weir_cli_text text = { "-" };
    if (has)
        snprintf(text.text, sizeof(text.text), "%" PRIu64, number);
    return text;
}

static weir_cli_text age_text(int64_t age_ms)
{
    weir_cli_text text = { "-" };
    if (age_ms >= 0)
        snprintf(text.text, sizeof(text.text), "%.1f s", (double)age_ms / 1e3);
    return text;
}

/* What a replica holds is in its manifest alone, which is read when a filter asks for it. */
static bool is_unknown(const weir_candidate *source)
{
    return source->n_tensors == 0 && source->targets[0] == '\0';
}

static void print_table(const weir_discovery_list *list)
{
    int worker = 6, targets = 7, host = 4;
    for (size_t i = 0; i < list->n_taken; i++) {
        worker = wider(worker, list->candidates[i].worker_id);
        targets = wider(targets, list->candidates[i].targets);
        host = wider(host, list->candidates[i].host);
    }
    if (list->n_taken > 0)
        printf("%-17s  %4s  %8s  %8s  %7s  %-*s  %-*s  %-*s  %s\n", "ROLE", "RANK", "VERSION",
               "AGE", "TENSORS", worker, "WORKER", targets, "TARGETS", host, "HOST", "SOURCE");
    for (size_t i = 0; i < list->n_taken; i++) {
        const weir_candidate *source = &list->candidates[i];
        printf("%-17s  %4s  %8s  %8s  %7s  ", source->role,
               number_text(source->has_rank, source->rank).text,
               number_text(source->has_version, source->version).text,
               age_text(source->age_ms).text,
               is_unknown(source) ? "?" : number_text(true, source->n_tensors).text);
        put_cell(source->worker_id, worker);
        put_cell(is_unknown(source) ? "?" : source->targets, targets);
        put_cell(source->host, host);
        weir_cli_put_plain(source->source_id, MAX_CELL);
        putchar('\n');
    }
}

static void explain_finding(const weir_finding *finding)
{
    printf("  %-3s %-18s wanted ", finding->ok ? "ok" : "NO", finding->field);
    weir_cli_put_plain(finding->wanted, 400);
    fputs(", found ", stdout);
    weir_cli_put_plain(finding->found, 400);
    if (finding->tensor != NULL) {
        fputs(", tensor ", stdout);
        weir_cli_put_plain(finding->tensor, 400);
    }
    putchar('\n');
}

static void explain(const weir_discovery_list *list)
{
    for (size_t i = 0; i < list->n_candidates; i++) {
        const weir_candidate *source = &list->candidates[i];
        fputs("source ", stdout);
        weir_cli_put_plain(source->source_id, MAX_CELL);
        fputs(" of worker ", stdout);
        weir_cli_put_plain(source->worker_id, 260);
        printf(": %s\n", source->taken ? "taken" : "refused");
        for (size_t f = 0; f < source->n_findings; f++)
            explain_finding(&source->findings[f]);
    }
    printf("%zu of %zu sources taken%s\n", list->n_taken, list->n_candidates,
           list->cut ? "; the directory knows of more" : "");
}

/* ---- for programs ----------------------------------------------------------------------------*/

static json_t *finding_json(const weir_finding *finding)
{
    return json_pack("{s:s, s:s, s:s, s:s?, s:b}", "field", finding->field, "wanted",
                     finding->wanted, "found", finding->found, "tensor", finding->tensor, "ok",
                     finding->ok);
}

static json_t *source_json(const weir_candidate *source, bool with_findings)
{
    json_t *findings = json_array();
    for (size_t f = 0; f < source->n_findings && with_findings; f++)
        json_array_append_new(findings, finding_json(&source->findings[f]));
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:s, s:o, s:s, s:s, s:s, s:I, s:s, s:b, s:s}",
        "source_id", source->source_id, "worker_id", source->worker_id, "model", source->model,
        "run", source->run, "role", source->role, "rank",
        source->has_rank ? json_integer(source->rank) : json_null(), "version",
        source->has_version ? json_integer((json_int_t)source->version) : json_null(), "status",
        source->status, "age_s",
        source->age_ms >= 0 ? json_real((double)source->age_ms / 1e3) : json_null(),
        "endpoint_kind", weir_endpoint_kind_name(source->endpoint_kind), "endpoint",
        source->endpoint, "host", source->host, "tensors", (json_int_t)source->n_tensors, "targets",
        source->targets, "taken", source->taken, "reason", source->reason);
    if (with_findings)
        json_object_set_new(object, "findings", findings);
    else
        json_decref(findings);
    return object;
}

static int print_json(const discover_job *job, const weir_discovery_list *list)
{
    json_t *sources = json_array();
    size_t n = job->explain ? list->n_candidates : list->n_taken;
    for (size_t i = 0; i < n; i++)
        json_array_append_new(sources, source_json(&list->candidates[i], job->explain));
    return weir_cli_print_json(json_pack("{s:o, s:I, s:I, s:b}", "sources", sources, "taken",
                                         (json_int_t)list->n_taken, "known",
                                         (json_int_t)list->n_candidates, "cut", list->cut));
}

static int report(const discover_job *job, const weir_discovery_list *list)
{
    int code = WEIR_EXIT_OK;
    if (job->as_json)
        code = print_json(job, list);
    else if (job->explain)
        explain(list);
    else
        print_table(list);
    if (code != WEIR_EXIT_OK || list->n_taken > 0)
        return code;
    fflush(stdout);
    if (list->n_candidates == 0)
        return weir_cli_error("nothing found: directory %s knows no source of model '%s'",
                              job->wish.directory, job->wish.model);
    return weir_cli_error("nothing found: of %zu sources of model '%s' none will do; the first: %s",
                          list->n_candidates, job->wish.model, list->candidates[0].reason);
}

int weir_cmd_discover(int argc, char **argv)
{
    discover_job job = { .wish = WEIR_DISCOVER_WISH_INIT };
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION || !take_option(option, &job))
            return WEIR_EXIT_USAGE;
    }
    if (optind < argc)
        return weir_cli_usage_error("discover", "'%s' is not wanted", argv[optind]);
    if (job.wish.directory == NULL || job.wish.model == NULL)
        return weir_cli_usage_error("discover", "%s is required",
                                    job.wish.directory == NULL ? "--directory" : "--model");
    job.wish.targets = job.targets;
    weir_discovery_list *list;
    if (weir_discover(&job.wish, &list) != WEIR_OK)
        return weir_cli_fail();
    int code = report(&job, list);
    weir_discovery_list_free(list);
    return code;
}
