/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "weir/descriptor.h"

#define MOST 16

/* Publishers of one tensor each, "t". */
typedef struct scene {
    weir_tensor_descriptor tensors[MOST];
    weir_tensor_registry registries[MOST];
    weir_publisher publishers[MOST];
    char workers[MOST][8];
    weir_coverage_args args;
    weir_coverage *coverage;
} scene;

static void scene_init(scene *s)
{
    memset(s, 0, sizeof(*s));
    s->args = (weir_coverage_args)WEIR_COVERAGE_ARGS_INIT;
    s->args.publishers = s->publishers;
    s->args.world_size = 1;
}

static weir_tensor_descriptor *add(scene *s, const weir_tensor_descriptor *d)
{
    size_t n = s->args.n_publishers++;
    s->tensors[n] = *d;
    s->registries[n] = (weir_tensor_registry){ 5, { 1, 1, 1, 1 }, &s->tensors[n], 1 };
    snprintf(s->workers[n], sizeof(s->workers[n]), "w%zu", n);
    s->publishers[n] = (weir_publisher){ s->workers[n], (uint32_t)n, &s->registries[n] };
    return &s->tensors[n];
}

static weir_tensor_descriptor *add_range(scene *s, weir_shape shape, uint32_t axis, uint64_t lo,
                                         uint64_t hi)
{
    weir_tensor_descriptor d = { .name = "t",
                                 .global_shape = shape,
                                 .dtype = "bfloat16",
                                 .placement = WEIR_PLACEMENT_SHARD,
                                 .shard_axis = axis,
                                 .has_range = true,
                                 .range_lo = lo,
                                 .range_hi = hi };
    return add(s, &d);
}

static const weir_shape rows_4096 = { 2, { 4096, 8 } }, rows_100 = { 2, { 100, 8 } };

static void add_chunks(scene *s, uint32_t n, uint32_t absent)
{
    for (uint32_t r = 0; r < n; r++) {
        uint64_t rows = 4096 / n;
        if (r == absent)
            continue;
        add_range(s, rows_4096, 0, r * rows, (r + 1) * rows);
        s->publishers[s->args.n_publishers - 1].rank = r;
    }
}

static void cover(scene *s)
{
    assert_int_equal(weir_coverage_open(&s->args, &s->coverage), WEIR_OK);
}

static void scene_end(scene *s)
{
    weir_coverage_close(s->coverage);
    s->coverage = NULL;
}

/* All contributions are "PUBLISHER[source)->[target)" in order. */
static void assert_parts(const scene *s, const char *expected)
{
    char text[512] = "";
    size_t n, used = 0;
    const weir_contribution *parts = weir_coverage_contributions(s->coverage, &n);
    for (size_t i = 0; i < n; i++)
        used += (size_t)snprintf(
            text + used, sizeof(text) - used,
            "%s%" PRIu32 "[%" PRIu64 ",%" PRIu64 ")->[%" PRIu64 ",%" PRIu64 ")", i > 0 ? " " : "",
            s->publishers[parts[i].publisher].rank, parts[i].source_lo, parts[i].source_hi,
            parts[i].target_lo, parts[i].target_hi);
    assert_string_equal(text, expected);
    assert_int_equal(weir_coverage_check(s->coverage), WEIR_OK);
    assert_true(weir_coverage_summarise(s->coverage).covered);
}

/* Reasons of "t", joined by "; ". No contribution is given while there are any. */
static void assert_missing(const scene *s, const char *expected)
{
    char text[1024] = "";
    size_t n, n_parts, used = 0;
    const weir_missing *missing = weir_coverage_missing(s->coverage, &n);
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(missing[i].name, "t");
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s", i > 0 ? "; " : "",
                                 missing[i].reason);
    }
    assert_string_equal(text, expected);
    weir_coverage_contributions(s->coverage, &n_parts);
    assert_int_equal(n_parts, 0);
    assert_false(weir_coverage_summarise(s->coverage).covered);
    assert_int_equal(weir_coverage_check(s->coverage), WEIR_ERR_LAYOUT);
    assert_non_null(strstr(weir_last_error(), "plan is not fully covered; missing=[t: "));
}

/* ---- the walk --------------------------------------------------------------------------------*/

static void g3_a_narrower_slice_is_within_one_publisher(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    add_chunks(&s, 4, 4);
    s.args.world_size = 8;
    s.args.rank = 3;
    cover(&s);
    assert_parts(&s, "1[512,1024)->[0,512)");
    scene_end(&s);
}

