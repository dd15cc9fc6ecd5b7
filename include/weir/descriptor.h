/* SPDX-License-Identifier: Apache-2.0 */
/* descriptor.h - what each worker holds of each tensor, said in the words of the ModelExpress v2
 * registry, and what follows from it: which publishers cover a slice, and whether they agree.
 *
 * Threads    pure functions; what they give is immutable.
 * Ownership  a descriptor borrows everything it points to. A registry that was given owns its
 *            descriptors and their strings. A coverage borrows the publishers until it is closed.
 * Errors     ERR_INVALID for a descriptor that makes no sense, ERR_FORMAT for a text that is no
 *            registry, ERR_LAYOUT for publishers that do not agree, ERR_UNSUPPORTED for what the
 *            registry cannot say. weir_last_error() has the line, with the tensor and the worker.
 */
#ifndef WEIR_DESCRIPTOR_H
#define WEIR_DESCRIPTOR_H

#include "weir/mesh.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- one tensor of one worker ----------------------------------------------------------------*/

typedef enum weir_placement {
    WEIR_PLACEMENT_REPLICATE = 0, /* all of it */
    WEIR_PLACEMENT_SHARD = 1,     /* a range of one axis, or some of its experts */
    WEIR_PLACEMENT_PARTIAL = 2,   /* a summand: nobody can read it */
    WEIR_PLACEMENT_BOX = 3,       /* ranges of several axes. Weir's own kind: a reader that knows
                                     the first three alone refuses the tensor by its name */
} weir_placement;
/* "REPLICATE"; "?" for no placement. */
WEIR_API const char *weir_placement_name(weir_placement placement);

/* Zero means the default of the wire in every field but the first three. */
typedef struct weir_tensor_descriptor {
    const char *name;            /* of the trainer's state, 1 to 255 bytes */
    weir_shape global_shape;     /* of the whole tensor */
    const char *dtype;           /* torch's name without "torch.": "bfloat16" */
    weir_placement placement;
    uint32_t shard_axis;
    bool has_range;              /* of SHARD. False: the expert ids say which part it is */
    uint64_t range_lo, range_hi; /* on shard_axis, half-open */
    weir_box box;                /* of BOX */
    bool is_expert;              /* one axis counts experts */
    uint32_t expert_axis;
    const uint32_t *expert_ids;  /* those that are here, ascending, in the order of the local tensor */
    size_t n_expert_ids;         /* 0: all that the other fields leave */
    const char *compile_target;  /* byte layout; NULL: "hf_raw" */
    const char *compile_metadata; /* a JSON object; NULL: {} */
} weir_tensor_descriptor;

/* ERR_INVALID unless all fields make sense together: axes and ranges within the shape, expert ids
 * ascending, within their axis and in agreement with the range of that axis. */
WEIR_API weir_status weir_tensor_descriptor_check(const weir_tensor_descriptor *descriptor);
/* The part that a descriptor speaks of, its expert ids left aside. Of one that passes the check. */
WEIR_API weir_box weir_tensor_descriptor_box(const weir_tensor_descriptor *descriptor);
/* weir_compile_target_matches() of one descriptor. */
WEIR_API bool weir_tensor_descriptor_matches(const weir_tensor_descriptor *descriptor,
                                             const char *const *allowed_targets, size_t n_allowed,
                                             const char *required_metadata);

/* "bfloat16" for WEIR_BF16; NULL for a dtype that torch has no name for. */
WEIR_API const char *weir_dtype_torch_name(weir_dtype dtype);
/* Takes "torch.bfloat16" too. WEIR_DTYPE_NONE if there is none. */
WEIR_API weir_dtype weir_dtype_from_torch_name(const char *name);

/* ---- describing a tensor ---------------------------------------------------------------------*/

typedef enum weir_tensor_source {
    WEIR_SOURCE_PLAIN = 0, /* an ordinary tensor: all of itself */
    WEIR_SOURCE_RANGE = 1, /* a plain buffer that is the range [range_lo, range_hi) of `axis` */
    WEIR_SOURCE_BOX = 2,   /* a plain buffer that is `box`: for what several axes cut */
    WEIR_SOURCE_REPLICATE = 3, /* distributed tensors of a mesh of mesh_rank axes, and as */
    WEIR_SOURCE_SHARD = 4,     /* torch.distributed places them; SHARD along `axis` */
    WEIR_SOURCE_PARTIAL = 5,
} weir_tensor_source;

typedef struct weir_describe_args {
    size_t size; /* sizeof(weir_describe_args) */
    weir_tensor_source source;
    const char *name;
    weir_dtype dtype;
    weir_shape local_shape;
    weir_shape global_shape; /* of PLAIN: ignored */
    uint32_t mesh_rank;      /* of distributed tensors; 0: 1 */
    uint32_t rank, n_ranks;  /* on the mesh's axis; n_ranks 0: 1 */
    uint32_t axis;
    uint64_t range_lo, range_hi;
    weir_box box;
    bool is_expert; /* these six as in the descriptor; of PARTIAL the expert ones are dropped */
    uint32_t expert_axis;
    const uint32_t *expert_ids;
    size_t n_expert_ids;
    const char *compile_target, *compile_metadata;
} weir_describe_args;
#define WEIR_DESCRIBE_ARGS_INIT WEIR_SIZED(weir_describe_args)

