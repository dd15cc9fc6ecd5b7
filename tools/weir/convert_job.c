/* SPDX-License-Identifier: Apache-2.0 */
/* convert_job.c - from the command line to a list of entries: which tensors, by which conversion,
 * into outputs of which names and shapes. Reads no tensor's bytes; convert_run.c does the work.
 *
 * Tensor by tensor is made to look like a family: an entry of one source each, whose F32 sources
 * keep their precision, because no engine asked for anything else.
 */
#include "convert_job.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_TAGS_BYTES ((size_t)1 << 20)
#define SUFFIX_ROOM 64 /* what an output's name may be longer than its tensor's */

static int out_of_memory(void)
{
    return weir_cli_error("out of memory");
}

uint64_t weir_convert_bytes_of(const weir_tensor *tensor)
{
    uint64_t n_bytes = 0;
    (void)weir_tensor_bytes(tensor->dtype, &tensor->shape, &n_bytes);
    return n_bytes;
}

size_t weir_convert_sources_of(const weir_map_entry *entry)
{
    return entry->n_experts != 0 ? entry->n_experts * entry->n_sources : entry->n_sources;
}

/* ---- which tensors ---------------------------------------------------------------------------*/

static bool matches_any(const weir_convert_globs *globs, const char *name)
{
    for (size_t i = 0; i < globs->n_globs; i++)
        if (fnmatch(globs->globs[i], name, 0) == 0)
            return true;
    return false;
}

static int select_tensors(const weir_convert_request *request, weir_convert_job *job)
{
    size_t n_tensors;
    const weir_tensor *tensors = weir_checkpoint_tensors(job->checkpoint, &n_tensors);
    job->selected = calloc(n_tensors + 1, sizeof(*job->selected));
    if (job->selected == NULL)
        return out_of_memory();
    for (size_t i = 0; i < n_tensors; i++) {
        bool wanted =
            request->select.n_globs == 0 || matches_any(&request->select, tensors[i].name);
        if (!wanted || matches_any(&request->ignore, tensors[i].name))
            continue;
        job->selected[job->n_selected++] = tensors[i];
        job->source_bytes += weir_convert_bytes_of(&tensors[i]);
    }
    if (job->n_selected > 0)
        return WEIR_EXIT_OK;
    if (n_tensors == 0)
        return weir_cli_error("%s: holds no tensor", request->sources[0]);
    return weir_cli_error("none of the %zu tensors in %s is left by --select and --ignore",
                          n_tensors, request->sources[0]);
}

/* ---- tensor by tensor ------------------------------------------------------------------------*/

static int refuse_dtype(const weir_conversion *conversion, const weir_tensor *tensor)
{
    char takes[128] = "";
    for (int dtype = 1; dtype < WEIR_DTYPE_END; dtype++) {
        size_t used = strlen(takes);
        if (conversion->sources & WEIR_DTYPE_BIT(dtype))
            snprintf(takes + used, sizeof(takes) - used, "%s%s", used > 0 ? ", " : "",
                     weir_dtype_name((weir_dtype)dtype));
    }
    return weir_cli_error("%s: dtype %s, but conversion '%s' takes %s", tensor->name,
                          weir_dtype_name(tensor->dtype), conversion->name, takes);
}

/* Names and shapes of what one tensor becomes. */
static int describe_outputs(weir_convert_job *job, const weir_tensor *tensor, size_t entry,
                            char **names)
{
    const weir_conversion *conversion = job->conversion;
    if ((conversion->sources & WEIR_DTYPE_BIT(tensor->dtype)) == 0)
        return refuse_dtype(conversion, tensor);
    for (size_t i = 0; i < conversion->n_outputs; i++) {
        weir_tensor *output = &job->outputs[job->n_outputs];
        size_t room = strlen(tensor->name) + SUFFIX_ROOM;
        if (weir_conversion_output_shape(conversion, i, &tensor->shape, &output->shape) ||
            weir_conversion_output_name(conversion, i, tensor->name, false, *names, room))
            return weir_cli_error("%s: %s", tensor->name, weir_last_error());
        output->name = *names;
        output->dtype = conversion->outputs[i].dtype;
        *names += strlen(*names) + 1;
        job->entry_of[job->n_outputs++] = entry;
    }
    return WEIR_EXIT_OK;
}

