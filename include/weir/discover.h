/* SPDX-License-Identifier: Apache-2.0 */
/* discover.h - who publishes what a reader can use: the sources that a directory knows, each judged
 * against a wish, field by field.
 *
 * Any directory will do that speaks ModelExpress' P2pService. What a source says of itself is read
 * where clients of ModelExpress v2 put it: the identity's extra parameters, a sidecar descriptor, an
 * encoded agent name. What Weir's trainers publish says more: docs/wire.md.
 *
 * Threads    a call is complete in itself; a list is immutable.
 * Ownership  a wish is borrowed until the call returns. A list owns all that it points to.
 * Errors     ERR_INVALID a wish that makes no sense, and what the directory's calls end with. That
 *            nothing is taken is a result, not an error.
 * Waits      the whole call ends within the wish's timeout_ms.
 */
#ifndef WEIR_DISCOVER_H
#define WEIR_DISCOVER_H

#include "weir/weir.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the wish --------------------------------------------------------------------------------*/

typedef enum weir_role_rule {
    WEIR_ROLES_ANY = 0,      /* trainers first */
    WEIR_ROLES_TRAINERS = 1,
    WEIR_ROLES_REPLICAS = 2,
} weir_role_rule;

/* How bytes are had of a source. */
typedef enum weir_endpoint_kind {
    WEIR_ENDPOINT_ANY = 0,
    WEIR_ENDPOINT_WEIR = 1,            /* a manifest of Weir's, which says how */
    WEIR_ENDPOINT_NIXL = 2,            /* NIXL metadata, or where to fetch it */
    WEIR_ENDPOINT_TRANSFER_ENGINE = 3, /* a session of Mooncake's transfer engine */
} weir_endpoint_kind;
WEIR_API const char *weir_endpoint_kind_name(weir_endpoint_kind kind); /* "any", "weir", "nixl", … */

/* Zero and NULL ask for nothing. */
typedef struct weir_discover_wish {
    size_t size; /* sizeof(weir_discover_wish) */
    const char *directory;       /* required: "HOST:PORT", or several: the first that answers */
    const char *model;           /* required, exactly so */
    const char *run;             /* of training; NULL: any */
    const char *const *targets;  /* compile targets that the reader can read; every tensor of a source
                                    must have one of them */
    size_t n_targets;
    const char *required_metadata; /* a JSON object: every tensor's compile metadata must have each of
                                      its keys with an equal value (a key that is missing is null) */
    bool has_min_version, has_max_version, has_rank;
    uint64_t min_version, max_version; /* both included */
    uint32_t rank;                     /* worker_rank */
    weir_role_rule roles;
    unsigned fresh_ms;           /* at most so long since the source's last word; 0: STALE decides */
    const char *layout;          /* layout_signature */
    weir_endpoint_kind endpoint;
    uint32_t max_sources;        /* that are looked at, newest first; 0: 16,384 */
    unsigned timeout_ms;         /* 0: 60,000 */
    weir_security security;
} weir_discover_wish;
#define WEIR_DISCOVER_WISH_INIT WEIR_SIZED(weir_discover_wish)

/* ---- what was found --------------------------------------------------------------------------*/

/* One question and its answer, in words for people. */
typedef struct weir_finding {
    const char *field;  /* "status", "compile_target", "compile_metadata.block_size", … */
    const char *wanted; /* "any" when the wish does not ask */
    const char *found;
    const char *tensor; /* the first that the answer is about; NULL: none in particular */
    bool ok;
} weir_finding;

typedef struct weir_candidate {
    const char *source_id, *worker_id, *model; /* as the directory lists it */
    const char *run, *role;  /* "" when not said. "trainer", "inference_replica" */
    bool has_rank, has_version;
    uint32_t rank;
    uint64_t version;        /* training_step */
    const char *status;      /* "READY" */
    int64_t age_ms;          /* since its last word; -1 when the directory does not say */
    weir_endpoint_kind endpoint_kind; /* ANY: it has none */
    const char *endpoint, *host;      /* "" when not said */
    uint64_t n_tensors;      /* of its registry, or that can be read by address */
    const char *targets;     /* compile targets of all tensors, sorted: "bf16_cast,deep_gemm_fp8"; ""
                                when there is no registry */
    bool taken;
    const char *reason;      /* why not, on one line: the first finding that is not ok; "" if taken */
    const weir_finding *findings;
    size_t n_findings;
} weir_candidate;

/* Those that are taken come first, trainers before replicas, newest word first; then the others. */
typedef struct weir_discovery_list {
    const weir_candidate *candidates;
    size_t n_candidates, n_taken;
    bool cut; /* the directory has more than max_sources */
} weir_discovery_list;

/* Asks the directory and judges every source that it knows of the model. A source is taken when every
 * finding is ok: one tensor that the reader cannot read disqualifies all of it. Of several entries of
 * one worker the greatest version counts, of several workers of one trainer rank (and run) the one
 * heard of last; the others are superseded. Gives *out. */
WEIR_API weir_status weir_discover(const weir_discover_wish *wish, weir_discovery_list **out);
WEIR_API void weir_discovery_list_free(weir_discovery_list *list); /* accepts NULL */

#ifdef __cplusplus
}
#endif
#endif
