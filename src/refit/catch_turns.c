/* SPDX-License-Identifier: Apache-2.0 */
/* catch_turns.c - whose group is caught when, and what becomes of it.
 *
 * Broadcasts of one stream wait for each other, so all ranks and readers keep one order: by key of
 * the group, by rank, by number. Nothing is caught before every rank has said which of its groups
 * come to this reader, and all have joined them: on a GPU, joining may wait for what it is at. A
 * window is held out to the group whose turn it is as soon as there is a free one, made or not: its
 * rank need not wait for this reader then. Its header and digests are asked for meanwhile, of one
 * group of each rank after another.
 */
#include <inttypes.h>

#include "base/error.h"
#include "refit/group_pass.h"

/* From one question to the next, at least, when all have joined: what has been caught is asked for
 * at once. */
#define JOINED_WAIT_US 1000u

static bool is_sent(const weir_group_pass *pass, const weir_participant *participant)
{
    return weir_catch_is_cast(participant) && weir_group_is_asked(pass->replica, participant);
}

/* ---- one participant -------------------------------------------------------------------------*/

static bool is_in_a_window(const weir_group_pass *pass, const weir_participant *participant)
{
    for (size_t w = 0; w < WEIR_CATCH_WINDOWS; w++) {
        if (pass->replica->caught.windows[w].from == participant)
            return true;
    }
    return false;
}

/* Asking for the end says that all is taken; groups whose turn has not come are asked for later. */
static bool has_nothing_to_ask(const weir_group_pass *pass, const weir_participant *participant)
{
    const weir_group_reading *reading = &participant->reading;
    if (!reading->is_told)
        return false;
    return reading->group > reading->turn ||
           (reading->group == participant->remote->n_groups && is_in_a_window(pass, participant));
}

/* The first group of the participant that is not taken. */
static uint32_t first_not_taken(const weir_group_pass *pass, const weir_participant *participant)
{
    const weir_group_reading *reading = &participant->reading;
    uint32_t first = reading->group < reading->turn ? reading->group : reading->turn;
    for (size_t w = 0; w < WEIR_CATCH_WINDOWS; w++) {
        const weir_catch_window *window = &pass->replica->caught.windows[w];
        if (window->from == participant && window->group < first)
            first = window->group;
    }
    return first;
}

static weir_status ask_why(weir_group_pass *pass, const weir_participant *participant,
                           weir_status failed)
{
    return weir_group_ask_why(pass, participant, first_not_taken(pass, participant), failed);
}

weir_status weir_catch_step(weir_group_pass *pass, weir_participant *participant)
{
    weir_group_reading *reading = &participant->reading;
    weir_remote *remote = participant->remote;
    bool was_told = reading->is_told;
    if (reading->done) /* its rank may be gone */
        return WEIR_OK;
    weir_status status = was_told ? weir_catch_joined(remote) : WEIR_OK;
    if (status < WEIR_OK)
        return ask_why(pass, participant, status);
    pass->moved |= was_told && status == WEIR_OK && !reading->is_joined;
    reading->is_joined |= was_told && status == WEIR_OK;
    reading->held_back = has_nothing_to_ask(pass, participant);
    if (reading->held_back)
        return WEIR_OK;
    if (reading->is_joined && reading->wait_us < JOINED_WAIT_US / 2)
        reading->wait_us = JOINED_WAIT_US / 2;
    status = weir_group_ask_in_time(pass, participant);
    pass->moved |= !was_told && reading->is_told;
    if (status != WEIR_OK)
        return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
    reading->done = reading->group == remote->n_groups;
    if (reading->done)
        remote->is_casting = false;
    else
        reading->group = weir_catch_next(remote, reading->group + 1);
    return WEIR_OK;
}

/* ---- what was caught -------------------------------------------------------------------------*/

static uint64_t bytes_of_part(const weir_replica *replica, const weir_landing_part *part)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < part->n_copies; i++)
        n_bytes += replica->schedule.planned[part->first_copy + i].n_bytes;
    return n_bytes;
}

static bool has_room(const weir_group_pass *pass, const weir_catch_window *window)
{
    const weir_replica *replica = pass->replica;
    return !pass->loads || weir_loader_has_room(replica->loader,
                                                replica->schedule.landing.parts[window->part].load);
}

/* What the rank says of the group has been heard. */
static bool is_announced(const weir_catch_window *window)
{
    return window->from->reading.group > window->group;
}

