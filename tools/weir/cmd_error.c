/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_error.c - `weir error`: how far a conversion moves the weights of a checkpoint.
 *
 * Every engine parameter that a conversion quantises is dequantised again and compared with its
 * fused source: relative RMS = sqrt(sum (w - q s)^2 / sum w^2). Decoding is done here, from the
 * format's definition, and not by the library that encoded.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flow.h"

const char weir_usage_error[] =
    "usage: weir error SRC [--beside OTHER] [--family NAME] [--conversion NAME] [OPTION...]\n"
    "\n"
    "Converts a checkpoint to engine parameters and prints the relative RMS error of every one "
    "that\n"
    "is quantised, and of all together. --beside prints another checkpoint's in a second column.\n"
    "\n"
    "  --beside OTHER        a second checkpoint of the same architecture\n"
    "  --family, --layout, --conversion, --config, --ignore, --threads, --json: see `weir "
    "publish`;\n"
    "                        the conversion's default is fp8_128x128\n";

enum { OPTION_BESIDE = WEIR_FLOW_OWN_OPTION };

static const struct option options[] = { WEIR_FLOW_LONG_OPTIONS,
                                         { "beside", required_argument, NULL, OPTION_BESIDE },
                                         WEIR_CLI_OPTIONS_END };

typedef struct error_sums {
    double error, weight; /* sums of squares */
} error_sums;

typedef struct error_job {
    weir_flow_source source;
    weir_config *config;
    weir_mapping *mapping;
    weir_pool *pool;
    error_sums *sums; /* one per entry; weight < 0: not quantised */
    size_t n_entries;
} error_job;

/* ---- decoding --------------------------------------------------------------------------------*/

static float bits_to_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static float decode_e4m3(uint8_t code)
{
    int exponent = code >> 3 & 15, mantissa = code & 7;
    float magnitude =
        exponent == 0 ? ldexpf((float)mantissa, -9) : ldexpf((float)(8 + mantissa), exponent - 10);
    if ((code & 0x7f) == 0x7f)
        magnitude = NAN;
    return code & 0x80 ? -magnitude : magnitude;
}

static float decode_source(weir_dtype dtype, const void *data, size_t i)
{
    if (dtype == WEIR_F32)
        return ((const float *)data)[i];
    uint16_t half = ((const uint16_t *)data)[i];
    if (dtype == WEIR_BF16)
        return bits_to_float((uint32_t)half << 16);
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    if (magnitude < 0x400) /* subnormal */
        return (sign != 0 ? -1.0f : 1.0f) * ldexpf((float)magnitude, -24);
    return bits_to_float(sign | ((magnitude << 13) + 0x38000000u));
}

/* ---- one entry -------------------------------------------------------------------------------*/

/* Where row `row` of matrix `matrix` of the fused source begins. */
static const weir_tensor *find_row(const weir_map_entry *entry, uint64_t matrix, uint64_t row,
                                   uint64_t n_cols, uint64_t *out_first)
{
    for (size_t s = 0; s < entry->n_sources; s++) {
        const weir_tensor *source =
            &entry->sources[entry->n_experts != 0 ? matrix * entry->n_sources + s : s];
        bool stacked = entry->n_experts == 0 && entry->shape.rank == 3 && source->shape.rank == 3;
        uint64_t n_elements = 1, n_matrices = stacked ? entry->shape.dim[0] : 1;
        weir_shape_elements(&source->shape, &n_elements);
        uint64_t n_rows = n_elements / n_cols / n_matrices;
        if (row < n_rows) {
            *out_first = ((stacked ? matrix * n_rows : 0) + row) * n_cols;
            return source;
        }
        row -= n_rows;
    }
    return NULL;
}

