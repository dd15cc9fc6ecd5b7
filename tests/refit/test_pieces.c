/* SPDX-License-Identifier: Apache-2.0 */
/* test_pieces.c - converting the pieces of a rank's entries gives what converting the entries
 * gives: bytes, digests, nothing left out, whatever the steps' size. */
#include "refit/pieces.h"

#include "base/digest.h"
#include "family/source_set.h"

/* A trainer rank that owns a whole model, as stop 1 leaves it. */
typedef struct bound_rank {
    source_set *set;
    weir_trainer trainer;
    weir_arena arena;
    unsigned char **whole; /* every shard, converted entry by entry */
    weir_digest *digests;
} bound_rank;

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s", weir_last_error());
}

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Values whose magnitude wanders, so that no two blocks have the same scale. */
static void fill(source_set *set, uint32_t seed)
{
    for (size_t t = 0; t < set->n; t++) {
        uint64_t n;
        must(weir_shape_elements(&set->tensors[t].shape, &n));
        for (uint64_t i = 0; i < n; i++) {
            float value = (float)(next_random(&seed) % 2001) - 1000.0f;
            value *= 1e-4f * (float)(1 + (i / 64 + t) % 23);
            if (set->tensors[t].dtype == WEIR_F32) {
                ((float *)set->tensors[t].data)[i] = value;
                continue;
            }
            uint32_t bits;
            memcpy(&bits, &value, 4);
            ((uint16_t *)set->tensors[t].data)[i] = (uint16_t)(bits >> 16);
        }
    }
}

/* Every third weight as an fp32 master. */
static void make_masters(source_set *set)
{
    for (size_t t = 0; t < set->n; t += 3) {
        weir_tensor *tensor = &set->tensors[t];
        uint64_t n;
        if (tensor->dtype != WEIR_BF16)
            continue;
        must(weir_shape_elements(&tensor->shape, &n));
        free(tensor->data);
        tensor->dtype = WEIR_F32;
        tensor->data = calloc(n, 4);
        assert_non_null(tensor->data);
    }
}

static void convert_whole(bound_rank *rank)
{
    const weir_source *source = &rank->trainer.source;
    for (size_t i = 0; i < source->n_owned; i++) {
        const weir_owned_entry *owned = &source->owned[i];
        weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
        for (size_t o = 0; o < owned->entry->conversion->n_outputs; o++)
            args.outputs[o] = rank->whole[owned->first_shard + o];
        args.digests = &rank->digests[owned->first_shard];
        args.keep_masters = rank->trainer.keep_masters;
        must(weir_map_entry_convert(owned->entry, &args));
    }
}

static bound_rank *bind(source_set *set, const char *family, const char *conversion,
                        bool keep_masters)
{
    bound_rank *rank = calloc(1, sizeof(*rank));
    assert_non_null(rank);
    rank->set = set;
    rank->trainer.n_ranks = 1;
    rank->trainer.keep_masters = keep_masters;
    rank->trainer.settings.family = (char *)(uintptr_t)family;
    rank->trainer.settings.conversion = (char *)(uintptr_t)conversion;
    rank->trainer.settings.config = set->config;
    must(weir_source_bind(&rank->trainer, set->tensors, set->n));
    const weir_source *source = &rank->trainer.source;
    rank->whole = calloc(source->n_shards, sizeof(*rank->whole));
    rank->digests = calloc(source->n_shards, sizeof(*rank->digests));
    assert_true(rank->whole != NULL && rank->digests != NULL);
    for (size_t s = 0; s < source->n_shards; s++) {
        rank->whole[s] = malloc(source->shards[s].n_bytes);
        assert_non_null(rank->whole[s]);
    }
    convert_whole(rank);
    weir_arena_init(&rank->arena, 0);
    return rank;
}

static void unbind(bound_rank *rank)
{
    for (size_t s = 0; s < rank->trainer.source.n_shards; s++)
        free(rank->whole[s]);
    free(rank->whole);
    free(rank->digests);
    weir_arena_close(&rank->arena);
    weir_source_release(&rank->trainer.source);
    free(rank);
}

