/* SPDX-License-Identifier: Apache-2.0 */
/* bench_refit.h - `weir bench refit`: what its processes are told, and what they tell.
 *
 * The verb starts itself again as one trainer and as each replica (--role) and talks to them by
 * lines: words to the trainer and replicas, JSON objects back. The directory is its own.
 *
 *   trainer   says ready;            begin -> begun;       publish N -> published
 *   replica   says ready;            installed, N times;   check -> checked
 */
#ifndef WEIR_TOOLS_BENCH_REFIT_H
#define WEIR_TOOLS_BENCH_REFIT_H

#include "bench_weights.h"
#include "child.h"
#include "process_memory.h"

#define WEIR_BENCH_MAX_REPLICAS 16
#define WEIR_BENCH_MAX_WORKERS (WEIR_BENCH_MAX_REPLICAS + 1) /* the trainer is the first */
#define WEIR_BENCH_MAX_VERSIONS 100000
#define WEIR_BENCH_CHECK_ALL UINT64_MAX

/* The command line. NULL or 0: the default. */
typedef struct weir_bench_refit {
    const char *family, *preset, *layout, *conversion;
    const char *transport, *install, *delivery, *naming_text;
    const char *mode; /* what travels, "kernel" or "checkpoint"; of the verb "both" too */
    weir_naming naming;
    weir_bench_place places[WEIR_BENCH_MAX_WORKERS];
    size_t n_workers;
    uint64_t n_versions, n_checked, seed, window_bytes, n_threads, timeout_s;
    bool scan_first, soak, as_json, checks_given;
    /* of a worker */
    const char *role, *name, *directory, *config;
} weir_bench_refit;

/* What the mode is to the library. */
weir_wire weir_bench_wire(const weir_bench_refit *bench);

/* ---- the workers: each returns an exit code --------------------------------------------------*/

int weir_bench_refit_trainer(const weir_bench_refit *bench);
int weir_bench_refit_replica(const weir_bench_refit *bench);

/* Puts the process' memory into a report and prints it as a line. */
void weir_bench_refit_say(json_t *taken);

/* Compares entries of a version with an independent conversion of the same weights. */
typedef struct weir_bench_checked {
    uint64_t n_entries, n_all_entries, n_bytes, n_different;
    char first_difference[512]; /* "" when there is none */
} weir_bench_checked;
/* False after having printed why it could not compare. */
bool weir_bench_refit_check(const weir_bench_refit *bench, const weir_replica *replica,
                            uint64_t version, weir_bench_checked *out);

/* ---- what a run came to ----------------------------------------------------------------------*/

typedef struct weir_bench_version {
    double publish_s, wait_s, total_s; /* the trainer's two calls, and both */
    double seconds[WEIR_N_STOPS];      /* the slowest replica's */
    weir_counters trainer_did, replicas_did;
    weir_process_memory memory[WEIR_BENCH_MAX_WORKERS];
    uint64_t gpu_left[WEIR_BENCH_MAX_WORKERS]; /* of each worker's GPU, whoever took it */
} weir_bench_version;

typedef struct weir_bench_run {
    const weir_bench_refit *bench;
    weir_child workers[WEIR_BENCH_MAX_WORKERS];
    weir_directory *directory;
    char work_dir[256], config[300];
    uint64_t n_weights, weight_bytes;                 /* at the trainer */
    uint64_t parameter_bytes;                         /* of each replica, derived ones included */
    uint64_t n_bytes;                                 /* that each replica receives */
    uint64_t extra_setup[WEIR_BENCH_MAX_WORKERS];     /* beside the parameters, before the first */
    uint64_t gpu_left_before[WEIR_BENCH_MAX_WORKERS]; /* all are ready, nothing is published */
    weir_process_memory memory_before[WEIR_BENCH_MAX_WORKERS];
    weir_bench_version *versions;
    uint64_t n_done;
    weir_bench_checked checked; /* of all replicas together */
    bool was_checked;
    char limit_name[128], why_no_limit[512];
    double limit_gb_per_s; /* 0: not measured */
} weir_bench_run;

/* bench_refit_run.c: false after having printed why. _end() follows in any case. */
bool weir_bench_run_begin(weir_bench_run *run);
bool weir_bench_run_step(weir_bench_run *run, uint64_t version);
bool weir_bench_run_check(weir_bench_run *run);
void weir_bench_run_end(weir_bench_run *run);
/* bench_refit_limit.c: once all workers have ended. */
void weir_bench_run_limit(weir_bench_run *run);

/* bench_refit_report.c */
void weir_bench_print_head(const weir_bench_run *run);
void weir_bench_print_version(const weir_bench_run *run, uint64_t version);
void weir_bench_print_summary(const weir_bench_run *run);
json_t *weir_bench_result_json(const weir_bench_run *run);

/* What one mode came to; memory is the most of any version, of the largest replica. */
typedef struct weir_bench_figures {
    uint64_t n_bytes;
    double seconds, gb_per_s;
    uint64_t trainer_bytes, replica_bytes;         /* of the host, whatever they are for */
    uint64_t trainer_gpu_bytes, replica_gpu_bytes; /* beside weights and parameters */
} weir_bench_figures;
weir_bench_figures weir_bench_figures_of(const weir_bench_run *run);
/* bench_refit_modes.c: both, side by side. */
void weir_bench_print_modes(const weir_bench_figures *checkpoint, const weir_bench_figures *kernel);
json_t *weir_bench_modes_json(const weir_bench_figures *checkpoint,
                              const weir_bench_figures *kernel);
/* Bytes by which heaps and GPUs have grown from version 10 to the last; 0 for a short run. */
uint64_t weir_bench_growth(const weir_bench_run *run);

#endif
