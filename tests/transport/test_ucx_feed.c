/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_feed.c - a rank of a broadcast group of transport ucx and what its neighbours tell it.
 *
 * The neighbour is played over a socket, or stopped; what a rank reads lies in this process.
 */
#include <fcntl.h>

#include "transport/ucx_group_player.h"

#define PART_BYTES (5 * MIB)

/* ---- one rank's end of the chain, driven by the test ------------------------------------------*/

/* Rank 1 of 3, whose neighbours are the test: it reads what `owner` owns. */
typedef struct chain_case {
    ucx_chain chain;
    ucx_cast cast;
    ucx_link before, after;
    player neighbour;
    weir_transport *owner;
    weir_region *region;
    uint8_t *source, *target;
} chain_case;

static void open_end(ucx_link *link, int *out_other)
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
    *link = (ucx_link){ .fd = fds[0], .room = WEIR_UCX_FEED_BYTES };
    link->in = malloc(link->room);
    *out_other = bounded(fds[1]);
}

static void expose_source(ranks *all, chain_case *one)
{
    const weir_seal seal = WEIR_SEAL_INIT;
    weir_ucx_open_quiet((ucx_transport *)all->transports[0]);
    assert_went_well(weir_ucx_open_beside((ucx_transport *)all->transports[0], &one->owner));
    assert_went_well(ops->expose(one->owner, one->source, PART_BYTES, &one->region));
    assert_went_well(ops->seal(one->region, &seal));
}

static void chain_open(ranks *all, chain_case *one)
{
    *one = (chain_case){ .neighbour = { .before = -1, .after = -1, .words = -1, .listener = -1 } };
    one->source = data_of(all, 0);
    one->target = data_of(all, 1);
    owner_fill(one->source, PART_BYTES, 3);
    memset(one->target, 0, PART_BYTES);
    open_end(&one->before, &one->neighbour.after);
    open_end(&one->after, &one->neighbour.before);
    expose_source(all, one);
    weir_ucx_open_quiet((ucx_transport *)all->transports[1]);
    one->chain = (ucx_chain){ .rank = 1,
                              .n_ranks = 3,
                              .who = "round of version 7",
                              .of = (ucx_transport *)all->transports[1],
                              .abort_fd = -1,
                              .before = &one->before,
                              .after = &one->after };
    one->cast.parts = one->cast.few;
    one->cast.n_parts = 1;
    one->cast.few[0] = (weir_group_part){ one->target, PART_BYTES };
    weir_ucx_cast_begin(&one->cast);
}

static void chain_close(chain_case *one)
{
    weir_ucx_chain_close(&one->chain);
    free(one->before.in);
    free(one->after.in);
    ops->release(one->region);
    ops->close(one->owner);
    player_close(&one->neighbour);
}

static void say_address(chain_case *one)
{
    const void *address;
    size_t n_bytes;
    assert_went_well(ops->address(one->owner, &address, &n_bytes));
    say(one->neighbour.after, address, n_bytes);
}

static void say_key(chain_case *one)
{
    const void *key;
    size_t n_bytes;
    assert_went_well(ops->region_key(one->region, &key, &n_bytes));
    say(one->neighbour.after, key, n_bytes);
}

static void say_part(chain_case *one)
{
    say_step(&one->neighbour, one->neighbour.after, WEIR_UCX_AT, 0);
    say_key(one);
    say_step(&one->neighbour, one->neighbour.after, WEIR_UCX_HERE, PART_BYTES);
}

/* ---- a source that goes ----------------------------------------------------------------------*/

