/* SPDX-License-Identifier: Apache-2.0 */
/* test_transport_key.c - addresses and keys: what goes in comes out, and nothing else gets in. */
#include "transport/transport_key.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "transport/key_reseal.h"

static const uint8_t blob[] = { 1, 0, 255, 10, 13 };

/* Decodes from a block of exactly n_bytes, so that a sanitizer sees a read beyond it. */
static weir_status decode_file_key(const void *data, size_t n_bytes, weir_file_key *out)
{
    static void *exact;
    free(exact);
    exact = malloc(n_bytes + (n_bytes == 0));
    memcpy(exact, data, n_bytes);
    weir_status status = weir_file_key_decode(exact, n_bytes, "peer", out);
    if (status != WEIR_OK) {
        free(exact);
        exact = NULL;
    }
    return status;
}

static weir_key_buffer file_key_of(const char *path, const weir_file_segment *segments, size_t n)
{
    weir_file_key key = { .nonce = { 3, 4 },
                          .region_bytes = 1000,
                          .file_bytes = 2000,
                          .segments = segments,
                          .n_segments = n };
    snprintf(key.path, sizeof(key.path), "%s", path);
    weir_key_buffer buffer = { 0 };
    assert_int_equal(weir_file_key_encode(&key, &buffer), WEIR_OK);
    return buffer;
}

static void assert_file_key(const char *path, const weir_file_segment *segments, size_t n,
                            weir_status expected)
{
    weir_file_key decoded;
    weir_key_buffer buffer = file_key_of(path, segments, n);
    assert_int_equal(decode_file_key(buffer.data, buffer.n_bytes, &decoded), expected);
    weir_key_buffer_close(&buffer);
}

