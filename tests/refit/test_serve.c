/* SPDX-License-Identifier: Apache-2.0 */
/* test_serve.c - a real trainer rank that pushes, and replicas that lie to it: made of frames, by
 * hand. */
#include "refit/refit_rig.h"

#include <pthread.h>

#include "refit/serve.h"
#include "refit/trainer.h"

#define SEND_MS 1000u

/* A replica by hand: joined to the rig's first rank, whose wait runs in a thread. */
typedef struct liar {
    rig *r;
    weir_trainer *trainer;
    weir_frame_link *link;
    weir_arena arena;
    pthread_t thread;
    unsigned timeout_ms;
    weir_status status;
    char error[1024];
} liar;

static void *wait_for_one(void *context)
{
    liar *l = context;
    l->status = weir_trainer_wait(l->trainer, 1, 1, l->timeout_ms);
    snprintf(l->error, sizeof(l->error), "%s", weir_last_error());
    return NULL;
}

static void liar_open(liar *l)
{
    rig wish = { .family = "qwen3",
                 .conversion = "fp8_128x128",
                 .transport = "ucx",
                 .delivery = WEIR_DELIVERY_PUSH };
    *l = (liar){ .r = rig_open_as(&wish), .timeout_ms = 2000 };
    l->trainer = l->r->trainers[0];
    weir_arena_init(&l->arena, 0);
    rig_publish(l->r, 1);
    assert_ok(weir_frame_connect(weir_push_address(l->trainer->push), "the trainer", NULL, SEND_MS,
                                 &l->link));
}

static void liar_close(liar *l)
{
    weir_frame_link_close(l->link);
    weir_arena_close(&l->arena);
    rig_close(l->r);
}

static void join(liar *l, const char *model)
{
    weir_round_join message = { "liar", model, "default" };
    assert_ok(weir_round_send_join(l->link, &message, &l->arena, SEND_MS));
}

static weir_round_ready ready_of(const liar *l)
{
    const char *uid = "";
    for (unsigned i = 0; i < l->trainer->n_slots; i++) {
        if (l->trainer->slots[i].state == WEIR_SLOT_PUBLISHED)
            uid = l->trainer->slots[i].uid;
    }
    return (weir_round_ready){ .version = 1, .version_uid = uid, .places = "", .places_bytes = 0 };
}

static void send_ready(liar *l, const weir_round_ready *ready)
{
    assert_ok(weir_round_send_ready(l->link, ready, &l->arena, SEND_MS));
}

static void begin_wait(liar *l)
{
    assert_int_equal(pthread_create(&l->thread, NULL, wait_for_one, l), 0);
}

static void expect_wait(liar *l, weir_status status, const char *line)
{
    pthread_join(l->thread, NULL);
    if (l->status != status || strstr(l->error, line) == NULL)
        fail_msg("got %s: '%s', wanted %s: '%s'", weir_status_name(l->status), l->error,
                 weir_status_name(status), line);
}

/* The next message for the liar, which must be of this type. */
static void expect_told(liar *l, weir_round_type type, weir_round_message *out)
{
    weir_arena_reset(&l->arena);
    weir_status status = WEIR_IN_PROGRESS;
    for (int i = 0; i < 30 && status == WEIR_IN_PROGRESS; i++)
        status = weir_round_receive(l->link, 100, &l->arena, out);
    assert_ok(status);
    assert_string_equal(weir_round_type_name((uint16_t)out->type),
                        weir_round_type_name((uint16_t)type));
}

/* Whatever the liar did, a true replica is served. */
static void expect_still_good(liar *l)
{
    weir_frame_link_close(l->link);
    l->link = NULL;
    weir_trainer *other = l->r->trainers[1];
    weir_replica *replica = rig_open_replica(l->r, "true", WEIR_INSTALL_DIRECT);
    liar second = { .trainer = other, .timeout_ms = 3000 };
    begin_wait(l);
    begin_wait(&second);
    assert_ok(weir_replica_install(replica, 1, NULL));
    expect_wait(l, WEIR_OK, "");
    expect_wait(&second, WEIR_OK, "");
    weir_replica_close(replica);
}

static void places_that_do_not_decode_are_refused_by_name(void **state)
{
    liar l;
    (void)state;
    liar_open(&l);
    join(&l, "model");
    weir_round_ready ready = ready_of(&l);
    ready.places = "\xff\xff\xff";
    ready.places_bytes = 3;
    send_ready(&l, &ready);
    begin_wait(&l);
    expect_wait(&l, WEIR_ERR_CORRUPT, "liar");
    weir_round_message message;
    expect_told(&l, WEIR_ROUND_ABORT, &message);
    expect_still_good(&l);
    liar_close(&l);
}

