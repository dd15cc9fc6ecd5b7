/* SPDX-License-Identifier: Apache-2.0 */
/* What a file writes: values of each kind, and every way in which one is refused. */
#include "config/config_case.h"

#define M "model: {name: m}\n"

static void values_of_every_kind_are_taken(void **state)
{
    (void)state;
    weir_run_config *config;
    const weir_run_settings *settings = settings_of(
        "run: 'seven 7'\noutput_dir: \"/o\"\nmax_steps: 0\n" M
        "weight_broadcast: {type: \"nccl\", port: 65535, transport: ucx, marker_dir: /m}\n"
        "trainer: {model: {impl: auto}}\n"
        "orchestrator:\n  server_policy: wait\n  weight_broadcast: {host: c}\n"
        "  servers: [http://a:1, 'h-2.x_y:65535', 'https://[::1]:80/', 127.0.0.1:80]\n",
        &config);
    assert_string_equal(settings->run, "seven 7");
    assert_string_equal(settings->output_dir, "/o");
    assert_int_equal(settings->max_steps, 0);
    assert_string_equal(settings->model.name, "m");
    assert_true(settings->broadcast.present);
    assert_int_equal(settings->broadcast.type, WEIR_RUN_NCCL);
    assert_int_equal(settings->broadcast.transport, WEIR_RUN_BY_UCX);
    assert_int_equal(settings->broadcast.port, 65535);
    assert_string_equal(settings->broadcast.marker_dir, "/m");
    assert_int_equal(settings->trainer.impl, WEIR_RUN_IMPL_AUTO);
    assert_int_equal(settings->orchestrator.server_policy, WEIR_RUN_WAIT);
    assert_int_equal(settings->orchestrator.servers.n_items, 4);
    assert_string_equal(settings->orchestrator.servers.items[1], "h-2.x_y:65535");
    weir_run_config_close(config);
}

static void booleans_are_true_and_false_alone(void **state)
{
    (void)state;
    expect_none(M "weight_broadcast: {quantize_in_weight_transfer: False}\n");
    EXPECT(M "weight_broadcast: {quantize_in_weight_transfer: yes}\n",
           "2:49 weight_broadcast.quantize_in_weight_transfer: expected true or false, got yes");
    EXPECT(M "weight_broadcast: {quantize_in_weight_transfer: 'true'}\n",
           "2:49 weight_broadcast.quantize_in_weight_transfer: expected true or false, got the "
           "text 'true'");
    EXPECT(M "weight_broadcast: {quantize_in_weight_transfer: [true]}\n",
           "2:49 weight_broadcast.quantize_in_weight_transfer: expected true or false, got a list");
}

static void numbers_are_whole_decimal_and_in_range(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        { "0", "0 is out of range" },
        { "65536", "65536 is out of range" },
        { "99999999999999999999", "99999999999999999999 is out of range" },
        { "080", "expected a whole number, got 080" },
        { "0x50", "expected a whole number, got 0x50" },
        { "1_000", "expected a whole number, got 1_000" },
        { "-1", "expected a whole number, got -1" },
        { "80.0", "expected a whole number, got 80.0" },
        { "'80'", "expected a whole number, got the text '80'" },
        { "{}", "expected a number, got a block" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[128], line[128];
        snprintf(text, sizeof(text), M "weight_broadcast: {port: %s}\n", cases[i][0]);
        snprintf(line, sizeof(line), "2:26 weight_broadcast.port: %s", cases[i][1]);
        EXPECT(text, line);
    }
    expect_hint(M "weight_broadcast: {port: 0}\n", "write a whole number from 1 to 65535");
}

static void texts_that_yaml_reads_as_something_else_want_quotes(void **state)
{
    (void)state;
    static const char *const plain[] = { "7", "1.5", "-3", "1e3", ".5", "true", "No", "off" };
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
        char text[64], line[128];
        snprintf(text, sizeof(text), M "run: %s\n", plain[i]);
        snprintf(line, sizeof(line),
                 "2:6 run: expected a text, but YAML reads %s as a value of its own", plain[i]);
        EXPECT(text, line);
        snprintf(text, sizeof(text), M "run: '%s'\n", plain[i]);
        expect_none(text);
    }
    expect_none(M "run: 7b\n");
    expect_none(M "run: infinity\n");
    expect_hint(M "run: 7\n", "put it in quotes: \"7\"");
}

static void texts_are_one_line_and_not_empty(void **state)
{
    (void)state;
    EXPECT(M "run: ''\n", "2:6 run: is empty");
    EXPECT(M "run: \"a\\nb\"\n", "2:6 run: has a line break or another control character");
    char text[4200] = M "run: ";
    size_t n = strlen(text);
    memset(text + n, 'x', 4097);
    text[n + 4097] = '\0';
    EXPECT(text, "2:6 run: is longer than 4096 bytes");
}

