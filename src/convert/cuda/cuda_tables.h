/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_tables.h - what a piece of work keeps between host and GPU: an image of words that is sent
 * only when it differs from the one sent last, and results that the GPU writes into host memory.
 *
 * Everything lies in two pieces of device memory and three of pinned host memory that only grow.
 * All calls act on the current device of the calling thread.
 */
#ifndef WEIR_CONVERT_CUDA_TABLES_H
#define WEIR_CONVERT_CUDA_TABLES_H

#include <stdbool.h>

#include "convert/cuda/cuda_job.h"
#include "device/cuda_loader.h"

typedef struct weir_cuda_tables {
    const weir_cuda_runtime *cuda;
    size_t n_counters;           /* words behind device_results, zero between two starts */
    unsigned char *built, *sent; /* images in pinned memory: being made; on the device */
    void *image;                 /* on the device */
    size_t image_room, sent_bytes;
    weir_cuda_result *results, *device_results; /* pinned; on the device */
    size_t n_results_room;
    bool dirty; /* device_results and the counters are not all zero */
    bool stuck; /* something that uses them has not ended within its bound */
} weir_cuda_tables;

/* Makes room: `built` for an image, and results. ERR_DEVICE when they are stuck. */
weir_status weir_cuda_tables_room(weir_cuda_tables *tables, size_t image_bytes, size_t n_results);
/* What is stuck is left behind: memory that is in use cannot be freed. */
void weir_cuda_tables_drop(weir_cuda_tables *tables);
/* Waits, within a bound, until nothing in the stream uses them any more; else they are stuck. */
void weir_cuda_tables_settle(weir_cuda_tables *tables, void *stream);

/* Whether the built image is what the device has. */
bool weir_cuda_tables_are_sent(const weir_cuda_tables *tables, size_t image_bytes);
/* Queues the built image. */
weir_status weir_cuda_tables_send(weir_cuda_tables *tables, size_t image_bytes, void *stream);

/* Zeroes results on both sides where they are not; 0 or CUDA's error. Until the caller has queued
 * what leaves them zero again, they are dirty. */
int weir_cuda_tables_zero(weir_cuda_tables *tables, size_t n_results, void *stream);

/* On the device, behind the results. */
uint32_t *weir_cuda_tables_counters(const weir_cuda_tables *tables);

/* ERR_INVALID for plain host memory: a kernel that reads it would take the context down with it.
 * NULL is no error. */
weir_status weir_cuda_check_reach(const weir_cuda_runtime *cuda, int device, const void *data,
                                  const char *name);

#endif
