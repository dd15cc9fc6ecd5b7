/* SPDX-License-Identifier: Apache-2.0 */
/* mesh.h - sharded trainers, parallel replicas, and who sends what to whom: pure data in, pure data
 * out, no I/O.
 *
 * A plan is kept as rules: tensors of one shape share one list of copies, layers and workers that
 * want the same slice share it too, so a fleet of hundreds of ranks takes a few megabytes. What one
 * worker needs is written out when it is asked for, and depends on no other worker: replicas join
 * and leave without changing the others' parts.
 *
 * Threads    pure functions; a fleet plan is immutable once made.
 * Ownership  a fleet plan copies all it was made from, but keeps the tensors' names and
 * conversions. Errors     ERR_INVALID for a text or mesh that makes no sense, naming the token;
 * ERR_LAYOUT for a tensor that cannot be cut that way, naming it, or that nobody holds;
 * ERR_UNSUPPORTED for what the engine itself could not run.
 */
#ifndef WEIR_MESH_H
#define WEIR_MESH_H

#include "weir/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- meshes ----------------------------------------------------------------------------------*/

#define WEIR_MESH_MAX_RANKS 65536

/* The trainer's ranks. 0 means 1. A rank's number, slowest axis first:
 *     rank = (((stage * hsdp + group) * fsdp + f) * ep + e) * tp + t
 * Layers      stage s has layers [s * n_layers / pp, (s + 1) * n_layers / pp); what stands before
 *             the layers (embeddings) is of stage 0, what stands behind them of the last.
 * Matrices    cut by tp first: columns, rows or vocabulary in chunks as torch cuts them
 *             (ceil(n / tp), the last ones short or empty), or whole heads where the family names
 *             them and tp divides them; heads fewer than tp are repeated on tp / heads neighbours.
 *             Of a source that is fused already ([q;k;v] or [gate;up] in one tensor) each part that
 *             the family names is cut by itself: a rank's own rows are those of its heads of q, of
 *             k, then of v, side by side. Heads of the first part are never repeated; parts that
 *             tp does not divide are cut in chunks, each for itself. What alternates row by row or
 *             column by column (gate and up of GPT-OSS) is one part. Where a trainer interleaves
 *             q, k and v per group of heads, no mesh says who holds what: WEIR_MESH_EXPLICIT.
 *             Then rows (axis 0) are cut by fsdp * ep in the same chunks; rank's index f * ep + e.
 *             Of a fused source it is the rank's own rows, side by side, that are cut: a chunk that
 *             has rows of several parts is as many boxes of the source.
 * Experts     expert x is of e = x / ceil(n_experts / ep), or expert_owners[x]. One tensor per
 *             expert: cut by tp as above, its rows then by fsdp. Stacked: e's experts in ascending
 *             order are cut into fsdp chunks; each expert's matrix by tp, part by part.
 * dense_whole not 0: matrices that are no expert's are cut by tp alone, and every rank of fsdp and
 *             ep holds their rows whole (as Megatron's ranks of expert parallelism do). Who makes
 *             which rows is as above, so that the work is spread; no rows are lent for that.
 * hsdp        groups hold the same; the one numbered `sender` sends. */
typedef struct weir_trainer_mesh {
    uint32_t pp, hsdp, fsdp, ep, tp;
    uint32_t sender;
    const uint32_t *expert_owners; /* by expert id; NULL: contiguous */
    uint32_t n_expert_owners;
    uint32_t dense_whole;
} weir_trainer_mesh;

/* One engine's workers, times replicas. 0 means 1. A worker's number:
 *     worker = ((replica * dp + d) * pp + stage) * tp + t
 * Layers      as vLLM cuts them: n_layers / pp each, one more for the last stages but one where
 *             that leaves some over; embeddings on the first stage, norm and head on the last.
 * Matrices    each part of a fused parameter cut by tp, parts side by side per worker: [q;k;v] and
 *             [gate;up]. Heads of any part but the first are repeated where tp exceeds them. Rows
 *             of a vocabulary are padded to a multiple of vocabulary_pad, then cut.
 * Experts     by m = d * tp + t: ep must divide dp * tp; expert rank m / (dp * tp / ep), and each
 *             expert's width is cut by the dp * tp / ep workers of that rank. An expert rank has
 *             n_experts / ep experts, one more on the first ones where that leaves some over; or
 *             ids expert_ids[expert_first[rank] … expert_first[rank + 1]), in slot order, any id
 *             as often as the engine likes as long as each is somewhere. */
