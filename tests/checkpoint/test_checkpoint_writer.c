/* SPDX-License-Identifier: Apache-2.0 */
/* What is written reads back; what fails leaves nothing behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/alloc.h"
#include "checkpoint/test_directory.h"
#include "weir/checkpoint.h"

static test_directory directory;
static char path[1024];
static size_t n_open_before;

static int make_directory(void **state)
{
    (void)state;
    test_directory_make(&directory);
    snprintf(path, sizeof(path), "%s/out.safetensors", directory.path);
    n_open_before = test_directory_count("/proc/self/fd");
    return 0;
}

static int remove_directory(void **state)
{
    (void)state;
    bool leaked = test_directory_count("/proc/self/fd") != n_open_before;
    test_directory_remove(&directory);
    return leaked;
}

static weir_tensor tensor_of(const char *name, weir_dtype dtype, uint64_t rows, uint64_t columns)
{
    return (weir_tensor){ name, dtype, { 2, { rows, columns } }, NULL };
}

static void create_fails(const char *at, const weir_tensor *tensors, size_t n, weir_status status,
                         const char *line)
{
    weir_checkpoint_writer *writer = NULL;
    assert_int_equal(weir_checkpoint_create(at, tensors, n, NULL, 0, &writer), status);
    assert_null(writer);
    if (strstr(weir_last_error(), line) == NULL)
        fail_msg("expected '%s' in: %s", line, weir_last_error());
}

static void every_dtype_reads_back(void **state)
{
    (void)state;
    weir_tensor tensors[WEIR_DTYPE_END];
    unsigned char bytes[72]; /* the widest tensor, from up to 8 bytes in */
    size_t n = 0;
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (unsigned char)(i * 37 + 11);
    for (int dtype = WEIR_DTYPE_END - 1; dtype > 0; dtype--)
        tensors[n++] = tensor_of(weir_dtype_name((weir_dtype)dtype), (weir_dtype)dtype, 2, 4);
    const char *const metadata[][2] = { { "format", "pt" }, { "quote\"", "line\nbreak" } };
    weir_checkpoint_writer *writer;
    assert_int_equal(weir_checkpoint_create(path, tensors, n, metadata, 2, &writer), WEIR_OK);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(
            weir_checkpoint_write(writer, i, 0, bytes + i % 8, weir_dtype_bits(tensors[i].dtype)),
            WEIR_OK);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(weir_checkpoint_commit(writer), WEIR_OK);

    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_open(path, &checkpoint), WEIR_OK);
    for (size_t i = 0; i < n; i++) {
        const weir_tensor *got = weir_checkpoint_find(checkpoint, tensors[i].name);
        assert_non_null(got);
        assert_int_equal(got->dtype, tensors[i].dtype);
        assert_true(weir_shape_equal(&got->shape, &tensors[i].shape));
        assert_memory_equal(got->data, bytes + i % 8, weir_dtype_bits(got->dtype));
    }
    assert_string_equal(weir_checkpoint_metadata(checkpoint, "quote\""), "line\nbreak");
    weir_checkpoint_close(checkpoint);
    assert_int_equal(test_directory_count(directory.path), 1);
}

static void names_of_any_text_read_back(void **state)
{
    (void)state;
    const weir_tensor tensors[] = {
        tensor_of("a\"b\\c/\n\t\x01", WEIR_U8, 1, 1),
        tensor_of("\xc3\xa9\xe2\x82\xac\xf0\x9f\x8c\x8a", WEIR_U8, 1, 1),
        tensor_of("", WEIR_U8, 0, 1),
    };
    weir_checkpoint_writer *writer;
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_create(path, tensors, 3, NULL, 0, &writer), WEIR_OK);
    assert_int_equal(weir_checkpoint_write(writer, 0, 0, "x", 1), WEIR_OK);
    assert_int_equal(weir_checkpoint_write(writer, 1, 0, "y", 1), WEIR_OK);
    assert_int_equal(weir_checkpoint_commit(writer), WEIR_OK);
    assert_int_equal(weir_checkpoint_open(path, &checkpoint), WEIR_OK);
    for (size_t i = 0; i < 3; i++)
        assert_non_null(weir_checkpoint_find(checkpoint, tensors[i].name));
    weir_checkpoint_close(checkpoint);
}

