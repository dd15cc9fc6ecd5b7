/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_signature.c - a fleet's plan in 32 hex digits: what caches of shares and parts are keyed
 * by.
 *
 * Everything is read as texts and numbers, field by field, and chained: what came before goes into
 * every digest. The number of replicas is left out, since no share depends on it; and what can be
 * said in two ways, 0 or 1 of a mesh, an expert map or none, boxes in this order or that, is one.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "plan/fleet.h"

static void chain(weir_digest *digest, const void *data, size_t n_bytes)
{
    weir_digest part = { 0, 0 }, next = { 0, 0 };
    weir_digest_add(&part, data, 1, n_bytes);
    uint64_t link[] = { digest->product, digest->sum, n_bytes, part.product, part.sum };
    weir_digest_add(&next, link, 1, sizeof(link));
    *digest = next;
}

static void chain_text(weir_digest *digest, const char *text)
{
    chain(digest, text != NULL ? text : "", text != NULL ? strlen(text) : 0);
}

/* What all ranks of a trainer know alike. */
static void chain_outline(weir_digest *digest, const weir_fleet_tensor *t)
{
    const uint64_t numbers[] = { (uint64_t)t->cut,
                                 (uint64_t)(int64_t)t->layer,
                                 t->n_experts,
                                 t->n_parts,
                                 t->tied ? 1 : 0,
                                 t->shape.rank,
                                 t->conversion->border_rows,
                                 t->conversion->border_cols,
                                 t->conversion->by_magnitude ? 1 : 0 };
    chain_text(digest, t->name);
    chain_text(digest, t->conversion->name);
    chain_text(digest, t->conversion->compile_target);
    chain_text(digest, t->conversion->compile_metadata);
    chain(digest, numbers, sizeof(numbers));
    chain(digest, t->shape.dim, t->shape.rank * sizeof(t->shape.dim[0]));
    for (uint32_t p = 0; p < t->n_parts; p++) {
        const uint64_t rows[] = { t->parts[p].units, t->parts[p].n_rows };
        chain(digest, rows, sizeof(rows));
    }
}

/* How the trainer keeps it, which a rank that has nothing of it guesses. */
static void chain_sources(weir_digest *digest, const weir_fleet_tensor *t)
{
    const uint64_t numbers[] = { t->stacked ? 1 : 0, t->source_bits, t->n_cols, t->n_sources };
    chain(digest, numbers, sizeof(numbers));
    chain(digest, t->source_rows, t->n_sources * sizeof(t->source_rows[0]));
    for (uint32_t p = 0; p < t->n_parts; p++) {
        const uint64_t rows[] = { t->parts[p].source, t->parts[p].first_row };
        chain(digest, rows, sizeof(rows));
    }
}

/* In whatever order they come: a plan sorts them. */
static void chain_held(weir_digest *digest, const weir_held *held, size_t n)
{
    uint64_t sum[] = { n, 0, 0 };
    for (size_t i = 0; i < n; i++) {
        const weir_held *h = &held[i];
        const uint64_t box[] = { h->rank,   h->tensor, h->source, h->expert_lo, h->expert_hi,
                                 h->row_lo, h->row_hi, h->col_lo, h->col_hi };
        weir_digest one = { 0, 0 };
        chain(&one, box, sizeof(box));
        sum[1] += one.product;
        sum[2] += one.sum;
    }
    chain(digest, sum, sizeof(sum));
}

weir_digest weir_fleet_digest_given(const weir_fleet_args *args)
{
    weir_digest digest = { 0, 0 };
    const weir_trainer_mesh *trainer = args->trainer;
    const weir_replica_mesh *replica = args->replica;
    uint32_t ep = replica->ep > 0 ? replica->ep : 1;
    if (trainer != NULL && !weir_owners_are_contiguous(trainer))
        chain(&digest, trainer->expert_owners,
              trainer->n_expert_owners * sizeof(trainer->expert_owners[0]));
    chain_text(&digest, "replica");
    if (!weir_experts_are_contiguous(replica)) {
        chain(&digest, replica->expert_first, (ep + (size_t)1) * sizeof(uint32_t));
        chain(&digest, replica->expert_ids, replica->expert_first[ep] * sizeof(uint32_t));
    }
    if (trainer == NULL)
        chain_held(&digest, args->held, args->n_held);
    return digest;
}

static void sign(const weir_fleet *fleet, bool with_sources, char out[33])
{
    const weir_trainer_mesh *t = &fleet->trainer;
    const weir_replica_mesh *r = &fleet->replica;
    const uint64_t meshes[] = { fleet->n_ranks,
                                t->pp,
                                t->hsdp,
                                t->fsdp,
                                t->ep,
                                t->tp,
                                t->sender,
                                t->dense_whole != 0,
                                r->tp,
                                r->ep,
                                r->dp,
                                r->pp,
                                r->vocabulary_pad };
    weir_digest digest = fleet->given;
    chain(&digest, meshes, sizeof(meshes));
    for (size_t i = 0; i < fleet->n_entries; i++) {
        chain_outline(&digest, &fleet->entries[i].tensor);
        if (with_sources)
            chain_sources(&digest, &fleet->entries[i].tensor);
    }
    snprintf(out, 33, "%016" PRIx64 "%016" PRIx64, digest.product, digest.sum);
}

void weir_fleet_signature(const weir_fleet *fleet, char out[33])
{
    sign(fleet, true, out);
}

void weir_fleet_outline(const weir_fleet *fleet, char out[33])
{
    sign(fleet, false, out);
}
