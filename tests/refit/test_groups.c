/* SPDX-License-Identifier: Apache-2.0 */
/* test_groups.c - shards in groups that fit the buffers of a window. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit/groups.h"

#define MOST 400

/* A source of made-up jobs: what they convert does not matter here. */
typedef struct made {
    weir_source source;
    weir_shard before[MOST]; /* the shards as they were given */
    char names[MOST][32];
} made;

static made *make(size_t n_shards, size_t n_jobs)
{
    static const weir_conversion *pair;
    made *m = calloc(1, sizeof(*m));
    assert_non_null(m);
    assert_int_equal(weir_conversion_get("fp8_128x128", &pair), WEIR_OK);
    assert_int_equal(pair->n_outputs, 2);
    weir_source *source = &m->source;
    weir_arena_init(&source->arena, 0);
    source->shards = weir_arena_zeroed(&source->arena, n_shards, sizeof(*source->shards));
    source->jobs = weir_arena_zeroed(&source->arena, n_jobs, sizeof(*source->jobs));
    assert_true(source->shards != NULL && source->jobs != NULL && n_shards <= MOST);
    source->n_shards = n_shards;
    source->n_jobs = n_jobs;
    for (size_t i = 0; i < n_jobs; i++)
        source->jobs[i].args.conversion = pair;
    for (size_t s = 0; s < n_shards; s++) {
        snprintf(m->names[s], sizeof(m->names[s]), "shard-%zu", s);
        source->shards[s].name = m->names[s];
    }
    return m;
}

static void keep(made *m)
{
    memcpy(m->before, m->source.shards, m->source.n_shards * sizeof(m->before[0]));
}

static void drop(made *m)
{
    weir_arena_close(&m->source.arena);
    free(m);
}

static size_t number_of(const made *m, const weir_shard *shard)
{
    for (size_t s = 0; s < m->source.n_shards; s++) {
        if (strcmp(m->before[s].name, shard->name) == 0)
            return s;
    }
    fail_msg("%s was not given", shard->name);
    return 0;
}

/* What must hold of any cut. */
static void check_cut(const made *m, const weir_groups *groups, uint64_t buffer_bytes)
{
    const weir_source *source = &m->source;
    assert_true(groups->n_groups == 0 ||
                groups->shard_ends[groups->n_groups - 1] == source->n_shards);
    assert_true(groups->n_groups == 0 || groups->job_ends[groups->n_groups - 1] == source->n_jobs);
    assert_true(source->slot_bytes <= buffer_bytes);
    for (uint32_t g = 0; g < groups->n_groups; g++) {
        uint32_t first = weir_groups_first_shard(groups, g), end = groups->shard_ends[g];
        uint64_t free_from = 0;
        assert_true(first < end);
        for (uint32_t s = first; s < end; s++) {
            const weir_shard *shard = &source->shards[s];
            assert_int_equal(shard->region, g % groups->n_buffers);
            assert_int_equal(shard->offset % 256, 0);
            assert_true(shard->offset >= free_from);
            free_from = shard->offset + shard->n_bytes;
            assert_true(free_from <= source->slot_bytes);
            assert_true(s == first || number_of(m, shard) > number_of(m, &source->shards[s - 1]));
        }
        for (size_t i = weir_groups_first_job(groups, g); i < groups->job_ends[g]; i++) {
            for (size_t o = 0; o < 2; o++) {
                uint32_t shard = source->jobs[i].shards[o];
                assert_true(shard == WEIR_ANY || (shard >= first && shard < end));
            }
        }
    }
}

static uint32_t roll(uint64_t *seed, uint32_t n)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33) % n;
}

/* Jobs that share shards with those near them, as a share's do: weights first, then the scales. */
static made *make_random(uint64_t *seed)
{
    size_t n_parts = 1 + roll(seed, 12), n_shards = 0, n_jobs = 0;
    size_t weights[12], first_shard[12];
    for (size_t p = 0; p < n_parts; p++) {
        weights[p] = 1 + roll(seed, 8);
        first_shard[p] = n_shards;
        n_shards += 2 * weights[p];
        n_jobs += 3 * weights[p];
    }
    made *m = make(n_shards, n_jobs);
    size_t i = 0;
    for (size_t p = 0; p < n_parts; p++) {
        for (size_t k = 0; k < 3 * weights[p]; k++, i++) {
            m->source.jobs[i].shards[0] = (uint32_t)(first_shard[p] + k / 3);
            m->source.jobs[i].shards[1] = (uint32_t)(first_shard[p] + weights[p] + k / 3);
            if (k % 3 != 0 && roll(seed, 4) == 0)
                m->source.jobs[i].shards[1] = WEIR_ANY; /* another rank's */
        }
    }
    for (size_t s = 0; s < n_shards; s++)
        m->source.shards[s].n_bytes = 1 + roll(seed, 5000);
    keep(m);
    return m;
}

