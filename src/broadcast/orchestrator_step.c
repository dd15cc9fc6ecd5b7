/* SPDX-License-Identifier: Apache-2.0 */
/* orchestrator_step.c - the rules of orchestrator_step.h. */
#include "broadcast/orchestrator_step.h"

static unsigned bit_of(weir_server_order order)
{
    return 1u << order;
}

bool weir_held_equal(const weir_held_key *a, const weir_held_key *b)
{
    if (a->held != b->held || a->held == WEIR_HELD_UNKNOWN || a->held == WEIR_HELD_NONE)
        return false;
    return a->held == WEIR_HELD_START || a->version == b->version;
}

static bool holds_wanted(const weir_round *round, const weir_round_server *server)
{
    return weir_held_equal(&server->holds, &round->wanted);
}

static bool is_whole(const weir_round_server *server)
{
    return server->holds.held == WEIR_HELD_START || server->holds.held == WEIR_HELD_VERSION;
}

/* ---- what is next ----------------------------------------------------------------------------*/

/* On the way to the round's version. */
static weir_server_order next_forward(const weir_round *round, const weir_round_server *server)
{
    if (server->has_failed)
        return server->wants_last_look ? WEIR_ASK_HELD : WEIR_ASK_NOTHING;
    if (server->must_look || server->is_busy)
        return WEIR_ASK_HELD;
    if (!server->has_joined)
        return WEIR_ASK_JOIN;
    if (round->phase == WEIR_ROUND_INSTALL && holds_wanted(round, server) && !server->is_unanswered)
        return WEIR_ASK_NOTHING;
    if (round->phase != WEIR_ROUND_READY && !server->is_paused)
        return WEIR_ASK_PAUSE;
    return round->phase == WEIR_ROUND_INSTALL ? WEIR_ASK_INSTALL : WEIR_ASK_NOTHING;
}

/* What replaced the old version has it beside still, and the trainer may have it. */
static weir_server_order next_back(const weir_round *round, const weir_round_server *server)
{
    if (server->must_look)
        return WEIR_ASK_HELD;
    if (holds_wanted(round, server) || !server->has_joined)
        return WEIR_ASK_NOTHING;
    bool can_revert = weir_held_equal(&server->holds, &round->goal) &&
                      round->wanted.held >= WEIR_HELD_START &&
                      (server->tried & bit_of(WEIR_ASK_REVERT)) == 0;
    if (!can_revert && round->wanted.held != WEIR_HELD_VERSION)
        return WEIR_ASK_NOTHING;
    if (!server->is_paused)
        return WEIR_ASK_PAUSE;
    return can_revert ? WEIR_ASK_REVERT : WEIR_ASK_INSTALL;
}

static weir_server_order next_resume(const weir_round *round, const weir_round_server *server)
{
    if (server->must_look)
        return WEIR_ASK_HELD;
    return holds_wanted(round, server) && server->is_paused ? WEIR_ASK_RESUME : WEIR_ASK_NOTHING;
}

static weir_server_order wanted_of(const weir_round *round, const weir_round_server *server)
{
    if (server->is_absent)
        return WEIR_ASK_NOTHING;
    if (server->is_given_up)
        return server->wants_last_look ? WEIR_ASK_HELD : WEIR_ASK_NOTHING;
    switch (round->phase) {
    case WEIR_ROUND_BACK:
        return next_back(round, server);
    case WEIR_ROUND_RESUME:
        return next_resume(round, server);
    case WEIR_ROUND_OVER:
        return WEIR_ASK_NOTHING;
    default:
        return next_forward(round, server);
    }
}

weir_server_order weir_round_next(const weir_round *round, size_t server)
{
    const weir_round_server *asked = &round->servers[server];
    return asked->asked != WEIR_ASK_NOTHING ? WEIR_ASK_NOTHING : wanted_of(round, asked);
}

/* ---- phases ----------------------------------------------------------------------------------*/

bool weir_round_takes_part(const weir_round *round, size_t server)
{
    const weir_round_server *one = &round->servers[server];
    return !one->is_absent && !one->is_dropped && !one->has_failed;
}

static bool is_settled(const weir_round *round)
{
    for (size_t i = 0; i < round->n_servers; i++) {
        if (round->servers[i].asked != WEIR_ASK_NOTHING ||
            wanted_of(round, &round->servers[i]) != WEIR_ASK_NOTHING)
            return false;
    }
    return true;
}

static void count(const weir_round *round, size_t *out_good, size_t *out_failed)
{
    *out_good = *out_failed = 0;
    for (size_t i = 0; i < round->n_servers; i++) {
        const weir_round_server *server = &round->servers[i];
        *out_failed += !server->is_absent && server->has_failed;
        *out_good += !server->is_absent && !server->has_failed;
    }
}

