/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint on the wire, in one process: live bytes equal those of kernel mode, in memory of two
 * layers; sides that mean different things are told apart by name. */
#include <inttypes.h>

#include "base/alloc.h"
#include "refit/refit_rig.h"
#include "refit/replica.h"
#include "refit/trainer.h"

static rig *open_rig(const char *family, const char *conversion, weir_delivery delivery)
{
    rig wish = { .family = family,
                 .conversion = conversion,
                 .transport = "ucx",
                 .delivery = delivery,
                 .wire = WEIR_WIRE_CHECKPOINT };
    return rig_open_as(&wish);
}

static void assert_holds(const rig *r, const char *name, uint64_t version)
{
    weir_verify_report report = rig_verify(r, name);
    assert_int_equal(report.version, version);
    if (report.n_different != 0)
        fail_msg("%" PRIu64 " parameters differ: %s", report.n_different, report.first_difference);
    assert_true(report.n_parameters > 0);
}

/* Bytes of bf16 that a refit moves: every source once. */
static uint64_t checkpoint_bytes(const weir_replica *replica)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < replica->loader->n_wanted; i++)
        n_bytes += replica->loader->tensors[i].n_bytes;
    return n_bytes;
}

/* ---- bytes -----------------------------------------------------------------------------------*/

static void install_three(const char *family, const char *conversion, weir_install_mode mode)
{
    rig *r = open_rig(family, conversion, WEIR_DELIVERY_PULL);
    weir_replica *replica = rig_open_replica(r, "r", mode);
    for (unsigned version = 1; version <= 3; version++) {
        weir_report report;
        rig_publish(r, version);
        assert_ok(weir_replica_install(replica, version, &report));
        assert_int_equal(report.n_bytes, checkpoint_bytes(replica));
        assert_holds(r, "r", version);
        if (version > 1) {
            assert_int_equal(report.counters.allocations, 0);
            assert_int_equal(report.counters.registrations, 0);
            assert_int_equal(report.counters.plans, 0);
            assert_int_equal(report.counters.connections, 0);
        }
    }
    weir_replica_close(replica);
    rig_close(r);
}

static void a_dense_model_is_fused_and_quantised_by_the_replica(void **state)
{
    (void)state;
    install_three("qwen3", "fp8_128x128", WEIR_INSTALL_STAGED);
    install_three("llama", "cutlass_fp8_e4m3_per_channel", WEIR_INSTALL_DIRECT);
}

static void so_is_a_mixture_of_experts(void **state)
{
    (void)state;
    install_three("qwen3_moe", "fp8_128x128", WEIR_INSTALL_STAGED);
    install_three("qwen3_moe", "fp8_128x128", WEIR_INSTALL_DIRECT);
}

static void so_is_latent_attention_with_what_is_derived_of_it(void **state)
{
    (void)state;
    install_three("deepseek_v3", "fp8_128x128", WEIR_INSTALL_STAGED);
    install_three("glm_moe_dsa", "fp8_128x128", WEIR_INSTALL_DIRECT);
}

static void tied_embeddings_are_sent_once(void **state)
{
    (void)state;
    install_three("gemma2", "bf16_cast", WEIR_INSTALL_STAGED);
}

/* ---- memory ----------------------------------------------------------------------------------*/

static void the_loader_takes_two_groups_and_never_a_whole_model(void **state)
{
    (void)state;
    rig *r = open_rig("qwen3", "fp8_128x128", WEIR_DELIVERY_PULL);
    weir_replica *replica = rig_open_replica(r, "r", WEIR_INSTALL_STAGED);
    const weir_loader *loader = replica->loader;
    uint64_t *group_bytes = calloc(loader->n_groups, sizeof(*group_bytes)), largest_bytes = 0;
    for (size_t i = 0; i < loader->n_wanted; i++) {
        assert_true(loader->tensors[i].group < loader->n_groups);
        group_bytes[loader->tensors[i].group] += (loader->tensors[i].n_bytes + 255) / 256 * 256;
    }
    for (uint32_t g = 0; g < loader->n_groups; g++)
        largest_bytes = group_bytes[g] > largest_bytes ? group_bytes[g] : largest_bytes;
    free(group_bytes);
    assert_int_equal(loader->buffer_bytes, largest_bytes);
    assert_true(WEIR_LOADER_BUFFERS * loader->buffer_bytes < checkpoint_bytes(replica));
    assert_null(loader->buffers[0]); /* before the first refit it takes none */
    weir_replica_close(replica);
    rig_close(r);
}

/* ---- failures --------------------------------------------------------------------------------*/

/* A byte of what a trainer rank has published differs from its digest. */
static void spoil(rig *r, const char *name)
{
    for (int rank = 0; rank < RIG_RANKS; rank++) {
        weir_trainer *trainer = r->trainers[rank];
        for (unsigned s = 0; s < trainer->n_slots; s++) {
            for (size_t i = 0; i < trainer->source.n_shards; i++) {
                if (trainer->slots[s].data != NULL &&
                    strcmp(trainer->source.shards[i].name, name) == 0)
                    trainer->slots[s].data[trainer->source.shards[i].offset] ^= 1;
            }
        }
    }
}

