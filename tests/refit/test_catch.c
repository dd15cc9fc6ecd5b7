/* SPDX-License-Identifier: Apache-2.0 */
/* test_catch.c - a replica takes a version that two ranks broadcast: the order, the headers, and
 * what every failure leaves behind. The ranks are scripts (cast_script.h), the plan is made by
 * hand.
 */
#include "refit/cast_script.h"

#include "base/clock.h"
#include "base/digest.h"
#include "refit/replica.h"
#include "weir/cuda.h"

#define N_RANKS 2u
#define N_PARAMETERS 5u
#define ROWS 64u
#define COLS 32u
#define TENSOR_BYTES ((uint64_t)ROWS * COLS)
#define HALF (TENSOR_BYTES / 2)
#define N_GROUPS 6u
#define N_SHARDS 7u /* that each rank publishes */
#define BUFFER_BYTES (4 * TENSOR_BYTES)
#define SECOND_AT ((uint64_t)2048) /* where the second shard of a group begins */

/* Each rank has half of every tensor, its columns of tensor 2, else its rows. Group 3 is for
 * others, group 4 comes here but is not needed, group 5 has two tensors. */
static const uint32_t group_ends[N_GROUPS] = { 1, 2, 3, 4, 5, 7 };
static const uint32_t group_keys[N_GROUPS] = { 0, 1, 2, 2, 2, 3 };
static const uint32_t group_audiences[N_GROUPS] = { 0, 0, 0, 1, 2, 0 };
static const uint32_t visible[] = { 0, 1, 2, 4, 5, 6 }; /* shards that are for this worker */
#define N_VISIBLE (sizeof(visible) / sizeof(*visible))
#define NOT_NEEDED 3u /* of the visible ones */
static const char *const names[N_VISIBLE] = { "embed", "norm",       "layers.0.a",
                                              "spare", "layers.1.a", "layers.1.b" };

typedef struct bench {
    weir_replica replica;
    weir_discovery discovery;
    weir_remote remotes[N_RANKS];
    weir_remote_region *regions[1];
    weir_participant participants[N_RANKS];
    script_rank ranks[N_RANKS];
    weir_shard shards[N_RANKS][N_VISIBLE];
    weir_digest digests[N_RANKS][N_SHARDS];
    unsigned char bytes[N_RANKS][N_GROUPS][BUFFER_BYTES]; /* as the ranks' buffers have them */
    uint64_t group_bytes[N_GROUPS];
    weir_plan_copy planned[N_RANKS * N_PARAMETERS];
    weir_tensor live[N_PARAMETERS];
    weir_parameter wanted[N_PARAMETERS];
    uint64_t staging_offset[N_PARAMETERS];
    unsigned char memory[N_PARAMETERS][TENSOR_BYTES], before[N_PARAMETERS][TENSOR_BYTES];
    uint32_t casts[N_RANKS][2]; /* of audiences 0 and 2 */
} bench;

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

static void expect_fails(weir_status found, weir_status status, const char *line)
{
    if (found != status || strstr(weir_last_error(), line) == NULL)
        fail_msg("got %s: '%s', wanted %s: '%s'", weir_status_name(found), weir_last_error(),
                 weir_status_name(status), line);
}

/* ---- the bench -------------------------------------------------------------------------------*/

static uint32_t group_of(uint32_t number)
{
    uint32_t group = 0;
    while (group_ends[group] <= number)
        group++;
    return group;
}

/* What rank r has of the parameter is a box of rows, or of columns. */
static weir_box box_of(uint32_t r, uint32_t parameter)
{
    if (parameter == 2)
        return (weir_box){ 2, { 0, r * COLS / 2 }, { ROWS, (r + 1) * COLS / 2 } };
    return (weir_box){ 2, { r * ROWS / 2, 0 }, { (r + 1) * ROWS / 2, COLS } };
}

static void plan_rank(bench *b, uint32_t r)
{
    uint32_t parameter = 0;
    for (uint32_t v = 0; v < N_VISIBLE; v++) {
        bool is_second = visible[v] > 0 && group_of(visible[v]) == group_of(visible[v] - 1);
        weir_shard *shard = &b->shards[r][v];
        *shard = (weir_shard){ .name = names[v],
                               .dtype = WEIR_U8,
                               .global_shape = { 2, { ROWS, COLS } },
                               .box = box_of(r, parameter),
                               .offset = is_second ? SECOND_AT : 0,
                               .n_bytes = HALF };
        if (v == NOT_NEEDED)
            continue;
        b->planned[r * N_PARAMETERS + parameter] =
            (weir_plan_copy){ .source = r,
                              .shard = v,
                              .source_offset = shard->offset,
                              .parameter = parameter,
                              .parameter_offset = parameter == 2 ? r * COLS / 2 : r * HALF,
                              .n_bytes = HALF,
                              .run_bytes = parameter == 2 ? COLS / 2 : HALF,
                              .pitch_bytes = parameter == 2 ? COLS : 0,
                              .packed_offset = r * HALF };
        parameter++;
    }
}

