/* SPDX-License-Identifier: Apache-2.0 */
/* redis_record.c - scripts, and what Redis answers, read with care: other programs may write to it.
 */
#include "directory/redis_record.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

/* Gives the number of the record. */
const char weir_redis_append[] =
    "local n = tonumber(redis.call('HGET', KEYS[2], 'n') or '0')\n"
    "if n < tonumber(ARGV[1]) then return redis.error_reply('BEHIND it has lost records') end\n"
    "local p = redis.call('HGET', KEYS[2], 'id') or '0-0'\n"
    "n = string.format('%.0f', n + 1)\n"
    "local t = (ARGV[8] or '') ~= '' and {'t', ARGV[8]} or {}\n"
    "local id = redis.call('XADD', KEYS[1], '*', 'f', ARGV[2], 'n', n, 'p', p, 'o', ARGV[3],"
    " 'q', ARGV[4], 'm', ARGV[5], 's', ARGV[6], 'b', ARGV[7], unpack(t))\n"
    "redis.call('HSET', KEYS[2], 'n', n, 'id', id)\n"
    "return n\n";

/* Gives the number of a snapshot newer than that, -1: the caller shall make one, -2: somebody is at
 * it. */
const char weir_redis_claim[] =
    "local n = tonumber(redis.call('HGET', KEYS[1], 'n') or '0')\n"
    "if n > tonumber(ARGV[1]) then return n end\n"
    "if redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then return -1 end\n"
    "return -2\n";

/* Gives 1: it is the snapshot, 0: there was a newer one, -1: it is not of this log. What came after
 * the snapshot before is kept in the log, for readers that are a little behind. */
const char weir_redis_commit[] =
    "local log, head, snapshot, guard, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]\n"
    "redis.call('DEL', guard)\n"
    "local old = redis.call('HMGET', snapshot, 'n', 'id')\n"
    "local is_newer = tonumber(ARGV[1]) > tonumber(old[1] or '0')\n"
    "local is_whole = redis.call('HLEN', own) == tonumber(ARGV[3])\n"
    "local is_ours = #redis.call('XRANGE', log, ARGV[2], ARGV[2]) == 1\n"
    "if not (is_newer and is_whole and is_ours) then\n"
    "  redis.call('DEL', own)\n"
    "  return is_newer and -1 or 0\n"
    "end\n"
    "redis.call('RENAME', own, snapshot)\n"
    "redis.call('PERSIST', snapshot)\n"
    "redis.call('XTRIM', log, 'MINID', old[2] or '0-0')\n"
    "return 1\n";

/* Gives 1: the log goes on from here, 0: Redis knows as much or more, -1: it did not come whole. */
const char weir_redis_restore[] =
    "local log, head, snapshot, guard, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]\n"
    "local n = tonumber(redis.call('HGET', head, 'n') or '0')\n"
    "local is_whole = redis.call('HLEN', own) == tonumber(ARGV[3])\n"
    "if n >= tonumber(ARGV[1]) or not is_whole then\n"
    "  redis.call('DEL', own)\n"
    "  return is_whole and 0 or -1\n"
    "end\n"
    "redis.call('RENAME', own, snapshot)\n"
    "redis.call('PERSIST', snapshot)\n"
    "redis.call('DEL', log, guard)\n"
    "redis.call('XADD', log, ARGV[2], 'f', 'r', 'n', ARGV[1], 'p', '0-0')\n"
    "redis.call('HSET', head, 'n', ARGV[1], 'id', ARGV[2])\n"
    "return 1\n";

void weir_redis_id_format(const weir_redis_position *position, char out[WEIR_REDIS_ID_TEXT])
{
    snprintf(out, WEIR_REDIS_ID_TEXT, "%" PRIu64 "-%" PRIu64, position->id_ms,
             position->id_sequence);
}

bool weir_redis_same_id(const weir_redis_position *a, const weir_redis_position *b)
{
    return a->id_ms == b->id_ms && a->id_sequence == b->id_sequence;
}

/* Decimal digits, and nothing that does not fit. */
static bool read_digits(const char *text, size_t n, uint64_t *out)
{
    uint64_t number = 0;
    if (n == 0)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9' || __builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(text[i] - '0'), &number))
            return false;
    }
    *out = number;
    return true;
}

