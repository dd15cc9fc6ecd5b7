/* SPDX-License-Identifier: Apache-2.0 */
/* Who has which rank in a broadcast's group. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "weir/run_config.h"

static void e8_two_servers_of_tp_4_dp_2_are_a_group_of_17(void **state)
{
    (void)state;
    const weir_run_group group = { .n_servers = 2, .tp = 4, .dp = 2 };
    uint32_t size = 0, rank = 0;
    assert_int_equal(weir_run_group_size(&group, &size), WEIR_OK);
    assert_int_equal(size, 17);
    assert_int_equal(weir_run_worker_rank(&group, 1, 1, 3, &rank), WEIR_OK);
    assert_int_equal(rank, 16);
}

static void every_worker_has_a_rank_of_its_own(void **state)
{
    (void)state;
    const weir_run_group group = { .n_servers = 3, .tp = 2, .dp = 2 };
    uint32_t expected = 1, rank;
    for (uint32_t server = 0; server < 3; server++)
        for (uint32_t dp = 0; dp < 2; dp++)
            for (uint32_t tp = 0; tp < 2; tp++) {
                assert_int_equal(weir_run_worker_rank(&group, server, dp, tp, &rank), WEIR_OK);
                assert_int_equal(rank, expected++);
            }
}

static void offsets_give_the_same_ranks(void **state)
{
    (void)state;
    const weir_run_group group = { .n_servers = 2, .tp = 4, .dp = 2 };
    uint32_t offset, rank, other;
    for (uint32_t server = 0; server < 2; server++)
        for (uint32_t device = 0; device < 8; device++) {
            assert_int_equal(weir_run_rank_offset(16, 2, server, &offset), WEIR_OK);
            assert_int_equal(weir_run_offset_rank(offset, device, 16, &rank), WEIR_OK);
            assert_int_equal(weir_run_worker_rank(&group, server, device / 4, device % 4, &other),
                             WEIR_OK);
            assert_int_equal(rank, other);
        }
}

static void ranks_beyond_the_group_are_refused(void **state)
{
    (void)state;
    const weir_run_group group = { .n_servers = 2, .tp = 4, .dp = 2 };
    uint32_t rank = 7;
    assert_int_equal(weir_run_worker_rank(&group, 2, 0, 0, &rank), WEIR_ERR_INVALID);
    assert_int_equal(weir_run_worker_rank(&group, 0, 2, 0, &rank), WEIR_ERR_INVALID);
    assert_int_equal(weir_run_worker_rank(&group, 0, 0, 4, &rank), WEIR_ERR_INVALID);
    assert_int_equal(weir_run_rank_offset(16, 2, 2, &rank), WEIR_ERR_INVALID);
    assert_int_equal(weir_run_rank_offset(16, 0, 0, &rank), WEIR_ERR_INVALID);
    assert_int_equal(weir_run_rank_offset(15, 2, 0, &rank), WEIR_ERR_INVALID);
    assert_int_equal(weir_run_rank_offset(0, 2, 0, &rank), WEIR_ERR_INVALID);
    assert_int_equal(weir_run_offset_rank(8, 8, 16, &rank), WEIR_ERR_INVALID);
    assert_int_equal(weir_run_offset_rank(UINT32_MAX, UINT32_MAX, 16, &rank), WEIR_ERR_INVALID);
    assert_int_equal(rank, 7);
}

static void groups_without_a_number_are_refused(void **state)
{
    (void)state;
    static const weir_run_group groups[] = { { 0, 1, 1 },
                                             { 1, 0, 1 },
                                             { 1, 1, 0 },
                                             { UINT32_MAX, 1, 1 },
                                             { 1, UINT32_MAX, UINT32_MAX },
                                             { UINT32_MAX, UINT32_MAX, UINT32_MAX } };
    uint32_t size = 7;
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        assert_int_equal(weir_run_group_size(&groups[i], &size), WEIR_ERR_INVALID);
        assert_int_equal(weir_run_worker_rank(&groups[i], 0, 0, 0, &size), WEIR_ERR_INVALID);
    }
    assert_int_equal(size, 7);
    const weir_run_group largest = { INT32_MAX - 1, 1, 1 };
    assert_int_equal(weir_run_group_size(&largest, &size), WEIR_OK);
    assert_int_equal(size, INT32_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(e8_two_servers_of_tp_4_dp_2_are_a_group_of_17),
        cmocka_unit_test(every_worker_has_a_rank_of_its_own),
        cmocka_unit_test(offsets_give_the_same_ranks),
        cmocka_unit_test(ranks_beyond_the_group_are_refused),
        cmocka_unit_test(groups_without_a_number_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
