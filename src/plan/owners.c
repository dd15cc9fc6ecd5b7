/* SPDX-License-Identifier: Apache-2.0 */
/* owners.c - which trainer rank converts and publishes which entry. Every rank computes the same
 * answer from the same mapping; nobody has to tell it.
 */
#include <stdlib.h>

#include "base/alloc.h"
#include "base/error.h"
#include "weir/plan.h"

typedef struct weighed_entry {
    uint64_t n_bytes;
    size_t entry;
} weighed_entry;

static int compare_weights(const void *a, const void *b)
{
    const weighed_entry *x = a, *y = b;
    if (x->n_bytes != y->n_bytes)
        return x->n_bytes > y->n_bytes ? -1 : 1;
    return (x->entry > y->entry) - (x->entry < y->entry);
}

static weir_status weigh(const weir_mapping *mapping, weighed_entry *weights)
{
    size_t n_parameters, n_entries;
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n_entries);
    const weir_parameter *parameters = weir_mapping_parameters(mapping, &n_parameters);
    for (size_t i = 0; i < n_parameters; i++) {
        uint64_t n_bytes;
        if (parameters[i].entry == SIZE_MAX)
            continue;
        weir_status status = weir_tensor_bytes(parameters[i].dtype, &parameters[i].shape, &n_bytes);
        if (status != WEIR_OK)
            return status;
        weights[entries[parameters[i].entry].bundle].n_bytes += n_bytes;
    }
    return WEIR_OK;
}

weir_status weir_plan_owners(const weir_mapping *mapping, uint32_t n_ranks, uint32_t *owners)
{
    size_t n_entries;
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n_entries);
    if (n_ranks == 0)
        return weir_fail(WEIR_ERR_INVALID, "0 ranks cannot own anything");
    weighed_entry *weights = weir_alloc_zeroed(n_entries, sizeof(*weights));
    uint64_t *loads = weir_alloc_zeroed(n_ranks, sizeof(*loads));
    weir_status status =
        weights != NULL && loads != NULL ? weigh(mapping, weights) : WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_entries && status == WEIR_OK; i++)
        weights[i].entry = i;
    if (status == WEIR_OK)
        qsort(weights, n_entries, sizeof(*weights), compare_weights);
    for (size_t i = 0; i < n_entries && status == WEIR_OK; i++) {
        uint32_t rank = 0;
        if (entries[weights[i].entry].bundle != weights[i].entry)
            continue;
        for (uint32_t r = 1; r < n_ranks; r++) {
            if (loads[r] < loads[rank])
                rank = r;
        }
        loads[rank] += weights[i].n_bytes;
        owners[weights[i].entry] = rank;
    }
    for (size_t i = 0; i < n_entries && status == WEIR_OK; i++)
        owners[i] = owners[entries[i].bundle];
    weir_free(loads);
    weir_free(weights);
    return status;
}
