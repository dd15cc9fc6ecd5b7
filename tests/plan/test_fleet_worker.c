/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/fleet.h"

#include <time.h>

#include "model_case.h"

/* ---- growth ----------------------------------------------------------------------------------*/

#define N_RUNS 15

typedef struct size_of_plan {
    double seconds; /* of a processor, to plan and to add up; the least of some runs */
    double copies, plan_bytes;
} size_of_plan;

/* What others do on a busy machine does not count. */
static double processor_seconds(void)
{
    struct timespec now;
    assert_int_equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now), 0);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Copies that somebody makes; each of them goes to as many workers as hold the part. */
static double count_copies(const model *m, const char *trainer, const char *replica)
{
    size_t n = 0;
    weir_fleet *fleet = open_meshes(m->tensors, m->n, trainer, replica);
    for (uint32_t rank = 0; rank < weir_fleet_ranks(fleet); rank++) {
        weir_share *share;
        assert_int_equal(weir_fleet_share(fleet, rank, &share), WEIR_OK);
        n += share->n_jobs;
        weir_share_free(share);
    }
    weir_fleet_close(fleet);
    return (double)n;
}

static size_of_plan measure(const model *m, const char *trainer, const char *replica)
{
    double least = 0;
    weir_fleet_summary sum;
    for (int i = 0; i < N_RUNS; i++) {
        double begun = processor_seconds();
        weir_fleet *fleet = open_meshes(m->tensors, m->n, trainer, replica);
        if (fleet == NULL)
            fail_msg("%s", weir_last_error());
        assert_int_equal(weir_fleet_summarise(fleet, &sum, NULL, NULL, NULL), WEIR_OK);
        double seconds = processor_seconds() - begun;
        least = i == 0 || seconds < least ? seconds : least;
        weir_fleet_close(fleet);
    }
    return (size_of_plan){ least, count_copies(m, trainer, replica), (double)sum.plan_bytes };
}

/* Time and memory may grow as much as the copies do, with half as much again for what a busy
 * machine adds. */
static void assert_linear(const char *what, size_of_plan small, size_of_plan large)
{
    double copies = large.copies / small.copies, seconds = large.seconds / small.seconds;
    double bytes = large.plan_bytes / small.plan_bytes;
    print_message("%s: %.2f times the copies, %.2f times the time (%.1f ms), %.2f times the "
                  "memory\n",
                  what, copies, seconds, large.seconds * 1e3, bytes);
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(seconds < 1.5 * copies); /* a sanitizer's own time grows otherwise */
#endif
    assert_true(bytes < 1.1 * copies);
}

static void time_and_memory_grow_no_faster_than_copies(void **state)
{
    (void)state;
    const char *trainer = "fsdp=8,ep=8", *replica = "tp=4,dp=4,ep=16,replicas=4";
    model *m = deepseek_v3_of("fp8_128x128", 30, 128), *deep, *wide, *both;
    deep = deepseek_v3_of("fp8_128x128", 57, 128); /* twice the layers with experts */
    wide = deepseek_v3_of("fp8_128x128", 30, 256);
    both = deepseek_v3_of("fp8_128x128", 57, 256);
    measure(m, trainer, replica); /* once for the caches' sake */
    size_of_plan base = measure(m, trainer, replica);
    assert_linear("twice the layers", base, measure(deep, trainer, replica));
    assert_linear("twice the experts", base, measure(wide, trainer, replica));
    assert_linear("twice the ranks", base, measure(m, "fsdp=16,ep=8", replica));
    assert_linear("twice the layers, experts and ranks", base,
                  measure(both, "fsdp=16,ep=8", replica));
    assert_linear("twice the replicas", base, measure(m, trainer, "tp=4,dp=4,ep=16,replicas=8"));
    free(m);
    free(deep);
    free(wide);
    free(both);
}

/* ---- balance ---------------------------------------------------------------------------------*/

static double most_of_mean(const uint64_t *n, size_t n_items)
{
    uint64_t most = 0, sum = 0;
    for (size_t i = 0; i < n_items; i++) {
        most = n[i] > most ? n[i] : most;
        sum += n[i];
    }
    return (double)most * (double)n_items / (double)sum;
}

static void assert_balanced(const model *m, const char *trainer, const char *replica,
                            double sent_bound, double received_bound)
{
    weir_fleet *fleet = open_meshes(m->tensors, m->n, trainer, replica);
    if (fleet == NULL)
        fail_msg("%s", weir_last_error());
    size_t n_ranks = weir_fleet_ranks(fleet), n_workers = weir_fleet_workers(fleet);
    uint64_t *sent = calloc(n_ranks, 8), *received = calloc(n_workers, 8);
    weir_fleet_summary sum;
    assert_int_equal(weir_fleet_summarise(fleet, &sum, sent, NULL, received), WEIR_OK);
    double s = most_of_mean(sent, n_ranks), r = most_of_mean(received, n_workers);
    print_message("%s -> %s: busiest rank %.3f of the mean, busiest worker %.3f\n", trainer,
                  replica, s, r);
    assert_true(s < sent_bound);
    assert_true(r < received_bound);
    free(sent);
    free(received);
    weir_fleet_close(fleet);
}

static void no_rank_and_no_worker_carries_much_more_than_others(void **state)
{
    (void)state;
    model *m = deepseek_v3("fp8_128x128"), *channel = deepseek_v3("cutlass_fp8_e4m3_per_channel");
    assert_balanced(m, "fsdp=32,ep=8", "tp=4,ep=32,dp=8,replicas=16", 1.25, 1.05);
    assert_balanced(m, "fsdp=16,ep=16", "tp=8,dp=4,ep=32,replicas=16", 1.15, 1.05);
    assert_balanced(m, "fsdp=256", "dp=32,ep=32,replicas=16", 1.35, 1.05);
    assert_balanced(m, "fsdp=4,ep=8,tp=2,pp=4", "tp=8,dp=4,ep=32,replicas=16", 1.25, 1.05);
    assert_balanced(m, "ep=64,tp=2,dense_whole=1", "tp=8,dp=4,ep=32,replicas=16", 1.15, 1.05);
    assert_balanced(m, "ep=8,tp=8,pp=4", "tp=16,pp=2,ep=16,replicas=16", 1.25, 1.15);
    assert_balanced(channel, "ep=8,tp=8,pp=4", "tp=16,pp=2,ep=16,replicas=16", 1.25, 1.15);
    free(m);
    free(channel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(time_and_memory_grow_no_faster_than_copies),
        cmocka_unit_test(no_rank_and_no_worker_carries_much_more_than_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
