/* SPDX-License-Identifier: Apache-2.0 */
/* test_group_cast.c - who stands in which broadcast group from round to round, over a stand-in. */
#include "refit/refit_rig.h"

#include "base/alloc.h"
#include "refit/cast_stand_in.h"
#include "refit/group_cast.h"
#include "refit/matched.h"

#define N_WORKERS 3u
#define N_GROUPS 3u

/* Audience 0: worker 0; 1: workers 0 and 1; 2: nobody's group is for it. */
static unsigned char sent[(WEIR_MAX_AUDIENCES + 1) * N_WORKERS] = { 1, 0, 0, 1, 1, 0, 0, 0, 1 };
static uint64_t group_bytes[N_GROUPS] = { 8, 8, 8 };
static uint32_t group_keys[N_GROUPS] = { 0, 1, 1 }, group_audiences[N_GROUPS] = { 0, 1, 1 };
static const weir_audiences audiences = { 3, N_WORKERS, sent, NULL };
static const weir_groups groups = { .n_groups = N_GROUPS,
                                    .n_buffers = 2,
                                    .n_bytes = group_bytes,
                                    .keys = group_keys,
                                    .audiences = group_audiences };

typedef struct bench {
    weir_trainer trainer;
    weir_pool *pool;
    stand_in *all;
    weir_cast *cast;
    weir_credits credits;
    weir_reader readers[4];
} bench;

static bench *open_bench(void)
{
    bench *b = calloc(1, sizeof(*b));
    assert_non_null(b);
    b->all = stand_in_make();
    b->trainer.worker.timeout_ms = RIG_TIMEOUT_MS;
    assert_ok(weir_pool_open(1, &b->pool));
    assert_ok(weir_work_open(WEIR_MEMORY_HOST, 0, b->pool, &b->trainer.work));
    weir_link link = { &stand_in_ops, &b->all->base };
    assert_ok(weir_cast_open(&b->trainer, &link, &groups, &audiences, &b->cast));
    b->credits = (weir_credits){ .readers = b->readers, .n_workers = N_WORKERS };
    return b;
}

static void close_bench(bench *b)
{
    weir_cast_close(b->cast);
    for (size_t i = 0; i < b->all->n_halls; i++) /* each as often as it was joined */
        assert_int_equal(b->all->halls[i]->n_left, b->all->halls[i]->n_joined);
    stand_in_drop(b->all);
    weir_work_close(b->trainer.work);
    weir_pool_close(b->pool);
    free(b);
}

static void add(bench *b, const char *id, uint32_t worker)
{
    weir_reader *reader = &b->readers[b->credits.n_readers++];
    *reader = (weir_reader){ .worker = worker, .member = true, .fresh = true };
    snprintf(reader->id, sizeof(reader->id), "%s", id);
}

static weir_status gather(bench *b)
{
    weir_status status = weir_cast_gather(b->cast, &b->credits);
    weir_cast_sweep(b->cast);
    return status;
}

/* Where `reader` stands in `audience`; NULL: nowhere. The next call forgets it. */
static const weir_membership *place(bench *b, const char *reader, uint32_t audience)
{
    size_t n;
    const weir_membership *told = weir_cast_memberships(b->cast, reader, &n);
    for (size_t i = 0; i < n; i++) {
        if (told[i].audience == audience)
            return &told[i];
    }
    return NULL;
}

/* The other ends of all groups, one reader each: what is not joined yet is joined. */
typedef struct ends {
    weir_matched *matched[4][2];
} ends;

static void join_ends(bench *b, ends *e)
{
    for (size_t r = 0; r < b->credits.n_readers; r++) {
        for (uint32_t a = 0; a < 2; a++) {
            const weir_membership *found = place(b, b->readers[r].id, a);
            if (found == NULL ||
                (e->matched[r][a] != NULL &&
                 memcmp(weir_matched_key(e->matched[r][a]), found->key, WEIR_GROUP_KEY_BYTES) == 0))
                continue;
            weir_matched_close(e->matched[r][a], true);
            weir_matched_options options = { .link = { &stand_in_ops, &b->all->base },
                                             .work = b->trainer.work,
                                             .key = found->key,
                                             .rank = found->position,
                                             .n_ranks = found->n_members,
                                             .who = "a reader" };
            assert_ok(weir_matched_open(&options, &e->matched[r][a]));
        }
    }
}

