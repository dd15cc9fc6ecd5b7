/* SPDX-License-Identifier: Apache-2.0 */
/* test_border.c - ranks in one process that lend each other rows: bytes, waits, and what is said
 * when a rank is missing, restarted, too far, or lies. */
#include "refit/border.h"

#include <inttypes.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/digest.h"
#include "refit/lenders.h"
#include "refit/refit_rig.h"

#define MAX_CASE_RANKS 4
#define N_PIECES 3 /* of every loan */
#define MAX_PIECES (MAX_CASE_RANKS * N_PIECES)
#define MEMORY_BYTES 8192u
#define SHORT_MS 400u

/* ---- ranks, each of which lends to all others -------------------------------------------------*/

typedef struct case_rank {
    weir_trainer *trainer;
    weir_border *border; /* what it is asked through; trainer->border is the same */
    uint32_t rank, n_ranks;
    weir_share share;
    weir_share_loan lends[MAX_CASE_RANKS], borrows[MAX_CASE_RANKS];
    weir_share_piece lent[MAX_PIECES];
    weir_border_rows rows[MAX_PIECES];
    weir_dtype borrowed[MAX_CASE_RANKS];
    unsigned char memory[MAX_PIECES][MEMORY_BYTES];
} case_rank;

typedef struct border_case {
    weir_directory *directory;
    char share[64];
    const char *transport;
    unsigned timeout_ms;
    uint32_t n_ranks;
    case_rank ranks[MAX_CASE_RANKS];
} border_case;

/* Piece 0 is wide and strided, 1 has no gaps, 2 has rows that end off every boundary. */
static weir_border_rows shape_of(uint32_t lender, uint32_t borrower, size_t piece)
{
    weir_border_rows rows = { .dtype = WEIR_BF16, .n_rows = 3 + lender + 2 * borrower };
    rows.row_bytes = piece == 0 ? 96 : piece == 1 ? 32 : 14;
    rows.pitch_bytes = piece == 1 ? rows.row_bytes : rows.row_bytes + 50;
    return rows;
}

static unsigned char byte_of(uint64_t version, uint32_t lender, uint32_t borrower, size_t piece,
                             uint64_t at)
{
    uint64_t x = version * 1000003 + lender * 7919 + borrower * 104729 + piece * 15485863 + at;
    return (unsigned char)((x * 0x9E3779B97F4A7C15u) >> 37);
}

/* The offsets of a loan's pieces; both sides come to the same. */
static uint64_t lay_out(uint32_t lender, uint32_t borrower, uint64_t offsets[N_PIECES])
{
    uint64_t n_bytes = 0;
    for (size_t p = 0; p < N_PIECES; p++) {
        weir_border_rows rows = shape_of(lender, borrower, p);
        offsets[p] = (n_bytes + 15) / 16 * 16;
        n_bytes = offsets[p] + rows.row_bytes * rows.n_rows;
    }
    return n_bytes;
}

static void share_all(case_rank *r)
{
    uint64_t offsets[N_PIECES];
    r->share = (weir_share){ .lends = r->lends, .borrows = r->borrows, .lent = r->lent };
    for (uint32_t other = 0; other < r->n_ranks; other++) {
        if (other == r->rank)
            continue;
        r->lends[r->share.n_lends++] =
            (weir_share_loan){ other, lay_out(r->rank, other, offsets), r->share.n_lent, N_PIECES };
        for (size_t p = 0; p < N_PIECES; p++) {
            size_t i = r->share.n_lent++;
            r->lent[i] = (weir_share_piece){ .offset = offsets[p], .border = WEIR_ANY };
            r->rows[i] = shape_of(r->rank, other, p);
            r->rows[i].data = r->memory[i];
        }
        r->borrowed[r->share.n_borrows] = WEIR_BF16;
        r->borrows[r->share.n_borrows++] =
            (weir_share_loan){ .rank = other, .n_bytes = lay_out(other, r->rank, offsets) };
    }
}

/* This version's weights; what lies between the rows is none of anybody's. */
static void fill(case_rank *r, uint64_t version)
{
    for (size_t l = 0; l < r->share.n_lends; l++) {
        for (size_t p = 0; p < N_PIECES; p++) {
            size_t i = r->lends[l].first_piece + p;
            const weir_border_rows *rows = &r->rows[i];
            memset(r->memory[i], 0xEE, MEMORY_BYTES);
            for (uint64_t at = 0; at < rows->row_bytes * rows->n_rows; at++)
                r->memory[i][at / rows->row_bytes * rows->pitch_bytes + at % rows->row_bytes] =
                    byte_of(version, r->rank, r->lends[l].rank, p, at);
        }
    }
}

static size_t count_wrong(const case_rank *r, uint64_t version)
{
    size_t n = 0;
    for (uint32_t b = 0; b < r->share.n_borrows; b++) {
        uint64_t offsets[N_PIECES];
        uint32_t lender = r->borrows[b].rank;
        lay_out(lender, r->rank, offsets);
        for (size_t p = 0; p < N_PIECES; p++) {
            weir_border_rows rows = shape_of(lender, r->rank, p);
            for (uint64_t at = 0; at < rows.row_bytes * rows.n_rows; at++)
                n += weir_border_at(r->border, b, offsets[p])[at] !=
                     byte_of(version, lender, r->rank, p, at);
        }
    }
    return n;
}

