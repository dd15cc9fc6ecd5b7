/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_convert.c - `weir convert`: reads the command line and guards the destination. What is to be
 * done is worked out in convert_job.c, and done in convert_run.c.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "convert_job.h"

#define MAX_THREADS 1024 /* of a pool */

const char weir_usage_convert[] =
    "usage: weir convert SRC... -o DST --conversion NAME [OPTION...]\n"
    "       weir convert SRC... -o DST --family NAME|auto --conversion NAME|auto [OPTION...]\n"
    "\n"
    "Converts the tensors of safetensors files and checkpoint directories into one safetensors\n"
    "file. Every output keeps its tensor's name; scales are named after it: NAME.weight_scale_inv\n"
    "(block) or NAME.weight_scale (per channel) for NAME.weight.\n"
    "\n"
    "Without --family each tensor is converted by itself, from the dtype it has. A tensor that "
    "the\n"
    "conversion does not take is an error: leave it out with --select or --ignore. Tensors that "
    "are\n"
    "left out are not written. With --family whole layers become engine parameters: sources are\n"
    "fused as the engine fuses them, F32 masters are rounded to bf16 first, and parameters that a\n"
    "replica derives by itself are not written. config.json says what must be there.\n"
    "\n"
    "On any error nothing is left at DST; a file that was there before stays as it was.\n"
    "\n"
    "  -o, --output DST         the file to write\n"
    "  --conversion NAME        see `weir formats`; auto: what config.json's quantization_config "
    "asks\n"
    "  --select GLOB            convert only tensors whose name matches; may be repeated\n"
    "  --ignore GLOB            leave out tensors whose name matches; may be repeated\n"
    "  --device cpu             where to convert\n"
    "  --nonfinite refuse       stop at the first NaN or infinite weight and name it (default)\n"
    "  --nonfinite propagate    let it through\n"
    "  --family NAME            see `weir families`; auto: by config.json's model_type\n"
    "  --layout NAME            engine layout of the family\n"
    "  --config PATH            config.json (default: the one beside SRC)\n"
    "  --keep-masters           with --family: quantise F32 masters without rounding them to bf16\n"
    "  --threads N              default: one per core\n"
    "  --progress               draw the progress bar even when stderr is no terminal\n"
    "  --json                   print one object: counts, bytes, seconds, gb_per_s\n";

enum {
    OPTION_CONVERSION = 256,
    OPTION_SELECT,
    OPTION_IGNORE,
    OPTION_DEVICE,
    OPTION_NONFINITE,
    OPTION_FAMILY,
    OPTION_LAYOUT,
    OPTION_CONFIG,
    OPTION_KEEP_MASTERS,
    OPTION_THREADS,
    OPTION_PROGRESS,
    OPTION_JSON
};

static const struct option options[] = { { "output", required_argument, NULL, 'o' },
                                         { "conversion", required_argument, NULL,
                                           OPTION_CONVERSION },
                                         { "select", required_argument, NULL, OPTION_SELECT },
                                         { "ignore", required_argument, NULL, OPTION_IGNORE },
                                         { "device", required_argument, NULL, OPTION_DEVICE },
                                         { "nonfinite", required_argument, NULL, OPTION_NONFINITE },
                                         { "family", required_argument, NULL, OPTION_FAMILY },
                                         { "layout", required_argument, NULL, OPTION_LAYOUT },
                                         { "config", required_argument, NULL, OPTION_CONFIG },
                                         { "keep-masters", no_argument, NULL, OPTION_KEEP_MASTERS },
                                         { "threads", required_argument, NULL, OPTION_THREADS },
                                         { "progress", no_argument, NULL, OPTION_PROGRESS },
                                         { "json", no_argument, NULL, OPTION_JSON },
                                         WEIR_CLI_OPTIONS_END };

/* ---- the command line ------------------------------------------------------------------------*/

static int take_device(const char *verb, const char *device)
{
    if (strcmp(device, "cpu") == 0)
        return WEIR_EXIT_OK;
    if (strcmp(device, "cuda") == 0)
        return weir_cli_error("device 'cuda' is not in this build");
    return weir_cli_usage_error(verb, "--device takes cpu, got '%s'", device);
}

static int take_nonfinite(const char *verb, const char *mode, bool *out_propagate)
{
    *out_propagate = strcmp(mode, "propagate") == 0;
    if (*out_propagate || strcmp(mode, "refuse") == 0)
        return WEIR_EXIT_OK;
    return weir_cli_usage_error(verb, "--nonfinite takes refuse or propagate, got '%s'", mode);
}

static int take_threads(const char *verb, const char *text, unsigned *out_threads)
{
    uint64_t number;
    if (!weir_cli_number(verb, "--threads", text, 1, MAX_THREADS, &number))
        return WEIR_EXIT_USAGE;
    *out_threads = (unsigned)number;
    return WEIR_EXIT_OK;
}

