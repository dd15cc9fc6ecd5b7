/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/fleet.h"

#include "base/alloc.h"
#include "base/clock.h"
#include "model_case.h"
#include "share_case.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
#define N_CASES 300
#define TIME_FACTOR 20
#else
#define N_CASES 3000
#define TIME_FACTOR 1
#endif

static uint64_t first_seed(void)
{
    const char *given = getenv("WEIR_TEST_SEED");
    return given != NULL ? strtoull(given, NULL, 10) : weir_now_ns() % 1000000000;
}

/* ---- what ranks hold -------------------------------------------------------------------------*/

/* A case, and boxes of a trainer that no mesh describes. */
typedef struct share_case {
    fleet_case fleet;
    weir_held held[4096];
    size_t n_held;
} share_case;

static bool held_by(const share_case *c, uint32_t rank, uint32_t tensor, uint32_t source,
                    uint32_t expert, uint64_t row, uint64_t col)
{
    for (size_t i = 0; i < c->n_held; i++) {
        const weir_held *h = &c->held[i];
        if (h->rank == rank && h->tensor == tensor && h->source == source &&
            h->expert_lo <= expert && expert < h->expert_hi && h->row_lo <= row &&
            row < h->row_hi && h->col_lo <= col && col < h->col_hi)
            return true;
    }
    return false;
}

static uint16_t read_case(const share_player *p, uint32_t rank, uint32_t tensor, uint32_t source,
                          uint32_t expert, uint64_t row, uint64_t col)
{
    const share_case *c = p->context;
    const weir_fleet_tensor *t = &c->fleet.tensors[tensor];
    if (c->n_held > 0)
        assert_true(held_by(c, rank, tensor, source, expert, row, col));
    else
        assert_true(case_holds(&c->fleet, t, rank, source, expert, row, col));
    return share_value(case_value(source, expert, row, col));
}

/* Cuts a box in two until the pieces are small or luck ends it; some are given out twice. */
static void give_out(share_case *c, weir_held box, uint32_t depth)
{
    uint64_t rows = box.row_hi - box.row_lo, cols = box.col_hi - box.col_lo;
    if (depth > 0 && case_random(&c->fleet, 5) != 0 && rows + cols > 2) {
        weir_held other = box;
        if (cols == 1 || (rows > 1 && case_random(&c->fleet, 2) == 0))
            other.row_lo = box.row_hi = box.row_lo + 1 + case_random(&c->fleet, rows - 1);
        else
            other.col_lo = box.col_hi = box.col_lo + 1 + case_random(&c->fleet, cols - 1);
        give_out(c, box, depth - 1);
        give_out(c, other, depth - 1);
        return;
    }
    for (uint64_t n = 1 + (case_random(&c->fleet, 4) == 0); n > 0; n--) {
        assert_true(c->n_held < sizeof(c->held) / sizeof(c->held[0]));
        box.rank = (uint32_t)case_random(&c->fleet, 5);
        c->held[c->n_held++] = box;
    }
}

static void give_out_all(share_case *c)
{
    for (uint32_t i = 0; i < c->fleet.n_tensors; i++) {
        const weir_fleet_tensor *t = &c->fleet.tensors[i];
        for (uint32_t s = 0; s < t->n_sources; s++) {
            uint32_t n = t->n_experts > 0 ? t->n_experts : 1, x = 0;
            while (x < n) {
                uint32_t end = x + 1 + (uint32_t)case_random(&c->fleet, n - x);
                give_out(c,
                         (weir_held){ .tensor = i,
                                      .source = s,
                                      .expert_lo = x,
                                      .expert_hi = end,
                                      .row_hi = t->source_rows[s],
                                      .col_hi = t->n_cols },
                         3);
                x = end;
            }
        }
    }
}

/* ---- random fleets ---------------------------------------------------------------------------*/

static const weir_conversion *cast_conversion(void)
{
    const weir_conversion *cast;
    assert_int_equal(weir_conversion_get("bf16_cast", &cast), WEIR_OK);
    return cast;
}

