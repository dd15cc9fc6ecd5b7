/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_batch.c - runs a planned batch on a stream and reads what came of it: conversions here,
 * digests by cuda_digest.c.
 *
 * One upload holds every word that the kernels need, and is left out when it equals the last one;
 * the last kernel writes digests and refusals into host memory.
 */
#include "base/alloc.h"
#include "base/error.h"
#include "convert/cuda/cuda_digest.h"
#include "convert/cuda/cuda_magnitude.h"
#include "convert/cuda/cuda_plan.h"
#include "convert/cuda/cuda_scatter.h"
#include "convert/cuda/cuda_tables.h"
#include "convert/nonfinite.h"
#include "device/cuda_wait.h"
#include "weir/cuda.h"

typedef enum what_runs { NOTHING, CONVERSIONS, DIGESTS, MEASURES, COPIES } what_runs;

struct weir_cuda_batch {
    const weir_cuda_runtime *cuda;
    const weir_cuda_converter *converter;
    int device;
    weir_cuda_entry *entries;
    size_t n_entries_room;
    weir_cuda_plan plan;
    weir_cuda_tables tables; /* of conversions; a counter for each launch */
    weir_cuda_digests digests;
    weir_cuda_tables measures, copies;
    void *done; /* event */
    what_runs runs;
};

/* ---- conversions -----------------------------------------------------------------------------*/

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

static weir_status check_addresses(const weir_cuda_batch *batch)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < batch->plan.n_entries; i++) {
        const weir_cuda_entry *entry = &batch->entries[i];
        for (size_t k = 0;
             status == WEIR_OK && !entry->empty && k < weir_fused_n_tensors(&entry->fused); k++)
            status = weir_cuda_check_reach(batch->cuda, batch->device, entry->fused.sources[k].data,
                                           entry->fused.sources[k].name);
        for (size_t k = 0; status == WEIR_OK && k < entry->args.conversion->n_outputs; k++)
            status = weir_cuda_check_reach(batch->cuda, batch->device, entry->args.outputs[k],
                                           entry->args.conversion->outputs[k].suffix);
    }
    return status;
}

/* Makes the device's image that of this batch. */
static weir_status send_image(weir_cuda_batch *batch, void *stream)
{
    if (batch->plan.image_bytes == 0 ||
        weir_cuda_tables_are_sent(&batch->tables, batch->plan.image_bytes))
        return WEIR_OK;
    weir_status status = check_addresses(batch);
    if (status != WEIR_OK)
        return status;
    return weir_cuda_tables_send(&batch->tables, batch->plan.image_bytes, stream);
}

static weir_cuda_launch launch_of(const weir_cuda_batch *batch, size_t group_index)
{
    const weir_cuda_group *group = &batch->plan.groups[group_index];
    const unsigned char *image = batch->tables.image;
    const weir_cuda_job *jobs = (const weir_cuda_job *)(const void *)image;
    const uint32_t *first_tiles =
        (const uint32_t *)(const void *)(image + batch->plan.first_tiles_at);
    return (weir_cuda_launch){
        .jobs = jobs + group->first_job,
        .first_tiles = first_tiles + group->first_job,
        .segments = (const weir_cuda_segment *)(const void *)(image + batch->plan.segments_at),
        .results = batch->tables.device_results,
        .next_tile = weir_cuda_tables_counters(&batch->tables) + group_index,
        .n_jobs = group->n_jobs,
        .n_tiles = group->n_tiles,
        .kind = group->kind,
        .from = group->from,
    };
}

static int queue_finish(weir_cuda_batch *batch, void *stream)
{
    weir_cuda_finish finish = {
        .jobs = (const weir_cuda_job *)batch->tables.image,
        .results = batch->tables.device_results,
        .out = batch->tables.results,
        .next_tiles = weir_cuda_tables_counters(&batch->tables),
        .n_jobs = (uint32_t)batch->plan.n_jobs,
        .n_counters = WEIR_CUDA_MAX_LAUNCHES,
    };
    return finish.n_jobs > 0 ? batch->converter->finish(&finish, stream) : 0;
}

