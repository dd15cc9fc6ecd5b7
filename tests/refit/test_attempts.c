/* SPDX-License-Identifier: Apache-2.0 */
/* test_attempts.c - what trainer ranks' entries say of attempts at a number, and who believes it.
 */
#include "refit/refit_rig.h"

#include "refit/attempts.h"

#define CONTENT_A "0123456789abcdef0123456789abcdef"
#define CONTENT_B "fedcba98765432100123456789abcdef"
#define N_REFS 16

typedef struct fixture {
    weir_directory *directory;
    weir_worker worker; /* that asks */
    weir_source_ref refs[N_REFS];
} fixture;

static void set_up(fixture *f)
{
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    memset(f, 0, sizeof(*f));
    assert_ok(weir_directory_open(&options, &f->directory));
    const weir_security security = { 0 };
    const weir_worker_options worker = { .directory = weir_directory_address(f->directory),
                                         .model = "m",
                                         .name = "asker",
                                         .role = WEIR_ROLE_GENERATOR,
                                         .timeout_ms = 2000,
                                         .security = &security };
    assert_ok(weir_worker_open(&f->worker, &worker));
}

static void tear_down(fixture *f)
{
    weir_worker_leave(&f->worker, "", 0);
    weir_worker_close(&f->worker);
    weir_directory_close(f->directory);
}

static void say(fixture *f, const char *worker_id, uint64_t version, const char *uid,
                const char *note)
{
    char id[WEIR_ID_BYTES];
    weir_source_record record = { .n_ranks = 2, .status = WEIR_SOURCE_READY, .version = version };
    snprintf(record.worker_id, sizeof(record.worker_id), "%s", worker_id);
    snprintf(record.model, sizeof(record.model), "m");
    snprintf(record.run, sizeof(record.run), "%s", f->worker.run);
    snprintf(record.role, sizeof(record.role), "trainer");
    snprintf(record.version_uid, sizeof(record.version_uid), "%s", uid);
    snprintf(record.note, sizeof(record.note), "%s", note);
    assert_ok(weir_directory_publish_source(f->worker.client, &record, id));
}

static weir_status check(fixture *f)
{
    static const weir_shard_record shards[] = {
        { .slot = "rank-0", .worker_id = "zero" },
        { .slot = "rank-1", .worker_id = "one" },
        { .slot = "rank-1", .worker_id = "other" },
    };
    return weir_attempt_check_shards(&f->worker, "00000007", 7, shards, 3, f->refs, N_REFS);
}

static void a_note_comes_back(void **state)
{
    char note[512];
    weir_attempt in = { .number = 3, .content = CONTENT_A }, out;
    (void)state;
    weir_attempt_write(&in, note, sizeof(note));
    assert_string_equal(note, "attempt 3 of " CONTENT_A);
    assert_true(weir_attempt_read(note, &out));
    assert_int_equal(out.number, 3);
    assert_string_equal(out.content, CONTENT_A);
    assert_string_equal(out.ended_uid, "");
    strcpy(in.ended_uid, "00000007");
    strcpy(in.reason, "rank-1 was started anew");
    weir_attempt_write(&in, note, sizeof(note));
    assert_string_equal(note, "attempt 3 of " CONTENT_A " ends 00000007 rank-1 was started anew");
    assert_true(weir_attempt_read(note, &out));
    assert_string_equal(out.ended_uid, "00000007");
    assert_string_equal(out.reason, "rank-1 was started anew");
}

static void a_note_of_something_else_says_nothing(void **state)
{
    static const char *const notes[] = {
        "",
        "attempt",
        "attempt ",
        "attempt 0 of " CONTENT_A,
        "attempt -1 of " CONTENT_A,
        "attempt 99999999999999999999 of " CONTENT_A,
        "attempt 2 of 0123",
        "attempt 2 of " CONTENT_A "0",
        "attempt 2 of " CONTENT_A " ends",
        "attempt 2 of " CONTENT_A " ends ",
        "attempt 2 of " CONTENT_A " ends  because",
        "attempt 2 of " CONTENT_A " ends 00000007",
        "attempt 2 of " CONTENT_A " ends " CONTENT_A CONTENT_B " it is too long",
        "{\"bytes\":1}",
        "aborted: trainer rank 0: attempt 2 of " CONTENT_A,
    };
    (void)state;
    for (size_t i = 0; i < sizeof(notes) / sizeof(notes[0]); i++) {
        weir_attempt out;
        assert_false(weir_attempt_read(notes[i], &out));
        assert_int_equal(out.number, 1);
        assert_string_equal(out.content, "");
        assert_string_equal(out.ended_uid, "");
    }
}

static void shards_of_one_slot_are_refused_unless_they_are_known_to_be_equal(void **state)
{
    fixture f;
    (void)state;
    set_up(&f);
    assert_error(check(&f), WEIR_ERR_LAYOUT,
                 "version 7 of m: rank-1 has shards of one and of other, and directory");
    say(&f, "one", 7, "00000007", "attempt 1 of " CONTENT_A);
    say(&f, "other", 7, "00000007", "attempt 1 of " CONTENT_B);
    assert_error(check(&f), WEIR_ERR_LAYOUT,
                 "rank-1 has shards of one and of other, which are of other weights");
    say(&f, "other", 7, "00000007", "attempt 1 of " CONTENT_A);
    assert_ok(check(&f));
    say(&f, "other", 8, "00000008", "attempt 1 of " CONTENT_B); /* it has moved on since */
    assert_ok(check(&f));
    say(&f, "one", 7, "00000007", ""); /* no word of the first: the second has looked */
    assert_ok(check(&f));
    say(&f, "other", 7, "00000007", "");
    assert_error(check(&f), WEIR_ERR_LAYOUT, "does not say whether they are of the same weights");
    tear_down(&f);
}

static void an_end_is_found_by_its_uid_and_by_its_number(void **state)
{
    fixture f;
    weir_attempt_end end;
    (void)state;
    set_up(&f);
    weir_end_wish by_uid = { "00000007", 0, 0, f.refs, N_REFS };
    weir_end_wish by_number = { "", 7, 9, f.refs, N_REFS };
    assert_int_equal(weir_attempt_find_end(&f.worker, &by_uid, &end), WEIR_IN_PROGRESS);
    say(&f, "zero", 6, "00000006", "aborted: trainer rank 0: too old");
    say(&f, "one", 9, "00000009", "attempt 2 of " CONTENT_A " ends 00000007 it was started anew");
    assert_int_equal(weir_attempt_find_end(&f.worker, &by_number, &end), WEIR_IN_PROGRESS);
    assert_ok(weir_attempt_find_end(&f.worker, &by_uid, &end));
    assert_string_equal(end.reason, "it was started anew");
    say(&f, "two", 7, "00000017", "aborted: trainer rank 2: NaN");
    say(&f, "three", 8, "00000018", "aborted: trainer rank 3: inf");
    assert_ok(weir_attempt_find_end(&f.worker, &by_number, &end));
    assert_int_equal(end.version, 8);
    assert_string_equal(end.uid, "00000018");
    assert_string_equal(end.reason, "trainer rank 3: inf");
    by_uid.uid = "00000017";
    assert_ok(weir_attempt_find_end(&f.worker, &by_uid, &end));
    assert_string_equal(end.reason, "trainer rank 2: NaN");
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_note_comes_back),
        cmocka_unit_test(a_note_of_something_else_says_nothing),
        cmocka_unit_test(shards_of_one_slot_are_refused_unless_they_are_known_to_be_equal),
        cmocka_unit_test(an_end_is_found_by_its_uid_and_by_its_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
