/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "weir/descriptor.h"

static const uint32_t ids[] = { 2, 3 };

static weir_tensor_descriptor descriptor_of(const char *name)
{
    return (weir_tensor_descriptor){ .name = name,
                                     .global_shape = { 3, { 8, 4, 2 } },
                                     .dtype = "bfloat16" };
}

static void assert_encodes(const weir_tensor_descriptor *d, const char *expected)
{
    char *text = NULL;
    assert_int_equal(weir_tensor_descriptor_encode(d, &text), WEIR_OK);
    assert_string_equal(text, expected);
    weir_tensor_registry *registry = NULL;
    char *again = NULL; /* and back */
    assert_int_equal(weir_tensor_descriptor_decode(text, strlen(text), &registry), WEIR_OK);
    assert_int_equal(weir_tensor_descriptor_encode(&registry->tensors[0], &again), WEIR_OK);
    assert_string_equal(again, expected);
    weir_tensor_registry_close(registry);
    weir_string_free(again);
    weir_string_free(text);
}

static void g1_a_default_descriptor_has_five_keys(void **state)
{
    (void)state;
    weir_tensor_descriptor d = descriptor_of("a");
    assert_encodes(&d, "{\"name\":\"a\",\"global_shape\":[8,4,2],\"dtype\":\"bfloat16\","
                       "\"placement_kind\":\"REPLICATE\",\"shard_axis\":0}");
    d.compile_target = "hf_raw"; /* said or not */
    d.compile_metadata = "{ }";
    d.global_shape.rank = 0;
    assert_encodes(&d, "{\"name\":\"a\",\"global_shape\":[],\"dtype\":\"bfloat16\","
                       "\"placement_kind\":\"REPLICATE\",\"shard_axis\":0}");
}

static void keys_stand_in_the_order_of_the_wire(void **state)
{
    (void)state;
    weir_tensor_descriptor d = descriptor_of("a");
    d.placement = WEIR_PLACEMENT_SHARD;
    d.has_range = d.is_expert = true;
    d.range_lo = 2;
    d.range_hi = 4;
    d.expert_ids = ids;
    d.n_expert_ids = 2;
    d.compile_target = "cutlass_fp8";
    d.compile_metadata = "{\"z\": [1, 2], \"a\": \"x\"}";
    assert_encodes(&d, "{\"name\":\"a\",\"global_shape\":[8,4,2],\"dtype\":\"bfloat16\","
                       "\"placement_kind\":\"SHARD\",\"shard_axis\":0,\"local_shard_range\":[2,4],"
                       "\"is_expert\":true,\"expert_axis\":0,\"owned_expert_ids\":[2,3],"
                       "\"compile_target\":\"cutlass_fp8\","
                       "\"compile_metadata\":{\"z\":[1,2],\"a\":\"x\"}}");
    d = descriptor_of("a");
    d.placement = WEIR_PLACEMENT_BOX;
    d.box = (weir_box){ 3, { 0, 1, 0 }, { 8, 3, 1 } };
    assert_encodes(&d, "{\"name\":\"a\",\"global_shape\":[8,4,2],\"dtype\":\"bfloat16\","
                       "\"placement_kind\":\"BOX\",\"shard_axis\":0,"
                       "\"box\":[[0,8],[1,3],[0,1]]}");
}

static void g2_what_the_wire_leaves_out_has_its_default(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{\"name\":\"a\",\"global_shape\":[3],\"dtype\":\"torch.float32\"}",
        "{\"local_shard_range\":null,\"later\":[{}],\"dtype\":\"float32\",\"global_shape\":[3],"
        "\"name\":\"a\",\"compile_metadata\":null}",
        "{\"name\":\"a\",\"global_shape\":[3],\"dtype\":\"float32\",\"is_expert\":false,"
        "\"owned_expert_ids\":[7]}",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        weir_tensor_registry *registry = NULL;
        assert_int_equal(weir_tensor_descriptor_decode(texts[i], strlen(texts[i]), &registry),
                         WEIR_OK);
        const weir_tensor_descriptor *d = registry->tensors;
        assert_string_equal(d->dtype, "float32");
        assert_int_equal(d->placement, WEIR_PLACEMENT_REPLICATE);
        assert_int_equal(d->shard_axis, 0);
        assert_false(d->has_range);
        assert_false(d->is_expert);
        assert_int_equal(d->expert_axis, 0);
        assert_int_equal(d->n_expert_ids, 0);
        assert_string_equal(d->compile_target, "hf_raw");
        assert_string_equal(d->compile_metadata, "{}");
        weir_tensor_registry_close(registry);
    }
}

