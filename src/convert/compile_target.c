/* SPDX-License-Identifier: Apache-2.0 */
/* compile_target.c - whether bytes that were made for one reader suit another. */
#include <jansson.h>
#include <string.h>

#include "weir/convert.h"

static bool target_allowed(const char *target, const char *const *allowed, size_t n_allowed)
{
    for (size_t i = 0; i < n_allowed; i++) {
        if (strcmp(target, allowed[i]) == 0)
            return true;
    }
    return false;
}

static bool has_all(const json_t *have, json_t *required)
{
    const char *key;
    json_t *value;
    if (!json_is_object(have) || !json_is_object(required))
        return false;
    json_object_foreach(required, key, value)
    {
        json_t *found = json_object_get(have, key);
        if (found == NULL || !json_equal(found, value))
            return false;
    }
    return true;
}

bool weir_compile_target_matches(const char *target, const char *metadata,
                                 const char *const *allowed_targets, size_t n_allowed,
                                 const char *required_metadata)
{
    if (allowed_targets != NULL &&
        (target == NULL || !target_allowed(target, allowed_targets, n_allowed)))
        return false;
    if (required_metadata == NULL)
        return true;
    json_t *have = metadata != NULL ? json_loads(metadata, JSON_REJECT_DUPLICATES, NULL) : NULL;
    json_t *required = json_loads(required_metadata, JSON_REJECT_DUPLICATES, NULL);
    bool matches = has_all(have, required);
    json_decref(have);
    json_decref(required);
    return matches;
}
