/* SPDX-License-Identifier: Apache-2.0 */
/* redis_snapshot.c - the store goes to Redis: now and then, so that the log stays short, and when
 * Redis has lost what it had.
 *
 * Goes chunk by chunk under a name of its own that expires, one chunk in flight, so that appends
 * pass between them; a script then makes it the snapshot, or drops it where a newer one is there.
 * One directory does it at a time.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "directory/redis_state.h"

#define CLAIM_MS "30000"
#define OWN_MS "60000"
#define AGAIN_NS ((uint64_t)1000000000)
#define BYTES_BETWEEN ((uint64_t)64 << 20)

static void send_more(weir_redis_log *log);

void weir_redis_snapshot_stop(weir_redis_log *log)
{
    weir_free(log->upload.bytes);
    log->upload = (weir_redis_upload){ .bytes = NULL };
}

/* Of a snapshot: the log goes on without. Of a restore: all begins anew. */
static void give_up(weir_redis_log *log, const char *what, const redisReply *reply)
{
    bool is_restore = log->upload.is_restore;
    weir_redis_snapshot_stop(log);
    log->claim_ns = weir_now_ns() + AGAIN_NS;
    if (is_restore)
        weir_redis_log_bad_answer(log, what, reply);
    else
        weir_log(WEIR_LOG_WARN, "%s: no snapshot could be written: %s%s%s", log->url.who, what,
                 reply != NULL && reply->type == REDIS_REPLY_ERROR ? ": " : "",
                 reply != NULL && reply->type == REDIS_REPLY_ERROR ? reply->str : "");
}

/* ---- it is whole -----------------------------------------------------------------------------*/

static void on_committed(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    weir_redis_upload *upload = &log->upload;
    (void)number;
    if (!upload->is_claimed)
        return;
    if (reply->type != REDIS_REPLY_INTEGER || reply->integer < 0) {
        give_up(log, "the script that puts it in place refused", reply);
        return;
    }
    bool is_restore = upload->is_restore;
    if (reply->integer == 1) {
        log->snapshot_n = upload->position.n;
        log->snapshot_bytes = upload->n_bytes;
        log->bytes_since = 0;
    }
    weir_redis_snapshot_stop(log);
    if (!is_restore)
        return;
    if (reply->integer == 1) {
        weir_log(WEIR_LOG_ERROR, "%s: what it had lost was given back to it", log->url.who);
        weir_redis_follow_join(log);
    } else {
        weir_redis_log_drop(log, log->backoff_ms, "another directory has restored it");
    }
}

static void commit(weir_redis_log *log)
{
    static const weir_redis_key keys[] = { WEIR_REDIS_LOG, WEIR_REDIS_HEAD, WEIR_REDIS_SNAPSHOT,
                                           WEIR_REDIS_GUARD, WEIR_REDIS_OWN };
    const weir_redis_upload *upload = &log->upload;
    char n[24], id[WEIR_REDIS_ID_TEXT], fields[16];
    snprintf(n, sizeof(n), "%" PRIu64, upload->position.n);
    weir_redis_id_format(&upload->position, id);
    snprintf(fields, sizeof(fields), "%u", upload->n_chunks + 4); /* f, n, id, bytes */
    const weir_redis_word arguments[] = { { n, strlen(n) },
                                          { id, strlen(id) },
                                          { fields, strlen(fields) } };
    const char *script = upload->is_restore ? weir_redis_restore : weir_redis_commit;
    if (!weir_redis_log_eval(log, on_committed, 0, script, keys, 5, arguments, 3))
        give_up(log, "out of memory", NULL);
}

/* ---- its bytes -------------------------------------------------------------------------------*/

static void on_sent(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    (void)number;
    if (!log->upload.is_claimed)
        return;
    if (reply->type == REDIS_REPLY_ERROR)
        give_up(log, "its bytes were refused", reply);
    else
        send_more(log);
}