static void leave_ends(ends *e)
{
    for (size_t i = 0; i < 8; i++)
        weir_matched_close(e->matched[i / 2][i % 2], true);
}

static uint64_t key_of(bench *b, const char *reader, uint32_t audience)
{
    uint64_t key;
    const weir_membership *found = place(b, reader, audience);
    assert_non_null(found);
    memcpy(&key, found->key, sizeof(key));
    return key;
}

/* ---- members ---------------------------------------------------------------------------------*/

static void readers_stand_by_name_in_the_groups_of_their_worker(void **state)
{
    (void)state;
    bench *b = open_bench();
    add(b, "b-1", 1);
    add(b, "a-0", 0);
    add(b, "c-0", 0);
    add(b, "d-2", 2);
    assert_ok(gather(b));
    assert_int_equal(place(b, "a-0", 0)->position, 1);
    assert_int_equal(place(b, "c-0", 0)->position, 2);
    assert_int_equal(place(b, "c-0", 0)->n_members, 3);
    assert_null(place(b, "b-1", 0));
    assert_int_equal(place(b, "a-0", 1)->position, 1);
    assert_int_equal(place(b, "b-1", 1)->position, 2);
    assert_int_equal(place(b, "c-0", 1)->position, 3);
    assert_int_equal(place(b, "c-0", 1)->n_members, 4);
    assert_null(place(b, "d-2", 2)); /* no group is for that audience: nobody stands in it */
    assert_null(place(b, "nobody", 0));
    assert_true(key_of(b, "a-0", 0) != key_of(b, "a-0", 1));
    close_bench(b);
}

static void the_same_members_make_no_key_no_group_and_allocate_nothing(void **state)
{
    (void)state;
    bench *b = open_bench();
    ends e = { 0 };
    add(b, "a", 0);
    add(b, "b", 1);
    assert_ok(gather(b));
    assert_int_equal(weir_cast_joined(b->cast, RIG_TIMEOUT_MS), WEIR_IN_PROGRESS);
    join_ends(b, &e);
    assert_ok(weir_cast_joined(b->cast, RIG_TIMEOUT_MS));
    uint64_t keys[2] = { key_of(b, "a", 0), key_of(b, "a", 1) }, n_keys = b->all->n_keys;
    assert_int_equal(b->trainer.worker.counters.connections, 2);
    b->readers[0].fresh = b->readers[1].fresh = false;
    uint64_t before = weir_alloc_count();
    assert_ok(gather(b));
    assert_ok(weir_cast_joined(b->cast, RIG_TIMEOUT_MS));
    assert_int_equal(key_of(b, "a", 0), keys[0]);
    assert_int_equal(key_of(b, "a", 1), keys[1]);
    assert_int_equal(weir_alloc_count(), before);
    assert_int_equal(b->all->n_keys, n_keys);
    assert_int_equal(b->trainer.worker.counters.connections, 2);
    leave_ends(&e);
    close_bench(b);
}

static void a_fresh_reader_changes_the_keys_of_its_own_groups_alone(void **state)
{
    (void)state;
    bench *b = open_bench();
    ends e = { 0 };
    add(b, "a", 0);
    add(b, "b", 1);
    assert_ok(gather(b));
    join_ends(b, &e);
    assert_ok(weir_cast_joined(b->cast, RIG_TIMEOUT_MS));
    uint64_t kept = key_of(b, "a", 0), changed = key_of(b, "a", 1);
    b->readers[0].fresh = false; /* but b has lost its groups */
    assert_ok(gather(b));
    assert_int_equal(key_of(b, "a", 0), kept);
    assert_true(key_of(b, "a", 1) != changed);
    assert_int_equal(key_of(b, "b", 1), key_of(b, "a", 1));
    assert_int_equal(weir_cast_joined(b->cast, RIG_TIMEOUT_MS), WEIR_IN_PROGRESS);
    join_ends(b, &e);
    assert_ok(weir_cast_joined(b->cast, RIG_TIMEOUT_MS));
    leave_ends(&e);
    close_bench(b);
}

