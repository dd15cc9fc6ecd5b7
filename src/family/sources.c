/* SPDX-License-Identifier: Apache-2.0 */
/* sources.c - the tensors that a trainer's checkpoint of one model holds, read off the tables.
 *
 * Two passes over the same rows: the first counts, the second fills one block that holds the array
 * and, behind it, the names.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "family/model.h"

#define MAX_SOURCES ((size_t)1 << 20) /* ten times the largest model there is */

typedef struct collector {
    const weir_model *model;
    weir_naming naming;
    weir_dtype dtype;
    weir_tensor *tensors; /* NULL in the first pass */
    char *names;
    size_t n_tensors, name_bytes;
} collector;

/* What the engine keeps in fp32, checkpoints keep in fp32 too. */
static weir_dtype dtype_of(const collector *c, const weir_family_row *row)
{
    const weir_conversion *pinned;
    if (row->conversion == NULL || strcmp(row->conversion, WEIR_COPY) == 0)
        return c->dtype;
    bool full = strcmp(row->conversion, WEIR_COPY_F32) == 0 ||
                (weir_conversion_get(row->conversion, &pinned) == WEIR_OK &&
                 pinned->outputs[0].dtype == WEIR_F32);
    return full ? WEIR_F32 : c->dtype;
}

static weir_status add_tensor(collector *c, const weir_family_row *row, int layer,
                              const weir_row_source *source, uint64_t expert,
                              const weir_shape *shape)
{
    char name[WEIR_MODEL_NAME_BYTES];
    if (!weir_model_source_name(c->model, layer, source->name, expert, c->naming, name))
        return weir_fail(WEIR_ERR_LAYOUT, "%s: its name in layer %d is too long", source->name,
                         layer);
    size_t n_bytes = strlen(name) + 1;
    if (c->tensors != NULL) {
        memcpy(c->names + c->name_bytes, name, n_bytes);
        c->tensors[c->n_tensors] =
            (weir_tensor){ c->names + c->name_bytes, dtype_of(c, row), *shape, NULL };
    }
    c->n_tensors++;
    c->name_bytes += n_bytes;
    if (c->n_tensors > MAX_SOURCES)
        return weir_fail(WEIR_ERR_LAYOUT, "config.json describes more than %zu tensors",
                         MAX_SOURCES);
    return WEIR_OK;
}

/* Per-expert sources go expert by expert, as checkpoints list them. */
static weir_status add_row(collector *c, const weir_family_row *row, int layer)
{
    const weir_row_source *sources = weir_row_sources(row, c->naming);
    weir_shape shapes[WEIR_ROW_SOURCES];
    for (size_t s = 0; sources[s].name != NULL; s++) {
        weir_status status =
            weir_model_shape(c->model, layer, sources[s].shape, sources[s].name, &shapes[s]);
        if (status != WEIR_OK)
            return status;
    }
    bool each = strstr(sources[0].name, "{e}") != NULL;
    uint64_t n_experts = each ? c->model->n_experts : 1;
    for (uint64_t e = 0; e < n_experts; e++) {
        for (size_t s = 0; sources[s].name != NULL; s++) {
            weir_status status = add_tensor(c, row, layer, &sources[s], e, &shapes[s]);
            if (status != WEIR_OK)
                return status;
        }
    }
    return WEIR_OK;
}

static weir_status add_layer(collector *c, int layer)
{
    const weir_family_row *tables[WEIR_MODEL_TABLES];
    size_t n_tables = weir_model_tables(c->model, layer, tables);
    for (size_t t = 0; t < n_tables; t++) {
        for (const weir_family_row *row = tables[t]; row->dst != NULL; row++) {
            weir_status status =
                weir_model_row_applies(c->model, row) ? add_row(c, row, layer) : WEIR_OK;
            if (status != WEIR_OK)
                return status;
        }
    }
    return WEIR_OK;
}

static weir_status collect(collector *c)
{
    c->n_tensors = c->name_bytes = 0;
    weir_status status = WEIR_OK;
    for (uint64_t i = 0; i < c->model->n_layers && status == WEIR_OK; i++)
        status = add_layer(c, (int)i);
    return status == WEIR_OK ? add_layer(c, -1) : status;
}

weir_status weir_family_sources(const char *family, const weir_config *config, weir_naming naming,
                                weir_tensor **out_tensors, size_t *out_n_tensors)
{
    if (config == NULL || (int)naming < 0 || (int)naming >= WEIR_N_NAMINGS)
        return weir_fail(WEIR_ERR_INVALID, "the sources of a family need a config and a naming");
    weir_model model;
    weir_status status = weir_model_init(&model, family, NULL, config);
    if (status != WEIR_OK)
        return status;
    collector c = { .model = &model, .naming = naming };
    status = weir_model_dtype(&model, &c.dtype);
    if (status == WEIR_OK)
        status = collect(&c);
    if (status != WEIR_OK)
        return status;
    size_t array_bytes = c.n_tensors * sizeof(weir_tensor);
    weir_tensor *tensors = weir_alloc(array_bytes + c.name_bytes);
    if (tensors == NULL)
        return WEIR_ERR_NO_MEMORY;
    c.tensors = tensors;
    c.names = (char *)tensors + array_bytes;
    status = collect(&c);
    if (status != WEIR_OK) {
        weir_free(tensors);
        return status;
    }
    *out_tensors = tensors;
    *out_n_tensors = c.n_tensors;
    return WEIR_OK;
}

void weir_family_sources_free(weir_tensor *tensors)
{
    weir_free(tensors);
}
