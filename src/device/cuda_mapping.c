/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_mapping.c - the importer's half: GPU memory of other processes, mapped once and counted.
 *
 * An engine has hundreds of parameters in few allocations. Each allocation (or run of pieces) is
 * mapped once for a device; who opens another range of it shares the mapping. Nothing that the
 * owner says is believed: lengths are compared with what CUDA mapped.
 */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "device/cuda_share.h"

#define CUDA_OUT_OF_MEMORY 2 /* cudaErrorMemoryAllocation */

struct weir_cuda_mapping {
    weir_cuda_mapping *next;
    size_t n_users;
    unsigned device;
    uint64_t owner[2];
    weir_cuda_share share; /* as it was told by who opened it first */
    char *base;
};

static weir_cuda_mapping *mappings;
static pthread_mutex_t mappings_lock = PTHREAD_MUTEX_INITIALIZER;

static weir_status cannot(const weir_cuda_runtime *cuda, const weir_cuda_share *share,
                          const weir_cuda_importer *importer, int error)
{
    return weir_fail(error == CUDA_OUT_OF_MEMORY ? WEIR_ERR_NO_MEMORY : WEIR_ERR_UNSUPPORTED,
                     "%s: GPU %u cannot map %llu bytes of the peer's GPU %.*s: CUDA says %s",
                     importer->who, importer->device, (unsigned long long)share->mapped_bytes,
                     (int)sizeof(share->gpu), share->gpu, cuda->error_text(error));
}

static weir_status corrupt(const char *who, const weir_cuda_share *share, const char *why)
{
    return weir_fail(WEIR_ERR_CORRUPT, "%s: bytes %llu to %llu of %llu bytes of GPU memory: %s",
                     who, (unsigned long long)share->offset,
                     (unsigned long long)(share->offset + share->n_bytes),
                     (unsigned long long)share->mapped_bytes, why);
}

static weir_status check(const weir_cuda_share *share, const char *who)
{
    if (share->sharing != WEIR_CUDA_SHARING_HANDLE &&
        share->sharing != WEIR_CUDA_SHARING_DESCRIPTOR)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %u is no way to share GPU memory", who,
                         share->sharing);
    if (memchr(share->gpu, '\0', sizeof(share->gpu)) == NULL)
        return corrupt(who, share, "the name of their GPU does not end");
    if (share->mapped_bytes == 0 || share->mapped_bytes > SIZE_MAX / 2 ||
        share->offset > share->mapped_bytes || share->n_bytes > share->mapped_bytes - share->offset)
        return corrupt(who, share, "the range is not within them");
    return WEIR_OK;
}

/* ---- one mapping -----------------------------------------------------------------------------*/

/* CUDA counts opens of one handle itself, and gives the same address. */
static weir_status map_handle(const weir_cuda_runtime *cuda, const weir_cuda_share *share,
                              const weir_cuda_importer *importer, char **out)
{
    void *base = NULL, *start = NULL;
    size_t mapped = 0;
    int error = cuda->ipc_import(share->handle, &base);
    if (error != 0)
        return cannot(cuda, share, importer, error);
    error = cuda->allocation_of(base, &start, &mapped);
    if (error != 0 || start != base || mapped < share->mapped_bytes) {
        cuda->ipc_close(base);
        return corrupt(importer->who, share, "its handle maps less");
    }
    *out = base;
    return WEIR_OK;
}

static void unmap_pieces(const weir_cuda_runtime *cuda, char *base, uint64_t mapped, uint64_t total)
{
    void *piece;
    size_t n_bytes;
    for (uint64_t at = 0; at < mapped; at += n_bytes) {
        if (cuda->allocation_of(base + at, &piece, &n_bytes) != 0 || n_bytes == 0)
            break;
        cuda->address_unmap(base + at, n_bytes);
    }
    cuda->address_free(base, total);
}

