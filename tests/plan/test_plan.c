/* SPDX-License-Identifier: Apache-2.0 */
#include "weir/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"

#define FP8_TAG "{\"dtype\":\"e4m3\",\"scale_layout\":\"blockwise\",\"block_size\":[128,128]}"
#define MANY 64

#define assert_error_is(text) assert_string_equal(weir_last_error(), text)

static const weir_mesh_place lone = { 0, 0, 0 };

/* Two parameters and a derived one. */
static const weir_parameter wanted[] = {
    { "a.weight", WEIR_BF16, { 2, { 8, 4 } }, "hf_raw", "{}", 0, 0, false },
    { "b.weight", WEIR_F8_E4M3, { 2, { 6, 10 } }, "deep_gemm_fp8", FP8_TAG, 1, 0, false },
    { "c.derived", WEIR_BF16, { 1, { 3 } }, "hf_raw", "{}", SIZE_MAX, 0, false },
};

static weir_shard shard_of(const weir_parameter *p, uint64_t lo, uint64_t hi, uint64_t offset)
{
    weir_shard shard = { .name = p->name,
                         .dtype = p->dtype,
                         .global_shape = p->shape,
                         .box = weir_box_whole(&p->shape),
                         .compile_target = p->compile_target,
                         .compile_metadata = p->compile_metadata,
                         .offset = offset };
    shard.box.lo[0] = lo;
    shard.box.hi[0] = hi;
    weir_shape part = weir_box_shape(&shard.box);
    assert_int_equal(weir_tensor_bytes(p->dtype, &part, &shard.n_bytes), WEIR_OK);
    shard.digest.sum = lo * 100 + hi;
    return shard;
}

typedef struct fixture {
    weir_shard shards[2][MANY];
    weir_plan_source sources[2];
} fixture;

/* Rank 0 has all of a and the first rows of b, rank 1 the rest of b. */
static fixture *make_fixture(void)
{
    fixture *f = calloc(1, sizeof(*f));
    f->shards[0][0] = shard_of(&wanted[0], 0, 8, 100);
    f->shards[0][1] = shard_of(&wanted[1], 0, 2, 0);
    f->shards[1][0] = shard_of(&wanted[1], 2, 6, 32);
    f->sources[0] = (weir_plan_source){ "trainer rank 0 (worker aa)", f->shards[0], 2 };
    f->sources[1] = (weir_plan_source){ "trainer rank 1 (worker bb)", f->shards[1], 1 };
    return f;
}

static weir_status open_fixture(const fixture *f, weir_plan **out)
{
    return weir_plan_open(wanted, 3, &lone, f->sources, 2, out);
}

static void assert_refused(fixture *f, const char *line)
{
    weir_plan *plan = NULL;
    assert_int_equal(open_fixture(f, &plan), WEIR_ERR_LAYOUT);
    assert_null(plan);
    assert_error_is(line);
    free(f);
}

/* ---- plans -----------------------------------------------------------------------------------*/

static void every_row_is_copied_once_in_order_of_source_and_offset(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    weir_plan *plan = NULL;
    size_t n;
    assert_int_equal(open_fixture(f, &plan), WEIR_OK);
    const weir_plan_copy *copies = weir_plan_copies(plan, &n);
    const weir_plan_copy expected[] = { { 0, 1, 0, 0, 1, 0, 20, 20, 0, 0 },
                                        { 0, 0, 0, 100, 0, 0, 64, 64, 0, 0 },
                                        { 1, 0, 0, 32, 1, 20, 40, 40, 0, 20 } };
    assert_int_equal(n, 3);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(copies[i].source, expected[i].source);
        assert_int_equal(copies[i].shard, expected[i].shard);
        assert_int_equal(copies[i].source_offset, expected[i].source_offset);
        assert_int_equal(copies[i].parameter, expected[i].parameter);
        assert_int_equal(copies[i].parameter_offset, expected[i].parameter_offset);
        assert_int_equal(copies[i].n_bytes, expected[i].n_bytes);
    }
    assert_int_equal(weir_plan_bytes(plan), 124);
    weir_plan_close(plan);
    weir_plan_close(NULL);
    free(f);
}

