/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_security.h - who may talk to whom: what was given and what the environment says, tokens, and
 * whether a server may listen where it was told to. No sockets, no TLS. */
#ifndef WEIR_RPC_RPC_SECURITY_H
#define WEIR_RPC_RPC_SECURITY_H

#include "rpc/rpc.h"
#include "rpc/rpc_address.h"
#include "rpc/rpc_token.h"
#include "weir/weir.h"

/* A copy; the strings are its own. Zeroed: nothing. */
typedef struct weir_security_kept {
    weir_rpc_security security;
    char *text;
    size_t n_text;
    weir_token_watch *watch; /* NULL: its token stays */
} weir_security_kept;

/* What is NULL in `given` (or all, when it is NULL) comes from the environment, the token from the
 * file that is named here or there; "" is nothing, whatever the environment says. ERR_INVALID for a
 * certificate without its key, a token beside its file, or a
 * token that no header can carry; ERR_IO, ERR_NOT_FOUND naming the file. Gives *out. */
weir_status weir_security_resolve(const weir_security *given, weir_security_kept *out);
/* `from` may be NULL. Gives *out. */
weir_status weir_security_copy(const weir_rpc_security *from, weir_security_kept *out);
void weir_security_free(weir_security_kept *kept); /* accepts a zeroed one */

/* 127.0.0.0/8, ::1, localhost. */
bool weir_host_is_loopback(const char *host);
/* ERR_REFUSED when others could reach the address and nothing would keep them out: it needs a
 * certificate, and a token or a CA for its callers' certificates. */
weir_status weir_security_check_listen(const weir_rpc_security *security,
                                       const weir_rpc_address *address);
/* ERR_REFUSED when a token would travel beyond this machine for all to read. */
weir_status weir_security_check_call(const weir_rpc_security *security,
                                     const weir_rpc_address *address);

/* Reads the token again if its file was replaced, once per second at most unless at_once. True: it
 * is another, kept->security.token as well. */
bool weir_security_refresh(weir_security_kept *kept, bool at_once);
/* Of a caller: whether it shows the token as its file has it at this moment, or the one before
 * while that is good (rpc_token.h). False without a token. */
bool weir_security_accepts(weir_security_kept *kept, const void *bytes, size_t n_bytes);
/* The same for a header's value, "Bearer TOKEN". */
bool weir_security_accepts_bearer(weir_security_kept *kept, const char *value, size_t n_value);
/* Of who was turned away with `shown`: what else to try, the token as its file has it or the one
 * before. NULL: nothing. Lives until the file is looked at again. */
const char *weir_security_other_token(weir_security_kept *kept, const char *shown);

#endif
