/* SPDX-License-Identifier: Apache-2.0 */
/* A worker of a parallel engine plans its part from the manifests of all trainer ranks: how long
 * that takes, and what it keeps, at the size of DeepSeek-V3. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit/engine_part.h"
#include "refit/manifest.h"
#include "weir/checkpoint.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
#define TIME_FACTOR 20
#else
#define TIME_FACTOR 1
#endif

#define N_RANKS 256

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

/* A busy machine says nothing by the wall's time of a few milliseconds. */
static double processor_s(void)
{
    struct timespec now;
    assert_int_equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now), 0);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- the model -------------------------------------------------------------------------------*/

typedef struct model {
    weir_config *config;
    weir_tensor *sources;
    size_t n_sources;
    weir_mapping *mapping;
    weir_fleet_tensor *tensors;
    size_t n_tensors;
} model;

static void model_open(model *m, weir_naming naming)
{
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    char *text;
    must(weir_family_preset("deepseek_v3", "deepseek-v3", &text));
    must(weir_config_parse(text, "deepseek-v3", &m->config));
    weir_string_free(text);
    must(weir_family_sources("deepseek_v3", m->config, naming, &m->sources, &m->n_sources));
    options.family = "deepseek_v3";
    options.conversion = "fp8_128x128";
    options.config = m->config;
    must(weir_mapping_open(&options, m->sources, m->n_sources, &m->mapping));
    must(weir_fleet_tensors_of(m->mapping, &m->tensors, &m->n_tensors));
}

static void model_close(model *m)
{
    weir_fleet_tensors_free(m->tensors);
    weir_mapping_close(m->mapping);
    weir_family_sources_free(m->sources);
    weir_config_close(m->config);
}

/* ---- manifests -------------------------------------------------------------------------------*/

/* What 256 ranks publish, as bytes. */
typedef struct fleet_layouts {
    weir_buffer layouts[N_RANKS];
    weir_manifest_region regions[N_RANKS];
    size_t n_shards, n_bytes;
} fleet_layouts;

static weir_shard shard_of(const model *m, const weir_share_shard *from, uint64_t offset)
{
    size_t n;
    const weir_map_entry *entry = &weir_mapping_entries(m->mapping, &n)[from->tensor];
    const weir_parameter *parameter =
        &weir_mapping_parameters(m->mapping, &n)[entry->first_parameter + from->output];
    return (weir_shard){ .name = parameter->name,
                         .dtype = parameter->dtype,
                         .global_shape = from->shape,
                         .box = from->box,
                         .place = from->place,
                         .n_padding_rows = from->n_padding_rows,
                         .compile_target = parameter->compile_target,
                         .compile_metadata = parameter->compile_metadata,
                         .offset = offset,
                         .n_bytes = from->n_bytes };
}

static void encode_rank(const model *m, const weir_fleet *fleet, uint32_t rank, fleet_layouts *out)
{
    weir_share *share;
    weir_arena arena;
    uint64_t offset = 0;
    must(weir_fleet_share(fleet, rank, &share));
    weir_shard *shards = calloc(share->n_shards + 1, sizeof(*shards));
    assert_non_null(shards);
    for (size_t i = 0; i < share->n_shards; i++) {
        shards[i] = shard_of(m, &share->shards[i], offset);
        offset += (shards[i].n_bytes + 255) / 256 * 256;
    }
    weir_arena_init(&arena, 0);
    must(weir_layout_encode(shards, share->n_shards, &arena, &out->layouts[rank]));
    out->regions[rank].n_bytes = offset;
    out->n_shards += share->n_shards;
    out->n_bytes += out->layouts[rank].n_bytes;
    weir_arena_close(&arena);
    free(shards);
    weir_share_free(share);
}

static fleet_layouts *encode_all(const model *m, const char *trainer, const char *replica)
{
    weir_trainer_mesh from;
    weir_replica_mesh to;
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    weir_fleet *fleet;
    fleet_layouts *out = calloc(1, sizeof(*out));
    must(weir_trainer_mesh_parse(trainer, &from));
    must(weir_replica_mesh_parse(replica, &to));
    args.tensors = m->tensors;
    args.n_tensors = m->n_tensors;
    args.trainer = &from;
    args.replica = &to;
    must(weir_fleet_open(&args, &fleet));
    assert_int_equal(weir_fleet_ranks(fleet), N_RANKS);
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        encode_rank(m, fleet, rank, out);
    weir_fleet_close(fleet);
    return out;
}

