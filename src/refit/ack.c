/* SPDX-License-Identifier: Apache-2.0 */
/* ack.c - stop 9 of 9: the replica says what it holds; the trainer may wait to hear it.
 *
 * Takes   an installed version and the timings of its stops.
 * Gives   the replica's entry in the directory, the lease given back.
 * Before  postprocess.c        After  the next version
 * Breaks  the directory: the install stands all the same. The keeper repeats the entry until it is
 *         known, and the lease expires by the directory's clock.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "refit/attempts.h"
#include "refit/replica.h"
#include "refit/window.h"

#define MIN_REFS 512u
#define MAX_REFUSALS 8u
#define SHORT_ANSWER_S 0.05
#define LOOK_FOR_END_MS 500u
#define HELD_SLICE_MS 500u /* between looks at who has failed with what it took */
#define LINE_BYTES 800u    /* of an error's line, for those that are named */

/* One flat JSON object: bytes and the seconds of every stop so far. */
static void write_note(const weir_report *report, char *note, size_t note_bytes)
{
    size_t used = (size_t)snprintf(note, note_bytes, "{\"bytes\":%" PRIu64, report->n_bytes);
    for (int stop = WEIR_STOP_DISCOVER; stop < WEIR_STOP_ACK && used < note_bytes; stop++)
        used += (size_t)snprintf(note + used, note_bytes - used, ",\"%s_s\":%.6f",
                                 weir_stop_name((weir_stop)stop), report->seconds[stop]);
    if (used + 2 <= note_bytes)
        snprintf(note + used, note_bytes - used, "}");
}

static weir_acknowledgement make_word(const weir_replica *replica, const weir_discovery *discovery)
{
    weir_acknowledgement word = { .version = discovery->version };
    memcpy(word.version_uid, discovery->uid, sizeof(word.version_uid));
    memcpy(word.lease_id, discovery->lease_id, sizeof(word.lease_id));
    memcpy(word.trace_id, replica->worker.trace_id, sizeof(word.trace_id));
    memcpy(word.host, replica->worker.host, sizeof(word.host));
    memcpy(word.read_from, discovery->peer.worker_id, sizeof(word.read_from));
    word.n_spans = weir_worker_spans(&replica->worker, word.spans);
    return word;
}

/* At once, or not now: a version that is in must not wait for a directory. */
static weir_status tell(weir_replica *replica, const weir_acknowledgement *word)
{
    weir_retry retry = { .deadline = weir_deadline_in(0) };
    for (;;) {
        weir_status status =
            weir_directory_acknowledge_version(replica->worker.client, word, replica->source_id);
        if (status != WEIR_OK)
            status = weir_worker_retry(&replica->worker, &retry, status);
        else
            return WEIR_OK;
        if (status != WEIR_OK)
            return status;
    }
}

/* By the entry alone, where the directory knows no more. */
static void tell_in_steps(weir_replica *replica, const weir_acknowledgement *word)
{
    weir_directory_client *client = replica->worker.client;
    bool told = weir_directory_publish_source(client, &word->source, replica->source_id) == WEIR_OK;
    if (!told)
        weir_log(WEIR_LOG_WARN, "version %" PRIu64 " is installed, but not yet acknowledged: %s",
                 word->version, weir_last_error());
    weir_keeper_announce(replica->worker.keeper, &word->source, !told);
    if (weir_directory_delete_lease(client, word->version_uid, word->lease_id,
                                    replica->worker.id) != WEIR_OK)
        weir_log(WEIR_LOG_WARN, "the lease on version %" PRIu64 " was not given back: %s",
                 word->version, weir_last_error());
}