static void add_row(const weir_map_entry *entry, const uint8_t *codes, const float *scales,
                    uint64_t matrix, uint64_t row, error_sums *sums)
{
    const weir_conversion_output *scale = &entry->conversion->outputs[1];
    uint32_t rank = entry->shape.rank;
    uint64_t n_rows = entry->shape.dim[rank - 2], n_cols = entry->shape.dim[rank - 1], first = 0;
    uint64_t cell_cols = scale->cell_cols == WEIR_WHOLE ? n_cols : scale->cell_cols;
    uint64_t grid_cols = (n_cols + cell_cols - 1) / cell_cols;
    uint64_t grid_rows = (n_rows + scale->cell_rows - 1) / scale->cell_rows;
    const float *row_scales = scales + (matrix * grid_rows + row / scale->cell_rows) * grid_cols;
    const weir_tensor *source = find_row(entry, matrix, row, n_cols, &first);
    for (uint64_t c = 0; source != NULL && c < n_cols; c++) {
        double weight = decode_source(source->dtype, source->data, first + c);
        double back = (double)decode_e4m3(codes[(matrix * n_rows + row) * n_cols + c]) *
                      row_scales[c / cell_cols];
        sums->error += (weight - back) * (weight - back);
        sums->weight += weight * weight;
    }
}

static int measure_entry(const error_job *job, const weir_map_entry *entry, error_sums *sums)
{
    const weir_conversion *conversion = entry->conversion;
    weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
    args.pool = job->pool;
    sums->weight = -1;
    if (conversion->n_outputs != 2 || conversion->outputs[0].dtype != WEIR_F8_E4M3 ||
        conversion->outputs[1].dtype != WEIR_F32)
        return WEIR_EXIT_OK;
    for (size_t o = 0; o < 2; o++) {
        weir_shape shape;
        uint64_t n_bytes;
        if (weir_conversion_output_shape(conversion, o, &entry->shape, &shape) != WEIR_OK ||
            weir_tensor_bytes(conversion->outputs[o].dtype, &shape, &n_bytes) != WEIR_OK) {
            free(args.outputs[0]);
            return weir_cli_fail();
        }
        args.outputs[o] = malloc(n_bytes ? n_bytes : 1);
    }
    int code = WEIR_EXIT_OK;
    if (args.outputs[0] == NULL || args.outputs[1] == NULL)
        code = weir_cli_error("out of memory");
    else if (weir_map_entry_convert(entry, &args) != WEIR_OK)
        code = weir_cli_fail();
    *sums = (error_sums){ 0, 0 };
    uint64_t n_matrices = entry->shape.rank == 3 ? entry->shape.dim[0] : 1;
    uint64_t n_rows = entry->shape.dim[entry->shape.rank - 2];
    for (uint64_t row = 0; code == WEIR_EXIT_OK && row < n_matrices * n_rows; row++)
        add_row(entry, args.outputs[0], args.outputs[1], row / n_rows, row % n_rows, sums);
    free(args.outputs[0]);
    free(args.outputs[1]);
    return code;
}

/* ---- one checkpoint --------------------------------------------------------------------------*/

static int open_job(const weir_flow_options *flow, const char *path, error_job *job)
{
    weir_mapping_options mapping = WEIR_MAPPING_OPTIONS_INIT;
    size_t n_tensors;
    if (!weir_flow_source_open(flow, &path, 1, &job->source))
        return WEIR_EXIT_FAILED;
    if (job->source.config[0] != '\0' &&
        weir_config_open(job->source.config, &job->config) != WEIR_OK)
        return weir_cli_fail();
    mapping.family = flow->family;
    mapping.layout = flow->layout;
    mapping.conversion = flow->conversion;
    mapping.config = job->config;
    mapping.ignore = flow->ignore;
    mapping.n_ignore = flow->n_ignore;
    const weir_tensor *tensors = weir_checkpoint_tensors(job->source.checkpoint, &n_tensors);
    if (weir_pool_open(flow->n_threads, &job->pool) != WEIR_OK ||
        weir_mapping_open(&mapping, tensors, n_tensors, &job->mapping) != WEIR_OK)
        return weir_cli_fail();
    weir_mapping_entries(job->mapping, &job->n_entries);
    job->sums = calloc(job->n_entries + 1, sizeof(*job->sums));
    return job->sums != NULL ? WEIR_EXIT_OK : weir_cli_error("out of memory");
}

static int measure(const weir_flow_options *flow, const char *path, error_job *job)
{
    int code = open_job(flow, path, job);
    if (code != WEIR_EXIT_OK)
        return code;
    const weir_map_entry *entries = weir_mapping_entries(job->mapping, &job->n_entries);
    for (size_t i = 0; i < job->n_entries && code == WEIR_EXIT_OK; i++)
        code = measure_entry(job, &entries[i], &job->sums[i]);
    return code;
}

