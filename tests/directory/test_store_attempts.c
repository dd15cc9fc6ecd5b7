/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_attempts.c - every order of what two trainer ranks, each started twice, can do about
 * one version number, to the last state: a trainer's version never is of two states of the model,
 * whoever comes back when and with what.
 *
 * What must hold is checked from the test's own record of what was published, not from what the
 * store remembers. Dead processes go on speaking here: a message may be late.
 *
 * And with a store that loses its records in the midst of it: ranks that live publish again what
 * they had published, or one of them has died as well. */
#include "directory/store_fixture.h"
#include "directory/store_index.h"
#include "snapshot.pb-c.h"

enum { A0, A1, B0, B1, N_TRAINERS, REPLICA = N_TRAINERS, FRESH_A, FRESH_B };
enum { N_SLOTS = 2, MAX_ATTEMPTS = 3 };
static const char *const names[] = {
    "t-0-a", "t-0-b", "t-1-a", "t-1-b", "rep-0", "t-0-c", "t-1-c"
};
static const char *const contents[] = { "", "one", "other" };

static size_t slot_of(int worker)
{
    return worker == B0 || worker == B1 || worker == FRESH_B;
}

typedef enum kind {
    START,
    PUBLISH,
    ABORT,
    RETIRE,
    LOSE,   /* the records, and this rank's worker; REPLICA: no rank's */
    REJOIN, /* a worker that was there before is registered in the other store */
    AGAIN,  /* and publishes again what it had published */
} kind;

typedef struct event {
    kind what;
    int worker, content;
} event;

/* What the test has seen of an attempt. */
typedef struct record {
    char uid[9];
    int n_started; /* workers that there were when it was made */
    int content[N_SLOTS], first[N_SLOTS], newest[N_SLOTS]; /* by when they were started; 0: none */
    bool is_in[N_TRAINERS + 3];
} record;

/* What a worker remembers of what it published last. */
typedef struct memory {
    char uid[9];
    uint32_t attempt; /* 0: nothing */
    uint64_t workers[N_SLOTS], contents[N_SLOTS];
} memory;

typedef struct node {
    struct node *next;
    int n_started, started[N_TRAINERS + 3]; /* in which order; 0: not yet */
    int brings[N_TRAINERS + 3];             /* content */
    int n_attempts;
    record attempts[MAX_ATTEMPTS + 2]; /* from 1 */
    bool is_lost, is_away[N_TRAINERS + 3], owes[N_TRAINERS + 3], had[N_TRAINERS + 3];
    record lost[MAX_ATTEMPTS + 2]; /* what was in the records that were lost */
    memory memories[N_TRAINERS + 3];
    unsigned char *bytes;
    size_t n_bytes;
} node;

/* ---- events ----------------------------------------------------------------------------------*/

static weir_status start(weir_store *store, node *at, int worker, int content)
{
    uint64_t expires_ms;
    at->started[worker] = ++at->n_started;
    at->brings[worker] = content;
    return weir_store_register_worker(store, names[worker],
                                      worker == REPLICA ? WEIR_STORE_GENERATOR : WEIR_STORE_TRAINER,
                                      "model", 9999, NOW, &expires_ms);
}

static void take_down(node *at, int worker, const weir_store_version *version)
{
    int n = (int)version->attempt, content = at->brings[worker];
    assert_in_range(n, 1, MAX_ATTEMPTS + 1);
    record *attempt = &at->attempts[n];
    size_t slot = slot_of(worker);
    if (n > at->n_attempts) {
        assert_true(n == at->n_attempts + 1 || at->is_lost);
        at->n_attempts = n;
        attempt->n_started = at->n_started;
        memcpy(attempt->uid, version->uid, sizeof(attempt->uid));
    }
    assert_string_equal(attempt->uid, version->uid);
    assert_true(attempt->content[slot] == 0 || attempt->content[slot] == content);
    if (attempt->content[slot] == 0)
        attempt->first[slot] = at->started[worker];
    attempt->content[slot] = content;
    attempt->is_in[worker] = true;
    if (attempt->newest[slot] < at->started[worker])
        attempt->newest[slot] = at->started[worker];
}

