/* SPDX-License-Identifier: Apache-2.0 */
/* json_load.c - jansson's parser with Weir's limits and error lines. */
#include "checkpoint/json_load.h"

#include "base/error.h"

weir_status weir_json_load(const void *text, size_t n_bytes, const char *what, json_t **out)
{
    if (n_bytes > WEIR_JSON_MAX_BYTES)
        return weir_fail(WEIR_ERR_FORMAT, "%s: %zu bytes of JSON, at most %u are taken", what,
                         n_bytes, WEIR_JSON_MAX_BYTES);
    json_error_t error;
    json_t *root = json_loadb(n_bytes > 0 ? text : "", n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL && json_error_code(&error) == json_error_out_of_memory)
        return weir_fail(WEIR_ERR_NO_MEMORY, "%s: out of memory for its JSON", what);
    if (root == NULL)
        return weir_fail(WEIR_ERR_FORMAT, "%s: line %d column %d: %s", what, error.line,
                         error.column, error.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return weir_fail(WEIR_ERR_FORMAT, "%s: expected a JSON object, got an array", what);
    }
    *out = root;
    return WEIR_OK;
}
