/* SPDX-License-Identifier: Apache-2.0 */
/* registry_of_held.c - what one rank holds, from boxes or from a mesh, in the registry's words.
 *
 * Of each source a rank holds one box and, where experts are stacked, a set of their ids: as much
 * as one descriptor can say.
 */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "plan/fleet.h"
#include "plan/held_boxes.h"
#include "plan/source_use.h"
#include "plan/tensor_registry.h"

/* ---- boxes -----------------------------------------------------------------------------------*/

typedef struct describer {
    const weir_described_model *model;
    uint32_t rank;
    weir_source_uses uses;
    const weir_held *held;
    size_t *first, *next; /* chains of the rank's boxes, one per tensor and source; 0: the end */
    weir_owned_registry *owned;
    weir_tensor_descriptor *tensors;
} describer;

/* What one rank holds of one source, from all of its boxes there. */
typedef struct share {
    bool any;
    weir_held box;     /* its experts aside */
    uint32_t *experts; /* of stacked ones: a flag each */
} share;

static weir_status join_box(const weir_fleet_tensor *t, const weir_held *h, share *s)
{
    if (s->any && (s->box.row_lo != h->row_lo || s->box.row_hi != h->row_hi ||
                   s->box.col_lo != h->col_lo || s->box.col_hi != h->col_hi))
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: rank %u holds several boxes of source %u, a registry takes one",
                         t->name, h->rank, h->source);
    s->any = true;
    s->box = *h;
    for (uint32_t x = h->expert_lo; t->stacked && x < h->expert_hi; x++)
        s->experts[x] = 1;
    return WEIR_OK;
}

static bool fits(const weir_described_model *model, const weir_held *h)
{
    if (h->tensor >= model->n_tensors)
        return false;
    const weir_fleet_tensor *t = &model->tensors[h->tensor];
    uint32_t n_experts = t->n_experts > 0 ? t->n_experts : 1;
    return h->source < t->n_sources && h->expert_lo < h->expert_hi && h->expert_hi <= n_experts &&
           h->row_lo < h->row_hi && h->row_hi <= t->source_rows[h->source] &&
           h->col_lo < h->col_hi && h->col_hi <= t->n_cols;
}

/* The columns of a box on the axes behind the rows, all of which but one may have to be whole. */
static weir_status set_columns(const weir_fleet_tensor *t, const weir_held *h, uint32_t first,
                               weir_box *box)
{
    if (h->col_lo == 0 && h->col_hi == t->n_cols)
        return WEIR_OK;
    if (first + 1 != box->rank)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: columns [%" PRIu64 ", %" PRIu64 ") of source %u lie on %u axes",
                         t->name, h->col_lo, h->col_hi, h->source, box->rank - first);
    box->lo[first] = h->col_lo;
    box->hi[first] = h->col_hi;
    return WEIR_OK;
}

static weir_status set_experts(describer *x, const weir_fleet_tensor *t, const share *s,
                               weir_tensor_descriptor *d)
{
    uint32_t *ids = weir_arena_zeroed(&x->owned->arena, t->n_experts, sizeof(*ids));
    if (ids == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (uint32_t id = 0; id < t->n_experts; id++) {
        if (s->experts[id] != 0)
            ids[d->n_expert_ids++] = id;
    }
    d->is_expert = true;
    d->expert_ids = ids;
    return WEIR_OK;
}

/* Places the box; ids that are no range are left to the ids. */
static void place(weir_tensor_descriptor *d, weir_box *box)
{
    uint32_t n_cut = 0, axis = 0;
    bool some = d->n_expert_ids > 0 && d->n_expert_ids < d->global_shape.dim[0];
    bool in_a_row =
        some && d->expert_ids[d->n_expert_ids - 1] - d->expert_ids[0] + 1 == d->n_expert_ids;
    if (in_a_row) {
        box->lo[0] = d->expert_ids[0];
        box->hi[0] = (uint64_t)d->expert_ids[0] + d->n_expert_ids;
    }
    for (uint32_t a = 0; a < box->rank; a++) {
        if (box->lo[a] == 0 && box->hi[a] == d->global_shape.dim[a])
            continue;
        n_cut++;
        axis = a;
    }
    if (n_cut == 0 && !some)
        return;
    d->placement = WEIR_PLACEMENT_SHARD;
    if (n_cut == 0) { /* by the ids alone */
        d->shard_axis = d->expert_axis;
    } else if (n_cut == 1 && (!some || in_a_row)) {
        d->shard_axis = axis;
        d->has_range = true;
        d->range_lo = box->lo[axis];
        d->range_hi = box->hi[axis];
    } else {
        d->placement = WEIR_PLACEMENT_BOX;
        d->box = *box;
    }
}

static weir_status describe_share(describer *x, const weir_fleet_tensor *t,
                                  const weir_source_use *u, const share *s,
                                  weir_tensor_descriptor *d)
{
    uint32_t rows = t->stacked ? 1 : 0;
    *d = (weir_tensor_descriptor){ .name = u->source->name,
                                   .global_shape = u->source->shape,
                                   .dtype = weir_dtype_torch_name(u->source->dtype) };
    if (d->dtype == NULL)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: torch has no name for dtype %s", d->name,
                         weir_dtype_name(u->source->dtype));
    weir_box box = weir_box_whole(&d->global_shape);
    weir_status status = set_columns(t, &s->box, rows + 1, &box);
    if (status == WEIR_OK && t->stacked)
        status = set_experts(x, t, s, d);
    if (status != WEIR_OK)
        return status;
    if (box.rank > rows) {
        box.lo[rows] = s->box.row_lo;
        box.hi[rows] = s->box.row_hi;
    }
    place(d, &box);
    return weir_tensor_descriptor_check(d);
}

