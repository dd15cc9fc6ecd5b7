/* SPDX-License-Identifier: Apache-2.0 */
/* convert_run.c - converts entry by entry into one buffer and streams it to the file.
 *
 * Memory is bounded by the largest entry: the pages of an entry's sources are asked for while the
 * one before is converted, and let go afterwards, so a checkpoint may be larger than memory.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convert_job.h"

#define BUFFER_ALIGNMENT 64

typedef struct run_state {
    const weir_convert_job *job;
    weir_checkpoint_writer *writer;
    size_t *file_index; /* of each output: its place in the file */
    unsigned char *buffer;
    weir_pool *pool;
    weir_progress_bar bar;
    uint64_t done_bytes;
} run_state;

static uint64_t aligned(uint64_t n_bytes)
{
    return (n_bytes + BUFFER_ALIGNMENT - 1) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT;
}

static uint64_t largest_entry_bytes(const weir_convert_job *job)
{
    uint64_t largest = BUFFER_ALIGNMENT;
    for (size_t i = 0; i < job->n_entries; i++) {
        const weir_map_entry *entry = &job->entries[i];
        uint64_t n_bytes = 0;
        for (size_t k = 0; k < entry->conversion->n_outputs; k++)
            n_bytes += aligned(weir_convert_bytes_of(&job->outputs[entry->first_parameter + k]));
        largest = n_bytes > largest ? n_bytes : largest;
    }
    return largest;
}

/* Wide elements first, otherwise in order: every tensor of the file is then naturally aligned. */
static void place_outputs(const weir_convert_job *job, size_t *file_index, weir_tensor *in_file)
{
    size_t next = 0;
    for (unsigned bits = 64; bits >= 4; bits--) {
        for (size_t i = 0; i < job->n_outputs; i++) {
            if (weir_dtype_bits(job->outputs[i].dtype) != bits)
                continue;
            file_index[i] = next;
            in_file[next++] = job->outputs[i];
        }
    }
}

static int begin(run_state *run, const char *path)
{
    const weir_convert_job *job = run->job;
    run->file_index = calloc(job->n_outputs + 1, sizeof(*run->file_index));
    weir_tensor *in_file = calloc(job->n_outputs + 1, sizeof(*in_file));
    run->buffer = aligned_alloc(BUFFER_ALIGNMENT, largest_entry_bytes(job));
    if (run->file_index == NULL || in_file == NULL || run->buffer == NULL) {
        free(in_file);
        return weir_cli_error("out of memory for a buffer of %s",
                              weir_cli_bytes_text(largest_entry_bytes(job)).text);
    }
    place_outputs(job, run->file_index, in_file);
    weir_status status = weir_checkpoint_create(path, in_file, job->n_outputs, job->metadata,
                                                job->n_metadata, &run->writer);
    free(in_file);
    return status == WEIR_OK ? WEIR_EXIT_OK : weir_cli_fail();
}

static int convert_entry(run_state *run, const weir_map_entry *entry)
{
    const weir_convert_job *job = run->job;
    weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
    args.propagate = job->propagate;
    args.keep_masters = job->keep_masters;
    args.pool = run->pool;
    uint64_t used = 0;
    for (size_t k = 0; k < entry->conversion->n_outputs; k++) {
        args.outputs[k] = run->buffer + used;
        used += aligned(weir_convert_bytes_of(&job->outputs[entry->first_parameter + k]));
    }
    if (weir_map_entry_convert(entry, &args) != WEIR_OK)
        return weir_cli_fail();
    for (size_t k = 0; k < entry->conversion->n_outputs; k++) {
        size_t output = entry->first_parameter + k;
        if (weir_checkpoint_write(run->writer, run->file_index[output], 0, args.outputs[k],
                                  weir_convert_bytes_of(&job->outputs[output])) != WEIR_OK)
            return weir_cli_fail();
    }
    return WEIR_EXIT_OK;
}

static void announce(const weir_convert_job *job, size_t index)
{
    if (index >= job->n_entries)
        return;
    const weir_map_entry *entry = &job->entries[index];
    for (size_t i = 0; i < weir_convert_sources_of(entry); i++)
        weir_checkpoint_will_need(job->checkpoint, &entry->sources[i]);
}

static void release(run_state *run, const weir_map_entry *entry)
{
    for (size_t i = 0; i < weir_convert_sources_of(entry); i++) {
        weir_checkpoint_done_with(run->job->checkpoint, &entry->sources[i]);
        run->done_bytes += weir_convert_bytes_of(&entry->sources[i]);
    }
}

static int convert_entries(run_state *run, const char *path)
{
    const weir_convert_job *job = run->job;
    announce(job, 0);
    for (size_t i = 0; i < job->n_entries; i++) {
        announce(job, i + 1);
        int code = convert_entry(run, &job->entries[i]);
        if (code != WEIR_EXIT_OK)
            return code;
        release(run, &job->entries[i]);
        weir_progress_bar_update(&run->bar, run->done_bytes);
        if (weir_cli_stopped())
            return weir_cli_error("interrupted: %s was not written", path);
    }
    return WEIR_EXIT_OK;
}

static int print_summary(const weir_convert_job *job, const weir_convert_request *request,
                         double seconds)
{
    double rate = (double)(job->source_bytes + job->output_bytes) / seconds;
    if (request->as_json)
        return weir_cli_print_json(
            json_pack("{s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:f, s:f}", "output",
                      request->output, "conversion", job->conversion->name, "compile_target",
                      job->conversion->compile_target, "compile_metadata",
                      weir_cli_json_of(job->conversion->compile_metadata), "source_tensors",
                      (json_int_t)job->n_selected, "output_tensors", (json_int_t)job->n_outputs,
                      "source_bytes", (json_int_t)job->source_bytes, "output_bytes",
                      (json_int_t)job->output_bytes, "seconds", seconds, "gb_per_s", rate / 1e9));
    printf("%s: %zu tensors, %s, from %zu tensors, %s, by %s in %s (%s read and written)\n",
           request->output, job->n_outputs, weir_cli_bytes_text(job->output_bytes).text,
           job->n_selected, weir_cli_bytes_text(job->source_bytes).text, job->conversion->name,
           weir_cli_duration_text(seconds).text, weir_cli_rate_text(rate).text);
    return WEIR_EXIT_OK;
}

int weir_convert_job_run(const weir_convert_job *job, const weir_convert_request *request)
{
    double begun = weir_cli_now();
    run_state run = { .job = job };
    weir_cli_catch_signals();
    int code =
        weir_pool_open(request->n_threads, &run.pool) == WEIR_OK ? WEIR_EXIT_OK : weir_cli_fail();
    if (code == WEIR_EXIT_OK)
        code = begin(&run, request->output);
    if (code == WEIR_EXIT_OK) {
        weir_progress_bar_begin(&run.bar, "converting", job->source_bytes, request->progress);
        code = convert_entries(&run, request->output);
        weir_progress_bar_end(&run.bar);
    }
    if (code != WEIR_EXIT_OK)
        weir_checkpoint_abandon(run.writer);
    else if (weir_checkpoint_commit(run.writer) != WEIR_OK)
        code = weir_cli_fail();
    weir_pool_close(run.pool);
    free(run.buffer);
    free(run.file_index);
    return code == WEIR_EXIT_OK ? print_summary(job, request, weir_cli_now() - begun) : code;
}
