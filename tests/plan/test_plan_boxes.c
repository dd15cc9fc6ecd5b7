/* SPDX-License-Identifier: Apache-2.0 */
/* test_plan_boxes.c - plans of one parameter that is cut along any axes: runs, places, padding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "weir/plan.h"

#define assert_error_is(text) assert_string_equal(weir_last_error(), text)

static const weir_mesh_place lone = { 0, 0, 0 };

typedef struct box_case {
    weir_parameter parameter;
    weir_shard shards[4];
    weir_plan_source source;
} box_case;

/* A parameter named w, and a source that has nothing of it yet. */
static void begin_case(box_case *c, weir_dtype dtype, weir_shape shape)
{
    memset(c, 0, sizeof(*c));
    c->parameter = (weir_parameter){ "w", dtype, shape, "hf_raw", "{}", 0, 0, false };
    c->source = (weir_plan_source){ "rank 0", c->shards, 0 };
}

static weir_shard *add_box(box_case *c, weir_box box)
{
    weir_shard *shard = &c->shards[c->source.n_shards++];
    *shard = (weir_shard){ .name = "w",
                           .dtype = c->parameter.dtype,
                           .global_shape = c->parameter.shape,
                           .box = box,
                           .compile_target = "hf_raw",
                           .compile_metadata = "{}",
                           .offset = 1000 * c->source.n_shards };
    weir_shape extent = weir_box_shape(&box);
    if (weir_tensor_bytes(shard->dtype, &extent, &shard->n_bytes) != WEIR_OK)
        shard->n_bytes = 1; /* no whole bytes */
    return shard;
}

static weir_status open_case(const box_case *c, const weir_mesh_place *place, weir_plan **out)
{
    return weir_plan_open(&c->parameter, 1, place, &c->source, 1, out);
}

static void assert_case_refused(const box_case *c, const char *line)
{
    weir_plan *plan = NULL;
    assert_int_equal(open_case(c, &lone, &plan), WEIR_ERR_LAYOUT);
    assert_null(plan);
    assert_error_is(line);
}

static void assert_copy(const weir_plan_copy *copy, uint64_t offset, uint64_t run, uint64_t pitch,
                        uint64_t packed)
{
    assert_int_equal(copy->parameter_offset, offset);
    assert_int_equal(copy->run_bytes, run);
    assert_int_equal(copy->pitch_bytes, pitch);
    assert_int_equal(copy->packed_offset, packed);
}

static void columns_are_runs_at_equal_distances(void **state)
{
    (void)state;
    box_case c;
    weir_plan *plan = NULL;
    size_t n;
    begin_case(&c, WEIR_BF16, (weir_shape){ 2, { 4, 10 } });
    add_box(&c, (weir_box){ 2, { 0, 6 }, { 4, 10 } });
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 4, 6 } });
    assert_int_equal(open_case(&c, &lone, &plan), WEIR_OK);
    const weir_plan_copy *copies = weir_plan_copies(plan, &n);
    assert_int_equal(n, 2);
    assert_copy(&copies[0], 12, 8, 20, 48); /* the other begins before it */
    assert_copy(&copies[1], 0, 12, 20, 0);
    assert_int_equal(weir_plan_bytes(plan), 80);
    weir_plan_close(plan);
}

static void columns_of_experts_that_follow_each_other_are_one_copy(void **state)
{
    (void)state;
    box_case c;
    weir_plan *plan = NULL;
    size_t n;
    begin_case(&c, WEIR_F8_E4M3, (weir_shape){ 3, { 4, 3, 8 } });
    add_box(&c, (weir_box){ 3, { 0, 0, 0 }, { 3, 3, 8 } });
    add_box(&c, (weir_box){ 3, { 3, 0, 0 }, { 4, 3, 2 } });
    add_box(&c, (weir_box){ 3, { 3, 0, 2 }, { 4, 3, 8 } });
    assert_int_equal(open_case(&c, &lone, &plan), WEIR_OK);
    const weir_plan_copy *copies = weir_plan_copies(plan, &n);
    assert_int_equal(n, 3);
    assert_copy(&copies[0], 0, 72, 0, 0);
    assert_copy(&copies[1], 72, 2, 8, 72);
    assert_copy(&copies[2], 74, 6, 8, 78);
    weir_plan_close(plan);
}

