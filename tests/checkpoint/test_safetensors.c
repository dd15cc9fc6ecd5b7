/* SPDX-License-Identifier: Apache-2.0 */
/* Every kind of hostile header, from the small files in tests/golden/bad and built here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "checkpoint/file_map.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/test_directory.h"

#define ENTRY(name, dtype, shape, begin, end)                                                      \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" begin "," end \
    "]}"

/* Parses a file of this header and n_data bytes, from memory of exactly its length. */
static weir_status parse(const char *header, size_t n_data, weir_safetensors *out)
{
    uint64_t length = strlen(header);
    size_t n_bytes = 8 + length + n_data;
    unsigned char *bytes = calloc(1, n_bytes);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, length);
    weir_status status = weir_safetensors_parse(bytes, n_bytes, "F", out);
    free(bytes); /* nothing may point into it */
    return status;
}

static void refused(const char *header, size_t n_data, const char *line)
{
    weir_safetensors out = { 0 };
    assert_int_equal(parse(header, n_data, &out), WEIR_ERR_FORMAT);
    assert_string_equal(weir_last_error(), line);
    assert_null(out.entries);
}

static void entries_come_in_the_order_of_their_bytes(void **state)
{
    (void)state;
    weir_safetensors header;
    assert_int_equal(
        parse("{\"__metadata__\":{\"format\":\"pt\"}," ENTRY("b", "U8", "3", "8", "11") "," ENTRY(
                  "a", "F32", "2,1", "0", "8") "}   ",
              11, &header),
        WEIR_OK);
    assert_int_equal(header.n_entries, 2);
    assert_string_equal(header.entries[0].name, "a");
    assert_int_equal(header.entries[0].shape.rank, 2);
    assert_int_equal(header.entries[0].shape.dim[0], 2);
    assert_int_equal(header.entries[0].end - header.entries[0].begin, 8);
    assert_string_equal(header.entries[1].name, "b");
    assert_int_equal(header.entries[1].begin, header.entries[0].end);
    assert_int_equal(header.n_metadata, 1);
    assert_string_equal(header.metadata[0].key, "format");
    assert_string_equal(header.metadata[0].value, "pt");
    weir_safetensors_free(&header);
}

static void every_dtype_is_read_with_its_width(void **state)
{
    (void)state;
    for (int dtype = 1; dtype < WEIR_DTYPE_END; dtype++) {
        char text[256];
        unsigned n_bytes = weir_dtype_bits((weir_dtype)dtype); /* eight elements */
        snprintf(text, sizeof(text),
                 "{\"t\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%u]}}",
                 weir_dtype_name((weir_dtype)dtype), n_bytes);
        weir_safetensors header;
        assert_int_equal(parse(text, n_bytes, &header), WEIR_OK);
        assert_int_equal(header.entries[0].dtype, dtype);
        weir_safetensors_free(&header);
        assert_int_equal(parse(text, n_bytes + 1, &header), WEIR_ERR_FORMAT);
    }
}

static void files_without_data_are_legal(void **state)
{
    (void)state;
    weir_safetensors header;
    assert_int_equal(parse("{}", 0, &header), WEIR_OK);
    assert_int_equal(header.n_entries, 0);
    weir_safetensors_free(&header);
    assert_int_equal(
        parse("{" ENTRY("a", "F32", "0,7", "0", "0") "," ENTRY("b", "U8", "0", "0", "0") "}", 0,
              &header),
        WEIR_OK);
    assert_int_equal(header.n_entries, 2);
    weir_safetensors_free(&header);
}

static void empty_tensors_may_lie_anywhere(void **state)
{
    (void)state;
    weir_safetensors header;
    assert_int_equal(
        parse("{" ENTRY("a", "U8", "4", "0", "4") "," ENTRY("e", "U8", "0", "4", "4") "," ENTRY(
                  "b", "U8", "4", "4", "8") "," ENTRY("f", "U8", "0", "8", "8") "}",
              8, &header),
        WEIR_OK);
    assert_int_equal(header.n_entries, 4);
    weir_safetensors_free(&header);
    refused("{" ENTRY("a", "U8", "4", "0", "4") "," ENTRY("e", "U8", "0", "2", "2") "}", 4,
            "F: tensor 'e': begins at offset 2 and overlaps 'a', which ends at 4");
}

