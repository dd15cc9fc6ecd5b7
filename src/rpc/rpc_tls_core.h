/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_tls_core.h - what the sources of TLS share: contexts and sessions from within. */
#ifndef WEIR_RPC_RPC_TLS_CORE_H
#define WEIR_RPC_RPC_TLS_CORE_H

#include <openssl/ssl.h>

#include "rpc/file_stamp.h"
#include "rpc/rpc_security.h"
#include "rpc/rpc_tls.h"

#define WEIR_TLS_FILES 3 /* certificate, key, CA */
#define WEIR_TLS_TEXT 640

struct weir_tls_context {
    weir_security_kept kept;
    weir_rpc_side side;
    unsigned char protocols[32]; /* one, after its length, as ALPN has it */
    size_t n_protocols;
    BIO_METHOD *socket;
    SSL_CTX *ssl;
    weir_file_stamp stamps[WEIR_TLS_FILES];
    weir_deadline look_again; /* at files that could not be read as they are */
    bool is_warned;
    weir_tls_session *spare; /* closed ones, so that a connection like others allocates nothing */
    unsigned n_spare;
};

struct weir_tls_session {
    weir_tls_context *context;
    weir_tls_session *next; /* of spare ones */
    SSL *ssl;
    int fd;
    weir_deadline deadline; /* of the handshake; 0: done */
    unsigned handshake_ms;
    bool wants_write, has_peeked, is_plain, is_at_end;
    int socket_errno;
    weir_error_line failed;    /* why it is over */
    weir_status status;        /* OK while it is not */
    char doubt[WEIR_TLS_TEXT]; /* what is wrong with the peer's certificate */
    char host[WEIR_RPC_HOST_BYTES];
    char peer_name[64];
};

/* Reads the files again if they are others. Old ones stay in force when the new ones will not do.
 */
void weir_tls_context_refresh(weir_tls_context *context);

/* The socket as OpenSSL's sessions see it; its data is the weir_tls_session. NULL: no memory. */
BIO_METHOD *weir_tls_socket_method(void);

/* OpenSSL's last reason in words, and an end to its queue. */
void weir_tls_reason(char *out, size_t n_out);

#endif
