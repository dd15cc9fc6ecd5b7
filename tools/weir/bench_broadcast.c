/* SPDX-License-Identifier: Apache-2.0 */
/* bench_broadcast.c - transport nccl: one broadcast from the first GPU to all others.
 *
 * Each rank is a thread of this process with a transport of its own. A round lasts from the first
 * rank's call until the last rank's stream has come past it. A rank that fails goes on meeting the
 * others, so that nobody waits for it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bench_copy.h"
#include "median.h"
#include "weir/cuda.h"

#define N_WARM 3
#define N_ROUNDS (N_WARM + WEIR_BENCH_COPY_ROUNDS)
#define JOIN_TIMEOUT_MS 30000u
#define END_TIMEOUT_S 90

typedef struct rank {
    pthread_t thread;
    uint32_t number;
    unsigned device;
    weir_transport *transport;
    weir_group *group;
    void *data, *stream;
    double begun[N_ROUNDS], ended[N_ROUNDS];
    weir_status status;
    char why[512];
} rank;

/* Static: threads that do not end in time still use it. */
static struct {
    const weir_transport_ops *ops;
    uint64_t n_bytes;
    size_t n_ranks;
    rank ranks[WEIR_BENCH_COPY_MAX_GPUS];
    unsigned char key[WEIR_GROUP_KEY_BYTES];
    pthread_barrier_t meeting;
    atomic_bool failed;
} all;

static void note(rank *self, weir_status status)
{
    if (status == WEIR_OK || self->status != WEIR_OK)
        return;
    self->status = status;
    snprintf(self->why, sizeof(self->why), "%s", weir_last_error());
    atomic_store(&all.failed, true);
}

/* True when nobody has failed before it. */
static bool meet(void)
{
    pthread_barrier_wait(&all.meeting);
    bool good = !atomic_load(&all.failed);
    pthread_barrier_wait(&all.meeting); /* else the next failure would be seen by some alone */
    return good;
}

static weir_status prepare(rank *self)
{
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    char name[32];
    snprintf(name, sizeof(name), "bench rank %u", self->number);
    options.name = name;
    options.device = self->device;
    weir_status status = all.ops->open(&options, &self->transport);
    if (status == WEIR_OK)
        status = weir_cuda_stream_open(self->device, &self->stream);
    if (status == WEIR_OK)
        status = weir_cuda_allocate(self->device, all.n_bytes, &self->data);
    if (status == WEIR_OK)
        status = weir_cuda_fill(self->device, self->data, 0x5a, all.n_bytes, self->stream);
    if (status == WEIR_OK && self->number == 0)
        status = all.ops->group_key(self->transport, all.key);
    return status;
}

static weir_status join_group(rank *self)
{
    weir_group_options options = WEIR_GROUP_OPTIONS_INIT;
    options.key = all.key;
    options.rank = self->number;
    options.n_ranks = (uint32_t)all.n_ranks;
    options.timeout_ms = JOIN_TIMEOUT_MS;
    options.who = "bench copy";
    weir_status status = all.ops->group_open(self->transport, &options, &self->group);
    while (status == WEIR_OK) {
        status = all.ops->group_test(self->group);
        if (status != WEIR_IN_PROGRESS)
            break;
        nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
        status = WEIR_OK;
    }
    return status;
}

static weir_status broadcast_once(rank *self, int round)
{
    self->begun[round] = weir_cli_now();
    weir_status status = all.ops->group_broadcast(
        self->group, 0, &(weir_group_part){ self->data, all.n_bytes }, 1, self->stream);
    if (status == WEIR_OK)
        status = weir_cuda_stream_wait(self->device, self->stream);
    self->ended[round] = weir_cli_now();
    return status;
}

static void *run_rank(void *context)
{
    rank *self = context;
    note(self, prepare(self));
    if (meet())
        note(self, join_group(self));
    for (int round = 0; round < N_ROUNDS && meet(); round++)
        note(self, broadcast_once(self, round));
    meet();
    if (self->transport != NULL) {
        all.ops->group_close(self->group, atomic_load(&all.failed));
        all.ops->close(self->transport);
    }
    weir_cuda_free(self->device, self->data);
    weir_cuda_stream_close(self->device, self->stream);
    return NULL;
}

/* False when a rank does not end in time. */
static bool run_ranks(void)
{
    struct timespec until;
    size_t n_started = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += END_TIMEOUT_S;
    for (; n_started < all.n_ranks; n_started++) {
        rank *self = &all.ranks[n_started];
        if (pthread_create(&self->thread, NULL, run_rank, self) != 0)
            return false;
    }
    for (size_t i = 0; i < all.n_ranks; i++) {
        if (pthread_timedjoin_np(all.ranks[i].thread, NULL, &until) != 0)
            return false;
    }
    return true;
}

static double rate_of_round(int round)
{
    double begun = all.ranks[0].begun[round], ended = all.ranks[0].ended[round];
    for (size_t i = 1; i < all.n_ranks; i++) {
        const rank *other = &all.ranks[i];
        begun = other->begun[round] < begun ? other->begun[round] : begun;
        ended = other->ended[round] > ended ? other->ended[round] : ended;
    }
    return (double)all.n_bytes / (ended - begun) * 1e-9;
}

static void take_result(weir_bench_way *way)
{
    double rates[WEIR_BENCH_COPY_ROUNDS];
    for (size_t i = 0; i < all.n_ranks; i++) {
        if (all.ranks[i].status == WEIR_OK)
            continue;
        way->failed = all.ranks[i].status != WEIR_ERR_UNSUPPORTED;
        snprintf(way->why_not, sizeof(way->why_not), "%s", all.ranks[i].why);
        return;
    }
    for (int i = 0; i < WEIR_BENCH_COPY_ROUNDS; i++)
        rates[i] = rate_of_round(N_WARM + i);
    way->gb_per_s = weir_median(rates, WEIR_BENCH_COPY_ROUNDS);
}

static void describe(const weir_bench_copy *bench, weir_bench_way *way)
{
    int n = snprintf(way->over, sizeof(way->over), "GPU %u to", bench->gpus[0]);
    for (size_t i = 1; i < bench->n_gpus && n > 0 && (size_t)n < sizeof(way->over); i++)
        n += snprintf(way->over + n, sizeof(way->over) - (size_t)n, "%s%u", i > 1 ? "," : " ",
                      bench->gpus[i]);
}

void weir_bench_broadcast(const weir_bench_copy *bench, weir_bench_way *way)
{
    weir_status status = weir_transport_get("nccl", &all.ops);
    if (status != WEIR_OK) {
        weir_bench_way_fail(way, status);
        return;
    }
    if (bench->n_gpus < 2) {
        snprintf(way->why_not, sizeof(way->why_not), "needs two GPUs, there is one");
        return;
    }
    describe(bench, way);
    all.n_bytes = bench->n_bytes;
    all.n_ranks = bench->n_gpus;
    for (size_t i = 0; i < all.n_ranks; i++)
        all.ranks[i] = (rank){ .number = (uint32_t)i, .device = bench->gpus[i] };
    pthread_barrier_init(&all.meeting, NULL, (unsigned)all.n_ranks);
    if (run_ranks()) {
        take_result(way);
        return;
    }
    way->failed = true;
    snprintf(way->why_not, sizeof(way->why_not), "the broadcasts did not end within %d s",
             END_TIMEOUT_S);
}
