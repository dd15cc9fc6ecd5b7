/* SPDX-License-Identifier: Apache-2.0 */
/* test_directory_news.c - what a directory's log says of its own work, and when it is silent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "directory/client.h"
#include "directory/store.h"
#include "weir/weir.h"

#define MOST_LINES 64
#define assert_ok(call) assert_int_equal(call, WEIR_OK)

typedef struct heard_line {
    weir_log_level level;
    char text[1024], fields[512]; /* "model=m uid=…" */
} heard_line;

typedef struct fixture {
    pthread_mutex_t lock;
    heard_line lines[MOST_LINES];
    size_t n_lines;
    weir_directory *directory;
    weir_directory_client *client;
    weir_publish_answer answer;
} fixture;

static void hear(void *context, weir_log_level level, const char *line,
                 const weir_log_field *fields, size_t n_fields)
{
    fixture *f = context;
    pthread_mutex_lock(&f->lock);
    if (f->n_lines < MOST_LINES) {
        heard_line *heard = &f->lines[f->n_lines++];
        size_t n = 0;
        heard->level = level;
        snprintf(heard->text, sizeof(heard->text), "%s", line);
        for (size_t i = 0; i < n_fields && n < sizeof(heard->fields); i++)
            n += (size_t)snprintf(heard->fields + n, sizeof(heard->fields) - n, "%s=%s ",
                                  fields[i].name, fields[i].text);
    }
    pthread_mutex_unlock(&f->lock);
}

static const heard_line *find_line(fixture *f, const char *text)
{
    const heard_line *found = NULL;
    pthread_mutex_lock(&f->lock);
    for (size_t i = 0; i < f->n_lines && found == NULL; i++) {
        if (strstr(f->lines[i].text, text) != NULL)
            found = &f->lines[i];
    }
    pthread_mutex_unlock(&f->lock);
    return found;
}

/* What only a sweep notices takes its time. */
static const heard_line *await_line(fixture *f, const char *text)
{
    const heard_line *found = NULL;
    for (int i = 0; i < 250 && (found = find_line(f, text)) == NULL; i++)
        weir_sleep_ms(20);
    assert_non_null(found);
    return found;
}

static size_t count_lines(fixture *f)
{
    pthread_mutex_lock(&f->lock);
    size_t n = f->n_lines;
    pthread_mutex_unlock(&f->lock);
    return n;
}

static int set_up(void **state)
{
    fixture *f = calloc(1, sizeof(*f));
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    assert_non_null(f);
    pthread_mutex_init(&f->lock, NULL);
    weir_log_set_structured(hear, f, WEIR_LOG_INFO);
    assert_ok(weir_directory_open(&options, &f->directory));
    assert_ok(weir_directory_client_open(weir_directory_address(f->directory), 5000, &f->client));
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    weir_directory_client_close(f->client);
    weir_directory_close(f->directory);
    weir_log_set(NULL, NULL, WEIR_LOG_ERROR);
    pthread_mutex_destroy(&f->lock);
    free(f);
    return 0;
}

static void register_worker(fixture *f, const char *id, weir_worker_role role, unsigned ttl_s)
{
    assert_ok(weir_directory_register_worker(f->client, id, role, "glm", ttl_s));
}

/* Rank 0 of n_ranks, as this worker. */
static void publish(fixture *f, const char *worker_id, uint64_t version, size_t n_ranks)
{
    static const char *const slots[] = { "rank-0", "rank-1" };
    weir_source_record source = { .n_ranks = 1, .status = WEIR_SOURCE_READY, .version = version };
    weir_shard_record shard = { .slot = "rank-0", .n_tensors = 1, .n_bytes = 10 };
    snprintf(shard.worker_id, sizeof(shard.worker_id), "%s", worker_id);
    snprintf(source.worker_id, sizeof(source.worker_id), "%s", worker_id);
    snprintf(source.model, sizeof(source.model), "glm");
    snprintf(source.run, sizeof(source.run), "blue");
    snprintf(source.role, sizeof(source.role), "trainer");
    const weir_publish_request request = { .shard = &shard,
                                           .source = &source,
                                           .slots = slots,
                                           .n_slots = n_ranks,
                                           .trace_id = "4bf92f3577b34da6a3ce929d0e0e4736",
                                           .content = "" };
    assert_ok(weir_directory_publish_version_shard(f->client, &request, &f->answer));
}

static void expect_fields(const fixture *f, const heard_line *line)
{
    char uid[WEIR_ID_BYTES + 8];
    snprintf(uid, sizeof(uid), "uid=%s ", f->answer.version.uid);
    const char *const wanted[] = { "model=glm ",
                                   "run=blue ",
                                   "version=41 ",
                                   "attempt=1 ",
                                   "trace_id=4bf92f3577b34da6a3ce929d0e0e4736 ",
                                   uid };
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
        assert_non_null(strstr(line->fields, wanted[i]));
}

static void a_versions_life_is_told_with_its_fields(void **state)
{
    fixture *f = *state;
    register_worker(f, "trainer-0-00000001", WEIR_ROLE_TRAINER, 60);
    publish(f, "trainer-0-00000001", 41, 1);
    const char *const lines[] = { " is made, of 1 shards", " is READY, ", " is RELEASING" };
    assert_ok(weir_directory_delete_version(f->client, f->answer.version.uid));
    for (size_t i = 0; i < 3; i++) {
        const heard_line *line = await_line(f, lines[i]);
        assert_int_equal(line->level, WEIR_LOG_INFO);
        expect_fields(f, line);
    }
}

