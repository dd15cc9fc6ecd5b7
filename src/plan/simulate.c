/* SPDX-License-Identifier: Apache-2.0 */
/* simulate.c - flows that share links max-min fair, from one change of rates to the next.
 *
 * A fleet has up to some hundred thousand flows, and nearly as many ends. Working out all rates at
 * each of them would be quadratic, so ends that lie close together are taken as one change: a flow
 * ends when its own bytes are through, its share of the links is handed on a little later.
 */
#include <math.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/options.h"
#include "weir/simulate.h"

#define DEFAULT_STEP (1.0 / 512)
#define SAME (1 + 1e-12) /* shares that differ by rounding alone */

typedef struct simulation {
    weir_simulate_args args;
    double *left;     /* bytes of each flow */
    double *rates;    /* of each flow */
    uint32_t *order;  /* flows by start; n_admitted of them have begun */
    uint32_t *active; /* those that have begun and not ended */
    size_t n_admitted, n_active;
    double *free_rates; /* of each link, while rates are worked out */
    uint32_t *n_open;   /* flows of each link that have no rate yet */
    uint32_t *first;    /* where a link's flows begin in `crossing`: n_links + 1 */
    uint32_t *crossing;
    double now, last_end;
} simulation;

/* ---- what is given ---------------------------------------------------------------------------*/

static weir_status check_flow(const weir_simulate_args *args, size_t i)
{
    const weir_flow *flow = &args->flows[i];
    bool good = isfinite(flow->n_bytes) && flow->n_bytes >= 0 && isfinite(flow->start_seconds) &&
                flow->start_seconds >= 0 && flow->links[0] != WEIR_ANY;
    for (size_t k = 0; good && k < WEIR_FLOW_LINKS; k++) {
        uint32_t link = flow->links[k];
        good = link == WEIR_ANY ||
               (link < args->n_links && (k == 0 || flow->links[k - 1] != WEIR_ANY));
        for (size_t j = 0; good && j < k; j++)
            good = link == WEIR_ANY || link != flow->links[j];
    }
    if (good)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID, "flow %zu: bytes, start or links that cannot be", i);
}

static weir_status check_args(const weir_simulate_args *args)
{
    weir_status status = WEIR_OK;
    if (args->n_links >= WEIR_ANY || args->n_flows >= WEIR_ANY / WEIR_FLOW_LINKS)
        return weir_fail(WEIR_ERR_INVALID, "a simulation of %zu flows over %zu links",
                         args->n_flows, args->n_links);
    if (!(args->step >= 0 && args->step <= 1))
        return weir_fail(WEIR_ERR_INVALID, "a simulation's step is %g of the bound", args->step);
    for (size_t l = 0; l < args->n_links; l++) {
        if (!(isfinite(args->link_rates[l]) && args->link_rates[l] >= 1))
            return weir_fail(WEIR_ERR_INVALID, "link %zu: %g bytes per second", l,
                             args->link_rates[l]);
    }
    for (size_t i = 0; i < args->n_flows && status == WEIR_OK; i++)
        status = check_flow(args, i);
    return status;
}

static weir_status simulation_open(simulation *s)
{
    size_t n_flows = s->args.n_flows, n_links = s->args.n_links;
    s->left = weir_alloc_zeroed(n_flows, sizeof(*s->left));
    s->rates = weir_alloc_zeroed(n_flows, sizeof(*s->rates));
    s->order = weir_alloc_zeroed(n_flows, sizeof(*s->order));
    s->active = weir_alloc_zeroed(n_flows, sizeof(*s->active));
    s->free_rates = weir_alloc_zeroed(n_links, sizeof(*s->free_rates));
    s->n_open = weir_alloc_zeroed(n_links, sizeof(*s->n_open));
    s->first = weir_alloc_zeroed(n_links + 1, sizeof(*s->first));
    s->crossing = weir_alloc_zeroed(n_flows * WEIR_FLOW_LINKS, sizeof(*s->crossing));
    bool complete = s->left != NULL && s->rates != NULL && s->order != NULL && s->active != NULL &&
                    s->free_rates != NULL && s->n_open != NULL && s->first != NULL &&
                    s->crossing != NULL;
    return complete ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static void simulation_close(simulation *s)
{
    weir_free(s->left);
    weir_free(s->rates);
    weir_free(s->order);
    weir_free(s->active);
    weir_free(s->free_rates);
    weir_free(s->n_open);
    weir_free(s->first);
    weir_free(s->crossing);
}

/* ---- rates -----------------------------------------------------------------------------------*/

static bool crosses(const weir_flow *flow, size_t k)
{
    return k < WEIR_FLOW_LINKS && flow->links[k] != WEIR_ANY;
}

/* Which active flows cross each link. */
static void list_crossing(simulation *s)
{
    size_t n_links = s->args.n_links;
    for (size_t l = 0; l < n_links; l++) {
        s->n_open[l] = 0;
        s->free_rates[l] = s->args.link_rates[l];
    }
    for (size_t i = 0; i < s->n_active; i++) {
        const weir_flow *flow = &s->args.flows[s->active[i]];
        for (size_t k = 0; crosses(flow, k); k++)
            s->n_open[flow->links[k]]++;
    }
    uint32_t n = 0;
    for (size_t l = 0; l < n_links; l++)
        s->first[l] = n += s->n_open[l]; /* the end: taken back to the begin by what follows */
    s->first[n_links] = n;
    for (size_t i = 0; i < s->n_active; i++) {
        const weir_flow *flow = &s->args.flows[s->active[i]];
        s->rates[s->active[i]] = 0;
        for (size_t k = 0; crosses(flow, k); k++)
            s->crossing[--s->first[flow->links[k]]] = s->active[i];
    }
}

static void fix_rates(simulation *s, size_t link, double share)
{
    for (size_t i = s->first[link]; i < s->first[link + 1]; i++) {
        const weir_flow *flow = &s->args.flows[s->crossing[i]];
        if (s->rates[s->crossing[i]] > 0)
            continue;
        s->rates[s->crossing[i]] = share;
        for (size_t k = 0; crosses(flow, k); k++) {
            s->free_rates[flow->links[k]] -= share;
            s->n_open[flow->links[k]]--;
        }
    }
}

static double least_share(const simulation *s)
{
    double least = INFINITY;
    for (size_t l = 0; l < s->args.n_links; l++) {
        if (s->n_open[l] > 0 && s->free_rates[l] < least * s->n_open[l])
            least = s->free_rates[l] / s->n_open[l];
    }
    return least;
}

/* The link that would fill first sets the rate of its flows; then the next one. Shares never fall
 * from link to link: what seems to is rounding, and no rate may come out as nothing. */
static void work_out_rates(simulation *s)
{
    double level = 0, least;
    list_crossing(s);
    while ((least = least_share(s)) < INFINITY) {
        level = least > level ? least : level;
        for (size_t l = 0; l < s->args.n_links; l++) {
            if (s->n_open[l] > 0 && s->free_rates[l] <= level * SAME * s->n_open[l])
                fix_rates(s, l, level);
        }
    }
}

/* ---- time ------------------------------------------------------------------------------------*/

static int by_start(const void *left, const void *right, void *flows)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    double start_a = ((const weir_flow *)flows)[a].start_seconds;
    double start_b = ((const weir_flow *)flows)[b].start_seconds;
    if (start_a != start_b)
        return start_a < start_b ? -1 : 1;
    return a < b ? -1 : 1;
}