static void a_dtype_has_one_prefix_at_most(void **state)
{
    (void)state;
    const char *text = "{\"name\":\"a\",\"global_shape\":[3],\"dtype\":\"torch.torch.16\"}";
    weir_tensor_registry *registry = NULL;
    assert_int_equal(weir_tensor_descriptor_decode(text, strlen(text), &registry), WEIR_ERR_FORMAT);
    assert_string_equal(weir_last_error(), "registry: a: dtype 'torch.torch.16' is none");
}

static void a_registry_comes_back_as_it_went(void **state)
{
    (void)state;
    weir_tensor_descriptor tensors[] = { descriptor_of("b"), descriptor_of("a\"\\\xc3\xa9") };
    weir_tensor_registry registry = { 7, { 2, 0, 1, 4 }, tensors, 2 }, *read = NULL;
    char *text = NULL, *again = NULL;
    assert_int_equal(weir_tensor_registry_encode(&registry, &text), WEIR_OK);
    const char *begin = "{\"version\":7,\"trainer_world_layout\":\"fsdp:2,tp:1,pp:1,ep:4\","
                        "\"tensors\":[{\"name\":\"b\",";
    assert_memory_equal(text, begin, strlen(begin));
    assert_int_equal(weir_tensor_registry_decode(text, strlen(text), &read), WEIR_OK);
    assert_int_equal(read->version, 7);
    assert_int_equal(read->world.ep, 4);
    assert_int_equal(read->n_tensors, 2);
    assert_string_equal(read->tensors[1].name, tensors[1].name);
    assert_int_equal(weir_tensor_registry_encode(read, &again), WEIR_OK);
    assert_string_equal(text, again);
    weir_tensor_registry_close(read);
    weir_string_free(again);
    weir_string_free(text);
    weir_tensor_registry_close(NULL);
}

static void what_makes_no_sense_is_not_encoded(void **state)
{
    (void)state;
    weir_tensor_descriptor d = descriptor_of("a"), twice[] = { d, d };
    weir_tensor_registry registry = { 1, { 1, 1, 1, 1 }, twice, 2 };
    char *text = NULL;
    assert_int_equal(weir_tensor_registry_encode(&registry, &text), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "registry: tensor 'a' is there twice");
    registry.n_tensors = 1;
    registry.version = UINT64_MAX;
    assert_int_equal(weir_tensor_registry_encode(&registry, &text), WEIR_ERR_INVALID);
    registry.version = 1;
    twice[0].name = "\xff";
    assert_int_equal(weir_tensor_registry_encode(&registry, &text), WEIR_ERR_INVALID);
    d.compile_metadata = "[1]";
    assert_int_equal(weir_tensor_descriptor_encode(&d, &text), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "no JSON object"));
    d = descriptor_of("a");
    d.placement = WEIR_PLACEMENT_SHARD;
    assert_int_equal(weir_tensor_descriptor_encode(&d, &text), WEIR_ERR_INVALID);
    d = descriptor_of("a");
    d.global_shape = (weir_shape){ 1, { UINT64_MAX } };
    assert_int_equal(weir_tensor_descriptor_encode(&d, &text), WEIR_ERR_INVALID);
    assert_null(text);
}

#define HEAD "{\"name\":\"a\",\"global_shape\":[4],\"dtype\":\"float32\""

