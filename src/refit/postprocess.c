/* SPDX-License-Identifier: Apache-2.0 */
/* postprocess.c - stop 8 of 9: what the engine computes from its weights, computed again.
 *
 * Takes   live parameters that hold a new version.
 * Gives   derived parameters that agree with them (MLA's W_UV and W_UK_T), the engine told.
 * Before  install.c        After  ack.c
 * Breaks  the engine's hook refuses: staged goes back to the old version, derived parameters
 *         included; direct is UNUSABLE.
 */
#include <inttypes.h>

#include "base/error.h"
#include "base/pool.h"
#include "refit/replica.h"

static weir_status refresh_one(void *context, size_t i, unsigned thread)
{
    const weir_replica *replica = context;
    const weir_derived *derived = &replica->derived[i];
    const weir_tensor *from = &replica->live[derived->from];
    const weir_tensor *scale =
        derived->from_scale != SIZE_MAX ? &replica->live[derived->from_scale] : NULL;
    (void)thread;
    return weir_derived_compute(
        derived, from->dtype, from->data, scale != NULL ? scale->data : NULL,
        scale != NULL ? &scale->shape : NULL, replica->live[derived->parameter].data);
}

/* All at once: each is a launch of its own, too short to be waited for. */
static weir_status refresh_on_gpu(weir_replica *replica)
{
    weir_arena_reset(&replica->scratch);
    weir_work_derivation *derivations = weir_arena_zeroed(
        &replica->scratch, replica->n_derived ? replica->n_derived : 1, sizeof(*derivations));
    if (derivations == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < replica->n_derived; i++) {
        const weir_derived *derived = &replica->derived[i];
        const weir_tensor *from = &replica->live[derived->from];
        const weir_tensor *scale =
            derived->from_scale != SIZE_MAX ? &replica->live[derived->from_scale] : NULL;
        derivations[i] =
            (weir_work_derivation){ .derived = derived,
                                    .from_dtype = from->dtype,
                                    .from = from->data,
                                    .scale = scale != NULL ? scale->data : NULL,
                                    .scale_shape = scale != NULL ? &scale->shape : NULL,
                                    .out = replica->live[derived->parameter].data };
    }
    weir_status status =
        weir_task_derive(replica->derive, WEIR_LANE_COMPUTE, derivations, replica->n_derived);
    if (status == WEIR_OK)
        status = weir_task_wait(replica->derive, replica->worker.timeout_ms);
    return status;
}

weir_status weir_derived_refresh(weir_replica *replica)
{
    if (weir_work_memory(replica->work) == WEIR_MEMORY_CUDA)
        return refresh_on_gpu(replica);
    return weir_pool_run(replica->worker.pool, replica->n_derived, refresh_one, replica);
}

weir_status weir_stop_postprocess(weir_replica *replica, uint64_t version)
{
    weir_status status = weir_derived_refresh(replica);
    if (status != WEIR_OK)
        return status;
    weir_holding_digest(replica);
    return weir_engine_take(replica, version);
}

weir_status weir_engine_take(weir_replica *replica, uint64_t version)
{
    if (replica->hooks.postprocess == NULL)
        return WEIR_OK;
    weir_status status = replica->hooks.postprocess(replica->hooks.context, version);
    if (status != WEIR_OK)
        return weir_fail(status, "the engine's postprocess hook refused version %" PRIu64 ": %s",
                         version, weir_status_text(status));
    return WEIR_OK;
}
