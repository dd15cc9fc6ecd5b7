/* SPDX-License-Identifier: Apache-2.0 */
/* test_shards.c - which memory holds which rows, of a small model with experts in both namings. */
#include "refit/shards.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"

#define MAX_SHARDS 4096

#define assert_ok(call)                                                                      \
    do {                                                                                     \
        weir_status case_status = (call);                                                    \
        if (case_status != WEIR_OK)                                                          \
            fail_msg("%s: %s: %s", #call, weir_status_name(case_status), weir_last_error()); \
    } while (0)
#define assert_error(call, status, line)                                                        \
    do {                                                                                        \
        weir_status case_status = (call);                                                       \
        if (case_status != (status) || strstr(weir_last_error(), line) == NULL)                 \
            fail_msg("%s: got %s: '%s', wanted %s: '%s'", #call, weir_status_name(case_status), \
                     weir_last_error(), weir_status_name(status), line);                        \
    } while (0)

typedef struct model {
    weir_config *config;
    weir_tensor *sources;
    size_t n_sources;
    weir_mapping *mapping;
    weir_fleet_tensor *tensors;
    size_t n_tensors;
    weir_tensor_shard shards[MAX_SHARDS];
    size_t n_shards;
} model;

static model *open_model(const char *family, weir_naming naming)
{
    char *text, path[] = "/tmp/weir-shards-XXXXXX";
    model *m = calloc(1, sizeof(*m));
    assert_non_null(m);
    assert_ok(weir_family_preset(family, "ragged", &text));
    int fd = mkstemp(path);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    weir_string_free(text);
    assert_ok(weir_config_open(path, &m->config));
    unlink(path);
    assert_ok(weir_family_sources(family, m->config, naming, &m->sources, &m->n_sources));
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.config = m->config;
    options.unreadable = true;
    assert_ok(weir_mapping_open(&options, m->sources, m->n_sources, &m->mapping));
    assert_ok(weir_fleet_tensors_of(m->mapping, &m->tensors, &m->n_tensors));
    return m;
}

static void close_model(model *m)
{
    for (size_t i = 0; i < m->n_shards; i++)
        free(m->shards[i].local.data);
    weir_fleet_tensors_free(m->tensors);
    weir_mapping_close(m->mapping);
    weir_family_sources_free(m->sources);
    weir_config_close(m->config);
    free(m);
}

/* What element `index` of a source is: differs from its neighbours and from source to source. */
static unsigned char value_of(const char *name, uint64_t index)
{
    uint64_t x = index * 0x9E3779B97F4A7C15u;
    for (; *name != '\0'; name++)
        x = (x ^ (unsigned char)*name) * 0x100000001B3u;
    return (unsigned char)(x >> 29);
}

/* Memory of the box's shape; the first byte of each element says which one it is. */
static void add_shard(model *m, const weir_tensor *source, const weir_box *box)
{
    weir_tensor_shard *shard = &m->shards[m->n_shards++];
    uint64_t n_bytes, n, bytes = weir_dtype_bits(source->dtype) / 8;
    assert_true(m->n_shards <= MAX_SHARDS);
    *shard =
        (weir_tensor_shard){ .local = { source->name, source->dtype, weir_box_shape(box), NULL },
                             .global_shape = source->shape,
                             .box = *box };
    assert_ok(weir_tensor_bytes(source->dtype, &shard->local.shape, &n_bytes));
    unsigned char *data = calloc(1, n_bytes + 1);
    assert_non_null(data);
    shard->local.data = data;
    assert_ok(weir_shape_elements(&shard->local.shape, &n));
    for (uint64_t i = 0; i < n; i++) {
        uint64_t rest = i, index = 0, stride = 1;
        for (uint32_t d = box->rank; d-- > 0;) {
            uint64_t extent = box->hi[d] - box->lo[d];
            index += (box->lo[d] + rest % extent) * stride;
            stride *= source->shape.dim[d];
            rest /= extent;
        }
        data[i * bytes] = value_of(source->name, index);
    }
}

/* Every source in `n` boxes along axis `axis`, or the axis it has. */
static void register_cut(model *m, uint32_t axis, uint64_t n)
{
    for (size_t s = 0; s < m->n_sources; s++) {
        const weir_tensor *source = &m->sources[s];
        uint32_t along = axis < source->shape.rank ? axis : source->shape.rank - 1;
        uint64_t dim = source->shape.dim[along], chunk = (dim + n - 1) / n;
        for (uint64_t i = 0; i < n; i++) {
            weir_box box = weir_box_whole(&source->shape);
            box.lo[along] = i * chunk < dim ? i * chunk : dim;
            box.hi[along] = (i + 1) * chunk < dim ? (i + 1) * chunk : dim;
            add_shard(m, source, &box);
        }
    }
}

static const weir_tensor *source_of(const model *m, const weir_share_piece *piece)
{
    size_t n;
    const weir_map_entry *entry = &weir_mapping_entries(m->mapping, &n)[piece->tensor];
    size_t expert = entry->n_experts > 0 ? piece->expert : 0;
    return &entry->sources[expert * entry->n_sources + piece->source];
}

/* The rows are those that the model's source has at that place. */
static void check_rows(const model *m, const weir_share_piece *piece, const weir_local_rows *rows)
{
    const weir_tensor *source = source_of(m, piece);
    const weir_fleet_tensor *tensor = &m->tensors[piece->tensor];
    uint64_t n_rows = tensor->source_rows[piece->source];
    uint64_t first_row = tensor->stacked ? piece->expert * n_rows : 0;
    uint64_t bytes = weir_dtype_bits(source->dtype) / 8;
    assert_string_equal(rows->shard->local.name, source->name);
    for (uint64_t r = 0; r < piece->n_rows; r++) {
        for (uint64_t c = 0; c < piece->n_cols; c++) {
            uint64_t row = first_row + piece->source_row + r;
            unsigned char want =
                value_of(source->name, row * tensor->n_cols + piece->source_col + c);
            assert_int_equal(rows->data[r * rows->pitch_bytes + c * bytes], want);
        }
    }
}

/* Asks for two corners, the middle and the whole of every box: all of them are found. */
static void check_boxes(const model *m, const weir_local_shards *local)
{
    for (size_t i = 0; i < local->n_boxes; i++) {
        const weir_local_box *box = &local->boxes[i];
        uint32_t rows = (uint32_t)(box->row_hi - box->row_lo);
        uint32_t cols = (uint32_t)(box->col_hi - box->col_lo);
        for (unsigned k = 0; k < 4; k++) {
            weir_share_piece piece = { .tensor = box->tensor,
                                       .source = box->source,
                                       .expert = box->expert,
                                       .source_row = (uint32_t)box->row_lo,
                                       .source_col = (uint32_t)box->col_lo,
                                       .n_rows = k == 0 ? rows : (rows + 1) / 2,
                                       .n_cols = k == 0 ? cols : (cols + 1) / 2 };
            piece.source_row += k == 1 ? rows - piece.n_rows : k == 2 ? rows / 3 : 0;
            piece.source_col += k == 1 ? cols - piece.n_cols : k == 2 ? cols / 3 : 0;
            weir_local_rows found;
            assert_ok(weir_local_shards_find(local, m->tensors, &piece, &found));
            check_rows(m, &piece, &found);
        }
    }
}

/* All experts of all sources are covered by so many elements as there are. */
static void check_sum(const model *m, const weir_local_shards *local)
{
    uint64_t want = 0, got = 0;
    for (size_t t = 0; t < m->n_tensors; t++) {
        uint64_t n_experts = m->tensors[t].n_experts ? m->tensors[t].n_experts : 1;
        for (uint32_t s = 0; s < m->tensors[t].n_sources; s++)
            want += n_experts * m->tensors[t].source_rows[s] * m->tensors[t].n_cols;
    }
    for (size_t i = 0; i < local->n_boxes; i++) {
        const weir_local_box *box = &local->boxes[i];
        got += (box->row_hi - box->row_lo) * (box->col_hi - box->col_lo);
    }
    assert_int_equal(got, want);
}

static weir_status open_local(const model *m, weir_local_shards **out)
{
    return weir_local_shards_open(m->mapping, m->tensors, m->n_tensors, m->shards, m->n_shards,
                                  out);
}

static void check_cut(const char *family, weir_naming naming, uint32_t axis, uint64_t n)
{
    model *m = open_model(family, naming);
    weir_local_shards *local = NULL;
    register_cut(m, axis, n);
    assert_ok(open_local(m, &local));
    check_boxes(m, local);
    check_sum(m, local);
    weir_local_shards_close(local);
    close_model(m);
}

/* ---- finding ---------------------------------------------------------------------------------*/

static void test_whole_tensors_are_found(void **state)
{
    (void)state;
    check_cut("qwen3_moe", WEIR_NAMING_HF, 0, 1);
    check_cut("llama", WEIR_NAMING_HF, 0, 1);
}

static void test_uneven_chunks_of_rows_are_found(void **state)
{
    (void)state;
    check_cut("qwen3_moe", WEIR_NAMING_HF, 0, 3);
    check_cut("glm_moe_dsa", WEIR_NAMING_HF, 0, 5);
}

static void test_chunks_of_columns_keep_their_pitch(void **state)
{
    (void)state;
    check_cut("qwen3_moe", WEIR_NAMING_HF, 1, 3);
}

static void test_stacked_experts_are_found_one_by_one(void **state)
{
    (void)state;
    for (uint32_t axis = 0; axis < 3; axis++)
        check_cut("glm_moe_dsa", WEIR_NAMING_STACKED, axis, 3);
    check_cut("qwen3_moe", WEIR_NAMING_HF_FUSED, 1, 2);
}

static const weir_tensor *find_source(const model *m, const char *part, uint32_t rank)
{
    for (size_t s = 0; s < m->n_sources; s++) {
        if (strstr(m->sources[s].name, part) != NULL && m->sources[s].shape.rank == rank)
            return &m->sources[s];
    }
    fail_msg("no source '%s' of rank %u", part, rank);
    return NULL;
}

static void test_rows_that_are_not_here_are_named(void **state)
{
    (void)state;
    model *m = open_model("qwen3_moe", WEIR_NAMING_HF);
    const weir_tensor *source = find_source(m, "down_proj", 2);
    weir_box box = weir_box_whole(&source->shape);
    weir_local_shards *local = NULL;
    weir_local_rows rows;
    box.lo[0] = 4;
    box.hi[0] = 9;
    add_shard(m, source, &box);
    assert_ok(open_local(m, &local));
    assert_int_equal(local->n_boxes, 1);
    weir_share_piece piece = { .tensor = local->boxes[0].tensor,
                               .expert = local->boxes[0].expert,
                               .source_row = 7,
                               .n_rows = 2,
                               .n_cols = 1 };
    assert_ok(weir_local_shards_find(local, m->tensors, &piece, &rows));
    piece.n_rows = 3;
    assert_error(weir_local_shards_find(local, m->tensors, &piece, &rows), WEIR_ERR_LAYOUT,
                 "must register rows [7, 10) and columns [0, 1) in one box, rows [4, 9) and");
    assert_non_null(strstr(weir_last_error(), source->name));
    piece.n_rows = UINT32_MAX;
    assert_error(weir_local_shards_find(local, m->tensors, &piece, &rows), WEIR_ERR_LAYOUT,
                 "in one box");
    piece.n_rows = 1;
    piece.expert++;
    assert_error(weir_local_shards_find(local, m->tensors, &piece, &rows), WEIR_ERR_LAYOUT,
                 "nothing of it was");
    piece.tensor = (uint32_t)m->n_tensors - 1;
    assert_error(weir_local_shards_find(local, m->tensors, &piece, &rows), WEIR_ERR_LAYOUT,
                 "nothing of it was");
    weir_local_shards_close(local);
    close_model(m);
}

static void test_nothing_registered_holds_nothing(void **state)
{
    (void)state;
    model *m = open_model("llama", WEIR_NAMING_HF);
    weir_local_shards *local = NULL;
    weir_share_piece piece = { .n_rows = 1, .n_cols = 1 };
    weir_local_rows rows;
    assert_ok(open_local(m, &local));
    assert_error(weir_local_shards_find(local, m->tensors, &piece, &rows), WEIR_ERR_LAYOUT,
                 "nothing of it was");
    weir_local_shards_close(local);
    close_model(m);
}

static void test_names_outlive_the_caller(void **state)
{
    (void)state;
    model *m = open_model("llama", WEIR_NAMING_HF);
    const weir_tensor *source = find_source(m, "down_proj", 2);
    weir_box box = weir_box_whole(&source->shape);
    weir_local_shards *local = NULL;
    char *name = strdup(source->name);
    add_shard(m, source, &box);
    m->shards[0].local.name = name;
    assert_ok(open_local(m, &local));
    memset(name, 'x', strlen(name));
    free(name);
    assert_string_equal(local->shards[0].local.name, source->name);
    weir_local_shards_close(local);
    close_model(m);
}

/* ---- refusing --------------------------------------------------------------------------------*/

static void refuse(model *m, weir_tensor_shard shard, weir_status status, const char *line)
{
    weir_local_shards *local = NULL;
    weir_tensor_shard was = m->shards[0];
    m->shards[0] = shard;
    assert_error(open_local(m, &local), status, line);
    assert_null(local);
    m->shards[0] = was;
}

static void test_what_does_not_fit_the_model_is_refused(void **state)
{
    (void)state;
    model *m = open_model("llama", WEIR_NAMING_HF);
    const weir_tensor *source = find_source(m, "down_proj", 2);
    weir_box box = weir_box_whole(&source->shape);
    add_shard(m, source, &box);
    weir_tensor_shard shard = m->shards[0];
    shard.local.name = "no.such.tensor";
    refuse(m, shard, WEIR_ERR_LAYOUT, "no.such.tensor was registered, but the model has no such");
    shard.local.name = NULL;
    refuse(m, shard, WEIR_ERR_INVALID, "has no name");
    shard = m->shards[0];
    shard.global_shape.dim[0]++;
    refuse(m, shard, WEIR_ERR_LAYOUT, "the model has it with shape");
    shard = m->shards[0];
    shard.global_shape.rank = WEIR_MAX_RANK + 1;
    refuse(m, shard, WEIR_ERR_LAYOUT, "more than 8 axes");
    shard = m->shards[0];
    shard.local.dtype = WEIR_U8;
    refuse(m, shard, WEIR_ERR_LAYOUT, "registered as U8, which");
    shard.local.dtype = (weir_dtype)77;
    refuse(m, shard, WEIR_ERR_LAYOUT, "registered as ?, which");
    close_model(m);
}

static void test_boxes_outside_their_tensor_are_refused(void **state)
{
    (void)state;
    model *m = open_model("llama", WEIR_NAMING_HF);
    const weir_tensor *source = find_source(m, "down_proj", 2);
    weir_box box = weir_box_whole(&source->shape);
    add_shard(m, source, &box);
    weir_tensor_shard shard = m->shards[0];
    shard.box.hi[0]++;
    refuse(m, shard, WEIR_ERR_LAYOUT, "is no part of shape");
    shard = m->shards[0];
    shard.box.lo[1] = shard.box.hi[1] + 1;
    refuse(m, shard, WEIR_ERR_LAYOUT, "is no part of shape");
    shard = m->shards[0];
    shard.box.rank = 1;
    refuse(m, shard, WEIR_ERR_LAYOUT, "is no part of shape");
    shard = m->shards[0];
    shard.box.hi[0]--;
    refuse(m, shard, WEIR_ERR_LAYOUT, "its memory was registered as");
    shard = m->shards[0];
    shard.local.data = NULL;
    refuse(m, shard, WEIR_ERR_INVALID, "without data");
    close_model(m);
}

/* An uneven cut leaves the last ranks nothing: an empty box needs no memory. */
static void test_empty_boxes_are_taken(void **state)
{
    (void)state;
    model *m = open_model("llama", WEIR_NAMING_HF);
    const weir_tensor *source = find_source(m, "down_proj", 2);
    weir_box box = weir_box_whole(&source->shape);
    weir_local_shards *local = NULL;
    box.lo[0] = box.hi[0];
    add_shard(m, source, &box);
    free(m->shards[0].local.data);
    m->shards[0].local.data = NULL;
    assert_ok(open_local(m, &local));
    assert_int_equal(local->n_boxes, 0);
    weir_local_shards_close(local);
    close_model(m);
}

static void test_another_mapping_is_refused(void **state)
{
    (void)state;
    model *m = open_model("llama", WEIR_NAMING_HF);
    weir_local_shards *local = NULL;
    assert_error(weir_local_shards_open(m->mapping, m->tensors, m->n_tensors - 1, NULL, 0, &local),
                 WEIR_ERR_INVALID, "tensors for a mapping of");
    close_model(m);
}

static void test_memory_that_runs_out_leaves_nothing(void **state)
{
    (void)state;
    model *m = open_model("llama", WEIR_NAMING_HF);
    weir_status status = WEIR_ERR_NO_MEMORY;
    register_cut(m, 0, 2);
    uint64_t n = 0;
    while (status == WEIR_ERR_NO_MEMORY) {
        weir_local_shards *local = NULL;
        weir_alloc_fail_at(++n);
        status = open_local(m, &local);
        weir_alloc_fail_at(0);
        weir_local_shards_close(local);
    }
    assert_ok(status);
    assert_true(n > 3);
    close_model(m);
}

/* ---- rebinding -------------------------------------------------------------------------------*/

static void test_new_pointers_are_taken_without_memory(void **state)
{
    (void)state;
    model *m = open_model("qwen3_moe", WEIR_NAMING_HF);
    weir_local_shards *local = NULL;
    register_cut(m, 0, 2);
    assert_ok(open_local(m, &local));
    size_t n = m->n_shards;
    register_cut(m, 0, 2); /* the same layout in other memory */
    assert_int_equal(m->n_shards, 2 * n);
    uint64_t before = weir_alloc_count();
    assert_ok(weir_local_shards_rebind(local, m->shards + n, n));
    assert_int_equal(weir_alloc_count(), before);
    for (size_t i = 0; i < n; i++)
        assert_ptr_equal(local->shards[i].local.data, m->shards[n + i].local.data);
    check_boxes(m, local);
    weir_local_shards_close(local);
    close_model(m);
}

static void test_another_layout_changes_nothing(void **state)
{
    (void)state;
    model *m = open_model("qwen3_moe", WEIR_NAMING_HF);
    weir_local_shards *local = NULL;
    register_cut(m, 0, 2);
    assert_ok(open_local(m, &local));
    size_t n = m->n_shards;
    weir_tensor_shard *other = malloc(n * sizeof(*other));
    assert_non_null(other);
    memcpy(other, m->shards, n * sizeof(*other));
    char memory[8];
    other[0].local.data = memory;
    assert_error(weir_local_shards_rebind(local, other, n - 1), WEIR_ERR_LAYOUT, "before");
    other[n - 1].local.dtype = WEIR_F32;
    assert_error(weir_local_shards_rebind(local, other, n), WEIR_ERR_LAYOUT, "registered as F32");
    other[n - 1] = m->shards[n - 2];
    other[n - 2] = m->shards[n - 1];
    assert_error(weir_local_shards_rebind(local, other, n), WEIR_ERR_LAYOUT, "before as");
    other[n - 1] = m->shards[0];
    assert_error(weir_local_shards_rebind(local, other, n), WEIR_ERR_LAYOUT, "before");
    other[n - 2] = m->shards[n - 2];
    other[n - 1] = m->shards[n - 1];
    other[n - 1].local.data = NULL;
    assert_error(weir_local_shards_rebind(local, other, n), WEIR_ERR_INVALID, "without data");
    assert_ptr_equal(local->shards[0].local.data, m->shards[0].local.data);
    free(other);
    weir_local_shards_close(local);
    close_model(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_tensors_are_found),
        cmocka_unit_test(test_uneven_chunks_of_rows_are_found),
        cmocka_unit_test(test_chunks_of_columns_keep_their_pitch),
        cmocka_unit_test(test_stacked_experts_are_found_one_by_one),
        cmocka_unit_test(test_rows_that_are_not_here_are_named),
        cmocka_unit_test(test_nothing_registered_holds_nothing),
        cmocka_unit_test(test_names_outlive_the_caller),
        cmocka_unit_test(test_what_does_not_fit_the_model_is_refused),
        cmocka_unit_test(test_boxes_outside_their_tensor_are_refused),
        cmocka_unit_test(test_empty_boxes_are_taken),
        cmocka_unit_test(test_another_mapping_is_refused),
        cmocka_unit_test(test_memory_that_runs_out_leaves_nothing),
        cmocka_unit_test(test_new_pointers_are_taken_without_memory),
        cmocka_unit_test(test_another_layout_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
