/* SPDX-License-Identifier: Apache-2.0 */
/* test_judge.c - questions to one source: the acceptance checks of discovery by their numbers, and
 * what hostile sources say. */
#include "judge_case.h"

#define REGISTRY(tensors) "{\"version\":1,\"tensors\":[" tensors "]}"
#define FP8(name) \
    "{\"name\":\"" name "\",\"compile_target\":\"cutlass_fp8\",\"compile_metadata\":{\"a\":1}}"
#define RAW(name) "{\"name\":\"" name "\",\"global_shape\":[1],\"dtype\":\"bfloat16\"}"

static const weir_facts_route routes[] = { WEIR_ROUTE_IDENTITY, WEIR_ROUTE_SIDECAR };

static judge_source trainer(const char *rank, const char *step)
{
    return (judge_source){ .worker_id = "w",
                           .role = "trainer",
                           .rank = rank,
                           .step = step,
                           .updated_at_ms = NOW_MS - 500,
                           .by = WEIR_ROUTE_SIDECAR };
}

static void test_g10_one_tensor_drops_the_source_and_is_named(void **state)
{
    (void)state;
    static const char *const targets[] = { "cutlass_fp8" };
    for (size_t r = 0; r < 2; r++) {
        judge_case c;
        case_open(&c);
        c.given.targets = targets;
        c.given.n_targets = 1;
        judge_source source = trainer("0", "3");
        source.by = routes[r];
        source.registry = REGISTRY(FP8("a") "," RAW("norm") "," FP8("b"));
        case_add(&c, source);
        source.registry = REGISTRY(FP8("a") "," FP8("b"));
        case_add(&c, source);
        expect_refused(&c, 0,
                       "compile_target of norm: wanted cutlass_fp8, found hf_raw (1 of 3 "
                       "tensors differ)");
        expect_taken(&c, 1);
        assert_string_equal(c.judged[0].candidate.targets, "cutlass_fp8,hf_raw");
        assert_int_equal(c.judged[0].candidate.n_tensors, 3);
        weir_arena_close(&c.arena);
    }
}

static void test_g11_no_registry_is_dropped_when_tensors_are_asked_for(void **state)
{
    (void)state;
    static const char *const targets[] = { "cutlass_fp8" };
    judge_case c;
    case_open(&c);
    case_add(&c, trainer("0", "3"));
    c.given.targets = targets;
    c.given.n_targets = 1;
    case_add(&c, trainer("0", "3"));
    judge_source named = trainer("0", "3");
    named.by = WEIR_ROUTE_AGENT_NAME;
    case_add(&c, named);
    c.given.n_targets = 0;
    c.given.required_metadata = "{}";
    case_add(&c, trainer("0", "3"));
    judge_source empty = trainer("0", "3");
    empty.registry = REGISTRY("");
    case_add(&c, empty);
    expect_taken(&c, 0);
    for (size_t i = 1; i < 4; i++)
        expect_refused(&c, i, "shape_registry: wanted one, of at least one tensor, found not said");
    expect_refused(&c, 4, "shape_registry: wanted one, of at least one tensor, found 0 tensors");
    weir_arena_close(&c.arena);
}

static void test_g12_required_metadata_that_is_missing_drops(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    judge_source source = trainer("0", "3");
    source.registry = REGISTRY(FP8("a"));
    c.given.required_metadata = "{\"block_size\":[128,128]}";
    case_add(&c, source);
    source.registry = REGISTRY("{\"name\":\"a\",\"compile_metadata\":{\"block_size\":[128,64]}}");
    case_add(&c, source);
    source.registry =
        REGISTRY("{\"name\":\"a\",\"compile_metadata\":{\"more\":1,\"block_size\":[128,128]}}");
    case_add(&c, source);
    c.given.required_metadata = "{\"absent\":null}"; /* what is missing counts as null */
    case_add(&c, source);
    expect_refused(&c, 0, "compile_metadata.block_size of a: wanted [128,128], found null");
    expect_refused(&c, 1, "compile_metadata.block_size of a: wanted [128,128], found [128,64]");
    expect_taken(&c, 2);
    expect_taken(&c, 3);
    weir_arena_close(&c.arena);
}

static void test_every_required_key_is_asked_for_however_many_there_are(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    judge_source source = trainer("0", "3");
    source.registry = REGISTRY(
        "{\"name\":\"a\",\"compile_metadata\":{\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1}}");
    c.given.required_metadata = "{\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":2}";
    case_add(&c, source);
    expect_refused(&c, 0, "compile_metadata.f of a: wanted 2, found 1");
    weir_arena_close(&c.arena);
}

static void test_g13_the_same_rank_alone(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    c.given.has_rank = true;
    c.given.rank = 2;
    static const char *const ranks[] = { "0", "1", "2", "3" };
    for (size_t i = 0; i < 4; i++)
        case_add(&c, trainer(ranks[i], "7"));
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(c.judged[i].candidate.taken, i == 2);
    expect_refused(&c, 3, "worker_rank: wanted 2, found 3");
    weir_arena_close(&c.arena);
}

