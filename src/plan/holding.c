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
    return (size_t)mesh->tp * (mesh->fsdp * mesh->ep + WEIR_MAX_PARTS - 1);
}

/* ---- tensor parallelism ----------------------------------------------------------------------*/

/* Rows of a source that tensor parallelism divides for themselves. */
typedef struct part_cut {
    uint64_t first_row, n_units, unit_rows; /* no chunk divides a unit */
    uint32_t n_chunks;                      /* each is of tp / n_chunks neighbours */
} part_cut;

typedef struct source_cut {
    uint32_t tp, n_parts;
    part_cut parts[WEIR_MAX_PARTS];
    uint32_t n_col_chunks;
    uint64_t n_cols;
} source_cut;

static part_cut cut_part(uint32_t tp, uint32_t part, uint32_t units, uint64_t first_row,
                         uint64_t n_rows)
{
    part_cut cut = { first_row, n_rows, 1, tp };
    if (units == 0 || n_rows % units != 0)
        return cut;
    if (units % tp == 0)
        cut = (part_cut){ first_row, units, n_rows / units, tp };
    else if (part > 0 && tp % units == 0)
        cut.n_chunks = units;
    return cut;
}

/* A source of one part is cut as long as it is: trainers may pad it. */
static source_cut cut_of(const weir_trainer_mesh *mesh, const weir_fleet_tensor *t, uint32_t source)
{
    source_cut cut = { .tp = mesh->tp, .n_col_chunks = 1, .n_cols = t->n_cols };
    bool by_rows = t->cut == WEIR_CUT_COLUMN || t->cut == WEIR_CUT_VOCABULARY;
    uint32_t part = 0, units = 0;
    for (uint32_t p = 0; p < t->n_parts && t->cut == WEIR_CUT_COLUMN && mesh->tp > 1; p++) {
        const weir_fleet_part *of = &t->parts[p];
        if (of->source != source)
            continue;
        part = p;
        units = of->units;
        cut.parts[cut.n_parts++] = cut_part(mesh->tp, p, units, of->first_row, of->n_rows);
    }
    if (cut.n_parts > 1)
        return cut;
    cut.n_parts = 1;
    cut.parts[0] = cut_part(by_rows ? mesh->tp : 1, part, units, 0, t->source_rows[source]);
    if (t->cut == WEIR_CUT_ROW)
        cut.n_col_chunks = mesh->tp;
    return cut;
}

/* What a rank of tensor parallelism has of a part: rows [lo, hi) of the source, which begin behind
 * `at` of the n_all rows that it has of all parts. */
typedef struct own_rows {
    uint64_t lo, hi, at, n_all;
} own_rows;

static own_rows rows_of(const source_cut *cut, uint32_t part, uint32_t t)
{
    own_rows own = { 0 };
    for (uint32_t p = 0; p < cut->n_parts; p++) {
        const part_cut *of = &cut->parts[p];
        uint64_t lo, hi;
        weir_torch_chunk(of->n_units, of->n_chunks, t / (cut->tp / of->n_chunks), &lo, &hi);
        if (p == part) {
            own.lo = of->first_row + lo * of->unit_rows;
            own.hi = of->first_row + hi * of->unit_rows;
            own.at = own.n_all;
        }
        own.n_all += (hi - lo) * of->unit_rows;
    }
    return own;
}

/* Of n neighbours that hold the same heads of a part, those from the first on that have them behind
 * as many other rows: where rows are cut further, the others hold them in other chunks. */
static uint32_t count_alike(const source_cut *cut, uint32_t part, uint32_t t, uint32_t n)
{
    own_rows own = rows_of(cut, part, t);
    for (uint32_t k = 1; k < n && cut->n_parts > 1; k++) {
        own_rows other = rows_of(cut, part, t + k);
        if (other.at != own.at || other.n_all != own.n_all)
            return k;
    }
    return n;
}

/* ---- data parallelism ------------------------------------------------------------------------*/

/* Into how many chunks fsdp cuts the rows that a rank of tensor parallelism has, and which ranks
 * have them: f * ep + e of matrices, f of experts. The stacked tensor of an expert rank is cut
 * between experts, a single one's rows. */
typedef struct row_cut {
    uint32_t first, n_chunks;
} row_cut;

static row_cut cut_rows(const weir_trainer_mesh *mesh, const weir_fleet_tensor *t,
                        const weir_expert_place *place)
{
    if (place == NULL)
        return (row_cut){ 0, mesh->fsdp * mesh->ep };
    if (!t->stacked)
        return (row_cut){ 0, mesh->fsdp };
    uint32_t chunk = place->n_local / mesh->fsdp + (place->n_local % mesh->fsdp != 0);
    return (row_cut){ place->place / chunk, 1 };
}

