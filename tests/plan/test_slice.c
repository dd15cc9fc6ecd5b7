/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/slice.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static weir_fleet_tensor qkv(void)
{
    const weir_conversion *cast;
    assert_int_equal(weir_conversion_get("bf16_cast", &cast), WEIR_OK);
    return (weir_fleet_tensor){ .name = "qkv",
                                .conversion = cast,
                                .cut = WEIR_CUT_COLUMN,
                                .source_bits = 16,
                                .n_cols = 4,
                                .n_sources = 3,
                                .n_parts = 3,
                                .source_rows = { 32, 8, 8 },
                                .parts = { { 0, 8, 0, 32 }, { 1, 2, 0, 8 }, { 2, 2, 0, 8 } } };
}

static void key_value_heads_repeat_where_workers_exceed_them(void **state)
{
    (void)state;
    weir_fleet_tensor t = qkv();
    for (uint32_t rank = 0; rank < 4; rank++) {
        weir_slice slice;
        assert_int_equal(weir_slice_of(&t, 4, rank, 64, &slice), WEIR_OK);
        assert_int_equal(slice.n_rows, 8 + 4 + 4);
        assert_int_equal(slice.segments[0].source_row, rank * 8);
        assert_int_equal(slice.segments[1].source_row, rank / 2 * 4);
        assert_int_equal(slice.segments[1].row, 8);
        assert_int_equal(slice.segments[2].source_row, rank / 2 * 4);
        assert_int_equal(slice.segments[2].row, 12);
    }
}

static void a_vocabulary_is_padded_before_it_is_cut(void **state)
{
    (void)state;
    weir_fleet_tensor t = qkv();
    weir_slice slice;
    t.cut = WEIR_CUT_VOCABULARY;
    t.n_parts = t.n_sources = 1;
    t.parts[0].n_rows = t.source_rows[0] = 70;
    assert_int_equal(weir_slice_of(&t, 4, 2, 64, &slice), WEIR_OK);
    assert_int_equal(slice.n_rows, 32);
    assert_int_equal(slice.n_filled_rows, 6);
    assert_int_equal(slice.segments[0].source_row, 64);
    assert_int_equal(weir_slice_of(&t, 4, 3, 64, &slice), WEIR_OK);
    assert_int_equal(slice.n_rows, 32);
    assert_int_equal(slice.n_filled_rows, 0);
}

static void layers_and_experts_that_are_left_over_have_their_places(void **state)
{
    (void)state;
    static const uint32_t layers[] = { 15, 15, 16, 15 }, experts[] = { 3, 3, 2, 2 };
    uint32_t layer = 0, expert = 0;
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t lo, hi;
        weir_slice_layers(61, 4, i, &lo, &hi);
        assert_int_equal(lo, layer);
        assert_int_equal(hi - lo, layers[i]);
        layer = hi;
        weir_slice_experts(10, 4, i, &lo, &hi);
        assert_int_equal(lo, expert);
        assert_int_equal(hi - lo, experts[i]);
        expert = hi;
    }
    assert_int_equal(layer, 61);
    assert_int_equal(expert, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(key_value_heads_repeat_where_workers_exceed_them),
        cmocka_unit_test(a_vocabulary_is_padded_before_it_is_cut),
        cmocka_unit_test(layers_and_experts_that_are_left_over_have_their_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