/* ---- one way of cutting ----------------------------------------------------------------------*/

/* What the pieces have filled so far. */
typedef struct filled {
    uint64_t *n_bytes; /* of every shard */
    weir_digest *digests, *seen;
    unsigned char *packed;
} filled;

static void check_plain(const weir_piece *piece, const unsigned char *packed)
{
    size_t n = piece->args.n_sources * (piece->args.n_experts ? piece->args.n_experts : 1);
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t n_bytes;
        const weir_tensor *source = &piece->args.sources[i];
        must(weir_tensor_bytes(source->dtype, &source->shape, &n_bytes));
        assert_memory_equal(packed + piece->part_offsets[0] + at, source->data, n_bytes);
        at += n_bytes;
    }
    assert_int_equal(at, piece->parts[0].n_bytes);
}

static void check_part(bound_rank *rank, const weir_piece *piece, size_t output, filled *to)
{
    const weir_part *part = &piece->parts[output];
    const weir_shard *shard = &rank->trainer.source.shards[part->shard];
    const unsigned char *bytes = to->packed + piece->part_offsets[output];
    assert_int_equal(part->offset, to->n_bytes[part->shard]);
    assert_true(part->n_bytes > 0 && part->n_bytes <= shard->n_bytes - part->offset);
    to->n_bytes[part->shard] += part->n_bytes;
    if (memcmp(rank->whole[part->shard] + part->offset, bytes, part->n_bytes) != 0)
        fail_msg("%s: bytes from %llu on differ", shard->name, (unsigned long long)part->offset);
    weir_work_range rows = { 0 };
    must(weir_part_rows(shard, part->offset, part->n_bytes, &rows));
    assert_int_equal(rows.n_rows * rows.row_bytes, part->n_bytes);
    assert_int_equal(rows.first_word, piece->args.first_words[output]);
    assert_int_equal(rows.dtype, shard->dtype);
    weir_digest_rectangle(&to->seen[part->shard], bytes, rows.row_bytes, rows.n_rows,
                          rows.row_bytes, rows.first_word,
                          weir_digest_words_per_row(rows.row_bytes));
}

static void check_step(bound_rank *rank, const weir_steps *steps, const weir_step *step, filled *to)
{
    uint64_t end = 0, n_bytes = 0;
    memset(to->packed, 0xA5, step->packed_bytes);
    for (size_t i = 0; i < step->n_pieces; i++) {
        const weir_piece *piece = &steps->pieces[step->first_piece + i];
        weir_convert_args args = piece->args;
        weir_digest digests[WEIR_MAX_OUTPUTS];
        assert_int_equal(piece->n_parts, args.conversion->n_outputs);
        for (size_t o = 0; o < piece->n_parts; o++) {
            assert_int_equal(piece->part_offsets[o], end);
            end += (piece->parts[o].n_bytes + 255) / 256 * 256;
            assert_true(end <= step->packed_bytes);
            n_bytes += piece->parts[o].n_bytes;
            args.outputs[o] = to->packed + piece->part_offsets[o];
        }
        args.digests = digests;
        must(weir_convert(&args));
        for (size_t o = 0; o < piece->n_parts; o++) {
            weir_digest_merge(&to->digests[piece->parts[o].shard], &digests[o]);
            check_part(rank, piece, o, to);
        }
        if (piece->plain)
            check_plain(piece, to->packed);
    }
    assert_int_equal(end, step->packed_bytes);
    assert_int_equal(n_bytes, step->n_bytes);
}

static void check_digests(const bound_rank *rank, const filled *to)
{
    const weir_source *source = &rank->trainer.source;
    for (size_t s = 0; s < source->n_shards; s++) {
        assert_int_equal(to->n_bytes[s], source->shards[s].n_bytes);
        if (!weir_digest_equal(&to->seen[s], &rank->digests[s]))
            fail_msg("%s: the rows of its parts have another digest", source->shards[s].name);
        if (!weir_digest_equal(&to->digests[s], &rank->digests[s]))
            fail_msg("%s: digests of its pieces do not add up", source->shards[s].name);
    }
}