static void say(weir_replica *replica, const weir_acknowledgement *word)
{
    weir_keeper *keeper = replica->worker.keeper;
    weir_keeper_pause(keeper);
    weir_keeper_hold(keeper, NULL);
    weir_status status = tell(replica, word);
    if (status == WEIR_ERR_UNSUPPORTED && weir_directory_is_plain(replica->worker.client)) {
        tell_in_steps(replica, word);
    } else {
        weir_keeper_announce(keeper, &word->source, false);
        if (status != WEIR_OK) {
            weir_log(WEIR_LOG_WARN, "what became of version %" PRIu64 " is not yet told: %s",
                     word->version, weir_last_error());
            weir_keeper_acknowledge(keeper, word);
        }
    }
    weir_keeper_resume(keeper);
}

void weir_stop_ack(weir_replica *replica, const weir_discovery *discovery,
                   const weir_report *report)
{
    weir_acknowledgement word = make_word(replica, discovery);
    word.source = weir_worker_entry(&replica->worker, discovery->version, discovery->uid,
                                    weir_manifest_service_address(replica->service));
    word.source.rank = replica->mesh_worker;
    snprintf(word.source.layout_signature, sizeof(word.source.layout_signature), "%s",
             replica->signature);
    write_note(report, word.source.note, sizeof(word.source.note));
    word.n_bytes = report->n_bytes;
    if (weir_holding_serves(replica, discovery->uid)) {
        memcpy(word.part, replica->part, sizeof(word.part));
        word.source.registry = &replica->worker.registry;
    }
    weir_group_keep(replica);
    say(replica, &word);
    replica->told = word.source;
    if (!weir_directory_is_plain(replica->worker.client))
        weir_keeper_held(replica->worker.keeper, &word, replica->source_id);
}

/* What it holds as before, or nothing that anybody could count on. */
static weir_source_record entry_as_it_is(const weir_replica *replica)
{
    if (replica->state == WEIR_REPLICA_HOLDING && replica->told.version_uid[0] != '\0')
        return replica->told;
    weir_source_record record = weir_worker_entry(&replica->worker, 0, "", "");
    record.status = WEIR_SOURCE_INITIALIZING;
    record.rank = replica->mesh_worker;
    return record;
}

void weir_stop_refuse(weir_replica *replica, const weir_discovery *discovery, weir_status status)
{
    weir_error_line cause;
    weir_error_save(&cause);
    if (weir_directory_is_plain(replica->worker.client)) {
        weir_discovery_release(replica, discovery);
        return;
    }
    weir_acknowledgement word = make_word(replica, discovery);
    word.source = entry_as_it_is(replica);
    word.status = status;
    snprintf(word.text, sizeof(word.text), "%.*s", (int)sizeof(word.text) - 1, cause.text);
    weir_group_leave(replica, discovery);
    say(replica, &word);
    weir_error_restore(&cause);
}

static void announce_alone(weir_replica *replica, const weir_source_record *record)
{
    weir_keeper *keeper = replica->worker.keeper;
    weir_keeper_pause(keeper);
    bool told = weir_directory_publish_source(replica->worker.client, record, replica->source_id) ==
                WEIR_OK;
    weir_keeper_announce(keeper, record, !told);
    weir_keeper_resume(keeper);
}

void weir_stop_take_back(weir_replica *replica, uint64_t version, const char *uid)
{
    weir_discovery left = { .version = version };
    snprintf(left.uid, sizeof(left.uid), "%s", uid);
    weir_acknowledgement word = make_word(replica, &left);
    word.source = entry_as_it_is(replica);
    word.status = WEIR_ERR_ABORTED;
    snprintf(word.text, sizeof(word.text), "it went back to what it held before");
    if (weir_directory_is_plain(replica->worker.client))
        announce_alone(replica, &word.source);
    else
        say(replica, &word);
}

/* ---- the trainer's end -----------------------------------------------------------------------*/

/* "" when this rank does not publish it any more. */
static const char *uid_of(const weir_trainer *trainer, uint64_t version)
{
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        if (trainer->slots[i].version == version)
            return trainer->slots[i].uid;
    }
    return "";
}

