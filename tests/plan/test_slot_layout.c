/* SPDX-License-Identifier: Apache-2.0 */
#include "weir/slot_layout.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const weir_conversion *conversion_of(const char *name)
{
    const weir_conversion *conversion;
    assert_int_equal(weir_conversion_get(name, &conversion), WEIR_OK);
    return conversion;
}

static weir_tensor source_of(weir_dtype dtype, uint64_t rows, uint64_t cols)
{
    return (weir_tensor){ .name = "s", .dtype = dtype, .shape = { 2, { rows, cols } } };
}

static void sources_are_sharded_or_gathered(void **state)
{
    (void)state;
    static const struct {
        const char *check, *conversion;
        weir_dtype dtype;
        uint64_t rows, cols;
        uint32_t n_ranks;
        weir_slot_kind kind;
        uint64_t local_rows, scale_rows, local_scale_rows, scale_cols;
    } cases[] = {
        { "F1", "fp8_128x128", WEIR_F32, 2048, 6144, 8, WEIR_SLOT_SHARDED, 256, 16, 2, 48 },
        { "F2", "fp8_128x128", WEIR_F32, 2048, 6144, 32, WEIR_SLOT_GATHERED, 2048, 16, 16, 48 },
        { "F3", "bf16_cast", WEIR_F32, 2048, 6144, 32, WEIR_SLOT_SHARDED, 64, 0, 0, 0 },
        { "F4", "fp8_128x128", WEIR_F32, 576, 2048, 4, WEIR_SLOT_GATHERED, 576, 5, 5, 16 },
        { "F5", "fp8_128x128", WEIR_BF16, 512, 2048, 4, WEIR_SLOT_SHARDED, 128, 4, 1, 16 },
        { "F6", "fp8_128x128", WEIR_BF16, 511, 2048, 4, WEIR_SLOT_GATHERED, 511, 4, 4, 16 },
        /* 511 rows divide by 7, and are as small as the 2 MiB need: size alone decides. */
        { "F6", "bf16_cast", WEIR_BF16, 511, 2048, 7, WEIR_SLOT_GATHERED, 511, 0, 0, 0 },
        { "F6", "bf16_cast", WEIR_F32, 511, 2048, 7, WEIR_SLOT_SHARDED, 73, 0, 0, 0 },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weir_tensor source = source_of(cases[i].dtype, cases[i].rows, cases[i].cols);
        weir_slot slot;
        assert_int_equal(
            weir_slots_of(conversion_of(cases[i].conversion), &source, 1, cases[i].n_ranks, &slot),
            WEIR_OK);
        if (slot.kind != cases[i].kind)
            fail_msg("%s: kind %d", cases[i].check, (int)slot.kind);
        assert_int_equal(slot.shape.dim[0], cases[i].local_rows);
        assert_int_equal(slot.rows, cases[i].rows);
        assert_int_equal(slot.scale_rows, cases[i].scale_rows);
        assert_int_equal(slot.n_chunks, slot.kind == WEIR_SLOT_SHARDED ? cases[i].n_ranks : 1);
        if (slot.scale_rows > 0) {
            assert_int_equal(slot.scale_shape.dim[0], cases[i].local_scale_rows);
            assert_int_equal(slot.scale_shape.dim[1], cases[i].scale_cols);
        }
    }
}

static void f7_sources_of_a_destination_follow_one_another(void **state)
{
    (void)state;
    const weir_tensor qkv[] = { source_of(WEIR_F32, 4096, 4096), source_of(WEIR_F32, 1024, 4096),
                                source_of(WEIR_F32, 1024, 4096) };
    static const uint64_t offsets[] = { 0, 4096, 5120 }, scale_offsets[] = { 0, 32, 40 };
    weir_slot slots[3];
    assert_int_equal(weir_slots_of(conversion_of("fp8_128x128"), qkv, 3, 8, slots), WEIR_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(slots[i].offset_rows, offsets[i]);
        assert_int_equal(slots[i].scale_offset_rows, scale_offsets[i]);
    }
}

static void norms_are_gathered_and_per_channel_scales_have_rows_of_their_own(void **state)
{
    (void)state;
    weir_tensor norm = { .name = "n", .dtype = WEIR_BF16, .shape = { 1, { 4096 } } };
    weir_tensor scalar = { .name = "s", .dtype = WEIR_BF16 };
    weir_tensor vast = source_of(WEIR_F32, UINT64_MAX / 2, 8);
    weir_slot slot;
    assert_int_equal(weir_slots_of(conversion_of("bf16_cast"), &norm, 1, 2, &slot), WEIR_OK);
    assert_int_equal(slot.kind, WEIR_SLOT_GATHERED);
    assert_int_equal(weir_slots_of(conversion_of("bf16_cast"), &scalar, 1, 2, &slot), WEIR_OK);
    assert_int_equal(slot.rows, 1);
    assert_int_equal(weir_slots_of(conversion_of("bf16_cast"), &norm, 1, 0, &slot),
                     WEIR_ERR_INVALID);
    assert_int_equal(weir_slots_of(conversion_of("bf16_cast"), &vast, 1, 1, &slot),
                     WEIR_ERR_INVALID);
}

