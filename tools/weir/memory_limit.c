/* SPDX-License-Identifier: Apache-2.0 */
/* memory_limit.c - threads that stream through their share of two buffers. */
#include "memory_limit.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cli.h"
#include "median.h"

#define LINE 64u
#define BYTES_AHEAD 2048u
#define HUGE_PAGE ((size_t)2 << 20)
#define COPY_BYTES ((size_t)128 << 20)
#define COPY_ROUNDS 9

/* Reads n_read lines and writes n_written ones per turn, n_turns times. */
typedef void (*stream_fn)(const char *source, char *out, size_t n_read, size_t n_written,
                          size_t n_turns);

static void stream_c(const char *source, char *out, size_t n_read, size_t n_written, size_t n_turns)
{
    for (size_t t = 0; t < n_turns; t++, source += n_read * LINE, out += n_written * LINE) {
        uint64_t line[LINE / 8] = { 0 };
        for (size_t i = 0; i < n_read; i++) {
            uint64_t read[LINE / 8];
            memcpy(read, source + i * LINE, LINE);
            for (size_t k = 0; k < LINE / 8; k++)
                line[k] ^= read[k];
        }
        for (size_t i = 0; i < n_written; i++)
            memcpy(out + i * LINE, line, LINE);
    }
}

#if defined(__x86_64__)
/* Some way ahead, as fast kernels do: the processor's own prefetching stops at every page. */
static inline void prefetch(const char *line)
{
    _mm_prefetch((const char *)((uintptr_t)line + BYTES_AHEAD), _MM_HINT_T0);
}

__attribute__((target("avx2"))) static void
stream_avx2(const char *source, char *out, size_t n_read, size_t n_written, size_t n_turns)
{
    for (size_t t = 0; t < n_turns; t++, source += n_read * LINE, out += n_written * LINE) {
        __m256i low = _mm256_setzero_si256(), high = low;
        for (size_t i = 0; i < n_read; i++) {
            const __m256i *from = (const __m256i *)(const void *)(source + i * LINE);
            prefetch(source + i * LINE);
            low = _mm256_xor_si256(low, _mm256_load_si256(from));
            high = _mm256_xor_si256(high, _mm256_load_si256(from + 1));
        }
        for (size_t i = 0; i < n_written; i++) {
            _mm256_stream_si256((__m256i *)(void *)(out + i * LINE), low);
            _mm256_stream_si256((__m256i *)(void *)(out + i * LINE + 32), high);
        }
    }
    _mm_sfence();
}

__attribute__((target("avx512f"))) static void
stream_avx512(const char *source, char *out, size_t n_read, size_t n_written, size_t n_turns)
{
    for (size_t t = 0; t < n_turns; t++, source += n_read * LINE, out += n_written * LINE) {
        __m512i line = _mm512_setzero_si512();
        for (size_t i = 0; i < n_read; i++) {
            prefetch(source + i * LINE);
            line = _mm512_xor_si512(line, _mm512_load_si512(source + i * LINE));
        }
        for (size_t i = 0; i < n_written; i++)
            _mm512_stream_si512((__m512i *)(void *)(out + i * LINE), line);
    }
    _mm_sfence();
}
#endif

static stream_fn best_stream(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return stream_avx512;
    if (__builtin_cpu_supports("avx2"))
        return stream_avx2;
#endif
    return stream_c;
}

/* ---- threads ---------------------------------------------------------------------------------*/

/* Threads wait here until all of them are there, or until it is clear that they will not be. */
typedef struct gate {
    pthread_mutex_t lock;
    pthread_cond_t decided;
    enum { GATE_CLOSED, GATE_OPEN, GATE_GIVEN_UP } state;
} gate;

typedef struct share {
    stream_fn stream;
    const char *source;
    char *out;
    size_t n_read, n_written, n_turns;
    gate *start;
    double begun, ended;
} share;

static bool pass(gate *start)
{
    pthread_mutex_lock(&start->lock);
    while (start->state == GATE_CLOSED)
        pthread_cond_wait(&start->decided, &start->lock);
    bool open = start->state == GATE_OPEN;
    pthread_mutex_unlock(&start->lock);
    return open;
}

