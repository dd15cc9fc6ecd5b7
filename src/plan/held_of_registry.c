/* SPDX-License-Identifier: Apache-2.0 */
/* held_of_registry.c - the registries of all ranks as the boxes that a fleet's plan is made from.
 */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "plan/held_boxes.h"
#include "plan/source_use.h"
#include "plan/tag.h"
#include "plan/tensor_registry.h"

static weir_status check_model(const weir_tensor_descriptor *d, const weir_publisher *from,
                               const weir_source_use *u)
{
    char got[WEIR_SHAPE_TEXT], want[WEIR_SHAPE_TEXT], difference[WEIR_TAG_TEXT];
    const char *dtype = weir_dtype_torch_name(u->source->dtype);
    const char *target = d->compile_target != NULL ? d->compile_target : WEIR_TARGET_HF_RAW;
    if (!weir_shape_equal(&d->global_shape, &u->source->shape))
        return weir_fail(
            WEIR_ERR_LAYOUT, "%s: shape disagreement %s vs %s: rank %u (worker %s), model", d->name,
            weir_shape_text(&d->global_shape, got, sizeof(got)),
            weir_shape_text(&u->source->shape, want, sizeof(want)), from->rank, from->worker);
    if (dtype == NULL || strcmp(d->dtype, dtype) != 0)
        return weir_fail(WEIR_ERR_LAYOUT, "%s: dtype is %s at rank %u (worker %s), %s in the model",
                         d->name, d->dtype, from->rank, from->worker,
                         dtype != NULL ? dtype : weir_dtype_name(u->source->dtype));
    if (strcmp(target, WEIR_TARGET_HF_RAW) != 0)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s: compile target is %s at rank %u (worker %s), a fleet converts %s",
                         d->name, target, from->rank, from->worker, WEIR_TARGET_HF_RAW);
    if (d->compile_metadata != NULL &&
        !weir_tag_metadata_equal(d->compile_metadata, "{}", from->worker, difference))
        return weir_fail(WEIR_ERR_LAYOUT, "%s: compile metadata %s", d->name, difference);
    if (d->placement == WEIR_PLACEMENT_PARTIAL)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s: placement_kind=PARTIAL not supported in v0: rank %u (worker %s)",
                         d->name, from->rank, from->worker);
    return WEIR_OK;
}

/* Some trainers stack what there is one of: shared experts as (1, rows, columns). The model has the
 * matrix alone. */
static weir_tensor_descriptor without_stack(const weir_tensor_descriptor *d,
                                            const weir_shape *wanted)
{
    weir_tensor_descriptor out = *d;
    uint32_t rank = wanted->rank;
    if (d->global_shape.rank != rank + 1 || d->global_shape.dim[0] != 1 || d->is_expert ||
        (d->placement == WEIR_PLACEMENT_SHARD && d->shard_axis == 0))
        return out;
    out.global_shape.rank = rank;
    memmove(out.global_shape.dim, d->global_shape.dim + 1, rank * sizeof(out.global_shape.dim[0]));
    if (d->placement == WEIR_PLACEMENT_SHARD)
        out.shard_axis--;
    if (d->placement == WEIR_PLACEMENT_BOX) {
        out.box.rank = rank;
        memmove(out.box.lo, d->box.lo + 1, rank * sizeof(out.box.lo[0]));
        memmove(out.box.hi, d->box.hi + 1, rank * sizeof(out.box.hi[0]));
    }
    return out;
}

/* The columns of a box whose only cut axis behind the rows is the first one there. */
static weir_status read_columns(const weir_tensor_descriptor *d, const weir_box *box,
                                uint32_t first, weir_held *h)
{
    uint64_t inner = 1;
    for (uint32_t a = first + 1; a < box->rank; a++) {
        if (box->lo[a] != 0 || box->hi[a] != d->global_shape.dim[a])
            return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: its axis %u is cut: it is no matrix",
                             d->name, a);
        inner *= d->global_shape.dim[a];
    }
    h->col_lo = first < box->rank ? box->lo[first] * inner : 0;
    h->col_hi = first < box->rank ? box->hi[first] * inner : 1;
    return WEIR_OK;
}

/* One box per run of neighbouring experts. */
static weir_status add_runs(weir_held_boxes *list, const weir_tensor_descriptor *d, weir_held h)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0, k; i < d->n_expert_ids && status == WEIR_OK; i = k) {
        for (k = i + 1; k < d->n_expert_ids && d->expert_ids[k] == d->expert_ids[k - 1] + 1;)
            k++;
        h.expert_lo = d->expert_ids[i];
        h.expert_hi = d->expert_ids[k - 1] + 1;
        status = weir_held_boxes_add(list, &h);
    }
    return status;
}

