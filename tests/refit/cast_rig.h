/* SPDX-License-Identifier: Apache-2.0 */
/* cast_rig.h - a trainer rank that broadcasts the groups of its window, over a stand-in or another
 * transport, and readers of an engine of two workers that the tests are.
 */
#ifndef WEIR_TESTS_CAST_RIG_H
#define WEIR_TESTS_CAST_RIG_H

#include "refit/refit_rig.h"

#include <inttypes.h>
#include <stdatomic.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "directory/client.h"
#include "refit/cast_stand_in.h"
#include "refit/matched.h"
#include "refit/window.h"

#define WINDOW_BYTES ((uint64_t)192 << 10)
#define SHORT_MS 300
#define LONG_MS 20000

/* ---- a trainer rank and its round -------------------------------------------------------------*/

typedef struct stage {
    rig r;
    weir_trainer *trainer;
    stand_in *all; /* NULL: another transport */
    weir_pool *pool;
    weir_work *work; /* of readers, as the next */
    weir_link link;
    pthread_t thread;
    uint64_t version;
    unsigned n_replicas, timeout_ms;
    weir_status status;
    char line[WEIR_ERROR_TEXT];
    double took_s;
    atomic_bool is_over;
} stage;

static inline weir_status open_trainer(const rig *r, const char *transport, weir_delivery delivery,
                                       weir_trainer **out)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    options.directory = weir_directory_address(r->directory);
    options.model = "model";
    options.run = "run-1";
    options.family = r->family;
    options.conversion = r->conversion;
    options.config = r->config_path;
    options.n_threads = 1;
    options.timeout_ms = LONG_MS;
    options.mesh = "";
    options.replica_mesh = "tp=2";
    options.delivery = delivery;
    options.window_bytes = WINDOW_BYTES;
    options.transport = transport;
    options.transport_directory = r->share;
    return weir_trainer_open(&options, out);
}

/* Over transport ucx. */
static inline stage *open_stage_by_ucx(void)
{
    stage *s = calloc(1, sizeof(*s));
    assert_non_null(s);
    rig *r = &s->r;
    *r = (rig){ .family = "llama", .conversion = "fp8_128x128", .preset = "tiny" };
    rig_write_config(r);
    rig_model_open(r);
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    assert_ok(weir_directory_open(&options, &r->directory));
    assert_ok(open_trainer(r, NULL, WEIR_DELIVERY_PUSH, &s->trainer));
    rig_fill(&r->model, 1);
    assert_ok(weir_trainer_register(s->trainer, r->model.tensors, r->model.n));
    assert_non_null(s->trainer->window);
    assert_ok(weir_pool_open(1, &s->pool));
    assert_ok(weir_work_open(WEIR_MEMORY_HOST, 0, s->pool, &s->work));
    return s;
}

/* From now on it broadcasts over `link`, and so do its readers. */
static inline void cast_over(stage *s, weir_link link)
{
    weir_window *window = s->trainer->window;
    s->link = link;
    weir_cast_close(window->cast);
    assert_ok(
        weir_cast_open(s->trainer, &link, &window->groups, &window->audiences, &window->cast));
}

static inline stage *open_stage(void)
{
    stage *s = open_stage_by_ucx();
    s->all = stand_in_make();
    cast_over(s, (weir_link){ &stand_in_ops, &s->all->base });
    return s;
}

static inline void close_stage(stage *s)
{
    char command[128];
    weir_trainer_close(s->trainer);
    if (s->all != NULL)
        stand_in_drop(s->all);
    weir_work_close(s->work);
    weir_pool_close(s->pool);
    weir_directory_close(s->r.directory);
    for (size_t t = 0; t < s->r.model.n; t++)
        free(s->r.model.tensors[t].data);
    weir_family_sources_free(s->r.model.tensors);
    weir_config_close(s->r.config);
    unlink(s->r.config_path);
    snprintf(command, sizeof(command), "rm -rf %s", s->r.share);
    assert_int_equal(system(command), 0);
    free(s);
}

static inline uint32_t n_groups_of(const stage *s)
{
    return s->trainer->window->groups.n_groups;
}

static inline void publish(stage *s, unsigned version)
{
    rig_fill(&s->r.model, version);
    assert_ok(weir_trainer_register(s->trainer, s->r.model.tensors, s->r.model.n));
    assert_ok(weir_trainer_publish(s->trainer, version, NULL));
    s->version = version;
}

static inline void *run_round(void *context)
{
    stage *s = context;
    double begun_s = weir_now_s();
    s->status = weir_window_serve(s->trainer, s->version, s->n_replicas, s->timeout_ms);
    snprintf(s->line, sizeof(s->line), "%s", s->status != WEIR_OK ? weir_last_error() : "");
    s->took_s = weir_now_s() - begun_s;
    s->is_over = true;
    return NULL;
}

