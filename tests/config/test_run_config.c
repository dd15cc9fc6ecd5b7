/* SPDX-License-Identifier: Apache-2.0 */
/* A run configuration as a whole: files, broken ones, bounds, memory that runs out. */
#include "config/config_case.h"

#include <stdlib.h>

#include "base/alloc.h"
#include "checkpoint/test_directory.h"

static void a_file_is_opened_and_named_in_its_problems(void **state)
{
    (void)state;
    test_directory directory;
    weir_run_config *config = NULL;
    test_directory_make(&directory);
    test_directory_write(&directory, "run.yaml", "run: [\n", 7);
    assert_int_equal(weir_run_config_open(test_directory_file(&directory, "run.yaml"), &config),
                     WEIR_OK);
    assert_int_equal(weir_run_config_problems(config), 1);
    assert_string_equal(weir_run_config_problem(config, 0)->file,
                        test_directory_file(&directory, "run.yaml"));
    assert_int_equal(weir_run_config_problem(config, 0)->line, 2);
    assert_string_equal(weir_run_config_problem(config, 0)->path, "");
    assert_null(weir_run_config_problem(config, 1));
    weir_run_config_close(config);
    config = NULL;
    assert_int_equal(weir_run_config_open(test_directory_file(&directory, "none.yaml"), &config),
                     WEIR_ERR_NOT_FOUND);
    assert_int_equal(weir_run_config_open(directory.path, &config), WEIR_ERR_IO);
    assert_null(config);
    test_directory_remove(&directory);
}

static void a_trainer_s_machine_may_be_said_beside_the_file(void **state)
{
    (void)state;
    static const char text[] = "model: {name: m}\nweight_broadcast: {type: nccl}\n"
                               "inference: {tp: 8}\ndeployment: {num_infer_gpus: 16}\n"
                               "orchestrator: {servers: [a:1, b:1]}\n";
    const weir_run_settings *settings = NULL;
    test_directory directory;
    weir_run_config *config = NULL;
    test_directory_make(&directory);
    test_directory_write(&directory, "run.yaml", text, sizeof(text) - 1);
    const char *path = test_directory_file(&directory, "run.yaml");
    assert_int_equal(weir_run_config_open_at(path, NULL, &config), WEIR_OK);
    assert_int_equal(weir_run_config_problems(config), 1);
    weir_run_config_close(config);
    assert_int_equal(weir_run_config_open_at(path, "node0", &config), WEIR_OK);
    assert_int_equal(weir_run_config_settings(config, &settings), WEIR_OK);
    assert_string_equal(settings->orchestrator.broadcast.host, "node0");
    assert_string_equal(settings->trainer.broadcast.host, "0.0.0.0");
    weir_run_config_close(config);
    test_directory_remove(&directory);
}

static void settings_are_given_only_without_problems(void **state)
{
    (void)state;
    const weir_run_settings *settings = NULL;
    weir_run_config *config = config_of("run: 7\nmax_steps: x\n");
    assert_int_equal(weir_run_config_settings(config, &settings), WEIR_ERR_INVALID);
    assert_null(settings);
    assert_string_equal(weir_last_error(),
                        "F:1:6: run: expected a text, but YAML reads 7 as a value of its own (put "
                        "it in quotes: \"7\"); 2 more problems");
    weir_run_config_close(config);
    config = config_of("a: 'b\n");
    assert_int_equal(weir_run_config_settings(config, &settings), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "F:2:1: while scanning a quoted scalar"));
    weir_run_config_close(config);
    weir_run_config_close(NULL);
}

static void an_empty_file_lacks_a_model(void **state)
{
    (void)state;
    EXPECT("", "1:1 model.name: is missing");
    EXPECT("# nothing\n", "1:1 model.name: is missing");
}

static void size_and_problems_are_bounded(void **state)
{
    (void)state;
    weir_run_config *config = NULL;
    char *text = malloc(WEIR_RUN_CONFIG_MAX_BYTES + 1u);
    assert_non_null(text);
    memset(text, '\n', WEIR_RUN_CONFIG_MAX_BYTES + 1u);
    assert_int_equal(weir_run_config_parse(text, WEIR_RUN_CONFIG_MAX_BYTES + 1u, "F", &config),
                     WEIR_ERR_FORMAT);
    assert_null(config);
    assert_int_equal(weir_run_config_parse(text, WEIR_RUN_CONFIG_MAX_BYTES, "F", &config), WEIR_OK);
    weir_run_config_close(config);
    size_t n_bytes = 0;
    for (int i = 0; i < 500; i++)
        n_bytes += (size_t)sprintf(text + n_bytes, "k%d: 1\n", i);
    assert_int_equal(weir_run_config_parse(text, n_bytes, "F", &config), WEIR_OK);
    assert_int_equal(weir_run_config_problems(config), 100);
    weir_run_config_close(config);
    free(text);
}

static void a_problem_is_one_line_whatever_the_file_holds(void **state)
{
    (void)state;
    EXPECT("model: {name: m}\n\"a\\nb\\x1b\": 1\n", "2:1 a b : is no field");
    EXPECT("model: {name: m}\nweight_broadcast: {type: \"a\\nb\"}\n",
           "2:26 weight_broadcast.type: 'a b' is none of its values");
}

static void memory_that_runs_out_is_told(void **state)
{
    (void)state;
    static const char text[] =
        "model: {name: m}\nrun: 7\ntrainer: {model: {impl: hf}, port: 1}\n"
        "weight_broadcast: {type: nccl, quantize_in_weight_transfer: true}\n"
        "inference: {conversion: none, model: {path: /}}\n"
        "orchestrator: {servers: [a:1, b:2, c], weight_broadcast: {port: 1}}\n";
    weir_status status = WEIR_ERR_NO_MEMORY;
    unsigned n_failures = 0;
    while (status != WEIR_OK) {
        weir_run_config *config = NULL;
        weir_alloc_fail_at(++n_failures);
        status = weir_run_config_parse(text, strlen(text), "F", &config);
        weir_alloc_fail_at(0);
        assert_true(status == WEIR_OK || (status == WEIR_ERR_NO_MEMORY && config == NULL));
        weir_run_config_close(config);
    }
    assert_true(n_failures > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_opened_and_named_in_its_problems),
        cmocka_unit_test(a_trainer_s_machine_may_be_said_beside_the_file),
        cmocka_unit_test(settings_are_given_only_without_problems),
        cmocka_unit_test(an_empty_file_lacks_a_model),
        cmocka_unit_test(size_and_problems_are_bounded),
        cmocka_unit_test(a_problem_is_one_line_whatever_the_file_holds),
        cmocka_unit_test(memory_that_runs_out_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
