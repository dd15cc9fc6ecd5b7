/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench_convert.c - `weir bench convert`: conversions beside the memory they run in.
 *
 * A conversion reads every weight once and writes it once; the limit is a loop that reads and
 * writes as many bytes of the same buffers and computes nothing. The two take turns, so that a
 * noisy neighbour slows both, and each is reported by its median.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_cuda.h"
#include "cli.h"
#include "memory_limit.h"

WEIR_VERB_DECLARE(bench_convert)

const char weir_usage_bench_convert[] =
    "usage: weir bench convert [OPTION...]\n"
    "\n"
    "Measures conversions of one matrix with digests, as a refit runs them, and the memory's\n"
    "bandwidth at the same mix of reading and writing in the same run. GB/s count the bytes of\n"
    "weights read and written (2 + 1 per weight from bf16 to FP8), scales left out.\n"
    "\n"
    "  --conversion NAME  this one only (default: all that are registered)\n"
    "  --device DEVICE    where to convert: cpu (default), or cuda: the first GPU, beside device\n"
    "                     copies of as many bytes, one matrix, stacked experts and a whole layer\n"
    "  --source DTYPE     bf16 (default), f16 or f32 (as it is, not rounded to bf16 first)\n"
    "  --rows N           of the matrix (default 8192)\n"
    "  --cols N           of the matrix (default 7168)\n"
    "  --threads N        default: one per core\n"
    "  --seconds N        to spend on each conversion (default 3)\n"
    "  --json             print one object: limit_gb_per_s (2 read : 1 written), results\n";

#define MAX_CONVERSIONS 64
#define MAX_ROUNDS 1000
#define LEAST_ROUNDS 5

typedef struct bench {
    const char *only;
    uint64_t rows, cols, n_threads, seconds;
    weir_dtype dtype;
    bool json, cuda;
    weir_pool *pool;
    weir_tensor source;
    void *outputs[WEIR_MAX_OUTPUTS]; /* each large enough for any conversion */
    size_t source_bytes, room_bytes;
} bench;

/* What was measured of one conversion. */
typedef struct figures {
    const char *name;
    double gb_per_s, limit_gb_per_s;
    unsigned n_rounds;
} figures;

enum {
    OPT_CONVERSION = 256,
    OPT_DEVICE,
    OPT_SOURCE,
    OPT_ROWS,
    OPT_COLS,
    OPT_THREADS,
    OPT_SECONDS,
    OPT_JSON
};

static const struct option long_options[] = { { "conversion", required_argument, NULL,
                                                OPT_CONVERSION },
                                              { "device", required_argument, NULL, OPT_DEVICE },
                                              { "source", required_argument, NULL, OPT_SOURCE },
                                              { "rows", required_argument, NULL, OPT_ROWS },
                                              { "cols", required_argument, NULL, OPT_COLS },
                                              { "threads", required_argument, NULL, OPT_THREADS },
                                              { "seconds", required_argument, NULL, OPT_SECONDS },
                                              { "json", no_argument, NULL, OPT_JSON },
                                              WEIR_CLI_OPTIONS_END };

/* ---- command line ----------------------------------------------------------------------------*/

static bool parse_source(const char *verb, const char *text, weir_dtype *out)
{
    const weir_dtype dtypes[] = { WEIR_BF16, WEIR_F16, WEIR_F32 };
    const char *const names[] = { "bf16", "f16", "f32" };
    for (int i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = dtypes[i];
            return true;
        }
    }
    weir_cli_usage_error(verb, "--source must be bf16, f16 or f32, got '%s'", text);
    return false;
}

static bool take_option(bench *b, const char *verb, int option)
{
    switch (option) {
    case OPT_CONVERSION:
        b->only = optarg;
        return true;
    case OPT_DEVICE:
        b->cuda = strcmp(optarg, "cuda") == 0;
        if (b->cuda || strcmp(optarg, "cpu") == 0)
            return true;
        weir_cli_usage_error(verb, "--device must be cpu or cuda, got '%s'", optarg);
        return false;
    case OPT_SOURCE:
        return parse_source(verb, optarg, &b->dtype);
    case OPT_ROWS:
        return weir_cli_number(verb, "--rows", optarg, 1, 1u << 20, &b->rows);
    case OPT_COLS:
        return weir_cli_number(verb, "--cols", optarg, 1, 1u << 20, &b->cols);
    case OPT_THREADS:
        return weir_cli_number(verb, "--threads", optarg, 1, WEIR_MEMORY_LIMIT_THREADS,
                               &b->n_threads);
    case OPT_SECONDS:
        return weir_cli_number(verb, "--seconds", optarg, 1, 3600, &b->seconds);
    case OPT_JSON:
        b->json = true;
        return true;
    default:
        return false;
    }
}

