/* SPDX-License-Identifier: Apache-2.0 */
/* layers.c - which layers have experts, and of which kind each is, as config.json tells it: by a
 * number, a list, or a text with a letter per layer.
 */
#include "family/layers.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

/* ---- of which kind ---------------------------------------------------------------------------*/

static int kind_named(const weir_layer_kinds *kinds, const char *name)
{
    for (int k = 0; k < WEIR_LAYER_KINDS; k++) {
        if (name != NULL && kinds->names[k] != NULL && strcmp(kinds->names[k], name) == 0)
            return k;
    }
    return -1;
}

static int kind_lettered(const weir_layer_kinds *kinds, char letter)
{
    const char *at = letter != '\0' ? strchr(kinds->letters, letter) : NULL;
    return at != NULL ? (int)(at - kinds->letters) : -1;
}

/* "a, b or c" of the kinds' names, or of their letters. */
static const char *known_kinds(const weir_layer_kinds *kinds, bool letters, char *buffer,
                               size_t buffer_bytes)
{
    size_t used = 0, n_kinds = 0;
    while (n_kinds < WEIR_LAYER_KINDS && kinds->names[n_kinds] != NULL)
        n_kinds++;
    for (size_t k = 0; k < n_kinds && used < buffer_bytes; k++) {
        const char *between = k == 0 ? "" : k + 1 == n_kinds ? " or " : ", ";
        int n =
            letters
                ? snprintf(buffer + used, buffer_bytes - used, "%s%c", between, kinds->letters[k])
                : snprintf(buffer + used, buffer_bytes - used, "%s%s", between, kinds->names[k]);
        used += n > 0 ? (size_t)n : 0;
    }
    return buffer;
}

static weir_status unknown_kind(const weir_layer_kinds *kinds, const char *key, const char *said,
                                uint64_t layer)
{
    char known[128];
    return weir_fail(WEIR_ERR_LAYOUT, "config.json: %s says '%s' of layer %" PRIu64 ", expected %s",
                     key, said, layer,
                     known_kinds(kinds, key == kinds->pattern, known, sizeof(known)));
}

static weir_status read_kind_list(weir_model *model, const weir_config *holder)
{
    const weir_layer_kinds *kinds = &model->family->layer_kinds;
    for (uint64_t i = 0; i < model->n_layers; i++) {
        const char *name = weir_config_string_at(holder, kinds->key, (int)i);
        int kind = kind_named(kinds, name);
        if (kind < 0)
            return unknown_kind(kinds, kinds->key, name != NULL ? name : "", i);
        model->kind[i] = (uint8_t)kind;
    }
    return WEIR_OK;
}

static weir_status read_kind_pattern(weir_model *model, const char *pattern)
{
    const weir_layer_kinds *kinds = &model->family->layer_kinds;
    size_t n_letters = strlen(pattern);
    for (uint64_t i = 0; i < model->n_layers && i < n_letters; i++) {
        const char letter[2] = { pattern[i], '\0' };
        int kind = kind_lettered(kinds, letter[0]);
        if (kind < 0)
            return unknown_kind(kinds, kinds->pattern, letter, i);
        model->kind[i] = (uint8_t)kind;
    }
    if (n_letters == model->n_layers)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_LAYOUT,
                     "config.json: %s has %zu layers, num_hidden_layers is %" PRIu64,
                     kinds->pattern, n_letters, model->n_layers);
}

static const char *kind_pattern(const weir_model *model)
{
    const char *key = model->family->layer_kinds.pattern;
    return key != NULL ? weir_config_string(weir_model_holder(model->config, key), key) : NULL;
}

static weir_status find_layer_kinds(weir_model *model)
{
    const weir_layer_kinds *kinds = &model->family->layer_kinds;
    uint64_t interval = 1;
    if (kinds->key == NULL)
        return WEIR_OK;
    const weir_config *holder = weir_model_holder(model->config, kinds->key);
    if (weir_config_has(holder, kinds->key))
        return read_kind_list(model, holder);
    if (kind_pattern(model) != NULL)
        return read_kind_pattern(model, kind_pattern(model));
    if (kinds->interval == NULL)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "config.json: neither %s nor %s tells the kinds of layers", kinds->key,
                         kinds->pattern);
    weir_status status =
        weir_model_number(model, kinds->interval, "the choice of layers", &interval);
    if (status == WEIR_OK && interval == 0)
        status = weir_fail(WEIR_ERR_LAYOUT, "config.json: %s is 0", kinds->interval);
    for (uint64_t i = 0; i < model->n_layers && status == WEIR_OK; i++)
        model->kind[i] = (i + 1) % interval != 0;
    return status;
}