/* What chunk i of n has of a part. */
static bool cut_own(const own_rows *own, uint32_t n, uint32_t i, weir_holding *out)
{
    uint64_t lo, hi, end = own->at + own->hi - own->lo;
    weir_torch_chunk(own->n_all, n, i, &lo, &hi);
    lo = lo > own->at ? lo : own->at;
    hi = hi < end ? hi : end;
    if (lo >= hi)
        return false;
    out->row_lo = own->lo + lo - own->at;
    out->row_hi = own->lo + hi - own->at;
    return true;
}

static bool cut_columns(const source_cut *cut, uint32_t chunk, weir_holding *out)
{
    weir_torch_chunk(cut->n_cols, cut->n_col_chunks, chunk, &out->col_lo, &out->col_hi);
    return out->col_lo < out->col_hi;
}

/* ---- who holds what --------------------------------------------------------------------------*/

static size_t add_chunk(const weir_trainer_mesh *mesh, const source_cut *cut, const row_cut *rows,
                        const weir_expert_place *place, uint32_t part, uint32_t chunk,
                        weir_holding *holdings)
{
    uint32_t n_neighbours = cut->tp / cut->parts[part].n_chunks, t = chunk * n_neighbours;
    own_rows own = rows_of(cut, part, t);
    uint64_t each = own.n_all / rows->n_chunks + (own.n_all % rows->n_chunks != 0);
    bool whole = rows->n_chunks == 1 || (place == NULL && mesh->dense_whole != 0);
    uint32_t n_alike = whole ? n_neighbours : count_alike(cut, part, t, n_neighbours);
    weir_holding h = { .n_owners = cut->n_col_chunks > 1 ? 1 : n_alike, .box = part };
    size_t n = 0;
    for (uint32_t i = each > 0 ? (uint32_t)(own.at / each) : 0;
         i < rows->n_chunks && cut_own(&own, rows->n_chunks, i, &h); i++) {
        uint32_t index = rows->first + i;
        if (place != NULL)
            index = index * mesh->ep + place->owner;
        for (uint32_t c = 0; c < cut->n_col_chunks; c++) {
            h.rank = (mesh->sender * mesh->fsdp * mesh->ep + index) * mesh->tp + t + c;
            if (cut_columns(cut, c, &h))
                holdings[n++] = h;
        }
    }
    return n;
}

size_t weir_holdings_of(const weir_trainer_mesh *mesh, const weir_fleet_tensor *tensor,
                        uint32_t source, const weir_expert_place *place, weir_holding *holdings)
{
    source_cut cut = cut_of(mesh, tensor, source);
    row_cut rows = cut_rows(mesh, tensor, place);
    size_t n = 0;
    for (uint32_t p = 0; p < cut.n_parts; p++) {
        for (uint32_t c = 0; c < cut.parts[p].n_chunks; c++)
            n += add_chunk(mesh, &cut, &rows, place, p, c, holdings + n);
    }
    return n;
}

size_t weir_holdings_of_rank(const weir_trainer_mesh *mesh, const weir_fleet_tensor *tensor,
                             uint32_t source, const weir_expert_place *place, uint32_t rank,
                             weir_holding holdings[WEIR_MAX_PARTS])
{
    source_cut cut = cut_of(mesh, tensor, source);
    row_cut rows = cut_rows(mesh, tensor, place);
    uint32_t t = rank % mesh->tp, index = rank / mesh->tp % (mesh->fsdp * mesh->ep);
    size_t n = 0;
    if (rank / (mesh->fsdp * mesh->ep * mesh->tp) != mesh->sender ||
        (place != NULL && index % mesh->ep != place->owner))
        return 0;
    if (place != NULL)
        index /= mesh->ep;
    else if (mesh->dense_whole != 0)
        rows.n_chunks = 1;
    if (rows.n_chunks == 1 && place != NULL && index != rows.first)
        return 0;
    index = rows.n_chunks == 1 ? 0 : index;
    for (uint32_t p = 0; p < cut.n_parts; p++) {
        weir_holding h = { .rank = rank, .n_owners = 1, .box = p };
        own_rows own = rows_of(&cut, p, t);
        if (cut_own(&own, rows.n_chunks, index, &h) &&
            cut_columns(&cut, cut.n_col_chunks > 1 ? t : 0, &h))
            holdings[n++] = h;
    }
    return n;
}