/* `select` and `ignore` have room for every argument there is. */
static int take_option(int option, weir_convert_request *request, const char **select,
                       const char **ignore)
{
    switch (option) {
    case 'o':
        request->output = optarg;
        return WEIR_EXIT_OK;
    case OPTION_CONVERSION:
        request->conversion = optarg;
        return WEIR_EXIT_OK;
    case OPTION_SELECT:
        select[request->select.n_globs++] = optarg;
        return WEIR_EXIT_OK;
    case OPTION_IGNORE:
        ignore[request->ignore.n_globs++] = optarg;
        return WEIR_EXIT_OK;
    case OPTION_DEVICE:
        return take_device("convert", optarg);
    case OPTION_NONFINITE:
        return take_nonfinite("convert", optarg, &request->propagate);
    case OPTION_FAMILY:
        request->family = optarg;
        return WEIR_EXIT_OK;
    case OPTION_LAYOUT:
        request->layout = optarg;
        return WEIR_EXIT_OK;
    case OPTION_CONFIG:
        request->config = optarg;
        return WEIR_EXIT_OK;
    case OPTION_KEEP_MASTERS:
        request->keep_masters = true;
        return WEIR_EXIT_OK;
    case OPTION_THREADS:
        return take_threads("convert", optarg, &request->n_threads);
    case OPTION_PROGRESS:
        request->progress = true;
        return WEIR_EXIT_OK;
    case OPTION_JSON:
        request->as_json = true;
        return WEIR_EXIT_OK;
    default:
        return WEIR_EXIT_USAGE;
    }
}

static int check_request(const weir_convert_request *request, const char *verb)
{
    if (request->n_sources == 0)
        return weir_cli_usage_error(verb, "which file? SRC is missing");
    if (request->output == NULL)
        return weir_cli_usage_error(verb, "-o DST is missing");
    if (request->conversion == NULL)
        return weir_cli_usage_error(verb, "--conversion is missing");
    if (request->family != NULL)
        return WEIR_EXIT_OK;
    const char *of_family = request->layout != NULL                    ? "--layout"
                            : request->config != NULL                  ? "--config"
                            : request->keep_masters                    ? "--keep-masters"
                            : strcmp(request->conversion, "auto") == 0 ? "--conversion auto"
                                                                       : NULL;
    if (of_family != NULL)
        return weir_cli_usage_error(verb, "%s goes with --family", of_family);
    return WEIR_EXIT_OK;
}

static int read_request(int argc, char **argv, weir_convert_request *request, const char **globs)
{
    const char **select = globs, **ignore = globs + argc;
    for (int option; (option = weir_cli_option(argc, argv, "o:", options)) != -1;) {
        int code = take_option(option, request, select, ignore);
        if (code != WEIR_EXIT_OK)
            return code;
    }
    request->select.globs = select;
    request->ignore.globs = ignore;
    request->sources = argv + optind;
    request->n_sources = (size_t)(argc - optind);
    return check_request(request, argv[0]);
}

/* ---- the destination -------------------------------------------------------------------------*/

/* Replacing a file that is being read from would lose it on success. */
static int check_output(const char *path, const weir_checkpoint *checkpoint)
{
    struct stat output, source;
    if (stat(path, &output) != 0)
        return errno == ENOENT || errno == ENOTDIR
                   ? WEIR_EXIT_OK
                   : weir_cli_error("%s: %s", path, strerror(errno));
    if (!S_ISREG(output.st_mode))
        return weir_cli_error("%s: not a regular file, cannot be replaced", path);
    size_t n_tensors;
    weir_checkpoint_tensors(checkpoint, &n_tensors);
    for (size_t i = 0; i < n_tensors; i++) {
        const char *file = weir_checkpoint_file_of(checkpoint, i);
        if (stat(file, &source) == 0 && source.st_dev == output.st_dev &&
            source.st_ino == output.st_ino)
            return weir_cli_error("%s: is also a source (%s)", path, file);
    }
    return WEIR_EXIT_OK;
}

int weir_cmd_convert(int argc, char **argv)
{
    const char **globs = calloc(2 * (size_t)argc, sizeof(*globs));
    if (globs == NULL)
        return weir_cli_error("out of memory");
    weir_convert_request request = { 0 };
    weir_convert_job job = { 0 };
    int code = read_request(argc, argv, &request, globs);
    if (code == WEIR_EXIT_OK)
        code = weir_convert_job_open(&request, &job);
    if (code == WEIR_EXIT_OK)
        code = check_output(request.output, job.checkpoint);
    if (code == WEIR_EXIT_OK)
        code = weir_convert_job_run(&job, &request);
    weir_convert_job_close(&job);
    free(globs);
    return code;
}
