/* SPDX-License-Identifier: Apache-2.0 */
/* test_nccl.c - transport nccl: what it offers and refuses, and broadcasts between processes, which
 * need two GPUs and NCCL. WEIR_TEST_REQUIRE_GPU=2 turns their being skipped into a failure; 1 does
 * so for what needs one GPU alone. */
#include "transport/nccl_case.h"
#include "transport/nccl_ranks.h"

#include "weir/cuda.h"

#define MIB ((uint64_t)1 << 20)
#define CHUNK (64 * MIB)

static const weir_transport_ops *const ops = &weir_transport_nccl;

/* --- what a rank does, in a process of its own -------------------------------------------------*/

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "rank %u, line %d: %s: %s\n", self->rank, __LINE__, #condition, \
                    weir_last_error());                                                     \
            return false;                                                                   \
        }                                                                                   \
    } while (0)

typedef struct rank {
    unsigned rank, n_ranks, timeout_ms;
    char key[WEIR_GROUP_KEY_BYTES];
    weir_transport *transport;
    weir_group *group;
    void *stream;
} rank;

static bool rank_open(rank *self)
{
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.device = self->rank;
    CHECK(ops->open(&options, &self->transport) == WEIR_OK);
    CHECK(weir_cuda_stream_open(self->rank, &self->stream) == WEIR_OK);
    return true;
}

static bool rank_begin(rank *self)
{
    weir_group_options options = WEIR_GROUP_OPTIONS_INIT;
    options.key = self->key;
    options.rank = self->rank;
    options.n_ranks = self->n_ranks;
    options.timeout_ms = self->timeout_ms;
    options.who = "round of version 7";
    CHECK(ops->group_open(self->transport, &options, &self->group) == WEIR_OK);
    return true;
}

static bool rank_join(rank *self)
{
    CHECK(rank_begin(self));
    CHECK(await_group(self->group) == WEIR_OK);
    return true;
}

static bool rank_close(rank *self, bool abort)
{
    ops->group_close(self->group, abort);
    weir_cuda_stream_close(self->rank, self->stream);
    ops->close(self->transport);
    return true;
}

static unsigned char byte_of(uint64_t i, unsigned seed)
{
    return (unsigned char)(((i + 1) * (2654435761u + 2 * (uint64_t)seed)) >> 13);
}

/* n_bytes of one rank arrive at the other, and nothing beside them changes. */
static bool verify(rank *self, uint64_t n_bytes, unsigned root)
{
    unsigned char *host = malloc(n_bytes + 2);
    void *data = NULL;
    unsigned seed = self->rank == root ? root : 77;
    CHECK(host != NULL && weir_cuda_allocate(self->rank, n_bytes + 2, &data) == WEIR_OK);
    for (uint64_t i = 0; i < n_bytes + 2; i++)
        host[i] = byte_of(i, seed);
    CHECK(weir_cuda_copy(self->rank, data, host, n_bytes + 2, self->stream) == WEIR_OK);
    CHECK(ops->group_broadcast(self->group, root, &(weir_group_part){ (char *)data + 1, n_bytes },
                               1, self->stream) == WEIR_OK);
    CHECK(weir_cuda_copy(self->rank, host, data, n_bytes + 2, self->stream) == WEIR_OK);
    CHECK(weir_cuda_stream_wait(self->rank, self->stream) == WEIR_OK);
    for (uint64_t i = 1; i <= n_bytes; i++)
        CHECK(host[i] == byte_of(i, root));
    CHECK(host[0] == byte_of(0, seed) && host[n_bytes + 1] == byte_of(n_bytes + 1, seed));
    weir_cuda_free(self->rank, data);
    free(host);
    return true;
}

static bool broadcast_and_verify(rank *self)
{
    static const uint64_t sizes[] = { 1, 4097, 3 * MIB + 5, CHUNK + 3 };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (unsigned root = 0; root < self->n_ranks; root++)
            CHECK(verify(self, sizes[i], root));
    }
    CHECK(ops->group_test(self->group) == WEIR_OK);
    return true;
}

static bool verify_bytes(rank *self)
{
    return rank_join(self) && broadcast_and_verify(self) && rank_close(self, false);
}

/* A context takes half a gigabyte of its GPU. */
static bool has_context(int device)
{
    unsigned flags;
    int active = 1;
    int (*state_of)(int, unsigned *, int *) = NULL;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver != NULL)
        *(void **)&state_of = dlsym(driver, "cuDevicePrimaryCtxGetState");
    return state_of == NULL || state_of(device, &flags, &active) != 0 || active != 0;
}

