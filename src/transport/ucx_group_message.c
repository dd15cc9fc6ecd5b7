/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_group_message.c - encodes and decodes the key of a broadcast group of transport ucx, and what
 * its ranks tell each other. When they say what is ucx_word.c's and ucx_feed.c's matter.
 */
#include "transport/ucx_group_message.h"

#include <string.h>

#include "base/error.h"
#include "transport/key_envelope.h"
#include "weir/transport.h"

/* ---- the key ----------------------------------------------------------------------------------*/

/* What an envelope of WEIR_GROUP_KEY_BYTES leaves for addresses, zeros behind them. */
#define ADDRESS_ROOM                                                                      \
    (WEIR_GROUP_KEY_BYTES - WEIR_KEY_HEAD_BYTES - WEIR_KEY_CHECK_BYTES - WEIR_UCX_NONCE - \
     sizeof(uint64_t) - sizeof(uint16_t))

static size_t ip_bytes(uint8_t family)
{
    return family == 4 ? 4 : family == 6 ? 16 : 0;
}

static void put_group_key(weir_key_writer *to, const weir_ucx_group_key *key)
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
    weir_key_put(to, key->nonce, sizeof(key->nonce));
    weir_key_put_number(to, key->place, 8);
    weir_key_put_number(to, key->port, 2);
    weir_key_put(to, room, sizeof(room));
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

static void take_group_key(weir_key_reader *from, weir_ucx_group_key *out)
{
    memset(out, 0, sizeof(*out));
    const uint8_t *nonce = weir_key_take(from, sizeof(out->nonce));
    if (nonce != NULL)
        memcpy(out->nonce, nonce, sizeof(out->nonce));
    out->place = weir_key_take_number(from, 8);
    out->port = (uint16_t)weir_key_take_number(from, 2);
    const uint8_t *room = weir_key_take(from, ADDRESS_ROOM);
    if (room == NULL || out->port == 0 || !take_addresses(room, out))
        from->failed = true;
}

weir_status weir_ucx_group_key_encode(const weir_ucx_group_key *key, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'u', 'g');
    put_group_key(&to, key);
    return weir_key_end(&to);
}

weir_status weir_ucx_group_key_decode(const void *data, size_t n_bytes, const char *who,
                                      weir_ucx_group_key *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'u', 'g', &from);
    if (status != WEIR_OK)
        return status;
    take_group_key(&from, out);
    return weir_key_check_end(&from, who, "key of a group of transport ucx");
}

/* ---- joining ----------------------------------------------------------------------------------*/

weir_status weir_ucx_hello_encode(const weir_ucx_hello *hello, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'u', 'h');
    weir_key_put_number(&to, (uint64_t)hello->purpose, 4);
    weir_key_put_number(&to, hello->rank, 4);
    weir_key_put_number(&to, hello->n_ranks, 4);
    weir_key_put_number(&to, hello->process, 4);
    weir_key_put_blob(&to, hello->host, strlen(hello->host));
    put_group_key(&to, &hello->where);
    return weir_key_end(&to);
}

weir_status weir_ucx_hello_decode(const void *data, size_t n_bytes, const char *who,
                                  weir_ucx_hello *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'u', 'h', &from);
    if (status != WEIR_OK)
        return status;
    uint64_t purpose = weir_key_take_number(&from, 4);
    if (purpose >= WEIR_UCX_PURPOSES)
        from.failed = true;
    out->purpose = from.failed ? WEIR_UCX_JOIN : (weir_ucx_purpose)purpose;
    out->rank = (uint32_t)weir_key_take_number(&from, 4);
    out->n_ranks = (uint32_t)weir_key_take_number(&from, 4);
    out->process = (uint32_t)weir_key_take_number(&from, 4);
    weir_key_take_text(&from, out->host, sizeof(out->host));
    take_group_key(&from, &out->where);
    return weir_key_check_end(&from, who, "first message of a rank");
}

weir_status weir_ucx_start_encode(const weir_ucx_start *start, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'u', 's');
    weir_key_put_number(&to, start->process, 4);
    weir_key_put_blob(&to, start->host, strlen(start->host));
    put_group_key(&to, &start->after);
    return weir_key_end(&to);
}

