/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_peer.c - whom transport ucx reads from, and which of their regions. */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "transport/ucx_stream.h"

#define CLOSE_MS 1000u
#define IDLE_MS 2u
#define CHECKED_PAGES ((size_t)1 << 16)
/* UCX takes no length with its bytes. Behind ours lies as much padding as its decoders can walk
 * over, so that no claim within them leads outside. */
#define PADDING ((size_t)20 << 10)

void weir_ucx_peer_lost(ucx_peer *peer, weir_status status, const char *why)
{
    if (peer->lost != WEIR_OK)
        return;
    peer->lost = status;
    snprintf(peer->lost_why, sizeof(peer->lost_why), "%s", why);
}

void weir_ucx_peer_check(ucx_peer *peer)
{
    struct pollfd fd = { .fd = peer->process_fd, .events = POLLIN };
    if (peer->process_fd >= 0 && poll(&fd, 1, 0) > 0)
        weir_ucx_peer_lost(peer, WEIR_ERR_PEER_LOST, "its process has ended");
}

static void on_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    (void)endpoint;
    weir_ucx_peer_lost(argument, WEIR_ERR_PEER_LOST, ucs_status_string(status));
}

static bool must_give_up(const ucx_transport *ucx)
{
    struct pollfd fds[WEIR_UCX_GIVE_UP];
    for (int i = 0; i < WEIR_UCX_GIVE_UP; i++)
        fds[i] = (struct pollfd){ .fd = ucx->give_up_fds[i], .events = POLLIN | POLLRDHUP };
    return fds[0].fd >= 0 && poll(fds, WEIR_UCX_GIVE_UP, 0) > 0;
}

/* Waits for a request that UCX gave back, and gives it back to UCX. */
static ucs_status_t wait_request(ucx_transport *ucx, ucs_status_ptr_t request, ucx_peer *peer,
                                 weir_deadline deadline)
{
    if (!UCS_PTR_IS_PTR(request))
        return UCS_PTR_STATUS(request);
    ucs_status_t status;
    while ((status = ucp_request_check_status(request)) == UCS_INPROGRESS) {
        weir_ucx_peer_check(peer);
        if (weir_deadline_passed(deadline) || ucx->reader_stuck)
            break;
        if (peer->endpoint != NULL && (peer->lost != WEIR_OK || must_give_up(ucx)))
            break; /* closing it is never given up: what it reads into goes after that */
        weir_ucx_reader_turn(ucx, peer->endpoint != NULL ? peer->process_fd : -1, IDLE_MS);
    }
    ucp_request_free(request);
    return status;
}

void weir_ucx_peer_close_endpoint(ucx_peer *peer)
{
    ucx_transport *ucx = (ucx_transport *)peer->base.transport;
    ucp_ep_h endpoint = peer->endpoint;
    if (endpoint == NULL)
        return;
    peer->endpoint = NULL;
    if (ucx->reader_stuck)
        return;
    ucp_request_param_t params = { .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                   .flags = UCP_EP_CLOSE_FLAG_FORCE };
    ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint, &params);
    wait_request(ucx, request, peer, weir_deadline_in(CLOSE_MS));
}

/* ---- connect ---------------------------------------------------------------------------------*/

/* Remote keys of one minor release agree with each other. */
static bool version_agrees(const char *theirs)
{
    const char *ours = ucp_get_version_string();
    const char *dot = strchr(ours, '.');
    size_t n = dot != NULL ? strcspn(dot + 1, ".") + (size_t)(dot + 1 - ours) : strlen(ours);
    return strncmp(ours, theirs, n) == 0 && (theirs[n] == '.' || theirs[n] == '\0');
}

static weir_status check_version(const char *theirs, const char *who)
{
    if (version_agrees(theirs))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "%s: peer runs UCX %s, this process %s: their remote keys are not compatible",
                     who, theirs, ucp_get_version_string());
}

/* On this host a process that ends is seen at once, however UCX happens to reach it. */
static weir_status watch_process(ucx_peer *peer, const weir_ucx_address *address)
{
    bool gone;
    peer->process_fd = weir_ucx_process_open(address->host, address->process, &gone);
    if (gone)
        return weir_fail(WEIR_ERR_PEER_LOST, "%s: peer went away: there is no process %u",
                         peer->who, address->process);
    return WEIR_OK;
}

