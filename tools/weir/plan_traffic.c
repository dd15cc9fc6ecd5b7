/* SPDX-License-Identifier: Apache-2.0 */
/* plan_traffic.c - asks for the share of each rank in turn and adds it up, so that no more than one
 * is in memory. Replicas read the same shards: one of them is counted, the others are multiples.
 */
#include "plan_traffic.h"

#include <inttypes.h>
#include <stdlib.h>

typedef struct counter {
    const weir_plan_model *model;
    weir_plan_traffic *traffic;
    uint32_t tp, pp, dp;
    weir_pair_traffic *row; /* from the rank at hand to each worker */
} counter;

/* ---- one rank --------------------------------------------------------------------------------*/

typedef struct span {
    uint32_t lo, hi;
} span;

static span span_of(uint32_t index, uint32_t n)
{
    return index == WEIR_ANY ? (span){ 0, n } : (span){ index, index + 1 };
}

/* Each worker that the shard is for reads it once. */
static void count_reads(counter *c, const weir_share_shard *shard)
{
    span ds = span_of(shard->place.d, c->dp), stages = span_of(shard->place.stage, c->pp);
    span ts = span_of(shard->place.t, c->tp);
    for (uint32_t d = ds.lo; d < ds.hi; d++) {
        for (uint32_t s = stages.lo; s < stages.hi; s++) {
            for (uint32_t t = ts.lo; t < ts.hi; t++) {
                weir_pair_traffic *pair = &c->row[(d * c->pp + s) * c->tp + t];
                pair->n_bytes += shard->n_bytes;
                pair->n_copies++;
            }
        }
    }
}

static uint64_t bits_to_bytes(uint64_t bits)
{
    return (bits + 7) / 8;
}

static uint64_t output_bytes(const weir_conversion_output *output, uint64_t n_rows, uint64_t n_cols)
{
    uint64_t rows = output->cell_rows == WEIR_WHOLE ? n_rows : output->cell_rows;
    uint64_t cols = output->cell_cols == WEIR_WHOLE ? n_cols : output->cell_cols;
    if (rows == 0 || cols == 0)
        return 0;
    return bits_to_bytes((n_rows + rows - 1) / rows * ((n_cols + cols - 1) / cols) *
                         weir_dtype_bits(output->dtype));
}

/* What a conversion reads and writes. */
static uint64_t job_bytes(const weir_plan_model *model, const weir_share_job *job)
{
    const weir_fleet_tensor *tensor = &model->tensors[job->copy.tensor];
    uint64_t n_elements = (uint64_t)job->copy.n_rows * job->copy.n_cols;
    uint64_t n_bytes = bits_to_bytes(n_elements * tensor->source_bits);
    for (size_t o = 0; o < tensor->conversion->n_outputs; o++) {
        if (job->shards[o] != WEIR_ANY)
            n_bytes +=
                output_bytes(&tensor->conversion->outputs[o], job->copy.n_rows, job->copy.n_cols);
    }
    return n_bytes;
}

static bool list_add(weir_pair_list *list, const weir_pair_traffic *pair)
{
    if (list->n == list->room) {
        size_t room = list->room * 2 + 256;
        weir_pair_traffic *grown = realloc(list->pairs, room * sizeof(*grown));
        if (grown == NULL)
            return false;
        list->pairs = grown;
        list->room = room;
    }
    list->pairs[list->n++] = *pair;
    return true;
}

static void count_share(counter *c, uint32_t rank, const weir_share *share)
{
    weir_rank_traffic *out = &c->traffic->ranks[rank];
    for (size_t i = 0; i < share->n_shards; i++) {
        const weir_share_shard *shard = &share->shards[i];
        if (shard->n_bytes == 0)
            continue; /* all of it is padding */
        out->n_shards++;
        out->slot_bytes += shard->n_bytes;
        if (shard->n_bytes > c->traffic->largest_copy_bytes)
            c->traffic->largest_copy_bytes = shard->n_bytes;
        count_reads(c, shard);
    }
    out->n_jobs = share->n_jobs;
    for (size_t i = 0; i < share->n_jobs; i++)
        out->job_bytes += job_bytes(c->model, &share->jobs[i]);
    for (size_t i = 0; i < share->n_borrows; i++)
        out->borrowed_bytes += share->borrows[i].n_bytes;
    c->traffic->n_jobs += share->n_jobs;
    c->traffic->n_border_pieces += share->n_lent;
}

static bool list_pairs(counter *c, uint32_t rank, const weir_share *share)
{
    weir_plan_traffic *traffic = c->traffic;
    uint32_t n_replicas = c->model->n_workers / c->model->n_parts;
    for (uint32_t w = 0; w < c->model->n_parts; w++) {
        weir_pair_traffic pair = { rank, w, c->row[w].n_bytes, c->row[w].n_copies };
        c->row[w] = (weir_pair_traffic){ 0 };
        if (pair.n_copies == 0)
            continue;
        traffic->workers[w].received_bytes += pair.n_bytes;
        traffic->workers[w].n_copies += pair.n_copies;
        traffic->ranks[rank].sent_bytes += pair.n_bytes * n_replicas;
        if (!list_add(&traffic->reads, &pair))
            return false;
    }
    for (size_t i = 0; i < share->n_lends; i++) {
        const weir_share_loan *loan = &share->lends[i];
        weir_pair_traffic pair = { rank, loan->rank, loan->n_bytes, 1 }; /* read as one */
        traffic->ranks[rank].lent_bytes += loan->n_bytes;
        traffic->n_loan_bytes += loan->n_bytes;
        if (!list_add(&traffic->loans, &pair))
            return false;
    }
    return true;
}

