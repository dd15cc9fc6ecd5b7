/* SPDX-License-Identifier: Apache-2.0 */
/* Finding, mapping and listing checkpoints: one file, a directory, shards, several paths. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/alloc.h"
#include "checkpoint/test_directory.h"
#include "weir/checkpoint.h"

#define INDEX "model.safetensors.index.json"
#define U8_ENTRY(name, begin, end) \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[" begin "," end "]}"

static test_directory directory;

static int make_directory(void **state)
{
    (void)state;
    test_directory_make(&directory);
    return 0;
}

static int remove_directory(void **state)
{
    (void)state;
    test_directory_remove(&directory);
    return 0;
}

/* Two shards: a and c in the first, b in the second; the index is the test's. */
static void write_shards(const char *index)
{
    test_directory_safetensors(&directory, "one.safetensors",
                               "{\"__metadata__\":{\"format\":\"pt\"}," U8_ENTRY(
                                   "c", "0", "4") "," U8_ENTRY("a", "4", "8") "}",
                               "ccccaaaa", 8);
    test_directory_safetensors(
        &directory, "two.safetensors",
        "{\"__metadata__\":{\"format\":\"np\",\"step\":\"7\"}," U8_ENTRY("b", "0", "4") "}", "bbbb",
        4);
    if (index != NULL)
        test_directory_write(&directory, INDEX, index, strlen(index));
}

static const char whole_index[] = "{\"metadata\":{\"total_size\":12},\"weight_map\":{"
                                  "\"a\":\"one.safetensors\",\"b\":\"two.safetensors\","
                                  "\"c\":\"one.safetensors\"}}";

static void check_three(weir_checkpoint *checkpoint)
{
    size_t n;
    const weir_tensor *tensors = weir_checkpoint_tensors(checkpoint, &n);
    assert_int_equal(n, 3);
    for (size_t i = 0; i < 3; i++) {
        char name[2] = { (char)('a' + i), '\0' };
        assert_string_equal(tensors[i].name, name);
        for (int k = 0; k < 4; k++)
            assert_int_equal(((char *)tensors[i].data)[k], 'a' + (int)i);
        assert_ptr_equal(weir_checkpoint_find(checkpoint, name), &tensors[i]);
        assert_non_null(strstr(weir_checkpoint_file_of(checkpoint, i), i == 1 ? "two" : "one"));
    }
    assert_null(weir_checkpoint_find(checkpoint, "d"));
    assert_string_equal(weir_checkpoint_metadata(checkpoint, "format"), "pt");
    assert_string_equal(weir_checkpoint_metadata(checkpoint, "step"), "7");
    assert_null(weir_checkpoint_metadata(checkpoint, "none"));
}

static void refused(const char *path, weir_status status, const char *line)
{
    weir_checkpoint *checkpoint = NULL;
    size_t n_open = test_directory_count("/proc/self/fd");
    assert_int_equal(weir_checkpoint_open(path, &checkpoint), status);
    assert_null(checkpoint);
    if (strstr(weir_last_error(), line) == NULL)
        fail_msg("expected '%s' in: %s", line, weir_last_error());
    assert_int_equal(test_directory_count("/proc/self/fd"), n_open);
}

static void a_directory_with_an_index_is_its_shards(void **state)
{
    (void)state;
    write_shards(whole_index);
    test_directory_write(&directory, "model.safetensors", "junk", 4); /* the index goes first */
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_open(directory.path, &checkpoint), WEIR_OK);
    check_three(checkpoint);
    assert_string_equal(weir_checkpoint_directory(checkpoint), directory.path);
    weir_checkpoint_close(checkpoint);
}

static void an_index_can_be_named(void **state)
{
    (void)state;
    write_shards(whole_index);
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_open(test_directory_file(&directory, INDEX), &checkpoint),
                     WEIR_OK);
    check_three(checkpoint);
    assert_string_equal(weir_checkpoint_directory(checkpoint), directory.path);
    weir_checkpoint_close(checkpoint);
}

static void a_directory_without_index_is_all_its_files(void **state)
{
    (void)state;
    write_shards(NULL);
    test_directory_write(&directory, ".hidden.safetensors", "junk", 4);
    test_directory_write(&directory, "notes.txt", "junk", 4);
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_open(directory.path, &checkpoint), WEIR_OK);
    check_three(checkpoint);
    weir_checkpoint_close(checkpoint);
}

static void several_paths_are_one_checkpoint(void **state)
{
    (void)state;
    write_shards(NULL);
    char one[1024];
    snprintf(one, sizeof(one), "%s/one.safetensors", directory.path);
    const char *paths[] = { one, test_directory_file(&directory, "two.safetensors") };
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_open_many(paths, 2, &checkpoint), WEIR_OK);
    check_three(checkpoint);
    weir_checkpoint_close(checkpoint);
    assert_int_equal(weir_checkpoint_open_many(paths, 0, &checkpoint), WEIR_ERR_INVALID);
}

