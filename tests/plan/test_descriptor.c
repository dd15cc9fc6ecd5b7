/* SPDX-License-Identifier: Apache-2.0 */
#include "weir/descriptor.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const uint32_t ids_8_11[] = { 8, 9, 10, 11 }, ids_apart[] = { 1, 5 }, ids_back[] = { 5, 1 };

static weir_describe_args args_of(weir_tensor_source source)
{
    weir_describe_args args = WEIR_DESCRIBE_ARGS_INIT;
    args.source = source;
    args.name = "N";
    args.dtype = WEIR_BF16;
    args.local_shape = (weir_shape){ 2, { 4, 8 } };
    args.global_shape = (weir_shape){ 2, { 16, 8 } };
    return args;
}

static void assert_refused(const weir_describe_args *args, weir_status status, const char *text)
{
    weir_tensor_descriptor d = { .name = "untouched" };
    assert_int_equal(weir_tensor_describe(args, &d), status);
    assert_non_null(strstr(weir_last_error(), text));
    assert_string_equal(d.name, "untouched");
}

static void a_plain_tensor_is_all_of_itself(void **state)
{
    (void)state;
    weir_describe_args args = args_of(WEIR_SOURCE_PLAIN);
    weir_tensor_descriptor d;
    assert_int_equal(weir_tensor_describe(&args, &d), WEIR_OK);
    assert_int_equal(d.placement, WEIR_PLACEMENT_REPLICATE);
    assert_int_equal(d.global_shape.dim[0], 4);
    assert_string_equal(d.dtype, "bfloat16");
    assert_false(d.has_range);
    args.source = WEIR_SOURCE_REPLICATE;
    assert_int_equal(weir_tensor_describe(&args, &d), WEIR_OK);
    assert_int_equal(d.placement, WEIR_PLACEMENT_REPLICATE);
    assert_int_equal(d.global_shape.dim[0], 16);
}

static void a_range_must_have_the_width_of_the_tensor_and_lie_within_the_shape(void **state)
{
    (void)state;
    weir_describe_args args = args_of(WEIR_SOURCE_RANGE);
    weir_tensor_descriptor d;
    args.range_lo = 4;
    args.range_hi = 8;
    assert_int_equal(weir_tensor_describe(&args, &d), WEIR_OK);
    assert_int_equal(d.placement, WEIR_PLACEMENT_SHARD);
    assert_int_equal(d.range_lo, 4);
    assert_int_equal(d.range_hi, 8);
    args.range_hi = 9;
    assert_refused(&args, WEIR_ERR_INVALID, "width 5 != tensor extent 4 on axis 0");
    args.range_hi = 3;
    assert_refused(&args, WEIR_ERR_INVALID, "width -1 != tensor extent 4 on axis 0");
    args.range_lo = 14;
    args.range_hi = 18;
    assert_refused(&args, WEIR_ERR_INVALID, "outside global_shape[0]=16");
    args.axis = 2;
    assert_refused(&args, WEIR_ERR_INVALID, "axis 2");
}

static void an_even_chunk_is_told_by_its_rank(void **state)
{
    (void)state;
    weir_describe_args args = args_of(WEIR_SOURCE_SHARD);
    weir_tensor_descriptor d;
    args.rank = 3;
    args.n_ranks = 4;
    assert_int_equal(weir_tensor_describe(&args, &d), WEIR_OK);
    assert_int_equal(d.range_lo, 12);
    assert_int_equal(d.range_hi, 16);
    args.rank = 4;
    assert_refused(&args, WEIR_ERR_INVALID, "rank 4 of 4");
}

/* 10 rows over 4 ranks: 3, 3, 3, 1. */
static void g19_an_uneven_chunk_is_not(void **state)
{
    (void)state;
    weir_describe_args args = args_of(WEIR_SOURCE_SHARD);
    args.global_shape.dim[0] = 10;
    args.local_shape.dim[0] = 3;
    args.n_ranks = 4;
    assert_refused(&args, WEIR_ERR_UNSUPPORTED, "tensor 'N' has uneven DTensor sharding on axis 0");
    weir_tensor_descriptor d; /* its range is */
    args.source = WEIR_SOURCE_RANGE;
    args.range_hi = 3;
    assert_int_equal(weir_tensor_describe(&args, &d), WEIR_OK);
    args.source = WEIR_SOURCE_SHARD;
    args.n_ranks = UINT32_MAX;
    args.local_shape.dim[0] = UINT64_MAX / 2; /* a product that wraps around */
    assert_refused(&args, WEIR_ERR_UNSUPPORTED, "uneven");
}

