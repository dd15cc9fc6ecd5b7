/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/fleet.h"

#include "base/alloc.h"
#include "base/clock.h"
#include "model_case.h"

#define N_CASES 3000

/* Sanitizers slow everything down. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
#define TIME_FACTOR 20
#else
#define TIME_FACTOR 1
#endif

/* ---- one random fleet ------------------------------------------------------------------------*/

/* In one piece of memory. */
static void assert_held(const fleet_case *c, const weir_fleet_tensor *t, uint32_t rank,
                        uint32_t expert, const weir_fleet_piece *p)
{
    uint64_t first = p->source_row, end = first + p->n_rows;
    uint64_t cols[] = { p->source_col, p->source_col + p->n_cols - 1 };
    uint32_t part = case_part_of(c, t, p->source, first);
    for (uint64_t row = first; row < end; row++) {
        assert_true(case_holds(c, t, rank, p->source, expert, row, cols[0]));
        assert_true(case_holds(c, t, rank, p->source, expert, row, cols[1]));
        assert_int_equal(case_part_of(c, t, p->source, row), part);
    }
}

/* Writes what a box brings; what it would write over must be untouched. */
static void write_box(uint64_t *matrix, uint64_t n_rows, uint64_t n_cols, uint32_t expert,
                      const weir_fleet_piece *p)
{
    assert_true((uint64_t)p->row + p->n_rows <= n_rows && (uint64_t)p->col + p->n_cols <= n_cols);
    for (uint32_t r = 0; r < p->n_rows; r++) {
        for (uint32_t k = 0; k < p->n_cols; k++) {
            uint64_t *at = &matrix[(uint64_t)(p->row + r) * n_cols + p->col + k];
            assert_int_equal(*at, 0);
            *at = case_value(p->source, expert, p->source_row + r, p->source_col + k);
        }
    }
}

static void assert_on_grid(const weir_fleet_tensor *t, const weir_fleet_copy *copy,
                           const weir_fleet_slice *slice)
{
    uint64_t rows = t->conversion->border_rows, cols = t->conversion->border_cols;
    rows = rows == WEIR_WHOLE ? slice->n_filled_rows : rows;
    cols = cols == WEIR_WHOLE ? slice->n_cols : cols;
    uint64_t row_end = copy->row + copy->n_rows, col_end = copy->col + copy->n_cols;
    assert_true(copy->n_rows > 0 && copy->n_cols > 0);
    assert_true(copy->row % rows == 0 && copy->col % cols == 0);
    assert_true(row_end % rows == 0 || row_end == slice->n_filled_rows);
    assert_true(col_end % cols == 0 || col_end == slice->n_cols);
}

/* The owner holds no less than any other of the ranks that hold a part. */
static void assert_owner_holds_most(const weir_fleet *fleet, const weir_fleet_copy *copy)
{
    uint64_t most = 0, own = 0;
    for (uint32_t i = 0; i < copy->n_pieces; i++) {
        uint64_t sum = 0;
        weir_fleet_piece a = weir_fleet_piece_of(fleet, copy, i);
        for (uint32_t k = 0; k < copy->n_pieces; k++) {
            weir_fleet_piece b = weir_fleet_piece_of(fleet, copy, k);
            sum += a.rank == b.rank ? (uint64_t)b.n_rows * b.n_cols : 0;
        }
        most = sum > most ? sum : most;
        own = a.rank == copy->rank ? sum : own;
    }
    assert_true(own == most && own > 0);
}

