/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_handlers.h - DirectoryService's methods, for its table in fleet_handlers.c: those that
 * change something and are answered at once. */
#ifndef WEIR_DIRECTORY_FLEET_HANDLERS_H
#define WEIR_DIRECTORY_FLEET_HANDLERS_H

#include "directory/directory_messages.h"

/* publish_handlers.c: what a step of a refit says. */
weir_rpc_code weir_publish_shard_check(weir_directory_call *call);
weir_rpc_code weir_publish_shard(weir_directory_call *call);
weir_rpc_code weir_acknowledge_check(weir_directory_call *call);
weir_rpc_code weir_acknowledge(weir_directory_call *call);

/* wait_handlers.c: waits of trainers. */
weir_rpc_code weir_await_check(weir_directory_call *call);
weir_rpc_code weir_await_look(weir_directory_call *call);
weir_directory_bound weir_await_bound(const weir_directory_call *call);
weir_rpc_code weir_retire_check(weir_directory_call *call);
weir_rpc_code weir_retire_look(weir_directory_call *call);
weir_rpc_code weir_retire(weir_directory_call *call);
weir_directory_bound weir_retire_bound(const weir_directory_call *call);

/* Who was in each slot of the version, and with what, for its ranks to keep: weir_store_recall(). In
 * the call's arena. */
weir_status weir_recall_slots(weir_directory_call *call, const weir_store_version *version,
                              uint64_t **out_workers, uint64_t **out_contents);

#endif
