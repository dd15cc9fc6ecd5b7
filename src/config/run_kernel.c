/* SPDX-License-Identifier: Apache-2.0 */
/* run_kernel.c - kernel format needs a model that Weir can convert: a family, one of its layouts,
 * and a conversion, as the config.json of the inference model says.
 *
 * Where that model is not on this machine nothing can be said, and nothing is.
 */
#include <string.h>
#include <sys/stat.h>

#include "config/run_state.h"
#include "weir/family.h"

static bool is_directory(const char *path)
{
    struct stat info;
    return path != NULL && stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* The field that names a local directory; NULL: none does. */
static const char *local_model(const weir_run_settings *settings, const char **out_directory)
{
    const weir_run_model *model = &settings->inference.model;
    *out_directory = model->path != NULL ? model->path : model->name;
    if (!is_directory(*out_directory))
        return NULL;
    return model->path != NULL ? "inference.model.path" : "inference.model.name";
}

static void complain_of_error(weir_run_config *config, weir_status status, const char *path,
                              const char *hint)
{
    if (status == WEIR_ERR_NO_MEMORY)
        config->out_of_memory = true;
    weir_run_complain(config, path, weir_run_line(config, "%s", weir_last_error()), hint);
}

static void check_layout(weir_run_config *config)
{
    const char *layout = config->settings.inference.layout;
    weir_family_info families[64];
    size_t n_families = weir_families(families, 64);
    if (layout == NULL)
        return;
    for (size_t i = 0; i < n_families && i < 64; i++) {
        if (strcmp(families[i].name, config->settings.family) != 0)
            continue;
        for (size_t k = 0; families[i].layouts[k] != NULL; k++)
            if (strcmp(families[i].layouts[k], layout) == 0)
                return;
        weir_run_complain(config, "inference.layout",
                          weir_run_line(config, "'%s' is no layout of family %s", layout,
                                        config->settings.family),
                          weir_run_line(config, "leave it out for %s; `weir families` lists all",
                                        families[i].layouts[0]));
    }
}

/* What config.json selects, and the family that it is of. */
static void check_model(weir_run_config *config, const char *path, const weir_config *model)
{
    weir_run_settings *settings = &config->settings;
    const weir_conversion *conversion;
    const char *family;
    weir_status status = weir_family_of_config(model, &family);
    if (status != WEIR_OK) {
        complain_of_error(config, status, path,
                          "kernel format needs a model that Weir knows: `weir families`; or "
                          "take quantize_in_weight_transfer out");
        return;
    }
    settings->family = family;
    check_layout(config);
    if (settings->conversion != NULL)
        return;
    status = weir_conversion_select(model, &conversion);
    if (status == WEIR_OK)
        settings->conversion = conversion->name;
    else
        complain_of_error(config, status, path,
                          "name one in inference.conversion: `weir formats` lists them");
}

static void check_conversion(weir_run_config *config)
{
    weir_run_settings *settings = &config->settings;
    const weir_conversion *conversion;
    if (strcmp(settings->inference.conversion, "auto") == 0)
        return;
    weir_status status = weir_conversion_get(settings->inference.conversion, &conversion);
    if (status == WEIR_OK)
        settings->conversion = conversion->name;
    else
        complain_of_error(config, status, "inference.conversion",
                          "write auto, or one that `weir formats` lists");
}

void weir_run_check_kernel(weir_run_config *config)
{
    const weir_run_settings *settings = &config->settings;
    if (config->out_of_memory || !settings->inference.present)
        return;
    check_conversion(config);
    const char *directory, *path = local_model(settings, &directory);
    if (path == NULL || !weir_run_is_kernel_mode(settings))
        return;
    weir_config *model;
    weir_status status = weir_config_open(directory, &model);
    if (status == WEIR_OK) {
        check_model(config, path, model);
        weir_config_close(model);
    } else {
        complain_of_error(config, status, path, "put the inference model's config.json there");
    }
}
