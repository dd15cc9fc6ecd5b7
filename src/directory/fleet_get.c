/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_get.c - weir_fleet_get(): one call of GetFleet by a client that is nobody's worker. */
#include "weir/fleet.h"

#include "base/alloc.h"
#include "base/error.h"
#include "base/options.h"
#include "directory/client.h"
#include "rpc/rpc_security.h"

#define DEFAULT_TIMEOUT_MS 60000u

weir_status weir_fleet_get(const weir_fleet_wish *given, char **out_json)
{
    weir_fleet_wish wish;
    weir_directory_client *client;
    weir_security_kept security = { 0 };
    const char *json = NULL;
    weir_status status = weir_options_read(given, "weir_fleet_wish", &wish, sizeof(wish));
    if (status != WEIR_OK)
        return status;
    if (wish.directory == NULL)
        return weir_fail(WEIR_ERR_INVALID, "fleet: directory is required");
    unsigned timeout_ms = wish.timeout_ms != 0 ? wish.timeout_ms : DEFAULT_TIMEOUT_MS;
    status = weir_directory_client_open(wish.directory, timeout_ms, &client);
    if (status != WEIR_OK)
        return status;
    status = weir_security_resolve(&wish.security, &security);
    if (status == WEIR_OK)
        status = weir_directory_client_secure(client, &security.security);
    const weir_fleet_request request = { .model = wish.model != NULL ? wish.model : "",
                                         .version = wish.version,
                                         .after_revision = wish.after_revision,
                                         .timeout_ms = timeout_ms };
    if (status == WEIR_OK)
        status = weir_directory_get_fleet(client, &request, &json);
    char *copy = status == WEIR_OK ? weir_strdup(json) : NULL;
    weir_directory_client_close(client);
    weir_security_free(&security);
    if (status != WEIR_OK)
        return status;
    if (copy == NULL)
        return WEIR_ERR_NO_MEMORY;
    *out_json = copy;
    return WEIR_OK;
}
