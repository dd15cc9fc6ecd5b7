/* SPDX-License-Identifier: Apache-2.0 */
/* Lines go to whoever listens, up to the level asked for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_up_to_the_level_are_heard),
        cmocka_unit_test(what_came_from_outside_stays_on_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
