/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "weir/checkpoint.h"
#include "weir/slot_layout.h"

static const uint32_t two_ids[] = { 1, 2 };

/* A dense tensor of two gathered slots, one of experts, and a peer that has both. */
typedef struct scene {
    weir_slot_buffer buffers[3];
    size_t n_buffers;
    weir_slot_tensor tensors[3];
    weir_slot_expert_ids ids;
    weir_slot_peer peer;
    char *report;
} scene;

static weir_slot_buffer rows_of(const char *key, uint64_t offset, uint64_t rows)
{
    return (weir_slot_buffer){ .kind = WEIR_SLOT_GATHERED,
                               .key = key,
                               .remote_name = "R",
                               .dtype = WEIR_BF16,
                               .shape = { 2, { rows, 4 } },
                               .n_chunks = 1,
                               .rows = rows,
                               .offset_rows = offset,
                               .n_layout_chunks = 1 };
}

static void scene_init(scene *s)
{
    memset(s, 0, sizeof(*s));
    s->buffers[0] = rows_of("J", 0, 10);
    s->buffers[1] = rows_of("K", 10, 6);
    s->buffers[2] = (weir_slot_buffer){ .kind = WEIR_SLOT_EXPERT,
                                        .key = "E",
                                        .remote_name = "E",
                                        .dtype = WEIR_BF16,
                                        .shape = { 3, { 4, 2, 4 } },
                                        .n_chunks = 4,
                                        .prefix = "m",
                                        .n_experts = 4 };
    s->n_buffers = 3;
    s->tensors[0] = (weir_slot_tensor){ "R", WEIR_BF16, 16 * 8 };
    s->tensors[1] = (weir_slot_tensor){ "E", WEIR_BF16, 2 * 16 };
    s->ids = (weir_slot_expert_ids){ "m", two_ids, 2 };
    s->peer = (weir_slot_peer){ "p", s->tensors, 2, &s->ids, 1 };
}

static weir_status check(scene *s)
{
    return weir_slot_check(s->buffers, s->n_buffers, &s->peer, 1, &s->report);
}

/* The report is the heading and these lines. */
static void assert_errors(scene *s, const char *lines)
{
    char expected[2048];
    snprintf(expected, sizeof(expected), "NIXL descriptor/slot validation failed:\n%s", lines);
    assert_int_equal(check(s), WEIR_ERR_LAYOUT);
    assert_non_null(s->report);
    assert_string_equal(s->report, expected);
    weir_string_free(s->report);
    s->report = NULL;
}

static void slots_that_fit_pass(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    assert_int_equal(check(&s), WEIR_OK);
    assert_null(s.report);
    s.buffers[0].kind = WEIR_SLOT_SHARDED; /* 2 of the 10 rows are here */
    s.buffers[0].shape.dim[0] = 2;
    s.buffers[0].n_layout_chunks = 5;
    assert_int_equal(check(&s), WEIR_OK);
}

static void f11_scale_rows_of_half_blocks_do_not_fit(void **state)
{
    (void)state;
    const weir_tensor half = { .name = "w", .dtype = WEIR_BF16, .shape = { 2, { 64, 256 } } };
    const weir_tensor halves[] = { half, half };
    const weir_conversion *fp8;
    weir_slot slots[2];
    scene s;
    scene_init(&s);
    assert_int_equal(weir_conversion_get("fp8_128x128", &fp8), WEIR_OK);
    assert_int_equal(weir_slots_of(fp8, halves, 2, 1, slots), WEIR_OK);
    assert_int_equal(slots[1].scale_offset_rows + slots[1].scale_rows, 2);
    for (int i = 0; i < 2; i++) {
        s.buffers[i] = rows_of(i == 0 ? "J" : "K", slots[i].scale_offset_rows, slots[i].scale_rows);
        s.buffers[i].dtype = WEIR_F32;
        s.buffers[i].shape = slots[i].scale_shape;
    }
    s.n_buffers = 2;
    s.peer.n_tensors = 1;
    s.tensors[0] = (weir_slot_tensor){ "R", WEIR_F32, 1 * 2 * 4 }; /* one row for all 128 */
    assert_errors(&s, "p: row-byte mismatch for 'J' -> 'R': local dtype=float32 shape=[1, 2] "
                      "row_bytes=8; remote dtype=float32 size=8 rows=2 row_bytes=4\n"
                      "p: row-byte mismatch for 'K' -> 'R': local dtype=float32 shape=[1, 2] "
                      "row_bytes=8; remote dtype=float32 size=8 rows=2 row_bytes=4");
}

static void f12_layouts_have_no_gaps(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    s.buffers[1] = rows_of("K", 12, 8);
    s.tensors[0].n_bytes = 20 * 8;
    assert_errors(&s, "non-contiguous layout for 'R': expected row 10, got 12 from 'K'");
    s.buffers[1] = rows_of("K", 8, 12); /* nor overlaps */
    assert_errors(&s, "non-contiguous layout for 'R': expected row 10, got 8 from 'K'");
    s.buffers[0].offset_rows = 1;
    s.n_buffers = 1;
    s.peer.n_tensors = 1;
    s.tensors[0].n_bytes = 11 * 8;
    assert_errors(&s, "non-contiguous layout for 'R': expected row 0, got 1 from 'J'");
}

static void f13_both_sides_have_the_same_tensors(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    s.peer.n_tensors = 0;
    assert_errors(&s, "p: missing expert tensor 'E'\np: missing inference tensor 'R'");
    s.peer.n_tensors = 3;
    s.tensors[2] = (weir_slot_tensor){ "extra", WEIR_BF16, 8 };
    assert_errors(&s, "p: 1 inference tensors not covered by any slot: ['extra']");
}