static weir_status create_endpoint(ucx_peer *peer, const weir_ucx_address *address)
{
    ucx_transport *ucx = (ucx_transport *)peer->base.transport;
    uint8_t worker[WEIR_KEY_BLOB + PADDING];
    memset(worker + address->worker_bytes, 0xff, sizeof(worker) - address->worker_bytes);
    memcpy(worker, address->worker, address->worker_bytes);
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = (const ucp_address_t *)(const void *)worker,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = { .cb = on_error, .arg = peer },
    };
    ucs_status_t status = ucp_ep_create(ucx->reader, &params, &peer->endpoint);
    if (status == UCS_OK)
        return WEIR_OK;
    peer->endpoint = NULL;
    if (status == UCS_ERR_UNREACHABLE && ucx->streams && address->stream_bytes == 0)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: there is nothing but TCP between the two, and it does not say where "
                         "it listens",
                         peer->who);
    return weir_ucx_fail(status, peer->who, "cannot connect");
}

static ucs_status_t unpack_key(ucx_peer *peer, const uint8_t *data, size_t n_bytes, ucp_rkey_h *out)
{
    uint8_t rkey[WEIR_KEY_BLOB + PADDING];
    memset(rkey + n_bytes, 0, sizeof(rkey) - n_bytes);
    memcpy(rkey, data, n_bytes);
    return ucp_ep_rkey_unpack(peer->endpoint, rkey, out);
}

static weir_status read_greeting(ucx_peer *peer, const weir_ucx_address *address, ucp_rkey_h rkey,
                                 unsigned timeout_ms)
{
    ucx_transport *ucx = (ucx_transport *)peer->base.transport;
    ucp_request_param_t params = { .op_attr_mask = 0 };
    ucs_status_ptr_t request = ucp_get_nbx(peer->endpoint, &peer->greeting, sizeof(peer->greeting),
                                           address->greeting, rkey, &params);
    ucs_status_t status = wait_request(ucx, request, peer, weir_deadline_in(timeout_ms));
    if (peer->lost != WEIR_OK)
        return weir_fail(peer->lost, "%s: peer went away: %s", peer->who, peer->lost_why);
    if (status == UCS_INPROGRESS)
        return weir_fail(WEIR_ERR_TIMED_OUT, "%s: no answer to a connection for %.1f s", peer->who,
                         timeout_ms * 1e-3);
    if (status != UCS_OK)
        return weir_ucx_fail(status, peer->who, "cannot connect");
    if (peer->greeting != address->greeting_is)
        return weir_fail(WEIR_ERR_PEER_LOST,
                         "%s: peer went away: another process answers at its address", peer->who);
    return WEIR_OK;
}

/* Creating an endpoint asks nobody. A peer that is closed again before it has answered, moreover,
 * brings the owner's process down in UCX 1.13 (an assertion on its unsent reply); so a connection
 * counts only once something was read over it. */
static weir_status reach(ucx_peer *peer, const weir_ucx_address *address, unsigned timeout_ms)
{
    ucp_rkey_h rkey;
    ucs_status_t status = unpack_key(peer, address->rkey, address->rkey_bytes, &rkey);
    if (status != UCS_OK)
        return weir_ucx_fail(status, peer->who, "cannot use its address");
    weir_status result = read_greeting(peer, address, rkey, timeout_ms);
    if (result != WEIR_OK)
        weir_ucx_peer_close_endpoint(peer); /* ends the read, before its key goes */
    ucp_rkey_destroy(rkey);
    return result;
}

/* Whatever keeps UCX from connecting, TCP serves as well where both sides have it. */
static weir_status reach_somehow(ucx_peer *peer, const weir_ucx_address *address,
                                 unsigned timeout_ms)
{
    const ucx_transport *ucx = (const ucx_transport *)peer->base.transport;
    weir_status status = create_endpoint(peer, address);
    if (status == WEIR_OK)
        return reach(peer, address, timeout_ms);
    if (status == WEIR_ERR_NO_MEMORY || !ucx->streams || address->stream_bytes == 0)
        return status;
    status = weir_stream_connect(peer, address, timeout_ms);
    if (status == WEIR_OK)
        weir_log(WEIR_LOG_DEBUG, "ucx: %s: is read over TCP", peer->who);
    return status;
}