static void regions_order_before_offsets(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    weir_plan *plan = NULL;
    size_t n;
    f->shards[0][1].region = 2;
    assert_int_equal(open_fixture(f, &plan), WEIR_OK);
    const weir_plan_copy *copies = weir_plan_copies(plan, &n);
    assert_int_equal(copies[0].region, 0);
    assert_int_equal(copies[1].region, 2);
    weir_plan_close(plan);
    free(f);
}

static void replicated_parts_are_taken_once_from_whoever_gives_least(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    weir_plan *plan = NULL;
    size_t n;
    for (int s = 0; s < 2; s++) {
        f->shards[s][0] = shard_of(&wanted[0], 0, 8, 0);
        f->shards[s][1] = shard_of(&wanted[1], 0, 6, 64);
        f->sources[s].n_shards = 2;
    }
    assert_int_equal(open_fixture(f, &plan), WEIR_OK);
    const weir_plan_copy *copies = weir_plan_copies(plan, &n);
    assert_int_equal(n, 2);
    assert_int_equal(copies[0].parameter, 0);
    assert_int_equal(copies[0].source, 0);
    assert_int_equal(copies[1].parameter, 1);
    assert_int_equal(copies[1].source, 1);
    weir_plan_close(plan);
    free(f);
}

static void a_derived_parameter_is_neither_wanted_nor_in_the_way(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    weir_plan *plan = NULL;
    size_t n;
    f->shards[1][1] = shard_of(&wanted[2], 0, 3, 0);
    f->sources[1].n_shards = 2;
    assert_int_equal(open_fixture(f, &plan), WEIR_OK);
    weir_plan_copies(plan, &n);
    assert_int_equal(n, 3);
    weir_plan_close(plan);
    free(f);
}

static void a_scalar_is_one_row(void **state)
{
    (void)state;
    weir_parameter scalar = { "s", WEIR_F32, { 0, { 0 } }, "hf_raw", "{}", 0, 0, false };
    weir_shard shard = { .name = "s",
                         .dtype = WEIR_F32,
                         .compile_target = "hf_raw",
                         .compile_metadata = "{}",
                         .n_bytes = 4 };
    weir_plan_source source = { "w", &shard, 1 };
    weir_plan *plan = NULL;
    assert_int_equal(weir_plan_open(&scalar, 1, &lone, &source, 1, &plan), WEIR_OK);
    assert_int_equal(weir_plan_bytes(plan), 4);
    weir_plan_close(plan);
}

static void metadata_with_other_spacing_and_order_is_the_same(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    weir_plan *plan = NULL;
    f->shards[1][0].compile_metadata =
        "{ \"block_size\": [128, 128], \"dtype\": \"e4m3\", \"scale_layout\": \"blockwise\" }";
    assert_int_equal(open_fixture(f, &plan), WEIR_OK);
    weir_plan_close(plan);
    free(f);
}

/* ---- refusals --------------------------------------------------------------------------------*/

static void a_gap_is_named_with_its_rows(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[0][1] = shard_of(&wanted[1], 0, 1, 0);
    assert_refused(f, "b.weight: coverage gap at axis 0 [1, 2)");
    f = make_fixture();
    f->shards[1][0] = shard_of(&wanted[1], 2, 5, 0);
    assert_refused(f, "b.weight: coverage gap at axis 0 [5, 6)");
    f = make_fixture();
    f->sources[0].n_shards = 1;
    assert_refused(f, "b.weight: coverage gap at axis 0 [0, 2)");
}

static void a_parameter_nobody_publishes_is_named(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->sources[0].shards++;
    f->sources[0].n_shards = 1;
    assert_refused(f, "a.weight: no source publishes it");
}

static void overlapping_boxes_are_refused_with_both_sides(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[1][0] = shard_of(&wanted[1], 1, 6, 0);
    assert_refused(f, "b.weight: [1, 6) x [0, 10) of trainer rank 1 (worker bb) overlaps "
                      "[0, 2) x [0, 10) of trainer rank 0 (worker aa)");
}

static void replicas_of_one_part_must_hold_the_same_bytes(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[1][1] = shard_of(&wanted[0], 0, 8, 0);
    f->shards[1][1].digest.product = 1;
    f->sources[1].n_shards = 2;
    assert_refused(f, "a.weight: [0, 8) x [0, 4) differs between trainer rank 0 (worker aa) and "
                      "trainer rank 1 (worker bb)");
}

