/* SPDX-License-Identifier: Apache-2.0 */
/* test_share_pieces.c - shares of ranks that do not keep all of it at once. */
#include "plan/fleet.h"
#include "share_fleet.h"

static void pieces_of_any_size_make_the_same_bytes(void **state)
{
    (void)state;
    uint64_t seed = first_seed();
    share_case *c = calloc(1, sizeof(*c));
    print_message("WEIR_TEST_SEED=%llu, %d cases from there\n", (unsigned long long)seed, N_CASES);
    for (int i = 0; i < N_CASES; i++) {
        make_case(c, seed + (uint64_t)i);
        c->most_bytes = 1 + case_random(&c->fleet, 1u << (1 + i % 12));
        check_case(c);
    }
    free(c);
}

static void a_long_run_of_rows_is_cut_from_block_to_block(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 64, 8);
    t.conversion = cast_conversion();
    weir_fleet *fleet = open_meshes(&t, 1, "", "");
    weir_share *whole = share_of(fleet, 0), *pieces = NULL;
    assert_int_equal(weir_fleet_share_in_pieces(fleet, 0, 160, &pieces), WEIR_OK);
    assert_int_equal(whole->n_shards, 1);
    assert_int_equal(whole->n_jobs, 1);
    assert_int_equal(pieces->n_jobs, 7); /* of 10 rows, 16 bytes each */
    assert_int_equal(pieces->n_shards, 7);
    for (size_t i = 0; i < 7; i++) {
        const weir_share_shard *shard = &pieces->shards[i];
        assert_int_equal(shard->box.lo[0], 10 * i);
        assert_int_equal(shard->box.hi[0], i < 6 ? 10 * i + 10 : 64);
        assert_int_equal(pieces->jobs[i].copy.source_row, 10 * i);
        assert_int_equal(pieces->jobs[i].offsets[0] + pieces->jobs[i].first_words[0], 0);
    }
    weir_share_free(whole);
    weir_share_free(pieces);
    weir_fleet_close(fleet);
}

static void what_is_one_block_high_is_not_cut(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 64, 8);
    t.conversion = &share_block;
    weir_fleet *fleet = open_meshes(&t, 1, "", "");
    weir_share *pieces = NULL;
    assert_int_equal(weir_fleet_share_in_pieces(fleet, 0, 1, &pieces), WEIR_OK);
    size_t n_blocks = 64 / share_block.border_rows;
    assert_int_equal(pieces->n_jobs, n_blocks);
    assert_int_equal(pieces->n_shards, 2 * n_blocks); /* weights and scales of each */
    weir_share_free(pieces);
    weir_fleet_close(fleet);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_of_any_size_make_the_same_bytes),
        cmocka_unit_test(a_long_run_of_rows_is_cut_from_block_to_block),
        cmocka_unit_test(what_is_one_block_high_is_not_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
