/* SPDX-License-Identifier: Apache-2.0 */
/* The rules of a run configuration: their texts, their order, where they point, and that it does
 * not matter in which part a value was written. */
#include "config/config_case.h"

#define M "model: {name: m}\n"
#define CUSTOM "trainer: {model: {impl: custom}}\n"
#define ON "weight_broadcast: {type: nccl, quantize_in_weight_transfer: true}\n"

#define V1 "NCCL weight broadcast requires at least 2 GPUs to build the broadcast process group."
#define V2A "weight_broadcast.quantize_in_weight_transfer requires weight_broadcast.type = 'nccl'."
#define V2B "weight_broadcast.quantize_in_weight_transfer requires an inference config."
#define V2C "weight_broadcast.quantize_in_weight_transfer requires trainer.model.impl = 'custom'."
#define V3 "NCCL weight broadcast only works with async level 1"
#define V4 "max_async_level must be 1 for NCCL broadcast"
#define V5 "NCCL weight broadcast does not support LoRA yet."

/* ---- the checks that users of other trainers know --------------------------------------------*/

static void e1_the_flag_with_files_is_refused(void **state)
{
    (void)state;
    EXPECT(M CUSTOM "inference: {}\n"
                    "weight_broadcast: {type: filesystem, quantize_in_weight_transfer: true}\n",
           "4:26 weight_broadcast.type: " V2A);
    EXPECT(M CUSTOM "inference: {}\nweight_broadcast: {quantize_in_weight_transfer: true}\n",
           "4:49 weight_broadcast.quantize_in_weight_transfer: " V2A);
}

static void e2_the_flag_without_inference_is_refused(void **state)
{
    (void)state;
    EXPECT(M CUSTOM ON, "3:61 weight_broadcast.quantize_in_weight_transfer: " V2B);
}

static void e3_the_flag_with_another_impl_is_refused(void **state)
{
    (void)state;
    EXPECT(M ON "inference: {}\ntrainer: {model: {impl: hf}}\n", "4:25 trainer.model.impl: " V2C);
    EXPECT(M ON "inference: {}\n", "2:61 weight_broadcast.quantize_in_weight_transfer: " V2C);
}

static void e4_an_async_level_of_two_is_refused_for_both(void **state)
{
    (void)state;
    EXPECT(M "max_async_level: 2\nweight_broadcast: {type: nccl}\n", "2:18 max_async_level: " V3,
           "2:18 max_async_level: " V4);
    EXPECT(M "weight_broadcast: {type: nccl}\ntrainer: {max_async_level: 2}\n",
           "3:28 trainer.max_async_level: " V3);
    EXPECT(M "weight_broadcast: {type: nccl}\norchestrator: {max_async_level: 0}\n",
           "3:33 orchestrator.max_async_level: " V4);
    expect_none(M "max_async_level: 2\n");
}

static void e5_one_gpu_is_too_few(void **state)
{
    (void)state;
    EXPECT(M "weight_broadcast: {type: nccl}\ndeployment: {num_train_gpus: 1, num_infer_gpus: 0}\n",
           "3:49 deployment.num_infer_gpus: " V1);
    EXPECT(M "weight_broadcast: {type: nccl}\ndeployment: {num_train_gpus: 0}\n",
           "3:30 deployment.num_train_gpus: " V1);
    expect_none(M "deployment: {num_infer_gpus: 0}\n");
    expect_none(M "weight_broadcast: {type: nccl}\n"
                  "deployment: {type: multi_node, num_infer_gpus: 0}\n");
}

static void e6_a_trainer_in_bf16_and_servers_in_fp8_are_accepted(void **state)
{
    (void)state;
    expect_none(M CUSTOM ON "inference: {model: {name: m-FP8}}\n"
                            "orchestrator: {model: {name: m-FP8}}\n");
    expect_none(M CUSTOM ON "inference: {model: {name: m-FP8}}\n");
}

static void e7_an_orchestrator_of_another_model_is_refused(void **state)
{
    (void)state;
    EXPECT(M "inference: {model: {name: X}}\norchestrator: {model: {name: Y}}\n",
           "3:30 orchestrator.model.name: Inference model name (X) and orchestrator model name (Y) "
           "are not the same. Please specify the same model name for both.");
    EXPECT(M "trainer: {model: {name: X}}\n",
           "1:15 model.name: Trainer model name (X) and orchestrator model name (m) are not the "
           "same. Please specify the same model name for both.");
    expect_none(M "trainer: {model: {name: Jackmin108/X}}\n");
    expect_none(M "inference: {}\ntrainer: {model: {name: X}}\n");
}