/* What came first is taken first: nothing is written over what was live as long as a rank may fail
 * to make what stands before it. A loader takes what it has room for. */
static bool is_in_turn(const weir_group_pass *pass, const weir_catch_window *window)
{
    for (size_t w = 0; w < WEIR_CATCH_WINDOWS && !pass->loads; w++) {
        const weir_catch_window *other = &pass->replica->caught.windows[w];
        if (other->from != NULL && other->turn < window->turn)
            return false;
    }
    return true;
}

static const weir_landing_part *part_of(const weir_group_pass *pass,
                                        const weir_catch_window *window)
{
    return &pass->replica->schedule.landing.parts[window->part];
}

/* Direct, what is copied is written over what was live. */
static weir_status copy_part(weir_group_pass *pass, const weir_catch_window *window)
{
    weir_replica *replica = pass->replica;
    weir_status status = weir_catch_verified(replica, part_of(pass, window));
    if (status != WEIR_OK)
        return status;
    pass->moved = true;
    pass->landed |= !pass->loads;
    replica->caught.is_copied = true;
    return weir_catch_copy(replica, window->data, part_of(pass, window));
}

/* IN_PROGRESS while the GPU is at it. */
static weir_status go_on_with_part(weir_group_pass *pass, weir_catch_window *window)
{
    weir_replica *replica = pass->replica;
    const weir_landing_part *part = part_of(pass, window);
    weir_status status = replica->caught.is_copied ? WEIR_OK : copy_part(pass, window);
    if (status == WEIR_OK)
        status = weir_catch_copied(replica);
    if (status != WEIR_OK)
        return status;
    replica->caught.taken = NULL;
    weir_group_part_landed(pass, window->from, part);
    window->from->reading.done_bytes += bytes_of_part(replica, part);
    window->part++;
    return WEIR_OK;
}

static weir_status begin_part(weir_group_pass *pass, weir_catch_window *window)
{
    weir_catch *caught = &pass->replica->caught;
    caught->taken = window;
    caught->is_copied = false;
    return weir_catch_verify(pass->replica, window->data, part_of(pass, window));
}

/* One window at a time, as far as there is room. */
static weir_status take_parts(weir_group_pass *pass, weir_catch_window *window)
{
    const weir_catch *caught = &pass->replica->caught;
    weir_status status = WEIR_OK;
    while (status == WEIR_OK && window->part < window->end_part) {
        if (caught->taken == NULL && !has_room(pass, window))
            return WEIR_OK;
        if (caught->taken == NULL)
            status = begin_part(pass, window);
        if (status == WEIR_OK)
            status = go_on_with_part(pass, window);
    }
    if (status != WEIR_OK)
        return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
    window->from = NULL;
    pass->moved = true;
    return WEIR_OK;
}

static bool may_be_taken(const weir_group_pass *pass, const weir_catch_window *window)
{
    const weir_catch *caught = &pass->replica->caught;
    if (caught->taken != NULL)
        return caught->taken == window;
    return is_announced(window) && is_in_turn(pass, window);
}

static weir_status advance_window(weir_group_pass *pass, weir_catch_window *window)
{
    if (window->from == NULL)
        return WEIR_OK;
    if (!window->is_caught) {
        weir_status status = weir_matched_ended(window->cast, window->ticket);
        if (status == WEIR_IN_PROGRESS)
            return WEIR_OK;
        if (status != WEIR_OK) {
            weir_error_prefix("group %u of %zu", window->group, window->from->remote->n_groups);
            return ask_why(pass, window->from, status);
        }
        window->is_caught = true;
        pass->moved = true;
        if (!is_announced(window)) /* what was sent was made */
            window->from->reading.ask_at = 0;
    }
    return may_be_taken(pass, window) ? take_parts(pass, window) : WEIR_OK;
}

/* ---- whose turn it is ------------------------------------------------------------------------*/

static bool is_before(const weir_participant *a, const weir_participant *b)
{
    uint32_t key = a->remote->group_keys[a->reading.turn];
    uint32_t other = b->remote->group_keys[b->reading.turn];
    return key != other ? key < other : a->remote->manifest.rank < b->remote->manifest.rank;
}

/* Whose group is the next of all; NULL: not known yet, or nothing is left. */
static weir_participant *whose_turn(const weir_group_pass *pass)
{
    const weir_schedule *schedule = &pass->replica->schedule;
    weir_participant *first = NULL;
    for (size_t p = 0; p < schedule->n_participants; p++) {
        weir_participant *participant = &schedule->participants[p];
        if (!is_sent(pass, participant))
            continue;
        if (!participant->reading.is_joined)
            return NULL;
        if (participant->reading.turn < participant->remote->n_groups &&
            (first == NULL || is_before(participant, first)))
            first = participant;
    }
    return first;
}