static void test_g15_sidecars_and_empty_descriptors_are_no_tensors(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    case_add(&c, trainer("0", "1")); /* one tensor of 64 bytes, and the sidecar */
    assert_int_equal(c.judged[0].candidate.n_tensors, 1);
    weir_arena_close(&c.arena);
}

static void test_what_is_no_number_is_dropped_with_its_value(void **state)
{
    (void)state;
    static const struct {
        const char *rank, *step, *reason;
    } cases[] = {
        { "two", "1", "worker_rank: wanted a number, found two" },
        { "-1", "1", "worker_rank: wanted a number, found -1" },
        { "4294967296", "1", "worker_rank: wanted a number, found 4294967296" },
        { NULL, "1", "worker_rank: wanted a number, found not said" },
        { "0", "1.5", "training_step: wanted a number, found 1.5" },
        { "0", "step 3", "training_step: wanted a number, found step 3" },
        { "0", NULL, "training_step: wanted a number, found not said" },
        { "0", "99999999999999999999",
          "training_step: wanted a number, found "
          "99999999999999999999" },
    };
    for (size_t r = 0; r < 2; r++) {
        judge_case c;
        case_open(&c);
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            judge_source source = trainer(cases[i].rank, cases[i].step);
            source.by = routes[r];
            case_add(&c, source);
            expect_refused(&c, i, cases[i].reason);
        }
        weir_arena_close(&c.arena);
    }
}

static void test_roles(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    judge_source source = trainer("0", "1");
    case_add(&c, source);
    c.given.roles = WEIR_ROLES_REPLICAS;
    case_add(&c, source);
    source.role = "inference_replica";
    case_add(&c, source);
    c.given.roles = WEIR_ROLES_TRAINERS;
    case_add(&c, source);
    c.given.roles = WEIR_ROLES_ANY;
    source.role = "spectator";
    case_add(&c, source);
    expect_taken(&c, 0);
    expect_refused(&c, 1, "role: wanted inference_replica, found trainer");
    expect_taken(&c, 2);
    expect_refused(&c, 3, "role: wanted trainer, found inference_replica");
    expect_refused(&c, 4, "role: wanted trainer or inference_replica, found spectator");
    weir_arena_close(&c.arena);
}

static void test_versions_age_and_status_have_bounds(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    c.given.has_min_version = c.given.has_max_version = true;
    c.given.min_version = 5;
    c.given.max_version = 6;
    case_add(&c, trainer("0", "4"));
    case_add(&c, trainer("0", "5"));
    case_add(&c, trainer("0", "6"));
    case_add(&c, trainer("0", "7"));
    c.given.fresh_ms = 499;
    case_add(&c, trainer("0", "5"));
    judge_source stale = trainer("0", "5");
    stale.status = 3;
    stale.updated_at_ms = NOW_MS + 70; /* clocks differ a little */
    case_add(&c, stale);
    c.given.fresh_ms = 0;
    c.given.endpoint = WEIR_ENDPOINT_NIXL;
    case_add(&c, trainer("0", "5"));
    expect_refused(&c, 0, "training_step: wanted 5 to 6, found 4");
    expect_taken(&c, 1);
    expect_taken(&c, 2);
    expect_refused(&c, 3, "training_step: wanted 5 to 6, found 7");
    expect_refused(&c, 4, "age: wanted at most 0.5 s, found 0.5 s");
    expect_refused(&c, 5, "status: wanted READY, found STALE");
    expect_refused(&c, 6, "endpoint: wanted nixl, found not said");
    weir_arena_close(&c.arena);
}

static void test_routes_are_taken_in_their_order(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    judge_source source = trainer("3", "8");
    for (int by = WEIR_ROUTE_IDENTITY; by <= WEIR_ROUTE_AGENT_NAME; by++) {
        source.by = (weir_facts_route)by;
        case_add(&c, source);
        const weir_judged *judged = &c.judged[c.n - 1];
        expect_taken(&c, c.n - 1);
        assert_int_equal(judged->candidate.rank, 3);
        assert_int_equal(judged->candidate.version, 8);
    }
    weir_arena_close(&c.arena);
}

static void test_sources_without_a_mark_are_named_so(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    ModelExpress__P2p__WorkerMetadata worker;
    model_express__p2p__worker_metadata__init(&worker);
    weir_listed_source listed = { "id", "w", "m", 0, 2, NULL };
    static const char *const names[] = { "", "mx_v2", "mx_v2|trainer|rank=1", "a|b|c|d|e",
                                         "mx_v2||||" };
    for (size_t i = 0; i < 5; i++) {
        worker.agent_name = (char *)names[i];
        case_judge(&c, &listed, NULL, &worker);
        assert_false(c.judged[i].candidate.taken);
    }
    expect_refused(&c, 0, "mx_v2: wanted 1, found not said");
    expect_refused(&c, 4, "role: wanted trainer or inference_replica, found not said");
    listed.why_not = "it is gone since it was listed";
    case_judge(&c, &listed, NULL, NULL);
    expect_refused(&c, 5, "metadata: wanted an entry, found it is gone since it was listed");
    listed.model = "M";
    case_judge(&c, &listed, NULL, NULL);
    expect_refused(&c, 6, "model_name: wanted m, found M");
    weir_arena_close(&c.arena);
}