/* A broadcast group for those that the rank's audience is now; sends what it has in its groups. */
static void new_cast(bench *b, uint32_t r, size_t place)
{
    script_rank *rank = &b->ranks[r];
    uint32_t audience = place == 0 ? 0 : 2;
    uint32_t cast = b->casts[r][place] = script_cast_new();
    rank->places[place] = (weir_membership){ audience, script_net.casts[cast].key, 1 + r, 3 };
    rank->n_places = rank->n_places > place ? rank->n_places : place + 1;
    for (uint32_t g = 0; g < N_GROUPS; g++)
        if (group_audiences[g] == audience)
            script_send(cast, b->bytes[r][g], b->group_bytes[g]);
}

static void open_rank(bench *b, uint32_t r)
{
    script_rank *rank = &b->ranks[r];
    weir_remote *remote = &b->remotes[r];
    script_open(rank);
    rank->header = (weir_group_record){ .format = WEIR_GROUP_FORMAT,
                                        .run = "run",
                                        .version = 7,
                                        .version_uid = "uid",
                                        .n_groups = N_GROUPS };
    rank->group_bytes = b->group_bytes;
    rank->group_ends = group_ends;
    rank->digests = b->digests[r];
    *remote = (weir_remote){ .worker = &b->replica.worker,
                             .link = { &script_ops, &script_net.base },
                             .shards = b->shards[r],
                             .numbers = visible,
                             .n_shards = N_VISIBLE,
                             .n_published = N_SHARDS,
                             .group_ends = group_ends,
                             .n_groups = N_GROUPS,
                             .group_bytes = b->group_bytes,
                             .group_keys = group_keys,
                             .group_audiences = group_audiences,
                             .regions = b->regions,
                             .manifest.rank = r };
    snprintf(remote->who, sizeof(remote->who), "trainer rank %u", r);
    snprintf(remote->slot, sizeof(remote->slot), "rank-%u", r);
    snprintf(remote->endpoint, sizeof(remote->endpoint), "%s",
             weir_manifest_service_address(rank->service));
    b->participants[r].remote = remote;
    plan_rank(b, r);
    new_cast(b, r, 0);
    new_cast(b, r, 1);
}

/* On a GPU the parameters are never looked at: installs are staged. */
static void open_parameters(bench *b)
{
    weir_replica *replica = &b->replica;
    bool on_gpu = weir_work_memory(replica->work) == WEIR_MEMORY_CUDA;
    const weir_shape shape = { 2, { ROWS, COLS } };
    replica->live = b->live;
    replica->wanted = b->wanted;
    replica->staging_offset = b->staging_offset;
    replica->n_parameters = N_PARAMETERS;
    for (size_t i = 0; i < N_PARAMETERS; i++) {
        void *data = b->memory[i];
        if (on_gpu)
            must(weir_work_allocate(replica->work, TENSOR_BYTES, &data));
        b->live[i] = (weir_tensor){ "p", WEIR_U8, shape, data };
        b->wanted[i] = (weir_parameter){ .name = "p", .dtype = WEIR_U8, .shape = shape };
    }
}

static void open_replica(bench *b, weir_install_mode mode, uint32_t memory)
{
    weir_replica *replica = &b->replica;
    weir_worker *worker = &replica->worker;
    snprintf(worker->id, sizeof(worker->id), "replica-0");
    snprintf(worker->run, sizeof(worker->run), "run");
    worker->timeout_ms = 5000;
    must(weir_directory_client_open("127.0.0.1:1", 5000, &worker->client));
    must(weir_pool_open(2, &worker->pool));
    must(weir_work_open(memory, 0, worker->pool, &replica->work));
    must(weir_task_open(replica->work, &replica->derive));
    weir_arena_init(&replica->scratch, 0);
    replica->mode = mode;
    open_parameters(b);
}

/* What the ranks have of a version. */
static void fill(bench *b, unsigned seed)
{
    uint32_t x = seed * 2654435761u + 1;
    for (uint32_t r = 0; r < N_RANKS; r++) {
        for (size_t i = 0; i < sizeof(b->bytes[r]); i++) {
            x = x * 1664525u + 1013904223u;
            (&b->bytes[r][0][0])[i] = (unsigned char)(x >> 24);
        }
        for (uint32_t v = 0; v < N_VISIBLE; v++) {
            const weir_shard *shard = &b->shards[r][v];
            weir_tensor sent = { "sent", WEIR_U8, weir_box_shape(&shard->box),
                                 b->bytes[r][group_of(visible[v])] + shard->offset };
            must(weir_digest_tensor(NULL, &sent, &b->digests[r][visible[v]]));
        }
    }
}