/* The case's tensors with conversions that have kernels, and ranks of all kinds. */
static void make_case(share_case *c, uint64_t seed)
{
    case_init(&c->fleet, seed);
    c->n_held = 0;
    for (size_t i = 0; i < c->fleet.n_tensors; i++) {
        weir_fleet_tensor *t = &c->fleet.tensors[i];
        uint32_t leading = t->n_experts > 0 ? 1 : 0;
        const weir_conversion *made[] = { &share_block,
                                          &share_channel,
                                          cast_conversion(),
                                          cast_conversion(),
                                          &share_block_by_magnitude,
                                          &share_channel_by_magnitude };
        t->conversion = made[t->conversion - case_conversions];
        if (t->conversion->n_outputs > 1 || t->cut == WEIR_CUT_ROW || case_random(&c->fleet, 2))
            continue;
        if (case_random(&c->fleet, 2) == 0) {
            t->n_cols = 1;
            t->shape.rank = leading + 1;
        } else if (seed % 2 == 0) { /* columns stay whole, as meshes keep them */
            t->n_cols = 6;
            t->shape = (weir_shape){ leading + 3, { 0 } };
            t->shape.dim[leading + 1] = 2;
            t->shape.dim[leading + 2] = 3;
        }
    }
    if (seed % 2 == 1)
        give_out_all(c);
}

static weir_fleet *open_fleet(const share_case *c)
{
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    weir_fleet *fleet = NULL;
    args.tensors = c->fleet.tensors;
    args.n_tensors = c->fleet.n_tensors;
    args.trainer = c->n_held == 0 ? &c->fleet.trainer : NULL;
    args.held = c->held;
    args.n_held = c->n_held;
    args.replica = &c->fleet.replica;
    if (weir_fleet_open(&args, &fleet) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return fleet;
}

/* ---- a worker has what an unsharded conversion gives -----------------------------------------*/

/* Compares one slot (or the only matrix) of every output with its conversion at once. */
static void check_slot(const share_case *c, const weir_fleet_tensor *t,
                       const weir_mesh_place *place, uint32_t slot, uint32_t expert,
                       const weir_fleet_slice *slice, const share_parameter *parameters)
{
    uint64_t rows, cols;
    uint64_t *places = case_expected(&c->fleet, t, place->d, place->t, expert, &rows, &cols);
    uint16_t *values = calloc(rows * cols + 1, sizeof(*values));
    for (uint64_t i = 0; i < rows * cols; i++)
        values[i] = share_value(places[i]);
    assert_int_equal(rows, slice->n_rows);
    if (slice->n_filled_rows > 0) {
        share_outputs whole = share_convert(t, values, slice->n_filled_rows, cols, NULL);
        for (size_t o = 0; o < t->conversion->n_outputs; o++) {
            const share_parameter *got = &parameters[o];
            uint64_t n = whole.n_bytes[o] / got->element_bytes, first = slot * n;
            assert_true(first + n <= got->n_elements);
            for (uint64_t i = 0; i < n; i++)
                assert_int_equal(got->written[first + i], 1);
            assert_memory_equal(got->data + first * got->element_bytes, whole.data[o],
                                whole.n_bytes[o]);
        }
        share_outputs_free(&whole);
    }
    free(values);
    free(places);
}

static void check_padding(const share_parameter *got, const weir_fleet_slice *slice)
{
    uint64_t n_rows = got->shape.dim[0], per_row = n_rows > 0 ? got->n_elements / n_rows : 0;
    uint64_t filled = n_rows - got->n_padding_rows;
    assert_true(got->n_padding_rows == 0 || slice->n_filled_rows < slice->n_rows);
    for (uint64_t i = 0; i < got->n_elements; i++)
        assert_int_equal(got->written[i], i / per_row < filled);
}

static void check_worker(const share_case *c, const share_player *p, uint32_t worker)
{
    weir_mesh_place place = weir_replica_mesh_place(&c->fleet.replica, worker);
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        const weir_fleet_tensor *t = &p->tensors[i];
        share_parameter parameters[WEIR_MAX_OUTPUTS];
        weir_fleet_slice slice;
        bool expected;
        assert_int_equal(weir_fleet_slice_of(p->fleet, worker, i, &slice), WEIR_OK);
        expected = slice.n_slots > 0;
        for (uint32_t o = 0; o < t->conversion->n_outputs; o++) {
            assert_true(share_assemble(p, &place, i, o, &parameters[o]) == expected);
            if (expected)
                check_padding(&parameters[o], &slice);
        }
        const weir_replica_mesh *r = &c->fleet.replica;
        uint32_t expert_rank = (place.d * r->tp + place.t) / (r->dp * r->tp / r->ep), lo = 0, hi;
        if (t->n_experts > 0 && r->expert_ids == NULL)
            weir_slice_experts(t->n_experts, r->ep, expert_rank, &lo, &hi);
        for (uint32_t slot = 0; slot < slice.n_slots; slot++) {
            uint32_t expert = lo + slot;
            if (t->n_experts > 0 && r->expert_ids != NULL)
                expert = r->expert_ids[r->expert_first[expert_rank] + slot];
            check_slot(c, t, &place, slot, t->n_experts > 0 ? expert : 0, &slice, parameters);
        }
        for (uint32_t o = 0; o < t->conversion->n_outputs; o++)
            share_parameter_free(&parameters[o]);
    }
}

