/* SPDX-License-Identifier: Apache-2.0 */
/* descriptor_json.c - descriptors and registries as the JSON that travels: written with the keys in
 * one order, read with every bound checked. Whether what was read makes sense is not asked here.
 */
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "plan/tensor_registry.h"

#define MAX_TEXT_BYTES ((size_t)32 << 20) /* twice the largest models, one tensor per expert */
#define MAX_EXPERT_IDS UINT16_MAX
#define TORCH_PREFIX "torch."

/* ---- writing ---------------------------------------------------------------------------------*/

/* Takes `value`, which may be NULL when memory ran out. */
static bool put(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value) == 0;
}

static json_t *array_of(const uint64_t *numbers, size_t n)
{
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++) {
        if (json_array_append_new(array, json_integer((json_int_t)numbers[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *array_of_ids(const uint32_t *ids, size_t n)
{
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++) {
        if (json_array_append_new(array, json_integer(ids[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *array_of_box(const weir_box *box)
{
    json_t *array = json_array();
    for (uint32_t a = 0; a < box->rank; a++) {
        const uint64_t range[] = { box->lo[a], box->hi[a] };
        if (json_array_append_new(array, array_of(range, 2)) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static bool put_tags(json_t *object, const weir_tensor_descriptor *d, json_t *metadata)
{
    const char *target = d->compile_target;
    bool good = true;
    if (target != NULL && strcmp(target, WEIR_TARGET_HF_RAW) != 0)
        good = put(object, "compile_target", json_string(target));
    if (json_object_size(metadata) > 0)
        good = good && json_object_set(object, "compile_metadata", metadata) == 0;
    return good;
}

/* NULL: memory ran out, or a text is no UTF-8. */
static json_t *object_of(const weir_tensor_descriptor *d, json_t *metadata)
{
    json_t *object = json_object();
    const uint64_t range[] = { d->range_lo, d->range_hi };
    bool good = put(object, "name", json_string(d->name)) &&
                put(object, "global_shape", array_of(d->global_shape.dim, d->global_shape.rank)) &&
                put(object, "dtype", json_string(d->dtype)) &&
                put(object, "placement_kind", json_string(weir_placement_name(d->placement))) &&
                put(object, "shard_axis", json_integer(d->shard_axis));
    if (d->has_range)
        good = good && put(object, "local_shard_range", array_of(range, 2));
    if (d->placement == WEIR_PLACEMENT_BOX)
        good = good && put(object, "box", array_of_box(&d->box));
    if (d->is_expert)
        good = good && put(object, "is_expert", json_true()) &&
               put(object, "expert_axis", json_integer(d->expert_axis)) &&
               put(object, "owned_expert_ids", array_of_ids(d->expert_ids, d->n_expert_ids));
    if (good && put_tags(object, d, metadata))
        return object;
    json_decref(object);
    return NULL;
}

static weir_status encode(const weir_tensor_descriptor *d, json_t **out)
{
    weir_status status = weir_tensor_descriptor_check(d);
    if (status != WEIR_OK)
        return status;
    for (uint32_t a = 0; a < d->global_shape.rank; a++) {
        if (d->global_shape.dim[a] > INT64_MAX)
            return weir_fail(WEIR_ERR_INVALID, "%s: global_shape[%u] does not fit 63 bits", d->name,
                             a);
    }
    const char *text = d->compile_metadata != NULL ? d->compile_metadata : "{}";
    json_t *metadata = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    *out = NULL;
    if (json_is_object(metadata))
        *out = object_of(d, metadata);
    if (*out == NULL)
        status = weir_fail(WEIR_ERR_INVALID,
                           "%s: compile metadata %.80s is no JSON object, or a text no UTF-8",
                           d->name, text);
    json_decref(metadata);
    return status;
}

/* Compact, ASCII alone, in the order in which members were put. */
static weir_status dump(const json_t *root, char **out)
{
    const size_t flags = JSON_COMPACT | JSON_ENSURE_ASCII;
    size_t n = json_dumpb(root, NULL, 0, flags);
    char *text = n > 0 && n <= MAX_TEXT_BYTES ? weir_alloc(n + 1) : NULL;
    if (n > MAX_TEXT_BYTES)
        return weir_fail(WEIR_ERR_INVALID, "a registry of %zu bytes, at most %zu are taken", n,
                         MAX_TEXT_BYTES);
    if (text == NULL)
        return WEIR_ERR_NO_MEMORY;
    text[json_dumpb(root, text, n, flags)] = '\0';
    *out = text;
    return WEIR_OK;
}

weir_status weir_tensor_descriptor_encode(const weir_tensor_descriptor *descriptor, char **out)
{
    json_t *object;
    weir_status status = encode(descriptor, &object);
    if (status != WEIR_OK)
        return status;
    status = dump(object, out);
    json_decref(object);
    return status;
}

weir_status weir_tensor_registry_encode(const weir_tensor_registry *registry, char **out)
{
    char layout[WEIR_WORLD_LAYOUT_TEXT];
    if (registry->version > INT64_MAX)
        return weir_fail(WEIR_ERR_INVALID, "registry: version %" PRIu64 " does not fit 63 bits",
                         registry->version);
    weir_status status = weir_tensor_registry_check_names(registry, WEIR_ERR_INVALID);
    if (status != WEIR_OK)
        return status;
    json_t *root = json_object(), *tensors = json_array();
    weir_world_layout_text(&registry->world, layout, sizeof(layout));
    bool good = put(root, "version", json_integer((json_int_t)registry->version)) &&
                put(root, "trainer_world_layout", json_string(layout)) &&
                json_object_set(root, "tensors", tensors) == 0;
    for (size_t i = 0; i < registry->n_tensors && good && status == WEIR_OK; i++) {
        json_t *object = NULL;
        status = encode(&registry->tensors[i], &object);
        good = status != WEIR_OK || json_array_append_new(tensors, object) == 0;
    }
    if (status == WEIR_OK)
        status = good ? dump(root, out) : weir_fail(WEIR_ERR_NO_MEMORY, "registry: out of memory");
    json_decref(tensors);
    json_decref(root);
    return status;
}

/* ---- reading ---------------------------------------------------------------------------------*/

/* What is being read, for errors. */
typedef struct reader {
    weir_arena *arena;
    size_t index;
    const char *name; /* "" until it is known */
} reader;

static weir_status refuse(const reader *r, const char *key, const char *expected)
{
    return weir_fail(WEIR_ERR_FORMAT, "registry: tensor %zu '%.100s': %s is not %s", r->index,
                     r->name, key, expected);
}

/* null counts as left out. */
static const json_t *member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static bool read_u64(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static bool read_u64s(const json_t *array, uint64_t *out, size_t n)
{
    bool good = json_is_array(array) && json_array_size(array) == n;
    for (size_t i = 0; good && i < n; i++)
        good = read_u64(json_array_get(array, i), &out[i]);
    return good;
}

static weir_status read_text(reader *r, const json_t *object, const char *key, const char *or_else,
                             const char **out)
{
    const json_t *value = member(object, key);
    if (value == NULL && or_else != NULL) {
        *out = or_else;
        return WEIR_OK;
    }
    if (!json_is_string(value) || json_string_length(value) == 0 || json_string_length(value) > 255)
        return refuse(r, key, "a text of 1 to 255 bytes");
    *out = weir_arena_strdup(r->arena, json_string_value(value));
    return *out != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static weir_status read_axis(const reader *r, const json_t *object, const char *key, uint32_t *out)
{
    const json_t *value = member(object, key);
    uint64_t axis = 0;
    if (value != NULL && (!read_u64(value, &axis) || axis >= WEIR_MAX_RANK))
        return refuse(r, key, "an axis from 0 to 7");
    *out = (uint32_t)axis;
    return WEIR_OK;
}

static weir_status read_shape(const reader *r, const json_t *object, weir_shape *out)
{
    const json_t *value = member(object, "global_shape");
    size_t rank = json_array_size(value);
    if (rank > WEIR_MAX_RANK || !read_u64s(value, out->dim, rank))
        return refuse(r, "global_shape", "a list of at most 8 extents");
    out->rank = (uint32_t)rank;
    return WEIR_OK;
}

static weir_status read_box(const reader *r, const json_t *object, weir_box *out)
{
    const json_t *value = member(object, "box");
    size_t rank = json_array_size(value);
    bool good = json_is_array(value) && rank <= WEIR_MAX_RANK;
    for (size_t a = 0; good && a < rank; a++) {
        uint64_t range[2];
        good = read_u64s(json_array_get(value, a), range, 2);
        if (good) {
            out->lo[a] = range[0];
            out->hi[a] = range[1];
        }
    }
    out->rank = (uint32_t)rank;
    return good ? WEIR_OK : refuse(r, "box", "a list of at most 8 ranges");
}

static weir_status read_placement(const reader *r, const json_t *object, weir_tensor_descriptor *d)
{
    const json_t *kind = member(object, "placement_kind");
    const json_t *range = member(object, "local_shard_range");
    uint64_t ends[2];
    bool known = kind == NULL;
    for (int k = WEIR_PLACEMENT_REPLICATE; json_is_string(kind) && k <= WEIR_PLACEMENT_BOX; k++) {
        if (strcmp(json_string_value(kind), weir_placement_name((weir_placement)k)) != 0)
            continue;
        d->placement = (weir_placement)k;
        known = true;
    }
    if (!known)
        return refuse(r, "placement_kind", "REPLICATE, SHARD, PARTIAL or BOX");
    if (range != NULL) {
        if (!read_u64s(range, ends, 2))
            return refuse(r, "local_shard_range", "two numbers");
        d->has_range = true;
        d->range_lo = ends[0];
        d->range_hi = ends[1];
    }
    return d->placement == WEIR_PLACEMENT_BOX ? read_box(r, object, &d->box) : WEIR_OK;
}

static weir_status read_experts(const reader *r, const json_t *object, weir_tensor_descriptor *d)
{
    const json_t *is_expert = member(object, "is_expert");
    const json_t *ids = member(object, "owned_expert_ids");
    size_t n = json_array_size(ids);
    if (is_expert != NULL && !json_is_boolean(is_expert))
        return refuse(r, "is_expert", "true or false");
    d->is_expert = json_is_true(is_expert);
    if (!d->is_expert)
        return WEIR_OK; /* the other two then say nothing */
    if (ids != NULL && (!json_is_array(ids) || n > MAX_EXPERT_IDS))
        return refuse(r, "owned_expert_ids", "a list of at most 65535 ids");
    uint32_t *list = weir_arena_zeroed(r->arena, n, sizeof(*list));
    if (list == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        uint64_t id;
        if (!read_u64(json_array_get(ids, i), &id) || id > UINT32_MAX)
            return refuse(r, "owned_expert_ids", "a list of ids");
        list[i] = (uint32_t)id;
    }
    d->expert_ids = list;
    d->n_expert_ids = n;
    return read_axis(r, object, "expert_axis", &d->expert_axis);
}

static weir_status read_metadata(const reader *r, const json_t *object, const char **out)
{
    const json_t *value = member(object, "compile_metadata");
    *out = "{}";
    if (value == NULL)
        return WEIR_OK;
    if (!json_is_object(value))
        return refuse(r, "compile_metadata", "an object");
    size_t n = json_dumpb(value, NULL, 0, JSON_COMPACT);
    char *text = weir_arena_alloc(r->arena, n + 1);
    if (text == NULL)
        return WEIR_ERR_NO_MEMORY;
    text[json_dumpb(value, text, n, JSON_COMPACT)] = '\0';
    *out = text;
    return WEIR_OK;
}

static weir_status read_descriptor(weir_arena *arena, const json_t *object, size_t index,
                                   weir_tensor_descriptor *d)
{
    reader r = { arena, index, "" };
    weir_status status = read_text(&r, object, "name", NULL, &d->name);
    if (status != WEIR_OK)
        return status;
    r.name = d->name;
    status = read_shape(&r, object, &d->global_shape);
    if (status == WEIR_OK)
        status = read_text(&r, object, "dtype", NULL, &d->dtype);
    if (status == WEIR_OK)
        status = read_axis(&r, object, "shard_axis", &d->shard_axis);
    if (status == WEIR_OK)
        status = read_placement(&r, object, d);
    if (status == WEIR_OK)
        status = read_experts(&r, object, d);
    if (status == WEIR_OK)
        status = read_text(&r, object, "compile_target", WEIR_TARGET_HF_RAW, &d->compile_target);
    if (status == WEIR_OK)
        status = read_metadata(&r, object, &d->compile_metadata);
    if (status == WEIR_OK && strncmp(d->dtype, TORCH_PREFIX, strlen(TORCH_PREFIX)) == 0)
        d->dtype += strlen(TORCH_PREFIX);
    if (status == WEIR_OK && strncmp(d->dtype, TORCH_PREFIX, strlen(TORCH_PREFIX)) == 0)
        status = weir_fail(WEIR_ERR_FORMAT, "registry: %s: dtype '" TORCH_PREFIX "%.64s' is none",
                           d->name, d->dtype);
    return status;
}

/* `tensors` is a list of descriptors, or one. */
static weir_status read_tensors(weir_owned_registry *owned, const json_t *tensors)
{
    bool is_list = json_is_array(tensors);
    size_t n = is_list ? json_array_size(tensors) : 1;
    /* Before memory is taken for each: a text of commas and braces must not ask for gigabytes. */
    for (size_t i = 0; i < n; i++) {
        if (json_object_size(is_list ? json_array_get(tensors, i) : tensors) < 3)
            return weir_fail(WEIR_ERR_FORMAT,
                             "registry: tensor %zu is no object with name, global_shape and dtype",
                             i);
    }
    weir_tensor_descriptor *list = weir_arena_zeroed(&owned->arena, n, sizeof(*list));
    weir_status status = list != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n && status == WEIR_OK; i++)
        status = read_descriptor(&owned->arena, is_list ? json_array_get(tensors, i) : tensors, i,
                                 &list[i]);
    owned->registry.tensors = list;
    owned->registry.n_tensors = n;
    return status == WEIR_OK ? weir_tensor_registry_check_names(&owned->registry, WEIR_ERR_FORMAT)
                             : status;
}

static weir_status read_registry(weir_owned_registry *owned, const json_t *root)
{
    const json_t *layout = member(root, "trainer_world_layout"), *tensors = member(root, "tensors");
    if (!json_is_object(root) || !read_u64(member(root, "version"), &owned->registry.version))
        return weir_fail(WEIR_ERR_FORMAT, "registry: no version");
    if (layout != NULL && !json_is_string(layout))
        return weir_fail(WEIR_ERR_FORMAT, "registry: trainer_world_layout is not a text");
    if (!json_is_array(tensors))
        return weir_fail(WEIR_ERR_FORMAT, "registry: tensors is not a list");
    weir_status status = weir_world_layout_parse(layout != NULL ? json_string_value(layout) : "",
                                                 &owned->registry.world);
    return status == WEIR_OK ? read_tensors(owned, tensors) : status;
}

static weir_status load(const char *text, size_t n_bytes, json_t **out)
{
    json_error_t error;
    if (n_bytes > MAX_TEXT_BYTES)
        return weir_fail(WEIR_ERR_FORMAT, "registry: %zu bytes, at most %zu are taken", n_bytes,
                         MAX_TEXT_BYTES);
    *out = json_loadb(n_bytes > 0 ? text : "", n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (*out == NULL)
        return weir_fail(WEIR_ERR_FORMAT, "registry: line %d column %d: %s", error.line,
                         error.column, error.text);
    return WEIR_OK;
}

static weir_status decode(const char *text, size_t n_bytes,
                          weir_status (*read)(weir_owned_registry *, const json_t *),
                          weir_tensor_registry **out)
{
    json_t *root = NULL;
    weir_owned_registry *owned = weir_owned_registry_open();
    if (owned == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = load(text, n_bytes, &root);
    if (status == WEIR_OK)
        status = read(owned, root);
    json_decref(root);
    if (status != WEIR_OK) {
        weir_tensor_registry_close(&owned->registry);
        return status;
    }
    *out = &owned->registry;
    return WEIR_OK;
}

weir_status weir_tensor_registry_decode(const char *text, size_t n_bytes,
                                        weir_tensor_registry **out)
{
    return decode(text, n_bytes, read_registry, out);
}

static weir_status read_alone(weir_owned_registry *owned, const json_t *root)
{
    if (!json_is_object(root))
        return weir_fail(WEIR_ERR_FORMAT, "registry: a descriptor is an object");
    return read_tensors(owned, root);
}

weir_status weir_tensor_descriptor_decode(const char *text, size_t n_bytes,
                                          weir_tensor_registry **out)
{
    return decode(text, n_bytes, read_alone, out);
}
