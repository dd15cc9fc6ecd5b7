/* SPDX-License-Identifier: Apache-2.0 */
/* share.c - one trainer rank's share of a fleet's plan: what it converts, publishes, lends and
 * borrows.
 *
 * Every rank goes through all parts of its stage in the same order and picks what is its own. A
 * part is made once, whoever and however many hold it. Rules that cannot concern a rank, whosever
 * turn it is, are sorted out once for all tensors that share them.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "plan/share_maker.h"

bool weir_share_make_room(void *block, size_t *room, size_t n, size_t item_bytes)
{
    void **array = block; /* the address of the array's pointer */
    if (n < *room)
        return true;
    size_t wanted = *room * 2 + 64;
    void *grown = weir_realloc(*array, wanted * item_bytes);
    if (grown == NULL)
        return false;
    *array = grown;
    *room = wanted;
    return true;
}

/* ---- rules that concern a rank ---------------------------------------------------------------*/

static bool is_among(uint32_t rank, uint32_t first, uint32_t n)
{
    return first <= rank && rank - first < n;
}

/* Whether the stage's rank `rank` may hold, own or lend something of it. */
static bool concerns(const weir_fleet *fleet, const weir_rule *rule, uint32_t rank)
{
    const weir_rule_piece *pieces = &fleet->cells.pieces[rule->copy.first_piece];
    if (rule->copy.source != WEIR_FLEET_MIXED)
        return is_among(rank, rule->copy.rank, rule->n_owners);
    for (uint32_t k = 0; k < rule->copy.n_pieces; k++) {
        if (is_among(rank, pieces[k].piece.rank, pieces[k].n_owners))
            return true;
    }
    return false;
}

static weir_status pick_rules(weir_share_maker *m)
{
    const weir_fleet *fleet = m->fleet;
    uint32_t rank = m->rank % (fleet->n_ranks / fleet->trainer.pp);
    m->first_picked = weir_alloc_zeroed(fleet->n_slices + 1, sizeof(m->first_picked[0]));
    if (m->first_picked == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t s = 0; s < fleet->n_slices; s++) {
        const weir_pattern_slice *slice = &fleet->slices[s];
        for (size_t k = slice->first_rule; k < slice->first_rule + slice->n_rules; k++) {
            if (!concerns(fleet, &fleet->cells.rules[k], rank))
                continue;
            if (!weir_share_make_room(&m->picked, &m->picked_room, m->n_picked,
                                      sizeof(m->picked[0])))
                return WEIR_ERR_NO_MEMORY;
            m->picked[m->n_picked++] = (uint32_t)k;
        }
        m->first_picked[s + 1] = m->n_picked;
    }
    return WEIR_OK;
}

/* ---- jobs ------------------------------------------------------------------------------------*/

/* Shard `gone` of an output has become a part of the one before it: so have the slot's jobs. */
static void move_jobs(weir_share_maker *m, size_t first_job, size_t o, size_t gone)
{
    for (size_t i = m->n_jobs; i > first_job; i--) {
        uint32_t *shard = &m->jobs[i - 1].shards[o];
        if (*shard != gone && *shard != WEIR_ANY)
            break;
        *shard -= *shard == gone ? 1 : 0;
    }
}

/* What a job makes of an output: of a border's scales, all of them. */
static const weir_fleet_copy *extent_of(const weir_share_maker *m, const weir_share_part *part,
                                        const weir_share_job *job, size_t o)
{
    const weir_conversion *conversion = part->entry->tensor.conversion;
    if (job->border == WEIR_ANY || weir_fleet_output_is_plain(&conversion->outputs[o]))
        return &job->copy;
    return &m->borders[job->border].copy;
}

/* Where a job would make the shards too large, new ones begin, of all outputs at once: what is made
 * together stays together. */
static void keep_bound(weir_share_maker *m, const weir_share_part *part, const weir_share_job *job)
{
    const weir_conversion *conversion = part->entry->tensor.conversion;
    uint64_t n_bytes = weir_fleet_box_bytes(conversion, job->copy.n_rows, job->copy.n_cols);
    if (m->most_bytes != 0 && m->run_bytes > 0 && m->run_bytes + n_bytes > m->most_bytes) {
        for (size_t o = 0; o < conversion->n_outputs; o++)
            weir_part_output_fence(&m->outputs[o]);
        m->run_bytes = 0;
    }
    m->run_bytes += n_bytes;
}

