/* SPDX-License-Identifier: Apache-2.0 */
/* The table of fields: that its rows make sense, and how they are found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "config/run_schema.h"

static void every_row_has_a_block_a_help_and_a_place_of_its_own(void **state)
{
    (void)state;
    size_t n_rows;
    const weir_run_row *rows = weir_run_rows(&n_rows);
    assert_true(n_rows > 40);
    for (size_t i = 0; i < n_rows; i++) {
        const char *dot = strrchr(rows[i].path, '.');
        assert_true(rows[i].help != NULL && rows[i].help[0] != '\0');
        assert_ptr_equal(weir_run_row_of(rows[i].path), &rows[i]);
        if (dot != NULL) {
            const weir_run_row *block =
                weir_run_row_of_bytes(rows[i].path, (size_t)(dot - rows[i].path));
            assert_non_null(block);
            assert_int_equal(block->kind, WEIR_RUN_BLOCK);
            assert_true(block < &rows[i]);
        }
        assert_true(rows[i].has_member || rows[i].kind == WEIR_RUN_BLOCK);
        for (size_t k = 0; k < i && rows[i].has_member; k++)
            assert_false(rows[k].has_member && rows[k].offset == rows[i].offset);
    }
}

static void every_default_is_a_value_of_its_row(void **state)
{
    (void)state;
    size_t n_rows;
    const weir_run_row *rows = weir_run_rows(&n_rows);
    for (size_t i = 0; i < n_rows; i++) {
        const char *value = rows[i].default_value;
        if (rows[i].kind == WEIR_RUN_CHOICE)
            assert_true(weir_run_choice_of(rows[i].choices, value) >= 0);
        else if (rows[i].kind == WEIR_RUN_INTEGER)
            assert_in_range(strtoul(value, NULL, 10), rows[i].least, rows[i].most);
        else if (rows[i].kind == WEIR_RUN_BOOLEAN)
            assert_true(strcmp(value, "true") == 0 || strcmp(value, "false") == 0);
        else if (rows[i].kind == WEIR_RUN_LIST)
            assert_non_null(value);
    }
}

static void a_row_takes_from_rows_before_it_that_are_alike(void **state)
{
    (void)state;
    size_t n_rows, n_taking = 0;
    const weir_run_row *rows = weir_run_rows(&n_rows);
    for (size_t i = 0; i < n_rows; i++)
        for (const char *from = rows[i].from; from != NULL && *from != '\0'; n_taking++) {
            size_t n_bytes = strcspn(from, "|");
            const weir_run_row *giver = weir_run_row_of_bytes(from, n_bytes);
            assert_non_null(giver);
            assert_true(giver < &rows[i]);
            assert_int_equal(giver->kind, rows[i].kind);
            assert_int_equal(giver->least, rows[i].least);
            assert_int_equal(giver->most, rows[i].most);
            if (giver->choices != NULL)
                assert_string_equal(giver->choices, rows[i].choices);
            from += n_bytes + (from[n_bytes] == '|');
        }
    assert_true(n_taking > 10);
}

static void distance_counts_letters(void **state)
{
    (void)state;
    assert_int_equal(weir_run_distance("port", "port"), 0);
    assert_int_equal(weir_run_distance("prt", "port"), 1);
    assert_int_equal(weir_run_distance("port", "ports"), 1);
    assert_int_equal(weir_run_distance("", "port"), 4);
    assert_int_equal(weir_run_distance("kitten", "sitting"), 3);
    char long_key[200];
    memset(long_key, 'x', sizeof(long_key) - 1);
    long_key[sizeof(long_key) - 1] = '\0';
    assert_int_equal(weir_run_distance(long_key, "port"), sizeof(long_key) - 1);
}

static void the_nearest_key_is_of_the_same_block(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        { "weight_broadcast", "prt", "weight_broadcast.port" },
        { "weight_broadcast", "quantise_in_weight_transfer",
          "weight_broadcast.quantize_in_weight_transfer" },
        { "weight_broadcast", "quantize_weights", "weight_broadcast.quantize_in_weight_transfer" },
        { "", "max_async", "max_async_level" },
        { "", "weightbroadcast", "weight_broadcast" },
        { "trainer", "Model", "trainer.model" },
        { "orchestrator", "policy", "orchestrator.server_policy" },
        { "orchestrator", "polcy", "orchestrator.server_policy" },
        { "weight_broadcast", "quantise", "weight_broadcast.quantize_in_weight_transfer" },
        { "weight_broadcast", "nccl_timeout", "weight_broadcast.timeout" },
        { "trainer.weight_broadcast", "world_size",
          "trainer.weight_broadcast.inference_world_size" },
        { "trainer.weight_broadcast", "window", "trainer.weight_broadcast.window_bytes" },
        { "trainer.weight_broadcast", "window_size", "trainer.weight_broadcast.window_bytes" },
        { "inference", "tensor_parallel_size", "inference.tp" },
        { "inference", "data_parallel", "inference.dp" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_string_equal(weir_run_nearest(cases[i][0], cases[i][1])->path, cases[i][2]);
}

static void a_key_that_is_right_elsewhere_is_found_there(void **state)
{
    (void)state;
    assert_string_equal(weir_run_nearest("", "server_policy")->path, "orchestrator.server_policy");
    assert_string_equal(weir_run_nearest("trainer", "port")->path, "trainer.weight_broadcast.port");
    assert_string_equal(weir_run_nearest("weight_broadcast", "host")->path,
                        "trainer.weight_broadcast.host");
    assert_string_equal(weir_run_nearest("orchestrator", "timeout")->path,
                        "orchestrator.weight_broadcast.timeout");
}

static void choices_are_whole_words(void **state)
{
    (void)state;
    assert_int_equal(weir_run_choice_of("filesystem|nccl", "filesystem"), 0);
    assert_int_equal(weir_run_choice_of("filesystem|nccl", "nccl"), 1);
    assert_int_equal(weir_run_choice_of("filesystem|nccl", "ncc"), -1);
    assert_int_equal(weir_run_choice_of("filesystem|nccl", "filesystem|nccl"), -1);
    assert_int_equal(weir_run_choice_of("filesystem|nccl", ""), -1);
}

/* Programs compare settings with the enumerators, the table writes indices. */
static void choices_are_in_the_order_of_their_enumerators(void **state)
{
    (void)state;
    const struct {
        const char *path, *word;
        int number;
    } cases[] = { { "weight_broadcast.type", "filesystem", WEIR_RUN_FILESYSTEM },
                  { "weight_broadcast.type", "nccl", WEIR_RUN_NCCL },
                  { "weight_broadcast.transport", "nccl", WEIR_RUN_BY_NCCL },
                  { "weight_broadcast.transport", "ucx", WEIR_RUN_BY_UCX },
                  { "weight_broadcast.transport", "cuda_ipc", WEIR_RUN_BY_CUDA_IPC },
                  { "weight_broadcast.transport", "auto", WEIR_RUN_BY_AUTO },
                  { "deployment.type", "single_node", WEIR_RUN_SINGLE_NODE },
                  { "deployment.type", "multi_node", WEIR_RUN_MULTI_NODE },
                  { "trainer.model.impl", "hf", WEIR_RUN_IMPL_HF },
                  { "trainer.model.impl", "liger_kernel", WEIR_RUN_IMPL_LIGER_KERNEL },
                  { "trainer.model.impl", "custom", WEIR_RUN_IMPL_CUSTOM },
                  { "trainer.model.impl", "auto", WEIR_RUN_IMPL_AUTO },
                  { "orchestrator.server_policy", "abort", WEIR_RUN_ABORT },
                  { "orchestrator.server_policy", "drop", WEIR_RUN_DROP },
                  { "orchestrator.server_policy", "wait", WEIR_RUN_WAIT } };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(weir_run_choice_of(weir_run_row_of(cases[i].path)->choices, cases[i].word),
                         cases[i].number);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_has_a_block_a_help_and_a_place_of_its_own),
        cmocka_unit_test(every_default_is_a_value_of_its_row),
        cmocka_unit_test(a_row_takes_from_rows_before_it_that_are_alike),
        cmocka_unit_test(distance_counts_letters),
        cmocka_unit_test(the_nearest_key_is_of_the_same_block),
        cmocka_unit_test(a_key_that_is_right_elsewhere_is_found_there),
        cmocka_unit_test(choices_are_whole_words),
        cmocka_unit_test(choices_are_in_the_order_of_their_enumerators),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
