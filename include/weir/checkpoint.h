/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint.h - safetensors files and Hugging Face config.json, in and out.
 *
 * Threads    an open checkpoint or config is immutable: read it from any thread. A writer belongs
 *            to one thread at a time, except weir_checkpoint_write(), which may run in several.
 * Ownership  tensor views borrow from the checkpoint: their data is the mapped file, read-only,
 *            valid until weir_checkpoint_close(). Strings given out belong to the handle.
 * Errors     ERR_NOT_FOUND, ERR_IO, ERR_FORMAT (a hostile or damaged file: the line names file,
 *            tensor, expected and got), ERR_UNSUPPORTED (a tensor of more than WEIR_MAX_RANK axes).
 *            Nothing in a file is trusted before it is checked. A file must not be made shorter
 *            while it is open: touching pages that are gone raises SIGBUS.
 */
#ifndef WEIR_CHECKPOINT_H
#define WEIR_CHECKPOINT_H

#include "weir/convert.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- reading ---------------------------------------------------------------------------------*/

typedef struct weir_checkpoint weir_checkpoint;

/* Opens one of: a .safetensors file; a .safetensors.index.json; a directory that holds
 * model.safetensors.index.json, else model.safetensors, else any *.safetensors. Headers are read
 * and checked whole, data is mapped. Tensors are sorted by name. A name in two files is
 * ERR_FORMAT; so is an index entry that its shard does not hold, or a tensor of a shard that the
 * index does not name. Data is aligned to its element type: a tensor that is not in its file is
 * copied into memory of the checkpoint. Gives *out. */
WEIR_API weir_status weir_checkpoint_open(const char *path, weir_checkpoint **out);
/* The same over several paths, as one checkpoint. */
WEIR_API weir_status weir_checkpoint_open_many(const char *const *paths, size_t n_paths,
                                               weir_checkpoint **out);
WEIR_API void weir_checkpoint_close(weir_checkpoint *checkpoint); /* accepts NULL */

/* All tensors, sorted by name. */
WEIR_API const weir_tensor *weir_checkpoint_tensors(const weir_checkpoint *checkpoint,
                                                    size_t *out_n_tensors);
/* NULL if there is none of that name. */
WEIR_API const weir_tensor *weir_checkpoint_find(const weir_checkpoint *checkpoint,
                                                 const char *name);
/* The file that holds tensor `index` of weir_checkpoint_tensors(). */
WEIR_API const char *weir_checkpoint_file_of(const weir_checkpoint *checkpoint, size_t index);
/* The directory that the checkpoint lies in, where its config.json would be. */
WEIR_API const char *weir_checkpoint_directory(const weir_checkpoint *checkpoint);
/* The string under `key` of __metadata__ in the first file that has it; NULL if none has. */
WEIR_API const char *weir_checkpoint_metadata(const weir_checkpoint *checkpoint, const char *key);
/* Key `index` of all that weir_checkpoint_metadata() finds; NULL beyond the last. */
WEIR_API const char *weir_checkpoint_metadata_key(const weir_checkpoint *checkpoint, size_t index);

/* Tells the kernel that a tensor's pages are about to be read, or will not be needed again: how a
 * checkpoint larger than memory is walked layer by layer. Never fails. */
WEIR_API void weir_checkpoint_will_need(const weir_checkpoint *checkpoint,
                                        const weir_tensor *tensor);
WEIR_API void weir_checkpoint_done_with(const weir_checkpoint *checkpoint,
                                        const weir_tensor *tensor);

/* ---- writing ---------------------------------------------------------------------------------*/

typedef struct weir_checkpoint_writer weir_checkpoint_writer;

/* Begins a safetensors file of exactly these tensors (their data is ignored; order is kept in the
 * header, offsets follow it, so wide element types first keeps all of them aligned). It is written
 * beside `path` under a temporary name and appears at `path` only with weir_checkpoint_commit().
 * `metadata` holds n_metadata key, value pairs. */
WEIR_API weir_status weir_checkpoint_create(const char *path, const weir_tensor *tensors,
                                            size_t n_tensors, const char *const (*metadata)[2],
                                            size_t n_metadata, weir_checkpoint_writer **out);
/* Writes bytes [offset, offset + n_bytes) of tensor `index`. Any order; each byte once: what is
 * written is counted, not mapped. */
WEIR_API weir_status weir_checkpoint_write(weir_checkpoint_writer *writer, size_t index,
                                           uint64_t offset, const void *data, uint64_t n_bytes);
/* ERR_INVALID naming a tensor when one was not written whole. Success or not, the writer is gone
 * afterwards; on failure nothing is left at `path` that was not there before. */
WEIR_API weir_status weir_checkpoint_commit(weir_checkpoint_writer *writer);
/* Throws the file away. Accepts NULL. */
WEIR_API void weir_checkpoint_abandon(weir_checkpoint_writer *writer);

/* ---- config.json -----------------------------------------------------------------------------*/

/* Reads a file, or config.json of a directory. ERR_NOT_FOUND, ERR_FORMAT with line and column. */
WEIR_API weir_status weir_config_open(const char *path, weir_config **out);
/* Parses text (NUL-terminated); `what` names it in errors. */
WEIR_API weir_status weir_config_parse(const char *text, const char *what, weir_config **out);
WEIR_API void weir_config_close(weir_config *config); /* accepts NULL; not for borrowed children */

/* Typed reads of one key. They return false when the key is missing, null or of another type, and
 * leave *out alone. Borrowed results live as long as the config that was opened. */
WEIR_API bool weir_config_has(const weir_config *config, const char *key); /* there and not null */
WEIR_API bool weir_config_int(const weir_config *config, const char *key, int64_t *out);
WEIR_API bool weir_config_bool(const weir_config *config, const char *key, bool *out);
WEIR_API bool weir_config_number(const weir_config *config, const char *key, double *out);
WEIR_API const char *weir_config_string(const weir_config *config, const char *key);
WEIR_API const weir_config *weir_config_object(const weir_config *config, const char *key);
/* Copies at most n integers; returns how many the array holds, -1 if it is no array of integers. */
WEIR_API int weir_config_ints(const weir_config *config, const char *key, int64_t *out, int n);
/* The string at `index` of an array; NULL beyond its end or when it is no string. */
WEIR_API const char *weir_config_string_at(const weir_config *config, const char *key, int index);
/* Compact JSON text, keys as they stood in the file. Gives a string: free with
 * weir_string_free(). */
WEIR_API char *weir_config_text(const weir_config *config);
WEIR_API void weir_string_free(char *text); /* accepts NULL */

#ifdef __cplusplus
}
#endif
#endif
