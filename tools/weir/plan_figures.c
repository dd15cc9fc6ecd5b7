/* SPDX-License-Identifier: Apache-2.0 */
/* plan_figures.c - one number per rank, worker or host, out of a plan's traffic. */
#include <stdlib.h>

#include "plan_report.h"

weir_spread weir_spread_of(const uint64_t *numbers, size_t n)
{
    weir_spread out = { n > 0 ? numbers[0] : 0, 0, 0 };
    for (size_t i = 0; i < n; i++) {
        out.least = numbers[i] < out.least ? numbers[i] : out.least;
        out.most = numbers[i] > out.most ? numbers[i] : out.most;
        out.mean += (double)numbers[i] / (double)n;
    }
    return out;
}

/* Slots, or the window that stands for them. */
static uint64_t kept_bytes(const weir_plan_model *model, const weir_rank_traffic *rank)
{
    return model->window_bytes > 0 ? model->window_bytes : rank->slot_bytes * WEIR_PLAN_SLOTS;
}

static uint64_t rank_figure(const weir_plan_model *model, const weir_rank_traffic *rank,
                            weir_plan_figure figure)
{
    switch (figure) {
    case WEIR_FIGURE_SLOT:
        return rank->slot_bytes;
    case WEIR_FIGURE_RANK_LENDS:
        return rank->lent_bytes;
    case WEIR_FIGURE_RANK_BORROWS:
        return rank->borrowed_bytes;
    case WEIR_FIGURE_RANK_MEMORY:
        return kept_bytes(model, rank) + rank->lent_bytes * WEIR_PLAN_LENDS + rank->borrowed_bytes;
    default:
        return rank->sent_bytes;
    }
}

static uint64_t worker_figure(const weir_worker_traffic *worker, weir_plan_figure figure)
{
    switch (figure) {
    case WEIR_FIGURE_WORKER_COPIES:
        return worker->n_copies;
    case WEIR_FIGURE_WORKER_PARAMETERS:
        return worker->parameter_bytes;
    default:
        return worker->received_bytes;
    }
}

static uint64_t figure_of(const weir_plan_report *report, weir_plan_figure figure, size_t i)
{
    bool of_worker = (figure >= WEIR_FIGURE_WORKER_READS && figure < WEIR_FIGURE_HOST_SENDS) ||
                     figure == WEIR_FIGURE_HOST_READS;
    if (of_worker)
        return worker_figure(&report->traffic.workers[i % report->model.n_parts], figure);
    return rank_figure(&report->model, &report->traffic.ranks[i], figure);
}

uint64_t *weir_plan_figures(const weir_plan_report *report, weir_plan_figure figure, size_t *out_n)
{
    bool of_ranks = figure < WEIR_FIGURE_WORKER_READS || figure == WEIR_FIGURE_HOST_SENDS;
    size_t n = of_ranks ? report->model.n_ranks : report->model.n_workers, per_number = 1;
    if (figure >= WEIR_FIGURE_HOST_SENDS)
        per_number = report->gpus_per_host > 0 ? report->gpus_per_host : n;
    *out_n = (n + per_number - 1) / per_number;
    uint64_t *out = calloc(*out_n, sizeof(*out));
    for (size_t i = 0; out != NULL && i < n; i++)
        out[i / per_number] += figure_of(report, figure, i);
    return out;
}
