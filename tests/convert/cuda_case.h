/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_case.h - conversions on a GPU beside the C reference: sources are copied over, outputs are
 * poisoned and fenced by canaries there, and everything comes back to be compared. */
#ifndef WEIR_TESTS_CUDA_CASE_H
#define WEIR_TESTS_CUDA_CASE_H

#include "convert/convert_case.h"
#include "weir/cuda.h"

#define MAX_CASES 512
#define MAX_BLOCKS 8192

/* True where there is a GPU; else says why not, and the caller skips. WEIR_TEST_REQUIRE_GPU turns
 * the skip into a failure, so that a GPU machine cannot pass by skipping. */
static inline bool have_gpu(void)
{
    unsigned n = 0;
    if (weir_cuda_devices(&n) == WEIR_OK)
        return true;
    if (getenv("WEIR_TEST_REQUIRE_GPU") != NULL)
        fail_msg("a GPU is required: %s", weir_last_error());
    print_message("SKIPPED: %s\n", weir_last_error());
    return false;
}

static inline void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s", weir_last_error());
}

/* A piece of GPU memory between canaries. */
typedef struct device_block {
    unsigned char *block, *data;
    size_t n_bytes;
} device_block;

/* One destination: the host's args and outcome, and the same on the GPU. */
typedef struct cuda_case {
    weir_convert_args host, device;
    converted want;
    weir_status want_status;
    weir_digest got_digests[WEIR_MAX_OUTPUTS];
    device_block out[WEIR_MAX_OUTPUTS];
    weir_tensor *host_sources, *device_sources;
} cuda_case;

typedef struct cuda_rig {
    weir_cuda_batch *batch;
    void *stream;
    size_t n_cases, n_blocks;
    cuda_case cases[MAX_CASES];
    void *blocks[MAX_BLOCKS];      /* of GPU memory */
    void *host_blocks[MAX_BLOCKS]; /* of the sources */
    size_t n_host_blocks;
    weir_convert_args args[MAX_CASES];
} cuda_rig;

static inline cuda_rig *rig_open(void)
{
    cuda_rig *rig = calloc(1, sizeof(*rig));
    assert_non_null(rig);
    must(weir_cuda_batch_open(0, &rig->batch));
    must(weir_cuda_stream_open(0, &rig->stream));
    return rig;
}

static inline void *rig_device(cuda_rig *rig, size_t n_bytes)
{
    void *data = NULL;
    assert_true(rig->n_blocks < MAX_BLOCKS);
    must(weir_cuda_allocate(0, n_bytes, &data));
    rig->blocks[rig->n_blocks++] = data;
    return data;
}

static inline void *rig_host(cuda_rig *rig, size_t n_bytes)
{
    assert_true(rig->n_host_blocks < MAX_BLOCKS);
    void *data = calloc(1, n_bytes + 64);
    assert_non_null(data);
    rig->host_blocks[rig->n_host_blocks++] = data;
    return data;
}

/* Forgets all cases. */
static inline void rig_clear(cuda_rig *rig)
{
    must(weir_cuda_stream_wait(0, rig->stream));
    for (size_t i = 0; i < rig->n_cases; i++) {
        converted_free(&rig->cases[i].want);
        free(rig->cases[i].host_sources);
        free(rig->cases[i].device_sources);
    }
    for (size_t i = 0; i < rig->n_blocks; i++)
        weir_cuda_free(0, rig->blocks[i]);
    for (size_t i = 0; i < rig->n_host_blocks; i++)
        free(rig->host_blocks[i]);
    rig->n_cases = rig->n_blocks = rig->n_host_blocks = 0;
}

static inline void rig_close(cuda_rig *rig)
{
    rig_clear(rig);
    weir_cuda_batch_close(rig->batch);
    weir_cuda_stream_close(0, rig->stream);
    free(rig);
}

static inline device_block rig_output(cuda_rig *rig, size_t n_bytes, size_t offset)
{
    size_t total = n_bytes + offset + 2 * CANARY_BYTES;
    device_block b = { .n_bytes = n_bytes };
    b.block = rig_device(rig, total);
    b.data = b.block + CANARY_BYTES + offset;
    must(weir_cuda_fill(0, b.block, CANARY, total, rig->stream));
    must(weir_cuda_fill(0, b.data, POISON, n_bytes, rig->stream));
    return b;
}

/* Adds a case whose sources lie on the host; `offset` bytes move source and output 0 off their
 * alignment (a multiple of the element). The reference converts it at once. */