static weir_status map_piece(const weir_cuda_runtime *cuda, const weir_cuda_share *share,
                             const weir_cuda_importer *importer, char *base, uint64_t *at)
{
    int fd = -1;
    uint64_t n_bytes = 0;
    weir_status status = importer->piece(importer->context, *at, &fd, &n_bytes);
    if (status != WEIR_OK)
        return status;
    if (n_bytes == 0 || n_bytes > share->mapped_bytes - *at) {
        close(fd);
        return corrupt(importer->who, share, "its pieces are of another size");
    }
    int error = cuda->address_map(base + *at, n_bytes, fd);
    close(fd);
    if (error != 0)
        return cannot(cuda, share, importer, error);
    *at += n_bytes;
    return WEIR_OK;
}

static weir_status map_pieces(const weir_cuda_runtime *cuda, const weir_cuda_share *share,
                              const weir_cuda_importer *importer, char **out)
{
    void *base = NULL;
    uint64_t at = 0;
    int error = cuda->address_reserve(share->mapped_bytes, &base);
    if (error != 0)
        return cannot(cuda, share, importer, error);
    weir_status status = WEIR_OK;
    while (status == WEIR_OK && at < share->mapped_bytes)
        status = map_piece(cuda, share, importer, base, &at);
    if (status == WEIR_OK) { /* once: it costs milliseconds, however much it is for */
        error = cuda->address_grant((int)importer->device, base, share->mapped_bytes);
        status = error != 0 ? cannot(cuda, share, importer, error) : WEIR_OK;
    }
    if (status == WEIR_OK)
        *out = base;
    else
        unmap_pieces(cuda, base, at, share->mapped_bytes);
    return status;
}

static weir_status map(const weir_cuda_runtime *cuda, const weir_cuda_share *share,
                       const weir_cuda_importer *importer, char **out)
{
    int previous;
    weir_status status = weir_cuda_check(cuda->enter((int)importer->device, &previous),
                                         "cannot use GPU %u", importer->device);
    if (status != WEIR_OK)
        return status;
    status = share->sharing == WEIR_CUDA_SHARING_HANDLE ? map_handle(cuda, share, importer, out)
                                                        : map_pieces(cuda, share, importer, out);
    cuda->leave(previous);
    return status;
}

/* Its owner may be gone, and its GPU with it: nothing that fails here is an error. */
static void unmap(const weir_cuda_mapping *mapping)
{
    const weir_cuda_runtime *cuda;
    int previous;
    if (weir_cuda_runtime_get(&cuda) != WEIR_OK ||
        cuda->enter((int)mapping->device, &previous) != 0)
        return;
    if (mapping->share.sharing == WEIR_CUDA_SHARING_HANDLE)
        cuda->ipc_close(mapping->base);
    else
        unmap_pieces(cuda, mapping->base, mapping->share.mapped_bytes, mapping->share.mapped_bytes);
    cuda->leave(previous);
}

/* ---- all of them -----------------------------------------------------------------------------*/

static bool is_of(const weir_cuda_mapping *mapping, const weir_cuda_share *share,
                  const weir_cuda_importer *importer)
{
    return mapping->device == importer->device && mapping->share.sharing == share->sharing &&
           mapping->share.identity == share->identity &&
           mapping->share.mapped_bytes == share->mapped_bytes &&
           memcmp(mapping->owner, importer->owner, sizeof(mapping->owner)) == 0 &&
           memcmp(mapping->share.handle, share->handle, sizeof(share->handle)) == 0;
}

/* Memory that was freed and allocated again may get its old handle. As long as the old one is
 * mapped here, CUDA would give that mapping for the new handle. */
static bool is_stale(const weir_cuda_mapping *mapping, const weir_cuda_share *share)
{
    return share->sharing == WEIR_CUDA_SHARING_HANDLE &&
           mapping->share.sharing == WEIR_CUDA_SHARING_HANDLE &&
           memcmp(mapping->share.handle, share->handle, sizeof(share->handle)) == 0 &&
           mapping->share.identity != share->identity;
}

static weir_status take(const weir_cuda_share *share, const weir_cuda_importer *importer,
                        weir_cuda_mapping **out)
{
    bool stale = false;
    pthread_mutex_lock(&mappings_lock);
    for (weir_cuda_mapping *mapping = mappings; mapping != NULL; mapping = mapping->next) {
        stale = stale || is_stale(mapping, share);
        if (is_of(mapping, share, importer)) {
            mapping->n_users++;
            *out = mapping;
            break;
        }
    }
    pthread_mutex_unlock(&mappings_lock);
    if (*out == NULL && stale)
        return weir_fail(WEIR_ERR_BUSY,
                         "%s: memory that was freed since is still mapped here under the same "
                         "handle: forget its regions first",
                         importer->who);
    return WEIR_OK;
}

