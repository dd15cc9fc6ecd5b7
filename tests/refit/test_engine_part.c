/* SPDX-License-Identifier: Apache-2.0 */
/* test_engine_part.c - the parameters of each worker of parallel engines: by hand for some, for all
 * as a trainer's share of the plan publishes them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "refit/engine_part.h"

typedef struct model {
    weir_config *config;
    weir_tensor *sources;
    weir_mapping *mapping;
    weir_arena arena;
    weir_replica_mesh mesh;
    char text[WEIR_MESH_TEXT];
    weir_engine_part part;
} model;

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

static void expect_error(weir_status status, weir_status wanted, const char *line)
{
    if (status != wanted || strstr(weir_last_error(), line) == NULL)
        fail_msg("got %s: '%s', wanted %s: '%s'", weir_status_name(status), weir_last_error(),
                 weir_status_name(wanted), line);
}

static model open_model(const char *family, const char *conversion)
{
    model m = { 0 };
    size_t n;
    char *text, path[] = "/tmp/weir-part-XXXXXX";
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    must(weir_family_preset(family, "ragged", &text));
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    weir_string_free(text);
    must(weir_config_open(path, &m.config));
    unlink(path);
    must(weir_family_sources(family, m.config, WEIR_NAMING_HF, &m.sources, &n));
    options.family = family;
    options.conversion = conversion;
    options.config = m.config;
    must(weir_mapping_open(&options, m.sources, n, &m.mapping));
    weir_arena_init(&m.arena, 0);
    return m;
}

static void cut(model *m, const char *mesh, const char *experts, uint32_t worker)
{
    weir_expert_map_free(m->mesh.expert_ids);
    must(weir_engine_mesh_read(mesh, experts, &m->mesh, m->text));
    must(weir_engine_part_of(m->mapping, &m->mesh, worker, &m->arena, &m->part));
}

static void close_model(model *m)
{
    weir_expert_map_free(m->mesh.expert_ids);
    weir_arena_close(&m->arena);
    weir_mapping_close(m->mapping);
    weir_family_sources_free(m->sources);
    weir_config_close(m->config);
}

static const weir_parameter *find(const model *m, const char *name)
{
    for (size_t i = 0; i < m->part.n_parameters; i++) {
        if (strcmp(m->part.parameters[i].name, name) == 0)
            return &m->part.parameters[i];
    }
    return NULL;
}

static void expect_shape(const model *m, const char *name, const char *shape)
{
    char text[WEIR_SHAPE_TEXT];
    const weir_parameter *parameter = find(m, name);
    if (parameter == NULL)
        fail_msg("%s is not there", name);
    else
        assert_string_equal(weir_shape_text(&parameter->shape, text, sizeof(text)), shape);
}

/* ---- shapes ----------------------------------------------------------------------------------*/

#define ATTENTION "model.layers.0.self_attn."

/* 4 heads of queries, 1 of keys and values, of 64 each; a vocabulary of 1,000. */
static void a_dense_model_is_cut_by_heads_columns_and_padded_vocabulary(void **state)
{
    static const struct {
        const char *mesh, *qkv, *bias, *o, *gate_up, *down, *embed;
    } rows[] = {
        { "tp=1,pad=64", "[384, 256]", "[384]", "[256, 256]", "[1344, 256]", "[256, 672]",
          "[1024, 256]" },
        { "tp=2", "[256, 256]", "[256]", "[256, 128]", "[672, 256]", "[256, 336]", "[512, 256]" },
        { "tp=4", "[192, 256]", "[192]", "[256, 64]", "[336, 256]", "[256, 168]", "[256, 256]" },
        { "tp=4,pad=8", "[192, 256]", "[192]", "[256, 64]", "[336, 256]", "[256, 168]",
          "[250, 256]" },
    };
    model m = open_model("llama", "bf16_cast");
    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        uint32_t n_workers;
        cut(&m, rows[i].mesh, NULL, 0);
        n_workers = weir_replica_mesh_workers(&m.mesh);
        for (uint32_t worker = 0; worker < n_workers; worker++) {
            cut(&m, rows[i].mesh, NULL, worker);
            expect_shape(&m, ATTENTION "qkv_proj.weight", rows[i].qkv);
            expect_shape(&m, ATTENTION "qkv_proj.bias", rows[i].bias);
            expect_shape(&m, ATTENTION "o_proj.weight", rows[i].o);
            expect_shape(&m, "model.layers.1.mlp.gate_up_proj.weight", rows[i].gate_up);
            expect_shape(&m, "model.layers.1.mlp.down_proj.weight", rows[i].down);
            expect_shape(&m, "model.embed_tokens.weight", rows[i].embed);
            expect_shape(&m, "lm_head.weight", rows[i].embed);
            expect_shape(&m, "model.norm.weight", "[256]");
        }
    }
    close_model(&m);
}