static weir_status enter(weir_store *store, int worker)
{
    const weir_store_source source = { .source_id = "s",
                                       .worker_id = names[worker],
                                       .model = "model",
                                       .run = "run",
                                       .role = "trainer",
                                       .rank = (uint32_t)slot_of(worker),
                                       .status = WEIR_STORE_SOURCE_READY,
                                       .endpoint = "h:1" };
    return weir_store_publish_source(store, &source, NOW);
}

static weir_status publish(weir_store *store, node *at, int worker, const memory *again)
{
    const weir_store_version *version = NULL;
    weir_store_version request = version_request(NULL);
    request.run = "run";
    if (again != NULL) {
        request.uid = again->uid;
        request.attempt = again->attempt;
        request.slot_workers = again->workers;
        request.slot_contents = again->contents;
    }
    const weir_store_shard shard = { .slot = slots_ab[slot_of(worker)],
                                     .worker_id = names[worker],
                                     .content = contents[at->brings[worker]] };
    weir_status status =
        weir_store_publish_shard(store, &request, &shard, at->is_lost ? 8 : 7, NOW, &version);
    assert_true(status == WEIR_OK || status == WEIR_ERR_REFUSED || status == WEIR_ERR_EXISTS);
    if (status != WEIR_OK)
        return status;
    take_down(at, worker, version);
    memory *known = &at->memories[worker];
    known->attempt = version->attempt;
    memcpy(known->uid, version->uid, sizeof(known->uid));
    assert_int_equal(weir_store_recall(store, known->uid, known->workers, known->contents),
                     WEIR_OK);
    return enter(store, worker); /* which makes it the one that was started last as its rank */
}

static weir_status retire(weir_store *store, const node *at, int worker)
{
    bool is_read;
    int n = at->n_attempts;
    while (n > 1 && !at->attempts[n].is_in[worker])
        n--;
    return weir_store_retire_shard(store, at->attempts[n].uid, slots_ab[slot_of(worker)],
                                   names[worker], NOW, &is_read);
}

static weir_status rejoin(weir_store *store, node *at, int worker)
{
    const int since = at->started[worker], n = at->n_started;
    weir_status status = start(store, at, worker, at->brings[worker]);
    at->started[worker] = since;
    at->n_started = n;
    at->is_away[worker] = false;
    return status;
}

/* Of each rank the worker that was started last lives on, but for the one that dies too. */
static void lose(weir_store **store, node *at, int dead)
{
    const weir_store_options options = { 0 };
    weir_store_close(*store);
    assert_int_equal(weir_store_open(&options, store), WEIR_OK);
    at->is_lost = true;
    memcpy(at->lost, at->attempts, sizeof(at->lost));
    memset(at->attempts, 0, sizeof(at->attempts));
    at->n_attempts = 0;
    for (int w = A0; w < N_TRAINERS; w++) {
        bool is_last = w == A1 || w == B1 || at->started[w + 1] == 0;
        bool lives =
            at->started[w] != 0 && is_last && (dead == REPLICA || slot_of(w) != slot_of(dead));
        at->is_away[w] = at->started[w] != 0;
        at->owes[w] = at->had[w] = lives && at->memories[w].attempt != 0;
        if (at->started[w] != 0 && !lives)
            at->brings[w] = -1;
    }
    assert_int_equal(rejoin(*store, at, REPLICA), WEIR_OK);
}

static weir_status apply(weir_store *store, node *at, event e)
{
    const weir_store_version *version;
    const char *uid = at->attempts[at->n_attempts].uid;
    switch (e.what) {
    case START:
        return start(store, at, e.worker, e.content);
    case PUBLISH:
        return publish(store, at, e.worker, NULL);
    case ABORT:
        return weir_store_abort_version(store, uid, names[A0], "why", NOW, &version);
    case RETIRE:
        return retire(store, at, e.worker);
    case REJOIN:
        return rejoin(store, at, e.worker);
    case AGAIN: {
        const memory again = at->memories[e.worker];
        at->owes[e.worker] = false;
        return publish(store, at, e.worker, &again);
    }
    case LOSE:
        break;
    }
    return WEIR_OK;
}

