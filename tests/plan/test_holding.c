/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/holding.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void chunks_are_those_of_torch(void **state)
{
    (void)state;
    /* torch.chunk(10, 4) gives 3, 3, 3, 1; torch.chunk(5, 4) 2, 2, 1 and none. */
    static const uint64_t ten[] = { 0, 3, 6, 9, 10 }, five[] = { 0, 2, 4, 5, 5 };
    for (uint64_t i = 0; i < 4; i++) {
        uint64_t lo, hi;
        weir_torch_chunk(10, 4, i, &lo, &hi);
        assert_int_equal(lo, ten[i]);
        assert_int_equal(hi, ten[i + 1]);
        weir_torch_chunk(5, 4, i, &lo, &hi);
        assert_int_equal(lo, five[i]);
        assert_int_equal(hi, five[i + 1]);
    }
}

static void contiguous_experts_are_where_a_stacked_trainer_keeps_them(void **state)
{
    (void)state;
    /* 64 experts, ep 4, fsdp 2: expert rank 2, fsdp rank 1 owns 40 … 47. */
    weir_trainer_mesh mesh = { .pp = 1, .hsdp = 1, .fsdp = 2, .ep = 4, .tp = 1 };
    weir_fleet_tensor t = { .name = "w1",
                            .cut = WEIR_CUT_COLUMN,
                            .n_experts = 64,
                            .stacked = true,
                            .n_cols = 4,
                            .n_sources = 1,
                            .n_parts = 1,
                            .source_rows = { 8 },
                            .parts = { { 0, 0, 0, 8 } } };
    weir_expert_place places[64];
    weir_holding holdings[8];
    assert_int_equal(weir_expert_places(&mesh, &t, places), WEIR_OK);
    for (uint32_t x = 0; x < 64; x++) {
        assert_int_equal(weir_holdings_of(&mesh, &t, 0, &places[x], holdings), 1);
        assert_true((holdings[0].rank == 1 * 4 + 2) == (x >= 40 && x < 48));
        assert_int_equal(holdings[0].row_hi - holdings[0].row_lo, 8);
    }
}

static void an_owner_map_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    uint32_t owners[] = { 0, 1, 2, 0 };
    weir_trainer_mesh mesh = { 1, 1, 1, 2, 1, 0, owners, 4, 0 };
    weir_fleet_tensor t = { .name = "w1", .n_experts = 4 };
    weir_expert_place places[4];
    assert_int_equal(weir_expert_places(&mesh, &t, places), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "w1: expert 2 is of expert rank 2 of 2");
    mesh.n_expert_owners = 3;
    assert_int_equal(weir_expert_places(&mesh, &t, places), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "w1: 4 experts, the trainer's owner map has 3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_are_those_of_torch),
        cmocka_unit_test(contiguous_experts_are_where_a_stacked_trainer_keeps_them),
        cmocka_unit_test(an_owner_map_that_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
