/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_group_lost.c - a rank of a broadcast group of transport ucx is killed, or stopped.
 *
 * One rank is a process of its own: this program, started again as "victim RANK STAGE TLS" with a
 * socket to its parent as descriptor 3. The others are here, and must hear of its end within two
 * seconds.
 */
#include "transport/ucx_group_case.h"

#define VICTIM_FD 3
#define N_RANKS 3u
#define HEARD_S 2.0

typedef enum stage {
    JOINING,   /* it has said hello; another rank is missing */
    IDLE,      /* all have joined */
    BEGINNING, /* the first broadcast is queued: ranks connect */
    SENDING,   /* broadcasts go through without end */
    FORKED     /* as SENDING, and it leaves a child that has all of its files */
} stage;

/* ---- in the victim ---------------------------------------------------------------------------*/

static int tell(char word)
{
    return send(VICTIM_FD, &word, 1, MSG_NOSIGNAL) == 1 ? 0 : 1;
}

/* Until it is killed. */
static void broadcast_for_ever(weir_group *group)
{
    weir_group_part part = { calloc(1, DATA_BYTES), DATA_BYTES };
    for (uint64_t n = 1; ops->group_broadcast(group, 0, &part, 1, NULL) == WEIR_OK; n++) {
        if (await_done(group, n) != WEIR_OK)
            break;
    }
    free(part.data);
}

static int victim_main(uint32_t rank, stage when, const char *tls)
{
    weir_transport_options given = WEIR_TRANSPORT_OPTIONS_INIT;
    char key[WEIR_GROUP_KEY_BYTES];
    weir_transport *transport;
    weir_group *group;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    given.tls = tls[0] != '\0' ? tls : NULL;
    if (ops->open(&given, &transport) != WEIR_OK)
        return 1;
    if (rank == 0 && (ops->group_key(transport, key) != WEIR_OK ||
                      !owner_move(VICTIM_FD, key, sizeof(key), true)))
        return 1;
    if (rank != 0 && !owner_move(VICTIM_FD, key, sizeof(key), false))
        return 1;
    weir_group_options options = rank_options(key, rank, N_RANKS, WAIT_MS);
    if (ops->group_open(transport, &options, &group) != WEIR_OK)
        return 1;
    if (when == JOINING && rank != 0)
        await_greeting(group);
    if (when != JOINING && await_rank(group) != WEIR_OK)
        return 1;
    if (when == FORKED && fork() == 0) {
        pause();
        _exit(0);
    }
    if (tell('r') != 0)
        return 1;
    if (when >= BEGINNING)
        broadcast_for_ever(group);
    pause();
    return 0;
}

/* ---- in the parent ---------------------------------------------------------------------------*/

typedef struct victim {
    pid_t pid;
    int fd;
} victim;

/* With the transports of UCX that the others have. */
static victim start_victim(const ranks *all, uint32_t rank, stage when)
{
    const char *tls = ((ucx_transport *)all->transports[0])->tls;
    int fds[2];
    char rank_text[8], stage_text[8];
    snprintf(rank_text, sizeof(rank_text), "%u", rank);
    snprintf(stage_text, sizeof(stage_text), "%d", (int)when);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    victim started = { fork(), fds[0] };
    if (started.pid == 0) {
        setpgid(0, 0); /* so that what it forks can be ended with it */
        if (fds[1] == VICTIM_FD)
            fds[1] = dup(fds[1]);
        dup2(fds[1], VICTIM_FD);
        execl("/proc/self/exe", "victim", rank_text, stage_text, tls != NULL ? tls : "", NULL);
        _exit(99);
    }
    assert_true(started.pid > 0);
    close(fds[1]);
    return started;
}

static void await_ready(const victim *lives)
{
    char word = 0;
    assert_true(owner_move(lives->fd, &word, 1, false));
    assert_int_equal(word, 'r');
}

static void kill_victim(const victim *lives)
{
    kill(lives->pid, SIGKILL);
    waitpid(lives->pid, NULL, 0);
}

/* What it left behind. */
static void end_victim(const victim *lives)
{
    kill(-lives->pid, SIGKILL);
    close(lives->fd);
}

/* The other ranks go on with broadcasts until the group has failed; the victim lives for n_before
 * of them, and n_ms. */
static weir_status broadcast_until_failure(ranks *all, const uint32_t *others, size_t n_others,
                                           const victim *lives, uint64_t n_before, unsigned n_ms,
                                           double *out_killed)
{
    weir_deadline deadline = weir_deadline_in(WAIT_MS);
    uint64_t n_queued[N_RANKS] = { 0 }, n_done = 0;
    size_t n_failed = 0;
    *out_killed = 0;
    for (unsigned ms = 0; n_failed < n_others && !weir_deadline_passed(deadline); ms++) {
        n_failed = 0;
        for (size_t i = 0; i < n_others; i++) {
            weir_group *group = all->groups[0][others[i]];
            weir_group_part part = { data_of(all, others[i]), DATA_BYTES };
            if (ops->group_progress(group, &n_done) != WEIR_OK) {
                n_failed++;
                continue;
            }
            if (n_queued[others[i]] == n_done &&
                ops->group_broadcast(group, 0, &part, 1, NULL) == WEIR_OK)
                n_queued[others[i]]++;
            if (n_done >= n_before && ms >= n_ms && *out_killed == 0) {
                kill_victim(lives);
                *out_killed = weir_now_s();
            }
        }
        weir_sleep_ms(1);
    }
    return n_failed == n_others ? WEIR_OK : WEIR_ERR_TIMED_OUT;
}

