/* SPDX-License-Identifier: Apache-2.0 */
/* test_parameters.c - an engine's own memory, given by name, is followed as Weir's own is; what
 * does not fit the config is refused, and leaves the replica as it was.
 */
#include "refit/refit_rig.h"

#include <stdbool.h>

#define MAX_PARAMETERS 512
#define N_EXTRA 2

/* An engine's tensors in an order of its own, two of them none of the model's. */
typedef struct engine_memory {
    weir_tensor tensors[MAX_PARAMETERS];
    bool used[MAX_PARAMETERS];
    size_t n;
} engine_memory;

static weir_replica *open_worker(const rig *r, const char *mesh, uint32_t worker)
{
    weir_replica_options options = rig_replica_options(r, "one", WEIR_INSTALL_STAGED);
    weir_replica *replica = NULL;
    options.mesh = mesh;
    options.worker = worker;
    assert_ok(weir_replica_open(&options, &replica));
    return replica;
}

static weir_tensor copy_tensor(const weir_tensor *of)
{
    weir_tensor tensor = *of;
    uint64_t n_bytes;
    assert_ok(weir_tensor_bytes(of->dtype, &of->shape, &n_bytes));
    tensor.name = strdup(of->name);
    tensor.data = calloc(1, n_bytes);
    assert_non_null(tensor.data);
    return tensor;
}

/* What a worker would allocate, last first. */
static engine_memory *open_memory(const rig *r, const char *mesh, uint32_t worker)
{
    engine_memory *memory = calloc(1, sizeof(*memory));
    weir_replica *replica = open_worker(r, mesh, worker);
    size_t n;
    assert_non_null(memory);
    assert_ok(weir_replica_allocate(replica));
    const weir_tensor *live = weir_replica_parameters(replica, &n);
    assert_true(n + N_EXTRA <= MAX_PARAMETERS);
    for (size_t i = 0; i < n; i++)
        memory->tensors[memory->n++] = copy_tensor(&live[n - 1 - i]);
    weir_replica_close(replica);
    return memory;
}

static void add_extra(engine_memory *memory)
{
    weir_tensor extra = { .name = "rotary.cos_sin_cache",
                          .dtype = WEIR_F32,
                          .shape = { 1, { 4 } } };
    weir_tensor other = { .name = "a.counter", .dtype = WEIR_I64 };
    memory->tensors[memory->n++] = copy_tensor(&extra);
    memory->tensors[memory->n] = memory->tensors[0]; /* among the others */
    memory->tensors[0] = copy_tensor(&other);
    memory->n++;
}

static void close_memory(engine_memory *memory)
{
    for (size_t i = 0; i < memory->n; i++) {
        free((char *)memory->tensors[i].name);
        free(memory->tensors[i].data);
    }
    free(memory);
}

/* ---- what must work --------------------------------------------------------------------------*/

static void expect_at_given_addresses(const weir_replica *replica, const engine_memory *memory)
{
    size_t n, n_used = 0;
    const weir_tensor *live = weir_replica_parameters(replica, &n);
    for (size_t k = 0; k < memory->n; k++) {
        size_t n_found = 0;
        for (size_t i = 0; i < n; i++)
            n_found += live[i].data == memory->tensors[k].data &&
                       strcmp(live[i].name, memory->tensors[k].name) == 0;
        assert_int_equal(n_found, memory->used[k] ? 1 : 0);
        n_used += memory->used[k];
    }
    assert_int_equal(n_used, n);
}

