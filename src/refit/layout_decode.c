/* SPDX-License-Identifier: Apache-2.0 */
/* layout_decode.c - the shards of a layout that one worker reads, every number checked.
 *
 * Most shards of a large fleet are other workers': hundreds of ranks list millions, of which a
 * worker reads a few in a hundred. So the layout's own fields are walked here, without unpacking
 * what lies in them, and only shards of the worker's place go through protobuf-c and are kept.
 */
#include <string.h>

#include "base/error.h"
#include "manifest.pb-c.h"
#include "plan/box.h"
#include "plan/shard_match.h"
#include "refit/manifest.h"

/* ---- fields of a message ---------------------------------------------------------------------*/

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

typedef struct wire {
    const uint8_t *at, *end;
} wire;

typedef struct field {
    uint64_t number;
    unsigned type;
    uint64_t value;      /* of a varint */
    const uint8_t *data; /* of bytes */
    size_t n_bytes;
} field;

static bool read_varint(wire *w, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        uint8_t byte = *w->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

static bool skip(wire *w, uint64_t n_bytes)
{
    if (n_bytes > (uint64_t)(w->end - w->at))
        return false;
    w->at += n_bytes;
    return true;
}

/* False: it ends within a field, or has one of a kind that there is not. */
static bool next_field(wire *w, field *out)
{
    uint64_t key, n_bytes;
    if (!read_varint(w, &key))
        return false;
    out->number = key >> 3;
    out->type = key & 7;
    switch (out->type) {
    case WIRE_VARINT:
        return read_varint(w, &out->value);
    case WIRE_64:
        return skip(w, 8);
    case WIRE_BYTES:
        if (!read_varint(w, &n_bytes))
            return false;
        out->data = w->at;
        out->n_bytes = n_bytes;
        return skip(w, n_bytes);
    case WIRE_32:
        return skip(w, 4);
    default:
        return false;
    }
}

/* ---- one shard -------------------------------------------------------------------------------*/

/* Numbers of fields, as proto/manifest.proto has them. */
enum { LAYOUT_TAGS = 1, LAYOUT_SHARDS = 2 };
enum { SHARD_NAME = 1, SHARD_STAGE = 10, SHARD_D = 11, SHARD_T = 12 };

typedef struct layout_reader {
    const void *bytes;
    size_t n_bytes;
    const weir_manifest_region *regions;
    size_t n_regions;
    const weir_mesh_place *place; /* NULL: shards of every place */
    weir_arena *arena;            /* of what is kept */
    weir_arena scratch;           /* of one shard's message */
    Weir__Manifest__Tag **tags;
    size_t n_tags, n_shards, n_own;
    const uint8_t *name; /* the last one that came with a shard, and its copy if one was needed */
    size_t name_bytes;
    const char *name_text;
} layout_reader;

static void *arena_alloc(void *arena, size_t n_bytes)
{
    return weir_arena_alloc(arena, n_bytes);
}

static void arena_free(void *arena, void *piece)
{
    (void)arena, (void)piece; /* goes with the arena */
}

/* Small numbers take one byte, whatever their sign. */
static uint32_t read_signed(uint64_t value)
{
    uint32_t bits = (uint32_t)value;
    return (bits >> 1) ^ (0 - (bits & 1));
}

/* Whether a shard is of the worker's place; takes note of its name. */
static bool look_at(layout_reader *r, const field *shard, bool *out_own)
{
    wire w = { shard->data, shard->data + shard->n_bytes };
    weir_mesh_place place = { 0, 0, 0 };
    field f;
    while (w.at < w.end) {
        if (!next_field(&w, &f))
            return false;
        if (f.number == SHARD_NAME && f.type == WIRE_BYTES && f.n_bytes > 0) {
            r->name = f.data;
            r->name_bytes = f.n_bytes;
            r->name_text = NULL;
        }
        if (f.type != WIRE_VARINT)
            continue;
        place.stage = f.number == SHARD_STAGE ? read_signed(f.value) : place.stage;
        place.d = f.number == SHARD_D ? read_signed(f.value) : place.d;
        place.t = f.number == SHARD_T ? read_signed(f.value) : place.t;
    }
    *out_own = r->place == NULL || weir_mesh_place_matches(&place, r->place);
    return true;
}

static const char *name_of(layout_reader *r)
{
    if (r->name_text != NULL || r->name == NULL)
        return r->name_text != NULL ? r->name_text : "";
    char *text = weir_arena_alloc(r->arena, r->name_bytes + 1);
    if (text == NULL)
        return NULL;
    memcpy(text, r->name, r->name_bytes);
    text[r->name_bytes] = '\0';
    r->name_text = text;
    return text;
}

static weir_status check_shard(const layout_reader *r, const Weir__Manifest__Shard *message,
                               const char *name)
{
    size_t rank = message->n_global_shape;
    if (name[0] == '\0' || rank > WEIR_MAX_RANK || message->n_lo != rank || message->n_hi != rank)
        return weir_fail(WEIR_ERR_CORRUPT,
                         "manifest: shard '%s' has %zu dims and a box of %zu, %zu", name, rank,
                         message->n_lo, message->n_hi);
    if (weir_dtype_bits((weir_dtype)message->dtype) == 0)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: dtype number %u is unknown", name,
                         message->dtype);
    if (message->tag >= r->n_tags)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: tag %u of %zu", name, message->tag,
                         r->n_tags);
    if (message->region >= r->n_regions)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: region %u of %zu", name, message->region,
                         r->n_regions);
    if (message->stage < -1 || message->d < -1 || message->t < -1)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: is of stage %d, d %d, t %d", name,
                         message->stage, message->d, message->t);
    return WEIR_OK;
}

