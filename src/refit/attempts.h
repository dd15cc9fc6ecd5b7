/* SPDX-License-Identifier: Apache-2.0 */
/* attempts.h - attempts at one version number, in a directory that only ModelExpress' services are
 * had of.
 *
 * Such a directory knows versions by their keys alone. Which attempt at the number a version is,
 * what bytes its shards are of and which attempt is over, trainer ranks say in the note of their
 * entries:
 *
 *     attempt N of CONTENT
 *     attempt N of CONTENT ends UID REASON
 *
 * CONTENT is 32 hexadecimal digits: equal ones name equal bytes. UID is of an attempt that never
 * counts again, REASON goes to the end. The word stays in the rank's entry from version to version.
 */
#ifndef WEIR_REFIT_ATTEMPTS_H
#define WEIR_REFIT_ATTEMPTS_H

#include "refit/worker.h"

#define WEIR_CONTENT_BYTES 33

typedef struct weir_attempt {
    unsigned number;                  /* from 1 */
    char content[WEIR_CONTENT_BYTES]; /* "": not said */
    char ended_uid[WEIR_ID_BYTES];    /* "": none is over */
    char reason[WEIR_NAME_BYTES];
} weir_attempt;

/* False when the note says nothing of it: then it counts as the first. */
bool weir_attempt_read(const char *note, weir_attempt *out);
void weir_attempt_write(const weir_attempt *attempt, char *note, size_t note_bytes);

/* The entries of this run's trainer ranks, one after another. */
typedef struct weir_rank_entries {
    weir_worker *worker;
    weir_source_ref *refs; /* the caller's */
    size_t n, next;
} weir_rank_entries;
weir_status weir_rank_entries_list(weir_worker *worker, weir_source_status status,
                                   weir_source_ref *refs, size_t n_max, weir_rank_entries *out);
/* IN_PROGRESS: there are no more. */
weir_status weir_rank_entries_next(weir_rank_entries *entries, weir_source_record *out);

/* An attempt that will not get READY, or not again. */
typedef struct weir_attempt_end {
    uint64_t version; /* 0 when it was known by its uid */
    char uid[WEIR_ID_BYTES];
    char reason[sizeof(((weir_source_record *)0)->note)];
} weir_attempt_end;
/* Of the attempt of that uid; uid "": of the newest whose number is within [lowest, highest].
 * IN_PROGRESS: none is known. `refs` is room for a listing. */
typedef struct weir_end_wish {
    const char *uid;
    uint64_t lowest, highest;
    weir_source_ref *refs;
    size_t n_refs;
} weir_end_wish;
weir_status weir_attempt_find_end(weir_worker *worker, const weir_end_wish *wish,
                                  weir_attempt_end *out);

/* Shards that several workers have published in one slot: ERR_LAYOUT naming two of them unless they
 * are known to be of the same bytes. */
weir_status weir_attempt_check_shards(weir_worker *worker, const char *uid, uint64_t version,
                                      const weir_shard_record *shards, size_t n_shards,
                                      weir_source_ref *refs, size_t n_refs);

#endif