/* The windows take turns, so that in every version each is sent the same groups: a transport has
 * registered what it needs of them with the first. A loader frees them in an order of its own. */
static weir_catch_window *free_window(const weir_group_pass *pass)
{
    weir_catch *caught = &pass->replica->caught;
    weir_catch_window *next = &caught->windows[caught->n_turns % WEIR_CATCH_WINDOWS];
    if (next->from == NULL || !pass->loads)
        return next->from == NULL ? next : NULL;
    for (size_t w = 0; w < WEIR_CATCH_WINDOWS; w++) {
        if (caught->windows[w].from == NULL)
            return &caught->windows[w];
    }
    return NULL;
}

/* The parts of the group that this replica needs, which follow each other. */
static void list_parts(const weir_replica *replica, const weir_participant *participant,
                       weir_catch_window *window)
{
    const weir_landing_part *parts = replica->schedule.landing.parts;
    size_t end = participant->first_part + participant->n_parts;
    window->part = participant->first_part + participant->reading.part;
    window->end_part = window->part;
    while (window->end_part < end && parts[window->end_part].group == window->group)
        window->end_part++;
}

static weir_status catch_group(weir_group_pass *pass, weir_participant *participant,
                               weir_catch_window *window)
{
    weir_group_reading *reading = &participant->reading;
    weir_remote *remote = participant->remote;
    uint32_t group = reading->turn;
    window->cast = remote->casts[remote->group_audiences[group]];
    window->group = group;
    window->is_caught = false;
    list_parts(pass->replica, participant, window);
    remote->is_casting = true;
    if (participant->read_begun_s == 0)
        participant->read_begun_s = weir_now_s();
    weir_status status =
        weir_matched_queue(window->cast, window->data, remote->group_bytes[group], &window->ticket);
    if (status != WEIR_OK) {
        weir_error_prefix("group %u of %zu", group, remote->n_groups);
        return ask_why(pass, participant, status);
    }
    window->from = participant;
    window->turn = pass->replica->caught.n_turns++;
    reading->part = window->end_part - participant->first_part;
    reading->turn = weir_catch_next(remote, group + 1);
    reading->held_back = false;
    pass->moved = true;
    return WEIR_OK;
}

static weir_status catch_next(weir_group_pass *pass)
{
    weir_status status = WEIR_OK;
    while (status == WEIR_OK) {
        weir_participant *next = whose_turn(pass);
        weir_catch_window *window = free_window(pass);
        if (next == NULL || window == NULL)
            return WEIR_OK;
        status = catch_group(pass, next, window);
    }
    return status;
}

/* ---- all of them -----------------------------------------------------------------------------*/

/* Of the windows that wait for their broadcast to end, or of those that are caught, the one whose
 * turn was first; NULL: there is none. */
static const weir_catch_window *oldest_window(const weir_group_pass *pass, bool is_caught)
{
    const weir_catch_window *oldest = NULL;
    for (size_t w = 0; w < WEIR_CATCH_WINDOWS; w++) {
        const weir_catch_window *window = &pass->replica->caught.windows[w];
        if (window->from != NULL && window->is_caught == is_caught &&
            (oldest == NULL || window->turn < oldest->turn))
            oldest = window;
    }
    return oldest;
}

/* Of the windows that wait for what is said of their group, the one whose turn was first. */
static const weir_catch_window *first_not_announced(const weir_group_pass *pass)
{
    const weir_catch_window *first = NULL;
    for (size_t w = 0; w < WEIR_CATCH_WINDOWS; w++) {
        const weir_catch_window *window = &pass->replica->caught.windows[w];
        if (window->from != NULL && !is_announced(window) &&
            (first == NULL || window->turn < first->turn))
            first = window;
    }
    return first;
}

/* Something else can still come: to a window, or to the loader by another way. */
static bool may_go_on(const weir_group_pass *pass)
{
    const weir_schedule *schedule = &pass->replica->schedule;
    if (pass->moved || weir_loader_is_ready(pass->replica->loader))
        return true;
    if (oldest_window(pass, false) != NULL || first_not_announced(pass) != NULL ||
        pass->replica->caught.taken != NULL)
        return true;
    for (size_t p = 0; p < schedule->n_participants; p++) {
        const weir_participant *participant = &schedule->participants[p];
        bool waits = participant->reading.done || participant->reading.held_back;
        if (!is_sent(pass, participant) && !waits)
            return true;
    }
    return free_window(pass) != NULL && whose_turn(pass) != NULL;
}