static void follow(const char *family, const char *conversion, weir_wire wire)
{
    rig wish = { .family = family, .conversion = conversion, .wire = wire };
    rig *r = rig_open_as(&wish);
    engine_memory *memory = open_memory(r, NULL, 0);
    weir_replica *replica = open_worker(r, NULL, 0);
    add_extra(memory);
    assert_ok(weir_replica_bind(replica, memory->tensors, memory->n, memory->used));
    expect_at_given_addresses(replica, memory);
    assert_false(memory->used[0]);
    for (unsigned version = 1; version <= 2; version++) {
        rig_publish(r, version);
        assert_ok(weir_replica_install(replica, WEIR_LATEST, NULL));
        weir_verify_report report = rig_verify(r, "one");
        assert_string_equal(report.first_difference, "");
        assert_int_equal(report.n_different, 0);
        assert_int_equal(report.version, version);
    }
    weir_replica_close(replica);
    close_memory(memory);
    rig_close(r);
}

static void an_engine_s_tensors_in_any_order_are_followed(void **state)
{
    (void)state;
    follow("glm_moe_dsa", "fp8_128x128", WEIR_WIRE_KERNEL); /* with derived parameters */
    follow("qwen3_moe", "cutlass_fp8_e4m3_per_channel", WEIR_WIRE_KERNEL);
    follow("llama", "fp8_128x128", WEIR_WIRE_CHECKPOINT);
}

/* Of a model whose head is the embeddings, an engine has them under both names. */
static void a_head_tied_to_the_embeddings_is_one_parameter(void **state)
{
    (void)state;
    rig *r = rig_open("gemma2", "bf16_cast", NULL);
    engine_memory *memory = open_memory(r, NULL, 0);
    size_t n, at = 0;
    while (strstr(memory->tensors[at].name, "embed_tokens") == NULL)
        at++;
    memory->tensors[memory->n] = memory->tensors[at];
    memory->tensors[memory->n++].name = "lm_head.weight";
    weir_replica *replica = open_worker(r, NULL, 0);
    assert_ok(weir_replica_bind(replica, memory->tensors, memory->n, NULL));
    weir_replica_parameters(replica, &n);
    assert_int_equal(n, memory->n - 1);
    weir_replica_close(replica);

    const weir_conversion *cast;
    weir_parameter tags[MAX_PARAMETERS] = { { .entry = 0 } };
    assert_ok(weir_conversion_get("bf16_cast", &cast));
    for (size_t i = 0; i < memory->n; i++)
        tags[i].compile_metadata = cast->compile_metadata;
    replica = open_worker(r, NULL, 0);
    weir_tensor first = memory->tensors[0];
    memory->tensors[0] = memory->tensors[memory->n - 1]; /* before the embeddings */
    memory->tensors[memory->n - 1] = first;
    assert_ok(weir_replica_register(replica, memory->tensors, tags, memory->n));
    weir_replica_parameters(replica, &n);
    assert_int_equal(n, memory->n - 1);
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    assert_int_equal(rig_verify(r, "one").n_different, 0);
    weir_replica_close(replica);
    memory->tensors[0] = memory->tensors[--memory->n];
    close_memory(memory);
    rig_close(r);
}

static void a_worker_of_a_parallel_engine_gives_its_part(void **state)
{
    (void)state;
    rig *r = rig_open("llama", "bf16_cast", NULL);
    for (uint32_t worker = 0; worker < 2; worker++) {
        engine_memory *memory = open_memory(r, "tp=2", worker);
        weir_replica *replica = open_worker(r, "tp=2", worker);
        assert_ok(weir_replica_bind(replica, memory->tensors, memory->n, memory->used));
        expect_at_given_addresses(replica, memory);
        weir_replica_close(replica);
        replica = open_worker(r, NULL, 0);
        assert_error(weir_replica_bind(replica, memory->tensors, memory->n, NULL), WEIR_ERR_LAYOUT,
                     " here, worker 0 of the engine that config.json describes has ");
        weir_replica_close(replica);
        close_memory(memory);
    }
    rig_close(r);
}

/* ---- what is refused -------------------------------------------------------------------------*/

/* The replica can be bound all the same. */
static void expect_unbound(weir_replica *replica)
{
    size_t n;
    weir_replica_parameters(replica, &n);
    assert_int_equal(n, 0);
    assert_error(weir_replica_install(replica, 1, NULL), WEIR_ERR_INVALID, "no parameters");
}

