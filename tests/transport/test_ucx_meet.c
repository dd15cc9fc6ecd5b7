/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_meet.c - the ranks of a broadcast group of transport ucx come together, or do not: ranks
 * that are missing, keys and options that make no sense, strangers.
 */
#include "transport/ucx_group_player.h"

/* ---- joining ---------------------------------------------------------------------------------*/

static void ranks_of_any_number_join(void **state)
{
    ranks *all = *state;
    for (uint32_t n = 1; n <= MAX_RANKS; n++) {
        open_groups(all, 0, n, WAIT_MS);
        await_joined(all, 0, n);
        close_groups(all, 0, n, false);
    }
}

/* The group works. */
static void broadcast_once(ranks *all, uint32_t n_ranks)
{
    const uint64_t n_bytes = 3 * MIB;
    for (uint32_t i = 0; i < n_ranks; i++) {
        weir_group_part part = { data_of(all, i), n_bytes };
        if (i == 0)
            owner_fill(part.data, n_bytes, 5);
        assert_went_well(ops->group_broadcast(all->groups[0][i], 0, &part, 1, NULL));
    }
    for (uint32_t i = 0; i < n_ranks; i++) {
        assert_went_well(await_done(all->groups[0][i], 1));
        assert_int_equal(owner_compare(data_of(all, i), 0, n_bytes, 5), n_bytes);
    }
}

/* ---- ranks that are missing ------------------------------------------------------------------*/

static void ranks_that_never_come_are_named(void **state)
{
    ranks *all = *state;
    const char *expected = "round of version 7: 2 of 4 ranks have not come within 0.3 s: 2, 3";
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    double begun = weir_now_s();
    open_rank(all, 0, 1, 4, 300);
    open_rank(all, 0, 0, 4, 300);
    assert_true(weir_now_s() - begun < 0.2); /* nobody was waited for */
    assert_int_equal(ops->group_test(all->groups[0][0]), WEIR_IN_PROGRESS);
    for (int again = 0; again < 2; again++) {
        assert_fails(await_rank(all->groups[0][0]), WEIR_ERR_TIMED_OUT, expected);
        assert_fails(await_rank(all->groups[0][1]), WEIR_ERR_TIMED_OUT, expected);
    }
    assert_true(weir_now_s() - begun < 2.0);
}

static void a_rank_zero_that_never_comes_is_an_error(void **state)
{
    ranks *all = *state;
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    open_rank(all, 0, 1, 2, 200); /* it is listened for, but nobody has opened the group */
    assert_fails(await_rank(all->groups[0][1]), WEIR_ERR_TIMED_OUT,
                 "round of version 7: rank 0 has not said within 0.2 s that all 2 ranks are in "
                 "(this is rank 1)");
    ops->close(all->transports[0]); /* and its key with it */
    all->transports[0] = NULL;
    close_rank(all, 0, 1, true);
    open_rank(all, 0, 1, 2, 200);
    assert_fails(await_rank(all->groups[0][1]), WEIR_ERR_TIMED_OUT,
                 "round of version 7: rank 1 has not reached rank 0 within 0.2 s");
}

static void a_group_closed_while_joining_tells_the_others(void **state)
{
    ranks *all = *state;
    for (uint32_t who = 0; who < 2; who++) {
        assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
        open_rank(all, 0, 0, 3, WAIT_MS);
        open_rank(all, 0, 1, 3, WAIT_MS);
        await_greeting(all->groups[0][1]);
        close_rank(all, 0, who, who == 0); /* in peace or not: it has not joined */
        assert_int_equal(await_rank(all->groups[0][1 - who]), WEIR_ERR_PEER_LOST);
        close_rank(all, 0, 1 - who, true);
    }
}

/* Rank 0 is not closed yet, and the others know that it leaves. */
static void a_group_that_begins_to_leave_tells_the_others(void **state)
{
    ranks *all = *state;
    open_groups(all, 0, 3, WAIT_MS);
    await_joined(all, 0, 3);
    ops->group_leave(all->groups[0][0], true);
    ops->group_leave(all->groups[0][0], false); /* changes nothing */
    for (uint32_t i = 1; i < 3; i++) {
        weir_deadline deadline = weir_deadline_in(WAIT_MS);
        while (ops->group_test(all->groups[0][i]) == WEIR_OK && !weir_deadline_passed(deadline))
            weir_sleep_ms(1);
        assert_int_equal(ops->group_test(all->groups[0][i]), WEIR_ERR_PEER_LOST);
    }
    for (uint32_t i = 0; i < 3; i++)
        close_rank(all, 0, i, true);
}

/* ---- keys ------------------------------------------------------------------------------------*/

