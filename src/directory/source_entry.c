/* SPDX-License-Identifier: Apache-2.0 */
/* source_entry.c - reading entries, and writing another version's number and uid into them. */
#include "directory/source_entry.h"

#include <string.h>

#include "base/error.h"
#include "directory/client_entry.h"
#include "directory/source_id.h"
#include "rpc/rpc_message.h"

typedef ModelExpress__P2p__WorkerMetadata worker_message;
typedef ModelExpress__P2p__TensorDescriptor descriptor_message;

static const void *pack(const ProtobufCMessage *message, weir_arena *arena, size_t *out_n)
{
    *out_n = protobuf_c_message_get_packed_size(message);
    void *bytes = weir_arena_alloc(arena, *out_n);
    if (bytes != NULL)
        protobuf_c_message_pack(message, bytes);
    return bytes;
}

/* ---- another version -------------------------------------------------------------------------*/

/* "VERSION UID REST". NULL: not of that form, or no memory; then it stays as it is. */
static char *words_of(const char *words, const weir_source_of *of, weir_arena *arena)
{
    const char *uid = strchr(words, ' ');
    const char *rest = uid != NULL ? strchr(uid + 1, ' ') : NULL;
    if (rest == NULL)
        return NULL;
    return weir_arena_format(arena, "%llu %s%s", (unsigned long long)of->number,
                             of->uid[0] != '\0' ? of->uid : "-", rest);
}

/* Replaces the digits behind the first `key`; the text itself when there are none. */
static const char *replace_number(const char *text, const char *key, uint64_t number,
                                  weir_arena *arena)
{
    const char *at = strstr(text, key);
    if (at == NULL)
        return text;
    at += strlen(key);
    size_t n_digits = strspn(at, "0123456789");
    if (n_digits == 0)
        return text;
    return weir_arena_format(arena, "%.*s%llu%s", (int)(at - text), text,
                             (unsigned long long)number, at + n_digits);
}

/* As Weir writes it: compact, the registry within it as text. */
static char *json_of(const char *json, const weir_source_of *of, weir_arena *arena)
{
    const char *text = replace_number(json, "\"training_step\":", of->number, arena);
    if (text != NULL)
        text = replace_number(text, "\"shape_registry\":\"{\\\"version\\\":", of->number, arena);
    return (char *)text;
}

static void set_version(descriptor_message *descriptor, const weir_source_of *of, weir_arena *arena)
{
    char *text = NULL;
    if (strcmp(descriptor->name, WEIR_SIDECAR_WEIR) == 0)
        text = words_of(descriptor->dtype, of, arena);
    else if (strcmp(descriptor->name, WEIR_SIDECAR_JSON) == 0)
        text = json_of(descriptor->dtype, of, arena);
    if (text != NULL)
        descriptor->dtype = text;
}

/* A copy of as much of the message as differs: requests are not written to. */
static const worker_message *with_version(const worker_message *worker, const weir_source_of *of,
                                          weir_arena *arena)
{
    if (of == NULL || weir_sidecar_find(worker, WEIR_SIDECAR_WEIR) == NULL ||
        worker->source_payload_case !=
            MODEL_EXPRESS__P2P__WORKER_METADATA__SOURCE_PAYLOAD_TENSOR_SOURCE)
        return worker;
    size_t n = worker->tensor_source->n_tensors;
    worker_message *copy = weir_arena_alloc(arena, sizeof(*copy));
    ModelExpress__P2p__TensorSourceMetadata *tensors = weir_arena_alloc(arena, sizeof(*tensors));
    descriptor_message **pointers = weir_arena_zeroed(arena, n + 1, sizeof(*pointers));
    descriptor_message *descriptors = weir_arena_zeroed(arena, n + 1, sizeof(*descriptors));
    if (copy == NULL || tensors == NULL || pointers == NULL || descriptors == NULL)
        return NULL;
    *copy = *worker;
    *tensors = *worker->tensor_source;
    for (size_t i = 0; i < n; i++) {
        descriptors[i] = *worker->tensor_source->tensors[i];
        set_version(&descriptors[i], of, arena);
        pointers[i] = &descriptors[i];
    }
    tensors->tensors = pointers;
    copy->tensor_source = tensors;
    return copy;
}

/* ---- reading ---------------------------------------------------------------------------------*/

