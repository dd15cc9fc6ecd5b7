/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint.c - finds the files of a checkpoint, maps them, and lists their tensors by name.
 *
 * A view points into the mapped file. The format aligns data by convention only, and consumers need
 * the natural alignment of the element type: a tensor that lacks it is copied once, at open, into
 * memory that the checkpoint owns. Headers are checked by safetensors.c, the index of a sharded
 * checkpoint by shard_index.c.
 */
#include "weir/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "checkpoint/file_map.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shard_index.h"

#define INDEX_SUFFIX ".index.json"
#define FILE_SUFFIX ".safetensors"
#define COPY_ALIGNMENT 64u

typedef struct shard {
    char *path;
    weir_file_map map;
    weir_safetensors header;
} shard;

/* While sorting: a view with the shard that holds it. */
typedef struct located {
    weir_tensor tensor;
    size_t shard;
} located;

struct weir_checkpoint {
    char *directory;
    shard *shards;
    size_t n_shards, shard_capacity;
    weir_tensor *tensors; /* by name */
    size_t *shard_of;     /* parallel to tensors */
    size_t n_tensors;
    void **copies; /* of tensors that lie unaligned in their file */
    size_t n_copies, copy_capacity;
};

/* The table with room for one more item; NULL, with the old one still valid, when out of memory. */
static void *with_room(void *table, size_t n_items, size_t *capacity, size_t item_bytes)
{
    if (n_items < *capacity)
        return table;
    size_t larger = *capacity != 0 ? *capacity * 2 : 8;
    void *moved = weir_realloc(table, larger * item_bytes);
    if (moved != NULL)
        *capacity = larger;
    return moved;
}

static bool ends_with(const char *text, const char *suffix)
{
    size_t n = strlen(text), n_suffix = strlen(suffix);
    return n >= n_suffix && strcmp(text + n - n_suffix, suffix) == 0;
}

/* The part of a path before its last '/', "." without one. */
static char *directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        return weir_strdup(".");
    int n = slash == path ? 1 : (int)(slash - path);
    return weir_format("%.*s", n, path);
}

/* ---- finding the files -----------------------------------------------------------------------*/

static weir_status add_file(weir_checkpoint *checkpoint, const char *path)
{
    shard *shards = with_room(checkpoint->shards, checkpoint->n_shards, &checkpoint->shard_capacity,
                              sizeof(*shards));
    if (shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    checkpoint->shards = shards;
    shard *added = &shards[checkpoint->n_shards++]; /* close() takes it half-built */
    *added = (shard){ .path = weir_strdup(path) };
    if (added->path == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_file_map_open(path, &added->map);
    if (status != WEIR_OK)
        return status;
    return weir_safetensors_parse(added->map.bytes, added->map.n_bytes, path, &added->header);
}

static weir_status add_file_in(weir_checkpoint *checkpoint, const char *directory, const char *name)
{
    char *path = weir_format("%s/%s", directory, name);
    if (path == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = add_file(checkpoint, path);
    weir_free(path);
    return status;
}

static weir_status check_index(const weir_checkpoint *checkpoint, size_t first_shard,
                               const weir_shard_index *index, const char *path)
{
    const weir_safetensors **headers = weir_alloc_zeroed(index->n_files, sizeof(*headers));
    if (headers == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < index->n_files; i++)
        headers[i] = &checkpoint->shards[first_shard + i].header;
    weir_status status = weir_shard_index_check(index, headers, path);
    weir_free(headers);
    return status;
}

static weir_status add_shards_of(weir_checkpoint *checkpoint, const weir_shard_index *index,
                                 const char *path)
{
    char *directory = directory_of(path);
    if (directory == NULL)
        return WEIR_ERR_NO_MEMORY;
    size_t first_shard = checkpoint->n_shards;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < index->n_files && status == WEIR_OK; i++)
        status = add_file_in(checkpoint, directory, index->files[i]);
    weir_free(directory);
    return status == WEIR_OK ? check_index(checkpoint, first_shard, index, path) : status;
}

static weir_status add_index(weir_checkpoint *checkpoint, const char *path)
{
    weir_file_map map;
    weir_status status = weir_file_map_open(path, &map);
    if (status != WEIR_OK)
        return status;
    weir_shard_index index;
    status = weir_shard_index_parse(map.bytes, map.n_bytes, path, &index);
    weir_file_map_close(&map);
    if (status != WEIR_OK)
        return status;
    status = add_shards_of(checkpoint, &index, path);
    weir_shard_index_free(&index);
    return status;
}

static int is_safetensors(const struct dirent *entry)
{
    return entry->d_name[0] != '.' && ends_with(entry->d_name, FILE_SUFFIX);
}

static int by_entry_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name); /* alphasort would ask the locale */
}

