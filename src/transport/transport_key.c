/* SPDX-License-Identifier: Apache-2.0 */
/* transport_key.c - encodes and decodes addresses and keys.
 *
 *   0  "WEIR"   4  transport: 'u' ucx, 'c' cuda_ipc, 'f' file
 *   5  'a' address, 'k' key, 'g' key of a group; 'h' hello, 's' start, 'w' word: messages in a
 * group 6  u16 format version                                8  u32 bytes in all 12  the fields:
 * u32, u64; texts and blobs as a u32 length and that many bytes -8  u64 checksum of everything
 * before it
 */
#include "transport/transport_key.h"

#include <string.h>
#include <sys/un.h>

#include "base/alloc.h"
#include "base/error.h"

#define MAGIC "WEIR"
#define FORMAT_VERSION 1u
#define HEAD_BYTES 12u
#define CHECK_BYTES 8u
#define SEGMENT_BYTES 24u

/* ---- envelope: writing -----------------------------------------------------------------------*/

typedef struct writer {
    weir_key_buffer *buffer;
    bool failed; /* out of memory: recorded, and what follows does nothing */
} writer;

static void put(writer *out, const void *data, size_t n_bytes)
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

static void put_number(writer *out, uint64_t value, unsigned n_bytes)
{
    uint8_t bytes[8];
    store_number(bytes, value, n_bytes);
    put(out, bytes, n_bytes);
}

static void put_blob(writer *out, const void *data, size_t n_bytes)
{
    put_number(out, n_bytes, 4);
    put(out, data, n_bytes);
}

static writer begin(weir_key_buffer *buffer, char transport, char kind)
{
    writer out = { buffer, false };
    buffer->n_bytes = 0;
    put(&out, MAGIC, 4);
    put(&out, &transport, 1);
    put(&out, &kind, 1);
    put_number(&out, FORMAT_VERSION, 2);
    put_number(&out, 0, 4); /* bytes in all: known at the end */
    return out;
}

static uint64_t checksum(const uint8_t *data, size_t n_bytes)
{
    weir_digest digest = { 0, 0 };
    weir_digest_add(&digest, data, 1, n_bytes);
    return digest.product ^ digest.sum;
}

static weir_status end(writer *out)
{
    if (out->failed)
        return WEIR_ERR_NO_MEMORY;
    weir_key_buffer *buffer = out->buffer;
    size_t total = buffer->n_bytes + CHECK_BYTES;
    if (total > UINT32_MAX)
        return weir_fail(WEIR_ERR_INVALID, "a key of %zu bytes is too long", total);
    store_number(buffer->data + 8, total, 4);
    put_number(out, checksum(buffer->data, buffer->n_bytes), 8);
    return out->failed ? WEIR_ERR_NO_MEMORY : WEIR_OK;
}

void weir_key_buffer_close(weir_key_buffer *buffer)
{
    weir_free(buffer->data);
    *buffer = (weir_key_buffer){ 0 };
}

/* ---- envelope: reading -----------------------------------------------------------------------*/

typedef struct reader {
    const uint8_t *at;
    size_t left;
    bool failed;
} reader;

