/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_usage.h - what one client's calls occupy of what all clients share, and the bounds of that.
 *
 * A client is a connection, and all connections of one address together; the machine itself is no
 * such address, since everything that runs on it has it.
 */
#ifndef WEIR_RPC_RPC_USAGE_H
#define WEIR_RPC_RPC_USAGE_H

#include "rpc/rpc_stream.h"

/* A call of this connection is parked (1), or is no more (-1). */
void weir_rpc_usage_park(weir_rpc_calls *calls, int by);
/* The memory of a request of this connection has become so many bytes. */
void weir_rpc_usage_bytes(weir_rpc_calls *calls, size_t before, size_t after);

/* Whether the calls that are parked, the last one included, may be. False after having put the
 * bound into text. */
bool weir_rpc_usage_may_park(const weir_rpc_calls *calls, char text[WEIR_RPC_MESSAGE_TEXT]);
/* The same of n more bytes of a request: by the client's bounds, not by the server's. */
bool weir_rpc_usage_may_read(const weir_rpc_calls *calls, const weir_grpc_body *body, size_t n,
                             char text[WEIR_RPC_MESSAGE_TEXT]);

#endif
