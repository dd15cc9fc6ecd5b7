/* SPDX-License-Identifier: Apache-2.0 */
/* test_publish_registry.c - shards of every kind as the registry tells them to everybody. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "directory/sidecar.h"
#include "refit/publish_registry.h"

static weir_shard shard(const char *name, uint64_t rows, uint64_t lo, uint64_t hi)
{
    weir_shard made = { .name = name,
                        .dtype = WEIR_F8_E4M3,
                        .global_shape = { 2, { rows, 8 } },
                        .compile_target = WEIR_TARGET_DEEP_GEMM_FP8,
                        .compile_metadata = "{\"block_size\":[128,128]}" };
    made.box = weir_box_whole(&made.global_shape);
    made.box.lo[0] = lo;
    made.box.hi[0] = hi;
    return made;
}

static weir_tensor_registry *registry_of(const weir_published *published)
{
    char *text = NULL;
    weir_tensor_registry *registry = NULL;
    assert_int_equal(weir_published_encode(published, &text), WEIR_OK);
    assert_int_equal(weir_tensor_registry_decode(text, strlen(text), &registry), WEIR_OK);
    weir_string_free(text);
    for (size_t i = 0; i < registry->n_tensors; i++)
        assert_int_equal(weir_tensor_descriptor_check(&registry->tensors[i]), WEIR_OK);
    return registry;
}

static void whole_cut_and_boxed_shards_say_what_they_are(void **state)
{
    (void)state;
    weir_shard shards[] = { shard("a", 4, 0, 4), shard("b", 4, 1, 3), shard("c", 4, 0, 2),
                            shard("empty", 4, 4, 4) };
    shards[2].box.lo[1] = 4;
    shards[2].compile_target = WEIR_TARGET_HF_RAW;
    shards[2].dtype = WEIR_BF16;
    const weir_published published = { .shards = shards, .n_shards = 4 };
    weir_tensor_registry *registry = registry_of(&published);
    const weir_tensor_descriptor *t = registry->tensors;
    assert_int_equal(registry->n_tensors, 3);
    assert_int_equal(t[0].placement, WEIR_PLACEMENT_REPLICATE);
    assert_string_equal(t[0].dtype, "float8_e4m3fn");
    assert_string_equal(t[0].compile_target, WEIR_TARGET_DEEP_GEMM_FP8);
    assert_string_equal(t[0].compile_metadata, "{\"block_size\":[128,128]}");
    assert_int_equal(t[1].placement, WEIR_PLACEMENT_SHARD);
    assert_true(t[1].shard_axis == 0 && t[1].range_lo == 1 && t[1].range_hi == 3);
    assert_int_equal(t[2].placement, WEIR_PLACEMENT_BOX);
    assert_true(t[2].box.lo[1] == 4 && t[2].box.hi[0] == 2);
    assert_string_equal(t[2].compile_target, WEIR_TARGET_PART); /* no reader takes it for whole */
    weir_tensor_registry_close(registry);
}

static void names_that_come_again_are_numbered(void **state)
{
    (void)state;
    weir_shard shards[] = { shard("b", 4, 0, 1), shard("a", 4, 0, 4), shard("b", 4, 2, 3),
                            shard("b", 4, 3, 4) };
    for (size_t i = 0; i < 4; i++)
        shards[i].compile_target = WEIR_TARGET_HF_RAW;
    const weir_published published = { .shards = shards, .n_shards = 4 };
    weir_tensor_registry *registry = registry_of(&published);
    static const char *const names[] = { "b", "a", "b#1", "b#2" };
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(registry->tensors[i].name, names[i]);
        assert_string_equal(registry->tensors[i].compile_target,
                            i == 1 ? WEIR_TARGET_HF_RAW : WEIR_TARGET_PART);
    }
    weir_tensor_registry_close(registry);
}

static void parts_of_workers_say_whose_they_are(void **state)
{
    (void)state;
    weir_shard shards[] = { shard("a", 4, 0, 4), shard("a", 4, 0, 4) };
    shards[0].place = (weir_mesh_place){ 0, WEIR_ANY, 1 };
    shards[1].place = (weir_mesh_place){ 1, 2, WEIR_ANY };
    shards[1].compile_metadata = "{ }";
    const weir_published published = { .shards = shards, .n_shards = 2, .in_parts = true };
    weir_tensor_registry *registry = registry_of(&published);
    assert_string_equal(registry->tensors[0].compile_metadata,
                        "{\"block_size\":[128,128],\"weir_place\":[0,null,1]}");
    assert_string_equal(registry->tensors[1].compile_metadata, "{\"weir_place\":[1,2,null]}");
    assert_string_equal(registry->tensors[1].compile_target, WEIR_TARGET_DEEP_GEMM_FP8);
    weir_tensor_registry_close(registry);
}