static inline cuda_case *rig_add(cuda_rig *rig, weir_convert_args args, size_t offset)
{
    assert_true(rig->n_cases < MAX_CASES);
    cuda_case *c = &rig->cases[rig->n_cases++];
    size_t n = args.n_sources * (args.n_experts != 0 ? args.n_experts : 1);
    memset(c, 0, sizeof(*c));
    c->host_sources = calloc(n, sizeof(weir_tensor));
    c->device_sources = calloc(n, sizeof(weir_tensor));
    assert_true(c->host_sources != NULL && c->device_sources != NULL);
    for (size_t i = 0; i < n; i++) {
        uint64_t n_bytes;
        c->host_sources[i] = c->device_sources[i] = args.sources[i];
        must(weir_tensor_bytes(args.sources[i].dtype, &args.sources[i].shape, &n_bytes));
        unsigned char *data = rig_device(rig, n_bytes + 64);
        c->device_sources[i].data = data + offset;
        must(weir_cuda_copy(0, data + offset, args.sources[i].data, n_bytes, rig->stream));
    }
    c->host = args;
    c->host.sources = c->host_sources;
    c->host.reference = true;
    c->want_status = convert_into(&c->want, c->host, 0);
    c->device = args;
    c->device.sources = c->device_sources;
    c->device.digests = c->got_digests;
    for (size_t i = 0; i < args.conversion->n_outputs; i++) {
        c->out[i] = rig_output(rig, c->want.out[i].n_bytes, i == 0 ? offset : 0);
        c->device.outputs[i] = c->out[i].data;
    }
    return c;
}

/* Starts all cases as one batch and waits. */
static inline weir_status rig_run(cuda_rig *rig)
{
    for (size_t i = 0; i < rig->n_cases; i++)
        rig->args[i] = rig->cases[i].device;
    weir_status status = weir_cuda_batch_start(rig->batch, rig->args, rig->n_cases, rig->stream);
    return status == WEIR_OK ? weir_cuda_batch_wait(rig->batch) : status;
}

static inline void fail_at(const cuda_case *c, size_t output, size_t byte, int got, int want)
{
    char text[WEIR_SHAPE_TEXT];
    fail_msg("%s of %s %s (%zu sources, %zu experts%s%s): output %zu byte %zu is %02X, not %02X",
             c->host.conversion->name, weir_dtype_name(c->host.sources[0].dtype),
             weir_shape_text(&c->host.sources[0].shape, text, sizeof(text)), c->host.n_sources,
             c->host.n_experts, c->host.propagate ? ", propagate" : "",
             c->host.round_masters ? ", rounded" : "", output, byte, got, want);
}

/* Outputs, digests and canaries of one case that the reference took. */
static inline void case_check(cuda_rig *rig, cuda_case *c)
{
    for (size_t i = 0; i < c->want.n_outputs; i++) {
        const device_block *b = &c->out[i];
        size_t total = (size_t)(b->data - b->block) + b->n_bytes + CANARY_BYTES;
        unsigned char *got = malloc(total);
        assert_non_null(got);
        must(weir_cuda_copy(0, got, b->block, total, rig->stream));
        must(weir_cuda_stream_wait(0, rig->stream));
        const unsigned char *data = got + (b->data - b->block), *want = c->want.out[i].data;
        for (size_t k = 0; k < b->n_bytes; k++)
            if (data[k] != want[k])
                fail_at(c, i, k, data[k], want[k]);
        for (const unsigned char *p = got; p < data; p++)
            assert_int_equal(*p, CANARY);
        for (size_t k = 0; k < CANARY_BYTES; k++)
            assert_int_equal(data[b->n_bytes + k], CANARY);
        free(got);
        if (memcmp(&c->got_digests[i], &c->want.digests[i], sizeof(weir_digest)) != 0)
            fail_at(c, i, 0, -1, -1); /* the bytes are right, their digest is not */
    }
}

static inline void rig_check(cuda_rig *rig)
{
    must(rig_run(rig));
    for (size_t i = 0; i < rig->n_cases; i++) {
        assert_int_equal(rig->cases[i].want_status, WEIR_OK);
        case_check(rig, &rig->cases[i]);
    }
}

/* A tensor of random values on the host. */
static inline weir_tensor rig_tensor(cuda_rig *rig, const char *name, weir_dtype dtype,
                                     weir_shape shape, regime kind, uint64_t *seed)
{
    uint64_t n_bytes;
    must(weir_tensor_bytes(dtype, &shape, &n_bytes));
    weir_tensor tensor = { name, dtype, shape, rig_host(rig, n_bytes) };
    fill(tensor.data, dtype, n_bytes / (weir_dtype_bits(dtype) / 8), kind, seed);
    return tensor;
}

#endif
