/* SPDX-License-Identifier: Apache-2.0 */
/* test_sidecar.c - what rides in "__mx_" descriptors, written and read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "directory/sidecar.h"

typedef ModelExpress__P2p__SourceIdentity identity_message;
typedef ModelExpress__P2p__SourceIdentity__ExtraParametersEntry extra_entry;

static weir_source_record record(void)
{
    return (weir_source_record){ .role = "trainer",
                                 .rank = 3,
                                 .n_ranks = 8,
                                 .version = 41,
                                 .version_uid = "5f3a9c01",
                                 .layout_signature = "lay",
                                 .note = "{\"a b\": 1}" };
}

static void test_weirs_words_come_back(void **state)
{
    (void)state;
    static weir_sidecar_texts texts;
    const char *words = texts.words;
    weir_source_record in = record(), out = { .rank = 0 };
    assert_int_equal(weir_sidecar_write(&in, &texts), WEIR_OK);
    assert_string_equal(words, "41 5f3a9c01 8 lay {\"a b\": 1}");
    assert_int_equal(weir_sidecar_parse(words, &out), WEIR_OK);
    assert_int_equal(out.version, 41);
    assert_int_equal(out.n_ranks, 8);
    assert_string_equal(out.version_uid, "5f3a9c01");
    assert_string_equal(out.layout_signature, "lay");
    assert_string_equal(out.note, "{\"a b\": 1}");
    in.version_uid[0] = in.layout_signature[0] = in.note[0] = '\0';
    in.version = UINT64_MAX;
    assert_int_equal(weir_sidecar_write(&in, &texts), WEIR_OK);
    assert_string_equal(words, "18446744073709551615 - 8 - ");
    assert_int_equal(weir_sidecar_parse(words, &out), WEIR_OK);
    assert_true(out.version == UINT64_MAX);
    assert_string_equal(out.version_uid, "");
    assert_string_equal(out.note, "");
}

static void test_the_longest_note_fits(void **state)
{
    (void)state;
    static weir_sidecar_texts texts;
    const char *words = texts.words;
    weir_source_record in = record(), out = { .rank = 0 };
    memset(in.note, 'n', sizeof(in.note) - 1);
    memset(in.version_uid, 'u', sizeof(in.version_uid) - 1);
    memset(in.layout_signature, 'l', sizeof(in.layout_signature) - 1);
    memset(in.role, '"', sizeof(in.role) - 1);
    in.version = UINT64_MAX, in.n_ranks = UINT32_MAX;
    assert_int_equal(weir_sidecar_write(&in, &texts), WEIR_OK);
    assert_int_equal(weir_sidecar_parse(words, &out), WEIR_OK);
    assert_string_equal(out.note, in.note);
    strcpy(in.version_uid, "a b");
    assert_int_equal(weir_sidecar_write(&in, &texts), WEIR_ERR_INVALID);
    in = record();
    memset(in.role, '\x01', sizeof(in.role) - 1); /* six characters each */
    memset(in.layout_signature, '\x01', sizeof(in.layout_signature) - 1);
    assert_int_equal(weir_sidecar_write(&in, &texts), WEIR_OK);
}

static void test_malformed_words_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = { "",
                                       " ",
                                       "1",
                                       "1 ",
                                       "x y 1 z ",
                                       "1 u 4294967296 l ",
                                       "-1 u 1 l ",
                                       "1 u 1 l",
                                       "1  1 l ",
                                       "1 u -1 l n",
                                       "18446744073709551616 u 1 l ",
                                       "1 u 1  n" };
    char long_uid[128], long_note[700];
    weir_source_record out;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(weir_sidecar_parse(bad[i], &out), WEIR_ERR_FORMAT);
    memset(long_uid, 'u', sizeof(long_uid));
    memcpy(long_uid, "1 ", 2);
    memcpy(long_uid + 120, " 1 l n", 7);
    assert_int_equal(weir_sidecar_parse(long_uid, &out), WEIR_ERR_FORMAT);
    memset(long_note, 'n', sizeof(long_note) - 1);
    long_note[sizeof(long_note) - 1] = '\0';
    memcpy(long_note, "1 u 1 l ", 8);
    assert_int_equal(weir_sidecar_parse(long_note, &out), WEIR_ERR_FORMAT);
}

