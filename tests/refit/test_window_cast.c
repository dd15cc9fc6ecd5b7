/* SPDX-License-Identifier: Apache-2.0 */
/* test_window_cast.c - rounds of a trainer rank whose groups are broadcast, to readers that the
 * tests are, over a stand-in. Whole refits are in test_cast_refit.c. */
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

/* ---- a rig -----------------------------------------------------------------------------------*/

typedef struct stage {
    rig r;
    weir_trainer *trainer;
    stand_in *all;
    weir_pool *pool;
    weir_work *work; /* of readers */
    pthread_t thread;
    uint64_t version;
    unsigned n_replicas, timeout_ms;
    weir_status status;
    char line[WEIR_ERROR_TEXT];
    double took_s;
    atomic_bool is_over;
} stage;

static weir_status open_trainer(const rig *r, const char *transport, weir_delivery delivery,
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

static stage *open_stage(void)
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
    weir_window *window = s->trainer->window;
    assert_non_null(window);
    s->all = stand_in_make();
    weir_link link = { &stand_in_ops, &s->all->base };
    weir_cast_close(window->cast);
    assert_ok(
        weir_cast_open(s->trainer, &link, &window->groups, &window->audiences, &window->cast));
    assert_ok(weir_pool_open(1, &s->pool));
    assert_ok(weir_work_open(WEIR_MEMORY_HOST, 0, s->pool, &s->work));
    return s;
}

static void close_stage(stage *s)
{
    char command[128];
    weir_trainer_close(s->trainer);
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

static uint32_t n_groups_of(const stage *s)
{
    return s->trainer->window->groups.n_groups;
}

static void publish(stage *s, unsigned version)
{
    rig_fill(&s->r.model, version);
    assert_ok(weir_trainer_register(s->trainer, s->r.model.tensors, s->r.model.n));
    assert_ok(weir_trainer_publish(s->trainer, version, NULL));
    s->version = version;
}

static void *run_round(void *context)
{
    stage *s = context;
    double begun_s = weir_now_s();
    s->status = weir_window_serve(s->trainer, s->version, s->n_replicas, s->timeout_ms);
    snprintf(s->line, sizeof(s->line), "%s", s->status != WEIR_OK ? weir_last_error() : "");
    s->took_s = weir_now_s() - begun_s;
    s->is_over = true;
    return NULL;
}

static void start_round(stage *s, unsigned n_replicas, unsigned timeout_ms)
{
    s->n_replicas = n_replicas;
    s->timeout_ms = timeout_ms;
    s->is_over = false;
    assert_int_equal(pthread_create(&s->thread, NULL, run_round, s), 0);
}

static void end_round(stage *s, weir_status status, const char *line)
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

static reader *open_reader(stage *s, const char *name, uint32_t worker)
{
    reader *r = calloc(1, sizeof(*r));
    assert_non_null(r);
    *r = (reader){ .s = s, .name = name, .worker = worker };
    weir_arena_init(&r->arena, 0);
    r->caught = malloc(s->trainer->source.slot_bytes);
    assert_ok(weir_directory_client_open(weir_trainer_directory(s->trainer), LONG_MS, &r->client));
    return r;
}

static void leave_seats(reader *r)
{
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++) {
        weir_matched_close(r->seats[a], true);
        r->seats[a] = NULL;
    }
    r->round = 0;
}

static void close_reader(reader *r)
{
    leave_seats(r);
    weir_directory_client_close(r->client);
    weir_arena_close(&r->arena);
    weir_free(r->answer);
    free(r->caught);
    free(r);
}

static bool is_fresh(const reader *r)
{
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++) {
        if (r->seats[a] != NULL)
            return false;
    }
    return true;
}

static weir_status put(reader *r, uint32_t group, const char *gave_up, weir_group_record *out)
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

