/* SPDX-License-Identifier: Apache-2.0 */
/* bind.h - finds the sources of every row and fills the entries of a mapping. */
#ifndef WEIR_FAMILY_BIND_H
#define WEIR_FAMILY_BIND_H

#include "family/mapping.h"

/* Fills given, bound, origin, tied, entries and rows of a zeroed mapping whose arena and conversion
 * are set. ERR_LAYOUT with the first problem, and how many more there are. */
weir_status weir_mapping_bind(weir_mapping *mapping, const weir_model *model,
                              const weir_mapping_options *options, const weir_tensor *sources,
                              size_t n_sources);

#endif
