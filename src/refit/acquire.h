/* SPDX-License-Identifier: Apache-2.0 */
/* acquire.h - the first half of stop 5: a READY version, leased.
 *
 * A directory of Weir's is asked once and answers when there is one (acquire.c). One of
 * ModelExpress is asked again and again (seek.c).
 */
#ifndef WEIR_REFIT_ACQUIRE_H
#define WEIR_REFIT_ACQUIRE_H

#include "refit/replica.h"

/* Rooms of replica->refs and replica->shards. */
#define WEIR_MAX_REFS 512u
#define WEIR_MAX_LISTED ((size_t)2 * WEIR_MAX_RANKS)

/* Waits for the version (WEIR_LATEST: the newest that this replica does not hold) until the
 * deadline. Gives version, uid, lease and its sources: the shards in replica->shards, and the slots
 * in the schedule's participants. ERR_TIMED_OUT says what there is instead, ERR_NOT_FOUND that the
 * version is gone, ERR_ABORTED why. */
weir_status weir_acquire_version(weir_replica *replica, uint64_t wish, weir_deadline deadline,
                                 weir_discovery *out);

/* Another source of the version that is leased already, none of discovery->avoid, if that can be:
 * at once. Replaces the peer and the shards. ERR_NOT_FOUND: there is none; the shards are those of
 * before when their number is. */
weir_status weir_acquire_again(weir_replica *replica, weir_discovery *discovery);

/* The same by ListSources, GetMetadata, GetWeightVersion, RegisterVersionLease and
 * ListWeightVersionShards. */
weir_status weir_seek_version(weir_replica *replica, uint64_t wish, weir_deadline deadline,
                              weir_discovery *out);

/* The lowest number that will do. */
uint64_t weir_acquire_lowest(const weir_replica *replica, uint64_t wish);
/* One participant per expected slot of the version that the client's last call returned. */
weir_status weir_acquire_slots(weir_replica *replica, uint32_t n_slots);

/* What is said at the end of both waits. */
typedef struct weir_lack {
    uint64_t wish;
    bool aborted, waits, over, forgotten; /* the newest that would do is; may be READY yet; is
                                             RELEASING; is not known */
    uint64_t awaited;
    uint32_t n_slots;
    const char *missing, *gone, *reason; /* of these; NULL: is not known */
    bool has_trainer;                    /* else: what there was instead */
    uint64_t newest;
} weir_lack;
/* Sets what trainers say of themselves that the directory has no record of. */
void weir_seek_forgotten(weir_replica *replica, weir_lack *lack);
weir_status weir_acquire_timed_out(const weir_replica *replica, const weir_lack *lack);
weir_status weir_acquire_aborted(const weir_replica *replica, const weir_lack *lack);
weir_status weir_acquire_gone(const weir_replica *replica, const weir_lack *lack);

#endif