static uint64_t load_number(const uint8_t *at, unsigned n_bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < n_bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

/* NULL when fewer than n_bytes are left. */
static const uint8_t *take(reader *in, uint64_t n_bytes)
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

static uint64_t take_number(reader *in, unsigned n_bytes)
{
    const uint8_t *data = take(in, n_bytes);
    return data != NULL ? load_number(data, n_bytes) : 0;
}

static const uint8_t *take_blob(reader *in, size_t *out_n_bytes)
{
    uint64_t n_bytes = take_number(in, 4);
    if (n_bytes > WEIR_KEY_BLOB)
        in->failed = true;
    const uint8_t *data = take(in, n_bytes);
    *out_n_bytes = data != NULL ? (size_t)n_bytes : 0;
    return data;
}

/* Printable ASCII alone: such a text goes into errors and file names. */
static void take_text(reader *in, char *out, size_t out_bytes)
{
    size_t n_bytes;
    const uint8_t *data = take_blob(in, &n_bytes);
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

static weir_status open_envelope(const void *data, size_t n_bytes, const char *who, char transport,
                                 char kind, reader *out)
{
    const uint8_t *bytes = data;
    const char *what = envelope_name(kind);
    if (bytes == NULL || n_bytes < HEAD_BYTES + CHECK_BYTES || memcmp(bytes, MAGIC, 4) != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %zu bytes are no %s of Weir's", who, n_bytes, what);
    if (bytes[4] != (uint8_t)transport)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %s is of transport %s, expected %s", who, what,
                         transport_name(bytes[4]), transport_name((uint8_t)transport));
    uint64_t version = load_number(bytes + 6, 2);
    if (version != FORMAT_VERSION)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %s has format version %u, this process has %u",
                         who, what, (unsigned)version, FORMAT_VERSION);
    uint64_t total = load_number(bytes + 8, 4);
    if (bytes[5] != (uint8_t)kind || total != n_bytes)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %s says it has %llu bytes, but %zu came", who, what,
                         (unsigned long long)total, n_bytes);
    if (load_number(bytes + n_bytes - CHECK_BYTES, 8) != checksum(bytes, n_bytes - CHECK_BYTES))
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %s is damaged: its checksum differs", who, what);
    *out = (reader){ bytes + HEAD_BYTES, n_bytes - HEAD_BYTES - CHECK_BYTES, false };
    return WEIR_OK;
}

static weir_status close_envelope(const reader *in, const char *who, const char *what)
{
    if (in->failed || in->left != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %s does not decode", who, what);
    return WEIR_OK;
}

/* ---- ucx -------------------------------------------------------------------------------------*/

weir_status weir_ucx_address_encode(const weir_ucx_address *address, weir_key_buffer *out)
{
    writer to = begin(out, 'u', 'a');
    put_blob(&to, address->ucx_version, strlen(address->ucx_version));
    put_blob(&to, address->host, strlen(address->host));
    put_number(&to, address->process, 4);
    put_number(&to, address->greeting, 8);
    put_number(&to, address->greeting_is, 8);
    put_blob(&to, address->rkey, address->rkey_bytes);
    put_blob(&to, address->worker, address->worker_bytes);
    return end(&to);
}

weir_status weir_ucx_address_decode(const void *data, size_t n_bytes, const char *who,
                                    weir_ucx_address *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'u', 'a', &from);
    if (status != WEIR_OK)
        return status;
    take_text(&from, out->ucx_version, sizeof(out->ucx_version));
    take_text(&from, out->host, sizeof(out->host));
    out->process = (uint32_t)take_number(&from, 4);
    out->greeting = take_number(&from, 8);
    out->greeting_is = take_number(&from, 8);
    out->rkey = take_blob(&from, &out->rkey_bytes);
    out->worker = take_blob(&from, &out->worker_bytes);
    if (out->worker_bytes == 0 || out->rkey_bytes == 0)
        from.failed = true;
    return close_envelope(&from, who, "address of transport ucx");
}

weir_status weir_ucx_key_encode(const weir_ucx_key *key, weir_key_buffer *out)
{
    writer to = begin(out, 'u', 'k');
    put_blob(&to, key->ucx_version, strlen(key->ucx_version));
    put_number(&to, key->base, 8);
    put_number(&to, key->n_bytes, 8);
    put_blob(&to, key->rkey, key->rkey_bytes);
    return end(&to);
}

