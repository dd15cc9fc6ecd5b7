/* SPDX-License-Identifier: Apache-2.0 */
/* table.h - what a model family is written in: rows of constants, no code.
 *
 * A row says how one engine parameter is made. Every family stands in its own file as a constant
 * weir_family; family.c lists them; everything else in this folder reads the tables and knows no
 * model by name.
 *
 * Names may hold "{i}" (the layer; in a family's layer prefix) and "{e}" (the expert). Rows of the
 * layer parts give names without the layer prefix.
 *
 * Shapes are lists of expressions over the integers of config.json, "hidden_size" or
 * "kv_lora_rank+qk_rope_head_dim": sums of products, separated by commas, outermost axis first.
 * A leading "1," means that the trainer may keep an axis of one there; it is removed. A key may
 * stand for a list with one number per layer.
 *
 * A condition is a key of config.json that must be true, a number above 0, or a text; "!KEY" is its
 * opposite, "KEY=TEXT" asks for that text, "KEY!=TEXT" for anything else that "KEY" takes.
 */
#ifndef WEIR_FAMILY_TABLE_H
#define WEIR_FAMILY_TABLE_H

#include "weir/family.h"

#define WEIR_N_NAMINGS 3
#define WEIR_ROW_SOURCES 3 /* the most that any row fuses */

/* Pins a row to the dtype the engine keeps: the config's torch_dtype, or without a config that of
 * the source. No conversion of the registry has this name. */
#define WEIR_COPY "copy"
/* The same for what checkpoints and engines keep in fp32 whatever torch_dtype says. */
#define WEIR_COPY_F32 "copy_f32"

typedef enum weir_row_kind {
    WEIR_ROW_PLAIN = 0,  /* norms, biases, embeddings, routers */
    WEIR_ROW_LINEAR = 1, /* (out_features, in_features) */
    WEIR_ROW_EXPERT = 2, /* (experts, out_features, in_features) */
} weir_row_kind;

typedef struct weir_row_source {
    const char *name;
    const char *shape;
} weir_row_source;

typedef struct weir_family_row {
    const char *dst; /* the engine's name */
    weir_row_kind kind;
    uint32_t axis;          /* along which the sources are joined */
    const char *conversion; /* NULL: the run's default; else pinned: a name, WEIR_COPY… */
    const char *when;       /* a condition, see above; NULL: always */
    const char *tied_with;  /* source that stands for this one when tie_word_embeddings is true */
    weir_cut cut; /* how tensor parallelism divides it; of an expert: one expert's matrix */
    /* The parts that are cut one by one, where they are not the sources of the Hugging Face naming:
     * how many rows each has, in their order. */
    const char *parts[WEIR_MAX_PARTS];
    /* By part: a number of config.json that says of how many units (heads) its rows are, which no
     * cut divides. NULL: any row is a place to cut. */
    const char *units[WEIR_MAX_PARTS];
    /* By naming. An empty list: named as in Hugging Face. */
    weir_row_source sources[WEIR_N_NAMINGS][WEIR_ROW_SOURCES + 1];
} weir_family_row;

/* One engine layout. Rows end with one whose dst is NULL. NULL: the part is empty. */
typedef struct weir_family_parts {
    const weir_family_row *base;   /* every layer */
    const weir_family_row *dense;  /* layers without experts */
    const weir_family_row *sparse; /* layers with experts */
    const weir_family_row *rest;   /* outside the layers */
} weir_family_parts;

#define WEIR_LAYER_KINDS 4

/* Layers of several kinds, besides dense and sparse, in an order that config.json spells out. */
typedef struct weir_layer_kinds {
    const char *key; /* a list with the name of each layer's kind; NULL: layers are of one kind */
    const char *names[WEIR_LAYER_KINDS];
    const weir_family_row *rows[WEIR_LAYER_KINDS]; /* besides those of the parts */
    const char *pattern; /* key of a text with one letter per layer; NULL: only the list tells */
    const char *letters; /* of the kinds */
    /* An expression for n: without list and text each n-th layer is of the first kind, the others
     * of the second. NULL: one of them must be there. */
    const char *interval;
    const char *experts; /* the kind that has experts: see WEIR_DENSE_LAYER_KIND */
} weir_layer_kinds;

/* Which layers are dense. */
typedef enum weir_dense_rule {
    WEIR_DENSE_ALL = 0,
    WEIR_DENSE_FIRST_K,   /* i < first_k_dense_replace */
    WEIR_DENSE_QWEN3_MOE, /* i in mlp_only_layers, no experts, or off decoder_sparse_step */
    /* mlp_layer_types, else as QWEN3_MOE where there are mlp_only_layers, else the first layer. */
    WEIR_DENSE_LAYER_TYPES,
    WEIR_DENSE_LAYER_KIND, /* of another kind than layer_kinds.experts */
} weir_dense_rule;

