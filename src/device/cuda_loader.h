/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_loader.h - the way from libweir.so to libweir_cuda.so.
 *
 * Threads    any; loading happens once, at the first call.
 * Errors     ERR_UNSUPPORTED with the reason when CUDA cannot be used here.
 */
#ifndef WEIR_DEVICE_CUDA_LOADER_H
#define WEIR_DEVICE_CUDA_LOADER_H

#include "device/cuda/cuda_backend.h"
#include "weir/status.h"

/* The two halves of the table, once a driver and a GPU were found. */
weir_status weir_cuda_runtime_get(const weir_cuda_runtime **out);
weir_status weir_cuda_converter_get(const struct weir_cuda_converter **out);

/* "" where a GPU can be used, else why not; records no error. */
const char *weir_cuda_why_not(void);

/* OK for 0; else records "WHAT: CUDA's text" (NO_MEMORY when CUDA says so, TIMED_OUT for what a
 * bounded wait has not seen end, ERR_DEVICE otherwise). */
weir_status weir_cuda_check(int error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
