/* SPDX-License-Identifier: Apache-2.0 */
/* border.h - rows that trainer ranks hand each other before they convert: of blocks of scales that
 * lie on several ranks, one rank makes each (mesh.h), and borrows the rows that it lacks.
 *
 * Every version takes two steps. Each rank first copies what it lends into memory that the others
 * can read; then it waits for what it borrows and reads it, one-sided, verified by digests. As all
 * lend first, nobody waits in a circle. There are two buffers for what is lent: who is a version
 * late still finds it, who is later sees a manifest that is gone.
 *
 * Ranks find each other in the directory, by entries that are INITIALIZING until the first version
 * is published; of several for one rank the newest counts, and one that does not answer is looked
 * up again.
 *
 * Threads    the trainer's; weir_border_manifest() the manifest service's.
 * Errors     ERR_TIMED_OUT names the rank that has not lent the version, ERR_NOT_FOUND one that has
 *            gone two versions further, ERR_LAYOUT one that lends something else than is borrowed;
 *            ERR_CORRUPT rows that changed on the way, ERR_UNSUPPORTED rows of tensors on a
 *            GPU: magnitudes alone can be lent of those.
 */
#ifndef WEIR_REFIT_BORDER_H
#define WEIR_REFIT_BORDER_H

#include "refit/trainer.h"

typedef struct weir_border weir_border;

/* Rows of a registered tensor: the first one's address, and from one to the next. */
typedef struct weir_border_rows {
    const unsigned char *data;
    uint64_t row_bytes, pitch_bytes;
    uint32_t n_rows;
    weir_dtype dtype;
} weir_border_rows;

/* What a rank lends, piece by piece as share->lent lists it; read anew at every
 * weir_border_lend(). */
typedef struct weir_border_options {
    weir_trainer *trainer;
    const weir_share *share;
    const weir_border_rows *lent; /* share->n_lent, borrowed until close */
    const weir_dtype *borrowed; /* of each loan of share->borrows: the dtype of all its rows; NONE:
                                   they differ, and are compared by size alone */
} weir_border_options;

/* Exposes memory for what is lent, and this rank in the directory. `trainer` has its manifest
 * service by now. Gives *out, which may be trainer->border: both take the trainer's lock. */
weir_status weir_border_open(const weir_border_options *options, weir_border **out);
/* Accepts NULL. Takes it out of trainer->border as well. */
void weir_border_close(weir_border *border);

/* Fills the older buffer and lets others read it. */
weir_status weir_border_lend(weir_border *border, uint64_t version);
/* Waits for every lender's rows of `version` and reads them. */
weir_status weir_border_borrow(weir_border *border, uint64_t version);
/* What was borrowed: `offset` within loan `loan` of share->borrows. */
const unsigned char *weir_border_at(const weir_border *border, uint32_t loan, uint64_t offset);

/* For the trainer's manifest service, which holds the trainer's lock while it uses what it is
 * given: the manifest of "border-5", or of "border-newest". False when there is none. */
bool weir_border_manifest(const weir_border *border, const char *uid, const void **out_bytes,
                          size_t *out_n_bytes, const char **out_digest);

#endif
