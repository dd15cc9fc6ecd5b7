/* SPDX-License-Identifier: Apache-2.0 */
/* store_run.c - models and their runs: what records belong to, there as long as one does.
 *
 * A model's revision is the store's at its last change, so that a model that was forgotten and
 * comes back goes on from where it was. */
#include <string.h>

#include "directory/store_record.h"

/* ---- models ----------------------------------------------------------------------------------*/

store_model *weir_store_find_model(const weir_store *store, const char *name)
{
    store_node *node =
        weir_store_index_first(&store->models, weir_store_hash_text(store->seed, name));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_model *model = WEIR_STORE_OF(store_model, node, node);
        if (strcmp(model->name, name) == 0)
            return model;
    }
    return NULL;
}

store_model *weir_store_have_model(weir_store *store, const char *name)
{
    store_model *model = weir_store_find_model(store, name);
    if (model != NULL)
        return model;
    model = weir_store_alloc(store, sizeof(*model) + strlen(name) + 1);
    if (model == NULL)
        return NULL;
    char *at = (char *)(model + 1);
    model->name = weir_store_put_text(&at, name);
    weir_store_list_init(&model->workers);
    weir_store_list_init(&model->versions);
    weir_store_list_init(&model->sources);
    weir_store_list_init(&model->runs);
    weir_store_list_add_first(&store->all_models, &model->link);
    weir_store_index_add(&store->models, &model->node, weir_store_hash_text(store->seed, name));
    return model;
}

void weir_store_let_model(weir_store *store, store_model *model)
{
    if (model == NULL || model->n_users != 0)
        return;
    if (model->revision != 0)
        store->gone_revision = model->revision;
    weir_store_index_remove(&store->models, &model->node);
    weir_store_list_remove(&model->link);
    weir_store_free(store, model, sizeof(*model) + strlen(model->name) + 1);
}

void weir_store_note_change(weir_store *store, store_model *model)
{
    model->revision = ++store->revision;
}

uint64_t weir_store_revision(const weir_store *store, const char *model)
{
    if (model == NULL)
        return store->revision;
    const store_model *found = weir_store_find_model(store, model);
    return found != NULL && found->revision != 0 ? found->revision : store->gone_revision;
}

/* ---- runs ------------------------------------------------------------------------------------*/

static uint64_t hash_run(const weir_store *store, const store_model *model, const char *name)
{
    return weir_store_hash_text(weir_store_hash_text(store->seed, model->name), name);
}

store_run *weir_store_find_run(const weir_store *store, const store_model *model, const char *name)
{
    store_node *node = weir_store_index_first(&store->runs, hash_run(store, model, name));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_run *run = WEIR_STORE_OF(store_run, node, node);
        if (run->model == model && strcmp(run->name, name) == 0)
            return run;
    }
    return NULL;
}

store_run *weir_store_have_run(weir_store *store, store_model *model, const char *name)
{
    store_run *run = weir_store_find_run(store, model, name);
    if (run != NULL)
        return run;
    run = weir_store_alloc(store, sizeof(*run) + strlen(name) + 1);
    if (run == NULL)
        return NULL;
    char *at = (char *)(run + 1);
    run->name = weir_store_put_text(&at, name);
    run->model = model;
    weir_store_list_init(&run->versions);
    weir_store_list_init(&run->histories);
    weir_store_list_add_first(&model->runs, &run->link);
    weir_store_index_add(&store->runs, &run->node, hash_run(store, model, name));
    model->n_users++;
    return run;
}

void weir_store_let_run(weir_store *store, store_run *run)
{
    if (run == NULL || run->n_versions != 0 || run->n_histories != 0)
        return;
    store_model *model = run->model;
    weir_store_index_remove(&store->runs, &run->node);
    weir_store_list_remove(&run->link);
    weir_store_free(store, run, sizeof(*run) + strlen(run->name) + 1);
    model->n_users--;
    weir_store_let_model(store, model);
}
