/* SPDX-License-Identifier: Apache-2.0 */
/* http_exchange.c - one request, from its headers to its answer: refused, answered at once, or
 * parked until somebody answers. */
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "rpc/http_core.h"

#define NS_PER_MS 1000000ull
#define DISCARDED_BODIES 8u /* a longer one is not waited for, not even for its answer */

const char *weir_http_query(const weir_http_request *request, const char *name)
{
    const char *value;
    size_t n_value;
    if (MHD_lookup_connection_value_n(request->connection, MHD_GET_ARGUMENT_KIND, name,
                                      strlen(name), &value, &n_value) != MHD_YES)
        return NULL;
    if (value == NULL)
        return "";
    return strlen(value) == n_value ? value : ""; /* not with a NUL in it */
}

/* ---- parked exchanges ------------------------------------------------------------------------*/

static void park(weir_http_exchange *exchange)
{
    weir_http_server *http = exchange->link->http;
    exchange->is_parked = true;
    exchange->next = http->parked;
    if (http->parked != NULL)
        http->parked->previous = exchange;
    http->parked = exchange;
    http->counts.parked++;
    MHD_suspend_connection(exchange->connection);
}

static void unpark(weir_http_exchange *exchange)
{
    weir_http_server *http = exchange->link->http;
    if (exchange->previous != NULL)
        exchange->previous->next = exchange->next;
    else
        http->parked = exchange->next;
    if (exchange->next != NULL)
        exchange->next->previous = exchange->previous;
    exchange->next = exchange->previous = NULL;
    exchange->is_parked = false;
    http->counts.parked--;
}

/* ---- answers ---------------------------------------------------------------------------------*/

/* What stands before a copied body. */
typedef struct body_head {
    weir_http_server *http;
    size_t n_bytes;
} body_head;

static void free_body(void *cls)
{
    body_head *head = cls;
    head->http->counts.answer_bytes -= head->n_bytes;
    weir_free(head);
}

static struct MHD_Response *respond_with_copy(weir_http_server *http,
                                              const weir_http_answer *answer)
{
    if (answer->n_bytes > http->limits.answer_bytes - http->counts.answer_bytes)
        return NULL;
    body_head *head = weir_alloc(sizeof(*head) + answer->n_bytes);
    if (head == NULL)
        return NULL;
    *head = (body_head){ http, answer->n_bytes };
    if (answer->n_bytes != 0)
        memcpy(head + 1, answer->body, answer->n_bytes);
    http->counts.answer_bytes += answer->n_bytes;
    struct MHD_Response *response = MHD_create_response_from_buffer_with_free_callback_cls(
        answer->n_bytes, head + 1, free_body, head);
    if (response == NULL)
        free_body(head);
    return response;
}

static struct MHD_Response *respond_with_constant(const weir_http_answer *answer)
{
    return MHD_create_response_from_buffer(answer->n_bytes, (void *)answer->body,
                                           MHD_RESPMEM_PERSISTENT);
}

static bool add_headers(const weir_http_exchange *exchange, struct MHD_Response *response,
                        const weir_http_answer *answer)
{
    static const char *const headers[][2] = {
        { "Content-Security-Policy", "default-src 'self'; object-src 'none'; base-uri 'none'; "
                                     "form-action 'none'; frame-ancestors 'none'" },
        { "X-Content-Type-Options", "nosniff" },
        { "X-Frame-Options", "DENY" },
        { "Referrer-Policy", "no-referrer" },
        { "Cross-Origin-Resource-Policy", "same-origin" },
        { "Cache-Control", "no-store" },
    };
    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
        if (MHD_add_response_header(response, headers[i][0], headers[i][1]) != MHD_YES)
            return false;
    }
    if (answer->status == MHD_HTTP_UNAUTHORIZED &&
        MHD_add_response_header(response, "WWW-Authenticate", "Bearer realm=\"weir\"") != MHD_YES)
        return false;
    const char *methods = weir_http_methods(exchange);
    if (answer->status == MHD_HTTP_METHOD_NOT_ALLOWED && methods != NULL &&
        MHD_add_response_header(response, "Allow", methods) != MHD_YES)
        return false;
    return MHD_add_response_header(response, "Content-Type", answer->type) == MHD_YES;
}

/* False when there is no room for it. */
static bool prepare(weir_http_exchange *exchange, const weir_http_answer *answer)
{
    static const char busy[] = "too many answers are waiting to be read\n";
    static const weir_http_answer overloaded = { MHD_HTTP_SERVICE_UNAVAILABLE,
                                                 "text/plain; charset=utf-8", busy,
                                                 sizeof(busy) - 1, true };
    struct MHD_Response *response = answer->is_constant
                                        ? respond_with_constant(answer)
                                        : respond_with_copy(exchange->link->http, answer);
    if (response == NULL) {
        answer = &overloaded;
        response = respond_with_constant(answer);
    }
    if (response == NULL)
        return false;
    if (!add_headers(exchange, response, answer)) {
        MHD_destroy_response(response);
        return false;
    }
    exchange->response = response;
    exchange->status = answer->status;
    return true;
}

