/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint on the wire, in one process: live bytes equal those of kernel mode, in memory of two
 * layers; sides that mean different things are told apart by name. */
#include <inttypes.h>
#include <pthread.h>

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

/* ---- parallel engines ------------------------------------------------------------------------*/

/* A preset that engines of several workers can cut at blocks of scales. */
static rig *open_tiny(const char *family, weir_delivery delivery)
{
    rig wish = { .family = family,
                 .conversion = "fp8_128x128",
                 .transport = "ucx",
                 .preset = "tiny",
                 .delivery = delivery,
                 .wire = WEIR_WIRE_CHECKPOINT };
    return rig_open_as(&wish);
}

static weir_verify_report verify_worker(const rig *r, const char *name, const char *mesh,
                                        const char *experts, uint32_t worker)
{
    weir_verify_options options = WEIR_VERIFY_OPTIONS_INIT;
    weir_verify_report report;
    options.directory = weir_directory_address(r->directory);
    options.model = "model";
    options.replica = name;
    options.family = r->family;
    options.conversion = r->conversion;
    options.config = r->config_path;
    options.sources = r->model.tensors;
    options.n_sources = r->model.n;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.mesh = mesh;
    options.experts = experts;
    options.worker = worker;
    assert_ok(weir_verify(&options, &report));
    return report;
}

/* Two versions of every worker of one engine. */
static void install_parts(const char *family, const char *mesh, const char *experts,
                          weir_install_mode mode)
{
    rig *r = open_tiny(family, WEIR_DELIVERY_PULL);
    weir_replica *replicas[8] = { NULL };
    weir_replica_mesh parsed;
    assert_ok(weir_replica_mesh_parse(mesh, &parsed));
    uint32_t n = weir_replica_mesh_workers(&parsed);
    for (uint32_t w = 0; w < n; w++) {
        char name[16];
        snprintf(name, sizeof(name), "w%u", w);
        weir_replica_options options = rig_replica_options(r, name, mode);
        options.mesh = mesh;
        options.experts = experts;
        options.worker = w;
        assert_ok(weir_replica_open(&options, &replicas[w]));
        assert_ok(weir_replica_allocate(replicas[w]));
    }
    for (unsigned version = 1; version <= 2; version++) {
        rig_publish(r, version);
        for (uint32_t w = 0; w < n; w++) {
            char name[16];
            weir_report report;
            snprintf(name, sizeof(name), "w%u", w);
            assert_ok(weir_replica_install(replicas[w], version, &report));
            assert_true(version == 1 || report.counters.allocations == 0);
            weir_verify_report found = verify_worker(r, name, mesh, experts, w);
            if (found.n_different != 0)
                fail_msg("%s worker %u of %s: %s", family, w, mesh, found.first_difference);
        }
    }
    for (uint32_t w = 0; w < n; w++)
        weir_replica_close(replicas[w]);
    rig_close(r);
}

static void each_worker_cuts_its_own_part(void **state)
{
    (void)state;
    install_parts("qwen3", "tp=2", NULL, WEIR_INSTALL_STAGED);
    install_parts("deepseek_v3", "tp=2", NULL, WEIR_INSTALL_DIRECT);
    install_parts("qwen3_moe", "dp=2,tp=2,ep=4", NULL, WEIR_INSTALL_STAGED);
    install_parts("gemma2", "pp=2", NULL, WEIR_INSTALL_STAGED);
}

static void experts_may_be_anywhere_and_twice(void **state)
{
    (void)state;
    install_parts("qwen3_moe", "tp=2,ep=2", "[[3,1,0,7,5],[2,0,1,4,6]]", WEIR_INSTALL_STAGED);
}