static bench *open_bench_on(weir_install_mode mode, uint32_t memory)
{
    bench *b = calloc(1, sizeof(*b));
    assert_non_null(b);
    script_net_open(memory);
    for (uint32_t g = 0; g < N_GROUPS; g++)
        b->group_bytes[g] = g == N_GROUPS - 1 ? SECOND_AT + HALF : HALF;
    open_replica(b, mode, memory);
    for (uint32_t r = 0; r < N_RANKS; r++)
        open_rank(b, r);
    weir_schedule *schedule = &b->replica.schedule;
    schedule->participants = b->participants;
    schedule->n_participants = N_RANKS;
    schedule->planned = b->planned;
    schedule->n_copies = N_RANKS * N_PARAMETERS;
    schedule->n_bytes = N_PARAMETERS * TENSOR_BYTES;
    must(weir_landing_open(&b->replica));
    must(weir_staging_open(&b->replica));
    b->discovery.version = 7;
    snprintf(b->discovery.uid, sizeof(b->discovery.uid), "uid");
    memset(b->memory, 0xab, sizeof(b->memory));
    memcpy(b->before, b->memory, sizeof(b->before));
    fill(b, 1);
    return b;
}

static bench *open_bench(weir_install_mode mode)
{
    return open_bench_on(mode, WEIR_MEMORY_HOST);
}

static void close_bench(bench *b)
{
    weir_replica *replica = &b->replica;
    for (uint32_t r = 0; r < N_RANKS; r++) {
        weir_remote_disconnect(&b->remotes[r]);
        script_close(&b->ranks[r]);
    }
    for (uint32_t c = 0; c < script_net.n_casts; c++)
        assert_false(script_net.casts[c].is_open);
    weir_landing_close(&replica->schedule.landing);
    weir_staging_close(replica);
    weir_catch_close(replica);
    weir_buffer_free(&replica->answer);
    weir_arena_close(&replica->scratch);
    weir_task_close(replica->derive);
    for (size_t i = 0; i < N_PARAMETERS; i++)
        if (b->live[i].data != b->memory[i])
            weir_work_free(replica->work, b->live[i].data, TENSOR_BYTES);
    weir_work_close(replica->work);
    weir_pool_close(replica->worker.pool);
    weir_directory_client_close(replica->worker.client);
    free(b);
}

/* Stop 6 of one refit. A failure leaves what transfer.c leaves. */
static weir_status refit_once(bench *b, bool *out_landed)
{
    weir_replica *replica = &b->replica;
    *out_landed = false;
    weir_status status = weir_group_join(replica, &b->discovery);
    if (status == WEIR_OK) {
        weir_landing_aim(replica);
        status = weir_group_transfer(replica, &b->discovery, out_landed);
    }
    weir_error_line cause;
    weir_error_save(&cause);
    if (status != WEIR_OK) {
        weir_group_leave(replica, &b->discovery);
        for (uint32_t r = 0; r < N_RANKS; r++)
            weir_remote_disconnect(&b->remotes[r]);
    }
    weir_group_keep(replica);
    weir_error_restore(&cause);
    return status;
}

/* The version is in; staged, beside what was there. */
static void expect_installed(bench *b)
{
    if (b->replica.mode == WEIR_INSTALL_STAGED) {
        assert_memory_equal(b->memory, b->before, sizeof(b->memory));
        must(weir_exchange(&b->replica));
    }
    for (uint32_t i = 0; i < N_RANKS * N_PARAMETERS; i++) {
        const weir_plan_copy *copy = &b->planned[i];
        uint32_t group = group_of(visible[copy->shard]);
        const unsigned char *from = b->bytes[copy->source][group] + copy->source_offset;
        const unsigned char *to = b->memory[copy->parameter] + copy->parameter_offset;
        for (uint64_t at = 0; at < copy->n_bytes; at += copy->run_bytes, to += copy->pitch_bytes)
            assert_memory_equal(to, from + at, copy->run_bytes);
    }
    memcpy(b->before, b->memory, sizeof(b->before));
}

static void expect_untouched(const bench *b)
{
    assert_memory_equal(b->memory, b->before, sizeof(b->memory));
}