static void adapters_are_refused_once(void **state)
{
    (void)state;
    EXPECT(M "weight_broadcast: {type: nccl}\ntrainer: {model: {lora: {rank: 8}}}\n",
           "3:25 trainer.model.lora: " V5);
    EXPECT(M "trainer: {model: {lora: {}}, weight_broadcast: {type: nccl}}\n"
             "orchestrator: {weight_broadcast: {type: nccl}}\n",
           "2:25 trainer.model.lora: " V5);
    expect_none(M "trainer: {model: {lora: {}}}\n");
}

static void rules_report_in_their_order(void **state)
{
    (void)state;
    EXPECT(M "trainer: {model: {lora: {}, impl: auto}}\nmax_async_level: 4\n" ON
             "deployment: {num_infer_gpus: 0}\n",
           "5:30 deployment.num_infer_gpus: " V1,
           "4:61 weight_broadcast.quantize_in_weight_transfer: " V2B,
           "2:35 trainer.model.impl: " V2C, "3:18 max_async_level: " V3,
           "3:18 max_async_level: " V4, "2:25 trainer.model.lora: " V5);
    EXPECT(M "weight_broadcast: {quantize_in_weight_transfer: true}\n",
           "2:49 weight_broadcast.quantize_in_weight_transfer: " V2A,
           "2:49 weight_broadcast.quantize_in_weight_transfer: " V2B,
           "2:49 weight_broadcast.quantize_in_weight_transfer: " V2C);
}

/* ---- what such checks leave open -------------------------------------------------------------*/

static void gpus_are_counted_after_the_shared_type_has_come_to_the_trainer(void **state)
{
    (void)state;
    EXPECT(M "weight_broadcast: {type: nccl}\ndeployment: {num_infer_gpus: 0}\ntrainer: {}\n",
           "3:30 deployment.num_infer_gpus: " V1);
}

static void a_flag_in_the_trainer_alone_is_found(void **state)
{
    (void)state;
    EXPECT(M "trainer: {weight_broadcast: {quantize_in_weight_transfer: true}}\n",
           "2:59 trainer.weight_broadcast.quantize_in_weight_transfer: " V2A,
           "2:59 trainer.weight_broadcast.quantize_in_weight_transfer: " V2B,
           "2:59 trainer.weight_broadcast.quantize_in_weight_transfer: " V2C,
           "2:59 trainer.weight_broadcast.quantize_in_weight_transfer: is true, but "
           "orchestrator.weight_broadcast.quantize_in_weight_transfer is false");
    EXPECT(M "weight_broadcast: {type: nccl}\ninference: {}\n"
             "trainer: {model: {impl: custom}, weight_broadcast: {quantize_in_weight_transfer: "
             "true}}\n",
           "4:82 trainer.weight_broadcast.quantize_in_weight_transfer: is true, but "
           "weight_broadcast.quantize_in_weight_transfer is false");
}

static void a_flag_in_the_orchestrator_alone_is_found(void **state)
{
    (void)state;
    EXPECT(M CUSTOM "weight_broadcast: {type: nccl}\ninference: {}\n"
                    "orchestrator: {weight_broadcast: {quantize_in_weight_transfer: true}}\n",
           "5:64 orchestrator.weight_broadcast.quantize_in_weight_transfer: is true, but "
           "weight_broadcast.quantize_in_weight_transfer is false");
    EXPECT(M "orchestrator: {weight_broadcast: {quantize_in_weight_transfer: true}}\n",
           "2:64 orchestrator.weight_broadcast.quantize_in_weight_transfer: " V2A,
           "2:64 orchestrator.weight_broadcast.quantize_in_weight_transfer: " V2B,
           "2:64 orchestrator.weight_broadcast.quantize_in_weight_transfer: " V2C,
           "2:64 orchestrator.weight_broadcast.quantize_in_weight_transfer: is true, but "
           "trainer.weight_broadcast.quantize_in_weight_transfer is false");
}

static void a_part_that_turns_the_shared_flag_off_is_found(void **state)
{
    (void)state;
    EXPECT(M CUSTOM ON "inference: {}\n"
                       "orchestrator: {weight_broadcast: {quantize_in_weight_transfer: false}}\n",
           "5:64 orchestrator.weight_broadcast.quantize_in_weight_transfer: is false, but "
           "weight_broadcast.quantize_in_weight_transfer is true");
}

static void a_flag_in_both_parts_without_a_shared_block_is_accepted(void **state)
{
    (void)state;
    expect_none(M "inference: {weight_broadcast: {type: nccl}}\n"
                  "trainer: {model: {impl: custom}, weight_broadcast: {type: nccl, "
                  "quantize_in_weight_transfer: true}}\n"
                  "orchestrator: {weight_broadcast: {type: nccl, "
                  "quantize_in_weight_transfer: true}}\n");
}