static weir_status add_all_in(weir_checkpoint *checkpoint, const char *directory)
{
    struct dirent **entries;
    int n = scandir(directory, &entries, is_safetensors, by_entry_name);
    if (n < 0)
        return weir_fail_errno("%s", directory);
    weir_status status = WEIR_OK;
    for (int i = 0; i < n; i++) {
        if (status == WEIR_OK)
            status = add_file_in(checkpoint, directory, entries[i]->d_name);
        free(entries[i]); /* scandir's own malloc */
    }
    free(entries);
    if (n == 0)
        return weir_fail(WEIR_ERR_NOT_FOUND, "%s: holds no .safetensors file", directory);
    return status;
}

static weir_status add_directory(weir_checkpoint *checkpoint, const char *directory)
{
    static const char *const usual[] = { "model" FILE_SUFFIX INDEX_SUFFIX, "model" FILE_SUFFIX };
    for (size_t i = 0; i < sizeof(usual) / sizeof(usual[0]); i++) {
        char *path = weir_format("%s/%s", directory, usual[i]);
        if (path == NULL)
            return WEIR_ERR_NO_MEMORY;
        struct stat info;
        bool there = lstat(path, &info) == 0; /* a dangling link is an error, not an absence */
        weir_status status = WEIR_OK;
        if (there)
            status = i == 0 ? add_index(checkpoint, path) : add_file(checkpoint, path);
        weir_free(path);
        if (there)
            return status;
    }
    return add_all_in(checkpoint, directory);
}

static weir_status add_path(weir_checkpoint *checkpoint, const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return weir_fail_errno("%s", path);
    bool is_directory = S_ISDIR(info.st_mode);
    if (checkpoint->directory == NULL) {
        checkpoint->directory = is_directory ? weir_strdup(path) : directory_of(path);
        if (checkpoint->directory == NULL)
            return WEIR_ERR_NO_MEMORY;
    }
    if (is_directory)
        return add_directory(checkpoint, path);
    return ends_with(path, INDEX_SUFFIX) ? add_index(checkpoint, path) : add_file(checkpoint, path);
}

/* ---- listing the tensors ---------------------------------------------------------------------*/

static size_t element_bytes(weir_dtype dtype)
{
    unsigned bits = weir_dtype_bits(dtype);
    return bits > 8 ? bits / 8 : 1;
}