/* Both ranks were told why, and all groups were left. */
static void expect_left(const bench *b, const char *why)
{
    for (uint32_t r = 0; r < N_RANKS; r++) {
        if (!b->ranks[r].is_left || strstr(b->ranks[r].gave_up, why) == NULL)
            fail_msg("rank %u was told '%s', not '%s'", r, b->ranks[r].gave_up, why);
        assert_true(weir_catch_is_fresh(&b->remotes[r]));
    }
    for (uint32_t c = 0; c < script_net.n_casts; c++)
        assert_false(script_net.casts[c].is_open);
}

/* ---- what must work --------------------------------------------------------------------------*/

static void groups_of_two_ranks_are_caught_in_one_order(void **state)
{
    (void)state;
    static const script_place order[] = { { 0, 0 }, { 2, 0 },   /* embed */
                                          { 0, 1 }, { 2, 1 },   /* norm */
                                          { 0, 2 }, { 1, 0 },   /* layer 0, rank 0 */
                                          { 2, 2 }, { 3, 0 },   /* layer 0, rank 1 */
                                          { 0, 3 }, { 2, 3 } }; /* layer 1 */
    for (int mode = WEIR_INSTALL_STAGED; mode <= WEIR_INSTALL_DIRECT; mode++) {
        bool landed;
        bench *b = open_bench((weir_install_mode)mode);
        must(refit_once(b, &landed));
        assert_true(landed);
        assert_int_equal(script_net.n_queued, sizeof(order) / sizeof(*order));
        assert_memory_equal(script_net.queued, order, sizeof(order));
        expect_installed(b);
        for (uint32_t r = 0; r < N_RANKS; r++) {
            assert_true(b->participants[r].reading.done);
            assert_false(b->ranks[r].is_left);
            assert_int_equal(b->participants[r].read_bytes, N_PARAMETERS * HALF);
        }
        close_bench(b);
    }
}

static void ranks_take_turns_by_their_number_whatever_their_place(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->remotes[0].manifest.rank = 9;
    b->remotes[1].manifest.rank = 2;
    must(refit_once(b, &landed));
    assert_int_equal(script_net.queued[0].cast, b->casts[1][0]);
    assert_int_equal(script_net.queued[1].cast, b->casts[0][0]);
    expect_installed(b);
    close_bench(b);
}

static void a_rank_that_is_ahead_waits_for_its_turn(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->replica.worker.timeout_ms = 300;
    b->ranks[0].n_made = 2; /* layer 0 of rank 0 does not come */
    expect_fails(refit_once(b, &landed), WEIR_ERR_TIMED_OUT,
                 "timed out after 0.3 s: trainer rank 0 has not made group 2 of 6 of version 7");
    assert_int_equal(script_net.n_queued, 4);
    expect_untouched(b);
    expect_left(b, "has not made group 2 of 6");
    close_bench(b);
}

static void later_versions_take_nothing_and_keep_their_groups(void **state)
{
    (void)state;
    bool landed;
    uint64_t before = 0;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    uint64_t n_taken = b->replica.worker.counters.allocations;
    for (unsigned version = 1; version <= 5; version++) {
        script_net.n_queued = 0;
        for (uint32_t r = 0; r < N_RANKS; r++)
            b->ranks[r].round = version;
        fill(b, version);
        before = version == 4 ? weir_alloc_count() : before;
        must(refit_once(b, &landed));
        expect_installed(b);
        for (uint32_t c = 0; c < script_net.n_casts; c++)
            assert_int_equal(script_net.casts[c].n_opened, 1);
    }
    assert_int_equal(weir_alloc_count(), before);
    assert_int_equal(b->replica.worker.counters.connections, 4);
    assert_int_equal(b->replica.worker.counters.allocations - n_taken, WEIR_CATCH_WINDOWS);
    for (uint32_t r = 0; r < N_RANKS; r++) {
        assert_int_equal(b->ranks[r].n_fresh, 1);
        assert_int_equal(b->ranks[r].n_stale, 4);
    }
    close_bench(b);
}

static void only_groups_with_another_key_are_joined_anew(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_DIRECT);
    must(refit_once(b, &landed));
    uint32_t before = b->casts[1][0];
    new_cast(b, 1, 0); /* who is in audience 0 of rank 1 has changed */
    fill(b, 2);
    must(refit_once(b, &landed));
    expect_installed(b);
    for (uint32_t c = 0; c < script_net.n_casts; c++)
        assert_int_equal(script_net.casts[c].n_opened, 1);
    assert_false(script_net.casts[before].is_open);
    assert_int_equal(script_net.casts[before].n_closed, 1);
    assert_true(script_net.casts[b->casts[1][0]].is_open);
    assert_true(script_net.casts[b->casts[0][0]].is_open);
    close_bench(b);
}

