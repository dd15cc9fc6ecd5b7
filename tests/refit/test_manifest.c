/* SPDX-License-Identifier: Apache-2.0 */
/* test_manifest.c - manifests survive the way there and back, and hostile ones are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
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
                                   .engine_mesh = "tp=4,ep=2",
                                   .plan = "fsdp=2 (plan 0123)",
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
    assert_string_equal(got.engine_mesh, "tp=4,ep=2");
    assert_string_equal(got.plan, "fsdp=2 (plan 0123)");
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

static void assert_shards_equal(const weir_shard *a, const weir_shard *b)
{
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->dtype, b->dtype);
    assert_true(weir_shape_equal(&a->global_shape, &b->global_shape));
    assert_int_equal(a->box.rank, b->box.rank);
    assert_memory_equal(a->box.lo, b->box.lo, a->box.rank * sizeof(a->box.lo[0]));
    assert_memory_equal(a->box.hi, b->box.hi, a->box.rank * sizeof(a->box.hi[0]));
    assert_memory_equal(&a->place, &b->place, sizeof(a->place));
    assert_int_equal(a->n_padding_rows, b->n_padding_rows);
    assert_string_equal(a->compile_target, b->compile_target);
    assert_string_equal(a->compile_metadata, b->compile_metadata);
    assert_int_equal(a->region, b->region);
    assert_int_equal(a->offset, b->offset);
    assert_int_equal(a->n_bytes, b->n_bytes);
}

static void expect_same_back(fixture *f)
{
    weir_buffer layout = { 0 };
    weir_shard *got;
    size_t n;
    assert_int_equal(weir_layout_encode(f->shards, 2, &f->arena, &layout), WEIR_OK);
    assert_int_equal(
        weir_layout_decode(layout.data, layout.n_bytes, &f->region, 1, &f->arena, &got, &n),
        WEIR_OK);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++)
        assert_shards_equal(&got[i], &f->shards[i]);
    weir_buffer_free(&layout);
}

static void places_and_padding_come_back_as_they_went(void **state)
{
    fixture *f = *state;
    f->shards[0].place = (weir_mesh_place){ 1, WEIR_ANY, 7 };
    f->shards[1].place = (weir_mesh_place){ WEIR_ANY, 65535, WEIR_ANY };
    f->shards[1].n_padding_rows = 2;
    expect_same_back(f);
    f->shards[1].box = (weir_box){ 2, { 0, 0 }, { 0, 16 } };
    f->shards[1].n_padding_rows = 8;
    f->shards[1].n_bytes = 0;
    expect_same_back(f);
}

static void a_name_travels_once_for_shards_in_a_row(void **state)
{
    fixture *f = *state;
    char copy[] = "a.weight";
    f->shards[0].box.hi[0] = 4;
    f->shards[0].n_bytes = 64;
    f->shards[1] = f->shards[0];
    f->shards[1].box = (weir_box){ 2, { 4, 0 }, { 8, 16 } };
    f->shards[1].name = copy;
    expect_same_back(f);
    weir_buffer layout = { 0 };
    assert_int_equal(weir_layout_encode(f->shards, 2, &f->arena, &layout), WEIR_OK);
    const unsigned char *first = memmem(layout.data, layout.n_bytes, "a.weight", 8);
    assert_non_null(first);
    size_t n_left = layout.n_bytes - (size_t)(first + 8 - layout.data);
    assert_null(memmem(first + 8, n_left, "a.weight", 8));
    weir_buffer_free(&layout);
}

static void a_layout_without_a_first_name_is_refused(void **state)
{
    fixture *f = *state;
    weir_buffer layout = { 0 };
    weir_shard *got;
    size_t n;
    f->shards[0].name = "";
    assert_int_equal(weir_layout_encode(f->shards, 2, &f->arena, &layout), WEIR_OK);
    assert_int_equal(
        weir_layout_decode(layout.data, layout.n_bytes, &f->region, 1, &f->arena, &got, &n),
        WEIR_ERR_CORRUPT);
    assert_non_null(strstr(weir_last_error(), "does not decode"));
    weir_buffer_free(&layout);
}

/* The fixture's, as every build writes it: what is kept for equal bytes is kept across builds. */
static const char known_layout[] = "\x0a\x21\x0a\x0d"
                                   "deep_gemm_fp8"
                                   "\x12\x10"
                                   "{\"dtype\":\"e4m3\"}"
                                   "\x1a\x02\x00\x07" /* back: .weight */
                                   "\x22\x02\x08\x01" /* middle */
                                   "\x2a\x09"
                                   "a.weight"
                                   "b"
                                   "\x32\x02\x0f\x0f"         /* dtype */
                                   "\x3a\x02\x02\x02"         /* rank */
                                   "\x42\x04\x08\x10\x08\x10" /* shape */
                                   "\x4a\x04\x00\x00\x02\x00" /* lo */
                                   "\x52\x04\x08\x10\x06\x10" /* hi */
                                   "\x6a\x03\x00\x80\x02"     /* 128 bytes behind the first */
                                   "\x72\x03\x80\x01\x40";    /* bytes */

