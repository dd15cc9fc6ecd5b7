/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_source.c - sources: replacing, filters, order, silence. */
#include "directory/store_fixture.h"

static weir_store_source source_of(const char *worker, uint32_t rank, uint64_t step)
{
    return (weir_store_source){ .source_id = "0123456789abcdef",
                                .worker_id = worker,
                                .model = "model",
                                .accelerator = "",
                                .rank = rank,
                                .status = WEIR_STORE_SOURCE_READY,
                                .has_step = true,
                                .step = step,
                                .identity = "id",
                                .n_identity = 2,
                                .metadata = "meta",
                                .n_metadata = 4 };
}

static void publish(weir_store *store, weir_store_source source, uint64_t now_ms)
{
    assert_int_equal(weir_store_publish_source(store, &source, now_ms), WEIR_OK);
}

/* The workers that match, as one string. */
static const char *list(weir_store *store, weir_store_filter filter)
{
    static char text[256];
    const weir_store_source *sources[64];
    assert_true(weir_store_count_sources(store) <= 64);
    size_t n = weir_store_list_sources(store, &filter, sources), at = 0;
    text[0] = '\0';
    for (size_t i = 0; i < n; i++)
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%s", i ? " " : "",
                               sources[i]->worker_id);
    return text;
}

static void test_a_source_is_replaced_by_the_same_worker(void **state)
{
    publish(*state, source_of("w", 0, 1), NOW);
    weir_store_source next = source_of("w", 0, 2);
    next.layout_signature = "layout";
    publish(*state, next, NOW + 5);
    assert_int_equal(weir_store_count_sources(*state), 1);
    const weir_store_source *found = weir_store_get_source(*state, next.source_id, "w");
    assert_int_equal(found->step, 2);
    assert_int_equal(found->updated_at_ms, NOW + 5);
    assert_string_equal(found->layout_signature, "layout");
    assert_memory_equal(found->metadata, "meta", 4);
    assert_null(weir_store_get_source(*state, "other", "w"));
    assert_null(weir_store_get_source(*state, next.source_id, "other"));
}

static void test_filters_and_order(void **state)
{
    publish(*state, source_of("old", 0, 5), NOW);
    weir_store_source stepless = source_of("stepless", 3, 0);
    stepless.has_step = false;
    publish(*state, stepless, NOW + 1);
    weir_store_source other = source_of("other", 2, 9);
    other.model = "other", other.source_id = "ffff", other.status = WEIR_STORE_SOURCE_STALE;
    publish(*state, other, NOW + 5);
    publish(*state, source_of("new", 1, 7), NOW + 10);
    assert_string_equal(list(*state, (weir_store_filter){ 0 }), "new other stepless old");
    assert_string_equal(list(*state, (weir_store_filter){ .model = "model" }), "new stepless old");
    assert_string_equal(list(*state, (weir_store_filter){ .source_id = "ffff" }), "other");
    assert_string_equal(
        list(*state, (weir_store_filter){ .has_status = true, .status = WEIR_STORE_SOURCE_STALE }),
        "other");
    assert_string_equal(list(*state, (weir_store_filter){ .has_rank = true, .rank = 1 }), "new");
    assert_string_equal(list(*state, (weir_store_filter){ .has_min_step = true, .min_step = 7 }),
                        "new other");
    assert_string_equal(list(*state, (weir_store_filter){ .has_min_step = true }), "new other old");
    assert_string_equal(
        list(*state, (weir_store_filter){ .has_min_updated = true, .min_updated_at_ms = NOW + 5 }),
        "new other");
    assert_string_equal(
        list(*state, (weir_store_filter){ .model = "model", .has_limit = true, .limit = 2 }),
        "new stepless");
    assert_string_equal(list(*state, (weir_store_filter){ .has_limit = true }), "");
}

static void test_ties_are_ordered_by_step_then_worker(void **state)
{
    publish(*state, source_of("b", 0, 5), NOW);
    publish(*state, source_of("a", 1, 5), NOW);
    publish(*state, source_of("c", 2, 6), NOW);
    assert_string_equal(list(*state, (weir_store_filter){ 0 }), "c a b");
}

static void test_silence_makes_stale_and_then_deletes(void **state)
{
    const weir_store_source *source;
    weir_store_source request = source_of("w", 0, 1);
    publish(*state, request, NOW);
    weir_store_sweep(*state, NOW + 90000);
    source = weir_store_get_source(*state, request.source_id, "w");
    assert_int_equal(source->status, WEIR_STORE_SOURCE_READY);
    weir_store_sweep(*state, NOW + 90001);
    assert_int_equal(source->status, WEIR_STORE_SOURCE_STALE);
    assert_int_equal(source->updated_at_ms, NOW); /* the worker's last word */
    weir_store_sweep(*state, NOW + 90001 + HOUR);
    assert_non_null(weir_store_get_source(*state, request.source_id, "w"));
    weir_store_sweep(*state, NOW + 90001 + HOUR + 1);
    assert_null(weir_store_get_source(*state, request.source_id, "w"));
}

