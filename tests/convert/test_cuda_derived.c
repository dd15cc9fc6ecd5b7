/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_derived.c - derived parameters on a GPU against weir_derived_compute(), byte for byte;
 * skipped without one. */
#include "convert/cuda_case.h"
#include "weir/family.h"

static weir_derived dims(weir_derived_kind kind, uint64_t n, uint64_t p, uint64_t v, uint64_t l)
{
    return (weir_derived){ .kind = kind, .n_heads = n, .nope_dim = p, .v_dim = v, .lora_rank = l };
}

typedef struct origin {
    weir_dtype dtype;
    void *bytes, *device_bytes;
    float *scale, *device_scale;
    weir_shape scale_shape;
} origin;

/* Codes and values of any bits: a NaN has one pattern in bf16. */
static origin make_origin(cuda_rig *rig, weir_dtype dtype, bool per_row, uint64_t rows,
                          uint64_t cols, uint64_t *seed)
{
    origin o = { .dtype = dtype };
    size_t n_bytes = rows * cols * weir_dtype_bits(dtype) / 8;
    uint64_t down = (rows + 127) / 128, across = (cols + 127) / 128;
    size_t n_scales = per_row ? rows : down * across;
    o.scale_shape = per_row ? (weir_shape){ 1, { rows } } : (weir_shape){ 2, { down, across } };
    o.bytes = rig_host(rig, n_bytes);
    o.scale = rig_host(rig, n_scales * sizeof(float));
    for (size_t i = 0; i < n_bytes; i++)
        ((unsigned char *)o.bytes)[i] = (unsigned char)next_random(seed);
    fill(o.scale, WEIR_F32, n_scales, random_below(seed, 2) ? NORMAL : WIDE, seed);
    o.device_bytes = rig_device(rig, n_bytes);
    o.device_scale = rig_device(rig, n_scales * sizeof(float));
    must(weir_cuda_copy(0, o.device_bytes, o.bytes, n_bytes, rig->stream));
    must(weir_cuda_copy(0, o.device_scale, o.scale, n_scales * sizeof(float), rig->stream));
    return o;
}

static void check(cuda_rig *rig, const origin *o, const weir_derived *d)
{
    uint64_t n_rows = d->kind == WEIR_DERIVED_MLA_W_UV ? d->v_dim : d->nope_dim;
    size_t n_bytes = d->n_heads * n_rows * d->lora_rank * 2;
    size_t total = n_bytes + 2 * CANARY_BYTES;
    unsigned char *want = rig_host(rig, n_bytes), *got = rig_host(rig, total);
    device_block out = rig_output(rig, n_bytes, 0);
    must(weir_derived_compute(d, o->dtype, o->bytes, o->scale, &o->scale_shape, want));
    must(weir_cuda_derived_start(0, d, o->dtype, o->device_bytes, o->device_scale, &o->scale_shape,
                                 out.data, rig->stream));
    must(weir_cuda_copy(0, got, out.block, total, rig->stream));
    must(weir_cuda_stream_wait(0, rig->stream));
    assert_memory_equal(got + CANARY_BYTES, want, n_bytes);
    for (size_t i = 0; i < CANARY_BYTES; i++) {
        assert_int_equal(got[i], CANARY);
        assert_int_equal(got[CANARY_BYTES + n_bytes + i], CANARY);
    }
}

static void check_both(cuda_rig *rig, weir_dtype dtype, bool per_row, const uint64_t n[4],
                       uint64_t *seed)
{
    origin o = make_origin(rig, dtype, per_row, n[0] * (n[1] + n[2]), n[3], seed);
    weir_derived uv = dims(WEIR_DERIVED_MLA_W_UV, n[0], n[1], n[2], n[3]);
    weir_derived uk_t = dims(WEIR_DERIVED_MLA_W_UK_T, n[0], n[1], n[2], n[3]);
    check(rig, &o, &uv);
    check(rig, &o, &uk_t);
    rig_clear(rig);
}

