/* SPDX-License-Identifier: Apache-2.0 */
/* Any bits, shape, cut and mixture of sources: the fastest kernels of this CPU against the
 * reference, bytes, digests and verdict alike. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "weir/convert.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

#define MAX_SOURCES 3
#define MAX_ROWS 140u
#define MAX_COLS 200u

typedef struct input {
    const uint8_t *data;
    size_t n_bytes;
} input;

static uint8_t take_byte(input *in)
{
    if (in->n_bytes == 0)
        return 0;
    in->n_bytes--;
    return *in->data++;
}

/* Repeats what is left of the input over the tensor. */
static void fill(void *out, size_t n_bytes, const input *in)
{
    for (size_t i = 0; i < n_bytes; i++)
        ((uint8_t *)out)[i] = in->n_bytes != 0 ? in->data[i % in->n_bytes] : 0;
}

static weir_status run(weir_convert_args args, bool reference, uint8_t *out, float *scales,
                       weir_digest digests[2])
{
    args.reference = reference;
    args.outputs[0] = out;
    args.outputs[1] = args.conversion->n_outputs > 1 ? scales : NULL;
    args.digests = digests;
    return weir_convert(&args);
}

static void compare(const weir_convert_args *args)
{
    static uint8_t out[2][MAX_SOURCES * MAX_ROWS * MAX_COLS * 4];
    static float scales[2][MAX_SOURCES * MAX_ROWS * 8];
    weir_digest digests[2][2] = { { { 0, 0 } } };
    memset(out, 0x5A, sizeof(out));
    memset(scales, 0x5A, sizeof(scales));
    weir_status status = run(*args, true, out[0], scales[0], digests[0]);
    if (status != run(*args, false, out[1], scales[1], digests[1]))
        abort();
    if (status != WEIR_OK)
        return;
    if (memcmp(out[0], out[1], sizeof(out[0])) != 0 ||
        memcmp(scales[0], scales[1], sizeof(scales[0])) != 0 ||
        memcmp(digests[0], digests[1], sizeof(digests[0])) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static const char *const names[] = { "bf16_cast", "fp32_cast", "fp8_128x128",
                                         "cutlass_fp8_e4m3_per_channel" };
    static const weir_dtype dtypes[] = { WEIR_BF16, WEIR_F16, WEIR_F32 };
    static uint32_t store[MAX_SOURCES][MAX_ROWS * MAX_COLS];
    input in = { data, n_bytes };
    weir_tensor sources[MAX_SOURCES];
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    uint8_t choice = take_byte(&in);
    if (weir_conversion_get(names[choice & 3], &args.conversion) != WEIR_OK)
        abort();
    args.propagate = choice & 4;
    args.round_masters = choice & 8;
    args.sources = sources;
    args.n_sources = 1 + (choice >> 4) % MAX_SOURCES;
    size_t cols = take_byte(&in) % (MAX_COLS + 1);
    for (size_t i = 0; i < args.n_sources; i++) {
        size_t rows = take_byte(&in) % (MAX_ROWS + 1);
        weir_dtype dtype = dtypes[take_byte(&in) % 3];
        sources[i] = (weir_tensor){ "w", dtype, { 2, { rows, cols } }, store[i] };
    }
    for (size_t i = 0; i < args.n_sources; i++)
        fill(store[i], sizeof(store[i]), &in);
    compare(&args);
    return 0;
}