static void follow_copy(const fleet_case *c, const weir_fleet *fleet, const weir_fleet_copy *copy,
                        uint64_t *matrix, const weir_fleet_slice *slice)
{
    const weir_fleet_tensor *t = &c->tensors[copy->tensor];
    weir_fleet_piece whole = { copy->rank,   copy->rank,       copy->row,
                               copy->n_rows, copy->col,        copy->n_cols,
                               copy->source, copy->source_row, copy->source_col };
    assert_on_grid(t, copy, slice);
    if (copy->source != WEIR_FLEET_MIXED) {
        assert_held(c, t, copy->rank, copy->expert, &whole);
        write_box(matrix, slice->n_rows, slice->n_cols, copy->expert, &whole);
        return;
    }
    assert_owner_holds_most(fleet, copy);
    for (uint32_t i = 0; i < copy->n_pieces; i++) {
        weir_fleet_piece piece = weir_fleet_piece_of(fleet, copy, i);
        assert_int_equal(piece.owner, copy->rank);
        assert_held(c, t, piece.rank, copy->expert, &piece);
        assert_true(piece.row >= copy->row && piece.row + piece.n_rows <= copy->row + copy->n_rows);
        write_box(matrix, slice->n_rows, slice->n_cols, copy->expert, &piece);
    }
}

static uint32_t stage_of(const fleet_case *c, const weir_fleet_tensor *t)
{
    uint32_t n_layers = 0, layer = 0;
    for (size_t i = 0; i < c->n_tensors; i++) {
        int32_t l = c->tensors[i].layer;
        if (l >= 0 && l != WEIR_LAYER_BEHIND && (uint32_t)l >= n_layers)
            n_layers = (uint32_t)l + 1;
    }
    if (t->layer == WEIR_LAYER_BEHIND)
        return c->replica.pp - 1;
    /* As vLLM: what is left over goes to the stages before the last, the nearest first. */
    for (uint32_t s = 0; t->layer >= 0 && s < c->replica.pp; s++) {
        uint32_t n = n_layers / c->replica.pp;
        for (uint32_t i = 2; i < n_layers % c->replica.pp + 2; i++)
            n += s == c->replica.pp - i;
        if ((uint32_t)t->layer < layer + n)
            return s;
        layer += n;
    }
    return 0;
}

/* Follows all copies of one worker for one tensor, which begin at copies[0]. Returns how many. */
static size_t check_tensor(const fleet_case *c, const weir_fleet *fleet, uint32_t worker,
                           uint32_t tensor, const weir_fleet_copy *copies, size_t n)
{
    const weir_fleet_tensor *t = &c->tensors[tensor];
    const weir_replica_mesh *r = &c->replica;
    uint32_t tp = worker % r->tp, stage = worker / r->tp % r->pp;
    uint32_t d = worker / r->tp / r->pp % r->dp;
    weir_fleet_slice slice;
    size_t used = 0;
    uint64_t n_bytes = 0;
    assert_int_equal(weir_fleet_slice_of(fleet, worker, tensor, &slice), WEIR_OK);
    if (stage != stage_of(c, t) && (!t->tied || stage + 1 != r->pp)) {
        assert_int_equal(slice.n_slots, 0);
        return 0;
    }
    uint32_t rank = t->n_experts > 0 ? (d * r->tp + tp) / (r->dp * r->tp / r->ep) : 0;
    if (t->n_experts > 0 && r->expert_ids != NULL)
        assert_int_equal(slice.n_slots, r->expert_first[rank + 1] - r->expert_first[rank]);
    for (uint32_t slot = 0; slot < slice.n_slots; slot++) {
        uint32_t expert = t->n_experts > 0 ? copies[used].expert : 0;
        uint64_t rows, cols;
        if (t->n_experts > 0 && r->expert_ids != NULL)
            assert_int_equal(expert, r->expert_ids[r->expert_first[rank] + slot]);
        uint64_t *expected = case_expected(c, t, d, tp, expert, &rows, &cols);
        uint64_t *matrix = calloc(rows * cols + 1, sizeof(*matrix));
        assert_int_equal(slice.n_rows, rows);
        assert_int_equal(slice.n_cols, cols);
        for (; used < n && copies[used].tensor == tensor && copies[used].slot == slot; used++) {
            assert_int_equal(copies[used].expert, expert);
            n_bytes += weir_fleet_copy_bytes(fleet, &copies[used]);
            follow_copy(c, fleet, &copies[used], matrix, &slice);
        }
        assert_memory_equal(matrix, expected, rows * cols * sizeof(*matrix));
        free(matrix);
        free(expected);
    }
    assert_int_equal(n_bytes, slice.n_bytes);
    return used;
}

