/* SPDX-License-Identifier: Apache-2.0 */
/* broadcast_missing.c - reads the fleet's document (docs/wire.md): workers of servers are
 * registered as server-S-dpD and eight digits, with their tp rank as rank. */
#include "broadcast_missing.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "weir/fleet.h"

#define ASK_MS 2000u

typedef struct place {
    uint32_t server, dp, tp;
} place;

/* server-0-dp1-1f2e3d4c */
static bool is_engine(const char *worker_id, const place *at)
{
    char prefix[64];
    int n = snprintf(prefix, sizeof(prefix), "server-%u-dp%u-", at->server, at->dp);
    return worker_id != NULL && strncmp(worker_id, prefix, (size_t)n) == 0;
}

/* Its entry among the sources; NULL: it has none. */
static const json_t *find_source(const json_t *sources, const weir_run_settings *settings,
                                 const place *at)
{
    size_t i;
    const json_t *source;
    json_array_foreach(sources, i, source)
    {
        const char *model = json_string_value(json_object_get(source, "model"));
        const char *run = json_string_value(json_object_get(source, "run"));
        const char *id = json_string_value(json_object_get(source, "worker_id"));
        if (model != NULL && strcmp(model, settings->orchestrator.model.name) == 0 && run != NULL &&
            strcmp(run, settings->run) == 0 && is_engine(id, at) &&
            json_integer_value(json_object_get(source, "rank")) == at->tp)
            return source;
    }
    return NULL;
}

/* Registered, and holds nothing: workers of an engine are told apart by their entries alone. */
static bool has_joined(const json_t *workers, const place *at, uint32_t tp)
{
    size_t i;
    uint32_t n = 0;
    const json_t *worker;
    json_array_foreach(workers, i, worker)
    {
        n += is_engine(json_string_value(json_object_get(worker, "worker_id")), at) &&
             !json_is_true(json_object_get(worker, "superseded"));
    }
    return n >= tp;
}

static void add(char *text, size_t n_text, uint32_t rank, const place *at, const char *what)
{
    size_t n = strlen(text);
    snprintf(text + n, n_text - n, "%s%srank %u (server %u, dp %u, tp %u) %s", n > 0 ? ", " : "",
             n > 0 ? "" : "inference ", rank, at->server, at->dp, at->tp, what);
}

static bool is_missing(const json_t *fleet, const weir_run_settings *settings, const place *at,
                       uint64_t version, char *text, size_t n_text)
{
    const weir_run_group group = { (uint32_t)settings->orchestrator.servers.n_items,
                                   settings->inference.tp, settings->inference.dp };
    const json_t *source = find_source(json_object_get(fleet, "sources"), settings, at);
    json_int_t held = json_integer_value(json_object_get(source, "version"));
    char what[64] = "has not joined";
    uint32_t rank;
    if (weir_run_worker_rank(&group, at->server, at->dp, at->tp, &rank) != WEIR_OK ||
        (source != NULL && held >= 0 && (uint64_t)held >= version))
        return false;
    if (source != NULL && held > 0)
        snprintf(what, sizeof(what), "holds version %lld", (long long)held);
    else if (source != NULL || has_joined(json_object_get(fleet, "workers"), at, group.tp))
        snprintf(what, sizeof(what), "has installed nothing");
    add(text, n_text, rank, at, what);
    return true;
}

uint32_t weir_broadcast_missing(const weir_run_settings *settings, const char *directory,
                                uint64_t version, char *text, size_t n_text)
{
    weir_fleet_wish wish = WEIR_FLEET_WISH_INIT;
    char *document;
    uint32_t n = 0;
    text[0] = '\0';
    wish.directory = directory;
    wish.model = settings->orchestrator.model.name;
    wish.timeout_ms = ASK_MS;
    if (!settings->inference.present || weir_fleet_get(&wish, &document) != WEIR_OK)
        return settings->trainer.broadcast.inference_world_size;
    json_t *fleet = json_loads(document, 0, NULL);
    weir_string_free(document);
    for (uint32_t server = 0; server < settings->orchestrator.servers.n_items; server++) {
        for (uint32_t dp = 0; dp < settings->inference.dp; dp++) {
            for (uint32_t tp = 0; tp < settings->inference.tp; tp++) {
                const place at = { server, dp, tp };
                n += is_missing(fleet, settings, &at, version, text, n_text);
            }
        }
    }
    json_decref(fleet);
    return n;
}
