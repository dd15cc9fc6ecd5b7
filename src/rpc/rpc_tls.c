/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_tls.c - sessions: OpenSSL between its caller and a socket that never blocks.
 *
 * The socket is read and written here and not by OpenSSL, whose own way raises SIGPIPE. What goes
 * wrong is put into words once, by what is known best: our doubts of the peer's certificate, bytes
 * that are no TLS, the peer's alert, the socket. */
#include "rpc/rpc_tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/alloc.h"
#include "base/error.h"
#include "rpc/rpc_certificate.h"
#include "rpc/rpc_tls_core.h"

#define MAX_SPARE 64u

/* ---- the socket ------------------------------------------------------------------------------*/

static int socket_write(BIO *bio, const char *data, int n_data)
{
    weir_tls_session *session = BIO_get_data(bio);
    ssize_t n;
    do {
        n = send(session->fd, data, (size_t)n_data, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    BIO_clear_retry_flags(bio);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        BIO_set_retry_write(bio);
    else if (n < 0)
        session->socket_errno = errno;
    return (int)n;
}

static int socket_read(BIO *bio, char *buffer, int n_buffer)
{
    weir_tls_session *session = BIO_get_data(bio);
    ssize_t n;
    do {
        n = recv(session->fd, buffer, (size_t)n_buffer, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    BIO_clear_retry_flags(bio);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        BIO_set_retry_read(bio);
    else if (n < 0)
        session->socket_errno = errno;
    if (n == 0)
        session->is_at_end = true;
    if (n > 0 && !session->has_peeked) {
        session->has_peeked = true; /* TLS begins with a handshake or an alert */
        session->is_plain = buffer[0] != 0x16 && buffer[0] != 0x15;
    }
    return (int)n;
}

static long socket_control(BIO *bio, int command, long number, void *pointer)
{
    (void)number;
    (void)pointer;
    if (command == BIO_CTRL_EOF)
        return ((const weir_tls_session *)BIO_get_data(bio))->is_at_end;
    return command == BIO_CTRL_FLUSH || command == BIO_CTRL_DUP;
}

static int socket_create(BIO *bio)
{
    BIO_set_init(bio, 1);
    return 1;
}

BIO_METHOD *weir_tls_socket_method(void)
{
    BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "weir socket");
    if (method == NULL)
        return NULL;
    BIO_meth_set_write(method, socket_write);
    BIO_meth_set_read(method, socket_read);
    BIO_meth_set_ctrl(method, socket_control);
    BIO_meth_set_create(method, socket_create);
    return method;
}

/* ---- life ------------------------------------------------------------------------------------*/

/* Whom the certificate must name; a name goes with the greeting too. */
static bool set_host(weir_tls_session *session, const char *host)
{
    struct in6_addr ignored;
    snprintf(session->host, sizeof(session->host), "%s", host);
    if (inet_pton(AF_INET, host, &ignored) == 1 || inet_pton(AF_INET6, host, &ignored) == 1)
        return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(session->ssl), host) == 1;
    SSL_set_hostflags(session->ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_set1_host(session->ssl, host) == 1 &&
           SSL_set_tlsext_host_name(session->ssl, host) == 1;
}

static bool begin(weir_tls_session *session, const char *host)
{
    session->ssl = SSL_new(session->context->ssl);
    BIO *bio = session->ssl != NULL ? BIO_new(session->context->socket) : NULL;
    if (bio == NULL)
        return false;
    BIO_set_data(bio, session);
    SSL_set_bio(session->ssl, bio, bio);
    SSL_set_app_data(session->ssl, session);
    if (session->context->side == WEIR_RPC_SERVER_SIDE) {
        SSL_set_accept_state(session->ssl);
        return true;
    }
    SSL_set_connect_state(session->ssl);
    return set_host(session, host);
}

void weir_tls_allow(weir_tls_session *session, unsigned handshake_ms)
{
    session->handshake_ms = handshake_ms;
    session->deadline = weir_deadline_in(handshake_ms);
}

static weir_tls_session *take_session(weir_tls_context *context)
{
    weir_tls_session *session = context->spare;
    if (session == NULL)
        return weir_alloc_zeroed(1, sizeof(*session));
    context->spare = session->next;
    context->n_spare--;
    memset(session, 0, sizeof(*session));
    return session;
}

static void keep_session(weir_tls_context *context, weir_tls_session *session)
{
    if (context->n_spare == MAX_SPARE) {
        weir_free(session);
        return;
    }
    session->next = context->spare;
    context->spare = session;
    context->n_spare++;
}

weir_status weir_tls_session_open(weir_tls_context *context, int fd, const char *host,
                                  weir_tls_session **out)
{
    weir_tls_context_refresh(context);
    weir_tls_session *session = take_session(context);
    if (session == NULL)
        return WEIR_ERR_NO_MEMORY;
    session->context = context;
    session->fd = fd;
    weir_tls_allow(session, WEIR_TLS_HANDSHAKE_MS);
    ERR_clear_error();
    if (!begin(session, host)) {
        weir_tls_session_close(session);
        return weir_fail(WEIR_ERR_NO_MEMORY, "OpenSSL gives no session for TLS");
    }
    *out = session;
    return WEIR_OK;
}

void weir_tls_session_close(weir_tls_session *session)
{
    if (session == NULL)
        return;
    if (session->deadline == 0 && session->status == WEIR_OK)
        SSL_shutdown(session->ssl);
    SSL_free(session->ssl);
    ERR_clear_error();
    keep_session(session->context, session);
}

weir_deadline weir_tls_deadline(const weir_tls_session *session)
{
    return session->deadline;
}

bool weir_tls_wants_write(const weir_tls_session *session)
{
    return session->wants_write;
}

bool weir_tls_has_bytes(const weir_tls_session *session)
{
    return SSL_pending(session->ssl) > 0;
}

const char *weir_tls_peer_name(const weir_tls_session *session)
{
    return session->peer_name;
}

/* ---- what went wrong -------------------------------------------------------------------------*/

/* Who speaks plain text into TLS sees an alert, and so can tell; OpenSSL would be silent. */
static weir_status plain_peer(const weir_tls_session *session)
{
    static const unsigned char alert[] = { 0x15, 0x03, 0x01, 0, 2, 2, 70 }; /* protocol_version */
    if (session->context->side == WEIR_RPC_CLIENT_SIDE)
        return weir_fail(WEIR_ERR_REFUSED, "the server does not speak TLS");
    ssize_t n = send(session->fd, alert, sizeof(alert), MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)n; /* it did not listen anyway */
    return weir_fail(WEIR_ERR_FORMAT, "it does not speak TLS");
}

/* What the peer says of us. */
static weir_status judge_reason(const weir_tls_session *session, int reason)
{
    const char *own = session->context->kept.security.certificate;
    const char *shown = own != NULL ? own : "none";
    switch (reason) {
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
        return weir_fail(WEIR_ERR_REFUSED, "the other side asks for a client certificate");
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return weir_fail(WEIR_ERR_REFUSED, "it shows no client certificate");
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
        return weir_fail(WEIR_ERR_REFUSED,
                         "the other side's CA did not sign the certificate shown to it (%s)",
                         shown);
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
        return weir_fail(WEIR_ERR_REFUSED, "the certificate shown to the other side (%s) expired",
                         shown);
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
        return weir_fail(WEIR_ERR_REFUSED,
                         "the other side does not accept the certificate shown to it (%s)", shown);
    case SSL_R_TLSV1_ALERT_NO_APPLICATION_PROTOCOL:
    case SSL_R_NO_APPLICATION_PROTOCOL:
        return weir_fail(WEIR_ERR_REFUSED, "what is spoken there within TLS is not %.31s",
                         (const char *)session->context->protocols + 1);
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
    case SSL_R_UNSUPPORTED_PROTOCOL:
        return weir_fail(WEIR_ERR_REFUSED, "the other side speaks no TLS of 1.2 or later");
    default:
        return WEIR_OK;
    }
}

static weir_status lost(const weir_tls_session *session)
{
    const char *when = session->deadline != 0 ? " in the midst of the TLS handshake" : "";
    if (session->socket_errno != 0)
        return weir_fail(WEIR_ERR_PEER_LOST, "connection lost%s: %s", when,
                         strerror(session->socket_errno));
    return weir_fail(WEIR_ERR_PEER_LOST, "connection closed by the other side%s", when);
}

/* An alert that says why may be here although the socket takes nothing any more. */
static void look_for_alert(weir_tls_session *session)
{
    unsigned char byte;
    size_t n;
    if (session->socket_errno == 0 || session->is_at_end)
        return;
    ERR_clear_error();
    if (SSL_read_ex(session->ssl, &byte, 1, &n) == 1)
        ERR_clear_error();
}

static weir_status explain(weir_tls_session *session)
{
    char reason[128];
    if (ERR_peek_error() == 0 || ERR_SYSTEM_ERROR(ERR_peek_error()))
        look_for_alert(session);
    if (session->doubt[0] != '\0')
        return weir_fail(WEIR_ERR_REFUSED, "%s", session->doubt);
    if (session->is_plain)
        return plain_peer(session);
    unsigned long code = ERR_peek_error();
    weir_status status = judge_reason(session, (int)ERR_GET_REASON(code));
    if (status != WEIR_OK)
        return status;
    if (session->is_at_end || session->socket_errno != 0 || code == 0)
        return lost(session);
    weir_tls_reason(reason, sizeof(reason));
    return weir_fail(session->deadline != 0 ? WEIR_ERR_REFUSED : WEIR_ERR_FORMAT, "TLS%s: %s",
                     session->deadline != 0 ? " handshake" : "", reason);
}

static weir_status end_with(weir_tls_session *session, weir_status status)
{
    ERR_clear_error();
    session->status = status;
    session->wants_write = false;
    weir_error_save(&session->failed);
    return status;
}

/* What OpenSSL's call came to. */
static weir_status judge(weir_tls_session *session, int result)
{
    int error = SSL_get_error(session->ssl, result);
    /* Later on, what OpenSSL has to say beside our bytes leaves with the next of them. */
    session->wants_write = error == SSL_ERROR_WANT_WRITE && session->deadline != 0;
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
        return WEIR_IN_PROGRESS;
    if (error == SSL_ERROR_ZERO_RETURN)
        return end_with(session, lost(session));
    return end_with(session, explain(session));
}

/* ---- the handshake ---------------------------------------------------------------------------*/

static weir_status greet(weir_tls_session *session)
{
    const unsigned char *protocol = NULL;
    unsigned n_protocol = 0;
    session->deadline = 0;
    session->wants_write = false;
    X509 *certificate = SSL_get0_peer_certificate(session->ssl);
    if (certificate != NULL)
        weir_certificate_subject(certificate, session->peer_name, sizeof(session->peer_name));
    SSL_get0_alpn_selected(session->ssl, &protocol, &n_protocol);
    if (session->context->side == WEIR_RPC_CLIENT_SIDE && n_protocol == 0)
        return end_with(session,
                        weir_fail(WEIR_ERR_REFUSED, "what is spoken there within TLS is not %.31s",
                                  (const char *)session->context->protocols + 1));
    return WEIR_OK;
}

weir_status weir_tls_handshake(weir_tls_session *session)
{
    if (session->status != WEIR_OK) {
        weir_error_restore(&session->failed);
        return session->status;
    }
    if (session->deadline == 0)
        return WEIR_OK;
    ERR_clear_error();
    int result = SSL_do_handshake(session->ssl);
    if (result == 1)
        return greet(session);
    weir_status status = judge(session, result);
    if (status == WEIR_IN_PROGRESS && weir_deadline_passed(session->deadline))
        return end_with(session, weir_fail(WEIR_ERR_TIMED_OUT, "no TLS handshake within %.1f s",
                                           session->handshake_ms / 1000.0));
    return status;
}

/* ---- bytes -----------------------------------------------------------------------------------*/

weir_status weir_tls_receive(weir_tls_session *session, void *buffer, size_t n_bytes, size_t *out_n)
{
    weir_status status = weir_tls_handshake(session);
    if (status != WEIR_OK)
        return status;
    ERR_clear_error();
    int result = SSL_read_ex(session->ssl, buffer, n_bytes, out_n);
    if (result != 1)
        return judge(session, result);
    return WEIR_OK;
}

weir_status weir_tls_send(weir_tls_session *session, const void *data, size_t n_bytes,
                          size_t *out_n)
{
    weir_status status = weir_tls_handshake(session);
    if (status != WEIR_OK)
        return status;
    ERR_clear_error();
    int result = SSL_write_ex(session->ssl, data, n_bytes, out_n);
    if (result != 1)
        return judge(session, result);
    session->wants_write = false;
    return WEIR_OK;
}
