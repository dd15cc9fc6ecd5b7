/* SPDX-License-Identifier: Apache-2.0 */
/* model.h - a family's tables read with the numbers of one config.json: which rows apply to which
 * layer, and what their shapes come to. Knows nothing of tensors.
 */
#ifndef WEIR_FAMILY_MODEL_H
#define WEIR_FAMILY_MODEL_H

#include "family/table.h"

/* Far above any model there is; a hostile config.json must not make loops endless. */
#define WEIR_MODEL_MAX_LAYERS 4096
#define WEIR_MODEL_MAX_EXPERTS 65536
#define WEIR_MODEL_NAME_BYTES 512 /* the longest tensor name that a table can make */
#define WEIR_MODEL_TABLES (3 + WEIR_LAYER_KINDS)

typedef struct weir_model {
    const weir_family *family;
    const weir_family_parts *parts;
    const weir_config *config;            /* borrowed; NULL: no number is known */
    uint64_t n_layers;                    /* 0 without a config */
    uint64_t n_experts;                   /* 0 without a config, or without experts */
    bool tied;                            /* tie_word_embeddings */
    uint8_t dense[WEIR_MODEL_MAX_LAYERS]; /* by layer: true when it has no experts */
    uint8_t kind[WEIR_MODEL_MAX_LAYERS];  /* by layer: an index of the family's kinds */
} weir_model;

/* family NULL: from the config's model_type. ERR_LAYOUT when the config lacks what is needed. */
weir_status weir_model_init(weir_model *model, const char *family, const char *layout,
                            const weir_config *config);

/* Where a key is looked for: models with several towers keep the language model's keys one level
 * down. */
const weir_config *weir_model_holder(const weir_config *config, const char *key);

/* The tables of a layer in order (-1: of the non-layer part), and how many. Without a config a
 * layer is dense and sparse and of every kind. */
size_t weir_model_tables(const weir_model *model, int layer,
                         const weir_family_row *tables[WEIR_MODEL_TABLES]);

/* False when a row's condition does not hold, or its parameter is tied to another. Without a config
 * a plain condition holds, one with a '!' in front or an '=' does not. */
bool weir_model_row_applies(const weir_model *model, const weir_family_row *row);

/* The sources of a row under one naming, ended by one without a name. */
const weir_row_source *weir_row_sources(const weir_family_row *row, weir_naming naming);

/* Shape that the config gives `expression` in a layer (-1: outside the layers). `name` is whose it
 * is, for errors. */
weir_status weir_model_shape(const weir_model *model, int layer, const char *expression,
                             const char *name, weir_shape *out);
/* One number, the same way. */
weir_status weir_model_layer_number(const weir_model *model, int layer, const char *expression,
                                    const char *name, uint64_t *out);
/* One that all layers share. */
weir_status weir_model_number(const weir_model *model, const char *expression, const char *name,
                              uint64_t *out);
/* How many axes a shape expression has; *out_squeeze: the first is an axis of one to remove. */
uint32_t weir_shape_expression_rank(const char *expression, bool *out_squeeze);

/* The dtype of the model's weights: torch_dtype, BF16 when it is left out. */
weir_status weir_model_dtype(const weir_model *model, weir_dtype *out);

/* "model.layers.3." + suffix with "{e}" replaced; layer -1: no prefix. False when it is longer than
 * the WEIR_MODEL_NAME_BYTES of buffer. */
bool weir_model_name(const weir_model *model, int layer, const char *suffix, uint64_t expert,
                     char *buffer);
/* The same as trainers of this naming spell it. */
bool weir_model_source_name(const weir_model *model, int layer, const char *suffix, uint64_t expert,
                            weir_naming naming, char *buffer);
/* The same for a name of the engine's, which may have a prefix. */
bool weir_model_dst(const weir_model *model, int layer, const char *suffix, char *buffer);
/* The layer that a full name belongs to and what follows the prefix; -1 when it has no prefix. */
int weir_model_layer_of(const weir_model *model, const char *name, const char **out_suffix);
/* True when `suffix` is `pattern` with a number for its "{e}". */
bool weir_model_expert_of(const char *pattern, const char *suffix, uint64_t *out_expert);

#endif