static void open_trainer(const border_case *c, case_rank *r)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    options.directory = weir_directory_address(c->directory);
    options.model = "model";
    options.rank = r->rank;
    options.n_ranks = c->n_ranks;
    options.family = "llama";
    options.conversion = "bf16_cast";
    options.transport = c->transport;
    options.transport_directory = c->share;
    options.n_threads = 2;
    options.timeout_ms = c->timeout_ms;
    assert_ok(weir_trainer_open(&options, &r->trainer));
}

static weir_status open_border(case_rank *r)
{
    weir_border_options options = { r->trainer, &r->share, r->rows, r->borrowed };
    weir_status status = weir_border_open(&options, &r->trainer->border);
    r->border = r->trainer->border;
    return status;
}

static void close_rank(case_rank *r)
{
    if (r->trainer != NULL)
        weir_border_close(r->trainer->border);
    weir_trainer_close(r->trainer);
    r->trainer = NULL;
    r->border = NULL;
}

/* Ranks with their shares planned and trainers open; borders are not. */
static border_case *open_ranks(const char *transport, uint32_t n_ranks, unsigned timeout_ms)
{
    border_case *c = calloc(1, sizeof(*c));
    assert_non_null(c);
    c->transport = transport;
    c->timeout_ms = timeout_ms;
    c->n_ranks = n_ranks;
    snprintf(c->share, sizeof(c->share), "/tmp/weir-border-XXXXXX");
    assert_non_null(mkdtemp(c->share));
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    assert_ok(weir_directory_open(&options, &c->directory));
    for (uint32_t i = 0; i < n_ranks; i++) {
        c->ranks[i].rank = i;
        c->ranks[i].n_ranks = n_ranks;
        share_all(&c->ranks[i]);
        open_trainer(c, &c->ranks[i]);
    }
    return c;
}

static border_case *open_case(const char *transport, uint32_t n_ranks, unsigned timeout_ms)
{
    border_case *c = open_ranks(transport, n_ranks, timeout_ms);
    for (uint32_t i = 0; i < n_ranks; i++)
        assert_ok(open_border(&c->ranks[i]));
    return c;
}

static void close_case(border_case *c)
{
    char command[128];
    for (uint32_t i = 0; i < c->n_ranks; i++)
        close_rank(&c->ranks[i]);
    weir_directory_close(c->directory);
    snprintf(command, sizeof(command), "rm -rf %s", c->share);
    assert_int_equal(system(command), 0);
    free(c);
}

static void lend(case_rank *r, uint64_t version)
{
    fill(r, version);
    assert_ok(weir_border_lend(r->border, version));
}

static void borrow(case_rank *r, uint64_t version)
{
    assert_ok(weir_border_borrow(r->border, version));
    assert_int_equal(count_wrong(r, version), 0);
}

/* ---- bytes -----------------------------------------------------------------------------------*/

static void exchange(border_case *c, uint64_t version)
{
    for (uint32_t i = 0; i < c->n_ranks; i++)
        lend(&c->ranks[i], version);
    for (uint32_t i = 0; i < c->n_ranks; i++)
        borrow(&c->ranks[i], version);
}

static void test_strided_rows_arrive_without_their_gaps(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 2, RIG_TIMEOUT_MS);
    for (uint64_t version = 1; version <= 5; version++)
        exchange(c, version * 3);
    close_case(c);
}

static void test_a_shared_directory_carries_rows_too(void **state)
{
    (void)state;
    border_case *c = open_case("file", 3, RIG_TIMEOUT_MS);
    for (uint64_t version = 1; version <= 4; version++)
        exchange(c, version);
    close_case(c);
}

typedef struct rank_thread {
    case_rank *rank;
    pthread_t thread;
    weir_status status;
    size_t n_wrong;
    char line[WEIR_ERROR_TEXT];
} rank_thread;

/* Nobody waits for the others but by borrowing. */
static void *publish_versions(void *argument)
{
    rank_thread *t = argument;
    for (uint64_t version = 1; version <= 20 && t->status == WEIR_OK; version++) {
        fill(t->rank, version);
        t->status = weir_border_lend(t->rank->border, version);
        if (t->status == WEIR_OK)
            t->status = weir_border_borrow(t->rank->border, version);
        if (t->status == WEIR_OK)
            t->n_wrong += count_wrong(t->rank, version);
    }
    snprintf(t->line, sizeof(t->line), "%s", weir_last_error());
    return NULL;
}