/* One descriptor, where new or where old clients put it. */
static weir_sidecar read_from(const identity_message *identity, const char *json, bool is_old)
{
    ModelExpress__P2p__TensorDescriptor descriptor = MODEL_EXPRESS__P2P__TENSOR_DESCRIPTOR__INIT;
    descriptor.name = (char *)WEIR_SIDECAR_JSON;
    descriptor.dtype = (char *)json;
    ModelExpress__P2p__TensorDescriptor *descriptors[] = { &descriptor };
    ModelExpress__P2p__TensorSourceMetadata tensors =
        MODEL_EXPRESS__P2P__TENSOR_SOURCE_METADATA__INIT;
    tensors.tensors = descriptors, tensors.n_tensors = 1;
    ModelExpress__P2p__WorkerMetadata worker;
    model_express__p2p__worker_metadata__init(&worker);
    if (is_old) {
        worker.tensors = descriptors, worker.n_tensors = 1;
    } else {
        worker.source_payload_case =
            MODEL_EXPRESS__P2P__WORKER_METADATA__SOURCE_PAYLOAD_TENSOR_SOURCE;
        worker.tensor_source = &tensors;
    }
    weir_sidecar said;
    weir_sidecar_read(identity, &worker, &said);
    return said;
}

static void test_steps_are_found_wherever_they_are_said(void **state)
{
    (void)state;
    identity_message identity = MODEL_EXPRESS__P2P__SOURCE_IDENTITY__INIT;
    static const char json[] = "{\"training_step\":7,\"layout_signature\":\"l\",\"role\":\"r\"}";
    for (int is_old = 0; is_old < 2; is_old++) {
        weir_sidecar said = read_from(&identity, json, is_old);
        assert_true(said.has_step && said.step == 7);
        assert_string_equal(said.layout_signature, "l");
        assert_string_equal(said.role, "r");
    }
    assert_int_equal(read_from(&identity, "{\"training_step\":\"8\"}", false).step, 8);
    extra_entry step = MODEL_EXPRESS__P2P__SOURCE_IDENTITY__EXTRA_PARAMETERS_ENTRY__INIT;
    step.key = (char *)"training_step", step.value = (char *)"9";
    extra_entry *extras[] = { &step };
    identity.extra_parameters = extras, identity.n_extra_parameters = 1;
    assert_int_equal(read_from(&identity, json, false).step, 9); /* the identity goes first */
    step.value = (char *)"nine";
    assert_int_equal(read_from(&identity, json, false).step, 7);
}

static void test_what_does_not_decode_is_not_said(void **state)
{
    (void)state;
    identity_message identity = MODEL_EXPRESS__P2P__SOURCE_IDENTITY__INIT;
    static const char *const bad[] = { "",
                                       "{",
                                       "[]",
                                       "null",
                                       "{\"training_step\":-1}",
                                       "{\"training_step\":1.5}",
                                       "{\"training_step\":\"\"}",
                                       "{\"training_step\":\"99999999999999999999\"}",
                                       "{\"training_step\":[7],\"layout_signature\":{}}" };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        weir_sidecar said = read_from(&identity, bad[i], false);
        assert_false(said.has_step);
        assert_string_equal(said.layout_signature, "");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weirs_words_come_back),
        cmocka_unit_test(test_the_longest_note_fits),
        cmocka_unit_test(test_malformed_words_are_refused),
        cmocka_unit_test(test_steps_are_found_wherever_they_are_said),
        cmocka_unit_test(test_what_does_not_decode_is_not_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