static void model_safetensors_is_preferred_to_other_files(void **state)
{
    (void)state;
    test_directory_safetensors(&directory, "model.safetensors", "{}", "", 0);
    test_directory_write(&directory, "other.safetensors", "junk", 4);
    weir_checkpoint *checkpoint;
    size_t n;
    assert_int_equal(weir_checkpoint_open(directory.path, &checkpoint), WEIR_OK);
    assert_non_null(weir_checkpoint_tensors(checkpoint, &n));
    assert_int_equal(n, 0);
    assert_null(weir_checkpoint_find(checkpoint, "a"));
    weir_checkpoint_close(checkpoint);
}

static void a_file_in_the_working_directory_lies_in_dot(void **state)
{
    (void)state;
    char before[1024];
    assert_non_null(getcwd(before, sizeof(before)));
    write_shards(NULL);
    assert_int_equal(chdir(directory.path), 0);
    weir_checkpoint *checkpoint;
    weir_status status = weir_checkpoint_open("one.safetensors", &checkpoint);
    assert_int_equal(chdir(before), 0);
    assert_int_equal(status, WEIR_OK);
    assert_string_equal(weir_checkpoint_directory(checkpoint), ".");
    weir_checkpoint_close(checkpoint);
}

static void what_is_not_there_is_named(void **state)
{
    (void)state;
    refused(test_directory_file(&directory, "none"), WEIR_ERR_NOT_FOUND, "/none: No such file");
    refused(directory.path, WEIR_ERR_NOT_FOUND, "holds no .safetensors file");
    refused("/dev/null", WEIR_ERR_IO, "/dev/null: not a regular file");
    assert_int_equal(symlink("nowhere", test_directory_file(&directory, INDEX)), 0);
    refused(directory.path, WEIR_ERR_NOT_FOUND, INDEX ": No such file");
}

static void a_name_in_two_files_is_refused(void **state)
{
    (void)state;
    write_shards(NULL);
    test_directory_safetensors(&directory, "three.safetensors", "{" U8_ENTRY("b", "0", "4") "}",
                               "BBBB", 4);
    refused(directory.path, WEIR_ERR_FORMAT, "tensor 'b' is in both ");
    assert_non_null(strstr(weir_last_error(), "two.safetensors"));
    assert_non_null(strstr(weir_last_error(), "three.safetensors"));
}

static void an_index_that_differs_from_its_shards_is_refused(void **state)
{
    (void)state;
    write_shards("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\","
                 "\"c\":\"one.safetensors\",\"d\":\"two.safetensors\"}}");
    refused(directory.path, WEIR_ERR_FORMAT,
            "tensor 'd' is in the index, but 'two.safetensors' does not hold it");
    write_shards("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    refused(directory.path, WEIR_ERR_FORMAT,
            "tensor 'c' is in 'one.safetensors', but not in the index");
    write_shards("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\","
                 "\"c\":\"two.safetensors\"}}");
    refused(directory.path, WEIR_ERR_FORMAT,
            "tensor 'c' is in 'one.safetensors', the index says 'two.safetensors'");
    write_shards("{\"weight_map\":{\"a\":\"gone.safetensors\"}}");
    refused(directory.path, WEIR_ERR_NOT_FOUND, "gone.safetensors: No such file");
    write_shards("{\"weight_map\":{\"a\":\"../one.safetensors\"}}");
    refused(directory.path, WEIR_ERR_FORMAT, "'../one.safetensors' is no plain file name");
}

static void an_unaligned_tensor_is_copied_into_alignment(void **state)
{
    (void)state;
    const char *header = "{\"t\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[0,16]}}";
    const double values[2] = { 1.5, -2.25 };
    assert_true(strlen(header) % 2 != 0); /* the data lies at an odd address */
    test_directory_safetensors(&directory, "model.safetensors", header, values, sizeof(values));
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_open(directory.path, &checkpoint), WEIR_OK);
    const weir_tensor *tensor = weir_checkpoint_find(checkpoint, "t");
    assert_non_null(tensor);
    assert_int_equal((uintptr_t)tensor->data % sizeof(double), 0);
    assert_memory_equal(tensor->data, values, sizeof(values));
    weir_checkpoint_will_need(checkpoint, tensor); /* memory of the heap must survive advice */
    weir_checkpoint_done_with(checkpoint, tensor);
    assert_memory_equal(tensor->data, values, sizeof(values));
    weir_checkpoint_close(checkpoint);
}

static size_t pages_in_memory_of(const weir_tensor *tensor, size_t n_bytes)
{
    size_t resident = 0, page = (size_t)sysconf(_SC_PAGESIZE);
    FILE *maps = fopen("/proc/self/smaps", "r");
    char line[1024];
    unsigned long long from, to, kilobytes;
    bool here = false;
    assert_non_null(maps);
    while (fgets(line, sizeof(line), maps) != NULL) {
        if (sscanf(line, "%llx-%llx ", &from, &to) == 2)
            here = (uintptr_t)tensor->data < to && (uintptr_t)tensor->data + n_bytes > from;
        else if (here && sscanf(line, "Rss: %llu", &kilobytes) == 1)
            resident += kilobytes * 1024 / page;
    }
    fclose(maps);
    return resident;
}

