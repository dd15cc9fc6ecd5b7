/* SPDX-License-Identifier: Apache-2.0 */
/* shards.c - registered boxes sorted by what they are parts of, and a search among them.
 *
 * A box of any rank becomes one matrix per expert: axis 0 (behind the experts) are its rows, all
 * axes behind are its columns, of which it must hold one unbroken range. Which memory a trainer
 * keeps where is its own affair: nothing here asks whether the boxes are all that a mesh demands.
 */
#include "refit/shards.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

#define BOX_TEXT 384

static const char *box_text(const weir_box *box, char text[BOX_TEXT])
{
    size_t used = (size_t)snprintf(text, BOX_TEXT, "[");
    for (uint32_t d = 0; d < box->rank; d++)
        used += (size_t)snprintf(text + used, BOX_TEXT - used, "%s%" PRIu64 ":%" PRIu64,
                                 d ? ", " : "", box->lo[d], box->hi[d]);
    snprintf(text + used, BOX_TEXT - used, "]");
    return text;
}

/* ---- which tensor of the model ---------------------------------------------------------------*/

/* A source by its name; of tied ones there are several. */
typedef struct named_source {
    const weir_tensor *view;
    const weir_conversion *conversion;
    uint32_t tensor, source, expert;
} named_source;

typedef struct name_index {
    named_source *sources;
    size_t n;
} name_index;

static int compare_names(const void *a, const void *b)
{
    const named_source *x = a, *y = b;
    int order = strcmp(x->view->name, y->view->name);
    return order != 0 ? order : (x->tensor > y->tensor) - (x->tensor < y->tensor);
}

static size_t sources_of(const weir_map_entry *entry)
{
    return entry->n_sources * (entry->n_experts > 0 ? entry->n_experts : 1);
}

static weir_status index_names(const weir_mapping *mapping, size_t n_tensors, name_index *index)
{
    size_t n_entries, n = 0;
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n_entries);
    if (n_entries != n_tensors)
        return weir_fail(WEIR_ERR_INVALID, "%zu tensors for a mapping of %zu entries", n_tensors,
                         n_entries);
    for (size_t t = 0; t < n_entries; t++)
        n += sources_of(&entries[t]);
    index->sources = weir_alloc_zeroed(n, sizeof(*index->sources));
    if (index->sources == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t t = 0; t < n_entries; t++) {
        const weir_map_entry *entry = &entries[t];
        for (size_t i = 0; i < sources_of(entry); i++)
            index->sources[index->n++] =
                (named_source){ &entry->sources[i], entry->conversion, (uint32_t)t,
                                (uint32_t)(i % entry->n_sources),
                                (uint32_t)(i / entry->n_sources) };
    }
    qsort(index->sources, index->n, sizeof(*index->sources), compare_names);
    return WEIR_OK;
}

/* The first source of that name; NULL: none. */
static const named_source *find_name(const name_index *index, const char *name)
{
    size_t low = 0, high = index->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(index->sources[middle].view->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    bool found = low < index->n && strcmp(index->sources[low].view->name, name) == 0;
    return found ? &index->sources[low] : NULL;
}

/* ---- checking what was registered ------------------------------------------------------------*/

static bool is_empty(const weir_box *box)
{
    for (uint32_t d = 0; d < box->rank; d++) {
        if (box->lo[d] == box->hi[d])
            return true;
    }
    return false;
}

static bool box_fits(const weir_box *box, const weir_shape *global)
{
    if (box->rank != global->rank)
        return false;
    for (uint32_t d = 0; d < box->rank; d++) {
        if (box->lo[d] > box->hi[d] || box->hi[d] > global->dim[d])
            return false;
    }
    return true;
}

/* What holds of any shard, whatever the model. */
static weir_status check_shape(const weir_tensor_shard *shard)
{
    char want[WEIR_SHAPE_TEXT], got[WEIR_SHAPE_TEXT], box[BOX_TEXT];
    const char *name = shard->local.name;
    if (name == NULL || name[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "a registered shard has no name");
    if (shard->global_shape.rank > WEIR_MAX_RANK || shard->box.rank > WEIR_MAX_RANK ||
        shard->local.shape.rank > WEIR_MAX_RANK)
        return weir_fail(WEIR_ERR_LAYOUT, "%s: more than %d axes", name, WEIR_MAX_RANK);
    if (!box_fits(&shard->box, &shard->global_shape))
        return weir_fail(WEIR_ERR_LAYOUT, "%s: box %s is no part of shape %s", name,
                         box_text(&shard->box, box),
                         weir_shape_text(&shard->global_shape, want, sizeof(want)));
    weir_shape extent = weir_box_shape(&shard->box);
    if (!weir_shape_equal(&extent, &shard->local.shape))
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s: box %s has shape %s, its memory was registered as %s", name,
                         box_text(&shard->box, box), weir_shape_text(&extent, want, sizeof(want)),
                         weir_shape_text(&shard->local.shape, got, sizeof(got)));
    if (shard->local.data == NULL && !is_empty(&shard->box))
        return weir_fail(WEIR_ERR_INVALID, "%s: box %s was registered without data", name,
                         box_text(&shard->box, box));
    return WEIR_OK;
}

static weir_status check_source(const weir_tensor_shard *shard, const named_source *source)
{
    char want[WEIR_SHAPE_TEXT], got[WEIR_SHAPE_TEXT];
    const char *name = shard->local.name;
    weir_dtype dtype = shard->local.dtype;
    if (!weir_shape_equal(&shard->global_shape, &source->view->shape))
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s: the model has it with shape %s, it was registered as part of %s",
                         name, weir_shape_text(&source->view->shape, want, sizeof(want)),
                         weir_shape_text(&shard->global_shape, got, sizeof(got)));
    uint64_t n_bytes; /* of the whole: no offset within a box overflows */
    unsigned bits = weir_dtype_bits(dtype);
    if (bits == 0 || bits % 8 != 0 || !(source->conversion->sources & WEIR_DTYPE_BIT(dtype)))
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s: registered as %s, which %s does not take (the model has it as %s)",
                         name, weir_dtype_name(dtype), source->conversion->name,
                         weir_dtype_name(source->view->dtype));
    weir_status status = weir_tensor_bytes(dtype, &shard->global_shape, &n_bytes);
    if (status != WEIR_OK)
        weir_error_prefix("%s", name);
    return status;
}

