/* SPDX-License-Identifier: Apache-2.0 */
/* test_magnitudes.c - ranks that hold parts of blocks of scales make the bytes of an unsharded
 * conversion, from host memory and from a GPU's. Without a GPU its half skips aloud. */
#include "refit/magnitudes.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/digest.h"
#include "convert/magnitude.h"
#include "weir/cuda.h"
#include "weir/mesh.h"

#define MAX_RANKS 6u
#define CASES 300

static uint32_t seed;

static uint32_t next_random(uint32_t below)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
}

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

/* Where the tensors of all cases lie. */
typedef struct bench {
    weir_pool *pool;
    weir_work *work; /* NULL: host memory */
} bench;

static uint32_t on_host = WEIR_MEMORY_HOST, on_gpu = WEIR_MEMORY_CUDA;

static bool have_gpu(void)
{
    unsigned n = 0;
    if (weir_cuda_devices(&n) == WEIR_OK)
        return true;
    if (getenv("WEIR_TEST_REQUIRE_GPU") != NULL)
        fail_msg("a GPU is required: %s", weir_last_error());
    print_message("SKIPPED: %s\n", weir_last_error());
    return false;
}

static bench open_bench(void **state)
{
    bench b = { NULL, NULL };
    uint32_t memory = *(uint32_t *)*state;
    if (memory == WEIR_MEMORY_CUDA && !have_gpu())
        skip();
    const char *given = getenv("WEIR_TEST_SEED");
    seed = given != NULL ? (uint32_t)strtoul(given, NULL, 0) : (uint32_t)time(NULL);
    print_message("WEIR_TEST_SEED=%" PRIu32 "\n", seed);
    must(weir_pool_open(2, &b.pool));
    if (memory == WEIR_MEMORY_CUDA)
        must(weir_work_open(memory, 0, b.pool, &b.work));
    return b;
}

static void close_bench(bench *b)
{
    weir_work_close(b->work);
    weir_pool_close(b->pool);
}

/* Copies to or from the GPU, and waits. */
static void copy(const bench *b, void *to, const void *from, size_t n_bytes)
{
    void *stream = weir_work_stream(b->work, WEIR_LANE_COMPUTE);
    must(weir_cuda_copy(0, to, from, n_bytes, stream));
    must(weir_cuda_stream_wait(0, stream));
}

/* One matrix, the ranks that hold parts of it, and what each of them makes. */
typedef struct matrix_case {
    bench *bench;
    weir_fleet_tensor tensor;
    weir_conversion conversion;
    weir_dtype dtype;
    weir_trainer_mesh mesh;
    weir_tensor whole;        /* in host memory */
    unsigned char *on_device; /* the same on the GPU, where ranks have their rows then */
    uint64_t n_bytes;
    weir_fleet *fleet;
    uint32_t n_ranks;
    struct rank_case {
        weir_share *share;
        weir_magnitudes *magnitudes;
        weir_arena arena;
        unsigned char **borrowed; /* of each loan */
    } ranks[MAX_RANKS];
} matrix_case;

static void fill(matrix_case *c)
{
    uint64_t n = c->whole.shape.dim[0] * c->whole.shape.dim[1];
    c->n_bytes = n * weir_dtype_bits(c->dtype) / 8;
    c->whole.data = malloc(n * 4);
    assert_non_null(c->whole.data);
    for (uint64_t i = 0; i < n; i++) {
        uint32_t bits = 0x3C000000u + (next_random(1u << 24) << 2) + (next_random(2) << 31);
        if (c->dtype == WEIR_F32)
            ((uint32_t *)c->whole.data)[i] = bits;
        else
            ((uint16_t *)c->whole.data)[i] = (uint16_t)(bits >> 16);
    }
}

/* What the ranks see of the whole. */
static void upload(matrix_case *c)
{
    void *data = NULL;
    if (c->bench->work == NULL)
        return;
    if (c->on_device == NULL)
        must(weir_work_allocate(c->bench->work, c->n_bytes, &data));
    c->on_device = c->on_device != NULL ? c->on_device : data;
    copy(c->bench, c->on_device, c->whole.data, c->n_bytes);
}

