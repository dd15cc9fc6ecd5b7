/* SPDX-License-Identifier: Apache-2.0 */
/* delivery.c - how a trainer rank's bytes reach the replicas: read from slots, pushed, or broadcast
 * through a window.
 *
 * Tensors on a GPU are pushed unless something else was asked for: a slot would take as much device
 * memory again as the converted model. What a rank of a mesh pushes is broadcast.
 */
#include <inttypes.h>
#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "family/mapping.h"
#include "refit/rank_plan.h"
#include "refit/serve.h"
#include "refit/trainer.h"
#include "refit/window.h"

void weir_delivery_close(weir_trainer *trainer)
{
    weir_push_close(trainer->push);
    weir_task_close(trainer->stage);
    weir_work_close(trainer->work);
    trainer->push = NULL;
    trainer->stage = NULL;
    trainer->work = NULL;
}

static bool will_push(const weir_trainer *trainer, uint32_t memory)
{
    const char *transport = trainer->settings.transport;
    if (trainer->is_sharded)
        return false;
    if (trainer->asked_delivery != WEIR_DELIVERY_DEFAULT)
        return trainer->asked_delivery == WEIR_DELIVERY_PUSH;
    if (memory != WEIR_MEMORY_CUDA)
        return false;
    return transport == NULL || strcmp(transport, "cuda_ipc") == 0 ||
           strcmp(transport, "nccl") == 0;
}

/* ---- broadcast -------------------------------------------------------------------------------*/

static const char *cast_transport(const weir_trainer *trainer, uint32_t memory)
{
    if (trainer->settings.transport != NULL)
        return trainer->settings.transport;
    return memory == WEIR_MEMORY_CUDA ? "nccl" : "ucx";
}

weir_status weir_delivery_link(weir_trainer *trainer, weir_link *out)
{
    const char *name =
        trainer->casts ? cast_transport(trainer, trainer->memory) : trainer->settings.transport;
    return weir_worker_link(&trainer->worker, name, out);
}

static weir_status check_cast(const weir_trainer *trainer, uint32_t memory)
{
    const weir_transport_ops *ops;
    weir_status status = weir_transport_get(cast_transport(trainer, memory), &ops);
    if (status != WEIR_OK)
        return status;
    const char *where = memory == WEIR_MEMORY_CUDA ? "GPU" : "host";
    if (!(ops->caps & WEIR_CAP_MATCHED))
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "transport %s cannot broadcast, as a sharded version is pushed: name nccl "
                         "for tensors on a GPU and ucx for those in host memory, or let the "
                         "replicas read it (PULL)",
                         ops->name);
    if (!(ops->memory & memory))
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "transport %s does not broadcast %s memory, where the tensors of trainer "
                         "rank %u lie",
                         ops->name, where, trainer->rank);
    return WEIR_OK;
}

/* Whether a transport, which may be one that is not here, can do nothing but broadcast. */
static bool only_broadcasts(const char *name)
{
    const weir_transport_ops *ops;
    weir_error_line before;
    weir_error_save(&before);
    bool found = name != NULL && weir_transport_get(name, &ops) == WEIR_OK;
    weir_error_restore(&before);
    return found && (ops->caps & WEIR_CAP_MATCHED) && !(ops->caps & WEIR_CAP_READ);
}

/* Whether a rank of a mesh broadcasts: when it was told to, or its transport can do nothing else.
 */
static weir_status settle_cast(const weir_trainer *trainer, uint32_t memory, bool *out)
{
    *out = false;
    if (!trainer->is_sharded)
        return WEIR_OK;
    bool only_so = only_broadcasts(trainer->settings.transport);
    if (only_so && trainer->asked_delivery == WEIR_DELIVERY_PULL)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "transport %s can only broadcast: replicas cannot read versions through "
                         "it. Push them (PUSH), or name a transport that can be read",
                         trainer->settings.transport);
    *out = only_so || trainer->asked_delivery == WEIR_DELIVERY_PUSH;
    return *out ? check_cast(trainer, memory) : WEIR_OK;
}

/* ---- push ------------------------------------------------------------------------------------*/

static weir_status open_push(weir_trainer *trainer, uint32_t memory, unsigned device)
{
    const weir_transport_ops *ops;
    const char *name = trainer->settings.transport;
    if (name == NULL && memory == WEIR_MEMORY_CUDA)
        name = "cuda_ipc";
    weir_status status = weir_transport_get(name, &ops);
    if (status == WEIR_OK && !(ops->memory & memory))
        status = weir_fail(WEIR_ERR_UNSUPPORTED,
                           "transport %s does not move %s memory, where the tensors of trainer "
                           "rank %u lie",
                           ops->name, memory == WEIR_MEMORY_CUDA ? "GPU" : "host", trainer->rank);
    if (status != WEIR_OK)
        return status;
    weir_push_options options = { .listen = trainer->listen != NULL ? trainer->listen : "127.0.0.1",
                                  .transport = ops->name,
                                  .memory = memory,
                                  .device = device,
                                  .window_bytes = trainer->window_bytes };
    return weir_push_open(&trainer->worker, &trainer->source, &options, &trainer->push);
}

