/* SPDX-License-Identifier: Apache-2.0 */
/* plan_json.c - the report of `weir plan` as one object: every figure of every rank and worker. */
#include <stdlib.h>
#include <sys/resource.h>

#include "plan_report.h"

static json_t *figures_json(const weir_plan_report *report, weir_plan_figure figure)
{
    size_t n;
    uint64_t *numbers = weir_plan_figures(report, figure, &n);
    json_t *list = numbers != NULL ? json_array() : NULL;
    for (size_t i = 0; list != NULL && i < n; i++)
        json_array_append_new(list, json_integer((json_int_t)numbers[i]));
    free(numbers);
    return list;
}

/* How many times the mean the most burdened one has; of nothing at all 1. */
static json_t *balance_json(const weir_plan_report *report, weir_plan_figure figure)
{
    size_t n;
    uint64_t *numbers = weir_plan_figures(report, figure, &n);
    if (numbers == NULL)
        return NULL;
    weir_spread spread = weir_spread_of(numbers, n);
    free(numbers);
    return json_real(spread.mean > 0 ? (double)spread.most / spread.mean : 1.0);
}

static json_t *balances_json(const weir_plan_report *report)
{
    return json_pack("{s:o, s:o, s:o, s:o}", "rank_slot_bytes",
                     balance_json(report, WEIR_FIGURE_SLOT), "rank_bytes_sent",
                     balance_json(report, WEIR_FIGURE_RANK_SENDS), "rank_memory_bytes",
                     balance_json(report, WEIR_FIGURE_RANK_MEMORY), "worker_bytes",
                     balance_json(report, WEIR_FIGURE_WORKER_READS));
}

static json_t *bound_json(const weir_link_bound *bound)
{
    return json_pack("{s:s, s:i, s:f, s:f}", "link", weir_link_text(bound).text, "index",
                     (int)bound->index, "bytes", bound->n_bytes, "seconds", bound->seconds);
}

static json_t *forecast_json(const weir_plan_report *report)
{
    const weir_forecast_rates *rates = &report->rates;
    const weir_forecast *f = &report->forecast;
    if (!report->simulated)
        return json_null();
    return json_pack(
        "{s:{s:f, s:f, s:f, s:f, s:i, s:i}, s:f, s:f, s:f, s:f, s:o, s:f, s:f, s:o, s:o, s:f}",
        "rates", "link_gb_per_s", rates->link_gb_per_s, "host_gb_per_s", rates->host_gb_per_s,
        "latency_us", rates->latency_us, "convert_gb_per_s", rates->convert_gb_per_s, "window",
        (int)rates->window, "groups", (int)rates->groups, "seconds", f->seconds, "border_seconds",
        f->border_seconds, "convert_seconds", f->convert_seconds, "read_seconds", f->read_seconds,
        "bound", bound_json(&f->bound), "bound_seconds", f->bound.seconds, "fraction",
        f->seconds > 0 ? f->bound.seconds / f->seconds : 1.0, "slowest_sender",
        bound_json(&f->send), "slowest_reader", bound_json(&f->read),
        "bound_seconds_if_replicas_relayed", f->relay_seconds);
}

static json_t *totals_json(const weir_plan_report *report)
{
    const weir_plan_model *model = &report->model;
    const weir_plan_traffic *traffic = &report->traffic;
    uint64_t n_copies = traffic->n_copies > 0 ? traffic->n_copies : 1;
    return json_pack(
        "{s:s, s:I, s:i, s:i, s:i, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:i, s:I}", "conversion",
        weir_mapping_conversion(model->mapping)->name, "tensors", (json_int_t)model->n_tensors,
        "ranks", (int)model->n_ranks, "workers", (int)model->n_workers, "replicas",
        (int)(model->n_workers / model->n_parts), "copies", (json_int_t)traffic->n_copies, "bytes",
        (json_int_t)traffic->n_bytes, "needed_bytes", (json_int_t)traffic->n_needed_bytes,
        "mean_copy_bytes", (double)traffic->n_bytes / (double)n_copies, "largest_copy_bytes",
        (json_int_t)traffic->largest_copy_bytes, "conversions", (json_int_t)traffic->n_jobs,
        "border_pieces", (json_int_t)traffic->n_border_pieces, "border_bytes",
        (json_int_t)traffic->n_loan_bytes, "slots", WEIR_PLAN_SLOTS, "window_bytes",
        (json_int_t)model->window_bytes);
}

static json_t *planning_json(const weir_plan_report *report)
{
    struct rusage used = { 0 };
    char signature[33];
    getrusage(RUSAGE_SELF, &used);
    weir_fleet_signature(report->model.fleet, signature);
    return json_pack("{s:s, s:I, s:I, s:I, s:f, s:f, s:f}", "signature", signature, "rules",
                     (json_int_t)report->sum.n_rules, "bytes", (json_int_t)report->sum.plan_bytes,
                     "peak_process_bytes", (json_int_t)used.ru_maxrss * 1024, "seconds",
                     report->model.seconds, "all_shares_seconds", report->traffic.seconds,
                     "slowest_share_seconds", report->traffic.slowest_share_seconds);
}

int weir_plan_print_json(const weir_plan_report *report)
{
    static const char *const names[WEIR_N_FIGURES] = {
        [WEIR_FIGURE_SLOT] = "rank_slot_bytes",
        [WEIR_FIGURE_RANK_SENDS] = "rank_bytes_sent",
        [WEIR_FIGURE_RANK_LENDS] = "rank_bytes_lent",
        [WEIR_FIGURE_RANK_BORROWS] = "rank_bytes_borrowed",
        [WEIR_FIGURE_RANK_MEMORY] = "rank_memory_bytes",
        [WEIR_FIGURE_WORKER_READS] = "worker_bytes",
        [WEIR_FIGURE_WORKER_COPIES] = "worker_copies",
        [WEIR_FIGURE_WORKER_PARAMETERS] = "worker_parameter_bytes",
        [WEIR_FIGURE_HOST_SENDS] = "host_bytes_sent",
        [WEIR_FIGURE_HOST_READS] = "host_bytes_read",
    };
    json_t *out = totals_json(report);
    bool complete = out != NULL;
    for (weir_plan_figure figure = 0; figure < WEIR_N_FIGURES && complete; figure++) {
        if (figure < WEIR_FIGURE_HOST_SENDS || report->gpus_per_host > 0)
            complete = json_object_set_new(out, names[figure], figures_json(report, figure)) == 0;
    }
    complete = complete && json_object_set_new(out, "balance", balances_json(report)) == 0 &&
               json_object_set_new(out, "plan", planning_json(report)) == 0 &&
               json_object_set_new(out, "simulation", forecast_json(report)) == 0;
    if (!complete) {
        json_decref(out);
        out = NULL;
    }
    return weir_cli_print_json(out);
}
