/* SPDX-License-Identifier: Apache-2.0 */
/* pool.c - threads that take numbered tasks from a shared counter.
 *
 * One job at a time. A worker wakes for a new job, draws tasks until none are left, and reports.
 * Tasks are drawn with one atomic add, so uneven tasks balance themselves.
 */
#include "base/pool.h"

#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "base/alloc.h"
#include "base/env.h"
#include "base/error.h"

#define MAX_THREADS 1024u

typedef struct job {
    weir_task_fn fn;
    void *context;
    size_t n_tasks;
    atomic_size_t next;
    atomic_size_t first_failed; /* SIZE_MAX: none */
    weir_status status;
    weir_error_line error;
} job;

typedef struct scratch {
    void *data;
    size_t n_bytes;
} scratch;

struct weir_pool {
    unsigned n_threads; /* the caller's included */
    pthread_t *threads; /* n_started of them */
    unsigned n_started;
    scratch *scratches;   /* n_threads */
    pthread_mutex_t turn; /* held by the caller of weir_pool_run */
    pthread_mutex_t lock; /* protects what follows */
    pthread_cond_t work, done;
    uint64_t generation; /* of the current job */
    unsigned n_busy;
    unsigned next_index; /* thread numbers, given out at start */
    bool closing;
    job *job;
};

/* PyTorch may have set flush-to-zero on the thread that calls us, and threads inherit it. */
typedef struct float_mode {
    fenv_t environment;
} float_mode;

static void float_mode_enter(float_mode *saved)
{
    fegetenv(&saved->environment);
    fesetenv(FE_DFL_ENV);
#if defined(__SSE2__)
    _mm_setcsr(0x1f80); /* all exceptions masked, nearest even, no FTZ, no DAZ */
#endif
}

static void float_mode_leave(const float_mode *saved)
{
    fesetenv(&saved->environment);
}

static void draw_tasks(job *work, unsigned thread, pthread_mutex_t *lock)
{
    for (;;) {
        size_t task = atomic_fetch_add_explicit(&work->next, 1, memory_order_relaxed);
        if (task >= work->n_tasks)
            return;
        weir_status status = work->fn(work->context, task, thread);
        if (status == WEIR_OK)
            continue;
        atomic_store(&work->next, work->n_tasks);
        if (lock != NULL)
            pthread_mutex_lock(lock);
        if (task < atomic_load(&work->first_failed)) {
            atomic_store(&work->first_failed, task);
            work->status = status;
            weir_error_save(&work->error);
        }
        if (lock != NULL)
            pthread_mutex_unlock(lock);
    }
}

