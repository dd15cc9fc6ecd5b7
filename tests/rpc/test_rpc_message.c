/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_message.c - hostile protobuf bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "p2p.pb-c.h"
#include "rpc/rpc_message.h"

static weir_status check_text(const char *text, size_t n)
{
    unsigned char bytes[128] = { 0x0a, (unsigned char)n };
    memcpy(bytes + 2, text, n);
    return weir_rpc_message_check(&model_express__p2p__get_metadata_request__descriptor, bytes,
                                  n + 2);
}

static void test_only_utf8_without_nul_is_text(void **state)
{
    (void)state;
    static const char *const good[] = { "",
                                        "a",
                                        "\x7f",
                                        "\xc2\x80",
                                        "\xdf\xbf",
                                        "\xe0\xa0\x80",
                                        "\xed\x9f\xbf",
                                        "\xee\x80\x80",
                                        "\xef\xbf\xbf",
                                        "\xf0\x90\x80\x80",
                                        "\xf4\x8f\xbf\xbf" };
    static const char *const bad[] = {
        "\x80",         "\xc0\x80",         "\xc1\xbf",         "\xc2",
        "\xc2\x41",     "\xe0\x9f\xbf",     "\xe0\xa0",         "\xed\xa0\x80",
        "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80",
        "\xff",         "\xf0\x90\x80"
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(check_text(good[i], strlen(good[i])), WEIR_OK);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(check_text(bad[i], strlen(bad[i])), WEIR_ERR_FORMAT);
    assert_int_equal(check_text("a\0b", 3), WEIR_ERR_FORMAT);
    assert_string_equal(weir_last_error(),
                        "GetMetadataRequest.mx_source_id is not UTF-8 text without NUL");
}

static void test_cut_text_is_repaired(void **state)
{
    (void)state;
    char text[] = "a\xc3\xa9\xf0\x9f\x98 \xff\xe2\x82";
    weir_rpc_text_repair(text);
    assert_string_equal(text, "a\xc3\xa9??? ???");
}

static void test_malformed_bytes_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
    } bad[] = { { "\x0a", 1 },
                { "\x0a\x05xx", 4 },
                { "\x08", 1 },
                { "\x09\x01\x02", 3 },
                { "\x0d\x01", 2 },
                { "\x0b", 1 },
                { "\x0c", 1 },
                { "\x07", 1 },
                { "\x02\x01x", 3 },
                { "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11 },
                { "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11 },
                { "\xff\xff\xff\xff\xff\x01", 6 } };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(
            weir_rpc_message_check(&model_express__p2p__get_metadata_request__descriptor,
                                   (const unsigned char *)bad[i].bytes, bad[i].n),
            WEIR_ERR_FORMAT);
    assert_int_equal(
        weir_rpc_message_check(&model_express__p2p__get_metadata_request__descriptor, NULL, 0),
        WEIR_OK);
}

static void test_strings_are_checked_however_deep_they_are(void **state)
{
    (void)state;
    /* WorkerMetadata.tensor_source (20) { tensors (1) { name (1) "a\0b" } } */
    static const unsigned char bytes[] = { 0xa2, 0x01, 0x07, 0x0a, 0x05, 0x0a, 0x03, 'a', 0, 'b' };
    assert_int_equal(weir_rpc_message_check(&model_express__p2p__worker_metadata__descriptor, bytes,
                                            sizeof(bytes)),
                     WEIR_ERR_FORMAT);
    assert_string_equal(weir_last_error(), "TensorDescriptor.name is not UTF-8 text without NUL");
}

static void test_unpacking_is_capped(void **state)
{
    (void)state;
    const size_t n = (size_t)1 << 20; /* half a million empty tensors: 36 times as much memory */
    unsigned char *bytes = calloc(1, n);
    for (size_t i = 0; i < n; i += 2)
        bytes[i] = 0x1a;
    weir_arena arena;
    ProtobufCMessage *message;
    weir_arena_init(&arena, (size_t)8 << 20);
    assert_int_equal(weir_rpc_message_unpack(&model_express__p2p__worker_metadata__descriptor,
                                             bytes, n, &arena, &message),
                     WEIR_ERR_NO_MEMORY);
    weir_arena_close(&arena);
    weir_arena_init(&arena, (size_t)256 << 20);
    assert_int_equal(weir_rpc_message_unpack(&model_express__p2p__worker_metadata__descriptor,
                                             bytes, n, &arena, &message),
                     WEIR_OK);
    assert_int_equal(((ModelExpress__P2p__WorkerMetadata *)message)->n_tensors, n / 2);
    weir_arena_close(&arena);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_utf8_without_nul_is_text),
        cmocka_unit_test(test_cut_text_is_repaired),
        cmocka_unit_test(test_malformed_bytes_are_refused),
        cmocka_unit_test(test_strings_are_checked_however_deep_they_are),
        cmocka_unit_test(test_unpacking_is_capped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
