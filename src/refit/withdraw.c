/* SPDX-License-Identifier: Apache-2.0 */
/* withdraw.c - a trainer rank gives up a version that it has published.
 *
 * Takes   a PUBLISHED slot, and why.
 * Gives   the version ABORTED in the directory, for all ranks and with the reason; the slot FREE
 *         once nobody reads its bytes.
 * Breaks  the directory, or a reader that does not end: the slot stays RETIRED, nobody is given
 *         it, and the same call goes on.
 *
 * Readers of a window, or of what is pushed, ask this rank and not the directory how far it is:
 * they are told first. A version that goes because the next one comes is slot.c's matter.
 */
#include <inttypes.h>
#include <stdio.h>

#include "base/error.h"
#include "refit/serve.h"
#include "refit/window.h"

static weir_slot *find_slot(weir_trainer *trainer, uint64_t version)
{
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        weir_slot *slot = &trainer->slots[i];
        bool is_offered = slot->state == WEIR_SLOT_PUBLISHED || slot->state == WEIR_SLOT_RETIRED;
        if (is_offered && slot->version == version)
            return slot;
    }
    return NULL;
}

/* What lay in a slot that another version has is gone already. */
static weir_status check_published(const weir_trainer *trainer, uint64_t version)
{
    if (!trainer->has_published)
        return weir_fail(WEIR_ERR_NOT_FOUND,
                         "version %" PRIu64 " cannot be withdrawn: trainer rank %u has published "
                         "nothing",
                         version, trainer->rank);
    if (version > trainer->last_version)
        return weir_fail(WEIR_ERR_NOT_FOUND,
                         "version %" PRIu64 " cannot be withdrawn: trainer rank %u has published "
                         "%" PRIu64 " last",
                         version, trainer->rank, trainer->last_version);
    return WEIR_OK;
}

static void name_reason(const weir_trainer *trainer, const char *why, char reason[WEIR_NAME_BYTES])
{
    bool is_said = why != NULL && why[0] != '\0';
    snprintf(reason, WEIR_NAME_BYTES, "trainer rank %u has withdrawn it%s%s", trainer->rank,
             is_said ? ": " : "", is_said ? why : "");
    weir_error_one_line(reason);
}

static void tell_readers(weir_trainer *trainer, const weir_slot *slot, const char *reason)
{
    if (trainer->window != NULL)
        weir_window_withdraw(trainer, reason);
    if (trainer->push != NULL)
        weir_members_withdraw(trainer->push, slot->version, slot->uid, reason);
}

weir_status weir_trainer_withdraw(weir_trainer *trainer, uint64_t version, const char *why,
                                  unsigned timeout_ms)
{
    weir_slot *slot = find_slot(trainer, version);
    char reason[WEIR_NAME_BYTES];
    if (slot == NULL)
        return check_published(trainer, version);
    unsigned bound_ms = timeout_ms ? timeout_ms : trainer->worker.timeout_ms;
    weir_deadline deadline = weir_deadline_in(bound_ms);
    name_reason(trainer, why, reason);
    if (slot->state == WEIR_SLOT_PUBLISHED)
        tell_readers(trainer, slot, reason);
    weir_slot_stop_offering(trainer, slot);
    weir_status status = weir_publish_take_back(trainer, slot, reason, deadline);
    if (status == WEIR_OK)
        status = weir_slot_retire(trainer, slot, weir_deadline_left_ms(deadline));
    if (status == WEIR_OK)
        weir_slot_drop(trainer, slot);
    return status;
}
