/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_model.c - the store against a small model of its rules, over every order of events of
 * a small fleet.
 *
 * From a few beginnings every sequence of events up to a depth is tried, breadth first. A state is
 * forked by its saved bytes, and known again by them (less revisions and uids, which tell of the
 * way there). Each answer is compared with the model's (store_model.h), and each step with what
 * must always hold. */
#include "directory/sha256.h"
#include "directory/store_fixture.h"
#include "directory/store_index.h"
#include "directory/store_model.h"
#include "snapshot.pb-c.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MAX_TRANSITIONS 12000u
#else
#define MAX_TRANSITIONS 60000u /* of one beginning */
#endif

/* ---- the store -------------------------------------------------------------------------------*/

typedef struct node {
    struct node *next;
    model rules;
    char uids[N_VERSIONS][9];
    unsigned char *bytes;
    size_t n_bytes;
} node;

static uint64_t time_of(int step)
{
    return NOW + (uint64_t)step * STEP_MS;
}

static const char *uid_of(const node *at, int v)
{
    return at->uids[v][0] != '\0' ? at->uids[v] : "nothing";
}

static weir_status store_create(weir_store *store, node *at, int v, uint64_t now_ms)
{
    const weir_store_version *version = NULL;
    const weir_store_version request = { .model = "model",
                                         .run = "run",
                                         .has_number = true,
                                         .number = (uint64_t)v,
                                         .attempt = 1,
                                         .payload = WEIR_STORE_FULL_TENSOR,
                                         .slots = slot_names,
                                         .n_slots = N_SLOTS };
    weir_status status = weir_store_create_version(store, &request, 7, now_ms, &version);
    if (status == WEIR_OK)
        memcpy(at->uids[v], version->uid, 9);
    return status;
}

static weir_status store_enter(weir_store *store, const node *at, int w, int held, uint64_t now_ms)
{
    const weir_store_source source = { .source_id = "s",
                                       .worker_id = names[w],
                                       .model = "model",
                                       .run = "run",
                                       .role = w >= GEN0 ? "inference_replica" : "trainer",
                                       .rank = (uint32_t)slot_of(w),
                                       .status = WEIR_STORE_SOURCE_READY,
                                       .version_uid = held != 0 ? uid_of(at, held - 1) : "",
                                       .endpoint = "h:1",
                                       .host = "h",
                                       .part = "p" };
    return weir_store_publish_source(store, &source, now_ms);
}

/* What was given is whole, READY, and of those who live and were started last. */
static void look_at_grant(const model *m, const weir_store_grant *grant, uint64_t now_ms)
{
    assert_int_equal(grant->version->state, WEIR_STORE_READY);
    assert_true(grant->lease.expires_ms == now_ms + LEASE_TTL * STEP_MS);
    assert_true(grant->n_shards == N_SLOTS || (grant->n_shards == 0 && grant->peer != NULL));
    for (size_t i = 0; i < grant->n_shards; i++) {
        int w = 0;
        while (strcmp(names[w], grant->shards[i]->worker_id) != 0)
            w++;
        assert_string_equal(grant->shards[i]->slot, slot_names[i]);
        assert_string_equal(grant->shards[i]->version_uid, grant->version->uid);
        assert_true(is_alive(m, w) && !m->workers[w].is_superseded);
        int rival = w == OLD0 ? NEW0 : OLD0, v = (int)grant->version->number;
        if (w != RANK1 && serves(m, v, rival))
            assert_true(m->workers[w].generation > m->workers[rival].generation);
    }
}

static outcome store_acquire(weir_store *store, const model *m, int w, int lowest, uint64_t now_ms)
{
    const weir_store_wish wish = { .model = "model",
                                   .run = "run",
                                   .worker_id = names[w],
                                   .lowest = (uint64_t)lowest,
                                   .highest = UINT64_MAX,
                                   .host = "h",
                                   .part = "p",
                                   .ttl_s = LEASE_TTL * STEP_MS / 1000 };
    weir_store_grant grant = { 0 };
    outcome out = { .version = -1, .awaited = -1 };
    weir_status would = weir_store_acquire(store, &wish, false, now_ms, &grant);
    out.status = weir_store_acquire(store, &wish, true, now_ms, &grant);
    assert_int_equal(would, out.status);
    if (out.status < 0)
        return (outcome){ .status = out.status };
    if (grant.version != NULL) {
        out.version = (int)grant.version->number;
        out.is_covered = grant.n_shards != 0;
        out.by_peer = grant.peer != NULL;
        look_at_grant(m, &grant, now_ms);
    }
    if (grant.awaited != NULL)
        out.awaited = (int)grant.awaited->number;
    for (size_t i = 0; i < grant.n_missing; i++)
        out.missing |= 1u << (grant.missing[i][0] - 'a');
    return out;
}