weir_status weir_ucx_start_decode(const void *data, size_t n_bytes, const char *who,
                                  weir_ucx_start *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'u', 's', &from);
    if (status != WEIR_OK)
        return status;
    out->process = (uint32_t)weir_key_take_number(&from, 4);
    weir_key_take_text(&from, out->host, sizeof(out->host));
    take_group_key(&from, &out->after);
    return weir_key_check_end(&from, who, "message of rank 0");
}

weir_status weir_ucx_word_encode(const weir_ucx_word *word, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'u', 'w');
    weir_key_put_number(&to, (uint64_t)word->kind, 4);
    weir_key_put_number(&to, word->n_done, 8);
    weir_key_put_number(&to, (uint64_t)-word->status, 4);
    weir_key_put_blob(&to, word->reason, strlen(word->reason));
    return weir_key_end(&to);
}

weir_status weir_ucx_word_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_ucx_word *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'u', 'w', &from);
    if (status != WEIR_OK)
        return status;
    uint64_t kind = weir_key_take_number(&from, 4);
    out->n_done = weir_key_take_number(&from, 8);
    uint64_t error = weir_key_take_number(&from, 4);
    weir_key_take_text(&from, out->reason, sizeof(out->reason));
    if (kind >= WEIR_UCX_WORDS || error > (uint64_t)-WEIR_STATUS_MIN ||
        (kind == WEIR_UCX_BROKEN) != (error > 0))
        from.failed = true;
    out->kind = from.failed ? WEIR_UCX_BROKEN : (weir_ucx_word_kind)kind;
    out->status = from.failed ? WEIR_ERR_CORRUPT : (weir_status) - (int)error;
    return weir_key_check_end(&from, who, "message of a group");
}

/* ---- broadcasts -------------------------------------------------------------------------------*/

weir_status weir_ucx_head_encode(const weir_ucx_head *head, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'u', 'b');
    weir_key_put_number(&to, head->root, 4);
    weir_key_put_number(&to, head->number, 8);
    weir_key_put_number(&to, head->n_bytes, 8);
    weir_key_put_number(&to, head->parts, 8);
    return weir_key_end(&to);
}

weir_status weir_ucx_head_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_ucx_head *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'u', 'b', &from);
    if (status != WEIR_OK)
        return status;
    out->root = (uint32_t)weir_key_take_number(&from, 4);
    out->number = weir_key_take_number(&from, 8);
    out->n_bytes = weir_key_take_number(&from, 8);
    out->parts = weir_key_take_number(&from, 8);
    return weir_key_check_end(&from, who, "head of a broadcast");
}

weir_status weir_ucx_step_encode(const weir_ucx_step *step, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'u', 't');
    weir_key_put_number(&to, (uint64_t)step->kind, 4);
    weir_key_put_number(&to, step->value, 8);
    return weir_key_end(&to);
}

weir_status weir_ucx_step_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_ucx_step *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'u', 't', &from);
    if (status != WEIR_OK)
        return status;
    uint64_t kind = weir_key_take_number(&from, 4);
    if (kind >= WEIR_UCX_STEPS)
        from.failed = true;
    out->kind = from.failed ? WEIR_UCX_WAY : (weir_ucx_step_kind)kind;
    out->value = weir_key_take_number(&from, 8);
    return weir_key_check_end(&from, who, "step of a broadcast");
}

/* ---- any of them ------------------------------------------------------------------------------*/

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
    if (n_bytes < WEIR_KEY_HEAD_BYTES)
        return WEIR_OK;
    uint64_t total = weir_key_load_number(bytes + 8, 4);
    if (memcmp(bytes, WEIR_KEY_MAGIC, 4) != 0 || bytes[4] != 'u' ||
        total < WEIR_KEY_HEAD_BYTES + WEIR_KEY_CHECK_BYTES || total > message_limit(bytes[5]))
        return weir_fail(WEIR_ERR_CORRUPT, "no message of a group");
    *out_kind = (char)bytes[5];
    *out_message_bytes = (size_t)total;
    return WEIR_OK;
}