static void a_group_that_broke_meanwhile_is_asked_for_anew(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    must(refit_once(b, &landed));
    expect_installed(b);
    script_net.casts[b->casts[0][1]].is_broken = WEIR_ERR_PEER_LOST;
    new_cast(b, 0, 0);
    new_cast(b, 0, 1);
    must(refit_once(b, &landed));
    assert_int_equal(b->ranks[0].n_fresh, 2);
    assert_int_equal(b->ranks[1].n_fresh, 1);
    close_bench(b);
}

static void windows_grow_when_groups_do(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    uint64_t n_taken = b->replica.worker.counters.allocations;
    must(refit_once(b, &landed));
    assert_int_equal(b->replica.caught.window_bytes, SECOND_AT + HALF);
    for (uint32_t g = 0; g < N_GROUPS; g++)
        b->group_bytes[g] = BUFFER_BYTES - g;
    for (uint32_t r = 0; r < N_RANKS; r++) {
        new_cast(b, r, 0);
        new_cast(b, r, 1);
    }
    must(refit_once(b, &landed));
    assert_int_equal(b->replica.caught.window_bytes, BUFFER_BYTES);
    assert_int_equal(b->replica.worker.counters.allocations - n_taken, 2 * WEIR_CATCH_WINDOWS);
    expect_installed(b);
    close_bench(b);
}

static void what_fails_behind_the_transfer_costs_no_group(void **state)
{
    (void)state;
    bool landed = false;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    must(weir_group_join(&b->replica, &b->discovery));
    weir_landing_aim(&b->replica);
    must(weir_group_transfer(&b->replica, &b->discovery, &landed));
    weir_fail(WEIR_ERR_REFUSED, "the engine does not want it");
    weir_group_leave(&b->replica, &b->discovery);
    for (uint32_t r = 0; r < N_RANKS; r++)
        assert_string_equal(b->ranks[r].gave_up, "the engine does not want it");
    must(refit_once(b, &landed));
    expect_installed(b);
    for (uint32_t c = 0; c < script_net.n_casts; c++)
        assert_int_equal(script_net.casts[c].n_opened, 1);
    close_bench(b);
}

static void what_lies_on_a_gpu_is_caught_there(void **state)
{
    (void)state;
    unsigned n_gpus;
    if (weir_cuda_devices(&n_gpus) != WEIR_OK) {
        print_message("SKIPPED: %s\n", weir_last_error());
        if (getenv("WEIR_TEST_REQUIRE_GPU") != NULL)
            fail_msg("a GPU is required");
        skip();
    }
    bool landed;
    bench *b = open_bench_on(WEIR_INSTALL_STAGED, WEIR_MEMORY_CUDA);
    for (unsigned version = 1; version <= 2; version++) {
        fill(b, version);
        must(refit_once(b, &landed));
        for (uint32_t i = 0; i < N_RANKS * N_PARAMETERS; i++) {
            const weir_plan_copy *copy = &b->planned[i];
            const unsigned char *sent = b->bytes[copy->source][group_of(visible[copy->shard])];
            assert_memory_equal(b->replica.staging + b->staging_offset[copy->parameter] +
                                    copy->packed_offset,
                                sent + copy->source_offset, copy->n_bytes);
        }
    }
    b->digests[1][5].sum ^= 1;
    expect_fails(refit_once(b, &landed), WEIR_ERR_CORRUPT, "digest of layers.1.a differs");
    close_bench(b);
}

/* A loader that converts nothing, one group per parameter. */
static void load_in_order(bench *b, weir_loader *loader, weir_loader_tensor *tensors,
                          const uint32_t *loads)
{
    weir_replica *replica = &b->replica;
    *loader = (weir_loader){ .tensors = tensors,
                             .n_wanted = N_PARAMETERS,
                             .n_groups = N_PARAMETERS,
                             .buffer_bytes = TENSOR_BYTES,
                             .is_reserved = true };
    weir_arena_init(&loader->arena, 0);
    loader->left = weir_arena_zeroed(&loader->arena, N_PARAMETERS, sizeof(*loader->left));
    loader->first_jobs =
        weir_arena_zeroed(&loader->arena, N_PARAMETERS + 1, sizeof(*loader->first_jobs));
    loader->tasks = weir_arena_zeroed(&loader->arena, N_PARAMETERS, sizeof(*loader->tasks));
    for (uint32_t i = 0; i < N_PARAMETERS; i++) {
        tensors[i] = (weir_loader_tensor){ .group = loads[i], .n_bytes = TENSOR_BYTES };
        must(weir_task_open(replica->work, &loader->tasks[i]));
    }
    for (uint32_t k = 0; k < WEIR_LOADER_BUFFERS; k++) {
        void *buffer;
        must(weir_work_allocate(replica->work, TENSOR_BYTES, &buffer));
        loader->buffers[k] = buffer;
    }
    weir_landing_close(&replica->schedule.landing);
    replica->loader = loader;
    replica->schedule.loads = true;
    replica->schedule.planned = b->planned;
    must(weir_landing_open(replica));
    for (size_t k = 0; k < replica->schedule.landing.n_parts; k++)
        weir_loader_expect(loader, replica->schedule.landing.parts[k].load, 1);
}