static void boxes_of_uneven_runs_are_refused(void **state)
{
    (void)state;
    box_case c;
    begin_case(&c, WEIR_BF16, (weir_shape){ 3, { 4, 8, 10 } });
    add_box(&c, (weir_box){ 3, { 0, 1, 0 }, { 2, 3, 5 } });
    assert_case_refused(&c, "w: rank 0 publishes [0, 2) x [1, 3) x [0, 5) of BF16 [4, 8, 10], "
                            "whose bytes are no runs at equal distances");
}

static void runs_are_whole_bytes(void **state)
{
    (void)state;
    box_case c;
    weir_plan *plan = NULL;
    size_t n;
    begin_case(&c, WEIR_F4, (weir_shape){ 2, { 4, 10 } });
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 4, 4 } });
    add_box(&c, (weir_box){ 2, { 0, 4 }, { 4, 10 } });
    assert_int_equal(open_case(&c, &lone, &plan), WEIR_OK);
    assert_copy(&weir_plan_copies(plan, &n)[1], 2, 3, 5, 8);
    weir_plan_close(plan);
    c.source.n_shards = 0;
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 4, 5 } });
    add_box(&c, (weir_box){ 2, { 0, 5 }, { 4, 10 } });
    assert_case_refused(&c, "w: rank 0 publishes [0, 4) x [0, 5) of F4 [4, 10], whose bytes are no "
                            "whole ones (and 1 more)");
}

static void a_gap_between_columns_is_named_with_axis_and_index(void **state)
{
    (void)state;
    box_case c;
    begin_case(&c, WEIR_BF16, (weir_shape){ 2, { 4, 10 } });
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 3, 10 } });
    add_box(&c, (weir_box){ 2, { 3, 0 }, { 4, 4 } });
    add_box(&c, (weir_box){ 2, { 3, 7 }, { 4, 10 } });
    assert_case_refused(&c, "w: coverage gap at axis 1 [4, 7) of index [3]");
}

static void shards_of_other_places_are_passed_over(void **state)
{
    (void)state;
    box_case c;
    weir_plan *plan = NULL;
    size_t n;
    const weir_mesh_place place = { 1, 2, 3 };
    begin_case(&c, WEIR_BF16, (weir_shape){ 2, { 4, 10 } });
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 2, 10 } })->place = place;
    add_box(&c, (weir_box){ 2, { 2, 0 }, { 4, 10 } })->place = (weir_mesh_place){ 1, WEIR_ANY, 3 };
    weir_shard *other = add_box(&c, (weir_box){ 2, { 2, 0 }, { 4, 10 } });
    other->place = (weir_mesh_place){ 1, 2, 2 };
    other->dtype = WEIR_F32;
    other = add_box(&c, (weir_box){ 2, { 0, 0 }, { 4, 10 } });
    other->place = (weir_mesh_place){ 0, WEIR_ANY, WEIR_ANY };
    other->name = "another stage's";
    assert_int_equal(open_case(&c, &place, &plan), WEIR_OK);
    weir_plan_copies(plan, &n);
    assert_int_equal(n, 2);
    weir_plan_close(plan);
    plan = NULL;
    assert_int_equal(open_case(&c, &(weir_mesh_place){ 2, 2, 3 }, &plan), WEIR_ERR_LAYOUT);
    assert_error_is("w: no source publishes it");
    assert_int_equal(open_case(&c, &(weir_mesh_place){ 0, 0, 0 }, &plan), WEIR_ERR_LAYOUT);
    assert_error_is("another stage's: published by rank 0, this replica has no such parameter");
}

static void padding_rows_are_nobodys(void **state)
{
    (void)state;
    box_case c;
    weir_plan *plan = NULL;
    size_t n;
    begin_case(&c, WEIR_BF16, (weir_shape){ 2, { 64, 2 } });
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 50, 2 } })->n_padding_rows = 14;
    assert_int_equal(open_case(&c, &lone, &plan), WEIR_OK);
    assert_copy(&weir_plan_copies(plan, &n)[0], 0, 200, 0, 0);
    assert_int_equal(weir_plan_bytes(plan), 200);
    weir_plan_close(plan);
    c.source.n_shards = 0;
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 0, 2 } })->n_padding_rows = 64;
    assert_int_equal(open_case(&c, &lone, &plan), WEIR_OK);
    weir_plan_copies(plan, &n);
    assert_int_equal(n, 0);
    weir_plan_close(plan);
    c.source.n_shards = 0;
    assert_case_refused(&c, "w: no source publishes it");
}

