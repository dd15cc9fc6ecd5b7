/* SPDX-License-Identifier: Apache-2.0 */
/* config.c - config.json of a model: a jansson object behind an opaque pointer.
 *
 * A weir_config is the json_t itself, so a child is a cast and lives as long as its root. There is
 * no schema here: who reads a key decides what its absence means.
 */
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/error.h"
#include "checkpoint/file_map.h"
#include "checkpoint/json_load.h"
#include "weir/checkpoint.h"

static json_t *value_of(const weir_config *config, const char *key)
{
    return json_object_get((const json_t *)config, key); /* NULL for a NULL config too */
}

/* ---- opening ---------------------------------------------------------------------------------*/

static weir_status load_file(const char *path, weir_config **out)
{
    weir_file_map map;
    weir_status status = weir_file_map_open(path, &map);
    if (status != WEIR_OK)
        return status;
    json_t *root;
    status = weir_json_load(map.bytes, map.n_bytes, path, &root);
    if (status == WEIR_OK)
        *out = (weir_config *)root;
    weir_file_map_close(&map);
    return status;
}

weir_status weir_config_open(const char *path, weir_config **out)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return weir_fail_errno("%s", path);
    if (!S_ISDIR(info.st_mode))
        return load_file(path, out);
    char *file = weir_format("%s/config.json", path);
    if (file == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = load_file(file, out);
    weir_free(file);
    return status;
}

weir_status weir_config_parse(const char *text, const char *what, weir_config **out)
{
    json_t *root;
    weir_status status = weir_json_load(text, strlen(text), what, &root);
    if (status == WEIR_OK)
        *out = (weir_config *)root;
    return status;
}

void weir_config_close(weir_config *config)
{
    json_decref((json_t *)config);
}

/* ---- reading ---------------------------------------------------------------------------------*/

bool weir_config_has(const weir_config *config, const char *key)
{
    const json_t *value = value_of(config, key);
    return value != NULL && !json_is_null(value);
}

bool weir_config_int(const weir_config *config, const char *key, int64_t *out)
{
    const json_t *value = value_of(config, key);
    if (!json_is_integer(value))
        return false;
    *out = json_integer_value(value);
    return true;
}

bool weir_config_bool(const weir_config *config, const char *key, bool *out)
{
    const json_t *value = value_of(config, key);
    if (!json_is_boolean(value))
        return false;
    *out = json_is_true(value);
    return true;
}

bool weir_config_number(const weir_config *config, const char *key, double *out)
{
    const json_t *value = value_of(config, key);
    if (!json_is_number(value))
        return false;
    *out = json_number_value(value);
    return true;
}

const char *weir_config_string(const weir_config *config, const char *key)
{
    return json_string_value(value_of(config, key));
}

const weir_config *weir_config_object(const weir_config *config, const char *key)
{
    const json_t *value = value_of(config, key);
    return json_is_object(value) ? (const weir_config *)value : NULL;
}

int weir_config_ints(const weir_config *config, const char *key, int64_t *out, int n)
{
    const json_t *array = value_of(config, key);
    if (!json_is_array(array))
        return -1;
    size_t n_items = json_array_size(array);
    for (size_t i = 0; i < n_items; i++) {
        if (!json_is_integer(json_array_get(array, i)))
            return -1;
    }
    for (size_t i = 0; i < n_items && n > 0 && i < (size_t)n; i++)
        out[i] = json_integer_value(json_array_get(array, i));
    return (int)n_items; /* an array of more than INT_MAX items exceeds WEIR_JSON_MAX_BYTES */
}

const char *weir_config_string_at(const weir_config *config, const char *key, int index)
{
    const json_t *array = value_of(config, key);
    return index < 0 ? NULL : json_string_value(json_array_get(array, (size_t)index));
}

/* ---- text ------------------------------------------------------------------------------------*/

char *weir_config_text(const weir_config *config)
{
    const json_t *root = (const json_t *)config;
    size_t n_bytes = json_dumpb(root, NULL, 0, JSON_COMPACT);
    char *text = weir_alloc(n_bytes + 1);
    if (text == NULL)
        return NULL;
    json_dumpb(root, text, n_bytes, JSON_COMPACT);
    text[n_bytes] = '\0';
    return text;
}

void weir_string_free(char *text)
{
    weir_free(text);
}
