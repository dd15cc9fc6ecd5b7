/* SPDX-License-Identifier: Apache-2.0 */
/* round_decode.c - frames of a push to structs, by protobuf-c, with every number checked.
 *
 * What may come is one row of a table each. Decoding is linear in a message's bytes, and what it
 * takes in the arena is capped: a part of a Step is two bytes on the wire and 130 here.
 */
#include "refit/round.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "directory/client.h"
#include "round.pb-c.h"
#include "rpc/rpc_message.h"
#include "weir/transport.h"
#include "weir/weir.h"

/* ---- checks that several messages share ------------------------------------------------------*/

static weir_status check_name(const char *field, const char *name, bool may_be_empty)
{
    size_t n = strlen(name);
    if (n < WEIR_NAME_BYTES && (n != 0 || may_be_empty))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_CORRUPT, "%s has %zu bytes, expected %d to %d", field, n,
                     may_be_empty ? 0 : 1, WEIR_NAME_BYTES - 1);
}

static weir_status check_windows(const char *message, bool staged, uint32_t n_windows,
                                 uint64_t window_bytes)
{
    if (!staged && n_windows != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "%s has %u windows, but is not staged", message,
                         n_windows);
    if (!staged)
        return WEIR_OK;
    if (n_windows == 0 || n_windows > WEIR_ROUND_MAX_WINDOWS)
        return weir_fail(WEIR_ERR_CORRUPT, "%s has %u windows, expected 1 to %u", message,
                         n_windows, WEIR_ROUND_MAX_WINDOWS);
    if (window_bytes == 0 || window_bytes > UINT64_MAX / n_windows)
        return weir_fail(WEIR_ERR_CORRUPT, "%s has %u windows of %llu bytes", message, n_windows,
                         (unsigned long long)window_bytes);
    return WEIR_OK;
}

/* Peers may know statuses that this build does not: whatever they send, it refused. */
static weir_status error_from_outside(int32_t number)
{
    weir_status status = (weir_status)number;
    bool is_known = number < 0 && strcmp(weir_status_name(status), "UNKNOWN") != 0;
    return is_known ? status : WEIR_ERR_REFUSED;
}

/* Cuts the text, which the arena holds, and makes it one line. */
static const char *bounded_text(char *text)
{
    if (text[0] == '\0')
        return text; /* protobuf-c's constant */
    if (strlen(text) >= WEIR_ROUND_TEXT_BYTES)
        text[WEIR_ROUND_TEXT_BYTES - 1] = '\0';
    weir_error_one_line(text);
    weir_rpc_text_repair(text);
    return text;
}

/* ERR_FORMAT is for files; of a message from a peer the other statuses say all there is. */
static weir_status unpack(const ProtobufCMessageDescriptor *descriptor, const void *bytes,
                          size_t n_bytes, weir_arena *arena, ProtobufCMessage **out)
{
    const size_t cap_bytes = arena->cap_bytes;
    const size_t most_bytes = arena->used_bytes + WEIR_ROUND_UNPACK_BYTES;
    if (cap_bytes == 0 || cap_bytes > most_bytes)
        arena->cap_bytes = most_bytes;
    weir_status status = weir_rpc_message_unpack(descriptor, bytes, n_bytes, arena, out);
    arena->cap_bytes = cap_bytes;
    if (status == WEIR_ERR_NO_MEMORY)
        weir_error_prefix("%s of %zu bytes", descriptor->short_name, n_bytes);
    return status == WEIR_ERR_FORMAT ? WEIR_ERR_CORRUPT : status;
}

/* ---- places ----------------------------------------------------------------------------------*/

static weir_status read_regions(const Weir__Round__Places *message, weir_arena *arena,
                                weir_round_places *out)
{
    weir_manifest_region *regions = weir_arena_zeroed(arena, message->n_regions, sizeof(*regions));
    if (regions == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < message->n_regions; i++)
        regions[i] =
            (weir_manifest_region){ message->regions[i]->key.data, message->regions[i]->key.len,
                                    message->regions[i]->n_bytes };
    out->regions = regions;
    out->n_regions = message->n_regions;
    return WEIR_OK;
}

