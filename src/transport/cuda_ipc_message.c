/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ipc_message.c - messages and file descriptors over a Unix socket; no meaning of them. */
#include "transport/cuda_ipc_message.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FDS 8 /* that a hostile sender may pass along; all but one are closed */

bool weir_cuda_ipc_send(int socket, const void *message, size_t n_bytes, int fd)
{
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    struct iovec part = { (void *)(uintptr_t)message, n_bytes };
    struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };
    if (fd >= 0) {
        header.msg_control = control.room;
        header.msg_controllen = sizeof(control.room);
        struct cmsghdr *item = CMSG_FIRSTHDR(&header);
        item->cmsg_level = SOL_SOCKET;
        item->cmsg_type = SCM_RIGHTS;
        item->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(item), &fd, sizeof(fd));
    }
    ssize_t n;
    do
        n = sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)n_bytes;
}

/* Keeps the first descriptor and closes the others. */
static void take_fds(struct msghdr *header, int *out_fd)
{
    for (struct cmsghdr *item = CMSG_FIRSTHDR(header); item != NULL;
         item = CMSG_NXTHDR(header, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n_fds = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n_fds; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(item) + i * sizeof(int), sizeof(fd));
            if (*out_fd < 0)
                *out_fd = fd;
            else
                close(fd);
        }
    }
}

cuda_ipc_received weir_cuda_ipc_receive(int socket, void *message, size_t n_bytes, int *out_fd)
{
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    struct iovec part = { message, n_bytes };
    struct msghdr header = { .msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.room,
                             .msg_controllen = sizeof(control.room) };
    *out_fd = -1;
    ssize_t n;
    do
        n = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? CUDA_IPC_NOTHING : CUDA_IPC_END;
    take_fds(&header, out_fd);
    if (n == (ssize_t)n_bytes && (header.msg_flags & MSG_TRUNC) == 0)
        return CUDA_IPC_MESSAGE;
    if (*out_fd >= 0)
        close(*out_fd);
    *out_fd = -1;
    return CUDA_IPC_END;
}