static bool read_hex(const redisReply *reply, uint64_t *out)
{
    uint64_t number = 0;
    if (reply->len != 16)
        return false;
    for (size_t i = 0; i < 16; i++) {
        char c = reply->str[i];
        bool is_digit = c >= '0' && c <= '9';
        if (!is_digit && (c < 'a' || c > 'f'))
            return false;
        number = number << 4 | (uint64_t)(is_digit ? c - '0' : c - 'a' + 10);
    }
    *out = number;
    return true;
}

static bool is_text(const redisReply *reply)
{
    return reply->type == REDIS_REPLY_STRING || reply->type == REDIS_REPLY_STATUS;
}

static bool is_array(const redisReply *reply, size_t n)
{
    return reply->type == REDIS_REPLY_ARRAY && reply->elements == n;
}

bool weir_redis_number_read(const redisReply *reply, uint64_t *out)
{
    if (reply->type == REDIS_REPLY_INTEGER && reply->integer >= 0) {
        *out = (uint64_t)reply->integer;
        return true;
    }
    return is_text(reply) && read_digits(reply->str, (size_t)reply->len, out);
}

static bool read_id(const redisReply *reply, weir_redis_position *out)
{
    const char *dash = is_text(reply) ? memchr(reply->str, '-', (size_t)reply->len) : NULL;
    if (dash == NULL)
        return false;
    size_t n_ms = (size_t)(dash - reply->str);
    return read_digits(reply->str, n_ms, &out->id_ms) &&
           read_digits(dash + 1, (size_t)reply->len - n_ms - 1, &out->id_sequence);
}

bool weir_redis_position_read(const redisReply *reply, weir_redis_position *out)
{
    weir_redis_position position = { 0 };
    if (!is_array(reply, 2))
        return false;
    bool is_there = reply->element[0]->type != REDIS_REPLY_NIL;
    if (is_there && (!weir_redis_number_read(reply->element[0], &position.n) ||
                     !read_id(reply->element[1], &position)))
        return false;
    *out = position;
    return true;
}

uint64_t weir_redis_time_read(const redisReply *reply)
{
    uint64_t seconds, microseconds;
    if (!is_array(reply, 2) || !weir_redis_number_read(reply->element[0], &seconds) ||
        !weir_redis_number_read(reply->element[1], &microseconds) ||
        seconds > UINT64_MAX / 1000 - 1 || microseconds >= 1000000)
        return 0;
    return seconds * 1000 + microseconds / 1000;
}

/* ---- entries ---------------------------------------------------------------------------------*/

const redisReply *weir_redis_entries(const redisReply *reply)
{
    if (!is_array(reply, 1) || !is_array(reply->element[0], 2))
        return NULL;
    const redisReply *entries = reply->element[0]->element[1];
    return entries->type == REDIS_REPLY_ARRAY ? entries : NULL;
}

/* The value of a field with a name of one letter; NULL: there is none. */
static const redisReply *find(const redisReply *fields, char name)
{
    for (size_t i = 0; i + 1 < fields->elements; i += 2) {
        const redisReply *field = fields->element[i], *value = fields->element[i + 1];
        if (is_text(field) && is_text(value) && field->len == 1 && field->str[0] == name)
            return value;
    }
    return NULL;
}

static bool copy_text(const redisReply *reply, char *out, size_t n_out)
{
    if (reply == NULL || (size_t)reply->len >= n_out)
        return false;
    memcpy(out, reply->str, (size_t)reply->len);
    out[reply->len] = '\0';
    return strlen(out) == (size_t)reply->len;
}

