/* SPDX-License-Identifier: Apache-2.0 */
/* window_cast.c - the trainer's half of stop 6 of 9, where the groups of a window are broadcast:
 * one round.
 *
 * Takes   a PUBLISHED version, of which no byte has been made.
 * Gives   every worker that is sent a part of it has taken it, verified, group by group.
 * Before  publish.c        After  the next version
 * Breaks  a weight that is not finite, a reader that dies, stalls or gives up, a broadcast that
 *         fails: this rank leaves all broadcast groups, all readers are told why, and nobody keeps
 *         a part of it. The next call begins afresh, with new groups.
 *
 * A group is converted while those before it are on the wire; its buffer is free when the broadcast
 * that it held last has ended here.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "refit/window.h"

#define LOOK_EVERY_US 20000u /* for who has come */
#define POLL_EVERY_US 50u    /* for a transport, which wakes nobody */
#define MAX_NAMED 3u
#define REASON_MS 300u
#define BOUND_TEXT 48
#define SILENT_NS ((uint64_t)1000000000) /* who is alive asks many times a second */

/* Why a wait has ended without what it was for. */
typedef struct cause {
    weir_status status;
    const char *words; /* of the transport; NULL: the bound has passed */
} cause;

/* Something to wait for. */
typedef struct goal {
    weir_status (*look)(weir_window_round *r, uint32_t group); /* IN_PROGRESS: not yet */
    /* The lock is held. */
    weir_status (*blame)(const weir_window_round *r, uint32_t group, const cause *why);
    /* Who has most to do yet; NULL: nobody that is known. The lock is held. */
    const weir_reader *(*waits_for)(const weir_window_round *r, uint32_t group);
    unsigned wait_us;
} goal;

/* `failed` of the transport, whose line the thread's last error is; IN_PROGRESS: the bound passed.
 */
static weir_status blame(const weir_window_round *r, const goal *wanted, uint32_t group,
                         weir_status failed)
{
    weir_error_line line;
    cause why = { WEIR_ERR_TIMED_OUT, NULL };
    weir_error_save(&line);
    if (failed != WEIR_IN_PROGRESS)
        why = (cause){ failed, line.text };
    return wanted->blame(r, group, &why);
}

/* The part of a wait that looks at the readers. OK: wait on. */
static weir_status look_at_readers(weir_window_round *r, const goal *wanted, uint32_t group,
                                   weir_status found)
{
    const weir_credits *credits = &r->window->credits;
    const weir_reader *lost = credits->sending ? weir_credits_lost(credits) : NULL;
    if (lost != NULL)
        return weir_window_gave_up(r, lost);
    if (found < WEIR_OK)
        return blame(r, wanted, group, found);
    weir_window_note_progress(r);
    if (weir_deadline_passed(r->deadline))
        return blame(r, wanted, group, WEIR_IN_PROGRESS);
    const weir_reader *slowest = wanted->waits_for(r, group);
    weir_worker_waits_for(&r->trainer->worker, slowest != NULL ? slowest->id : "");
    weir_window_await_change(r, wanted->wait_us);
    return WEIR_OK;
}

static weir_status await(weir_window_round *r, const goal *wanted, uint32_t group)
{
    for (;;) {
        weir_status found = wanted->look(r, group);
        if (found == WEIR_OK)
            return WEIR_OK;
        pthread_mutex_lock(&r->trainer->lock);
        weir_status status = look_at_readers(r, wanted, group, found);
        pthread_mutex_unlock(&r->trainer->lock);
        if (status == WEIR_OK)
            status = weir_worker_check_cancelled(&r->trainer->worker);
        if (status != WEIR_OK)
            return status;
    }
}

/* "timed out after 1.0 s: ", or nothing where the transport has words of its own. */
static const char *bound_of(const weir_window_round *r, const cause *why, char text[BOUND_TEXT])
{
    text[0] = '\0';
    if (why->words == NULL)
        snprintf(text, BOUND_TEXT, "timed out after %.1f s: ", r->timeout_ms / 1e3);
    return text;
}

/* ---- who is there ----------------------------------------------------------------------------*/

static weir_status look_gathered(weir_window_round *r, uint32_t group)
{
    weir_credit_gap gap;
    (void)group;
    pthread_mutex_lock(&r->trainer->lock);
    bool all = weir_credits_gathered(&r->window->credits, r->n_replicas, weir_now_ns(), &gap);
    pthread_mutex_unlock(&r->trainer->lock);
    return all ? WEIR_OK : WEIR_IN_PROGRESS;
}

