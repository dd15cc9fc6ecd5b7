/* SPDX-License-Identifier: Apache-2.0 */
/* test_client.c - the client against Weir's own directory, as a refit uses them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "directory/client.h"
#include "weir/weir.h"

#define TIMEOUT_MS 10000

typedef struct fixture {
    weir_directory *directory;
    weir_directory_client *client;
} fixture;

static int set_up_with(void **state, const weir_directory_options *options)
{
    fixture *f = calloc(1, sizeof(*f));
    assert_int_equal(weir_directory_open(options, &f->directory), WEIR_OK);
    assert_int_equal(
        weir_directory_client_open(weir_directory_address(f->directory), TIMEOUT_MS, &f->client),
        WEIR_OK);
    *state = f;
    return 0;
}

static int set_up(void **state)
{
    return set_up_with(state, NULL);
}

static int set_up_hasty(void **state)
{
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    options.stale_after_s = options.delete_after_s = options.sweep_every_s = 1;
    return set_up_with(state, &options);
}

static int tear_down(void **state)
{
    fixture *f = *state;
    weir_directory_client_close(f->client);
    weir_directory_close(f->directory);
    free(f);
    return 0;
}

static void expect_refusal(const fixture *f, weir_status got, weir_status status, const char *text)
{
    char line[512];
    snprintf(line, sizeof(line), "directory %s: %s", weir_directory_address(f->directory), text);
    assert_int_equal(got, status);
    assert_string_equal(weir_last_error(), line);
}

static weir_shard_record shard_of(const weir_version_record *version, unsigned rank)
{
    weir_shard_record shard = { .n_tensors = 3,
                                .n_bytes = 1000,
                                .manifest_digest = "sha256:0",
                                .manifest_endpoint = "127.0.0.1:9",
                                .transport = "ucx" };
    snprintf(shard.version_uid, sizeof(shard.version_uid), "%s", version->uid);
    snprintf(shard.slot, sizeof(shard.slot), "rank-%u", rank);
    snprintf(shard.worker_id, sizeof(shard.worker_id), "trainer-%u", rank);
    return shard;
}

static weir_source_record source_of(unsigned rank, uint64_t version, const char *uid)
{
    weir_source_record source = { .model = "model \xc3\xa9",
                                  .run = "default",
                                  .role = "inference_replica",
                                  .rank = rank,
                                  .n_ranks = 4,
                                  .status = WEIR_SOURCE_READY,
                                  .version = version,
                                  .endpoint = "10.0.0.1:1",
                                  .layout_signature = "abc",
                                  .note = "{\"total\": 0.25}" };
    snprintf(source.worker_id, sizeof(source.worker_id), "replica-%u", rank);
    snprintf(source.version_uid, sizeof(source.version_uid), "%s", uid);
    return source;
}

/* Everything that two trainer ranks and a replica say for one version. */
static void run_version(fixture *f, uint64_t number)
{
    static const char *const slots[] = { "rank-0", "rank-1" };
    weir_directory_client *client = f->client;
    weir_version_record version;
    weir_shard_record shards[4];
    char key[32], lease[WEIR_ID_BYTES], source_id[WEIR_ID_BYTES];
    size_t n_shards;
    snprintf(key, sizeof(key), "model/run/%llu", (unsigned long long)number);
    assert_int_equal(weir_directory_create_version(client, "m", number, key, slots, 2, &version),
                     WEIR_OK);
    for (unsigned rank = 0; rank < 2; rank++) {
        weir_shard_record shard = shard_of(&version, rank);
        assert_int_equal(
            weir_directory_register_worker(client, shard.worker_id, WEIR_ROLE_TRAINER, "m", 90),
            WEIR_OK);
        assert_int_equal(version.state, WEIR_VERSION_STAGING);
        assert_int_equal(weir_directory_create_shard(client, &shard, &version), WEIR_OK);
    }
    assert_int_equal(version.state, WEIR_VERSION_READY);
    assert_int_equal(weir_directory_get_version(client, version.uid, &version), WEIR_OK);
    assert_int_equal(version.number, number);
    assert_int_equal(
        weir_directory_register_worker(client, "replica", WEIR_ROLE_GENERATOR, "m", 90), WEIR_OK);
    assert_int_equal(weir_directory_register_lease(client, version.uid, "replica", 30, lease),
                     WEIR_OK);
    assert_int_equal(weir_directory_list_shards(client, version.uid, shards, 4, &n_shards),
                     WEIR_OK);
    assert_int_equal(n_shards, 2);
    weir_source_record source = source_of(0, number, version.uid);
    assert_int_equal(weir_directory_publish_source(client, &source, source_id), WEIR_OK);
    assert_int_equal(weir_directory_delete_lease(client, version.uid, lease, "replica"), WEIR_OK);
    assert_int_equal(weir_directory_delete_version(client, version.uid), WEIR_OK);
    for (unsigned rank = 0; rank < 2; rank++)
        assert_int_equal(weir_directory_delete_shard(client, version.uid, shards[rank].slot,
                                                     shards[rank].worker_id),
                         WEIR_OK);
}