weir_status weir_ucx_connect(weir_transport *transport, const void *address, size_t n_bytes,
                             const char *who, unsigned timeout_ms, weir_peer **out)
{
    ucx_transport *ucx = (ucx_transport *)transport;
    weir_ucx_address where;
    weir_status status = weir_ucx_address_decode(address, n_bytes, who, &where);
    if (status == WEIR_OK)
        status = check_version(where.ucx_version, who);
    if (status == WEIR_OK)
        status = weir_ucx_reader_open(ucx);
    if (status != WEIR_OK)
        return status;
    size_t who_bytes = strlen(who) + 1;
    ucx_peer *peer = weir_alloc_zeroed(1, sizeof(*peer) + who_bytes);
    if (peer == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(peer->who, who, who_bytes);
    peer->base = (weir_peer){ transport, peer->who };
    status = watch_process(peer, &where);
    if (status == WEIR_OK)
        status = reach_somehow(peer, &where, timeout_ms);
    if (status != WEIR_OK) {
        weir_ucx_disconnect(&peer->base);
        return status;
    }
    *out = &peer->base;
    return WEIR_OK;
}

void weir_ucx_disconnect(weir_peer *base)
{
    if (base == NULL)
        return;
    ucx_peer *peer = (ucx_peer *)base;
    weir_ucx_finish(&peer->transfer.base);
    weir_ucx_peer_close_endpoint(peer);
    weir_stream_disconnect(peer);
    if (peer->process_fd >= 0)
        close(peer->process_fd);
    weir_free(peer);
}

/* ---- remote regions --------------------------------------------------------------------------*/

/* A mapping is as long as its owner's segment, whatever the key says. */
static bool range_is_mapped(const uint8_t *data, uint64_t n_bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t at = (uintptr_t)data / page * page;
    uintptr_t end;
    if (__builtin_add_overflow((uintptr_t)data, (uintptr_t)n_bytes, &end))
        return false;
    static _Thread_local unsigned char resident[CHECKED_PAGES];
    while (at < end) {
        size_t left = end - at;
        size_t step = left < CHECKED_PAGES * page ? left : CHECKED_PAGES * page;
        if (mincore((void *)at, step, resident) != 0)
            return false;
        at += step;
    }
    return true;
}

static weir_status unpack(ucx_peer *peer, const weir_ucx_key *key, ucx_remote *remote)
{
    ucs_status_t status = unpack_key(peer, key->rkey, key->rkey_bytes, &remote->rkey);
    if (status != UCS_OK)
        return weir_ucx_fail(status, peer->who, "cannot use the key of a region");
    void *mapped;
    if (ucp_rkey_ptr(remote->rkey, key->base, &mapped) != UCS_OK)
        return WEIR_OK;
    if (!range_is_mapped(mapped, key->n_bytes)) {
        ucp_rkey_destroy(remote->rkey);
        return weir_fail(WEIR_ERR_CORRUPT, "%s: key claims %llu bytes, more than its segment has",
                         peer->who, (unsigned long long)key->n_bytes);
    }
    remote->mapped = mapped;
    return WEIR_OK;
}

weir_status weir_ucx_import(weir_peer *base, const void *key, size_t n_bytes,
                            weir_remote_region **out)
{
    ucx_peer *peer = (ucx_peer *)base;
    weir_ucx_key decoded;
    weir_status status = weir_ucx_key_decode(key, n_bytes, peer->who, &decoded);
    if (status == WEIR_OK)
        status = check_version(decoded.ucx_version, peer->who);
    if (status != WEIR_OK)
        return status;
    weir_ucx_peer_check(peer);
    if (peer->lost != WEIR_OK || (peer->endpoint == NULL && peer->stream == NULL))
        return weir_fail(peer->lost, "%s: peer went away: %s", peer->who, peer->lost_why);
    ucx_remote *remote = weir_alloc_zeroed(1, sizeof(*remote));
    if (remote == NULL)
        return WEIR_ERR_NO_MEMORY;
    remote->base.peer = base;
    remote->address = decoded.base;
    remote->n_bytes = decoded.n_bytes;
    if (peer->stream == NULL)
        status = unpack(peer, &decoded, remote);
    if (status != WEIR_OK) {
        weir_free(remote);
        return status;
    }
    weir_log(WEIR_LOG_DEBUG, "ucx: %s: a region of %llu bytes is %s", peer->who,
             (unsigned long long)remote->n_bytes,
             peer->stream != NULL ? "sent over TCP"
             : remote->mapped     ? "mapped"
                                  : "read by UCX");
    *out = &remote->base;
    return WEIR_OK;
}

void weir_ucx_forget(weir_remote_region *base)
{
    if (base == NULL)
        return;
    ucx_remote *remote = (ucx_remote *)base;
    if (remote->rkey != NULL)
        ucp_rkey_destroy(remote->rkey);
    weir_free(remote);
}

weir_status weir_ucx_map(weir_remote_region *base, void **out, uint64_t *out_n_bytes)
{
    const ucx_remote *remote = (const ucx_remote *)base;
    if (remote->mapped == NULL)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: a region of %llu bytes is not in memory that this process can map",
                         base->peer->who, (unsigned long long)remote->n_bytes);
    *out = remote->mapped;
    *out_n_bytes = remote->n_bytes;
    return WEIR_OK;
}
