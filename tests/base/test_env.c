/* SPDX-License-Identifier: Apache-2.0 */
/* The table of environment variables. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/env.h"
#include "weir/weir.h"

static void an_empty_variable_is_not_set(void **state)
{
    (void)state;
    unsetenv("WEIR_CPU_DISABLE");
    assert_null(weir_env_string(WEIR_ENV_CPU_DISABLE));
    setenv("WEIR_CPU_DISABLE", "", 1);
    assert_null(weir_env_string(WEIR_ENV_CPU_DISABLE));
    setenv("WEIR_CPU_DISABLE", "avx2", 1);
    assert_string_equal(weir_env_string(WEIR_ENV_CPU_DISABLE), "avx2");
}

static void only_a_plain_number_counts(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "", "x", "-1", "+3", " 3", "3 ", "3x", "0x3", "99999999999999999999", "1000000001"
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        setenv("WEIR_THREADS", bad[i], 1);
        assert_int_equal(weir_env_unsigned(WEIR_ENV_THREADS, 7), 7);
    }
    setenv("WEIR_THREADS", "12", 1);
    assert_int_equal(weir_env_unsigned(WEIR_ENV_THREADS, 7), 12);
    setenv("WEIR_THREADS", "0", 1);
    assert_int_equal(weir_env_unsigned(WEIR_ENV_THREADS, 7), 0);
    unsetenv("WEIR_THREADS");
    assert_int_equal(weir_env_unsigned(WEIR_ENV_THREADS, 7), 7);
}

static void a_list_is_searched_by_whole_words(void **state)
{
    (void)state;
    setenv("WEIR_CPU_DISABLE", "avx512,,AVX2", 1);
    assert_true(weir_env_list_has(WEIR_ENV_CPU_DISABLE, "avx512"));
    assert_true(weir_env_list_has(WEIR_ENV_CPU_DISABLE, "avx2"));
    assert_false(weir_env_list_has(WEIR_ENV_CPU_DISABLE, "avx"));
    assert_false(weir_env_list_has(WEIR_ENV_CPU_DISABLE, "avx5120"));
    unsetenv("WEIR_CPU_DISABLE");
    assert_false(weir_env_list_has(WEIR_ENV_CPU_DISABLE, "avx2"));
}

static void the_table_shows_what_is_set(void **state)
{
    (void)state;
    weir_env_info infos[WEIR_ENV_COUNT];
    setenv("WEIR_THREADS", "5", 1);
    assert_int_equal(weir_env_table(NULL, 0), WEIR_ENV_COUNT);
    assert_int_equal(weir_env_table(infos, WEIR_ENV_COUNT), WEIR_ENV_COUNT);
    bool seen = false;
    for (size_t i = 0; i < WEIR_ENV_COUNT; i++) {
        assert_int_equal(strncmp(infos[i].name, "WEIR_", 5), 0);
        assert_true(infos[i].help[0] != '\0');
        if (strcmp(infos[i].name, "WEIR_THREADS") == 0) {
            assert_string_equal(infos[i].value, "5");
            seen = true;
        }
    }
    assert_true(seen);
    unsetenv("WEIR_THREADS");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_variable_is_not_set),
        cmocka_unit_test(only_a_plain_number_counts),
        cmocka_unit_test(a_list_is_searched_by_whole_words),
        cmocka_unit_test(the_table_shows_what_is_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