static inline void start_round(stage *s, unsigned n_replicas, unsigned timeout_ms)
{
    s->n_replicas = n_replicas;
    s->timeout_ms = timeout_ms;
    s->is_over = false;
    assert_int_equal(pthread_create(&s->thread, NULL, run_round, s), 0);
}

static inline void end_round(stage *s, weir_status status, const char *line)
{
    assert_int_equal(pthread_join(s->thread, NULL), 0);
    if (s->status != status || strstr(s->line, line) == NULL)
        fail_msg("got %s: '%s', wanted %s: '%s'", weir_status_name(s->status), s->line,
                 weir_status_name(status), line);
}

/* Until something is true, for a few seconds. */
#define await_that(condition)                      \
    do {                                           \
        for (int turn = 0; !(condition); turn++) { \
            if (turn == 5000)                      \
                fail_msg("never: %s", #condition); \
            weir_sleep_ms(1);                      \
        }                                          \
    } while (0)

/* ---- readers ---------------------------------------------------------------------------------*/

typedef struct reader {
    stage *s;
    const char *name;
    uint32_t worker, round;
    weir_directory_client *client;
    weir_matched *seats[WEIR_MAX_AUDIENCES];
    weir_arena arena; /* of the last answer */
    unsigned char *answer;
    size_t answer_bytes;
    unsigned char *caught;
    pthread_t thread;
} reader;

static inline reader *open_reader(stage *s, const char *name, uint32_t worker)
{
    reader *r = calloc(1, sizeof(*r));
    assert_non_null(r);
    *r = (reader){ .s = s, .name = name, .worker = worker };
    weir_arena_init(&r->arena, 0);
    r->caught = malloc(s->trainer->source.slot_bytes);
    assert_ok(weir_directory_client_open(weir_trainer_directory(s->trainer), LONG_MS, &r->client));
    return r;
}

static inline void leave_seats(reader *r)
{
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++) {
        weir_matched_close(r->seats[a], true);
        r->seats[a] = NULL;
    }
    r->round = 0;
}

static inline void close_reader(reader *r)
{
    leave_seats(r);
    weir_directory_client_close(r->client);
    weir_arena_close(&r->arena);
    weir_free(r->answer);
    free(r->caught);
    free(r);
}

/* Until it stands in all its groups. */
static inline bool is_fresh(const reader *r)
{
    bool any = false;
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++) {
        if (r->seats[a] != NULL && weir_matched_joined(r->seats[a]) == WEIR_IN_PROGRESS)
            return true;
        any |= r->seats[a] != NULL;
    }
    return !any;
}

static inline weir_status put(reader *r, uint32_t group, const char *gave_up,
                              weir_group_record *out)
{
    weir_trainer *trainer = r->s->trainer;
    char uid[WEIR_ID_BYTES];
    size_t n_bytes;
    weir_group_ask question = { .reader = r->name,
                                .worker = r->worker,
                                .group = group,
                                .round = r->round,
                                .gave_up = gave_up,
                                .fresh = is_fresh(r) };
    pthread_mutex_lock(&trainer->lock);
    memcpy(uid, trainer->window->uid, sizeof(uid));
    pthread_mutex_unlock(&trainer->lock);
    weir_status status = weir_directory_ask_group(
        r->client, weir_manifest_service_address(trainer->service), "rank 0", uid, "rank-0",
        &question, 0, &r->answer, &r->answer_bytes, &n_bytes);
    weir_arena_reset(&r->arena);
    return status == WEIR_OK ? weir_group_record_decode(r->answer, n_bytes, &r->arena, out)
                             : status;
}

static inline weir_group_record ask(reader *r, uint32_t group)
{
    weir_group_record record;
    assert_ok(put(r, group, NULL, &record));
    assert_int_equal(record.format, WEIR_GROUP_FORMAT);
    assert_string_equal(record.run, "run-1");
    assert_int_equal(record.version, r->s->version);
    assert_string_equal(record.version_uid, r->s->trainer->window->uid);
    assert_int_equal(record.group, group);
    assert_int_equal(record.n_groups, n_groups_of(r->s));
    if (record.round != 0 && record.state != WEIR_GROUP_OFF && record.state != WEIR_GROUP_GONE)
        r->round = record.round;
    return record;
}

