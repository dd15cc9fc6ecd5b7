/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_worker.c - the two workers of transport ucx: the server's, with its thread, and the reader's.
 *
 * Over RDMA and through mapped memory a read takes nothing from its owner. Others UCX emulates by
 * messages: the owner's worker must answer. The server's thread does that, asleep on the worker's
 * event descriptor in between, so that the owner's own threads may sleep or compute.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "transport/transport_host.h"
#include "transport/ucx_stream.h"

#define RETRY_MS 10      /* after a worker could not be armed */
#define TURNS 64         /* of the server: before it looks whether to stop */
#define TURN_NS 1000000u /* of the reader: one step may copy a megabyte */

weir_status weir_ucx_fail(ucs_status_t status, const char *who, const char *what)
{
    weir_status result = WEIR_ERR_PEER_LOST;
    if (status == UCS_ERR_NO_MEMORY || status == UCS_ERR_NO_RESOURCE)
        result = WEIR_ERR_NO_MEMORY;
    else if (status == UCS_ERR_UNSUPPORTED || status == UCS_ERR_NOT_IMPLEMENTED)
        result = WEIR_ERR_UNSUPPORTED;
    else if (status == UCS_ERR_NO_DEVICE || status == UCS_ERR_INVALID_PARAM)
        result = WEIR_ERR_UNSUPPORTED;
    return weir_fail(result, "%s: %s: %s", who, what, ucs_status_string(status));
}

const char *weir_ucx_host(void)
{
    static _Thread_local char host[WEIR_KEY_TEXT];
    weir_transport_host("pid", host);
    return host;
}

int weir_ucx_process_open(const char *host, uint32_t process, bool *out_gone)
{
    int fd = -1;
    *out_gone = false;
#ifdef SYS_pidfd_open
    if (strcmp(host, weir_ucx_host()) == 0) {
        fd = (int)syscall(SYS_pidfd_open, (pid_t)process, 0);
        *out_gone = fd < 0 && errno == ESRCH;
    }
#else
    (void)host, (void)process;
#endif
    return fd;
}

/* Threads of several groups open workers of one context, whose lists UCX does not lock. */
static pthread_mutex_t workers_lock = PTHREAD_MUTEX_INITIALIZER;

void weir_ucx_worker_close(ucp_worker_h worker)
{
    pthread_mutex_lock(&workers_lock);
    ucp_worker_destroy(worker);
    pthread_mutex_unlock(&workers_lock);
}

weir_status weir_ucx_worker_open(ucx_transport *ucx, ucp_worker_h *out, int *out_fd)
{
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SERIALIZED,
    };
    ucp_worker_h worker;
    pthread_mutex_lock(&workers_lock);
    ucs_status_t status = ucp_worker_create(ucx->context, &params, &worker);
    pthread_mutex_unlock(&workers_lock);
    if (status != UCS_OK)
        return weir_ucx_fail(status, "transport ucx", "cannot create a worker");
    status = ucp_worker_get_efd(worker, out_fd);
    if (status != UCS_OK) {
        weir_ucx_worker_close(worker);
        return weir_ucx_fail(status, "transport ucx", "cannot wait for a worker");
    }
    *out = worker;
    return WEIR_OK;
}

/* ---- server ----------------------------------------------------------------------------------*/

/* Gives how long to sleep on the worker's descriptor: for ever when it is armed, not at all when it
 * has more to do. */
static int serve_turn(ucx_server *server)
{
    for (int i = 0; i < TURNS && ucp_worker_progress(server->worker) != 0; i++) {
    }
    ucs_status_t status = ucp_worker_arm(server->worker); /* busy when a turn was cut short */
    return status == UCS_OK ? -1 : status == UCS_ERR_BUSY ? 0 : RETRY_MS;
}

static void *serve(void *argument)
{
    ucx_server *server = argument;
    struct pollfd fds[] = { { .fd = server->ucx_fd, .events = POLLIN },
                            { .fd = server->stop_fd, .events = POLLIN } };
    for (;;) {
        int sleep_ms = serve_turn(server);
        poll(fds, 2, sleep_ms); /* EINTR is one more turn */
        if (fds[1].revents != 0)
            return NULL;
    }
}

/* The application's signal handlers must not run on our thread. */
static int start_thread(ucx_server *server)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&server->thread, NULL, serve, server);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

/* Plain memory, not of UCX's: it is read by a message to this worker, so who has read it knows that
 * the worker is there, that it is the right one, and that both directions of the link are up. */
static weir_status map_greeting(ucx_transport *ucx)
{
    ucx_server *server = &ucx->server;
    server->greeting = weir_alloc(sizeof(*server->greeting));
    if (server->greeting == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (getrandom(server->greeting, sizeof(*server->greeting), 0) < 0)
        return weir_fail_errno("transport ucx: no random bytes");
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
        .address = server->greeting,
        .length = sizeof(*server->greeting),
    };
    ucs_status_t status = ucp_mem_map(ucx->context, &params, &server->greeting_memory);
    if (status == UCS_OK)
        return WEIR_OK;
    server->greeting_memory = NULL;
    return weir_ucx_fail(status, "transport ucx", "cannot map its greeting");
}