typedef struct weir_replica_mesh {
    uint32_t tp, ep, dp, pp, replicas;
    uint32_t vocabulary_pad;      /* 0: 64 */
    const uint32_t *expert_ids;   /* NULL: contiguous */
    const uint32_t *expert_first; /* ep + 1 numbers */
} weir_replica_mesh;

/* Reads "fsdp=8,tp=2,ep=4,pp=2,hsdp=2" and "tp=4,ep=8,dp=2,pp=2,replicas=2" (besides them
 * "sender=", "dense_whole=" and "pad="): any order, each at most once, what is left out is 1 (of
 * these three 0, 0 and 64). ERR_INVALID names the token that is wrong. */
WEIR_API weir_status weir_trainer_mesh_parse(const char *text, weir_trainer_mesh *out);
WEIR_API weir_status weir_replica_mesh_parse(const char *text, weir_replica_mesh *out);
/* How many there are: of all stages and groups; of all replicas. */
WEIR_API uint32_t weir_trainer_mesh_ranks(const weir_trainer_mesh *mesh);
WEIR_API uint32_t weir_replica_mesh_workers(const weir_replica_mesh *mesh);

/* Where a worker stands in its replica. */
WEIR_API weir_mesh_place weir_replica_mesh_place(const weir_replica_mesh *mesh, uint32_t worker);
/* The mesh of one replica as text, every field in one order, its expert map as a digest: equal
 * texts, equal parts. Writes at most WEIR_MESH_TEXT bytes and returns the buffer. */
#define WEIR_MESH_TEXT 160
WEIR_API const char *weir_replica_mesh_text(const weir_replica_mesh *mesh,
                                            char buffer[WEIR_MESH_TEXT]);

/* Expert maps as text: JSON. Of a replica one array of expert ids per expert rank, in slot order:
 * "[[0,1,2,3],[4,5,6,7,0]]"; of a trainer the owner of each expert: "[0,0,1,1]". Fill the mesh's
 * fields with one block that weir_expert_map_free() takes back. ERR_INVALID names what is wrong;
 * that every expert is somewhere is checked with the tensors. */
WEIR_API weir_status weir_replica_mesh_set_experts(weir_replica_mesh *mesh, const char *json);
WEIR_API weir_status weir_trainer_mesh_set_owners(weir_trainer_mesh *mesh, const char *json);
WEIR_API void weir_expert_map_free(const uint32_t *map); /* expert_ids or expert_owners; or NULL */

/* A box of a source that a rank holds. */
typedef struct weir_mesh_box {
    const weir_tensor *source; /* of the mapping: the whole tensor's name, dtype, shape, data */
    weir_box box;
} weir_mesh_box;
/* Everything that a rank holds, source by source in the mapping's order, experts that follow each
 * other in one box; parts of a fused source that tp cuts are a box each, in the order of the rank's
 * own rows. None of them is empty. Gives an array: free with weir_mesh_boxes_free(). */
WEIR_API weir_status weir_trainer_mesh_boxes(const weir_trainer_mesh *mesh,
                                             const weir_mapping *mapping, uint32_t rank,
                                             weir_mesh_box **out, size_t *out_n);
WEIR_API void weir_mesh_boxes_free(weir_mesh_box *boxes); /* accepts NULL */

/* ---- what is moved ---------------------------------------------------------------------------*/

/* Rows of a fused matrix that are cut as one. Parts of one source follow each other in it. */
typedef struct weir_fleet_part {
    uint32_t source;    /* which of the sources holds them */
    uint32_t units;     /* heads, which a cut keeps whole; 0: none */
    uint64_t first_row; /* within that source */
    uint64_t n_rows;
} weir_fleet_part;

#define WEIR_LAYER_BEFORE (-1)
#define WEIR_LAYER_BEHIND INT32_MAX

/* One entry of a mapping, as a planner sees it: parts stacked as rows of one matrix, or of one
 * matrix per expert. A bias is a matrix of one column. */
