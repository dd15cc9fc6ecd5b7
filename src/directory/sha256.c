/* SPDX-License-Identifier: Apache-2.0 */
/* sha256.c - SHA-256 as text. */
#include "directory/sha256.h"

#include <openssl/evp.h>
#include <openssl/sha.h>

#include "base/error.h"

weir_status weir_sha256_hex(const void *data, size_t n_bytes, char out[WEIR_SHA256_HEX])
{
    static const char digits[] = "0123456789abcdef";
    unsigned char hash[SHA256_DIGEST_LENGTH];
    if (!EVP_Digest(data, n_bytes, hash, NULL, EVP_sha256(), NULL))
        return weir_fail(WEIR_ERR_INTERNAL, "SHA-256 of %zu bytes failed", n_bytes);
    for (size_t i = 0; i < sizeof(hash); i++) {
        out[2 * i] = digits[hash[i] >> 4];
        out[2 * i + 1] = digits[hash[i] & 15];
    }
    out[2 * sizeof(hash)] = '\0';
    return WEIR_OK;
}
