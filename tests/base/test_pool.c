/* SPDX-License-Identifier: Apache-2.0 */
/* Parallel loops: every task once, the lowest failure, scratch, float modes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/pool.h"

#define N_TASKS 10000u

typedef struct sum_loop {
    unsigned n_threads;
    atomic_uint done[N_TASKS];
    atomic_uint_fast64_t sum;
    uint64_t per_thread[64]; /* not atomic: a thread number must belong to one thread at a time */
} sum_loop;

static weir_status add_task(void *context, size_t task, unsigned thread)
{
    sum_loop *loop = context;
    if (thread >= loop->n_threads)
        return weir_fail(WEIR_ERR_INTERNAL, "thread %u of %u", thread, loop->n_threads);
    atomic_fetch_add(&loop->done[task], 1u);
    atomic_fetch_add(&loop->sum, task);
    loop->per_thread[thread] += task;
    return WEIR_OK;
}

static void check_sum(weir_pool *pool, size_t n_tasks)
{
    sum_loop *loop = calloc(1, sizeof(*loop));
    loop->n_threads = weir_pool_threads(pool);
    assert_int_equal(weir_pool_run(pool, n_tasks, add_task, loop), WEIR_OK);
    uint64_t by_threads = 0;
    for (unsigned i = 0; i < 64; i++)
        by_threads += loop->per_thread[i];
    for (size_t i = 0; i < N_TASKS; i++)
        assert_int_equal(loop->done[i], i < n_tasks);
    uint64_t expected = n_tasks > 0 ? (uint64_t)n_tasks * (n_tasks - 1) / 2 : 0;
    assert_int_equal(loop->sum, expected);
    assert_int_equal(by_threads, expected);
    free(loop);
}

static void every_task_is_done_once(void **state)
{
    (void)state;
    static const size_t sizes[] = { 0, 1, 2, 7, N_TASKS };
    for (unsigned n = 1; n <= 8; n *= 2) {
        weir_pool *pool;
        assert_int_equal(weir_pool_open(n, &pool), WEIR_OK);
        assert_int_equal(weir_pool_threads(pool), n);
        for (size_t i = 0; i < 5; i++)
            check_sum(pool, sizes[i]);
        for (int again = 0; again < 200; again++) /* short loops in a row find stragglers */
            check_sum(pool, 3);
        weir_pool_close(pool);
    }
    check_sum(NULL, N_TASKS);
    assert_int_equal(weir_pool_threads(NULL), 1);
}

static void a_pool_that_never_runs_closes(void **state)
{
    (void)state;
    weir_pool *pool;
    assert_int_equal(weir_pool_open(4, &pool), WEIR_OK);
    weir_pool_close(pool);
    weir_pool_close(NULL);
}

typedef struct fail_loop {
    size_t first_bad;
    atomic_size_t n_started;
} fail_loop;

static weir_status fail_task(void *context, size_t task, unsigned thread)
{
    fail_loop *loop = context;
    (void)thread;
    atomic_fetch_add(&loop->n_started, 1);
    if (task < loop->first_bad)
        return WEIR_OK;
    if (task == loop->first_bad)
        weir_sleep_ms(2); /* let a later task fail first */
    return weir_fail(task == loop->first_bad ? WEIR_ERR_NONFINITE : WEIR_ERR_INVALID,
                     "task %zu failed", task);
}

static void the_lowest_failed_task_is_reported(void **state)
{
    (void)state;
    for (unsigned n = 1; n <= 4; n++) {
        weir_pool *pool;
        assert_int_equal(weir_pool_open(n, &pool), WEIR_OK);
        for (int again = 0; again < 20; again++) {
            fail_loop loop = { .first_bad = 50 };
            assert_int_equal(weir_pool_run(pool, N_TASKS, fail_task, &loop), WEIR_ERR_NONFINITE);
            assert_string_equal(weir_last_error(), "task 50 failed");
            assert_true(loop.n_started >= 51 && loop.n_started <= 51 + n);
        }
        check_sum(pool, 100); /* a failure does not stick */
        weir_pool_close(pool);
    }
}

