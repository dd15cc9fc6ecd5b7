/* SPDX-License-Identifier: Apache-2.0 */
/* test_grpc_wire.c - gRPC's small encodings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/alloc.h"
#include "rpc/grpc_wire.h"

static void test_timeouts_parse(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t ns;
    } good[] = { { "1n", 1 },
                 { "5u", 5000 },
                 { "250m", 250000000 },
                 { "00000001S", 1000000000 },
                 { "2M", 120000000000 },
                 { "1H", 3600000000000 },
                 { "99999999H", UINT64_MAX },
                 { "0m", 0 } };
    static const char *const bad[] = {
        "", "m", "1", "123456789m", "1 m", "-1m", "1x", "1.5S", "1mm"
    };
    uint64_t ns;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(weir_grpc_parse_timeout(good[i].text, strlen(good[i].text), &ns));
        assert_true(ns == good[i].ns);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(weir_grpc_parse_timeout(bad[i], strlen(bad[i]), &ns));
}

static void test_timeouts_format_to_what_parses(void **state)
{
    (void)state;
    static const unsigned ms[] = { 0, 1, 60000, 99999999, 100000000, UINT32_MAX };
    for (size_t i = 0; i < sizeof(ms) / sizeof(ms[0]); i++) {
        char text[16];
        uint64_t ns;
        weir_grpc_format_timeout(ms[i], text);
        assert_true(weir_grpc_parse_timeout(text, strlen(text), &ns));
        assert_true(ns / 1000000000 == ms[i] / 1000);
    }
}

static void test_texts_are_percent_encoded(void **state)
{
    (void)state;
    char encoded[WEIR_GRPC_ENCODED_TEXT], decoded[64];
    weir_grpc_encode_text("a%b\n\xc3\xa9~", encoded);
    assert_string_equal(encoded, "a%25b%0A%C3%A9~");
    weir_grpc_decode_text(encoded, strlen(encoded), decoded, sizeof(decoded));
    assert_string_equal(decoded, "a%b???~"); /* what is no printable ASCII is not passed on */
    static const char broken[] = "%4%zz%41%";
    weir_grpc_decode_text(broken, strlen(broken), decoded, sizeof(decoded));
    assert_string_equal(decoded, "%4%zzA%");
    assert_int_equal(weir_grpc_decode_text("%41%41%41", 9, decoded, 3), 2);
    assert_string_equal(decoded, "AA");
    char longest[2 * WEIR_RPC_MESSAGE_TEXT];
    memset(longest, '\xff', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    assert_int_equal(weir_grpc_encode_text(longest, encoded), 3 * WEIR_RPC_MESSAGE_TEXT);
}

static void test_content_types(void **state)
{
    (void)state;
    static const char *const good[] = { "application/grpc", "application/grpc+proto",
                                        "application/grpc;charset=utf-8" };
    static const char *const bad[] = { "", "application/grp", "application/grpcs",
                                       "application/json", "text/application/grpc" };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_true(weir_grpc_is_content_type(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(weir_grpc_is_content_type(bad[i], strlen(bad[i])));
}

static void test_codes_have_names(void **state)
{
    (void)state;
    assert_string_equal(weir_grpc_code_name(WEIR_RPC_OK), "OK");
    assert_string_equal(weir_grpc_code_name(WEIR_RPC_UNAUTHENTICATED), "UNAUTHENTICATED");
    assert_string_equal(weir_grpc_code_name(17), "UNKNOWN");
    assert_string_equal(weir_grpc_code_name(-1), "UNKNOWN");
}

/* ---- bodies ----------------------------------------------------------------------------------*/

/* One message of n bytes, handed over in pieces of `piece` bytes. */
static weir_grpc_fault feed(weir_grpc_body *body, weir_rpc_heap *heap, size_t n, size_t piece)
{
    unsigned char *bytes = weir_alloc(n + WEIR_GRPC_PREFIX_BYTES);
    weir_grpc_put_prefix(bytes, (uint32_t)n);
    for (size_t i = 0; i < n; i++)
        bytes[WEIR_GRPC_PREFIX_BYTES + i] = (unsigned char)i;
    weir_grpc_fault fault = WEIR_GRPC_FINE;
    size_t total = n + WEIR_GRPC_PREFIX_BYTES;
    for (size_t at = 0; at < total && fault == WEIR_GRPC_FINE; at += piece)
        fault = weir_grpc_body_add(body, heap, bytes + at, total - at < piece ? total - at : piece);
    weir_free(bytes);
    return fault;
}

static void test_bodies_are_gathered_however_they_are_cut(void **state)
{
    (void)state;
    weir_rpc_heap heap;
    weir_rpc_heap_init(&heap);
    weir_grpc_body body = { .n_prefix = 0 };
    static const size_t pieces[] = { 1, 3, 5, 16384, SIZE_MAX / 2 };
    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        assert_false(weir_grpc_body_is_whole(&body));
        assert_int_equal(feed(&body, &heap, 100000, pieces[i]), WEIR_GRPC_FINE);
        assert_true(weir_grpc_body_is_whole(&body));
        for (size_t k = 0; k < 100000; k++)
            assert_int_equal(body.data[k], (unsigned char)k);
        weir_grpc_body_rewind(&body);
    }
    assert_int_equal(feed(&body, &heap, 0, 2), WEIR_GRPC_FINE);
    assert_true(weir_grpc_body_is_whole(&body));
    assert_int_equal(weir_grpc_body_add(&body, &heap, (const unsigned char *)"x", 1),
                     WEIR_GRPC_EXTRA);
    weir_grpc_body_close(&body, &heap);
    weir_rpc_heap_close(&heap);
}

static void test_a_declared_size_takes_no_memory(void **state)
{
    (void)state;
    weir_rpc_heap heap;
    weir_rpc_heap_init(&heap);
    weir_grpc_body body = { .n_prefix = 0 };
    static const unsigned char prefix[] = { 0, 3, 0xff, 0xff, 0xff, 'x' };
    assert_int_equal(weir_grpc_body_add(&body, &heap, prefix, sizeof(prefix)), WEIR_GRPC_FINE);
    assert_true(body.capacity <= 4096);
    weir_grpc_body_close(&body, &heap);
    static const unsigned char larger[] = { 0, 4, 0, 0, 1 }, flagged[] = { 1, 0, 0, 0, 0 };
    assert_int_equal(weir_grpc_body_add(&body, &heap, larger, 5), WEIR_GRPC_TOO_LARGE);
    weir_grpc_body_rewind(&body);
    assert_int_equal(weir_grpc_body_add(&body, &heap, flagged, 5), WEIR_GRPC_COMPRESSED);
    weir_grpc_body_rewind(&body);
    static const unsigned char much[] = { 0, 0, 0, 0, 1, 'x' };
    weir_rpc_heap empty;
    weir_rpc_heap_init(&empty);
    weir_alloc_fail_at(1);
    assert_int_equal(weir_grpc_body_add(&body, &empty, much, 6), WEIR_GRPC_NO_MEMORY);
    weir_alloc_fail_at(0);
    weir_rpc_heap_close(&heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_timeouts_parse),
        cmocka_unit_test(test_timeouts_format_to_what_parses),
        cmocka_unit_test(test_texts_are_percent_encoded),
        cmocka_unit_test(test_content_types),
        cmocka_unit_test(test_codes_have_names),
        cmocka_unit_test(test_bodies_are_gathered_however_they_are_cut),
        cmocka_unit_test(test_a_declared_size_takes_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
