/* SPDX-License-Identifier: Apache-2.0 */
/* frame_listener.c - a socket that listens for links, and what it asks of who connects: TLS, a
 * token.
 *
 * Accepting never blocks: the handshake goes on, and the token is shown, as the link receives.
 */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "rpc/frame_link_core.h"
#include "rpc/rpc_address.h"
#include "rpc/rpc_security.h"

struct weir_frame_listener {
    int fd;
    weir_security_kept kept;
    weir_tls_context *tls; /* NULL: plain text */
    char address[WEIR_RPC_ADDRESS_TEXT];
};

/* Peers cannot connect to a wildcard: they are told this machine's name, if it is known as one. */
static void name_wildcard(weir_rpc_address *address)
{
    if (strcmp(address->host, "0.0.0.0") != 0 && strcmp(address->host, "::") != 0)
        return;
    char host[WEIR_RPC_HOST_BYTES] = "";
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *list = NULL;
    if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == '\0' ||
        getaddrinfo(host, NULL, &hints, &list) != 0)
        return;
    freeaddrinfo(list);
    memcpy(address->host, host, sizeof(host));
}

static weir_status secure_listener(weir_frame_listener *listener, const weir_rpc_address *address,
                                   const weir_rpc_security *security)
{
    if (security == NULL)
        return WEIR_OK;
    weir_status status = weir_security_copy(security, &listener->kept);
    if (status == WEIR_OK)
        status = weir_security_check_listen(&listener->kept.security, address);
    if (status == WEIR_OK)
        status = weir_tls_context_open(&listener->kept.security, WEIR_RPC_SERVER_SIDE,
                                       WEIR_TLS_FRAMES, &listener->tls);
    return status;
}

weir_status weir_frame_listener_open(const char *host, const weir_rpc_security *security,
                                     weir_frame_listener **out)
{
    weir_rpc_address address = { .port = 0 };
    size_t n_host = strlen(host);
    if (n_host == 0 || n_host >= sizeof(address.host))
        return weir_fail(WEIR_ERR_INVALID, "cannot listen on '%.64s': not a host", host);
    memcpy(address.host, host, n_host);
    weir_frame_listener *listener = weir_alloc_zeroed(1, sizeof(*listener));
    if (listener == NULL)
        return WEIR_ERR_NO_MEMORY;
    listener->fd = -1;
    weir_status status = secure_listener(listener, &address, security);
    if (status == WEIR_OK)
        status = weir_rpc_listen(&address, &listener->fd);
    if (status != WEIR_OK) {
        weir_frame_listener_close(listener);
        return status;
    }
    name_wildcard(&address);
    weir_rpc_address_format(&address, listener->address);
    *out = listener;
    return WEIR_OK;
}

void weir_frame_listener_close(weir_frame_listener *listener)
{
    if (listener == NULL)
        return;
    if (listener->fd >= 0)
        close(listener->fd);
    weir_tls_context_close(listener->tls);
    weir_security_free(&listener->kept);
    weir_free(listener);
}

const char *weir_frame_listener_address(const weir_frame_listener *listener)
{
    return listener->address;
}

int weir_frame_listener_fd(const weir_frame_listener *listener)
{
    return listener->fd;
}

/* ---- accepting -------------------------------------------------------------------------------*/

/* What the listener asks of a link; the handshake goes on as bytes come. */
static weir_status accept_link(weir_frame_listener *listener, int fd, const char *who,
                               weir_frame_link **out)
{
    weir_frame_link *link;
    weir_status status = weir_frame_link_open(fd, who, &link);
    if (status != WEIR_OK)
        return status;
    link->asked = listener->kept.security.token != NULL ? &listener->kept : NULL;
    link->asked_until = weir_deadline_in(WEIR_FRAME_TOKEN_MS);
    if (listener->tls != NULL)
        status = weir_tls_session_open(listener->tls, fd, NULL, &link->tls);
    if (status != WEIR_OK) {
        weir_frame_link_close(link);
        return status;
    }
    *out = link;
    return WEIR_OK;
}

weir_status weir_frame_listener_accept(weir_frame_listener *listener, weir_frame_link **out)
{
    struct sockaddr_storage peer;
    socklen_t n_peer = sizeof(peer);
    int fd = accept4(listener->fd, (struct sockaddr *)&peer, &n_peer, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            return weir_fail(WEIR_ERR_IO, "%s: cannot accept: %s", listener->address,
                             strerror(errno));
        return WEIR_IN_PROGRESS; /* nobody waits, or who waited is gone */
    }
    weir_rpc_socket_prepare(fd);
    weir_rpc_address address = { .port = 0 };
    char port[8] = "0", who[WEIR_RPC_ADDRESS_TEXT];
    if (getnameinfo((struct sockaddr *)&peer, n_peer, address.host, sizeof(address.host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return accept_link(listener, fd, "a peer", out);
    snprintf(who, sizeof(who), "%s port %s", address.host, port);
    return accept_link(listener, fd, who, out);
}