static weir_fleet *open_case(const fleet_case *c)
{
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    weir_fleet *fleet = NULL;
    args.tensors = c->tensors;
    args.n_tensors = c->n_tensors;
    args.trainer = &c->trainer;
    args.replica = &c->replica;
    if (weir_fleet_open(&args, &fleet) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return fleet;
}

static weir_fleet_copy *copies_of(const weir_fleet *fleet, uint32_t worker, size_t *out_n)
{
    *out_n = weir_fleet_copies(fleet, worker, NULL, 0);
    weir_fleet_copy *copies = calloc(*out_n + 1, sizeof(*copies));
    assert_int_equal(weir_fleet_copies(fleet, worker, copies, *out_n), *out_n);
    return copies;
}

/* Who sends a copy's bytes: of a shared border the weights come from whoever holds them. */
static void add_sent(const weir_fleet *fleet, const weir_fleet_copy *copy, uint64_t *sent)
{
    uint64_t n_bytes = weir_fleet_copy_bytes(fleet, copy), scales;
    if (copy->source != WEIR_FLEET_MIXED) {
        assert_false(weir_fleet_copy_is_shared(fleet, copy));
    } else if (weir_fleet_copy_is_shared(fleet, copy)) {
        scales = n_bytes - (uint64_t)copy->n_rows * copy->n_cols;
        assert_true(scales > 0);
        for (uint32_t i = 0; i < copy->n_pieces; i++) {
            uint64_t weights = weir_fleet_piece_bytes(fleet, copy, i);
            sent[weir_fleet_piece_of(fleet, copy, i).rank] += weights;
            n_bytes -= weights;
        }
        assert_int_equal(n_bytes, scales);
    }
    sent[copy->rank] += n_bytes;
}

static void assert_sums(const weir_fleet *fleet)
{
    uint32_t n_ranks = weir_fleet_ranks(fleet), n_workers = weir_fleet_workers(fleet);
    uint64_t *sent = calloc(n_ranks, 8), *expected = calloc(n_ranks, 8);
    uint64_t *received = calloc(n_workers, 8), all = 0, n_all = 0;
    weir_fleet_summary sum;
    assert_int_equal(weir_fleet_summarise(fleet, &sum, sent, NULL, received), WEIR_OK);
    for (uint32_t w = 0; w < n_workers; w++) {
        size_t n;
        uint64_t bytes = 0;
        weir_fleet_copy *copies = copies_of(fleet, w, &n);
        for (size_t i = 0; i < n; i++) {
            add_sent(fleet, &copies[i], expected);
            bytes += weir_fleet_copy_bytes(fleet, &copies[i]);
        }
        assert_int_equal(received[w], bytes);
        all += bytes;
        n_all += n;
        free(copies);
    }
    assert_memory_equal(sent, expected, n_ranks * 8);
    assert_int_equal(sum.bytes, all);
    assert_int_equal(sum.n_copies, n_all);
    free(sent);
    free(expected);
    free(received);
}

static void check_case(const fleet_case *c)
{
    weir_fleet *fleet = open_case(c);
    for (uint32_t w = 0; w < weir_fleet_workers(fleet); w++) {
        size_t n, used = 0;
        weir_fleet_copy *copies = copies_of(fleet, w, &n);
        for (uint32_t t = 0; t < c->n_tensors; t++)
            used += check_tensor(c, fleet, w, t, copies + used, n - used);
        assert_int_equal(used, n);
        free(copies);
    }
    assert_sums(fleet);
    weir_fleet_close(fleet);
}

static uint64_t first_seed(void)
{
    const char *given = getenv("WEIR_TEST_SEED");
    return given != NULL ? strtoull(given, NULL, 10) : weir_now_ns() % 1000000000;
}

static void every_element_of_every_worker_comes_once_from_a_rank_that_holds_it(void **state)
{
    (void)state;
    uint64_t seed = first_seed();
    fleet_case *c = malloc(sizeof(*c));
    print_message("WEIR_TEST_SEED=%llu, %d cases from there\n", (unsigned long long)seed, N_CASES);
    for (int i = 0; i < N_CASES; i++) {
        case_init(c, seed + (uint64_t)i);
        check_case(c);
    }
    free(c);
}

/* ---- equal inputs, equal plans ---------------------------------------------------------------*/

static void the_same_arguments_give_the_same_plan(void **state)
{
    (void)state;
    fleet_case *c = malloc(sizeof(*c));
    for (uint64_t seed = 1; seed <= 50; seed++) {
        case_init(c, seed);
        weir_fleet *a = open_case(c), *b = open_case(c);
        for (uint32_t w = 0; w < weir_fleet_workers(a); w++) {
            size_t n_a, n_b;
            weir_fleet_copy *x = copies_of(a, w, &n_a), *y = copies_of(b, w, &n_b);
            assert_int_equal(n_a, n_b);
            assert_memory_equal(x, y, n_a * sizeof(*x));
            free(x);
            free(y);
        }
        weir_fleet_close(a);
        weir_fleet_close(b);
    }
    free(c);
}

static void a_replica_that_joins_changes_no_other_part(void **state)
{
    (void)state;
    fleet_case *c = malloc(sizeof(*c));
    for (uint64_t seed = 1; seed <= 50; seed++) {
        case_init(c, seed);
        weir_fleet *few = open_case(c);
        c->replica.replicas++;
        weir_fleet *more = open_case(c);
        for (uint32_t w = 0; w < weir_fleet_workers(few); w++) {
            size_t n_a, n_b;
            weir_fleet_copy *x = copies_of(few, w, &n_a), *y = copies_of(more, w, &n_b);
            assert_int_equal(n_a, n_b);
            assert_memory_equal(x, y, n_a * sizeof(*x));
            free(x);
            free(y);
        }
        weir_fleet_close(few);
        weir_fleet_close(more);
    }
    free(c);
}

/* ---- who sends -------------------------------------------------------------------------------*/

static void ranks_that_hold_the_same_send_as_much(void **state)
{
    (void)state;
    weir_fleet_tensor tensors[16];
    uint64_t sent[4];
    weir_fleet_summary sum;
    /* Large and small ones take turns, as layers have them: parity must not favour a rank. */
    for (int i = 0; i < 16; i++)
        tensors[i] = matrix_of("t", WEIR_CUT_NONE, i % 2 ? 64 : 4, 16);
    weir_fleet *fleet = open_meshes(tensors, 16, "tp=4", "replicas=3");
    assert_int_equal(weir_fleet_summarise(fleet, &sum, sent, NULL, NULL), WEIR_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(sent[i] * 4, sum.bytes);
    weir_fleet_close(fleet);
}

static void only_one_hsdp_group_sends(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 64, 16);
    uint64_t sent[6];
    weir_fleet_summary sum;
    weir_fleet *fleet = open_meshes(&t, 1, "hsdp=3,fsdp=2,sender=1", "tp=1");
    assert_int_equal(weir_fleet_summarise(fleet, &sum, sent, NULL, NULL), WEIR_OK);
    for (int i = 0; i < 6; i++)
        assert_true((sent[i] > 0) == (i == 2 || i == 3));
    weir_fleet_close(fleet);
}

static void a_block_over_two_ranks_is_made_by_the_one_that_holds_most(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 10, 8);
    t.source_rows[0] = t.parts[0].n_rows = 10; /* ranks hold rows [0, 5) and [5, 10), blocks of 4 */
    weir_fleet *fleet = open_meshes(&t, 1, "fsdp=2", "tp=1");
    weir_fleet_copy copies[4];
    weir_fleet_summary sum;
    assert_int_equal(weir_fleet_copies(fleet, 0, copies, 4), 3);
    assert_int_equal(copies[0].rank, 0);
    assert_int_equal(copies[1].source, WEIR_FLEET_MIXED);
    assert_int_equal(copies[1].rank, 1);
    assert_int_equal(copies[2].rank, 1);
    weir_fleet_piece piece = weir_fleet_piece_of(fleet, &copies[1], 0);
    assert_int_equal(piece.rank, 0);
    assert_int_equal(piece.owner, 1);
    assert_int_equal(piece.source_row, 4);
    assert_int_equal(piece.n_rows, 1);
    assert_int_equal(weir_fleet_summarise(fleet, &sum, NULL, NULL, NULL), WEIR_OK);
    assert_int_equal(sum.n_border_pieces, 1);
    assert_int_equal(sum.border_bytes, 8 * 2);
    weir_fleet_close(fleet);
}