static void test_an_update_revives(void **state)
{
    weir_store_source request = source_of("w", 0, 1);
    publish(*state, request, NOW);
    weir_store_sweep(*state, NOW + 100000);
    assert_int_equal(weir_store_update_source(*state, request.source_id, "w",
                                              WEIR_STORE_SOURCE_READY, NOW + 200000),
                     WEIR_OK);
    weir_store_sweep(*state, NOW + 200000 + 90000);
    const weir_store_source *source = weir_store_get_source(*state, request.source_id, "w");
    assert_int_equal(source->status, WEIR_STORE_SOURCE_READY);
    assert_int_equal(source->updated_at_ms, NOW + 200000);
    expect_refusal(weir_store_update_source(*state, "nope", "w", WEIR_STORE_SOURCE_READY, NOW),
                   WEIR_ERR_NOT_FOUND, "no source 'nope' of worker 'w'");
}

static void test_the_limits_can_be_set(void **state)
{
    (void)state;
    weir_store *store;
    weir_store_options options = { .stale_after_ms = 10, .delete_after_ms = 20 };
    assert_int_equal(weir_store_open(&options, &store), WEIR_OK);
    publish(store, source_of("w", 0, 1), NOW);
    weir_store_sweep(store, NOW + 11);
    assert_string_equal(
        list(store, (weir_store_filter){ .has_status = true, .status = WEIR_STORE_SOURCE_STALE }),
        "w");
    weir_store_sweep(store, NOW + 32);
    assert_int_equal(weir_store_count_sources(store), 0);
    weir_store_close(store);
}

/* How many fit; the last one does not. */
static int fill(weir_store *store, const char *model, const char *blob, size_t n_bytes)
{
    weir_status status = WEIR_OK;
    int n = 0;
    for (; n < 50 && status == WEIR_OK; n++) {
        char id[16];
        snprintf(id, sizeof(id), "%.3s-%d", model, n);
        weir_store_source source = source_of(id, 0, 1);
        source.model = model;
        source.metadata = blob, source.n_metadata = n_bytes;
        status = weir_store_publish_source(store, &source, NOW);
    }
    assert_int_equal(status, WEIR_ERR_NO_MEMORY);
    return n - 1;
}

static void test_sources_are_bounded_in_bytes_and_one_model_leaves_room_for_others(void **state)
{
    const size_t n_bytes = (size_t)60 << 20; /* in blocks of 64 MiB */
    char *blob = calloc(1, n_bytes);
    assert_int_equal(fill(*state, "greedy", blob, n_bytes), 4);
    assert_string_equal(weir_last_error(),
                        "the directory is full: sources of model_name 'greedy' occupy 256 MiB");
    weir_store_source again = source_of("gre-3", 0, 2); /* in the place of what it said before */
    again.model = "greedy", again.metadata = blob, again.n_metadata = n_bytes;
    assert_int_equal(weir_store_check_source_room(*state, &again), WEIR_OK);
    assert_int_equal(weir_store_publish_source(*state, &again, NOW), WEIR_OK);
    assert_int_equal(fill(*state, "other", blob, n_bytes), 3);
    assert_non_null(strstr(weir_last_error(), "the directory is full: it holds 4"));
    again.n_metadata = 100;
    assert_int_equal(weir_store_publish_source(*state, &again, NOW), WEIR_OK);
    assert_int_equal(fill(*state, "third", blob, n_bytes), 1); /* what it gave back is there */
    free(blob);
}

static void test_steady_publication_takes_nothing_from_the_heap(void **state)
{
    static const char metadata[20000];
    uint64_t before = 0;
    for (uint64_t i = 0; i < 100; i++) {
        weir_store_source source = source_of("w", 0, i);
        source.metadata = metadata, source.n_metadata = sizeof(metadata) - i;
        publish(*state, source, NOW + i);
        if (i == 2)
            before = weir_alloc_count();
    }
    assert_int_equal(weir_alloc_count(), before);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_store, close_store)
    const struct CMUnitTest tests[] = {
        CASE(test_a_source_is_replaced_by_the_same_worker),
        CASE(test_filters_and_order),
        CASE(test_ties_are_ordered_by_step_then_worker),
        CASE(test_silence_makes_stale_and_then_deletes),
        CASE(test_an_update_revives),
        CASE(test_sources_are_bounded_in_bytes_and_one_model_leaves_room_for_others),
        CASE(test_steady_publication_takes_nothing_from_the_heap),
        cmocka_unit_test(test_the_limits_can_be_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
