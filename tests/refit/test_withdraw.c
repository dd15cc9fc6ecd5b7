/* SPDX-License-Identifier: Apache-2.0 */
/* test_withdraw.c - versions that a trainer rank gives up after it has published them: who hears
 * of it, whose bytes stay, and what comes after. */
#include "refit/refit_rig.h"

#include <pthread.h>

#include "base/clock.h"
#include "directory/client.h"
#include "refit/trainer.h"

#define SHORT_MS 500
#define WHY "inference rank 3 has installed nothing"
#define SAID "version 1 of model was aborted: trainer rank 0 has withdrawn it: " WHY

static rig *open_fleet(void)
{
    return rig_open("qwen3", "bf16_cast", NULL);
}

static void publish_by(rig *r, int rank, unsigned version)
{
    assert_ok(weir_trainer_register(r->trainers[rank], r->model.tensors, r->model.n));
    assert_ok(weir_trainer_publish(r->trainers[rank], version, NULL));
}

static weir_version_record record_of(const rig *r, uint64_t version)
{
    weir_version_record record = { .state = 0 };
    const weir_trainer *trainer = r->trainers[1];
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        if (trainer->slots[i].version != version || trainer->slots[i].uid[0] == '\0')
            continue;
        assert_ok(
            weir_directory_get_version(trainer->worker.client, trainer->slots[i].uid, &record));
        return record;
    }
    fail_msg("rank 1 has no slot of version %u", (unsigned)version);
    return record;
}

/* ---- in another thread -----------------------------------------------------------------------*/

typedef struct call {
    weir_replica *replica; /* installs, or: */
    weir_trainer *trainer; /* waits for the replicas */
    uint64_t version;
    weir_status status;
    char line[WEIR_ERROR_TEXT];
    double ended_s;
    pthread_t thread;
} call;

static void *run_call(void *context)
{
    call *c = context;
    c->status = c->replica != NULL ? weir_replica_install(c->replica, c->version, NULL)
                                   : weir_trainer_wait(c->trainer, c->version, 1, 0);
    snprintf(c->line, sizeof(c->line), "%s", weir_last_error());
    c->ended_s = weir_now_s();
    return NULL;
}

static void begin(call *c)
{
    assert_int_equal(pthread_create(&c->thread, NULL, run_call, c), 0);
}

static void end(call *c, weir_status status, const char *line)
{
    pthread_join(c->thread, NULL);
    if (c->status != status || (status != WEIR_OK && strstr(c->line, line) == NULL))
        fail_msg("%s: '%s', wanted %s: '%s'", weir_status_name(c->status), c->line,
                 weir_status_name(status), line);
}

/* ---- who hears of it -------------------------------------------------------------------------*/

static void who_asks_for_it_hears_at_once_and_takes_the_next_one(void **state)
{
    rig *r = open_fleet();
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_trainer_withdraw(r->trainers[0], 1, WHY, 0));
    double begun_s = weir_now_s();
    assert_error(weir_replica_install(replica, 1, NULL), WEIR_ERR_ABORTED, SAID);
    assert_true(weir_now_s() - begun_s < 1);
    assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_EMPTY);
    rig_publish(r, 2);
    assert_ok(weir_replica_install(replica, WEIR_LATEST, NULL));
    assert_int_equal(weir_replica_version(replica), 2);
    assert_string_equal(rig_verify(r, "one").first_difference, "");
    weir_replica_close(replica);
    rig_close(r);
}

/* It is STAGING: the second rank has not come. */
static void who_waits_for_it_hears_at_once(void **state)
{
    rig *r = open_fleet();
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    (void)state;
    rig_fill(&r->model, 1);
    publish_by(r, 0, 1);
    call install = { .replica = replica, .version = 1 };
    call wait = { .trainer = r->trainers[0], .version = 1 };
    begin(&install);
    weir_sleep_ms(200);
    double withdrawn_s = weir_now_s();
    assert_ok(weir_trainer_withdraw(r->trainers[0], 1, WHY, 0));
    end(&install, WEIR_ERR_ABORTED, SAID);
    assert_true(install.ended_s - withdrawn_s < 1);
    rig_publish(r, 2);
    wait.trainer = r->trainers[1];
    wait.version = 2;
    begin(&wait); /* of another rank */
    weir_sleep_ms(200);
    withdrawn_s = weir_now_s();
    assert_ok(weir_trainer_withdraw(r->trainers[0], 2, NULL, 0));
    end(&wait, WEIR_ERR_ABORTED, "version 2 of model was aborted: trainer rank 0 has withdrawn it");
    assert_true(wait.ended_s - withdrawn_s < 1);
    weir_replica_close(replica);
    rig_close(r);
}

/* ---- of several ranks, and again -------------------------------------------------------------*/

