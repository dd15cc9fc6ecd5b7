/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_plan.c - what a batch would send to a GPU, without one: kernels, tiles, segments. */
#include "convert/cuda/cuda_plan.h"

#include "convert/convert_case.h"

#define MAX_ARGS 16

typedef struct planned {
    weir_cuda_entry entries[MAX_ARGS];
    weir_cuda_plan plan;
    _Alignas(16) unsigned char image[1 << 16];
    const weir_cuda_job *jobs;
    const uint32_t *first_tiles;
    const weir_cuda_segment *segments;
} planned;

static unsigned char memory[1 << 16] __attribute__((aligned(64)));

static weir_status plan_status(planned *p, const weir_convert_args *args, size_t n)
{
    weir_status status = weir_cuda_plan_init(&p->plan, args, n, p->entries);
    if (status != WEIR_OK)
        return status;
    assert_true(p->plan.image_bytes <= sizeof(p->image));
    memset(p->image, 0xEE, sizeof(p->image));
    status = weir_cuda_plan_build(&p->plan, p->entries, p->image);
    p->jobs = (const weir_cuda_job *)(const void *)p->image;
    p->first_tiles = (const uint32_t *)(const void *)(p->image + p->plan.first_tiles_at);
    p->segments = (const weir_cuda_segment *)(const void *)(p->image + p->plan.segments_at);
    return status;
}

static void plan(planned *p, const weir_convert_args *args, size_t n)
{
    if (plan_status(p, args, n) != WEIR_OK)
        fail_msg("%s", weir_last_error());
}

/* Addresses are never looked at: any will do. */
static weir_convert_args args_of(const char *conversion, const weir_tensor *sources, size_t n)
{
    weir_convert_args args = args_for(conversion, sources, n);
    for (size_t i = 0; i < args.conversion->n_outputs; i++)
        args.outputs[i] = memory + 4096 * (i + 1);
    return args;
}

static void jobs_are_grouped_by_kernel_and_tiles_are_numbered_through(void **state)
{
    (void)state;
    planned p;
    weir_tensor a = tensor_2d("a", WEIR_BF16, 300, 256, memory);
    weir_tensor b = tensor_2d("b", WEIR_BF16, 128, 128, memory);
    weir_tensor c = tensor_2d("c", WEIR_F32, 10, 64, memory);
    weir_convert_args args[] = { args_of("bf16_cast", &c, 1), args_of("fp8_128x128", &a, 1),
                                 args_of("fp32_cast", &b, 1), args_of("fp8_128x128", &b, 1) };
    args[3].digests = (weir_digest[WEIR_MAX_OUTPUTS]){ { 0, 0 } };
    plan(&p, args, 4);
    assert_int_equal(p.plan.n_groups, 3);
    assert_int_equal(p.jobs[0].digests, 0);
    assert_int_equal(p.jobs[1].digests, 1);
    assert_int_equal(p.plan.groups[0].kind, WEIR_CUDA_FP8_BLOCK);
    assert_int_equal(p.plan.groups[0].n_jobs, 2);
    assert_int_equal(p.plan.groups[0].n_tiles, 3 * 2 + 1);
    assert_int_equal(p.jobs[0].number, 1);
    assert_int_equal(p.jobs[1].number, 3);
    assert_int_equal(p.first_tiles[0], 0);
    assert_int_equal(p.first_tiles[1], 6);
    assert_int_equal(p.plan.groups[1].kind, WEIR_CUDA_TO_BF16);
    assert_int_equal(p.plan.groups[1].from, WEIR_CUDA_FROM_F32);
    assert_int_equal(p.plan.groups[1].first_job, 2);
    assert_int_equal(p.first_tiles[2], 0);
    assert_int_equal(p.plan.groups[2].kind, WEIR_CUDA_TO_F32);
}