static bool can_go_on(const weir_round *round)
{
    size_t n_good, n_failed;
    count(round, &n_good, &n_failed);
    return n_good > 0 && (n_failed == 0 || round->policy == WEIR_RUN_DROP);
}

/* Whoever is out of the run joins anew before he is in it again. */
static void drop_failed(weir_round *round)
{
    for (size_t i = 0; i < round->n_servers; i++) {
        weir_round_server *server = &round->servers[i];
        if (round->policy == WEIR_RUN_DROP && !server->is_absent)
            server->is_dropped = server->has_failed;
        if (server->is_dropped)
            server->has_joined = false;
    }
}

static bool is_newer(const weir_held_key *a, const weir_held_key *than)
{
    if (a->held != than->held)
        return a->held > than->held;
    return a->held == WEIR_HELD_VERSION && a->version > than->version;
}

/* Of a fleet that somebody else has driven: what its servers run on, not what was left paused. */
static void find_old(weir_round *round)
{
    for (int with_paused = 0; with_paused < 2 && round->old.held == WEIR_HELD_UNKNOWN;
         with_paused++) {
        for (size_t i = 0; i < round->n_servers; i++) {
            const weir_round_server *server = &round->servers[i];
            if (!server->must_look && is_whole(server) && (with_paused || !server->is_paused) &&
                is_newer(&server->holds, &round->old))
                round->old = server->holds;
        }
    }
}

static void enter_back(weir_round *round)
{
    round->phase = WEIR_ROUND_BACK;
    round->wanted = round->old;
    for (size_t i = 0; i < round->n_servers; i++) {
        weir_round_server *server = &round->servers[i];
        server->tried = 0;
        server->is_given_up =
            server->must_look || server->is_unanswered || !is_whole(server) || server->is_dropped;
    }
}

static void enter_resume(weir_round *round)
{
    round->phase = WEIR_ROUND_RESUME;
    for (size_t i = 0; i < round->n_servers; i++) {
        weir_round_server *server = &round->servers[i];
        server->tried = 0;
        server->is_given_up |= server->must_look || server->is_unanswered ||
                               (server->is_dropped && !round->joins_only) ||
                               (round->has_installed && server->has_failed);
    }
}

/* Whether every server is known to hold one and the same whole thing, so that nobody has a reason
 * to stay paused. One that a run goes on without, and that nobody can ask, has no say. */
static bool find_common(const weir_round *round, weir_held_key *out)
{
    *out = (weir_held_key){ .held = WEIR_HELD_UNKNOWN };
    for (size_t i = 0; i < round->n_servers; i++) {
        const weir_round_server *server = &round->servers[i];
        if (server->is_absent || (server->is_dropped && server->must_look))
            continue;
        if (server->must_look || server->is_unanswered || !is_whole(server))
            return false;
        if (out->held == WEIR_HELD_UNKNOWN)
            *out = server->holds;
        if (!weir_held_equal(out, &server->holds))
            return false;
    }
    return out->held != WEIR_HELD_UNKNOWN;
}

/* Whether or not they could join. */
static void enter_after_join(weir_round *round)
{
    weir_held_key common;
    if (can_go_on(round))
        find_old(round);
    drop_failed(round);
    round->phase = WEIR_ROUND_OVER;
    if (!find_common(round, &common))
        return;
    round->wanted = common;
    enter_resume(round);
}

/* Of a version that is the fleet's: who does not run on it has failed, whatever it answered. */
static void enter_over(weir_round *round)
{
    for (size_t i = 0; i < round->n_servers && round->has_installed; i++) {
        weir_round_server *server = &round->servers[i];
        server->has_failed |=
            server->must_look || server->is_paused || !holds_wanted(round, server);
    }
    drop_failed(round);
    round->phase = WEIR_ROUND_OVER;
}

static void enter_next(weir_round *round)
{
    if (round->phase == WEIR_ROUND_RESUME) {
        enter_over(round);
        return;
    }
    if (round->joins_only) {
        enter_after_join(round);
        return;
    }
    if (round->phase == WEIR_ROUND_READY)
        find_old(round);
    if (round->phase == WEIR_ROUND_BACK) {
        enter_resume(round);
        return;
    }
    if (!can_go_on(round)) {
        enter_back(round);
        return;
    }
    drop_failed(round);
    if (round->phase == WEIR_ROUND_INSTALL) {
        round->has_installed = true;
        round->old = round->wanted;
        enter_resume(round);
    } else {
        round->phase++;
    }
}