static void check_steps(bound_rank *rank, const weir_steps *steps, uint64_t step_bytes)
{
    size_t n_shards = rank->trainer.source.n_shards, next_piece = 0;
    uint64_t largest = 0;
    filled to = { calloc(n_shards, sizeof(uint64_t)), calloc(n_shards, sizeof(weir_digest)),
                  calloc(n_shards, sizeof(weir_digest)), malloc(steps->largest_packed_bytes) };
    assert_true(to.n_bytes && to.digests && to.seen && to.packed);
    for (size_t i = 0; i < steps->n_steps; i++) {
        const weir_step *step = &steps->steps[i];
        assert_int_equal(step->first_piece, next_piece);
        assert_true(step->n_pieces > 0);
        assert_true(step->packed_bytes <= step_bytes || step->n_pieces == 1);
        next_piece += step->n_pieces;
        if (step->packed_bytes > largest)
            largest = step->packed_bytes;
        check_step(rank, steps, step, &to);
    }
    assert_int_equal(next_piece, steps->n_pieces);
    assert_int_equal(largest, steps->largest_packed_bytes);
    check_digests(rank, &to);
    free(to.n_bytes);
    free(to.digests);
    free(to.seen);
    free(to.packed);
}

static weir_steps cut(bound_rank *rank, uint64_t step_bytes)
{
    weir_steps steps;
    weir_arena_reset(&rank->arena);
    must(weir_steps_cut(&rank->trainer.source, rank->trainer.keep_masters, step_bytes, &rank->arena,
                        &steps));
    return steps;
}

static void check_all_sizes(source_set *set, const char *family, const char *conversion,
                            bool keep_masters)
{
    const uint64_t sizes[] = { 1, 3000, 20000, 100000, 1u << 20, UINT64_MAX };
    bound_rank *rank = bind(set, family, conversion, keep_masters);
    size_t n_pieces = SIZE_MAX;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        weir_steps steps = cut(rank, sizes[i]);
        assert_true(steps.n_pieces <= n_pieces);
        n_pieces = steps.n_pieces;
        check_steps(rank, &steps, sizes[i]);
    }
    assert_int_equal(n_pieces, rank->trainer.source.n_owned);
    unbind(rank);
}

/* ---- cases -----------------------------------------------------------------------------------*/

static const char *const conversions[] = { "bf16_cast", "fp8_128x128",
                                           "cutlass_fp8_e4m3_per_channel" };

static void check_family(const char *family, weir_naming naming)
{
    for (size_t c = 0; c < 3; c++) {
        for (int masters = 0; masters <= 2; masters++) { /* none, rounded, kept */
            source_set *set = set_of_preset(family, "ragged", naming);
            if (masters != 0)
                make_masters(set);
            fill(set, (uint32_t)(c * 3 + (size_t)masters));
            check_all_sizes(set, family, conversions[c], masters == 2);
            set_free(set);
        }
    }
}

static void pieces_of_dense_layers_equal_their_entries(void **state)
{
    (void)state;
    check_family("llama", WEIR_NAMING_HF);
}

static void pieces_of_separate_experts_equal_their_entries(void **state)
{
    (void)state;
    check_family("glm_moe_dsa", WEIR_NAMING_HF);
    check_family("qwen3_moe", WEIR_NAMING_HF);
}

static void pieces_of_stacked_experts_equal_their_entries(void **state)
{
    (void)state;
    check_family("glm_moe_dsa", WEIR_NAMING_STACKED);
    check_family("glm_moe_dsa", WEIR_NAMING_HF_FUSED);
}

/* Rows that are no multiple of anything: of 301 fp32 scales per expert, no cut begins on a word in
 * every expert. */
