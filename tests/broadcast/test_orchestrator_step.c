/* SPDX-License-Identifier: Apache-2.0 */
/* Fleets of servers that fail in every way at every call: what the rules of a round promise holds
 * of what the servers really do, not only of what they say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broadcast/orchestrator_step.h"

#define MOST_SERVERS 3u
#define MOST_CHOICES 400u
#define MOST_CALLS 200u
#define OLD 6u
#define NEW 7u

/* ---- servers as they are ---------------------------------------------------------------------*/

typedef struct server {
    weir_held_key holds;
    bool is_paused, has_joined;
    bool has_before; /* what it held before its last install, and can go back to */
    weir_held_key before;
    bool has_pending; /* an order that it has not begun yet: to install, or to go back */
    bool pending_reverts;
    uint64_t pending;
} server;

/* One run: decisions are taken from a script, and beyond its end are the first of each. */
typedef struct world {
    server servers[MOST_SERVERS];
    weir_round_server known[MOST_SERVERS];
    weir_round round;
    unsigned script[MOST_CHOICES], widths[MOST_CHOICES];
    size_t n_script, n_used;
    unsigned faults_left;
    bool trainer_has_old;
    bool servers_revert; /* else they know no such call */
    size_t n_calls;
    weir_held_key resumed; /* in this round */
} world;

static unsigned choose(world *w, unsigned n)
{
    assert_true(w->n_used < MOST_CHOICES);
    unsigned choice = w->n_used < w->n_script ? w->script[w->n_used] : 0;
    w->widths[w->n_used++] = n;
    return choice < n ? choice : 0;
}

/* 0: all is well. */
static unsigned choose_fault(world *w, unsigned n_faults)
{
    if (w->faults_left == 0)
        return 0;
    unsigned fault = choose(w, n_faults + 1);
    w->faults_left -= fault != 0;
    return fault;
}

static weir_held_key key_of(uint64_t version)
{
    return (weir_held_key){ .held = WEIR_HELD_VERSION, .version = version };
}

static void restart(server *one)
{
    *one = (server){ .holds = { .held = WEIR_HELD_START } };
}

static void install(server *one, uint64_t version)
{
    one->has_before = one->holds.held == WEIR_HELD_START || one->holds.held == WEIR_HELD_VERSION;
    one->before = one->holds;
    one->holds = key_of(version);
}

static void revert(server *one)
{
    if (one->has_before)
        one->holds = one->before;
    one->has_before = false;
}

/* Ends of calls that say nothing of what was done. */
static weir_call_end silent_end(unsigned which)
{
    static const weir_call_end ends[] = { WEIR_CALL_REFUSED, WEIR_CALL_ABSENT, WEIR_CALL_GARBLED,
                                          WEIR_CALL_UNSENT,  WEIR_CALL_LOST,   WEIR_CALL_LATE };
    return ends[which];
}
#define N_SILENT 6u

static weir_server_answer answer_held(world *w, server *one)
{
    unsigned fault = choose_fault(w, N_SILENT + 3);
    if (fault == N_SILENT + 3)
        return (weir_server_answer){ .holds.held = WEIR_HELD_NONE,
                                     .tells_paused = true,
                                     .is_paused = one->is_paused,
                                     .is_busy = true,
                                     .has_left = !one->has_joined };
    if (fault >= 1 && fault <= N_SILENT)
        return (weir_server_answer){ .end = silent_end(fault - 1) };
    if (fault == N_SILENT + 1)
        restart(one);
    if (fault == N_SILENT + 2)
        one->holds.held = WEIR_HELD_NONE;
    return (weir_server_answer){ .holds = one->holds,
                                 .tells_paused = true,
                                 .is_paused = one->is_paused,
                                 .has_left = !one->has_joined };
}

/* A version is installed on all of its workers, on none, or on some. */
static weir_server_answer answer_install(world *w, server *one)
{
    uint64_t version = w->round.wanted.version;
    bool can = one->has_joined && (version == NEW || w->trainer_has_old);
    if (can && one->has_pending)
        one->has_pending = false; /* orders are done one after the other */
    unsigned fault = choose_fault(w, 12);
    if (fault != 0 && fault != 1 && fault != 2 && fault != 9 && fault != 11 && can)
        install(one, version);
    switch (fault) {
    case 0:
        if (!can)
            return (weir_server_answer){ .end = WEIR_CALL_REFUSED };
        install(one, version);
        return (weir_server_answer){ .end = WEIR_CALL_OK };
    case 1:
        return (weir_server_answer){ .end = WEIR_CALL_OK }; /* it lies */
    case 2:
        return (weir_server_answer){ .end = WEIR_CALL_REFUSED };
    case 3:
        one->holds.held = WEIR_HELD_NONE;
        one->has_before = false;
        return (weir_server_answer){ .end = WEIR_CALL_REFUSED };
    case 4:
        return (weir_server_answer){ .end = WEIR_CALL_REFUSED }; /* after having done it */
    case 5:
        return (weir_server_answer){ .end = WEIR_CALL_GARBLED };
    case 6:
        return (weir_server_answer){ .end = WEIR_CALL_LATE };
    case 7:
        return (weir_server_answer){ .end = WEIR_CALL_LOST };
    case 8:
        restart(one);
        return (weir_server_answer){ .end = WEIR_CALL_LOST };
    case 9: /* it does it when it likes to */
        one->has_pending = one->has_joined;
        one->pending = version;
        one->pending_reverts = false;
        return (weir_server_answer){ .end = WEIR_CALL_LATE };
    case 10:
        install(one, version + 1);
        return (weir_server_answer){ .end = WEIR_CALL_OK };
    case 11:
        return (weir_server_answer){ .end = WEIR_CALL_REFUSED, .may_again = true };
    default:
        restart(one);
        return (weir_server_answer){ .end = WEIR_CALL_OK };
    }
}