static weir_status blame_absent(const weir_window_round *r, uint32_t group, const cause *why)
{
    weir_credit_gap gap = { 0 };
    char left[2 * WEIR_CREDIT_TEXT];
    (void)group;
    weir_credits_gathered(&r->window->credits, r->n_replicas, weir_now_ns(), &gap);
    return weir_fail(why->status,
                     "timed out after %.1f s: %u of %u replicas have a worker %u that has come for "
                     "version %" PRIu64 " of %s%s",
                     r->timeout_ms / 1e3, gap.n_there, r->n_replicas, gap.worker, r->version,
                     r->trainer->worker.model,
                     weir_window_who_left(r, gap.worker, left, sizeof(left)));
}

static const weir_reader *wait_for_anybody(const weir_window_round *r, uint32_t group)
{
    (void)r, (void)group;
    return NULL;
}

static const goal gathered = { look_gathered, blame_absent, wait_for_anybody, LOOK_EVERY_US };

/* The round begins, with all who are there. */
static weir_status gather(weir_window_round *r)
{
    weir_credits *credits = &r->window->credits;
    weir_status status = await(r, &gathered, 0);
    if (status != WEIR_OK)
        return status;
    pthread_mutex_lock(&r->trainer->lock);
    weir_credits_begin(credits, r->n_replicas, weir_now_ns());
    status = weir_cast_gather(r->window->cast, credits);
    pthread_mutex_unlock(&r->trainer->lock);
    weir_cast_sweep(r->window->cast);
    r->deadline = weir_deadline_in(r->timeout_ms);
    return status;
}

/* ---- who stands in its groups ----------------------------------------------------------------*/

/* The transport says which rank is missing a moment before the round is over for all. */
static weir_status look_joined(weir_window_round *r, uint32_t group)
{
    unsigned left_ms = weir_deadline_left_ms(r->deadline);
    (void)group;
    return weir_cast_joined(r->window->cast, left_ms - left_ms / 10);
}

static const weir_reader *wait_for_outside(const weir_window_round *r, uint32_t group)
{
    (void)group;
    return weir_credits_outside(&r->window->credits);
}

/* What a member that does not stand in its groups has to do with it. */
typedef enum suspicion {
    ABSENT, /* has not asked since the round began */
    SILENT, /* asks no more */
    OUTSIDE,
    N_SUSPICIONS
} suspicion;

static suspicion suspicion_of(const weir_reader *reader, uint64_t now_ns)
{
    if (!reader->began)
        return ABSENT;
    return now_ns - reader->seen_ns > SILENT_NS ? SILENT : OUTSIDE;
}

static void add_name(char *text, size_t text_bytes, const weir_reader *reader)
{
    size_t used = strlen(text);
    snprintf(text + used, text_bytes - used, "%s%s (worker %u of its engine)", used > 0 ? ", " : "",
             reader->id, reader->worker);
}

/* "a (worker 0 of its engine), b (worker 1 of its engine) and 2 more": how many. */
static size_t name_outside(const weir_window_round *r, suspicion of, char *text, size_t text_bytes)
{
    const weir_credits *credits = &r->window->credits;
    uint64_t now_ns = weir_now_ns();
    size_t n = 0;
    text[0] = '\0';
    for (size_t i = 0; i < credits->n_readers; i++) {
        const weir_reader *reader = &credits->readers[i];
        bool is_outside = reader->member && !reader->left && !reader->joined;
        if (is_outside && suspicion_of(reader, now_ns) == of && ++n <= MAX_NAMED)
            add_name(text, text_bytes, reader);
    }
    size_t used = strlen(text);
    if (n > MAX_NAMED)
        snprintf(text + used, text_bytes - used, " and %zu more", n - MAX_NAMED);
    return n;
}

/* Who is named by the transport, else those whose guilt is the likeliest: some transports let
 * nobody in before all have come. Of what fails at once nobody outside is guilty. */
