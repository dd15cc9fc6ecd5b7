/* SPDX-License-Identifier: Apache-2.0 */
/* shard_match.h - whether what a source publishes is a part of the parameter that is wanted. Pure.
 */
#ifndef WEIR_PLAN_SHARD_MATCH_H
#define WEIR_PLAN_SHARD_MATCH_H

#include "base/error.h"
#include "plan/box.h"
#include "weir/plan.h"

/* What sources fill of a shard's parameter: all but the padding, of which there is no more than
 * axis 0 has. */
weir_shape weir_shard_filled(const weir_shard *shard);

/* Same dtype, shape and tag; the box a part of what is filled, of equally spaced runs of whole
 * bytes, n_bytes of them: writes those. Otherwise writes the first difference, with the tensor's
 * name and both sides. Takes any values. */
bool weir_shard_matches(const weir_shard *shard, const weir_parameter *parameter,
                        const char *worker, weir_box_runs *out, char why[WEIR_ERROR_TEXT]);

#endif