/* Begins to stand in the groups that are named, and leaves the others. */
static inline void take_seats(reader *r, const weir_group_record *record)
{
    bool named[WEIR_MAX_AUDIENCES] = { false };
    for (size_t i = 0; i < record->n_memberships; i++) {
        const weir_membership *at = &record->memberships[i];
        weir_matched **seat = &r->seats[at->audience];
        named[at->audience] = true;
        if (*seat != NULL && memcmp(weir_matched_key(*seat), at->key, WEIR_GROUP_KEY_BYTES) == 0)
            continue;
        weir_matched_close(*seat, true);
        weir_matched_options options = { .link = r->s->link,
                                         .work = r->s->work,
                                         .key = at->key,
                                         .rank = at->position,
                                         .n_ranks = at->n_members,
                                         .who = r->name };
        assert_ok(weir_matched_open(&options, seat));
    }
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++) {
        if (named[a])
            continue;
        weir_matched_close(r->seats[a], true);
        r->seats[a] = NULL;
    }
}

/* Waits for the round, and says where it stands in it; takes no seat yet. */
static inline weir_group_record come(reader *r)
{
    weir_group_record record = { 0 };
    await_that((record = ask(r, 0)).n_memberships > 0);
    assert_int_equal(record.state, WEIR_GROUP_WAIT);
    assert_true(record.round > 0);
    return record;
}

static inline void join_round(reader *r)
{
    weir_group_record record = come(r);
    take_seats(r, &record);
}

/* The group as its answer says that it is. */
static inline void check_group(const reader *r, uint32_t group, const weir_group_record *record)
{
    const weir_groups *groups = &r->s->trainer->window->groups;
    const weir_source *source = &r->s->trainer->source;
    uint32_t first = weir_groups_first_shard(groups, group);
    assert_int_equal(record->n_bytes, groups->n_bytes[group]);
    assert_int_equal(record->n_digests, groups->shard_ends[group] - first);
    for (uint32_t i = 0; i < record->n_digests; i++) {
        const weir_shard *shard = &source->shards[first + i];
        weir_tensor part = { shard->name, shard->dtype, weir_box_shape(&shard->box),
                             r->caught + shard->offset };
        weir_digest digest;
        if (shard->n_bytes == 0)
            continue;
        assert_ok(weir_digest_tensor(NULL, &part, &digest));
        if (!weir_digest_equal(&digest, &record->digests[i]))
            fail_msg("%s: %s has other bytes in group %u", r->name, shard->name, group);
    }
}

/* Asks for a group until it is there, and catches it. */
static inline void catch_group(reader *r, uint32_t group)
{
    uint32_t audience = r->s->trainer->window->groups.audiences[group];
    weir_group_record record = { 0 };
    uint64_t ticket;
    await_that((record = ask(r, group)).state == WEIR_GROUP_READY);
    await_that(weir_matched_joined(r->seats[audience]) == WEIR_OK);
    assert_ok(weir_matched_queue(r->seats[audience], r->caught, record.n_bytes, &ticket));
    await_that(weir_matched_ended(r->seats[audience], ticket) == WEIR_OK);
    check_group(r, group, &record);
}

/* The first group from `group` on that the reader is sent. */
static inline uint32_t next_group(const reader *r, uint32_t group)
{
    while (group < n_groups_of(r->s) &&
           r->seats[r->s->trainer->window->groups.audiences[group]] == NULL)
        group++;
    return group;
}

static inline void catch_until(reader *r, uint32_t end)
{
    for (uint32_t g = next_group(r, 0); g < end; g = next_group(r, g + 1))
        catch_group(r, g);
}

static inline void *run_reader(void *context)
{
    reader *r = context;
    r->round = 0;
    join_round(r);
    catch_until(r, n_groups_of(r->s));
    assert_int_equal(ask(r, n_groups_of(r->s)).state, WEIR_GROUP_READY);
    return NULL;
}

static inline void start_reader(reader *r)
{
    assert_int_equal(pthread_create(&r->thread, NULL, run_reader, r), 0);
}

static inline void join_reader(reader *r)
{
    assert_int_equal(pthread_join(r->thread, NULL), 0);
}

static inline void refit(stage *s, reader *const *readers, size_t n, unsigned n_replicas)
{
    for (size_t i = 0; i < n; i++)
        start_reader(readers[i]);
    start_round(s, n_replicas, LONG_MS);
    for (size_t i = 0; i < n; i++)
        join_reader(readers[i]);
    end_round(s, WEIR_OK, "");
}

static inline void hold(stage *s, bool held)
{
    pthread_mutex_lock(&s->all->lock);
    s->all->held = held;
    pthread_mutex_unlock(&s->all->lock);
}

static inline void hold_leaving(stage *s, bool held)
{
    pthread_mutex_lock(&s->all->lock);
    s->all->holds_leave = held;
    pthread_mutex_unlock(&s->all->lock);
}

#endif