/* The descriptor borrows what the args point to. A box that is whole on all axes becomes REPLICATE,
 * on all but one SHARD.
 * ERR_UNSUPPORTED "DTensor with ND mesh is not supported in v0; …" and "tensor 'N' has uneven
 * DTensor sharding on axis …": placements alone do not tell which part is here (a strided FSDP and TP
 * pair, a padded tail). Who knows the part says it as a range or box.
 * ERR_INVALID "… width W != tensor extent X on axis A", "… outside global_shape[A]=N". */
WEIR_API weir_status weir_tensor_describe(const weir_describe_args *args,
                                          weir_tensor_descriptor *out);

/* The owner of each of n_experts experts in equal contiguous chunks, as weir_trainer_mesh takes it.
 * ERR_INVALID "ep_world_size must be positive", and for chunks that would not be equal. */
WEIR_API weir_status weir_even_expert_owners(uint32_t n_experts, uint32_t ep_world_size,
                                             uint32_t *owners);

/* "0,3,17": sorted, each id once; "" for none. Gives a string: free with weir_string_free(). */
WEIR_API weir_status weir_expert_set_format(const uint32_t *ids, size_t n_ids, char **out);
/* Takes ids in any order, each as often as it likes; gives them sorted, each once. Writes at most
 * n_room and says how many there are. ERR_FORMAT. */
WEIR_API weir_status weir_expert_set_parse(const char *text, uint32_t *ids, size_t n_room,
                                           size_t *out_n);

/* ---- all tensors of one worker ---------------------------------------------------------------*/

typedef struct weir_world_layout {
    uint32_t fsdp, tp, pp, ep;
} weir_world_layout;
/* "fsdp:8,tp:2,pp:1,ep:4", 0 written as 1. WEIR_WORLD_LAYOUT_TEXT bytes are enough. */
#define WEIR_WORLD_LAYOUT_TEXT 64
WEIR_API const char *weir_world_layout_text(const weir_world_layout *layout, char *buffer,
                                            size_t buffer_bytes);
/* Any order; what is missing is 1, other keys are passed over. ERR_FORMAT names the token. */
WEIR_API weir_status weir_world_layout_parse(const char *text, weir_world_layout *out);

typedef struct weir_tensor_registry {
    uint64_t version;
    weir_world_layout world;
    const weir_tensor_descriptor *tensors;
    size_t n_tensors;
} weir_tensor_registry;

/* One JSON text, compact, keys in the order of docs/wire.md. Descriptors that do not pass the check
 * and names that come twice are refused. Gives a string: free with weir_string_free(). */
WEIR_API weir_status weir_tensor_descriptor_encode(const weir_tensor_descriptor *descriptor,
                                                   char **out);
WEIR_API weir_status weir_tensor_registry_encode(const weir_tensor_registry *registry, char **out);

/* The text need not end in NUL and is not kept. What the wire leaves out gets its default; unknown
 * keys are passed over. ERR_FORMAT names the tensor and the key. It says nothing of whether a
 * descriptor passes the check: a peer's one bad tensor is the business of who wants that tensor.
 * Gives *out. */
WEIR_API weir_status weir_tensor_registry_decode(const char *text, size_t n_bytes,
                                                 weir_tensor_registry **out);
/* The same for the text of one descriptor: a registry of version 0 that holds it alone. */
WEIR_API weir_status weir_tensor_descriptor_decode(const char *text, size_t n_bytes,
                                                   weir_tensor_registry **out);
/* Of registries that were given; accepts NULL. */
WEIR_API void weir_tensor_registry_close(weir_tensor_registry *registry);

/* ---- which publishers cover a slice ----------------------------------------------------------*/

typedef struct weir_publisher {
    const char *worker; /* for errors */
    uint32_t rank;
    const weir_tensor_registry *registry; /* NULL: it publishes none */
} weir_publisher;

typedef struct weir_coverage_args {
    size_t size; /* sizeof(weir_coverage_args) */
    const weir_publisher *publishers;
    size_t n_publishers;
    const char *const *wanted; /* NULL: every tensor that anyone publishes */
    size_t n_wanted;
    uint32_t world_size, rank; /* the slice is chunk `rank` of world_size equal ones … */
    uint32_t shard_axis;
    const uint64_t *range;     /* … or [range[0], range[1]) where this is not NULL */
    const uint64_t *version;   /* NULL: all must publish one version. Else publishers of any other
                                  are left out */
    /* A publisher of which one tensor does not match is left out; NULL: any target, any metadata. */
    const char *const *allowed_targets;
    size_t n_allowed;
    const char *required_metadata;
} weir_coverage_args;
#define WEIR_COVERAGE_ARGS_INIT WEIR_SIZED(weir_coverage_args)

