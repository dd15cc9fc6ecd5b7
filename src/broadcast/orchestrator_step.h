/* SPDX-License-Identifier: Apache-2.0 */
/* orchestrator_step.h - what to ask each server next, given what each has said: one version through
 * a fleet of inference servers.
 *
 * Pure: no clock, no socket. Whoever drives it asks for the next call of each server, makes it, and
 * tells what it came to; and says when the time for what goes on is up.
 *
 *     READY ──► PAUSE ──► INSTALL ──────────────► RESUME ──► OVER
 *       │         │          │                      ▲
 *       └─────────┴──────────┴──► BACK ─────────────┘     all on the old version again
 *
 * On the way back those that hold the round's version are asked to revert by themselves; who cannot
 * is told to install the old version, which its trainer may still have.
 *
 * A round that only joins goes from READY to RESUME where all hold one and the same thing: somebody
 * may have left them paused.
 *
 * All servers are in one phase: none installs before all are paused, none resumes before it is
 * known what each of them holds. Every server that is resumed in one round holds the same version,
 * whole, and has said so after the last order that it was given; an order that was not answered may
 * still be carried out, so a server that has not answered one is not resumed in that round.
 */
#ifndef WEIR_BROADCAST_ORCHESTRATOR_STEP_H
#define WEIR_BROADCAST_ORCHESTRATOR_STEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/run_config.h"

/* ---- calls -----------------------------------------------------------------------------------*/

typedef enum weir_server_order {
    WEIR_ASK_NOTHING = 0,
    WEIR_ASK_HELD,    /* GET /weight_info */
    WEIR_ASK_JOIN,    /* POST /init_broadcaster */
    WEIR_ASK_PAUSE,   /* POST /pause */
    WEIR_ASK_INSTALL, /* POST /update_weights, of weir_round_wanted() */
    WEIR_ASK_RESUME,  /* POST /resume */
    WEIR_ASK_REVERT,  /* POST /revert: to what it held before */
    WEIR_N_ORDERS
} weir_server_order;

typedef enum weir_call_end {
    WEIR_CALL_OK = 0,
    WEIR_CALL_REFUSED, /* an HTTP error: it has done nothing, or has failed to */
    WEIR_CALL_ABSENT,  /* 404: it knows no such call */
    WEIR_CALL_GARBLED, /* an answer that is none */
    WEIR_CALL_UNSENT,  /* no connection: it knows nothing of the call */
    WEIR_CALL_LOST,    /* the connection went while it had it */
    WEIR_CALL_LATE,    /* no answer within the bound */
    WEIR_CALL_WRONG,   /* it says OK, and then that it is not so */
    WEIR_N_CALL_ENDS
} weir_call_end;

typedef enum weir_held_kind {
    WEIR_HELD_UNKNOWN = 0,
    WEIR_HELD_NONE,  /* no whole version, or it is about to change */
    WEIR_HELD_START, /* what the engine came with */
    WEIR_HELD_VERSION,
} weir_held_kind;

/* What a server holds, as far as it can be served. */
typedef struct weir_held_key {
    weir_held_kind held;
    uint64_t version; /* of HELD_VERSION */
} weir_held_key;
bool weir_held_equal(const weir_held_key *a, const weir_held_key *b);

/* What a call came to; `holds` and the two below of an answer to ASK_HELD. */
typedef struct weir_server_answer {
    weir_call_end end;
    weir_held_key holds;
    bool tells_paused, is_paused;
    bool is_busy;   /* an order from before is being carried out */
    bool has_left;  /* it says that it is of no run, or of another */
    bool may_again; /* REFUSED, through no fault of its own */
    bool is_gone;   /* REFUSED: what is to be installed cannot be had any more */
} weir_server_answer;

/* ---- a fleet ---------------------------------------------------------------------------------*/

typedef enum weir_round_phase {
    WEIR_ROUND_READY = 0, /* all answer, and have joined */
    WEIR_ROUND_PAUSE,
    WEIR_ROUND_INSTALL,
    WEIR_ROUND_BACK,
    WEIR_ROUND_RESUME,
    WEIR_ROUND_OVER,
} weir_round_phase;

typedef struct weir_round_server {
    bool is_absent;     /* has no /init_broadcaster: left out for good */
    bool is_dropped;    /* out of the run, until it answers and has joined anew */
    bool has_joined;    /* since this fleet knows it */
    bool is_paused;     /* as it said last */
    bool must_look;     /* `holds` may not be true any more */
    bool is_busy;       /* it is in the midst of an order from before: looked at until it is not */
    bool is_unanswered; /* an order to install, or to go back, may still be carried out */
    weir_held_key holds;
    /* Of this round. */
    weir_server_order asked; /* of the call that is out; NOTHING: none is */
    unsigned tried;          /* orders of this try, as bits */
    unsigned n_tries;        /* begun anew */
    bool has_failed;         /* it is not where the round wanted it */
    bool wants_last_look;    /* and is asked once more what it holds */
    bool is_given_up;        /* nothing more is asked of it, and it is not resumed */
    bool has_resumed;
    bool is_blameless; /* it has failed through no fault of its own */
    weir_server_order failed_at;
    weir_call_end failed_by;
} weir_round_server;

#define WEIR_ROUND_MOST_SERVERS 1024u

typedef struct weir_round {
    weir_run_policy policy;
    weir_round_server *servers; /* the caller's, zeroed at first */
    size_t n_servers;
    weir_held_key old; /* what the fleet is on; UNKNOWN: not said yet */
    weir_round_phase phase;
    bool joins_only, time_is_up;
    bool has_installed;   /* else the round's version is not the fleet's */
    weir_held_key goal;   /* the round's version; UNKNOWN: it only joins */
    weir_held_key wanted; /* of all servers: the round's version, or the old one */
} weir_round;

void weir_round_open(weir_round *round, weir_run_policy policy, weir_round_server *servers,
                     size_t n_servers);
/* Every server is asked what it holds and joins, whether or not it had. */
void weir_round_begin_join(weir_round *round);
void weir_round_begin(weir_round *round, uint64_t version);

/* What is to be asked of a server at this moment; NOTHING while a call is out, or nothing is wanted
 * of it in this phase. */
weir_server_order weir_round_next(const weir_round *round, size_t server);
/* That call is out. */
void weir_round_ask(weir_round *round, size_t server);
/* And what it came to. */
void weir_round_hear(weir_round *round, size_t server, const weir_server_answer *answer);
/* The policy wait goes on trying no longer, and who is busy is waited for no longer. */
void weir_round_end_waiting(weir_round *round);
/* One that is busy is waited for no longer: it has failed. */
void weir_round_leave_busy(weir_round *round, size_t server);

/* ---- between rounds: servers are looked at ----------------------------------------------------*/

/* ASK_HELD, or ASK_PAUSE of one that runs on something else than the fleet; NOTHING of one that is
 * left out for good. Nobody else's call may be out. */
weir_server_order weir_round_idle_next(const weir_round *round, size_t server);
/* What that call came to. */
void weir_round_idle_hear(weir_round *round, size_t server, weir_server_order order,
                          const weir_server_answer *answer);
/* It runs on, or holds, something else than the fleet. */
bool weir_round_is_stray(const weir_round *round, size_t server);

/* ---- ends ------------------------------------------------------------------------------------*/

bool weir_round_is_over(const weir_round *round);
/* Of a round that is over: the version (or a joined run) is where the policy wants it to be. */
bool weir_round_is_done(const weir_round *round);
/* In this round; else it is absent, dropped or failed. */
bool weir_round_takes_part(const weir_round *round, size_t server);

#endif
