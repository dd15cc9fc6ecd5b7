/* SPDX-License-Identifier: Apache-2.0 */
#include "base/alloc.h"
#include "broadcast/inference_memory.h"
#include "refit/refit_rig.h"
#include "refit/replica.h"

static weir_inference_part part_of(const rig *r, const char *mesh, uint32_t worker)
{
    return (weir_inference_part){ .family = r->family,
                                  .conversion = r->conversion,
                                  .config = r->config_path,
                                  .mesh = mesh,
                                  .worker = worker };
}

static weir_replica *open_replica(const rig *r, const char *mesh, uint32_t worker)
{
    weir_replica_options options = rig_replica_options(r, "replica", WEIR_INSTALL_STAGED);
    weir_replica *replica = NULL;
    options.mesh = mesh;
    options.worker = worker;
    assert_ok(weir_replica_open(&options, &replica));
    return replica;
}

static bool is_zero(const weir_inference_memory *memory)
{
    const unsigned char *bytes = memory->block;
    for (uint64_t i = 0; i < memory->n_bytes; i++) {
        if (bytes[i] != 0)
            return false;
    }
    return true;
}

static void it_is_what_a_replica_would_allocate(void **state)
{
    (void)state;
    rig *r = rig_open("glm_moe_dsa", "bf16_cast", NULL); /* with derived parameters */
    for (uint32_t worker = 0; worker < 3; worker++) {
        const char *mesh = worker == 0 ? "tp=1" : "tp=2";
        weir_inference_memory memory = { .block = NULL };
        weir_inference_part part = part_of(r, mesh, worker > 0 ? worker - 1 : 0);
        assert_ok(weir_inference_memory_open(&memory, &part));
        weir_replica *replica = open_replica(r, mesh, part.worker);
        assert_ok(weir_replica_allocate(replica));
        size_t n;
        const weir_tensor *live = weir_replica_parameters(replica, &n);
        assert_int_equal(memory.n_tensors, n);
        for (size_t i = 0; i < n; i++) {
            assert_string_equal(memory.tensors[i].name, live[i].name);
            assert_int_equal(memory.tensors[i].dtype, live[i].dtype);
            assert_true(weir_shape_equal(&memory.tensors[i].shape, &live[i].shape));
            assert_int_equal((uintptr_t)memory.tensors[i].data % 256, 0);
        }
        assert_true(is_zero(&memory));
        weir_replica_close(replica);
        weir_inference_memory_close(&memory);
    }
    rig_close(r);
}

static void one_replica_after_the_other_installs_into_it(void **state)
{
    (void)state;
    rig *r = rig_open("glm_moe_dsa", "fp8_128x128", NULL);
    weir_inference_memory memory = { .block = NULL };
    weir_inference_part part = part_of(r, "tp=1", 0);
    assert_ok(weir_inference_memory_open(&memory, &part));
    for (unsigned version = 1; version <= 2; version++) {
        weir_replica *replica = open_replica(r, NULL, 0);
        assert_ok(weir_replica_adopt(replica, memory.tensors, memory.n_tensors));
        rig_publish(r, version);
        assert_ok(weir_replica_install(replica, version, NULL));
        size_t n;
        const weir_tensor *live = weir_replica_parameters(replica, &n);
        for (size_t i = 0; i < n; i++)
            assert_ptr_equal(live[i].data, memory.tensors[i].data);
        assert_int_equal(rig_verify(r, "replica").n_different, 0);
        weir_replica_close(replica);
        assert_false(is_zero(&memory)); /* it is still there */
    }
    weir_inference_memory_close(&memory);
    rig_close(r);
}

static void memory_of_other_parameters_is_not_installed_into(void **state)
{
    (void)state;
    rig *r = rig_open("glm_moe_dsa", "fp8_128x128", NULL);
    weir_inference_memory memory = { .block = NULL };
    weir_inference_part part = part_of(r, "tp=1", 0);
    assert_ok(weir_inference_memory_open(&memory, &part));
    weir_replica *replica = open_replica(r, NULL, 0);
    assert_error(weir_replica_adopt(replica, memory.tensors, memory.n_tensors - 1), WEIR_ERR_LAYOUT,
                 "memory is given for");
    weir_replica_close(replica);
    replica = open_replica(r, NULL, 0);
    memory.tensors[3].shape.dim[0]++;
    assert_error(weir_replica_adopt(replica, memory.tensors, memory.n_tensors), WEIR_ERR_LAYOUT,
                 " here, worker 0 of the engine");
    assert_error(weir_replica_install(replica, 1, NULL), WEIR_ERR_INVALID, "no parameters");
    weir_replica_close(replica);
    weir_inference_memory_close(&memory);
    rig_close(r);
}

static void what_cannot_be_is_refused_and_leaves_nothing(void **state)
{
    (void)state;
    rig *r = rig_open("glm_moe_dsa", "fp8_128x128", NULL);
    static const struct {
        const char *config, *mesh, *device, *conversion, *error;
    } rows[] = { { "/nowhere", NULL, NULL, NULL, "/nowhere" },
                 { NULL, "tp=x", NULL, NULL, "tp=x" },
                 { NULL, NULL, "disk", NULL, "disk" },
                 { NULL, NULL, NULL, "no_such", "no_such" } };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        weir_inference_memory memory = { .block = NULL };
        weir_inference_part part = part_of(r, "tp=1", 0);
        part.config = rows[i].config != NULL ? rows[i].config : part.config;
        part.mesh = rows[i].mesh != NULL ? rows[i].mesh : part.mesh;
        part.conversion = rows[i].conversion != NULL ? rows[i].conversion : part.conversion;
        part.device = rows[i].device;
        assert_int_not_equal(weir_inference_memory_open(&memory, &part), WEIR_OK);
        if (strstr(weir_last_error(), rows[i].error) == NULL)
            fail_msg("%s, wanted %s", weir_last_error(), rows[i].error);
        weir_inference_memory_close(&memory);
    }
    rig_close(r);
}

static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    rig *r = rig_open("glm_moe_dsa", "bf16_cast", NULL);
    weir_inference_part part = part_of(r, "tp=2", 1);
    weir_status status = WEIR_ERR_NO_MEMORY;
    for (uint64_t n = 1; status != WEIR_OK; n++) {
        weir_inference_memory memory = { .block = NULL };
        weir_alloc_fail_at(n);
        status = weir_inference_memory_open(&memory, &part);
        weir_alloc_fail_at(0);
        if (status != WEIR_OK)
            assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        weir_inference_memory_close(&memory);
    }
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_what_a_replica_would_allocate),
        cmocka_unit_test(one_replica_after_the_other_installs_into_it),
        cmocka_unit_test(memory_of_other_parameters_is_not_installed_into),
        cmocka_unit_test(what_cannot_be_is_refused_and_leaves_nothing),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
