/* SPDX-License-Identifier: Apache-2.0 */
/* test_keeper.c - the heartbeat against a real directory: what it repeats, what it tells of a refit
 * that takes long, and when it is silent.
 */
#include "refit_rig.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "refit/keeper.h"

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

/* ---- a directory that is silent, or has forgotten --------------------------------------------*/

/* Takes connections and never says a word, as a process that was halted. */
static int open_silent(char address[64])
{
    struct sockaddr_in any = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n_any = sizeof(any);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&any, sizeof(any)), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&any, &n_any), 0);
    snprintf(address, 64, "127.0.0.1:%u", ntohs(any.sin_port));
    return fd;
}

/* With a renewal under way that nobody answers. */
static weir_keeper *open_unanswered(int *out_listening, int *out_fd)
{
    char address[64];
    weir_keeper *keeper;
    *out_listening = open_silent(address);
    const weir_keeper_options options = { address, "worker", "model", WEIR_ROLE_TRAINER,
                                          1,       20000,    NULL };
    assert_ok(weir_keeper_open(&options, &keeper));
    *out_fd = accept(*out_listening, NULL, NULL);
    assert_true(*out_fd >= 0);
    return keeper;
}

static void closing_does_not_wait_for_a_silent_directory(void **state)
{
    int listening, fd;
    weir_keeper *keeper = open_unanswered(&listening, &fd);
    double begun_s = weir_now_s();
    (void)state;
    weir_keeper_close(keeper);
    assert_true(weir_now_s() - begun_s < 1.5);
    close(fd);
    close(listening);
}

static void who_leaves_does_not_wait_for_a_silent_directory(void **state)
{
    int listening, fd;
    weir_keeper *keeper = open_unanswered(&listening, &fd);
    double begun_s = weir_now_s();
    (void)state;
    weir_keeper_hurry(keeper);
    weir_keeper_pause(keeper);
    assert_true(weir_now_s() - begun_s < 1.5);
    weir_keeper_resume(keeper);
    weir_keeper_close(keeper);
    assert_true(weir_now_s() - begun_s < 3.0);
    close(fd);
    close(listening);
}

static void publish(const fixture *f, weir_publish_answer *answer)
{
    static const char *const slots[] = { "rank-0" };
    const weir_source_record source = make_record(7);
    weir_shard_record shard = { .slot = "rank-0",
                                .worker_id = "worker",
                                .n_tensors = 1,
                                .n_bytes = 10,
                                .manifest_endpoint = "127.0.0.1:1",
                                .transport = "ucx" };
    const weir_publish_request request = { .shard = &shard,
                                           .source = &source,
                                           .slots = slots,
                                           .n_slots = 1,
                                           .trace_id = "",
                                           .content = "c" };
    weir_keeper_pause(f->keeper);
    assert_ok(weir_directory_register_worker(f->client, "worker", WEIR_ROLE_TRAINER, "model", 1));
    assert_ok(weir_directory_publish_version_shard(f->client, &request, answer));
    weir_keeper_published(f->keeper, &request, answer);
    weir_keeper_announce(f->keeper, &source, false);
    weir_keeper_resume(f->keeper);
}

static bool is_ready(const fixture *f, const char *uid)
{
    weir_version_record version;
    return weir_directory_get_version(f->client, uid, &version) == WEIR_OK &&
           version.state == WEIR_VERSION_READY && version.number == 7;
}

/* Under the uid that it had: who reads it still means the same. */
static void a_directory_that_lost_its_records_is_told_of_a_version_again(void **state)
{
    fixture f = fixture_open();
    weir_publish_answer answer;
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    char address[64];
    (void)state;
    publish(&f, &answer);
    assert_true(is_ready(&f, answer.version.uid));
    snprintf(address, sizeof(address), "%s", weir_directory_address(f.directory));
    weir_directory_close(f.directory);
    options.listen = address;
    assert_ok(weir_directory_open(&options, &f.directory));
    for (int i = 0; i < 250 && !is_ready(&f, answer.version.uid); i++)
        weir_sleep_ms(20);
    assert_true(is_ready(&f, answer.version.uid));
    wait_for_version(&f, 7);
    fixture_close(&f);
}

/* ---- a refit under way -----------------------------------------------------------------------*/

/* The client's, until its next call. */
static void ask_fleet(weir_directory_client *client, const char **out_json)
{
    const weir_fleet_request all = { .model = "" };
    assert_int_equal(weir_directory_get_fleet(client, &all, out_json), WEIR_OK);
}

static bool is_in_flight(weir_directory_client *client)
{
    const char *json;
    ask_fleet(client, &json);
    return strstr(json, "\"slowest_from\"") != NULL;
}

