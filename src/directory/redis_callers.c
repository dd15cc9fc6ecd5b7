/* SPDX-License-Identifier: Apache-2.0 */
/* redis_callers.c - who waits for Redis: appends for their own record to come by, reads for all
 * that was in the log when they came.
 *
 * An append is answered when its record has come back, in its place among all others; by then Redis
 * has it on disk (appendfsync always). One question for the end of the log is in flight at a time,
 * and answers all reads that came before it was sent. An append whose fate is not known in time is
 * reported lost, and may still come: requests are idempotent, so that asking again is safe.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/redis_state.h"

#define APPENDS_MAX 65536

typedef struct waiting_append {
    uint64_t ticket, number;
    weir_deadline deadline;
    bool is_settled;
} waiting_append;

typedef struct waiting_reader {
    uint64_t ticket, number;
    weir_deadline deadline;
    bool has_target;
    uint64_t target; /* number of the record that must be applied */
    void (*then)(void *context, uint64_t ticket, uint64_t now_ms);
    void *context;
} waiting_reader;

void weir_redis_callers_init(weir_redis_log *log)
{
    log->appends.item_bytes = sizeof(waiting_append);
    log->readers.item_bytes = sizeof(waiting_reader);
}

void weir_redis_callers_close(weir_redis_log *log)
{
    weir_redis_queue_close(&log->appends);
    weir_redis_queue_close(&log->readers);
}

static weir_status cannot(const weir_redis_log *log)
{
    return weir_fail(WEIR_ERR_PEER_LOST, "%s", log->trouble);
}

/* ---- appends ---------------------------------------------------------------------------------*/

static void drop_settled(weir_redis_log *log)
{
    while (log->appends.n_items > 0 &&
           ((const waiting_append *)weir_redis_queue_at(&log->appends, 0))->is_settled)
        weir_redis_queue_pop(&log->appends);
}

uint64_t weir_redis_callers_settle(weir_redis_log *log, uint64_t number)
{
    if (log->appends.n_items == 0)
        return 0;
    uint64_t first = ((const waiting_append *)weir_redis_queue_at(&log->appends, 0))->number;
    if (number < first || number - first >= log->appends.n_items)
        return 0;
    waiting_append *one = weir_redis_queue_at(&log->appends, number - first);
    uint64_t ticket = one->is_settled ? 0 : one->ticket;
    one->is_settled = true;
    drop_settled(log);
    return ticket;
}

static void tell_lost(weir_redis_log *log, uint64_t ticket, const char *text)
{
    if (ticket != 0)
        log->reader.lost(log->reader.context, ticket, text);
}

static void on_appended(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    if (reply->type != REDIS_REPLY_ERROR)
        return; /* the record itself is what counts */
    if (strncmp(reply->str, "BEHIND", 6) == 0) {
        weir_redis_log_doubt(log, "it has lost records");
        return;
    }
    char text[WEIR_ERROR_TEXT];
    snprintf(text, sizeof(text), "%s refused: %s", log->url.who, reply->str);
    weir_error_one_line(text);
    tell_lost(log, weir_redis_callers_settle(log, number), text);
}

static bool send_record(weir_redis_log *log, const weir_log_record *record, uint64_t number)
{
    static const weir_redis_key keys[] = { WEIR_REDIS_LOG, WEIR_REDIS_HEAD };
    char least[24], number_text[24], salt[24];
    int n_least = snprintf(least, sizeof(least), "%" PRIu64, log->applied.n);
    int n_number = snprintf(number_text, sizeof(number_text), "%" PRIu64, number);
    int n_salt = snprintf(salt, sizeof(salt), "%016" PRIx64, record->salt);
    const char *trace_id = record->trace_id != NULL ? record->trace_id : "";
    const weir_redis_word arguments[] = {
        { least, (size_t)n_least },
        { WEIR_REDIS_FORMAT, sizeof(WEIR_REDIS_FORMAT) - 1 },
        { log->origin_text, 16 },
        { number_text, (size_t)n_number },
        { record->method, strlen(record->method) },
        { salt, (size_t)n_salt },
        { record->n_bytes != 0 ? record->bytes : (const void *)"", record->n_bytes },
        { trace_id, strlen(trace_id) },
    };
    return weir_redis_log_eval(log, on_appended, number, weir_redis_append, keys, 2, arguments, 8);
}

weir_status weir_redis_append_record(weir_directory_log *base, const weir_log_record *record,
                                     uint64_t ticket)
{
    weir_redis_log *log = (weir_redis_log *)base;
    if (log->phase != WEIR_REDIS_FOLLOWING)
        return cannot(log);
    if (strlen(record->method) >= sizeof(((weir_redis_entry *)NULL)->method))
        return weir_fail(WEIR_ERR_INVALID, "the name of method %.40s... is too long",
                         record->method);
    if (log->appends.n_items >= APPENDS_MAX)
        return weir_fail(WEIR_ERR_BUSY, "%s: %d changes are waiting for it", log->url.who,
                         APPENDS_MAX);
    waiting_append *one = weir_redis_queue_push(&log->appends);
    if (one == NULL)
        return WEIR_ERR_NO_MEMORY;
    *one = (waiting_append){ .ticket = ticket,
                             .number = log->n_appends + 1,
                             .deadline = weir_deadline_in(log->timeout_ms) };
    if (!send_record(log, record, one->number)) {
        log->appends.n_items--;
        return weir_fail(WEIR_ERR_PEER_LOST, "%s: the change cannot be sent", log->url.who);
    }
    log->n_appends++;
    return WEIR_OK;
}

