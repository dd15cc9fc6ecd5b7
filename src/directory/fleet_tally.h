/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_tally.h - a fleet as figures: how many of what there are, per model and per run of a model.
 *
 * Rows are bounded, so that what watches a directory does not drown in names: of models and runs
 * beyond WEIR_TALLY_MOST all count as one, "other". Worker ids are nowhere. */
#ifndef WEIR_DIRECTORY_FLEET_TALLY_H
#define WEIR_DIRECTORY_FLEET_TALLY_H

#include "base/arena.h"
#include "directory/store.h"

#define WEIR_TALLY_MOST 100u
#define WEIR_TALLY_OTHER "other"

typedef struct weir_run_tally {
    const char *model, *run;
    uint64_t versions[5]; /* by weir_store_state */
    bool has_ready, has_held;
    uint64_t newest_ready;  /* version number */
    uint64_t lowest_held;   /* of replica workers that are READY */
    uint64_t shards, slots; /* of versions that are STAGING: there, and wanted */
    bool has_readable;
    uint64_t newest_readable; /* version number */
    uint64_t unreadable;      /* READY, but nobody can read them, nor a later one */
} weir_run_tally;

typedef struct weir_model_tally {
    const char *model;
    uint64_t leases;
    uint64_t workers[3]; /* by weir_store_role */
    uint64_t sources[4]; /* by weir_store_source_status, but for */
    uint64_t gone;       /* READY of workers whose registration is over */
} weir_model_tally;

/* The last row of each, if there are more than WEIR_TALLY_MOST, is of all others. */
typedef struct weir_fleet_tally {
    weir_run_tally runs[WEIR_TALLY_MOST + 1];
    size_t n_runs;
    weir_model_tally models[WEIR_TALLY_MOST + 1];
    size_t n_models;
    const weir_store *store;
    uint64_t now_ms;
    unsigned char run_places[512], model_places[512]; /* hash tables of 1 + row */
} weir_fleet_tally;

/* Strings are the store's. *out is in the arena. */
weir_status weir_fleet_tally_make(const weir_store *store, uint64_t now_ms, weir_arena *arena,
                                  weir_fleet_tally **out);

#endif
