/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_share.h - describing GPU memory to another process of the same host, and mapping it there.
 *
 * cudaMalloc memory is mapped by a handle, which names a whole allocation; virtual memory by a file
 * descriptor for each of its pieces, which whoever brings the two processes together carries over.
 * A description is plain bytes: its receiver trusts nothing in it.
 *
 * Threads    any.
 * Ownership  a mapping lives until its last close, whatever its owner does meanwhile.
 * Errors     ERR_UNSUPPORTED for memory that cannot be shared, naming the range and the setting.
 */
#ifndef WEIR_DEVICE_CUDA_SHARE_H
#define WEIR_DEVICE_CUDA_SHARE_H

#include "device/cuda_loader.h"

/* A range of GPU memory, as another process is told of it. */
typedef struct weir_cuda_share {
    uint32_t sharing; /* WEIR_CUDA_SHARING_HANDLE or _DESCRIPTOR */
    uint32_t unused;  /* 0 */
    uint64_t address; /* in its own process */
    uint64_t offset;  /* of the range in what is mapped: an allocation, or pieces side by side */
    uint64_t n_bytes; /* of the range */
    uint64_t mapped_bytes;            /* of the allocation, or of all pieces */
    uint64_t identity;                /* equal only for the same memory of the same process */
    char gpu[WEIR_CUDA_BUS_ID_BYTES]; /* where it lies; ordinals differ between processes */
    unsigned char handle[WEIR_CUDA_IPC_HANDLE_BYTES]; /* WEIR_CUDA_SHARING_HANDLE */
} weir_cuda_share;

weir_status weir_cuda_share_describe(const void *data, size_t n_bytes, weir_cuda_share *out);
/* The piece that begins `at` bytes into what is mapped. *out_fd is the caller's to close. */
weir_status weir_cuda_share_piece(const weir_cuda_share *own, uint64_t at, int *out_fd,
                                  uint64_t *out_bytes);

/* Gets a piece from the process that a description is of: weir_cuda_share_piece() over there. */
typedef weir_status (*weir_cuda_piece_fn)(void *context, uint64_t at, int *out_fd,
                                          uint64_t *out_bytes);

typedef struct weir_cuda_importer {
    unsigned device;   /* that accesses the memory */
    uint64_t owner[2]; /* a random number that tells the owners apart */
    const char *who;   /* the owner, for errors */
    weir_cuda_piece_fn piece;
    void *context;
} weir_cuda_importer;

/* Memory of another process, mapped for one device of this one: once, however many ranges of it
 * are open. */
typedef struct weir_cuda_mapping weir_cuda_mapping;
weir_status weir_cuda_share_open(const weir_cuda_share *share, const weir_cuda_importer *importer,
                                 weir_cuda_mapping **out, void **out_data);
void weir_cuda_share_close(weir_cuda_mapping *mapping); /* accepts NULL */

/* Where the owner is this very process: its own address, with access for `device`. */
weir_status weir_cuda_share_here(const weir_cuda_share *share, unsigned device, const char *who,
                                 void **out_data);

#endif