static weir_status encode_with(ucx_server *server, weir_ucx_address *address)
{
    ucp_address_t *worker;
    ucs_status_t status = ucp_worker_get_address(server->worker, &worker, &address->worker_bytes);
    if (status != UCS_OK)
        return weir_ucx_fail(status, "transport ucx", "a worker has no address");
    address->worker = (const uint8_t *)worker;
    weir_status result = weir_ucx_address_encode(address, &server->address);
    ucp_worker_release_address(server->worker, worker);
    return result;
}

static weir_status encode_address(ucx_transport *ucx)
{
    ucx_server *server = &ucx->server;
    weir_ucx_address address = { .process = (uint32_t)getpid(),
                                 .greeting = (uintptr_t)server->greeting,
                                 .greeting_is = *server->greeting };
    void *rkey;
    ucs_status_t status =
        ucp_rkey_pack(ucx->context, server->greeting_memory, &rkey, &address.rkey_bytes);
    if (status != UCS_OK)
        return weir_ucx_fail(status, "transport ucx", "its greeting has no remote key");
    address.rkey = rkey;
    snprintf(address.ucx_version, sizeof(address.ucx_version), "%s", ucp_get_version_string());
    snprintf(address.host, sizeof(address.host), "%s", weir_ucx_host());
    weir_key_buffer where = { 0 };
    weir_status result = WEIR_OK;
    if (server->streams != NULL)
        result = weir_ucx_group_key_encode(&server->streams->where, &where);
    address.stream = where.data;
    address.stream_bytes = where.n_bytes;
    if (result == WEIR_OK)
        result = encode_with(server, &address);
    weir_key_buffer_close(&where);
    ucp_rkey_buffer_release(rkey);
    return result;
}

static weir_status run_server(ucx_server *server)
{
    server->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (server->stop_fd < 0)
        return weir_fail_errno("transport ucx: cannot make an event descriptor");
    if (start_thread(server) == 0)
        return WEIR_OK;
    close(server->stop_fd);
    return weir_fail(WEIR_ERR_NO_MEMORY, "transport ucx: cannot start its thread");
}

/* A host where nobody can listen has readers that need no TCP, or none. */
static weir_status open_streams(ucx_transport *ucx)
{
    ucx_server *server = &ucx->server;
    if (!ucx->streams)
        return WEIR_OK;
    weir_status status = weir_stream_server_open(*server->greeting, &server->streams);
    if (status == WEIR_OK || status == WEIR_ERR_NO_MEMORY)
        return status;
    weir_log(WEIR_LOG_WARN, "%s: readers that need TCP cannot come", weir_last_error());
    return WEIR_OK;
}

static void close_worker(ucx_transport *ucx)
{
    ucx_server *server = &ucx->server;
    weir_stream_server_close(server->streams);
    server->streams = NULL;
    weir_ucx_worker_close(server->worker);
    server->worker = NULL;
    if (server->greeting_memory != NULL)
        ucp_mem_unmap(ucx->context, server->greeting_memory);
    server->greeting_memory = NULL;
    weir_free(server->greeting);
    server->greeting = NULL;
}

weir_status weir_ucx_server_open(ucx_transport *ucx)
{
    ucx_server *server = &ucx->server;
    if (server->worker != NULL)
        return WEIR_OK;
    weir_status status = weir_ucx_worker_open(ucx, &server->worker, &server->ucx_fd);
    if (status != WEIR_OK)
        return status;
    status = map_greeting(ucx);
    if (status == WEIR_OK)
        status = open_streams(ucx);
    if (status == WEIR_OK)
        status = encode_address(ucx);
    if (status == WEIR_OK)
        status = run_server(server);
    if (status != WEIR_OK)
        close_worker(ucx);
    return status;
}

void weir_ucx_server_close(ucx_transport *ucx)
{
    ucx_server *server = &ucx->server;
    if (server->worker != NULL) {
        eventfd_write(server->stop_fd, 1);
        pthread_join(server->thread, NULL);
        close_worker(ucx);
        close(server->stop_fd);
    }
    weir_key_buffer_close(&server->address);
}

/* ---- reader ----------------------------------------------------------------------------------*/

weir_status weir_ucx_reader_open(ucx_transport *ucx)
{
    if (ucx->reader_stuck)
        return weir_fail(WEIR_ERR_DEVICE,
                         "transport ucx: a cancelled read has not ended: close it");
    if (ucx->reader != NULL)
        return WEIR_OK;
    return weir_ucx_worker_open(ucx, &ucx->reader, &ucx->reader_fd);
}

void weir_ucx_reader_turn(ucx_transport *ucx, int process_fd, unsigned ms)
{
    if (ucx->reader_stuck)
        return;
    unsigned n_events = 0, last = 1;
    uint64_t end_ns = weir_now_ns() + TURN_NS;
    while (last != 0 && weir_now_ns() < end_ns) {
        last = ucp_worker_progress(ucx->reader);
        n_events += last;
    }
    if (n_events > 0 || ms == 0 || ucp_worker_arm(ucx->reader) != UCS_OK)
        return;
    struct pollfd fds[] = { { .fd = ucx->reader_fd, .events = POLLIN },
                            { .fd = process_fd, .events = POLLIN } }; /* -1 is passed over */
    poll(fds, 2, (int)ms);
}
