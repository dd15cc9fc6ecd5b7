/* SPDX-License-Identifier: Apache-2.0 */
/* synth_files.c - fills safetensors files with synthetic values, on all cores, and only then lets
 * them appear.
 *
 * All files are written under temporary names first. What has appeared before a failure is removed
 * again.
 */
#include "synth_files.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "synth_values.h"

#define CHUNK_ELEMENTS ((uint64_t)1 << 19)
#define MAX_ELEMENT_BYTES 8
#define MAX_THREADS 64
#define MAX_PATH 4096

#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME "model.safetensors.index.json"

typedef struct synth_shard {
    size_t first, n_tensors;
    weir_checkpoint_writer *writer;
    char name[64];
    bool appeared;
} synth_shard;

typedef struct synth_job {
    const weir_synth_request *request;
    weir_synth_spread *spreads; /* by tensor */
    uint64_t *first_chunk;      /* by tensor; n_tensors + 1 of them */
    synth_shard *shards;
    size_t n_shards;
    uint64_t n_bytes;
    bool made_directory;
    atomic_uint_fast64_t next_chunk, done_bytes;
    atomic_bool failed;
    pthread_mutex_t lock; /* of `error` */
    char error[1024];
    weir_progress_bar bar;
} synth_job;

static int fail_path(const char *path)
{
    return weir_cli_error("%s: %s", path, strerror(errno));
}

/* ---- files -----------------------------------------------------------------------------------*/

static bool join_path(char path[MAX_PATH], const char *directory, const char *name)
{
    int n = snprintf(path, MAX_PATH, "%s/%s", directory, name);
    if (n > 0 && n < MAX_PATH)
        return true;
    weir_cli_error("%s: the path is too long", directory);
    return false;
}

static bool check_directory(synth_job *job)
{
    static const char *const names[] = { "config.json", SINGLE_NAME, INDEX_NAME };
    const weir_synth_request *request = job->request;
    char path[MAX_PATH];
    if (mkdir(request->directory, 0777) == 0) {
        job->made_directory = true;
        return true;
    }
    if (errno != EEXIST) {
        fail_path(request->directory);
        return false;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && !request->force; i++) {
        if (!join_path(path, request->directory, names[i]))
            return false;
        if (access(path, F_OK) == 0) {
            weir_cli_error("%s is there already; --force replaces it", path);
            return false;
        }
    }
    return true;
}

/* Cuts the list of tensors where a file would grow beyond shard_bytes. */
static bool cut_shards(synth_job *job)
{
    const weir_synth_request *request = job->request;
    uint64_t used = 0;
    for (size_t i = 0; i < request->n_tensors; i++) {
        const weir_tensor *tensor = &request->tensors[i];
        uint64_t n_bytes;
        if (weir_tensor_bytes(tensor->dtype, &tensor->shape, &n_bytes) != WEIR_OK) {
            weir_cli_fail();
            return false;
        }
        if (job->n_shards == 0 || (used > 0 && n_bytes > request->shard_bytes - used)) {
            job->shards[job->n_shards++].first = i;
            used = 0;
        }
        job->shards[job->n_shards - 1].n_tensors++;
        used = n_bytes < request->shard_bytes - used ? used + n_bytes : request->shard_bytes;
        job->n_bytes += n_bytes;
    }
    return true;
}

static bool begin_files(synth_job *job)
{
    const weir_synth_request *request = job->request;
    static const char *const metadata[][2] = { { "format", "pt" } };
    char path[MAX_PATH];
    for (size_t s = 0; s < job->n_shards; s++) {
        synth_shard *shard = &job->shards[s];
        snprintf(shard->name, sizeof(shard->name), SINGLE_NAME);
        if (job->n_shards > 1)
            snprintf(shard->name, sizeof(shard->name), "model-%05zu-of-%05zu.safetensors", s + 1,
                     job->n_shards);
        if (!join_path(path, request->directory, shard->name))
            return false;
        if (weir_checkpoint_create(path, request->tensors + shard->first, shard->n_tensors,
                                   metadata, 1, &shard->writer) != WEIR_OK) {
            weir_cli_fail();
            return false;
        }
    }
    return true;
}