static int plan_tensors(const weir_convert_request *request, weir_convert_job *job)
{
    if (weir_conversion_get(request->conversion, &job->conversion) != WEIR_OK)
        return weir_cli_fail();
    size_t n_outputs = job->n_selected * job->conversion->n_outputs;
    size_t name_bytes = 0;
    for (size_t i = 0; i < job->n_selected; i++)
        name_bytes += strlen(job->selected[i].name) + SUFFIX_ROOM;
    job->own_entries = calloc(job->n_selected, sizeof(*job->own_entries));
    job->outputs = calloc(n_outputs, sizeof(*job->outputs));
    job->entry_of = calloc(n_outputs, sizeof(*job->entry_of));
    job->names = malloc(name_bytes * job->conversion->n_outputs);
    if (job->own_entries == NULL || job->outputs == NULL || job->entry_of == NULL ||
        job->names == NULL)
        return out_of_memory();

    char *names = job->names;
    for (size_t i = 0; i < job->n_selected; i++) {
        const weir_tensor *tensor = &job->selected[i];
        job->own_entries[i] = (weir_map_entry){ .name = tensor->name,
                                                .conversion = job->conversion,
                                                .sources = tensor,
                                                .n_sources = 1,
                                                .axis = tensor->shape.rank == 3 ? 1 : 0,
                                                .layer = -1,
                                                .shape = tensor->shape,
                                                .first_parameter = job->n_outputs };
        int code = describe_outputs(job, tensor, i, &names);
        if (code != WEIR_EXIT_OK)
            return code;
    }
    job->entries = job->own_entries;
    job->n_entries = job->n_selected;
    job->keep_masters = true;
    return WEIR_EXIT_OK;
}

/* ---- whole layers ----------------------------------------------------------------------------*/

/* --config, else the config.json beside the sources if there is one. */
static int open_config(const weir_convert_request *request, weir_convert_job *job)
{
    char beside[4096];
    const char *path = request->config;
    if (path == NULL) {
        struct stat status;
        int n = snprintf(beside, sizeof(beside), "%s/config.json",
                         weir_checkpoint_directory(job->checkpoint));
        if (n < 0 || n >= (int)sizeof(beside) || stat(beside, &status) != 0)
            return WEIR_EXIT_OK;
        path = beside;
    }
    return weir_config_open(path, &job->config) == WEIR_OK ? WEIR_EXIT_OK : weir_cli_fail();
}

static int check_config(const weir_convert_request *request, const weir_convert_job *job)
{
    if (job->config != NULL)
        return WEIR_EXIT_OK;
    if (strcmp(request->family, "auto") == 0 || strcmp(request->conversion, "auto") == 0)
        return weir_cli_error("%s: no config.json lies there for 'auto' to read; name one with "
                              "--config",
                              weir_checkpoint_directory(job->checkpoint));
    weir_cli_note("no config.json: whether the checkpoint is complete is not checked");
    return WEIR_EXIT_OK;
}

static int copy_parameters(weir_convert_job *job)
{
    size_t n_parameters;
    const weir_parameter *parameters = weir_mapping_parameters(job->mapping, &n_parameters);
    job->outputs = calloc(n_parameters + 1, sizeof(*job->outputs));
    job->entry_of = calloc(n_parameters + 1, sizeof(*job->entry_of));
    if (job->outputs == NULL || job->entry_of == NULL)
        return out_of_memory();
    /* Derived parameters stand last, and the replica computes them: they are not written. */
    for (size_t i = 0; i < n_parameters && parameters[i].entry != SIZE_MAX; i++) {
        job->outputs[job->n_outputs] = (weir_tensor){ .name = parameters[i].name,
                                                      .dtype = parameters[i].dtype,
                                                      .shape = parameters[i].shape };
        job->entry_of[job->n_outputs++] = parameters[i].entry;
    }
    return WEIR_EXIT_OK;
}

/* Every parameter's tag, as JSON; NULL when it would be too large for a header. */
static char *tags_text(const weir_mapping *mapping, size_t n_outputs)
{
    size_t n;
    const weir_parameter *parameters = weir_mapping_parameters(mapping, &n);
    json_t *tags = json_object();
    for (size_t i = 0; i < n_outputs; i++)
        json_object_set_new(tags, parameters[i].name,
                            json_pack("{s:s, s:o}", "compile_target", parameters[i].compile_target,
                                      "compile_metadata",
                                      weir_cli_json_of(parameters[i].compile_metadata)));
    char *text = json_dumps(tags, JSON_COMPACT);
    json_decref(tags);
    if (text == NULL || strlen(text) < MAX_TAGS_BYTES)
        return text;
    free(text);
    return NULL;
}

