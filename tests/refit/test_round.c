/* SPDX-License-Identifier: Apache-2.0 */
/* test_round.c - the messages of a push survive the way there and back over a real link, and
 * hostile ones are refused by the field's name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "refit/round.h"
#include "round.pb-c.h"
#include "weir/transport.h"
#include "weir/weir.h"

#define TIMEOUT_MS 10000u
#define SMALL_CAP ((size_t)1 << 20)

typedef struct fixture {
    weir_frame_listener *listener;
    weir_frame_link *near, *far;
    weir_arena scratch, arena;
    weir_buffer buffer;
    weir_round_message got;
} fixture;

static int set_up(void **state)
{
    fixture *f = weir_alloc_zeroed(1, sizeof(*f));
    weir_arena_init(&f->scratch, 0);
    weir_arena_init(&f->arena, 0);
    assert_int_equal(weir_frame_listener_open("127.0.0.1", NULL, &f->listener), WEIR_OK);
    assert_int_equal(weir_frame_connect(weir_frame_listener_address(f->listener), "root", NULL,
                                        TIMEOUT_MS, &f->near),
                     WEIR_OK);
    assert_int_equal(weir_frame_wait(f->listener, NULL, 0, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_frame_listener_accept(f->listener, &f->far), WEIR_OK);
    weir_frame_link_rename(f->far, "replica 7");
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    weir_frame_link_close(f->near);
    weir_frame_link_close(f->far);
    weir_frame_listener_close(f->listener);
    weir_arena_close(&f->scratch);
    weir_arena_close(&f->arena);
    weir_buffer_free(&f->buffer);
    weir_free(f);
    return 0;
}

/* What `near` has sent, in f->got. */
static void expect_message(fixture *f, weir_round_type type)
{
    weir_arena_reset(&f->arena);
    assert_int_equal(weir_round_receive(f->far, TIMEOUT_MS, &f->arena, &f->got), WEIR_OK);
    assert_int_equal(f->got.type, type);
}

/* Packs any message and decodes it as a frame of that type. */
static weir_status decode(fixture *f, weir_round_type type, const ProtobufCMessage *message)
{
    assert_int_equal(weir_buffer_reserve(&f->buffer, protobuf_c_message_get_packed_size(message)),
                     WEIR_OK);
    f->buffer.n_bytes = protobuf_c_message_pack(message, f->buffer.data);
    weir_frame frame = { (uint16_t)type, f->buffer.data, f->buffer.n_bytes };
    weir_arena_reset(&f->arena);
    return weir_round_decode(&frame, &f->arena, &f->got);
}

static void expect_refused(fixture *f, weir_round_type type, const ProtobufCMessage *message,
                           weir_status status, const char *line)
{
    f->got.type = (weir_round_type)99;
    assert_int_equal(decode(f, type, message), status);
    if (strstr(weir_last_error(), line) == NULL)
        fail_msg("'%s' does not say '%s'", weir_last_error(), line);
    assert_int_equal(f->got.type, 99); /* outputs are written on success alone */
}

/* protobuf-c's structs want text that could be written; nothing writes it. */
static char *text(const char *constant)
{
    return (char *)constant;
}

/* A name of n letters. */
static char *name_of(size_t n)
{
    static char name[512];
    assert_true(n < sizeof(name));
    memset(name, 'n', n);
    name[n] = '\0';
    return name;
}

/* ---- there and back --------------------------------------------------------------------------*/

static void a_join_comes_back_as_it_went(void **state)
{
    fixture *f = *state;
    const weir_round_join join = { "worker-1", "model", "" };
    assert_int_equal(weir_round_send_join(f->near, &join, &f->scratch, TIMEOUT_MS), WEIR_OK);
    expect_message(f, WEIR_ROUND_JOIN);
    assert_string_equal(f->got.join.worker_id, "worker-1");
    assert_string_equal(f->got.join.model, "model");
    assert_string_equal(f->got.join.run, "");
}

static void news_and_numbers_come_back_as_they_went(void **state)
{
    fixture *f = *state;
    const weir_round_type types[] = { WEIR_ROUND_PASSED, WEIR_ROUND_FREED, WEIR_ROUND_END,
                                      WEIR_ROUND_PAUSED };
    const uint32_t numbers[] = { 0, 1, UINT32_MAX };
    assert_int_equal(weir_round_send_news(f->near, UINT64_MAX, &f->scratch, TIMEOUT_MS), WEIR_OK);
    expect_message(f, WEIR_ROUND_NEWS);
    assert_true(f->got.news_version == UINT64_MAX);
    for (size_t i = 0; i < 12; i++) {
        assert_int_equal(
            weir_round_send_number(f->near, types[i / 3], numbers[i % 3], &f->scratch, TIMEOUT_MS),
            WEIR_OK);
        expect_message(f, types[i / 3]);
        assert_int_equal(f->got.number, numbers[i % 3]);
    }
    assert_int_equal(weir_round_send_number(f->near, WEIR_ROUND_STEP, 1, &f->scratch, TIMEOUT_MS),
                     WEIR_ERR_INTERNAL);
    assert_non_null(strstr(weir_last_error(), "root: Step is no message of a number"));
}