static void test_ranks_that_run_ahead_still_find_each_other_s_rows(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", MAX_CASE_RANKS, 10 * RIG_TIMEOUT_MS);
    rank_thread threads[MAX_CASE_RANKS];
    for (uint32_t i = 0; i < c->n_ranks; i++) {
        threads[i] = (rank_thread){ .rank = &c->ranks[i] };
        assert_int_equal(pthread_create(&threads[i].thread, NULL, publish_versions, &threads[i]),
                         0);
    }
    for (uint32_t i = 0; i < c->n_ranks; i++)
        pthread_join(threads[i].thread, NULL);
    for (uint32_t i = 0; i < c->n_ranks; i++) {
        if (threads[i].status != WEIR_OK)
            fail_msg("rank %u: %s", i, threads[i].line);
        assert_int_equal(threads[i].n_wrong, 0);
    }
    close_case(c);
}

static void test_a_rank_a_version_late_finds_its_rows(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 2, RIG_TIMEOUT_MS);
    lend(&c->ranks[1], 1);
    lend(&c->ranks[1], 2);
    borrow(&c->ranks[0], 1);
    borrow(&c->ranks[0], 2);
    close_case(c);
}

static void test_a_version_can_be_lent_again(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 2, RIG_TIMEOUT_MS);
    lend(&c->ranks[1], 4);
    lend(&c->ranks[1], 7);
    lend(&c->ranks[1], 7);
    borrow(&c->ranks[0], 7);
    borrow(&c->ranks[0], 4); /* the other buffer was left alone */
    close_case(c);
}

static void test_who_only_borrows_lends_nothing(void **state)
{
    (void)state;
    border_case *c = open_ranks("ucx", 2, RIG_TIMEOUT_MS);
    c->ranks[0].share.n_lends = c->ranks[0].share.n_lent = 0;
    c->ranks[1].share.n_borrows = 0;
    assert_ok(open_border(&c->ranks[0]));
    assert_ok(open_border(&c->ranks[1]));
    for (uint64_t version = 1; version <= 3; version++) {
        assert_ok(weir_border_lend(c->ranks[0].border, version));
        lend(&c->ranks[1], version);
        borrow(&c->ranks[0], version);
        assert_ok(weir_border_borrow(c->ranks[1].border, version));
    }
    assert_int_equal(c->ranks[0].trainer->worker.counters.registrations, 0);
    close_case(c);
}

/* ---- what a second version costs -------------------------------------------------------------*/

static void test_from_the_second_version_on_nothing_is_taken(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 3, RIG_TIMEOUT_MS);
    exchange(c, 1);
    weir_counters before[MAX_CASE_RANKS];
    for (uint32_t i = 0; i < c->n_ranks; i++) {
        before[i] = c->ranks[i].trainer->worker.counters;
        assert_int_equal(before[i].registrations, 2);
        assert_int_equal(before[i].connections, 2);
    }
    uint64_t n_allocations = weir_alloc_count();
    for (uint64_t version = 2; version <= 6; version++)
        exchange(c, version);
    assert_int_equal(weir_alloc_count(), n_allocations);
    for (uint32_t i = 0; i < c->n_ranks; i++)
        assert_memory_equal(&before[i], &c->ranks[i].trainer->worker.counters, sizeof(before[i]));
    close_case(c);
}

/* ---- waiting ---------------------------------------------------------------------------------*/

static void check_time_out(case_rank *r, uint64_t version, const char *line)
{
    double started_s = weir_now_s();
    assert_error(weir_border_borrow(r->border, version), WEIR_ERR_TIMED_OUT, line);
    double waited_s = weir_now_s() - started_s;
    assert_true(waited_s >= SHORT_MS / 1e3 && waited_s < 5 * SHORT_MS / 1e3);
}

static void test_a_rank_that_never_came_is_named(void **state)
{
    (void)state;
    border_case *c = open_ranks("ucx", 3, SHORT_MS);
    assert_ok(open_border(&c->ranks[0]));
    check_time_out(&c->ranks[0], 5,
                   "waited 0.4 s for rows of version 5 from rank 1: it has not "
                   "announced itself; rank 2 is missing too");
    close_case(c);
}

static void test_a_rank_that_lent_nothing_is_named(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 2, SHORT_MS);
    check_time_out(&c->ranks[0], 5, "from rank 1: it has announced itself but lent nothing");
    lend(&c->ranks[1], 4);
    check_time_out(&c->ranks[0], 5, "from rank 1: the newest rows that it lent are of version 4");
    lend(&c->ranks[1], 5);
    borrow(&c->ranks[0], 5); /* the wait has done no harm */
    close_case(c);
}

static void test_a_lender_that_died_is_named(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 2, SHORT_MS);
    lend(&c->ranks[1], 1);
    borrow(&c->ranks[0], 1);
    lend(&c->ranks[1], 2);
    close_rank(&c->ranks[1]);
    check_time_out(&c->ranks[0], 2, "does not answer at 127.0.0.1:");
    assert_non_null(strstr(weir_last_error(), "from rank 1: worker trainer-1-"));
    close_case(c);
}

static void *lend_late(void *argument)
{
    case_rank *r = argument;
    weir_sleep_ms(100);
    fill(r, 9);
    return weir_border_lend(r->border, 9) == WEIR_OK ? r : NULL;
}