static weir_status check_targets(const Weir__Round__Places *message)
{
    if (message->n_target_regions != message->n_target_offsets)
        return weir_fail(WEIR_ERR_CORRUPT, "Places has %zu target_regions and %zu target_offsets",
                         message->n_target_regions, message->n_target_offsets);
    for (size_t i = 0; i < message->n_target_regions; i++) {
        uint32_t region = message->target_regions[i];
        if (region >= message->n_regions)
            return weir_fail(WEIR_ERR_CORRUPT,
                             "Places.target_regions: shard %zu in region %u of %zu", i, region,
                             message->n_regions);
        if (message->target_offsets[i] >= message->regions[region]->n_bytes)
            return weir_fail(
                WEIR_ERR_CORRUPT,
                "Places.target_offsets: shard %zu at byte %llu of region %u, which has "
                "%llu",
                i, (unsigned long long)message->target_offsets[i], region,
                (unsigned long long)message->regions[region]->n_bytes);
    }
    return WEIR_OK;
}

weir_status weir_round_places_decode(const void *bytes, size_t n_bytes, weir_arena *arena,
                                     weir_round_places *out)
{
    ProtobufCMessage *base;
    weir_status status = unpack(&weir__round__places__descriptor, bytes, n_bytes, arena, &base);
    if (status != WEIR_OK)
        return status;
    const Weir__Round__Places *message = (const Weir__Round__Places *)base;
    weir_round_places places = { .transport = message->transport,
                                 .address = message->address.data,
                                 .address_bytes = message->address.len,
                                 .target_regions = message->target_regions,
                                 .target_offsets = message->target_offsets,
                                 .n_targets = message->n_target_regions };
    status = check_name("Places.transport", message->transport, false);
    if (status == WEIR_OK)
        status = check_targets(message);
    if (status == WEIR_OK)
        status = read_regions(message, arena, &places);
    if (status == WEIR_OK)
        *out = places;
    return status;
}

/* ---- one reader per message ------------------------------------------------------------------*/

static weir_status read_join(const ProtobufCMessage *base, weir_arena *arena,
                             weir_round_message *out)
{
    (void)arena;
    const Weir__Round__Join *message = (const Weir__Round__Join *)base;
    if (message->format != WEIR_ROUND_FORMAT)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "Join.format is %u, this build speaks %u",
                         message->format, WEIR_ROUND_FORMAT);
    out->join = (weir_round_join){ message->worker_id, message->model, message->run };
    weir_status status = check_name("Join.worker_id", message->worker_id, false);
    if (status == WEIR_OK)
        status = check_name("Join.model", message->model, false);
    if (status == WEIR_OK)
        status = check_name("Join.run", message->run, true);
    return status;
}

static weir_status read_news(const ProtobufCMessage *base, weir_arena *arena,
                             weir_round_message *out)
{
    (void)arena;
    out->news_version = ((const Weir__Round__News *)base)->version;
    return WEIR_OK;
}

static weir_status read_ready(const ProtobufCMessage *base, weir_arena *arena,
                              weir_round_message *out)
{
    (void)arena;
    const Weir__Round__Ready *message = (const Weir__Round__Ready *)base;
    out->ready = (weir_round_ready){ .version = message->version,
                                     .version_uid = message->version_uid,
                                     .staged = message->staged,
                                     .n_windows = message->n_windows,
                                     .window_bytes = message->window_bytes,
                                     .places = message->places.data,
                                     .places_bytes = message->places.len,
                                     .n_expected = message->n_expected };
    weir_status status = check_name("Ready.version_uid", message->version_uid, true);
    if (status == WEIR_OK)
        status = check_windows("Ready", message->staged, message->n_windows, message->window_bytes);
    return status;
}

static weir_status check_next(const Weir__Round__Round *message)
{
    bool has_next = message->next_worker_id[0] != '\0';
    if (!has_next && (message->next_places.len != 0 || message->next_staged))
        return weir_fail(WEIR_ERR_CORRUPT, "Round.next_worker_id is empty, but not what follows");
    weir_status status = check_name("Round.next_worker_id", message->next_worker_id, true);
    if (status == WEIR_OK)
        status = check_windows("Round.next", message->next_staged, message->next_n_windows,
                               message->next_window_bytes);
    return status;
}

