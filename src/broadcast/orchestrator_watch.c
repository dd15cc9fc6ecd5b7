/* SPDX-License-Identifier: Apache-2.0 */
/* orchestrator_watch.c - which version can be had: as the trainer's directory says, or its marker
 * files. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "broadcast/markers.h"
#include "broadcast/orchestrator_core.h"
#include "broadcast/trainer_look.h"

#define AGAIN_MS 100u
#define LAST_LOOK_MS 500u
#define DOUBT_MS 250u /* a look at the trainer, of a marker that may not be its own */

static void address_of(const weir_orchestrator *orchestrator, char out[WEIR_RPC_ADDRESS_TEXT])
{
    const weir_run_broadcast *broadcast = &orchestrator->settings->orchestrator.broadcast;
    weir_rpc_address address = { .port = broadcast->port };
    snprintf(address.host, sizeof(address.host), "%s", broadcast->host);
    weir_rpc_address_format(&address, out);
}

weir_status weir_orchestrator_watch_open(weir_orchestrator *orchestrator)
{
    char address[WEIR_RPC_ADDRESS_TEXT];
    address_of(orchestrator, address);
    weir_status status =
        weir_directory_client_open(address, orchestrator->timeout_ms, &orchestrator->client);
    if (status == WEIR_OK)
        status = weir_directory_client_secure(orchestrator->client, &orchestrator->kept.security);
    if (status == WEIR_OK)
        weir_directory_client_heed(orchestrator->client, &orchestrator->is_cancelled);
    return status;
}

static bool is_news(const weir_orchestrator *orchestrator, uint64_t version)
{
    return !orchestrator->has_last || version > orchestrator->last;
}

/* A marker may be an earlier run's: what the trainer cannot have, its directory says. Where there
 * is none to ask, markers are taken as they are. */
static weir_status look_at_markers(weir_orchestrator *orchestrator, unsigned left_ms, uint64_t *out)
{
    const weir_run_settings *settings = orchestrator->settings;
    const char *marker_dir = settings->orchestrator.broadcast.marker_dir;
    weir_trainer_sight sight;
    uint64_t newest;
    unsigned bound_ms = left_ms < DOUBT_MS ? left_ms : DOUBT_MS;
    weir_status status = weir_marker_newest(marker_dir, orchestrator->has_last, orchestrator->last,
                                            UINT64_MAX, &newest);
    if (status != WEIR_OK)
        return status;
    weir_directory_client_bound(orchestrator->client, bound_ms + DOUBT_MS);
    status = weir_trainer_look(orchestrator->client, settings->orchestrator.model.name,
                               settings->run, orchestrator->revision, bound_ms, &sight);
    if (status == WEIR_ERR_TIMED_OUT && orchestrator->revision != 0) /* it has said no before */
        return status;
    bool is_told = status == WEIR_OK && sight.is_told;
    orchestrator->revision = is_told ? sight.revision : 0;
    *out = newest;
    if (!is_told || (sight.has_newest && sight.newest >= newest))
        return WEIR_OK;
    if (sight.has_newest && weir_marker_newest(marker_dir, orchestrator->has_last,
                                               orchestrator->last, sight.newest, out) == WEIR_OK)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_NOT_FOUND,
                     "%s/step_%" PRIu64 "/%s is there, but the trainer at %s has no such version",
                     marker_dir, newest, WEIR_MARKER_STABLE,
                     weir_directory_client_address(orchestrator->client));
}

/* One look of bounded length: OK with *out_found. What cannot be reached may come up yet. */
static weir_status look(weir_orchestrator *orchestrator, unsigned left_ms, bool *out_found,
                        uint64_t *out)
{
    const weir_run_settings *settings = orchestrator->settings;
    const char *marker_dir = settings->orchestrator.broadcast.marker_dir;
    weir_trainer_sight sight;
    *out_found = false;
    if (marker_dir != NULL) {
        weir_status status = look_at_markers(orchestrator, left_ms, out);
        *out_found = status == WEIR_OK;
        return status;
    }
    weir_directory_client_bound(orchestrator->client, left_ms);
    weir_status status = weir_trainer_look(orchestrator->client, settings->orchestrator.model.name,
                                           settings->run, orchestrator->revision, left_ms, &sight);
    orchestrator->revision = status == WEIR_OK ? sight.revision : 0;
    if (status != WEIR_OK)
        return status;
    if (!sight.is_told)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "directory %s is not Weir's, and tells nobody of new versions",
                         weir_directory_client_address(orchestrator->client));
    *out_found = sight.has_newest && is_news(orchestrator, sight.newest);
    *out = sight.newest;
    if (!*out_found)
        return weir_fail(WEIR_ERR_TIMED_OUT, "directory %s knows %s of model '%s', run '%s'",
                         weir_directory_client_address(orchestrator->client),
                         sight.has_newest    ? "no newer version"
                         : sight.has_trainer ? "no version"
                                             : "no trainer",
                         settings->orchestrator.model.name, settings->run);
    return WEIR_OK;
}

