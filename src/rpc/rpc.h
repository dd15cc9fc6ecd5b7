/* SPDX-License-Identifier: Apache-2.0 */
/* rpc.h - unary gRPC over nghttp2 and protobuf-c. Knows nothing of weights.
 *
 * Threads    a server runs in one thread of its own and calls handlers there, one at a time. A
 *            client belongs to one thread at a time; it keeps one connection and makes a fresh one
 *            when the old one is gone.
 * Ownership  requests handed to handlers live until the handler returns; responses are built in the
 *            arena that it is given. Responses given to callers live in the caller's arena.
 * Errors     every call ends by its deadline. UNAVAILABLE becomes ERR_PEER_LOST, DEADLINE_EXCEEDED
 *            ERR_TIMED_OUT, NOT_FOUND ERR_NOT_FOUND, UNIMPLEMENTED ERR_UNSUPPORTED, any other code
 *            ERR_REFUSED; the line reads "127.0.0.1:50051: RefitService.GetWeightVersion:
 * NOT_FOUND: no such version". Bytes from the network are bounded and never trusted: message size,
 *            header size, streams, connections, and the memory that a message may unpack to.
 */
#ifndef WEIR_RPC_RPC_H
#define WEIR_RPC_RPC_H

#include <protobuf-c/protobuf-c.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/traceparent.h"
#include "weir/status.h"

typedef enum weir_rpc_code {
    WEIR_RPC_OK = 0,
    WEIR_RPC_CANCELLED = 1,
    WEIR_RPC_UNKNOWN = 2,
    WEIR_RPC_INVALID_ARGUMENT = 3,
    WEIR_RPC_DEADLINE_EXCEEDED = 4,
    WEIR_RPC_NOT_FOUND = 5,
    WEIR_RPC_ALREADY_EXISTS = 6,
    WEIR_RPC_PERMISSION_DENIED = 7,
    WEIR_RPC_RESOURCE_EXHAUSTED = 8,
    WEIR_RPC_FAILED_PRECONDITION = 9,
    WEIR_RPC_ABORTED = 10,
    WEIR_RPC_OUT_OF_RANGE = 11,
    WEIR_RPC_UNIMPLEMENTED = 12,
    WEIR_RPC_INTERNAL = 13,
    WEIR_RPC_UNAVAILABLE = 14,
    WEIR_RPC_DATA_LOSS = 15,
    WEIR_RPC_UNAUTHENTICATED = 16
} weir_rpc_code;

#define WEIR_RPC_MESSAGE_TEXT 256
#define WEIR_RPC_MAX_MESSAGE_BYTES ((size_t)64 << 20)

/* ---- server ----------------------------------------------------------------------------------*/

typedef struct weir_rpc_server weir_rpc_server;

/* The call that a handler answers. Lives until the handler returns, or as long as the ticket does.
 */
typedef struct weir_rpc_call_info {
    uint64_t ticket;            /* for weir_rpc_server_answer(); never 0, never the same again */
    const unsigned char *bytes; /* the request as it came, n_bytes */
    size_t n_bytes;
    const char *peer;              /* "10.0.0.1:51234", or the name in its certificate */
    weir_deadline deadline;        /* the caller's; 0: none */
    const weir_traceparent *trace; /* that the call belongs to; NULL: its caller said none */
} weir_rpc_call_info;

/* Of a handler: the answer follows by weir_rpc_server_answer(). The caller's deadline ends such a
 * call too. */
#define WEIR_RPC_LATER ((weir_rpc_code)100)

/* Answers one call. `request` is of the method's input type. On WEIR_RPC_OK *out_response is a
 * message of the output type whose memory lasts until the handler is called again (the arena's,
 * say); otherwise `message` (WEIR_RPC_MESSAGE_TEXT bytes) says why. Must not block. */
typedef weir_rpc_code (*weir_rpc_handler)(void *context, const weir_rpc_call_info *call,
                                          const ProtobufCMessage *request, weir_arena *arena,
                                          const ProtobufCMessage **out_response, char *message);

