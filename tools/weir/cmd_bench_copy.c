/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench_copy.c - `weir bench copy`: how fast bytes move on this machine, way by way.
 *
 * What is not there stands in the table with the reason. How each way is measured stands in its own
 * file: bench_reads.c, bench_gpu_copy.c, bench_broadcast.c.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_copy.h"
#include "weir/cuda.h"

#define DEFAULT_BYTES ((uint64_t)256 << 20)

const char weir_usage_bench_copy[] =
    "usage: weir bench copy [--transport NAME] [--gpus LIST] [--bytes N] [--json]\n"
    "\n"
    "Measures how fast bytes move: memcpy by one thread, one-sided reads from another process "
    "over\n"
    "UCX (shared memory, TCP) and a shared directory, a GPU's copies within itself, to another "
    "GPU\n"
    "and to and from pinned host memory, and a broadcast by NCCL. Medians of 9 rounds.\n"
    "\n"
    "  --transport NAME  this one alone: memcpy, ucx, file, device, peer, host or nccl\n"
    "  --gpus LIST       which GPUs, as in 0,1: the first copies and sends (default: all)\n"
    "  --bytes N         bytes of one copy, with K, M or G; default 256M\n"
    "  --json            prints one object: bytes, rounds, limit_gb_per_s (of memcpy), results\n";

typedef struct measurement {
    weir_bench_way way;
    void (*run)(const weir_bench_copy *bench, weir_bench_way *way);
    bool on_gpu, wanted;
} measurement;

/* Reads come before all that touches a GPU: they fork. */
static const measurement table[] = {
    { { .name = "memcpy", .over = "1 thread" }, weir_bench_memcpy, false, true },
    { { .name = "ucx", .over = "shm", .limit = "memcpy" }, weir_bench_reads, false, true },
    { { .name = "ucx", .over = "tcp", .tls = "tcp", .limit = "memcpy" },
      weir_bench_reads,
      false,
      true },
    { { .name = "file", .over = "page cache", .limit = "memcpy" }, weir_bench_reads, false, true },
    { { .name = "device", .both_counted = true }, weir_bench_gpu_device, true, true },
    { { .name = "peer" }, weir_bench_gpu_peer, true, true },
    { { .name = "to host" }, weir_bench_gpu_to_host, true, true },
    { { .name = "from host" }, weir_bench_gpu_from_host, true, true },
    { { .name = "nccl", .limit = "peer" }, weir_bench_broadcast, true, true },
};
#define N_WAYS (sizeof(table) / sizeof(table[0]))

void weir_bench_way_fail(weir_bench_way *way, weir_status status)
{
    static const char begin[] = "CUDA is off: ";
    const char *line = weir_last_error();
    way->failed = status != WEIR_ERR_UNSUPPORTED && status != WEIR_ERR_NOT_FOUND;
    if (way->why_not[0] == '\0')
        snprintf(way->why_not, sizeof(way->why_not), "%s",
                 strncmp(line, begin, strlen(begin)) == 0 ? line + strlen(begin) : line);
}

/* ---- results ---------------------------------------------------------------------------------*/

static void print_table(const weir_bench_copy *bench, const measurement *rows)
{
    printf("%" PRIu64 " bytes a copy, medians of %d rounds; device counts bytes read and written, "
           "the others bytes moved\n",
           bench->n_bytes, WEIR_BENCH_COPY_ROUNDS);
    printf("%-10s %-16s %10s %10s\n", "way", "over", "GB/s", "fraction");
    for (size_t i = 0; i < N_WAYS; i++) {
        const weir_bench_way *way = &rows[i].way;
        if (!rows[i].wanted)
            continue;
        printf("%-10s %-16s ", way->name, way->over);
        if (way->why_not[0] != '\0')
            printf("%10s %s\n", way->failed ? "FAILED:" : "not there:", way->why_not);
        else if (way->limit_gb_per_s > 0)
            printf("%10.2f %10.2f of %s\n", way->gb_per_s, way->gb_per_s / way->limit_gb_per_s,
                   way->limit);
        else
            printf("%10.2f\n", way->gb_per_s);
    }
}

static json_t *way_json(const weir_bench_way *way)
{
    bool measured = way->why_not[0] == '\0', beside = measured && way->limit_gb_per_s > 0;
    return json_pack("{s:s, s:s, s:b, s:b, s:s, s:s, s:o, s:o, s:s?}", "transport", way->name,
                     "over", way->over, "available", measured, "failed", way->failed, "why_not",
                     way->why_not, "bytes_counted",
                     way->both_counted ? "read and written" : "moved", "gb_per_s",
                     measured ? json_real(way->gb_per_s) : json_null(), "fraction_of_limit",
                     beside ? json_real(way->gb_per_s / way->limit_gb_per_s) : json_null(), "limit",
                     beside ? way->limit : NULL);
}