/* A replica that has left since has acknowledged all the same; but entries of dead ones from before
 * this training may have higher numbers, so only this very version counts of it. Nor is another
 * attempt at the number this one: what a directory of ModelExpress has of uids stays as it is. */
static bool is_ack(const weir_trainer *trainer, const weir_source_record *record, uint64_t version)
{
    const char *uid = uid_of(trainer, version);
    bool is_it = uid[0] != '\0' && strcmp(record->version_uid, uid) == 0;
    if (record->status == WEIR_SOURCE_STALE)
        return is_it;
    if (record->status != WEIR_SOURCE_READY)
        return false;
    bool by_uid = uid[0] != '\0' && weir_directory_is_plain(trainer->worker.client);
    return record->version > version || (record->version == version && (is_it || !by_uid));
}

/* One wait for acknowledgements. */
typedef struct wait {
    uint64_t version;
    unsigned n_wanted, n_holding, bound_ms;
    weir_retry retry;
    weir_patience patience;
    weir_source_ref *refs; /* for counting, max_refs */
    size_t max_refs;
    weir_deadline look_for_end_at;
} wait;

/* One entry of this run's replicas after another; *i goes on. IN_PROGRESS: there are no more. */
static weir_status next_replica(const weir_trainer *trainer, const wait *w, size_t n, size_t *i,
                                weir_source_record *out)
{
    weir_directory_client *client = trainer->worker.client;
    while (*i < n) {
        const weir_source_ref *ref = &w->refs[(*i)++];
        weir_status status = weir_directory_get_source(client, ref->source_id, ref->worker_id, out);
        if (status == WEIR_ERR_NOT_FOUND)
            continue; /* gone since it was listed */
        if (status != WEIR_OK)
            return status;
        if (strcmp(out->role, "inference_replica") == 0 &&
            strcmp(out->run, trainer->worker.run) == 0)
            return WEIR_OK;
    }
    return WEIR_IN_PROGRESS;
}

/* How many replicas of this run say that they hold the version or a later one, or said so of it. */
static weir_status count_acks(weir_trainer *trainer, wait *w)
{
    size_t n = 0, i = 0;
    unsigned n_holding = 0;
    weir_source_record record;
    const weir_source_wish wish = { trainer->worker.model, trainer->worker.run, "inference_replica",
                                    WEIR_SOURCE_UNKNOWN, w->version };
    weir_status status =
        weir_directory_list_role(trainer->worker.client, &wish, w->refs, w->max_refs, &n);
    while (status == WEIR_OK) {
        status = next_replica(trainer, w, n, &i, &record);
        n_holding += status == WEIR_OK && is_ack(trainer, &record, w->version);
    }
    if (status != WEIR_IN_PROGRESS)
        return status;
    w->n_holding = n_holding;
    return WEIR_OK;
}

/* Another rank may have ended the attempt, which such a directory has no state for. */
static weir_status check_ended(weir_trainer *trainer, wait *w)
{
    weir_attempt_end end;
    weir_version_record record;
    const char *uid = uid_of(trainer, w->version);
    if (uid[0] == '\0' || !weir_deadline_passed(w->look_for_end_at))
        return WEIR_OK;
    w->look_for_end_at = weir_deadline_in(LOOK_FOR_END_MS);
    weir_status status = weir_directory_get_version(trainer->worker.client, uid, &record);
    if (status == WEIR_ERR_NOT_FOUND || (status == WEIR_OK && record.state == WEIR_VERSION_READY))
        return WEIR_OK;
    const weir_end_wish wish = { uid, w->version, w->version, w->refs, w->max_refs };
    if (status == WEIR_OK)
        status = weir_attempt_find_end(&trainer->worker, &wish, &end);
    if (status != WEIR_OK)
        return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
    return weir_fail(WEIR_ERR_ABORTED,
                     "version %" PRIu64 " of %s was aborted: %s; trainer rank %u has to publish "
                     "again: a later version, or started anew with the weights that go with it",
                     w->version, trainer->worker.model, end.reason, trainer->rank);
}