static void open_case(matrix_case *c, bench *b)
{
    const weir_conversion *row;
    uint32_t n_rows = 1 + next_random(700), n_cols = 8 * (1 + next_random(60));
    const weir_dtype dtypes[] = { WEIR_BF16, WEIR_BF16, WEIR_F32, WEIR_F16 };
    bool by_columns = next_random(2) == 1;
    if (next_random(16) == 0) { /* rows that no tile holds */
        n_rows = 1 + next_random(6);
        n_cols = 8 * (2000 + next_random(3000));
    }
    must(
        weir_conversion_get(next_random(2) ? "fp8_128x128" : "cutlass_fp8_e4m3_per_channel", &row));
    *c = (matrix_case){ .conversion = *row, .dtype = dtypes[next_random(4)], .bench = b };
    c->conversion.by_magnitude = true;
    c->tensor = (weir_fleet_tensor){ .name = "matrix",
                                     .conversion = &c->conversion,
                                     .cut = by_columns ? WEIR_CUT_ROW : WEIR_CUT_COLUMN,
                                     .source_bits = weir_dtype_bits(c->dtype),
                                     .n_cols = n_cols,
                                     .n_sources = 1,
                                     .n_parts = 1,
                                     .source_rows = { n_rows },
                                     .parts = { { 0, 0, 0, n_rows } } };
    c->whole = (weir_tensor){ "matrix", c->dtype, { 2, { n_rows, n_cols } }, NULL };
    c->mesh = (weir_trainer_mesh){ .fsdp = 1 + next_random(3), .tp = 1 + next_random(2) };
    weir_replica_mesh replica = { .vocabulary_pad = 1 };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    args.tensors = &c->tensor;
    args.n_tensors = 1;
    args.trainer = &c->mesh;
    args.replica = &replica;
    must(weir_fleet_open(&args, &c->fleet));
    c->n_ranks = weir_fleet_ranks(c->fleet);
    fill(c);
    upload(c);
}

static weir_magnitude_rows rows_of(const matrix_case *c, uint32_t row, uint32_t col,
                                   uint32_t n_rows, uint32_t n_cols)
{
    size_t element_bytes = weir_dtype_bits(c->dtype) / 8;
    uint64_t pitch = c->whole.shape.dim[1] * element_bytes;
    unsigned char *from = c->on_device != NULL ? c->on_device : c->whole.data;
    unsigned char *data = from + row * pitch + col * element_bytes;
    return (weir_magnitude_rows){ { "matrix", c->dtype, { 2, { n_rows, n_cols } }, data }, pitch };
}

static void aim(matrix_case *c, struct rank_case *rank)
{
    const weir_share *share = rank->share;
    for (size_t p = 0; p < share->n_pieces; p++) {
        const weir_share_piece *piece = &share->pieces[p];
        if (piece->loan != WEIR_ANY)
            continue;
        weir_magnitude_rows rows =
            rows_of(c, piece->source_row, piece->source_col, piece->n_rows, piece->n_cols);
        weir_magnitudes_aim_piece(rank->magnitudes, p, &rows);
    }
    for (size_t j = 0; j < share->n_jobs; j++) {
        const weir_fleet_copy *copy = &share->jobs[j].copy;
        if (share->jobs[j].border == WEIR_ANY)
            continue;
        weir_magnitude_rows rows =
            rows_of(c, copy->source_row, copy->source_col, copy->n_rows, copy->n_cols);
        weir_magnitudes_aim_job(rank->magnitudes, j, &rows);
    }
}

/* What a rank lends is what the reference finds, bit for bit. */
static void check_measured(const matrix_case *c, const struct rank_case *rank)
{
    const weir_share *share = rank->share;
    for (size_t b = 0; b < share->n_borders; b++) {
        const weir_share_border *border = &share->borders[b];
        uint32_t n;
        const float *own = weir_magnitudes_own(rank->magnitudes, (uint32_t)b, &n);
        float *wanted = calloc(n, sizeof(*wanted));
        assert_non_null(wanted);
        for (size_t k = border->first_piece; k < border->first_piece + border->n_pieces; k++) {
            const weir_share_piece *piece = &share->pieces[k];
            if (piece->loan != WEIR_ANY)
                continue;
            size_t element_bytes = weir_dtype_bits(c->dtype) / 8;
            uint64_t pitch = c->whole.shape.dim[1] * element_bytes;
            weir_magnitude_view view = { .dtype = c->dtype,
                                         .data = (unsigned char *)c->whole.data +
                                                 piece->source_row * pitch +
                                                 piece->source_col * element_bytes,
                                         .pitch_bytes = pitch,
                                         .n_rows = piece->n_rows,
                                         .n_cols = piece->n_cols,
                                         .row = piece->row - border->copy.row,
                                         .col = piece->col - border->copy.col,
                                         .block_rows = border->block_rows,
                                         .block_cols = border->block_cols };
            weir_magnitude_raise(&view, border->n_block_cols, wanted);
        }
        assert_memory_equal(own, wanted, n * sizeof(*own));
        free(wanted);
    }
}

