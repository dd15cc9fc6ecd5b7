/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ipc_peer.c - whom transport cuda_ipc reads from, and which of their regions.
 *
 * Everything that an owner says comes over its socket when it is asked; a key only names a region.
 * So the key of a region that was released since is refused instead of mapping what is there now.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "transport/cuda_ipc.h"
#include "transport/cuda_ipc_message.h"

#define RETRY_MS 2 /* while the owner's backlog is full */

static cuda_ipc_transport *transport_of(const cuda_ipc_peer *peer)
{
    return (cuda_ipc_transport *)peer->base.transport;
}

/* ---- life ------------------------------------------------------------------------------------*/

void weir_cuda_ipc_peer_lost(cuda_ipc_peer *peer, weir_status status, const char *why)
{
    if (peer->lost != WEIR_OK)
        return;
    peer->lost = status;
    snprintf(peer->lost_why, sizeof(peer->lost_why), "%s", why);
}

static weir_status lost(const cuda_ipc_peer *peer)
{
    return weir_fail(peer->lost, "%s: peer went away: %s", peer->who, peer->lost_why);
}

static weir_status ended(cuda_ipc_peer *peer)
{
    weir_cuda_ipc_peer_lost(peer, WEIR_ERR_PEER_LOST,
                            "its process has ended, or has closed its transport");
    return lost(peer);
}

weir_status weir_cuda_ipc_peer_check(cuda_ipc_peer *peer)
{
    struct pollfd fds[] = { { .fd = peer->fd, .events = POLLRDHUP },
                            { .fd = peer->process, .events = POLLIN } };
    if (peer->lost != WEIR_OK)
        return lost(peer);
    return poll(fds, 2, 0) > 0 ? ended(peer) : WEIR_OK;
}

/* ---- asking ----------------------------------------------------------------------------------*/

/* An answer to a question that timed out before may still come: it is passed over. */
static weir_status receive(cuda_ipc_peer *peer, uint64_t number, weir_deadline deadline,
                           cuda_ipc_answer *answer, int *out_fd)
{
    for (;;) {
        struct pollfd fds[] = { { .fd = peer->fd, .events = POLLIN | POLLRDHUP },
                                { .fd = peer->process, .events = POLLIN } };
        poll(fds, 2, (int)weir_deadline_left_ms(deadline));
        switch (weir_cuda_ipc_receive(peer->fd, answer, sizeof(*answer), out_fd)) {
        case CUDA_IPC_END:
            return ended(peer);
        case CUDA_IPC_MESSAGE:
            if (answer->number == number)
                return WEIR_OK;
            if (*out_fd >= 0)
                close(*out_fd);
            break;
        case CUDA_IPC_NOTHING:
            if (fds[1].revents != 0)
                return ended(peer);
            break;
        }
        if (weir_deadline_passed(deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT, "%s: no answer for %.1f s", peer->who,
                             peer->timeout_ms * 1e-3);
    }
}

static weir_status refusal(const cuda_ipc_peer *peer, cuda_ipc_answer *answer)
{
    answer->error[sizeof(answer->error) - 1] = '\0';
    weir_error_one_line(answer->error);
    bool known = answer->status <= WEIR_ERR_INVALID && answer->status >= WEIR_STATUS_MIN;
    return weir_fail(known ? (weir_status)answer->status : WEIR_ERR_CORRUPT, "%s: peer says: %s",
                     peer->who, answer->error);
}

/* out_fd NULL: none is expected. */
static weir_status ask(cuda_ipc_peer *peer, cuda_ipc_ask what, uint64_t region, uint64_t at,
                       cuda_ipc_answer *answer, int *out_fd)
{
    cuda_ipc_request request = { .magic = WEIR_CUDA_IPC_MAGIC,
                                 .ask = what,
                                 .number = peer->last_request++,
                                 .region = region,
                                 .at = at };
    int fd = -1;
    if (!weir_cuda_ipc_send(peer->fd, &request, sizeof(request), -1))
        return ended(peer);
    weir_status status =
        receive(peer, request.number, weir_deadline_in(peer->timeout_ms), answer, &fd);
    if (status == WEIR_OK && answer->magic != WEIR_CUDA_IPC_MAGIC)
        status = weir_fail(WEIR_ERR_UNSUPPORTED, "%s: peer speaks another version of the format",
                           peer->who);
    if (status == WEIR_OK && answer->status != WEIR_OK)
        status = refusal(peer, answer);
    if (status == WEIR_OK && out_fd != NULL && fd < 0)
        status =
            weir_fail(WEIR_ERR_CORRUPT, "%s: an answer came without its descriptor", peer->who);
    if (status == WEIR_OK && out_fd != NULL)
        *out_fd = fd;
    else if (fd >= 0)
        close(fd);
    return status;
}

/* ---- connect ---------------------------------------------------------------------------------*/

static weir_status check_place(const weir_cuda_ipc_address *address, const char *who)
{
    char host[WEIR_KEY_TEXT], place[WEIR_KEY_TEXT];
    weir_cuda_ipc_where(host, place);
    if (strcmp(address->place, place) == 0)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "%s: peer is on host '%s' (%s), this process on '%s' (%s): GPUs are shared "
                     "within one host and network namespace",
                     who, address->host, address->place, host, place);
}

