/* SPDX-License-Identifier: Apache-2.0 */
/* fake_cuda.c - a shared object that stands for libweir_cuda.so: two GPUs whose memory is the
 * host's, shared between processes for real (memfd), so that transport cuda_ipc runs where no GPU
 * is. It converts nothing, but digests. */
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/digest.h"
#include "convert/cuda/digest_job.h"
#include "convert/cuda/scatter_job.h"
#include "device/cuda/cuda_backend.h"

#define N_DEVICES 2
#define UNIT ((size_t)2 << 20)
#define MAX_BLOCKS 8192
#define INVALID 1       /* cudaErrorInvalidValue */
#define OUT_OF_MEMORY 2 /* cudaErrorMemoryAllocation */

typedef struct block {
    char *base;
    size_t n_bytes;
    int fd, device;
    weir_cuda_pointer_kind kind;
    weir_cuda_sharing sharing;
    uint64_t id;
    unsigned n_opens; /* of a handle */
    unsigned char handle[WEIR_CUDA_IPC_HANDLE_BYTES];
} block;

/* What a handle holds. */
typedef struct told {
    pid_t process;
    int fd, device;
    size_t n_bytes;
    uint64_t id;
} told;

static block blocks[MAX_BLOCKS];
static size_t n_blocks;
static uint64_t last_id;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int current;

/* ---- blocks ----------------------------------------------------------------------------------*/

static block *find(const void *data)
{
    for (size_t i = 0; i < n_blocks; i++)
        if ((const char *)data >= blocks[i].base &&
            (const char *)data < blocks[i].base + blocks[i].n_bytes)
            return &blocks[i];
    return NULL;
}

static block *add(void *base, size_t n_bytes, int fd, int device, weir_cuda_sharing sharing)
{
    if (n_blocks == MAX_BLOCKS)
        return NULL;
    block *own = &blocks[n_blocks++];
    *own = (block){ base,    n_bytes,   fd, device, WEIR_CUDA_POINTER_DEVICE,
                    sharing, ++last_id, 1,  { 0 } };
    return own;
}

static void drop(block *own)
{
    if (own->fd >= 0)
        close(own->fd);
    *own = blocks[--n_blocks];
}

static void *map_fd(void *at, size_t n_bytes, int fd)
{
    void *base =
        mmap(at, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (at != NULL ? MAP_FIXED : 0), fd, 0);
    return base == MAP_FAILED ? NULL : base;
}

static int new_fd(size_t n_bytes)
{
    int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)n_bytes) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

#define LOCKED(type, name, parameters, arguments) \
    static type name##_locked parameters;         \
    static type name parameters                   \
    {                                             \
        pthread_mutex_lock(&lock);                \
        type result_ = name##_locked arguments;   \
        pthread_mutex_unlock(&lock);              \
        return result_;                           \
    }                                             \
    static type name##_locked parameters

/* ---- devices ---------------------------------------------------------------------------------*/

static const char *error_text(int error)
{
    return error == 0 ? "no error" : error == INVALID ? "invalid argument" : "a fake error";
}

static int count_devices(int *out_n)
{
    *out_n = N_DEVICES;
    return 0;
}

static int describe(int device, weir_cuda_description *out)
{
    if (device < 0 || device >= N_DEVICES)
        return INVALID;
    *out = (weir_cuda_description){ .name = "fake", .memory_bytes = 1 << 30, .compute_major = 9 };
    return 0;
}

static int enter(int device, int *out_previous)
{
    *out_previous = current;
    if (device < 0 || device >= N_DEVICES)
        return INVALID;
    current = device;
    return 0;
}

static int leave(int previous)
{
    current = previous;
    return 0;
}

static int current_device(int *out)
{
    *out = current;
    return 0;
}

static int bus_id(int device, char *out, int out_bytes)
{
    snprintf(out, (size_t)out_bytes, "0000:0%d:00.0", device + 1);
    return 0;
}

static int memory_left(size_t *out_bytes)
{
    *out_bytes = (size_t)1 << 30;
    return 0;
}

static int peer_enable(int peer)
{
    return peer == current ? INVALID : 0;
}

/* ---- memory ----------------------------------------------------------------------------------*/

