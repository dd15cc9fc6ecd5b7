/* SPDX-License-Identifier: Apache-2.0 */
/* http_core.h - what the files of the HTTP server share: http_server.c listens and keeps time,
 * http_exchange.c answers, http_guard.c says who may ask,
 * http_identity.c who answers. */
#ifndef WEIR_RPC_HTTP_CORE_H
#define WEIR_RPC_HTTP_CORE_H

#include <gnutls/gnutls.h>
#include <microhttpd.h>

#include "rpc/file_stamp.h"
#include "rpc/http_server.h"
#include "rpc/rpc_address.h"
#include "rpc/rpc_security.h"

#define WEIR_HTTP_PEER_TEXT 64

#define WEIR_HTTP_FILES 3 /* certificate, key, CA */

/* Who this server is, and whom it believes, by one reading of its files. */
typedef struct weir_http_identity {
    struct weir_http_identity *next; /* the one before */
    gnutls_certificate_credentials_t credentials;
    unsigned n_links; /* that began with it, and go on with it */
} weir_http_identity;

/* One socket. */
typedef struct weir_http_link {
    struct weir_http_link *next, *previous;
    weir_http_server *http;
    weir_http_identity *identity; /* NULL: plain text, or libmicrohttpd's own */
    int fd;
    uint64_t due_ns; /* its peer must have done something by then; 0: it is our turn */
    bool is_asked_for_certificate, has_certificate;
    char peer[WEIR_HTTP_PEER_TEXT];
} weir_http_link;

/* One request and its answer. */
typedef struct weir_http_exchange {
    struct weir_http_exchange *next, *previous; /* of those that are parked */
    weir_http_request request;
    weir_http_link *link;
    struct MHD_Connection *connection;
    struct MHD_Response *response; /* NULL: none yet */
    char *body;                    /* of limits.body_bytes; NULL: nothing has come */
    uint64_t n_received;           /* of it, and of what had no room */
    unsigned status;
    bool is_parked;
} weir_http_exchange;

struct weir_http_server {
    struct MHD_Daemon *daemon;
    weir_rpc_server *server;
    weir_security_kept kept;
    weir_http_limits limits;
    bool (*is_open)(const char *path);
    const char *(*methods)(const char *path);
    weir_http_handler handler;
    void (*gone)(void *context, uint64_t ticket);
    void *context;
    weir_rpc_address listen;
    char address[WEIR_RPC_ADDRESS_TEXT];
    int timer_fd;
    bool has_resumed;               /* connections, since the last turn */
    weir_http_identity *identities; /* the newest first; NULL: no connection has come */
    weir_file_stamp stamps[WEIR_HTTP_FILES];
    weir_deadline look_again; /* at files that will not do as they are; 0: they do */
    weir_http_link *links;
    weir_http_exchange *parked;
    uint64_t last_ticket, next_check_ns;
    weir_http_counts counts;
};

/* ---- http_exchange.c -------------------------------------------------------------------------*/

/* For MHD_start_daemon() and MHD_OPTION_NOTIFY_COMPLETED; cls is the server. */
enum MHD_Result weir_http_on_request(void *cls, struct MHD_Connection *connection, const char *url,
                                     const char *method, const char *version,
                                     const char *upload_data, size_t *upload_data_size,
                                     void **con_cls);
void weir_http_on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                            enum MHD_RequestTerminationCode code);
/* Its peer is gone, or the server: ends the wait without an answer. */
void weir_http_exchange_give_up(weir_http_exchange *exchange);

/* ---- http_server.c ---------------------------------------------------------------------------*/

/* Lets a suspended connection go on in the next turn. */
void weir_http_resume(weir_http_server *http, struct MHD_Connection *connection);

/* ---- http_guard.c ----------------------------------------------------------------------------*/

/* What a path takes; NULL: no such path. */
const char *weir_http_methods(const weir_http_exchange *exchange);
/* Why this request is not answered, as an answer; false: it may be. */
bool weir_http_refuse(const weir_http_exchange *exchange, const char *method,
                      weir_http_answer *out);

/* ---- http_identity.c -------------------------------------------------------------------------*/

/* A CA file is given, and no machine's own. */
bool weir_http_asks_for_certificate(const weir_rpc_security *security);

/* The PEM files of a security, as text. */
typedef struct weir_http_credentials {
    char *certificate, *key, *ca; /* NULL: none */
} weir_http_credentials;
weir_status weir_http_credentials_read(const weir_rpc_security *security,
                                       weir_http_credentials *out);
void weir_http_credentials_free(weir_http_credentials *credentials);

/* Before the handshake of a connection: goes by the files as they are at this moment. When they
 * will not do, by those that did. */
void weir_http_identify(weir_http_link *link, gnutls_session_t session);
/* Frees those that no connection has any more, the newest excepted unless `all`. Not while
 * libmicrohttpd runs. */
void weir_http_forget_identities(weir_http_server *http, bool all);

#endif
