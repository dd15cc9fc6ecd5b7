/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_save.c - a store and the one made of its bytes: every later call is answered the same,
 * and the bytes are the same again. Random calls on both, drawn from few names so that they meet.
 */
#include "directory/store_fixture.h"

#define N_WORKERS 7
#define N_RUNS 3

/* ---- random calls ----------------------------------------------------------------------------*/

typedef struct caller {
    uint64_t random, now_ms, salt;
    char uids[64][9]; /* of versions that were made */
    size_t n_uids;
} caller;

static uint32_t draw(caller *self, uint32_t n)
{
    self->random ^= self->random << 13;
    self->random ^= self->random >> 7;
    self->random ^= self->random << 17;
    return (uint32_t)(self->random >> 32) % n;
}

static const char *const models[] = { "model", "other" };
static const char *const workers[N_WORKERS] = { "t-0",     "t-1",     "t-2", "rep-a-0",
                                                "rep-a-1", "rep-b-0", "mx" };
static const char *const runs[N_RUNS] = { "", "run", "second" };
static const char *const slots_abc[] = { "a", "b", "c" };

static const char *any_uid(caller *self)
{
    return self->n_uids == 0 || draw(self, 20) == 0
               ? "00000000"
               : self->uids[draw(self, (uint32_t)self->n_uids)];
}

/* What a call said, as text. */
typedef struct answer {
    char text[4096];
    size_t n;
} answer;

__attribute__((format(printf, 2, 3))) static void say(answer *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(out->text + out->n, sizeof(out->text) - out->n, format, args);
    va_end(args);
    assert_true(n >= 0);
    out->n += (size_t)n < sizeof(out->text) - out->n ? (size_t)n : sizeof(out->text) - out->n - 1;
}

static void say_version(answer *out, const weir_store_version *version)
{
    say(out, " %s %s/%s %d:%llu.%u %d %zu %llu %llu %s %s %s", version->uid, version->model,
        version->run, version->has_number, (unsigned long long)version->number, version->attempt,
        version->state, version->n_covered, (unsigned long long)version->created_at_ms,
        (unsigned long long)version->ready_at_ms, version->reason, version->trace_id,
        version->idempotency_key);
}

static void say_status(answer *out, weir_status status)
{
    say(out, "%d", status);
    if (status < 0)
        say(out, " %s", weir_last_error());
}

static void call_register(weir_store *store, caller *self, answer *out)
{
    uint64_t expires = 0;
    const char *id = workers[draw(self, N_WORKERS)];
    int role = id[0] == 'r' || draw(self, 30) == 0 ? WEIR_STORE_GENERATOR : WEIR_STORE_TRAINER;
    const char *model = models[draw(self, 12) == 0];
    uint32_t ttl_s = draw(self, 4) == 0 ? 1 + draw(self, 5) : 60;
    say_status(out,
               weir_store_register_worker(store, id, role, model, ttl_s, self->now_ms, &expires));
    say(out, " %llu", (unsigned long long)expires);
}

static void call_create(weir_store *store, caller *self, answer *out)
{
    char key[8];
    snprintf(key, sizeof(key), "k%u", draw(self, 6));
    const weir_store_version *version = NULL;
    weir_store_version request = { .model = models[draw(self, 10) == 0],
                                   .has_number = draw(self, 8) != 0,
                                   .number = draw(self, 4),
                                   .idempotency_key = key,
                                   .payload = 1 + (draw(self, 10) == 0),
                                   .slots = slots_abc,
                                   .n_slots = 1 + draw(self, 3),
                                   .run = runs[draw(self, N_RUNS)],
                                   .attempt = draw(self, 4) == 0 ? draw(self, 3) : 0,
                                   .trace_id = draw(self, 2) != 0 ? "00ff" : NULL,
                                   .layout_signature = draw(self, 2) != 0 ? "lay" : NULL };
    if (request.payload == WEIR_STORE_XOR_DELTA)
        request.base_uid = any_uid(self);
    weir_status status =
        weir_store_create_version(store, &request, self->salt++, self->now_ms, &version);
    say_status(out, status);
    if (status == WEIR_OK)
        say_version(out, version);
    if (status == WEIR_OK)
        snprintf(self->uids[self->n_uids++ % 64], 9, "%s", version->uid);
    self->n_uids = self->n_uids > 63 ? 0 : self->n_uids;
}