/* A number of the only refit in flight; 0: there is none. */
static uint64_t number_in_flight(weir_directory_client *client, const char *name)
{
    const char *json;
    char key[64];
    ask_fleet(client, &json);
    const char *at = strstr(json, "\"in_flight\"");
    snprintf(key, sizeof(key), "\"%s\":", name);
    at = at != NULL && strstr(at, "\"slowest_from\"") != NULL ? strstr(at, key) : NULL;
    return at != NULL ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static void wait_in_flight(weir_directory_client *client, bool wanted)
{
    for (int i = 0; i < 150 && is_in_flight(client) != wanted; i++)
        weir_sleep_ms(20);
    assert_int_equal(is_in_flight(client), wanted);
}

static void note(const fixture *f, uint64_t done_bytes)
{
    const weir_keeper_step step = { "transfer", 7, done_bytes, 1000 };
    weir_keeper_note(f->keeper, &step);
}

static void a_slow_refit_is_told_and_then_is_over(void **state)
{
    fixture f = fixture_open();
    (void)state;
    weir_keeper_begin(f.keeper);
    note(&f, 100);
    weir_keeper_waits_for(f.keeper, "trainer-3");
    wait_in_flight(f.client, true);
    const char *json;
    ask_fleet(f.client, &json);
    assert_non_null(strstr(json, "trainer-3"));
    assert_non_null(strstr(json, "\"stop\":\"transfer\""));
    assert_int_equal(number_in_flight(f.client, "version"), 7);
    assert_int_equal(number_in_flight(f.client, "done_bytes"), 100);
    assert_int_equal(number_in_flight(f.client, "total_bytes"), 1000);
    note(&f, 600);
    for (int i = 0; i < 150 && number_in_flight(f.client, "done_bytes") != 600; i++)
        weir_sleep_ms(20);
    assert_int_equal(number_in_flight(f.client, "done_bytes"), 600);
    weir_keeper_end(f.keeper);
    wait_in_flight(f.client, false);
    fixture_close(&f);
}

/* Neither the refit nor what is noted after it, however long one looks. */
static void a_quick_refit_is_not_told(void **state)
{
    fixture f = fixture_open();
    (void)state;
    for (int i = 0; i < 4; i++) {
        weir_keeper_begin(f.keeper);
        note(&f, 100);
        weir_sleep_ms(200);
        assert_false(is_in_flight(f.client));
        weir_keeper_end(f.keeper);
        note(&f, 200);
    }
    weir_sleep_ms(600);
    assert_false(is_in_flight(f.client));
    fixture_close(&f);
}

static void what_is_announced_ends_the_refit(void **state)
{
    fixture f = fixture_open();
    const weir_source_record record = make_record(7);
    (void)state;
    weir_keeper_begin(f.keeper);
    note(&f, 100);
    wait_in_flight(f.client, true);
    weir_keeper_announce(f.keeper, &record, false);
    note(&f, 200);
    wait_in_flight(f.client, false);
    weir_sleep_ms(600);
    assert_false(is_in_flight(f.client));
    fixture_close(&f);
}

/* An engine that takes its time with the transfer, until the fleet says how far it has come. */
typedef struct slow_engine {
    weir_directory_client *client;
    unsigned looks; /* at most, in each step */
    uint64_t seen_bytes;
} slow_engine;

static void take_time(void *context, weir_stop stop, uint64_t version, uint64_t done_bytes,
                      uint64_t total_bytes)
{
    slow_engine *engine = context;
    (void)version, (void)total_bytes;
    if (stop != WEIR_STOP_TRANSFER)
        return;
    for (unsigned i = 0; i < engine->looks; i++) {
        engine->seen_bytes = number_in_flight(engine->client, "done_bytes");
        if (is_in_flight(engine->client) && engine->seen_bytes == done_bytes)
            return;
        weir_sleep_ms(20);
    }
}

static void a_replica_is_in_flight_until_it_holds_the_version(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    slow_engine engine = { .looks = 150 };
    weir_replica *replica = NULL;
    (void)state;
    assert_ok(
        weir_directory_client_open(weir_directory_address(r->directory), 2000, &engine.client));
    weir_replica_options options = rig_replica_options(r, "replica", WEIR_INSTALL_STAGED);
    options.progress = take_time;
    options.progress_context = &engine;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    assert_true(engine.seen_bytes > 0);
    assert_false(is_in_flight(engine.client)); /* its acknowledgement has ended it */
    weir_replica_close(replica);
    weir_directory_client_close(engine.client);
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_announced_is_repeated),
        cmocka_unit_test(a_paused_keeper_says_nothing),
        cmocka_unit_test(closing_does_not_wait_for_the_next_heartbeat),
        cmocka_unit_test(closing_does_not_wait_for_a_silent_directory),
        cmocka_unit_test(who_leaves_does_not_wait_for_a_silent_directory),
        cmocka_unit_test(a_directory_that_lost_its_records_is_told_of_a_version_again),
        cmocka_unit_test(a_slow_refit_is_told_and_then_is_over),
        cmocka_unit_test(a_quick_refit_is_not_told),
        cmocka_unit_test(what_is_announced_ends_the_refit),
        cmocka_unit_test(a_replica_is_in_flight_until_it_holds_the_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
