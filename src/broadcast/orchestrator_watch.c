/* SPDX-License-Identifier: Apache-2.0 */
/* orchestrator_watch.c - which version can be had: as the trainer's directory says, or its marker
 * files. */
#include <inttypes.h>
#include <stdio.h>

#include "base/log.h"
#include "broadcast/markers.h"
#include "broadcast/orchestrator_core.h"
#include "broadcast/trainer_look.h"

#define AGAIN_MS 100u

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
    if (orchestrator->settings->orchestrator.broadcast.marker_dir != NULL)
        return WEIR_OK;
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

/* One look of bounded length: OK with *out_found. What cannot be reached may come up yet. */
static weir_status look(weir_orchestrator *orchestrator, unsigned left_ms, bool *out_found,
                        uint64_t *out)
{
    const weir_run_settings *settings = orchestrator->settings;
    const char *marker_dir = settings->orchestrator.broadcast.marker_dir;
    weir_trainer_sight sight;
    *out_found = false;
    if (marker_dir != NULL) {
        weir_status status =
            weir_marker_newest(marker_dir, orchestrator->has_last, orchestrator->last, out);
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

/* The line is what the last look has come to. */
static weir_status out_of_time(const weir_orchestrator *orchestrator)
{
    weir_error_line last;
    weir_error_save(&last);
    if (!orchestrator->has_last)
        return weir_fail(WEIR_ERR_TIMED_OUT, "no version can be had within %.1f s: %s",
                         orchestrator->timeout_ms / 1e3, last.text);
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "no version after %" PRIu64 " can be had within %.1f s: %s",
                     orchestrator->last, orchestrator->timeout_ms / 1e3, last.text);
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
        if (orchestrator->revision == 0) /* nothing that could be waited for has answered */
            weir_sleep_ms(left_ms < AGAIN_MS ? left_ms : AGAIN_MS);
    }
}
