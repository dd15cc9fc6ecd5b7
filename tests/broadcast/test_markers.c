/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "broadcast/markers.h"
#include "weir/orchestrate.h"

static char folder[64], markers[128];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/weir-markers-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return 1;
    snprintf(markers, sizeof(markers), "%s/run/broadcasts", folder);
    return 0;
}

static int remove_folder(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static void a_trainer_makes_the_directories_of_its_marker(void **state)
{
    char path[256];
    struct stat found;
    (void)state;
    assert_int_equal(weir_markers_set_stable(markers, 12), WEIR_OK);
    assert_int_equal(weir_markers_set_stable(markers, 12), WEIR_OK);
    snprintf(path, sizeof(path), "%s/step_12/STABLE", markers);
    assert_int_equal(stat(path, &found), 0);
    assert_int_equal(found.st_size, 0);
}

static void the_newest_step_is_the_greatest_that_is_stable(void **state)
{
    static const char *const others[] = { "step_99",  "step_0x7", "step_",
                                          "step_007", "step_-1",  "step_99999999999999999999",
                                          "steps_50", "STABLE" };
    char path[256];
    uint64_t version = 5;
    (void)state;
    assert_int_equal(weir_marker_newest(markers, false, 0, UINT64_MAX, &version),
                     WEIR_ERR_NOT_FOUND);
    for (uint64_t step = 9; step <= 11; step++)
        assert_int_equal(weir_markers_set_stable(markers, step), WEIR_OK);
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", markers, others[i]);
        assert_int_equal(mkdir(path, 0777), 0);
        if (i == 0)
            continue; /* a step that is not stable */
        snprintf(path, sizeof(path), "%s/%s/STABLE", markers, others[i]);
        assert_int_equal(mkdir(path, 0777), 0);
    }
    assert_int_equal(weir_marker_newest(markers, false, 0, UINT64_MAX, &version), WEIR_OK);
    assert_int_equal(version, 11);
    assert_int_equal(weir_marker_newest(markers, true, 10, UINT64_MAX, &version), WEIR_OK);
    assert_int_equal(version, 11);
    assert_int_equal(weir_marker_newest(markers, true, 11, UINT64_MAX, &version),
                     WEIR_ERR_NOT_FOUND);
    assert_int_equal(weir_marker_newest(markers, false, 0, 10, &version), WEIR_OK);
    assert_int_equal(version, 10);
    assert_int_equal(weir_marker_newest(markers, true, 10, 10, &version), WEIR_ERR_NOT_FOUND);
}

static void *touch_ready(void *context)
{
    (void)context;
    weir_sleep_ms(50);
    return weir_marker_touch(markers, 3, WEIR_MARKER_READY, false) == WEIR_OK ? markers : NULL;
}

static void a_wait_ends_when_the_marker_is_there(void **state)
{
    pthread_t thread;
    void *done;
    (void)state;
    assert_int_equal(weir_markers_set_stable(markers, 3), WEIR_OK);
    assert_int_equal(pthread_create(&thread, NULL, touch_ready, NULL), 0);
    assert_int_equal(weir_markers_await_ready(markers, 3, 10000), WEIR_OK);
    pthread_join(thread, &done);
    assert_ptr_equal(done, markers);
}

static void a_wait_has_a_bound_and_names_the_file(void **state)
{
    (void)state;
    assert_int_equal(weir_markers_set_stable(markers, 3), WEIR_OK);
    assert_int_equal(weir_markers_await_ready(markers, 3, 20), WEIR_ERR_TIMED_OUT);
    assert_non_null(strstr(weir_last_error(), "step_3/NCCL_READY"));
}

static void a_step_that_is_deleted_ends_the_wait_and_the_touch(void **state)
{
    (void)state;
    assert_int_equal(weir_markers_await_ready(markers, 4, 10000), WEIR_ERR_NOT_FOUND);
    assert_non_null(strstr(weir_last_error(), "was deleted"));
    assert_int_equal(weir_marker_touch(markers, 4, WEIR_MARKER_READY, false), WEIR_ERR_NOT_FOUND);
}

static void expect_marker(uint64_t version, const char *name, bool is_there)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/step_%u/%s", markers, (unsigned)version, name);
    assert_int_equal(access(path, F_OK) == 0, is_there);
}

static void an_answer_of_an_earlier_run_is_taken_away_before_the_question(void **state)
{
    (void)state;
    assert_int_equal(weir_marker_touch(markers, 3, WEIR_MARKER_READY, true), WEIR_OK);
    assert_int_equal(weir_markers_set_stable(markers, 3), WEIR_OK);
    expect_marker(3, WEIR_MARKER_STABLE, true);
    expect_marker(3, WEIR_MARKER_READY, false);
    assert_int_equal(weir_markers_await_ready(markers, 3, 20), WEIR_ERR_TIMED_OUT);
}

static void a_run_takes_away_what_it_has_not_said_and_keeps_what_lies_before(void **state)
{
    char path[256];
    (void)state;
    assert_int_equal(weir_markers_clear(markers, 0), WEIR_OK); /* there is nothing yet */
    for (uint64_t version = 3; version <= 5; version++) {
        assert_int_equal(weir_markers_set_stable(markers, version), WEIR_OK);
        assert_int_equal(weir_marker_touch(markers, version, WEIR_MARKER_READY, false), WEIR_OK);
    }
    snprintf(path, sizeof(path), "%s/step_5/weights", markers);
    assert_int_equal(mkdir(path, 0777), 0);
    assert_int_equal(weir_markers_clear(markers, 4), WEIR_OK);
    for (uint64_t version = 3; version <= 5; version++) {
        expect_marker(version, WEIR_MARKER_STABLE, version < 4);
        expect_marker(version, WEIR_MARKER_READY, version < 4);
    }
    expect_marker(5, "weights", true); /* somebody's */
    assert_int_equal(weir_markers_clear("", 0), WEIR_ERR_INVALID);
}

static void what_is_no_directory_is_an_error(void **state)
{
    char long_path[6000];
    (void)state;
    memset(long_path, 'x', sizeof(long_path) - 1);
    long_path[sizeof(long_path) - 1] = '\0';
    assert_int_equal(weir_markers_set_stable(long_path, 1), WEIR_ERR_INVALID);
    assert_int_equal(weir_markers_set_stable("", 1), WEIR_ERR_INVALID);
    assert_int_equal(weir_markers_await_ready(NULL, 1, 10), WEIR_ERR_INVALID);
    assert_int_equal(weir_markers_set_stable("/proc/none", 1), WEIR_ERR_NOT_FOUND);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(a_trainer_makes_the_directories_of_its_marker),
        IN_FOLDER(the_newest_step_is_the_greatest_that_is_stable),
        IN_FOLDER(a_wait_ends_when_the_marker_is_there),
        IN_FOLDER(a_wait_has_a_bound_and_names_the_file),
        IN_FOLDER(a_step_that_is_deleted_ends_the_wait_and_the_touch),
        IN_FOLDER(an_answer_of_an_earlier_run_is_taken_away_before_the_question),
        IN_FOLDER(a_run_takes_away_what_it_has_not_said_and_keeps_what_lies_before),
        IN_FOLDER(what_is_no_directory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