static weir_group_record ask(reader *r, uint32_t group)
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
static void take_seats(reader *r, const weir_group_record *record)
{
    bool named[WEIR_MAX_AUDIENCES] = { false };
    for (size_t i = 0; i < record->n_memberships; i++) {
        const weir_membership *at = &record->memberships[i];
        weir_matched **seat = &r->seats[at->audience];
        named[at->audience] = true;
        if (*seat != NULL && memcmp(weir_matched_key(*seat), at->key, WEIR_GROUP_KEY_BYTES) == 0)
            continue;
        weir_matched_close(*seat, true);
        weir_matched_options options = { .link = { &stand_in_ops, &r->s->all->base },
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
static weir_group_record come(reader *r)
{
    weir_group_record record = { 0 };
    await_that((record = ask(r, 0)).n_memberships > 0);
    assert_int_equal(record.state, WEIR_GROUP_WAIT);
    assert_true(record.round > 0);
    return record;
}

static void join_round(reader *r)
{
    weir_group_record record = come(r);
    take_seats(r, &record);
}

/* The group as its answer says that it is. */
static void check_group(const reader *r, uint32_t group, const weir_group_record *record)
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
static void catch_group(reader *r, uint32_t group)
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
static uint32_t next_group(const reader *r, uint32_t group)
{
    while (group < n_groups_of(r->s) &&
           r->seats[r->s->trainer->window->groups.audiences[group]] == NULL)
        group++;
    return group;
}

static void catch_until(reader *r, uint32_t end)
{
    for (uint32_t g = next_group(r, 0); g < end; g = next_group(r, g + 1))
        catch_group(r, g);
}

static void *run_reader(void *context)
{
    reader *r = context;
    r->round = 0;
    join_round(r);
    catch_until(r, n_groups_of(r->s));
    assert_int_equal(ask(r, n_groups_of(r->s)).state, WEIR_GROUP_READY);
    return NULL;
}

static void start_reader(reader *r)
{
    assert_int_equal(pthread_create(&r->thread, NULL, run_reader, r), 0);
}

static void join_reader(reader *r)
{
    assert_int_equal(pthread_join(r->thread, NULL), 0);
}

static void refit(stage *s, reader *const *readers, size_t n, unsigned n_replicas)
{
    for (size_t i = 0; i < n; i++)
        start_reader(readers[i]);
    start_round(s, n_replicas, LONG_MS);
    for (size_t i = 0; i < n; i++)
        join_reader(readers[i]);
    end_round(s, WEIR_OK, "");
}

static void hold(stage *s, bool held)
{
    pthread_mutex_lock(&s->all->lock);
    s->all->held = held;
    pthread_mutex_unlock(&s->all->lock);
}

/* ---- rounds ----------------------------------------------------------------------------------*/

static void every_worker_is_sent_its_part_and_nothing_is_made_twice(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[4] = { open_reader(s, "b-1", 1), open_reader(s, "a-0", 0),
                           open_reader(s, "a-1", 1), open_reader(s, "b-0", 0) };
    publish(s, 1);
    refit(s, readers, 4, 2);
    const weir_groups *groups = &s->trainer->window->groups;
    size_t n_audiences = 0;
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++)
        n_audiences += readers[0]->seats[a] != NULL || readers[1]->seats[a] != NULL;
    assert_int_equal(n_audiences, 3); /* of worker 0, of worker 1, of both */
    for (uint32_t g = 1; g < groups->n_groups; g++)
        assert_true(groups->keys[g] >= groups->keys[g - 1]);
    uint64_t n_keys = s->all->n_keys;
    weir_counters before = s->trainer->worker.counters;
    assert_int_equal(before.connections, 3);
    assert_int_equal(before.registrations, 0); /* plain memory */
    for (unsigned version = 2; version <= 3; version++) {
        publish(s, version);
        refit(s, readers, 4, 2);
    }
    const weir_counters *after = &s->trainer->worker.counters;
    assert_int_equal(s->all->n_keys, n_keys);
    assert_int_equal(after->connections, before.connections);
    assert_int_equal(after->allocations, before.allocations);
    assert_int_equal(after->plans, before.plans);
    for (size_t i = 0; i < 4; i++)
        close_reader(readers[i]);
    close_stage(s);
}

static void a_group_is_converted_while_the_one_before_is_on_the_wire(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    s->all->held = true;
    start_reader(a);
    start_reader(b);
    start_round(s, 1, LONG_MS);
    await_that(stand_in_count(s->all, &s->all->n_broadcast) == 2);
    assert_int_equal(stand_in_count(s->all, &s->all->n_ended), 0); /* both buffers are on it */
    pthread_mutex_lock(&s->trainer->lock);
    assert_int_equal(s->trainer->window->credits.made, 2);
    pthread_mutex_unlock(&s->trainer->lock);
    hold(s, false);
    join_reader(a);
    join_reader(b);
    end_round(s, WEIR_OK, "");
    assert_int_equal(s->all->n_broadcast, n_groups_of(s));
    assert_int_equal(s->all->n_ended, n_groups_of(s));
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void who_comes_late_is_told_and_is_in_the_next_round(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[3] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1),
                           open_reader(s, "late-0", 0) };
    publish(s, 1);
    assert_int_equal(ask(readers[0], 0).state, WEIR_GROUP_WAIT);
    assert_int_equal(ask(readers[0], 0).round, 0); /* nobody has begun */
    hold(s, true);
    start_reader(readers[0]);
    start_reader(readers[1]);
    start_round(s, 1, LONG_MS);
    await_that(stand_in_count(s->all, &s->all->n_broadcast) == 2);
    assert_int_equal(ask(readers[2], 0).state, WEIR_GROUP_WAIT);
    assert_int_equal(ask(readers[2], 0).round, 0); /* it is not in this one */
    hold(s, false);
    join_reader(readers[0]);
    join_reader(readers[1]);
    end_round(s, WEIR_OK, "");
    assert_int_equal(ask(readers[2], 0).state, WEIR_GROUP_WAIT); /* until all say they hold it */
    publish(s, 2);
    readers[2]->round = readers[0]->round = readers[1]->round = 0;
    for (size_t i = 0; i < 3; i++)
        ask(readers[i], 0);
    refit(s, readers, 3, 1); /* one more than is waited for, but it is there */
    for (size_t i = 0; i < 3; i++)
        close_reader(readers[i]);
    close_stage(s);
}

static void a_fresh_reader_joins_anew_and_the_others_stay(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    uint64_t keys[3], found[3] = { 0 };
    publish(s, 1);
    refit(s, readers, 2, 1);
    for (size_t a = 0; a < 3; a++) {
        const reader *r = readers[0]->seats[a] != NULL ? readers[0] : readers[1];
        memcpy(&keys[a], weir_matched_key(r->seats[a]), sizeof(keys[a]));
    }
    leave_seats(readers[1]);
    publish(s, 2);
    refit(s, readers, 2, 1);
    for (size_t a = 0; a < 3; a++) {
        const reader *r = readers[0]->seats[a] != NULL ? readers[0] : readers[1];
        memcpy(&found[a], weir_matched_key(r->seats[a]), sizeof(found[a]));
        assert_int_equal(found[a] == keys[a], readers[1]->seats[a] == NULL);
    }
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

/* ---- what fails ------------------------------------------------------------------------------*/

static void who_has_not_come_is_counted(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0);
    publish(s, 1);
    assert_int_equal(ask(a, 0).state, WEIR_GROUP_WAIT);
    start_round(s, 2, SHORT_MS);
    await_that(ask(a, 0).state == WEIR_GROUP_WAIT); /* it goes on asking */
    end_round(s, WEIR_ERR_TIMED_OUT,
              "trainer rank 0: timed out after 0.3 s: 1 of 2 replicas have a worker 0 that has "
              "come for version 1 of model");
    assert_int_equal(ask(a, 0).state, WEIR_GROUP_WAIT); /* the next call may find all */
    close_reader(a);
    close_stage(s);
}

/* Until the round is over; no longer than a few seconds. */
static void come_and_go(reader *r, uint32_t group)
{
    weir_group_record record;
    for (int turn = 0; turn < 80 && !r->s->is_over; turn++) {
        assert_ok(put(r, group, turn % 2 == 0 ? NULL : "it has changed its mind", &record));
        weir_sleep_ms(50);
    }
}

static void who_comes_and_goes_keeps_no_trainer_that_gathers(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0);
    publish(s, 1);
    start_round(s, 1, SHORT_MS);
    come_and_go(a, 0);
    end_round(s, WEIR_ERR_TIMED_OUT, "0 of 1 replicas have a worker ");
    assert_true(s->took_s < 1);
    close_reader(a);
    close_stage(s);
}

