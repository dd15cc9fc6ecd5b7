/* SPDX-License-Identifier: Apache-2.0 */
/* redis_state.h - what the parts of the Redis log share: redis_log.c (connections and time),
 * redis_callers.c (appends and reads that wait), redis_follow.c (records come in), redis_snapshot.c
 * (the store goes out).
 *
 *     DOWN ──► GREETING ──► LOADING ───► JOINING ──► FOLLOWING
 *      ▲                └─► RESTORING ──┘                │
 *      └──────────────────────── drop ◄──────────────────┘
 */
#ifndef WEIR_DIRECTORY_REDIS_STATE_H
#define WEIR_DIRECTORY_REDIS_STATE_H

#include "base/clock.h"
#include "directory/directory_log.h"
#include "directory/redis_link.h"
#include "directory/redis_queue.h"
#include "directory/redis_record.h"
#include "directory/redis_url.h"

typedef enum weir_redis_phase {
    WEIR_REDIS_DOWN,      /* not connected, until retry_ns */
    WEIR_REDIS_GREETING,  /* what does Redis know? */
    WEIR_REDIS_LOADING,   /* its snapshot comes */
    WEIR_REDIS_RESTORING, /* it knows less than this directory, which tells it */
    WEIR_REDIS_JOINING,   /* the second connection, for reading, is made */
    WEIR_REDIS_FOLLOWING,
} weir_redis_phase;

typedef enum weir_redis_key {
    WEIR_REDIS_LOG,
    WEIR_REDIS_HEAD,
    WEIR_REDIS_SNAPSHOT,
    WEIR_REDIS_GUARD,
    WEIR_REDIS_OWN,
    WEIR_REDIS_KEYS,
} weir_redis_key;

#define WEIR_REDIS_KEY_TEXT 128
#define WEIR_REDIS_ADDRESSES 4

typedef struct weir_redis_upload {
    bool is_claimed; /* asked for, or under way */
    bool is_restore;
    unsigned char *bytes;
    size_t n_bytes, at;
    unsigned n_chunks;
    weir_redis_position position;
} weir_redis_upload;

typedef struct weir_redis_log {
    weir_directory_log base;
    weir_log_reader reader;
    weir_redis_url url;
    char keys[WEIR_REDIS_KEYS][WEIR_REDIS_KEY_TEXT];
    unsigned timeout_ms, probe_ms;
    uint64_t snapshot_every;
    char addresses[WEIR_REDIS_ADDRESSES][64];
    size_t n_addresses, next_address;
    uint64_t origin;
    char origin_text[17];

    weir_redis_events events;
    weir_redis_link command, follow;
    weir_redis_phase phase;
    uint64_t phase_ns, retry_ns;
    unsigned backoff_ms;
    char trouble[512];  /* "": it works */
    bool is_opening;    /* within weir_redis_log_open() */
    weir_status failed; /* of opening, with its line recorded */

    weir_redis_position applied, seen; /* seen: the last entry read, whatever it was */
    bool must_load;                    /* what is applied is not what leads to what Redis has */

    uint64_t clock_ms, clock_ns; /* Redis' clock when this process' said so */
    uint64_t given_ms;           /* the last time that was given out: it never goes back */

    weir_redis_queue appends, readers;
    uint64_t n_appends, n_readers; /* so far; the number of the last */
    bool is_asking;                /* where the log ends: for readers up to n_asked */
    uint64_t n_asked, ask_ns;
    weir_redis_position asked_at; /* what was applied then */

    weir_redis_upload upload;
    uint64_t snapshot_n, snapshot_bytes, bytes_since, claim_ns;
} weir_redis_log;

/* ---- redis_log.c -----------------------------------------------------------------------------*/

void weir_redis_log_enter(weir_redis_log *log, weir_redis_phase phase);
/* Ends both connections; begins anew after wait_ms. */
void weir_redis_log_drop(weir_redis_log *log, unsigned wait_ms, const char *why);
/* The same where what Redis has and what is applied do not fit: nobody can know any more what
 * became of the appends in flight. */
void weir_redis_log_doubt(weir_redis_log *log, const char *why);
/* The same where an answer is not what it must be. Says what was asked, and Redis' error. */
void weir_redis_log_bad_answer(weir_redis_log *log, const char *what, const redisReply *reply);
void weir_redis_log_clock(weir_redis_log *log, uint64_t redis_ms);
uint64_t weir_redis_log_now_ms(const weir_directory_log *base);

/* weir_redis_log_attach() to any event loop. */
weir_status weir_redis_log_watch(weir_directory_log *base, const weir_redis_events *events);

/* EVAL with these keys; arguments are strings or bytes. */
bool weir_redis_log_eval(weir_redis_log *log, weir_redis_answer answer, uint64_t number,
                         const char *script, const weir_redis_key *keys, size_t n_keys,
                         const weir_redis_word *arguments, size_t n_arguments);

/* ---- redis_callers.c -------------------------------------------------------------------------*/

void weir_redis_callers_init(weir_redis_log *log);
void weir_redis_callers_close(weir_redis_log *log);
weir_status weir_redis_append_record(weir_directory_log *base, const weir_log_record *record,
                                     uint64_t ticket);
weir_status weir_redis_catch_up(weir_directory_log *base, uint64_t ticket,
                                void (*then)(void *context, uint64_t ticket, uint64_t now_ms),
                                void *context);
/* Where does the log end? Unless that is being asked. */
void weir_redis_callers_ask(weir_redis_log *log);
/* The ticket of this directory's append, which is known to be in the log; 0: of nobody. */
uint64_t weir_redis_callers_settle(weir_redis_log *log, uint64_t number);
void weir_redis_callers_serve(weir_redis_log *log);  /* readers for whom enough is applied */
void weir_redis_callers_expire(weir_redis_log *log); /* those whose time is up */
void weir_redis_callers_lose(weir_redis_log *log, const char *text); /* all appends */

/* ---- redis_follow.c --------------------------------------------------------------------------*/

/* With the first connection made: finds out what is to be done, and does it. */
void weir_redis_follow_begin(weir_redis_log *log);
void weir_redis_follow_join(weir_redis_log *log);

/* ---- redis_snapshot.c ------------------------------------------------------------------------*/

void weir_redis_snapshot_consider(weir_redis_log *log); /* is one due? */
void weir_redis_snapshot_restore(weir_redis_log *log);
void weir_redis_snapshot_stop(weir_redis_log *log);

#endif