static weir_server_answer answer_revert(world *w, server *one)
{
    bool can = w->servers_revert && one->has_joined && one->has_before;
    if (!w->servers_revert)
        return (weir_server_answer){ .end = WEIR_CALL_ABSENT };
    one->has_pending = false;
    unsigned fault = choose_fault(w, 9);
    switch (fault) {
    case 0:
        revert(one);
        return (weir_server_answer){ .end = can ? WEIR_CALL_OK : WEIR_CALL_REFUSED };
    case 1:
        return (weir_server_answer){ .end = WEIR_CALL_OK }; /* it lies */
    case 2:
        return (weir_server_answer){ .end = WEIR_CALL_REFUSED };
    case 3:
        one->holds.held = WEIR_HELD_NONE;
        return (weir_server_answer){ .end = WEIR_CALL_REFUSED };
    case 4:
        revert(one);
        return (weir_server_answer){ .end = WEIR_CALL_LATE };
    case 5:
        revert(one);
        return (weir_server_answer){ .end = WEIR_CALL_REFUSED };
    case 6:
        restart(one);
        return (weir_server_answer){ .end = WEIR_CALL_LOST };
    case 7:
        return (weir_server_answer){ .end = WEIR_CALL_UNSENT };
    case 8: /* it does it when it likes to */
        one->has_pending = one->pending_reverts = true;
        return (weir_server_answer){ .end = WEIR_CALL_LATE };
    default:
        revert(one);
        return (weir_server_answer){ .end = WEIR_CALL_GARBLED };
    }
}

static weir_server_answer answer_other(world *w, server *one, weir_server_order order)
{
    unsigned fault = choose_fault(w, N_SILENT + 3);
    bool does = fault == 0 || fault == N_SILENT + 1;
    if (does && order == WEIR_ASK_JOIN)
        one->has_joined = true;
    if (does && order == WEIR_ASK_PAUSE)
        one->is_paused = true;
    if (does && order == WEIR_ASK_RESUME)
        one->is_paused = false;
    if (fault == N_SILENT + 1) /* done, and nobody hears of it */
        return (weir_server_answer){ .end = WEIR_CALL_LATE };
    if (fault == N_SILENT + 2)
        restart(one);
    if (fault == N_SILENT + 3)
        return (weir_server_answer){ .end = WEIR_CALL_OK }; /* it lies */
    return (weir_server_answer){ .end = fault == 0 || fault > N_SILENT ? WEIR_CALL_OK
                                                                       : silent_end(fault - 1) };
}

/* The promise, at the moment when the order to resume goes out. */
static void check_resume(world *w, const server *one)
{
    if (!one->is_paused)
        return; /* it has been started anew since it was asked: nothing is resumed */
    assert_false(one->has_pending);
    assert_true(one->holds.held == WEIR_HELD_START || one->holds.held == WEIR_HELD_VERSION);
    if (w->resumed.held == WEIR_HELD_UNKNOWN)
        w->resumed = one->holds;
    assert_true(weir_held_equal(&w->resumed, &one->holds));
}

static void call(world *w, size_t i)
{
    weir_server_order order = weir_round_next(&w->round, i);
    server *one = &w->servers[i];
    weir_server_answer answer;
    weir_round_ask(&w->round, i);
    assert_int_equal(w->known[i].asked, order);
    assert_int_equal(weir_round_next(&w->round, i), WEIR_ASK_NOTHING);
    if (order == WEIR_ASK_RESUME)
        check_resume(w, one);
    if (order == WEIR_ASK_INSTALL || order == WEIR_ASK_REVERT)
        assert_true(one->is_paused || !one->has_joined || w->known[i].is_paused);
    if (order == WEIR_ASK_HELD)
        answer = answer_held(w, one);
    else if (order == WEIR_ASK_INSTALL)
        answer = answer_install(w, one);
    else if (order == WEIR_ASK_REVERT)
        answer = answer_revert(w, one);
    else
        answer = answer_other(w, one, order);
    weir_round_hear(&w->round, i, &answer);
    assert_true(++w->n_calls < MOST_CALLS);
}