weir_status weir_ucx_key_decode(const void *data, size_t n_bytes, const char *who,
                                weir_ucx_key *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'u', 'k', &from);
    if (status != WEIR_OK)
        return status;
    take_text(&from, out->ucx_version, sizeof(out->ucx_version));
    out->base = take_number(&from, 8);
    out->n_bytes = take_number(&from, 8);
    out->rkey = take_blob(&from, &out->rkey_bytes);
    if (out->rkey_bytes == 0 || out->base > UINT64_MAX - out->n_bytes)
        from.failed = true;
    return close_envelope(&from, who, "key of transport ucx");
}

/* ---- groups of ucx ---------------------------------------------------------------------------*/

/* What an envelope of WEIR_GROUP_KEY_BYTES leaves for addresses, zeros behind them. */
#define ADDRESS_ROOM                                                                       \
    (WEIR_GROUP_KEY_BYTES - HEAD_BYTES - CHECK_BYTES - WEIR_UCX_NONCE - sizeof(uint64_t) - \
     sizeof(uint16_t))

static size_t ip_bytes(uint8_t family)
{
    return family == 4 ? 4 : family == 6 ? 16 : 0;
}

static void put_group_key(writer *to, const weir_ucx_group_key *key)
{
    uint8_t room[ADDRESS_ROOM] = { 0 };
    size_t at = 0;
    for (unsigned i = 0; i < key->n_addresses; i++) {
        const weir_ip_address *address = &key->addresses[i];
        size_t n_bytes = ip_bytes(address->family);
        if (n_bytes == 0 || n_bytes + 1 > sizeof(room) - at)
            continue;
        room[at] = address->family;
        memcpy(room + at + 1, address->bytes, n_bytes);
        at += n_bytes + 1;
    }
    put(to, key->nonce, sizeof(key->nonce));
    put_number(to, key->place, 8);
    put_number(to, key->port, 2);
    put(to, room, sizeof(room));
}

/* False when anything but zeros follows the last address. */
static bool take_addresses(const uint8_t *room, weir_ucx_group_key *out)
{
    size_t at = 0;
    out->n_addresses = 0;
    while (at < ADDRESS_ROOM && room[at] != 0) {
        size_t n_bytes = ip_bytes(room[at]);
        if (n_bytes == 0 || n_bytes + 1 > ADDRESS_ROOM - at ||
            out->n_addresses == WEIR_UCX_ADDRESSES)
            return false;
        weir_ip_address *address = &out->addresses[out->n_addresses++];
        address->family = room[at];
        memcpy(address->bytes, room + at + 1, n_bytes);
        at += n_bytes + 1;
    }
    while (at < ADDRESS_ROOM && room[at] == 0)
        at++;
    return at == ADDRESS_ROOM;
}

static void take_group_key(reader *from, weir_ucx_group_key *out)
{
    memset(out, 0, sizeof(*out));
    const uint8_t *nonce = take(from, sizeof(out->nonce));
    if (nonce != NULL)
        memcpy(out->nonce, nonce, sizeof(out->nonce));
    out->place = take_number(from, 8);
    out->port = (uint16_t)take_number(from, 2);
    const uint8_t *room = take(from, ADDRESS_ROOM);
    if (room == NULL || out->port == 0 || !take_addresses(room, out))
        from->failed = true;
}

weir_status weir_ucx_group_key_encode(const weir_ucx_group_key *key, weir_key_buffer *out)
{
    writer to = begin(out, 'u', 'g');
    put_group_key(&to, key);
    return end(&to);
}

weir_status weir_ucx_group_key_decode(const void *data, size_t n_bytes, const char *who,
                                      weir_ucx_group_key *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'u', 'g', &from);
    if (status != WEIR_OK)
        return status;
    take_group_key(&from, out);
    return close_envelope(&from, who, "key of a group of transport ucx");
}

weir_status weir_ucx_hello_encode(const weir_ucx_hello *hello, weir_key_buffer *out)
{
    writer to = begin(out, 'u', 'h');
    put_number(&to, (uint64_t)hello->purpose, 4);
    put_number(&to, hello->rank, 4);
    put_number(&to, hello->n_ranks, 4);
    put_number(&to, hello->process, 4);
    put_blob(&to, hello->host, strlen(hello->host));
    put_group_key(&to, &hello->where);
    return end(&to);
}