static void a_ucx_address_survives_the_way(void **state)
{
    (void)state;
    weir_ucx_address in = { .ucx_version = "1.13.1",
                            .host = "boot pid:[1]",
                            .process = 4711,
                            .greeting = UINT64_MAX,
                            .greeting_is = 7,
                            .rkey = blob,
                            .rkey_bytes = 3,
                            .worker = blob,
                            .worker_bytes = sizeof(blob) };
    weir_ucx_address out;
    weir_key_buffer buffer = { 0 };
    assert_int_equal(weir_ucx_address_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(weir_ucx_address_decode(buffer.data, buffer.n_bytes, "peer", &out), WEIR_OK);
    assert_string_equal(out.ucx_version, in.ucx_version);
    assert_string_equal(out.host, in.host);
    assert_int_equal(out.process, 4711);
    assert_true(out.greeting == UINT64_MAX && out.greeting_is == 7);
    assert_int_equal(out.rkey_bytes, 3);
    assert_int_equal(out.worker_bytes, sizeof(blob));
    assert_memory_equal(out.worker, blob, sizeof(blob));
    weir_key_buffer_close(&buffer);
}

static void a_ucx_address_says_where_its_process_listens(void **state)
{
    (void)state;
    weir_ucx_address in = { .ucx_version = "1.13.1",
                            .rkey = blob,
                            .rkey_bytes = 3,
                            .worker = blob,
                            .worker_bytes = sizeof(blob),
                            .stream = blob + 1,
                            .stream_bytes = 4 };
    weir_ucx_address out;
    weir_key_buffer buffer = { 0 };
    assert_int_equal(weir_ucx_address_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(buffer.data[6], 2);
    assert_int_equal(weir_ucx_address_decode(buffer.data, buffer.n_bytes, "peer", &out), WEIR_OK);
    assert_int_equal(out.stream_bytes, 4);
    assert_memory_equal(out.stream, blob + 1, 4);
    in.stream_bytes = 0;
    assert_int_equal(weir_ucx_address_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(buffer.data[6], 1);
    assert_int_equal(weir_ucx_address_decode(buffer.data, buffer.n_bytes, "peer", &out), WEIR_OK);
    assert_int_equal(out.stream_bytes, 0);
    buffer.data[6] = 3;
    assert_int_equal(weir_ucx_address_decode(buffer.data, buffer.n_bytes, "peer", &out),
                     WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(),
                        "peer: address has format version 3, this process has 2");
    weir_key_buffer_close(&buffer);
}

static void a_ucx_key_survives_the_way(void **state)
{
    (void)state;
    weir_ucx_key in = { .ucx_version = "1.22.0",
                        .base = 1ull << 46,
                        .n_bytes = 1ull << 36,
                        .rkey = blob,
                        .rkey_bytes = sizeof(blob) };
    weir_ucx_key out;
    weir_key_buffer buffer = { 0 };
    assert_int_equal(weir_ucx_key_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(weir_ucx_key_decode(buffer.data, buffer.n_bytes, "peer", &out), WEIR_OK);
    assert_string_equal(out.ucx_version, "1.22.0");
    assert_true(out.base == in.base && out.n_bytes == in.n_bytes);
    assert_memory_equal(out.rkey, blob, sizeof(blob));
    in.base = UINT64_MAX - in.n_bytes + 1; /* ends beyond the address space */
    assert_int_equal(weir_ucx_key_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(weir_ucx_key_decode(buffer.data, buffer.n_bytes, "peer", &out),
                     WEIR_ERR_CORRUPT);
    weir_key_buffer_close(&buffer);
}

static void a_cuda_ipc_address_survives_the_way(void **state)
{
    (void)state;
    weir_cuda_ipc_address in = { .host = "node-1",
                                 .place = "boot net:[1]",
                                 .socket = "weir-cuda-ipc-1",
                                 .gpu = "0000:1B:00.0",
                                 .process = 4711,
                                 .owner = { UINT64_MAX, 7 } };
    weir_cuda_ipc_address out;
    weir_key_buffer buffer = { 0 };
    assert_int_equal(weir_cuda_ipc_address_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(weir_cuda_ipc_address_decode(buffer.data, buffer.n_bytes, "peer", &out),
                     WEIR_OK);
    assert_string_equal(out.host, in.host);
    assert_string_equal(out.place, in.place);
    assert_string_equal(out.socket, in.socket);
    assert_string_equal(out.gpu, in.gpu);
    assert_int_equal(out.process, 4711);
    assert_true(out.owner[0] == UINT64_MAX && out.owner[1] == 7);
    in.socket[0] = '\0';
    assert_int_equal(weir_cuda_ipc_address_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(weir_cuda_ipc_address_decode(buffer.data, buffer.n_bytes, "peer", &out),
                     WEIR_ERR_CORRUPT);
    memset(in.socket, 'x', 120); /* longer than a socket's name can be */
    in.socket[120] = '\0';
    assert_int_equal(weir_cuda_ipc_address_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(weir_cuda_ipc_address_decode(buffer.data, buffer.n_bytes, "peer", &out),
                     WEIR_ERR_CORRUPT);
    weir_key_buffer_close(&buffer);
}

static void a_cuda_ipc_key_survives_the_way(void **state)
{
    (void)state;
    weir_cuda_ipc_key in = { .owner = { 1, UINT64_MAX }, .region = 3, .n_bytes = 1ull << 36 }, out;
    weir_key_buffer buffer = { 0 };
    assert_int_equal(weir_cuda_ipc_key_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(weir_cuda_ipc_key_decode(buffer.data, buffer.n_bytes, "peer", &out), WEIR_OK);
    assert_memory_equal(&in, &out, sizeof(in));
    weir_key_buffer_close(&buffer);
}

static void a_file_key_survives_the_way(void **state)
{
    (void)state;
    const weir_file_segment segments[] = { { 0, 100, 10 }, { 10, 500, 20 }, { 990, 1990, 10 } };
    weir_key_buffer buffer = file_key_of("model/label", segments, 3);
    weir_file_key out;
    assert_int_equal(weir_file_key_decode(buffer.data, buffer.n_bytes, "peer", &out), WEIR_OK);
    assert_string_equal(out.path, "model/label");
    assert_true(out.nonce[0] == 3 && out.nonce[1] == 4);
    assert_true(out.region_bytes == 1000 && out.file_bytes == 2000);
    assert_int_equal(out.n_segments, 3);
    for (size_t i = 0; i < 3; i++) {
        weir_file_segment segment = weir_file_key_segment(&out, i);
        assert_memory_equal(&segment, &segments[i], sizeof(segment));
    }
    weir_key_buffer_close(&buffer);
}

static void paths_that_lead_elsewhere_are_refused(void **state)
{
    (void)state;
    const char *const bad[] = { "",     "model",  "/label", "model/",  "../label",
                                "a/..", "a/../b", "a/b/c",  "./label", "a/.hidden",
                                "//",   "/etc/x", "a//b",   ".a/b",    "a/" };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_file_key(bad[i], NULL, 0, WEIR_ERR_CORRUPT);
    assert_file_key("a\nb/c", NULL, 0, WEIR_ERR_CORRUPT);
    assert_file_key("a/b\x7f", NULL, 0, WEIR_ERR_CORRUPT);
    assert_file_key("a/b", NULL, 0, WEIR_OK);
}

static void segments_that_overlap_or_overflow_are_refused(void **state)
{
    (void)state;
    const weir_file_segment overlap[] = { { 0, 0, 10 }, { 9, 10, 1 } };
    const weir_file_segment unsorted[] = { { 10, 0, 10 }, { 0, 10, 10 } };
    const weir_file_segment outside[] = { { 991, 0, 10 } };
    const weir_file_segment beyond_file[] = { { 0, 1999, 2 } };
    const weir_file_segment wraps[] = { { UINT64_MAX, 0, 2 } };
    const weir_file_segment file_wraps[] = { { 0, UINT64_MAX, 2 } };
    const weir_file_segment empty[] = { { 5, 5, 0 } };
    assert_file_key("a/b", overlap, 2, WEIR_ERR_CORRUPT);
    assert_file_key("a/b", unsorted, 2, WEIR_ERR_CORRUPT);
    assert_file_key("a/b", outside, 1, WEIR_ERR_CORRUPT);
    assert_file_key("a/b", beyond_file, 1, WEIR_ERR_CORRUPT);
    assert_file_key("a/b", wraps, 1, WEIR_ERR_CORRUPT);
    assert_file_key("a/b", file_wraps, 1, WEIR_ERR_CORRUPT);
    assert_file_key("a/b", empty, 1, WEIR_ERR_CORRUPT);
}

static void lengths_that_lie_are_refused(void **state)
{
    (void)state;
    const weir_file_segment segments[] = { { 0, 100, 10 } };
    weir_key_buffer good = file_key_of("model/label", segments, 1);
    for (size_t i = 0; i + 8 < good.n_bytes; i++) {
        weir_key_buffer bad = { malloc(good.n_bytes), good.n_bytes, good.n_bytes };
        memcpy(bad.data, good.data, good.n_bytes);
        bad.data[i] ^= 0xff;
        key_reseal(bad.data, bad.n_bytes);
        weir_file_key out;
        weir_status status = decode_file_key(bad.data, bad.n_bytes, &out);
        if (i < 16) /* the envelope and the length of the path */
            assert_true(status == WEIR_ERR_CORRUPT || status == WEIR_ERR_UNSUPPORTED);
        free(bad.data);
    }
    weir_key_buffer_close(&good);
}

static void other_formats_are_named(void **state)
{
    (void)state;
    weir_file_key out;
    weir_key_buffer key = file_key_of("model/label", NULL, 0);
    weir_ucx_key other;
    assert_int_equal(weir_ucx_key_decode(key.data, key.n_bytes, "peer 7", &other),
                     WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "peer 7: key is of transport file, expected ucx");
    key.data[6] = 9;
    assert_int_equal(weir_file_key_decode(key.data, key.n_bytes, "peer 7", &out),
                     WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "peer 7: key has format version 9, this process has 1");
    assert_int_equal(weir_file_key_decode("garbage", 7, "peer 7", &out), WEIR_ERR_CORRUPT);
    assert_int_equal(weir_file_key_decode(NULL, 0, "peer 7", &out), WEIR_ERR_CORRUPT);
    weir_key_buffer_close(&key);
}

static void a_second_encoding_allocates_nothing(void **state)
{
    (void)state;
    weir_file_address address = { "trainer-0" }, out;
    weir_key_buffer buffer = { 0 };
    weir_alloc_fail_at(1);
    assert_int_equal(weir_file_address_encode(&address, &buffer), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    assert_int_equal(weir_file_address_encode(&address, &buffer), WEIR_OK);
    uint64_t before = weir_alloc_count();
    assert_int_equal(weir_file_address_encode(&address, &buffer), WEIR_OK);
    assert_int_equal(weir_alloc_count(), before);
    assert_int_equal(weir_file_address_decode(buffer.data, buffer.n_bytes, "peer", &out), WEIR_OK);
    assert_string_equal(out.name, "trainer-0");
    weir_key_buffer_close(&buffer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_ucx_address_survives_the_way),
        cmocka_unit_test(a_ucx_address_says_where_its_process_listens),
        cmocka_unit_test(a_ucx_key_survives_the_way),
        cmocka_unit_test(a_cuda_ipc_address_survives_the_way),
        cmocka_unit_test(a_cuda_ipc_key_survives_the_way),
        cmocka_unit_test(a_file_key_survives_the_way),
        cmocka_unit_test(paths_that_lead_elsewhere_are_refused),
        cmocka_unit_test(segments_that_overlap_or_overflow_are_refused),
        cmocka_unit_test(lengths_that_lie_are_refused),
        cmocka_unit_test(other_formats_are_named),
        cmocka_unit_test(a_second_encoding_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