/* Until it is over; `order_of` says whose call is next. */
static void run_round(world *w, size_t (*order_of)(world *w))
{
    size_t n_since_faults = 0;
    w->resumed.held = WEIR_HELD_UNKNOWN;
    w->n_calls = 0;
    while (!weir_round_is_over(&w->round)) {
        size_t i = order_of(w);
        unsigned n_faults = w->faults_left;
        assert_true(i < w->round.n_servers);
        call(w, i);
        if (w->faults_left < n_faults && w->round.policy == WEIR_RUN_WAIT && choose(w, 2) != 0)
            weir_round_end_waiting(&w->round);
        if (w->faults_left == 0 && ++n_since_faults == 60)
            weir_round_end_waiting(&w->round);
        if (w->n_calls == 150)
            weir_round_end_waiting(&w->round);
    }
}

static size_t first_ready(world *w)
{
    for (size_t i = 0; i < w->round.n_servers; i++) {
        if (weir_round_next(&w->round, i) != WEIR_ASK_NOTHING)
            return i;
    }
    return SIZE_MAX; /* a round that is not over has a call to make */
}

static void open_world(world *w, weir_run_policy policy, size_t n_servers)
{
    memset(w->known, 0, sizeof(w->known));
    weir_round_open(&w->round, policy, w->known, n_servers);
    w->n_used = 0;
    w->faults_left = 0;
    for (size_t i = 0; i < n_servers; i++)
        w->servers[i] = (server){ .holds = key_of(OLD), .has_joined = true };
    weir_round_begin_join(&w->round);
    run_round(w, first_ready);
    assert_true(weir_round_is_done(&w->round));
}

/* ---- what holds after a round ----------------------------------------------------------------*/

static void check_known(const world *w)
{
    for (size_t i = 0; i < w->round.n_servers; i++) {
        const weir_round_server *known = &w->known[i];
        if (known->must_look || known->is_unanswered || known->holds.held != WEIR_HELD_VERSION)
            continue;
        /* What is believed is true, unless it was started anew after it was asked. */
        const server *one = &w->servers[i];
        assert_true(weir_held_equal(&known->holds, &one->holds) || !one->has_joined ||
                    one->has_pending);
    }
}

static void check_done(const world *w)
{
    if (!weir_round_is_done(&w->round))
        return;
    size_t n = 0;
    for (size_t i = 0; i < w->round.n_servers; i++) {
        if (!weir_round_takes_part(&w->round, i))
            continue;
        n++;
        assert_false(w->known[i].is_paused);
        assert_true(w->known[i].holds.version == NEW);
    }
    assert_true(n > 0);
}

/* ---- every way to fail -----------------------------------------------------------------------*/

/* The next script in order: the last decision that has another value yet, and nothing behind it. */
static bool next_script(world *w)
{
    size_t n = w->n_used;
    while (n > 0) {
        unsigned value = n <= w->n_script ? w->script[n - 1] : 0;
        if (value + 1 < w->widths[n - 1]) {
            for (size_t i = w->n_script; i < n; i++)
                w->script[i] = 0;
            w->script[n - 1] = value + 1;
            w->n_script = n;
            return true;
        }
        n--;
    }
    return false;
}

static size_t explore(weir_run_policy policy, size_t n_servers, unsigned n_faults, bool has_old,
                      bool reverts)
{
    static world w;
    size_t n_runs = 0, n_done = 0;
    w.n_script = 0;
    w.trainer_has_old = has_old;
    w.servers_revert = reverts;
    do {
        size_t n_script = w.n_script;
        w.n_script = 0;
        open_world(&w, policy, n_servers);
        w.n_script = n_script;
        w.n_used = 0;
        w.faults_left = n_faults;
        weir_round_begin(&w.round, NEW);
        run_round(&w, first_ready);
        check_known(&w);
        check_done(&w);
        n_runs++;
        n_done += weir_round_is_done(&w.round);
    } while (next_script(&w));
    assert_true(n_done > 0);
    assert_true(n_done < n_runs || n_faults < n_servers); /* one that is well is enough to drop */
    return n_runs;
}

static void no_two_faults_resume_a_mixture(void **state)
{
    (void)state;
    static const weir_run_policy policies[] = { WEIR_RUN_ABORT, WEIR_RUN_DROP, WEIR_RUN_WAIT };
    for (size_t i = 0; i < 3; i++) {
        assert_true(explore(policies[i], 3, 2, i != 1, false) > 2000);
        assert_true(explore(policies[i], 3, 2, i == 1, true) > 2000);
    }
    assert_true(explore(WEIR_RUN_ABORT, 2, 3, true, false) > 2000);
    assert_true(explore(WEIR_RUN_ABORT, 2, 3, false, true) > 2000);
}

/* ---- any way to fail, in any order, round after round ----------------------------------------*/

static uint64_t random_state;

static unsigned draw(unsigned n)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((random_state >> 33) % n);
}

