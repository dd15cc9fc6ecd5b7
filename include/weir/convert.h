/* SPDX-License-Identifier: Apache-2.0 */
/* convert.h - conversions: a named function from source tensors to the bytes of one kernel layout.
 *
 * A conversion is one row (struct weir_conversion) with a readable reference kernel that is the
 * specification; faster kernels must equal it byte for byte. Rows can be registered at run time.
 *
 * Threads    registration and look-up may be called from any thread; rows are immutable once
 *            registered and live until the process ends. weir_convert() may run in several threads
 *            at once, with different pools or with none.
 * Ownership  the registry copies a registered row and keeps its strings and kernels: they must stay
 *            valid for ever. weir_convert() borrows everything until it returns.
 * Errors     ERR_INVALID for a bad call (shape, dtype, missing buffer), ERR_EXISTS, ERR_NOT_FOUND,
 *            ERR_UNSUPPORTED (no rule matches), ERR_NONFINITE. weir_last_error() has the line.
 */
#ifndef WEIR_CONVERT_H
#define WEIR_CONVERT_H

#include "weir/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- threads ---------------------------------------------------------------------------------*/

/* A pool of threads that conversions, digests and copies share. */
typedef struct weir_pool weir_pool;

/* n_threads 0: one per core this process may use (WEIR_THREADS overrides). The caller of a parallel
 * call works too, so n_threads 1 starts none. Gives *out; close with weir_pool_close(). */
WEIR_API weir_status weir_pool_open(unsigned n_threads, weir_pool **out);
WEIR_API void weir_pool_close(weir_pool *pool); /* accepts NULL; waits for its threads */
WEIR_API unsigned weir_pool_threads(const weir_pool *pool); /* 1 for NULL */

/* ---- a conversion ----------------------------------------------------------------------------*/

#define WEIR_MAX_OUTPUTS 4
#define WEIR_WHOLE ((size_t)0) /* a cell or border that spans the whole axis */

#define WEIR_TARGET_HF_RAW "hf_raw"
#define WEIR_TARGET_DEEP_GEMM_FP8 "deep_gemm_fp8"
#define WEIR_TARGET_CUTLASS_FP8 "cutlass_fp8"
#define WEIR_TARGET_VLLM_FUSED "vllm_fused"
#define WEIR_TARGET_TRTLLM "trtllm"

/* One buffer that a conversion fills. Element (i, j) of the output of one matrix holds the cell of
 * `cell_rows` x `cell_cols` source elements that begins at (i * cell_rows, j * cell_cols); ragged
 * cells count. cell_cols WEIR_WHOLE: one element per row, and the last axis is dropped.
 * The weight itself is cell 1 x 1. A leading expert axis is kept. */
typedef struct weir_conversion_output {
    const char *suffix; /* "weight", "weight_scale_inv", "weight_scale" */
    weir_dtype dtype;
    size_t cell_rows;
    size_t cell_cols;
} weir_conversion_output;

/* Where a kernel writes one output of a tile. */
typedef struct weir_tile_output {
    void *data;         /* the element that belongs to the tile's first row and column */
    size_t pitch_bytes; /* from one output row to the next */
} weir_tile_output;

/* One piece of one matrix (a 2-D tensor or one expert): the unit of work of a kernel. Its borders
 * respect the conversion's border, so no cell is shared with another tile. Source rows come as
 * pointers because a fused destination has rows from several sources. */
typedef struct weir_tile {
    weir_dtype dtype;         /* of every source row */
    const void *const *rows;  /* n_rows pointers to the tile's first column, naturally aligned */
    size_t n_rows, n_cols;
    weir_tile_output out[WEIR_MAX_OUTPUTS];
    const void *const *next_rows; /* what the same thread converts next, to prefetch; may be NULL */
    size_t n_next_rows;
    /* Digest of out[0], made in the same pass by kernels that say so (kernel_digests); the word
     * number of the tile's first byte, and the words from one row of out[0] to the next. */
    weir_digest *digest;      /* NULL: not wanted */
    uint64_t digest_word;
    uint64_t digest_words_per_row;
    bool propagate;           /* false: return ERR_NONFINITE when a source element is not finite */
} weir_tile;