static void a_block_by_magnitude_is_made_by_all_that_hold_it(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 10, 8);
    t.conversion = &case_conversions[4];
    weir_fleet *fleet = open_meshes(&t, 1, "fsdp=2", "tp=1,replicas=3");
    weir_fleet_copy copies[4];
    weir_fleet_summary sum;
    uint64_t sent[2], bordered[2];
    assert_int_equal(weir_fleet_copies(fleet, 0, copies, 4), 3);
    assert_int_equal(copies[1].source, WEIR_FLEET_MIXED);
    assert_int_equal(copies[1].rank, 1); /* of the scales */
    assert_true(weir_fleet_copy_is_shared(fleet, &copies[1]));
    assert_false(weir_fleet_copy_is_shared(fleet, &copies[0]));
    assert_int_equal(weir_fleet_piece_bytes(fleet, &copies[0], 0), 0);
    assert_int_equal(weir_fleet_piece_bytes(fleet, &copies[1], 0), 8);
    assert_int_equal(weir_fleet_piece_bytes(fleet, &copies[1], 1), 3 * 8);
    assert_int_equal(weir_fleet_summarise(fleet, &sum, sent, bordered, NULL), WEIR_OK);
    assert_int_equal(sent[0], 3 * (5 * 8 + 2 * 4)); /* scales of one row of blocks */
    assert_int_equal(sent[1], 3 * (5 * 8 + 4 * 4)); /* and of two */
    assert_int_equal(sum.n_border_pieces, 2);
    assert_int_equal(sum.border_bytes, 2 * 2 * 4);
    assert_int_equal(bordered[0], 2 * 4);
    assert_int_equal(bordered[1], 2 * 4);
    weir_fleet_close(fleet);
}