static size_t any_ready(world *w)
{
    size_t first = draw((unsigned)w->round.n_servers);
    for (size_t k = 0; k < w->round.n_servers; k++) {
        size_t i = (first + k) % w->round.n_servers;
        if (weir_round_next(&w->round, i) != WEIR_ASK_NOTHING)
            return i;
    }
    return SIZE_MAX;
}

/* What nobody waited for is done between two rounds, or not at all. */
static void land_pending(world *w)
{
    for (size_t i = 0; i < w->round.n_servers; i++) {
        server *one = &w->servers[i];
        if (one->has_pending && draw(2) == 0) {
            if (one->pending_reverts)
                revert(one);
            else
                install(one, one->pending);
            one->has_pending = false;
        }
    }
}

static void script_anything(world *w)
{
    w->n_script = MOST_CHOICES;
    for (size_t i = 0; i < MOST_CHOICES; i++)
        w->script[i] = draw(3) == 0 ? draw(16) : 0;
}

/* A fleet that somebody else has left as it is, and an orchestrator that joins it. */
static void join_what_is_left(world *w)
{
    for (size_t i = 0; i < w->round.n_servers; i++) {
        server *one = &w->servers[i];
        one->is_paused = draw(2) == 0;
        one->holds = draw(3) == 0 ? (weir_held_key){ .held = WEIR_HELD_START } : key_of(OLD);
    }
    memset(w->known, 0, sizeof(w->known));
    weir_round_open(&w->round, w->round.policy, w->known, w->round.n_servers);
    w->n_used = 0;
    w->faults_left = draw(3);
    weir_round_begin_join(&w->round);
    run_round(w, any_ready);
}

static void rounds_of_faults_never_resume_a_mixture_and_end(void **state)
{
    (void)state;
    static world w;
    size_t n_done = 0, n_rounds = 0;
    random_state = 20;
    for (unsigned run = 0; run < 10000; run++) {
        w.n_script = 0;
        w.trainer_has_old = draw(2) == 0;
        w.servers_revert = draw(2) == 0;
        open_world(&w, (weir_run_policy)draw(3), 1 + draw(3));
        if (draw(2) == 0) {
            script_anything(&w);
            join_what_is_left(&w);
        }
        for (unsigned round = 0; round < 4; round++) {
            w.n_used = 0;
            script_anything(&w);
            w.faults_left = draw(12);
            weir_round_begin(&w.round, NEW);
            run_round(&w, any_ready);
            check_done(&w);
            n_rounds++;
            n_done += weir_round_is_done(&w.round);
            land_pending(&w);
        }
    }
    assert_true(n_done > n_rounds / 20 && n_done < n_rounds);
}

/* ---- what each policy does -------------------------------------------------------------------*/

/* Makes calls of all servers but `but` (SIZE_MAX: of all) while there are any. */
static void run_all_but(world *w, size_t but)
{
    for (bool any = true; any;) {
        any = false;
        for (size_t i = 0; i < w->round.n_servers; i++) {
            if (i != but && weir_round_next(&w->round, i) != WEIR_ASK_NOTHING) {
                call(w, i);
                any = true;
            }
        }
    }
}

static void begin_again(world *w)
{
    w->resumed.held = WEIR_HELD_UNKNOWN;
    weir_round_begin(&w->round, NEW);
}

static void begin_world(world *w, weir_run_policy policy)
{
    w->n_script = 0;
    w->trainer_has_old = true;
    w->servers_revert = false;
    open_world(w, policy, 3);
    weir_round_begin(&w->round, NEW);
}

/* The next call of server 1 comes to `end`; before it all others have done what they could. */
static weir_server_order fail_next(world *w, weir_call_end end)
{
    const weir_server_answer answer = { .end = end };
    run_all_but(w, 1);
    weir_server_order order = weir_round_next(&w->round, 1);
    weir_round_ask(&w->round, 1);
    weir_round_hear(&w->round, 1, &answer);
    return order;
}

static void let_pass(world *w, weir_server_order until)
{
    run_all_but(w, 1);
    while (weir_round_next(&w->round, 1) != until) {
        assert_int_not_equal(weir_round_next(&w->round, 1), WEIR_ASK_NOTHING);
        call(w, 1);
        run_all_but(w, 1);
    }
}

static void expect(const world *w, uint64_t version, bool is_paused, size_t i)
{
    assert_int_equal(w->servers[i].holds.held, WEIR_HELD_VERSION);
    assert_int_equal(w->servers[i].holds.version, version);
    assert_int_equal(w->servers[i].is_paused, is_paused);
}

static void all_go_to_the_new_version(void **state)
{
    (void)state;
    world w;
    begin_world(&w, WEIR_RUN_ABORT);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    for (size_t i = 0; i < 3; i++)
        expect(&w, NEW, false, i);
}

