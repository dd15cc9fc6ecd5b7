/* SPDX-License-Identifier: Apache-2.0 */
/* judge_finding.h - how the judge puts its findings into words. Texts of others are cut to a length
 * that a line can have. */
#ifndef WEIR_DIRECTORY_JUDGE_FINDING_H
#define WEIR_DIRECTORY_JUDGE_FINDING_H

#include "directory/judge.h"

typedef struct weir_judge_findings {
    weir_judged *judged;
    weir_arena *arena;
    weir_status status; /* ERR_NO_MEMORY once a text was lost */
} weir_judge_findings;

/* In the arena; never NULL. */
const char *weir_judge_text(weir_judge_findings *to, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* A copy, cut where it is too long, between characters. */
const char *weir_judge_cut(weir_judge_findings *to, const char *text);

/* wanted NULL: any. found NULL: not said. */
void weir_judge_say(weir_judge_findings *to, const char *field, bool ok, const char *wanted,
                    const char *found);
/* A tensor for which it is not so. */
void weir_judge_say_of(weir_judge_findings *to, const char *field, const char *tensor,
                       const char *wanted, const char *found);
/* Whether it is taken, and why not. */
void weir_judge_conclude(weir_judge_findings *to);

#endif
