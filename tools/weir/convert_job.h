/* SPDX-License-Identifier: Apache-2.0 */
/* convert_job.h - the work of `weir convert`: what was asked for, and the entries it comes to.
 *
 * Threads    one.
 * Ownership  a request borrows argv. A job owns all it holds, is zeroed before
 * weir_convert_job_open() and closed with weir_convert_job_close(), whether or not opening it
 * succeeded. Errors     functions print their own line and return an exit code.
 */
#ifndef WEIR_TOOLS_CONVERT_JOB_H
#define WEIR_TOOLS_CONVERT_JOB_H

#include "cli.h"

/* Globs of source names; each of them an argument of the command line. */
typedef struct weir_convert_globs {
    const char *const *globs;
    size_t n_globs;
} weir_convert_globs;

/* The command line. NULL: not given. */
typedef struct weir_convert_request {
    char **sources;
    size_t n_sources;
    const char *output, *conversion;
    const char *family, *layout, *config; /* family NULL: tensor by tensor */
    weir_convert_globs select, ignore;
    bool propagate, keep_masters, as_json, progress;
    unsigned n_threads;
} weir_convert_request;

#define WEIR_CONVERT_MAX_METADATA 8

/* Entries in the order of the work; outputs in the order of entries, so that those of an entry are
 * outputs first_parameter … first_parameter + n_outputs - 1. */
typedef struct weir_convert_job {
    weir_checkpoint *checkpoint;
    weir_tensor *selected; /* views of the checkpoint */
    size_t n_selected;
    weir_config *config;
    weir_mapping *mapping;       /* NULL: tensor by tensor */
    weir_map_entry *own_entries; /* made here when there is no mapping */
    const weir_map_entry *entries;
    size_t n_entries;
    weir_tensor *outputs;
    size_t n_outputs;
    size_t *entry_of; /* of each output: the entry that fills it */
    char *names;      /* of the outputs that were named here */
    const weir_conversion *conversion;
    char *tags; /* JSON text */
    const char *metadata[WEIR_CONVERT_MAX_METADATA][2];
    size_t n_metadata;
    bool propagate, keep_masters;
    uint64_t source_bytes, output_bytes;
} weir_convert_job;

/* Opens the sources and works out every output, its name, dtype and shape. Nothing is converted. */
int weir_convert_job_open(const weir_convert_request *request, weir_convert_job *job);
void weir_convert_job_close(weir_convert_job *job);

/* Converts entry by entry and writes `output`, which appears only when all of it is there. */
int weir_convert_job_run(const weir_convert_job *job, const weir_convert_request *request);

/* Bytes of a tensor whose shape was checked before. */
uint64_t weir_convert_bytes_of(const weir_tensor *tensor);
/* How many source views an entry has. */
size_t weir_convert_sources_of(const weir_map_entry *entry);

#endif
