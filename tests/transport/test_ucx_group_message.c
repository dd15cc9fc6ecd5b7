/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_group_message.c - the key of a broadcast group of transport ucx and its messages: what
 * goes in comes out, and nothing else gets in.
 */
#include "transport/ucx_group_message.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "transport/key_reseal.h"
#include "weir/transport.h"

static weir_ucx_group_key group_key_of(unsigned n_addresses)
{
    weir_ucx_group_key key = { .nonce = { 1, 0, 255 }, .place = UINT64_MAX, .port = 4711 };
    key.n_addresses = n_addresses;
    for (unsigned i = 0; i < n_addresses; i++) {
        key.addresses[i].family = i % 2 == 0 ? 4 : 6;
        memset(key.addresses[i].bytes, (int)i, i % 2 == 0 ? 4 : 16);
    }
    return key;
}

static void a_key_of_a_group_survives_the_way(void **state)
{
    (void)state;
    weir_ucx_group_key in = group_key_of(3), out;
    weir_key_buffer buffer = { 0 };
    assert_int_equal(weir_ucx_group_key_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(buffer.n_bytes, WEIR_GROUP_KEY_BYTES);
    assert_int_equal(weir_ucx_group_key_decode(buffer.data, buffer.n_bytes, "peer", &out), WEIR_OK);
    assert_memory_equal(out.nonce, in.nonce, sizeof(in.nonce));
    assert_true(out.place == UINT64_MAX && out.port == 4711 && out.n_addresses == 3);
    for (unsigned i = 0; i < 3; i++)
        assert_memory_equal(&out.addresses[i], &in.addresses[i], sizeof(in.addresses[i]));
    in = group_key_of(WEIR_UCX_ADDRESSES); /* what does not fit is left out */
    assert_int_equal(weir_ucx_group_key_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(buffer.n_bytes, WEIR_GROUP_KEY_BYTES);
    assert_int_equal(weir_ucx_group_key_decode(buffer.data, buffer.n_bytes, "peer", &out), WEIR_OK);
    assert_true(out.n_addresses > 3 && out.n_addresses < WEIR_UCX_ADDRESSES);
    weir_key_buffer_close(&buffer);
}

static void messages_of_a_group_survive_the_way(void **state)
{
    (void)state;
    weir_key_buffer buffer = { 0 };
    weir_ucx_hello hello = { WEIR_UCX_FEED, 3, 4, 4711, "boot pid:[1]", group_key_of(2) },
                   hello_out;
    assert_int_equal(weir_ucx_hello_encode(&hello, &buffer), WEIR_OK);
    assert_int_equal(weir_ucx_hello_decode(buffer.data, buffer.n_bytes, "peer", &hello_out),
                     WEIR_OK);
    assert_true(hello_out.purpose == WEIR_UCX_FEED && hello_out.rank == 3 &&
                hello_out.n_ranks == 4 && hello_out.process == 4711);
    assert_string_equal(hello_out.host, "boot pid:[1]");
    assert_memory_equal(&hello_out.where, &hello.where, sizeof(hello.where));
    weir_ucx_start start = { 4712, "boot pid:[2]", group_key_of(1) }, start_out;
    assert_int_equal(weir_ucx_start_encode(&start, &buffer), WEIR_OK);
    assert_int_equal(weir_ucx_start_decode(buffer.data, buffer.n_bytes, "peer", &start_out),
                     WEIR_OK);
    assert_int_equal(start_out.process, 4712);
    assert_string_equal(start_out.host, "boot pid:[2]");
    assert_memory_equal(&start_out.after, &start.after, sizeof(start.after));
    weir_ucx_head head = { 2, UINT64_MAX, 1ull << 40, 7 }, head_out;
    assert_int_equal(weir_ucx_head_encode(&head, &buffer), WEIR_OK);
    assert_int_equal(buffer.n_bytes, WEIR_UCX_HEAD_BYTES);
    assert_int_equal(weir_ucx_head_decode(buffer.data, buffer.n_bytes, "peer", &head_out), WEIR_OK);
    assert_true(head_out.root == 2 && head_out.number == UINT64_MAX &&
                head_out.n_bytes == 1ull << 40 && head_out.parts == 7);
    weir_ucx_step step = { WEIR_UCX_TAKEN, UINT64_MAX - 1 }, step_out;
    assert_int_equal(weir_ucx_step_encode(&step, &buffer), WEIR_OK);
    assert_int_equal(weir_ucx_step_decode(buffer.data, buffer.n_bytes, "peer", &step_out), WEIR_OK);
    assert_true(step_out.kind == WEIR_UCX_TAKEN && step_out.value == UINT64_MAX - 1);
    step.kind = WEIR_UCX_STEPS;
    assert_int_equal(weir_ucx_step_encode(&step, &buffer), WEIR_OK);
    assert_int_equal(weir_ucx_step_decode(buffer.data, buffer.n_bytes, "peer", &step_out),
                     WEIR_ERR_CORRUPT);
    weir_key_buffer_close(&buffer);
}

static void messages_are_as_long_as_their_kind_may_be(void **state)
{
    (void)state;
    static const struct {
        char kind;
        size_t limit;
    } rows[] = { { 'h', WEIR_UCX_MESSAGE_BYTES },
                 { 's', WEIR_UCX_MESSAGE_BYTES },
                 { 'w', WEIR_UCX_MESSAGE_BYTES },
                 { 'a', WEIR_UCX_FEED_BYTES },
                 { 'b', WEIR_UCX_FEED_BYTES },
                 { 'k', WEIR_UCX_FEED_BYTES },
                 { 't', WEIR_UCX_FEED_BYTES },
                 { 'g', 0 },
                 { 0, 0 } };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint8_t head[12] = { 'W', 'E', 'I', 'R', 'u', (uint8_t)rows[i].kind, 1 };
        for (size_t more = 0; more < 2; more++) {
            size_t n_bytes = rows[i].limit + more, total = 0;
            char kind = 0;
            head[8] = (uint8_t)n_bytes;
            head[9] = (uint8_t)(n_bytes >> 8);
            weir_status status = weir_ucx_message_kind(head, sizeof(head), &kind, &total);
            bool fits = rows[i].limit > 0 && more == 0;
            assert_int_equal(status, fits ? WEIR_OK : WEIR_ERR_CORRUPT);
            assert_true(!fits || (kind == rows[i].kind && total == n_bytes));
        }
    }
}

static void a_word_of_a_group_says_what_it_may(void **state)
{
    (void)state;
    weir_key_buffer buffer = { 0 };
    weir_ucx_word in = { WEIR_UCX_BROKEN, 5, WEIR_ERR_TIMED_OUT, "2 of 3 ranks" }, out;
    char kind = 0;
    size_t n_bytes = 0;
    assert_int_equal(weir_ucx_word_encode(&in, &buffer), WEIR_OK);
    assert_int_equal(weir_ucx_message_kind(buffer.data, 11, &kind, &n_bytes), WEIR_OK);
    assert_int_equal(n_bytes, 0); /* too little to tell */
    assert_int_equal(weir_ucx_message_kind(buffer.data, 12, &kind, &n_bytes), WEIR_OK);
    assert_true(kind == 'w' && n_bytes == buffer.n_bytes);
    assert_int_equal(weir_ucx_message_kind("GET / HTTP/1.1", 14, &kind, &n_bytes),
                     WEIR_ERR_CORRUPT);
    assert_int_equal(weir_ucx_word_decode(buffer.data, buffer.n_bytes, "peer", &out), WEIR_OK);
    assert_true(out.kind == WEIR_UCX_BROKEN && out.n_done == 5);
    assert_int_equal(out.status, WEIR_ERR_TIMED_OUT);
    assert_string_equal(out.reason, "2 of 3 ranks");
    const weir_ucx_word bad[] = { { WEIR_UCX_WORDS, 0, WEIR_OK, "" },
                                  { WEIR_UCX_BROKEN, 0, WEIR_OK, "" },
                                  { WEIR_UCX_DONE, 0, WEIR_ERR_BUSY, "" },
                                  { WEIR_UCX_BROKEN, 0, WEIR_STATUS_MIN - 1, "" },
                                  { WEIR_UCX_BROKEN, 0, WEIR_ERR_BUSY, "two\nlines" } };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(weir_ucx_word_encode(&bad[i], &buffer), WEIR_OK);
        assert_int_equal(weir_ucx_word_decode(buffer.data, buffer.n_bytes, "peer", &out),
                         WEIR_ERR_CORRUPT);
    }
    weir_key_buffer_close(&buffer);
}

