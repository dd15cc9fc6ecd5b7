/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_group.c - broadcast groups of transport ucx, their ranks in this process.
 *
 * No call of a group waits, so one thread plays all ranks: each has a transport of its own, and the
 * groups' threads move the bytes. How ranks find each other is in test_ucx_meet.c, ranks that are
 * killed are in test_ucx_group_lost.c.
 */
#include "transport/ucx_group_case.h"

/* ---- broadcasting ----------------------------------------------------------------------------*/

/* Rank `root` sends n_bytes in parts of at most part_bytes; the others must have them, and nothing
 * around them. */
static void broadcast(ranks *all, uint32_t n_ranks, uint32_t root, uint64_t n_bytes, size_t n_parts)
{
    static uint32_t seed;
    uint64_t n_before[MAX_RANKS];
    weir_group_part *parts = calloc(n_parts, sizeof(*parts));
    seed++;
    for (uint32_t i = 0; i < n_ranks; i++) {
        uint8_t *data = data_of(all, i);
        memset(data, 0xee, n_bytes + 2 * MARGIN);
        if (i == root)
            owner_fill(data + MARGIN, n_bytes, seed);
        for (size_t part = 0; part < n_parts; part++) {
            uint64_t from = n_bytes * part / n_parts, to = n_bytes * (part + 1) / n_parts;
            parts[part] = (weir_group_part){ data + MARGIN + from, to - from };
        }
        assert_went_well(ops->group_progress(all->groups[0][i], &n_before[i]));
        assert_went_well(ops->group_broadcast(all->groups[0][i], root, parts, n_parts, NULL));
        memset(parts, 0xff, n_parts * sizeof(*parts)); /* they were copied */
    }
    free(parts);
    for (uint32_t i = 0; i < n_ranks; i++) {
        assert_went_well(await_done(all->groups[0][i], n_before[i] + 1));
        assert_int_equal(owner_compare(data_of(all, i) + MARGIN, 0, n_bytes, seed), n_bytes);
        for (uint64_t at = 0; at < MARGIN; at++) {
            assert_int_equal(data_of(all, i)[at], 0xee);
            assert_int_equal(data_of(all, i)[MARGIN + n_bytes + at], 0xee);
        }
    }
}

static void every_size_arrives_at_all_ranks(void **state)
{
    static const uint64_t sizes[] = {
        0,           1,       7,           4095,        8 * 1024,     100 * 1000,
        2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 5 * MIB + 3, 37 * MIB + 11
    };
    ranks *all = *state;
    for (uint32_t n = 1; n <= MAX_RANKS; n++) {
        open_groups(all, 0, n, WAIT_MS);
        await_joined(all, 0, n);
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
            broadcast(all, n, 0, sizes[i], 1);
        close_groups(all, 0, n, false);
    }
}

static void parts_may_be_many_and_empty(void **state)
{
    ranks *all = *state;
    open_groups(all, 0, 3, WAIT_MS);
    await_joined(all, 0, 3);
    broadcast(all, 3, 0, 3 * MIB, 2);
    broadcast(all, 3, 0, 0, 0);
    broadcast(all, 3, 0, 0, 5);
    broadcast(all, 3, 0, 10, 40); /* most of them are empty */
    broadcast(all, 3, 0, 9 * MIB + 1, 100);
    close_groups(all, 0, 3, false);
}

static void bytes_are_read_but_over_tcp(void **state)
{
    ranks *all = *state;
    bool tcp = ((ucx_transport *)all->transports[0])->tls != NULL;
    open_groups(all, 0, 3, WAIT_MS);
    await_joined(all, 0, 3);
    broadcast(all, 3, 0, 3 * MIB, 2);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(way_after(all->groups[0][i]), tcp ? UCX_WAY_SENT : UCX_WAY_READ);
    assert_int_equal(way_after(all->groups[0][2]), UCX_WAY_UNKNOWN); /* nobody is behind it */
    close_groups(all, 0, 3, false);
}

/* One rank leaves TCP out, the other everything else: what they have in common is no way of UCX's.
 */
static void ranks_without_a_common_way_use_their_connection(void **state)
{
    ranks *all = *state;
    for (uint32_t i = 0; i < 2; i++) {
        weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
        options.tls = i == 0 ? "posix" : "tcp";
        ops->close(all->transports[i]);
        assert_went_well(ops->open(&options, &all->transports[i]));
    }
    open_groups(all, 0, 3, WAIT_MS);
    await_joined(all, 0, 3);
    broadcast(all, 3, 0, 5 * MIB + 1, 3);
    assert_int_equal(way_after(all->groups[0][0]), UCX_WAY_SENT);
    assert_int_equal(way_after(all->groups[0][1]), UCX_WAY_SENT);
    close_groups(all, 0, 3, false);
}