static void test_who_is_late_is_waited_for(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 2, RIG_TIMEOUT_MS);
    pthread_t thread;
    void *lent = NULL;
    assert_int_equal(pthread_create(&thread, NULL, lend_late, &c->ranks[1]), 0);
    weir_status status = weir_border_borrow(c->ranks[0].border, 9);
    pthread_join(thread, &lent);
    assert_non_null(lent);
    assert_ok(status);
    assert_int_equal(count_wrong(&c->ranks[0], 9), 0);
    close_case(c);
}

static void test_a_cancelled_wait_ends_at_once(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 2, 20 * RIG_TIMEOUT_MS);
    double started_s = weir_now_s();
    weir_trainer_cancel(c->ranks[0].trainer);
    assert_error(weir_border_borrow(c->ranks[0].border, 1), WEIR_ERR_CANCELLED, "cancelled");
    assert_true(weir_now_s() - started_s < 2.0);
    exchange(c, 1);
    close_case(c);
}

static void test_a_lender_two_versions_further_is_an_error_at_once(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 2, 20 * RIG_TIMEOUT_MS);
    for (uint64_t version = 1; version <= 3; version++)
        lend(&c->ranks[1], version);
    double started_s = weir_now_s();
    assert_error(weir_border_borrow(c->ranks[0].border, 1), WEIR_ERR_NOT_FOUND,
                 "needs rows of version 1 from rank 1, which lends those of "
                 "version 3 already and keeps only the last two");
    assert_true(weir_now_s() - started_s < 2.0);
    borrow(&c->ranks[0], 2);
    borrow(&c->ranks[0], 3);
    close_case(c);
}

/* ---- the directory ---------------------------------------------------------------------------*/

static void test_a_lender_that_was_started_anew_is_found(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 2, RIG_TIMEOUT_MS);
    exchange(c, 1);
    uint64_t n_connections = c->ranks[0].trainer->worker.counters.connections;
    close_rank(&c->ranks[1]);
    open_trainer(c, &c->ranks[1]);
    assert_ok(open_border(&c->ranks[1]));
    exchange(c, 2);
    assert_int_equal(c->ranks[0].trainer->worker.counters.connections, n_connections + 1);
    exchange(c, 3);
    assert_int_equal(c->ranks[0].trainer->worker.counters.connections, n_connections + 1);
    close_case(c);
}

/* One that died without a word leaves an entry behind. */
static void test_of_several_entries_of_a_rank_the_newest_counts(void **state)
{
    (void)state;
    border_case *c = open_ranks("ucx", 2, SHORT_MS);
    assert_ok(open_border(&c->ranks[0]));
    char id[WEIR_ID_BYTES];
    weir_worker *worker = &c->ranks[0].trainer->worker;
    weir_source_record record = weir_worker_entry(worker, 0, "", "127.0.0.1:1");
    record.status = WEIR_SOURCE_INITIALIZING;
    record.rank = 1;
    record.n_ranks = 2;
    snprintf(record.worker_id, sizeof(record.worker_id), "trainer-1-dead");
    assert_ok(weir_directory_publish_source(worker->client, &record, id));
    check_time_out(&c->ranks[0], 1, "worker trainer-1-dead does not answer at 127.0.0.1:1");
    case_rank *anew = &c->ranks[1];
    assert_ok(open_border(anew));
    exchange(c, 1);
    /* And where the dead one never published, but the new one has. */
    weir_border_close(c->ranks[0].border);
    snprintf(record.worker_id, sizeof(record.worker_id), "trainer-1-dead-too");
    assert_ok(weir_directory_publish_source(worker->client, &record, id));
    weir_sleep_ms(3); /* the directory counts milliseconds */
    record = weir_worker_entry(&anew->trainer->worker, 1, "abcdef01",
                               weir_manifest_service_address(anew->trainer->service));
    record.rank = 1;
    record.n_ranks = 2;
    assert_ok(weir_directory_publish_source(worker->client, &record, id));
    assert_ok(open_border(&c->ranks[0]));
    exchange(c, 2);
    close_case(c);
}

static void get_entry(const case_rank *r, weir_source_record *out)
{
    assert_ok(weir_directory_get_source(r->trainer->worker.client, r->trainer->source_id,
                                        r->trainer->worker.id, out));
}

static void test_its_entry_makes_nobody_believe_in_a_version(void **state)
{
    (void)state;
    border_case *c = open_ranks("ucx", 2, RIG_TIMEOUT_MS);
    case_rank *r = &c->ranks[1];
    weir_source_record entry, published;
    char id[WEIR_ID_BYTES];
    assert_ok(open_border(r));
    get_entry(r, &entry);
    assert_int_equal(entry.status, WEIR_SOURCE_INITIALIZING);
    assert_int_equal(entry.rank, 1);
    assert_string_equal(entry.version_uid, "");
    /* The first version that is published takes its place, and a border opened later leaves it. */
    published = weir_worker_entry(&r->trainer->worker, 3, "abcdef01", entry.endpoint);
    published.rank = 1;
    published.n_ranks = 2;
    assert_ok(weir_directory_publish_source(r->trainer->worker.client, &published, id));
    assert_string_equal(id, r->trainer->source_id);
    weir_border_close(r->border);
    assert_null(r->trainer->border);
    assert_ok(open_border(r));
    get_entry(r, &entry);
    assert_int_equal(entry.status, WEIR_SOURCE_READY);
    assert_string_equal(entry.version_uid, "abcdef01");
    assert_ok(open_border(&c->ranks[0]));
    exchange(c, 4); /* a READY lender is found as well */
    close_case(c);
}

