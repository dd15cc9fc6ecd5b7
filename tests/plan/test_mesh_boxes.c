/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/fleet.h"

#include "base/alloc.h"
#include "fleet_case.h"

/* A family's smallest model, opened. */
typedef struct opened {
    weir_config *config;
    weir_tensor *sources;
    size_t n_sources;
    weir_mapping *mapping;
    weir_fleet_tensor *tensors;
    size_t n_tensors;
} opened;

static opened open_model(const char *family, weir_naming naming)
{
    opened o;
    char *text;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    assert_int_equal(weir_family_preset(family, "ragged", &text), WEIR_OK);
    assert_int_equal(weir_config_parse(text, "preset", &o.config), WEIR_OK);
    assert_int_equal(weir_family_sources(family, o.config, naming, &o.sources, &o.n_sources),
                     WEIR_OK);
    options.family = family;
    options.config = o.config;
    assert_int_equal(weir_mapping_open(&options, o.sources, o.n_sources, &o.mapping), WEIR_OK);
    assert_int_equal(weir_fleet_tensors_of(o.mapping, &o.tensors, &o.n_tensors), WEIR_OK);
    weir_string_free(text);
    return o;
}

static void close_model(opened *o)
{
    weir_fleet_tensors_free(o->tensors);
    weir_mapping_close(o->mapping);
    weir_family_sources_free(o->sources);
    weir_config_close(o->config);
}

static bool in_a_box(const weir_mesh_box *boxes, size_t n, const weir_tensor *source,
                     const uint64_t *at)
{
    size_t n_found = 0;
    for (size_t i = 0; i < n; i++) {
        bool inside = boxes[i].source == source;
        for (uint32_t d = 0; d < source->shape.rank && inside; d++)
            inside = boxes[i].box.lo[d] <= at[d] && at[d] < boxes[i].box.hi[d];
        n_found += inside;
    }
    assert_true(n_found <= 1);
    return n_found == 1;
}

/* Every third element or so, those at the edges among them. */
static void check_source(const fleet_case *c, const weir_fleet_tensor *t, uint32_t rank, uint32_t s,
                         uint32_t expert, const weir_tensor *source, const weir_mesh_box *boxes,
                         size_t n)
{
    uint64_t n_rows = t->source_rows[s];
    for (uint64_t row = 0; row < n_rows; row += row + 5 < n_rows ? 3 : 1) {
        for (uint64_t col = 0; col < t->n_cols; col += col + 9 < t->n_cols ? 7 : 1) {
            uint64_t at[WEIR_MAX_RANK] = { 0 };
            uint64_t left = col;
            for (uint32_t d = source->shape.rank - 1; d > (t->stacked ? 1 : 0); d--) {
                at[d] = left % source->shape.dim[d];
                left /= source->shape.dim[d];
            }
            at[t->stacked ? 1 : 0] = row;
            if (t->stacked)
                at[0] = expert;
            assert_true(in_a_box(boxes, n, source, at) ==
                        case_holds(c, t, rank, s, expert, row, col));
        }
    }
}

static void check_rank(const fleet_case *c, const opened *o, uint32_t rank)
{
    size_t n_entries, n;
    const weir_map_entry *entries = weir_mapping_entries(o->mapping, &n_entries);
    weir_mesh_box *boxes = NULL;
    assert_int_equal(weir_trainer_mesh_boxes(&c->trainer, o->mapping, rank, &boxes, &n), WEIR_OK);
    for (size_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < boxes[i].box.rank; d++)
            assert_true(boxes[i].box.lo[d] < boxes[i].box.hi[d] &&
                        boxes[i].box.hi[d] <= boxes[i].source->shape.dim[d]);
    }
    for (size_t i = 0; i < n_entries; i++) {
        const weir_fleet_tensor *t = &o->tensors[i];
        bool separate = t->n_experts > 0 && !t->stacked;
        for (uint32_t x = 0; x < (t->n_experts > 0 ? t->n_experts : 1); x++) {
            for (uint32_t s = 0; s < t->n_sources; s++)
                check_source(c, t, rank, s, x,
                             &entries[i].sources[(separate ? x * t->n_sources : 0) + s], boxes, n);
        }
    }
    weir_mesh_boxes_free(boxes);
}

static void check_mesh(const opened *o, const char *mesh, const uint32_t *owners, uint32_t n_owners)
{
    fleet_case *c = calloc(1, sizeof(*c));
    assert_int_equal(weir_trainer_mesh_parse(mesh, &c->trainer), WEIR_OK);
    c->trainer.expert_owners = owners;
    c->trainer.n_expert_owners = n_owners;
    for (size_t i = 0; i < o->n_tensors && i < CASE_MAX; i++) /* for the number of layers */
        c->tensors[c->n_tensors++] = o->tensors[o->n_tensors - 1 - i];
    uint32_t n_ranks = weir_trainer_mesh_ranks(&c->trainer);
    uint32_t per_group = c->trainer.fsdp * c->trainer.ep * c->trainer.tp;
    for (uint32_t rank = 0; rank < n_ranks; rank++) {
        if (rank / per_group % c->trainer.hsdp == c->trainer.sender)
            check_rank(c, o, rank);
    }
    free(c);
}