static void a_ready_comes_back_as_it_went(void **state)
{
    fixture *f = *state;
    weir_round_ready ready = { .version = 3,
                               .version_uid = "uid-3",
                               .staged = true,
                               .n_windows = WEIR_ROUND_MAX_WINDOWS,
                               .window_bytes = (uint64_t)1 << 40,
                               .places = "\0\1\2",
                               .places_bytes = 3,
                               .n_expected = 2 };
    assert_int_equal(weir_round_send_ready(f->near, &ready, &f->scratch, TIMEOUT_MS), WEIR_OK);
    expect_message(f, WEIR_ROUND_READY);
    assert_int_equal(f->got.ready.version, 3);
    assert_string_equal(f->got.ready.version_uid, "uid-3");
    assert_true(f->got.ready.staged);
    assert_int_equal(f->got.ready.n_windows, 16);
    assert_int_equal(f->got.ready.window_bytes, (uint64_t)1 << 40);
    assert_int_equal(f->got.ready.places_bytes, 3);
    assert_memory_equal(f->got.ready.places, "\0\1\2", 3);
    ready = (weir_round_ready){ .version_uid = "" };
    assert_int_equal(weir_round_send_ready(f->near, &ready, &f->scratch, TIMEOUT_MS), WEIR_OK);
    expect_message(f, WEIR_ROUND_READY);
    assert_false(f->got.ready.staged);
    assert_int_equal(f->got.ready.places_bytes, 0);
}

static void a_round_comes_back_as_it_went(void **state)
{
    fixture *f = *state;
    unsigned char key[WEIR_GROUP_KEY_BYTES];
    memset(key, 0xa5, sizeof(key));
    const weir_round_round round = { .version = 4,
                                     .version_uid = "uid-4",
                                     .n_members = 3,
                                     .position = 2,
                                     .transport = "cuda_ipc",
                                     .group_key = key,
                                     .group_key_bytes = sizeof(key),
                                     .largest_step_bytes = 1u << 30,
                                     .next_worker_id = "worker-2",
                                     .next_places = "places",
                                     .next_places_bytes = 6,
                                     .next_staged = true,
                                     .next_n_windows = 2,
                                     .next_window_bytes = 4096 };
    assert_int_equal(weir_round_send_round(f->near, &round, &f->scratch, TIMEOUT_MS), WEIR_OK);
    expect_message(f, WEIR_ROUND_ROUND);
    const weir_round_round *got = &f->got.round;
    assert_int_equal(got->version, 4);
    assert_string_equal(got->version_uid, "uid-4");
    assert_int_equal(got->n_members, 3);
    assert_int_equal(got->position, 2);
    assert_string_equal(got->transport, "cuda_ipc");
    assert_int_equal(got->group_key_bytes, sizeof(key));
    assert_memory_equal(got->group_key, key, sizeof(key));
    assert_int_equal(got->largest_step_bytes, 1u << 30);
    assert_string_equal(got->next_worker_id, "worker-2");
    assert_int_equal(got->next_places_bytes, 6);
    assert_memory_equal(got->next_places, "places", 6);
    assert_true(got->next_staged);
    assert_int_equal(got->next_n_windows, 2);
    assert_int_equal(got->next_window_bytes, 4096);
}

static void a_step_comes_back_as_it_went(void **state)
{
    fixture *f = *state;
    const weir_round_part parts[] = {
        { 0, 0, 0, 0, { 0, 0 } },
        { UINT32_MAX, UINT64_MAX - 9, 9, UINT64_MAX - 9, { UINT64_MAX, 1 } },
    };
    weir_round_step step = { .number = 5,
                             .parts = parts,
                             .n_parts = 2,
                             .version = UINT64_MAX - 1,
                             .version_uid = "uid-of-an-attempt",
                             .n_steps = 7 };
    assert_int_equal(weir_round_send_step(f->near, &step, &f->scratch, TIMEOUT_MS), WEIR_OK);
    expect_message(f, WEIR_ROUND_STEP);
    assert_int_equal(f->got.step.number, 5);
    assert_int_equal(f->got.step.n_parts, 2);
    assert_true(f->got.step.version == UINT64_MAX - 1);
    assert_string_equal(f->got.step.version_uid, "uid-of-an-attempt");
    assert_int_equal(f->got.step.n_steps, 7);
    for (size_t i = 0; i < 2; i++) {
        const weir_round_part *got = &f->got.step.parts[i];
        assert_int_equal(got->shard, parts[i].shard);
        assert_true(got->offset == parts[i].offset && got->n_bytes == parts[i].n_bytes &&
                    got->packed_offset == parts[i].packed_offset &&
                    got->digest.product == parts[i].digest.product &&
                    got->digest.sum == parts[i].digest.sum);
    }
    step = (weir_round_step){ .number = 6, .version_uid = "", .n_steps = 7 };
    assert_int_equal(weir_round_send_step(f->near, &step, &f->scratch, TIMEOUT_MS), WEIR_OK);
    expect_message(f, WEIR_ROUND_STEP);
    assert_int_equal(f->got.step.n_parts, 0);
}

