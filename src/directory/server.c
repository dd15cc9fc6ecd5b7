/* SPDX-License-Identifier: Apache-2.0 */
/* server.c - weir_directory: the services of directory_core.c behind an rpc server, over the log
 * that its options name. All of it runs in the server's thread; a timer wakes it when a wait is
 * over. */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/options.h"
#include "directory/client.h"
#include "directory/directory_core.h"
#include "directory/web.h"
#include "health.pb-c.h"
#include "rpc/rpc_security.h"
#include "weir/weir.h"

#define NS_PER_S 1000000000ull

struct weir_directory {
    weir_directory_core core;
    weir_rpc_server *server;
    weir_web *web; /* NULL: it serves no HTTP */
    weir_security_kept kept;
    weir_directory_options options; /* strings are the caller's: for opening alone */
    int timer_fd;
};

/* ---- time ------------------------------------------------------------------------------------*/

static void arm_timer(void *context, uint64_t due_ns)
{
    const weir_directory *directory = context;
    struct itimerspec when = { 0 };
    if (due_ns == 0)
        due_ns = 1; /* 0 would stop it */
    if (due_ns != UINT64_MAX)
        when.it_value = (struct timespec){ (time_t)(due_ns / NS_PER_S), (long)(due_ns % NS_PER_S) };
    timerfd_settime(directory->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void timer_rings(void *context, uint32_t events)
{
    weir_directory *directory = context;
    uint64_t n_times;
    (void)events;
    weir_alloc_uncount_thread(); /* what a directory keeps is no part of a refit */
    ssize_t n = read(directory->timer_fd, &n_times, sizeof(n_times));
    (void)n; /* it may have been set anew since */
    weir_directory_core_tick(&directory->core);
}

static bool answer(void *context, uint64_t ticket, weir_rpc_code code,
                   const ProtobufCMessage *response, const char *text)
{
    const weir_directory *directory = context;
    if (weir_web_owns(ticket))
        return weir_web_answer(directory->web, ticket, code, response, text);
    return weir_rpc_server_answer(directory->core.server, ticket, code, response, text);
}

/* ---- opening ---------------------------------------------------------------------------------*/

/* Ids of versions must not repeat those of the server before a restart. */
static uint64_t random_seed(void)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != (ssize_t)sizeof(seed))
        seed = weir_unix_ms() << 20 ^ weir_now_ns();
    return seed;
}

static bool is_redis(const char *store)
{
    return store != NULL && strncmp(store, "redis://", 8) == 0;
}

static weir_status open_log(weir_directory *directory)
{
    weir_directory_core *core = &directory->core;
    const char *store = directory->options.store;
    const weir_log_reader reader = weir_directory_core_reader(core);
    if (store == NULL || strcmp(store, "memory") == 0)
        return weir_memory_log_open(&reader, &core->log);
    if (!is_redis(store))
        return weir_fail(WEIR_ERR_INVALID,
                         "the store is neither memory nor redis://[USER:PASSWORD@]HOST:PORT[/DB]");
    const weir_redis_log_options options = { .url = store, .name = directory->options.name };
    return weir_redis_log_open(&options, &reader, &core->log);
}

static weir_status open_core(weir_directory *directory)
{
    const weir_directory_options *options = &directory->options;
    unsigned sweep_s = options->sweep_every_s < 86400 ? options->sweep_every_s : 86400;
    const weir_directory_core_options core_options = {
        .store = { .stale_after_ms = (uint64_t)options->stale_after_s * 1000,
                   .delete_after_ms = (uint64_t)options->delete_after_s * 1000 },
        .group_model = options->trainer_model,
        .group_run = options->trainer_run,
        .n_group_workers = options->n_inference_workers,
        .sweep_every_ms = sweep_s * 1000,
        .salt = random_seed(),
        .hooks = { answer, arm_timer, directory },
    };
    weir_status status = weir_directory_core_open(&core_options, &directory->core);
    return status == WEIR_OK ? open_log(directory) : status;
}

static weir_status open_web(weir_directory *directory)
{
    const weir_directory_options *options = &directory->options;
    if (options->http == NULL)
        return WEIR_OK;
    return weir_web_open(&directory->core, options->http, &directory->kept.security,
                         &directory->web);
}

/* Before the server's thread begins. */
static weir_status begin(void *context, weir_rpc_server *server)
{
    weir_directory *directory = context;
    weir_directory_core *core = &directory->core;
    core->server = server;
    weir_status status =
        weir_rpc_server_watch(server, directory->timer_fd, EPOLLIN, timer_rings, directory);
    if (status == WEIR_OK && is_redis(directory->options.store))
        status = weir_redis_log_attach(core->log, server);
    if (status == WEIR_OK)
        status = open_web(directory);
    if (status == WEIR_OK)
        arm_timer(directory, weir_now_ns());
    return status;
}

static weir_status start(weir_directory *directory)
{
    const weir_directory_options *options = &directory->options;
    directory->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (directory->timer_fd < 0)
        return weir_fail(WEIR_ERR_IO, "cannot make a timer: %s", strerror(errno));
    weir_status status = weir_security_resolve(&options->security, &directory->kept);
    if (status == WEIR_OK)
        status = open_core(directory);
    if (status != WEIR_OK)
        return status;
    const weir_rpc_server_options server_options = {
        .listen = options->listen != NULL ? options->listen : "127.0.0.1:0",
        .services = directory->core.services,
        .n_services = WEIR_DIRECTORY_SERVICES,
        .gone = weir_directory_core_gone,
        .gone_context = &directory->core,
        .refused = weir_directory_core_refused,
        .refused_context = &directory->core,
        .begin = begin,
        .begin_context = directory,
        .security = directory->kept.security,
        .open_service = &model_express__health__health_service__descriptor,
        .limits = { .message_bytes = WEIR_DIRECTORY_MESSAGE_BYTES,
                    .connections = options->max_connections,
                    .connections_per_host = options->max_connections_per_host },
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
    directory->options = known;
    directory->timer_fd = -1;
    status = start(directory);
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
    weir_rpc_server_close(directory->server); /* its thread uses the rest */
    weir_web_close(directory->web);
    weir_directory_core_close(&directory->core);
    if (directory->timer_fd >= 0)
        close(directory->timer_fd);
    weir_security_free(&directory->kept);
    weir_free(directory);
}

const char *weir_directory_address(const weir_directory *directory)
{
    return weir_rpc_server_address(directory->server);
}

const char *weir_directory_http_address(const weir_directory *directory)
{
    return directory->web != NULL ? weir_web_address(directory->web) : "";
}