static weir_status check_round(const Weir__Round__Round *message)
{
    if (message->position >= message->n_members)
        return weir_fail(WEIR_ERR_CORRUPT, "Round.position is %u of %u members", message->position,
                         message->n_members);
    if (message->group_key.len != 0 && message->group_key.len != WEIR_GROUP_KEY_BYTES)
        return weir_fail(WEIR_ERR_CORRUPT, "Round.group_key has %zu bytes, expected 0 or %d",
                         message->group_key.len, WEIR_GROUP_KEY_BYTES);
    weir_status status = check_name("Round.version_uid", message->version_uid, true);
    if (status == WEIR_OK)
        status = check_name("Round.transport", message->transport, false);
    return status == WEIR_OK ? check_next(message) : status;
}

static weir_status read_round(const ProtobufCMessage *base, weir_arena *arena,
                              weir_round_message *out)
{
    (void)arena;
    const Weir__Round__Round *message = (const Weir__Round__Round *)base;
    out->round = (weir_round_round){ .version = message->version,
                                     .version_uid = message->version_uid,
                                     .n_members = message->n_members,
                                     .position = message->position,
                                     .transport = message->transport,
                                     .group_key = message->group_key.data,
                                     .group_key_bytes = message->group_key.len,
                                     .largest_step_bytes = message->largest_step_bytes,
                                     .next_worker_id = message->next_worker_id,
                                     .next_places = message->next_places.data,
                                     .next_places_bytes = message->next_places.len,
                                     .next_staged = message->next_staged,
                                     .next_n_windows = message->next_n_windows,
                                     .next_window_bytes = message->next_window_bytes };
    return check_round(message);
}

static weir_status read_part(const Weir__Round__Step *message, size_t i, weir_round_part *out)
{
    const Weir__Round__Part *part = message->parts[i];
    if (part->n_bytes > UINT64_MAX - part->offset ||
        part->n_bytes > UINT64_MAX - part->packed_offset)
        return weir_fail(WEIR_ERR_CORRUPT,
                         "Step.parts: part %zu of step %u has %llu bytes at offset %llu, packed at "
                         "%llu",
                         i, message->number, (unsigned long long)part->n_bytes,
                         (unsigned long long)part->offset, (unsigned long long)part->packed_offset);
    *out = (weir_round_part){ .shard = part->shard,
                              .offset = part->offset,
                              .n_bytes = part->n_bytes,
                              .packed_offset = part->packed_offset,
                              .digest = { part->digest_product, part->digest_sum } };
    return WEIR_OK;
}

static weir_status read_step(const ProtobufCMessage *base, weir_arena *arena,
                             weir_round_message *out)
{
    const Weir__Round__Step *message = (const Weir__Round__Step *)base;
    if (message->number >= message->n_steps)
        return weir_fail(WEIR_ERR_CORRUPT, "Step.number: %u of a round of %u steps",
                         message->number, message->n_steps);
    weir_round_part *parts = weir_arena_zeroed(arena, message->n_parts, sizeof(*parts));
    if (parts == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < message->n_parts; i++) {
        weir_status status = read_part(message, i, &parts[i]);
        if (status != WEIR_OK)
            return status;
    }
    out->step = (weir_round_step){ .number = message->number,
                                   .parts = parts,
                                   .n_parts = message->n_parts,
                                   .version = message->version,
                                   .version_uid = message->version_uid,
                                   .n_steps = message->n_steps };
    return WEIR_OK;
}

static weir_status read_number(const ProtobufCMessage *base, weir_arena *arena,
                               weir_round_message *out)
{
    (void)arena;
    switch ((int)out->type) {
    case WEIR_ROUND_PASSED:
        out->number = ((const Weir__Round__Passed *)base)->number;
        break;
    case WEIR_ROUND_FREED:
        out->number = ((const Weir__Round__Freed *)base)->number;
        break;
    case WEIR_ROUND_PAUSED:
        out->number = ((const Weir__Round__Paused *)base)->number;
        break;
    default:
        out->number = ((const Weir__Round__End *)base)->n_steps;
    }
    return WEIR_OK;
}

