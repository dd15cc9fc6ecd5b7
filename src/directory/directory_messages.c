/* SPDX-License-Identifier: Apache-2.0 */
/* directory_messages.c - field by field. */
#include "directory/directory_messages.h"

void weir_message_of_version(const weir_store_version *version,
                             ModelExpress__Refit__WeightVersion *out)
{
    model_express__refit__weight_version__init(out);
    out->uid = (char *)version->uid;
    out->model_name = (char *)version->model;
    if (version->has_number) {
        out->_version_number_case =
            MODEL_EXPRESS__REFIT__WEIGHT_VERSION___VERSION_NUMBER_VERSION_NUMBER;
        out->version_number = version->number;
    }
    out->idempotency_key = (char *)version->idempotency_key;
    out->payload_format = (ModelExpress__Refit__WeightPayloadFormat)version->payload;
    if (version->base_uid != NULL) {
        out->_base_version_id_case =
            MODEL_EXPRESS__REFIT__WEIGHT_VERSION___BASE_VERSION_ID_BASE_VERSION_ID;
        out->base_version_id = (char *)version->base_uid;
    }
    out->expected_source_slots = (char **)version->slots;
    out->n_expected_source_slots = version->n_slots;
    out->layout_signature = (char *)version->layout_signature;
    weir_store_state state =
        version->state != WEIR_STORE_ABORTED ? version->state : WEIR_STORE_RELEASING;
    out->state = (ModelExpress__Refit__WeightVersionState)state;
    out->created_at_unix_ms = version->created_at_ms;
}

void weir_message_of_shard(const weir_store_shard *shard,
                           ModelExpress__Refit__WeightVersionShard *out)
{
    model_express__refit__weight_version_shard__init(out);
    out->version_id = (char *)shard->version_uid;
    out->source_slot_id = (char *)shard->slot;
    out->worker_id = (char *)shard->worker_id;
    out->tensor_count = shard->n_tensors;
    out->total_bytes = shard->n_bytes;
    out->manifest_digest = (char *)shard->manifest_digest;
    out->manifest_endpoint = (char *)shard->manifest_endpoint;
    out->transport = (char *)shard->transport;
}

void weir_shard_of_message(const ModelExpress__Refit__WeightVersionShard *message,
                           weir_store_shard *out)
{
    *out = (weir_store_shard){
        .version_uid = message->version_id,
        .slot = message->source_slot_id,
        .worker_id = message->worker_id,
        .n_tensors = message->tensor_count,
        .n_bytes = message->total_bytes,
        .manifest_digest = message->manifest_digest,
        .manifest_endpoint = message->manifest_endpoint,
        .transport = message->transport,
    };
}