/* ---- the plan's sums are those of all shares -------------------------------------------------*/

static uint64_t readers_of(const weir_replica_mesh *r, const weir_mesh_place *place)
{
    return (uint64_t)r->replicas * (place->d == WEIR_ANY ? r->dp : 1) *
           (place->t == WEIR_ANY ? r->tp : 1);
}

static uint64_t lent_bytes(const weir_share *share)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < share->n_lent; i++) {
        const weir_share_piece *piece = &share->lent[i];
        uint64_t n = (uint64_t)piece->n_rows * piece->n_cols;
        n_bytes += n * (piece->border != WEIR_ANY ? sizeof(float) : sizeof(uint16_t));
    }
    return n_bytes;
}

static void check_sums(const share_case *c, const share_player *p)
{
    uint64_t *sent = calloc(p->n_ranks, 8), *bordered = calloc(p->n_ranks, 8);
    uint64_t n_lent = 0, n_bytes = 0;
    weir_fleet_summary sum;
    assert_int_equal(weir_fleet_summarise(p->fleet, &sum, sent, bordered, NULL), WEIR_OK);
    for (uint32_t rank = 0; rank < p->n_ranks; rank++) {
        const weir_share *share = p->shares[rank];
        uint64_t published = 0;
        for (size_t i = 0; i < share->n_shards; i++)
            published +=
                share->shards[i].n_bytes * readers_of(&c->fleet.replica, &share->shards[i].place);
        assert_int_equal(sent[rank], published);
        assert_int_equal(bordered[rank], lent_bytes(share));
        n_bytes += bordered[rank];
        n_lent += share->n_lent;
    }
    assert_int_equal(sum.n_border_pieces, n_lent);
    assert_int_equal(sum.border_bytes, n_bytes);
    free(sent);
    free(bordered);
}

static void check_case(const share_case *c)
{
    weir_fleet *fleet = open_fleet(c);
    share_player p = { .fleet = fleet,
                       .tensors = c->fleet.tensors,
                       .n_tensors = c->fleet.n_tensors,
                       .read = read_case,
                       .context = c };
    share_play(&p);
    for (uint32_t w = 0; w < weir_fleet_workers(fleet) / c->fleet.replica.replicas; w++)
        check_worker(c, &p, w);
    check_sums(c, &p);
    share_close(&p);
    weir_fleet_close(fleet);
}

static void shards_of_all_ranks_are_every_worker_s_part_converted_at_once(void **state)
{
    (void)state;
    uint64_t seed = first_seed();
    share_case *c = calloc(1, sizeof(*c));
    print_message("WEIR_TEST_SEED=%llu, %d cases from there\n", (unsigned long long)seed, N_CASES);
    for (int i = 0; i < N_CASES; i++) {
        make_case(c, seed + (uint64_t)i);
        check_case(c);
    }
    free(c);
}

/* Matrices of a few blocks, in pieces of any shape on five ranks. */
static void make_matrices(share_case *c, uint64_t seed, const weir_conversion *conversion)
{
    memset(c, 0, sizeof(*c));
    c->fleet.state = seed * 0x9E3779B97F4A7C15 + 1;
    c->fleet.trainer = (weir_trainer_mesh){ .pp = 1, .hsdp = 1, .fsdp = 1, .ep = 1, .tp = 1 };
    c->fleet.replica = (weir_replica_mesh){ .tp = 1, .ep = 1, .dp = 1, .pp = 1, .replicas = 1 };
    c->fleet.n_tensors = 2;
    c->fleet.trainer.n_expert_owners = 2;
    for (size_t i = 0; i < 2; i++) {
        weir_fleet_tensor *t = &c->fleet.tensors[i];
        *t = matrix_of("t", WEIR_CUT_NONE, 0, 1 + case_random(&c->fleet, 300));
        t->conversion = conversion;
        t->n_experts = i == 0 ? 0 : 2;
        t->n_sources = t->n_parts = 1 + (uint32_t)case_random(&c->fleet, WEIR_MAX_PARTS);
        for (uint32_t p = 0; p < t->n_parts; p++) {
            t->source_rows[p] = 1 + case_random(&c->fleet, 200);
            t->parts[p] = (weir_fleet_part){ .source = p, .n_rows = t->source_rows[p] };
        }
    }
    give_out_all(c);
}

