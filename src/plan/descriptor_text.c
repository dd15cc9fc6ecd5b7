/* SPDX-License-Identifier: Apache-2.0 */
/* descriptor_text.c - the two short texts of the registry: a set of expert ids, a world layout. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "weir/descriptor.h"

/* ---- sets of experts -------------------------------------------------------------------------*/

static int compare_ids(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static size_t sort_unique(uint32_t *ids, size_t n)
{
    size_t kept = 0;
    qsort(ids, n, sizeof(*ids), compare_ids);
    for (size_t i = 0; i < n; i++) {
        if (kept == 0 || ids[kept - 1] != ids[i])
            ids[kept++] = ids[i];
    }
    return kept;
}

weir_status weir_expert_set_format(const uint32_t *ids, size_t n_ids, char **out)
{
    const size_t id_bytes = sizeof(",4294967295") - 1;
    uint32_t *sorted = n_ids < SIZE_MAX / id_bytes ? weir_alloc_zeroed(n_ids, sizeof(*ids)) : NULL;
    char *text = sorted != NULL ? weir_alloc(n_ids * id_bytes + 1) : NULL;
    size_t used = 0;
    if (text == NULL) {
        weir_free(sorted);
        return WEIR_ERR_NO_MEMORY;
    }
    if (n_ids > 0)
        memcpy(sorted, ids, n_ids * sizeof(*ids));
    n_ids = sort_unique(sorted, n_ids);
    text[0] = '\0';
    for (size_t i = 0; i < n_ids; i++)
        used +=
            (size_t)snprintf(text + used, id_bytes + 1, "%s%" PRIu32, i > 0 ? "," : "", sorted[i]);
    weir_free(sorted);
    *out = text;
    return WEIR_OK;
}

/* Digits from `*at` on, which is moved behind them. */
static bool read_number(const char **at, uint32_t *out)
{
    uint64_t number = 0;
    const char *first = *at;
    for (; **at >= '0' && **at <= '9' && number <= UINT32_MAX; (*at)++)
        number = number * 10 + (uint64_t)(**at - '0');
    *out = (uint32_t)number;
    return *at != first && number <= UINT32_MAX;
}

static weir_status read_ids(const char *text, uint32_t *ids, size_t *out_n)
{
    const char *at = text;
    *out_n = 0;
    while (*at != '\0') {
        uint32_t id;
        const char *token = at;
        if (!read_number(&at, &id) || (*at != '\0' && *at != ',') || (*at == ',' && at[1] == '\0'))
            return weir_fail(WEIR_ERR_FORMAT,
                             "expert set: '%.40s': expected an id, then ',' or the end", token);
        ids[(*out_n)++] = id;
        at += *at == ',';
    }
    return WEIR_OK;
}

weir_status weir_expert_set_parse(const char *text, uint32_t *ids, size_t n_room, size_t *out_n)
{
    size_t n = strlen(text) / 2 + 1; /* the most that it can hold */
    uint32_t *all = weir_alloc_zeroed(n, sizeof(*all));
    if (all == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = read_ids(text, all, &n);
    if (status == WEIR_OK) {
        n = sort_unique(all, n);
        if (n > 0 && n_room > 0)
            memcpy(ids, all, (n < n_room ? n : n_room) * sizeof(*ids));
        *out_n = n;
    }
    weir_free(all);
    return status;
}

/* ---- world layouts ---------------------------------------------------------------------------*/

static uint32_t at_least_one(uint32_t n)
{
    return n > 0 ? n : 1;
}

const char *weir_world_layout_text(const weir_world_layout *layout, char *buffer,
                                   size_t buffer_bytes)
{
    snprintf(buffer, buffer_bytes, "fsdp:%" PRIu32 ",tp:%" PRIu32 ",pp:%" PRIu32 ",ep:%" PRIu32,
             at_least_one(layout->fsdp), at_least_one(layout->tp), at_least_one(layout->pp),
             at_least_one(layout->ep));
    return buffer;
}

typedef struct layout_key {
    const char *name;
    uint32_t *value;
} layout_key;

static weir_status read_token(const char **at, const layout_key *keys, size_t n_keys,
                              unsigned *seen)
{
    const char *token = *at;
    size_t n = strcspn(token, ",");
    const char *colon = memchr(token, ':', n), *end = colon != NULL ? colon + 1 : token;
    uint32_t number = 0;
    bool good = colon != NULL && colon != token && read_number(&end, &number) && end == token + n &&
                number > 0;
    for (size_t k = 0; good && k < n_keys; k++) {
        if (strlen(keys[k].name) != (size_t)(colon - token) ||
            strncmp(keys[k].name, token, (size_t)(colon - token)) != 0)
            continue;
        good = (*seen & 1u << k) == 0;
        *seen |= 1u << k;
        *keys[k].value = number;
    }
    if (!good || (token[n] == ',' && token[n + 1] == '\0'))
        return weir_fail(WEIR_ERR_FORMAT,
                         "world layout: '%.40s': expected KEY:NUMBER, each key once", token);
    *at = token[n] == ',' ? token + n + 1 : token + n;
    return WEIR_OK;
}

weir_status weir_world_layout_parse(const char *text, weir_world_layout *out)
{
    weir_world_layout layout = { 1, 1, 1, 1 };
    const layout_key keys[] = {
        { "fsdp", &layout.fsdp }, { "tp", &layout.tp }, { "pp", &layout.pp }, { "ep", &layout.ep }
    };
    unsigned seen = 0;
    while (*text != '\0') {
        weir_status status = read_token(&text, keys, sizeof(keys) / sizeof(keys[0]), &seen);
        if (status != WEIR_OK)
            return status;
    }
    *out = layout;
    return WEIR_OK;
}
