/* SPDX-License-Identifier: Apache-2.0 */
/* What registries must not say; that what they say is understood stands in test_registry_of_held.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "weir/descriptor.h"

static const weir_tensor matrix = { .name = "a", .dtype = WEIR_BF16, .shape = { 2, { 16, 8 } } };
static const weir_tensor stack = { .name = "a", .dtype = WEIR_BF16, .shape = { 3, { 4, 16, 8 } } };

/* Two ranks, halves of "a". */
typedef struct scene {
    weir_map_entry entry;
    weir_fleet_tensor tensor;
    weir_described_model model;
    weir_tensor_descriptor tensors[2];
    weir_tensor_registry registries[2];
    weir_publisher publishers[2];
} scene;

static void scene_init(scene *s)
{
    memset(s, 0, sizeof(*s));
    s->entry = (weir_map_entry){ .sources = &matrix, .n_sources = 1 };
    s->tensor = (weir_fleet_tensor){ .name = "a",
                                     .n_cols = 8,
                                     .n_sources = 1,
                                     .n_parts = 1,
                                     .source_rows = { 16 },
                                     .parts = { { 0, 0, 0, 16 } } };
    s->model = (weir_described_model){ &s->entry, &s->tensor, 1 };
    for (uint32_t r = 0; r < 2; r++) {
        s->tensors[r] = (weir_tensor_descriptor){ .name = "a",
                                                  .global_shape = matrix.shape,
                                                  .dtype = "bfloat16",
                                                  .placement = WEIR_PLACEMENT_SHARD,
                                                  .has_range = true,
                                                  .range_lo = r * 8,
                                                  .range_hi = r * 8 + 8 };
        s->registries[r] = (weir_tensor_registry){ 3, { 2, 1, 1, 1 }, &s->tensors[r], 1 };
        s->publishers[r] = (weir_publisher){ r == 0 ? "w0" : "w1", r, &s->registries[r] };
    }
}

static void assert_refused(scene *s, weir_status status, const char *text)
{
    weir_held *held = NULL;
    size_t n = 0;
    assert_int_equal(weir_held_of_registries(&s->model, s->publishers, 2, &held, &n), status);
    assert_null(held);
    if (strstr(weir_last_error(), text) == NULL)
        fail_msg("'%s' is not in '%s'", text, weir_last_error());
}

static void halves_are_two_boxes(void **state)
{
    (void)state;
    scene s;
    weir_held *held;
    size_t n;
    scene_init(&s);
    assert_int_equal(weir_held_of_registries(&s.model, s.publishers, 2, &held, &n), WEIR_OK);
    assert_int_equal(n, 2);
    assert_int_equal(held[1].rank, 1);
    assert_int_equal(held[1].row_lo, 8);
    assert_int_equal(held[1].row_hi, 16);
    assert_int_equal(held[1].col_hi, 8);
    weir_held_free(held);
}

/* Trainers that stack shared experts, of which there is one. */
static void a_stack_of_one_is_its_matrix(void **state)
{
    (void)state;
    scene s;
    weir_held *held;
    size_t n;
    scene_init(&s);
    weir_shape stacked = { 3, { 1, 16, 8 } };
    s.tensors[0].global_shape = s.tensors[1].global_shape = stacked;
    s.tensors[0].shard_axis = 1;
    s.tensors[1].placement = WEIR_PLACEMENT_BOX;
    s.tensors[1].has_range = false;
    s.tensors[1].box = (weir_box){ 3, { 0, 8, 2 }, { 1, 16, 8 } };
    assert_int_equal(weir_held_of_registries(&s.model, s.publishers, 2, &held, &n), WEIR_OK);
    assert_int_equal(n, 2);
    assert_int_equal(held[0].row_hi, 8);
    assert_int_equal(held[1].row_lo, 8);
    assert_int_equal(held[1].col_lo, 2);
    weir_held_free(held);
    s.tensors[0].global_shape.dim[0] = 2;
    assert_refused(&s, WEIR_ERR_LAYOUT, "a: shape disagreement [2, 16, 8] vs [16, 8]");
}

static void workers_must_agree_on_version_and_ranks(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    s.registries[1].version = 4;
    assert_refused(&s, WEIR_ERR_LAYOUT,
                   "mixed versions: rank 0 (worker w0) publishes version 3, "
                   "rank 1 (worker w1) version 4");
    scene_init(&s);
    s.publishers[1].rank = 0;
    assert_refused(&s, WEIR_ERR_LAYOUT, "rank 0 is worker w0 and worker w1");
    s.publishers[1].rank = UINT32_MAX;
    assert_refused(&s, WEIR_ERR_INVALID, "worker w1 says that it is rank 4294967295");
    s.publishers[1] = (weir_publisher){ "w1", 1, NULL };
    assert_refused(&s, WEIR_ERR_LAYOUT, "rank 1 (worker w1) publishes no registry");
}

