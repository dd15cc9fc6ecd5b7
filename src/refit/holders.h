/* SPDX-License-Identifier: Apache-2.0 */
/* holders.h - which rank holds which boxes, of a trainer that no mesh describes: from the shards of
 * one rank to a text that travels, and from the texts of all ranks to boxes that are planned from.
 *
 * A text is one registry document (descriptor.h) per line: the first has the first box of every
 * tensor, the second the second box of those of which the rank holds several, and so on. Most ranks
 * have one line.
 *
 * Threads    pure functions.
 * Errors     ERR_FORMAT for a text that is none, ERR_LAYOUT for ranks that do not agree, boxes that
 *            overlap, and what nobody holds: named, with ranks and ranges.
 */
#ifndef WEIR_REFIT_HOLDERS_H
#define WEIR_REFIT_HOLDERS_H

#include "refit/registries.h"
#include "weir/descriptor.h"

/* Gives *out, NUL-terminated: free with weir_free(). ERR_INVALID for a box that does not fit its
 * tensor or its memory. Empty boxes are left out. */
weir_status weir_holders_describe(const weir_tensor_shard *shards, size_t n_shards, char **out,
                                  size_t *out_n_bytes);

typedef struct weir_holders weir_holders;

/* Reads the texts of n_ranks ranks, which are not needed any more then. Gives *out. */
weir_status weir_holders_open(const weir_registries *registries, uint32_t n_ranks,
                              weir_holders **out);
void weir_holders_close(weir_holders *holders); /* accepts NULL */

/* Each tensor that any rank holds, once, by name: local.name, local.dtype and global_shape alone.
 * All ranks say the same of it. */
const weir_tensor_shard *weir_holders_tensors(const weir_holders *holders, size_t *out_n);

/* The boxes of all ranks, checked to be the whole model. Gives an array: free with
 * weir_held_free(). */
weir_status weir_holders_boxes(const weir_holders *holders, const weir_described_model *model,
                               weir_held **out, size_t *out_n);

#endif