weir_status weir_ucx_hello_decode(const void *data, size_t n_bytes, const char *who,
                                  weir_ucx_hello *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'u', 'h', &from);
    if (status != WEIR_OK)
        return status;
    uint64_t purpose = take_number(&from, 4);
    if (purpose >= WEIR_UCX_PURPOSES)
        from.failed = true;
    out->purpose = from.failed ? WEIR_UCX_JOIN : (weir_ucx_purpose)purpose;
    out->rank = (uint32_t)take_number(&from, 4);
    out->n_ranks = (uint32_t)take_number(&from, 4);
    out->process = (uint32_t)take_number(&from, 4);
    take_text(&from, out->host, sizeof(out->host));
    take_group_key(&from, &out->where);
    return close_envelope(&from, who, "first message of a rank");
}

weir_status weir_ucx_start_encode(const weir_ucx_start *start, weir_key_buffer *out)
{
    writer to = begin(out, 'u', 's');
    put_number(&to, start->process, 4);
    put_blob(&to, start->host, strlen(start->host));
    put_group_key(&to, &start->after);
    return end(&to);
}

weir_status weir_ucx_start_decode(const void *data, size_t n_bytes, const char *who,
                                  weir_ucx_start *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'u', 's', &from);
    if (status != WEIR_OK)
        return status;
    out->process = (uint32_t)take_number(&from, 4);
    take_text(&from, out->host, sizeof(out->host));
    take_group_key(&from, &out->after);
    return close_envelope(&from, who, "message of rank 0");
}

weir_status weir_ucx_head_encode(const weir_ucx_head *head, weir_key_buffer *out)
{
    writer to = begin(out, 'u', 'b');
    put_number(&to, head->root, 4);
    put_number(&to, head->number, 8);
    put_number(&to, head->n_bytes, 8);
    put_number(&to, head->parts, 8);
    return end(&to);
}

weir_status weir_ucx_head_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_ucx_head *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'u', 'b', &from);
    if (status != WEIR_OK)
        return status;
    out->root = (uint32_t)take_number(&from, 4);
    out->number = take_number(&from, 8);
    out->n_bytes = take_number(&from, 8);
    out->parts = take_number(&from, 8);
    return close_envelope(&from, who, "head of a broadcast");
}

weir_status weir_ucx_word_encode(const weir_ucx_word *word, weir_key_buffer *out)
{
    writer to = begin(out, 'u', 'w');
    put_number(&to, (uint64_t)word->kind, 4);
    put_number(&to, word->n_done, 8);
    put_number(&to, (uint64_t)-word->status, 4);
    put_blob(&to, word->reason, strlen(word->reason));
    return end(&to);
}

weir_status weir_ucx_word_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_ucx_word *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'u', 'w', &from);
    if (status != WEIR_OK)
        return status;
    uint64_t kind = take_number(&from, 4);
    out->n_done = take_number(&from, 8);
    uint64_t error = take_number(&from, 4);
    take_text(&from, out->reason, sizeof(out->reason));
    if (kind >= WEIR_UCX_WORDS || error > (uint64_t)-WEIR_STATUS_MIN ||
        (kind == WEIR_UCX_BROKEN) != (error > 0))
        from.failed = true;
    out->kind = from.failed ? WEIR_UCX_BROKEN : (weir_ucx_word_kind)kind;
    out->status = from.failed ? WEIR_ERR_CORRUPT : (weir_status) - (int)error;
    return close_envelope(&from, who, "message of a group");
}

weir_status weir_ucx_step_encode(const weir_ucx_step *step, weir_key_buffer *out)
{
    writer to = begin(out, 'u', 't');
    put_number(&to, (uint64_t)step->kind, 4);
    put_number(&to, step->value, 8);
    return end(&to);
}

