/* SPDX-License-Identifier: Apache-2.0 */
/* Mapping whole files, and what is no file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "checkpoint/file_map.h"
#include "checkpoint/test_directory.h"

static void a_file_is_mapped_whole(void **state)
{
    (void)state;
    test_directory directory;
    weir_file_map map;
    test_directory_make(&directory);
    test_directory_write(&directory, "f", "abc", 3);
    assert_int_equal(weir_file_map_open(test_directory_file(&directory, "f"), &map), WEIR_OK);
    assert_int_equal(map.n_bytes, 3);
    assert_memory_equal(map.bytes, "abc", 3);
    weir_file_map_close(&map);
    assert_null(map.bytes);
    weir_file_map_close(&map);
    test_directory_remove(&directory);
}

static void an_empty_file_has_no_mapping(void **state)
{
    (void)state;
    test_directory directory;
    weir_file_map map;
    test_directory_make(&directory);
    test_directory_write(&directory, "f", "", 0);
    assert_int_equal(weir_file_map_open(test_directory_file(&directory, "f"), &map), WEIR_OK);
    assert_int_equal(map.n_bytes, 0);
    assert_null(map.bytes);
    weir_file_map_close(&map);
    test_directory_remove(&directory);
}

static void what_is_no_regular_file_is_refused_at_once(void **state)
{
    (void)state;
    test_directory directory;
    weir_file_map map;
    size_t n_open = test_directory_count("/proc/self/fd");
    test_directory_make(&directory);
    const char *fifo = test_directory_file(&directory, "fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(weir_file_map_open(fifo, &map), WEIR_ERR_IO); /* and does not wait */
    assert_int_equal(weir_file_map_open(directory.path, &map), WEIR_ERR_IO);
    assert_int_equal(weir_file_map_open("/none", &map), WEIR_ERR_NOT_FOUND);
    assert_int_equal(test_directory_count("/proc/self/fd"), n_open);
    test_directory_remove(&directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_mapped_whole),
        cmocka_unit_test(an_empty_file_has_no_mapping),
        cmocka_unit_test(what_is_no_regular_file_is_refused_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