/* Writes a text beside `name` and moves it there. */
static bool put_text(const char *directory, const char *name, const char *text)
{
    char path[MAX_PATH], temporary[MAX_PATH];
    char hidden[64];
    snprintf(hidden, sizeof(hidden), ".%s.%ld", name, (long)getpid());
    if (!join_path(path, directory, name) || !join_path(temporary, directory, hidden))
        return false;
    FILE *file = fopen(temporary, "w");
    bool good = file != NULL && fprintf(file, "%s\n", text) > 0;
    if (file != NULL)
        good &= fclose(file) == 0;
    good = good && rename(temporary, path) == 0;
    if (!good) {
        fail_path(path);
        unlink(temporary);
    }
    return good;
}

static bool put_index(const synth_job *job)
{
    json_t *map = json_object();
    for (size_t s = 0; s < job->n_shards; s++) {
        const synth_shard *shard = &job->shards[s];
        for (size_t i = 0; i < shard->n_tensors; i++)
            json_object_set_new(map, job->request->tensors[shard->first + i].name,
                                json_string(shard->name));
    }
    json_t *index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)job->n_bytes,
                              "weight_map", map);
    char *text = json_dumps(index, JSON_INDENT(2));
    bool good = text != NULL && put_text(job->request->directory, INDEX_NAME, text);
    if (text == NULL)
        weir_cli_error("out of memory");
    free(text);
    json_decref(index);
    return good;
}

static void remove_file(const synth_job *job, const char *name)
{
    char path[MAX_PATH];
    if (join_path(path, job->request->directory, name))
        unlink(path);
}

/* Lets the files appear. A replaced checkpoint may have been cut otherwise: what would be read in
 * place of the new files goes. */
static bool finish_files(synth_job *job)
{
    for (size_t s = 0; s < job->n_shards; s++) {
        weir_checkpoint_writer *writer = job->shards[s].writer;
        job->shards[s].writer = NULL;
        if (weir_checkpoint_commit(writer) != WEIR_OK) {
            weir_cli_fail();
            return false;
        }
        job->shards[s].appeared = true;
    }
    if (job->n_shards > 1 && !put_index(job))
        return false;
    remove_file(job, job->n_shards > 1 ? SINGLE_NAME : INDEX_NAME);
    if (put_text(job->request->directory, "config.json", job->request->config))
        return true;
    if (job->n_shards > 1)
        remove_file(job, INDEX_NAME);
    return false;
}

static void undo(synth_job *job)
{
    for (size_t s = 0; s < job->n_shards; s++) {
        weir_checkpoint_abandon(job->shards[s].writer);
        if (job->shards[s].appeared)
            remove_file(job, job->shards[s].name);
    }
    if (job->made_directory)
        rmdir(job->request->directory);
}

/* ---- values ----------------------------------------------------------------------------------*/

static void note_failure(synth_job *job, const char *line)
{
    pthread_mutex_lock(&job->lock);
    if (!atomic_exchange(&job->failed, true))
        snprintf(job->error, sizeof(job->error), "%s", line);
    pthread_mutex_unlock(&job->lock);
}

static void write_chunk(synth_job *job, size_t tensor, size_t shard, uint64_t chunk, void *buffer)
{
    const weir_tensor *t = &job->request->tensors[tensor];
    uint64_t first = (chunk - job->first_chunk[tensor]) * CHUNK_ELEMENTS, n_elements;
    unsigned element_bytes = weir_dtype_bits(t->dtype) / 8;
    weir_shape_elements(&t->shape, &n_elements);
    size_t n = n_elements - first < CHUNK_ELEMENTS ? n_elements - first : CHUNK_ELEMENTS;
    if (t->data != NULL)
        weir_synth_perturb(&job->spreads[tensor], t, first, n, buffer);
    else
        weir_synth_fill(&job->spreads[tensor], first, n, t->dtype, buffer);
    if (weir_checkpoint_write(job->shards[shard].writer, tensor - job->shards[shard].first,
                              first * element_bytes, buffer, n * element_bytes) != WEIR_OK)
        note_failure(job, weir_last_error());
    atomic_fetch_add(&job->done_bytes, n * element_bytes);
}

