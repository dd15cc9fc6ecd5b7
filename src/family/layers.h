/* SPDX-License-Identifier: Apache-2.0 */
/* layers.h - which layers have experts, and of which kind each is. */
#ifndef WEIR_FAMILY_LAYERS_H
#define WEIR_FAMILY_LAYERS_H

#include "family/model.h"

/* Sets n_layers: num_hidden_layers or, without it, as many as the config spells out kinds for. */
weir_status weir_layers_count(weir_model *model);

/* Sets kind and dense of each of the n_layers. */
weir_status weir_layers_find(weir_model *model);

#endif
