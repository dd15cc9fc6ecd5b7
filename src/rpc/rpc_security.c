/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_security.c - one copy of every string, wiped when it goes; the token as its file has it. */
#include "rpc/rpc_security.h"

#include <arpa/inet.h>
#include <openssl/crypto.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "base/env.h"
#include "base/error.h"

/* ---- copies ----------------------------------------------------------------------------------*/

static size_t bytes_of(const char *text)
{
    return text != NULL ? strlen(text) + 1 : 0;
}

static const char *put(char **at, const char *text)
{
    if (text == NULL)
        return NULL;
    char *own = *at;
    memcpy(own, text, strlen(text) + 1);
    *at += strlen(text) + 1;
    return own;
}

/* What was read some time ago may have been replaced since. */
static weir_status watch_token(weir_security_kept *kept)
{
    if (kept->security.token_file == NULL || kept->security.token == NULL)
        return WEIR_OK;
    kept->watch = weir_alloc(sizeof(*kept->watch));
    if (kept->watch == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_token_watch_init(kept->watch, kept->security.token);
    kept->security.token = kept->watch->now;
    weir_token_watch_look(kept->watch, kept->security.token_file, true);
    return WEIR_OK;
}

static const char *unless_empty(const char *text)
{
    return text != NULL && text[0] != '\0' ? text : NULL;
}

weir_status weir_security_copy(const weir_rpc_security *from, weir_security_kept *out)
{
    *out = (weir_security_kept){ .n_text = 0 };
    if (from == NULL)
        return WEIR_OK;
    const weir_rpc_security some = {
        .certificate = unless_empty(from->certificate),
        .key = unless_empty(from->key),
        .ca = unless_empty(from->ca),
        .token = unless_empty(from->token),
        .token_file = unless_empty(from->token_file),
        .insecure = from->insecure,
    };
    if ((some.certificate == NULL) != (some.key == NULL))
        return weir_fail(WEIR_ERR_INVALID, "a %s is given without its %s: %s",
                         some.key == NULL ? "certificate" : "key",
                         some.key == NULL ? "key" : "certificate",
                         some.key == NULL ? some.certificate : some.key);
    size_t n_text = bytes_of(some.certificate) + bytes_of(some.key) + bytes_of(some.ca) +
                    bytes_of(some.token) + bytes_of(some.token_file);
    char *text = weir_alloc(n_text);
    if (text == NULL)
        return WEIR_ERR_NO_MEMORY;
    char *at = text;
    out->text = text;
    out->n_text = n_text;
    out->security = (weir_rpc_security){ .certificate = put(&at, some.certificate),
                                         .key = put(&at, some.key),
                                         .ca = put(&at, some.ca),
                                         .token = put(&at, some.token),
                                         .token_file = put(&at, some.token_file),
                                         .insecure = some.insecure };
    weir_status status = watch_token(out);
    if (status != WEIR_OK)
        weir_security_free(out);
    return status;
}

void weir_security_free(weir_security_kept *kept)
{
    if (kept->text != NULL)
        OPENSSL_cleanse(kept->text, kept->n_text);
    weir_free(kept->text);
    if (kept->watch != NULL)
        OPENSSL_cleanse(kept->watch, sizeof(*kept->watch));
    weir_free(kept->watch);
    *kept = (weir_security_kept){ .n_text = 0 };
}

/* ---- the environment -------------------------------------------------------------------------*/

static const char *either(const char *given, weir_env_id id)
{
    return given != NULL ? given : weir_env_string(id);
}

weir_status weir_security_resolve(const weir_security *given, weir_security_kept *out)
{
    static const weir_security none = { .insecure = false };
    char token[WEIR_TOKEN_BYTES];
    *out = (weir_security_kept){ .n_text = 0 };
    if (given == NULL)
        given = &none;
    weir_rpc_security merged = {
        .certificate = either(given->certificate, WEIR_ENV_TLS_CERTIFICATE),
        .key = either(given->key, WEIR_ENV_TLS_KEY),
        .ca = either(given->ca, WEIR_ENV_TLS_CA),
        .token = given->token,
        .insecure = given->insecure || weir_env_unsigned(WEIR_ENV_INSECURE, 0) == 1,
    };
    const char *token_file = either(given->token_file, WEIR_ENV_TOKEN_FILE);
    weir_status status = WEIR_OK;
    if (unless_empty(given->token) != NULL && unless_empty(given->token_file) != NULL)
        return weir_fail(WEIR_ERR_INVALID, "a token and a token_file are given: %s",
                         given->token_file);
    if (unless_empty(given->token_file) != NULL)
        merged.token = NULL;
    token_file = unless_empty(token_file);
    if (merged.token != NULL)
        status = weir_token_check(merged.token, "the token that was given");
    else if (token_file != NULL)
        status = weir_token_read(token_file, token);
    if (merged.token == NULL && token_file != NULL) {
        merged.token = token;
        merged.token_file = token_file;
    }
    if (status == WEIR_OK)
        status = weir_security_copy(&merged, out);
    OPENSSL_cleanse(token, sizeof(token));
    return status;
}

/* ---- where to listen, whom to tell -----------------------------------------------------------*/

bool weir_host_is_loopback(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    if (inet_pton(AF_INET6, host, &v6) == 1)
        return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127);
    return strcasecmp(host, "localhost") == 0;
}