static weir_conversion by_magnitude(const char *name, bool is)
{
    const weir_conversion *row;
    assert_int_equal(weir_conversion_get(name, &row), WEIR_OK);
    weir_conversion copy = *row;
    copy.by_magnitude = is;
    return copy;
}

static void kernels_that_scale_by_magnitude_make_the_bytes_of_whole_blocks(void **state)
{
    (void)state;
    uint64_t seed = first_seed();
    share_case *c = calloc(1, sizeof(*c));
    weir_conversion kernels[] = { by_magnitude("fp8_128x128", true),
                                  by_magnitude("cutlass_fp8_e4m3_per_channel", true) };
    print_message("WEIR_TEST_SEED=%llu, %d cases from there\n", (unsigned long long)seed,
                  N_CASES / 50);
    for (int i = 0; i < N_CASES / 50; i++) {
        make_matrices(c, seed + (uint64_t)i, &kernels[i % 2]);
        check_case(c);
    }
    free(c);
}

/* ---- who lends -------------------------------------------------------------------------------*/

static weir_share *share_of(const weir_fleet *fleet, uint32_t rank)
{
    weir_share *share = NULL;
    if (weir_fleet_share(fleet, rank, &share) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return share;
}

static void ranks_that_hold_rows_whole_share_the_work_and_lend_nothing(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 10, 8);
    for (int i = 0; i < 4; i++) {
        bool whole = i % 2 == 1, shared = i == 2; /* by magnitude, and nobody has all of it */
        t.conversion = i < 2 ? &share_block : &share_block_by_magnitude;
        weir_fleet *fleet = open_meshes(&t, 1, whole ? "ep=2,dense_whole=1" : "ep=2", "");
        weir_share *a = share_of(fleet, 0), *b = share_of(fleet, 1);
        assert_true(a->n_jobs > 0 && b->n_jobs > 0);
        assert_int_equal(a->n_lends + b->n_lends, whole ? 0 : 1 + shared);
        assert_int_equal(a->n_borders + b->n_borders, shared ? 2 : 0);
        /* Rows [0, 4), a border (of two pieces), rows [8, 10). */
        assert_int_equal(a->n_jobs + b->n_jobs, 3 + shared);
        weir_share_free(a);
        weir_share_free(b);
        weir_fleet_close(fleet);
    }
}

static void only_the_group_that_sends_has_a_share(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 16, 8);
    weir_fleet *fleet = open_meshes(&t, 1, "hsdp=2,fsdp=2,sender=1", "");
    for (uint32_t rank = 0; rank < 4; rank++) {
        weir_share *share = share_of(fleet, rank);
        assert_true((share->n_jobs > 0) == (rank >= 2));
        assert_true((share->n_shards > 0) == (rank >= 2));
        assert_int_equal(share->n_lends + share->n_borrows, 0);
        weir_share_free(share);
    }
    weir_share *none = NULL;
    assert_int_equal(weir_fleet_share(fleet, 4, &none), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "share of rank 4: there are 4");
    weir_fleet_close(fleet);
}

static void a_border_of_many_blocks_is_divided_among_its_holders(void **state)
{
    (void)state;
    /* A scale per row, and columns on four ranks: each makes a quarter of the rows. */
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_ROW, 64, 16);
    t.conversion = &share_channel;
    weir_fleet *fleet = open_meshes(&t, 1, "tp=4", "");
    for (uint32_t rank = 0; rank < 4; rank++) {
        weir_share *share = share_of(fleet, rank);
        assert_int_equal(share->n_jobs, 1);
        assert_int_equal(share->jobs[0].copy.row, rank * 16);
        assert_int_equal(share->jobs[0].copy.n_rows, 16);
        assert_int_equal(share->n_borrows, 3);
        for (size_t i = 0; i < 3; i++)
            assert_int_equal(share->borrows[i].n_bytes, 16 * 4 * 2);
        weir_share_free(share);
    }
    weir_fleet_close(fleet);
}

static void magnitudes_of_columns_go_to_all_that_have_others(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_ROW, 64, 16);
    t.conversion = &share_channel_by_magnitude;
    weir_fleet *fleet = open_meshes(&t, 1, "tp=4", "");
    for (uint32_t rank = 0; rank < 4; rank++) {
        weir_share *share = share_of(fleet, rank);
        assert_int_equal(share->n_borders, 4); /* each owned by another */
        assert_int_equal(share->n_jobs, 4);
        assert_int_equal(share->n_shards, 2);
        assert_int_equal(share->shards[0].n_bytes, 64 * 4); /* its columns */
        assert_int_equal(share->shards[1].n_bytes, 16 * 4); /* scales of a quarter of the rows */
        assert_int_equal(share->shards[1].box.lo[0], rank * 16);
        assert_int_equal(share->n_borrows, 3);
        assert_int_equal(share->n_lends, 3);
        for (size_t i = 0; i < 3; i++)
            assert_int_equal(share->borrows[i].n_bytes, 64 * sizeof(float));
        weir_share_free(share);
    }
    weir_fleet_close(fleet);
}

