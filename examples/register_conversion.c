/* SPDX-License-Identifier: Apache-2.0 */
/* register_conversion.c - a conversion of one's own: int8, one scale per row. It is registered,
 * selected by a rule from a config.json, run on all cores, and checked against the digests that
 * came with it. Run it without arguments.
 */
#include <math.h>
#include <stdio.h>

#include "weir/checkpoint.h"

#define ROWS 1000
#define COLS 777

/* The specification: called from many threads at once, on any piece of rows that are whole. */
static weir_status int8_rows(const weir_tile *tile)
{
    for (size_t r = 0; r < tile->n_rows; r++) {
        const float *in = tile->rows[r];
        int8_t *out = (int8_t *)tile->out[0].data + r * tile->out[0].pitch_bytes;
        float *scale = (float *)(void *)((char *)tile->out[1].data + r * tile->out[1].pitch_bytes);
        float amax = 0;
        for (size_t c = 0; c < tile->n_cols; c++) {
            if (!isfinite(in[c]) && !tile->propagate)
                return WEIR_ERR_NONFINITE; /* Weir finds tensor and index */
            amax = fmaxf(amax, fabsf(in[c]));
        }
        *scale = fmaxf(amax / 127.0f, 1e-12f);
        for (size_t c = 0; c < tile->n_cols; c++)
            out[c] = (int8_t)rintf(in[c] / *scale);
    }
    return WEIR_OK;
}

static const weir_conversion int8_per_row = {
    .size = sizeof(weir_conversion),
    .name = "int8_per_row",
    .summary = "int8, one fp32 scale per row",
    .compile_target = "my_engine_int8",
    .compile_metadata = "{\"dtype\":\"int8\",\"scale_layout\":\"per_channel\"}",
    .sources = WEIR_DTYPE_BIT(WEIR_F32),
    .min_rank = 2,
    .max_rank = 3,
    .border_rows = 1,
    .border_cols = WEIR_WHOLE, /* a row has one scale: never cut it */
    .n_outputs = 2,
    .outputs = { { "weight", WEIR_I8, 1, 1 }, { "weight_scale", WEIR_F32, 1, WEIR_WHOLE } },
    .reference = int8_rows,
};

static int wants_int8(void *context, const weir_config *quantization)
{
    (void)context;
    int64_t bits = 0;
    return weir_config_int(quantization, "bits", &bits) && bits == 8;
}

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, weir_last_error());
    return 1;
}

static const weir_conversion *select_conversion(void)
{
    static const char text[] =
        "{\"quantization_config\": {\"quant_method\": \"mine\", \"bits\": 8}}";
    const weir_conversion *conversion = NULL;
    weir_config *config = NULL;
    if (weir_conversion_register(&int8_per_row) != WEIR_OK ||
        weir_default_rule_register(wants_int8, NULL, "int8_per_row", true) != WEIR_OK ||
        weir_config_parse(text, "config", &config) != WEIR_OK ||
        weir_conversion_select(config, &conversion) != WEIR_OK)
        conversion = NULL;
    weir_config_close(config);
    return conversion;
}

static float weights[ROWS][COLS], scales[ROWS];
static int8_t codes[ROWS][COLS];

int main(void)
{
    const weir_conversion *conversion = select_conversion();
    weir_pool *pool = NULL;
    if (conversion == NULL || weir_pool_open(4, &pool) != WEIR_OK)
        return fail("set-up");
    for (size_t i = 0; i < ROWS * COLS; i++)
        weights[i / COLS][i % COLS] = sinf((float)i) / (float)(1 + i % 91);

    weir_tensor source = { "w.weight", WEIR_F32, { 2, { ROWS, COLS } }, weights };
    weir_digest digests[2], code_digest = { 0, 0 }, scale_digest = { 0, 0 };
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    args.conversion = conversion;
    args.sources = &source;
    args.n_sources = 1;
    args.outputs[0] = codes;
    args.outputs[1] = scales;
    args.digests = digests;
    args.pool = pool;
    weir_status status = weir_convert(&args);
    if (status != WEIR_OK)
        return fail("convert");
    weir_digest_add(&code_digest, codes, ROWS, COLS);
    weir_digest_add(&scale_digest, scales, 1, sizeof(scales));
    bool same = code_digest.product == digests[0].product && code_digest.sum == digests[0].sum &&
                scale_digest.product == digests[1].product && scale_digest.sum == digests[1].sum;
    printf("%s: %d x %d, row 0 has scale %g; digests %s\n", conversion->name, ROWS, COLS,
           (double)scales[0], same ? "agree" : "DIFFER");

    weights[700][5] = NAN;
    bool refused = weir_convert(&args) == WEIR_ERR_NONFINITE;
    printf("with a NaN in it: %s\n", refused ? weir_last_error() : "NOT REFUSED");
    weir_pool_close(pool);
    return same && refused ? 0 : 1;
}