static weir_status store_give_up(weir_store *store, const char *uid, const char *worker,
                                 uint64_t now_ms, bool *out_deleted)
{
    char text[64], hash[WEIR_SHA256_HEX];
    int n = snprintf(text, sizeof(text), "%s%c%s", uid, 0, worker);
    assert_int_equal(weir_sha256_hex(text, (size_t)n, hash), WEIR_OK);
    hash[8] = '\0';
    return weir_store_delete_lease(store, uid, hash, worker, now_ms, out_deleted);
}

static outcome store_do(weir_store *store, node *at, const model *m, event e)
{
    uint64_t now_ms = time_of(m->now), expires_ms;
    outcome out = { .status = WEIR_OK };
    const weir_store_version *version = NULL;
    const char *uid = uid_of(at, e.version);
    switch (e.what) {
    case REGISTER:
        out.status = weir_store_register_worker(
            store, names[e.worker], e.worker >= GEN0 ? WEIR_STORE_GENERATOR : WEIR_STORE_TRAINER,
            "model", WORKER_TTL * STEP_MS / 1000, now_ms, &expires_ms);
        break;
    case CREATE:
        out.status = store_create(store, at, e.version, now_ms);
        break;
    case PUBLISH: {
        const weir_store_shard shard = { .version_uid = uid,
                                         .slot = slot_names[slot_of(e.worker)],
                                         .worker_id = names[e.worker] };
        out.status = weir_store_create_shard(store, &shard, now_ms, &version);
        break;
    }
    case ENTER:
        out.status = store_enter(store, at, e.worker, 0, now_ms);
        break;
    case HOLD:
        out.status = store_enter(store, at, e.worker, e.version + 1, now_ms);
        break;
    case ACQUIRE:
        return store_acquire(store, m, e.worker, e.version, now_ms);
    case GIVE_UP:
        out.status = store_give_up(store, uid, names[e.worker], now_ms, &out.deleted);
        break;
    case DELETE:
        out.status = weir_store_delete_version(store, uid, now_ms, &version);
        break;
    case TAKE_BACK:
        out.status = weir_store_delete_shard(store, uid, slot_names[slot_of(e.worker)],
                                             names[e.worker], now_ms, &out.deleted);
        break;
    case RETIRE:
        out.status = weir_store_retire_shard(store, uid, slot_names[slot_of(e.worker)],
                                             names[e.worker], now_ms, &out.deleted);
        break;
    case ABORT:
        out.status = weir_store_abort_version(store, uid, names[e.worker], "why", now_ms, &version);
        break;
    case TICK:
        break;
    case SWEEP:
        weir_store_sweep(store, now_ms);
        break;
    }
    return out;
}

/* ---- comparing -------------------------------------------------------------------------------*/

typedef struct lease_check {
    const model *m;
    int version, n;
} lease_check;

static bool visit_lease(void *context, const char *worker_id, uint64_t expires_ms)
{
    lease_check *check = context;
    int g = strcmp(worker_id, names[GEN1]) == 0;
    assert_true(expires_ms == time_of(check->m->versions[check->version].leases[g]));
    check->n++;
    return true;
}

