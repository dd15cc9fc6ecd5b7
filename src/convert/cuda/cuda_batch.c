/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_batch.c - runs a planned batch on a stream and reads what came of it.
 *
 * One upload holds every word that the kernels need, and is left out when it equals the last one;
 * the last kernel writes digests and refusals into host memory. Everything lies in two pieces of
 * device memory and three of pinned host memory that only grow.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "convert/cuda/cuda_plan.h"
#include "convert/nonfinite.h"
#include "device/cuda_loader.h"
#include "weir/cuda.h"

#define COUNTER_BYTES (WEIR_CUDA_MAX_LAUNCHES * sizeof(uint32_t))

struct weir_cuda_batch {
    const weir_cuda_runtime *cuda;
    const weir_cuda_converter *converter;
    int device;
    weir_cuda_entry *entries;
    size_t n_entries_room;
    weir_cuda_plan plan;
    unsigned char *built, *sent; /* images in pinned memory: being made; on the device */
    void *image;                 /* on the device */
    size_t image_room, sent_bytes;
    weir_cuda_result *results, *device_results; /* behind the latter: a counter for each launch */
    size_t n_results_room;
    bool dirty; /* device_results are not all zero */
    void *done; /* event */
    bool running;
};

/* ---- room ------------------------------------------------------------------------------------*/

static weir_status room_for_entries(weir_cuda_batch *batch, size_t n)
{
    if (n <= batch->n_entries_room)
        return WEIR_OK;
    weir_cuda_entry *entries = weir_alloc_zeroed(n, sizeof(*entries));
    if (entries == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_free(batch->entries);
    batch->entries = entries;
    batch->n_entries_room = n;
    return WEIR_OK;
}

static void drop_image(weir_cuda_batch *batch)
{
    batch->cuda->free_pinned(batch->built);
    batch->cuda->free_pinned(batch->sent);
    batch->cuda->free(batch->image);
    batch->built = batch->sent = NULL;
    batch->image = NULL;
    batch->image_room = batch->sent_bytes = 0;
}

static weir_status room_for_image(weir_cuda_batch *batch, size_t n_bytes)
{
    if (n_bytes <= batch->image_room)
        return WEIR_OK;
    drop_image(batch);
    void *built = NULL, *sent = NULL;
    int error = batch->cuda->allocate_pinned(n_bytes, &built);
    batch->built = built;
    if (error == 0)
        error = batch->cuda->allocate_pinned(n_bytes, &sent);
    batch->sent = sent;
    if (error == 0)
        error = batch->cuda->allocate(n_bytes, &batch->image);
    if (error != 0) {
        drop_image(batch);
        return weir_cuda_check(error, "cannot allocate %zu bytes for a batch's tables", n_bytes);
    }
    batch->image_room = n_bytes;
    return weir_alloc_note(n_bytes) ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static void drop_results(weir_cuda_batch *batch)
{
    batch->cuda->free_pinned(batch->results);
    batch->cuda->free(batch->device_results);
    batch->results = batch->device_results = NULL;
    batch->n_results_room = 0;
}

static weir_status room_for_results(weir_cuda_batch *batch, size_t n)
{
    if (n <= batch->n_results_room)
        return WEIR_OK;
    drop_results(batch);
    size_t n_bytes = n * sizeof(weir_cuda_result);
    void *host = NULL, *device = NULL;
    int error = batch->cuda->allocate_pinned(n_bytes, &host);
    if (error == 0)
        error = batch->cuda->allocate(n_bytes + COUNTER_BYTES, &device);
    batch->results = host;
    batch->device_results = device;
    if (error != 0) {
        drop_results(batch);
        return weir_cuda_check(error, "cannot allocate %zu bytes for a batch's results", n_bytes);
    }
    batch->n_results_room = n;
    batch->dirty = true;
    return weir_alloc_note(n_bytes) ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

/* ---- starting --------------------------------------------------------------------------------*/

/* A kernel that reads plain host memory would take the whole context down with it. */
static weir_status check_reach(const weir_cuda_batch *batch, const void *data, const char *name)
{
    weir_cuda_pointer_kind kind;
    int device;
    int error = data != NULL ? batch->cuda->pointer_kind(data, &kind, &device) : 0;
    if (data == NULL || (error == 0 && kind != WEIR_CUDA_POINTER_HOST))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID, "%s lies in host memory that GPU %d cannot reach",
                     name != NULL ? name : "(unnamed)", batch->device);
}

static weir_status check_addresses(const weir_cuda_batch *batch)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < batch->plan.n_entries; i++) {
        const weir_cuda_entry *entry = &batch->entries[i];
        for (size_t k = 0;
             status == WEIR_OK && !entry->empty && k < weir_fused_n_tensors(&entry->fused); k++)
            status = check_reach(batch, entry->fused.sources[k].data, entry->fused.sources[k].name);
        for (size_t k = 0; status == WEIR_OK && k < entry->args.conversion->n_outputs; k++)
            status = check_reach(batch, entry->args.outputs[k],
                                 entry->args.conversion->outputs[k].suffix);
    }
    return status;
}