/* 8 experts of 96. */
static void experts_have_a_slot_each_wherever_the_map_says(void **state)
{
    static const struct {
        const char *mesh, *experts;
        uint32_t worker;
        const char *w13, *w2;
    } rows[] = {
        { "tp=1,pad=64", NULL, 0, "[8, 192, 256]", "[8, 256, 96]" },
        { "tp=4", NULL, 3, "[8, 48, 256]", "[8, 256, 24]" },
        { "tp=4,ep=2", NULL, 1, "[4, 96, 256]", "[4, 256, 48]" },
        { "tp=4,ep=4", NULL, 2, "[2, 192, 256]", "[2, 256, 96]" },
        { "dp=2,tp=2,ep=4", NULL, 3, "[2, 192, 256]", "[2, 256, 96]" },
        { "tp=2,ep=2", "[[0,1,2,3,4],[7,6,5]]", 0, "[5, 192, 256]", "[5, 256, 96]" },
        { "tp=2,ep=2", "[[0,1,2,3,4],[7,6,5]]", 1, "[3, 192, 256]", "[3, 256, 96]" },
    };
    model m = open_model("qwen3_moe", "bf16_cast");
    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        cut(&m, rows[i].mesh, rows[i].experts, rows[i].worker);
        expect_shape(&m, "model.layers.1.mlp.experts.w13_weight", rows[i].w13);
        expect_shape(&m, "model.layers.1.mlp.experts.w2_weight", rows[i].w2);
        expect_shape(&m, "model.layers.1.mlp.gate.weight", "[8, 256]");
    }
    close_model(&m);
}

/* 4 heads of 48 + 32 rows, over a latent of 128. */
static void derived_parameters_are_of_the_local_heads(void **state)
{
    static const struct {
        const char *mesh, *from, *scale, *uv, *uk_t;
    } rows[] = {
        { "tp=1,pad=64", "[320, 128]", "[320]", "[4, 128, 32]", "[4, 48, 128]" },
        { "tp=2,ep=2", "[160, 128]", "[160]", "[2, 128, 32]", "[2, 48, 128]" },
        { "tp=4,ep=4", "[80, 128]", "[80]", "[1, 128, 32]", "[1, 48, 128]" },
    };
    model m = open_model("glm_moe_dsa", "cutlass_fp8_e4m3_per_channel");
    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        cut(&m, rows[i].mesh, NULL, 0);
        expect_shape(&m, ATTENTION "kv_b_proj.weight", rows[i].from);
        expect_shape(&m, ATTENTION "kv_b_proj.weight_scale", rows[i].scale);
        assert_int_equal(m.part.n_derived, 6);
        for (size_t d = 0; d < m.part.n_derived; d++) {
            const weir_derived *derived = &m.part.derived[d];
            const weir_parameter *made = &m.part.parameters[derived->parameter];
            const weir_parameter *from = &m.part.parameters[derived->from];
            assert_int_equal(made->entry, SIZE_MAX);
            assert_non_null(strstr(from->name, "kv_b_proj.weight"));
            assert_ptr_equal(from + 1, &m.part.parameters[derived->from_scale]);
            assert_int_equal(derived->n_heads * 80, from->shape.dim[0]);
            expect_shape(&m, made->name,
                         derived->kind == WEIR_DERIVED_MLA_W_UV ? rows[i].uv : rows[i].uk_t);
        }
    }
    close_model(&m);
}

/* The last stage of a model whose head is its embeddings has those as well. */
static void each_stage_has_its_layers_and_together_they_have_all(void **state)
{
    static const struct {
        const char *family;
        bool tied;
    } rows[] = {
        { "llama", false }, { "qwen3_moe", false }, { "glm_moe_dsa", false }, { "gemma2", true }
    };
    (void)state;
    for (size_t f = 0; f < sizeof(rows) / sizeof(*rows); f++) {
        model m = open_model(rows[f].family, "bf16_cast");
        size_t n_whole, n_both = 0;
        const weir_parameter *whole = weir_mapping_parameters(m.mapping, &n_whole);
        unsigned *seen = calloc(n_whole, sizeof(*seen));
        assert_non_null(seen);
        for (uint32_t stage = 0; stage < 2; stage++) {
            cut(&m, "pp=2", NULL, stage);
            n_both += m.part.n_parameters;
            for (size_t i = 0; i < n_whole; i++)
                seen[i] += find(&m, whole[i].name) != NULL;
            assert_int_equal(find(&m, "model.embed_tokens.weight") != NULL,
                             stage == 0 || rows[f].tied);
            assert_int_equal(find(&m, "model.norm.weight") != NULL, stage == 1);
        }
        assert_int_equal(n_both, n_whole + rows[f].tied);
        for (size_t i = 0; i < n_whole; i++) {
            bool twice = rows[f].tied && strcmp(whole[i].name, "model.embed_tokens.weight") == 0;
            assert_int_equal(seen[i], twice ? 2 : 1);
        }
        free(seen);
        close_model(&m);
    }
}

