/* SPDX-License-Identifier: Apache-2.0 */
/* redis_record.h - how a fleet's log lies in Redis, and every command that changes it.
 *
 *     weir:NAME:log              stream: records that are not in a snapshot, and those before them
 *     weir:NAME:head             hash: n and id of the last record
 *     weir:NAME:snapshot         hash: the store after record n: f, n, id, bytes, chunks 0, 1, ...
 *     weir:NAME:snapshot:ORIGIN  the same, while a directory writes it; expires
 *     weir:NAME:guard            who may write one; expires
 *
 * An entry says its number n and the id p of the one before it, so that a reader knows of every gap
 * and of every other history. Its id is its time, by Redis' clock. All changes are scripts: atomic,
 * and refused where Redis knows less than the directory that asks.
 */
#ifndef WEIR_DIRECTORY_REDIS_RECORD_H
#define WEIR_DIRECTORY_REDIS_RECORD_H

#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "directory/directory_log.h"

#define WEIR_REDIS_FORMAT "1"
#define WEIR_REDIS_FORMAT_RESTORED "r" /* "all that you have may be wrong: read the snapshot" */
#define WEIR_REDIS_ID_TEXT 44
#define WEIR_REDIS_CHUNK ((size_t)4 << 20)

typedef struct weir_redis_position {
    uint64_t n;                  /* of the last record, from 1; 0: there is none */
    uint64_t id_ms, id_sequence; /* its id */
} weir_redis_position;

void weir_redis_id_format(const weir_redis_position *position, char out[WEIR_REDIS_ID_TEXT]);
bool weir_redis_same_id(const weir_redis_position *a, const weir_redis_position *b);

typedef struct weir_redis_entry {
    weir_redis_position at, before; /* of before: the id alone */
    bool is_known, is_restored; /* of a format that this Weir reads; says that a log was restored */
    char format[16];
    uint64_t origin, number; /* who appended it, and as its how manieth */
    char method[128], trace_id[WEIR_TRACE_ID_BYTES];
    weir_log_record record; /* points into the reply, and to these */
} weir_redis_entry;

/* False: not an entry of a log. */
bool weir_redis_entry_read(const redisReply *reply, weir_redis_entry *out);
/* The entries of an answer to XREAD of one stream; NULL: none. */
const redisReply *weir_redis_entries(const redisReply *reply);
/* n and id, as HMGET gives them; of what is not there all is 0. */
bool weir_redis_position_read(const redisReply *reply, weir_redis_position *out);
/* An answer to TIME, in milliseconds; 0: it is none. */
uint64_t weir_redis_time_read(const redisReply *reply);
/* A number or text that is one. */
bool weir_redis_number_read(const redisReply *reply, uint64_t *out);

/* What HGETALL of a snapshot says. Gives *out_bytes (weir_free(); NULL when there is no snapshot,
 * and then *out is 0). ERR_FORMAT, ERR_UNSUPPORTED (of a newer Weir). */
weir_status weir_redis_snapshot_read(const redisReply *reply, weir_redis_position *out,
                                     unsigned char **out_bytes, size_t *out_n);

/* Scripts; their keys and arguments are beside each. */
extern const char
    weir_redis_append[]; /* log head; least-n format origin number method salt bytes trace */
extern const char weir_redis_claim[];   /* snapshot guard; newer-than-n origin ms */
extern const char weir_redis_commit[];  /* log head snapshot guard own; n id fields */
extern const char weir_redis_restore[]; /* log head snapshot guard own; n id fields */

#endif
