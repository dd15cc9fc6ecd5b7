/* SPDX-License-Identifier: Apache-2.0 */
/* The registry: what is built in, what can be added, and what is refused. */
#include "convert/convert_case.h"

#include <pthread.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "convert/kernels.h"
#include "convert/registry.h"

static weir_status do_nothing(const weir_tile *tile)
{
    (void)tile;
    return WEIR_OK;
}

static weir_conversion row_named(const char *name)
{
    return (weir_conversion){ .size = sizeof(weir_conversion),
                              .name = name,
                              .compile_target = "hf_raw",
                              .compile_metadata = "{}",
                              .sources = WEIR_DTYPE_BIT(WEIR_BF16),
                              .border_rows = 128,
                              .border_cols = 128,
                              .n_outputs = 1,
                              .outputs = { { "weight", WEIR_U8, 1, 2 } },
                              .reference = do_nothing };
}

/* Runs first, before a test has registered anything. */
static void built_in_rows_carry_their_tags(void **state)
{
    (void)state;
    const struct {
        const char *name, *target, *metadata;
        size_t n_outputs;
    } rows[] = {
        { "bf16_cast", "hf_raw", "{\"dtype\":\"bfloat16\"}", 1 },
        { "cutlass_fp8_e4m3_per_channel", "cutlass_fp8",
          "{\"dtype\":\"e4m3\",\"scale_layout\":\"per_channel\",\"scale_axis\":-1,"
          "\"activation_scheme\":\"dynamic\"}",
          2 },
        { "fp32_cast", "hf_raw", "{\"dtype\":\"float32\"}", 1 },
        { "fp8_128x128", "deep_gemm_fp8",
          "{\"dtype\":\"e4m3\",\"scale_layout\":\"blockwise\",\"block_size\":[128,128]}", 2 },
        { "neg_exp", "vllm_fused", "{\"dtype\":\"float32\",\"function\":\"neg_exp\"}", 1 },
    };
    const char *names[8];
    assert_int_equal(weir_conversion_names(names, 8), 5);
    for (size_t i = 0; i < 5; i++) {
        const weir_conversion *row = conversion_named(rows[i].name);
        assert_string_equal(names[i], rows[i].name);
        assert_string_equal(row->compile_target, rows[i].target);
        assert_string_equal(row->compile_metadata, rows[i].metadata);
        assert_int_equal(row->n_outputs, rows[i].n_outputs);
        assert_non_null(row->reference);
        bool faster = row->reference != weir_neg_exp_c && weir_cpu_has(WEIR_CPU_AVX2);
        assert_int_equal(row->kernel != NULL, faster);
        assert_int_equal(row->kernel_digests, row->kernel != NULL);
    }
}

/* B2 */
static void unknown_names_list_what_there_is(void **state)
{
    (void)state;
    const weir_conversion *row = NULL;
    assert_int_equal(weir_conversion_get("nope", &row), WEIR_ERR_NOT_FOUND);
    assert_string_equal(weir_last_error(),
                        "unknown conversion 'nope'; registered: [bf16_cast, "
                        "cutlass_fp8_e4m3_per_channel, fp32_cast, fp8_128x128, neg_exp]");
    assert_null(row);
    assert_int_equal(weir_conversion_get(NULL, &row), WEIR_ERR_NOT_FOUND);
}

static void names_stop_at_the_room_given(void **state)
{
    (void)state;
    const char *names[2] = { NULL, "kept" };
    assert_true(weir_conversion_names(names, 1) >= 4);
    assert_string_equal(names[0], "bf16_cast");
    assert_string_equal(names[1], "kept");
    assert_true(weir_conversion_names(NULL, 0) >= 4);
}

/* B1 */
static void a_name_is_registered_once(void **state)
{
    (void)state;
    weir_conversion row = row_named("test_once");
    const weir_conversion *found = NULL;
    assert_int_equal(weir_conversion_register(&row), WEIR_OK);
    assert_int_equal(weir_conversion_get("test_once", &found), WEIR_OK);
    assert_ptr_not_equal(found, &row); /* a copy: the caller's may go */
    assert_string_equal(found->compile_target, "hf_raw");
    assert_int_equal(weir_conversion_register(&row), WEIR_ERR_EXISTS);
    assert_string_equal(weir_last_error(), "conversion 'test_once' is already registered");
    weir_conversion same = row_named("fp8_128x128");
    assert_int_equal(weir_conversion_register(&same), WEIR_ERR_EXISTS);
    assert_string_equal(weir_last_error(), "conversion 'fp8_128x128' is already registered");
}

static void assert_refused(weir_conversion row, const char *why)
{
    assert_int_equal(weir_conversion_register(&row), WEIR_ERR_INVALID);
    if (strstr(weir_last_error(), why) == NULL)
        fail_msg("'%s' does not say '%s'", weir_last_error(), why);
}