static bool may_change(weir_status status)
{
    return status == WEIR_ERR_NOT_FOUND || status == WEIR_ERR_PEER_LOST ||
           status == WEIR_ERR_TIMED_OUT;
}

static bool is_text(const json_t *object, const char *name, const char *wanted)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL && strcmp(text, wanted) == 0;
}

/* "; version 8 is STAGING, without rank-1", "; version 8 is ABORTED: trainer rank 0 has withdrawn
 * it: …": a version that has begun, and what it lacks. */
static void name_unfinished(const weir_orchestrator *orchestrator, const json_t *versions,
                            char *text, size_t n_text)
{
    const weir_run_settings *settings = orchestrator->settings;
    size_t i, k;
    const json_t *version, *slot;
    json_array_foreach(versions, i, version)
    {
        const char *state = json_string_value(json_object_get(version, "state"));
        json_int_t number = json_integer_value(json_object_get(version, "version"));
        if (state == NULL || number < 0 || !is_news(orchestrator, (uint64_t)number) ||
            !is_text(version, "model", settings->orchestrator.model.name) ||
            !is_text(version, "run", settings->run))
            continue;
        const char *reason = json_string_value(json_object_get(version, "reason"));
        bool has_reason = reason != NULL && reason[0] != '\0';
        int n = snprintf(text, n_text, "; version %lld is %.16s%s%.300s", (long long)number, state,
                         has_reason ? ": " : "", has_reason ? reason : "");
        json_array_foreach(json_object_get(version, "missing"), k, slot)
        {
            const char *name = json_string_value(slot);
            size_t used = strlen(text);
            if (n > 0 && name != NULL)
                snprintf(text + used, n_text - used, "%s%.40s", k > 0 ? ", " : ", without ", name);
        }
        return;
    }
}

static void look_for_unfinished(const weir_orchestrator *orchestrator, char *text, size_t n_text)
{
    const weir_fleet_request request = { .model = orchestrator->settings->orchestrator.model.name };
    const char *document = NULL;
    text[0] = '\0';
    weir_directory_client_bound(orchestrator->client, LAST_LOOK_MS);
    if (weir_directory_get_fleet(orchestrator->client, &request, &document) != WEIR_OK)
        return;
    json_t *fleet = json_loads(document != NULL ? document : "", 0, NULL);
    name_unfinished(orchestrator, json_object_get(fleet, "versions"), text, n_text);
    json_decref(fleet);
}

/* The line is what the last look has come to. */
static weir_status out_of_time(const weir_orchestrator *orchestrator)
{
    weir_error_line last;
    char unfinished[512];
    weir_error_save(&last);
    look_for_unfinished(orchestrator, unfinished, sizeof(unfinished));
    if (!orchestrator->has_last)
        return weir_fail(WEIR_ERR_TIMED_OUT, "no version can be had within %.1f s: %s%s",
                         orchestrator->timeout_ms / 1e3, last.text, unfinished);
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "no version after %" PRIu64 " can be had within %.1f s: %s%s",
                     orchestrator->last, orchestrator->timeout_ms / 1e3, last.text, unfinished);
}

weir_status weir_orchestrator_await_version(weir_orchestrator *orchestrator, uint64_t *out)
{
    weir_deadline deadline = weir_deadline_in(orchestrator->timeout_ms);
    bool found = false;
    orchestrator->revision = 0;
    for (;;) {
        unsigned left_ms = weir_deadline_left_ms(deadline);
        if (atomic_load(&orchestrator->is_cancelled))
            return weir_fail(WEIR_ERR_CANCELLED, "the orchestrator was told to stop");
        if (left_ms == 0)
            return out_of_time(orchestrator);
        weir_status status = look(orchestrator, left_ms, &found, out);
        if (found)
            return WEIR_OK;
        if (!may_change(status) && status != WEIR_ERR_CANCELLED)
            return status;
        bool by_markers = orchestrator->settings->orchestrator.broadcast.marker_dir != NULL;
        if (orchestrator->revision == 0 || by_markers) /* nothing that could be waited for */
            weir_sleep_ms(left_ms < AGAIN_MS ? left_ms : AGAIN_MS);
    }
}