static void call_shard(weir_store *store, caller *self, answer *out)
{
    const weir_store_version *version = NULL;
    weir_store_shard shard = { .version_uid = any_uid(self),
                               .slot = slots_abc[draw(self, 3)],
                               .worker_id = workers[draw(self, N_WORKERS)],
                               .n_tensors = draw(self, 15) == 0,
                               .manifest_digest = "d",
                               .manifest_endpoint = "e",
                               .transport = "t" };
    bool deleted = false;
    if (draw(self, 5) == 0) {
        say_status(out, weir_store_delete_shard(store, shard.version_uid, shard.slot,
                                                shard.worker_id, self->now_ms, &deleted));
        say(out, " %d", deleted);
        return;
    }
    weir_status status = weir_store_create_shard(store, &shard, self->now_ms, &version);
    say_status(out, status);
    if (status == WEIR_OK)
        say_version(out, version);
}

static void call_publish(weir_store *store, caller *self, answer *out)
{
    static const char *const contents[] = { "", "one", "other" };
    const weir_store_version *version = NULL;
    const weir_store_version request = { .model = models[draw(self, 10) == 0],
                                         .has_number = true,
                                         .number = draw(self, 3),
                                         .payload = WEIR_STORE_FULL_TENSOR,
                                         .slots = slots_abc,
                                         .n_slots = 2 + (draw(self, 6) == 0),
                                         .run = "run",
                                         .trace_id = draw(self, 2) != 0 ? "00ff" : NULL };
    const weir_store_shard shard = { .slot = slots_abc[draw(self, 3)],
                                     .worker_id = workers[draw(self, N_WORKERS)],
                                     .content = contents[draw(self, 3)] };
    weir_status status =
        weir_store_publish_shard(store, &request, &shard, self->salt++, self->now_ms, &version);
    say_status(out, status);
    if (status != WEIR_OK)
        return;
    say_version(out, version);
    snprintf(self->uids[self->n_uids++ % 64], 9, "%s", version->uid);
    self->n_uids = self->n_uids > 63 ? 0 : self->n_uids;
}

static void call_end(weir_store *store, caller *self, answer *out)
{
    const weir_store_version *version = NULL;
    const char *uid = any_uid(self);
    weir_status status = draw(self, 2) != 0
                             ? weir_store_delete_version(store, uid, self->now_ms, &version)
                             : weir_store_abort_version(store, uid, workers[draw(self, N_WORKERS)],
                                                        draw(self, 2) != 0 ? "rank 1 died" : "",
                                                        self->now_ms, &version);
    say_status(out, status);
    if (status == WEIR_OK)
        say_version(out, version);
}

static void call_lease(weir_store *store, caller *self, answer *out)
{
    weir_store_lease lease = { .expires_ms = 0 };
    const char *uid = any_uid(self), *worker = workers[draw(self, N_WORKERS)];
    uint32_t ttl_s = 1 + draw(self, 20);
    weir_status status = weir_store_register_lease(store, uid, worker, ttl_s, self->now_ms, &lease);
    say_status(out, status);
    if (status != WEIR_OK || draw(self, 2) != 0)
        return;
    bool deleted = false;
    say_status(out,
               weir_store_delete_lease(store, uid, lease.lease_id, workers[draw(self, N_WORKERS)],
                                       self->now_ms, &deleted));
    say(out, " %s %d", lease.lease_id, deleted);
}

static void call_acquire(weir_store *store, caller *self, answer *out)
{
    const char *avoid[] = { workers[draw(self, N_WORKERS)] };
    weir_store_wish wish = { .model = models[draw(self, 10) == 0],
                             .run = runs[draw(self, N_RUNS)],
                             .worker_id = workers[3 + draw(self, 3)],
                             .lowest = draw(self, 3),
                             .highest = draw(self, 2) != 0 ? UINT64_MAX : draw(self, 4),
                             .but_not_uid = draw(self, 4) == 0 ? any_uid(self) : "",
                             .held_uid = draw(self, 4) == 0 ? any_uid(self) : "",
                             .host = draw(self, 2) != 0 ? "h1" : "h2",
                             .part = draw(self, 4) != 0 ? "part" : "",
                             .avoid = avoid,
                             .n_avoid = draw(self, 4) == 0,
                             .ttl_s = 1 + draw(self, 20) };
    weir_store_grant grant = { 0 };
    weir_status status = weir_store_acquire(store, &wish, draw(self, 4) != 0, self->now_ms, &grant);
    say_status(out, status);
    if (status < 0)
        return;
    say(out, " %d %llu %zu", grant.has_trainer, (unsigned long long)grant.newest, grant.n_missing);
    for (size_t i = 0; i < grant.n_missing; i++)
        say(out, " -%s", grant.missing[i]);
    for (size_t i = 0; i < grant.n_shards; i++)
        say(out, " %s=%s", grant.shards[i]->slot, grant.shards[i]->worker_id);
    if (grant.version != NULL)
        say_version(out, grant.version);
    if (grant.awaited != NULL)
        say_version(out, grant.awaited);
    if (grant.peer != NULL)
        say(out, " peer %s %s %u", grant.peer->worker_id, grant.peer_host, grant.n_peer_readers);
}

