/* SPDX-License-Identifier: Apache-2.0 */
/* source_use.h - which tensors of a model a name of the trainer's state is used by. */
#ifndef WEIR_PLAN_SOURCE_USE_H
#define WEIR_PLAN_SOURCE_USE_H

#include "weir/descriptor.h"

/* One use of a source: by which tensor, as which of its sources, and of which expert where each has
 * a tensor of its own. A tied source has several. */
typedef struct weir_source_use {
    const weir_tensor *source;
    uint32_t tensor, index, expert;
} weir_source_use;

/* By name. All zero before it is opened; close it even when that fails. */
typedef struct weir_source_uses {
    weir_source_use *uses;
    size_t n;
} weir_source_uses;

/* ERR_INVALID when entries and tensors are of two models. */
weir_status weir_source_uses_open(const weir_described_model *model, weir_source_uses *uses);
void weir_source_uses_close(weir_source_uses *uses);
/* The first use of a name; *out_n 0: there is none. */
const weir_source_use *weir_source_uses_find(const weir_source_uses *uses, const char *name,
                                             size_t *out_n);

#endif