/* ---- what does not agree ---------------------------------------------------------------------*/

static void test_a_part_of_another_size_is_refused(void **state)
{
    (void)state;
    border_case *c = open_ranks("ucx", 2, RIG_TIMEOUT_MS);
    uint64_t planned = c->ranks[0].borrows[0].n_bytes;
    char line[160];
    c->ranks[0].borrows[0].n_bytes += 16;
    assert_ok(open_border(&c->ranks[0]));
    assert_ok(open_border(&c->ranks[1]));
    lend(&c->ranks[1], 1);
    snprintf(line, sizeof(line),
             "lends trainer rank 0 %" PRIu64 " bytes of rows, which needs %" PRIu64, planned,
             planned + 16);
    assert_error(weir_border_borrow(c->ranks[0].border, 1), WEIR_ERR_LAYOUT, line);
    close_case(c);
}

static void test_rows_of_another_dtype_are_refused(void **state)
{
    (void)state;
    border_case *c = open_ranks("ucx", 2, RIG_TIMEOUT_MS);
    c->ranks[0].borrowed[0] = WEIR_F16;
    c->ranks[1].rows[1].dtype = WEIR_F16;
    assert_ok(open_border(&c->ranks[0]));
    assert_ok(open_border(&c->ranks[1]));
    lend(&c->ranks[0], 1);
    lend(&c->ranks[1], 1);
    assert_error(weir_border_borrow(c->ranks[0].border, 1), WEIR_ERR_LAYOUT,
                 "lends trainer rank 0 rows of dtype mixed, expected F16");
    c->ranks[1].borrowed[0] = WEIR_F16;
    weir_border_close(c->ranks[1].border);
    assert_ok(open_border(&c->ranks[1]));
    assert_error(weir_border_borrow(c->ranks[1].border, 1), WEIR_ERR_LAYOUT,
                 "lends trainer rank 1 rows of dtype BF16, expected F16");
    close_case(c);
}

static void test_rows_of_several_dtypes_are_compared_by_size(void **state)
{
    (void)state;
    border_case *c = open_ranks("ucx", 2, RIG_TIMEOUT_MS);
    c->ranks[0].borrowed[0] = WEIR_DTYPE_NONE;
    c->ranks[1].rows[1].dtype = WEIR_F32;
    assert_ok(open_border(&c->ranks[0]));
    assert_ok(open_border(&c->ranks[1]));
    lend(&c->ranks[1], 1);
    borrow(&c->ranks[0], 1);
    close_case(c);
}

static void test_a_rank_that_lends_to_others_only_is_refused(void **state)
{
    (void)state;
    border_case *c = open_ranks("ucx", 3, RIG_TIMEOUT_MS);
    c->ranks[1].share.n_lends = 1; /* to rank 0 */
    c->ranks[1].share.n_lent = N_PIECES;
    for (uint32_t i = 0; i < 3; i++)
        assert_ok(open_border(&c->ranks[i]));
    for (uint32_t i = 0; i < 3; i++)
        lend(&c->ranks[i], 1);
    borrow(&c->ranks[0], 1);
    assert_error(weir_border_borrow(c->ranks[2].border, 1), WEIR_ERR_LAYOUT,
                 "lends trainer rank 2 nothing, which needs");
    close_case(c);
}

static void test_rows_that_outgrow_the_plan_are_refused(void **state)
{
    (void)state;
    border_case *c = open_case("ucx", 2, SHORT_MS);
    case_rank *r = &c->ranks[1];
    lend(r, 1);
    r->rows[0].row_bytes *= 2; /* masters of four bytes where two were planned */
    assert_error(weir_border_lend(r->border, 2), WEIR_ERR_LAYOUT, "lends rank 0");
    r->rows[0].row_bytes = UINT64_MAX / 2;
    assert_error(weir_border_lend(r->border, 2), WEIR_ERR_LAYOUT, "were planned");
    r->rows[0] = shape_of(1, 0, 0);
    r->rows[0].data = r->memory[0];
    r->rows[0].row_bytes /= 2;
    assert_error(weir_border_lend(r->border, 2), WEIR_ERR_LAYOUT, "were planned");
    r->rows[0].row_bytes *= 2;
    check_time_out(&c->ranks[0], 2, "the newest rows that it lent are of version 1");
    lend(r, 2);
    borrow(&c->ranks[0], 2);
    close_case(c);
}

/* Sealing into a shared directory takes memory: when there is none, rows of version 3 lie where
 * those of version 1 were. */