static void close_loader(bench *b, weir_loader *loader)
{
    for (uint32_t i = 0; i < N_PARAMETERS; i++)
        weir_task_close(loader->tasks[i]);
    for (uint32_t k = 0; k < WEIR_LOADER_BUFFERS; k++)
        weir_work_free(b->replica.work, loader->buffers[k], TENSOR_BYTES);
    weir_arena_close(&loader->arena);
    b->replica.loader = NULL;
}

static void a_loader_takes_groups_as_it_has_room(void **state)
{
    (void)state;
    static const uint32_t in_order[N_PARAMETERS] = { 0, 1, 2, 3, 4 };
    bool landed;
    weir_loader loader;
    weir_loader_tensor tensors[N_PARAMETERS];
    bench *b = open_bench(WEIR_INSTALL_DIRECT);
    load_in_order(b, &loader, tensors, in_order);
    must(refit_once(b, &landed));
    assert_true(landed);
    assert_int_equal(loader.next, N_PARAMETERS);
    expect_untouched(b); /* it has converted nothing */
    close_loader(b, &loader);
    close_bench(b);
}

static void what_a_loader_needs_behind_what_it_has_no_room_for_is_named(void **state)
{
    (void)state;
    static const uint32_t last_first[N_PARAMETERS] = { 1, 2, 3, 4, 0 };
    bool landed;
    weir_loader loader;
    weir_loader_tensor tensors[N_PARAMETERS];
    bench *b = open_bench(WEIR_INSTALL_DIRECT);
    b->planned[0] = b->planned[N_PARAMETERS - 1]; /* the last one comes from rank 0 alone */
    memcpy(b->planned + 1, b->planned + N_PARAMETERS, (N_PARAMETERS - 1) * sizeof(*b->planned));
    b->replica.schedule.n_copies = N_PARAMETERS;
    load_in_order(b, &loader, tensors, last_first);
    expect_fails(refit_once(b, &landed), WEIR_ERR_UNSUPPORTED,
                 "trainer rank 1 sends norm before tensors that this replica has to convert first");
    assert_false(landed);
    close_loader(b, &loader);
    close_bench(b);
}

/* ---- what must not ---------------------------------------------------------------------------*/