static void a_layout_is_these_bytes(void **state)
{
    fixture *f = *state;
    weir_shard *got;
    size_t n;
    assert_int_equal(f->layout.n_bytes, sizeof(known_layout) - 1);
    assert_memory_equal(f->layout.data, known_layout, sizeof(known_layout) - 1);
    assert_int_equal(weir_layout_decode(known_layout, sizeof(known_layout) - 1, &f->region, 1,
                                        &f->arena, &got, &n),
                     WEIR_OK);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++)
        assert_shards_equal(&got[i], &f->shards[i]);
}

/* One matrix in four rows, and another: (place.t, name) of each shard. */
static void list_places(fixture *f, weir_shard shards[6])
{
    static const uint32_t places[6] = { 1, 0, WEIR_ANY, 1, 0, 0 };
    for (size_t i = 0; i < 6; i++) {
        shards[i] = f->shards[0];
        shards[i].name = i < 4 ? "a.weight" : "b.weight";
        shards[i].place = (weir_mesh_place){ 0, WEIR_ANY, places[i] };
    }
}

static void a_worker_keeps_the_shards_of_its_place_and_their_numbers(void **state)
{
    static const uint32_t numbers[2][4] = { { 1, 2, 4, 5 }, { 0, 2, 3 } };
    static const size_t n_own[2] = { 4, 3 };
    fixture *f = *state;
    weir_shard shards[6];
    weir_buffer layout = { 0 };
    list_places(f, shards);
    assert_int_equal(weir_layout_encode(shards, 6, &f->arena, &layout), WEIR_OK);
    for (uint32_t t = 0; t < 2; t++) {
        const weir_mesh_place place = { 0, 3, t };
        weir_layout_part part;
        assert_int_equal(weir_layout_decode_part(layout.data, layout.n_bytes, &f->region, 1, &place,
                                                 &f->arena, &part),
                         WEIR_OK);
        assert_int_equal(part.n_published, 6);
        assert_int_equal(part.n_shards, n_own[t]);
        for (size_t i = 0; i < part.n_shards; i++) {
            assert_int_equal(part.numbers[i], numbers[t][i]);
            assert_shards_equal(&part.shards[i], &shards[part.numbers[i]]);
        }
    }
    const weir_mesh_place nobody = { 1, 0, 0 };
    weir_layout_part part;
    assert_int_equal(weir_layout_decode_part(layout.data, layout.n_bytes, &f->region, 1, &nobody,
                                             &f->arena, &part),
                     WEIR_OK);
    assert_int_equal(part.n_shards, 0);
    assert_int_equal(part.n_published, 6);
    weir_buffer_free(&layout);
}

static void fields_that_are_not_known_are_passed_over(void **state)
{
    /* One of every kind. */
    static const char unknown[] = "\xF8\x07\x96\x01"
                                  "\xF9\x07"
                                  "12345678"
                                  "\xFA\x07\x02"
                                  "ab"
                                  "\xFD\x07"
                                  "1234";
    enum { N_UNKNOWN = sizeof(unknown) - 1, N_KNOWN = sizeof(known_layout) - 1, N_TAG = 2 + 0x21 };
    char bytes[N_KNOWN + 2 * N_UNKNOWN];
    fixture *f = *state;
    weir_shard *got;
    size_t n;
    memcpy(bytes, known_layout, N_TAG);
    memcpy(bytes + N_TAG, unknown, N_UNKNOWN);
    memcpy(bytes + N_TAG + N_UNKNOWN, known_layout + N_TAG, N_KNOWN - N_TAG);
    memcpy(bytes + N_KNOWN + N_UNKNOWN, unknown, N_UNKNOWN);
    assert_int_equal(weir_layout_decode(bytes, sizeof(bytes), &f->region, 1, &f->arena, &got, &n),
                     WEIR_OK);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++)
        assert_shards_equal(&got[i], &f->shards[i]);
}