weir_status weir_ucx_step_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_ucx_step *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'u', 't', &from);
    if (status != WEIR_OK)
        return status;
    uint64_t kind = take_number(&from, 4);
    if (kind >= WEIR_UCX_STEPS)
        from.failed = true;
    out->kind = from.failed ? WEIR_UCX_WAY : (weir_ucx_step_kind)kind;
    out->value = take_number(&from, 8);
    return close_envelope(&from, who, "step of a broadcast");
}

/* Between neighbours addresses and keys travel, which are longer. */
static size_t message_limit(uint8_t kind)
{
    if (kind == 0)
        return 0;
    return strchr("hsw", kind) != NULL    ? WEIR_UCX_MESSAGE_BYTES
           : strchr("abkt", kind) != NULL ? WEIR_UCX_FEED_BYTES
                                          : 0;
}

weir_status weir_ucx_message_kind(const void *data, size_t n_bytes, char *out_kind,
                                  size_t *out_message_bytes)
{
    const uint8_t *bytes = data;
    *out_message_bytes = 0;
    if (n_bytes < HEAD_BYTES)
        return WEIR_OK;
    uint64_t total = load_number(bytes + 8, 4);
    if (memcmp(bytes, MAGIC, 4) != 0 || bytes[4] != 'u' || total < HEAD_BYTES + CHECK_BYTES ||
        total > message_limit(bytes[5]))
        return weir_fail(WEIR_ERR_CORRUPT, "no message of a group");
    *out_kind = (char)bytes[5];
    *out_message_bytes = (size_t)total;
    return WEIR_OK;
}

/* ---- cuda_ipc --------------------------------------------------------------------------------*/

weir_status weir_cuda_ipc_address_encode(const weir_cuda_ipc_address *address, weir_key_buffer *out)
{
    writer to = begin(out, 'c', 'a');
    put_blob(&to, address->host, strlen(address->host));
    put_blob(&to, address->place, strlen(address->place));
    put_blob(&to, address->socket, strlen(address->socket));
    put_blob(&to, address->gpu, strlen(address->gpu));
    put_number(&to, address->process, 4);
    put_number(&to, address->owner[0], 8);
    put_number(&to, address->owner[1], 8);
    return end(&to);
}

weir_status weir_cuda_ipc_address_decode(const void *data, size_t n_bytes, const char *who,
                                         weir_cuda_ipc_address *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'c', 'a', &from);
    if (status != WEIR_OK)
        return status;
    take_text(&from, out->host, sizeof(out->host));
    take_text(&from, out->place, sizeof(out->place));
    take_text(&from, out->socket, sizeof(out->socket));
    take_text(&from, out->gpu, sizeof(out->gpu));
    out->process = (uint32_t)take_number(&from, 4);
    out->owner[0] = take_number(&from, 8);
    out->owner[1] = take_number(&from, 8);
    if (out->socket[0] == '\0' ||
        strlen(out->socket) >= sizeof(((struct sockaddr_un *)0)->sun_path))
        from.failed = true;
    return close_envelope(&from, who, "address of transport cuda_ipc");
}

weir_status weir_cuda_ipc_key_encode(const weir_cuda_ipc_key *key, weir_key_buffer *out)
{
    writer to = begin(out, 'c', 'k');
    put_number(&to, key->owner[0], 8);
    put_number(&to, key->owner[1], 8);
    put_number(&to, key->region, 8);
    put_number(&to, key->n_bytes, 8);
    return end(&to);
}

weir_status weir_cuda_ipc_key_decode(const void *data, size_t n_bytes, const char *who,
                                     weir_cuda_ipc_key *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'c', 'k', &from);
    if (status != WEIR_OK)
        return status;
    out->owner[0] = take_number(&from, 8);
    out->owner[1] = take_number(&from, 8);
    out->region = take_number(&from, 8);
    out->n_bytes = take_number(&from, 8);
    return close_envelope(&from, who, "key of transport cuda_ipc");
}