static void test_what_a_failed_lending_overwrote_is_not_given(void **state)
{
    (void)state;
    border_case *c = open_case("file", 2, RIG_TIMEOUT_MS);
    lend(&c->ranks[1], 1);
    lend(&c->ranks[1], 2);
    fill(&c->ranks[1], 3);
    weir_alloc_fail_at(1);
    assert_error(weir_border_lend(c->ranks[1].border, 3), WEIR_ERR_NO_MEMORY, "out of memory");
    weir_alloc_fail_at(0);
    assert_error(weir_border_borrow(c->ranks[0].border, 1), WEIR_ERR_NOT_FOUND,
                 "needs rows of version 1 from rank 1");
    borrow(&c->ranks[0], 2);
    lend(&c->ranks[1], 3);
    borrow(&c->ranks[0], 3);
    borrow(&c->ranks[0], 2);
    close_case(c);
}

static void test_tensors_on_a_gpu_are_refused(void **state)
{
    (void)state;
    border_case *c = open_ranks("ucx", 2, RIG_TIMEOUT_MS);
    c->ranks[0].trainer->memory = WEIR_MEMORY_CUDA;
    assert_error(open_border(&c->ranks[0]), WEIR_ERR_UNSUPPORTED, "in host memory");
    assert_null(c->ranks[0].trainer->border);
    close_case(c);
}

/* Of tensors on a GPU magnitudes can be lent, which lie here: by a transport of hosts, whatever
 * versions travel by. */
static void lend_magnitudes_by(const char *transport)
{
    border_case *c = open_ranks(transport, 2, RIG_TIMEOUT_MS);
    for (uint32_t r = 0; r < 2; r++) {
        c->ranks[r].trainer->memory = WEIR_MEMORY_CUDA;
        for (size_t i = 0; i < c->ranks[r].share.n_lent; i++)
            c->ranks[r].lent[i].border = 0;
        assert_ok(open_border(&c->ranks[r]));
    }
    exchange(c, 1);
    exchange(c, 2);
    close_case(c);
}

static void test_magnitudes_of_tensors_on_a_gpu_are_lent(void **state)
{
    (void)state;
    lend_magnitudes_by("ucx");
}

static void test_magnitudes_travel_where_versions_go_from_gpu_to_gpu(void **state)
{
    const weir_transport_ops *ops;
    (void)state;
    if (weir_transport_get("cuda_ipc", &ops) != WEIR_OK) {
        print_message("SKIPPED: %s\n", weir_last_error());
        skip();
    }
    lend_magnitudes_by("cuda_ipc");
}

static void test_memory_that_runs_out_leaves_nothing(void **state)
{
    (void)state;
    border_case *c = open_ranks("file", 2, RIG_TIMEOUT_MS);
    weir_status status = WEIR_ERR_NO_MEMORY;
    unsigned n = 0;
    while (status != WEIR_OK && n < 500) {
        weir_alloc_fail_at(++n);
        status = open_border(&c->ranks[0]);
        if (status == WEIR_OK)
            status = weir_border_lend(c->ranks[0].border, 1);
        weir_alloc_fail_at(0);
        if (status != WEIR_OK)
            weir_border_close(c->ranks[0].border);
    }
    assert_ok(status);
    assert_true(n > 10);
    assert_ok(open_border(&c->ranks[1]));
    exchange(c, 1);
    close_case(c);
}

/* ---- a lender that lies ----------------------------------------------------------------------*/

/* A trainer rank of the test's own: its service gives whatever manifest the test has made. */
typedef struct liar {
    weir_manifest_service *service;
    weir_transport *transport;
    weir_region *region;
    weir_shard part;
    weir_digest digest;
    weir_arena arena;
    weir_buffer layout, first, later;
    char first_digest[WEIR_SHA256_HEX], later_digest[WEIR_SHA256_HEX];
    unsigned n_asked, n_true; /* that it gives version 1 when it is asked for it; then no more */
    pthread_mutex_t lock;
} liar;

static bool lie(void *context, const weir_manifest_request *request, weir_manifest_found *out)
{
    liar *l = context;
    pthread_mutex_lock(&l->lock);
    bool newest = strcmp(request->version_uid, "border-newest") == 0;
    bool gone = !newest && l->n_asked++ >= l->n_true;
    pthread_mutex_unlock(&l->lock);
    if (gone)
        return false;
    const weir_buffer *bytes = newest ? &l->later : &l->first;
    *out = (weir_manifest_found){ bytes->data, bytes->n_bytes,
                                  newest ? l->later_digest : l->first_digest };
    return true;
}

static void lied(void *context)
{
    (void)context;
}

static void encode_lie(liar *l, weir_manifest *manifest, weir_buffer *out, char *digest)
{
    const weir_transport_ops *ops = l->region->transport->ops;
    weir_manifest_region region = { NULL, 0, l->part.n_bytes };
    assert_ok(ops->region_key(l->region, &region.key, &region.key_bytes));
    assert_ok(ops->address(l->transport, &manifest->address, &manifest->address_bytes));
    manifest->regions = &region;
    manifest->n_regions = 1;
    manifest->transport = ops->name;
    manifest->layout = l->layout.data;
    manifest->layout_bytes = l->layout.n_bytes;
    manifest->digests = &l->digest;
    manifest->n_digests = 1;
    assert_ok(weir_manifest_encode(manifest, &l->arena, out));
    assert_ok(weir_sha256_hex(out->data, out->n_bytes, digest));
}

