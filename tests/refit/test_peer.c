/* SPDX-License-Identifier: Apache-2.0 */
/* test_peer.c - replicas that read from each other: what they get is what trainers publish,
 * whatever becomes of the one that is read. */
#include "refit/refit_rig.h"

#include "refit/replica.h"
#include "refit/trainer.h"

/* Something that happens when a replica begins to read. */
typedef struct event {
    void (*strike)(struct event *event);
    rig *r;
    weir_replica *peer;
    unsigned n_struck;
} event;

static void on_progress(void *context, weir_stop stop, uint64_t version, uint64_t done_bytes,
                        uint64_t total_bytes)
{
    event *e = context;
    (void)version;
    (void)total_bytes;
    if (stop == WEIR_STOP_TRANSFER && done_bytes == 0 && e->n_struck++ == 0)
        e->strike(e);
}

static weir_replica *open_reader(const rig *r, const char *name, weir_install_mode mode, event *e)
{
    weir_replica_options options = rig_replica_options(r, name, mode);
    weir_replica *replica = NULL;
    if (e != NULL) {
        options.progress = on_progress;
        options.progress_context = e;
    }
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    return replica;
}

static void expect_read_from(const weir_replica *replica, const char *peer)
{
    const weir_schedule *schedule = &replica->schedule;
    assert_int_equal(schedule->of_peer, peer != NULL);
    if (peer != NULL)
        assert_true(weir_worker_is_named(schedule->participants[0].remote->worker_id, peer));
}

static void expect_verified(const rig *r, const char *name, uint64_t version)
{
    weir_verify_report report = rig_verify(r, name);
    assert_string_equal(report.first_difference, "");
    assert_int_equal(report.version, version);
}

static void change_a_byte(weir_replica *replica)
{
    size_t n;
    const weir_tensor *live = weir_replica_parameters(replica, &n);
    ((unsigned char *)live[n / 2].data)[0] ^= 1;
}

/* ---- reading ---------------------------------------------------------------------------------*/

static void a_replica_reads_from_one_of_its_host_that_holds_the_version(void **state)
{
    rig *r = rig_open("qwen3", "fp8_128x128", NULL);
    weir_replica *one = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    weir_replica *two = rig_open_replica(r, "two", WEIR_INSTALL_STAGED);
    weir_replica *three = rig_open_replica(r, "three", WEIR_INSTALL_DIRECT);
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(one, 1, NULL));
    expect_read_from(one, NULL);
    assert_ok(weir_replica_install(two, 1, NULL));
    expect_read_from(two, "one");
    assert_ok(weir_replica_install(three, 1, NULL));
    expect_read_from(three, "one"); /* nobody reads either: the one that was there first */
    assert_string_equal(three->schedule.participants[0].remote->manifest.worker_id, one->worker.id);
    assert_ok(weir_trainer_wait(r->trainers[0], 1, 3, 0));
    expect_verified(r, "one", 1);
    expect_verified(r, "two", 1);
    expect_verified(r, "three", 1);
    weir_replica_close(one);
    weir_replica_close(two);
    weir_replica_close(three);
    rig_close(r);
}

/* A reader that keeps its peer does in the third refit what it did in the second, and no more. */
static void a_steady_reader_allocates_plans_and_connects_nothing(void **state)
{
    rig *r = rig_open("qwen3", "fp8_128x128", NULL);
    weir_replica *one = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    weir_replica *two = rig_open_replica(r, "two", WEIR_INSTALL_STAGED);
    (void)state;
    for (unsigned version = 1; version <= 5; version++) {
        weir_report reports[2];
        rig_publish(r, version);
        uint64_t before = weir_directory_client_messages(two->worker.client);
        assert_ok(weir_replica_install(one, version, &reports[0]));
        assert_ok(weir_replica_install(two, version, &reports[1]));
        expect_read_from(two, "one");
        /* acquire, one manifest, acknowledge */
        assert_int_equal(weir_directory_client_messages(two->worker.client) - before, 3);
        for (int i = 0; version > 3 && i < 2; i++) {
            assert_int_equal(reports[i].counters.allocations, 0);
            assert_int_equal(reports[i].counters.registrations, 0);
            assert_int_equal(reports[i].counters.plans, 0);
            assert_int_equal(reports[i].counters.connections, 0);
        }
    }
    expect_verified(r, "two", 5);
    weir_replica_close(one);
    weir_replica_close(two);
    rig_close(r);
}

