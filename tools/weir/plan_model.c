/* SPDX-License-Identifier: Apache-2.0 */
/* plan_model.c - config.json or a preset -> the tensors that such a checkpoint has -> the plan of a
 * fleet. No weights are read: names, dtypes and shapes follow from the config.
 */
#include "plan_model.h"

static weir_status open_config(weir_plan_model *model, const weir_plan_request *request)
{
    char *text;
    if (request->config != NULL)
        return weir_config_open(request->config, &model->config);
    weir_status status = weir_family_preset(request->family, request->preset, &text);
    if (status != WEIR_OK)
        return status;
    status = weir_config_parse(text, request->preset, &model->config);
    weir_string_free(text);
    return status;
}

static weir_status open_mapping(weir_plan_model *model, const weir_plan_request *request)
{
    weir_mapping_options mapping = WEIR_MAPPING_OPTIONS_INIT;
    const char *family;
    weir_status status = open_config(model, request);
    if (status == WEIR_OK)
        status = weir_family_of_config(model->config, &family);
    if (status == WEIR_OK)
        status = weir_family_sources(family, model->config, request->naming, &model->sources,
                                     &model->n_sources);
    if (status != WEIR_OK)
        return status;
    mapping.family = family;
    mapping.layout = request->layout;
    mapping.conversion = request->conversion;
    mapping.config = model->config;
    return weir_mapping_open(&mapping, model->sources, model->n_sources, &model->mapping);
}

static weir_status open_fleet(weir_plan_model *model)
{
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    double begun = weir_cli_now();
    weir_status status = weir_fleet_tensors_of(model->mapping, &model->tensors, &model->n_tensors);
    args.tensors = model->tensors;
    args.n_tensors = model->n_tensors;
    args.trainer = &model->trainer;
    args.replica = &model->replica;
    if (status == WEIR_OK)
        status = weir_fleet_open(&args, &model->fleet);
    if (status != WEIR_OK)
        return status;
    model->seconds = weir_cli_now() - begun;
    model->n_ranks = weir_fleet_ranks(model->fleet);
    model->n_workers = weir_fleet_workers(model->fleet);
    model->n_parts = model->n_workers / (model->replica.replicas > 0 ? model->replica.replicas : 1);
    return WEIR_OK;
}

static weir_status read_meshes(weir_plan_model *model, const weir_plan_request *request)
{
    weir_status status = weir_trainer_mesh_parse(request->trainer, &model->trainer);
    if (status == WEIR_OK)
        status = weir_replica_mesh_parse(request->replica, &model->replica);
    if (status == WEIR_OK && request->owners != NULL)
        status = weir_trainer_mesh_set_owners(&model->trainer, request->owners);
    if (status == WEIR_OK && request->experts != NULL)
        status = weir_replica_mesh_set_experts(&model->replica, request->experts);
    return status;
}

int weir_plan_model_open(const char *verb, const weir_plan_request *request, weir_plan_model *model)
{
    *model = (weir_plan_model){ .window_bytes = request->window_bytes };
    if (read_meshes(model, request) != WEIR_OK)
        return weir_cli_usage_error(verb, "%s", weir_last_error());
    if (open_mapping(model, request) != WEIR_OK || open_fleet(model) != WEIR_OK)
        return weir_cli_fail();
    return WEIR_EXIT_OK;
}

weir_status weir_plan_model_share(const weir_plan_model *model, uint32_t rank, weir_share **out)
{
    return weir_fleet_share_in_pieces(model->fleet, rank, model->window_bytes / WEIR_PLAN_SLOTS,
                                      out);
}

void weir_plan_model_close(weir_plan_model *model)
{
    weir_fleet_close(model->fleet);
    weir_fleet_tensors_free(model->tensors);
    weir_mapping_close(model->mapping);
    weir_family_sources_free(model->sources);
    weir_config_close(model->config);
    weir_expert_map_free(model->trainer.expert_owners);
    weir_expert_map_free(model->replica.expert_ids);
}