static weir_manifest honest(const case_rank *reader)
{
    return (weir_manifest){ .model = reader->trainer->worker.model,
                            .run = reader->trainer->worker.run,
                            .worker_id = "trainer-1-liar",
                            .layout_signature = reader->trainer->source.signature,
                            .version = 1,
                            .rank = 1,
                            .n_ranks = reader->n_ranks };
}

/* Lends zeroes, with their digest, and announces itself as rank 1. */
static liar *open_liar(const case_rank *reader)
{
    liar *l = calloc(1, sizeof(*l));
    assert_non_null(l);
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    const weir_transport_ops *ops;
    assert_ok(weir_transport_get("ucx", &ops));
    assert_ok(ops->open(&options, &l->transport));
    uint64_t n_bytes = reader->borrows[0].n_bytes;
    assert_ok(ops->allocate(l->transport, n_bytes, &l->region));
    weir_shape shape = { 1, { n_bytes } };
    l->part = (weir_shard){ .name = "border/0",
                            .dtype = WEIR_U8,
                            .global_shape = shape,
                            .box = weir_box_whole(&shape),
                            .compile_target = "border",
                            .compile_metadata = "BF16",
                            .n_bytes = n_bytes };
    weir_seal seal = WEIR_SEAL_INIT;
    seal.model = "model";
    seal.label = "liar";
    seal.shards = &l->part;
    seal.n_shards = 1;
    assert_ok(ops->seal(l->region, &seal));
    weir_digest_add(&l->digest, ops->region_data(l->region), 1, n_bytes);
    weir_arena_init(&l->arena, 0);
    assert_ok(weir_layout_encode(&l->part, 1, &l->arena, &l->layout));
    pthread_mutex_init(&l->lock, NULL);
    l->n_true = 1000;
    weir_manifest_source source = { lie, lied, l };
    assert_ok(weir_manifest_service_open("127.0.0.1", &source, NULL, &l->service));
    weir_source_record record = weir_worker_entry(&reader->trainer->worker, 0, "",
                                                  weir_manifest_service_address(l->service));
    char id[WEIR_ID_BYTES];
    record.status = WEIR_SOURCE_INITIALIZING;
    record.rank = 1;
    record.n_ranks = reader->n_ranks;
    snprintf(record.worker_id, sizeof(record.worker_id), "trainer-1-liar");
    assert_ok(weir_directory_publish_source(reader->trainer->worker.client, &record, id));
    return l;
}

