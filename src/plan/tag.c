/* SPDX-License-Identifier: Apache-2.0 */
/* tag.c - compile metadata is JSON from outside: parsed only when the two texts differ. */
#include "plan/tag.h"

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define VALUE_TEXT 96

/* Compact JSON of a value, cut short if need be; "missing" for NULL. */
static const char *value_text(const json_t *value, char buffer[VALUE_TEXT])
{
    if (value == NULL)
        return "missing";
    size_t n =
        json_dumpb(value, buffer, VALUE_TEXT - 1, JSON_COMPACT | JSON_ENCODE_ANY | JSON_SORT_KEYS);
    buffer[n < VALUE_TEXT ? n : VALUE_TEXT - 1] = '\0';
    return n > 0 ? buffer : "?";
}

static bool keys_equal(const json_t *published, const json_t *wanted, const char *worker,
                       char difference[WEIR_TAG_TEXT])
{
    char got[VALUE_TEXT], want[VALUE_TEXT];
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)wanted, key, value)
    {
        const json_t *other = json_object_get(published, key);
        if (other != NULL && json_equal(other, value))
            continue;
        snprintf(difference, WEIR_TAG_TEXT, "%.64s is %s at %.128s, this replica needs %s", key,
                 value_text(other, got), worker, value_text(value, want));
        return false;
    }
    json_object_foreach((json_t *)(uintptr_t)published, key, value)
    {
        if (json_object_get(wanted, key) != NULL)
            continue;
        snprintf(difference, WEIR_TAG_TEXT, "%.64s is %s at %.128s, this replica knows no such key",
                 key, value_text(value, got), worker);
        return false;
    }
    return true;
}

bool weir_tag_metadata_equal(const char *published, const char *wanted, const char *worker,
                             char difference[WEIR_TAG_TEXT])
{
    if (strcmp(published, wanted) == 0)
        return true;
    json_t *a = json_loads(published, JSON_REJECT_DUPLICATES, NULL);
    json_t *b = json_loads(wanted, JSON_REJECT_DUPLICATES, NULL);
    bool equal = false;
    if (json_is_object(a) && json_is_object(b))
        equal = keys_equal(a, b, worker, difference);
    else
        snprintf(difference, WEIR_TAG_TEXT, "is %.96s at %.128s, this replica needs %.96s",
                 published, worker, wanted);
    json_decref(a);
    json_decref(b);
    return equal;
}
