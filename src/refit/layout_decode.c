/* SPDX-License-Identifier: Apache-2.0 */
/* layout_decode.c - the shards of a layout that one worker reads, every number checked.
 *
 * A layout is columns of numbers, which protobuf-c would unpack into arrays of all that are
 * published: hundreds of ranks list millions of shards, of which a worker reads a few in a hundred.
 * So the columns are read side by side where they lie, shard by shard, and only shards of the
 * worker's place are checked and kept.
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
    const uint8_t *data; /* of bytes */
    size_t n_bytes;
} field;

static bool read_varint(wire *w, uint64_t *out)
{
    uint64_t value = 0;
    if (w->at < w->end && *w->at < 0x80) { /* most are */
        *out = *w->at++;
        return true;
    }
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
    uint64_t key, n_bytes, value;
    if (!read_varint(w, &key))
        return false;
    out->number = key >> 3;
    out->type = key & 7;
    switch (out->type) {
    case WIRE_VARINT:
        return read_varint(w, &value);
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

/* ---- columns ---------------------------------------------------------------------------------*/

/* In the order of their fields in proto/manifest.proto, the first of which follows the tags'. */
typedef enum column {
    NAME_FRONT,
    NAME_BACK,
    NAME_MIDDLE,
    NAMES,
    DTYPE,
    RANK,
    GLOBAL_SHAPE,
    LO,
    HI,
    TAG,
    REGION,
    OFFSET,
    N_BYTES,
    STAGE,
    D,
    T,
    N_PADDING_ROWS,
    N_COLUMNS
} column;
enum { LAYOUT_TAGS = 1, FIRST_COLUMN = 2 };

typedef struct layout_reader {
    const void *bytes;
    size_t n_bytes;
    const weir_manifest_region *regions;
    size_t n_regions;
    const weir_mesh_place *place; /* NULL: shards of every place */
    weir_arena *arena;            /* of what is kept */
    Weir__Manifest__Tag **tags;
    size_t n_tags, n_shards;
    wire columns[N_COLUMNS]; /* what is not read yet; at NULL: there is none, all are 0 */
    bool is_cut;             /* a column ended early */
    uint64_t end;            /* of the shard before, in its region */
    char name[WEIR_LAYOUT_NAME_BYTES + 1]; /* of the shard that was read last */
    size_t name_bytes;
    const char *kept_name; /* the same, where it stays; NULL: nowhere yet */
    char *names;           /* room for names that stay */
} layout_reader;

static uint64_t next_number(layout_reader *r, column of)
{
    uint64_t value = 0;
    if (r->columns[of].at != NULL && !read_varint(&r->columns[of], &value))
        r->is_cut = true;
    return value;
}

/* Small numbers take one byte, whatever their sign. */
static uint64_t next_signed(layout_reader *r, column of)
{
    uint64_t value = next_number(r, of);
    return (value >> 1) ^ (0 - (value & 1));
}

static weir_mesh_place next_place(layout_reader *r)
{
    uint32_t stage = (uint32_t)next_signed(r, STAGE), d = (uint32_t)next_signed(r, D);
    return (weir_mesh_place){ stage, d, (uint32_t)next_signed(r, T) };
}

static bool is_own(const layout_reader *r, const weir_mesh_place *place)
{
    return r->place == NULL || weir_mesh_place_matches(place, r->place);
}

static weir_status undecodable(const layout_reader *r)
{
    return weir_fail(WEIR_ERR_CORRUPT, "manifest: the layout of %zu bytes does not decode",
                     r->n_bytes);
}

/* ---- names -----------------------------------------------------------------------------------*/

typedef struct name_cut {
    size_t front, back, middle, n_bytes;
} name_cut;

/* How the next name is made of the one before. False: it is not. */
static bool next_cut(layout_reader *r, name_cut *out)
{
    uint64_t front = next_number(r, NAME_FRONT), back = next_number(r, NAME_BACK);
    uint64_t middle = next_number(r, NAME_MIDDLE);
    const wire *names = &r->columns[NAMES];
    if (r->is_cut || front > r->name_bytes || back > r->name_bytes - front ||
        middle > (uint64_t)(names->end - names->at) ||
        middle > WEIR_LAYOUT_NAME_BYTES - front - back)
        return false;
    *out = (name_cut){ front, back, middle, front + back + middle };
    return out->n_bytes > 0;
}

static bool is_same(const layout_reader *r, const name_cut *cut)
{
    return cut->front == r->name_bytes && cut->middle == 0;
}

static void make_name(layout_reader *r, const name_cut *cut)
{
    if (is_same(r, cut))
        return;
    wire *names = &r->columns[NAMES];
    memmove(r->name + cut->front + cut->middle, r->name + r->name_bytes - cut->back, cut->back);
    if (cut->middle > 0) {
        memcpy(r->name + cut->front, names->at, cut->middle);
        names->at += cut->middle;
    }
    r->name_bytes = cut->n_bytes;
    r->name[r->name_bytes] = '\0';
    r->kept_name = NULL;
}

static const char *keep_name(layout_reader *r)
{
    if (r->kept_name == NULL) {
        memcpy(r->names, r->name, r->name_bytes + 1);
        r->kept_name = r->names;
        r->names += r->name_bytes + 1;
    }
    return r->kept_name;
}

/* ---- one shard -------------------------------------------------------------------------------*/

/* What a shard refers to, by numbers that may be any. */
typedef struct references {
    uint64_t dtype, rank, tag, region;
} references;

/* -1 is WEIR_ANY. */
_Static_assert((uint32_t)-1 == WEIR_ANY, "places travel as signed numbers");

static bool is_place(uint32_t axis)
{
    return axis <= INT32_MAX || axis == WEIR_ANY;
}

static weir_status check_references(const layout_reader *r, const references *to,
                                    const weir_mesh_place *place)
{
    if (weir_dtype_bits((weir_dtype)to->dtype) == 0 || to->dtype > UINT32_MAX)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: dtype number %llu is unknown", r->name,
                         (unsigned long long)to->dtype);
    if (to->tag >= r->n_tags)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: tag %llu of %zu", r->name,
                         (unsigned long long)to->tag, r->n_tags);
    if (to->region >= r->n_regions)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: region %llu of %zu", r->name,
                         (unsigned long long)to->region, r->n_regions);
    if (!is_place(place->stage) || !is_place(place->d) || !is_place(place->t))
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: is of stage %d, d %d, t %d", r->name,
                         (int)place->stage, (int)place->d, (int)place->t);
    return WEIR_OK;
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