#define TYPED(trainer, orchestrator, inference)                      \
    M "trainer: {weight_broadcast: {type: " trainer "}}\n"           \
      "orchestrator: {weight_broadcast: {type: " orchestrator "}}\n" \
      "inference: {weight_broadcast: {type: " inference "}}\n"

static void each_two_types_are_compared(void **state)
{
    (void)state;
    expect_none(TYPED("nccl", "nccl", "nccl"));
    /* a != b != c holds for none of these three. */
    EXPECT(TYPED("nccl", "nccl", "filesystem"),
           "4:38 inference.weight_broadcast.type: is filesystem, but trainer.weight_broadcast.type "
           "is nccl",
           "4:38 inference.weight_broadcast.type: is filesystem, but "
           "orchestrator.weight_broadcast.type is nccl");
    EXPECT(TYPED("filesystem", "nccl", "nccl"),
           "3:41 orchestrator.weight_broadcast.type: is nccl, but trainer.weight_broadcast.type is "
           "filesystem",
           "4:38 inference.weight_broadcast.type: is nccl, but trainer.weight_broadcast.type is "
           "filesystem");
    EXPECT(TYPED("nccl", "filesystem", "nccl"),
           "3:41 orchestrator.weight_broadcast.type: is filesystem, but "
           "trainer.weight_broadcast.type is nccl",
           "4:38 inference.weight_broadcast.type: is nccl, but orchestrator.weight_broadcast.type "
           "is filesystem");
}

static void parts_keep_to_the_shared_block(void **state)
{
    (void)state;
    EXPECT(
        M "weight_broadcast: {type: nccl, marker_dir: /a}\n"
          "trainer: {weight_broadcast: {port: 1, timeout: 2, marker_dir: /b}}\n"
          "orchestrator: {weight_broadcast: {port: 29501, timeout: 3}}\n",
        "3:36 trainer.weight_broadcast.port: is 1, but weight_broadcast.port is 29501",
        "3:48 trainer.weight_broadcast.timeout: is 2, but weight_broadcast.timeout is 1200",
        "4:57 orchestrator.weight_broadcast.timeout: is 3, but weight_broadcast.timeout is 1200",
        "3:63 trainer.weight_broadcast.marker_dir: is /b, but weight_broadcast.marker_dir is /a");
    EXPECT(M "trainer: {weight_broadcast: {marker_dir: /b}}\n",
           "2:42 trainer.weight_broadcast.marker_dir: is /b, but "
           "orchestrator.weight_broadcast.marker_dir is not set");
}

static void a_world_of_another_size_is_refused(void **state)
{
    (void)state;
    EXPECT(M "weight_broadcast: {type: nccl}\ninference: {tp: 4, dp: 2}\n"
             "trainer: {weight_broadcast: {inference_world_size: 8}}\n"
             "orchestrator: {servers: ['localhost:1', 'localhost:2']}\n",
           "4:52 trainer.weight_broadcast.inference_world_size: 8 inference workers are waited "
           "for, but those of 2 servers of tp 4, dp 2 are 16");
    EXPECT(M "weight_broadcast: {type: nccl}\ninference: {tp: 4}\ndeployment: {type: multi_node}\n"
             "orchestrator: {weight_broadcast: {host: h}}\n",
           "4:1 deployment.gpus_per_node: 8 inference workers are waited for, but those of 1 "
           "server of tp 4, dp 1 are 4");
}

static void a_trainer_that_others_look_for_at_home_is_refused(void **state)
{
    (void)state;
#define NODES M "weight_broadcast: {type: nccl}\ninference: {tp: 8}\n"
#define MANY "deployment: {type: multi_node}\n"
#define AT_HOME \
    ": is localhost, where servers and trainer ranks on other machines look for the trainer"
    EXPECT(NODES MANY, "1:1 orchestrator.weight_broadcast.host" AT_HOME);
    EXPECT(NODES MANY "orchestrator: {weight_broadcast: {host: localhost}}\n",
           "5:41 orchestrator.weight_broadcast.host" AT_HOME);
    EXPECT(NODES "orchestrator: {servers: ['http://[::1]:1', 'https://node1:1']}\n"
                 "deployment: {num_infer_gpus: 16}\n",
           "4:1 orchestrator.weight_broadcast.host: is localhost, where server https://node1:1 "
           "looks for the trainer");
    expect_none(NODES MANY "orchestrator: {weight_broadcast: {host: node0}}\n");
    expect_none(NODES "orchestrator: {servers: ['localhost:1']}\n"
                      "deployment: {num_infer_gpus: 8}\n");
}