static void a_done_comes_back_as_it_went(void **state)
{
    fixture *f = *state;
    const double seconds[WEIR_N_STOPS] = { 0, 0, 0, 0, 0.25, 1e-9, 1e9 };
    weir_round_done done = { 6, WEIR_OK, NULL, seconds, WEIR_N_STOPS };
    assert_int_equal(weir_round_send_done(f->near, &done, &f->scratch, TIMEOUT_MS), WEIR_OK);
    expect_message(f, WEIR_ROUND_DONE);
    assert_int_equal(f->got.done.version, 6);
    assert_int_equal(f->got.done.status, WEIR_OK);
    assert_string_equal(f->got.done.text, "");
    assert_int_equal(f->got.done.n_seconds, WEIR_N_STOPS);
    assert_memory_equal(f->got.done.seconds, seconds, sizeof(seconds));
    done = (weir_round_done){ 6, WEIR_ERR_PARTIAL, "a.weight: digest differs", NULL, 0 };
    assert_int_equal(weir_round_send_done(f->near, &done, &f->scratch, TIMEOUT_MS), WEIR_OK);
    expect_message(f, WEIR_ROUND_DONE);
    assert_int_equal(f->got.done.status, WEIR_ERR_PARTIAL);
    assert_string_equal(f->got.done.text, "a.weight: digest differs");
}

static void an_abort_says_the_last_error_and_leaves_it(void **state)
{
    fixture *f = *state;
    weir_fail(WEIR_ERR_NONFINITE, "b.weight: NaN at [0, 1]");
    assert_int_equal(weir_round_send_abort(f->near,
                                           &(weir_round_abort){ WEIR_ERR_NONFINITE, NULL, true },
                                           &f->scratch, 100),
                     WEIR_OK);
    expect_message(f, WEIR_ROUND_ABORT);
    assert_int_equal(f->got.abort.status, WEIR_ERR_NONFINITE);
    assert_string_equal(f->got.abort.text, "b.weight: NaN at [0, 1]");
    assert_true(f->got.abort.nothing_sent);
    assert_int_equal(
        weir_round_send_abort(f->near, &(weir_round_abort){ WEIR_ERR_CANCELLED, "closed", false },
                              &f->scratch, 100),
        WEIR_OK);
    expect_message(f, WEIR_ROUND_ABORT);
    assert_string_equal(f->got.abort.text, "closed");
    assert_false(f->got.abort.nothing_sent);

    weir_frame_link_close(f->far); /* whoever is gone hears nothing, and the cause stays */
    f->far = NULL;
    weir_status status = WEIR_OK;
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (status == WEIR_OK && !weir_deadline_passed(deadline))
        status = weir_round_send_abort(
            f->near, &(weir_round_abort){ WEIR_ERR_NONFINITE, NULL, true }, &f->scratch, 100);
    assert_int_equal(status, WEIR_ERR_PEER_LOST);
    assert_string_equal(weir_last_error(), "b.weight: NaN at [0, 1]");
}

static void places_come_back_as_they_went(void **state)
{
    fixture *f = *state;
    const weir_manifest_region regions[] = { { "key", 3, 512 }, { NULL, 0, 1 } };
    const uint32_t target_regions[] = { 0, 1, 0 };
    const uint64_t target_offsets[] = { 0, 0, 511 };
    const weir_round_places places = { "ucx",          "here",         4, regions, 2,
                                       target_regions, target_offsets, 3 };
    weir_round_places got;
    assert_int_equal(weir_round_places_encode(&places, &f->scratch, &f->buffer), WEIR_OK);
    assert_int_equal(weir_round_places_decode(f->buffer.data, f->buffer.n_bytes, &f->arena, &got),
                     WEIR_OK);
    memset(f->buffer.data, 0xff, f->buffer.n_bytes); /* nothing borrows from the bytes */
    assert_string_equal(got.transport, "ucx");
    assert_int_equal(got.address_bytes, 4);
    assert_memory_equal(got.address, "here", 4);
    assert_int_equal(got.n_regions, 2);
    assert_int_equal(got.regions[0].key_bytes, 3);
    assert_memory_equal(got.regions[0].key, "key", 3);
    assert_int_equal(got.regions[0].n_bytes, 512);
    assert_int_equal(got.regions[1].n_bytes, 1);
    assert_int_equal(got.n_targets, 3);
    assert_memory_equal(got.target_regions, target_regions, sizeof(target_regions));
    assert_memory_equal(got.target_offsets, target_offsets, sizeof(target_offsets));
}

/* ---- refusals --------------------------------------------------------------------------------*/