static void the_header_is_aligned_and_in_the_order_given(void **state)
{
    (void)state;
    weir_tensor tensors[] = { tensor_of("z", WEIR_F32, 1, 1), tensor_of("a", WEIR_U8, 1, 3) };
    for (int longer = 0; longer < 9; longer++) {
        char name[16] = "zzzzzzzzz";
        name[longer + 1] = '\0';
        tensors[0].name = name;
        weir_checkpoint_writer *writer;
        assert_int_equal(weir_checkpoint_create(path, tensors, 2, NULL, 0, &writer), WEIR_OK);
        assert_int_equal(weir_checkpoint_write(writer, 0, 0, "wxyz", 4), WEIR_OK);
        assert_int_equal(weir_checkpoint_write(writer, 1, 0, "abc", 3), WEIR_OK);
        assert_int_equal(weir_checkpoint_commit(writer), WEIR_OK);
        char text[512] = "";
        uint64_t length;
        FILE *file = fopen(path, "rb");
        size_t n = fread(text, 1, sizeof(text) - 1, file);
        fclose(file);
        memcpy(&length, text, 8);
        assert_int_equal(length % 8, 0);
        assert_int_equal(n, 8 + length + 7);
        assert_memory_equal(text + 8 + length, "wxyzabc", 7);
        assert_true(strstr(text + 8, "\"z") < strstr(text + 8, "\"a\""));
    }
}

static void pieces_come_in_any_order(void **state)
{
    (void)state;
    const weir_tensor tensors[] = { tensor_of("a", WEIR_U8, 2, 4), tensor_of("b", WEIR_U8, 1, 2) };
    weir_checkpoint_writer *writer;
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_create(path, tensors, 2, NULL, 0, &writer), WEIR_OK);
    assert_int_equal(weir_checkpoint_write(writer, 1, 0, "xy", 2), WEIR_OK);
    assert_int_equal(weir_checkpoint_write(writer, 0, 5, "567", 3), WEIR_OK);
    assert_int_equal(weir_checkpoint_write(writer, 0, 8, "", 0), WEIR_OK);
    assert_int_equal(weir_checkpoint_write(writer, 0, 0, "01234", 5), WEIR_OK);
    assert_int_equal(weir_checkpoint_commit(writer), WEIR_OK);
    assert_int_equal(weir_checkpoint_open(path, &checkpoint), WEIR_OK);
    assert_memory_equal(weir_checkpoint_find(checkpoint, "a")->data, "01234567", 8);
    assert_memory_equal(weir_checkpoint_find(checkpoint, "b")->data, "xy", 2);
    weir_checkpoint_close(checkpoint);
}

#define THREAD_ROWS 512
#define ROW_BYTES 1024

typedef struct writing_thread {
    weir_checkpoint_writer *writer;
    unsigned first;
    weir_status status;
} writing_thread;

static void *write_rows(void *argument)
{
    writing_thread *mine = argument;
    unsigned char row[ROW_BYTES];
    for (unsigned r = mine->first; r < THREAD_ROWS && mine->status == WEIR_OK; r += 2) {
        memset(row, (int)(r % 256), sizeof(row));
        mine->status =
            weir_checkpoint_write(mine->writer, 0, (uint64_t)r * ROW_BYTES, row, ROW_BYTES);
    }
    return NULL;
}

static void several_threads_write_one_tensor(void **state)
{
    (void)state;
    const weir_tensor tensor = tensor_of("t", WEIR_U8, THREAD_ROWS, ROW_BYTES);
    weir_checkpoint_writer *writer;
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_create(path, &tensor, 1, NULL, 0, &writer), WEIR_OK);
    writing_thread halves[2] = { { writer, 0, WEIR_OK }, { writer, 1, WEIR_OK } };
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_rows, &halves[i]), 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(halves[i].status, WEIR_OK);
    }
    assert_int_equal(weir_checkpoint_commit(writer), WEIR_OK);
    assert_int_equal(weir_checkpoint_open(path, &checkpoint), WEIR_OK);
    const unsigned char *data = weir_checkpoint_find(checkpoint, "t")->data;
    for (size_t i = 0; i < (size_t)THREAD_ROWS * ROW_BYTES; i++)
        assert_int_equal(data[i], i / ROW_BYTES % 256);
    weir_checkpoint_close(checkpoint);
}

