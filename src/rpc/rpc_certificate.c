/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_certificate.c - names and dates out of X.509. The bytes are the peer's: nothing is taken for
 * a C string before it was looked through. */
#include "rpc/rpc_certificate.h"

#include <arpa/inet.h>
#include <openssl/x509v3.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define MAX_NAME 128
#define MAX_NAMES 4 /* that an error line lists */

static void copy_printable(const unsigned char *bytes, int n_bytes, char out[MAX_NAME])
{
    int n = n_bytes < MAX_NAME - 1 ? n_bytes : MAX_NAME - 1;
    for (int i = 0; i < n; i++)
        out[i] = bytes[i] > 0x20 && bytes[i] < 0x7f ? (char)bytes[i] : '?';
    out[n < 0 ? 0 : n] = '\0';
}

/* False when it is no name of a host. */
static bool read_general(const GENERAL_NAME *general, char out[MAX_NAME])
{
    if (general->type == GEN_DNS) {
        copy_printable(ASN1_STRING_get0_data(general->d.dNSName),
                       ASN1_STRING_length(general->d.dNSName), out);
        return true;
    }
    if (general->type != GEN_IPADD)
        return false;
    int n_bytes = ASN1_STRING_length(general->d.iPAddress);
    int family = n_bytes == 4 ? AF_INET : AF_INET6;
    return (n_bytes == 4 || n_bytes == 16) &&
           inet_ntop(family, ASN1_STRING_get0_data(general->d.iPAddress), out, MAX_NAME) != NULL;
}

/* Up to n_names; how many there are. */
static int read_alternatives(X509 *certificate, char names[][MAX_NAME], int n_names)
{
    int n = 0;
    GENERAL_NAMES *all = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    for (int i = 0; i < sk_GENERAL_NAME_num(all); i++) {
        char name[MAX_NAME];
        if (!read_general(sk_GENERAL_NAME_value(all, i), name))
            continue;
        if (n < n_names)
            memcpy(names[n], name, sizeof(name));
        n++;
    }
    GENERAL_NAMES_free(all);
    return n;
}

static bool read_common_name(X509 *certificate, char out[MAX_NAME])
{
    X509_NAME *subject = X509_get_subject_name(certificate);
    int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    if (at < 0)
        return false;
    const ASN1_STRING *text = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));
    copy_printable(ASN1_STRING_get0_data(text), ASN1_STRING_length(text), out);
    return out[0] != '\0';
}

void weir_certificate_name(X509 *certificate, char *out, size_t n_out)
{
    char name[1][MAX_NAME] = { "" };
    if (read_alternatives(certificate, name, 1) == 0)
        read_common_name(certificate, name[0]);
    snprintf(out, n_out, "%s", name[0]);
}

void weir_certificate_subject(X509 *certificate, char *out, size_t n_out)
{
    char name[MAX_NAME];
    if (read_common_name(certificate, name))
        snprintf(out, n_out, "%s", name);
    else
        weir_certificate_name(certificate, out, n_out);
}

void weir_certificate_names(X509 *certificate, char *out, size_t n_out)
{
    char names[MAX_NAMES][MAX_NAME] = { "" };
    int n = read_alternatives(certificate, names, MAX_NAMES);
    if (n == 0 && read_common_name(certificate, names[0]))
        n = 1;
    snprintf(out, n_out, "%s", n == 0 ? "nobody" : "");
    size_t n_text = 0;
    for (int i = 0; i < n && i < MAX_NAMES && n_text < n_out; i++)
        n_text +=
            (size_t)snprintf(out + n_text, n_out - n_text, "%s'%s'", i > 0 ? ", " : "", names[i]);
    if (n > MAX_NAMES && n_text < n_out)
        snprintf(out + n_text, n_out - n_text, " and %d more", n - MAX_NAMES);
}

void weir_certificate_date(const ASN1_TIME *when, char *out, size_t n_out)
{
    struct tm parts;
    if (when == NULL || ASN1_TIME_to_tm(when, &parts) != 1 ||
        strftime(out, n_out, "%Y-%m-%d %H:%M:%S UTC", &parts) == 0)
        snprintf(out, n_out, "a date that cannot be read");
}
