/* SPDX-License-Identifier: Apache-2.0 */
/* shard_match.c - one shard against one parameter: what must agree before coverage is looked at. */
#include "plan/shard_match.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "plan/box.h"
#include "plan/tag.h"

weir_shape weir_shard_filled(const weir_shard *shard)
{
    weir_shape filled = shard->global_shape;
    if (filled.rank > 0)
        filled.dim[0] -= shard->n_padding_rows;
    return filled;
}

/* Writes the line; false, for the caller to return. */
static bool differs(char why[WEIR_ERROR_TEXT], const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool differs(char why[WEIR_ERROR_TEXT], const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(why, WEIR_ERROR_TEXT, format, args);
    va_end(args);
    return false;
}

static bool check_fit(const weir_shard *shard, const char *worker, char why[WEIR_ERROR_TEXT])
{
    char box[WEIR_BOX_TEXT], text[WEIR_SHAPE_TEXT];
    const weir_shape *shape = &shard->global_shape;
    if (shard->n_padding_rows > (shape->rank > 0 ? shape->dim[0] : 0))
        return differs(why, "%s: %" PRIu64 " rows of padding at %s, of %s", shard->name,
                       shard->n_padding_rows, worker, weir_shape_text(shape, text, sizeof(text)));
    weir_shape filled = weir_shard_filled(shard);
    if (!weir_box_fits(&shard->box, &filled))
        return differs(why, "%s: %s publishes %s, which is no part of %s", shard->name, worker,
                       weir_box_text(&shard->box, box),
                       weir_shape_text(&filled, text, sizeof(text)));
    return true;
}

/* A part of the parameter that is filled, of as many bytes as it says, in equally spaced runs. */
static bool check_box(const weir_shard *shard, const char *worker, weir_box_runs *out,
                      char why[WEIR_ERROR_TEXT])
{
    char box[WEIR_BOX_TEXT], text[WEIR_SHAPE_TEXT];
    const weir_shape *shape = &shard->global_shape;
    weir_box_runs runs;
    uint64_t end;
    if (!check_fit(shard, worker, why))
        return false;
    weir_box_fault fault = weir_box_runs_of(shard->dtype, shape, &shard->box, &runs);
    if (fault != WEIR_BOX_GOOD)
        return differs(why, "%s: %s publishes %s of %s %s, whose bytes are no %s", shard->name,
                       worker, weir_box_text(&shard->box, box), weir_dtype_name(shard->dtype),
                       weir_shape_text(shape, text, sizeof(text)),
                       fault == WEIR_BOX_BITS ? "whole ones" : "runs at equal distances");
    if (runs.n_bytes != shard->n_bytes)
        return differs(why, "%s: %s publishes %" PRIu64 " bytes for %s, which has %" PRIu64,
                       shard->name, worker, shard->n_bytes, weir_box_text(&shard->box, box),
                       runs.n_bytes);
    if (__builtin_add_overflow(shard->offset, shard->n_bytes, &end))
        return differs(why, "%s: %s publishes it at an impossible offset", shard->name, worker);
    *out = runs;
    return true;
}

bool weir_shard_matches(const weir_shard *shard, const weir_parameter *parameter,
                        const char *worker, weir_box_runs *out, char why[WEIR_ERROR_TEXT])
{
    char got[WEIR_SHAPE_TEXT], want[WEIR_SHAPE_TEXT], difference[WEIR_TAG_TEXT];
    if (shard->dtype != parameter->dtype)
        return differs(why, "%s: dtype is %s at %s, this replica needs %s", shard->name,
                       weir_dtype_name(shard->dtype), worker, weir_dtype_name(parameter->dtype));
    if (shard->global_shape.rank > WEIR_MAX_RANK ||
        !weir_shape_equal(&shard->global_shape, &parameter->shape))
        return differs(why, "%s: shape is %s at %s, this replica needs %s", shard->name,
                       weir_shape_text(&shard->global_shape, got, sizeof(got)), worker,
                       weir_shape_text(&parameter->shape, want, sizeof(want)));
    if (strcmp(shard->compile_target, parameter->compile_target) != 0)
        return differs(why, "%s: compile target is %s at %s, this replica needs %s", shard->name,
                       shard->compile_target, worker, parameter->compile_target);
    if (!weir_tag_metadata_equal(shard->compile_metadata, parameter->compile_metadata, worker,
                                 difference))
        return differs(why, "%s: compile metadata %s", shard->name, difference);
    return check_box(shard, worker, out, why);
}
