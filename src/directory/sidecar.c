/* SPDX-License-Identifier: Apache-2.0 */
/* sidecar.c - reading and writing the "__mx_" descriptors. */
#include "directory/sidecar.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "directory/json_text.h"

#define MAX_JSON_BYTES ((size_t)16 << 20) /* shape registries ride along */

typedef ModelExpress__P2p__TensorDescriptor descriptor_message;

static const char *find_in(descriptor_message *const *descriptors, size_t n, const char *name)
{
    for (size_t i = n; i-- > 0;) { /* they are appended last */
        if (strcmp(descriptors[i]->name, name) == 0)
            return descriptors[i]->dtype;
    }
    return NULL;
}

const char *weir_sidecar_find(const ModelExpress__P2p__WorkerMetadata *worker, const char *name)
{
    const char *text = NULL;
    if (worker->source_payload_case ==
            MODEL_EXPRESS__P2P__WORKER_METADATA__SOURCE_PAYLOAD_TENSOR_SOURCE &&
        worker->tensor_source != NULL)
        text = find_in(worker->tensor_source->tensors, worker->tensor_source->n_tensors, name);
    if (text == NULL) /* where older clients put it */
        text = find_in(worker->tensors, worker->n_tensors, name);
    return text;
}

const char *weir_sidecar_extra(const ModelExpress__P2p__SourceIdentity *identity, const char *key)
{
    for (size_t i = identity->n_extra_parameters; i-- > 0;) {
        if (strcmp(identity->extra_parameters[i]->key, key) == 0)
            return identity->extra_parameters[i]->value;
    }
    return NULL;
}

/* ---- reading ---------------------------------------------------------------------------------*/

/* Digits up to `end`, nothing else. Gives what follows, NULL when there is no number. */
static const char *read_number(const char *text, char end, uint64_t *out)
{
    uint64_t number = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++) {
        unsigned digit = (unsigned)(*at - '0');
        if (number > (UINT64_MAX - digit) / 10)
            return NULL;
        number = number * 10 + digit;
    }
    if (at == text || *at != end)
        return NULL;
    *out = number;
    return end == '\0' ? at : at + 1;
}

/* A word up to the next space; "-" is the empty one. */
static const char *read_word(const char *text, char *out, size_t n_out)
{
    const char *space = strchr(text, ' ');
    size_t n = space != NULL ? (size_t)(space - text) : 0;
    if (n == 0 || n >= n_out)
        return NULL;
    memcpy(out, text, n);
    out[n] = '\0';
    if (strcmp(out, "-") == 0)
        out[0] = '\0';
    return space + 1;
}

static bool parse_words(const char *text, weir_source_record *record)
{
    uint64_t n_ranks = 0;
    const char *at = read_number(text, ' ', &record->version);
    if (at != NULL)
        at = read_word(at, record->version_uid, sizeof(record->version_uid));
    if (at != NULL)
        at = read_number(at, ' ', &n_ranks);
    if (at != NULL)
        at = read_word(at, record->layout_signature, sizeof(record->layout_signature));
    if (at == NULL || n_ranks > UINT32_MAX || strlen(at) >= sizeof(record->note))
        return false;
    record->n_ranks = (uint32_t)n_ranks;
    memcpy(record->note, at, strlen(at) + 1);
    return true;
}

static bool parse_of(const char *text, weir_source_record *record)
{
    const char *run = read_word(text, record->role, sizeof(record->role));
    if (run == NULL || strlen(run) >= sizeof(record->run))
        return false;
    memcpy(record->run, run, strlen(run) + 1);
    return true;
}

static weir_status malformed(const char *name, const char *text)
{
    return weir_fail(WEIR_ERR_FORMAT, "descriptor %s is malformed: '%.100s'", name, text);
}

weir_status weir_sidecar_parse(const char *text, weir_source_record *record)
{
    return parse_words(text, record) ? WEIR_OK : malformed(WEIR_SIDECAR_WEIR, text);
}

weir_status weir_sidecar_parse_of(const char *text, weir_source_record *record)
{
    return parse_of(text, record) ? WEIR_OK : malformed(WEIR_SIDECAR_WEIR_OF, text);
}

