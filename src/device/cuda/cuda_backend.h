/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_backend.h - the one table that libweir_cuda.so exports, and the words it uses.
 *
 * libweir.so holds no CUDA type and links no CUDA library: it loads libweir_cuda.so at run time and
 * calls what this table points to. Streams and events are opaque pointers (a caller's cudaStream_t
 * or CUstream is one; NULL is the default stream). Every call acts on the device that enter() chose
 * for the calling thread and returns 0 or CUDA's error number. Nothing here waits: cuda_wait.h asks
 * again and again, within a bound. Only free() and free_pinned() may, as CUDA lets all that runs on
 * the device end before it takes memory back.
 */
#ifndef WEIR_DEVICE_CUDA_BACKEND_H
#define WEIR_DEVICE_CUDA_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WEIR_CUDA_BACKEND_VERSION 7u
#define WEIR_CUDA_BACKEND_SYMBOL "weir_cuda_backend_table"
#define WEIR_CUDA_NOT_READY 600     /* cudaErrorNotReady: of an event or stream, no failure */
#define WEIR_CUDA_NOT_SUPPORTED 801 /* cudaErrorNotSupported */
#define WEIR_CUDA_IPC_HANDLE_BYTES 64
#define WEIR_CUDA_BUS_ID_BYTES 32

typedef struct weir_cuda_description {
    char name[128];
    uint64_t memory_bytes;
    uint32_t compute_major, compute_minor, n_multiprocessors;
    uint32_t driver_version; /* 13000 for 13.0 */
} weir_cuda_description;

typedef enum weir_cuda_pointer_kind {
    WEIR_CUDA_POINTER_HOST = 0,   /* nothing that CUDA knows */
    WEIR_CUDA_POINTER_PINNED = 1, /* host memory that the GPU reaches */
    WEIR_CUDA_POINTER_DEVICE = 2,
    WEIR_CUDA_POINTER_MANAGED = 3
} weir_cuda_pointer_kind;

/* How another process of this host can map a piece of GPU memory. */
typedef enum weir_cuda_sharing {
    WEIR_CUDA_SHARING_NONE = 0,       /* of a pool (cudaMallocAsync), or mapped from elsewhere */
    WEIR_CUDA_SHARING_PRIVATE = 1,    /* virtual memory made without a handle for others */
    WEIR_CUDA_SHARING_HANDLE = 2,     /* cudaMalloc: the bytes of a handle */
    WEIR_CUDA_SHARING_DESCRIPTOR = 3, /* virtual memory: a file descriptor for each piece */
} weir_cuda_sharing;

/* CUDA's runtime. Append only; never reorder. */
typedef struct weir_cuda_runtime {
    size_t size;
    const char *(*error_text)(int error);

    int (*count_devices)(int *out_n);
    int (*describe)(int device, weir_cuda_description *out);
    int (*enter)(int device, int *out_previous); /* of the calling thread; leave(previous) after */
    int (*leave)(int previous);

    int (*allocate)(size_t n_bytes, void **out);
    int (*free)(void *data);
    int (*allocate_pinned)(size_t n_bytes, void **out);
    int (*free_pinned)(void *data);
    int (*pin)(void *data, size_t n_bytes);
    int (*unpin)(void *data);
    int (*pointer_kind)(const void *data, weir_cuda_pointer_kind *out_kind, int *out_device);
    int (*allocation_of)(const void *data, void **out_base, size_t *out_bytes);

    /* Any direction, in the order of the stream. */
    int (*copy)(void *dst, const void *src, size_t n_bytes, void *stream);
    int (*fill)(void *dst, int byte, size_t n_bytes, void *stream);
    int (*stream_open)(void **out); /* does not wait for the default stream */
    int (*stream_close)(void *stream);
    int (*stream_test)(void *stream); /* 0 when all in it is done, or WEIR_CUDA_NOT_READY */
    int (*event_open)(int timed, void **out);
    int (*event_close)(void *event);
    int (*event_record)(void *event, void *stream);
    int (*event_test)(void *event); /* 0, or WEIR_CUDA_NOT_READY */
    int (*event_seconds)(void *begin, void *end, double *out_seconds);
    int (*stream_after)(void *stream, void *event); /* what follows in it waits for the event */

    int (*peer_enable)(int peer); /* this device may access that one's memory; twice is no error */
    int (*ipc_export)(void *data, void *handle, uint64_t *out_offset);
    int (*ipc_import)(const void *handle, void **out_base);
    int (*ipc_close)(void *base);
    int (*memory_left)(size_t *out_bytes); /* that nobody has allocated on this device */

    int (*current_device)(int *out);                     /* of the calling thread */
    int (*bus_id)(int device, char *out, int out_bytes); /* "0000:1B:00.0" */
    int (*sharing_of)(const void *data, weir_cuda_sharing *out);
    /* Another number for every allocation (or piece) that this process has had or will have. */
    int (*memory_id)(const void *data, uint64_t *out);
    /* Virtual memory: pieces of physical memory, mapped side by side. piece_bytes 0: one piece for
     * all; sizes are rounded up to what the device needs. shareable 0: nobody else can map it.
     * free() takes what is of one piece; else address_unmap() each and address_free() all. */
    int (*pieces_allocate)(int device, size_t n_bytes, size_t piece_bytes, int shareable,
                           void **out, size_t *out_bytes);
    int (*piece_export)(const void *data, int *out_fd); /* of the piece that holds it */
    int (*address_reserve)(size_t n_bytes, void **out);
    /* Maps the piece behind a descriptor, which stays the caller's, at `at`; nobody may access it
     * before address_grant(), which takes any run of mapped pieces. */
    int (*address_map)(void *at, size_t n_bytes, int fd);
    int (*address_grant)(int device, void *at, size_t n_bytes);
    int (*address_unmap)(void *at, size_t n_bytes); /* one whole piece */
    int (*address_free)(void *base, size_t n_bytes);
    /* As copy: n_rows rows of row_bytes, a pitch apart at either end. */
    int (*copy_rows)(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                     size_t row_bytes, size_t n_rows, void *stream);
} weir_cuda_runtime;

/* Both sides are built from one tree, so sizes and version must match. */
typedef struct weir_cuda_backend {
    size_t size;
    uint32_t version;
    const weir_cuda_runtime *runtime;
    const struct weir_cuda_converter *converter; /* convert/cuda/cuda_job.h */
} weir_cuda_backend;

#ifdef __cplusplus
}
#endif
#endif