static void damaged_keys_are_refused(void **state)
{
    ranks *all = *state;
    char key[WEIR_GROUP_KEY_BYTES];
    weir_group *group = NULL;
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    for (size_t i = 0; i < sizeof(key); i++) {
        memcpy(key, all->keys[0], sizeof(key));
        key[i] ^= (char)(1 << i % 8);
        weir_group_options options = rank_options(key, 1, 2, 100);
        weir_status status = ops->group_open(all->transports[1], &options, &group);
        assert_true(status == WEIR_ERR_CORRUPT || status == WEIR_ERR_UNSUPPORTED);
        assert_memory_equal(weir_last_error(), "round of version 7: ", 20);
    }
    memset(key, 0, sizeof(key));
    weir_group_options options = rank_options(key, 1, 2, 100);
    assert_fails(ops->group_open(all->transports[1], &options, &group), WEIR_ERR_CORRUPT,
                 "round of version 7: 128 bytes are no key of a group of Weir's");
    assert_null(group);
    open_rank(all, 0, 1, 2, WAIT_MS); /* the key itself is good still */
    open_rank(all, 0, 0, 2, WAIT_MS);
    await_joined(all, 0, 2);
}

/* Makes rank 0 seem to be on another host, with these addresses. */
static void move_rank_zero(ranks *all, const weir_ip_address *addresses, unsigned n)
{
    weir_ucx_group_key key;
    weir_key_buffer bytes = { 0 };
    assert_went_well(weir_ucx_group_key_decode(all->keys[0], WEIR_GROUP_KEY_BYTES, "x", &key));
    key.place ^= 1;
    key.n_addresses = n;
    memcpy(key.addresses, addresses, n * sizeof(addresses[0]));
    assert_went_well(weir_ucx_group_key_encode(&key, &bytes));
    memcpy(all->keys[0], bytes.data, WEIR_GROUP_KEY_BYTES);
    weir_key_buffer_close(&bytes);
}

static void ranks_elsewhere_try_its_addresses_in_turn(void **state)
{
    static const weir_ip_address addresses[] = { { 4, { 224, 0, 0, 1 } }, { 4, { 127, 0, 0, 1 } } };
    ranks *all = *state;
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    move_rank_zero(all, addresses, 2); /* nobody is at the first */
    for (uint32_t i = 0; i < 3; i++)
        open_rank(all, 0, i, 3, WAIT_MS);
    await_joined(all, 0, 3);
    broadcast_once(all, 3);
    close_groups(all, 0, 3, false);
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    move_rank_zero(all, addresses, 0);
    open_rank(all, 0, 1, 2, WAIT_MS);
    assert_fails(await_rank(all->groups[0][1]), WEIR_ERR_UNSUPPORTED,
                 "round of version 7: rank 0 is on another host, and has no address that one "
                 "reaches");
}

static void options_that_make_no_sense_are_refused(void **state)
{
    ranks *all = *state;
    weir_group *group = NULL;
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    static const uint32_t of[][2] = { { 0, 0 }, { 2, 2 }, { 7, 3 } };
    for (size_t i = 0; i < sizeof(of) / sizeof(of[0]); i++) {
        weir_group_options options = rank_options(all->keys[0], of[i][0], of[i][1], 100);
        assert_int_equal(ops->group_open(all->transports[0], &options, &group), WEIR_ERR_INVALID);
    }
    weir_group_options options = rank_options(NULL, 0, 2, 100);
    assert_fails(ops->group_open(all->transports[0], &options, &group), WEIR_ERR_INVALID,
                 "a group needs the key of its rank 0");
    options = rank_options(all->keys[0], 0, WEIR_UCX_RANKS + 1, 100);
    assert_int_equal(ops->group_open(all->transports[0], &options, &group), WEIR_ERR_UNSUPPORTED);
    options = rank_options(all->keys[0], 0, 2, 100);
    assert_fails(ops->group_open(all->transports[1], &options, &group), WEIR_ERR_INVALID,
                 "rank 0 opens a group with a key that is none of its own");
    assert_null(group);
    open_rank(all, 0, 0, 1, 100);
    assert_int_equal(ops->group_open(all->transports[0], &options, &group), WEIR_ERR_INVALID);
}

static void only_so_many_keys_are_kept(void **state)
{
    ranks *all = *state;
    weir_group *group = NULL;
    char other[WEIR_GROUP_KEY_BYTES];
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    assert_went_well(ops->group_key(all->transports[0], all->keys[1]));
    for (uint32_t i = 0; i + 1 < WEIR_UCX_KEYS; i++)
        assert_went_well(ops->group_key(all->transports[0], other));
    weir_group_options options = rank_options(all->keys[0], 0, 2, 100);
    assert_fails(ops->group_open(all->transports[0], &options, &group), WEIR_ERR_INVALID,
                 "a key that is none of its own, or was opened before");
    open_rank(all, 1, 0, 2, WAIT_MS); /* the next oldest */
    open_rank(all, 1, 1, 2, WAIT_MS);
    await_joined(all, 1, 2);
}

