/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_digest.c - ranges of GPU memory digested as weir_digest_rectangle() does; what is not
 * finite is named. The plan of it needs no GPU; the rest is skipped without one. */
#include "base/alloc.h"
#include "convert/cuda/cuda_digest.h"
#include "convert/cuda_case.h"
#include "convert/piece_case.h"

#define MAX_RANGES 64

/* Ranges on the GPU beside their bytes here. */
typedef struct digest_rig {
    cuda_rig *rig;
    size_t n;
    weir_cuda_range ranges[MAX_RANGES];
    unsigned char *host[MAX_RANGES];
    weir_digest got[MAX_RANGES];
} digest_rig;

static void rig_begin(digest_rig *r)
{
    *r = (digest_rig){ .rig = rig_open() };
}

static void rig_end(digest_rig *r)
{
    rig_close(r->rig);
}

static weir_cuda_range *add_range(digest_rig *r, uint64_t n_rows, uint64_t row_bytes, size_t offset,
                                  uint64_t *seed)
{
    assert_true(r->n < MAX_RANGES);
    size_t i = r->n++, n_bytes = n_rows * row_bytes;
    unsigned char *data = (unsigned char *)rig_device(r->rig, n_bytes + offset + 1) + offset;
    r->host[i] = rig_host(r->rig, n_bytes);
    for (size_t k = 0; k < n_bytes; k++)
        r->host[i][k] = (unsigned char)next_random(seed);
    must(weir_cuda_copy(0, data, r->host[i], n_bytes, r->rig->stream));
    r->ranges[i] = (weir_cuda_range){ .name = "range",
                                      .data = data,
                                      .n_rows = n_rows,
                                      .row_bytes = row_bytes,
                                      .first_word = next_random(seed) >> 20,
                                      .digest = &r->got[i] };
    return &r->ranges[i];
}

static weir_status run_ranges(digest_rig *r)
{
    weir_status status = weir_cuda_batch_digest(r->rig->batch, r->ranges, r->n, r->rig->stream);
    return status == WEIR_OK ? weir_cuda_batch_wait(r->rig->batch) : status;
}

static void check_ranges(digest_rig *r)
{
    memset(r->got, 0xEE, sizeof(r->got));
    must(run_ranges(r));
    for (size_t i = 0; i < r->n; i++) {
        const weir_cuda_range *range = &r->ranges[i];
        weir_digest want = { 0, 0 };
        weir_digest_rectangle(&want, r->host[i], range->row_bytes, range->n_rows, range->row_bytes,
                              range->first_word, weir_digest_words_per_row(range->row_bytes));
        if (!weir_digest_equal(&want, &r->got[i]))
            fail_msg("range %zu: %llu rows of %llu bytes at %p", i,
                     (unsigned long long)range->n_rows, (unsigned long long)range->row_bytes,
                     range->data);
    }
}

static void ranges_of_any_shape_in_one_batch_equal_the_reference(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    uint64_t seed = 41;
    for (int round = 0; round < 12; round++) {
        digest_rig r;
        rig_begin(&r);
        for (int i = 0; i < 40; i++) {
            bool whole = random_below(&seed, 3) != 0;
            uint64_t n_rows = 1 + random_below(&seed, random_below(&seed, 2) ? 400 : 2);
            uint64_t row_bytes = whole ? 8 * random_below(&seed, 900) : random_below(&seed, 3000);
            add_range(&r, random_below(&seed, 20) ? n_rows : 0, row_bytes,
                      row_bytes % 8 == 0 ? 8 * random_below(&seed, 2) : random_below(&seed, 9),
                      &seed);
        }
        check_ranges(&r);
        rig_end(&r);
    }
}

/* Around the ends of slices and of pairs of words, aligned to 16 bytes and not. */
static void the_ends_of_slices_are_not_missed(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    uint64_t seed = 42;
    const uint64_t slice = (uint64_t)WEIR_CUDA_SLICE_WORDS * 8;
    for (size_t offset = 0; offset <= 8; offset += 8) {
        digest_rig r;
        rig_begin(&r);
        for (uint64_t n_slices = 1; n_slices <= 2; n_slices++) {
            for (int words = -2; words <= 2; words++) {
                for (uint64_t tail = 0; tail < 8; tail += 7)
                    add_range(&r, 1, n_slices * slice + (uint64_t)(8 * words) + tail, offset,
                              &seed);
            }
        }
        add_range(&r, 1, 3, 0, &seed);
        add_range(&r, 1, 11, 8, &seed);
        check_ranges(&r);
        rig_end(&r);
    }
}