static bool same_place(const weir_tensor_descriptor *a, const weir_tensor_descriptor *b)
{
    weir_box x = weir_tensor_descriptor_box(a), y = weir_tensor_descriptor_box(b);
    return x.rank == y.rank && memcmp(x.lo, y.lo, x.rank * sizeof(x.lo[0])) == 0 &&
           memcmp(x.hi, y.hi, x.rank * sizeof(x.hi[0])) == 0 &&
           a->n_expert_ids == b->n_expert_ids &&
           (a->n_expert_ids == 0 ||
            memcmp(a->expert_ids, b->expert_ids, a->n_expert_ids * sizeof(uint32_t)) == 0);
}

/* Uses come by name: a tied source, described by an earlier use, must be the same there. */
static weir_status add_descriptor(describer *x, const weir_tensor_descriptor *d)
{
    size_t n = x->owned->registry.n_tensors;
    const weir_tensor_descriptor *last = n > 0 ? &x->tensors[n - 1] : NULL;
    if (last == NULL || strcmp(last->name, d->name) != 0) {
        x->tensors[x->owned->registry.n_tensors++] = *d;
        return WEIR_OK;
    }
    if (same_place(last, d))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_LAYOUT, "%s: two uses of it put different parts on rank %u", d->name,
                     x->rank);
}

static weir_status chain_boxes(describer *x, size_t n_held)
{
    const weir_described_model *model = x->model;
    x->first = weir_alloc_zeroed(model->n_tensors * WEIR_MAX_PARTS, sizeof(size_t));
    x->next = weir_alloc_zeroed(n_held, sizeof(size_t));
    if (x->first == NULL || x->next == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_held; i++) {
        const weir_held *h = &x->held[i];
        if (h->rank != x->rank)
            continue;
        if (!fits(model, h))
            return weir_fail(WEIR_ERR_INVALID,
                             "rank %u holds a box that is no part of tensor %u of %zu", h->rank,
                             h->tensor, model->n_tensors);
        size_t *first = &x->first[(size_t)h->tensor * WEIR_MAX_PARTS + h->source];
        x->next[i] = *first;
        *first = i + 1;
    }
    return WEIR_OK;
}

static weir_status describe_use(describer *x, const weir_source_use *u, uint32_t *experts)
{
    const weir_fleet_tensor *t = &x->model->tensors[u->tensor];
    share s = { .experts = experts };
    weir_tensor_descriptor d;
    weir_status status = WEIR_OK;
    size_t at = x->first[(size_t)u->tensor * WEIR_MAX_PARTS + u->index];
    for (; at != 0 && status == WEIR_OK; at = x->next[at - 1]) {
        const weir_held *h = &x->held[at - 1];
        bool apart = t->n_experts > 0 && !t->stacked;
        if (!apart || (h->expert_lo <= u->expert && u->expert < h->expert_hi))
            status = join_box(t, h, &s);
    }
    if (status != WEIR_OK || !s.any)
        return status;
    status = describe_share(x, t, u, &s, &d);
    return status == WEIR_OK ? add_descriptor(x, &d) : status;
}

static weir_status describe_uses(describer *x)
{
    weir_status status = WEIR_OK;
    uint32_t most = 1;
    for (size_t i = 0; i < x->model->n_tensors; i++)
        most = x->model->tensors[i].n_experts > most ? x->model->tensors[i].n_experts : most;
    uint32_t *experts = weir_alloc_zeroed(most, sizeof(*experts));
    x->tensors = weir_arena_zeroed(&x->owned->arena, x->uses.n, sizeof(x->tensors[0]));
    x->owned->registry.tensors = x->tensors;
    if (experts == NULL || x->tensors == NULL)
        status = WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < x->uses.n && status == WEIR_OK; i++) {
        status = describe_use(x, &x->uses.uses[i], experts);
        memset(experts, 0, most * sizeof(*experts));
    }
    weir_free(experts);
    return status;
}