typedef struct weir_fleet_tensor {
    const char *name;
    const weir_conversion *conversion;
    weir_cut cut;
    int32_t layer;
    uint32_t n_experts;   /* 0: no experts */
    bool stacked;         /* the trainer keeps all experts of a source in one tensor */
    uint32_t source_bits; /* per element */
    uint64_t n_cols;
    uint32_t n_sources, n_parts;
    uint64_t source_rows[WEIR_MAX_PARTS]; /* per expert */
    weir_fleet_part parts[WEIR_MAX_PARTS];
    weir_shape shape; /* of the fused source, experts in front; what lies behind its rows has n_cols
                         elements. rank 0: a matrix (of each expert) */
    bool tied;        /* the head is made of it too: the last stage of a replica has it as well */
} weir_fleet_tensor;

/* One per entry of the mapping, in its order. Gives an array: free with
 * weir_fleet_tensors_free(). */
WEIR_API weir_status weir_fleet_tensors_of(const weir_mapping *mapping, weir_fleet_tensor **out,
                                           size_t *out_n);
WEIR_API void weir_fleet_tensors_free(weir_fleet_tensor *tensors); /* accepts NULL */

/* A box of one source that a rank holds, for trainers that no mesh describes. */
typedef struct weir_held {
    uint32_t rank;
    uint32_t tensor, source;
    uint32_t expert_lo, expert_hi; /* 0, 1 without experts */
    uint64_t row_lo, row_hi, col_lo, col_hi;
} weir_held;

/* The box that {global shape, axis, range} describes; `shape` is the source's: (rows), (rows, cols)
 * or, of stacked experts, (experts, rows, cols). ERR_INVALID when it does not fit. `expert` is the
 * id of a source that holds one expert alone, and ignored otherwise. */
WEIR_API weir_status weir_held_of_range(const weir_fleet_tensor *tensor, uint32_t expert,
                                        const weir_shape *shape, uint32_t axis, uint64_t lo,
                                        uint64_t hi, weir_held *out);

/* ---- the plan --------------------------------------------------------------------------------*/

typedef struct weir_fleet_args {
    size_t size; /* sizeof(weir_fleet_args) */
    const weir_fleet_tensor *tensors;
    size_t n_tensors;
    const weir_trainer_mesh *trainer; /* NULL: `held` says who holds what */
    const weir_held *held;
    size_t n_held;
    const weir_replica_mesh *replica;
} weir_fleet_args;
#define WEIR_FLEET_ARGS_INIT WEIR_SIZED(weir_fleet_args)

#define WEIR_FLEET_MIXED UINT32_MAX

/* One box of a worker's part of a tensor, sent by one rank: rows and columns of the worker's own
 * matrix (of one expert slot), converted, with the scales of its blocks. Boxes keep to the grid of
 * the conversion's blocks, so each block and its scale comes from one rank; but of a shared border
 * (weir_fleet_copy_is_shared) that rank sends the scales, and each piece's rank sends its weights. */
typedef struct weir_fleet_copy {
    uint32_t tensor, rank;
    uint32_t slot, expert; /* where it goes and which one it is; 0, 0 without experts */
    uint32_t row, n_rows, col, n_cols;
    uint32_t source;                 /* WEIR_FLEET_MIXED: a border, gathered from n_pieces pieces */
    uint32_t source_row, source_col; /* within that source (and expert); 0 of a border */
    uint32_t first_piece, n_pieces;
} weir_fleet_copy;

/* Unconverted rows of a border: rank `rank` holds them, rank `owner` converts the border. No bytes
 * move where they are the same. Of a shared border each rank converts its own pieces. Places as in
 * the copy that the piece belongs to. */
typedef struct weir_fleet_piece {
    uint32_t rank, owner;
    uint32_t row, n_rows, col, n_cols;
    uint32_t source, source_row, source_col;
} weir_fleet_piece;

/* A worker's part of one tensor. Without experts n_slots is 1; n_rows counts padding,
 * n_filled_rows does not. n_slots 0: another stage's, or no expert is here. */
typedef struct weir_fleet_slice {
    uint32_t n_slots;
    uint64_t n_rows, n_filled_rows, n_cols;
    uint64_t n_bytes; /* of all outputs, as they are filled */
} weir_fleet_slice;

typedef struct weir_fleet weir_fleet;

