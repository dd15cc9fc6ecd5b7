/* SPDX-License-Identifier: Apache-2.0 */
/* plan_forecast.c - turns a plan's traffic into flows over links, has them simulated, and says
 * which link none of it could beat.
 */
#include "plan_forecast.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Links of one kind follow each other. */
typedef struct network {
    const weir_plan_model *model;
    const weir_plan_traffic *traffic;
    const weir_forecast_rates *rates;
    uint32_t gpus_per_host; /* 0: hosts are no limit */
    uint32_t base[WEIR_N_LINK_KINDS + 1];
    double *link_rates;              /* bytes per second */
    double *read_bytes, *loan_bytes; /* that cross each link */
    weir_flow *flows;
} network;

weir_cli_text weir_link_text(const weir_link_bound *bound)
{
    static const char *const whose[WEIR_N_LINK_KINDS] = {
        [WEIR_LINK_RANK_SENDS] = "trainer rank",
        [WEIR_LINK_RANK_READS] = "trainer rank",
        [WEIR_LINK_WORKER_READS] = "worker",
        [WEIR_LINK_TRAINER_HOST_SENDS] = "trainer host",
        [WEIR_LINK_TRAINER_HOST_READS] = "trainer host",
        [WEIR_LINK_ENGINE_HOST_READS] = "engine host",
    };
    bool sends = bound->kind == WEIR_LINK_RANK_SENDS || bound->kind == WEIR_LINK_TRAINER_HOST_SENDS;
    weir_cli_text out;
    snprintf(out.text, sizeof(out.text), "%s %u %s", whose[bound->kind], bound->index,
             sends ? "sends" : "reads");
    return out;
}

/* ---- links -----------------------------------------------------------------------------------*/

static uint32_t n_hosts(uint32_t n_gpus, uint32_t gpus_per_host)
{
    return gpus_per_host > 0 ? (n_gpus + gpus_per_host - 1) / gpus_per_host : 0;
}

static bool network_open(network *net)
{
    uint32_t n_ranks = net->model->n_ranks, n_workers = net->model->n_workers;
    const uint32_t n[WEIR_N_LINK_KINDS] = {
        [WEIR_LINK_RANK_SENDS] = n_ranks,
        [WEIR_LINK_RANK_READS] = n_ranks,
        [WEIR_LINK_WORKER_READS] = n_workers,
        [WEIR_LINK_TRAINER_HOST_SENDS] = n_hosts(n_ranks, net->gpus_per_host),
        [WEIR_LINK_TRAINER_HOST_READS] = n_hosts(n_ranks, net->gpus_per_host),
        [WEIR_LINK_ENGINE_HOST_READS] = n_hosts(n_workers, net->gpus_per_host),
    };
    for (int k = 0; k < WEIR_N_LINK_KINDS; k++)
        net->base[k + 1] = net->base[k] + n[k];
    uint32_t n_links = net->base[WEIR_N_LINK_KINDS];
    size_t n_flows = net->traffic->reads.n * (n_workers / net->model->n_parts);
    if (n_flows < net->traffic->loans.n)
        n_flows = net->traffic->loans.n;
    net->link_rates = calloc(n_links, sizeof(*net->link_rates));
    net->read_bytes = calloc(n_links, sizeof(*net->read_bytes));
    net->loan_bytes = calloc(n_links, sizeof(*net->loan_bytes));
    net->flows = calloc(n_flows + 1, sizeof(*net->flows));
    if (net->link_rates == NULL || net->read_bytes == NULL || net->loan_bytes == NULL ||
        net->flows == NULL)
        return false;
    for (uint32_t l = 0; l < n_links; l++) {
        bool of_host = l >= net->base[WEIR_LINK_TRAINER_HOST_SENDS];
        net->link_rates[l] =
            1e9 * (of_host ? net->rates->host_gb_per_s : net->rates->link_gb_per_s);
    }
    return true;
}

static void network_close(network *net)
{
    free(net->link_rates);
    free(net->read_bytes);
    free(net->loan_bytes);
    free(net->flows);
}

static uint32_t link_of(const network *net, weir_link_kind kind, uint32_t index)
{
    return net->base[kind] + index;
}

/* ---- flows -----------------------------------------------------------------------------------*/

static weir_flow flow_of(const network *net, const weir_pair_traffic *pair, uint32_t sends,
                         uint32_t reads)
{
    uint64_t window = net->rates->window > 0 ? net->rates->window : pair->n_copies;
    uint64_t n_waits = (pair->n_copies + window - 1) / window;
    return (weir_flow){ .n_bytes = (double)pair->n_bytes,
                        .start_seconds = net->rates->latency_us * 1e-6 * (double)n_waits,
                        .links = { sends, reads, WEIR_ANY, WEIR_ANY } };
}

static void add_hosts(const network *net, weir_flow *flow, weir_link_kind from, uint32_t from_gpu,
                      weir_link_kind to, uint32_t to_gpu)
{
    if (net->gpus_per_host == 0)
        return;
    flow->links[2] = link_of(net, from, from_gpu / net->gpus_per_host);
    flow->links[3] = link_of(net, to, to_gpu / net->gpus_per_host);
}

static void count_bytes(double *bytes, const weir_flow *flow)
{
    for (int k = 0; k < WEIR_FLOW_LINKS && flow->links[k] != WEIR_ANY; k++)
        bytes[flow->links[k]] += flow->n_bytes;
}

