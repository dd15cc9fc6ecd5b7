/* SPDX-License-Identifier: Apache-2.0 */
/* file_seal.c - writes a region of transport file down.
 *
 * Data, then manifest, then marker, each synced before the next: a reader that finds a marker finds
 * the rest whole, whatever happens to the machine. The files of the region's previous seal go last,
 * marker first, so at no moment is there a marker without its data.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/error.h"
#include "transport/file.h"
#include "transport/transport_table.h"
#include "weir/checkpoint.h"

#define BOX_TEXT (WEIR_MAX_RANK * 48)

typedef struct sealing {
    const file_transport *file;
    file_region *region;
    weir_seal seal;
    char model[WEIR_FILE_PART], label[WEIR_FILE_PART];
    int directory_fd;          /* of the model */
    weir_arena arena;          /* everything below */
    const weir_shard **shards; /* of this region, by offset */
    size_t n_shards;
    weir_tensor *tensors; /* one per shard, under the name that it has in the file */
    weir_file_segment *segments;
    size_t n_segments;
    uint64_t nonce[2];
    uint64_t file_bytes;
} sealing;

/* ---- names -----------------------------------------------------------------------------------*/

/* What is not plain becomes %XX: different names give different files, and none leads elsewhere. */
static weir_status name_encode(const char *text, const char *what, char out[WEIR_FILE_PART])
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    size_t used = 0;
    if (text == NULL || text[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "transport file: a seal has no %s", what);
    for (const char *at = text; *at != '\0'; at++) {
        bool keep = strchr(plain, *at) != NULL && !(used == 0 && *at == '.');
        if (used + 4 > WEIR_FILE_PART)
            return weir_fail(WEIR_ERR_INVALID, "transport file: %s '%s' is too long", what, text);
        if (keep)
            out[used++] = *at;
        else
            used += (size_t)snprintf(out + used, 4, "%%%02X", (unsigned char)*at);
    }
    out[used] = '\0';
    return WEIR_OK;
}

static void file_name(const char *label, const char *suffix, char out[NAME_MAX])
{
    snprintf(out, NAME_MAX, "%s%s", label, suffix);
}