/* As long as its memory is mapped here it can be read, but what it holds is nobody's any more. */
static void bytes_of_a_source_that_has_left_do_not_count(void **state)
{
    chain_case one;
    chain_open(*state, &one);
    say_address(&one);
    say_head(&one.neighbour, one.neighbour.after, &one.cast.head);
    say_part(&one);
    for (int i = 0; i < 10 && one.chain.transfer == NULL; i++)
        weir_ucx_cast_receive(&one.chain, &one.cast);
    assert_non_null(one.chain.transfer);
    hang_up(&one.neighbour.after);
    weir_deadline deadline = weir_deadline_in(WAIT_MS);
    while (one.chain.transfer != NULL && !weir_deadline_passed(deadline))
        weir_ucx_cast_receive(&one.chain, &one.cast);
    assert_true(one.chain.broken);
    assert_int_equal(one.chain.broken_rank, 0);
    assert_string_equal(one.chain.broken_why, "its connection has ended");
    assert_false(weir_ucx_cast_received(&one.cast));
    chain_close(&one);
}

/* ---- words out of turn -----------------------------------------------------------------------*/

typedef enum stage {
    NO_WAY_YET,
    NO_HEAD_YET,
    NO_PART_YET,
    NO_KEY_YET,
    NOTHING_HERE_YET,
    STAGES
} stage;
typedef enum message {
    ADDRESS,
    HEAD,
    KEY,
    WAY_READ,
    WAY_SENT,
    AT,
    HERE,
    HERE_TOO_MUCH,
    HERE_NOTHING,
    TAKEN,
    HELLO,
    WORD,
    MESSAGES
} message;

static void bring_chain_to(chain_case *one, stage when)
{
    if (when >= NO_HEAD_YET)
        say_address(one);
    if (when >= NO_PART_YET)
        say_head(&one->neighbour, one->neighbour.after, &one->cast.head);
    if (when >= NO_KEY_YET)
        say_step(&one->neighbour, one->neighbour.after, WEIR_UCX_AT, 0);
    if (when >= NOTHING_HERE_YET)
        say_key(one);
}

static void say_message(chain_case *one, message what)
{
    static const weir_ucx_step steps[] = {
        [WAY_READ] = { WEIR_UCX_WAY, 1 },
        [WAY_SENT] = { WEIR_UCX_WAY, 0 },
        [AT] = { WEIR_UCX_AT, 0 },
        [HERE] = { WEIR_UCX_HERE, PART_BYTES },
        [HERE_TOO_MUCH] = { WEIR_UCX_HERE, PART_BYTES + 1 },
        [HERE_NOTHING] = { WEIR_UCX_HERE, 0 },
        [TAKEN] = { WEIR_UCX_TAKEN, 1 },
    };
    player *from = &one->neighbour;
    from->words = from->after;
    if (what == ADDRESS)
        say_address(one);
    else if (what == HEAD)
        say_head(from, from->after, &one->cast.head);
    else if (what == KEY)
        say_key(one);
    else if (what == HELLO)
        say_hello(from, from->after, WEIR_UCX_FEED);
    else if (what == WORD)
        say_word(from, WEIR_UCX_DONE, 1);
    else
        say_step(from, from->after, steps[what].kind, steps[what].value);
    from->words = -1;
}

static bool is_in_turn(stage when, message what)
{
    static const bool may[STAGES][MESSAGES] = {
        [NO_WAY_YET] = { [ADDRESS] = true, [WAY_SENT] = true },
        [NO_HEAD_YET] = { [HEAD] = true },
        [NO_PART_YET] = { [AT] = true },
        [NO_KEY_YET] = { [KEY] = true },
        [NOTHING_HERE_YET] = { [HERE] = true },
    };
    return may[when][what];
}

static void the_rank_before_says(ranks *all, stage when, message what)
{
    chain_case one;
    chain_open(all, &one);
    bring_chain_to(&one, when);
    say_message(&one, what);
    for (int i = 0; i < 3; i++)
        weir_ucx_cast_receive(&one.chain, &one.cast);
    assert_false(one.chain.broken);
    if (is_in_turn(when, what))
        assert_int_equal(one.chain.failure, WEIR_OK);
    else
        assert_fails(one.chain.failure, WEIR_ERR_CORRUPT,
                     "round of version 7: rank 0 says what none may say then");
    chain_close(&one);
}

