/* SPDX-License-Identifier: Apache-2.0 */
/* test_seek.c - refits through a directory that offers what ModelExpress does, and no more. */
#include "refit/refit_rig.h"

#include <pthread.h>

#include "base/clock.h"
#include "directory/client_core.h"
#include "refit/replica.h"
#include "refit/trainer.h"

#define TIMEOUT_MS 1500

/* As if it had answered UNIMPLEMENTED. */
static void make_plain(weir_worker *worker)
{
    worker->client->is_plain = true;
}

static rig *open_plain(void)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    for (uint32_t rank = 0; rank < RIG_RANKS; rank++) {
        make_plain(&r->trainers[rank]->worker);
        r->trainers[rank]->worker.timeout_ms = TIMEOUT_MS;
    }
    return r;
}

static weir_replica *open_plain_replica(const rig *r, const char *name)
{
    weir_replica_options options = rig_replica_options(r, name, WEIR_INSTALL_STAGED);
    weir_replica *replica = NULL;
    options.timeout_ms = TIMEOUT_MS;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    make_plain(&replica->worker);
    return replica;
}

static void expect_plain(const weir_worker *worker)
{
    assert_true(weir_directory_is_plain(worker->client));
}

static void versions_are_followed_step_by_step(void **state)
{
    rig *r = open_plain();
    weir_replica *replica = open_plain_replica(r, "one");
    (void)state;
    for (unsigned version = 1; version <= 4; version++) { /* from 3 on slots are taken back */
        rig_publish(r, version);
        assert_ok(weir_replica_install(replica, version % 2 ? WEIR_LATEST : version, NULL));
        weir_verify_report report = rig_verify(r, "one");
        assert_string_equal(report.first_difference, "");
        assert_int_equal(report.version, version);
        assert_ok(weir_trainer_wait(r->trainers[0], version, 1, 0));
    }
    assert_error(weir_trainer_wait(r->trainers[1], 4, 2, 100), WEIR_ERR_TIMED_OUT,
                 "1 of 2 replica workers hold version 4");
    rig_publish(r, 5);
    assert_error(weir_trainer_wait(r->trainers[1], 5, 1, 100), WEIR_ERR_TIMED_OUT,
                 "0 of 1 replica workers hold version 5 of model; one");
    assert_non_null(strstr(weir_last_error(), ": holds 4"));
    expect_plain(&replica->worker);
    expect_plain(&r->trainers[0]->worker);
    weir_replica_close(replica);
    assert_ok(weir_trainer_wait(r->trainers[0], 4, 1, 0)); /* it has left, having held it */
    rig_close(r);
}

static void what_is_missing_is_named(void **state)
{
    rig *r = open_plain();
    weir_replica *replica = open_plain_replica(r, "one");
    (void)state;
    assert_error(weir_replica_install(replica, WEIR_LATEST, NULL), WEIR_ERR_TIMED_OUT,
                 "knows no trainer of it");
    rig_fill(&r->model, 3);
    assert_ok(weir_trainer_register(r->trainers[0], r->model.tensors, r->model.n));
    assert_ok(weir_trainer_publish(r->trainers[0], 3, NULL));
    assert_error(weir_replica_install(replica, 3, NULL), WEIR_ERR_TIMED_OUT,
                 "of 2 trainer ranks these have not published it: rank-1");
    assert_error(weir_replica_install(replica, 2, NULL), WEIR_ERR_NOT_FOUND,
                 "its trainer has moved on to 3");
    assert_error(weir_replica_install(replica, 9, NULL), WEIR_ERR_TIMED_OUT,
                 "the trainer's newest is 3");
    weir_replica_close(replica);
    rig_close(r);
}

static void *close_rank_0(void *context)
{
    rig *r = context;
    weir_sleep_ms(200);
    weir_trainer_close(r->trainers[0]);
    r->trainers[0] = NULL;
    return NULL;
}