/* More buffers than are kept registered, and buffers that are filled to different degrees. */
static void many_buffers_may_take_turns(void **state)
{
    ranks *all = *state;
    open_groups(all, 0, 3, WAIT_MS);
    await_joined(all, 0, 3);
    for (uint32_t round = 0; round < 2 * WEIR_UCX_KEPT + 10; round++) {
        uint64_t n_bytes = 1000 + round, at = (round * 7919 % 200) * 100000;
        for (uint32_t i = 0; i < 3; i++) {
            weir_group_part part = { data_of(all, i) + at, n_bytes };
            memset(part.data, 0, n_bytes);
            if (i == 0)
                owner_fill(part.data, n_bytes, round);
            assert_went_well(ops->group_broadcast(all->groups[0][i], 0, &part, 1, NULL));
        }
        for (uint32_t i = 0; i < 3; i++) {
            assert_went_well(await_done(all->groups[0][i], round + 1));
            assert_int_equal(owner_compare(data_of(all, i) + at, 0, n_bytes, round), n_bytes);
        }
    }
    ucx_kept kept = kept_of(all->groups[0][1]);
    assert_true(kept.n_regions > 1 && kept.n_regions <= WEIR_UCX_KEPT);
    assert_true(kept.n_remotes > 1 && kept.n_remotes <= WEIR_UCX_KEPT);
    close_groups(all, 0, 3, false);
}

static void any_rank_may_be_the_root(void **state)
{
    ranks *all = *state;
    open_groups(all, 0, 4, WAIT_MS);
    await_joined(all, 0, 4);
    for (uint32_t root = 0; root < 4; root++)
        broadcast(all, 4, root, 5 * MIB + root, 1);
    close_groups(all, 0, 4, false);
}

static void queued_broadcasts_end_in_their_order(void **state)
{
    ranks *all = *state;
    uint64_t n_done[3] = { 0, 0, 0 };
    open_groups(all, 0, 3, WAIT_MS);
    await_joined(all, 0, 3);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 3; i++) {
            for (uint32_t cast = 0; cast < WEIR_UCX_AHEAD; cast++) {
                weir_group_part part = { data_of(all, i) + cast * 4 * MIB,
                                         (8 - cast) * 480 * 1024 };
                memset(part.data, 0, part.n_bytes);
                if (i == 0)
                    owner_fill(part.data, part.n_bytes, 8 * round + cast);
                assert_went_well(ops->group_broadcast(all->groups[0][i], 0, &part, 1, NULL));
            }
        }
        for (uint32_t cast = 0; cast < WEIR_UCX_AHEAD; cast++) {
            for (uint32_t i = 0; i < 3; i++) {
                uint64_t n_bytes = (8 - cast) * 480 * 1024;
                assert_went_well(await_done(all->groups[0][i], ++n_done[i]));
                assert_int_equal(
                    owner_compare(data_of(all, i) + cast * 4 * MIB, 0, n_bytes, 8 * round + cast),
                    n_bytes);
            }
        }
    }
    close_groups(all, 0, 3, false);
}

static void one_too_many_is_refused_and_harms_nothing(void **state)
{
    ranks *all = *state;
    open_groups(all, 0, 2, WAIT_MS);
    await_joined(all, 0, 2);
    weir_group_part part = { data_of(all, 0), 100 }, into = { data_of(all, 1), 100 };
    for (uint32_t i = 0; i < WEIR_UCX_AHEAD; i++) /* the root has sent none */
        assert_went_well(ops->group_broadcast(all->groups[0][1], 0, &into, 1, NULL));
    assert_fails(ops->group_broadcast(all->groups[0][1], 0, &into, 1, NULL), WEIR_ERR_BUSY,
                 "round of version 7: 8 broadcasts are queued already");
    for (uint32_t i = 0; i < WEIR_UCX_AHEAD; i++)
        assert_went_well(ops->group_broadcast(all->groups[0][0], 0, &part, 1, NULL));
    assert_went_well(await_done(all->groups[0][0], WEIR_UCX_AHEAD));
    assert_went_well(await_done(all->groups[0][1], WEIR_UCX_AHEAD));
    close_groups(all, 0, 2, false);
}