/* What Weir's own workers say beside. */
static weir_status read_said(const ModelExpress__P2p__SourceIdentity *identity,
                             const worker_message *worker, weir_arena *arena,
                             weir_store_source *out)
{
    weir_sidecar *said = weir_arena_alloc(arena, sizeof(*said));
    weir_source_record *record = weir_arena_zeroed(arena, 1, sizeof(*record));
    if (said == NULL || record == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_sidecar_read(identity, worker, said);
    out->has_step = said->has_step;
    out->step = said->step;
    out->layout_signature = said->layout_signature[0] != '\0' ? said->layout_signature : NULL;
    out->role = said->role;
    out->run = said->run;
    const char *words = weir_sidecar_find(worker, WEIR_SIDECAR_WEIR);
    if (words == NULL || weir_sidecar_parse(words, record) != WEIR_OK)
        record->version_uid[0] = '\0';
    out->version_uid = record->version_uid;
    return WEIR_OK;
}

weir_status weir_source_entry_read(const ModelExpress__P2p__PublishMetadataRequest *request,
                                   const weir_source_of *of, weir_arena *arena,
                                   weir_store_source *out)
{
    char *source_id = weir_arena_alloc(arena, WEIR_SOURCE_ID_BYTES);
    const worker_message *worker = with_version(request->worker, of, arena);
    if (source_id == NULL || worker == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_source_id(request->identity, arena, source_id);
    if (status != WEIR_OK)
        return status;
    *out = (weir_store_source){
        .source_id = source_id,
        .worker_id = request->worker_id,
        .model = request->identity->model_name,
        .accelerator = worker->accelerator,
        .rank = worker->worker_rank,
        .status = (weir_store_source_status)worker->status,
        .endpoint = worker->worker_grpc_endpoint,
        .host = "",
        .part = "",
    };
    status = read_said(request->identity, worker, arena, out);
    if (status != WEIR_OK)
        return status;
    out->identity = pack(&request->identity->base, arena, &out->n_identity);
    out->metadata = pack(&worker->base, arena, &out->n_metadata);
    return out->identity != NULL && out->metadata != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

/* ---- what is there already -------------------------------------------------------------------*/

weir_status weir_source_entry_find(const weir_store *store, const weir_source_whose *whose,
                                   weir_arena *arena, const weir_store_source **out)
{
    weir_source_record *record = weir_arena_zeroed(arena, 1, sizeof(*record));
    weir_client_entry *entry = weir_arena_alloc(arena, sizeof(*entry));
    char source_id[WEIR_SOURCE_ID_BYTES];
    if (record == NULL || entry == NULL)
        return WEIR_ERR_NO_MEMORY;
    strncpy(record->model, whose->model, sizeof(record->model) - 1);
    strncpy(record->run, whose->run, sizeof(record->run) - 1);
    strncpy(record->role, whose->role, sizeof(record->role) - 1);
    weir_status status = weir_client_entry_fill(record, entry);
    if (status == WEIR_OK)
        status = weir_source_id(&entry->identity, arena, source_id);
    if (status != WEIR_OK)
        return status;
    *out = weir_store_get_source(store, source_id, whose->worker_id);
    if (*out == NULL)
        return weir_fail(WEIR_ERR_NOT_FOUND,
                         "worker '%.128s' has no entry here: it must say its identity again",
                         whose->worker_id);
    return WEIR_OK;
}

weir_status weir_source_entry_again(const weir_store_source *stored, const weir_source_of *of,
                                    weir_arena *arena, weir_store_source *out)
{
    ProtobufCMessage *worker = NULL, *identity = NULL;
    weir_status status =
        weir_rpc_message_unpack(&model_express__p2p__worker_metadata__descriptor, stored->metadata,
                                stored->n_metadata, arena, &worker);
    if (status == WEIR_OK)
        status = weir_rpc_message_unpack(&model_express__p2p__source_identity__descriptor,
                                         stored->identity, stored->n_identity, arena, &identity);
    if (status != WEIR_OK)
        return status;
    ModelExpress__P2p__PublishMetadataRequest request =
        MODEL_EXPRESS__P2P__PUBLISH_METADATA_REQUEST__INIT;
    request.identity = (ModelExpress__P2p__SourceIdentity *)identity;
    request.worker = (worker_message *)worker;
    request.worker->status = MODEL_EXPRESS__P2P__SOURCE_STATUS__SOURCE_STATUS_READY;
    request.worker_id = weir_arena_strdup(arena, stored->worker_id); /* it is replaced soon */
    if (request.worker_id == NULL)
        return WEIR_ERR_NO_MEMORY;
    return weir_source_entry_read(&request, of, arena, out);
}