static void open_rank(matrix_case *c, uint32_t r)
{
    struct rank_case *rank = &c->ranks[r];
    must(weir_fleet_share(c->fleet, r, &rank->share));
    weir_arena_init(&rank->arena, 0);
    weir_magnitudes_options options = { .share = rank->share,
                                        .tensors = &c->tensor,
                                        .pool = c->bench->pool,
                                        .work = c->bench->work,
                                        .timeout_ms = 20000,
                                        .arena = &rank->arena };
    must(weir_magnitudes_open(&options, &rank->magnitudes));
    aim(c, rank);
    must(weir_magnitudes_measure(rank->magnitudes));
    check_measured(c, rank);
    rank->borrowed = calloc(rank->share->n_borrows + 1, sizeof(*rank->borrowed));
    assert_non_null(rank->borrowed);
    for (size_t i = 0; i < rank->share->n_borrows; i++)
        assert_non_null(rank->borrowed[i] = calloc(1, rank->share->borrows[i].n_bytes));
}

/* Hands over what every rank lends. */
static void lend_all(matrix_case *c)
{
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        const weir_share *lender = c->ranks[r].share;
        for (size_t l = 0; l < lender->n_lends; l++) {
            struct rank_case *to = &c->ranks[lender->lends[l].rank];
            size_t loan = 0;
            while (to->share->borrows[loan].rank != r)
                loan++;
            for (size_t k = 0; k < lender->lends[l].n_pieces; k++) {
                const weir_share_piece *piece = &lender->lent[lender->lends[l].first_piece + k];
                uint32_t n;
                const float *own = weir_magnitudes_own(c->ranks[r].magnitudes, piece->border, &n);
                assert_true(piece->offset + n * 4 <= to->share->borrows[loan].n_bytes);
                memcpy(to->borrowed[loan] + piece->offset, own, n * sizeof(*own));
            }
        }
    }
}

static const void *loan_at(void *context, uint32_t loan, uint64_t offset)
{
    return ((struct rank_case *)context)->borrowed[loan] + offset;
}

/* Jobs that lie on one rank alone. */
static void convert_plain(matrix_case *c, const struct rank_case *rank, const weir_shard *shards,
                          unsigned char *data, weir_digest *digests)
{
    for (size_t j = 0; j < rank->share->n_jobs; j++) {
        const weir_share_job *job = &rank->share->jobs[j];
        const weir_fleet_copy *copy = &job->copy;
        if (job->border != WEIR_ANY)
            continue;
        weir_digest made[WEIR_MAX_OUTPUTS] = { { 0, 0 } };
        weir_magnitude_rows rows =
            rows_of(c, copy->source_row, copy->source_col, copy->n_rows, copy->n_cols);
        if (c->on_device != NULL)
            rows.view.data =
                (unsigned char *)c->whole.data + ((unsigned char *)rows.view.data - c->on_device);
        weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
        args.conversion = &c->conversion;
        args.sources = &rows.view;
        args.source_pitches = &rows.pitch_bytes;
        args.n_sources = 1;
        args.round_masters = true;
        args.digests = made;
        memcpy(args.first_words, job->first_words, sizeof(args.first_words));
        for (size_t o = 0; o < c->conversion.n_outputs; o++)
            args.outputs[o] = data + shards[job->shards[o]].offset + job->offsets[o];
        must(weir_convert(&args));
        for (size_t o = 0; o < c->conversion.n_outputs; o++)
            weir_digest_merge(&digests[job->shards[o]], &made[o]);
    }
}

