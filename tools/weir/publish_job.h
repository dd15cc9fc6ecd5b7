/* SPDX-License-Identifier: Apache-2.0 */
/* publish_job.h - one trainer rank whose weights are checkpoint files: what publish and broadcast
 * share.
 */
#ifndef WEIR_TOOLS_PUBLISH_JOB_H
#define WEIR_TOOLS_PUBLISH_JOB_H

#include "flow.h"
#include "gpu_upload.h"
#include "mesh_shards.h"

/* Zeroed at first. */
typedef struct weir_publish_job {
    weir_flow_options flow;
    uint64_t rank, n_ranks, n_slots, window_bytes;
    bool scan_first;
    const char *traceparent; /* NULL: not given */
    weir_cli_device device;
    weir_delivery delivery;
    const char *mesh, *owners; /* NULL: every rank has the whole model */
    weir_mesh_shards shards;   /* with them: this rank's part of the open source */
    weir_gpu_upload upload;    /* with a GPU: what is registered instead of the source's memory */
    weir_trainer *trainer;     /* opened with the first source, whose config.json it takes */
    weir_flow_source source;   /* the one whose pointers are registered */
} weir_publish_job;

/* From here on SIGINT and SIGTERM end what its trainer waits for. */
void weir_publish_job_begin(void);
/* --mesh; WEIR_EXIT_OK, or an exit code after a message. */
int weir_publish_job_take_mesh(const char *verb, const char *text, weir_publish_job *job);
/* --delivery push|pull; the same. */
int weir_publish_job_take_delivery(const char *verb, const char *text, weir_publish_job *job);
/* Opens a source, with the first one the trainer, and registers what this rank has of it; the one
 * before stays open until then. Returns an exit code after a message. */
int weir_publish_job_take_source(weir_publish_job *job, const char *path);
/* The next source that stdin names, without its end of line; empty lines are passed over. False:
 * there is none, a signal came, or the line was too long, which *out_code and a message say. */
#define WEIR_SOURCE_LINE 4096
bool weir_publish_job_next_line(char line[WEIR_SOURCE_LINE], int *out_code);
/* What a call on the trainer has failed with: WEIR_EXIT_OK when that was being told to stop, else
 * WEIR_EXIT_FAILED after a message. */
int weir_publish_job_failed(void);
void weir_publish_job_close(weir_publish_job *job);

#endif
