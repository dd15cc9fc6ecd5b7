/* SPDX-License-Identifier: Apache-2.0 */
/* inference_http.c - the calls of docs/broadcast.md. One thread reads bodies, hands an order to the
 * conductor and gives its answer by ticket; what only looks is answered at once, whatever goes on.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "broadcast/inference_core.h"
#include "rpc/http_server.h"

#define TICK_MS 100u
#define JSON "application/json"

typedef struct weir_inference_http {
    weir_inference *server;
    weir_rpc_server *rpc; /* its thread alone: it listens nowhere */
    weir_http_server *http;
    int wake_fd;
    char address[WEIR_RPC_ADDRESS_TEXT];
    weir_inference_answer answer; /* of the request that is being answered */
} weir_inference_http;

/* ---- answers ---------------------------------------------------------------------------------*/

static bool give(weir_inference_http *http, weir_http_answer *out)
{
    const weir_inference_answer *answer = &http->answer;
    *out = (weir_http_answer){ answer->status, JSON, answer->body, strlen(answer->body), false };
    return true;
}

/* With this thread's last error. */
static bool refuse(weir_inference_http *http, unsigned status, weir_http_answer *out)
{
    weir_inference_say_error(NULL, status, weir_last_error(), &http->answer);
    return give(http, out);
}

/* The conductor's answer to the order before this one, if it has not gone out. With the lock. */
static uint64_t take_answer(weir_inference_http *http)
{
    weir_inference *server = http->server;
    uint64_t ticket = server->answered_ticket;
    if (ticket != 0)
        http->answer = server->answer;
    server->answered_ticket = 0;
    return ticket;
}

static void deliver(weir_inference_http *http)
{
    weir_inference *server = http->server;
    pthread_mutex_lock(&server->lock);
    uint64_t ticket = take_answer(http);
    pthread_mutex_unlock(&server->lock);
    weir_http_answer answer;
    if (ticket != 0 && give(http, &answer))
        weir_http_server_answer(http->http, ticket, &answer);
}

static void woken(void *context, uint32_t events)
{
    weir_inference_http *http = context;
    uint64_t n_times;
    ssize_t n = read(http->wake_fd, &n_times, sizeof(n_times));
    (void)n, (void)events;
    deliver(http);
}

/* Nobody waits longer than was said for what cannot be ended: it goes on, and its end shows in
 * /weight_info. */
static unsigned tick(void *context)
{
    weir_inference_http *http = context;
    weir_inference *server = http->server;
    char doing[128];
    uint64_t ticket = 0;
    pthread_mutex_lock(&server->lock);
    const weir_inference_order *order = &server->order;
    uint64_t due_ns = order->deadline + WEIR_INFERENCE_GRACE_MS * 1000000ull;
    if (order->kind != WEIR_ORDER_NONE && order->ticket != 0 && weir_now_ns() >= due_ns) {
        ticket = order->ticket;
        server->order.ticket = 0;
        weir_inference_doing(order, doing, sizeof(doing));
        weir_fail(WEIR_ERR_TIMED_OUT, "%.1f s have passed and %s still", order->timeout_ms / 1e3,
                  doing);
        weir_inference_say_error(server, 504, weir_last_error(), &http->answer);
    }
    pthread_mutex_unlock(&server->lock);
    weir_http_answer answer;
    if (ticket != 0 && give(http, &answer))
        weir_http_server_answer(http->http, ticket, &answer);
    return TICK_MS;
}

/* Whatever was asked for is done all the same. */
static void gone(void *context, uint64_t ticket)
{
    weir_inference *server = ((weir_inference_http *)context)->server;
    pthread_mutex_lock(&server->lock);
    if (server->order.ticket == ticket)
        server->order.ticket = 0;
    if (server->answered_ticket == ticket)
        server->answered_ticket = 0;
    pthread_mutex_unlock(&server->lock);
}

/* ---- orders ----------------------------------------------------------------------------------*/

/* What does not wait for what goes on: the same as what is so already. With the lock. */
static bool is_so_already(weir_inference *server, const weir_inference_order *order,
                          weir_inference_answer *out)
{
    if (order->kind != WEIR_ORDER_JOIN || server->order.kind == WEIR_ORDER_JOIN ||
        !server->info.joined || !weir_join_wish_equal(&order->join, &server->joined))
        return false;
    weir_inference_say_joined(server, out);
    return true;
}

