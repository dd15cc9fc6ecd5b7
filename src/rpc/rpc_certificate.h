/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_certificate.h - what a certificate says, in words for error lines. Nothing is verified. */
#ifndef WEIR_RPC_RPC_CERTIFICATE_H
#define WEIR_RPC_RPC_CERTIFICATE_H

#include <openssl/x509.h>
#include <stddef.h>

/* The first name that it is for: a DNS name, an address, else the subject's common name. "" for
 * none. What is not printable is '?'. */
void weir_certificate_name(X509 *certificate, char *out, size_t n_out);
/* The subject's common name, which a worker is known by; else the first name. */
void weir_certificate_subject(X509 *certificate, char *out, size_t n_out);
/* All that it is for: "'db', 'db.example'". */
void weir_certificate_names(X509 *certificate, char *out, size_t n_out);
/* "2030-01-31 12:00:00 UTC". */
void weir_certificate_date(const ASN1_TIME *time, char *out, size_t n_out);

#endif
