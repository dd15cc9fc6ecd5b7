/* SPDX-License-Identifier: Apache-2.0 */
#include "weir/plan.h"

#include "family/source_set.h"

static void sign(const weir_parameter *parameters, size_t n, char out[33])
{
    assert_int_equal(weir_layout_signature(parameters, n, out), WEIR_OK);
    assert_int_equal(strlen(out), 32);
}

static void the_signature_of_a_layout_is_pinned(void **state)
{
    (void)state;
    const weir_parameter p[] = {
        { "a.weight", WEIR_BF16, { 2, { 8, 4 } }, "hf_raw", "{}", 0, 0, false },
        { "a.weight_scale", WEIR_F32, { 1, { 8 } }, "hf_raw", "{}", 0, 1, false },
    };
    char text[33];
    sign(p, 2, text);
    assert_string_equal(text, "ba082a07803b76ab298c11f96c6bffc6");
    sign(p, 0, text);
    assert_string_equal(text, "00000000000000000000000000000000");
}

static void whatever_a_reader_sees_changes_the_signature(void **state)
{
    (void)state;
    const weir_parameter base = { "a.weight", WEIR_BF16, { 2, { 8, 4 } }, "hf_raw", "{}", 0,
                                  0,          false };
    weir_parameter p[2][2];
    char reference[33], text[33];
    for (int change = 0; change < 6; change++) {
        for (int k = 0; k < 2; k++)
            p[k][0] = p[k][1] = base;
        p[0][1].name = p[1][1].name = "b.weight";
        weir_parameter *q = &p[1][0];
        switch (change) {
        case 0:
            q->name = "a.weighu";
            break;
        case 1:
            q->dtype = WEIR_F16;
            break;
        case 2:
            q->shape = SHAPE(4, 8);
            break;
        case 3:
            q->compile_target = "hf_rax";
            break;
        case 4:
            q->compile_metadata = "{ }";
            break;
        default:
            q[0].name = "b.weight"; /* another order */
            q[1].name = "a.weight";
            break;
        }
        sign(p[0], 2, reference);
        sign(p[1], 2, text);
        assert_string_not_equal(reference, text);
    }
}

static void the_order_and_naming_of_sources_do_not_matter(void **state)
{
    (void)state;
    char expected[33], text[33];
    size_t n;
    for (int naming = 0; naming < 3; naming++) {
        source_set *set = set_of_preset("glm_moe_dsa", "ragged", (weir_naming)naming);
        weir_mapping *m = NULL;
        set_shuffle(set);
        assert_int_equal(set_open(set, NULL, NULL, "fp8_128x128", &m), WEIR_OK);
        const weir_parameter *p = weir_mapping_parameters(m, &n);
        sign(p, n, naming == 0 ? expected : text);
        assert_true(naming == 0 || strcmp(expected, text) == 0);
        weir_mapping_close(m);
        set_free(set);
    }
}

static void no_memory_is_reported(void **state)
{
    (void)state;
    char text[33];
    weir_alloc_fail_at(1);
    assert_int_equal(weir_layout_signature(NULL, 0, text), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_signature_of_a_layout_is_pinned),
        cmocka_unit_test(whatever_a_reader_sees_changes_the_signature),
        cmocka_unit_test(the_order_and_naming_of_sources_do_not_matter),
        cmocka_unit_test(no_memory_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
