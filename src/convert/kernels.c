/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.c - the ladder: each rung that this CPU has overwrites the table of the one below. */
#include "convert/kernels.h"

#include <pthread.h>

#include "base/cpu.h"
#include "base/digest.h"

static weir_kernel_table table = { .round_to_bf16 = weir_round_to_bf16_c };
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void climb(void)
{
#if defined(__x86_64__)
    if (!weir_cpu_has(WEIR_CPU_AVX2))
        return;
    table = (weir_kernel_table){ weir_bf16_cast_avx2, weir_fp32_cast_avx2, weir_fp8_128x128_avx2,
                                 weir_fp8_channel_avx2, weir_round_to_bf16_avx2 };
    if (!weir_cpu_has(WEIR_CPU_AVX512))
        return;
    table =
        (weir_kernel_table){ weir_bf16_cast_avx512, weir_fp32_cast_avx512, weir_fp8_128x128_avx512,
                             weir_fp8_channel_avx512, weir_round_to_bf16_avx512 };
#endif
}

const weir_kernel_table *weir_kernels(void)
{
    pthread_once(&once, climb);
    return &table;
}

weir_status weir_convert_nonfinite_tile(const weir_tile *tile, weir_convert_fn reference,
                                        size_t output_row_bytes)
{
    if (!tile->propagate)
        return WEIR_ERR_NONFINITE;
    weir_status status = reference(tile);
    if (status == WEIR_OK && tile->digest != NULL)
        weir_digest_rectangle(tile->digest, tile->out[0].data, tile->out[0].pitch_bytes,
                              tile->n_rows, output_row_bytes, tile->digest_word,
                              tile->digest_words_per_row);
    return status;
}
