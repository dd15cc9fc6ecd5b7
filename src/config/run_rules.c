/* SPDX-License-Identifier: Apache-2.0 */
/* run_rules.c - what must go together in a run configuration, looked at after all of it is
 * complete, so that it does not matter in which part a value was written.
 *
 * The first rules have numbers and texts that users of other trainers know, in the order in which
 * those report them. Those after them close what such checks leave open.
 */
#include <string.h>
#include <strings.h>

#include "config/run_state.h"

#define SHARED "weight_broadcast."
#define TRAINER "trainer.weight_broadcast."
#define ORCHESTRATOR "orchestrator.weight_broadcast."
#define INFERENCE "inference.weight_broadcast."
#define FLAG "quantize_in_weight_transfer"

static bool is_written(weir_run_config *config, const char *path)
{
    return weir_run_state_of(config, path)->node != NULL;
}

/* The first of two places that is in the file, for a rule about both. */
static const char *written_of(weir_run_config *config, const char *path, const char *other)
{
    return is_written(config, path) ? path : other;
}

/* ---- V1: enough GPUs -------------------------------------------------------------------------*/

static void check_gpus(weir_run_config *config)
{
    const weir_run_settings *settings = &config->settings;
    if (settings->deployment.type != WEIR_RUN_SINGLE_NODE ||
        settings->trainer.broadcast.type != WEIR_RUN_NCCL ||
        settings->deployment.num_train_gpus + settings->deployment.num_infer_gpus >= 2)
        return;
    weir_run_complain(config,
                      written_of(config, "deployment.num_infer_gpus", "deployment.num_train_gpus"),
                      "NCCL weight broadcast requires at least 2 GPUs to build the broadcast "
                      "process group.",
                      "give deployment.num_train_gpus and deployment.num_infer_gpus one or more "
                      "each, or set weight_broadcast.type: filesystem");
}

/* ---- V2: what kernel format needs ------------------------------------------------------------*/

bool weir_run_is_kernel_mode(const weir_run_settings *settings)
{
    return settings->broadcast.quantize_in_weight_transfer ||
           settings->trainer.broadcast.quantize_in_weight_transfer ||
           settings->orchestrator.broadcast.quantize_in_weight_transfer;
}

/* Where the flag is on, and the type that it goes with. */
static const char *flag_of(const weir_run_settings *settings, const char **out_type)
{
    bool shared = settings->broadcast.quantize_in_weight_transfer;
    bool trainer = settings->trainer.broadcast.quantize_in_weight_transfer;
    *out_type = shared ? SHARED "type" : trainer ? TRAINER "type" : ORCHESTRATOR "type";
    return shared ? SHARED FLAG : trainer ? TRAINER FLAG : ORCHESTRATOR FLAG;
}

static void check_flag_type(weir_run_config *config)
{
    const char *type, *flag = flag_of(&config->settings, &type);
    if (!weir_run_is_kernel_mode(&config->settings) ||
        *(weir_run_type *)weir_run_member(config, weir_run_row_of(type)) == WEIR_RUN_NCCL)
        return;
    weir_run_complain(
        config, written_of(config, type, flag),
        "weight_broadcast.quantize_in_weight_transfer requires weight_broadcast.type = 'nccl'.",
        "set weight_broadcast.type: nccl, or take the flag out");
}

static void check_flag_inference(weir_run_config *config)
{
    const char *type, *flag = flag_of(&config->settings, &type);
    if (!weir_run_is_kernel_mode(&config->settings) || config->settings.inference.present)
        return;
    weir_run_complain(
        config, flag, "weight_broadcast.quantize_in_weight_transfer requires an inference config.",
        "add an inference block, which says for which model and tp the weights are converted");
}

static void check_flag_impl(weir_run_config *config)
{
    const char *type, *flag = flag_of(&config->settings, &type);
    if (!weir_run_is_kernel_mode(&config->settings) ||
        config->settings.trainer.impl == WEIR_RUN_IMPL_CUSTOM)
        return;
    weir_run_complain(
        config, written_of(config, "trainer.model.impl", flag),
        "weight_broadcast.quantize_in_weight_transfer requires trainer.model.impl = 'custom'.",
        "set trainer.model.impl: custom, or take the flag out");
}

/* ---- V3, V4: async level ---------------------------------------------------------------------*/

#define ONE_LEVEL "set max_async_level: 1"

static void check_trainer_level(weir_run_config *config)
{
    const weir_run_settings *settings = &config->settings;
    if (settings->trainer.broadcast.type == WEIR_RUN_NCCL && settings->trainer.max_async_level != 1)
        weir_run_complain(config, "trainer.max_async_level",
                          "NCCL weight broadcast only works with async level 1", ONE_LEVEL);
}