LOCKED(int, allocate, (size_t n_bytes, void **out), (n_bytes, out))
{
    int fd = n_bytes < (size_t)1 << 40 ? new_fd(n_bytes) : -1;
    void *base = fd >= 0 ? map_fd(NULL, n_bytes, fd) : NULL;
    if (base == NULL)
        return OUT_OF_MEMORY;
    block *own = add(base, n_bytes, fd, current, WEIR_CUDA_SHARING_HANDLE);
    told tell = { getpid(), fd, current, n_bytes, own->id };
    memcpy(own->handle, &tell, sizeof(tell));
    *out = base;
    return 0;
}

LOCKED(int, free_memory, (void *data), (data))
{
    block *own = data != NULL ? find(data) : NULL;
    if (own == NULL || own->base != data)
        return data == NULL ? 0 : INVALID;
    munmap(own->base, own->n_bytes);
    drop(own);
    return 0;
}

LOCKED(int, allocate_pinned, (size_t n_bytes, void **out), (n_bytes, out))
{
    void *base = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return OUT_OF_MEMORY;
    add(base, n_bytes, -1, current, WEIR_CUDA_SHARING_NONE)->kind = WEIR_CUDA_POINTER_PINNED;
    *out = base;
    return 0;
}

static int pin(void *data, size_t n_bytes)
{
    (void)data, (void)n_bytes;
    return 0;
}

static int unpin(void *data)
{
    (void)data;
    return 0;
}

LOCKED(int, pointer_kind, (const void *data, weir_cuda_pointer_kind *out_kind, int *out_device),
       (data, out_kind, out_device))
{
    const block *own = find(data);
    *out_kind = own != NULL ? own->kind : WEIR_CUDA_POINTER_HOST;
    *out_device = own != NULL ? own->device : 0;
    return 0;
}

LOCKED(int, allocation_of, (const void *data, void **out_base, size_t *out_bytes),
       (data, out_base, out_bytes))
{
    const block *own = find(data);
    if (own == NULL)
        return INVALID;
    *out_base = own->base;
    *out_bytes = own->n_bytes;
    return 0;
}

LOCKED(int, sharing_of, (const void *data, weir_cuda_sharing *out), (data, out))
{
    const block *own = find(data);
    *out = own != NULL ? own->sharing : WEIR_CUDA_SHARING_NONE;
    return 0;
}

LOCKED(int, memory_id, (const void *data, uint64_t *out), (data, out))
{
    const block *own = find(data);
    *out = own != NULL ? own->id : 0;
    return own != NULL ? 0 : INVALID;
}

/* ---- streams and events: done at once, but told the second time
 * --------------------------------*/

static int copy(void *dst, const void *src, size_t n_bytes, void *stream)
{
    (void)stream;
    memcpy(dst, src, n_bytes);
    return 0;
}

static int copy_rows(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                     size_t row_bytes, size_t n_rows, void *stream)
{
    (void)stream;
    for (size_t r = 0; r < n_rows; r++)
        memcpy((char *)dst + r * dst_pitch, (const char *)src + r * src_pitch, row_bytes);
    return 0;
}

static int fill(void *dst, int byte, size_t n_bytes, void *stream)
{
    (void)stream;
    memset(dst, byte, n_bytes);
    return 0;
}

static int handle_open(void **out)
{
    *out = calloc(1, sizeof(int));
    return *out != NULL ? 0 : OUT_OF_MEMORY;
}

static int handle_close(void *handle)
{
    free(handle);
    return 0;
}

static int stream_test(void *stream)
{
    (void)stream;
    return 0;
}

static int event_open(int timed, void **out)
{
    (void)timed;
    return handle_open(out);
}

static int event_record(void *event, void *stream)
{
    (void)stream;
    *(int *)event = 1;
    return 0;
}

static int event_test(void *event)
{
    return (*(int *)event)-- > 0 ? WEIR_CUDA_NOT_READY : 0;
}

static int event_seconds(void *begin, void *end, double *out_seconds)
{
    (void)begin, (void)end;
    *out_seconds = 1e-6;
    return 0;
}

static int stream_after(void *stream, void *event)
{
    (void)stream, (void)event;
    return 0;
}

/* ---- other processes -------------------------------------------------------------------------*/

