/* SPDX-License-Identifier: Apache-2.0 */
/* sha256.h - the hash of source ids, lease ids and manifests, by OpenSSL. */
#ifndef WEIR_DIRECTORY_SHA256_H
#define WEIR_DIRECTORY_SHA256_H

#include <stddef.h>

#include "weir/status.h"

#define WEIR_SHA256_HEX 65

/* 64 lower-case hex digits and a NUL. ERR_INTERNAL when OpenSSL fails. */
weir_status weir_sha256_hex(const void *data, size_t n_bytes, char out[WEIR_SHA256_HEX]);

#endif
