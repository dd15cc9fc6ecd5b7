/* SPDX-License-Identifier: Apache-2.0 */
/* layout_encode.c - shards to bytes, by protobuf-c.
 *
 * Shards that follow each other are much alike, and there may be a hundred thousand: a number per
 * shard in one column is one small message, a message per shard is many. Tags travel once each and
 * are referred to by index, a name as what sets it apart from the one before, an offset as the gap
 * behind the shard before. The encoding is a function of the shards and gives each of them back, so
 * equal bytes are equal layouts and the other way round. layout_decode.c reads them.
 */
#include <string.h>

#include "base/error.h"
#include "manifest.pb-c.h"
#include "refit/manifest.h"

typedef Weir__Manifest__Layout layout_message;

/* Room for another whenever their number is a power of two. */
static bool add_tag(layout_message *layout, const weir_shard *shard, weir_arena *arena)
{
    size_t n = layout->n_tags;
    Weir__Manifest__Tag *tag = weir_arena_alloc(arena, sizeof(*tag));
    if ((n & (n - 1)) == 0) {
        Weir__Manifest__Tag **tags = weir_arena_alloc(arena, (2 * n + 1) * sizeof(*tags));
        if (tags != NULL && n > 0)
            memcpy(tags, layout->tags, n * sizeof(*tags));
        layout->tags = tags;
    }
    if (tag == NULL || layout->tags == NULL)
        return false;
    weir__manifest__tag__init(tag);
    tag->compile_target = (char *)shard->compile_target;
    tag->compile_metadata = (char *)shard->compile_metadata;
    layout->tags[layout->n_tags++] = tag;
    return true;
}

static bool set_tag(layout_message *layout, size_t i, const weir_shard *shard, weir_arena *arena)
{
    size_t tag = 0;
    while (tag < layout->n_tags &&
           (strcmp(layout->tags[tag]->compile_target, shard->compile_target) != 0 ||
            strcmp(layout->tags[tag]->compile_metadata, shard->compile_metadata) != 0))
        tag++;
    layout->tag[i] = (uint32_t)tag;
    return tag < layout->n_tags || add_tag(layout, shard, arena);
}

/* Gives how many bytes of the name neither begin nor end the name before. */
static size_t set_name(layout_message *layout, size_t i, const char *before, const char *name)
{
    size_t n_before = strlen(before), n = strlen(name), front = 0, back = 0;
    while (front < n && name[front] == before[front])
        front++;
    size_t most = (n < n_before ? n : n_before) - front;
    while (back < most && name[n - back - 1] == before[n_before - back - 1])
        back++;
    layout->name_front[i] = (uint32_t)front;
    layout->name_back[i] = (uint32_t)back;
    layout->name_middle[i] = (uint32_t)(n - front - back);
    return n - front - back;
}

static weir_status set_names(layout_message *layout, const weir_shard *shards, size_t n_shards,
                             weir_arena *arena)
{
    size_t n_bytes = 0, used = 0;
    for (size_t i = 0; i < n_shards; i++) {
        if (strlen(shards[i].name) > WEIR_LAYOUT_NAME_BYTES)
            return weir_fail(WEIR_ERR_INVALID, "%.60s…: its name has %zu bytes, more than %d",
                             shards[i].name, strlen(shards[i].name), WEIR_LAYOUT_NAME_BYTES);
        n_bytes += set_name(layout, i, i > 0 ? shards[i - 1].name : "", shards[i].name);
    }
    layout->names.data = weir_arena_alloc(arena, n_bytes);
    if (layout->names.data == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_shards; i++) {
        memcpy(layout->names.data + used, shards[i].name + layout->name_front[i],
               layout->name_middle[i]);
        used += layout->name_middle[i];
    }
    layout->names.len = used;
    return WEIR_OK;
}

/* Small numbers take one byte, and so does WEIR_ANY. */
static int32_t pack_place(uint32_t place)
{
    return place == WEIR_ANY ? -1 : (int32_t)place;
}

static void set_numbers(layout_message *layout, const weir_shard *shards, size_t n_shards)
{
    uint64_t end = 0;
    size_t at = 0;
    for (size_t i = 0; i < n_shards; i++) {
        const weir_shard *shard = &shards[i];
        layout->dtype[i] = (uint32_t)shard->dtype;
        layout->rank[i] = shard->global_shape.rank;
        for (uint32_t axis = 0; axis < shard->global_shape.rank; axis++, at++) {
            layout->global_shape[at] = shard->global_shape.dim[axis];
            layout->lo[at] = shard->box.lo[axis];
            layout->hi[at] = shard->box.hi[axis];
        }
        layout->region[i] = shard->region;
        layout->offset[i] = (int64_t)(shard->offset - end);
        layout->n_bytes[i] = shard->n_bytes;
        layout->stage[i] = pack_place(shard->place.stage);
        layout->d[i] = pack_place(shard->place.d);
        layout->t[i] = pack_place(shard->place.t);
        layout->n_padding_rows[i] = shard->n_padding_rows;
        end = shard->offset + shard->n_bytes;
    }
}

