/* SPDX-License-Identifier: Apache-2.0 */
/* judge.h - whether a source is what a reader wishes for, question by question. Pure: no clock, no
 * I/O.
 *
 * The questions are those of ModelExpress v2's clients, answered more strictly: all are asked of
 * every source, so that each "no" has its reason; what is not said is never taken for a number; a
 * registry is believed only whole; and what a worker or a rank said before its last word counts for
 * nothing.
 *
 * Ownership  what is judged borrows from the wish and from the arena; not from the facts, which may
 *            be closed when weir_judge_source() has returned.
 */
#ifndef WEIR_DIRECTORY_JUDGE_H
#define WEIR_DIRECTORY_JUDGE_H

#include "directory/source_facts.h"

#define WEIR_MAX_FINDINGS 16u

typedef struct weir_judge_wish {
    const weir_discover_wish *given;
    json_t *required; /* metadata: an object; NULL: none */
    int64_t now_ms;   /* by the directory's clock, as far as it is known */
} weir_judge_wish;

/* ERR_INVALID for a wish that makes no sense. */
weir_status weir_judge_wish_open(const weir_discover_wish *given, weir_judge_wish *out);
void weir_judge_wish_close(weir_judge_wish *wish);

/* As the directory lists a source. */
typedef struct weir_listed_source {
    const char *source_id, *worker_id, *model;
    int64_t updated_at_ms; /* 0: not said */
    int status;            /* of its metadata */
    const char *why_not;   /* its metadata cannot be had; NULL */
} weir_listed_source;

typedef struct weir_judged {
    weir_candidate candidate; /* its findings are those below */
    weir_finding findings[WEIR_MAX_FINDINGS];
    int64_t updated_at_ms;
    bool counts; /* READY or about to be, and it says who it is: it can supersede others */
} weir_judged;

/* facts may be NULL where there is a why_not. ERR_NO_MEMORY. */
weir_status weir_judge_source(const weir_judge_wish *wish, const weir_listed_source *listed,
                              const weir_source_facts *facts, weir_arena *arena, weir_judged *out);

/* When all are judged: drops those that others supersede, then sorts. Gives how many are taken. */
weir_status weir_judge_settle(weir_judged *judged, size_t n, weir_arena *arena, size_t *out_taken);

#endif
