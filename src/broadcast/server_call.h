/* SPDX-License-Identifier: Apache-2.0 */
/* server_call.h - HTTP calls to several inference servers at once: JSON there and back.
 *
 * Each call has a bound, and a connection of its own: a server that was started anew is noticed,
 * and nothing is sent twice. Answers are bounded. No redirects, no proxies.
 *
 * Threads    one at a time.
 * Ownership  a reply's texts live until the next wait.
 * Errors     what a call comes to is told by its reply, not by a status.
 */
#ifndef WEIR_BROADCAST_SERVER_CALL_H
#define WEIR_BROADCAST_SERVER_CALL_H

#include <stdbool.h>
#include <stddef.h>

#include "broadcast/orchestrator_step.h"
#include "weir/weir.h"

#define WEIR_SERVER_ANSWER_BYTES ((size_t)256 << 10)

typedef struct weir_server_calls weir_server_calls;

/* Addresses "http://HOST:PORT", "https://HOST:PORT", "HOST:PORT" (TLS where there is a CA).
 * ERR_INVALID for others; ERR_REFUSED where a token would travel in the clear beyond this machine,
 * or TLS alone is asked for and an address says http. Gives *out. */
weir_status weir_server_calls_open(const char *const *addresses, size_t n_addresses,
                                   const weir_security *security, weir_server_calls **out);
/* Ends what is under way. Accepts NULL. */
void weir_server_calls_close(weir_server_calls *calls);
/* "http://HOST:PORT", as it is called. */
const char *weir_server_calls_address(const weir_server_calls *calls, size_t server);

/* GET, or with a body (JSON, copied) POST. One call per server at a time. */
weir_status weir_server_calls_begin(weir_server_calls *calls, size_t server, const char *path,
                                    const char *body, unsigned timeout_ms);

/* Gives up a call that is under way: no reply will come of it. */
void weir_server_calls_abandon(weir_server_calls *calls, size_t server);

typedef struct weir_server_reply {
    size_t server;
    weir_call_end end; /* OK, REFUSED, ABSENT, UNSENT, LOST, LATE; GARBLED: longer than the bound */
    unsigned http_status; /* 0: none */
    const char *body;     /* NUL-terminated */
    size_t n_body;
    const char *cause; /* of an end without an answer: one line */
    double seconds;
} weir_server_reply;

/* From any thread: ends a wait that is under way, or the next one. */
void weir_server_calls_wake(weir_server_calls *calls);

/* Waits, at most timeout_ms, until something moves; false: no call has ended. */
bool weir_server_calls_wait(weir_server_calls *calls, unsigned timeout_ms, weir_server_reply *out);

#endif