weir_status weir_tensor_registry_of_held(const weir_described_model *model, const weir_held *held,
                                         size_t n_held, uint32_t rank, uint64_t version,
                                         weir_tensor_registry **out)
{
    describer x = { .model = model, .rank = rank, .held = held };
    x.owned = weir_owned_registry_open();
    if (x.owned == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_source_uses_open(model, &x.uses);
    if (status == WEIR_OK)
        status = chain_boxes(&x, n_held);
    if (status == WEIR_OK)
        status = describe_uses(&x);
    weir_source_uses_close(&x.uses);
    weir_free(x.first);
    weir_free(x.next);
    if (status != WEIR_OK) {
        weir_tensor_registry_close(&x.owned->registry);
        return status;
    }
    x.owned->registry.version = version;
    *out = &x.owned->registry;
    return WEIR_OK;
}

/* ---- a mesh ----------------------------------------------------------------------------------*/

/* What making the boxes of one rank needs. */
typedef struct mesh_walk {
    weir_trainer_mesh mesh;
    uint32_t rank; /* within its stage */
    weir_expert_place *places;
    weir_held_boxes list;
} mesh_walk;

static weir_status add_source(mesh_walk *w, const weir_fleet_tensor *t, weir_held h)
{
    const weir_expert_place *place = t->n_experts > 0 ? &w->places[h.expert_lo] : NULL;
    weir_holding boxes[WEIR_MAX_PARTS];
    size_t n = weir_holdings_of_rank(&w->mesh, t, h.source, place, w->rank, boxes);
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        h.row_lo = boxes[i].row_lo;
        h.row_hi = boxes[i].row_hi;
        h.col_lo = boxes[i].col_lo;
        h.col_hi = boxes[i].col_hi;
        status = weir_held_boxes_add(&w->list, &h);
    }
    return status;
}

static weir_status add_tensor(mesh_walk *w, const weir_fleet_tensor *t, uint32_t tensor,
                              uint32_t rank)
{
    weir_status status = WEIR_OK;
    uint32_t n_experts = t->n_experts > 0 ? t->n_experts : 1;
    if (t->n_experts > 0) {
        weir_expert_place *grown = weir_realloc(w->places, n_experts * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        w->places = grown;
        status = weir_expert_places(&w->mesh, t, w->places);
    }
    for (uint32_t s = 0; s < t->n_sources; s++) {
        for (uint32_t x = 0; x < n_experts && status == WEIR_OK; x++)
            status = add_source(w, t,
                                (weir_held){ .rank = rank,
                                             .tensor = tensor,
                                             .source = s,
                                             .expert_lo = x,
                                             .expert_hi = x + 1 });
    }
    return status;
}

static weir_status walk_mesh(mesh_walk *w, const weir_described_model *model, uint32_t rank)
{
    uint32_t per_stage = weir_trainer_mesh_ranks(&w->mesh) / w->mesh.pp;
    uint32_t n_layers = weir_fleet_layers(model->tensors, model->n_tensors);
    weir_status status = WEIR_OK;
    if (rank / per_stage >= w->mesh.pp)
        return weir_fail(WEIR_ERR_INVALID, "trainer mesh: rank %u of %u", rank,
                         per_stage * w->mesh.pp);
    w->rank = rank % per_stage;
    for (uint32_t i = 0; i < model->n_tensors && status == WEIR_OK; i++) {
        if (weir_trainer_stage(&w->mesh, model->tensors[i].layer, n_layers) == rank / per_stage)
            status = add_tensor(w, &model->tensors[i], i, rank);
    }
    return status;
}

weir_status weir_tensor_registry_of_mesh(const weir_described_model *model,
                                         const weir_trainer_mesh *mesh, uint32_t rank,
                                         uint64_t version, weir_tensor_registry **out)
{
    mesh_walk w = { 0 };
    weir_tensor_registry *registry;
    weir_status status = weir_trainer_mesh_read(mesh, &w.mesh);
    if (status == WEIR_OK)
        status = walk_mesh(&w, model, rank);
    if (status == WEIR_OK)
        status =
            weir_tensor_registry_of_held(model, w.list.boxes, w.list.n, rank, version, &registry);
    weir_free(w.places);
    weir_held_free(w.list.boxes);
    if (status != WEIR_OK)
        return status;
    registry->world =
        (weir_world_layout){ w.mesh.fsdp * w.mesh.hsdp, w.mesh.tp, w.mesh.pp, w.mesh.ep };
    *out = registry;
    return WEIR_OK;
}