static void g4_a_wider_slice_joins_two_publishers(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    add_chunks(&s, 8, 8);
    s.args.world_size = 4;
    s.args.rank = 1;
    cover(&s);
    assert_parts(&s, "2[0,512)->[0,512) 3[0,512)->[512,1024)");
    scene_end(&s);
}

static void g5_an_absent_publisher_is_a_gap(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    add_chunks(&s, 4, 1);
    s.args.world_size = 8;
    s.args.rank = 3;
    cover(&s);
    assert_missing(&s, "coverage gap at axis 0 [1536, 2048)");
    scene_end(&s);
}

static void g6_an_extent_that_does_not_divide_wants_a_range(void **state)
{
    (void)state;
    const weir_shape shape = { 1, { 10 } };
    const uint64_t range[] = { 3, 6 }, beyond[] = { 3, 11 }, empty[] = { 4, 4 };
    scene s;
    scene_init(&s);
    add_range(&s, shape, 0, 0, 10);
    s.args.world_size = 4;
    cover(&s);
    assert_missing(&s, "axis extent 10 is not divisible by target world_size 4; "
                       "pass target_range for uneven layouts");
    scene_end(&s);
    s.args.range = range;
    cover(&s);
    assert_parts(&s, "0[3,6)->[0,3)");
    scene_end(&s);
    s.args.range = empty;
    cover(&s);
    assert_parts(&s, "");
    scene_end(&s);
    s.args.range = beyond;
    cover(&s);
    assert_missing(&s, "target_range [3, 11) outside axis extent 10");
    scene_end(&s);
}

static void g7_a_target_must_be_one_of_its_world(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    add_chunks(&s, 4, 4);
    s.args.world_size = 0;
    cover(&s);
    assert_missing(&s, "target world_size must be positive");
    scene_end(&s);
    s.args.world_size = s.args.rank = 4;
    cover(&s);
    assert_missing(&s, "target rank 4 outside world_size 4");
    scene_end(&s);
    s.args.rank = 0;
    s.args.shard_axis = 1;
    cover(&s);
    assert_missing(&s, "shard_axis mismatch: publisher=0 target=1");
    scene_end(&s);
}

static void g8_of_two_publishers_of_a_range_one_is_used(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    add_range(&s, rows_100, 0, 0, 50);
    add_range(&s, rows_100, 0, 0, 50);
    add_range(&s, rows_100, 0, 50, 100);
    add_range(&s, rows_100, 0, 50, 100);
    add_range(&s, rows_100, 0, 60, 70);
    cover(&s);
    assert_parts(&s, "0[0,50)->[0,50) 2[0,50)->[50,100)");
    assert_int_equal(weir_coverage_summarise(s.coverage).n_duplicate_bytes, 110 * 8 * 2);
    assert_int_equal(weir_coverage_summarise(s.coverage).n_bytes, 100 * 8 * 2);
    scene_end(&s);
}

static void g17_overlaps_are_trimmed(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    add_range(&s, rows_100, 0, 0, 40);
    add_range(&s, rows_100, 0, 30, 100);
    add_range(&s, rows_100, 0, 10, 20); /* the original's cursor would move back */
    cover(&s);
    assert_parts(&s, "0[0,40)->[0,40) 1[10,70)->[40,100)");
    scene_end(&s);
}

static void g18_every_gap_is_told(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    add_range(&s, rows_100, 0, 5, 40);
    add_range(&s, rows_100, 0, 60, 90);
    cover(&s);
    assert_missing(&s, "coverage gap at axis 0 [0, 5); coverage gap at axis 0 [40, 60); "
                       "coverage gap at axis 0 [90, 100)");
    scene_end(&s);
}

/* ---- who disagrees ---------------------------------------------------------------------------*/

static void g9_versions_are_not_mixed(void **state)
{
    (void)state;
    scene s;
    const uint64_t five = 5;
    scene_init(&s);
    add_range(&s, rows_100, 0, 0, 50);
    add_range(&s, rows_100, 0, 50, 100);
    s.registries[1].version = 6;
    assert_int_equal(weir_coverage_open(&s.args, &s.coverage), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(),
                        "mixed versions: rank 0 (worker w0) publishes version 5, "
                        "rank 1 (worker w1) version 6");
    s.args.version = &five; /* who asks for one does not see the others */
    cover(&s);
    assert_missing(&s, "coverage gap at axis 0 [50, 100)");
    scene_end(&s);
}