static weir_status read_box(weir_held_boxes *list, const weir_described_model *model,
                            const weir_source_use *u, const weir_publisher *from,
                            const weir_tensor_descriptor *d)
{
    const weir_fleet_tensor *t = &model->tensors[u->tensor];
    weir_box box = weir_tensor_descriptor_box(d);
    uint32_t rows = t->stacked ? 1 : 0;
    weir_held h = { .rank = from->rank,
                    .tensor = u->tensor,
                    .source = u->index,
                    .expert_lo = u->expert,
                    .expert_hi = u->expert + 1,
                    .row_hi = 1 };
    bool some = d->is_expert && d->n_expert_ids > 0 &&
                d->n_expert_ids < d->global_shape.dim[d->expert_axis];
    if (some && (!t->stacked || d->expert_axis != 0))
        return weir_fail(WEIR_ERR_LAYOUT, "%s: axis %u holds experts at rank %u (worker %s) alone",
                         d->name, d->expert_axis, from->rank, from->worker);
    weir_status status = read_columns(d, &box, rows + 1, &h);
    if (status != WEIR_OK)
        return status;
    if (box.rank > rows) {
        h.row_lo = box.lo[rows];
        h.row_hi = box.hi[rows];
    }
    if (t->stacked) {
        h.expert_lo = (uint32_t)box.lo[0];
        h.expert_hi = (uint32_t)box.hi[0];
    }
    if (h.row_lo == h.row_hi || h.col_lo == h.col_hi || h.expert_lo == h.expert_hi)
        return WEIR_OK;
    return some ? add_runs(list, d, h) : weir_held_boxes_add(list, &h);
}

static weir_status read_publisher(weir_held_boxes *list, const weir_described_model *model,
                                  const weir_source_uses *uses, const weir_publisher *from)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < from->registry->n_tensors && status == WEIR_OK; i++) {
        const weir_tensor_descriptor *d = &from->registry->tensors[i];
        size_t n;
        status = weir_tensor_descriptor_check(d);
        if (status != WEIR_OK) {
            weir_error_prefix("rank %u (worker %s)", from->rank, from->worker);
            return status;
        }
        const weir_source_use *u = weir_source_uses_find(uses, d->name, &n);
        if (n == 0)
            return weir_fail(WEIR_ERR_LAYOUT,
                             "%s: published by rank %u (worker %s), the model has no such tensor",
                             d->name, from->rank, from->worker);
        for (size_t k = 0; k < n && status == WEIR_OK; k++) {
            weir_tensor_descriptor matrix = without_stack(d, &u[k].source->shape);
            status = check_model(&matrix, from, &u[k]);
            if (status == WEIR_OK)
                status = read_box(list, model, &u[k], from, &matrix);
        }
    }
    return status;
}

static weir_status check_publishers(const weir_publisher *publishers, size_t n)
{
    const weir_publisher **by_rank = weir_alloc_zeroed(WEIR_MESH_MAX_RANKS, sizeof(*by_rank));
    weir_status status = by_rank != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        const weir_publisher *p = &publishers[i];
        if (p->rank >= WEIR_MESH_MAX_RANKS)
            status = weir_fail(WEIR_ERR_INVALID, "worker %s says that it is rank %u", p->worker,
                               p->rank);
        else if (p->registry == NULL)
            status = weir_fail(WEIR_ERR_LAYOUT, "rank %u (worker %s) publishes no registry",
                               p->rank, p->worker);
        else if (by_rank[p->rank] != NULL)
            status = weir_fail(WEIR_ERR_LAYOUT, "rank %u is worker %s and worker %s", p->rank,
                               by_rank[p->rank]->worker, p->worker);
        else
            status = weir_publishers_check_version(&publishers[0], p);
        if (status == WEIR_OK)
            by_rank[p->rank] = p;
    }
    weir_free(by_rank);
    return status;
}

weir_status weir_held_of_registries(const weir_described_model *model,
                                    const weir_publisher *publishers, size_t n_publishers,
                                    weir_held **out, size_t *out_n)
{
    weir_source_uses uses = { 0 };
    weir_held_boxes list = { 0 };
    weir_status status = check_publishers(publishers, n_publishers);
    if (status == WEIR_OK)
        status = weir_source_uses_open(model, &uses);
    for (size_t p = 0; p < n_publishers && status == WEIR_OK; p++)
        status = read_publisher(&list, model, &uses, &publishers[p]);
    weir_source_uses_close(&uses);
    if (status != WEIR_OK) {
        weir_held_free(list.boxes);
        return status;
    }
    *out = list.boxes;
    *out_n = list.n;
    return WEIR_OK;
}
