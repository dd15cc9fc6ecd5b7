/* SPDX-License-Identifier: Apache-2.0 */
/* test_source_id.c - the id that every server must come to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "directory/source_id.h"

typedef ModelExpress__P2p__SourceIdentity identity_message;
typedef ModelExpress__P2p__SourceIdentity__ExtraParametersEntry extra_entry;

static weir_arena arena;

static identity_message base(void)
{
    identity_message identity = MODEL_EXPRESS__P2P__SOURCE_IDENTITY__INIT;
    identity.mx_version = (char *)"0.5.0";
    identity.model_name = (char *)"deepseek-ai/DeepSeek-V3";
    identity.backend_framework = MODEL_EXPRESS__P2P__BACKEND_FRAMEWORK__BACKEND_FRAMEWORK_VLLM;
    identity.tensor_parallel_size = 8;
    identity.pipeline_parallel_size = 1;
    identity.dtype = (char *)"bfloat16";
    return identity;
}

static const char *id_of(const identity_message *identity)
{
    static char id[WEIR_SOURCE_ID_BYTES];
    assert_int_equal(weir_source_id(identity, &arena, id), WEIR_OK);
    return id;
}

static void test_the_known_answer(void **state)
{
    (void)state;
    identity_message identity = base();
    assert_string_equal(id_of(&identity), "5a5f555570065064");
    identity.model_name = (char *)"DEEPSEEK-AI/deepseek-v3"; /* case does not count */
    assert_string_equal(id_of(&identity), "5a5f555570065064");
    identity.tensor_parallel_size = 4;
    assert_string_not_equal(id_of(&identity), "5a5f555570065064");
}

static void set_extras(identity_message *identity, extra_entry *entries, extra_entry **pointers,
                       const char *const (*pairs)[2], size_t n)
{
    for (size_t i = 0; i < n; i++) {
        model_express__p2p__source_identity__extra_parameters_entry__init(&entries[i]);
        entries[i].key = (char *)pairs[i][0];
        entries[i].value = (char *)pairs[i][1];
        pointers[i] = &entries[i];
    }
    identity->extra_parameters = pointers;
    identity->n_extra_parameters = n;
}

static void test_extras_are_sorted_lowered_and_unique(void **state)
{
    (void)state;
    static const char *const pairs[][2] = { { "b", "Lower" }, { "c", "\"\\\n\x01\xc3\x89" },
                                            { "B", "Upper" }, { "A", "first" },
                                            { "A", "Last" },  { "", "" } };
    extra_entry entries[6], *pointers[6];
    identity_message identity = base();
    set_extras(&identity, entries, pointers, pairs, 6);
    const char *text = weir_source_id_text(&identity, &arena);
    /* "B" sorts before "b", so it is the one that stays; of "A" twice on the wire the last. */
    static const char expected[] = "\"extra_parameters\":{\"\":\"\",\"a\":\"last\",\"b\":\"upper\","
                                   "\"c\":\"\\\"\\\\\\n\\u0001\xc3\x89\"}";
    if (strstr(text, expected) == NULL)
        fail_msg("%s", text);
}

static void test_optional_fields_count_when_they_are_set(void **state)
{
    (void)state;
    identity_message identity = base();
    assert_null(strstr(weir_source_id_text(&identity, &arena), "gpu_arch"));
    identity.gpu_arch = (char *)"SM_90";
    identity.revision = (char *)"Main";
    assert_string_equal(
        weir_source_id_text(&identity, &arena),
        "{\"backend_framework\":1,\"dtype\":\"bfloat16\",\"expert_parallel_size\":0,"
        "\"extra_parameters\":{},\"gpu_arch\":\"sm_90\",\"model_name\":\"deepseek-ai/deepseek-v3\","
        "\"mx_source_type\":0,\"mx_version\":\"0.5.0\",\"pipeline_parallel_size\":1,"
        "\"quantization\":\"\",\"revision\":\"main\",\"tensor_parallel_size\":8}");
}

static void test_too_many_extras_are_refused(void **state)
{
    (void)state;
    extra_entry *pointers[WEIR_SOURCE_MAX_EXTRAS + 1] = { NULL };
    identity_message identity = base();
    identity.extra_parameters = pointers;
    identity.n_extra_parameters = WEIR_SOURCE_MAX_EXTRAS + 1;
    char id[WEIR_SOURCE_ID_BYTES];
    assert_int_equal(weir_source_id(&identity, &arena, id), WEIR_ERR_INVALID);
}

static void test_a_full_arena_is_said(void **state)
{
    (void)state;
    identity_message identity = base();
    char id[WEIR_SOURCE_ID_BYTES];
    weir_arena small;
    weir_arena_init(&small, 64);
    assert_int_equal(weir_source_id(&identity, &small, id), WEIR_ERR_NO_MEMORY);
    weir_arena_close(&small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_known_answer),
        cmocka_unit_test(test_extras_are_sorted_lowered_and_unique),
        cmocka_unit_test(test_optional_fields_count_when_they_are_set),
        cmocka_unit_test(test_too_many_extras_are_refused),
        cmocka_unit_test(test_a_full_arena_is_said),
    };
    weir_arena_init(&arena, 0);
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    weir_arena_close(&arena);
    return n_failed;
}
