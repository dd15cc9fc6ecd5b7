/* SPDX-License-Identifier: Apache-2.0 */
/* pieces.h - a trainer rank's entries cut into pieces, and pieces gathered into steps: what is
 * converted and sent at once when a version is pushed. Pure: no I/O, no data is touched.
 *
 * A piece is part of one entry: some of its experts, or some of its rows, cut where the
 * conversion's border and the digest's rows allow; converting the pieces gives the bytes of
 * converting the entry, and the digests of the pieces add up to the entry's.
 */
#ifndef WEIR_REFIT_PIECES_H
#define WEIR_REFIT_PIECES_H

#include "base/arena.h"
#include "refit/trainer.h"
#include "refit/work.h"

/* Where one output of a piece belongs: a contiguous range of one of the rank's shards. */
typedef struct weir_part {
    uint32_t shard;
    uint64_t offset, n_bytes; /* within the shard */
} weir_part;

typedef struct weir_piece {
    weir_convert_args args; /* sources are the piece's own views; outputs, digests and pool are for
                               whoever converts to set */
    const weir_map_entry *entry;
    bool plain;     /* copying the sources, one behind the other, gives the output's bytes */
    size_t n_parts; /* outputs of the conversion */
    weir_part parts[WEIR_MAX_OUTPUTS];
    uint64_t part_offsets[WEIR_MAX_OUTPUTS]; /* of each part within its step, when it is packed */
} weir_piece;

typedef struct weir_step {
    size_t first_piece, n_pieces;
    uint64_t n_bytes;      /* of its parts */
    uint64_t packed_bytes; /* with the alignment between parts */
} weir_step;

typedef struct weir_steps {
    weir_piece *pieces;
    size_t n_pieces;
    weir_step *steps;
    size_t n_steps;
    uint64_t largest_packed_bytes;
    /* for weir_steps_aim(): each view of a piece, which source it is part of and where. */
    struct weir_piece_view *views;
    size_t n_views;
} weir_steps;

/* Cuts so that no step packs to more than step_bytes (256-byte aligned parts): what is outside the
 * layers first, then in the order of the rank's shards, every shard's parts ascending and gapless. A piece that cannot be cut further may
 * be larger; it then is a step of its own. Everything lies in `arena`. */
weir_status weir_steps_cut(const weir_source *source, bool keep_masters, uint64_t step_bytes,
                           weir_arena *arena, weir_steps *out);

/* The rows of a part, as the digest of its shard sees them: fills n_rows, row_bytes, first_word and
 * dtype of *out. ERR_CORRUPT when it begins or ends within a row or a word, or outside the shard.
 */
weir_status weir_part_rows(const weir_shard *shard, uint64_t offset, uint64_t n_bytes,
                           weir_work_range *out);

/* Takes the data pointers that the entries' sources have now. Allocates nothing. */
void weir_steps_aim(const weir_steps *steps);

#endif
