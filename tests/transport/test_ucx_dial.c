/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_dial.c - ranks of a broadcast group of transport ucx find each other, whoever else
 * answers at one of the addresses that they were told.
 *
 * Rank 0 is played over plain sockets, and listens at 127.0.0.1; at the same port of 127.0.0.2 is
 * somebody who knows nothing of the group.
 */
#include "transport/ucx_group_player.h"

typedef enum stranger { HANGS_UP, SPEAKS_ANOTHER_LANGUAGE, SAYS_NOTHING } stranger;

static const char another_language[] = "HTTP/1.1 400 Bad Request\r\nConnection: keep-alive\r\n\r\n";

/* As a rank on another host would be told it. */
static weir_ucx_group_key behind_a_stranger(const player *one)
{
    weir_ucx_group_key key = one->key;
    key.place ^= 1;
    key.n_addresses = 2;
    key.addresses[0] = (weir_ip_address){ 4, { 127, 0, 0, 2 } };
    key.addresses[1] = (weir_ip_address){ 4, { 127, 0, 0, 1 } };
    return key;
}

static player root_behind_a_stranger(ranks *all, int *out_stranger)
{
    player root = player_open(0, 2);
    weir_ucx_group_key own = root.key;
    *out_stranger = listen_at_loopback(2, &root.key.port);
    root.key = behind_a_stranger(&root);
    player_give_key(&root, all->keys[0]);
    root.key = own;
    return root;
}

/* Is asked first, and answers as it does. */
static int answer(int listener, stranger how)
{
    uint8_t in[WEIR_UCX_FEED_BYTES];
    size_t n_bytes = 0;
    int fd = accept_one(listener);
    assert_int_equal(hear(fd, in, &n_bytes), 'h');
    if (how == HANGS_UP)
        hang_up(&fd);
    if (how == SPEAKS_ANOTHER_LANGUAGE)
        say(fd, another_language, sizeof(another_language) - 1);
    return fd;
}

static void rank_zero_is_behind_a_stranger(ranks *all, stranger how)
{
    int listener;
    player root = root_behind_a_stranger(all, &listener);
    open_rank(all, 0, 1, 2, WAIT_MS);
    int fd = answer(listener, how);
    player_greet(&root);
    close_rank(all, 0, 1, true);
    hang_up(&fd);
    hang_up(&listener);
    player_close(&root);
}

static void rank_zero_is_found_behind_a_stranger(void **state)
{
    rank_zero_is_behind_a_stranger(*state, HANGS_UP);
    rank_zero_is_behind_a_stranger(*state, SPEAKS_ANOTHER_LANGUAGE);
}

static bool has_said_nothing(int fd)
{
    struct pollfd heard = { .fd = fd, .events = POLLIN };
    return poll(&heard, 1, 50) == 0;
}

/* Rank 1 says that it is linked when the rank after has answered, not when anybody has. */
static void the_next_rank_is_behind_a_stranger(ranks *all, stranger how)
{
    player root = player_open(0, 2);
    int listener = listen_at_loopback(2, &root.key.port);
    weir_ucx_group_key after = behind_a_stranger(&root);
    player_give_key(&root, all->keys[0]);
    open_rank(all, 0, 1, 2, WAIT_MS);
    player_greet(&root);
    root.after = call_loopback(root.theirs.where.port);
    say_hello(&root, root.after, WEIR_UCX_FEED);
    hear_hello(&root, root.after, WEIR_UCX_FEED);
    say_start(&root, &after);
    int fd = answer(listener, how);
    assert_true(has_said_nothing(root.words));
    root.before = accept_one(root.listener);
    hear_hello(&root, root.before, WEIR_UCX_FEED);
    assert_true(has_said_nothing(root.words));
    say_hello(&root, root.before, WEIR_UCX_FEED);
    hear_word(&root, WEIR_UCX_LINKED);
    close_rank(all, 0, 1, true);
    hang_up(&fd);
    hang_up(&listener);
    player_close(&root);
}

static void the_next_rank_is_found_behind_a_stranger(void **state)
{
    the_next_rank_is_behind_a_stranger(*state, HANGS_UP);
    the_next_rank_is_behind_a_stranger(*state, SPEAKS_ANOTHER_LANGUAGE);
    the_next_rank_is_behind_a_stranger(*state, SAYS_NOTHING);
}

/* The rank before was not answered in time, and has come once more. */
static void the_rank_before_may_come_again(void **state)
{
    ranks *all = *state;
    player root = player_open(0, 2);
    player_give_key(&root, all->keys[0]);
    open_rank(all, 0, 1, 2, WAIT_MS);
    player_greet(&root);
    for (int i = 0; i < 2; i++) {
        hang_up(&root.after);
        root.after = call_loopback(root.theirs.where.port);
        say_hello(&root, root.after, WEIR_UCX_FEED);
        hear_hello(&root, root.after, WEIR_UCX_FEED);
    }
    say_start(&root, &root.key);
    root.before = accept_one(root.listener);
    hear_hello(&root, root.before, WEIR_UCX_FEED);
    say_hello(&root, root.before, WEIR_UCX_FEED);
    hear_word(&root, WEIR_UCX_LINKED);
    say_word(&root, WEIR_UCX_JOINED, 0);
    assert_went_well(await_rank(all->groups[0][1]));
    close_rank(all, 0, 1, true);
    player_close(&root);
}

/* Nobody may come in any more. */
static void a_group_that_is_whole_listens_no_more(void **state)
{
    ranks *all = *state;
    for (uint32_t n = 1; n <= 3; n++) {
        weir_ucx_group_key key;
        open_groups(all, 0, n, WAIT_MS);
        await_joined(all, 0, n);
        assert_went_well(weir_ucx_group_key_decode(all->keys[0], WEIR_GROUP_KEY_BYTES, "x", &key));
        assert_false(somebody_listens(key.port));
        close_groups(all, 0, n, false);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        CASE(rank_zero_is_found_behind_a_stranger, any_way),
        CASE(the_next_rank_is_found_behind_a_stranger, any_way),
        CASE(the_rank_before_may_come_again, any_way),
        CASE(a_group_that_is_whole_listens_no_more, any_way),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