weir_status weir_share_add_job(weir_share_maker *m, const weir_share_part *part,
                               weir_share_job *job, size_t first_job)
{
    weir_status status = WEIR_OK;
    if (!weir_share_make_room(&m->jobs, &m->jobs_room, m->n_jobs, sizeof(m->jobs[0])))
        return WEIR_ERR_NO_MEMORY;
    keep_bound(m, part, job);
    for (size_t o = 0; o < part->entry->tensor.conversion->n_outputs && status == WEIR_OK; o++) {
        size_t shard = 0, gone;
        if (job->shards[o] == WEIR_ANY)
            continue;
        status = weir_part_output_put(&m->outputs[o], extent_of(m, part, job, o), &shard, &gone);
        if (status == WEIR_OK && gone != SIZE_MAX)
            move_jobs(m, first_job, o, gone);
        job->shards[o] = (uint32_t)shard;
    }
    if (status == WEIR_OK)
        m->jobs[m->n_jobs++] = *job;
    return status;
}

/* Rows of a box that are converted together: from block to block, and no more than the bound. */
static uint32_t rows_per_job(const weir_share_maker *m, const weir_share_part *part,
                             const weir_fleet_copy *copy)
{
    const weir_conversion *conversion = part->entry->tensor.conversion;
    if (m->most_bytes == 0 || copy->n_rows == 0)
        return copy->n_rows;
    uint32_t block_rows = weir_fleet_border_grid(conversion, copy).block_rows;
    uint64_t block_bytes = weir_fleet_box_bytes(conversion, block_rows, copy->n_cols);
    uint64_t n_blocks = block_bytes > 0 ? m->most_bytes / block_bytes : 1;
    uint64_t n_rows = (n_blocks > 0 ? n_blocks : 1) * block_rows;
    return n_rows < copy->n_rows ? (uint32_t)n_rows : copy->n_rows;
}

/* What this rank makes alone: a box of one source, or a border of which it converts all. */
static weir_status make_copy(weir_share_maker *m, const weir_share_part *part,
                             const weir_rule *rule, size_t first_job)
{
    weir_share_job job = { .copy = rule->copy, .border = WEIR_ANY };
    weir_status status = WEIR_OK;
    job.copy.tensor = part->tensor;
    job.copy.rank = m->rank;
    if (rule->copy.source == WEIR_FLEET_MIXED) {
        status = weir_share_borrow_border(m, part, rule, &job.copy);
        return status == WEIR_OK ? weir_share_add_job(m, part, &job, first_job) : status;
    }
    uint32_t n_rows = rows_per_job(m, part, &rule->copy);
    for (uint32_t done = 0; done < rule->copy.n_rows && status == WEIR_OK; done += n_rows) {
        weir_share_job step = job;
        uint32_t left = rule->copy.n_rows - done;
        step.copy.row += done;
        step.copy.source_row += done;
        step.copy.n_rows = left < n_rows ? left : n_rows;
        status = weir_share_add_job(m, part, &step, first_job);
    }
    return status;
}

/* ---- parts -----------------------------------------------------------------------------------*/

static weir_status add_shards(weir_share_maker *m, const weir_share_part *part, size_t o)
{
    const weir_part_output *output = &m->outputs[o];
    for (size_t i = 0; i < output->n_shards; i++) {
        if (!weir_share_make_room(&m->shards, &m->shards_room, m->n_shards, sizeof(m->shards[0])))
            return WEIR_ERR_NO_MEMORY;
        m->shards[m->n_shards++] = (weir_share_shard){
            .tensor = part->tensor,
            .output = (uint32_t)o,
            .place = part->place,
            .shape = output->shape,
            .box = weir_part_output_box(output, &output->shards[i]),
            .n_padding_rows = output->n_padding_rows,
            .n_bytes = weir_part_output_bytes(output, &output->shards[i]),
        };
    }
    return m->n_shards < UINT32_MAX ? WEIR_OK
                                    : weir_fail(WEIR_ERR_UNSUPPORTED, "more than 2^32 shards");
}

