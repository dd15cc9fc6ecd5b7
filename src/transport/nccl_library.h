/* SPDX-License-Identifier: Apache-2.0 */
/* nccl_library.h - the part of NCCL's C interface that Weir calls, and finding the library.
 *
 * Declared here rather than taken from nccl.h, so that Weir builds where NCCL is not installed; the
 * names, numbers and layouts are those of NVIDIA's public header, which keeps them from 2.14 on.
 *
 * Threads    any; the library is looked for once, at the first call.
 * Errors     ERR_UNSUPPORTED "NCCL is off: …" with what was tried.
 */
#ifndef WEIR_NCCL_LIBRARY_H
#define WEIR_NCCL_LIBRARY_H

#include <limits.h>
#include <stddef.h>

#include "weir/transport.h"

#define WEIR_NCCL_MIN_VERSION 21400 /* communicators that do not block */
#define WEIR_NCCL_MAGIC 0xcafebeefu /* of weir_nccl_config */
#define WEIR_NCCL_UNDEFINED INT_MIN /* a config field that is left to NCCL */
#define WEIR_NCCL_UINT8 1           /* ncclUint8 */

typedef enum weir_nccl_result {
    WEIR_NCCL_SUCCESS = 0,
    WEIR_NCCL_CUDA_ERROR = 1,
    WEIR_NCCL_SYSTEM_ERROR = 2,
    WEIR_NCCL_INTERNAL_ERROR = 3,
    WEIR_NCCL_INVALID_ARGUMENT = 4,
    WEIR_NCCL_INVALID_USAGE = 5,
    WEIR_NCCL_REMOTE_ERROR = 6,
    WEIR_NCCL_IN_PROGRESS = 7
} weir_nccl_result;

typedef struct weir_nccl_comm weir_nccl_comm; /* ncclComm */
typedef struct weir_nccl_id {
    char internal[WEIR_GROUP_KEY_BYTES];
} weir_nccl_id;

/* ncclConfig_t as of 2.17. NCCL copies `size` bytes and fills in what versions after `version` have
 * added, so a later library takes it too. 2.14 to 2.16 end with `blocking`. */
typedef struct weir_nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking;
    int cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
} weir_nccl_config;
#define WEIR_NCCL_CONFIG_BYTES_2_14 24 /* with the padding after `blocking` */
_Static_assert(offsetof(weir_nccl_config, blocking) == 16, "as in nccl.h");
_Static_assert(offsetof(weir_nccl_config, net_name) == 32, "as in nccl.h");
_Static_assert(sizeof(weir_nccl_config) == 40, "as in nccl.h of 2.17");

/* Every function but the two texts returns a weir_nccl_result. */
typedef struct weir_nccl_library {
    int version; /* 22809 for 2.28.9 */
    int (*get_version)(int *version);
    int (*get_unique_id)(weir_nccl_id *out);
    int (*init_rank)(weir_nccl_comm **out, int n_ranks, weir_nccl_id id, int rank,
                     weir_nccl_config *config);
    int (*async_error)(weir_nccl_comm *comm, int *out_result);
    int (*broadcast)(const void *from, void *into, size_t n_items, int type, int root,
                     weir_nccl_comm *comm, void *stream);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*finalize)(weir_nccl_comm *comm);
    int (*abort)(weir_nccl_comm *comm);
    const char *(*error_text)(int result);
    const char *(*last_error)(weir_nccl_comm *comm);
} weir_nccl_library;

/* The copy that this process has already (PyTorch's), else what WEIR_NCCL_LIBRARY names, else what
 * the dynamic linker finds. It stays loaded. */
weir_status weir_nccl_library_get(const weir_nccl_library **out);
/* The same, searched for anew. */
weir_status weir_nccl_library_find(weir_nccl_library *out);

/* "" when transport nccl can run here, else why not: constant after the first call. */
const char *weir_nccl_why_not(void);

/* Records "WHO: WHAT: NCCL says …" with NCCL's own words; the status by the result. */
weir_status weir_nccl_fail(const weir_nccl_library *nccl, int result, const char *who,
                           const char *what);

#endif
