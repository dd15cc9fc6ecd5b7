/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_rpc_connection.c - bytes from the network into the server's half of a connection.
 *
 * The client's greeting and a whole, valid call stand before the input when its first byte is odd,
 * so that most inputs get past HTTP/2's front door. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "refit.pb-c.h"
#include "rpc/rpc_connection.h"

#define N_TICKETS 16u

static const unsigned char greeting[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                                        "\0\0\0\4\0\0\0\0"; /* and an empty SETTINGS frame */

static uint64_t tickets[N_TICKETS];
static unsigned n_tickets;

static void answer_all(weir_rpc_shared *shared)
{
    ModelExpress__Refit__WeightVersion version = MODEL_EXPRESS__REFIT__WEIGHT_VERSION__INIT;
    for (unsigned i = 0; i < n_tickets; i++)
        weir_rpc_shared_answer(shared, tickets[i], WEIR_RPC_OK, &version.base, NULL);
    n_tickets = 0;
}

/* Parks every other request by its size; the others answer those and are answered. */
static weir_rpc_code handle(void *context, const weir_rpc_call_info *call,
                            const ProtobufCMessage *request, weir_arena *arena,
                            const ProtobufCMessage **out_response, char *text)
{
    (void)arena, (void)text;
    if (call->n_bytes % 2 != 0 && n_tickets < N_TICKETS) {
        tickets[n_tickets++] = call->ticket;
        return WEIR_RPC_LATER;
    }
    answer_all(context);
    *out_response = request;
    return WEIR_RPC_OK;
}

static const weir_rpc_method methods[] = { { "GetWeightVersion", handle },
                                           { "CreateWeightVersion", handle },
                                           { "ListWeightVersions", handle } };

static void drain(int fd)
{
    char sink[65536];
    while (recv(fd, sink, sizeof(sink), MSG_DONTWAIT) > 0) {
    }
}

static void run(weir_rpc_shared *shared, int server_fd, int client_fd, const uint8_t *data,
                size_t n)
{
    weir_rpc_connection *connection;
    if (weir_rpc_connection_open(shared, server_fd, "fuzz", NULL, &connection) != WEIR_OK)
        return;
    bool is_open = true;
    if (data[0] & 1) {
        ssize_t sent = send(client_fd, greeting, sizeof(greeting), MSG_DONTWAIT);
        (void)sent;
    }
    for (size_t at = 1; at < n && is_open;) {
        size_t piece = 1 + data[at] * 16u; /* frames arrive cut anywhere */
        if (piece > n - at)
            piece = n - at;
        ssize_t sent = send(client_fd, data + at, piece, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent <= 0)
            break;
        at += (size_t)sent;
        is_open = weir_rpc_connection_progress(connection, true);
        drain(client_fd);
    }
    if (is_open)
        answer_all(shared);
    if (is_open)
        is_open = weir_rpc_connection_check_time(connection, weir_now_ns(), false) == NULL;
    if (is_open)
        weir_rpc_connection_shut(connection);
    if (is_open)
        weir_rpc_connection_progress(connection, false);
    weir_rpc_connection_close(connection);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    int fds[2];
    if (n < 2 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) != 0)
        return 0;
    weir_rpc_shared shared;
    const weir_rpc_service service = { &model_express__refit__refit_service__descriptor, methods, 3,
                                       &shared };
    weir_rpc_shared_init(&shared, &service, 1, NULL);
    n_tickets = 0;
    shared.long_left_ns = INT64_MAX;
    run(&shared, fds[0], fds[1], data, n);
    if (shared.n_streams != 0 || shared.request_bytes != 0 || shared.answer_bytes != 0 ||
        shared.n_waiting != 0 || shared.counts.parked != 0 || shared.timers.n != 0 ||
        shared.n_pending != 0)
        __builtin_trap(); /* what a closed connection held is given back */
    weir_rpc_shared_close(&shared);
    close(fds[1]);
    return 0;
}
