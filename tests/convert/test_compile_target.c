/* SPDX-License-Identifier: Apache-2.0 */
/* When bytes made for one reader suit another. */
#include "convert/convert_case.h"

static const char block_metadata[] =
    "{\"dtype\":\"e4m3\",\"scale_layout\":\"blockwise\",\"block_size\":[128,128]}";

static void no_filter_matches_everything(void **state)
{
    (void)state;
    assert_true(weir_compile_target_matches("cutlass_fp8", "{}", NULL, 0, NULL));
    assert_true(weir_compile_target_matches(NULL, NULL, NULL, 0, NULL));
}

static void target_must_be_one_of_the_allowed(void **state)
{
    (void)state;
    const char *const allowed[] = { WEIR_TARGET_HF_RAW, WEIR_TARGET_DEEP_GEMM_FP8 };
    assert_true(weir_compile_target_matches("deep_gemm_fp8", block_metadata, allowed, 2, NULL));
    assert_false(weir_compile_target_matches("cutlass_fp8", block_metadata, allowed, 2, NULL));
    assert_false(weir_compile_target_matches("deep_gemm", block_metadata, allowed, 2, NULL));
    assert_false(weir_compile_target_matches(NULL, block_metadata, allowed, 2, NULL));
    assert_false(weir_compile_target_matches("hf_raw", block_metadata, allowed, 0, NULL));
}

static void every_required_key_must_be_there_and_equal(void **state)
{
    (void)state;
    const char *good[] = { "{}", "{\"block_size\":[128,128]}",
                           "{ \"block_size\" : [ 128, 128 ], \"dtype\":\"e4m3\" }" };
    const char *bad[] = { "{\"block_size\":[64,64]}", "{\"block_size\":[128]}",
                          "{\"block_size\":\"[128,128]\"}", "{\"scale_axis\":-1}",
                          "{\"dtype\":\"e4m3\",\"scale_layout\":\"per_channel\"}" };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_true(weir_compile_target_matches("x", block_metadata, NULL, 0, good[i]));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(weir_compile_target_matches("x", block_metadata, NULL, 0, bad[i]));
}

static void what_is_no_object_matches_nothing(void **state)
{
    (void)state;
    const char *broken[] = { "", "[1]", "{\"a\":", "null", "{\"a\":1,\"a\":1}" };
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        assert_false(weir_compile_target_matches("x", broken[i], NULL, 0, "{}"));
        assert_false(weir_compile_target_matches("x", "{}", NULL, 0, broken[i]));
    }
    assert_false(weir_compile_target_matches("x", NULL, NULL, 0, "{}"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_filter_matches_everything),
        cmocka_unit_test(target_must_be_one_of_the_allowed),
        cmocka_unit_test(every_required_key_must_be_there_and_equal),
        cmocka_unit_test(what_is_no_object_matches_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
