/* SPDX-License-Identifier: Apache-2.0 */
/* key_envelope.c - writes and reads what addresses, keys and messages are made of. What is in them
 * is transport_key.c's matter, and of groups ucx_group_message.c's.
 */
#include "transport/key_envelope.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "weir/transport.h"

#define FORMAT_VERSION 1u
#define UCX_ADDRESS_VERSION 2u /* of those that say where their process listens */

/* ---- writing ----------------------------------------------------------------------------------*/

void weir_key_put(weir_key_writer *out, const void *data, size_t n_bytes)
{
    weir_key_buffer *buffer = out->buffer;
    if (!out->failed && buffer->capacity - buffer->n_bytes < n_bytes) {
        size_t capacity = (buffer->n_bytes + n_bytes) * 2;
        uint8_t *grown = weir_realloc(buffer->data, capacity);
        out->failed = grown == NULL;
        if (grown != NULL) {
            buffer->data = grown;
            buffer->capacity = capacity;
        }
    }
    if (out->failed || n_bytes == 0)
        return;
    memcpy(buffer->data + buffer->n_bytes, data, n_bytes);
    buffer->n_bytes += n_bytes;
}

static void store_number(uint8_t *at, uint64_t value, unsigned n_bytes)
{
    for (unsigned i = 0; i < n_bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

void weir_key_put_number(weir_key_writer *out, uint64_t value, unsigned n_bytes)
{
    uint8_t bytes[8];
    store_number(bytes, value, n_bytes);
    weir_key_put(out, bytes, n_bytes);
}

void weir_key_put_blob(weir_key_writer *out, const void *data, size_t n_bytes)
{
    weir_key_put_number(out, n_bytes, 4);
    weir_key_put(out, data, n_bytes);
}

weir_key_writer weir_key_begin(weir_key_buffer *buffer, char transport, char kind)
{
    weir_key_writer out = { buffer, false };
    buffer->n_bytes = 0;
    weir_key_put(&out, WEIR_KEY_MAGIC, 4);
    weir_key_put(&out, &transport, 1);
    weir_key_put(&out, &kind, 1);
    weir_key_put_number(&out, FORMAT_VERSION, 2);
    weir_key_put_number(&out, 0, 4); /* bytes in all: known at the end */
    return out;
}

void weir_key_set_version(weir_key_writer *out, unsigned version)
{
    if (!out->failed)
        out->buffer->data[6] = (uint8_t)version;
}

static uint64_t checksum(const uint8_t *data, size_t n_bytes)
{
    weir_digest digest = { 0, 0 };
    weir_digest_add(&digest, data, 1, n_bytes);
    return digest.product ^ digest.sum;
}

weir_status weir_key_end(weir_key_writer *out)
{
    if (out->failed)
        return WEIR_ERR_NO_MEMORY;
    weir_key_buffer *buffer = out->buffer;
    size_t total = buffer->n_bytes + WEIR_KEY_CHECK_BYTES;
    if (total > UINT32_MAX)
        return weir_fail(WEIR_ERR_INVALID, "a key of %zu bytes is too long", total);
    store_number(buffer->data + 8, total, 4);
    weir_key_put_number(out, checksum(buffer->data, buffer->n_bytes), 8);
    return out->failed ? WEIR_ERR_NO_MEMORY : WEIR_OK;
}

void weir_key_buffer_close(weir_key_buffer *buffer)
{
    weir_free(buffer->data);
    *buffer = (weir_key_buffer){ 0 };
}

/* ---- reading ----------------------------------------------------------------------------------*/

uint64_t weir_key_load_number(const uint8_t *at, unsigned n_bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < n_bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

const uint8_t *weir_key_take(weir_key_reader *in, uint64_t n_bytes)
{
    if (in->failed || n_bytes > in->left) {
        in->failed = true;
        return NULL;
    }
    const uint8_t *data = in->at;
    in->at += n_bytes;
    in->left -= (size_t)n_bytes;
    return data;
}

uint64_t weir_key_take_number(weir_key_reader *in, unsigned n_bytes)
{
    const uint8_t *data = weir_key_take(in, n_bytes);
    return data != NULL ? weir_key_load_number(data, n_bytes) : 0;
}

const uint8_t *weir_key_take_blob(weir_key_reader *in, size_t *out_n_bytes)
{
    uint64_t n_bytes = weir_key_take_number(in, 4);
    if (n_bytes > WEIR_KEY_BLOB)
        in->failed = true;
    const uint8_t *data = weir_key_take(in, n_bytes);
    *out_n_bytes = data != NULL ? (size_t)n_bytes : 0;
    return data;
}

void weir_key_take_text(weir_key_reader *in, char *out, size_t out_bytes)
{
    size_t n_bytes;
    const uint8_t *data = weir_key_take_blob(in, &n_bytes);
    out[0] = '\0';
    if (data == NULL || n_bytes >= out_bytes) {
        in->failed = true;
        return;
    }
    for (size_t i = 0; i < n_bytes; i++) {
        if (data[i] < 0x20 || data[i] > 0x7e) {
            in->failed = true;
            return;
        }
    }
    memcpy(out, data, n_bytes);
    out[n_bytes] = '\0';
}

static const char *transport_name(uint8_t letter)
{
    return letter == 'u' ? "ucx" : letter == 'c' ? "cuda_ipc" : letter == 'f' ? "file" : "?";
}

static const char *envelope_name(char kind)
{
    return kind == 'k'   ? "key"
           : kind == 'a' ? "address"
           : kind == 'g' ? "key of a group"
                         : "message";
}

weir_status weir_key_open(const void *data, size_t n_bytes, const char *who, char transport,
                          char kind, weir_key_reader *out)
{
    const uint8_t *bytes = data;
    const char *what = envelope_name(kind);
    if (bytes == NULL || n_bytes < WEIR_KEY_HEAD_BYTES + WEIR_KEY_CHECK_BYTES ||
        memcmp(bytes, WEIR_KEY_MAGIC, 4) != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %zu bytes are no %s of Weir's", who, n_bytes, what);
    if (bytes[4] != (uint8_t)transport)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %s is of transport %s, expected %s", who, what,
                         transport_name(bytes[4]), transport_name((uint8_t)transport));
    uint64_t version = weir_key_load_number(bytes + 6, 2);
    unsigned newest = transport == 'u' && kind == 'a' ? UCX_ADDRESS_VERSION : FORMAT_VERSION;
    if (version < FORMAT_VERSION || version > newest)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %s has format version %u, this process has %u",
                         who, what, (unsigned)version, newest);
    uint64_t total = weir_key_load_number(bytes + 8, 4);
    if (bytes[5] != (uint8_t)kind || total != n_bytes)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %s says it has %llu bytes, but %zu came", who, what,
                         (unsigned long long)total, n_bytes);
    if (weir_key_load_number(bytes + n_bytes - WEIR_KEY_CHECK_BYTES, 8) !=
        checksum(bytes, n_bytes - WEIR_KEY_CHECK_BYTES))
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %s is damaged: its checksum differs", who, what);
    *out = (weir_key_reader){ bytes + WEIR_KEY_HEAD_BYTES,
                              n_bytes - WEIR_KEY_HEAD_BYTES - WEIR_KEY_CHECK_BYTES, false,
                              (unsigned)version };
    return WEIR_OK;
}

weir_status weir_key_check_end(const weir_key_reader *in, const char *who, const char *what)
{
    if (in->failed || in->left != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %s does not decode", who, what);
    return WEIR_OK;
}
