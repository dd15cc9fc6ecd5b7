/* SPDX-License-Identifier: Apache-2.0 */
/* The ladder of instruction sets, and switching a rung off. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cpu.h"
#include "weir/convert.h"

/* The ladder is climbed once per process, so each setting needs one of its own. */
static unsigned rungs_with(const char *disabled)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        unsigned has = 0;
        setenv("WEIR_CPU_DISABLE", disabled, 1);
        for (int level = 0; level < WEIR_N_CPU_LEVELS; level++)
            has |= (unsigned)weir_cpu_has((weir_cpu_level)level) << level;
        _exit((int)has);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return (unsigned)WEXITSTATUS(status);
}

static void rungs_can_be_switched_off(void **state)
{
    (void)state;
    unsigned all = rungs_with("");
    assert_true(all & 1u);
    assert_int_equal(rungs_with("all"), 1);
    assert_int_equal(rungs_with("avx512"), all & 3u);
    assert_int_equal(rungs_with("avx2"), 1); /* what stands on a missing rung is off too */
    assert_int_equal(rungs_with("c"), all);  /* the portable code is always there */
}

static void a_ladder_has_no_holes(void **state)
{
    (void)state;
    weir_cpu_rung rungs[WEIR_N_CPU_LEVELS];
    assert_int_equal(weir_cpu_rungs(NULL, 0), WEIR_N_CPU_LEVELS);
    assert_int_equal(weir_cpu_rungs(rungs, WEIR_N_CPU_LEVELS), WEIR_N_CPU_LEVELS);
    assert_string_equal(rungs[0].name, "c");
    assert_true(rungs[0].in_use);
    for (int i = 1; i < WEIR_N_CPU_LEVELS; i++) {
        assert_true(!rungs[i].in_use || rungs[i - 1].in_use);
        assert_true(rungs[i].in_use == (rungs[i].why_not[0] == '\0'));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rungs_can_be_switched_off), /* first: forks before the climb */
        cmocka_unit_test(a_ladder_has_no_holes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