static void advice_drops_pages_and_keeps_bytes(void **state)
{
    (void)state;
    enum { N = 1 << 22 };
    char *data = malloc(N), header[128];
    memset(data, 'x', N);
    snprintf(header, sizeof(header),
             "{\"t\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[0,%d]}}", N, N);
    test_directory_safetensors(&directory, "model.safetensors", header, data, N);
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_open(directory.path, &checkpoint), WEIR_OK);
    const weir_tensor *tensor = weir_checkpoint_find(checkpoint, "t");
    weir_checkpoint_will_need(checkpoint, tensor);
    assert_memory_equal(tensor->data, data, N);
    size_t read = pages_in_memory_of(tensor, N);
    weir_checkpoint_done_with(checkpoint, tensor);
    assert_true(pages_in_memory_of(tensor, N) < read / 4);
    assert_memory_equal(tensor->data, data, N);
    weir_checkpoint_close(checkpoint);
    free(data);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    write_shards(whole_index);
    test_directory_safetensors(&directory, "two.safetensors",
                               "{\"b\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}} ",
                               "bbbb", 4); /* unaligned */
    weir_checkpoint *checkpoint = NULL;
    uint64_t n_failures = 0;
    for (;; n_failures++) {
        weir_alloc_fail_at(n_failures + 1);
        weir_status status = weir_checkpoint_open(directory.path, &checkpoint);
        weir_alloc_fail_at(0);
        if (status == WEIR_OK)
            break;
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        assert_non_null(strstr(weir_last_error(), "out of memory"));
        assert_null(checkpoint);
    }
    assert_true(n_failures > 10);
    weir_checkpoint_close(checkpoint);
}

static void tens_of_thousands_of_tensors_are_found(void **state)
{
    (void)state;
    enum { N = 46848 };
    char *header = malloc(N * 128), name[64];
    size_t used = (size_t)sprintf(header, "{");
    for (int i = 0; i < N; i++)
        used += (size_t)sprintf(header + used,
                                "%s\"model.layers.%d.mlp.experts.%d.up_proj.weight\":"
                                "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                                i ? "," : "", i % 61, i / 61, i, i + 1);
    strcpy(header + used, "}");
    unsigned char *data = malloc(N);
    for (int i = 0; i < N; i++)
        data[i] = (unsigned char)(i % 251);
    test_directory_safetensors(&directory, "model.safetensors", header, data, N);
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_open(directory.path, &checkpoint), WEIR_OK);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.%d.up_proj.weight", i % 61,
                 i / 61);
        const weir_tensor *tensor = weir_checkpoint_find(checkpoint, name);
        assert_non_null(tensor);
        assert_int_equal(*(unsigned char *)tensor->data, i % 251);
    }
    weir_checkpoint_close(checkpoint);
    free(data);
    free(header);
}

static void closing_nothing_is_allowed(void **state)
{
    (void)state;
    weir_checkpoint_close(NULL);
}

/* Files of the reference implementation: made by another writer than ours. */
static void files_of_another_writer_open(void **state)
{
    (void)state;
    const char *golden = getenv("WEIR_TEST_SHARED_GOLDEN");
    if (golden == NULL || access(golden, R_OK) != 0) {
        print_message("no golden files of the reference here: skipped\n");
        skip();
    }
    weir_checkpoint *checkpoint;
    char path[1024];
    size_t n;
    snprintf(path, sizeof(path), "%s/fp8_128x128.input.safetensors", golden);
    assert_int_equal(weir_checkpoint_open(path, &checkpoint), WEIR_OK);
    assert_non_null(weir_checkpoint_tensors(checkpoint, &n));
    assert_true(n > 1);
    weir_checkpoint_close(checkpoint);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_directory, remove_directory)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_directory_with_an_index_is_its_shards),
        TEST(an_index_can_be_named),
        TEST(a_directory_without_index_is_all_its_files),
        TEST(several_paths_are_one_checkpoint),
        TEST(model_safetensors_is_preferred_to_other_files),
        TEST(a_file_in_the_working_directory_lies_in_dot),
        TEST(what_is_not_there_is_named),
        TEST(a_name_in_two_files_is_refused),
        TEST(an_index_that_differs_from_its_shards_is_refused),
        TEST(an_unaligned_tensor_is_copied_into_alignment),
        TEST(advice_drops_pages_and_keeps_bytes),
        TEST(every_allocation_may_fail),
        TEST(tens_of_thousands_of_tensors_are_found),
        TEST(closing_nothing_is_allowed),
        TEST(files_of_another_writer_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
