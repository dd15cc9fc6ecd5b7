/* SPDX-License-Identifier: Apache-2.0 */
/* test_manifest.c - manifests survive the way there and back, and hostile ones are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "manifest.pb-c.h"
#include "refit/manifest.h"

static const char metadata[] = "{\"dtype\":\"e4m3\"}";

static weir_shard shard_of(const char *name, uint64_t rows, uint64_t lo, uint64_t hi,
                           uint64_t offset)
{
    return (weir_shard){ .name = name,
                         .dtype = WEIR_F8_E4M3,
                         .global_shape = { 2, { rows, 16 } },
                         .box = { 2, { lo, 0 }, { hi, 16 } },
                         .compile_target = WEIR_TARGET_DEEP_GEMM_FP8,
                         .compile_metadata = metadata,
                         .region = 0,
                         .offset = offset,
                         .n_bytes = (hi - lo) * 16 };
}

typedef struct fixture {
    weir_arena arena;
    weir_buffer layout, bytes;
    weir_shard shards[2];
    weir_digest digests[2];
    weir_manifest_region region;
    weir_manifest manifest;
} fixture;

static int set_up(void **state)
{
    fixture *f = weir_alloc_zeroed(1, sizeof(*f));
    weir_arena_init(&f->arena, 0);
    f->shards[0] = shard_of("a.weight", 8, 0, 8, 0);
    f->shards[1] = shard_of("b.weight", 8, 2, 6, 256);
    f->digests[0] = (weir_digest){ 1, 2 };
    f->digests[1] = (weir_digest){ UINT64_MAX, 4 };
    f->region = (weir_manifest_region){ "key", 3, 512 };
    f->manifest = (weir_manifest){ .model = "m",
                                   .run = "r",
                                   .worker_id = "w",
                                   .transport = "ucx",
                                   .layout_signature = "s",
                                   .version = 7,
                                   .rank = 1,
                                   .n_ranks = 2,
                                   .address = "address",
                                   .address_bytes = 7,
                                   .regions = &f->region,
                                   .n_regions = 1,
                                   .digests = f->digests,
                                   .n_digests = 2 };
    assert_int_equal(weir_layout_encode(f->shards, 2, &f->arena, &f->layout), WEIR_OK);
    f->manifest.layout = f->layout.data;
    f->manifest.layout_bytes = f->layout.n_bytes;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    weir_arena_close(&f->arena);
    weir_buffer_free(&f->layout);
    weir_buffer_free(&f->bytes);
    weir_free(f);
    return 0;
}

static void a_manifest_comes_back_as_it_went(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_OK);
    assert_string_equal(got.model, "m");
    assert_string_equal(got.run, "r");
    assert_string_equal(got.worker_id, "w");
    assert_string_equal(got.transport, "ucx");
    assert_int_equal(got.version, 7);
    assert_int_equal(got.rank, 1);
    assert_int_equal(got.n_regions, 1);
    assert_memory_equal(got.regions[0].key, "key", 3);
    assert_int_equal(got.n_digests, 2);
    assert_memory_equal(got.digests, f->digests, sizeof(f->digests));
    assert_int_equal(got.layout_bytes, f->layout.n_bytes);
    assert_memory_equal(got.layout, f->layout.data, f->layout.n_bytes);
}

static void a_layout_comes_back_as_it_went(void **state)
{
    fixture *f = *state;
    weir_shard *got;
    size_t n;
    assert_int_equal(
        weir_layout_decode(f->layout.data, f->layout.n_bytes, &f->region, 1, &f->arena, &got, &n),
        WEIR_OK);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(got[i].name, f->shards[i].name);
        assert_string_equal(got[i].compile_target, WEIR_TARGET_DEEP_GEMM_FP8);
        assert_string_equal(got[i].compile_metadata, metadata);
        assert_int_equal(got[i].offset, f->shards[i].offset);
        assert_int_equal(got[i].box.lo[0], f->shards[i].box.lo[0]);
        assert_int_equal(got[i].box.hi[0], f->shards[i].box.hi[0]);
        assert_true(weir_shape_equal(&got[i].global_shape, &f->shards[i].global_shape));
    }
}

/* Encodes the fixture's shards after a change, and expects the reader to refuse with `line`. */
static void expect_refused(fixture *f, const char *line)
{
    weir_buffer layout = { 0 };
    weir_shard *got;
    size_t n;
    assert_int_equal(weir_layout_encode(f->shards, 2, &f->arena, &layout), WEIR_OK);
    assert_int_equal(
        weir_layout_decode(layout.data, layout.n_bytes, &f->region, 1, &f->arena, &got, &n),
        WEIR_ERR_CORRUPT);
    assert_non_null(strstr(weir_last_error(), line));
    weir_buffer_free(&layout);
}