static void a_rank_holds_what_the_words_of_the_mesh_say(void **state)
{
    (void)state;
    for (int naming = 0; naming < 3; naming++) {
        opened o = open_model("glm_moe_dsa", (weir_naming)naming);
        uint32_t owners[256], n_experts = 0;
        for (size_t i = 0; i < o.n_tensors; i++)
            n_experts = o.tensors[i].n_experts > n_experts ? o.tensors[i].n_experts : n_experts;
        for (uint32_t x = 0; x < n_experts; x++)
            owners[x] = (x * 5 + x / 3) % 2;
        check_mesh(&o, "fsdp=3,tp=2", NULL, 0);
        check_mesh(&o, "pp=2,hsdp=2,sender=1,fsdp=2,ep=2", NULL, 0);
        check_mesh(&o, "fsdp=2,ep=2", owners, n_experts);
        check_mesh(&o, "hsdp=2,ep=2,tp=2,dense_whole=1", NULL, 0);
        close_model(&o);
    }
}

static void parts_of_a_source_are_boxes_of_their_own(void **state)
{
    (void)state;
    static const char *const families[] = { "qwen3_5", "mixtral", "nemotron_h", "gpt_oss" };
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        opened o = open_model(families[i], WEIR_NAMING_HF_FUSED);
        check_mesh(&o, "tp=2", NULL, 0);
        check_mesh(&o, "fsdp=3,tp=4", NULL, 0);
        check_mesh(&o, "fsdp=2,ep=2,tp=2", NULL, 0);
        check_mesh(&o, "fsdp=2,tp=2,dense_whole=1", NULL, 0);
        close_model(&o);
    }
}

static void groups_that_do_not_send_hold_the_same(void **state)
{
    (void)state;
    opened o = open_model("qwen3_moe", WEIR_NAMING_HF);
    weir_trainer_mesh mesh;
    assert_int_equal(weir_trainer_mesh_parse("hsdp=2,fsdp=2,ep=2,pp=2,sender=1", &mesh), WEIR_OK);
    for (uint32_t rank = 0; rank < 4; rank++) {
        for (uint32_t stage = 0; stage < 2; stage++) {
            weir_mesh_box *a, *b;
            size_t n_a, n_b;
            assert_int_equal(weir_trainer_mesh_boxes(&mesh, o.mapping, stage * 8 + rank, &a, &n_a),
                             WEIR_OK);
            assert_int_equal(
                weir_trainer_mesh_boxes(&mesh, o.mapping, stage * 8 + 4 + rank, &b, &n_b), WEIR_OK);
            assert_true(n_a > 0);
            assert_int_equal(n_a, n_b);
            for (size_t i = 0; i < n_a; i++) {
                assert_ptr_equal(a[i].source, b[i].source);
                assert_memory_equal(a[i].box.lo, b[i].box.lo, sizeof(a[i].box.lo));
                assert_memory_equal(a[i].box.hi, b[i].box.hi, sizeof(a[i].box.hi));
            }
            weir_mesh_boxes_free(a);
            weir_mesh_boxes_free(b);
        }
    }
    close_model(&o);
}

static void a_rank_that_is_not_there_is_refused(void **state)
{
    (void)state;
    opened o = open_model("llama", WEIR_NAMING_HF);
    weir_trainer_mesh mesh = { .fsdp = 4 };
    weir_mesh_box *boxes = NULL;
    size_t n;
    assert_int_equal(weir_trainer_mesh_boxes(&mesh, o.mapping, 4, &boxes, &n), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "trainer mesh: rank 4 of 4");
    mesh.hsdp = 2;
    mesh.sender = 2;
    assert_int_equal(weir_trainer_mesh_boxes(&mesh, o.mapping, 0, &boxes, &n), WEIR_ERR_INVALID);
    assert_null(boxes);
    close_model(&o);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    opened o = open_model("qwen3_moe", WEIR_NAMING_HF);
    weir_trainer_mesh mesh = { .fsdp = 2, .ep = 2 };
    weir_status status = WEIR_ERR_NO_MEMORY;
    int n_failed = 0;
    for (uint64_t at = 1; status != WEIR_OK; at++) {
        weir_mesh_box *boxes = NULL;
        size_t n;
        weir_alloc_fail_at(at);
        status = weir_trainer_mesh_boxes(&mesh, o.mapping, 1, &boxes, &n);
        weir_alloc_fail_at(0);
        assert_true(status == WEIR_OK || status == WEIR_ERR_NO_MEMORY);
        n_failed += status != WEIR_OK;
        weir_mesh_boxes_free(boxes);
    }
    assert_true(n_failed >= 3);
    close_model(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_holds_what_the_words_of_the_mesh_say),
        cmocka_unit_test(parts_of_a_source_are_boxes_of_their_own),
        cmocka_unit_test(groups_that_do_not_send_hold_the_same),
        cmocka_unit_test(a_rank_that_is_not_there_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
