/* SPDX-License-Identifier: Apache-2.0 */
/* plan_report.h - what `weir plan` prints: for people, or as one JSON object. */
#ifndef WEIR_TOOLS_PLAN_REPORT_H
#define WEIR_TOOLS_PLAN_REPORT_H

#include "plan_forecast.h"

typedef struct weir_plan_report {
    weir_plan_model model;
    weir_plan_traffic traffic;
    weir_fleet_summary sum;
    uint32_t gpus_per_host; /* 0: not said */
    bool simulated;         /* rates and forecast are there */
    weir_forecast_rates rates;
    weir_forecast forecast;
} weir_plan_report;

/* Numbers of ranks, workers or hosts. */
typedef struct weir_spread {
    uint64_t least, most;
    double mean;
} weir_spread;
weir_spread weir_spread_of(const uint64_t *numbers, size_t n);

/* One number per rank, worker of all replicas, or host: figures that both forms of the report show.
 * NULL when out of memory, else freed by the caller. */
typedef enum weir_plan_figure {
    WEIR_FIGURE_SLOT,
    WEIR_FIGURE_RANK_SENDS,
    WEIR_FIGURE_RANK_LENDS,
    WEIR_FIGURE_RANK_BORROWS,
    WEIR_FIGURE_RANK_MEMORY,
    WEIR_FIGURE_WORKER_READS,
    WEIR_FIGURE_WORKER_COPIES,
    WEIR_FIGURE_WORKER_PARAMETERS,
    WEIR_FIGURE_HOST_SENDS, /* to workers; none without gpus_per_host */
    WEIR_FIGURE_HOST_READS, /* by workers */
    WEIR_N_FIGURES
} weir_plan_figure;
uint64_t *weir_plan_figures(const weir_plan_report *report, weir_plan_figure figure, size_t *out_n);

/* Both return an exit code. */
int weir_plan_print_text(const weir_plan_report *report);
int weir_plan_print_json(const weir_plan_report *report);

/* What one worker reads, or what one rank publishes, lends and borrows, line by line. `index` is
 * below n_workers, n_ranks. Return an exit code. */
int weir_plan_list_worker(const weir_plan_model *model, uint32_t worker, bool as_json);
int weir_plan_list_rank(const weir_plan_model *model, uint32_t rank, bool as_json);

#endif
