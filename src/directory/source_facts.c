/* SPDX-License-Identifier: Apache-2.0 */
/* source_facts.c - the three routes, and the registry that two of them carry. */
#include "directory/source_facts.h"

#include <string.h>

#include "base/error.h"
#include "directory/sidecar.h"

#define MAX_JSON_BYTES ((size_t)16 << 20)
#define MAX_JSON_VALUES ((size_t)2 << 20) /* some 40 bytes of memory each */
#define MAX_JSON_DEPTH 32u
#define MAX_NAME_BYTES 255u
#define DEFAULT_TARGET "hf_raw"

typedef ModelExpress__P2p__SourceIdentity identity_message;
typedef ModelExpress__P2p__WorkerMetadata worker_message;
typedef ModelExpress__P2p__TensorDescriptor descriptor_message;

/* ---- JSON of others --------------------------------------------------------------------------*/

/* Whether a text, should it be JSON, comes to no more values and no greater depth than a registry
 * may: looked at before the parser takes memory for each. */
static bool is_bounded(const char *text, size_t n_bytes)
{
    size_t n_values = 1, depth = 0;
    bool in_string = false;
    if (n_bytes > MAX_JSON_BYTES)
        return false;
    for (size_t i = 0; i < n_bytes; i++) {
        char c = text[i];
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (in_string)
            continue;
        else if (c == '[' || c == '{')
            depth++;
        else if ((c == ']' || c == '}') && depth > 0)
            depth--;
        n_values += !in_string && (c == ',' || c == '[' || c == '{');
        if (depth > MAX_JSON_DEPTH || n_values > MAX_JSON_VALUES)
            return false;
    }
    return true;
}

/* A member as text: strings as they are, all else as JSON writes it. NULL when it is not there. */
static const char *text_of(weir_arena *arena, const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL || json_is_null(value))
        return NULL;
    if (json_is_string(value))
        return json_string_value(value);
    char text[64];
    size_t n =
        json_dumpb(value, text, sizeof(text), JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    return weir_arena_format(arena, "%.*s", (int)(n < sizeof(text) ? n : sizeof(text)), text);
}

/* ---- the registry ----------------------------------------------------------------------------*/

static const char *read_tag(const json_t *object, weir_tensor_tag *out)
{
    const json_t *name = json_object_get(object, "name");
    const json_t *target = json_object_get(object, "compile_target");
    const json_t *metadata = json_object_get(object, "compile_metadata");
    if (!json_is_string(name) || json_string_length(name) == 0 ||
        json_string_length(name) > MAX_NAME_BYTES)
        return "has no name";
    if (target != NULL && !json_is_null(target) && !json_is_string(target))
        return "has a compile_target that is no text";
    if (metadata != NULL && !json_is_null(metadata) && !json_is_object(metadata))
        return "has a compile_metadata that is no object";
    out->name = json_string_value(name);
    out->compile_target = json_is_string(target) ? json_string_value(target) : DEFAULT_TARGET;
    out->metadata = json_is_object(metadata) ? metadata : NULL;
    return NULL;
}

static weir_status read_tags(weir_source_facts *facts)
{
    const json_t *tensors = json_object_get(facts->registry, "tensors");
    size_t n = json_array_size(tensors);
    if (!json_is_array(tensors)) {
        facts->registry_fault = "it has no list of tensors";
        return WEIR_OK;
    }
    weir_tensor_tag *tags = weir_arena_zeroed(&facts->arena, n + 1, sizeof(*tags));
    if (tags == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        const char *fault = read_tag(json_array_get(tensors, i), &tags[i]);
        if (fault == NULL)
            continue;
        facts->registry_fault = weir_arena_format(&facts->arena, "its tensor %zu %s", i, fault);
        return facts->registry_fault != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    }
    facts->tags = tags;
    facts->n_tags = n;
    return WEIR_OK;
}