static void check_orchestrator_level(weir_run_config *config)
{
    const weir_run_settings *settings = &config->settings;
    if (settings->orchestrator.broadcast.type == WEIR_RUN_NCCL &&
        settings->orchestrator.max_async_level != 1)
        weir_run_complain(config, "orchestrator.max_async_level",
                          "max_async_level must be 1 for NCCL broadcast", ONE_LEVEL);
}

/* ---- V5: adapters ----------------------------------------------------------------------------*/

static void check_lora(weir_run_config *config)
{
    const weir_run_settings *settings = &config->settings;
    if (!settings->trainer.lora.present || (settings->trainer.broadcast.type != WEIR_RUN_NCCL &&
                                            settings->broadcast.type != WEIR_RUN_NCCL))
        return;
    weir_run_complain(config, "trainer.model.lora",
                      "NCCL weight broadcast does not support LoRA yet.",
                      "take trainer.model.lora out, or set weight_broadcast.type: filesystem");
}

/* ---- model names -----------------------------------------------------------------------------*/

static void check_names_given(weir_run_config *config)
{
    const weir_run_settings *settings = &config->settings;
    bool trainer = settings->trainer.model.name != NULL;
    bool orchestrator = settings->orchestrator.model.name != NULL;
    bool inference = !settings->inference.present || settings->inference.model.name != NULL;
    const char *missing = !trainer && !orchestrator ? "model.name"
                          : !trainer                ? "trainer.model.name"
                          : !orchestrator           ? "orchestrator.model.name"
                          : !inference              ? "inference.model.name"
                                                    : NULL;
    if (missing != NULL)
        weir_run_complain(config, missing, "is missing",
                          "set model.name, which all parts take over");
}

static void complain_of_names(weir_run_config *config, const char *whose, const char *path,
                              const char *name, const char *hint)
{
    weir_run_complain(
        config, written_of(config, "orchestrator.model.name", path),
        weir_run_line(config,
                      "%s model name (%s) and orchestrator model name (%s) are not the same. "
                      "Please specify the same model name for both.",
                      whose, name, config->settings.orchestrator.model.name),
        hint);
}

static void check_names(weir_run_config *config)
{
    static const char exempt[] = "Jackmin108/";
    const weir_run_settings *settings = &config->settings;
    const char *asked = settings->orchestrator.model.name;
    const char *served = settings->inference.model.name, *trained = settings->trainer.model.name;
    if (asked == NULL)
        return;
    if (settings->inference.present) {
        if (served != NULL && strcmp(served, asked) != 0)
            complain_of_names(config, "Inference", "inference.model.name", served,
                              "leave orchestrator.model.name out: it is taken from "
                              "inference.model.name");
    } else if (trained != NULL && strncmp(trained, exempt, strlen(exempt)) != 0 &&
               strcmp(trained, asked) != 0) {
        complain_of_names(config, "Trainer", "trainer.model.name", trained,
                          "set model.name alone, or add an inference block with the servers' "
                          "model");
    }
}

/* ---- parts that contradict each other --------------------------------------------------------*/

/* One field of two parts; the second is told. */
static void check_equal(weir_run_config *config, const char *path, const char *other,
                        const char *hint)
{
    const weir_run_row *row = weir_run_row_of(path), *other_row = weir_run_row_of(other);
    if (weir_run_state_of(config, path)->refused || weir_run_state_of(config, other)->refused)
        return;
    const char *text = weir_run_text_of(config, row);
    const char *other_text = weir_run_text_of(config, other_row);
    if (text == other_text || (text != NULL && other_text != NULL && strcmp(text, other_text) == 0))
        return;
    const char *at = written_of(config, other, path);
    const char *its = at == other ? other_text : text, *theirs = at == other ? text : other_text;
    weir_run_complain(config, at,
                      weir_run_line(config, "is %s, but %s is %s", its != NULL ? its : "not set",
                                    at == other ? path : other,
                                    theirs != NULL ? theirs : "not set"),
                      hint);
}