static void odd_experts_are_cut_only_where_digests_allow(void **state)
{
    (void)state;
    for (size_t c = 0; c < 3; c++) {
        source_set *set = set_new();
        set_add(set, "model.layers.3.mlp.experts.w1", WEIR_BF16, SHAPE(3, 331, 40));
        set_add(set, "model.layers.3.mlp.experts.w3", WEIR_BF16, SHAPE(3, 331, 40));
        set_add(set, "model.layers.3.mlp.experts.w2", WEIR_BF16, SHAPE(3, 301, 43));
        set_add(set, "model.layers.3.self_attn.o_proj.weight", WEIR_BF16, SHAPE(301, 33));
        fill(set, 5);
        check_all_sizes(set, "glm_moe_dsa", conversions[c], false);
        set_free(set);
    }
}

static void steps_are_filled_before_the_next_is_begun(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_HF);
    fill(set, 1);
    bound_rank *rank = bind(set, "glm_moe_dsa", "fp8_128x128", false);
    weir_steps steps = cut(rank, 256 << 10);
    assert_true(steps.n_steps > 3);
    for (size_t i = 0; i + 1 < steps.n_steps; i++)
        assert_true(steps.steps[i].packed_bytes > 192 << 10);
    unbind(rank);
    set_free(set);
}

static void only_casts_without_rounding_are_plain(void **state)
{
    (void)state;
    static const struct {
        const char *conversion;
        weir_naming naming;
        bool masters, any, all;
    } rows[] = {
        { "bf16_cast", WEIR_NAMING_HF, false, true, true },
        { "bf16_cast", WEIR_NAMING_HF, true, true, false },
        { "bf16_cast", WEIR_NAMING_STACKED, false, true, false }, /* w1 and w3 take turns */
        { "fp8_128x128", WEIR_NAMING_HF, false, true, false },    /* what is never quantised */
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        source_set *set = set_of_preset("glm_moe_dsa", "ragged", rows[i].naming);
        if (rows[i].masters)
            make_masters(set);
        fill(set, 2);
        bound_rank *rank = bind(set, "glm_moe_dsa", rows[i].conversion, false);
        weir_steps steps = cut(rank, UINT64_MAX);
        size_t n_plain = 0;
        for (size_t p = 0; p < steps.n_pieces; p++)
            n_plain += steps.pieces[p].plain;
        assert_int_equal(n_plain > 0, rows[i].any);
        assert_int_equal(n_plain == steps.n_pieces, rows[i].all);
        unbind(rank);
        set_free(set);
    }
}

static void aiming_follows_sources_that_moved_and_allocates_nothing(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_STACKED);
    fill(set, 3);
    bound_rank *rank = bind(set, "glm_moe_dsa", "fp8_128x128", false);
    weir_steps steps = cut(rank, 20000);
    assert_true(steps.n_views > 20);
    source_set *moved = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_STACKED);
    fill(moved, 4);
    uint64_t before = weir_alloc_count();
    must(weir_source_bind(&rank->trainer, moved->tensors, moved->n));
    weir_steps_aim(&steps);
    assert_int_equal(weir_alloc_count(), before);
    set_free(set); /* names and data of the old sources are gone */
    convert_whole(rank);
    check_steps(rank, &steps, 20000);
    unbind(rank);
    set_free(moved);
}

static void a_source_without_data_gives_views_without_data(void **state)
{
    (void)state;
    source_set *set = set_of_preset("llama", "ragged", WEIR_NAMING_HF);
    fill(set, 6);
    bound_rank *rank = bind(set, "llama", "bf16_cast", false);
    weir_steps steps = cut(rank, 20000);
    weir_tensor *tensors = calloc(set->n, sizeof(*tensors));
    assert_non_null(tensors);
    for (size_t i = 0; i < set->n; i++) {
        tensors[i] = set->tensors[i];
        tensors[i].data = NULL;
    }
    must(weir_source_bind(&rank->trainer, tensors, set->n));
    weir_steps_aim(&steps);
    for (size_t p = 0; p < steps.n_pieces; p++)
        assert_null(steps.pieces[p].args.sources[0].data);
    free(tensors);
    unbind(rank);
    set_free(set);
}