/* Every byte of every worker's parameters comes from one rank. Where several ranks hold a box they
 * take turns, tensor by tensor and part by part; workers that hold the same part, in whatever
 * replica, take it from the same rank. A block of scales whose rows or columns lie on several ranks
 * has one owner, the rank that holds most of it (of equals they take turns, and divide what is many
 * blocks high). Gives *out. */
WEIR_API weir_status weir_fleet_open(const weir_fleet_args *args, weir_fleet **out);
WEIR_API void weir_fleet_close(weir_fleet *fleet); /* accepts NULL */
WEIR_API uint32_t weir_fleet_ranks(const weir_fleet *fleet);
WEIR_API uint32_t weir_fleet_workers(const weir_fleet *fleet);
/* 32 hex digits of all that shares and parts follow from: tensors, both meshes, expert maps, held
 * boxes. Not how many replicas there are: equal signatures, equal shares of every rank. Writes 33
 * bytes. */
WEIR_API void weir_fleet_signature(const weir_fleet *fleet, char out[33]);
/* The signature of the plan that weir_fleet_open() would make, without making it: what plans are
 * kept by. Two ways to say the same have one: 0 and 1 in a mesh, no expert map and one that gives
 * every rank its chunk, boxes in any order. Its errors, but for tensors that cannot be cut. */
WEIR_API weir_status weir_fleet_sign(const weir_fleet_args *args, char out[33]);
/* As weir_fleet_signature(), less how the trainer names, stacks and keeps its tensors, which a rank
 * that has nothing of one cannot know: ranks of one trainer must have equal outlines. */
WEIR_API void weir_fleet_outline(const weir_fleet *fleet, char out[33]);

WEIR_API weir_status weir_fleet_slice_of(const weir_fleet *fleet, uint32_t worker, uint32_t tensor,
                                         weir_fleet_slice *out);
/* How many copies a worker's part has, and the copies: by tensor, slot, then row. Writes at most
 * n_copies and returns how many there are. */
WEIR_API size_t weir_fleet_copies(const weir_fleet *fleet, uint32_t worker, weir_fleet_copy *copies,
                                  size_t n_copies);
/* Piece `index` of a border, which is `copy`; every worker's copy of it has the same pieces. */
WEIR_API weir_fleet_piece weir_fleet_piece_of(const weir_fleet *fleet, const weir_fleet_copy *copy,
                                              uint32_t index);
/* Bytes of a copy: the weights, and the scales of its blocks. */
WEIR_API uint64_t weir_fleet_copy_bytes(const weir_fleet *fleet, const weir_fleet_copy *copy);
/* Whether a copy is a border that several ranks convert, each its own pieces, as weir_share_border
 * says; and the bytes of weights that the rank of piece `index` then sends (else 0). What is left of
 * the copy's bytes, copy->rank sends. */
WEIR_API bool weir_fleet_copy_is_shared(const weir_fleet *fleet, const weir_fleet_copy *copy);
WEIR_API uint64_t weir_fleet_piece_bytes(const weir_fleet *fleet, const weir_fleet_copy *copy,
                                         uint32_t index);

/* What all of it comes to. */
typedef struct weir_fleet_summary {
    uint64_t n_copies, n_rules; /* copies of all workers; copies that the plan keeps */
    uint64_t bytes, largest_copy_bytes;
    uint64_t n_border_pieces, border_bytes; /* between trainer ranks, once for all workers: rows, or
                                               magnitudes */
    uint64_t plan_bytes;                    /* memory that the plan takes */
} weir_fleet_summary;
/* sent, bordered: bytes that each rank sends to workers, and to other ranks; received: bytes of
 * each worker. NULL: not wanted. */
WEIR_API weir_status weir_fleet_summarise(const weir_fleet *fleet, weir_fleet_summary *out,
                                          uint64_t *sent, uint64_t *bordered, uint64_t *received);

/* ---- one rank's share ------------------------------------------------------------------------*/

/* What a rank publishes: one box of one output of the part that some workers hold. Copies that
 * continue each other are one shard, so that bytes travel in long runs: rows below rows, experts
 * in slots that follow each other. */