/* Compares a shard with its box of the whole conversion. */
static void check_shard(const weir_share_shard *shard, const unsigned char *made,
                        const unsigned char *whole, unsigned bits, const weir_digest *digest)
{
    uint32_t rank = shard->shape.rank;
    uint64_t n_cols = rank == 2 ? shard->shape.dim[1] : 1;
    uint64_t lo = rank == 2 ? shard->box.lo[1] : 0, hi = rank == 2 ? shard->box.hi[1] : 1;
    size_t run_bytes = (hi - lo) * bits / 8;
    for (uint64_t r = shard->box.lo[0]; r < shard->box.hi[0]; r++) {
        const unsigned char *expected = whole + (r * n_cols + lo) * bits / 8;
        assert_memory_equal(made + (r - shard->box.lo[0]) * run_bytes, expected, run_bytes);
    }
    weir_digest found = { 0, 0 };
    uint64_t n_rows = shard->box.hi[0] - shard->box.lo[0];
    weir_digest_add(&found, made, rank == 2 ? n_rows : 1,
                    rank == 2 ? run_bytes : n_rows * run_bytes);
    assert_true(weir_digest_equal(&found, digest));
}

/* On a GPU into its memory, or into host memory that it reaches, which `data` is. */
static weir_status convert_borders(matrix_case *c, struct rank_case *rank, const weir_shard *shards,
                                   unsigned char *data, weir_digest *digests, uint64_t n_bytes)
{
    void *slot = data;
    bool to_gpu = c->on_device != NULL && next_random(2) == 1;
    if (to_gpu) {
        must(weir_work_allocate(c->bench->work, n_bytes, &slot));
        copy(c->bench, slot, data, n_bytes);
    }
    weir_magnitude_target target = { slot, shards, 0, rank->share->n_jobs, NULL, digests, true };
    weir_status status = weir_magnitudes_convert(rank->magnitudes, &target);
    if (to_gpu) {
        copy(c->bench, data, slot, n_bytes);
        weir_work_free(c->bench->work, slot, n_bytes);
    }
    return status;
}

static unsigned char *make_slot(const matrix_case *c, uint64_t n_bytes)
{
    void *data = NULL;
    if (c->bench->work != NULL)
        must(weir_work_allocate_host(c->bench->work, n_bytes, &data));
    else
        data = malloc(n_bytes);
    assert_non_null(data);
    memset(data, 0xA5, n_bytes);
    return data;
}

static void free_slot(const matrix_case *c, unsigned char *data, uint64_t n_bytes)
{
    if (c->bench->work != NULL)
        weir_work_free_host(c->bench->work, data, n_bytes);
    else
        free(data);
}

/* whole NULL: something is not finite; returns how the borders' conversion went. */
static weir_status check_rank(matrix_case *c, struct rank_case *rank, void *const *whole)
{
    const weir_share *share = rank->share;
    weir_shard *shards = calloc(share->n_shards + 1, sizeof(*shards));
    weir_digest *digests = calloc(share->n_shards + 1, sizeof(*digests));
    uint64_t n_bytes = 64;
    for (size_t i = 0; i < share->n_shards; i++) {
        shards[i].offset = n_bytes;
        n_bytes += share->shards[i].n_bytes + 64;
    }
    unsigned char *data = make_slot(c, n_bytes);
    if (whole != NULL)
        convert_plain(c, rank, shards, data, digests);
    weir_status status = convert_borders(c, rank, shards, data, digests, n_bytes);
    if (whole != NULL)
        must(status);
    for (size_t i = 0; i < share->n_shards && whole != NULL; i++) {
        uint32_t o = share->shards[i].output;
        check_shard(&share->shards[i], data + shards[i].offset, whole[o],
                    weir_dtype_bits(c->conversion.outputs[o].dtype), &digests[i]);
    }
    free_slot(c, data, n_bytes);
    free(digests);
    free(shards);
    return status;
}

static void close_case(matrix_case *c)
{
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        struct rank_case *rank = &c->ranks[r];
        for (size_t i = 0; i < rank->share->n_borrows; i++)
            free(rank->borrowed[i]);
        free(rank->borrowed);
        weir_magnitudes_close(rank->magnitudes);
        weir_share_free(rank->share);
        weir_arena_close(&rank->arena);
    }
    weir_fleet_close(c->fleet);
    if (c->on_device != NULL)
        weir_work_free(c->bench->work, c->on_device, c->n_bytes);
    free(c->whole.data);
}