static void a_dead_server_costs_the_others_no_pause(void **state)
{
    (void)state;
    world w;
    begin_world(&w, WEIR_RUN_ABORT);
    assert_int_equal(fail_next(&w, WEIR_CALL_UNSENT), WEIR_ASK_HELD);
    assert_true(weir_round_is_over(&w.round));
    assert_false(weir_round_is_done(&w.round));
    for (size_t i = 0; i < 3; i++) {
        expect(&w, OLD, false, i);
        assert_int_equal(w.known[i].tried & (1u << WEIR_ASK_PAUSE), 0);
    }
}

static void an_abort_brings_all_back_to_the_old_version(void **state)
{
    (void)state;
    world w;
    begin_world(&w, WEIR_RUN_ABORT);
    let_pass(&w, WEIR_ASK_INSTALL);
    expect(&w, NEW, true, 0);
    fail_next(&w, WEIR_CALL_REFUSED);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_over(&w.round));
    assert_false(weir_round_is_done(&w.round));
    for (size_t i = 0; i < 3; i++)
        expect(&w, OLD, false, i);
}

static void those_that_cannot_be_brought_back_stay_paused(void **state)
{
    (void)state;
    world w;
    begin_world(&w, WEIR_RUN_ABORT);
    w.trainer_has_old = false;
    let_pass(&w, WEIR_ASK_INSTALL);
    fail_next(&w, WEIR_CALL_REFUSED);
    run_all_but(&w, SIZE_MAX);
    expect(&w, NEW, true, 0);
    expect(&w, OLD, false, 1);
    expect(&w, NEW, true, 2);
}

static void a_server_that_may_still_install_is_not_resumed(void **state)
{
    (void)state;
    world w;
    begin_world(&w, WEIR_RUN_ABORT);
    let_pass(&w, WEIR_ASK_INSTALL);
    fail_next(&w, WEIR_CALL_LATE);
    run_all_but(&w, SIZE_MAX);
    expect(&w, OLD, true, 1);
    expect(&w, OLD, false, 0);
    begin_again(&w);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    expect(&w, NEW, false, 1);
}

static void drop_goes_on_without_it_until_it_is_back(void **state)
{
    (void)state;
    world w;
    begin_world(&w, WEIR_RUN_DROP);
    let_pass(&w, WEIR_ASK_INSTALL);
    restart(&w.servers[1]);
    fail_next(&w, WEIR_CALL_LOST);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    assert_true(w.known[1].is_dropped);
    expect(&w, NEW, false, 0);
    begin_again(&w);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    assert_true(w.servers[1].has_joined);
    expect(&w, NEW, false, 1);
}

/* A version that is sent to all at once fails for all of them. */
static void drop_asks_those_again_whose_fault_it_was_not(void **state)
{
    (void)state;
    static const weir_server_answer called_off = { .end = WEIR_CALL_REFUSED, .may_again = true };
    world w;
    begin_world(&w, WEIR_RUN_DROP);
    let_pass(&w, WEIR_ASK_INSTALL);
    weir_round_ask(&w.round, 1);
    weir_round_hear(&w.round, 1, &called_off);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    assert_false(w.known[1].is_dropped);
    expect(&w, NEW, false, 1);
    begin_world(&w, WEIR_RUN_ABORT);
    let_pass(&w, WEIR_ASK_INSTALL);
    weir_round_ask(&w.round, 1);
    weir_round_hear(&w.round, 1, &called_off);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_over(&w.round) && !weir_round_is_done(&w.round));
    expect(&w, OLD, false, 1);
}

static void wait_goes_on_trying_until_the_time_is_up(void **state)
{
    (void)state;
    world w;
    begin_world(&w, WEIR_RUN_WAIT);
    let_pass(&w, WEIR_ASK_INSTALL);
    for (int i = 0; i < 20; i++)
        fail_next(&w, WEIR_CALL_REFUSED);
    assert_false(weir_round_is_over(&w.round));
    expect(&w, NEW, true, 0);
    weir_round_end_waiting(&w.round);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_over(&w.round));
    assert_false(weir_round_is_done(&w.round));
    for (size_t i = 0; i < 3; i++)
        expect(&w, OLD, false, i);
}

/* What it was asked for by somebody who is gone, or has given up waiting for it. */
static void one_that_is_busy_is_told_nothing_until_it_is_not(void **state)
{
    (void)state;
    static const weir_server_answer busy = { .holds.held = WEIR_HELD_NONE,
                                             .tells_paused = true,
                                             .is_busy = true };
    for (int with_end = 0; with_end < 2; with_end++) {
        world w;
        begin_world(&w, WEIR_RUN_ABORT);
        for (int n = 0; n < 20; n++) {
            run_all_but(&w, 1);
            assert_int_equal(weir_round_next(&w.round, 1), WEIR_ASK_HELD);
            weir_round_ask(&w.round, 1);
            weir_round_hear(&w.round, 1, &busy);
        }
        expect(&w, OLD, false, 0); /* who costs the others no pause */
        if (with_end == 0)
            weir_round_end_waiting(&w.round);
        run_all_but(&w, SIZE_MAX);
        assert_true(weir_round_is_over(&w.round));
        assert_int_equal(weir_round_is_done(&w.round), with_end);
        assert_int_equal(w.known[1].has_failed, !with_end);
        expect(&w, with_end ? NEW : OLD, false, 0);
        expect(&w, with_end ? NEW : OLD, false, 1);
    }
}