/* ---- file ------------------------------------------------------------------------------------*/

weir_status weir_file_address_encode(const weir_file_address *address, weir_key_buffer *out)
{
    writer to = begin(out, 'f', 'a');
    put_blob(&to, address->name, strlen(address->name));
    return end(&to);
}

weir_status weir_file_address_decode(const void *data, size_t n_bytes, const char *who,
                                     weir_file_address *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'f', 'a', &from);
    if (status != WEIR_OK)
        return status;
    take_text(&from, out->name, sizeof(out->name));
    return close_envelope(&from, who, "address of transport file");
}

weir_status weir_file_key_encode(const weir_file_key *key, weir_key_buffer *out)
{
    writer to = begin(out, 'f', 'k');
    put_blob(&to, key->path, strlen(key->path));
    put_number(&to, key->nonce[0], 8);
    put_number(&to, key->nonce[1], 8);
    put_number(&to, key->region_bytes, 8);
    put_number(&to, key->file_bytes, 8);
    put_number(&to, key->n_segments, 4);
    for (size_t i = 0; i < key->n_segments; i++) {
        put_number(&to, key->segments[i].region_offset, 8);
        put_number(&to, key->segments[i].file_offset, 8);
        put_number(&to, key->segments[i].n_bytes, 8);
    }
    return end(&to);
}

/* "." and "..", a hidden name and the empty one are no part of a path that we made. */
static bool part_is_plain(const char *part, size_t n_bytes)
{
    return n_bytes > 0 && part[0] != '.' && memchr(part, '/', n_bytes) == NULL;
}

static bool path_is_plain(const char *path)
{
    const char *slash = strchr(path, '/');
    return slash != NULL && part_is_plain(path, (size_t)(slash - path)) &&
           part_is_plain(slash + 1, strlen(slash + 1));
}

weir_file_segment weir_file_key_segment(const weir_file_key *key, size_t index)
{
    const uint8_t *at = key->segment_data + index * SEGMENT_BYTES;
    return (weir_file_segment){ load_number(at, 8), load_number(at + 8, 8),
                                load_number(at + 16, 8) };
}

static bool segments_are_sound(const weir_file_key *key)
{
    uint64_t end_of_last = 0;
    for (size_t i = 0; i < key->n_segments; i++) {
        weir_file_segment segment = weir_file_key_segment(key, i);
        uint64_t region_end, file_end;
        if (segment.region_offset < end_of_last || segment.n_bytes == 0 ||
            __builtin_add_overflow(segment.region_offset, segment.n_bytes, &region_end) ||
            __builtin_add_overflow(segment.file_offset, segment.n_bytes, &file_end) ||
            region_end > key->region_bytes || file_end > key->file_bytes)
            return false;
        end_of_last = region_end;
    }
    return true;
}

weir_status weir_file_key_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_file_key *out)
{
    reader from;
    weir_status status = open_envelope(data, n_bytes, who, 'f', 'k', &from);
    if (status != WEIR_OK)
        return status;
    take_text(&from, out->path, sizeof(out->path));
    out->nonce[0] = take_number(&from, 8);
    out->nonce[1] = take_number(&from, 8);
    out->region_bytes = take_number(&from, 8);
    out->file_bytes = take_number(&from, 8);
    out->segments = NULL;
    out->n_segments = (size_t)take_number(&from, 4);
    out->segment_data = take(&from, (uint64_t)out->n_segments * SEGMENT_BYTES);
    if (!from.failed && !path_is_plain(out->path))
        return weir_fail(WEIR_ERR_CORRUPT, "%s: key names '%s', which is no sealed region", who,
                         out->path);
    if (!from.failed && !segments_are_sound(out))
        return weir_fail(WEIR_ERR_CORRUPT, "%s: key of %s has segments that overlap or overflow",
                         who, out->path);
    return close_envelope(&from, who, "key of transport file");
}