/* What cannot be: who was not started says nothing, and who was is not started again. */
static bool can_happen(const node *at, event e)
{
    bool is_second = e.worker == A1 || e.worker == B1;
    bool is_dead = at->brings[e.worker] < 0;
    if (e.what == LOSE)
        return !at->is_lost && at->n_attempts != 0;
    if (e.what == REJOIN)
        return at->is_lost && at->is_away[e.worker] && !is_dead;
    if (e.what == AGAIN)
        return at->owes[e.worker] && !at->is_away[e.worker];
    if (e.what == PUBLISH && at->had[e.worker])
        return false; /* its keeper does */
    if (at->is_away[e.worker] && e.what != START)
        return false;
    if (at->is_lost && e.what == START && is_second && at->brings[e.worker - 1] >= 0)
        return false; /* no rank has two that live */
    if (e.what == START)
        return at->started[e.worker] == 0 && (!is_second || at->started[e.worker - 1] != 0);
    if (e.what == ABORT || e.what == RETIRE)
        return at->n_attempts != 0 && at->started[e.worker] != 0;
    return at->started[e.worker] != 0;
}

/* ---- what must hold --------------------------------------------------------------------------*/

/* One attempt is open at the most, and what it has of a slot is of one content. */
static void look_at_attempt(weir_store *store, const node *at, int n, int *n_open)
{
    const weir_store_version *version = NULL;
    const weir_store_shard *shard = NULL;
    const record *attempt = &at->attempts[n];
    assert_int_equal(weir_store_get_version(store, attempt->uid, &version), WEIR_OK);
    assert_int_equal(weir_store_list_shards(store, attempt->uid, &shard), WEIR_OK);
    *n_open += version->state == WEIR_STORE_STAGING || version->state == WEIR_STORE_READY;
    for (; shard != NULL; shard = shard->next)
        assert_string_equal(shard->content,
                            contents[attempt->content[shard->slot[0] == slots_ab[1][0]]]);
    if (version->state == WEIR_STORE_READY)
        assert_true(attempt->content[0] != 0 && attempt->content[1] != 0);
}

/* What a rank that was started anew offers first, and its older self had otherwise in an attempt
 * before, is of another state than what only those offer who were there when that one was made. */
static void look_at_states(const record *before, const record *attempt)
{
    for (size_t s = 0; s < N_SLOTS; s++) {
        bool is_other = before->content[s] != 0 && attempt->content[s] != 0 &&
                        before->content[s] != attempt->content[s] &&
                        attempt->first[s] > before->newest[s] &&
                        attempt->first[s] > before->n_started;
        for (size_t t = 0; is_other && t < N_SLOTS; t++)
            assert_true(attempt->newest[t] == 0 || attempt->newest[t] > before->n_started);
    }
}

/* Beside what a rank brought over goes only who was in it with that, or offers the same. */
static void look_at_what_was_lost(const node *at, const record *attempt)
{
    for (int w = A0; w < N_TRAINERS && at->is_lost; w++) {
        const record *before = NULL;
        for (int n = 1; n <= MAX_ATTEMPTS; n++)
            before = at->lost[n].is_in[w] && attempt->is_in[w] ? &at->lost[n] : before;
        for (int other = A0; before != NULL && other < N_TRAINERS; other++) {
            size_t slot = slot_of(other);
            if (attempt->is_in[other] && !before->is_in[other])
                assert_int_equal(before->content[slot], at->brings[other]);
        }
    }
}

/* What a replica that holds attempt `held`, 0: none, would get: whole, READY, a later one, and of
 * each slot what was published there. */