typedef struct weir_rpc_method {
    const char *name; /* "GetWeightVersion" */
    weir_rpc_handler handler;
} weir_rpc_method;

/* Methods of one service; those that are not listed answer UNIMPLEMENTED. */
typedef struct weir_rpc_service {
    const ProtobufCServiceDescriptor *descriptor;
    const weir_rpc_method *methods;
    size_t n_methods;
    void *context;
} weir_rpc_service;

/* Who may talk to whom, and whether others can listen. Strings are copied on open; all NULL: plain
 * text, and everybody may. */
typedef struct weir_rpc_security {
    const char *certificate, *key; /* PEM files. Of a server: it speaks TLS (1.2 or later) alone. Of
                                      a client: it shows them (mutual TLS) */
    const char
        *ca; /* PEM file. Of a server: clients must show a certificate that it signed. Of a
                client: it speaks TLS, and the server's must be signed by it and name its host
                ("system": the machine's own) */
    const char *token; /* a bearer token. Of a server: calls without it are UNAUTHENTICATED. Of a
                          client: sent with every call */
    const char
        *token_file; /* what `token` was read from: read again when it is replaced. NULL: none
                      */
    bool insecure; /* of a server: listens beyond loopback without TLS, or with neither token nor CA
                      file; of a client: sends its token there without TLS. Else that is ERR_REFUSED
                    */
} weir_rpc_security;

/* 0: as said. */
typedef struct weir_rpc_limits {
    unsigned connections;          /* 12,288, or half of the descriptors that this process may have;
                                      what is asked for is bounded by what they leave room for */
    unsigned connections_per_host; /* half of them from one address that is not loopback */
    unsigned streams;              /* 128 calls at once on one connection */
    unsigned parked;      /* calls that wait for a later answer: 4,096 more than connections,
                             16,384 at least */
    size_t message_bytes; /* 64 MiB of one request */
    size_t request_bytes; /* 256 MiB of all that are not answered */
    /* Of these a quarter for one client: a connection, and all of one address that is not loopback,
     * which unless this is said may have as many calls parked as connections, if that is more. */
    unsigned client_parked;
    size_t client_request_bytes;
} weir_rpc_limits;

/* What the server's thread counted so far. */
typedef struct weir_rpc_counts {
    uint64_t calls, failures;                               /* answered; of these not OK */
    uint64_t connections;                                   /* accepted */
    uint64_t refused_connections, unauthenticated, dropped; /* dropped: for what its peer did */
    uint64_t in_bytes, out_bytes;
    unsigned open_connections, parked;
} weir_rpc_counts;

typedef struct weir_rpc_server_options {
    const char *listen; /* "HOST:PORT"; port 0: any. NULL: nowhere, for what it watches alone */
    const weir_rpc_service *services; /* copied; descriptors and methods are kept */
    size_t n_services;
    /* Called in the server's thread when due; returns after how many milliseconds next (at least
     * 1). NULL: never. */
    unsigned (*tick)(void *context);
    void *tick_context;
    unsigned tick_ms; /* until the first */
    /* Called in the server's thread when a call that was to be answered later is over without: its
     * caller is gone or its time is up. NULL: nobody wants to know. */
    void (*gone)(void *context, uint64_t ticket);
    void *gone_context;
    /* Called in the server's thread for every call that is answered with another code than OK,
     * whoever decided so. `method` NULL: there is no such method. NULL: nobody counts them. */
    void (*refused)(void *context, const ProtobufCMethodDescriptor *method, weir_rpc_code code);
    void *refused_context;
    /* Called by weir_rpc_server_open() when it listens and its thread has not begun: keeps the
     * handle, watches descriptors. Unless it says OK, open fails with what it says. NULL: nothing.
     */
    weir_status (*begin)(void *context, weir_rpc_server *server);
    void *begin_context;
    weir_rpc_security security;
    /* Answers callers without the token too, so that others can see whether the server is up. NULL:
     * none does. */
    const ProtobufCServiceDescriptor *open_service;
    bool is_uncounted; /* what its thread allocates is left out of weir_alloc_count() */
    weir_rpc_limits limits;
} weir_rpc_server_options;

