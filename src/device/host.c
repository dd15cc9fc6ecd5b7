/* SPDX-License-Identifier: Apache-2.0 */
/* host.c - mmap with huge pages, and parallel copy and swap over a pool.
 *
 * A large copy writes past the cache (non-temporal stores): an ordinary store first reads the line
 * that it is about to overwrite, a third of the traffic for nothing.
 */
#include "device/host.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "base/alloc.h"
#include "base/error.h"
#include "base/pool.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define LINE ((size_t)64)
#define PAGE ((size_t)4096)
#define N_STREAMS ((size_t)4)
#define STREAM_BYTES ((size_t)1 << 20) /* smaller copies may well be read again from the cache */
#define TASK_BYTES ((size_t)4 << 20)
#define BOUNCE_BYTES ((size_t)16 << 10) /* fits the first-level cache beside both ranges */

static size_t mapped_bytes(size_t n_bytes)
{
    size_t unit = n_bytes >= HUGE_PAGE ? HUGE_PAGE : (size_t)sysconf(_SC_PAGESIZE);
    return n_bytes == 0 ? unit : (n_bytes + unit - 1) / unit * unit;
}

/* Maps one huge page too many and gives back what lies before and behind the aligned part. */
static void *map_aligned(size_t n_bytes)
{
    size_t slack = n_bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
    uint8_t *start =
        mmap(NULL, n_bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || slack == 0)
        return start;
    size_t before = (HUGE_PAGE - (uintptr_t)start % HUGE_PAGE) % HUGE_PAGE;
    if (before > 0)
        munmap(start, before);
    if (slack > before)
        munmap(start + before + n_bytes, slack - before);
    madvise(start + before, n_bytes, MADV_HUGEPAGE); /* advice: a refusal costs speed alone */
    return start + before;
}

weir_status weir_host_allocate(size_t n_bytes, void **out)
{
    if (n_bytes > SIZE_MAX / 2)
        return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory: %zu bytes wanted", n_bytes);
    if (!weir_alloc_note(n_bytes))
        return WEIR_ERR_NO_MEMORY;
    void *data = map_aligned(mapped_bytes(n_bytes));
    if (data == MAP_FAILED)
        return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory: %zu bytes wanted", n_bytes);
    *out = data;
    return WEIR_OK;
}

void weir_host_free(void *data, size_t n_bytes)
{
    if (data != NULL)
        munmap(data, mapped_bytes(n_bytes));
}

#if defined(__SSE2__)
static inline void stream_line(uint8_t *dst, const uint8_t *src)
{
    const __m128i *from = (const __m128i *)(const void *)src;
    __m128i *to = (__m128i *)(void *)dst;
    __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
    __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
    _mm_stream_si128(to, a);
    _mm_stream_si128(to + 1, b);
    _mm_stream_si128(to + 2, c);
    _mm_stream_si128(to + 3, d);
}

/* Walks four pages at once: each has its own hardware prefetch stream, and one alone does not keep
 * a core's share of the memory busy. */
static void stream_pages(uint8_t *dst, const uint8_t *src)
{
    for (size_t at = 0; at < PAGE; at += LINE) {
        for (size_t page = 0; page < N_STREAMS; page++)
            stream_line(dst + page * PAGE + at, src + page * PAGE + at);
    }
}

static void copy_stream(uint8_t *dst, const uint8_t *src, size_t n_bytes)
{
    size_t head = (LINE - (uintptr_t)dst % LINE) % LINE; /* streamed stores must be aligned */
    if (head > n_bytes)
        head = n_bytes;
    memcpy(dst, src, head);
    size_t at = head;
    for (; n_bytes - at >= N_STREAMS * PAGE; at += N_STREAMS * PAGE)
        stream_pages(dst + at, src + at);
    for (; n_bytes - at >= LINE; at += LINE)
        stream_line(dst + at, src + at);
    memcpy(dst + at, src + at, n_bytes - at);
    _mm_sfence(); /* whoever is told that the copy is done must see the streamed stores */
}
#else
static void copy_stream(uint8_t *dst, const uint8_t *src, size_t n_bytes)
{
    memcpy(dst, src, n_bytes);
}
#endif

typedef struct ranges {
    uint8_t *a;
    uint8_t *b; /* copy: only read */
    size_t n_bytes;
} ranges;

static ranges ranges_of_task(const ranges *all, size_t task)
{
    size_t start = task * TASK_BYTES;
    size_t left = all->n_bytes - start;
    return (ranges){ all->a + start, all->b + start, left < TASK_BYTES ? left : TASK_BYTES };
}

static weir_status copy_task(void *context, size_t task, unsigned thread)
{
    (void)thread;
    ranges part = ranges_of_task(context, task);
    copy_stream(part.a, part.b, part.n_bytes);
    return WEIR_OK;
}

static weir_status swap_task(void *context, size_t task, unsigned thread)
{
    (void)thread;
    ranges part = ranges_of_task(context, task);
    uint8_t bounce[BOUNCE_BYTES];
    while (part.n_bytes > 0) {
        size_t n = part.n_bytes < BOUNCE_BYTES ? part.n_bytes : BOUNCE_BYTES;
        memcpy(bounce, part.a, n);
        memcpy(part.a, part.b, n);
        memcpy(part.b, bounce, n);
        part.a += n, part.b += n, part.n_bytes -= n;
    }
    return WEIR_OK;
}

static void run(weir_pool *pool, ranges *all, weir_task_fn fn)
{
    size_t n_tasks = (all->n_bytes + TASK_BYTES - 1) / TASK_BYTES;
    weir_pool_run(n_tasks > 1 ? pool : NULL, n_tasks, fn, all); /* the tasks cannot fail */
}

void weir_host_copy(weir_pool *pool, void *dst, const void *src, size_t n_bytes)
{
    if (n_bytes < STREAM_BYTES) {
        if (n_bytes > 0)
            memcpy(dst, src, n_bytes);
        return;
    }
    ranges all = { dst, (uint8_t *)(uintptr_t)src, n_bytes };
    run(pool, &all, copy_task);
}

void weir_host_swap(weir_pool *pool, void *a, void *b, size_t n_bytes)
{
    ranges all = { a, b, n_bytes };
    run(pool, &all, swap_task);
}
