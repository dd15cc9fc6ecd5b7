/* SPDX-License-Identifier: Apache-2.0 */
/* shard_index.c - reads an index.json and holds it against the shards. It opens no file. */
#include "checkpoint/shard_index.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "checkpoint/json_load.h"

static bool is_plain_name(const char *file)
{
    return file[0] != '\0' && strchr(file, '/') == NULL && strcmp(file, ".") != 0 &&
           strcmp(file, "..") != 0;
}

/* Collects distinct file names; `seen` makes that linear however many a hostile index names. */
static weir_status collect_files(weir_shard_index *index, json_t *seen, const char *path)
{
    const char *name;
    json_t *value;
    json_object_foreach(index->weight_map, name, value)
    {
        const char *file = json_string_value(value);
        if (file == NULL)
            return weir_fail(WEIR_ERR_FORMAT, "%.300s: weight_map '%.200s' is no string", path,
                             name);
        if (!is_plain_name(file))
            return weir_fail(WEIR_ERR_FORMAT,
                             "%.300s: weight_map '%.200s': '%.200s' is no plain file name", path,
                             name, file);
        if (json_object_get(seen, file) != NULL)
            continue;
        if (json_object_set_new(seen, file, json_true()) != 0)
            return weir_fail(WEIR_ERR_NO_MEMORY, "%.300s: out of memory", path);
        index->files[index->n_files++] = file;
    }
    return WEIR_OK;
}

static weir_status read_weight_map(weir_shard_index *index, const char *path)
{
    index->weight_map = json_object_get(index->root, "weight_map");
    if (!json_is_object(index->weight_map) || json_object_size(index->weight_map) == 0)
        return weir_fail(WEIR_ERR_FORMAT, "%.300s: weight_map is missing, empty or no object",
                         path);
    index->files = weir_alloc_zeroed(json_object_size(index->weight_map), sizeof(*index->files));
    json_t *seen = json_object();
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (index->files != NULL && seen == NULL)
        weir_fail(status, "%.300s: out of memory", path);
    else if (index->files != NULL)
        status = collect_files(index, seen, path);
    json_decref(seen);
    return status;
}

weir_status weir_shard_index_parse(const void *text, size_t n_bytes, const char *path,
                                   weir_shard_index *out)
{
    weir_shard_index index = { 0 };
    weir_status status = weir_json_load(text, n_bytes, path, &index.root);
    if (status != WEIR_OK)
        return status;
    status = read_weight_map(&index, path);
    if (status != WEIR_OK) {
        weir_shard_index_free(&index);
        return status;
    }
    *out = index;
    return WEIR_OK;
}

void weir_shard_index_free(weir_shard_index *index)
{
    weir_free(index->files);
    json_decref(index->root);
    *index = (weir_shard_index){ 0 };
}

/* An entry was not met in its shard: the first one left after all that were met are taken out. */
static weir_status name_missing(const weir_shard_index *index,
                                const weir_safetensors *const *shards, const char *path)
{
    for (size_t i = 0; i < index->n_files; i++) {
        for (size_t t = 0; t < shards[i]->n_entries; t++)
            json_object_del(index->weight_map, shards[i]->entries[t].name);
    }
    void *left = json_object_iter(index->weight_map);
    return weir_fail(WEIR_ERR_FORMAT,
                     "%.300s: tensor '%.200s' is in the index, but '%.200s' does "
                     "not hold it",
                     path, json_object_iter_key(left),
                     json_string_value(json_object_iter_value(left)));
}

weir_status weir_shard_index_check(const weir_shard_index *index,
                                   const weir_safetensors *const *shards, const char *path)
{
    size_t n_met = 0;
    for (size_t i = 0; i < index->n_files; i++) {
        for (size_t t = 0; t < shards[i]->n_entries; t++, n_met++) {
            const char *name = shards[i]->entries[t].name;
            const char *file = json_string_value(json_object_get(index->weight_map, name));
            if (file == NULL)
                return weir_fail(WEIR_ERR_FORMAT,
                                 "%.300s: tensor '%.200s' is in '%.200s', but not in the index",
                                 path, name, index->files[i]);
            if (strcmp(file, index->files[i]) != 0)
                return weir_fail(WEIR_ERR_FORMAT,
                                 "%.300s: tensor '%.200s' is in '%.200s', the index says '%.200s'",
                                 path, name, index->files[i], file);
        }
    }
    if (n_met < json_object_size(index->weight_map))
        return name_missing(index, shards, path);
    return WEIR_OK;
}
