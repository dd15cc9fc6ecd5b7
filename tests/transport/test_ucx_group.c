/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_group.c - broadcast groups of transport ucx, their ranks in this process.
 *
 * No call of a group waits, so one thread plays all ranks: each has a transport of its own, and the
 * groups' threads move the bytes. Ranks that are killed are in test_ucx_group_process.c.
 */
#include "transport/ucx_group_case.h"

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
    for (uint32_t i = 0; i < WEIR_UCX_AHEAD; i++) /* the other rank has queued none */
        assert_went_well(ops->group_broadcast(all->groups[0][0], 0, &part, 1, NULL));
    assert_fails(ops->group_broadcast(all->groups[0][0], 0, &part, 1, NULL), WEIR_ERR_BUSY,
                 "round of version 7: 8 broadcasts are queued already");
    for (uint32_t i = 0; i < WEIR_UCX_AHEAD; i++)
        assert_went_well(ops->group_broadcast(all->groups[0][1], 0, &into, 1, NULL));
    assert_went_well(await_done(all->groups[0][0], WEIR_UCX_AHEAD));
    assert_went_well(await_done(all->groups[0][1], WEIR_UCX_AHEAD));
    close_groups(all, 0, 2, false);
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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        CASE(ranks_of_any_number_join, any_way),
        CASE(ranks_of_any_number_join, over_tcp),
        CASE(every_size_arrives_at_all_ranks, any_way),
        CASE(every_size_arrives_at_all_ranks, over_tcp),
        CASE(parts_may_be_many_and_empty, any_way),
        CASE(any_rank_may_be_the_root, any_way),
        CASE(any_rank_may_be_the_root, over_tcp),
        CASE(queued_broadcasts_end_in_their_order, any_way),
        CASE(queued_broadcasts_end_in_their_order, over_tcp),
        CASE(one_too_many_is_refused_and_harms_nothing, any_way),
        CASE(groups_of_the_same_transports_are_independent, any_way),
        CASE(groups_of_the_same_transports_are_independent, over_tcp),
        CASE(a_second_broadcast_allocates_nothing, any_way),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