static bool allocate_nothing(rank *self)
{
    void *data = NULL;
    CHECK(rank_join(self));
    CHECK(weir_cuda_allocate(self->rank, MIB, &data) == WEIR_OK);
    uint64_t before = weir_alloc_count();
    for (int i = 0; i < 200; i++)
        CHECK(ops->group_broadcast(self->group, 0, &(weir_group_part){ data, MIB }, 1,
                                   self->stream) == WEIR_OK);
    CHECK(weir_cuda_stream_wait(self->rank, self->stream) == WEIR_OK);
    CHECK(ops->group_test(self->group) == WEIR_OK);
    CHECK(weir_alloc_count() == before);
    CHECK(!has_context(1 - (int)self->rank)); /* nor anything on the other's GPU */
    weir_cuda_free(self->rank, data);
    return rank_close(self, false);
}

static bool measure(rank *self)
{
    enum { N = 100 };
    void *data = NULL;
    weir_cuda_timer *timer = NULL;
    double seconds = 0;
    CHECK(rank_join(self));
    CHECK(weir_cuda_allocate(self->rank, CHUNK, &data) == WEIR_OK);
    CHECK(weir_cuda_timer_open(self->rank, &timer) == WEIR_OK);
    for (int i = -3; i < N; i++) {
        if (i == 0)
            CHECK(weir_cuda_timer_begin(timer, self->stream) == WEIR_OK);
        CHECK(ops->group_broadcast(self->group, 0, &(weir_group_part){ data, CHUNK }, 1,
                                   self->stream) == WEIR_OK);
    }
    CHECK(weir_cuda_timer_end(timer, self->stream) == WEIR_OK);
    CHECK(weir_cuda_timer_seconds(timer, &seconds) == WEIR_OK);
    if (self->rank == 0)
        fprintf(stderr, "%d broadcasts of 64 MiB, 0 -> 1: %.1f GB/s\n", N,
                (double)(N * CHUNK) / seconds * 1e-9);
    weir_cuda_timer_close(timer);
    weir_cuda_free(self->rank, data);
    return rank_close(self, false);
}

static bool wait_for_the_absent(rank *self)
{
    self->timeout_ms = 2000;
    uint64_t begun = weir_now_ns();
    CHECK(rank_begin(self));
    CHECK(await_group(self->group) == WEIR_ERR_TIMED_OUT);
    CHECK(strstr(weir_last_error(), "not all of 2 ranks have joined NCCL within 2.0 s") != NULL);
    CHECK(rank_close(self, false));
    double took = (double)(weir_now_ns() - begun) * 1e-9;
    fprintf(stderr, "without the other rank: %.2f s\n", took);
    CHECK(took < 2.0 + 10.0);
    return true;
}

/* Rank 1 is killed while rank 0 has broadcasts in its stream that nobody will take. */
static bool lose_the_other(rank *self)
{
    void *data = NULL;
    CHECK(rank_join(self));
    if (self->rank == 1)
        kill(getpid(), SIGKILL);
    weir_sleep_ms(500);
    CHECK(weir_cuda_allocate(self->rank, CHUNK, &data) == WEIR_OK);
    weir_status status = WEIR_OK;
    for (int i = 0; i < 4 && status == WEIR_OK; i++)
        status = ops->group_broadcast(self->group, 0, &(weir_group_part){ data, CHUNK }, 1,
                                      self->stream);
    weir_deadline deadline = weir_deadline_in(2000); /* the caller's own */
    while (status == WEIR_OK && !weir_deadline_passed(deadline)) {
        weir_sleep_ms(10);
        status = ops->group_test(self->group);
    }
    fprintf(stderr, "the other rank was killed: %s\n",
            status != WEIR_OK ? weir_last_error() : "NCCL does not notice");
    CHECK(status == WEIR_OK || status == WEIR_ERR_PEER_LOST);
    uint64_t begun = weir_now_ns();
    ops->group_close(self->group, true);
    double took = (double)(weir_now_ns() - begun) * 1e-9;
    fprintf(stderr, "aborted in %.2f s\n", took);
    CHECK(took < 9.0);
    CHECK(weir_cuda_stream_wait(self->rank, self->stream) == WEIR_OK); /* free again */
    weir_cuda_free(self->rank, data);
    self->group = NULL;
    return rank_close(self, true);
}

static bool close_in_time(rank *self)
{
    uint64_t begun = weir_now_ns();
    ops->group_close(self->group, false);
    double took = (double)(weir_now_ns() - begun) * 1e-9;
    fprintf(stderr, "rank %u has left in %.2f s\n", self->rank, took);
    CHECK(took < 3.0);
    self->group = NULL;
    return rank_close(self, false);
}

