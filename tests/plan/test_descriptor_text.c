/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "weir/descriptor.h"

static void a_set_of_experts_is_sorted_and_holds_each_once(void **state)
{
    (void)state;
    const uint32_t ids[] = { 17, 3, 0, 3, 4294967295u };
    uint32_t read[8];
    size_t n;
    char *text = NULL;
    assert_int_equal(weir_expert_set_format(ids, 5, &text), WEIR_OK);
    assert_string_equal(text, "0,3,17,4294967295");
    assert_int_equal(weir_expert_set_parse(text, read, 8, &n), WEIR_OK);
    assert_int_equal(n, 4);
    assert_int_equal(read[3], 4294967295u);
    weir_string_free(text);
    assert_int_equal(weir_expert_set_format(NULL, 0, &text), WEIR_OK);
    assert_string_equal(text, "");
    weir_string_free(text);
    assert_int_equal(weir_expert_set_parse("", read, 8, &n), WEIR_OK);
    assert_int_equal(n, 0);
    assert_int_equal(weir_expert_set_parse("9,8,8,1", read, 2, &n), WEIR_OK);
    assert_int_equal(n, 3); /* more than there was room for */
    assert_int_equal(read[1], 8);
    for (uint64_t at = 1; at <= 2; at++) {
        weir_alloc_fail_at(at);
        assert_int_equal(weir_expert_set_format(ids, 5, &text), WEIR_ERR_NO_MEMORY);
    }
    weir_alloc_fail_at(0);
}

static void what_is_no_set_of_experts_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = { ",",    "1,", "1,,2",       "a",
                                       "1 ,2", "-1", "4294967296", "99999999999999999999999" };
    uint32_t read[8];
    size_t n = 77;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(weir_expert_set_parse(bad[i], read, 8, &n), WEIR_ERR_FORMAT);
        assert_int_equal(n, 77);
    }
}

static void a_world_layout_fills_up_with_ones(void **state)
{
    (void)state;
    char text[WEIR_WORLD_LAYOUT_TEXT];
    weir_world_layout layout = { 8, 0, 1, 4 };
    assert_string_equal(weir_world_layout_text(&layout, text, sizeof(text)),
                        "fsdp:8,tp:1,pp:1,ep:4");
    assert_int_equal(weir_world_layout_parse("ep:2,cp:9,fsdp:3", &layout), WEIR_OK);
    assert_int_equal(layout.fsdp, 3);
    assert_int_equal(layout.tp, 1);
    assert_int_equal(layout.pp, 1);
    assert_int_equal(layout.ep, 2);
    assert_int_equal(weir_world_layout_parse("", &layout), WEIR_OK);
    assert_int_equal(layout.ep, 1);
}

static void what_is_no_world_layout_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        ",",  "fsdp",  "fsdp:", "fsdp:0",    "fsdp:1,",       "fsdp:x",
        ":4", "tp:1x", "tp:-1", "tp:1,tp:2", "tp:4294967296", "tp;1"
    };
    weir_world_layout layout = { 5, 5, 5, 5 };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(weir_world_layout_parse(bad[i], &layout), WEIR_ERR_FORMAT);
        assert_int_equal(layout.fsdp, 5);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_set_of_experts_is_sorted_and_holds_each_once),
        cmocka_unit_test(what_is_no_set_of_experts_is_refused),
        cmocka_unit_test(a_world_layout_fills_up_with_ones),
        cmocka_unit_test(what_is_no_world_layout_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
