/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint_writer.c - a safetensors file, streamed, that appears whole or not at all.
 *
 * The header needs only names and shapes, so it is written first and every tensor then has its
 * place in the file: pwrite takes the bytes in any order and from any thread. What was written is
 * counted per tensor, not mapped: a range written twice counts twice, which commit refuses, but two
 * such mistakes in one tensor that cancel out go unseen.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/clock.h"
#include "base/error.h"
#include "checkpoint/json_load.h"
#include "checkpoint/safetensors.h"
#include "weir/checkpoint.h"

#define HEADER_ALIGNMENT 8u
#define LENGTH_BYTES 8u
#define TEMPORARY_TRIES 100

typedef struct slot {
    const char *name;
    uint64_t begin, n_bytes; /* begin: byte of the file */
    _Atomic uint64_t n_written;
} slot;

struct weir_checkpoint_writer {
    weir_arena arena; /* paths, names, slots */
    const char *path, *directory, *temporary;
    int fd; /* -1: no temporary file exists */
    slot *slots;
    size_t n_slots;
    uint64_t file_bytes;
};

/* ---- the header ------------------------------------------------------------------------------*/

/* json_object_set_new() for a key from the caller. */
static weir_status set_once(json_t *object, const char *key, json_t *value, const char *what)
{
    if (json_object_get(object, key) != NULL) {
        json_decref(value);
        return weir_fail(WEIR_ERR_INVALID, "%s '%.200s' is given twice", what, key);
    }
    if (value == NULL || json_object_set_new(object, key, value) != 0)
        return weir_fail(WEIR_ERR_INVALID,
                         "%s '%.200s' cannot be encoded: no UTF-8 text, or out of memory", what,
                         key);
    return WEIR_OK;
}

static weir_status add_metadata(json_t *root, const char *const (*metadata)[2], size_t n_metadata)
{
    if (n_metadata == 0)
        return WEIR_OK;
    json_t *object = json_object();
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n_metadata && status == WEIR_OK; i++)
        status = set_once(object, metadata[i][0], json_string(metadata[i][1]), "metadata");
    if (status == WEIR_OK && json_object_set(root, WEIR_SAFETENSORS_METADATA, object) != 0)
        status = weir_fail(WEIR_ERR_NO_MEMORY, "out of memory for the metadata");
    json_decref(object);
    return status;
}

static json_t *entry_json(const weir_tensor *tensor, uint64_t begin, uint64_t end)
{
    json_t *shape = json_array();
    for (uint32_t d = 0; d < tensor->shape.rank; d++) {
        if (json_array_append_new(shape, json_integer((json_int_t)tensor->shape.dim[d])) != 0) {
            json_decref(shape);
            return NULL;
        }
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", weir_dtype_name(tensor->dtype), "shape",
                     shape, "data_offsets", (json_int_t)begin, (json_int_t)end);
}

static weir_status check_tensor(const weir_tensor *tensor, uint64_t *out_bytes)
{
    if (tensor->name == NULL || strcmp(tensor->name, WEIR_SAFETENSORS_METADATA) == 0)
        return weir_fail(WEIR_ERR_INVALID, "a tensor cannot be called '%s'",
                         tensor->name != NULL ? tensor->name : "(null)");
    weir_status status = weir_tensor_bytes(tensor->dtype, &tensor->shape, out_bytes);
    /* Beside an axis of 0 the others may be anything; readers refuse what overflows without it. */
    uint64_t n_without_zeros = 1;
    for (uint32_t d = 0; d < tensor->shape.rank && status == WEIR_OK; d++) {
        uint64_t dim = tensor->shape.dim[d];
        if (dim > INT64_MAX ||
            (dim != 0 && __builtin_mul_overflow(n_without_zeros, dim, &n_without_zeros)))
            status = weir_fail(WEIR_ERR_INVALID, "axis %u is longer than a file can say", d);
    }
    if (status != WEIR_OK)
        weir_error_prefix("tensor '%.200s'", tensor->name);
    return status;
}

/* Adds every tensor to the header and gives each its place, counted from the first data byte. */
static weir_status add_tensors(weir_checkpoint_writer *writer, json_t *root,
                               const weir_tensor *tensors)
{
    uint64_t at = 0;
    for (size_t i = 0; i < writer->n_slots; i++) {
        slot *place = &writer->slots[i];
        weir_status status = check_tensor(&tensors[i], &place->n_bytes);
        if (status != WEIR_OK)
            return status;
        place->begin = at;
        if (place->n_bytes > (uint64_t)INT64_MAX / 2 - at)
            return weir_fail(WEIR_ERR_INVALID, "tensor '%.200s' takes the file beyond 2^62 bytes",
                             tensors[i].name);
        at += place->n_bytes;
        place->name = weir_arena_strdup(&writer->arena, tensors[i].name);
        if (place->name == NULL)
            return WEIR_ERR_NO_MEMORY;
        status = set_once(root, place->name, entry_json(&tensors[i], place->begin, at), "tensor");
        if (status != WEIR_OK)
            return status;
    }
    writer->file_bytes = at;
    return WEIR_OK;
}