static void what_a_worker_has_no_part_of_it_does_not_read(void **state)
{
    (void)state;
    rig *r = open_tiny("qwen3_moe", WEIR_DELIVERY_PULL);
    weir_replica_options options = rig_replica_options(r, "w0", WEIR_INSTALL_STAGED);
    weir_replica *replica = NULL;
    weir_report report;
    options.mesh = "tp=2,ep=2";
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, &report));
    uint64_t unread_bytes = 0;
    for (size_t i = 0; i < replica->loader->n_wanted; i++) {
        if (replica->loader->tensors[i].group != WEIR_ANY)
            continue;
        assert_non_null(strstr(replica->loader->wanted[i].name, ".experts."));
        unread_bytes += replica->loader->tensors[i].n_bytes;
    }
    assert_true(unread_bytes > 0);
    assert_int_equal(report.n_bytes + unread_bytes, checkpoint_bytes(replica));
    weir_replica_close(replica);
    rig_close(r);
}

/* ---- pushed ----------------------------------------------------------------------------------*/

/* A trainer rank, or a replica, in a thread of its own. */
typedef struct side {
    pthread_t thread;
    weir_trainer *trainer;
    weir_replica *replica;
    uint64_t version;
    unsigned n_replicas;
    weir_status status;
    char error[1024];
} side;

static void *run_side(void *context)
{
    side *s = context;
    weir_alloc_uncount_thread(); /* conversions keep their scratch by thread, and this one is new */
    s->status = s->trainer != NULL ? weir_trainer_wait(s->trainer, s->version, s->n_replicas, 0)
                                   : weir_replica_install(s->replica, s->version, NULL);
    snprintf(s->error, sizeof(s->error), "%s", weir_last_error());
    return NULL;
}

/* The first replica installs in this thread, whose allocations count. */
static weir_status push(rig *r, weir_replica *const *replicas, unsigned n, uint64_t version,
                        weir_report *report, side sides[8])
{
    unsigned n_sides = 0;
    for (unsigned i = 1; i < n; i++)
        sides[n_sides++] = (side){ .replica = replicas[i], .version = version };
    for (unsigned rank = 0; rank < RIG_RANKS; rank++)
        sides[n_sides++] =
            (side){ .trainer = r->trainers[rank], .version = version, .n_replicas = n };
    for (unsigned i = 0; i < n_sides; i++)
        assert_int_equal(pthread_create(&sides[i].thread, NULL, run_side, &sides[i]), 0);
    weir_status status = weir_replica_install(replicas[0], version, report);
    for (unsigned i = 0; i < n_sides; i++)
        pthread_join(sides[i].thread, NULL);
    return status;
}

static void push_three(const char *family, uint64_t window_bytes, weir_install_mode first)
{
    rig *r = open_rig(family, "fp8_128x128", WEIR_DELIVERY_PUSH);
    r->window_bytes = window_bytes; /* of the replicas */
    weir_replica *replicas[2] = { rig_open_replica(r, "one", first),
                                  rig_open_replica(r, "two", (weir_install_mode)(1 - first)) };
    for (unsigned version = 1; version <= 3; version++) {
        side sides[8];
        weir_report report;
        rig_publish(r, version);
        assert_ok(push(r, replicas, 2, version, &report, sides));
        for (unsigned i = 0; i < 1 + RIG_RANKS; i++) {
            if (sides[i].status != WEIR_OK)
                fail_msg("%s: %s", weir_status_name(sides[i].status), sides[i].error);
        }
        assert_int_equal(report.n_bytes, checkpoint_bytes(replicas[0]));
        assert_holds(r, "one", version);
        assert_holds(r, "two", version);
        if (version > 1) {
            assert_int_equal(report.counters.allocations, 0);
            assert_int_equal(report.counters.plans, 0);
        }
    }
    for (int i = 0; i < 2; i++)
        weir_replica_close(replicas[i]);
    rig_close(r);
}

static void a_checkpoint_is_pushed_and_passed_on(void **state)
{
    (void)state;
    push_three("qwen3", 0, WEIR_INSTALL_STAGED);
    push_three("qwen3_moe", 1 << 20, WEIR_INSTALL_DIRECT);
    push_three("deepseek_v3", 1 << 20, WEIR_INSTALL_STAGED);
}