static void a_tensor_not_written_whole_stops_the_commit(void **state)
{
    (void)state;
    const weir_tensor tensors[] = { tensor_of("a", WEIR_U8, 1, 4), tensor_of("b", WEIR_U8, 1, 4) };
    weir_checkpoint_writer *writer;
    test_directory_write(&directory, "out.safetensors", "old", 3);
    for (int again = 0; again < 2; again++) { /* one byte too few, one too many */
        assert_int_equal(weir_checkpoint_create(path, tensors, 2, NULL, 0, &writer), WEIR_OK);
        assert_int_equal(weir_checkpoint_write(writer, 0, 0, "abcd", 4), WEIR_OK);
        assert_int_equal(weir_checkpoint_write(writer, 1, 0, "abc", 3), WEIR_OK);
        if (again)
            assert_int_equal(weir_checkpoint_write(writer, 1, 2, "cd", 2), WEIR_OK);
        assert_int_equal(test_directory_count(directory.path), 2);
        assert_int_equal(weir_checkpoint_commit(writer), WEIR_ERR_INVALID);
        assert_non_null(strstr(weir_last_error(), again ? "tensor 'b': 5 of its 4 bytes"
                                                        : "tensor 'b': 3 of its 4 bytes"));
        assert_int_equal(test_directory_count(directory.path), 1);
    }
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, 3); /* the old file stands */
}

static void abandon_leaves_nothing(void **state)
{
    (void)state;
    const weir_tensor tensor = tensor_of("a", WEIR_U8, 1, 4);
    weir_checkpoint_writer *writer;
    assert_int_equal(weir_checkpoint_create(path, &tensor, 1, NULL, 0, &writer), WEIR_OK);
    weir_checkpoint_abandon(writer);
    weir_checkpoint_abandon(NULL);
    assert_int_equal(test_directory_count(directory.path), 0);
}

static void an_unfinished_file_is_no_part_of_its_directory(void **state)
{
    (void)state;
    const weir_tensor tensor = tensor_of("a", WEIR_U8, 1, 4);
    weir_checkpoint_writer *writer;
    weir_checkpoint *checkpoint;
    assert_int_equal(weir_checkpoint_create(path, &tensor, 1, NULL, 0, &writer), WEIR_OK);
    assert_int_equal(weir_checkpoint_open(directory.path, &checkpoint), WEIR_ERR_NOT_FOUND);
    weir_checkpoint_abandon(writer);
}

static void a_write_outside_its_tensor_is_refused(void **state)
{
    (void)state;
    const weir_tensor tensor = tensor_of("a", WEIR_U8, 1, 4);
    weir_checkpoint_writer *writer;
    assert_int_equal(weir_checkpoint_create(path, &tensor, 1, NULL, 0, &writer), WEIR_OK);
    assert_int_equal(weir_checkpoint_write(writer, 0, 1, "abcd", 4), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "tensor 'a': 4 bytes at 1, it has 4"));
    assert_int_equal(weir_checkpoint_write(writer, 0, UINT64_MAX, "a", 1), WEIR_ERR_INVALID);
    assert_int_equal(weir_checkpoint_write(writer, 0, 1, "a", UINT64_MAX), WEIR_ERR_INVALID);
    assert_int_equal(weir_checkpoint_write(writer, 1, 0, "a", 1), WEIR_ERR_INVALID);
    weir_checkpoint_abandon(writer);
}

