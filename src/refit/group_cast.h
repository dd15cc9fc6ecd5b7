/* SPDX-License-Identifier: Apache-2.0 */
/* group_cast.h - how the groups of a window are broadcast: the trainer rank's place in one
 * broadcast group per audience, from version to version.
 *
 *   reader:   asks, fresh or not .....  joins ......  asks g, catches g, asks g + 1, ... behind all
 *   trainer:          WAIT, memberships          READY with digests, casts g
 *
 * Readers ask as of any window (credits.h), at the same address, and hear the same states; OFF is
 * the abort. A round begins when of every worker that is sent something n_replicas readers wait,
 * and takes in all who wait then; whoever comes later waits for another round. Each audience of
 * which members have changed, or one of which is fresh, gets a new key; the others' groups stand.
 * No group is made for readers before all have joined. A group of shards is broadcast once it is
 * made, while the next one is converted into another buffer; its buffer is filled again when the
 * broadcast has ended here.
 *
 * Order  broadcasts of one stream wait for each other, so all ranks and readers keep one order: by
 * the key of the group (its layer, or its tensor outside the layers), then by rank, then by number.
 *
 * Belongs to window_cast.c. Calls that say so are made under the trainer's lock.
 */
#ifndef WEIR_REFIT_GROUP_CAST_H
#define WEIR_REFIT_GROUP_CAST_H

#include "refit/audiences.h"
#include "refit/credits.h"
#include "refit/groups.h"

typedef struct weir_cast weir_cast;

/* Through a transport that is WEIR_CAP_MATCHED. `groups` and `audiences` are borrowed. Gives *out.
 */
weir_status weir_cast_open(weir_trainer *trainer, const weir_link *link, const weir_groups *groups,
                           const weir_audiences *audiences, weir_cast **out);
void weir_cast_close(weir_cast *cast); /* accepts NULL */
const char *weir_cast_transport(const weir_cast *cast);

/* Under the lock: who is in the round from now on. Groups whose members have changed are left; they
 * are closed by weir_cast_sweep(), which comes next. */
weir_status weir_cast_gather(weir_cast *cast, const weir_credits *credits);
/* Without the lock, which readers are answered under: a group may take its time to close. */
void weir_cast_sweep(weir_cast *cast);
/* Under the lock: what a reader is told; none of one that is not in the round. Borrowed until the
 * next call. */
const weir_membership *weir_cast_memberships(weir_cast *cast, const char *reader, size_t *out_n);
/* Joins them: IN_PROGRESS until every reader has, at most bound_ms of those that are begun here. */
weir_status weir_cast_joined(weir_cast *cast, unsigned bound_ms);
/* The reader whose rank in its group `words` end with, those that the last failure to join came
 * with: "...: 2, 5"; NULL: they name nobody. */
const char *weir_cast_missing(const weir_cast *cast, const char *words);
/* Whether anybody is sent that group: who holds the version already is not. */
bool weir_cast_is_wanted(const weir_cast *cast, uint32_t group);
/* Queues the broadcast of group `group`, which lies at `data`. */
weir_status weir_cast_send(weir_cast *cast, uint32_t group, void *data);
/* IN_PROGRESS until its buffer may be filled anew. */
weir_status weir_cast_sent(weir_cast *cast, uint32_t group);
/* A round has failed: leaves all groups, cancelling what is queued. */
void weir_cast_abort(weir_cast *cast);

#endif