static bool look_at_grant(weir_store *store, const node *at, int held)
{
    weir_store_grant grant;
    const weir_store_wish wish = { .model = "model",
                                   .run = "run",
                                   .worker_id = names[REPLICA],
                                   .lowest = 1,
                                   .highest = UINT64_MAX,
                                   .held_uid = at->attempts[held].uid,
                                   .ttl_s = 9999 };
    weir_status status = weir_store_acquire(store, &wish, false, NOW, &grant);
    assert_true(status == WEIR_OK || status == WEIR_IN_PROGRESS);
    if (status != WEIR_OK)
        return false;
    assert_int_equal(grant.version->state, WEIR_STORE_READY);
    assert_true((int)grant.version->attempt > held);
    assert_int_equal(grant.n_shards, N_SLOTS);
    for (size_t i = 0; i < N_SLOTS; i++)
        assert_string_equal(grant.shards[i]->content,
                            contents[at->attempts[grant.version->attempt].content[i]]);
    return true;
}

/* Whether there is something to read. */
static bool look_at(weir_store *store, const node *at)
{
    int n_open = 0;
    bool is_granted = false;
    for (int n = 1; n <= at->n_attempts; n++) {
        if (at->attempts[n].uid[0] == '\0')
            continue;
        look_at_attempt(store, at, n, &n_open);
        look_at_what_was_lost(at, &at->attempts[n]);
    }
    assert_true(n_open <= 1);
    for (int held = 0; held <= at->n_attempts; held++)
        is_granted |= look_at_grant(store, at, held);
    return is_granted;
}

/* Only of attempts that were open when it was last published into: those before are what they are.
 */
static void look_at_newest(const node *at)
{
    for (int n = at->is_lost ? at->n_attempts : 1; n < at->n_attempts; n++)
        look_at_states(&at->attempts[n], &at->attempts[at->n_attempts]);
}

static weir_store *copy_of(const node *at)
{
    const weir_store_options options = { UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX };
    weir_store *store = NULL;
    assert_int_equal(weir_store_load(&options, at->bytes, at->n_bytes, &store), WEIR_OK);
    return store;
}

/* Wherever it has come to: all ranks started anew are always a version. */
static void look_ahead(const node *from)
{
    node at = *from;
    const weir_store_version *version = NULL;
    weir_store *store = copy_of(from);
    for (int w = FRESH_A; w <= FRESH_B; w++)
        assert_int_equal(start(store, &at, w, 1), WEIR_OK);
    for (int w = FRESH_A; w <= FRESH_B; w++)
        assert_int_equal(publish(store, &at, w, NULL), WEIR_OK);
    assert_int_equal(weir_store_get_version(store, at.attempts[at.n_attempts].uid, &version),
                     WEIR_OK);
    if (version->state != WEIR_STORE_READY) /* the second has ended what the first went on with */
        assert_int_equal(publish(store, &at, FRESH_A, NULL), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_READY);
    weir_store_close(store);
}

/* ---- what has been seen ----------------------------------------------------------------------*/

#define SEEN_SLOTS (1u << 20)

typedef struct explorer {
    bool sweeps;      /* after each event; else never */
    int max_attempts; /* that are tried */
    bool loses;       /* the records, at some time */
    uint64_t *seen;
    size_t n_states, n_transitions, n_refused, n_granted, n_depth;
} explorer;

static int compare_shards(const void *a, const void *b)
{
    return strcmp((*(Weir__Store__Shard *const *)a)->worker_id,
                  (*(Weir__Store__Shard *const *)b)->worker_id);
}

static int compare_sources(const void *a, const void *b)
{
    return strcmp((*(Weir__Store__Source *const *)a)->worker_id,
                  (*(Weir__Store__Source *const *)b)->worker_id);
}

static int compare_workers(const void *a, const void *b)
{
    return strcmp((*(Weir__Store__Worker *const *)a)->worker_id,
                  (*(Weir__Store__Worker *const *)b)->worker_id);
}

static void sort(void *list, size_t n, int (*compare)(const void *, const void *))
{
    if (n > 1) /* an empty list is NULL */
        qsort(list, n, sizeof(void *), compare);
}