/* Gives the length word and the padded text; moves the slots to where the data then begins. */
static weir_status encode_header(weir_checkpoint_writer *writer, const json_t *root, char **out,
                                 size_t *out_bytes)
{
    size_t n_text = json_dumpb(root, NULL, 0, JSON_COMPACT);
    size_t n_padded = (n_text + HEADER_ALIGNMENT - 1) / HEADER_ALIGNMENT * HEADER_ALIGNMENT;
    if (n_text == 0)
        return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory for the header");
    if (n_padded > WEIR_JSON_MAX_BYTES)
        return weir_fail(WEIR_ERR_INVALID,
                         "the header would take %zu bytes, the safetensors format allows %u",
                         n_padded, WEIR_JSON_MAX_BYTES);
    char *header = weir_alloc(LENGTH_BYTES + n_padded);
    if (header == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (unsigned i = 0; i < LENGTH_BYTES; i++)
        header[i] = (char)(unsigned char)(n_padded >> (8 * i));
    memset(header + LENGTH_BYTES, ' ', n_padded);
    json_dumpb(root, header + LENGTH_BYTES, n_text, JSON_COMPACT);
    for (size_t i = 0; i < writer->n_slots; i++)
        writer->slots[i].begin += LENGTH_BYTES + n_padded;
    writer->file_bytes += LENGTH_BYTES + n_padded;
    *out = header;
    *out_bytes = LENGTH_BYTES + n_padded;
    return WEIR_OK;
}

static weir_status build_header(weir_checkpoint_writer *writer, const weir_tensor *tensors,
                                const char *const (*metadata)[2], size_t n_metadata, char **out,
                                size_t *out_bytes)
{
    json_t *root = json_object();
    if (root == NULL)
        return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory for the header");
    weir_status status = add_metadata(root, metadata, n_metadata);
    if (status == WEIR_OK)
        status = add_tensors(writer, root, tensors);
    if (status == WEIR_OK)
        status = encode_header(writer, root, out, out_bytes);
    json_decref(root);
    if (status != WEIR_OK)
        weir_error_prefix("%.300s", writer->path);
    return status;
}

/* ---- the temporary file ----------------------------------------------------------------------*/

/* Refuses what rename() would take away or could not replace: a directory, a device. */
static weir_status check_destination(const char *path)
{
    struct stat info;
    size_t n = strlen(path);
    if (n == 0 || path[n - 1] == '/')
        return weir_fail(WEIR_ERR_INVALID, "'%.300s' names no file", path);
    if (stat(path, &info) != 0)
        return WEIR_OK; /* a directory that is missing shows when the file is made */
    if (S_ISREG(info.st_mode))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_EXISTS, "%.300s: is %s, not a file that can be replaced", path,
                     S_ISDIR(info.st_mode) ? "a directory" : "a device or pipe");
}

/* A name of its own, whatever other processes and writers do in the same directory. The leading dot
 * keeps it out of a directory that is read as a checkpoint meanwhile. */
static weir_status open_temporary(weir_checkpoint_writer *writer)
{
    static atomic_uint serial;
    for (int i = 0; i < TEMPORARY_TRIES; i++) {
        char *name = weir_arena_format(
            &writer->arena, "%s/.weir-%ld-%u-%llx.partial", writer->directory, (long)getpid(),
            atomic_fetch_add(&serial, 1u), (unsigned long long)weir_now_ns());
        if (name == NULL)
            return WEIR_ERR_NO_MEMORY;
        writer->fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        writer->temporary = name;
        if (writer->fd >= 0 || errno != EEXIST)
            break;
    }
    if (writer->fd < 0)
        return weir_fail_errno("%.300s: cannot create a file in '%.300s'", writer->path,
                               writer->directory);
    return WEIR_OK;
}