static weir_status queue_conversions(weir_cuda_batch *batch, void *stream)
{
    const weir_cuda_plan *plan = &batch->plan;
    int error = weir_cuda_tables_zero(&batch->tables, plan->n_entries, stream);
    for (size_t i = 0; error == 0 && i < plan->n_groups; i++) {
        weir_cuda_launch launch = launch_of(batch, i);
        error = batch->converter->convert(&launch, stream);
    }
    if (error == 0)
        error = queue_finish(batch, stream);
    batch->tables.dirty = error != 0;
    if (error != 0) /* part of it may run: let nothing of it outlive this call */
        weir_cuda_tables_settle(&batch->tables, stream);
    return weir_cuda_check(error, "cannot queue a batch of %zu conversions", plan->n_entries);
}

/* Only scales are made of magnitudes. */
static weir_status join_magnitudes(weir_cuda_batch *batch, const float *const *magnitudes)
{
    for (size_t i = 0; magnitudes != NULL && i < batch->plan.n_entries; i++) {
        weir_cuda_entry *entry = &batch->entries[i];
        const char *name = entry->args.sources[0].name;
        entry->magnitudes = magnitudes[i];
        if (magnitudes[i] != NULL &&
            (!entry->args.conversion->by_magnitude || entry->fused.n_matrices != 1))
            return weir_fail(WEIR_ERR_INVALID,
                             "%s: '%s' of %zu matrices cannot be joined with magnitudes",
                             name != NULL ? name : "(unnamed)", entry->args.conversion->name,
                             (size_t)entry->fused.n_matrices);
    }
    return WEIR_OK;
}

static weir_status start_conversions(weir_cuda_batch *batch, const weir_convert_args *args,
                                     const float *const *magnitudes, size_t n_args, void *stream)
{
    weir_status status = room_for_entries(batch, n_args);
    if (status == WEIR_OK)
        status = weir_cuda_plan_init(&batch->plan, args, n_args, batch->entries);
    if (status == WEIR_OK)
        status = join_magnitudes(batch, magnitudes);
    if (status == WEIR_OK)
        status = weir_cuda_tables_room(&batch->tables, batch->plan.image_bytes, n_args);
    if (status == WEIR_OK && batch->plan.image_bytes > 0)
        status = weir_cuda_plan_build(&batch->plan, batch->entries, batch->tables.built);
    if (status == WEIR_OK)
        status = send_image(batch, stream);
    return status == WEIR_OK ? queue_conversions(batch, stream) : status;
}

/* Names the first refused element of an entry: its sources are searched once more. */
static weir_status report_refused(weir_cuda_batch *batch, const weir_cuda_entry *entry)
{
    const weir_conversion *conversion = entry->args.conversion;
    bool rounds = entry->rounds || conversion->outputs[0].dtype == WEIR_BF16;
    for (size_t i = 0; i < weir_fused_n_tensors(&entry->fused); i++) {
        const weir_tensor *source = &entry->fused.sources[i];
        weir_status status = weir_cuda_name_refused(&batch->tables, batch->converter, source,
                                                    weir_fused_row_step(&entry->fused, source),
                                                    weir_nonfinite_least(source->dtype, rounds));
        if (status != WEIR_OK)
            return status;
    }
    return weir_fail(WEIR_ERR_NONFINITE, "conversion '%s' refused a weight of %s that is finite",
                     conversion->name,
                     entry->fused.sources[0].name != NULL ? entry->fused.sources[0].name
                                                          : "(unnamed)");
}

static weir_status take_conversions(weir_cuda_batch *batch)
{
    for (size_t i = 0; i < batch->plan.n_entries; i++) {
        if (batch->tables.results[i].nonfinite != 0)
            return report_refused(batch, &batch->entries[i]);
    }
    for (size_t i = 0; i < batch->plan.n_entries; i++) {
        const weir_cuda_entry *entry = &batch->entries[i];
        const weir_cuda_result *result = &batch->tables.results[i];
        if (entry->args.digests == NULL)
            continue;
        entry->args.digests[0] = (weir_digest){ result->product, result->sum };
        if (entry->args.conversion->n_outputs > 1)
            entry->args.digests[1] = (weir_digest){ result->scale_product, result->scale_sum };
    }
    return WEIR_OK;
}

