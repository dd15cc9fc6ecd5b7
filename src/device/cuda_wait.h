/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_wait.h - waiting for what runs on a GPU, within a bound.
 *
 * CUDA's own waits have none: what a dead peer holds up (a broadcast), or a GPU that does not
 * answer any more, would hold up whoever waits for it, too.
 *
 * Threads    any; the device of the event or stream is the current one.
 */
#ifndef WEIR_DEVICE_CUDA_WAIT_H
#define WEIR_DEVICE_CUDA_WAIT_H

#include "device/cuda/cuda_backend.h"

#define WEIR_CUDA_WAIT_MS 600000u /* of a caller that wants the outcome */
#define WEIR_CUDA_DRAIN_MS 30000u /* before something is taken down */

/* 0, why it failed, or WEIR_CUDA_NOT_READY after timeout_ms. */
int weir_cuda_wait_event(const weir_cuda_runtime *cuda, void *event, unsigned timeout_ms);
/* The same for all that is in a stream. */
int weir_cuda_wait_stream(const weir_cuda_runtime *cuda, void *stream, unsigned timeout_ms);

#endif
