/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_inspect.c - `weir inspect`: what a safetensors file or a checkpoint holds. Reads headers and
 * config.json alone, never a tensor's bytes.
 */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"

const char weir_usage_inspect[] =
    "usage: weir inspect FILE|DIR [--json]\n"
    "\n"
    "Lists the tensors of a safetensors file, a .safetensors.index.json or a checkpoint "
    "directory:\n"
    "name, dtype, shape and bytes; then totals, the metadata of the file, and, where a "
    "config.json\n"
    "lies beside, the family and conversion that it selects.\n"
    "\n"
    "  --json         one object: tensors, totals, metadata, config (or null)\n";

#define MAX_VALUE_TEXT 120 /* of a metadata value, on a terminal */
#define MAX_NAME_WIDTH 120 /* of the column of names; a longer one pushes its row alone */

static uint64_t bytes_of(const weir_tensor *tensor)
{
    uint64_t n_bytes = 0;
    (void)weir_tensor_bytes(tensor->dtype, &tensor->shape, &n_bytes); /* checked at open */
    return n_bytes;
}

/* ---- config.json -----------------------------------------------------------------------------*/

/* What the config.json in `directory` says, or null when there is none. A config that cannot be
 * read is a note, not a failure: the tensors are what was asked for. */
static json_t *config_json(const char *directory)
{
    char path[4096];
    struct stat status;
    if (snprintf(path, sizeof(path), "%s/config.json", directory) >= (int)sizeof(path) ||
        stat(path, &status) != 0)
        return json_null();
    weir_config *config = NULL;
    if (weir_config_open(path, &config) != WEIR_OK) {
        weir_cli_note("%s", weir_last_error());
        return json_null();
    }
    const char *family = NULL;
    const weir_conversion *conversion = NULL;
    if (weir_family_of_config(config, &family) != WEIR_OK)
        family = NULL;
    if (weir_conversion_select(config, &conversion) != WEIR_OK)
        conversion = NULL;
    int64_t n_layers = 0;
    json_t *out = json_pack(
        "{s:s?, s:s?, s:s?, s:o}", "model_type", weir_config_string(config, "model_type"), "family",
        family, "conversion", conversion != NULL ? conversion->name : NULL, "num_hidden_layers",
        weir_config_int(config, "num_hidden_layers", &n_layers) ? json_integer((json_int_t)n_layers)
                                                                : json_null());
    weir_config_close(config);
    return out;
}

static void print_config(const json_t *config)
{
    static const char *const keys[] = { "model_type", "family", "conversion" };
    if (!json_is_object(config))
        return;
    printf("config.json:");
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        const char *value = json_string_value(json_object_get(config, keys[i]));
        printf("%s %s ", i == 0 ? "" : ",", keys[i]);
        weir_cli_put_plain(value != NULL ? value : "unknown", MAX_VALUE_TEXT);
    }
    const json_t *n_layers = json_object_get(config, "num_hidden_layers");
    if (json_is_integer(n_layers))
        printf(", %" JSON_INTEGER_FORMAT " layers", json_integer_value(n_layers));
    putchar('\n');
}

/* ---- totals ----------------------------------------------------------------------------------*/

typedef struct totals {
    uint64_t n_tensors, n_elements, n_bytes, n_files;
    uint64_t dtype_tensors[WEIR_DTYPE_END], dtype_bytes[WEIR_DTYPE_END];
} totals;

static totals total_of(const weir_checkpoint *checkpoint, const weir_tensor *tensors, size_t n)
{
    totals sum = { .n_tensors = n };
    for (size_t i = 0; i < n; i++) {
        uint64_t n_elements = 0;
        (void)weir_shape_elements(&tensors[i].shape, &n_elements);
        sum.n_elements += n_elements;
        sum.n_bytes += bytes_of(&tensors[i]);
        sum.dtype_tensors[tensors[i].dtype]++;
        sum.dtype_bytes[tensors[i].dtype] += bytes_of(&tensors[i]);
        /* Shards are few and tensors of one shard mostly neighbours: looking back is cheap. */
        const char *file = weir_checkpoint_file_of(checkpoint, i);
        size_t j = i;
        while (j > 0 && strcmp(file, weir_checkpoint_file_of(checkpoint, j - 1)) != 0)
            j--;
        sum.n_files += j == 0;
    }
    return sum;
}

/* ---- printing --------------------------------------------------------------------------------*/

static void print_metadata(const weir_checkpoint *checkpoint)
{
    const char *key;
    for (size_t i = 0; (key = weir_checkpoint_metadata_key(checkpoint, i)) != NULL; i++) {
        const char *value = weir_checkpoint_metadata(checkpoint, key);
        fputs("metadata ", stdout);
        weir_cli_put_plain(key, MAX_VALUE_TEXT);
        fputs(" = ", stdout);
        weir_cli_put_plain(value, MAX_VALUE_TEXT);
        puts(strlen(value) > MAX_VALUE_TEXT ? "..." : "");
    }
}