static void a_bad_join_is_refused(void **state)
{
    fixture *f = *state;
    Weir__Round__Join join = WEIR__ROUND__JOIN__INIT;
    expect_refused(f, WEIR_ROUND_JOIN, &join.base, WEIR_ERR_UNSUPPORTED,
                   "Join.format is 0, this build speaks 2");
    join.format = 3;
    expect_refused(f, WEIR_ROUND_JOIN, &join.base, WEIR_ERR_UNSUPPORTED, "Join.format is 3");
    join.format = 2;
    expect_refused(f, WEIR_ROUND_JOIN, &join.base, WEIR_ERR_CORRUPT,
                   "Join.worker_id has 0 bytes, expected 1 to 255");
    join.worker_id = name_of(256);
    expect_refused(f, WEIR_ROUND_JOIN, &join.base, WEIR_ERR_CORRUPT, "Join.worker_id has 256");
    join.worker_id = text("w");
    expect_refused(f, WEIR_ROUND_JOIN, &join.base, WEIR_ERR_CORRUPT, "Join.model has 0 bytes");
    join.model = name_of(300);
    expect_refused(f, WEIR_ROUND_JOIN, &join.base, WEIR_ERR_CORRUPT, "Join.model has 300");
    join.model = name_of(255);
    assert_int_equal(decode(f, WEIR_ROUND_JOIN, &join.base), WEIR_OK);
    join.model = text("m");
    join.run = name_of(256);
    expect_refused(f, WEIR_ROUND_JOIN, &join.base, WEIR_ERR_CORRUPT,
                   "Join.run has 256 bytes, expected 0 to 255");
    join.run = text("\xff");
    expect_refused(f, WEIR_ROUND_JOIN, &join.base, WEIR_ERR_CORRUPT,
                   "Join.run is not UTF-8 text without NUL");
}

static void a_bad_ready_is_refused(void **state)
{
    fixture *f = *state;
    Weir__Round__Ready ready = WEIR__ROUND__READY__INIT;
    ready.version_uid = name_of(256);
    expect_refused(f, WEIR_ROUND_READY, &ready.base, WEIR_ERR_CORRUPT, "Ready.version_uid has 256");
    ready.version_uid = text("u");
    ready.n_windows = 1;
    expect_refused(f, WEIR_ROUND_READY, &ready.base, WEIR_ERR_CORRUPT,
                   "Ready has 1 windows, but is not staged");
    ready.staged = 1;
    expect_refused(f, WEIR_ROUND_READY, &ready.base, WEIR_ERR_CORRUPT,
                   "Ready has 1 windows of 0 bytes");
    ready.window_bytes = UINT64_MAX;
    assert_int_equal(decode(f, WEIR_ROUND_READY, &ready.base), WEIR_OK);
    ready.n_windows = 2;
    expect_refused(f, WEIR_ROUND_READY, &ready.base, WEIR_ERR_CORRUPT,
                   "Ready has 2 windows of 18446744073709551615 bytes");
    ready.n_windows = 0;
    expect_refused(f, WEIR_ROUND_READY, &ready.base, WEIR_ERR_CORRUPT,
                   "Ready has 0 windows, expected 1 to 16");
    ready.n_windows = 17;
    expect_refused(f, WEIR_ROUND_READY, &ready.base, WEIR_ERR_CORRUPT, "Ready has 17 windows");
}

static void a_bad_round_is_refused(void **state)
{
    fixture *f = *state;
    uint8_t key[WEIR_GROUP_KEY_BYTES + 1] = { 1 };
    Weir__Round__Round round = WEIR__ROUND__ROUND__INIT;
    expect_refused(f, WEIR_ROUND_ROUND, &round.base, WEIR_ERR_CORRUPT,
                   "Round.position is 0 of 0 members");
    round.n_members = 2;
    round.position = 2;
    expect_refused(f, WEIR_ROUND_ROUND, &round.base, WEIR_ERR_CORRUPT,
                   "Round.position is 2 of 2 members");
    round.position = 1;
    round.version_uid = name_of(256);
    expect_refused(f, WEIR_ROUND_ROUND, &round.base, WEIR_ERR_CORRUPT, "Round.version_uid has 256");
    round.version_uid = text("");
    expect_refused(f, WEIR_ROUND_ROUND, &round.base, WEIR_ERR_CORRUPT, "Round.transport has 0");
    round.transport = text("nccl");
    const size_t bad_key_bytes[] = { 1, WEIR_GROUP_KEY_BYTES - 1, WEIR_GROUP_KEY_BYTES + 1 };
    for (size_t i = 0; i < 3; i++) {
        round.group_key = (ProtobufCBinaryData){ bad_key_bytes[i], key };
        expect_refused(f, WEIR_ROUND_ROUND, &round.base, WEIR_ERR_CORRUPT, "Round.group_key has");
    }
    round.group_key.len = WEIR_GROUP_KEY_BYTES;
    assert_int_equal(decode(f, WEIR_ROUND_ROUND, &round.base), WEIR_OK);
}

static void a_bad_next_of_a_round_is_refused(void **state)
{
    fixture *f = *state;
    uint8_t places[] = { 1, 2, 3 };
    Weir__Round__Round round = WEIR__ROUND__ROUND__INIT;
    round.n_members = 1;
    round.transport = text("ucx");
    round.next_places = (ProtobufCBinaryData){ 3, places };
    expect_refused(f, WEIR_ROUND_ROUND, &round.base, WEIR_ERR_CORRUPT,
                   "Round.next_worker_id is empty, but not what follows");
    round.next_worker_id = name_of(256);
    expect_refused(f, WEIR_ROUND_ROUND, &round.base, WEIR_ERR_CORRUPT,
                   "Round.next_worker_id has 256");
    round.next_worker_id = text("w2");
    round.next_n_windows = 3;
    expect_refused(f, WEIR_ROUND_ROUND, &round.base, WEIR_ERR_CORRUPT,
                   "Round.next has 3 windows, but is not staged");
    round.next_staged = 1;
    expect_refused(f, WEIR_ROUND_ROUND, &round.base, WEIR_ERR_CORRUPT,
                   "Round.next has 3 windows of 0 bytes");
    round.next_window_bytes = 1;
    assert_int_equal(decode(f, WEIR_ROUND_ROUND, &round.base), WEIR_OK);
}

