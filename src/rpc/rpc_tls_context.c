/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_tls_context.c - from PEM files to what OpenSSL keeps of them, read again when they change.
 *
 * Certificates are short-lived where machines renew them: a server would otherwise have to be
 * started again every day. Sessions that are open keep what they began with. */
#include <errno.h>
#include <openssl/err.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "rpc/rpc_certificate.h"
#include "rpc/rpc_tls_core.h"

#define LOOK_AGAIN_MS 1000u
/* Of TLS 1.2; those of 1.3 are all as good. HTTP/2 forbids the rest (RFC 9113, 9.2.2). */
#define CIPHERS "ECDHE+AESGCM:ECDHE+CHACHA20"

void weir_tls_reason(char *out, size_t n_out)
{
    unsigned long code = ERR_peek_error();
    const char *reason = ERR_SYSTEM_ERROR(code) ? strerror((int)ERR_GET_REASON(code))
                                                : ERR_reason_error_string(code);
    snprintf(out, n_out, "%s", reason != NULL ? reason : "OpenSSL gives no reason");
    ERR_clear_error();
}

static weir_status file_failed(const char *what, const char *path)
{
    char reason[128];
    weir_tls_reason(reason, sizeof(reason));
    if (access(path, R_OK) != 0)
        return weir_fail_errno("cannot read the %s %s", what, path);
    return weir_fail(WEIR_ERR_INVALID, "cannot use the %s %s: %s", what, path, reason);
}

/* ---- one reading of the files ----------------------------------------------------------------*/

static bool is_system(const char *ca)
{
    return strcmp(ca, "system") == 0;
}

/* Nobody is asked for a passphrase at a terminal. */
static int no_passphrase(char *buffer, int n_buffer, int for_writing, void *context)
{
    (void)buffer;
    (void)n_buffer;
    (void)for_writing;
    (void)context;
    return -1;
}

static weir_status use_certificate(SSL_CTX *ssl, const weir_rpc_security *security)
{
    if (security->certificate == NULL)
        return WEIR_OK;
    if (SSL_CTX_use_certificate_chain_file(ssl, security->certificate) != 1)
        return file_failed("certificate", security->certificate);
    if (SSL_CTX_use_PrivateKey_file(ssl, security->key, SSL_FILETYPE_PEM) == 1)
        return WEIR_OK;
    if (ERR_GET_REASON(ERR_peek_error()) != X509_R_KEY_VALUES_MISMATCH)
        return file_failed("key", security->key);
    ERR_clear_error();
    return weir_fail(WEIR_ERR_INVALID, "the key %s is not that of the certificate %s",
                     security->key, security->certificate);
}

/* The handshake goes on to where a failure is put into words; see rpc_tls.c. */
static int on_verify(int is_fine, X509_STORE_CTX *store);

static weir_status believe(SSL_CTX *ssl, weir_rpc_side side, const char *ca)
{
    /* A certificate of some public authority says nothing about a caller. */
    if (ca == NULL || (side == WEIR_RPC_SERVER_SIDE && is_system(ca)))
        return WEIR_OK;
    SSL_CTX_set_verify(ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, on_verify);
    if (is_system(ca))
        return SSL_CTX_set_default_verify_paths(ssl) == 1 ? WEIR_OK
                                                          : file_failed("CA", "of this machine");
    if (SSL_CTX_load_verify_locations(ssl, ca, NULL) != 1)
        return file_failed("CA", ca);
    if (side == WEIR_RPC_CLIENT_SIDE)
        return WEIR_OK;
    STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(ca);
    if (names == NULL)
        return file_failed("CA", ca);
    SSL_CTX_set_client_CA_list(ssl, names);
    return WEIR_OK;
}