/* With the lock. True: the answer comes later. */
static bool place_order(weir_inference *server, weir_inference_order *order)
{
    char doing[128];
    if (atomic_load(&server->is_stopping)) {
        weir_fail(WEIR_ERR_REFUSED, "the server is closing");
        return false;
    }
    if (server->order.kind != WEIR_ORDER_NONE) {
        weir_inference_doing(&server->order, doing, sizeof(doing));
        weir_fail(WEIR_ERR_BUSY, "%s: try again later", doing);
        return false;
    }
    if (order->timeout_ms == 0)
        order->timeout_ms = server->options.timeout_ms;
    order->deadline = weir_deadline_in(order->timeout_ms);
    server->order = *order;
    pthread_cond_broadcast(&server->changed);
    return true;
}

static bool order(weir_inference_http *http, const weir_http_request *request,
                  weir_inference_order *wanted, weir_http_answer *out)
{
    weir_inference *server = http->server;
    wanted->ticket = request->ticket;
    deliver(http); /* there is room for one answer */
    pthread_mutex_lock(&server->lock);
    bool so_already = is_so_already(server, wanted, &http->answer);
    bool is_placed = !so_already && place_order(server, wanted);
    if (!so_already && !is_placed)
        weir_inference_say_error(server, 409, weir_last_error(), &http->answer);
    pthread_mutex_unlock(&server->lock);
    return is_placed ? false : give(http, out);
}

static bool init_broadcaster(weir_inference_http *http, const weir_http_request *request,
                             weir_http_answer *out)
{
    const weir_inference_options *options = &http->server->options;
    weir_inference_order wanted = { .kind = WEIR_ORDER_JOIN };
    if (weir_join_wish_read(request->body, request->n_body_bytes, options->tp, options->dp,
                            &wanted.join) != WEIR_OK)
        return refuse(http, 400, out);
    wanted.timeout_ms = wanted.join.timeout_ms;
    return order(http, request, &wanted, out);
}

static bool update_weights(weir_inference_http *http, const weir_http_request *request,
                           weir_http_answer *out)
{
    weir_inference_order wanted = { .kind = WEIR_ORDER_UPDATE };
    if (weir_update_wish_read(request->body, request->n_body_bytes, &wanted.update) != WEIR_OK)
        return refuse(http, 400, out);
    wanted.timeout_ms = wanted.update.timeout_ms;
    return order(http, request, &wanted, out);
}

static bool is_one_of(const char *text, const char *const *words)
{
    for (; *words != NULL; words++) {
        if (strcmp(text, *words) == 0)
            return true;
    }
    return false;
}

/* What engines are asked along with it; their hooks know what they do. */
static bool is_pause_query_good(const weir_http_request *request)
{
    static const char *const modes[] = { "keep", "wait", "abort", NULL };
    static const char *const truths[] = { "true", "false", "1", "0", NULL };
    const char *mode = weir_http_query(request, "mode");
    const char *clear = weir_http_query(request, "clear_cache");
    if (mode != NULL && !is_one_of(mode, modes)) {
        weir_fail(WEIR_ERR_INVALID, "'mode' is '%.40s': keep, wait or abort is wanted", mode);
        return false;
    }
    if (clear != NULL && !is_one_of(clear, truths)) {
        weir_fail(WEIR_ERR_INVALID, "'clear_cache' is '%.40s': true or false is wanted", clear);
        return false;
    }
    return true;
}

static bool pause_engine(weir_inference_http *http, const weir_http_request *request,
                         weir_http_answer *out)
{
    weir_inference_order wanted = { .kind = WEIR_ORDER_PAUSE };
    return is_pause_query_good(request) ? order(http, request, &wanted, out)
                                        : refuse(http, 400, out);
}

static bool resume_engine(weir_inference_http *http, const weir_http_request *request,
                          weir_http_answer *out)
{
    weir_inference_order wanted = { .kind = WEIR_ORDER_RESUME };
    return order(http, request, &wanted, out);
}

static bool revert(weir_inference_http *http, const weir_http_request *request,
                   weir_http_answer *out)
{
    weir_inference_order wanted = { .kind = WEIR_ORDER_REVERT };
    if (weir_revert_wish_read(request->body, request->n_body_bytes, &wanted.timeout_ms) != WEIR_OK)
        return refuse(http, 400, out);
    return order(http, request, &wanted, out);
}

/* ---- looks -----------------------------------------------------------------------------------*/

static bool look(weir_inference_http *http, weir_http_answer *out,
                 void (*say)(const weir_inference *server, weir_inference_answer *out))
{
    weir_inference *server = http->server;
    pthread_mutex_lock(&server->lock);
    server->info.updating = weir_inference_is_changing(&server->order);
    say(server, &http->answer);
    pthread_mutex_unlock(&server->lock);
    return give(http, out);
}