/* Rank 0 leaves what it has ended while rank 1 stays for as long as it likes. */
static bool leave_the_other(rank *self)
{
    CHECK(rank_join(self));
    CHECK(broadcast_and_verify(self));
    if (self->rank == 1)
        weir_sleep_ms(6000);
    return close_in_time(self);
}

static void *thread_main(void *argument)
{
    rank *self = argument;
    bool good = rank_open(self) && rank_join(self) && broadcast_and_verify(self);
    return good ? self : NULL;
}

/* Both ranks in this process, which was started as rank 0 alone. */
static bool verify_threads(const rank *self, rank ranks[2])
{
    pthread_t threads[2];
    bool good = true;
    for (unsigned i = 0; i < 2; i++) {
        ranks[i] = *self;
        ranks[i].rank = i;
        ranks[i].n_ranks = 2;
        CHECK(pthread_create(&threads[i], NULL, thread_main, &ranks[i]) == 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        good = good && result != NULL;
    }
    return good;
}

static bool verify_in_threads(rank *self)
{
    rank ranks[2];
    CHECK(verify_threads(self, ranks));
    ops->group_leave(ranks[1].group, false);
    ops->group_leave(ranks[0].group, false);
    CHECK(close_in_time(&ranks[0]) && close_in_time(&ranks[1]));
    return rank_close(self, false);
}

/* One of them leaves, and the other of the same process stays for as long as it likes. */
static bool leave_the_other_thread(rank *self)
{
    rank ranks[2];
    CHECK(verify_threads(self, ranks));
    CHECK(close_in_time(&ranks[0]));
    weir_sleep_ms(1000);
    CHECK(close_in_time(&ranks[1]));
    return rank_close(self, false);
}

typedef struct scenario {
    const char *name;
    bool (*run)(rank *self);
} scenario;

static const scenario scenarios[] = {
    { "verify", verify_bytes },       { "nothing", allocate_nothing },
    { "measure", measure },           { "absent", wait_for_the_absent },
    { "lost", lose_the_other },       { "left", leave_the_other },
    { "threads", verify_in_threads }, { "thread", leave_the_other_thread },
};

static int rank_main(char **arguments)
{
    rank self = { .rank = (unsigned)atoi(arguments[1]), .n_ranks = (unsigned)atoi(arguments[2]) };
    for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++) {
        if (strcmp(arguments[0], scenarios[i].name) != 0)
            continue;
        if (!rank_open(&self))
            return 1;
        if (!rank_key(ops, self.transport, self.rank, self.key)) {
            fprintf(stderr, "rank %u has no key: %s\n", self.rank, weir_last_error());
            return 1;
        }
        return scenarios[i].run(&self) ? 0 : 1;
    }
    return 2;
}

/* Tells the parent how many GPUs transport nccl can use here, and why it cannot. */
static int count_main(void)
{
    unsigned n = 0;
    char why[256] = "";
    snprintf(why, sizeof(why), "%s", weir_nccl_why_not());
    if (why[0] == '\0' && weir_cuda_devices(&n) != WEIR_OK)
        snprintf(why, sizeof(why), "%s", weir_last_error());
    if (send(RANK_FD, why, sizeof(why), MSG_NOSIGNAL) != sizeof(why))
        return 0;
    return n < 100 ? (int)n : 100;
}

/* --- the tests ---------------------------------------------------------------------------------*/

/* False, having said so aloud, where there are fewer GPUs, or no NCCL. */
static bool have_gpus(int n)
{
    rank_process process;
    char why[256] = "no answer";
    const char *required = getenv("WEIR_TEST_REQUIRE_GPU");
    assert_true(rank_start(&process, "count", 0, 1));
    read_bounded(process.fd, why, sizeof(why), 30000);
    rank_await(&process, weir_deadline_in(30000));
    close(process.fd);
    int have = WIFEXITED(process.status) ? WEXITSTATUS(process.status) : 0;
    if (have >= n)
        return true;
    if (required != NULL && atoi(required) >= n)
        fail_msg("%d GPUs with NCCL are required, there are %d: %s", n, have, why);
    print_message("SKIPPED: needs %d GPUs with NCCL, there are %d: %s\n", n, have, why);
    return false;
}

static void check_scenario(const char *name, unsigned n_processes, unsigned n_ranks, int n_gpus)
{
    int statuses[MAX_RANKS];
    if (!have_gpus(n_gpus))
        skip();
    assert_true(ranks_run(name, n_processes, n_ranks, statuses));
    for (unsigned i = 0; i < n_processes; i++)
        assert_int_equal(statuses[i], 0);
}