weir_status weir_source_facts_read_registry(weir_source_facts *facts, const char *text,
                                            size_t n_bytes)
{
    json_error_t error;
    facts->has_registry = true;
    if (!is_bounded(text, n_bytes)) {
        facts->registry_fault = "it is larger or nested deeper than a registry may be";
        return WEIR_OK;
    }
    json_decref(facts->registry);
    facts->registry = json_loadb(n_bytes > 0 ? text : "", n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (facts->registry != NULL)
        return read_tags(facts);
    facts->registry_fault = weir_arena_format(&facts->arena, "line %d column %d: %s", error.line,
                                              error.column, error.text);
    return facts->registry_fault != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

/* ---- routes ----------------------------------------------------------------------------------*/

static const char *take_identity(weir_source_facts *facts, const identity_message *identity)
{
    facts->route = WEIR_ROUTE_IDENTITY;
    facts->mx_v2 = weir_sidecar_extra(identity, "mx_v2");
    facts->role = weir_sidecar_extra(identity, "role");
    facts->rank = weir_sidecar_extra(identity, "worker_rank");
    facts->step = weir_sidecar_extra(identity, "training_step");
    facts->run = weir_sidecar_extra(identity, "run");
    facts->layout_signature = weir_sidecar_extra(identity, "layout_signature");
    return weir_sidecar_extra(identity, "shape_registry");
}

static const char *take_sidecar(weir_source_facts *facts)
{
    const json_t *said = facts->sidecar;
    weir_arena *arena = &facts->arena;
    facts->route = WEIR_ROUTE_SIDECAR;
    facts->mx_v2 = text_of(arena, said, "mx_v2");
    facts->role = text_of(arena, said, "role");
    facts->rank = text_of(arena, said, "worker_rank");
    facts->step = text_of(arena, said, "training_step");
    facts->run = text_of(arena, said, "run");
    facts->layout_signature = text_of(arena, said, "layout_signature");
    const char *registry = text_of(arena, said, "registry");
    facts->in_manifest = registry != NULL && strcmp(registry, "manifest") == 0;
    return text_of(arena, said, "shape_registry");
}

/* What stands behind `key` in a part "key=value" of an agent name. */
static const char *part_value(weir_arena *arena, const char *part, size_t n, const char *key)
{
    size_t n_key = strlen(key);
    if (n < n_key || strncmp(part, key, n_key) != 0)
        return NULL;
    return weir_arena_format(arena, "%.*s", (int)(n - n_key), part + n_key);
}

static void take_agent_name(weir_source_facts *facts, const char *name)
{
    const char *parts[4];
    size_t n_bytes[4], n = 0;
    for (const char *at = name; n < 4; n++) {
        parts[n] = at;
        n_bytes[n] = strcspn(at, "|");
        if (at[n_bytes[n]] == '\0') {
            n++;
            break;
        }
        at += n_bytes[n] + 1;
    }
    if (n < 4 || n_bytes[0] != 5 || strncmp(parts[0], "mx_v2", 5) != 0 ||
        n_bytes[1] > MAX_NAME_BYTES || n_bytes[2] > MAX_NAME_BYTES || n_bytes[3] > MAX_NAME_BYTES)
        return;
    facts->route = WEIR_ROUTE_AGENT_NAME;
    facts->mx_v2 = "1";
    facts->role = part_value(&facts->arena, parts[1], n_bytes[1], "");
    facts->rank = part_value(&facts->arena, parts[2], n_bytes[2], "rank=");
    facts->step = part_value(&facts->arena, parts[3], n_bytes[3], "version=");
}

static json_t *load_sidecar(const worker_message *worker)
{
    const char *text = weir_sidecar_find(worker, WEIR_SIDECAR_JSON);
    size_t n = text != NULL ? strlen(text) : 0;
    json_t *said = n > 0 && is_bounded(text, n) ? json_loadb(text, n, 0, NULL) : NULL;
    if (json_is_object(said))
        return said;
    json_decref(said);
    return NULL;
}

/* Gives the registry's text, NULL when there is none. */
static const char *take_route(weir_source_facts *facts, const identity_message *identity,
                              const worker_message *worker)
{
    if (identity != NULL && weir_sidecar_extra(identity, "mx_v2") != NULL)
        return take_identity(facts, identity);
    facts->sidecar = load_sidecar(worker);
    if (facts->sidecar != NULL)
        return take_sidecar(facts);
    take_agent_name(facts, worker->agent_name);
    if (facts->route == WEIR_ROUTE_NONE && identity != NULL && identity->n_extra_parameters > 0)
        return take_identity(facts, identity);
    return NULL;
}

/* ---- addresses -------------------------------------------------------------------------------*/

static size_t count_addressed(descriptor_message *const *descriptors, size_t n)
{
    size_t n_addressed = 0;
    for (size_t i = 0; i < n; i++)
        n_addressed +=
            descriptors[i]->size > 0 &&
            strncmp(descriptors[i]->name, WEIR_SIDECAR_PREFIX, strlen(WEIR_SIDECAR_PREFIX)) != 0;
    return n_addressed;
}

static void take_addresses(weir_source_facts *facts, const worker_message *worker)
{
    weir_source_record record = { .rank = 0 };
    const char *words = weir_sidecar_find(worker, WEIR_SIDECAR_WEIR);
    bool has_session =
        worker->backend_metadata_case ==
        MODEL_EXPRESS__P2P__WORKER_METADATA__BACKEND_METADATA_TRANSFER_ENGINE_SESSION_ID;
    bool has_nixl = worker->backend_metadata_case ==
                        MODEL_EXPRESS__P2P__WORKER_METADATA__BACKEND_METADATA_NIXL_METADATA &&
                    worker->nixl_metadata.len > 0;
    facts->n_addressed = count_addressed(worker->tensors, worker->n_tensors);
    if (worker->source_payload_case ==
            MODEL_EXPRESS__P2P__WORKER_METADATA__SOURCE_PAYLOAD_TENSOR_SOURCE &&
        worker->tensor_source != NULL)
        facts->n_addressed +=
            count_addressed(worker->tensor_source->tensors, worker->tensor_source->n_tensors);
    facts->endpoint = worker->worker_grpc_endpoint;
    if (words != NULL && weir_sidecar_parse(words, &record) == WEIR_OK &&
        worker->worker_grpc_endpoint[0] != '\0') {
        facts->endpoint_kind = WEIR_ENDPOINT_WEIR;
        const char *uid = weir_arena_strdup(&facts->arena, record.version_uid);
        facts->version_uid = uid != NULL ? uid : "";
    } else if (has_nixl || worker->metadata_endpoint[0] != '\0') {
        facts->endpoint_kind = WEIR_ENDPOINT_NIXL;
        facts->endpoint = worker->metadata_endpoint;
    } else if (has_session) {
        facts->endpoint_kind = WEIR_ENDPOINT_TRANSFER_ENGINE;
        facts->endpoint = worker->transfer_engine_session_id;
    }
}

weir_status weir_source_facts_open(const identity_message *identity, const worker_message *worker,
                                   weir_source_facts *out)
{
    *out = (weir_source_facts){ .endpoint = "", .version_uid = "" };
    weir_arena_init(&out->arena, 0);
    if (worker == NULL)
        return WEIR_OK;
    take_addresses(out, worker);
    const char *registry = take_route(out, identity, worker);
    return registry != NULL ? weir_source_facts_read_registry(out, registry, strlen(registry))
                            : WEIR_OK;
}

void weir_source_facts_close(weir_source_facts *facts)
{
    json_decref(facts->sidecar);
    json_decref(facts->registry);
    weir_arena_close(&facts->arena);
}