static void what_does_not_fit_is_named_with_both_sides(void **state)
{
    (void)state;
    rig *r = rig_open("llama", "bf16_cast", NULL);
    engine_memory *memory = open_memory(r, NULL, 0);
    weir_replica *replica = open_worker(r, NULL, 0);
    weir_tensor *tensors = memory->tensors;
    size_t n = memory->n;
    char line[160];

    snprintf(line, sizeof(line),
             "parameter %s of the engine is missing, 3 of %zu in all: ", tensors[n - 1].name, n);
    assert_error(weir_replica_bind(replica, tensors, n - 3, NULL), WEIR_ERR_LAYOUT, line);
    assert_error(weir_replica_bind(replica, NULL, 0, NULL), WEIR_ERR_LAYOUT, "is missing");
    assert_error(weir_replica_bind(replica, NULL, n, NULL), WEIR_ERR_INVALID, "at NULL");

    tensors[2].dtype = WEIR_F16;
    snprintf(line, sizeof(line), "parameter %s is F16 [", tensors[2].name);
    assert_error(weir_replica_bind(replica, tensors, n, NULL), WEIR_ERR_LAYOUT, line);
    assert_error(weir_replica_bind(replica, tensors, n, NULL), WEIR_ERR_LAYOUT, " has BF16 [");
    tensors[2].dtype = WEIR_BF16;
    tensors[3].shape.dim[0]++;
    snprintf(line, sizeof(line), "parameter %s is BF16 [", tensors[3].name);
    assert_error(weir_replica_bind(replica, tensors, n, NULL), WEIR_ERR_LAYOUT, line);
    tensors[3].shape.dim[0]--;
    expect_unbound(replica);

    assert_ok(weir_replica_bind(replica, tensors, n, NULL));
    assert_error(weir_replica_bind(replica, tensors, n, NULL), WEIR_ERR_EXISTS, "already");
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    assert_int_equal(rig_verify(r, "one").n_different, 0);
    weir_replica_close(replica);
    close_memory(memory);
    rig_close(r);
}

static void names_and_memory_must_be_there_once(void **state)
{
    (void)state;
    rig *r = rig_open("llama", "bf16_cast", NULL);
    engine_memory *memory = open_memory(r, NULL, 0);
    weir_replica *replica = open_worker(r, NULL, 0);
    char line[160];
    weir_tensor kept = memory->tensors[1];

    memory->tensors[1].name = memory->tensors[4].name;
    snprintf(line, sizeof(line), "parameter %s is given twice", memory->tensors[4].name);
    assert_error(weir_replica_bind(replica, memory->tensors, memory->n, memory->used),
                 WEIR_ERR_INVALID, line);
    memory->tensors[1].name = NULL;
    assert_error(weir_replica_bind(replica, memory->tensors, memory->n, memory->used),
                 WEIR_ERR_INVALID, "parameter 1 has no name");
    memory->tensors[1] = kept;
    memory->tensors[1].data = NULL;
    snprintf(line, sizeof(line), "parameter 1, %s has no memory", kept.name);
    assert_error(weir_replica_bind(replica, memory->tensors, memory->n, memory->used),
                 WEIR_ERR_INVALID, line);
    memory->tensors[1] = kept;

    add_extra(memory);
    assert_error(weir_replica_bind(replica, memory->tensors, memory->n, NULL), WEIR_ERR_LAYOUT,
                 "a.counter is no parameter of the model, 2 in all of the ");
    for (size_t i = 0; i < memory->n; i++)
        assert_false(memory->used[i]); /* written only on success */
    expect_unbound(replica);
    weir_replica_close(replica);
    close_memory(memory);
    rig_close(r);
}