static void bad_tensors_are_named(void **state)
{
    (void)state;
    const weir_tensor same[] = { tensor_of("a", WEIR_U8, 1, 4), tensor_of("a", WEIR_U8, 1, 4) };
    const weir_tensor odd = tensor_of("odd", WEIR_F4, 1, 3);
    const weir_tensor none = tensor_of("none", (weir_dtype)99, 1, 3);
    const weir_tensor huge[] = {
        tensor_of("h", WEIR_U8, 1ull << 60, 1),
        tensor_of("i", WEIR_U8, 1ull << 60, 1),
        tensor_of("j", WEIR_U8, 1ull << 60, 1),
        tensor_of("k", WEIR_U8, 1ull << 60, 1),
    };
    const weir_tensor thin = tensor_of("thin", WEIR_U8, UINT64_MAX, 0);
    const weir_tensor latin = tensor_of("\xe9", WEIR_U8, 1, 1);
    const weir_tensor reserved = tensor_of("__metadata__", WEIR_U8, 1, 1);
    const weir_tensor nameless = tensor_of(NULL, WEIR_U8, 1, 1);
    create_fails(path, same, 2, WEIR_ERR_INVALID, "tensor 'a' is given twice");
    create_fails(path, &odd, 1, WEIR_ERR_INVALID, "tensor 'odd': shape [1, 3] of F4");
    create_fails(path, &none, 1, WEIR_ERR_INVALID, "tensor 'none': dtype number 99");
    create_fails(path, huge, 4, WEIR_ERR_INVALID, "tensor 'k' takes the file beyond");
    const weir_tensor flat = { "flat", WEIR_U8, { 3, { 0, 1ull << 62, 1ull << 62 } }, NULL };
    create_fails(path, &flat, 1, WEIR_ERR_INVALID, "tensor 'flat': axis 2 is longer");
    create_fails(path, &thin, 1, WEIR_ERR_INVALID, "tensor 'thin': axis 0 is longer");
    create_fails(path, &latin, 1, WEIR_ERR_INVALID, "no UTF-8");
    create_fails(path, &reserved, 1, WEIR_ERR_INVALID, "cannot be called '__metadata__'");
    create_fails(path, &nameless, 1, WEIR_ERR_INVALID, "cannot be called");
    assert_int_equal(test_directory_count(directory.path), 0);
}

static void bad_metadata_is_named(void **state)
{
    (void)state;
    weir_checkpoint_writer *writer;
    const char *const twice[][2] = { { "k", "1" }, { "k", "2" } };
    const char *const latin[][2] = { { "k", "\xe9" } };
    const char *const missing[][2] = { { "k", NULL } };
    assert_int_equal(weir_checkpoint_create(path, NULL, 0, twice, 2, &writer), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "metadata 'k' is given twice"));
    assert_int_equal(weir_checkpoint_create(path, NULL, 0, latin, 1, &writer), WEIR_ERR_INVALID);
    assert_int_equal(weir_checkpoint_create(path, NULL, 0, missing, 1, &writer), WEIR_ERR_INVALID);
}

static void bad_places_are_named(void **state)
{
    (void)state;
    char at[1100];
    create_fails(directory.path, NULL, 0, WEIR_ERR_EXISTS, "is a directory");
    create_fails("/dev/null", NULL, 0, WEIR_ERR_EXISTS, "is a device");
    create_fails("", NULL, 0, WEIR_ERR_INVALID, "names no file");
    snprintf(at, sizeof(at), "%s/", path);
    create_fails(at, NULL, 0, WEIR_ERR_INVALID, "names no file");
    snprintf(at, sizeof(at), "%s/none/out.safetensors", directory.path);
    create_fails(at, NULL, 0, WEIR_ERR_NOT_FOUND, "cannot create a file in");
    test_directory_write(&directory, "file", "x", 1);
    snprintf(at, sizeof(at), "%s/file/out.safetensors", directory.path);
    create_fails(at, NULL, 0, WEIR_ERR_IO, "Not a directory");
}

static void no_tensors_make_a_legal_file(void **state)
{
    (void)state;
    weir_checkpoint_writer *writer;
    weir_checkpoint *checkpoint;
    size_t n;
    assert_int_equal(weir_checkpoint_create(path, NULL, 0, NULL, 0, &writer), WEIR_OK);
    assert_int_equal(weir_checkpoint_commit(writer), WEIR_OK);
    assert_int_equal(weir_checkpoint_open(path, &checkpoint), WEIR_OK);
    weir_checkpoint_tensors(checkpoint, &n);
    assert_int_equal(n, 0);
    weir_checkpoint_close(checkpoint);
}