/* ---- boxes -----------------------------------------------------------------------------------*/

/* Axes from `first` on as one: false when the box has several ranges of it. No product can
 * overflow: the elements of the global shape were counted. */
static bool flatten(const weir_box *box, const weir_shape *global, uint32_t first, uint64_t *lo,
                    uint64_t *hi)
{
    *lo = 0;
    *hi = 1;
    for (uint32_t d = first; d < box->rank; d++) {
        bool whole = box->lo[d] == 0 && box->hi[d] == global->dim[d];
        if (*hi - *lo > 1 && !whole)
            return false;
        *lo = *lo * global->dim[d] + box->lo[d];
        *hi = (*hi - 1) * global->dim[d] + box->hi[d];
    }
    return true;
}

/* Some trainers stack what there is one of: shared experts as (1, rows, columns). The mapping sees
 * the matrix alone. */
static weir_tensor_shard without_stack(const weir_tensor_shard *shard, const weir_shape *wanted)
{
    weir_tensor_shard out = *shard;
    if (shard->global_shape.rank != wanted->rank + 1 || shard->global_shape.dim[0] != 1)
        return out;
    out.global_shape.rank = out.box.rank = wanted->rank;
    for (uint32_t d = 0; d < wanted->rank; d++) {
        out.global_shape.dim[d] = shard->global_shape.dim[d + 1];
        out.box.lo[d] = shard->box.lo[d + 1];
        out.box.hi[d] = shard->box.hi[d + 1];
    }
    return out;
}

/* Adds the boxes of a shard that is part of `source`, one per expert. boxes NULL: counts them. */
static weir_status add_boxes(const weir_tensor_shard *shard, size_t number,
                             const named_source *source, bool stacked, weir_local_box *boxes,
                             size_t *n)
{
    char text[BOX_TEXT];
    const weir_box *box = &shard->box;
    uint32_t leading = stacked ? 1 : 0;
    uint64_t expert_lo = stacked ? box->lo[0] : source->expert;
    uint64_t expert_hi = stacked ? box->hi[0] : source->expert + 1;
    weir_local_box part = {
        .tensor = source->tensor, .source = source->source, .row_hi = 1, .shard = (uint32_t)number
    };
    if (box->rank > leading) {
        part.row_lo = box->lo[leading];
        part.row_hi = box->hi[leading];
    }
    if (!flatten(box, &shard->global_shape, leading + 1, &part.col_lo, &part.col_hi))
        return weir_fail(WEIR_ERR_LAYOUT, "%s: box %s is cut along several of its inner axes",
                         shard->local.name, box_text(box, text));
    uint64_t matrix_bytes = (part.row_hi - part.row_lo) * (part.col_hi - part.col_lo) *
                            (weir_dtype_bits(shard->local.dtype) / 8);
    for (uint64_t e = expert_lo; e < expert_hi; e++) {
        part.expert = (uint32_t)e;
        part.offset = (e - expert_lo) * matrix_bytes;
        if (boxes != NULL)
            boxes[*n] = part;
        *n += 1;
    }
    return WEIR_OK;
}

