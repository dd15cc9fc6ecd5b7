/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_stream_message.c - the bytes of what a reader over TCP and the owner tell each other.
 *
 *   hello     "WEIR" 'u' 'p' u16 format 1, the address's random word, 8 zeros
 *   welcome   "WEIR" 'u' 'p' u16 format 1, u64 greeting
 *   request   "WASK" u32 ranges, 8 zeros; then of each range u64 address, u64 bytes
 *   answer    "WANS" u32 1 when refused, else 0, u64 bytes that follow
 *
 * Little-endian; TCP keeps them whole, so they have no checksum. What zeros there must be, are.
 */
#include <endian.h>
#include <string.h>

#include "transport/ucx_stream.h"

static const uint8_t opening[8] = { 'W', 'E', 'I', 'R', 'u', 'p', 1, 0 };
static const uint8_t ask[4] = { 'W', 'A', 'S', 'K' };
static const uint8_t answer_mark[4] = { 'W', 'A', 'N', 'S' };

static void put64(uint8_t *out, uint64_t value)
{
    value = htole64(value);
    memcpy(out, &value, sizeof(value));
}

static uint64_t get64(const uint8_t *in)
{
    uint64_t value;
    memcpy(&value, in, sizeof(value));
    return le64toh(value);
}

static void put32(uint8_t *out, uint32_t value)
{
    value = htole32(value);
    memcpy(out, &value, sizeof(value));
}

static uint32_t get32(const uint8_t *in)
{
    uint32_t value;
    memcpy(&value, in, sizeof(value));
    return le32toh(value);
}

/* ---- beginning -------------------------------------------------------------------------------*/

void weir_stream_hello_encode(const uint8_t nonce[WEIR_UCX_NONCE], uint8_t *out)
{
    memcpy(out, opening, sizeof(opening));
    memcpy(out + sizeof(opening), nonce, WEIR_UCX_NONCE);
    put64(out + sizeof(opening) + WEIR_UCX_NONCE, 0);
}

/* As long for every wrong word, so that guessing learns nothing from it. */
bool weir_stream_hello_agrees(const uint8_t *hello, const uint8_t nonce[WEIR_UCX_NONCE])
{
    uint8_t expected[WEIR_STREAM_HELLO_BYTES], differs = 0;
    weir_stream_hello_encode(nonce, expected);
    for (size_t i = 0; i < sizeof(expected); i++)
        differs |= (uint8_t)(hello[i] ^ expected[i]);
    return differs == 0;
}

void weir_stream_welcome_encode(uint64_t greeting, uint8_t *out)
{
    memcpy(out, opening, sizeof(opening));
    put64(out + sizeof(opening), greeting);
}

bool weir_stream_welcome_decode(const uint8_t *welcome, uint64_t *out_greeting)
{
    *out_greeting = get64(welcome + sizeof(opening));
    return memcmp(welcome, opening, sizeof(opening)) == 0;
}

/* ---- requests --------------------------------------------------------------------------------*/

void weir_stream_request_encode(uint32_t n_ranges, uint8_t *out)
{
    memcpy(out, ask, sizeof(ask));
    put32(out + 4, n_ranges);
    put64(out + 8, 0);
}

bool weir_stream_request_decode(const uint8_t *head, uint32_t *out_n_ranges)
{
    *out_n_ranges = get32(head + 4);
    return memcmp(head, ask, sizeof(ask)) == 0 && get64(head + 8) == 0 && *out_n_ranges > 0 &&
           *out_n_ranges <= WEIR_STREAM_RANGES;
}

void weir_stream_range_encode(ucx_range range, uint8_t *out)
{
    put64(out, range.address);
    put64(out + 8, range.n_bytes);
}

ucx_range weir_stream_range_decode(const uint8_t *range)
{
    return (ucx_range){ get64(range), get64(range + 8) };
}

bool weir_stream_ranges_check(const uint8_t *request, uint32_t n_ranges, uint64_t *out_n_bytes)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < n_ranges; i++) {
        const ucx_range range = weir_stream_range_decode(request + WEIR_STREAM_HEAD_BYTES +
                                                         i * WEIR_STREAM_RANGE_BYTES);
        if (range.n_bytes == 0 || range.n_bytes > WEIR_STREAM_BYTES - total ||
            range.address > UINT64_MAX - range.n_bytes)
            return false;
        total += range.n_bytes;
    }
    *out_n_bytes = total;
    return true;
}

/* ---- answers ---------------------------------------------------------------------------------*/

void weir_stream_answer_encode(ucx_answer answer, uint8_t *out)
{
    memcpy(out, answer_mark, sizeof(answer_mark));
    put32(out + 4, answer.refused);
    put64(out + 8, answer.n_bytes);
}

bool weir_stream_answer_decode(const uint8_t *head, ucx_answer *out)
{
    uint32_t refused = get32(head + 4);
    *out = (ucx_answer){ refused != 0, get64(head + 8) };
    if (memcmp(head, answer_mark, sizeof(answer_mark)) != 0 || refused > 1)
        return false;
    return out->n_bytes > 0 &&
           out->n_bytes <= (out->refused ? WEIR_STREAM_REASON - 1 : WEIR_STREAM_BYTES);
}