static void what_makes_no_sense_is_refused(void **state)
{
    ranks *all = *state;
    weir_group *group = NULL;
    weir_group_part part = { data_of(all, 0), 16 };
    open_groups(all, 0, 2, WAIT_MS);
    all->groups[1][0] = all->groups[0][0];
    await_joined(all, 0, 2);
    group = all->groups[0][0];
    all->groups[1][0] = NULL;
    assert_fails(ops->group_broadcast(group, 2, &part, 1, NULL), WEIR_ERR_INVALID,
                 "round of version 7: a broadcast of rank 2 of 2");
    part.data = NULL;
    assert_fails(ops->group_broadcast(group, 0, &part, 1, NULL), WEIR_ERR_INVALID,
                 "round of version 7: part 0 of a broadcast has no data");
    broadcast(all, 2, 0, 1000, 1); /* a refused call leaves the group good */
    assert_went_well(ops->group_key(all->transports[0], all->keys[1]));
    open_rank(all, 1, 0, 2, WAIT_MS);
    assert_fails(ops->group_broadcast(all->groups[1][0], 0, &part, 0, NULL), WEIR_ERR_INVALID,
                 "round of version 7: a broadcast before all ranks have joined");
}

static void groups_of_the_same_transports_are_independent(void **state)
{
    ranks *all = *state;
    for (uint32_t g = 0; g < MAX_GROUPS; g++)
        open_groups(all, g, 3, WAIT_MS);
    for (uint32_t g = 0; g < MAX_GROUPS; g++)
        await_joined(all, g, 3);
    for (uint32_t g = 0; g < MAX_GROUPS; g++) {
        for (uint32_t i = 0; i < 3; i++) {
            weir_group_part part = { data_of(all, i) + g * 8 * MIB, 7 * MIB };
            if (i == 0)
                owner_fill(part.data, part.n_bytes, 100 + g);
            assert_went_well(ops->group_broadcast(all->groups[g][i], 0, &part, 1, NULL));
        }
    }
    close_groups(all, 1, 3, true); /* the others go on */
    for (uint32_t g = 0; g < MAX_GROUPS; g += 2) {
        for (uint32_t i = 0; i < 3; i++) {
            assert_went_well(await_done(all->groups[g][i], 1));
            assert_int_equal(owner_compare(data_of(all, i) + g * 8 * MIB, 0, 7 * MIB, 100 + g),
                             7 * MIB);
        }
        close_groups(all, g, 3, false);
    }
}

static void a_second_broadcast_allocates_nothing(void **state)
{
    ranks *all = *state;
    open_groups(all, 0, 3, WAIT_MS);
    await_joined(all, 0, 3);
    uint64_t before = 0;
    for (uint64_t round = 1; round <= 20; round++) {
        for (uint32_t i = 0; i < 3; i++) {
            weir_group_part part = { data_of(all, i), 5 * MIB };
            assert_went_well(ops->group_broadcast(all->groups[0][i], 0, &part, 1, NULL));
        }
        for (uint32_t i = 0; i < 3; i++)
            assert_went_well(await_done(all->groups[0][i], round));
        if (round == 1)
            before = weir_alloc_count();
    }
    assert_int_equal(weir_alloc_count(), before);
    close_groups(all, 0, 3, false);
}

/* ---- leaving ---------------------------------------------------------------------------------*/

static void queue_all(ranks *all, uint32_t n_ranks, uint64_t n_bytes, uint32_t seed)
{
    for (uint32_t i = 0; i < n_ranks; i++) {
        weir_group_part part = { data_of(all, i), n_bytes };
        if (i == 0)
            owner_fill(part.data, n_bytes, seed);
        else
            memset(part.data, 0, n_bytes);
    }
    for (uint32_t i = 0; i < n_ranks; i++) {
        weir_group_part part = { data_of(all, i), n_bytes };
        assert_went_well(ops->group_broadcast(all->groups[0][i], 0, &part, 1, NULL));
    }
}

static void who_stays_has_all_that_was_sent(void **state)
{
    ranks *all = *state;
    open_groups(all, 0, 3, WAIT_MS);
    await_joined(all, 0, 3);
    queue_all(all, 3, 30 * MIB, 1);
    close_rank(all, 0, 0, false); /* at once: it waits for the others to have it */
    for (uint32_t i = 1; i < 3; i++) {
        assert_went_well(await_done(all->groups[0][i], 1));
        assert_int_equal(owner_compare(data_of(all, i), 0, 30 * MIB, 1), 30 * MIB);
        assert_fails(await_failure(all->groups[0][i]), WEIR_ERR_PEER_LOST,
                     "round of version 7: rank 0 has left");
        assert_went_well(await_done(all->groups[0][i], 1)); /* it had ended before */
        weir_group_part part = { data_of(all, i), 1 };
        assert_fails(ops->group_broadcast(all->groups[0][i], 0, &part, 1, NULL), WEIR_ERR_PEER_LOST,
                     "round of version 7: rank 0 has left");
    }
}