static void workers_of_one_engine_are_pushed_to_each(void **state)
{
    (void)state;
    rig *r = open_tiny("qwen3_moe", WEIR_DELIVERY_PUSH);
    weir_replica *replicas[2] = { NULL };
    side sides[8];
    for (uint32_t w = 0; w < 2; w++) {
        weir_replica_options options =
            rig_replica_options(r, w == 0 ? "w0" : "w1", WEIR_INSTALL_STAGED);
        options.mesh = "tp=2,ep=2";
        options.worker = w;
        assert_ok(weir_replica_open(&options, &replicas[w]));
        assert_ok(weir_replica_allocate(replicas[w]));
    }
    rig_publish(r, 1);
    assert_ok(push(r, replicas, 2, 1, NULL, sides));
    for (unsigned i = 0; i < 1 + RIG_RANKS; i++) {
        if (sides[i].status != WEIR_OK)
            fail_msg("%s: %s", weir_status_name(sides[i].status), sides[i].error);
    }
    for (uint32_t w = 0; w < 2; w++) {
        weir_verify_report found = verify_worker(r, w == 0 ? "w0" : "w1", "tp=2,ep=2", NULL, w);
        if (found.n_different != 0)
            fail_msg("worker %u: %s", w, found.first_difference);
        weir_replica_close(replicas[w]);
    }
    rig_close(r);
}

/* What is not finite is found while it is sent: the groups before it are converted by then. */
static void a_push_that_fails_half_way_is_undone(void **state)
{
    (void)state;
    uint64_t n_bytes;
    side sides[8];
    rig *r = open_rig("qwen3", "fp8_128x128", WEIR_DELIVERY_PUSH);
    r->window_bytes = 1 << 19;
    weir_replica *replica = rig_open_replica(r, "r", WEIR_INSTALL_STAGED);
    rig_publish(r, 1);
    assert_ok(push(r, &replica, 1, 1, NULL, sides));
    unsigned char *before = rig_snapshot(replica, &n_bytes);
    rig_publish(r, 2);
    size_t last = 0;
    for (size_t t = 0; t < r->model.n; t++) {
        if (strcmp(r->model.tensors[t].name, "model.layers.1.mlp.down_proj.weight") == 0)
            last = t;
    }
    ((uint16_t *)r->model.tensors[last].data)[0] = 0x7fc0;
    assert_error(push(r, &replica, 1, 2, NULL, sides), WEIR_ERR_NONFINITE, "down_proj");
    assert_true(replica->loader->has_written);
    assert_int_equal(weir_replica_version(replica), 1);
    unsigned char *after = rig_snapshot(replica, &n_bytes);
    assert_memory_equal(before, after, n_bytes);
    rig_publish(r, 3);
    assert_ok(push(r, &replica, 1, 3, NULL, sides));
    assert_holds(r, "r", 3);
    free(after);
    free(before);
    weir_replica_close(replica);
    rig_close(r);
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
    options.mesh = "tp=2"; /* of whose parts the checkpoint has none */
    options.worker = 1;
    options.name = "second";
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    assert_error(weir_replica_install(replica, 1, NULL), WEIR_ERR_LAYOUT, "sends a checkpoint (");
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
        cmocka_unit_test(each_worker_cuts_its_own_part),
        cmocka_unit_test(experts_may_be_anywhere_and_twice),
        cmocka_unit_test(what_a_worker_has_no_part_of_it_does_not_read),
        cmocka_unit_test(a_checkpoint_is_pushed_and_passed_on),
        cmocka_unit_test(workers_of_one_engine_are_pushed_to_each),
        cmocka_unit_test(a_push_that_fails_half_way_is_undone),
        cmocka_unit_test(the_loader_takes_two_groups_and_never_a_whole_model),
        cmocka_unit_test(a_spoiled_tensor_leaves_the_old_version),
        cmocka_unit_test(direct_it_is_unusable_only_behind_the_first_group),
        cmocka_unit_test(sides_that_mean_different_things_are_told_so),
        cmocka_unit_test(options_that_a_checkpoint_cannot_have_are_refused),
        cmocka_unit_test(another_replica_reads_what_this_one_has_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