static void test_any_source_is_cut_into_groups_that_fit(void **state)
{
    (void)state;
    for (uint64_t run = 0; run < 2000; run++) {
        uint64_t seed = run * 7919 + 1;
        made *m = make_random(&seed);
        unsigned n_buffers = 1 + roll(&seed, 4);
        uint64_t buffer_bytes = 11000 + roll(&seed, 20000);
        weir_groups groups;
        assert_int_equal(weir_groups_cut(&m->source, NULL, buffer_bytes, n_buffers, &groups),
                         WEIR_OK);
        check_cut(m, &groups, buffer_bytes);
        drop(m);
    }
}

static void test_jobs_follow_their_shards(void **state)
{
    (void)state;
    made *m = make(4, 2);
    uint64_t sizes[4] = { 1000, 1000, 8, 8 }; /* weights, weights, scales, scales */
    for (size_t s = 0; s < 4; s++)
        m->source.shards[s].n_bytes = sizes[s];
    m->source.jobs[0].shards[0] = 0, m->source.jobs[0].shards[1] = 2;
    m->source.jobs[1].shards[0] = 1, m->source.jobs[1].shards[1] = 3;
    keep(m);
    weir_groups groups;
    assert_int_equal(weir_groups_cut(&m->source, NULL, 1300, 2, &groups), WEIR_OK);
    check_cut(m, &groups, 1300);
    assert_int_equal(groups.n_groups, 2);
    assert_string_equal(m->source.shards[0].name, "shard-0");
    assert_string_equal(m->source.shards[1].name, "shard-2");
    assert_string_equal(m->source.shards[m->source.jobs[1].shards[0]].name, "shard-1");
    assert_string_equal(m->source.shards[m->source.jobs[1].shards[1]].name, "shard-3");
    assert_int_equal(m->source.slot_bytes, 1024 + 256);
    drop(m);
}

static void test_what_does_not_fit_is_named(void **state)
{
    (void)state;
    made *m = make(4, 3);
    for (size_t s = 0; s < 4; s++)
        m->source.shards[s].n_bytes = 600;
    m->source.jobs[0].shards[0] = 0, m->source.jobs[0].shards[1] = WEIR_ANY;
    m->source.jobs[1].shards[0] = 1, m->source.jobs[1].shards[1] = 3;
    m->source.jobs[2].shards[0] = 2, m->source.jobs[2].shards[1] = 3; /* one unit with it */
    keep(m);
    weir_groups groups;
    assert_int_equal(weir_groups_cut(&m->source, NULL, 2000, 2, &groups), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "shard-1: a piece of 2304 bytes"));
    assert_non_null(strstr(weir_last_error(), "a buffer of 2000 bytes"));
    drop(m);
}

static void test_padding_that_nobody_makes_takes_no_room(void **state)
{
    (void)state;
    made *m = make(3, 1);
    m->source.shards[1].n_bytes = m->source.shards[2].n_bytes = 100;
    m->source.jobs[0].shards[0] = 1, m->source.jobs[0].shards[1] = 2;
    keep(m);
    weir_groups groups;
    assert_int_equal(weir_groups_cut(&m->source, NULL, 512, 2, &groups), WEIR_OK);
    check_cut(m, &groups, 512);
    assert_int_equal(groups.n_groups, 1);
    drop(m);
    m = make(1, 0); /* nothing but padding: no group */
    keep(m);
    assert_int_equal(weir_groups_cut(&m->source, NULL, 512, 2, &groups), WEIR_OK);
    assert_int_equal(groups.n_groups, 0);
    assert_int_equal(m->source.slot_bytes, 0);
    drop(m);
}

static void test_workers_read_the_groups_of_their_part(void **state)
{
    (void)state;
    uint32_t shard_ends[2] = { 2, 3 };
    weir_groups groups = { .n_groups = 2, .n_buffers = 2, .shard_ends = shard_ends };
    weir_shard shards[3] = { { .place = { 0, WEIR_ANY, 1 }, .n_bytes = 8 },
                             { .place = { 1, WEIR_ANY, WEIR_ANY }, .n_bytes = 0 },
                             { .place = { 0, WEIR_ANY, WEIR_ANY }, .n_bytes = 8 } };
    weir_replica_mesh mesh = { .tp = 2, .ep = 1, .dp = 1, .pp = 2, .replicas = 1 };
    weir_arena arena;
    weir_arena_init(&arena, 0);
    const unsigned char *reads = weir_groups_readers(&groups, shards, &mesh, &arena);
    const unsigned char expected[3 * 4] = { 0, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0 };
    assert_non_null(reads);
    assert_memory_equal(reads, expected, sizeof(expected)); /* of padding nobody reads a byte */
    weir_arena_close(&arena);
}