LOCKED(int, ipc_export, (void *data, void *handle, uint64_t *out_offset),
       (data, handle, out_offset))
{
    const block *own = find(data);
    if (own == NULL || own->sharing != WEIR_CUDA_SHARING_HANDLE)
        return INVALID;
    memcpy(handle, own->handle, sizeof(own->handle));
    *out_offset = (uint64_t)((char *)data - own->base);
    return 0;
}

LOCKED(int, ipc_import, (const void *handle, void **out_base), (handle, out_base))
{
    told tell;
    char path[64];
    for (size_t i = 0; i < n_blocks; i++) {
        if (blocks[i].sharing == WEIR_CUDA_SHARING_NONE && blocks[i].n_opens > 0 &&
            memcmp(blocks[i].handle, handle, sizeof(blocks[i].handle)) == 0) {
            blocks[i].n_opens++;
            *out_base = blocks[i].base;
            return 0;
        }
    }
    memcpy(&tell, handle, sizeof(tell));
    if (tell.process == getpid()) /* as CUDA has it */
        return INVALID;
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)tell.process, tell.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *base = fd >= 0 && tell.n_bytes > 0 ? map_fd(NULL, tell.n_bytes, fd) : NULL;
    if (base == NULL)
        return INVALID;
    block *own = add(base, tell.n_bytes, fd, tell.device, WEIR_CUDA_SHARING_NONE);
    memcpy(own->handle, handle, sizeof(own->handle));
    *out_base = base;
    return 0;
}

LOCKED(int, ipc_close, (void *base), (base))
{
    block *own = find(base);
    if (own == NULL || own->sharing != WEIR_CUDA_SHARING_NONE || own->n_opens == 0)
        return INVALID;
    if (--own->n_opens > 0)
        return 0;
    munmap(own->base, own->n_bytes);
    drop(own);
    return 0;
}