static weir_status read_done(const ProtobufCMessage *base, weir_arena *arena,
                             weir_round_message *out)
{
    (void)arena;
    const Weir__Round__Done *message = (const Weir__Round__Done *)base;
    if (message->n_seconds > WEIR_N_STOPS)
        return weir_fail(WEIR_ERR_CORRUPT, "Done.seconds has %zu numbers, expected at most %d",
                         message->n_seconds, (int)WEIR_N_STOPS);
    for (size_t i = 0; i < message->n_seconds; i++) {
        if (!isfinite(message->seconds[i]) || message->seconds[i] < 0)
            return weir_fail(WEIR_ERR_CORRUPT, "Done.seconds: number %zu is %g", i,
                             message->seconds[i]);
    }
    out->done = (weir_round_done){ .version = message->version,
                                   .status = message->status == WEIR_OK
                                                 ? WEIR_OK
                                                 : error_from_outside(message->status),
                                   .text = bounded_text(message->text),
                                   .seconds = message->seconds,
                                   .n_seconds = message->n_seconds };
    return WEIR_OK;
}

static weir_status read_abort(const ProtobufCMessage *base, weir_arena *arena,
                              weir_round_message *out)
{
    (void)arena;
    const Weir__Round__Abort *message = (const Weir__Round__Abort *)base;
    weir_status status = error_from_outside(message->status);
    const char *text = bounded_text(message->text);
    out->abort = (weir_round_abort){ .status = status,
                                     .text = text[0] != '\0' ? text : weir_status_text(status),
                                     .nothing_sent = message->nothing_sent };
    return WEIR_OK;
}

/* ---- any message -----------------------------------------------------------------------------*/

/* By type; those that are not there have no name. */
static const struct {
    const char *name;
    const ProtobufCMessageDescriptor *descriptor;
    weir_status (*read)(const ProtobufCMessage *base, weir_arena *arena, weir_round_message *out);
} kinds[] = {
    [WEIR_ROUND_JOIN] = { "Join", &weir__round__join__descriptor, read_join },
    [WEIR_ROUND_NEWS] = { "News", &weir__round__news__descriptor, read_news },
    [WEIR_ROUND_READY] = { "Ready", &weir__round__ready__descriptor, read_ready },
    [WEIR_ROUND_ROUND] = { "Round", &weir__round__round__descriptor, read_round },
    [WEIR_ROUND_STEP] = { "Step", &weir__round__step__descriptor, read_step },
    [WEIR_ROUND_PASSED] = { "Passed", &weir__round__passed__descriptor, read_number },
    [WEIR_ROUND_FREED] = { "Freed", &weir__round__freed__descriptor, read_number },
    [WEIR_ROUND_END] = { "End", &weir__round__end__descriptor, read_number },
    [WEIR_ROUND_DONE] = { "Done", &weir__round__done__descriptor, read_done },
    [WEIR_ROUND_ABORT] = { "Abort", &weir__round__abort__descriptor, read_abort },
    [WEIR_ROUND_PAUSED] = { "Paused", &weir__round__paused__descriptor, read_number },
};
#define N_KINDS (sizeof(kinds) / sizeof(kinds[0]))

const char *weir_round_type_name(uint16_t type)
{
    return type < N_KINDS && kinds[type].name != NULL ? kinds[type].name : "?";
}

weir_status weir_round_decode(const weir_frame *frame, weir_arena *arena, weir_round_message *out)
{
    if (frame->type >= N_KINDS || kinds[frame->type].name == NULL)
        return weir_fail(WEIR_ERR_CORRUPT, "a frame of type %u, which is no message of a round",
                         frame->type);
    ProtobufCMessage *base;
    weir_status status =
        unpack(kinds[frame->type].descriptor, frame->payload, frame->n_bytes, arena, &base);
    if (status != WEIR_OK)
        return status;
    weir_round_message message = { .type = (weir_round_type)frame->type };
    status = kinds[frame->type].read(base, arena, &message);
    if (status == WEIR_OK)
        *out = message;
    return status;
}

weir_status weir_round_receive(weir_frame_link *link, unsigned wait_ms, weir_arena *arena,
                               weir_round_message *out)
{
    weir_frame frame;
    weir_status status = weir_frame_receive(link, wait_ms, &frame);
    if (status != WEIR_OK)
        return status;
    status = weir_round_decode(&frame, arena, out);
    if (status != WEIR_OK)
        weir_error_prefix("%s", weir_frame_link_who(link));
    return status;
}
