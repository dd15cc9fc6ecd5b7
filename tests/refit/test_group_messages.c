/* SPDX-License-Identifier: Apache-2.0 */
/* test_group_messages.c - what manifests say of groups that are broadcast, and what readers of a
 * group are told, survive the way there and back; what makes no sense is refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "manifest.pb-c.h"
#include "refit/manifest.h"

typedef struct fixture {
    weir_arena arena;
    weir_buffer bytes;
    weir_digest digests[2];
    weir_manifest_region region;
    weir_manifest manifest;
} fixture;

/* A manifest of two shards, of which nothing is looked at here. */
static int set_up(void **state)
{
    fixture *f = weir_alloc_zeroed(1, sizeof(*f));
    weir_arena_init(&f->arena, 0);
    f->region = (weir_manifest_region){ NULL, 0, 512 };
    f->manifest = (weir_manifest){ .model = "m",
                                   .run = "r",
                                   .worker_id = "w",
                                   .transport = "ucx",
                                   .layout_signature = "s",
                                   .version = 7,
                                   .n_ranks = 1,
                                   .regions = &f->region,
                                   .n_regions = 1,
                                   .digests = f->digests,
                                   .n_digests = 2 };
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    weir_arena_close(&f->arena);
    weir_buffer_free(&f->bytes);
    weir_free(f);
    return 0;
}

/* ---- manifests -------------------------------------------------------------------------------*/

/* The fixture's manifest, of two groups that are broadcast. */
static void set_broadcast(fixture *f)
{
    static const uint32_t ends[] = { 1, 2 }, keys[] = { 3, 3 }, audiences[] = { 0, 63 };
    static const uint64_t n_bytes[] = { 128, UINT64_MAX };
    f->manifest.group_ends = ends;
    f->manifest.n_groups = 2;
    f->manifest.group_bytes = n_bytes;
    f->manifest.group_keys = keys;
    f->manifest.group_audiences = audiences;
}

static void groups_that_are_broadcast_come_back_as_they_went(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_OK);
    assert_null(got.group_bytes);
    assert_null(got.group_keys);
    assert_null(got.group_audiences);
    set_broadcast(f);
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_OK);
    assert_int_equal(got.n_groups, 2);
    assert_memory_equal(got.group_bytes, f->manifest.group_bytes, 2 * sizeof(uint64_t));
    assert_memory_equal(got.group_keys, f->manifest.group_keys, 2 * sizeof(uint32_t));
    assert_memory_equal(got.group_audiences, f->manifest.group_audiences, 2 * sizeof(uint32_t));
    assert_int_equal(got.regions[0].n_bytes, 512);
}

/* Of the fixture's manifest, as a message that was changed. */
static void expect_message_refused(fixture *f, const Weir__Manifest__Manifest *message,
                                   const char *line)
{
    weir_manifest got;
    size_t n_bytes = weir__manifest__manifest__get_packed_size(message);
    unsigned char *bytes = weir_alloc_zeroed(n_bytes, 1);
    weir__manifest__manifest__pack(message, bytes);
    assert_int_equal(weir_manifest_decode(bytes, n_bytes, &f->arena, &got), WEIR_ERR_CORRUPT);
    assert_string_equal(weir_last_error(), line);
    weir_free(bytes);
}

static void groups_that_are_broadcast_have_all_numbers_or_none(void **state)
{
    fixture *f = *state;
    static const struct {
        size_t n_ends, n_bytes, n_keys, n_audiences;
    } cases[] = { { 2, 1, 2, 2 }, { 2, 2, 1, 2 }, { 2, 2, 2, 1 }, { 2, 0, 2, 2 },
                  { 2, 2, 0, 2 }, { 2, 2, 2, 0 }, { 0, 2, 2, 2 }, { 0, 0, 0, 1 } };
    set_broadcast(f);
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    Weir__Manifest__Manifest *message =
        weir__manifest__manifest__unpack(NULL, f->bytes.n_bytes, f->bytes.data);
    assert_non_null(message);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char line[160];
        Weir__Manifest__Manifest changed = *message;
        changed.n_group_ends = cases[i].n_ends;
        changed.n_group_bytes = cases[i].n_bytes;
        changed.n_group_keys = cases[i].n_keys;
        changed.n_group_audiences = cases[i].n_audiences;
        snprintf(line, sizeof(line),
                 "manifest: of %zu groups that are broadcast %zu sizes, %zu keys and %zu audiences "
                 "are told",
                 cases[i].n_ends, cases[i].n_bytes, cases[i].n_keys, cases[i].n_audiences);
        expect_message_refused(f, &changed, line);
    }
    weir__manifest__manifest__free_unpacked(message, NULL);
}

