/* SPDX-License-Identifier: Apache-2.0 */
/* runtime_cuda.h - the runtime's half of the table; inside libweir_cuda.so only. */
#ifndef WEIR_DEVICE_RUNTIME_CUDA_H
#define WEIR_DEVICE_RUNTIME_CUDA_H

#include "device/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const weir_cuda_runtime weir_cuda_runtime_table;

/* share_cuda.cu: cells of the table, of the same names. */
int weir_cuda_allocation_of(const void *data, void **out_base, size_t *out_bytes);
int weir_cuda_ipc_export(void *data, void *handle, uint64_t *out_offset);
int weir_cuda_ipc_import(const void *handle, void **out_base);
int weir_cuda_ipc_close(void *base);
int weir_cuda_sharing_of(const void *data, weir_cuda_sharing *out);
int weir_cuda_memory_id(const void *data, uint64_t *out);
int weir_cuda_pieces_allocate(int device, size_t n_bytes, size_t piece_bytes, int shareable,
                              void **out, size_t *out_bytes);
int weir_cuda_piece_export(const void *data, int *out_fd);
int weir_cuda_address_reserve(size_t n_bytes, void **out);
int weir_cuda_address_map(void *at, size_t n_bytes, int fd);
int weir_cuda_address_grant(int device, void *at, size_t n_bytes);
int weir_cuda_address_unmap(void *at, size_t n_bytes);
int weir_cuda_address_free(void *base, size_t n_bytes);

/* Frees virtual memory of one piece. */
int weir_cuda_pieces_free(void *data);

#ifdef __cplusplus
}
#endif
#endif