static void f14_dtypes_of_one_width_are_told_apart(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    s.tensors[0].dtype = WEIR_F16;
    s.tensors[1].dtype = WEIR_F16;
    assert_errors(&s, "p: dtype mismatch for expert tensor 'E': local dtype=bfloat16; "
                      "remote dtype=float16\n"
                      "p: dtype mismatch for 'J' -> 'R': local dtype=bfloat16; "
                      "remote dtype=float16\n"
                      "p: dtype mismatch for 'K' -> 'R': local dtype=bfloat16; "
                      "remote dtype=float16");
}

static void f15_a_report_has_the_first_80_errors(void **state)
{
    (void)state;
    static char names[81][16];
    static weir_slot_buffer buffers[81];
    const weir_slot_peer peer = { .name = "p" };
    size_t n_lines = 0;
    char *report = NULL;
    for (int i = 0; i < 81; i++) {
        snprintf(names[i], sizeof(names[i]), "K%02d", i);
        buffers[i] = rows_of(names[i], 0, 4);
        buffers[i].remote_name = names[i];
    }
    assert_int_equal(weir_slot_check(buffers, 81, &peer, 1, &report), WEIR_ERR_LAYOUT);
    for (const char *at = strchr(report, '\n'); at != NULL; at = strchr(at + 1, '\n'))
        n_lines++;
    assert_int_equal(n_lines, 80);
    assert_non_null(strstr(report, "'K79'"));
    assert_null(strstr(report, "'K80'"));
    assert_string_equal(weir_last_error(), "NIXL descriptor/slot validation failed: "
                                           "p: missing inference tensor 'K00' (81 errors)");
    weir_string_free(report);
    assert_int_equal(weir_slot_check(buffers, 81, &peer, 1, NULL), WEIR_ERR_LAYOUT);
}

static void the_other_rules_have_their_messages(void **state)
{
    (void)state;
    static const uint32_t beyond[] = { 1, 4 };
    scene s;
    scene_init(&s);
    s.buffers[1].key = "J";
    assert_errors(&s, "duplicate local NIXL buffer key 'J'");
    scene_init(&s);
    s.buffers[1].n_chunks = 5;
    assert_errors(&s, "local buffer 'K' bytes=48 is not divisible by chunks=5");
    scene_init(&s);
    s.tensors[0].n_bytes = 127;
    s.buffers[0].rows = 10;
    s.buffers[1].n_layout_chunks = 4;
    assert_errors(&s, "p: 'R' size=127 is not divisible by rows=16\n"
                      "p: row-byte mismatch for 'J' -> 'R': local dtype=bfloat16 shape=[10, 4] "
                      "row_bytes=8; remote dtype=bfloat16 size=127 rows=16 row_bytes=7\n"
                      "p: 'K' -> 'R' rows=6 is not divisible by chunks=4\n"
                      "p: row-byte mismatch for 'K' -> 'R': local dtype=bfloat16 shape=[6, 4] "
                      "row_bytes=8; remote dtype=bfloat16 size=127 rows=16 row_bytes=7");
    scene_init(&s);
    s.buffers[1].n_layout_chunks = 2;
    assert_errors(&s, "p: 'K' -> 'R' local rows=6 expected=3 from layout");
    scene_init(&s);
    s.tensors[1].n_bytes = 33;
    assert_errors(&s, "p: expert tensor 'E' size=33 is not divisible by peer_local_experts=2");
    s.tensors[1].n_bytes = 34;
    assert_errors(&s, "p: expert chunk-byte mismatch for 'E': local dtype=bfloat16 "
                      "shape=[4, 2, 4] chunk_bytes=16; remote dtype=bfloat16 size=34 "
                      "peer_local_experts=2 chunk_bytes=17");
    scene_init(&s);
    s.buffers[2].n_chunks = 3;
    assert_errors(&s, "local buffer 'E' bytes=64 is not divisible by chunks=3\n"
                      "p: expert local buffer 'E' bytes=64 is not divisible by chunks=3");
    scene_init(&s);
    s.peer.n_experts = 0; /* would get nothing, and never hear of it */
    assert_errors(&s, "p: no expert ids under 'm': 'E' would stay as it is");
    scene_init(&s);
    s.ids.ids = beyond;
    assert_errors(&s, "p: expert 4 under 'm', 'E' has 4");
    scene_init(&s);
    s.buffers[2].first_expert = 1;
    assert_errors(&s, "expert local buffer 'E': experts 1 to 5 of 4");
}

static void out_of_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    scene s;
    weir_status status = WEIR_ERR_NO_MEMORY;
    scene_init(&s);
    s.peer.n_tensors = 0;
    for (uint64_t at = 1; status == WEIR_ERR_NO_MEMORY; at++) {
        assert_true(at < 20);
        weir_alloc_fail_at(at);
        status = check(&s);
        weir_alloc_fail_at(0);
    }
    assert_int_equal(status, WEIR_ERR_LAYOUT);
    weir_string_free(s.report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_that_fit_pass),
        cmocka_unit_test(f11_scale_rows_of_half_blocks_do_not_fit),
        cmocka_unit_test(f12_layouts_have_no_gaps),
        cmocka_unit_test(f13_both_sides_have_the_same_tensors),
        cmocka_unit_test(f14_dtypes_of_one_width_are_told_apart),
        cmocka_unit_test(f15_a_report_has_the_first_80_errors),
        cmocka_unit_test(the_other_rules_have_their_messages),
        cmocka_unit_test(out_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
