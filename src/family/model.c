/* SPDX-License-Identifier: Apache-2.0 */
/* model.c - the small language of the tables: names with {i} and {e}, shapes made of config keys.
 *
 * config.json comes from outside: every number is checked, every product is overflow-safe.
 */
#include "family/model.h"

#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "family/layers.h"

/* ---- keys of the config ----------------------------------------------------------------------*/

const weir_config *weir_model_holder(const weir_config *config, const char *key)
{
    const weir_config *text = weir_config_object(config, "text_config");
    return !weir_config_has(config, key) && text != NULL ? text : config;
}

/* The expression that the family gives a key, NULL when it gives none. */
static const char *default_of(const weir_family *family, const char *key)
{
    for (int i = 0; i < WEIR_FAMILY_DEFAULTS && family->defaults[i].key != NULL; i++) {
        if (strcmp(family->defaults[i].key, key) == 0)
            return family->defaults[i].expression;
    }
    return NULL;
}

/* True, a number above 0, or a text. */
static bool config_true(const weir_model *model, const char *key)
{
    const weir_config *holder = weir_model_holder(model->config, key);
    const char *otherwise = default_of(model->family, key);
    bool value = false;
    int64_t number;
    if (weir_config_bool(holder, key, &value))
        return value;
    if (weir_config_int(holder, key, &number))
        return number > 0;
    if (weir_config_has(holder, key))
        return weir_config_string(holder, key) != NULL;
    return otherwise != NULL && strcmp(otherwise, "1") == 0;
}

/* A row's `when`. Without a config the plain conditions hold and the others do not, so that rows
 * which exclude each other do not both want one source. */
static bool holds(const weir_model *model, const char *when)
{
    bool negated = when[0] == '!';
    const char *key_end = when + negated + strcspn(when + negated, "!=");
    char key[64];
    snprintf(key, sizeof(key), "%.*s", (int)(key_end - when - negated), when + negated);
    if (model->config == NULL)
        return !negated && *key_end != '=';
    if (negated || *key_end == '\0')
        return config_true(model, key) != negated;
    const char *text = weir_config_string(weir_model_holder(model->config, key), key);
    bool equal = text != NULL && strcmp(text, strchr(key_end, '=') + 1) == 0;
    return *key_end == '=' ? equal : !equal && config_true(model, key);
}

/* ---- expressions -----------------------------------------------------------------------------*/

typedef struct reader {
    const weir_model *model;
    int layer; /* -1: none */
    const char *at;
    const char *name; /* whose expression it is */
    int depth;
} reader;

static weir_status read_sum(reader *r, uint64_t *out);

/* A list has one number per layer. False: it is no list, or the layer is not known. */
static bool read_list(const reader *r, const weir_config *holder, const char *key, int64_t *out)
{
    int64_t values[WEIR_MODEL_MAX_LAYERS];
    int n = weir_config_ints(holder, key, values, WEIR_MODEL_MAX_LAYERS);
    if (r->layer < 0 || n < 0 || (uint64_t)n != r->model->n_layers)
        return false;
    *out = values[r->layer];
    return true;
}

static weir_status read_key(reader *r, const char *key, uint64_t *out)
{
    int64_t value = 0;
    const weir_config *holder = weir_model_holder(r->model->config, key);
    if (weir_config_int(holder, key, &value) || read_list(r, holder, key, &value)) {
        if (value < 0)
            return weir_fail(WEIR_ERR_LAYOUT, "config.json: %s is %" PRId64 ", %s needs it >= 0",
                             key, value, r->name);
        *out = (uint64_t)value;
        return WEIR_OK;
    }
    if (weir_config_has(holder, key))
        return weir_fail(WEIR_ERR_LAYOUT, "config.json: %s is no whole number%s, %s needs one", key,
                         r->layer >= 0 ? " nor a list of one per layer" : "", r->name);
    const char *otherwise = default_of(r->model->family, key);
    if (otherwise != NULL && r->depth < 4) {
        reader inner = { r->model, r->layer, otherwise, r->name, r->depth + 1 };
        return read_sum(&inner, out);
    }
    return weir_fail(WEIR_ERR_LAYOUT, "config.json: %s is missing, %s needs it", key, r->name);
}