static void decide(gate *start, bool open)
{
    pthread_mutex_lock(&start->lock);
    start->state = open ? GATE_OPEN : GATE_GIVEN_UP;
    pthread_cond_broadcast(&start->decided);
    pthread_mutex_unlock(&start->lock);
}

static void *run_share(void *argument)
{
    share *mine = argument;
    if (!pass(mine->start))
        return NULL;
    mine->begun = weir_cli_now();
    mine->stream(mine->source, mine->out, mine->n_read, mine->n_written, mine->n_turns);
    mine->ended = weir_cli_now();
    return NULL;
}

/* Cuts the stream into one share per thread. */
static void cut_shares(const weir_memory_stream *stream, share *shares, gate *start)
{
    size_t done = 0;
    for (unsigned i = 0; i < stream->n_threads; i++) {
        size_t end = stream->n_turns * (i + 1) / stream->n_threads;
        shares[i] = (share){ .stream = best_stream(),
                             .source = (const char *)stream->source + done * stream->n_read * LINE,
                             .out = (char *)stream->out + done * stream->n_written * LINE,
                             .n_read = stream->n_read,
                             .n_written = stream->n_written,
                             .n_turns = end - done,
                             .start = start };
        done = end;
    }
}

double weir_memory_stream_seconds(const weir_memory_stream *stream)
{
    share shares[WEIR_MEMORY_LIMIT_THREADS];
    pthread_t threads[WEIR_MEMORY_LIMIT_THREADS];
    gate start = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, GATE_CLOSED };
    unsigned n = stream->n_threads, n_started = 1;
    cut_shares(stream, shares, &start);
    while (n_started < n &&
           pthread_create(&threads[n_started], NULL, run_share, &shares[n_started]) == 0)
        n_started++;
    decide(&start, n_started == n);
    run_share(&shares[0]);
    double begun = shares[0].begun, ended = shares[0].ended;
    for (unsigned i = 1; i < n_started; i++) {
        pthread_join(threads[i], NULL);
        begun = shares[i].begun < begun ? shares[i].begun : begun;
        ended = shares[i].ended > ended ? shares[i].ended : ended;
    }
    return n_started == n ? ended - begun : -1;
}

/* ---- memory ----------------------------------------------------------------------------------*/

static size_t whole_pages(size_t n_bytes)
{
    return (n_bytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
}

void *weir_memory_map(size_t n_bytes)
{
    /* A huge page more than needed, so that the start can be moved onto one. */
    size_t n_mapped = whole_pages(n_bytes) + HUGE_PAGE;
    char *memory = mmap(NULL, n_mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    size_t skip = (HUGE_PAGE - (uintptr_t)memory % HUGE_PAGE) % HUGE_PAGE;
    if (skip != 0)
        munmap(memory, skip);
    munmap(memory + skip + whole_pages(n_bytes), HUGE_PAGE - skip);
    memory += skip;
    madvise(memory, whole_pages(n_bytes), MADV_HUGEPAGE);
    memset(memory, 0, n_bytes);
    return memory;
}

void weir_memory_unmap(void *memory, size_t n_bytes)
{
    if (memory != NULL)
        munmap(memory, whole_pages(n_bytes));
}

double weir_memory_copy_gb_per_s(void)
{
    double rates[COPY_ROUNDS];
    long n_cores = sysconf(_SC_NPROCESSORS_ONLN);
    weir_memory_stream stream = { .source = weir_memory_map(COPY_BYTES),
                                  .out = weir_memory_map(COPY_BYTES),
                                  .n_read = 1,
                                  .n_written = 1,
                                  .n_turns = COPY_BYTES / LINE };
    stream.n_threads =
        n_cores < 1
            ? 1
            : (unsigned)(n_cores < WEIR_MEMORY_LIMIT_THREADS ? n_cores : WEIR_MEMORY_LIMIT_THREADS);
    bool good = stream.source != NULL && stream.out != NULL;
    for (int i = 0; i < COPY_ROUNDS && good; i++) {
        double seconds = weir_memory_stream_seconds(&stream);
        good = seconds > 0;
        rates[i] = good ? (double)COPY_BYTES / seconds * 1e-9 : 0;
    }
    weir_memory_unmap((void *)(uintptr_t)stream.source, COPY_BYTES);
    weir_memory_unmap(stream.out, COPY_BYTES);
    return good ? weir_median(rates, COPY_ROUNDS) : 0;
}
