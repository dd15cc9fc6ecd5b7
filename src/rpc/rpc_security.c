/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_security.c - one copy of every string, wiped when it goes. */
#include "rpc/rpc_security.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/env.h"
#include "base/error.h"
#include "base/log.h"

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
        .insecure = from->insecure,
    };
    if ((some.certificate == NULL) != (some.key == NULL))
        return weir_fail(WEIR_ERR_INVALID, "a %s is given without its %s: %s",
                         some.key == NULL ? "certificate" : "key",
                         some.key == NULL ? "key" : "certificate",
                         some.key == NULL ? some.certificate : some.key);
    size_t n_text =
        bytes_of(some.certificate) + bytes_of(some.key) + bytes_of(some.ca) + bytes_of(some.token);
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
                                         .insecure = some.insecure };
    return WEIR_OK;
}

void weir_security_free(weir_security_kept *kept)
{
    if (kept->text != NULL)
        OPENSSL_cleanse(kept->text, kept->n_text);
    weir_free(kept->text);
    *kept = (weir_security_kept){ .n_text = 0 };
}

/* ---- the environment and the token's file ----------------------------------------------------*/

static weir_status check_token(const char *token, const char *whence)
{
    if (strlen(token) >= WEIR_TOKEN_BYTES)
        return weir_fail(WEIR_ERR_INVALID, "%s: a token has at most %d bytes", whence,
                         WEIR_TOKEN_BYTES - 1);
    for (const char *c = token; *c != '\0'; c++) {
        if (*c <= 0x20 || *c >= 0x7f)
            return weir_fail(WEIR_ERR_INVALID,
                             "%s: a token is printable ASCII without spaces, byte %zu is 0x%02x",
                             whence, (size_t)(c - token), (unsigned char)*c);
    }
    return WEIR_OK;
}

/* Reads until the buffer is full or the file ends. */
static weir_status read_all(int fd, const char *path, char *out, size_t n_out, size_t *out_n)
{
    for (*out_n = 0; *out_n < n_out;) {
        ssize_t n = read(fd, out + *out_n, n_out - *out_n);
        if (n < 0 && errno != EINTR)
            return weir_fail_errno("cannot read the token's file %s", path);
        if (n == 0)
            return WEIR_OK;
        if (n > 0)
            *out_n += (size_t)n;
    }
    return weir_fail(WEIR_ERR_INVALID, "%s: a token has at most %d bytes", path,
                     WEIR_TOKEN_BYTES - 1);
}

static weir_status read_token(const char *path, char out[WEIR_TOKEN_BYTES])
{
    struct stat about;
    size_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return weir_fail_errno("cannot open the token's file %s", path);
    if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && (about.st_mode & 077) != 0)
        weir_log(WEIR_LOG_WARN, "%s: others than its owner can read the token (mode %04o)", path,
                 (unsigned)about.st_mode & 07777);
    weir_status status = read_all(fd, path, out, WEIR_TOKEN_BYTES, &n);
    close(fd);
    if (status != WEIR_OK)
        return status;
    while (n > 0 && strchr("\r\n \t", out[n - 1]) != NULL)
        n--;
    out[n] = '\0';
    if (n == 0 || strlen(out) != n)
        return weir_fail(WEIR_ERR_INVALID, "%s: there is no token in it", path);
    return check_token(out, path);
}

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
    const char *token_file = weir_env_string(WEIR_ENV_TOKEN_FILE);
    weir_status status = WEIR_OK;
    if (merged.token != NULL)
        status = check_token(merged.token, "the token that was given");
    else if (token_file != NULL)
        status = read_token(token_file, token);
    if (merged.token == NULL && token_file != NULL)
        merged.token = token;
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

bool weir_token_is(const char *token, const void *bytes, size_t n_bytes)
{
    return strlen(token) == n_bytes && CRYPTO_memcmp(token, bytes, n_bytes) == 0;
}

bool weir_token_is_bearer(const char *token, const char *value, size_t n_value)
{
    static const char scheme[] = "Bearer ";
    const size_t n_scheme = sizeof(scheme) - 1;
    return n_value > n_scheme && strncasecmp(value, scheme, n_scheme) == 0 &&
           weir_token_is(token, value + n_scheme, n_value - n_scheme);
}
