/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_synth.c - `weir synth`: a checkpoint with a family's real names and shapes and plausible
 * values, for demos, tests and benchmarks. The values themselves are synth_values.c's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "synth_files.h"

#define SHARD_BYTES ((uint64_t)4 << 30)

WEIR_VERB_DECLARE(synth)

const char weir_usage_synth[] =
    "usage: weir synth --family NAME --preset NAME -o DIR [OPTION...]\n"
    "       weir synth --from CHECKPOINT -o DIR [--step N] [--seed N] [--force] [--json]\n"
    "\n"
    "Writes DIR/config.json and DIR/model.safetensors (several files beyond 4 GiB): the weights "
    "of\n"
    "a model of that family as its trainer holds them. The same options give the same bytes.\n"
    "\n"
    "  --family NAME    model family; `weir families` lists them\n"
    "  --preset NAME    which size of it; `weir families` lists them too\n"
    "  --layers N       the first N layers of it alone\n"
    "  -o, --output DIR where to; made when it is not there\n"
    "  --seed N         another set of weights (default 0)\n"
    "  --from DIR       start from the weights and the config.json that lie there, and move them "
    "by\n"
    "                   --step steps: small changes in proportion to each tensor's own size\n"
    "  --step N         the weights after N optimiser steps from the same start (default 0)\n"
    "  --naming NAME    hf (default), hf_fused (experts in one tensor), stacked (w1, w2, w3)\n"
    "  --dtype NAME     bf16 (default), or f32 for the masters of a trainer; config.json "
    "describes\n"
    "                   the engine and stays as it is\n"
    "  --shard-bytes N  begin another file beyond so many bytes (default 4 GiB)\n"
    "  --force          replace a checkpoint that is in DIR\n"
    "  --json           print one object: directory, tensors, bytes, seconds\n";

typedef struct synth_options {
    const char *family, *preset, *from, *directory;
    uint64_t seed, step, shard_bytes, n_layers; /* n_layers 0: all */
    weir_naming naming;
    bool masters, force, json;
} synth_options;

enum {
    OPT_FAMILY = 256,
    OPT_PRESET,
    OPT_LAYERS,
    OPT_FROM,
    OPT_SEED,
    OPT_STEP,
    OPT_NAMING,
    OPT_DTYPE,
    OPT_SHARD_BYTES,
    OPT_FORCE,
    OPT_JSON
};

static const struct option long_options[] = { { "family", required_argument, NULL, OPT_FAMILY },
                                              { "preset", required_argument, NULL, OPT_PRESET },
                                              { "layers", required_argument, NULL, OPT_LAYERS },
                                              { "from", required_argument, NULL, OPT_FROM },
                                              { "output", required_argument, NULL, 'o' },
                                              { "seed", required_argument, NULL, OPT_SEED },
                                              { "step", required_argument, NULL, OPT_STEP },
                                              { "naming", required_argument, NULL, OPT_NAMING },
                                              { "dtype", required_argument, NULL, OPT_DTYPE },
                                              { "shard-bytes", required_argument, NULL,
                                                OPT_SHARD_BYTES },
                                              { "force", no_argument, NULL, OPT_FORCE },
                                              { "json", no_argument, NULL, OPT_JSON },
                                              WEIR_CLI_OPTIONS_END };

static bool read_dtype(const char *verb, const char *text, bool *out_masters)
{
    *out_masters = strcmp(text, "f32") == 0;
    if (*out_masters || strcmp(text, "bf16") == 0)
        return true;
    weir_cli_usage_error(verb, "--dtype takes bf16 or f32, got '%s'", text);
    return false;
}

static bool read_option(const char *verb, int option, synth_options *options)
{
    switch (option) {
    case OPT_FAMILY:
        options->family = optarg;
        return true;
    case OPT_PRESET:
        options->preset = optarg;
        return true;
    case OPT_FROM:
        options->from = optarg;
        return true;
    case 'o':
        options->directory = optarg;
        return true;
    case OPT_SEED:
        return weir_cli_number(verb, "--seed", optarg, 0, UINT64_MAX, &options->seed);
    case OPT_LAYERS:
        return weir_cli_number(verb, "--layers", optarg, 1, UINT32_MAX, &options->n_layers);
    case OPT_STEP:
        return weir_cli_number(verb, "--step", optarg, 0, UINT32_MAX, &options->step);
    case OPT_NAMING:
        return weir_cli_naming(verb, optarg, &options->naming);
    case OPT_DTYPE:
        return read_dtype(verb, optarg, &options->masters);
    case OPT_SHARD_BYTES:
        return weir_cli_number(verb, "--shard-bytes", optarg, 1, UINT64_MAX, &options->shard_bytes);
    case OPT_FORCE:
        options->force = true;
        return true;
    case OPT_JSON:
        options->json = true;
        return true;
    default:
        return false; /* the usage error is printed */
    }
}

static bool read_options(int argc, char **argv, synth_options *options)
{
    int option;
    while ((option = weir_cli_option(argc, argv, "o:", long_options)) != -1) {
        if (!read_option(argv[0], option, options))
            return false;
    }
    bool afresh = options->from == NULL;
    const char *missing = afresh && options->family == NULL   ? "--family NAME"
                          : afresh && options->preset == NULL ? "--preset NAME"
                          : options->directory == NULL        ? "-o DIR"
                                                              : NULL;
    if (missing != NULL)
        weir_cli_usage_error(argv[0], "%s is missing", missing);
    else if (optind < argc)
        weir_cli_usage_error(argv[0], "unexpected argument '%s'", argv[optind]);
    return missing == NULL && optind == argc;
}