static weir_status reach(cuda_ipc_peer *peer, const char *name)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    size_t n = strlen(name);
    weir_deadline deadline = weir_deadline_in(peer->timeout_ms);
    memcpy(address.sun_path + 1, name, n);
    peer->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (peer->fd < 0)
        return weir_fail_errno("%s: no socket", peer->who);
    while (connect(peer->fd, (struct sockaddr *)&address,
                   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n)) != 0) {
        if (errno == ECONNREFUSED)
            return ended(peer);
        if (errno != EAGAIN && errno != EINTR)
            return weir_fail_errno("%s: cannot reach the owner's socket", peer->who);
        if (weir_deadline_passed(deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT, "%s: no answer to a connection for %.1f s",
                             peer->who, peer->timeout_ms * 1e-3);
        weir_sleep_ms(RETRY_MS);
    }
    return WEIR_OK;
}

/* A child that the owner has forked holds its end of the socket, too, and may outlive it. */
static void watch(cuda_ipc_peer *peer, pid_t process)
{
#ifdef SYS_pidfd_open
    if (process > 0) /* 0: of another process namespace */
        peer->process = (int)syscall(SYS_pidfd_open, process, 0);
#else
    (void)peer, (void)process;
#endif
}

static weir_status greet(cuda_ipc_peer *peer)
{
    cuda_ipc_answer answer;
    struct ucred process;
    socklen_t n_bytes = sizeof(process);
    weir_status status = ask(peer, CUDA_IPC_HELLO, 0, 0, &answer, NULL);
    if (status != WEIR_OK)
        return status;
    if (memcmp(answer.owner, peer->owner, sizeof(peer->owner)) != 0)
        return weir_fail(WEIR_ERR_PEER_LOST,
                         "%s: peer went away: another process answers at its address", peer->who);
    if (getsockopt(peer->fd, SOL_SOCKET, SO_PEERCRED, &process, &n_bytes) != 0)
        return weir_fail_errno("%s: cannot tell whose socket it is", peer->who);
    peer->here = process.pid == getpid();
    watch(peer, process.pid);
    return WEIR_OK;
}

