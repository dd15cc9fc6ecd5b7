/* SPDX-License-Identifier: Apache-2.0 */
/* round.c - the messages of a push, packed by protobuf-c into scratch and sent as one frame each.
 *
 * Checks nothing: what is sent are Weir's own numbers. The other side checks them.
 */
#include "refit/round.h"

#include <string.h>

#include "base/error.h"
#include "round.pb-c.h"
#include "rpc/rpc_message.h"

static weir_status send_packed(weir_frame_link *link, weir_round_type type,
                               const ProtobufCMessage *message, weir_arena *scratch,
                               unsigned timeout_ms)
{
    size_t n_bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = weir_arena_alloc(scratch, n_bytes);
    if (bytes == NULL)
        return WEIR_ERR_NO_MEMORY;
    protobuf_c_message_pack(message, bytes);
    return weir_frame_send(link, (uint16_t)type, bytes, n_bytes, timeout_ms);
}

/* A copy that the other side takes: bounded, and UTF-8, since it refuses a message for the rest. */
static char *bounded_text(weir_arena *scratch, const char *text)
{
    char *copy = weir_arena_format(scratch, "%.*s", (int)WEIR_ROUND_TEXT_BYTES - 1,
                                   text != NULL ? text : "");
    if (copy != NULL)
        weir_rpc_text_repair(copy);
    return copy;
}

static ProtobufCBinaryData bytes_of(const void *data, size_t n_bytes)
{
    return (ProtobufCBinaryData){ n_bytes, (uint8_t *)data };
}

/* ---- places ----------------------------------------------------------------------------------*/

static weir_status fill_regions(Weir__Round__Places *message, const weir_round_places *places,
                                weir_arena *scratch)
{
    size_t n = places->n_regions;
    Weir__Round__Region *storage = weir_arena_zeroed(scratch, n, sizeof(*storage));
    message->regions = weir_arena_zeroed(scratch, n, sizeof(*message->regions));
    if (storage == NULL || message->regions == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        weir__round__region__init(&storage[i]);
        storage[i].key = bytes_of(places->regions[i].key, places->regions[i].key_bytes);
        storage[i].n_bytes = places->regions[i].n_bytes;
        message->regions[i] = &storage[i];
    }
    message->n_regions = n;
    return WEIR_OK;
}

weir_status weir_round_places_encode(const weir_round_places *places, weir_arena *scratch,
                                     weir_buffer *out)
{
    Weir__Round__Places message = WEIR__ROUND__PLACES__INIT;
    weir_status status = fill_regions(&message, places, scratch);
    if (status != WEIR_OK)
        return status;
    message.transport = (char *)places->transport;
    message.address = bytes_of(places->address, places->address_bytes);
    message.target_regions = (uint32_t *)places->target_regions;
    message.target_offsets = (uint64_t *)places->target_offsets;
    message.n_target_regions = message.n_target_offsets = places->n_targets;
    status = weir_buffer_reserve(out, protobuf_c_message_get_packed_size(&message.base));
    if (status == WEIR_OK)
        out->n_bytes = protobuf_c_message_pack(&message.base, out->data);
    return status;
}

/* ---- before the steps ------------------------------------------------------------------------*/

weir_status weir_round_send_join(weir_frame_link *link, const weir_round_join *join,
                                 weir_arena *scratch, unsigned timeout_ms)
{
    Weir__Round__Join message = WEIR__ROUND__JOIN__INIT;
    message.format = WEIR_ROUND_FORMAT;
    message.worker_id = (char *)join->worker_id;
    message.model = (char *)join->model;
    message.run = (char *)join->run;
    return send_packed(link, WEIR_ROUND_JOIN, &message.base, scratch, timeout_ms);
}

weir_status weir_round_send_news(weir_frame_link *link, uint64_t version, weir_arena *scratch,
                                 unsigned timeout_ms)
{
    Weir__Round__News message = WEIR__ROUND__NEWS__INIT;
    message.version = version;
    return send_packed(link, WEIR_ROUND_NEWS, &message.base, scratch, timeout_ms);
}

weir_status weir_round_send_ready(weir_frame_link *link, const weir_round_ready *ready,
                                  weir_arena *scratch, unsigned timeout_ms)
{
    Weir__Round__Ready message = WEIR__ROUND__READY__INIT;
    message.version = ready->version;
    message.version_uid = (char *)ready->version_uid;
    message.staged = ready->staged;
    message.n_windows = ready->n_windows;
    message.window_bytes = ready->window_bytes;
    message.places = bytes_of(ready->places, ready->places_bytes);
    message.n_expected = ready->n_expected;
    return send_packed(link, WEIR_ROUND_READY, &message.base, scratch, timeout_ms);
}