/* Whom it reads from may change with every version: what is planned for either is kept. */
static void a_change_between_trainers_and_peers_plans_nothing_anew(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *one = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    weir_replica *two = rig_open_replica(r, "two", WEIR_INSTALL_STAGED);
    (void)state;
    for (unsigned version = 1; version <= 8; version++) {
        weir_replica *first = version % 2 == 0 ? one : two, *second = version % 2 == 0 ? two : one;
        weir_report reports[2];
        rig_publish(r, version);
        assert_ok(weir_replica_install(first, version, &reports[0]));
        assert_ok(weir_replica_install(second, version, &reports[1]));
        expect_read_from(first, NULL);
        expect_read_from(second, first == one ? "one" : "two");
        for (int i = 0; version > 5 && i < 2; i++) {
            assert_int_equal(reports[i].counters.plans, 0);
            assert_int_equal(reports[i].counters.connections, 0);
            assert_int_equal(reports[i].counters.registrations, 0);
        }
    }
    expect_verified(r, "one", 8);
    expect_verified(r, "two", 8);
    weir_replica_close(one);
    weir_replica_close(two);
    rig_close(r);
}

static void options_keep_a_replica_from_serving_or_from_reading_others(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *replicas[3];
    (void)state;
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = { "silent", "two", "trainers-alone" };
        weir_replica_options options = rig_replica_options(r, names[i], WEIR_INSTALL_STAGED);
        options.serves_nobody = i == 0;
        options.reads_trainers_alone = i == 2;
        assert_ok(weir_replica_open(&options, &replicas[i]));
        assert_ok(weir_replica_allocate(replicas[i]));
    }
    rig_publish(r, 1);
    for (int i = 0; i < 3; i++) {
        assert_ok(weir_replica_install(replicas[i], 1, NULL));
        expect_read_from(replicas[i], NULL);
    }
    expect_verified(r, "silent", 1);
    for (int i = 0; i < 3; i++)
        weir_replica_close(replicas[i]);
    rig_close(r);
}

static void a_replica_of_other_parameters_is_no_source(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *one = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    weir_replica *two = rig_open_replica(r, "two", WEIR_INSTALL_STAGED);
    (void)state;
    assert_string_equal(one->part, two->part);
    rig *fp8 = rig_open("qwen3", "fp8_128x128", NULL);
    weir_replica *other = rig_open_replica(fp8, "other", WEIR_INSTALL_STAGED);
    assert_string_not_equal(one->part, other->part);
    weir_replica_close(other);
    rig_close(fp8);
    weir_replica_close(one);
    weir_replica_close(two);
    rig_close(r);
}

/* ---- peers that fail -------------------------------------------------------------------------*/

static void bytes_that_changed_behind_our_back_are_not_taken(void **state)
{
    (void)state;
    for (int mode = WEIR_INSTALL_STAGED; mode <= WEIR_INSTALL_DIRECT; mode++) {
        rig *r = rig_open("qwen3", "fp8_128x128", NULL);
        weir_replica *one = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
        weir_replica *two = rig_open_replica(r, "two", (weir_install_mode)mode);
        rig_publish(r, 1);
        assert_ok(weir_replica_install(one, 1, NULL));
        change_a_byte(one);
        assert_ok(weir_replica_install(two, 1, NULL));
        expect_read_from(two, NULL);
        expect_verified(r, "two", 1);
        assert_int_equal(weir_replica_get_state(two), WEIR_REPLICA_HOLDING);
        weir_replica_close(one);
        weir_replica_close(two);
        rig_close(r);
    }
}

static void install_the_next(event *e)
{
    assert_ok(weir_replica_install(e->peer, 2, NULL));
}

/* Its bytes are another version's when they arrive. */
static void a_peer_that_installs_while_it_is_read_is_left_for_the_trainers(void **state)
{
    (void)state;
    for (int mode = WEIR_INSTALL_STAGED; mode <= WEIR_INSTALL_DIRECT; mode++) {
        rig *r = rig_open("qwen3", "bf16_cast", NULL);
        event e = { .strike = install_the_next, .r = r };
        weir_replica *two = open_reader(r, "two", (weir_install_mode)mode, &e);
        e.peer = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
        rig_publish(r, 1);
        assert_ok(weir_replica_install(e.peer, 1, NULL));
        rig_publish(r, 2);
        assert_ok(weir_replica_install(two, 1, NULL));
        assert_true(e.n_struck > 1); /* it began to read twice */
        expect_read_from(two, NULL);
        assert_int_equal(weir_replica_version(two), 1);
        rig_fill(&r->model, 1);
        expect_verified(r, "two", 1);
        rig_fill(&r->model, 2);
        expect_verified(r, "one", 2);
        weir_replica_close(e.peer);
        weir_replica_close(two);
        rig_close(r);
    }
}