/* ---- starting and ending ---------------------------------------------------------------------*/

typedef struct wish {
    what_runs what;
    const weir_convert_args *args;
    const float *const *magnitudes; /* NULL, or parallel to args */
    const weir_cuda_range *ranges;
    const weir_cuda_measure *measures;
    const weir_rows *rows;
    size_t n;
} wish;

/* What a piece of work of this kind keeps on the GPU. */
static weir_cuda_tables *tables_of(weir_cuda_batch *batch, what_runs what)
{
    if (what == MEASURES)
        return &batch->measures;
    if (what == COPIES)
        return &batch->copies;
    return what == CONVERSIONS ? &batch->tables : &batch->digests.tables;
}

static weir_status start_wished(weir_cuda_batch *batch, const wish *w, void *stream)
{
    if (w->what == CONVERSIONS)
        return start_conversions(batch, w->args, w->magnitudes, w->n, stream);
    if (w->what == MEASURES)
        return weir_cuda_measures_start(&batch->measures, batch->converter, batch->device,
                                        w->measures, w->n, stream);
    if (w->what == COPIES)
        return weir_cuda_scatter_start(&batch->copies, batch->converter, batch->device, w->rows,
                                       w->n, stream);
    return weir_cuda_digests_start(&batch->digests, batch->converter, batch->device, w->ranges,
                                   w->n, stream);
}

static weir_status start_on_device(weir_cuda_batch *batch, const wish *w, void *stream)
{
    weir_status status = start_wished(batch, w, stream);
    if (status != WEIR_OK)
        return status;
    status = weir_cuda_check(batch->cuda->event_record(batch->done, stream),
                             "cannot record the end of a batch of %zu", w->n);
    if (status == WEIR_OK)
        batch->runs = w->what;
    else
        weir_cuda_tables_settle(tables_of(batch, w->what), stream);
    return status;
}

static weir_status start(weir_cuda_batch *batch, const wish *w, void *stream)
{
    int previous;
    weir_status status = weir_cuda_check(batch->cuda->enter(batch->device, &previous),
                                         "cannot use GPU %d", batch->device);
    if (status != WEIR_OK)
        return status;
    status = start_on_device(batch, w, stream);
    batch->cuda->leave(previous);
    return status;
}

static weir_status fail_busy(void)
{
    return weir_fail(WEIR_ERR_BUSY, "the batch was started before and has not been seen to end");
}

weir_status weir_cuda_batch_start_joined(weir_cuda_batch *batch, const weir_convert_args *args,
                                         const float *const *magnitudes, size_t n_args,
                                         void *stream)
{
    if (batch->runs != NOTHING)
        return fail_busy();
    if (n_args == 0)
        return WEIR_OK;
    if (args == NULL || args->size < sizeof(args->size))
        return weir_fail(WEIR_ERR_INVALID, "weir_convert_args has no size");
    wish w = { .what = CONVERSIONS, .args = args, .magnitudes = magnitudes, .n = n_args };
    return start(batch, &w, stream);
}

weir_status weir_cuda_batch_start(weir_cuda_batch *batch, const weir_convert_args *args,
                                  size_t n_args, void *stream)
{
    return weir_cuda_batch_start_joined(batch, args, NULL, n_args, stream);
}

weir_status weir_cuda_batch_digest(weir_cuda_batch *batch, const weir_cuda_range *ranges,
                                   size_t n_ranges, void *stream)
{
    if (batch->runs != NOTHING)
        return fail_busy();
    if (n_ranges == 0)
        return WEIR_OK;
    return start(batch, &(wish){ .what = DIGESTS, .ranges = ranges, .n = n_ranges }, stream);
}

weir_status weir_cuda_batch_measure(weir_cuda_batch *batch, const weir_cuda_measure *measures,
                                    size_t n_measures, void *stream)
{
    if (batch->runs != NOTHING)
        return fail_busy();
    if (n_measures == 0)
        return WEIR_OK;
    return start(batch, &(wish){ .what = MEASURES, .measures = measures, .n = n_measures }, stream);
}