static void send_more(weir_redis_log *log)
{
    weir_redis_upload *upload = &log->upload;
    const char *own = log->keys[WEIR_REDIS_OWN];
    if (upload->at == upload->n_bytes) {
        commit(log);
        return;
    }
    size_t n = upload->n_bytes - upload->at;
    if (n > WEIR_REDIS_CHUNK)
        n = WEIR_REDIS_CHUNK;
    char name[16];
    snprintf(name, sizeof(name), "%u", upload->n_chunks);
    const weir_redis_word words[] = { { "HSET", 4 },
                                      { own, strlen(own) },
                                      { name, strlen(name) },
                                      { upload->bytes + upload->at, n } };
    upload->at += n;
    upload->n_chunks++;
    if (!weir_redis_link_send(&log->command, on_sent, 0, words, 4) ||
        !weir_redis_link_say(&log->command, NULL, "PEXPIRE", own, OWN_MS, NULL))
        give_up(log, "out of memory", NULL);
}

static void begin(weir_redis_log *log, bool is_restore)
{
    weir_redis_upload *upload = &log->upload;
    const char *own = log->keys[WEIR_REDIS_OWN];
    char n[24], id[WEIR_REDIS_ID_TEXT], n_bytes[24];
    *upload = (weir_redis_upload){ .is_claimed = true,
                                   .is_restore = is_restore,
                                   .position = log->applied };
    if (log->reader.save(log->reader.context, &upload->bytes, &upload->n_bytes) != WEIR_OK) {
        upload->bytes = NULL;
        give_up(log, weir_last_error(), NULL);
        return;
    }
    snprintf(n, sizeof(n), "%" PRIu64, upload->position.n);
    weir_redis_id_format(&upload->position, id);
    snprintf(n_bytes, sizeof(n_bytes), "%zu", upload->n_bytes);
    if (!weir_redis_link_say(&log->command, NULL, "DEL", own, NULL) ||
        !weir_redis_link_say(&log->command, on_sent, "HSET", own, "f", WEIR_REDIS_FORMAT, "n", n,
                             "id", id, "bytes", n_bytes, NULL) ||
        !weir_redis_link_say(&log->command, NULL, "PEXPIRE", own, OWN_MS, NULL))
        give_up(log, "out of memory", NULL);
}

void weir_redis_snapshot_restore(weir_redis_log *log)
{
    weir_redis_log_enter(log, WEIR_REDIS_RESTORING);
    begin(log, true);
}

/* ---- is one due? -----------------------------------------------------------------------------*/

static void on_claimed(void *owner, const redisReply *reply, uint64_t number)
{
    weir_redis_log *log = owner;
    (void)number;
    if (!log->upload.is_claimed)
        return;
    if (reply->type != REDIS_REPLY_INTEGER) {
        give_up(log, "the script that claims it refused", reply);
        return;
    }
    if (reply->integer == -1) {
        begin(log, false);
        return;
    }
    if (reply->integer >= 0) { /* another directory has written one */
        log->snapshot_n = (uint64_t)reply->integer;
        log->bytes_since = 0;
    }
    weir_redis_snapshot_stop(log);
    log->claim_ns = weir_now_ns() + AGAIN_NS;
}

void weir_redis_snapshot_consider(weir_redis_log *log)
{
    static const weir_redis_key keys[] = { WEIR_REDIS_SNAPSHOT, WEIR_REDIS_GUARD };
    uint64_t n_since = log->applied.n > log->snapshot_n ? log->applied.n - log->snapshot_n : 0;
    uint64_t bytes =
        log->snapshot_bytes > BYTES_BETWEEN ? log->snapshot_bytes : (uint64_t)BYTES_BETWEEN;
    if (n_since < log->snapshot_every && (log->bytes_since < bytes || n_since == 0))
        return;
    if (log->phase != WEIR_REDIS_FOLLOWING || log->upload.is_claimed ||
        weir_now_ns() < log->claim_ns)
        return;
    char n[24];
    snprintf(n, sizeof(n), "%" PRIu64, log->snapshot_n);
    const weir_redis_word arguments[] = { { n, strlen(n) },
                                          { log->origin_text, 16 },
                                          { CLAIM_MS, sizeof(CLAIM_MS) - 1 } };
    log->upload.is_claimed =
        weir_redis_log_eval(log, on_claimed, 0, weir_redis_claim, keys, 2, arguments, 3);
}