static void fewer_gpus_than_workers_are_refused_but_of_ucx(void **state)
{
    (void)state;
#define FEW(transport)                                                                 \
    M "weight_broadcast: {type: nccl, transport: " transport "}\ninference: {tp: 4}\n" \
      "deployment: {num_infer_gpus: 2}\n"
    EXPECT(FEW("nccl"),
           "4:30 deployment.num_infer_gpus: is 2, but workers of 1 server of tp 4, dp 1 "
           "are 4, and each has a GPU of its own");
    expect_none(FEW("ucx"));
}

static void expert_ranks_are_of_as_many_workers_each(void **state)
{
    (void)state;
    EXPECT(M "inference: {tp: 2, dp: 3, ep: 4}\n",
           "2:31 inference.ep: 4 does not divide the 6 workers of tp 2, dp 3");
    expect_none(M "inference: {tp: 2, dp: 3, ep: 6}\n");
}

/* Each broadcast brings its own workers their part. */
static void any_transport_carries_parts_of_workers(void **state)
{
    (void)state;
#define CARRIED(transport)                                          \
    M CUSTOM "weight_broadcast: {type: nccl, transport: " transport \
             ", quantize_in_weight_transfer: true}\ninference: {tp: 4}\n"
    expect_none(CARRIED("nccl"));
    expect_none(CARRIED("cuda_ipc"));
    expect_none(CARRIED("auto"));
}

static void a_model_has_a_name(void **state)
{
    (void)state;
    EXPECT("run: r\n", "1:1 model.name: is missing");
    EXPECT("trainer:\n  model: {name: t}\ninference: {}\n",
           "1:1 orchestrator.model.name: is missing");
    EXPECT("orchestrator:\n  model: {name: t}\n", "1:1 trainer.model.name: is missing");
    expect_none("trainer: {model: {name: t}}\norchestrator: {model: {name: t}}\n");
    EXPECT("inference: {}\ntrainer: {model: {name: t}}\norchestrator: {model: {name: t}}\n",
           "1:1 inference.model.name: is missing");
}

static void a_value_that_was_refused_is_not_judged_again(void **state)
{
    (void)state;
    EXPECT(M CUSTOM "inference: {}\n"
                    "weight_broadcast: {type: ncll, quantize_in_weight_transfer: true}\n",
           "4:26 weight_broadcast.type: 'ncll' is none of its values");
    EXPECT(M CUSTOM ON "inference:\n", "4:1 inference: has no value");
    EXPECT(M "max_async_level: two\nweight_broadcast: {type: nccl}\n",
           "2:18 max_async_level: expected a whole number, got two");
    EXPECT(M "weight_broadcast: {type: nccl, transport: tcp}\ninference: {tp: 4}\n"
             "deployment: {num_infer_gpus: 2}\n",
           "2:43 weight_broadcast.transport: 'tcp' is none of its values");
    EXPECT("model: {name: 7}\n",
           "1:15 model.name: expected a text, but YAML reads 7 as a value of its own");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(e1_the_flag_with_files_is_refused),
        cmocka_unit_test(e2_the_flag_without_inference_is_refused),
        cmocka_unit_test(e3_the_flag_with_another_impl_is_refused),
        cmocka_unit_test(e4_an_async_level_of_two_is_refused_for_both),
        cmocka_unit_test(e5_one_gpu_is_too_few),
        cmocka_unit_test(e6_a_trainer_in_bf16_and_servers_in_fp8_are_accepted),
        cmocka_unit_test(e7_an_orchestrator_of_another_model_is_refused),
        cmocka_unit_test(adapters_are_refused_once),
        cmocka_unit_test(rules_report_in_their_order),
        cmocka_unit_test(gpus_are_counted_after_the_shared_type_has_come_to_the_trainer),
        cmocka_unit_test(a_flag_in_the_trainer_alone_is_found),
        cmocka_unit_test(a_flag_in_the_orchestrator_alone_is_found),
        cmocka_unit_test(a_part_that_turns_the_shared_flag_off_is_found),
        cmocka_unit_test(a_flag_in_both_parts_without_a_shared_block_is_accepted),
        cmocka_unit_test(each_two_types_are_compared),
        cmocka_unit_test(parts_keep_to_the_shared_block),
        cmocka_unit_test(a_world_of_another_size_is_refused),
        cmocka_unit_test(a_trainer_that_others_look_for_at_home_is_refused),
        cmocka_unit_test(fewer_gpus_than_workers_are_refused_but_of_ucx),
        cmocka_unit_test(expert_ranks_are_of_as_many_workers_each),
        cmocka_unit_test(any_transport_carries_parts_of_workers),
        cmocka_unit_test(a_model_has_a_name),
        cmocka_unit_test(a_value_that_was_refused_is_not_judged_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
