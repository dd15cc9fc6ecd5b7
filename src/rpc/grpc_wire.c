/* SPDX-License-Identifier: Apache-2.0 */
/* grpc_wire.c - the gRPC-over-HTTP/2 protocol's small encodings. */
#include "rpc/grpc_wire.h"

#include <stdio.h>
#include <string.h>

#define FIRST_BODY_BYTES ((size_t)4096)

const char *weir_grpc_code_name(int code)
{
    static const char *const names[] = {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    };
    return code >= 0 && code < (int)(sizeof(names) / sizeof(names[0])) ? names[code] : "UNKNOWN";
}

bool weir_grpc_is_content_type(const char *value, size_t n)
{
    static const char type[] = "application/grpc";
    const size_t n_type = sizeof(type) - 1;
    if (n < n_type || memcmp(value, type, n_type) != 0)
        return false;
    return n == n_type || value[n_type] == '+' || value[n_type] == ';';
}

/* ---- time-outs -------------------------------------------------------------------------------*/

static uint64_t unit_ns(char unit)
{
    switch (unit) {
    case 'H':
        return 3600ull * 1000000000ull;
    case 'M':
        return 60ull * 1000000000ull;
    case 'S':
        return 1000000000ull;
    case 'm':
        return 1000000ull;
    case 'u':
        return 1000ull;
    case 'n':
        return 1;
    default:
        return 0;
    }
}

bool weir_grpc_parse_timeout(const char *value, size_t n, uint64_t *out_ns)
{
    if (n < 2 || n > 9)
        return false;
    uint64_t number = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        if (value[i] < '0' || value[i] > '9')
            return false;
        number = number * 10 + (uint64_t)(value[i] - '0');
    }
    uint64_t unit = unit_ns(value[n - 1]);
    if (unit == 0)
        return false;
    *out_ns = number > UINT64_MAX / unit ? UINT64_MAX : number * unit;
    return true;
}

void weir_grpc_format_timeout(unsigned ms, char out[16])
{
    if (ms <= 99999999)
        snprintf(out, 16, "%um", ms);
    else
        snprintf(out, 16, "%uS", ms / 1000);
}

/* ---- status texts ----------------------------------------------------------------------------*/

size_t weir_grpc_encode_text(const char *text, char out[WEIR_GRPC_ENCODED_TEXT])
{
    static const char digits[] = "0123456789ABCDEF";
    size_t n = 0;
    for (size_t i = 0; text[i] != '\0' && i < WEIR_RPC_MESSAGE_TEXT; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte >= 0x20 && byte < 0x7f && byte != '%') {
            out[n++] = (char)byte;
            continue;
        }
        out[n++] = '%';
        out[n++] = digits[byte >> 4];
        out[n++] = digits[byte & 15];
    }
    out[n] = '\0';
    return n;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

size_t weir_grpc_decode_text(const char *value, size_t n, char *out, size_t out_bytes)
{
    size_t n_out = 0;
    for (size_t i = 0; i < n && n_out + 1 < out_bytes; i++) {
        unsigned char byte = (unsigned char)value[i];
        if (byte == '%' && i + 2 < n && hex_digit(value[i + 1]) >= 0 &&
            hex_digit(value[i + 2]) >= 0) {
            byte = (unsigned char)(hex_digit(value[i + 1]) << 4 | hex_digit(value[i + 2]));
            i += 2;
        }
        out[n_out++] = byte >= 0x20 && byte < 0x7f ? (char)byte : '?';
    }
    out[n_out] = '\0';
    return n_out;
}

/* ---- messages --------------------------------------------------------------------------------*/

void weir_grpc_put_prefix(unsigned char out[WEIR_GRPC_PREFIX_BYTES], uint32_t message_bytes)
{
    out[0] = 0; /* not compressed */
    for (int i = 0; i < 4; i++)
        out[1 + i] = (unsigned char)(message_bytes >> (24 - 8 * i));
}

static weir_grpc_fault read_prefix(weir_grpc_body *body)
{
    if (body->prefix[0] != 0)
        return WEIR_GRPC_COMPRESSED;
    body->declared_bytes = (size_t)body->prefix[1] << 24 | (size_t)body->prefix[2] << 16 |
                           (size_t)body->prefix[3] << 8 | (size_t)body->prefix[4];
    size_t max_bytes = body->max_bytes != 0 ? body->max_bytes : WEIR_RPC_MAX_MESSAGE_BYTES;
    return body->declared_bytes > max_bytes ? WEIR_GRPC_TOO_LARGE : WEIR_GRPC_FINE;
}

static bool make_room(weir_grpc_body *body, weir_rpc_heap *heap, size_t n_bytes)
{
    if (n_bytes <= body->capacity)
        return true;
    size_t capacity = body->capacity != 0 ? body->capacity * 2 : FIRST_BODY_BYTES;
    if (capacity > body->declared_bytes)
        capacity = body->declared_bytes; /* a small message that waits long takes little */
    if (capacity < n_bytes)
        capacity = n_bytes;
    unsigned char *data = weir_rpc_heap_realloc(heap, body->data, capacity);
    if (data == NULL)
        return false;
    body->data = data;
    body->capacity = capacity;
    return true;
}

weir_grpc_fault weir_grpc_body_add(weir_grpc_body *body, weir_rpc_heap *heap,
                                   const unsigned char *data, size_t n)
{
    while (n != 0 && body->n_prefix < WEIR_GRPC_PREFIX_BYTES) {
        body->prefix[body->n_prefix++] = *data++;
        n--;
        weir_grpc_fault fault = WEIR_GRPC_FINE;
        if (body->n_prefix == WEIR_GRPC_PREFIX_BYTES)
            fault = read_prefix(body);
        if (fault != WEIR_GRPC_FINE)
            return fault;
    }
    if (n == 0)
        return WEIR_GRPC_FINE;
    if (n > body->declared_bytes - body->n_bytes)
        return WEIR_GRPC_EXTRA;
    if (!make_room(body, heap, body->n_bytes + n))
        return WEIR_GRPC_NO_MEMORY;
    memcpy(body->data + body->n_bytes, data, n);
    body->n_bytes += n;
    return WEIR_GRPC_FINE;
}

bool weir_grpc_body_is_whole(const weir_grpc_body *body)
{
    return body->n_prefix == WEIR_GRPC_PREFIX_BYTES && body->n_bytes == body->declared_bytes;
}

void weir_grpc_body_rewind(weir_grpc_body *body)
{
    body->n_prefix = 0;
    body->declared_bytes = body->n_bytes = 0;
}

void weir_grpc_body_close(weir_grpc_body *body, weir_rpc_heap *heap)
{
    weir_rpc_heap_free(heap, body->data);
    *body = (weir_grpc_body){ .max_bytes = body->max_bytes };
}