/* ---- refusals --------------------------------------------------------------------------------*/

static void assert_refused(const weir_fleet_tensor *t, const char *replica, weir_status status,
                           const char *line)
{
    weir_trainer_mesh from;
    weir_replica_mesh to;
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    weir_fleet *fleet = NULL;
    assert_int_equal(weir_trainer_mesh_parse("fsdp=2", &from), WEIR_OK);
    assert_int_equal(weir_replica_mesh_parse(replica, &to), WEIR_OK);
    args.tensors = t;
    args.n_tensors = 1;
    args.trainer = &from;
    args.replica = &to;
    assert_int_equal(weir_fleet_open(&args, &fleet), status);
    assert_null(fleet);
    assert_string_equal(weir_last_error(), line);
}

static void what_an_engine_cannot_run_is_refused_with_the_reason(void **state)
{
    (void)state;
    const weir_conversion *fp8;
    assert_int_equal(weir_conversion_get("fp8_128x128", &fp8), WEIR_OK);
    weir_fleet_tensor t = matrix_of("w13", WEIR_CUT_COLUMN, 384, 256);
    t.n_experts = 4;
    t.conversion = fp8;
    assert_refused(&t, "tp=4", WEIR_ERR_UNSUPPORTED,
                   "w13: 96 rows per worker are no multiple of fp8_128x128's block of 128, which "
                   "engines refuse to run (vLLM: intermediate_size_per_partition is not divisible "
                   "by the block)");
    t.cut = WEIR_CUT_ROW;
    assert_refused(
        &t, "tp=4", WEIR_ERR_UNSUPPORTED,
        "w13: 64 columns per worker are no multiple of fp8_128x128's block of 128, which "
        "engines refuse to run (vLLM: intermediate_size_per_partition is not divisible "
        "by the block)");
    t.n_experts = 0;
    assert_refused(
        &t, "tp=4", WEIR_ERR_UNSUPPORTED,
        "w13: 64 columns per worker are no multiple of fp8_128x128's block of 128, which "
        "engines refuse to run (vLLM: input_size_per_partition is not divisible by "
        "block_k)");
    t.cut = WEIR_CUT_COLUMN;
    t.n_parts = t.n_sources = 2;
    t.source_rows[1] = 256;
    t.parts[1] = (weir_fleet_part){ .source = 1, .units = 4, .n_rows = 256 };
    t.source_rows[0] = t.parts[0].n_rows = 512;
    assert_refused(&t, "tp=4", WEIR_ERR_UNSUPPORTED,
                   "w13: 64 rows of a part per worker are no multiple of fp8_128x128's block of "
                   "128, which engines refuse to run (vLLM: output_partition_size is not divisible "
                   "by block_n)");
    t = matrix_of("down", WEIR_CUT_ROW, 8, 10);
    assert_refused(&t, "tp=4", WEIR_ERR_LAYOUT, "down: 10 columns do not divide over 4 workers");
    t = matrix_of("up", WEIR_CUT_COLUMN, 10, 8);
    assert_refused(&t, "tp=4", WEIR_ERR_LAYOUT, "up: 10 rows do not divide over 4 workers");
    t.parts[0].units = 2;
    assert_refused(&t, "tp=4", WEIR_ERR_LAYOUT, "up: 2 heads do not divide over 4 workers");
    t = matrix_of("embed", WEIR_CUT_VOCABULARY, 65, 8);
    assert_refused(&t, "tp=3", WEIR_ERR_LAYOUT,
                   "embed: 65 rows, padded to 128, do not divide over 3 workers");
}