static void who_comes_and_goes_renews_no_bound_of_others(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    reader *other = open_reader(s, "other-0", 0);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, SHORT_MS);
    join_round(a);
    ask(a, 0);
    come(b); /* and stays outside */
    come_and_go(other, 1);
    end_round(s, WEIR_ERR_TIMED_OUT, "a-1 (worker 1 of its engine) has not joined");
    assert_true(s->took_s < 1);
    close_reader(a);
    close_reader(b);
    close_reader(other);
    close_stage(s);
}

static void who_does_not_join_is_named(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, SHORT_MS);
    join_round(a);
    ask(a, 0);
    come(b); /* and stays outside */
    end_round(s, WEIR_ERR_TIMED_OUT,
              "trainer rank 0: timed out after 0.3 s: a-1 (worker 1 of its engine) has not joined "
              "the broadcast groups of version 1 of model, nor has it asked since the round began");
    weir_group_record off = ask(a, 0);
    assert_int_equal(off.state, WEIR_GROUP_OFF);
    assert_non_null(strstr(off.why, "a-1 (worker 1 of its engine) has not joined"));
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void a_broadcast_that_does_not_end_names_who_has_not_taken_it(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    publish(s, 1);
    ask(readers[0], 0);
    ask(readers[1], 0);
    start_round(s, 1, SHORT_MS);
    join_round(readers[0]);
    join_round(readers[1]);
    catch_group(readers[0], 0); /* of worker 0 alone */
    await_that(ask(readers[0], 1).state == WEIR_GROUP_READY);
    end_round(s, WEIR_ERR_TIMED_OUT, "timed out after 0.3 s: the broadcast of group 1 of ");
    assert_non_null(strstr(
        s->line, "of version 1 of model has not ended: a-0 (worker 0) has not asked beyond"));
    assert_int_equal(s->all->n_aborted, 3);
    assert_error(weir_matched_joined(readers[0]->seats[s->trainer->window->groups.audiences[0]]),
                 WEIR_ERR_PEER_LOST, "broken");
    for (size_t i = 0; i < 2; i++)
        leave_seats(readers[i]);
    refit(s, readers, 2, 1); /* the same call again, with new groups */
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

static void who_never_asks_behind_the_last_group_is_named(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    start_reader(b);
    ask(a, 0);
    start_round(s, 1, SHORT_MS);
    join_round(a);
    catch_until(a, n_groups_of(s));
    join_reader(b);
    end_round(s, WEIR_ERR_TIMED_OUT, "a-0 (worker 0 of its engine) has not taken all of version 1");
    assert_int_equal(ask(a, n_groups_of(s)).state, WEIR_GROUP_OFF);
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void who_gives_up_ends_the_round_with_its_reason(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    weir_group_record record;
    publish(s, 1);
    ask(readers[0], 0);
    ask(readers[1], 0);
    start_round(s, 1, LONG_MS);
    join_round(readers[0]);
    join_round(readers[1]);
    ask(readers[0], 0);
    assert_ok(put(readers[1], 0, "no more\nmemory", &record));
    end_round(s, WEIR_ERR_PEER_LOST,
              "trainer rank 0: a-1 (worker 1 of its engine) gave up version 1 at group 0 of ");
    assert_non_null(strstr(s->line, ": no more memory"));
    record = ask(readers[0], 0);
    assert_int_equal(record.state, WEIR_GROUP_OFF);
    assert_non_null(strstr(record.why, "no more memory"));
    for (size_t i = 0; i < 2; i++)
        leave_seats(readers[i]);
    refit(s, readers, 2, 1);
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

static void who_begins_anew_in_the_midst_ends_the_round(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, LONG_MS);
    join_round(a);
    join_round(b);
    ask(a, 0);
    leave_seats(a); /* its word that it gives up was lost */
    assert_int_equal(ask(a, 0).state, WEIR_GROUP_WAIT);
    end_round(s, WEIR_ERR_PEER_LOST, "a-0 (worker 0 of its engine) gave up version 1");
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void a_transport_that_fails_ends_the_round_for_all(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    publish(s, 1);
    ask(readers[0], 0);
    ask(readers[1], 0);
    s->all->fails = true;
    start_round(s, 1, LONG_MS);
    join_round(readers[0]);
    join_round(readers[1]);
    end_round(s, WEIR_ERR_PEER_LOST, "trainer rank 0: the stand-in fails, as it was told");
    assert_int_equal(ask(readers[1], 0).state, WEIR_GROUP_OFF);
    s->all->fails = false;
    for (size_t i = 0; i < 2; i++)
        leave_seats(readers[i]);
    refit(s, readers, 2, 1);
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

static void a_wait_that_is_cancelled_is_off_for_its_readers(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, LONG_MS);
    join_round(a);
    weir_trainer_cancel(s->trainer);
    end_round(s, WEIR_ERR_CANCELLED, "cancelled");
    assert_int_equal(ask(a, 0).state, WEIR_GROUP_OFF);
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void a_worker_that_no_engine_has_is_answered_with_no(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *odd = open_reader(s, "odd-2", 2);
    weir_group_record record;
    publish(s, 1);
    assert_error(put(odd, 0, NULL, &record), WEIR_ERR_NOT_FOUND, "rank-0");
    close_reader(odd);
    close_stage(s);
}

/* Takes what there is, and hears the end. */
static void *run_until_off(void *context)
{
    reader *r = context;
    join_round(r);
    for (uint32_t g = next_group(r, 0);; g = next_group(r, g + 1)) {
        weir_group_record record = { 0 };
        await_that((record = ask(r, g)).state != WEIR_GROUP_WAIT);
        if (record.state == WEIR_GROUP_OFF)
            return NULL;
        catch_group(r, g);
    }
}

static void spoil(const stage *s)
{
    for (size_t t = 0; t < s->r.model.n; t++) {
        if (strcmp(s->r.model.tensors[t].name, "model.norm.weight") == 0)
            ((uint16_t *)s->r.model.tensors[t].data)[5] = 0x7fc0;
    }
}

static void a_weight_that_is_not_finite_is_found_before_or_while_it_is_sent(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    spoil(s);
    assert_int_equal(pthread_create(&a->thread, NULL, run_until_off, a), 0);
    assert_int_equal(pthread_create(&b->thread, NULL, run_until_off, b), 0);
    start_round(s, 1, LONG_MS);
    join_reader(a);
    join_reader(b);
    end_round(s, WEIR_ERR_NONFINITE, "trainer rank 0: model.norm.weight[5] is NaN");
    s->trainer->scan_first = true;
    assert_error(weir_trainer_publish(s->trainer, 2, NULL), WEIR_ERR_NONFINITE,
                 "trainer rank 0: model.norm.weight[5] is NaN");
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

/* ---- what cannot be broadcast ----------------------------------------------------------------*/

static void transports_that_do_not_broadcast_are_refused_by_name(void **state)
{
    (void)state;
    stage *s = open_stage();
    weir_trainer *other = NULL;
    assert_ok(open_trainer(&s->r, "file", WEIR_DELIVERY_PUSH, &other));
    assert_error(weir_trainer_register(other, s->r.model.tensors, s->r.model.n),
                 WEIR_ERR_UNSUPPORTED, "transport file cannot broadcast");
    assert_non_null(strstr(weir_last_error(), "nccl for tensors on a GPU and ucx for those in"));
    weir_trainer_close(other);
    close_stage(s);
}

/* Threads of the directory allocate too, so that the call itself may be spared. */
static void memory_that_is_lacking_is_an_error_that_leaves_all_as_it_was(void **state)
{
    (void)state;
    stage *s = open_stage();
    weir_trainer *other = NULL;
    const rig_model *model = &s->r.model;
    size_t n_failed = 0;
    assert_ok(open_trainer(&s->r, NULL, WEIR_DELIVERY_PUSH, &other));
    uint64_t before = weir_alloc_count();
    assert_ok(weir_trainer_register(other, model->tensors, model->n));
    uint64_t n_all = weir_alloc_count() - before;
    for (uint64_t n = 1; n <= n_all; n++) {
        weir_trainer_close(other);
        assert_ok(open_trainer(&s->r, NULL, WEIR_DELIVERY_PUSH, &other));
        weir_alloc_fail_at(n);
        weir_status status = weir_trainer_register(other, model->tensors, model->n);
        weir_alloc_fail_at(0);
        n_failed += status != WEIR_OK;
        if (status != WEIR_OK)
            assert_ok(weir_trainer_register(other, model->tensors, model->n));
    }
    assert_true(n_failed > n_all / 2);
    weir_trainer_close(other);
    close_stage(s);
}

static void as_many_as_wait_are_ready(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    unsigned n = 7;
    publish(s, 1);
    ask(readers[0], 0);
    assert_ok(weir_trainer_ready(s->trainer, 1, &n));
    assert_int_equal(n, 0); /* an engine of two */
    ask(readers[1], 0);
    assert_ok(weir_trainer_ready(s->trainer, 1, &n));
    assert_int_equal(n, 1);
    refit(s, readers, 2, 1);
    assert_ok(weir_trainer_ready(s->trainer, 1, &n));
    assert_int_equal(n, 1); /* that holds it */
    spoil(s);               /* nobody is there to whom it would be sent: nothing is converted */
    start_round(s, 1, SHORT_MS);
    end_round(s, WEIR_OK, "");
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_worker_is_sent_its_part_and_nothing_is_made_twice),
        cmocka_unit_test(a_group_is_converted_while_the_one_before_is_on_the_wire),
        cmocka_unit_test(who_comes_late_is_told_and_is_in_the_next_round),
        cmocka_unit_test(a_fresh_reader_joins_anew_and_the_others_stay),
        cmocka_unit_test(who_has_not_come_is_counted),
        cmocka_unit_test(who_comes_and_goes_keeps_no_trainer_that_gathers),
        cmocka_unit_test(who_comes_and_goes_renews_no_bound_of_others),
        cmocka_unit_test(who_does_not_join_is_named),
        cmocka_unit_test(a_broadcast_that_does_not_end_names_who_has_not_taken_it),
        cmocka_unit_test(who_never_asks_behind_the_last_group_is_named),
        cmocka_unit_test(who_gives_up_ends_the_round_with_its_reason),
        cmocka_unit_test(who_begins_anew_in_the_midst_ends_the_round),
        cmocka_unit_test(a_transport_that_fails_ends_the_round_for_all),
        cmocka_unit_test(a_wait_that_is_cancelled_is_off_for_its_readers),
        cmocka_unit_test(a_worker_that_no_engine_has_is_answered_with_no),
        cmocka_unit_test(a_weight_that_is_not_finite_is_found_before_or_while_it_is_sent),
        cmocka_unit_test(transports_that_do_not_broadcast_are_refused_by_name),
        cmocka_unit_test(memory_that_is_lacking_is_an_error_that_leaves_all_as_it_was),
        cmocka_unit_test(as_many_as_wait_are_ready),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