static void who_comes_or_goes_changes_the_groups_it_is_in(void **state)
{
    (void)state;
    bench *b = open_bench();
    ends e = { 0 };
    add(b, "a", 0);
    add(b, "b", 1);
    assert_ok(gather(b));
    join_ends(b, &e);
    assert_ok(weir_cast_joined(b->cast, RIG_TIMEOUT_MS));
    uint64_t kept = key_of(b, "a", 0), changed = key_of(b, "a", 1);
    b->readers[0].fresh = b->readers[1].fresh = false;
    b->readers[1].member = false; /* it holds the version */
    assert_ok(gather(b));
    assert_int_equal(key_of(b, "a", 0), kept);
    assert_true(key_of(b, "a", 1) != changed);
    assert_int_equal(place(b, "a", 1)->n_members, 2);
    assert_null(place(b, "b", 1));
    b->readers[0].left = true;
    assert_ok(gather(b));
    assert_null(place(b, "a", 0)); /* nobody is left: there is no group to join */
    assert_ok(weir_cast_joined(b->cast, RIG_TIMEOUT_MS));
    assert_ok(weir_cast_send(b->cast, 0, NULL));
    assert_ok(weir_cast_sent(b->cast, 0));
    leave_ends(&e);
    close_bench(b);
}

static void groups_that_were_left_are_closed_by_the_sweep(void **state)
{
    (void)state;
    bench *b = open_bench();
    ends e = { 0 };
    add(b, "a", 0);
    assert_ok(gather(b));
    join_ends(b, &e);
    assert_ok(weir_cast_joined(b->cast, RIG_TIMEOUT_MS));
    assert_ok(weir_cast_gather(b->cast, &b->credits)); /* it is fresh: both groups are left */
    assert_int_equal(b->all->n_aborted, 0);
    weir_cast_sweep(b->cast);
    assert_int_equal(b->all->n_aborted, 2);
    assert_int_equal(b->all->begun_at_first, 2);
    weir_cast_sweep(b->cast);
    assert_int_equal(b->all->n_aborted, 2);
    leave_ends(&e);
    close_bench(b);
}

/* They take the time of one then. */
static void all_groups_begin_to_leave_before_the_first_is_closed(void **state)
{
    (void)state;
    bench *b = open_bench();
    ends e = { 0 };
    add(b, "a", 0);
    assert_ok(gather(b));
    join_ends(b, &e);
    assert_ok(weir_cast_joined(b->cast, RIG_TIMEOUT_MS));
    weir_cast_close(b->cast);
    b->cast = NULL;
    assert_int_equal(b->all->n_leaving, 2);
    assert_int_equal(b->all->begun_at_first, 2);
    assert_int_equal(b->all->n_aborted, 0);
    leave_ends(&e);
    close_bench(b);
}

/* ---- broadcasts ------------------------------------------------------------------------------*/