/* ---- what trainers publish -------------------------------------------------------------------*/

/* Every shard that is for the worker is of a parameter of its part, and every parameter has some.
 */
static void expect_share(const model *m, uint32_t worker, const weir_share *share)
{
    weir_mesh_place place = weir_replica_mesh_place(&m->mesh, worker);
    size_t n_filled = 0;
    bool *filled = calloc(m->part.n_parameters, sizeof(*filled));
    assert_non_null(filled);
    for (size_t s = 0; s < share->n_shards; s++) {
        const weir_share_shard *shard = &share->shards[s];
        size_t i = 0;
        if (!weir_mesh_place_matches(&shard->place, &place))
            continue;
        while (i < m->part.n_parameters && (m->part.parameters[i].entry != shard->tensor ||
                                            m->part.parameters[i].output != shard->output))
            i++;
        assert_true(i < m->part.n_parameters);
        assert_true(weir_shape_equal(&shard->shape, &m->part.parameters[i].shape));
        n_filled += !filled[i];
        filled[i] = true;
    }
    for (size_t i = 0; i < m->part.n_parameters; i++)
        n_filled += m->part.parameters[i].entry == SIZE_MAX;
    assert_int_equal(n_filled, m->part.n_parameters);
    free(filled);
}

static void a_trainer_publishes_these_shapes_and_no_others(void **state)
{
    static const char *const families[] = { "llama", "qwen3_moe", "glm_moe_dsa", "gpt_oss",
                                            "qwen3_5_moe" };
    static const char *const meshes[] = { "tp=2,ep=2", "tp=4,ep=4", "pp=2,tp=2,ep=2",
                                          "dp=2,tp=2,ep=4", "tp=1,pad=128" };
    weir_trainer_mesh one = { .pp = 1 };
    (void)state;
    for (size_t k = 0; k < 25; k++) {
        model m = open_model(families[k / 5], "bf16_cast");
        weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
        weir_fleet_tensor *tensors;
        weir_fleet *fleet;
        weir_share *share;
        must(weir_engine_mesh_read(meshes[k % 5], NULL, &m.mesh, m.text));
        must(weir_fleet_tensors_of(m.mapping, &tensors, &args.n_tensors));
        args.tensors = tensors;
        args.trainer = &one;
        args.replica = &m.mesh;
        weir_status status = weir_fleet_open(&args, &fleet);
        if (status == WEIR_OK) {
            must(weir_fleet_share(fleet, 0, &share));
            for (uint32_t w = 0; w < weir_replica_mesh_workers(&m.mesh); w++) {
                must(weir_engine_part_of(m.mapping, &m.mesh, w, &m.arena, &m.part));
                expect_share(&m, w, share);
            }
            weir_share_free(share);
            weir_fleet_close(fleet);
        } else { /* what cannot be planned is no part either */
            expect_error(weir_engine_part_of(m.mapping, &m.mesh, 0, &m.arena, &m.part), status, "");
        }
        weir_fleet_tensors_free(tensors);
        close_model(&m);
    }
}

/* ---- meshes ----------------------------------------------------------------------------------*/

static void one_worker_without_padding_or_map_is_no_mesh(void **state)
{
    static const char *const plain[] = { NULL, "", "tp=1", "tp=1,replicas=4", "pad=1" };
    weir_replica_mesh mesh, other;
    char text[WEIR_MESH_TEXT], second[WEIR_MESH_TEXT];
    (void)state;
    for (size_t i = 0; i < sizeof(plain) / sizeof(*plain); i++) {
        must(weir_engine_mesh_read(plain[i], NULL, &mesh, text));
        assert_string_equal(text, "");
        assert_int_equal(mesh.vocabulary_pad, 1);
        assert_int_equal(weir_replica_mesh_workers(&mesh), 1);
    }
    must(weir_engine_mesh_read("pad=64", NULL, &mesh, text));
    assert_string_not_equal(text, "");
    must(weir_engine_mesh_read("tp=1", "[[1,0]]", &mesh, text));
    assert_string_not_equal(text, "");
    weir_expert_map_free(mesh.expert_ids);
    must(weir_engine_mesh_read("tp=2,replicas=7", NULL, &mesh, text));
    must(weir_engine_mesh_read("tp=2,pad=64", NULL, &other, second));
    assert_string_equal(text, second);
    assert_int_equal(weir_replica_mesh_workers(&mesh), 2);
    expect_error(weir_engine_mesh_read("tp=0", NULL, &mesh, text), WEIR_ERR_INVALID, "'tp=0'");
    expect_error(weir_engine_mesh_read("tp=2,ep=2", "[[0,1]]", &mesh, text), WEIR_ERR_INVALID, "");
}