/* Its one kernel reads element by element, however well a source is aligned. */
static void an_exponential_has_a_kernel_of_its_own(void **state)
{
    (void)state;
    planned p;
    weir_tensor a = { "A_log", WEIR_F32, { 1, { 128 } }, memory };
    weir_convert_args args[] = { args_of("neg_exp", &a, 1), args_of("fp32_cast", &a, 1) };
    args[0].round_masters = true; /* its output is fp32: never rounded */
    plan(&p, args, 2);
    assert_int_equal(p.plan.n_groups, 2);
    assert_int_equal(p.plan.groups[0].kind, WEIR_CUDA_TO_F32);
    assert_int_equal(p.plan.groups[1].kind, WEIR_CUDA_NEG_EXP);
    assert_int_equal(p.plan.groups[1].from, WEIR_CUDA_FROM_ANY);
    assert_int_equal(p.segments[p.jobs[1].first_segment].rounds, 0);
}

static void experts_have_segments_of_their_own(void **state)
{
    (void)state;
    planned p;
    weir_tensor sources[6];
    for (size_t i = 0; i < 6; i++)
        sources[i] = tensor_2d("e", WEIR_BF16, i % 2 ? 100 : 60, 64, memory + 1024 * i);
    weir_convert_args args = args_of("fp8_128x128", sources, 2);
    args.n_experts = 3;
    args.axis = 1;
    plan(&p, &args, 1);
    assert_int_equal(p.jobs[0].n_rows, 160);
    assert_int_equal(p.jobs[0].separate, 1);
    assert_int_equal(p.jobs[0].tiles_down, 2);
    assert_int_equal(p.plan.groups[0].n_tiles, 6);
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(p.segments[i].data, (uintptr_t)sources[i].data);
        assert_int_equal(p.segments[i].first, i % 2 ? 60 : 0);
        assert_int_equal(p.segments[i].n, i % 2 ? 100 : 60);
    }
}

static void what_does_not_move_in_vectors_goes_element_by_element(void **state)
{
    (void)state;
    planned p;
    const struct {
        weir_tensor source;
        size_t out_offset;
        uint32_t from;
    } rows[] = {
        { tensor_2d("w", WEIR_BF16, 4, 64, memory), 0, WEIR_CUDA_FROM_BF16 },
        { tensor_2d("w", WEIR_F16, 4, 64, memory), 0, WEIR_CUDA_FROM_F16 },
        { tensor_2d("w", WEIR_F32, 4, 64, memory), 0, WEIR_CUDA_FROM_F32 },
        { tensor_2d("w", WEIR_BF16, 4, 60, memory), 0, WEIR_CUDA_FROM_ANY },
        { tensor_2d("w", WEIR_BF16, 4, 64, memory + 2), 0, WEIR_CUDA_FROM_ANY },
        { tensor_2d("w", WEIR_BF16, 4, 64, memory), 4, WEIR_CUDA_FROM_ANY },
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        weir_convert_args args = args_of("fp8_128x128", &rows[i].source, 1);
        args.outputs[0] = (unsigned char *)args.outputs[0] + rows[i].out_offset;
        plan(&p, &args, 1);
        assert_int_equal(p.plan.groups[0].from, rows[i].from);
    }
    const uint64_t narrow = 64 * 2 + 8, wide = 64 * 2 + 16;
    weir_convert_args args = args_of("fp8_128x128", &rows[0].source, 1);
    args.source_pitches = &narrow;
    plan(&p, &args, 1);
    assert_int_equal(p.plan.groups[0].from, WEIR_CUDA_FROM_ANY);
    args.source_pitches = &wide;
    plan(&p, &args, 1);
    assert_int_equal(p.plan.groups[0].from, WEIR_CUDA_FROM_BF16);
    weir_tensor mixed[] = { rows[0].source, rows[2].source };
    args = args_of("fp8_128x128", mixed, 2);
    plan(&p, &args, 1);
    assert_int_equal(p.plan.groups[0].from, WEIR_CUDA_FROM_ANY);
    args = args_of("fp8_128x128", &rows[2].source, 1);
    args.round_masters = true;
    plan(&p, &args, 1);
    assert_int_equal(p.plan.groups[0].from, WEIR_CUDA_FROM_MASTER);
    assert_int_equal(p.segments[0].rounds, 1);
}

