/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_channel.c - recv into nghttp2, nghttp2 into send.
 *
 * Frames are gathered in one buffer, so that a whole answer (headers, message, trailers) leaves in
 * one system call. Within TLS nothing is gathered before the handshake is done. */
#include "rpc/rpc_channel.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "rpc/rpc_address.h"

#define READ_BYTES ((size_t)32 << 10)
#define OUT_BYTES ((size_t)60 << 10)         /* with its header still a 64 KiB block */
#define FRAME_BYTES ((size_t)(16 << 10) + 9) /* the largest that nghttp2 makes here */
#define STREAM_WINDOW_BYTES (4u << 20)
#define CONNECTION_WINDOW_BYTES (16 << 20)
/* RST_STREAM frames that the other side may send in a burst, and per second after it. A server's
 * patience with a client ends before. */
#define RESET_BURST 1000u
#define RESETS_PER_S 200u
#define MAX_CONTINUATIONS 8u

/* An empty SETTINGS frame: who greets in TLS sees that there is none, and need not guess. */
static const unsigned char greeting[9] = { 0, 0, 0, 4, 0, 0, 0, 0, 0 };

static weir_status socket_failed(void)
{
    return weir_fail(WEIR_ERR_PEER_LOST, "connection lost: %s", strerror(errno));
}

/* The first bytes of a peer that speaks TLS where this side does not. */
static weir_status refuse_tls(const weir_rpc_channel *channel)
{
    if (channel->side == WEIR_RPC_CLIENT_SIDE)
        return weir_fail(WEIR_ERR_REFUSED, "the server wants TLS");
    ssize_t n = send(channel->fd, greeting, sizeof(greeting), MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)n;
    return weir_fail(WEIR_ERR_FORMAT, "it speaks TLS, and this server does not");
}

