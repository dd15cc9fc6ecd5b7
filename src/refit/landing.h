/* SPDX-License-Identifier: Apache-2.0 */
/* landing.h - where the bytes of a plan land on a replica, and in what pieces they are read,
 * verified and exchanged.
 *
 * Staged, a copy lands beside the live parameters, in one piece. Direct, it lands in its parameter:
 * in several runs where it is a box of columns, or of the rows of several experts. A checkpoint's
 * tensor lands like that in a buffer of the loader, which writes to either. Made with the plan and
 * kept with it: later refits allocate nothing.
 */
#ifndef WEIR_REFIT_LANDING_H
#define WEIR_REFIT_LANDING_H

#include <stdatomic.h>

#include "refit/work.h"
#include "weir/plan.h"

struct weir_replica;

#define WEIR_BOUNCE_BYTES ((uint64_t)32 << 20)

/* One copy's bytes where they landed, as its digest sees them. */
typedef struct weir_landed {
    uint64_t n_rows, row_bytes;
    uint64_t rows_per_run;  /* that lie one behind the other */
    uint64_t pitch_bytes;   /* from one run to the next */
    uint64_t rows_per_task; /* 0: a row takes several */
    size_t first_task;
    atomic_uint_fast64_t product, sum;
} weir_landed;

/* Bytes of staging, in one piece, and their runs in a live parameter. */
typedef struct weir_swap {
    uint32_t parameter;
    uint64_t staged_at, live_at; /* within the parameter's staging, and within it */
    uint64_t n_bytes, run_bytes, pitch_bytes;
    size_t first_task;
} weir_swap;

/* Copies of one participant that are read at one go: of a version that passes through a window
 * those of one group, of a checkpoint those that a loader converts together, else all. */
typedef struct weir_landing_part {
    uint32_t group;
    uint32_t load; /* the loader's group */
    size_t first_copy, n_copies;
    size_t first_read, n_reads;
} weir_landing_part;

/* Zeroed is valid: of no plan. */
typedef struct weir_landing {
    weir_plan_copy *ordered;  /* the plan's copies, by group; NULL: as the plan has them */
    weir_landing_part *parts; /* sorted by participant and group; groups of no byte are left out */
    size_t n_parts;
    weir_copy *reads; /* sorted by part; neighbours on both sides are one */
    size_t n_reads_room;
    weir_landed *landed; /* parallel to the schedule's copies */
    size_t n_landed_tasks;
    weir_swap *swaps; /* staged; sorted by parameter, neighbours on both sides are one */
    size_t n_swaps, n_swap_tasks;
    weir_work_rows *exchange; /* of parameters on a GPU: what the swaps come to */
    size_t n_exchange;
} weir_landing;

/* What replica->schedule's plan needs; puts its copies in the order of groups. */
weir_status weir_landing_open(struct weir_replica *replica);
void weir_landing_close(weir_landing *landing);

/* landing_parts.c, of weir_landing_open(): the copies in their order, and the parts of them. */
weir_status weir_landing_part_up(struct weir_replica *replica);

/* Lists what to read from every participant, into the places of this refit's versions. */
void weir_landing_aim(struct weir_replica *replica);
/* The same of one part, from `window`, which holds its region: at most a row for each of its
 * copies; returns how many. */
size_t weir_landing_rows(const struct weir_replica *replica, const weir_landing_part *part,
                         const unsigned char *window, weir_work_rows *out);
/* ERR_CORRUPT names the first copy whose digest is not the published one. Groups are verified one
 * by one when they have landed, all else at one go. */
weir_status weir_landing_verify(struct weir_replica *replica);
weir_status weir_landing_verify_part(struct weir_replica *replica, const weir_landing_part *part);
/* The same of digests that were taken before the part landed: one per copy. */
weir_status weir_landing_compare_part(struct weir_replica *replica, const weir_landing_part *part,
                                      const weir_digest *found);

#endif
