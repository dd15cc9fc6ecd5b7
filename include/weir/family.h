/* SPDX-License-Identifier: Apache-2.0 */
/* family.h - model architectures: which source tensors fuse into which engine parameter.
 *
 * A family is a table of rows. A mapping is a family applied to one model: every row of every
 * layer bound to its sources, with the conversion, dtype and shape of every engine parameter.
 *
 * Threads    families are constant; a mapping is immutable once made.
 * Ownership  a mapping keeps the source views it was made from: they (and their names) must
 *            outlive it. Everything it gives out lives as long as the mapping.
 * Errors     ERR_NOT_FOUND (unknown family, layout), ERR_LAYOUT: a source that no row consumes, a
 *            parameter that no source fills, a wrong dtype or shape - each named, with both sides.
 */
#ifndef WEIR_FAMILY_H
#define WEIR_FAMILY_H

#include "weir/checkpoint.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What there is, for `weir families`. layouts: NULL-terminated, the first is the default. */
typedef struct weir_family_info {
    const char *name;            /* "glm_moe_dsa" */
    const char *summary;
    const char *const *layouts;  /* engine layout versions: {"fused_indexer", "split_indexer"} */
    const char *const *model_types; /* config.json "model_type" values, NULL-terminated */
    const char *const *presets;  /* names that `weir synth --preset` takes, NULL-terminated */
} weir_family_info;

WEIR_API size_t weir_families(weir_family_info *families, size_t n_families);
/* The family whose model_types hold config.json's "model_type". ERR_NOT_FOUND lists the known. */
WEIR_API weir_status weir_family_of_config(const weir_config *config, const char **out_family);

/* A layout that every family has besides those of its engines: the tensors of its checkpoint under
 * Hugging Face's names, nothing fused, in bf16 (F32 where the family keeps it), whatever the
 * trainer's naming and the conversion. Needs a config. In the order in which they are sent: those
 * outside the layers first. */
#define WEIR_LAYOUT_CHECKPOINT "checkpoint"
/* The compile metadata of its parameters, whose target is hf_raw. */
#define WEIR_CHECKPOINT_METADATA "{\"format\":\"checkpoint\"}"

/* How the trainer names its tensors. */
typedef enum weir_naming {
    WEIR_NAMING_HF = 0,       /* Hugging Face, one tensor per expert */
    WEIR_NAMING_HF_FUSED = 1, /* Hugging Face, experts.gate_up_proj (E, 2m, d) and experts.down_proj */
    WEIR_NAMING_STACKED = 2,  /* stacked-expert trainer: experts.w1, w2, w3 (E, m, d) */
} weir_naming;

/* The tensors that a checkpoint of this model holds, as config.json describes it: names, dtypes
 * (config's torch_dtype, F32 where the family keeps it) and shapes, no data. Gives an array and
 * its strings in one block: free with weir_family_sources_free(). */
WEIR_API weir_status weir_family_sources(const char *family, const weir_config *config,
                                         weir_naming naming, weir_tensor **out_tensors,
                                         size_t *out_n_tensors);
WEIR_API void weir_family_sources_free(weir_tensor *tensors); /* accepts NULL */

/* The config.json text of a preset ("tiny", "demo", …). ERR_NOT_FOUND lists the presets.
 * Gives a string: free with weir_string_free(). */
WEIR_API weir_status weir_family_preset(const char *family, const char *preset, char **out_config);

/* ---- mapping ---------------------------------------------------------------------------------*/

/* One live parameter of the engine: what a replica holds, what a manifest lists. */
typedef struct weir_parameter {
    const char *name;
    weir_dtype dtype;
    weir_shape shape;
    const char *compile_target;
    const char *compile_metadata;
    size_t entry;    /* index of the entry that fills it; SIZE_MAX for a derived parameter */
    size_t output;   /* which output of that entry's conversion */
    bool is_expert;  /* leading axis counts experts */
} weir_parameter;

/* How tensor parallelism divides a matrix, on trainers and in engines. */
typedef enum weir_cut {
    WEIR_CUT_NONE = 0,       /* each rank holds all of it */
    WEIR_CUT_COLUMN = 1,     /* output features: rows of (out_features, in_features), or a bias */
    WEIR_CUT_ROW = 2,        /* input features: columns */
    WEIR_CUT_VOCABULARY = 3, /* rows, which engines pad */
    WEIR_CUT_ONE_RANK = 4,   /* one rank holds all of it, the others zeros, which no plan gives them:
                                ERR_UNSUPPORTED where several ranks divide what it belongs to */
} weir_cut;

#define WEIR_MAX_PARTS 5 /* the most that engines cut one by one within one parameter */