static void a_peer_that_says_no_longer_is_left_for_another_or_the_trainers(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *one = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    weir_replica *two = rig_open_replica(r, "two", WEIR_INSTALL_STAGED);
    weir_replica *three = rig_open_replica(r, "three", WEIR_INSTALL_STAGED);
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(one, 1, NULL));
    weir_holding_withdraw(one);
    assert_ok(weir_replica_install(two, 1, NULL));
    expect_read_from(two, NULL);
    assert_ok(weir_replica_install(three, 1, NULL));
    expect_read_from(three, "two");
    expect_verified(r, "two", 1);
    expect_verified(r, "three", 1);
    weir_replica_close(one);
    weir_replica_close(two);
    weir_replica_close(three);
    rig_close(r);
}

static void close_the_peer(event *e)
{
    weir_replica_close(e->peer);
    e->peer = NULL;
}

static void a_peer_that_leaves_while_it_is_read_costs_no_version(void **state)
{
    (void)state;
    for (int mode = WEIR_INSTALL_STAGED; mode <= WEIR_INSTALL_DIRECT; mode++) {
        rig *r = rig_open("qwen3", "bf16_cast", NULL);
        event e = { .strike = close_the_peer, .r = r };
        weir_replica *two = open_reader(r, "two", (weir_install_mode)mode, &e);
        e.peer = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
        rig_publish(r, 1);
        assert_ok(weir_replica_install(e.peer, 1, NULL));
        assert_ok(weir_replica_install(two, 1, NULL));
        assert_null(e.peer);
        expect_verified(r, "two", 1);
        weir_replica_close(two);
        rig_close(r);
    }
}

/* Trainers that have just died are still in the directory: readers find out, and turn to a peer. */
static void trainers_that_are_gone_are_left_for_a_peer(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *one = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    weir_replica *two = rig_open_replica(r, "two", WEIR_INSTALL_DIRECT);
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(one, 1, NULL));
    /* One that is far away is read only when it has to be. */
    snprintf(two->worker.host, sizeof(two->worker.host), "far");
    for (int rank = 0; rank < RIG_RANKS; rank++) {
        weir_manifest_service_close(r->trainers[rank]->service);
        r->trainers[rank]->service = NULL;
    }
    assert_ok(weir_replica_install(two, 1, NULL));
    expect_read_from(two, "one");
    expect_verified(r, "two", 1);
    weir_replica_close(one);
    weir_replica_close(two);
    rig_close(r);
}

static void without_another_source_the_first_failure_is_the_answer(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *two = rig_open_replica(r, "two", WEIR_INSTALL_STAGED);
    (void)state;
    rig_publish(r, 1);
    weir_manifest_service_close(r->trainers[1]->service);
    r->trainers[1]->service = NULL;
    assert_error(weir_replica_install(two, 1, NULL), WEIR_ERR_PEER_LOST, "trainer rank 1");
    assert_int_equal(weir_replica_get_state(two), WEIR_REPLICA_EMPTY);
    weir_replica_close(two);
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_replica_reads_from_one_of_its_host_that_holds_the_version),
        cmocka_unit_test(a_steady_reader_allocates_plans_and_connects_nothing),
        cmocka_unit_test(a_change_between_trainers_and_peers_plans_nothing_anew),
        cmocka_unit_test(options_keep_a_replica_from_serving_or_from_reading_others),
        cmocka_unit_test(a_replica_of_other_parameters_is_no_source),
        cmocka_unit_test(bytes_that_changed_behind_our_back_are_not_taken),
        cmocka_unit_test(a_peer_that_installs_while_it_is_read_is_left_for_the_trainers),
        cmocka_unit_test(a_peer_that_says_no_longer_is_left_for_another_or_the_trainers),
        cmocka_unit_test(a_peer_that_leaves_while_it_is_read_costs_no_version),
        cmocka_unit_test(trainers_that_are_gone_are_left_for_a_peer),
        cmocka_unit_test(without_another_source_the_first_failure_is_the_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
