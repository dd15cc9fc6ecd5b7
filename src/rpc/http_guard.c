/* SPDX-License-Identifier: Apache-2.0 */
/* http_guard.c - who may ask for what: methods, tokens, certificates, names of this machine. */
#include <arpa/inet.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "rpc/http_core.h"

/* ---- callers ---------------------------------------------------------------------------------*/

static const char *header_of(const weir_http_exchange *exchange, const char *name)
{
    return MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, name);
}

/* Looked at once per connection. */
static bool has_certificate(const weir_http_exchange *exchange)
{
    weir_http_link *link = exchange->link;
    if (link->is_asked_for_certificate)
        return link->has_certificate;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    unsigned faults = 1;
    link->is_asked_for_certificate = true;
    link->has_certificate =
        info != NULL &&
        gnutls_certificate_verify_peers2((gnutls_session_t)info->tls_session, &faults) == 0 &&
        faults == 0;
    return link->has_certificate;
}

static bool has_token(const weir_http_exchange *exchange)
{
    const char *value = header_of(exchange, MHD_HTTP_HEADER_AUTHORIZATION);
    weir_security_kept *kept = &exchange->link->http->kept;
    return value != NULL && weir_security_accepts_bearer(kept, value, strlen(value));
}

/* "127.0.0.1:8501", "[::1]:8501", "localhost": no name that another could have pointed here. */
static bool is_own_name(const char *host_header)
{
    weir_rpc_address host;
    struct in_addr v4;
    char text[WEIR_RPC_HOST_BYTES];
    if (strlen(host_header) >= sizeof(text))
        return false;
    if (weir_rpc_address_parse(host_header, &host) == WEIR_OK)
        snprintf(text, sizeof(text), "%s", host.host);
    else
        snprintf(text, sizeof(text), "%s", host_header); /* without a port */
    return strcasecmp(text, "localhost") == 0 || strchr(text, ':') != NULL ||
           inet_pton(AF_INET, text, &v4) == 1 || text[0] == '[';
}

/* Another site's page in a browser of this machine reaches us by a name of that site. */
static bool is_rebound(const weir_http_exchange *exchange)
{
    const weir_http_server *http = exchange->link->http;
    const char *host = header_of(exchange, MHD_HTTP_HEADER_HOST);
    return http->kept.security.token == NULL && weir_host_is_loopback(http->listen.host) &&
           host != NULL && !is_own_name(host);
}

/* 0 when it is not said; UINT64_MAX for what is no number. */
static uint64_t said_body_bytes(const weir_http_exchange *exchange)
{
    const char *text = header_of(exchange, MHD_HTTP_HEADER_CONTENT_LENGTH);
    uint64_t n_bytes = 0;
    for (; text != NULL && *text != '\0'; text++) {
        if (*text < '0' || *text > '9' || n_bytes > UINT64_MAX / 16)
            return UINT64_MAX;
        n_bytes = 10 * n_bytes + (uint64_t)(*text - '0');
    }
    return n_bytes;
}

/* By its headers, or by what has come so far. */
static bool is_too_long(const weir_http_exchange *exchange)
{
    uint64_t most = exchange->link->http->limits.body_bytes;
    return said_body_bytes(exchange) > most || exchange->n_received > most;
}

static bool has_body(const weir_http_exchange *exchange)
{
    const char *n_bytes = header_of(exchange, MHD_HTTP_HEADER_CONTENT_LENGTH);
    return (n_bytes != NULL && strcmp(n_bytes, "0") != 0) ||
           header_of(exchange, MHD_HTTP_HEADER_TRANSFER_ENCODING) != NULL;
}

/* The same said twice: to people, and to programs that read JSON. */
typedef struct refusal {
    unsigned status;
    const char *plain, *json;
} refusal;
#define REFUSAL(status, text)                              \
    (refusal)                                              \
    {                                                      \
        (status), text "\n", "{\"error\": \"" text "\"}\n" \
    }

static bool refuse(const weir_http_server *http, weir_http_answer *out, refusal why)
{
    bool in_json = http->methods != NULL;
    const char *text = in_json ? why.json : why.plain;
    *out = (weir_http_answer){ .status = why.status,
                               .type = in_json ? "application/json" : "text/plain; charset=utf-8",
                               .body = text,
                               .n_bytes = strlen(text),
                               .is_constant = true };
    return true;
}

const char *weir_http_methods(const weir_http_exchange *exchange)
{
    const weir_http_server *http = exchange->link->http;
    return http->methods == NULL ? WEIR_HTTP_READS : http->methods(exchange->request.path);
}

/* Methods and bodies. */
static bool refuse_form(const weir_http_exchange *exchange, const char *method,
                        weir_http_answer *out)
{
    const weir_http_server *http = exchange->link->http;
    const char *methods = weir_http_methods(exchange);
    bool is_post = strcmp(method, MHD_HTTP_METHOD_POST) == 0;
    bool reads =
        strcmp(method, MHD_HTTP_METHOD_GET) == 0 || strcmp(method, MHD_HTTP_METHOD_HEAD) == 0;
    bool posts = methods == NULL || strcmp(methods, WEIR_HTTP_POST) == 0;
    if (methods != NULL && !(posts ? is_post : reads))
        return refuse(http, out,
                      posts ? REFUSAL(MHD_HTTP_METHOD_NOT_ALLOWED, "POST alone")
                            : REFUSAL(MHD_HTTP_METHOD_NOT_ALLOWED, "GET and HEAD alone"));
    if (!is_post && has_body(exchange))
        return refuse(http, out, REFUSAL(MHD_HTTP_BAD_REQUEST, "requests have no body here"));
    if (is_post && is_too_long(exchange))
        return refuse(http, out, REFUSAL(MHD_HTTP_CONTENT_TOO_LARGE, "the body is too long"));
    /* Browsers say whose page sends it, and ask nobody before they do. */
    if (is_post && header_of(exchange, MHD_HTTP_HEADER_ORIGIN) != NULL)
        return refuse(http, out, REFUSAL(MHD_HTTP_FORBIDDEN, "nothing is taken from web pages"));
    return false;
}

bool weir_http_refuse(const weir_http_exchange *exchange, const char *method, weir_http_answer *out)
{
    const weir_http_server *http = exchange->link->http;
    const weir_rpc_security *security = &http->kept.security;
    if (refuse_form(exchange, method, out))
        return true;
    if (is_rebound(exchange))
        return refuse(http, out,
                      REFUSAL(MHD_HTTP_FORBIDDEN, "this machine is asked by its own names alone"));
    if (http->is_open != NULL && http->is_open(exchange->request.path))
        return false;
    if (security->certificate != NULL && weir_http_asks_for_certificate(security) &&
        !has_certificate(exchange))
        return refuse(http, out,
                      REFUSAL(MHD_HTTP_FORBIDDEN, "a certificate of the fleet's CA is wanted"));
    if (security->token != NULL && !has_token(exchange))
        return refuse(http, out, REFUSAL(MHD_HTTP_UNAUTHORIZED, "a bearer token is wanted"));
    return false;
}