static void padding_must_agree_and_be_left_alone(void **state)
{
    (void)state;
    box_case c;
    begin_case(&c, WEIR_BF16, (weir_shape){ 2, { 64, 2 } });
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 30, 2 } })->n_padding_rows = 14;
    add_box(&c, (weir_box){ 2, { 30, 0 }, { 50, 2 } })->n_padding_rows = 13;
    assert_case_refused(&c, "w: 14 rows of padding at rank 0, 13 at rank 0");
    c.source.n_shards = 0;
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 51, 2 } })->n_padding_rows = 14;
    assert_case_refused(&c, "w: rank 0 publishes [0, 51) x [0, 2), which is no part of [50, 2]");
    c.source.n_shards = 0;
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 49, 2 } })->n_padding_rows = 14;
    assert_case_refused(&c, "w: coverage gap at axis 0 [49, 50)");
    c.source.n_shards = 0;
    add_box(&c, (weir_box){ 2, { 0, 0 }, { 1, 2 } })->n_padding_rows = 65;
    assert_case_refused(&c, "w: 65 rows of padding at rank 0, of [64, 2]");
    begin_case(&c, WEIR_BF16, (weir_shape){ 0, { 0 } });
    add_box(&c, (weir_box){ 0, { 0 }, { 0 } })->n_padding_rows = 1;
    assert_case_refused(&c, "w: 1 rows of padding at rank 0, of []");
}

/* ---- size ------------------------------------------------------------------------------------*/

static void experts_in_a_hundred_thousand_boxes_are_planned(void **state)
{
    (void)state;
    enum { EXPERTS = 256, CUTS = 400, SOURCES = 100, SHARDS = EXPERTS * CUTS };
    const weir_shape shape = { 3, { EXPERTS, 16, CUTS * 4 } };
    const weir_parameter wanted = { "w", WEIR_BF16, shape, "hf_raw", "{}", 0, 0, true };
    weir_shard *shards = calloc(SHARDS, sizeof(*shards));
    weir_plan_source sources[SOURCES];
    for (size_t i = 0; i < SHARDS; i++) {
        size_t e = i / CUTS, k = i % CUTS;
        shards[i] = (weir_shard){ .name = "w",
                                  .dtype = WEIR_BF16,
                                  .global_shape = shape,
                                  .box = { 3, { e, 0, k * 4 }, { e + 1, 16, k * 4 + 4 } },
                                  .compile_target = "hf_raw",
                                  .compile_metadata = "{}",
                                  .n_bytes = 128 };
    }
    for (size_t s = 0; s < SOURCES; s++)
        sources[s] =
            (weir_plan_source){ "rank", shards + s * (SHARDS / SOURCES), SHARDS / SOURCES };
    weir_plan *plan = NULL;
    double begun = weir_now_s();
    assert_int_equal(weir_plan_open(&wanted, 1, &lone, sources, SOURCES, &plan), WEIR_OK);
    print_message("planned %d boxes of one parameter in %.3f s\n", SHARDS, weir_now_s() - begun);
    assert_int_equal(weir_plan_bytes(plan), 128 * (uint64_t)SHARDS);
    weir_plan_close(plan);
    shards[77777].box.lo[2]++;
    shards[77777].n_bytes -= 32;
    assert_int_equal(weir_plan_open(&wanted, 1, &lone, sources, SOURCES, &plan), WEIR_ERR_LAYOUT);
    assert_error_is("w: coverage gap at axis 2 [708, 709) of index [194, 0]");
    free(shards);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_are_runs_at_equal_distances),
        cmocka_unit_test(columns_of_experts_that_follow_each_other_are_one_copy),
        cmocka_unit_test(boxes_of_uneven_runs_are_refused),
        cmocka_unit_test(runs_are_whole_bytes),
        cmocka_unit_test(a_gap_between_columns_is_named_with_axis_and_index),
        cmocka_unit_test(shards_of_other_places_are_passed_over),
        cmocka_unit_test(padding_rows_are_nobodys),
        cmocka_unit_test(padding_must_agree_and_be_left_alone),
        cmocka_unit_test(experts_in_a_hundred_thousand_boxes_are_planned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