static void without_a_config_nothing_is_known_of_an_engine(void **state)
{
    (void)state;
    rig *r = rig_open("llama", "bf16_cast", NULL);
    engine_memory *memory = open_memory(r, NULL, 0);
    weir_replica_options options = rig_replica_options(r, "one", WEIR_INSTALL_STAGED);
    weir_replica *replica = NULL;
    options.config = NULL;
    assert_ok(weir_replica_open(&options, &replica));
    assert_error(weir_replica_bind(replica, memory->tensors, memory->n, NULL), WEIR_ERR_INVALID,
                 "needs the engine's config.json");
    weir_replica_close(replica);
    close_memory(memory);
    rig_close(r);
}

/* ---- a config as text ------------------------------------------------------------------------*/

static void a_config_can_be_the_text_itself(void **state)
{
    (void)state;
    rig *r = rig_open("llama", "bf16_cast", NULL);
    char *text = weir_config_text(r->config), spaced[16384];
    weir_replica_options options = rig_replica_options(r, "one", WEIR_INSTALL_STAGED);
    weir_verify_options verify = WEIR_VERIFY_OPTIONS_INIT;
    weir_verify_report report;
    weir_replica *replica = NULL;
    assert_true(snprintf(spaced, sizeof(spaced), " \t\r\n%s", text) < (int)sizeof(spaced));
    options.config = spaced;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    verify.directory = options.directory;
    verify.model = "model";
    verify.replica = "one";
    verify.conversion = "bf16_cast";
    verify.config = text;
    verify.sources = r->model.tensors;
    verify.n_sources = r->model.n;
    verify.timeout_ms = RIG_TIMEOUT_MS;
    assert_ok(weir_verify(&verify, &report));
    assert_int_equal(report.n_different, 0);
    weir_replica_close(replica);
    weir_string_free(text);
    rig_close(r);
}

static void a_text_that_is_no_config_is_called_config(void **state)
{
    (void)state;
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *trainer = NULL;
    options.model = "model";
    options.config = " {\"model_type\": ";
    assert_error(weir_trainer_open(&options, &trainer), WEIR_ERR_FORMAT, "config");
    options.config = "";
    assert_error(weir_trainer_open(&options, &trainer), WEIR_ERR_NOT_FOUND, "");
    options.config = "[]";
    assert_error(weir_trainer_open(&options, &trainer), WEIR_ERR_NOT_FOUND, "[]");
    assert_null(trainer);
}

/* ---- cancelling ------------------------------------------------------------------------------*/

static void a_cancel_that_came_too_late_can_be_forgotten(void **state)
{
    (void)state;
    rig *r = rig_open("llama", "bf16_cast", NULL);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    rig_publish(r, 1);
    weir_replica_cancel(replica);
    weir_replica_uncancel(replica);
    assert_ok(weir_replica_install(replica, 1, NULL));
    weir_trainer_cancel(r->trainers[0]);
    weir_trainer_uncancel(r->trainers[0]);
    assert_error(weir_trainer_wait(r->trainers[0], 1, 2, 50), WEIR_ERR_TIMED_OUT, "1");
    weir_trainer_cancel(r->trainers[0]);
    assert_error(weir_trainer_wait(r->trainers[0], 1, 2, 50), WEIR_ERR_CANCELLED, "cancelled");
    weir_replica_close(replica);
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_engine_s_tensors_in_any_order_are_followed),
        cmocka_unit_test(a_head_tied_to_the_embeddings_is_one_parameter),
        cmocka_unit_test(a_worker_of_a_parallel_engine_gives_its_part),
        cmocka_unit_test(what_does_not_fit_is_named_with_both_sides),
        cmocka_unit_test(names_and_memory_must_be_there_once),
        cmocka_unit_test(without_a_config_nothing_is_known_of_an_engine),
        cmocka_unit_test(a_config_can_be_the_text_itself),
        cmocka_unit_test(a_text_that_is_no_config_is_called_config),
        cmocka_unit_test(a_cancel_that_came_too_late_can_be_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
