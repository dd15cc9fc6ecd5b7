/* SPDX-License-Identifier: Apache-2.0 */
/* client_entry.c - writing a worker's entry.
 *
 * The identity holds model, run and role alone, so the source id stays from version to version and
 * a worker's entry is replaced, not added to. It has no extra parameters: clients of ModelExpress
 * v2 look at the sidecar of a source only when there are none. They find the compile target of
 * every tensor there, and pass over what they cannot read. */
#include "directory/client_entry.h"

#include <stdio.h>

#define IDENTITY_VERSION "0.3.0" /* part of the hash: it never changes */

static void describe(weir_client_entry *entry, size_t i, const char *name, const char *text)
{
    model_express__p2p__tensor_descriptor__init(&entry->descriptors[i]);
    entry->descriptors[i].name = (char *)name;
    entry->descriptors[i].dtype = (char *)text;
    entry->pointers[i] = &entry->descriptors[i];
}

void weir_client_identity_fill(const char *model, const char *run, const char *role,
                               char revision[WEIR_NAME_BYTES + WEIR_ID_BYTES],
                               ModelExpress__P2p__SourceIdentity *identity)
{
    snprintf(revision, WEIR_NAME_BYTES + WEIR_ID_BYTES, "%s/%s", run, role);
    model_express__p2p__source_identity__init(identity);
    identity->mx_version = (char *)IDENTITY_VERSION;
    identity->model_name = (char *)model;
    identity->revision = revision;
}

weir_status weir_client_entry_fill(const weir_source_record *record, weir_client_entry *entry)
{
    weir_status status = weir_sidecar_write(record, &entry->texts);
    if (status != WEIR_OK)
        return status;
    weir_client_identity_fill(record->model, record->run, record->role, entry->revision,
                              &entry->identity);
    describe(entry, 0, WEIR_SIDECAR_WEIR, entry->texts.words);
    describe(entry, 1, WEIR_SIDECAR_WEIR_OF, entry->texts.of);
    describe(entry, 2, WEIR_SIDECAR_JSON, entry->texts.json);
    model_express__p2p__tensor_source_metadata__init(&entry->tensors);
    entry->tensors.tensors = entry->pointers;
    entry->tensors.n_tensors = WEIR_ENTRY_DESCRIPTORS;
    ModelExpress__P2p__WorkerMetadata *worker = &entry->worker;
    model_express__p2p__worker_metadata__init(worker);
    worker->worker_rank = record->rank;
    worker->status = (ModelExpress__P2p__SourceStatus)record->status;
    worker->agent_name = (char *)record->worker_id;
    worker->worker_grpc_endpoint = (char *)record->endpoint;
    worker->source_payload_case = MODEL_EXPRESS__P2P__WORKER_METADATA__SOURCE_PAYLOAD_TENSOR_SOURCE;
    worker->tensor_source = &entry->tensors;
    model_express__p2p__publish_metadata_request__init(&entry->request);
    entry->request.identity = &entry->identity;
    entry->request.worker = worker;
    entry->request.worker_id = (char *)record->worker_id;
    return WEIR_OK;
}