static void call_source(weir_store *store, caller *self, answer *out)
{
    const char *id = workers[draw(self, N_WORKERS)];
    weir_store_source source = { .source_id = draw(self, 6) == 0 ? "s2" : "s1",
                                 .worker_id = id,
                                 .model = models[draw(self, 12) == 0],
                                 .rank = draw(self, 2),
                                 .status = WEIR_STORE_SOURCE_READY,
                                 .has_step = draw(self, 2) != 0,
                                 .step = draw(self, 3),
                                 .layout_signature = draw(self, 3) == 0 ? "lay" : NULL,
                                 .identity = "identity",
                                 .n_identity = draw(self, 9),
                                 .run = runs[draw(self, N_RUNS)],
                                 .role = id[0] == 'r' ? "inference_replica" : "trainer",
                                 .version_uid = any_uid(self),
                                 .endpoint = "h:1",
                                 .host = draw(self, 2) != 0 ? "h1" : "h2",
                                 .part = id[0] == 'r' ? "part" : "" };
    if (id[0] == 'm')
        source.role = source.run = source.version_uid = NULL;
    say_status(out, draw(self, 3) == 0 ? weir_store_update_source(
                                             store, source.source_id, id,
                                             (weir_store_source_status)draw(self, 4), self->now_ms)
                                       : weir_store_publish_source(store, &source, self->now_ms));
}

static void call_word(weir_store *store, caller *self, answer *out)
{
    const weir_store_span spans[] = { { "transfer", 5, 6, NULL, 0 },
                                      { "read", 7, 8, "rank-1", 9 } };
    weir_store_word word = { .worker_id = workers[draw(self, N_WORKERS)],
                             .run = runs[draw(self, N_RUNS)],
                             .role = "inference_replica",
                             .number = draw(self, 100),
                             .version_uid = any_uid(self),
                             .status = -(int)draw(self, 3),
                             .text = "ERR_LAYOUT: no",
                             .spans = spans,
                             .n_spans = draw(self, 3) };
    say_status(out, weir_store_put_word(store, models[draw(self, 10) == 0], &word, self->now_ms));
}

static void make_call(weir_store *store, caller *self, answer *out)
{
    static void (*const calls[])(weir_store *, caller *, answer *) = {
        call_register, call_register, call_create, call_shard,   call_shard,
        call_shard,    call_shard,    call_end,    call_lease,   call_acquire,
        call_source,   call_source,   call_word,   call_publish, call_publish,
    };
    static const uint32_t steps_ms[] = { 0, 0, 0, 1, 1, 500, 4000 };
    out->n = 0;
    out->text[0] = '\0';
    self->now_ms += draw(self, 300) == 0 ? HOUR : steps_ms[draw(self, 7)];
    uint32_t which = draw(self, sizeof(calls) / sizeof(calls[0]) + 1);
    if (which == sizeof(calls) / sizeof(calls[0])) {
        weir_store_sweep(store, self->now_ms);
        say(out, "sweep");
    } else {
        calls[which](store, self, out);
    }
    for (size_t i = 0; i < 2; i++)
        say(out, " r%llu", (unsigned long long)weir_store_revision(store, models[i]));
    weir_store_totals totals = weir_store_count(store);
    say(out, " %zu %zu %zu %zu %zu %zu", totals.n_workers, totals.n_versions, totals.n_shards,
        totals.n_leases, totals.n_sources, totals.n_words);
}

/* ---- properties ------------------------------------------------------------------------------*/

static weir_store *copy_of(const weir_store *store)
{
    unsigned char *bytes, *again;
    size_t n, n_again;
    weir_store *copy = NULL;
    const weir_store_options options = { 0 };
    assert_int_equal(weir_store_save(store, &bytes, &n), WEIR_OK);
    assert_int_equal(weir_store_load(&options, bytes, n, &copy), WEIR_OK);
    assert_int_equal(weir_store_save(copy, &again, &n_again), WEIR_OK);
    assert_int_equal(n, n_again);
    assert_memory_equal(bytes, again, n);
    weir_free(bytes);
    weir_free(again);
    return copy;
}

static void expect_same_bytes(const weir_store *a, const weir_store *b)
{
    unsigned char *bytes_a, *bytes_b;
    size_t n_a, n_b;
    assert_int_equal(weir_store_save(a, &bytes_a, &n_a), WEIR_OK);
    assert_int_equal(weir_store_save(b, &bytes_b, &n_b), WEIR_OK);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(bytes_a, bytes_b, n_a);
    weir_free(bytes_a);
    weir_free(bytes_b);
}

