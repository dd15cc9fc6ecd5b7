/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ipc_server.c - the owner's thread: tells readers how regions are mapped.
 *
 * It sleeps on an abstract Unix socket, so the owner's own threads may sleep or compute. A reader
 * keeps its connection: the kernel closes it when this process ends, however it ends, and that is
 * how the reader knows. Only processes of the same user (and root's) are answered: an abstract
 * socket has no file permissions.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "transport/cuda_ipc.h"
#include "transport/cuda_ipc_message.h"
#include "transport/transport_host.h"

#define STOP 0u
#define LISTEN 1u
#define FIRST_READER 2u
#define BACKLOG 128
#define STRANGER_READERS \
    64u             /* so many readers, and those who may not know anything are not heard */
#define RETRY_MS 10 /* after a reader could not be let in: no descriptor is left, say */

/* ---- where -----------------------------------------------------------------------------------*/

void weir_cuda_ipc_where(char host[WEIR_KEY_TEXT], char place[WEIR_KEY_TEXT])
{
    weir_transport_host("net", place);
    if (gethostname(host, WEIR_KEY_TEXT) != 0)
        host[0] = '\0';
    host[WEIR_KEY_TEXT - 1] = '\0';
}

/* ---- answering -------------------------------------------------------------------------------*/

static const cuda_ipc_region *find(const cuda_ipc_transport *ipc, uint64_t number)
{
    const cuda_ipc_region *region = ipc->regions;
    while (region != NULL && region->number != number)
        region = region->next;
    return region != NULL && region->sealed ? region : NULL;
}

static bool may_know(int socket)
{
    struct ucred peer;
    socklen_t n_bytes = sizeof(peer);
    return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &n_bytes) == 0 &&
           (peer.uid == geteuid() || peer.uid == 0);
}

static weir_status find_answer(cuda_ipc_transport *ipc, const cuda_ipc_request *request,
                               cuda_ipc_answer *answer, int *out_fd)
{
    if (request->ask == CUDA_IPC_HELLO)
        return WEIR_OK;
    const cuda_ipc_region *region = find(ipc, request->region);
    if (region == NULL)
        return weir_fail(WEIR_ERR_NOT_FOUND, "region %llu is not exposed (any more)",
                         (unsigned long long)request->region);
    if (request->ask == CUDA_IPC_REGION) {
        answer->share = region->share;
        return WEIR_OK;
    }
    if (request->ask == CUDA_IPC_PIECE)
        return weir_cuda_share_piece(&region->share, request->at, out_fd, &answer->piece_bytes);
    return weir_fail(WEIR_ERR_UNSUPPORTED, "question %u is not known here", request->ask);
}

/* False: the reader is to be let go. The lock is held while CUDA is asked, so that no region is
 * released under it. */
static bool answer_one(cuda_ipc_transport *ipc, int socket, const cuda_ipc_request *request)
{
    int fd = -1;
    cuda_ipc_answer answer = { .magic = WEIR_CUDA_IPC_MAGIC,
                               .number = request->number,
                               .owner = { ipc->owner[0], ipc->owner[1] } };
    if (request->magic != WEIR_CUDA_IPC_MAGIC) {
        answer.status = weir_fail(WEIR_ERR_UNSUPPORTED, "it speaks another version of the format");
    } else if (!may_know(socket)) {
        answer.status = weir_fail(WEIR_ERR_REFUSED,
                                  "the owner runs as user %u, and answers that user's processes "
                                  "and root's alone",
                                  (unsigned)geteuid());
    } else {
        pthread_mutex_lock(&ipc->lock);
        answer.status = find_answer(ipc, request, &answer, &fd);
        pthread_mutex_unlock(&ipc->lock);
    }
    if (answer.status != WEIR_OK)
        snprintf(answer.error, sizeof(answer.error), "%s", weir_last_error());
    bool sent = weir_cuda_ipc_send(socket, &answer, sizeof(answer), fd);
    if (fd >= 0)
        close(fd);
    return sent && answer.status != WEIR_ERR_REFUSED;
}

static bool serve_reader(cuda_ipc_transport *ipc, int socket)
{
    cuda_ipc_request request;
    int fd;
    cuda_ipc_received received = weir_cuda_ipc_receive(socket, &request, sizeof(request), &fd);
    if (fd >= 0)
        close(fd);
    if (received == CUDA_IPC_MESSAGE)
        return answer_one(ipc, socket, &request);
    return received == CUDA_IPC_NOTHING;
}

/* ---- readers ---------------------------------------------------------------------------------*/

static bool grow(cuda_ipc_server *server)
{
    if (server->n_fds < server->capacity)
        return true;
    size_t capacity = server->capacity * 2;
    struct pollfd *grown = weir_realloc(server->fds, capacity * sizeof(*grown));
    if (grown == NULL)
        return false;
    server->fds = grown;
    server->capacity = capacity;
    return true;
}