/* Such a directory has no state for it: the rank's entry says so. */
static void a_version_that_was_given_up_ends_the_wait_with_the_reason(void **state)
{
    rig *r = open_plain();
    weir_replica *replica = open_plain_replica(r, "one");
    pthread_t thread;
    (void)state;
    rig_fill(&r->model, 1);
    assert_ok(weir_trainer_register(r->trainers[0], r->model.tensors, r->model.n));
    assert_ok(weir_trainer_publish(r->trainers[0], 1, NULL));
    double begun_s = weir_now_s();
    assert_int_equal(pthread_create(&thread, NULL, close_rank_0, r), 0);
    assert_error(weir_replica_install(replica, 1, NULL), WEIR_ERR_ABORTED,
                 "version 1 of model was aborted: trainer rank 0: it was closed before all ranks "
                 "had published the version");
    assert_true(weir_now_s() - begun_s < TIMEOUT_MS / 1e3);
    pthread_join(thread, NULL);
    weir_replica_close(replica);
    rig_close(r);
}

/* As if rank 1 had been killed: nobody takes its shard back. */
static weir_trainer *start_rank_1_anew(const rig *r)
{
    weir_trainer *anew = rig_open_trainer(r, 1, 2);
    make_plain(&anew->worker);
    anew->worker.timeout_ms = TIMEOUT_MS;
    assert_ok(weir_trainer_register(anew, r->model.tensors, r->model.n));
    return anew;
}

static void a_rank_with_other_bytes_begins_the_next_attempt(void **state)
{
    char first[WEIR_ID_BYTES];
    rig *r = open_plain();
    weir_replica *replica = open_plain_replica(r, "one");
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, WEIR_LATEST, NULL));
    memcpy(first, r->trainers[1]->slots[0].uid, sizeof(first));
    rig_fill(&r->model, 2);
    weir_trainer *anew = start_rank_1_anew(r);
    assert_ok(weir_trainer_publish(anew, 1, NULL));
    assert_int_equal(anew->attempt.number, 2);
    assert_string_equal(anew->attempt.ended_uid, first);
    assert_non_null(strstr(anew->attempt.reason, "with other weights than those of trainer-1-"));
    assert_error(weir_trainer_wait(r->trainers[0], 1, 2, 0), WEIR_ERR_ABORTED,
                 "version 1 of model was aborted: rank-1 was started anew as trainer-1-");
    assert_error(weir_replica_install(replica, WEIR_LATEST, NULL), WEIR_ERR_TIMED_OUT,
                 "these have not published it: rank-0");
    assert_string_equal(replica->version_uid, first);
    weir_replica_close(replica);
    weir_trainer_close(anew);
    rig_close(r);
}

static void a_rank_with_the_same_bytes_goes_on(void **state)
{
    rig *r = open_plain();
    (void)state;
    rig_publish(r, 1);
    weir_trainer *anew = start_rank_1_anew(r);
    assert_ok(weir_trainer_publish(anew, 1, NULL));
    assert_int_equal(anew->attempt.number, 1);
    assert_string_equal(anew->slots[0].uid, r->trainers[0]->slots[0].uid);
    assert_string_equal(anew->attempt.content, r->trainers[1]->attempt.content);
    assert_string_not_equal(anew->attempt.content, r->trainers[0]->attempt.content);
    weir_trainer_close(anew);
    rig_close(r);
}

static void a_slot_that_is_read_is_kept(void **state)
{
    static const char *const slots[] = { "rank-0", "rank-1" };
    rig *r = open_plain();
    weir_directory_client *client;
    weir_version_record version;
    char lease_id[WEIR_ID_BYTES];
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_directory_client_open(weir_directory_address(r->directory), 2000, &client));
    assert_ok(weir_directory_register_worker(client, "reader", WEIR_ROLE_GENERATOR, "model", 60));
    assert_ok(weir_directory_create_version(client, "model", 1, "weir/model/default/1/1", slots,
                                            RIG_RANKS, &version));
    assert_ok(weir_directory_register_lease(client, version.uid, "reader", 60, lease_id));
    rig_publish(r, 2);
    assert_error(weir_trainer_publish(r->trainers[0], 3, NULL), WEIR_ERR_TIMED_OUT,
                 "version 1 is still being read");
    assert_ok(weir_directory_delete_lease(client, version.uid, lease_id, "reader"));
    assert_ok(weir_trainer_publish(r->trainers[0], 3, NULL));
    weir_directory_client_close(client);
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_are_followed_step_by_step),
        cmocka_unit_test(what_is_missing_is_named),
        cmocka_unit_test(a_version_that_was_given_up_ends_the_wait_with_the_reason),
        cmocka_unit_test(a_rank_with_other_bytes_begins_the_next_attempt),
        cmocka_unit_test(a_rank_with_the_same_bytes_goes_on),
        cmocka_unit_test(a_slot_that_is_read_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
