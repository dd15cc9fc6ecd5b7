/* SPDX-License-Identifier: Apache-2.0 */
/* undo.h - what live parameters held before bytes were written over them, so that a push that fails
 * half way can be taken back. Kept in host memory: what is installed takes no second place on a
 * GPU.
 */
#ifndef WEIR_REFIT_UNDO_H
#define WEIR_REFIT_UNDO_H

#include "base/arena.h"
#include "refit/work.h"

typedef struct weir_undo_entry {
    unsigned char *live;
    uint64_t kept_at, n_bytes;
} weir_undo_entry;

/* Zeroed is valid: nothing to undo. */
typedef struct weir_undo {
    weir_work *work;
    unsigned char *kept;
    uint64_t room_bytes, used_bytes;
    weir_undo_entry *entries;
    size_t n_entries, n_room;
    bool is_broken; /* what it holds is not known to be what was there */
    weir_task *task;
} weir_undo;

/* Room for n_bytes of old bytes, taken once; forgets what it holds. */
weir_status weir_undo_begin(weir_undo *undo, weir_work *work, uint64_t n_bytes);
/* Notes that n_bytes at `live` are about to be written over: *out_copy is the copy to make before.
 * ERR_INTERNAL when more is noted than there is room for. */
weir_status weir_undo_note(weir_undo *undo, void *live, uint64_t n_bytes, weir_work_copy *out_copy);
/* Forgets all notes but the first n_entries: their copies will not be made, nothing was written. */
void weir_undo_forget(weir_undo *undo, size_t n_entries);
/* Some of the copies that were noted may not have been made: nothing can be brought back. */
void weir_undo_break(weir_undo *undo);
/* Brings everything noted back, the last first; bounded by timeout_ms. ERR_INTERNAL, and nothing is
 * written, when the log is broken. */
weir_status weir_undo_run(weir_undo *undo, unsigned timeout_ms);
/* Everything noted changes places with what lies at its address: the last first, or the first
 * first, which undoes that. `bounce`: WEIR_BOUNCE_BYTES beside parameters on a GPU. ERR_INTERNAL as
 * weir_undo_run(). */
weir_status weir_undo_exchange(weir_undo *undo, bool last_first, void *bounce, unsigned timeout_ms);
void weir_undo_close(weir_undo *undo);

#endif