static void a_layout_that_ends_early_is_refused(void **state)
{
    fixture *f = *state;
    size_t n_refused = 0;
    for (size_t n_bytes = 0; n_bytes < sizeof(known_layout) - 1; n_bytes++) {
        const weir_mesh_place other = { 1, 0, 0 };
        weir_layout_part part;
        char *bytes = weir_alloc(n_bytes); /* so that sanitizers see what is read behind it */
        memcpy(bytes, known_layout, n_bytes);
        weir_status status = weir_layout_decode_part(
            bytes, n_bytes, &f->region, 1, n_bytes % 2 == 0 ? NULL : &other, &f->arena, &part);
        assert_true(status == WEIR_OK || status == WEIR_ERR_CORRUPT);
        n_refused += status == WEIR_ERR_CORRUPT;
        weir_free(bytes);
    }
    /* Nothing, and the tag alone, are layouts of no shard. Shards that are not the reader's are not
     * looked at: one that lacks columns may be such a one. */
    assert_in_range(n_refused, sizeof(known_layout) - 1 - 6, sizeof(known_layout) - 1 - 2);
}

/* A layout of no tag, one shard and this behind it. */
static void expect_columns_refused(fixture *f, const char *columns, size_t n_bytes,
                                   const char *line)
{
    weir_layout_part part;
    char *bytes = weir_alloc(n_bytes);
    memcpy(bytes, columns, n_bytes);
    assert_int_equal(weir_layout_decode_part(bytes, n_bytes, &f->region, 1, NULL, &f->arena, &part),
                     WEIR_ERR_CORRUPT);
    if (strstr(weir_last_error(), line) == NULL)
        fail_msg("'%s', expected '%s'", weir_last_error(), line);
    weir_free(bytes);
}

static void columns_that_disagree_are_refused(void **state)
{
#define CASE(bytes, line)              \
    {                                  \
        bytes, sizeof(bytes) - 1, line \
    }
#define A "\x22\x01\x01\x2a\x01\x61" /* one shard, a */
    static const struct {
        const char *bytes;
        size_t n_bytes;
        const char *line;
    } cases[] = {
        CASE("\x22\x01\x01", "does not decode"),                /* its name is missing */
        CASE("\x22\x01\x00", "does not decode"),                /* it has none */
        CASE("\x22\x01\x81", "says more than of its 0 shards"), /* half a number */
        CASE("\x20\x01\x2a\x01\x61", "does not decode"),        /* no column */
        CASE("\x22\x01\x01\x2a\x01\x00", "does not decode"),    /* ends within itself */
        CASE("\x12\x01\x01" A, "does not decode"),              /* begins as none before */
        CASE("\x1a\x01\x01" A, "does not decode"),              /* ends as none before */
        CASE("\x12\x02\x00\x01\x1a\x02\x00\x01\x22\x02\x01\x01\x2a\x02\x61\x62",
             "does not decode"),                               /* the same byte twice */
        CASE(A "\x32\x00", "does not decode"),                 /* none of one */
        CASE(A "\x32\x01\x0f\x32\x01\x0f", "does not decode"), /* the column twice */
        CASE(A "\x32\x01\x0f\x3a\x01\x01\x42\x01\x80", "does not decode"),
        CASE(A "\x32\x02\x0f\x0f", "a: tag 0 of 0"), /* what is wrong with a shard is said first */
        CASE(A "\x3a\x01\x09", "a: has 9 axes, at most 8 are allowed"),
        CASE(A "\x3a\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a: has 18446744073709551615"),
        CASE(A, "a: dtype number 0 is unknown"),
        CASE(A "\x32\x05\x8f\x80\x80\x80\x10", "a: dtype number 4294967311 is unknown"),
        CASE(A "\x32\x01\x0f", "a: tag 0 of 0"),
        CASE("\x32\x01\x0f", "says more than of its 0 shards"),
        CASE("\x0a\x00" A "\x32\x01\x0f\x3a\x01\x01\x42\x01\x01\x52\x01\x01\x72\x01\x01"
             "\x4a\x02\x00\x00",
             "says more than of its 1 shards"),
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        expect_columns_refused(*state, cases[i].bytes, cases[i].n_bytes, cases[i].line);
#undef A
#undef CASE
}

/* A million shards of one long name would be small on the wire. */
static void a_name_that_is_too_long_is_neither_written_nor_read(void **state)
{
    fixture *f = *state;
    enum { MOST = WEIR_LAYOUT_NAME_BYTES };
    char name[MOST + 2], bytes[MOST + 8];
    weir_buffer layout = { 0 };
    memset(name, 'n', sizeof(name));
    name[MOST] = '\0';
    f->shards[0].name = name;
    expect_same_back(f);
    name[MOST] = 'n';
    name[MOST + 1] = '\0';
    assert_int_equal(weir_layout_encode(f->shards, 2, &f->arena, &layout), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "its name has 4097 bytes, more than 4096"));
    memcpy(bytes, "\x22\x02\x81\x20\x2a\x81\x20", 7); /* 4097 */
    memcpy(bytes + 7, name, MOST + 1);
    expect_columns_refused(f, bytes, sizeof(bytes), "does not decode");
    weir_buffer_free(&layout);
}