static weir_status copy_aligned(weir_checkpoint *checkpoint, const void *data, size_t n_bytes,
                                void **out)
{
    void **copies = with_room(checkpoint->copies, checkpoint->n_copies, &checkpoint->copy_capacity,
                              sizeof(*copies));
    if (copies == NULL)
        return WEIR_ERR_NO_MEMORY;
    checkpoint->copies = copies;
    void *copy = weir_alloc_aligned(COPY_ALIGNMENT, n_bytes);
    if (copy == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(copy, data, n_bytes);
    copies[checkpoint->n_copies++] = copy;
    *out = copy;
    return WEIR_OK;
}

static weir_status make_view(weir_checkpoint *checkpoint, const shard *holder,
                             const weir_safetensors_entry *entry, weir_tensor *out)
{
    *out = (weir_tensor){ entry->name, entry->dtype, entry->shape, holder->map.bytes };
    if (entry->begin == entry->end)
        return WEIR_OK; /* an address that is valid and aligned, though nothing is read there */
    out->data = (unsigned char *)holder->map.bytes + entry->begin;
    if (entry->begin % element_bytes(entry->dtype) == 0)
        return WEIR_OK;
    weir_status status = copy_aligned(checkpoint, out->data, entry->end - entry->begin, &out->data);
    if (status != WEIR_OK)
        weir_error_prefix("%.300s: tensor '%.200s' lies unaligned", holder->path, entry->name);
    return status;
}

static int by_name(const void *left, const void *right)
{
    const located *a = left, *b = right;
    return strcmp(a->tensor.name, b->tensor.name);
}

static weir_status gather(weir_checkpoint *checkpoint, located *all)
{
    size_t n = 0;
    for (size_t s = 0; s < checkpoint->n_shards; s++) {
        const shard *holder = &checkpoint->shards[s];
        for (size_t t = 0; t < holder->header.n_entries; t++, n++) {
            all[n].shard = s;
            weir_status status =
                make_view(checkpoint, holder, &holder->header.entries[t], &all[n].tensor);
            if (status != WEIR_OK)
                return status;
        }
    }
    return WEIR_OK;
}

static weir_status sort_views(weir_checkpoint *checkpoint, located *all)
{
    size_t n = checkpoint->n_tensors;
    if (n > 1)
        qsort(all, n, sizeof(*all), by_name);
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && by_name(&all[i - 1], &all[i]) == 0)
            return weir_fail(WEIR_ERR_FORMAT, "tensor '%.200s' is in both %.300s and %.300s",
                             all[i].tensor.name, checkpoint->shards[all[i - 1].shard].path,
                             checkpoint->shards[all[i].shard].path);
        checkpoint->tensors[i] = all[i].tensor;
        checkpoint->shard_of[i] = all[i].shard;
    }
    return WEIR_OK;
}

static weir_status list_tensors(weir_checkpoint *checkpoint)
{
    size_t n = 0;
    for (size_t s = 0; s < checkpoint->n_shards; s++)
        n += checkpoint->shards[s].header.n_entries;
    checkpoint->n_tensors = n;
    checkpoint->tensors = weir_alloc_zeroed(n, sizeof(*checkpoint->tensors));
    checkpoint->shard_of = weir_alloc_zeroed(n, sizeof(*checkpoint->shard_of));
    located *all = weir_alloc_zeroed(n, sizeof(*all));
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (checkpoint->tensors != NULL && checkpoint->shard_of != NULL && all != NULL)
        status = gather(checkpoint, all);
    if (status == WEIR_OK)
        status = sort_views(checkpoint, all);
    weir_free(all);
    return status;
}

/* ---- the handle ------------------------------------------------------------------------------*/

weir_status weir_checkpoint_open_many(const char *const *paths, size_t n_paths,
                                      weir_checkpoint **out)
{
    if (n_paths == 0)
        return weir_fail(WEIR_ERR_INVALID, "no checkpoint path was given");
    weir_checkpoint *checkpoint = weir_alloc_zeroed(1, sizeof(*checkpoint));
    if (checkpoint == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n_paths && status == WEIR_OK; i++)
        status = add_path(checkpoint, paths[i]);
    if (status == WEIR_OK)
        status = list_tensors(checkpoint);
    if (status != WEIR_OK) {
        weir_checkpoint_close(checkpoint);
        return status;
    }
    *out = checkpoint;
    return WEIR_OK;
}

weir_status weir_checkpoint_open(const char *path, weir_checkpoint **out)
{
    return weir_checkpoint_open_many(&path, 1, out);
}

