/* SPDX-License-Identifier: Apache-2.0 */
/* demo.h - the main job as real processes: who takes part, and what one version came to. */
#ifndef WEIR_TOOLS_DEMO_H
#define WEIR_TOOLS_DEMO_H

#include "child.h"

#define WEIR_DEMO_MAX_PROCESSES 64 /* of either side */
#define WEIR_DEMO_MAX_VERSIONS 1000

typedef struct weir_demo_options {
    const char *model_dir; /* NULL: synthesised */
    const char *family, *preset, *layout, *conversion;
    const char *install, *transport; /* NULL: their defaults */
    const char *work_dir;            /* NULL: a temporary one, removed at the end */
    const char *trainer_mesh;        /* NULL with replica_mesh: two ranks that have everything, two
                                        engines of one worker */
    const char *replica_mesh;
    const char *experts, *owners, *naming; /* NULL: contiguous, hf */
    const char *device;                    /* NULL: host memory */
    const char *window;                    /* NULL: trainer ranks keep versions whole */
    const char *mode;                      /* what travels, "kernel" or "checkpoint" */
    uint64_t n_versions, seed;
    bool as_json, keep;
} weir_demo_options;

/* What one version came to. Seconds per stop: the slowest rank's, the slowest replica's. */
typedef struct weir_demo_version {
    uint64_t version, n_bytes; /* bytes that the largest part of a replica received */
    double seconds[WEIR_N_STOPS];
    double refit_seconds;     /* from the word to the trainers until the last replica holds it */
    double transfer_gb_per_s; /* of all workers together */
    uint64_t n_parameters;    /* compared, all workers together */
    uint64_t total_bytes;     /* that all workers received */
    bool verified;
    weir_counters counters;                             /* of the replicas, summed */
    uint64_t trainer_memory_bytes, worker_memory_bytes; /* the largest process of either side */
} weir_demo_version;

typedef struct weir_demo {
    const weir_demo_options *options;
    char work_dir[512];
    char directory_address[128];
    char config[640];
    char share[640];                       /* of transport file; "" until it is made */
    char engine_mesh[80];                  /* of one engine; "" of one worker */
    int n_trainers, n_replicas, n_workers; /* ranks; engines; workers of all engines */
    weir_child directory, trainers[WEIR_DEMO_MAX_PROCESSES], workers[WEIR_DEMO_MAX_PROCESSES];
    weir_demo_version *versions;
    uint64_t n_made, n_done; /* checkpoints; versions verified or not */
    double limit_gb_per_s;   /* memory copied by all cores, same run; 0: not measured */
} weir_demo;

/* demo_run.c: false after having printed why. weir_demo_end() follows in any case. */
bool weir_demo_begin(weir_demo *demo);
bool weir_demo_step(weir_demo *demo, uint64_t version);
void weir_demo_end(weir_demo *demo);

#endif