static void test_a_heap_that_is_full_is_an_error(void **state)
{
    (void)state;
    made *m = make(2, 1);
    m->source.shards[0].n_bytes = m->source.shards[1].n_bytes = 100;
    m->source.jobs[0].shards[1] = 1;
    keep(m);
    m->source.arena.cap_bytes = m->source.arena.used_bytes + 16;
    weir_groups groups;
    assert_int_equal(weir_groups_cut(&m->source, NULL, 512, 2, &groups), WEIR_ERR_NO_MEMORY);
    drop(m);
}

/* ---- groups that are broadcast ---------------------------------------------------------------*/

/* Units of a random source get keys and audiences of two workers; some shards are for nobody. */
static void make_order(made *m, uint64_t *seed, weir_audiences *out)
{
    static const weir_replica_mesh mesh = { .tp = 2 };
    weir_source *source = &m->source;
    for (size_t s = 0; s < source->n_shards; s++) {
        uint32_t t = roll(seed, 3);
        source->shards[s].place = (weir_mesh_place){ 0, 0, t == 2 ? WEIR_ANY : t };
        m->before[s].place = source->shards[s].place;
    }
    for (size_t i = 0; i < source->n_jobs; i++) {
        source->jobs[i].key = roll(seed, 3);
        source->jobs[i].number = (uint32_t)i;
    }
    assert_int_equal(
        weir_audiences_find(source->shards, source->n_shards, &mesh, &source->arena, out), WEIR_OK);
}

static void test_groups_that_are_broadcast_have_one_key_and_one_audience(void **state)
{
    (void)state;
    for (uint64_t run = 0; run < 2000; run++) {
        uint64_t seed = run * 104729 + 3;
        made *m = make_random(&seed);
        weir_audiences audiences;
        weir_groups groups;
        make_order(m, &seed, &audiences);
        uint64_t buffer_bytes = 100000 + roll(&seed, 100000);
        assert_int_equal(weir_groups_cut(&m->source, &audiences, buffer_bytes, 2, &groups),
                         WEIR_OK);
        check_cut(m, &groups, buffer_bytes);
        for (uint32_t g = 0; g < groups.n_groups; g++) {
            const unsigned char *row = weir_audiences_row(&audiences, groups.audiences[g]);
            uint64_t end = 0;
            if (g > 0)
                assert_true(groups.keys[g] > groups.keys[g - 1] ||
                            (groups.keys[g] == groups.keys[g - 1] &&
                             groups.audiences[g] >= groups.audiences[g - 1]));
            for (uint32_t s = weir_groups_first_shard(&groups, g); s < groups.shard_ends[g]; s++) {
                const weir_shard *shard = &m->source.shards[s];
                end = shard->offset + shard->n_bytes;
                assert_true(shard->place.t == WEIR_ANY ? row[0] && row[1] : row[shard->place.t]);
            }
            assert_int_equal(groups.n_bytes[g], end);
        }
        drop(m);
    }
}

/* Two tensors of a layer behind one outside, each with a piece for either worker. */
static void test_what_is_outside_the_layers_goes_first_and_like_goes_with_like(void **state)
{
    (void)state;
    static const weir_replica_mesh mesh = { .tp = 2 };
    made *m = make(6, 6);
    for (size_t s = 0; s < 6; s++) {
        m->source.shards[s].n_bytes = 100;
        m->source.shards[s].place = (weir_mesh_place){ 0, 0, s % 2 };
        m->source.jobs[s].shards[0] = (uint32_t)s, m->source.jobs[s].shards[1] = WEIR_ANY;
        m->source.jobs[s].key = s < 4 ? 7 : 2;
        m->source.jobs[s].number = (uint32_t)s;
    }
    keep(m);
    weir_audiences audiences;
    weir_groups groups;
    assert_int_equal(weir_audiences_find(m->source.shards, 6, &mesh, &m->source.arena, &audiences),
                     WEIR_OK);
    assert_int_equal(weir_groups_cut(&m->source, &audiences, 4096, 2, &groups), WEIR_OK);
    check_cut(m, &groups, 4096);
    const uint32_t keys[] = { 2, 2, 7, 7 }, ends[] = { 1, 2, 4, 6 }, of[] = { 0, 1, 0, 1 };
    const uint64_t n_bytes[] = { 100, 100, 356, 356 };
    const char *const names[] = {
        "shard-4", "shard-5", "shard-0", "shard-2", "shard-1", "shard-3"
    };
    assert_int_equal(groups.n_groups, 4);
    assert_memory_equal(groups.keys, keys, sizeof(keys));
    assert_memory_equal(groups.audiences, of, sizeof(of));
    assert_memory_equal(groups.shard_ends, ends, sizeof(ends));
    assert_memory_equal(groups.n_bytes, n_bytes, sizeof(n_bytes));
    for (size_t i = 0; i < 6; i++) {
        assert_string_equal(m->source.shards[i].name, names[i]);
        assert_int_equal(m->source.jobs[i].shards[0], i);
        assert_int_equal(m->source.jobs[i].number, names[i][6] - '0'); /* they moved with them */
    }
    const unsigned char *sent = weir_groups_receivers(&groups, &audiences, &m->source.arena);
    const unsigned char expected[5 * 2] = { 1, 0, 0, 1, 1, 0, 0, 1, 1, 1 };
    assert_non_null(sent);
    assert_memory_equal(sent, expected, sizeof(expected));
    drop(m);
}