/* Names that begin and end as others, within each other and after each other. */
static void names_come_back_whatever_they_have_in_common(void **state)
{
    static const char *const names[] = { "aaaa", "aa", "aaaaaa", "aabaa", "aba", "abba", "b",
                                         "b",    "ab", "abab",   "ba",    "x",   "xyx",  "x" };
    enum { N = sizeof(names) / sizeof(names[0]) };
    fixture *f = *state;
    weir_shard shards[N], *got;
    weir_buffer layout = { 0 };
    size_t n;
    for (size_t i = 0; i < N; i++) {
        shards[i] = f->shards[i % 2];
        shards[i].name = names[i];
    }
    assert_int_equal(weir_layout_encode(shards, N, &f->arena, &layout), WEIR_OK);
    assert_int_equal(
        weir_layout_decode(layout.data, layout.n_bytes, &f->region, 1, &f->arena, &got, &n),
        WEIR_OK);
    assert_int_equal(n, N);
    for (size_t i = 0; i < N; i++)
        assert_shards_equal(&got[i], &shards[i]);
    assert_ptr_equal(got[6].name, got[7].name);
    weir_buffer_free(&layout);
}

static void a_manifest_without_a_mesh_is_of_one_worker(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    f->manifest.engine_mesh = NULL;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_OK);
    assert_string_equal(got.engine_mesh, "");
}

static void a_mesh_longer_than_any_is_refused(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    char mesh[WEIR_MESH_TEXT + 1];
    memset(mesh, 'x', sizeof(mesh));
    mesh[WEIR_MESH_TEXT] = '\0';
    f->manifest.engine_mesh = mesh;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_ERR_CORRUPT);
    assert_string_equal(weir_last_error(), "manifest has an engine mesh of 160 bytes");
    f->manifest.engine_mesh = mesh + 1;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_OK);
}

static weir_status decode_groups(fixture *f, const uint32_t *ends, size_t n, weir_manifest *got)
{
    f->manifest.group_ends = ends;
    f->manifest.n_groups = n;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    return weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, got);
}

static void groups_come_back_as_they_went(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    const uint32_t ends[] = { 1, 2 };
    assert_int_equal(f->manifest.n_digests, 2);
    assert_int_equal(decode_groups(f, NULL, 0, &got), WEIR_OK);
    assert_int_equal(got.n_groups, 0);
    assert_int_equal(decode_groups(f, ends, 2, &got), WEIR_OK);
    assert_int_equal(got.n_groups, 2);
    assert_memory_equal(got.group_ends, ends, sizeof(ends));
}

static void groups_that_leave_shards_out_or_go_back_are_refused(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    static const struct {
        uint32_t ends[2];
        size_t n;
        const char *line;
    } cases[] = { { { 1 }, 1, "manifest: 1 groups have 1 shards of 2" },
                  { { 2, 3 }, 2, "manifest: 2 groups have 3 shards of 2" },
                  { { 0, 2 }, 2, "manifest: group 0 ends with shard 0 of 2" },
                  { { 2, 2 }, 2, "manifest: group 1 ends with shard 2 of 2" },
                  { { 2, 1 }, 2, "manifest: group 1 ends with shard 1 of 2" } };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(decode_groups(f, cases[i].ends, cases[i].n, &got), WEIR_ERR_CORRUPT);
        assert_string_equal(weir_last_error(), cases[i].line);
    }
}