static const char *default_layout(const char *family)
{
    weir_family_info families[64];
    size_t n = weir_families(families, 64);
    for (size_t i = 0; i < n && i < 64; i++)
        if (strcmp(families[i].name, family) == 0)
            return families[i].layouts[0];
    return "";
}

static void add_metadata(weir_convert_job *job, const char *key, const char *value)
{
    job->metadata[job->n_metadata][0] = key;
    job->metadata[job->n_metadata++][1] = value;
}

static int plan_family(const weir_convert_request *request, weir_convert_job *job)
{
    int code = open_config(request, job);
    if (code == WEIR_EXIT_OK)
        code = check_config(request, job);
    if (code != WEIR_EXIT_OK)
        return code;
    const char *family = request->family;
    if (strcmp(family, "auto") == 0 && weir_family_of_config(job->config, &family) != WEIR_OK)
        return weir_cli_fail();

    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = family;
    options.layout = request->layout;
    options.conversion = request->conversion;
    options.config = job->config;
    if (weir_mapping_open(&options, job->selected, job->n_selected, &job->mapping) != WEIR_OK)
        return weir_cli_fail();
    job->entries = weir_mapping_entries(job->mapping, &job->n_entries);
    job->conversion = weir_mapping_conversion(job->mapping);
    job->keep_masters = request->keep_masters;
    code = copy_parameters(job);
    if (code != WEIR_EXIT_OK)
        return code;

    add_metadata(job, "weir.family", family);
    add_metadata(job, "weir.layout",
                 request->layout != NULL ? request->layout : default_layout(family));
    job->tags = tags_text(job->mapping, job->n_outputs);
    if (job->tags != NULL)
        add_metadata(job, "weir.tags", job->tags);
    return WEIR_EXIT_OK;
}

/* ---- the whole -------------------------------------------------------------------------------*/

static int compare_names(const void *a, const void *b)
{
    const weir_tensor *const *left = a, *const *right = b;
    int order = strcmp((*left)->name, (*right)->name);
    return order != 0 ? order : (*left > *right) - (*left < *right);
}

/* A name that comes up twice would make one output hide the other. */
static int refuse_collisions(const weir_convert_job *job)
{
    const weir_tensor **sorted = calloc(job->n_outputs + 1, sizeof(weir_tensor *));
    if (sorted == NULL)
        return out_of_memory();
    for (size_t i = 0; i < job->n_outputs; i++)
        sorted[i] = &job->outputs[i];
    qsort(sorted, job->n_outputs, sizeof(*sorted), compare_names);

    int code = WEIR_EXIT_OK;
    for (size_t i = 1; i < job->n_outputs && code == WEIR_EXIT_OK; i++) {
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) != 0)
            continue;
        const weir_map_entry *first = &job->entries[job->entry_of[sorted[i - 1] - job->outputs]];
        const weir_map_entry *second = &job->entries[job->entry_of[sorted[i] - job->outputs]];
        code = weir_cli_error("'%s' would be written twice: for '%s' and for '%s'", sorted[i]->name,
                              first->name, second->name);
    }
    free(sorted);
    return code;
}

int weir_convert_job_open(const weir_convert_request *request, weir_convert_job *job)
{
    const char *const *paths = (const char *const *)request->sources;
    if (weir_checkpoint_open_many(paths, request->n_sources, &job->checkpoint) != WEIR_OK)
        return weir_cli_fail();
    job->propagate = request->propagate;
    int code = select_tensors(request, job);
    if (code == WEIR_EXIT_OK)
        code = request->family != NULL ? plan_family(request, job) : plan_tensors(request, job);
    if (code != WEIR_EXIT_OK)
        return code;
    for (size_t i = 0; i < job->n_outputs; i++)
        job->output_bytes += weir_convert_bytes_of(&job->outputs[i]);
    add_metadata(job, "format", "pt");
    add_metadata(job, "weir.conversion", job->conversion->name);
    add_metadata(job, "weir.compile_target", job->conversion->compile_target);
    add_metadata(job, "weir.compile_metadata", job->conversion->compile_metadata);
    return refuse_collisions(job);
}

void weir_convert_job_close(weir_convert_job *job)
{
    free(job->tags);
    free(job->names);
    free(job->entry_of);
    free(job->outputs);
    free(job->own_entries);
    weir_mapping_close(job->mapping);
    weir_config_close(job->config);
    free(job->selected);
    weir_checkpoint_close(job->checkpoint);
}
