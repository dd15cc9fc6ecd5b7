/* SPDX-License-Identifier: Apache-2.0 */
/* bench_work.c - lays tensors out in two pieces of GPU memory, as an allocator would, and fills
 * them with weights as they are. */
#include "bench_work.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 512u
#define MAX_SOURCES 512u
#define PATTERN_BYTES ((size_t)4 << 20)

/* The layer: hidden 2048, 32 heads of 128 + 64, lora 1536 and 512, 128 experts of 768. */
enum { HIDDEN = 2048, Q_LORA = 1536, KV_LORA = 512, ROPE = 64, HEADS = 32, HEAD = 128 };
enum { EXPERTS = 128, WIDTH = 768 };
enum { LARGE = 16384 };

static size_t aligned(size_t n_bytes)
{
    return (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Addresses count from NULL until the memory is there: a first walk measures, a second one places.
 */
static void *take(unsigned char *base, size_t *used, size_t n_bytes)
{
    size_t at = *used;
    *used += aligned(n_bytes);
    return base != NULL ? base + at : (unsigned char *)(uintptr_t)(ALIGNMENT + at);
}

static void add_source(weir_bench_work *work, weir_dtype dtype, weir_shape shape)
{
    uint64_t n_bytes = 0;
    weir_tensor *source = &work->sources[work->n_sources++];
    weir_tensor_bytes(dtype, &shape, &n_bytes);
    *source = (weir_tensor){ "bench.weight", dtype, shape,
                             take(work->in, &work->in_bytes, (size_t)n_bytes) };
    work->n_bytes += n_bytes;
}

/* Ends a destination whose sources are the last ones added. */
static void add_args(weir_bench_work *work, const weir_bench_wish *wish,
                     const weir_conversion *conversion, size_t n_sources, size_t n_experts)
{
    size_t n = n_sources * (n_experts != 0 ? n_experts : 1), number = work->n_args++;
    weir_convert_args *args = &work->args[number];
    weir_shape fused = { 0 }, shape;
    uint64_t n_bytes = 0;
    *args = (weir_convert_args)WEIR_CONVERT_ARGS_INIT;
    args->conversion = conversion;
    args->sources = work->sources + work->n_sources - n;
    args->n_sources = n_sources;
    args->n_experts = n_experts;
    args->axis = n_experts != 0;
    args->digests = wish->digests ? work->digests[number] : NULL;
    weir_convert_fused_shape(args, &fused);
    for (size_t i = 0; i < conversion->n_outputs; i++) {
        weir_conversion_output_shape(conversion, i, &fused, &shape);
        weir_tensor_bytes(conversion->outputs[i].dtype, &shape, &n_bytes);
        args->outputs[i] = take(work->out, &work->out_bytes, (size_t)n_bytes);
        work->n_bytes += i == 0 ? n_bytes : 0;
    }
}

static weir_shape matrix(uint64_t rows, uint64_t cols)
{
    return (weir_shape){ 2, { rows, cols } };
}

/* One destination of up to two matrices laid under each other. */
static void add_linear(weir_bench_work *work, const weir_bench_wish *wish, uint64_t rows,
                       uint64_t more_rows, uint64_t cols)
{
    add_source(work, wish->dtype, matrix(rows, cols));
    if (more_rows != 0)
        add_source(work, wish->dtype, matrix(more_rows, cols));
    add_args(work, wish, wish->conversion, more_rows != 0 ? 2 : 1, 0);
}

static void add_experts(weir_bench_work *work, const weir_bench_wish *wish, size_t n_sources,
                        uint64_t rows, uint64_t cols)
{
    for (size_t i = 0; i < EXPERTS * n_sources; i++)
        add_source(work, wish->dtype, matrix(rows, cols));
    add_args(work, wish, wish->conversion, n_sources, EXPERTS);
}

/* What stays as it is: norms, router, biases. */
static void add_plain(weir_bench_work *work, const weir_bench_wish *wish, const char *cast,
                      weir_shape shape)
{
    const weir_conversion *conversion = NULL;
    if (weir_conversion_get(cast, &conversion) != WEIR_OK)
        return;
    add_source(work, wish->dtype, shape);
    add_args(work, wish, conversion, 1, 0);
}

static void add_layer(weir_bench_work *work, const weir_bench_wish *wish)
{
    const uint64_t norms[] = { HIDDEN, HIDDEN, Q_LORA, KV_LORA, HEAD, HEAD };
    add_linear(work, wish, Q_LORA, KV_LORA + ROPE, HIDDEN);
    add_linear(work, wish, HEADS * (HEAD + ROPE), 0, Q_LORA);
    add_linear(work, wish, HEADS * 2 * HEAD, 0, KV_LORA);
    add_linear(work, wish, HIDDEN, 0, HEADS * HEAD);
    add_linear(work, wish, HEADS * HEAD, 0, Q_LORA); /* the indexer's queries and keys */
    add_linear(work, wish, HEAD, 0, HIDDEN);
    add_plain(work, wish, "bf16_cast", matrix(HEADS, HIDDEN));
    add_plain(work, wish, "bf16_cast", matrix(EXPERTS, HIDDEN));
    add_plain(work, wish, "fp32_cast", (weir_shape){ 1, { EXPERTS } });
    for (size_t i = 0; i < sizeof(norms) / sizeof(norms[0]); i++)
        add_plain(work, wish, "bf16_cast", (weir_shape){ 1, { norms[i] } });
    add_experts(work, wish, 2, WIDTH, HIDDEN);
    add_experts(work, wish, 1, HIDDEN, WIDTH);
    add_linear(work, wish, WIDTH, WIDTH, HIDDEN);
    add_linear(work, wish, HIDDEN, 0, WIDTH);
}

static void lay_out(weir_bench_work *work, const weir_bench_wish *wish)
{
    work->n_args = work->n_sources = work->in_bytes = work->out_bytes = work->n_bytes = 0;
    switch (wish->shape) {
    case WEIR_BENCH_MATRIX:
        add_linear(work, wish, wish->rows, 0, wish->cols);
        return;
    case WEIR_BENCH_LARGE:
        add_linear(work, wish, LARGE, 0, LARGE);
        return;
    case WEIR_BENCH_EXPERTS:
        add_experts(work, wish, 2, WIDTH, HIDDEN);
        return;
    default:
        add_layer(work, wish);
    }
}

/* Normal weights with a standard deviation of 0.02, near enough; any 4 bytes of it are a good fp32
 * and two good 16-bit values. */
static void fill_pattern(uint32_t *words, weir_dtype dtype)
{
    uint64_t state = 1;
    for (size_t i = 0; i < PATTERN_BYTES / 4; i++) {
        float sum = 0;
        for (int k = 0; k < 4; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            sum += (float)(uint32_t)(state >> 40) * 0x1p-24f - 0.5f;
        }
        uint32_t bits, half;
        sum = sum * 0.0346f;
        memcpy(&bits, &sum, 4);
        half = bits >> 16;
        if (dtype == WEIR_F16) /* a range in which fp16 is normal */
            half = (bits >> 16 & 0x8000u) | 0x2000u | (bits & 0xFFFu);
        words[i] = dtype == WEIR_F32 ? bits : half | (half ^ 0x8000u ^ (bits & 0x1Fu)) << 16;
    }
}

static weir_status fill_sources(weir_bench_work *work, weir_dtype dtype)
{
    void *pattern = NULL;
    weir_status status = weir_cuda_allocate_pinned(PATTERN_BYTES, &pattern);
    if (status != WEIR_OK)
        return status;
    fill_pattern(pattern, dtype);
    for (size_t at = 0; status == WEIR_OK && at < work->in_bytes; at += PATTERN_BYTES) {
        size_t left = work->in_bytes - at, n = left < PATTERN_BYTES ? left : PATTERN_BYTES;
        status = weir_cuda_copy(0, work->in + at, at == 0 ? pattern : work->in, n, NULL);
    }
    if (status == WEIR_OK)
        status = weir_cuda_stream_wait(0, NULL);
    weir_cuda_free_pinned(pattern);
    return status;
}

weir_status weir_bench_work_open(const weir_bench_wish *wish, weir_bench_work *work)
{
    memset(work, 0, sizeof(*work));
    work->sources = calloc(MAX_SOURCES, sizeof(*work->sources));
    if (work->sources == NULL)
        return WEIR_ERR_NO_MEMORY;
    lay_out(work, wish);
    void *in = NULL, *out = NULL;
    weir_status status = weir_cuda_allocate(0, work->in_bytes, &in);
    work->in = in;
    if (status == WEIR_OK)
        status = weir_cuda_allocate(0, work->out_bytes, &out);
    work->out = out;
    if (status == WEIR_OK) {
        lay_out(work, wish);
        status = fill_sources(work, wish->dtype);
    }
    if (status != WEIR_OK)
        weir_bench_work_close(work);
    return status;
}

void weir_bench_work_close(weir_bench_work *work)
{
    weir_cuda_free(0, work->in);
    weir_cuda_free(0, work->out);
    free(work->sources);
    memset(work, 0, sizeof(*work));
}
