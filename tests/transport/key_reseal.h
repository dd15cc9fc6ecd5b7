/* SPDX-License-Identifier: Apache-2.0 */
/* key_reseal.h - an envelope whose bytes were changed, and whose length and checksum fit again:
 * they would stop nearly every fault at the door.
 */
#ifndef WEIR_TESTS_KEY_RESEAL_H
#define WEIR_TESTS_KEY_RESEAL_H

#include <string.h>

#include "transport/key_envelope.h"
#include "weir/transport.h"

static inline void key_store(uint8_t *at, uint64_t value, unsigned n_bytes)
{
    for (unsigned i = 0; i < n_bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

/* A checksum that fits, behind whatever the bytes are. */
static inline void key_reseal(uint8_t *data, size_t n_bytes)
{
    weir_digest digest = { 0, 0 };
    size_t body = n_bytes - WEIR_KEY_CHECK_BYTES;
    weir_digest_add(&digest, data, 1, body);
    key_store(data + body, digest.product ^ digest.sum, 8);
}

/* A head that fits, too, but for the transport and the kind. */
static inline void key_set_right(uint8_t *data, size_t n_bytes)
{
    if (n_bytes < WEIR_KEY_HEAD_BYTES + WEIR_KEY_CHECK_BYTES)
        return;
    memcpy(data, WEIR_KEY_MAGIC, 4);
    key_store(data + 6, 1, 2);
    key_store(data + 8, n_bytes, 4);
    key_reseal(data, n_bytes);
}

#endif
