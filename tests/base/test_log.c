/* SPDX-License-Identifier: Apache-2.0 */
/* Lines go to whoever listens, up to the level asked for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/log.h"

static char heard[256];
static int n_heard;

static void listen(void *context, weir_log_level level, const char *line)
{
    *(weir_log_level *)context = level;
    n_heard++;
    strncpy(heard, line, sizeof(heard) - 1);
}

static void lines_up_to_the_level_are_heard(void **state)
{
    (void)state;
    weir_log_level level = WEIR_LOG_DEBUG;
    weir_log(WEIR_LOG_ERROR, "nobody listens");
    weir_log_set(listen, &level, WEIR_LOG_WARN);
    weir_log(WEIR_LOG_INFO, "too fine");
    assert_int_equal(n_heard, 0);
    weir_log(WEIR_LOG_WARN, "%d of %d", 1, 2);
    assert_int_equal(n_heard, 1);
    assert_int_equal(level, WEIR_LOG_WARN);
    assert_string_equal(heard, "1 of 2");
    weir_log_set(NULL, NULL, WEIR_LOG_DEBUG);
    weir_log(WEIR_LOG_ERROR, "nobody listens any more");
    assert_int_equal(n_heard, 1);
}

static void what_came_from_outside_stays_on_one_line(void **state)
{
    (void)state;
    weir_log_level level = WEIR_LOG_DEBUG;
    weir_log_set(listen, &level, WEIR_LOG_WARN);
    weir_log(WEIR_LOG_WARN, "peer '%s'", "a\nweir: error: b\x1b[2J");
    weir_log_set(NULL, NULL, WEIR_LOG_DEBUG);
    assert_string_equal(heard, "peer 'a weir: error: b [2J'");
}

static size_t n_fields_heard;
static char fields_heard[512];

static void listen_to_fields(void *context, weir_log_level level, const char *line,
                             const weir_log_field *fields, size_t n_fields)
{
    size_t used = 0;
    (void)context;
    (void)level;
    snprintf(heard, sizeof(heard), "%s", line);
    n_fields_heard = n_fields;
    fields_heard[0] = '\0';
    for (size_t i = 0; i < n_fields; i++)
        used += (size_t)snprintf(fields_heard + used, sizeof(fields_heard) - used, "%s%s%s ",
                                 fields[i].name, fields[i].is_number ? "#" : "=", fields[i].text);
}

static void a_line_carries_what_its_thread_is_about(void **state)
{
    (void)state;
    const weir_log_scope scope = { .worker = "w",
                                   .model = "m",
                                   .run = "",
                                   .stop = "transfer",
                                   .has_version = true,
                                   .version = UINT64_MAX - 1 };
    weir_log_set_structured(listen_to_fields, NULL, WEIR_LOG_INFO);
    weir_log(WEIR_LOG_INFO, "outside");
    assert_int_equal(n_fields_heard, 0);
    assert_null(weir_log_enter(&scope));
    const weir_log_number bytes = weir_log_count(12), seconds = weir_log_real(0.5);
    const weir_log_field own[] = { { "bytes", bytes.text, true },
                                   { "seconds", seconds.text, true } };
    weir_log_with(WEIR_LOG_INFO, own, 2, "line %d", 1);
    assert_string_equal(heard, "line 1");
    assert_string_equal(fields_heard, "worker=w model=m version#18446744073709551614 "
                                      "stop=transfer bytes#12 seconds#0.500000 ");
    weir_log_with(WEIR_LOG_DEBUG, own, 2, "too fine");
    assert_string_equal(heard, "line 1");
    assert_ptr_equal(weir_log_enter(NULL), &scope);
    weir_log(WEIR_LOG_WARN, "outside again");
    assert_int_equal(n_fields_heard, 0);
    weir_log_set(NULL, NULL, WEIR_LOG_DEBUG);
}

static void numbers_that_json_cannot_say_are_zero(void **state)
{
    (void)state;
    assert_string_equal(weir_log_real(0.0 / 0.0).text, "0.000000");
    assert_string_equal(weir_log_real(1e300).text, "0.000000");
    assert_string_equal(weir_log_count(UINT64_MAX).text, "18446744073709551615");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_up_to_the_level_are_heard),
        cmocka_unit_test(what_came_from_outside_stays_on_one_line),
        cmocka_unit_test(a_line_carries_what_its_thread_is_about),
        cmocka_unit_test(numbers_that_json_cannot_say_are_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