static void a_disk_without_room_leaves_nothing(void **state)
{
    (void)state;
    const weir_tensor tensor = tensor_of("a", WEIR_U8, 1 << 10, 1 << 10);
    struct rlimit before, tight;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    tight = before;
    tight.rlim_cur = 1 << 16; /* stands for the end of the disk: EFBIG instead of ENOSPC */
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    weir_checkpoint_writer *writer = NULL;
    weir_status status = weir_checkpoint_create(path, &tensor, 1, NULL, 0, &writer);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, WEIR_ERR_IO);
    assert_non_null(strstr(weir_last_error(), "cannot reserve"));
    assert_int_equal(test_directory_count(directory.path), 0);
}

static void a_write_that_fails_stops_the_commit(void **state)
{
    (void)state;
    const weir_tensor tensor = tensor_of("a", WEIR_U8, 1 << 10, 1 << 10);
    char *data = calloc(1 << 10, 1 << 10);
    struct rlimit before, tight;
    weir_checkpoint_writer *writer = NULL;
    assert_int_equal(weir_checkpoint_create(path, &tensor, 1, NULL, 0, &writer), WEIR_OK);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    tight = before;
    tight.rlim_cur = 1 << 16;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    weir_status status = weir_checkpoint_write(writer, 0, 0, data, 1 << 20);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    free(data);
    assert_int_equal(status, WEIR_ERR_IO);
    assert_non_null(strstr(weir_last_error(), "cannot write"));
    assert_int_equal(weir_checkpoint_commit(writer), WEIR_ERR_INVALID);
    assert_int_equal(test_directory_count(directory.path), 0);
}

static void a_rename_that_fails_leaves_nothing(void **state)
{
    (void)state;
    weir_checkpoint_writer *writer;
    assert_int_equal(weir_checkpoint_create(path, NULL, 0, NULL, 0, &writer), WEIR_OK);
    assert_int_equal(mkdir(path, 0777), 0); /* it came while the file was being written */
    assert_int_equal(weir_checkpoint_commit(writer), WEIR_ERR_IO);
    assert_non_null(strstr(weir_last_error(), "cannot be put in place"));
    assert_int_equal(test_directory_count(directory.path), 1);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    const weir_tensor tensor = tensor_of("a", WEIR_U8, 0, 4);
    const char *const metadata[][2] = { { "k", "v" } };
    weir_checkpoint_writer *writer = NULL;
    uint64_t n_failures = 0;
    for (;; n_failures++) {
        weir_alloc_fail_at(n_failures + 1);
        weir_status status = weir_checkpoint_create(path, &tensor, 1, metadata, 1, &writer);
        weir_alloc_fail_at(0);
        if (status == WEIR_OK)
            break;
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        assert_null(writer);
        assert_int_equal(test_directory_count(directory.path), 0);
    }
    assert_true(n_failures >= 3);
    assert_int_equal(weir_checkpoint_commit(writer), WEIR_OK);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_directory, remove_directory)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_dtype_reads_back),
        TEST(names_of_any_text_read_back),
        TEST(the_header_is_aligned_and_in_the_order_given),
        TEST(pieces_come_in_any_order),
        TEST(several_threads_write_one_tensor),
        TEST(a_tensor_not_written_whole_stops_the_commit),
        TEST(abandon_leaves_nothing),
        TEST(an_unfinished_file_is_no_part_of_its_directory),
        TEST(a_write_outside_its_tensor_is_refused),
        TEST(bad_tensors_are_named),
        TEST(bad_metadata_is_named),
        TEST(bad_places_are_named),
        TEST(no_tensors_make_a_legal_file),
        TEST(a_disk_without_room_leaves_nothing),
        TEST(a_write_that_fails_stops_the_commit),
        TEST(a_rename_that_fails_leaves_nothing),
        TEST(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
