/* SPDX-License-Identifier: Apache-2.0 */
/* frame_wire.c - the sixteen bytes before each payload: written, and read with distrust. */
#include <string.h>

#include "rpc/frame_link_core.h"

static const unsigned char magic[4] = { 'W', 'F', 'L', '1' };

static uint64_t little_endian(const unsigned char *bytes, unsigned n)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < n; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

void weir_frame_put_header(unsigned char header[WEIR_FRAME_HEADER_BYTES], uint16_t type,
                           size_t n_bytes)
{
    memset(header, 0, WEIR_FRAME_HEADER_BYTES);
    memcpy(header, magic, sizeof(magic));
    for (unsigned i = 0; i < 2; i++)
        header[4 + i] = (unsigned char)(type >> (8 * i));
    for (unsigned i = 0; i < 8; i++)
        header[8 + i] = (unsigned char)((uint64_t)n_bytes >> (8 * i));
}

weir_status weir_frame_parse(const void *bytes, size_t n_bytes, weir_frame *out,
                             size_t *out_n_bytes)
{
    const unsigned char *at = bytes;
    size_t n_magic = n_bytes < sizeof(magic) ? n_bytes : sizeof(magic);
    if (n_magic != 0 && memcmp(at, magic, n_magic) != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "a frame begins with 0x%02x.., not with WFL1", at[0]);
    *out_n_bytes = WEIR_FRAME_HEADER_BYTES;
    if (n_bytes < WEIR_FRAME_HEADER_BYTES)
        return WEIR_IN_PROGRESS;
    uint16_t type = (uint16_t)little_endian(at + 4, 2);
    uint16_t zero = (uint16_t)little_endian(at + 6, 2);
    uint64_t payload_bytes = little_endian(at + 8, 8);
    if (zero != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "a frame of type %u has 0x%04x where 0 must be", type,
                         zero);
    if (payload_bytes > WEIR_FRAME_MAX_BYTES)
        return weir_fail(WEIR_ERR_CORRUPT,
                         "a frame of type %u claims %llu bytes, %zu are as many as there may be",
                         type, (unsigned long long)payload_bytes, WEIR_FRAME_MAX_BYTES);
    *out_n_bytes = WEIR_FRAME_HEADER_BYTES + (size_t)payload_bytes;
    if (n_bytes < *out_n_bytes)
        return WEIR_IN_PROGRESS;
    *out = (weir_frame){ type, at + WEIR_FRAME_HEADER_BYTES, (size_t)payload_bytes };
    return WEIR_OK;
}

uint64_t weir_frame_claimed_bytes(const unsigned char *header)
{
    return little_endian(header + 8, 8);
}
