/* SPDX-License-Identifier: Apache-2.0 */
/* What parts get that they do not write themselves. */
#include "config/config_case.h"

#define NCCL "weight_broadcast: {type: nccl, port: 7, timeout: 9, marker_dir: /r}\n"

static void parts_take_the_shared_broadcast(void **state)
{
    (void)state;
    weir_run_config *config;
    const weir_run_settings *settings =
        settings_of("model: {name: m}\ninference: {}\ntrainer: {model: {impl: custom}}\n"
                    "weight_broadcast: {type: nccl, transport: ucx, port: 7, timeout: 9, "
                    "quantize_in_weight_transfer: true, marker_dir: /r}\n",
                    &config);
    const weir_run_broadcast *parts[] = { &settings->trainer.broadcast,
                                          &settings->orchestrator.broadcast };
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(parts[i]->type, WEIR_RUN_NCCL);
        assert_int_equal(parts[i]->port, 7);
        assert_int_equal(parts[i]->timeout_s, 9);
        assert_true(parts[i]->quantize_in_weight_transfer);
        assert_string_equal(parts[i]->marker_dir, "/r");
        assert_string_equal(parts[i]->host, "localhost");
    }
    assert_int_equal(settings->trainer.broadcast.transport, WEIR_RUN_BY_UCX);
    assert_int_equal(settings->inference.broadcast.type, WEIR_RUN_NCCL);
    assert_int_equal(settings->inference.broadcast.transport, WEIR_RUN_BY_UCX);
    weir_run_config_close(config);
}

static void defaults_are_those_of_the_table(void **state)
{
    (void)state;
    weir_run_config *config;
    const weir_run_settings *settings = settings_of("model: {name: m}\n", &config);
    assert_false(settings->broadcast.present);
    assert_false(settings->inference.present);
    assert_false(settings->trainer.lora.present);
    assert_string_equal(settings->run, "default");
    assert_int_equal(settings->max_async_level, 1);
    assert_int_equal(settings->trainer.broadcast.type, WEIR_RUN_FILESYSTEM);
    assert_int_equal(settings->trainer.broadcast.port, 29501);
    assert_int_equal(settings->trainer.broadcast.timeout_s, 1200);
    assert_int_equal(settings->trainer.broadcast.inference_world_size, 1);
    assert_int_equal(settings->trainer.broadcast.window_bytes, 0);
    assert_false(settings->trainer.broadcast.quantize_in_weight_transfer);
    assert_null(settings->trainer.broadcast.marker_dir);
    assert_int_equal(settings->trainer.impl, WEIR_RUN_IMPL_HF);
    assert_int_equal(settings->orchestrator.servers.n_items, 1);
    assert_string_equal(settings->orchestrator.servers.items[0], "http://localhost:8000");
    assert_int_equal(settings->orchestrator.server_policy, WEIR_RUN_ABORT);
    weir_run_config_close(config);
}

static void the_world_is_all_workers_of_all_servers(void **state)
{
    (void)state;
    weir_run_config *config;
    const weir_run_settings *settings =
        settings_of("model: {name: m}\n" NCCL "inference: {tp: 4, dp: 2}\n"
                    "orchestrator: {servers: [a:1, b:1], weight_broadcast: {host: c}}\n",
                    &config);
    assert_int_equal(settings->trainer.broadcast.inference_world_size, 16);
    weir_run_config_close(config);
    settings = settings_of("model: {name: m}\n" NCCL "inference: {tp: 4, dp: 2}\n", &config);
    assert_int_equal(settings->trainer.broadcast.inference_world_size, 8);
    weir_run_config_close(config);
    settings = settings_of("model: {name: m}\n" NCCL, &config);
    assert_int_equal(settings->trainer.broadcast.inference_world_size, 1);
    weir_run_config_close(config);
}

static void many_machines_are_listened_to_everywhere(void **state)
{
    (void)state;
    weir_run_config *config;
    const weir_run_settings *settings =
        settings_of("model: {name: m}\n" NCCL "inference: {tp: 8}\n"
                    "deployment: {type: multi_node, gpus_per_node: 8, num_infer_nodes: 2}\n"
                    "orchestrator: {servers: [a:1, b:1], weight_broadcast: {host: c}}\n",
                    &config);
    assert_string_equal(settings->trainer.broadcast.host, "0.0.0.0");
    assert_string_equal(settings->orchestrator.broadcast.host, "c");
    assert_int_equal(settings->trainer.broadcast.inference_world_size, 16);
    weir_run_config_close(config);
    settings = settings_of("model: {name: m}\ndeployment: {type: multi_node}\n"
                           "trainer: {weight_broadcast: {host: h}}\n",
                           &config);
    assert_string_equal(settings->trainer.broadcast.host, "h");
    weir_run_config_close(config);
}

static void names(const char *text, const char *trainer, const char *inference,
                  const char *orchestrator)
{
    weir_run_config *config;
    const weir_run_settings *settings = settings_of(text, &config);
    assert_string_equal(settings->trainer.model.name, trainer);
    if (inference != NULL)
        assert_string_equal(settings->inference.model.name, inference);
    assert_string_equal(settings->orchestrator.model.name, orchestrator);
    weir_run_config_close(config);
}

static void names_go_from_the_shared_model_to_all(void **state)
{
    (void)state;
    names("model: {name: m}\n", "m", NULL, "m");
    names("model: {name: m}\ninference: {}\n", "m", "m", "m");
    names("model: {name: m}\ninference: {model: {name: q}}\n", "m", "q", "q");
    names("model: {name: m}\ntrainer: {model: {name: t}}\ninference: {}\n", "t", "m", "m");
    names("trainer: {model: {name: t}}\ninference: {model: {name: q}}\n", "t", "q", "q");
}

static void async_levels_go_to_both(void **state)
{
    (void)state;
    weir_run_config *config;
    const weir_run_settings *settings = settings_of(
        "model: {name: m}\nmax_async_level: 3\norchestrator: {max_async_level: 2}\n", &config);
    assert_int_equal(settings->trainer.max_async_level, 3);
    assert_int_equal(settings->orchestrator.max_async_level, 2);
    weir_run_config_close(config);
}

static void the_trainers_path_is_not_the_servers(void **state)
{
    (void)state;
    weir_run_config *config;
    const weir_run_settings *settings =
        settings_of("model: {name: m, path: /bf16}\ninference: {}\n", &config);
    assert_string_equal(settings->trainer.model.path, "/bf16");
    assert_null(settings->inference.model.path);
    weir_run_config_close(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_take_the_shared_broadcast),
        cmocka_unit_test(defaults_are_those_of_the_table),
        cmocka_unit_test(the_world_is_all_workers_of_all_servers),
        cmocka_unit_test(many_machines_are_listened_to_everywhere),
        cmocka_unit_test(names_go_from_the_shared_model_to_all),
        cmocka_unit_test(async_levels_go_to_both),
        cmocka_unit_test(the_trainers_path_is_not_the_servers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
