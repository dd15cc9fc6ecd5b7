/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_wait.c - waits for a GPU have a bound, on a stand-in whose work ends when it is told.
 */
#include "device/cuda_wait.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"

#define FAILED 700 /* cudaErrorIllegalAddress */

/* What an event or stream of the stand-in is: how often it is still running, and how it ends. */
typedef struct fake_work {
    unsigned n_left;
    int outcome;
} fake_work;

static int test_work(void *what)
{
    fake_work *work = what;
    if (work->n_left == 0)
        return work->outcome;
    work->n_left--;
    return WEIR_CUDA_NOT_READY;
}

static const weir_cuda_runtime runtime = { .size = sizeof(weir_cuda_runtime),
                                           .stream_test = test_work,
                                           .event_test = test_work };

static void what_never_ends_is_given_up_at_its_bound(void **state)
{
    (void)state;
    fake_work endless = { .n_left = UINT32_MAX };
    uint64_t begun_ns = weir_now_ns();
    assert_int_equal(weir_cuda_wait_event(&runtime, &endless, 20), WEIR_CUDA_NOT_READY);
    assert_int_equal(weir_cuda_wait_stream(&runtime, &endless, 20), WEIR_CUDA_NOT_READY);
    uint64_t took_ns = weir_now_ns() - begun_ns;
    assert_in_range(took_ns, 40000000u, 5000000000u);
}

static void what_ends_is_seen_to_end(void **state)
{
    (void)state;
    fake_work work = { .n_left = 6000 }; /* beyond the turns that do not sleep */
    assert_int_equal(weir_cuda_wait_event(&runtime, &work, 60000), 0);
    assert_int_equal(work.n_left, 0);
    assert_int_equal(weir_cuda_wait_stream(&runtime, &work, 60000), 0);
}

static void a_failure_ends_a_wait(void **state)
{
    (void)state;
    fake_work work = { .n_left = 3, .outcome = FAILED };
    assert_int_equal(weir_cuda_wait_stream(&runtime, &work, 60000), FAILED);
    assert_int_equal(weir_cuda_wait_event(&runtime, &work, 60000), FAILED);
}

static void no_time_at_all_asks_once(void **state)
{
    (void)state;
    fake_work work = { .n_left = 7 };
    assert_int_equal(weir_cuda_wait_event(&runtime, &work, 0), WEIR_CUDA_NOT_READY);
    assert_int_equal(work.n_left, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_never_ends_is_given_up_at_its_bound),
        cmocka_unit_test(what_ends_is_seen_to_end),
        cmocka_unit_test(a_failure_ends_a_wait),
        cmocka_unit_test(no_time_at_all_asks_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