/* Returns how many borders several ranks shared. */
static size_t run_case(bench *b)
{
    matrix_case c;
    size_t n_borders = 0;
    open_case(&c, b);
    void *whole[WEIR_MAX_OUTPUTS];
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    args.conversion = &c.conversion;
    args.sources = &c.whole;
    args.n_sources = 1;
    args.round_masters = true;
    args.reference = true;
    for (size_t o = 0; o < c.conversion.n_outputs; o++) {
        weir_shape shape;
        uint64_t n_bytes;
        must(weir_conversion_output_shape(&c.conversion, o, &c.whole.shape, &shape));
        must(weir_tensor_bytes(c.conversion.outputs[o].dtype, &shape, &n_bytes));
        args.outputs[o] = whole[o] = malloc(n_bytes);
    }
    must(weir_convert(&args));
    for (uint32_t r = 0; r < c.n_ranks; r++)
        open_rank(&c, r);
    lend_all(&c);
    for (uint32_t r = 0; r < c.n_ranks; r++) {
        weir_magnitudes_join(c.ranks[r].magnitudes, loan_at, &c.ranks[r]);
        check_rank(&c, &c.ranks[r], whole);
        n_borders += c.ranks[r].share->n_borders;
    }
    for (size_t o = 0; o < c.conversion.n_outputs; o++)
        free(whole[o]);
    close_case(&c);
    return n_borders;
}

static void ranks_that_hold_parts_of_blocks_make_the_bytes_of_the_whole(void **state)
{
    bench b = open_bench(state);
    size_t n_borders = 0;
    for (int i = 0; i < CASES; i++)
        n_borders += run_case(&b);
    close_bench(&b);
    assert_true(n_borders > CASES);
}

/* Makes the first element of some rank's part of a border NaN. False where none has any. */
static bool spoil(matrix_case *c, const struct rank_case *rank)
{
    const weir_share *share = rank->share;
    for (size_t p = 0; p < share->n_pieces; p++) {
        const weir_share_piece *piece = &share->pieces[p];
        uint64_t at = piece->source_row * c->whole.shape.dim[1] + piece->source_col;
        if (piece->loan != WEIR_ANY)
            continue;
        if (c->dtype == WEIR_F32)
            ((uint32_t *)c->whole.data)[at] = 0xFFC00000u;
        else
            ((uint16_t *)c->whole.data)[at] = 0xFFC0u;
        upload(c);
        return true;
    }
    return false;
}

static void a_weight_that_is_not_finite_is_refused_by_all_that_share_its_block(void **state)
{
    bench b = open_bench(state);
    size_t n_spoilt = 0;
    for (int i = 0; i < 40; i++) {
        matrix_case c;
        bool spoilt = false;
        size_t n_refused = 0;
        open_case(&c, &b);
        for (uint32_t r = 0; r < c.n_ranks && !spoilt; r++) {
            struct rank_case planned = { 0 };
            must(weir_fleet_share(c.fleet, r, &planned.share));
            spoilt = spoil(&c, &planned);
            weir_share_free(planned.share);
        }
        for (uint32_t r = 0; r < c.n_ranks; r++)
            open_rank(&c, r);
        lend_all(&c);
        for (uint32_t r = 0; r < c.n_ranks; r++) {
            weir_magnitudes_join(c.ranks[r].magnitudes, loan_at, &c.ranks[r]);
            weir_status status = check_rank(&c, &c.ranks[r], NULL);
            assert_true(status == WEIR_OK || status == WEIR_ERR_NONFINITE);
            assert_true(status == WEIR_OK || strstr(weir_last_error(), "matrix") != NULL);
            n_refused += status != WEIR_OK;
        }
        assert_true(spoilt ? n_refused >= 2 : n_refused == 0);
        n_spoilt += spoilt;
        close_case(&c);
    }
    close_bench(&b);
    assert_true(n_spoilt > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        { "host: ranks make the bytes of the whole",
          ranks_that_hold_parts_of_blocks_make_the_bytes_of_the_whole, NULL, NULL, &on_host },
        { "GPU: ranks make the bytes of the whole",
          ranks_that_hold_parts_of_blocks_make_the_bytes_of_the_whole, NULL, NULL, &on_gpu },
        { "host: what is not finite is refused by all that share its block",
          a_weight_that_is_not_finite_is_refused_by_all_that_share_its_block, NULL, NULL,
          &on_host },
        { "GPU: what is not finite is refused by all that share its block",
          a_weight_that_is_not_finite_is_refused_by_all_that_share_its_block, NULL, NULL, &on_gpu },
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