static void a_parameter_nobody_wants_is_refused(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[1][0].name = "d.weight";
    assert_refused(f, "d.weight: published by trainer rank 1 (worker bb), this replica has no such "
                      "parameter");
}

static void of_several_problems_what_does_not_fit_comes_before_who_is_unknown(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[0][0].name = "d.weight";
    f->shards[1][0].dtype = WEIR_F32;
    assert_refused(f, "b.weight: dtype is F32 at trainer rank 1 (worker bb), this replica needs "
                      "F8_E4M3 (and 1 more)");
}

static void a_dtype_that_differs_is_named_with_both_sides(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[0][0].dtype = WEIR_F32;
    assert_refused(f, "a.weight: dtype is F32 at trainer rank 0 (worker aa), this replica needs "
                      "BF16");
}

static void a_shape_that_differs_is_named_with_both_sides(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[0][0].global_shape.dim[1] = 5;
    assert_refused(f, "a.weight: shape is [8, 5] at trainer rank 0 (worker aa), this replica needs "
                      "[8, 4]");
    f = make_fixture();
    f->shards[0][0].global_shape.rank = 4000000;
    weir_plan *plan = NULL;
    assert_int_equal(open_fixture(f, &plan), WEIR_ERR_LAYOUT);
    free(f);
}

static void a_compile_target_that_differs_is_named_with_both_sides(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[0][1].compile_target = "cutlass_fp8";
    assert_refused(f, "b.weight: compile target is cutlass_fp8 at trainer rank 0 (worker aa), this "
                      "replica needs deep_gemm_fp8");
}

static void metadata_that_differs_is_named_key_by_key(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[1][0].compile_metadata =
        "{\"dtype\":\"e4m3\",\"scale_layout\":\"blockwise\",\"block_size\":[64,64]}";
    assert_refused(f, "b.weight: compile metadata block_size is [64,64] at trainer rank 1 (worker "
                      "bb), this replica needs [128,128]");
}

static void the_first_difference_counts_the_others(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[0][0].dtype = WEIR_F32;
    f->shards[0][1].dtype = WEIR_F32;
    f->shards[1][0].dtype = WEIR_F32;
    assert_refused(f, "a.weight: dtype is F32 at trainer rank 0 (worker aa), this replica needs "
                      "BF16 (and 2 more)");
}

static void a_part_that_is_published_twice_is_refused(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[1][1] = f->shards[1][0];
    f->sources[1].n_shards = 2;
    assert_refused(f, "b.weight: trainer rank 1 (worker bb) publishes [2, 6) x [0, 10) twice");
}

static void boxes_outside_the_parameter_are_refused(void **state)
{
    (void)state;
#define NO_PART(box) \
    "b.weight: trainer rank 1 (worker bb) publishes " box ", which is no part of [6, 10]"
    fixture *f = make_fixture();
    f->shards[1][0].box.hi[1] = 11;
    assert_refused(f, NO_PART("[2, 6) x [0, 11)"));
    f = make_fixture();
    f->shards[1][0].box.lo[1] = UINT64_MAX;
    assert_refused(f, NO_PART("[2, 6) x [18446744073709551615, 10)"));
    f = make_fixture();
    f->shards[1][0].box.lo[0] = 6;
    assert_refused(f, NO_PART("[6, 6) x [0, 10)"));
    f = make_fixture();
    f->shards[1][0].box.rank = 3;
    f->shards[1][0].box.hi[2] = 1;
    assert_refused(f, NO_PART("[2, 6) x [0, 10) x [0, 1)"));
    f = make_fixture();
    f->shards[1][0].box.rank = 4000000;
    weir_plan *plan = NULL;
    assert_int_equal(open_fixture(f, &plan), WEIR_ERR_LAYOUT);
    free(f);
}

static void sizes_that_do_not_match_the_box_are_refused(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    f->shards[1][0].n_bytes = 41;
    assert_refused(f, "b.weight: trainer rank 1 (worker bb) publishes 41 bytes for "
                      "[2, 6) x [0, 10), which has 40");
    f = make_fixture();
    f->shards[1][0].offset = UINT64_MAX - 3;
    assert_refused(f, "b.weight: trainer rank 1 (worker bb) publishes it at an impossible offset");
}

