/* SPDX-License-Identifier: Apache-2.0 */
/* synth_files.h - a directory with config.json and safetensors files, whole or not at all. */
#ifndef WEIR_TOOLS_SYNTH_FILES_H
#define WEIR_TOOLS_SYNTH_FILES_H

#include "weir/checkpoint.h"

typedef struct weir_synth_request {
    const char *directory;      /* made when it is not there */
    const char *config;         /* text of config.json */
    const weir_tensor *tensors; /* with data: that is perturbed; without: made up */
    size_t n_tensors;
    uint64_t shard_bytes; /* begin another file beyond so many */
    uint64_t seed, step;
    bool force; /* replace a checkpoint that is there */
} weir_synth_request;

/* Returns an exit code, after a message when it failed; *out_bytes: of all tensors. */
int weir_synth_write(const weir_synth_request *request, uint64_t *out_bytes);

#endif
