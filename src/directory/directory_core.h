/* SPDX-License-Identifier: Apache-2.0 */
/* directory_core.h - the directory's services over its store, without a socket.
 *
 * Handlers translate messages to the store's structs and back; every rule is the store's. Strings
 * in answers point into the store, which nothing changes before the answer is packed. */
#ifndef WEIR_DIRECTORY_DIRECTORY_CORE_H
#define WEIR_DIRECTORY_DIRECTORY_CORE_H

#include "directory/store.h"
#include "rpc/rpc.h"

typedef struct weir_directory_core {
    weir_store *store;
    uint64_t begun_unix_ms, begun_ns;
    uint64_t salt; /* random: makes ids */
} weir_directory_core;

#define WEIR_DIRECTORY_SERVICES 3

weir_status weir_directory_core_open(const weir_store_options *options, weir_directory_core *out);
void weir_directory_core_close(weir_directory_core *core);
/* RefitService, P2pService and HealthService with `core` as their context. */
void weir_directory_core_services(weir_directory_core *core,
                                  weir_rpc_service out[WEIR_DIRECTORY_SERVICES]);

/* Milliseconds since 1970 as they were at the start, going on monotonically: a clock that is set
 * must not end every lease. */
uint64_t weir_directory_core_now_ms(const weir_directory_core *core);

/* The gRPC code of a refusal by the store; copies the recorded line to `text`. */
weir_rpc_code weir_directory_core_refuse(weir_status status, char *text);

extern const weir_rpc_method weir_refit_methods[];
extern const size_t weir_n_refit_methods;
extern const weir_rpc_method weir_source_methods[];
extern const size_t weir_n_source_methods;

#endif