static void keys_that_go_back_and_audiences_beyond_all_are_refused(void **state)
{
    fixture *f = *state;
    weir_manifest got;
    const uint32_t keys[] = { 3, 2 }, audiences[] = { 0, WEIR_MAX_AUDIENCES };
    set_broadcast(f);
    f->manifest.group_keys = keys;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_ERR_CORRUPT);
    assert_string_equal(weir_last_error(), "manifest: group 1 has key 2, behind key 3");
    set_broadcast(f);
    f->manifest.group_audiences = audiences;
    assert_int_equal(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes), WEIR_OK);
    assert_int_equal(weir_manifest_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_ERR_CORRUPT);
    assert_string_equal(weir_last_error(), "manifest: group 1 is for audience 64 of 64");
}

/* ---- records ----------------------------------------------------------------------------------*/

static const unsigned char some_key[WEIR_GROUP_KEY_BYTES] = { 1, 2, 3 };

static weir_group_record record_of(const weir_membership *memberships, size_t n)
{
    return (weir_group_record){ .state = 1,
                                .round = 7,
                                .format = WEIR_GROUP_FORMAT,
                                .run = "run",
                                .version = UINT64_MAX,
                                .version_uid = "uid",
                                .group = 4,
                                .n_groups = 9,
                                .n_bytes = (uint64_t)1 << 40,
                                .memberships = memberships,
                                .n_memberships = n,
                                .left_out = true };
}

static void the_header_of_a_group_and_memberships_come_back(void **state)
{
    fixture *f = *state;
    weir_group_record got;
    const weir_membership places[] = { { 63, some_key, 1, 2 }, { 0, some_key, 6, 7 } };
    weir_group_record told = record_of(places, 2);
    assert_int_equal(weir_group_record_encode(&told, &f->bytes), WEIR_OK);
    assert_int_equal(weir_group_record_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_OK);
    assert_int_equal(got.format, WEIR_GROUP_FORMAT);
    assert_string_equal(got.run, "run");
    assert_true(got.version == UINT64_MAX);
    assert_string_equal(got.version_uid, "uid");
    assert_int_equal(got.group, 4);
    assert_int_equal(got.n_groups, 9);
    assert_true(got.n_bytes == (uint64_t)1 << 40);
    assert_true(got.left_out);
    assert_int_equal(got.n_memberships, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(got.memberships[i].audience, places[i].audience);
        assert_int_equal(got.memberships[i].position, places[i].position);
        assert_int_equal(got.memberships[i].n_members, places[i].n_members);
        assert_memory_equal(got.memberships[i].key, some_key, sizeof(some_key));
    }
    for (size_t n = 0; n < f->bytes.n_bytes; n++) {
        weir_status status = weir_group_record_decode(f->bytes.data, n, &f->arena, &got);
        assert_true(status == WEIR_OK || status == WEIR_ERR_CORRUPT);
    }
}

static void a_group_that_is_read_says_nothing_of_a_broadcast(void **state)
{
    fixture *f = *state;
    weir_group_record told = { .state = 1 }, got;
    assert_int_equal(weir_group_record_encode(&told, &f->bytes), WEIR_OK);
    assert_int_equal(weir_group_record_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_OK);
    assert_int_equal(got.format, 0);
    assert_string_equal(got.run, "");
    assert_string_equal(got.version_uid, "");
    assert_false(got.left_out);
    assert_int_equal(got.n_memberships, 0);
}