static void compare_version(weir_store *store, const node *at, int v)
{
    const model *m = &at->rules;
    const weir_store_version *version = NULL;
    weir_status status = weir_store_get_version(store, uid_of(at, v), &version);
    assert_int_equal(status, m->versions[v].state == 0 ? WEIR_ERR_NOT_FOUND : WEIR_OK);
    if (status != WEIR_OK)
        return;
    const weir_store_shard *shard = NULL;
    int n_expected = 0, n_shards = 0, slots = 0;
    assert_int_equal(version->state, m->versions[v].state);
    assert_int_equal(version->reason[0] != '\0', version->state == WEIR_STORE_ABORTED);
    assert_int_equal(weir_store_is_taken_back(store, version->uid), is_taken_back(m, v));
    for (int w = 0; w < N_TRAINERS; w++) {
        n_expected += m->versions[v].shards[w] != 0;
        slots |= m->versions[v].shards[w] != 0 ? 1 << slot_of(w) : 0;
    }
    assert_int_equal(version->n_covered, (slots & 1) + (slots >> 1));
    assert_int_equal(weir_store_list_shards(store, version->uid, &shard), WEIR_OK);
    for (; shard != NULL; shard = shard->next, n_shards++) {
        int w = 0;
        while (strcmp(names[w], shard->worker_id) != 0)
            w++;
        assert_true(m->versions[v].shards[w] != 0);
        assert_int_equal(weir_store_shard_counts(shard, time_of(m->now)), serves(m, v, w));
    }
    assert_int_equal(n_shards, n_expected);
    lease_check check = { m, v, 0 };
    weir_store_each_lease(store, version->uid, time_of(m->now), visit_lease, &check);
    assert_int_equal(check.n,
                     (m->versions[v].leases[0] > m->now) + (m->versions[v].leases[1] > m->now));
}

static void compare_workers(weir_store *store, const model *m)
{
    for (int w = 0; w < N_WORKERS; w++) {
        weir_store_worker worker;
        bool is_there = weir_store_get_worker(store, names[w], time_of(m->now), &worker);
        assert_int_equal(is_there, is_alive(m, w));
        if (is_there)
            assert_int_equal(worker.generation, m->workers[w].generation);
        const weir_store_source *source = weir_store_get_source(store, "s", names[w]);
        assert_int_equal(source != NULL, m->sources[w].is_there);
        if (source != NULL)
            assert_int_equal(source->status, m->sources[w].is_superseded ? WEIR_STORE_SOURCE_STALE
                                                                         : WEIR_STORE_SOURCE_READY);
    }
}

/* What no step may do, whatever the rules. */
static void look_at_step(const model *before, const model *after)
{
    for (int v = 0; v < N_VERSIONS; v++) {
        int was = before->versions[v].state, is = after->versions[v].state;
        assert_true(is >= was);
        assert_false(was == WEIR_STORE_ABORTED && is != WEIR_STORE_ABORTED);
        for (int w = 0; w < N_TRAINERS; w++)
            assert_false(before->versions[v].shards[w] != 0 && after->versions[v].shards[w] == 0 &&
                         has_direct_lease(before, v) && has_direct_lease(after, v) &&
                         before->now == after->now);
    }
}

static void expect_outcome(const outcome *got, const outcome *expected)
{
    assert_int_equal(got->status, expected->status);
    assert_int_equal(got->deleted, expected->deleted);
    assert_int_equal(got->version, expected->version);
    assert_int_equal(got->awaited, expected->awaited);
    assert_int_equal(got->by_peer, expected->by_peer);
    assert_int_equal(got->is_covered, expected->is_covered);
    assert_int_equal(got->missing, expected->missing);
}

/* ---- what has been seen ----------------------------------------------------------------------*/

/* The bytes less what tells of the way: counters, and the digits of uids. */
static uint64_t hash_state(const node *at, uint64_t seed)
{
    Weir__Store__Snapshot *message = weir__store__snapshot__unpack(NULL, at->n_bytes, at->bytes);
    assert_non_null(message);
    message->n_uids = message->revision = message->gone_revision = 0;
    for (size_t i = 0; i < message->n_models; i++)
        message->models[i]->revision = 0;
    for (size_t i = 0; i < message->n_versions; i++)
        memset(message->versions[i]->uid, '0' + (int)message->versions[i]->number, 8);
    for (size_t i = 0; i < message->n_sources; i++) {
        for (int v = 0; v < N_VERSIONS; v++) {
            if (strcmp(message->sources[i]->version_uid, at->uids[v]) == 0)
                memset(message->sources[i]->version_uid, '0' + v,
                       strlen(message->sources[i]->version_uid));
        }
    }
    size_t n = weir__store__snapshot__get_packed_size(message);
    uint8_t *packed = malloc(n);
    weir__store__snapshot__pack(message, packed);
    uint64_t hash = weir_store_hash_bytes(seed + (uint64_t)at->rules.now, packed, n);
    free(packed);
    weir__store__snapshot__free_unpacked(message, NULL);
    return hash;
}

#define SEEN_SLOTS (1u << 20)

