/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_message.c - a walk over the wire bytes by descriptor, then protobuf-c's own unpacking. */
#include "rpc/rpc_message.h"

#include <stdint.h>
#include <string.h>

#include "base/error.h"

#define MAX_DEPTH 16 /* the messages here nest four deep; protobuf-c recurses without a bound */

typedef struct reader {
    const unsigned char *at, *end;
} reader;

static bool read_varint(reader *in, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (in->at == in->end)
            return false;
        unsigned char byte = *in->at++;
        value |= shift < 64 ? (uint64_t)(byte & 0x7f) << shift : 0;
        if ((byte & 0x80) == 0) {
            *out = value;
            return true;
        }
    }
    return false;
}

/* Takes n bytes off the front. */
static bool take(reader *in, uint64_t n, reader *out)
{
    if (n > (uint64_t)(in->end - in->at))
        return false;
    *out = (reader){ in->at, in->at + n };
    in->at += n;
    return true;
}

/* The length of the UTF-8 sequence at `in` (shortest form, no surrogates), 0 when there is none. */
static size_t sequence_bytes(const unsigned char *at, size_t left)
{
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    unsigned char lead = at[0];
    if (lead < 0x80)
        return lead != 0;
    size_t n = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || left < n)
        return 0;
    uint32_t point = lead & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        point = point << 6 | (at[i] & 0x3fu);
    }
    if (point < least[n] || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff))
        return 0;
    return n;
}

static bool is_text(const reader *text)
{
    for (const unsigned char *at = text->at; at != text->end;) {
        size_t n = sequence_bytes(at, (size_t)(text->end - at));
        if (n == 0)
            return false;
        at += n;
    }
    return true;
}

void weir_rpc_text_repair(char *text)
{
    for (size_t left = strlen(text); left != 0;) {
        size_t n = sequence_bytes((const unsigned char *)text, left);
        if (n == 0) {
            *text = '?';
            n = 1;
        }
        text += n;
        left -= n;
    }
}

static weir_status malformed(const ProtobufCMessageDescriptor *descriptor)
{
    return weir_fail(WEIR_ERR_FORMAT, "bytes are not a %s message", descriptor->short_name);
}

static weir_status check(const ProtobufCMessageDescriptor *descriptor, reader in, int depth);

static weir_status check_delimited(const ProtobufCMessageDescriptor *descriptor, uint32_t id,
                                   const reader *piece, int depth)
{
    const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(descriptor, id);
    if (field == NULL)
        return WEIR_OK;
    if (field->type == PROTOBUF_C_TYPE_STRING && !is_text(piece))
        return weir_fail(WEIR_ERR_FORMAT, "%s.%s is not UTF-8 text without NUL",
                         descriptor->short_name, field->name);
    if (field->type == PROTOBUF_C_TYPE_MESSAGE)
        return check(field->descriptor, *piece, depth + 1);
    return WEIR_OK;
}

static weir_status check(const ProtobufCMessageDescriptor *descriptor, reader in, int depth)
{
    if (depth > MAX_DEPTH)
        return malformed(descriptor);
    while (in.at != in.end) {
        uint64_t tag, value;
        reader piece;
        if (!read_varint(&in, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
            return malformed(descriptor);
        bool whole;
        switch (tag & 7) {
        case PROTOBUF_C_WIRE_TYPE_VARINT:
            whole = read_varint(&in, &value);
            break;
        case PROTOBUF_C_WIRE_TYPE_64BIT:
            whole = take(&in, 8, &piece);
            break;
        case PROTOBUF_C_WIRE_TYPE_32BIT:
            whole = take(&in, 4, &piece);
            break;
        case PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED:
            whole = read_varint(&in, &value) && take(&in, value, &piece);
            break;
        default:
            whole = false;
        }
        if (!whole)
            return malformed(descriptor);
        if ((tag & 7) != PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED)
            continue;
        weir_status status = check_delimited(descriptor, (uint32_t)(tag >> 3), &piece, depth);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

weir_status weir_rpc_message_check(const ProtobufCMessageDescriptor *descriptor,
                                   const unsigned char *data, size_t n_bytes)
{
    static const unsigned char none[1];
    if (n_bytes == 0)
        data = none;
    return check(descriptor, (reader){ data, data + n_bytes }, 0);
}

/* ---- unpacking -------------------------------------------------------------------------------*/

typedef struct capped_arena {
    weir_arena *arena;
    bool is_out; /* an allocation failed: it was not the bytes' fault */
} capped_arena;

static void *arena_alloc(void *context, size_t n_bytes)
{
    capped_arena *capped = context;
    void *piece = weir_arena_alloc(capped->arena, n_bytes);
    if (piece == NULL)
        capped->is_out = true;
    return piece;
}

static void arena_free(void *context, void *piece)
{
    (void)context;
    (void)piece;
}

weir_status weir_rpc_message_unpack(const ProtobufCMessageDescriptor *descriptor,
                                    const unsigned char *data, size_t n_bytes, weir_arena *arena,
                                    ProtobufCMessage **out)
{
    weir_status status = weir_rpc_message_check(descriptor, data, n_bytes);
    if (status != WEIR_OK)
        return status;
    capped_arena capped = { arena, false };
    ProtobufCAllocator allocator = { arena_alloc, arena_free, &capped };
    ProtobufCMessage *message = protobuf_c_message_unpack(descriptor, &allocator, n_bytes, data);
    if (message == NULL)
        return capped.is_out ? WEIR_ERR_NO_MEMORY : malformed(descriptor);
    *out = message;
    return WEIR_OK;
}
