/* SPDX-License-Identifier: Apache-2.0 */
/* bench_copy.h - the ways in which `weir bench copy` moves bytes, each measured by its own file.
 *
 * Every figure is the median of WEIR_BENCH_COPY_ROUNDS rounds, warmed up before. A way that is not
 * there says why; one that is there and fails has failed, which is something else.
 */
#ifndef WEIR_TOOLS_BENCH_COPY_H
#define WEIR_TOOLS_BENCH_COPY_H

#include "cli.h"

#define WEIR_BENCH_COPY_ROUNDS 9
#define WEIR_BENCH_COPY_MAX_GPUS 8

typedef struct weir_bench_way {
    const char *name;  /* what --transport takes: "ucx", "peer" */
    char over[64];     /* "shm", "GPU 0 to 1" */
    const char *tls;   /* of transport ucx */
    const char *limit; /* the way that it is set beside; NULL: none */
    bool both_counted; /* bytes read and bytes written, instead of bytes moved */
    bool failed;
    char why_not[512]; /* "" when it was measured */
    double gb_per_s, limit_gb_per_s;
} weir_bench_way;

typedef struct weir_bench_copy {
    uint64_t n_bytes; /* of one copy */
    unsigned gpus[WEIR_BENCH_COPY_MAX_GPUS];
    size_t n_gpus;
} weir_bench_copy;

/* Marks a way as failed with the library's last error, or as not there when that is all. */
void weir_bench_way_fail(weir_bench_way *way, weir_status status);

/* bench_reads.c: one-sided reads from another process, beside memcpy by one thread. Forks, so
 * nothing of the process may have touched a GPU before. */
void weir_bench_reads(const weir_bench_copy *bench, weir_bench_way *way);
/* memcpy by one thread alone. */
void weir_bench_memcpy(const weir_bench_copy *bench, weir_bench_way *way);

/* bench_gpu_copy.c: by the copy engines, timed by the device. */
void weir_bench_gpu_device(const weir_bench_copy *bench, weir_bench_way *way);
void weir_bench_gpu_peer(const weir_bench_copy *bench, weir_bench_way *way);
void weir_bench_gpu_to_host(const weir_bench_copy *bench, weir_bench_way *way);
void weir_bench_gpu_from_host(const weir_bench_copy *bench, weir_bench_way *way);

/* bench_broadcast.c: transport nccl from the first GPU to all others, a thread each. */
void weir_bench_broadcast(const weir_bench_copy *bench, weir_bench_way *way);

#endif
