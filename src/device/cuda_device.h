/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_device.h - GPU memory as a row of the device table. */
#ifndef WEIR_DEVICE_CUDA_DEVICE_H
#define WEIR_DEVICE_CUDA_DEVICE_H

#include "device/device.h"

/* Acts on the calling thread's current device. Its cells report why CUDA is off where it is;
 * `available` is of the time of the call. */
const weir_device_ops *weir_cuda_device_ops(void);

/* What export_memory() writes: enough to map the same bytes in another process of this host. */
#define WEIR_CUDA_HANDLE_BYTES 192

/* Unmaps what import_memory() gave. */
void weir_cuda_import_close(void *data);

#endif
