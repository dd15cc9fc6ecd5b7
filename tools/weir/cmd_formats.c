/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_formats.c - `weir formats`: the rows of the conversion registry, for people or programs. */
#include <stdio.h>
#include <string.h>

#include "cli.h"

#define MAX_CONVERSIONS 256

const char weir_usage_formats[] =
    "usage: weir formats [--json]\n"
    "\n"
    "Lists the conversions: name, compile target and metadata (the tag on every tensor that is\n"
    "published), the source dtypes and ranks they take, the buffers they fill, and the border "
    "that\n"
    "a cut between two ranks must respect.\n"
    "\n"
    "  --json         one object: {\"conversions\": [...]}; a cell or border of null spans the "
    "axis\n";

static json_t *extent_json(size_t n)
{
    return n == WEIR_WHOLE ? json_null() : json_integer((json_int_t)n);
}

static json_t *dtypes_json(weir_dtype_set set)
{
    json_t *names = json_array();
    for (int dtype = 1; dtype < WEIR_DTYPE_END; dtype++)
        if (set & WEIR_DTYPE_BIT(dtype))
            json_array_append_new(names, json_string(weir_dtype_name((weir_dtype)dtype)));
    return names;
}

static json_t *conversion_json(const weir_conversion *conversion)
{
    json_t *outputs = json_array();
    for (size_t i = 0; i < conversion->n_outputs; i++) {
        const weir_conversion_output *output = &conversion->outputs[i];
        json_array_append_new(outputs, json_pack("{s:s, s:s, s:[o,o]}", "suffix", output->suffix,
                                                 "dtype", weir_dtype_name(output->dtype), "cell",
                                                 extent_json(output->cell_rows),
                                                 extent_json(output->cell_cols)));
    }
    return json_pack(
        "{s:s, s:s, s:s, s:o, s:o, s:i, s:i, s:o, s:[o,o]}", "name", conversion->name, "summary",
        conversion->summary, "compile_target", conversion->compile_target, "compile_metadata",
        weir_cli_json_of(conversion->compile_metadata), "sources", dtypes_json(conversion->sources),
        "min_rank", conversion->min_rank != 0 ? (int)conversion->min_rank : 1, "max_rank",
        conversion->max_rank != 0 ? (int)conversion->max_rank : WEIR_MAX_RANK, "outputs", outputs,
        "border", extent_json(conversion->border_rows), extent_json(conversion->border_cols));
}

static weir_cli_text extents_text(size_t rows, size_t cols)
{
    weir_cli_text out;
    char row[12], col[12];
    snprintf(row, sizeof(row), "%zu", rows);
    snprintf(col, sizeof(col), "%zu", cols);
    snprintf(out.text, sizeof(out.text), "%s x %s", rows == WEIR_WHOLE ? "whole" : row,
             cols == WEIR_WHOLE ? "whole" : col);
    return out;
}

static void print_conversion(const weir_conversion *conversion)
{
    printf("%s\n  %s\n", conversion->name, conversion->summary);
    printf("  target   %s %s\n", conversion->compile_target, conversion->compile_metadata);
    printf("  sources  ");
    const char *separator = "";
    for (int dtype = 1; dtype < WEIR_DTYPE_END; dtype++) {
        if ((conversion->sources & WEIR_DTYPE_BIT(dtype)) == 0)
            continue;
        printf("%s%s", separator, weir_dtype_name((weir_dtype)dtype));
        separator = ", ";
    }
    printf(" of rank %u to %u\n", conversion->min_rank != 0 ? conversion->min_rank : 1,
           conversion->max_rank != 0 ? conversion->max_rank : WEIR_MAX_RANK);
    for (size_t i = 0; i < conversion->n_outputs; i++) {
        const weir_conversion_output *output = &conversion->outputs[i];
        printf("  %s %s, %s, one element per %s\n", i == 0 ? "outputs " : "        ",
               output->suffix, weir_dtype_name(output->dtype),
               extents_text(output->cell_rows, output->cell_cols).text);
    }
    printf("  border   %s\n", extents_text(conversion->border_rows, conversion->border_cols).text);
}

int weir_cmd_formats(int argc, char **argv)
{
    bool as_json;
    if (!weir_cli_json_option(argc, argv, &as_json))
        return WEIR_EXIT_USAGE;
    if (optind < argc)
        return weir_cli_usage_error(argv[0], "takes no argument, got '%s'", argv[optind]);

    const char *names[MAX_CONVERSIONS];
    size_t n_names = weir_conversion_names(names, MAX_CONVERSIONS);
    json_t *rows = json_array();
    for (size_t i = 0; i < n_names && i < MAX_CONVERSIONS; i++) {
        const weir_conversion *conversion;
        if (weir_conversion_get(names[i], &conversion) != WEIR_OK) {
            json_decref(rows);
            return weir_cli_fail();
        }
        if (as_json)
            json_array_append_new(rows, conversion_json(conversion));
        else
            print_conversion(conversion);
    }
    if (as_json)
        return weir_cli_print_json(json_pack("{s:o}", "conversions", rows));
    json_decref(rows);
    return WEIR_EXIT_OK;
}
