/* SPDX-License-Identifier: Apache-2.0 */
/* source_id.c - the canonical text of an identity, and its hash.
 *
 * Every server must come to the same id for the same identity, so the order below, the lower case
 * and the fields left out when empty are not ours to choose. */
#include "directory/source_id.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "directory/json_text.h"
#include "directory/sha256.h"

typedef ModelExpress__P2p__SourceIdentity identity_message;
typedef ModelExpress__P2p__SourceIdentity__ExtraParametersEntry extra_entry;

static int compare_keys(const void *left, const void *right)
{
    const extra_entry *a = *(const extra_entry *const *)left;
    const extra_entry *b = *(const extra_entry *const *)right;
    return strcmp(a->key, b->key);
}

/* ASCII alone, whatever the locale. */
static int compare_lower(const char *a, const char *b)
{
    for (;; a++, b++) {
        unsigned char x = (unsigned char)*a, y = (unsigned char)*b;
        x = x >= 'A' && x <= 'Z' ? (unsigned char)(x - 'A' + 'a') : x;
        y = y >= 'A' && y <= 'Z' ? (unsigned char)(y - 'A' + 'a') : y;
        if (x != y || x == '\0')
            return x - y;
    }
}

static int compare_lower_keys(const void *left, const void *right)
{
    const extra_entry *a = *(const extra_entry *const *)left;
    const extra_entry *b = *(const extra_entry *const *)right;
    int order = compare_lower(a->key, b->key);
    return order != 0 ? order : strcmp(a->key, b->key);
}

/* Sorted; of keys that are equal in lower case the first in the original order stays. A key twice
 * on the wire: the last wins, as protobuf says of maps. */
static size_t sort_extras(const identity_message *identity, const extra_entry **out)
{
    size_t n = 0;
    for (size_t i = 0; i < identity->n_extra_parameters; i++)
        out[n++] = identity->extra_parameters[i];
    for (size_t i = 1; i < n; i++) { /* stable, unlike qsort; and there are few */
        const extra_entry *entry = out[i];
        size_t j = i;
        for (; j > 0 && compare_keys(&out[j - 1], &entry) > 0; j--)
            out[j] = out[j - 1];
        out[j] = entry;
    }
    size_t n_kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (i + 1 == n || strcmp(out[i]->key, out[i + 1]->key) != 0)
            out[n_kept++] = out[i];
    }
    qsort(out, n_kept, sizeof(*out), compare_lower_keys);
    n = n_kept;
    n_kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || compare_lower(out[i]->key, out[i - 1]->key) != 0)
            out[n_kept++] = out[i];
    }
    return n_kept;
}

static void write_optional(weir_json_text *json, const char *key, const char *value)
{
    if (value[0] != '\0')
        weir_json_string(json, key, value);
}

static void write_identity(weir_json_text *json, const identity_message *identity,
                           const extra_entry *const *extras, size_t n_extras)
{
    json->in_lower_case = true;
    weir_json_open(json, NULL);
    weir_json_number(json, "backend_framework", (uint32_t)identity->backend_framework);
    write_optional(json, "backend_framework_version", identity->backend_framework_version);
    write_optional(json, "compile_config_digest", identity->compile_config_digest);
    write_optional(json, "cuda_version", identity->cuda_version);
    weir_json_string(json, "dtype", identity->dtype);
    weir_json_number(json, "expert_parallel_size", identity->expert_parallel_size);
    weir_json_open(json, "extra_parameters");
    for (size_t i = 0; i < n_extras; i++)
        weir_json_string(json, extras[i]->key, extras[i]->value);
    weir_json_close(json);
    write_optional(json, "gpu_arch", identity->gpu_arch);
    weir_json_string(json, "model_name", identity->model_name);
    weir_json_number(json, "mx_source_type", (uint32_t)identity->mx_source_type);
    weir_json_string(json, "mx_version", identity->mx_version);
    weir_json_number(json, "pipeline_parallel_size", identity->pipeline_parallel_size);
    weir_json_string(json, "quantization", identity->quantization);
    weir_json_string(json, "revision", identity->revision);
    weir_json_number(json, "tensor_parallel_size", identity->tensor_parallel_size);
    write_optional(json, "torch_version", identity->torch_version);
    write_optional(json, "triton_version", identity->triton_version);
    weir_json_close(json);
}

const char *weir_source_id_text(const identity_message *identity, weir_arena *arena)
{
    const extra_entry **extras =
        weir_arena_alloc(arena, (identity->n_extra_parameters + 1) * sizeof(*extras));
    if (extras == NULL)
        return NULL;
    size_t n_extras = sort_extras(identity, extras);
    weir_json_text json;
    weir_json_begin(&json, NULL, 0);
    write_identity(&json, identity, extras, n_extras); /* to measure */
    size_t n_bytes = json.n_used + 1;
    char *text = weir_arena_alloc(arena, n_bytes);
    if (text == NULL)
        return NULL;
    weir_json_begin(&json, text, n_bytes);
    write_identity(&json, identity, extras, n_extras);
    weir_json_end(&json);
    return text;
}

weir_status weir_source_id(const identity_message *identity, weir_arena *arena,
                           char out[WEIR_SOURCE_ID_BYTES])
{
    char hash[WEIR_SHA256_HEX];
    if (identity->n_extra_parameters > WEIR_SOURCE_MAX_EXTRAS)
        return weir_fail(WEIR_ERR_INVALID,
                         "identity has %zu extra parameters, at most %d are allowed",
                         identity->n_extra_parameters, WEIR_SOURCE_MAX_EXTRAS);
    const char *text = weir_source_id_text(identity, arena);
    if (text == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_sha256_hex(text, strlen(text), hash);
    if (status != WEIR_OK)
        return status;
    memcpy(out, hash, WEIR_SOURCE_ID_BYTES - 1);
    out[WEIR_SOURCE_ID_BYTES - 1] = '\0';
    return WEIR_OK;
}