static void a_group_with_another_header_is_refused(void **state)
{
    (void)state;
    static const struct {
        weir_group_record other;
        const char *line;
    } cases[] = {
        { { .format = 0 }, "group 0 has a header of format 0, 1 is known" },
        { { .run = "other" }, "group 0 is of run other, this replica follows run" },
        { { .version = 6 }, "group 0 is of version 6, 7 was asked for" },
        { { .version_uid = "later" }, "group 0 is of version 7 as later, uid was asked for" },
        { { .group = 3 }, "group 3 of 6 came, 0 of 6 was asked for" },
        { { .n_groups = 7 }, "group 0 of 7 came, 0 of 6 was asked for" },
        { { .n_bytes = 77 }, "group 0 has 77 bytes, its manifest says 1024" },
        { { .n_digests = 2 }, "group 0 has 1 shards, and 2 digests" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        bool landed;
        bench *b = open_bench(WEIR_INSTALL_DIRECT);
        const weir_group_record *other = &cases[i].other;
        weir_group_record *header = &b->ranks[1].header;
        if (i == 0)
            header->format = 0;
        header->run = other->run != NULL ? other->run : header->run;
        header->version = other->version != 0 ? other->version : header->version;
        if (other->version_uid != NULL)
            header->version_uid = other->version_uid;
        header->n_groups = other->n_groups != 0 ? other->n_groups : header->n_groups;
        header->group = other->group;
        header->n_bytes = other->n_bytes;
        header->n_digests = other->n_digests;
        header->digests = b->digests[1];
        expect_fails(refit_once(b, &landed), WEIR_ERR_CORRUPT, cases[i].line);
        assert_non_null(strstr(weir_last_error(), "trainer rank 1: "));
        expect_left(b, cases[i].line);
        close_bench(b);
    }
}

static void a_newer_header_is_refused_by_number(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->ranks[0].header.format = WEIR_GROUP_FORMAT + 1;
    expect_fails(refit_once(b, &landed), WEIR_ERR_UNSUPPORTED,
                 "record of a group: format 2, this build reads 1");
    expect_untouched(b);
    close_bench(b);
}

static void bytes_that_differ_are_refused_by_name(void **state)
{
    (void)state;
    for (int mode = WEIR_INSTALL_STAGED; mode <= WEIR_INSTALL_DIRECT; mode++) {
        bool landed;
        bench *b = open_bench((weir_install_mode)mode);
        b->bytes[1][5][SECOND_AT + 7] ^= 1;
        expect_fails(refit_once(b, &landed), WEIR_ERR_CORRUPT,
                     "digest of layers.1.b differs: trainer rank 1 published");
        assert_true(landed); /* direct, that makes the replica unusable */
        if (mode == WEIR_INSTALL_STAGED)
            expect_untouched(b);
        expect_left(b, "digest of layers.1.b differs");
        close_bench(b);
    }
}

static void what_is_not_needed_may_differ(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->bytes[0][4][7] ^= 1;
    must(refit_once(b, &landed));
    expect_installed(b);
    close_bench(b);
}

static void a_round_that_is_off_is_left_and_the_next_begins_afresh(void **state)
{
    (void)state;
    for (int mode = WEIR_INSTALL_STAGED; mode <= WEIR_INSTALL_DIRECT; mode++) {
        bool landed;
        bench *b = open_bench((weir_install_mode)mode);
        b->ranks[1].off_at = 2;
        expect_fails(refit_once(b, &landed), WEIR_ERR_PEER_LOST,
                     "trainer rank 1 has stopped sending version 7: layers.3.weight is not finite");
        if (mode == WEIR_INSTALL_STAGED)
            expect_untouched(b);
        expect_left(b, "layers.3.weight is not finite");
        for (uint32_t r = 0; r < N_RANKS; r++) {
            b->ranks[r].off_at = UINT32_MAX;
            b->ranks[r].round = 2;
            b->ranks[r].is_left = false;
            new_cast(b, r, 0);
            new_cast(b, r, 1);
        }
        must(refit_once(b, &landed));
        expect_installed(b);
        for (uint32_t r = 0; r < N_RANKS; r++)
            assert_int_equal(b->ranks[r].n_fresh, 2);
        close_bench(b);
    }
}

static void every_wait_is_bounded_and_names_the_rank_and_the_group(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "timed out after 0.3 s: trainer rank 1 has not made group 0 of 6 of version 7: it has not "
        "begun to send it",
        "timed out after 0.3 s: trainer rank 1 has not made group 0 of 6 of version 7: its "
        "broadcast "
        "group is not joined by all",
        "timed out after 0.3 s: the broadcast of group 1 of 6 of version 7 by trainer rank 1 does "
        "not end",
        "timed out after 0.3 s: trainer rank 1 has not made group 5 of 6 of version 7",
        "timed out after 0.3 s: trainer rank 1 has not made group 6 of 6 of version 7",
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++) {
        bool landed;
        bench *b = open_bench(WEIR_INSTALL_STAGED);
        script_cast *cast = &script_net.casts[b->casts[1][0]];
        b->replica.worker.timeout_ms = 300;
        b->ranks[1].has_not_begun = i == 0;
        cast->holds_join = i == 1;
        cast->n_ends = i == 2 ? 1 : UINT32_MAX;
        b->ranks[1].n_made = i == 3 ? 5 : i == 4 ? 6 : UINT32_MAX;
        double begun_s = weir_now_s();
        expect_fails(refit_once(b, &landed), WEIR_ERR_TIMED_OUT, lines[i]);
        assert_true(weir_now_s() - begun_s < 2);
        expect_untouched(b);
        if (i > 0)
            expect_left(b, "timed out");
        close_bench(b);
    }
}

static void a_group_that_breaks_ends_the_refit(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    script_net.casts[b->casts[1][1]].is_broken = WEIR_ERR_PEER_LOST;
    expect_fails(refit_once(b, &landed), WEIR_ERR_PEER_LOST, "the group is broken");
    expect_untouched(b);
    expect_left(b, "the group is broken");
    close_bench(b);
}

static void who_broke_a_group_says_why(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->ranks[0].off_at = 0;
    script_net.casts[b->casts[0][0]].is_broken = WEIR_ERR_PEER_LOST;
    expect_fails(refit_once(b, &landed), WEIR_ERR_PEER_LOST,
                 "trainer rank 0 has stopped sending version 7: layers.3.weight is not finite");
    close_bench(b);
}

static void cancel_at_once(void *context, weir_stop stop, uint64_t version, uint64_t done_bytes,
                           uint64_t total_bytes)
{
    (void)stop, (void)version, (void)done_bytes, (void)total_bytes;
    weir_worker_cancel(context);
}

