/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_entry.h - one destination of a batch, before it becomes a job. */
#ifndef WEIR_CONVERT_CUDA_ENTRY_H
#define WEIR_CONVERT_CUDA_ENTRY_H

#include "convert/cuda/cuda_plan.h"

/* Checks the args as weir_convert() does and chooses kind and from. The data is not looked at. */
weir_status weir_cuda_entry_init(weir_cuda_entry *entry, const weir_convert_args *given);

#endif