/* -1 is WEIR_ANY. */
_Static_assert((uint32_t)-1 == WEIR_ANY, "places travel as signed numbers");

static void take_shard(const layout_reader *r, const Weir__Manifest__Shard *message,
                       const char *name, weir_shard *out)
{
    const Weir__Manifest__Tag *tag = r->tags[message->tag];
    size_t rank = message->n_global_shape;
    *out = (weir_shard){ .name = name,
                         .dtype = (weir_dtype)message->dtype,
                         .global_shape.rank = (uint32_t)rank,
                         .box.rank = (uint32_t)rank,
                         .place = { (uint32_t)message->stage, (uint32_t)message->d,
                                    (uint32_t)message->t },
                         .n_padding_rows = message->n_padding_rows,
                         .compile_target = tag->compile_target,
                         .compile_metadata = tag->compile_metadata,
                         .region = message->region,
                         .offset = message->offset,
                         .n_bytes = message->n_bytes };
    for (size_t d = 0; d < rank; d++) {
        out->global_shape.dim[d] = message->global_shape[d];
        out->box.lo[d] = message->lo[d];
        out->box.hi[d] = message->hi[d];
    }
}

/* A box of what is filled of the parameter, and empty only where nothing is. */
static weir_status check_box(const weir_shard *shard)
{
    const weir_shape *shape = &shard->global_shape;
    char box[WEIR_BOX_TEXT], text[WEIR_SHAPE_TEXT];
    uint64_t whole_bytes, n_bytes;
    if (shard->n_padding_rows > (shape->rank > 0 ? shape->dim[0] : 0))
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: %llu rows of padding, of %s", shard->name,
                         (unsigned long long)shard->n_padding_rows,
                         weir_shape_text(shape, text, sizeof(text)));
    weir_shape filled = weir_shard_filled(shard);
    if (!weir_box_fits(&shard->box, &filled))
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: %s is no part of %s", shard->name,
                         weir_box_text(&shard->box, box),
                         weir_shape_text(&filled, text, sizeof(text)));
    weir_shape extent = weir_box_shape(&shard->box);
    if (weir_tensor_bytes(shard->dtype, shape, &whole_bytes) != WEIR_OK ||
        weir_tensor_bytes(shard->dtype, &extent, &n_bytes) != WEIR_OK || n_bytes != shard->n_bytes)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: %llu bytes do not fit its box",
                         shard->name, (unsigned long long)shard->n_bytes);
    return WEIR_OK;
}

static weir_status check_region(const weir_shard *shard, const weir_manifest_region *regions)
{
    uint64_t region_bytes = regions[shard->region].n_bytes;
    if (shard->offset > region_bytes || shard->n_bytes > region_bytes - shard->offset)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: bytes %llu + %llu of a region of %llu",
                         shard->name, (unsigned long long)shard->offset,
                         (unsigned long long)shard->n_bytes, (unsigned long long)region_bytes);
    return WEIR_OK;
}

