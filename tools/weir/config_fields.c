/* SPDX-License-Identifier: Apache-2.0 */
/* config_fields.c - walking the run configuration's fields. */
#include "config_fields.h"

#include <stdio.h>
#include <string.h>

size_t weir_cli_run_fields(weir_run_field fields[WEIR_CLI_MAX_RUN_FIELDS])
{
    size_t n_fields = weir_run_fields(fields, WEIR_CLI_MAX_RUN_FIELDS);
    return n_fields < WEIR_CLI_MAX_RUN_FIELDS ? n_fields : WEIR_CLI_MAX_RUN_FIELDS;
}

const char *weir_cli_run_key(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot != NULL ? dot + 1 : path;
}

static json_t *child_of(json_t *object, const char *key)
{
    json_t *child = json_object_get(object, key);
    if (child != NULL)
        return child;
    child = json_object();
    json_object_set_new(object, key, child);
    return child;
}

json_t *weir_cli_run_block(json_t *whole, const char *path, const char *inside)
{
    json_t *block = inside != NULL ? child_of(whole, inside) : whole;
    for (const char *dot; (dot = strchr(path, '.')) != NULL; path = dot + 1) {
        char key[64];
        snprintf(key, sizeof(key), "%.*s", (int)(dot - path), path);
        block = child_of(block, key);
        if (inside != NULL)
            block = child_of(block, inside);
    }
    return block;
}