static void let_in(cuda_ipc_transport *ipc)
{
    cuda_ipc_server *server = &ipc->server;
    int socket = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (socket < 0) {
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            weir_sleep_ms(RETRY_MS);
        return;
    }
    if ((server->n_fds >= STRANGER_READERS && !may_know(socket)) || !grow(server)) {
        close(socket);
        return;
    }
    server->fds[server->n_fds++] = (struct pollfd){ .fd = socket, .events = POLLIN };
}

static void serve_turn(cuda_ipc_transport *ipc)
{
    cuda_ipc_server *server = &ipc->server;
    for (size_t i = server->n_fds; i-- > FIRST_READER;) {
        if (server->fds[i].revents == 0 || serve_reader(ipc, server->fds[i].fd))
            continue;
        close(server->fds[i].fd);
        server->fds[i] = server->fds[--server->n_fds];
    }
    if (server->fds[LISTEN].revents != 0)
        let_in(ipc);
}

static void *serve(void *argument)
{
    cuda_ipc_transport *ipc = argument;
    cuda_ipc_server *server = &ipc->server;
    int previous;
    if (ipc->cuda->enter((int)ipc->device, &previous) != 0) /* the thread is ours: for good */
        weir_log(WEIR_LOG_WARN, "cuda_ipc: the owner's thread cannot use GPU %u", ipc->device);
    for (;;) {
        if (poll(server->fds, server->n_fds, -1) < 0)
            continue; /* EINTR: revents are of the last turn */
        if (server->fds[STOP].revents != 0)
            return NULL;
        serve_turn(ipc);
    }
}

/* ---- opening and closing ---------------------------------------------------------------------*/

/* The application's signal handlers must not run on our thread. */
static int start_thread(cuda_ipc_transport *ipc)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&ipc->server.thread, NULL, serve, ipc);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

static weir_status listen_at(cuda_ipc_server *server, const char *name)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    size_t n = strlen(name);
    memcpy(address.sun_path + 1, name, n);
    server->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (server->listen_fd < 0 ||
        bind(server->listen_fd, (struct sockaddr *)&address,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n)) != 0 ||
        listen(server->listen_fd, BACKLOG) != 0)
        return weir_fail_errno("transport cuda_ipc: cannot listen at abstract socket %s", name);
    return WEIR_OK;
}

static weir_status prepare(cuda_ipc_transport *ipc)
{
    cuda_ipc_server *server = &ipc->server;
    weir_cuda_ipc_address address = { .process = (uint32_t)getpid(),
                                      .owner = { ipc->owner[0], ipc->owner[1] } };
    uint64_t nonce[2]; /* nobody else can have taken the name before us */
    if (getrandom(nonce, sizeof(nonce), 0) != (ssize_t)sizeof(nonce))
        return weir_fail_errno("transport cuda_ipc: no random bytes");
    weir_cuda_ipc_where(address.host, address.place);
    snprintf(address.socket, sizeof(address.socket), "weir-cuda-ipc-%016llx%016llx",
             (unsigned long long)nonce[0], (unsigned long long)nonce[1]);
    snprintf(address.gpu, sizeof(address.gpu), "%s", ipc->gpu);
    weir_status status = weir_cuda_ipc_address_encode(&address, &server->address);
    if (status != WEIR_OK)
        return status;
    server->capacity = FIRST_READER + 6;
    server->fds = weir_alloc_zeroed(server->capacity, sizeof(*server->fds));
    if (server->fds == NULL)
        return WEIR_ERR_NO_MEMORY;
    server->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->stop_fd < 0)
        return weir_fail_errno("transport cuda_ipc: no event descriptor");
    return listen_at(server, address.socket);
}

static void close_all(cuda_ipc_server *server)
{
    for (size_t i = FIRST_READER; i < server->n_fds; i++)
        close(server->fds[i].fd);
    if (server->listen_fd >= 0)
        close(server->listen_fd);
    if (server->stop_fd >= 0)
        close(server->stop_fd);
    weir_free(server->fds);
    weir_key_buffer_close(&server->address);
    *server = (cuda_ipc_server){ 0 };
}

weir_status weir_cuda_ipc_server_open(cuda_ipc_transport *ipc)
{
    cuda_ipc_server *server = &ipc->server;
    if (server->running)
        return WEIR_OK;
    server->listen_fd = server->stop_fd = -1;
    weir_status status = prepare(ipc);
    if (status == WEIR_OK) {
        server->fds[STOP] = (struct pollfd){ .fd = server->stop_fd, .events = POLLIN };
        server->fds[LISTEN] = (struct pollfd){ .fd = server->listen_fd, .events = POLLIN };
        server->n_fds = FIRST_READER;
        int code = start_thread(ipc);
        if (code != 0)
            status = weir_fail(WEIR_ERR_NO_MEMORY, "transport cuda_ipc: cannot start a thread: %s",
                               strerror(code));
    }
    if (status != WEIR_OK)
        close_all(server);
    server->running = status == WEIR_OK;
    return status;
}

void weir_cuda_ipc_server_close(cuda_ipc_transport *ipc)
{
    cuda_ipc_server *server = &ipc->server;
    if (!server->running)
        return;
    eventfd_write(server->stop_fd, 1);
    pthread_join(server->thread, NULL);
    close_all(server);
}
