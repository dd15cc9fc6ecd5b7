/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <nghttp2/nghttp2.h>

#include "base/clock.h"
#include "rpc/rpc_patience.h"

/* How many frames of one kind in a row a fresh peer may send. */
static unsigned how_many(uint8_t type, uint8_t flags, size_t n_bytes)
{
    weir_rpc_patience patience;
    weir_rpc_patience_init(&patience, weir_now_ns());
    unsigned n = 0;
    while (n < 1000000 &&
           weir_rpc_patience_spend(&patience, weir_rpc_frame_cost(type, flags, n_bytes)))
        n++;
    return n;
}

static void test_useless_frames_are_few(void **state)
{
    (void)state;
    assert_in_range(how_many(NGHTTP2_RST_STREAM, 0, 4), 256, 500);
    assert_in_range(how_many(NGHTTP2_SETTINGS, 0, 0), 300, 600);
    assert_in_range(how_many(NGHTTP2_PING, 0, 8), 500, 1500);
    assert_in_range(how_many(NGHTTP2_DATA, 0, 0), 300, 600);
    assert_in_range(how_many(NGHTTP2_DATA, 0, 1), 1000, 3000);
    assert_in_range(how_many(NGHTTP2_CONTINUATION, 0, 16384), 20, 50);
}

static void test_data_costs_nothing(void **state)
{
    (void)state;
    assert_int_equal(weir_rpc_frame_cost(NGHTTP2_DATA, 0, 16384), 0);
    assert_int_equal(weir_rpc_frame_cost(NGHTTP2_DATA, NGHTTP2_FLAG_END_STREAM, 0), 0);
    assert_int_equal(weir_rpc_frame_cost(NGHTTP2_DATA, NGHTTP2_FLAG_END_STREAM, 12), 0);
}

static void test_a_caller_earns_more_than_it_spends(void **state)
{
    (void)state;
    unsigned spent = weir_rpc_frame_cost(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, 255) +
                     weir_rpc_frame_cost(NGHTTP2_WINDOW_UPDATE, 0, 4) +
                     weir_rpc_frame_cost(NGHTTP2_PING, 0, 8);
    assert_true(spent <= WEIR_RPC_PATIENCE_PER_CALL);
}

static void test_time_brings_it_back(void **state)
{
    (void)state;
    weir_rpc_patience patience;
    weir_rpc_patience_init(&patience, weir_now_ns());
    patience.left = 0;
    assert_false(weir_rpc_patience_spend(&patience, 800));
    patience.filled_ns -= 1000000000; /* a second ago */
    assert_true(weir_rpc_patience_spend(&patience, 800));
    assert_false(weir_rpc_patience_spend(&patience, 800));
    patience.filled_ns = 0; /* long ago: full, and no fuller */
    assert_false(weir_rpc_patience_spend(&patience, 4001));
    assert_true(weir_rpc_patience_spend(&patience, 4000));
    weir_rpc_patience_earn(&patience, UINT32_MAX);
    assert_int_equal(patience.left, 4000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_useless_frames_are_few),
        cmocka_unit_test(test_data_costs_nothing),
        cmocka_unit_test(test_a_caller_earns_more_than_it_spends),
        cmocka_unit_test(test_time_brings_it_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