static void a_mesh_of_several_axes_is_refused_and_a_box_is_not(void **state)
{
    (void)state;
    weir_describe_args args = args_of(WEIR_SOURCE_SHARD);
    weir_tensor_descriptor d;
    args.mesh_rank = 2;
    assert_refused(&args, WEIR_ERR_UNSUPPORTED,
                   "DTensor with ND mesh is not supported in v0; only 1D meshes are. tensor=N");
    args.source = WEIR_SOURCE_BOX;
    args.local_shape = (weir_shape){ 2, { 4, 2 } };
    args.box = (weir_box){ 2, { 8, 6 }, { 12, 8 } };
    assert_int_equal(weir_tensor_describe(&args, &d), WEIR_OK);
    assert_int_equal(d.placement, WEIR_PLACEMENT_BOX);
    args.local_shape.dim[1] = 3;
    assert_refused(&args, WEIR_ERR_INVALID, "a box of [4, 2] of a tensor of [4, 3]");
    args.box = (weir_box){ 2, { 8, 0 }, { 12, 8 } }; /* one axis: what everybody understands */
    args.local_shape.dim[1] = 8;
    assert_int_equal(weir_tensor_describe(&args, &d), WEIR_OK);
    assert_int_equal(d.placement, WEIR_PLACEMENT_SHARD);
    assert_int_equal(d.range_lo, 8);
    args.box = (weir_box){ 2, { 0, 0 }, { 16, 8 } };
    assert_int_equal(weir_tensor_describe(&args, &d), WEIR_OK);
    assert_int_equal(d.placement, WEIR_PLACEMENT_REPLICATE);
    args.box = (weir_box){ 2, { 0, 4 }, { 17, 8 } };
    args.local_shape = (weir_shape){ 2, { 17, 4 } };
    assert_refused(&args, WEIR_ERR_INVALID, "outside global_shape[0]=16");
}

static void a_summand_has_no_experts(void **state)
{
    (void)state;
    weir_describe_args args = args_of(WEIR_SOURCE_PARTIAL);
    weir_tensor_descriptor d;
    args.is_expert = true;
    args.expert_ids = ids_8_11;
    args.n_expert_ids = 4;
    assert_int_equal(weir_tensor_describe(&args, &d), WEIR_OK);
    assert_int_equal(d.placement, WEIR_PLACEMENT_PARTIAL);
    assert_false(d.is_expert);
    assert_int_equal(d.n_expert_ids, 0);
}

static void what_contradicts_itself_does_not_pass(void **state)
{
    (void)state;
    char long_name[257];
    memset(long_name, 'x', 256);
    long_name[256] = '\0';
    const weir_shape shape = { 2, { 16, 8 } }, vast = { 3, { 1ull << 40, 1ull << 40, 8 } };
#define CASE(text, ...)       \
    {                         \
        { __VA_ARGS__ }, text \
    }
    const struct {
        weir_tensor_descriptor d;
        const char *error; /* NULL: it passes */
    } cases[] = {
        CASE(NULL, .placement = WEIR_PLACEMENT_REPLICATE),
        CASE(NULL, .placement = WEIR_PLACEMENT_SHARD, .has_range = true, .range_hi = 16),
        CASE(NULL, .placement = WEIR_PLACEMENT_SHARD, .has_range = true, .range_lo = 16,
             .range_hi = 16),
        CASE(NULL, .placement = WEIR_PLACEMENT_SHARD, .is_expert = true, .expert_ids = ids_apart,
             .n_expert_ids = 2),
        CASE(NULL, .placement = WEIR_PLACEMENT_SHARD, .has_range = true, .range_lo = 8,
             .range_hi = 12, .is_expert = true, .expert_ids = ids_8_11, .n_expert_ids = 4),
        CASE("1 to 255 bytes", .name = ""),
        CASE("no dtype", .dtype = ""),
        CASE("1 to 255 bytes", .name = long_name),
        CASE("rank 9", .global_shape = { 9, { 1 } }),
        CASE("N: shape", .global_shape = vast),
        CASE("SHARD without a local_shard_range", .placement = WEIR_PLACEMENT_SHARD),
        CASE("outside global_shape[0]=16", .placement = WEIR_PLACEMENT_SHARD, .has_range = true,
             .range_hi = 17),
        CASE("outside global_shape[0]=16", .placement = WEIR_PLACEMENT_SHARD, .has_range = true,
             .range_lo = 3, .range_hi = 2),
        CASE("axis 2 of a tensor of rank 2", .placement = WEIR_PLACEMENT_SHARD, .has_range = true,
             .shard_axis = 2),
        CASE("local_shard_range of placement_kind REPLICATE", .has_range = true),
        CASE("a box of rank 1", .placement = WEIR_PLACEMENT_BOX, .box = { 1, { 0 }, { 1 } }),
        CASE("outside global_shape[1]=8", .placement = WEIR_PLACEMENT_BOX,
             .box = { 2, { 0, 0 }, { 1, 9 } }),
        CASE("placement 7", .placement = (weir_placement)7),
        CASE("ids of what has no experts", .expert_ids = ids_apart, .n_expert_ids = 2),
        CASE("expert_axis 2", .is_expert = true, .expert_axis = 2),
        CASE("expert id 8 outside global_shape[1]=8", .is_expert = true, .expert_axis = 1,
             .expert_ids = ids_8_11, .n_expert_ids = 4),
        CASE("ids ascend", .is_expert = true, .expert_ids = ids_back, .n_expert_ids = 2),
        CASE("4 expert ids from 8 on, but range [8, 13)", .placement = WEIR_PLACEMENT_SHARD,
             .has_range = true, .range_lo = 8, .range_hi = 13, .is_expert = true,
             .expert_ids = ids_8_11, .n_expert_ids = 4),
    };
#undef CASE
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weir_tensor_descriptor d = cases[i].d;
        d.name = d.name != NULL ? d.name : "N";
        d.dtype = d.dtype != NULL ? d.dtype : "bfloat16";
        d.global_shape = d.global_shape.rank > 0 ? d.global_shape : shape;
        weir_status status = weir_tensor_descriptor_check(&d);
        assert_int_equal(status, cases[i].error == NULL ? WEIR_OK : WEIR_ERR_INVALID);
        if (cases[i].error != NULL && strstr(weir_last_error(), cases[i].error) == NULL)
            fail_msg("case %zu: '%s' is not in '%s'", i, cases[i].error, weir_last_error());
    }
    weir_tensor_descriptor none = { .dtype = "bfloat16" };
    assert_int_equal(weir_tensor_descriptor_check(&none), WEIR_ERR_INVALID);
}