/* Makes the device's image that of this batch. */
static weir_status send_image(weir_cuda_batch *batch, void *stream)
{
    size_t n_bytes = batch->plan.image_bytes;
    if (n_bytes == batch->sent_bytes && memcmp(batch->built, batch->sent, n_bytes) == 0)
        return WEIR_OK;
    weir_status status = check_addresses(batch);
    if (status != WEIR_OK)
        return status;
    unsigned char *image = batch->built;
    batch->built = batch->sent;
    batch->sent = image;
    batch->sent_bytes = 0; /* until the copy is queued */
    status = weir_cuda_check(batch->cuda->copy(batch->image, image, n_bytes, stream),
                             "cannot send a batch's tables");
    if (status == WEIR_OK)
        batch->sent_bytes = n_bytes;
    return status;
}

static weir_cuda_launch launch_of(const weir_cuda_batch *batch, const weir_cuda_group *group)
{
    const unsigned char *image = batch->image;
    const weir_cuda_job *jobs = (const weir_cuda_job *)(const void *)image;
    const uint32_t *first_tiles =
        (const uint32_t *)(const void *)(image + batch->plan.first_tiles_at);
    return (weir_cuda_launch){
        .jobs = jobs + group->first_job,
        .first_tiles = first_tiles + group->first_job,
        .segments = (const weir_cuda_segment *)(const void *)(image + batch->plan.segments_at),
        .results = batch->device_results,
        .n_jobs = group->n_jobs,
        .n_tiles = group->n_tiles,
        .kind = group->kind,
        .from = group->from,
    };
}

static uint32_t *counters_of(const weir_cuda_batch *batch)
{
    return (uint32_t *)(void *)(batch->device_results + batch->n_results_room);
}

static int queue_finish(weir_cuda_batch *batch, void *stream)
{
    weir_cuda_finish finish = {
        .jobs = (const weir_cuda_job *)batch->image,
        .results = batch->device_results,
        .out = batch->results,
        .next_tiles = counters_of(batch),
        .n_jobs = (uint32_t)batch->plan.n_jobs,
        .n_counters = WEIR_CUDA_MAX_LAUNCHES,
    };
    return finish.n_jobs > 0 ? batch->converter->finish(&finish, stream) : 0;
}

static weir_status queue_work(weir_cuda_batch *batch, void *stream)
{
    const weir_cuda_runtime *cuda = batch->cuda;
    const weir_cuda_plan *plan = &batch->plan;
    int error = 0;
    memset(batch->results, 0, plan->n_entries * sizeof(*batch->results));
    if (batch->dirty)
        error = cuda->fill(batch->device_results, 0,
                           batch->n_results_room * sizeof(*batch->results) + COUNTER_BYTES, stream);
    batch->dirty = true; /* unless all of what follows is queued */
    for (size_t i = 0; error == 0 && i < plan->n_groups; i++) {
        weir_cuda_launch launch = launch_of(batch, &plan->groups[i]);
        launch.next_tile = counters_of(batch) + i;
        error = batch->converter->convert(&launch, stream);
    }
    if (error == 0)
        error = queue_finish(batch, stream);
    if (error == 0)
        error = cuda->event_record(batch->done, stream);
    batch->dirty = error != 0;
    return weir_cuda_check(error, "cannot queue a batch of %zu conversions", plan->n_entries);
}

static weir_status plan_batch(weir_cuda_batch *batch, const weir_convert_args *args, size_t n_args)
{
    weir_status status = room_for_entries(batch, n_args);
    if (status == WEIR_OK)
        status = weir_cuda_plan_init(&batch->plan, args, n_args, batch->entries);
    if (status == WEIR_OK)
        status = room_for_image(batch, batch->plan.image_bytes);
    if (status == WEIR_OK)
        status = room_for_results(batch, n_args);
    if (status == WEIR_OK && batch->plan.image_bytes > 0)
        status = weir_cuda_plan_build(&batch->plan, batch->entries, batch->built);
    return status;
}

static weir_status start(weir_cuda_batch *batch, const weir_convert_args *args, size_t n_args,
                         void *stream)
{
    weir_status status = plan_batch(batch, args, n_args);
    if (status == WEIR_OK && batch->plan.image_bytes > 0)
        status = send_image(batch, stream);
    if (status != WEIR_OK)
        return status;
    status = queue_work(batch, stream);
    batch->running = status == WEIR_OK;
    if (status != WEIR_OK) /* part of it may run: let nothing of it outlive this call */
        batch->cuda->stream_wait(stream);
    return status;
}

weir_status weir_cuda_batch_start(weir_cuda_batch *batch, const weir_convert_args *args,
                                  size_t n_args, void *stream)
{
    if (batch->running)
        return weir_fail(WEIR_ERR_BUSY,
                         "the batch was started before and has not been seen to end");
    if (n_args == 0)
        return WEIR_OK;
    if (args == NULL || args->size < sizeof(args->size))
        return weir_fail(WEIR_ERR_INVALID, "weir_convert_args has no size");
    int previous;
    weir_status status = weir_cuda_check(batch->cuda->enter(batch->device, &previous),
                                         "cannot use GPU %d", batch->device);
    if (status != WEIR_OK)
        return status;
    status = start(batch, args, n_args, stream);
    batch->cuda->leave(previous);
    return status;
}

