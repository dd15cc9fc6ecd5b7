/* SPDX-License-Identifier: Apache-2.0 */
/* model_sources.h - what the whole model's tensors are, for a rank that holds parts of some: names
 * and global shapes from config.json, in the naming and the dtypes of what is registered.
 */
#ifndef WEIR_REFIT_MODEL_SOURCES_H
#define WEIR_REFIT_MODEL_SOURCES_H

#include "refit/settings.h"
#include "weir/weir.h"

/* Gives an array as weir_family_sources() does. *naming: the first that is tried, and the first
 * from there on that has all registered names, which is the one given. Tensors that are not
 * registered here have the dtype that registered ones of their kind have: trainers keep all masters
 * alike. ERR_LAYOUT names a registered tensor that no such naming of the model has. */
weir_status weir_model_sources(const weir_settings *settings, const weir_tensor_shard *shards,
                               size_t n_shards, weir_naming *naming, weir_tensor **out,
                               size_t *out_n);

#endif