/* One byte is off, in a key or message whose checksum fits. */
static void addresses_of_a_group_are_checked(void **state)
{
    (void)state;
    weir_ucx_group_key good = group_key_of(2), out;
    const size_t port = 12 + WEIR_UCX_NONCE + 8, room = port + 2;
    const struct {
        size_t at;
        uint8_t is;
    } bad[] = { { room, 5 }, { room, 255 }, { room + 5, 7 }, { room + 40, 1 }, { port, 0 } };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        weir_key_buffer buffer = { 0 };
        assert_int_equal(weir_ucx_group_key_encode(&good, &buffer), WEIR_OK);
        buffer.data[bad[i].at] = bad[i].is;
        if (bad[i].at == port)
            buffer.data[port + 1] = 0;
        key_reseal(buffer.data, buffer.n_bytes);
        assert_int_equal(weir_ucx_group_key_decode(buffer.data, buffer.n_bytes, "peer", &out),
                         WEIR_ERR_CORRUPT);
        assert_string_equal(weir_last_error(),
                            "peer: key of a group of transport ucx does not decode");
        weir_key_buffer_close(&buffer);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_of_a_group_survives_the_way),
        cmocka_unit_test(messages_of_a_group_survive_the_way),
        cmocka_unit_test(messages_are_as_long_as_their_kind_may_be),
        cmocka_unit_test(a_word_of_a_group_says_what_it_may),
        cmocka_unit_test(addresses_of_a_group_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
