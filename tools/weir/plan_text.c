/* SPDX-License-Identifier: Apache-2.0 */
/* plan_text.c - the report of `weir plan` for people: least, mean and most of what is one number
 * per rank or worker.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "plan_report.h"

#define LABEL "%-16s"

static bool print_spread(const weir_plan_report *report, const char *label, weir_plan_figure figure)
{
    size_t n;
    uint64_t *numbers = weir_plan_figures(report, figure, &n);
    if (numbers == NULL)
        return false;
    weir_spread spread = weir_spread_of(numbers, n);
    free(numbers);
    printf(LABEL "%s to %s", label, weir_cli_bytes_text(spread.least).text,
           weir_cli_bytes_text(spread.most).text);
    if (spread.mean > 0)
        printf(", %s in the mean: most is %.2f of it",
               weir_cli_bytes_text((uint64_t)spread.mean).text, (double)spread.most / spread.mean);
    putchar('\n');
    return true;
}

static void print_totals(const weir_plan_report *report)
{
    const weir_plan_model *model = &report->model;
    const weir_plan_traffic *traffic = &report->traffic;
    double mean = traffic->n_copies > 0 ? (double)traffic->n_bytes / (double)traffic->n_copies : 0;
    double needed = traffic->n_needed_bytes > 0 ? (double)traffic->n_needed_bytes : 1;
    printf(LABEL "%s, %zu tensors\n", "conversion", weir_mapping_conversion(model->mapping)->name,
           model->n_tensors);
    uint32_t n_replicas = model->n_workers / model->n_parts;
    printf(LABEL "%u trainer ranks, %u workers in %u replica%s\n", "from, to", model->n_ranks,
           model->n_workers, n_replicas, n_replicas > 1 ? "s" : "");
    printf(LABEL "%" PRIu64 " of %s, %.3f of what the workers need: ", "copies", traffic->n_copies,
           weir_cli_bytes_text(traffic->n_bytes).text, (double)traffic->n_bytes / needed);
    printf("%s in the mean, %s the largest\n", weir_cli_bytes_text((uint64_t)mean).text,
           weir_cli_bytes_text(traffic->largest_copy_bytes).text);
    printf(LABEL "%" PRIu64 "\n", "conversions", traffic->n_jobs);
    printf(LABEL "%" PRIu64 " pieces, %s between trainer ranks\n", "borders",
           traffic->n_border_pieces, weir_cli_bytes_text(traffic->n_loan_bytes).text);
}

static bool print_figures(const weir_plan_report *report)
{
    const char *slot = report->model.window_bytes > 0 ? "rank makes" : "one of 2 slots";
    bool printed = print_spread(report, slot, WEIR_FIGURE_SLOT) &&
                   print_spread(report, "rank sends", WEIR_FIGURE_RANK_SENDS) &&
                   print_spread(report, "rank lends", WEIR_FIGURE_RANK_LENDS) &&
                   print_spread(report, "rank borrows", WEIR_FIGURE_RANK_BORROWS) &&
                   print_spread(report, "worker gets", WEIR_FIGURE_WORKER_READS);
    if (printed && report->gpus_per_host > 0)
        printed = print_spread(report, "host sends", WEIR_FIGURE_HOST_SENDS) &&
                  print_spread(report, "host gets", WEIR_FIGURE_HOST_READS);
    return printed && print_spread(report, "rank memory", WEIR_FIGURE_RANK_MEMORY) &&
           print_spread(report, "worker memory", WEIR_FIGURE_WORKER_PARAMETERS);
}

static void print_forecast(const weir_plan_report *report)
{
    const weir_forecast *f = &report->forecast;
    printf(LABEL "%.4g s: borders %.4g s, converting %.4g s, reading %.4g s\n", "refit", f->seconds,
           f->border_seconds, f->convert_seconds, f->read_seconds);
    printf(LABEL "%s %s, which takes %.4g s\n", "bound", weir_link_text(&f->bound).text,
           weir_cli_bytes_text((uint64_t)f->bound.n_bytes).text, f->bound.seconds);
    printf(LABEL "%.2f of the speed of light, which that is\n", "fraction",
           f->seconds > 0 ? f->bound.seconds / f->seconds : 1.0);
    if (f->relay_seconds < f->bound.seconds)
        printf(LABEL
               "%.4g s would be the bound if replicas passed on what they read (they do not)\n",
               "if relayed", f->relay_seconds);
}

int weir_plan_print_text(const weir_plan_report *report)
{
    print_totals(report);
    if (!print_figures(report))
        return weir_cli_error("out of memory");
    printf(LABEL "%" PRIu64 " rules, %s, made in %.1f ms; a rank's share in %.1f ms at most\n",
           "plan", report->sum.n_rules, weir_cli_bytes_text(report->sum.plan_bytes).text,
           report->model.seconds * 1e3, report->traffic.slowest_share_seconds * 1e3);
    char signature[33];
    weir_fleet_signature(report->model.fleet, signature);
    printf(LABEL "%s\n", "signature", signature);
    if (report->simulated)
        print_forecast(report);
    return WEIR_EXIT_OK;
}
