/* SPDX-License-Identifier: Apache-2.0 */
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
#include "weir/mesh.h"

#define MAX_RANKS 6u
#define CASES 300

static uint32_t seed;

static uint32_t next_random(uint32_t below)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
}

#define must(call) assert_int_equal(call, WEIR_OK)

/* One matrix, the ranks that hold parts of it, and what each of them makes. */
typedef struct matrix_case {
    weir_fleet_tensor tensor;
    weir_conversion conversion;
    weir_dtype dtype;
    weir_trainer_mesh mesh;
    weir_tensor whole;
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

static void open_case(matrix_case *c)
{
    const weir_conversion *row;
    uint32_t n_rows = 1 + next_random(700), n_cols = 8 * (1 + next_random(60));
    bool by_columns = next_random(2) == 1;
    must(
        weir_conversion_get(next_random(2) ? "fp8_128x128" : "cutlass_fp8_e4m3_per_channel", &row));
    *c = (matrix_case){ .conversion = *row, .dtype = next_random(3) ? WEIR_BF16 : WEIR_F32 };
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
}

static weir_magnitude_rows rows_of(const matrix_case *c, uint32_t row, uint32_t col,
                                   uint32_t n_rows, uint32_t n_cols)
{
    size_t element_bytes = weir_dtype_bits(c->dtype) / 8;
    uint64_t pitch = c->whole.shape.dim[1] * element_bytes;
    unsigned char *data = (unsigned char *)c->whole.data + row * pitch + col * element_bytes;
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

static void open_rank(matrix_case *c, uint32_t r, weir_pool *pool)
{
    struct rank_case *rank = &c->ranks[r];
    must(weir_fleet_share(c->fleet, r, &rank->share));
    weir_arena_init(&rank->arena, 0);
    must(weir_magnitudes_open(rank->share, &c->tensor, pool, &rank->arena, &rank->magnitudes));
    aim(c, rank);
    must(weir_magnitudes_measure(rank->magnitudes));
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

static void check_rank(matrix_case *c, struct rank_case *rank, void *const whole[])
{
    const weir_share *share = rank->share;
    weir_shard *shards = calloc(share->n_shards + 1, sizeof(*shards));
    weir_digest *digests = calloc(share->n_shards + 1, sizeof(*digests));
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < share->n_shards; i++) {
        shards[i].offset = n_bytes;
        n_bytes += share->shards[i].n_bytes + 64;
    }
    unsigned char *data = malloc(n_bytes + 1);
    memset(data, 0xA5, n_bytes);
    convert_plain(c, rank, shards, data, digests);
    weir_magnitude_target target = { data, shards, 0, share->n_jobs, NULL, digests, true };
    must(weir_magnitudes_convert(rank->magnitudes, &target));
    for (size_t i = 0; i < share->n_shards; i++) {
        uint32_t o = share->shards[i].output;
        check_shard(&share->shards[i], data + shards[i].offset, whole[o],
                    weir_dtype_bits(c->conversion.outputs[o].dtype), &digests[i]);
    }
    free(data);
    free(digests);
    free(shards);
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
    free(c->whole.data);
}

/* Returns how many borders several ranks shared. */
static size_t run_case(weir_pool *pool)
{
    matrix_case c;
    size_t n_borders = 0;
    open_case(&c);
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
        open_rank(&c, r, pool);
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
    (void)state;
    const char *given = getenv("WEIR_TEST_SEED");
    seed = given != NULL ? (uint32_t)strtoul(given, NULL, 0) : (uint32_t)time(NULL);
    print_message("WEIR_TEST_SEED=%" PRIu32 "\n", seed);
    weir_pool *pool;
    size_t n_borders = 0;
    must(weir_pool_open(2, &pool));
    for (int i = 0; i < CASES; i++)
        n_borders += run_case(pool);
    weir_pool_close(pool);
    assert_true(n_borders > CASES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_that_hold_parts_of_blocks_make_the_bytes_of_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