static void all_origins_and_shapes_give_the_bytes_of_the_reference(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    uint64_t seed = 51;
    cuda_rig *rig = rig_open();
    const uint64_t shapes[][4] = {
        { 32, 128, 128, 512 }, { 16, 192, 256, 512 }, { 1, 1, 1, 1 },
        { 3, 48, 100, 130 },   { 2, 65, 63, 129 },    { 5, 7, 200, 64 }
    };
    for (size_t i = 0; i < 12; i++) {
        uint64_t n[4];
        for (size_t k = 0; k < 4; k++)
            n[k] = i < 6 ? shapes[i][k] : 1 + random_below(&seed, k == 0 ? 6 : 300);
        check_both(rig, WEIR_BF16, false, n, &seed);
        check_both(rig, WEIR_F32, false, n, &seed);
        check_both(rig, WEIR_F8_E4M3, false, n, &seed);
        check_both(rig, WEIR_F8_E4M3, true, n, &seed);
    }
    rig_close(rig);
}

static void bad_origins_are_refused_as_on_the_cpu(void **state)
{
    (void)state;
    unsigned char *address = (unsigned char *)(uintptr_t)4096;
    float *scale = (float *)(void *)address;
    const weir_shape wrong = { 2, { 2, 2 } }, right = { 2, { 2, 1 } };
    weir_derived d = dims(WEIR_DERIVED_MLA_W_UV, 2, 64, 64, 128);
    assert_int_equal(
        weir_cuda_derived_start(0, &d, WEIR_F8_E4M3, address, scale, &wrong, address, NULL),
        WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "scale has shape [2, 2], expected [256] or [2, 1]"));
    assert_int_equal(
        weir_cuda_derived_start(0, &d, WEIR_F8_E4M3, address, NULL, NULL, address, NULL),
        WEIR_ERR_INVALID);
    assert_int_equal(weir_cuda_derived_start(0, &d, WEIR_I8, address, NULL, NULL, address, NULL),
                     WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "origin is I8"));
    d.kind = (weir_derived_kind)9;
    assert_int_equal(
        weir_cuda_derived_start(0, &d, WEIR_F8_E4M3, address, scale, &right, address, NULL),
        WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "unknown kind 9"));
    d = dims(WEIR_DERIVED_MLA_W_UV, UINT64_MAX, 64, 64, 128);
    assert_int_equal(weir_cuda_derived_start(0, &d, WEIR_BF16, address, NULL, NULL, address, NULL),
                     WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "exceeds 64 bits"));
    d = dims(WEIR_DERIVED_MLA_W_UV, 0, 64, 64, 128); /* nothing to do needs no GPU */
    assert_int_equal(weir_cuda_derived_start(0, &d, WEIR_BF16, NULL, NULL, NULL, NULL, NULL),
                     WEIR_OK);
}

static void addresses_that_a_gpu_cannot_reach_are_refused(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    cuda_rig *rig = rig_open();
    uint64_t seed = 52;
    origin o = make_origin(rig, WEIR_F32, false, 64, 16, &seed);
    weir_derived d = dims(WEIR_DERIVED_MLA_W_UV, 1, 32, 32, 16);
    void *out = rig_device(rig, 32 * 16 * 2);
    assert_int_equal(
        weir_cuda_derived_start(0, &d, WEIR_F32, o.bytes, NULL, NULL, out, rig->stream),
        WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "cannot reach"));
    assert_int_equal(weir_cuda_derived_start(0, &d, WEIR_F32, (char *)o.device_bytes + 2, NULL,
                                             NULL, out, rig->stream),
                     WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "not aligned to 4 bytes"));
    rig_close(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_origins_and_shapes_give_the_bytes_of_the_reference),
        cmocka_unit_test(bad_origins_are_refused_as_on_the_cpu),
        cmocka_unit_test(addresses_that_a_gpu_cannot_reach_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