static weir_status timed_out(const weir_trainer *trainer, const wait *w, const char *others)
{
    return weir_fail(
        WEIR_ERR_TIMED_OUT,
        "timed out after %.1f s: %u of %u replica workers hold version %" PRIu64 " of %s%s",
        w->bound_ms / 1e3, w->n_holding, w->n_wanted, w->version, trainer->worker.model, others);
}

/* The directory has lost the version, and went on without what this rank had published. */
static weir_status check_refused(weir_trainer *trainer, uint64_t version)
{
    char why[WEIR_NAME_BYTES];
    if (!weir_keeper_is_refused(trainer->worker.keeper, uid_of(trainer, version), why))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_ABORTED, "version %" PRIu64 " of %s was aborted: %s", version,
                     trainer->worker.model, why);
}

/* A line's text that grows as far as there is room: whole parts alone. */
typedef struct line {
    char text[LINE_BYTES];
    size_t used;
} line;

static void add_part(line *to, const char *part)
{
    size_t n = strlen(part);
    if (n >= sizeof(to->text) - to->used)
        return;
    memcpy(to->text + to->used, part, n + 1);
    to->used += n;
}

static void add_refusals(line *to, const weir_refusal *refusals, size_t n)
{
    char part[LINE_BYTES];
    for (size_t i = 0; i < n && i < MAX_REFUSALS; i++) {
        snprintf(part, sizeof(part), "; %.100s: %.250s", refusals[i].worker_id, refusals[i].text);
        add_part(to, part);
    }
}

/* "; replica-b-0: in transfer from rank-1, silent for 4.2 s, holds 6", "; replica-c-0: its
 * registration ended 2.0 s ago, held 6" */
static void describe_straggler(const weir_await_straggler *straggler, char *out, size_t n_out)
{
    char place[224], ended[64] = "", holds[48] = "";
    bool is_gone = straggler->ended_ms != 0;
    bool has_from = straggler->stop[0] != '\0' && straggler->from[0] != '\0';
    if (straggler->stop[0] != '\0')
        snprintf(place, sizeof(place), "in %.32s%s%.100s, silent for %.1f s", straggler->stop,
                 has_from ? " from " : "", straggler->from, straggler->silent_ms / 1e3);
    else if (is_gone)
        place[0] = '\0';
    else if (straggler->reads)
        snprintf(place, sizeof(place), "reads it, silent for %.1f s", straggler->silent_ms / 1e3);
    else
        snprintf(place, sizeof(place), "has not asked for it");
    if (is_gone)
        snprintf(ended, sizeof(ended), "%sits registration ended %.1f s ago",
                 place[0] != '\0' ? ", " : "", straggler->ended_ms / 1e3);
    if (straggler->has_version)
        snprintf(holds, sizeof(holds), ", %s %" PRIu64, is_gone ? "held" : "holds",
                 straggler->version);
    snprintf(out, n_out, "; %.100s: %s%s%s", straggler->worker_id, place, ended, holds);
}

static void add_stragglers(line *to, const weir_await_answer *answer)
{
    char part[LINE_BYTES];
    size_t n_named =
        answer->n_stragglers < WEIR_MAX_STRAGGLERS ? answer->n_stragglers : WEIR_MAX_STRAGGLERS;
    for (size_t i = 0; i < n_named; i++) {
        describe_straggler(&answer->stragglers[i], part, sizeof(part));
        add_part(to, part);
    }
    if (answer->n_stragglers > n_named) {
        snprintf(part, sizeof(part), "; and %zu more", answer->n_stragglers - n_named);
        add_part(to, part);
    }
}

