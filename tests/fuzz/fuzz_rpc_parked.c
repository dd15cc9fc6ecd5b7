/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_rpc_parked.c - calls that wait for later answers, under every order of arrivals, answers,
 * resets, deadlines and lost connections.
 *
 * The input is a program: each byte is one step, so that whole sequences are reached that no
 * fuzzer would write as HTTP/2 frames by itself. Every third handled call parks, another third
 * answers all that are parked, from within the session that is being read. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "refit.pb-c.h"
#include "rpc/rpc_connection.h"

#define N_CONNECTIONS 3u
#define N_TICKETS 64u

typedef struct parking {
    weir_rpc_shared shared;
    weir_rpc_connection *connections[N_CONNECTIONS];
    int fds[N_CONNECTIONS];
    uint32_t next_id[N_CONNECTIONS];
    uint64_t tickets[N_TICKETS];
    unsigned n_tickets, n_handled, n_gone;
} parking;

static void put(parking *park, unsigned i, const void *bytes, size_t n)
{
    ssize_t sent = send(park->fds[i], bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)sent;
}

static void put_frame(parking *park, unsigned i, uint8_t type, uint8_t flags, uint32_t id,
                      const void *payload, size_t n)
{
    unsigned char frame[9 + 128] = {
        0, 0, (unsigned char)n, type, flags, 0, 0, (unsigned char)(id >> 8), (unsigned char)id
    };
    memcpy(frame + 9, payload, n);
    put(park, i, frame, 9 + n);
}

static void answer_all(parking *park, weir_rpc_code code)
{
    ModelExpress__Refit__WeightVersion version = MODEL_EXPRESS__REFIT__WEIGHT_VERSION__INIT;
    for (unsigned i = 0; i < park->n_tickets; i++) {
        weir_rpc_shared_answer(&park->shared, park->tickets[i], code, &version.base, "\xff text");
        if (weir_rpc_shared_answer(&park->shared, park->tickets[i], code, &version.base, ""))
            __builtin_trap(); /* answered twice */
    }
    park->n_tickets = 0;
}

static weir_rpc_code handle(void *context, const weir_rpc_call_info *call,
                            const ProtobufCMessage *message, weir_arena *arena,
                            const ProtobufCMessage **out_response, char *text)
{
    (void)message, (void)arena, (void)out_response, (void)text;
    parking *park = context;
    if (park->n_tickets < N_TICKETS)
        park->tickets[park->n_tickets++] = call->ticket;
    if (park->n_handled++ % 3 == 0)
        answer_all(park, WEIR_RPC_OK);
    else if (park->n_handled % 3 == 0)
        return WEIR_RPC_ABORTED;
    return WEIR_RPC_LATER;
}

/* Whoever hears that one is over may answer others. */
static void gone(void *context, uint64_t ticket)
{
    parking *park = context;
    if (weir_rpc_shared_answer(&park->shared, ticket, WEIR_RPC_ABORTED, NULL, ""))
        __builtin_trap(); /* it is over */
    if (park->n_gone++ % 4 == 0)
        answer_all(park, WEIR_RPC_UNAVAILABLE);
}

static const weir_rpc_method methods[] = { { "GetWeightVersion", handle } };

static void connect_one(parking *park, unsigned i)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) != 0)
        return;
    if (weir_rpc_connection_open(&park->shared, pair[0], "fuzz", NULL, &park->connections[i]) !=
        WEIR_OK) {
        close(pair[1]);
        return;
    }
    park->fds[i] = pair[1];
    park->next_id[i] = 1;
    put(park, i, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0", 33);
}

static void disconnect_one(parking *park, unsigned i)
{
    weir_rpc_connection_close(park->connections[i]);
    park->connections[i] = NULL;
    close(park->fds[i]);
}

static void progress(parking *park, unsigned i)
{
    char sink[4096];
    if (!weir_rpc_connection_progress(park->connections[i], true))
        disconnect_one(park, i);
    else
        while (recv(park->fds[i], sink, sizeof(sink), MSG_DONTWAIT) > 0) {
        }
}

