/* SPDX-License-Identifier: Apache-2.0 */
/* test_gather.c - rows and columns of whole sources, as a worker has them: every element says where
 * it comes from.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "refit/gather.h"

#define COLS 6
#define N_EXPERTS 4

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

/* Element (row, column) of source `source` of expert `expert`. */
static uint16_t value(size_t expert, size_t source, size_t row, size_t col)
{
    return (uint16_t)(expert << 12 | source << 10 | row << 4 | col);
}

/* n_rows x COLS of BF16; of several experts one after the other, from `expert` on. */
static weir_tensor make(size_t expert, size_t n_experts, size_t source, uint64_t n_rows)
{
    uint16_t *data = malloc(n_experts * n_rows * COLS * sizeof(*data));
    assert_non_null(data);
    for (size_t i = 0; i < n_experts * n_rows * COLS; i++)
        data[i] = value(expert + i / (n_rows * COLS), source, i / COLS % n_rows, i % COLS);
    return (weir_tensor){ "source", WEIR_BF16, { 2, { n_rows, COLS } }, data };
}

static void expect_rows(const uint16_t **at, size_t expert, size_t source, size_t row, size_t n,
                        size_t col, size_t n_cols)
{
    for (size_t r = row; r < row + n; r++) {
        for (size_t c = col; c < col + n_cols; c++)
            assert_int_equal(*(*at)++, value(expert, source, r, c));
    }
}

static weir_gather open_gather(const weir_replica_mesh *mesh, weir_mesh_place place)
{
    weir_gather gather = { .mesh = mesh, .place = place };
    weir_arena_init(&gather.arena, 0);
    return gather;
}

static void close_gather(weir_gather *gather)
{
    weir_arena_close(&gather->arena);
    weir_buffer_free(&gather->bytes);
}

static const weir_conversion *bf16(void)
{
    const weir_conversion *conversion;
    must(weir_conversion_get("bf16_cast", &conversion));
    return conversion;
}

/* Four heads of two rows of queries, two of keys: the third of four workers. */
static void parts_are_cut_one_by_one_and_heads_repeated(void **state)
{
    weir_replica_mesh mesh = { .tp = 4, .ep = 1, .dp = 1, .vocabulary_pad = 1 };
    weir_gather gather = open_gather(&mesh, (weir_mesh_place){ 0, 0, 2 });
    weir_tensor sources[] = { make(0, 1, 0, 8), make(0, 1, 1, 4) };
    weir_map_entry entry = { .name = "qk",
                             .conversion = bf16(),
                             .sources = sources,
                             .n_sources = 2,
                             .shape = { 2, { 12, COLS } },
                             .cut = WEIR_CUT_COLUMN },
                   out;
    weir_fleet_tensor tensor = { .name = "qk",
                                 .conversion = bf16(),
                                 .cut = WEIR_CUT_COLUMN,
                                 .source_bits = 16,
                                 .n_cols = COLS,
                                 .n_sources = 2,
                                 .n_parts = 2,
                                 .source_rows = { 8, 4 },
                                 .parts = { { 0, 4, 0, 8 }, { 1, 2, 0, 4 } } };
    (void)state;
    must(weir_gather_entry(&gather, &entry, &tensor, &out));
    assert_int_equal(out.n_sources, 1);
    assert_int_equal(out.shape.dim[0], 4);
    const uint16_t *at = out.sources[0].data;
    expect_rows(&at, 0, 0, 4, 2, 0, COLS);
    expect_rows(&at, 0, 1, 2, 2, 0, COLS);
    tensor.cut = WEIR_CUT_NONE;
    must(weir_gather_entry(&gather, &entry, &tensor, &out));
    assert_int_equal(out.shape.dim[0], 12);
    sources[1].dtype = WEIR_F16; /* of two dtypes: two sources */
    must(weir_gather_entry(&gather, &entry, &tensor, &out));
    assert_int_equal(out.n_sources, 2);
    assert_int_equal(out.n_experts, 0);
    assert_int_equal(out.sources[1].shape.dim[0], 4);
    close_gather(&gather);
    free(sources[0].data);
    free(sources[1].data);
}

