/* SPDX-License-Identifier: Apache-2.0 */
/* store_recall.c - what was in the slots of a version, as its ranks remember it for a directory
 * that loses its records: who published there last, and what.
 *
 * It keeps marks alone, and does not look at what they stand for. */
#include <string.h>

#include "directory/store_record.h"

static bool has_slots_of(const store_version *a, const store_version *b)
{
    for (size_t i = 0; i < a->view.n_slots; i++) {
        if (a->view.n_slots != b->view.n_slots || strcmp(a->view.slots[i], b->view.slots[i]) != 0)
            return false;
    }
    return true;
}

/* The newest of the run before this one that all ranks were in; NULL: none. */
static const store_version *version_before(const store_version *version)
{
    for (const store_link *link = version->of_run.next; link != &version->run->versions;
         link = link->next) {
        const store_version *before = WEIR_STORE_OF(store_version, of_run, link);
        bool was_whole = before->view.ready_at_ms != 0 || before->is_restored;
        if (was_whole && before->view.state != WEIR_STORE_ABORTED && has_slots_of(version, before))
            return before;
    }
    return NULL;
}

weir_status weir_store_recall(const weir_store *store, const char *uid, uint64_t *out_workers,
                              uint64_t *out_contents)
{
    const store_version *version = weir_store_find_version(store, uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    const store_version *before = version_before(version);
    for (size_t i = 0; i < version->view.n_slots; i++) {
        const store_past *past = &version->pasts[i];
        out_contents[i] = past->content;
        out_workers[i] = past->worker;
        if (past->worker == 0 && before != NULL)
            out_workers[i] = before->pasts[i].worker;
    }
    return WEIR_OK;
}

store_past weir_store_past_in(const weir_store_version *request, size_t slot)
{
    return (store_past){
        .worker = request->slot_workers != NULL ? request->slot_workers[slot] : 0,
        .content = request->slot_contents != NULL ? request->slot_contents[slot] : 0,
    };
}

void weir_store_restore_pasts(store_version *version, const weir_store_version *request)
{
    version->is_restored = true;
    for (size_t i = 0; i < version->view.n_slots; i++) {
        store_past *past = &version->pasts[i], said = weir_store_past_in(request, i);
        if (past->generation != 0)
            continue; /* published here */
        if (past->worker == 0 || (past->content == 0 && said.content != 0))
            past->worker = said.worker != 0 ? said.worker : past->worker;
        if (past->content == 0)
            past->content = said.content;
    }
}

bool weir_store_is_of_past(const store_past *past, const store_past *offered)
{
    if (past->content != 0 && offered->content != 0)
        return past->content == offered->content;
    return past->worker != 0 && past->worker == offered->worker;
}