/* Twelve pieces of which ten fit: what is read fills its buffers, what is broadcast is shared out.
 */
static void test_groups_that_are_broadcast_are_of_like_size(void **state)
{
    (void)state;
    static const weir_replica_mesh mesh = { .tp = 1 };
    static const size_t firsts[2] = { 10, 6 };
    for (int is_cast = 0; is_cast < 2; is_cast++) {
        made *m = make(12, 12);
        for (size_t s = 0; s < 12; s++) {
            m->source.shards[s].n_bytes = 1024;
            m->source.jobs[s].shards[0] = (uint32_t)s, m->source.jobs[s].shards[1] = WEIR_ANY;
        }
        keep(m);
        weir_audiences audiences;
        weir_groups groups;
        assert_int_equal(
            weir_audiences_find(m->source.shards, 12, &mesh, &m->source.arena, &audiences),
            WEIR_OK);
        assert_int_equal(
            weir_groups_cut(&m->source, is_cast ? &audiences : NULL, 10 * 1024, 2, &groups),
            WEIR_OK);
        check_cut(m, &groups, 10 * 1024);
        assert_int_equal(groups.n_groups, 2);
        assert_int_equal(groups.shard_ends[0], firsts[is_cast]);
        assert_int_equal(m->source.slot_bytes, firsts[is_cast] * 1024);
        drop(m);
    }
}

static void test_what_is_made_together_is_for_all_of_their_workers(void **state)
{
    (void)state;
    static const weir_replica_mesh mesh = { .tp = 3 };
    made *m = make(3, 2);
    for (size_t s = 0; s < 3; s++) {
        m->source.shards[s].n_bytes = 100;
        m->source.shards[s].place = (weir_mesh_place){ 0, 0, (uint32_t)s };
    }
    m->source.jobs[0].shards[0] = 0, m->source.jobs[0].shards[1] = 2; /* one unit for two */
    m->source.jobs[1].shards[0] = 1, m->source.jobs[1].shards[1] = WEIR_ANY;
    keep(m);
    weir_audiences audiences;
    weir_groups groups;
    assert_int_equal(weir_audiences_find(m->source.shards, 3, &mesh, &m->source.arena, &audiences),
                     WEIR_OK);
    assert_int_equal(audiences.n, 3);
    assert_int_equal(weir_groups_cut(&m->source, &audiences, 4096, 2, &groups), WEIR_OK);
    check_cut(m, &groups, 4096);
    assert_int_equal(groups.n_groups, 2);
    assert_int_equal(audiences.n, 4);
    const unsigned char both[3] = { 1, 0, 1 };
    assert_int_equal(groups.audiences[0], 1); /* of worker 1 alone: its number is lower */
    assert_memory_equal(weir_audiences_row(&audiences, groups.audiences[1]), both, 3);
    drop(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_source_is_cut_into_groups_that_fit),
        cmocka_unit_test(test_jobs_follow_their_shards),
        cmocka_unit_test(test_what_does_not_fit_is_named),
        cmocka_unit_test(test_padding_that_nobody_makes_takes_no_room),
        cmocka_unit_test(test_workers_read_the_groups_of_their_part),
        cmocka_unit_test(test_a_heap_that_is_full_is_an_error),
        cmocka_unit_test(test_groups_that_are_broadcast_have_one_key_and_one_audience),
        cmocka_unit_test(test_what_is_outside_the_layers_goes_first_and_like_goes_with_like),
        cmocka_unit_test(test_groups_that_are_broadcast_are_of_like_size),
        cmocka_unit_test(test_what_is_made_together_is_for_all_of_their_workers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