/* Fills every output of the tile. Returns OK, or ERR_NONFINITE (the outputs are then unspecified);
 * records no error line: the driver finds tensor and index. Must not allocate or block. */
typedef weir_status (*weir_convert_fn)(const weir_tile *tile);

/* Everything Weir knows about one kernel layout. */
typedef struct weir_conversion {
    size_t size; /* sizeof(weir_conversion) */
    const char *name;
    const char *summary;          /* one line for `weir formats` */
    const char *compile_target;   /* which kernels read these bytes: WEIR_TARGET_… or your own */
    const char *compile_metadata; /* the byte-affecting choices: a JSON object, keys in fixed order */
    weir_dtype_set sources;       /* source dtypes that the kernels take */
    uint32_t min_rank, max_rank;  /* of the source, 0 meaning 1 and WEIR_MAX_RANK; 3: leading experts */
    const char *rank_error;       /* message for another rank, with one %s for the shape; or NULL */
    size_t border_rows, border_cols; /* the block that a cut must respect; WEIR_WHOLE: do not cut */
    size_t n_outputs;
    weir_conversion_output outputs[WEIR_MAX_OUTPUTS];
    weir_convert_fn reference;    /* the specification, portable C */
    weir_convert_fn kernel;       /* the fastest one of this CPU, NULL: use the reference */
    bool kernel_digests;          /* kernel fills tile->digest itself */
    bool by_magnitude;            /* of a block's elements its outputs beyond the first depend on the
                                     largest magnitude alone, and each element of the first on that
                                     and on its own source: ranks that hold parts of a block then
                                     hand each other one number, not rows */
} weir_conversion;

/* Copies the row; keeps what it points to, for ever. ERR_EXISTS "conversion 'NAME' is already
 * registered"; ERR_INVALID when a field is missing or the metadata is no JSON object. */
WEIR_API weir_status weir_conversion_register(const weir_conversion *conversion);

/* ERR_NOT_FOUND "unknown conversion 'NAME'; registered: [a, b, c]" (sorted). */
WEIR_API weir_status weir_conversion_get(const char *name, const weir_conversion **out);

/* Sorted names; writes at most n_names pointers and returns how many are registered. */
WEIR_API size_t weir_conversion_names(const char **names, size_t n_names);

/* True when target and metadata say the same to a reader: targets equal, and every key of
 * `required_metadata` (a JSON object, NULL for none) is in `metadata` with an equal value.
 * allowed_targets NULL: any. */
WEIR_API bool weir_compile_target_matches(const char *target, const char *metadata,
                                          const char *const *allowed_targets, size_t n_allowed,
                                          const char *required_metadata);

/* ---- which conversion a checkpoint's configuration asks for ----------------------------------*/

/* A JSON object of a model's config.json; see checkpoint.h for the readers. */
typedef struct weir_config weir_config;

/* Whether `quantization_config` selects a rule's conversion. Returns 1 for yes, 0 for no, and a
 * negative number when it cannot read the config, which counts as no. */
typedef int (*weir_default_rule_fn)(void *context, const weir_config *quantization_config);

/* Appends a rule, or puts it before all others. The name is not validated here: looking it up when
 * the rule matches does that. Keeps the strings and the context. */
WEIR_API weir_status weir_default_rule_register(weir_default_rule_fn matches, void *context,
                                                const char *conversion, bool insert_first);

/* The conversion for an engine's config.json: "bf16_cast" without a quantization_config (absent,
 * null; looked for in text_config too), else the first rule that matches. ERR_UNSUPPORTED
 * "unsupported inference quantization: {...}; registered conversions: [...]; register a new rule
 * via weir_default_rule_register". */
WEIR_API weir_status weir_conversion_select(const weir_config *config,
                                            const weir_conversion **out);

/* `name` if it is not NULL and not empty, else `default_name`; then as weir_conversion_get(). */
WEIR_API weir_status weir_conversion_resolve(const char *name, const char *default_name,
                                             const weir_conversion **out);