static void skip_spaces(reader *r)
{
    while (*r->at == ' ')
        r->at++;
}

static weir_status read_factor(reader *r, uint64_t *out)
{
    char key[64];
    size_t n = 0;
    skip_spaces(r);
    while (isalnum((unsigned char)*r->at) || *r->at == '_') {
        if (n + 1 < sizeof(key))
            key[n++] = *r->at;
        r->at++;
    }
    key[n] = '\0';
    skip_spaces(r);
    if (!isdigit((unsigned char)key[0]))
        return read_key(r, key, out);
    *out = 0;
    for (const char *digit = key; *digit != '\0'; digit++)
        *out = *out * 10 + (uint64_t)(*digit - '0');
    return WEIR_OK;
}

static weir_status too_large(const reader *r)
{
    return weir_fail(WEIR_ERR_LAYOUT, "config.json: the shape of %s exceeds 64 bits", r->name);
}

static weir_status read_product(reader *r, uint64_t *out)
{
    weir_status status = read_factor(r, out);
    while (status == WEIR_OK && (*r->at == '*' || *r->at == '/')) {
        char operation = *r->at++;
        uint64_t factor = 0;
        status = read_factor(r, &factor);
        if (status != WEIR_OK)
            return status;
        if (operation == '*' && __builtin_mul_overflow(*out, factor, out))
            return too_large(r);
        if (operation == '/') {
            if (factor == 0 || *out % factor != 0)
                return weir_fail(WEIR_ERR_LAYOUT,
                                 "config.json: %" PRIu64 " does not divide by %" PRIu64
                                 " (%s), which %s needs",
                                 *out, factor, r->at, r->name);
            *out /= factor;
        }
    }
    return status;
}

static weir_status read_sum(reader *r, uint64_t *out)
{
    weir_status status = read_product(r, out);
    while (status == WEIR_OK && *r->at == '+') {
        r->at++;
        uint64_t term = 0;
        status = read_product(r, &term);
        if (status == WEIR_OK && __builtin_add_overflow(*out, term, out))
            return too_large(r);
    }
    return status;
}

weir_status weir_model_number(const weir_model *model, const char *expression, const char *name,
                              uint64_t *out)
{
    return weir_model_layer_number(model, -1, expression, name, out);
}

weir_status weir_model_layer_number(const weir_model *model, int layer, const char *expression,
                                    const char *name, uint64_t *out)
{
    reader r = { model, layer, expression, name, 0 };
    weir_status status = read_sum(&r, out);
    assert(status != WEIR_OK || *r.at == '\0');
    return status;
}

weir_status weir_model_shape(const weir_model *model, int layer, const char *expression,
                             const char *name, weir_shape *out)
{
    reader r = { model, layer, expression, name, 0 };
    weir_shape shape = { .rank = 0 };
    for (;;) {
        uint64_t dim = 0;
        weir_status status = read_sum(&r, &dim);
        if (status != WEIR_OK)
            return status;
        if (dim == 0)
            return weir_fail(WEIR_ERR_LAYOUT, "config.json: axis %u of %s (%s) is 0", shape.rank,
                             name, expression);
        shape.dim[shape.rank++] = dim;
        if (*r.at != ',' || shape.rank == WEIR_MAX_RANK)
            break;
        r.at++;
    }
    assert(*r.at == '\0');
    uint64_t n_bytes;
    if (weir_tensor_bytes(WEIR_F32, &shape, &n_bytes) != WEIR_OK)
        return too_large(&r);
    *out = shape;
    return WEIR_OK;
}

uint32_t weir_shape_expression_rank(const char *expression, bool *out_squeeze)
{
    uint32_t rank = 1;
    for (const char *at = expression; *at != '\0'; at++)
        rank += *at == ',';
    *out_squeeze = expression[0] == '1' && expression[1] == ',';
    return rank;
}

/* ---- the model -------------------------------------------------------------------------------*/