static void experts_are_told_by_their_ids(void **state)
{
    (void)state;
    static const bool of_experts[] = { true, false };
    weir_shard shards[] = { shard("w13", 8, 2, 5), shard("norm", 4, 0, 4) };
    const weir_published published = { .shards = shards, .n_shards = 2, .of_experts = of_experts };
    weir_tensor_registry *registry = registry_of(&published);
    assert_true(registry->tensors[0].is_expert);
    assert_int_equal(registry->tensors[0].n_expert_ids, 3);
    assert_int_equal(registry->tensors[0].expert_ids[0], 2);
    assert_false(registry->tensors[1].is_expert);
    weir_tensor_registry_close(registry);
}

static void no_shards_are_a_registry_without_tensors(void **state)
{
    (void)state;
    const weir_published published = { .n_shards = 0 };
    weir_tensor_registry *registry = registry_of(&published);
    assert_int_equal(registry->n_tensors, 0);
    weir_tensor_registry_close(registry);
}

/* The sidecar's JSON of a record, parsed. */
static json_t *said_by(weir_source_record *record)
{
    static weir_sidecar_texts texts;
    assert_int_equal(weir_sidecar_write(record, &texts), WEIR_OK);
    json_t *said = json_loads(texts.json, 0, NULL);
    assert_non_null(said);
    return said;
}

static void every_version_is_written_before_the_same_text(void **state)
{
    (void)state;
    weir_shard shards[] = { shard("a \"quoted\" \\ name", 4, 0, 4) };
    const weir_published published = { .shards = shards, .n_shards = 1, .world = { 8, 1, 1, 1 } };
    weir_sidecar_registry registry = { .buffer = NULL };
    weir_source_record record = { .role = "trainer", .run = "r", .rank = 2, .n_ranks = 8 };
    char *text = NULL;
    assert_int_equal(weir_published_encode(&published, &text), WEIR_OK);
    assert_int_equal(weir_sidecar_registry_set(&registry, text), WEIR_OK);
    const char *buffer = registry.buffer;
    assert_int_equal(weir_sidecar_registry_set(&registry, text), WEIR_OK);
    assert_ptr_equal(registry.buffer, buffer);
    weir_string_free(text);
    record.registry = &registry;
    static const uint64_t versions[] = { 1, UINT64_C(4611686018427387904), 7 };
    for (size_t i = 0; i < 3; i++) {
        record.version = versions[i];
        json_t *said = said_by(&record);
        const char *document = json_string_value(json_object_get(said, "shape_registry"));
        weir_tensor_registry *read = NULL;
        assert_int_equal(weir_tensor_registry_decode(document, strlen(document), &read), WEIR_OK);
        assert_true(read->version == versions[i]);
        assert_int_equal(read->world.fsdp, 8);
        assert_string_equal(read->tensors[0].name, shards[0].name);
        weir_tensor_registry_close(read);
        json_decref(said);
    }
    weir_sidecar_registry_free(&registry);
}

static void what_is_too_long_to_travel_is_left_to_the_manifest(void **state)
{
    (void)state;
    size_t n = WEIR_SIDECAR_REGISTRY_BYTES;
    char *text = malloc(n + 64);
    weir_sidecar_registry registry = { .buffer = NULL };
    weir_source_record record = { .role = "trainer", .registry = &registry };
    int begun = sprintf(text, "{\"version\":0,\"tensors\":\"");
    memset(text + begun, 'a', n);
    strcpy(text + begun + n - 64, "\"}");
    assert_int_equal(weir_sidecar_registry_set(&registry, text), WEIR_OK);
    assert_false(registry.in_manifest);
    json_t *said = said_by(&record);
    assert_non_null(json_object_get(said, "shape_registry"));
    json_decref(said);
    strcpy(text + begun + n, "\"}");
    text[begun + n - 64] = text[begun + n - 63] = text[begun + n - 62] = 'a';
    assert_int_equal(weir_sidecar_registry_set(&registry, text), WEIR_OK);
    assert_true(registry.in_manifest);
    said = said_by(&record);
    assert_null(json_object_get(said, "shape_registry"));
    assert_string_equal(json_string_value(json_object_get(said, "registry")), "manifest");
    json_decref(said);
    assert_int_equal(weir_sidecar_registry_set(&registry, "{\"version\":1,}"), WEIR_ERR_INVALID);
    assert_true(registry.in_manifest);
    weir_sidecar_registry_free(&registry);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_cut_and_boxed_shards_say_what_they_are),
        cmocka_unit_test(names_that_come_again_are_numbered),
        cmocka_unit_test(parts_of_workers_say_whose_they_are),
        cmocka_unit_test(experts_are_told_by_their_ids),
        cmocka_unit_test(no_shards_are_a_registry_without_tensors),
        cmocka_unit_test(every_version_is_written_before_the_same_text),
        cmocka_unit_test(what_is_too_long_to_travel_is_left_to_the_manifest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
