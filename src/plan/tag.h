/* SPDX-License-Identifier: Apache-2.0 */
/* tag.h - comparing the compile metadata of both sides, key by key. */
#ifndef WEIR_PLAN_TAG_H
#define WEIR_PLAN_TAG_H

#include <stdbool.h>

#define WEIR_TAG_TEXT 512

/* True when both say the same: JSON objects with the same keys and values, in any order. Otherwise
 * writes the first difference, "block_size is [64,64] at WORKER, this replica needs [128,128]". */
bool weir_tag_metadata_equal(const char *published, const char *wanted, const char *worker,
                             char difference[WEIR_TAG_TEXT]);

#endif
