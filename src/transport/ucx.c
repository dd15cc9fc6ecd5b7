/* SPDX-License-Identifier: Apache-2.0 */
/* ucx.c - transport ucx: shared memory and RDMA through UCX's one-sided reads, TCP without UCX.
 *
 * Opens UCX with defaults that its own do not give: error handling that keeps shared memory in use,
 * a keep-alive that notices a dead peer within two seconds, and never TCP: UCX 1.13 emulates reads
 * over TCP, and aborts an owner whose reader dies within one (ucx_stream.h is what is used
 * instead). A UCX_… variable that its user has set beats the default of the same name.
 */
#include "transport/ucx.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#if __has_include(<ucs/debug/log_def.h>)
#include <ucs/debug/log_def.h>
#include <ucs/type/status.h>
#define HAVE_UCX_LOG 1
#endif

#include "base/alloc.h"
#include "base/env.h"
#include "base/error.h"
#include "base/log.h"
#include "transport/transport_lacks.h"
#include "transport/transport_table.h"
#include "transport/ucx_group.h"

#define KEEPALIVE_MS 1000u

typedef struct setting {
    const char *name; /* without UCX_ */
    const char *value;
} setting;

/* With peer error handling UCX leaves out shared memory unless MM_ERROR_HANDLING is set: reads on
 * one host would go over TCP. The heap is no place for a region: the pages of a released one are
 * given back (ucx_region.c). */
static const setting settings[] = {
    { "ALLOC_PRIO", "md:sysv,md:posix,huge,md:*,mmap" },
    { "MM_ERROR_HANDLING", "y" },
};

/* A name that this UCX does not know is left out: names come and go between its releases. */
static void set_default(ucp_config_t *config, const setting *row)
{
    char variable[64];
    snprintf(variable, sizeof(variable), "UCX_%s", row->name);
    if (weir_env_foreign_is_set(variable))
        return;
    ucs_status_t status = ucp_config_modify(config, row->name, row->value);
    if (status != UCS_OK)
        weir_log(WEIR_LOG_DEBUG, "ucx: %s=%s not set: %s", row->name, row->value,
                 ucs_status_string(status));
}

/* NULL: what UCX chooses by itself. */
static weir_status choose_tls(ucp_config_t *config, const char *tls)
{
    if (tls == NULL)
        return WEIR_OK;
    ucs_status_t status = ucp_config_modify(config, "TLS", tls);
    if (status != UCS_OK)
        return weir_fail(WEIR_ERR_INVALID, "transport ucx: '%s' is no list of UCX transports: %s",
                         tls, ucs_status_string(status));
    return WEIR_OK;
}

static weir_status make_config(const char *tls, ucp_config_t **out)
{
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK)
        return weir_ucx_fail(status, "transport ucx", "cannot read its configuration");
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        set_default(config, &settings[i]);
    char keepalive[32];
    snprintf(keepalive, sizeof(keepalive), "%ums",
             weir_env_unsigned(WEIR_ENV_UCX_KEEPALIVE_MS, KEEPALIVE_MS));
    set_default(config, &(setting){ "KEEPALIVE_INTERVAL", keepalive });
    weir_status result = choose_tls(config, tls);
    if (result != WEIR_OK) {
        ucp_config_release(config);
        return result;
    }
    *out = config;
    return WEIR_OK;
}

#if HAVE_UCX_LOG
/* UCX prints to stdout; a library must not. Errors that matter come back as statuses too. */
static ucs_log_func_rc_t log_line(const char *file, unsigned line, const char *function,
                                  ucs_log_level_t level,
                                  const ucs_log_component_config_t *component, const char *format,
                                  va_list args)
{
    (void)file, (void)line, (void)function, (void)component;
    char text[512];
    vsnprintf(text, sizeof(text), format, args);
    /* A peer that is gone is an error to UCX, but to Weir it is the caller's to judge. */
    weir_log(level <= UCS_LOG_LEVEL_WARN ? WEIR_LOG_INFO : WEIR_LOG_DEBUG, "ucx: %s", text);
    return UCS_LOG_FUNC_RC_STOP;
}

