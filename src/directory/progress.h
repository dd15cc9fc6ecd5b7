/* SPDX-License-Identifier: Apache-2.0 */
/* progress.h - how far refits that are under way have come, as workers say it now and then.
 *
 * For people who watch, so it is kept beside the store: it goes through no log, and is lost when
 * the directory ends. One entry per worker; when there are too many the one that is silent for
 * longest goes. One thread at a time.
 */
#ifndef WEIR_DIRECTORY_PROGRESS_H
#define WEIR_DIRECTORY_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rpc/rpc_heap.h"
#include "weir/status.h"

#define WEIR_PROGRESS_MOST 16384u

typedef struct weir_progress_entry {
    const char *worker_id, *model, *stop, *slowest_from;
    uint64_t number; /* of the version */
    uint64_t done_bytes, total_bytes;
    uint64_t at_ms;
} weir_progress_entry;

typedef struct weir_progress_item weir_progress_item;
typedef struct weir_progress {
    weir_rpc_heap memory;
    weir_progress_item **buckets;
    weir_progress_item *newest, *oldest;
    size_t n;
} weir_progress;

void weir_progress_init(weir_progress *progress);

/* Replaces what the same worker said before. */
weir_status weir_progress_put(weir_progress *progress, const weir_progress_entry *entry);
void weir_progress_forget(weir_progress *progress, const char *worker_id); /* it is done */
/* NULL: it has said nothing, or is done. Valid until the next change. */
const weir_progress_entry *weir_progress_find(const weir_progress *progress, const char *worker_id);
/* The newest first, until `visit` returns false. */
void weir_progress_each(const weir_progress *progress,
                        bool (*visit)(void *context, const weir_progress_entry *entry),
                        void *context);
void weir_progress_close(weir_progress *progress);

#endif