/* The lock is not held while the owner is asked for its pieces. Two threads may map the same memory
 * at once: each has its own then, which is as good. */
static weir_status add(const weir_cuda_runtime *cuda, const weir_cuda_share *share,
                       const weir_cuda_importer *importer, weir_cuda_mapping **out)
{
    weir_cuda_mapping *mapping = weir_alloc_zeroed(1, sizeof(*mapping));
    if (mapping == NULL)
        return WEIR_ERR_NO_MEMORY;
    *mapping = (weir_cuda_mapping){ .n_users = 1,
                                    .device = importer->device,
                                    .owner = { importer->owner[0], importer->owner[1] },
                                    .share = *share };
    weir_status status = map(cuda, share, importer, &mapping->base);
    if (status != WEIR_OK) {
        weir_free(mapping);
        return status;
    }
    pthread_mutex_lock(&mappings_lock);
    mapping->next = mappings;
    mappings = mapping;
    pthread_mutex_unlock(&mappings_lock);
    *out = mapping;
    return WEIR_OK;
}

weir_status weir_cuda_share_open(const weir_cuda_share *share, const weir_cuda_importer *importer,
                                 weir_cuda_mapping **out, void **out_data)
{
    const weir_cuda_runtime *cuda;
    weir_cuda_mapping *mapping = NULL;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK)
        status = check(share, importer->who);
    if (status == WEIR_OK)
        status = take(share, importer, &mapping);
    if (status == WEIR_OK && mapping == NULL)
        status = add(cuda, share, importer, &mapping);
    if (status != WEIR_OK)
        return status;
    *out = mapping;
    *out_data = mapping->base + share->offset;
    return WEIR_OK;
}

void weir_cuda_share_close(weir_cuda_mapping *mapping)
{
    if (mapping == NULL)
        return;
    pthread_mutex_lock(&mappings_lock);
    bool last = --mapping->n_users == 0;
    for (weir_cuda_mapping **link = &mappings; last && *link != NULL; link = &(*link)->next) {
        if (*link == mapping) {
            *link = mapping->next;
            break;
        }
    }
    pthread_mutex_unlock(&mappings_lock);
    if (!last)
        return;
    unmap(mapping);
    weir_free(mapping);
}

/* ---- this process ----------------------------------------------------------------------------*/

/* Virtual memory has its access granted range by range; the rest by device. */
static int grant(const weir_cuda_runtime *cuda, const weir_cuda_share *share, unsigned device,
                 int its_device)
{
    char *base = (char *)(uintptr_t)(share->address - share->offset);
    int error, previous = 0;
    if ((int)device == its_device)
        return 0;
    error = cuda->enter((int)device, &previous);
    if (error != 0)
        return error;
    error = share->sharing == WEIR_CUDA_SHARING_DESCRIPTOR
                ? cuda->address_grant((int)device, base, share->mapped_bytes)
                : cuda->peer_enable(its_device);
    cuda->leave(previous);
    return error;
}

weir_status weir_cuda_share_here(const weir_cuda_share *share, unsigned device, const char *who,
                                 void **out_data)
{
    const weir_cuda_runtime *cuda;
    weir_cuda_pointer_kind kind = WEIR_CUDA_POINTER_HOST;
    int its_device = 0;
    void *data = (void *)(uintptr_t)share->address;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK)
        status = check(share, who);
    if (status != WEIR_OK)
        return status;
    int error = cuda->pointer_kind(data, &kind, &its_device);
    if (error != 0 || kind != WEIR_CUDA_POINTER_DEVICE)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %p is no memory of a GPU", who, data);
    error = grant(cuda, share, device, its_device);
    if (error != 0)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: GPU %u cannot reach the memory of GPU %d: CUDA says %s", who, device,
                         its_device, cuda->error_text(error));
    *out_data = data;
    return WEIR_OK;
}
