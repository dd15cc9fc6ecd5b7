/* SPDX-License-Identifier: Apache-2.0 */
/* bench_weights.c - a block of random numbers, copied to where each tensor lies. */
#include "bench_weights.h"

#include <stdlib.h>
#include <string.h>

#include "memory_limit.h"
#include "weir/cuda.h"

#define LEAST_BLOCK ((uint64_t)1 << 20)
#define MOST_BLOCK ((uint64_t)256 << 20)
#define ALIGNMENT 256u
#define GOLDEN_STEP 0x9E3779B97F4A7C15ull

/* The finaliser of splitmix64. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

/* Four bf16 with any sign and mantissa, and an exponent from 2^-17 to 2^-2: finite as bf16, and a
 * pair of them as fp32. */
static void make_block(unsigned char *block, uint64_t n_bytes, uint64_t seed)
{
    const uint64_t lanes = 0x0001000100010001ull;
    for (uint64_t i = 0; i < n_bytes / 8; i++) {
        uint64_t random = mix(seed + i * GOLDEN_STEP);
        uint64_t exponents = ((random >> 7) & (0xF * lanes)) + 110 * lanes;
        uint64_t word = (random & (0x807F * lanes)) | exponents << 7;
        memcpy(block + 8 * i, &word, 8);
    }
}

static uint64_t bytes_of(const weir_tensor *tensor)
{
    uint64_t n_bytes = 0;
    weir_tensor_bytes(tensor->dtype, &tensor->shape, &n_bytes); /* the family has checked it */
    return n_bytes;
}

static uint64_t rounded(uint64_t n_bytes)
{
    return (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

bool weir_bench_weights_open(const char *family, const char *config, weir_naming naming,
                             uint64_t seed, weir_bench_weights *out)
{
    weir_config *described = NULL;
    *out = (weir_bench_weights){ .seed = seed };
    weir_status status = weir_config_open(config, &described);
    if (status == WEIR_OK)
        status = weir_family_sources(family, described, naming, &out->tensors, &out->n_tensors);
    weir_config_close(described);
    if (status != WEIR_OK)
        return weir_cli_fail(), false;
    for (size_t i = 0; i < out->n_tensors; i++) {
        uint64_t n_bytes = bytes_of(&out->tensors[i]);
        out->n_bytes += n_bytes;
        out->n_weights += n_bytes * 8 / weir_dtype_bits(out->tensors[i].dtype);
        out->arena_bytes += rounded(n_bytes);
    }
    out->block_bytes = rounded(out->n_bytes);
    out->block_bytes = out->block_bytes < LEAST_BLOCK  ? LEAST_BLOCK
                       : out->block_bytes > MOST_BLOCK ? MOST_BLOCK
                                                       : out->block_bytes;
    out->block = weir_memory_map(out->block_bytes);
    if (out->block == NULL)
        return weir_cli_error("out of memory"), false;
    make_block(out->block, out->block_bytes, seed);
    return true;
}

static weir_status place_on_gpu(weir_bench_weights *weights)
{
    unsigned device = weights->place.device;
    void *arena = NULL, *block = NULL;
    weir_status status = weir_cuda_stream_open(device, &weights->stream);
    if (status == WEIR_OK)
        status = weir_cuda_allocate(device, weights->block_bytes, &block);
    weights->device_block = block;
    if (status == WEIR_OK)
        status =
            weir_cuda_copy(device, block, weights->block, weights->block_bytes, weights->stream);
    if (status == WEIR_OK)
        status = weir_cuda_allocate(device, weights->arena_bytes, &arena);
    weights->arena = arena;
    return status == WEIR_OK ? weir_cuda_stream_wait(device, weights->stream) : status;
}

bool weir_bench_weights_place(weir_bench_weights *weights, weir_bench_place place)
{
    weights->place = place;
    if (!place.cuda)
        weights->arena = weir_memory_map(weights->arena_bytes);
    else if (place_on_gpu(weights) != WEIR_OK)
        return weir_cli_fail(), false;
    if (weights->arena == NULL)
        return weir_cli_error("no memory for %s of weights",
                              weir_cli_bytes_text(weights->n_bytes).text),
               false;
    unsigned char *at = weights->arena;
    for (size_t i = 0; i < weights->n_tensors; i++) {
        weights->tensors[i].data = at;
        at += rounded(bytes_of(&weights->tensors[i]));
    }
    return true;
}

/* Where in the block a tensor begins. */
static uint64_t start_of(const weir_bench_weights *weights, size_t index, uint64_t version)
{
    uint64_t random = mix(mix(weights->seed + version * GOLDEN_STEP) + index);
    return random % (weights->block_bytes / ALIGNMENT) * ALIGNMENT;
}

/* Copies n_bytes of a tensor out of the block, which is read round and round. */
static weir_status copy_tensor(const weir_bench_weights *weights, const unsigned char *block,
                               uint64_t start, unsigned char *to, uint64_t n_bytes)
{
    weir_status status = WEIR_OK;
    bool on_gpu = block == weights->device_block;
    for (uint64_t done = 0, n; done < n_bytes && status == WEIR_OK; done += n, start = 0) {
        n = weights->block_bytes - start;
        n = n < n_bytes - done ? n : n_bytes - done;
        if (on_gpu)
            status =
                weir_cuda_copy(weights->place.device, to + done, block + start, n, weights->stream);
        else
            memcpy(to + done, block + start, n);
    }
    return status;
}

bool weir_bench_weights_fill(weir_bench_weights *weights, uint64_t version)
{
    const unsigned char *block = weights->place.cuda ? weights->device_block : weights->block;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < weights->n_tensors && status == WEIR_OK; i++)
        status = copy_tensor(weights, block, start_of(weights, i, version),
                             weights->tensors[i].data, bytes_of(&weights->tensors[i]));
    if (status == WEIR_OK && weights->place.cuda)
        status = weir_cuda_stream_wait(weights->place.device, weights->stream);
    return status == WEIR_OK || (weir_cli_fail(), false);
}

void weir_bench_weights_copy(const weir_bench_weights *weights, size_t index, uint64_t version,
                             void *out, uint64_t n_bytes)
{
    copy_tensor(weights, weights->block, start_of(weights, index, version), out, n_bytes);
}

void weir_bench_weights_close(weir_bench_weights *weights)
{
    if (weights->place.cuda) {
        weir_cuda_free(weights->place.device, weights->arena);
        weir_cuda_free(weights->place.device, weights->device_block);
        weir_cuda_stream_close(weights->place.device, weights->stream);
    } else {
        weir_memory_unmap(weights->arena, weights->arena_bytes);
    }
    weir_memory_unmap(weights->block, weights->block_bytes);
    weir_family_sources_free(weights->tensors);
    *weights = (weir_bench_weights){ 0 };
}