/* Replicas that have an entry, and it is of another version: "; replica-b-0: holds 6". */
static void add_absent(line *to, const weir_trainer *trainer, const wait *w)
{
    char part[LINE_BYTES];
    size_t n = 0, i = 0, n_absent = 0;
    weir_source_record record;
    const weir_source_wish wish = { trainer->worker.model, trainer->worker.run, "inference_replica",
                                    WEIR_SOURCE_READY, 0 };
    if (weir_directory_list_role(trainer->worker.client, &wish, w->refs, w->max_refs, &n) !=
        WEIR_OK)
        return;
    while (next_replica(trainer, w, n, &i, &record) == WEIR_OK) {
        if (is_ack(trainer, &record, w->version) || ++n_absent > WEIR_MAX_STRAGGLERS)
            continue;
        snprintf(part, sizeof(part), "; %.100s: holds %" PRIu64 "%s", record.worker_id,
                 record.version, record.version == w->version ? ", but another attempt at it" : "");
        add_part(to, part);
    }
    if (n_absent > WEIR_MAX_STRAGGLERS) {
        snprintf(part, sizeof(part), "; and %zu more", n_absent - WEIR_MAX_STRAGGLERS);
        add_part(to, part);
    }
}

static weir_status nobody_else(const weir_trainer *trainer, const wait *w)
{
    line others = { .used = 0 };
    add_absent(&others, trainer, w);
    return timed_out(trainer, w, others.text);
}