static const struct {
    weir_dtype dtype;
    uint32_t bits;
    bool refused;
    const char *verdict;
} values[] = {
    { WEIR_BF16, 0x7F80, true, "is +Inf" },    { WEIR_BF16, 0xFFC1, true, "is NaN" },
    { WEIR_BF16, 0xFF7F, false, "" },          { WEIR_F16, 0xFC00, true, "is -Inf" },
    { WEIR_F16, 0x7BFF, false, "" },           { WEIR_F16, 0x7C01, true, "is NaN" },
    { WEIR_F32, 0x7F800001u, true, "is NaN" }, { WEIR_F32, 0xFF800000u, true, "is -Inf" },
    { WEIR_F32, 0x7F7FFFFFu, false, "" },      { WEIR_F32, 0x7F7FFFFFu, false, "" },
};

/* Everything else is random but finite. */
static void put_finite(digest_rig *r, size_t i, weir_dtype dtype, uint64_t *seed)
{
    weir_cuda_range *range = &r->ranges[i];
    size_t n_bytes = range->n_rows * range->row_bytes;
    fill(r->host[i], dtype, n_bytes / (weir_dtype_bits(dtype) / 8), WIDE, seed);
    range->dtype = dtype;
    range->check = true;
}

static void send_range(digest_rig *r, size_t i)
{
    const weir_cuda_range *range = &r->ranges[i];
    void *data;
    memcpy(&data, &range->data, sizeof(data));
    must(weir_cuda_copy(0, data, r->host[i], range->n_rows * range->row_bytes, r->rig->stream));
    must(weir_cuda_stream_wait(0, r->rig->stream));
}

static void what_is_not_finite_is_refused_with_name_and_position(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    uint64_t seed = 43;
    const uint64_t row_bytes[] = { 4096, 1000, 1004 }; /* whole words, and rows that are ragged */
    for (size_t v = 0; v < sizeof(values) / sizeof(values[0]); v++) {
        for (size_t k = 0; k < 3; k++) {
            digest_rig r;
            char line[64];
            rig_begin(&r);
            for (size_t i = 0; i < 3; i++) {
                add_range(&r, 70, row_bytes[k], row_bytes[k] % 8 == 0 ? 8 : 4, &seed);
                put_finite(&r, i, values[v].dtype, &seed);
                send_range(&r, i);
            }
            check_ranges(&r);
            size_t n = 70 * row_bytes[k] / (weir_dtype_bits(values[v].dtype) / 8);
            size_t at = random_below(&seed, n);
            put_bits(r.host[1], values[v].dtype, at, values[v].bits);
            send_range(&r, 1);
            r.ranges[1].name = "bad";
            snprintf(line, sizeof(line), "bad[%zu] %s", at, values[v].verdict);
            assert_int_equal(run_ranges(&r), values[v].refused ? WEIR_ERR_NONFINITE : WEIR_OK);
            if (values[v].refused)
                assert_string_equal(weir_last_error(), line);
            r.ranges[1].check = false; /* then it is bytes like any */
            check_ranges(&r);
            rig_end(&r);
        }
    }
}

static void a_batch_serves_conversions_and_digests_in_turns(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    uint64_t seed = 44;
    digest_rig r;
    rig_begin(&r);
    weir_tensor source =
        rig_tensor(r.rig, "w", WEIR_BF16, (weir_shape){ 2, { 300, 512 } }, NORMAL, &seed);
    rig_add(r.rig, args_for("fp8_128x128", &source, 1), 0);
    add_range(&r, 100, 512, 0, &seed);
    add_range(&r, 7, 33, 1, &seed);
    rig_check(r.rig);
    check_ranges(&r);
    uint64_t before = weir_alloc_count();
    for (int i = 0; i < 3; i++) {
        must(rig_run(r.rig));
        check_ranges(&r);
    }
    assert_int_equal(weir_alloc_count(), before);
    rig_check(r.rig);
    rig_end(&r);
}

/* What was converted has the digest that the conversion gave. */
static void pieces_add_up_to_the_whole(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    static const char *const names[] = { "fp8_128x128", "cutlass_fp8_e4m3_per_channel", "bf16_cast",
                                         "fp32_cast" };
    static pieces all;
    uint64_t seed = 45;
    cuda_rig *rig = rig_open();
    for (size_t k = 0; k < 48; k++) {
        const weir_shape shapes[] = {
            { 2, { 700, 520 } }, { 3, { 4, 333, 260 } }, { 2, { 400, 131 } }, { 1, { 5000 } }
        };
        weir_shape shape = shapes[k / 4 % (k % 4 < 2 ? 3 : 4)];
        weir_dtype dtype = k / 16 == 0 ? WEIR_BF16 : k / 16 == 1 ? WEIR_F16 : WEIR_F32;
        weir_tensor source = rig_tensor(rig, "w", dtype, shape, NORMAL, &seed);
        cuda_case *c = rig_add(rig, args_for(names[k % 4], &source, 1), 0);
        pieces_cut(&all, &c->device, &seed);
        for (size_t i = 0; i < all.n; i++)
            rig->args[i] = all.piece[i].args;
        must(weir_cuda_batch_start(rig->batch, rig->args, all.n, rig->stream));
        must(weir_cuda_batch_wait(rig->batch));
        pieces_add_up(&all, c->got_digests);
        case_check(rig, c);
        rig_clear(rig);
    }
    rig_close(rig);
}

