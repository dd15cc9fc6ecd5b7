/* SPDX-License-Identifier: Apache-2.0 */
/* redis_follow.c - what Redis has comes in: a snapshot to begin with, then record after record.
 *
 * Before anything is asked of a Redis that has come back, what it knows is compared with what is
 * applied here. Less: this directory's state is given back to it. Another history, or records that
 * have been cut off while this directory was away: its snapshot is loaded instead.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/env.h"
#include "base/error.h"
#include "base/log.h"
#include "directory/redis_state.h"

#define READ_COUNT "256"

static void read_on(weir_redis_log *log);

/* ---- records ---------------------------------------------------------------------------------*/

static void apply(weir_redis_log *log, weir_redis_entry *entry)
{
    uint64_t ticket = 0;
    log->applied = entry->at;
    log->bytes_since += entry->record.n_bytes;
    if (entry->at.id_ms > log->given_ms)
        log->given_ms = entry->at.id_ms;
    if (!entry->is_known) {
        weir_log(WEIR_LOG_WARN, "%s: record %llu is of a newer Weir (format %s): not applied",
                 log->url.who, (unsigned long long)entry->at.n, entry->format);
        return;
    }
    if (entry->origin == log->origin)
        ticket = weir_redis_callers_settle(log, entry->number);
    entry->record.method = entry->method;
    entry->record.trace_id = entry->trace_id;
    log->reader.apply(log->reader.context, &entry->record, entry->at.id_ms, ticket);
}

static bool is_before(const weir_redis_position *a, const weir_redis_position *b)
{
    return a->id_ms < b->id_ms || (a->id_ms == b->id_ms && a->id_sequence < b->id_sequence);
}

/* False: reading on makes no sense. */
static bool take(weir_redis_log *log, const redisReply *reply)
{
    weir_redis_entry entry;
    char why[128];
    if (!weir_redis_entry_read(reply, &entry)) {
        weir_log(WEIR_LOG_WARN, "%s: %s holds an entry that is not Weir's: passed over",
                 log->url.who, log->keys[WEIR_REDIS_LOG]);
        if (is_before(&log->seen, &entry.at)) /* its id was read */
            log->seen = entry.at;
        return true;
    }
    log->seen = entry.at;
    if (!is_before(&log->applied, &entry.at))
        return true;
    if (entry.is_restored || entry.at.n != log->applied.n + 1 ||
        !weir_redis_same_id(&entry.before, &log->applied)) {
        snprintf(why, sizeof(why),
                 "what follows record %llu is not there any more: its snapshot is loaded",
                 (unsigned long long)log->applied.n);
        log->must_load = true;
        weir_redis_log_doubt(log, why);
        return false;
    }
    apply(log, &entry);
    return true;
}

static void on_entries(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    const redisReply *entries = weir_redis_entries(reply);
    (void)number;
    if (entries == NULL && reply->type != REDIS_REPLY_NIL) {
        weir_redis_log_bad_answer(log, "XREAD", reply);
        return;
    }
    weir_redis_position seen = log->seen;
    for (size_t i = 0; entries != NULL && i < entries->elements; i++) {
        if (!take(log, entries->element[i]))
            return;
    }
    if (entries != NULL && weir_redis_same_id(&seen, &log->seen)) {
        weir_redis_log_bad_answer(log, "XREAD", reply); /* the same would come again at once */
        return;
    }
    weir_redis_callers_serve(log);
    weir_redis_snapshot_consider(log);
    if (log->phase == WEIR_REDIS_FOLLOWING)
        read_on(log);
}

static void read_on(weir_redis_log *log)
{
    char id[WEIR_REDIS_ID_TEXT], block_ms[16];
    weir_redis_id_format(&log->seen, id);
    snprintf(block_ms, sizeof(block_ms), "%u", log->probe_ms);
    if (!weir_redis_link_say(&log->follow, on_entries, "XREAD", "COUNT", READ_COUNT, "BLOCK",
                             block_ms, "STREAMS", log->keys[WEIR_REDIS_LOG], id, NULL))
        weir_redis_log_drop(log, log->backoff_ms, "out of memory");
}

static void on_joined(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    (void)number;
    if (reply->type == REDIS_REPLY_ERROR) {
        weir_redis_log_bad_answer(log, "PING", reply);
        return;
    }
    if (!log->is_opening)
        weir_log(WEIR_LOG_WARN, "%s: works again", log->url.who);
    weir_redis_log_enter(log, WEIR_REDIS_FOLLOWING);
    log->trouble[0] = '\0';
    log->seen = log->applied;
    log->is_asking = false;
    read_on(log);
    weir_redis_callers_ask(log);
}

