/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "broadcast/inference_body.h"

static weir_status read_join(const char *body, uint32_t tp, uint32_t dp, weir_join_wish *out)
{
    memset(out, 0, sizeof(*out));
    return weir_join_wish_read(body, strlen(body), tp, dp, out);
}

static void servers_and_offsets_say_the_same_ranks(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        uint32_t tp, dp, first_rank, n_workers;
        const char *server;
    } rows[] = {
        { "{\"host\":\"h\",\"port\":1,\"server_rank\":0,\"num_inference_server\":1}", 1, 1, 1, 1,
          "server-0" },
        { "{\"host\":\"h\",\"port\":1,\"server_rank\":2,\"num_inference_server\":3}", 2, 3, 13, 18,
          "server-2" },
        { "{\"host\":\"h\",\"port\":1,\"rank_offset\":12,\"inference_world_size\":18}", 2, 3, 13,
          18, "server-2" },
        { "{\"host\":\"h\",\"port\":1,\"rank_offset\":3,\"inference_world_size\":5}", 2, 1, 4, 5,
          "server-at-3" },
        { "{\"host\":\"h\",\"port\":1,\"rank_offset\":2,\"inference_world_size\":4,"
          "\"server_rank\":1,\"num_inference_server\":2}",
          2, 1, 3, 4, "server-1" },
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        weir_join_wish wish;
        assert_int_equal(read_join(rows[i].body, rows[i].tp, rows[i].dp, &wish), WEIR_OK);
        assert_int_equal(wish.first_rank, rows[i].first_rank);
        assert_int_equal(wish.n_workers_of_all, rows[i].n_workers);
        assert_string_equal(wish.server, rows[i].server);
    }
}

static void everything_else_is_read_and_what_is_unknown_is_left(void **state)
{
    (void)state;
    weir_join_wish wish, other;
    assert_int_equal(read_join("{\"host\":\"10.0.0.7\",\"port\":65535,\"server_rank\":0,"
                               "\"num_inference_server\":1,\"timeout\":2.5,"
                               "\"quantize_in_weight_transfer\":true,\"session_id\":\"run-7\","
                               "\"backend\":\"nccl\",\"rank_offset\":null}",
                               1, 1, &wish),
                     WEIR_OK);
    assert_string_equal(wish.host, "10.0.0.7");
    assert_int_equal(wish.port, 65535);
    assert_int_equal(wish.timeout_ms, 2500);
    assert_true(wish.kernel_mode);
    assert_string_equal(wish.run, "run-7");
    assert_int_equal(
        read_join("{\"host\":\"h\",\"port\":1,\"server_rank\":0,\"num_inference_server\":1}", 1, 1,
                  &other),
        WEIR_OK);
    assert_false(other.kernel_mode);
    assert_int_equal(other.timeout_ms, 0);
    assert_string_equal(other.run, "default");
    assert_false(weir_join_wish_equal(&wish, &other));
    other = wish;
    other.timeout_ms = 1;
    assert_true(weir_join_wish_equal(&wish, &other));
}

static void what_is_wrong_in_a_join_is_named(void **state)
{
    (void)state;
#define RANKS ",\"server_rank\":0,\"num_inference_server\":1}"
    static const struct {
        const char *body, *error;
    } rows[] = {
        { "", "no JSON object" },
        { "{", "no JSON object" },
        { "{} trailing", "no JSON object" },
        { "[1]", "the body is a list: a JSON object is wanted" },
        { "{\"host\":\"a\",\"host\":\"b\"}", "duplicate object key" },
        { "{\"port\":1" RANKS, "'host' is missing" },
        { "{\"host\":7,\"port\":1" RANKS, "'host' is an integer: a text is wanted" },
        { "{\"host\":\"\",\"port\":1" RANKS, "'host' has 0 bytes" },
        { "{\"host\":\"a b\",\"port\":1" RANKS, "without spaces" },
        { "{\"host\":\"a\\nb\",\"port\":1" RANKS, "without spaces" },
        { "{\"host\":\"h\"" RANKS, "'port' is missing: an integer is wanted" },
        { "{\"host\":\"h\",\"port\":\"1\"" RANKS, "'port' is a text: an integer is wanted" },
        { "{\"host\":\"h\",\"port\":true" RANKS, "'port' is a truth value" },
        { "{\"host\":\"h\",\"port\":1.5" RANKS, "'port' is a number: an integer is wanted" },
        { "{\"host\":\"h\",\"port\":0" RANKS, "'port' is 0: 1 to 65535 is wanted" },
        { "{\"host\":\"h\",\"port\":-1" RANKS, "'port' is -1: 1 to 65535 is wanted" },
        { "{\"host\":\"h\",\"port\":70000" RANKS, "'port' is 70000: 1 to 65535 is wanted" },
        { "{\"host\":\"h\",\"port\":1}", "'server_rank' is missing" },
        { "{\"host\":\"h\",\"port\":1,\"server_rank\":0}", "'num_inference_server' is missing" },
        { "{\"host\":\"h\",\"port\":1,\"rank_offset\":0}", "'inference_world_size' is missing" },
        { "{\"host\":\"h\",\"port\":1,\"server_rank\":2,\"num_inference_server\":2}",
          "'server_rank' is 2 and 'num_inference_server' 2" },
        { "{\"host\":\"h\",\"port\":1,\"server_rank\":0,\"num_inference_server\":2000000000}",
          "more than 2147483647 ranks" },
        { "{\"host\":\"h\",\"port\":1,\"rank_offset\":3,\"inference_world_size\":4}",
          "rank 5, beyond 4 inference workers" },
        { "{\"host\":\"h\",\"port\":1,\"rank_offset\":0,\"inference_world_size\":4,"
          "\"server_rank\":1,\"num_inference_server\":2}",
          "server-1 of 2 workers begins at rank 3, 'rank_offset' says 1" },
        { "{\"host\":\"h\",\"port\":1,\"rank_offset\":2,\"inference_world_size\":6,"
          "\"server_rank\":1,\"num_inference_server\":2}",
          "'num_inference_server' makes 4 workers, 'inference_world_size' is 6" },
        { "{\"host\":\"h\",\"port\":1,\"timeout\":0" RANKS, "'timeout' is 0: 0.001 to 86400" },
        { "{\"host\":\"h\",\"port\":1,\"timeout\":\"5\"" RANKS, "'timeout' is a text" },
        { "{\"host\":\"h\",\"port\":1,\"quantize_in_weight_transfer\":1" RANKS,
          "'quantize_in_weight_transfer' is an integer: true or false is wanted" },
        { "{\"host\":\"h\",\"port\":1,\"session_id\":\"a b\"" RANKS, "'session_id' has 3 bytes" },
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        weir_join_wish wish = { .port = 99 };
        weir_status status = weir_join_wish_read(rows[i].body, strlen(rows[i].body), 2, 1, &wish);
        assert_true(status == WEIR_ERR_INVALID || status == WEIR_ERR_FORMAT);
        if (strstr(weir_last_error(), rows[i].error) == NULL)
            fail_msg("%s: %s", rows[i].body, weir_last_error());
        assert_int_equal(wish.port, 99); /* nothing is written */
    }
}