static void test_a_version_goes_its_way(void **state)
{
    run_version(*state, 41);
}

static void test_steady_versions_take_nothing_from_the_heap(void **state)
{
    uint64_t before = 0;
    for (uint64_t number = 1; number <= 30; number++) {
        if (number == 3)
            before = weir_alloc_count();
        run_version(*state, number);
    }
    assert_int_equal(weir_alloc_count(), before); /* client and directory together */
}

static void test_slots_are_given_out_until_the_next_call(void **state)
{
    fixture *f = *state;
    static const char *const slots[] = { "rank-0", "rank-1" };
    weir_version_record version;
    assert_null(weir_directory_version_slot(f->client, 0));
    assert_int_equal(weir_directory_create_version(f->client, "m", 1, "k", slots, 2, &version),
                     WEIR_OK);
    assert_int_equal(version.n_slots, 2);
    assert_true(version.has_number);
    assert_string_equal(version.model, "m");
    assert_string_equal(weir_directory_version_slot(f->client, 1), "rank-1");
    assert_null(weir_directory_version_slot(f->client, 2));
}

static void test_refusals_say_who_and_why(void **state)
{
    fixture *f = *state;
    weir_version_record version;
    weir_shard_record shards[1];
    size_t n;
    expect_refusal(f, weir_directory_get_version(f->client, "nope", &version), WEIR_ERR_NOT_FOUND,
                   "RefitService.GetWeightVersion: NOT_FOUND: no weight version 'nope'");
    expect_refusal(f, weir_directory_list_shards(f->client, "nope", shards, 1, &n),
                   WEIR_ERR_NOT_FOUND,
                   "RefitService.ListWeightVersionShards: NOT_FOUND: no weight version 'nope'");
    expect_refusal(f, weir_directory_create_version(f->client, "m", 1, "k", NULL, 0, &version),
                   WEIR_ERR_REFUSED,
                   "RefitService.CreateWeightVersion: INVALID_ARGUMENT: expected_source_slots "
                   "must not be empty");
    expect_refusal(f, weir_directory_update_status(f->client, "x", "", 0, WEIR_SOURCE_READY),
                   WEIR_ERR_REFUSED, "P2pService.UpdateStatus: worker_id is required");
    weir_source_record source = source_of(0, 1, "");
    source.model[0] = '\0';
    char source_id[WEIR_ID_BYTES];
    expect_refusal(f, weir_directory_publish_source(f->client, &source, source_id),
                   WEIR_ERR_REFUSED, "P2pService.PublishMetadata: identity.model_name is required");
    assert_int_equal(weir_directory_get_source(f->client, "x", "y", &source), WEIR_ERR_NOT_FOUND);
}

static void test_a_source_comes_back_whole(void **state)
{
    fixture *f = *state;
    weir_source_record in = source_of(2, 41, "5f3a9c01"), out;
    char source_id[WEIR_ID_BYTES], again[WEIR_ID_BYTES];
    assert_int_equal(weir_directory_publish_source(f->client, &in, source_id), WEIR_OK);
    assert_int_equal(strlen(source_id), 16);
    assert_int_equal(weir_directory_get_source(f->client, source_id, "replica-2", &out), WEIR_OK);
    int64_t age_ms = (int64_t)weir_unix_ms() - out.updated_at_ms;
    assert_true(age_ms > -5000 && age_ms < 60000);
    memcpy(in.source_id, source_id, sizeof(in.source_id));
    assert_string_equal(out.source_id, source_id);
    assert_string_equal(out.worker_id, in.worker_id);
    assert_string_equal(out.model, in.model);
    assert_string_equal(out.run, in.run);
    assert_string_equal(out.role, in.role);
    assert_string_equal(out.endpoint, in.endpoint);
    assert_string_equal(out.note, in.note);
    assert_string_equal(out.version_uid, in.version_uid);
    assert_string_equal(out.layout_signature, in.layout_signature);
    assert_int_equal(out.version, 41);
    assert_int_equal(out.rank, 2);
    assert_int_equal(out.n_ranks, 4);
    assert_int_equal(out.status, WEIR_SOURCE_READY);
    in.version = 42, in.rank = 3;
    assert_int_equal(weir_directory_publish_source(f->client, &in, again), WEIR_OK);
    assert_string_equal(again, source_id); /* neither version nor rank is part of what it is */
    strcpy(in.run, "other");
    assert_int_equal(weir_directory_publish_source(f->client, &in, again), WEIR_OK);
    assert_string_not_equal(again, source_id);
}

