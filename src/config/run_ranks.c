/* SPDX-License-Identifier: Apache-2.0 */
/* run_ranks.c - who has which rank in a broadcast's group; rank 0 is the trainer's. */
#include "base/error.h"
#include "weir/run_config.h"

static weir_status n_workers_of(const weir_run_group *group, uint32_t *out_n_workers)
{
    uint64_t per_server = (uint64_t)group->tp * group->dp;
    if (per_server == 0 || group->n_servers == 0)
        return weir_fail(WEIR_ERR_INVALID, "a group of %u servers, tp %u, dp %u has no workers",
                         group->n_servers, group->tp, group->dp);
    if (per_server > (INT32_MAX - 1) / group->n_servers)
        return weir_fail(WEIR_ERR_INVALID,
                         "a group of %u servers, tp %u, dp %u has more than 2147483647 ranks",
                         group->n_servers, group->tp, group->dp);
    *out_n_workers = (uint32_t)per_server * group->n_servers;
    return WEIR_OK;
}

weir_status weir_run_group_size(const weir_run_group *group, uint32_t *out_size)
{
    uint32_t n_workers = 0;
    weir_status status = n_workers_of(group, &n_workers);
    if (status == WEIR_OK)
        *out_size = n_workers + 1;
    return status;
}

weir_status weir_run_worker_rank(const weir_run_group *group, uint32_t server_rank,
                                 uint32_t dp_rank, uint32_t tp_rank, uint32_t *out_rank)
{
    uint32_t n_workers = 0;
    weir_status status = n_workers_of(group, &n_workers);
    if (status != WEIR_OK)
        return status;
    if (server_rank >= group->n_servers || dp_rank >= group->dp || tp_rank >= group->tp)
        return weir_fail(
            WEIR_ERR_INVALID,
            "there is no server %u, dp rank %u, tp rank %u of %u servers, dp %u, tp %u",
            server_rank, dp_rank, tp_rank, group->n_servers, group->dp, group->tp);
    *out_rank = server_rank * group->tp * group->dp + dp_rank * group->tp + tp_rank + 1;
    return WEIR_OK;
}

weir_status weir_run_rank_offset(uint32_t inference_world_size, uint32_t n_servers,
                                 uint32_t server_rank, uint32_t *out_offset)
{
    if (server_rank >= n_servers)
        return weir_fail(WEIR_ERR_INVALID, "there is no server %u of %u", server_rank, n_servers);
    if (inference_world_size == 0 || inference_world_size % n_servers != 0)
        return weir_fail(WEIR_ERR_INVALID,
                         "%u inference workers are not shared by %u servers alike",
                         inference_world_size, n_servers);
    *out_offset = server_rank * (inference_world_size / n_servers);
    return WEIR_OK;
}

weir_status weir_run_offset_rank(uint32_t rank_offset, uint32_t device_index,
                                 uint32_t inference_world_size, uint32_t *out_rank)
{
    uint64_t rank = (uint64_t)rank_offset + device_index + 1;
    if (rank > inference_world_size)
        return weir_fail(WEIR_ERR_INVALID,
                         "rank offset %u and device %u are rank %llu, beyond %u inference workers",
                         rank_offset, device_index, (unsigned long long)rank, inference_world_size);
    *out_rank = (uint32_t)rank;
    return WEIR_OK;
}