static void expect_fault(const char *registry, const char *found)
{
    static const char *const targets[] = { "hf_raw" };
    char reason[256];
    judge_case c;
    case_open(&c);
    c.given.targets = targets;
    c.given.n_targets = 1;
    judge_source source = trainer("0", "1");
    source.registry = registry;
    source.by = WEIR_ROUTE_IDENTITY;
    case_add(&c, source);
    snprintf(reason, sizeof(reason), "shape_registry: wanted one, of at least one tensor, found %s",
             found);
    assert_false(c.judged[0].candidate.taken);
    assert_memory_equal(c.judged[0].candidate.reason, reason, strlen(reason));
    weir_arena_close(&c.arena);
}

static void test_hostile_registries_are_bounded_and_said(void **state)
{
    (void)state;
    size_t n = (size_t)5 << 20;
    char *text = malloc(n + 1);
    expect_fault("", "line 1 column 0");
    expect_fault("[]", "it has no list of tensors");
    expect_fault("{\"tensors\":7}", "it has no list of tensors");
    expect_fault(REGISTRY("7"), "its tensor 0 has no name");
    expect_fault(REGISTRY(RAW("a") ",{\"name\":\"\"}"), "its tensor 1 has no name");
    expect_fault(REGISTRY("{\"name\":\"a\",\"compile_target\":1}"),
                 "its tensor 0 has a compile_target that is no text");
    expect_fault(REGISTRY("{\"name\":\"a\",\"compile_metadata\":[]}"),
                 "its tensor 0 has a compile_metadata that is no object");
    memset(text, '[', n);
    text[n] = '\0';
    expect_fault(text, "it is larger or nested deeper than a registry may be");
    for (size_t i = 0; i < n; i++)
        text[i] = i % 2 == 0 ? '0' : ',';
    memcpy(text, "[", 1);
    expect_fault(text, "it is larger or nested deeper than a registry may be");
    free(text);
}

static void test_long_texts_are_cut_between_characters(void **state)
{
    (void)state;
    char role[700];
    judge_case c;
    case_open(&c);
    for (size_t i = 0; i + 2 < sizeof(role); i += 2)
        memcpy(role + i, "\xc3\xa9", 2);
    role[0] = 'x';
    role[1] = 'y';
    role[698] = role[699] = '\0';
    memmove(role + 1, role, 698);
    role[699] = '\0';
    judge_source source = trainer("0", "1");
    source.role = role;
    source.by = WEIR_ROUTE_IDENTITY;
    case_add(&c, source);
    json_t *text = json_string(c.judged[0].candidate.reason); /* NULL for what is no UTF-8 */
    assert_non_null(text);
    json_decref(text);
    assert_non_null(strstr(c.judged[0].candidate.role, "..."));
    weir_arena_close(&c.arena);
}

static void test_wishes_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    static const char *const empty[] = { "" };
    weir_judge_wish wish;
    weir_discover_wish given = WEIR_DISCOVER_WISH_INIT;
    assert_int_equal(weir_judge_wish_open(&given, &wish), WEIR_ERR_INVALID);
    given.model = "m";
    given.targets = empty;
    given.n_targets = 1;
    assert_int_equal(weir_judge_wish_open(&given, &wish), WEIR_ERR_INVALID);
    given.n_targets = 0;
    given.has_min_version = given.has_max_version = true;
    given.min_version = 2;
    given.max_version = 1;
    assert_int_equal(weir_judge_wish_open(&given, &wish), WEIR_ERR_INVALID);
    given.max_version = 2;
    for (int i = 0; i < 3; i++) {
        static const char *const bad[] = { "[]", "{", "{\"a\":1,\"a\":1}" };
        given.required_metadata = bad[i];
        assert_int_equal(weir_judge_wish_open(&given, &wish), WEIR_ERR_INVALID);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_g10_one_tensor_drops_the_source_and_is_named),
        cmocka_unit_test(test_g11_no_registry_is_dropped_when_tensors_are_asked_for),
        cmocka_unit_test(test_g12_required_metadata_that_is_missing_drops),
        cmocka_unit_test(test_every_required_key_is_asked_for_however_many_there_are),
        cmocka_unit_test(test_g13_the_same_rank_alone),
        cmocka_unit_test(test_g15_sidecars_and_empty_descriptors_are_no_tensors),
        cmocka_unit_test(test_what_is_no_number_is_dropped_with_its_value),
        cmocka_unit_test(test_roles),
        cmocka_unit_test(test_versions_age_and_status_have_bounds),
        cmocka_unit_test(test_routes_are_taken_in_their_order),
        cmocka_unit_test(test_sources_without_a_mark_are_named_so),
        cmocka_unit_test(test_hostile_registries_are_bounded_and_said),
        cmocka_unit_test(test_long_texts_are_cut_between_characters),
        cmocka_unit_test(test_wishes_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