static void hostile_texts_are_refused_with_the_reason(void **state)
{
    (void)state;
    static const struct {
        const char *text, *error;
    } cases[] = {
        { "", "line" },
        { "[]", "no version" },
        { "{}", "no version" },
        { "{\"version\":-1,\"tensors\":[]}", "no version" },
        { "{\"version\":1.5,\"tensors\":[]}", "no version" },
        { "{\"version\":99999999999999999999,\"tensors\":[]}", "line" },
        { "{\"version\":1}", "tensors is not a list" },
        { "{\"version\":1,\"tensors\":{}}", "tensors is not a list" },
        { "{\"version\":1,\"tensors\":[{}]}", "tensor 0 is no object" },
        { "{\"version\":1,\"tensors\":[[[1]]]}", "tensor 0 is no object" },
        { "{\"version\":1,\"version\":1,\"tensors\":[]}", "duplicate" },
        { "{\"version\":1,\"trainer_world_layout\":3,\"tensors\":[]}", "world_layout" },
        { "{\"version\":1,\"trainer_world_layout\":\"fsdp\",\"tensors\":[]}", "'fsdp'" },
        { "{\"version\":1,\"tensors\":[" HEAD "}," HEAD "}]}", "'a' is there twice" },
        { "{\"version\":1,\"tensors\":[{\"global_shape\":[4],\"dtype\":\"f\",\"x\":1}]}", "name" },
        { "{\"version\":1,\"tensors\":[{\"name\":\"a\",\"global_shape\":4,\"dtype\":\"f\"}]}",
          "global_shape" },
        { "{\"version\":1,\"tensors\":[{\"name\":\"a\",\"global_shape\":[-4],\"dtype\":\"f\"}]}",
          "global_shape" },
        { "{\"version\":1,\"tensors\":[{\"name\":\"a\",\"global_shape\":[1,1,1,1,1,1,1,1,1],"
          "\"dtype\":\"f\"}]}",
          "global_shape" },
        { "{\"version\":1,\"tensors\":[{\"name\":\"a\",\"global_shape\":[4],\"dtype\":4}]}",
          "dtype" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"placement_kind\":\"SCATTER\"}]}",
          "placement_kind is not" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"placement_kind\":3}]}", "placement_kind is not" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"shard_axis\":8}]}", "shard_axis" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"shard_axis\":true}]}", "shard_axis" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"local_shard_range\":[1]}]}", "two numbers" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"local_shard_range\":[1,\"2\"]}]}",
          "two numbers" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"placement_kind\":\"BOX\"}]}", "box is not" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"placement_kind\":\"BOX\",\"box\":[[0]]}]}",
          "box is not" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"is_expert\":1}]}", "is_expert" },
        { "{\"version\":1,\"tensors\":[" HEAD
          ",\"is_expert\":true,\"owned_expert_ids\":[4294967296]}]}",
          "owned_expert_ids" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"is_expert\":true,\"owned_expert_ids\":7}]}",
          "owned_expert_ids" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"is_expert\":true,\"expert_axis\":9}]}",
          "expert_axis" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"compile_target\":7}]}", "compile_target" },
        { "{\"version\":1,\"tensors\":[" HEAD ",\"compile_metadata\":[]}]}", "compile_metadata" },
        { "{\"version\":1,\"tensors\":[" HEAD "}]} x", "line" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weir_tensor_registry *registry = NULL;
        weir_status status =
            weir_tensor_registry_decode(cases[i].text, strlen(cases[i].text), &registry);
        assert_int_equal(status, WEIR_ERR_FORMAT);
        assert_null(registry);
        if (strstr(weir_last_error(), cases[i].error) == NULL)
            fail_msg("case %zu: '%s' is not in '%s'", i, cases[i].error, weir_last_error());
    }
}

/* Half a text is no registry, and the byte behind it is not read. */
static void a_text_is_read_to_its_length(void **state)
{
    (void)state;
    const char *text = "{\"version\":1,\"tensors\":[" HEAD "}]}";
    size_t n = strlen(text);
    for (size_t cut = 0; cut <= n; cut++) {
        char *exact = malloc(cut > 0 ? cut : 1);
        weir_tensor_registry *registry = NULL;
        assert_non_null(exact);
        memcpy(exact, text, cut);
        assert_int_equal(weir_tensor_registry_decode(exact, cut, &registry),
                         cut == n ? WEIR_OK : WEIR_ERR_FORMAT);
        weir_tensor_registry_close(registry);
        free(exact);
    }
}

static void out_of_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    const char *text =
        "{\"version\":1,\"tensors\":[" HEAD ",\"is_expert\":true,\"owned_expert_ids\":[1]}]}";
    weir_status status = WEIR_ERR_NO_MEMORY;
    for (uint64_t at = 1; status == WEIR_ERR_NO_MEMORY; at++) {
        weir_tensor_registry *registry = NULL;
        assert_true(at < 40);
        weir_alloc_fail_at(at);
        status = weir_tensor_registry_decode(text, strlen(text), &registry);
        weir_alloc_fail_at(0);
        weir_tensor_registry_close(registry);
    }
    assert_int_equal(status, WEIR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(g1_a_default_descriptor_has_five_keys),
        cmocka_unit_test(keys_stand_in_the_order_of_the_wire),
        cmocka_unit_test(g2_what_the_wire_leaves_out_has_its_default),
        cmocka_unit_test(a_dtype_has_one_prefix_at_most),
        cmocka_unit_test(a_registry_comes_back_as_it_went),
        cmocka_unit_test(what_makes_no_sense_is_not_encoded),
        cmocka_unit_test(hostile_texts_are_refused_with_the_reason),
        cmocka_unit_test(a_text_is_read_to_its_length),
        cmocka_unit_test(out_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