static void a_newer_header_of_a_group_is_refused_by_number(void **state)
{
    fixture *f = *state;
    weir_group_record told = record_of(NULL, 0), got;
    told.format = 2;
    assert_int_equal(weir_group_record_encode(&told, &f->bytes), WEIR_OK);
    assert_int_equal(weir_group_record_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "record of a group: format 2, this build reads 1");
}

static void memberships_that_make_no_sense_are_refused(void **state)
{
    fixture *f = *state;
    weir_group_record got;
    static const weir_membership cases[] = { { WEIR_MAX_AUDIENCES, some_key, 1, 2 },
                                             { 0, some_key, 0, 2 },
                                             { 0, some_key, 2, 2 },
                                             { 0, some_key, 3, 2 },
                                             { 0, some_key, 1, 0 } };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char line[160];
        weir_group_record told = record_of(&cases[i], 1);
        assert_int_equal(weir_group_record_encode(&told, &f->bytes), WEIR_OK);
        assert_int_equal(weir_group_record_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                         WEIR_ERR_CORRUPT);
        snprintf(line, sizeof(line),
                 "record of a group: member %u of %u of broadcast group %u, with a key of 128 "
                 "bytes",
                 cases[i].position, cases[i].n_members, cases[i].audience);
        assert_string_equal(weir_last_error(), line);
    }
    static const char short_key[] = "\x62\x09"
                                    "\x12\x03"
                                    "key"      /* group_key */
                                    "\x18\x01" /* position */
                                    "\x20\x02" /* n_members */;
    assert_int_equal(weir_group_record_decode(short_key, sizeof(short_key) - 1, &f->arena, &got),
                     WEIR_ERR_CORRUPT);
    assert_string_equal(
        weir_last_error(),
        "record of a group: member 1 of 2 of broadcast group 0, with a key of 3 bytes");
}

static void more_memberships_than_there_are_groups_are_neither_written_nor_read(void **state)
{
    fixture *f = *state;
    weir_membership places[WEIR_MAX_AUDIENCES + 1];
    weir_group_record got;
    for (uint32_t i = 0; i <= WEIR_MAX_AUDIENCES; i++)
        places[i] = (weir_membership){ i % WEIR_MAX_AUDIENCES, some_key, 1, 2 };
    weir_group_record told = record_of(places, WEIR_MAX_AUDIENCES + 1);
    assert_int_equal(weir_group_record_encode(&told, &f->bytes), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "a reader in 65 broadcast groups, at most 64 are known");
    told.n_memberships = WEIR_MAX_AUDIENCES;
    assert_int_equal(weir_group_record_encode(&told, &f->bytes), WEIR_OK);
    assert_int_equal(weir_group_record_decode(f->bytes.data, f->bytes.n_bytes, &f->arena, &got),
                     WEIR_OK);
    assert_int_equal(got.n_memberships, WEIR_MAX_AUDIENCES);
    weir_group_record one_more = record_of(places, 1); /* fields that repeat are joined */
    weir_buffer twice = { 0 }, more = { 0 };
    assert_int_equal(weir_group_record_encode(&one_more, &more), WEIR_OK);
    assert_int_equal(weir_buffer_reserve(&twice, f->bytes.n_bytes + more.n_bytes), WEIR_OK);
    memcpy(twice.data, f->bytes.data, f->bytes.n_bytes);
    memcpy(twice.data + f->bytes.n_bytes, more.data, more.n_bytes);
    assert_int_equal(
        weir_group_record_decode(twice.data, f->bytes.n_bytes + more.n_bytes, &f->arena, &got),
        WEIR_ERR_CORRUPT);
    assert_string_equal(weir_last_error(), "record of a group: 65 memberships, at most 64");
    weir_buffer_free(&twice);
    weir_buffer_free(&more);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(groups_that_are_broadcast_come_back_as_they_went, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(groups_that_are_broadcast_have_all_numbers_or_none, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(keys_that_go_back_and_audiences_beyond_all_are_refused,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_header_of_a_group_and_memberships_come_back, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_group_that_is_read_says_nothing_of_a_broadcast, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_newer_header_of_a_group_is_refused_by_number, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(memberships_that_make_no_sense_are_refused, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(
            more_memberships_than_there_are_groups_are_neither_written_nor_read, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
