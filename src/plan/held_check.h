/* SPDX-License-Identifier: Apache-2.0 */
/* held_check.h - whether the boxes of all ranks are the whole model, and each part of it is held by
 * one rank, or by several that hold the very same box. */
#ifndef WEIR_PLAN_HELD_CHECK_H
#define WEIR_PLAN_HELD_CHECK_H

#include "weir/descriptor.h"

/* The boxes lie within their sources, as those of weir_held_of_registries() do. ERR_LAYOUT names
 * the source, and the ranks and ranges: what nobody holds, boxes that overlap without being the
 * same, a box that one rank holds twice. */
weir_status weir_held_check(const weir_described_model *model, const weir_held *held,
                            size_t n_held);

#endif
