/* SPDX-License-Identifier: Apache-2.0 */
/* inference_body.h - what an orchestrator says in the bodies of its calls, read from JSON and
 * checked, every member. Pure; the bytes are anybody's.
 *
 * Errors     ERR_FORMAT for what is no JSON object, ERR_INVALID for a member, both naming it.
 */
#ifndef WEIR_BROADCAST_INFERENCE_BODY_H
#define WEIR_BROADCAST_INFERENCE_BODY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/status.h"

#define WEIR_BODY_HOST 256
#define WEIR_BODY_RUN 256
#define WEIR_BODY_NAME 32
#define WEIR_MOST_TIMEOUT_S 86400u

/* Of POST /init_broadcaster. */
typedef struct weir_join_wish {
    char host[WEIR_BODY_HOST];
    uint32_t port;
    char run[WEIR_BODY_RUN];     /* session_id; else "default" */
    char server[WEIR_BODY_NAME]; /* "server-1"; without a server_rank "server-at-2", its offset */
    uint32_t first_rank;         /* of its first worker; the others follow */
    uint32_t n_workers_of_all;   /* of all servers */
    bool kernel_mode;            /* quantize_in_weight_transfer */
    unsigned timeout_ms;         /* 0: not said */
} weir_join_wish;

/* For a server of dp engines of tp workers. */
weir_status weir_join_wish_read(const char *body, size_t n_bytes, uint32_t tp, uint32_t dp,
                                weir_join_wish *out);
/* Whether they ask for the same, however long it may take. */
bool weir_join_wish_equal(const weir_join_wish *a, const weir_join_wish *b);

/* Of POST /update_weights; no body at all is one that says nothing. */
typedef struct weir_update_wish {
    bool has_version; /* else the newest */
    uint64_t version;
    unsigned timeout_ms; /* 0: not said */
} weir_update_wish;
weir_status weir_update_wish_read(const char *body, size_t n_bytes, weir_update_wish *out);

/* Of POST /revert: `timeout` alone, which may be left out, and so may the body. 0: not said. */
weir_status weir_revert_wish_read(const char *body, size_t n_bytes, unsigned *out_timeout_ms);

#endif