static void one_that_is_busy_is_dropped_when_it_is_waited_for_no_longer(void **state)
{
    (void)state;
    static const weir_server_answer busy = { .holds.held = WEIR_HELD_NONE, .is_busy = true };
    world w;
    begin_world(&w, WEIR_RUN_DROP);
    run_all_but(&w, 1);
    weir_round_leave_busy(&w.round, 1); /* which it is not */
    weir_round_ask(&w.round, 1);
    weir_round_hear(&w.round, 1, &busy);
    weir_round_leave_busy(&w.round, 1);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    assert_true(w.known[1].is_dropped);
    expect(&w, NEW, false, 0);
    expect(&w, OLD, false, 1);
}

static void wait_does_not_try_for_what_is_gone(void **state)
{
    (void)state;
    static const weir_server_answer gone = { .end = WEIR_CALL_REFUSED, .is_gone = true };
    world w;
    begin_world(&w, WEIR_RUN_WAIT);
    let_pass(&w, WEIR_ASK_INSTALL);
    weir_round_ask(&w.round, 1);
    weir_round_hear(&w.round, 1, &gone);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_over(&w.round));
    assert_false(weir_round_is_done(&w.round));
    for (size_t i = 0; i < 3; i++)
        expect(&w, OLD, false, i);
}

/* Whose fault it was that nobody has it any more, the try before says. */
static void what_is_gone_is_the_fault_of_who_failed_before(void **state)
{
    (void)state;
    static const weir_server_answer gone = { .end = WEIR_CALL_REFUSED, .is_gone = true };
    for (int has_failed_before = 0; has_failed_before < 2; has_failed_before++) {
        world w;
        begin_world(&w, WEIR_RUN_WAIT);
        let_pass(&w, WEIR_ASK_INSTALL);
        if (has_failed_before)
            fail_next(&w, WEIR_CALL_REFUSED);
        let_pass(&w, WEIR_ASK_INSTALL);
        weir_round_ask(&w.round, 1);
        weir_round_hear(&w.round, 1, &gone);
        run_all_but(&w, SIZE_MAX);
        assert_true(weir_round_is_over(&w.round) && !weir_round_is_done(&w.round));
        assert_int_equal(w.known[1].is_blameless, !has_failed_before);
    }
}

static void a_server_without_the_call_is_left_out(void **state)
{
    (void)state;
    world w = { .n_script = 0 };
    const weir_server_answer absent = { .end = WEIR_CALL_ABSENT };
    weir_round_open(&w.round, WEIR_RUN_ABORT, w.known, 3);
    for (size_t i = 0; i < 3; i++)
        w.servers[i] = (server){ .holds = key_of(OLD) };
    weir_round_begin_join(&w.round);
    for (int i = 0; i < 2; i++) { /* weight_info, init_broadcaster */
        weir_round_ask(&w.round, 1);
        weir_round_hear(&w.round, 1, &absent);
    }
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    assert_true(w.known[1].is_absent);
    weir_round_begin(&w.round, NEW);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    expect(&w, NEW, false, 0);
    expect(&w, OLD, false, 1);
}

/* ---- the way back without a trainer ----------------------------------------------------------*/

/* No server has a version yet, and the trainer has but the one that is coming. */
static void begin_first(world *w, weir_run_policy policy)
{
    w->n_script = 0;
    w->trainer_has_old = false;
    w->servers_revert = true;
    open_world(w, policy, 3);
    for (size_t i = 0; i < 3; i++)
        w->servers[i].holds = (weir_held_key){ .held = WEIR_HELD_START };
    memset(w->known, 0, sizeof(w->known));
    weir_round_open(&w->round, policy, w->known, 3);
    weir_round_begin_join(&w->round);
    run_round(w, first_ready);
    begin_again(w);
}

static void expect_start(const world *w, bool is_paused, size_t i)
{
    assert_int_equal(w->servers[i].holds.held, WEIR_HELD_START);
    assert_int_equal(w->servers[i].is_paused, is_paused);
}

static void a_first_version_that_one_cannot_take_is_taken_back_by_all(void **state)
{
    (void)state;
    static const weir_call_end ends[] = { WEIR_CALL_REFUSED, WEIR_CALL_LOST };
    for (size_t k = 0; k < 2; k++) {
        world w;
        begin_first(&w, WEIR_RUN_ABORT);
        let_pass(&w, WEIR_ASK_INSTALL);
        expect(&w, NEW, true, 0);
        if (ends[k] == WEIR_CALL_LOST)
            restart(&w.servers[1]);
        fail_next(&w, ends[k]);
        run_all_but(&w, SIZE_MAX);
        assert_false(weir_round_is_done(&w.round));
        for (size_t i = 0; i < 3; i++)
            expect_start(&w, false, i);
        assert_true(w.known[1].has_failed);
        assert_false(w.known[0].has_failed);
    }
}

