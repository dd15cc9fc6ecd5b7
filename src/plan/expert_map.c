/* SPDX-License-Identifier: Apache-2.0 */
/* expert_map.c - expert maps as JSON text: who has which expert. What a map means for a tensor is
 * checked with the tensors (fleet.c, holding.c).
 */
#include <jansson.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "plan/fleet.h"

#define MAX_TEXT_BYTES (16u << 20)
#define MAX_SLOTS (1u << 20) /* of all expert ranks */

static weir_status read_array(const char *what, const char *text, json_t **out)
{
    json_error_t error;
    if (text == NULL || strnlen(text, MAX_TEXT_BYTES + 1) > MAX_TEXT_BYTES)
        return weir_fail(WEIR_ERR_INVALID, "%s: no text, or more than %u bytes", what,
                         MAX_TEXT_BYTES);
    json_t *array = json_loads(text, 0, &error);
    if (array == NULL)
        return weir_fail(WEIR_ERR_INVALID, "%s: no JSON: %s (line %d, column %d)", what, error.text,
                         error.line, error.column);
    if (!json_is_array(array) || json_array_size(array) == 0) {
        json_decref(array);
        return weir_fail(WEIR_ERR_INVALID, "%s: expected a JSON array with something in it", what);
    }
    *out = array;
    return WEIR_OK;
}

static bool read_number(const json_t *value, uint32_t end, uint32_t *out)
{
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < 0 || number >= (json_int_t)end)
        return false;
    *out = (uint32_t)number;
    return true;
}

/* ---- of a replica ----------------------------------------------------------------------------*/

static weir_status count_slots(const json_t *ranks, uint32_t ep, size_t *out)
{
    size_t n = 0;
    if (json_array_size(ranks) != ep)
        return weir_fail(WEIR_ERR_INVALID, "expert map: %zu expert ranks, the mesh has ep=%u",
                         json_array_size(ranks), ep);
    for (size_t r = 0; r < ep; r++) {
        const json_t *ids = json_array_get(ranks, r);
        if (!json_is_array(ids))
            return weir_fail(WEIR_ERR_INVALID,
                             "expert map: expert rank %zu: expected an array of expert ids", r);
        n += json_array_size(ids);
        if (n > MAX_SLOTS)
            return weir_fail(WEIR_ERR_INVALID, "expert map: more than %u experts", MAX_SLOTS);
    }
    if (n == 0)
        return weir_fail(WEIR_ERR_INVALID, "expert map: no expert rank holds an expert");
    *out = n;
    return WEIR_OK;
}

/* The ids, and behind them where each rank's begin. */
static weir_status fill_slots(const json_t *ranks, uint32_t *ids, uint32_t *first)
{
    uint32_t n = 0;
    size_t ep = json_array_size(ranks);
    for (size_t r = 0; r < ep; r++) {
        const json_t *given = json_array_get(ranks, r);
        first[r] = n;
        for (size_t i = 0; i < json_array_size(given); i++) {
            if (!read_number(json_array_get(given, i), WEIR_MESH_MAX_RANKS, &ids[n++]))
                return weir_fail(WEIR_ERR_INVALID,
                                 "expert map: expert rank %zu, slot %zu: expected an expert's "
                                 "number below %u",
                                 r, i, WEIR_MESH_MAX_RANKS);
        }
    }
    first[ep] = n;
    return WEIR_OK;
}

weir_status weir_replica_mesh_set_experts(weir_replica_mesh *mesh, const char *json)
{
    json_t *ranks;
    size_t n = 0;
    uint32_t ep = mesh->ep > 0 ? mesh->ep : 1, *map = NULL;
    weir_status status = read_array("expert map", json, &ranks);
    if (status != WEIR_OK)
        return status;
    status = count_slots(ranks, ep, &n);
    if (status == WEIR_OK) {
        map = weir_alloc_zeroed(n + ep + 1, sizeof(*map));
        status = map != NULL ? fill_slots(ranks, map, map + n) : WEIR_ERR_NO_MEMORY;
    }
    json_decref(ranks);
    if (status != WEIR_OK) {
        weir_free(map);
        return status;
    }
    mesh->expert_ids = map;
    mesh->expert_first = map + n;
    return WEIR_OK;
}

/* ---- of a trainer ----------------------------------------------------------------------------*/

weir_status weir_trainer_mesh_set_owners(weir_trainer_mesh *mesh, const char *json)
{
    json_t *owners;
    uint32_t ep = mesh->ep > 0 ? mesh->ep : 1;
    weir_status status = read_array("owner map", json, &owners);
    if (status != WEIR_OK)
        return status;
    size_t n = json_array_size(owners);
    if (n >= WEIR_MESH_MAX_RANKS) {
        json_decref(owners);
        return weir_fail(WEIR_ERR_INVALID, "owner map: more than %u experts",
                         WEIR_MESH_MAX_RANKS - 1);
    }
    uint32_t *map = weir_alloc_zeroed(n, sizeof(*map));
    status = map != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        if (!read_number(json_array_get(owners, i), ep, &map[i]))
            status = weir_fail(WEIR_ERR_INVALID,
                               "owner map: expert %zu: expected an expert rank below ep=%u", i, ep);
    }
    json_decref(owners);
    if (status != WEIR_OK) {
        weir_free(map);
        return status;
    }
    mesh->expert_owners = map;
    mesh->n_expert_owners = (uint32_t)n;
    return WEIR_OK;
}

/* ---- maps that say what none says ------------------------------------------------------------*/

bool weir_experts_are_contiguous(const weir_replica_mesh *mesh)
{
    const uint32_t *first = mesh->expert_first;
    uint32_t ep = mesh->ep > 0 ? mesh->ep : 1, n_experts;
    if (mesh->expert_ids == NULL || first == NULL)
        return true;
    n_experts = first[ep];
    for (uint32_t e = 0; e < ep; e++) {
        uint32_t lo, hi;
        weir_slice_experts(n_experts, ep, e, &lo, &hi);
        if (first[e] != lo || first[e + 1] != hi)
            return false;
    }
    for (uint32_t i = 0; i < n_experts; i++) {
        if (mesh->expert_ids[i] != i)
            return false;
    }
    return true;
}

bool weir_owners_are_contiguous(const weir_trainer_mesh *mesh)
{
    uint32_t n = mesh->n_expert_owners, ep = mesh->ep > 0 ? mesh->ep : 1;
    uint32_t chunk = n / ep + (n % ep != 0);
    for (uint32_t x = 0; x < n && mesh->expert_owners != NULL; x++) {
        if (mesh->expert_owners[x] != x / chunk)
            return false;
    }
    return true;
}

void weir_expert_map_free(const uint32_t *map)
{
    weir_free((void *)map);
}
