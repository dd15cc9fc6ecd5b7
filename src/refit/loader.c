/* SPDX-License-Identifier: Apache-2.0 */
/* loader.c - a checkpoint loader's buffers, and one refit through them.
 *
 * Groups are converted in their order, each once all of it has landed. A buffer is the next group's
 * but one as soon as that is done: who brings the bytes asks first.
 */
#include "refit/loader.h"

#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

/* ---- open and close --------------------------------------------------------------------------*/

weir_status weir_loader_open(const weir_loader_options *options, weir_loader **out)
{
    weir_loader *loader = weir_alloc_zeroed(1, sizeof(*loader));
    if (loader == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_arena_init(&loader->arena, 0);
    weir_status status = weir_loader_plan(loader, options);
    if (status != WEIR_OK) {
        weir_loader_close(loader);
        return status;
    }
    *out = loader;
    return WEIR_OK;
}

void weir_loader_close(weir_loader *loader)
{
    if (loader == NULL)
        return;
    for (uint32_t g = 0; g < loader->n_groups && loader->tasks != NULL; g++)
        weir_task_close(loader->tasks[g]);
    for (unsigned b = 0; b < WEIR_LOADER_BUFFERS && loader->work != NULL; b++)
        weir_work_free(loader->work, loader->buffers[b], loader->buffer_bytes);
    weir_mapping_close(loader->checkpoint);
    weir_mapping_close(loader->engine);
    weir_family_sources_free(loader->described);
    weir_arena_close(&loader->arena);
    weir_free(loader);
}

unsigned char *weir_loader_at(const weir_loader *loader, uint32_t tensor)
{
    const weir_loader_tensor *at = &loader->tensors[tensor];
    return loader->buffers[at->group % WEIR_LOADER_BUFFERS] + at->at;
}

static weir_status open_tasks(weir_loader *loader)
{
    weir_status status = WEIR_OK;
    if (loader->tasks == NULL)
        loader->tasks = weir_arena_zeroed(&loader->arena, loader->n_groups, sizeof(*loader->tasks));
    if (loader->tasks == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (uint32_t g = 0; g < loader->n_groups && status == WEIR_OK; g++) {
        if (loader->tasks[g] == NULL)
            status = weir_task_open(loader->work, &loader->tasks[g]);
    }
    return status;
}

weir_status weir_loader_reserve(weir_loader *loader, weir_work *work, bool *out_taken)
{
    weir_status status = WEIR_OK;
    void *memory;
    *out_taken = !loader->is_reserved;
    if (loader->is_reserved)
        return WEIR_OK;
    loader->work = work;
    for (unsigned b = 0; b < WEIR_LOADER_BUFFERS && status == WEIR_OK; b++) {
        if (loader->buffers[b] != NULL)
            continue;
        status = weir_work_allocate(work, loader->buffer_bytes, &memory);
        if (status == WEIR_OK)
            loader->buffers[b] = memory;
    }
    if (status == WEIR_OK)
        status = open_tasks(loader);
    if (status != WEIR_OK) {
        weir_error_prefix("the two buffers of a checkpoint loader, of %" PRIu64 " bytes each",
                          loader->buffer_bytes);
        return status;
    }
    for (size_t v = 0; v < loader->n_views; v++)
        loader->views[v].data =
            weir_loader_at(loader, loader->places[v].tensor) + loader->places[v].offset;
    loader->is_reserved = true;
    return WEIR_OK;
}

/* ---- one refit -------------------------------------------------------------------------------*/

void weir_loader_begin(weir_loader *loader)
{
    memset(loader->left, 0, loader->n_groups * sizeof(*loader->left));
    loader->next = 0;
    loader->has_written = false;
}

void weir_loader_expect(weir_loader *loader, uint32_t group, uint64_t amount)
{
    loader->left[group] += amount;
}

void weir_loader_landed(weir_loader *loader, uint32_t group, uint64_t amount)
{
    loader->left[group] -= amount;
}

bool weir_loader_has_room(const weir_loader *loader, uint32_t group)
{
    return group < loader->next + WEIR_LOADER_BUFFERS;
}

bool weir_loader_is_ready(const weir_loader *loader)
{
    return loader->next < loader->n_groups && loader->left[loader->next] == 0;
}

/* Keeps what the group is about to replace. A note whose copy was not made would be undone with
 * bytes that were never there. */
static weir_status keep_replaced(weir_loader *loader, unsigned char *const *parameters,
                                 weir_undo *undo, unsigned timeout_ms)
{
    size_t n = 0, n_before = undo->n_entries;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < loader->n_outputs && status == WEIR_OK; i++) {
        const weir_loader_output *output = &loader->outputs[i];
        if (output->group == loader->next)
            status = weir_undo_note(undo, parameters[output->parameter] + output->offset,
                                    output->n_bytes, &loader->copies[n++]);
    }
    if (status == WEIR_OK)
        status = weir_task_copy(loader->tasks[loader->next], WEIR_LANE_KEEP, loader->copies, n);
    if (status == WEIR_OK)
        status = weir_task_wait(loader->tasks[loader->next], timeout_ms);
    if (status != WEIR_OK)
        weir_undo_forget(undo, n_before); /* nothing of the group is written */
    return status;
}

weir_status weir_loader_convert(weir_loader *loader, unsigned char *const *parameters,
                                weir_undo *undo, unsigned timeout_ms)
{
    weir_status status =
        undo != NULL ? keep_replaced(loader, parameters, undo, timeout_ms) : WEIR_OK;
    if (status != WEIR_OK)
        return status;
    size_t first = loader->first_jobs[loader->next];
    size_t n = loader->first_jobs[loader->next + 1] - first;
    for (size_t j = first; j < first + n; j++) {
        const weir_loader_target *target = &loader->targets[j];
        for (size_t o = 0; o < loader->args[j].conversion->n_outputs; o++)
            loader->args[j].outputs[o] = parameters[target->parameters[o]] + target->offsets[o];
    }
    loader->has_written = true;
    weir_task *task = loader->tasks[loader->next];
    status = weir_task_convert(task, WEIR_LANE_COMPUTE, loader->args + first, n);
    if (status == WEIR_OK)
        status = weir_task_wait(task, timeout_ms);
    if (status == WEIR_OK)
        loader->next++;
    return status;
}