static weir_status write_at(const weir_checkpoint_writer *writer, const void *data,
                            uint64_t n_bytes, uint64_t at)
{
    const char *from = data;
    while (n_bytes > 0) {
        ssize_t n = pwrite(writer->fd, from, n_bytes, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return weir_fail_errno("%.300s: cannot write %llu bytes at %llu", writer->path,
                                   (unsigned long long)n_bytes, (unsigned long long)at);
        from += n;
        at += (uint64_t)n;
        n_bytes -= (uint64_t)n;
    }
    return WEIR_OK;
}

/* A full disk should fail here, not after an hour of conversion. Filesystems that cannot reserve
 * space only get the size. */
static weir_status reserve_space(const weir_checkpoint_writer *writer)
{
    int rc;
    do {
        rc = fallocate(writer->fd, 0, 0, (off_t)writer->file_bytes);
    } while (rc != 0 && errno == EINTR);
    if (rc != 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
        rc = ftruncate(writer->fd, (off_t)writer->file_bytes);
    if (rc != 0)
        return weir_fail_errno("%.300s: cannot reserve %llu bytes", writer->path,
                               (unsigned long long)writer->file_bytes);
    return WEIR_OK;
}

/* ---- the handle ------------------------------------------------------------------------------*/

static weir_status prepare(weir_checkpoint_writer *writer, const char *path, size_t n_tensors)
{
    const char *slash = strrchr(path, '/');
    int n_directory = slash == path ? 1 : slash != NULL ? (int)(slash - path) : 1;
    writer->path = weir_arena_strdup(&writer->arena, path);
    writer->directory =
        weir_arena_format(&writer->arena, "%.*s", n_directory, slash != NULL ? path : ".");
    writer->slots = weir_arena_zeroed(&writer->arena, n_tensors, sizeof(*writer->slots));
    writer->n_slots = n_tensors;
    if (writer->path == NULL || writer->directory == NULL || writer->slots == NULL)
        return WEIR_ERR_NO_MEMORY;
    return check_destination(path);
}

weir_status weir_checkpoint_create(const char *path, const weir_tensor *tensors, size_t n_tensors,
                                   const char *const (*metadata)[2], size_t n_metadata,
                                   weir_checkpoint_writer **out)
{
    weir_checkpoint_writer *writer = weir_alloc_zeroed(1, sizeof(*writer));
    if (writer == NULL)
        return WEIR_ERR_NO_MEMORY;
    writer->fd = -1;
    char *header = NULL;
    size_t n_header = 0;
    weir_status status = prepare(writer, path, n_tensors);
    if (status == WEIR_OK)
        status = build_header(writer, tensors, metadata, n_metadata, &header, &n_header);
    if (status == WEIR_OK)
        status = open_temporary(writer);
    if (status == WEIR_OK)
        status = reserve_space(writer);
    if (status == WEIR_OK)
        status = write_at(writer, header, n_header, 0);
    weir_free(header);
    if (status != WEIR_OK) {
        weir_checkpoint_abandon(writer);
        return status;
    }
    *out = writer;
    return WEIR_OK;
}

weir_status weir_checkpoint_write(weir_checkpoint_writer *writer, size_t index, uint64_t offset,
                                  const void *data, uint64_t n_bytes)
{
    if (index >= writer->n_slots)
        return weir_fail(WEIR_ERR_INVALID, "%.300s: tensor %zu of %zu", writer->path, index,
                         writer->n_slots);
    slot *place = &writer->slots[index];
    if (offset > place->n_bytes || n_bytes > place->n_bytes - offset)
        return weir_fail(WEIR_ERR_INVALID,
                         "%.300s: tensor '%.200s': %llu bytes at %llu, it has %llu", writer->path,
                         place->name, (unsigned long long)n_bytes, (unsigned long long)offset,
                         (unsigned long long)place->n_bytes);
    weir_status status = write_at(writer, data, n_bytes, place->begin + offset);
    if (status == WEIR_OK)
        atomic_fetch_add(&place->n_written, n_bytes);
    return status;
}

static weir_status check_whole(const weir_checkpoint_writer *writer)
{
    for (size_t i = 0; i < writer->n_slots; i++) {
        const slot *place = &writer->slots[i];
        if (place->n_written != place->n_bytes)
            return weir_fail(WEIR_ERR_INVALID,
                             "%.300s: tensor '%.200s': %llu of its %llu bytes were written",
                             writer->path, place->name, (unsigned long long)place->n_written,
                             (unsigned long long)place->n_bytes);
    }
    return WEIR_OK;
}

/* Makes the rename itself durable. Not every filesystem can, and the file is in place whole either
 * way, so nothing is reported. */
static void sync_directory(const char *directory)
{
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)fsync(fd);
    close(fd);
}

weir_status weir_checkpoint_commit(weir_checkpoint_writer *writer)
{
    weir_status status = check_whole(writer);
    if (status == WEIR_OK && fsync(writer->fd) != 0)
        status = weir_fail_errno("%.300s: cannot be made durable", writer->path);
    if (status == WEIR_OK && rename(writer->temporary, writer->path) != 0)
        status = weir_fail_errno("%.300s: cannot be put in place", writer->path);
    if (status == WEIR_OK) {
        sync_directory(writer->directory);
        close(writer->fd);
        writer->fd = -1; /* nothing temporary is left to remove */
    }
    weir_checkpoint_abandon(writer);
    return status;
}

void weir_checkpoint_abandon(weir_checkpoint_writer *writer)
{
    if (writer == NULL)
        return;
    if (writer->fd >= 0) {
        close(writer->fd);
        unlink(writer->temporary);
    }
    weir_arena_close(&writer->arena);
    weir_free(writer);
}