/* Shards are numbered within the part until all of its copies are known. */
static weir_status finish_part(weir_share_maker *m, const weir_share_part *part, size_t first_job)
{
    for (size_t o = 0; o < part->entry->tensor.conversion->n_outputs; o++) {
        const weir_part_output *output = &m->outputs[o];
        for (size_t i = first_job; i < m->n_jobs; i++) {
            weir_share_job *job = &m->jobs[i];
            if (job->shards[o] == WEIR_ANY)
                continue;
            weir_part_output_locate(output, &output->shards[job->shards[o]],
                                    extent_of(m, part, job, o), &job->offsets[o],
                                    &job->first_words[o]);
            job->shards[o] += (uint32_t)m->n_shards;
        }
        weir_status status = add_shards(m, part, o);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static weir_status start_part(weir_share_maker *m, const weir_share_part *part)
{
    const weir_fleet_tensor *tensor = &part->entry->tensor;
    weir_status status = WEIR_OK;
    m->run_bytes = 0;
    for (size_t o = 0; o < tensor->conversion->n_outputs && status == WEIR_OK; o++)
        status = weir_part_output_start(&m->outputs[o], tensor, &part->slice->shape, o);
    return status;
}

/* A part that is all padding has one empty shard per output, of whoever makes the first rows that
 * the tensor has. */
static weir_status make_padding(weir_share_maker *m, const weir_share_part *part)
{
    const weir_pattern *pattern = &m->fleet->patterns[part->entry->pattern];
    const weir_pattern_slice *first = &m->fleet->slices[pattern->first_slice];
    const weir_rule *rule = &m->fleet->cells.rules[first->first_rule];
    if (weir_fleet_rank_of(m->fleet, part->entry, 0, rule) != m->rank)
        return WEIR_OK;
    weir_status status = start_part(m, part);
    for (size_t o = 0; o < part->entry->tensor.conversion->n_outputs && status == WEIR_OK; o++)
        status = weir_part_output_put_none(&m->outputs[o]);
    return status == WEIR_OK ? finish_part(m, part, m->n_jobs) : status;
}

static weir_status make_rule(weir_share_maker *m, const weir_share_part *part,
                             const weir_rule *rule, size_t first_job)
{
    const weir_fleet *fleet = m->fleet;
    uint32_t owner = weir_fleet_rank_of(fleet, part->entry, part->index, rule);
    bool shared = weir_fleet_border_is_shared(fleet, part->entry, &rule->copy, owner);
    bool makes = owner == m->rank || (shared && weir_share_has_piece(m, part, rule, owner));
    weir_status status = WEIR_OK;
    if (makes && m->n_jobs == first_job)
        status = start_part(m, part);
    if (status != WEIR_OK)
        return status;
    if (shared)
        return makes ? weir_share_make_border(m, part, rule, owner, first_job) : WEIR_OK;
    if (makes)
        return make_copy(m, part, rule, first_job);
    return rule->copy.source == WEIR_FLEET_MIXED ? weir_share_lend_border(m, part, rule, owner)
                                                 : WEIR_OK;
}

static weir_status make_part(weir_share_maker *m, const weir_share_part *part)
{
    size_t first_job = m->n_jobs, slice = (size_t)(part->slice - m->fleet->slices);
    weir_status status = WEIR_OK;
    if (part->slice->n_rules == 0 && part->slice->shape.n_slots > 0)
        return make_padding(m, part);
    for (size_t k = m->first_picked[slice]; k < m->first_picked[slice + 1] && status == WEIR_OK;
         k++)
        status = make_rule(m, part, &m->fleet->cells.rules[m->picked[k]], first_job);
    if (status == WEIR_OK && m->n_jobs > first_job)
        status = finish_part(m, part, first_job);
    return status;
}

static weir_status make_entry(weir_share_maker *m, uint32_t tensor)
{
    const weir_fleet *fleet = m->fleet;
    const weir_fleet_entry *entry = &fleet->entries[tensor];
    const weir_pattern *pattern = &fleet->patterns[entry->pattern];
    uint32_t ranks_per_stage = fleet->n_ranks / fleet->trainer.pp;
    weir_status status = WEIR_OK;
    if (m->rank < entry->first_rank || m->rank - entry->first_rank >= ranks_per_stage)
        return WEIR_OK;
    for (uint32_t stage = entry->stage; stage < fleet->replica.pp; stage++) {
        for (size_t k = 0; k < pattern->n_slices && status == WEIR_OK; k++) {
            weir_fleet_part_place at;
            weir_share_part part = {
                entry, &fleet->slices[pattern->first_slice + k], tensor, k, { 0, 0, 0 }
            };
            if (!weir_fleet_part_at(fleet, entry, stage, k, &at))
                continue;
            part.place = at.place;
            status = make_part(m, &part);
        }
    }
    return status;
}

/* ---- what has been made ----------------------------------------------------------------------*/

static weir_status write_loans(const weir_share_maker *m, weir_share *share)
{
    const weir_loan_list *borrowed = &m->loans.borrowed, *lent = &m->loans.lent;
    share->n_pieces = weir_loans_pieces(&m->loans, borrowed);
    share->n_borrows = borrowed->n_loans;
    share->n_lent = weir_loans_pieces(&m->loans, lent);
    share->n_lends = lent->n_loans;
    share->pieces = weir_alloc(share->n_pieces * sizeof(share->pieces[0]));
    share->borrows = weir_alloc(share->n_borrows * sizeof(share->borrows[0]));
    share->lent = weir_alloc(share->n_lent * sizeof(share->lent[0]));
    share->lends = weir_alloc(share->n_lends * sizeof(share->lends[0]));
    if (share->pieces == NULL || share->borrows == NULL || share->lent == NULL ||
        share->lends == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status =
        weir_loans_write(&m->loans, borrowed, m->borders, share->borrows, share->pieces);
    return status == WEIR_OK
               ? weir_loans_write(&m->loans, lent, m->borders, share->lends, share->lent)
               : status;
}

static void *fitted(void *block, size_t n_bytes)
{
    void *shrunk = n_bytes > 0 ? weir_realloc(block, n_bytes) : NULL;
    return shrunk != NULL ? shrunk : block;
}

/* The arrays are the share's from now on, without the room that they have grown into. */
static void hand_over(weir_share_maker *m, weir_share *share)
{
    share->shards = fitted(m->shards, m->n_shards * sizeof(m->shards[0]));
    share->jobs = fitted(m->jobs, m->n_jobs * sizeof(m->jobs[0]));
    share->borders = fitted(m->borders, m->n_borders * sizeof(m->borders[0]));
    share->n_shards = m->n_shards;
    share->n_jobs = m->n_jobs;
    share->n_borders = m->n_borders;
    m->shards = NULL;
    m->jobs = NULL;
    m->borders = NULL;
}

static weir_status finish(weir_share_maker *m, weir_share **out)
{
    weir_share *share = weir_alloc_zeroed(1, sizeof(*share));
    if (share == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = write_loans(m, share);
    if (status != WEIR_OK) {
        weir_share_free(share);
        return status;
    }
    hand_over(m, share);
    *out = share;
    return WEIR_OK;
}

weir_status weir_fleet_share(const weir_fleet *fleet, uint32_t rank, weir_share **out)
{
    return weir_fleet_share_in_pieces(fleet, rank, 0, out);
}

weir_status weir_fleet_share_in_pieces(const weir_fleet *fleet, uint32_t rank, uint64_t most_bytes,
                                       weir_share **out)
{
    weir_share_maker m = { .fleet = fleet, .rank = rank, .most_bytes = most_bytes };
    if (rank >= fleet->n_ranks)
        return weir_fail(WEIR_ERR_INVALID, "share of rank %u: there are %u", rank, fleet->n_ranks);
    weir_status status = weir_loans_open(&m.loans, fleet->n_ranks);
    m.met = weir_alloc_zeroed(fleet->n_ranks, sizeof(m.met[0]));
    if (status == WEIR_OK)
        status = m.met != NULL ? pick_rules(&m) : WEIR_ERR_NO_MEMORY;
    for (uint32_t i = 0; i < fleet->n_entries && status == WEIR_OK; i++)
        status = make_entry(&m, i);
    if (status == WEIR_OK)
        status = finish(&m, out);
    for (size_t o = 0; o < WEIR_MAX_OUTPUTS; o++)
        weir_part_output_close(&m.outputs[o]);
    weir_loans_close(&m.loans);
    weir_free(m.first_picked);
    weir_free(m.picked);
    weir_free(m.shards);
    weir_free(m.jobs);
    weir_free(m.borders);
    weir_free(m.met);
    return status;
}

void weir_share_free(weir_share *share)
{
    if (share == NULL)
        return;
    weir_free(share->shards);
    weir_free(share->jobs);
    weir_free(share->pieces);
    weir_free(share->borders);
    weir_free(share->borrows);
    weir_free(share->lends);
    weir_free(share->lent);
    weir_free(share);
}
