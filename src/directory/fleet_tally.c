/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_tally.c - one walk each over versions, workers and sources; rows are found by a hash, since
 * there may be ten thousand records. */
#include "directory/fleet_tally.h"

#include <string.h>

#define N_PLACES 512u

static uint64_t hash_of(uint64_t hash, const char *text)
{
    for (; *text != '\0'; text++)
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    return (hash ^ 0xff) * 0x100000001b3u;
}

static weir_model_tally *model_of(weir_fleet_tally *tally, const char *model)
{
    size_t place = (size_t)(hash_of(0xcbf29ce484222325u, model) >> 32) % N_PLACES;
    for (; tally->model_places[place] != 0; place = (place + 1) % N_PLACES) {
        weir_model_tally *row = &tally->models[tally->model_places[place] - 1];
        if (strcmp(row->model, model) == 0)
            return row;
    }
    weir_model_tally *row = &tally->models[tally->n_models];
    if (tally->n_models <= WEIR_TALLY_MOST)
        tally->n_models++;
    if (row > &tally->models[WEIR_TALLY_MOST])
        row = &tally->models[WEIR_TALLY_MOST];
    if (row == &tally->models[WEIR_TALLY_MOST]) {
        row->model = WEIR_TALLY_OTHER;
        return row; /* found by nobody's name */
    }
    row->model = model;
    tally->model_places[place] = (unsigned char)tally->n_models;
    return row;
}

static weir_run_tally *run_of(weir_fleet_tally *tally, const char *model, const char *run)
{
    uint64_t hash = hash_of(hash_of(0xcbf29ce484222325u, model), run);
    size_t place = (size_t)(hash >> 32) % N_PLACES;
    for (; tally->run_places[place] != 0; place = (place + 1) % N_PLACES) {
        weir_run_tally *row = &tally->runs[tally->run_places[place] - 1];
        if (strcmp(row->model, model) == 0 && strcmp(row->run, run) == 0)
            return row;
    }
    weir_run_tally *row = &tally->runs[tally->n_runs];
    if (tally->n_runs <= WEIR_TALLY_MOST)
        tally->n_runs++;
    if (row > &tally->runs[WEIR_TALLY_MOST])
        row = &tally->runs[WEIR_TALLY_MOST];
    if (row == &tally->runs[WEIR_TALLY_MOST]) {
        row->model = row->run = WEIR_TALLY_OTHER;
        return row;
    }
    row->model = model;
    row->run = run;
    tally->run_places[place] = (unsigned char)tally->n_runs;
    return row;
}

static bool count_version(void *context, const weir_store_version *version, size_t n_leases)
{
    weir_fleet_tally *tally = context;
    weir_run_tally *row = run_of(tally, version->model, version->run != NULL ? version->run : "");
    model_of(tally, version->model)->leases += n_leases;
    row->versions[(unsigned)version->state < 5 ? version->state : 0]++;
    if (version->state == WEIR_STORE_STAGING) {
        row->shards += version->n_covered;
        row->slots += version->n_slots;
    }
    if (version->state != WEIR_STORE_READY || !version->has_number)
        return true;
    if (!row->has_ready || version->number > row->newest_ready)
        row->newest_ready = version->number;
    row->has_ready = true;
    bool is_newer = !row->has_readable || version->number > row->newest_readable;
    if (is_newer && !weir_store_is_unreadable(tally->store, version->uid, tally->now_ms)) {
        row->has_readable = true;
        row->newest_readable = version->number;
    }
    return true;
}

/* Only once it is known which is the newest that can be read. */
static bool count_unreadable(void *context, const weir_store_version *version, size_t n_leases)
{
    weir_fleet_tally *tally = context;
    (void)n_leases;
    if (version->state != WEIR_STORE_READY || !version->has_number)
        return true;
    weir_run_tally *row = run_of(tally, version->model, version->run != NULL ? version->run : "");
    row->unreadable += (!row->has_readable || version->number > row->newest_readable) &&
                       weir_store_is_unreadable(tally->store, version->uid, tally->now_ms);
    return true;
}

static bool count_worker(void *context, const weir_store_worker *worker)
{
    weir_fleet_tally *tally = context;
    if (worker->expires_ms > tally->now_ms && !worker->is_superseded)
        model_of(tally, worker->model)->workers[(unsigned)worker->role < 3 ? worker->role : 0]++;
    return true;
}

static bool count_source(void *context, const weir_store_source *source)
{
    weir_fleet_tally *tally = context;
    weir_model_tally *model = model_of(tally, source->model);
    if (weir_store_is_source_gone(source, tally->now_ms)) {
        model->gone++;
        return true;
    }
    model->sources[(unsigned)source->status < 4 ? source->status : 0]++;
    bool is_replica = source->role != NULL && strcmp(source->role, "inference_replica") == 0;
    if (!is_replica || source->status != WEIR_STORE_SOURCE_READY || !source->has_step)
        return true;
    weir_run_tally *row = run_of(tally, source->model, source->run != NULL ? source->run : "");
    if (!row->has_held || source->step < row->lowest_held)
        row->lowest_held = source->step;
    row->has_held = true;
    return true;
}

weir_status weir_fleet_tally_make(const weir_store *store, uint64_t now_ms, weir_arena *arena,
                                  weir_fleet_tally **out)
{
    weir_fleet_tally *tally = weir_arena_zeroed(arena, 1, sizeof(*tally));
    if (tally == NULL)
        return WEIR_ERR_NO_MEMORY;
    tally->store = store;
    tally->now_ms = now_ms;
    weir_store_each_version(store, NULL, count_version, tally);
    weir_store_each_version(store, NULL, count_unreadable, tally);
    weir_store_each_worker(store, NULL, count_worker, tally);
    weir_store_each_source(store, NULL, count_source, tally);
    *out = tally;
    return WEIR_OK;
}