static void experts_are_joined_then_scaled(void **state)
{
    (void)state;
    weir_tensor w1 = { .name = "w1", .dtype = WEIR_BF16, .shape = { 3, { 4, 64, 4096 } } };
    const weir_tensor w13[] = { w1, w1 };
    weir_slot slot;
    assert_int_equal(weir_slot_of_experts(conversion_of("fp8_128x128"), w13, 2, 1, &slot), WEIR_OK);
    assert_int_equal(slot.kind, WEIR_SLOT_EXPERT);
    assert_int_equal(slot.shape.dim[1], 128);
    assert_int_equal(slot.n_chunks, 4);
    assert_int_equal(slot.scale_shape.dim[0], 4); /* one scale row spans w1 and w3 */
    assert_int_equal(slot.scale_shape.dim[1], 1);
    assert_int_equal(slot.scale_shape.dim[2], 32);
    assert_int_equal(weir_slot_of_experts(conversion_of("bf16_cast"), w13, 2, 3, &slot),
                     WEIR_ERR_INVALID);
    w1.shape.dim[2] = 8;
    const weir_tensor other[] = { w13[0], w1 };
    assert_int_equal(weir_slot_of_experts(conversion_of("bf16_cast"), other, 2, 1, &slot),
                     WEIR_ERR_INVALID);
}

static void f10_a_rank_owns_a_run_of_experts(void **state)
{
    (void)state;
    weir_slot_experts e = { "mlp.experts.w13_weight", "model.layers.0", 4, 2, 2, 1, 8, 64 };
    uint32_t first;
    assert_int_equal(weir_slot_first_expert(&e, &first), WEIR_OK);
    assert_int_equal(first, 40); /* 40..47 */
    e.ep = 1;                    /* expert parallelism off, and sharded all the same */
    e.ep_rank = 0;
    assert_int_equal(weir_slot_first_expert(&e, &first), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(),
                        "EP partition mismatch for 'mlp.experts.w13_weight' at model.layers.0: "
                        "local=8 * fsdp=2 * ep=1 != total=64");
    e.n_experts = 16;
    e.ep_rank = 1;
    assert_int_equal(weir_slot_first_expert(&e, &first), WEIR_ERR_INVALID);
}

/* ---- writes ----------------------------------------------------------------------------------*/

static void f8_gathered_slots_go_round_the_ranks(void **state)
{
    (void)state;
    const weir_slot_peer peers[5] = { { .name = "p0" } };
    weir_slot_buffer buffer = { .kind = WEIR_SLOT_GATHERED };
    weir_slot_write writes[5];
    assert_int_equal(weir_slot_writes(&buffer, 1, 2, peers, 5, writes, 5), 2);
    assert_int_equal(writes[0].peer, 1);
    assert_int_equal(writes[1].peer, 3);
    assert_int_equal(writes[1].chunk, 0);
    assert_int_equal(writes[1].remote_chunk, 0);
    buffer.kind = WEIR_SLOT_SHARDED;
    assert_int_equal(weir_slot_writes(&buffer, 1, 2, peers, 5, writes, 1), 5); /* room for one */
    assert_int_equal(writes[0].remote_chunk, 1);
}

static void f9_experts_go_by_their_ids(void **state)
{
    (void)state;
    static const uint32_t ids[] = { 1, 2 }, twice[] = { 3, 9, 3 };
    const weir_slot_expert_ids maps[] = { { "m", ids, 2 }, { "m", twice, 3 } };
    const weir_slot_peer peers[] = { { .name = "p0", .experts = &maps[0], .n_experts = 1 },
                                     { .name = "p1" },
                                     { .name = "p2", .experts = &maps[1], .n_experts = 1 } };
    weir_slot_buffer weight = { .kind = WEIR_SLOT_EXPERT, .prefix = "m", .n_chunks = 4 };
    weir_slot_buffer scale = weight;
    weir_slot_write writes[8];
    size_t n = weir_slot_writes(&weight, 0, 1, peers, 1, writes, 8);
    n += weir_slot_writes(&scale, 0, 1, peers, 1, writes + n, 8 - n);
    assert_int_equal(n, 4);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(writes[i].chunk, i % 2 == 0 ? 1 : 2);
        assert_int_equal(writes[i].remote_chunk, i % 2 == 0 ? 0 : 1);
    }
    assert_int_equal(weir_slot_writes(&weight, 0, 1, peers, 3, writes, 8), 4);
    assert_int_equal(writes[2].peer, 2); /* a redundant expert: both of its places */
    assert_int_equal(writes[2].remote_chunk, 0);
    assert_int_equal(writes[3].remote_chunk, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sources_are_sharded_or_gathered),
        cmocka_unit_test(f7_sources_of_a_destination_follow_one_another),
        cmocka_unit_test(norms_are_gathered_and_per_channel_scales_have_rows_of_their_own),
        cmocka_unit_test(experts_are_joined_then_scaled),
        cmocka_unit_test(f10_a_rank_owns_a_run_of_experts),
        cmocka_unit_test(f8_gathered_slots_go_round_the_ranks),
        cmocka_unit_test(f9_experts_go_by_their_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