static void g12_a_descriptor_without_the_required_metadata_does_not_match(void **state)
{
    (void)state;
    const char *const cutlass[] = { "cutlass_fp8" }, *const raw[] = { "hf_raw" };
    weir_tensor_descriptor d = { .name = "N", .dtype = "bfloat16" };
    const char *required = "{\"block_size\":[128,128]}";
    assert_false(weir_tensor_descriptor_matches(&d, NULL, 0, required));
    assert_true(weir_tensor_descriptor_matches(&d, NULL, 0, NULL));
    assert_true(weir_tensor_descriptor_matches(&d, raw, 1, NULL)); /* the default */
    assert_false(weir_tensor_descriptor_matches(&d, cutlass, 1, NULL));
    d.compile_target = "cutlass_fp8";
    d.compile_metadata = "{\"block_size\": [128, 128], \"more\": 1}";
    assert_true(weir_tensor_descriptor_matches(&d, cutlass, 1, required));
    d.compile_metadata = "{\"block_size\": [64, 128]}";
    assert_false(weir_tensor_descriptor_matches(&d, cutlass, 1, required));
}

static void dtypes_have_torchs_names(void **state)
{
    (void)state;
    assert_int_equal(weir_dtype_from_torch_name("float8_e4m3fn"), WEIR_F8_E4M3);
    assert_int_equal(weir_dtype_from_torch_name("torch.int64"), WEIR_I64);
    assert_int_equal(weir_dtype_from_torch_name("int4"), WEIR_DTYPE_NONE);
    assert_int_equal(weir_dtype_from_torch_name(NULL), WEIR_DTYPE_NONE);
    assert_null(weir_dtype_torch_name(WEIR_F4));
    for (int i = 0; i < WEIR_DTYPE_END; i++) {
        const char *name = weir_dtype_torch_name((weir_dtype)i);
        assert_true(name == NULL || weir_dtype_from_torch_name(name) == (weir_dtype)i);
    }
}

static void experts_are_divided_evenly_or_not_at_all(void **state)
{
    (void)state;
    uint32_t owners[8];
    assert_int_equal(weir_even_expert_owners(8, 4, owners), WEIR_OK);
    for (uint32_t x = 0; x < 8; x++)
        assert_int_equal(owners[x], x / 2);
    assert_int_equal(weir_even_expert_owners(8, 0, owners), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "ep_world_size must be positive");
    assert_int_equal(weir_even_expert_owners(8, 3, owners), WEIR_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plain_tensor_is_all_of_itself),
        cmocka_unit_test(a_range_must_have_the_width_of_the_tensor_and_lie_within_the_shape),
        cmocka_unit_test(an_even_chunk_is_told_by_its_rank),
        cmocka_unit_test(g19_an_uneven_chunk_is_not),
        cmocka_unit_test(a_mesh_of_several_axes_is_refused_and_a_box_is_not),
        cmocka_unit_test(a_summand_has_no_experts),
        cmocka_unit_test(what_contradicts_itself_does_not_pass),
        cmocka_unit_test(g12_a_descriptor_without_the_required_metadata_does_not_match),
        cmocka_unit_test(dtypes_have_torchs_names),
        cmocka_unit_test(experts_are_divided_evenly_or_not_at_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
