/* SPDX-License-Identifier: Apache-2.0 */
/* round.h - the messages of a push (proto/round.proto) as structs: packing, sending, decoding.
 *
 * One version goes from a root (a trainer rank) to all members (replicas) of a round:
 *
 *   member: Join ....... Ready         Paused              Passed/Freed* ...        Done
 *   root:          News         Round          Step Step* ...              End
 *
 * and Abort from either side at any time. What comes from the other process is checked: numbers in
 * range, ids that fit, lists as long as each other. What they refer to (shards, regions) is for
 * the caller to check.
 *
 *   round.c          structs to frames
 *   round_decode.c   frames to structs
 *
 * Ownership  decoded structs borrow from the arena alone, never from the frame.
 * Errors     ERR_CORRUPT for bytes that do not decode, naming message and field; ERR_UNSUPPORTED
 *            for a newer format; ERR_NO_MEMORY for a message that unpacks to more than the arena
 *            or WEIR_ROUND_UNPACK_BYTES allow.
 */
#ifndef WEIR_REFIT_ROUND_H
#define WEIR_REFIT_ROUND_H

#include "base/arena.h"
#include "refit/manifest.h"
#include "rpc/frame_link.h"

typedef enum weir_round_type {
    WEIR_ROUND_JOIN = 1,
    WEIR_ROUND_NEWS = 2,
    WEIR_ROUND_READY = 3,
    WEIR_ROUND_ROUND = 4,
    WEIR_ROUND_STEP = 5,
    WEIR_ROUND_PASSED = 6,
    WEIR_ROUND_FREED = 7,
    WEIR_ROUND_END = 8,
    WEIR_ROUND_DONE = 9,
    WEIR_ROUND_ABORT = 10,
    WEIR_ROUND_PAUSED = 11,
} weir_round_type;
const char *weir_round_type_name(uint16_t type); /* "Join"; "?" for another number */

#define WEIR_ROUND_FORMAT 2u
#define WEIR_ROUND_MAX_WINDOWS 16u
#define WEIR_ROUND_TEXT_BYTES 512u /* of a text, NUL and all; longer ones are cut */
#define WEIR_ROUND_UNPACK_BYTES ((size_t)256 << 20) /* what one message may unpack to */

typedef struct weir_round_join {
    const char *worker_id, *model, *run;
} weir_round_join;

typedef struct weir_round_places {
    const char *transport;
    const void *address;
    size_t address_bytes;
    const weir_manifest_region *regions;
    size_t n_regions;
    const uint32_t *target_regions; /* below n_regions */
    const uint64_t *target_offsets; /* below their region's n_bytes */
    size_t n_targets;
} weir_round_places;

typedef struct weir_round_ready {
    uint64_t version;
    const char *version_uid;
    bool staged;
    uint32_t n_windows;    /* 1 … WEIR_ROUND_MAX_WINDOWS when staged, else 0 */
    uint64_t window_bytes; /* at least 1 when staged; all windows together fit in 64 bits */
    const void *places;    /* packed */
    size_t places_bytes;
    uint32_t n_expected; /* members of the round with the rank before; 0: this is the first */
} weir_round_ready;

typedef struct weir_round_round {
    uint64_t version;
    const char *version_uid;
    uint32_t n_members, position; /* position < n_members */
    const char *transport;
    const void *group_key; /* group_key_bytes is 0 or WEIR_GROUP_KEY_BYTES */
    size_t group_key_bytes;
    uint64_t largest_step_bytes;
    const char *next_worker_id; /* "" when nobody */
    const void *next_places;
    size_t next_places_bytes;
    bool next_staged;
    uint32_t next_n_windows;
    uint64_t next_window_bytes;
} weir_round_round;

typedef struct weir_round_part {
    uint32_t shard;
    uint64_t offset, n_bytes, packed_offset; /* neither offset plus n_bytes overflows */
    weir_digest digest;
} weir_round_part;

typedef struct weir_round_step {
    uint32_t number; /* below n_steps */
    const weir_round_part *parts;
    size_t n_parts;
    uint64_t version;
    const char *version_uid; /* of one attempt at the version, in one run */
    uint32_t n_steps;        /* of the round */
} weir_round_step;

typedef struct weir_round_done {
    uint64_t version;
    weir_status status;    /* OK or an error, whatever number came */
    const char *text;      /* one line */
    const double *seconds; /* finite, not negative */
    size_t n_seconds;      /* at most WEIR_N_STOPS */
} weir_round_done;

typedef struct weir_round_abort {
    weir_status status; /* an error, whatever number came */
    const char *text;   /* one line, never empty */
    bool nothing_sent;  /* by the root: not a byte of the round is or will be on its way */
} weir_round_abort;

/* Places travel inside other messages, as bytes. Growing `out` is the only allocation. */
weir_status weir_round_places_encode(const weir_round_places *places, weir_arena *scratch,
                                     weir_buffer *out);
weir_status weir_round_places_decode(const void *bytes, size_t n_bytes, weir_arena *arena,
                                     weir_round_places *out);

/* Each packs into `scratch` (which the caller resets) and sends one frame. */
weir_status weir_round_send_join(weir_frame_link *link, const weir_round_join *join,
                                 weir_arena *scratch, unsigned timeout_ms);
weir_status weir_round_send_news(weir_frame_link *link, uint64_t version, weir_arena *scratch,
                                 unsigned timeout_ms);
weir_status weir_round_send_ready(weir_frame_link *link, const weir_round_ready *ready,
                                  weir_arena *scratch, unsigned timeout_ms);
weir_status weir_round_send_round(weir_frame_link *link, const weir_round_round *round,
                                  weir_arena *scratch, unsigned timeout_ms);
weir_status weir_round_send_step(weir_frame_link *link, const weir_round_step *step,
                                 weir_arena *scratch, unsigned timeout_ms);
/* type: PASSED, FREED (the step's number), END (how many steps there were) or PAUSED (0). */
weir_status weir_round_send_number(weir_frame_link *link, weir_round_type type, uint32_t number,
                                   weir_arena *scratch, unsigned timeout_ms);
weir_status weir_round_send_done(weir_frame_link *link, const weir_round_done *done,
                                 weir_arena *scratch, unsigned timeout_ms);
/* text NULL: the calling thread's last error, which stays so whatever becomes of the message. */
weir_status weir_round_send_abort(weir_frame_link *link, const weir_round_abort *abort,
                                  weir_arena *scratch, unsigned timeout_ms);

/* Any message, decoded: `type` says which member holds. */
typedef struct weir_round_message {
    weir_round_type type;
    union {
        weir_round_join join;
        uint64_t news_version;
        weir_round_ready ready;
        weir_round_round round;
        weir_round_step step;
        uint32_t number; /* PASSED, FREED, END, PAUSED */
        weir_round_done done;
        weir_round_abort abort;
    };
} weir_round_message;

/* Decodes a frame into `arena` (which the caller resets). Needs no link: fuzzed. */
weir_status weir_round_decode(const weir_frame *frame, weir_arena *arena, weir_round_message *out);

/* The next message of a link: IN_PROGRESS when none came in wait_ms. Errors name the link's peer.
 * An Abort is handed out like any other. */
weir_status weir_round_receive(weir_frame_link *link, unsigned wait_ms, weir_arena *arena,
                               weir_round_message *out);

#endif