/* What one conversion writes passes through one buffer. */
static int check_window(const weir_plan_model *model, uint32_t rank, const weir_share *share)
{
    uint64_t buffer_bytes = model->window_bytes / WEIR_PLAN_SLOTS;
    for (size_t i = 0; i < share->n_jobs && model->window_bytes > 0; i++) {
        const weir_share_job *job = &share->jobs[i];
        const weir_fleet_tensor *tensor = &model->tensors[job->copy.tensor];
        uint64_t n_bytes = 0;
        for (size_t o = 0; o < tensor->conversion->n_outputs; o++)
            n_bytes += job->shards[o] != WEIR_ANY ? share->shards[job->shards[o]].n_bytes : 0;
        if (n_bytes > buffer_bytes)
            return weir_cli_error("%s: rank %u: a piece of %" PRIu64 " bytes that cannot be cut "
                                  "does not fit a buffer of %" PRIu64 " bytes of the window",
                                  tensor->name, rank, n_bytes, buffer_bytes);
    }
    return WEIR_EXIT_OK;
}

static int count_rank(counter *c, uint32_t rank)
{
    weir_share *share;
    double begun = weir_cli_now();
    if (weir_plan_model_share(c->model, rank, &share) != WEIR_OK)
        return weir_cli_fail();
    double seconds = weir_cli_now() - begun;
    c->traffic->seconds += seconds;
    if (seconds > c->traffic->slowest_share_seconds)
        c->traffic->slowest_share_seconds = seconds;
    int code = check_window(c->model, rank, share);
    count_share(c, rank, share);
    if (!list_pairs(c, rank, share) && code == WEIR_EXIT_OK)
        code = weir_cli_error("out of memory");
    weir_share_free(share);
    return code;
}

/* ---- workers ---------------------------------------------------------------------------------*/

/* Bytes of all outputs of the conversion of one matrix. */
static uint64_t matrix_bytes(const weir_conversion *conversion, uint64_t n_rows, uint64_t n_cols)
{
    uint64_t n_bytes = 0;
    for (size_t o = 0; o < conversion->n_outputs; o++)
        n_bytes += output_bytes(&conversion->outputs[o], n_rows, n_cols);
    return n_bytes;
}

static weir_status count_worker(const weir_plan_model *model, uint32_t worker,
                                weir_worker_traffic *out)
{
    for (uint32_t t = 0; t < model->n_tensors; t++) {
        weir_fleet_slice slice;
        weir_status status = weir_fleet_slice_of(model->fleet, worker, t, &slice);
        if (status != WEIR_OK)
            return status;
        out->needed_bytes += slice.n_bytes;
        out->parameter_bytes +=
            slice.n_slots * matrix_bytes(model->tensors[t].conversion, slice.n_rows, slice.n_cols);
    }
    return WEIR_OK;
}

static int count_workers(const weir_plan_model *model, weir_plan_traffic *traffic)
{
    uint32_t n_replicas = model->n_workers / model->n_parts;
    for (uint32_t w = 0; w < model->n_parts; w++) {
        weir_worker_traffic *worker = &traffic->workers[w];
        if (count_worker(model, w, worker) != WEIR_OK)
            return weir_cli_fail();
        traffic->n_copies += worker->n_copies * n_replicas;
        traffic->n_bytes += worker->received_bytes * n_replicas;
        traffic->n_needed_bytes += worker->needed_bytes * n_replicas;
    }
    return WEIR_EXIT_OK;
}

static uint32_t at_least_one(uint32_t n)
{
    return n > 0 ? n : 1;
}

int weir_plan_traffic_open(const weir_plan_model *model, weir_plan_traffic *traffic)
{
    *traffic = (weir_plan_traffic){ 0 };
    counter c = { .model = model,
                  .traffic = traffic,
                  .tp = at_least_one(model->replica.tp),
                  .pp = at_least_one(model->replica.pp),
                  .dp = at_least_one(model->replica.dp) };
    int code = WEIR_EXIT_OK;
    traffic->ranks = calloc(model->n_ranks, sizeof(*traffic->ranks));
    traffic->workers = calloc(model->n_parts, sizeof(*traffic->workers));
    c.row = calloc(model->n_parts, sizeof(*c.row));
    if (traffic->ranks == NULL || traffic->workers == NULL || c.row == NULL)
        code = weir_cli_error("out of memory");
    for (uint32_t r = 0; r < model->n_ranks && code == WEIR_EXIT_OK; r++)
        code = count_rank(&c, r);
    if (code == WEIR_EXIT_OK)
        code = count_workers(model, traffic);
    free(c.row);
    return code;
}

void weir_plan_traffic_close(weir_plan_traffic *traffic)
{
    free(traffic->ranks);
    free(traffic->workers);
    free(traffic->reads.pairs);
    free(traffic->loans.pairs);
}
