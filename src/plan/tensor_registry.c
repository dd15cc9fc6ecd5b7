/* SPDX-License-Identifier: Apache-2.0 */
/* tensor_registry.c - owning registries, and the first things to ask of them. */
#include "plan/tensor_registry.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

weir_owned_registry *weir_owned_registry_open(void)
{
    weir_owned_registry *owned = weir_alloc_zeroed(1, sizeof(*owned));
    if (owned != NULL) {
        weir_arena_init(&owned->arena, 0);
        owned->registry.world = (weir_world_layout){ 1, 1, 1, 1 };
    }
    return owned;
}

void weir_tensor_registry_close(weir_tensor_registry *registry)
{
    weir_owned_registry *owned = (weir_owned_registry *)registry;
    if (owned == NULL)
        return;
    weir_arena_close(&owned->arena);
    weir_free(owned);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

weir_status weir_tensor_registry_check_names(const weir_tensor_registry *registry,
                                             weir_status blame)
{
    size_t n = registry->n_tensors;
    const char **names = weir_alloc_zeroed(n, sizeof(*names));
    weir_status status = WEIR_OK;
    if (names == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++)
        names[i] = registry->tensors[i].name != NULL ? registry->tensors[i].name : "";
    qsort(names, n, sizeof(*names), compare_names);
    for (size_t i = 1; i < n && status == WEIR_OK; i++) {
        if (strcmp(names[i - 1], names[i]) == 0)
            status = weir_fail(blame, "registry: tensor '%.255s' is there twice", names[i]);
    }
    weir_free(names);
    return status;
}

weir_status weir_publishers_check_version(const weir_publisher *a, const weir_publisher *b)
{
    if (a->registry->version == b->registry->version)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_LAYOUT,
                     "mixed versions: rank %u (worker %s) publishes version %" PRIu64
                     ", rank %u (worker %s) version %" PRIu64,
                     a->rank, a->worker, a->registry->version, b->rank, b->worker,
                     b->registry->version);
}