static weir_status read_counts(weir_model *model)
{
    weir_status status = weir_layers_count(model);
    if (status == WEIR_OK && model->family->n_experts != NULL)
        status = weir_model_number(model, model->family->n_experts, model->family->name,
                                   &model->n_experts);
    if (status != WEIR_OK)
        return status;
    if (model->n_layers > WEIR_MODEL_MAX_LAYERS)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "config.json: %" PRIu64 " layers, at most %d are possible",
                         model->n_layers, WEIR_MODEL_MAX_LAYERS);
    if (model->n_experts > WEIR_MODEL_MAX_EXPERTS)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "config.json: %" PRIu64 " experts, at most %d are possible",
                         model->n_experts, WEIR_MODEL_MAX_EXPERTS);
    return WEIR_OK;
}

/* The layout that fits the config best; NULL: the family's default. */
static const char *layout_of(const weir_family *family, const weir_config *config)
{
    if (config == NULL || weir_config_object(config, "text_config") == NULL)
        return NULL;
    for (int i = 0; family->layouts[i] != NULL; i++) {
        if (family->dst_prefix[i] != NULL)
            return family->layouts[i];
    }
    return NULL;
}

weir_status weir_model_init(weir_model *model, const char *family, const char *layout,
                            const weir_config *config)
{
    memset(model, 0, sizeof(*model));
    model->config = config;
    weir_status status = WEIR_OK;
    if (family == NULL && config == NULL)
        return weir_fail(WEIR_ERR_INVALID, "no family given, and no config.json to tell it");
    if (family == NULL)
        status = weir_family_of_config(config, &family);
    if (status == WEIR_OK)
        status = weir_family_find(family, &model->family);
    if (status == WEIR_OK && layout == NULL)
        layout = layout_of(model->family, config);
    if (status == WEIR_OK)
        status = weir_family_find_parts(model->family, layout, &model->parts);
    if (status != WEIR_OK || config == NULL)
        return status;
    model->tied = config_true(model, "tie_word_embeddings");
    status = read_counts(model);
    if (status == WEIR_OK)
        status = weir_layers_find(model);
    return status;
}

size_t weir_model_tables(const weir_model *model, int layer,
                         const weir_family_row *tables[WEIR_MODEL_TABLES])
{
    const weir_family_parts *parts = model->parts;
    const weir_layer_kinds *kinds = &model->family->layer_kinds;
    bool dense = true, sparse = true;
    size_t n = 0;
    if (layer < 0) {
        if (parts->rest != NULL)
            tables[n++] = parts->rest;
        return n;
    }
    if (model->config != NULL) {
        dense = model->dense[layer];
        sparse = !dense;
    }
    if (parts->base != NULL)
        tables[n++] = parts->base;
    for (int k = 0; k < WEIR_LAYER_KINDS; k++) {
        if (kinds->rows[k] != NULL && (model->config == NULL || model->kind[layer] == k))
            tables[n++] = kinds->rows[k];
    }
    if (dense && parts->dense != NULL)
        tables[n++] = parts->dense;
    if (sparse && parts->sparse != NULL)
        tables[n++] = parts->sparse;
    return n;
}

bool weir_model_row_applies(const weir_model *model, const weir_family_row *row)
{
    if (model->config != NULL && row->tied_with != NULL && model->tied)
        return false;
    return row->when == NULL || holds(model, row->when);
}

const weir_row_source *weir_row_sources(const weir_family_row *row, weir_naming naming)
{
    const weir_row_source *own = row->sources[naming];
    return own[0].name != NULL ? own : row->sources[WEIR_NAMING_HF];
}

weir_status weir_model_dtype(const weir_model *model, weir_dtype *out)
{
    static const struct {
        const char *name;
        weir_dtype dtype;
    } known[] = { { "bfloat16", WEIR_BF16 }, { "float16", WEIR_F16 }, { "float32", WEIR_F32 } };
    /* Newer writers say "dtype". */
    const char *name =
        weir_config_string(weir_model_holder(model->config, "torch_dtype"), "torch_dtype");
    if (name == NULL)
        name = weir_config_string(weir_model_holder(model->config, "dtype"), "dtype");
    if (name == NULL)
        name = "bfloat16";
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, name) == 0) {
            *out = known[i].dtype;
            return WEIR_OK;
        }
    }
    return weir_fail(WEIR_ERR_LAYOUT,
                     "config.json: torch_dtype is '%s', expected bfloat16, float16 or float32",
                     name);
}