static bool parse(bench *b, int argc, char **argv)
{
    int option;
    while ((option = weir_cli_option(argc, argv, "", long_options)) != -1) {
        if (option == WEIR_CLI_BAD_OPTION || !take_option(b, argv[0], option))
            return false;
    }
    if (optind < argc) {
        weir_cli_usage_error(argv[0], "unexpected argument '%s'", argv[optind]);
        return false;
    }
    return true;
}

/* ---- the matrix ------------------------------------------------------------------------------*/

/* Weights as they are: normal with a standard deviation of 0.02, good enough from four uniforms. */
static float next_weight(uint64_t *state)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(uint32_t)(*state >> 40) * 0x1p-24f - 0.5f;
    }
    return sum * 0.0346f;
}

/* Truncated to the dtype, which is all a benchmark needs. */
static void put_weight(void *data, weir_dtype dtype, size_t index, float weight)
{
    uint32_t bits;
    memcpy(&bits, &weight, 4);
    if (dtype == WEIR_F32)
        ((float *)data)[index] = weight;
    else if (dtype == WEIR_BF16)
        ((uint16_t *)data)[index] = (uint16_t)(bits >> 16);
    else /* subnormals and what is too small become 0 */
        ((uint16_t *)data)[index] =
            (uint16_t)((bits >> 16 & 0x8000u) |
                       (fabsf(weight) < 0x1p-14f ? 0 : ((bits >> 13) - (112u << 10)) & 0x7FFFu));
}

static bool allocate(bench *b)
{
    size_t n = b->rows * b->cols;
    b->source_bytes = n * (weir_dtype_bits(b->dtype) / 8);
    b->room_bytes = n * 4 + 4096;
    b->source = (weir_tensor){ .name = "bench.weight",
                               .dtype = b->dtype,
                               .shape = { 2, { b->rows, b->cols } },
                               .data = weir_memory_map(b->source_bytes + 4096) };
    b->outputs[0] = weir_memory_map(b->room_bytes);
    for (size_t i = 1; i < WEIR_MAX_OUTPUTS; i++)
        b->outputs[i] = calloc(n, 4);
    for (size_t i = 0; i < WEIR_MAX_OUTPUTS; i++) {
        if (b->outputs[i] == NULL || b->source.data == NULL) {
            weir_cli_error("out of memory for a matrix of %llu x %llu", (unsigned long long)b->rows,
                           (unsigned long long)b->cols);
            return false;
        }
    }
    uint64_t state = 1;
    for (size_t i = 0; i < n; i++)
        put_weight(b->source.data, b->dtype, i, next_weight(&state));
    return true;
}

static void release(bench *b)
{
    weir_memory_unmap(b->source.data, b->source_bytes + 4096);
    weir_memory_unmap(b->outputs[0], b->room_bytes);
    for (size_t i = 1; i < WEIR_MAX_OUTPUTS; i++)
        free(b->outputs[i]);
    weir_pool_close(b->pool);
}

/* ---- measuring -------------------------------------------------------------------------------*/

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof(*values), by_value);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* One pass over as many elements, of in_bytes read and out_bytes written each (powers of two). */
static double stream_seconds(const bench *b, size_t in_bytes, size_t out_bytes)
{
    size_t least = in_bytes < out_bytes ? in_bytes : out_bytes;
    weir_memory_stream stream = { .source = b->source.data,
                                  .out = b->outputs[0],
                                  .n_read = in_bytes / least,
                                  .n_written = out_bytes / least,
                                  .n_turns = b->rows * b->cols * least / 64,
                                  .n_threads = weir_pool_threads(b->pool) };
    return weir_memory_stream_seconds(&stream);
}

/* Seconds of one conversion; negative when it failed. */
static double convert_seconds(const bench *b, const weir_conversion *conversion)
{
    weir_digest digests[WEIR_MAX_OUTPUTS];
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    args.conversion = conversion;
    args.sources = &b->source;
    args.n_sources = 1;
    args.digests = digests;
    args.pool = b->pool;
    memcpy(args.outputs, b->outputs, conversion->n_outputs * sizeof(args.outputs[0]));
    double begun = weir_cli_now();
    return weir_convert(&args) == WEIR_OK ? weir_cli_now() - begun : -1;
}

