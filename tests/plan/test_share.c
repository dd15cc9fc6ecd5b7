/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/fleet.h"

#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "share_fleet.h"

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

/* ---- who has a share -------------------------------------------------------------------------*/

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

static uint64_t processor_ns(void)
{
    struct timespec now;
    assert_int_equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now), 0);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Each expert's matrix in as many chunks as there are ranks: 16 ranks share each block. */
static void check_fine_cuts(const model *m)
{
    enum { N_RANKS = 16 };
    uint64_t took_ns[N_RANKS];
    weir_fleet *fleet = open_meshes(m->tensors, m->n, "fsdp=256", "tp=8,dp=4,ep=32,replicas=16");
    size_t n_pieces = 0;
    for (uint32_t i = 0; i < N_RANKS; i++) {
        uint64_t begun = processor_ns();
        weir_share *share = share_of(fleet, i * 17);
        took_ns[i] = processor_ns() - begun;
        n_pieces += share->n_pieces + share->n_lent;
        weir_share_free(share);
    }
    qsort(took_ns, N_RANKS, sizeof(took_ns[0]), compare_numbers);
    print_message("fsdp=256: shares of 16 ranks, processor's time: median %.1f ms, slowest %.1f "
                  "ms; %zu pieces of "
                  "borders each\n",
                  (double)took_ns[N_RANKS / 2] * 1e-6, (double)took_ns[N_RANKS - 1] * 1e-6,
                  n_pieces / N_RANKS);
    assert_true((double)took_ns[N_RANKS / 2] * 1e-9 < 0.25 * TIME_FACTOR);
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
    check_fine_cuts(m);
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
        cmocka_unit_test(only_the_group_that_sends_has_a_share),
        cmocka_unit_test(whole_experts_in_slots_that_follow_each_other_are_one_shard),
        cmocka_unit_test(rows_that_share_a_word_begin_another_shard),
        cmocka_unit_test(a_part_that_is_all_padding_has_one_empty_shard),
        cmocka_unit_test(what_cannot_be_published_in_boxes_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(shares_of_a_deepseek_v3_fleet_take_milliseconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
