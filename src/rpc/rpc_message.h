/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_message.h - protobuf messages from outside, checked before and capped while they unpack.
 *
 * protobuf-c trusts its input in three ways that a server must not: a NUL inside a string cuts it
 * short in silence, text need not be UTF-8, and a message can unpack to many times its size.
 */
#ifndef WEIR_RPC_RPC_MESSAGE_H
#define WEIR_RPC_RPC_MESSAGE_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/arena.h"
#include "weir/status.h"

/* Well-formed wire bytes, and every string in them UTF-8 without a NUL. ERR_FORMAT naming the
 * message and field. */
weir_status weir_rpc_message_check(const ProtobufCMessageDescriptor *descriptor,
                                   const unsigned char *data, size_t n_bytes);

/* Checks, then unpacks into the arena, whose cap bounds it (ERR_NO_MEMORY). Nothing to free. */
weir_status weir_rpc_message_unpack(const ProtobufCMessageDescriptor *descriptor,
                                    const unsigned char *data, size_t n_bytes, weir_arena *arena,
                                    ProtobufCMessage **out);

/* Puts '?' for every byte that is not UTF-8: a text was cut in the middle of a character, and peers
 * refuse a whole message for that. */
void weir_rpc_text_repair(char *text);

#endif