/* The first refused piece's line. */
static void expect_refused(source_set *set, const char *source, uint64_t element, const char *line)
{
    bound_rank *rank = bind(set, "glm_moe_dsa", "fp8_128x128", false);
    weir_steps steps = cut(rank, 20000);
    unsigned char *out = malloc(steps.largest_packed_bytes);
    assert_non_null(out);
    uint16_t *at = (uint16_t *)set->tensors[set_find(set, source)].data + element, kept = *at;
    *at = 0x7FC0;
    weir_status status = WEIR_OK;
    for (size_t p = 0; p < steps.n_pieces && status == WEIR_OK; p++) {
        weir_convert_args args = steps.pieces[p].args;
        for (size_t o = 0; o < steps.pieces[p].n_parts; o++)
            args.outputs[o] = out + steps.pieces[p].part_offsets[o];
        status = weir_convert(&args);
    }
    assert_int_equal(status, WEIR_ERR_NONFINITE);
    assert_string_equal(weir_last_error(), line);
    *at = kept;
    free(out);
    unbind(rank);
}

static void a_refused_weight_is_named_by_its_part_and_its_place_there(void **state)
{
    (void)state;
    source_set *set = set_new();
    set_add(set, "model.layers.3.mlp.experts.w1", WEIR_BF16, SHAPE(3, 331, 40));
    set_add(set, "model.layers.3.mlp.experts.w3", WEIR_BF16, SHAPE(3, 331, 40));
    set_add(set, "model.layers.3.mlp.experts.w2", WEIR_BF16, SHAPE(3, 40, 331));
    set_add(set, "model.layers.3.self_attn.o_proj.weight", WEIR_BF16, SHAPE(301, 133));
    set_add(set, "model.layers.3.mlp.gate_proj.weight", WEIR_BF16, SHAPE(100, 300));
    set_add(set, "model.layers.3.mlp.up_proj.weight", WEIR_BF16, SHAPE(100, 300));
    fill(set, 7);
    expect_refused(set, "model.layers.3.self_attn.o_proj.weight", 130 * 133 + 9,
                   "model.layers.3.self_attn.o_proj.weight[128:256][2, 9] is NaN");
    expect_refused(set, "model.layers.3.mlp.experts.w3", (2 * 331 + 330) * 40 + 1,
                   "model.layers.3.mlp.experts.w3[2:3][0, 330, 1] is NaN");
    expect_refused(set, "model.layers.3.mlp.experts.w1", (331 + 330) * 40,
                   "model.layers.3.mlp.experts.w1[1:2, 128:331][0, 202, 0] is NaN");
    expect_refused(set, "model.layers.3.mlp.gate_proj.weight", 99 * 300 + 1,
                   "model.layers.3.mlp.gate_proj.weight[99, 1] is NaN");
    expect_refused(set, "model.layers.3.mlp.up_proj.weight", 28 * 300,
                   "model.layers.3.mlp.up_proj.weight[28:100][0, 0] is NaN");
    expect_refused(set, "model.layers.3.mlp.experts.w2", 40 * 331 + 5,
                   "model.layers.3.mlp.experts.w2[1:2][0, 0, 5] is NaN");
    set_free(set);
}

