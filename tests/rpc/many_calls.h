/* SPDX-License-Identifier: Apache-2.0 */
/* many_calls.h - a caller with many calls at once on one connection, for the tests of the server.
 *
 * Its calls are GetWeightVersion with a uid of up to 100 characters. Nothing here waits longer than
 * it is told to. */
#ifndef WEIR_TEST_MANY_CALLS_H
#define WEIR_TEST_MANY_CALLS_H

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "rpc/rpc.h"
#include "rpc/rpc_address.h"
#include "rpc/rpc_channel.h"

typedef struct many_call {
    unsigned char body[128];
    size_t n_body, n_sent;
    int32_t id;
    bool is_over, is_first; /* of its connection, to be over */
    int grpc_status;        /* -1: none */
    char message[64];
    uint64_t over_ns;
} many_call;

typedef struct many_calls {
    weir_rpc_heap heap;
    weir_rpc_channel channel;
    unsigned n_over, n_open;
} many_calls;

static inline nghttp2_nv many_header(const char *name, const char *value)
{
    return (nghttp2_nv){ (uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), 0 };
}

static inline int many_on_header(nghttp2_session *session, const nghttp2_frame *frame,
                                 const uint8_t *name, size_t n_name, const uint8_t *value,
                                 size_t n_value, uint8_t flags, void *user_data)
{
    (void)flags, (void)user_data, (void)n_value;
    many_call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (call != NULL && n_name == 11 && memcmp(name, "grpc-status", 11) == 0)
        call->grpc_status = (int)strtol((const char *)value, NULL, 10);
    if (call != NULL && n_name == 12 && memcmp(name, "grpc-message", 12) == 0)
        snprintf(call->message, sizeof(call->message), "%s", (const char *)value);
    return 0;
}

static inline int many_on_close(nghttp2_session *session, int32_t id, uint32_t code,
                                void *user_data)
{
    (void)code;
    many_calls *calls = user_data;
    many_call *call = nghttp2_session_get_stream_user_data(session, id);
    if (call == NULL)
        return 0;
    call->is_over = true;
    call->over_ns = weir_now_ns();
    calls->n_over++;
    calls->n_open--;
    return 0;
}

static inline ssize_t many_read(nghttp2_session *session, int32_t id, uint8_t *buffer,
                                size_t n_buffer, uint32_t *flags, nghttp2_data_source *source,
                                void *user_data)
{
    (void)session, (void)id, (void)user_data;
    many_call *call = source->ptr;
    size_t n = call->n_body - call->n_sent;
    if (n > n_buffer)
        n = n_buffer;
    memcpy(buffer, call->body + call->n_sent, n);
    call->n_sent += n;
    if (call->n_sent == call->n_body)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

/* False: no connection. */
static inline bool many_open(many_calls *calls, const char *server_address)
{
    *calls = (many_calls){ 0 };
    weir_rpc_heap_init(&calls->heap);
    weir_rpc_address address;
    int fd;
    if (weir_rpc_address_parse(server_address, &address) != WEIR_OK ||
        weir_rpc_connect(&address, weir_deadline_in(5000), -1, &fd) != WEIR_OK)
        return false;
    nghttp2_session_callbacks *callbacks;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, many_on_header);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, many_on_close);
    weir_status status = weir_rpc_channel_open(&calls->channel, fd, &calls->heap,
                                               WEIR_RPC_CLIENT_SIDE, callbacks, calls);
    nghttp2_session_callbacks_del(callbacks);
    return status == WEIR_OK;
}

static inline void many_close(many_calls *calls)
{
    weir_rpc_channel_close(&calls->channel);
    weir_rpc_heap_close(&calls->heap);
}

/* timeout NULL: none. Leaves with the next many_progress(). */
static inline void many_begin(many_calls *calls, many_call *call, const char *uid,
                              const char *timeout)
{
    size_t n_uid = strlen(uid);
    *call = (many_call){ .grpc_status = -1, .n_body = 7 + n_uid };
    call->body[4] = (unsigned char)(2 + n_uid);
    call->body[5] = 0x0a;
    call->body[6] = (unsigned char)n_uid;
    memcpy(call->body + 7, uid, n_uid);
    nghttp2_nv headers[] = {
        many_header(":method", "POST"),
        many_header(":scheme", "http"),
        many_header(":path", "/model_express.refit.RefitService/GetWeightVersion"),
        many_header(":authority", "test"),
        many_header("te", "trailers"),
        many_header("content-type", "application/grpc"),
        many_header("grpc-timeout", timeout != NULL ? timeout : ""),
    };
    nghttp2_data_provider provider = { { .ptr = call }, many_read };
    call->id = nghttp2_submit_request(calls->channel.session, NULL, headers,
                                      timeout != NULL ? 7 : 6, &provider, call);
    calls->n_open++;
}

/* Sends what there is and takes what came, waiting for it at most so long. False: the connection
 * is over. */
static inline bool many_progress(many_calls *calls, int wait_ms)
{
    if (weir_rpc_channel_write(&calls->channel) != WEIR_OK)
        return false;
    short events = weir_rpc_channel_is_blocked(&calls->channel) ? POLLIN | POLLOUT : POLLIN;
    struct pollfd fd = { .fd = calls->channel.fd, .events = events };
    if (poll(&fd, 1, wait_ms) > 0 && weir_rpc_channel_read(&calls->channel, SIZE_MAX) != WEIR_OK)
        return false;
    return weir_rpc_channel_write(&calls->channel) == WEIR_OK &&
           !weir_rpc_channel_is_over(&calls->channel);
}

/* Until n of its calls are over. */
static inline bool many_wait(many_calls *calls, unsigned n, unsigned timeout_ms)
{
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    while (calls->n_over < n && !weir_deadline_passed(deadline)) {
        if (!many_progress(calls, (int)weir_deadline_left_ms(deadline)))
            break;
    }
    return calls->n_over >= n;
}

#endif