static void no_places_at_all_are_refused_by_name(void **state)
{
    liar l;
    (void)state;
    liar_open(&l);
    join(&l, "model");
    weir_round_ready ready = ready_of(&l);
    send_ready(&l, &ready);
    begin_wait(&l);
    expect_wait(&l, WEIR_ERR_UNSUPPORTED, "liar has told no places");
    expect_still_good(&l);
    liar_close(&l);
}

static void places_for_other_shards_are_refused(void **state)
{
    liar l;
    weir_buffer packed = { 0 };
    uint32_t region = 0;
    uint64_t offset = 0;
    (void)state;
    liar_open(&l);
    join(&l, "model");
    weir_manifest_region told = { "key", 3, 4096 };
    weir_round_places places = { .transport = "ucx",
                                 .address = "nowhere",
                                 .address_bytes = 7,
                                 .regions = &told,
                                 .n_regions = 1,
                                 .target_regions = &region,
                                 .target_offsets = &offset,
                                 .n_targets = 1 };
    assert_ok(weir_round_places_encode(&places, &l.arena, &packed));
    weir_round_ready ready = ready_of(&l);
    ready.places = packed.data;
    ready.places_bytes = packed.n_bytes;
    send_ready(&l, &ready);
    begin_wait(&l);
    expect_wait(&l, WEIR_ERR_CORRUPT, "places for 1 shards are told");
    weir_buffer_free(&packed);
    expect_still_good(&l);
    liar_close(&l);
}

static void who_follows_another_model_is_sent_away(void **state)
{
    liar l;
    (void)state;
    liar_open(&l);
    l.timeout_ms = 300;
    join(&l, "another");
    begin_wait(&l);
    weir_round_message message;
    expect_told(&l, WEIR_ROUND_ABORT, &message);
    assert_non_null(strstr(message.abort.text, "it follows another"));
    expect_wait(&l, WEIR_ERR_TIMED_OUT, "0 of 1");
    l.timeout_ms = 3000;
    expect_still_good(&l);
    liar_close(&l);
}

static void who_speaks_out_of_turn_is_sent_away(void **state)
{
    liar l;
    (void)state;
    liar_open(&l);
    l.timeout_ms = 300;
    weir_round_ready ready = ready_of(&l);
    send_ready(&l, &ready); /* without having said who it is */
    begin_wait(&l);
    weir_round_message message;
    expect_told(&l, WEIR_ROUND_ABORT, &message);
    expect_wait(&l, WEIR_ERR_TIMED_OUT, "0 of 1");
    l.timeout_ms = 3000;
    expect_still_good(&l);
    liar_close(&l);
}

static void who_wants_a_version_that_is_gone_hears_so(void **state)
{
    liar l;
    (void)state;
    liar_open(&l);
    l.timeout_ms = 300;
    join(&l, "model");
    weir_round_ready ready = ready_of(&l);
    ready.version = 7;
    ready.version_uid = "of-another-training";
    send_ready(&l, &ready);
    begin_wait(&l);
    weir_round_message message;
    expect_told(&l, WEIR_ROUND_ABORT, &message);
    assert_int_equal(message.abort.status, WEIR_ERR_NOT_FOUND);
    expect_wait(&l, WEIR_ERR_TIMED_OUT, "0 of 1");
    l.timeout_ms = 3000;
    expect_still_good(&l);
    liar_close(&l);
}

static void bytes_that_are_no_frames_harm_nobody(void **state)
{
    liar l;
    (void)state;
    liar_open(&l);
    assert_ok(weir_frame_send(l.link, 999, "nonsense", 8, SEND_MS));
    l.timeout_ms = 3000;
    expect_still_good(&l);
    liar_close(&l);
}

static void who_says_nothing_keeps_nobody_waiting(void **state)
{
    liar l;
    weir_frame_link *silent = NULL;
    (void)state;
    liar_open(&l);
    assert_ok(weir_frame_connect(weir_push_address(l.trainer->push), "the trainer", NULL, SEND_MS,
                                 &silent));
    l.timeout_ms = 3000;
    expect_still_good(&l);
    weir_frame_link_close(silent);
    liar_close(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places_that_do_not_decode_are_refused_by_name),
        cmocka_unit_test(no_places_at_all_are_refused_by_name),
        cmocka_unit_test(places_for_other_shards_are_refused),
        cmocka_unit_test(who_follows_another_model_is_sent_away),
        cmocka_unit_test(who_speaks_out_of_turn_is_sent_away),
        cmocka_unit_test(who_wants_a_version_that_is_gone_hears_so),
        cmocka_unit_test(bytes_that_are_no_frames_harm_nobody),
        cmocka_unit_test(who_says_nothing_keeps_nobody_waiting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
