/* SPDX-License-Identifier: Apache-2.0 */
/* slot_layout.h - what trainers that publish one slot per source write, and whether it fits.
 *
 * Weir's own plans cut boxes and need none of this. It is for who meets a peer of the other kind:
 * such a trainer keeps one buffer per source tensor, sharded by rows, gathered or of experts, and
 * writes it by row offsets into the tensors that an engine has registered. Here are its rules, and
 * the checks that tell before a byte moves what would go wrong.
 *
 * Threads    pure functions.
 * Ownership  arguments are borrowed until the call returns, by slots for as long as they live.
 * Errors     ERR_INVALID for what makes no sense, ERR_LAYOUT for slots that do not fit.
 */
#ifndef WEIR_SLOT_LAYOUT_H
#define WEIR_SLOT_LAYOUT_H

#include "weir/convert.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- slots -----------------------------------------------------------------------------------*/

#define WEIR_SLOT_SMALL_BYTES ((uint64_t)2 << 20) /* smaller sources are gathered */

typedef enum weir_slot_kind {
    WEIR_SLOT_SHARDED = 1,  /* this rank's equal share of the rows */
    WEIR_SLOT_GATHERED = 2, /* all of it */
    WEIR_SLOT_EXPERT = 3,   /* this rank's experts, sources joined */
} weir_slot_kind;

/* One source in the destination that it is a part of: buffers of this rank, and the rows that they
 * stand for. */
typedef struct weir_slot {
    weir_slot_kind kind;
    weir_shape shape, scale_shape;          /* of the buffers; no scale where scale_rows is 0 */
    uint64_t rows, offset_rows;             /* of the whole source, in the destination */
    uint64_t scale_rows, scale_offset_rows; /* the same of its scale */
    uint32_t n_chunks;                      /* that the ranks hold of it: n_ranks or 1 */
} weir_slot;

/* The slots of all sources of one destination, in order. Sharded when n_ranks divides the rows, the
 * shares of what gets a scale are whole blocks of it, and the source has 2 MiB or more in its own
 * dtype. Each source is converted by itself: the scale rows of a source that does not end with a
 * block are more than the destination has, and weir_slot_check() says so. */
WEIR_API weir_status weir_slots_of(const weir_conversion *conversion, const weir_tensor *sources,
                                   size_t n_sources, uint32_t n_ranks, weir_slot *slots);

/* The slot of stacked experts: `sources` have this rank's shapes and are joined along cat_axis. */
WEIR_API weir_status weir_slot_of_experts(const weir_conversion *conversion,
                                          const weir_tensor *sources, size_t n_sources,
                                          uint32_t cat_axis, weir_slot *out);

typedef struct weir_slot_experts {
    const char *destination, *prefix; /* for errors */
    uint32_t ep, ep_rank, fsdp, fsdp_rank;
    uint32_t n_local, n_experts;
} weir_slot_experts;
/* The first of a rank's n_local experts. ERR_LAYOUT "EP partition mismatch for 'DST' at PREFIX:
 * local=L * fsdp=F * ep=E != total=T". */
WEIR_API weir_status weir_slot_first_expert(const weir_slot_experts *experts, uint32_t *out);

/* ---- both sides ------------------------------------------------------------------------------*/

/* A buffer that a trainer rank has registered, in n_chunks equal pieces. */
typedef struct weir_slot_buffer {
    weir_slot_kind kind;
    const char *key;         /* of this buffer */
    const char *remote_name; /* the engine's tensor */
    weir_dtype dtype;
    weir_shape shape;
    uint32_t n_chunks;          /* 1; of experts: as many as are here */
    uint64_t rows, offset_rows; /* not of experts: as in weir_slot, of the weight or of the scale */
    uint32_t n_layout_chunks;   /* that all ranks' buffers make of the rows */
    const char *prefix;         /* of experts: the key of a peer's expert ids */
    uint32_t first_expert;      /* chunk j is expert first_expert + j … */
    uint32_t n_experts;         /* … of so many */
} weir_slot_buffer;

/* A tensor that an engine has registered. */
typedef struct weir_slot_tensor {
    const char *name;
    weir_dtype dtype;
    uint64_t n_bytes;
} weir_slot_tensor;

/* The global ids of the experts that an engine holds, in their order there. */
typedef struct weir_slot_expert_ids {
    const char *prefix;
    const uint32_t *ids;
    size_t n_ids;
} weir_slot_expert_ids;

typedef struct weir_slot_peer {
    const char *name;
    const weir_slot_tensor *tensors;
    size_t n_tensors;
    const weir_slot_expert_ids *experts;
    size_t n_experts;
} weir_slot_peer;

/* ---- writes and checks -----------------------------------------------------------------------*/

/* Chunk `chunk` of the buffer goes to chunk `remote_chunk` of its tensor at a peer. */
typedef struct weir_slot_write {
    uint32_t chunk, peer, remote_chunk;
} weir_slot_write;

/* What rank `rank` of n_ranks writes of one buffer: a sharded one to every peer, a gathered one to
 * each n_ranks-th peer, an expert to every place where a peer has its id. Writes at most n_writes
 * and returns how many there are. */
WEIR_API size_t weir_slot_writes(const weir_slot_buffer *buffer, uint32_t rank, uint32_t n_ranks,
                                 const weir_slot_peer *peers, size_t n_peers,
                                 weir_slot_write *writes, size_t n_writes);

/* How many errors a report lists. */
#define WEIR_SLOT_REPORT_ERRORS 80

/* Compares all buffers with all peers: keys, layouts without gaps, sizes, row and chunk bytes,
 * dtypes, expert ids; and that every tensor of a peer is filled. ERR_LAYOUT: the first error in
 * weir_last_error(), and the report, one error per line, in *out_report (may be NULL) - then alone.
 * Free it with weir_string_free(). */
WEIR_API weir_status weir_slot_check(const weir_slot_buffer *buffers, size_t n_buffers,
                                     const weir_slot_peer *peers, size_t n_peers,
                                     char **out_report);

#ifdef __cplusplus
}
#endif
#endif
