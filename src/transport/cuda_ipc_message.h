/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ipc_message.h - what a reader asks an owner of transport cuda_ipc, and what it is answered.
 *
 * One message of a SOCK_SEQPACKET socket each, between processes of one host: fixed size, native
 * byte order, file descriptors beside them.
 */
#ifndef WEIR_TRANSPORT_CUDA_IPC_MESSAGE_H
#define WEIR_TRANSPORT_CUDA_IPC_MESSAGE_H

#include <stdbool.h>

#include "device/cuda_share.h"

#define WEIR_CUDA_IPC_MAGIC 0x31434957u /* "WIC1": format 1 */

typedef enum cuda_ipc_ask {
    CUDA_IPC_HELLO = 1,  /* whether the owner is who its address says */
    CUDA_IPC_REGION = 2, /* how `region` is mapped */
    CUDA_IPC_PIECE = 3,  /* a descriptor of the piece `at` bytes into what `region` maps */
} cuda_ipc_ask;

typedef struct cuda_ipc_request {
    uint32_t magic, ask;
    uint64_t number; /* repeated in its answer */
    uint64_t region, at;
} cuda_ipc_request;

typedef struct cuda_ipc_answer {
    uint32_t magic;
    int32_t status;
    uint64_t number;
    uint64_t owner[2];
    weir_cuda_share share; /* CUDA_IPC_REGION */
    uint64_t piece_bytes;  /* CUDA_IPC_PIECE */
    char error[256];       /* where status is none of OK */
} cuda_ipc_answer;

/* Never blocks; fd -1: none goes along. False when the socket is gone or full. */
bool weir_cuda_ipc_send(int socket, const void *message, size_t n_bytes, int fd);

typedef enum cuda_ipc_received {
    CUDA_IPC_NOTHING, /* there is none yet */
    CUDA_IPC_MESSAGE,
    CUDA_IPC_END, /* the other side is gone, or sends what is no such message */
} cuda_ipc_received;

/* Never blocks. *out_fd is the caller's to close; -1: none came along. */
cuda_ipc_received weir_cuda_ipc_receive(int socket, void *message, size_t n_bytes, int *out_fd);

#endif