static void take_step(weir_sidecar *out, const char *text)
{
    if (text != NULL && !out->has_step)
        out->has_step = read_number(text, '\0', &out->step) != NULL;
}

static void take_text(char *out, size_t n_out, const char *text)
{
    if (text != NULL && out[0] == '\0' && strlen(text) < n_out)
        memcpy(out, text, strlen(text) + 1);
}

static void read_json(const char *text, weir_sidecar *out)
{
    size_t n = strlen(text);
    json_t *root = n <= MAX_JSON_BYTES ? json_loadb(text, n, 0, NULL) : NULL;
    const json_t *step = json_object_get(root, "training_step");
    if (json_is_string(step)) {
        take_step(out, json_string_value(step));
    } else if (json_is_integer(step) && json_integer_value(step) >= 0 && !out->has_step) {
        out->has_step = true;
        out->step = (uint64_t)json_integer_value(step);
    }
    take_text(out->layout_signature, sizeof(out->layout_signature),
              json_string_value(json_object_get(root, "layout_signature")));
    take_text(out->role, sizeof(out->role), json_string_value(json_object_get(root, "role")));
    take_text(out->run, sizeof(out->run), json_string_value(json_object_get(root, "run")));
    json_decref(root);
}

/* Of an entry that Weir wrote: the JSON, which may carry megabytes of registry, says no more. */
static bool read_words(const ModelExpress__P2p__WorkerMetadata *worker, weir_sidecar *out)
{
    weir_source_record record = { .rank = 0 };
    const char *words = weir_sidecar_find(worker, WEIR_SIDECAR_WEIR);
    const char *of = weir_sidecar_find(worker, WEIR_SIDECAR_WEIR_OF);
    if (words == NULL || of == NULL || !parse_words(words, &record) || !parse_of(of, &record))
        return false;
    if (!out->has_step) {
        out->has_step = true;
        out->step = record.version;
    }
    take_text(out->layout_signature, sizeof(out->layout_signature), record.layout_signature);
    take_text(out->role, sizeof(out->role), record.role);
    take_text(out->run, sizeof(out->run), record.run);
    return true;
}

void weir_sidecar_read(const ModelExpress__P2p__SourceIdentity *identity,
                       const ModelExpress__P2p__WorkerMetadata *worker, weir_sidecar *out)
{
    memset(out, 0, sizeof(*out));
    take_step(out, weir_sidecar_extra(identity, "training_step"));
    take_text(out->layout_signature, sizeof(out->layout_signature),
              weir_sidecar_extra(identity, "layout_signature"));
    take_text(out->role, sizeof(out->role), weir_sidecar_extra(identity, "role"));
    take_text(out->run, sizeof(out->run), weir_sidecar_extra(identity, "run"));
    if (read_words(worker, out))
        return;
    const char *json = weir_sidecar_find(worker, WEIR_SIDECAR_JSON);
    if (json != NULL && (!out->has_step || out->layout_signature[0] == '\0'))
        read_json(json, out);
}

/* ---- writing ---------------------------------------------------------------------------------*/

static const char *word(const char *text)
{
    return text[0] != '\0' ? text : "-";
}

static weir_status write_weir(const weir_source_record *record, weir_sidecar_texts *out)
{
    if (strchr(record->version_uid, ' ') != NULL || strchr(record->layout_signature, ' ') != NULL ||
        strchr(record->role, ' ') != NULL)
        return weir_fail(WEIR_ERR_INVALID, "'%s', '%s' or '%s' has a space in it",
                         record->version_uid, record->layout_signature, record->role);
    int n = snprintf(out->words, sizeof(out->words), "%llu %s %u %s %s",
                     (unsigned long long)record->version, word(record->version_uid),
                     record->n_ranks, word(record->layout_signature), record->note);
    if (n < 0 || (size_t)n >= sizeof(out->words))
        return weir_fail(WEIR_ERR_INVALID, "the source's note does not fit");
    snprintf(out->of, sizeof(out->of), "%s %s", word(record->role), record->run);
    return WEIR_OK;
}

