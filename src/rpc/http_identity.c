/* SPDX-License-Identifier: Apache-2.0 */
/* http_identity.c - certificates, keys and CAs of HTTP, read again when their files are replaced.
 *
 * libmicrohttpd reads them once. Here each connection is given what the files have when it begins,
 * and keeps it; as with gRPC, a renewed certificate needs no restart. */
#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "rpc/http_core.h"

#define MAX_PEM_BYTES ((size_t)1 << 20)
#define LOOK_AGAIN_MS 1000u

/* ---- files -----------------------------------------------------------------------------------*/

static weir_status read_pem(const char *path, const char *what, char **out)
{
    if (path == NULL)
        return WEIR_OK;
    char *text = weir_alloc_zeroed(1, MAX_PEM_BYTES);
    if (text == NULL)
        return WEIR_ERR_NO_MEMORY;
    *out = text;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return weir_fail_errno("cannot open the %s %s", what, path);
    setvbuf(file, NULL, _IONBF, 0); /* no second copy of a key */
    size_t n = fread(text, 1, MAX_PEM_BYTES - 1, file);
    bool is_whole = feof(file) != 0;
    fclose(file);
    if (n == 0 || !is_whole || strlen(text) != n)
        return weir_fail(WEIR_ERR_FORMAT, "%s: no PEM file of a %s", path, what);
    return WEIR_OK;
}

bool weir_http_asks_for_certificate(const weir_rpc_security *security)
{
    return security->ca != NULL && strcmp(security->ca, "system") != 0;
}

weir_status weir_http_credentials_read(const weir_rpc_security *security,
                                       weir_http_credentials *out)
{
    *out = (weir_http_credentials){ .ca = NULL };
    weir_status status = read_pem(security->certificate, "certificate", &out->certificate);
    if (status == WEIR_OK)
        status = read_pem(security->key, "key", &out->key);
    if (status == WEIR_OK && security->certificate != NULL &&
        weir_http_asks_for_certificate(security))
        status = read_pem(security->ca, "CA", &out->ca);
    if (status != WEIR_OK)
        weir_http_credentials_free(out);
    return status;
}

void weir_http_credentials_free(weir_http_credentials *credentials)
{
    if (credentials->key != NULL)
        OPENSSL_cleanse(credentials->key, MAX_PEM_BYTES);
    weir_free(credentials->certificate);
    weir_free(credentials->key);
    weir_free(credentials->ca);
    *credentials = (weir_http_credentials){ .ca = NULL };
}

/* ---- identities ------------------------------------------------------------------------------*/

static gnutls_datum_t datum_of(const char *text)
{
    return (gnutls_datum_t){ (unsigned char *)text, (unsigned)strlen(text) };
}

static weir_status use(gnutls_certificate_credentials_t credentials,
                       const weir_rpc_security *security, const weir_http_credentials *pem)
{
    const gnutls_datum_t certificate = datum_of(pem->certificate), key = datum_of(pem->key);
    int code =
        gnutls_certificate_set_x509_key_mem(credentials, &certificate, &key, GNUTLS_X509_FMT_PEM);
    if (code < 0)
        return weir_fail(WEIR_ERR_INVALID, "cannot use the certificate %s with the key %s: %s",
                         security->certificate, security->key, gnutls_strerror(code));
    if (pem->ca == NULL)
        return WEIR_OK;
    const gnutls_datum_t ca = datum_of(pem->ca);
    code = gnutls_certificate_set_x509_trust_mem(credentials, &ca, GNUTLS_X509_FMT_PEM);
    if (code <= 0) /* else how many there are */
        return weir_fail(WEIR_ERR_INVALID, "cannot use the CA %s: %s", security->ca,
                         code < 0 ? gnutls_strerror(code) : "there is none in it");
    return WEIR_OK;
}

static void free_identity(weir_http_identity *identity)
{
    if (identity->credentials != NULL)
        gnutls_certificate_free_credentials(identity->credentials);
    weir_free(identity);
}

static weir_status read_identity(const weir_rpc_security *security, weir_http_identity **out)
{
    weir_http_credentials pem;
    weir_http_identity *identity = weir_alloc_zeroed(1, sizeof(*identity));
    if (identity == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_http_credentials_read(security, &pem);
    if (status == WEIR_OK && gnutls_certificate_allocate_credentials(&identity->credentials) != 0)
        status = weir_fail(WEIR_ERR_NO_MEMORY, "GnuTLS gives no credentials");
    if (status == WEIR_OK)
        status = use(identity->credentials, security, &pem);
    weir_http_credentials_free(&pem);
    if (status != WEIR_OK) {
        free_identity(identity);
        return status;
    }
    *out = identity;
    return WEIR_OK;
}

/* ---- files that are replaced -----------------------------------------------------------------*/

static bool stamp_all(const weir_rpc_security *security, weir_file_stamp out[WEIR_HTTP_FILES])
{
    const char *ca = weir_http_asks_for_certificate(security) ? security->ca : NULL;
    return weir_file_stamp_take(security->certificate, &out[0]) &&
           weir_file_stamp_take(security->key, &out[1]) && weir_file_stamp_take(ca, &out[2]);
}

static void refresh(weir_http_server *http)
{
    weir_file_stamp stamps[WEIR_HTTP_FILES];
    weir_http_identity *identity;
    const weir_rpc_security *security = &http->kept.security;
    if (!stamp_all(security, stamps)) /* between removed and written */
        return;
    bool is_same = memcmp(stamps, http->stamps, sizeof(stamps)) == 0;
    if (is_same && (http->look_again == 0 || !weir_deadline_passed(http->look_again)))
        return;
    bool is_said = is_same && http->look_again != 0;
    memcpy(http->stamps, stamps, sizeof(stamps));
    if (read_identity(security, &identity) != WEIR_OK) {
        if (!is_said)
            weir_log(WEIR_LOG_WARN, "%s: what was read before stays in force: %s", http->address,
                     weir_last_error());
        http->look_again = weir_deadline_in(LOOK_AGAIN_MS); /* a key may follow its certificate */
        return;
    }
    if (http->identities != NULL)
        weir_log(WEIR_LOG_INFO, "%s: read %s again", http->address, security->certificate);
    http->look_again = 0;
    identity->next = http->identities;
    http->identities = identity;
}

void weir_http_identify(weir_http_link *link, gnutls_session_t session)
{
    weir_http_server *http = link->http;
    refresh(http);
    weir_http_identity *newest = http->identities;
    if (newest == NULL ||
        gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, newest->credentials) != 0)
        return;
    link->identity = newest;
    newest->n_links++;
}

void weir_http_forget_identities(weir_http_server *http, bool all)
{
    weir_http_identity **place = &http->identities;
    if (!all && *place != NULL)
        place = &(*place)->next;
    while (*place != NULL) {
        weir_http_identity *identity = *place;
        if (!all && identity->n_links != 0) {
            place = &identity->next;
            continue;
        }
        *place = identity->next;
        free_identity(identity);
    }
}
