/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_json.c - the totals of a store as JSON. */
#include "directory/fleet_json.h"

weir_status weir_fleet_json(const weir_directory_core *core, const char *model, uint64_t number,
                            uint64_t now_ms, weir_arena *arena, char **out)
{
    (void)number;
    weir_store_totals totals = weir_store_count(core->store);
    char *json = weir_arena_format(
        arena, "{\"now_ms\":%llu,\"revision\":%llu,\"workers\":%zu,\"versions\":%zu}",
        (unsigned long long)now_ms, (unsigned long long)weir_store_revision(core->store, model),
        totals.n_workers, totals.n_versions);
    if (json == NULL)
        return WEIR_ERR_NO_MEMORY;
    *out = json;
    return WEIR_OK;
}
