/* SPDX-License-Identifier: Apache-2.0 */
/* cuda.h - GPUs: memory, streams, and conversions of whole layers in one call.
 *
 * Everything here needs libweir_cuda.so and a driver at run time; without them calls return
 * ERR_UNSUPPORTED with the reason, and nothing else of Weir changes. Devices are used through their
 * primary context, the one that PyTorch uses. No call waits for a whole device, but CUDA itself
 * does before it takes memory back (weir_cuda_free(), and what closes a batch).
 *
 * Threads    a batch or timer belongs to one thread at a time; the rest may be called from any. The
 *            calling thread's current device is put back.
 * Ownership  streams are the caller's cudaStream_t (or CUstream), or made here; NULL is the default
 *            stream. Memory is freed by whoever allocated it.
 * Errors     ERR_UNSUPPORTED, ERR_NO_MEMORY, ERR_DEVICE with CUDA's text, and those of convert.h.
 *            What blocks returns ERR_TIMED_OUT after ten minutes; the work runs on.
 */
#ifndef WEIR_CUDA_H
#define WEIR_CUDA_H

#include "weir/convert.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- devices ---------------------------------------------------------------------------------*/

typedef struct weir_cuda_device {
    char name[128];
    uint64_t memory_bytes;
    unsigned compute_major, compute_minor; /* 9, 0 for an H200 */
    unsigned n_multiprocessors;
    unsigned driver_version; /* 13000 for CUDA 13.0 */
} weir_cuda_device;

/* ERR_UNSUPPORTED "CUDA is off: …" when there is none. */
WEIR_API weir_status weir_cuda_devices(unsigned *out_n);
WEIR_API weir_status weir_cuda_describe(unsigned device, weir_cuda_device *out);

/* ---- memory ----------------------------------------------------------------------------------*/

/* Bytes of the device's memory that no process has taken. */
WEIR_API weir_status weir_cuda_memory_left(unsigned device, uint64_t *out_bytes);

/* Gives *out, its content undefined; free with weir_cuda_free(). */
WEIR_API weir_status weir_cuda_allocate(unsigned device, size_t n_bytes, void **out);
WEIR_API void weir_cuda_free(unsigned device, void *data); /* accepts NULL */
/* Host memory that copies reach at full speed. */
WEIR_API weir_status weir_cuda_allocate_pinned(size_t n_bytes, void **out);
WEIR_API void weir_cuda_free_pinned(void *data); /* accepts NULL */
/* Queues a copy between any two places; with memory that is not pinned it may block. */
WEIR_API weir_status weir_cuda_copy(unsigned device, void *dst, const void *src, size_t n_bytes,
                                    void *stream);
WEIR_API weir_status weir_cuda_fill(unsigned device, void *dst, int byte, size_t n_bytes,
                                    void *stream);
/* Lets `device` read and write the memory of `peer`. ERR_UNSUPPORTED when it cannot. */
WEIR_API weir_status weir_cuda_peer_enable(unsigned device, unsigned peer);

/* Which GPU `data` lies on. ERR_INVALID when it is host memory, pinned or not. */
WEIR_API weir_status weir_cuda_device_of(const void *data, unsigned *out_device);
/* Memory of CUDA's virtual memory management that other processes can map by file descriptor: for
 * owners that want no legacy handles. Free with weir_cuda_free() once no stream uses it any more:
 * CUDA does not wait for them as it does with other memory. */
WEIR_API weir_status weir_cuda_allocate_shareable(unsigned device, size_t n_bytes, void **out);

/* ---- streams ---------------------------------------------------------------------------------*/

/* Gives *out, a cudaStream_t that does not wait for the default stream. */
WEIR_API weir_status weir_cuda_stream_open(unsigned device, void **out);
WEIR_API void weir_cuda_stream_close(unsigned device, void *stream); /* accepts NULL */
/* Blocks until everything queued is done. */
WEIR_API weir_status weir_cuda_stream_wait(unsigned device, void *stream);