static void test_sources_are_listed_by_model_status_and_version(void **state)
{
    fixture *f = *state;
    weir_source_ref refs[8];
    char source_id[WEIR_ID_BYTES];
    size_t n;
    for (unsigned rank = 0; rank < 4; rank++) {
        weir_source_record source = source_of(rank, 10 + rank, "");
        assert_int_equal(weir_directory_publish_source(f->client, &source, source_id), WEIR_OK);
        weir_sleep_ms(2);
    }
    weir_source_record other = source_of(9, 99, "");
    strcpy(other.model, "other");
    assert_int_equal(weir_directory_publish_source(f->client, &other, source_id), WEIR_OK);
    const char *model = source_of(0, 0, "").model;
    assert_int_equal(weir_directory_list_sources(f->client, model, 0, 0, refs, 8, &n), WEIR_OK);
    assert_int_equal(n, 4);
    assert_int_equal(refs[0].version, 13); /* newest first */
    assert_int_equal(refs[3].rank, 0);
    assert_int_equal(
        weir_directory_list_sources(f->client, model, WEIR_SOURCE_READY, 12, refs, 8, &n), WEIR_OK);
    assert_int_equal(n, 2);
    assert_int_equal(weir_directory_update_status(f->client, refs[0].source_id, "replica-3", 3,
                                                  WEIR_SOURCE_STALE),
                     WEIR_OK);
    assert_int_equal(
        weir_directory_list_sources(f->client, model, WEIR_SOURCE_READY, 12, refs, 8, &n), WEIR_OK);
    assert_int_equal(n, 1);
    assert_int_equal(weir_directory_list_sources(f->client, model, 0, 0, refs, 2, &n), WEIR_OK);
    assert_int_equal(n, 2);
}

static void test_silent_sources_go(void **state)
{
    fixture *f = *state;
    weir_source_record source = source_of(0, 1, "");
    char source_id[WEIR_ID_BYTES];
    assert_int_equal(weir_directory_publish_source(f->client, &source, source_id), WEIR_OK);
    bool was_stale = false;
    weir_status status = WEIR_OK;
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (status == WEIR_OK && !weir_deadline_passed(deadline)) {
        weir_sleep_ms(50);
        status = weir_directory_get_source(f->client, source_id, "replica-0", &source);
        was_stale |= status == WEIR_OK && source.status == WEIR_SOURCE_STALE;
    }
    assert_int_equal(status, WEIR_ERR_NOT_FOUND);
    assert_true(was_stale);
}

static void *register_often(void *context)
{
    weir_directory_client *client;
    intptr_t n_failed = weir_directory_client_open(context, TIMEOUT_MS, &client) != WEIR_OK;
    for (int i = 0; i < 100 && n_failed == 0; i++)
        n_failed +=
            weir_directory_register_worker(client, "w", WEIR_ROLE_TRAINER, "m", 90) != WEIR_OK;
    weir_directory_client_close(client);
    return (void *)n_failed;
}

static void test_many_workers_at_once(void **state)
{
    fixture *f = *state;
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, register_often,
                       (void *)weir_directory_address(f->directory));
    for (int i = 0; i < 8; i++) {
        void *n_failed;
        pthread_join(threads[i], &n_failed);
        assert_null(n_failed);
    }
}

static void test_a_cancelled_client_makes_no_call(void **state)
{
    fixture *f = *state;
    weir_version_record version;
    weir_directory_client_cancel(f->client);
    assert_int_equal(weir_directory_get_version(f->client, "x", &version), WEIR_ERR_CANCELLED);
    assert_int_equal(weir_directory_get_version(f->client, "x", &version), WEIR_ERR_NOT_FOUND);
}

static void test_every_failed_allocation_is_survived(void **state)
{
    fixture *f = *state;
    for (uint64_t n = 1; n < 60; n++) {
        weir_directory_client *client = NULL;
        weir_source_record source = source_of(0, n, "uid");
        char source_id[WEIR_ID_BYTES];
        weir_alloc_fail_at(n);
        weir_status status =
            weir_directory_client_open(weir_directory_address(f->directory), TIMEOUT_MS, &client);
        if (status == WEIR_OK)
            status = weir_directory_publish_source(client, &source, source_id);
        if (status == WEIR_OK)
            status = weir_directory_get_source(client, source_id, "replica-0", &source);
        weir_alloc_fail_at(0);
        if (client != NULL)
            assert_int_equal(weir_directory_publish_source(client, &source, source_id), WEIR_OK);
        weir_directory_client_close(client);
    }
}

static void test_bad_addresses_are_named(void **state)
{
    (void)state;
    weir_directory_client *client;
    assert_int_equal(weir_directory_client_open("nowhere", 1, &client), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "address 'nowhere' is not HOST:PORT");
    assert_int_equal(weir_directory_client_open(NULL, 1, &client), WEIR_ERR_INVALID);
    weir_directory_client_close(NULL);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_a_version_goes_its_way),
        CASE(test_steady_versions_take_nothing_from_the_heap),
        CASE(test_slots_are_given_out_until_the_next_call),
        CASE(test_refusals_say_who_and_why),
        CASE(test_a_source_comes_back_whole),
        CASE(test_sources_are_listed_by_model_status_and_version),
        CASE(test_many_workers_at_once),
        CASE(test_a_cancelled_client_makes_no_call),
        CASE(test_every_failed_allocation_is_survived),
        cmocka_unit_test_setup_teardown(test_silent_sources_go, set_up_hasty, tear_down),
        cmocka_unit_test(test_bad_addresses_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