/* What a part writes itself must be what the shared block says. */
static void check_parts_with_shared(weir_run_config *config)
{
    static const char *const pairs[][2] = {
        { SHARED "type", TRAINER "type" },
        { SHARED "type", ORCHESTRATOR "type" },
        { SHARED "type", INFERENCE "type" },
        { SHARED "transport", TRAINER "transport" },
        { SHARED "transport", INFERENCE "transport" },
        { SHARED "port", TRAINER "port" },
        { SHARED "port", ORCHESTRATOR "port" },
        { SHARED "timeout", TRAINER "timeout" },
        { SHARED "timeout", ORCHESTRATOR "timeout" },
        { SHARED FLAG, TRAINER FLAG },
        { SHARED FLAG, ORCHESTRATOR FLAG },
        { SHARED "marker_dir", TRAINER "marker_dir" },
        { SHARED "marker_dir", ORCHESTRATOR "marker_dir" },
    };
    if (!config->settings.broadcast.present)
        return;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
        if (weir_run_state_of(config, pairs[i][1])->written)
            check_equal(config, pairs[i][0], pairs[i][1],
                        "write it in weight_broadcast alone, from where all parts take it");
}

/* Without a shared block, each two parts: of three, a chain of comparisons would let one pass. */
static void check_parts_with_each_other(weir_run_config *config)
{
    static const char *const pairs[][2] = {
        { TRAINER "type", ORCHESTRATOR "type" },
        { TRAINER "type", INFERENCE "type" },
        { ORCHESTRATOR "type", INFERENCE "type" },
        { TRAINER "transport", INFERENCE "transport" },
        { TRAINER "port", ORCHESTRATOR "port" },
        { TRAINER FLAG, ORCHESTRATOR FLAG },
        { TRAINER "marker_dir", ORCHESTRATOR "marker_dir" },
    };
    if (config->settings.broadcast.present)
        return;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
        if (config->settings.inference.present || strncmp(pairs[i][1], INFERENCE, 10) != 0)
            check_equal(config, pairs[i][0], pairs[i][1],
                        "write it once, in a weight_broadcast block of its own: all parts take it "
                        "from there");
}

/* ---- sizes -----------------------------------------------------------------------------------*/

static uint64_t n_workers_of(const weir_run_settings *settings)
{
    return (uint64_t)settings->orchestrator.servers.n_items * settings->inference.tp *
           settings->inference.dp;
}

/* "2 servers of tp 4, dp 2". */
static const char *servers_line(weir_run_config *config)
{
    const weir_run_settings *settings = &config->settings;
    size_t n_servers = settings->orchestrator.servers.n_items;
    const char *line =
        weir_run_line(config, "%zu server%s of tp %u, dp %u", n_servers, n_servers > 1 ? "s" : "",
                      settings->inference.tp, settings->inference.dp);
    return line != NULL ? line : "";
}

static void check_world_size(weir_run_config *config)
{
    static const char path[] = TRAINER "inference_world_size";
    const weir_run_settings *settings = &config->settings;
    uint64_t n_workers = n_workers_of(settings);
    uint32_t size = settings->trainer.broadcast.inference_world_size;
    if (settings->trainer.broadcast.type != WEIR_RUN_NCCL || !settings->inference.present ||
        size == n_workers)
        return;
    const char *cause =
        is_written(config, path) ? path
        : settings->deployment.type == WEIR_RUN_MULTI_NODE
            ? written_of(config, "deployment.num_infer_nodes", "deployment.gpus_per_node")
            : "inference.tp";
    weir_run_complain(config, cause,
                      weir_run_line(config,
                                    "%u inference workers are waited for, but those of %s are %llu",
                                    size, servers_line(config), (unsigned long long)n_workers),
                      "make orchestrator.servers, inference.tp and inference.dp fit the machines");
}

static void check_infer_gpus(weir_run_config *config)
{
    static const char path[] = "deployment.num_infer_gpus";
    const weir_run_settings *settings = &config->settings;
    uint64_t n_workers = n_workers_of(settings);
    if (settings->trainer.broadcast.type != WEIR_RUN_NCCL || !settings->inference.present ||
        settings->trainer.broadcast.transport == WEIR_RUN_BY_UCX || !is_written(config, path) ||
        settings->deployment.type != WEIR_RUN_SINGLE_NODE ||
        settings->deployment.num_infer_gpus >= n_workers)
        return;
    weir_run_complain(
        config, path,
        weir_run_line(config, "is %u, but workers of %s are %llu, and each has a GPU of its own",
                      settings->deployment.num_infer_gpus, servers_line(config),
                      (unsigned long long)n_workers),
        "raise it, or lower inference.tp, inference.dp or the number of servers");
}

static void check_expert_ranks(weir_run_config *config)
{
    const weir_run_settings *settings = &config->settings;
    uint64_t n_workers = (uint64_t)settings->inference.tp * settings->inference.dp;
    if (!settings->inference.present || n_workers % settings->inference.ep == 0)
        return;
    weir_run_complain(config, "inference.ep",
                      weir_run_line(config, "%u does not divide the %llu workers of tp %u, dp %u",
                                    settings->inference.ep, (unsigned long long)n_workers,
                                    settings->inference.tp, settings->inference.dp),
                      "each expert rank is as many workers as the others");
}