static void a_server_that_cannot_go_back_keeps_nobody_else_paused(void **state)
{
    (void)state;
    world w;
    begin_first(&w, WEIR_RUN_ABORT);
    let_pass(&w, WEIR_ASK_INSTALL);
    w.servers[0].has_before = false;
    fail_next(&w, WEIR_CALL_REFUSED);
    run_all_but(&w, SIZE_MAX);
    expect(&w, NEW, true, 0);
    expect_start(&w, false, 1);
    expect_start(&w, false, 2);
}

static void reverting_comes_before_asking_the_trainer(void **state)
{
    (void)state;
    world w;
    begin_world(&w, WEIR_RUN_ABORT);
    w.servers_revert = true;
    let_pass(&w, WEIR_ASK_INSTALL);
    w.trainer_has_old = false;
    fail_next(&w, WEIR_CALL_REFUSED);
    run_all_but(&w, SIZE_MAX);
    for (size_t i = 0; i < 3; i++)
        expect(&w, OLD, false, i);
}

/* What one that was left out for a while goes back to is not what the others serve. */
static void one_that_goes_back_further_is_told_the_old_version(void **state)
{
    (void)state;
    world w;
    begin_world(&w, WEIR_RUN_ABORT);
    w.servers_revert = true;
    let_pass(&w, WEIR_ASK_INSTALL);
    w.servers[0].before = key_of(OLD - 1);
    fail_next(&w, WEIR_CALL_REFUSED);
    run_all_but(&w, SIZE_MAX);
    for (size_t i = 0; i < 3; i++)
        expect(&w, OLD, false, i);
}

static void a_server_that_may_still_go_back_is_not_resumed(void **state)
{
    (void)state;
    world w;
    begin_first(&w, WEIR_RUN_ABORT);
    let_pass(&w, WEIR_ASK_INSTALL);
    fail_next(&w, WEIR_CALL_REFUSED);
    run_all_but(&w, 0);
    assert_int_equal(weir_round_next(&w.round, 0), WEIR_ASK_REVERT);
    weir_round_ask(&w.round, 0);
    const weir_server_answer late = { .end = WEIR_CALL_LATE };
    weir_round_hear(&w.round, 0, &late);
    run_all_but(&w, SIZE_MAX);
    expect(&w, NEW, true, 0);
    expect_start(&w, false, 1);
    expect_start(&w, false, 2);
}

/* ---- a fleet that was left paused ------------------------------------------------------------*/

static void leave_paused(world *w, weir_run_policy policy)
{
    w->n_script = 0;
    open_world(w, policy, 3);
    memset(w->known, 0, sizeof(w->known));
    weir_round_open(&w->round, policy, w->known, 3);
    for (size_t i = 0; i < 3; i++)
        w->servers[i].is_paused = true;
    w->resumed.held = WEIR_HELD_UNKNOWN;
    weir_round_begin_join(&w->round);
}

static void a_fleet_that_was_left_on_one_version_runs_again(void **state)
{
    (void)state;
    world w;
    leave_paused(&w, WEIR_RUN_ABORT);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    for (size_t i = 0; i < 3; i++)
        expect(&w, OLD, false, i);
    assert_int_equal(w.round.old.version, OLD);
}

static void a_fleet_without_a_trainer_runs_again_and_has_not_joined(void **state)
{
    (void)state;
    static const weir_run_policy policies[] = { WEIR_RUN_ABORT, WEIR_RUN_DROP };
    for (size_t k = 0; k < 2; k++) {
        world w;
        const weir_server_answer refused = { .end = WEIR_CALL_REFUSED };
        leave_paused(&w, policies[k]);
        for (size_t i = 0; i < 3; i++) {
            call(&w, i);
            assert_int_equal(weir_round_next(&w.round, i), WEIR_ASK_JOIN);
            weir_round_ask(&w.round, i);
            weir_round_hear(&w.round, i, &refused);
        }
        run_all_but(&w, SIZE_MAX);
        assert_true(weir_round_is_over(&w.round));
        assert_false(weir_round_is_done(&w.round));
        for (size_t i = 0; i < 3; i++)
            expect(&w, OLD, false, i);
    }
}

static void a_fleet_that_was_left_mixed_or_is_not_known_stays_paused(void **state)
{
    (void)state;
    world w;
    leave_paused(&w, WEIR_RUN_ABORT);
    w.servers[2].holds = key_of(NEW);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    expect(&w, OLD, true, 0);
    expect(&w, NEW, true, 2);
    leave_paused(&w, WEIR_RUN_ABORT);
    fail_next(&w, WEIR_CALL_UNSENT);
    run_all_but(&w, SIZE_MAX);
    assert_false(weir_round_is_done(&w.round));
    for (size_t i = 0; i < 3; i++)
        expect(&w, OLD, true, i);
    leave_paused(&w, WEIR_RUN_DROP); /* a run goes on without it */
    fail_next(&w, WEIR_CALL_UNSENT);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    expect(&w, OLD, false, 0);
    expect(&w, OLD, true, 1);
    expect(&w, OLD, false, 2);
}