/* Measures what lies between two points of a stream, by the device's clock. */
typedef struct weir_cuda_timer weir_cuda_timer;
WEIR_API weir_status weir_cuda_timer_open(unsigned device, weir_cuda_timer **out);
WEIR_API void weir_cuda_timer_close(weir_cuda_timer *timer); /* accepts NULL */
WEIR_API weir_status weir_cuda_timer_begin(weir_cuda_timer *timer, void *stream);
WEIR_API weir_status weir_cuda_timer_end(weir_cuda_timer *timer, void *stream);
/* Blocks until the end was passed. */
WEIR_API weir_status weir_cuda_timer_seconds(weir_cuda_timer *timer, double *out_seconds);

/* ---- conversions -----------------------------------------------------------------------------*/

/* Any number of weir_convert_args as one piece of work: one launch for each kernel that they need,
 * however many tensors and experts there are. The same bytes, digests and errors as weir_convert(),
 * whose args it takes, with these differences: sources[].data and outputs[] are addresses that the
 * device can reach (its own memory, a peer's, pinned host memory), naturally aligned; `reference`
 * and `pool` are ignored; digests lie in host memory and are filled when the work has ended. Rows
 * that do not all begin on 16 bytes, whether for where they begin or for their pitch, are read
 * element by element, which is slow.
 *
 * A batch that is started again with the same tensors sends nothing but the launches; with other
 * addresses it sends those; it allocates only when it gets more tensors than ever before. */
typedef struct weir_cuda_batch weir_cuda_batch;

WEIR_API weir_status weir_cuda_batch_open(unsigned device, weir_cuda_batch **out);
/* Waits for what it started, 30 s at most: what runs on then keeps its memory, which is logged.
 * Accepts NULL. */
WEIR_API void weir_cuda_batch_close(weir_cuda_batch *batch);

/* Checks everything and queues the work in `stream`. Borrows the args, sources, pitches, names and
 * digests until the work has ended. ERR_BUSY while an earlier start has not been seen to end. On an
 * error nothing runs any more. */
WEIR_API weir_status weir_cuda_batch_start(weir_cuda_batch *batch, const weir_convert_args *args,
                                           size_t n_args, void *stream);
/* IN_PROGRESS while it runs, then once its status: OK with the digests filled, ERR_NONFINITE naming
 * the first refused element of the first args that have one. OK when nothing was started. */
WEIR_API weir_status weir_cuda_batch_test(weir_cuda_batch *batch);
/* The same, once it has ended; blocks. */
WEIR_API weir_status weir_cuda_batch_wait(weir_cuda_batch *batch);

/* Rows of GPU memory to digest (weir/tensor.h): n_rows rows of row_bytes, dense, the first word of
 * the first row having the number first_word. */
typedef struct weir_cuda_range {
    const char *name; /* for errors */
    const void *data; /* on 8 bytes when row_bytes is a multiple of 8, else anywhere */
    uint64_t n_rows, row_bytes;
    uint64_t first_word;
    weir_dtype dtype;    /* looked at only by `check` */
    bool check;          /* refuse what is not finite: BF16, F16, F32 */
    weir_digest *digest; /* filled when the work has ended */
} weir_cuda_range;

/* As weir_cuda_batch_start(), for digests: one launch reads everything once. A refused element is
 * named by `name` and its position in the range. */
WEIR_API weir_status weir_cuda_batch_digest(weir_cuda_batch *batch, const weir_cuda_range *ranges,
                                            size_t n_ranges, void *stream);

/* As weir_derived_compute() (weir/family.h), queued in `stream`: from, scale and out are GPU
 * memory. The same bytes. */
struct weir_derived;
WEIR_API weir_status weir_cuda_derived_start(unsigned device, const struct weir_derived *derived,
                                             weir_dtype from_dtype, const void *from,
                                             const float *scale, const weir_shape *scale_shape,
                                             void *out, void *stream);

#ifdef __cplusplus
}
#endif
#endif
