/* SPDX-License-Identifier: Apache-2.0 */
/* server.c - weir_directory: the services of directory_core.c behind an rpc server. */
#include <sys/random.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/options.h"
#include "directory/directory_core.h"
#include "weir/weir.h"

struct weir_directory {
    weir_directory_core core;
    weir_rpc_server *server;
    unsigned sweep_ms;
};

static unsigned sweep(void *context)
{
    const weir_directory *directory = context;
    const weir_directory_core *core = &directory->core;
    weir_store_sweep(core->store, weir_directory_core_now_ms(core));
    return directory->sweep_ms;
}

/* Ids of versions must not repeat those of the server before a restart. */
static uint64_t random_seed(void)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != (ssize_t)sizeof(seed))
        seed = weir_unix_ms() << 20 ^ weir_now_ns();
    return seed;
}

static weir_status start(weir_directory *directory, const weir_directory_options *options)
{
    weir_store_options store_options = {
        .stale_after_ms = (uint64_t)options->stale_after_s * 1000,
        .delete_after_ms = (uint64_t)options->delete_after_s * 1000,
    };
    weir_status status = weir_directory_core_open(&store_options, &directory->core);
    if (status != WEIR_OK)
        return status;
    directory->core.salt = random_seed();
    weir_rpc_service services[WEIR_DIRECTORY_SERVICES];
    weir_directory_core_services(&directory->core, services);
    unsigned sweep_s = options->sweep_every_s != 0 ? options->sweep_every_s : 30;
    directory->sweep_ms = sweep_s > UINT32_MAX / 1000 ? UINT32_MAX : sweep_s * 1000;
    weir_rpc_server_options server_options = {
        .listen = options->listen != NULL ? options->listen : "127.0.0.1:0",
        .services = services,
        .n_services = WEIR_DIRECTORY_SERVICES,
        .tick = sweep,
        .tick_context = directory,
        .tick_ms = directory->sweep_ms,
    };
    return weir_rpc_server_open(&server_options, &directory->server);
}

weir_status weir_directory_open(const weir_directory_options *options, weir_directory **out)
{
    weir_directory_options known = WEIR_DIRECTORY_OPTIONS_INIT;
    weir_status status = WEIR_OK;
    if (options != NULL)
        status = weir_options_read(options, "weir_directory_options", &known, sizeof(known));
    if (status != WEIR_OK)
        return status;
    weir_directory *directory = weir_alloc_zeroed(1, sizeof(*directory));
    if (directory == NULL)
        return WEIR_ERR_NO_MEMORY;
    status = start(directory, &known);
    if (status != WEIR_OK) {
        weir_directory_close(directory);
        return status;
    }
    *out = directory;
    return WEIR_OK;
}

void weir_directory_close(weir_directory *directory)
{
    if (directory == NULL)
        return;
    weir_rpc_server_close(directory->server); /* its thread uses the store */
    weir_directory_core_close(&directory->core);
    weir_free(directory);
}

const char *weir_directory_address(const weir_directory *directory)
{
    return weir_rpc_server_address(directory->server);
}

const char *weir_directory_http_address(const weir_directory *directory)
{
    (void)directory;
    return "";
}