/* ---- between rounds --------------------------------------------------------------------------*/

/* Server 1 is asked what it is to be asked, and answers by itself. */
static weir_server_order look_idly(world *w)
{
    weir_server_order order = weir_round_idle_next(&w->round, 1);
    server *one = &w->servers[1];
    weir_server_answer answer = { .end = WEIR_CALL_OK };
    if (order == WEIR_ASK_PAUSE)
        one->is_paused = true;
    else
        answer = answer_held(w, one);
    weir_round_idle_hear(&w->round, 1, order, &answer);
    return order;
}

static void one_that_runs_on_something_else_is_paused_between_rounds(void **state)
{
    (void)state;
    world w;
    begin_world(&w, WEIR_RUN_ABORT);
    run_all_but(&w, SIZE_MAX);
    assert_int_equal(look_idly(&w), WEIR_ASK_HELD);
    assert_false(weir_round_is_stray(&w.round, 1));
    restart(&w.servers[1]);
    assert_int_equal(look_idly(&w), WEIR_ASK_HELD);
    assert_true(weir_round_is_stray(&w.round, 1));
    assert_int_equal(look_idly(&w), WEIR_ASK_PAUSE);
    assert_int_equal(look_idly(&w), WEIR_ASK_HELD); /* once */
    begin_again(&w);
    run_all_but(&w, SIZE_MAX);
    assert_true(weir_round_is_done(&w.round));
    expect(&w, NEW, false, 1);
}

static void one_that_says_nothing_whole_is_looked_at_alone(void **state)
{
    (void)state;
    static const weir_server_answer gone = { .end = WEIR_CALL_UNSENT };
    world w;
    begin_world(&w, WEIR_RUN_ABORT);
    run_all_but(&w, SIZE_MAX);
    weir_round_idle_hear(&w.round, 1, WEIR_ASK_HELD, &gone);
    assert_true(w.known[1].must_look);
    assert_int_equal(weir_round_idle_next(&w.round, 1), WEIR_ASK_HELD);
    w.servers[1].holds.held = WEIR_HELD_NONE; /* somebody has it install something */
    assert_int_equal(look_idly(&w), WEIR_ASK_HELD);
    assert_int_equal(look_idly(&w), WEIR_ASK_HELD);
    assert_false(w.servers[1].is_paused);
    w.known[1].is_absent = true;
    assert_int_equal(weir_round_idle_next(&w.round, 1), WEIR_ASK_NOTHING);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_two_faults_resume_a_mixture),
        cmocka_unit_test(rounds_of_faults_never_resume_a_mixture_and_end),
        cmocka_unit_test(all_go_to_the_new_version),
        cmocka_unit_test(a_dead_server_costs_the_others_no_pause),
        cmocka_unit_test(an_abort_brings_all_back_to_the_old_version),
        cmocka_unit_test(those_that_cannot_be_brought_back_stay_paused),
        cmocka_unit_test(a_server_that_may_still_install_is_not_resumed),
        cmocka_unit_test(drop_goes_on_without_it_until_it_is_back),
        cmocka_unit_test(drop_asks_those_again_whose_fault_it_was_not),
        cmocka_unit_test(wait_goes_on_trying_until_the_time_is_up),
        cmocka_unit_test(one_that_is_busy_is_told_nothing_until_it_is_not),
        cmocka_unit_test(one_that_is_busy_is_dropped_when_it_is_waited_for_no_longer),
        cmocka_unit_test(wait_does_not_try_for_what_is_gone),
        cmocka_unit_test(what_is_gone_is_the_fault_of_who_failed_before),
        cmocka_unit_test(a_server_without_the_call_is_left_out),
        cmocka_unit_test(a_first_version_that_one_cannot_take_is_taken_back_by_all),
        cmocka_unit_test(a_server_that_cannot_go_back_keeps_nobody_else_paused),
        cmocka_unit_test(reverting_comes_before_asking_the_trainer),
        cmocka_unit_test(one_that_goes_back_further_is_told_the_old_version),
        cmocka_unit_test(a_server_that_may_still_go_back_is_not_resumed),
        cmocka_unit_test(a_fleet_that_was_left_on_one_version_runs_again),
        cmocka_unit_test(a_fleet_without_a_trainer_runs_again_and_has_not_joined),
        cmocka_unit_test(a_fleet_that_was_left_mixed_or_is_not_known_stays_paused),
        cmocka_unit_test(one_that_runs_on_something_else_is_paused_between_rounds),
        cmocka_unit_test(one_that_says_nothing_whole_is_looked_at_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