static void a_part_that_no_digest_can_see_is_refused(void **state)
{
    (void)state;
    weir_shape matrix = SHAPE(6, 10), scales = SHAPE(3, 7);
    weir_shard weight = { .name = "w", .dtype = WEIR_BF16, .n_bytes = 120 };
    weir_shard scale = { .name = "s", .dtype = WEIR_F32, .n_bytes = 84 };
    weight.box = weir_box_whole(&matrix);
    scale.box = weir_box_whole(&scales);
    const struct {
        const weir_shard *shard;
        uint64_t offset, n_bytes;
        bool good;
        uint64_t n_rows, row_bytes, first_word;
    } parts[] = {
        { &weight, 0, 120, true, 6, 20, 0 },
        { &weight, 40, 60, true, 3, 20, 6 },
        { &weight, 20, 16, true, 1, 16, 3 },
        { &weight, 28, 12, true, 1, 12, 4 },
        { &weight, 120, 0, true, 0, 20, 0 },
        { &weight, 22, 8, false, 0, 0, 0 },
        { &weight, 20, 12, false, 0, 0, 0 },
        { &weight, 20, 30, false, 0, 0, 0 },
        { &weight, 28, 32, false, 0, 0, 0 },
        { &weight, 100, 40, false, 0, 0, 0 },
        { &weight, 121, 0, false, 0, 0, 0 },
        { &weight, UINT64_MAX - 19, 40, false, 0, 0, 0 },
        { &weight, 20, UINT64_MAX, false, 0, 0, 0 },
        { &scale, 28, 56, true, 2, 28, 4 },
        { &scale, 28, 16, true, 1, 16, 4 },
        { &scale, 44, 12, true, 1, 12, 6 },
        { &scale, 44, 8, true, 1, 8, 6 },
        { &scale, 32, 8, false, 0, 0, 0 },
    };
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        weir_work_range rows = { 0 };
        weir_status status =
            weir_part_rows(parts[i].shard, parts[i].offset, parts[i].n_bytes, &rows);
        assert_int_equal(status, parts[i].good ? WEIR_OK : WEIR_ERR_CORRUPT);
        if (!parts[i].good) {
            assert_int_equal(strncmp(weir_last_error(), parts[i].shard->name, 1), 0);
            continue;
        }
        assert_int_equal(rows.n_rows, parts[i].n_rows);
        assert_int_equal(rows.row_bytes, parts[i].row_bytes);
        assert_int_equal(rows.first_word, parts[i].first_word);
    }
}

static void a_rank_that_owns_nothing_has_no_steps(void **state)
{
    (void)state;
    weir_source none = { 0 };
    weir_arena arena;
    weir_steps steps;
    weir_arena_init(&arena, 0);
    must(weir_steps_cut(&none, false, 1 << 20, &arena, &steps));
    assert_int_equal(steps.n_pieces + steps.n_steps + steps.n_views, 0);
    weir_steps_aim(&steps);
    weir_arena_close(&arena);
}

static void running_out_of_memory_anywhere_is_reported(void **state)
{
    (void)state;
    source_set *set = set_of_preset("llama", "ragged", WEIR_NAMING_HF);
    fill(set, 8);
    bound_rank *rank = bind(set, "llama", "fp8_128x128", false);
    weir_status status = WEIR_ERR_NO_MEMORY;
    uint64_t n = 0;
    while (status == WEIR_ERR_NO_MEMORY) {
        weir_steps steps;
        weir_arena_close(&rank->arena);
        weir_arena_init(&rank->arena, 0);
        weir_alloc_fail_at(++n);
        status = weir_steps_cut(&rank->trainer.source, false, 3000, &rank->arena, &steps);
        weir_alloc_fail_at(0);
    }
    must(status);
    assert_true(n > 3);
    unbind(rank);
    set_free(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_of_dense_layers_equal_their_entries),
        cmocka_unit_test(pieces_of_separate_experts_equal_their_entries),
        cmocka_unit_test(pieces_of_stacked_experts_equal_their_entries),
        cmocka_unit_test(odd_experts_are_cut_only_where_digests_allow),
        cmocka_unit_test(steps_are_filled_before_the_next_is_begun),
        cmocka_unit_test(only_casts_without_rounding_are_plain),
        cmocka_unit_test(aiming_follows_sources_that_moved_and_allocates_nothing),
        cmocka_unit_test(a_source_without_data_gives_views_without_data),
        cmocka_unit_test(a_refused_weight_is_named_by_its_part_and_its_place_there),
        cmocka_unit_test(a_part_that_no_digest_can_see_is_refused),
        cmocka_unit_test(a_rank_that_owns_nothing_has_no_steps),
        cmocka_unit_test(running_out_of_memory_anywhere_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