void weir_redis_follow_join(weir_redis_log *log)
{
    weir_redis_log_enter(log, WEIR_REDIS_JOINING);
    if (weir_redis_link_connect(&log->follow, &log->url, log->addresses[log->next_address]))
        weir_redis_link_say(&log->follow, on_joined, "PING", NULL);
}

/* ---- what is there to begin with -------------------------------------------------------------*/

static void on_snapshot(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    weir_redis_position position;
    unsigned char *bytes = NULL;
    size_t n_bytes = 0;
    (void)number;
    if (reply->type == REDIS_REPLY_ERROR) {
        weir_redis_log_bad_answer(log, "HGETALL", reply);
        return;
    }
    weir_status status = weir_redis_snapshot_read(reply, &position, &bytes, &n_bytes);
    if (status == WEIR_OK)
        status = log->reader.load(log->reader.context, bytes, n_bytes);
    weir_free(bytes);
    if (status != WEIR_OK) {
        if (log->is_opening)
            log->failed = status;
        weir_redis_log_drop(log, log->backoff_ms, weir_last_error());
        return;
    }
    log->must_load = false;
    log->applied = position;
    log->snapshot_n = position.n;
    log->snapshot_bytes = n_bytes;
    log->bytes_since = 0;
    if (position.id_ms > log->given_ms)
        log->given_ms = position.id_ms;
    weir_redis_follow_join(log);
}

static void on_position(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    weir_redis_position end;
    (void)number;
    if (!weir_redis_position_read(reply, &end)) {
        weir_redis_log_bad_answer(log, "HMGET", reply);
        return;
    }
    if (end.n < log->applied.n) {
        weir_log(WEIR_LOG_ERROR,
                 "%s has lost what it had acknowledged: it knows %llu records of %llu. This "
                 "directory's state is given back to it",
                 log->url.who, (unsigned long long)end.n, (unsigned long long)log->applied.n);
        weir_redis_snapshot_restore(log);
        return;
    }
    if (!log->must_load && (end.n > log->applied.n || weir_redis_same_id(&end, &log->applied))) {
        weir_redis_follow_join(log);
        return;
    }
    weir_redis_log_enter(log, WEIR_REDIS_LOADING);
    if (!weir_redis_link_say(&log->command, on_snapshot, "HGETALL", log->keys[WEIR_REDIS_SNAPSHOT],
                             NULL))
        weir_redis_log_drop(log, log->backoff_ms, "out of memory");
}

/* ---- does it keep what it acknowledges? ------------------------------------------------------*/

static const char *setting(const redisReply *reply, const char *name)
{
    for (size_t i = 0; i + 1 < reply->elements; i += 2) {
        if (reply->element[i]->type == REDIS_REPLY_STRING &&
            reply->element[i + 1]->type == REDIS_REPLY_STRING &&
            strcmp(reply->element[i]->str, name) == 0)
            return reply->element[i + 1]->str;
    }
    return "";
}

static void on_settings(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    (void)number;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements == 0) {
        weir_log(WEIR_LOG_WARN,
                 "%s does not say whether it keeps what it acknowledges (CONFIG GET is refused): "
                 "it must have appendonly yes and appendfsync always",
                 log->url.who);
        return;
    }
    if (strcmp(setting(reply, "appendonly"), "yes") != 0) {
        if (weir_env_unsigned(WEIR_ENV_REDIS_VOLATILE, 0) != 0)
            return;
        log->failed =
            weir_fail(WEIR_ERR_REFUSED,
                      "%s keeps nothing on disk (appendonly no), and would lose what it has "
                      "acknowledged: set appendonly yes and appendfsync always in its "
                      "configuration, or WEIR_REDIS_VOLATILE=1 where that does not matter",
                      log->url.who);
        return;
    }
    if (strcmp(setting(reply, "appendfsync"), "always") != 0)
        weir_log(WEIR_LOG_WARN,
                 "%s has appendfsync %s: a crash loses what it acknowledged in the last seconds; "
                 "always keeps it",
                 log->url.who, setting(reply, "appendfsync"));
}

void weir_redis_follow_begin(weir_redis_log *log)
{
    weir_redis_log_enter(log, WEIR_REDIS_GREETING);
    if (!weir_redis_link_connect(&log->command, &log->url, log->addresses[log->next_address]))
        return;
    bool is_sent = true;
    if (log->is_opening)
        is_sent = weir_redis_link_say(&log->command, on_settings, "CONFIG", "GET", "append*", NULL);
    if (!is_sent || !weir_redis_link_say(&log->command, on_position, "HMGET",
                                         log->keys[WEIR_REDIS_HEAD], "n", "id", NULL))
        weir_redis_log_drop(log, log->backoff_ms, "out of memory");
}