static bool is_seen(uint64_t *seen, uint64_t hash)
{
    size_t at = hash & (SEEN_SLOTS - 1);
    for (; seen[at] != 0; at = (at + 1) & (SEEN_SLOTS - 1)) {
        if (seen[at] == hash)
            return true;
    }
    seen[at] = hash;
    return false;
}

/* ---- exploring -------------------------------------------------------------------------------*/

static const event events[] = {
    { REGISTER, OLD0, 0 },   { REGISTER, RANK1, 0 }, { REGISTER, NEW0, 0 }, { REGISTER, GEN0, 0 },
    { REGISTER, GEN1, 0 },   { CREATE, 0, 0 },       { CREATE, 0, 1 },      { PUBLISH, OLD0, 0 },
    { PUBLISH, RANK1, 0 },   { PUBLISH, NEW0, 0 },   { PUBLISH, OLD0, 1 },  { PUBLISH, RANK1, 1 },
    { PUBLISH, NEW0, 1 },    { ENTER, OLD0, 0 },     { ENTER, NEW0, 0 },    { HOLD, GEN0, 0 },
    { HOLD, GEN1, 0 },       { HOLD, GEN0, 1 },      { ACQUIRE, GEN0, 0 },  { ACQUIRE, GEN1, 0 },
    { ACQUIRE, GEN0, 1 },    { ACQUIRE, GEN1, 1 },   { GIVE_UP, GEN0, 0 },  { GIVE_UP, GEN1, 0 },
    { GIVE_UP, GEN1, 1 },    { DELETE, 0, 0 },       { DELETE, 0, 1 },      { TAKE_BACK, OLD0, 0 },
    { TAKE_BACK, RANK1, 0 }, { TAKE_BACK, NEW0, 0 }, { ABORT, RANK1, 0 },   { ABORT, GEN0, 0 },
    { ABORT, OLD0, 1 },      { RETIRE, OLD0, 0 },    { RETIRE, RANK1, 0 },  { RETIRE, RANK1, 1 },
    { TICK, 0, 0 },          { SWEEP, 0, 0 },
};

typedef struct explorer {
    uint64_t *seen;
    size_t n_states, n_transitions, n_merged, n_refused, n_granted, n_depth;
} explorer;

static void save_into(const weir_store *store, node *out)
{
    assert_int_equal(weir_store_save(store, &out->bytes, &out->n_bytes), WEIR_OK);
}

/* The state after `e`; NULL: it is one that has been seen. */
static node *step(explorer *self, const node *from, event e)
{
    const weir_store_options options = { UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX };
    weir_store *store = NULL;
    node *to = malloc(sizeof(*to));
    *to = *from;
    assert_int_equal(weir_store_load(&options, from->bytes, from->n_bytes, &store), WEIR_OK);
    outcome expected = model_do(&to->rules, e);
    if (e.what == ACQUIRE && expected.status < 0)
        expected.version = expected.awaited = 0;
    outcome got = store_do(store, to, &from->rules, e);
    expect_outcome(&got, &expected);
    look_at_step(&from->rules, &to->rules);
    for (int v = 0; v < N_VERSIONS; v++)
        compare_version(store, to, v);
    compare_workers(store, &to->rules);
    save_into(store, to);
    weir_store_close(store);
    self->n_transitions++;
    self->n_refused += got.status < 0;
    self->n_granted += e.what == ACQUIRE && got.status == WEIR_OK;
    if (got.status != WEIR_OK) { /* refused, or not there yet: nothing has changed */
        assert_int_equal(to->n_bytes, from->n_bytes);
        assert_memory_equal(to->bytes, from->bytes, to->n_bytes);
    }
    if (is_seen(self->seen, hash_state(to, 1))) {
        self->n_merged++;
        weir_free(to->bytes);
        free(to);
        return NULL;
    }
    self->n_states++;
    return to;
}

static void drop_all(node *list)
{
    for (node *next; list != NULL; list = next) {
        next = list->next;
        weir_free(list->bytes);
        free(list);
    }
}

/* All events from every state of one depth give those of the next; whole depths alone. */
static void explore(explorer *self, node *first)
{
    node *level = first;
    size_t n_level = 1, begun = self->n_transitions;
    const size_t n_events = sizeof(events) / sizeof(events[0]);
    while (level != NULL && self->n_transitions - begun + n_level * n_events <= MAX_TRANSITIONS) {
        node *next = NULL;
        n_level = 0;
        self->n_depth++;
        for (const node *at = level; at != NULL; at = at->next) {
            for (size_t i = 0; i < n_events; i++) {
                if (events[i].what == TICK && at->rules.now == MAX_STEPS)
                    continue;
                node *to = step(self, at, events[i]);
                if (to == NULL)
                    continue;
                to->next = next;
                next = to;
                n_level++;
            }
        }
        drop_all(level);
        level = next;
    }
    drop_all(level);
}