static size_t find_outside(const weir_window_round *r, const cause *why, suspicion *out_of,
                           char *text, size_t text_bytes)
{
    const char *name = why->words != NULL ? weir_cast_missing(r->window->cast, why->words) : NULL;
    const weir_reader *named = name != NULL ? weir_credits_member(&r->window->credits, name) : NULL;
    unsigned end = why->status == WEIR_ERR_TIMED_OUT ? N_SUSPICIONS : 0;
    size_t n = 0;
    *out_of = OUTSIDE;
    text[0] = '\0';
    if (named != NULL) {
        *out_of = suspicion_of(named, weir_now_ns());
        add_name(text, text_bytes, named);
        return 1;
    }
    for (unsigned of = ABSENT; of < end && n == 0; of++) {
        *out_of = (suspicion)of;
        n = name_outside(r, *out_of, text, text_bytes);
    }
    return n;
}

static weir_status blame_outside(const weir_window_round *r, uint32_t group, const cause *why)
{
    static const char *const more[] = { ", nor asked since the round began", ", and asked no more",
                                        "" };
    char bound[BOUND_TEXT], names[MAX_NAMED * (WEIR_NAME_BYTES + 48)];
    const char *words = why->words != NULL ? why->words : "";
    suspicion of;
    size_t n = find_outside(r, why, &of, names, sizeof(names));
    (void)group;
    if (n == 0)
        return weir_fail(why->status,
                         "%s%s%sthe broadcast groups of version %" PRIu64 " of %s are not complete",
                         bound_of(r, why, bound), words, words[0] != '\0' ? ": " : "", r->version,
                         r->trainer->worker.model);
    return weir_fail(why->status,
                     "%s%s %s not joined the broadcast groups of version %" PRIu64 " of %s%s%s%s",
                     bound_of(r, why, bound), names, n == 1 ? "has" : "have", r->version,
                     r->trainer->worker.model, more[of], words[0] != '\0' ? ": " : "", words);
}

static const goal joined = { look_joined, blame_outside, wait_for_outside, POLL_EVERY_US };

/* ---- groups ----------------------------------------------------------------------------------*/

static weir_status look_sent(weir_window_round *r, uint32_t group)
{
    return weir_cast_sent(r->window->cast, group);
}

static const weir_reader *wait_for_taker(const weir_window_round *r, uint32_t group)
{
    weir_credit_gap gap = { 0 };
    return weir_credits_passed(&r->window->credits, group, &gap) ? NULL : gap.reader;
}

/* "a, b, c and 2 more": readers of the group that have not asked beyond it; "" when all have. */
static void name_takers(const weir_window_round *r, uint32_t group, char *text, size_t text_bytes)
{
    const weir_credits *credits = &r->window->credits;
    size_t used = 0, n = 0;
    text[0] = '\0';
    for (size_t i = 0; i < credits->n_readers; i++) {
        const weir_reader *reader = &credits->readers[i];
        const unsigned char *reads = credits->reads + (size_t)group * credits->n_workers;
        if (!reader->member || !reads[reader->worker] || reader->next > group)
            continue;
        if (++n <= MAX_NAMED && used < text_bytes)
            used += (size_t)snprintf(text + used, text_bytes - used, "%s%s (worker %u)",
                                     n > 1 ? ", " : "", reader->id, reader->worker);
    }
    if (n > MAX_NAMED && used < text_bytes)
        snprintf(text + used, text_bytes - used, " and %zu more", n - MAX_NAMED);
}

static weir_status blame_takers(const weir_window_round *r, uint32_t group, const cause *why)
{
    char bound[BOUND_TEXT], takers[MAX_NAMED * (WEIR_NAME_BYTES + 32)];
    const char *words = why->words != NULL ? why->words : "";
    name_takers(r, group, takers, sizeof(takers));
    return weir_fail(why->status,
                     "%s%s%sthe broadcast of group %u of %u of version %" PRIu64
                     " of %s has not ended: %s%s",
                     bound_of(r, why, bound), words, words[0] != '\0' ? ": " : "", group,
                     r->window->groups.n_groups, r->version, r->trainer->worker.model,
                     takers[0] != '\0' ? takers : "though all readers have asked for later ones",
                     takers[0] != '\0' ? " has not asked beyond it" : "");
}

static const goal sent = { look_sent, blame_takers, wait_for_taker, POLL_EVERY_US };

static weir_status end_group(weir_window_round *r, uint32_t group)
{
    weir_status status = await(r, &sent, group);
    if (status == WEIR_OK) {
        r->deadline = weir_deadline_in(r->timeout_ms);
        weir_window_group_done(r, group);
    }
    return status;
}