static size_t make_reads(network *net)
{
    const weir_plan_model *model = net->model;
    size_t n = 0;
    for (uint32_t first = 0; first < model->n_workers; first += model->n_parts) {
        for (size_t i = 0; i < net->traffic->reads.n; i++) {
            const weir_pair_traffic *pair = &net->traffic->reads.pairs[i];
            uint32_t worker = first + pair->to;
            weir_flow flow = flow_of(net, pair, link_of(net, WEIR_LINK_RANK_SENDS, pair->from),
                                     link_of(net, WEIR_LINK_WORKER_READS, worker));
            add_hosts(net, &flow, WEIR_LINK_TRAINER_HOST_SENDS, pair->from,
                      WEIR_LINK_ENGINE_HOST_READS, worker);
            count_bytes(net->read_bytes, &flow);
            net->flows[n++] = flow;
        }
    }
    return n;
}

static size_t make_loans(network *net)
{
    for (size_t i = 0; i < net->traffic->loans.n; i++) {
        const weir_pair_traffic *pair = &net->traffic->loans.pairs[i];
        uint32_t per_host = net->gpus_per_host > 0 ? net->gpus_per_host : 1;
        weir_flow flow = flow_of(net, pair, link_of(net, WEIR_LINK_RANK_SENDS, pair->from),
                                 link_of(net, WEIR_LINK_RANK_READS, pair->to));
        if (pair->from / per_host != pair->to / per_host)
            add_hosts(net, &flow, WEIR_LINK_TRAINER_HOST_SENDS, pair->from,
                      WEIR_LINK_TRAINER_HOST_READS, pair->to);
        count_bytes(net->loan_bytes, &flow);
        net->flows[i] = flow;
    }
    return net->traffic->loans.n;
}

static weir_status play(const network *net, size_t n_flows, double *out_seconds)
{
    weir_simulate_args args = WEIR_SIMULATE_ARGS_INIT;
    weir_simulation found;
    args.link_rates = net->link_rates;
    args.n_links =
        net->base[net->gpus_per_host > 0 ? WEIR_N_LINK_KINDS : WEIR_LINK_TRAINER_HOST_SENDS];
    args.flows = net->flows;
    args.n_flows = n_flows;
    weir_status status = weir_simulate(&args, &found);
    if (status == WEIR_OK)
        *out_seconds = found.seconds;
    return status;
}

/* ---- what bounds it --------------------------------------------------------------------------*/

/* The slowest link of some kinds; what replicas read counts by `share`. */
static weir_link_bound slowest(const network *net, const weir_link_kind *kinds, size_t n_kinds,
                               double share)
{
    weir_link_bound out = { .kind = kinds[0] };
    for (size_t k = 0; k < n_kinds; k++) {
        for (uint32_t l = net->base[kinds[k]]; l < net->base[kinds[k] + 1]; l++) {
            double n_bytes = net->read_bytes[l] * share + net->loan_bytes[l];
            if (n_bytes > out.seconds * net->link_rates[l])
                out = (weir_link_bound){ kinds[k], l - net->base[kinds[k]], n_bytes,
                                         n_bytes / net->link_rates[l] };
        }
    }
    return out;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static void find_bounds(const network *net, weir_forecast *out)
{
    static const weir_link_kind sending[] = { WEIR_LINK_RANK_SENDS, WEIR_LINK_TRAINER_HOST_SENDS };
    static const weir_link_kind reading[] = { WEIR_LINK_RANK_READS, WEIR_LINK_TRAINER_HOST_READS,
                                              WEIR_LINK_WORKER_READS, WEIR_LINK_ENGINE_HOST_READS };
    double n_replicas = net->model->n_workers / net->model->n_parts;
    out->send = slowest(net, sending, 2, 1);
    out->read = slowest(net, reading, 4, 1);
    out->bound = out->send.seconds > out->read.seconds ? out->send : out->read;
    out->relay_seconds =
        larger(slowest(net, sending, 2, 1 / n_replicas).seconds, out->read.seconds);
}

static double slowest_conversion(const network *net)
{
    uint64_t most = 0;
    for (uint32_t r = 0; r < net->model->n_ranks; r++) {
        if (net->traffic->ranks[r].job_bytes > most)
            most = net->traffic->ranks[r].job_bytes;
    }
    double rate = net->rates->convert_gb_per_s * 1e9;
    return rate > 0 ? (double)most / rate : 0;
}

/* Groups of equal size go through two stages: the first is filled, the last one drained, and
 * between them the slower stage sets the pace. */
static double pipelined(double first, double second, uint32_t n_groups)
{
    double n = n_groups > 0 ? n_groups : 1;
    return first / n + larger(first, second) * (n - 1) / n + second / n;
}

int weir_forecast_make(const weir_plan_model *model, const weir_plan_traffic *traffic,
                       const weir_forecast_rates *rates, uint32_t gpus_per_host, weir_forecast *out)
{
    network net = { .model = model, .traffic = traffic, .rates = rates };
    weir_status status = WEIR_OK;
    *out = (weir_forecast){ 0 };
    if (rates->host_gb_per_s > 0)
        net.gpus_per_host = gpus_per_host;
    bool opened = network_open(&net);
    if (opened) {
        status = play(&net, make_loans(&net), &out->border_seconds);
        if (status == WEIR_OK)
            status = play(&net, make_reads(&net), &out->read_seconds);
        out->convert_seconds = slowest_conversion(&net);
        out->seconds =
            out->border_seconds + pipelined(out->convert_seconds, out->read_seconds, rates->groups);
        find_bounds(&net, out);
    }
    network_close(&net);
    if (!opened)
        return weir_cli_error("out of memory");
    return status == WEIR_OK ? WEIR_EXIT_OK : weir_cli_fail();
}