/* Takes chunks in order until there are none; they only go up, so neither does the search start
 * over. The first thread draws. */
static void work(synth_job *job, bool draws)
{
    size_t tensor = 0, shard = 0;
    void *buffer = malloc(CHUNK_ELEMENTS * MAX_ELEMENT_BYTES);
    if (buffer == NULL)
        note_failure(job, "out of memory");
    while (!atomic_load(&job->failed)) {
        uint64_t chunk = atomic_fetch_add(&job->next_chunk, 1);
        if (chunk >= job->first_chunk[job->request->n_tensors])
            break;
        if (weir_cli_stopped()) {
            note_failure(job, "interrupted");
            break;
        }
        while (chunk >= job->first_chunk[tensor + 1])
            tensor++;
        while (tensor >= job->shards[shard].first + job->shards[shard].n_tensors)
            shard++;
        write_chunk(job, tensor, shard, chunk, buffer);
        if (draws)
            weir_progress_bar_update(&job->bar, atomic_load(&job->done_bytes));
    }
    free(buffer);
}

static void *run_worker(void *job)
{
    work(job, false);
    return NULL;
}

static bool fill_files(synth_job *job)
{
    pthread_t threads[MAX_THREADS];
    long n_cores = sysconf(_SC_NPROCESSORS_ONLN);
    int n_threads = 0, wanted = n_cores < MAX_THREADS ? (int)n_cores : MAX_THREADS;
    weir_progress_bar_begin(&job->bar, "synth", job->n_bytes, false);
    while (n_threads < wanted - 1 &&
           pthread_create(&threads[n_threads], NULL, run_worker, job) == 0)
        n_threads++;
    work(job, true);
    for (int i = 0; i < n_threads; i++)
        pthread_join(threads[i], NULL);
    weir_progress_bar_end(&job->bar);
    if (job->failed)
        weir_cli_error("%s", job->error);
    return !job->failed;
}

/* ---- the job ---------------------------------------------------------------------------------*/

static bool allocate(synth_job *job)
{
    size_t n = job->request->n_tensors;
    job->spreads = calloc(n + 1, sizeof(*job->spreads));
    job->first_chunk = calloc(n + 1, sizeof(*job->first_chunk));
    job->shards = calloc(n + 1, sizeof(*job->shards));
    if (job->spreads == NULL || job->first_chunk == NULL || job->shards == NULL) {
        weir_cli_error("out of memory");
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        const weir_tensor *tensor = &job->request->tensors[i];
        uint64_t n_elements = 0;
        if (weir_shape_elements(&tensor->shape, &n_elements) != WEIR_OK) {
            weir_cli_fail();
            return false;
        }
        job->spreads[i] = (tensor->data != NULL ? weir_synth_spread_from : weir_synth_spread_of)(
            tensor, job->request->seed, job->request->step);
        job->first_chunk[i + 1] =
            job->first_chunk[i] + (n_elements + CHUNK_ELEMENTS - 1) / CHUNK_ELEMENTS;
    }
    return true;
}

int weir_synth_write(const weir_synth_request *request, uint64_t *out_bytes)
{
    synth_job job = { .request = request };
    pthread_mutex_init(&job.lock, NULL);
    bool good = allocate(&job) && cut_shards(&job) && check_directory(&job);
    good = good && begin_files(&job) && fill_files(&job) && finish_files(&job);
    if (!good)
        undo(&job);
    *out_bytes = job.n_bytes;
    free(job.spreads);
    free(job.first_chunk);
    free(job.shards);
    pthread_mutex_destroy(&job.lock);
    return good ? WEIR_EXIT_OK : WEIR_EXIT_FAILED;
}
