/* SPDX-License-Identifier: Apache-2.0 */
/* test_nccl_library.c - which NCCL is taken, and what is said when none can be. */
#include "transport/nccl_case.h"

#include <sys/wait.h>

/* First, in a process of its own: the library is looked for once. */
static void without_a_library_the_transport_says_why(void **state)
{
    (void)state;
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        const weir_transport_ops *ops = NULL;
        weir_transport *transport = NULL;
        setenv("WEIR_NCCL_LIBRARY", "/nowhere/libnccl.so.2", 1);
        weir_fail(WEIR_ERR_INVALID, "before");
        bool good = strstr(weir_nccl_why_not(), "NCCL is off: ") != NULL &&
                    strcmp(weir_last_error(), "before") == 0 &&
                    weir_transport_get("nccl", &ops) == WEIR_ERR_UNSUPPORTED &&
                    strstr(weir_last_error(), "transport nccl: NCCL is off: ") != NULL &&
                    weir_transport_nccl.open(NULL, &transport) == WEIR_ERR_UNSUPPORTED &&
                    strstr(weir_last_error(), "/nowhere/libnccl.so.2") != NULL;
        _exit(good ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static weir_status find_at(const char *path)
{
    weir_nccl_library nccl = { 0 };
    setenv("WEIR_NCCL_LIBRARY", path, 1);
    weir_status status = weir_nccl_library_find(&nccl);
    setenv("WEIR_NCCL_LIBRARY", fake_path, 1);
    if (status != WEIR_OK)
        assert_int_equal(nccl.version, 0);
    return status;
}

static void the_library_is_taken_from_where_the_setting_says(void **state)
{
    (void)state;
    const weir_nccl_library *nccl = NULL, *again = NULL;
    assert_int_equal(weir_nccl_library_get(&nccl), WEIR_OK);
    assert_int_equal(nccl->version, 22809);
    assert_int_equal(weir_nccl_library_get(&again), WEIR_OK);
    assert_ptr_equal(nccl, again);
    assert_string_equal(weir_nccl_why_not(), "");
}

static void a_library_that_is_not_there_is_named(void **state)
{
    (void)state;
    assert_int_equal(find_at("/nowhere/libnccl.so.2"), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "NCCL is off: this process has none"));
    assert_non_null(strstr(weir_last_error(), "/nowhere/libnccl.so.2"));
}

static void a_library_without_the_functions_is_refused(void **state)
{
    (void)state;
    assert_int_equal(find_at("libm.so.6"), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "has no ncclGetVersion"));
}

static void a_library_that_is_too_old_is_refused_with_its_version(void **state)
{
    (void)state;
    weir_nccl_library nccl;
    fake->version = 21304;
    assert_int_equal(weir_nccl_library_find(&nccl), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "is version 2.13.4, 2.14 or later is needed"));
    fake->version = 2708;
    assert_int_equal(weir_nccl_library_find(&nccl), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "is version 2.7.8,"));
    fake->version = 21400;
    assert_int_equal(weir_nccl_library_find(&nccl), WEIR_OK);
    fake->version = 0;
    assert_int_equal(weir_nccl_library_find(&nccl), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "does not tell its version"));
}

/* Last: the fake is in the way of every later search. */
static void the_copy_in_the_process_comes_first(void **state)
{
    (void)state;
    assert_non_null(dlopen(fake_path, RTLD_NOW | RTLD_GLOBAL));
    assert_int_equal(find_at("/nowhere/libnccl.so.2"), WEIR_OK);
    fake->version = 21304;
    assert_int_equal(find_at("/nowhere/libnccl.so.2"), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "(already in this process) is version 2.13.4"));
}

static void results_become_statuses_with_the_words_of_nccl(void **state)
{
    (void)state;
    const weir_nccl_library *nccl = NULL;
    assert_int_equal(weir_nccl_library_get(&nccl), WEIR_OK);
    assert_int_equal(weir_nccl_fail(nccl, WEIR_NCCL_REMOTE_ERROR, "who", "what"),
                     WEIR_ERR_PEER_LOST);
    assert_string_equal(weir_last_error(), "who: what: NCCL says remote error");
    fake->last_error = "socket\nclosed";
    assert_int_equal(weir_nccl_fail(nccl, WEIR_NCCL_SYSTEM_ERROR, "who", "what"),
                     WEIR_ERR_PEER_LOST);
    assert_string_equal(weir_last_error(), "who: what: NCCL says some error (socket closed)");
    assert_int_equal(weir_nccl_fail(nccl, WEIR_NCCL_CUDA_ERROR, "", ""), WEIR_ERR_DEVICE);
    assert_int_equal(weir_nccl_fail(nccl, WEIR_NCCL_INTERNAL_ERROR, "", ""), WEIR_ERR_DEVICE);
    assert_int_equal(weir_nccl_fail(nccl, WEIR_NCCL_INVALID_ARGUMENT, "", ""), WEIR_ERR_INVALID);
    assert_int_equal(weir_nccl_fail(nccl, WEIR_NCCL_INVALID_USAGE, "", ""), WEIR_ERR_UNSUPPORTED);
}

int main(void)
{
    if (!use_fake())
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(without_a_library_the_transport_says_why, reset_fake,
                                        check_fake),
        cmocka_unit_test_setup_teardown(the_library_is_taken_from_where_the_setting_says,
                                        reset_fake, check_fake),
        cmocka_unit_test_setup_teardown(a_library_that_is_not_there_is_named, reset_fake,
                                        check_fake),
        cmocka_unit_test_setup_teardown(a_library_without_the_functions_is_refused, reset_fake,
                                        check_fake),
        cmocka_unit_test_setup_teardown(a_library_that_is_too_old_is_refused_with_its_version,
                                        reset_fake, check_fake),
        cmocka_unit_test_setup_teardown(results_become_statuses_with_the_words_of_nccl, reset_fake,
                                        check_fake),
        cmocka_unit_test_setup_teardown(the_copy_in_the_process_comes_first, reset_fake,
                                        check_fake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