/* Numbers of every shard are read, whosever it is, so that all columns stay side by side. */
static weir_status next_numbers(layout_reader *r, references *to, weir_shard *out)
{
    *to = (references){ next_number(r, DTYPE), next_number(r, RANK), 0, 0 };
    if (to->rank > WEIR_MAX_RANK)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %s: has %llu axes, at most %d are allowed",
                         r->name, (unsigned long long)to->rank, WEIR_MAX_RANK);
    *out = (weir_shard){ .global_shape.rank = (uint32_t)to->rank, .box.rank = (uint32_t)to->rank };
    for (size_t axis = 0; axis < to->rank; axis++) {
        out->global_shape.dim[axis] = next_number(r, GLOBAL_SHAPE);
        out->box.lo[axis] = next_number(r, LO);
        out->box.hi[axis] = next_number(r, HI);
    }
    to->tag = next_number(r, TAG);
    to->region = next_number(r, REGION);
    out->offset = r->end + next_signed(r, OFFSET);
    out->n_bytes = next_number(r, N_BYTES);
    out->place = next_place(r);
    out->n_padding_rows = next_number(r, N_PADDING_ROWS);
    r->end = out->offset + out->n_bytes;
    return r->is_cut ? undecodable(r) : WEIR_OK;
}

/* `out` is complete if the shard is the worker's own. */
static weir_status next_shard(layout_reader *r, weir_shard *out, bool *out_own)
{
    name_cut cut;
    references to;
    if (!next_cut(r, &cut))
        return undecodable(r);
    make_name(r, &cut);
    weir_status status = next_numbers(r, &to, out);
    *out_own = is_own(r, &out->place);
    if (status != WEIR_OK || !*out_own)
        return status;
    status = check_references(r, &to, &out->place);
    if (status != WEIR_OK)
        return status;
    out->name = keep_name(r);
    out->dtype = (weir_dtype)to.dtype;
    out->compile_target = r->tags[to.tag]->compile_target;
    out->compile_metadata = r->tags[to.tag]->compile_metadata;
    out->region = (uint32_t)to.region;
    status = check_box(out);
    return status == WEIR_OK ? check_region(out, r->regions) : status;
}

/* ---- the layout ------------------------------------------------------------------------------*/

