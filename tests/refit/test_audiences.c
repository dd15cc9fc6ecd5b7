/* SPDX-License-Identifier: Apache-2.0 */
/* test_audiences.c - which workers of an engine are sent the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "refit/audiences.h"

typedef struct bench {
    weir_arena arena;
    weir_audiences found;
} bench;

static weir_status find(bench *b, const weir_shard *shards, size_t n, const weir_replica_mesh *mesh)
{
    weir_arena_init(&b->arena, 0);
    return weir_audiences_find(shards, n, mesh, &b->arena, &b->found);
}

static void expect_row(const bench *b, uint32_t audience, const char *workers)
{
    assert_int_equal(strlen(workers), b->found.n_workers);
    for (uint32_t w = 0; w < b->found.n_workers; w++)
        assert_int_equal(weir_audiences_row(&b->found, audience)[w], workers[w] == '1');
}

static void test_shards_for_the_same_workers_have_one_audience(void **state)
{
    (void)state;
    const weir_replica_mesh mesh = { .tp = 2, .pp = 2 };
    const weir_shard shards[] = {
        { .place = { 1, WEIR_ANY, WEIR_ANY }, .n_bytes = 8 },
        { .place = { WEIR_ANY, WEIR_ANY, 0 }, .n_bytes = 8 },
        { .place = { WEIR_ANY, 0, 0 }, .n_bytes = 8 }, /* said otherwise */
        { .place = { WEIR_ANY, WEIR_ANY, 1 }, .n_bytes = 0 },
        { .place = { 1, 0, WEIR_ANY }, .n_bytes = 8 },
        { .place = { WEIR_ANY, WEIR_ANY, WEIR_ANY }, .n_bytes = 8 },
    };
    const uint32_t expected[] = { 0, 1, 1, WEIR_ANY, 0, 2 };
    bench b;
    assert_int_equal(find(&b, shards, 6, &mesh), WEIR_OK);
    assert_int_equal(b.found.n, 3);
    assert_memory_equal(b.found.of_shards, expected, sizeof(expected));
    expect_row(&b, 0, "0011");
    expect_row(&b, 1, "1010");
    expect_row(&b, 2, "1111");
    weir_arena_close(&b.arena);
}

static void test_an_engine_of_one_worker_has_one_audience(void **state)
{
    (void)state;
    const weir_replica_mesh mesh = { 0 };
    const weir_shard shards[] = { { .n_bytes = 8 }, { .n_bytes = 16 } };
    bench b;
    assert_int_equal(find(&b, shards, 2, &mesh), WEIR_OK);
    assert_int_equal(b.found.n, 1);
    expect_row(&b, 0, "1");
    weir_arena_close(&b.arena);
    assert_int_equal(find(&b, shards, 0, &mesh), WEIR_OK);
    assert_int_equal(b.found.n, 0);
    weir_arena_close(&b.arena);
}

static void test_audiences_are_joined_once(void **state)
{
    (void)state;
    const weir_replica_mesh mesh = { .tp = 3 };
    const weir_shard shards[] = { { .place = { 0, 0, 0 }, .n_bytes = 8 },
                                  { .place = { 0, 0, 2 }, .n_bytes = 8 } };
    uint32_t joined = 9;
    bench b;
    assert_int_equal(find(&b, shards, 2, &mesh), WEIR_OK);
    assert_int_equal(weir_audiences_join(&b.found, 0, WEIR_ANY, &joined), WEIR_OK);
    assert_int_equal(joined, 0);
    assert_int_equal(weir_audiences_join(&b.found, 0, 1, &joined), WEIR_OK);
    assert_int_equal(joined, 2);
    expect_row(&b, 2, "101");
    assert_int_equal(weir_audiences_join(&b.found, 1, 2, &joined), WEIR_OK);
    assert_int_equal(joined, 2);
    assert_int_equal(weir_audiences_join(&b.found, WEIR_ANY, WEIR_ANY, &joined), WEIR_OK);
    assert_int_equal(joined, 3); /* of nobody */
    expect_row(&b, 3, "000");
    assert_int_equal(b.found.n, 4);
    weir_arena_close(&b.arena);
}

static void test_too_many_audiences_are_refused(void **state)
{
    (void)state;
    const weir_replica_mesh mesh = { .tp = WEIR_MAX_AUDIENCES + 1 };
    weir_shard shards[WEIR_MAX_AUDIENCES + 1];
    for (uint32_t t = 0; t <= WEIR_MAX_AUDIENCES; t++)
        shards[t] = (weir_shard){ .place = { 0, 0, t }, .n_bytes = 8 };
    uint32_t joined;
    bench b;
    assert_int_equal(find(&b, shards, WEIR_MAX_AUDIENCES, &mesh), WEIR_OK);
    assert_int_equal(b.found.n, WEIR_MAX_AUDIENCES);
    assert_int_equal(weir_audiences_join(&b.found, 0, 1, &joined), WEIR_ERR_UNSUPPORTED);
    assert_int_equal(weir_audiences_join(&b.found, 3, WEIR_ANY, &joined), WEIR_OK);
    assert_int_equal(joined, 3);
    weir_arena_close(&b.arena);
    assert_int_equal(find(&b, shards, WEIR_MAX_AUDIENCES + 1, &mesh), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "more than 64 sets of workers"));
    assert_non_null(strstr(weir_last_error(), "let the replicas read this version (PULL)"));
    weir_arena_close(&b.arena);
}

static void test_an_arena_that_is_full_is_an_error(void **state)
{
    (void)state;
    const weir_replica_mesh mesh = { .tp = 2 };
    const weir_shard shard = { .n_bytes = 8 };
    bench b;
    weir_arena_init(&b.arena, 64);
    assert_int_equal(weir_audiences_find(&shard, 1, &mesh, &b.arena, &b.found), WEIR_ERR_NO_MEMORY);
    weir_arena_close(&b.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shards_for_the_same_workers_have_one_audience),
        cmocka_unit_test(test_an_engine_of_one_worker_has_one_audience),
        cmocka_unit_test(test_audiences_are_joined_once),
        cmocka_unit_test(test_too_many_audiences_are_refused),
        cmocka_unit_test(test_an_arena_that_is_full_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
