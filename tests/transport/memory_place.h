/* SPDX-License-Identifier: Apache-2.0 */
/* memory_place.h - memory of a transport test: the host's, or a GPU's in one of the ways in which
 * allocators get it. Named "host", "pinned", "malloc 0", "shareable 1", "pieces 0", "private 0". */
#ifndef WEIR_TESTS_MEMORY_PLACE_H
#define WEIR_TESTS_MEMORY_PLACE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/cuda_loader.h"
#include "weir/cuda.h"

#define PLACE_PIECE_BYTES ((size_t)4 << 20) /* "pieces": a range spans several */

typedef struct memory_place {
    char how[16];
    unsigned device;
} memory_place;

static inline memory_place place_of(const char *name)
{
    memory_place place = { "host", 0 };
    if (sscanf(name, "%15s %u", place.how, &place.device) < 1)
        snprintf(place.how, sizeof(place.how), "host");
    return place;
}

static inline bool place_is(const memory_place *place, const char *how)
{
    return strcmp(place->how, how) == 0;
}

static inline bool place_is_gpu(const memory_place *place)
{
    return !place_is(place, "host") && !place_is(place, "pinned");
}

static inline weir_status place_pieces(const memory_place *place, size_t n_bytes,
                                       size_t piece_bytes, bool shareable, void **out,
                                       size_t *out_bytes)
{
    const weir_cuda_runtime *cuda;
    int previous;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status != WEIR_OK || cuda->enter((int)place->device, &previous) != 0)
        return status != WEIR_OK ? status : WEIR_ERR_DEVICE;
    int error =
        cuda->pieces_allocate((int)place->device, n_bytes, piece_bytes, shareable, out, out_bytes);
    cuda->leave(previous);
    return weir_cuda_check(error, "no memory in pieces");
}

static inline weir_status place_allocate(const memory_place *place, size_t n_bytes, void **out)
{
    size_t taken;
    if (place_is(place, "pinned"))
        return weir_cuda_allocate_pinned(n_bytes, out);
    if (place_is(place, "malloc"))
        return weir_cuda_allocate(place->device, n_bytes, out);
    if (place_is(place, "shareable"))
        return weir_cuda_allocate_shareable(place->device, n_bytes, out);
    if (place_is(place, "pieces"))
        return place_pieces(place, n_bytes, PLACE_PIECE_BYTES, true, out, &taken);
    if (place_is(place, "private"))
        return place_pieces(place, n_bytes, 0, false, out, &taken);
    *out = malloc(n_bytes + (n_bytes == 0));
    return *out != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static inline void place_free_pieces(const memory_place *place, void *data, size_t n_bytes)
{
    const weir_cuda_runtime *cuda;
    int previous;
    size_t total = (n_bytes + PLACE_PIECE_BYTES - 1) / PLACE_PIECE_BYTES * PLACE_PIECE_BYTES;
    if (data == NULL || weir_cuda_runtime_get(&cuda) != WEIR_OK ||
        cuda->enter((int)place->device, &previous) != 0)
        return;
    for (size_t at = 0; at < total; at += PLACE_PIECE_BYTES)
        cuda->address_unmap((char *)data + at, PLACE_PIECE_BYTES);
    cuda->address_free(data, total);
    cuda->leave(previous);
}

static inline void place_free(const memory_place *place, void *data, size_t n_bytes)
{
    if (place_is(place, "pieces"))
        place_free_pieces(place, data, n_bytes);
    else if (place_is_gpu(place))
        weir_cuda_free(place->device, data);
    else if (place_is(place, "pinned"))
        weir_cuda_free_pinned(data);
    else
        free(data);
}

/* Between the host and the place, either way; done when it returns. */
static inline weir_status place_copy(const memory_place *place, void *dst, const void *src,
                                     size_t n_bytes)
{
    if (!place_is_gpu(place)) {
        memmove(dst, src, n_bytes);
        return WEIR_OK;
    }
    weir_status status = weir_cuda_copy(place->device, dst, src, n_bytes, NULL);
    return status == WEIR_OK ? weir_cuda_stream_wait(place->device, NULL) : status;
}

#endif
