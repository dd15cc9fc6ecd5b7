/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors.c - decodes a safetensors header and believes nothing in it.
 *
 * First every entry on its own (types, dtype, shape, size against offsets), then all together:
 * sorted by offset they must follow each other without gap or overlap from the first data byte to
 * the last of the file. What passes can be used without another check.
 */
#include "checkpoint/safetensors.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "checkpoint/json_load.h"

#define LENGTH_BYTES 8u

typedef struct header_reader {
    const char *file;
    uint64_t data_start; /* byte of the file where offset 0 lies */
    uint64_t data_bytes;
} header_reader;

/* Names are cut in error lines: a hostile one may be megabytes long. */
__attribute__((format(printf, 3, 4))) static weir_status
refuse(const header_reader *reader, const char *name, const char *format, ...)
{
    char why[WEIR_ERROR_TEXT / 2];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof(why), format, args);
    va_end(args);
    return weir_fail(WEIR_ERR_FORMAT, "%.300s: tensor '%.200s': %s", reader->file, name, why);
}

/* ---- one entry -------------------------------------------------------------------------------*/

static weir_status read_dtype(const header_reader *reader, const char *name, const json_t *value,
                              weir_dtype *out)
{
    const char *text = json_string_value(value);
    if (text == NULL)
        return refuse(reader, name, "\"dtype\" is missing or no string");
    *out = weir_dtype_from_name(text);
    if (*out == WEIR_DTYPE_NONE)
        return refuse(reader, name, "unknown dtype '%.40s'", text);
    return WEIR_OK;
}

static weir_status read_shape(const header_reader *reader, const char *name, const json_t *value,
                              weir_shape *out)
{
    if (!json_is_array(value))
        return refuse(reader, name, "\"shape\" is missing or no array");
    size_t rank = json_array_size(value);
    if (rank > WEIR_MAX_RANK) {
        refuse(reader, name, "shape has %zu axes, at most %d are supported", rank, WEIR_MAX_RANK);
        return WEIR_ERR_UNSUPPORTED;
    }
    uint64_t n_without_zeros = 1;
    for (size_t d = 0; d < rank; d++) {
        const json_t *dim = json_array_get(value, d);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return refuse(reader, name, "shape holds something else than counts at axis %zu", d);
        out->dim[d] = (uint64_t)json_integer_value(dim);
        /* An axis of 0 must not hide a product that would overflow in someone's arithmetic. */
        if (out->dim[d] != 0 &&
            __builtin_mul_overflow(n_without_zeros, out->dim[d], &n_without_zeros))
            return refuse(reader, name, "the product of its shape does not fit in 64 bits");
    }
    out->rank = (uint32_t)rank;
    return WEIR_OK;
}

static weir_status read_offsets(const header_reader *reader, const char *name, const json_t *value,
                                uint64_t *out_begin, uint64_t *out_end)
{
    const json_t *begin = json_array_get(value, 0), *end = json_array_get(value, 1);
    if (json_array_size(value) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < 0)
        return refuse(reader, name, "\"data_offsets\" is missing or not [begin, end]");
    *out_begin = (uint64_t)json_integer_value(begin);
    *out_end = (uint64_t)json_integer_value(end);
    if (*out_begin > *out_end)
        return refuse(reader, name, "data_offsets begin at %llu, after their end %llu",
                      (unsigned long long)*out_begin, (unsigned long long)*out_end);
    if (*out_end > reader->data_bytes)
        return refuse(reader, name, "data ends at offset %llu, but the file holds %llu data bytes",
                      (unsigned long long)*out_end, (unsigned long long)reader->data_bytes);
    return WEIR_OK;
}

static weir_status check_size(const header_reader *reader, const weir_safetensors_entry *entry)
{
    uint64_t needed;
    char text[WEIR_SHAPE_TEXT];
    if (weir_tensor_bytes(entry->dtype, &entry->shape, &needed) != WEIR_OK)
        return refuse(reader, entry->name, "%s", weir_last_error());
    if (entry->end - entry->begin != needed)
        return refuse(reader, entry->name, "%s %s needs %llu bytes, data_offsets give %llu",
                      weir_dtype_name(entry->dtype),
                      weir_shape_text(&entry->shape, text, sizeof(text)),
                      (unsigned long long)needed, (unsigned long long)(entry->end - entry->begin));
    return WEIR_OK;
}

/* Offsets stay relative to the data until all entries have been compared. */
static weir_status read_entry(const header_reader *reader, const char *name, const json_t *value,
                              weir_safetensors_entry *out)
{
    if (!json_is_object(value))
        return refuse(reader, name, "its entry is no JSON object");
    weir_status status = read_dtype(reader, name, json_object_get(value, "dtype"), &out->dtype);
    if (status == WEIR_OK)
        status = read_shape(reader, name, json_object_get(value, "shape"), &out->shape);
    if (status == WEIR_OK)
        status = read_offsets(reader, name, json_object_get(value, "data_offsets"), &out->begin,
                              &out->end);
    if (status == WEIR_OK)
        status = check_size(reader, out);
    return status;
}

/* ---- the header as a whole -------------------------------------------------------------------*/

