/* SPDX-License-Identifier: Apache-2.0 */
/* source_use.c - every source of a model, sorted by its name. */
#include "plan/source_use.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

static uint32_t experts_apart(const weir_fleet_tensor *t)
{
    return t->n_experts > 0 && !t->stacked ? t->n_experts : 1;
}

static int compare_uses(const void *a, const void *b)
{
    const weir_source_use *x = a, *y = b;
    int order = strcmp(x->source->name, y->source->name);
    if (order != 0)
        return order;
    if (x->tensor != y->tensor)
        return x->tensor < y->tensor ? -1 : 1;
    if (x->index != y->index)
        return x->index < y->index ? -1 : 1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

weir_status weir_source_uses_open(const weir_described_model *model, weir_source_uses *list)
{
    size_t n = 0;
    for (size_t i = 0; i < model->n_tensors; i++) {
        const weir_fleet_tensor *t = &model->tensors[i];
        const weir_map_entry *entry = &model->entries[i];
        size_t n_apart = t->n_experts > 0 && !t->stacked ? t->n_experts : 0;
        if (entry->n_sources != t->n_sources || entry->n_experts != n_apart)
            return weir_fail(WEIR_ERR_INVALID, "%s: the entry and the tensor are of two models",
                             t->name);
        n += (size_t)experts_apart(t) * t->n_sources;
    }
    list->uses = weir_alloc_zeroed(n, sizeof(list->uses[0]));
    if (list->uses == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (uint32_t i = 0; i < model->n_tensors; i++) {
        const weir_fleet_tensor *t = &model->tensors[i];
        for (uint32_t k = 0; k < experts_apart(t) * t->n_sources; k++)
            list->uses[list->n++] = (weir_source_use){ &model->entries[i].sources[k], i,
                                                       k % t->n_sources, k / t->n_sources };
    }
    qsort(list->uses, list->n, sizeof(list->uses[0]), compare_uses);
    return WEIR_OK;
}

const weir_source_use *weir_source_uses_find(const weir_source_uses *list, const char *name,
                                             size_t *out_n)
{
    size_t low = 0, high = list->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(list->uses[middle].source->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *out_n = 0;
    while (low + *out_n < list->n && strcmp(list->uses[low + *out_n].source->name, name) == 0)
        (*out_n)++;
    return list->uses + low;
}

void weir_source_uses_close(weir_source_uses *list)
{
    weir_free(list->uses);
}