static void groups_go_to_their_audience_and_end_when_all_have_them(void **state)
{
    (void)state;
    bench *b = open_bench();
    ends e = { 0 };
    uint64_t out[N_GROUPS] = { 11, 22, 33 }, in[2][N_GROUPS] = { { 0 } }, ticket;
    add(b, "a", 0);
    add(b, "b", 1);
    assert_ok(gather(b));
    join_ends(b, &e);
    assert_ok(weir_cast_joined(b->cast, RIG_TIMEOUT_MS));
    for (uint32_t g = 0; g < N_GROUPS; g++)
        assert_ok(weir_cast_send(b->cast, g, &out[g]));
    assert_int_equal(weir_cast_sent(b->cast, 1), WEIR_IN_PROGRESS);
    assert_ok(weir_matched_queue(e.matched[1][1], &in[1][1], 8, &ticket));
    assert_ok(weir_matched_ended(e.matched[1][1], ticket));
    assert_int_equal(weir_cast_sent(b->cast, 1), WEIR_IN_PROGRESS); /* a has not */
    assert_ok(weir_matched_queue(e.matched[0][1], &in[0][1], 8, &ticket));
    assert_ok(weir_matched_ended(e.matched[0][1], ticket));
    assert_ok(weir_cast_sent(b->cast, 1));
    assert_int_equal(weir_cast_sent(b->cast, 0), WEIR_IN_PROGRESS); /* another group's */
    assert_int_equal(weir_cast_sent(b->cast, 2), WEIR_IN_PROGRESS);
    assert_int_equal(in[0][1], 22);
    assert_int_equal(in[1][1], 22);
    leave_ends(&e);
    close_bench(b);
}

static void a_round_that_was_aborted_leaves_no_group(void **state)
{
    (void)state;
    bench *b = open_bench();
    ends e = { 0 };
    uint64_t out = 1;
    add(b, "a", 0);
    add(b, "b", 1);
    assert_ok(gather(b));
    join_ends(b, &e);
    assert_ok(weir_cast_joined(b->cast, RIG_TIMEOUT_MS));
    uint64_t key = key_of(b, "a", 1);
    assert_ok(weir_cast_send(b->cast, 1, &out));
    weir_cast_abort(b->cast);
    assert_int_equal(b->all->n_aborted, 2);
    assert_int_equal(b->all->begun_at_first, 2);
    assert_null(place(b, "a", 1));
    assert_error(weir_matched_joined(e.matched[0][1]), WEIR_ERR_PEER_LOST, "broken");
    b->readers[0].fresh = b->readers[1].fresh = false; /* as if they had heard of nothing */
    assert_ok(gather(b));
    assert_true(key_of(b, "a", 1) != key);
    leave_ends(&e);
    close_bench(b);
}

static void a_heap_that_is_full_is_an_error(void **state)
{
    (void)state;
    bench *b = open_bench();
    weir_cast *other = NULL;
    weir_link link = { &stand_in_ops, &b->all->base };
    add(b, "a", 0);
    for (uint64_t n = 1; n <= 4; n++) {
        weir_alloc_fail_at(n);
        assert_int_equal(weir_cast_open(&b->trainer, &link, &groups, &audiences, &other),
                         WEIR_ERR_NO_MEMORY);
        weir_alloc_fail_at(0);
    }
    assert_null(other);
    for (uint64_t n = 1; n <= 2; n++) { /* what was there is kept */
        weir_alloc_fail_at(n);
        assert_int_equal(gather(b), WEIR_ERR_NO_MEMORY);
        weir_alloc_fail_at(0);
    }
    assert_ok(gather(b));
    weir_alloc_fail_at(1);
    assert_int_equal(weir_cast_joined(b->cast, RIG_TIMEOUT_MS), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    close_bench(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_stand_by_name_in_the_groups_of_their_worker),
        cmocka_unit_test(the_same_members_make_no_key_no_group_and_allocate_nothing),
        cmocka_unit_test(a_fresh_reader_changes_the_keys_of_its_own_groups_alone),
        cmocka_unit_test(who_comes_or_goes_changes_the_groups_it_is_in),
        cmocka_unit_test(groups_that_were_left_are_closed_by_the_sweep),
        cmocka_unit_test(all_groups_begin_to_leave_before_the_first_is_closed),
        cmocka_unit_test(groups_go_to_their_audience_and_end_when_all_have_them),
        cmocka_unit_test(a_round_that_was_aborted_leaves_no_group),
        cmocka_unit_test(a_heap_that_is_full_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