static void publishers_of_a_tensor_must_say_the_same_of_it(void **state)
{
    (void)state;
    static const char *const expected[] = {
        "shape disagreement [100, 8] vs [100, 9]",
        "dtype disagreement bfloat16 vs float16",
        "placement_kind disagreement SHARD vs REPLICATE",
        "shard_axis disagreement 0 vs 1",
        "compile_target disagreement hf_raw vs cutlass_fp8",
        "compile_metadata disagreement {} vs {\"a\":1}",
        "t: range [50, 101) outside global_shape[0]=100",
    };
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        scene s;
        size_t n;
        scene_init(&s);
        add_range(&s, rows_100, 0, 0, 50);
        weir_tensor_descriptor *d = add_range(&s, rows_100, 0, 50, 100);
        if (i == 0)
            d->global_shape.dim[1] = 9;
        if (i == 1)
            d->dtype = "float16";
        if (i == 2) {
            d->placement = WEIR_PLACEMENT_REPLICATE;
            d->has_range = false;
        }
        if (i == 3) {
            d->shard_axis = 1;
            d->range_lo = 0;
            d->range_hi = 8;
        }
        if (i == 4)
            d->compile_target = "cutlass_fp8";
        if (i == 5)
            d->compile_metadata = "{\"a\":1}";
        if (i == 6)
            d->range_hi = 101;
        cover(&s);
        assert_missing(&s, expected[i]);
        const weir_missing *missing = weir_coverage_missing(s.coverage, &n);
        assert_int_equal(missing->first, i == 6 ? 1 : 0); /* and who they are */
        assert_int_equal(missing->second, i == 6 ? WEIR_NO_PUBLISHER : 1);
        scene_end(&s);
    }
}

static void metadata_in_another_order_is_the_same(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    add_range(&s, rows_100, 0, 0, 50)->compile_metadata = "{\"a\":1,\"b\":2}";
    add_range(&s, rows_100, 0, 50, 100)->compile_metadata = "{\"b\": 2, \"a\": 1}";
    cover(&s);
    assert_parts(&s, "0[0,50)->[0,50) 1[0,50)->[50,100)");
    scene_end(&s);
}

static void g16_summands_and_boxes_are_no_slices(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    weir_tensor_descriptor *d = add_range(&s, rows_100, 0, 0, 50);
    d->has_range = false;
    d->placement = WEIR_PLACEMENT_PARTIAL;
    cover(&s);
    assert_missing(&s, "placement_kind=PARTIAL not supported in v0");
    scene_end(&s);
    d->placement = WEIR_PLACEMENT_BOX;
    d->box = (weir_box){ 2, { 0, 0 }, { 50, 4 } };
    cover(&s);
    assert_missing(&s, "placement_kind=BOX not supported in v0");
    scene_end(&s);
    d->placement = WEIR_PLACEMENT_REPLICATE;
    d->dtype = "int4";
    cover(&s);
    assert_missing(&s, "dtype int4: its bytes cannot be counted");
    scene_end(&s);
}

static void g12_publishers_that_do_not_match_the_filter_do_not_count(void **state)
{
    (void)state;
    scene s;
    const char *const allowed[] = { "cutlass_fp8" };
    scene_init(&s);
    add_range(&s, rows_100, 0, 0, 100)->compile_metadata = "{\"block_size\":[128,128]}";
    add_range(&s, rows_100, 0, 0, 100);
    s.args.required_metadata = "{\"block_size\":[128,128]}";
    cover(&s);
    assert_parts(&s, "0[0,100)->[0,100)");
    scene_end(&s);
    s.args.allowed_targets = allowed;
    s.args.n_allowed = 1;
    cover(&s);
    assert_int_equal(weir_coverage_check(s.coverage), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "plan is not fully covered; no publisher takes part");
    scene_end(&s);
}

/* ---- names and registries --------------------------------------------------------------------*/

static void what_is_wanted_and_nobody_publishes_is_missing(void **state)
{
    (void)state;
    scene s;
    const char *const wanted[] = { "zebra", "t", "absent", "t" };
    size_t n;
    scene_init(&s);
    add_range(&s, rows_100, 0, 0, 100);
    s.args.wanted = wanted;
    s.args.n_wanted = 4;
    cover(&s);
    const weir_missing *missing = weir_coverage_missing(s.coverage, &n);
    assert_int_equal(n, 2);
    assert_string_equal(missing[0].name, "absent");
    assert_string_equal(missing[1].name, "zebra");
    assert_string_equal(missing[0].reason, "no publishers");
    assert_int_equal(weir_coverage_check(s.coverage), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "plan is not fully covered; missing=[absent: no "
                                           "publishers, zebra: no publishers]");
    scene_end(&s);
    s.args.wanted = wanted + 1;
    s.args.n_wanted = 1;
    cover(&s);
    assert_parts(&s, "0[0,100)->[0,100)");
    scene_end(&s);
}