static void running_out_of_memory_is_reported(void **state)
{
    model m = open_model("glm_moe_dsa", "bf16_cast");
    weir_status status = WEIR_ERR_NO_MEMORY;
    (void)state;
    must(weir_engine_mesh_read("tp=2,ep=2", NULL, &m.mesh, m.text));
    for (uint64_t n = 1; status != WEIR_OK; n++) {
        weir_arena_close(&m.arena);
        weir_arena_init(&m.arena, 0);
        weir_alloc_fail_at(n);
        status = weir_engine_part_of(m.mapping, &m.mesh, 0, &m.arena, &m.part);
        assert_true(status == WEIR_OK || status == WEIR_ERR_NO_MEMORY);
        assert_true(n < 1000);
    }
    weir_alloc_fail_at(0);
    close_model(&m);
}

/* Plans one shard per parameter, of which `extra_rows` more of the embedding are called padding. */
static weir_status plan_with_padding(const model *m, uint64_t extra_rows, weir_plan **out)
{
    const weir_mesh_place place = weir_replica_mesh_place(&m->mesh, 1);
    weir_shard *shards = calloc(m->part.n_parameters, sizeof(*shards));
    weir_plan_source source = { "trainer rank 0", shards, m->part.n_parameters };
    assert_non_null(shards);
    for (size_t i = 0; i < m->part.n_parameters; i++) {
        const weir_parameter *parameter = &m->part.parameters[i];
        uint64_t n_bytes, row_bytes;
        must(weir_tensor_bytes(parameter->dtype, &parameter->shape, &n_bytes));
        row_bytes = n_bytes / parameter->shape.dim[0];
        bool pads = strstr(parameter->name, "embed_tokens") != NULL;
        shards[i] = (weir_shard){ .name = parameter->name,
                                  .dtype = parameter->dtype,
                                  .global_shape = parameter->shape,
                                  .place = { WEIR_ANY, WEIR_ANY, WEIR_ANY },
                                  .compile_target = parameter->compile_target,
                                  .compile_metadata = parameter->compile_metadata };
        shards[i].n_padding_rows = parameter->shape.dim[0] - m->part.filled_bytes[i] / row_bytes;
        shards[i].n_padding_rows += pads ? extra_rows : 0;
        shards[i].box = weir_box_whole(&parameter->shape);
        shards[i].box.hi[0] -= shards[i].n_padding_rows;
        shards[i].n_bytes = shards[i].box.hi[0] * row_bytes;
    }
    weir_status status =
        weir_plan_open(m->part.parameters, m->part.n_parameters, &place, &source, 1, out);
    free(shards);
    return status;
}

static void rows_that_sources_wrongly_call_padding_are_refused(void **state)
{
    (void)state;
    model m = open_model("llama", "bf16_cast");
    cut(&m, "tp=2", NULL, 1);
    for (uint64_t extra = 0; extra < 2; extra++) {
        weir_plan *plan;
        must(plan_with_padding(&m, extra, &plan));
        weir_status status = weir_engine_part_check(m.part.parameters, m.part.n_parameters,
                                                    m.part.filled_bytes, plan);
        if (extra == 0)
            must(status);
        else
            expect_error(status, WEIR_ERR_LAYOUT, "embed_tokens.weight: its sources fill ");
        weir_plan_close(plan);
    }
    close_model(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dense_model_is_cut_by_heads_columns_and_padded_vocabulary),
        cmocka_unit_test(experts_have_a_slot_each_wherever_the_map_says),
        cmocka_unit_test(derived_parameters_are_of_the_local_heads),
        cmocka_unit_test(each_stage_has_its_layers_and_together_they_have_all),
        cmocka_unit_test(a_trainer_publishes_these_shapes_and_no_others),
        cmocka_unit_test(one_worker_without_padding_or_map_is_no_mesh),
        cmocka_unit_test(running_out_of_memory_is_reported),
        cmocka_unit_test(rows_that_sources_wrongly_call_padding_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