static void tensors_must_be_the_models(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    s.tensors[1].name = "b";
    assert_refused(&s, WEIR_ERR_LAYOUT,
                   "b: published by rank 1 (worker w1), the model has no such tensor");
    scene_init(&s);
    s.tensors[1].global_shape.dim[1] = 9;
    assert_refused(&s, WEIR_ERR_LAYOUT, "a: shape disagreement [16, 9] vs [16, 8]");
    scene_init(&s);
    s.tensors[1].dtype = "float16"; /* as many bytes */
    assert_refused(&s, WEIR_ERR_LAYOUT, "dtype is float16 at rank 1 (worker w1), bfloat16");
    scene_init(&s);
    s.tensors[1].compile_target = "cutlass_fp8";
    assert_refused(&s, WEIR_ERR_LAYOUT, "compile target is cutlass_fp8");
    scene_init(&s);
    s.tensors[1].compile_metadata = "{\"transposed\":true}";
    assert_refused(&s, WEIR_ERR_LAYOUT, "transposed");
    scene_init(&s);
    s.tensors[1].has_range = false;
    s.tensors[1].placement = WEIR_PLACEMENT_PARTIAL;
    assert_refused(&s, WEIR_ERR_LAYOUT, "placement_kind=PARTIAL not supported in v0");
    scene_init(&s);
    s.tensors[1].range_hi = 17;
    assert_refused(&s, WEIR_ERR_INVALID, "rank 1 (worker w1): a: range [8, 17) outside");
}

static void experts_must_lie_where_the_model_has_them(void **state)
{
    (void)state;
    static const uint32_t ids[] = { 1, 3 };
    scene s;
    weir_held *held;
    size_t n;
    scene_init(&s);
    s.tensors[1].is_expert = true; /* of a matrix */
    s.tensors[1].expert_axis = 1;
    s.tensors[1].expert_ids = ids;
    s.tensors[1].n_expert_ids = 2;
    assert_refused(&s, WEIR_ERR_LAYOUT, "axis 1 holds experts at rank 1 (worker w1) alone");
    s.entry.sources = &stack;
    s.tensor.n_experts = 4;
    s.tensor.stacked = true;
    for (int r = 0; r < 2; r++) {
        s.tensors[r].global_shape = stack.shape;
        s.tensors[r].placement = WEIR_PLACEMENT_BOX;
        s.tensors[r].has_range = false;
        s.tensors[r].box = (weir_box){ 3, { 0, 8, 0 }, { 4, 16, 4 } };
    }
    assert_refused(&s, WEIR_ERR_INVALID, "2 expert ids from 1 on, but range [8, 16) of axis 1");
    s.tensors[1].expert_axis = 0;
    assert_int_equal(weir_held_of_registries(&s.model, s.publishers, 2, &held, &n), WEIR_OK);
    assert_int_equal(n, 3); /* all experts of rank 0, one and one of rank 1 */
    assert_int_equal(held[0].expert_hi, 4);
    assert_int_equal(held[2].expert_lo, 3);
    assert_int_equal(held[2].expert_hi, 4);
    assert_int_equal(held[2].row_lo, 8);
    assert_int_equal(held[2].col_hi, 4);
    weir_held_free(held);
}

static void out_of_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    scene s;
    weir_status status = WEIR_ERR_NO_MEMORY;
    scene_init(&s);
    for (uint64_t at = 1; status == WEIR_ERR_NO_MEMORY; at++) {
        weir_held *held = NULL;
        size_t n;
        assert_true(at < 20);
        weir_alloc_fail_at(at);
        status = weir_held_of_registries(&s.model, s.publishers, 2, &held, &n);
        weir_alloc_fail_at(0);
        weir_held_free(held);
    }
    assert_int_equal(status, WEIR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halves_are_two_boxes),
        cmocka_unit_test(a_stack_of_one_is_its_matrix),
        cmocka_unit_test(workers_must_agree_on_version_and_ranks),
        cmocka_unit_test(tensors_must_be_the_models),
        cmocka_unit_test(experts_must_lie_where_the_model_has_them),
        cmocka_unit_test(out_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
