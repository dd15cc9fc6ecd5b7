/* SPDX-License-Identifier: Apache-2.0 */
/* directory_messages.h - the store's records as messages. Strings stay the store's. */
#ifndef WEIR_DIRECTORY_DIRECTORY_MESSAGES_H
#define WEIR_DIRECTORY_DIRECTORY_MESSAGES_H

#include "directory.pb-c.h"
#include "directory/directory_core.h"
#include "p2p.pb-c.h"
#include "refit.pb-c.h"

/* Makes `name` of a message type in the call's arena, or answers RESOURCE_EXHAUSTED. */
#define WEIR_MAKE_MESSAGE(type, init, name)                                \
    type *name = weir_arena_alloc(call->arena, sizeof(*name));             \
    if ((name) == NULL)                                                    \
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text); \
    init(name)

/* ABORTED is told as RELEASING: ModelExpress has no such state. */
void weir_message_of_version(const weir_store_version *version,
                             ModelExpress__Refit__WeightVersion *out);
void weir_message_of_shard(const weir_store_shard *shard,
                           ModelExpress__Refit__WeightVersionShard *out);
/* Borrows the message's strings. */
void weir_shard_of_message(const ModelExpress__Refit__WeightVersionShard *message,
                           weir_store_shard *out);

#endif
