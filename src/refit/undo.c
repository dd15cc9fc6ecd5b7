/* SPDX-License-Identifier: Apache-2.0 */
/* undo.c - keeps old bytes in order, and brings them back in the opposite one. */
#include "refit/undo.h"

#include <inttypes.h>

#include "base/alloc.h"
#include "base/error.h"
#include "device/host.h"
#include "refit/landing.h"

weir_status weir_undo_begin(weir_undo *undo, weir_work *work, uint64_t n_bytes)
{
    undo->n_entries = 0;
    undo->used_bytes = 0;
    undo->is_broken = false;
    if (undo->room_bytes >= n_bytes && undo->kept != NULL)
        return WEIR_OK;
    weir_undo_close(undo);
    void *kept = NULL;
    weir_status status = weir_task_open(work, &undo->task);
    undo->work = work;
    if (status == WEIR_OK)
        status = weir_work_allocate_host(work, n_bytes ? n_bytes : 1, &kept);
    if (status != WEIR_OK) {
        weir_error_prefix("undo log of %" PRIu64 " bytes", n_bytes);
        weir_undo_close(undo);
        return status;
    }
    undo->kept = kept;
    undo->room_bytes = n_bytes ? n_bytes : 1;
    return WEIR_OK;
}

static weir_status grow(weir_undo *undo)
{
    if (undo->n_entries < undo->n_room)
        return WEIR_OK;
    size_t n = undo->n_room ? 2 * undo->n_room : 1024;
    weir_undo_entry *entries = weir_realloc(undo->entries, n * sizeof(*entries));
    if (entries == NULL)
        return WEIR_ERR_NO_MEMORY;
    undo->entries = entries;
    undo->n_room = n;
    return WEIR_OK;
}

weir_status weir_undo_note(weir_undo *undo, void *live, uint64_t n_bytes, weir_work_copy *out_copy)
{
    if (n_bytes > undo->room_bytes - undo->used_bytes)
        return weir_fail(WEIR_ERR_INTERNAL, "undo log of %" PRIu64 " bytes is full",
                         undo->room_bytes);
    weir_status status = grow(undo);
    if (status != WEIR_OK)
        return status;
    *out_copy = (weir_work_copy){ undo->kept + undo->used_bytes, live, n_bytes };
    undo->entries[undo->n_entries++] = (weir_undo_entry){ live, undo->used_bytes, n_bytes };
    undo->used_bytes += n_bytes;
    return WEIR_OK;
}

void weir_undo_forget(weir_undo *undo, size_t n_entries)
{
    if (n_entries >= undo->n_entries)
        return;
    undo->used_bytes = undo->entries[n_entries].kept_at;
    undo->n_entries = n_entries;
}

void weir_undo_break(weir_undo *undo)
{
    undo->is_broken = true;
}

weir_status weir_undo_run(weir_undo *undo, unsigned timeout_ms)
{
    weir_status status = WEIR_OK;
    if (undo->is_broken)
        return weir_fail(WEIR_ERR_INTERNAL, "the undo log does not hold all that was there");
    while (undo->n_entries > 0 && status == WEIR_OK) {
        const weir_undo_entry *entry = &undo->entries[--undo->n_entries];
        weir_work_copy copy = { entry->live, undo->kept + entry->kept_at, entry->n_bytes };
        status = weir_task_copy(undo->task, WEIR_LANE_KEEP, &copy, 1);
        if (status == WEIR_OK)
            status = weir_task_wait(undo->task, timeout_ms);
    }
    return status;
}

/* Through the bounce buffer: memory of a GPU is not the processor's to swap. */
static weir_status exchange_on_gpu(weir_undo *undo, unsigned char *live, unsigned char *kept,
                                   uint64_t n_bytes, void *bounce, unsigned timeout_ms)
{
    weir_status status = WEIR_OK;
    for (uint64_t at = 0, n; at < n_bytes && status == WEIR_OK; at += n) {
        n = n_bytes - at < WEIR_BOUNCE_BYTES ? n_bytes - at : WEIR_BOUNCE_BYTES;
        const weir_work_copy copies[] = { { bounce, live + at, n },
                                          { live + at, kept + at, n },
                                          { kept + at, bounce, n } };
        status = weir_task_copy(undo->task, WEIR_LANE_KEEP, copies, 3);
        if (status == WEIR_OK)
            status = weir_task_wait(undo->task, timeout_ms);
    }
    return status;
}

weir_status weir_undo_exchange(weir_undo *undo, bool last_first, void *bounce, unsigned timeout_ms)
{
    weir_status status = WEIR_OK;
    if (undo->is_broken)
        return weir_fail(WEIR_ERR_INTERNAL, "the undo log does not hold all that was there");
    bool on_gpu = weir_work_memory(undo->work) == WEIR_MEMORY_CUDA;
    for (size_t i = 0; i < undo->n_entries && status == WEIR_OK; i++) {
        const weir_undo_entry *entry = &undo->entries[last_first ? undo->n_entries - 1 - i : i];
        unsigned char *kept = undo->kept + entry->kept_at;
        if (on_gpu)
            status = exchange_on_gpu(undo, entry->live, kept, entry->n_bytes, bounce, timeout_ms);
        else
            weir_host_swap(NULL, entry->live, kept, entry->n_bytes);
    }
    return status;
}

void weir_undo_close(weir_undo *undo)
{
    weir_task_close(undo->task);
    if (undo->kept != NULL)
        weir_work_free_host(undo->work, undo->kept, undo->room_bytes);
    weir_free(undo->entries);
    *undo = (weir_undo){ 0 };
}
