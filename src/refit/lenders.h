/* SPDX-License-Identifier: Apache-2.0 */
/* lenders.h - the ranks that this one borrows rows of: found in the directory, asked until they
 * have lent the version, read all at the same time.
 *
 * Belongs to border.c, finds its ranks by ranks.h. What is known of a lender (its worker,
 * connection, imported regions) is kept from version to version; the directory is asked again only
 * while one does not have the version.
 *
 * Threads    the trainer's.
 * Errors     as border.h.
 */
#ifndef WEIR_REFIT_LENDERS_H
#define WEIR_REFIT_LENDERS_H

#include "refit/trainer.h"

/* What both sides call a lender's manifest, its newest one, and one borrower's part of it. */
#define WEIR_BORDER_UID "border-%" PRIu64
#define WEIR_BORDER_NEWEST "border-newest"
#define WEIR_BORDER_PART "border/%u"
#define WEIR_BORDER_TEXT 32
/* Between the parts of two ranks: each begins a cache line. */
#define WEIR_BORDER_ALIGNMENT 64u

/* How a manifest says the dtype of a part's rows; "mixed" where they differ. */
const char *weir_border_dtype_name(weir_dtype dtype);

typedef struct weir_lenders weir_lenders;

/* Keeps share->borrows and, parallel to it, the dtypes of their rows (NONE: they differ, and are
 * not compared). Gives *out. */
weir_status weir_lenders_open(weir_trainer *trainer, const weir_share *share,
                              const weir_dtype *borrowed, weir_lenders **out);
void weir_lenders_close(weir_lenders *lenders); /* accepts NULL */

/* Waits until all have lent `version`, and reads their rows. */
weir_status weir_lenders_read(weir_lenders *lenders, uint64_t version);
const unsigned char *weir_lenders_at(const weir_lenders *lenders, uint32_t loan, uint64_t offset);

#endif