static bool read_record(const redisReply *fields, weir_redis_entry *out)
{
    const redisReply *origin = find(fields, 'o'), *number = find(fields, 'q');
    const redisReply *salt = find(fields, 's'), *bytes = find(fields, 'b');
    if (origin == NULL || number == NULL || salt == NULL || bytes == NULL)
        return false;
    if (!copy_text(find(fields, 't'), out->trace_id, sizeof(out->trace_id)) ||
        !weir_trace_id_is_valid(out->trace_id))
        out->trace_id[0] = '\0';
    out->record.bytes = (const unsigned char *)bytes->str;
    out->record.n_bytes = (size_t)bytes->len;
    return copy_text(find(fields, 'm'), out->method, sizeof(out->method)) &&
           read_hex(origin, &out->origin) && weir_redis_number_read(number, &out->number) &&
           read_hex(salt, &out->record.salt);
}

bool weir_redis_entry_read(const redisReply *reply, weir_redis_entry *out)
{
    memset(out, 0, sizeof(*out));
    if (!is_array(reply, 2) || !read_id(reply->element[0], &out->at) ||
        reply->element[1]->type != REDIS_REPLY_ARRAY)
        return false;
    const redisReply *fields = reply->element[1];
    const redisReply *n = find(fields, 'n'), *before = find(fields, 'p');
    if (n == NULL || before == NULL || !weir_redis_number_read(n, &out->at.n) ||
        !read_id(before, &out->before) ||
        !copy_text(find(fields, 'f'), out->format, sizeof(out->format)))
        return false;
    weir_error_one_line(out->format);
    out->is_restored = strcmp(out->format, WEIR_REDIS_FORMAT_RESTORED) == 0;
    out->is_known = strcmp(out->format, WEIR_REDIS_FORMAT) == 0;
    return !out->is_known || read_record(fields, out);
}

/* ---- snapshots -------------------------------------------------------------------------------*/

static const redisReply *find_text(const redisReply *fields, const char *name)
{
    for (size_t i = 0; i + 1 < fields->elements; i += 2) {
        const redisReply *field = fields->element[i], *value = fields->element[i + 1];
        if (is_text(field) && is_text(value) && strcmp(field->str, name) == 0)
            return value;
    }
    return NULL;
}

static weir_status damaged(void)
{
    return weir_fail(WEIR_ERR_FORMAT, "the snapshot in Redis is damaged");
}

/* False unless they are n_bytes in all. out NULL: looks, before memory is taken for them. */
static bool join_chunks(const redisReply *fields, unsigned char *out, uint64_t n_bytes)
{
    uint64_t at = 0;
    for (unsigned i = 0; at < n_bytes; i++) {
        char name[16];
        snprintf(name, sizeof(name), "%u", i);
        const redisReply *chunk = find_text(fields, name);
        if (chunk == NULL || chunk->len <= 0 || (uint64_t)chunk->len > n_bytes - at)
            return false;
        if (out != NULL)
            memcpy(out + at, chunk->str, (size_t)chunk->len);
        at += (uint64_t)chunk->len;
    }
    return true;
}

weir_status weir_redis_snapshot_read(const redisReply *reply, weir_redis_position *out,
                                     unsigned char **out_bytes, size_t *out_n)
{
    if (reply->type != REDIS_REPLY_ARRAY)
        return damaged();
    weir_redis_position at = { 0 };
    unsigned char *bytes = NULL;
    uint64_t n_bytes = 0;
    if (reply->elements != 0) {
        const redisReply *format = find_text(reply, "f"), *n = find_text(reply, "n");
        const redisReply *id = find_text(reply, "id"), *size = find_text(reply, "bytes");
        if (format == NULL)
            return damaged();
        if (strcmp(format->str, WEIR_REDIS_FORMAT) != 0)
            return weir_fail(WEIR_ERR_UNSUPPORTED,
                             "the snapshot in Redis is of another Weir: format %.16s, not %s",
                             format->str, WEIR_REDIS_FORMAT);
        if (n == NULL || id == NULL || size == NULL || !weir_redis_number_read(n, &at.n) ||
            !read_id(id, &at) || !weir_redis_number_read(size, &n_bytes) ||
            !join_chunks(reply, NULL, n_bytes))
            return damaged();
        bytes = weir_alloc(n_bytes);
        if (bytes == NULL)
            return WEIR_ERR_NO_MEMORY;
        join_chunks(reply, bytes, n_bytes);
    }
    *out = at;
    *out_bytes = bytes;
    *out_n = n_bytes;
    return WEIR_OK;
}
