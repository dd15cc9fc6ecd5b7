/* SPDX-License-Identifier: Apache-2.0 */
/* plan_forecast.h - how long a planned refit would take on given links.
 *
 * The model. Every rank and worker has one full-duplex link; with hosts of G GPUs, those of a host
 * share a full-duplex link to other hosts besides. Trainers' hosts and engines' hosts are different
 * ones, and what stays within a host takes the GPUs' links alone. Three steps follow each other, as
 * they do in Weir: ranks read borders of each other; every rank converts; then all workers read
 * from all ranks at the same time, what goes from one rank to one worker as one flow (simulate.h).
 * A flow's first byte comes a latency after it is asked for, and another latency for every further
 * `window` copies of it. What is not in the model: the directory's calls, digests, installing,
 * memory that is slower than the link, and congestion between the links.
 */
#ifndef WEIR_TOOLS_PLAN_FORECAST_H
#define WEIR_TOOLS_PLAN_FORECAST_H

#include "plan_traffic.h"
#include "weir/simulate.h"

typedef struct weir_forecast_rates {
    double link_gb_per_s;
    double host_gb_per_s; /* of a host's GPUs together; 0: no limit */
    double latency_us;
    double convert_gb_per_s; /* of a rank, read and written as `weir bench` counts; 0: no time */
    uint32_t window;         /* copies asked for at once, of a rank by a worker; 0: all */
    uint32_t groups; /* of layers: one is converted while another is read; 0: 1, no overlap */
} weir_forecast_rates;

/* Reads "link_gb_per_s=50,latency_us=5,…". False after having printed the usage error, which names
 * the token. */
bool weir_forecast_read(const char *verb, const char *text, weir_forecast_rates *out);

/* Kinds of links, each one direction. */
typedef enum weir_link_kind {
    WEIR_LINK_RANK_SENDS,
    WEIR_LINK_RANK_READS,
    WEIR_LINK_WORKER_READS,
    WEIR_LINK_TRAINER_HOST_SENDS,
    WEIR_LINK_TRAINER_HOST_READS,
    WEIR_LINK_ENGINE_HOST_READS,
    WEIR_N_LINK_KINDS
} weir_link_kind;

/* The slowest link of a kind: bytes / rate. */
typedef struct weir_link_bound {
    weir_link_kind kind;
    uint32_t index;
    double n_bytes, seconds;
} weir_link_bound;

typedef struct weir_forecast {
    double seconds; /* of the whole refit */
    double border_seconds, convert_seconds, read_seconds;
    weir_link_bound bound;      /* the speed of light: no order of copies beats it */
    weir_link_bound send, read; /* the slowest of those that send; of those that read */
    double relay_seconds;       /* the speed of light if replicas handed on what they have */
} weir_forecast;

weir_cli_text weir_link_text(const weir_link_bound *bound); /* "trainer rank 7 sends" */

/* gpus_per_host 0: no hosts. Returns an exit code, after having printed why when it is not 0. */
int weir_forecast_make(const weir_plan_model *model, const weir_plan_traffic *traffic,
                       const weir_forecast_rates *rates, uint32_t gpus_per_host,
                       weir_forecast *out);

#endif