static void close_job(error_job *job)
{
    free(job->sums);
    weir_mapping_close(job->mapping);
    weir_pool_close(job->pool);
    weir_config_close(job->config);
    weir_flow_source_close(&job->source);
}

/* ---- results ---------------------------------------------------------------------------------*/

static double relative(const error_sums *sums)
{
    return sums->weight > 0 ? sqrt(sums->error / sums->weight) : 0;
}

static error_sums total(const error_job *job)
{
    error_sums all = { 0, 0 };
    for (size_t i = 0; i < job->n_entries; i++) {
        if (job->sums[i].weight < 0)
            continue;
        all.error += job->sums[i].error;
        all.weight += job->sums[i].weight;
    }
    return all;
}

static const error_sums *sums_of(const error_job *job, const char *name)
{
    size_t n;
    const weir_map_entry *entries = weir_mapping_entries(job->mapping, &n);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(entries[i].name, name) == 0)
            return &job->sums[i];
    }
    return NULL;
}

static int print_json(const error_job *job, const error_job *beside)
{
    size_t n;
    const weir_map_entry *entries = weir_mapping_entries(job->mapping, &n);
    json_t *rows = json_array();
    for (size_t i = 0; i < n; i++) {
        if (job->sums[i].weight < 0)
            continue;
        json_t *row = json_pack("{s:s, s:f}", "name", entries[i].name, "relative_rms",
                                relative(&job->sums[i]));
        const error_sums *other = beside != NULL ? sums_of(beside, entries[i].name) : NULL;
        if (other != NULL)
            json_object_set_new(row, "beside", json_real(relative(other)));
        json_array_append_new(rows, row);
    }
    error_sums all = total(job), others = { 0, 0 };
    if (beside != NULL)
        others = total(beside);
    json_t *result =
        json_pack("{s:s, s:f, s:o}", "conversion", weir_mapping_conversion(job->mapping)->name,
                  "relative_rms", relative(&all), "tensors", rows);
    if (beside != NULL)
        json_object_set_new(result, "beside", json_real(relative(&others)));
    return weir_cli_print_json(result);
}

static void print_row(const char *name, const error_sums *sums, const error_sums *other)
{
    printf("%-60s %12.6f", name, relative(sums));
    if (other != NULL)
        printf(" %12.6f", relative(other));
    putchar('\n');
}

static int print_table(const error_job *job, const error_job *beside)
{
    size_t n;
    const weir_map_entry *entries = weir_mapping_entries(job->mapping, &n);
    printf("relative RMS error of %s\n%-60s %12s%s\n", weir_mapping_conversion(job->mapping)->name,
           "parameter", "SRC", beside != NULL ? "        OTHER" : "");
    for (size_t i = 0; i < n; i++) {
        if (job->sums[i].weight >= 0)
            print_row(entries[i].name, &job->sums[i],
                      beside != NULL ? sums_of(beside, entries[i].name) : NULL);
    }
    error_sums all = total(job), others = { 0, 0 };
    if (beside != NULL)
        others = total(beside);
    print_row("all together", &all, beside != NULL ? &others : NULL);
    return WEIR_EXIT_OK;
}

int weir_cmd_error(int argc, char **argv)
{
    weir_flow_options flow = { .conversion = "fp8_128x128" };
    const char *other = NULL;
    error_job job = { 0 }, beside = { 0 };
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        int code = WEIR_EXIT_OK;
        if (option == WEIR_CLI_BAD_OPTION)
            return WEIR_EXIT_USAGE;
        if (option == OPTION_BESIDE)
            other = optarg;
        else
            code = weir_flow_take_option("error", option, &flow);
        if (code != WEIR_EXIT_OK)
            return code;
    }
    if (optind + 1 != argc)
        return weir_cli_usage_error("error", "one SRC is wanted");
    int code = measure(&flow, argv[optind], &job);
    if (code == WEIR_EXIT_OK && other != NULL)
        code = measure(&flow, other, &beside);
    if (code == WEIR_EXIT_OK)
        code = (flow.as_json ? print_json : print_table)(&job, other != NULL ? &beside : NULL);
    close_job(&beside);
    close_job(&job);
    return code;
}