weir_status weir_security_check_listen(const weir_rpc_security *security,
                                       const weir_rpc_address *address)
{
    char text[WEIR_RPC_ADDRESS_TEXT];
    if (security->insecure || weir_host_is_loopback(address->host))
        return WEIR_OK;
    bool asks_callers =
        security->token != NULL || (security->ca != NULL && strcmp(security->ca, "system") != 0);
    if (security->certificate != NULL && asks_callers)
        return WEIR_OK;
    weir_rpc_address_format(address, text);
    return weir_fail(WEIR_ERR_REFUSED,
                     "%s: not without %s%s%s: anybody who reaches it could %s (--insecure, "
                     "WEIR_INSECURE=1: all the same)",
                     text, security->certificate == NULL ? "a certificate" : "",
                     security->certificate == NULL && !asks_callers ? " and " : "",
                     asks_callers ? "" : "a token (or a CA that signs its callers)",
                     asks_callers ? "listen" : "call");
}

weir_status weir_security_check_call(const weir_rpc_security *security,
                                     const weir_rpc_address *address)
{
    if (security->token == NULL || security->ca != NULL || security->insecure ||
        weir_host_is_loopback(address->host))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_REFUSED,
                     "no token is sent without TLS beyond this machine: it needs a CA (--insecure, "
                     "WEIR_INSECURE=1: all the same)");
}

/* ---- tokens ----------------------------------------------------------------------------------*/

bool weir_security_refresh(weir_security_kept *kept, bool at_once)
{
    return kept->watch != NULL &&
           weir_token_watch_look(kept->watch, kept->security.token_file, at_once);
}

static bool knows(const weir_security_kept *kept, const void *bytes, size_t n_bytes)
{
    const char *before = kept->watch != NULL ? weir_token_watch_before(kept->watch) : NULL;
    return weir_token_is(kept->security.token, bytes, n_bytes) ||
           (before != NULL && weir_token_is(before, bytes, n_bytes));
}

bool weir_security_accepts(weir_security_kept *kept, const void *bytes, size_t n_bytes)
{
    if (kept->security.token == NULL)
        return false;
    weir_security_refresh(kept, false);
    return knows(kept, bytes, n_bytes) ||
           (weir_security_refresh(kept, true) && knows(kept, bytes, n_bytes));
}

bool weir_security_accepts_bearer(weir_security_kept *kept, const char *value, size_t n_value)
{
    static const char scheme[] = "Bearer ";
    const size_t n_scheme = sizeof(scheme) - 1;
    return n_value > n_scheme && strncasecmp(value, scheme, n_scheme) == 0 &&
           weir_security_accepts(kept, value + n_scheme, n_value - n_scheme);
}

const char *weir_security_other_token(weir_security_kept *kept, const char *shown)
{
    if (kept->watch == NULL)
        return NULL;
    weir_security_refresh(kept, true);
    if (strcmp(kept->security.token, shown) != 0)
        return kept->security.token;
    const char *before = weir_token_watch_before(kept->watch);
    return before != NULL && strcmp(before, shown) != 0 ? before : NULL;
}