/* ---- converting ------------------------------------------------------------------------------*/

/* The name of output `output` of a tensor called `name`. Output 0 keeps the name. Otherwise, with
 * the suffix "weight_scale_inv": "X.weight" -> "X.weight_scale_inv", "X_weight" ->
 * "X_weight_scale_inv"; another name becomes "NAME.weight_scale_inv", or is ERR_INVALID
 * "cannot derive scale name from 'NAME'" when strict. Writes a NUL-terminated string. */
WEIR_API weir_status weir_conversion_output_name(const weir_conversion *conversion, size_t output,
                                                 const char *name, bool strict, char *buffer,
                                                 size_t buffer_bytes);

/* Shape of one output for a source (or fused source) of this shape. ERR_INVALID with the row's
 * rank_error for a rank it does not take. */
WEIR_API weir_status weir_conversion_output_shape(const weir_conversion *conversion, size_t output,
                                                  const weir_shape *source, weir_shape *out);

/* One call converts one destination: sources are laid side by side along `axis` and converted as
 * one tensor, without a concatenated copy ("fuse first, then quantise").
 *
 * n_experts 0: `sources` are n_sources tensors of one rank. axis 0 for matrices, 1 for stacked
 * experts (E, rows, cols): rows of each expert are joined.
 * n_experts E: `sources` holds E * n_sources matrices, expert by expert; the destination is
 * (E, rows, cols) and axis is 1. */
typedef struct weir_convert_args {
    size_t size; /* sizeof(weir_convert_args) */
    const weir_conversion *conversion;
    const weir_tensor *sources; /* contiguous but for source_pitches; dtypes may differ */
    size_t n_sources;           /* per expert when n_experts is not 0 */
    size_t n_experts;
    uint32_t axis;
    void *outputs[WEIR_MAX_OUTPUTS]; /* n_outputs buffers, contiguous, of the shape rule's size */
    weir_digest *digests;       /* n_outputs digests to fill, or NULL */
    bool propagate;             /* non-finite input: false refuses it with tensor and index */
    bool round_masters;         /* F32 sources are rounded to bf16 once before conversion;
                                   ignored by conversions whose first output is F32 */
    bool reference;             /* use the reference kernel, whatever the CPU has */
    weir_pool *pool;            /* NULL: this thread alone */
    uint64_t first_words[WEIR_MAX_OUTPUTS]; /* number of each output's first digest word: 0 for a
                                   whole tensor. Of a part, as its place in the whole demands: the
                                   digests of all parts then add up to the whole's */
    const uint64_t *source_pitches; /* per source, those of all experts: bytes from one row to the
                                   next of a wider matrix that it is a view of: shape is the view's,
                                   data its first element. NULL, or 0 of a source: contiguous. Only
                                   of matrices: at least a row, a multiple of the element */
} weir_convert_args;
#define WEIR_CONVERT_ARGS_INIT WEIR_SIZED(weir_convert_args)

/* Shape of the fused source that the args describe: what weir_conversion_output_shape() takes. */
WEIR_API weir_status weir_convert_fused_shape(const weir_convert_args *args, weir_shape *out);

/* Blocks until the outputs are written. On an error their content is unspecified. ERR_NONFINITE
 * names the tensor and the index of the first non-finite element, whatever the thread count.
 * Same bytes for every CPU, thread count, pitch and source sharding. Allocates nothing but
 * per-thread scratch, which the pool (or, without one, the thread) keeps for the next call. */
WEIR_API weir_status weir_convert(const weir_convert_args *args);

/* ---- what this CPU offers --------------------------------------------------------------------*/

/* One rung of the ladder of instruction sets, lowest first: "c", "avx2", "avx512". */
typedef struct weir_cpu_rung {
    const char *name;
    bool in_use;
    const char *why_not; /* "" when in use */
} weir_cpu_rung;
WEIR_API size_t weir_cpu_rungs(weir_cpu_rung *rungs, size_t n_rungs);

#ifdef __cplusplus
}
#endif
#endif