static void steps_and_numbers_say_versions(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        bool has_version;
        uint64_t version;
        unsigned timeout_ms;
    } rows[] = {
        { "", false, 0, 0 },
        { "{}", false, 0, 0 },
        { "{\"weight_dir\":null,\"version\":null}", false, 0, 0 },
        { "{\"weight_dir\":\"/runs/broadcasts/step_12\"}", true, 12, 0 },
        { "{\"weight_dir\":\"/runs/broadcasts/step_0/\"}", true, 0, 0 },
        { "{\"weight_dir\":\"step_7\",\"version\":7,\"timeout\":2}", true, 7, 2000 },
        { "{\"version\":9223372036854775807}", true, INT64_MAX, 0 },
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        weir_update_wish wish;
        assert_int_equal(weir_update_wish_read(rows[i].body, strlen(rows[i].body), &wish), WEIR_OK);
        assert_int_equal(wish.has_version, rows[i].has_version);
        assert_int_equal(wish.version, rows[i].version);
        assert_int_equal(wish.timeout_ms, rows[i].timeout_ms);
    }
}

static void what_is_wrong_in_an_update_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *body, *error;
    } rows[] = {
        { "null", "no JSON object" },
        { "{\"weight_dir\":7}", "'weight_dir' is an integer: a text or null is wanted" },
        { "{\"weight_dir\":\"/runs/12\"}", "'weight_dir' is '/runs/12': .../step_N is wanted" },
        { "{\"weight_dir\":\"/runs/step_\"}", ".../step_N is wanted" },
        { "{\"weight_dir\":\"/runs/misstep_3\"}", ".../step_N is wanted" },
        { "{\"weight_dir\":\"\"}", ".../step_N is wanted" },
        { "{\"weight_dir\":\"3\"}", ".../step_N is wanted" },
        { "{\"weight_dir\":\"step_9999999999999999999\"}", ".../step_N is wanted" },
        { "{\"weight_dir\":\"step_3\\u0000step_4\"}", "no JSON object" },
        { "{\"version\":-1}", "'version' is -1: 0 to" },
        { "{\"version\":\"3\"}", "'version' is a text" },
        { "{\"version\":99999999999999999999}", "no JSON object" },
        { "{\"weight_dir\":\"step_3\",\"version\":4}", "'weight_dir' says version 3, 'version' 4" },
        { "{\"timeout\":-2}", "'timeout' is -2" },
        { "{\"timeout\":1e300}", "'timeout' is 1e+300" },
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        weir_update_wish wish = { .version = 99 };
        weir_status status = weir_update_wish_read(rows[i].body, strlen(rows[i].body), &wish);
        assert_true(status == WEIR_ERR_INVALID || status == WEIR_ERR_FORMAT);
        if (strstr(weir_last_error(), rows[i].error) == NULL)
            fail_msg("%s: %s", rows[i].body, weir_last_error());
        assert_int_equal(wish.version, 99);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(servers_and_offsets_say_the_same_ranks),
        cmocka_unit_test(everything_else_is_read_and_what_is_unknown_is_left),
        cmocka_unit_test(what_is_wrong_in_a_join_is_named),
        cmocka_unit_test(steps_and_numbers_say_versions),
        cmocka_unit_test(what_is_wrong_in_an_update_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