static void what_engines_do_not_cut_may_end_within_a_block(void **state)
{
    (void)state;
    const weir_conversion *fp8;
    assert_int_equal(weir_conversion_get("fp8_128x128", &fp8), WEIR_OK);
    weir_fleet_tensor t = matrix_of("fused_qkv_a", WEIR_CUT_NONE, 2112, 7168);
    t.conversion = fp8;
    weir_fleet *fleet = open_meshes(&t, 1, "fsdp=3", "tp=4");
    assert_non_null(fleet);
    weir_fleet_close(fleet);
    t = matrix_of("w13", WEIR_CUT_COLUMN, 96, 100);
    t.conversion = fp8;
    t.n_experts = 8;
    fleet = open_meshes(&t, 1, "fsdp=3", "tp=4,ep=4");
    assert_non_null(fleet);
    weir_fleet_close(fleet);
}

/* ---- trainers that no mesh describes ---------------------------------------------------------*/

static weir_status open_held(const weir_fleet_tensor *t, const weir_held *held, size_t n,
                             weir_fleet **out)
{
    weir_replica_mesh to = { .tp = 1 };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    args.tensors = t;
    args.n_tensors = 1;
    args.held = held;
    args.n_held = n;
    args.replica = &to;
    return weir_fleet_open(&args, out);
}

static weir_held held_by(const weir_fleet_tensor *t, uint32_t rank, uint32_t axis, uint64_t lo,
                         uint64_t hi)
{
    weir_shape shape = { 2, { t->source_rows[0], t->n_cols } };
    weir_held held;
    assert_int_equal(weir_held_of_range(t, 0, &shape, axis, lo, hi, &held), WEIR_OK);
    held.rank = rank;
    return held;
}