static void end_flow(simulation *s, uint32_t f, double end)
{
    s->last_end = end > s->last_end ? end : s->last_end;
    if (s->args.ends != NULL)
        s->args.ends[f] = end;
}

static void admit(simulation *s)
{
    for (; s->n_admitted < s->args.n_flows; s->n_admitted++) {
        uint32_t f = s->order[s->n_admitted];
        const weir_flow *flow = &s->args.flows[f];
        if (flow->start_seconds > s->now)
            break;
        s->left[f] = flow->n_bytes;
        if (flow->n_bytes > 0)
            s->active[s->n_active++] = f;
        else
            end_flow(s, f, flow->start_seconds);
    }
}

static double next_start(const simulation *s)
{
    if (s->n_admitted == s->args.n_flows)
        return INFINITY;
    return s->args.flows[s->order[s->n_admitted]].start_seconds;
}

static double time_to_change(const simulation *s)
{
    double least = next_start(s) - s->now;
    for (size_t i = 0; i < s->n_active; i++) {
        double seconds = s->left[s->active[i]] / s->rates[s->active[i]];
        least = seconds < least ? seconds : least;
    }
    return least;
}

static void move_bytes(simulation *s, double step)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n_active; i++) {
        uint32_t f = s->active[i];
        double seconds = s->left[f] / s->rates[f];
        if (seconds <= step * SAME) {
            end_flow(s, f, s->now + seconds);
        } else {
            s->left[f] -= s->rates[f] * step;
            s->active[n++] = f;
        }
    }
    s->n_active = n;
    s->now += step;
}

static void play(simulation *s, double least_step)
{
    for (size_t i = 0; i < s->args.n_flows; i++)
        s->order[i] = (uint32_t)i;
    qsort_r(s->order, s->args.n_flows, sizeof(*s->order), by_start, (void *)s->args.flows);
    for (;;) {
        admit(s);
        if (s->n_active > 0) {
            work_out_rates(s);
            double step = time_to_change(s);
            move_bytes(s, step > least_step ? step : least_step);
        } else if (s->n_admitted < s->args.n_flows) {
            s->now = next_start(s);
        } else {
            return;
        }
    }
}

/* ---- the bound -------------------------------------------------------------------------------*/

static void find_bound(simulation *s, weir_simulation *out)
{
    *out = (weir_simulation){ .bound_link = WEIR_ANY };
    for (size_t i = 0; i < s->args.n_flows; i++) {
        const weir_flow *flow = &s->args.flows[i];
        for (size_t k = 0; crosses(flow, k); k++)
            s->free_rates[flow->links[k]] += flow->n_bytes; /* bytes, until rates are worked out */
    }
    for (size_t l = 0; l < s->args.n_links; l++) {
        double seconds = s->free_rates[l] / s->args.link_rates[l];
        if (seconds > out->bound_seconds) {
            out->bound_seconds = seconds;
            out->bound_link = (uint32_t)l;
        }
    }
}

weir_status weir_simulate(const weir_simulate_args *given, weir_simulation *out)
{
    simulation s = { 0 };
    weir_simulation found;
    weir_status status = weir_options_read(given, "weir_simulate_args", &s.args, sizeof(s.args));
    if (status == WEIR_OK)
        status = check_args(&s.args);
    if (status == WEIR_OK)
        status = simulation_open(&s);
    if (status == WEIR_OK) {
        find_bound(&s, &found);
        play(&s, found.bound_seconds * (s.args.step > 0 ? s.args.step : DEFAULT_STEP));
        /* Rounding alone could make it less. */
        found.seconds = s.last_end > found.bound_seconds ? s.last_end : found.bound_seconds;
        *out = found;
    }
    simulation_close(&s);
    return status;
}