static void a_shard_outside_its_region_is_refused(void **state)
{
    fixture *f = *state;
    f->shards[1].offset = 480;
    expect_refused(f, "b.weight: bytes 480 + 64 of a region of 512");
    f->shards[1].offset = UINT64_MAX - 8;
    expect_refused(f, "b.weight: bytes");
    f->shards[1].offset = 0;
    f->shards[1].region = 1;
    expect_refused(f, "b.weight: region 1 of 1");
}

static void a_box_outside_its_shape_is_refused(void **state)
{
    fixture *f = *state;
    f->shards[0].box.hi[0] = 9;
    expect_refused(f, "a.weight: range [0, 9) of axis 0, which has 8");
    f->shards[0].box.lo[0] = 5;
    f->shards[0].box.hi[0] = 4;
    expect_refused(f, "a.weight: range [5, 4)");
}

static void sizes_that_disagree_are_refused(void **state)
{
    fixture *f = *state;
    f->shards[0].n_bytes = 127;
    expect_refused(f, "a.weight: 127 bytes do not fit its box");
}

static void an_unknown_dtype_is_refused(void **state)
{
    fixture *f = *state;
    f->shards[0].dtype = (weir_dtype)200;
    expect_refused(f, "a.weight: dtype number 200 is unknown");
}

static void a_shape_that_overflows_is_refused(void **state)
{
    fixture *f = *state;
    f->shards[0].global_shape = (weir_shape){ 3, { UINT64_MAX, UINT64_MAX, 2 } };
    f->shards[0].box = (weir_box){ 3, { 0, 0, 0 }, { 1, 1, 1 } };
    f->shards[0].n_bytes = 1;
    expect_refused(f, "a.weight: 1 bytes do not fit its box");
}

static void a_newer_format_is_refused_by_number(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    Weir__Manifest__Manifest message = WEIR__MANIFEST__MANIFEST__INIT;
    unsigned char bytes[64];
    message.format = 2;
    size_t n = weir__manifest__manifest__pack(&message, bytes);
    assert_int_equal(weir_manifest_decode(bytes, n, &f->arena, &got), WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "manifest format 2, this build reads 1");
}

static void every_truncation_is_refused_or_decodes_within_bounds(void **state)
{
    fixture *f = *state;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    for (size_t n = 0; n < f->bytes.n_bytes; n++) {
        weir_manifest got;
        weir_arena arena;
        weir_arena_init(&arena, 1u << 20);
        weir_status status = weir_manifest_decode(f->bytes.data, n, &arena, &got);
        assert_true(status == WEIR_OK || status == WEIR_ERR_CORRUPT ||
                    status == WEIR_ERR_UNSUPPORTED);
        weir_arena_close(&arena);
    }
}

static void decoding_again_into_a_reset_arena_allocates_nothing(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    weir_arena arena;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    weir_arena_init(&arena, 0);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &arena, &got), WEIR_OK);
    uint64_t before = weir_alloc_count();
    weir_arena_reset(&arena);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &arena, &got), WEIR_OK);
    assert_int_equal(weir_alloc_count(), before);
    weir_arena_close(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_manifest_comes_back_as_it_went, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_layout_comes_back_as_it_went, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_shard_outside_its_region_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_box_outside_its_shape_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(sizes_that_disagree_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_unknown_dtype_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_shape_that_overflows_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_newer_format_is_refused_by_number, set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_truncation_is_refused_or_decodes_within_bounds,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(decoding_again_into_a_reset_arena_allocates_nothing, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