static void a_word_that_is_no_choice_is_told_which_there_are(void **state)
{
    (void)state;
    EXPECT(M "weight_broadcast: {type: ncll}\n",
           "2:26 weight_broadcast.type: 'ncll' is none of its values");
    expect_hint(M "weight_broadcast: {type: ncll}\n", "write filesystem or nccl");
    expect_hint(M "orchestrator: {server_policy: kill}\n", "write abort, drop or wait");
}

static void unknown_keys_are_told_the_nearest(void **state)
{
    (void)state;
    EXPECT(M "weight_broadcast: {prt: 1}\nmodle: {}\n", "2:20 weight_broadcast.prt: is no field",
           "3:1 modle: is no field");
    expect_hint(M "weight_broadcast: {prt: 1}\n",
                "the nearest that is known is weight_broadcast.port");
    expect_hint(M "trainer: {port: 1}\n",
                "the nearest that is known is trainer.weight_broadcast.port");
    EXPECT(M "trainer.model.impl: custom\n", "2:1 trainer.model.impl: is no field");
    EXPECT(M "? \"a\\nb\"\n: 1\n", "2:3 a b: is no field");
}

static void a_key_is_there_once(void **state)
{
    (void)state;
    EXPECT(M "run: a\n\nrun: b\n", "4:1 run: is there twice, first on line 2");
    EXPECT(M "trainer: {}\ntrainer: {max_async_level: 1}\n",
           "3:1 trainer: is there twice, first on line 2");
}

static void a_key_has_a_value(void **state)
{
    (void)state;
    EXPECT(M "run:\ninference:\n", "2:1 run: has no value", "3:1 inference: has no value");
}

static void a_block_is_a_block(void **state)
{
    (void)state;
    EXPECT("model: m\n", "1:8 model: expected a block of fields, got a word");
    EXPECT(M "trainer: [model]\n", "2:10 trainer: expected a block of fields, got a list");
    EXPECT("- a\n", "1:1 : expected a block of fields, got a list");
}

static void servers_are_addresses_each_once(void **state)
{
    (void)state;
    static const char *const wrong[] = { "http://a",     "a:0",   "a:65536",       "a:b",
                                         "ftp://a:80",   ":80",   "http://a:80/x", "a b:80",
                                         "http://:80",   "a:80:", "a:123456",      "[::1:80",
                                         "http://u@h:80" };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        char text[128], line[128];
        snprintf(text, sizeof(text), M "orchestrator:\n  servers:\n    - a:1\n    - '%s'\n",
                 wrong[i]);
        snprintf(line, sizeof(line), "5:7 orchestrator.servers: '%s' is no address of a server",
                 wrong[i]);
        EXPECT(text, line);
    }
    EXPECT(M "orchestrator: {servers: [a:1, b:1, a:1]}\n",
           "2:36 orchestrator.servers: 'a:1' is there twice, first on line 2");
    EXPECT(M "orchestrator: {servers: [a:1, 'http://A:1/']}\n",
           "2:31 orchestrator.servers: 'http://A:1/' is there twice, first on line 2");
    EXPECT(M "orchestrator: {servers: a:1}\n", "2:25 orchestrator.servers: expected a list");
    EXPECT(M "orchestrator: {servers: []}\n", "2:25 orchestrator.servers: is empty");
    EXPECT(M "orchestrator: {servers: [{}]}\n",
           "2:26 orchestrator.servers: expected a text, got a block");
}

static void servers_are_bounded(void **state)
{
    (void)state;
    static char text[32768];
    int n = snprintf(text, sizeof(text), M "orchestrator:\n  servers:\n");
    for (int i = 0; i < 1025; i++)
        n += snprintf(text + n, sizeof(text) - (size_t)n, "  - a%d:1\n", i);
    EXPECT(text, "4:3 orchestrator.servers: has 1025 items");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_of_every_kind_are_taken),
        cmocka_unit_test(booleans_are_true_and_false_alone),
        cmocka_unit_test(numbers_are_whole_decimal_and_in_range),
        cmocka_unit_test(texts_that_yaml_reads_as_something_else_want_quotes),
        cmocka_unit_test(texts_are_one_line_and_not_empty),
        cmocka_unit_test(a_word_that_is_no_choice_is_told_which_there_are),
        cmocka_unit_test(unknown_keys_are_told_the_nearest),
        cmocka_unit_test(a_key_is_there_once),
        cmocka_unit_test(a_key_has_a_value),
        cmocka_unit_test(a_block_is_a_block),
        cmocka_unit_test(servers_are_addresses_each_once),
        cmocka_unit_test(servers_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