static void advance(weir_round *round)
{
    while (round->phase != WEIR_ROUND_OVER && is_settled(round))
        enter_next(round);
}

/* ---- answers ---------------------------------------------------------------------------------*/

/* A version that is sent to all at once fails for all of them: those that are gone on with are who
 * it was not the fault of. */
static bool tries_again(const weir_round *round, const weir_server_answer *answer)
{
    bool by_policy = (round->policy == WEIR_RUN_WAIT && !answer->is_gone) ||
                     (round->policy == WEIR_RUN_DROP && answer->may_again);
    return by_policy && !round->time_is_up && round->phase != WEIR_ROUND_BACK;
}

static void fail(weir_round *round, weir_round_server *server, weir_server_order order,
                 const weir_server_answer *answer)
{
    bool is_last_look = server->wants_last_look;
    server->wants_last_look = false;
    server->must_look = true;
    if (is_last_look)
        return;
    server->failed_at = order;
    server->failed_by = answer->end;
    if (!answer->is_gone || server->n_tries == 0) /* that it is gone is no news of whose fault */
        server->is_blameless = answer->may_again || answer->is_gone;
    if (tries_again(round, answer)) {
        server->n_tries++;
        server->tried = 0;
        return;
    }
    server->has_failed = true;
    server->wants_last_look = order != WEIR_ASK_HELD;
    server->is_given_up = round->phase >= WEIR_ROUND_BACK;
}

static void hear_held(weir_round_server *server, const weir_server_answer *answer)
{
    server->must_look = server->wants_last_look = false;
    server->is_busy = answer->is_busy;
    server->holds = answer->holds;
    if (answer->tells_paused)
        server->is_paused = answer->is_paused;
    if (answer->has_left)
        server->has_joined = server->is_unanswered = false;
}

/* The server did what it was asked to. */
static void hear_done(weir_round_server *server, weir_server_order order)
{
    switch (order) {
    case WEIR_ASK_JOIN:
        server->has_joined = server->must_look = true;
        break;
    case WEIR_ASK_PAUSE:
        server->is_paused = true;
        break;
    case WEIR_ASK_INSTALL:
    case WEIR_ASK_REVERT:
        server->must_look = true;
        break;
    case WEIR_ASK_RESUME:
        server->is_paused = false;
        server->has_resumed = true;
        break;
    default:
        break;
    }
}

/* A server without the call /init_broadcaster need not have the others. */
static bool is_absence(weir_round *round, weir_round_server *server, weir_server_order order,
                       weir_call_end end)
{
    if (end != WEIR_CALL_ABSENT || server->has_joined || round->phase >= WEIR_ROUND_BACK)
        return false;
    if (order == WEIR_ASK_JOIN) {
        server->is_absent = true;
        server->has_failed = false;
    } else if (order == WEIR_ASK_HELD && (server->tried & bit_of(WEIR_ASK_JOIN)) == 0 &&
               !server->wants_last_look) {
        server->must_look = false;
        server->holds.held = WEIR_HELD_UNKNOWN;
    } else {
        return false;
    }
    return true;
}

/* A server that does not know the call, or has nothing to go back to, is none that failed. */
static bool is_no_way_back(weir_round_server *server, weir_server_order order, weir_call_end end)
{
    if (order != WEIR_ASK_REVERT || (end != WEIR_CALL_REFUSED && end != WEIR_CALL_ABSENT))
        return false;
    server->must_look = true;
    return true;
}

static bool is_silent(weir_call_end end)
{
    return end == WEIR_CALL_LATE || end == WEIR_CALL_LOST || end == WEIR_CALL_GARBLED;
}

/* Nobody asks a server to do something while it does something else; it may never be done. */
static void leave_busy(weir_round *round, weir_round_server *server)
{
    server->is_busy = false;
    fail(round, server, WEIR_ASK_HELD, &(weir_server_answer){ .end = WEIR_CALL_LATE });
}

/* It has said OK to this order already, and is not where that leads. */
static void find_contradiction(weir_round *round, weir_round_server *server)
{
    weir_server_order next = wanted_of(round, server);
    if (next != WEIR_ASK_HELD && (server->tried & bit_of(next)) != 0)
        fail(round, server, next, &(weir_server_answer){ .end = WEIR_CALL_WRONG });
}

void weir_round_ask(weir_round *round, size_t server)
{
    weir_round_server *one = &round->servers[server];
    one->asked = weir_round_next(round, server);
    if (one->asked != WEIR_ASK_NOTHING)
        one->tried |= bit_of(one->asked);
}

