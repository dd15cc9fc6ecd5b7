/* SPDX-License-Identifier: Apache-2.0 */
/* bench_gpu_copy.c - what a GPU copies within itself, to another one, and from and to the host. */
#include <stdio.h>

#include "bench_copy.h"
#include "median.h"
#include "weir/cuda.h"

/* One copy, queued in a stream of `device`. */
typedef struct gpu_copy {
    unsigned device;
    void *to;
    const void *from;
    uint64_t n_bytes;
    void *stream;
    weir_cuda_timer *timer;
} gpu_copy;

static weir_status time_once(const gpu_copy *copy, double *out_seconds)
{
    weir_status status = weir_cuda_timer_begin(copy->timer, copy->stream);
    if (status == WEIR_OK)
        status = weir_cuda_copy(copy->device, copy->to, copy->from, copy->n_bytes, copy->stream);
    if (status == WEIR_OK)
        status = weir_cuda_timer_end(copy->timer, copy->stream);
    return status == WEIR_OK ? weir_cuda_timer_seconds(copy->timer, out_seconds) : status;
}

static void measure(gpu_copy *copy, weir_bench_way *way)
{
    double rates[WEIR_BENCH_COPY_ROUNDS], seconds = 0;
    uint64_t counted = way->both_counted ? 2 * copy->n_bytes : copy->n_bytes;
    weir_status status = weir_cuda_stream_open(copy->device, &copy->stream);
    if (status == WEIR_OK)
        status = weir_cuda_timer_open(copy->device, &copy->timer);
    for (int round = -2; status == WEIR_OK && round < WEIR_BENCH_COPY_ROUNDS; round++) {
        status = time_once(copy, &seconds);
        if (round >= 0)
            rates[round] = (double)counted / seconds * 1e-9;
    }
    if (status == WEIR_OK)
        way->gb_per_s = weir_median(rates, WEIR_BENCH_COPY_ROUNDS);
    else
        weir_bench_way_fail(way, status);
    weir_cuda_timer_close(copy->timer);
    weir_cuda_stream_close(copy->device, copy->stream);
}

/* Memory of a GPU that holds something else than zeros. */
static weir_status allocate(unsigned device, uint64_t n_bytes, void **out)
{
    weir_status status = weir_cuda_allocate(device, n_bytes, out);
    if (status == WEIR_OK)
        status = weir_cuda_fill(device, *out, 0x5a, n_bytes, NULL);
    return status == WEIR_OK ? weir_cuda_stream_wait(device, NULL) : status;
}

static void between_gpus(const weir_bench_copy *bench, unsigned from, unsigned to,
                         weir_bench_way *way)
{
    void *source = NULL, *target = NULL;
    weir_status status = allocate(from, bench->n_bytes, &source);
    if (status == WEIR_OK)
        status = allocate(to, bench->n_bytes, &target);
    if (status == WEIR_OK && from != to)
        status = weir_cuda_peer_enable(from, to);
    gpu_copy copy = { from, target, source, bench->n_bytes, NULL, NULL };
    if (status == WEIR_OK)
        measure(&copy, way);
    else
        weir_bench_way_fail(way, status);
    weir_cuda_free(to, target);
    weir_cuda_free(from, source);
}

void weir_bench_gpu_device(const weir_bench_copy *bench, weir_bench_way *way)
{
    snprintf(way->over, sizeof(way->over), "GPU %u", bench->gpus[0]);
    between_gpus(bench, bench->gpus[0], bench->gpus[0], way);
}

void weir_bench_gpu_peer(const weir_bench_copy *bench, weir_bench_way *way)
{
    if (bench->n_gpus < 2) {
        snprintf(way->why_not, sizeof(way->why_not), "needs two GPUs, there is one");
        return;
    }
    snprintf(way->over, sizeof(way->over), "GPU %u to %u", bench->gpus[0], bench->gpus[1]);
    between_gpus(bench, bench->gpus[0], bench->gpus[1], way);
}

static void with_host(const weir_bench_copy *bench, bool to_host, weir_bench_way *way)
{
    unsigned device = bench->gpus[0];
    void *there = NULL, *pinned = NULL;
    snprintf(way->over, sizeof(way->over), "GPU %u, pinned", device);
    weir_status status = allocate(device, bench->n_bytes, &there);
    if (status == WEIR_OK)
        status = weir_cuda_allocate_pinned(bench->n_bytes, &pinned);
    gpu_copy copy = {
        device, to_host ? pinned : there, to_host ? there : pinned, bench->n_bytes, NULL, NULL
    };
    if (status == WEIR_OK)
        measure(&copy, way);
    else
        weir_bench_way_fail(way, status);
    weir_cuda_free_pinned(pinned);
    weir_cuda_free(device, there);
}

void weir_bench_gpu_to_host(const weir_bench_copy *bench, weir_bench_way *way)
{
    with_host(bench, true, way);
}

void weir_bench_gpu_from_host(const weir_bench_copy *bench, weir_bench_way *way)
{
    with_host(bench, false, way);
}
