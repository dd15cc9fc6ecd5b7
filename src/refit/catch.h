/* SPDX-License-Identifier: Apache-2.0 */
/* catch.h - the reader's end of groups that are broadcast (cast.h has the protocol): its places in
 * the broadcast groups of each rank, and the windows that bytes are caught in.
 *
 * What is caught lies in a window as in the trainer's buffer; group_transfer.c copies from there
 * what it would have read, to where it would have read it. So verification, staging, loading and
 * rolling back are as of any version that is read. Groups of an audience that the reader is in, but
 * of which it needs nothing, are caught and let go.
 *
 * Windows are taken in the order of cast.h, over all ranks: whose turn it is not, waits.
 *
 * Ownership  windows are the replica's, kept from refit to refit, as large as the largest group
 * that any rank broadcasts; broadcast groups are the remote's they are of.
 */
#ifndef WEIR_REFIT_CATCH_H
#define WEIR_REFIT_CATCH_H

#include "refit/matched.h"

#define WEIR_CATCH_WINDOWS 2u

#endif