static void ranks_that_do_not_belong_are_told_so(void **state)
{
    ranks *all = *state;
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    memcpy(all->keys[1], all->keys[0], WEIR_GROUP_KEY_BYTES);
    open_rank(all, 0, 0, 3, WAIT_MS);
    open_rank(all, 0, 1, 3, WAIT_MS);
    await_greeting(all->groups[0][1]);
    open_rank(all, 1, 3, 4, WAIT_MS);
    assert_fails(await_rank(all->groups[1][3]), WEIR_ERR_INVALID,
                 "round of version 7: rank 0 has 3 ranks, and this one is rank 3 of 4");
    open_rank(all, 1, 1, 3, WAIT_MS);
    weir_status status = await_rank(all->groups[1][1]);
    assert_fails(status, WEIR_ERR_EXISTS, "round of version 7: rank 1 is in already");
    open_rank(all, 0, 2, 3, WAIT_MS); /* nobody was harmed */
    await_joined(all, 0, 3);
    broadcast_once(all, 3);
}

/* ---- strangers -------------------------------------------------------------------------------*/

static int call_rank_zero(const ranks *all)
{
    weir_ucx_group_key key;
    assert_went_well(weir_ucx_group_key_decode(all->keys[0], WEIR_GROUP_KEY_BYTES, "x", &key));
    return call_loopback(key.port);
}

/* A hello as a rank sends it, but for the nonce. */
static weir_key_buffer hello_of_a_stranger(const ranks *all)
{
    weir_key_buffer bytes = { 0 };
    weir_ucx_hello hello = { .rank = 1, .n_ranks = 2, .host = "x" };
    assert_went_well(
        weir_ucx_group_key_decode(all->keys[0], WEIR_GROUP_KEY_BYTES, "x", &hello.where));
    hello.where.nonce[3] ^= 1;
    assert_went_well(weir_ucx_hello_encode(&hello, &bytes));
    return bytes;
}

static void strangers_keep_nobody_waiting(void **state)
{
    ranks *all = *state;
    int fds[3 * WEIR_UCX_STRANGERS];
    size_t n = 0;
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    open_rank(all, 0, 0, 2, WAIT_MS);
    weir_key_buffer hello = hello_of_a_stranger(all);
    while (n < sizeof(fds) / sizeof(fds[0])) {
        fds[n] = call_rank_zero(all);
        if (n % 4 == 1)
            say(fds[n], "GET / HTTP/1.1\r\n\r\n", 18);
        else if (n % 4 == 2)
            say(fds[n], hello.data, hello.n_bytes);
        else if (n % 4 == 3)
            say(fds[n], hello.data, hello.n_bytes / 2);
        n++;
    }
    double begun = weir_now_s();
    open_rank(all, 0, 1, 2, WAIT_MS);
    await_joined(all, 0, 2);
    assert_true(weir_now_s() - begun < 2.0);
    broadcast_once(all, 2);
    close_groups(all, 0, 2, false);
    for (size_t i = 0; i < n; i++) { /* each was let go of */
        char byte;
        ssize_t got = recv(fds[i], &byte, 1, 0);
        assert_true(got <= 0);
        close(fds[i]);
    }
    weir_key_buffer_close(&hello);
}

/* ---- memory ----------------------------------------------------------------------------------*/

static void running_out_of_memory_leaves_nothing(void **state)
{
    ranks *all = *state;
    weir_group *group = NULL;
    for (uint64_t n = 1;; n++) {
        weir_alloc_fail_at(n);
        weir_status status = ops->group_key(all->transports[0], all->keys[0]);
        weir_group_options options = rank_options(all->keys[0], 0, 2, 30);
        if (status == WEIR_OK)
            status = ops->group_open(all->transports[0], &options, &group);
        weir_alloc_fail_at(0);
        ops->group_close(group, true);
        group = NULL;
        if (status == WEIR_OK) {
            assert_true(n > 5);
            break;
        }
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        CASE(ranks_of_any_number_join, any_way),
        CASE(ranks_that_never_come_are_named, any_way),
        CASE(a_rank_zero_that_never_comes_is_an_error, any_way),
        CASE(a_group_closed_while_joining_tells_the_others, any_way),
        CASE(a_group_that_begins_to_leave_tells_the_others, any_way),
        CASE(damaged_keys_are_refused, any_way),
        CASE(ranks_elsewhere_try_its_addresses_in_turn, any_way),
        CASE(options_that_make_no_sense_are_refused, any_way),
        CASE(only_so_many_keys_are_kept, any_way),
        CASE(ranks_that_do_not_belong_are_told_so, any_way),
        CASE(strangers_keep_nobody_waiting, any_way),
        CASE(running_out_of_memory_leaves_nothing, any_way),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
