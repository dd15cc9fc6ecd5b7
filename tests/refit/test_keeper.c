/* SPDX-License-Identifier: Apache-2.0 */
/* test_keeper.c - the heartbeat against a real directory: what it repeats, and when it is silent.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "refit/keeper.h"
#include "weir/weir.h"

typedef struct fixture {
    weir_directory *directory;
    weir_directory_client *client;
    weir_keeper *keeper;
} fixture;

static fixture fixture_open(void)
{
    fixture f = { 0 };
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    assert_int_equal(weir_directory_open(&options, &f.directory), WEIR_OK);
    const char *address = weir_directory_address(f.directory);
    assert_int_equal(weir_directory_client_open(address, 2000, &f.client), WEIR_OK);
    weir_keeper_options keeper = { address, "worker", "model", WEIR_ROLE_TRAINER, 1, 2000, NULL };
    assert_int_equal(weir_keeper_open(&keeper, &f.keeper), WEIR_OK);
    return f;
}

static void fixture_close(fixture *f)
{
    weir_keeper_close(f->keeper);
    weir_directory_client_close(f->client);
    weir_directory_close(f->directory);
}

static weir_source_record make_record(uint64_t version)
{
    weir_source_record record = { .n_ranks = 1, .status = WEIR_SOURCE_READY, .version = version };
    snprintf(record.worker_id, sizeof(record.worker_id), "worker");
    snprintf(record.model, sizeof(record.model), "model");
    snprintf(record.run, sizeof(record.run), "default");
    snprintf(record.role, sizeof(record.role), "trainer");
    return record;
}

/* The version that the directory has of the worker, 0 when it has no entry. */
static uint64_t told_version(const fixture *f)
{
    weir_source_ref ref;
    size_t n = 0;
    assert_int_equal(
        weir_directory_list_sources(f->client, "model", WEIR_SOURCE_READY, 0, &ref, 1, &n),
        WEIR_OK);
    return n == 0 ? 0 : ref.version;
}

static void wait_for_version(const fixture *f, uint64_t version)
{
    for (int i = 0; i < 150 && told_version(f) != version; i++)
        weir_sleep_ms(20);
    assert_int_equal(told_version(f), version);
}

static void what_was_announced_is_repeated(void **state)
{
    fixture f = fixture_open();
    weir_source_record record = make_record(7);
    (void)state;
    weir_keeper_announce(f.keeper, &record, true);
    wait_for_version(&f, 7);
    record.version = 8; /* told by nobody but the next heartbeat */
    weir_keeper_announce(f.keeper, &record, false);
    wait_for_version(&f, 8);
    fixture_close(&f);
}

/* A renewal that was under way must not bring an old entry back over a new one. */
static void a_paused_keeper_says_nothing(void **state)
{
    fixture f = fixture_open();
    weir_source_record old = make_record(1), fresh = make_record(2);
    char source_id[WEIR_ID_BYTES];
    (void)state;
    weir_keeper_announce(f.keeper, &old, true);
    wait_for_version(&f, 1);
    weir_keeper_pause(f.keeper);
    assert_int_equal(weir_directory_publish_source(f.client, &fresh, source_id), WEIR_OK);
    weir_sleep_ms(1000); /* three periods */
    assert_int_equal(told_version(&f), 2);
    weir_keeper_announce(f.keeper, &fresh, false);
    weir_keeper_resume(f.keeper);
    weir_sleep_ms(500);
    assert_int_equal(told_version(&f), 2);
    fixture_close(&f);
}

static void closing_does_not_wait_for_the_next_heartbeat(void **state)
{
    fixture f = fixture_open();
    double begun_s = weir_now_s();
    (void)state;
    weir_keeper_close(f.keeper);
    f.keeper = NULL;
    assert_true(weir_now_s() - begun_s < 0.25);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_announced_is_repeated),
        cmocka_unit_test(a_paused_keeper_says_nothing),
        cmocka_unit_test(closing_does_not_wait_for_the_next_heartbeat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
