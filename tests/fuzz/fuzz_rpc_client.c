/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_rpc_client.c - bytes from a hostile server into the client. */
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "refit.pb-c.h"
#include "rpc/rpc.h"
#include "rpc/rpc_address.h"

static int listen_fd;
static char address_text[WEIR_RPC_ADDRESS_TEXT];
static const uint8_t *answer;
static size_t n_answer;

/* Answers whoever connects with the input, without reading more than the first bytes. */
static void *answer_all(void *context)
{
    (void)context;
    for (;;) {
        int fd = accept(listen_fd, NULL, NULL);
        if (fd < 0)
            continue;
        char request[4096];
        ssize_t n = recv(fd, request, sizeof(request), 0);
        if (n > 0)
            n = send(fd, answer, n_answer, MSG_NOSIGNAL);
        shutdown(fd, SHUT_WR);
        while (recv(fd, request, sizeof(request), 0) > 0) {
        }
        close(fd);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    weir_rpc_address address;
    weir_rpc_address_parse("127.0.0.1:0", &address);
    if (weir_rpc_listen(&address, &listen_fd) != WEIR_OK)
        __builtin_trap();
    weir_rpc_address_format(&address, address_text);
    fcntl(listen_fd, F_SETFL, 0); /* the thread waits in accept */
    pthread_t thread;
    return pthread_create(&thread, NULL, answer_all, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const unsigned char greeting[] = { 0, 0, 0, 4, 0, 0, 0, 0, 0 };
    static uint8_t buffer[1 << 16];
    if (n < 1 || n > sizeof(buffer) - sizeof(greeting))
        return 0;
    n_answer = 0;
    if (data[0] & 1) {
        for (size_t i = 0; i < sizeof(greeting); i++)
            buffer[n_answer++] = greeting[i];
    }
    for (size_t i = 1; i < n; i++)
        buffer[n_answer++] = data[i];
    answer = buffer;
    weir_rpc_client *client;
    weir_arena arena;
    weir_arena_init(&arena, (size_t)16 << 20);
    if (weir_rpc_client_open(address_text, NULL, NULL, &client) == WEIR_OK) {
        ModelExpress__Refit__GetWeightVersionRequest request =
            MODEL_EXPRESS__REFIT__GET_WEIGHT_VERSION_REQUEST__INIT;
        const ProtobufCMessage *response;
        weir_rpc_call(client, &model_express__refit__refit_service__descriptor, "GetWeightVersion",
                      &request.base, 200, &arena, &response);
        weir_rpc_client_close(client);
    }
    weir_arena_close(&arena);
    return 0;
}
