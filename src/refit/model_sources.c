/* SPDX-License-Identifier: Apache-2.0 */
/* model_sources.c - finds the naming that registered tensors follow, and their dtypes. */
#include "refit/model_sources.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

#define N_NAMINGS 3

/* One naming of the model, found by name. */
typedef struct described_model {
    weir_tensor *tensors;
    weir_tensor **by_name;
    size_t n;
} described_model;

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(weir_tensor *const *)a)->name, (*(weir_tensor *const *)b)->name);
}

static void close_model(described_model *model)
{
    weir_family_sources_free(model->tensors);
    weir_free(model->by_name);
    *model = (described_model){ 0 };
}

static weir_status describe(const char *family, const weir_config *config, weir_naming naming,
                            described_model *model)
{
    weir_status status = weir_family_sources(family, config, naming, &model->tensors, &model->n);
    if (status != WEIR_OK)
        return status;
    model->by_name = weir_alloc(model->n * sizeof(*model->by_name));
    if (model->by_name == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < model->n; i++)
        model->by_name[i] = &model->tensors[i];
    qsort(model->by_name, model->n, sizeof(*model->by_name), compare_names);
    return WEIR_OK;
}

static weir_tensor *find(const described_model *model, const char *name)
{
    weir_tensor wanted = { .name = name };
    const weir_tensor *key = &wanted;
    weir_tensor **found =
        bsearch(&key, model->by_name, model->n, sizeof(*model->by_name), compare_names);
    return found != NULL ? *found : NULL;
}

/* The first registered tensor that this naming lacks; n_shards when it has all. */
static size_t first_unknown(const described_model *model, const weir_tensor_shard *shards,
                            size_t n_shards)
{
    for (size_t i = 0; i < n_shards; i++) {
        if (find(model, shards[i].local.name) == NULL)
            return i;
    }
    return n_shards;
}

/* What registered tensors that are described as `described` are in truth; NONE when they differ
 * among themselves or there are none. */
static weir_dtype dtype_in_truth(const described_model *model, const weir_tensor_shard *shards,
                                 size_t n_shards, weir_dtype described)
{
    weir_dtype truth = WEIR_DTYPE_NONE;
    for (size_t i = 0; i < n_shards; i++) {
        if (find(model, shards[i].local.name)->dtype != described)
            continue;
        if (truth != WEIR_DTYPE_NONE && truth != shards[i].local.dtype)
            return WEIR_DTYPE_NONE;
        truth = shards[i].local.dtype;
    }
    return truth;
}

static void adopt_dtypes(described_model *model, const weir_tensor_shard *shards, size_t n_shards)
{
    weir_dtype truth[WEIR_DTYPE_END];
    for (weir_dtype d = WEIR_DTYPE_NONE; d < WEIR_DTYPE_END; d++)
        truth[d] = dtype_in_truth(model, shards, n_shards, d);
    for (size_t i = 0; i < model->n; i++) {
        if (truth[model->tensors[i].dtype] != WEIR_DTYPE_NONE)
            model->tensors[i].dtype = truth[model->tensors[i].dtype];
    }
    for (size_t i = 0; i < n_shards; i++)
        find(model, shards[i].local.name)->dtype = shards[i].local.dtype;
}

static weir_status check_shards(const weir_tensor_shard *shards, size_t n_shards)
{
    if (shards == NULL && n_shards > 0)
        return weir_fail(WEIR_ERR_INVALID, "%zu shards at NULL", n_shards);
    for (size_t i = 0; i < n_shards; i++) {
        if (shards[i].local.name == NULL)
            return weir_fail(WEIR_ERR_INVALID, "shard %zu of %zu has no name", i, n_shards);
        if (weir_dtype_bits(shards[i].local.dtype) == 0)
            return weir_fail(WEIR_ERR_INVALID, "%s has no dtype", shards[i].local.name);
    }
    return WEIR_OK;
}

weir_status weir_model_sources(const weir_settings *settings, const weir_tensor_shard *shards,
                               size_t n_shards, weir_naming *naming, weir_tensor **out,
                               size_t *out_n)
{
    const char *family = settings->family, *unknown = NULL;
    weir_status status = check_shards(shards, n_shards);
    size_t most_known = 0;
    if (status == WEIR_OK && settings->config == NULL)
        status = weir_fail(WEIR_ERR_INVALID, "a rank of a mesh needs the engine's config.json to "
                                             "know what the whole model has");
    if (status == WEIR_OK && family == NULL)
        status = weir_family_of_config(settings->config, &family);
    for (int tried = (int)*naming; tried < N_NAMINGS && status == WEIR_OK; tried++) {
        described_model model = { 0 };
        status = describe(family, settings->config, (weir_naming)tried, &model);
        size_t n_known = status == WEIR_OK ? first_unknown(&model, shards, n_shards) : 0;
        if (status == WEIR_OK && n_known == n_shards) {
            adopt_dtypes(&model, shards, n_shards);
            *naming = (weir_naming)tried;
            *out = model.tensors;
            *out_n = model.n;
            model.tensors = NULL;
            close_model(&model);
            return WEIR_OK;
        }
        if (status == WEIR_OK && (unknown == NULL || n_known > most_known)) {
            unknown = shards[n_known].local.name;
            most_known = n_known;
        }
        close_model(&model);
    }
    if (status != WEIR_OK)
        return status;
    return weir_fail(WEIR_ERR_LAYOUT,
                     "%s is registered, but family %s has no such tensor by its "
                     "config.json",
                     unknown, family);
}