static void what_readers_of_a_group_are_told_comes_back(void **state)
{
    fixture *f = *state;
    weir_group_record told = {
        .state = 1, .round = 7, .digests = f->manifest.digests, .n_digests = 2, .why = "no reason"
    };
    weir_group_record got;
    assert_int_equal(weir_group_record_encode(&told, &f->bytes), WEIR_OK);
    assert_int_equal(weir_group_record_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_OK);
    assert_int_equal(got.state, 1);
    assert_int_equal(got.round, 7);
    assert_int_equal(got.n_digests, 2);
    assert_memory_equal(got.digests, told.digests, 2 * sizeof(*told.digests));
    assert_string_equal(got.why, "no reason");
    for (size_t n = 0; n < f->bytes.n_bytes; n++) {
        weir_status status = weir_group_record_decode(f->bytes.data, n, &f->arena, &got);
        assert_true(status == WEIR_OK || status == WEIR_ERR_CORRUPT);
    }
    static const char half[] = "\x1a\x08"
                               "12345678"; /* one number of a pair */
    assert_int_equal(weir_group_record_decode(half, sizeof(half) - 1, &f->arena, &got),
                     WEIR_ERR_CORRUPT);
    assert_string_equal(weir_last_error(), "record of a group has 1 halves of digests");
}

static void a_plan_longer_than_any_is_refused(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    char plan[WEIR_PLAN_TEXT + 1];
    memset(plan, 'x', sizeof(plan));
    plan[WEIR_PLAN_TEXT] = '\0';
    f->manifest.plan = plan;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_ERR_CORRUPT);
    assert_string_equal(weir_last_error(), "manifest has a plan of 384 bytes");
    f->manifest.plan = plan + 1;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_OK);
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
    expect_refused(f, "a.weight: [0, 9) x [0, 16) is no part of [8, 16]");
    f->shards[0].box.lo[0] = 5;
    f->shards[0].box.hi[0] = 4;
    expect_refused(f, "a.weight: [5, 4) x [0, 16) is no part of [8, 16]");
}

static void a_box_that_takes_padding_is_refused(void **state)
{
    fixture *f = *state;
    f->shards[1].n_padding_rows = 3;
    expect_refused(f, "b.weight: [2, 6) x [0, 16) is no part of [5, 16]");
    f->shards[1].n_padding_rows = 9;
    expect_refused(f, "b.weight: 9 rows of padding, of [8, 16]");
    f->shards[1].global_shape.rank = f->shards[1].box.rank = 0;
    expect_refused(f, "b.weight: 9 rows of padding, of []");
}

static void an_empty_box_is_for_parameters_that_are_all_padding(void **state)
{
    fixture *f = *state;
    f->shards[1].box.hi[0] = 2;
    f->shards[1].n_bytes = 0;
    expect_refused(f, "b.weight: [2, 2) x [0, 16) is no part of [8, 16]");
    f->shards[1].n_padding_rows = 7;
    f->shards[1].box.lo[0] = f->shards[1].box.hi[0] = 0;
    expect_refused(f, "b.weight: [0, 0) x [0, 16) is no part of [1, 16]");
    f->shards[1].n_padding_rows = 8;
    f->shards[1].n_bytes = 16;
    expect_refused(f, "b.weight: 16 bytes do not fit its box");
}

static void a_place_that_no_worker_has_is_refused(void **state)
{
    fixture *f = *state;
    f->shards[1].place.d = (uint32_t)INT32_MAX + 1;
    expect_refused(f, "b.weight: is of stage 0, d -2147483648, t 0");
    f->shards[1].place = (weir_mesh_place){ 0, 0, WEIR_ANY - 1 };
    expect_refused(f, "b.weight: is of stage 0, d 0, t -2");
}