static void a_spoiled_tensor_leaves_the_old_version(void **state)
{
    (void)state;
    uint64_t n_bytes;
    rig *r = open_rig("qwen3", "fp8_128x128", WEIR_DELIVERY_PULL);
    weir_replica *replica = rig_open_replica(r, "r", WEIR_INSTALL_STAGED);
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    unsigned char *before = rig_snapshot(replica, &n_bytes);
    rig_publish(r, 2);
    spoil(r, "model.layers.1.mlp.down_proj.weight");
    assert_error(weir_replica_install(replica, 2, NULL), WEIR_ERR_CORRUPT,
                 "digest of model.layers.1.mlp.down_proj.weight differs");
    assert_int_equal(weir_replica_version(replica), 1);
    unsigned char *after = rig_snapshot(replica, &n_bytes);
    assert_memory_equal(before, after, n_bytes);
    rig_publish(r, 3);
    assert_ok(weir_replica_install(replica, 3, NULL));
    assert_holds(r, "r", 3);
    free(after);
    free(before);
    weir_replica_close(replica);
    rig_close(r);
}

/* Nothing is live before the first group is converted. */
static void direct_it_is_unusable_only_behind_the_first_group(void **state)
{
    (void)state;
    rig *r = open_rig("qwen3", "fp8_128x128", WEIR_DELIVERY_PULL);
    weir_replica *replica = rig_open_replica(r, "r", WEIR_INSTALL_DIRECT);
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    rig_publish(r, 2);
    spoil(r, "model.embed_tokens.weight");
    assert_error(weir_replica_install(replica, 2, NULL), WEIR_ERR_CORRUPT, "embed_tokens");
    assert_int_equal(weir_replica_version(replica), 1);
    assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_HOLDING);
    rig_publish(r, 3);
    spoil(r, "model.layers.1.mlp.down_proj.weight");
    assert_error(weir_replica_install(replica, 3, NULL), WEIR_ERR_CORRUPT, "down_proj");
    assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_UNUSABLE);
    rig_publish(r, 4);
    assert_ok(weir_replica_install(replica, 4, NULL));
    assert_holds(r, "r", 4);
    weir_replica_close(replica);
    rig_close(r);
}

static void sides_that_mean_different_things_are_told_so(void **state)
{
    (void)state;
    rig *r = open_rig("qwen3", "bf16_cast", WEIR_DELIVERY_PULL);
    weir_replica_options options = rig_replica_options(r, "kernel", WEIR_INSTALL_STAGED);
    weir_replica *replica = NULL;
    options.wire = WEIR_WIRE_KERNEL;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    rig_publish(r, 1);
    assert_error(weir_replica_install(replica, 1, NULL), WEIR_ERR_LAYOUT, "sends a checkpoint (");
    assert_non_null(strstr(weir_last_error(), "this replica wants kernel bytes ("));
    assert_non_null(strstr(weir_last_error(), "set quantize_in_weight_transfer alike"));
    weir_replica_close(replica);
    rig_close(r);

    r = rig_open("qwen3", "fp8_128x128", "ucx");
    options = rig_replica_options(r, "checkpoint", WEIR_INSTALL_STAGED);
    options.wire = WEIR_WIRE_CHECKPOINT;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    rig_publish(r, 1);
    assert_error(weir_replica_install(replica, 1, NULL), WEIR_ERR_LAYOUT, "sends kernel bytes (");
    assert_non_null(strstr(weir_last_error(), "this replica wants a checkpoint ("));
    weir_replica_close(replica);
    rig_close(r);
}

static void options_that_a_checkpoint_cannot_have_are_refused(void **state)
{
    (void)state;
    weir_trainer *trainer = NULL;
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    options.model = "model";
    options.wire = WEIR_WIRE_CHECKPOINT;
    assert_error(weir_trainer_open(&options, &trainer), WEIR_ERR_INVALID, "needs the model's");
    options.config = "/dev/null";
    options.keep_masters = true;
    assert_error(weir_trainer_open(&options, &trainer), WEIR_ERR_INVALID, "masters cannot be kept");
    options.wire = (weir_wire)7;
    assert_error(weir_trainer_open(&options, &trainer), WEIR_ERR_INVALID, "wire 7");
}

/* ---- other replicas --------------------------------------------------------------------------*/

static void another_replica_reads_what_this_one_has_made(void **state)
{
    (void)state;
    rig *r = open_rig("qwen3_moe", "fp8_128x128", WEIR_DELIVERY_PULL);
    weir_replica *first = rig_open_replica(r, "first", WEIR_INSTALL_STAGED);
    weir_replica *second = rig_open_replica(r, "second", WEIR_INSTALL_STAGED);
    weir_report report;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(first, 1, &report));
    assert_string_equal(report.read_from, "");
    assert_ok(weir_replica_install(second, 1, &report));
    assert_non_null(strstr(report.read_from, "first"));
    assert_true(report.n_bytes < checkpoint_bytes(second));
    assert_holds(r, "second", 1);
    weir_replica_close(second);
    weir_replica_close(first);
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dense_model_is_fused_and_quantised_by_the_replica),
        cmocka_unit_test(so_is_a_mixture_of_experts),
        cmocka_unit_test(so_is_latent_attention_with_what_is_derived_of_it),
        cmocka_unit_test(tied_embeddings_are_sent_once),
        cmocka_unit_test(the_loader_takes_two_groups_and_never_a_whole_model),
        cmocka_unit_test(a_spoiled_tensor_leaves_the_old_version),
        cmocka_unit_test(direct_it_is_unusable_only_behind_the_first_group),
        cmocka_unit_test(sides_that_mean_different_things_are_told_so),
        cmocka_unit_test(options_that_a_checkpoint_cannot_have_are_refused),
        cmocka_unit_test(another_replica_reads_what_this_one_has_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
