/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint_layout.h - the layout that every family has besides those of its engines: the tensors
 * of its checkpoint, under Hugging Face's names, nothing fused.
 */
#ifndef WEIR_FAMILY_CHECKPOINT_LAYOUT_H
#define WEIR_FAMILY_CHECKPOINT_LAYOUT_H

#include "family/mapping.h"

/* Binds `sources`, of any naming, to the tensors of the checkpoint: those outside the layers first,
 * then layer by layer. `mapping` is zeroed but for its arena; options->config is required. Weights
 * are cast to bf16, but for what the family keeps in fp32. */
weir_status weir_checkpoint_layout_bind(weir_mapping *mapping, const weir_mapping_options *options,
                                        const weir_tensor *sources, size_t n_sources);

#endif