static void two_processes_broadcast_the_bytes(void **state)
{
    (void)state;
    check_scenario("verify", 2, 2, 2);
}

static void two_threads_of_a_process_broadcast_the_bytes(void **state)
{
    (void)state;
    check_scenario("threads", 1, 1, 2);
}

static void two_hundred_broadcasts_allocate_nothing(void **state)
{
    (void)state;
    check_scenario("nothing", 2, 2, 2);
}

static void the_rate_of_broadcasts_is_told(void **state)
{
    (void)state;
    check_scenario("measure", 2, 2, 2);
}

static void a_rank_that_never_comes_ends_in_an_error(void **state)
{
    (void)state;
    check_scenario("absent", 1, 2, 1);
}

static void a_rank_that_stays_does_not_hold_who_leaves(void **state)
{
    (void)state;
    check_scenario("left", 2, 2, 2);
}

static void a_thread_that_stays_does_not_hold_who_leaves(void **state)
{
    (void)state;
    check_scenario("thread", 1, 1, 2);
}

static void a_rank_that_is_killed_does_not_hold_the_other(void **state)
{
    (void)state;
    int statuses[MAX_RANKS];
    if (!have_gpus(2))
        skip();
    assert_true(ranks_run("lost", 2, 2, statuses));
    assert_int_equal(statuses[0], 0);
    assert_true(WIFSIGNALED(statuses[1]) && WTERMSIG(statuses[1]) == SIGKILL);
}

static void it_offers_groups_and_nothing_else(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(1);
    weir_region *region = NULL;
    char key[WEIR_GROUP_KEY_BYTES];
    assert_string_equal(ops->name, "nccl");
    assert_int_equal(ops->caps, WEIR_CAP_MATCHED);
    assert_int_equal(ops->memory, WEIR_MEMORY_CUDA);
    assert_int_equal(ops->allocate(transport, 8, &region), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "transport nccl cannot"));
    assert_int_equal(ops->group_key(transport, key), WEIR_OK);
    assert_true(key[0] == 'k' && key[WEIR_GROUP_KEY_BYTES - 1] == 'k');
    fake->key_result = WEIR_NCCL_SYSTEM_ERROR;
    assert_int_equal(ops->group_key(transport, key), WEIR_ERR_PEER_LOST);
    ops->close(transport);
}

static void what_cannot_work_is_not_opened(void **state)
{
    (void)state;
    weir_transport *transport = NULL;
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.device = FAKE_DEVICES;
    assert_int_equal(ops->open(&options, &transport), WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "transport nccl: no GPU 2, there are 2");
    setenv("NCCL_COMM_BLOCKING", "1", 1);
    assert_int_equal(ops->open(NULL, &transport), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "NCCL_COMM_BLOCKING=1"));
    setenv("NCCL_COMM_BLOCKING", "0", 1);
    assert_int_equal(ops->open(NULL, &transport), WEIR_OK);
    unsetenv("NCCL_COMM_BLOCKING");
    ops->close(transport);
}

static void it_is_in_the_table_and_never_chosen_unasked(void **state)
{
    (void)state;
    const weir_transport_ops *got = NULL;
    assert_int_equal(weir_transport_get("nccl", &got), WEIR_OK);
    assert_ptr_equal(got, ops);
    assert_int_equal(weir_transport_get(NULL, &got), WEIR_OK);
    assert_ptr_not_equal(got, ops);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, reset_fake, check_fake)

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "rank") == 0)
        return strcmp(argv[2], "count") == 0 ? count_main() : rank_main(argv + 2);
    real_cuda = getenv("WEIR_CUDA_LIBRARY");
    real_nccl = getenv("WEIR_NCCL_LIBRARY");
    real_cuda = real_cuda != NULL ? strdup(real_cuda) : NULL;
    real_nccl = real_nccl != NULL ? strdup(real_nccl) : NULL;
    if (!use_fake())
        return 1;
    const struct CMUnitTest tests[] = {
        CASE(it_offers_groups_and_nothing_else),
        CASE(what_cannot_work_is_not_opened),
        CASE(it_is_in_the_table_and_never_chosen_unasked),
        CASE(two_processes_broadcast_the_bytes),
        CASE(two_threads_of_a_process_broadcast_the_bytes),
        CASE(two_hundred_broadcasts_allocate_nothing),
        CASE(the_rate_of_broadcasts_is_told),
        CASE(a_rank_that_never_comes_ends_in_an_error),
        CASE(a_rank_that_is_killed_does_not_hold_the_other),
        CASE(a_rank_that_stays_does_not_hold_who_leaves),
        CASE(a_thread_that_stays_does_not_hold_who_leaves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