/* Experts 3 and 1, columns [3, 6) of each: from one tensor per expert and from a stacked one. */
static void experts_come_by_their_ids_and_columns_by_the_worker(void **state)
{
    static const uint32_t ids[] = { 0, 2, 1, 3, 1 }, first[] = { 0, 3, 5 };
    weir_replica_mesh mesh = {
        .tp = 2, .ep = 2, .dp = 2, .expert_ids = ids, .expert_first = first
    };
    weir_tensor sources[N_EXPERTS], stacked = make(0, N_EXPERTS, 0, 5);
    stacked.shape = (weir_shape){ 3, { N_EXPERTS, 5, COLS } };
    for (size_t x = 0; x < N_EXPERTS; x++)
        sources[x] = make(x, 1, 0, 5);
    weir_map_entry each = { .name = "w2",
                            .conversion = bf16(),
                            .sources = sources,
                            .n_sources = 1,
                            .n_experts = N_EXPERTS,
                            .axis = 1,
                            .shape = { 3, { N_EXPERTS, 5, COLS } } },
                   out;
    weir_map_entry one = each;
    one.sources = &stacked;
    one.n_experts = 0;
    weir_fleet_tensor tensor = { .name = "w2",
                                 .conversion = bf16(),
                                 .cut = WEIR_CUT_ROW,
                                 .n_experts = N_EXPERTS,
                                 .source_bits = 16,
                                 .n_cols = COLS,
                                 .n_sources = 1,
                                 .n_parts = 1,
                                 .source_rows = { 5 },
                                 .parts = { { 0, 0, 0, 5 } } };
    weir_gather gather = open_gather(&mesh, (weir_mesh_place){ 0, 1, 1 });
    const weir_map_entry *entries[] = { &each, &one };
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        must(weir_gather_entry(&gather, entries[i], &tensor, &out));
        assert_int_equal(out.n_sources, 1);
        assert_int_equal(out.shape.dim[0], 2);
        assert_int_equal(out.shape.dim[2], 3);
        const uint16_t *at = out.sources[0].data;
        expect_rows(&at, 3, 0, 0, 5, 3, 3);
        expect_rows(&at, 1, 0, 0, 5, 3, 3);
    }
    mesh.expert_ids = NULL; /* contiguous: experts 2 and 3 */
    must(weir_gather_entry(&gather, &one, &tensor, &out));
    const uint16_t *at = out.sources[0].data;
    expect_rows(&at, 2, 0, 0, 5, 3, 3);
    expect_rows(&at, 3, 0, 0, 5, 3, 3);
    close_gather(&gather);
    free(stacked.data);
    for (size_t x = 0; x < N_EXPERTS; x++)
        free(sources[x].data);
}

/* Ten rows, padded to sixteen: 8 and 2, of four workers' 4 the third has 2 and the last none. */
static void padding_is_left_out(void **state)
{
    weir_replica_mesh mesh = { .tp = 4, .ep = 1, .dp = 1, .vocabulary_pad = 16 };
    weir_tensor source = make(0, 1, 0, 10);
    weir_map_entry entry = { .name = "embed",
                             .conversion = bf16(),
                             .sources = &source,
                             .n_sources = 1,
                             .shape = { 2, { 10, COLS } } },
                   out;
    weir_fleet_tensor tensor = { .name = "embed",
                                 .conversion = bf16(),
                                 .cut = WEIR_CUT_VOCABULARY,
                                 .source_bits = 16,
                                 .n_cols = COLS,
                                 .n_sources = 1,
                                 .n_parts = 1,
                                 .source_rows = { 10 },
                                 .parts = { { 0, 0, 0, 10 } } };
    weir_gather gather = open_gather(&mesh, (weir_mesh_place){ 0, 0, 2 });
    (void)state;
    must(weir_gather_entry(&gather, &entry, &tensor, &out));
    assert_int_equal(out.shape.dim[0], 2);
    const uint16_t *at = out.sources[0].data;
    expect_rows(&at, 0, 0, 8, 2, 0, COLS);
    gather.place.t = 3;
    must(weir_gather_entry(&gather, &entry, &tensor, &out));
    assert_int_equal(out.n_sources, 0);
    weir_alloc_fail_at(1);
    gather.place.t = 0;
    weir_buffer_free(&gather.bytes);
    gather.bytes = (weir_buffer){ 0 };
    assert_int_equal(weir_gather_entry(&gather, &entry, &tensor, &out), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    source.dtype = WEIR_F4;
    assert_int_equal(weir_gather_entry(&gather, &entry, &tensor, &out), WEIR_ERR_UNSUPPORTED);
    close_gather(&gather);
    free(source.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_are_cut_one_by_one_and_heads_repeated),
        cmocka_unit_test(experts_come_by_their_ids_and_columns_by_the_worker),
        cmocka_unit_test(padding_is_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
