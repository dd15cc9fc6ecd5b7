/* SPDX-License-Identifier: Apache-2.0 */
#include "family/source_set.h"
#include "plan/slice.h"

typedef struct cut_case {
    source_set *set;
    weir_mapping *mapping;
    weir_fleet_tensor *tensors;
    size_t n;
} cut_case;

static cut_case open_case(const char *family)
{
    cut_case c = { .set = set_of_preset(family, "ragged", WEIR_NAMING_HF) };
    assert_int_equal(set_open(c.set, NULL, NULL, NULL, &c.mapping), WEIR_OK);
    assert_int_equal(weir_fleet_tensors_of(c.mapping, &c.tensors, &c.n), WEIR_OK);
    return c;
}

static void close_case(cut_case *c)
{
    weir_fleet_tensors_free(c->tensors);
    weir_mapping_close(c->mapping);
    set_free(c->set);
}

/* What worker 1 of 2 has of a tensor. */
static weir_slice second_half(const cut_case *c, const char *name)
{
    weir_slice slice = { 0 };
    for (size_t i = 0; i < c->n; i++) {
        if (strcmp(c->tensors[i].name, name) != 0)
            continue;
        assert_int_equal(weir_slice_of(&c->tensors[i], 2, 1, 64, &slice), WEIR_OK);
        return slice;
    }
    fail_msg("no tensor %s", name);
    return slice;
}

static void assert_segment(const weir_segment *segment, uint32_t source, uint64_t source_row,
                           uint64_t n_rows)
{
    assert_int_equal(segment->source, source);
    assert_int_equal(segment->source_row, source_row);
    assert_int_equal(segment->n_rows, n_rows);
}

/* 2 key heads of 24, 4 value heads of 40: in_proj_qkv holds 48 + 48 + 160 rows, in_proj_z 160. */
static void linear_attention_is_cut_part_by_part(void **state)
{
    (void)state;
    cut_case c = open_case("qwen3_5");
    weir_slice slice = second_half(&c, "model.layers.0.linear_attn.in_proj_qkvz.weight");
    assert_int_equal(slice.n_segments, 4);
    assert_int_equal(slice.n_rows, 24 + 24 + 80 + 80);
    assert_segment(&slice.segments[0], 0, 24, 24);
    assert_segment(&slice.segments[1], 0, 48 + 24, 24);
    assert_segment(&slice.segments[2], 0, 96 + 80, 80);
    assert_segment(&slice.segments[3], 1, 80, 80);
    slice = second_half(&c, "model.layers.0.linear_attn.conv1d.weight");
    assert_int_equal(slice.n_segments, 3);
    assert_segment(&slice.segments[1], 0, 48 + 24, 24);
    assert_segment(&slice.segments[2], 0, 96 + 80, 80);
    slice = second_half(&c, "model.layers.0.linear_attn.in_proj_ba.weight");
    assert_segment(&slice.segments[0], 0, 2, 2);
    assert_segment(&slice.segments[1], 1, 2, 2);
    slice = second_half(&c, "model.layers.0.linear_attn.A_log");
    assert_segment(&slice.segments[0], 0, 2, 2);
    slice = second_half(&c, "model.layers.0.linear_attn.norm.weight");
    assert_segment(&slice.segments[0], 0, 0, 40);
    slice = second_half(&c, "model.layers.0.linear_attn.out_proj.weight");
    assert_int_equal(slice.segments[0].source_col, 80);
    close_case(&c);
}

/* Each head of q_proj holds its gate behind its query. */
static void a_query_stays_with_its_gate(void **state)
{
    (void)state;
    cut_case c = open_case("qwen3_5");
    weir_slice slice = second_half(&c, "model.layers.1.self_attn.qkv_proj.weight");
    assert_segment(&slice.segments[0], 0, 2 * 2 * 72, 2 * 2 * 72);
    assert_segment(&slice.segments[1], 1, 0, 72); /* one key head, on both workers */
    close_case(&c);
}

static void gemmas_differ_in_the_norms_of_queries_and_keys(void **state)
{
    (void)state;
    cut_case two = open_case("gemma2"), three = open_case("gemma3_text");
    assert_int_equal(two.n + 2 * 2, three.n);
    assert_null(find_entry(two.mapping, "model.layers.0.self_attn.q_norm.weight"));
    assert_non_null(find_entry(three.mapping, "model.layers.0.self_attn.q_norm.weight"));
    close_case(&two);
    close_case(&three);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_attention_is_cut_part_by_part),
        cmocka_unit_test(a_query_stays_with_its_gate),
        cmocka_unit_test(gemmas_differ_in_the_norms_of_queries_and_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