static weir_status read_metadata(const header_reader *reader, const json_t *object,
                                 weir_safetensors *out)
{
    if (object == NULL)
        return WEIR_OK;
    if (!json_is_object(object))
        return weir_fail(WEIR_ERR_FORMAT, "%.300s: " WEIR_SAFETENSORS_METADATA " is no JSON object",
                         reader->file);
    out->metadata =
        weir_arena_zeroed(&out->arena, json_object_size(object), sizeof(*out->metadata));
    if (out->metadata == NULL)
        return WEIR_ERR_NO_MEMORY;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        if (!json_is_string(value))
            return weir_fail(WEIR_ERR_FORMAT,
                             "%.300s: " WEIR_SAFETENSORS_METADATA " '%.200s' is no string",
                             reader->file, key);
        weir_safetensors_pair *pair = &out->metadata[out->n_metadata++];
        pair->key = weir_arena_strdup(&out->arena, key);
        pair->value = weir_arena_strdup(&out->arena, json_string_value(value));
        if (pair->key == NULL || pair->value == NULL)
            return WEIR_ERR_NO_MEMORY;
    }
    return WEIR_OK;
}

static weir_status read_entries(const header_reader *reader, const json_t *root,
                                weir_safetensors *out)
{
    out->entries = weir_arena_zeroed(&out->arena, json_object_size(root), sizeof(*out->entries));
    if (out->entries == NULL)
        return WEIR_ERR_NO_MEMORY;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)root, name, value)
    {
        if (strcmp(name, WEIR_SAFETENSORS_METADATA) == 0)
            continue;
        weir_safetensors_entry *entry = &out->entries[out->n_entries++];
        entry->name = weir_arena_strdup(&out->arena, name);
        if (entry->name == NULL)
            return WEIR_ERR_NO_MEMORY;
        weir_status status = read_entry(reader, entry->name, value, entry);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static int by_offset(const void *left, const void *right)
{
    const weir_safetensors_entry *a = left, *b = right;
    if (a->begin != b->begin)
        return a->begin < b->begin ? -1 : 1;
    if (a->end != b->end)
        return a->end < b->end ? -1 : 1; /* empty tensors before the one that begins there */
    return strcmp(a->name, b->name);
}

static weir_status check_cover(const header_reader *reader, weir_safetensors *out)
{
    if (out->n_entries > 1)
        qsort(out->entries, out->n_entries, sizeof(*out->entries), by_offset);
    uint64_t covered = 0;
    const char *before = NULL;
    for (size_t i = 0; i < out->n_entries; i++) {
        weir_safetensors_entry *entry = &out->entries[i];
        if (entry->begin < covered)
            return refuse(reader, entry->name,
                          "begins at offset %llu and overlaps '%.200s', "
                          "which ends at %llu",
                          (unsigned long long)entry->begin, before, (unsigned long long)covered);
        if (entry->begin > covered)
            return refuse(reader, entry->name, "begins at offset %llu, leaving a gap after %llu",
                          (unsigned long long)entry->begin, (unsigned long long)covered);
        covered = entry->end;
        before = entry->name;
        entry->begin += reader->data_start;
        entry->end += reader->data_start;
    }
    if (covered != reader->data_bytes)
        return weir_fail(WEIR_ERR_FORMAT,
                         "%.300s: tensors cover %llu data bytes, the file holds %llu", reader->file,
                         (unsigned long long)covered, (unsigned long long)reader->data_bytes);
    return WEIR_OK;
}

/* Where the JSON lies, without a look into it. */
static weir_status measure(const unsigned char *bytes, size_t n_bytes, header_reader *reader)
{
    const char *file = reader->file;
    if (n_bytes < LENGTH_BYTES)
        return weir_fail(WEIR_ERR_FORMAT,
                         "%.300s: truncated: %zu bytes, a safetensors file has at least 8", file,
                         n_bytes);
    uint64_t length = 0;
    for (unsigned i = 0; i < LENGTH_BYTES; i++)
        length |= (uint64_t)bytes[i] << (8 * i);
    if (length > WEIR_JSON_MAX_BYTES)
        return weir_fail(WEIR_ERR_FORMAT,
                         "%.300s: header length %llu, the safetensors format allows %u", file,
                         (unsigned long long)length, WEIR_JSON_MAX_BYTES);
    if (length > n_bytes - LENGTH_BYTES)
        return weir_fail(WEIR_ERR_FORMAT,
                         "%.300s: truncated: header length %llu, but %zu bytes follow it", file,
                         (unsigned long long)length, n_bytes - LENGTH_BYTES);
    if (length == 0 || bytes[LENGTH_BYTES] != '{')
        return weir_fail(WEIR_ERR_FORMAT, "%.300s: the header does not begin with '{'", file);
    reader->data_start = LENGTH_BYTES + length;
    reader->data_bytes = n_bytes - reader->data_start;
    return WEIR_OK;
}

weir_status weir_safetensors_parse(const void *bytes, size_t n_bytes, const char *file,
                                   weir_safetensors *out)
{
    header_reader reader = { .file = file };
    weir_safetensors header = { 0 };
    weir_status status = measure(bytes, n_bytes, &reader);
    if (status != WEIR_OK)
        return status;
    char what[512];
    snprintf(what, sizeof(what), "%.300s: header", file);
    json_t *root;
    status = weir_json_load((const char *)bytes + LENGTH_BYTES, reader.data_start - LENGTH_BYTES,
                            what, &root);
    if (status != WEIR_OK)
        return status;
    status = read_metadata(&reader, json_object_get(root, WEIR_SAFETENSORS_METADATA), &header);
    if (status == WEIR_OK)
        status = read_entries(&reader, root, &header);
    json_decref(root);
    if (status == WEIR_OK)
        status = check_cover(&reader, &header);
    if (status != WEIR_OK) {
        weir_safetensors_free(&header);
        return status;
    }
    *out = header;
    return WEIR_OK;
}

void weir_safetensors_free(weir_safetensors *header)
{
    weir_arena_close(&header->arena);
    *header = (weir_safetensors){ 0 };
}