static enum MHD_Result queue(weir_http_exchange *exchange)
{
    weir_http_link *link = exchange->link;
    if (exchange->response == NULL)
        return MHD_NO; /* the connection is closed */
    link->due_ns = weir_now_ns() + link->http->limits.answer_ms * NS_PER_MS;
    return MHD_queue_response(exchange->connection, exchange->status, exchange->response);
}

bool weir_http_server_answer(weir_http_server *http, uint64_t ticket,
                             const weir_http_answer *answer)
{
    weir_http_exchange *exchange = http->parked;
    while (exchange != NULL && exchange->request.ticket != ticket)
        exchange = exchange->next;
    if (exchange == NULL)
        return false;
    unpark(exchange);
    prepare(exchange, answer);
    weir_http_resume(http, exchange->connection); /* which asks the handler below once more */
    return true;
}

void weir_http_exchange_give_up(weir_http_exchange *exchange)
{
    weir_http_server *http = exchange->link->http;
    unpark(exchange);
    if (http->gone != NULL)
        http->gone(http->context, exchange->request.ticket);
    weir_http_resume(http, exchange->connection);
}

/* ---- requests --------------------------------------------------------------------------------*/

static enum MHD_Result begin(weir_http_server *http, struct MHD_Connection *connection,
                             void **con_cls)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    weir_http_exchange *exchange = weir_alloc_zeroed(1, sizeof(*exchange));
    if (exchange == NULL || info == NULL || info->socket_context == NULL) {
        weir_free(exchange);
        return MHD_NO;
    }
    exchange->connection = connection;
    exchange->link = info->socket_context;
    exchange->request.connection = connection;
    exchange->request.peer = exchange->link->peer;
    exchange->request.ticket = ++http->last_ticket;
    http->counts.requests++;
    *con_cls = exchange;
    return MHD_YES;
}

/* What is too long is read to its end all the same, so that its sender reads the answer. */
static enum MHD_Result take_body(weir_http_exchange *exchange, const char *data, size_t n_bytes)
{
    size_t most = exchange->link->http->limits.body_bytes;
    uint64_t n_before = exchange->n_received;
    exchange->n_received += n_bytes;
    if (exchange->n_received > most)
        return exchange->n_received <= DISCARDED_BODIES * (uint64_t)most ? MHD_YES : MHD_NO;
    if (exchange->body == NULL)
        exchange->body = weir_alloc(most);
    if (exchange->body == NULL)
        return MHD_NO;
    memcpy(exchange->body + n_before, data, n_bytes);
    exchange->request.body = exchange->body;
    exchange->request.n_body_bytes = (size_t)exchange->n_received;
    return MHD_YES;
}

static enum MHD_Result answer_now(weir_http_exchange *exchange, const char *method)
{
    weir_http_server *http = exchange->link->http;
    weir_http_answer answer = { 0 };
    exchange->link->due_ns = 0;
    exchange->request.is_post = strcmp(method, MHD_HTTP_METHOD_POST) == 0;
    if (weir_http_refuse(exchange, method, &answer)) {
        http->counts.refused++;
    } else if (!http->handler(http->context, &exchange->request, &answer)) {
        park(exchange);
        return MHD_YES;
    }
    prepare(exchange, &answer);
    return queue(exchange);
}

enum MHD_Result weir_http_on_request(void *cls, struct MHD_Connection *connection, const char *url,
                                     const char *method, const char *version,
                                     const char *upload_data, size_t *upload_data_size,
                                     void **con_cls)
{
    weir_http_server *http = cls;
    weir_http_exchange *exchange = *con_cls;
    (void)version;
    if (exchange == NULL) {
        if (begin(http, connection, con_cls) != MHD_YES)
            return MHD_NO;
        exchange = *con_cls;
        exchange->request.path = url;
        weir_http_answer answer;
        if (!weir_http_refuse(exchange, method, &answer))
            return MHD_YES; /* asked again when the request is whole */
        http->counts.refused++;
        prepare(exchange, &answer);
        return queue(exchange);
    }
    if (*upload_data_size != 0) {
        size_t n_bytes = *upload_data_size;
        *upload_data_size = 0;
        return take_body(exchange, upload_data, n_bytes);
    }
    exchange->request.path = url;
    if (exchange->response != NULL)
        return queue(exchange);
    /* Without a response after its wait: given up, or memory is out. */
    return exchange->link->due_ns == 0 ? MHD_NO : answer_now(exchange, method);
}

void weir_http_on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                            enum MHD_RequestTerminationCode code)
{
    weir_http_server *http = cls;
    weir_http_exchange *exchange = *con_cls;
    (void)connection;
    (void)code;
    if (exchange == NULL)
        return;
    if (exchange->is_parked) {
        unpark(exchange);
        if (http->gone != NULL)
            http->gone(http->context, exchange->request.ticket);
    }
    if (exchange->response != NULL)
        MHD_destroy_response(exchange->response);
    exchange->link->due_ns = weir_now_ns() + http->limits.request_ms * NS_PER_MS;
    weir_free(exchange->body);
    weir_free(exchange);
    *con_cls = NULL;
}