static void the_rank_before_says_each_word_in_each_phase(void **state)
{
    for (stage when = NO_WAY_YET; when < STAGES; when++) {
        for (message what = 0; what < MESSAGES; what++)
            the_rank_before_says(*state, when, what);
    }
}

/* It may say which way it wants once it was asked, and what it has taken once it was offered. */
static void the_rank_after_says_no_more_than_it_may(void **state)
{
    static const weir_ucx_step out_of_turn[] = { { WEIR_UCX_WAY, 1 },
                                                 { WEIR_UCX_AT, 0 },
                                                 { WEIR_UCX_HERE, 1 },
                                                 { WEIR_UCX_TAKEN, 0 },
                                                 { WEIR_UCX_TAKEN, 2 } };
    for (size_t i = 0; i < sizeof(out_of_turn) / sizeof(out_of_turn[0]); i++) {
        chain_case one;
        chain_open(*state, &one);
        one.chain.n_offered = 1;
        say_step(&one.neighbour, one.neighbour.before, out_of_turn[i].kind, out_of_turn[i].value);
        weir_ucx_hear_after(&one.chain);
        assert_fails(one.chain.failure, WEIR_ERR_CORRUPT,
                     "round of version 7: rank 2 says what none may say then");
        chain_close(&one);
    }
}

/* ---- closing while it connects ---------------------------------------------------------------*/

__attribute__((no_sanitize("thread"))) static bool is_connecting(const weir_group *group)
{
    const ucx_transport *data = (const ucx_transport *)((const ucx_group *)group)->chain.data;
    return data != NULL && *(volatile const int *)&data->give_up_fds[0] >= 0;
}

static void await_connecting(const weir_group *group)
{
    weir_deadline deadline = weir_deadline_in(WAIT_MS);
    while (!is_connecting(group) && !weir_deadline_passed(deadline))
        weir_sleep_ms(1);
    assert_true(is_connecting(group));
}

/* Its rank before says where it may be read, and is stopped: there is nobody who answers. */
static void a_rank_that_connects_can_be_closed_at_once(void **state)
{
    ranks *all = *state;
    owner *stopped = owner_open("ucx", "", "");
    assert_went_well(owner_call(stopped, OWNER_ADDRESS, 0, 0, 0, ""));
    kill(stopped->pid, SIGSTOP);
    player root = player_open(0, 2);
    player_give_key(&root, all->keys[0]);
    open_rank(all, 0, 1, 2, WAIT_MS);
    player_greet(&root);
    say_start(&root, &root.key);
    player_link(&root, root.theirs.where.port);
    hear_word(&root, WEIR_UCX_LINKED);
    say_word(&root, WEIR_UCX_JOINED, 0);
    weir_group *group = all->groups[0][1];
    weir_group_part part = { data_of(all, 1), 1000 };
    assert_went_well(await_rank(group));
    assert_went_well(ops->group_broadcast(group, 0, &part, 1, NULL));
    say(root.after, stopped->reply.blob, stopped->reply.blob_bytes);
    await_connecting(group);
    double begun = weir_now_s();
    close_rank(all, 0, 1, true);
    assert_true(weir_now_s() - begun < 2.0);
    player_close(&root);
    assert_int_equal(owner_close(stopped), 0);
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[0], "owner") == 0)
        return owner_main(argv[1], argv[2], argv[3], atoi(argv[4]));
    const struct CMUnitTest tests[] = {
        CASE(bytes_of_a_source_that_has_left_do_not_count, any_way),
        CASE(bytes_of_a_source_that_has_left_do_not_count, emulated),
        CASE(the_rank_before_says_each_word_in_each_phase, any_way),
        CASE(the_rank_after_says_no_more_than_it_may, any_way),
        CASE(a_rank_that_connects_can_be_closed_at_once, any_way),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