/* One destination: the sources, in order, and the conversion that turns them into parameters. */
typedef struct weir_map_entry {
    const char *name;                 /* the engine's name of output 0 */
    const weir_conversion *conversion;
    const weir_tensor *sources;       /* expert by expert when n_experts is not 0 */
    size_t n_sources;                 /* per expert when n_experts is not 0 */
    size_t n_experts;
    uint32_t axis;
    bool keep;                        /* pinned: never quantised */
    int layer;                        /* -1 for the non-layer part */
    weir_shape shape;                 /* of the fused source */
    size_t first_parameter;           /* its outputs are parameters first … first + n_outputs - 1 */
    weir_cut cut;                     /* of each part: engines cut [q;k;v] part by part */
    size_t n_parts;                   /* n_sources, or more where one source holds several */
    uint32_t units[WEIR_MAX_PARTS];   /* heads of each part, which a cut keeps whole; 0: none */
    uint64_t part_rows[WEIR_MAX_PARTS]; /* all 0: the sources hold equal parts */
    bool tied;                        /* embeddings that the head is made of too: an engine whose
                                         layers are spread over stages has them on the last as well */
    size_t bundle;                    /* the first of the entries that engines make one parameter of,
                                         of layout "checkpoint"; else this entry's own number */
} weir_map_entry;

/* A parameter that the replica computes from another after each install. */
typedef enum weir_derived_kind {
    WEIR_DERIVED_MLA_W_UV = 1,   /* (N, L, V): W_UV[n][l][v] = K[n * (P + V) + P + v][l] */
    WEIR_DERIVED_MLA_W_UK_T = 2, /* (N, P, L): W_UK_T[n][p][l] = K[n * (P + V) + p][l] */
} weir_derived_kind;

/* K is the dequantised kv_b_proj, (N * (P + V), L): N heads, P = qk_nope_head_dim,
 * V = v_head_dim, L = kv_lora_rank. */
typedef struct weir_derived {
    weir_derived_kind kind;
    size_t parameter;    /* index of the derived parameter */
    size_t from;         /* index of the parameter it is computed from (kv_b_proj) */
    size_t from_scale;   /* index of its scale, SIZE_MAX when there is none */
    uint64_t n_heads, nope_dim, v_dim, lora_rank;
} weir_derived;

typedef struct weir_mapping_options {
    size_t size; /* sizeof(weir_mapping_options) */
    const char *family;           /* NULL: from config's model_type */
    const char *layout;           /* NULL: the family's default; or WEIR_LAYOUT_CHECKPOINT */
    const char *conversion;       /* NULL or "auto": from config's quantization_config */
    const weir_config *config;    /* NULL: no check of completeness and shapes (a single layer, say):
                                     rows without any source are skipped, layers found by name */
    const char *const *ignore;    /* globs of source names to leave out, whatever they are */
    size_t n_ignore;
    bool unreadable;              /* the sources' data is not this processor's to read (GPU memory):
                                     tied ones are not compared */
} weir_mapping_options;
#define WEIR_MAPPING_OPTIONS_INIT WEIR_SIZED(weir_mapping_options)

typedef struct weir_mapping weir_mapping;

/* Binds `sources` (any order, any of the namings) to the family's rows. With a config, every row
 * of every layer must be filled and shapes must agree with it; a source that nothing consumes is
 * refused always. Gives *out. */
WEIR_API weir_status weir_mapping_open(const weir_mapping_options *options,
                                       const weir_tensor *sources, size_t n_sources,
                                       weir_mapping **out);
WEIR_API void weir_mapping_close(weir_mapping *mapping); /* accepts NULL */

/* In table order: layers ascending, then the non-layer part; of layout "checkpoint" the other way
 * round. */
WEIR_API const weir_map_entry *weir_mapping_entries(const weir_mapping *mapping, size_t *out_n);
/* Outputs of all entries in entry order, then the derived parameters. */
WEIR_API const weir_parameter *weir_mapping_parameters(const weir_mapping *mapping, size_t *out_n);
WEIR_API const weir_derived *weir_mapping_derived(const weir_mapping *mapping, size_t *out_n);
/* The default conversion that was chosen. */
WEIR_API const weir_conversion *weir_mapping_conversion(const weir_mapping *mapping);

/* Converts one entry: a weir_convert() whose args come from the entry. `outputs` and `digests` as
 * in weir_convert_args (digests may be NULL). */
typedef struct weir_entry_convert_args {
    size_t size; /* sizeof(weir_entry_convert_args) */
    void *outputs[WEIR_MAX_OUTPUTS];
    weir_digest *digests;
    bool propagate;
    bool keep_masters; /* do not round F32 masters to bf16 before quantising */
    bool reference;
    weir_pool *pool;
} weir_entry_convert_args;
#define WEIR_ENTRY_CONVERT_ARGS_INIT WEIR_SIZED(weir_entry_convert_args)
WEIR_API weir_status weir_map_entry_convert(const weir_map_entry *entry,
                                            const weir_entry_convert_args *args);

/* Computes one derived parameter from the bytes of its origin: dequantises kv_b_proj (fp32
 * code * scale, rounded to bf16) and lays it out. `out` has the derived parameter's dtype (bf16)
 * and shape; from_dtype BF16 or F8_E4M3 (scale_shape tells block, (rows / 128, cols / 128) cells,
 * from channel, (rows)). */
WEIR_API weir_status weir_derived_compute(const weir_derived *derived, weir_dtype from_dtype,
                                          const void *from, const float *scale,
                                          const weir_shape *scale_shape, void *out);

#ifdef __cplusplus
}
#endif
#endif
