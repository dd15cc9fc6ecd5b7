/* SPDX-License-Identifier: Apache-2.0 */
/* family.c - the list of families, and finding one by name or by config.json. */
#include "weir/family.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "family/table.h"

/* clang-format off */
static const weir_family *const families[] = {
    &weir_family_afmoe,
    &weir_family_bert,
    &weir_family_deepseek_v3,
    &weir_family_gemma2,
    &weir_family_gemma3_text,
    &weir_family_glm4_moe,
    &weir_family_glm_moe_dsa,
    &weir_family_gpt_oss,
    &weir_family_laguna,
    &weir_family_llama,
    &weir_family_minimax_m2,
    &weir_family_mistral,
    &weir_family_mixtral,
    &weir_family_nemotron_h,
    &weir_family_qwen2,
    &weir_family_qwen3,
    &weir_family_qwen3_5,
    &weir_family_qwen3_5_moe,
    &weir_family_qwen3_moe,
};
/* clang-format on */
#define N_FAMILIES (sizeof(families) / sizeof(families[0]))

size_t weir_families(weir_family_info *infos, size_t n_families)
{
    for (size_t i = 0; i < N_FAMILIES && i < n_families; i++)
        infos[i] =
            (weir_family_info){ families[i]->name, families[i]->summary, families[i]->layouts,
                                families[i]->model_types, families[i]->presets };
    return N_FAMILIES;
}

/* "a, b, c" of a NULL-terminated list. */
static const char *join(const char *const *names, char *buffer, size_t buffer_bytes)
{
    size_t used = 0;
    buffer[0] = '\0';
    for (size_t i = 0; names[i] != NULL && used < buffer_bytes; i++) {
        int n = snprintf(buffer + used, buffer_bytes - used, "%s%s", i > 0 ? ", " : "", names[i]);
        used += n > 0 ? (size_t)n : 0;
    }
    return buffer;
}

static int index_of(const char *const *names, const char *name)
{
    for (int i = 0; names[i] != NULL; i++) {
        if (strcmp(names[i], name) == 0)
            return i;
    }
    return -1;
}

weir_status weir_family_find(const char *name, const weir_family **out)
{
    const char *names[N_FAMILIES + 1] = { NULL };
    for (size_t i = 0; i < N_FAMILIES; i++)
        names[i] = families[i]->name;
    int i = index_of(names, name);
    char known[512];
    if (i < 0)
        return weir_fail(WEIR_ERR_NOT_FOUND, "unknown family '%s'; there are: %s", name,
                         join(names, known, sizeof(known)));
    *out = families[i];
    return WEIR_OK;
}

weir_status weir_family_find_parts(const weir_family *family, const char *layout,
                                   const weir_family_parts **out)
{
    int i = layout == NULL ? 0 : index_of(family->layouts, layout);
    char known[128];
    if (i < 0)
        return weir_fail(WEIR_ERR_NOT_FOUND, "family %s has no engine layout '%s'; it has: %s",
                         family->name, layout, join(family->layouts, known, sizeof(known)));
    *out = &family->parts[i];
    return WEIR_OK;
}

static bool is_of(const weir_family *family, const weir_config *config)
{
    const char *type = weir_config_string(config, "model_type");
    return type != NULL && index_of(family->model_types, type) >= 0;
}

weir_status weir_family_of_config(const weir_config *config, const char **out_family)
{
    const weir_config *text = weir_config_object(config, "text_config");
    for (size_t i = 0; i < N_FAMILIES; i++) {
        if (is_of(families[i], config) || (text != NULL && is_of(families[i], text))) {
            *out_family = families[i]->name;
            return WEIR_OK;
        }
    }
    const char *types[N_FAMILIES * WEIR_FAMILY_MAX + 1] = { NULL };
    size_t n = 0;
    for (size_t i = 0; i < N_FAMILIES; i++) {
        for (size_t t = 0; families[i]->model_types[t] != NULL; t++)
            types[n++] = families[i]->model_types[t];
    }
    char known[512];
    join(types, known, sizeof(known));
    const char *type = weir_config_string(config, "model_type");
    if (type == NULL)
        return weir_fail(WEIR_ERR_NOT_FOUND, "config.json has no model_type; known: %s", known);
    return weir_fail(WEIR_ERR_NOT_FOUND, "config.json: model_type '%s' is of no family; known: %s",
                     type, known);
}

weir_status weir_family_preset(const char *family, const char *preset, char **out_config)
{
    const weir_family *found = NULL;
    weir_status status = weir_family_find(family, &found);
    if (status != WEIR_OK)
        return status;
    int i = index_of(found->presets, preset);
    char known[128];
    if (i < 0)
        return weir_fail(WEIR_ERR_NOT_FOUND, "family %s has no preset '%s'; it has: %s", family,
                         preset, join(found->presets, known, sizeof(known)));
    char *text = weir_strdup(found->configs[i]);
    if (text == NULL)
        return WEIR_ERR_NO_MEMORY;
    *out_config = text;
    return WEIR_OK;
}