/* Both sides must mean the same protocol within TLS; who does not say is believed to. */
static int choose_protocol(SSL *session, const unsigned char **out, unsigned char *n_out,
                           const unsigned char *offered, unsigned n_offered, void *user_data)
{
    (void)session;
    const weir_tls_context *context = user_data;
    unsigned char *chosen;
    if (SSL_select_next_proto(&chosen, n_out, context->protocols, (unsigned)context->n_protocols,
                              offered, n_offered) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

static bool set_manners(SSL_CTX *ssl, weir_tls_context *context)
{
    SSL_CTX_set_options(ssl, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET);
    SSL_CTX_set_num_tickets(ssl, 0); /* connections are kept: resuming them would save nothing */
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_clear_mode(ssl, SSL_MODE_AUTO_RETRY); /* records without data end a turn too */
    SSL_CTX_set_default_passwd_cb(ssl, no_passphrase);
    if (context->side == WEIR_RPC_SERVER_SIDE) {
        SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS); /* thousands are idle */
        SSL_CTX_set_alpn_select_cb(ssl, choose_protocol, context);
    } else if (SSL_CTX_set_alpn_protos(ssl, context->protocols, (unsigned)context->n_protocols) !=
               0) {
        return false;
    }
    return SSL_CTX_set_min_proto_version(ssl, TLS1_2_VERSION) == 1 &&
           SSL_CTX_set_cipher_list(ssl, CIPHERS) == 1;
}

static weir_status build(weir_tls_context *context, SSL_CTX **out)
{
    const weir_rpc_security *security = &context->kept.security;
    bool serves = context->side == WEIR_RPC_SERVER_SIDE;
    ERR_clear_error();
    SSL_CTX *ssl = SSL_CTX_new(serves ? TLS_server_method() : TLS_client_method());
    if (ssl == NULL || !set_manners(ssl, context)) {
        SSL_CTX_free(ssl);
        ERR_clear_error();
        return weir_fail(WEIR_ERR_NO_MEMORY, "OpenSSL gives no context for TLS");
    }
    weir_status status = use_certificate(ssl, security);
    if (status == WEIR_OK)
        status = believe(ssl, context->side, security->ca);
    if (status != WEIR_OK) {
        SSL_CTX_free(ssl);
        return status;
    }
    *out = ssl;
    return WEIR_OK;
}

/* ---- files that change -----------------------------------------------------------------------*/

static bool stamp_all(const weir_rpc_security *security, weir_file_stamp out[WEIR_TLS_FILES])
{
    const char *ca = security->ca != NULL && is_system(security->ca) ? NULL : security->ca;
    /* One moment between removed and written: what is in force stays. */
    return weir_file_stamp_take(security->certificate, &out[0]) &&
           weir_file_stamp_take(security->key, &out[1]) && weir_file_stamp_take(ca, &out[2]);
}

void weir_tls_context_refresh(weir_tls_context *context)
{
    weir_file_stamp stamps[WEIR_TLS_FILES];
    SSL_CTX *ssl;
    if (!stamp_all(&context->kept.security, stamps))
        return;
    bool is_same = memcmp(stamps, context->stamps, sizeof(stamps)) == 0;
    if (is_same && (context->look_again == 0 || !weir_deadline_passed(context->look_again)))
        return;
    if (!is_same)
        context->is_warned = false;
    memcpy(context->stamps, stamps, sizeof(stamps));
    if (build(context, &ssl) == WEIR_OK) {
        SSL_CTX_free(context->ssl);
        context->ssl = ssl;
        context->look_again = 0;
        weir_log(WEIR_LOG_INFO, "TLS: read %s again",
                 context->kept.security.certificate != NULL ? context->kept.security.certificate
                                                            : context->kept.security.ca);
        return;
    }
    if (!context->is_warned)
        weir_log(WEIR_LOG_WARN, "TLS: what was read before stays in force: %s", weir_last_error());
    context->is_warned = true;
    context->look_again = weir_deadline_in(LOOK_AGAIN_MS); /* a key may follow its certificate */
}

/* ---- life ------------------------------------------------------------------------------------*/

static bool is_wanted(const weir_rpc_security *security, weir_rpc_side side)
{
    if (security == NULL)
        return false;
    const char *file = side == WEIR_RPC_SERVER_SIDE ? security->certificate : security->ca;
    return file != NULL && file[0] != '\0';
}

weir_status weir_tls_context_open(const weir_rpc_security *security, weir_rpc_side side,
                                  const char *protocol, weir_tls_context **out)
{
    *out = NULL;
    if (!is_wanted(security, side))
        return WEIR_OK;
    weir_tls_context *context = weir_alloc_zeroed(1, sizeof(*context));
    if (context == NULL)
        return WEIR_ERR_NO_MEMORY;
    size_t n_protocol = strlen(protocol);
    context->side = side;
    context->protocols[0] = (unsigned char)n_protocol;
    memcpy(context->protocols + 1, protocol, n_protocol);
    context->n_protocols = n_protocol + 1;
    weir_status status = weir_security_copy(security, &context->kept);
    context->socket = weir_tls_socket_method();
    if (status == WEIR_OK && context->socket == NULL)
        status = weir_fail(WEIR_ERR_NO_MEMORY, "OpenSSL gives no context for TLS");
    if (status == WEIR_OK) {
        stamp_all(&context->kept.security, context->stamps);
        status = build(context, &context->ssl);
    }
    if (status != WEIR_OK) {
        weir_tls_context_close(context);
        return status;
    }
    *out = context;
    return WEIR_OK;
}

void weir_tls_context_close(weir_tls_context *context)
{
    if (context == NULL)
        return;
    while (context->spare != NULL) {
        weir_tls_session *next = context->spare->next;
        weir_free(context->spare);
        context->spare = next;
    }
    SSL_CTX_free(context->ssl);
    BIO_meth_free(context->socket);
    weir_security_free(&context->kept);
    weir_free(context);
}

/* ---- doubts ----------------------------------------------------------------------------------*/

static void describe_doubt(const weir_tls_session *session, X509_STORE_CTX *store, char *out,
                           size_t n_out)
{
    char text[192];
    X509 *certificate = X509_STORE_CTX_get_current_cert(store);
    const char *whose = X509_STORE_CTX_get_error_depth(store) == 0
                            ? "its certificate"
                            : "a certificate that signed its own";
    const char *ca = session->context->kept.security.ca;
    int error = X509_STORE_CTX_get_error(store);
    switch (error) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        weir_certificate_date(X509_get0_notAfter(certificate), text, sizeof(text));
        snprintf(out, n_out, "%s has expired (not after %s)", whose, text);
        return;
    case X509_V_ERR_CERT_NOT_YET_VALID:
        weir_certificate_date(X509_get0_notBefore(certificate), text, sizeof(text));
        snprintf(out, n_out, "%s is not valid yet (not before %s)", whose, text);
        return;
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
        weir_certificate_names(certificate, text, sizeof(text));
        snprintf(out, n_out, "its certificate is for %s, not '%s'", text, session->host);
        return;
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        snprintf(out, n_out, "its certificate is not signed by %s%s",
                 is_system(ca) ? "a CA of this machine" : "CA ", is_system(ca) ? "" : ca);
        return;
    default:
        snprintf(out, n_out, "%s will not do: %s", whose, X509_verify_cert_error_string(error));
    }
}

static int on_verify(int is_fine, X509_STORE_CTX *store)
{
    const SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    weir_tls_session *session = SSL_get_app_data(ssl);
    if (!is_fine && session->doubt[0] == '\0')
        describe_doubt(session, store, session->doubt, sizeof(session->doubt));
    return is_fine;
}