static int print_json(const weir_bench_copy *bench, const measurement *rows)
{
    json_t *results = json_array();
    double limit = rows[0].way.gb_per_s;
    for (size_t i = 0; i < N_WAYS; i++) {
        const weir_bench_way *way = &rows[i].way;
        if (rows[i].wanted)
            json_array_append_new(results, way_json(way));
        if (limit == 0 && way->limit != NULL && strcmp(way->limit, "memcpy") == 0)
            limit = way->limit_gb_per_s;
    }
    return weir_cli_print_json(
        json_pack("{s:I, s:i, s:o, s:o}", "bytes", (json_int_t)bench->n_bytes, "rounds",
                  WEIR_BENCH_COPY_ROUNDS, "limit_gb_per_s",
                  limit > 0 ? json_real(limit) : json_null(), "results", results));
}

/* ---- the run ---------------------------------------------------------------------------------*/

/* Chooses all GPUs when none were named. False: there are none, and why is the last error. */
static bool choose_gpus(weir_bench_copy *bench)
{
    unsigned n = 0;
    if (weir_cuda_devices(&n) != WEIR_OK)
        return false;
    for (unsigned i = 0; bench->n_gpus == 0 && i < n && i < WEIR_BENCH_COPY_MAX_GPUS; i++)
        bench->gpus[i] = i;
    if (bench->n_gpus == 0)
        bench->n_gpus = n < WEIR_BENCH_COPY_MAX_GPUS ? n : WEIR_BENCH_COPY_MAX_GPUS;
    return true;
}

static void measure_row(weir_bench_copy *bench, measurement *row, const measurement *before)
{
    if (row->on_gpu && !choose_gpus(bench)) {
        weir_bench_way_fail(&row->way, WEIR_ERR_UNSUPPORTED);
        return;
    }
    row->run(bench, &row->way);
    if (row->way.limit == NULL || row->way.limit_gb_per_s > 0)
        return;
    for (const measurement *other = before; other < row; other++) {
        if (strcmp(other->way.name, row->way.limit) == 0)
            row->way.limit_gb_per_s = other->way.gb_per_s;
    }
}

static bool is_wanted(const measurement *row, const char *transport)
{
    bool host = strcmp(row->way.name, "to host") == 0 || strcmp(row->way.name, "from host") == 0;
    return transport == NULL || strcmp(row->way.name, transport) == 0 ||
           (host && strcmp(transport, "host") == 0);
}

static int run(weir_bench_copy *bench, const char *transport, bool as_json)
{
    measurement rows[N_WAYS];
    int code = WEIR_EXIT_OK;
    memcpy(rows, table, sizeof(table));
    for (size_t i = 0; i < N_WAYS; i++) {
        rows[i].wanted = is_wanted(&rows[i], transport);
        if (!rows[i].wanted)
            continue;
        measure_row(bench, &rows[i], rows);
        /* What was asked for by name has to be there. */
        if (rows[i].way.failed || (transport != NULL && rows[i].way.why_not[0] != '\0'))
            code = weir_cli_error("%s: %s", rows[i].way.name, rows[i].way.why_not);
        if (code != WEIR_EXIT_OK && transport != NULL)
            return code;
    }
    if (!as_json)
        print_table(bench, rows);
    else if (print_json(bench, rows) != WEIR_EXIT_OK)
        return WEIR_EXIT_FAILED;
    return code;
}

static bool take_gpus(const char *verb, weir_bench_copy *bench)
{
    const char *at = optarg;
    for (bench->n_gpus = 0; bench->n_gpus < WEIR_BENCH_COPY_MAX_GPUS; at++) {
        char *end;
        unsigned long gpu = strtoul(at, &end, 10);
        if (*at < '0' || *at > '9' || gpu > 1023 || (*end != ',' && *end != '\0'))
            break;
        bench->gpus[bench->n_gpus++] = (unsigned)gpu;
        if (*end == '\0')
            return true;
        at = end;
    }
    weir_cli_usage_error(verb, "--gpus takes at most %d numbers, as in 0,1, got '%s'",
                         WEIR_BENCH_COPY_MAX_GPUS, optarg);
    return false;
}

static bool take_transport(const char *verb, const char **out)
{
    for (size_t i = 0; i < N_WAYS; i++) {
        if (is_wanted(&table[i], optarg)) {
            *out = optarg;
            return true;
        }
    }
    weir_cli_usage_error(
        verb, "--transport takes memcpy, ucx, file, device, peer, host or nccl, got '%s'", optarg);
    return false;
}

int weir_cmd_bench_copy(int argc, char **argv)
{
    static const struct option options[] = { { "transport", required_argument, NULL, 't' },
                                             { "gpus", required_argument, NULL, 'g' },
                                             { "bytes", required_argument, NULL, 'b' },
                                             { "json", no_argument, NULL, 'j' },
                                             WEIR_CLI_OPTIONS_END };
    const char *transport = NULL;
    weir_bench_copy bench = { .n_bytes = DEFAULT_BYTES };
    bool as_json = false;
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION ||
            (option == 't' && !take_transport(argv[0], &transport)) ||
            (option == 'g' && !take_gpus(argv[0], &bench)) ||
            (option == 'b' && !weir_cli_byte_count(argv[0], "--bytes", optarg, &bench.n_bytes)))
            return WEIR_EXIT_USAGE;
        as_json |= option == 'j';
    }
    if (optind < argc)
        return weir_cli_usage_error(argv[0], "takes no argument, got '%s'", argv[optind]);
    return run(&bench, transport, as_json);
}