/* A loader converts group by group; what it waits for may stand behind what it has no room for. */
static weir_status check_order(const weir_group_pass *pass)
{
    const weir_schedule *schedule = &pass->replica->schedule;
    const weir_catch_window *window = pass->loads ? oldest_window(pass, true) : NULL;
    if (window == NULL || may_go_on(pass))
        return WEIR_OK;
    const weir_remote *remote = window->from->remote;
    const weir_landing_part *part = &schedule->landing.parts[window->part];
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "%s sends %s before tensors that this replica has to convert first",
                     remote->who, remote->shards[schedule->planned[part->first_copy].shard].name);
}

weir_status weir_catch_turns(weir_group_pass *pass)
{
    weir_status status = WEIR_OK;
    for (size_t w = 0; w < WEIR_CATCH_WINDOWS && status == WEIR_OK; w++) {
        status = advance_window(pass, &pass->replica->caught.windows[w]);
        if (status == WEIR_OK) /* before the other is looked at: bytes come meanwhile */
            status = catch_next(pass);
    }
    return status == WEIR_OK ? check_order(pass) : status;
}

bool weir_catch_is_busy(const weir_group_pass *pass)
{
    const weir_schedule *schedule = &pass->replica->schedule;
    if (oldest_window(pass, false) != NULL || pass->replica->caught.taken != NULL)
        return true;
    for (size_t p = 0; p < schedule->n_participants; p++) {
        const weir_participant *participant = &schedule->participants[p];
        if (is_sent(pass, participant) && participant->reading.is_told &&
            !participant->reading.is_joined)
            return true;
    }
    return false;
}

/* ---- whom a wait is for ----------------------------------------------------------------------*/

static weir_status not_taken(const weir_group_pass *pass, double waited_s)
{
    const weir_replica *replica = pass->replica;
    const weir_catch_window *window = replica->caught.taken;
    return weir_fail(
        WEIR_ERR_TIMED_OUT,
        "timed out after %.1f s: GPU %u has not %s group %u of %zu of version %" PRIu64 " of %s",
        waited_s, weir_work_device(replica->work),
        replica->caught.is_copied ? "copied" : "verified", window->group,
        window->from->remote->n_groups, pass->discovery->version, window->from->remote->who);
}

static weir_status not_made(const weir_group_pass *pass, const weir_participant *whom,
                            double waited_s, const char *why)
{
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "timed out after %.1f s: %s has not made group %u of %zu of version %" PRIu64
                     "%s",
                     waited_s, whom->remote->who, weir_group_next(pass->replica, whom),
                     whom->remote->n_groups, pass->discovery->version, why);
}

weir_status weir_catch_time_out(const weir_group_pass *pass, double waited_s)
{
    const weir_schedule *schedule = &pass->replica->schedule;
    const weir_participant *turn = whose_turn(pass);
    if (pass->replica->caught.taken != NULL)
        return not_taken(pass, waited_s);
    for (size_t p = 0; p < schedule->n_participants; p++) {
        const weir_participant *one = &schedule->participants[p];
        if (!is_sent(pass, one) || one->reading.done)
            continue;
        if (!one->reading.is_told)
            return not_made(pass, one, waited_s, ": it has not begun to send it");
        if (!one->reading.is_joined)
            return weir_fail(WEIR_ERR_TIMED_OUT,
                             "timed out after %.1f s: not all have joined broadcast group %u of %s "
                             "for version %" PRIu64,
                             waited_s, weir_catch_waits_in(one->remote), one->remote->who,
                             pass->discovery->version);
    }
    const weir_catch_window *window = oldest_window(pass, false);
    const weir_catch_window *unknown = first_not_announced(pass);
    if (unknown != NULL && (window == NULL || unknown->turn <= window->turn))
        return not_made(pass, unknown->from, waited_s, "");
    if (window != NULL)
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out after %.1f s: the broadcast of group %u of %zu of version "
                         "%" PRIu64 " by %s does not end",
                         waited_s, window->group, window->from->remote->n_groups,
                         pass->discovery->version, window->from->remote->who);
    return not_made(pass, turn != NULL ? turn : pass->slowest, waited_s, "");
}
