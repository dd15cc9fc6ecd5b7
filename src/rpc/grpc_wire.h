/* SPDX-License-Identifier: Apache-2.0 */
/* grpc_wire.h - what gRPC adds to HTTP/2: the message prefix, time-outs, status texts, codes.
 *
 * Pure functions and one growing buffer; no sockets. Input is hostile unless said otherwise.
 */
#ifndef WEIR_RPC_GRPC_WIRE_H
#define WEIR_RPC_GRPC_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rpc/rpc.h"
#include "rpc/rpc_heap.h"

#define WEIR_GRPC_PREFIX_BYTES 5
/* A status text, percent-encoded: three characters per byte at worst. */
#define WEIR_GRPC_ENCODED_TEXT (3 * WEIR_RPC_MESSAGE_TEXT + 1)

/* "NOT_FOUND"; "UNKNOWN" for a number that gRPC does not have. */
const char *weir_grpc_code_name(int code);

/* "application/grpc", alone or followed by '+' or ';'. */
bool weir_grpc_is_content_type(const char *value, size_t n);

/* One to eight digits and a unit of HMSmun. */
bool weir_grpc_parse_timeout(const char *value, size_t n, uint64_t *out_ns);
void weir_grpc_format_timeout(unsigned ms, char out[16]);

/* Percent-encoding of grpc-message. Both NUL-terminate; decoding cuts what does not fit and puts
 * '?' for bytes that are no printable text. Returns the number of characters. */
size_t weir_grpc_encode_text(const char *text, char out[WEIR_GRPC_ENCODED_TEXT]);
size_t weir_grpc_decode_text(const char *value, size_t n, char *out, size_t out_bytes);

void weir_grpc_put_prefix(unsigned char out[WEIR_GRPC_PREFIX_BYTES], uint32_t message_bytes);

/* ---- one message as it arrives ---------------------------------------------------------------*/

typedef struct weir_grpc_body {
    unsigned char prefix[WEIR_GRPC_PREFIX_BYTES];
    unsigned n_prefix;
    size_t max_bytes;      /* of one message; 0: WEIR_RPC_MAX_MESSAGE_BYTES */
    size_t declared_bytes; /* valid once the prefix is whole */
    size_t n_bytes, capacity;
    unsigned char *data;
} weir_grpc_body;

typedef enum weir_grpc_fault {
    WEIR_GRPC_FINE = 0,
    WEIR_GRPC_COMPRESSED, /* the flag is set, and nobody was offered compression */
    WEIR_GRPC_TOO_LARGE,  /* more than max_bytes declared */
    WEIR_GRPC_EXTRA,      /* bytes beyond one message */
    WEIR_GRPC_NO_MEMORY
} weir_grpc_fault;

/* Memory grows with the bytes that came, never with what the prefix declares. */
weir_grpc_fault weir_grpc_body_add(weir_grpc_body *body, weir_rpc_heap *heap,
                                   const unsigned char *data, size_t n);
bool weir_grpc_body_is_whole(const weir_grpc_body *body);
/* Ready for the next message, memory kept. */
void weir_grpc_body_rewind(weir_grpc_body *body);
void weir_grpc_body_close(weir_grpc_body *body, weir_rpc_heap *heap);

#endif
