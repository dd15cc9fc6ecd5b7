/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_upload.h - a checkpoint's tensors on a GPU, as a trainer would have them there. */
#ifndef WEIR_TOOLS_GPU_UPLOAD_H
#define WEIR_TOOLS_GPU_UPLOAD_H

#include "cli.h"

typedef struct weir_gpu_upload {
    unsigned device;
    weir_tensor *tensors; /* as given, but their data on the GPU */
    size_t n_tensors;
    unsigned char *memory;
    uint64_t memory_bytes;
    void *stream;
} weir_gpu_upload;

/* Copies tensors to GPU `device`, over those of an earlier call: at the same addresses when they
 * are as large. Begins with a zeroed one. Borrows names. False after having printed the error. */
bool weir_gpu_upload_tensors(weir_gpu_upload *upload, const weir_tensor *tensors, size_t n_tensors);
void weir_gpu_upload_close(weir_gpu_upload *upload); /* accepts a zeroed one */

#endif