static void wanting_a_parameter_twice_is_refused(void **state)
{
    (void)state;
    const weir_parameter twice[] = { wanted[0], wanted[0] };
    weir_plan *plan = NULL;
    assert_int_equal(weir_plan_open(twice, 2, &lone, NULL, 0, &plan), WEIR_ERR_INVALID);
    assert_error_is("parameter a.weight is wanted twice");
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    fixture *f = make_fixture();
    weir_status status = WEIR_ERR_NO_MEMORY;
    int n_failed = 0;
    for (uint64_t n = 1; status != WEIR_OK; n++) {
        weir_plan *plan = NULL;
        weir_alloc_fail_at(n);
        status = open_fixture(f, &plan);
        weir_alloc_fail_at(0);
        if (status != WEIR_OK) {
            assert_int_equal(status, WEIR_ERR_NO_MEMORY);
            assert_null(plan);
            n_failed++;
        }
        weir_plan_close(plan);
    }
    assert_true(n_failed >= 3);
    free(f);
}

/* ---- size ------------------------------------------------------------------------------------*/

static void a_thousand_ranks_with_a_thousand_parameters_each_are_planned(void **state)
{
    (void)state;
    enum { RANKS = 1000, PARAMETERS = 1000 };
    weir_parameter *many = calloc(PARAMETERS, sizeof(*many));
    weir_shard *shards = calloc((size_t)RANKS * PARAMETERS, sizeof(*shards));
    weir_plan_source *sources = calloc(RANKS, sizeof(*sources));
    char(*names)[32] = calloc(PARAMETERS, sizeof(*names));
    for (size_t i = 0; i < PARAMETERS; i++) {
        snprintf(names[i], sizeof(names[i]), "model.layers.%zu.weight", i);
        many[i] = (weir_parameter){ names[i], WEIR_BF16, { 2, { RANKS, 4 } }, "hf_raw", "{}", i,
                                    0,        false };
    }
    for (size_t s = 0; s < RANKS; s++) {
        for (size_t i = 0; i < PARAMETERS; i++)
            shards[s * PARAMETERS + i] = shard_of(&many[i], s, s + 1, i * 8);
        sources[s] = (weir_plan_source){ "rank", shards + s * PARAMETERS, PARAMETERS };
    }
    weir_plan *plan = NULL;
    size_t n;
    double begun = weir_now_s();
    assert_int_equal(weir_plan_open(many, PARAMETERS, &lone, sources, RANKS, &plan), WEIR_OK);
    print_message("planned %d shards in %.3f s\n", RANKS * PARAMETERS, weir_now_s() - begun);
    weir_plan_copies(plan, &n);
    assert_int_equal(n, RANKS * PARAMETERS);
    weir_plan_close(plan);
    free(names);
    free(sources);
    free(shards);
    free(many);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_is_copied_once_in_order_of_source_and_offset),
        cmocka_unit_test(regions_order_before_offsets),
        cmocka_unit_test(replicated_parts_are_taken_once_from_whoever_gives_least),
        cmocka_unit_test(a_derived_parameter_is_neither_wanted_nor_in_the_way),
        cmocka_unit_test(a_scalar_is_one_row),
        cmocka_unit_test(metadata_with_other_spacing_and_order_is_the_same),
        cmocka_unit_test(a_gap_is_named_with_its_rows),
        cmocka_unit_test(a_parameter_nobody_publishes_is_named),
        cmocka_unit_test(overlapping_boxes_are_refused_with_both_sides),
        cmocka_unit_test(replicas_of_one_part_must_hold_the_same_bytes),
        cmocka_unit_test(a_parameter_nobody_wants_is_refused),
        cmocka_unit_test(of_several_problems_what_does_not_fit_comes_before_who_is_unknown),
        cmocka_unit_test(a_dtype_that_differs_is_named_with_both_sides),
        cmocka_unit_test(a_shape_that_differs_is_named_with_both_sides),
        cmocka_unit_test(a_compile_target_that_differs_is_named_with_both_sides),
        cmocka_unit_test(metadata_that_differs_is_named_key_by_key),
        cmocka_unit_test(the_first_difference_counts_the_others),
        cmocka_unit_test(a_part_that_is_published_twice_is_refused),
        cmocka_unit_test(boxes_outside_the_parameter_are_refused),
        cmocka_unit_test(sizes_that_do_not_match_the_box_are_refused),
        cmocka_unit_test(wanting_a_parameter_twice_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(a_thousand_ranks_with_a_thousand_parameters_each_are_planned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