static node *begin_with(explorer *self, const event *steps, size_t n)
{
    const weir_store_options options = { UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX };
    weir_store *store = NULL;
    node *at = calloc(1, sizeof(*at));
    assert_int_equal(weir_store_open(&options, &store), WEIR_OK);
    save_into(store, at);
    weir_store_close(store);
    for (size_t i = 0; i < n; i++) {
        node *next = step(self, at, steps[i]);
        assert_non_null(next); /* every step of a beginning leads somewhere */
        drop_all(at);
        at = next;
        at->next = NULL;
    }
    return at;
}

static void explore_from(const char *name, const event *steps, size_t n)
{
    explorer self = { .seen = calloc(SEEN_SLOTS, sizeof(uint64_t)) };
    explore(&self, begin_with(&self, steps, n));
    print_message("%s: %zu states, %zu transitions to depth %zu: %zu refused, %zu granted, %zu met "
                  "again\n",
                  name, self.n_states, self.n_transitions, self.n_depth, self.n_refused,
                  self.n_granted, self.n_merged);
    assert_true(self.n_depth >= 2 && self.n_refused > 0);
    free(self.seen);
}

#define ALL_ARE_THERE                                                                            \
    { REGISTER, OLD0, 0 }, { REGISTER, RANK1, 0 }, { REGISTER, GEN0, 0 }, { REGISTER, GEN1, 0 }, \
    {                                                                                            \
        ENTER, OLD0, 0                                                                           \
    }
#define FIRST_IS_READY                      \
    { CREATE, 0, 0 }, { PUBLISH, OLD0, 0 }, \
    {                                       \
        PUBLISH, RANK1, 0                   \
    }
#define EXPLORE(...)                       \
    const event steps[] = { __VA_ARGS__ }; \
    (void)state;                           \
    explore_from(__func__, steps, sizeof(steps) / sizeof(steps[0]))

static void test_from_two_trainers_that_begin(void **state)
{
    EXPLORE({ REGISTER, OLD0, 0 }, { CREATE, 0, 0 });
}

static void test_from_a_version_that_is_ready(void **state)
{
    EXPLORE(ALL_ARE_THERE, FIRST_IS_READY);
}

static void test_from_a_restart_while_both_replicas_read(void **state)
{
    EXPLORE(ALL_ARE_THERE, FIRST_IS_READY, { ACQUIRE, GEN0, 0 }, { ACQUIRE, GEN1, 0 },
            { REGISTER, NEW0, 0 }, { ENTER, NEW0, 0 });
}

static void test_from_a_peer_that_is_read(void **state)
{
    EXPLORE(ALL_ARE_THERE, FIRST_IS_READY, { ACQUIRE, GEN0, 0 }, { HOLD, GEN0, 0 },
            { ACQUIRE, GEN1, 0 }, { CREATE, 0, 1 });
}

static void test_from_trainers_that_fall_silent(void **state)
{
    EXPLORE(ALL_ARE_THERE, FIRST_IS_READY, { HOLD, GEN0, 0 }, { TICK, 0, 0 }, { REGISTER, GEN0, 0 },
            { REGISTER, GEN1, 0 }, { ACQUIRE, GEN1, 0 });
}

static void test_from_a_version_that_only_replicas_have(void **state)
{
    EXPLORE(ALL_ARE_THERE, FIRST_IS_READY, { HOLD, GEN0, 0 }, { CREATE, 0, 1 },
            { PUBLISH, OLD0, 1 }, { RETIRE, OLD0, 0 }, { RETIRE, RANK1, 0 });
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_from_two_trainers_that_begin),
        cmocka_unit_test(test_from_a_version_that_is_ready),
        cmocka_unit_test(test_from_a_restart_while_both_replicas_read),
        cmocka_unit_test(test_from_a_peer_that_is_read),
        cmocka_unit_test(test_from_trainers_that_fall_silent),
        cmocka_unit_test(test_from_a_version_that_only_replicas_have),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