static void test_a_copy_answers_as_the_first_does(void **state)
{
    (void)state;
    static answer said, said_by_copy;
    size_t n_ok = 0, n_calls = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        caller self = { .random = seed * 0x9E3779B97F4A7C15ull, .now_ms = NOW };
        const weir_store_options options = { 0 };
        weir_store *store = NULL;
        assert_int_equal(weir_store_open(&options, &store), WEIR_OK);
        weir_store *copy = copy_of(store);
        for (int i = 0; i < 600; i++, n_calls++) {
            caller again = self;
            make_call(store, &self, &said);
            make_call(copy, &again, &said_by_copy);
            assert_string_equal(said_by_copy.text, said.text);
            assert_memory_equal(&again, &self, sizeof(self));
            n_ok += said.text[0] == '0';
            if (draw(&self, 40) == 0) {
                expect_same_bytes(store, copy);
                weir_store_close(copy);
                copy = copy_of(store);
            }
        }
        expect_same_bytes(store, copy);
        weir_store_close(copy);
        weir_store_close(store);
    }
    assert_true(n_ok > n_calls / 4); /* most of what is drawn means something */
    assert_true(n_ok < n_calls);
}

static bool changes_nothing(const char *text)
{
    return text[0] == '-'; /* a refusal */
}

static void test_a_call_that_fails_changes_nothing(void **state)
{
    static answer said;
    caller self = { .random = 77, .now_ms = NOW };
    for (int i = 0; i < 6000; i++) {
        unsigned char *before, *after;
        size_t n_before, n_after;
        assert_int_equal(weir_store_save(*state, &before, &n_before), WEIR_OK);
        make_call(*state, &self, &said);
        assert_int_equal(weir_store_save(*state, &after, &n_after), WEIR_OK);
        if (changes_nothing(said.text)) {
            assert_int_equal(n_before, n_after);
            assert_memory_equal(before, after, n_before);
        }
        weir_free(before);
        weir_free(after);
    }
}

/* A store with something of everything. */
static void fill(weir_store *store)
{
    static answer said;
    caller self = { .random = 4711, .now_ms = NOW };
    for (int i = 0; i < 300; i++)
        make_call(store, &self, &said);
}

static void test_bytes_that_no_store_wrote_are_refused(void **state)
{
    unsigned char *bytes;
    size_t n;
    weir_store *copy = NULL;
    const weir_store_options options = { 0 };
    fill(*state);
    assert_int_equal(weir_store_save(*state, &bytes, &n), WEIR_OK);
    assert_int_equal(weir_store_load(&options, bytes, n - 1, &copy), WEIR_ERR_FORMAT);
    assert_int_equal(weir_store_load(&options, bytes, 0, &copy), WEIR_ERR_FORMAT);
    expect_refusal(weir_store_load(&options, (const unsigned char *)"\x08\x02", 2, &copy),
                   WEIR_ERR_UNSUPPORTED, "a directory's snapshot has format 2, this Weir knows 1");
    size_t n_refused = 0;
    for (size_t i = 0; i < n; i += 7) { /* every one is loaded whole or refused */
        bytes[i] ^= 0x11;
        weir_status status = weir_store_load(&options, bytes, n, &copy);
        bytes[i] ^= 0x11;
        n_refused += status != WEIR_OK;
        if (status == WEIR_OK)
            weir_store_close(copy);
        else
            assert_true(status == WEIR_ERR_FORMAT || status == WEIR_ERR_UNSUPPORTED);
    }
    assert_true(n_refused > 0);
    weir_free(bytes);
}

static void test_every_failed_allocation_is_survived(void **state)
{
    unsigned char *bytes = NULL, *saved;
    size_t n;
    weir_store *copy = NULL;
    const weir_store_options options = { 0 };
    fill(*state);
    assert_int_equal(weir_store_save(*state, &bytes, &n), WEIR_OK);
    weir_status status = WEIR_ERR_NO_MEMORY;
    for (uint64_t i = 1; status != WEIR_OK; i++) {
        weir_alloc_fail_at(i);
        status = weir_store_load(&options, bytes, n, &copy);
        weir_alloc_fail_at(0);
        assert_true(status == WEIR_OK || status == WEIR_ERR_NO_MEMORY);
    }
    weir_store_close(copy);
    status = WEIR_ERR_NO_MEMORY;
    for (uint64_t i = 1; status != WEIR_OK; i++) {
        size_t n_saved;
        weir_alloc_fail_at(i);
        status = weir_store_save(*state, &saved, &n_saved);
        weir_alloc_fail_at(0);
        assert_true(status == WEIR_OK || status == WEIR_ERR_NO_MEMORY);
    }
    weir_free(saved);
    weir_free(bytes);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_store, close_store)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_copy_answers_as_the_first_does),
        CASE(test_a_call_that_fails_changes_nothing),
        CASE(test_bytes_that_no_store_wrote_are_refused),
        CASE(test_every_failed_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
