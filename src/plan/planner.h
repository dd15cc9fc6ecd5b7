/* SPDX-License-Identifier: Apache-2.0 */
/* planner.h - a plan while it is made, for the two files that make it. */
#ifndef WEIR_PLAN_PLANNER_H
#define WEIR_PLAN_PLANNER_H

#include <stdbool.h>

#include "base/arena.h"
#include "base/error.h"
#include "weir/plan.h"

/* Of a copy that is not, or not yet, a part of the plan. */
#define WEIR_COPY_NOT_TAKEN UINT64_MAX

struct weir_plan {
    weir_plan_copy *copies;
    size_t n_copies, room;
    uint64_t n_bytes;
};

/* One shard of the parameter at hand. */
typedef struct weir_plan_piece {
    uint64_t first_byte; /* of the parameter */
    size_t copy;
} weir_plan_piece;

/* What the walk has found out about a parameter. */
typedef struct weir_plan_finding {
    size_t n_pieces;
    uint64_t n_padding_rows; /* as its first shard says */
    bool padding_differs;
} weir_plan_finding;

typedef struct weir_planner {
    const weir_parameter *wanted;
    size_t n_wanted;
    const weir_mesh_place *place;
    const weir_plan_source *sources;
    size_t n_sources;
    uint32_t *by_name;           /* wanted parameters, sorted by name */
    weir_plan_finding *findings; /* parallel to `wanted` */
    weir_plan_piece *pieces;     /* all copies, grouped by parameter */
    size_t *first;               /* of each parameter's pieces; n_wanted + 1 of them */
    uint64_t *given_bytes;       /* by source: what it has been asked for */
    weir_arena scratch;          /* of one parameter's cover */
    weir_plan *plan;
    weir_error_line line;
    size_t n_problems, n_mismatches;
} weir_planner;

/* Takes note of a difference: the first one becomes the error line, the others are counted. */
void weir_planner_problem(weir_planner *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* A shard that is not what its parameter needs: the first is the error line, whatever else there
 * is. */
void weir_planner_mismatch(weir_planner *p, const char *why);

/* Chooses one of equal boxes of each parameter, checks that they cover it, and gives the copies
 * that are taken their places. Differences are noted. */
weir_status weir_planner_cover(weir_planner *p);

#endif