static void running_out_of_memory_is_reported_and_can_be_repeated(void **state)
{
    (void)state;
    uint64_t n = 1;
    for (bool is_over = false; !is_over; n++) {
        bool landed;
        bench *b = open_bench(WEIR_INSTALL_STAGED);
        weir_alloc_fail_at(n);
        weir_status status = weir_catch_open(&b->replica);
        weir_alloc_fail_at(0);
        is_over = status == WEIR_OK;
        if (!is_over)
            expect_fails(status, WEIR_ERR_NO_MEMORY, "memory");
        must(refit_once(b, &landed));
        expect_installed(b);
        close_bench(b);
    }
    assert_true(n > 1 + WEIR_CATCH_WINDOWS);
}

static void a_refit_that_is_cancelled_half_way_leaves_its_groups(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->replica.worker.progress = cancel_at_once;
    b->replica.worker.progress_context = &b->replica.worker;
    expect_fails(refit_once(b, &landed), WEIR_ERR_CANCELLED, "cancelled while worker replica-0");
    assert_true(landed);
    expect_untouched(b);
    expect_left(b, "cancelled while worker replica-0");
    close_bench(b);
}

static void who_is_not_sent_what_it_needs_says_so(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->ranks[1].places[0].audience = 7;
    expect_fails(
        refit_once(b, &landed), WEIR_ERR_LAYOUT,
        "trainer rank 1 does not send embed to replica replica-0 (worker 0 of its engine), "
        "which needs it: its group 0 goes to broadcast group 0");
    assert_int_equal(script_net.n_queued, 0);
    expect_left(b, "does not send embed");
    b->ranks[1].places[0].audience = 2;
    expect_fails(refit_once(b, &landed), WEIR_ERR_CORRUPT,
                 "trainer rank 1 names broadcast group 2 twice");
    close_bench(b);
}

static void who_comes_too_late_is_told(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->ranks[0].state = WEIR_GROUP_GONE;
    expect_fails(refit_once(b, &landed), WEIR_ERR_NOT_FOUND,
                 "replica replica-0 came too late for version 7: its group 0 is gone at trainer "
                 "rank 0");
    b->ranks[0].state = 9;
    expect_fails(refit_once(b, &landed), WEIR_ERR_CORRUPT,
                 "trainer rank 0: group 0 is in state 9, which is unknown");
    close_bench(b);
}

static void a_transport_that_does_not_reach_the_parameters_is_named(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    script_ops.memory = WEIR_MEMORY_CUDA;
    expect_fails(refit_once(b, &landed), WEIR_ERR_UNSUPPORTED,
                 "trainer rank 0 broadcasts over script, which does not reach host memory, where "
                 "replica replica-0 has its parameters");
    close_bench(b);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_of_two_ranks_are_caught_in_one_order),
        cmocka_unit_test(ranks_take_turns_by_their_number_whatever_their_place),
        cmocka_unit_test(a_rank_that_is_ahead_waits_for_its_turn),
        cmocka_unit_test(later_versions_take_nothing_and_keep_their_groups),
        cmocka_unit_test(only_groups_with_another_key_are_joined_anew),
        cmocka_unit_test(a_group_that_broke_meanwhile_is_asked_for_anew),
        cmocka_unit_test(windows_grow_when_groups_do),
        cmocka_unit_test(what_fails_behind_the_transfer_costs_no_group),
        cmocka_unit_test(what_lies_on_a_gpu_is_caught_there),
        cmocka_unit_test(a_loader_takes_groups_as_it_has_room),
        cmocka_unit_test(what_a_loader_needs_behind_what_it_has_no_room_for_is_named),
        cmocka_unit_test(a_group_with_another_header_is_refused),
        cmocka_unit_test(a_newer_header_is_refused_by_number),
        cmocka_unit_test(bytes_that_differ_are_refused_by_name),
        cmocka_unit_test(what_is_not_needed_may_differ),
        cmocka_unit_test(a_round_that_is_off_is_left_and_the_next_begins_afresh),
        cmocka_unit_test(every_wait_is_bounded_and_names_the_rank_and_the_group),
        cmocka_unit_test(a_group_that_breaks_ends_the_refit),
        cmocka_unit_test(who_broke_a_group_says_why),
        cmocka_unit_test(running_out_of_memory_is_reported_and_can_be_repeated),
        cmocka_unit_test(a_refit_that_is_cancelled_half_way_leaves_its_groups),
        cmocka_unit_test(who_is_not_sent_what_it_needs_says_so),
        cmocka_unit_test(who_comes_too_late_is_told),
        cmocka_unit_test(a_transport_that_does_not_reach_the_parameters_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
