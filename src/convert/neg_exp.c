/* SPDX-License-Identifier: Apache-2.0 */
/* neg_exp.c - neg_exp: what engines compute of a logarithm as they load it, -exp(x) in fp32, so
 * that the parameter can be written in its place (docs/formats.md).
 */
#include "convert/kernels.h"
#include "convert/source_value.h"
#include "numeric/exponential.h"

/* Refuses what is not finite afterwards: -exp(x) of a large x would be served as -Inf. */
weir_status weir_neg_exp_c(const weir_tile *tile)
{
    for (size_t r = 0; r < tile->n_rows; r++) {
        float *out = (float *)(void *)((char *)tile->out[0].data + r * tile->out[0].pitch_bytes);
        for (size_t c = 0; c < tile->n_cols; c++) {
            float value = weir_source_value(tile->dtype, tile->rows[r], c);
            out[c] = weir_neg_exp(value);
            if (!tile->propagate && !(weir_value_is_finite(value) && weir_value_is_finite(out[c])))
                return WEIR_ERR_NONFINITE;
        }
    }
    return WEIR_OK;
}

const weir_conversion weir_neg_exp_row = {
    .size = sizeof(weir_conversion),
    .name = "neg_exp",
    .summary = "float32 -exp(x), unquantised: A of mamba layers, made of A_log",
    .compile_target = WEIR_TARGET_VLLM_FUSED,
    .compile_metadata = "{\"dtype\":\"float32\",\"function\":\"neg_exp\"}",
    .sources = WEIR_SOURCE_FLOATS,
    .border_rows = 1,
    .border_cols = 1,
    .n_outputs = 1,
    .outputs = { { "weight", WEIR_F32, 1, 1 } },
    .reference = weir_neg_exp_c,
};