static void a_rank_that_leaves_in_peace_harms_no_broadcast(void **state)
{
    ranks *all = *state;
    open_groups(all, 0, 4, WAIT_MS);
    await_joined(all, 0, 4);
    queue_all(all, 4, 30 * MIB, 2);
    assert_went_well(await_done(all->groups[0][1], 1));
    close_rank(all, 0, 1, false); /* the ranks after it may still be at it */
    for (uint32_t i = 0; i < 4; i++) {
        if (i == 1)
            continue;
        assert_went_well(await_done(all->groups[0][i], 1));
        assert_int_equal(owner_compare(data_of(all, i), 0, 30 * MIB, 2), 30 * MIB);
    }
    for (uint32_t i = 0; i < 4; i++) {
        if (i != 1)
            assert_fails(await_failure(all->groups[0][i]), WEIR_ERR_PEER_LOST,
                         "round of version 7: rank 1 has left");
    }
}

static void leave_by_abort(ranks *all, uint32_t who, bool under_way)
{
    char expected[64];
    snprintf(expected, sizeof(expected), "round of version 7: rank %u has left", who);
    open_groups(all, 0, 3, WAIT_MS);
    await_joined(all, 0, 3);
    for (uint32_t i = 0; i < 3 && under_way; i++) { /* the last rank holds it up */
        weir_group_part part = { data_of(all, i), 30 * MIB };
        if (i < 2)
            assert_went_well(ops->group_broadcast(all->groups[0][i], 0, &part, 1, NULL));
    }
    double begun = weir_now_s();
    close_rank(all, 0, who, true);
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t n_done;
        if (i == who)
            continue;
        for (int again = 0; again < 2; again++) {
            assert_fails(await_failure(all->groups[0][i]), WEIR_ERR_PEER_LOST, expected);
            assert_fails(ops->group_progress(all->groups[0][i], &n_done), WEIR_ERR_PEER_LOST,
                         expected);
        }
    }
    assert_true(weir_now_s() - begun < 2.0);
    for (uint32_t i = 0; i < 3; i++)
        close_rank(all, 0, i, true);
}

static void an_abort_is_heard_by_all(void **state)
{
    for (uint32_t who = 0; who < 3; who++) {
        leave_by_abort(*state, who, false);
        leave_by_abort(*state, who, true);
    }
}

/* Another thread writes there. */
__attribute__((no_sanitize("thread"))) static bool is_at(const uint8_t *data, uint64_t i,
                                                         uint8_t value)
{
    return *(const volatile uint8_t *)(data + i) == value;
}

/* Rank 1 is closed when the first bytes of a broadcast are there: true when the last were not. */
static bool close_in_the_midst(ranks *all, uint64_t n_bytes)
{
    uint8_t *data = data_of(all, 1);
    uint64_t n_done;
    open_groups(all, 0, 2, WAIT_MS);
    await_joined(all, 0, 2);
    queue_all(all, 2, 1000, 1); /* they connect */
    for (uint32_t i = 0; i < 2; i++)
        assert_went_well(await_done(all->groups[0][i], 1));
    memset(data_of(all, 0), 1, n_bytes);
    memset(data, 0, n_bytes);
    for (uint32_t i = 2; i-- > 0;) {
        weir_group_part part = { data_of(all, i), n_bytes };
        assert_went_well(ops->group_broadcast(all->groups[0][i], 0, &part, 1, NULL));
    }
    while (is_at(data, 0, 0) && ops->group_progress(all->groups[0][1], &n_done) == WEIR_OK) {
    }
    close_rank(all, 0, 1, true);
    return is_at(data, n_bytes - 1, 0);
}

static void nothing_is_written_after_a_close(void **state)
{
    ranks *all = *state;
    const uint64_t n_bytes = DATA_BYTES;
    bool in_the_midst = false;
    for (int i = 0; i < 50 && !in_the_midst; i++) {
        in_the_midst = close_in_the_midst(all, n_bytes);
        memset(data_of(all, 1), 2, n_bytes);
        weir_status status = await_failure(all->groups[0][0]);
        assert_true(status == WEIR_ERR_PEER_LOST);
        close_rank(all, 0, 0, true);
        for (uint64_t at = 0; at < n_bytes; at += 509)
            assert_int_equal(data_of(all, 1)[at], 2);
    }
    assert_true(in_the_midst);
}