static void a_step_beyond_the_last_and_a_part_that_overflows_are_refused(void **state)
{
    fixture *f = *state;
    Weir__Round__Part part = WEIR__ROUND__PART__INIT, *parts[] = { &part };
    Weir__Round__Step step = WEIR__ROUND__STEP__INIT;
    step.number = 8;
    step.n_steps = 8;
    expect_refused(f, WEIR_ROUND_STEP, &step.base, WEIR_ERR_CORRUPT,
                   "Step.number: 8 of a round of 8 steps");
    step.n_steps = 9;
    step.parts = parts;
    step.n_parts = 1;
    part.n_bytes = 2;
    part.offset = UINT64_MAX - 1;
    expect_refused(f, WEIR_ROUND_STEP, &step.base, WEIR_ERR_CORRUPT,
                   "Step.parts: part 0 of step 8 has 2 bytes at offset 18446744073709551614");
    part.offset = 0;
    part.packed_offset = UINT64_MAX - 1;
    expect_refused(f, WEIR_ROUND_STEP, &step.base, WEIR_ERR_CORRUPT,
                   "packed at 18446744073709551614");
    part.packed_offset = UINT64_MAX - 2;
    assert_int_equal(decode(f, WEIR_ROUND_STEP, &step.base), WEIR_OK);
}

static void bad_seconds_are_refused(void **state)
{
    fixture *f = *state;
    double seconds[WEIR_N_STOPS + 1] = { 0 };
    Weir__Round__Done done = WEIR__ROUND__DONE__INIT;
    done.seconds = seconds;
    done.n_seconds = WEIR_N_STOPS + 1;
    expect_refused(f, WEIR_ROUND_DONE, &done.base, WEIR_ERR_CORRUPT,
                   "Done.seconds has 10 numbers, expected at most 9");
    done.n_seconds = 2;
    const double bad[] = { -1, NAN, INFINITY };
    for (size_t i = 0; i < 3; i++) {
        seconds[1] = bad[i];
        expect_refused(f, WEIR_ROUND_DONE, &done.base, WEIR_ERR_CORRUPT,
                       "Done.seconds: number 1 is");
    }
}

static void bad_places_are_refused(void **state)
{
    fixture *f = *state;
    const weir_manifest_region region = { "key", 3, 512 };
    uint32_t target_region = 0;
    uint64_t target_offset = 0;
    weir_round_places places = { "", NULL, 0, &region, 1, &target_region, &target_offset, 1 };
    const struct {
        const char *transport;
        uint32_t region;
        uint64_t offset;
        const char *line;
    } bad[] = { { "", 0, 0, "Places.transport has 0 bytes" },
                { name_of(256), 0, 0, "Places.transport has 256 bytes" },
                { "ucx", 1, 0, "Places.target_regions: shard 0 in region 1 of 1" },
                { "ucx", UINT32_MAX, 0, "shard 0 in region 4294967295 of 1" },
                { "ucx", 0, 512, "Places.target_offsets: shard 0 at byte 512 of region 0, which" },
                { "ucx", 0, UINT64_MAX, "shard 0 at byte 18446744073709551615" } };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        weir_round_places got = { .n_targets = 99 };
        places.transport = bad[i].transport;
        target_region = bad[i].region;
        target_offset = bad[i].offset;
        assert_int_equal(weir_round_places_encode(&places, &f->scratch, &f->buffer), WEIR_OK);
        assert_int_equal(
            weir_round_places_decode(f->buffer.data, f->buffer.n_bytes, &f->arena, &got),
            WEIR_ERR_CORRUPT);
        if (strstr(weir_last_error(), bad[i].line) == NULL)
            fail_msg("'%s' does not say '%s'", weir_last_error(), bad[i].line);
        assert_int_equal(got.n_targets, 99);
    }
}

static void lists_of_unequal_length_are_refused(void **state)
{
    fixture *f = *state;
    uint32_t target_regions[2] = { 0, 0 };
    Weir__Round__Places message = WEIR__ROUND__PLACES__INIT;
    weir_round_places got;
    unsigned char bytes[64];
    message.transport = text("ucx");
    message.target_regions = target_regions;
    message.n_target_regions = 2;
    size_t n = weir__round__places__pack(&message, bytes);
    assert_int_equal(weir_round_places_decode(bytes, n, &f->arena, &got), WEIR_ERR_CORRUPT);
    assert_string_equal(weir_last_error(), "Places has 2 target_regions and 0 target_offsets");
}

static void a_frame_of_no_known_type_is_refused(void **state)
{
    fixture *f = *state;
    const uint16_t types[] = { 0, 12, UINT16_MAX };
    for (size_t i = 0; i < 3; i++) {
        weir_frame frame = { types[i], "", 0 };
        char line[64];
        assert_int_equal(weir_round_decode(&frame, &f->arena, &f->got), WEIR_ERR_CORRUPT);
        snprintf(line, sizeof(line), "a frame of type %u, which is no message", types[i]);
        assert_non_null(strstr(weir_last_error(), line));
        assert_string_equal(weir_round_type_name(types[i]), "?");
    }
    assert_string_equal(weir_round_type_name(WEIR_ROUND_JOIN), "Join");
    assert_string_equal(weir_round_type_name(WEIR_ROUND_PAUSED), "Paused");
}

