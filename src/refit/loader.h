/* SPDX-License-Identifier: Apache-2.0 */
/* loader.h - makes a worker's part of an engine of a checkpoint's tensors, as an engine's own
 * loader does: fuses, cuts and converts.
 *
 *   loader_plan.c   which tensors make which bytes, in which order
 *   loader.c        the buffers that tensors land in, and one refit
 *
 * Tensors land in one of two buffers of the memory that the worker computes in, a group at a time:
 * a layer, or one tensor outside the layers. While one group is converted, the next one lands. So
 * a checkpoint takes the room of two of the worker's layers, however many it has.
 */
#ifndef WEIR_REFIT_LOADER_H
#define WEIR_REFIT_LOADER_H

#include "base/arena.h"
#include "refit/settings.h"
#include "refit/undo.h"
#include "refit/work.h"
#include "weir/mesh.h"

#define WEIR_LOADER_BUFFERS 2u

/* A tensor of the checkpoint. */
typedef struct weir_loader_tensor {
    uint32_t group; /* WEIR_ANY: this worker has no part of it, and does not read it */
    uint64_t at;    /* within the group's buffer */
    uint64_t n_bytes;
} weir_loader_tensor;

/* Where a conversion's output goes. */
typedef struct weir_loader_target {
    uint32_t parameters[WEIR_MAX_OUTPUTS]; /* of the worker */
    uint64_t offsets[WEIR_MAX_OUTPUTS];    /* bytes within it */
} weir_loader_target;

/* Bytes of a parameter that are written, in one piece. */
typedef struct weir_loader_output {
    uint32_t parameter, group;
    uint64_t offset, n_bytes;
} weir_loader_output;

/* Rows that a conversion reads. */
typedef struct weir_loader_view {
    uint32_t tensor;
    uint64_t offset; /* bytes within it */
} weir_loader_view;

typedef struct weir_loader {
    weir_arena arena;
    weir_tensor *described;
    weir_mapping *engine;     /* what is made */
    weir_mapping *checkpoint; /* of what: its parameters are those that trainers send */
    const weir_parameter *wanted;
    weir_loader_tensor *tensors; /* parallel */
    size_t n_wanted;
    weir_convert_args *args; /* sorted by group */
    weir_loader_target *targets;
    size_t n_jobs;
    weir_tensor *views; /* that args point to; data is set once the buffers are there */
    weir_loader_view *places;
    uint64_t *pitches;
    size_t n_views;
    size_t *first_jobs; /* of each group, and n_jobs behind the last one */
    uint32_t n_groups;
    uint64_t buffer_bytes;       /* the largest group's */
    weir_loader_output *outputs; /* neighbours are not joined */
    size_t n_outputs;
    uint64_t *padding_rows; /* parallel to the worker's parameters: the last of axis 0, unfilled */

    weir_work *work;   /* borrowed; NULL until the buffers are there */
    weir_task **tasks; /* of each group: the same group again sends a GPU no tables */
    unsigned char *buffers[WEIR_LOADER_BUFFERS];
    bool is_reserved;       /* they are there, and views point into them */
    weir_work_copy *copies; /* parallel to outputs: what a group is about to replace */
    uint64_t *left;         /* of each group: what has not landed yet */
    uint32_t next;          /* the group to convert next */
    bool has_written;       /* a byte of a parameter, in this refit */
} weir_loader;

typedef struct weir_loader_options {
    const weir_settings *settings; /* config is required */
    const weir_replica_mesh *mesh;
    bool is_part; /* of an engine of several workers, or one that pads its vocabulary */
    uint32_t worker;
    const weir_parameter *parameters; /* that the worker has; derived ones are passed over */
    size_t n_parameters;
    const uint32_t *senders; /* of each of the checkpoint's tensors, where one rank begins to send
                                when the one before has ended: groups are one rank's. NULL: all
                                ranks are heard at the same time */
} weir_loader_options;

/* ERR_LAYOUT when the worker has other parameters than the config says. Gives *out. */
weir_status weir_loader_open(const weir_loader_options *options, weir_loader **out);
void weir_loader_close(weir_loader *loader); /* accepts NULL */

/* loader_plan.c, of weir_loader_open(): fills what follows from the options alone. */
weir_status weir_loader_plan(weir_loader *loader, const weir_loader_options *options);

/* Memory of the work's kind for two groups, taken once. *out_taken: it was taken now. */
weir_status weir_loader_reserve(weir_loader *loader, weir_work *work, bool *out_taken);

/* ---- one refit -------------------------------------------------------------------------------*/

/* Nothing has landed. */
void weir_loader_begin(weir_loader *loader);
/* Some more of a group is to come; or has come, and is verified. */
void weir_loader_expect(weir_loader *loader, uint32_t group, uint64_t amount);
void weir_loader_landed(weir_loader *loader, uint32_t group, uint64_t amount);
/* Whether the group's buffer is its own already. */
bool weir_loader_has_room(const weir_loader *loader, uint32_t group);
/* Where a tensor lands. */
unsigned char *weir_loader_at(const weir_loader *loader, uint32_t tensor);
/* Whether the group to convert next has landed. */
bool weir_loader_is_ready(const weir_loader *loader);
/* Converts it into `parameters`, parallel to the worker's, and makes room for another one. undo:
 * what is there is kept first; NULL: it is not wanted back. */
weir_status weir_loader_convert(weir_loader *loader, unsigned char *const *parameters,
                                weir_undo *undo, unsigned timeout_ms);

#endif