/* ---- without a GPU ---------------------------------------------------------------------------*/

static void assert_refused(weir_cuda_range range, weir_status want, const char *error)
{
    unsigned char image[256] __attribute__((aligned(16)));
    uint32_t n_slices;
    assert_true(weir_cuda_digests_image_bytes(1) <= sizeof(image));
    assert_int_equal(weir_cuda_digests_plan(&range, 1, image, &n_slices), want);
    if (want != WEIR_OK && strstr(weir_last_error(), error) == NULL)
        fail_msg("'%s' is not in '%s'", error, weir_last_error());
}

static void ranges_that_a_kernel_cannot_take_are_refused(void **state)
{
    (void)state;
    weir_digest digest;
    unsigned char *data = (unsigned char *)(uintptr_t)4096;
    const weir_cuda_range good = { "w", data, 4, 64, 0, WEIR_BF16, true, &digest };
    weir_cuda_range bad = good;
    assert_refused(good, WEIR_OK, "");
    bad.data = data + 4;
    assert_refused(bad, WEIR_ERR_INVALID, "w is not aligned to 8 bytes");
    bad.row_bytes = 66;
    assert_refused(bad, WEIR_OK, "");
    bad.data = data + 1;
    assert_refused(bad, WEIR_ERR_INVALID, "w is not aligned to 2 bytes");
    bad = good;
    bad.row_bytes = 63;
    assert_refused(bad, WEIR_ERR_INVALID, "w is not aligned to 2 bytes");
    bad = good;
    bad.dtype = WEIR_I32;
    assert_refused(bad, WEIR_ERR_INVALID, "w has dtype I32, only BF16, F16 and F32");
    bad.check = false;
    assert_refused(bad, WEIR_OK, "");
    bad.digest = NULL;
    assert_refused(bad, WEIR_ERR_INVALID, "w has no digest to fill");
    bad = good;
    bad.data = NULL;
    assert_refused(bad, WEIR_ERR_INVALID, "w has no data");
    bad.n_rows = 0;
    assert_refused(bad, WEIR_OK, "");
    bad = good;
    bad.n_rows = UINT64_MAX / 8;
    assert_refused(bad, WEIR_ERR_INVALID, "w: a range of more than 2^64 bytes");
    bad.row_bytes = 8;
    assert_refused(bad, WEIR_ERR_UNSUPPORTED, "w: more bytes than one launch digests");
}

static void slices_are_numbered_through_and_empty_ranges_have_none(void **state)
{
    (void)state;
    weir_digest digest;
    unsigned char *data = (unsigned char *)(uintptr_t)4096,
                  image[1024] __attribute__((aligned(16)));
    const uint64_t slice = (uint64_t)WEIR_CUDA_SLICE_WORDS * 8;
    const weir_cuda_range ranges[] = {
        { "a", data, 1, slice, 0, WEIR_U8, false, &digest },
        { "b", data + 8, 1, slice, 0, WEIR_U8, false, &digest }, /* begins within a pair */
        { "none", NULL, 0, 8, 0, WEIR_U8, false, &digest },
        { "c", data, 1, slice + 1, 0, WEIR_U8, false, &digest }, /* a word of its own */
        { "d", data, 2, 3, 0, WEIR_U8, false, &digest },
    };
    uint32_t n_slices = 0;
    assert_true(weir_cuda_digests_image_bytes(5) <= sizeof(image));
    memset(image, 0xEE, sizeof(image));
    must(weir_cuda_digests_plan(ranges, 5, image, &n_slices));
    const weir_cuda_digest_job *jobs = (const weir_cuda_digest_job *)(const void *)image;
    const uint32_t *first =
        (const uint32_t *)(const void *)(image + 5 * sizeof(weir_cuda_digest_job));
    const uint32_t want[] = { 0, 1, 3, 3, 5 };
    assert_memory_equal(first, want, sizeof(want));
    assert_int_equal(n_slices, 6);
    assert_int_equal(jobs[3].n_tail_bytes, 1);
    assert_int_equal(jobs[3].ragged, 0);
    assert_int_equal(jobs[4].ragged, 1);
    assert_int_equal(jobs[4].n_words, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_that_a_kernel_cannot_take_are_refused),
        cmocka_unit_test(slices_are_numbered_through_and_empty_ranges_have_none),
        cmocka_unit_test(ranges_of_any_shape_in_one_batch_equal_the_reference),
        cmocka_unit_test(the_ends_of_slices_are_not_missed),
        cmocka_unit_test(what_is_not_finite_is_refused_with_name_and_position),
        cmocka_unit_test(a_batch_serves_conversions_and_digests_in_turns),
        cmocka_unit_test(pieces_add_up_to_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