static void rows_and_magnitudes_are_lent_side_by_side(void **state)
{
    (void)state;
    /* Rank 0 lends rank 1 one row of three elements, then magnitudes of three blocks. */
    weir_fleet_tensor t[] = { matrix_of("rows", WEIR_CUT_NONE, 6, 3),
                              matrix_of("magnitudes", WEIR_CUT_NONE, 6, 12) };
    weir_held held[] = {
        { .rank = 0, .tensor = 0, .expert_hi = 1, .row_hi = 1, .col_hi = 3 },
        { .rank = 1, .tensor = 0, .expert_hi = 1, .row_lo = 1, .row_hi = 6, .col_hi = 3 },
        { .rank = 0, .tensor = 1, .expert_hi = 1, .row_hi = 1, .col_hi = 12 },
        { .rank = 1, .tensor = 1, .expert_hi = 1, .row_lo = 1, .row_hi = 6, .col_hi = 12 },
    };
    weir_replica_mesh to = { .tp = 1 };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    weir_fleet *fleet = NULL;
    t[0].conversion = &share_block;
    t[1].conversion = &share_block_by_magnitude;
    args.tensors = t;
    args.n_tensors = 2;
    args.held = held;
    args.n_held = 4;
    args.replica = &to;
    assert_int_equal(weir_fleet_open(&args, &fleet), WEIR_OK);
    weir_share *a = share_of(fleet, 0), *b = share_of(fleet, 1);
    assert_int_equal(a->n_lends, 1);
    assert_int_equal(a->n_lent, 2);
    assert_int_equal(a->lent[0].border, WEIR_ANY);
    assert_int_equal(a->lent[1].border, 0);
    assert_int_equal(a->lent[1].offset, 8); /* 6 bytes of a row, then of four */
    assert_int_equal(a->lends[0].n_bytes, 8 + 3 * sizeof(float));
    assert_int_equal(b->borrows[0].n_bytes, a->lends[0].n_bytes);
    assert_int_equal(b->lends[0].n_bytes, 3 * sizeof(float));
    assert_int_equal(a->borrows[0].n_bytes, 3 * sizeof(float));
    weir_share_free(a);
    weir_share_free(b);
    weir_fleet_close(fleet);
}

/* ---- what is joined --------------------------------------------------------------------------*/

static void whole_experts_in_slots_that_follow_each_other_are_one_shard(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("w13", WEIR_CUT_COLUMN, 8, 8);
    t.conversion = &share_block;
    t.n_experts = 6;
    t.n_sources = t.n_parts = 2;
    t.source_rows[1] = 8;
    t.parts[1] = (weir_fleet_part){ .source = 1, .n_rows = 8 };
    weir_fleet *fleet = open_meshes(&t, 1, "ep=2", "");
    for (uint32_t rank = 0; rank < 2; rank++) {
        weir_share *share = share_of(fleet, rank);
        assert_int_equal(share->n_jobs, 6); /* gate and up of three experts */
        assert_int_equal(share->n_shards, 2);
        assert_int_equal(share->shards[0].box.lo[0], rank * 3);
        assert_int_equal(share->shards[0].box.hi[0], rank * 3 + 3);
        assert_int_equal(share->jobs[3].offsets[0], 16 * 8 + 8 * 8);
        assert_int_equal(share->jobs[3].first_words[0], 16 + 8);
        assert_int_equal(share->jobs[5].shards[1], 1);
        weir_share_free(share);
    }
    weir_fleet_close(fleet);
}