static void lose_after(ranks *all, uint32_t rank, stage when, unsigned n_ms)
{
    uint32_t others[2];
    size_t n_others = 0;
    char expected[64];
    snprintf(expected, sizeof(expected), "round of version 7: rank %u ", rank);
    victim lives = start_victim(all, rank, when);
    if (rank == 0)
        assert_true(owner_move(lives.fd, all->keys[0], WEIR_GROUP_KEY_BYTES, false));
    else
        assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    for (uint32_t i = 0; i < N_RANKS; i++) {
        if (i != rank && (when != JOINING || n_others == 0))
            others[n_others++] = i;
    }
    for (size_t i = 0; i < n_others; i++)
        open_rank(all, 0, others[i], N_RANKS, WAIT_MS);
    if (rank != 0)
        assert_true(owner_move(lives.fd, all->keys[0], WEIR_GROUP_KEY_BYTES, true));
    await_ready(&lives);
    double killed = weir_now_s();
    if (when == JOINING && rank == 0)
        await_greeting(all->groups[0][others[0]]);
    for (size_t i = 0; i < n_others && when != JOINING; i++)
        assert_went_well(await_rank(all->groups[0][others[i]]));
    if (when >= BEGINNING) {
        assert_went_well(broadcast_until_failure(all, others, n_others, &lives,
                                                 when == BEGINNING ? 0 : 2, n_ms, &killed));
    } else {
        kill_victim(&lives);
        killed = weir_now_s();
    }
    for (size_t i = 0; i < n_others; i++) {
        weir_group *group = all->groups[0][others[i]];
        assert_fails(when == JOINING ? await_rank(group) : await_failure(group), WEIR_ERR_PEER_LOST,
                     expected);
    }
    assert_true(weir_now_s() - killed < HEARD_S);
    for (size_t i = 0; i < n_others; i++)
        close_rank(all, 0, others[i], true);
    end_victim(&lives);
}

static void lose(ranks *all, uint32_t rank, stage when)
{
    lose_after(all, rank, when, 0);
}

static void a_rank_killed_while_joining_is_named(void **state)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        lose(*state, rank, JOINING);
}

static void a_rank_killed_between_broadcasts_is_named(void **state)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        lose(*state, rank, IDLE);
}

static void a_rank_killed_in_a_broadcast_is_named(void **state)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        lose(*state, rank, SENDING);
}

static void a_rank_killed_as_it_connects_is_named(void **state)
{
    for (uint32_t i = 0; i < 5 * N_RANKS; i++)
        lose_after(*state, i % N_RANKS, BEGINNING, 1 + i / N_RANKS * 2);
}

static void a_killed_rank_whose_children_live_on_is_named(void **state)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        lose(*state, rank, FORKED);
}

/* Nothing comes of it until somebody gives up, and then all do. */
static void a_stopped_rank_is_left_behind(void **state)
{
    ranks *all = *state;
    victim lives = start_victim(all, 2, SENDING);
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    open_rank(all, 0, 0, N_RANKS, WAIT_MS);
    open_rank(all, 0, 1, N_RANKS, WAIT_MS);
    assert_true(owner_move(lives.fd, all->keys[0], WEIR_GROUP_KEY_BYTES, true));
    await_ready(&lives);
    assert_went_well(await_rank(all->groups[0][0]));
    assert_went_well(await_rank(all->groups[0][1]));
    kill(lives.pid, SIGSTOP);
    for (uint32_t i = 0; i < 2; i++) {
        weir_group_part part = { data_of(all, i), DATA_BYTES };
        assert_went_well(ops->group_broadcast(all->groups[0][i], 0, &part, 1, NULL));
    }
    double begun = weir_now_s();
    close_rank(all, 0, 0, true);
    assert_fails(await_failure(all->groups[0][1]), WEIR_ERR_PEER_LOST,
                 "round of version 7: rank 0 has left");
    close_rank(all, 0, 1, true);
    assert_true(weir_now_s() - begun < HEARD_S);
    kill_victim(&lives);
    end_victim(&lives);
}

int main(int argc, char **argv)
{
    if (argc == 4)
        return victim_main((uint32_t)atoi(argv[1]), (stage)atoi(argv[2]), argv[3]);
    const struct CMUnitTest tests[] = {
        CASE(a_rank_killed_while_joining_is_named, any_way),
        CASE(a_rank_killed_between_broadcasts_is_named, any_way),
        CASE(a_rank_killed_in_a_broadcast_is_named, any_way),
        CASE(a_rank_killed_in_a_broadcast_is_named, over_tcp),
        CASE(a_rank_killed_in_a_broadcast_is_named, emulated),
        CASE(a_rank_killed_as_it_connects_is_named, any_way),
        CASE(a_rank_killed_as_it_connects_is_named, over_tcp),
        CASE(a_rank_killed_as_it_connects_is_named, emulated),
        CASE(a_killed_rank_whose_children_live_on_is_named, any_way),
        CASE(a_killed_rank_whose_children_live_on_is_named, over_tcp),
        CASE(a_stopped_rank_is_left_behind, any_way),
        CASE(a_stopped_rank_is_left_behind, over_tcp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