/* ---- ranks that disagree ---------------------------------------------------------------------*/

/* Rank 1 has other parts than ranks 0 and 2: an error everywhere, and nothing beyond them. */
static void disagree(ranks *all, uint64_t n_bytes, uint64_t other_bytes, size_t n_parts,
                     const char *expected)
{
    open_groups(all, 0, 3, WAIT_MS);
    await_joined(all, 0, 3);
    memset(data_of(all, 1), 0xee, n_bytes + other_bytes + MARGIN);
    static const uint32_t order[] = { 0, 2, 1 }; /* rank 1 finds out as soon as it has come */
    for (uint32_t at = 0; at < 3; at++) {
        uint32_t i = order[at];
        uint64_t own = i == 1 ? other_bytes : n_bytes;
        size_t n = i == 1 ? n_parts : 1;
        weir_group_part parts[2] = { { data_of(all, i), own / n },
                                     { data_of(all, i) + own / n, own - own / n } };
        assert_went_well(ops->group_broadcast(all->groups[0][i], 0, parts, n, NULL));
    }
    for (uint32_t i = 0; i < 3; i++)
        assert_fails(await_failure(all->groups[0][i]), WEIR_ERR_INVALID, expected);
    for (uint64_t at = 0; at < n_bytes + other_bytes + MARGIN; at++)
        assert_int_equal(data_of(all, 1)[at], 0xee);
    close_groups(all, 0, 3, true);
}

static void sizes_that_differ_are_an_error_everywhere(void **state)
{
    ranks *all = *state;
    disagree(all, 4 * MIB, 2 * MIB, 1,
             "round of version 7: broadcast 0 is of 2097152 bytes of rank 0 on rank 1, but rank 0 "
             "sends number 0, 4194304 bytes of rank 0");
    disagree(all, 2 * MIB, 4 * MIB, 1, "but rank 0 sends number 0, 2097152 bytes of rank 0");
    disagree(all, 0, 1, 1, "broadcast 0 is of 1 bytes of rank 0 on rank 1, but rank 0 sends");
    disagree(all, 1, 0, 1, "broadcast 0 is of 0 bytes of rank 0 on rank 1, but rank 0 sends");
    disagree(all, 4 * MIB, 4 * MIB, 2, "4194304 bytes of rank 0, in other parts");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        CASE(every_size_arrives_at_all_ranks, any_way),
        CASE(any_rank_may_be_the_root, over_tcp),
        CASE(parts_may_be_many_and_empty, any_way),
        CASE(parts_may_be_many_and_empty, over_tcp),
        CASE(bytes_are_read_but_over_tcp, any_way),
        CASE(bytes_are_read_but_over_tcp, over_tcp),
        CASE(ranks_without_a_common_way_use_their_connection, any_way),
        CASE(many_buffers_may_take_turns, any_way),
        CASE(many_buffers_may_take_turns, emulated),
        CASE(any_rank_may_be_the_root, any_way),
        CASE(any_rank_may_be_the_root, over_tcp),
        CASE(queued_broadcasts_end_in_their_order, any_way),
        CASE(queued_broadcasts_end_in_their_order, over_tcp),
        CASE(one_too_many_is_refused_and_harms_nothing, any_way),
        CASE(groups_of_the_same_transports_are_independent, any_way),
        CASE(a_second_broadcast_allocates_nothing, any_way),
        CASE(a_second_broadcast_allocates_nothing, over_tcp),
        CASE(what_makes_no_sense_is_refused, any_way),
        CASE(who_stays_has_all_that_was_sent, any_way),
        CASE(a_rank_that_leaves_in_peace_harms_no_broadcast, any_way),
        CASE(an_abort_is_heard_by_all, any_way),
        CASE(an_abort_is_heard_by_all, over_tcp),
        CASE(an_abort_is_heard_by_all, emulated),
        CASE(nothing_is_written_after_a_close, any_way),
        CASE(nothing_is_written_after_a_close, over_tcp),
        CASE(nothing_is_written_after_a_close, emulated),
        CASE(sizes_that_differ_are_an_error_everywhere, any_way),
        CASE(sizes_that_differ_are_an_error_everywhere, over_tcp),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