/* ---- ending ----------------------------------------------------------------------------------*/

/* Names the first refused element of an entry: its sources are searched once more. */
static weir_status report_refused(weir_cuda_batch *batch, const weir_cuda_entry *entry)
{
    const weir_conversion *conversion = entry->args.conversion;
    bool rounds = entry->rounds || conversion->outputs[0].dtype == WEIR_BF16;
    for (size_t i = 0; i < weir_fused_n_tensors(&entry->fused); i++) {
        const weir_tensor *source = &entry->fused.sources[i];
        uint32_t element_bytes = weir_dtype_bits(source->dtype) / 8, bits = 0;
        uint64_t n_elements = 0, element = 0;
        weir_shape_elements(&source->shape, &n_elements); /* has been checked */
        int error =
            batch->converter->find_refused(source->data, n_elements, element_bytes,
                                           weir_nonfinite_least(source->dtype, rounds), &element);
        if (error == 0 && element == n_elements)
            continue;
        if (error == 0)
            error = batch->cuda->copy(&bits, (const char *)source->data + element * element_bytes,
                                      element_bytes, NULL);
        if (error == 0)
            error = batch->cuda->stream_wait(NULL);
        if (error != 0)
            return weir_cuda_check(error, "cannot search the refused %s",
                                   source->name != NULL ? source->name : "(unnamed)");
        return weir_nonfinite_fail(source, element, bits);
    }
    return weir_fail(WEIR_ERR_NONFINITE, "conversion '%s' refused a weight of %s that is finite",
                     conversion->name,
                     entry->fused.sources[0].name != NULL ? entry->fused.sources[0].name
                                                          : "(unnamed)");
}

static weir_status take_results(weir_cuda_batch *batch)
{
    for (size_t i = 0; i < batch->plan.n_entries; i++) {
        if (batch->results[i].nonfinite != 0)
            return report_refused(batch, &batch->entries[i]);
    }
    for (size_t i = 0; i < batch->plan.n_entries; i++) {
        const weir_cuda_entry *entry = &batch->entries[i];
        const weir_cuda_result *result = &batch->results[i];
        if (entry->args.digests == NULL)
            continue;
        entry->args.digests[0] = (weir_digest){ result->product, result->sum };
        if (entry->args.conversion->n_outputs > 1)
            entry->args.digests[1] = (weir_digest){ result->scale_product, result->scale_sum };
    }
    return WEIR_OK;
}

/* `ask` is event_test or event_wait. */
static weir_status end(weir_cuda_batch *batch, int (*ask)(void *event))
{
    if (!batch->running)
        return WEIR_OK;
    int previous;
    weir_status status = weir_cuda_check(batch->cuda->enter(batch->device, &previous),
                                         "cannot use GPU %d", batch->device);
    if (status != WEIR_OK)
        return status;
    int error = ask(batch->done);
    if (error == WEIR_CUDA_NOT_READY) {
        status = WEIR_IN_PROGRESS;
    } else {
        batch->running = false;
        status = weir_cuda_check(error, "a batch of %zu conversions failed", batch->plan.n_entries);
        if (status == WEIR_OK)
            status = take_results(batch);
    }
    batch->cuda->leave(previous);
    return status;
}

weir_status weir_cuda_batch_test(weir_cuda_batch *batch)
{
    return end(batch, batch->cuda->event_test);
}

weir_status weir_cuda_batch_wait(weir_cuda_batch *batch)
{
    return end(batch, batch->cuda->event_wait);
}

/* ---- opening ---------------------------------------------------------------------------------*/

weir_status weir_cuda_batch_open(unsigned device, weir_cuda_batch **out)
{
    const weir_cuda_runtime *cuda;
    int previous;
    const weir_cuda_converter *converter;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK)
        status = weir_cuda_converter_get(&converter);
    if (status != WEIR_OK)
        return status;
    weir_cuda_batch *batch = weir_alloc_zeroed(1, sizeof(*batch));
    if (batch == NULL)
        return WEIR_ERR_NO_MEMORY;
    batch->cuda = cuda;
    batch->converter = converter;
    batch->device = (int)device;
    status = weir_cuda_check(cuda->enter(batch->device, &previous), "cannot use GPU %u", device);
    if (status == WEIR_OK) {
        status = weir_cuda_check(cuda->event_open(0, &batch->done), "cannot make an event");
        cuda->leave(previous);
    }
    if (status != WEIR_OK) {
        weir_free(batch);
        return status;
    }
    *out = batch;
    return WEIR_OK;
}

void weir_cuda_batch_close(weir_cuda_batch *batch)
{
    if (batch == NULL)
        return;
    int previous;
    bool inside = batch->cuda->enter(batch->device, &previous) == 0;
    if (batch->running)
        batch->cuda->event_wait(batch->done);
    drop_image(batch);
    drop_results(batch);
    batch->cuda->event_close(batch->done);
    if (inside)
        batch->cuda->leave(previous);
    weir_free(batch->entries);
    weir_free(batch);
}