/* ---- names -----------------------------------------------------------------------------------*/

/* Copies `pattern` with the first `mark` replaced by `number`. Returns the length, 0 when it does
 * not fit. */
static size_t fill_in(const char *pattern, const char *mark, uint64_t number, char *buffer,
                      size_t buffer_bytes)
{
    const char *at = strstr(pattern, mark);
    int n = at == NULL ? snprintf(buffer, buffer_bytes, "%s", pattern)
                       : snprintf(buffer, buffer_bytes, "%.*s%" PRIu64 "%s", (int)(at - pattern),
                                  pattern, number, at + strlen(mark));
    return n > 0 && (size_t)n < buffer_bytes ? (size_t)n : 0;
}

bool weir_model_name(const weir_model *model, int layer, const char *suffix, uint64_t expert,
                     char *buffer)
{
    size_t n = 0;
    if (layer >= 0) {
        n = fill_in(model->family->layer_prefix, "{i}", (uint64_t)layer, buffer,
                    WEIR_MODEL_NAME_BYTES);
        if (n == 0)
            return false;
    }
    return fill_in(suffix, "{e}", expert, buffer + n, WEIR_MODEL_NAME_BYTES - n) != 0;
}

bool weir_model_source_name(const weir_model *model, int layer, const char *suffix, uint64_t expert,
                            weir_naming naming, char *buffer)
{
    const weir_family *family = model->family;
    char name[WEIR_MODEL_NAME_BYTES];
    if (!family->hf_says_alias || naming == WEIR_NAMING_STACKED)
        return weir_model_name(model, layer, suffix, expert, buffer);
    if (!weir_model_name(model, layer, suffix, expert, name))
        return false;
    size_t n_known = strlen(family->alias[1]);
    bool aliased = strncmp(name, family->alias[1], n_known) == 0;
    int n = snprintf(buffer, WEIR_MODEL_NAME_BYTES, "%s%s", aliased ? family->alias[0] : "",
                     name + (aliased ? n_known : 0));
    return n > 0 && n < WEIR_MODEL_NAME_BYTES;
}

bool weir_model_dst(const weir_model *model, int layer, const char *suffix, char *buffer)
{
    const char *prefix = model->family->dst_prefix[model->parts - model->family->parts];
    char name[WEIR_MODEL_NAME_BYTES];
    if (!weir_model_name(model, layer, suffix, 0, name))
        return false;
    int n = snprintf(buffer, WEIR_MODEL_NAME_BYTES, "%s%s", prefix != NULL ? prefix : "", name);
    return n > 0 && n < WEIR_MODEL_NAME_BYTES;
}

/* Reads a number as tables write it (no sign, no leading zero); NULL when there is none. */
static const char *read_number(const char *text, uint64_t *out)
{
    uint64_t number = 0;
    const char *at = text;
    for (; isdigit((unsigned char)*at) && at - text < 9; at++)
        number = number * 10 + (uint64_t)(*at - '0');
    if (at == text || (text[0] == '0' && at - text > 1))
        return NULL;
    *out = number;
    return at;
}

int weir_model_layer_of(const weir_model *model, const char *name, const char **out_suffix)
{
    const char *prefix = model->family->layer_prefix;
    const char *mark = strstr(prefix, "{i}");
    size_t before = (size_t)(mark - prefix), after = strlen(mark + 3);
    uint64_t layer;
    if (strncmp(name, prefix, before) != 0)
        return -1;
    const char *at = read_number(name + before, &layer);
    if (at == NULL || strncmp(at, mark + 3, after) != 0)
        return -1;
    *out_suffix = at + after;
    return (int)layer;
}

bool weir_model_expert_of(const char *pattern, const char *suffix, uint64_t *out_expert)
{
    const char *mark = strstr(pattern, "{e}");
    if (mark == NULL || strncmp(suffix, pattern, (size_t)(mark - pattern)) != 0)
        return false;
    const char *at = read_number(suffix + (mark - pattern), out_expert);
    return at != NULL && strcmp(at, mark + 3) == 0;
}
