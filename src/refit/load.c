/* SPDX-License-Identifier: Apache-2.0 */
/* load.c - a replica that is sent a checkpoint: what it wants of trainers instead of its own
 * parameters, and where its loader writes.
 *
 * Other replicas are read as ever: what they hold are the bytes that this one would make.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit/replica.h"

/* The loader there is goes. */
static weir_status open_loader(weir_replica *replica, const uint32_t *senders)
{
    weir_loader *loader = NULL;
    weir_loader_options options = { .settings = &replica->settings,
                                    .mesh = &replica->mesh,
                                    .is_part = replica->mesh_text[0] != '\0',
                                    .worker = replica->mesh_worker,
                                    .parameters = replica->wanted,
                                    .n_parameters = replica->n_parameters,
                                    .senders = senders };
    weir_status status = weir_loader_open(&options, &loader);
    if (status != WEIR_OK)
        return status;
    weir_loader_close(replica->loader);
    replica->loader = loader;
    replica->loads_by_sender = senders != NULL;
    return WEIR_OK;
}

weir_status weir_load_open(weir_replica *replica)
{
    if (replica->wire == WEIR_WIRE_KERNEL)
        return WEIR_OK;
    if (replica->wire != WEIR_WIRE_CHECKPOINT)
        return weir_fail(WEIR_ERR_INVALID, "wire %d: there are kernel (0) and checkpoint (1)",
                         (int)replica->wire);
    if (replica->window_bytes == 0)
        return weir_fail(WEIR_ERR_INVALID, "window_bytes is too little for what is pushed");
    replica->targets =
        weir_arena_zeroed(&replica->arena, replica->n_parameters, sizeof(*replica->targets));
    return replica->targets != NULL ? open_loader(replica, NULL) : WEIR_ERR_NO_MEMORY;
}

weir_status weir_load_arrange(weir_replica *replica)
{
    const weir_schedule *schedule = &replica->schedule;
    bool by_sender = schedule->pushed && schedule->n_participants > 1;
    if (!schedule->loads || (!by_sender && !replica->loads_by_sender))
        return WEIR_OK;
    if (!by_sender)
        return open_loader(replica, NULL);
    uint32_t *senders = weir_alloc_zeroed(replica->loader->n_wanted, sizeof(*senders));
    if (senders == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < schedule->n_copies; i++)
        senders[schedule->planned[i].parameter] = schedule->planned[i].source;
    weir_status status = open_loader(replica, senders);
    weir_free(senders);
    return status;
}

static bool loads(const weir_replica *replica)
{
    return replica->loader != NULL && !replica->schedule.of_peer;
}

const weir_parameter *weir_load_wanted(const weir_replica *replica, size_t *out_n)
{
    *out_n = loads(replica) ? replica->loader->n_wanted : replica->n_parameters;
    return loads(replica) ? replica->loader->wanted : replica->wanted;
}

const weir_mesh_place *weir_load_place(const weir_replica *replica)
{
    static const weir_mesh_place anyone = { 0, 0, 0 };
    return loads(replica) ? &anyone : &replica->place;
}

const char *weir_load_mesh(const weir_replica *replica)
{
    return loads(replica) ? "" : replica->mesh_text;
}

static bool is_checkpoint(const char *compile_metadata)
{
    return compile_metadata != NULL && strcmp(compile_metadata, WEIR_CHECKPOINT_METADATA) == 0;
}

weir_status weir_load_check_wire(const weir_replica *replica, const weir_remote *remote)
{
    size_t n;
    const weir_parameter *wanted = weir_load_wanted(replica, &n);
    if (remote->n_published == 0 || n == 0)
        return WEIR_OK;
    bool sent = is_checkpoint(remote->first_metadata);
    if (sent == is_checkpoint(wanted[0].compile_metadata))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_LAYOUT,
                     "%s sends %s (%s), this replica wants %s (%s is %s %s): set "
                     "quantize_in_weight_transfer alike",
                     remote->who, sent ? "a checkpoint" : "kernel bytes", remote->first_metadata,
                     sent ? "kernel bytes" : "a checkpoint", wanted[0].name,
                     wanted[0].compile_target, wanted[0].compile_metadata);
}

/* Of what is read each part counts; of what is pushed each byte. */
static void expect(weir_replica *replica)
{
    weir_loader *loader = replica->loader;
    const weir_landing *landing = &replica->schedule.landing;
    weir_loader_begin(loader);
    for (size_t k = 0; k < landing->n_parts; k++)
        weir_loader_expect(loader, landing->parts[k].load, 1);
    for (size_t i = 0; i < loader->n_wanted && replica->schedule.pushed; i++) {
        if (loader->tensors[i].group != WEIR_ANY)
            weir_loader_expect(loader, loader->tensors[i].group, loader->tensors[i].n_bytes);
    }
}

weir_status weir_load_begin(weir_replica *replica)
{
    bool taken = false;
    bool beside = replica->mode == WEIR_INSTALL_STAGED && !replica->schedule.pushed;
    weir_status status = weir_loader_reserve(replica->loader, replica->work, &taken);
    replica->worker.counters.allocations += taken ? WEIR_LOADER_BUFFERS : 0;
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < replica->n_parameters; i++)
        replica->targets[i] =
            beside ? replica->staging + replica->staging_offset[i] : replica->live[i].data;
    expect(replica);
    return WEIR_OK;
}

weir_status weir_load_convert(weir_replica *replica, bool *out_any)
{
    weir_status status = WEIR_OK;
    bool undoes = replica->schedule.pushed && replica->mode == WEIR_INSTALL_STAGED;
    weir_undo *undo = undoes ? &replica->undo : NULL;
    *out_any = false;
    while (status == WEIR_OK && weir_loader_is_ready(replica->loader)) {
        *out_any = true;
        status = weir_loader_convert(replica->loader, replica->targets, undo,
                                     replica->worker.timeout_ms);
    }
    return status;
}
