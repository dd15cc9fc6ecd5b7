/* SPDX-License-Identifier: Apache-2.0 */
/* tls_case.h - certificates in a directory of their own, for the tests of TLS. */
#ifndef WEIR_TEST_TLS_CASE_H
#define WEIR_TEST_TLS_CASE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rpc/rpc.h"

#define TLS_PATH_BYTES 160

static char tls_directory[64];

/* 0 when the openssl program has made them all. */
static inline int tls_make_certificates(void)
{
    char command[512];
    const char *source = getenv("WEIR_TEST_SOURCE");
    snprintf(tls_directory, sizeof(tls_directory), "/tmp/weir-tls-XXXXXX");
    if (mkdtemp(tls_directory) == NULL)
        return 1;
    snprintf(command, sizeof(command), "%s/tests/rpc/make_certificates.sh %s",
             source != NULL ? source : ".", tls_directory);
    return system(command);
}

static inline int tls_remove_certificates(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", tls_directory);
    return system(command);
}

typedef struct tls_path {
    char text[TLS_PATH_BYTES];
} tls_path;

static inline tls_path tls_file(const char *name, const char *ending)
{
    tls_path path;
    snprintf(path.text, sizeof(path.text), "%s/%s.%s", tls_directory, name, ending);
    return path;
}

/* Files by their names; NULL: none. Its strings live until the next one of the same place. */
typedef struct tls_party {
    tls_path certificate, key, ca;
    weir_rpc_security security;
} tls_party;

static inline const weir_rpc_security *tls_as(tls_party *party, const char *certificate,
                                              const char *ca, const char *token)
{
    *party = (tls_party){ .security.token = token };
    if (certificate != NULL) {
        party->certificate = tls_file(certificate, "pem");
        party->key = tls_file(certificate, "key");
        party->security.certificate = party->certificate.text;
        party->security.key = party->key.text;
    }
    if (ca != NULL) {
        party->ca = tls_file(ca, "pem");
        party->security.ca = party->ca.text;
    }
    return &party->security;
}

#endif