static void what_a_peer_sends_wrong_is_said_with_its_name(void **state)
{
    fixture *f = *state;
    assert_int_equal(weir_frame_send(f->near, WEIR_ROUND_STEP, "\xff", 1, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_round_receive(f->far, TIMEOUT_MS, &f->arena, &f->got), WEIR_ERR_CORRUPT);
    assert_string_equal(weir_last_error(), "replica 7: bytes are not a Step message");
    assert_int_equal(weir_round_receive(f->far, 0, &f->arena, &f->got), WEIR_IN_PROGRESS);
}

/* ---- statuses and texts from outside ---------------------------------------------------------*/

static void a_status_from_outside_becomes_one_of_ours(void **state)
{
    fixture *f = *state;
    const struct {
        int32_t sent;
        weir_status of_done, of_abort;
    } cases[] = { { -21, WEIR_ERR_TIMED_OUT, WEIR_ERR_TIMED_OUT },
                  { -61, WEIR_ERR_INTERNAL, WEIR_ERR_INTERNAL },
                  { 0, WEIR_OK, WEIR_ERR_REFUSED },
                  { 1, WEIR_ERR_REFUSED, WEIR_ERR_REFUSED },
                  { 7, WEIR_ERR_REFUSED, WEIR_ERR_REFUSED },
                  { -15, WEIR_ERR_REFUSED, WEIR_ERR_REFUSED },
                  { -79, WEIR_ERR_REFUSED, WEIR_ERR_REFUSED },
                  { INT32_MIN, WEIR_ERR_REFUSED, WEIR_ERR_REFUSED },
                  { INT32_MAX, WEIR_ERR_REFUSED, WEIR_ERR_REFUSED } };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Weir__Round__Done done = WEIR__ROUND__DONE__INIT;
        Weir__Round__Abort abort = WEIR__ROUND__ABORT__INIT;
        done.status = abort.status = cases[i].sent;
        assert_int_equal(decode(f, WEIR_ROUND_DONE, &done.base), WEIR_OK);
        assert_int_equal(f->got.done.status, cases[i].of_done);
        assert_int_equal(decode(f, WEIR_ROUND_ABORT, &abort.base), WEIR_OK);
        assert_int_equal(f->got.abort.status, cases[i].of_abort);
        assert_string_equal(f->got.abort.text, weir_status_text(cases[i].of_abort));
    }
}

static void a_text_from_outside_becomes_one_bounded_line(void **state)
{
    fixture *f = *state;
    char long_text[2000];
    for (size_t i = 0; i + 2 < sizeof(long_text); i += 2)
        memcpy(long_text + i, "\xc3\xa9", 2); /* two bytes each: the cut falls within one */
    long_text[sizeof(long_text) - 2] = '\0';
    memcpy(long_text, "a\n\x1b\x7f", 4);
    Weir__Round__Abort abort = WEIR__ROUND__ABORT__INIT;
    abort.text = long_text;
    assert_int_equal(decode(f, WEIR_ROUND_ABORT, &abort.base), WEIR_OK);
    assert_memory_equal(f->got.abort.text, "a   \xc3\xa9", 6);
    assert_int_equal(strlen(f->got.abort.text), WEIR_ROUND_TEXT_BYTES - 1);
    assert_int_equal(f->got.abort.text[WEIR_ROUND_TEXT_BYTES - 2], '?');
}

static void a_text_that_is_no_utf8_still_arrives(void **state)
{
    fixture *f = *state;
    assert_int_equal(
        weir_round_send_abort(f->near, &(weir_round_abort){ WEIR_ERR_IO, "file \xe9.bin", false },
                              &f->scratch, TIMEOUT_MS),
        WEIR_OK);
    expect_message(f, WEIR_ROUND_ABORT);
    assert_string_equal(f->got.abort.text, "file ?.bin");
}

/* ---- hostile bytes, memory, speed ------------------------------------------------------------*/