void weir_round_hear(weir_round *round, size_t server, const weir_server_answer *answer)
{
    weir_round_server *one = &round->servers[server];
    weir_server_order order = one->asked;
    one->asked = WEIR_ASK_NOTHING;
    if (order == WEIR_ASK_INSTALL && answer->end != WEIR_CALL_UNSENT)
        one->is_unanswered = is_silent(answer->end);
    if (order == WEIR_ASK_REVERT)
        one->is_unanswered |= is_silent(answer->end);
    if (answer->end == WEIR_CALL_OK && order == WEIR_ASK_HELD)
        hear_held(one, answer);
    else if (answer->end == WEIR_CALL_OK)
        hear_done(one, order);
    else if (!is_absence(round, one, order, answer->end) &&
             !is_no_way_back(one, order, answer->end)) {
        if (order == WEIR_ASK_HELD)
            one->holds.held = WEIR_HELD_UNKNOWN;
        fail(round, one, order, answer);
    }
    if (one->is_busy && round->time_is_up && round->phase < WEIR_ROUND_BACK && !one->has_failed)
        leave_busy(round, one);
    find_contradiction(round, one);
    advance(round);
}

void weir_round_leave_busy(weir_round *round, size_t server)
{
    if (!round->servers[server].is_busy)
        return;
    leave_busy(round, &round->servers[server]);
    advance(round);
}

void weir_round_end_waiting(weir_round *round)
{
    if (round->time_is_up)
        return;
    round->time_is_up = true;
    for (size_t i = 0; i < round->n_servers; i++) {
        weir_round_server *server = &round->servers[i];
        if (server->asked != WEIR_ASK_NOTHING || (server->n_tries == 0 && !server->is_busy) ||
            wanted_of(round, server) == WEIR_ASK_NOTHING)
            continue;
        if (server->n_tries == 0) {
            leave_busy(round, server);
            continue;
        }
        server->has_failed = true;
        server->is_given_up = round->phase >= WEIR_ROUND_BACK;
        server->wants_last_look = true;
    }
    advance(round);
}

/* ---- rounds ----------------------------------------------------------------------------------*/

void weir_round_open(weir_round *round, weir_run_policy policy, weir_round_server *servers,
                     size_t n_servers)
{
    *round = (weir_round){
        .policy = policy, .servers = servers, .n_servers = n_servers, .phase = WEIR_ROUND_OVER
    };
}

static void begin(weir_round *round, bool joins_only)
{
    round->phase = WEIR_ROUND_READY;
    round->joins_only = joins_only;
    round->time_is_up = round->has_installed = false;
    for (size_t i = 0; i < round->n_servers; i++) {
        weir_round_server *server = &round->servers[i];
        server->asked = server->failed_at = WEIR_ASK_NOTHING;
        server->failed_by = WEIR_CALL_OK;
        server->tried = server->n_tries = 0;
        server->has_failed = server->wants_last_look = server->is_given_up = false;
        server->is_busy = false;
        server->has_resumed = false;
        server->is_blameless = false;
        server->has_joined &= !joins_only && !server->is_dropped;
        server->is_dropped = false;
        server->must_look = true;
    }
    advance(round);
}

void weir_round_begin_join(weir_round *round)
{
    round->goal = (weir_held_key){ .held = WEIR_HELD_UNKNOWN };
    begin(round, true);
}

void weir_round_begin(weir_round *round, uint64_t version)
{
    round->goal = (weir_held_key){ .held = WEIR_HELD_VERSION, .version = version };
    round->wanted = round->goal;
    begin(round, false);
}

bool weir_round_is_stray(const weir_round *round, size_t server)
{
    const weir_round_server *one = &round->servers[server];
    bool is_known = !one->must_look && is_whole(one) && round->old.held >= WEIR_HELD_START;
    return is_known && !weir_held_equal(&one->holds, &round->old);
}

weir_server_order weir_round_idle_next(const weir_round *round, size_t server)
{
    const weir_round_server *one = &round->servers[server];
    if (one->is_absent)
        return WEIR_ASK_NOTHING;
    return weir_round_is_stray(round, server) && !one->is_paused ? WEIR_ASK_PAUSE : WEIR_ASK_HELD;
}

void weir_round_idle_hear(weir_round *round, size_t server, weir_server_order order,
                          const weir_server_answer *answer)
{
    weir_round_server *one = &round->servers[server];
    if (answer->end != WEIR_CALL_OK)
        one->must_look = true;
    else if (order == WEIR_ASK_HELD)
        hear_held(one, answer);
    else
        hear_done(one, order);
}

bool weir_round_is_over(const weir_round *round)
{
    return round->phase == WEIR_ROUND_OVER;
}

bool weir_round_is_done(const weir_round *round)
{
    return weir_round_is_over(round) && can_go_on(round) &&
           (round->joins_only || round->has_installed);
}