/* ---- columns ---------------------------------------------------------------------------------*/

static size_t count_axes(const weir_shard *shards, size_t n_shards)
{
    size_t n = 0;
    for (size_t i = 0; i < n_shards; i++)
        n += shards[i].global_shape.rank;
    return n;
}

static bool make_columns(layout_message *layout, size_t n, size_t n_axes, weir_arena *arena)
{
    uint32_t *narrow = weir_arena_zeroed(arena, 10 * n, sizeof(*narrow));
    uint64_t *wide = weir_arena_zeroed(arena, 3 * n + 3 * n_axes, sizeof(*wide));
    if (narrow == NULL || wide == NULL)
        return false;
    layout->name_front = narrow;
    layout->name_back = narrow + n;
    layout->name_middle = narrow + 2 * n;
    layout->dtype = narrow + 3 * n;
    layout->rank = narrow + 4 * n;
    layout->tag = narrow + 5 * n;
    layout->region = narrow + 6 * n;
    layout->stage = (int32_t *)(narrow + 7 * n);
    layout->d = (int32_t *)(narrow + 8 * n);
    layout->t = (int32_t *)(narrow + 9 * n);
    layout->offset = (int64_t *)wide;
    layout->n_bytes = wide + n;
    layout->n_padding_rows = wide + 2 * n;
    layout->global_shape = wide + 3 * n;
    layout->lo = layout->global_shape + n_axes;
    layout->hi = layout->lo + n_axes;
    return true;
}

/* How many numbers of a column travel: none of one that is all zeros. */
static size_t count(const void *column, size_t n, size_t number_bytes)
{
    const unsigned char *bytes = column;
    size_t n_bytes = n * number_bytes;
    bool is_zero = n_bytes == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, n_bytes - 1) == 0);
    return is_zero ? 0 : n;
}

static void count_columns(layout_message *layout, size_t n, size_t n_axes)
{
    layout->n_name_front = count(layout->name_front, n, sizeof(uint32_t));
    layout->n_name_back = count(layout->name_back, n, sizeof(uint32_t));
    layout->n_name_middle = n;
    layout->n_dtype = count(layout->dtype, n, sizeof(uint32_t));
    layout->n_rank = count(layout->rank, n, sizeof(uint32_t));
    layout->n_global_shape = count(layout->global_shape, n_axes, sizeof(uint64_t));
    layout->n_lo = count(layout->lo, n_axes, sizeof(uint64_t));
    layout->n_hi = count(layout->hi, n_axes, sizeof(uint64_t));
    layout->n_tag = count(layout->tag, n, sizeof(uint32_t));
    layout->n_region = count(layout->region, n, sizeof(uint32_t));
    layout->n_offset = count(layout->offset, n, sizeof(int64_t));
    layout->n_n_bytes = count(layout->n_bytes, n, sizeof(uint64_t));
    layout->n_stage = count(layout->stage, n, sizeof(int32_t));
    layout->n_d = count(layout->d, n, sizeof(int32_t));
    layout->n_t = count(layout->t, n, sizeof(int32_t));
    layout->n_n_padding_rows = count(layout->n_padding_rows, n, sizeof(uint64_t));
}

weir_status weir_layout_encode(const weir_shard *shards, size_t n_shards, weir_arena *arena,
                               weir_buffer *out)
{
    layout_message layout = WEIR__MANIFEST__LAYOUT__INIT;
    size_t n_axes = count_axes(shards, n_shards);
    if (!make_columns(&layout, n_shards, n_axes, arena))
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_shards; i++) {
        if (!set_tag(&layout, i, &shards[i], arena))
            return WEIR_ERR_NO_MEMORY;
    }
    weir_status status = set_names(&layout, shards, n_shards, arena);
    if (status != WEIR_OK)
        return status;
    set_numbers(&layout, shards, n_shards);
    count_columns(&layout, n_shards, n_axes);
    status = weir_buffer_reserve(out, weir__manifest__layout__get_packed_size(&layout));
    if (status == WEIR_OK)
        out->n_bytes = weir__manifest__layout__pack(&layout, out->data);
    return status;
}