/* By looking at all entries, again and again. */
static weir_status count_until_all(weir_trainer *trainer, wait *w)
{
    weir_retry *retry = &w->retry;
    weir_arena_reset(&trainer->scratch);
    w->max_refs = w->n_wanted < MIN_REFS / 2 ? MIN_REFS : 2 * (size_t)w->n_wanted;
    w->refs = weir_arena_alloc(&trainer->scratch, w->max_refs * sizeof(*w->refs));
    if (w->refs == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (weir_patience patience = { 0 };;) {
        weir_status status = count_acks(trainer, w);
        if (status == WEIR_OK && w->n_holding >= w->n_wanted)
            return WEIR_OK;
        if (status == WEIR_OK)
            status = check_refused(trainer, w->version);
        if (status == WEIR_OK)
            status = check_ended(trainer, w);
        if (status == WEIR_ERR_ABORTED)
            return status;
        if (status == WEIR_OK && weir_deadline_passed(retry->deadline))
            return nobody_else(trainer, w);
        status = status == WEIR_OK ? weir_worker_pause(&trainer->worker, &patience)
                                   : weir_worker_retry(&trainer->worker, retry, status);
        if (status != WEIR_OK)
            return status;
    }
}

/* Who has said why it does not hold the version, and who has said nothing. */
static weir_status name_missing(const weir_trainer *trainer, const wait *w,
                                const weir_refusal *refusals, const weir_await_answer *answer)
{
    line others = { .used = 0 };
    add_refusals(&others, refusals, answer->n_refusals);
    add_stragglers(&others, answer);
    return timed_out(trainer, w, others.text);
}

/* The directory has answered. IN_PROGRESS: wait on. */
static weir_status look_at_answer(weir_trainer *trainer, wait *w, const weir_refusal *refusals,
                                  const weir_await_answer *answer, double asked_s)
{
    w->n_holding = answer->n_holding;
    if (answer->n_holding >= w->n_wanted)
        return WEIR_OK;
    if (answer->state == WEIR_VERSION_ABORTED)
        return weir_fail(WEIR_ERR_ABORTED, "version %" PRIu64 " of %s was aborted: %s", w->version,
                         trainer->worker.model, answer->reason);
    weir_status status = weir_worker_check_cancelled(&trainer->worker);
    if (status != WEIR_OK)
        return status;
    if (weir_deadline_passed(w->retry.deadline))
        return name_missing(trainer, w, refusals, answer);
    w->retry.registered = false;
    if (weir_now_s() - asked_s < SHORT_ANSWER_S) /* somebody has refused it, and may try again */
        status = weir_worker_pause(&trainer->worker, &w->patience);
    return status == WEIR_OK ? WEIR_IN_PROGRESS : status;
}

/* The directory says when. IN_PROGRESS: it cannot, their entries have to be counted. */
static weir_status ask_until_all(weir_trainer *trainer, wait *w)
{
    weir_refusal refusals[MAX_REFUSALS];
    const char *uid = uid_of(trainer, w->version);
    if (uid[0] == '\0')
        return WEIR_IN_PROGRESS;
    for (;;) {
        weir_await_answer answer = { 0 };
        double asked_s = weir_now_s();
        weir_status status = weir_directory_await_replicas(
            trainer->worker.client, trainer->worker.model, uid, w->n_wanted,
            weir_deadline_left_ms(w->retry.deadline), refusals, MAX_REFUSALS, &answer);
        if (status == WEIR_ERR_NOT_FOUND)
            weir_keeper_forgotten(trainer->worker.keeper);
        if (status == WEIR_ERR_NOT_FOUND || status == WEIR_ERR_UNSUPPORTED)
            return WEIR_IN_PROGRESS;
        if (status >= WEIR_OK)
            weir_keeper_remember(trainer->worker.keeper, uid, &answer.marks);
        if (status >= WEIR_OK)
            status = look_at_answer(trainer, w, refusals, &answer, asked_s);
        else
            status = weir_worker_retry(&trainer->worker, &w->retry, status);
        if (status < WEIR_OK || (status == WEIR_OK && w->n_holding >= w->n_wanted))
            return status;
    }
}

static weir_status await_acks(weir_trainer *trainer, uint64_t version, unsigned n_wanted,
                              unsigned bound_ms, unsigned slice_ms)
{
    wait w = { .version = version,
               .n_wanted = n_wanted,
               .bound_ms = bound_ms,
               .retry = { .deadline = weir_deadline_in(slice_ms) } };
    weir_status status = ask_until_all(trainer, &w);
    return status == WEIR_IN_PROGRESS ? count_until_all(trainer, &w) : status;
}

/* Who has taken it all and then fails comes for it again, and nobody else can give it to him. */
static weir_status await_holders(weir_trainer *trainer, uint64_t version, unsigned n_workers,
                                 unsigned bound_ms)
{
    weir_deadline deadline = weir_deadline_in(bound_ms);
    for (;;) {
        unsigned left_ms = weir_deadline_left_ms(deadline);
        weir_status status = await_acks(trainer, version, n_workers, bound_ms,
                                        left_ms < HELD_SLICE_MS ? left_ms : HELD_SLICE_MS);
        if (status != WEIR_ERR_TIMED_OUT || weir_deadline_passed(deadline))
            return status;
        status = weir_window_check_held(trainer, version);
        if (status != WEIR_OK)
            return status;
    }
}

/* All workers of the engines have to hold it; then nobody can read it any more. */
static weir_status send_through_window(weir_trainer *trainer, uint64_t version, unsigned n_replicas,
                                       unsigned bound_ms)
{
    unsigned n_workers = n_replicas * weir_replica_mesh_workers(&trainer->replica_mesh);
    weir_status status = weir_window_serve(trainer, version, n_replicas, bound_ms);
    if (status == WEIR_OK)
        status = await_holders(trainer, version, n_workers, bound_ms);
    return status == WEIR_OK ? weir_slot_retire_sent(trainer, version) : status;
}

weir_status weir_trainer_wait(weir_trainer *trainer, uint64_t version, unsigned n_replicas,
                              unsigned timeout_ms)
{
    unsigned bound_ms = timeout_ms ? timeout_ms : trainer->worker.timeout_ms;
    bool is_pushed = trainer->pushes || trainer->asked_delivery == WEIR_DELIVERY_PUSH;
    if (is_pushed && !trainer->is_sharded)
        return weir_delivery_serve(trainer, version, n_replicas, bound_ms);
    if (is_pushed || weir_window_is_wanted(trainer))
        return send_through_window(trainer, version, n_replicas, bound_ms);
    return await_acks(trainer, version, n_replicas, bound_ms, bound_ms);
}