static void publishers_without_any_registry_leave_one_to_read_from(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    add_range(&s, rows_100, 0, 0, 100);
    s.publishers[0].registry = NULL;
    cover(&s);
    assert_true(weir_coverage_summarise(s.coverage).legacy_single_source);
    assert_parts(&s, "");
    scene_end(&s);
    s.args.n_publishers = 0;
    cover(&s);
    assert_false(weir_coverage_summarise(s.coverage).covered);
    scene_end(&s);
}

/* ---- whole tensors and experts ---------------------------------------------------------------*/

static void replicas_share_the_work(void **state)
{
    (void)state;
    for (uint32_t rank = 0; rank < 2; rank++) {
        weir_tensor_descriptor tensors[4];
        weir_tensor_registry registry = { 5, { 1, 1, 1, 1 }, tensors, 4 };
        weir_publisher publishers[] = { { "w0", 0, &registry }, { "w1", 1, &registry } };
        weir_coverage_args args = WEIR_COVERAGE_ARGS_INIT;
        weir_coverage *coverage;
        size_t n;
        for (size_t i = 0; i < 4; i++)
            tensors[i] =
                (weir_tensor_descriptor){ .name = (const char *[]){ "a", "b", "c", "scalar" }[i],
                                          .global_shape = { i == 3 ? 0 : 1, { 64 } },
                                          .dtype = "float32" };
        args.publishers = publishers;
        args.n_publishers = 2;
        args.world_size = 2; /* of whole tensors every target gets all */
        args.rank = rank;
        assert_int_equal(weir_coverage_open(&args, &coverage), WEIR_OK);
        const weir_contribution *parts = weir_coverage_contributions(coverage, &n);
        assert_int_equal(n, 4);
        assert_int_equal(parts[0].publisher, rank); /* targets begin with different ones */
        assert_int_equal(parts[1].publisher, 1 - rank);
        assert_int_equal(parts[2].publisher, rank);
        assert_int_equal(parts[0].target_hi, 64);
        assert_int_equal(parts[0].run_bytes, 256);
        assert_int_equal(parts[3].source_hi, 0); /* (0, 0), and its four bytes */
        assert_int_equal(parts[3].n_runs * parts[3].run_bytes, 4);
        weir_coverage_close(coverage);
    }
}

static void expert_ids_stand_for_ranges(void **state)
{
    (void)state;
    static const uint32_t even[] = { 0, 2, 3 }, odd[] = { 1, 4, 5 };
    const weir_shape shape = { 3, { 6, 4, 2 } };
    scene s;
    scene_init(&s);
    for (int i = 0; i < 2; i++) {
        weir_tensor_descriptor *d = add_range(&s, shape, 0, 0, 0);
        d->has_range = false;
        d->is_expert = true;
        d->expert_ids = i == 0 ? even : odd;
        d->n_expert_ids = 3;
    }
    cover(&s);
    assert_parts(&s, "0[0,1)->[0,1) 1[0,1)->[1,2) 0[1,3)->[2,4) 1[1,3)->[4,6)");
    scene_end(&s);
    for (int i = 0; i < 2; i++) { /* a slice across the experts */
        s.tensors[i].shard_axis = 1;
        s.tensors[i].has_range = true;
        s.tensors[i].range_hi = 4;
    }
    s.args.shard_axis = 1;
    cover(&s);
    assert_missing(&s, "3 of 6 experts on axis 0: a slice of axis 1 needs all");
    scene_end(&s);
}

/* ---- bytes -----------------------------------------------------------------------------------*/

static uint64_t next_random(uint64_t *state, uint64_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % n;
}

/* Random cuts of random tensors along random axes, some ranges doubled: runs copied as they are
 * described give the very bytes of the slice. */
