/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors.h - the header of a safetensors file, decoded and checked from bytes in memory.
 *
 * Pure: no file is opened and no data byte is looked at, so a fuzzer can call it as it is.
 * The format: a little-endian 64-bit header length, a JSON header of that length, then the data.
 * The header maps a tensor's name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets
 * counted from the first data byte, and "__metadata__" to a flat map of strings.
 */
#ifndef WEIR_CHECKPOINT_SAFETENSORS_H
#define WEIR_CHECKPOINT_SAFETENSORS_H

#include "base/arena.h"
#include "weir/tensor.h"

#define WEIR_SAFETENSORS_METADATA "__metadata__"

typedef struct weir_safetensors_entry {
    const char *name;
    weir_dtype dtype;
    weir_shape shape;
    uint64_t begin, end; /* bytes of the file, its start being 0 */
} weir_safetensors_entry;

typedef struct weir_safetensors_pair {
    const char *key, *value;
} weir_safetensors_pair;

/* Strings and tables live in the arena; nothing points into the parsed bytes. */
typedef struct weir_safetensors {
    weir_arena arena;
    weir_safetensors_entry *entries; /* in the order of their bytes */
    size_t n_entries;
    weir_safetensors_pair *metadata;
    size_t n_metadata;
} weir_safetensors;

/* Reads the header at the start of `bytes`, the whole file. The tensors cover every data byte
 * exactly once, each has a known dtype and exactly the bytes that its shape needs, or the result is
 * ERR_FORMAT, ERR_UNSUPPORTED (more than WEIR_MAX_RANK axes) or ERR_NO_MEMORY; `file` names the
 * file in the line. On failure *out holds nothing. */
weir_status weir_safetensors_parse(const void *bytes, size_t n_bytes, const char *file,
                                   weir_safetensors *out);
void weir_safetensors_free(weir_safetensors *header); /* accepts a zeroed one */

#endif