static weir_status read_shard(layout_reader *r, const field *at, weir_shard *out)
{
    ProtobufCAllocator allocator = { arena_alloc, arena_free, &r->scratch };
    weir_arena_reset(&r->scratch);
    const Weir__Manifest__Shard *message =
        weir__manifest__shard__unpack(&allocator, at->n_bytes, at->data);
    const char *name = name_of(r);
    if (message == NULL)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: the layout of %zu bytes does not decode",
                         r->n_bytes);
    if (name == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = check_shard(r, message, name);
    if (status != WEIR_OK)
        return status;
    take_shard(r, message, name, out);
    status = check_box(out);
    return status == WEIR_OK ? check_region(out, r->regions) : status;
}

/* ---- the layout ------------------------------------------------------------------------------*/

/* How much of everything there is. */
static bool count(layout_reader *r)
{
    wire w = { r->bytes, (const uint8_t *)r->bytes + r->n_bytes };
    field f;
    while (w.at < w.end) {
        bool own = false;
        if (!next_field(&w, &f))
            return false;
        bool is_shard = f.number == LAYOUT_SHARDS && f.type == WIRE_BYTES;
        if (is_shard && !look_at(r, &f, &own))
            return false;
        r->n_tags += f.number == LAYOUT_TAGS && f.type == WIRE_BYTES ? 1 : 0;
        r->n_shards += is_shard ? 1 : 0;
        r->n_own += own ? 1 : 0;
    }
    r->name = NULL;
    return true;
}

static weir_status read_tags(layout_reader *r)
{
    ProtobufCAllocator allocator = { arena_alloc, arena_free, r->arena };
    wire w = { r->bytes, (const uint8_t *)r->bytes + r->n_bytes };
    field f;
    r->tags = weir_arena_zeroed(r->arena, r->n_tags, sizeof(*r->tags));
    if (r->tags == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t n = 0; n < r->n_tags && next_field(&w, &f);) {
        if (f.number != LAYOUT_TAGS || f.type != WIRE_BYTES)
            continue;
        r->tags[n] = weir__manifest__tag__unpack(&allocator, f.n_bytes, f.data);
        if (r->tags[n++] == NULL)
            return weir_fail(WEIR_ERR_CORRUPT, "manifest: the layout of %zu bytes does not decode",
                             r->n_bytes);
    }
    return WEIR_OK;
}

static weir_status read_shards(layout_reader *r, weir_layout_part *out)
{
    wire w = { r->bytes, (const uint8_t *)r->bytes + r->n_bytes };
    weir_status status = WEIR_OK;
    uint32_t number = 0;
    field f;
    out->shards = weir_arena_zeroed(r->arena, r->n_own, sizeof(out->shards[0]));
    out->numbers = weir_arena_zeroed(r->arena, r->n_own, sizeof(out->numbers[0]));
    if (out->shards == NULL || out->numbers == NULL)
        return WEIR_ERR_NO_MEMORY;
    while (status == WEIR_OK && out->n_shards < r->n_own && next_field(&w, &f)) {
        bool own;
        if (f.number != LAYOUT_SHARDS || f.type != WIRE_BYTES || !look_at(r, &f, &own))
            continue;
        if (own) {
            out->numbers[out->n_shards] = number;
            status = read_shard(r, &f, &out->shards[out->n_shards++]);
        }
        number++;
    }
    return status;
}

weir_status weir_layout_decode_part(const void *bytes, size_t n_bytes,
                                    const weir_manifest_region *regions, size_t n_regions,
                                    const weir_mesh_place *place, weir_arena *arena,
                                    weir_layout_part *out)
{
    layout_reader r = { .bytes = bytes,
                        .n_bytes = n_bytes,
                        .regions = regions,
                        .n_regions = n_regions,
                        .place = place,
                        .arena = arena };
    weir_layout_part part = { 0 };
    if (!count(&r) || r.n_shards > UINT32_MAX)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: the layout of %zu bytes does not decode",
                         n_bytes);
    weir_arena_init(&r.scratch, 0);
    weir_status status = read_tags(&r);
    if (status == WEIR_OK)
        status = read_shards(&r, &part);
    weir_arena_close(&r.scratch);
    if (status != WEIR_OK)
        return status;
    part.n_published = r.n_shards;
    *out = part;
    return WEIR_OK;
}

weir_status weir_layout_decode(const void *bytes, size_t n_bytes,
                               const weir_manifest_region *regions, size_t n_regions,
                               weir_arena *arena, weir_shard **out, size_t *out_n_shards)
{
    weir_layout_part part;
    weir_status status =
        weir_layout_decode_part(bytes, n_bytes, regions, n_regions, NULL, arena, &part);
    if (status != WEIR_OK)
        return status;
    *out = part.shards;
    *out_n_shards = part.n_shards;
    return WEIR_OK;
}
