/* SPDX-License-Identifier: Apache-2.0 */
/* inference_memory.h - the live parameters of one worker, allocated before there is a trainer and
 * kept, at the same addresses, whichever run the worker takes part in.
 */
#ifndef WEIR_BROADCAST_INFERENCE_MEMORY_H
#define WEIR_BROADCAST_INFERENCE_MEMORY_H

#include "base/arena.h"
#include "weir/inference.h"

typedef struct weir_inference_memory {
    weir_arena arena; /* of names and views */
    weir_tensor *tensors;
    weir_parameter *tags; /* parallel, of memory that is the engine's; NULL: it was allocated */
    size_t n_tensors;
    void *block;
    uint64_t n_bytes;
    bool on_gpu;
    unsigned device;
} weir_inference_memory;

/* Which parameters; borrowed. */
typedef struct weir_inference_part {
    const char *family, *layout, *conversion, *config, *experts;
    const char *mesh;   /* of one engine, "tp=2" */
    uint32_t worker;    /* its number in it */
    const char *device; /* NULL: host memory; "cuda:1" */
} weir_inference_part;

/* Zeroes them. *memory is zeroed before; close it whatever this returns. */
weir_status weir_inference_memory_open(weir_inference_memory *memory,
                                       const weir_inference_part *part);
/* The engine's own: keeps the addresses, copies names and tags. As above. */
weir_status weir_inference_memory_take(weir_inference_memory *memory,
                                       const weir_inference_live *live);
void weir_inference_memory_close(weir_inference_memory *memory);

#endif