static bool weight_info(weir_inference_http *http, const weir_http_request *request,
                        weir_http_answer *out)
{
    (void)request;
    return look(http, out, weir_inference_say_weights);
}

static bool health(weir_inference_http *http, const weir_http_request *request,
                   weir_http_answer *out)
{
    (void)request;
    return look(http, out, weir_inference_say_health);
}

static bool is_paused(weir_inference_http *http, const weir_http_request *request,
                      weir_http_answer *out)
{
    (void)request;
    return look(http, out, weir_inference_say_is_paused);
}

/* ---- routes ----------------------------------------------------------------------------------*/

typedef struct route {
    const char *path, *methods;
    bool (*answer)(weir_inference_http *http, const weir_http_request *request,
                   weir_http_answer *out);
} route;

static const route routes[] = {
    { "/init_broadcaster", WEIR_HTTP_POST, init_broadcaster },
    { "/pause", WEIR_HTTP_POST, pause_engine },
    { "/update_weights", WEIR_HTTP_POST, update_weights },
    { "/resume", WEIR_HTTP_POST, resume_engine },
    { "/revert", WEIR_HTTP_POST, revert },
    { "/weight_info", WEIR_HTTP_READS, weight_info },
    { "/health", WEIR_HTTP_READS, health },
    { "/is_paused", WEIR_HTTP_READS, is_paused },
};

static const route *find_route(const char *path)
{
    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++) {
        if (strcmp(routes[i].path, path) == 0)
            return &routes[i];
    }
    return NULL;
}

static const char *methods_of(const char *path)
{
    const route *found = find_route(path);
    return found != NULL ? found->methods : NULL;
}

static bool answer_request(void *context, const weir_http_request *request, weir_http_answer *out)
{
    weir_inference_http *http = context;
    const route *found = find_route(request->path);
    if (found != NULL)
        return found->answer(http, request, out);
    weir_fail(WEIR_ERR_NOT_FOUND, "there is no %.100s here", request->path);
    return refuse(http, 404, out);
}

/* Load balancers ask it without a token. */
static bool is_open(const char *path)
{
    return strcmp(path, "/health") == 0;
}

/* ---- opening ---------------------------------------------------------------------------------*/

static weir_status begin(void *context, weir_rpc_server *rpc)
{
    weir_inference_http *http = context;
    const weir_http_options options = { .listen = http->server->options.http,
                                        .security = http->server->kept.security,
                                        .is_open = is_open,
                                        .methods = methods_of,
                                        .handler = answer_request,
                                        .gone = gone,
                                        .context = http };
    weir_status status = weir_http_server_open(&options, rpc, &http->http);
    if (status == WEIR_OK)
        status = weir_rpc_server_watch(rpc, http->wake_fd, EPOLLIN, woken, http);
    if (status == WEIR_OK)
        snprintf(http->address, sizeof(http->address), "%s", weir_http_server_address(http->http));
    return status;
}

weir_status weir_inference_http_open(weir_inference *server, struct weir_inference_http **out)
{
    weir_inference_http *http = weir_alloc_zeroed(1, sizeof(*http));
    if (http == NULL)
        return WEIR_ERR_NO_MEMORY;
    http->server = server;
    http->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    const weir_rpc_server_options options = { .tick = tick,
                                              .tick_context = http,
                                              .tick_ms = TICK_MS,
                                              .begin = begin,
                                              .begin_context = http,
                                              .is_uncounted = true };
    weir_status status = WEIR_OK;
    if (http->wake_fd < 0)
        status = weir_fail(WEIR_ERR_IO, "cannot make an event: %s", strerror(errno));
    if (status == WEIR_OK)
        status = weir_rpc_server_open(&options, &http->rpc);
    if (status != WEIR_OK) {
        weir_inference_http_close(http);
        return status;
    }
    *out = http;
    return WEIR_OK;
}

void weir_inference_http_close(struct weir_inference_http *http)
{
    if (http == NULL)
        return;
    weir_rpc_server_close(http->rpc);
    weir_http_server_close(http->http);
    if (http->wake_fd >= 0)
        close(http->wake_fd);
    weir_free(http);
}

const char *weir_inference_http_address(const struct weir_inference_http *http)
{
    return http->address;
}

void weir_inference_http_wake(struct weir_inference_http *http)
{
    uint64_t one = 1;
    ssize_t n = write(http->wake_fd, &one, sizeof(one));
    (void)n; /* an eventfd at zero takes it */
}
