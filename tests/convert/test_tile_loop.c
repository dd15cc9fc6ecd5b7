/* SPDX-License-Identifier: Apache-2.0 */
/* test_tile_loop.c - pieces of a tensor give the bytes and the digest of the whole. */
#include "convert/piece_case.h"

static const char *const conversions[] = { "fp8_128x128", "cutlass_fp8_e4m3_per_channel",
                                           "bf16_cast", "fp32_cast" };
static const weir_dtype dtypes[] = { WEIR_BF16, WEIR_F16, WEIR_F32 };

static weir_tensor random_tensor(weir_dtype dtype, weir_shape shape, uint64_t *seed)
{
    uint64_t n_bytes = 0;
    assert_int_equal(weir_tensor_bytes(dtype, &shape, &n_bytes), WEIR_OK);
    weir_tensor tensor = { "w", dtype, shape, malloc(n_bytes + 1) };
    assert_non_null(tensor.data);
    fill(tensor.data, dtype, n_bytes / (weir_dtype_bits(dtype) / 8), NORMAL, seed);
    return tensor;
}

static void check_pieces(weir_convert_args args, uint64_t *seed)
{
    static pieces all;
    converted want, got = { .n_outputs = args.conversion->n_outputs };
    must_convert(&want, args, 0);
    for (size_t i = 0; i < got.n_outputs; i++) {
        got.out[i] = guarded_make(want.out[i].n_bytes, 0);
        args.outputs[i] = got.out[i].data;
    }
    pieces_cut(&all, &args, seed);
    for (size_t i = 0; i < all.n; i++)
        if (weir_convert(&all.piece[i].args) != WEIR_OK)
            fail_msg("%s", weir_last_error());
    pieces_add_up(&all, got.digests);
    assert_same_outputs(&want, &got);
    converted_free(&want);
    converted_free(&got);
}

static void all_ways(weir_convert_args args, uint64_t *seed)
{
    weir_pool *pool = NULL;
    assert_int_equal(weir_pool_open(3, &pool), WEIR_OK);
    for (int k = 0; k < 4; k++) {
        args.reference = k % 2;
        args.pool = k / 2 ? pool : NULL;
        check_pieces(args, seed);
    }
    weir_pool_close(pool);
}

static void digests_of_rows_add_up_to_the_matrix(void **state)
{
    (void)state;
    uint64_t seed = 31;
    const size_t shapes[][2] = { { 640, 512 }, { 1027, 203 }, { 129, 1153 }, { 900, 36 } };
    for (size_t s = 0; s < 4; s++) {
        for (size_t d = 0; d < 3; d++) {
            for (size_t k = 0; k < 4; k++) {
                weir_tensor sources[2];
                for (size_t i = 0; i < 2; i++)
                    sources[i] = random_tensor(
                        dtypes[d], (weir_shape){ 2, { shapes[s][0] / (i + 1), shapes[s][1] } },
                        &seed);
                all_ways(args_for(conversions[k], sources, 1 + s % 2), &seed);
                free(sources[0].data);
                free(sources[1].data);
            }
        }
    }
}

static void digests_of_experts_and_their_rows_add_up_to_the_stack(void **state)
{
    (void)state;
    uint64_t seed = 32;
    for (size_t k = 0; k < 4; k++) {
        weir_tensor stacked = random_tensor(WEIR_BF16, (weir_shape){ 3, { 5, 301, 134 } }, &seed);
        all_ways(args_for(conversions[k], &stacked, 1), &seed);
        free(stacked.data);

        weir_tensor sources[8];
        for (size_t i = 0; i < 8; i++)
            sources[i] =
                random_tensor(dtypes[k % 3], (weir_shape){ 2, { i % 2 ? 160 : 97, 264 } }, &seed);
        weir_convert_args args = args_for(conversions[k], sources, 2);
        args.n_experts = 4;
        args.axis = 1;
        all_ways(args, &seed);
        for (size_t i = 0; i < 8; i++)
            free(sources[i].data);
    }
}

static void digests_of_elements_add_up_to_the_vector(void **state)
{
    (void)state;
    uint64_t seed = 33;
    for (size_t d = 0; d < 3; d++) {
        for (size_t k = 2; k < 4; k++) {
            weir_tensor vector = random_tensor(dtypes[d], (weir_shape){ 1, { 4099 } }, &seed);
            all_ways(args_for(conversions[k], &vector, 1), &seed);
            free(vector.data);
        }
    }
}

/* The digest of a piece is another one elsewhere: its place counts. */
static void a_piece_at_another_place_has_another_digest(void **state)
{
    (void)state;
    uint64_t seed = 34;
    weir_tensor source = random_tensor(WEIR_BF16, (weir_shape){ 2, { 256, 256 } }, &seed);
    converted here, there;
    weir_convert_args args = args_for("fp8_128x128", &source, 1);
    must_convert(&here, args, 0);
    args.first_words[0] = args.first_words[1] = 8192;
    must_convert(&there, args, 0);
    for (size_t i = 0; i < 2; i++) {
        assert_memory_equal(here.out[i].data, there.out[i].data, here.out[i].n_bytes);
        assert_true(here.digests[i].sum == there.digests[i].sum);
        assert_true(here.digests[i].product != there.digests[i].product);
    }
    converted_free(&here);
    converted_free(&there);
    free(source.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(digests_of_rows_add_up_to_the_matrix),
        cmocka_unit_test(digests_of_experts_and_their_rows_add_up_to_the_stack),
        cmocka_unit_test(digests_of_elements_add_up_to_the_vector),
        cmocka_unit_test(a_piece_at_another_place_has_another_digest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