weir_status weir_delivery_settle(weir_trainer *trainer, const weir_tensor *tensors,
                                 size_t n_tensors)
{
    uint32_t memory;
    unsigned device;
    weir_status status = weir_work_locate_all(tensors, n_tensors, &memory, &device);
    if (status != WEIR_OK)
        return status;
    bool pushes = will_push(trainer, memory), casts;
    status = settle_cast(trainer, memory, &casts);
    if (status != WEIR_OK)
        return status;
    bool same = memory == trainer->memory && device == trainer->worker.device &&
                pushes == trainer->pushes && casts == trainer->casts;
    if (same && (trainer->push != NULL || !pushes) && (trainer->work != NULL || !casts))
        return WEIR_OK;
    if (trainer->memory != 0) {
        status = weir_slots_retire(trainer);
        if (status != WEIR_OK)
            return status;
        weir_window_close(trainer); /* its broadcast groups may have registered the slots */
        weir_slots_release(trainer);
        weir_source_release(&trainer->source);
    }
    if (casts != trainer->casts) { /* its pieces fit the buffers of a window */
        weir_rank_plan_close(trainer->rank_plan);
        trainer->rank_plan = NULL;
    }
    weir_delivery_close(trainer);
    trainer->memory = memory;
    trainer->pushes = pushes;
    trainer->casts = casts;
    trainer->worker.device = device;
    if (pushes)
        return open_push(trainer, memory, device);
    if (memory == WEIR_MEMORY_CUDA || casts)
        return weir_work_open(memory, device, trainer->worker.pool, &trainer->work);
    return WEIR_OK;
}

/* Tied sources on a GPU are compared by their digests, where they lie. */
weir_status weir_delivery_check_tied(weir_trainer *trainer)
{
    const weir_mapping *mapping = trainer->source.mapping;
    weir_work *work = trainer->push != NULL ? trainer->push->work : trainer->work;
    if (work == NULL || !mapping->unreadable || mapping->tied[0] == SIZE_MAX)
        return WEIR_OK;
    weir_digest digests[2];
    weir_work_range ranges[2] = { 0 };
    for (size_t i = 0; i < 2; i++) {
        const weir_tensor *source = &mapping->given[mapping->tied[i]];
        ranges[i].name = source->name;
        ranges[i].data = source->data;
        ranges[i].dtype = source->dtype;
        ranges[i].digest = &digests[i];
        weir_digest_rows_of(source->dtype, &source->shape, &ranges[i].n_rows, &ranges[i].row_bytes);
    }
    if (ranges[0].data == NULL || ranges[1].data == NULL || ranges[0].data == ranges[1].data)
        return WEIR_OK;
    weir_task *task = NULL;
    weir_status status = weir_delivery_follow(trainer);
    if (status == WEIR_OK)
        status = weir_task_open(work, &task);
    if (status == WEIR_OK)
        status = weir_task_digest(task, WEIR_LANE_COMPUTE, ranges, 2);
    if (status == WEIR_OK)
        status = weir_task_wait(task, trainer->worker.timeout_ms);
    weir_task_close(task);
    if (status == WEIR_OK && !weir_digest_equal(&digests[0], &digests[1]))
        status = weir_fail(WEIR_ERR_LAYOUT,
                           "%s differs from %s, but config.json has tie_word_embeddings true",
                           ranges[0].name, ranges[1].name);
    return status;
}

weir_status weir_delivery_follow(weir_trainer *trainer)
{
    weir_work *work = trainer->push != NULL ? trainer->push->work : trainer->work;
    return work != NULL ? weir_work_follow(work, trainer->stream) : WEIR_OK;
}

/* OK: it is what this rank has published last, and can push. */
static weir_status find_version(const weir_trainer *trainer, uint64_t version,
                                weir_push_version *out)
{
    for (unsigned i = 0; i < trainer->n_slots && trainer->push != NULL; i++) {
        const weir_slot *slot = &trainer->slots[i];
        if (slot->state != WEIR_SLOT_PUBLISHED || slot->version != version ||
            version != trainer->last_version)
            continue;
        *out = (weir_push_version){ version, slot->uid, trainer->keep_masters };
        return WEIR_OK;
    }
    return weir_fail(WEIR_ERR_NOT_FOUND,
                     "version %" PRIu64 " cannot be pushed: trainer rank %u has published %s"
                     "%" PRIu64 " last",
                     version, trainer->rank, trainer->has_published ? "" : "nothing, ",
                     trainer->last_version);
}

weir_status weir_delivery_serve(weir_trainer *trainer, uint64_t version, unsigned n_replicas,
                                unsigned timeout_ms)
{
    weir_push_version asked;
    weir_status status = find_version(trainer, version, &asked);
    if (status != WEIR_OK)
        return status;
    status = weir_delivery_follow(trainer);
    if (status == WEIR_OK)
        status = weir_push_serve(trainer->push, &asked, n_replicas, timeout_ms);
    if (status != WEIR_OK)
        weir_error_prefix("trainer rank %u", trainer->rank);
    return status;
}

weir_status weir_trainer_ready(weir_trainer *trainer, uint64_t version, unsigned *out_n)
{
    weir_push_version asked;
    if (trainer->window != NULL)
        return weir_window_ready(trainer, version, out_n);
    weir_status status = find_version(trainer, version, &asked);
    return status == WEIR_OK ? weir_push_count_ready(trainer->push, &asked, out_n) : status;
}