/* ---- with experts ----------------------------------------------------------------------------*/

static weir_status find_listed_layers(weir_model *model)
{
    const weir_config *holder = weir_model_holder(model->config, "mlp_only_layers");
    int64_t only[WEIR_MODEL_MAX_LAYERS];
    uint64_t step = 1;
    weir_status status =
        weir_model_number(model, "decoder_sparse_step", "the choice of dense layers", &step);
    if (status != WEIR_OK)
        return status;
    if (step == 0)
        return weir_fail(WEIR_ERR_LAYOUT, "config.json: decoder_sparse_step is 0");
    int n_only = weir_config_ints(holder, "mlp_only_layers", only, WEIR_MODEL_MAX_LAYERS);
    if (n_only > WEIR_MODEL_MAX_LAYERS ||
        (n_only < 0 && weir_config_has(holder, "mlp_only_layers")))
        return weir_fail(WEIR_ERR_LAYOUT, "config.json: mlp_only_layers is no list of layers");
    for (uint64_t i = 0; i < model->n_layers; i++)
        model->dense[i] |= (i + 1) % step != 0;
    for (int n = 0; n < n_only; n++) {
        if (only[n] >= 0 && (uint64_t)only[n] < model->n_layers)
            model->dense[only[n]] = 1;
    }
    return WEIR_OK;
}

static weir_status find_typed_layers(weir_model *model)
{
    const weir_config *holder = weir_model_holder(model->config, "mlp_layer_types");
    for (uint64_t i = 0; i < model->n_layers; i++) {
        const char *type = weir_config_string_at(holder, "mlp_layer_types", (int)i);
        bool dense = type != NULL && strcmp(type, "dense") == 0;
        if (!dense && (type == NULL || strcmp(type, "sparse") != 0))
            return weir_fail(WEIR_ERR_LAYOUT,
                             "config.json: mlp_layer_types says '%s' of layer %" PRIu64
                             ", expected dense or sparse",
                             type != NULL ? type : "", i);
        model->dense[i] |= dense;
    }
    return WEIR_OK;
}

static void find_dense_kinds(weir_model *model)
{
    const weir_layer_kinds *kinds = &model->family->layer_kinds;
    for (uint64_t i = 0; i < model->n_layers; i++)
        model->dense[i] = strcmp(kinds->names[model->kind[i]], kinds->experts) != 0;
}

static weir_status find_dense_layers(weir_model *model)
{
    weir_dense_rule rule = model->family->dense_rule;
    uint64_t first_k = 0;
    weir_status status = WEIR_OK;
    if (rule == WEIR_DENSE_FIRST_K)
        status = weir_model_number(model, "first_k_dense_replace", "the choice of dense layers",
                                   &first_k);
    for (uint64_t i = 0; i < model->n_layers; i++)
        model->dense[i] = model->n_experts == 0 || i < first_k;
    if (rule == WEIR_DENSE_LAYER_KIND)
        find_dense_kinds(model);
    const weir_config *holder = weir_model_holder(model->config, "mlp_layer_types");
    if (rule == WEIR_DENSE_LAYER_TYPES && weir_config_has(holder, "mlp_layer_types"))
        return find_typed_layers(model);
    holder = weir_model_holder(model->config, "mlp_only_layers");
    if (rule == WEIR_DENSE_LAYER_TYPES && !weir_config_has(holder, "mlp_only_layers"))
        model->dense[0] = 1;
    else if (rule == WEIR_DENSE_QWEN3_MOE || rule == WEIR_DENSE_LAYER_TYPES)
        status = find_listed_layers(model);
    return status;
}

/* ---- all of it -------------------------------------------------------------------------------*/

weir_status weir_layers_count(weir_model *model)
{
    const weir_layer_kinds *kinds = &model->family->layer_kinds;
    const char *key = "num_hidden_layers";
    if (weir_config_has(weir_model_holder(model->config, key), key) || kinds->key == NULL)
        return weir_model_number(model, key, model->family->name, &model->n_layers);
    const weir_config *holder = weir_model_holder(model->config, kinds->key);
    while (weir_config_string_at(holder, kinds->key, (int)model->n_layers) != NULL &&
           model->n_layers <= WEIR_MODEL_MAX_LAYERS)
        model->n_layers++;
    if (model->n_layers == 0 && kind_pattern(model) != NULL)
        model->n_layers = strlen(kind_pattern(model));
    return model->n_layers > 0
               ? WEIR_OK
               : weir_model_number(model, key, model->family->name, &model->n_layers);
}

weir_status weir_layers_find(weir_model *model)
{
    weir_status status = find_layer_kinds(model);
    return status == WEIR_OK ? find_dense_layers(model) : status;
}