/* The bytes less what tells of the way, and nothing else depends on: counters, uids, reasons, and
 * in which order who came; and, where no records are lost, who was the last in a slot. */
static uint64_t hash_state(const node *at, bool loses)
{
    Weir__Store__Snapshot *message = weir__store__snapshot__unpack(NULL, at->n_bytes, at->bytes);
    assert_non_null(message);
    node own = *at;
    message->n_uids = message->revision = message->gone_revision = 0;
    for (size_t i = 0; i < message->n_models; i++)
        message->models[i]->revision = 0;
    for (size_t i = 0; i < message->n_versions; i++) {
        Weir__Store__Version *version = message->versions[i];
        memset(version->uid, '0' + (int)version->attempt, strlen(version->uid));
        memset(version->reason, '\0', strlen(version->reason));
        sort(version->shards, version->n_shards, compare_shards);
        for (size_t n = 0; n < version->n_pasts && !loses; n++)
            version->pasts[n]->worker = 0;
    }
    sort(message->sources, message->n_sources, compare_sources);
    sort(message->workers, message->n_workers, compare_workers);
    for (int n = 0; n <= MAX_ATTEMPTS + 1; n++) {
        memset(own.attempts[n].uid, 0, sizeof(own.attempts[n].uid));
        memset(own.lost[n].uid, 0, sizeof(own.lost[n].uid));
    }
    for (int w = 0; w < N_TRAINERS + 3; w++)
        memset(own.memories[w].uid, 0, sizeof(own.memories[w].uid));
    if (!loses)
        memset(own.memories, 0, sizeof(own.memories));
    own.next = NULL;
    own.bytes = NULL;
    own.n_bytes = 0;
    size_t n = weir__store__snapshot__get_packed_size(message);
    uint8_t *packed = malloc(n);
    weir__store__snapshot__pack(message, packed);
    uint64_t hash = weir_store_hash_bytes(1, packed, n);
    free(packed);
    weir__store__snapshot__free_unpacked(message, NULL);
    return weir_store_hash_bytes(hash, &own, sizeof(own));
}

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
    { START, A1, 1 },   { START, A1, 2 },   { START, B1, 1 },   { START, B1, 2 },
    { PUBLISH, A0, 0 }, { PUBLISH, A1, 0 }, { PUBLISH, B0, 0 }, { PUBLISH, B1, 0 },
    { ABORT, A0, 0 },   { RETIRE, A0, 0 },
};
static const event lossy_events[] = {
    { START, A1, 1 },   { START, A1, 2 },   { START, B1, 1 },     { START, B1, 2 },
    { PUBLISH, A0, 0 }, { PUBLISH, A1, 0 }, { PUBLISH, B0, 0 },   { PUBLISH, B1, 0 },
    { LOSE, A0, 0 },    { LOSE, B0, 0 },    { LOSE, REPLICA, 0 }, { REJOIN, A0, 0 },
    { REJOIN, A1, 0 },  { REJOIN, B0, 0 },  { REJOIN, B1, 0 },    { AGAIN, A0, 0 },
    { AGAIN, A1, 0 },   { AGAIN, B0, 0 },   { AGAIN, B1, 0 },
};

static void save_into(const weir_store *store, node *out)
{
    assert_int_equal(weir_store_save(store, &out->bytes, &out->n_bytes), WEIR_OK);
}

static void drop(node *at)
{
    weir_free(at->bytes);
    free(at);
}

/* The state after `e`; NULL: it is one that has been seen, or beyond the attempts that are tried.
 */
