/* SPDX-License-Identifier: Apache-2.0 */
/* load.c - a replica that is sent a checkpoint: what it wants of trainers instead of its own
 * parameters, and where its loader writes.
 *
 * Other replicas are read as ever: what they hold are the bytes that this one would make.
 */
#include <string.h>

#include "base/error.h"
#include "refit/replica.h"

weir_status weir_load_open(weir_replica *replica)
{
    if (replica->wire != WEIR_WIRE_CHECKPOINT)
        return WEIR_OK;
    weir_loader_options options = { .settings = &replica->settings,
                                    .mesh = &replica->mesh,
                                    .is_part = replica->mesh_text[0] != '\0',
                                    .worker = replica->mesh_worker,
                                    .parameters = replica->wanted,
                                    .n_parameters = replica->n_parameters };
    replica->targets =
        weir_arena_zeroed(&replica->arena, replica->n_parameters, sizeof(*replica->targets));
    if (replica->targets == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_loader_close(replica->loader);
    replica->loader = NULL;
    return weir_loader_open(&options, &replica->loader);
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
    if (remote->n_shards == 0 || n == 0)
        return WEIR_OK;
    bool sent = is_checkpoint(remote->shards[0].compile_metadata);
    if (sent == is_checkpoint(wanted[0].compile_metadata))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_LAYOUT,
                     "%s sends %s (%s is %s %s), this replica wants %s (%s is %s %s): set "
                     "quantize_in_weight_transfer alike",
                     remote->who, sent ? "a checkpoint" : "kernel bytes", remote->shards[0].name,
                     remote->shards[0].compile_target, remote->shards[0].compile_metadata,
                     sent ? "kernel bytes" : "a checkpoint", wanted[0].name,
                     wanted[0].compile_target, wanted[0].compile_metadata);
}

weir_status weir_load_begin(weir_replica *replica)
{
    const weir_landing *landing = &replica->schedule.landing;
    bool taken = false;
    weir_status status = weir_loader_reserve(replica->loader, replica->work, &taken);
    replica->worker.counters.allocations += taken ? WEIR_LOADER_BUFFERS : 0;
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < replica->n_parameters; i++)
        replica->targets[i] = replica->mode == WEIR_INSTALL_DIRECT
                                  ? replica->live[i].data
                                  : replica->staging + replica->staging_offset[i];
    weir_loader_begin(replica->loader);
    for (size_t k = 0; k < landing->n_parts; k++)
        weir_loader_expect(replica->loader, landing->parts[k].load);
    return WEIR_OK;
}

weir_status weir_load_convert(weir_replica *replica, bool *out_any)
{
    weir_status status = WEIR_OK;
    *out_any = false;
    while (status == WEIR_OK && weir_loader_is_ready(replica->loader)) {
        *out_any = true;
        status = weir_loader_convert(replica->loader, replica->targets, replica->worker.timeout_ms);
    }
    return status;
}