/* In the server's thread alone, from a handler, a tick, `gone` or a watched file descriptor:
 * answers a call that was to be answered later; from within its own handler, too, whose
 * WEIR_RPC_LATER then says that it was. `response` as handlers give it, packed at once. False: that
 * call is over. */
bool weir_rpc_server_answer(weir_rpc_server *server, uint64_t ticket, weir_rpc_code code,
                            const ProtobufCMessage *response, const char *text);
/* In the server's thread, or from `begin`: `ready` is called whenever `fd` has one of `events`
 * (EPOLLIN | EPOLLOUT), until events is 0. At most 8 of them. */
weir_status weir_rpc_server_watch(weir_rpc_server *server, int fd, uint32_t events,
                                  void (*ready)(void *context, uint32_t events), void *context);
/* In the server's thread. */
weir_rpc_counts weir_rpc_server_counts(const weir_rpc_server *server);

/* Listens and starts the thread. ERR_IO "cannot listen on HOST:PORT: Address already in use";
 * ERR_REFUSED where the security given is not enough to listen there. */
weir_status weir_rpc_server_open(const weir_rpc_server_options *options, weir_rpc_server **out);
/* Stops the thread; calls in flight end with UNAVAILABLE. Accepts NULL. */
void weir_rpc_server_close(weir_rpc_server *server);
/* "HOST:PORT" with the real port. */
const char *weir_rpc_server_address(const weir_rpc_server *server);

/* ---- client ----------------------------------------------------------------------------------*/

typedef struct weir_rpc_client weir_rpc_client;

/* Remembers "HOST:PORT", or several where the same service is, "HOST:PORT,HOST:PORT" (8 at most);
 * connects at the first call. `who` ("directory", "trainer rank 1") goes before the address in
 * errors; NULL: nothing. security NULL: plain text, no token. */
weir_status weir_rpc_client_open(const char *addresses, const char *who,
                                 const weir_rpc_security *security, weir_rpc_client **out);
/* "HOST:PORT" of the one that is asked first: the one that answered last. The client's, for as long
 * as it is open. */
const char *weir_rpc_client_address(const weir_rpc_client *client);
/* How often it has gone over from one to the next. */
uint64_t weir_rpc_client_moves(const weir_rpc_client *client);
void weir_rpc_client_close(weir_rpc_client *client); /* accepts NULL */

/* One call. `method` names a method of `service`. Unpacks the response into `arena`. A call that
 * finds its kept connection closed before any byte of an answer is made once more on a fresh one
 * (the services here are idempotent); a refused connection is ERR_PEER_LOST at once. Of several
 * addresses the next is asked then, and when one answers UNAVAILABLE or not within its part of the
 * time (10 s at most), each once; the next call begins with the one that answered.
 * After the first calls of each kind, a call takes no memory from the heap but what its messages
 * need beyond what earlier ones did. */
weir_status weir_rpc_call(weir_rpc_client *client, const ProtobufCServiceDescriptor *service,
                          const char *method, const ProtobufCMessage *request, unsigned timeout_ms,
                          weir_arena *arena, const ProtobufCMessage **out_response);

/* Calls from here on belong to this trace, and say so (`traceparent`); NULL: to none. Copied. */
void weir_rpc_client_trace(weir_rpc_client *client, const weir_traceparent *trace);

/* From any thread: makes the call in flight end with ERR_CANCELLED; when none is, the next one, so
 * that a thread which is just about to call is not missed. */
void weir_rpc_client_cancel(weir_rpc_client *client);
/* Forgets a cancellation that no call has heard. Between calls. */
void weir_rpc_client_uncancel(weir_rpc_client *client);

#endif