static void the_first_rank_ends_it_for_all_and_each_says_so_of_its_own(void **state)
{
    rig *r = open_fleet();
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_trainer_withdraw(r->trainers[0], 1, WHY, 0));
    assert_int_equal(record_of(r, 1).state, WEIR_VERSION_RELEASING); /* ABORTED is told so */
    assert_int_equal(r->trainers[0]->slots[0].state, WEIR_SLOT_FREE);
    assert_int_equal(r->trainers[1]->slots[0].state, WEIR_SLOT_PUBLISHED);
    assert_ok(weir_trainer_withdraw(r->trainers[1], 1, "another reason", 0));
    assert_int_equal(r->trainers[1]->slots[0].state, WEIR_SLOT_FREE);
    for (int rank = 0; rank < RIG_RANKS; rank++)
        assert_ok(weir_trainer_withdraw(r->trainers[rank], 1, WHY, 0));
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    assert_error(weir_replica_install(replica, 1, NULL), WEIR_ERR_ABORTED, SAID);
    weir_replica_close(replica);
    rig_close(r);
}

static void the_version_before_it_can_be_had_still(void **state)
{
    rig *r = open_fleet();
    (void)state;
    rig_publish(r, 1);
    rig_publish(r, 2);
    for (int rank = 0; rank < RIG_RANKS; rank++)
        assert_ok(weir_trainer_withdraw(r->trainers[rank], 2, WHY, 0));
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    assert_ok(weir_replica_install(replica, 1, NULL));
    rig_fill(&r->model, 1);
    assert_string_equal(rig_verify(r, "one").first_difference, "");
    weir_replica_close(replica);
    rig_close(r);
}

static void what_was_never_published_is_refused_and_what_is_gone_is_not(void **state)
{
    rig *r = open_fleet();
    (void)state;
    assert_error(weir_trainer_withdraw(r->trainers[0], 1, WHY, 0), WEIR_ERR_NOT_FOUND,
                 "version 1 cannot be withdrawn: trainer rank 0 has published nothing");
    for (unsigned version = 1; version <= 3; version++)
        rig_publish(r, version);
    assert_error(weir_trainer_withdraw(r->trainers[0], 4, WHY, 0), WEIR_ERR_NOT_FOUND,
                 "version 4 cannot be withdrawn: trainer rank 0 has published 3 last");
    assert_ok(weir_trainer_withdraw(r->trainers[0], 1, WHY, 0)); /* 3 has its slot */
    rig_close(r);
}

/* ---- bytes that are read ---------------------------------------------------------------------*/

static void a_slot_is_not_free_before_its_last_reader_has_ended(void **state)
{
    rig *r = open_fleet();
    weir_directory_client *client;
    weir_version_record record;
    char lease[WEIR_ID_BYTES];
    weir_trainer *trainer = r->trainers[0];
    (void)state;
    rig_publish(r, 1);
    assert_ok(
        weir_directory_client_open(weir_directory_address(r->directory), RIG_TIMEOUT_MS, &client));
    assert_ok(weir_directory_register_worker(client, "reader", WEIR_ROLE_GENERATOR, "model", 60));
    record = record_of(r, 1);
    assert_ok(weir_directory_register_lease(client, record.uid, "reader", 60, lease));
    double begun_s = weir_now_s();
    assert_error(weir_trainer_withdraw(trainer, 1, WHY, SHORT_MS), WEIR_ERR_TIMED_OUT,
                 "version 1 is still being read by reader");
    double took_s = weir_now_s() - begun_s;
    assert_true(took_s > SHORT_MS / 1e3 - 0.1 && took_s < SHORT_MS / 1e3 + 1);
    assert_int_equal(trainer->slots[0].state, WEIR_SLOT_RETIRED);
    assert_ok(weir_directory_delete_lease(client, record.uid, lease, "reader"));
    assert_ok(weir_trainer_withdraw(trainer, 1, WHY, 0));
    assert_int_equal(trainer->slots[0].state, WEIR_SLOT_FREE);
    weir_directory_client_close(client);
    rig_close(r);
}

/* ---- a directory that is away ----------------------------------------------------------------*/

static void
where_no_directory_answers_it_is_offered_no_more_and_the_call_goes_on_later(void **state)
{
    rig *r = open_fleet();
    char address[64];
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    (void)state;
    rig_publish(r, 1);
    snprintf(address, sizeof(address), "%s", weir_directory_address(r->directory));
    weir_directory_close(r->directory);
    double begun_s = weir_now_s();
    assert_error(weir_trainer_withdraw(r->trainers[0], 1, WHY, SHORT_MS), WEIR_ERR_PEER_LOST,
                 address);
    assert_true(weir_now_s() - begun_s < SHORT_MS / 1e3 + 1);
    assert_int_equal(r->trainers[0]->slots[0].state, WEIR_SLOT_RETIRED);
    options.listen = address;
    assert_ok(weir_directory_open(&options, &r->directory));
    assert_ok(weir_trainer_withdraw(r->trainers[0], 1, WHY, 0));
    assert_int_equal(r->trainers[0]->slots[0].state, WEIR_SLOT_FREE);
    rig_publish(r, 2);
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_asks_for_it_hears_at_once_and_takes_the_next_one),
        cmocka_unit_test(who_waits_for_it_hears_at_once),
        cmocka_unit_test(the_first_rank_ends_it_for_all_and_each_says_so_of_its_own),
        cmocka_unit_test(the_version_before_it_can_be_had_still),
        cmocka_unit_test(what_was_never_published_is_refused_and_what_is_gone_is_not),
        cmocka_unit_test(a_slot_is_not_free_before_its_last_reader_has_ended),
        cmocka_unit_test(
            where_no_directory_answers_it_is_offered_no_more_and_the_call_goes_on_later),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