static void runs_copy_the_bytes_of_the_slice(void **state)
{
    (void)state;
    uint64_t random = 20240607;
    for (int round = 0; round < 500; round++) {
        scene s;
        weir_shape shape = { 1 + (uint32_t)next_random(&random, 4), { 0 } };
        uint32_t axis = (uint32_t)next_random(&random, shape.rank);
        uint64_t outer = 1, inner = 2, extent, at = 0;
        unsigned char *local[MOST];
        scene_init(&s);
        for (uint32_t a = 0; a < shape.rank; a++)
            shape.dim[a] = 1 + next_random(&random, 7);
        extent = shape.dim[axis];
        for (uint32_t a = 0; a < shape.rank; a++) {
            outer *= a < axis ? shape.dim[a] : 1;
            inner *= a > axis ? shape.dim[a] : 1;
        }
        while (at < extent && s.args.n_publishers + 1 < MOST) {
            uint64_t lo = next_random(&random, 3) == 0 && at > 0 ? at - 1 : at;
            at += 1 + next_random(&random, extent - at);
            add_range(&s, shape, axis, lo, at);
        }
        for (size_t p = 0; p < s.args.n_publishers; p++) {
            uint64_t n = s.tensors[p].range_hi - s.tensors[p].range_lo;
            local[p] = malloc(outer * n * inner);
            assert_non_null(local[p]);
            for (uint64_t o = 0; o < outer; o++) {
                for (uint64_t b = 0; b < n * inner; b++)
                    local[p][o * n * inner + b] =
                        (unsigned char)(o * extent * inner + s.tensors[p].range_lo * inner + b);
            }
        }
        uint64_t lo = next_random(&random, extent + 1);
        const uint64_t range[] = { lo, lo + next_random(&random, extent - lo + 1) };
        uint64_t n_bytes = outer * (range[1] - range[0]) * inner;
        unsigned char *target = malloc(n_bytes + 1);
        assert_non_null(target);
        memset(target, 0xAA, n_bytes);
        s.args.shard_axis = axis;
        s.args.range = range;
        cover(&s);
        size_t n;
        const weir_contribution *parts = weir_coverage_contributions(s.coverage, &n);
        assert_int_equal(weir_coverage_check(s.coverage), WEIR_OK);
        uint64_t copied = 0;
        for (size_t i = 0; i < n; i++) {
            for (uint64_t r = 0; r < parts[i].n_runs; r++) {
                uint64_t from = parts[i].source_offset + r * parts[i].source_pitch;
                uint64_t to = parts[i].target_offset + r * parts[i].target_pitch;
                assert_true(to + parts[i].run_bytes <= n_bytes);
                memcpy(target + to, local[parts[i].publisher] + from, parts[i].run_bytes);
                copied += parts[i].run_bytes;
            }
        }
        assert_int_equal(copied, n_bytes); /* each byte once */
        for (uint64_t o = 0, k = 0; o < outer; o++) {
            for (uint64_t b = range[0] * inner; b < range[1] * inner; b++, k++)
                assert_int_equal(target[k], (unsigned char)(o * extent * inner + b));
        }
        for (size_t p = 0; p < s.args.n_publishers; p++)
            free(local[p]);
        free(target);
        scene_end(&s);
    }
}

static void out_of_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    weir_status status = WEIR_ERR_NO_MEMORY;
    for (uint64_t at = 1; status == WEIR_ERR_NO_MEMORY; at++) {
        scene s;
        scene_init(&s);
        add_range(&s, rows_100, 0, 0, 50);
        add_range(&s, rows_100, 0, 60, 100);
        assert_true(at < 40);
        weir_alloc_fail_at(at);
        status = weir_coverage_open(&s.args, &s.coverage);
        weir_alloc_fail_at(0);
        scene_end(&s);
    }
    assert_int_equal(status, WEIR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(g3_a_narrower_slice_is_within_one_publisher),
        cmocka_unit_test(g4_a_wider_slice_joins_two_publishers),
        cmocka_unit_test(g5_an_absent_publisher_is_a_gap),
        cmocka_unit_test(g6_an_extent_that_does_not_divide_wants_a_range),
        cmocka_unit_test(g7_a_target_must_be_one_of_its_world),
        cmocka_unit_test(g8_of_two_publishers_of_a_range_one_is_used),
        cmocka_unit_test(g9_versions_are_not_mixed),
        cmocka_unit_test(g12_publishers_that_do_not_match_the_filter_do_not_count),
        cmocka_unit_test(g16_summands_and_boxes_are_no_slices),
        cmocka_unit_test(g17_overlaps_are_trimmed),
        cmocka_unit_test(g18_every_gap_is_told),
        cmocka_unit_test(publishers_of_a_tensor_must_say_the_same_of_it),
        cmocka_unit_test(metadata_in_another_order_is_the_same),
        cmocka_unit_test(what_is_wanted_and_nobody_publishes_is_missing),
        cmocka_unit_test(publishers_without_any_registry_leave_one_to_read_from),
        cmocka_unit_test(replicas_share_the_work),
        cmocka_unit_test(expert_ids_stand_for_ranges),
        cmocka_unit_test(runs_copy_the_bytes_of_the_slice),
        cmocka_unit_test(out_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