weir_status weir_round_send_round(weir_frame_link *link, const weir_round_round *round,
                                  weir_arena *scratch, unsigned timeout_ms)
{
    Weir__Round__Round message = WEIR__ROUND__ROUND__INIT;
    message.version = round->version;
    message.version_uid = (char *)round->version_uid;
    message.n_members = round->n_members;
    message.position = round->position;
    message.transport = (char *)round->transport;
    message.group_key = bytes_of(round->group_key, round->group_key_bytes);
    message.largest_step_bytes = round->largest_step_bytes;
    message.next_worker_id = (char *)round->next_worker_id;
    message.next_places = bytes_of(round->next_places, round->next_places_bytes);
    message.next_staged = round->next_staged;
    message.next_n_windows = round->next_n_windows;
    message.next_window_bytes = round->next_window_bytes;
    return send_packed(link, WEIR_ROUND_ROUND, &message.base, scratch, timeout_ms);
}

/* ---- steps -----------------------------------------------------------------------------------*/

static void fill_part(Weir__Round__Part *message, const weir_round_part *part)
{
    weir__round__part__init(message);
    message->shard = part->shard;
    message->offset = part->offset;
    message->n_bytes = part->n_bytes;
    message->packed_offset = part->packed_offset;
    message->digest_product = part->digest.product;
    message->digest_sum = part->digest.sum;
}

weir_status weir_round_send_step(weir_frame_link *link, const weir_round_step *step,
                                 weir_arena *scratch, unsigned timeout_ms)
{
    Weir__Round__Step message = WEIR__ROUND__STEP__INIT;
    Weir__Round__Part *storage = weir_arena_zeroed(scratch, step->n_parts, sizeof(*storage));
    message.parts = weir_arena_zeroed(scratch, step->n_parts, sizeof(*message.parts));
    if (storage == NULL || message.parts == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < step->n_parts; i++) {
        fill_part(&storage[i], &step->parts[i]);
        message.parts[i] = &storage[i];
    }
    message.number = step->number;
    message.n_parts = step->n_parts;
    message.version = step->version;
    message.version_uid = (char *)step->version_uid;
    message.n_steps = step->n_steps;
    return send_packed(link, WEIR_ROUND_STEP, &message.base, scratch, timeout_ms);
}

weir_status weir_round_send_number(weir_frame_link *link, weir_round_type type, uint32_t number,
                                   weir_arena *scratch, unsigned timeout_ms)
{
    Weir__Round__Passed passed = WEIR__ROUND__PASSED__INIT;
    Weir__Round__Freed freed = WEIR__ROUND__FREED__INIT;
    Weir__Round__Paused paused = WEIR__ROUND__PAUSED__INIT;
    Weir__Round__End end = WEIR__ROUND__END__INIT;
    passed.number = freed.number = paused.number = end.n_steps = number;
    switch ((int)type) {
    case WEIR_ROUND_PASSED:
        return send_packed(link, type, &passed.base, scratch, timeout_ms);
    case WEIR_ROUND_FREED:
        return send_packed(link, type, &freed.base, scratch, timeout_ms);
    case WEIR_ROUND_PAUSED:
        return send_packed(link, type, &paused.base, scratch, timeout_ms);
    case WEIR_ROUND_END:
        return send_packed(link, type, &end.base, scratch, timeout_ms);
    default:
        return weir_fail(WEIR_ERR_INTERNAL, "%s: %s is no message of a number",
                         weir_frame_link_who(link), weir_round_type_name((uint16_t)type));
    }
}

/* ---- ends ------------------------------------------------------------------------------------*/

weir_status weir_round_send_done(weir_frame_link *link, const weir_round_done *done,
                                 weir_arena *scratch, unsigned timeout_ms)
{
    Weir__Round__Done message = WEIR__ROUND__DONE__INIT;
    message.version = done->version;
    message.status = (int32_t)done->status;
    message.text = bounded_text(scratch, done->text);
    message.seconds = (double *)done->seconds;
    message.n_seconds = done->n_seconds;
    if (message.text == NULL)
        return WEIR_ERR_NO_MEMORY;
    return send_packed(link, WEIR_ROUND_DONE, &message.base, scratch, timeout_ms);
}

/* Said on the way out of a failure, whose line must outlive a peer that does not hear it. */
weir_status weir_round_send_abort(weir_frame_link *link, const weir_round_abort *abort,
                                  weir_arena *scratch, unsigned timeout_ms)
{
    weir_error_line cause;
    weir_error_save(&cause);
    Weir__Round__Abort message = WEIR__ROUND__ABORT__INIT;
    message.status = (int32_t)abort->status;
    message.text = bounded_text(scratch, abort->text != NULL ? abort->text : cause.text);
    message.nothing_sent = abort->nothing_sent;
    weir_status sent = WEIR_ERR_NO_MEMORY;
    if (message.text != NULL)
        sent = send_packed(link, WEIR_ROUND_ABORT, &message.base, scratch, timeout_ms);
    weir_error_restore(&cause);
    return sent;
}