static node *step(explorer *self, const node *from, event e)
{
    weir_store *store = copy_of(from);
    node *to = calloc(1, sizeof(*to));
    memcpy(to, from, sizeof(*to));
    to->next = NULL;
    weir_status status = apply(store, to, e);
    if (e.what == LOSE)
        lose(&store, to, e.worker);
    if (self->sweeps)
        weir_store_sweep(store, NOW);
    save_into(store, to);
    self->n_granted += look_at(store, to);
    if (e.what == PUBLISH && status == WEIR_OK)
        look_at_newest(to);
    weir_store_close(store);
    self->n_transitions++;
    self->n_refused += status < WEIR_OK;
    if (status != WEIR_OK) { /* nothing has changed */
        assert_int_equal(to->n_bytes, from->n_bytes);
        assert_memory_equal(to->bytes, from->bytes, to->n_bytes);
    }
    if (to->n_attempts > self->max_attempts || is_seen(self->seen, hash_state(to, self->loses))) {
        drop(to);
        return NULL;
    }
    look_ahead(to);
    self->n_states++;
    return to;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MAX_TRANSITIONS 8000u /* slow, and done in whole without */
#else
#define MAX_TRANSITIONS SIZE_MAX
#endif

/* All that follows from this state, until nothing is new. */
static void explore(explorer *self, node *level)
{
    const event *all = self->loses ? lossy_events : events;
    const size_t n_all = self->loses ? sizeof(lossy_events) / sizeof(lossy_events[0])
                                     : sizeof(events) / sizeof(events[0]);
    while (level != NULL && self->n_transitions < MAX_TRANSITIONS) {
        node *next = NULL;
        self->n_depth++;

        for (node *at = level, *after; at != NULL; at = after) {
            for (size_t i = 0; i < n_all; i++) {
                node *to = can_happen(at, all[i]) ? step(self, at, all[i]) : NULL;
                if (to == NULL)
                    continue;
                to->next = next;
                next = to;
            }
            after = at->next;
            drop(at);
        }
        level = next;
    }
    for (node *next; level != NULL; level = next) {
        next = level->next;
        drop(level);
    }
}

/* The ranks' first start, and a replica worker, are there. */
static node *begin(void)
{
    const weir_store_options options = { 0 };
    node *first = calloc(1, sizeof(*first));
    weir_store *store = NULL;
    assert_int_equal(weir_store_open(&options, &store), WEIR_OK);
    assert_int_equal(start(store, first, REPLICA, 0), WEIR_OK);
    assert_int_equal(start(store, first, A0, 1), WEIR_OK);
    assert_int_equal(start(store, first, B0, 1), WEIR_OK);
    save_into(store, first);
    weir_store_close(store);
    return first;
}

static void explore_from(explorer *self, const event *steps, size_t n)
{
    node *at = begin();
    self->seen = calloc(SEEN_SLOTS, sizeof(uint64_t));
    for (size_t i = 0; i < n; i++) {
        node *next = step(self, at, steps[i]);
        assert_non_null(next);
        drop(at);
        at = next;
    }
    explore(self, at);
    print_message(
        "%zu states, %zu transitions, to the last at depth %zu: %zu refused, %zu granted\n",
        self->n_states, self->n_transitions, self->n_depth, self->n_refused, self->n_granted);
    assert_true(self->n_refused > 0 && self->n_granted > 0);
    free(self->seen);
}

static void test_no_version_is_of_two_states(void **state)
{
    explorer self = { .sweeps = true, .max_attempts = 2 };
    (void)state;
    explore_from(&self, NULL, 0);
}

static void test_nor_one_that_follows_what_a_rank_has_ended(void **state)
{
    const event steps[] = { { PUBLISH, B0, 0 }, { START, B1, 2 }, { PUBLISH, B1, 0 } };
    explorer self = { .sweeps = false, .max_attempts = 3 };
    (void)state;
    explore_from(&self, steps, sizeof(steps) / sizeof(steps[0]));
}

static void test_nor_one_of_which_the_records_were_lost(void **state)
{
    explorer self = { .sweeps = false, .max_attempts = 2, .loses = true };
    (void)state;
    explore_from(&self, NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_version_is_of_two_states),
        cmocka_unit_test(test_nor_one_that_follows_what_a_rank_has_ended),
        cmocka_unit_test(test_nor_one_of_which_the_records_were_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
