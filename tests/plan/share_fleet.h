/* SPDX-License-Identifier: Apache-2.0 */
/* share_fleet.h - random fleets whose ranks are all played: every worker must come to have what an
 * unsharded conversion gives, and the plan's sums must be those of the shares. */
#ifndef WEIR_TESTS_PLAN_SHARE_FLEET_H
#define WEIR_TESTS_PLAN_SHARE_FLEET_H

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

static inline uint64_t first_seed(void)
{
    const char *given = getenv("WEIR_TEST_SEED");
    return given != NULL ? strtoull(given, NULL, 10) : weir_now_ns() % 1000000000;
}

static inline weir_conversion by_magnitude(const char *name, bool is)
{
    const weir_conversion *row;
    assert_int_equal(weir_conversion_get(name, &row), WEIR_OK);
    weir_conversion copy = *row;
    copy.by_magnitude = is;
    return copy;
}

static inline weir_share *share_of(const weir_fleet *fleet, uint32_t rank)
{
    weir_share *share = NULL;
    if (weir_fleet_share(fleet, rank, &share) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return share;
}

/* ---- what ranks hold -------------------------------------------------------------------------*/

/* A case, and boxes of a trainer that no mesh describes. */
typedef struct share_case {
    fleet_case fleet;
    weir_held held[4096];
    size_t n_held;
    uint64_t most_bytes; /* of a piece; 0: shares as long as can be */
} share_case;

static inline bool held_by(const share_case *c, uint32_t rank, uint32_t tensor, uint32_t source,
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

static inline uint16_t read_case(const share_player *p, uint32_t rank, uint32_t tensor,
                                 uint32_t source, uint32_t expert, uint64_t row, uint64_t col)
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
static inline void give_out(share_case *c, weir_held box, uint32_t depth)
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

static inline void give_out_all(share_case *c)
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

static inline const weir_conversion *cast_conversion(void)
{
    const weir_conversion *cast;
    assert_int_equal(weir_conversion_get("bf16_cast", &cast), WEIR_OK);
    return cast;
}

/* The case's tensors with conversions that have kernels, and ranks of all kinds. */
static inline void make_case(share_case *c, uint64_t seed)
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

static inline weir_fleet *open_fleet(const share_case *c)
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
static inline void check_slot(const share_case *c, const weir_fleet_tensor *t,
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

static inline void check_padding(const share_parameter *got, const weir_fleet_slice *slice)
{
    uint64_t n_rows = got->shape.dim[0], per_row = n_rows > 0 ? got->n_elements / n_rows : 0;
    uint64_t filled = n_rows - got->n_padding_rows;
    assert_true(got->n_padding_rows == 0 || slice->n_filled_rows < slice->n_rows);
    for (uint64_t i = 0; i < got->n_elements; i++)
        assert_int_equal(got->written[i], i / per_row < filled);
}

static inline void check_worker(const share_case *c, const share_player *p, uint32_t worker)
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

static inline uint64_t readers_of(const weir_replica_mesh *r, const weir_mesh_place *place)
{
    return (uint64_t)r->replicas * (place->d == WEIR_ANY ? r->dp : 1) *
           (place->t == WEIR_ANY ? r->tp : 1);
}

static inline uint64_t lent_bytes(const weir_share *share)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < share->n_lent; i++) {
        const weir_share_piece *piece = &share->lent[i];
        uint64_t n = (uint64_t)piece->n_rows * piece->n_cols;
        n_bytes += n * (piece->border != WEIR_ANY ? sizeof(float) : sizeof(uint16_t));
    }
    return n_bytes;
}

static inline void check_sums(const share_case *c, const share_player *p)
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

/* Jobs that share shards come to no more than the bound, but for those that cannot be cut: they
 * are alone. */
static inline void check_pieces(const share_case *c, const weir_share *share)
{
    for (size_t first = 0, end; first < share->n_jobs; first = end) {
        const weir_conversion *conversion =
            c->fleet.tensors[share->jobs[first].copy.tensor].conversion;
        uint64_t n_bytes = 0;
        uint32_t most[WEIR_MAX_OUTPUTS] = { 0 };
        for (end = first; end < share->n_jobs; end++) {
            const weir_share_job *job = &share->jobs[end];
            bool shares = end == first;
            for (size_t o = 0; o < conversion->n_outputs; o++)
                shares |= job->shards[o] != WEIR_ANY && job->shards[o] <= most[o];
            if (!shares || job->copy.tensor != share->jobs[first].copy.tensor)
                break;
            n_bytes += weir_fleet_box_bytes(conversion, job->copy.n_rows, job->copy.n_cols);
            for (size_t o = 0; o < conversion->n_outputs; o++) {
                if (job->shards[o] != WEIR_ANY && job->shards[o] > most[o])
                    most[o] = job->shards[o];
            }
        }
        assert_true(n_bytes <= c->most_bytes || end == first + 1);
    }
}

static inline void check_case(const share_case *c)
{
    weir_fleet *fleet = open_fleet(c);
    share_player p = { .fleet = fleet,
                       .tensors = c->fleet.tensors,
                       .n_tensors = c->fleet.n_tensors,
                       .read = read_case,
                       .context = c,
                       .most_bytes = c->most_bytes };
    share_play(&p);
    for (uint32_t rank = 0; rank < p.n_ranks && c->most_bytes > 0; rank++)
        check_pieces(c, p.shares[rank]);
    for (uint32_t w = 0; w < weir_fleet_workers(fleet) / c->fleet.replica.replicas; w++)
        check_worker(c, &p, w);
    check_sums(c, &p);
    share_close(&p);
    weir_fleet_close(fleet);
}

#endif