static weir_status add_shard(const weir_tensor_shard *shard, size_t number, const name_index *index,
                             const weir_fleet_tensor *tensors, weir_local_box *boxes, size_t *n)
{
    weir_status status = check_shape(shard);
    if (status != WEIR_OK)
        return status;
    const named_source *source = find_name(index, shard->local.name);
    if (source == NULL)
        return weir_fail(WEIR_ERR_LAYOUT, "%s was registered, but the model has no such tensor",
                         shard->local.name);
    const named_source *end = index->sources + index->n;
    for (; source < end && strcmp(source->view->name, shard->local.name) == 0; source++) {
        weir_tensor_shard matrix = without_stack(shard, &source->view->shape);
        bool stacked = tensors[source->tensor].stacked;
        status = check_source(&matrix, source);
        if (status == WEIR_OK && !is_empty(&shard->box))
            status = add_boxes(&matrix, number, source, stacked, boxes, n);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static int compare_boxes(const void *a, const void *b)
{
    const weir_local_box *x = a, *y = b;
    const uint64_t left[] = { x->tensor, x->source, x->expert, x->row_lo, x->col_lo, x->shard };
    const uint64_t right[] = { y->tensor, y->source, y->expert, y->row_lo, y->col_lo, y->shard };
    for (size_t i = 0; i < sizeof(left) / sizeof(left[0]); i++) {
        if (left[i] != right[i])
            return left[i] < right[i] ? -1 : 1;
    }
    return 0;
}

/* Counts first: a mesh of experts has many boxes, and a trainer keeps them for good. */
static weir_status fill_boxes(weir_local_shards *local, const name_index *index,
                              const weir_fleet_tensor *tensors)
{
    weir_status status = WEIR_OK;
    size_t n = 0;
    for (size_t i = 0; i < local->n_shards && status == WEIR_OK; i++)
        status = add_shard(&local->shards[i], i, index, tensors, NULL, &n);
    if (status != WEIR_OK)
        return status;
    local->boxes = weir_alloc_zeroed(n, sizeof(*local->boxes));
    if (local->boxes == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < local->n_shards && status == WEIR_OK; i++)
        status = add_shard(&local->shards[i], i, index, tensors, local->boxes, &local->n_boxes);
    qsort(local->boxes, local->n_boxes, sizeof(*local->boxes), compare_boxes);
    return status;
}

/* ---- open, rebind, close ---------------------------------------------------------------------*/

/* The array, and the names behind it. */
static weir_status copy_shards(weir_local_shards *local, const weir_tensor_shard *shards, size_t n)
{
    size_t text_bytes = 0;
    if (n > UINT32_MAX)
        return weir_fail(WEIR_ERR_INVALID, "%zu registered shards", n);
    for (size_t i = 0; i < n; i++)
        text_bytes += shards[i].local.name != NULL ? strlen(shards[i].local.name) + 1 : 0;
    local->shards = weir_alloc(n * sizeof(*shards) + text_bytes);
    if (local->shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    char *text = (char *)(local->shards + n);
    for (size_t i = 0; i < n; i++) {
        const char *name = shards[i].local.name;
        local->shards[i] = shards[i];
        if (name == NULL)
            continue;
        local->shards[i].local.name = memcpy(text, name, strlen(name) + 1);
        text += strlen(name) + 1;
    }
    local->n_shards = n;
    return WEIR_OK;
}

weir_status weir_local_shards_open(const weir_mapping *mapping, const weir_fleet_tensor *tensors,
                                   size_t n_tensors, const weir_tensor_shard *shards,
                                   size_t n_shards, weir_local_shards **out)
{
    name_index index = { 0 };
    weir_local_shards *local = weir_alloc_zeroed(1, sizeof(*local));
    if (local == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = copy_shards(local, shards, n_shards);
    if (status == WEIR_OK)
        status = index_names(mapping, n_tensors, &index);
    if (status == WEIR_OK)
        status = fill_boxes(local, &index, tensors);
    weir_free(index.sources);
    if (status != WEIR_OK) {
        weir_local_shards_close(local);
        return status;
    }
    *out = local;
    return WEIR_OK;
}

void weir_local_shards_close(weir_local_shards *local)
{
    if (local == NULL)
        return;
    weir_free(local->boxes);
    weir_free(local->shards);
    weir_free(local);
}

static bool same_box(const weir_box *a, const weir_box *b)
{
    return a->rank == b->rank && memcmp(a->lo, b->lo, a->rank * sizeof(a->lo[0])) == 0 &&
           memcmp(a->hi, b->hi, a->rank * sizeof(a->hi[0])) == 0;
}

static weir_status check_same(const weir_tensor_shard *old, const weir_tensor_shard *given)
{
    char was[BOX_TEXT], is[BOX_TEXT];
    weir_status status = check_shape(given);
    if (status != WEIR_OK)
        return status;
    if (strcmp(old->local.name, given->local.name) != 0)
        return weir_fail(WEIR_ERR_LAYOUT, "%s was registered where %s was before",
                         given->local.name, old->local.name);
    if (old->local.dtype == given->local.dtype && same_box(&old->box, &given->box) &&
        weir_shape_equal(&old->global_shape, &given->global_shape))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_LAYOUT, "%s: registered as %s %s, before as %s %s", old->local.name,
                     weir_dtype_name(given->local.dtype), box_text(&given->box, is),
                     weir_dtype_name(old->local.dtype), box_text(&old->box, was));
}

weir_status weir_local_shards_rebind(weir_local_shards *local, const weir_tensor_shard *shards,
                                     size_t n_shards)
{
    if (n_shards != local->n_shards)
        return weir_fail(WEIR_ERR_LAYOUT, "%zu shards were registered, before %zu", n_shards,
                         local->n_shards);
    for (size_t i = 0; i < n_shards; i++) {
        weir_status status = check_same(&local->shards[i], &shards[i]);
        if (status != WEIR_OK)
            return status;
    }
    for (size_t i = 0; i < n_shards; i++)
        local->shards[i].local.data = shards[i].local.data;
    return WEIR_OK;
}

/* ---- find ------------------------------------------------------------------------------------*/

/* The first box that does not come before the piece's source (and expert). */
static size_t find_first(const weir_local_shards *local, const weir_share_piece *piece)
{
    weir_local_box wanted = { .tensor = piece->tensor,
                              .source = piece->source,
                              .expert = piece->expert };
    size_t low = 0, high = local->n_boxes;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare_boxes(&local->boxes[middle], &wanted) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_of(const weir_local_box *box, const weir_share_piece *piece)
{
    return box->tensor == piece->tensor && box->source == piece->source &&
           box->expert == piece->expert;
}

static bool holds(const weir_local_box *box, const weir_share_piece *piece)
{
    return box->row_lo <= piece->source_row && box->col_lo <= piece->source_col &&
           (uint64_t)piece->source_row + piece->n_rows <= box->row_hi &&
           (uint64_t)piece->source_col + piece->n_cols <= box->col_hi;
}

/* `near`: a box of the same source and expert; NULL: there is none. */
static weir_status fail_missing(const weir_local_shards *local, const weir_fleet_tensor *tensors,
                                const weir_share_piece *piece, const weir_local_box *near)
{
    char name[256], got[160] = "nothing of it was";
    const weir_fleet_tensor *tensor = &tensors[piece->tensor];
    uint64_t row = piece->source_row, col = piece->source_col;
    if (near != NULL) {
        snprintf(name, sizeof(name), "%s", local->shards[near->shard].local.name);
        snprintf(got, sizeof(got),
                 "rows [%" PRIu64 ", %" PRIu64 ") and columns [%" PRIu64 ", %" PRIu64 ") were",
                 near->row_lo, near->row_hi, near->col_lo, near->col_hi);
    } else {
        snprintf(name, sizeof(name), "%s (source %u)", tensor->name, piece->source);
    }
    if (tensor->n_experts > 0)
        snprintf(name + strlen(name), sizeof(name) - strlen(name), ", expert %u", piece->expert);
    return weir_fail(WEIR_ERR_LAYOUT,
                     "%s: this rank must register rows [%" PRIu64 ", %" PRIu64
                     ") and columns [%" PRIu64 ", %" PRIu64 ") in one box, %s",
                     name, row, row + piece->n_rows, col, col + piece->n_cols, got);
}

weir_status weir_local_shards_find(const weir_local_shards *local, const weir_fleet_tensor *tensors,
                                   const weir_share_piece *piece, weir_local_rows *out)
{
    size_t first = find_first(local, piece), i = first;
    while (i < local->n_boxes && is_of(&local->boxes[i], piece) && !holds(&local->boxes[i], piece))
        i++;
    const weir_local_box *box = i < local->n_boxes ? &local->boxes[i] : NULL;
    if (box == NULL || !is_of(box, piece)) {
        bool near = first < local->n_boxes && is_of(&local->boxes[first], piece);
        return fail_missing(local, tensors, piece, near ? &local->boxes[first] : NULL);
    }
    const weir_tensor_shard *shard = &local->shards[box->shard];
    uint64_t element_bytes = weir_dtype_bits(shard->local.dtype) / 8;
    uint64_t pitch_bytes = (box->col_hi - box->col_lo) * element_bytes;
    uint64_t offset = box->offset + (piece->source_row - box->row_lo) * pitch_bytes +
                      (piece->source_col - box->col_lo) * element_bytes;
    *out = (weir_local_rows){ shard, (unsigned char *)shard->local.data + offset, pitch_bytes };
    return WEIR_OK;
}