/* ---- where the trainer is --------------------------------------------------------------------*/

/* Of "host", and of "http://host:port" from behind the slashes. */
static bool is_this_machine(const char *host)
{
    static const char *const names[] = { "localhost", "::1", "[::1]" };
    if (strncmp(host, "127.", 4) == 0)
        return true;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        size_t n = strlen(names[i]);
        if (strncasecmp(host, names[i], n) == 0 && (host[n] == '\0' || host[n] == ':'))
            return true;
    }
    return false;
}

static const char *find_remote_server(const weir_run_settings *settings)
{
    const weir_run_texts *servers = &settings->orchestrator.servers;
    for (size_t i = 0; i < servers->n_items; i++) {
        const char *slashes = strstr(servers->items[i], "://");
        if (!is_this_machine(slashes != NULL ? slashes + 3 : servers->items[i]))
            return servers->items[i];
    }
    return NULL;
}

/* Who is told so looks for the trainer on his own machine. A file that names neither servers nor an
 * inference block says nothing of others. */
static void check_trainer_host(weir_run_config *config)
{
    const weir_run_settings *settings = &config->settings;
    const char *host = settings->orchestrator.broadcast.host;
    if (settings->trainer.broadcast.type != WEIR_RUN_NCCL || host == NULL || !is_this_machine(host))
        return;
    const char *server = find_remote_server(settings);
    if (server == NULL &&
        (settings->deployment.type != WEIR_RUN_MULTI_NODE || !settings->inference.present))
        return;
    const char *who = server != NULL ? weir_run_line(config, "server %s looks", server)
                                     : "servers and trainer ranks on other machines look";
    weir_run_complain(config, ORCHESTRATOR "host",
                      weir_run_line(config, "is %s, where %s for the trainer", host, who),
                      "write the address of the machine of trainer rank 0, or start weir broadcast "
                      "and weir orchestrate with --trainer-host");
}

/* ---- the table -------------------------------------------------------------------------------*/

typedef struct run_rule {
    void (*check)(weir_run_config *config);
    const char *reads[6]; /* where one of these was refused already, nothing more is said of it */
} run_rule;

static const run_rule rules[] = {
    { check_gpus,
      { "deployment.type", "deployment.num_train_gpus", "deployment.num_infer_gpus",
        TRAINER "type" } },
    { check_flag_type,
      { SHARED FLAG, TRAINER FLAG, ORCHESTRATOR FLAG, SHARED "type", TRAINER "type",
        ORCHESTRATOR "type" } },
    { check_flag_inference, { SHARED FLAG, TRAINER FLAG, ORCHESTRATOR FLAG, "inference" } },
    { check_flag_impl, { SHARED FLAG, TRAINER FLAG, ORCHESTRATOR FLAG, "trainer.model.impl" } },
    { check_trainer_level, { TRAINER "type", "trainer.max_async_level" } },
    { check_orchestrator_level, { ORCHESTRATOR "type", "orchestrator.max_async_level" } },
    { check_lora, { SHARED "type", TRAINER "type", "trainer.model.lora" } },
    { check_names_given,
      { "trainer.model.name", "orchestrator.model.name", "inference.model.name",
        "inference.model.name" } },
    { check_names,
      { "trainer.model.name", "orchestrator.model.name", "inference.model.name", "inference" } },
    { check_parts_with_shared, { "weight_broadcast" } },
    { check_parts_with_each_other, { "weight_broadcast", "inference" } },
    { check_world_size,
      { "deployment.gpus_per_node", "deployment.num_infer_nodes", "orchestrator.servers",
        "inference.tp", "inference.dp", TRAINER "inference_world_size" } },
    { check_infer_gpus,
      { "deployment.type", "deployment.num_infer_gpus", "orchestrator.servers", "inference.tp",
        "inference.dp", TRAINER "transport" } },
    { check_trainer_host,
      { "deployment.type", "orchestrator.servers", ORCHESTRATOR "host", TRAINER "type" } },
    { check_expert_ranks, { "inference.tp", "inference.dp", "inference.ep" } },
};

static bool is_judged_already(weir_run_config *config, const run_rule *rule)
{
    for (size_t i = 0; i < sizeof(rule->reads) / sizeof(rule->reads[0]); i++)
        if (rule->reads[i] != NULL && weir_run_state_of(config, rule->reads[i])->refused)
            return true;
    return false;
}

void weir_run_check_rules(weir_run_config *config)
{
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]) && !config->out_of_memory; i++)
        if (!is_judged_already(config, &rules[i]))
            rules[i].check(config);
}
