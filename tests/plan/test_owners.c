/* SPDX-License-Identifier: Apache-2.0 */
#include "weir/plan.h"

#include "family/source_set.h"

static uint64_t entry_bytes(const weir_mapping *m, const weir_map_entry *entry)
{
    size_t n;
    uint64_t total = 0, n_bytes;
    const weir_parameter *p = weir_mapping_parameters(m, &n);
    for (size_t o = 0; o < entry->conversion->n_outputs; o++) {
        const weir_parameter *parameter = &p[entry->first_parameter + o];
        assert_int_equal(weir_tensor_bytes(parameter->dtype, &parameter->shape, &n_bytes), WEIR_OK);
        total += n_bytes;
    }
    return total;
}

static void bytes_are_spread_evenly_and_every_rank_agrees(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_HF_FUSED);
    weir_mapping *m = NULL, *again = NULL;
    uint32_t owners[512], same[512];
    uint64_t loads[4] = { 0 };
    size_t n;
    assert_int_equal(set_open(set, NULL, NULL, "fp8_128x128", &m), WEIR_OK);
    set_shuffle(set);
    assert_int_equal(set_open(set, NULL, NULL, "fp8_128x128", &again), WEIR_OK);
    const weir_map_entry *entries = weir_mapping_entries(m, &n);
    assert_true(n <= 512);
    assert_int_equal(weir_plan_owners(m, 4, owners), WEIR_OK);
    assert_int_equal(weir_plan_owners(again, 4, same), WEIR_OK);
    assert_memory_equal(owners, same, n * sizeof(owners[0]));
    for (size_t i = 0; i < n; i++) {
        assert_in_range(owners[i], 0, 3);
        loads[owners[i]] += entry_bytes(m, &entries[i]);
    }
    for (int r = 1; r < 4; r++)
        assert_in_range(loads[r], loads[0] * 9 / 10, loads[0] * 11 / 10);
    weir_mapping_close(m);
    weir_mapping_close(again);
    set_free(set);
}

static void ties_go_to_the_lowest_rank(void **state)
{
    (void)state;
    source_set *set = set_new();
    weir_mapping *m = NULL;
    uint32_t owners[3];
    set_add(set, "model.layers.0.input_layernorm.weight", WEIR_BF16, SHAPE(4));
    set_add(set, "model.layers.1.input_layernorm.weight", WEIR_BF16, SHAPE(4));
    set_add(set, "model.layers.2.input_layernorm.weight", WEIR_BF16, SHAPE(9));
    assert_int_equal(set_open(set, "llama", NULL, NULL, &m), WEIR_OK);
    assert_int_equal(weir_plan_owners(m, 2, owners), WEIR_OK);
    assert_int_equal(owners[2], 0);
    assert_int_equal(owners[0], 1);
    assert_int_equal(owners[1], 1);
    assert_int_equal(weir_plan_owners(m, 5, owners), WEIR_OK);
    assert_int_equal(owners[2], 0);
    assert_int_equal(owners[0], 1);
    assert_int_equal(owners[1], 2);
    assert_int_equal(weir_plan_owners(m, 0, owners), WEIR_ERR_INVALID);
    for (int n = 1; n <= 2; n++) {
        weir_alloc_fail_at((uint64_t)n);
        assert_int_equal(weir_plan_owners(m, 2, owners), WEIR_ERR_NO_MEMORY);
        weir_alloc_fail_at(0);
    }
    weir_mapping_close(m);
    set_free(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_are_spread_evenly_and_every_rank_agrees),
        cmocka_unit_test(ties_go_to_the_lowest_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