static void fields_beyond_the_format_are_ignored(void **state)
{
    (void)state;
    weir_safetensors header;
    assert_int_equal(parse("{\"a\":{\"dtype\":\"U8\",\"note\":{},\"shape\":[1],"
                           "\"data_offsets\":[0,1]}}",
                           1, &header),
                     WEIR_OK);
    weir_safetensors_free(&header);
}

static void the_line_names_tensor_expected_and_got(void **state)
{
    (void)state;
    refused("{" ENTRY("w", "BF16", "3,5", "0", "31") "}", 31,
            "F: tensor 'w': BF16 [3, 5] needs 30 bytes, data_offsets give 31");
    refused("{" ENTRY("w", "F6_E2M3", "3", "0", "2") "}", 2,
            "F: tensor 'w': shape [3] of F6_E2M3 is no whole number of bytes");
    refused("{" ENTRY("w", "U8", "9", "0", "9") "}", 8,
            "F: tensor 'w': data ends at offset 9, but the file holds 8 data bytes");
    refused("{" ENTRY("v", "U8", "4", "0", "4") "," ENTRY("w", "U8", "4", "3", "7") "}", 7,
            "F: tensor 'w': begins at offset 3 and overlaps 'v', which ends at 4");
    refused("{" ENTRY("v", "U8", "4", "0", "4") "," ENTRY("w", "U8", "4", "5", "9") "}", 9,
            "F: tensor 'w': begins at offset 5, leaving a gap after 4");
}

static void a_name_of_any_length_or_bytes_stays_one_line(void **state)
{
    (void)state;
    char text[5000] = "{\"\\n";
    memset(text + strlen(text), 'x', 4000);
    strcat(text, "\":{\"dtype\":\"NO\",\"shape\":[],\"data_offsets\":[0,0]}}");
    weir_safetensors header;
    assert_int_equal(parse(text, 0, &header), WEIR_ERR_FORMAT);
    assert_null(strchr(weir_last_error(), '\n'));
    assert_non_null(strstr(weir_last_error(), "unknown dtype 'NO'"));
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    uint64_t n_failures = 0;
    weir_safetensors header = { 0 };
    for (;; n_failures++) {
        weir_alloc_fail_at(n_failures + 1);
        weir_status status = parse(
            "{\"__metadata__\":{\"a\":\"b\"}," ENTRY("a", "U8", "1", "0", "1") "}", 1, &header);
        weir_alloc_fail_at(0);
        if (status == WEIR_OK)
            break;
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        assert_null(header.entries);
    }
    assert_true(n_failures >= 1);
    weir_safetensors_free(&header);
}

/* ---- tests/golden/bad ------------------------------------------------------------------------*/

typedef struct bad_file {
    const char *name, *line;
    weir_status status; /* 0: ERR_FORMAT */
} bad_file;