/* Finds the columns, and counts tags and shards. */
static bool find_columns(layout_reader *r)
{
    wire w = { r->bytes, (const uint8_t *)r->bytes + r->n_bytes };
    field f;
    while (w.at < w.end) {
        if (!next_field(&w, &f))
            return false;
        if (f.number == LAYOUT_TAGS && f.type == WIRE_BYTES)
            r->n_tags++;
        if (f.number < FIRST_COLUMN || f.number >= FIRST_COLUMN + N_COLUMNS)
            continue;
        wire *found = &r->columns[f.number - FIRST_COLUMN];
        if (f.type != WIRE_BYTES || found->at != NULL) /* in one piece, as they are written */
            return false;
        *found = (wire){ f.data, f.data + f.n_bytes };
    }
    const wire *middles = &r->columns[NAME_MIDDLE], *names = &r->columns[NAMES];
    for (const uint8_t *at = middles->at; at < middles->end; at++)
        r->n_shards += *at < 0x80;
    return names->at == names->end ||
           memchr(names->at, 0, (size_t)(names->end - names->at)) == NULL;
}

static void *arena_alloc(void *arena, size_t n_bytes)
{
    return weir_arena_alloc(arena, n_bytes);
}

static void arena_free(void *arena, void *piece)
{
    (void)arena, (void)piece; /* goes with the arena */
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
            return undecodable(r);
    }
    return WEIR_OK;
}

/* Makes room for the shards that are the worker's own, and their names. `ahead` is a reader that
 * goes before. */
static weir_status make_room(layout_reader *r, layout_reader ahead, weir_layout_part *out)
{
    size_t n_own = 0, n_names_bytes = 0;
    bool is_kept = false;
    for (size_t i = 0; i < r->n_shards; i++) {
        name_cut cut;
        if (!next_cut(&ahead, &cut))
            return undecodable(r);
        is_kept &= is_same(&ahead, &cut);
        if (cut.middle > 0)
            ahead.columns[NAMES].at += cut.middle;
        ahead.name_bytes = cut.n_bytes;
        weir_mesh_place place = next_place(&ahead);
        if (!is_own(r, &place))
            continue;
        n_names_bytes += is_kept ? 0 : cut.n_bytes + 1;
        is_kept = true;
        n_own++;
    }
    out->shards = weir_arena_alloc(r->arena, n_own * sizeof(out->shards[0]));
    out->numbers = weir_arena_alloc(r->arena, n_own * sizeof(out->numbers[0]));
    r->names = weir_arena_alloc(r->arena, n_names_bytes);
    return out->shards != NULL && out->numbers != NULL && r->names != NULL ? WEIR_OK
                                                                           : WEIR_ERR_NO_MEMORY;
}

static weir_status read_shards(layout_reader *r, weir_layout_part *out)
{
    for (size_t i = 0; i < r->n_shards; i++) {
        weir_shard shard;
        bool own = false;
        weir_status status = next_shard(r, &shard, &own);
        if (status != WEIR_OK)
            return status;
        if (!own)
            continue;
        out->numbers[out->n_shards] = (uint32_t)i;
        out->shards[out->n_shards++] = shard;
    }
    for (size_t i = 0; i < N_COLUMNS; i++) {
        if (r->columns[i].at != r->columns[i].end)
            return weir_fail(WEIR_ERR_CORRUPT,
                             "manifest: the layout says more than of its %zu shards", r->n_shards);
    }
    out->n_published = r->n_shards;
    out->first_metadata = r->n_tags > 0 ? r->tags[0]->compile_metadata : "";
    return WEIR_OK;
}

weir_status weir_layout_decode_part(const void *bytes, size_t n_bytes,
                                    const weir_manifest_region *regions, size_t n_regions,
                                    const weir_mesh_place *place, weir_arena *arena,
                                    weir_layout_part *out)
{
    static const uint8_t nothing[1];
    layout_reader r = { .bytes = n_bytes > 0 ? bytes : nothing,
                        .n_bytes = n_bytes,
                        .regions = regions,
                        .n_regions = n_regions,
                        .place = place,
                        .arena = arena };
    weir_layout_part part = { 0 };
    if (!find_columns(&r) || r.n_shards > UINT32_MAX)
        return undecodable(&r);
    weir_status status = read_tags(&r);
    if (status == WEIR_OK)
        status = make_room(&r, r, &part);
    if (status == WEIR_OK)
        status = read_shards(&r, &part);
    if (status == WEIR_OK)
        *out = part;
    return status;
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