void weir_checkpoint_close(weir_checkpoint *checkpoint)
{
    if (checkpoint == NULL)
        return;
    for (size_t i = 0; i < checkpoint->n_copies; i++)
        weir_free(checkpoint->copies[i]);
    for (size_t i = 0; i < checkpoint->n_shards; i++) {
        weir_safetensors_free(&checkpoint->shards[i].header);
        weir_file_map_close(&checkpoint->shards[i].map);
        weir_free(checkpoint->shards[i].path);
    }
    weir_free(checkpoint->copies);
    weir_free(checkpoint->shard_of);
    weir_free(checkpoint->tensors);
    weir_free(checkpoint->shards);
    weir_free(checkpoint->directory);
    weir_free(checkpoint);
}

/* ---- reading ---------------------------------------------------------------------------------*/

const weir_tensor *weir_checkpoint_tensors(const weir_checkpoint *checkpoint, size_t *out_n_tensors)
{
    *out_n_tensors = checkpoint->n_tensors;
    return checkpoint->tensors;
}

static int compare_name(const void *key, const void *item)
{
    return strcmp(key, ((const weir_tensor *)item)->name);
}

const weir_tensor *weir_checkpoint_find(const weir_checkpoint *checkpoint, const char *name)
{
    return bsearch(name, checkpoint->tensors, checkpoint->n_tensors, sizeof(weir_tensor),
                   compare_name);
}

const char *weir_checkpoint_file_of(const weir_checkpoint *checkpoint, size_t index)
{
    return checkpoint->shards[checkpoint->shard_of[index]].path;
}

const char *weir_checkpoint_directory(const weir_checkpoint *checkpoint)
{
    return checkpoint->directory;
}

const char *weir_checkpoint_metadata(const weir_checkpoint *checkpoint, const char *key)
{
    for (size_t s = 0; s < checkpoint->n_shards; s++) {
        const weir_safetensors *header = &checkpoint->shards[s].header;
        for (size_t i = 0; i < header->n_metadata; i++) {
            if (strcmp(header->metadata[i].key, key) == 0)
                return header->metadata[i].value;
        }
    }
    return NULL;
}

const char *weir_checkpoint_metadata_key(const weir_checkpoint *checkpoint, size_t index)
{
    for (size_t s = 0; s < checkpoint->n_shards; s++) {
        const weir_safetensors *header = &checkpoint->shards[s].header;
        for (size_t i = 0; i < header->n_metadata; i++) {
            const weir_safetensors_pair *pair = &header->metadata[i];
            /* A key that an earlier file has was counted there. */
            if (weir_checkpoint_metadata(checkpoint, pair->key) == pair->value && index-- == 0)
                return pair->key;
        }
    }
    return NULL;
}

/* Gives advice on the pages of a tensor's bytes: all that it touches, or, with `inner`, only those
 * that it has for itself. A tensor that is no part of a mapping (a copy) has none. */
static void advise(const weir_checkpoint *checkpoint, const weir_tensor *tensor, int advice,
                   bool inner)
{
    uint64_t n_bytes;
    if (weir_tensor_bytes(tensor->dtype, &tensor->shape, &n_bytes) != WEIR_OK || n_bytes == 0)
        return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), data = (uintptr_t)tensor->data;
    for (size_t s = 0; s < checkpoint->n_shards; s++) {
        const weir_file_map *map = &checkpoint->shards[s].map;
        uintptr_t start = (uintptr_t)map->bytes;
        if (data < start || data - start > map->n_bytes || n_bytes > map->n_bytes - (data - start))
            continue;
        uintptr_t first = (data + (inner ? page - 1 : 0)) / page * page;
        uintptr_t last = inner ? (data + n_bytes) / page * page : data + n_bytes;
        if (first < last)
            (void)madvise((void *)first, last - first, advice);
        return;
    }
}

void weir_checkpoint_will_need(const weir_checkpoint *checkpoint, const weir_tensor *tensor)
{
    advise(checkpoint, tensor, MADV_WILLNEED, false);
}

void weir_checkpoint_done_with(const weir_checkpoint *checkpoint, const weir_tensor *tensor)
{
    advise(checkpoint, tensor, MADV_DONTNEED, true);
}