static int report(const synth_options *options, size_t n_tensors, uint64_t n_bytes, double seconds)
{
    if (options->json)
        return weir_cli_print_json(json_pack("{s:s, s:I, s:I, s:f}", "directory",
                                             options->directory, "tensors", (json_int_t)n_tensors,
                                             "bytes", (json_int_t)n_bytes, "seconds", seconds));
    printf("%s: %zu tensors, %s, in %s\n", options->directory, n_tensors,
           weir_cli_bytes_text(n_bytes).text, weir_cli_duration_text(seconds).text);
    return WEIR_EXIT_OK;
}

/* One key per line, as people write config.json. Free it with free(). */
static char *readable(const char *config_text)
{
    json_t *config = weir_cli_json_of(config_text);
    char *text = json_dumps(config, JSON_INDENT(2));
    json_decref(config);
    return text;
}

static int write_checkpoint(const synth_options *options, const char *config_text,
                            weir_tensor *tensors, size_t n_tensors)
{
    double begun = weir_cli_now();
    uint64_t n_bytes = 0;
    char *text = readable(config_text);
    if (text == NULL)
        return weir_cli_error("out of memory");
    for (size_t i = 0; i < n_tensors && options->masters && options->from == NULL; i++)
        tensors[i].dtype = WEIR_F32;
    weir_synth_request request = {
        .directory = options->directory,
        .config = text,
        .tensors = tensors,
        .n_tensors = n_tensors,
        .shard_bytes = options->shard_bytes,
        .seed = options->seed,
        .step = options->step,
        .force = options->force,
    };
    int code = weir_synth_write(&request, &n_bytes);
    free(text);
    return code == WEIR_EXIT_OK ? report(options, n_tensors, n_bytes, weir_cli_now() - begun)
                                : code;
}

/* The tensors of a checkpoint that is there, with their data. */
static int perturb(const synth_options *options)
{
    weir_checkpoint *checkpoint = NULL;
    weir_config *config = NULL;
    char *text = NULL;
    weir_tensor *tensors = NULL;
    size_t n_tensors = 0;
    int code = WEIR_EXIT_FAILED;
    if (weir_checkpoint_open(options->from, &checkpoint) != WEIR_OK ||
        weir_config_open(weir_checkpoint_directory(checkpoint), &config) != WEIR_OK) {
        code = weir_cli_fail();
    } else {
        const weir_tensor *views = weir_checkpoint_tensors(checkpoint, &n_tensors);
        text = weir_config_text(config);
        tensors = malloc((n_tensors + 1) * sizeof(*tensors));
        if (tensors != NULL)
            memcpy(tensors, views, n_tensors * sizeof(*tensors));
        code = tensors != NULL && text != NULL ? write_checkpoint(options, text, tensors, n_tensors)
                                               : weir_cli_error("out of memory");
    }
    free(tensors);
    weir_string_free(text);
    weir_config_close(config);
    weir_checkpoint_close(checkpoint);
    return code;
}

/* The preset's config.json, of as many layers as are wanted. Free it with free(). */
static int describe(const synth_options *options, char **out_text)
{
    static const char layers[] = "num_hidden_layers";
    char *preset;
    if (weir_family_preset(options->family, options->preset, &preset) != WEIR_OK)
        return weir_cli_fail();
    json_t *config = weir_cli_json_of(preset);
    weir_string_free(preset);
    json_int_t n_layers = json_integer_value(json_object_get(config, layers));
    if (options->n_layers > (uint64_t)n_layers) {
        json_decref(config);
        return weir_cli_error("--layers %llu: preset %s has %lld",
                              (unsigned long long)options->n_layers, options->preset,
                              (long long)n_layers);
    }
    if (options->n_layers > 0)
        json_object_set_new(config, layers, json_integer((json_int_t)options->n_layers));
    *out_text = json_dumps(config, 0);
    json_decref(config);
    return *out_text != NULL ? WEIR_EXIT_OK : weir_cli_error("out of memory");
}

static int make_up(const synth_options *options)
{
    char *text = NULL;
    weir_config *config = NULL;
    weir_tensor *tensors = NULL;
    size_t n_tensors = 0;
    int code = describe(options, &text);
    if (code != WEIR_EXIT_OK)
        return code;
    weir_status status = weir_config_parse(text, options->preset, &config);
    if (status == WEIR_OK)
        status =
            weir_family_sources(options->family, config, options->naming, &tensors, &n_tensors);
    code =
        status == WEIR_OK ? write_checkpoint(options, text, tensors, n_tensors) : weir_cli_fail();
    weir_family_sources_free(tensors);
    weir_config_close(config);
    free(text);
    return code;
}

int weir_cmd_synth(int argc, char **argv)
{
    synth_options options = { .shard_bytes = SHARD_BYTES };
    if (!read_options(argc, argv, &options))
        return WEIR_EXIT_USAGE;
    weir_cli_catch_signals();
    return options.from != NULL ? perturb(&options) : make_up(&options);
}