/* The threads of a tile cover its rows and columns, whatever the length of a row. */
static void rows_of_every_length_fit_their_tile(void **state)
{
    (void)state;
    planned p;
    for (size_t cols = 8; cols <= 40000; cols += cols < 4096 ? 8 : 3000) {
        weir_tensor source = tensor_2d("w", WEIR_BF16, 1000, cols, memory);
        weir_convert_args args = args_of("cutlass_fp8_e4m3_per_channel", &source, 1);
        plan(&p, &args, 1);
        const weir_cuda_job *job = &p.jobs[0];
        uint32_t lanes = 1u << job->log_lanes;
        assert_int_equal(job->tiles_across, 1);
        assert_int_equal(job->tile_cols, cols);
        if (cols > WEIR_CUDA_TILE_ELEMENTS) {
            assert_int_equal(p.plan.groups[0].kind, WEIR_CUDA_FP8_LONG_ROW);
            assert_int_equal(job->tile_rows, 1);
            continue;
        }
        assert_int_equal(p.plan.groups[0].kind, WEIR_CUDA_FP8_CHANNEL);
        assert_true(lanes * WEIR_CUDA_CHUNKS * WEIR_CUDA_CHUNK >= cols);
        assert_int_equal(job->tile_rows * lanes, WEIR_CUDA_THREADS);
        assert_true(job->tile_rows <= 128 && job->tiles_down * job->tile_rows >= 1000);
        assert_int_equal(job->scale_rows, 1);
        assert_int_equal(job->scale_cols, 1000);
    }
}

static void a_cast_of_one_source_is_one_long_row(void **state)
{
    (void)state;
    planned p;
    weir_tensor narrow = { "conv", WEIR_BF16, { 3, { 5000, 1, 4 } }, memory };
    weir_convert_args args = args_of("bf16_cast", &narrow, 1);
    plan(&p, &args, 1);
    assert_int_equal(p.jobs[0].n_cols, 20000);
    assert_int_equal(p.plan.groups[0].n_tiles, 2);
    narrow.shape.dim[2] = 3; /* rows end within a digest's word: they stay rows */
    plan(&p, &args, 1);
    assert_int_equal(p.jobs[0].n_cols, 3);
    assert_int_equal(p.plan.groups[0].n_tiles, 5000);
}

static void rows_a_pitch_apart_stay_rows(void **state)
{
    (void)state;
    planned p;
    weir_tensor views[2] = { tensor_2d("a", WEIR_BF16, 300, 64, memory),
                             tensor_2d("b", WEIR_BF16, 20, 64, memory + 1024) };
    const uint64_t pitches[2] = { 1024, 0 }, dense = 128;
    weir_convert_args args = args_of("bf16_cast", views, 2);
    args.source_pitches = pitches;
    plan(&p, &args, 1);
    assert_int_equal(p.segments[0].row_step, 1024);
    assert_int_equal(p.segments[1].row_step, 128);
    args.n_sources = 1;
    plan(&p, &args, 1);
    assert_int_equal(p.jobs[0].n_rows, 300);
    assert_int_equal(p.plan.groups[0].from, WEIR_CUDA_FROM_BF16);
    args.source_pitches = &dense;
    plan(&p, &args, 1);
    assert_int_equal(p.jobs[0].n_rows, 1);
    const uint64_t odd = 129;
    args.source_pitches = &odd;
    assert_int_equal(plan_status(&p, &args, 1), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "a [300, 64] has a pitch of 129 bytes"));
}

static void equal_batches_have_equal_images(void **state)
{
    (void)state;
    static planned p, q;
    weir_tensor source = tensor_2d("w", WEIR_BF16, 300, 256, memory);
    weir_convert_args args = args_of("fp8_128x128", &source, 1);
    plan(&p, &args, 1);
    plan(&q, &args, 1);
    assert_int_equal(p.plan.image_bytes, q.plan.image_bytes);
    assert_memory_equal(p.image, q.image, p.plan.image_bytes);
    source.data = memory + 512;
    plan(&q, &args, 1);
    assert_memory_not_equal(p.image, q.image, p.plan.image_bytes);
}

static weir_status never(const weir_tile *tile)
{
    (void)tile;
    return WEIR_ERR_INTERNAL;
}

/* Tensors of more than 2^32 elements are numbered in 64 bits; a row under one scale is walked
 * in 32.
 */
