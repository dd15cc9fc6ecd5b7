/* SPDX-License-Identifier: Apache-2.0 */
/* http_server.h - HTTP/1.1 beside gRPC, for people and what watches on their behalf. Knows nothing
 * of weights.
 *
 * Threads    the rpc server's: it watches this server's descriptors, and handlers run there, one at
 *            a time and without locks. Nothing here blocks.
 * Ownership  a request lives until its handler returns. Bodies of answers are copied, unless they
 *            are constant.
 * Safety     GET and HEAD alone, and POST where a path takes it, though from no web page. Who is
 *            slow, with a request or with reading its answer, is cut off; connections, those of one
 *            address, headers, bodies and bytes of answers are bounded. TLS, the token and where it
 *            may listen are as those of gRPC (rpc.h); a CA means that callers show a certificate of
 *            it. Without a token, a loopback address answers only to names of this machine, so that
 *            no web page can read it under a name of its own.
 */
#ifndef WEIR_RPC_HTTP_SERVER_H
#define WEIR_RPC_HTTP_SERVER_H

#include "rpc/rpc.h"

typedef struct weir_http_server weir_http_server;

typedef struct weir_http_request {
    const char *path; /* "/api/fleet" */
    const char *peer; /* "10.0.0.1:51234" */
    bool is_post;
    const char *body; /* of a POST, n_body_bytes; NULL: none */
    size_t n_body_bytes;
    uint64_t ticket;  /* for weir_http_server_answer(); never the same again */
    void *connection; /* for weir_http_query() */
} weir_http_request;

/* The value of "?name=value", "" for "?name"; NULL: not there. */
const char *weir_http_query(const weir_http_request *request, const char *name);

typedef struct weir_http_answer {
    unsigned status;  /* 200 */
    const char *type; /* "text/plain; charset=utf-8"; a literal */
    const void *body;
    size_t n_bytes;
    bool is_constant; /* body lives as long as the program does */
} weir_http_answer;

#define WEIR_HTTP_READS "GET, HEAD"
#define WEIR_HTTP_POST "POST"

/* Answers, or returns false: the answer follows by weir_http_server_answer(). Must not block. */
typedef bool (*weir_http_handler)(void *context, const weir_http_request *request,
                                  weir_http_answer *answer);

/* 0: as said. */
typedef struct weir_http_limits {
    unsigned connections;          /* 512 */
    unsigned connections_per_host; /* 128 */
    unsigned request_ms;           /* 10,000 for a request to be there, and between two */
    unsigned answer_ms;            /* 30,000 for an answer to be read */
    size_t header_bytes;           /* 16 KiB: a connection's memory */
    size_t answer_bytes;           /* 64 MiB of all that nobody has read yet; else 503 */
    size_t body_bytes;             /* 64 KiB of a POST; else 413 */
} weir_http_limits;

typedef struct weir_http_counts {
    uint64_t requests, refused; /* refused: 4xx by this server itself */
    uint64_t cut_off;           /* connections that were too slow */
    unsigned open_connections, parked;
    size_t answer_bytes;
} weir_http_counts;

typedef struct weir_http_options {
    const char *listen; /* "HOST:PORT"; port 0: any */
    weir_rpc_security security;
    weir_http_limits limits;
    bool (*is_open)(const char *path); /* needs neither a token nor a certificate */
    /* WEIR_HTTP_READS or WEIR_HTTP_POST, else 405; a path that it gives NULL for is the handler's
     * to refuse. Then this server's own refusals are JSON: {"error": "..."}. NULL: no POST at all.
     */
    const char *(*methods)(const char *path);
    weir_http_handler handler;
    void (*gone)(void *context, uint64_t ticket); /* nobody waits for this answer any more */
    void *context;
} weir_http_options;

/* In the rpc server's thread, or from its `begin`. ERR_IO "cannot listen on …", ERR_REFUSED where
 * the security given is not enough to listen there. */
weir_status weir_http_server_open(const weir_http_options *options, weir_rpc_server *server,
                                  weir_http_server **out);
/* Once the rpc server is closed. Accepts NULL. */
void weir_http_server_close(weir_http_server *http);
const char *weir_http_server_address(const weir_http_server *http); /* with the real port */

/* In the rpc server's thread, not from within that request's own handler. False: nobody waits. */
bool weir_http_server_answer(weir_http_server *http, uint64_t ticket,
                             const weir_http_answer *answer);
weir_http_counts weir_http_server_counts(const weir_http_server *http);

#endif