static int address_reserve(size_t n_bytes, void **out)
{
    void *base = mmap(NULL, n_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *out = base;
    return base != MAP_FAILED ? 0 : OUT_OF_MEMORY;
}

static int address_free(void *base, size_t n_bytes)
{
    return munmap(base, n_bytes) == 0 ? 0 : INVALID;
}

/* Takes fd. */
static int map_piece(int device, void *at, size_t n_bytes, int fd, weir_cuda_sharing sharing)
{
    if (fd >= 0 && n_bytes % UNIT == 0 && map_fd(at, n_bytes, fd) != NULL) {
        add(at, n_bytes, fd, device, sharing);
        return 0;
    }
    if (fd >= 0)
        close(fd);
    return INVALID;
}

LOCKED(int, address_map, (void *at, size_t n_bytes, int fd), (at, n_bytes, fd))
{
    return map_piece(0, at, n_bytes, fcntl(fd, F_DUPFD_CLOEXEC, 0), WEIR_CUDA_SHARING_DESCRIPTOR);
}

static int address_grant(int device, void *at, size_t n_bytes)
{
    (void)at, (void)n_bytes;
    return device >= 0 && device < N_DEVICES ? 0 : INVALID;
}

LOCKED(int, address_unmap, (void *at, size_t n_bytes), (at, n_bytes))
{
    block *own = find(at);
    if (own == NULL || own->base != at || own->n_bytes != n_bytes)
        return INVALID;
    mmap(at, n_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    drop(own);
    return 0;
}

LOCKED(int, pieces_allocate,
       (int device, size_t n_bytes, size_t piece_bytes, int shareable, void **out,
        size_t *out_bytes),
       (device, n_bytes, piece_bytes, shareable, out, out_bytes))
{
    size_t piece = piece_bytes != 0 ? piece_bytes : n_bytes;
    void *base;
    piece = piece == 0 ? UNIT : (piece + UNIT - 1) / UNIT * UNIT;
    size_t total = n_bytes == 0 ? piece : (n_bytes + piece - 1) / piece * piece;
    if (address_reserve(total, &base) != 0)
        return OUT_OF_MEMORY;
    for (size_t at = 0; at < total; at += piece)
        if (map_piece(device, (char *)base + at, piece, new_fd(piece),
                      shareable ? WEIR_CUDA_SHARING_DESCRIPTOR : WEIR_CUDA_SHARING_PRIVATE) != 0)
            return OUT_OF_MEMORY;
    *out = base;
    *out_bytes = total;
    return 0;
}

LOCKED(int, piece_export, (const void *data, int *out_fd), (data, out_fd))
{
    const block *own = find(data);
    if (own == NULL || own->sharing != WEIR_CUDA_SHARING_DESCRIPTOR)
        return INVALID;
    *out_fd = fcntl(own->fd, F_DUPFD_CLOEXEC, 0);
    return *out_fd >= 0 ? 0 : INVALID;
}

/* ---- the table -------------------------------------------------------------------------------*/

static const weir_cuda_runtime runtime = {
    .size = sizeof(weir_cuda_runtime),
    .error_text = error_text,
    .count_devices = count_devices,
    .describe = describe,
    .enter = enter,
    .leave = leave,
    .allocate = allocate,
    .free = free_memory,
    .allocate_pinned = allocate_pinned,
    .free_pinned = free_memory,
    .pin = pin,
    .unpin = unpin,
    .pointer_kind = pointer_kind,
    .allocation_of = allocation_of,
    .copy = copy,
    .fill = fill,
    .stream_open = handle_open,
    .stream_close = handle_close,
    .stream_test = stream_test,
    .event_open = event_open,
    .event_close = handle_close,
    .event_record = event_record,
    .event_test = event_test,
    .event_seconds = event_seconds,
    .stream_after = stream_after,
    .peer_enable = peer_enable,
    .ipc_export = ipc_export,
    .ipc_import = ipc_import,
    .ipc_close = ipc_close,
    .memory_left = memory_left,
    .current_device = current_device,
    .bus_id = bus_id,
    .sharing_of = sharing_of,
    .memory_id = memory_id,
    .pieces_allocate = pieces_allocate,
    .piece_export = piece_export,
    .address_reserve = address_reserve,
    .address_map = address_map,
    .address_grant = address_grant,
    .address_unmap = address_unmap,
    .address_free = address_free,
    .copy_rows = copy_rows,
};

/* ---- digests ---------------------------------------------------------------------------------*/

static weir_digest digest_of(const weir_cuda_digest_job *job)
{
    const unsigned char *data = (const unsigned char *)(uintptr_t)job->data;
    weir_digest found = { 0, 0 };
    for (uint64_t w = 0; w * 8 < job->n_words * 8 + job->n_tail_bytes; w++) {
        uint64_t word = 0;
        memcpy(&word, data + w * 8, w < job->n_words ? 8 : job->n_tail_bytes);
        weir_digest_word(&found, word, weir_digest_key(job->first_word + w));
    }
    return found;
}

static int digest(const weir_cuda_digest_launch *launch, void *stream)
{
    (void)stream;
    for (uint32_t i = 0; i < launch->n_jobs; i++) {
        if (launch->jobs[i].ragged)
            return INVALID;
        weir_digest found = digest_of(&launch->jobs[i]);
        launch->out[i] = (weir_cuda_result){ .product = found.product, .sum = found.sum };
    }
    return 0;
}

/* ---- copies ----------------------------------------------------------------------------------*/

static int scatter(const weir_cuda_scatter_launch *launch, void *stream)
{
    (void)stream;
    for (uint32_t i = 0; i < launch->n_jobs; i++) {
        const weir_cuda_scatter_job *job = &launch->jobs[i];
        for (uint64_t r = 0; r < job->n_rows; r++)
            memcpy((char *)(uintptr_t)job->to + r * job->to_pitch,
                   (const char *)(uintptr_t)job->from + r * job->from_pitch, job->row_bytes);
    }
    return 0;
}

static const weir_cuda_converter converter = { .size = sizeof(converter),
                                               .digest = digest,
                                               .scatter = scatter };

/* By the name that WEIR_CUDA_BACKEND_SYMBOL is. */
extern const weir_cuda_backend weir_cuda_backend_table;
__attribute__((visibility("default"))) const weir_cuda_backend weir_cuda_backend_table = {
    .size = sizeof(weir_cuda_backend),
    .version = WEIR_CUDA_BACKEND_VERSION,
    .runtime = &runtime,
    .converter = &converter,
};
