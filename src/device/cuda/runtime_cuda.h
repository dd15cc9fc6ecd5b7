/* SPDX-License-Identifier: Apache-2.0 */
/* runtime_cuda.h - the runtime's half of the table; inside libweir_cuda.so only. */
#ifndef WEIR_DEVICE_RUNTIME_CUDA_H
#define WEIR_DEVICE_RUNTIME_CUDA_H

#include "device/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const weir_cuda_runtime weir_cuda_runtime_table;

#ifdef __cplusplus
}
#endif
#endif