typedef struct weir_share_shard {
    uint32_t tensor, output;
    weir_mesh_place place; /* of the workers; every replica has such */
    weir_shape shape;      /* of that output, as they have it */
    weir_box box;
    uint64_t n_padding_rows; /* as in weir_shard */
    uint64_t n_bytes;
} weir_share_shard;

/* Unconverted rows of one source (and expert), places as in weir_fleet_piece. */
typedef struct weir_share_piece {
    uint32_t tensor, source, expert;
    uint32_t source_row, source_col, n_rows, n_cols; /* within the source */
    uint32_t row, col;  /* within the worker's matrix; of what is lent, unused */
    uint32_t loan;      /* of a border: index into `borrows`, WEIR_ANY: held by this rank itself */
    uint64_t offset;    /* in what the loan hands over, rows without gaps: 16-byte aligned,
                           magnitudes 4-byte */
    uint32_t border;    /* WEIR_ANY: rows. Of magnitudes: index into `borders`, whose blocks they
                           are of; then n_rows and n_cols count blocks, and no source is meant */
} weir_share_piece;

/* A border of a conversion that scales by magnitude (weir_conversion.by_magnitude), of which several
 * ranks hold rows. Each converts what it holds, once it knows the largest magnitude of every block;
 * they hand each other those, one F32 per block, row by row: n_block_rows * n_block_cols of them,
 * of the elements that they hold (0 for a block of which they hold none). */
typedef struct weir_share_border {
    weir_fleet_copy copy; /* its box of the worker's matrix, from block to block; rank: who
                             publishes its scales. Its pieces are named below, none in the copy */
    uint32_t block_rows, block_cols; /* of the grid, no larger than the box */
    uint32_t n_block_rows, n_block_cols;
    size_t first_piece, n_pieces; /* in `pieces`: rows that this rank holds (loan WEIR_ANY), and one
                                     per other rank: its magnitudes (loan, offset) */
} weir_share_border;

/* One conversion: a box of a worker's matrix, made from rows of one source, or from the pieces of a
 * border (copy.source is WEIR_FLEET_MIXED, copy.first_piece counts in `pieces`). */
typedef struct weir_share_job {
    weir_fleet_copy copy;
    uint32_t border;                        /* in `borders`: whose magnitudes its scales are made of
                                               too; WEIR_ANY: none but its own rows' */
    uint32_t shards[WEIR_MAX_OUTPUTS];      /* one per output of the conversion: where it goes;
                                               WEIR_ANY: another job of the border makes it, here or
                                               on another rank. Scales of a border are of all its
                                               blocks */
    uint64_t offsets[WEIR_MAX_OUTPUTS];     /* bytes within the shard; contiguous from there */
    uint64_t first_words[WEIR_MAX_OUTPUTS]; /* of the digest, within the shard */
} weir_share_job;

/* What this rank and another hand each other before they convert. */
typedef struct weir_share_loan {
    uint32_t rank; /* the other */
    uint64_t n_bytes;
    size_t first_piece, n_pieces; /* of `lent`; of borrows 0 */
} weir_share_loan;

/* What one rank does in every refit, whatever the number of replicas. */
typedef struct weir_share {
    weir_share_shard *shards;
    weir_share_job *jobs; /* by tensor, place, slot, row, column */
    weir_share_piece *pieces;
    weir_share_border *borders;
    weir_share_loan *borrows, *lends; /* by rank; what A lends B has the bytes that B borrows of A */
    weir_share_piece *lent;
    size_t n_shards, n_jobs, n_pieces, n_borders, n_borrows, n_lends, n_lent;
} weir_share;

/* Parts that several ranks could make are made by one of them, the same for every replica. Gives
 * *out. */
WEIR_API weir_status weir_fleet_share(const weir_fleet *fleet, uint32_t rank, weir_share **out);
/* The same for a rank that does not keep all of it at once: jobs that share shards, in one run of
 * the jobs' order, come to at most most_bytes (0: no bound). Boxes are cut by rows, from block to
 * block; one that is one block high, or a border, is not cut however wide it is. */
WEIR_API weir_status weir_fleet_share_in_pieces(const weir_fleet *fleet, uint32_t rank,
                                                uint64_t most_bytes, weir_share **out);
WEIR_API void weir_share_free(weir_share *share); /* accepts NULL */

#ifdef __cplusplus
}
#endif
#endif