static void a_chunk_of_rows_is_one_shard_however_it_lies_to_the_blocks(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 10, 8);
    t.conversion = &share_block_by_magnitude;
    weir_fleet *fleet = open_meshes(&t, 1, "fsdp=2", ""); /* rows [0, 5) and [5, 10) */
    weir_share *a = share_of(fleet, 0), *b = share_of(fleet, 1);
    assert_int_equal(a->n_jobs, 2);
    assert_int_equal(a->n_shards, 2);
    assert_int_equal(a->shards[0].box.hi[0], 5);
    assert_int_equal(a->shards[1].box.hi[0], 1); /* of scales */
    assert_int_equal(a->jobs[0].border, WEIR_ANY);
    assert_int_equal(a->jobs[1].border, 0);
    assert_int_equal(a->jobs[1].offsets[0], 4 * 8);
    assert_int_equal(a->jobs[1].shards[1], WEIR_ANY); /* rank 1 has more rows of the block */
    assert_int_equal(a->borders[0].copy.rank, 1);
    assert_int_equal(b->n_jobs, 2);
    assert_int_equal(b->n_shards, 2);
    assert_int_equal(b->shards[0].box.lo[0], 5);
    assert_int_equal(b->shards[1].box.lo[0], 1);
    assert_int_equal(b->shards[1].box.hi[0], 3);
    assert_int_equal(b->jobs[0].copy.source, 0);
    assert_int_equal(b->jobs[0].copy.source_row, 5);
    assert_int_equal(b->jobs[0].copy.n_rows, 3);
    assert_int_equal(b->jobs[1].offsets[0], 3 * 8);
    assert_int_equal(b->jobs[1].offsets[1], 2 * 4);
    weir_share_free(a);
    weir_share_free(b);
    weir_fleet_close(fleet);
}

static void parts_that_interleave_ranks_are_joined_across_blocks(void **state)
{
    (void)state;
    /* [q; k; v] of 3, 3 and 2 rows, each on two ranks: rows 0, 1, 3, 4 and 6 are rank 0's. */
    weir_fleet_tensor t = matrix_of("qkv", WEIR_CUT_NONE, 3, 8);
    t.conversion = &share_block_by_magnitude;
    add_second(&t, 3);
    t.n_sources = t.n_parts = 3;
    t.source_rows[2] = 2;
    t.parts[2] = (weir_fleet_part){ .source = 2, .n_rows = 2 };
    weir_fleet *fleet = open_meshes(&t, 1, "fsdp=2", "");
    weir_share *share = share_of(fleet, 0);
    const uint64_t rows[3][2] = { { 0, 2 }, { 3, 5 }, { 6, 7 } };
    const uint32_t borders[] = { 0, 0, 1, 1 };
    assert_int_equal(share->n_borders, 2);
    assert_int_equal(share->n_jobs, 4);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(share->jobs[i].border, borders[i]);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(share->shards[i].output, 0);
        assert_int_equal(share->shards[i].box.lo[0], rows[i][0]);
        assert_int_equal(share->shards[i].box.hi[0], rows[i][1]);
    }
    assert_int_equal(share->jobs[2].shards[0], 1); /* k's second row, below its first */
    assert_int_equal(share->jobs[2].offsets[0], 8);
    assert_int_equal(share->borders[0].copy.rank, 0);
    assert_int_equal(share->jobs[0].shards[1], 3);
    assert_int_equal(share->jobs[1].shards[1], WEIR_ANY); /* the first job makes them all */
    assert_int_equal(share->n_lends, 1);
    assert_int_equal(share->lends[0].n_bytes, 2 * 2 * sizeof(float));
    weir_share_free(share);
    weir_fleet_close(fleet);
}

static void rows_that_share_a_word_begin_another_shard(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("bias", WEIR_CUT_NONE, 6, 1);
    t.conversion = cast_conversion();
    t.shape = (weir_shape){ 1, { 6 } };
    t.n_sources = t.n_parts = 2;
    for (uint64_t first_rows = 3; first_rows <= 4; first_rows++) {
        t.source_rows[0] = t.parts[0].n_rows = first_rows; /* of two bytes each */
        t.source_rows[1] = 2;
        t.parts[1] = (weir_fleet_part){ .source = 1, .n_rows = 2 };
        weir_fleet *fleet = open_meshes(&t, 1, "", "");
        weir_share *share = share_of(fleet, 0);
        assert_int_equal(share->n_jobs, 2);
        assert_int_equal(share->n_shards, first_rows == 4 ? 1 : 2);
        assert_int_equal(share->jobs[1].offsets[0], first_rows == 4 ? 8 : 0);
        assert_int_equal(share->jobs[1].first_words[0], first_rows == 4 ? 1 : 0);
        weir_share_free(share);
        weir_fleet_close(fleet);
    }
}