static void free_layouts(fleet_layouts *all)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        weir_buffer_free(&all->layouts[rank]);
    free(all);
}

/* ---- one worker ------------------------------------------------------------------------------*/

typedef struct worker_figures {
    double decode_s, plan_s;
    size_t n_copies, kept_bytes;
} worker_figures;

static worker_figures plan_worker(const model *m, const fleet_layouts *all, const char *replica,
                                  uint32_t worker)
{
    worker_figures figures = { 0 };
    weir_plan_source sources[N_RANKS];
    weir_arena arenas[N_RANKS], part_arena;
    weir_engine_part part;
    weir_replica_mesh mesh;
    weir_plan *plan;
    char text[WEIR_MESH_TEXT];
    must(weir_engine_mesh_read(replica, NULL, &mesh, text));
    weir_mesh_place place = weir_replica_mesh_place(&mesh, worker);
    weir_arena_init(&part_arena, 0);
    must(weir_engine_part_of(m->mapping, &mesh, worker, &part_arena, &part));
    double begun = processor_s();
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        weir_layout_part own;
        weir_arena_init(&arenas[rank], 0);
        must(weir_layout_decode_part(all->layouts[rank].data, all->layouts[rank].n_bytes,
                                     &all->regions[rank], 1, &place, &arenas[rank], &own));
        sources[rank] = (weir_plan_source){ "a trainer rank", own.shards, own.n_shards };
        figures.kept_bytes += arenas[rank].used_bytes;
    }
    figures.decode_s = processor_s() - begun;
    begun = processor_s();
    must(weir_plan_open(part.parameters, part.n_parameters, &place, sources, N_RANKS, &plan));
    figures.plan_s = processor_s() - begun;
    weir_plan_copies(plan, &figures.n_copies);
    must(weir_engine_part_check(part.parameters, part.n_parameters, part.filled_bytes, plan));
    weir_plan_close(plan);
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        weir_arena_close(&arenas[rank]);
    weir_arena_close(&part_arena);
    return figures;
}

static int compare_seconds(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void check_fleet(const char *trainer, weir_naming naming)
{
    enum { N_WORKERS = 5 };
    static const char replica[] = "tp=8,ep=32,dp=4";
    static const uint32_t workers[N_WORKERS] = { 0, 7, 13, 24, 31 };
    double decode_s[N_WORKERS], plan_s[N_WORKERS];
    worker_figures last = { 0 };
    model m = { 0 };
    model_open(&m, naming);
    fleet_layouts *all = encode_all(&m, trainer, replica);
    for (size_t i = 0; i < N_WORKERS; i++) {
        last = plan_worker(&m, all, replica, workers[i]);
        decode_s[i] = last.decode_s;
        plan_s[i] = last.plan_s;
    }
    qsort(decode_s, N_WORKERS, sizeof(decode_s[0]), compare_seconds);
    qsort(plan_s, N_WORKERS, sizeof(plan_s[0]), compare_seconds);
    print_message("%s%s -> %s: %zu shards in %.1f MB of layouts; a worker's plan of %zu copies, "
                  "processor's time: median %.1f ms, slowest %.1f ms; decoding before it %.1f, "
                  "%.1f ms, %.1f MB\n",
                  trainer, naming == WEIR_NAMING_HF ? "" : " (stacked)", replica, all->n_shards,
                  (double)all->n_bytes * 1e-6, last.n_copies, plan_s[N_WORKERS / 2] * 1e3,
                  plan_s[N_WORKERS - 1] * 1e3, decode_s[N_WORKERS / 2] * 1e3,
                  decode_s[N_WORKERS - 1] * 1e3, (double)last.kept_bytes * 1e-6);
    assert_true(plan_s[N_WORKERS / 2] < 0.25 * TIME_FACTOR);
    free_layouts(all);
    model_close(&m);
}

static void a_worker_of_a_deepseek_v3_engine_plans_its_part_in_milliseconds(void **state)
{
    (void)state;
    check_fleet("pp=8,ep=32", WEIR_NAMING_HF);
    check_fleet("fsdp=8,ep=32", WEIR_NAMING_HF);
    check_fleet("fsdp=32,ep=8", WEIR_NAMING_HF);
    check_fleet("fsdp=256", WEIR_NAMING_STACKED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_worker_of_a_deepseek_v3_engine_plans_its_part_in_milliseconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