static void overlaps_and_doubles_are_taken_once(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 100, 8);
    t.conversion = &case_conversions[3];
    weir_held held[] = { held_by(&t, 1, 0, 30, 100), held_by(&t, 0, 0, 0, 40),
                         held_by(&t, 2, 0, 0, 40) };
    weir_fleet_copy copies[4];
    weir_fleet *fleet = NULL;
    assert_int_equal(open_held(&t, held, 3, &fleet), WEIR_OK);
    assert_int_equal(weir_fleet_ranks(fleet), 3);
    size_t n = weir_fleet_copies(fleet, 0, copies, 4);
    uint32_t row = 0;
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(copies[i].row, row);
        row += copies[i].n_rows;
    }
    assert_int_equal(row, 100);
    weir_fleet_close(fleet);
}

static void columns_and_rows_may_be_cut_at_once(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 8, 8);
    weir_held held[] = { held_by(&t, 0, 0, 0, 4), held_by(&t, 1, 0, 4, 8),
                         held_by(&t, 2, 0, 4, 8) };
    weir_fleet_copy copies[8];
    weir_fleet *fleet = NULL;
    held[1].col_hi = 3;
    held[2].col_lo = 3;
    assert_int_equal(open_held(&t, held, 3, &fleet), WEIR_OK);
    assert_int_equal(weir_fleet_copies(fleet, 0, copies, 8), 3);
    assert_int_equal(copies[1].source, WEIR_FLEET_MIXED); /* columns [0, 4) of rows [4, 8) */
    assert_int_equal(copies[1].rank, 1);
    assert_int_equal(copies[2].rank, 2);
    assert_int_equal(copies[2].col, 4);
    weir_fleet_close(fleet);
}

static void a_gap_is_named(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 100, 8);
    weir_held held[] = { held_by(&t, 0, 0, 0, 40), held_by(&t, 1, 0, 60, 70),
                         held_by(&t, 1, 0, 80, 100) };
    weir_fleet *fleet = NULL;
    weir_shape shape = { 2, { 100, 8 } };
    assert_int_equal(open_held(&t, held, 3, &fleet), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "t: coverage gap at axis 0 [40, 60): no rank holds it");
    held[0] = held_by(&t, 0, 1, 0, 5);
    assert_int_equal(open_held(&t, held, 1, &fleet), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "t: coverage gap at axis 1 [5, 8): no rank holds it");
    held[0].row_hi = 101;
    assert_int_equal(open_held(&t, held, 1, &fleet), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "t: rank 0 holds a box that is no part of its source 0");
    assert_int_equal(weir_held_of_range(&t, 0, &shape, 0, 5, 101, &held[0]), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(),
                        "t: range [5, 101) of axis 0 does not fit shape [100, 8]");
    assert_null(fleet);
}

/* ---- when memory runs out --------------------------------------------------------------------*/

static void every_allocation_may_fail(void **state)
{
    (void)state;
    fleet_case *c = malloc(sizeof(*c));
    case_init(c, 11);
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    args.tensors = c->tensors;
    args.n_tensors = c->n_tensors;
    args.trainer = &c->trainer;
    args.replica = &c->replica;
    weir_status status = WEIR_ERR_NO_MEMORY;
    int n_failed = 0;
    for (uint64_t n = 1; status != WEIR_OK; n++) {
        weir_fleet *fleet = NULL;
        weir_alloc_fail_at(n);
        status = weir_fleet_open(&args, &fleet);
        weir_alloc_fail_at(0);
        assert_true(status == WEIR_OK || status == WEIR_ERR_NO_MEMORY);
        assert_true((fleet != NULL) == (status == WEIR_OK));
        n_failed += status != WEIR_OK;
        weir_fleet_close(fleet);
    }
    assert_true(n_failed >= 8);
    free(c);
}

/* ---- a large one -----------------------------------------------------------------------------*/

