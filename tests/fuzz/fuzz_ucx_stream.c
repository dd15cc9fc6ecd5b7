/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_ucx_stream.c - what a reader over TCP says to the owner of bytes, and the owner to it.
 *
 * The owner has one region, at an address that an input can name; whatever it is asked, it sends
 * from nowhere else.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/ucx_stream.h"

#define REGION ((uintptr_t)0x20000000)
#define REGION_BYTES ((size_t)65536)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void map_region(ucx_stream_server *server)
{
    void *at = mmap((void *)REGION, REGION_BYTES, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    weir_stream_ranges_open(&server->ranges);
    if (at != (void *)REGION ||
        weir_stream_ranges_add(&server->ranges, (ucx_range){ REGION, REGION_BYTES }) != WEIR_OK)
        abort();
}

static void serve(ucx_stream_server *server, const uint8_t *data, size_t n_bytes)
{
    static uint8_t out[1 << 16];
    ucx_caller *caller = calloc(1, sizeof(*caller));
    int fds[2];
    if (caller == NULL || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) != 0)
        abort();
    caller->fd = fds[0];
    caller->welcomed = n_bytes % 3 != 0; /* most pass the door */
    if (send(fds[1], data, n_bytes, MSG_NOSIGNAL) > 0)
        shutdown(fds[1], SHUT_WR);
    for (int i = 0; i < 1000 && weir_stream_caller_turn(server, caller); i++)
        while (recv(fds[1], out, sizeof(out), 0) > 0) {
        }
    close(fds[0]);
    close(fds[1]);
    free(caller);
}

static void decode(const uint8_t *data, size_t n_bytes)
{
    ucx_answer answer;
    uint64_t greeting;
    if (n_bytes < WEIR_STREAM_WELCOME_BYTES)
        return;
    weir_stream_welcome_decode(data, &greeting);
    if (weir_stream_answer_decode(data, &answer) &&
        answer.n_bytes > (answer.refused ? WEIR_STREAM_REASON - 1 : WEIR_STREAM_BYTES))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static ucx_stream_server server;
    if (server.ranges.room == 0)
        map_region(&server);
    decode(data, n_bytes);
    serve(&server, data, n_bytes < 65536 ? n_bytes : 65536);
    return 0;
}