static weir_status open_model(sealing *work)
{
    if (mkdirat(work->file->directory_fd, work->model, 0777) != 0 && errno != EEXIST)
        return weir_fail_errno("transport file: cannot make %s/%s", work->file->directory,
                               work->model);
    work->directory_fd = openat(work->file->directory_fd, work->model,
                                O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (work->directory_fd < 0)
        return weir_fail_errno("transport file: cannot open %s/%s", work->file->directory,
                               work->model);
    return WEIR_OK;
}

/* ---- what is written -------------------------------------------------------------------------*/

static int by_offset(const void *a, const void *b)
{
    const weir_shard *x = *(const weir_shard *const *)a, *y = *(const weir_shard *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static weir_status check_shard(const file_region *region, const weir_shard *shard)
{
    weir_shape shape = weir_box_shape(&shard->box);
    uint64_t n_bytes;
    weir_status status = weir_tensor_bytes(shard->dtype, &shape, &n_bytes);
    if (status != WEIR_OK) {
        weir_error_prefix("%s", shard->name);
        return status;
    }
    if (n_bytes != shard->n_bytes)
        return weir_fail(WEIR_ERR_INVALID, "%s: its box has %llu bytes, its shard %llu",
                         shard->name, (unsigned long long)n_bytes,
                         (unsigned long long)shard->n_bytes);
    if (n_bytes > region->n_bytes || shard->offset > region->n_bytes - n_bytes)
        return weir_fail(WEIR_ERR_INVALID, "%s: %llu bytes at %llu leave a region of %llu",
                         shard->name, (unsigned long long)n_bytes,
                         (unsigned long long)shard->offset, (unsigned long long)region->n_bytes);
    return WEIR_OK;
}

/* A tensor of the file, and which shard it is. */
typedef struct named_shard {
    const char *name;
    size_t number;
} named_shard;

static int by_name(const void *a, const void *b)
{
    const named_shard *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : (x->number > y->number) - (x->number < y->number);
}

/* A file has each name once: of several shards of a tensor the second is NAME#2. */
static weir_status name_tensors(sealing *work)
{
    size_t n = work->n_shards, nth = 1;
    named_shard *named = weir_arena_alloc(&work->arena, n * sizeof(*named));
    if (named == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++)
        named[i] = (named_shard){ work->shards[i]->name, i };
    qsort(named, n, sizeof(*named), by_name);
    for (size_t i = 1; i < n; i++) {
        nth = strcmp(named[i].name, named[i - 1].name) == 0 ? nth + 1 : 1;
        if (nth == 1)
            continue;
        weir_tensor *tensor = &work->tensors[named[i].number];
        tensor->name = weir_arena_format(&work->arena, "%s#%zu", named[i].name, nth);
        if (tensor->name == NULL)
            return WEIR_ERR_NO_MEMORY;
    }
    return WEIR_OK;
}

static weir_status select_shards(sealing *work)
{
    const weir_seal *seal = &work->seal;
    work->shards = weir_arena_alloc(&work->arena, seal->n_shards * sizeof(*work->shards));
    work->tensors = weir_arena_alloc(&work->arena, seal->n_shards * sizeof(*work->tensors));
    work->segments = weir_arena_alloc(&work->arena, seal->n_shards * sizeof(*work->segments));
    if (work->shards == NULL || work->tensors == NULL || work->segments == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < seal->n_shards; i++) {
        if (seal->shards[i].region != seal->region)
            continue;
        weir_status status = check_shard(work->region, &seal->shards[i]);
        if (status != WEIR_OK)
            return status;
        work->shards[work->n_shards++] = &seal->shards[i];
    }
    qsort(work->shards, work->n_shards, sizeof(*work->shards), by_offset);
    for (size_t i = 0; i < work->n_shards; i++) {
        const weir_shard *shard = work->shards[i];
        work->tensors[i] =
            (weir_tensor){ shard->name, shard->dtype, weir_box_shape(&shard->box), NULL };
    }
    return name_tensors(work);
}

/* Tensors follow each other in the file without gaps, in the order of the region. */
static weir_status lay_out(sealing *work, uint64_t data_offset)
{
    work->file_bytes = data_offset;
    for (size_t i = 0; i < work->n_shards; i++) {
        const weir_shard *shard = work->shards[i];
        if (shard->n_bytes == 0)
            continue;
        weir_file_segment *last =
            work->n_segments > 0 ? &work->segments[work->n_segments - 1] : NULL;
        uint64_t end = last != NULL ? last->region_offset + last->n_bytes : 0;
        if (shard->offset < end)
            return weir_fail(WEIR_ERR_INVALID, "%s: its bytes overlap those of another tensor",
                             shard->name);
        if (last != NULL && shard->offset == end)
            last->n_bytes += shard->n_bytes;
        else
            work->segments[work->n_segments++] =
                (weir_file_segment){ shard->offset, work->file_bytes, shard->n_bytes };
        work->file_bytes += shard->n_bytes;
    }
    return WEIR_OK;
}

static bool box_is_whole(const weir_shard *shard)
{
    weir_shape shape = weir_box_shape(&shard->box);
    return weir_shape_equal(&shape, &shard->global_shape);
}

/* "0:64,128:256" */
static void box_text(const weir_box *box, char out[BOX_TEXT])
{
    size_t used = 0;
    out[0] = '\0';
    for (uint32_t d = 0; d < box->rank && d < WEIR_MAX_RANK; d++)
        used += (size_t)snprintf(out + used, BOX_TEXT - used, "%s%llu:%llu", d ? "," : "",
                                 (unsigned long long)box->lo[d], (unsigned long long)box->hi[d]);
}

/* Where only a part of a tensor is here, the metadata says which. */
static weir_status make_metadata(sealing *work, const char *(**out)[2], size_t *out_n)
{
    const char *(*pairs)[2] = weir_arena_alloc(&work->arena, (work->n_shards + 2) * sizeof(*pairs));
    if (pairs == NULL)
        return WEIR_ERR_NO_MEMORY;
    size_t n = 0;
    pairs[n][0] = "weir.model";
    pairs[n++][1] = work->seal.model;
    pairs[n][0] = "weir.label";
    pairs[n++][1] = work->seal.label;
    for (size_t i = 0; i < work->n_shards; i++) {
        if (box_is_whole(work->shards[i]))
            continue;
        char text[BOX_TEXT];
        box_text(&work->shards[i]->box, text);
        pairs[n][0] = weir_arena_format(&work->arena, "weir.box:%s", work->tensors[i].name);
        pairs[n][1] = weir_arena_strdup(&work->arena, text);
        if (pairs[n][0] == NULL || pairs[n][1] == NULL)
            return WEIR_ERR_NO_MEMORY;
        n++;
    }
    *out = pairs;
    *out_n = n;
    return WEIR_OK;
}

/* ---- writing ---------------------------------------------------------------------------------*/

static weir_status write_data(sealing *work, const char *path)
{
    const char *(*metadata)[2];
    size_t n_metadata;
    weir_status status = make_metadata(work, &metadata, &n_metadata);
    if (status != WEIR_OK)
        return status;
    weir_checkpoint_writer *writer;
    status = weir_checkpoint_create(path, work->tensors, work->n_shards,
                                    (const char *const(*)[2])metadata, n_metadata, &writer);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < work->n_shards; i++) {
        const weir_shard *shard = work->shards[i];
        const uint8_t *bytes = (const uint8_t *)work->region->data + shard->offset;
        status = weir_checkpoint_write(writer, i, 0, bytes, shard->n_bytes);
        if (status != WEIR_OK) {
            weir_checkpoint_abandon(writer);
            return status;
        }
    }
    return weir_checkpoint_commit(writer);
}

/* A safetensors file begins with the length of its header; the data follow it. */
static weir_status find_data(sealing *work, const char *name, uint64_t *out_offset)
{
    uint8_t head[8];
    int fd = openat(work->directory_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return weir_fail_errno("transport file: cannot open %s", name);
    ssize_t n = pread(fd, head, sizeof(head), 0);
    close(fd);
    if (n != (ssize_t)sizeof(head))
        return weir_fail(WEIR_ERR_IO, "transport file: %s ends early", name);
    uint64_t header_bytes = 0;
    for (unsigned i = 0; i < 8; i++)
        header_bytes |= (uint64_t)head[i] << (8 * i);
    *out_offset = 8 + header_bytes;
    return WEIR_OK;
}

static weir_status write_all(int fd, const char *text, size_t n_bytes, const char *name)
{
    while (n_bytes > 0) {
        ssize_t n = write(fd, text, n_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return weir_fail_errno("transport file: cannot write %s", name);
        text += n;
        n_bytes -= (size_t)n;
    }
    if (fsync(fd) != 0)
        return weir_fail_errno("transport file: cannot sync %s", name);
    return WEIR_OK;
}

/* The file appears whole under its name, and stays after a power cut. */
static weir_status write_file(int directory_fd, const char *name, const char *text, size_t n_bytes)
{
    char temporary[NAME_MAX + 8];
    snprintf(temporary, sizeof(temporary), ".%s.tmp", name);
    int fd = openat(directory_fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
                    0666);
    if (fd < 0)
        return weir_fail_errno("transport file: cannot make %s", temporary);
    weir_status status = write_all(fd, text, n_bytes, name);
    close(fd);
    if (status == WEIR_OK && renameat(directory_fd, temporary, directory_fd, name) != 0)
        status = weir_fail_errno("transport file: cannot make %s", name);
    if (status == WEIR_OK && fsync(directory_fd) != 0)
        status = weir_fail_errno("transport file: cannot sync the directory of %s", name);
    if (status != WEIR_OK)
        unlinkat(directory_fd, temporary, 0);
    return status;
}

static json_t *numbers_json(const uint64_t *numbers, uint32_t n)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(array, json_integer((json_int_t)numbers[i]));
    return array;
}

static json_t *shard_json(const weir_shard *shard, const char *file_name, uint64_t file_offset)
{
    char digest[40];
    snprintf(digest, sizeof(digest), "%016llx%016llx", (unsigned long long)shard->digest.product,
             (unsigned long long)shard->digest.sum);
    return json_pack(
        "{s:s, s:s, s:[I,I,I], s:s, s:o, s:{s:o, s:o}, s:I, s:I, s:I, s:s, s:s*, s:s*}", "name",
        shard->name, "file_name", file_name, "place", (json_int_t)shard->place.stage,
        (json_int_t)shard->place.d, (json_int_t)shard->place.t, "dtype",
        weir_dtype_name(shard->dtype), "global_shape",
        numbers_json(shard->global_shape.dim, shard->global_shape.rank), "box", "lo",
        numbers_json(shard->box.lo, shard->box.rank), "hi",
        numbers_json(shard->box.hi, shard->box.rank), "n_bytes", (json_int_t)shard->n_bytes,
        "region_offset", (json_int_t)shard->offset, "file_offset", (json_int_t)file_offset,
        "digest", digest, "compile_target", shard->compile_target, "compile_metadata",
        shard->compile_metadata);
}

static weir_status write_manifest(sealing *work, uint64_t data_offset)
{
    json_t *tensors = json_array();
    json_t *root = json_pack("{s:s, s:s, s:s, s:I, s:O}", "format", "weir-file-1", "model",
                             work->seal.model, "label", work->seal.label, "n_bytes",
                             (json_int_t)work->region->n_bytes, "tensors", tensors);
    uint64_t offset = data_offset;
    bool whole = root != NULL;
    for (size_t i = 0; i < work->n_shards; i++) {
        whole = json_array_append_new(
                    tensors, shard_json(work->shards[i], work->tensors[i].name, offset)) == 0 &&
                whole;
        offset += work->shards[i]->n_bytes;
    }
    char *text = whole ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(tensors);
    json_decref(root);
    if (text == NULL)
        return weir_fail(WEIR_ERR_INVALID, "transport file: a name in %s is no UTF-8 text",
                         work->seal.label);
    char name[NAME_MAX];
    file_name(work->label, WEIR_FILE_MANIFEST, name);
    weir_status status = write_file(work->directory_fd, name, text, strlen(text));
    free(text); /* jansson's */
    return status;
}

static weir_status write_marker(sealing *work)
{
    char name[NAME_MAX], text[WEIR_FILE_MARKER_BYTES];
    file_name(work->label, WEIR_FILE_MARKER, name);
    weir_file_marker(work->nonce, text);
    return write_file(work->directory_fd, name, text, strlen(text));
}

static weir_status encode_key(sealing *work)
{
    weir_file_key key = { .nonce = { work->nonce[0], work->nonce[1] },
                          .region_bytes = work->region->n_bytes,
                          .file_bytes = work->file_bytes,
                          .segments = work->segments,
                          .n_segments = work->n_segments };
    snprintf(key.path, sizeof(key.path), "%s/%s", work->model, work->label);
    return weir_file_key_encode(&key, &work->region->key);
}

/* ---- sealing ---------------------------------------------------------------------------------*/

static void remove_files(int model_fd, const char *label)
{
    static const char *const suffixes[] = { WEIR_FILE_MARKER, WEIR_FILE_MANIFEST, WEIR_FILE_DATA };
    for (size_t i = 0; i < 3; i++) {
        char name[NAME_MAX];
        file_name(label, suffixes[i], name);
        unlinkat(model_fd, name, 0);
    }
}

static void remove_previous(const sealing *work)
{
    const file_region *region = work->region;
    if (region->label[0] == '\0' ||
        (strcmp(region->model, work->model) == 0 && strcmp(region->label, work->label) == 0))
        return;
    int fd = openat(work->file->directory_fd, region->model,
                    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    remove_files(fd, region->label);
    close(fd);
}

static weir_status write_files(sealing *work)
{
    char name[NAME_MAX];
    file_name(work->label, WEIR_FILE_MARKER, name);
    if (unlinkat(work->directory_fd, name, 0) != 0 && errno != ENOENT)
        return weir_fail_errno("transport file: cannot replace %s", name);
    file_name(work->label, WEIR_FILE_DATA, name);
    char *path =
        weir_arena_format(&work->arena, "%s/%s/%s", work->file->directory, work->model, name);
    if (path == NULL)
        return WEIR_ERR_NO_MEMORY;
    uint64_t data_offset = 0;
    weir_status status = write_data(work, path);
    if (status == WEIR_OK)
        status = find_data(work, name, &data_offset);
    if (status == WEIR_OK)
        status = lay_out(work, data_offset);
    if (status == WEIR_OK)
        status = write_manifest(work, data_offset);
    if (status == WEIR_OK)
        status = encode_key(work);
    if (status == WEIR_OK)
        status = write_marker(work);
    if (status != WEIR_OK)
        remove_files(work->directory_fd, work->label);
    return status;
}

static weir_status seal_open(sealing *work)
{
    weir_status status = name_encode(work->seal.model, "model", work->model);
    if (status == WEIR_OK)
        status = name_encode(work->seal.label, "label", work->label);
    if (status == WEIR_OK)
        status = select_shards(work);
    if (status != WEIR_OK)
        return status;
    if (getrandom(work->nonce, sizeof(work->nonce), 0) != (ssize_t)sizeof(work->nonce))
        return weir_fail_errno("transport file: no random bytes");
    return open_model(work);
}

weir_status weir_file_seal(weir_region *base, const weir_seal *given)
{
    sealing work = { .file = (const file_transport *)base->transport,
                     .region = (file_region *)base,
                     .directory_fd = -1 };
    weir_status status =
        weir_transport_struct_read(given, sizeof(work.seal), "weir_seal", &work.seal);
    if (status != WEIR_OK)
        return status;
    weir_arena_init(&work.arena, 0);
    work.region->sealed = false; /* until the seal is whole */
    status = seal_open(&work);
    if (status == WEIR_OK)
        status = write_files(&work);
    if (status == WEIR_OK) {
        remove_previous(&work);
        snprintf(work.region->model, sizeof(work.region->model), "%s", work.model);
        snprintf(work.region->label, sizeof(work.region->label), "%s", work.label);
        work.region->sealed = true;
    }
    if (work.directory_fd >= 0)
        close(work.directory_fd);
    weir_arena_close(&work.arena);
    return status;
}
