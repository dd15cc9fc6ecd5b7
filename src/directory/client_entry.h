/* SPDX-License-Identifier: Apache-2.0 */
/* client_entry.h - a worker's entry as the message that publishes it: for the calls of both
 * services that carry one. */
#ifndef WEIR_DIRECTORY_CLIENT_ENTRY_H
#define WEIR_DIRECTORY_CLIENT_ENTRY_H

#include "directory/sidecar.h"

#define WEIR_ENTRY_DESCRIPTORS 3

/* Points into itself: filled in place, and not copied. */
typedef struct weir_client_entry {
    weir_sidecar_texts texts;
    char revision[WEIR_NAME_BYTES + WEIR_ID_BYTES];
    ModelExpress__P2p__SourceIdentity identity;
    ModelExpress__P2p__TensorDescriptor descriptors[WEIR_ENTRY_DESCRIPTORS];
    ModelExpress__P2p__TensorDescriptor *pointers[WEIR_ENTRY_DESCRIPTORS];
    ModelExpress__P2p__TensorSourceMetadata tensors;
    ModelExpress__P2p__WorkerMetadata worker;
    ModelExpress__P2p__PublishMetadataRequest request;
} weir_client_entry;

/* What the workers of one role in one run share, and their source id is made of. `revision` is room
 * for what it points to. */
void weir_client_identity_fill(const char *model, const char *run, const char *role,
                               char revision[WEIR_NAME_BYTES + WEIR_ID_BYTES],
                               ModelExpress__P2p__SourceIdentity *identity);

/* `entry` borrows the record's strings. ERR_INVALID when a field cannot be written. */
weir_status weir_client_entry_fill(const weir_source_record *record, weir_client_entry *entry);

#endif