static void print_text(const weir_checkpoint *checkpoint, const totals *sum)
{
    size_t n;
    const weir_tensor *tensors = weir_checkpoint_tensors(checkpoint, &n);
    int name_width = 4, shape_width = 5;
    char shape[WEIR_SHAPE_TEXT];
    for (size_t i = 0; i < n; i++) {
        int name = (int)strlen(tensors[i].name);
        int dims = (int)strlen(weir_shape_text(&tensors[i].shape, shape, sizeof(shape)));
        name_width = name > name_width && name <= MAX_NAME_WIDTH ? name : name_width;
        shape_width = dims > shape_width ? dims : shape_width;
    }
    for (size_t i = 0; i < n; i++) {
        int missing = name_width - weir_cli_put_plain(tensors[i].name, INT_MAX);
        printf("%*s  %-8s  %-*s  %s\n", missing > 0 ? missing : 0, "",
               weir_dtype_name(tensors[i].dtype), shape_width,
               weir_shape_text(&tensors[i].shape, shape, sizeof(shape)),
               weir_cli_bytes_text(bytes_of(&tensors[i])).text);
    }
    printf("%" PRIu64 " tensors, %" PRIu64 " elements, %s (%" PRIu64 " bytes) in %" PRIu64
           " file%s\n",
           sum->n_tensors, sum->n_elements, weir_cli_bytes_text(sum->n_bytes).text, sum->n_bytes,
           sum->n_files, sum->n_files == 1 ? "" : "s");
    for (int dtype = 1; dtype < WEIR_DTYPE_END; dtype++)
        if (sum->dtype_tensors[dtype] > 0)
            printf("  %-8s  %" PRIu64 " tensors, %s\n", weir_dtype_name((weir_dtype)dtype),
                   sum->dtype_tensors[dtype], weir_cli_bytes_text(sum->dtype_bytes[dtype]).text);
    print_metadata(checkpoint);
}

static json_t *tensor_json(const weir_tensor *tensor, const char *file)
{
    json_t *dims = json_array();
    for (uint32_t i = 0; i < tensor->shape.rank; i++)
        json_array_append_new(dims, json_integer((json_int_t)tensor->shape.dim[i]));
    return json_pack("{s:s, s:s, s:o, s:I, s:s}", "name", tensor->name, "dtype",
                     weir_dtype_name(tensor->dtype), "shape", dims, "bytes",
                     (json_int_t)bytes_of(tensor), "file", file);
}

static json_t *metadata_json(const weir_checkpoint *checkpoint)
{
    json_t *metadata = json_object();
    const char *key;
    for (size_t i = 0; (key = weir_checkpoint_metadata_key(checkpoint, i)) != NULL; i++)
        json_object_set_new(metadata, key, json_string(weir_checkpoint_metadata(checkpoint, key)));
    return metadata;
}

static int print_json(const weir_checkpoint *checkpoint, const totals *sum, json_t *config)
{
    size_t n;
    const weir_tensor *tensors = weir_checkpoint_tensors(checkpoint, &n);
    json_t *rows = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(rows,
                              tensor_json(&tensors[i], weir_checkpoint_file_of(checkpoint, i)));
    json_t *totals_object = json_pack("{s:I, s:I, s:I, s:I}", "tensors", (json_int_t)sum->n_tensors,
                                      "elements", (json_int_t)sum->n_elements, "bytes",
                                      (json_int_t)sum->n_bytes, "files", (json_int_t)sum->n_files);
    return weir_cli_print_json(json_pack("{s:o, s:o, s:o, s:o}", "tensors", rows, "totals",
                                         totals_object, "metadata", metadata_json(checkpoint),
                                         "config", config));
}

int weir_cmd_inspect(int argc, char **argv)
{
    bool as_json;
    if (!weir_cli_json_option(argc, argv, &as_json))
        return WEIR_EXIT_USAGE;
    if (argc - optind != 1)
        return weir_cli_usage_error(argv[0], "takes one file or directory, got %d arguments",
                                    argc - optind);

    weir_checkpoint *checkpoint = NULL;
    if (weir_checkpoint_open(argv[optind], &checkpoint) != WEIR_OK)
        return weir_cli_fail();
    size_t n;
    const weir_tensor *tensors = weir_checkpoint_tensors(checkpoint, &n);
    totals sum = total_of(checkpoint, tensors, n);
    json_t *config = config_json(weir_checkpoint_directory(checkpoint));
    int code = WEIR_EXIT_OK;
    if (as_json) {
        code = print_json(checkpoint, &sum, config);
    } else {
        print_text(checkpoint, &sum);
        print_config(config);
        json_decref(config);
    }
    weir_checkpoint_close(checkpoint);
    return code;
}