static void *worker_main(void *argument)
{
    weir_pool *pool = argument;
    float_mode unused;
    float_mode_enter(&unused);
    uint64_t seen = 0;
    pthread_mutex_lock(&pool->lock);
    unsigned index = pool->next_index++;
    while (!pool->closing) {
        if (pool->generation == seen) {
            pthread_cond_wait(&pool->work, &pool->lock);
            continue;
        }
        seen = pool->generation;
        job *work = pool->job;
        if (work == NULL)
            continue;
        pool->n_busy++;
        pthread_mutex_unlock(&pool->lock);
        draw_tasks(work, index, &pool->lock);
        pthread_mutex_lock(&pool->lock);
        if (--pool->n_busy == 0)
            pthread_cond_signal(&pool->done);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static unsigned default_threads(void)
{
    cpu_set_t set;
    unsigned n_cores = 1;
    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        n_cores = (unsigned)CPU_COUNT(&set);
    return weir_env_unsigned(WEIR_ENV_THREADS, n_cores);
}

static weir_status start_threads(weir_pool *pool)
{
    while (pool->n_started + 1 < pool->n_threads) {
        if (pthread_create(&pool->threads[pool->n_started], NULL, worker_main, pool) != 0)
            return weir_fail(WEIR_ERR_NO_MEMORY, "cannot start thread %u of %u",
                             pool->n_started + 1, pool->n_threads);
        pool->n_started++;
    }
    return WEIR_OK;
}

weir_status weir_pool_open(unsigned n_threads, weir_pool **out)
{
    if (n_threads == 0)
        n_threads = default_threads();
    if (n_threads == 0)
        n_threads = 1;
    if (n_threads > MAX_THREADS)
        return weir_fail(WEIR_ERR_INVALID, "%u threads wanted, at most %u are possible", n_threads,
                         MAX_THREADS);
    weir_pool *pool = weir_alloc_zeroed(1, sizeof(*pool));
    if (pool == NULL)
        return WEIR_ERR_NO_MEMORY;
    pool->n_threads = n_threads;
    pool->next_index = 1; /* 0 is the caller */
    pthread_mutex_init(&pool->turn, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->threads = weir_alloc_zeroed(n_threads, sizeof(*pool->threads));
    pool->scratches = weir_alloc_zeroed(n_threads, sizeof(*pool->scratches));
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (pool->threads != NULL && pool->scratches != NULL)
        status = start_threads(pool);
    if (status != WEIR_OK) {
        weir_pool_close(pool);
        return status;
    }
    *out = pool;
    return WEIR_OK;
}

void weir_pool_close(weir_pool *pool)
{
    if (pool == NULL)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->closing = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->n_started; i++)
        pthread_join(pool->threads[i], NULL);
    for (unsigned i = 0; pool->scratches != NULL && i < pool->n_threads; i++)
        weir_free(pool->scratches[i].data);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->turn);
    weir_free(pool->scratches);
    weir_free(pool->threads);
    weir_free(pool);
}

unsigned weir_pool_threads(const weir_pool *pool)
{
    return pool != NULL ? pool->n_threads : 1;
}

static void run_parallel(weir_pool *pool, job *work)
{
    pthread_mutex_lock(&pool->turn);
    pthread_mutex_lock(&pool->lock);
    pool->job = work;
    pool->generation++;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    draw_tasks(work, 0, &pool->lock);
    pthread_mutex_lock(&pool->lock);
    pool->job = NULL; /* who has not woken yet finds nothing */
    while (pool->n_busy > 0)
        pthread_cond_wait(&pool->done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    pthread_mutex_unlock(&pool->turn);
}

weir_status weir_pool_run(weir_pool *pool, size_t n_tasks, weir_task_fn fn, void *context)
{
    job work = { .fn = fn, .context = context, .n_tasks = n_tasks, .status = WEIR_OK };
    atomic_init(&work.next, 0);
    atomic_init(&work.first_failed, SIZE_MAX);
    float_mode saved;
    float_mode_enter(&saved);
    if (pool == NULL)
        draw_tasks(&work, 0, NULL);
    else
        run_parallel(pool, &work);
    float_mode_leave(&saved);
    if (work.status != WEIR_OK)
        weir_error_restore(&work.error);
    return work.status;
}

static pthread_key_t own_scratch_key;
static pthread_once_t own_scratch_once = PTHREAD_ONCE_INIT;

static void own_scratch_free(void *argument)
{
    scratch *own = argument;
    weir_free(own->data);
    weir_free(own);
}

static void own_scratch_make_key(void)
{
    pthread_key_create(&own_scratch_key, own_scratch_free);
}

/* Without a pool the scratch hangs on the thread and goes when the thread ends. */
static scratch *own_scratch(void)
{
    pthread_once(&own_scratch_once, own_scratch_make_key);
    scratch *own = pthread_getspecific(own_scratch_key);
    if (own == NULL) {
        own = weir_alloc_zeroed(1, sizeof(*own));
        if (own != NULL)
            pthread_setspecific(own_scratch_key, own);
    }
    return own;
}

static void *grow(scratch *mine, size_t n_bytes)
{
    if (mine == NULL)
        return NULL;
    if (mine->data == NULL || mine->n_bytes < n_bytes) {
        weir_free(mine->data);
        mine->n_bytes = 0;
        mine->data = weir_alloc_aligned(64, n_bytes);
        if (mine->data == NULL)
            return NULL;
        mine->n_bytes = n_bytes;
    }
    return mine->data;
}

void *weir_pool_scratch(weir_pool *pool, unsigned thread, size_t n_bytes)
{
    return grow(pool != NULL ? &pool->scratches[thread] : own_scratch(), n_bytes);
}

weir_status weir_pool_reserve(weir_pool *pool, size_t n_bytes)
{
    if (pool == NULL)
        return grow(own_scratch(), n_bytes) != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    weir_status status = WEIR_OK;
    pthread_mutex_lock(&pool->turn); /* nobody is in a task */
    for (unsigned i = 0; i < pool->n_threads && status == WEIR_OK; i++)
        status = grow(&pool->scratches[i], n_bytes) != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    pthread_mutex_unlock(&pool->turn);
    return status;
}
