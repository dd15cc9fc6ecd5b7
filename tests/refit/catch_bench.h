/* SPDX-License-Identifier: Apache-2.0 */
/* catch_bench.h - a replica, and two ranks that broadcast a version to it: the ranks are scripts
 * (cast_script.h), the plan is made by hand. */
#ifndef WEIR_TESTS_CATCH_BENCH_H
#define WEIR_TESTS_CATCH_BENCH_H

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
    weir_remote *known[N_RANKS]; /* the replica's remotes */
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

static inline void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

static inline void expect_fails(weir_status found, weir_status status, const char *line)
{
    if (found != status || strstr(weir_last_error(), line) == NULL)
        fail_msg("got %s: '%s', wanted %s: '%s'", weir_status_name(found), weir_last_error(),
                 weir_status_name(status), line);
}

/* ---- the bench -------------------------------------------------------------------------------*/

static inline uint32_t group_of(uint32_t number)
{
    uint32_t group = 0;
    while (group_ends[group] <= number)
        group++;
    return group;
}

/* What rank r has of the parameter is a box of rows, or of columns. */
static inline weir_box box_of(uint32_t r, uint32_t parameter)
{
    if (parameter == 2)
        return (weir_box){ 2, { 0, r * COLS / 2 }, { ROWS, (r + 1) * COLS / 2 } };
    return (weir_box){ 2, { r * ROWS / 2, 0 }, { (r + 1) * ROWS / 2, COLS } };
}

static inline void plan_rank(bench *b, uint32_t r)
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
static inline void new_cast(bench *b, uint32_t r, size_t place)
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

static inline void open_rank(bench *b, uint32_t r)
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
    b->participants[r].remote = b->known[r] = remote;
    plan_rank(b, r);
    new_cast(b, r, 0);
    new_cast(b, r, 1);
}

/* On a GPU the parameters are never looked at: installs are staged. */
static inline void open_parameters(bench *b)
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

static inline void open_replica(bench *b, weir_install_mode mode, uint32_t memory)
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
static inline void fill(bench *b, unsigned seed)
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

static inline bench *open_bench_on(weir_install_mode mode, uint32_t memory)
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
    b->replica.remotes = b->known;
    b->replica.n_remotes = N_RANKS;
    must(weir_landing_open(&b->replica));
    must(weir_staging_open(&b->replica));
    b->discovery.version = 7;
    snprintf(b->discovery.uid, sizeof(b->discovery.uid), "uid");
    memset(b->memory, 0xab, sizeof(b->memory));
    memcpy(b->before, b->memory, sizeof(b->before));
    fill(b, 1);
    return b;
}

static inline bench *open_bench(weir_install_mode mode)
{
    return open_bench_on(mode, WEIR_MEMORY_HOST);
}

static inline void close_bench(bench *b)
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
static inline weir_status refit_once(bench *b, bool *out_landed)
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
    if (status != WEIR_OK)
        weir_group_leave(replica, &b->discovery);
    weir_group_keep(replica);
    weir_error_restore(&cause);
    return status;
}

/* The version is in; staged, beside what was there. */
static inline void expect_installed(bench *b)
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

static inline void expect_untouched(const bench *b)
{
    assert_memory_equal(b->memory, b->before, sizeof(b->memory));
}

/* The groups of a rank of which all has been taken stand: it leaves them itself, or needs them. */
static inline void expect_groups_left(const bench *b)
{
    for (uint32_t r = 0; r < N_RANKS; r++) {
        bool is_done = b->participants[r].reading.done;
        assert_int_equal(weir_catch_is_fresh(&b->remotes[r]), !is_done);
        for (uint32_t place = 0; place < 2; place++)
            assert_int_equal(script_net.casts[b->casts[r][place]].is_open, is_done);
    }
}

/* Both ranks were told why, too. */
static inline void expect_left(const bench *b, const char *why)
{
    for (uint32_t r = 0; r < N_RANKS; r++) {
        if (!b->ranks[r].is_left || strstr(b->ranks[r].gave_up, why) == NULL)
            fail_msg("rank %u was told '%s', not '%s'", r, b->ranks[r].gave_up, why);
    }
    expect_groups_left(b);
}

#endif