/* What a key of config.json is when the file leaves it out. */
typedef struct weir_config_default {
    const char *key;
    const char *expression; /* '/' divides, and must divide evenly; of a boolean: "1" */
} weir_config_default;

/* Parameters computed from one K = (heads * (nope + v), rank) of each layer; expressions. */
typedef struct weir_family_mla {
    const char *from; /* the row's dst; NULL: the family has none */
    const char *w_uv, *w_uk_t;
    const char *heads, *nope_dim, *v_dim, *lora_rank;
} weir_family_mla;

#define WEIR_FAMILY_MAX 4       /* of each small list below, its NULL included */
#define WEIR_FAMILY_DEFAULTS 12 /* of the defaults, their NULL included */
#define WEIR_FAMILY_PRESETS 8

typedef struct weir_family {
    const char *name;
    const char *summary;
    const char *layer_prefix; /* "model.layers.{i}." */
    const char *n_experts;    /* key of config.json; NULL: no experts */
    weir_dense_rule dense_rule;
    weir_layer_kinds layer_kinds;
    const char *model_types[WEIR_FAMILY_MAX];
    const char *layouts[WEIR_FAMILY_MAX];     /* names; the first is the default */
    weir_family_parts parts[WEIR_FAMILY_MAX]; /* of the layouts, in their order */
    /* In front of the engine's names, by layout, where the engine holds the language model as one
     * tower of several; the default layout where config.json has a text_config. */
    const char *dst_prefix[WEIR_FAMILY_MAX];
    const char *drop[WEIR_FAMILY_MAX]; /* globs of source names that engines do not hold */
    const char *alias[2];              /* sources named [0]… count as named [1]… */
    bool hf_says_alias;                /* and the Hugging Face namings do say [0]… */
    weir_config_default defaults[WEIR_FAMILY_DEFAULTS];
    weir_family_mla mla;
    const char *presets[WEIR_FAMILY_PRESETS]; /* names */
    const char *configs[WEIR_FAMILY_PRESETS]; /* config.json texts of the presets */
} weir_family;

/* Rows that several families have word for word: shared_rows.c. */
extern const weir_family_row weir_rows_qwen3_layer[]; /* norms and attention */
extern const weir_family_row weir_rows_llama_layer[];
extern const weir_family_row weir_rows_llama_mlp[]; /* gated, biases by mlp_bias */
extern const weir_family_row weir_rows_gated_mlp[];
extern const weir_family_row weir_rows_gemma_layer[]; /* norms of queries and keys by use_qk_norm */
extern const weir_family_row weir_rows_causal_lm[];   /* embeddings, last norm, head */
extern const weir_family_row weir_rows_qwen3_5_layer[]; /* norms */
extern const weir_family_row weir_rows_qwen3_5_full[];
extern const weir_family_row weir_rows_qwen3_5_linear[];

extern const weir_family weir_family_afmoe;
extern const weir_family weir_family_bert;
extern const weir_family weir_family_deepseek_v3;
extern const weir_family weir_family_gemma2;
extern const weir_family weir_family_gemma3_text;
extern const weir_family weir_family_glm4_moe;
extern const weir_family weir_family_glm_moe_dsa;
extern const weir_family weir_family_gpt_oss;
extern const weir_family weir_family_laguna;
extern const weir_family weir_family_llama;
extern const weir_family weir_family_minimax_m2;
extern const weir_family weir_family_mistral;
extern const weir_family weir_family_mixtral;
extern const weir_family weir_family_nemotron_h;
extern const weir_family weir_family_qwen2;
extern const weir_family weir_family_qwen3;
extern const weir_family weir_family_qwen3_5;
extern const weir_family weir_family_qwen3_5_moe;
extern const weir_family weir_family_qwen3_moe;

/* The table of that name, and one layout of it (NULL: the default). ERR_NOT_FOUND lists what there
 * is. */
weir_status weir_family_find(const char *name, const weir_family **out);
weir_status weir_family_find_parts(const weir_family *family, const char *layout,
                                   const weir_family_parts **out);

/* ---- shorthand for the tables ----------------------------------------------------------------*/

#define WEIR_HF(...) .sources[WEIR_NAMING_HF] = { __VA_ARGS__ }
#define WEIR_HF_FUSED(...) .sources[WEIR_NAMING_HF_FUSED] = { __VA_ARGS__ }
#define WEIR_STACKED(...) .sources[WEIR_NAMING_STACKED] = { __VA_ARGS__ }
#define WEIR_ROWS_END \
    {                 \
        .dst = NULL   \
    }

#endif