/* A message with every field set, by number. */
static size_t pack_example(weir_round_type type, unsigned char bytes[512])
{
    uint8_t key[WEIR_GROUP_KEY_BYTES] = { 1 };
    double seconds[2] = { 1, 2 };
    Weir__Round__Join join = WEIR__ROUND__JOIN__INIT;
    Weir__Round__Ready ready = WEIR__ROUND__READY__INIT;
    Weir__Round__Round round = WEIR__ROUND__ROUND__INIT;
    Weir__Round__Part part = WEIR__ROUND__PART__INIT, *parts[] = { &part, &part };
    Weir__Round__Step step = WEIR__ROUND__STEP__INIT;
    Weir__Round__Done done = WEIR__ROUND__DONE__INIT;
    join.format = 2, join.worker_id = text("w"), join.model = text("m"), join.run = text("r");
    ready.version = 300, ready.version_uid = text("u"), ready.staged = 1, ready.n_windows = 2;
    ready.window_bytes = 4096, ready.places = (ProtobufCBinaryData){ 3, key };
    round.version = 300, round.version_uid = text("u"), round.n_members = 2, round.position = 1;
    round.transport = text("t"), round.group_key = (ProtobufCBinaryData){ sizeof(key), key };
    round.largest_step_bytes = 5, round.next_worker_id = text("n"), round.next_staged = 1;
    round.next_places = (ProtobufCBinaryData){ 3, key };
    round.next_n_windows = 1, round.next_window_bytes = 7;
    part.shard = 1, part.offset = 300, part.n_bytes = 4, part.packed_offset = 5;
    part.digest_product = 6, part.digest_sum = 7;
    step.number = 1, step.parts = parts, step.n_parts = 2;
    step.version = 300, step.version_uid = text("u"), step.n_steps = 2;
    done.version = 1, done.status = -1, done.text = text("t"), done.seconds = seconds;
    done.n_seconds = 2;
    switch ((int)type) {
    case WEIR_ROUND_JOIN:
        return weir__round__join__pack(&join, bytes);
    case WEIR_ROUND_READY:
        return weir__round__ready__pack(&ready, bytes);
    case WEIR_ROUND_ROUND:
        return weir__round__round__pack(&round, bytes);
    case WEIR_ROUND_STEP:
        return weir__round__step__pack(&step, bytes);
    default: /* what the small ones have in Done, too: a number, a status, a text */
        return weir__round__done__pack(&done, bytes);
    }
}

/* Each from a block of its very size, so that the address sanitizer sees a byte too far. */
static void decode_exactly(weir_round_type type, const unsigned char *bytes, size_t n_bytes)
{
    weir_round_message got;
    weir_round_places places;
    weir_arena arena;
    unsigned char *copy = weir_alloc(n_bytes);
    memcpy(copy, bytes, n_bytes);
    weir_arena_init(&arena, SMALL_CAP);
    weir_frame frame = { (uint16_t)type, copy, n_bytes };
    weir_status status = weir_round_decode(&frame, &arena, &got);
    assert_true(status == WEIR_OK || status == WEIR_ERR_CORRUPT || status == WEIR_ERR_UNSUPPORTED ||
                status == WEIR_ERR_NO_MEMORY);
    weir_round_places_decode(copy, n_bytes, &arena, &places);
    weir_arena_close(&arena);
    weir_free(copy);
}

static void every_truncation_and_every_changed_byte_stays_within_bounds(void **state)
{
    (void)state;
    unsigned char bytes[512];
    for (int type = WEIR_ROUND_JOIN; type <= WEIR_ROUND_PAUSED; type++) {
        size_t n = pack_example((weir_round_type)type, bytes);
        for (size_t cut = 0; cut <= n; cut++)
            decode_exactly((weir_round_type)type, bytes, cut);
        for (size_t i = 0; i < n; i++) {
            unsigned char kept = bytes[i];
            for (unsigned bit = 0; bit < 8; bit++) {
                bytes[i] = kept ^ (unsigned char)(1u << bit);
                decode_exactly((weir_round_type)type, bytes, n);
            }
            bytes[i] = kept;
        }
    }
}

static void a_message_that_unpacks_to_too_much_is_refused(void **state)
{
    fixture *f = *state;
    const size_t n_parts = 4u << 20; /* two bytes each on the wire */
    unsigned char *bytes = weir_alloc(2 * n_parts);
    for (size_t i = 0; i < n_parts; i++) {
        bytes[2 * i] = 2 << 3 | 2;
        bytes[2 * i + 1] = 0;
    }
    weir_frame frame = { WEIR_ROUND_STEP, bytes, 2 * n_parts };
    assert_int_equal(weir_round_decode(&frame, &f->arena, &f->got), WEIR_ERR_NO_MEMORY);
    assert_non_null(strstr(weir_last_error(), "Step of 8388608 bytes: more than"));
    assert_int_equal(f->arena.cap_bytes, 0); /* the arena is as it was given */
    weir_free(bytes);
}

