/* SPDX-License-Identifier: Apache-2.0 */
/* holding.c - what a trainer mesh gives each rank. Boxes come by arithmetic: no list of ranks is
 * kept anywhere.
 */
#include "plan/holding.h"

#include <string.h>

#include "base/error.h"

void weir_torch_chunk(uint64_t n, uint64_t k, uint64_t i, uint64_t *lo, uint64_t *hi)
{
    uint64_t chunk = n / k + (n % k != 0);
    *lo = chunk != 0 && i > n / chunk ? n : i * chunk;
    *hi = n - *lo < chunk ? n : *lo + chunk;
}

weir_status weir_expert_places(const weir_trainer_mesh *mesh, const weir_fleet_tensor *tensor,
                               weir_expert_place *places)
{
    uint32_t n = tensor->n_experts;
    if (mesh->expert_owners != NULL && mesh->n_expert_owners != n)
        return weir_fail(WEIR_ERR_LAYOUT, "%s: %u experts, the trainer's owner map has %u",
                         tensor->name, n, mesh->n_expert_owners);
    for (uint32_t x = 0; x < n; x++) {
        uint32_t chunk = n / mesh->ep + (n % mesh->ep != 0);
        places[x].owner = mesh->expert_owners != NULL ? mesh->expert_owners[x] : x / chunk;
        if (places[x].owner >= mesh->ep)
            return weir_fail(WEIR_ERR_LAYOUT, "%s: expert %u is of expert rank %u of %u",
                             tensor->name, x, places[x].owner, mesh->ep);
    }
    for (uint32_t e = 0; e < mesh->ep; e++) {
        uint32_t n_local = 0;
        for (uint32_t x = 0; x < n; x++) {
            if (places[x].owner == e)
                places[x].place = n_local++;
        }
        for (uint32_t x = 0; x < n; x++) {
            if (places[x].owner == e)
                places[x].n_local = n_local;
        }
    }
    return WEIR_OK;
}

size_t weir_holdings_most(const weir_trainer_mesh *mesh)
{
    return (size_t)mesh->fsdp * mesh->ep * mesh->tp;
}

/* How tensor parallelism divides one source. */
typedef struct tp_cut {
    uint32_t n_chunks; /* each is of tp / n_chunks neighbours */
    uint64_t n;        /* what is divided */
    uint64_t unit;     /* that no chunk divides */
    bool by_columns;
} tp_cut;

static tp_cut cut_of(const weir_trainer_mesh *mesh, const weir_fleet_tensor *t, uint32_t source)
{
    bool whole = t->cut == WEIR_CUT_NONE || t->cut == WEIR_CUT_ONE_RANK;
    tp_cut cut = { whole ? 1 : mesh->tp, t->source_rows[source], 1, t->cut == WEIR_CUT_ROW };
    if (cut.by_columns)
        cut.n = t->n_cols;
    uint32_t units = t->n_parts == t->n_sources ? t->parts[source].units : 0;
    if (t->cut != WEIR_CUT_COLUMN || units == 0 || cut.n % units != 0)
        return cut;
    if (units % mesh->tp == 0)
        cut.unit = cut.n / units;
    else if (source > 0 && mesh->tp % units == 0)
        cut.n_chunks = units;
    return cut;
}

/* The stacked tensor of an expert rank is cut by fsdp between experts, a single one's rows. */
static void fsdp_indices(const weir_trainer_mesh *mesh, const weir_fleet_tensor *t,
                         const weir_expert_place *place, uint32_t *first, uint32_t *n)
{
    *first = 0;
    *n = mesh->fsdp;
    if (place == NULL) {
        *n *= mesh->ep;
    } else if (t->stacked) {
        uint32_t chunk = place->n_local / mesh->fsdp + (place->n_local % mesh->fsdp != 0);
        *first = place->place / chunk;
        *n = 1;
    }
}

size_t weir_holdings_of(const weir_trainer_mesh *mesh, const weir_fleet_tensor *tensor,
                        uint32_t source, const weir_expert_place *place, weir_holding *holdings)
{
    tp_cut cut = cut_of(mesh, tensor, source);
    uint32_t first, n_rows_cuts, n_owners = mesh->tp / cut.n_chunks;
    size_t n = 0;
    fsdp_indices(mesh, tensor, place, &first, &n_rows_cuts);
    for (uint32_t k = 0; k < cut.n_chunks * n_rows_cuts; k++) {
        /* Row-major: columns vary fastest where tensor parallelism cuts those. */
        uint32_t c = cut.by_columns ? k % cut.n_chunks : k / n_rows_cuts;
        uint32_t i = cut.by_columns ? k / cut.n_chunks : k % n_rows_cuts;
        weir_holding h = { .n_owners = n_owners,
                           .row_hi = tensor->source_rows[source],
                           .col_hi = tensor->n_cols };
        uint64_t lo, hi;
        weir_torch_chunk(cut.n / cut.unit, cut.n_chunks, c, &lo, &hi);
        if (cut.by_columns) {
            h.col_lo = lo;
            h.col_hi = hi;
        } else {
            h.row_lo = lo * cut.unit;
            h.row_hi = hi * cut.unit;
        }
        weir_torch_chunk(h.row_hi - h.row_lo, n_rows_cuts, i, &lo, &hi);
        h.row_hi = h.row_lo + hi;
        h.row_lo += lo;
        uint32_t index = first + i; /* f * ep + e of matrices, f of experts */
        if (place != NULL)
            index = index * mesh->ep + place->owner;
        h.rank = (mesh->sender * mesh->fsdp * mesh->ep + index) * mesh->tp + c * n_owners;
        if (h.row_lo < h.row_hi && h.col_lo < h.col_hi)
            holdings[n++] = h;
    }
    return n;
}

const weir_holding *weir_holding_of_rank(const weir_trainer_mesh *given,
                                         const weir_fleet_tensor *tensor, uint32_t source,
                                         const weir_expert_place *place, uint32_t rank,
                                         weir_holding *holdings)
{
    weir_trainer_mesh mesh = *given;
    uint32_t per_group = mesh.fsdp * mesh.ep * mesh.tp;
    if (place == NULL && mesh.dense_whole != 0) { /* as if tp were all there is */
        if (rank / per_group != mesh.sender)
            return NULL;
        mesh.hsdp = mesh.fsdp = mesh.ep = 1;
        mesh.sender = 0;
        rank %= mesh.tp;
    }
    size_t n = weir_holdings_of(&mesh, tensor, source, place, holdings);
    for (size_t i = 0; i < n; i++) {
        const weir_holding *h = &holdings[i];
        if (h->rank <= rank && rank - h->rank < h->n_owners)
            return h;
    }
    return NULL;
}