static void check_deepseek(const model *m, const char *trainer, const char *replica)
{
    uint64_t begun = weir_now_ns();
    weir_fleet *fleet = open_meshes(m->tensors, m->n, trainer, replica);
    if (fleet == NULL)
        fail_msg("%s", weir_last_error());
    uint64_t *sent = calloc(weir_fleet_ranks(fleet), 8), most = 0, sum_sent = 0;
    uint64_t *received = calloc(weir_fleet_workers(fleet), 8);
    weir_fleet_summary sum;
    double open_s = (double)(weir_now_ns() - begun) * 1e-9;
    assert_int_equal(weir_fleet_summarise(fleet, &sum, sent, NULL, received), WEIR_OK);
    double all_s = (double)(weir_now_ns() - begun) * 1e-9;
    begun = weir_now_ns();
    size_t n_copies;
    weir_fleet_copy *copies = copies_of(fleet, weir_fleet_workers(fleet) - 1, &n_copies);
    double worker_s = (double)(weir_now_ns() - begun) * 1e-9;
    for (uint32_t r = 0; r < weir_fleet_ranks(fleet); r++) {
        most = sent[r] > most ? sent[r] : most;
        sum_sent += sent[r];
    }
    assert_int_equal(sum_sent, sum.bytes);
    print_message(
        "%s -> %s: plan %.1f ms, sums %.1f ms, one worker %.2f ms (%zu copies), %.2f MB; "
        "%llu copies, %llu rules, mean %.0f kB, largest %.1f MB, %.1f GB, borders %.2f GB, "
        "busiest rank %.3f of mean\n",
        trainer, replica, open_s * 1e3, (all_s - open_s) * 1e3, worker_s * 1e3, n_copies,
        (double)sum.plan_bytes * 1e-6, (unsigned long long)sum.n_copies,
        (unsigned long long)sum.n_rules, (double)sum.bytes / (double)sum.n_copies * 1e-3,
        (double)sum.largest_copy_bytes * 1e-6, (double)sum.bytes * 1e-9,
        (double)sum.border_bytes * 1e-9,
        (double)most * weir_fleet_ranks(fleet) / (double)sum.bytes);
    assert_true(sum.plan_bytes < 500000000);
    assert_true(all_s < 1.0 * TIME_FACTOR && worker_s < 0.05 * TIME_FACTOR);
    free(copies);
    free(sent);
    free(received);
    weir_fleet_close(fleet);
}

static void a_deepseek_v3_fleet_is_planned_within_a_second(void **state)
{
    (void)state;
    model *m = deepseek_v3("fp8_128x128");
    check_deepseek(m, "fsdp=16,ep=16", "tp=8,dp=4,ep=32,replicas=16");
    check_deepseek(m, "fsdp=16,ep=16", "dp=32,ep=32,replicas=16");
    check_deepseek(m, "fsdp=4,ep=8,tp=2,pp=4", "tp=8,dp=4,ep=32,replicas=16");
    check_deepseek(m, "ep=8,tp=8,pp=4", "tp=16,pp=2,ep=16,replicas=16");
    check_deepseek(m, "fsdp=256", "dp=32,ep=32,replicas=16");
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_element_of_every_worker_comes_once_from_a_rank_that_holds_it),
        cmocka_unit_test(the_same_arguments_give_the_same_plan),
        cmocka_unit_test(a_replica_that_joins_changes_no_other_part),
        cmocka_unit_test(ranks_that_hold_the_same_send_as_much),
        cmocka_unit_test(only_one_hsdp_group_sends),
        cmocka_unit_test(a_block_over_two_ranks_is_made_by_the_one_that_holds_most),
        cmocka_unit_test(a_block_by_magnitude_is_made_by_all_that_hold_it),
        cmocka_unit_test(what_an_engine_cannot_run_is_refused_with_the_reason),
        cmocka_unit_test(what_engines_do_not_cut_may_end_within_a_block),
        cmocka_unit_test(overlaps_and_doubles_are_taken_once),
        cmocka_unit_test(columns_and_rows_may_be_cut_at_once),
        cmocka_unit_test(a_gap_is_named),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(a_deepseek_v3_fleet_is_planned_within_a_second),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