static size_t pack_large_step(fixture *f, size_t n_parts)
{
    weir_arena_reset(&f->scratch);
    weir_round_part *parts = weir_arena_zeroed(&f->scratch, n_parts, sizeof(*parts));
    for (size_t i = 0; i < n_parts; i++)
        parts[i] = (weir_round_part){ (uint32_t)i, i << 20, 1u << 20, i << 20, { ~i, i << 40 } };
    const weir_round_step step = {
        .number = 1, .parts = parts, .n_parts = n_parts, .version_uid = "", .n_steps = 2
    };
    weir_frame frame;
    assert_int_equal(weir_round_send_step(f->near, &step, &f->scratch, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_frame_receive(f->far, TIMEOUT_MS, &frame), WEIR_OK);
    assert_int_equal(weir_buffer_reserve(&f->buffer, frame.n_bytes), WEIR_OK);
    memcpy(f->buffer.data, frame.payload, frame.n_bytes);
    return frame.n_bytes;
}

/* Seconds of the fastest of some decodings. */
static double time_decoding(fixture *f, size_t n_parts)
{
    weir_frame frame = { WEIR_ROUND_STEP, NULL, pack_large_step(f, n_parts) };
    frame.payload = f->buffer.data;
    double best = 1e9;
    for (int i = 0; i < 10; i++) {
        weir_arena_reset(&f->arena);
        double begun = weir_now_s();
        assert_int_equal(weir_round_decode(&frame, &f->arena, &f->got), WEIR_OK);
        double seconds = weir_now_s() - begun;
        best = seconds < best ? seconds : best;
    }
    assert_int_equal(f->got.step.n_parts, n_parts);
    assert_int_equal(f->got.step.parts[n_parts - 1].offset, (n_parts - 1) << 20);
    return best;
}

static void decoding_takes_time_in_proportion_to_the_parts(void **state)
{
    fixture *f = *state;
    double few = time_decoding(f, 2000), many = time_decoding(f, 20000);
    print_message("[   INFO   ] Step decoded: 2,000 parts %.3f ms, 20,000 parts %.3f ms\n",
                  few * 1e3, many * 1e3);
    assert_true(many < 50 * few); /* quadratic would be 100 */
}

static void steps_again_and_again_allocate_nothing(void **state)
{
    fixture *f = *state;
    weir_round_part parts[500] = { { .n_bytes = 1 } };
    const weir_round_step step = {
        .number = 1, .parts = parts, .n_parts = 500, .version_uid = "uid", .n_steps = 2
    };
    uint64_t n_allocations = 0;
    for (int i = 0; i < 20; i++) {
        weir_arena_reset(&f->scratch);
        assert_int_equal(weir_round_send_step(f->near, &step, &f->scratch, TIMEOUT_MS), WEIR_OK);
        expect_message(f, WEIR_ROUND_STEP);
        if (i == 0)
            n_allocations = weir_alloc_count();
    }
    assert_int_equal(weir_alloc_count(), n_allocations);
}

static void running_out_of_memory_is_said(void **state)
{
    fixture *f = *state;
    const weir_manifest_region region = { "key", 3, 512 };
    const weir_round_places places = { "ucx", NULL, 0, &region, 1, NULL, NULL, 0 };
    weir_arena empty;
    weir_arena_init(&empty, 1);
    const weir_round_step step = { .number = 1,
                                   .parts = (const weir_round_part[1]){ { .n_bytes = 1 } },
                                   .n_parts = 1,
                                   .version_uid = "",
                                   .n_steps = 2 };
    const weir_round_done done = { .text = "t" };
    assert_int_equal(weir_round_send_step(f->near, &step, &empty, TIMEOUT_MS), WEIR_ERR_NO_MEMORY);
    assert_int_equal(weir_round_send_done(f->near, &done, &empty, TIMEOUT_MS), WEIR_ERR_NO_MEMORY);
    assert_int_equal(weir_round_send_abort(f->near, &(weir_round_abort){ WEIR_ERR_IO, "t", false },
                                           &empty, TIMEOUT_MS),
                     WEIR_ERR_NO_MEMORY);
    assert_int_equal(weir_round_send_news(f->near, 1u << 20, &empty, TIMEOUT_MS),
                     WEIR_ERR_NO_MEMORY);
    assert_int_equal(weir_round_places_encode(&places, &empty, &f->buffer), WEIR_ERR_NO_MEMORY);
    weir_arena_close(&empty);
    weir_buffer none = { 0 };
    weir_alloc_fail_at(2); /* the first is the scratch arena's block */
    assert_int_equal(weir_round_places_encode(&places, &f->scratch, &none), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    unsigned char bytes[512];
    weir_frame frame = { WEIR_ROUND_STEP, bytes, pack_example(WEIR_ROUND_STEP, bytes) };
    weir_alloc_fail_at(1);
    assert_int_equal(weir_round_decode(&frame, &f->arena, &f->got), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(a_join_comes_back_as_it_went),
        CASE(news_and_numbers_come_back_as_they_went),
        CASE(a_ready_comes_back_as_it_went),
        CASE(a_round_comes_back_as_it_went),
        CASE(a_step_comes_back_as_it_went),
        CASE(a_done_comes_back_as_it_went),
        CASE(an_abort_says_the_last_error_and_leaves_it),
        CASE(places_come_back_as_they_went),
        CASE(a_bad_join_is_refused),
        CASE(a_bad_ready_is_refused),
        CASE(a_bad_round_is_refused),
        CASE(a_bad_next_of_a_round_is_refused),
        CASE(a_step_beyond_the_last_and_a_part_that_overflows_are_refused),
        CASE(bad_seconds_are_refused),
        CASE(bad_places_are_refused),
        CASE(lists_of_unequal_length_are_refused),
        CASE(a_frame_of_no_known_type_is_refused),
        CASE(what_a_peer_sends_wrong_is_said_with_its_name),
        CASE(a_status_from_outside_becomes_one_of_ours),
        CASE(a_text_from_outside_becomes_one_bounded_line),
        CASE(a_text_that_is_no_utf8_still_arrives),
        CASE(every_truncation_and_every_changed_byte_stays_within_bounds),
        CASE(a_message_that_unpacks_to_too_much_is_refused),
        CASE(decoding_takes_time_in_proportion_to_the_parts),
        CASE(steps_again_and_again_allocate_nothing),
        CASE(running_out_of_memory_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