static void call(parking *park, unsigned i, const char *timeout, bool is_whole)
{
    static const char path[] = "/model_express.refit.RefitService/GetWeightVersion";
    unsigned char block[128] = { 0x83, 0x86, 0x04, sizeof(path) - 1 };
    size_t n = 4 + sizeof(path) - 1;
    memcpy(block + 4, path, sizeof(path) - 1);
    memcpy(block + n,
           "\x01\x01x\x0f\x10\x10"
           "application/grpc",
           22);
    n += 22;
    if (timeout != NULL) {
        memcpy(block + n, "\x00\x0cgrpc-timeout\x02", 15);
        memcpy(block + n + 15, timeout, 2);
        n += 17;
    }
    put_frame(park, i, 1, 4, park->next_id[i], block, n);
    put_frame(park, i, 0, is_whole, park->next_id[i], "\0\0\0\0\3\x0a\1x", 8);
    park->next_id[i] += 2;
}

static void step(parking *park, unsigned i, unsigned what)
{
    static const char window[4] = { 0, 0, 16, 0 }, cancel[4] = { 0, 0, 0, 8 };
    if (park->connections[i] == NULL)
        connect_one(park, i);
    if (park->connections[i] == NULL)
        return;
    uint32_t last = park->next_id[i] > 2 ? park->next_id[i] - 2 : 1;
    switch (what % 12) {
    case 0:
    case 1:
        call(park, i, NULL, true);
        break;
    case 2:
        call(park, i, "1n", true);
        break;
    case 3:
        call(park, i, "9H", true);
        break;
    case 4:
        call(park, i, NULL, false);
        break;
    case 5:
        put_frame(park, i, 3, 0, last - last % 4 + 1, cancel, 4);
        break;
    case 6:
        answer_all(park, what & 16 ? WEIR_RPC_OK : WEIR_RPC_NOT_FOUND);
        break;
    case 7: /* a day goes by */
        weir_rpc_shared_expire(&park->shared, weir_now_ns() + 86400000000000ull);
        break;
    case 8:
        disconnect_one(park, i);
        return;
    case 9: /* a window of nothing, then something */
        put_frame(park, i, 4, 0, 0, what & 16 ? "\0\4\0\0\0\0" : "\0\4\0\0\xff\xff", 6);
        break;
    case 10:
        put_frame(park, i, 8, 0, 0, window, 4);
        break;
    default:
        weir_rpc_connection_shut(park->connections[i]);
    }
    if (what & 32)
        progress(park, i);
}

static void take_turns(parking *park)
{
    for (unsigned i = 0; i < N_CONNECTIONS; i++) {
        if (park->connections[i] != NULL)
            progress(park, i);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static parking park;
    park = (parking){ 0 };
    const weir_rpc_service service = { &model_express__refit__refit_service__descriptor, methods, 1,
                                       &park };
    const weir_rpc_limits limits = { .parked = 8, .streams = 16, .request_bytes = 64 };
    weir_rpc_shared_init(&park.shared, &service, 1, &limits);
    park.shared.gone = gone;
    park.shared.gone_context = &park;
    park.shared.long_left_ns = INT64_MAX;
    for (size_t k = 0; k < n && k < 400; k++) {
        step(&park, (data[k] >> 6) % N_CONNECTIONS, data[k] & 63);
        if (data[k] % 5 == 0)
            take_turns(&park);
    }
    for (unsigned i = 0; i < N_CONNECTIONS; i++) {
        if (park.connections[i] != NULL)
            disconnect_one(&park, i);
    }
    const weir_rpc_shared *shared = &park.shared;
    if (shared->n_streams != 0 || shared->request_bytes != 0 || shared->answer_bytes != 0 ||
        shared->n_waiting != 0 || shared->counts.parked != 0 || shared->timers.n != 0 ||
        shared->n_pending != 0 || shared->counts.open_connections != 0)
        __builtin_trap(); /* what closed connections held is given back */
    weir_rpc_shared_close(&park.shared);
    return 0;
}