/* IN_PROGRESS: nothing is there. */
static weir_status receive_plain(weir_rpc_channel *channel, unsigned char *buffer, size_t n_bytes,
                                 size_t *out_n)
{
    ssize_t n;
    do {
        n = recv(channel->fd, buffer, n_bytes, 0);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return WEIR_IN_PROGRESS;
    if (n < 0)
        return socket_failed();
    if (n == 0)
        return weir_fail(WEIR_ERR_PEER_LOST, "connection closed by the other side");
    if (!channel->has_read && WEIR_TLS_IS_RECORD(buffer, n))
        return refuse_tls(channel);
    channel->has_read = true;
    *out_n = (size_t)n;
    return WEIR_OK;
}

/* IN_PROGRESS: the socket takes nothing. */
static weir_status transmit_plain(weir_rpc_channel *channel, const void *data, size_t n_bytes,
                                  size_t *out_n)
{
    ssize_t n;
    do {
        n = send(channel->fd, data, n_bytes, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return WEIR_IN_PROGRESS;
    if (n < 0)
        return socket_failed();
    *out_n = (size_t)n;
    return WEIR_OK;
}

static weir_status receive(weir_rpc_channel *channel, unsigned char *buffer, size_t n_bytes,
                           size_t *out_n)
{
    return channel->tls != NULL ? weir_tls_receive(channel->tls, buffer, n_bytes, out_n)
                                : receive_plain(channel, buffer, n_bytes, out_n);
}

static weir_status transmit(weir_rpc_channel *channel, const void *data, size_t n_bytes,
                            size_t *out_n)
{
    return channel->tls != NULL ? weir_tls_send(channel->tls, data, n_bytes, out_n)
                                : transmit_plain(channel, data, n_bytes, out_n);
}

/* ---- the session's memory
 * ----------------------------------------------------------------------*/

static void *mem_malloc(size_t n_bytes, void *heap)
{
    return weir_rpc_heap_alloc(heap, n_bytes);
}

static void mem_free(void *block, void *heap)
{
    weir_rpc_heap_free(heap, block);
}

static void *mem_calloc(size_t n_items, size_t item_bytes, void *heap)
{
    if (item_bytes != 0 && n_items > SIZE_MAX / item_bytes)
        return NULL;
    void *block = weir_rpc_heap_alloc(heap, n_items * item_bytes);
    return block != NULL ? memset(block, 0, n_items * item_bytes) : NULL;
}

static void *mem_realloc(void *block, size_t n_bytes, void *heap)
{
    return weir_rpc_heap_realloc(heap, block, n_bytes);
}

/* ---- opening ---------------------------------------------------------------------------------*/

static int submit_settings(nghttp2_session *session, weir_rpc_side side)
{
    nghttp2_settings_entry entries[3] = {
        { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES },
        { NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, WEIR_RPC_MAX_HEADER_BYTES },
        { NGHTTP2_SETTINGS_ENABLE_PUSH, 0 },
    };
    if (side == WEIR_RPC_SERVER_SIDE)
        entries[2] = (nghttp2_settings_entry){ NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS,
                                               WEIR_RPC_MAX_STREAMS };
    int code = nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, entries, 3);
    if (code != 0)
        return code;
    return nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0,
                                                 CONNECTION_WINDOW_BYTES);
}

static int open_session(weir_rpc_channel *channel, weir_rpc_side side,
                        const nghttp2_session_callbacks *callbacks, void *user_data)
{
    nghttp2_option *option;
    if (nghttp2_option_new(&option) != 0)
        return NGHTTP2_ERR_NOMEM;
    nghttp2_option_set_no_closed_streams(option, 1);
    nghttp2_option_set_stream_reset_rate_limit(option, RESET_BURST, RESETS_PER_S);
    nghttp2_option_set_max_continuations(option, MAX_CONTINUATIONS);
    nghttp2_mem mem = { channel->heap, mem_malloc, mem_free, mem_calloc, mem_realloc };
    int code =
        side == WEIR_RPC_SERVER_SIDE
            ? nghttp2_session_server_new3(&channel->session, callbacks, user_data, option, &mem)
            : nghttp2_session_client_new3(&channel->session, callbacks, user_data, option, &mem);
    nghttp2_option_del(option);
    return code != 0 ? code : submit_settings(channel->session, side);
}

weir_status weir_rpc_channel_open(weir_rpc_channel *channel, int fd, weir_rpc_heap *heap,
                                  weir_rpc_side side, const nghttp2_session_callbacks *callbacks,
                                  void *user_data)
{
    *channel = (weir_rpc_channel){ .fd = fd, .side = side, .heap = heap };
    weir_status status = WEIR_OK;
    weir_rpc_socket_watch_peer(fd);
    if (side == WEIR_RPC_CLIENT_SIDE) /* a server lets those who read slowly */
        weir_rpc_socket_expect_acks(fd, true);
    if (open_session(channel, side, callbacks, user_data) != 0)
        status = weir_fail(WEIR_ERR_NO_MEMORY, "out of memory for an HTTP/2 session");
    if (status != WEIR_OK)
        weir_rpc_channel_close(channel);
    return status;
}

weir_status weir_rpc_channel_secure(weir_rpc_channel *channel, weir_tls_context *context,
                                    const char *host)
{
    return context != NULL ? weir_tls_session_open(context, channel->fd, host, &channel->tls)
                           : WEIR_OK;
}

/* Most of many connections have nothing to say. */
static void free_out(weir_rpc_channel *channel)
{
    weir_rpc_heap_free(channel->heap, channel->out);
    channel->out = NULL;
    channel->out_capacity = 0;
}

void weir_rpc_channel_close(weir_rpc_channel *channel)
{
    if (channel->heap == NULL)
        return;
    weir_tls_session_close(channel->tls);
    nghttp2_session_del(channel->session);
    free_out(channel);
    close(channel->fd);
    *channel = (weir_rpc_channel){ .fd = -1 };
}

/* ---- bytes -----------------------------------------------------------------------------------*/

static weir_status session_failed(ssize_t code)
{
    if (code == NGHTTP2_ERR_NOMEM)
        return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory in an HTTP/2 session");
    return weir_fail(WEIR_ERR_FORMAT, "the other side does not speak HTTP/2: %s",
                     nghttp2_strerror((int)code));
}

weir_status weir_rpc_channel_read(weir_rpc_channel *channel, size_t max_bytes)
{
    unsigned char buffer[READ_BYTES];
    for (size_t total = 0; total < max_bytes;) {
        size_t n = 0;
        weir_status status = receive(channel, buffer, sizeof(buffer), &n);
        if (status != WEIR_OK)
            return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
        ssize_t used = nghttp2_session_mem_recv(channel->session, buffer, n);
        if (used < 0)
            return session_failed(used);
        if (channel->tls == NULL && n < sizeof(buffer)) /* a record ends early of itself */
            return WEIR_OK;
        total += n;
    }
    return WEIR_OK;
}

static weir_status append_out(weir_rpc_channel *channel, const void *data, size_t n_bytes)
{
    if (n_bytes > channel->out_capacity - channel->out_end) {
        size_t capacity = channel->out_end + n_bytes;
        unsigned char *out = weir_rpc_heap_realloc(channel->heap, channel->out, capacity);
        if (out == NULL)
            return WEIR_ERR_NO_MEMORY;
        channel->out = out;
        channel->out_capacity = capacity;
    }
    memcpy(channel->out + channel->out_end, data, n_bytes);
    channel->out_end += n_bytes;
    return WEIR_OK;
}

/* Serialises frames until the buffer has no room for another one. */
static weir_status gather(weir_rpc_channel *channel)
{
    if (channel->out == NULL) {
        channel->out = weir_rpc_heap_alloc(channel->heap, OUT_BYTES);
        if (channel->out == NULL)
            return WEIR_ERR_NO_MEMORY;
        channel->out_capacity = OUT_BYTES;
    }
    while (channel->out_end + FRAME_BYTES <= channel->out_capacity) {
        const uint8_t *data;
        ssize_t n = nghttp2_session_mem_send(channel->session, &data);
        if (n < 0)
            return session_failed(n);
        if (n == 0)
            return WEIR_OK;
        weir_status status = append_out(channel, data, (size_t)n);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

weir_status weir_rpc_channel_write(weir_rpc_channel *channel)
{
    weir_status status = channel->tls != NULL ? weir_tls_handshake(channel->tls) : WEIR_OK;
    if (status != WEIR_OK)
        return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
    for (;;) {
        if (channel->out_begin == channel->out_end) {
            channel->out_begin = channel->out_end = 0;
            status = gather(channel);
            if (channel->out_end == 0)
                free_out(channel);
            if (status != WEIR_OK || channel->out_end == 0)
                return status;
        }
        size_t n = 0;
        status = transmit(channel, channel->out + channel->out_begin,
                          channel->out_end - channel->out_begin, &n);
        if (status != WEIR_OK)
            return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
        channel->out_begin += n;
    }
}

bool weir_rpc_channel_is_blocked(const weir_rpc_channel *channel)
{
    return channel->out_begin != channel->out_end ||
           (channel->tls != NULL && weir_tls_wants_write(channel->tls));
}

weir_deadline weir_rpc_channel_deadline(const weir_rpc_channel *channel)
{
    return channel->tls != NULL ? weir_tls_deadline(channel->tls) : 0;
}

const char *weir_rpc_channel_peer_name(const weir_rpc_channel *channel)
{
    return channel->tls != NULL ? weir_tls_peer_name(channel->tls) : "";
}

bool weir_rpc_channel_is_over(const weir_rpc_channel *channel)
{
    return !weir_rpc_channel_is_blocked(channel) && !nghttp2_session_want_read(channel->session) &&
           !nghttp2_session_want_write(channel->session);
}