/* One mix of reading and writing, `seconds` long; conversion NULL measures the memory alone. */
static bool measure(const bench *b, const weir_conversion *conversion, size_t in_bytes,
                    size_t out_bytes, figures *out)
{
    static double limits[MAX_ROUNDS], rates[MAX_ROUNDS];
    double n_gb = (double)(b->rows * b->cols * (in_bytes + out_bytes)) * 1e-9;
    double end = weir_cli_now() + (double)b->seconds;
    unsigned n = 0;
    for (; n < MAX_ROUNDS && (n <= LEAST_ROUNDS || weir_cli_now() < end); n++) {
        double stream = stream_seconds(b, in_bytes, out_bytes);
        double convert = conversion != NULL ? convert_seconds(b, conversion) : stream;
        if (stream < 0)
            weir_cli_error("cannot start a thread");
        else if (convert < 0)
            weir_cli_fail();
        if (stream < 0 || convert < 0)
            return false;
        limits[n] = n_gb / stream;
        rates[n] = n_gb / convert;
    }
    /* The first round warms caches, pages and the processor's clock. */
    *out = (figures){ conversion != NULL ? conversion->name : "", median(rates + 1, n - 1),
                      median(limits + 1, n - 1), n - 1 };
    return true;
}

static bool measure_conversion(const bench *b, const char *name, figures *out)
{
    const weir_conversion *conversion;
    if (weir_conversion_get(name, &conversion) != WEIR_OK) {
        weir_cli_fail();
        return false;
    }
    return measure(b, conversion, weir_dtype_bits(b->dtype) / 8,
                   weir_dtype_bits(conversion->outputs[0].dtype) / 8, out);
}

/* ---- results ---------------------------------------------------------------------------------*/

static int print_results(const bench *b, const figures *results, size_t n, double limit)
{
    if (!b->json) {
        printf("%llu x %llu %s, %u threads; memory, 2 read : 1 written: %.1f GB/s\n",
               (unsigned long long)b->rows, (unsigned long long)b->cols, weir_dtype_name(b->dtype),
               weir_pool_threads(b->pool), limit);
        printf("%-32s %8s %8s %9s\n", "conversion", "GB/s", "limit", "fraction");
        for (size_t i = 0; i < n; i++)
            printf("%-32s %8.1f %8.1f %9.2f\n", results[i].name, results[i].gb_per_s,
                   results[i].limit_gb_per_s, results[i].gb_per_s / results[i].limit_gb_per_s);
        return WEIR_EXIT_OK;
    }
    json_t *rows = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(
            rows, json_pack("{s:s, s:f, s:f, s:f, s:i}", "conversion", results[i].name, "gb_per_s",
                            results[i].gb_per_s, "limit_gb_per_s", results[i].limit_gb_per_s,
                            "fraction_of_limit", results[i].gb_per_s / results[i].limit_gb_per_s,
                            "rounds", (int)results[i].n_rounds));
    return weir_cli_print_json(json_pack("{s:f, s:i, s:s, s:[I,I], s:o}", "limit_gb_per_s", limit,
                                         "threads", (int)weir_pool_threads(b->pool), "source",
                                         weir_dtype_name(b->dtype), "shape", (json_int_t)b->rows,
                                         (json_int_t)b->cols, "results", rows));
}

/* The one asked for, or all. */
static size_t choose(const bench *b, const char **names)
{
    if (b->only == NULL) {
        size_t n = weir_conversion_names(names, MAX_CONVERSIONS);
        return n < MAX_CONVERSIONS ? n : MAX_CONVERSIONS;
    }
    const weir_conversion *conversion;
    if (weir_conversion_get(b->only, &conversion) != WEIR_OK)
        return 0;
    names[0] = conversion->name;
    return 1;
}

static int run(bench *b)
{
    const char *names[MAX_CONVERSIONS];
    figures results[MAX_CONVERSIONS], memory;
    size_t n = choose(b, names);
    if (n == 0 || weir_pool_open((unsigned)b->n_threads, &b->pool) != WEIR_OK)
        return weir_cli_fail();
    if (weir_pool_threads(b->pool) > WEIR_MEMORY_LIMIT_THREADS)
        return weir_cli_error("at most %d threads are measured", WEIR_MEMORY_LIMIT_THREADS);
    if (!allocate(b))
        return WEIR_EXIT_FAILED;
    for (size_t i = 0; i < n; i++) {
        if (!measure_conversion(b, names[i], &results[i]))
            return WEIR_EXIT_FAILED;
    }
    if (!measure(b, NULL, 2, 1, &memory))
        return WEIR_EXIT_FAILED;
    return print_results(b, results, n, memory.limit_gb_per_s);
}

int weir_cmd_bench_convert(int argc, char **argv)
{
    bench b = { .rows = 8192, .cols = 7168, .seconds = 3, .dtype = WEIR_BF16 };
    if (!parse(&b, argc, argv))
        return WEIR_EXIT_USAGE;
    if (b.cuda)
        return weir_bench_cuda_run(
            &(weir_bench_cuda){ b.only, b.dtype, b.rows, b.cols, b.seconds, b.json });
    int code = run(&b);
    release(&b);
    return code;
}