static void an_aborted_version_is_a_warning_with_its_reason(void **state)
{
    fixture *f = *state;
    register_worker(f, "trainer-0-00000001", WEIR_ROLE_TRAINER, 60);
    publish(f, "trainer-0-00000001", 41, 2);
    assert_ok(weir_directory_abort_version(f->client, f->answer.version.uid, "trainer-0-00000001",
                                           "trainer rank 0: X[1] is NaN"));
    const heard_line *line = await_line(f, " is ABORTED: trainer rank 0: X[1] is NaN");
    assert_int_equal(line->level, WEIR_LOG_WARN);
    expect_fields(f, line);
}

static void a_lease_that_runs_out_names_reader_and_version(void **state)
{
    fixture *f = *state;
    char lease_id[WEIR_ID_BYTES];
    register_worker(f, "trainer-0-00000001", WEIR_ROLE_TRAINER, 60);
    register_worker(f, "engine-0-00000002", WEIR_ROLE_GENERATOR, 60);
    register_worker(f, "engine-1-00000003", WEIR_ROLE_GENERATOR, 60);
    publish(f, "trainer-0-00000001", 41, 1);
    const char *uid = f->answer.version.uid;
    assert_ok(weir_directory_register_lease(f->client, uid, "engine-0-00000002", 1, lease_id));
    weir_sleep_ms(1100);
    assert_ok(weir_directory_register_lease(f->client, uid, "engine-1-00000003", 9, lease_id));
    const heard_line *line =
        await_line(f, "the lease of its reader engine-0-00000002 has expired without");
    assert_int_equal(line->level, WEIR_LOG_WARN);
    expect_fields(f, line);
    assert_non_null(strstr(line->fields, "worker=engine-0-00000002 "));
}

static void workers_come_and_are_superseded(void **state)
{
    fixture *f = *state;
    register_worker(f, "trainer-0-00000001", WEIR_ROLE_TRAINER, 60);
    publish(f, "trainer-0-00000001", 41, 1);
    register_worker(f, "trainer-0-00000002", WEIR_ROLE_TRAINER, 60);
    publish(f, "trainer-0-00000002", 42, 1);
    const heard_line *line = await_line(f, "trainer trainer-0-00000001 of glm is registered");
    assert_non_null(strstr(line->fields, "worker=trainer-0-00000001 model=glm role=trainer "));
    await_line(f, "trainer trainer-0-00000001 of glm is superseded");
}

static void renewals_and_reads_say_nothing(void **state)
{
    fixture *f = *state;
    weir_version_record version;
    char lease_id[WEIR_ID_BYTES];
    register_worker(f, "trainer-0-00000001", WEIR_ROLE_TRAINER, 60);
    register_worker(f, "engine-0-00000002", WEIR_ROLE_GENERATOR, 60);
    publish(f, "trainer-0-00000001", 41, 1);
    const char *uid = f->answer.version.uid;
    assert_ok(weir_directory_register_lease(f->client, uid, "engine-0-00000002", 9, lease_id));
    size_t n = count_lines(f);
    for (int i = 0; i < 20; i++) {
        register_worker(f, "trainer-0-00000001", WEIR_ROLE_TRAINER, 60);
        assert_ok(weir_directory_register_lease(f->client, uid, "engine-0-00000002", 9, lease_id));
        assert_ok(weir_directory_get_version(f->client, uid, &version));
    }
    assert_int_equal(count_lines(f), n);
}

/* By the store's own time: a sweep of a directory at rest is half a minute away. */
typedef struct notices {
    weir_store_news last;
    unsigned n;
} notices;

static void take_notice(void *context, const weir_store_notice *notice)
{
    notices *taken = context;
    taken->last = notice->what;
    taken->n++;
}

static void a_worker_is_gone_once(void **state)
{
    weir_store_options options = { 0 };
    weir_store *store;
    notices taken = { 0 };
    uint64_t expires_ms;
    (void)state;
    assert_ok(weir_store_open(&options, &store));
    weir_store_listen(store, take_notice, &taken);
    assert_ok(
        weir_store_register_worker(store, "w", WEIR_STORE_TRAINER, "m", 9, 1000, &expires_ms));
    assert_int_equal(taken.last, WEIR_STORE_WORKER_REGISTERED);
    weir_store_sweep(store, 5000);
    assert_int_equal(taken.n, 1);
    weir_store_sweep(store, 11000);
    weir_store_sweep(store, 12000);
    assert_int_equal(taken.n, 2);
    assert_int_equal(taken.last, WEIR_STORE_WORKER_GONE);
    assert_ok(
        weir_store_register_worker(store, "w", WEIR_STORE_TRAINER, "m", 9, 13000, &expires_ms));
    assert_int_equal(taken.n, 3);
    weir_store_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_versions_life_is_told_with_its_fields, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_aborted_version_is_a_warning_with_its_reason, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_lease_that_runs_out_names_reader_and_version, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(workers_come_and_are_superseded, set_up, tear_down),
        cmocka_unit_test_setup_teardown(renewals_and_reads_say_nothing, set_up, tear_down),
        cmocka_unit_test(a_worker_is_gone_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