void weir_redis_callers_lose(weir_redis_log *log, const char *text)
{
    while (log->appends.n_items > 0) {
        waiting_append one = *(const waiting_append *)weir_redis_queue_at(&log->appends, 0);
        weir_redis_queue_pop(&log->appends);
        if (!one.is_settled)
            tell_lost(log, one.ticket, text);
    }
}

/* ---- reads -----------------------------------------------------------------------------------*/

static void on_time(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    uint64_t now_ms = weir_redis_time_read(reply);
    (void)number;
    if (now_ms == 0) {
        weir_redis_log_bad_answer(log, "TIME", reply);
        return;
    }
    weir_redis_log_clock(log, now_ms);
    log->is_asking = false;
    if (log->n_readers > log->n_asked)
        weir_redis_callers_ask(log);
    weir_redis_callers_serve(log);
}

static void on_where(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    weir_redis_position end;
    (void)number;
    if (!weir_redis_position_read(reply, &end)) {
        weir_redis_log_bad_answer(log, "HMGET", reply);
        return;
    }
    if (end.n < log->asked_at.n ||
        (end.n == log->asked_at.n && !weir_redis_same_id(&end, &log->asked_at))) {
        weir_redis_log_doubt(log, "it has lost records");
        return;
    }
    for (size_t i = 0; i < log->readers.n_items; i++) {
        waiting_reader *one = weir_redis_queue_at(&log->readers, i);
        if (one->number > log->n_asked)
            break;
        if (!one->has_target)
            one->target = end.n;
        one->has_target = true;
    }
}

void weir_redis_callers_ask(weir_redis_log *log)
{
    if (log->is_asking || log->phase != WEIR_REDIS_FOLLOWING)
        return;
    log->n_asked = log->n_readers;
    log->asked_at = log->applied;
    log->ask_ns = weir_now_ns();
    log->is_asking = weir_redis_link_say(&log->command, on_where, "HMGET",
                                         log->keys[WEIR_REDIS_HEAD], "n", "id", NULL) &&
                     weir_redis_link_say(&log->command, on_time, "TIME", NULL);
}

weir_status weir_redis_catch_up(weir_directory_log *base, uint64_t ticket,
                                void (*then)(void *context, uint64_t ticket, uint64_t now_ms),
                                void *context)
{
    weir_redis_log *log = (weir_redis_log *)base;
    if (log->phase != WEIR_REDIS_FOLLOWING)
        return cannot(log);
    waiting_reader *one = weir_redis_queue_push(&log->readers);
    if (one == NULL)
        return WEIR_ERR_NO_MEMORY;
    *one = (waiting_reader){ .ticket = ticket,
                             .number = ++log->n_readers,
                             .deadline = weir_deadline_in(log->timeout_ms),
                             .then = then,
                             .context = context };
    weir_redis_callers_ask(log);
    return WEIR_OK;
}

void weir_redis_callers_serve(weir_redis_log *log)
{
    while (log->readers.n_items > 0) {
        waiting_reader one = *(const waiting_reader *)weir_redis_queue_at(&log->readers, 0);
        if (!one.has_target || log->applied.n < one.target)
            return;
        weir_redis_queue_pop(&log->readers);
        one.then(one.context, one.ticket, weir_redis_log_now_ms(&log->base));
    }
}

/* ---- time-outs -------------------------------------------------------------------------------*/

void weir_redis_callers_expire(weir_redis_log *log)
{
    char text[WEIR_ERROR_TEXT];
    if (log->appends.n_items + log->readers.n_items == 0)
        return;
    if (log->trouble[0] != '\0')
        snprintf(text, sizeof(text), "%s, for %.1f s", log->trouble, log->timeout_ms / 1e3);
    else
        snprintf(text, sizeof(text), "%s: no answer for %.1f s", log->url.who,
                 log->timeout_ms / 1e3);
    while (log->appends.n_items > 0) {
        waiting_append one = *(const waiting_append *)weir_redis_queue_at(&log->appends, 0);
        if (!one.is_settled && !weir_deadline_passed(one.deadline))
            break;
        weir_redis_queue_pop(&log->appends);
        if (!one.is_settled)
            tell_lost(log, one.ticket, text);
    }
    while (log->readers.n_items > 0) {
        waiting_reader one = *(const waiting_reader *)weir_redis_queue_at(&log->readers, 0);
        if (!weir_deadline_passed(one.deadline))
            break;
        weir_redis_queue_pop(&log->readers);
        tell_lost(log, one.ticket, text);
    }
}