/* One rank of a large trainer: 61 layers, experts in 205 parts of each of four parameters. */
static void fifty_thousand_shards_are_small_and_decode_fast(void **state)
{
    fixture *f = *state;
    enum { LAYERS = 61, KINDS = 4, PARTS = 205, SHARDS = LAYERS * KINDS * PARTS };
    static const char *const kinds[KINDS] = { "w13_weight", "w13_weight_scale_inv", "w2_weight",
                                              "w2_weight_scale_inv" };
    weir_shard *shards = weir_alloc_zeroed(SHARDS, sizeof(*shards));
    char(*names)[80] = weir_alloc_zeroed(LAYERS * KINDS, sizeof(*names));
    weir_manifest_region region = { "key", 3, 0 };
    for (size_t i = 0; i < SHARDS; i++) {
        size_t part = i % PARTS, named = i / PARTS;
        snprintf(names[named], sizeof(names[named]), "model.layers.%zu.mlp.experts.%s",
                 named / KINDS, kinds[named % KINDS]);
        shards[i] = (weir_shard){ .name = names[named],
                                  .dtype = WEIR_F8_E4M3,
                                  .global_shape = { 3, { 8, 4096, 7168 } },
                                  .box = { 3, { part % 8, 128, 0 }, { part % 8 + 1, 256, 7168 } },
                                  .place = { 0, (uint32_t)(part / 8), WEIR_ANY },
                                  .compile_target = WEIR_TARGET_DEEP_GEMM_FP8,
                                  .compile_metadata = metadata,
                                  .offset = region.n_bytes,
                                  .n_bytes = 128 * 7168 };
        region.n_bytes += shards[i].n_bytes;
    }
    weir_arena arena;
    weir_shard *got;
    size_t n;
    weir_arena_init(&arena, 0);
    assert_int_equal(weir_layout_encode(shards, SHARDS, &f->arena, &f->layout), WEIR_OK);
    double begun = weir_now_s();
    assert_int_equal(
        weir_layout_decode(f->layout.data, f->layout.n_bytes, &region, 1, &arena, &got, &n),
        WEIR_OK);
    double took = weir_now_s() - begun;
    print_message("%d shards: %.1f bytes each, decoded in %.3f s\n", SHARDS,
                  (double)f->layout.n_bytes / SHARDS, took);
    assert_int_equal(n, SHARDS);
    for (size_t i = 0; i < SHARDS; i += 997)
        assert_shards_equal(&got[i], &shards[i]);
    assert_true(f->layout.n_bytes < 40 * (size_t)SHARDS);
    weir_arena_close(&arena);
    weir_free(names);
    weir_free(shards);
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

static void another_format_is_refused_by_number(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    Weir__Manifest__Manifest message = WEIR__MANIFEST__MANIFEST__INIT;
    unsigned char bytes[64];
    message.format = 3;
    size_t n = weir__manifest__manifest__pack(&message, bytes);
    assert_int_equal(weir_manifest_decode(bytes, n, &f->arena, &got), WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "manifest format 3, this build reads 2");
    message.format = 1;
    n = weir__manifest__manifest__pack(&message, bytes);
    assert_int_equal(weir_manifest_decode(bytes, n, &f->arena, &got), WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "manifest format 1, this build reads 2");
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
        cmocka_unit_test_setup_teardown(places_and_padding_come_back_as_they_went, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_name_travels_once_for_shards_in_a_row, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_layout_without_a_first_name_is_refused, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_layout_is_these_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(columns_that_disagree_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_name_that_is_too_long_is_neither_written_nor_read, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(names_come_back_whatever_they_have_in_common, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_worker_keeps_the_shards_of_its_place_and_their_numbers,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(fields_that_are_not_known_are_passed_over, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_layout_that_ends_early_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_manifest_without_a_mesh_is_of_one_worker, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_mesh_longer_than_any_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(groups_come_back_as_they_went, set_up, tear_down),
        cmocka_unit_test_setup_teardown(groups_that_leave_shards_out_or_go_back_are_refused, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_readers_of_a_group_are_told_comes_back, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_plan_longer_than_any_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_box_that_takes_padding_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_empty_box_is_for_parameters_that_are_all_padding, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_place_that_no_worker_has_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(fifty_thousand_shards_are_small_and_decode_fast, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(an_unknown_dtype_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_shape_that_overflows_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(another_format_is_refused_by_number, set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_truncation_is_refused_or_decodes_within_bounds,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(decoding_again_into_a_reset_arena_allocates_nothing, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