weir_status weir_cuda_ipc_connect(weir_transport *transport, const void *address, size_t n_bytes,
                                  const char *who, unsigned timeout_ms, weir_peer **out)
{
    weir_cuda_ipc_address where;
    weir_status status = weir_cuda_ipc_address_decode(address, n_bytes, who, &where);
    if (status == WEIR_OK)
        status = check_place(&where, who);
    if (status != WEIR_OK)
        return status;
    size_t who_bytes = strlen(who) + 1;
    cuda_ipc_peer *peer = weir_alloc_zeroed(1, sizeof(*peer) + who_bytes);
    if (peer == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(peer->who, who, who_bytes);
    peer->base = (weir_peer){ transport, peer->who };
    peer->fd = peer->process = -1;
    peer->owner[0] = where.owner[0];
    peer->owner[1] = where.owner[1];
    peer->timeout_ms = timeout_ms;
    status = reach(peer, where.socket);
    if (status == WEIR_OK)
        status = greet(peer);
    if (status == WEIR_OK)
        status = weir_cuda_ipc_transfer_open(peer);
    if (status != WEIR_OK) {
        weir_cuda_ipc_disconnect(&peer->base);
        return status;
    }
    *out = &peer->base;
    return WEIR_OK;
}

void weir_cuda_ipc_disconnect(weir_peer *base)
{
    if (base == NULL)
        return;
    cuda_ipc_peer *peer = (cuda_ipc_peer *)base;
    weir_cuda_ipc_finish(&peer->transfer.base);
    weir_cuda_ipc_transfer_close(peer);
    if (peer->fd >= 0)
        close(peer->fd);
    if (peer->process >= 0)
        close(peer->process);
    weir_free(peer);
}

/* ---- remote regions --------------------------------------------------------------------------*/

typedef struct asked_region {
    cuda_ipc_peer *peer;
    uint64_t region;
} asked_region;

static weir_status ask_piece(void *context, uint64_t at, int *out_fd, uint64_t *out_bytes)
{
    const asked_region *asked = context;
    cuda_ipc_answer answer;
    weir_status status = ask(asked->peer, CUDA_IPC_PIECE, asked->region, at, &answer, out_fd);
    if (status == WEIR_OK)
        *out_bytes = answer.piece_bytes;
    return status;
}

static weir_status map_region(cuda_ipc_peer *peer, uint64_t region, const weir_cuda_share *share,
                              cuda_ipc_remote *remote)
{
    asked_region asked = { peer, region };
    unsigned device = transport_of(peer)->device;
    void *data = NULL;
    weir_cuda_importer importer = { .device = device,
                                    .owner = { peer->owner[0], peer->owner[1] },
                                    .who = peer->who,
                                    .piece = ask_piece,
                                    .context = &asked };
    weir_status status = peer->here
                             ? weir_cuda_share_here(share, device, peer->who, &data)
                             : weir_cuda_share_open(share, &importer, &remote->mapping, &data);
    remote->data = data;
    return status;
}

weir_status weir_cuda_ipc_import(weir_peer *base, const void *key, size_t n_bytes,
                                 weir_remote_region **out)
{
    cuda_ipc_peer *peer = (cuda_ipc_peer *)base;
    weir_cuda_ipc_key decoded;
    cuda_ipc_answer answer;
    weir_status status = weir_cuda_ipc_key_decode(key, n_bytes, peer->who, &decoded);
    if (status != WEIR_OK)
        return status;
    if (memcmp(decoded.owner, peer->owner, sizeof(peer->owner)) != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: key is of a region of another process", peer->who);
    status = weir_cuda_ipc_peer_check(peer);
    if (status == WEIR_OK)
        status = ask(peer, CUDA_IPC_REGION, decoded.region, 0, &answer, NULL);
    if (status != WEIR_OK)
        return status;
    if (answer.share.n_bytes != decoded.n_bytes)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: key claims %llu bytes, its region has %llu",
                         peer->who, (unsigned long long)decoded.n_bytes,
                         (unsigned long long)answer.share.n_bytes);
    cuda_ipc_remote *remote = weir_alloc_zeroed(1, sizeof(*remote));
    if (remote == NULL)
        return WEIR_ERR_NO_MEMORY;
    remote->base.peer = base;
    remote->n_bytes = decoded.n_bytes;
    status = map_region(peer, decoded.region, &answer.share, remote);
    if (status != WEIR_OK) {
        weir_free(remote);
        return status;
    }
    weir_log(WEIR_LOG_DEBUG, "cuda_ipc: %s: a region of %llu bytes on GPU %s is mapped by %s",
             peer->who, (unsigned long long)remote->n_bytes, answer.share.gpu,
             peer->here                                             ? "its own process"
             : answer.share.sharing == WEIR_CUDA_SHARING_DESCRIPTOR ? "descriptor"
                                                                    : "handle");
    *out = &remote->base;
    return WEIR_OK;
}

void weir_cuda_ipc_forget(weir_remote_region *base)
{
    if (base == NULL)
        return;
    cuda_ipc_remote *remote = (cuda_ipc_remote *)base;
    weir_cuda_share_close(remote->mapping);
    weir_free(remote);
}

weir_status weir_cuda_ipc_map(weir_remote_region *base, void **out, uint64_t *out_n_bytes)
{
    const cuda_ipc_remote *remote = (const cuda_ipc_remote *)base;
    weir_status status = weir_cuda_ipc_peer_check((cuda_ipc_peer *)base->peer);
    if (status != WEIR_OK)
        return status;
    *out = remote->data;
    *out_n_bytes = remote->n_bytes;
    return WEIR_OK;
}