static weir_status scratch_task(void *context, size_t task, unsigned thread)
{
    weir_pool *pool = context;
    size_t n_bytes = 1000 + task % 7;
    unsigned char *scratch = weir_pool_scratch(pool, thread, n_bytes);
    if (scratch == NULL)
        return WEIR_ERR_NO_MEMORY;
    if ((uintptr_t)scratch % 64 != 0)
        return weir_fail(WEIR_ERR_INTERNAL, "unaligned scratch");
    memset(scratch, (int)task, n_bytes);
    for (size_t i = 0; i < n_bytes; i++) {
        if (scratch[i] != (unsigned char)task)
            return weir_fail(WEIR_ERR_INTERNAL, "scratch is shared");
    }
    return WEIR_OK;
}

static weir_status large_scratch_task(void *context, size_t task, unsigned thread)
{
    (void)task;
    weir_sleep_ms(1); /* so that every thread gets some */
    return weir_pool_scratch(context, thread, 4096) != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static void scratch_is_ones_own_and_is_kept(void **state)
{
    (void)state;
    weir_pool *pool;
    assert_int_equal(weir_pool_open(4, &pool), WEIR_OK);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(weir_pool_run(pool, 64, large_scratch_task, pool), WEIR_OK);
        assert_int_equal(weir_pool_run(pool, 1000, scratch_task, pool), WEIR_OK);
    }
    uint64_t before = weir_alloc_count();
    assert_int_equal(weir_pool_run(pool, 64, scratch_task, pool), WEIR_OK);
    assert_true(weir_alloc_count() - before <= 4); /* at most a thread that had none yet */
    weir_pool_close(pool);

    assert_int_equal(weir_pool_run(NULL, 64, scratch_task, NULL), WEIR_OK);
    before = weir_alloc_count();
    assert_int_equal(weir_pool_run(NULL, 7, scratch_task, NULL), WEIR_OK);
    assert_int_equal(weir_alloc_count(), before);
    assert_non_null(weir_pool_scratch(NULL, 0, 0));
}

