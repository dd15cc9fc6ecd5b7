/* SPDX-License-Identifier: Apache-2.0 */
/* Shares of sharded ranks as boxes of a checkpoint's tensors: together they are every tensor once,
 * whatever the ranks shard, stack or join. No data. */
#include "refit/checkpoint_share.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/error.h"
#include "weir/plan.h"

#define MAX_RANKS 16

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

/* A model in a trainer's naming, and the plan of its fleet. */
typedef struct fleet {
    weir_settings settings;
    weir_tensor *sources;
    weir_mapping *mapping;
    weir_fleet_tensor *tensors;
    size_t n_tensors;
    weir_fleet *plan;
} fleet;

static fleet open_fleet(const char *family, weir_naming naming, const char *mesh)
{
    static const weir_replica_mesh one_worker = {
        .tp = 1, .ep = 1, .dp = 1, .pp = 1, .replicas = 1, .vocabulary_pad = 1
    };
    fleet f = { .settings.family = weir_strdup(family) };
    weir_trainer_mesh trainer;
    char *text;
    size_t n_sources;
    must(weir_family_preset(family, "tiny", &text));
    must(weir_config_parse(text, "tiny", &f.settings.config));
    weir_string_free(text);
    must(weir_family_sources(family, f.settings.config, naming, &f.sources, &n_sources));
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.config = f.settings.config;
    options.conversion = "bf16_cast";
    must(weir_mapping_open(&options, f.sources, n_sources, &f.mapping));
    must(weir_fleet_tensors_of(f.mapping, &f.tensors, &f.n_tensors));
    must(weir_trainer_mesh_parse(mesh, &trainer));
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    args.tensors = f.tensors;
    args.n_tensors = f.n_tensors;
    args.trainer = &trainer;
    args.replica = &one_worker;
    must(weir_fleet_open(&args, &f.plan));
    return f;
}

static void close_fleet(fleet *f)
{
    weir_fleet_close(f->plan);
    weir_fleet_tensors_free(f->tensors);
    weir_mapping_close(f->mapping);
    weir_family_sources_free(f->sources);
    weir_settings_close(&f->settings);
}

/* One rank's shards, as a manifest would say them. */
static weir_shard *list_shards(const weir_share *share, const weir_checkpoint_share *named)
{
    weir_shard *shards = calloc(share->n_shards + 1, sizeof(*shards));
    assert_non_null(shards);
    assert_int_equal(share->n_shards, share->n_jobs);
    for (size_t i = 0; i < share->n_shards; i++) {
        const weir_parameter *parameter = named->parameters[i];
        assert_int_equal(share->jobs[i].shards[0], i);
        shards[i] = (weir_shard){ .name = parameter->name,
                                  .dtype = parameter->dtype,
                                  .global_shape = share->shards[i].shape,
                                  .box = share->shards[i].box,
                                  .compile_target = parameter->compile_target,
                                  .compile_metadata = parameter->compile_metadata,
                                  .n_bytes = share->shards[i].n_bytes };
    }
    return shards;
}

static bool is_of_layer(const char *name)
{
    return strstr(name, ".layers.") != NULL;
}

/* The planner's own check: every tensor is covered, by boxes that do not overlap. */
static void check(const char *family, weir_naming naming, const char *mesh)
{
    fleet f = open_fleet(family, naming, mesh);
    uint32_t n_ranks = weir_fleet_ranks(f.plan);
    weir_share *shares[MAX_RANKS] = { NULL };
    weir_checkpoint_share named[MAX_RANKS] = { { 0 } };
    weir_shard *shards[MAX_RANKS];
    weir_plan_source sources[MAX_RANKS];
    for (uint32_t r = 0; r < n_ranks; r++) {
        must(weir_fleet_share(f.plan, r, &shares[r]));
        must(weir_checkpoint_share_open(&f.settings, f.tensors, f.n_tensors, shares[r], &named[r]));
        shards[r] = list_shards(shares[r], &named[r]);
        sources[r] = (weir_plan_source){ "rank", shards[r], shares[r]->n_shards };
        for (size_t i = 1; i < shares[r]->n_shards; i++)
            assert_true(!is_of_layer(shards[r][i - 1].name) || is_of_layer(shards[r][i].name));
    }
    size_t n;
    const weir_parameter *wanted = weir_mapping_parameters(named[0].checkpoint, &n);
    const weir_mesh_place anyone = { 0, 0, 0 };
    weir_plan *plan = NULL;
    if (weir_plan_open(wanted, n, &anyone, sources, n_ranks, &plan) != WEIR_OK)
        fail_msg("%s naming %d, %s: %s", family, (int)naming, mesh, weir_last_error());
    uint64_t n_bytes = 0, wanted_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        must(weir_tensor_bytes(wanted[i].dtype, &wanted[i].shape, &n_bytes));
        wanted_bytes += n_bytes;
    }
    assert_int_equal(weir_plan_bytes(plan), wanted_bytes);
    weir_plan_close(plan);
    for (uint32_t r = 0; r < n_ranks; r++) {
        free(shards[r]);
        weir_checkpoint_share_close(&named[r]);
        weir_share_free(shares[r]);
    }
    close_fleet(&f);
}

static void all_ranks_together_have_every_tensor_once(void **state)
{
    (void)state;
    static const char *const meshes[] = { "fsdp=1", "fsdp=3", "fsdp=2,ep=2", "tp=2,ep=2",
                                          "pp=2,fsdp=2" };
    static const char *const families[] = { "qwen3_moe", "glm_moe_dsa", "qwen3_5",   "qwen3_5_moe",
                                            "mixtral",   "laguna",      "minimax_m2" };
    for (size_t f = 0; f < sizeof(families) / sizeof(families[0]); f++) {
        for (size_t m = 0; m < sizeof(meshes) / sizeof(meshes[0]); m++) {
            if (strcmp(families[f], "qwen3_5") == 0 && strstr(meshes[m], "ep=") != NULL)
                continue; /* it has no experts */
            for (int naming = 0; naming < 3; naming++)
                check(families[f], (weir_naming)naming, meshes[m]);
        }
    }
}

static void memory_that_runs_out_is_said_and_given_back(void **state)
{
    (void)state;
    fleet f = open_fleet("qwen3_moe", WEIR_NAMING_STACKED, "fsdp=2");
    weir_status status = WEIR_ERR_NO_MEMORY;
    for (uint64_t n = 1; status == WEIR_ERR_NO_MEMORY; n++) {
        weir_share *share = NULL;
        weir_checkpoint_share named = { 0 };
        must(weir_fleet_share(f.plan, 0, &share));
        weir_alloc_fail_at(n);
        status = weir_checkpoint_share_open(&f.settings, f.tensors, f.n_tensors, share, &named);
        weir_alloc_fail_at(0);
        weir_checkpoint_share_close(&named);
        weir_share_free(share);
    }
    assert_int_equal(status, WEIR_OK);
    close_fleet(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_ranks_together_have_every_tensor_once),
        cmocka_unit_test(memory_that_runs_out_is_said_and_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
