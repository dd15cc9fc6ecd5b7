/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_round.c - any bytes as a message of a push: decoded within bounds and with what round.h
 * promises of every struct, or refused. The first byte is the frame's type. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "refit/round.h"
#include "weir/transport.h"
#include "weir/weir.h"

#define CAP_BYTES ((size_t)16 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds)
{
    if (!holds)
        abort();
}

static void look_at_text(const char *text)
{
    must(strlen(text) < WEIR_ROUND_TEXT_BYTES);
    for (; *text != '\0'; text++)
        must((unsigned char)*text >= 0x20 && *text != 0x7f);
}

static void look_at_windows(bool staged, uint32_t n_windows, uint64_t window_bytes)
{
    uint64_t all;
    must(staged ? n_windows >= 1 && n_windows <= WEIR_ROUND_MAX_WINDOWS : n_windows == 0);
    must(!__builtin_mul_overflow(window_bytes, n_windows, &all));
}

static void decode_places(const void *bytes, size_t n_bytes, weir_arena *arena)
{
    weir_round_places places;
    if (weir_round_places_decode(bytes, n_bytes, arena, &places) != WEIR_OK)
        return;
    must(places.transport[0] != '\0');
    for (size_t i = 0; i < places.n_targets; i++) {
        must(places.target_regions[i] < places.n_regions);
        must(places.target_offsets[i] < places.regions[places.target_regions[i]].n_bytes);
    }
    weir_buffer again = { 0 };
    if (weir_round_places_encode(&places, arena, &again) == WEIR_OK)
        must(weir_round_places_decode(again.data, again.n_bytes, arena, &places) !=
             WEIR_ERR_CORRUPT);
    weir_buffer_free(&again);
}

static void look_at_round(const weir_round_round *round, weir_arena *arena)
{
    must(round->position < round->n_members);
    must(round->group_key_bytes == 0 || round->group_key_bytes == WEIR_GROUP_KEY_BYTES);
    look_at_windows(round->next_staged, round->next_n_windows, round->next_window_bytes);
    decode_places(round->next_places, round->next_places_bytes, arena);
}

static void look_at_step(const weir_round_step *step)
{
    must(step->number < step->n_steps && step->version_uid != NULL);
    for (size_t i = 0; i < step->n_parts; i++) {
        const weir_round_part *part = &step->parts[i];
        must(part->offset + part->n_bytes >= part->offset);
        must(part->packed_offset + part->n_bytes >= part->n_bytes);
    }
}

static void look_at(const weir_round_message *message, weir_arena *arena)
{
    switch (message->type) {
    case WEIR_ROUND_JOIN:
        must(message->join.worker_id[0] != '\0' && strlen(message->join.worker_id) < 256);
        must(message->join.model[0] != '\0' && strlen(message->join.model) < 256);
        break;
    case WEIR_ROUND_READY:
        look_at_windows(message->ready.staged, message->ready.n_windows,
                        message->ready.window_bytes);
        decode_places(message->ready.places, message->ready.places_bytes, arena);
        break;
    case WEIR_ROUND_ROUND:
        look_at_round(&message->round, arena);
        break;
    case WEIR_ROUND_STEP:
        look_at_step(&message->step);
        break;
    case WEIR_ROUND_DONE:
        must(message->done.status <= WEIR_OK && message->done.n_seconds <= WEIR_N_STOPS);
        look_at_text(message->done.text);
        break;
    case WEIR_ROUND_ABORT:
        must(message->abort.status < WEIR_OK && message->abort.text[0] != '\0');
        look_at_text(message->abort.text);
        break;
    default:
        must(weir_round_type_name((uint16_t)message->type)[0] != '?');
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    weir_arena arena;
    weir_round_message message;
    const weir_frame frame = { data[0], data + 1, size - 1 };
    weir_arena_init(&arena, CAP_BYTES);
    if (weir_round_decode(&frame, &arena, &message) == WEIR_OK)
        look_at(&message, &arena);
    weir_arena_reset(&arena);
    decode_places(data + 1, size - 1, &arena);
    weir_arena_close(&arena);
    return 0;
}