static void incomplete_rows_are_refused(void **state)
{
    (void)state;
    const weir_conversion good = row_named("test_incomplete");
    weir_conversion row = good;
    row.size = 0;
    assert_refused(row, "size is 0");
    row = good, row.name = NULL;
    assert_refused(row, "no name");
    row = good, row.compile_target = "";
    assert_refused(row, "no compile target");
    const char *metadata[] = { NULL, "", "[]", "{\"a\":", "{\"a\":1,\"a\":2}" };
    for (size_t i = 0; i < 5; i++) {
        row = good, row.compile_metadata = metadata[i];
        assert_refused(row, "no JSON object");
    }
    row = good, row.sources = 0;
    assert_refused(row, "no source dtype");
    row = good, row.reference = NULL;
    assert_refused(row, "no reference");
    row = good, row.n_outputs = 0;
    assert_refused(row, "n_outputs");
    row = good, row.n_outputs = WEIR_MAX_OUTPUTS + 1;
    assert_refused(row, "n_outputs");
    row = good, row.outputs[0].suffix = NULL;
    assert_refused(row, "no suffix");
    row = good, row.outputs[0].dtype = WEIR_DTYPE_NONE;
    assert_refused(row, "no dtype");
    row = good, row.outputs[0].cell_rows = WEIR_WHOLE;
    assert_refused(row, "all rows");
    row = good, row.outputs[0].cell_cols = 3;
    assert_refused(row, "splits");
    row = good, row.outputs[0].cell_cols = WEIR_WHOLE;
    assert_refused(row, "splits");
    assert_int_equal(weir_conversion_register(NULL), WEIR_ERR_INVALID);
    const weir_conversion *found;
    assert_int_equal(weir_conversion_get("test_incomplete", &found), WEIR_ERR_NOT_FOUND);
}

/* A row of a caller that was built against a later version, which may only be longer by zeros. */
static void rows_of_another_size_are_understood_or_refused(void **state)
{
    (void)state;
    struct {
        weir_conversion row;
        uint64_t later;
    } longer = { row_named("test_longer"), 1 };
    longer.row.size = sizeof(longer);
    assert_int_equal(weir_conversion_register(&longer.row), WEIR_ERR_INVALID);
    longer.later = 0;
    assert_int_equal(weir_conversion_register(&longer.row), WEIR_OK);
    assert_int_equal(conversion_named("test_longer")->size, sizeof(weir_conversion));
    weir_conversion shorter = row_named("test_shorter");
    shorter.size = offsetof(weir_conversion, kernel);
    shorter.kernel = do_nothing; /* beyond its size: not looked at */
    assert_int_equal(weir_conversion_register(&shorter), WEIR_OK);
    assert_null(conversion_named("test_shorter")->kernel);
}

/* ---- many, at once ---------------------------------------------------------------------------*/

#define N_THREADS 4
#define N_EACH 20

static char many_names[N_THREADS][N_EACH][32];

static void *register_many(void *argument)
{
    size_t thread = (size_t)(uintptr_t)argument;
    for (size_t i = 0; i < N_EACH; i++) {
        const weir_conversion *found;
        snprintf(many_names[thread][i], 32, "test_many_%zu_%zu", thread, i);
        weir_conversion row = row_named(many_names[thread][i]);
        if (weir_conversion_register(&row) != WEIR_OK ||
            weir_conversion_get(many_names[thread][i], &found) != WEIR_OK ||
            weir_conversion_get("fp8_128x128", &found) != WEIR_OK)
            return many_names; /* anything but NULL */
    }
    return NULL;
}

static void threads_register_and_look_up_at_once(void **state)
{
    (void)state;
    pthread_t threads[N_THREADS];
    for (size_t i = 0; i < N_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, register_many, (void *)(uintptr_t)i), 0);
    for (size_t i = 0; i < N_THREADS; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    const char *names[256];
    size_t n = weir_conversion_names(names, 256);
    assert_true(n >= 4 + N_THREADS * N_EACH);
    for (size_t i = 1; i < n; i++)
        assert_true(strcmp(names[i - 1], names[i]) < 0);
    for (size_t t = 0; t < N_THREADS; t++) {
        for (size_t i = 0; i < N_EACH; i++)
            assert_string_equal(conversion_named(many_names[t][i])->name, many_names[t][i]);
    }
}

static void a_registration_that_runs_out_of_memory_changes_nothing(void **state)
{
    (void)state;
    static char names[300][32];
    const weir_conversion *found;
    bool failed = false;
    for (size_t i = 0; i < 300; i++) {
        snprintf(names[i], sizeof(names[i]), "test_memory_%zu", i);
        weir_conversion row = row_named(names[i]);
        weir_alloc_fail_at(i % 3); /* 0: none; the row itself; the list when it must grow */
        weir_status status = weir_conversion_register(&row);
        weir_alloc_fail_at(0);
        if (status == WEIR_OK)
            continue;
        failed = true;
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        assert_int_equal(weir_conversion_get(names[i], &found), WEIR_ERR_NOT_FOUND);
        assert_int_equal(weir_conversion_register(&row), WEIR_OK);
    }
    assert_true(failed);
    assert_int_equal(weir_conversion_get("test_memory_0", &found), WEIR_OK);
}

static void long_lists_are_cut_not_overrun(void **state)
{
    (void)state;
    char buffer[40];
    memset(buffer, '#', sizeof(buffer));
    weir_conversion_list(buffer, 20);
    assert_int_equal(strlen(buffer), 19);
    assert_int_equal(buffer[20], '#');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(built_in_rows_carry_their_tags),
        cmocka_unit_test(unknown_names_list_what_there_is),
        cmocka_unit_test(names_stop_at_the_room_given),
        cmocka_unit_test(a_name_is_registered_once),
        cmocka_unit_test(incomplete_rows_are_refused),
        cmocka_unit_test(rows_of_another_size_are_understood_or_refused),
        cmocka_unit_test(threads_register_and_look_up_at_once),
        cmocka_unit_test(a_registration_that_runs_out_of_memory_changes_nothing),
        cmocka_unit_test(long_lists_are_cut_not_overrun),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