/* A part of one publisher's local tensor, and where it goes in the slice. Ranges are on `axis`,
 * whole on all others, (0, 0) of a scalar. In bytes of contiguous tensors: n_runs runs of run_bytes,
 * the first at the offsets, each further one a pitch behind. */
typedef struct weir_contribution {
    const char *name;
    uint32_t publisher; /* index into the publishers */
    uint32_t axis;
    const weir_tensor_descriptor *descriptor;
    uint64_t source_lo, source_hi;
    uint64_t target_lo, target_hi;
    uint64_t n_runs, run_bytes;
    uint64_t source_offset, source_pitch;
    uint64_t target_offset, target_pitch;
} weir_contribution;

#define WEIR_NO_PUBLISHER UINT32_MAX

/* A tensor, or a gap in one, that nobody can give. */
typedef struct weir_missing {
    const char *name;
    const char *reason;     /* "coverage gap at axis 0 [1536, 2048)" */
    uint32_t first, second; /* the publishers that disagree, or WEIR_NO_PUBLISHER */
} weir_missing;

typedef struct weir_coverage_summary {
    size_t n_tensors, n_contributions, n_missing;
    uint64_t n_bytes;           /* of all contributions */
    uint64_t n_duplicate_bytes; /* of shards that were offered once more, and left */
    bool legacy_single_source;  /* no publisher has a registry: all there is to do is to read from one */
    bool covered;               /* nothing is missing */
} weir_coverage_summary;

typedef struct weir_coverage weir_coverage;

/* A SHARD's slice is tiled by its publishers' ranges, each element once; what overlaps is trimmed.
 * REPLICATE comes whole, whatever the slice, from the publisher that has been asked for least.
 * All publishers of a tensor must say the same of shape, dtype, placement, compile target and
 * metadata. What is missing is a result, not an error: look at the summary, or let
 * weir_coverage_check() do it. ERR_LAYOUT for mixed versions, with both versions and workers.
 * Gives *out. */
WEIR_API weir_status weir_coverage_open(const weir_coverage_args *args, weir_coverage **out);
WEIR_API void weir_coverage_close(weir_coverage *coverage); /* accepts NULL */
WEIR_API weir_coverage_summary weir_coverage_summarise(const weir_coverage *coverage);
/* By name, then by target range. None at all while anything is missing: half a plan moves no byte. */
WEIR_API const weir_contribution *weir_coverage_contributions(const weir_coverage *coverage,
                                                              size_t *out_n);
/* By name; every gap of a tensor is one. */
WEIR_API const weir_missing *weir_coverage_missing(const weir_coverage *coverage, size_t *out_n);
/* ERR_LAYOUT "plan is not fully covered; missing=[NAME: REASON, …]". */
WEIR_API weir_status weir_coverage_check(const weir_coverage *coverage);

/* ---- registries and meshes -------------------------------------------------------------------*/

/* A model as both sides know it: weir_mapping_entries() and weir_fleet_tensors_of() of one mapping. */
typedef struct weir_described_model {
    const weir_map_entry *entries;
    const weir_fleet_tensor *tensors;
    size_t n_tensors;
} weir_described_model;

/* What rank `rank` of a mesh holds and may send: of HSDP groups the sender alone says anything.
 * ERR_UNSUPPORTED when tp cuts a fused source part by part, so that it is several boxes. Gives *out,
 * which keeps the names of the model's tensors. */
WEIR_API weir_status weir_tensor_registry_of_mesh(const weir_described_model *model,
                                                  const weir_trainer_mesh *mesh, uint32_t rank,
                                                  uint64_t version, weir_tensor_registry **out);
/* The same from boxes, of which those of other ranks are passed over. ERR_UNSUPPORTED when the rank
 * holds several boxes of one tensor: a registry has one place to say it. */
WEIR_API weir_status weir_tensor_registry_of_held(const weir_described_model *model,
                                                  const weir_held *held, size_t n_held,
                                                  uint32_t rank, uint64_t version,
                                                  weir_tensor_registry **out);
/* The boxes that weir_fleet_open() takes, from the registries of all ranks. ERR_LAYOUT for mixed
 * versions, two workers of one rank, a tensor that the model does not have, another shape or dtype
 * than it has, or bytes that are converted already. Whether all is covered is for weir_fleet_open()
 * to say. Gives an array: free with weir_held_free(). */
WEIR_API weir_status weir_held_of_registries(const weir_described_model *model,
                                             const weir_publisher *publishers,
                                             size_t n_publishers, weir_held **out, size_t *out_n);
WEIR_API void weir_held_free(weir_held *held); /* accepts NULL */

#ifdef __cplusplus
}
#endif
#endif