weir_status weir_cuda_batch_room(weir_cuda_batch *batch, size_t n_digests, size_t n_rows)
{
    int previous;
    if (batch->runs != NOTHING)
        return fail_busy();
    weir_status status = weir_cuda_check(batch->cuda->enter(batch->device, &previous),
                                         "cannot use GPU %d", batch->device);
    if (status != WEIR_OK)
        return status;
    if (n_digests > 0)
        status = weir_cuda_digests_room(&batch->digests, n_digests);
    if (status == WEIR_OK && n_rows > 0)
        status = weir_cuda_tables_room(&batch->copies, weir_cuda_scatter_image_bytes(n_rows), 0);
    batch->cuda->leave(previous);
    return status;
}

weir_status weir_cuda_batch_scatter(weir_cuda_batch *batch, const weir_rows *rows, size_t n_rows,
                                    void *stream)
{
    if (batch->runs != NOTHING)
        return fail_busy();
    if (n_rows == 0)
        return WEIR_OK;
    return start(batch, &(wish){ .what = COPIES, .rows = rows, .n = n_rows }, stream);
}

static weir_status take(weir_cuda_batch *batch, int error)
{
    what_runs ran = batch->runs;
    batch->runs = NOTHING;
    if (ran == MEASURES)
        return weir_cuda_check(error, "magnitudes could not be measured");
    if (ran == COPIES)
        return weir_cuda_check(error, "pieces could not be copied");
    weir_status status =
        ran == CONVERSIONS
            ? weir_cuda_check(error, "a batch of %zu conversions failed", batch->plan.n_entries)
            : weir_cuda_check(error, "the digests of %zu ranges failed", batch->digests.n_ranges);
    if (status != WEIR_OK)
        return status;
    return ran == CONVERSIONS ? take_conversions(batch)
                              : weir_cuda_digests_take(&batch->digests, batch->converter);
}

/* timeout_ms 0: does not wait. */
static weir_status end(weir_cuda_batch *batch, unsigned timeout_ms)
{
    if (batch->runs == NOTHING)
        return WEIR_OK;
    int previous;
    weir_status status = weir_cuda_check(batch->cuda->enter(batch->device, &previous),
                                         "cannot use GPU %d", batch->device);
    if (status != WEIR_OK)
        return status;
    int error = weir_cuda_wait_event(batch->cuda, batch->done, timeout_ms);
    status = error == WEIR_CUDA_NOT_READY ? WEIR_IN_PROGRESS : take(batch, error);
    batch->cuda->leave(previous);
    return status;
}

weir_status weir_cuda_batch_test(weir_cuda_batch *batch)
{
    return end(batch, 0);
}

weir_status weir_cuda_batch_wait(weir_cuda_batch *batch)
{
    weir_status status = end(batch, WEIR_CUDA_WAIT_MS);
    if (status != WEIR_IN_PROGRESS)
        return status;
    return weir_fail(WEIR_ERR_TIMED_OUT, "timed out: a batch runs on GPU %d for more than %u s",
                     batch->device, WEIR_CUDA_WAIT_MS / 1000);
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
    batch->tables = (weir_cuda_tables){ .cuda = cuda, .n_counters = WEIR_CUDA_MAX_LAUNCHES };
    batch->digests.tables =
        (weir_cuda_tables){ .cuda = cuda, .n_counters = WEIR_CUDA_DIGEST_COUNTERS };
    batch->measures = batch->copies = (weir_cuda_tables){ .cuda = cuda };
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
    if (batch->runs != NOTHING)
        tables_of(batch, batch->runs)->stuck =
            weir_cuda_wait_event(batch->cuda, batch->done, WEIR_CUDA_DRAIN_MS) ==
            WEIR_CUDA_NOT_READY;
    weir_cuda_tables_drop(&batch->tables);
    weir_cuda_digests_drop(&batch->digests);
    weir_cuda_tables_drop(&batch->measures);
    weir_cuda_tables_drop(&batch->copies);
    batch->cuda->event_close(batch->done);
    if (inside)
        batch->cuda->leave(previous);
    weir_free(batch->entries);
    weir_free(batch);
}