static const bad_file bad_files[] = {
    { "empty_file", "truncated: 0 bytes", 0 },
    { "short_length", "truncated: 3 bytes", 0 },
    { "header_length_0", "does not begin with '{'", 0 },
    { "header_length_huge", "header length 18446744073709551615", 0 },
    { "header_length_over_limit", "header length 100000001, the safetensors format allows", 0 },
    { "header_truncated", "truncated: header length 61, but 20 bytes follow it", 0 },
    { "header_cut", "header: line 1 column 60: '}' expected", 0 },
    { "header_leading_space", "does not begin with '{'", 0 },
    { "header_array", "does not begin with '{'", 0 },
    { "header_trailing_text", "end of file expected", 0 },
    { "header_invalid_utf8", "unable to decode byte 0xff", 0 },
    { "header_nul_in_name", "header: line 1 column", 0 },
    { "duplicate_tensor", "duplicate object key near '\"a\"'", 0 },
    { "duplicate_field", "duplicate object key near '\"dtype\"'", 0 },
    { "deep_nesting", "maximum parsing depth reached", 0 },
    { "metadata_array", "__metadata__ is no JSON object", 0 },
    { "metadata_nested", "__metadata__ 'a' is no string", 0 },
    { "metadata_number", "__metadata__ 'format' is no string", 0 },
    { "tensor_no_object", "tensor 'a': its entry is no JSON object", 0 },
    { "dtype_missing", "tensor 'a': \"dtype\" is missing", 0 },
    { "dtype_unknown", "tensor 'a': unknown dtype 'F33'", 0 },
    { "dtype_number", "tensor 'a': \"dtype\" is missing or no string", 0 },
    { "shape_missing", "tensor 'a': \"shape\" is missing", 0 },
    { "shape_negative", "tensor 'a': shape holds something else than counts at axis 0", 0 },
    { "shape_fraction", "tensor 'a': shape holds something else than counts at axis 0", 0 },
    { "shape_product_overflow", "tensor 'a': the product of its shape does not fit", 0 },
    { "shape_overflow_behind_zero", "tensor 'a': the product of its shape does not fit", 0 },
    { "shape_bytes_overflow", "tensor 'a': shape [4611686018427387904] of F32 has more than", 0 },
    { "shape_count_over_64_bits", "too big integer", 0 },
    { "shape_rank_9", "tensor 'a': shape has 9 axes, at most 8", WEIR_ERR_UNSUPPORTED },
    { "offsets_missing", "tensor 'a': \"data_offsets\" is missing", 0 },
    { "offsets_three", "tensor 'a': \"data_offsets\" is missing or not [begin, end]", 0 },
    { "offsets_fraction", "tensor 'a': \"data_offsets\" is missing or not [begin, end]", 0 },
    { "offsets_negative", "tensor 'a': \"data_offsets\" is missing or not [begin, end]", 0 },
    { "offsets_reversed", "tensor 'a': data_offsets begin at 8, after their end 0", 0 },
    { "offsets_over_64_bits", "too big integer", 0 },
    { "offsets_near_overflow", "tensor 'a': data ends at offset 9223372036854775807", 0 },
    { "size_wrong", "tensor 'a': F32 [3] needs 12 bytes, data_offsets give 8", 0 },
    { "size_wrong_sub_byte", "tensor 'a': shape [15] of F4 is no whole number of bytes", 0 },
    { "size_wrong_scalar", "tensor 'a': F32 [] needs 4 bytes, data_offsets give 8", 0 },
    { "data_truncated", "tensor 'a': data ends at offset 8, but the file holds 7", 0 },
    { "data_missing", "tensor 'a': data ends at offset 8, but the file holds 0", 0 },
    { "data_too_long", "tensors cover 8 data bytes, the file holds 9", 0 },
    { "data_without_tensors", "tensors cover 0 data bytes, the file holds 8", 0 },
    { "gap_at_start", "tensor 'a': begins at offset 4, leaving a gap after 0", 0 },
    { "gap_between", "tensor 'b': begins at offset 12, leaving a gap after 8", 0 },
    { "overlap", "tensor 'b': begins at offset 4 and overlaps 'a', which ends at 8", 0 },
    { "overlap_same", "tensor 'b': begins at offset 0 and overlaps 'a', which ends at 8", 0 },
};
#define N_BAD_FILES (sizeof(bad_files) / sizeof(bad_files[0]))

static void every_bad_file_is_refused_with_its_reason(void **state)
{
    (void)state;
    char path[1024];
    for (size_t i = 0; i < N_BAD_FILES; i++) {
        const bad_file *bad = &bad_files[i];
        snprintf(path, sizeof(path), "%s/bad/%s.safetensors", getenv("WEIR_TEST_GOLDEN"),
                 bad->name);
        weir_file_map map;
        assert_int_equal(weir_file_map_open(path, &map), WEIR_OK);
        weir_safetensors header = { 0 };
        weir_status status = weir_safetensors_parse(map.bytes, map.n_bytes, bad->name, &header);
        if (status != (bad->status ? bad->status : WEIR_ERR_FORMAT) ||
            strstr(weir_last_error(), bad->line) == NULL)
            fail_msg("%s gave %s: %s", bad->name, weir_status_name(status), weir_last_error());
        assert_true(strncmp(weir_last_error(), bad->name, strlen(bad->name)) == 0);
        weir_file_map_close(&map);
    }
}

static void no_bad_file_is_forgotten(void **state)
{
    (void)state;
    char path[1024];
    snprintf(path, sizeof(path), "%s/bad", getenv("WEIR_TEST_GOLDEN"));
    assert_int_equal(test_directory_count(path), N_BAD_FILES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_come_in_the_order_of_their_bytes),
        cmocka_unit_test(every_dtype_is_read_with_its_width),
        cmocka_unit_test(files_without_data_are_legal),
        cmocka_unit_test(empty_tensors_may_lie_anywhere),
        cmocka_unit_test(fields_beyond_the_format_are_ignored),
        cmocka_unit_test(the_line_names_tensor_expected_and_got),
        cmocka_unit_test(a_name_of_any_length_or_bytes_stays_one_line),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_bad_file_is_refused_with_its_reason),
        cmocka_unit_test(no_bad_file_is_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
