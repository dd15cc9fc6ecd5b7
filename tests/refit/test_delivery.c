/* SPDX-License-Identifier: Apache-2.0 */
/* test_delivery.c - which way a rank of a mesh takes, and through which transport; that of GPUs is
 * a stand-in. */
#include "refit/refit_rig.h"
#include "transport/nccl_case.h"

#include "refit/window.h"

static rig *open_rig(void)
{
    rig *r = calloc(1, sizeof(*r));
    assert_non_null(r);
    *r = (rig){ .family = "llama", .conversion = "bf16_cast", .preset = "tiny" };
    rig_write_config(r);
    rig_model_open(r);
    rig_fill(&r->model, 1);
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    assert_ok(weir_directory_open(&options, &r->directory));
    return r;
}

static weir_trainer *open_rank(const rig *r, const char *transport, weir_delivery delivery)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *trainer = NULL;
    options.directory = weir_directory_address(r->directory);
    options.model = "model";
    options.family = r->family;
    options.conversion = r->conversion;
    options.config = r->config_path;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.replica_mesh = "tp=2";
    options.delivery = delivery;
    options.transport = transport;
    options.transport_directory = r->share;
    assert_ok(weir_trainer_open(&options, &trainer));
    return trainer;
}

static weir_status register_at(const rig *r, weir_trainer *trainer)
{
    return weir_trainer_register(trainer, r->model.tensors, r->model.n);
}

/* ---- which way -------------------------------------------------------------------------------*/

static void what_is_pushed_from_host_memory_goes_by_ucx_through_192_mib(void **state)
{
    (void)state;
    rig *r = open_rig();
    weir_trainer *trainer = open_rank(r, NULL, WEIR_DELIVERY_PUSH);
    assert_ok(register_at(r, trainer));
    assert_true(trainer->casts);
    assert_string_equal(weir_cast_transport(trainer->window->cast), "ucx");
    assert_int_equal(weir_window_most_piece(trainer), (96u << 20) / 4 + 1);
    assert_ok(weir_trainer_publish(trainer, 1, NULL));
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        assert_null(trainer->slots[i].region); /* plain memory, of no transport */
        assert_int_equal(trainer->slots[i].plain_bytes, trainer->source.slot_bytes);
    }
    weir_trainer_close(trainer);
    rig_close(r);
}

static void what_is_pushed_from_a_gpu_goes_by_nccl_through_512_mib(void **state)
{
    (void)state;
    rig *r = open_rig();
    r->device = "cuda:0";
    rig_gpu_open(r);
    weir_trainer *trainer = open_rank(r, NULL, WEIR_DELIVERY_PUSH);
    assert_ok(weir_trainer_register(trainer, rig_tensors(r), r->model.n));
    assert_string_equal(weir_cast_transport(trainer->window->cast), "nccl");
    assert_int_equal(weir_window_most_piece(trainer), (256u << 20) / 4 + 1);
    weir_trainer_close(trainer);
    trainer = open_rank(r, "ucx", WEIR_DELIVERY_PUSH);
    assert_error(weir_trainer_register(trainer, r->on_gpu, r->model.n), WEIR_ERR_UNSUPPORTED,
                 "transport ucx does not broadcast GPU memory, where the tensors of trainer rank 0 "
                 "lie");
    weir_trainer_close(trainer);
    rig_close(r);
}

static void without_a_word_host_memory_is_read_from_slots(void **state)
{
    (void)state;
    rig *r = open_rig();
    weir_trainer *trainer = open_rank(r, NULL, WEIR_DELIVERY_DEFAULT);
    assert_ok(register_at(r, trainer));
    assert_false(trainer->casts);
    assert_null(trainer->window);
    assert_null(trainer->work);
    weir_trainer_close(trainer);
    rig_close(r);
}

static void a_transport_that_can_only_broadcast_means_push(void **state)
{
    (void)state;
    rig *r = open_rig();
    weir_trainer *trainer = open_rank(r, "nccl", WEIR_DELIVERY_DEFAULT);
    assert_error(register_at(r, trainer), WEIR_ERR_UNSUPPORTED,
                 "transport nccl does not broadcast host memory, where the tensors of trainer rank "
                 "0 lie");
    weir_trainer_close(trainer);
    rig_close(r);
}

static void nothing_is_read_through_a_transport_that_can_only_broadcast(void **state)
{
    (void)state;
    rig *r = open_rig();
    weir_trainer *trainer = open_rank(r, "nccl", WEIR_DELIVERY_PULL);
    assert_error(register_at(r, trainer), WEIR_ERR_UNSUPPORTED,
                 "transport nccl can only broadcast: replicas cannot read versions through it");
    weir_trainer_close(trainer);
    rig_close(r);
}

static void a_transport_that_cannot_broadcast_is_refused_by_name(void **state)
{
    (void)state;
    static const char *const names[] = { "file", "cuda_ipc" };
    rig *r = open_rig();
    for (size_t i = 0; i < 2; i++) {
        char line[64];
        weir_trainer *trainer = open_rank(r, names[i], WEIR_DELIVERY_PUSH);
        snprintf(line, sizeof(line), "transport %s cannot broadcast", names[i]);
        assert_error(register_at(r, trainer), WEIR_ERR_UNSUPPORTED, line);
        assert_non_null(strstr(weir_last_error(), "name nccl for tensors on a GPU and ucx for"));
        weir_trainer_close(trainer);
    }
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_pushed_from_host_memory_goes_by_ucx_through_192_mib),
        cmocka_unit_test(what_is_pushed_from_a_gpu_goes_by_nccl_through_512_mib),
        cmocka_unit_test(without_a_word_host_memory_is_read_from_slots),
        cmocka_unit_test(a_transport_that_can_only_broadcast_means_push),
        cmocka_unit_test(nothing_is_read_through_a_transport_that_can_only_broadcast),
        cmocka_unit_test(a_transport_that_cannot_broadcast_is_refused_by_name),
    };
    return use_fake_with_cuda() ? cmocka_run_group_tests(tests, NULL, NULL) : 1;
}