static void large_tensors_are_cut_and_too_long_rows_refused(void **state)
{
    (void)state;
    planned p;
    weir_tensor large = { "large", WEIR_BF16, { 3, { 8, 40960, 131072 } }, memory };
    weir_convert_args args = args_of("fp8_128x128", &large, 1);
    plan(&p, &args, 1);
    assert_int_equal(p.plan.groups[0].n_tiles, 8 * 320 * 1024);
    assert_int_equal(p.jobs[0].scale_rows, 8 * 320);
    args = args_of("bf16_cast", &large, 1);
    plan(&p, &args, 1);
    assert_int_equal(p.plan.groups[0].n_tiles, 8 * 40960 * 8);
    weir_tensor longest = tensor_2d("longest", WEIR_F32, 1, ((size_t)1 << 29) - 8, memory);
    args = args_of("cutlass_fp8_e4m3_per_channel", &longest, 1);
    plan(&p, &args, 1);
    assert_int_equal(p.plan.groups[0].n_tiles, 1);
    weir_tensor too_long = tensor_2d("too_long", WEIR_F32, 1, (size_t)1 << 29, memory);
    args = args_of("cutlass_fp8_e4m3_per_channel", &too_long, 1);
    assert_int_equal(plan_status(&p, &args, 1), WEIR_ERR_UNSUPPORTED);
    assert_memory_equal(weir_last_error(), "too_long: a row of 536870912 elements", 37);
}

static void bad_args_are_refused_with_their_tensor(void **state)
{
    (void)state;
    planned p;
    weir_tensor source = tensor_2d("w", WEIR_U8, 4, 64, memory);
    weir_convert_args args = args_of("fp8_128x128", &source, 1);
    assert_int_equal(plan_status(&p, &args, 1), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(),
                        "w has dtype U8, conversion 'fp8_128x128' takes BF16, F16, F32");
    source = tensor_2d("w", WEIR_F32, 4, 64, memory + 2);
    assert_int_equal(plan_status(&p, &args, 1), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "w is not aligned to 4 bytes, as a GPU needs it");
    source = tensor_2d("w", WEIR_F32, 4, 64, NULL);
    assert_int_equal(plan_status(&p, &args, 1), WEIR_ERR_INVALID);
    source = tensor_2d("w", WEIR_BF16, 4, 64, memory);
    args.outputs[1] = NULL;
    assert_int_equal(plan_status(&p, &args, 1), WEIR_ERR_INVALID);
    args.outputs[1] = memory + 2;
    assert_int_equal(plan_status(&p, &args, 1), WEIR_ERR_INVALID);
    weir_conversion own = *args.conversion;
    own.reference = never;
    args = args_of("fp8_128x128", &source, 1);
    args.conversion = &own;
    assert_int_equal(plan_status(&p, &args, 1), WEIR_ERR_UNSUPPORTED);
    source = tensor_2d("w", WEIR_BF16, 1, (size_t)1 << 31, memory);
    args = args_of("cutlass_fp8_e4m3_per_channel", &source, 1);
    assert_int_equal(plan_status(&p, &args, 1), WEIR_ERR_UNSUPPORTED);
    weir_tensor many = { "w", WEIR_BF16, { 3, { 1 << 30, 1 << 10, 128 } }, memory };
    args = args_of("fp8_128x128", &many, 1);
    assert_int_equal(plan_status(&p, &args, 1), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "more tiles than one launch takes"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jobs_are_grouped_by_kernel_and_tiles_are_numbered_through),
        cmocka_unit_test(an_exponential_has_a_kernel_of_its_own),
        cmocka_unit_test(experts_have_segments_of_their_own),
        cmocka_unit_test(what_does_not_move_in_vectors_goes_element_by_element),
        cmocka_unit_test(rows_of_every_length_fit_their_tile),
        cmocka_unit_test(a_cast_of_one_source_is_one_long_row),
        cmocka_unit_test(rows_a_pitch_apart_stay_rows),
        cmocka_unit_test(equal_batches_have_equal_images),
        cmocka_unit_test(large_tensors_are_cut_and_too_long_rows_refused),
        cmocka_unit_test(bad_args_are_refused_with_their_tensor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