/* Frees the buffer, fills it, says so, and sends it on its way. */
static weir_status send_group(weir_window_round *r, uint32_t group)
{
    weir_trainer *trainer = r->trainer;
    uint32_t n_buffers = r->window->groups.n_buffers;
    weir_status status = group >= n_buffers ? end_group(r, group - n_buffers) : WEIR_OK;
    if (status == WEIR_OK && weir_cast_is_wanted(r->window->cast, group))
        status = weir_window_make(trainer, group);
    if (status != WEIR_OK)
        return status;
    pthread_mutex_lock(&trainer->lock);
    weir_credits_made(&r->window->credits);
    pthread_mutex_unlock(&trainer->lock);
    return weir_cast_send(r->window->cast, group, trainer->slots[group % n_buffers].data);
}

/* ---- the end ---------------------------------------------------------------------------------*/

static weir_status look_taken(weir_window_round *r, uint32_t group)
{
    weir_credit_gap gap;
    pthread_mutex_lock(&r->trainer->lock);
    bool all = weir_credits_passed(&r->window->credits, group, &gap);
    pthread_mutex_unlock(&r->trainer->lock);
    return all ? WEIR_OK : WEIR_IN_PROGRESS;
}

static weir_status blame_slow(const weir_window_round *r, uint32_t group, const cause *why)
{
    const weir_reader *slow = wait_for_taker(r, group);
    return weir_fail(why->status,
                     "timed out after %.1f s: %s (worker %u of its engine) has not taken all of "
                     "version %" PRIu64 " of %s: the last that it asked for is group %u of %u",
                     r->timeout_ms / 1e3, slow != NULL ? slow->id : "a reader",
                     slow != NULL ? slow->worker : 0, r->version, r->trainer->worker.model,
                     slow != NULL ? slow->next : 0, group);
}

static const goal taken = { look_taken, blame_slow, wait_for_taker, LOOK_EVERY_US };

static weir_status send_all(weir_window_round *r)
{
    uint32_t n_groups = r->window->groups.n_groups, n_buffers = r->window->groups.n_buffers;
    weir_status status = await(r, &joined, 0);
    for (uint32_t g = 0; g < n_groups && status == WEIR_OK; g++)
        status = send_group(r, g);
    for (uint32_t g = n_groups > n_buffers ? n_groups - n_buffers : 0;
         g < n_groups && status == WEIR_OK; g++)
        status = end_group(r, g);
    return status == WEIR_OK ? await(r, &taken, n_groups) : status;
}

/* A transport notices who leaves before that one's reason is here. */
static weir_status find_reason(weir_window_round *r, weir_status failed)
{
    weir_error_line line;
    weir_deadline deadline = weir_deadline_in(REASON_MS);
    const weir_reader *lost = NULL;
    weir_error_save(&line);
    pthread_mutex_lock(&r->trainer->lock);
    while ((lost = weir_credits_lost(&r->window->credits)) == NULL &&
           !weir_deadline_passed(deadline))
        weir_window_await_change(r, LOOK_EVERY_US);
    weir_error_restore(&line);
    if (lost != NULL)
        failed = weir_window_gave_up(r, lost);
    pthread_mutex_unlock(&r->trainer->lock);
    return failed;
}

weir_status weir_window_cast(weir_window_round *r)
{
    weir_trainer *trainer = r->trainer;
    weir_worker_progress(&trainer->worker, WEIR_STOP_TRANSFER, r->version, 0, 0);
    weir_status status = gather(r);
    if (status == WEIR_OK)
        status = send_all(r);
    if (status == WEIR_ERR_PEER_LOST)
        status = find_reason(r, status);
    if (status != WEIR_OK)
        weir_error_prefix("trainer rank %u", trainer->rank);
    pthread_mutex_lock(&trainer->lock);
    bool has_begun = r->window->credits.sending;
    if (has_begun) /* from here on nobody is told of its broadcast groups */
        weir_credits_end(&r->window->credits, status != WEIR_OK ? weir_last_error() : NULL);
    pthread_mutex_unlock(&trainer->lock);
    if (status == WEIR_OK || !has_begun) /* those of the version before stand */
        return status;
    weir_error_line why;
    weir_error_save(&why);
    weir_cast_abort(r->window->cast);
    weir_error_restore(&why);
    return status;
}