static void take_log(void)
{
    if (!weir_env_foreign_is_set("UCX_LOG_LEVEL") && !weir_env_foreign_is_set("UCX_LOG_FILE"))
        ucs_log_push_handler(log_line);
}
#else
static void take_log(void)
{
}
#endif

static weir_status open_context(const char *tls, ucp_context_h *out)
{
    static pthread_once_t log_taken = PTHREAD_ONCE_INIT;
    pthread_once(&log_taken, take_log);
    ucp_config_t *config = NULL;
    weir_status result = make_config(tls, &config);
    if (result != WEIR_OK)
        return result;
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED,
        .features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP,
        .mt_workers_shared = 1, /* servers' threads, the caller's and groups' share the context */
    };
    ucs_status_t status = ucp_init(&params, config, out);
    ucp_config_release(config);
    if (status == UCS_OK)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_UNSUPPORTED, "transport ucx: cannot start with transports '%s': %s",
                     tls != NULL ? tls : "all", ucs_status_string(status));
}

static const char *wanted_tls(const ucx_transport *ucx)
{
    return ucx->tls != NULL ? ucx->tls : weir_env_foreign("UCX_TLS");
}

weir_status weir_ucx_without_tcp(const char *tls, char **out)
{
    static const char without[] = "^tcp";
    bool all = tls == NULL || strcmp(tls, "all") == 0;
    size_t room = (all ? 0 : strlen(tls)) + sizeof(without) + 1, at = 0;
    char *list = weir_alloc_zeroed(room, 1);
    if (list == NULL)
        return WEIR_ERR_NO_MEMORY;
    *out = list;
    if (all || tls[0] == '^') {
        snprintf(list, room, "%s%s", all ? without : tls, all ? "" : ",tcp");
        return WEIR_OK;
    }
    while (*tls != '\0') {
        size_t n = strcspn(tls, ",");
        if (n != 3 || strncmp(tls, "tcp", 3) != 0)
            at += (size_t)snprintf(list + at, room - at, "%s%.*s", at > 0 ? "," : "", (int)n, tls);
        tls += n + (tls[n] == ',');
    }
    return WEIR_OK;
}

/* Whether a list lets UCX choose TCP. */
static bool has_tcp(const char *tls)
{
    if (tls == NULL || strcmp(tls, "all") == 0)
        return true;
    bool all_but = tls[0] == '^';
    for (tls += all_but; *tls != '\0';) {
        size_t n = strcspn(tls, ",");
        if (n == 3 && strncmp(tls, "tcp", 3) == 0)
            return !all_but;
        tls += n + (tls[n] == ',');
    }
    return all_but;
}

/* What UCX calls "self" reaches nobody, but registers memory: it is there where TCP was all that is
 * listed, or all that this host has of the list. */
static weir_status open_without_tcp(ucx_transport *ucx)
{
    const char *wanted = wanted_tls(ucx);
    char *list = NULL, *tls = NULL;
    ucx->streams = has_tcp(wanted);
    weir_status status = weir_ucx_without_tcp(wanted, &list);
    if (status != WEIR_OK)
        return status;
    bool adds_self = ucx->streams && list[0] != '^';
    size_t room = strlen(list) + sizeof(",self");
    tls = weir_alloc(room);
    if (tls != NULL)
        snprintf(tls, room, "%s%s%s", list, adds_self && list[0] != '\0' ? "," : "",
                 adds_self ? "self" : "");
    status = tls != NULL ? open_context(tls, &ucx->context) : WEIR_ERR_NO_MEMORY;
    weir_free(list);
    weir_free(tls);
    return status;
}

weir_status weir_ucx_open_quiet(ucx_transport *ucx)
{
    char *tls = NULL;
    if (ucx->quiet_tried)
        return WEIR_OK;
    weir_status status = weir_ucx_without_tcp(wanted_tls(ucx), &tls);
    if (status != WEIR_OK)
        return status;
    ucx->quiet_tried = true;
    if (tls[0] == '\0' || open_context(tls, &ucx->quiet) != WEIR_OK)
        ucx->quiet = NULL;
    weir_free(tls);
    return WEIR_OK;
}