/* Also the threads to which no task of the first loop fell. */
static void what_is_reserved_is_not_allocated_again(void **state)
{
    (void)state;
    weir_pool *pool;
    assert_int_equal(weir_pool_open(8, &pool), WEIR_OK);
    assert_int_equal(weir_pool_reserve(pool, 4096), WEIR_OK);
    uint64_t before = weir_alloc_count();
    for (unsigned thread = 0; thread < 8; thread++)
        assert_non_null(weir_pool_scratch(pool, thread, 4096));
    assert_int_equal(weir_pool_reserve(pool, 100), WEIR_OK);
    assert_int_equal(weir_alloc_count(), before);
    weir_alloc_fail_at(3);
    assert_int_equal(weir_pool_reserve(pool, 8192), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    assert_int_equal(weir_pool_run(pool, 64, large_scratch_task, pool), WEIR_OK);
    weir_pool_close(pool);
    assert_int_equal(weir_pool_reserve(NULL, 4096), WEIR_OK);
    before = weir_alloc_count();
    assert_non_null(weir_pool_scratch(NULL, 0, 4096));
    assert_int_equal(weir_alloc_count(), before);
}

static weir_status empty_scratch_task(void *context, size_t task, unsigned thread)
{
    (void)task;
    return weir_pool_scratch(context, thread, 0) != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static void no_bytes_of_scratch_are_valid_too(void **state)
{
    (void)state;
    weir_pool *pool;
    assert_int_equal(weir_pool_open(2, &pool), WEIR_OK);
    assert_int_equal(weir_pool_run(pool, 4, empty_scratch_task, pool), WEIR_OK);
    weir_pool_close(pool);
}

static weir_status float_task(void *context, size_t task, unsigned thread)
{
    (void)context, (void)task, (void)thread;
    volatile float tiny = 1e-40f, one = 1.0f;
    if (fegetround() != FE_TONEAREST || tiny * one != tiny)
        return weir_fail(WEIR_ERR_INTERNAL, "float mode leaked in");
    return WEIR_OK;
}

static void the_callers_float_mode_is_kept_out_and_restored(void **state)
{
    (void)state;
    weir_pool *pool;
    fesetround(FE_UPWARD);
#if defined(__SSE2__)
    _mm_setcsr(_mm_getcsr() | 0x8040); /* flush to zero, denormals are zero */
#endif
    weir_status opened = weir_pool_open(3, &pool); /* threads inherit the mode */
    weir_status status = opened == WEIR_OK ? weir_pool_run(pool, 100, float_task, NULL) : opened;
    weir_status alone = weir_pool_run(NULL, 1, float_task, NULL);
    int rounding = fegetround();
#if defined(__SSE2__)
    unsigned flushing = _mm_getcsr() & 0x8040;
    _mm_setcsr(0x1f80);
    assert_int_equal(flushing, 0x8040);
#endif
    fesetround(FE_TONEAREST);
    assert_int_equal(rounding, FE_UPWARD);
    assert_int_equal(status, WEIR_OK);
    assert_int_equal(alone, WEIR_OK);
    weir_pool_close(pool);
}

static void *run_from_elsewhere(void *argument)
{
    for (int i = 0; i < 50; i++)
        check_sum(argument, 500);
    return NULL;
}

static void several_callers_take_turns(void **state)
{
    (void)state;
    weir_pool *pool;
    pthread_t callers[3];
    assert_int_equal(weir_pool_open(3, &pool), WEIR_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&callers[i], NULL, run_from_elsewhere, pool), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(callers[i], NULL);
    weir_pool_close(pool);
}

static void the_number_of_threads_has_a_default_and_a_limit(void **state)
{
    (void)state;
    weir_pool *pool = NULL;
    assert_int_equal(weir_pool_open(100000, &pool), WEIR_ERR_INVALID);
    assert_null(pool);
    unsetenv("WEIR_THREADS");
    assert_int_equal(weir_pool_open(0, &pool), WEIR_OK);
    assert_true(weir_pool_threads(pool) >= 1);
    weir_pool_close(pool);
    setenv("WEIR_THREADS", "3", 1);
    assert_int_equal(weir_pool_open(0, &pool), WEIR_OK);
    assert_int_equal(weir_pool_threads(pool), 3);
    weir_pool_close(pool);
    setenv("WEIR_THREADS", "0", 1);
    assert_int_equal(weir_pool_open(0, &pool), WEIR_OK);
    assert_int_equal(weir_pool_threads(pool), 1);
    weir_pool_close(pool);
    unsetenv("WEIR_THREADS");
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    weir_pool *pool = NULL;
    uint64_t n_failures = 0;
    for (;; n_failures++) {
        weir_alloc_fail_at(n_failures + 1);
        weir_status status = weir_pool_open(3, &pool);
        weir_alloc_fail_at(0);
        if (status == WEIR_OK)
            break;
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        assert_null(pool);
    }
    assert_int_equal(n_failures, 3);
    weir_alloc_fail_at(1);
    assert_int_equal(weir_pool_run(pool, 1, empty_scratch_task, pool), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    weir_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_is_done_once),
        cmocka_unit_test(a_pool_that_never_runs_closes),
        cmocka_unit_test(the_lowest_failed_task_is_reported),
        cmocka_unit_test(scratch_is_ones_own_and_is_kept),
        cmocka_unit_test(what_is_reserved_is_not_allocated_again),
        cmocka_unit_test(no_bytes_of_scratch_are_valid_too),
        cmocka_unit_test(the_callers_float_mode_is_kept_out_and_restored),
        cmocka_unit_test(several_callers_take_turns),
        cmocka_unit_test(the_number_of_threads_has_a_default_and_a_limit),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