/* All of the object but what follows the registry's version, and without the closing brace. */
static bool write_head(const weir_source_record *record, char head[WEIR_SIDECAR_HEAD_BYTES],
                       size_t *out_n)
{
    char layout[64];
    weir_json_text json;
    const weir_sidecar_registry *registry = record->registry;
    snprintf(layout, sizeof(layout), "fsdp:%u,tp:1,pp:1,ep:1", record->n_ranks);
    weir_json_begin(&json, head, WEIR_SIDECAR_HEAD_BYTES);
    weir_json_open(&json, NULL);
    weir_json_string(&json, "mx_v2", "1");
    weir_json_string(&json, "role", record->role);
    weir_json_number(&json, "worker_rank", record->rank);
    weir_json_number(&json, "training_step", record->version);
    weir_json_string(&json, "world_layout",
                     record->world_layout[0] != '\0' ? record->world_layout : layout);
    weir_json_string(&json, "framework", "weir");
    weir_json_string(&json, "run", record->run);
    weir_json_string(&json, "layout_signature", record->layout_signature);
    if (registry != NULL && registry->in_manifest)
        weir_json_string(&json, "registry", "manifest");
    if (!weir_json_end(&json))
        return false;
    size_t n = json.n_used, room = WEIR_SIDECAR_HEAD_BYTES - n;
    if (registry != NULL && !registry->in_manifest)
        n += (size_t)snprintf(head + n, room, ",\"shape_registry\":\"{\\\"version\\\":%llu",
                              (unsigned long long)record->version);
    *out_n = n;
    return n + 2 <= WEIR_SIDECAR_HEAD_BYTES;
}

weir_status weir_sidecar_write(const weir_source_record *record, weir_sidecar_texts *out)
{
    size_t n = 0;
    if (!write_head(record, out->head, &n))
        return weir_fail(WEIR_ERR_INVALID, "the source's metadata does not fit");
    weir_sidecar_registry *registry = record->registry;
    if (registry != NULL && !registry->in_manifest) {
        char *json = registry->buffer + WEIR_SIDECAR_HEAD_BYTES - n;
        memcpy(json, out->head, n);
        out->json = json;
    } else {
        memcpy(out->head + n, "}", 2);
        out->json = out->head;
    }
    return write_weir(record, out);
}

/* ---- the registry ----------------------------------------------------------------------------*/

#define REGISTRY_BEGIN "{\"version\":0,"

static size_t escaped_bytes(const char *text)
{
    size_t n = 0;
    for (; *text != '\0'; text++)
        n += *text == '"' || *text == '\\' ? 2 : 1;
    return n;
}

static char *put_escaped(char *at, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            *at++ = '\\';
        *at++ = *text;
    }
    return at;
}

weir_status weir_sidecar_registry_set(weir_sidecar_registry *text, const char *registry)
{
    size_t begin_bytes = strlen(REGISTRY_BEGIN) - 1; /* the comma stays */
    text->in_manifest = true;
    if (registry == NULL)
        return WEIR_OK;
    if (strncmp(registry, REGISTRY_BEGIN, begin_bytes + 1) != 0)
        return weir_fail(WEIR_ERR_INVALID, "'%.40s' is no registry of version 0", registry);
    size_t n = escaped_bytes(registry + begin_bytes);
    if (n > WEIR_SIDECAR_REGISTRY_BYTES)
        return WEIR_OK;
    size_t n_bytes = WEIR_SIDECAR_HEAD_BYTES + n + sizeof("\"}");
    if (n_bytes > text->capacity_bytes) {
        char *larger = weir_realloc(text->buffer, n_bytes);
        if (larger == NULL)
            return WEIR_ERR_NO_MEMORY;
        text->buffer = larger;
        text->capacity_bytes = n_bytes;
    }
    char *end = put_escaped(text->buffer + WEIR_SIDECAR_HEAD_BYTES, registry + begin_bytes);
    memcpy(end, "\"}", sizeof("\"}"));
    text->n_bytes = n_bytes;
    text->in_manifest = false;
    return WEIR_OK;
}

void weir_sidecar_registry_free(weir_sidecar_registry *text)
{
    weir_free(text->buffer);
    *text = (weir_sidecar_registry){ .buffer = NULL };
}