static void close_transport(weir_transport *transport)
{
    if (transport == NULL)
        return;
    ucx_transport *ucx = (ucx_transport *)transport;
    weir_ucx_keys_close(ucx);
    weir_ucx_server_close(ucx);
    if (ucx->reader != NULL)
        weir_ucx_worker_close(ucx->reader);
    if (ucx->streams_fd >= 0)
        close(ucx->streams_fd);
    weir_ucx_released_close(ucx);
    if (!ucx->beside)
        ucp_cleanup(ucx->context);
    if (ucx->quiet != NULL)
        ucp_cleanup(ucx->quiet);
    weir_free(ucx->tls);
    weir_free(ucx);
}

static weir_status open_transport(const weir_transport_options *given, weir_transport **out)
{
    weir_transport_options options;
    weir_status status =
        weir_transport_struct_read(given, sizeof(options), "weir_transport_options", &options);
    if (status != WEIR_OK)
        return status;
    ucx_transport *ucx = weir_alloc_zeroed(1, sizeof(*ucx));
    if (ucx == NULL)
        return WEIR_ERR_NO_MEMORY;
    ucx->base.ops = &weir_transport_ucx;
    ucx->pool = options.pool;
    memset(ucx->give_up_fds, -1, sizeof(ucx->give_up_fds));
    ucx->streams_fd = -1;
    const char *tls = options.tls != NULL ? options.tls : weir_env_string(WEIR_ENV_UCX_TLS);
    ucx->tls = tls != NULL ? weir_strdup(tls) : NULL;
    status = tls != NULL && ucx->tls == NULL ? WEIR_ERR_NO_MEMORY : open_without_tcp(ucx);
    if (status != WEIR_OK) {
        weir_free(ucx->tls);
        weir_free(ucx);
        return status;
    }
    *out = &ucx->base;
    return WEIR_OK;
}

weir_status weir_ucx_open_beside(ucx_transport *of, weir_transport **out)
{
    ucx_transport *ucx = weir_alloc_zeroed(1, sizeof(*ucx));
    if (ucx == NULL)
        return WEIR_ERR_NO_MEMORY;
    ucx->base.ops = &weir_transport_ucx;
    ucx->context = of->quiet;
    ucx->beside = true;
    ucx->streams_fd = -1;
    memset(ucx->give_up_fds, -1, sizeof(ucx->give_up_fds));
    *out = &ucx->base;
    return WEIR_OK;
}

static weir_status address_of(weir_transport *transport, const void **out, size_t *out_n_bytes)
{
    ucx_transport *ucx = (ucx_transport *)transport;
    weir_status status = weir_ucx_server_open(ucx);
    if (status != WEIR_OK)
        return status;
    *out = ucx->server.address.data;
    *out_n_bytes = ucx->server.address.n_bytes;
    return WEIR_OK;
}

const weir_transport_ops weir_transport_ucx = {
    .size = sizeof(weir_transport_ops),
    .name = "ucx",
    .caps = WEIR_CAP_READ | WEIR_CAP_MATCHED | WEIR_CAP_LIVENESS | WEIR_CAP_MAP,
    .memory = WEIR_MEMORY_HOST,
    .open = open_transport,
    .close = close_transport,
    .allocate = weir_ucx_allocate,
    .expose = weir_ucx_expose,
    .release = weir_ucx_release,
    .region_data = weir_ucx_region_data,
    .seal = weir_ucx_seal,
    .region_key = weir_ucx_region_key,
    .address = address_of,
    .connect = weir_ucx_connect,
    .disconnect = weir_ucx_disconnect,
    .import = weir_ucx_import,
    .forget = weir_ucx_forget,
    .post = weir_ucx_post,
    .test = weir_ucx_test,
    .finish = weir_ucx_finish,
    .map = weir_ucx_map,
    .group_key = weir_ucx_group_make_key,
    .group_open = weir_ucx_group_open,
    .group_test = weir_ucx_group_test,
    .group_broadcast = weir_ucx_group_broadcast,
    .group_close = weir_ucx_group_close,
    .group_progress = weir_ucx_group_progress,
    .group_leave = weir_ucx_group_leave,
};
