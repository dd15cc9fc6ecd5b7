/* SPDX-License-Identifier: Apache-2.0 */
/* broadcast_delivery.c - pushed where the transport can bring each worker its part, read elsewhere.
 *
 * Between GPUs, what all workers take alike goes step by step, straight into memory that is mapped.
 * All else that is pushed is broadcast in groups, to the workers that a part is for, through a
 * window; a trainer of one rank that has the whole model is then one of a mesh without axes.
 */
#include "broadcast_delivery.h"

#include <stdio.h>
#include <string.h>

/* What one rank has is for every worker: engines of one worker or, in checkpoint format, of any. */
static bool is_for_all(const weir_run_settings *settings)
{
    return !settings->trainer.broadcast.quantize_in_weight_transfer ||
           !settings->inference.present ||
           (settings->inference.tp == 1 && settings->inference.ep == 1);
}

static bool is_whole(const weir_run_settings *settings, const weir_publish_job *job)
{
    return job->mesh == NULL && is_for_all(settings);
}

static bool has_many_whole_ranks(const weir_run_settings *settings, const weir_publish_job *job)
{
    return is_whole(settings, job) && job->n_ranks > 1;
}

static const char *transport_of(const weir_run_settings *settings, const weir_publish_job *job)
{
    static const char *const names[] = {
        [WEIR_RUN_BY_NCCL] = "nccl", [WEIR_RUN_BY_UCX] = "ucx", [WEIR_RUN_BY_CUDA_IPC] = "cuda_ipc"
    };
    const weir_transport_ops *nccl;
    weir_run_transport transport = settings->trainer.broadcast.transport;
    if (job->flow.transport != NULL)
        return job->flow.transport;
    if (transport != WEIR_RUN_BY_AUTO)
        return names[transport];
    if (!job->device.cuda)
        return "ucx";
    bool pushes = job->delivery != WEIR_DELIVERY_PULL;
    return pushes && weir_transport_get("nccl", &nccl) == WEIR_OK ? "nccl" : "cuda_ipc";
}

static void name_engine_mesh(const weir_run_settings *settings, weir_broadcast_delivery *out)
{
    uint32_t tp = settings->inference.present ? settings->inference.tp : 1;
    bool is_wide = settings->inference.present && settings->inference.ep > 1;
    if (is_wide)
        snprintf(out->engine_mesh, sizeof(out->engine_mesh), "tp=%u,dp=%u,ep=%u", tp,
                 settings->inference.dp, settings->inference.ep);
    else
        snprintf(out->engine_mesh, sizeof(out->engine_mesh), "tp=%u", tp);
    out->workers_per_replica = is_for_all(settings) ? 1
                               : is_wide            ? tp * settings->inference.dp
                                                    : tp;
}

static weir_delivery delivery_of(const weir_run_settings *settings, const weir_publish_job *job)
{
    const char *transport = job->flow.transport;
    bool has_nccl = strcmp(transport, "nccl") == 0, has_ucx = strcmp(transport, "ucx") == 0;
    bool maps = job->device.cuda && strcmp(transport, "cuda_ipc") == 0 && is_whole(settings, job);
    bool casts = !job->device.cuda && has_ucx && !has_many_whole_ranks(settings, job);
    if (job->delivery != WEIR_DELIVERY_DEFAULT)
        return job->delivery;
    return has_nccl || maps || casts ? WEIR_DELIVERY_PUSH : WEIR_DELIVERY_PULL;
}

static int check(const weir_run_settings *settings, const char *path, const weir_publish_job *job)
{
    const char *transport = job->flow.transport;
    bool pushes = job->delivery == WEIR_DELIVERY_PUSH;
    if (!pushes && strcmp(transport, "nccl") == 0)
        return weir_cli_error("%s: --delivery pull: transport nccl cannot be read from: leave the "
                              "transport out, or say cuda_ipc or ucx",
                              path);
    if (pushes && !is_whole(settings, job) && strcmp(transport, "cuda_ipc") == 0)
        return weir_cli_error("%s: --delivery push: transport cuda_ipc brings all workers the same "
                              "bytes, and here each takes its own part: leave one of both out, or "
                              "say nccl",
                              path);
    if (job->window_bytes > 0 && !pushes && has_many_whole_ranks(settings, job))
        return weir_cli_error("%s: a window of trainer ranks needs --mesh, which says how they "
                              "share the model: leave --window and "
                              "trainer.weight_broadcast.window_bytes out",
                              path);
    return WEIR_EXIT_OK;
}

int weir_broadcast_deliver(const weir_run_settings *settings, const char *path,
                           weir_publish_job *job, weir_broadcast_delivery *out)
{
    weir_flow_options *flow = &job->flow;
    name_engine_mesh(settings, out);
    if (job->window_bytes == 0)
        job->window_bytes = settings->trainer.broadcast.window_bytes;
    flow->transport = transport_of(settings, job);
    job->delivery = delivery_of(settings, job);
    int code = check(settings, path, job);
    if (code != WEIR_EXIT_OK)
        return code;
    bool pushes = job->delivery == WEIR_DELIVERY_PUSH;
    bool by_steps = pushes && is_whole(settings, job) &&
                    (job->device.cuda || has_many_whole_ranks(settings, job));
    bool by_groups = !by_steps && (pushes || job->window_bytes > 0);
    if (!is_for_all(settings))
        flow->replica_mesh = out->engine_mesh;
    else if (by_groups && job->mesh == NULL)
        flow->replica_mesh = "";
    if (flow->replica_experts == NULL && !is_for_all(settings))
        flow->replica_experts = settings->inference.experts;
    out->sends = by_steps || by_groups;
    if (!by_groups)
        out->workers_per_replica = 1;
    return WEIR_EXIT_OK;
}
