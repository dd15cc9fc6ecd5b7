/* SPDX-License-Identifier: Apache-2.0 */
/* top_fallback.c - a frame's document of a directory that is not Weir's: the sources of one model,
 * as `weir discover` sees them. Versions, leases and refits it does not tell. */
#include "top.h"
#include "weir/discover.h"

static json_t *source_json(const weir_candidate *source, int64_t now_ms)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:s, s:s, s:I}", "worker_id",
                     source->worker_id, "model", source->model, "run", source->run, "role",
                     source->role, "status", source->status, "rank",
                     (json_int_t)(source->has_rank ? source->rank : 0), "version",
                     (json_int_t)(source->has_version ? source->version : 0), "host", source->host,
                     "endpoint", source->endpoint, "updated_ms",
                     (json_int_t)(source->age_ms >= 0 ? now_ms - source->age_ms : 0));
}

static json_t *group_json(const weir_candidate *source)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:i}", "model", source->model, "run", source->run,
                     "role", source->role, "status", source->status, "version",
                     (json_int_t)(source->has_version ? source->version : 0), "n", 1);
}

json_t *weir_top_discover(const char *directory, const char *model, unsigned timeout_ms)
{
    weir_discover_wish wish = WEIR_DISCOVER_WISH_INIT;
    weir_discovery_list *list;
    wish.directory = directory;
    wish.model = model;
    wish.timeout_ms = timeout_ms;
    if (weir_discover(&wish, &list) != WEIR_OK)
        return NULL;
    int64_t now_ms = (int64_t)1 << 40; /* ages are all that is told */
    json_t *sources = json_array(), *groups = json_array();
    for (size_t i = 0; i < list->n_candidates; i++) {
        json_array_append_new(sources, source_json(&list->candidates[i], now_ms));
        json_array_append_new(groups, group_json(&list->candidates[i]));
    }
    json_t *fleet =
        json_pack("{s:I, s:{s:I}, s:o, s:o}", "now_ms", (json_int_t)now_ms, "directory", "workers",
                  (json_int_t)list->n_candidates, "sources", sources, "groups", groups);
    weir_discovery_list_free(list);
    return fleet;
}