static void a_part_that_is_all_padding_has_one_empty_shard(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("embed", WEIR_CUT_VOCABULARY, 20, 8);
    t.conversion = cast_conversion();
    weir_fleet *fleet = open_meshes(&t, 1, "fsdp=3", "tp=4,dp=2");
    size_t n_empty = 0;
    for (uint32_t rank = 0; rank < 3; rank++) {
        weir_share *share = share_of(fleet, rank);
        for (size_t i = 0; i < share->n_shards; i++) {
            const weir_share_shard *shard = &share->shards[i];
            assert_int_equal(shard->shape.dim[0], 16);
            assert_int_equal(shard->place.d, WEIR_ANY);
            if (shard->place.t < 2) {
                assert_int_equal(shard->n_padding_rows, shard->place.t == 0 ? 0 : 12);
                continue;
            }
            assert_int_equal(rank, 0); /* it has the first row */
            assert_int_equal(shard->n_padding_rows, 16);
            assert_int_equal(shard->n_bytes, 0);
            assert_int_equal(shard->box.hi[0], 0);
            assert_int_equal(shard->box.hi[1], 8);
            n_empty++;
        }
        weir_share_free(share);
    }
    assert_int_equal(n_empty, 2);
    weir_fleet_close(fleet);
}

/* ---- what is not planned ---------------------------------------------------------------------*/

static void what_cannot_be_published_in_boxes_is_refused(void **state)
{
    (void)state;
    weir_share *share = NULL;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 8, 8);
    t.conversion = &case_conversions[2];
    weir_fleet *fleet = open_meshes(&t, 1, "", "");
    assert_int_equal(weir_fleet_share(fleet, 0, &share), WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(),
                        "t: tensor has one scale for all rows, which is not planned");
    weir_fleet_close(fleet);
    t.conversion = &share_block;
    t.shape = (weir_shape){ 3, { 8, 2, 4 } };
    fleet = open_meshes(&t, 1, "", "");
    assert_int_equal(weir_fleet_share(fleet, 0, &share), WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "t: share_block of a tensor of 3 axes is not planned");
    weir_fleet_close(fleet);
    assert_null(share);
    t.shape.dim[2] = 5;
    assert_null(open_meshes(&t, 1, "", ""));
    assert_string_equal(weir_last_error(), "t: its parts do not fit its sources");
}

static void fail_every_allocation(const weir_conversion *conversion)
{
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_ROW, 66, 18);
    t.conversion = conversion;
    weir_fleet *fleet = open_meshes(&t, 1, "tp=2,fsdp=2", "");
    weir_status status = WEIR_ERR_NO_MEMORY;
    int n_failed = 0;
    for (uint64_t n = 1; status != WEIR_OK; n++) {
        weir_share *share = NULL;
        weir_alloc_fail_at(n);
        status = weir_fleet_share(fleet, 1, &share);
        weir_alloc_fail_at(0);
        assert_true(status == WEIR_OK || status == WEIR_ERR_NO_MEMORY);
        assert_true((share != NULL) == (status == WEIR_OK));
        n_failed += status != WEIR_OK;
        weir_share_free(share);
    }
    assert_true(n_failed >= 10);
    weir_fleet_close(fleet);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    fail_every_allocation(&share_block);
    fail_every_allocation(&share_block_by_magnitude);
}

/* ---- a large one -----------------------------------------------------------------------------*/

typedef struct large {
    uint64_t n_shards, bytes, largest, n_jobs, border_bytes;
    uint64_t reads, read_bytes, largest_read; /* of all workers */
    uint64_t took_ns[1024];                   /* by rank */
} large;