static void close_liar(liar *l)
{
    const weir_transport_ops *ops = l->region->transport->ops;
    weir_manifest_service_close(l->service);
    ops->release(l->region);
    ops->close(l->transport);
    weir_buffer_free(&l->layout);
    weir_buffer_free(&l->first);
    weir_buffer_free(&l->later);
    weir_arena_close(&l->arena);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

static border_case *open_with_liar(liar **out)
{
    border_case *c = open_ranks("ucx", 2, SHORT_MS);
    c->ranks[0].share.n_lends = c->ranks[0].share.n_lent = 0;
    assert_ok(open_border(&c->ranks[0]));
    *out = open_liar(&c->ranks[0]);
    weir_manifest first = honest(&c->ranks[0]);
    encode_lie(*out, &first, &(*out)->first, (*out)->first_digest);
    encode_lie(*out, &first, &(*out)->later, (*out)->later_digest);
    return c;
}

static void close_with_liar(border_case *c, liar *l)
{
    close_rank(&c->ranks[0]);
    close_liar(l);
    close_case(c);
}

static void test_rows_that_differ_from_their_digest_are_refused(void **state)
{
    (void)state;
    liar *l;
    border_case *c = open_with_liar(&l);
    assert_ok(weir_border_borrow(c->ranks[0].border, 1)); /* zeroes, as it says */
    unsigned char *bytes = l->region->transport->ops->region_data(l->region);
    bytes[l->part.n_bytes - 1] ^= 0x10;
    assert_error(weir_border_borrow(c->ranks[0].border, 1), WEIR_ERR_CORRUPT,
                 "that trainer rank 0 read is not the one that it gave");
    assert_non_null(strstr(weir_last_error(), "trainer rank 1 (worker trainer-1-liar)"));
    bytes[l->part.n_bytes - 1] ^= 0x10;
    assert_ok(weir_border_borrow(c->ranks[0].border, 1));
    close_with_liar(c, l);
}

static void test_rows_overwritten_while_read_are_explained(void **state)
{
    (void)state;
    liar *l;
    border_case *c = open_with_liar(&l);
    unsigned char *bytes = l->region->transport->ops->region_data(l->region);
    weir_manifest later = honest(&c->ranks[0]);
    later.version = 3;
    encode_lie(l, &later, &l->later, l->later_digest);
    bytes[0] = 1;
    l->n_true = 1;
    assert_error(weir_border_borrow(c->ranks[0].border, 1), WEIR_ERR_CORRUPT,
                 "put rows of a later version over those of version 1 while trainer rank 0 read "
                 "them: it lends version 3 now");
    close_with_liar(c, l);
}

static void check_lie(border_case *c, liar *l, const weir_manifest *manifest, weir_status status,
                      const char *line)
{
    weir_manifest told = *manifest;
    encode_lie(l, &told, &l->first, l->first_digest);
    assert_error(weir_border_borrow(c->ranks[0].border, 1), status, line);
}

static void test_manifests_of_something_else_are_refused(void **state)
{
    (void)state;
    liar *l;
    border_case *c = open_with_liar(&l);
    weir_manifest told = honest(&c->ranks[0]);
    told.rank = 0;
    check_lie(c, l, &told, WEIR_ERR_LAYOUT, "says that it is trainer rank 0 of 2, not 1 of 2");
    told = honest(&c->ranks[0]);
    told.n_ranks = 3;
    check_lie(c, l, &told, WEIR_ERR_LAYOUT, "says that it is trainer rank 1 of 3, not 1 of 2");
    told = honest(&c->ranks[0]);
    told.layout_signature = "another";
    check_lie(c, l, &told, WEIR_ERR_LAYOUT, "lends by another plan than trainer rank 0 has");
    told = honest(&c->ranks[0]);
    told.version = 2;
    check_lie(c, l, &told, WEIR_ERR_LAYOUT, "its manifest is of version 2, 1 was asked for");
    told = honest(&c->ranks[0]);
    told.run = "another";
    check_lie(c, l, &told, WEIR_ERR_LAYOUT, "its manifest is of run another");
    told = honest(&c->ranks[0]);
    told.plan = "fsdp=9";
    check_lie(c, l, &told, WEIR_ERR_LAYOUT, "shards the model otherwise: fsdp=9 there, ");
    l->digest.sum++;
    told = honest(&c->ranks[0]);
    check_lie(c, l, &told, WEIR_ERR_CORRUPT, "is not the one that it gave");
    l->first.n_bytes--;
    assert_error(weir_border_borrow(c->ranks[0].border, 1), WEIR_ERR_CORRUPT, "manifest digest is");
    close_with_liar(c, l);
}

/* Its newest manifest is read before anything of it was checked. */
static void test_a_newest_manifest_that_does_not_decode_is_refused(void **state)
{
    (void)state;
    liar *l;
    border_case *c = open_with_liar(&l);
    l->n_true = 0;
    memset(l->later.data, 0xFF, l->later.n_bytes);
    assert_error(weir_border_borrow(c->ranks[0].border, 1), WEIR_ERR_CORRUPT, "does not decode");
    close_with_liar(c, l);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strided_rows_arrive_without_their_gaps),
        cmocka_unit_test(test_a_shared_directory_carries_rows_too),
        cmocka_unit_test(test_ranks_that_run_ahead_still_find_each_other_s_rows),
        cmocka_unit_test(test_a_rank_a_version_late_finds_its_rows),
        cmocka_unit_test(test_a_version_can_be_lent_again),
        cmocka_unit_test(test_who_only_borrows_lends_nothing),
        cmocka_unit_test(test_from_the_second_version_on_nothing_is_taken),
        cmocka_unit_test(test_a_rank_that_never_came_is_named),
        cmocka_unit_test(test_a_rank_that_lent_nothing_is_named),
        cmocka_unit_test(test_a_lender_that_died_is_named),
        cmocka_unit_test(test_who_is_late_is_waited_for),
        cmocka_unit_test(test_a_cancelled_wait_ends_at_once),
        cmocka_unit_test(test_a_lender_two_versions_further_is_an_error_at_once),
        cmocka_unit_test(test_a_lender_that_was_started_anew_is_found),
        cmocka_unit_test(test_of_several_entries_of_a_rank_the_newest_counts),
        cmocka_unit_test(test_its_entry_makes_nobody_believe_in_a_version),
        cmocka_unit_test(test_a_part_of_another_size_is_refused),
        cmocka_unit_test(test_rows_of_another_dtype_are_refused),
        cmocka_unit_test(test_rows_of_several_dtypes_are_compared_by_size),
        cmocka_unit_test(test_a_rank_that_lends_to_others_only_is_refused),
        cmocka_unit_test(test_rows_that_outgrow_the_plan_are_refused),
        cmocka_unit_test(test_what_a_failed_lending_overwrote_is_not_given),
        cmocka_unit_test(test_tensors_on_a_gpu_are_refused),
        cmocka_unit_test(test_magnitudes_of_tensors_on_a_gpu_are_lent),
        cmocka_unit_test(test_magnitudes_travel_where_versions_go_from_gpu_to_gpu),
        cmocka_unit_test(test_memory_that_runs_out_leaves_nothing),
        cmocka_unit_test(test_rows_that_differ_from_their_digest_are_refused),
        cmocka_unit_test(test_rows_overwritten_while_read_are_explained),
        cmocka_unit_test(test_manifests_of_something_else_are_refused),
        cmocka_unit_test(test_a_newest_manifest_that_does_not_decode_is_refused),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