static void add_share(large *sum, const weir_fleet *fleet, uint32_t rank,
                      const weir_replica_mesh *replica)
{
    uint64_t begun = weir_now_ns();
    weir_share *share = NULL;
    assert_int_equal(weir_fleet_share(fleet, rank, &share), WEIR_OK);
    sum->took_ns[rank] = weir_now_ns() - begun;
    sum->n_jobs += share->n_jobs;
    sum->n_shards += share->n_shards;
    for (size_t i = 0; i < share->n_shards; i++) {
        const weir_share_shard *shard = &share->shards[i];
        uint64_t n_readers = readers_of(replica, &shard->place);
        sum->bytes += shard->n_bytes;
        sum->largest = shard->n_bytes > sum->largest ? shard->n_bytes : sum->largest;
        sum->reads += n_readers;
        sum->read_bytes += n_readers * shard->n_bytes;
    }
    for (size_t i = 0; i < share->n_lends; i++)
        sum->border_bytes += share->lends[i].n_bytes;
    weir_share_free(share);
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void check_large(const model *m, const char *trainer, const char *replica)
{
    large sum = { 0 };
    weir_fleet_summary all;
    weir_replica_mesh mesh;
    uint64_t begun = weir_now_ns();
    assert_int_equal(weir_replica_mesh_parse(replica, &mesh), WEIR_OK);
    weir_fleet *fleet = open_meshes(m->tensors, m->n, trainer, replica);
    if (fleet == NULL)
        fail_msg("%s", weir_last_error());
    uint32_t n_ranks = weir_fleet_ranks(fleet);
    for (uint32_t rank = 0; rank < n_ranks; rank++)
        add_share(&sum, fleet, rank, &mesh);
    qsort(sum.took_ns, n_ranks, sizeof(sum.took_ns[0]), compare_numbers);
    double median_s = (double)sum.took_ns[n_ranks / 2] * 1e-9;
    double all_s = (double)(weir_now_ns() - begun) * 1e-9;
    assert_int_equal(weir_fleet_summarise(fleet, &all, NULL, NULL, NULL), WEIR_OK);
    print_message("%s -> %s: shares of all ranks %.2f s, median %.1f ms, slowest %.1f ms; %llu "
                  "jobs, %llu shards, "
                  "mean %.2f MB, largest %.1f MB; read %llu times, mean %.2f MB; borders %.2f GB\n",
                  trainer, replica, all_s, median_s * 1e3, (double)sum.took_ns[n_ranks - 1] * 1e-6,
                  (unsigned long long)sum.n_jobs, (unsigned long long)sum.n_shards,
                  (double)sum.bytes / (double)sum.n_shards * 1e-6, (double)sum.largest * 1e-6,
                  (unsigned long long)sum.reads, (double)sum.read_bytes / (double)sum.reads * 1e-6,
                  (double)sum.border_bytes * 1e-9);
    assert_int_equal(sum.read_bytes, all.bytes); /* what replicas own, and not a byte more */
    assert_true(median_s < 0.05 * TIME_FACTOR);
    weir_fleet_close(fleet);
}

static void set_conversion(model *m, const weir_conversion *conversion)
{
    for (size_t i = 0; i < m->n; i++) {
        if (m->tensors[i].conversion == m->fp8)
            m->tensors[i].conversion = conversion;
    }
    m->fp8 = conversion;
}

static void shares_of_a_deepseek_v3_fleet_take_milliseconds(void **state)
{
    (void)state;
    model *m = deepseek_v3("fp8_128x128");
    weir_conversion rows = by_magnitude(m->fp8->name, false), magnitudes = rows;
    magnitudes.by_magnitude = true;
    set_conversion(m, &rows);
    print_message("rows of borders:\n");
    check_large(m, "fsdp=32,ep=8", "tp=4,ep=32,dp=8,replicas=16");
    set_conversion(m, &magnitudes);
    print_message("magnitudes of borders:\n");
    check_large(m, "fsdp=32,ep=8", "tp=4,ep=32,dp=8,replicas=16");
    check_large(m, "fsdp=16,ep=16", "tp=8,dp=4,ep=32,replicas=16");
    check_large(m, "fsdp=4,ep=8,tp=2,pp=4", "tp=8,dp=4,ep=32,replicas=16");
    check_large(m, "ep=8,tp=8,pp=4", "tp=16,pp=2,ep=16,replicas=16");
    for (size_t i = 0; i < m->n; i++)
        m->tensors[i].stacked = m->tensors[i].n_experts > 0;
    print_message("experts stacked:\n");
    check_large(m, "fsdp=32,ep=8", "tp=4,ep=32,dp=8,replicas=16");
    check_large(m, "fsdp=256", "tp=8,dp=4,ep=32,replicas=16");
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shards_of_all_ranks_are_every_worker_s_part_converted_at_once),
        cmocka_unit_test(kernels_that_scale_by_magnitude_make_the_bytes_of_whole_blocks),
        cmocka_unit_test(ranks_that_hold_rows_whole_share_the_work_and_lend_nothing),
        cmocka_unit_test(only_the_group_that_sends_has_a_share),
        cmocka_unit_test(a_border_of_many_blocks_is_divided_among_its_holders),
        cmocka_unit_test(magnitudes_of_columns_go_to_all_that_have_others),
        cmocka_unit_test(rows_and_magnitudes_are_lent_side_by_side),
        cmocka_unit_test(whole_experts_in_slots_that_follow_each_other_are_one_shard),
        cmocka_unit_test(a_chunk_of_rows_is_one_shard_however_it_lies_to_the_blocks),
        cmocka_unit_test(parts_that_interleave_ranks_are_joined_across_blocks),
        cmocka_unit_test(rows_that_share_a_word_begin_another_shard),
        cmocka_unit_test(a_part_that_is_all_padding_has_one_empty_shard),
        cmocka_unit_test(what_cannot_be_published_in_boxes_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(shares_of_a_deepseek_v3_fleet_take_milliseconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
